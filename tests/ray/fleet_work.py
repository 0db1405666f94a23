"""What the workers of the fleet's tests do: write down that they run, and follow a file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch

from raydml.training.fleet.staffing import LEFT


def follow(folder: str, name: str, device: torch.device) -> str:
    """Write `<name>.json`; return `done` once the file `done` is there, LEFT once `<name>.leave` is."""
    facts = {"pid": os.getpid(), "device": str(device), "cpu_seconds": time.process_time()}
    path = Path(folder) / f"{name}.json"
    path.with_suffix(".tmp").write_text(json.dumps(facts))
    path.with_suffix(".tmp").rename(path)
    while not (Path(folder) / "done").exists():
        if path.with_suffix(".leave").exists():
            return LEFT
        time.sleep(0.02)
    return "done"
