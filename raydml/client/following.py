"""Waiting for jobs, pages of what they told and streams of what they tell: for jobs and for sweeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from raydml.client.calls import Call, Flow, Pages, Recipe
from raydml.client.documents import Document
from raydml.client.job_documents import JobFacts, LogLine, Reason
from raydml.client.retries import Retries
from raydml.client.steps import Pause, Plan, Steps
from raydml.client.streams import Stream
from raydml.errors import JobEnded, WaitedTooLong

LONGEST_PAUSE = 2.0  # seconds between two looks at a job that is waited for
PAGE = 500  # items
Item = TypeVar("Item", bound=Document)


class Known:
    """What was known of a job when the server answered: it does not change by itself, `get` looks again."""

    facts: JobFacts

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
        """Step, steps, workers and more, of a sweep what happened to its trials; once it has begun."""
        return self.facts.progress

    @property
    def result(self) -> dict[str, Any] | None:
        """model_sha256, metrics, collection and more, of a sweep its winner too; once it succeeded."""
        return self.facts.result


K = TypeVar("K", bound=Known)


def waited(call: Call[K], until: str | Iterable[str], timeout: float | None) -> Recipe[K]:
    """What the call gives, once it is in one of these states; JobEnded where it ends in another one."""
    wanted = frozenset([until] if isinstance(until, str) else until)

    def steps(retries: Retries) -> Steps[K]:
        began, pause = retries.clock(), 0.1
        while True:
            job: K = yield from call.ask(retries)
            if job.state in wanted:
                return job
            if job.facts.ended:
                raise _ended(job.facts, wanted)
            left = None if timeout is None else timeout - (retries.clock() - began)
            if left is not None and left <= 0:
                raise WaitedTooLong(
                    f"job {job.facts.id} is {job.state} after {timeout:g} s, and not {_either(wanted)}; it goes on",
                    job=job.facts.id,
                    state=job.state,
                )
            yield Pause(pause if left is None else min(pause, left))
            pause = min(LONGEST_PAUSE, pause * 1.5)

    return Recipe(steps)


def told(call: Call[Any], kind: type[Item], after: int, follow: bool) -> Plan[Item]:
    """Items behind `after`: with `follow`, as they come, and else those that came so far."""
    return followed(call, kind, after) if follow else paged(call, kind, after)


def logged(facts: Call[JobFacts], logs: Call[Any], follow: bool, attempt: int | None, after: int) -> Plan[LogLine]:
    """Lines of an attempt's log; followed without `attempt`, of those that come later, too."""

    def steps(retries: Retries) -> Steps[None]:
        number = attempt
        if number is None:
            number = (yield from facts.ask(retries)).attempt
        call = replace(logs, query={"attempt": number})
        if not follow:
            yield from paged(call, LogLine, after).steps(retries)
            return
        said = yield from followed(call, LogLine, after).follow(retries)
        while attempt is None and (later := json.loads(said).get("next_attempt")):
            said = yield from followed(replace(call, query={"attempt": later}), LogLine, 0).follow(retries)

    return Flow(steps)


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


def all_of(kind: type[Item]) -> Callable[[Any], list[Item]]:
    """Reads the items of an answer."""
    return lambda document: [kind.model_validate(item) for item in document["items"]]


def page_of(kind: type[Item]) -> Callable[[Any], tuple[list[Item], Any]]:
    """Reads the items of a page, and what to go on with."""
    return lambda document: (all_of(kind)(document), document["next"])


def followed(call: Call[Any], kind: type[Item], after: int) -> Stream[Item]:
    """Items as they come; their ids are numbers."""
    return Stream(call, kind.model_validate_json, str(after))


def paged(call: Call[Any], kind: type[Item], after: int) -> Pages[Item]:
    """Items that came so far."""

    def read(document: Any) -> tuple[list[Item], Any]:
        return all_of(kind)(document), document["next"] if len(document["items"]) == PAGE else None

    def page(cursor: Any) -> Call[tuple[list[Item], Any]]:
        return replace(
            call, read=read, query={**call.query, "after": after if cursor is None else cursor, "limit": PAGE}
        )

    return Pages(page)
