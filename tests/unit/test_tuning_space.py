"""Spaces of a study: draws, conditions, corners and refusals, against loops that a child could check."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from raydml.errors import ResourceError, SpecError
from raydml.spec import JobSpec
from raydml.specfile import parse_spec
from raydml.tuning.admission import Need, admitted, need_of
from raydml.tuning.space import configured, corners, draw, fields, grid, grid_size, moved, readable
from raydml.tuning.trials import check_space, configured_spec, trial_spec, tuned
from tests.unit.studies import study_spec

LOSSES = {
    "choice": [
        {"kind": "contrastive", "neg_margin": {"uniform": [0.2, 0.8]}},
        {"kind": "triplet", "margin": {"loguniform": [0.01, 0.5]}, "miner": {"kind": {"choice": ["semihard", "all"]}}},
    ]
}


def test_a_margin_is_drawn_only_where_its_loss_was_chosen() -> None:
    spec = study_spec({"space": {"loss": LOSSES, "batch.classes": {"int": [8, 32], "step": 8}}})
    space = tuned(spec).space
    seen = set()
    for seed in range(60):
        values = draw(space, np.random.default_rng(seed))
        chosen = fields(space, values)
        seen.add((chosen["loss"]["kind"], chosen["batch.classes"]))
        if chosen["loss"]["kind"] == "contrastive":
            assert set(values) == {"loss", "loss.0.neg_margin", "batch.classes"}
            assert 0.2 <= chosen["loss"]["neg_margin"] <= 0.8
        else:
            assert set(values) == {"loss", "loss.1.margin", "loss.1.miner.kind", "batch.classes"}
            assert 0.01 <= chosen["loss"]["margin"] <= 0.5
        drawn = configured_spec(spec, values)
        assert drawn.loss.kind == chosen["loss"]["kind"] and drawn.batch.classes == chosen["batch.classes"]
    assert seen == set(product(("contrastive", "triplet"), (8, 16, 24, 32)))


def test_loguniform_draws_all_orders_of_magnitude_alike() -> None:
    space = tuned(study_spec({"space": {"train.optimizer.lr": {"loguniform": [1e-5, 1e-1]}}})).space
    rates = [draw(space, np.random.default_rng(seed))["train.optimizer.lr"] for seed in range(4000)]
    counts = np.histogram(np.log10(rates), bins=[-5, -4, -3, -2, -1])[0]
    assert counts.min() > 900 and counts.sum() == 4000


def test_the_same_seed_draws_the_same_configuration() -> None:
    space = tuned(study_spec({"space": {"loss": LOSSES}})).space
    assert draw(space, np.random.default_rng(5)) == draw(space, np.random.default_rng(5))


def test_corners_are_all_bounds_of_all_alternatives() -> None:
    spec = study_spec({"space": {"loss": LOSSES, "batch.classes": {"int": [8, 30], "step": 8}}})
    expected = []
    for classes in (8, 24):  # 32 would be beyond 30
        for margin in (0.2, 0.8):
            expected.append({"loss": 0, "loss.0.neg_margin": margin, "batch.classes": classes})
        for margin in (0.01, 0.5):
            for kind in (0, 1):
                expected.append(
                    {"loss": 1, "loss.1.margin": margin, "loss.1.miner.kind": kind, "batch.classes": classes}
                )
    found = corners(tuned(spec).space, 0)
    assert sorted(map(repr, map(sorted, map(dict.items, found)))) == sorted(
        map(repr, map(sorted, map(dict.items, expected)))
    )


def test_of_too_many_corners_each_field_still_has_its_own() -> None:
    names = [f"train.optimizer.parts.p{letter}" for letter in "abcdefghijklmn"]
    space = tuned(study_spec({"space": {name: {"uniform": [0.5, 2.0]} for name in names}})).space
    found = corners(space, 0)
    assert len(found) < 4096
    for name in names:
        assert {0.5, 2.0} <= {corner[name] for corner in found}


def test_a_grid_is_every_combination_once() -> None:
    spec = study_spec({"space": {"loss.margin": {"choice": [0.1, 0.2, 0.3]}, "batch.samples": {"int": [2, 4]}}})
    space = tuned(spec).space
    points = [tuple(fields(space, point).values()) for point in grid(space)]
    assert sorted(points) == sorted(product((0.1, 0.2, 0.3), (2, 3, 4))) and grid_size(space) == 9


def test_values_read_as_a_person_would_write_them() -> None:
    space = tuned(study_spec({"space": {"loss": LOSSES}})).space
    values = {"loss": 1, "loss.1.margin": 0.25, "loss.1.miner.kind": 0}
    assert readable(space, values) == {"loss.kind": "triplet", "loss.margin": 0.25, "loss.miner.kind": "semihard"}


@pytest.mark.parametrize("up", [True, False])
def test_a_moved_value_stays_within_its_bounds(up: bool) -> None:
    domains: dict[str, Any] = {
        "loss.margin": {"uniform": [0.1, 0.5]},
        "train.optimizer.lr": {"loguniform": [1e-4, 1e-2]},
        "train.schedule.warmup_steps": {"int": [0, 20], "step": 5},
        "train.clip_norm": {"choice": [0.1, 1.0, 10.0]},
    }
    space = tuned(study_spec({"space": domains})).space
    for name, dimension in space.items():
        value = draw(space, np.random.default_rng(1))[name]
        for _ in range(30):
            after = moved(dimension, value, 1.2, up)
            assert after >= value if up else after <= value
            value = after
        edge = corners({name: dimension}, 0)
        assert value == (max if up else min)(corner[name] for corner in edge)


def test_a_part_that_was_not_written_keeps_its_other_defaults() -> None:
    spec = study_spec({"space": {"batch.sampling.kind": {"choice": ["uniform", "frequency"]}}})
    specs = check_space(spec)
    assert {each.batch.sampling.kind for each in specs} == {"uniform", "frequency"}
    assert {each.train.optimizer.lr for each in specs} == {0.001}


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"loss.margn": {"uniform": [0.1, 0.2]}}, "did you mean margin"),
        ({"batch.clases": {"int": [4, 8]}}, "did you mean classes"),
        ({"loss.margin": {"uniform": [0.5, 0.1]}}, "lower bound 0.5 is above the upper one 0.1"),
        ({"train.optimizer.lr": {"loguniform": [0, 1]}}, "begin above 0"),
        ({"train.optimizer.lr": {"uniform": [0, 1]}}, "train.optimizer.lr = 0"),
        ({"loss.margin": 0.3}, "is none of uniform, loguniform, int, choice"),
        ({"loss.margin": {"unifrom": [0, 1]}}, "is none of uniform"),
        ({"loss": {"choice": [{"kind": "tripplet"}]}}, "did you mean triplet"),
        ({"loss": {"choice": [{"kind": "arcface"}, {"kind": "arcface", "margn": 1}]}}, "margn: unknown key"),
        ({"loss.kind": {"choice": ["triplet", "arcface"]}}, "a margin belongs to its loss"),
        ({"loss": LOSSES, "loss.margin": {"uniform": [0, 1]}}, "lies within loss"),
        ({"batch.virtual_workers": {"choice": [8, 7]}}, "cannot be cut into 7 equal slices"),
        ({"parallel.workers": {"choice": [1, 9]}}, "more than batch.virtual_workers"),
        ({"parallel.strategy": {"choice": ["ddp", "auto"]}}, "name strategies"),
        ({"seed": {"int": [0, 9]}}, "seed is the same for all trials"),
        ({"evaluate.metric": {"choice": ["cosine", "euclidean"]}}, "could not be compared"),
        ({"data.path": {"choice": ["a", "b"]}}, "would change what is measured"),
        ({"train.steps": {"int": [10, 20]}}, "train.steps is the same"),
    ],
)
def test_a_study_that_no_spec_can_be_like_is_refused_before_it_starts(space: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as refused:
        check_space(study_spec({"space": space}))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ({"algorithm": {"kind": "grid"}}, "no end of numbers"),
        (
            {"algorithm": {"kind": "grid"}, "space": {"loss.margin": {"choice": [0.1] * 9}}, "trials": 8},
            "raise it to 9",
        ),
        ({"algorithm": {"kind": "pbt"}, "seeds": 2}, "scheduler: none, seeds: 1 and protocol: validation"),
        ({"algorithm": {"kind": "pbt"}, "space": {"model.dimension": {"choice": [8, 16]}}}, "would not fit"),
        ({"algorithm": {"kind": "pbt", "every": 15}}, "no multiple"),
    ],
)
def test_rules_that_do_not_go_together_are_refused(tune: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as refused:
        check_space(study_spec(tune))
    assert words in str(refused.value)


def test_a_study_without_evaluations_has_nothing_to_compare() -> None:
    with pytest.raises(SpecError, match="evaluate_every"):
        check_space(study_spec({}, train={"steps": 10, "evaluate_every": 0}))


def test_a_spec_with_a_space_is_read_back_as_it_was_written() -> None:
    spec = study_spec({"space": {"loss": LOSSES}, "scheduler": {"kind": "asha"}, "algorithm": {"kind": "tpe"}})
    assert parse_spec(spec.model_dump(mode="json")) == spec
    plain = spec.model_copy(update={"tune": None})
    assert spec.digest() == plain.digest(), "what is searched decides no bit of a run of the spec"


def test_a_trial_has_the_bits_of_the_winners_run() -> None:
    spec = study_spec({}, parallel={"workers": {"min": 1, "max": 4}}, index={"collection": "shelf"})
    values = configured(tuned(spec).space, lambda path, dimension: 0.4)
    trial, winner = trial_spec(spec, values, "00000-0", 0), configured_spec(spec, values)
    assert trial.digest() == winner.digest()
    assert trial.index is None and trial.parallel.workers.max == 1 and winner.parallel.workers.max == 4
    assert trial.train.checkpoint_every == trial.train.evaluate_every


def _specs(*parallel: dict[str, Any]) -> list[JobSpec]:
    return [study_spec({}, parallel=each) for each in parallel]


def test_as_many_trials_run_as_the_cluster_has_room_for() -> None:
    alone = need_of(_specs({"workers": {"min": 1, "max": 1, "cpus": 0.5}}), 1.0, 0)
    assert alone == Need(0.5) and admitted(alone, 2, 0, None) == 4 and admitted(alone, 2, 0, 3) == 3
    mixed = need_of(_specs({"workers": 1}, {"workers": 3}), 1.0, 0)
    assert mixed == Need(0.1, 3, 1.0) and mixed.cpus == 3.1
    assert admitted(mixed, 6.2, 0, None) == 2 and admitted(mixed, 6.1, 0, None) == 1


def test_small_trials_share_a_gpu() -> None:
    shared = need_of(_specs({"workers": 1}), 0.25, 2)
    assert shared.gpus == 0.25 and admitted(shared, 64, 2, None) == 8
    assert need_of(_specs({"workers": 1, "device": "cpu"}), 0.25, 2).gpus == 0
    assert need_of(_specs({"workers": 1}), 0.25, 0).gpus == 0


def test_a_study_without_room_is_refused_with_the_arithmetic() -> None:
    need = need_of(_specs({"workers": 4}), 1.0, 0)
    with pytest.raises(ResourceError, match=r"a driver of 0.1 CPUs and 4 workers of 1 each, 4.1 CPUs.* has 2 CPUs"):
        admitted(need, 2, 0, None)
    with pytest.raises(ResourceError, match=r"3 x .* = 12.3 CPUs, and the cluster has 9 CPUs, room for 2"):
        admitted(need, 9, 0, 3)
