"""Commands on a collection: queries in, its nearest entries out; and whether all of it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from raydml.cli.output import Json, answering
from raydml.errors import DataError

CollectionName = Annotated[
    str, typer.Argument(metavar="COLLECTION", help="its name under RAYDML_HOME, or its folder", show_default=False)
]
Images = Annotated[list[Path] | None, typer.Option("--image", help="an image file; may be repeated")]
Texts = Annotated[list[str] | None, typer.Option("--text", help="a text; may be repeated")]
Vectors = Annotated[Path | None, typer.Option("--vector", help="a .npy file of shape (dimension,) or (n, dimension)")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="an entry of the collection; may be repeated")]
K = Annotated[int, typer.Option("-k", min=1, help="neighbours per query")]
Filter = Annotated[
    list[str] | None, typer.Option("--filter", metavar="FIELD=VALUE", help="only entries whose payload says so")
]


def search(
    collection: CollectionName,
    image: Images = None,
    text: Texts = None,
    vector: Vectors = None,
    ids: Ids = None,
    k: K = 10,
    filters: Filter = None,
    as_json: Json = False,
) -> None:
    """Find the nearest entries of a collection."""
    if sum(map(bool, (image, text, vector, ids))) != 1:
        raise typer.BadParameter("give one of --image, --text, --vector and --id")
    wanted = parse_filters(filters or [])
    with answering(as_json) as answer:
        from raydml import runs
        from raydml.cli.tables import hits_table

        named = {name: values for name, values in (("images", image), ("texts", text), ("ids", ids)) if values}
        query: dict[str, Any] = named or {"vectors": read_vectors(vector)}
        names = [str(name) for name in image or text or ids or range(len(query.get("vectors", ())))]
        found = runs.open_collection(collection).search(**query, k=k, filter=wanted or None)
        answer({"collection": collection, "results": documents(names, found)}, hits_table(names, found))


def verify(collection: CollectionName, as_json: Json = False) -> None:
    """Check every byte of a collection: rows, files and their SHA-256, and that they belong together."""
    with answering(as_json) as answer:
        from raydml import runs

        with runs.open_collection(collection) as found:
            found.check()
            answer({"collection": collection, "whole": True, "points": found.count()}, f"{collection} is whole")


def documents(names: Sequence[str], found: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    return [
        {"query": name, "hits": [{"id": hit.id, "score": float(hit.score), "payload": hit.payload} for hit in hits]}
        for name, hits in zip(names, found, strict=True)
    ]


def parse_filters(filters: Sequence[str]) -> dict[str, Any]:
    import yaml

    wanted: dict[str, Any] = {}
    for text in filters:
        field, equals, value = text.partition("=")
        if not equals or not field:
            raise typer.BadParameter(f"--filter {text}: write field=value")
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            raise typer.BadParameter(f"--filter {text}: {value!r} is not a YAML value") from None
        wanted[field] = [value] if read == value else [value, read]  # label=7 finds the text and the number
    return wanted


def read_vectors(path: Path | None) -> Any:
    """The file's vectors, shape (n, dimension)."""
    import numpy as np

    assert path is not None
    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npy file: {error}") from None
    if not isinstance(vectors, np.ndarray) or vectors.ndim not in (1, 2):
        shape = getattr(vectors, "shape", "several arrays")
        raise DataError(f"{path} holds {shape}: a query is (dimension,) or (n, dimension)")
    return np.atleast_2d(vectors)
