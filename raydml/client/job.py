"""One job of a server: what is asked of it, and what it tells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from raydml.client.calls import LONG, Call, Flow, Pages, Recipe, given, key, nothing
from raydml.client.documents import Document
from raydml.client.downloads import Download
from raydml.client.job_documents import (
    ENDED,
    Artifact,
    Checkpoint,
    Comparison,
    Evaluation,
    Event,
    JobFacts,
    LogLine,
    Metric,
    Metrics,
    Reason,
    Workers,
)
from raydml.client.resource import Resource, S, iterating, operation
from raydml.client.retries import Retries
from raydml.client.steps import Pause, Plan, Steps
from raydml.client.streams import Stream
from raydml.errors import JobEnded, WaitedTooLong

ONE = "/v1/jobs/{job}"
LONGEST_PAUSE = 2.0  # seconds between two looks at a job that is waited for
PAGE = 500  # items
Item = TypeVar("Item", bound=Document)


class JobReference(Resource[S]):
    """A job by its id. What changes it gives the job as it is then."""

    id: str

    def __init__(self, sender: S, id: str) -> None:
        super().__init__(sender)
        self.id = id
        self.names = {"job": id}

    @operation
    def get(self) -> Call[Job[S]]:
        """The job as it is now."""
        return Call("GET", ONE, self._job, self.names)

    @operation
    def patch(
        self,
        *,
        labels: Mapping[str, str | None] | None = None,
        priority: int | None = None,
        max_workers: int | None = None,
        version: int | None = None,
    ) -> Call[Job[S]]:
        """Change what is named; a label None is removed. Conflict where the job is of another `version`, if given."""
        body = given(labels=labels, priority=priority, max_workers=max_workers)
        headers = {} if version is None else {"If-Match": f'"{version}"'}
        return Call("PATCH", ONE, self._job, self.names, body=body, headers=headers, repeatable=version is None)

    @operation
    def cancel(self, *, request: str | None = None) -> Call[Job[S]]:
        """Save a checkpoint and stop, for good."""
        return Call("POST", f"{ONE}/cancel", self._job, self.names, key=key(request))

    @operation
    def kill(self, *, request: str | None = None) -> Call[Job[S]]:
        """Stop at once, for good."""
        return Call("POST", f"{ONE}/kill", self._job, self.names, key=key(request))

    @operation
    def pause(self, *, request: str | None = None) -> Call[Job[S]]:
        """Save a checkpoint and stop, until resumed."""
        return Call("POST", f"{ONE}/pause", self._job, self.names, key=key(request))

    @operation
    def resume(self, *, request: str | None = None) -> Call[Job[S]]:
        """Go on from the last checkpoint."""
        return Call("POST", f"{ONE}/resume", self._job, self.names, key=key(request))

    @operation
    def resize(self, workers: int | tuple[int, int], *, request: str | None = None) -> Call[Job[S]]:
        """At most so many workers from now on, or (fewest, most); the trained bits stay the same."""
        wanted = workers if isinstance(workers, int) else {"min": workers[0], "max": workers[1]}
        return Call("POST", f"{ONE}/resize", self._job, self.names, body={"workers": wanted}, key=key(request))

    @operation
    def fork(
        self,
        step: int | None = None,
        changes: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        request: str | None = None,
    ) -> Call[Job[S]]:
        """A new job that goes on from a checkpoint, the last one without `step`; `changes` is merged into its spec."""
        body = given(step=step, changes=changes, name=name, labels=labels)
        return Call("POST", f"{ONE}/fork", self._job, self.names, body=body, key=key(request), seconds=LONG)

    @operation
    def wait(self, until: str | Iterable[str] = ENDED, timeout: float | None = None) -> Recipe[Job[S]]:
        """The job, once it is in one of these states. JobEnded where it ends in another one.

        WaitedTooLong where it is not there after `timeout` seconds; the job goes on.
        """
        wanted = frozenset([until] if isinstance(until, str) else until)

        def steps(retries: Retries) -> Steps[Job[S]]:
            began, pause = retries.clock(), 0.1
            while True:
                job: Job[S] = yield from Call("GET", ONE, self._job, self.names).ask(retries)
                if job.state in wanted:
                    return job
                if job.facts.ended:
                    raise _ended(job.facts, wanted)
                left = None if timeout is None else timeout - (retries.clock() - began)
                if left is not None and left <= 0:
                    raise WaitedTooLong(
                        f"job {self.id} is {job.state} after {timeout:g} s, and not {_either(wanted)}; it goes on",
                        job=self.id,
                        state=job.state,
                    )
                yield Pause(pause if left is None else min(pause, left))
                pause = min(LONGEST_PAUSE, pause * 1.5)

        return Recipe(steps)

    @iterating
    def events(self, after: int = 0, *, follow: bool = True) -> Plan[Event]:
        """What happened, from the event behind `after`; with `follow`, as it happens, until the job has ended."""
        call = Call("GET", f"{ONE}/events", nothing, self.names)
        return _followed(call, Event, after) if follow else _paged(call, Event, after)

    @iterating
    def logs(self, *, follow: bool = False, attempt: int | None = None, after: int = 0) -> Plan[LogLine]:
        """Lines of an attempt's log, by default the last one's; with `follow`, as they are written.

        Without `attempt`, following goes on with the attempts that come later. `after` is a line's id.
        """

        def steps(retries: Retries) -> Steps[None]:
            number = attempt
            if number is None:
                number = (yield from Call("GET", ONE, JobFacts.model_validate, self.names).ask(retries)).attempt
            call = Call("GET", f"{ONE}/logs", nothing, self.names, {"attempt": number})
            if not follow:
                yield from _paged(call, LogLine, after).steps(retries)
                return
            said = yield from _followed(call, LogLine, after).follow(retries)
            while attempt is None and (later := json.loads(said).get("next_attempt")):
                said = yield from _followed(replace(call, query={"attempt": later}), LogLine, 0).follow(retries)

        return Flow(steps)

    @iterating
    def follow_metrics(self, after: int = 0) -> Plan[Metric]:
        """What training logs, as it does, until the job has ended."""
        return _followed(Call("GET", f"{ONE}/metrics", nothing, self.names), Metric, after)

    @operation
    def metrics(self, after: int = 0) -> Recipe[Metrics]:
        """What training logged so far."""

        pages = _paged(Call("GET", f"{ONE}/metrics", nothing, self.names), Metric, after)

        def steps(retries: Retries) -> Steps[Metrics]:
            return Metrics(items=(yield from pages.gather(retries)))

        return Recipe(steps)

    @operation
    def checkpoints(self) -> Call[list[Checkpoint]]:
        """Checkpoints, the first step first."""
        return Call("GET", f"{ONE}/checkpoints", _all(Checkpoint), self.names)

    @operation
    def workers(self) -> Call[Workers]:
        """How the group of workers changed."""
        return Call("GET", f"{ONE}/workers", Workers.model_validate, self.names)

    @iterating
    def artifacts(self, page_size: int = 100) -> Pages[Artifact]:
        """Files of the job's run, by path."""

        def page(cursor: Any) -> Call[tuple[list[Artifact], Any]]:
            query = {"after": cursor, "limit": page_size}
            return Call("GET", f"{ONE}/artifacts", _page_of(Artifact), self.names, query)

        return Pages(page)

    @operation
    def download(self, path: str, to: str | Path) -> Download:
        """A file of the job's run -> a file, or a file in the folder `to`, whole or not at all: its path."""
        return Download(Call("GET", f"{ONE}/artifacts/{{path}}", Path, {**self.names, "path": path}), Path(to), path)

    @operation
    def evaluation(self) -> Call[Evaluation]:
        """How good the model is."""
        return Call("GET", f"{ONE}/evaluation", Evaluation.model_validate, self.names)

    @operation
    def compare(self, /, *others: str, beside: Iterable[str] = (), **how: Any) -> Call[Comparison]:
        """What was gained from this job to another, by id, on the same queries.

        Several `others` are seeds of one configuration, and `beside` further seeds of this job's. `how`: metric, over,
        confidence, repeats, seed, shown.
        """
        query = {"with": others, "beside": tuple(beside), **how}
        return Call("GET", f"{ONE}/evaluation:compare", Comparison.model_validate, self.names, query, seconds=LONG)

    def _job(self, document: Any) -> Job[S]:
        return Job(self.sender, document)


