"""Named numbers with labels, and these as Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

Labels = dict[str, object]


@dataclass(frozen=True)
class Histogram:
    """How many values lie within each bound but not the one before, how many beyond the last one, and their sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]  # one more than bounds
    sum: float


Samples = list[tuple[Labels, float | Histogram]]


@dataclass(frozen=True)
class Family:
    """All samples of one name, and what it is."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    words: str
    samples: Samples

    def bearing(self, more: Labels) -> Family:
        """The same with these labels on every sample."""
        return replace(self, samples=[(labels | more, value) for labels, value in self.samples])


def text(families: Iterable[Family]) -> str:
    """What a scrape gets."""
    return "".join(f"{line}\n" for family in families for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {family.words}"
    yield f"# TYPE {family.name} {family.kind}"
    for labels, value in family.samples:
        if isinstance(value, Histogram):
            for bound, count in zip((*value.bounds, "+Inf"), accumulate(value.counts), strict=True):
                yield _line(f"{family.name}_bucket", labels | {"le": bound}, count)
            yield _line(f"{family.name}_sum", labels, value.sum)
            yield _line(f"{family.name}_count", labels, sum(value.counts))
        else:
            yield _line(family.name, labels, value)


def _line(name: str, labels: Labels, value: float) -> str:
    written = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{written}}} {value}" if labels else f"{name} {value}"


def _escaped(text: object) -> str:
    return str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
