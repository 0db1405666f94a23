"""The fixed-tree sum: the same bits in any order of arrival, few partial sums, and leaves left as they were."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from raydml.membership import Node, Tree, share
from raydml.parallel import Group, TreeAccumulator, plain_sum, tree_sum
from raydml.parallel.reduction import unflatten

COUNTS = [*range(1, 10), 16]


def leaves(num_slices: int) -> list[list[Tensor]]:
    """Leaves of very different sizes, so that another order of the sum gives other bits."""
    generator = torch.Generator().manual_seed(num_slices)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-4, 5, shape, generator=generator)

    return [[tensor(50, 3), tensor(7), tensor()] for _ in range(num_slices)]


def reference(node: Node, values: list[list[Tensor]]) -> list[Tensor]:
    """The tree's sum by recursion."""
    if node[1] - node[0] == 1:
        return values[node[0]]
    left, right = (reference(child, values) for child in Tree.children(node))
    return [a + b for a, b in zip(left, right, strict=True)]


def accumulated(values: list[list[Tensor]], order: list[int]) -> list[Tensor]:
    accumulator = TreeAccumulator(len(values))
    for index in order:
        accumulator.add(index, values[index])
    return tree_sum(accumulator, Group(0, 1, len(values)))


@pytest.mark.parametrize("num_slices", COUNTS)
def test_the_sum_has_the_bits_of_the_recursive_one_in_any_order_of_arrival(num_slices: int) -> None:
    values = leaves(num_slices)
    wanted = reference((0, num_slices), values)
    draw = random.Random(num_slices)
    orders = [list(range(num_slices)), list(reversed(range(num_slices)))]
    orders += [draw.sample(range(num_slices), num_slices) for _ in range(10)]
    for order in orders:
        total = accumulated(values, order)
        assert all(torch.equal(a, b) for a, b in zip(total, wanted, strict=True)), order


def test_a_running_sum_has_other_bits_so_that_these_tests_can_fail() -> None:
    values = leaves(16)
    running = sum((leaf[0] for leaf in values), torch.zeros(50, 3))
    assert not torch.equal(running, reference((0, 16), values)[0])


@pytest.mark.parametrize("num_slices", [*COUNTS, 17, 64, 100])
def test_partial_sums_stay_logarithmic_while_a_worker_goes_through_its_slices(num_slices: int) -> None:
    depth = (num_slices - 1).bit_length()
    for world_size in {1, 2, 3, 5, num_slices} & set(range(1, num_slices + 1)):
        for rank in range(world_size):
            accumulator = TreeAccumulator(num_slices)
            for index in share(rank, world_size, num_slices):
                accumulator.add(index, [torch.ones(1)])
                assert len(accumulator.partial) <= max(1, 2 * depth)
            cover = Tree(num_slices).cover(share(rank, world_size, num_slices))
            assert sorted(accumulator.partial) == cover
            assert all(float(accumulator.partial[low, high][0]) == high - low for low, high in cover)


def test_leaves_that_share_a_tensor_are_summed_right_and_left_as_they_were() -> None:
    one = torch.arange(4.0)
    values = [[one, one] for _ in range(5)]
    total = accumulated(values, [0, 1, 2, 3, 4])
    assert all(torch.equal(tensor, 5 * torch.arange(4.0)) for tensor in total)
    assert torch.equal(one, torch.arange(4.0))


def test_leaves_without_tensors_sum_to_none() -> None:
    assert accumulated([[] for _ in range(6)], list(range(6))) == []
    accumulator = TreeAccumulator(6)
    for index in share(1, 2, 6):
        accumulator.add(index, [])
    assert tree_sum(accumulator, Group(1, 2, 6)) == []  # a frozen model: nothing to send


def test_the_sum_keeps_shapes_and_types() -> None:
    leaf = [torch.ones(2, 3), torch.ones((), dtype=torch.float64), torch.ones(0, 4)]
    total = accumulated([leaf] * 3, [2, 0, 1])
    assert [(tensor.shape, tensor.dtype) for tensor in total] == [(tensor.shape, tensor.dtype) for tensor in leaf]
    assert float(total[1]) == 3


class Doubled(Group):
    """Two workers that hold the same."""

    def __init__(self) -> None:
        super().__init__(0, 2, 2)

    def all_reduce(self, value: Tensor) -> Tensor:
        return value * 2


def test_a_plain_sum_of_one_worker_is_its_own_values() -> None:
    values = [torch.ones(2), torch.zeros(3)]
    assert all(a is b for a, b in zip(plain_sum(values, Group(0, 1, 4)), values, strict=True))
    assert plain_sum([], Group(0, 1, 4)) == []


def test_a_plain_sum_keeps_shapes_types_and_order() -> None:
    values = [torch.full((2, 3), 1.5), torch.tensor(4.0, dtype=torch.float64), torch.zeros(0), torch.ones(1)]
    total = plain_sum(values, Doubled())
    assert [tensor.dtype for tensor in total] == [tensor.dtype for tensor in values]
    assert all(torch.equal(a, 2 * b) for a, b in zip(total, values, strict=True))
    assert plain_sum([], Doubled()) == []


def test_unflatten_gives_each_tensor_its_own_numbers() -> None:
    like = [torch.empty(2, 2), torch.empty(()), torch.empty(3, dtype=torch.float64)]
    pieces = unflatten(torch.arange(8.0), like)
    assert [piece.tolist() for piece in pieces] == [[[0, 1], [2, 3]], 4, [5, 6, 7]]
    assert [(piece.shape, piece.dtype) for piece in pieces] == [(tensor.shape, tensor.dtype) for tensor in like]
