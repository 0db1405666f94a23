"""Membership: who trains together, which slices each worker holds, and the tree over which slices are summed."""

from __future__ import annotations

import itertools
import random

import pytest

from raydml.membership import Node, Tree, deal, parents, share

SIZES = range(1, 18)


def nodes(tree: Tree) -> list[Node]:
    """Every node of the tree, the root first."""
    found = [tree.root]
    for node in found:
        found += Tree.children(node) if node[1] - node[0] > 1 else ()
    return found


def subsets(num_slices: int) -> list[tuple[int, ...]]:
    """All sets of slices where they are few, else some at random."""
    if num_slices <= 8:
        return [kept for size in range(num_slices + 1) for kept in itertools.combinations(range(num_slices), size)]
    draw = random.Random(num_slices)
    return [tuple(sorted(draw.sample(range(num_slices), draw.randrange(num_slices + 1)))) for _ in range(100)]


# Shares


@pytest.mark.parametrize("num_slices", SIZES)
def test_the_workers_shares_cover_all_slices_exactly_once_in_order(num_slices: int) -> None:
    for world_size in range(1, num_slices + 1):
        shares = [share(rank, world_size, num_slices) for rank in range(world_size)]
        assert [index for part in shares for index in part] == list(range(num_slices))
        sizes = [len(part) for part in shares]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


def test_slices_are_dealt_by_speed_each_worker_at_least_one() -> None:
    assert deal([1.0, 1.0], 8) == (4, 4)
    assert deal([3.0, 1.0], 8) == (6, 2)
    assert deal([100.0, 1.0, 1.0], 8) == (6, 1, 1)
    assert deal([0.0, 0.0, 0.0], 8) == tuple(len(share(rank, 3, 8)) for rank in range(3)), "unknown speeds: equal"


# Tree


@pytest.mark.parametrize("num_slices", SIZES)
def test_children_split_their_parent_and_the_left_one_holds_a_power_of_two(num_slices: int) -> None:
    for node in nodes(Tree(num_slices)):
        low, high = node
        if high - low == 1:
            continue
        left, right = Tree.children(node)
        assert (left[0], left[1], right[1]) == (low, right[0], high)
        size = left[1] - left[0]
        assert size & (size - 1) == 0
        assert size >= right[1] - right[0] > 0


@pytest.mark.parametrize("num_slices", SIZES)
def test_every_node_but_the_root_has_the_parent_it_is_a_child_of(num_slices: int) -> None:
    tree = Tree(num_slices)
    known = parents(num_slices)
    assert set(known) == set(nodes(tree)) - {tree.root}
    assert len(known) == 2 * num_slices - 2
    assert all(child in Tree.children(parent) for child, parent in known.items())
    assert {(index, index + 1) for index in range(num_slices)} <= {tree.root, *known}


@pytest.mark.parametrize("num_slices", SIZES)
def test_a_cover_holds_each_owned_slice_once_and_no_other_and_only_largest_nodes(num_slices: int) -> None:
    tree = Tree(num_slices)
    known = parents(num_slices)
    for owned in subsets(num_slices):
        cover = tree.cover(owned)
        assert [index for low, high in cover for index in range(low, high)] == list(owned)
        assert set(cover) <= {tree.root, *known}
        assert all(not set(range(*known[node])) <= set(owned) for node in cover if node != tree.root)


@pytest.mark.parametrize("num_slices", SIZES)
def test_the_workers_covers_together_are_what_the_root_is_summed_from(num_slices: int) -> None:
    for world_size in range(1, num_slices + 1):
        ready = {
            node for rank in range(world_size) for node in Tree(num_slices).cover(share(rank, world_size, num_slices))
        }
        while ready != {(0, num_slices)}:
            pairs = [set(Tree.children(node)) for node in {parents(num_slices)[node] for node in ready}]
            whole = next(pair for pair in pairs if pair <= ready)
            ready = (ready - whole) | {parents(num_slices)[next(iter(whole))]}


def test_the_shape_of_the_tree_is_the_published_one() -> None:
    assert Tree.children((0, 8)) == ((0, 4), (4, 8))
    assert Tree.children((0, 5)) == ((0, 4), (4, 5))
    assert Tree.children((4, 7)) == ((4, 6), (6, 7))
    assert Tree(8).cover(range(1, 7)) == [(1, 2), (2, 4), (4, 6), (6, 7)]
