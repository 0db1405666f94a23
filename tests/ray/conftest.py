"""One local Ray for the tests of a file, or a cluster of several nodes; all of them ask for a token."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._raylet import Config

from tests.ray.machines import machines

__all__ = ["machines", "shared_ray", "token"]


@pytest.fixture(scope="session", autouse=True)
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh token, in a file, that every cluster of these tests and all that connects to one needs.

    One for all of them: Ray reads it once in a process, and the mode when it is imported.
    """
    path = tmp_path_factory.mktemp("token") / "token"
    path.touch(0o600)
    path.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        Config.initialize("")
        yield path


@pytest.fixture(scope="module")
def shared_ray(token: Path) -> Iterator[None]:
    """Runs of this process use it; a command of its own starts its own, as a user's would."""
    scratch = tempfile.mkdtemp(prefix="raydml-test-")  # a short path: Ray puts sockets below it
    ray.init("local", num_cpus=2, _temp_dir=scratch, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    shutil.rmtree(scratch, ignore_errors=True)
