"""Debian's Chromium: where it is, installed where this may, or what to say where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser")


def program() -> str | None:
    """Chromium's path; installed with apt-get where we are root and Debian has it, None where there is none."""
    return _found() or (_found() if _install() else None)


def say(reason: str) -> None:
    """Not to be overlooked, also where output is captured."""
    print(f"\n{'!' * 80}\n{reason}\n{'!' * 80}", file=sys.__stderr__)


def _found() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def _install() -> bool:
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        return False
    say("Chromium is not here: installing Debian's")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    commands = (["update"], ["install", "--yes", "--no-install-recommends", "chromium"])
    return all(subprocess.run(["apt-get", *words], env=environment, check=False).returncode == 0 for words in commands)
