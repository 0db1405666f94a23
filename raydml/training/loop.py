"""The training loop: (state, plan, strategy, objective) -> the state after the last step. It knows no Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydml.data import Dataset, SamplingPlan, Slice, slices
from raydml.errors import SpecError, TrainingDiverged
from raydml.losses import Objective, Verdict, evaluate_objective
from raydml.models import as_input
from raydml.parallel import STRATEGIES, Group
from raydml.spec import JobSpec
from raydml.training.state import TrainingState


@dataclass(frozen=True)
class StepReport:
    """What one step did; the same on every worker but for the times, which are this worker's, in seconds."""

    step: int
    loss: float
    gradient_norm: float
    statistics: dict[str, Any]
    data_seconds: float
    step_seconds: float


class Trainer:
    """One worker's half of every step: its slices, and the state that all workers hold alike."""

    def __init__(
        self, spec: JobSpec, dataset: Dataset, model: torch.nn.Module, group: Group, device: torch.device
    ) -> None:
        self.spec, self.dataset, self.group, self.device = spec, dataset, group, device
        kind = torch.float64 if spec.parallel.precision == "float64" else torch.float32
        self.plan = SamplingPlan(dataset.training_labels, spec.batch, spec.seed)
        self.model = model.to(device, kind)
        self.objective = Objective(
            spec.loss,
            num_classes=dataset.num_training_classes,
            dimension=spec.model.dimension,
            seed=spec.seed,
            dtype=kind,
        ).to(device)
        self.strategy = STRATEGIES[spec.parallel.strategy](self.model, spec, group, device)
        self.state = TrainingState(self.model, self.objective, spec)
        self._labels = dataset.training_labels
        self._check_dimension()

    @torch.no_grad()
    def _check_dimension(self) -> None:
        """A custom model's output is known only by running it: once, before work starts."""
        example = torch.zeros(1, *self.dataset.input_shape, dtype=self.dataset.preprocessing.type)
        shape = tuple(self.model.eval()(as_input(example, self.device, self.objective.dtype)).shape)
        self.strategy.train()
        if shape != (1, self.spec.model.dimension):
            raise SpecError(
                f"the model maps one input to shape {shape}, and model.dimension is {self.spec.model.dimension}: "
                f"they must be (1, dimension)"
            )

    def run(self, until: int, after: Callable[[StepReport], bool]) -> None:
        """Steps up to `until`; `after` sees each committed step and says whether to go on.

        Raises TrainingDiverged before the step commits, with the items of its batch.
        """
        loader = self._loader(until)
        try:
            while self.state.step < until:
                started = time.perf_counter()
                batch = [next(loader) for _ in self.group.owned]
                waited = time.perf_counter() - started
                verdict, norm = self._step(batch)
                elapsed = time.perf_counter() - started
                loss = float(verdict.loss)
                if not after(StepReport(self.state.step, loss, norm, verdict.statistics, waited, elapsed)):
                    return
        finally:
            loader.close()

    def _loader(self, until: int) -> Any:
        def keys() -> Iterator[tuple[int, int]]:
            return ((step, index) for step in range(self.state.step, until) for index in self.group.owned)

        spec = self.spec
        return slices(self.dataset, self.plan, spec.data, spec.seed, keys(), spec.data.loader_processes)

    def _step(self, batch: list[Slice]) -> tuple[Verdict, float]:
        """One step: forward, objective over the global batch, pullback, commit."""
        step = self.state.step
        embeddings = self.group.gather_slices(self.strategy.forward([part.inputs for part in batch], step))
        labels = torch.from_numpy(self._labels[self.plan.batch(step)]).to(self.device)
        verdict = evaluate_objective(self.objective, embeddings, labels, step, self.spec.seed)
        self._check_loss(verdict, embeddings, step)
        gradients = self.strategy.pullback(self._own_rows(verdict.cotangents))
        norm = self.state.update([*gradients, *verdict.weights])
        if not math.isfinite(norm):
            raise self._diverged(f"the gradient's norm is {norm}", verdict.cotangents, step)
        self.strategy.commit()
        self.objective.commit(embeddings, labels)
        return verdict, norm

    def _own_rows(self, rows: Tensor) -> Tensor:
        size = self.spec.batch.slice_size
        return rows[self.group.owned.start * size : self.group.owned.stop * size]

    def _check_loss(self, verdict: Verdict, embeddings: Tensor, step: int) -> None:
        loss = float(verdict.loss)
        # A miner may pass over a row that is not finite: the loss alone would not tell.
        if not bool(embeddings.isfinite().all()):
            raise self._diverged(f"embeddings are not finite, the loss is {loss:g}", embeddings, step)
        if not math.isfinite(loss) or abs(loss) > self.spec.train.loss_limit:
            limit = f"the loss is {loss:g}, train.loss_limit is {self.spec.train.loss_limit:g}"
            raise self._diverged(limit, verdict.cotangents, step)

    def _diverged(self, reason: str, rows: Tensor, step: int) -> TrainingDiverged:
        """Names the batch's items, those whose rows are not finite or largest first."""
        size = rows.detach().double().norm(dim=1).nan_to_num(nan=math.inf)
        items = self.dataset.indices("train")[self.plan.batch(step)]
        names = [self.dataset.items.ids[items[row]] for row in size.argsort(descending=True, stable=True).tolist()]
        return TrainingDiverged(
            f"step {step}: {reason}; the items of this batch, the most suspect first: {', '.join(names[:8])}"
            f"{' …' if len(names) > 8 else ''}. The last checkpoint is kept: lower the rate, clip, or mend the data.",
            step=step,
            items=names,
        )
