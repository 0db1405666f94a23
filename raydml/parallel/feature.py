"""A linear metric cut by input features: each worker holds some columns of the map, and those features of all rows.

L is (dimension, features): z = L x = sum_v L_v x_v over V groups of columns, which are shared out like the slices of a
batch. Workers exchange the features of their rows, multiply, and sum over the fixed tree, so that distances have the
same bits for any number of workers. The gradient of L_v needs the cotangents of all rows and features that lie here: it
never travels. For wide inputs: L, its gradient and its moments take 1/W on each worker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from raydml.errors import SpecError
from raydml.models import as_input
from raydml.parallel.group import Group
from raydml.parallel.holding import Held
from raydml.parallel.reduction import TreeAccumulator, tree_sum
from raydml.parallel.sharding import Spread
from raydml.spec import JobSpec

WEIGHT = "head.weight"
CUT = re.compile(rf"(.*{re.escape(WEIGHT)})\.(\d+)((?:\..*)?)")  # of a tensor of the state: before, group, after


class Columns:
    """V groups of as many columns each, but for the last ones: which this worker holds, and how they make the whole."""

    def __init__(self, features: int, group: Group) -> None:
        self.group, self._features = group, features
        self._width = -(-features // group.num_slices)

    def of(self, groups: range) -> slice:
        """The columns of consecutive groups."""
        low, high = (min(end * self._width, self._features) for end in (groups.start, groups.stop))
        return slice(low, high)

    def held(self) -> dict[int, slice]:
        """Columns of each own group."""
        return {index: self.of(range(index, index + 1)) for index in self.group.owned}

    def counts(self) -> list[int]:
        """Columns of each worker."""
        found = (self.of(self.group.share(rank)) for rank in range(self.group.size))
        return [columns.stop - columns.start for columns in found]

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See Spread: moments are cut as the map is, counts of steps are not."""
        pieces: dict[str, list[Tensor]] = {}
        found: dict[str, Tensor] = {}
        for name, value in sorted(tensors.items()):
            cut = CUT.fullmatch(name)
            if cut is None:
                found[name] = value
            else:
                pieces.setdefault(cut[1] + cut[3], []).append(value.detach())
        for name, parts in sorted(pieces.items()):
            if parts[0].dim() < 2:
                found[name] = parts[0]
            else:
                rows = self.group.gather_rows(torch.cat(parts, dim=1).T.contiguous(), self.counts())
                found[name] = rows.T.contiguous()
        return found if self.group.rank == 0 else {}

    def local(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See Spread."""
        found = dict(tensors)
        for name, value in tensors.items():
            before, at, after = name.partition(WEIGHT)
            if at and before in ("model.", "optimizer.model."):
                del found[name]
                for index, columns in self.held().items():
                    piece = value[:, columns] if value.dim() == 2 else value
                    found[f"{before}{WEIGHT}.{index:05d}{after}"] = piece.clone()
        return found


class CutLinear(Held):
    """The own columns of a linear map, a parameter for each group; running it is a collective."""

    def __init__(self, weight: Tensor, backbone: nn.Module, columns: Columns, *, normalize: bool) -> None:
        self.columns, self.normalize = columns, normalize
        pieces = {
            f"{WEIGHT}.{index:05d}": nn.Parameter(weight[:, here].clone()) for index, here in columns.held().items()
        }
        super().__init__(pieces)
        self.backbone = backbone  # flattens its inputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Own rows (n, *input_shape), of any number on each worker -> their embeddings, (n, dimension)."""
        group = self.columns.group
        counts = group.gather_rows(torch.tensor([len(inputs)], device=inputs.device), [1] * group.size).tolist()
        features = self.exchange(inputs, [[count] for count in counts])
        return self.finish(self.project(features, counts))

    def exchange(self, inputs: Tensor, blocks: Sequence[Sequence[int]]) -> list[list[Tensor]]:
        """Own rows -> of all rows the features of each own group, [group][block] (rows of the block, columns).

        `blocks`: how many rows each block of each worker has, in order of rank. What is computed of a block has its
        shape, so that no number depends on the rows beside it.
        """
        group, columns = self.columns.group, self.columns
        rows: Tensor = self.backbone(inputs)
        outgoing = [rows[:, columns.of(group.share(rank))].reshape(-1) for rank in range(group.size)]
        own = columns.of(group.owned)
        width = own.stop - own.start
        totals = [sum(sizes) for sizes in blocks]
        taken = [total * width for total in totals]
        received = group.exchange(torch.cat(outgoing), [len(part) for part in outgoing], taken).view(-1, width)
        parts = torch.split(received, [size for sizes in blocks for size in sizes])
        return [
            [part[:, here.start - own.start : here.stop - own.start].contiguous() for part in parts]
            for here in columns.held().values()
        ]

    def project(self, features: Sequence[Sequence[Tensor]], totals: Sequence[int]) -> Tensor:
        """Features of all rows -> L x of the own rows, of which each worker has as many as `totals` says."""
        group = self.columns.group
        accumulator = TreeAccumulator(group.num_slices)
        for index, weight, blocks in zip(group.owned, self.parameters(), features, strict=True):
            accumulator.add(index, [torch.cat([block @ weight.T for block in blocks])])
        start = sum(totals[: group.rank])
        return tree_sum(accumulator, group)[0][start : start + totals[group.rank]]

    def finish(self, projected: Tensor) -> Tensor:
        """L x -> embeddings."""
        return functional.normalize(projected) if self.normalize else projected


class FeatureParallel:
    """Trains a linear metric whose columns are shared out; nothing of a step is kept but the features of its rows."""

    model: nn.Module
    held: nn.Module
    spread: Spread | None
    in_step: bool

    def __init__(self, model: nn.Module, spec: JobSpec, group: Group, device: torch.device) -> None:
        weight, backbone = model.get_parameter(WEIGHT), model.get_submodule("backbone")
        if not weight.requires_grad:
            raise SpecError("strategy feature trains a linear map by columns, and model.frozen leaves none: use ddp")
        columns = Columns(weight.shape[1], group)
        self.spread = columns
        self._map = CutLinear(weight.detach().to(device), backbone, columns, normalize=spec.model.normalize)
        self.model = self.held = self._map
        self.parameters = list(self._map.parameters())
        self.in_step = group.size > 1
        self._group, self._device, self._size = group, device, spec.batch.slice_size
        self._kind = torch.float64 if spec.parallel.precision == "float64" else torch.float32
        self._features: list[list[Tensor]] = []
        self._projected = torch.empty(0)

    def train(self) -> None:
        """Training and evaluation are the same."""

    @torch.no_grad()
    def forward(self, inputs: Sequence[Tensor], step: int) -> Tensor:
        """Inputs of the own slices, (S, *input_shape) each -> embeddings (own slices x S, dimension)."""
        blocks = [[self._size] * len(self._group.share(rank)) for rank in range(self._group.size)]
        rows = as_input(torch.cat(list(inputs)), self._device, self._kind)
        self._features = self._map.exchange(rows, blocks)
        self._projected = self._map.project(self._features, [sum(sizes) for sizes in blocks])
        return torch.cat([self._map.finish(part) for part in torch.split(self._projected, self._size)])

    def forward_in_float32(self, inputs: Sequence[Tensor], step: int) -> Tensor:
        """The same: the spec allows neither autocast nor a loss scale here."""
        return self.forward(inputs, step)

    def pullback(self, cotangents: Tensor) -> list[Tensor]:
        """dL/d(own embeddings) -> gradients of the own columns, over all rows."""
        pulled = []
        for part, upstream in zip(*(torch.split(v, self._size) for v in (self._projected, cotangents)), strict=True):
            leaf = part.detach().requires_grad_()
            with torch.enable_grad():
                value = (self._map.finish(leaf) * upstream.to(leaf.dtype)).sum()
            pulled.append(torch.autograd.grad(value, leaf)[0])
        everything = self._group.gather_slices(torch.cat(pulled))  # (B, dimension)
        gradients = [everything.T @ torch.cat(blocks) for blocks in self._features]
        self._features = []
        return gradients

    def norm(self, gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        """L2 norm, shape (), of the gradients of all columns and of the loss's own weights; the same bits anywhere."""
        squares = torch.stack([gradient.double().square().sum() for gradient in gradients])
        total = self._group.gather_slices(squares).sum()
        return torch.stack([total, *(value.double().square().sum() for value in weights)]).sum().sqrt()

    def commit(self) -> None:
        """There are no running statistics."""