class Job(JobReference[S]):
    """A job and what was known of it when the server answered: it does not change by itself, `get` looks again."""

    facts: JobFacts

    def __init__(self, sender: S, document: Any) -> None:
        self.facts = JobFacts.model_validate(document)
        super().__init__(sender, self.facts.id)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.name} {self.state}>"

    @property
    def name(self) -> str:
        """Its name, which other jobs may have too."""
        return self.facts.name

    @property
    def state(self) -> str:
        """Where it is between queued and succeeded, failed or cancelled."""
        return self.facts.state

    @property
    def reason(self) -> Reason | None:
        """Why it is there."""
        return self.facts.reason

    @property
    def progress(self) -> dict[str, Any] | None:
        """Step, steps, workers and more, once it has begun."""
        return self.facts.progress

    @property
    def result(self) -> dict[str, Any] | None:
        """model_sha256, metrics, collection and more, once it succeeded."""
        return self.facts.result


def _ended(facts: JobFacts, wanted: frozenset[str]) -> JobEnded:
    why = "" if facts.reason is None else f": {facts.reason.message}"
    code = None if facts.reason is None else facts.reason.code
    return JobEnded(
        f"job {facts.id} is {facts.state} and will not be {_either(wanted)}{why}",
        job=facts.id,
        state=facts.state,
        code=code,
    )


def _either(states: Iterable[str]) -> str:
    return " or ".join(sorted(states))


def _all(kind: type[Item]) -> Callable[[Any], list[Item]]:
    return lambda document: [kind.model_validate(item) for item in document["items"]]


def _page_of(kind: type[Item]) -> Callable[[Any], tuple[list[Item], Any]]:
    return lambda document: (_all(kind)(document), document["next"])


def _followed(call: Call[Any], kind: type[Item], after: int) -> Stream[Item]:
    """Items as they come; their ids are numbers."""
    return Stream(call, kind.model_validate_json, str(after))


def _paged(call: Call[Any], kind: type[Item], after: int) -> Pages[Item]:
    """Items that came so far."""

    def read(document: Any) -> tuple[list[Item], Any]:
        return _all(kind)(document), document["next"] if len(document["items"]) == PAGE else None

    def page(cursor: Any) -> Call[tuple[list[Item], Any]]:
        return replace(
            call, read=read, query={**call.query, "after": after if cursor is None else cursor, "limit": PAGE}
        )

    return Pages(page)
