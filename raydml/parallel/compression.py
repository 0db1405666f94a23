"""Gradients of slices in, their sum over all slices out, with fewer bytes between the workers.

What a slice sends is compressed, never what a worker sends: so the result does not depend on who computes which slices,
and neither does what is left unsaid. That waits in a residual of the slice, which is added to its next gradient (error
feedback: Seide et al. 2014; Stich et al. 2018) and moves with the slice to another worker.

Of what a step computes only `total` is kept apart until `commit`: a step that is not committed leaves no trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from raydml.membership import Tree
from raydml.parallel.group import Group
from raydml.parallel.randomness import key
from raydml.parallel.reduction import TreeAccumulator, evaluate_tree, tree_sum, unflatten
from raydml.parallel.sharding import Sharded
from raydml.spec import CompressionSpec, HalfGradients, NoCompression, PowerSgd, TopK

Leaf = tuple[int, list[Tensor], list[Tensor]]  # of a slice: its number, its gradients, what must arrive as it is


class Reducer(Protocol):
    """Sums gradients over slices; `sharded` is what it remembers of each slice, by name."""

    sharded: dict[str, Sharded]

    def total(self, leaves: Iterable[Leaf]) -> tuple[list[Tensor], list[Tensor]]:
        """From the own slices: the sum of gradients, compressed, and of the rest, exactly, over all slices."""
        ...

    def commit(self) -> None:
        """The step is taken: remember what it left unsaid."""
        ...


class Halved:
    """Gradients of slices, and every partial sum of the tree, rounded to 16 bits: half of the bytes, no residual."""

    def __init__(self, kind: torch.dtype, group: Group) -> None:
        self.sharded: dict[str, Sharded] = {}
        self._kind, self._group = kind, group

    def total(self, leaves: Iterable[Leaf]) -> tuple[list[Tensor], list[Tensor]]:
        """See Reducer."""
        rounded, whole = (TreeAccumulator(self._group.num_slices) for _ in range(2))
        kinds: list[torch.dtype] = []
        for index, gradients, rest in leaves:
            kinds = [gradient.dtype for gradient in gradients]
            rounded.add(index, [gradient.to(self._kind) for gradient in gradients])
            whole.add(index, rest)
        sums = tree_sum(rounded, self._group)
        return [value.to(kind) for value, kind in zip(sums, kinds, strict=True)], tree_sum(whole, self._group)

    def commit(self) -> None:
        """Nothing is remembered."""


class Residuals:
    """What each own slice has not said yet, (numbers,) all parameters in a row, beside what all slices share."""

    def __init__(self, like: Tensor, shared: dict[str, Tensor], group: Group) -> None:
        self._like, self._shared, self._group = like, shared, group
        self._held: dict[int, Tensor] = {}

    def __getitem__(self, index: int) -> Tensor:
        # A worker that has moved holds other slices: those that it had are no longer its own to remember.
        self._held = {known: value for known, value in self._held.items() if known in self._group.owned}
        if index not in self._held:
            self._held[index] = torch.zeros_like(self._like)
        return self._held[index]

    def replace(self, index: int, value: Tensor) -> None:
        """Remember another one."""
        self[index].copy_(value)

    def shard(self, index: int) -> dict[str, Tensor]:
        """See Sharded."""
        return {"residual": self[index], **self._shared}


class LargestEntries:
    """Of each slice's gradient and residual the share of largest magnitude, with their places.

    Sums of sparse vectors are sparse: what travels of a worker's slices is the union of their entries.
    """

    def __init__(self, spec: TopK, parameters: Sequence[Tensor], group: Group) -> None:
        self._group = group
        self._like = [parameter.detach() for parameter in parameters]
        count = sum(parameter.numel() for parameter in parameters)
        self._kept = math.ceil(spec.share * count)
        self._residuals = Residuals(parameters[0].detach().new_zeros(count), {}, group)
        self._left: dict[int, Tensor] = {}  # by slice, of the step that is not committed yet
        self.sharded: dict[str, Sharded] = {"residual": self._residuals}

    def total(self, leaves: Iterable[Leaf]) -> tuple[list[Tensor], list[Tensor]]:
        """See Reducer."""
        chosen, whole = (TreeAccumulator(self._group.num_slices) for _ in range(2))
        for index, gradients, rest in leaves:
            wanted = self._residuals[index] + torch.cat([gradient.reshape(-1) for gradient in gradients])
            places = wanted.abs().topk(self._kept, sorted=False).indices
            said = torch.zeros_like(wanted)
            said[places] = wanted[places] + 0.0  # never -0, which a sparse sum forgets
            self._left[index] = wanted - said
            chosen.add(index, [said])
            whole.add(index, rest)
        return unflatten(sparse_tree_sum(chosen, self._group), self._like), tree_sum(whole, self._group)

    def commit(self) -> None:
        """See Reducer."""
        for index, left in self._left.items():
            self._residuals.replace(index, left)
        self._left = {}


def sparse_tree_sum(accumulator: TreeAccumulator, group: Group) -> Tensor:
    """The sum over all slices of vectors (numbers,) that are mostly zeros; as bitwise as `tree_sum`.

    What travels are the places and values of the own partial sums, to every worker, padded to the longest.
    """
    tree = Tree(group.num_slices)
    if group.size == 1:
        return accumulator.partial[tree.root][0]
    own = [accumulator.partial[node][0] for node in tree.cover(group.owned)]
    places = [value.nonzero().squeeze(1) for value in own]
    covers = [tree.cover(group.share(rank)) for rank in range(group.size)]
    sizes = torch.tensor([len(place) for place in places], device=own[0].device)
    lengths = torch.split(group.gather_rows(sizes, [len(cover) for cover in covers]), [len(cover) for cover in covers])
    counts = [int(part.sum()) for part in lengths]
    where = group.gather_rows(torch.cat(places).to(torch.int32), counts)
    values = group.gather_rows(torch.cat([value[place] for value, place in zip(own, places, strict=True)]), counts)
    parts, start = {}, 0
    for cover, given in zip(covers, lengths, strict=True):
        for node, length in zip(cover, given.tolist(), strict=True):
            here = slice(start, start + length)
            parts[node] = torch.zeros_like(own[0]).index_copy_(0, where[here].long(), values[here])
            start += length
    return evaluate_tree(tree.root, parts)


class LowRank:
    """PowerSGD (Vogels, Karimireddy and Jaggi, NeurIPS 2019, algorithms 1 and 2) over slices.

    A matrix M of a slice, gradient and residual, is sent as M Q and M^T P, which are linear, so that their sums over
    the tree are those of the sum of all slices: P from the sum of M Q, orthonormal, and Q from that of M^T P; P Q^T
    stands for the sum of M, and Q is where the next step begins. Vectors and small matrices are sent as they are.
    """

    def __init__(self, spec: PowerSgd, seed: int, parameters: Sequence[Tensor], group: Group) -> None:
        self._group = group
        self._like = [parameter.detach() for parameter in parameters]
        self._rank = spec.rank
        self._places = [place for place, value in enumerate(self._like) if self._shrinks(value)]
        self._starts = [self._begun(place, seed) for place in self._places]
        self._next: list[Tensor] = []
        count = sum(self._like[place].numel() for place in self._places)
        shared = {f"start-{place:05d}": start for place, start in zip(self._places, self._starts, strict=True)}
        self._residuals = Residuals(parameters[0].detach().new_zeros(count), shared, group)
        self._left: dict[int, Tensor] = {}
        self.sharded: dict[str, Sharded] = {"residual": self._residuals}

    def total(self, leaves: Iterable[Leaf]) -> tuple[list[Tensor], list[Tensor]]:
        """See Reducer."""
        matrices: dict[int, list[Tensor]] = {}
        accumulator, plain = TreeAccumulator(self._group.num_slices), 0
        for index, gradients, rest in leaves:
            matrices[index] = self._with_residual(index, gradients)
            images = [matrix @ start for matrix, start in zip(matrices[index], self._starts, strict=True)]
            others = [gradient for place, gradient in enumerate(gradients) if place not in self._places]
            plain = len(others)
            accumulator.add(index, [*images, *others, *rest])
        sums = tree_sum(accumulator, self._group)
        count = len(self._places)
        bases = [torch.linalg.qr(image)[0] for image in sums[:count]]  # P, on all workers alike
        accumulator = TreeAccumulator(self._group.num_slices)
        for index, own in matrices.items():
            shares = [matrix.T @ basis for matrix, basis in zip(own, bases, strict=True)]
            left = [m - p @ q.T for m, p, q in zip(own, bases, shares, strict=True)]
            self._left[index] = torch.cat([value.reshape(-1) for value in left]) if left else self._residuals[index]
            accumulator.add(index, shares)
        self._next = tree_sum(accumulator, self._group)  # Q
        found = {
            place: (basis @ image.T).view_as(self._like[place])
            for place, basis, image in zip(self._places, bases, self._next, strict=True)
        }
        as_they_are = iter(sums[count : count + plain])
        total = [found[place] if place in found else next(as_they_are) for place in range(len(self._like))]
        return total, sums[count + plain :]

    def commit(self) -> None:
        """See Reducer."""
        for index, left in self._left.items():
            self._residuals.replace(index, left)
        for start, value in zip(self._starts, self._next, strict=False):
            start.copy_(value)
        self._left, self._next = {}, []

    def _shrinks(self, value: Tensor) -> bool:
        if value.ndim < 2:
            return False
        rows, columns = _matrix(value).shape
        return self._rank * (rows + columns) < rows * columns

    def _begun(self, place: int, seed: int) -> Tensor:
        """Q before the first step, (columns, rank): normal numbers."""
        columns = _matrix(self._like[place]).shape[1]
        generator = torch.Generator().manual_seed(key(seed, "powersgd", place))
        start = torch.randn(columns, self._rank, generator=generator, dtype=torch.float64)
        return start.to(self._like[place])

    def _with_residual(self, index: int, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The matrices that this slice wants to send."""
        own = [gradients[place] for place in self._places]
        if not own:
            return []
        kept = unflatten(self._residuals[index], own)
        return [_matrix(gradient + residual) for gradient, residual in zip(own, kept, strict=True)]


def _matrix(value: Tensor) -> Tensor:
    """(rows, ...) -> (rows, all others)."""
    return value.reshape(value.shape[0], -1)


def build_reducer(spec: CompressionSpec, seed: int, parameters: Sequence[Tensor], group: Group) -> Reducer | None:
    """What `parallel.compression` says; None where gradients travel as they are."""
    match spec:
        case HalfGradients():
            return Halved({"fp16": torch.float16, "bf16": torch.bfloat16}[spec.kind], group)
        case TopK() if parameters:
            return LargestEntries(spec, parameters, group)
        case PowerSgd() if parameters:
            return LowRank(spec, seed, parameters, group)
        case NoCompression() | TopK() | PowerSgd():  # a frozen model has nothing to send
            return None
