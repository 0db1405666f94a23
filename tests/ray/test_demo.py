"""The demo as a user runs it: what README says of it, measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_is_at_least_15_points_of_map_at_r_above_raw_pixels(home: Path) -> None:
    program = "from raydml.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "demo", "--json"],
        env={**os.environ, "RAYDML_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert result.returncode == 0, result.stderr
    demo = json.loads(result.stdout)
    assert demo["metrics"]["map_at_r"] >= demo["baseline"]["map_at_r"] + 0.15
    assert demo["exactness"] == "bitwise"
    for path in demo["pictures"].values():
        with Image.open(path) as picture:
            assert min(picture.size) > 300
