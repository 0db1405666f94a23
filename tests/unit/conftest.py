"""What unit tests share: torch's settings put back, and one set of small images a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.distributed.harness import write_images


@pytest.fixture(autouse=True)
def numerics() -> Iterator[None]:
    """A worker sets torch's numerics for its process; here other tests follow."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small noisy images with splits, as `write_images` makes them."""
    return write_images(tmp_path_factory.mktemp("images"))
