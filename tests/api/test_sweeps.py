"""Sweeps over HTTP, without a supervisor: what is refused, kept, planned, listed and told."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

from api.job_desk import JobDesk
from raydml.jobs.sweeping import study_folder
from tests.api.conftest import Connect
from tests.api.test_jobs import a_spec, kind
from tests.unit.studies import Synthetic, drive, new_study, study_spec

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
SWEEPS = "/v1/sweeps"


def a_sweep(**tune: Any) -> dict[str, Any]:
    space = {"loss.margin": {"uniform": [0.05, 0.5]}}
    return a_spec(
        batch={"classes": 8, "samples": 2, "virtual_workers": 4},
        parallel={"workers": {"min": 1, "max": 2}},
        tune={"space": space, "trials": 6} | tune,
    )


class Desk:
    """The application's own, taken while a client is connected."""

    def __call__(self, app: FastAPI) -> None:
        self.desk: JobDesk = app.state.service.jobs


async def test_each_kind_of_spec_is_sent_to_its_own_place(connect: Connect) -> None:
    async with connect() as client:
        for path, spec, way in (("/v1/jobs", a_sweep(), SWEEPS), (SWEEPS, a_spec(), "/v1/jobs")):
            for place in (path, f"{path}:plan"):
                refused = await client.post(place, json={"spec": spec})
                assert kind(refused) == (422, "spec-error")
                assert [each["path"] for each in refused.json()["errors"]] == ["spec.tune"]
                assert f"POST {'it' if way == SWEEPS else 'the spec'} to {way}" in refused.json()["detail"]


async def test_a_study_that_cannot_be_is_refused_with_the_arithmetic_before_anything_is_kept(connect: Connect) -> None:
    grid = {"space": {"loss.margin": {"choice": [0.1, 0.2, 0.3]}}, "algorithm": {"kind": "grid"}, "trials": 2}
    async with connect(cpus=4) as client:
        for place in (SWEEPS, f"{SWEEPS}:plan"):
            full = await client.post(place, json={"spec": a_sweep(concurrency=9)})
            assert kind(full) == (422, "no-room")
            assert "9 x (one process, 1 CPUs) = 9 CPUs, and the cluster has 4 CPUs, room for 4" in full.json()["detail"]
            refused = await client.post(place, json={"spec": a_sweep(**grid)})
            assert kind(refused) == (422, "spec-error")
            assert "the grid has 3 configurations, and tune.trials is 2" in refused.json()["detail"]
        assert (await client.get(SWEEPS)).json()["items"] == []


async def test_a_sweep_is_made_once_for_its_key_shown_changed_and_stopped(connect: Connect) -> None:
    desk = Desk()
    async with connect(desk, check_seconds=200) as client:
        key = {"idempotency-key": "once"}
        made = await client.post(SWEEPS, json={"spec": a_sweep(), "labels": {"team": "search"}}, headers=key)
        assert made.status_code == 201, made.text
        again = await client.post(SWEEPS, json={"spec": a_sweep(), "labels": {"team": "search"}}, headers=key)
        assert again.json() == made.json()
        sweep, path = made.json(), made.headers["location"]
        assert path == f"{SWEEPS}/{sweep['id']}" and (sweep["kind"], sweep["state"]) == ("sweep", "queued")
        assert sweep["workers"] == {"min": 1, "max": 6}
        assert (await client.get(path)).json() == sweep
        job = desk.desk.store.create(a_spec())
        assert kind(await client.get(f"{SWEEPS}/{job.id}")) == (404, "job-not-found")
        assert kind(await client.post(f"{SWEEPS}/{job.id}/kill")) == (404, "job-not-found")
        assert [each["id"] for each in (await client.get(SWEEPS)).json()["items"]] == [sweep["id"]]
        assert [each["id"] for each in (await client.get("/v1/jobs")).json()["items"]] == [job.id]
        stale = await client.patch(path, json={"priority": 3}, headers={"if-match": '"99"'})
        assert kind(stale) == (412, "changed-since")
        assert (await client.patch(path, json={"priority": 3})).json()["priority"] == 3
        assert kind(await client.patch(path, json={"max_workers": 3}))[0] == 422
        for verb, state in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
            done = await client.post(f"{path}/{verb}")
            assert (done.status_code, done.json()["state"]) == (202, state)
        assert kind(await client.post(f"{path}/kill")) == (409, "job-conflict")
        events = (await client.get(f"{path}/events")).json()["items"]
        assert [event["data"]["verb"] for event in events if event["type"] == "verb"] == ["pause", "resume", "cancel"]
        assert (await client.get(f"{path}/logs")).json()["items"] == []
        plan = (await client.post(f"{SWEEPS}:plan", json={"spec": a_sweep(seeds=2)})).json()
        assert (plan["study"]["configurations"], plan["study"]["trials"], plan["study"]["trial"]["cpus"]) == (6, 12, 1)
        assert plan["batches"]["possible"]


async def test_trials_are_told_from_the_study_the_best_first(connect: Connect) -> None:
    desk = Desk()
    spec = study_spec({"trials": 4})
    async with connect(desk) as client:
        sweep = desk.desk.store.create(spec.model_dump(mode="json"))
        path = f"{SWEEPS}/{sweep.id}/trials"
        assert (await client.get(path)).json()["items"] == []
        folder = study_folder(desk.desk.settings.home, sweep.id)
        drive(new_study(folder, spec), Synthetic(lambda trial, step: 1 - abs(trial["loss"]["margin"] - 0.3)))
        board = (await client.get(path)).json()
        found = [row["score"] for row in board["items"]]
        assert found == sorted(found, reverse=True) and len(found) == board["total"] == 4
        assert [row["score"] for row in (await client.get(f"{path}?limit=1")).json()["items"]] == found[:1]
        assert board["best"] == board["items"][0]["configuration"]


async def test_a_leaderboard_says_who_is_worse_than_the_best_and_who_may_be_as_good(connect: Connect) -> None:
    desk = Desk()
    space = {"loss.margin": {"choice": [0.3, 0.301, 0.902]}}
    spec = study_spec({"space": space, "algorithm": {"kind": "grid"}, "trials": 3, "seeds": 3})

    def score(trial: dict[str, Any], step: int) -> float:
        margin = trial["loss"]["margin"]
        chance = trial["seed"] * round(1000 * margin) % 5
        return float(1 - abs(margin - 0.3) + 0.01 * chance)

    async with connect(desk) as client:
        sweep = desk.desk.store.create(spec.model_dump(mode="json"))
        path = f"{SWEEPS}/{sweep.id}/trials"
        assert (await client.get(path)).json()["verdict"] is None
        drive(new_study(study_folder(desk.desk.settings.home, sweep.id), spec), Synthetic(score))
        board = (await client.get(path)).json()
    rows = {row["values"]["loss.margin"]: row for row in board["items"]}
    far = rows[0.902]
    assert far["verdict"] == "worse" and far["p_value"] < 0.05
    low, high = far["difference_interval"]
    assert low < far["difference"] < high < 0
    assert {rows[0.3]["verdict"], rows[0.301]["verdict"]} == {"best", "not significant"}
    assert "1 significantly worse, 1 not distinguishable" in board["verdict"]
