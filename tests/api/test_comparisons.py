"""Comparisons over HTTP: what `raydml.compare` says of the same runs, and refusals; by client and command too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fastapi import FastAPI
from typer.testing import CliRunner

import raydml
from raydml.cli import app as commands
from raydml.errors import Conflict
from raydml.evaluation.results import Asked, Results, write_results
from raydml.files import write_bytes, write_json
from raydml.jobs.database import Database
from raydml.jobs.ids import new_id
from raydml.jobs.store import JobStore
from raydml.spec import JobSpec
from tests.api.conftest import Connect

pytestmark = pytest.mark.timeout(60)
ASKED = Asked("retrieval", "cosine", "test", "q" * 64, "g" * 64, 30)


def measured(folder: Path, seed: int, skill: float, asked: Asked = ASKED) -> None:
    """The folder of a run that was measured: 30 queries, of which a share `skill` is right."""
    spec = {"name": "small", "seed": seed, "data": {"kind": "glyphs"}, "loss": {"kind": "triplet", "margin": skill}}
    document = JobSpec.model_validate(spec).model_dump(mode="json")
    write_bytes(folder / "spec.yaml", yaml.safe_dump(document).encode())
    write_json(folder / "run.json", {"state": "succeeded", "trained": True, "sha256": "5" * 64})
    random = np.random.default_rng(seed)
    right = (random.random(30) < skill).astype(float)
    values = {"precision_at_1": right, "map_at_r": right * random.random(30)}
    ids = tuple(f"i{row}" for row in range(30))
    write_results(folder, Results(asked, ids, tuple("ab" * 15), values, {}), model="5" * 64)


class Shelf:
    """Jobs of an application's own store with runs as a supervisor would leave them."""

    def __call__(self, app: FastAPI) -> None:
        self.store: JobStore = app.state.service.jobs.store

    def job(self, *measure: Any, project: str | None = None) -> str:
        spec = {"name": "small", "data": {"kind": "glyphs"}, "loss": {"kind": "triplet"}}
        owner = {} if project is None else {"project": project}
        job = self.store.create(spec, name="small", labels={}, **owner)
        if measure:
            measured(self.store.run_folder(job.id), *measure)
        return job.id


def kind(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("urn:raydml:problem:")


@pytest.mark.anyio
async def test_a_server_says_what_the_library_says(connect: Connect, tmp_path: Path) -> None:
    shelf = Shelf()
    for name, given in {"a": (1, 0.3), "b": (1, 0.9)}.items():
        measured(tmp_path / name, *given)
    wanted = raydml.compare(tmp_path / "a", tmp_path / "b", repeats=150, shown=3, over="classes").to_dict()
    async with connect(shelf) as client:
        first, second = shelf.job(1, 0.3), shelf.job(1, 0.9)
        query = f"with={second}&repeats=150&shown=3&over=classes"
        answer = await client.get(f"/v1/jobs/{first}/evaluation:compare?{query}")
    assert answer.status_code == 200
    assert answer.json() == json.loads(json.dumps(wanted | {"before": [first], "after": [second]}))
    assert answer.json()["num_fixed"] > answer.json()["num_broken"]


@pytest.mark.anyio
async def test_several_seeds_of_both_sides_are_compared(connect: Connect) -> None:
    shelf = Shelf()
    async with connect(shelf) as client:
        old, new = ([shelf.job(seed, skill) for seed in (1, 2, 3)] for skill in (0.3, 0.9))
        query = [("with", id) for id in new] + [("beside", id) for id in old[1:]]
        answer = await client.get(f"/v1/jobs/{old[0]}/evaluation:compare", params=query)
    document = answer.json()
    assert (document["before"], document["after"]) == (old, new)
    assert document["chance"] == "pairs of seeds and queries" and document["metrics"]["map_at_r"]["significant"]


@pytest.mark.anyio
async def test_what_cannot_be_compared_is_refused(connect: Connect) -> None:
    shelf = Shelf()
    other = Asked("retrieval", "cosine", "test", "q" * 64, "h" * 64, 30)
    async with connect(shelf) as client:
        job, fresh, apart = shelf.job(1, 0.3), shelf.job(), shelf.job(1, 0.9, other)
        hidden = shelf.job(1, 0.9, project="prj_" + "1" * 26)
        good = shelf.job(1, 0.8)
        cases = {
            f"with={fresh}": (409, "run-error"),
            f"with={apart}": (422, "spec-error"),
            f"with={job}": (422, "spec-error"),
            f"with={hidden}": (404, "job-not-found"),
            f"with={new_id('job')}": (404, "job-not-found"),
            f"with={good}&with={good}": (422, "spec-error"),
            f"with={good}&beside={fresh}": (409, "run-error"),
            f"with={good}&metric=manhattan": (409, "run-error"),
            f"with={good}&metric=cosin": (422, "invalid-request"),
            f"with={good}&repeats=10001": (422, "invalid-request"),
            f"with={good}&confidence=1": (422, "invalid-request"),
            f"with={good}&shown=-1": (422, "invalid-request"),
            f"with={good}&colour=red": (422, "invalid-request"),
            "with=job_1": (422, "invalid-request"),
            "with=../other": (422, "invalid-request"),
            "": (422, "invalid-request"),
            "&".join([f"with={good}"] * 33): (422, "invalid-request"),
        }
        for query, refusal in cases.items():
            answer = await client.get(f"/v1/jobs/{job}/evaluation:compare?{query}")
            assert kind(answer) == refusal, query
        assert (await client.get(f"/v1/jobs/{job}/evaluation:compare?with={good}")).status_code == 200
        assert kind(await client.get(f"/v1/jobs/{hidden}/evaluation:compare?with={good}")) == (404, "job-not-found")


def test_the_client_and_the_command_ask_for_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDML_SUPERVISE", "false")  # nothing is trained here
    shelf = Shelf()
    with raydml.Client(local=home) as client:
        database = Database.at(home)
        shelf.store = JobStore(database, home)
        old, new = ([shelf.job(seed, skill) for seed in (1, 2)] for skill in (0.3, 0.9))
        found = client.jobs[old[0]].compare(new[0], repeats=200, confidence=0.8)
        assert found.metrics["map_at_r"].interval[0] > 0 and found.how["confidence"] == 0.8
        assert found.fixed[0].before["precision_at_1"] == 0 and found.num_fixed > 5
        seeds = client.jobs[old[0]].compare(*new, beside=old[1:])
        assert (seeds.before, seeds.after) == (old, new)
        with pytest.raises(Conflict, match="not measured"):
            client.jobs[old[0]].compare(shelf.job())
        database.close()
    asked = ["jobs", "compare", old[0], *new, "--beside", old[1], "--over", "classes", "--local", str(home)]
    shown = CliRunner().invoke(commands, asked)
    assert shown.exit_code == 0 and "better" in shown.stdout and "now right" in shown.stdout
    document = json.loads(CliRunner().invoke(commands, [*asked, "--json"]).stdout)
    assert document["chance"] == "pairs of seeds and classes" and document["after"] == new
