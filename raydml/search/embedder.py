"""Images or texts -> embeddings: what a collection asks of its model, which is loaded when first needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from raydml.errors import CollectionError, ModelMismatch
from raydml.files import digest_of_json


@runtime_checkable
class Embedder(Protocol):
    """A trained model that embeds images, or texts where its `takes_texts` is true."""

    digest: str
    dimension: int

    def embed(self, inputs: Sequence[Any], /) -> np.ndarray[Any, Any]:
        """Embeddings of the inputs, float32 (n, dimension)."""
        ...


def load_embedder(folder: str | Path) -> Embedder:
    """The exported model in `folder`."""
    from raydml.models import load_model  # a collection of plain vectors needs no torch

    return cast(Embedder, load_model(folder))


def preprocessing_digest(model: Embedder | Path | None) -> str | None:
    """SHA-256 of how the model's inputs become tensors; None where the model does not say."""
    if isinstance(model, Path):
        path = model / "preprocessing.json"
        return digest_of_json(json.loads(path.read_bytes())) if path.exists() else None
    return getattr(model, "preprocessing_digest", None)


def check_embedder(
    embedder: Embedder, dimension: int, digest: str | None, preprocessing: str | None = None
) -> Embedder:
    """The embedder, if its vectors belong beside those of the collection: of the same weights and preprocessing."""
    check_digest(embedder.digest, digest)
    given = preprocessing_digest(embedder)
    if given is not None and preprocessing is not None and given != preprocessing:
        raise ModelMismatch(
            f"the model prepares its inputs otherwise ({given[:12]}) than when the collection was filled "
            f"({preprocessing[:12]}): restore its preprocessing.json, or embed everything again in a new collection",
            given=given,
            expected=preprocessing,
        )
    if embedder.dimension != dimension:
        raise CollectionError(f"the model embeds into {embedder.dimension} dimensions, the collection has {dimension}")
    return embedder


def check_query(embedder: Embedder, texts: bool) -> None:
    """CollectionError where texts are searched by a model of images, or images (perhaps by path) by one of texts."""
    takes_texts = getattr(embedder, "takes_texts", texts)  # one's own embedder need not say
    if takes_texts != texts:
        given, way = ("texts", "images=") if texts else ("images", "texts=")
        raise CollectionError(f"the collection's model does not take {given}: search with {way}")


def check_digest(given: str | None, expected: str | None) -> None:
    """ModelMismatch if both digests are known and differ."""
    if given is not None and expected is not None and given != expected:
        raise ModelMismatch(
            f"these vectors come from model {given[:12]}, the collection's from model {expected[:12]}, and distances "
            f"between the two mean nothing: use the collection's model, or embed everything again in a new collection",
            given=given,
            expected=expected,
        )
