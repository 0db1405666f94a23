"""Class-parallel heads on one worker against pytorch-metric-learning, and against loops a child could check."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from pytorch_metric_learning import losses
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from raydml.losses import Home, Objective, evaluate_objective
from raydml.losses.heads import scores
from raydml.losses.heads.sampling import hashed, sampled
from raydml.parallel import Group
from raydml.spec import JobSpec, Sgd
from tests.unit.test_losses import LOSS

DIMENSION, SEED = 6, 3
CPU = torch.device("cpu")
LIBRARY: dict[str, tuple[dict[str, Any], Any]] = {
    "arc_face": ({"scale": 16}, losses.ArcFaceLoss),
    "cos_face": ({"scale": 16}, losses.CosFaceLoss),
    "sub_center_arc_face": ({"scale": 16, "sub_centers": 3}, losses.SubCenterArcFaceLoss),
    "normalized_softmax": ({"temperature": 0.1}, losses.NormalizedSoftmaxLoss),
    "proxy_anchor": ({"alpha": 8}, losses.ProxyAnchorLoss),
}
OWN = ("softmax", "curricular_face")
SGD = Sgd(lr=0.1, momentum=0.9, weight_decay=0.05)
CLASSES = (29, 5, 8, 1)  # uneven shards of 8, fewer than shards, one class a shard, and one class alone


def home(group: Group | None = None, optimizer: Any = None) -> Home:
    return Home(group or Group(0, 1, 8), CPU, optimizer or Sgd(), lambda step: 0.1)


def objective(document: dict[str, Any], num_classes: int, at: Home | None = None, **changes: Any) -> Objective:
    options = {"num_classes": num_classes, "dimension": DIMENSION, "seed": SEED, "dtype": torch.float64} | changes
    return Objective(LOSS.validate_python(document), home=at or home(), **options)


def batch(num_classes: int, rows: int = 48) -> tuple[Tensor, Tensor]:
    """Classes of one to many rows in no order; not every class has one."""
    generator = torch.Generator().manual_seed(rows + num_classes)
    labels = torch.randint(0, max(1, num_classes - 1), (rows,), generator=generator)
    return torch.randn(rows, DIMENSION, generator=generator, dtype=torch.float64), labels


def vectors(made: Objective) -> Tensor:
    """All class vectors in order of classes, (C x K, D), of a worker that owns them all."""
    assert made.head is not None
    table = made.head.table
    parts = [table.shard(index)["vectors"] for index in table.group.owned]
    return torch.cat(parts).reshape(-1, DIMENSION).clone()


def plain_loss(kind: str, embeddings: Tensor, labels: Tensor, weights: Tensor, step: dict[str, Any]) -> Tensor:
    """The heads that the library has not, row by row."""
    total = embeddings.new_zeros(())
    if kind == "softmax":
        for row, label in zip(embeddings, labels.tolist(), strict=True):
            total = total - functional.log_softmax(weights @ row, dim=0)[label]
        return total / len(labels)
    cosines = functional.normalize(embeddings) @ functional.normalize(weights).T
    easiness = 0.01 * cosines[torch.arange(len(labels)), labels].mean().detach()
    margin = math.radians(28.6)
    for cosine, label in zip(cosines, labels.tolist(), strict=True):
        own = cosine[label]
        added = torch.cos(torch.acos(own) + margin)
        target = added if own > math.cos(math.pi - margin) else own - math.sin(math.pi - margin) * margin
        logits = [
            target if other == label else value * (easiness + value) if value > added else value
            for other, value in enumerate(cosine)
        ]
        total = total - functional.log_softmax(torch.stack(logits) * step["scale"], dim=0)[label]
    return total / len(labels)


def wanted(kind: str, embeddings: Tensor, labels: Tensor, weights: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """Loss, dL/d(embeddings) and dL/d(vectors) of one process that holds everything."""
    leaf = embeddings.clone().requires_grad_()
    if kind in OWN:
        parameter = weights.clone().requires_grad_()
        loss = plain_loss(kind, leaf, labels, parameter, options)
        return [loss.detach(), *torch.autograd.grad(loss, [leaf, parameter])]
    classes = len(weights) // options.get("sub_centers", 1)
    theirs = LIBRARY[kind][1](num_classes=classes, embedding_size=DIMENSION, **options).double()
    (parameter,) = theirs.parameters()
    columns = kind != "proxy_anchor"
    parameter.data.copy_(weights.T if columns else weights)
    loss = theirs(leaf, labels)
    of_leaf, of_parameter = torch.autograd.grad(loss, [leaf, parameter])
    return [loss.detach(), of_leaf, of_parameter.T if columns else of_parameter]


def options_of(kind: str) -> dict[str, Any]:
    return LIBRARY[kind][0] if kind in LIBRARY else {"scale": 16} if kind == "curricular_face" else {}


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 5 x 3: neither cuts the batch or the classes of a shard evenly."""
    monkeypatch.setattr(scores, "ROWS", 5)
    monkeypatch.setattr(scores, "COLUMNS", 3)


