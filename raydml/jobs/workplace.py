"""The folder of one attempt, `<run>/attempts/00001`: its order in, what it says of itself and its output out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raydml.files import write_json


class Workplace:
    """Files of one attempt, each whole or absent; the supervisor writes the order, the attempt the others."""

    def __init__(self, home: Path, job: str, attempt: int) -> None:
        self.home, self.job, self.attempt = home, job, attempt
        self.run = home / "runs" / job
        self.folder = self.run / "attempts" / f"{attempt:05d}"
        self.output = self.folder / "output.log"

    def write_order(self, spec: dict[str, Any], workers: int, collections: Path) -> None:
        """The spec to train, how many workers it may have at first, and the folder of its project's collections."""
        order = {"spec": spec, "workers": workers, "collections": str(collections)}
        write_json(self.folder / "order.json", order)

    def order(self) -> dict[str, Any]:
        """`spec`, `workers` and `collections`."""
        found = self._read("order")
        assert found is not None, f"{self.folder} has no order"
        return found

    def write_started(self, usable: list[int], limits: tuple[int, int]) -> None:
        """Numbers of workers that the run can use, and the limits that its driver goes by."""
        write_json(self.folder / "started.json", {"usable": usable, "limits": limits})

    def started(self) -> dict[str, Any] | None:
        """`usable` and `limits`, once the attempt came so far."""
        return self._read("started")

    def write_ended(self, outcome: str, kind: str, message: str, result: dict[str, Any] | None) -> None:
        """How it ended: succeeded, interrupted or failed, with the error's class and message."""
        write_json(self.folder / "ended.json", {"outcome": outcome, "kind": kind, "message": message, "result": result})

    def ended(self) -> dict[str, Any] | None:
        """`outcome`, `kind`, `message` and `result`, once it ended in good order."""
        return self._read("ended")

    def superseded(self) -> bool:
        """Whether a later attempt was ordered: this one must not touch the run."""
        return any(int(path.name) > self.attempt for path in self.folder.parent.glob("[0-9]*"))

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        return found
