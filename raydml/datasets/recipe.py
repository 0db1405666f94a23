"""What a data set is made of and how: packages, and the function that turns their folders into its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Tool = Literal["npm", "pip", "apt"]
Counts = dict[str, int]


@dataclass(frozen=True)
class Source:
    """One package of a public registry; `version` None: the newest that the tool offers."""

    tool: Tool
    package: str
    version: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A data set: `make(unpacked folders by package, target folder)` writes its files and counts what it wrote."""

    description: str
    sources: tuple[Source, ...]
    make: Callable[[Mapping[str, Path], Path], Counts]
    use: str  # the part of a spec that reads it; {folder} stands for its folder
