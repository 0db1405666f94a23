"""Jobs of a server: `client.jobs.create("spec.yaml").wait()`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raydml.client.calls import LONG, Call, Pages, given, key
from raydml.client.job import Job, JobReference
from raydml.client.resource import Resource, S, iterating, operation
from raydml.errors import SpecError
from raydml.spec import JobSpec

Spec = JobSpec | Mapping[str, Any] | str | Path
"""A spec, a mapping, or a YAML or JSON file; a file goes as its text, so that mistakes are named by its lines."""


class Jobs(Resource[S]):
    """All jobs of the key's project."""

    def __getitem__(self, id: str) -> JobReference[S]:
        """What can be asked of a job by its id alone; nothing is asked yet."""
        return JobReference(self.sender, id)

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
    ) -> Call[Job[S]]:
        """A queued job, kept when this answers. `request` names it: asked again under that name, it is made once."""
        body = {
            "spec": document_of(spec),
            **given(name=name, labels=labels, priority=priority, deadline_seconds=deadline_seconds),
        }
        return Call("POST", "/v1/jobs", self._job, body=body, key=key(request), seconds=LONG)

    @operation
    def plan(self, spec: Spec) -> Call[dict[str, Any]]:
        """What a spec would do with its data, and what it needs, as `raydml plan --json` says it; nothing is kept."""
        return Call("POST", "/v1/jobs:plan", dict, body={"spec": document_of(spec)}, repeatable=True, seconds=LONG)

    @operation
    def get(self, id: str) -> Call[Job[S]]:
        """A job as it is now."""
        return Call("GET", "/v1/jobs/{job}", self._job, {"job": id})

    @iterating
    def list(
        self,
        *,
        state: str | Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        name: str | None = None,
        page_size: int = 100,
    ) -> Pages[Job[S]]:
        """Jobs that are in one of the states and have all labels, the newest first."""
        query = filters(state, labels, name, page_size)

        def page(cursor: Any) -> Call[tuple[Any, Any]]:
            return Call("GET", "/v1/jobs", self._page, query={**query, "cursor": cursor})

        return Pages(page)

    def _job(self, document: Any) -> Job[S]:
        return Job(self.sender, document)

    def _page(self, document: Any) -> tuple[Any, Any]:
        return [self._job(item) for item in document["items"]], document["next_cursor"]


def filters(
    state: str | Iterable[str], labels: Mapping[str, str] | None, name: str | None, page_size: int
) -> dict[str, Any]:
    """What a list is asked for, as a query says it."""
    return {
        "state": (state,) if isinstance(state, str) else tuple(state),
        "label": tuple(f"{key}:{value}" for key, value in (labels or {}).items()),
        "name": name,
        "limit": page_size,
    }


def document_of(spec: Spec) -> Any:
    """A spec as a body says it. Raises SpecError where a file cannot be read."""
    if isinstance(spec, JobSpec):
        return spec.model_dump(mode="json")
    if isinstance(spec, Mapping):
        return dict(spec)
    try:
        return Path(spec).read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{spec}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{spec}: is not UTF-8 text (byte {error.start})") from None
