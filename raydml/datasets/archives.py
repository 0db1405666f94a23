"""The name of a public package in; its archive, unpacked and never installed, out."""

from __future__ import annotations

import email
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raydml.datasets.recipe import Source, Tool
from raydml.errors import ResourceError
from raydml.files import sha256_file

SECONDS = 600  # for one download
_SHOWN = 3  # lines of a tool's complaint


@dataclass(frozen=True)
class Archive:
    """One fetched file and the folder that it was unpacked into."""

    source: Source
    file: Path
    folder: Path

    def facts(self) -> dict[str, str]:
        """What `source.json` says of it."""
        version, licence = _DESCRIBE[self.source.tool](self)
        return {
            "tool": self.source.tool,
            "package": self.source.package,
            "version": version,
            "licence": licence,
            "file": self.file.name,
            "sha256": sha256_file(self.file),
        }


def fetch(source: Source, folder: Path) -> Path:
    """Download the package's one archive into `folder`, which is empty.

    ResourceError where the tool is missing, fails, takes longer than ten minutes or leaves no archive.
    """
    command = _COMMANDS[source.tool](source)
    run(command, folder)
    files = [path for path in folder.iterdir() if path.is_file()]
    if len(files) != 1:
        raise ResourceError(f"{' '.join(command)} left {len(files)} files in place of one archive")
    return files[0]


def unpack(source: Source, file: Path, folder: Path) -> Archive:
    """Unpack into `folder`. ResourceError where the archive is damaged."""
    folder.mkdir(parents=True)
    try:
        _UNPACK[source.tool](file, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ResourceError(f"{file.name} of {source.package} cannot be unpacked: {error}") from error
    return Archive(source, file, folder)


def run(command: Sequence[str], folder: Path) -> str:
    """The output of a command run in `folder`. ResourceError shows the end of its complaint."""
    tool = command[0]
    if shutil.which(tool) is None:
        raise ResourceError(f"{tool} is not on this machine's PATH: install {_PACKAGES.get(tool, tool)}", tool=tool)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ResourceError(f"{' '.join(command)} gave no answer in {SECONDS} s: is the network there?") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-_SHOWN:]
        raise ResourceError(
            f"{' '.join(command)} failed with exit code {done.returncode}: {' / '.join(lines) or 'it said nothing'}"
        )
    return done.stdout


_PACKAGES = {"npm": "Node.js", "apt-get": "on Debian or Ubuntu", "dpkg-deb": "dpkg"}


def _npm(source: Source) -> list[str]:
    return ["npm", "pack", "--silent", source.package + (f"@{source.version}" if source.version else "")]


def _pip(source: Source) -> list[str]:
    wanted = source.package + (f"=={source.version}" if source.version else "")
    return [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", wanted]


def _apt(source: Source) -> list[str]:
    return ["apt-get", "download", source.package + (f"={source.version}" if source.version else "")]


def _unpack_tar(file: Path, folder: Path) -> None:
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")


def _unpack_wheel(file: Path, folder: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)


def _unpack_deb(file: Path, folder: Path) -> None:
    run(["dpkg-deb", "-x", str(file), str(folder)], folder)


def _describe_npm(archive: Archive) -> tuple[str, str]:
    about = json.loads((archive.folder / "package" / "package.json").read_text())
    return str(about.get("version", "unknown")), str(about.get("license", "unknown"))


def _describe_wheel(archive: Archive) -> tuple[str, str]:
    (path,) = archive.folder.glob("*.dist-info/METADATA")
    about = email.message_from_string(path.read_text(encoding="utf-8"))
    named = about["License-Expression"] or about["License"]
    classified = [line for line in about.get_all("Classifier", []) if line.startswith("License")]
    return str(about["Version"]), str(named or (classified or ["unknown"])[0]).splitlines()[0]


def _describe_deb(archive: Archive) -> tuple[str, str]:
    version = run(["dpkg-deb", "-f", str(archive.file), "Version"], archive.folder).strip()
    texts = sorted(archive.folder.glob("usr/share/doc/*/copyright"))
    lines = [line for path in texts for line in path.read_text(errors="replace").splitlines()]
    licences = dict.fromkeys(line.partition(":")[2].strip() for line in lines if line.startswith("License:"))
    return version, ", ".join(licences) or "see its file copyright"


_COMMANDS: dict[Tool, Callable[[Source], list[str]]] = {"npm": _npm, "pip": _pip, "apt": _apt}
_UNPACK: dict[Tool, Callable[[Path, Path], None]] = {"npm": _unpack_tar, "pip": _unpack_wheel, "apt": _unpack_deb}
_DESCRIBE: dict[Tool, Callable[[Archive], tuple[str, str]]] = {
    "npm": _describe_npm,
    "pip": _describe_wheel,
    "apt": _describe_deb,
}
