"""Which classes meet in a batch: drawn with the intended probabilities, pure, seekable, and refused with numbers."""

from __future__ import annotations

import csv
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from raydml.data import Dataset, SamplingPlan, open_dataset, sampling_plan
from raydml.data.randomness import drawn, exponentials, logarithm, permutation, smallest
from raydml.errors import DataError
from raydml.spec import BatchSpec, ManifestData

COUNTS = [1, 2, 4, 9, 16, 100]  # training images of each class: skewed
LABELS = np.repeat(np.arange(6), COUNTS)
CATEGORIES = ("bird", "cat", "bird", "bird", "cat", "dog")
BATCHES = 4000
WEIGHTS = {"frequency": COUNTS, "sqrt_frequency": [math.sqrt(count) for count in COUNTS]}
KINDS: list[dict[str, Any]] = [
    {"kind": "uniform"},
    {"kind": "frequency"},
    {"kind": "sqrt_frequency"},
    {"kind": "hierarchical", "categories_per_batch": 2, "small_categories": "drop"},
]


def batch_spec(sampling: dict[str, Any], classes: int = 4) -> BatchSpec:
    return BatchSpec.model_validate(
        {"classes": classes, "samples": 4, "virtual_workers": 4, "small_classes": "repeat", "sampling": sampling}
    )


def plan(sampling: dict[str, Any], classes: int = 4, seed: int = 7) -> SamplingPlan:
    categories = CATEGORIES if sampling["kind"] == "hierarchical" else ()
    return SamplingPlan(LABELS, batch_spec(sampling, classes), seed, categories)


def assert_frequencies(counts: Counter[Any], expected: dict[Any, float]) -> None:
    """Each event was seen in `BATCHES` trials as often as its probability says, within 5 binomial deviations.

    The chance that a right sampler falls outside is 6e-7 an event; 4000 trials tell p = 0.50 from 0.54.
    """
    for event, probability in expected.items():
        deviation = math.sqrt(BATCHES * probability * (1 - probability))
        assert abs(counts[event] - BATCHES * probability) <= 5 * deviation + 1e-9, (event, probability, counts[event])
    assert set(counts) <= {event for event, probability in expected.items() if probability > 0}


def draws(weights: list[float], size: int) -> dict[tuple[int, ...], float]:
    """Probability of every ordered draw without replacement, in proportion to the weights that are left."""
    found = {}
    for order in itertools.permutations(range(len(weights)), size):
        probability, left = 1.0, sum(weights)
        for number in order:
            probability *= weights[number] / left
            left -= weights[number]
        found[order] = probability
    return found


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weighted_classes_are_drawn_one_by_one_in_proportion_to_the_weights_left(kind: str) -> None:
    made = plan({"kind": kind}, classes=2)
    seen = Counter(tuple(made.classes(step).tolist()) for step in range(BATCHES))
    assert_frequencies(seen, draws(WEIGHTS[kind], 2))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_class_is_in_a_batch_as_often_as_its_inclusion_probability_says(kind: str) -> None:
    made = plan({"kind": kind}, classes=4)
    seen = Counter(number for step in range(BATCHES) for number in made.classes(step).tolist())
    orders = draws(WEIGHTS[kind], 4)
    inclusion = {number: sum(p for order, p in orders.items() if number in order) for number in range(6)}
    assert_frequencies(seen, inclusion)


def test_frequency_and_its_root_and_uniform_differ_by_far_more_than_the_tolerance() -> None:
    flat = {number: 4 / 6 for number in range(6)}
    for kind in WEIGHTS:
        made = plan({"kind": kind})
        seen = Counter(number for step in range(BATCHES) for number in made.classes(step).tolist())
        with pytest.raises(AssertionError):
            assert_frequencies(seen, flat)


