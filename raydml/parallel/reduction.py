"""Sums over the V slices, in the order of one fixed binary tree: the same bits for any number of workers.

A value to be summed is a list of tensors (all gradients and statistics of one slice). Nodes whose slices one worker
holds are summed there; only the largest such partial sums travel, as a reduce-scatter and a gather: every worker gets
one part of each partial sum, adds the parts in tree order and hands the result to all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Generic, TypeVar

import torch
from torch import Tensor

from raydml.membership import Node, Tree, parents
from raydml.parallel.group import Group

BUCKET = 2**22  # numbers that are exchanged at a time: what is in the air stays small, and is used again
Value = TypeVar("Value")


class PartialSums(Generic[Value]):
    """Takes the leaves of a worker's slices and keeps O(log V) partial sums, made by `merge(left, right)`."""

    def __init__(self, num_slices: int, merge: Callable[[Value, Value], Value]) -> None:
        self._parents, self._merge = parents(num_slices), merge
        self.partial: dict[Node, Value] = {}

    def add(self, slice_index: int, leaf: Value) -> None:
        """Add one slice; its sibling is merged at once where it is there already."""
        self.put((slice_index, slice_index + 1), leaf)

    def claim(self, slice_index: int) -> tuple[Value | None, Node]:
        """What waits for this slice alone, given away, and the node of both; or None and the node of the slice."""
        node = (slice_index, slice_index + 1)
        if node not in self._parents or self._sibling(node) not in self.partial:
            return None, node
        return self.partial.pop(self._sibling(node)), self._parents[node]

    def put(self, node: Node, value: Value) -> None:
        """Add the sum of a node's slices, as another worker may have made it."""
        while node in self._parents and (sibling := self._sibling(node)) in self.partial:
            other = self.partial.pop(sibling)
            value = self._merge(value, other) if node < sibling else self._merge(other, value)
            node = self._parents[node]
        self.partial[node] = value

    def _sibling(self, node: Node) -> Node:
        left, right = Tree.children(self._parents[node])
        return right if node == left else left


class TreeAccumulator(PartialSums[list[Tensor]]):
    """Of lists of tensors; they stay as they are, and an empty list adds nothing."""

    def __init__(self, num_slices: int) -> None:
        super().__init__(num_slices, add)


def add(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    """Entry by entry, out of place; an empty list stands for zeros."""
    # Two entries of a leaf may be one tensor (the gradient of two equal addends).
    return list(torch._foreach_add(left, right)) if left and right else left or right


def tree_sum(accumulator: TreeAccumulator, group: Group) -> list[Tensor]:
    """The sum over all V slices on every worker; shapes as in the leaves."""
    tree = Tree(group.num_slices)
    if group.size == 1:
        # As after a gather: sums over a tensor in another order of memory would round differently.
        return [tensor.contiguous() for tensor in accumulator.partial[tree.root]]
    own = [accumulator.partial[node] for node in tree.cover(group.owned)]
    if not own[0]:  # a frozen model without batch norm has nothing to sum
        return []
    count = sum(tensor.numel() for tensor in own[0])
    padding = own[0][0].new_zeros(-count % group.size)
    rows = [torch.cat([tensor.reshape(-1) for tensor in (*value, padding)]) for value in own]
    sum_over_workers(rows, group)
    return unflatten(rows[0][:count], own[0])


def sum_over_workers(own: Sequence[Tensor], group: Group) -> None:
    """This worker's partial sums, in order of the tree, (numbers,) each, of which W is a divisor -> in the first of
    them the sum of all slices.

    Piece by piece: every worker gets one part of each partial sum, adds the parts in tree order and hands the result to
    all. Communication per worker: (1 - 1/W) of its partial sums out, as much in, and the result once.
    """
    if group.size == 1:
        return
    tree = Tree(group.num_slices)
    covers = [tree.cover(group.share(rank)) for rank in range(group.size)]
    part = max(1, min(len(own[0]), BUCKET) // group.size)
    room = [[own[0].new_empty(part) for _ in cover] for cover in covers]
    for start in range(0, len(own[0]), part * group.size):
        pieces = [numbers[start : start + part * group.size].view(group.size, -1) for numbers in own]
        received = [[space[: pieces[0].shape[1]] for space in spaces] for spaces in room]
        received[group.rank] = [piece[group.rank] for piece in pieces]
        group.swap([[piece[rank] for piece in pieces] for rank in range(group.size)], received)
        parts = dict(zip(chain(*covers), chain(*received), strict=True))
        pieces[0][group.rank].copy_(evaluate_tree(tree.root, parts))
        group.swap([[pieces[0][group.rank]]] * group.size, [[piece] for piece in pieces[0]])


def evaluate_tree(node: Node, parts: dict[Node, Tensor]) -> Tensor:
    """The sum of a node's slices from those of nodes below that cover it, written over the first of them."""
    if node in parts:
        return parts[node]
    left, right = Tree.children(node)
    return evaluate_tree(left, parts).add_(evaluate_tree(right, parts))


def plain_sum(values: Sequence[Tensor], group: Group) -> list[Tensor]:
    """The library's own all-reduce over workers of one list of tensors: exact, not bitwise."""
    if group.size == 1 or not values:
        return list(values)
    flat = torch.cat([value.reshape(-1) for value in values])
    return unflatten(group.all_reduce(flat), values)


def unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """(numbers,) -> tensors shaped as `like`."""
    pieces = torch.split(flat, [tensor.numel() for tensor in like])
    return [piece.view(tensor.shape).to(tensor.dtype) for piece, tensor in zip(pieces, like, strict=True)]
