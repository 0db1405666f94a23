"""Studies in one process, on objectives that take no time: who trains on, kills, copies, fronts."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from raydml.files import write_json
from raydml.tuning.algorithms import Known, RandomDraws
from raydml.tuning.planner import Planner, Task
from raydml.tuning.record import StudyRecord
from raydml.tuning.result import Row, mark_front, read_result
from raydml.tuning.rules import Brackets, Create, Promote, Rule, Standing, SuccessiveHalving, rungs
from raydml.tuning.space import fields
from raydml.tuning.table import write_table
from raydml.tuning.tpe import Parzen
from raydml.tuning.trials import tuned
from tests.unit.studies import Synthetic, drive, new_study, no_checkpoint, study_spec


def near(spec: dict[str, Any], step: int) -> float:
    """Best at a margin of 0.3, and better with every step."""
    return 1 - abs(float(spec["loss"]["margin"]) - 0.3) - 0.5 / step


ASHA = {"scheduler": {"kind": "asha"}}


def simulate(rule: Rule, total: int, quality: Sequence[float], seed: int) -> list[Standing]:
    """A rule with configurations that end their pieces of work in any order; what it decided is checked on the way."""
    order, standings, busy = random.Random(seed), [], set()
    while True:
        decision = rule.decide([*standings], total)
        if isinstance(decision, Create):
            standings.append(Standing(len(standings), decision.until, {}, busy=True))
            busy.add(len(standings) - 1)
        elif isinstance(decision, Promote):
            before = standings[decision.number]
            assert not before.busy and decision.until > before.target
            standings[decision.number] = Standing(before.number, decision.until, before.scores, busy=True)
            busy.add(decision.number)
        elif decision == "done":
            assert not busy
            return standings
        if busy and (decision == "wait" or len(busy) == 4):
            number = order.choice(sorted(busy))
            busy.remove(number)
            now = standings[number]
            scores = {**now.scores, now.target: quality[number] + 0.001 * now.target}
            standings[number] = Standing(number, now.target, scores)


@pytest.mark.parametrize("seed", range(5))
def test_asha_lets_one_in_three_go_on_and_never_one_of_the_worse(seed: int) -> None:
    quality = [random.Random(seed).random() for _ in range(27)]
    ladder = rungs(10, 3, 10, 270)
    assert ladder == (10, 30, 90, 270)
    found = simulate(SuccessiveHalving(ladder, 3), 27, quality, seed)
    for rung, following in pairwise(ladder):
        arrived = [each for each in found if rung in each.scores]
        went_on = [each for each in arrived if following in each.scores]
        top = sorted(arrived, key=lambda each: -each.scores[rung])[: max(1, len(arrived) // 3)]
        assert len(went_on) >= len(arrived) // 3
        assert {each.number for each in top} <= {each.number for each in went_on}, "the best of all went on"
    best = max(range(27), key=lambda number: quality[number])
    assert 270 in found[best].scores


@pytest.mark.parametrize("total", [1, 2, 5])
def test_of_few_configurations_the_best_still_takes_all_steps(total: int) -> None:
    quality = [0.3, 0.9, 0.5, 0.1, 0.7][:total]
    for rule in (SuccessiveHalving((10, 30, 90), 3), Brackets((10, 30, 90), 3)):
        found = simulate(rule, total, quality, 0)
        assert any(90 in each.scores for each in found)
    finished = [each.number for each in simulate(SuccessiveHalving((10, 30, 90), 3), total, quality, 0)]
    assert len(finished) == total


def test_hyperband_halves_each_bracket_a_whole_rung_at_a_time() -> None:
    rule = Brackets((10, 30, 90), 3)
    assert rule.sizes(17) == [9, 5, 3], "9 from the first rung, 5 from the second, 3 from the last"
    quality = [random.Random(7).random() for _ in range(17)]
    for seed in range(4):
        found = simulate(rule, 17, quality, seed)
        expected: set[int] = set(range(14, 17))
        first = sorted(range(9), key=lambda number: -quality[number])
        assert {each.number for each in found[:9] if 30 in each.scores} == set(first[:3])
        expected |= set(first[:1]) | set(sorted(range(9, 14), key=lambda number: -quality[number])[:1])
        assert {each.number for each in found if 90 in each.scores} == expected


def test_who_failed_is_passed_over_and_the_others_go_on() -> None:
    standings = [Standing(0, 10, {}, failed=True), Standing(1, 10, {10: 0.5}), Standing(2, 10, {10: 0.4})]
    assert SuccessiveHalving((10, 30), 3).decide(standings, 3) == Promote(1, 30)
    assert SuccessiveHalving((10, 30), 3).decide([standings[0]], 1) == "done"


def outcome(folder: Path) -> list[tuple[Any, ...]]:
    rows = read_result(folder).rows
    return [(row.configuration, sorted(row.values.items()), row.step, row.score, len(row.lineage)) for row in rows]


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "tune",
    [
        ASHA,
        {"scheduler": {"kind": "hyperband"}},
        {"algorithm": {"kind": "tpe", "startup": 3}, "trials": 6},
        {"algorithm": {"kind": "pbt", "every": 30}, "trials": 4},
        {"seeds": 2, "trials": 3},
    ],
    ids=["asha", "hyperband", "tpe", "pbt", "seeds"],
)
def test_a_driver_killed_at_any_moment_loses_and_repeats_no_trial(tmp_path: Path, tune: dict[str, Any]) -> None:
    spec = study_spec(tune)
    whole = tmp_path / "whole"
    drive(new_study(whole, spec), Synthetic(near))
    chance = random.Random(4)
    folder, steps, kills = tmp_path / "killed", [0], 0

    def step() -> None:
        nonlocal kills
        steps[0] += 1
        if chance.random() < 0.15:
            kills += 1
            raise Killed

    new_study(folder, spec)
    while True:
        try:
            drive(Planner(spec, StudyRecord(folder), 1, no_checkpoint), Synthetic(near, on_step=step))
            break
        except Killed:
            continue
    undisturbed = sum(1 for _ in folder.glob("trials/*"))
    assert kills >= 4 and undisturbed == sum(1 for _ in whole.glob("trials/*"))
    assert outcome(folder) == outcome(whole), "the same configurations came as far, with the same scores"
    taken = sum(json.loads(path.read_text())["step"] for path in folder.glob("trials/*/run.json")) // 10
    assert steps[0] == taken + kills, "no evaluation was made twice but the one in which it was killed"


def test_a_driver_killed_while_it_writes_a_decision_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every single write of a study of PBT, which decides most."""
    spec = study_spec({"algorithm": {"kind": "pbt", "every": 30}, "trials": 4})
    whole = tmp_path / "whole"
    drive(new_study(whole, spec), Synthetic(near))
    real, left = StudyRecord.keep, [0]

    def keep(self: StudyRecord, configured: Any) -> None:
        if left[0] == 0:
            left[0] = 10**9
            raise Killed
        left[0] -= 1
        real(self, configured)

    monkeypatch.setattr(StudyRecord, "keep", keep)
    for number in range(0, 14, 4):
        folder = tmp_path / str(number)
        left[0] = number
        with pytest.raises(Killed):
            drive(new_study(folder, spec), Synthetic(near))
        drive(Planner(spec, StudyRecord(folder), 1, no_checkpoint), Synthetic(near))
        assert outcome(folder) == outcome(whole)