def test_categories_come_first_and_then_classes_of_them_alike() -> None:
    labels = np.repeat(np.arange(9), 3)
    names = ("a", "a", "b", "b", "b", "b", "c", "c", "c")
    spec = batch_spec({"kind": "hierarchical", "categories_per_batch": 2})
    made = SamplingPlan(labels, spec, 1, names)
    pairs: Counter[frozenset[str]] = Counter()
    classes: Counter[int] = Counter()
    for step in range(BATCHES):
        chosen = made.classes(step).tolist()
        pairs[frozenset(names[number] for number in chosen)] += 1
        classes.update(chosen)
        assert sorted(Counter(names[number] for number in chosen).values()) == [2, 2]
        assert names[chosen[0]] != names[chosen[1]] == names[chosen[3]]  # neighbours are of different categories
    assert_frequencies(pairs, {frozenset(pair): 1 / 3 for pair in itertools.combinations("abc", 2)})
    assert_frequencies(classes, {number: 2 / 3 * 2 / names.count(names[number]) for number in range(9)})


def test_one_category_a_batch_by_default() -> None:
    spec = batch_spec({"kind": "hierarchical"}, classes=2)
    made = SamplingPlan(np.arange(6), spec, 0, ("x", "y", "x", "y", "x", "y"))
    batches = [made.classes(step) for step in range(40)]
    assert all(len(set((batch % 2).tolist())) == 1 for batch in batches)
    assert {int(batch[0] % 2) for batch in batches} == {0, 1}


@pytest.mark.parametrize("sampling", KINDS, ids=lambda sampling: sampling["kind"])
def test_every_kind_is_pure_seekable_and_gives_different_classes(sampling: dict[str, Any]) -> None:
    forward = [plan(sampling).batch(step) for step in range(20)]
    made = plan(sampling)
    for step in (10**15, *reversed(range(20))):  # from far away and backwards, as from the start
        rows = made.batch(step).reshape(4, 4)  # (K, P)
        assert len(set(LABELS[rows[0]].tolist())) == 4
        assert (LABELS[rows] == LABELS[rows[0]]).all()
        assert step >= 20 or (rows.reshape(-1) == forward[step]).all()
    assert any((batch != plan(sampling, seed=8).batch(step)).any() for step, batch in enumerate(forward))


def test_a_seek_draws_one_batch_and_not_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for sampling in KINDS:
        made = plan(sampling)
        seen: list[int] = []
        inner = made.choice.classes
        monkeypatch.setattr(
            made.choice, "classes", lambda step, inner=inner, seen=seen: seen.append(step) or inner(step)
        )
        made.batch(10**12)
        assert seen == [10**12]


GOLDEN = {  # of three batches
    "frequency": [5, 3, 4, 1, 5, 4, 3, 2, 5, 2, 4, 3],
    "sqrt_frequency": [5, 3, 4, 1, 5, 2, 4, 3, 2, 4, 5, 3],
    "hierarchical": [1, 3, 4, 2, 4, 2, 1, 0, 1, 0, 4, 3],
}


@pytest.mark.parametrize("sampling", KINDS[1:], ids=lambda sampling: sampling["kind"])
def test_the_order_of_the_classes_never_changes_between_versions(sampling: dict[str, Any]) -> None:
    made = plan(sampling)
    seen = [number for step in range(3) for number in made.classes(10**12 + step).tolist()]
    assert seen == GOLDEN[sampling["kind"]]


def test_small_classes_that_are_left_out_are_never_drawn() -> None:
    spec = batch_spec({"kind": "frequency"}, classes=2).model_copy(update={"small_classes": "drop"})
    made = SamplingPlan(LABELS, spec, 0)
    assert {number for step in range(300) for number in made.classes(step).tolist()} == {2, 3, 4, 5}


def test_logarithms_are_right_to_the_last_digits() -> None:
    numbers = np.concatenate([np.geomspace(2.0**-53, 1, 20_001), 1 - np.geomspace(2.0**-53, 0.5, 5_001)])
    expected = np.array([math.log(number) for number in numbers])
    assert np.abs(logarithm(numbers) - expected).max() <= 4e-16 * np.abs(expected).max()
    assert (np.abs(logarithm(numbers) - expected) <= 1e-15 * np.abs(expected)).all()
    assert logarithm(np.array([1.0])).tolist() == [0.0]


