"""A real `raydml serve`: sockets, signals, several processes, and what a kill leaves."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from raydml.cli import app
from raydml.search import Collection
from tests.api.conftest import server

pytestmark = pytest.mark.timeout(300)
POINTS = "/v1/collections/c/points"


def connections() -> httpx2.Client:
    """A client that takes a connection of its own for each request, so that any process may answer it."""
    return httpx2.Client(timeout=100, limits=httpx2.Limits(max_keepalive_connections=0))


def upsert(client: httpx2.Client, url: str, number: int) -> int:
    """One point; gives the lsn."""
    body = {"ids": [number], "vectors": [[1.0, number]]}
    answer = client.post(f"{url}{POINTS}", json=body)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["lsn"])


def ids(home: Path) -> list[int | str]:
    with Collection.open(home / "collections" / "c") as collection:
        collection.check()
        return collection.ids


def test_several_processes_write_and_each_reads_what_any_of_them_wrote(home: Path) -> None:
    with server(home, "--workers", "2") as (url, _), connections() as client:
        client.put(f"{url}/v1/collections/c", json={"dimension": 2})

        def write_and_read(number: int) -> None:
            query = {"ids": [number], "min_lsn": upsert(client, url, number)}
            answer = client.post(f"{url}{POINTS}:get", json=query)
            assert answer.status_code == 200, answer.text

        count = 0
        with ThreadPoolExecutor(8) as pool:
            while _writers(home) < 2:  # the second process may start later
                list(pool.map(write_and_read, range(count, count + 40)))
                count += 40
            list(pool.map(write_and_read, range(count, count + 40)))
    assert sorted(ids(home)) == list(range(count + 40))  # type: ignore[type-var]


def test_a_request_that_was_begun_is_finished_after_sigterm_and_nothing_acknowledged_is_lost_by_kill_9(
    home: Path,
) -> None:
    told = threading.Event()
    with server(home) as (url, process):
        httpx2.put(f"{url}/v1/collections/c", json={"dimension": 2}, timeout=100)

        def halves() -> Iterator[bytes]:
            yield b'{"ids": ["late"], "vect'
            process.send_signal(signal.SIGTERM)
            while _listens(url):
                told.wait(0.05)
            yield b'ors": [[1.0, 2.0]]}'

        with httpx2.Client(timeout=100) as client:
            headers = {"content-type": "application/json"}
            answer = client.post(f"{url}{POINTS}", content=halves(), headers=headers)
        assert answer.status_code == 200, answer.text
        process.wait(60)
    assert ids(home) == ["late"]

    acknowledged: list[int] = []
    with server(home) as (url, process), connections() as client:

        def write() -> None:
            for number in range(10**6):
                upsert(client, url, number)
                acknowledged.append(number)
                if number == 20:
                    told.set()

        def until_killed() -> None:
            with pytest.raises(httpx2.TransportError):
                write()

        writer = threading.Thread(target=until_killed)
        writer.start()
        assert told.wait(200)
        process.kill()
        writer.join()
    found = ids(home)
    assert found in (["late", *acknowledged], ["late", *acknowledged, len(acknowledged)])


def test_a_body_that_is_too_long_is_refused_on_a_socket_before_it_is_read(home: Path) -> None:
    with server(home, "--set", "max_body_bytes=1024") as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n")
            answer = connection.makefile("rb").read().decode()  # to the end: the server closes
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(
                b"PUT /v1/collections/c HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            )
            connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + bytes(1024) + b"\r\n1\r\n \r\n")
            chunked = connection.makefile("rb").read().decode()
    for each in (answer, chunked):
        assert each.startswith("HTTP/1.1 413 "), each
        assert "application/problem+json" in each and "1024 are taken" in each
    log = (home / "server.log").read_text()
    assert re.search(r"time=\S+ level=info event=request request=\w{32} .*status=413", log), log
    assert all(line.startswith(("raydml: ", "time=")) for line in log.splitlines()), log


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_of_the_readme_answer(home: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text().partition("## Over HTTP")[2]
    block = text.split("```")[1]
    with server(home) as (url, _):
        lines = [line.replace("http://127.0.0.1:8080", url) for line in block.splitlines() if "@query.png" not in line]
        script = "\n".join(line.replace("curl ", "curl --silent --show-error --fail-with-body ") for line in lines[2:])
        done = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    made, written, found = (json.loads(each) for each in re.sub(r"}{", "}\n{", done.stdout).splitlines())
    assert (made["dimension"], written["lsn"]) == (3, made["lsn"] + 1)
    assert [(hit["id"], hit["payload"]) for hit in found["results"][0]] == [("a", {"who": "Ada"})]


def test_a_public_address_is_refused_with_the_reason() -> None:
    refused = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    assert refused.exit_code == 2
    assert "0.0.0.0 can be reached by other machines" in refused.stderr
    wrong = CliRunner().invoke(app, ["serve", "--set", "max_k=none", "--set", "speed=1"])
    assert wrong.exit_code == 2
    assert "max_k (RAYDML_MAX_K): " in wrong.stderr and "speed (RAYDML_SPEED): unknown setting" in wrong.stderr


def test_a_port_that_is_taken_is_a_failure_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-c", "from raydml.cli import main; main()", "serve", "--port", str(port)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def _writers(home: Path) -> int:
    """How many processes have answered writes, by the log."""
    return len(set(re.findall(rf"path={POINTS} status=200 .*process=(\d+)", (home / "server.log").read_text())))


def _listens(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=60).close()
    except ConnectionError:
        return False
    return True