def test_a_configuration_is_judged_by_all_of_its_seeds_which_are_the_same_for_all(tmp_path: Path) -> None:
    spec = study_spec({"seeds": 3, "trials": 4, **ASHA})

    def score(document: dict[str, Any], step: int) -> float:
        return near(document, step) + 0.1 * (document["seed"] - spec.seed)

    drive(new_study(tmp_path / "study", spec, 3), Synthetic(score), 3)
    for row in read_result(tmp_path / "study").rows:
        assert sorted(row.by_seed) == [3, 4, 5]
        single = [near({"loss": {"margin": row.values["loss.margin"]}}, row.step) + 0.1 * k for k in range(3)]
        assert row.score == pytest.approx(sum(single) / 3) and row.deviation == pytest.approx(0.1)


def test_no_more_trials_run_at_once_than_were_admitted(tmp_path: Path) -> None:
    planner = new_study(tmp_path / "study", study_spec({}), 3)
    tasks = [planner.next() for _ in range(5)]
    assert [isinstance(task, Task) for task in tasks] == [True, True, True, False, False]
    assert tasks[3] == "wait" and len({task.trial for task in tasks[:3] if isinstance(task, Task)}) == 3


def test_a_study_that_is_over_hands_nothing_out_and_waits_for_who_still_runs(tmp_path: Path) -> None:
    planner = new_study(tmp_path / "study", study_spec({"trials": 3}), 2)
    first, second = planner.next(), planner.next()
    assert isinstance(first, Task) and isinstance(second, Task)
    planner.over = True
    assert planner.next() == "wait", "two still run"
    Synthetic(near)(first.folder, 40)
    planner.ended(first.trial)
    assert planner.next() == "wait", "one still runs, and its place is nobody's"
    planner.ended(second.trial)  # it was asked to stop before its first step
    assert planner.next() == "done" and not planner.done
    states = [planner.record.trial(task.trial) for task in (first, second)]
    assert [(state.state, state.step, state.reason) for state in states] == [("paused", 40, None), ("waiting", 0, None)]
    done = drive(Planner(study_spec({"trials": 3}), planner.record, 1, no_checkpoint), Synthetic(near))
    assert [task.trial for task in done] == ["00000-0", "00001-0", "00002-0"], "later it goes on"


