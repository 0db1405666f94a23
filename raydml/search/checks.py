"""What a caller hands to a collection -> clean ids, vectors and payloads, or a CollectionError."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import orjson

from raydml.errors import CollectionError
from raydml.search.items import Array, Id, Metric, Payload

_LARGEST_NORM = 1e18  # Faiss sums squares in float32, which ends at 3.4e38
_SHOWN = 10
_MOST_HITS = 1_000_000
_LONGEST_ID = 1024
_LARGEST_PAYLOAD = 1 << 20  # bytes of JSON


def check_ids(ids: Iterable[Any], *, unique: bool) -> list[Id]:
    """Ids as str or int (any int64, also negative); a bool, another type or, if `unique`, a repetition is refused."""
    if isinstance(ids, str | bytes):
        raise CollectionError(f"ids must be a list of ids, not the single {ids!r}: write [{ids!r}]")
    given = list(ids)
    plain = set(map(type, given)) == {int} and min(given) >= -(2**63) and max(given) < 2**63
    checked = given if plain else [_check_id(identifier) for identifier in given]
    if unique and len(set(checked)) < len(checked):
        seen: set[Id] = set()
        repeated = [identifier for identifier in checked if identifier in seen or seen.add(identifier)]  # type: ignore[func-returns-value]
        raise CollectionError(f"ids repeat within one request: {repeated[:_SHOWN]}", ids=repeated[:_SHOWN])
    return checked


def check_vectors(vectors: Any, dimension: int, metric: Metric) -> Array:
    """Finite float32 (n, dimension), C-contiguous; rows that are wrong for the metric are named and refused."""
    array = np.asarray(vectors)
    if array.size == 0 and array.ndim < 2:
        array = np.empty((0, dimension), dtype=np.float32)
    if array.dtype.kind not in "fiu":
        raise CollectionError(f"vectors must be numbers, not {array.dtype}")
    if array.ndim != 2 or array.shape[1] != dimension:
        raise CollectionError(
            f"vectors must have shape (n, {dimension}), not {array.shape}; a single vector goes in as [vector]",
            shape=array.shape,
        )
    with np.errstate(over="ignore"):
        narrow = np.array(array, dtype=np.float32, order="C")
    norms = np.sqrt(np.square(narrow, dtype=np.float64).sum(axis=1))
    longest, shortest = norms.max(initial=0.0), norms.min(initial=1.0)
    if not longest <= _LARGEST_NORM or (metric == "cosine" and shortest == 0):  # as NaN is not
        _refuse_rows(~np.isfinite(array).all(axis=1), "hold NaN or an infinity")
        _refuse_rows(np.asarray(~np.isfinite(narrow).all(axis=1)), "hold numbers beyond float32 (3.4e38)")
        if metric == "cosine":
            _refuse_rows(np.asarray(norms == 0), "are zero, which has no direction and so no cosine")
        else:
            _refuse_rows(norms > _LARGEST_NORM, f"are longer than {_LARGEST_NORM:g}, too long to square in float32")
    return narrow


def check_payloads(payloads: Sequence[Payload] | None, count: int) -> list[str]:
    """The payloads as JSON, "{}" for None; each must be an object that JSON gives back unchanged."""
    if payloads is None:
        return ["{}"] * count
    if len(payloads) != count:
        raise CollectionError(f"{len(payloads)} payloads for {count} ids: give one for each, or none")
    given = [{} if payload is None else payload for payload in payloads]
    try:
        texts = [orjson.dumps(payload) for payload in given]
        plain = set(map(type, given)) <= {dict} and max(map(len, texts), default=0) <= _LARGEST_PAYLOAD
        if plain and orjson.loads(b"[" + b",".join(texts) + b"]") == given:
            return [text.decode() for text in texts]
    except (TypeError, ValueError):
        pass  # named below
    return [_check_payload(number, payload) for number, payload in enumerate(given)]


def check_k(k: Any) -> int:
    """Number of hits wanted, 1 to a million."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= _MOST_HITS:
        raise CollectionError(f"k must be a whole number from 1 to {_MOST_HITS:,}, not {k!r}")
    return int(k)


def check_threshold(threshold: Any) -> None:
    """A lowest score is None or a finite number."""
    if threshold is not None and (not isinstance(threshold, int | float) or not np.isfinite(threshold)):
        raise CollectionError(f"score_threshold must be a finite number, not {threshold!r}")


def _check_id(identifier: Any) -> Id:
    if isinstance(identifier, str):
        if not identifier or len(identifier) > _LONGEST_ID or "\0" in identifier or not _is_text(identifier):
            raise CollectionError(f"an id has 1 to {_LONGEST_ID} characters of valid Unicode, not {identifier[:80]!r}")
        return str(identifier)
    if isinstance(identifier, bool) or not isinstance(identifier, int | np.integer):
        raise CollectionError(f"an id is a str or an int, not {identifier!r} ({type(identifier).__name__})")
    if not -(2**63) <= identifier < 2**63:
        raise CollectionError(f"the id {identifier} is beyond int64: use its decimal digits as a str")
    return int(identifier)


def _check_payload(number: int, payload: Any) -> str:
    if not isinstance(payload, dict):
        raise CollectionError(f"payload {number} must be a dict, not {type(payload).__name__}")
    try:
        text = orjson.dumps(payload)
        copy = orjson.loads(text)
    except (TypeError, ValueError) as error:
        raise CollectionError(f"payload {number} cannot be written as JSON: {error}") from error
    if len(text) > _LARGEST_PAYLOAD:
        raise CollectionError(
            f"payload {number} has {len(text):,} bytes of JSON, at most {_LARGEST_PAYLOAD:,} are kept: store the "
            f"path of a file instead"
        )
    if copy != payload:
        raise CollectionError(f"payload {number} is not the same after JSON: lists instead of tuples, no NaN, no dates")
    return text.decode()


def _is_text(text: str) -> bool:
    """Whether the text can be written as UTF-8, which lone surrogates cannot."""
    return text.isascii() or text.encode(errors="ignore").decode() == text


def _refuse_rows(wrong: Array, why: str) -> None:
    rows = np.flatnonzero(wrong)[:_SHOWN].tolist()
    if rows:
        raise CollectionError(f"{int(wrong.sum())} of {len(wrong)} vectors {why}: rows {rows}", rows=rows)
