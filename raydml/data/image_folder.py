"""`root/class/*.png` or `root/{train,validation,test}/class/*.png` in; one row per file out."""

from __future__ import annotations

from pathlib import Path

from raydml.data.contents import Decoded
from raydml.data.dataset import SPLITS
from raydml.data.preprocessing import Preprocessing
from raydml.data.table import Table
from raydml.errors import DataError
from raydml.spec import ImageFolderData


def image_folder_table(spec: ImageFolderData) -> Table:
    """Every file below a class folder, at any depth, by name; hidden files and folders do not count."""
    root = Path(spec.path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: data.path of an image_folder holds one folder per class")
    roots = _split_roots(root)
    rows = [
        (split, folder.name, path)
        for split, base in roots.items()
        for folder in _folders(base)
        for path in _files(folder)
    ]
    if not rows:
        raise DataError(f"{root} holds no class folders with files in them: expected {root}/CLASS/IMAGE.png")
    ids = [path.relative_to(root).as_posix() for _, _, path in rows]
    paths = [path for _, _, path in rows]
    preprocessing = Preprocessing.for_images(spec.image_size, spec.grayscale)
    return Table(
        ids=ids,
        labels=[label for _, label, _ in rows],
        contents=Decoded(paths, [str(path) for path in paths], preprocessing),
        preprocessing=preprocessing,
        splits=None if "" in roots else [split for split, _, _ in rows],
    )


def _split_roots(root: Path) -> dict[str, Path]:
    """Split -> the folder of its classes; the one split "" when the folders of `root` are the classes."""
    names = [folder.name for folder in _folders(root)]
    if "train" not in names:
        return {"": root}
    strange = [name for name in names if name not in SPLITS]
    if strange:
        raise DataError(f"{root} holds train beside {', '.join(strange)}: splits are named {', '.join(SPLITS)}")
    return {name: root / name for name in names}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))
