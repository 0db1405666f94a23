"""Sums over the V slices, in the order of one fixed binary tree: the same bits for any number of workers.

A value to be summed is a list of tensors (all gradients and statistics of one slice). Nodes whose slices one worker
holds are summed there; only the largest such partial sums travel, as a reduce-scatter and a gather: every worker gets
one part of each partial sum, adds the parts in tree order and hands the result to all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from raydml.membership import Node, Tree, parents
from raydml.parallel.group import Group


class TreeAccumulator:
    """Takes the leaves of a worker's slices and keeps O(log V) partial sums."""

    def __init__(self, num_slices: int) -> None:
        self._parents = parents(num_slices)
        self.partial: dict[Node, list[Tensor]] = {}

    def add(self, slice_index: int, leaf: Sequence[Tensor]) -> None:
        """Add one slice; its sibling is merged at once where it is there already."""
        self.put((slice_index, slice_index + 1), list(leaf))

    def put(self, node: Node, value: list[Tensor]) -> None:
        """Add the sum of a node's slices, as another worker may have made it; an empty list adds nothing."""
        while node in self._parents:
            parent = self._parents[node]
            left, right = Tree.children(parent)
            sibling = right if node == left else left
            if sibling not in self.partial:
                break
            other = self.partial.pop(sibling)
            # Out of place: two entries of a leaf may be one tensor (the gradient of two equal addends).
            value = add(value, other) if node == left else add(other, value)
            node = parent
        self.partial[node] = value


def add(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    """Entry by entry, out of place; an empty list stands for zeros."""
    return list(torch._foreach_add(left, right)) if left and right else left or right


def tree_sum(accumulator: TreeAccumulator, group: Group) -> list[Tensor]:
    """The sum over all V slices on every worker; shapes as in the leaves.

    Communication per worker: (1 - 1/W) of its partial sums out, as much in, and the result once.
    """
    tree = Tree(group.num_slices)
    if group.size == 1:
        # As after a gather: sums over a tensor in another order of memory would round differently.
        return [tensor.contiguous() for tensor in accumulator.partial[tree.root]]
    covers = [tree.cover(group.share(rank)) for rank in range(group.size)]
    own = [accumulator.partial[node] for node in covers[group.rank]]
    if not own[0]:  # a frozen model without batch norm has nothing to sum
        return []
    count = sum(tensor.numel() for tensor in own[0])
    padding = own[0][0].new_zeros(-count % group.size)
    numbers = [tensor.reshape(-1) for value in own for tensor in (*value, padding)]
    received = _exchange(torch.cat(numbers).view(len(own), -1), [len(cover) for cover in covers], group)
    parts = {
        node: part
        for cover, block in zip(covers, received, strict=True)
        for node, part in zip(cover, block, strict=True)
    }
    total = evaluate_tree(tree.root, parts)
    everything = total.new_empty(group.size * total.numel())
    group.sent += total.nbytes * (group.size - 1)
    with group.collective():
        dist.all_gather_into_tensor(everything, total, group=group.processes)
    return unflatten(everything[:count], own[0])


def _exchange(flat: Tensor, node_counts: list[int], group: Group) -> list[Tensor]:
    """Own partial sums (nodes, numbers), W divides numbers -> each worker's (nodes, numbers / W) of this one's part."""
    world_size = len(node_counts)
    chunk = flat.shape[1] // world_size
    outgoing = flat.view(flat.shape[0], world_size, chunk).transpose(0, 1).contiguous()
    sizes = [count * chunk for count in node_counts]
    incoming = flat.new_empty(sum(sizes))
    group.sent += outgoing.nbytes // world_size * (world_size - 1)
    with group.collective():
        dist.all_to_all_single(
            incoming, outgoing.view(-1), sizes, [flat.shape[0] * chunk] * world_size, group=group.processes
        )
    return [block.view(-1, chunk) for block in torch.split(incoming, sizes)]


def evaluate_tree(node: Node, parts: dict[Node, Tensor]) -> Tensor:
    """The sum of a node's slices from those of nodes below that cover it."""
    if node in parts:
        return parts[node]
    left, right = Tree.children(node)
    return evaluate_tree(left, parts) + evaluate_tree(right, parts)


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
