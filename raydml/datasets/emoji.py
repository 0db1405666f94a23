"""Emoji as nine sets draw them: a character is a class, the sets are the instances, the name is a text beside it.

A character is an entry of emojibase's English table, so skin tones and other variants do not count. A set's drawing
belongs to the character that the set's own `chars.json` says, or, where that is empty, to the one character that has
the drawing's name: in emojibase, as label or shortcode, or in another set. Characters drawn by fewer than two sets are
left out.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raydml.datasets.drawings import DrawingSet, Row, distinct, png, write_table
from raydml.datasets.recipe import Counts, Recipe, Source

SETS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "openmoji": "1.2.29",
    "fluent-emoji-flat": "1.2.6",
    "fluent-emoji-high-contrast": "1.2.6",
    "emojione": "1.2.3",
    "emojione-v1": "1.2.3",
    "fxemoji": "1.2.2",
}
NAMES = "emojibase-data"
SHORTCODES = ("cldr", "github", "emojibase", "iamcal", "joypixels")
Named = dict[str, set[str]]  # a name -> the code points that have it


def make(folders: Mapping[str, Path], target: Path) -> Counts:
    """Every character that at least two sets draw."""
    english = folders[NAMES] / "package" / "en"
    characters = {_code(entry["hexcode"]): entry for entry in _read(english / "data.json")}
    sets = {name: DrawingSet(folders[f"@iconify-json/{name}"]) for name in SETS}
    own = {name: _own_characters(drawings, characters) for name, drawings in sets.items()}
    named = _names(english, characters)
    for found in own.values():
        for code, drawing in found.items():
            named[drawing].add(code)
    drawn = {name: found or _by_name(sets[name], named) for name, found in own.items()}
    return write_table(distinct(_rows(characters, sets, drawn)), target)


def _rows(characters: dict[str, Any], sets: dict[str, DrawingSet], drawn: dict[str, dict[str, str]]) -> Iterator[Row]:
    for code, entry in characters.items():
        names = [name for name in sets if code in drawn[name]]
        if len(names) < 2:
            continue
        for name in names:
            yield {
                "id": f"{code}/{name}",
                "label": entry["label"],
                "character": entry["emoji"],
                "set": name,
                "bytes": png(sets[name].svg(drawn[name][code])),
            }


def _own_characters(drawings: DrawingSet, characters: dict[str, Any]) -> dict[str, str]:
    """Code points -> drawing, by the set's own table."""
    there = set(drawings.names)
    pairs = ((_code(code), name) for code, name in sorted(drawings.json("chars.json").items()))
    return {code: name for code, name in pairs if code in characters and name in there}


def _by_name(drawings: DrawingSet, named: Named) -> dict[str, str]:
    """Code points -> drawing, by names that only one character has."""
    names = {name: name for name in drawings.names} | drawings.aliases
    found: dict[str, str] = {}
    for name, drawing in sorted(names.items(), reverse=True):
        codes = named.get(name, set())
        if len(codes) == 1:
            found[next(iter(codes))] = drawing
    return found


def _names(english: Path, characters: dict[str, Any]) -> defaultdict[str, set[str]]:
    named: defaultdict[str, set[str]] = defaultdict(set)
    for code, entry in characters.items():
        named[_slug(entry["label"])].add(code)
    for file in SHORTCODES:
        for code, names in _read(english / "shortcodes" / f"{file}.json").items():
            for name in [names] if isinstance(names, str) else names:
                if _code(code) in characters:
                    named[_slug(name)].add(_code(code))
    return named


def _code(hexcode: str) -> str:
    """Code points without the selector of the coloured form, which sets write or leave out."""
    return "-".join(point for point in hexcode.upper().split("-") if point != "FE0F")


def _slug(name: str) -> str:
    """`1st place medal` -> `1st-place-medal`, as the sets write names."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub("['\u2019]", "", name.lower())).strip("-")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


RECIPE = Recipe(
    "Emoji in nine drawings: 64 x 64 pictures, a character a class, with its English name",
    (
        *(Source("npm", f"@iconify-json/{name}", version) for name, version in SETS.items()),
        Source("npm", NAMES, "17.0.0"),
    ),
    make,
    "data: {{kind: manifest, path: {folder}/manifest.parquet, image_size: 32}}",
)
