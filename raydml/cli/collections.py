"""Commands about collections of a server: make, fill, search, describe, copy and remove them; and aliases."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from raydml.cli.output import Json
from raydml.cli.queries import Filter, Ids, Images, K, Texts, Vectors, documents, parse_filters, read_vectors
from raydml.cli.remote import Limit, Local, Url, asking, pairs
from raydml.errors import DataError

app = typer.Typer(help="Collections of a server (raydml serve): fill them and search them.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="of a collection, or an alias of one", show_default=False)]
Dimension = Annotated[int | None, typer.Option("--dimension", min=1, help="length of a vector")]
Run = Annotated[str | None, typer.Option("--run", help="or: the run whose model embeds images and texts")]
Metric = Annotated[str | None, typer.Option("--metric", help="cosine, l2 or inner_product  [default: cosine]")]
VectorFile = Annotated[Path, typer.Argument(metavar="FILE.npy", help="of shape (n, dimension)", show_default=False)]
Items = Annotated[
    Path | None,
    typer.Option("--items", metavar="FILE", help='a line each: {"id": ..., "payload": {...}}; else "0", "1", ...'),
]
Batch = Annotated[int, typer.Option("--batch", min=1, max=10_000, help="vectors of one request")]
Snapshot = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="its name", show_default=False)]
To = Annotated[str, typer.Option("--to", metavar="NAME", help="a collection that does not exist")]
Switches = Annotated[
    list[str], typer.Argument(metavar="ALIAS=NAME...", help="an empty name removes the alias", show_default=False)
]
Expected = Annotated[int | None, typer.Option("--expected", help="the generation that was seen: else nothing is done")]


@app.command()
def create(
    name: Name,
    dimension: Dimension = None,
    metric: Metric = None,
    run: Run = None,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Make a collection, of a dimension or of a run's model."""
    with asking(url, local, as_json) as (client, answer):
        _described(client.collections.create(name, dimension, metric, run), answer)


@app.command("list")
def list_(limit: Limit = 1000, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """List the names of all collections."""
    with asking(url, local, as_json) as (client, answer):
        names = list(islice(client.collections.list(min(limit, 1000)), limit))
        answer({"collections": names}, "\n".join(names) or "there are no collections")


@app.command()
def get(name: Name, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Describe a collection."""
    with asking(url, local, as_json) as (client, answer):
        _described(client.collections.get(name), answer)


@app.command()
def delete(name: Name, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Remove a collection with everything in it; its snapshots stay."""
    with asking(url, local, as_json) as (client, answer):
        client.collections.delete(name)
        answer({"deleted": name}, f"collection {name} is removed")


@app.command()
def upsert(
    name: Name,
    vectors: VectorFile,
    items: Items = None,
    batch: Batch = 1000,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Insert vectors, or replace those whose id is there, with a bar on stderr."""
    with asking(url, local, as_json) as (client, answer):
        from rich.progress import track

        from raydml.cli.output import stderr

        array = read_vectors(vectors)
        ids, payloads = _items(items, len(array))
        lsn = 0
        for start in track(range(0, len(array), batch), "upserting", console=stderr()):
            part = slice(start, start + batch)
            lsn = client.collections[name].upsert(ids[part], array[part], payloads[part])
        answer({"collection": name, "points": len(array), "lsn": lsn}, f"{name}: {len(array)} points, lsn {lsn}")


@app.command()
def search(
    name: Name,
    image: Images = None,
    text: Texts = None,
    vector: Vectors = None,
    ids: Ids = None,
    k: K = 10,
    filters: Filter = None,
    url: Url = None,
    local: Local = None,
    as_json: Json = False,
) -> None:
    """Find the nearest points."""
    if sum(map(bool, (image, text, vector, ids))) != 1:
        raise typer.BadParameter("give one of --image, --text, --vector and --id")
    wanted = parse_filters(filters or [])
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.tables import hits_table

        array = read_vectors(vector) if vector else None
        points = _points(client.collections[name], ids) if ids else None
        found = client.collections[name].search(array, image, text, points, k, wanted or None)
        names = [str(query) for query in image or text or ids or range(len(found))]
        answer({"collection": name, "results": documents(names, found)}, hits_table(names, found))


@app.command()
def stats(name: Name, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show what a collection consists of, and the recall of its approximate searches."""
    with asking(url, local, as_json) as (client, answer):
        from raydml.cli.tables import facts_table

        found = client.collections[name].stats()
        facts = {"points": found.points, "lsn": found.sequence, "parts": len(found.parts), "recall": found.recall}
        answer(found.model_dump(mode="json"), facts_table(facts))


@app.command()
def snapshot(name: Name, snapshot: Snapshot, url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Copy a collection as it is now, while writers go on."""
    with asking(url, local, as_json) as (client, answer):
        client.collections[name].snapshots.create(snapshot)
        known = client.collections[name].snapshots.list()
        answer({"collection": name, "snapshots": known}, f"{name} is copied; there are {', '.join(known)}")


@app.command()
def restore(
    name: Name, snapshot: Snapshot, to: To, url: Url = None, local: Local = None, as_json: Json = False
) -> None:
    """Make a new collection of a snapshot, every byte of it checked."""
    with asking(url, local, as_json) as (client, answer):
        _described(client.collections[name].snapshots.restore(snapshot, to), answer)


@app.command()
def aliases(url: Url = None, local: Local = None, as_json: Json = False) -> None:
    """Show all aliases."""
    with asking(url, local, as_json) as (client, answer):
        _aliases(client.aliases.get(), answer)


@app.command()
def switch(
    switches: Switches, expected: Expected = None, url: Url = None, local: Local = None, as_json: Json = False
) -> None:
    """Point aliases to other collections, all at the same moment."""
    changes = {alias: name or None for alias, name in pairs(switches, "switch").items()}
    with asking(url, local, as_json) as (client, answer):
        _aliases(client.aliases.switch(changes, expected), answer)


def _described(found: Any, answer: Any) -> None:
    from raydml.cli.tables import facts_table

    answer(found.model_dump(mode="json"), facts_table(found.model_dump()))


def _aliases(found: Any, answer: Any) -> None:
    shown = "\n".join(f"{alias} -> {name}" for alias, name in found.aliases.items()) or "there are no aliases"
    answer(found.model_dump(mode="json"), f"{shown}\n(generation {found.generation})")


def _points(collection: Any, ids: list[str]) -> list[Any]:
    """Ids as they were typed -> those of points: a number is one where no point has it as its text."""
    from raydml.errors import RequestRefused

    found: list[Any] = []
    for id in ids:
        number = int(id) if re.fullmatch(r"-?[0-9]{1,19}", id) else None
        if number is not None:
            try:
                collection.get([id])
            except RequestRefused:
                found.append(number)
                continue
        found.append(id)
    return found


def _items(path: Path | None, count: int) -> tuple[list[Any], list[Any]]:
    """Ids and payloads of so many vectors. Raises DataError."""
    if path is None:
        return [str(row) for row in range(count)], [{}] * count
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        ids = [line["id"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path}: write one {{"id": ..., "payload": {{...}}}} a line: {error!r}') from None
    if len(ids) != count:
        raise DataError(f"{path} has {len(ids)} lines, and there are {count} vectors: write one line for each")
    return ids, [line.get("payload") for line in lines]
