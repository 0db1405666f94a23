"""What the API answers about data sets, as values."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from raydml.client.documents import Document


class ProblemItem(Document):
    """An item that cannot be used, and why."""

    item: str
    reason: str


class Report(Document):
    """What was found when all data was read once; `digest` is a SHA-256 over names and contents."""

    data_kind: str
    digest: str
    items: int
    classes: int
    smallest_class: int
    largest_class: int
    images_by_split: dict[str, int]
    classes_by_split: dict[str, int]
    shared_classes: int
    duplicates: int
    longest_side: int | None
    bad_items: int
    problems: list[ProblemItem]


class Part(Document):
    """A part of an upload that the server has."""

    number: int
    sha256: str


class Dataset(Document):
    """A data set: a spec names it by `reference` in `data.path`, once it is ready."""

    id: str
    name: str
    kind: str
    state: str
    size: int
    sha256: str | None
    part_bytes: int
    num_parts: int
    report: Report | None
    problem: str | None
    created_by: str
    created_at: datetime
    updated_at: datetime
    parts: tuple[Part, ...] = ()

    @property
    def reference(self) -> str:
        """What `data.path` of a spec says."""
        return f"dataset:{self.id}"

    @property
    def data(self) -> dict[str, Any]:
        """The `data` of a spec that uses it, but for options; only where it is ready."""
        assert self.report is not None, f"data set {self.id} is {self.state}"
        return {"kind": self.report.data_kind, "path": self.reference}
