"""Documents -> bytes: JSON, or MessagePack for those that hold bytes (vectors as float32, images); and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack

from raydml.client.steps import Answer
from raydml.errors import DataError, ServerFailed

JSON, MSGPACK = "application/json", "application/msgpack"
TEXTS = ("text/plain", "application/x-ndjson")  # what is asked for where the answer is a text
BINARY = {"Accept": MSGPACK}  # headers that ask for vectors as bytes


class _HoldsBytes(Exception):
    """The document is none for JSON."""


def encoded(document: Any) -> tuple[bytes, str]:
    """The bytes and their content type. Raises DataError for what neither can say, NaN among it."""
    try:
        return json.dumps(document, allow_nan=False, default=_refuse).encode(), JSON
    except _HoldsBytes:
        pass
    except (TypeError, ValueError) as error:
        raise DataError(f"this cannot be sent: {error}") from None
    try:
        return msgpack.packb(document), MSGPACK
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"this cannot be sent: {error}") from None


def decoded(answer: Answer) -> Any:
    """The answer's document, or the text that was asked for; None where it has no body.

    Raises ServerFailed where it is no document.
    """
    if not answer.content:
        return None
    kind = answer.headers.get("content-type", "")
    if answer.request.headers.get("Accept") in TEXTS and kind.startswith(TEXTS):
        return answer.content.decode()
    try:
        return msgpack.unpackb(answer.content) if MSGPACK in kind else json.loads(answer.content)
    except (ValueError, msgpack.UnpackException) as error:
        raise ServerFailed(
            f"{answer.request.method} {answer.request.path} was answered by {kind or 'something'} that cannot be read: "
            f"{error}; is this URL a raydml server's?",
            status=answer.status,
        ) from None


def vectors(given: Any, rows: int | None = None) -> Any:
    """Vectors (n, dimension) for a body: an array as float32 bytes, lists as they are; `rows`: how many there must be.

    Raises DataError where there are others.
    """
    if rows is not None and len(given) != rows:
        raise DataError(f"there are {rows} ids and {len(given)} vectors: give one vector for each id")
    if not hasattr(given, "__array__"):
        return [list(row) for row in given]
    import numpy as np

    array = np.asarray(given)
    if array.ndim != 2:
        raise DataError(f"vectors have shape {array.shape}: give (n, dimension)")
    return array.astype("<f4").tobytes()


def images(given: Any) -> list[bytes]:
    """Encoded images for a body: files by their path, or their bytes. Raises DataError where a file cannot be read."""
    try:
        return [bytes(image) if isinstance(image, bytes | bytearray) else Path(image).read_bytes() for image in given]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None


def vector(value: Any) -> Any:
    """A vector of an answer: float32 bytes as an array, which is not written to."""
    if not isinstance(value, bytes):
        return value
    import numpy as np

    return np.frombuffer(value, "<f4")


def _refuse(value: Any) -> Any:
    if isinstance(value, bytes):
        raise _HoldsBytes
    raise TypeError(f"{type(value).__name__} is no JSON")