def test_exponential_numbers_have_the_exponential_distribution() -> None:
    numbers = exponentials(5, np.arange(BATCHES))
    bounds = [0.1, 0.5, 1.0, 2.0, 4.0]
    seen = Counter(bound for bound in bounds for number in numbers.tolist() if number <= bound)
    assert_frequencies(seen, {bound: 1 - math.exp(-bound) for bound in bounds})


def test_the_first_of_a_permutation_are_found_without_the_rest_and_equals_keep_their_order() -> None:
    for count in (1, 7, 100):
        assert drawn(9, 100, count).tolist() == permutation(9, 100)[:count].tolist()
        numbers = np.arange(100) * 37 % 5
        assert smallest(numbers, count).tolist() == sorted(range(100), key=lambda place: numbers[place])[:count]


# Refusals


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (
            {"kind": "hierarchical", "categories_per_batch": 3},
            r"classes = 4 cannot be shared equally by 3 categories: .* from \[1, 2, 4\]",
        ),
        ({"kind": "hierarchical", "categories_per_batch": 0}, "greater than or equal to 1"),
        ({"kind": "frequency", "power": 2}, "Extra inputs"),
        ({"kind": "sometimes"}, "'uniform', 'frequency', 'sqrt_frequency', 'hierarchical'"),
    ],
)
def test_a_sampling_that_cannot_be_is_refused(sampling: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        batch_spec(sampling)


def test_categories_with_too_few_classes_are_refused_with_the_numbers() -> None:
    with pytest.raises(
        DataError, match=r"4 / 2 classes of a category, and 1 of 3 .*'dog' with 1.*small_categories: drop"
    ):
        plan({"kind": "hierarchical", "categories_per_batch": 2})
    with pytest.raises(DataError, match=r"categories_per_batch = 4 .* has 3, of which 3 hold at least 1 classes"):
        plan({"kind": "hierarchical", "categories_per_batch": 4})
    with pytest.raises(
        DataError, match=r"categories_per_batch = 1 .* has 3, of which 0 hold at least 4 .*batch.classes"
    ):
        plan({"kind": "hierarchical", "small_categories": "drop"})


def photos(folder: Path, categories: list[str]) -> Dataset:
    """Ten classes of two pictures, a row each, the categories given by row."""
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "split", "category"])
        writer.writeheader()
        for row, category in enumerate(categories):
            picture = Image.fromarray(np.random.default_rng(row).integers(0, 256, (4, 4, 3), dtype=np.uint8))
            picture.save(folder / f"{row}.png")
            split = "test" if row >= len(categories) - 4 else "train"
            writer.writerow({"path": f"{row}.png", "label": f"class {row // 2}", "split": split, "category": category})
    return open_dataset(ManifestData(path=str(folder / "table.csv"), image_size=4), folder / "home")


BY_CATEGORY = batch_spec({"kind": "hierarchical"}, classes=2)


def test_the_category_column_of_a_manifest_decides(tmp_path: Path) -> None:
    dataset = photos(tmp_path, ["fish", "fish", "fowl", "fowl"] * 4 + ["", "", "", ""])
    made = sampling_plan(dataset, BY_CATEGORY, 0)
    for step in range(20):
        items = dataset.indices("train")[made.batch(step)]
        assert len({dataset.items.payloads[item]["category"] for item in items}) == 1
        assert len({dataset.items.payloads[item]["label"] for item in items}) == 2


def test_another_category_makes_another_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for number, names in enumerate((["a", "a", "b", "b"], ["a", "a", "a", "a"], [""] * 4)):
        (tmp_path / str(number)).mkdir()
        prints.add(photos(tmp_path / str(number), names * 4).fingerprint)
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([""] * 20, r"16 of 16 have none: 0.png, 1.png, 2.png, ...; fill the manifest's column `category`"),
        (["a"] * 15 + [""] * 5, r"1 of 16 have none: 15.png;"),
        (["a"] * 15 + ["b"] * 5, r"class 'class 7' is in the categories 'a' and 'b' \(15.png\)"),
    ],
)
def test_missing_or_contradictory_categories_are_refused(tmp_path: Path, categories: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sampling_plan(photos(tmp_path, categories), BY_CATEGORY, 0)
