"""Images or texts -> embeddings: what a collection asks of its model, which is loaded when first needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from raydml.errors import CollectionError, ModelMismatch


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


def check_embedder(embedder: Embedder, dimension: int, digest: str | None) -> Embedder:
    """The embedder, if its vectors belong beside those of the collection."""
    check_digest(embedder.digest, digest)
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
