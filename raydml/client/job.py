"""One job of a server: what is asked of it, and what it tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raydml.client.calls import LONG, Call, Pages, Recipe, given, key, nothing
from raydml.client.downloads import Download
from raydml.client.following import Known, all_of, followed, logged, page_of, paged, told, waited
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
    Workers,
)
from raydml.client.resource import Resource, S, iterating, operation
from raydml.client.retries import Retries
from raydml.client.steps import Plan, Steps

ONE = "/v1/jobs/{job}"


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
        return waited(Call("GET", ONE, self._job, self.names), until, timeout)

    @iterating
    def events(self, after: int = 0, *, follow: bool = True) -> Plan[Event]:
        """What happened, from the event behind `after`; with `follow`, as it happens, until the job has ended."""
        return told(Call("GET", f"{ONE}/events", nothing, self.names), Event, after, follow)

    @iterating
    def logs(self, *, follow: bool = False, attempt: int | None = None, after: int = 0) -> Plan[LogLine]:
        """Lines of an attempt's log, by default the last one's; with `follow`, as they are written.

        Without `attempt`, following goes on with the attempts that come later. `after` is a line's id.
        """

        facts = Call("GET", ONE, JobFacts.model_validate, self.names)
        return logged(facts, Call("GET", f"{ONE}/logs", nothing, self.names), follow, attempt, after)

    @iterating
    def follow_metrics(self, after: int = 0) -> Plan[Metric]:
        """What training logs, as it does, until the job has ended."""
        return followed(Call("GET", f"{ONE}/metrics", nothing, self.names), Metric, after)

    @operation
    def metrics(self, after: int = 0) -> Recipe[Metrics]:
        """What training logged so far."""

        pages = paged(Call("GET", f"{ONE}/metrics", nothing, self.names), Metric, after)

        def steps(retries: Retries) -> Steps[Metrics]:
            return Metrics(items=(yield from pages.gather(retries)))

        return Recipe(steps)

    @operation
    def checkpoints(self) -> Call[list[Checkpoint]]:
        """Checkpoints, the first step first."""
        return Call("GET", f"{ONE}/checkpoints", all_of(Checkpoint), self.names)

    @operation
    def workers(self) -> Call[Workers]:
        """How the group of workers changed."""
        return Call("GET", f"{ONE}/workers", Workers.model_validate, self.names)

    @iterating
    def artifacts(self, page_size: int = 100) -> Pages[Artifact]:
        """Files of the job's run, by path."""

        def page(cursor: Any) -> Call[tuple[list[Artifact], Any]]:
            query = {"after": cursor, "limit": page_size}
            return Call("GET", f"{ONE}/artifacts", page_of(Artifact), self.names, query)

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


class Job(Known, JobReference[S]):
    """A job and what was known of it when the server answered: it does not change by itself, `get` looks again."""

    def __init__(self, sender: S, document: Any) -> None:
        self.facts = JobFacts.model_validate(document)
        super().__init__(sender, self.facts.id)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.name} {self.state}>"