@pytest.mark.parametrize("num_classes", CLASSES)
@pytest.mark.parametrize("kind", [*LIBRARY, *OWN])
def test_heads_give_value_and_gradient_of_one_process_with_all_classes(
    kind: str, num_classes: int, small_tiles: None
) -> None:
    made = objective({"kind": kind, "class_parallel": True, **options_of(kind)}, num_classes)
    embeddings, labels = batch(num_classes)
    theirs = wanted(kind, embeddings, labels, vectors(made), options_of(kind))
    found = evaluate_objective(made, embeddings, labels, 0, 0)
    assert found.head is not None
    of_vectors = torch.cat([gradient for _, gradient in found.head.gradients]).reshape(-1, DIMENSION)
    for got, want in zip((found.loss, found.cotangents, of_vectors), theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    if num_classes > 1:
        assert theirs[1].abs().max() > 1e-6, "nothing to compare"


def test_the_gradient_of_insightface_takes_the_margin_for_a_constant(small_tiles: None) -> None:
    embeddings, labels = batch(29)
    found = {}
    for gradient in ("exact", "insightface"):
        made = objective({"kind": "arc_face", "scale": 16, "class_parallel": {"gradient": gradient}}, 29)
        found[gradient] = evaluate_objective(made, embeddings, labels, 0, 0)
    assert found["exact"].loss == found["insightface"].loss
    leaf = embeddings.clone().requires_grad_()
    cosines = functional.normalize(leaf) @ functional.normalize(vectors(made)).T
    rows = torch.arange(len(labels))
    own = cosines[rows, labels].detach()
    added = torch.cos(torch.acos(own) + math.radians(28.6))
    margin = math.radians(28.6)
    added = torch.where(torch.acos(own) <= math.pi - margin, added, own - margin * math.sin(margin))
    shift = torch.zeros_like(cosines)
    shift[rows, labels] = added - own
    loss = functional.cross_entropy((cosines + shift) * 16, labels)
    (wanted_gradient,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(found["insightface"].cotangents, wanted_gradient, rtol=1e-9, atol=1e-9)
    assert (found["exact"].cotangents - wanted_gradient).abs().max() > 1e-3


def test_sampled_classes_depend_on_class_and_step_alone_and_are_a_share_of_all() -> None:
    own = torch.empty(0, dtype=torch.long)
    whole = sampled(range(30_000), own, 0.1, SEED, 7)
    pieces = [sampled(range(start, start + 7_500), own, 0.1, SEED, 7) + start for start in range(0, 30_000, 7_500)]
    assert torch.equal(torch.cat(pieces), whole)
    assert abs(len(whole) / 30_000 - 0.1) < 0.01
    assert not torch.equal(whole, sampled(range(30_000), own, 0.1, SEED, 8))
    assert not torch.equal(whole, sampled(range(30_000), own, 0.1, SEED + 1, 7))
    numbers = hashed(torch.arange(30_000), SEED, 7)
    assert numbers.min() >= 0 and numbers.max() < 2**53
    drawn = sum(int((sampled(range(100), own, 0.3, SEED, step) == 5).sum()) for step in range(2_000))
    assert abs(drawn / 2_000 - 0.3) < 0.04, "one class comes by as often as it should"


def test_the_batch_s_own_classes_are_always_compared_with() -> None:
    own = torch.tensor([3, 99, 3, 41])
    places = sampled(range(500, 600), own, 1e-9, SEED, 0)
    assert places.tolist() == [3, 41, 99]


@pytest.mark.parametrize("kind", ["cos_face", "sub_center_arc_face", "softmax"])
def test_a_sampled_step_is_the_loss_over_the_classes_that_were_drawn(kind: str, small_tiles: None) -> None:
    made = objective({"kind": kind, "class_parallel": {"sample_rate": 0.3}, **options_of(kind)}, 29)
    embeddings, labels = batch(29)
    labels = labels % 5  # most classes are in no row
    found = evaluate_objective(made, embeddings, labels, 4, 0)
    assert found.head is not None and made.head is not None
    shards = made.head.table.shards
    drawn: list[int] = []
    for rows, _ in found.head.gradients:
        assert rows.places is not None
        drawn += [shards.classes(rows.index)[place] for place in rows.places.tolist()]
    draw = hashed(torch.arange(29), SEED, 4) < 0.3 * 2**53
    assert drawn == [label for label in range(29) if draw[label] or label in labels]
    assert 5 < len(drawn) < 29
    copies = 3 if kind == "sub_center_arc_face" else 1
    chosen = vectors(made).view(29, copies, DIMENSION)[drawn].reshape(-1, DIMENSION)
    renamed = torch.tensor([drawn.index(label) for label in labels.tolist()])
    theirs = wanted(kind, embeddings, renamed, chosen, options_of(kind))
    of_vectors = torch.cat([gradient for _, gradient in found.head.gradients]).reshape(-1, DIMENSION)
    for got, want in zip((found.loss, found.cotangents, of_vectors), theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_training_on_sampled_classes_is_training_with_a_dense_optimizer_and_zeros_elsewhere() -> None:
    made = objective({"kind": "cos_face", "scale": 16, "class_parallel": {"sample_rate": 0.3}}, 29, home(optimizer=SGD))
    assert made.head is not None
    weights = torch.nn.Parameter(vectors(made))
    optimizer = torch.optim.SGD([weights], 0.1, 0.9, weight_decay=0.05)
    embeddings, labels = batch(29)
    for step in range(30):
        some = labels.roll(step)[:8] % 28
        drawn = (hashed(torch.arange(29), SEED, step) < 0.3 * 2**53).index_fill(0, some, True).nonzero().squeeze(1)
        renamed = torch.searchsorted(drawn, some)
        _, _, gradient = wanted("cos_face", embeddings[:8], renamed, weights[drawn], {"scale": 16})
        weights.grad = torch.zeros_like(weights).index_copy(0, drawn, gradient)
        verdict = evaluate_objective(made, embeddings[:8], some, step, 0)
        optimizer.step()
        made.commit(embeddings[:8], some, verdict.head, step)
    table = made.head.table
    for index in table.group.owned:
        part = table.shard(index)
        slots = {name: value for name, value in part.items() if name not in ("vectors", "updates")}
        table.optimizer.catch_up(part["vectors"], slots, part["updates"], 30, table.home.rate)
    torch.testing.assert_close(vectors(made), weights.detach(), rtol=1e-9, atol=1e-9)


def test_an_aborted_step_leaves_no_trace_in_the_head() -> None:
    document = {"kind": "curricular_face", "class_parallel": {"sample_rate": 0.5}}
    made, other = (objective(document, 29, home(optimizer=SGD)) for _ in range(2))
    embeddings, labels = batch(29)
    for step in range(3):
        for again in range(2 if step == 1 else 1):
            aborted = evaluate_objective(made, embeddings * (1 + again), labels, step, 0)
            assert aborted.head is not None
        for one in (made, other):
            one.commit(embeddings, labels, evaluate_objective(one, embeddings, labels, step, 0).head, step)
    assert torch.equal(vectors(made), vectors(other))
    assert made.head is not None and other.head is not None
    assert made.state_dict()["head.margin.easiness"] == other.state_dict()["head.margin.easiness"] != 0


def test_centers_on_their_owners_are_the_centers_of_one_process() -> None:
    embeddings, labels = batch(29)
    for document in ({"kind": "center"}, {"kind": "triplet", "center": {"weight": 0.1}}):
        apart = (
            {**document, "class_parallel": True}
            if document["kind"] == "center"
            else {
                **document,
                "center": {"weight": 0.1, "class_parallel": True},
            }
        )
        whole, sharded = objective(document, 29), objective(apart, 29)
        for step in range(3):
            one, other = (evaluate_objective(made, embeddings, labels, step, 0) for made in (whole, sharded))
            torch.testing.assert_close(other.loss, one.loss, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(other.cotangents, one.cotangents, rtol=1e-9, atol=1e-9)
            for made in (whole, sharded):
                made.commit(embeddings, labels)
        assert one.loss > 0
        assert not [name for name in sharded.state_dict() if "center" in name], "no worker holds all centres"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"kind": "triplet", "class_parallel": True}, "those that are: arc_face"),
        ({"kind": "soft_triple", "class_parallel": {}}, "curricular_face"),
        ({"kind": "cos_face", "class_parallel": {"sample_rate": 0}}, "greater than 0"),
        ({"kind": "cos_face", "class_parallel": {"sample_rate": 1.1}}, "less than or equal to 1"),
        ({"kind": "cos_face", "class_parallel": True, "weight_regularizer": {"kind": "regular_face"}}, "leave out"),
        ({"kind": "proxy_anchor", "class_parallel": {"sample_rate": 0.1}}, "Extra inputs"),
        ({"kind": "proxy_anchor", "class_parallel": True, "reducer": {"kind": "mean"}}, "reducer"),
    ],
    ids=str,
)
def test_what_cannot_be_on_owners_is_refused(document: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LOSS.validate_python(document)


def test_steps_that_fp16_skips_and_rows_that_catch_up_exclude_each_other() -> None:
    def spec(rate: float) -> JobSpec:
        loss = {"kind": "cos_face", "class_parallel": {"sample_rate": rate}}
        document = {"name": "a", "data": {"kind": "custom"}, "loss": loss, "parallel": {"precision": "fp16"}}
        return JobSpec.model_validate(document)

    assert spec(1).state == "sharded"
    with pytest.raises(ValidationError, match=r"sample_rate = 0.5 lets class vectors catch up .*: choose bf16"):
        spec(0.5)


class Counting(TorchDispatchMode):
    """Floating-point operations of matrix products, and the numbers of the largest tensor that anything made."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.largest = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            left, right = args[-2:]
            self.operations += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor) and value._base is None:
                self.largest = max(self.largest, value.numel())
        return result


@pytest.mark.parametrize(("kept", "products"), [(0, 8), (1 << 24, 6)])
@pytest.mark.parametrize("kind", ["cos_face", "sub_center_arc_face", "curricular_face"])
def test_products_are_those_of_the_formula_and_nothing_holds_the_batch_against_all_classes(
    kind: str, kept: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "COLUMNS", 32)
    monkeypatch.setattr(scores, "KEPT", kept)
    classes, rows, copies = 4096, 64, 3 if kind == "sub_center_arc_face" else 1
    made = objective({"kind": kind, "class_parallel": True, **options_of(kind)}, classes, dtype=torch.float32)
    embeddings, labels = batch(classes, rows)
    with Counting() as counting:
        evaluate_objective(made, embeddings.float(), labels, 0, 0)
    assert counting.operations == products * rows * classes * copies * DIMENSION
    assert rows * 32 <= counting.largest <= classes // 8 * copies * DIMENSION < rows * classes // 8


def test_proxy_anchor_needs_each_product_once() -> None:
    made = objective({"kind": "proxy_anchor", "class_parallel": True}, 512)
    with Counting() as counting:
        evaluate_objective(made, *batch(512, 64), 0, 0)
    assert counting.operations == 6 * 64 * 512 * DIMENSION


@pytest.mark.parametrize("kind", ["arc_face", "sub_center_arc_face", "curricular_face"])
def test_scores_that_are_kept_are_those_that_would_be_computed_again(
    kind: str, small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, labels = batch(29)
    found = []
    for room in (0, 700, 1 << 24):
        monkeypatch.setattr(scores, "KEPT", room)
        made = objective({"kind": kind, "class_parallel": True, **options_of(kind)}, 29, dtype=torch.float32)
        verdict = evaluate_objective(made, embeddings.float(), labels, 0, 0)
        assert verdict.head is not None
        found.append([verdict.loss, verdict.cotangents, *(gradient for _, gradient in verdict.head.gradients)])
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_no_more_scores_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "KEPT", 100)
    kept, tile = scores.Kept(), torch.randn(6, 8)
    for start in range(3):
        kept.put((0, start, 0), tile, None)
    assert [kept.take((0, start, 0)) is not None for start in range(3)] == [True, True, False]
    assert kept.take((0, 0, 0)) is None, "what was taken is gone"
    kept = scores.Kept()
    kept.put((0, 0, 0), tile, torch.zeros(6, 8, dtype=torch.long))
    assert kept.take((0, 0, 0)) is None, "places of the best vectors count too"
