"""Named numbers with labels -> lines of Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterator

Labels = dict[str, object]
Samples = list[tuple[Labels, float]]


def family(name: str, kind: str, words: str, samples: Samples) -> Iterator[str]:
    """All samples of one name, behind what it is."""
    yield f"# HELP {name} {words}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield line(name, labels, value)


def line(name: str, labels: Labels, value: float) -> str:
    """One sample."""
    written = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{written}}} {value}" if labels else f"{name} {value}"


def _escaped(text: object) -> str:
    return str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
