"""Event files for TensorBoard in a run's folder: one curve, however many attempts wrote it."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from torch.utils.tensorboard import SummaryWriter

from raydml.spec import TensorboardTracking
from raydml.tracking.points import Point
from raydml.tracking.tracker import Facts

FOLDER = "tensorboard"


class TensorboardLog:
    """One more event file; TensorBoard reads all of a folder as one run. Its steps are samples."""

    def __init__(self, spec: TensorboardTracking, facts: Facts) -> None:
        folder = facts.folder / FOLDER
        begun = folder.exists()
        self._writer = SummaryWriter(str(folder))
        if not begun:
            text = yaml.safe_dump(dict(facts.spec), sort_keys=False)
            self._writer.add_text("spec", f"```\n{text}```", 0)

    def log(self, points: Sequence[Point]) -> None:
        """Keep these, in the file when this returns."""
        for point in points:
            for name, value in point.values.items():
                self._writer.add_scalar(name, value, point.samples, point.time)
        self._writer.flush()

    def end(self, state: str) -> None:
        """Give back the file."""
        self._writer.close()
