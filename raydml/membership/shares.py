"""Which slices of the global batch each worker holds, and the tree over which slices are summed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

Node = tuple[int, int]
"""A node of the tree: the slices [low, high)."""


def share(rank: int, world_size: int, num_slices: int) -> range:
    """Slices of a worker: contiguous, in rank order, sizes differing by at most one."""
    return range(rank * num_slices // world_size, (rank + 1) * num_slices // world_size)


def deal(speeds: Sequence[float], num_slices: int) -> tuple[int, ...]:
    """How many slices each worker takes, in rank order, so that the slowest is done as early as possible.

    `speeds` are in slices per second, of W <= V workers; 0 stands for unknown and counts as the mean of the known ones.
    Each worker takes at least one slice. Equal speeds give the sizes of `share`.
    """
    known = [speed for speed in speeds if speed > 0]
    if len(set(known)) <= 1:
        return tuple(len(share(rank, len(speeds), num_slices)) for rank in range(len(speeds)))
    mean = sum(known) / len(known)
    pace = [speed or mean for speed in speeds]
    sizes = [1] * len(speeds)
    for _ in range(num_slices - len(speeds)):
        # One more slice for whom it costs the least time in all.
        sizes[min(range(len(sizes)), key=lambda rank: (sizes[rank] + 1) / pace[rank])] += 1
    return tuple(sizes)


@dataclass(frozen=True)
class Tree:
    """The fixed binary tree over V slices: its shape depends on V alone, never on the workers."""

    num_slices: int

    @property
    def root(self) -> Node:
        """The node of all slices."""
        return (0, self.num_slices)

    @staticmethod
    def children(node: Node) -> tuple[Node, Node]:
        """Both halves of an inner node; the left one holds a power of two of slices."""
        low, high = node
        middle = low + (1 << ((high - low - 1).bit_length() - 1))
        return (low, middle), (middle, high)

    def cover(self, owned: Iterable[int]) -> list[Node]:
        """The largest nodes whose slices are all owned, left to right: what a worker can sum alone."""
        return _cover(self.root, frozenset(owned))


def _cover(node: Node, owned: frozenset[int]) -> list[Node]:
    low, high = node
    if owned.issuperset(range(low, high)):
        return [node]
    if high - low == 1 or owned.isdisjoint(range(low, high)):
        return []
    left, right = Tree.children(node)
    return _cover(left, owned) + _cover(right, owned)


@cache
def parents(num_slices: int) -> dict[Node, Node]:
    """Every node but the root -> its parent."""
    found: dict[Node, Node] = {}
    open_nodes = [(0, num_slices)]
    while open_nodes:
        node = open_nodes.pop()
        if node[1] - node[0] > 1:
            for child in Tree.children(node):
                found[child] = node
                open_nodes.append(child)
    return found
