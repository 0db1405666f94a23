"""A folder -> whether a collection is there, what holds for all of its vectors; and a new, empty one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from raydml.errors import CollectionError, ResourceError
from raydml.files import scratch_folder, write_bytes
from raydml.search import database
from raydml.search.items import Metric
from raydml.search.segments import SEGMENTS
from raydml.search.writer import LOCK, writing

FORMAT = 2
RECALL = 0.99  # of the ten nearest


@dataclass(frozen=True)
class Facts:
    """What holds for every vector of a collection."""

    dimension: int
    metric: Metric
    model_digest: str | None = None
    model_path: str | None = None
    preprocessing_digest: str | None = None
    recall: float = RECALL  # that approximate indexes must reach
    format: int = FORMAT


def exists(folder: Path) -> bool:
    """Whether a collection is there; a folder with other things, or what is left of one, is refused."""
    if (folder / database.DATABASE).exists():
        return True
    if not folder.exists():
        return False
    if (folder / "CURRENT").exists():
        raise CollectionError(f"{folder} was written before collections were databases: remove it and index again")
    if any(folder.glob(f"{SEGMENTS}/*")):
        raise database.damaged(folder / database.DATABASE, "it is missing beside its segments")
    other = [path.name for path in folder.iterdir() if path.name != LOCK and not path.name.startswith(".tmp-")]
    if other:
        raise CollectionError(f"{folder} is not a collection: it holds {sorted(other)[:10]}; choose another folder")
    return False


def create(folder: Path, facts: Facts, patience: float) -> None:
    """Make an empty collection, whole or not at all; one that another process makes meanwhile is left as it is."""
    database.refuse_network(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot make {folder}: {error.strerror}; choose another folder") from error
    with writing(folder, patience):
        if not (folder / database.DATABASE).exists():
            with scratch_folder("raydml-collection-") as draft:
                database.create(draft, asdict(facts))
                content = (draft / database.DATABASE).read_bytes()
            write_bytes(folder / database.DATABASE, content)


def read_facts(folder: Path) -> Facts:
    """The facts of the collection in the folder."""
    database.refuse_network(folder)
    with database.translating(folder):
        connection = database.connect(folder)
        try:
            row = connection.execute("SELECT only, document, crc FROM facts").fetchone()
        finally:
            connection.close()
    if row is None:
        raise database.damaged(folder / database.DATABASE, "it holds no facts")
    values = json.loads(database.checked(folder, "facts", row)[1])
    if values["format"] != FORMAT:
        raise CollectionError(
            f"{folder} has format {values['format']}, this version reads {FORMAT}: use another version"
        )
    return Facts(**values)
