"""Losses against loops a child could check: values, gradients, triplets, centres, and what a forward pass leaves."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from pydantic import TypeAdapter
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import Tensor, nn

from raydml import catalogue
from raydml.errors import SpecError
from raydml.losses import Objective, Verdict, evaluate_objective
from raydml.losses.build import build_distance, build_miner
from raydml.losses.randomness import keyed
from raydml.losses.table import DISTANCES, LOSSES, MINERS, REDUCERS, REGULARIZERS

LOSS: TypeAdapter[Any] = TypeAdapter(catalogue.LossSpec)
MINER: TypeAdapter[Any] = TypeAdapter(catalogue.MinerSpec)
CLASSES, DIMENSION = 8, 16
REQUIRED: dict[str, dict[str, Any]] = {"ranked_list": {"margin": 0.4, "Tn": 1}}
RANDOM = [
    {"kind": "triplet", "triplets_per_anchor": 3},
    {"kind": "margin", "triplets_per_anchor": 3},
    {"kind": "triplet", "miner": {"kind": "distance_weighted"}},
    {"kind": "contrastive", "miner": {"kind": "uniform_histogram"}},
]


def objective(document: dict[str, Any], *, dimension: int = DIMENSION, dtype: torch.dtype = torch.float64) -> Objective:
    return Objective(LOSS.validate_python(document), num_classes=CLASSES, dimension=dimension, seed=3, dtype=dtype)


def batch(rows: int = 32, dimension: int = DIMENSION, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Four rows a class, the last classes shuffled in, and two pairs of equal rows: in one class and across two."""
    generator = torch.Generator().manual_seed(rows)
    embeddings = torch.randn(rows, dimension, generator=generator, dtype=dtype)
    labels = torch.arange(rows) // 4 % CLASSES
    order = torch.randperm(rows, generator=generator)
    embeddings[1], embeddings[rows - 1] = embeddings[0], embeddings[4]
    return embeddings[order], labels[order]


def evaluate(document: dict[str, Any], embeddings: Tensor, labels: Tensor, step: int = 5) -> Verdict:
    made = objective(document, dimension=embeddings.shape[1], dtype=embeddings.dtype)
    return evaluate_objective(made, embeddings, labels, step, seed=7)


def every_entry(classes: int = CLASSES) -> list[dict[str, Any]]:
    """One document for each row of each table, on a loss that takes it."""
    short = [{"kind": kind} for kind in ("all", "hard", "semihard", "easy")]
    documents = [{"kind": name, **REQUIRED.get(name, {})} for name in (*LOSSES, *OWN)]
    documents += [{"kind": "triplet", "margin": 1, "miner": {"kind": name}} for name in MINERS]
    documents += [{"kind": "triplet", "margin": 1, "miner": miner} for miner in short]
    documents += [{"kind": "multi_similarity", "distance": {"kind": name}} for name in DISTANCES]
    documents += [
        {"kind": "proxy_anchor" if n == "divisor" else "nt_xent", "reducer": reducer(n, classes)} for n in REDUCERS
    ]
    documents += [{"kind": "soft_triple", "weight_regularizer": {"kind": name}} for name in REGULARIZERS]
    documents += [{"kind": "sup_con", "regularizer": {"kind": n}} for n in REGULARIZERS if n != "sparse_centers"]
    return documents + RANDOM + [{"kind": "margin", "learn_beta": True, "nu": 0.1}, {"kind": "triplet", "center": {}}]


OWN = ("textbook_contrastive", "textbook_triplet", "center")


def reducer(name: str, classes: int) -> dict[str, Any]:
    extra = {"class_weighted": {"weights": list(range(1, classes + 1))}, "threshold": {"low": 0.1}}
    return {"kind": name, **extra.get(name, {})}


