"""Sweeps of a server: `client.sweeps.create("sweep.yaml").wait().trials()`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from raydml.client.calls import LONG, Call, Pages, Recipe, given, key, nothing
from raydml.client.following import Known, logged, told, waited
from raydml.client.job import JobReference
from raydml.client.job_documents import ENDED, Event, JobFacts, LogLine, Trials
from raydml.client.jobs import Spec, document_of, filters
from raydml.client.resource import Resource, S, iterating, operation
from raydml.client.steps import Plan

ONE = "/v1/sweeps/{job}"


class SweepReference(Resource[S]):
    """A sweep by its id. What changes it gives the sweep as it is then."""

    id: str

    def __init__(self, sender: S, id: str) -> None:
        super().__init__(sender)
        self.id = id
        self.names = {"job": id}

    @property
    def job(self) -> JobReference[S]:
        """The winner's run, with its metrics, checkpoints, files and evaluation: a sweep is a job."""
        return JobReference(self.sender, self.id)

    @operation
    def get(self) -> Call[Sweep[S]]:
        """The sweep as it is now."""
        return Call("GET", ONE, self._sweep, self.names)

    @operation
    def patch(
        self,
        *,
        labels: Mapping[str, str | None] | None = None,
        priority: int | None = None,
        version: int | None = None,
    ) -> Call[Sweep[S]]:
        """Change what is named; a label None is removed. Conflict where it is of another `version`, if given."""
        headers = {} if version is None else {"If-Match": f'"{version}"'}
        body = given(labels=labels, priority=priority)
        return Call("PATCH", ONE, self._sweep, self.names, body=body, headers=headers, repeatable=version is None)

    @operation
    def cancel(self, *, request: str | None = None) -> Call[Sweep[S]]:
        """Save a checkpoint of each running trial and stop, for good."""
        return Call("POST", f"{ONE}/cancel", self._sweep, self.names, key=key(request))

    @operation
    def kill(self, *, request: str | None = None) -> Call[Sweep[S]]:
        """Stop at once, for good."""
        return Call("POST", f"{ONE}/kill", self._sweep, self.names, key=key(request))

    @operation
    def pause(self, *, request: str | None = None) -> Call[Sweep[S]]:
        """Save a checkpoint of each running trial and stop, until resumed."""
        return Call("POST", f"{ONE}/pause", self._sweep, self.names, key=key(request))

    @operation
    def resume(self, *, request: str | None = None) -> Call[Sweep[S]]:
        """Go on with every trial where it was."""
        return Call("POST", f"{ONE}/resume", self._sweep, self.names, key=key(request))

    @operation
    def wait(self, until: str | Iterable[str] = ENDED, timeout: float | None = None) -> Recipe[Sweep[S]]:
        """The sweep, once it is in one of these states. JobEnded where it ends in another one.

        WaitedTooLong where it is not there after `timeout` seconds; the sweep goes on.
        """
        return waited(Call("GET", ONE, self._sweep, self.names), until, timeout)

    @operation
    def trials(self, most: int = 1000) -> Call[Trials]:
        """The leaderboard, the best first, while it searches too."""
        return Call("GET", f"{ONE}/trials", Trials.model_validate, self.names, {"limit": most})

    @iterating
    def events(self, after: int = 0, *, follow: bool = True) -> Plan[Event]:
        """What happened to it and its trials; with `follow`, as it happens, until it has ended."""
        return told(Call("GET", f"{ONE}/events", nothing, self.names), Event, after, follow)

    @iterating
    def logs(self, *, follow: bool = False, attempt: int | None = None, after: int = 0) -> Plan[LogLine]:
        """Lines of an attempt's log, by default the last one's; with `follow`, as they are written."""
        facts = Call("GET", ONE, JobFacts.model_validate, self.names)
        return logged(facts, Call("GET", f"{ONE}/logs", nothing, self.names), follow, attempt, after)

    def _sweep(self, document: Any) -> Sweep[S]:
        return Sweep(self.sender, document)


class Sweep(Known, SweepReference[S]):
    """A sweep and what was known of it when the server answered: it does not change by itself, `get` looks again."""

    def __init__(self, sender: S, document: Any) -> None:
        self.facts = JobFacts.model_validate(document)
        super().__init__(sender, self.facts.id)

    def __repr__(self) -> str:
        return f"<Sweep {self.id} {self.name} {self.state}>"


class Sweeps(Resource[S]):
    """All sweeps of the key's project."""

    def __getitem__(self, id: str) -> SweepReference[S]:
        """What can be asked of a sweep by its id alone; nothing is asked yet."""
        return SweepReference(self.sender, id)

    @operation
    def create(
        self,
        spec: Spec,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        deadline_seconds: int | None = None,
        request: str | None = None,
    ) -> Call[Sweep[S]]:
        """A queued sweep of a spec with a section `tune`. `request` names it: under that name it is made once."""
        said = given(name=name, labels=labels, priority=priority, deadline_seconds=deadline_seconds)
        body = {"spec": document_of(spec), **said}
        return Call("POST", "/v1/sweeps", self._sweep, body=body, key=key(request), seconds=LONG)

    @operation
    def plan(self, spec: Spec) -> Call[dict[str, Any]]:
        """How many trials a study has at most, what one takes, and what its spec would do; nothing is kept."""
        return Call("POST", "/v1/sweeps:plan", dict, body={"spec": document_of(spec)}, repeatable=True, seconds=LONG)

    @operation
    def get(self, id: str) -> Call[Sweep[S]]:
        """A sweep as it is now."""
        return Call("GET", "/v1/sweeps/{job}", self._sweep, {"job": id})

    @iterating
    def list(
        self,
        *,
        state: str | Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        name: str | None = None,
        page_size: int = 100,
    ) -> Pages[Sweep[S]]:
        """Sweeps that are in one of the states and have all labels, the newest first."""
        query = filters(state, labels, name, page_size)

        def page(cursor: Any) -> Call[tuple[Any, Any]]:
            return Call("GET", "/v1/sweeps", self._page, query={**query, "cursor": cursor})

        return Pages(page)

    def _sweep(self, document: Any) -> Sweep[S]:
        return Sweep(self.sender, document)

    def _page(self, document: Any) -> tuple[Any, Any]:
        return [self._sweep(item) for item in document["items"]], document["next_cursor"]
