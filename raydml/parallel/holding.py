"""What one worker holds of a model that is cut over a mesh: its pieces of the tensors, and how they make the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
        """Where the piece of a worker begins and ends along `dim`."""
        chunk = -(-self.length // self.peers.size)
        return min(rank * chunk, self.length), min((rank + 1) * chunk, self.length)

    def piece(self, whole: Tensor) -> Tensor:
        """This worker's piece of a whole tensor, a view."""
        low, high = self.bounds(self.peers.rank)
        return whole.narrow(self.dim, low, high - low)

    def whole(self, piece: Tensor) -> Tensor:
        """The whole tensor of all pieces; every worker of them calls it."""
        rows = piece.transpose(0, self.dim).contiguous()
        counts = [high - low for low, high in map(self.bounds, range(self.peers.size))]
        return self.peers.gather_rows(rows, counts).transpose(0, self.dim).contiguous()


class Held(nn.Module):
    """Tensors under dotted names, those of a model that lies here in pieces or in part; it runs nothing."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in tensors.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for step in path:
                if step not in place._modules:
                    place.add_module(step, nn.Module())
                place = place.get_submodule(step)
            if isinstance(value, nn.Parameter):
                place.register_parameter(last, value)
            else:
                place.register_buffer(last, value)


class Holding:
    """The pieces of a model that this worker holds: a `Spread` for checkpoints, and the norm of all gradients.

    `held` has them under the names of one process, `cuts` says of which tensors they are a piece. `stages` are the
    workers that hold other tensors of the model, and `everything` are the names of all.
    """

    def __init__(
        self,
        group: Group,
        held: nn.Module,
        cuts: Mapping[str, Cut],
        stages: Peers | None = None,
        everything: Iterable[str] | None = None,
    ) -> None:
        self.group, self.held, self.cuts = group, held, dict(cuts)
        self.stages = stages or Peers(0, 1)
        self._shapes = {name: value.shape for name, value in held.state_dict().items()}
        self._everything = set(everything or self._shapes)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this worker holds of model and optimiser -> whole tensors on the first worker, {} on the others.

        One after another, in order of name: no other worker holds more than one whole tensor.
        """
        told = {name: (self._whole_shape(name, value), value.dtype) for name, value in tensors.items()}
        everywhere = self.stages.objects(told)
        found: dict[str, Tensor] = {}
        for name in sorted(set().union(*everywhere)):
            holders = [stage for stage, theirs in enumerate(everywhere) if name in theirs]
            value = self._gathered(name, tensors[name].detach()) if name in tensors else None
            if len(holders) < self.stages.size:
                shape, kind = everywhere[holders[0]][name]
                value = torch.empty(shape, dtype=kind) if value is None else value
                value = self.stages.share_out(value.to(self.group.device).contiguous(), holders[0])
            if self.group.rank == 0:
                assert value is not None
                found[name] = value.cpu()
        return found

    def local(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors -> this worker's pieces of them; what belongs to other stages is left out."""
        return {
            name: value if (cut := self._cut(name, value, whole=True)) is None else cut.piece(value)
            for name, value in tensors.items()
            if self._model_name(name) not in self._everything - self._shapes.keys()
        }

    def norm(self, gradients: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """L2 norm, shape (), of all gradients: `gradients` of the held parameters, and others that all hold alike.

        Pieces are counted once each, and the numbers of all workers are added in order of rank: all get the same bits.
        """
        device = self.group.device
        own = torch.zeros(1, dtype=torch.float64, device=device)
        names = (name for name, value in self.held.named_parameters() if value.requires_grad)
        for name, gradient in zip(names, gradients, strict=True):
            cut = self.cuts.get(name)
            holders = (cut.peers.size if cut else 1) * self.stages.size
            # Of the workers, those in W / holders hold this very piece.
            own += _square(gradient).to(device) * holders / self.group.size
        squares = list(self.group.gather_rows(own, [1] * self.group.size))
        squares += [_square(value).to(device) for value in others]
        return torch.stack(squares).sum().sqrt()

    def _gathered(self, name: str, value: Tensor) -> Tensor:
        cut = self._cut(name, value)
        return value if cut is None else cut.whole(value.to(self.group.device))

    def _whole_shape(self, name: str, value: Tensor) -> torch.Size:
        cut, shape = self._cut(name, value), list(value.shape)
        if cut is not None:
            shape[cut.dim] = cut.length
        return torch.Size(shape)

    def _cut(self, name: str, value: Tensor, *, whole: bool = False) -> Cut | None:
        """How a tensor is cut: as the model's, which a moment has beside it too, and a count of steps has not."""
        own = self._model_name(name)
        cut = self.cuts.get(own)
        if cut is None or value.dim() != len(self._shapes[own]):
            return None
        fits = value.shape[cut.dim] == cut.length if whole else value.shape == self._shapes[own]
        return cut if fits else None

    @staticmethod
    def _model_name(name: str) -> str:
        """The model's tensor that a tensor of the state is, or lies beside: `optimizer.model.<name>.<slot>`."""
        path = name.removeprefix("optimizer.")
        return (path if path == name else path.rpartition(".")[0]).removeprefix("model.")


def _square(value: Tensor) -> Tensor:
    """Sum of squares in float64, shape (), without a copy of the numbers in float64."""
    norm: Tensor = torch.linalg.vector_norm(value, dtype=torch.float64)
    return norm.square()
