"""What an operator asks a server: is it alive, is it ready and if not why, what do its jobs do."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from api import readiness
from api.service import Service
from raydml.jobs.ids import DEFAULT_PROJECT, milliseconds
from raydml.jobs.store import JobStore
from raydml.jobs.supervisor import Supervisor
from tests.api.conftest import Connect
from tests.jobs.cluster import FakeAttempt, FakeCluster
from tests.jobs.conftest import a_spec

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
TOKEN = "a-token-of-this-test"


async def checks(client: Any) -> dict[str, dict[str, Any]]:
    answer = await client.get("/readyz?verbose")
    assert answer.status_code == 200, answer.text
    return {check.pop("name"): check for check in answer.json()["checks"]}


async def test_readyz_tells_of_each_check_when_asked_and_jobs_may_wait(connect: Connect) -> None:
    async with connect() as client:
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        found = await checks(client)
    assert {name: (each["ok"], each["required"]) for name, each in found.items()} == {
        "database": (True, True),
        "storage": (True, True),
        "disk": (True, True),
        "ray": (True, False),
        "supervisor": (False, False),
    }
    assert re.fullmatch(r"\d+\.\d\d GiB are free", found["disk"]["detail"])
    assert "starts with the next job" in found["ray"]["detail"]
    assert "nobody brings jobs to their end" in found["supervisor"]["detail"]


async def test_a_supervisor_that_fell_silent_is_told_with_its_age(connect: Connect, home: Path) -> None:
    now = milliseconds()
    async with connect() as client:
        supervisor = Supervisor(served(client).database, home, FakeCluster(), clock=lambda: now)
        now -= 60_000
        assert supervisor.tick()
        late = (await checks(client))["supervisor"]
        now += 60_000
        assert supervisor.tick()
        well = (await checks(client))["supervisor"]
        supervisor.close()
        gone = (await checks(client))["supervisor"]
    assert not late["ok"] and re.search(r"last heard of 6\d\.\d s ago, and its lease lasts 15 s", late["detail"])
    assert well["ok"]
    assert not gone["ok"] and "nobody" in gone["detail"]


async def test_a_full_disk_is_not_ready_and_says_how_full(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "FREE_BYTES", 1 << 62)
    async with connect() as client:
        refused = await client.get("/readyz")
        told = await client.get("/readyz?verbose")
    for answer in (refused, told):
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:raydml:problem:not-ready")
        assert re.match(r"disk: \d+\.\d\d GiB are free, less than 4294967296.00", answer.json()["detail"])
    assert [each["path"] for each in refused.json()["errors"]] == ["disk"]
    assert [each["path"] for each in told.json()["errors"]] == ["database", "storage", "disk", "ray", "supervisor"]


class Dashboard(BaseHTTPRequestHandler):
    """What a cluster's head answers to whoever has the token."""

    def do_GET(self) -> None:
        welcome = self.headers["Authorization"] == f"Bearer {TOKEN}" and self.path == "/api/version"
        self.send_response(200 if welcome else 401)
        self.end_headers()
        self.wfile.write(b'{"ray_version": "2.60.0"}' if welcome else b"no")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def head() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


async def test_a_cluster_is_asked_with_its_token(
    connect: Connect, head: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(ray_address=head) as client:
        assert (await checks(client))["ray"] == {
            "ok": False,
            "required": False,
            "detail": "the cluster answers 401",
        }
        home.joinpath("token").write_text(f"{TOKEN}\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))
        assert (await checks(client))["ray"]["detail"] == "the cluster answers, Ray 2.60.0"
    async with connect(ray_address="http://127.0.0.1:9") as client:
        assert "does not answer: ConnectError" in (await checks(client))["ray"]["detail"]


async def test_a_database_that_fails_is_not_ready_and_its_words_stay_in_the_log(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect() as client:
        service = served(client)

        def away(*_: object) -> float:
            raise OSError("could not connect to postgresql://someone:secret@db.internal")

        monkeypatch.setattr(readiness, "lease_age", away)
        refused = await client.get("/readyz")
        assert service.database is not None
    assert refused.status_code == 503
    assert "database: fails with OSError" in refused.json()["detail"] and "secret" not in refused.text


async def test_metrics_tell_of_jobs_by_state_and_of_those_at_work(connect: Connect, home: Path) -> None:
    async with connect() as client:
        service = served(client)
        store, cluster = JobStore(service.database, home), FakeCluster()
        supervisor = Supervisor(service.database, home, cluster)
        batch = {"classes": 8, "samples": 4, "virtual_workers": 4}
        job = store.create(a_spec(batch=batch)).id
        supervisor.tick()
        waiting = store.create(a_spec(parallel={"workers": {"min": 8, "max": 8}}, batch=batch | {"virtual_workers": 8}))
        attempt = FakeAttempt(cluster, home, job)
        attempt.begin(workers=4)
        for step in (1, 2, 3):
            attempt.step(step, workers=4)
        attempt.change(3, "death")
        attempt.change(4, "join")
        attempt.change(2, "lost")
        supervisor.tick()
        text = (await client.get("/metrics")).text
    assert waiting.state == "queued"
    samples = dict(re.findall(r"^(raydml_(?:job|super).*?) (\S+)$", text, re.MULTILINE))
    states = {name: int(value) for name, value in samples.items() if name.startswith("raydml_jobs{")}
    assert states['raydml_jobs{state="running"}'] == 1 and states['raydml_jobs{state="queued"}'] == 1
    assert sum(states.values()) == 2 and len(states) == 10, "every state has a number"
    labels = f'{{project="{DEFAULT_PROJECT}",job="{job}"}}'
    assert samples[f"raydml_job_samples{labels}"] == str(3 * 8 * 4)
    assert samples[f"raydml_job_recoveries{labels}"] == "2", "a death and a loss; who joins is no loss"
    assert samples[f"raydml_job_workers{labels}"] in ("2", "4"), "by the last line that was read"
    assert 0 <= float(samples["raydml_supervisor_lease_seconds"]) < 60


def served(client: Any) -> Service:
    """The service of the application that the client calls."""
    service: Service = client._transport.app.state.service
    return service
