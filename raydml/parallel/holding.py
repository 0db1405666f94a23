"""What one worker holds of a model that is shared out: its part of each tensor, and how the parts make the whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raydml.errors import CheckpointError
from raydml.parallel.group import Group, Peers


@dataclass(frozen=True)
class Cut:
    """A tensor in chunks along `dim`, one for each of some workers, as torch.chunk makes them: the last may be empty.

    `length` is that of the whole along `dim`.
    """

    peers: Peers
    dim: int
    length: int

    def bounds(self, rank: int) -> tuple[int, int]:
        """Where the part of a worker begins and ends along `dim`."""
        chunk = -(-self.length // self.peers.size)
        return min(rank * chunk, self.length), min((rank + 1) * chunk, self.length)

    def part(self, whole: Tensor) -> Tensor:
        """This worker's part of a whole tensor, a view."""
        low, high = self.bounds(self.peers.rank)
        return whole.narrow(self.dim, low, high - low)

    def whole(self, part: Tensor) -> Tensor:
        """The whole tensor of all parts; every worker of them calls it."""
        shape = list(part.shape)
        low, high = self.bounds(self.peers.rank)
        shape[self.dim] = high - low  # an empty part may have lost its shape
        rows = part.reshape(shape).transpose(0, self.dim).contiguous()
        counts = [high - low for low, high in map(self.bounds, range(self.peers.size))]
        return self.peers.gather_rows(rows, counts).transpose(0, self.dim).contiguous()


class Holding:
    """The tensors of a model that this worker holds, under the names that one process would use.

    `tensors` are parameters and buffers as they lie here; of those in `cuts` they are a part. `trained` are the
    parameters among them that the optimiser moves, in order. `stages` are the workers that hold other tensors, and
    `everything` are the names of all tensors of the model.
    """

    def __init__(
        self,
        group: Group,
        tensors: Mapping[str, Tensor],
        trained: Mapping[str, nn.Parameter],
        cuts: Mapping[str, Cut],
        stages: Peers | None = None,
        everything: Iterable[str] | None = None,
    ) -> None:
        self.group, self.tensors, self.trained, self.cuts = group, dict(tensors), dict(trained), dict(cuts)
        self.stages = stages or Peers(0, 1)
        self.everything = set(everything or self.tensors)

    def whole(self, own: Mapping[str, tuple[Tensor, str | None]]) -> Iterator[tuple[str, Tensor]]:
        """Tensors that lie here -> those of all workers whole, in order of name; one at a time is whole.

        own: by full name a tensor and the name in `tensors` whose cut it has. Every worker calls this and goes on to
        the end.
        """
        held = {name: (self._shape(tensor, like), tensor.dtype) for name, (tensor, like) in own.items()}
        everywhere = self.stages.objects(held)
        for name in sorted(set().union(*everywhere)):
            holders = [stage for stage, theirs in enumerate(everywhere) if name in theirs]
            value = None
            if name in own:
                tensor, like = own[name]
                cut = self._cut(tensor, like)
                value = tensor.detach() if cut is None else cut.whole(tensor.detach())
            if len(holders) < self.stages.size:
                shape, kind = everywhere[holders[0]][name]
                value = torch.empty(shape, dtype=kind, device=self._device) if value is None else value
                value = self.stages.share_out(value.to(self._device).contiguous(), holders[0])
            assert value is not None
            yield name, value

    @torch.no_grad()
    def load(self, whole: Mapping[str, Tensor]) -> None:
        """Take this worker's parts of whole tensors. CheckpointError where names or shapes are not the model's."""
        missing, unknown = sorted(self.everything - set(whole)), sorted(set(whole) - self.everything)
        wrong = [
            f"{name} {tuple(whole[name].shape)} for {tuple(self._shape(tensor, name))}"
            for name, tensor in self.tensors.items()
            if name in whole and whole[name].shape != self._shape(tensor, name)
        ]
        if missing or unknown or wrong:
            raise CheckpointError(
                f"the checkpoint belongs to another model or loss: missing {missing[:4]}, unknown {unknown[:4]}, "
                f"shapes {wrong[:4]}"
            )
        for name, tensor in self.tensors.items():
            tensor.copy_(self.part(name, whole[name]).reshape(tensor.shape))

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This worker's part of a tensor that is cut as the model's tensor `name` is, where it has its shape."""
        cut = self.cuts.get(name)
        fits = cut is not None and whole.dim() > cut.dim and whole.shape[cut.dim] == cut.length
        return cut.part(whole) if cut is not None and fits else whole

    def norm(self, gradients: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """L2 norm, shape (), of all gradients: `gradients` of `trained`, in its order, and others that all hold alike.

        Parts are counted once each, and the numbers of all workers are added in order of rank: all get the same bits.
        """
        device = self._device
        total = torch.zeros(1, dtype=torch.float64, device=device)
        for name, gradient in zip(self.trained, gradients, strict=True):
            cut = self.cuts.get(name)
            holders = (cut.peers.size if cut else 1) * self.stages.size
            copies = self.group.size // holders  # workers that hold this very part
            total += gradient.double().square().sum().to(device) / copies
        parts = self.group.gather_rows(total, [1] * self.group.size)
        for gradient in others:
            total = gradient.double().square().sum().to(device).view(1)
            parts = torch.cat([parts, total])
        return torch.stack(list(parts)).sum().sqrt()

    def _shape(self, tensor: Tensor, like: str | None) -> torch.Size:
        cut = self._cut(tensor, like)
        shape = list(tensor.shape)
        if cut is not None:
            shape[cut.dim] = cut.length
        return torch.Size(shape)

    def _cut(self, tensor: Tensor, like: str | None) -> Cut | None:
        """The cut of the tensor `like`, which a tensor beside it has where it has its shape (a moment, not a count)."""
        return self.cuts.get(like) if like is not None and tensor.shape == self.tensors[like].shape else None

    @property
    def _device(self) -> torch.device:
        return self.group.device
