"""Compressed sums of gradients against loops over slices, and what refuses to be compressed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from raydml.parallel import Group
from raydml.parallel.compression import Reducer, build_reducer
from raydml.spec import CompressionSpec, JobSpec

SLICES, STEPS = 4, 5
SHAPES = [(6, 5), (5,), (3, 2, 4)]
Sums = list[np.ndarray[Any, Any]]


def reducer(document: dict[str, Any], kind: torch.dtype = torch.float64) -> Reducer:
    spec = TypeAdapter[Any](CompressionSpec).validate_python(document)
    return build_reducer(spec, 3, [torch.zeros(shape, dtype=kind) for shape in SHAPES], Group(0, 1, SLICES))


def gradients(step: int, index: int, kind: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * step + index)
    return [torch.randn(shape, generator=generator, dtype=kind) for shape in SHAPES]


def totals(made: Reducer) -> list[Sums]:
    """Of each step the sums of gradients; what must arrive as it is does."""
    found = []
    for step in range(STEPS):
        leaves = [(index, gradients(step, index), [torch.tensor([1.0 + index])]) for index in range(SLICES)]
        total, rest = made.total(iter(leaves))
        assert rest[0].item() == sum(range(1, SLICES + 1))
        made.commit()
        found.append([value.numpy() for value in total])
    return found


def largest_by_a_loop(share: float) -> list[Sums]:
    """Entry by entry, in lists."""
    count = sum(math.prod(shape) for shape in SHAPES)
    residuals = [[0.0] * count for _ in range(SLICES)]
    found = []
    for step in range(STEPS):
        total = [0.0] * count
        for index in range(SLICES):
            numbers = torch.cat([value.flatten() for value in gradients(step, index)]).tolist()
            wanted = [left + number for left, number in zip(residuals[index], numbers, strict=True)]
            for place in sorted(range(count), key=lambda place: -abs(wanted[place]))[: math.ceil(share * count)]:
                total[place] += wanted[place]
                wanted[place] = 0.0
            residuals[index] = wanted
        ends = list(itertools.accumulate(math.prod(shape) for shape in SHAPES))
        parts = np.split(np.array(total), ends[:-1])
        found.append([part.reshape(shape) for part, shape in zip(parts, SHAPES, strict=True)])
    return found


def low_rank_by_the_sum(rank: int, started: Callable[[int], np.ndarray[Any, Any]]) -> list[Sums]:
    """PowerSGD of one worker that has the sum of all slices: the algorithm is linear, so that it must be the same."""
    starts = {place: started(place) for place in (0, 2) if rank * sum(flat(place)) < math.prod(flat(place))}
    errors = {place: np.zeros(flat(place)) for place in starts}
    found = []
    for step in range(STEPS):
        given = [gradients(step, index) for index in range(SLICES)]
        sums = [sum(one[place].numpy() for one in given) for place in range(len(SHAPES))]
        for place in starts:
            matrix = sums[place].reshape(flat(place)) + errors[place]
            basis = np.linalg.qr(matrix @ starts[place])[0]
            starts[place] = matrix.T @ basis
            sums[place] = (basis @ starts[place].T).reshape(SHAPES[place])
            errors[place] = matrix - sums[place].reshape(flat(place))
        found.append(sums)
    return found


def flat(place: int) -> tuple[int, int]:
    return SHAPES[place][0], math.prod(SHAPES[place][1:])


@pytest.mark.parametrize("share", [0.01, 0.2, 0.9])
def test_the_largest_entries_and_their_residuals_are_those_of_a_loop_over_numbers(share: float) -> None:
    for found, wanted in zip(totals(reducer({"kind": "topk", "share": share})), largest_by_a_loop(share), strict=True):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2])
def test_low_rank_sums_over_slices_are_those_of_powersgd_on_the_whole_sum(rank: int) -> None:
    made = reducer({"kind": "powersgd", "rank": rank})
    shared = {name: value.numpy().copy() for name, value in made.sharded["residual"].shard(0).items()}
    expected = low_rank_by_the_sum(rank, lambda place: shared[f"start-{place:05d}"])
    for found, wanted in zip(totals(made), expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    low = np.linalg.matrix_rank(found[0])
    assert low == rank, "a sum of low rank"


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_halves_are_rounded_at_every_node_of_the_tree(kind: str) -> None:
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[kind]
    for step, found in enumerate(totals(reducer({"kind": kind}))):
        a, b, c, d = (gradients(step, index) for index in range(SLICES))
        for place, one in enumerate(found):
            left = (a[place].to(half).float() + b[place].to(half).float()).to(half)
            right = (c[place].to(half).float() + d[place].to(half).float()).to(half)
            assert np.array_equal(one, (left.float() + right.float()).to(half).double().numpy())


@pytest.mark.parametrize(
    ("document", "places"),
    [({"kind": "topk", "share": 0.1}, [0, 1, 2]), ({"kind": "powersgd", "rank": 1}, [0, 2])],
    ids=["topk", "powersgd"],
)
def test_nothing_is_lost_what_was_sent_and_what_is_left_is_what_there_was(
    document: dict[str, Any], places: list[int]
) -> None:
    made = reducer(document)
    steps = totals(made)
    given = [gradients(step, index) for step in range(STEPS) for index in range(SLICES)]
    sent = np.concatenate([sum(step[place] for step in steps).ravel() for place in places])
    there = np.concatenate([sum(one[place].numpy() for one in given).ravel() for place in places])
    left = sum(made.sharded["residual"].shard(index)["residual"].numpy() for index in range(SLICES))
    np.testing.assert_allclose(sent + left, there, rtol=1e-9, atol=1e-9)
    assert np.abs(left).max() > 0.1


def test_a_step_that_is_not_committed_leaves_no_trace() -> None:
    for document in ({"kind": "topk", "share": 0.1}, {"kind": "powersgd", "rank": 1}):
        made, undisturbed = reducer(document), reducer(document)
        for _ in range(2):
            made.total(iter([(index, gradients(77, index), []) for index in range(SLICES)]))
        for found, wanted in zip(totals(made), totals(undisturbed), strict=True):
            assert all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))


DOCUMENT = {"name": "small", "data": {"kind": "glyphs"}, "loss": {"kind": "triplet"}}


def job(**parallel: Any) -> JobSpec:
    return JobSpec.model_validate(DOCUMENT | {"parallel": parallel})


def test_a_word_is_the_kind_and_the_level_is_compressed() -> None:
    assert job().exactness == "bitwise" and job(compression="none").exactness == "bitwise"
    for kind in ("fp16", "bf16", "powersgd", "topk"):
        assert job(compression=kind).exactness == "compressed"
    assert job(compression="bf16").state == "replicated" and job(compression="topk").state == "sharded"
    assert job(compression="topk").digest() != job(compression={"kind": "topk", "share": 0.02}).digest()


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        ({"compression": "topk", "numerics": "fast"}, "not for ddp with fast"),
        ({"compression": "powersgd", "precision": "fp16"}, "choose bf16 or float32"),
        ({"compression": {"kind": "topk", "share": 1.5}}, "less than 1"),
        ({"compression": "gzip"}, "gzip"),
    ],
)
def test_what_cannot_be_compressed_is_refused(parallel: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        job(**parallel)


def test_synchronised_batch_norm_has_no_gradients_of_slices_to_compress() -> None:
    document = DOCUMENT | {"parallel": {"compression": "bf16"}, "model": {"batch_norm": "synchronised"}}
    with pytest.raises(ValidationError, match="compresses the gradient of each slice"):
        JobSpec.model_validate(document)
