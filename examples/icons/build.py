"""The folder of an unpacked icon package in; a manifest of small images, several drawings per class, out.

    npm install @phosphor-icons/core          # MIT licence: about 1,500 icons, each drawn in six weights
    pip install resvg-py
    python build.py node_modules/@phosphor-icons/core/assets icons

An icon's name is its class; its drawings in thin, light, regular, bold, fill and duotone are the instances.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import resvg_py

WEIGHTS = ("thin", "light", "regular", "bold", "fill", "duotone")


def icon_name(path: Path) -> str:
    """`regular/heart.svg` and `bold/heart-bold.svg` are both `heart`."""
    return path.stem.removesuffix(f"-{path.parent.name}")


def draw(source: Path, target: Path, size: int) -> None:
    """One SVG as a PNG, black on white, size x size pixels."""
    target.parent.mkdir(parents=True, exist_ok=True)
    svg = source.read_text(encoding="utf-8")
    target.write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white")))


def build(assets: Path, folder: Path, size: int) -> int:
    """Draw every icon of every weight below `folder`, list them in manifest.csv; returns their number."""
    rows = []
    for weight in WEIGHTS:
        for source in sorted((assets / weight).glob("*.svg")):
            name = icon_name(source)
            path = Path(weight) / f"{name}.png"
            draw(source, folder / path, size)
            rows.append({"path": path.as_posix(), "label": name, "weight": weight})
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["path", "label", "weight"])
        table.writeheader()
        table.writerows(rows)
    return len(rows)


def main() -> None:
    """Parse, build, say what was built."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path, help="the package's folder with one folder of SVG files per weight")
    parser.add_argument("folder", type=Path, help="where images and manifest.csv go")
    parser.add_argument("--size", type=int, default=32, help="pixels on a side")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    count = build(given.assets, given.folder, given.size)
    print(f"{count} images in {given.folder}, listed in {given.folder / 'manifest.csv'}")


if __name__ == "__main__":
    main()
