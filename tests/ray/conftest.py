"""One local Ray for the tests of a file, or a cluster of several nodes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest
import ray

from tests.ray.machines import machines

__all__ = ["machines", "shared_ray"]


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """Runs of this process use it; a command of its own starts its own, as a user's would."""
    scratch = tempfile.mkdtemp(prefix="raydml-test-")  # a short path: Ray puts sockets below it
    ray.init("local", num_cpus=2, _temp_dir=scratch, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    shutil.rmtree(scratch, ignore_errors=True)
