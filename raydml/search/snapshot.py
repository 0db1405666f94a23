"""One immutable version of a collection, in memory: its facts, vectors, ids and payloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from raydml.search.items import Array, Id, Metric, Payload
from raydml.search.nearest import Searched


@dataclass(frozen=True)
class Facts:
    """What holds for every vector of a collection."""

    dimension: int
    metric: Metric
    model_digest: str | None = None
    model_path: str | None = None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Rows in order of insertion; nothing in it ever changes."""

    version: int
    facts: Facts
    vectors: Array  # float32 (n, dimension), as given
    ids: tuple[Id, ...]
    payloads: tuple[Payload, ...]

    @classmethod
    def empty(cls, facts: Facts) -> Snapshot:
        """Version 0."""
        return cls(0, facts, np.empty((0, facts.dimension), dtype=np.float32), (), ())

    @cached_property
    def row_of(self) -> dict[Id, int]:
        """Row by id."""
        return {identifier: row for row, identifier in enumerate(self.ids)}

    @cached_property
    def searched(self) -> Searched:
        """The vectors as Faiss searches them."""
        return Searched.of(self.vectors, self.facts.metric)

    def with_items(self, ids: Sequence[Id], vectors: Array, payloads: Sequence[Payload]) -> Snapshot:
        """Known ids keep their row and get the new vector and payload; the others come after, in the order given."""
        row_of = dict(self.row_of)
        rows = [row_of.setdefault(identifier, len(row_of)) for identifier in ids]
        merged = np.empty((len(row_of), self.facts.dimension), dtype=np.float32)
        merged[: len(self.vectors)] = self.vectors
        merged[rows] = vectors
        merged_payloads = [*self.payloads, *({} for _ in range(len(row_of) - len(self.ids)))]
        for row, payload in zip(rows, payloads, strict=True):
            merged_payloads[row] = payload
        return replace(self, vectors=merged, ids=tuple(row_of), payloads=tuple(merged_payloads))

    def without(self, ids: Sequence[Id]) -> Snapshot:
        """The rest; unknown ids are passed over."""
        gone = {self.row_of[identifier] for identifier in ids if identifier in self.row_of}
        if not gone:
            return self
        kept = [row for row in range(len(self.ids)) if row not in gone]
        return replace(
            self,
            vectors=self.vectors[kept],
            ids=tuple(self.ids[row] for row in kept),
            payloads=tuple(self.payloads[row] for row in kept),
        )
