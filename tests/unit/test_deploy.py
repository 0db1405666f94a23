"""The systemd unit and the Dockerfile, offline: what systemd itself says, and rules that a linter would have."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
UNIT = (ROOT / "examples/deploy/raydml.service").read_text()
DOCKERFILE = (ROOT / "examples/deploy/Dockerfile").read_text()
PROGRAM = "/opt/raydml/bin/raydml"
INSTRUCTIONS = {
    "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD", "ARG",
}  # fmt: skip


def unknown_settings(text: str) -> list[str]:
    names = re.findall(r"\bRAYDML_([A-Z_]+)=", text)
    assert names
    return [name for name in names if name.lower() not in Settings.model_fields]


def verified(unit: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What systemd says of a unit, whose program is one that this machine has."""
    path = folder / "raydml.service"
    path.write_text(unit.replace(PROGRAM, sys.executable))
    return subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit_and_does_find_typos(tmp_path: Path) -> None:
    done = verified(UNIT, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "'KilMode'" in verified(UNIT.replace("KillMode", "KilMode"), tmp_path).stderr


def test_the_unit_serves_with_settings_that_there_are_and_stops_with_patience() -> None:
    assert re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE) == [f"{PROGRAM} serve"]
    assert unknown_settings(UNIT) == []
    (patience,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    shutdown = Settings.model_fields["shutdown_seconds"].default
    assert int(patience) >= 4 * shutdown, "requests, then runs, which have twice as long, then Ray"


def instructions(text: str) -> list[tuple[str, str]]:
    """Instruction and words of each line, where lines that go on are one."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def problems(text: str) -> Iterator[str]:
    found = instructions(text)
    stages = {words.split()[-1] for name, words in found if name == "FROM" and " AS " in words}
    for name, words in found:
        if name not in INSTRUCTIONS:
            yield f"{name} is no instruction"
        if name == "FROM" and not re.match(r"\S+:[\d.]+\S*( AS \w+)?$", words):
            yield f"FROM {words} is not of one version"
        if name == "COPY" and not words.startswith("--from="):
            yield from (f"{source} is not there" for source in words.split()[:-1] if not (ROOT / source).exists())
        if name == "COPY" and words.startswith("--from=") and words.split()[0].removeprefix("--from=") not in stages:
            yield f"COPY {words}: no such stage"
        if name in ("ENTRYPOINT", "CMD") and not isinstance(json.loads(words), list):
            yield f"{name} is run by a shell, which keeps signals to itself"
        if name == "RUN":
            yield from of_run(words)
    order = [name for name, _ in found]
    if "USER" not in order or order.index("USER") > order.index("ENTRYPOINT") or ("USER", "root") in found:
        yield "it runs as root"
    if unknown := unknown_settings(text):
        yield f"the server reads no {unknown}"
    ports = {
        dict(found)["EXPOSE"],
        *re.findall(r"127\.0\.0\.1:(\d+)/livez", text),
        *re.findall("RAYDML_PORT=(.*)", text),
    }
    if len(ports) != 1:
        yield f"ports differ: {ports}"


def of_run(words: str) -> Iterator[str]:
    if subprocess.run(["bash", "-n", "-c", words], capture_output=True).returncode != 0:
        yield f"no shell command: {words}"
    for command in re.split("&&", words):
        parts = shlex.split(command)
        if parts[:1] == ["pip"] and "--no-cache-dir" not in parts:
            yield "pip keeps what it fetched"
        if parts[:2] == ["pip", "install"] and "-c" not in parts:
            yield "pip takes any version"
        if parts[:2] == ["apt-get", "install"] and not {"--yes", "--no-install-recommends"} <= set(parts):
            yield "apt-get asks, or takes what is only recommended"
    if "apt-get update" in words and "rm -rf /var/lib/apt/lists" not in words:
        yield "apt's lists are kept"


def test_nothing_is_wrong_with_the_dockerfile() -> None:
    assert list(problems(DOCKERFILE)) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("python:3.11-slim-bookworm AS", "python:latest AS", "not of one version"),
        ("COPY api api", "COPY apis api", "apis is not there"),
        ("--from=wheel", "--from=wheels", "no such stage"),
        ("USER raydml", "USER root", "as root"),
        ("-c /tmp/constraints.txt", "", "any version"),
        ("RAYDML_HOST", "RAYDML_HOTS", "HOTS"),
        ("EXPOSE 8080", "EXPOSE 80", "ports differ"),
        ("rm -rf /var/lib/apt/lists/*", "true", "lists are kept"),
        ("WORKDIR /src", "WORKDIRS /src", "no instruction"),
    ],
)
def test_a_dockerfile_that_is_broken_in_one_place_is_refused_for_that(old: str, new: str, words: str) -> None:
    assert old in DOCKERFILE
    assert any(words in each for each in problems(DOCKERFILE.replace(old, new)))
