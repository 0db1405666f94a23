"""`raydml jobs` and `raydml collections`: answers on stdout, the rest on stderr, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from raydml.cli import app
from raydml.client import Client
from tests.api.scripted import answer, events, problem, scripted
from tests.api.test_client_transport import END, JOB, event
from tests.api.test_models import finished

pytestmark = pytest.mark.timeout(120)
MEMBERSHIP = {"cause": "start", "step": 0, "before": 0, "after": 2, "members": [], "down": 0.0, "lost": 0, "note": ""}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(seq: int, type: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"seq": seq, "time": "2026-11-22T02:03:29.123Z", "type": type, "data": data}


def job(**changes: Any) -> bytes:
    return answer(200, {**JOB, "spec": {"train": {"steps": 9}}, **changes})


def page(*items: dict[str, Any]) -> bytes:
    return answer(200, {"items": items, "next": items[-1]["seq"] if items else 0})


def test_a_collection_is_made_filled_searched_copied_and_removed(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    lines = [json.dumps({"id": f"i{row}", "payload": {"even": row % 2 == 0}}) for row in range(7)]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))

    def collections(*arguments: object) -> Any:
        result = call("collections", *arguments, "--local", tmp_path / "home", "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert collections("create", "a", "--dimension", 3)["points"] == 0
    filled = collections("upsert", "a", tmp_path / "vectors.npy", "--items", tmp_path / "items.jsonl", "--batch", 3)
    assert filled["points"] == 7
    found = collections("search", "a", "--id", "i2", "-k", 9, "--filter", "even=true")
    assert {hit["id"] for hit in found["results"][0]["hits"]} == {"i0", "i4", "i6"}
    np.save(tmp_path / "query.npy", vectors[5])
    by_vector = collections("search", "a", "--vector", tmp_path / "query.npy", "-k", 1)
    assert by_vector["results"][0]["hits"][0]["id"] == "i5"
    assert collections("snapshot", "a", "now") == {"collection": "a", "snapshots": ["now"]}
    assert collections("restore", "a", "now", "--to", "b")["points"] == 7
    assert collections("switch", "current=b")["aliases"] == collections("aliases")["aliases"] == {"current": "b"}
    assert collections("get", "current")["name"] == "b"
    assert collections("stats", "a")["points"] == 7
    assert collections("delete", "a") == {"deleted": "a"}
    assert collections("list") == {"collections": ["b"]}
    gone = call("collections", "get", "a", "--local", tmp_path / "home")
    assert (gone.exit_code, gone.stdout) == (1, "") and "no collection or alias a" in gone.stderr


def test_an_id_that_is_typed_is_a_number_where_no_point_has_it_as_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYDML_SUPERVISE", "false")
    vectors = np.eye(3)
    with Client(local=tmp_path) as client:
        client.collections.create("a", 3)
        client.collections["a"].upsert(["x", "y", "z", 7, "8", 8], vectors[[0, 1, 2, 0, 1, 2]])
    for id, nearest in (("7", "x"), ("8", "y"), ("x", 7)):
        result = call("collections", "search", "a", "--id", id, "-k", 1, "--local", tmp_path, "--json")
        assert result.exit_code == 0, result.output
        assert [hit["id"] for hit in json.loads(result.stdout)["results"][0]["hits"]] == [nearest]
    gone = call("collections", "search", "a", "--id", 9, "--local", tmp_path)
    assert gone.exit_code == 2 and "[9]" in gone.stderr


def test_models_are_registered_promoted_listed_and_fetched(tmp_path: Path) -> None:
    digest = finished(tmp_path / "runs" / "r")

    def models(*arguments: object) -> Any:
        result = call("models", *arguments, "--local", tmp_path, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    made = models("register", "--run", "r", "--name", "faces")
    assert (made["name"], made["sha256"]) == ("faces", digest)
    assert models("promote", made["id"], "production")["aliases"] == ["production"]
    assert [one["id"] for one in models("list", "--alias", "production")["models"]] == [made["id"]]
    assert models("list", "--name", "others") == {"models": []}
    assert models("get", made["id"]) == models("promote", made["id"], "production")
    assert [move["alias"] for move in models("promotions", made["id"])["promotions"]] == ["production"]
    card = Path(models("download", made["id"], "README.md", "--to", tmp_path)["path"])
    assert card.read_text() == "# A card\n"
    with tarfile.open(models("export", made["id"], "--to", tmp_path)["path"]) as archive:
        assert f"{made['id']}/README.md" in archive.getnames()
    shown = call("models", "list", "--local", tmp_path)
    assert shown.exit_code == 0 and "production" in shown.stdout and "0.500" in shown.stdout
    assert call("models", "register", "--local", tmp_path).exit_code == 2
    assert call("models", "promote", made["id"], "x", "--expected", "mdl_other", "--local", tmp_path).exit_code in (
        1,
        2,
    )


def test_a_webhook_shows_its_secret_once_and_what_became_of_its_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYDML_WEBHOOK_HOSTS", '["hooks.example"]')

    def webhooks(*arguments: object) -> Any:
        result = call("webhooks", *arguments, "--local", tmp_path, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    made = webhooks("create", "https://hooks.example/a")
    listed = webhooks("list")["webhooks"]
    assert [one["id"] for one in listed] == [made["id"]] and made["secret"] not in json.dumps(listed)
    assert webhooks("deliveries", made["id"]) == {"deliveries": []}
    assert webhooks("delete", made["id"]) == {"deleted": made["id"]}
    assert webhooks("list") == {"webhooks": []}
    assert call("webhooks", "create", "https://elsewhere.example/", "--local", tmp_path).exit_code == 2


def test_a_wrong_spec_and_a_refused_request_are_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: a\ndata: {kind: glyphs}\nloss: {kind: triplet, marign: 1}\n")
    with scripted() as script:
        wrong = call("jobs", "create", tmp_path / "spec.yaml", "--url", script.url, "--json")
    assert wrong.exit_code == 2 and not script.seen
    assert "spec.yaml:3" in json.loads(wrong.stdout)["error"]["message"]
    with scripted(problem(422, "invalid-request")) as script:
        assert call("jobs", "resize", "job_1", "2:4", "--url", script.url).exit_code == 2
    assert json.loads(script.seen[0].body) == {"workers": {"min": 2, "max": 4}}
    assert call("jobs", "resize", "job_1", "many").exit_code == 2
    with scripted(problem(409, "job-conflict")) as script:
        refused = call("jobs", "cancel", "job_1", "--url", script.url)
    assert refused.exit_code == 1 and "as told" in refused.stderr


def test_what_is_asked_of_a_job_goes_to_its_path(tmp_path: Path) -> None:
    for verb in ("cancel", "kill", "pause", "resume"):
        with scripted(job(state="stopping")) as script:
            result = call("jobs", verb, "job_1", "--url", script.url)
        assert result.exit_code == 0 and f"{verb} is asked for" in result.stdout
        assert (script.seen[0].method, script.seen[0].path) == ("POST", f"/v1/jobs/job_1/{verb}")
    with scripted(job(id="job_2")) as script:
        changes = ("--set", "loss.margin=0.5", "--set", "train.steps=9")
        call("jobs", "fork", "job_1", "--step", 5, *changes, "--url", script.url)
    assert json.loads(script.seen[0].body) == {"step": 5, "changes": {"loss": {"margin": 0.5}, "train": {"steps": 9}}}
    with scripted(job()) as script:
        call("jobs", "change", "job_1", "--label", "a=b", "--label", "c=", "--priority", 3, "--url", script.url)
    assert json.loads(script.seen[0].body) == {"labels": {"a": "b", "c": None}, "priority": 3}
    (tmp_path / "spec.yaml").write_text("name: a\ndata: {kind: glyphs}\nloss: {kind: triplet}\n")
    with scripted(job()) as script:
        made = call(
            "jobs", "create", tmp_path / "spec.yaml", "--set", "train.steps=7", "--label", "a=b", "--url", script.url
        )
    assert made.exit_code == 0 and "glyphs" in made.stdout
    sent = json.loads(script.seen[0].body)
    assert (sent["spec"]["train"]["steps"], sent["labels"]) == (7, {"a": "b"})


def test_lists_events_and_metrics_are_documents_or_lines() -> None:
    listed = answer(200, {"items": [{**JOB, "id": f"job_{n}"} for n in range(3)], "next_cursor": None})
    with scripted(listed) as script:
        found = call("jobs", "list", "--state", "running", "--limit", 2, "--url", script.url, "--json")
    assert [one["id"] for one in json.loads(found.stdout)["jobs"]] == ["job_0", "job_1"]
    with scripted(page(told(1, "membership", MEMBERSHIP), told(2, "verb", {"verb": "pause", "by": "ada"}))) as script:
        shown = call("jobs", "events", "job_1", "--url", script.url).stdout
    assert "start at step 0: 0 -> 2 workers" in shown and "pause was asked for by ada" in shown
    with scripted(events(event(1), END, whole=True)) as script:
        followed = call("jobs", "events", "job_1", "--follow", "--url", script.url, "--json")
    assert json.loads(followed.stdout)["seq"] == 1
    metric = {"seq": 1, "attempt": 1, "step": 4, "time": None, "data": {"loss": 0.25, "step": 4}}
    with scripted(page(metric)) as script:
        assert "step 4  loss 0.25" in call("jobs", "metrics", "job_1", "--url", script.url).stdout


def test_a_watched_job_shows_its_steps_and_ends_with_its_state() -> None:
    ended = {"state": "failed", "reason": {"code": "budget_exhausted", "message": "it died 5 times"}}
    for changes, code in (({"state": "succeeded", "result": {"model_sha256": "ab"}}, 0), (ended, 1)):
        script_of = (
            job(progress={"step": 3, "steps": 9, "loss": 0.5, "workers": 2}),
            page(told(1, "membership", MEMBERSHIP), told(2, "watch", {"step": 3, "message": "collapse"})),
            job(**changes),
            page(),
        )
        with scripted(*script_of) as script:
            watched = call("jobs", "watch", "job_1", "--url", script.url, "--json")
        assert watched.exit_code == code and json.loads(watched.stdout)["state"] == changes["state"]
        assert "running 3/9  loss 0.5000  2 workers" in watched.stderr
        assert "0 -> 2 workers" in watched.stderr and "warning: step 3: collapse" in watched.stderr
        assert [seen.path for seen in script.seen][1::2] == [
            f"/v1/jobs/job_1/events?after={n}&limit=500" for n in (0, 2)
        ]


def test_ctrl_c_leaves_a_watched_job_running_and_says_so() -> None:
    with scripted(*[job(progress={"step": 3, "steps": 9}), page()] * 1000) as script:
        command = [sys.executable, "-c", "from raydml.cli import main; main()", "jobs", "watch", "job_1"]
        with subprocess.Popen(
            [*command, "--url", script.url], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        ) as process:
            assert process.stderr is not None
            assert "running 3/9" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
    assert process.returncode == 130
    assert "job job_1 goes on" in said and "raydml jobs cancel job_1" in said
    assert {seen.method for seen in script.seen} == {"GET"}


def test_an_unreachable_server_is_one_message() -> None:
    result = call("jobs", "list", "--url", "http://127.0.0.1:1", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["error"]["kind"] == "Unreachable"
    assert "raydml serve" in result.stderr and "Traceback" not in result.stderr
