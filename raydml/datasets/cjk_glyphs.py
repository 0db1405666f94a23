"""Han characters in the faces of Debian's font packages: a character is a class, the faces are the instances.

Characters U+4E00 to U+9FFF that at least 4 faces have, black on white at the centre of 32 x 32 pixels. Left out: empty
drawings, a face's drawing that an earlier face made pixel for pixel, and characters that some face draws like another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from raydml.datasets.recipe import Counts, Recipe, Source
from raydml.errors import ResourceError

FACES = {
    "fonts-arphic-uming": "uming.ttc",
    "fonts-arphic-ukai": "ukai.ttc",
    "fonts-arphic-bkai00mp": "bkai00mp.ttf",
    "fonts-arphic-bsmi00lp": "bsmi00lp.ttf",
    "fonts-arphic-gbsn00lp": "gbsn00lp.ttf",
    "fonts-arphic-gkai00mp": "gkai00mp.ttf",
    "fonts-cns11643-kai": "TW-Kai-98_1.ttf",
    "fonts-cns11643-sung": "TW-Sung-98_1.ttf",
    "fonts-droid-fallback": "DroidSansFallbackFull.ttf",
    "fonts-hanazono": "HanaMinA.ttf",
    "fonts-ipaexfont-gothic": "ipaexg.ttf",
    "fonts-ipaexfont-mincho": "ipaexm.ttf",
    "fonts-klee": "KleeOne-Regular.ttf",
    "fonts-lxgw-wenkai": "LXGWWenKai-Regular.ttf",
    "fonts-wqy-microhei": "wqy-microhei.ttc",
    "fonts-wqy-zenhei": "wqy-zenhei.ttc",
}
SIZE, FONT_SIZE = 32, 26
_FIRST, _LAST = 0x4E00, 0x9FFF
_FEWEST_FACES = 4
_BLANK = bytes([255]) * (SIZE * SIZE)
Drawings = dict[int, dict[str, bytes]]  # code point -> face -> pixels


def make(folders: Mapping[str, Path], target: Path) -> Counts:
    """Arrays as the kind `arrays` reads them, by character and then by face."""
    paths = {Path(file).stem: _font(folders[package], file) for package, file in FACES.items()}
    characters = {face: _characters(path) for face, path in paths.items()}
    presence = Counter(code for codes in characters.values() for code in codes)
    drawings: Drawings = defaultdict(dict)
    twins: set[int] = set()
    for face, path in paths.items():
        codes = [code for code in sorted(characters[face]) if presence[code] >= _FEWEST_FACES]
        twins |= _draw(path, face, codes, drawings)
    keys = [(code, face) for code in sorted(drawings) if code not in twins for face in drawings[code]]
    pixels = b"".join(drawings[code][face] for code, face in keys)
    np.save(target / "inputs.npy", np.frombuffer(pixels, np.uint8).reshape(len(keys), SIZE, SIZE))
    np.save(target / "labels.npy", np.array([chr(code) for code, _ in keys]))
    np.save(target / "ids.npy", np.array([f"U+{code:04X}/{face}" for code, face in keys]))
    return {"items": len(keys), "classes": len({code for code, _ in keys}), "faces": len({face for _, face in keys})}


def _font(folder: Path, file: str) -> Path:
    found = sorted(path for path in folder.rglob(file) if path.is_file() and not path.is_symlink())
    if not found:
        raise FileNotFoundError(file)
    return found[0]


def _characters(path: Path) -> set[int]:
    try:
        from fontTools.ttLib import TTFont
    except ImportError:
        raise ResourceError("fonttools is not installed: pip install 'raydml[build]'") from None
    with TTFont(path, fontNumber=0, lazy=True) as font:
        return {code for code in font.getBestCmap() if _FIRST <= code <= _LAST}


def _draw(path: Path, face: str, codes: list[int], drawings: Drawings) -> set[int]:
    """Add this face's new drawings; returns the characters that it draws like one another."""
    font = ImageFont.truetype(str(path), FONT_SIZE)
    seen: defaultdict[bytes, list[int]] = defaultdict(list)
    for code in codes:
        image = Image.new("L", (SIZE, SIZE), 255)
        ImageDraw.Draw(image).text((SIZE / 2, SIZE / 2), chr(code), font=font, fill=0, anchor="mm")
        drawing = image.tobytes()
        if drawing != _BLANK:
            seen[drawing].append(code)
            if drawing not in drawings[code].values():
                drawings[code][face] = drawing
    return {code for shared in seen.values() if len(shared) > 1 for code in shared}


RECIPE = Recipe(
    f"Han characters in {len(FACES)} faces: {SIZE} x {SIZE} grey pictures, a character a class",
    tuple(Source("apt", package) for package in FACES),
    make,
    "data: {{kind: arrays, path: {folder}, image_size: 32, grayscale: true}}",
)
