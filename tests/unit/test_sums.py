"""Sums of backward passes: the bits of the recursive sum, and the same few rows of memory in every step."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from raydml.errors import SpecError
from raydml.membership import Node, Tree
from raydml.parallel import Group
from raydml.parallel.sums import Pass, SliceSums, Take

COUNTS = [*range(1, 10), 16]
SHAPES = [(50, 3), (7,), ()]


def gradients(index: int, step: int = 0) -> list[Tensor]:
    """Of very different sizes, so that another order of the sum gives other bits."""
    draw = torch.Generator().manual_seed(1000 * step + index)
    return [
        torch.randn(shape, generator=draw) * 10.0 ** torch.randint(-4, 5, shape, generator=draw) for shape in SHAPES
    ]


def handed(values: list[Tensor], order: list[int]) -> Callable[[Take], None]:
    def run(take: Take) -> None:
        for place in order:
            take(place, values[place])

    return run


def passes(slices: list[int], step: int = 0) -> list[Pass]:
    """The last tensor is no gradient; gradients come from the last layer to the first."""
    found = []
    for index in slices:
        *values, rest = gradients(index, step)
        found.append(Pass(index, handed(values, [1, 0]), [rest]))
    return found


def reference(node: Node, step: int = 0) -> list[Tensor]:
    if node[1] - node[0] == 1:
        return gradients(node[0], step)
    left, right = (reference(child, step) for child in Tree.children(node))
    return [a + b for a, b in zip(left, right, strict=True)]


def sums_of(num_slices: int) -> SliceSums:
    return SliceSums([torch.zeros(shape) for shape in SHAPES[:2]], Group(0, 1, num_slices))


@pytest.mark.parametrize("num_slices", COUNTS)
def test_the_sum_has_the_bits_of_the_recursive_one_in_any_order_of_slices(num_slices: int) -> None:
    sums, draw = sums_of(num_slices), random.Random(num_slices)
    for step in range(5):
        slices = draw.sample(range(num_slices), num_slices)
        total = sums.by_the_tree(passes(slices, step))
        wanted = reference((0, num_slices), step)
        assert all(torch.equal(a, b) for a, b in zip(total, wanted, strict=True)), slices


def test_a_plain_sum_is_another_one_within_rounding() -> None:
    sums = sums_of(16)
    total = [value.clone() for value in sums.plainly(passes(list(range(16))))]
    wanted = reference((0, 16))
    assert not all(torch.equal(a, b) for a, b in zip(total, wanted, strict=True))
    for a, b in zip(total, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("num_slices", "rows"), [(1, 1), (2, 1), (4, 2), (8, 3), (16, 4), (100, 6)])
def test_slices_in_order_take_few_rows_which_are_used_again(num_slices: int, rows: int) -> None:
    sums, before = sums_of(num_slices), set()
    for step in range(3):
        sums.by_the_tree(passes(list(range(num_slices)), step))
        places = {row.numbers.data_ptr() for row in sums._rows}
        assert len(places) == rows
        assert step == 0 or places == before
        before = places
    sums.plainly(passes(list(range(num_slices))))
    assert len(sums._rows) == 1


def test_what_a_slice_does_not_reach_has_a_gradient_of_zero() -> None:
    sums = sums_of(2)
    for first, second in (([0], [1]), ([1], [0, 1]), ([], [])):
        given = [Pass(0, handed(gradients(0), first), []), Pass(1, handed(gradients(1), second), [])]
        total = sums.by_the_tree(given)
        for place in (0, 1):
            wanted = torch.zeros(SHAPES[place])
            for index, reached in enumerate((first, second)):
                wanted = wanted + gradients(index)[place] if place in reached else wanted
            assert torch.equal(total[place], wanted)


def test_a_gradient_that_is_one_number_in_many_places_is_summed_as_numbers() -> None:
    one = torch.tensor(3.0).expand(50, 3)
    given = [Pass(index, handed([one, torch.ones(7)], [0, 1]), []) for index in range(4)]
    assert torch.equal(sums_of(4).by_the_tree(given)[0], torch.full((50, 3), 12.0))
    assert float(one[0, 0]) == 3


def test_slices_that_meet_other_layers_are_refused() -> None:
    given = [*passes([0]), Pass(1, handed(gradients(1), [0, 1]), [])]
    with pytest.raises(SpecError, match="slice 1 meets 0 batch norms"):
        sums_of(2).by_the_tree(given)


def test_nothing_sums_to_nothing_and_workers_keep_types() -> None:
    empty = SliceSums([], Group(0, 1, 3))
    assert empty.by_the_tree([Pass(index, handed([], []), []) for index in range(3)]) == []
    mixed = SliceSums([torch.zeros(2), nn.Parameter(torch.zeros(1, dtype=torch.float64))], Group(0, 1, 1))
    total = mixed.by_the_tree([Pass(0, handed([torch.ones(2), torch.ones(1).double()], [0, 1]), [])])
    assert [value.dtype for value in total] == [torch.float32, torch.float64]
