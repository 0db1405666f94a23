"""The sampling plan: pure, seekable, and fair to classes and images."""

from __future__ import annotations

import numpy as np
import pytest

from raydml.data import SamplingPlan
from raydml.errors import DataError
from raydml.spec import BatchSpec

LABELS = np.repeat(np.arange(10), [2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
SPEC = BatchSpec(classes=4, samples=4, virtual_workers=4)
GOLDEN = [3, 53, 37, 5, 4, 45, 40, 7, 2, 44, 35, 6, 3, 47, 39, 8]


def test_a_batch_is_a_pure_function_of_seed_and_step_in_any_order() -> None:
    forward = [SamplingPlan(LABELS, SPEC, 7).batch(step) for step in range(12)]
    plan = SamplingPlan(LABELS, SPEC, 7)
    backward = {step: plan.batch(step) for step in reversed(range(12))}
    assert all((batch == backward[step]).all() for step, batch in enumerate(forward))
    assert any((batch != SamplingPlan(LABELS, SPEC, 8).batch(step)).any() for step, batch in enumerate(forward))


def test_the_order_of_the_data_never_changes_between_versions() -> None:
    assert SamplingPlan(LABELS, SPEC, 7).batch(10**12).tolist() == GOLDEN


def test_every_batch_holds_p_classes_and_k_different_images_of_each() -> None:
    plan = SamplingPlan(LABELS, SPEC, 0)
    for step in range(50):
        rows = plan.batch(step).reshape(4, 4)  # (K, P)
        assert (LABELS[rows] == LABELS[rows[0]]).all()
        assert len(set(LABELS[rows[0]].tolist())) == 4
        for column in rows.T:
            size = np.count_nonzero(LABELS[column[0]] == LABELS)
            assert len(set(column.tolist())) == min(4, size)


def test_a_slice_holds_as_many_different_classes_as_it_can() -> None:
    plan = SamplingPlan(LABELS, SPEC, 0)
    assert all(len(set(LABELS[plan.slice(step, v)].tolist())) == 4 for step in range(9) for v in range(4))


@pytest.mark.parametrize("virtual_workers", [1, 2, 4, 8, 16])
def test_slices_of_any_number_join_to_the_same_batch(virtual_workers: int) -> None:
    spec = SPEC.model_copy(update={"virtual_workers": virtual_workers})
    plan = SamplingPlan(LABELS, spec, 3)
    joined = np.concatenate([plan.slice(5, index) for index in range(virtual_workers)])
    assert (joined == SamplingPlan(LABELS, SPEC, 3).batch(5)).all()
    with pytest.raises(IndexError, match=f"slice {virtual_workers} of a batch of {virtual_workers}"):
        plan.slice(5, virtual_workers)


def test_a_pass_repeats_no_class_and_passes_together_cover_all() -> None:
    plan = SamplingPlan(LABELS, SPEC, 0)
    passes = [set(plan.classes(2 * n).tolist()) | set(plan.classes(2 * n + 1).tolist()) for n in range(20)]
    assert all(len(classes) == 8 for classes in passes)
    assert set.union(*passes) == set(range(10))
    assert len({frozenset(classes) for classes in passes}) > 1  # the remainder is another one each pass


def test_all_images_are_drawn_in_the_long_run() -> None:
    plan = SamplingPlan(LABELS, SPEC, 0)
    counts = np.bincount(np.concatenate([plan.batch(step) for step in range(1000)]), minlength=len(LABELS))
    per_class = [counts[number == LABELS] for number in range(10)]
    assert all(each.min() > 0.7 * each.mean() and each.max() < 1.3 * each.mean() for each in per_class)


def test_a_small_class_repeats_its_images_evenly() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    plan = SamplingPlan(labels, BatchSpec(classes=3, samples=7, virtual_workers=1), 0)
    for step in range(20):
        counts = np.bincount(plan.batch(step), minlength=6)
        assert sorted(counts[:3]) == [2, 2, 3]
        assert counts[3] == 7
        assert sorted(counts[4:]) == [3, 4]


def test_small_classes_are_left_out_on_request() -> None:
    spec = SPEC.model_copy(update={"small_classes": "drop"})
    plan = SamplingPlan(LABELS, spec, 0)
    seen = set(LABELS[np.concatenate([plan.batch(step) for step in range(60)])].tolist())
    assert seen == set(range(2, 10))


def test_too_few_classes_are_refused_with_the_numbers() -> None:
    with pytest.raises(DataError, match=r"batch.classes = 32 .* training has 10: lower batch.classes to 10"):
        SamplingPlan(LABELS, BatchSpec(classes=32), 0)
    spec = BatchSpec(classes=4, samples=8, virtual_workers=2, small_classes="drop")
    with pytest.raises(DataError, match=r"has 10, of which 4 hold at least batch.samples = 8") as caught:
        SamplingPlan(LABELS, spec.model_copy(update={"classes": 5, "virtual_workers": 1}), 0)
    assert caught.value.data == {"classes": 5, "available": 10, "usable": 4}
    with pytest.raises(DataError, match="training has 0"):
        SamplingPlan(np.zeros(0, np.int64), SPEC, 0)


def test_a_batch_cannot_be_changed_by_its_reader() -> None:
    with pytest.raises(ValueError, match="read-only"):
        SamplingPlan(LABELS, SPEC, 0).batch(0)[0] = 1
