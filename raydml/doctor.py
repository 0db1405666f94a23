"""This machine in; a list of checks out, each ok or a problem with the way out."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("ray", "torch", "pytorch-metric-learning", "pydantic", "numpy")
FREE_BYTES = 2 * 1024**3
SHARED_BYTES = 256 * 1024**2
PROBE_SECONDS = 120
REINSTALL = "install raydml again: pip install -c constraints.txt -e ."

# Native libraries are tried in a process of their own: a broken one takes its process down.
PROBE_TORCH = """
import torch
print(torch.__version__, *[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())], sep="|")
"""
PROBE_FAISS = """
import faiss, numpy
index = faiss.IndexFlatIP(2)
index.add(numpy.eye(2, dtype="float32"))
assert index.search(numpy.eye(2, dtype="float32"), 1)[1].ravel().tolist() == [0, 1]
print(faiss.__version__)
"""


@dataclass(frozen=True)
class Check:
    """One question: `detail` is what was found, `way_out` what to do when it is not ok."""

    name: str
    ok: bool
    detail: str
    way_out: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def examine(home: Path | None = None) -> list[Check]:
    """All checks; `home` is where runs, data and collections live (RAYDML_HOME by default)."""
    home = home or Path(os.environ.get("RAYDML_HOME") or Path.home() / ".raydml")
    return [python(), *libraries(), *torch_and_gpus(), faiss(), ray_cluster(), shared_memory(), disk(home)]


def python() -> Check:
    """Python 3.11 or later."""
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", sys.version_info >= (3, 11), found, "use Python 3.11 or later")


def libraries() -> Iterator[Check]:
    """The libraries that are installed."""
    for name in LIBRARIES:
        try:
            yield Check(name, True, version(name))
        except PackageNotFoundError:
            yield Check(name, False, "not installed", REINSTALL)


def torch_and_gpus() -> Iterator[Check]:
    """Whether torch loads, and the GPUs that it sees."""
    ok, output = probe(PROBE_TORCH)
    if not ok:
        yield Check("torch loads", False, output, REINSTALL)
        return
    _, *gpus = output.split("|")
    yield Check("GPUs", True, ", ".join(gpus) or "none: training runs on the CPU")


def faiss() -> Check:
    """Whether Faiss loads and finds a vector."""
    ok, output = probe(PROBE_FAISS)
    return Check("Faiss", ok, output, REINSTALL)


def ray_cluster(address: str | None = None) -> Check:
    """Whether the cluster of RAY_ADDRESS answers; without one, Ray is started for each run."""
    address = address or os.environ.get("RAY_ADDRESS")
    if not address or address in ("local", "auto"):
        return Check("Ray", True, "started here for each run")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return Check("Ray", True, f"cluster at {address} answers")
    except (OSError, ValueError) as error:
        return Check("Ray", False, f"{address}: {error}", "start that cluster, or unset RAY_ADDRESS")


def shared_memory(folder: str = "/dev/shm") -> Check:
    """Ray keeps objects in shared memory."""
    if not Path(folder).is_dir():
        return Check("shared memory", True, "Ray uses its temporary folder")
    free = shutil.disk_usage(folder).free
    return Check(
        "shared memory", free >= SHARED_BYTES, f"{size(free)} free in {folder}", "in a container: --shm-size=1g"
    )


def disk(home: Path) -> Check:
    """Whether the home can be written and has room."""
    folder = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Check("disk", False, f"{folder} cannot be written", "set RAYDML_HOME to a folder of yours")
    free = shutil.disk_usage(folder).free
    way_out = f"free some space ({size(FREE_BYTES)} needed) or set RAYDML_HOME to a larger disk"
    return Check("disk", free >= FREE_BYTES, f"{size(free)} free for {home}", way_out)


def probe(script: str) -> tuple[bool, str]:
    """Run Python code apart: whether it succeeded, and its output or the last line of its error."""
    try:
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return False, f"no answer in {PROBE_SECONDS} s"
    if result.returncode == 0:
        return True, result.stdout.strip()
    lines = result.stderr.strip().splitlines()
    return False, lines[-1] if lines else f"ended by signal {-result.returncode}"


def size(num_bytes: float) -> str:
    """1536 -> '1.5 KB'."""
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TB"
