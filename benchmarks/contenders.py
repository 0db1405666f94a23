"""The two that are compared: raydml's own Trainer, and a loop written by hand with DistributedDataParallel.

Both see the same model, the same pixels (one plan, one augmentation), the same loss of pytorch-metric-learning over
the gathered batch, AdamW and the same schedule. The hand-written loop knows no slices: one forward of all own rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from pytorch_metric_learning.losses import MultiSimilarityLoss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raydml.data import Dataset, SamplingPlan, slices
from raydml.models import build_model
from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.loop import StepReport, Trainer
from raydml.training.state import learning_rate_factor
from raydml.training.worker import set_numerics

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cost:
    """Seconds that one worker spent on a block of steps."""

    cpu: float
    wall: float
    data: float  # wall time until the inputs of a step are there


class Contender(Protocol):
    """Something that trains and can be asked for more steps."""

    losses: list[float]

    def take(self, steps: int) -> float:
        """Take this many steps more; returns the seconds waited for data."""


class Ours:
    """raydml's Trainer as a worker runs it."""

    def __init__(self, spec: JobSpec, dataset: Dataset, group: Group) -> None:
        self._spec = spec
        model = build_model(spec.model, dataset.input_shape, spec.seed)
        self._trainer = Trainer(spec, dataset, model, group, CPU)
        self.losses: list[float] = []

    def take(self, steps: int) -> float:
        """See Contender."""
        set_numerics(self._spec)
        waited: list[float] = []

        def after(report: StepReport) -> bool:
            waited.append(report.data_seconds)
            self.losses.append(report.loss)
            return True

        self._trainer.run(self._trainer.state.step + steps, after)
        return sum(waited)


class ByHand:
    """What one writes without raydml and without Ray, gradients right."""

    def __init__(self, spec: JobSpec, dataset: Dataset, group: Group) -> None:
        self._spec, self._dataset, self._group = spec, dataset, group
        batch = spec.batch.model_copy(update={"virtual_workers": group.size})
        self._plan = SamplingPlan(dataset.training_labels, batch, spec.seed)
        model = build_model(spec.model, dataset.input_shape, spec.seed)
        self._model = self.wrapped(model)
        self._loss = MultiSimilarityLoss()
        train = spec.train
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=train.optimizer.lr)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: learning_rate_factor(train.schedule, step, train.steps)
        )
        self._step = 0
        self.losses: list[float] = []

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model as its workers train it; without its broadcast of batch norm's buffers DDP is faster."""
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def embedded(self, inputs: Tensor) -> Tensor:
        """All own rows at once, (B / W, ...) -> (B / W, D)."""
        embeddings: Tensor = self._model(inputs)
        return embeddings

    def take(self, steps: int) -> float:
        """See Contender."""
        torch.use_deterministic_algorithms(False)
        first, self._step = self._step, self._step + steps
        keys = ((step, self._group.rank) for step in range(first, self._step))
        loader = slices(self._dataset, self._plan, self._spec.data, self._spec.seed, keys, 0)
        waited = 0.0
        for step in range(first, self._step):
            started = time.perf_counter()
            inputs = next(loader).inputs
            waited += time.perf_counter() - started
            labels = torch.from_numpy(self._dataset.training_labels[self._plan.batch(step)])
            self._optimizer.zero_grad()
            loss = self._loss(self._gathered(self.embedded(inputs)), labels)
            # Each worker's rows reach only its own weights, and torch averages: times the number of workers.
            (loss * self._group.size).backward()
            self._optimizer.step()
            self._schedule.step()
            self.losses.append(float(loss.detach()))
        return waited

    def _gathered(self, own: Tensor) -> Tensor:
        """(B / W, D) -> (B, D), of which the own rows carry gradients."""
        parts = [torch.empty_like(own) for _ in range(self._group.size)]
        dist.all_gather(parts, own.detach())
        parts[self._group.rank] = own
        return torch.cat(parts)


def measured(contender: Contender, steps: int) -> Cost:
    """Let it take these steps, all workers starting together."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    data = contender.take(steps)
    return Cost(time.process_time() - cpu, time.perf_counter() - wall, data)


def build_contenders(spec: JobSpec, dataset: Dataset, group: Group) -> dict[str, Contender]:
    """By name: by hand, raydml bitwise, raydml fast."""

    def ours(numerics: str) -> Ours:
        parallel = spec.parallel.model_copy(update={"numerics": numerics})
        return Ours(spec.model_copy(update={"parallel": parallel}), dataset, group)

    makers: dict[str, Callable[[], Contender]] = {
        "by hand": lambda: ByHand(spec, dataset, group),
        "bitwise": lambda: ours("bitwise"),
        "fast": lambda: ours("fast"),
    }
    return {name: make() for name, make in makers.items()}
