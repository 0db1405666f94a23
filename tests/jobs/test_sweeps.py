"""Sweeps: what the supervisor makes of a study, one turn at a time, over a cluster that does what the test says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydml.errors import JobConflict, SpecError
from raydml.jobs.roots import confined
from raydml.jobs.searching import winner_of
from raydml.jobs.store import JobStore
from raydml.jobs.sweeping import leaderboard, study_folder
from raydml.tuning.record import StudyRecord
from raydml.tuning.result import read_result
from tests.jobs.cluster import FakeAttempt
from tests.jobs.conftest import Clock, a_spec
from tests.jobs.test_supervisor import World
from tests.unit.studies import Synthetic, drive, new_study, study_spec

MARGINS = {"loss.margin": {"uniform": [0.05, 0.5]}}


def a_sweep(**tune: Any) -> dict[str, Any]:
    return a_spec(tune={"space": MARGINS, "trials": 6} | tune)


@pytest.fixture
def world(store: JobStore, home: Path, clock: Clock) -> World:
    return World(store, home, clock)


def begun(world: World, job: str, number: int = 1) -> FakeAttempt:
    """The attempt of a sweep whose study has begun."""
    world.tick()
    attempt = world.attempt(job, number)
    granted = attempt.place.order()["workers"]
    study_folder(world.home, job).mkdir(parents=True, exist_ok=True)
    attempt.place.write_started([granted], (granted, granted))
    world.tick()
    assert world.store.get(job).state == "running"
    return attempt


def test_a_sweep_goes_from_the_queue_to_its_winner_and_tells_of_each_trial_once(world: World) -> None:
    sweep = world.store.create(a_sweep())
    assert (sweep.kind, sweep.workers.min, sweep.workers.max) == ("sweep", 1, 6)
    attempt = begun(world, sweep.id)
    ordered = attempt.place.order()["spec"]
    assert (ordered["name"], ordered["tune"]["concurrency"]) == (sweep.id, 4)  # as many as there are CPUs
    record = StudyRecord(study_folder(world.home, sweep.id))
    record.log("created", configuration=0, values={"loss.margin": 0.1})
    world.tick()
    record.log("created", configuration=1, values={"loss.margin": 0.2})
    record.log("trained", trial="00000-0", step=90)
    world.tick()
    world.tick()
    trials = [event.data for event in world.store.events(sweep.id, limit=1000) if event.type == "trial"]
    assert [(each["event"], each["attempt"]) for each in trials] == [("created", 1), ("created", 1), ("trained", 1)]
    progress = world.store.get(sweep.id).progress
    assert progress is not None and progress["trials"] == {"created": 2, "trained": 1}
    attempt.end("succeeded", result={"winner": {"configuration": 1}})
    world.tick()
    ended = world.store.get(sweep.id)
    assert (ended.state, ended.result) == ("succeeded", {"winner": {"configuration": 1}})
    assert world.states(sweep.id) == ["queued", "starting", "running", "succeeded"]


def test_a_stop_reaches_the_study_and_a_resumed_sweep_goes_on_with_it(world: World) -> None:
    sweep = world.store.create(a_sweep())
    attempt = begun(world, sweep.id)
    world.store.ask("pause", sweep.id)
    world.tick()
    assert StudyRecord(study_folder(world.home, sweep.id)).stop_requested() and attempt.asked_to_stop
    attempt.end("interrupted", "Interrupted")
    world.tick()
    assert world.store.get(sweep.id).state == "paused"
    world.store.ask("resume", sweep.id)
    begun(world, sweep.id, 2)
    assert world.store.get(sweep.id).attempt == 2


def test_a_sweep_that_began_with_few_trials_at_once_keeps_their_room_and_takes_no_other(world: World) -> None:
    sweep = world.store.create(a_sweep(trials=3))
    begun(world, sweep.id)
    small, large = (world.store.create(a_spec(parallel={"workers": {"min": n, "max": 4}})) for n in (1, 2))
    world.tick()
    assert world.store.get(sweep.id).granted == 3
    assert [world.store.get(job.id).state for job in (small, large)] == ["starting", "queued"]
    for _ in range(3):
        world.tick()
    assert world.states(sweep.id) == ["queued", "starting", "running"]  # it is never asked to change


def test_trials_that_ended_are_progress_of_which_the_next_attempt_has_as_many_tries(world: World) -> None:
    sweep = world.store.create(a_sweep())
    record = StudyRecord(study_folder(world.home, sweep.id))
    for number in range(1, 8):  # more than the three retries that lead nowhere
        attempt = begun(world, sweep.id, number)
        record.log("trained", trial=f"{number:05d}-0")
        attempt.die()
        world.tick()
        world.clock.pass_seconds(100)
    assert world.store.get(sweep.id).attempt == 8 and "failed" not in world.states(sweep.id)


def test_sweeps_and_jobs_are_listed_apart_and_neither_is_made_of_the_other(store: JobStore) -> None:
    sweep, job = store.create(a_sweep()), store.create(a_spec())
    assert [each.id for each in store.list(kind="sweep").items] == [sweep.id]
    assert [each.id for each in store.list(kind="job").items] == [job.id]
    with pytest.raises(JobConflict, match="pause and resume it"):
        store.resize(sweep.id, None, 2)
    with pytest.raises(JobConflict, match="no job's parent"):
        store.fork(sweep.id)
    with pytest.raises(JobConflict, match="section tune"):
        store.fork(job.id, changes={"tune": a_sweep()["tune"]})
    with pytest.raises(SpecError, match="the grid has"):
        store.create(a_sweep(space={"loss.margin": {"choice": [0.1, 0.2]}}, algorithm={"kind": "grid"}, trials=1))


def test_the_leaderboard_is_that_of_the_study_and_its_first_is_told_as_the_winner(home: Path, store: JobStore) -> None:
    spec = study_spec({"seeds": 2, "trials": 4})
    sweep = store.create(spec.model_dump(mode="json"))
    assert leaderboard(home, sweep, 10)["items"] == []
    folder = study_folder(home, sweep.id)
    drive(new_study(folder, spec), Synthetic(lambda trial, step: 1 - abs(trial["loss"]["margin"] - 0.3)))
    board = leaderboard(home, sweep, 3)
    assert (board["total"], len(board["items"]), board["objective"]) == (4, 3, "map_at_r")
    margins = [row["values"]["loss.margin"] for row in leaderboard(home, sweep, 10)["items"]]
    assert margins == sorted(margins, key=lambda margin: abs(margin - 0.3))
    first = board["items"][0]
    assert board["best"] == first["configuration"] and set(first["by_seed"]) == {"3", "4"}
    StudyRecord(folder).change(winner=board["best"])
    (folder / "best.yaml").write_text("name: best\n")
    told = winner_of(read_result(folder))
    assert told["best_spec"] == {"name": "best"}
    assert (told["winner"]["values"], told["winner"]["score"]) == (first["values"], first["score"])


@pytest.mark.parametrize(
    "space",
    [
        {"model.backbone.path": {"choice": ["/etc/passwd"]}},
        {"model": {"choice": [{"backbone": {"kind": "transformers", "path": "/etc/passwd"}}]}},
        {"model.backbone": {"choice": [{"kind": "mlp"}, {"kind": "transformers", "path": {"choice": ["/etc"]}}]}},
        {"batch.sampling": {"choice": [{"kind": "hard_classes", "negatives": "/etc/passwd"}]}},
        {"loss": {"choice": [{"kind": "custom", "plugin": "os"}]}},
        {"loss.plugin": {"choice": ["os"]}},
        {"model.backbone.kind": {"choice": ["mlp", "custom"]}},
    ],
)
def test_a_space_names_neither_files_nor_code_at_whatever_depth(space: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"tune\.space: .*varies no files and no plug-ins"):
        confined({"name": "s", "tune": {"space": space}}, [Path("/")], lambda identity: Path("/"))


def test_a_space_of_numbers_and_parts_stays_as_it_is() -> None:
    space = {
        **MARGINS,
        "model.backbone": {"choice": [{"kind": "mlp", "hidden": [32]}, {"kind": "linear", "path": None}]},
    }
    document = {"name": "s", "tune": {"space": space}}
    assert confined(document, [], lambda identity: Path("/")) == document
