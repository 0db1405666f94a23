"""Classes that meet the classes nearest to them: the draw, the table behind it, and the table through a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from raydml.data import SamplingPlan, open_dataset, sampling_plan
from raydml.data.negatives import exported_neighbours
from raydml.errors import CheckpointError, DataError
from raydml.parallel import Group
from raydml.search import Collection
from raydml.search.insight import export_hard_negatives
from raydml.spec import BatchSpec
from raydml.training import neighbours
from raydml.training.checkpoints import Checkpoints
from raydml.training.neighbours import class_means, nearest_rows
from raydml.training.worker import Job, Worker
from tests.distributed.harness import small_spec, write_images

LABELS = np.repeat(np.arange(12), 4)
GROUP, CPU = Group(0, 1, 8), torch.device("cpu")
HARD = {"kind": "hard_classes", "neighbours": 2, "refresh_every": 3, "images": 3}


def plan(sampling: dict[str, Any], labels: NDArray[np.int64] = LABELS, classes: int = 6, seed: int = 3) -> SamplingPlan:
    spec = BatchSpec.model_validate({"classes": classes, "samples": 4, "virtual_workers": 4, "sampling": sampling})
    return SamplingPlan(labels, spec, seed)


def in_threes() -> NDArray[np.int64]:
    """Classes 0, 1, 2 are each other's nearest, and so are 3, 4, 5 and so on."""
    return np.array([[other for other in range(c // 3 * 3, c // 3 * 3 + 3) if other != c] for c in range(12)])


# The draw


def test_before_the_first_table_batches_are_the_uniform_ones() -> None:
    hard, uniform = plan(HARD), plan({"kind": "uniform"})
    assert all((hard.batch(step) == uniform.batch(step)).all() for step in range(10))
    hard.learn(in_threes())
    assert any((hard.batch(step) != uniform.batch(step)).any() for step in range(10))


def test_classes_come_with_their_nearest_ones_and_all_groups_alike() -> None:
    made = plan(HARD)
    made.learn(in_threes())
    batches = 2000
    seen = np.zeros(4)
    for step in range(batches):
        groups = np.bincount(made.classes(step) // 3, minlength=4)
        assert sorted(groups.tolist()) == [0, 0, 3, 3]
        seen += groups > 0
    deviation = math.sqrt(batches * 0.5 * 0.5)  # two groups of four: p = 1/2; 5 deviations: 6e-7 to fail by chance
    assert np.abs(seen - batches / 2).max() <= 5 * deviation


def test_whatever_the_table_a_batch_is_full_of_different_classes_pure_and_seekable() -> None:
    table = np.random.default_rng(0).integers(0, 12, (12, 5))
    table[:6] = [7, 8, 9, 10, 11]  # many classes with the same neighbours
    sampling = HARD | {"neighbours": 5}
    forward, backward = plan(sampling), plan(sampling)
    forward.learn(table)
    backward.learn(table.copy())
    batches = [forward.batch(step) for step in range(30)]
    for step in (10**12, *reversed(range(30))):
        batch = backward.batch(step)
        assert len(set(LABELS[batch].tolist())) == 6
        assert step >= 30 or (batch == batches[step]).all()


def test_a_new_table_holds_from_the_next_question_on() -> None:
    made, fresh = plan(HARD), plan(HARD)
    fresh.learn(in_threes())
    before = made.batch(5)
    made.learn(in_threes())
    assert (made.batch(5) == fresh.batch(5)).all()
    assert (made.batch(5) != before).any()


def test_classes_that_are_left_out_are_nobody_s_neighbours() -> None:
    labels = np.repeat(np.arange(12), [4, 1] * 6)
    spec = BatchSpec(classes=4, samples=4, virtual_workers=4, small_classes="drop", sampling=plan(HARD).spec.sampling)
    made = SamplingPlan(labels, spec, 0)
    assert made.neighbours is not None and made.neighbours.shape == (6, 2)
    made.learn(np.array([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]))
    assert {int(number) for step in range(40) for number in made.classes(step)} == {0, 2, 4, 6, 8, 10}
    assert all(
        (labels[rows] == number).all() for rows, number in zip(made.examples(7, 3), range(0, 12, 2), strict=True)
    )
    assert [len(set(rows.tolist())) for rows in made.examples(7, 3)] == [3] * 6


# The table


@pytest.mark.parametrize("block", [1, 7, 512])
def test_the_nearest_rows_are_those_of_a_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    rows = torch.randn(23, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = nearest_rows(rows, 4, GROUP, CPU)
    for number in range(23):
        distances = {other: float((rows[number] - rows[other]).norm()) for other in range(23) if other != number}
        assert found[number].tolist() == sorted(distances, key=lambda other: distances[other])[:4]


def worker(images: Path, folder: Path, resume: int | None = None, sampling: dict[str, Any] = HARD) -> Worker:
    folder.mkdir(exist_ok=True)
    train = {"steps": 8, "evaluate_every": 0, "checkpoint_every": 2, "keep_last": 9}
    spec = small_spec(images, train=train, **{"batch.classes": 4, "batch.sampling": sampling})
    return Worker(Job(spec, folder, folder, resume), GROUP, CPU)


def test_a_class_stands_where_the_mean_of_some_of_its_embeddings_does(images: Path, tmp_path: Path) -> None:
    one = worker(images, tmp_path)
    trainer, dataset = one.trainer, one.dataset
    examples = trainer.plan.examples(0, 3)
    means = class_means(examples, trainer.model, dataset, GROUP, 8)
    assert means.shape == (12, 8) and trainer.model.training
    trainer.model.eval()
    items = dataset.indices("train")
    for number, rows in enumerate(examples):
        assert {int(dataset.training_labels[row]) for row in rows} == {number}
        with torch.no_grad():
            embedded = [trainer.model(dataset.tensors([items[row]]))[0].double() for row in rows]
        assert torch.allclose(means[number], sum(embedded) / 3, atol=1e-6)


# Training


def trained(one: Worker, until: int = 8) -> tuple[str, list[list[int]]]:
    """The state's digest at the end, and the classes of each batch that was taken."""
    plan, seen = one.trainer.plan, []

    def after(report: Any) -> bool:
        seen.append(plan.classes(report.step - 1).tolist())
        return one._after_step(report) and report.step < until

    one.trainer.run(8, after)
    return one.trainer.state.digest(), seen


def test_batches_change_after_the_first_refresh_and_only_then(images: Path, tmp_path: Path) -> None:
    hard = trained(worker(images, tmp_path / "hard"))[1]
    uniform = trained(worker(images, tmp_path / "uniform", sampling={"kind": "uniform"}))[1]
    assert hard[:3] == uniform[:3]
    assert all(one != other for one, other in zip(hard[3:], uniform[3:], strict=True))


@pytest.mark.parametrize("checkpoint", [2, 4, 6])  # before the first table, between two, at a refresh
def test_a_resumed_run_takes_the_same_batches(images: Path, tmp_path: Path, checkpoint: int) -> None:
    digest, batches = trained(worker(images, tmp_path / "whole"))
    trained(worker(images, tmp_path / "killed"), until=checkpoint)
    assert Checkpoints(tmp_path / "killed" / "checkpoints", 9).steps()[-1] == checkpoint
    resumed, rest = trained(worker(images, tmp_path / "killed", resume=checkpoint))
    assert (resumed, rest) == (digest, batches[checkpoint:])


def test_the_table_is_in_the_state_and_its_digest(images: Path, tmp_path: Path) -> None:
    one = worker(images, tmp_path)
    assert (one.trainer.state.tensors()["sampling.neighbours"] == -1).all()
    trained(one)
    tensors = one.trainer.state.tensors()
    table = tensors["sampling.neighbours"]
    assert table.shape == (12, 2) and table.min() >= 0
    assert all(number not in row for number, row in enumerate(table.tolist()))
    before = one.trainer.state.digest()
    table[3, 1] = (table[3, 1] + 1) % 12
    assert one.trainer.state.digest() != before
    with pytest.raises(CheckpointError, match=r"table of neighbours is \(11, 2\), not \(12, 2\)"):
        one.trainer.state.load(tensors | {"sampling.neighbours": table[1:]}, 8)


# Refusals


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"neighbours": 8}, r"neighbours = 8 and their class are more than the classes = 8 .* to 7 or less"),
        ({"neighbours": 0}, "greater than or equal to 1"),
        ({"refresh_every": 20}, r"refresh_every = 20 comes to nothing in train.steps = 20"),
        ({"images": 0}, "greater than or equal to 1"),
    ],
)
def test_hard_classes_that_cannot_be_are_refused_with_the_numbers(
    tmp_path: Path, sampling: dict[str, int], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        small_spec(tmp_path, **{"batch.sampling": HARD | sampling})


# A table that a collection has exported


def test_what_a_collection_exports_leads_the_batches_until_the_first_refresh(tmp_path: Path) -> None:
    path = write_images(tmp_path, classes=20)
    spec = small_spec(path, batch={"classes": 6, "samples": 4, "virtual_workers": 4, "sampling": HARD})
    dataset = open_dataset(spec.data, tmp_path)
    train = dataset.indices("train")
    names = [dataset.items.payloads[item]["label"] for item in train]
    with Collection.open(tmp_path / "c", int(np.prod(dataset.input_shape)), "l2") as collection:
        collection.upsert(train.tolist(), dataset.raw(train), [{"label": name} for name in names])
        export_hard_negatives(collection, "label", tmp_path / "negatives.jsonl", k=3)
    sampling = {**HARD, "negatives": str(tmp_path / "negatives.jsonl"), "refresh_every": 1000}
    made = sampling_plan(dataset, BatchSpec.model_validate({**spec.batch.model_dump(), "sampling": sampling}), 3)

    counts: dict[str, dict[str, int]] = {}
    for line in (tmp_path / "negatives.jsonl").read_text().splitlines():
        item = json.loads(line)
        for other in item["negatives"]:
            found = counts.setdefault(item["label"], {})
            found[other["label"]] = found.get(other["label"], 0) + 1
    name_of = dict(zip(dataset.training_labels.tolist(), names, strict=True))
    assert made.neighbours is not None and len(made.neighbours) == len(name_of)
    for number, row in enumerate(made.neighbours.tolist()):
        best = sorted(counts[name_of[number]].values(), reverse=True)[: len(row)]
        assert [counts[name_of[number]][name_of[other]] for other in row] == best
    leaders = [set(made.neighbours[number].tolist()) for number in range(len(name_of))]
    for step in range(20):
        together = set(made.classes(step).tolist())
        assert sum(leaders[number] <= together for number in together) >= 2, "most come with all of theirs"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), ("{", "not an export"), ('{"label": "x"}', "negatives"), ("", "names no two training")],
)
def test_a_file_that_is_no_export_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "negatives.jsonl"
    if content is not None:
        file.write_text(content)
    spec = small_spec(write_images(tmp_path))
    dataset = open_dataset(spec.data, tmp_path)
    with pytest.raises(DataError, match=words):
        exported_neighbours(file, dataset, 2)