def test_a_trial_that_failed_is_not_tried_again_and_the_study_goes_on(tmp_path: Path) -> None:
    planner = new_study(tmp_path / "study", study_spec({"trials": 3}))
    first = planner.next()
    assert isinstance(first, Task)
    planner.ended(first.trial, "its process died 2 times")
    done = drive(planner, Synthetic(near))
    assert [task.trial for task in done] == ["00001-0", "00002-0"]
    result = read_result(tmp_path / "study")
    assert [row.state for row in result.rows] == ["trained", "trained", "failed"]
    assert result.rows[-1].reason == "its process died 2 times" and result.best in result.rows[:2]


class Moving:
    """A trial whose best margin moves from 0.1 to 0.9 while it trains, and which gains by having been near it.

    What it gained is its checkpoint: only who copies it has it.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, folder: Path, until: int) -> None:
        spec = json.loads(json.dumps(_yaml(folder / "spec.yaml")))
        facts, path = json.loads((folder / "run.json").read_text()), folder / "gained.json"
        gained = json.loads(path.read_text()) if path.exists() else 0.0
        step, evaluations = facts.get("step", 0), facts.get("evaluations", {})
        while step < until:
            step += 20
            gained += 20 * (1 - abs(spec["loss"]["margin"] - 0.1 - 0.8 * step / self.steps)) / self.steps
            evaluations[str(step)] = {"map_at_r": gained}
        state = "trained" if step == self.steps else "paused"
        write_json(path, gained)
        write_json(folder / "run.json", facts | {"state": state, "step": step, "evaluations": evaluations})


def _yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text())


def copy_gained(parent: Path, child: Path, step: int, digest: str) -> None:
    shutil.copy(parent / "gained.json", child / "gained.json")


def test_population_based_training_follows_an_optimum_that_moves_where_random_search_cannot(tmp_path: Path) -> None:
    train = {"steps": 200, "evaluate_every": 20}
    pbt = study_spec({"algorithm": {"kind": "pbt", "every": 40}, "trials": 8}, train=train)
    lone = study_spec({"trials": 8}, train=train)
    best = {}
    for name, spec in (("pbt", pbt), ("random", lone)):
        new_study(tmp_path / name, spec)
        drive(Planner(spec, StudyRecord(tmp_path / name), 1, copy_gained), Moving(200))
        row = read_result(tmp_path / name).best
        assert row is not None and row.score is not None
        best[name] = row
    assert best["pbt"].score > best["random"].score + 0.03  # type: ignore[operator]
    copied = [event for event in StudyRecord(tmp_path / "pbt").events() if event["event"] == "copied"]
    assert len(copied) == 4 * 2, "two of eight, after each of four generations"
    assert best["pbt"].lineage, "the best descends from others"
    for entry in best["pbt"].lineage:
        generation = StudyRecord(tmp_path / "pbt").generation(entry["step"])
        assert generation["done"] and entry["child"] in [copy["child"] for copy in generation["copies"]]
        assert entry["before"] != entry["values"]


def test_copies_go_from_the_best_quarter_to_the_worst(tmp_path: Path) -> None:
    spec = study_spec({"algorithm": {"kind": "pbt", "every": 30}, "trials": 8})
    drive(new_study(tmp_path / "study", spec), Synthetic(near))
    record = StudyRecord(tmp_path / "study")
    at_30 = {n: record.trial(f"{n:05d}-0").evaluations[30]["map_at_r"] for n in range(8)}
    ranked = sorted(at_30, key=lambda number: -at_30[number])
    pairs = [(copy["child"], copy["parent"]) for copy in record.generation(30)["copies"]]
    assert pairs == [(ranked[7], ranked[0]), (ranked[6], ranked[1])]


def test_tpe_learns_which_loss_and_which_margin_are_good() -> None:
    losses = [{"kind": kind, "margin": {"uniform": [0.0, 1.0]}} for kind in ("triplet", "cosface")]
    space = tuned(study_spec({"space": {"loss": {"choice": losses}}})).space

    def score(values: dict[str, int | float]) -> float:
        chosen = fields(space, values)["loss"]
        return -abs(chosen["margin"] - 0.7) - (0.5 if chosen["kind"] == "triplet" else 0.0)

    means = {}
    for algorithm in (Parzen(space, 1, 8, False, 90), RandomDraws(space, 1)):
        known: list[Known] = []
        for number in range(40):
            values = algorithm.ask(number, 0, known)
            assert algorithm.ask(number, 0, known) == values, "the same question has the same answer"
            known.append(Known(values, {90: score(values)}, finished=True))
        means[type(algorithm).__name__] = np.mean([score(each.configuration) for each in known[20:]])
    assert means["Parzen"] > means["RandomDraws"] + 0.15


def test_the_front_is_whatever_nobody_beats_in_both() -> None:
    order = random.Random(3)
    rows = [
        Row(number, {}, "trained", 90, round(order.random(), 1), seconds=round(order.random(), 1))
        for number in range(40)
    ]
    rows.append(Row(40, {}, "stopped", 30, 2.0, seconds=0.0))
    marked = mark_front(rows, "seconds", 90)
    for row in marked:
        beaten = False
        for other in rows[:40]:
            no_worse = other.score >= row.score and other.seconds <= row.seconds  # type: ignore[operator]
            beaten = beaten or (no_worse and (other.score, other.seconds) != (row.score, row.seconds))
        assert row.on_front == (not beaten and row.configuration < 40), "who did not finish is on no front"


def test_results_are_a_row_per_trial(tmp_path: Path) -> None:
    spec = study_spec({"seeds": 2, "trials": 3})
    drive(new_study(tmp_path / "study", spec), Synthetic(near))
    result = read_result(tmp_path / "study")
    write_table(result, tmp_path / "results.parquet")
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [(row["configuration"], row["seed"]) for row in rows] == [
        (each.configuration, seed) for each in result.rows for seed in (3, 4)
    ]
    for row in rows:
        margin = float(row["field:loss.margin"])
        assert row["score"] == pytest.approx(near({"loss": {"margin": margin}}, 90))


def test_a_trial_that_comes_no_further_fails_instead_of_being_tried_for_ever(tmp_path: Path) -> None:
    planner = new_study(tmp_path / "study", study_spec({"trials": 2}))
    done = drive(planner, lambda folder, until: None)
    assert len(done) == 2
    assert [row.reason for row in read_result(tmp_path / "study").rows] == [
        "it came no further than step 0, and did not say why"
    ] * 2
