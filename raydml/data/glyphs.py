"""The fonts in matplotlib in; small pictures of characters out, a character being a class and a face an instance.

Faces: DejaVu* and STIXGeneral* without Display. Characters: of Unicode category L, N or S, present in at least 6 faces.
Each is drawn black on white at the centre (anchor "mm"), font size 22 / 32 of the side. A drawing without ink is left
out, then every character that some face draws exactly like another one. `split_of(codepoint)` gives the split.
"""

from __future__ import annotations

import hashlib
import io
import logging
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from raydml.data.contents import Stored
from raydml.data.preprocessing import Preprocessing
from raydml.data.splits import split_of
from raydml.data.table import Table
from raydml.files import write_bytes
from raydml.spec import GlyphsData

_FEWEST_FACES = 6
_FONT_SIZE = 22 / 32  # of the side of the picture
_DIGEST = 32  # bytes of SHA-256 before the arrays in the file
_log = logging.getLogger(__name__)

Glyphs = dict[str, NDArray[np.generic]]  # images (N, S, S) uint8, codepoints (N,) int64, faces (N,) str


def glyphs_table(spec: GlyphsData, home: Path) -> Table:
    """The glyphs at `spec.image_size`, drawn on first use and kept under `home/data`."""
    glyphs = _cached(spec.image_size, home / "data")
    codepoints, faces = glyphs["codepoints"].tolist(), glyphs["faces"].tolist()
    splits = {codepoint: split_of(str(codepoint)) for codepoint in set(codepoints)}
    preprocessing = Preprocessing.for_images(spec.image_size, spec.grayscale)
    images = np.repeat(glyphs["images"][..., None], preprocessing.channels, axis=-1)
    pairs = [(f"U+{codepoint:04X}", face) for codepoint, face in zip(codepoints, faces, strict=True)]
    return Table(
        ids=[f"{code}/{face}" for code, face in pairs],
        labels=[chr(codepoint) for codepoint in codepoints],
        contents=Stored(images),
        preprocessing=preprocessing,
        splits=[splits[codepoint] for codepoint in codepoints],
        extras=[{"codepoint": code, "face": face} for code, face in pairs],
    )


def _cached(size: int, folder: Path) -> Glyphs:
    """Read the file of this size and these versions; draw and write it when it is missing or damaged."""
    import matplotlib

    path = folder / f"glyphs-{size}-matplotlib-{matplotlib.__version__}-pillow-{PIL.__version__}.bin"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
        if content:
            _log.warning("event=glyphs_damaged path=%s action=draw_again", path)
        buffer = io.BytesIO()
        np.savez(buffer, **draw_glyphs(size))  # type: ignore[arg-type]
        content = hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()
        write_bytes(path, content)
    with np.load(io.BytesIO(content[_DIGEST:]), allow_pickle=False) as arrays:
        return dict(arrays)


def draw_glyphs(size: int) -> Glyphs:
    """All glyphs, by codepoint and then by face; takes seconds."""
    fonts = _characters_of_fonts()
    presence = Counter(codepoint for codepoints in fonts.values() for codepoint in codepoints)
    wanted = {codepoint for codepoint, count in presence.items() if count >= _FEWEST_FACES and _is_wanted(codepoint)}
    drawings: dict[tuple[int, str], bytes] = {}
    twins: set[int] = set()
    for path, codepoints in fonts.items():
        drawn = _draw(path, sorted(codepoints & wanted), size)
        twins |= _identical(drawn)
        drawings |= {(codepoint, path.stem): drawing for codepoint, drawing in drawn.items()}
    keys = sorted(key for key in drawings if key[0] not in twins)
    pixels = b"".join(drawings[key] for key in keys)
    return {
        "images": np.frombuffer(pixels, np.uint8).reshape(len(keys), size, size),
        "codepoints": np.array([codepoint for codepoint, _ in keys]),
        "faces": np.array([face for _, face in keys]),
    }


def _characters_of_fonts() -> dict[Path, set[int]]:
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [*folder.glob("DejaVu*.ttf"), *folder.glob("STIXGeneral*.ttf")]
    return {path: set(FT2Font(str(path)).get_charmap()) for path in sorted(paths) if "Display" not in path.name}


def _is_wanted(codepoint: int) -> bool:
    character = chr(codepoint)
    return unicodedata.category(character)[0] in "LNS" and not unicodedata.combining(character)


def _draw(path: Path, codepoints: list[int], size: int) -> dict[int, bytes]:
    """Codepoint -> size * size grey pixels, without those that leave no ink."""
    font = ImageFont.truetype(str(path), size * _FONT_SIZE)
    blank = bytes([255]) * (size * size)
    drawn = {}
    for codepoint in codepoints:
        image = Image.new("L", (size, size), 255)
        ImageDraw.Draw(image).text((size / 2, size / 2), chr(codepoint), font=font, fill=0, anchor="mm")
        drawn[codepoint] = image.tobytes()
    return {codepoint: drawing for codepoint, drawing in drawn.items() if drawing != blank}


def _identical(drawn: dict[int, bytes]) -> set[int]:
    """The characters that share their drawing with another one."""
    by_drawing: defaultdict[bytes, list[int]] = defaultdict(list)
    for codepoint, drawing in drawn.items():
        by_drawing[drawing].append(codepoint)
    return {codepoint for group in by_drawing.values() if len(group) > 1 for codepoint in group}
