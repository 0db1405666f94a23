"""The state of one member -> members that hold none: sent whole, checked by its digest, swapped in at once.

It goes at the boundary, not ahead of it: with an optimiser every number changes with every step, so that of what was
sent before nothing would still hold. Frozen parameters never change: every member has them from the spec, and only
their digest goes along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from raydml.errors import RunError
from raydml.parallel.group import PeerLost
from raydml.training.checkpoints import Best
from raydml.training.state import TrainingState
from raydml.training.worker import Worker


@dataclass(frozen=True)
class Manifest:
    """What goes before the numbers: names, types and shapes of the tensors, and all of the state that is no tensor.

    `sha256` is that of the numbers, `frozen_sha256` that of the parameters which stay at home.
    """

    step: int
    sha256: str
    frozen_sha256: str
    lineage: str
    best: Best | None
    settled: int
    final_sha256: str | None
    monitor: Any
    tensors: list[tuple[str, torch.dtype, tuple[int, ...]]]


def give(worker: Worker, lineage: str, receivers: Sequence[int]) -> None:
    """Send this worker's state to those ranks of the group; PeerLost where one of them is lost."""
    state = worker.trainer.state
    tensors, frozen = _split(state)
    kinds = [(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()]
    numbers = _flat(list(tensors.values()))
    manifest = Manifest(
        step=state.step,
        sha256=_sha256(numbers),
        frozen_sha256=_sha256(_flat(list(frozen.values()))),
        lineage=lineage,
        best=worker.best,
        settled=worker.settled,
        final_sha256=worker.final_sha256,
        monitor=worker.trainer.monitor.memory(),
        tensors=kinds,
    )
    group = worker.group
    with group.collective():
        for rank in receivers:
            dist.send_object_list([manifest], dst=rank)
        works = [dist.isend(numbers, dst=rank) for rank in receivers]
        group.acknowledge(received_from=(), sent_to=receivers)
        for sent in works:
            assert sent is not None
            sent.wait()


def take(worker: Worker, source: int) -> str:
    """Receive a state from that rank into memory of its own, then put it into this worker; gives its lineage.

    Raises PeerLost where the source is lost on the way, or what came is not what was sent; RunError where the frozen
    parameters of the two are not the same. Then nothing has changed.
    """
    box: list[Any] = [None]
    device = worker.trainer.device
    with worker.group.collective():
        dist.recv_object_list(box, src=source)
        manifest: Manifest = box[0]
        size = sum(torch.Size(shape).numel() * kind.itemsize for _, kind, shape in manifest.tensors)
        numbers = torch.empty(size, dtype=torch.uint8, device=device)
        dist.recv(numbers, src=source)
        worker.group.acknowledge(received_from=[source], sent_to=())
    if _sha256(numbers) != manifest.sha256:
        raise PeerLost(f"the state of step {manifest.step} was damaged on its way from rank {source}")
    state = worker.trainer.state
    frozen = _split(state)[1]
    if _sha256(_flat(list(frozen.values()))) != manifest.frozen_sha256:
        raise RunError(f"the model's frozen parameters are not those of rank {source}: its files differ, see to them")
    state.load(_named(numbers, manifest) | frozen, manifest.step)
    worker.trainer.monitor.remember(manifest.monitor)
    worker.best, worker.settled, worker.final_sha256 = manifest.best, manifest.settled, manifest.final_sha256
    return manifest.lineage


def _split(state: TrainingState) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors that training may change, and the frozen parameters, in order of name."""
    tensors = dict(sorted(state.tensors().items()))
    names = {f"model.{name}" for name, value in state.model.named_parameters() if not value.requires_grad}
    frozen = {name: value for name, value in tensors.items() if name in names}
    return {name: value for name, value in tensors.items() if name not in names}, frozen


def _sha256(numbers: Tensor) -> str:
    return hashlib.sha256(numbers.cpu().numpy().data).hexdigest()


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """All bits of some tensors, one after another."""
    if not tensors:
        return torch.empty(0, dtype=torch.uint8)
    return torch.cat([value.detach().contiguous().reshape(-1).view(torch.uint8) for value in tensors])


def _named(numbers: Tensor, manifest: Manifest) -> dict[str, Tensor]:
    """The tensors of a manifest out of their bits, each in memory of its own."""
    sizes = [torch.Size(shape).numel() * kind.itemsize for _, kind, shape in manifest.tensors]
    parts = torch.split(numbers, sizes)
    return {
        name: part.clone().view(kind).view(shape)
        for (name, kind, shape), part in zip(manifest.tensors, parts, strict=True)
    }
