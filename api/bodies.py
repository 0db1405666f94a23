"""Bytes of a request -> a document, by their content type; a document -> the bytes of an answer.

application/json           a document
application/merge-patch+json   a document that says what is to change
application/msgpack        the same document, in which vectors may be little-endian float32 bytes
application/octet-stream   vectors alone, little-endian float32, one after another; the rest is in the query string
application/x-npy          vectors alone, a .npy file
image/...                  one image; the rest is in the query string
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack
import numpy as np
import orjson
from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from api.problems import MALFORMED, UNSUPPORTED, Problem, mistakes

Model = TypeVar("Model", bound=BaseModel)
JSON, MSGPACK, RAW, NPY, IMAGE = (
    "application/json", "application/msgpack", "application/octet-stream", "application/x-npy", "image/*",
)  # fmt: skip
MERGE = "application/merge-patch+json"
DOCUMENTS = (JSON, MSGPACK, MERGE)  # of which everything is said in the body
_TEXT = frozenset({"model_digest", "group_by"})  # of the query string; everything else there is JSON


async def read(request: Request, model: type[Model], taken: tuple[str, ...] = (JSON, MSGPACK)) -> Model:
    """The request's body as the model. Raises Problem 400, 415 or 422."""
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    kind = IMAGE if kind.startswith("image/") else kind
    if kind not in taken:
        raise Problem(
            UNSUPPORTED, "unsupported-content", f"the body is {kind or 'of no type'}: send {', '.join(taken)}"
        )
    document = _DECODERS[kind](body)
    if kind not in DOCUMENTS:
        document = {**_query(request), **document}
    elif request.query_params:
        raise Problem(MALFORMED, "malformed", f"with {kind}, everything is said in the body, not in the query string")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise mistakes(error.errors(include_input=False, include_url=False)) from None


def answer(request: Request, document: Any, status: int = 200) -> Response:
    """The document as JSON, or as MessagePack for a client that accepts it."""
    if MSGPACK in request.headers.get("accept", ""):
        packed = msgpack.packb(document, default=_plain)
        return Response(packed, status, media_type=MSGPACK)
    try:
        encoded = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # whole numbers beyond 64 bits in a payload
        encoded = json.dumps(document, default=lambda value: value.tolist()).encode()
    return Response(encoded, status, media_type=JSON)


def vectors_of(value: Any, dimension: int) -> Any:
    """What a body gives as vectors -> an array that is still to be checked. Raises Problem 422."""
    if isinstance(value, bytes):
        if len(value) % (4 * dimension):
            raise Problem(
                422,
                "invalid-request",
                f"{len(value)} bytes are no whole number of vectors: the collection's have {dimension} float32, "
                f"{4 * dimension} bytes each",
            )
        return np.frombuffer(value, dtype="<f4").reshape(-1, dimension)
    if isinstance(value, np.ndarray):
        return np.atleast_2d(value)
    try:
        return np.asarray(value)
    except (ValueError, OverflowError):  # rows of several lengths
        lengths = sorted({len(row) if isinstance(row, list) else 0 for row in value})
        raise Problem(
            422, "invalid-request", f"vectors must be lists of {dimension} numbers each; there are {lengths[:10]}"
        ) from None


def json_of(body: bytes) -> Any:
    """A JSON document. Raises Problem 400."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _malformed("JSON (which has no NaN and no infinity)", error) from None


def _msgpack(body: bytes) -> Any:
    try:
        return msgpack.unpackb(body)
    except (ValueError, msgpack.UnpackException) as error:
        raise _malformed("MessagePack", error) from None


def _npy(body: bytes) -> dict[str, Any]:
    """Its header is read apart, and compared with the body's length before anything is made of it."""
    file = io.BytesIO(body)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        raise _malformed("a .npy file of format 1 or 2", error) from None
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if dtype.kind not in "fiu" or len(shape) not in (1, 2) or count * dtype.itemsize != len(body) - file.tell():
        raise Problem(
            422,
            "invalid-request",
            f"the .npy file holds {dtype} of shape {shape} in {len(body) - file.tell()} bytes; vectors are numbers of "
            f"shape (dimension,) or (n, dimension)",
        )
    array = np.frombuffer(body, dtype=dtype, offset=file.tell())
    return {"vectors": array.reshape(shape, order="F" if fortran else "C")}


def _query(request: Request) -> dict[str, Any]:
    return {name: value if name in _TEXT else json_of(value.encode()) for name, value in request.query_params.items()}


def _malformed(wanted: str, error: Exception) -> Problem:
    return Problem(MALFORMED, "malformed", f"this is no {wanted}: {str(error)[:200]}")


def _plain(value: Any) -> Any:
    """Numpy's numbers and arrays for MessagePack: vectors as float32 bytes."""
    return value.astype("<f4").tobytes() if isinstance(value, np.ndarray) else value.item()


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    JSON: json_of,
    MERGE: json_of,
    MSGPACK: _msgpack,
    RAW: lambda body: {"vectors": body},
    NPY: _npy,
    IMAGE: lambda body: {"images": [body]},
}
