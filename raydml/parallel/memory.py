"""What training holds, in bytes, and whether a worker keeps the graphs of its slices or recomputes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from raydml.spec import JobSpec, Sgd

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
AUTOCAST: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Memory:
    """Bytes of the training state: what every worker holds, and what each of its slices adds.

    Counted: parameters, gradients (those of one slice and the partial sums that wait beside them), the optimiser's
    moments, and what autograd keeps of the forward pass of one slice (measured): for every slice that a worker holds,
    or for one at a time beside the inputs of all, where the graphs are recomputed.
    Not counted: the data, the loss, the libraries themselves (about 0.5 GB).
    """

    parameters: int
    gradients: int
    optimizer: int
    activations_per_slice: int
    inputs_per_slice: int
    tree: bool

    def keep(self, num_slices: int) -> int:
        """Bytes of a worker that keeps the graphs of this many slices."""
        return self._fixed(num_slices) + num_slices * self.activations_per_slice

    def recompute(self, num_slices: int) -> int:
        """Bytes of a worker that holds the inputs of this many slices and the graph of one at a time."""
        return self._fixed(num_slices) + num_slices * self.inputs_per_slice + self.activations_per_slice

    def _fixed(self, num_slices: int) -> int:
        """All but slices; the fixed tree keeps a partial sum per level."""
        sets = 1 + (num_slices.bit_length() if self.tree else 1)
        return self.parameters + sets * self.gradients + self.optimizer


def memory_of(spec: JobSpec, model: nn.Module, activations: int, inputs: int) -> Memory:
    """The training state of a model whose forward of one slice keeps `activations` bytes of `inputs` bytes."""
    width = 8 if spec.parallel.precision == "float64" else 4
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) * width
    optimizer = spec.train.optimizer
    moments = (1 if optimizer.momentum else 0) if isinstance(optimizer, Sgd) else 2
    return Memory(
        parameters=sum(parameter.numel() for parameter in model.parameters()) * width,
        gradients=trained,
        optimizer=moments * trained,
        activations_per_slice=activations,
        inputs_per_slice=inputs,
        tree=spec.exactness in ("bitwise", "compressed"),
    )


def choose(spec: JobSpec, memory: Memory, num_slices: int, share: int) -> Literal["keep", "recompute"]:
    """What a worker of this many slices does with `share` bytes; `auto` keeps what fits into half of them.

    The other half is for what is not counted. Recomputing a single slice saves nothing.
    """
    if spec.model.batch_norm == "synchronised":
        return "keep"
    if spec.parallel.memory != "auto":
        return spec.parallel.memory
    keep = memory.keep(num_slices)
    return "keep" if 2 * keep <= share or keep <= memory.recompute(num_slices) else "recompute"


class SavedBytes:
    """Counts the storages that autograd keeps for a backward pass, each once, the model's parameters left out."""

    def __init__(self, model: nn.Module) -> None:
        here = (value.to_local() if hasattr(value, "to_local") else value for value in model.parameters())
        self._own = {value.untyped_storage().data_ptr() for value in here}
        self._kept: dict[int, int] = {}
        self._alive: list[Tensor] = []  # or the allocator would hand an address out twice

    @property
    def total(self) -> int:
        """Bytes kept by what ran within `counting`."""
        return sum(self._kept.values())

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within; afterwards only the graph itself holds what it kept."""
        with torch.autograd.graph.saved_tensors_hooks(self._remember, lambda tensor: tensor):
            yield
        for tensor in self._alive:  # a layer that was gathered to run, and given up, takes nothing now
            storage = tensor.untyped_storage()
            self._kept[storage.data_ptr()] = storage.nbytes()
        self._alive.clear()

    def _remember(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._alive.append(tensor)
        return tensor.detach()  # a graph that holds its own output would never be freed


def kept_by_forward(model: nn.Module, shape: tuple[int, ...], precision: str, kind: torch.dtype = torch.float32) -> int:
    """Bytes that autograd keeps for the backward pass of inputs of this shape and type, parameters left out."""
    saved = SavedBytes(model)
    # float16 is slow on a CPU: bfloat16 is as wide.
    low = torch.autocast("cpu", torch.bfloat16) if precision in AUTOCAST else nullcontext()
    with saved.counting(), low:
        model.train()(torch.zeros(shape, dtype=kind))
    return saved.total * (2 if precision == "float64" else 1)


def worker_share(spec: JobSpec, world_size: int, device: torch.device) -> int:
    """Bytes that one of `world_size` workers may use: the spec's, or the GPU's, or its share of this machine.

    A worker cannot know who else runs here; there are at most `world_size`, and at most as many as the CPUs allow.
    """
    workers = spec.parallel.workers
    if workers.memory is not None:
        return int(workers.memory * 2**30)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    room = int((os.cpu_count() or 1) / workers.cpus)
    return machine_bytes() // max(1, min(world_size, room))


@cache
def machine_bytes() -> int:
    """Memory of this machine, or of the control group that the process lives in."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    texts = [Path(name).read_text().strip() for name in CGROUP_LIMITS if Path(name).is_file()]
    return min([physical, *(int(text) for text in texts if text.isdigit())])
