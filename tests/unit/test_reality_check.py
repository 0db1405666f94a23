"""Folds of classes against their definition, and the two ways to measure the models of all folds against loops."""

from __future__ import annotations

import numpy as np
import pytest

from raydml.data.folds import class_folds
from raydml.errors import DataError
from raydml.evaluation import retrieval, summarise
from raydml.evaluation.reality_check import concatenated, separated

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(("number", "folds"), [(8, 4), (100, 4), (103, 4), (11, 5), (4, 2)])
def test_each_class_is_validated_on_once_and_trained_on_in_all_other_folds(number: int, folds: int) -> None:
    classes = [3 * one - 7 for one in range(number)]
    shuffled = np.random.default_rng(number).permutation(classes + classes)  # in any order, and twice
    found = class_folds(shuffled, folds)
    assert len(found) == folds
    assert [one for fold in found for one in fold.validation.tolist()] == classes  # contiguous, in order
    for fold in found:
        assert sorted([*fold.train.tolist(), *fold.validation.tolist()]) == classes
        assert fold.train.tolist() == sorted(fold.train.tolist())
        assert number // folds <= len(fold.validation) <= number // folds + 1


def test_the_four_folds_of_a_hundred_classes_are_those_of_the_paper() -> None:
    folds = class_folds(range(100))
    assert [(fold.validation[0], fold.validation[-1]) for fold in folds] == [(0, 24), (25, 49), (50, 74), (75, 99)]


@pytest.mark.parametrize(
    ("classes", "folds", "words"), [(7, 4, "7 training classes"), (10, 1, "1 folds"), (0, 4, "0 tr")]
)
def test_too_few_classes_or_folds_are_refused(classes: int, folds: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        class_folds(range(classes), folds)


def test_the_cosine_of_concatenated_embeddings_is_the_mean_of_the_models_cosines() -> None:
    random = np.random.default_rng(0)
    parts = [random.normal(0, scale, (6, 5)).astype(np.float32) for scale in (1, 100, 0.01, 3)]
    whole = concatenated(parts)
    assert whole.shape == (6, 20) and whole.dtype == np.float32
    assert np.linalg.norm(whole, axis=1) == pytest.approx(np.ones(6))
    for a in range(6):
        for b in range(6):
            cosines = [float(part[a] @ part[b] / (np.linalg.norm(part[a]) * np.linalg.norm(part[b]))) for part in parts]
            assert float(whole[a] @ whole[b]) == pytest.approx(sum(cosines) / 4, abs=1e-6)


def test_a_row_of_zeros_stays_one() -> None:
    whole = concatenated([np.zeros((2, 3)), np.array([[0.0, 0, 0], [3, 0, 4]])])
    assert whole.tolist() == [[0] * 6, pytest.approx([0, 0, 0, 0.6, 0, 0.8])]


def test_separated_is_the_mean_of_the_models_metrics() -> None:
    random = np.random.default_rng(1)
    labels = np.arange(20) % 5
    own = np.arange(20)
    parts = [random.normal(size=(20, 4)) for _ in range(4)]
    each = [summarise(retrieval(part, labels, part, labels, own=own)) for part in parts]
    found = separated(each)
    assert found["map_at_r"] == pytest.approx(sum(one["map_at_r"] for one in each) / 4)
    assert found.keys() == each[0].keys() and found["queries"] == 20


def test_parts_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DataError, match="same items"):
        concatenated([np.zeros((2, 3)), np.zeros((3, 3))])
    with pytest.raises(DataError, match="same items"):
        concatenated([])
    with pytest.raises(DataError, match="same items"):
        concatenated([np.zeros(3), np.zeros(3)])
    with pytest.raises(DataError, match="other metrics"):
        separated([{"a": 1.0}, {"b": 1.0}])
    with pytest.raises(DataError, match="other metrics"):
        separated([])
