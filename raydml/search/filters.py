"""A filter and payloads -> the rows that it allows: every field equals its value, or one of its list of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from raydml.search.items import Array, Filter, Payload

_MISSING = object()


def allowed_rows(payloads: Sequence[Payload], filter: Filter) -> Array:
    """Rows (int64, ascending) whose payload passes; a payload without the field does not."""
    choices = {field: value if isinstance(value, list) else [value] for field, value in filter.items()}
    rows = [row for row, payload in enumerate(payloads) if _passes(payload, choices)]
    return np.array(rows, dtype=np.int64)


def _passes(payload: Payload, choices: dict[str, list[Any]]) -> bool:
    return all(any(_same(payload.get(field, _MISSING), value) for value in values) for field, values in choices.items())


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON, where true is not 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
