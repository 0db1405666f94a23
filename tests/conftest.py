"""What all tests share: a raydml home of their own and one thread per process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """RAYDML_HOME of this test alone."""
    folder = tmp_path / "raydml-home"
    monkeypatch.setenv("RAYDML_HOME", str(folder))
    return folder
