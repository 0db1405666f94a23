"""A real Postgres of the test's own: Debian's programs, a data folder and a socket in a folder, never root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPTIONS = "-c listen_addresses='' -c fsync=off -c max_connections=60 -c shared_buffers=16MB"


def why_not() -> str | None:
    """What is missing for one; None where it can be started."""
    if _programs() is None:
        return "POSTGRES IS NOT INSTALLED (initdb, pg_ctl): the store was tested on SQLite alone"
    if os.getuid() == 0 and shutil.which("runuser") is None:
        return "POSTGRES REFUSES ROOT, and there is no runuser: the store was tested on SQLite alone"
    return None


@contextmanager
def postgres() -> Iterator[str]:
    """A server; its URL up to the name of a database, as a format: `url.format("postgres")`."""
    programs = _programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="raydml-postgres-", dir="/tmp"))
    user = _user()
    shutil.chown(folder, user.pw_name)
    as_user = ["runuser", "-u", user.pw_name, "--"] if os.getuid() == 0 else []

    def run(program: str, *words: str) -> None:
        with (folder / "output").open("ab") as output:
            command = [*as_user, str(programs / program), "-D", str(folder / "data"), *words]
            subprocess.run(command, check=True, stdout=output, stderr=output, cwd=folder, timeout=300)

    run("initdb", "--auth=trust", "--no-sync", "--encoding=UTF8", "--username=raydml")
    run("pg_ctl", "start", "--wait", "--timeout=240", "-l", str(folder / "log"), "-o", f"{OPTIONS} -k {folder}")
    try:
        yield f"postgresql://raydml@/{{}}?host={folder}"
    finally:
        run("pg_ctl", "stop", "--wait", "--mode=immediate")
        shutil.rmtree(folder)


def _user() -> pwd.struct_passwd:
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid())
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


def _programs() -> Path | None:
    """The newest version's folder."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("pg_ctl")
    return Path(on_path).parent if on_path else None


def say(reason: str) -> None:
    """Past pytest's capture: nobody is to believe that this was tested."""
    print(f"\n*** {reason} ***", file=sys.__stderr__, flush=True)
