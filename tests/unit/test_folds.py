"""Data divided anew for cross-validation: each class validates once, and test items stay what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raydml.data import Dataset, open_dataset
from raydml.errors import DataError, SpecError
from raydml.spec import CustomData, FoldSpec
from raydml.specfile import parse_spec
from tests.unit.test_tuning_trials import Vectors

pytestmark = pytest.mark.timeout(60)


def divided(number: int | None, of: int = 4) -> Dataset:
    fold = None if number is None else FoldSpec(number=number, of=of)
    return open_dataset(CustomData(fold=fold), Path(), custom=Vectors())


def classes(dataset: Dataset, split: str) -> list[int]:
    return sorted({int(dataset.items.class_names[label]) for label in dataset.items.labels[dataset.indices(split)]})


def test_each_class_that_is_not_of_test_validates_in_one_fold_and_trains_in_all_others() -> None:
    plain = divided(None)
    free = [number for number in range(20) if number % 5 != 4]
    assert classes(plain, "test") == [4, 9, 14, 19]
    validated = []
    for number in range(4):
        found = divided(number)
        assert found.indices("test").tolist() == plain.indices("test").tolist()
        validated += classes(found, "validation")
        assert sorted(classes(found, "train") + classes(found, "validation")) == free
        assert found.num_training_classes == 12 == found.report.classes["train"]
        assert sorted(set(found.training_labels.tolist())) == list(range(12))
        assert np.array_equal(found.tensors(range(120)), plain.tensors(range(120)))
    assert validated == free, "the classes in order, a fourth of them at a time"


def test_data_that_is_divided_otherwise_is_other_data_to_a_run() -> None:
    prints = {divided(number).fingerprint for number in (None, 0, 1, 2, 3)} | {divided(0, 2).fingerprint}
    assert len(prints) == 6


def test_a_fold_that_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="16 training classes do not make 9 folds of 2 or more: take fewer folds"):
        divided(0, 9)
    document = {"name": "a", "data": {"kind": "glyphs", "fold": {"number": 4, "of": 4}}, "loss": {"kind": "triplet"}}
    with pytest.raises(SpecError, match=r"number = 4 is none of 4 parts, which are 0 to 3"):
        parse_spec(document)
