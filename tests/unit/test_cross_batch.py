"""The memory of past batches: values against a loop and against pytorch-metric-learning, and what is committed."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from pytorch_metric_learning.losses import CrossBatchMemory
from torch import Tensor

from raydml import catalogue
from raydml.errors import TrainingDiverged
from raydml.losses import Objective, evaluate_objective
from raydml.losses.build import build_loss, build_miner
from raydml.losses.cross_batch import CrossBatchTerm
from raydml.losses.randomness import keyed
from raydml.losses.table import LOSSES, MINERS
from raydml.parallel import Group
from raydml.training.checkpoints import Checkpoints
from raydml.training.worker import Job, Worker
from tests.distributed.harness import small_spec

LOSS: TypeAdapter[Any] = TypeAdapter(catalogue.LossSpec)
CLASSES, DIMENSION, ROWS = 5, 8, 20
ALL = {"size": 50, "start_step": 0}
ENTRIES = {
    get_args(entry.model_fields["kind"].annotation)[0]: entry for entry in get_args(get_args(catalogue.LossSpec)[0])
}
REMEMBERING = sorted(name for name, entry in ENTRIES.items() if issubclass(entry, catalogue.Remembering))


def objective(document: dict[str, Any]) -> Objective:
    loss = LOSS.validate_python(document)
    return Objective(loss, num_classes=CLASSES, dimension=DIMENSION, seed=3, dtype=torch.float64)


def batches(count: int, rows: int = ROWS) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(rows)
    return [
        (
            torch.randn(rows, DIMENSION, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (rows,), generator=generator),
        )
        for _ in range(count)
    ]


def memory_of(made: Objective) -> CrossBatchTerm:
    assert isinstance(made.term, CrossBatchTerm)
    return made.term


def after(document: dict[str, Any], past: list[tuple[Tensor, Tensor]]) -> Objective:
    made = objective(document)
    for embeddings, labels in past:
        made.commit(embeddings, labels)
    return made


# Values


def test_the_loss_is_that_of_the_batch_plus_that_against_the_memory_by_a_loop() -> None:
    past, (embeddings, labels) = batches(3), batches(1, 6)[0]
    document = {"kind": "contrastive", "neg_margin": 1.2, "reducer": {"kind": "sum"}, "memory": ALL | {"weight": 0.25}}
    unit = torch.nn.functional.normalize(embeddings)
    known = torch.nn.functional.normalize(torch.cat([rows for rows, _ in past])[-50:])
    known_labels = torch.cat([numbers for _, numbers in past])[-50:]

    def cost(one: Tensor, other: Tensor, same: bool) -> float:
        distance = float((one - other).norm())
        return distance if same else max(0.0, 1.2 - distance)

    expected = 0.0
    for i in range(6):
        for j in range(6):
            expected += cost(unit[i], unit[j], bool(labels[i] == labels[j])) if i != j else 0.0
        for j in range(50):
            expected += 0.25 * cost(unit[i], known[j], bool(labels[i] == known_labels[j]))
    loss, _ = after(document, past).measure(embeddings, labels)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


CASES: list[dict[str, Any]] = [{"kind": name} for name in REMEMBERING]
CASES += [{"kind": "triplet", "margin": 1, "miner": {"kind": name}} for name in MINERS if name != "angular"]
CASES += [
    {"kind": "triplet", "margin": 1, "miner": {"kind": kind, "margin": 0.3, "distance": {"kind": distance}}}
    for kind in ("all", "hard", "semihard", "easy")
    for distance in ("cosine", "euclidean")
]
CASES += [{"kind": name, "miner": {"kind": "multi_similarity"}} for name in REMEMBERING if name != "circle"]


@pytest.mark.parametrize("document", CASES, ids=lambda document: str(document).replace("'", ""))
def test_the_part_against_the_memory_is_pytorch_metric_learning_s(document: dict[str, Any]) -> None:
    """Its CrossBatchMemory with a mask that enqueues nothing: then it too compares with past batches alone."""
    past, (embeddings, labels) = batches(4), batches(1, 12)[0]
    ours, alone = after(document | {"memory": ALL}, past), objective(document)
    spec = LOSS.validate_python(document)
    loss = build_loss(spec, CLASSES, DIMENSION).double()
    miner = None if spec.miner is None else build_miner(spec.miner, loss.distance)
    theirs = CrossBatchMemory(loss, DIMENSION, memory_size=50, miner=miner)
    theirs.embedding_memory = theirs.embedding_memory.double()
    for rows, numbers in past:
        theirs.add_to_memory(rows, numbers, len(rows))
    assert theirs.has_been_filled
    assert torch.equal(theirs.embedding_memory, memory_of(ours).embeddings)
    assert torch.equal(theirs.label_memory, memory_of(ours).labels)

    leaf = embeddings.clone().requires_grad_()
    with keyed(7, 5, leaf.device):  # what is drawn at random is drawn after what the batch alone draws
        in_batch, _ = alone.measure(leaf, labels)
        against = theirs(leaf, labels, enqueue_mask=torch.zeros(12, dtype=torch.bool))
    assert float(against.detach()) > 0
    total = in_batch + against
    (expected,) = torch.autograd.grad(total, leaf)
    verdict = evaluate_objective(ours, embeddings, labels, 5, 7)
    assert float(verdict.loss) == pytest.approx(float(total.detach()), rel=1e-12)
    assert torch.allclose(verdict.cotangents, expected, rtol=1e-10, atol=1e-12)


def test_triplets_drawn_at_random_are_drawn_against_the_memory_too() -> None:
    past, (embeddings, labels) = batches(3), batches(1)[0]
    document = {"kind": "triplet", "triplets_per_anchor": 2, "memory": ALL}
    losses = [float(evaluate_objective(after(document, past), embeddings, labels, 5, seed).loss) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_the_class_weights_of_a_memory_s_pairs_are_those_of_the_anchor() -> None:
    past, (embeddings, labels) = batches(3), batches(1)[0]
    weights = [1.0, 2.0, 3.0, 4.0, 0.0]
    base = {"kind": "multi_similarity", "memory": ALL}
    made = after(base | {"reducer": {"kind": "class_weighted", "weights": weights}}, past)
    rows = [
        float(
            after(base | {"reducer": {"kind": "class_weighted", "weights": one}}, past).measure(embeddings, labels)[0]
        )
        for one in torch.eye(CLASSES).tolist()
    ]
    expected = sum(weight * row for weight, row in zip(weights, rows, strict=True))
    assert float(made.measure(embeddings, labels)[0]) == pytest.approx(expected, rel=1e-12)


# The ring


def test_the_ring_holds_the_latest_rows_like_a_queue_of_that_length() -> None:
    made, queue = objective({"kind": "contrastive", "memory": ALL}), deque[tuple[list[float], int]](maxlen=50)
    for embeddings, labels in batches(9):
        made.commit(embeddings, labels)
        queue.extend(zip(embeddings.tolist(), labels.tolist(), strict=True))
        ring = memory_of(made)
        count = min(int(ring.rows), 50)
        held = zip(ring.embeddings[:count].tolist(), ring.labels[:count].tolist(), strict=True)
        assert sorted(held) == sorted(queue)
    assert (int(ring.rows), int(ring.steps)) == (180, 9)


def test_the_memory_counts_from_its_first_step_on() -> None:
    past, (embeddings, labels) = batches(4), batches(1)[0]
    document = {"kind": "multi_similarity", "miner": {"kind": "multi_similarity"}}
    alone = float(objective(document).measure(embeddings, labels)[0])
    seen = []
    for steps in range(4):
        made = after(document | {"memory": {"size": 50, "start_step": 2}}, past[:steps])
        loss, statistics = made.measure(embeddings, labels)
        seen.append((float(loss) == alone, "memory_tuples" in statistics))
    assert seen == [(True, False), (True, False), (False, True), (False, True)]


def test_a_memory_without_a_pair_that_counts_adds_nothing() -> None:
    embeddings, labels = batches(1)[0]
    document = {"kind": "triplet", "miner": {"kind": "semihard"}}
    made = after(document | {"memory": ALL}, [(embeddings, torch.full_like(labels, 4))])
    loss, statistics = made.measure(embeddings, labels.clamp(max=3))
    assert float(loss) == float(objective(document).measure(embeddings, labels.clamp(max=3))[0])
    assert statistics["memory_tuples"] == 0


def test_no_gradient_and_no_change_reaches_the_memory_before_the_commit() -> None:
    past, (embeddings, labels) = batches(3), batches(1)[0]
    made = after({"kind": "nt_xent", "memory": ALL}, past)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert set(before) == {f"term.{name}" for name in ("embeddings", "labels", "rows", "steps")}
    verdict = evaluate_objective(made, embeddings, labels, 3, 0)
    assert verdict.cotangents.shape == embeddings.shape
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in before.items())
    made.commit(embeddings.requires_grad_(), labels)
    assert not memory_of(made).embeddings.requires_grad
    assert not any(torch.equal(value, made.state_dict()[name]) for name, value in before.items())


def test_own_weights_and_a_center_loss_go_with_a_memory() -> None:
    past, (embeddings, labels) = batches(3), batches(1)[0]
    made = after({"kind": "margin", "learn_beta": True, "nu": 0.1, "center": {}, "memory": ALL}, past)
    verdict = evaluate_objective(made, embeddings, labels, 3, 0)
    assert [weight.abs().max() > 0 for weight in verdict.weights] == [True]
    assert {"center.centers", "term.embeddings", "term.term.loss.beta"} <= set(made.state_dict())


# Training


def worker(images: Path, folder: Path, resume: int | None = None) -> Worker:
    folder.mkdir(exist_ok=True)
    loss = {"kind": "contrastive", "memory": {"size": 80, "start_step": 1}}
    spec = small_spec(images, loss=loss, train={"steps": 6, "evaluate_every": 0, "checkpoint_every": 3, "keep_last": 9})
    return Worker(Job(spec, folder, folder, resume), Group(0, 1, 8), torch.device("cpu"))


def test_a_run_killed_after_a_checkpoint_ends_with_the_same_memory(images: Path, tmp_path: Path) -> None:
    whole = worker(images, tmp_path / "whole")
    assert whole.run() == "succeeded"
    first = worker(images, tmp_path / "killed")
    first.trainer.run(6, lambda report: first._after_step(report) and report.step < 5)  # two steps after its checkpoint
    assert first.checkpoints.steps() == [3]
    resumed = worker(images, tmp_path / "killed", resume=3)
    kept = memory_of(resumed.trainer.objective)
    assert (int(kept.rows), int(kept.steps)) == (96, 3)
    assert resumed.run() == "succeeded"
    digests = [Checkpoints(tmp_path / name / "checkpoints", 9).header(6).state_sha256 for name in ("whole", "killed")]
    assert digests[0] == digests[1]
    rings = [memory_of(one.trainer.objective).embeddings for one in (whole, resumed)]
    assert torch.equal(*rings) and rings[0].abs().sum(dim=1).min() > 0


def test_the_memory_is_part_of_the_state_s_digest(images: Path, tmp_path: Path) -> None:
    one = worker(images, tmp_path)
    before = one.trainer.state.digest()
    memory_of(one.trainer.objective).embeddings[7, 3] += 1
    assert one.trainer.state.digest() != before


def test_a_step_that_diverges_leaves_no_trace_in_the_memory(images: Path, tmp_path: Path) -> None:
    one = worker(images, tmp_path)
    state = one.trainer.state
    one.trainer.model.head.weight.register_hook(
        lambda gradient: gradient * float("nan") if state.step == 2 else gradient
    )
    seen: list[str] = []
    with pytest.raises(TrainingDiverged):
        one.trainer.run(6, lambda report: seen.append(state.digest()) is None)
    assert len(seen) == 2 and state.digest() == seen[-1]
    assert int(memory_of(one.trainer.objective).steps) == 2


# Refusals


def test_every_loss_takes_a_memory_or_says_why_not() -> None:
    for name, entry in ENTRIES.items():
        document = {"kind": name, "memory": {"size": 64}} | ({"margin": 1, "Tn": 1} if name == "ranked_list" else {})
        if name in REMEMBERING:
            assert LOSS.validate_python(document).memory.size == 64
            continue
        with pytest.raises(ValidationError) as caught:
            LOSS.validate_python(document)
        message = caught.value.errors()[0]["msg"]
        assert f"{name} takes no memory: it {entry.no_memory}; those that take one are contrastive" in message


def test_the_losses_with_a_memory_are_pytorch_metric_learning_s_but_for_two() -> None:
    names = {LOSSES[name].__name__ for name in REMEMBERING}
    assert names == set(CrossBatchMemory.supported_losses()) - {"LiftedStructureLoss", "TupletMarginLoss"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"kind": "arcface", "memory": {}}, "arcface takes no memory: it compares rows with vectors of its own"),
        ({"kind": "contrastive", "memory": {"size": 0}}, "greater than or equal to 1"),
        ({"kind": "contrastive", "memory": {"start": 3}}, "Extra inputs"),
        ({"kind": "triplet", "swap": True, "memory": {}}, r"swap needs d\(p, n\), and both rows are in the memory"),
        ({"kind": "triplet", "miner": {"kind": "angular"}, "memory": {"size": 77}}, r"angular would hold rows x 77\^2"),
        ({"kind": "nt_xent", "reducer": {"kind": "per_anchor"}, "memory": {}}, "per_anchor counts pairs inside one"),
        ({"kind": "cross_batch_memory"}, r"write it inside one: \{kind: contrastive, memory: \{size: 4096"),
    ],
)
def test_a_memory_that_cannot_be_is_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LOSS.validate_python(document)


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ({"size": 31, "start_step": 0}, r"memory.size = 31 is less than one global batch of 8 x 4 = 32 rows"),
        ({"size": 32, "start_step": 20}, r"start_step = 20 is never reached by train.steps = 20"),
    ],
)
def test_a_memory_that_does_not_fit_the_job_is_refused_with_the_numbers(
    tmp_path: Path, memory: dict[str, int], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        small_spec(tmp_path, loss={"kind": "contrastive", "memory": memory})
