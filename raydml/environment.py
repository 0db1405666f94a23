"""What a run was made with: versions, machine, git state; for the run's folder and for `raydml doctor`."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "raydml",
    "torch",
    "ray",
    "pytorch-metric-learning",
    "faiss-gpu",
    "faiss-cpu",
    "transformers",
    "tokenizers",
    "numpy",
    "pydantic",
    "fastapi",
)


def describe_environment() -> dict[str, Any]:
    """Versions of what decides bits, the processor, and the commit of the caller's folder."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": package_versions(),
        "git": git_state(Path.cwd()),
    }


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that matter."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit of a folder and whether it has changes; None outside a repository or without git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
