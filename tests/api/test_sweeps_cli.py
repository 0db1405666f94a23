"""`raydml sweeps`: what is sent, what is shown, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.api.scripted import HOLD, answer, events, problem, scripted
from tests.api.test_client_cli import call, job, page, told
from tests.api.test_client_transport import END, JOB

pytestmark = pytest.mark.timeout(120)
SPEC = "name: a\ndata: {kind: glyphs}\nloss: {kind: triplet}\n"
TUNE = "tune: {space: {loss.margin: {uniform: [0.1, 0.5]}}, trials: 2}\n"


def sweep(**changes: Any) -> bytes:
    return job(**{"id": "job_1", "kind": "sweep", **changes})


def row(number: int, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "configuration": number, "values": {"loss": "triplet", "loss.margin": 0.1 * number}, "state": "trained",
        "step": 90, "score": 0.5 - 0.1 * number, "deviation": None, "by_seed": {"0": 0.5}, "seconds": 1.25, "bytes": 8,
        "on_front": number == 0, "lineage": [], "reason": None,
    }  # fmt: skip
    return known | changes


def board(*rows: dict[str, Any], **changes: Any) -> bytes:
    known = {"state": "running", "objective": "map_at_r", "cost": None, "best": 0, "total": len(rows), "items": rows}
    return answer(200, known | changes)


def frame(seq: int, **data: Any) -> str:
    return f"id: {seq}\ndata: {json.dumps(told(seq, 'trial', data))}\n\n"


def test_what_is_asked_of_a_sweep_goes_to_its_path() -> None:
    for verb in ("cancel", "kill", "pause", "resume"):
        with scripted(sweep(state="stopping")) as script:
            result = call("sweeps", verb, "job_1", "--url", script.url)
        assert result.exit_code == 0 and f"sweep job_1: {verb} is asked for, and it is stopping now" in result.stdout
        assert (script.seen[0].method, script.seen[0].path) == ("POST", f"/v1/sweeps/job_1/{verb}")
    with scripted(problem(409, "job-conflict")) as script:
        refused = call("sweeps", "pause", "job_1", "--url", script.url)
    assert refused.exit_code == 1 and "as told" in refused.stderr


def test_a_sweep_is_created_of_a_spec_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + TUNE)
    with scripted(sweep(state="queued")) as script:
        made = call("sweeps", "create", path, "--set", "tune.trials=5", "--label", "a=b", "--url", script.url, "--json")
    assert made.exit_code == 0 and json.loads(made.stdout)["state"] == "queued"
    sent = json.loads(script.seen[0].body)
    assert (script.seen[0].method, script.seen[0].path) == ("POST", "/v1/sweeps")
    assert (sent["spec"]["tune"]["trials"], sent["labels"]) == (5, {"a": "b"})
    path.write_text(SPEC + TUNE.replace("uniform", "unifrom"))
    with scripted() as script:
        wrong = call("sweeps", "create", path, "--url", script.url)
    assert wrong.exit_code == 2 and not script.seen and "spec.yaml:4" in wrong.stderr


def test_lists_trials_and_events_are_tables_lines_or_documents() -> None:
    listed = [{**JOB, "id": f"job_{n}", "progress": {"trials": {"created": 3, "trained": n}}} for n in range(3)]
    listing = answer(200, {"items": listed, "next_cursor": None})
    with scripted(listing) as script:
        found = call("sweeps", "list", "--state", "running", "--limit", 2, "--url", script.url, "--json")
    assert [one["id"] for one in json.loads(found.stdout)["sweeps"]] == ["job_0", "job_1"]
    assert script.seen[0].path.startswith("/v1/sweeps?") and "state=running" in script.seen[0].path
    with scripted(listing) as script:
        assert "3 created, 2 trained" in " ".join(call("sweeps", "list", "--url", script.url).stdout.split())
    rows = [row(0, deviation=0.01), row(1, score=None, state="failed", reason="it died")]
    with scripted(board(*rows, total=7, cost="seconds")) as script:
        shown = call("sweeps", "trials", "job_1", "--limit", 2, "--url", script.url).stdout
    assert script.seen[0].path == "/v1/sweeps/job_1/trials?limit=2"
    assert "0.5000 ± 0.0100" in shown and "1.25" in shown and "it died" in shown and "and 5 more" in shown
    assert shown.index("0.5000") < shown.index("it died")
    with scripted(board(*rows)) as script:
        assert json.loads(call("sweeps", "trials", "job_1", "--url", script.url, "--json").stdout)["total"] == 2
    happened = [
        told(1, "trial", {"event": "created", "configuration": 4, "values": {"loss.margin": 0.25}, "time": 1.5}),
        told(2, "trial", {"event": "trained", "trial": "00004-0", "step": 90, "score": 0.123456, "attempt": 1}),
        told(3, "trial", {"event": "budget", "seconds": 7.5}),
    ]
    with scripted(page(*happened)) as script:
        lines = call("sweeps", "events", "job_1", "--url", script.url).stdout.splitlines()
    assert [line.split("  ", 2)[2].strip().split("  ", 1)[1] for line in lines] == [
        "configuration 4 created  values loss.margin = 0.25",
        "trial 00004-0 trained  step 90  score 0.1235",
        "budget  seconds 7.5",
    ]
    assert script.seen[0].path.startswith("/v1/sweeps/job_1/events?")


def test_a_watched_sweep_tells_its_trials_and_ends_with_its_leaderboard() -> None:
    for state, code in (("succeeded", 0), ("failed", 1)):
        stream = events(frame(1, event="trained", trial="00000-0", step=90, score=0.5), END, whole=True)
        with scripted(stream, sweep(state=state), board(row(0), row(1), state=state)) as script:
            watched = call("sweeps", "watch", "job_1", "--url", script.url, "--json")
        assert watched.exit_code == code, watched.output
        ended = json.loads(watched.stdout)
        assert (ended["state"], ended["trials"]["best"]) == (state, 0)
        assert "trial 00000-0 trained  step 90  score 0.5" in watched.stderr


def test_ctrl_c_leaves_a_watched_sweep_running_and_says_so() -> None:
    with scripted(events(frame(1, event="created", configuration=0)) + HOLD) as script:
        command = [sys.executable, "-c", "from raydml.cli import main; main()", "sweeps", "watch", "job_1"]
        with subprocess.Popen(
            [*command, "--url", script.url], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        ) as process:
            assert process.stderr is not None
            assert "configuration 0 created" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
    assert process.returncode == 130
    assert "sweep job_1 goes on" in said and "raydml sweeps cancel job_1" in said
    assert [seen.method for seen in script.seen] == ["GET"]