def same(left: Any, right: Any) -> bool:
    """Equal to the bit, through tensors, containers and attributes."""
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, nn.Module):
        return type(left) is type(right) and same(vars(left), vars(right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return bool(left == right) or callable(left)


@pytest.mark.parametrize("document", every_entry(), ids=lambda document: str(document).replace("'", ""))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_entry_is_finite_repeatable_and_leaves_no_trace(document: dict[str, Any], dtype: torch.dtype) -> None:
    embeddings, labels = batch(dtype=dtype)
    made = objective(document, dtype=dtype)
    untouched = copy.deepcopy(made)
    first = evaluate_objective(made, embeddings, labels, 5, 7)
    assert same(made, untouched)
    again = evaluate_objective(untouched, embeddings, labels, 5, 7)
    assert first.loss.shape == () and first.loss.dtype == dtype
    assert first.cotangents.shape == embeddings.shape and first.cotangents.abs().max() > 0
    assert len(first.weights) == len(list(made.parameters()))
    for left, right in zip(tensors(first), tensors(again), strict=True):
        assert torch.isfinite(left).all() and torch.equal(left, right)


def tensors(verdict: Verdict) -> list[Tensor]:
    return [verdict.loss, verdict.cotangents, *verdict.weights]


@pytest.mark.parametrize("document", RANDOM, ids=str)
def test_random_choices_depend_on_seed_and_step_alone(document: dict[str, Any]) -> None:
    embeddings, labels = batch()
    torch.manual_seed(1)
    first = evaluate(document, embeddings, labels, step=5)
    torch.manual_seed(2)
    state, numbers, python = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
    assert torch.equal(first.loss, evaluate(document, embeddings, labels, step=5).loss)
    assert not torch.equal(first.loss, evaluate(document, embeddings, labels, step=6).loss)
    assert torch.equal(state, torch.get_rng_state()) and random.getstate() == python
    assert numpy.array_equal(numbers[1], numpy.random.get_state()[1])


def test_all_generators_are_keyed_and_put_back_even_after_an_error() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(numpy.random.rand()), float(torch.rand(()))

    with keyed(1, 2, torch.device("cpu")):
        first = draw()
    torch.manual_seed(0), numpy.random.seed(0), random.seed(0)
    expected = draw()
    torch.manual_seed(0), numpy.random.seed(0), random.seed(0)
    with pytest.raises(KeyError), keyed(1, 2, torch.device("cpu")):
        assert draw() == first
        raise KeyError
    assert draw() == expected


def test_weights_come_from_the_seed_alone() -> None:
    spec = LOSS.validate_python({"kind": "arcface"})
    torch.manual_seed(1)
    first = Objective(spec, num_classes=5, dimension=4, seed=9, dtype=torch.float32)
    state = torch.get_rng_state()
    second = Objective(spec, num_classes=5, dimension=4, seed=9, dtype=torch.bfloat16)
    other = Objective(spec, num_classes=5, dimension=4, seed=10, dtype=torch.float32)
    assert torch.equal(state, torch.get_rng_state())
    assert same(first, second) and not same(first, other)  # bfloat16 models have float32 losses


def test_low_precision_embeddings_are_judged_in_float32() -> None:
    embeddings, labels = batch(dtype=torch.float32)
    made = objective({"kind": "sup_con"}, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = evaluate_objective(made, embeddings.bfloat16(), labels, 0, 0)
    full = evaluate_objective(made, embeddings.bfloat16().float(), labels, 0, 0)
    assert low.cotangents.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(tensors(low), tensors(full), strict=True))


NOTHING = [
    {"kind": name}
    for name in ("triplet", "contrastive", "nt_xent", "sup_con", "margin", "angular", "n_pairs", "nca", "histogram")
] + [
    {"kind": "textbook_triplet"},
    {"kind": "textbook_contrastive"},
    {"kind": "arcface", "miner": {"kind": "semihard"}},
    {"kind": "triplet", "miner": {"kind": "batch_hard"}},
]


@pytest.mark.parametrize("document", NOTHING, ids=str)
def test_a_batch_without_tuples_costs_nothing(document: dict[str, Any]) -> None:
    embeddings = torch.eye(3, DIMENSION, dtype=torch.float64) * 9
    verdict = evaluate(document, embeddings, torch.arange(3))
    assert all(not value.any() for value in tensors(verdict))


# ---- the textbook ----------------------------------------------------------------------------------------------------


def distance_by_loop(x: Tensor, y: Tensor, kind: str) -> float:
    if kind == "cosine":
        return 1 - float(x @ y) / (float(x @ x) * float(y @ y)) ** 0.5
    gaps = [abs(float(a - b)) for a, b in zip(x, y, strict=True)]
    return sum(gap**2 for gap in gaps) ** 0.5 if kind == "euclidean" else sum(gaps)


@pytest.mark.parametrize("kind", ["euclidean", "manhattan", "cosine"])
def test_textbook_contrastive_equals_its_double_loop(kind: str) -> None:
    embeddings, labels = batch(12, 3)
    margin, total, rows = 1.5, 0.0, len(labels)
    for i in range(rows):
        for j in range(rows):
            distance = distance_by_loop(embeddings[i], embeddings[j], kind)
            total += distance**2 if labels[i] == labels[j] else max(0, margin - distance) ** 2
    document = {"kind": "textbook_contrastive", "margin": margin, "distance": {"kind": kind}}
    assert evaluate(document, embeddings, labels).loss.item() == pytest.approx(total / (2 * rows), rel=1e-12)


def triplets_by_loop(gap: Callable[[int, int, int], float], labels: Tensor, margin: float, kind: str) -> list[Any]:
    """gap(a, p, n) = d(a, n) - d(a, p)."""
    keep = {
        "every": lambda g: True,
        "all": lambda g: g <= margin,
        "hard": lambda g: g <= 0,
        "semihard": lambda g: 0 < g <= margin,
        "easy": lambda g: g > margin,
    }[kind]
    every = range(len(labels))
    return [
        (a, p, n)
        for a in every
        for p in every
        for n in every
        if a != p and labels[a] == labels[p] and labels[a] != labels[n] and keep(gap(a, p, n))
    ]


@pytest.mark.parametrize("kind", ["euclidean", "manhattan", "cosine"])
@pytest.mark.parametrize("miner", ["all", "semihard", "hard"])
def test_textbook_triplet_equals_its_triple_loop(kind: str, miner: str) -> None:
    embeddings, labels = batch(12, 3)
    margin = 0.7
    squared = [[distance_by_loop(x, y, kind) ** 2 for y in embeddings] for x in embeddings]

    def gap(a: int, p: int, n: int) -> float:
        return squared[a][n] - squared[a][p]

    chosen = triplets_by_loop(gap, labels, margin, "every" if miner == "all" else miner)
    expected = sum(max(0, margin - gap(*triplet)) for triplet in chosen) / len(chosen)
    document = {"kind": "textbook_triplet", "margin": margin, "distance": {"kind": kind}, "miner": {"kind": miner}}
    verdict = evaluate(document, embeddings, labels)
    assert verdict.loss.item() == pytest.approx(expected, rel=1e-12)
    assert verdict.statistics == {"tuples": len(chosen)}


TEXTBOOK = [
    {"kind": name, "distance": {"kind": kind}}
    for name in ("textbook_contrastive", "textbook_triplet")
    for kind in ("euclidean", "manhattan", "cosine")
] + [{"kind": "center"}, {"kind": "center", "reduction": "mean"}]


@pytest.mark.parametrize("document", TEXTBOOK, ids=str)
def test_textbook_gradients_equal_finite_differences(document: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(8, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(8) // 2
    made = objective(document, dimension=3)
    made.commit(embeddings, labels)
    assert torch.autograd.gradcheck(lambda rows: made(rows, labels, 0), embeddings)
    verdict = evaluate_objective(made, embeddings, labels, 0, 0)
    (expected,) = torch.autograd.grad(made(embeddings, labels, 0), embeddings)
    assert torch.equal(verdict.cotangents, expected)


@pytest.mark.parametrize("document", TEXTBOOK, ids=str)
def test_textbook_gradients_are_finite_where_all_rows_are_equal(document: dict[str, Any]) -> None:
    verdict = evaluate(document, torch.ones(8, DIMENSION, dtype=torch.float64), torch.arange(8) // 2)
    assert torch.isfinite(verdict.cotangents).all()


# ---- centres ---------------------------------------------------------------------------------------------------------


def test_centres_move_by_the_formula_and_only_on_commit() -> None:
    embeddings, labels = batch(12, 3)
    made = objective({"kind": "center", "alpha": 0.4}, dimension=3)
    made.commit(embeddings, labels)
    before = made.term.centers.clone()
    evaluate_objective(made, embeddings, labels, 0, 0)
    assert torch.equal(before, made.term.centers) and not list(made.parameters())
    made.commit(embeddings.flip(0), labels)
    for j in range(CLASSES):
        members = [row for row, label in zip(embeddings.flip(0), labels, strict=True) if label == j]
        change = sum((before[j] - row for row in members), torch.zeros(3, dtype=torch.float64)) / (1 + len(members))
        torch.testing.assert_close(made.term.centers[j], before[j] - 0.4 * change, rtol=1e-12, atol=1e-12)
    assert "term.centers" in made.state_dict()


@pytest.mark.parametrize(("reduction", "factor"), [("sum", 1), ("mean", 1 / 12)])
def test_center_loss_equals_its_loop_alone_and_added_to_another_loss(reduction: str, factor: float) -> None:
    embeddings, labels = batch(12, 3)
    alone = objective({"kind": "center", "reduction": reduction}, dimension=3)
    together = objective({"kind": "triplet", "center": {"weight": 0.3, "reduction": reduction}}, dimension=3)
    for made in (alone, together):
        made.commit(embeddings, labels)
    expected = factor * sum(
        float(((x - alone.term.centers[y]) ** 2).sum()) / 2 for x, y in zip(embeddings, labels, strict=True)
    )
    assert alone(embeddings, labels, 0).item() == pytest.approx(expected, rel=1e-12)
    plain = evaluate({"kind": "triplet"}, embeddings, labels).loss.item()
    assert together(embeddings, labels, 0).item() == pytest.approx(plain + 0.3 * expected, rel=1e-12)


# ---- pytorch-metric-learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["all", "hard", "semihard", "easy"])
def test_miners_equal_their_triple_loop_with_ties(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randint(0, 3, (14, 1), generator=generator).double()  # a short line: many equal distances
    labels = torch.arange(14) % 4
    distance = build_distance(catalogue.Euclidean(normalize_embeddings=False))

    def gap(a: int, p: int, n: int) -> float:
        return abs(float(embeddings[a] - embeddings[n])) - abs(float(embeddings[a] - embeddings[p]))

    expected = triplets_by_loop(gap, labels, 1.0, kind)
    gaps = {gap(*triplet) for triplet in expected}
    assert gaps & {0.0, 1.0} or kind == "easy"
    for document in ({"kind": kind, "margin": 1}, {"kind": "triplet_margin", "margin": 1, "type_of_triplets": kind}):
        found = build_miner(MINER.validate_python(document), distance)(embeddings, labels)
        assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


def test_batch_hard_takes_the_farthest_positive_and_the_nearest_negative() -> None:
    embeddings, labels = batch(12, 3)
    distance = build_distance(catalogue.Euclidean())
    matrix = distance(embeddings)
    found = build_miner(catalogue.BatchHard(), distance)(embeddings, labels)
    for a, p, n in zip(*found, strict=True):
        own = (labels == labels[a]) & (torch.arange(12) != a)
        assert matrix[a, p] == matrix[a][own].max() and matrix[a, n] == matrix[a][labels != labels[a]].min()
    assert found[0].tolist() == list(range(12))


SHORT = [
    ("triplet", "triplet_margin"),
    ("arcface", "arc_face"),
    ("cosface", "cos_face"),
    ("sphereface", "sphere_face"),
    ("subcenter_arcface", "sub_center_arc_face"),
    ("ntxent", "nt_xent"),
    ("info_nce", "nt_xent"),
    ("npairs", "n_pairs"),
    ("supcon", "sup_con"),
    ("tcm", "threshold_consistent_margin"),
    ("snr_contrastive", "signal_to_noise_ratio_contrastive"),
]


@pytest.mark.parametrize(("short", "long"), SHORT)
def test_short_names_of_losses_equal_long_names(short: str, long: str) -> None:
    left, right = (evaluate({"kind": name}, *batch()) for name in (short, long))
    assert all(torch.equal(a, b) for a, b in zip(tensors(left), tensors(right), strict=True))


@pytest.mark.parametrize(("short", "p"), [("euclidean", 2), ("manhattan", 1)])
def test_short_names_of_distances_equal_lp(short: str, p: int) -> None:
    documents = [{"kind": "triplet", "distance": distance} for distance in ({"kind": short}, {"kind": "lp", "p": p})]
    left, right = (evaluate(document, *batch()) for document in documents)
    assert torch.equal(left.cotangents, right.cotangents)


def test_a_whole_spec_equals_the_same_parts_put_together_by_hand() -> None:
    embeddings, labels = batch()
    document = {
        "kind": "triplet",
        "margin": 0.3,
        "distance": {"kind": "cosine"},
        "miner": {"kind": "semihard", "margin": 0.3},
        "reducer": {"kind": "mean"},
        "regularizer": {"kind": "lp", "weight": 0.1, "power": 2},
    }
    cosine = distances.CosineSimilarity()
    loss = losses.TripletMarginLoss(
        margin=0.3,
        distance=cosine,
        reducer=reducers.MeanReducer(),
        embedding_regularizer=regularizers.LpRegularizer(power=2),
        embedding_reg_weight=0.1,
    )
    chosen = miners.TripletMarginMiner(margin=0.3, type_of_triplets="semihard", distance=cosine)(embeddings, labels)
    verdict = evaluate(document, embeddings, labels)
    torch.testing.assert_close(verdict.loss, loss(embeddings, labels, chosen), rtol=1e-12, atol=0)
    assert verdict.statistics == {"tuples": len(chosen[0])}


@pytest.mark.parametrize("name", ["arc_face", "soft_triple", "proxy_anchor", "normalized_softmax"])
def test_weight_regularisers_see_one_class_or_centre_a_row(name: str) -> None:
    embeddings, labels = batch()
    penalty = regularizers.RegularFaceRegularizer()
    made = objective({"kind": name, "weight_regularizer": {"kind": "regular_face", "weight": 0.5}})
    with torch.random.fork_rng():
        theirs = LOSSES[name](
            num_classes=CLASSES, embedding_size=DIMENSION, weight_regularizer=penalty, weight_reg_weight=0.5
        ).double()
    with torch.no_grad():
        for mine, other in zip(made.parameters(), theirs.parameters(), strict=True):
            other.copy_(mine)
    torch.testing.assert_close(made(embeddings, labels, 0), theirs(embeddings, labels), rtol=1e-12, atol=0)


def test_class_weights_must_be_as_many_as_classes() -> None:
    with pytest.raises(SpecError, match="3 numbers and the training data 8 classes"):
        objective({"kind": "sup_con", "reducer": {"kind": "class_weighted", "weights": [1, 2, 3]}})


CORRECTED = [
    "arc_face",
    "sub_center_arc_face",
    "tuplet_margin",
    "large_margin_softmax",
    "sphere_face",
    "nca",
    "proxy_nca",
    "p2s_grad",
    "histogram",
]


@pytest.mark.parametrize("name", CORRECTED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Using a non-tuple:UserWarning")  # of the originals
def test_corrected_losses_equal_the_originals_where_those_work(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(24, DIMENSION, generator=generator).double(), torch.arange(24) % CLASSES
    made = objective({"kind": name})
    original = LOSSES[name].__bases__[0]
    names = [key for key in LOSS.validate_python({"kind": name}).filled]
    known = {"num_classes": CLASSES, "embedding_size": DIMENSION, "descriptors_dim": DIMENSION}
    theirs = original(**{key: known[key] for key in names}).double()
    with torch.no_grad():
        for mine, other in zip(made.parameters(), theirs.parameters(), strict=True):
            other.copy_(mine)
    torch.testing.assert_close(made(embeddings, labels, 0), theirs(embeddings, labels), rtol=1e-6, atol=0)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("miner", [None, "semihard", "multi_similarity"])
def test_nt_xent_equals_the_original_with_pairs_and_with_triplets(distance: str, miner: str | None) -> None:
    embeddings, labels = batch()
    measure = build_distance({"cosine": catalogue.Cosine(), "euclidean": catalogue.Euclidean()}[distance])
    chosen = None if miner is None else build_miner(MINER.validate_python({"kind": miner}), measure)(embeddings, labels)
    leaf = embeddings.clone().requires_grad_()
    expected = losses.NTXentLoss(temperature=0.3, distance=measure)(leaf, labels, chosen)
    (gradient,) = torch.autograd.grad(expected, leaf)
    document = {"kind": "nt_xent", "temperature": 0.3, "distance": {"kind": distance}}
    verdict = evaluate(document | ({"miner": {"kind": miner}} if miner else {}), embeddings, labels)
    torch.testing.assert_close(verdict.loss, expected.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(verdict.cotangents, gradient, rtol=1e-8, atol=1e-9)  # cdist is noisy near equal rows


def test_nt_xent_and_nca_stay_finite_where_probabilities_underflow() -> None:
    embeddings, labels = batch(dtype=torch.float32)
    for document in ({"kind": "nt_xent", "temperature": 1e-4}, {"kind": "nca", "softmax_scale": 1e5}):
        assert all(torch.isfinite(value).all() for value in tensors(evaluate(document, embeddings, labels)))


def test_p2s_grad_has_the_true_gradient_of_its_weights() -> None:
    embeddings, labels = batch()
    made = objective({"kind": "p2s_grad"})
    (weight,) = made.parameters()
    with torch.no_grad():
        weight.mul_(3)
    (gradient,) = evaluate_objective(made, embeddings, labels, 0, 0).weights
    assert torch.autograd.gradcheck(lambda w: functional_loss(made, w, embeddings, labels), weight)
    torch.testing.assert_close((gradient * weight).sum(dim=0), torch.zeros(CLASSES).double(), rtol=0, atol=1e-12)


def functional_loss(made: Objective, weight: Tensor, embeddings: Tensor, labels: Tensor) -> Any:
    return torch.func.functional_call(made, {"term.loss.weight": weight}, (embeddings, labels, 0))


def test_smooth_ap_equals_its_loop_and_the_original_on_a_square_batch() -> None:
    embeddings, labels = batch(12, 3)
    unit = nn.functional.normalize(embeddings)
    scores = (unit @ unit.T).tolist()

    def step(value: float) -> float:
        return float(torch.sigmoid(torch.tensor(value / 0.01, dtype=torch.float64)))

    total = 0.0
    for i in range(12):
        mine = [j for j in range(12) if labels[j] == labels[i]]
        for j in mine:
            above = [step(scores[i][k] - scores[i][j]) for k in range(12) if k != j]
            near = [step(scores[i][k] - scores[i][j]) for k in mine if k != j]
            total += (1 + sum(near)) / (1 + sum(above)) / len(mine)
    verdict = evaluate({"kind": "smooth_ap"}, embeddings, labels)
    assert verdict.loss.item() == pytest.approx(1 - total / 12, rel=1e-9)
    square, blocks = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.arange(16) // 4
    theirs = losses.SmoothAPLoss()(square, blocks)
    torch.testing.assert_close(evaluate({"kind": "smooth_ap"}, square, blocks).loss, theirs, rtol=1e-5, atol=0)


def test_histogram_equals_its_loop() -> None:
    embeddings, labels = batch(12, 3)
    unit = nn.functional.normalize(embeddings)
    bins, positive, negative = 20, [0.0] * 21, [0.0] * 21
    for i in range(12):
        for j in range(i):
            place = (float((unit[i] @ unit[j]).clamp(-1, 1 - 1e-6)) + 1) * bins / 2
            side = positive if labels[i] == labels[j] else negative
            side[int(place)] += 1 - (place - int(place))
            side[int(place) + 1] += place - int(place)
    expected = sum(negative[r] * sum(positive[: r + 1]) for r in range(21)) / sum(negative) / sum(positive)
    verdict = evaluate({"kind": "histogram", "n_bins": bins}, embeddings, labels)
    assert verdict.loss.item() == pytest.approx(expected, rel=1e-9)
