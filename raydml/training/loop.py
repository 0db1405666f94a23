"""The training loop: (state, plan, strategy, objective) -> the state after the last step. It knows no Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raydml.data import Dataset, Slice, sampling_plan, slices
from raydml.errors import SpecError, TrainingDiverged
from raydml.losses import Home, Objective, Verdict, evaluate_objective
from raydml.models import as_input
from raydml.parallel import STRATEGIES, DataParallel, Group, Sharded
from raydml.spec import HardClasses, JobSpec
from raydml.training.exchange import Exchange
from raydml.training.neighbours import class_means, nearest_rows
from raydml.training.state import TrainingState, head_rate
from raydml.training.watch import Health, Monitor, head_norms, stop_where_told


@dataclass(frozen=True)
class StepReport:
    """What one step did; the same on every worker but for the times, which are this worker's, in seconds.

    `data_seconds` were spent waiting for the batch; of all `step_seconds`, `own_seconds` not in collectives.

    With fp16 the statistics hold `loss_scale`, and `skipped` where the step overflowed: then there is no norm.
    `wishes` are those that any worker had when they voted on the step.
    """

    step: int
    loss: float
    gradient_norm: float | None
    statistics: dict[str, Any]
    health: Health
    wishes: tuple[bool, ...] = ()
    data_seconds: float = 0.0
    step_seconds: float = 0.0
    own_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Prepared:
    """A step that every reduction of is complete: what its commit needs, and nothing else to ask anybody.

    `skip` says what overflowed float16: the state is passed over. `watched` is what the monitor looks at. Embeddings
    are the own rows alone where they travel: then nothing of the objective moves with them.
    """

    step: int
    verdict: Verdict
    embeddings: Tensor  # (B, D), of the global batch, or (own rows, D)
    labels: Tensor  # (B,)
    gradients: Sequence[Tensor] = ()
    norm: Tensor = field(default_factory=lambda: torch.tensor(math.nan))
    skip: Literal["scale", "embeddings"] | None = None
    watched: tuple[Tensor, Tensor, Verdict, Tensor | None] | None = None


After = Callable[[StepReport], bool]
Wishes = Callable[[], Sequence[bool]]


def no_wishes() -> Sequence[bool]:
    """Of a worker that only trains."""
    return ()


class Trainer:
    """One worker's half of every step: its slices, and the state that all workers hold alike."""

    def __init__(
        self, spec: JobSpec, dataset: Dataset, model: torch.nn.Module, group: Group, device: torch.device
    ) -> None:
        self.spec, self.dataset, self.group, self.device = spec, dataset, group, device
        kind = torch.float64 if spec.parallel.precision == "float64" else torch.float32
        self.plan = sampling_plan(dataset, spec.batch, spec.seed)
        model = model.to(kind)
        self.objective = Objective(
            spec.loss,
            num_classes=dataset.num_training_classes,
            dimension=spec.model.dimension,
            seed=spec.seed,
            dtype=kind,
            batch_size=spec.batch.size,
            home=Home(group.data, device, spec.train.optimizer, head_rate(spec)),
        ).to(device)
        self.exchange = Exchange(spec, self.objective, group)
        self._check_dimension(model, device if spec.parallel.strategy == "ddp" else torch.device("cpu"))
        self.strategy = STRATEGIES[spec.parallel.strategy](model, spec, group, device)
        self.model, self.skeleton = self.strategy.model, model
        self.state = TrainingState(
            self.strategy.held,
            self.objective,
            spec,
            self.plan,
            group=group,
            sharded=self._sharded(),
            spread=self.strategy.spread,
        )
        self.monitor = Monitor(spec.watch, dataset.num_training_classes)
        self.prepared: Prepared | None = None
        self._labels = dataset.training_labels

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors by name, whole on the first worker; all workers call it together."""
        held = self.strategy.held.state_dict()
        if self.strategy.spread is None:
            return held
        whole = self.strategy.spread.whole({f"model.{name}": value for name, value in held.items()})
        return {name.removeprefix("model."): value for name, value in whole.items()}

    @torch.no_grad()
    def _check_dimension(self, model: nn.Module, device: torch.device) -> None:
        """A custom model's output is known only by running it: once, before work starts."""
        example = torch.zeros(1, *self.dataset.input_shape, dtype=self.dataset.preprocessing.type)
        shape = tuple(model.to(device).eval()(as_input(example, device, self.objective.dtype)).shape)
        if shape != (1, self.spec.model.dimension):
            raise SpecError(
                f"the model maps one input to shape {shape}, and model.dimension is {self.spec.model.dimension}: "
                f"they must be (1, dimension)"
            )

    def run(self, until: int, after: After, wishes: Wishes = no_wishes) -> None:
        """Steps up to `until`; `after` sees each committed step and says whether to go on.

        A step commits when all workers have prepared it and voted: PeerLost leaves the state as it was, and what is
        `prepared`. Raises TrainingDiverged before the step commits, with the items of its batch; and after it, before
        the next one, where a rule of `watch` says stop.
        """
        sampling = self.spec.batch.sampling
        every = sampling.refresh_every if isinstance(sampling, HardClasses) else until
        while (step := self.state.step) < until:
            if isinstance(sampling, HardClasses) and step and step % every == 0:
                self._learn_neighbours(sampling)
            if not self._run_to(min(until, (step // every + 1) * every), after, wishes):
                return

    def _sharded(self) -> dict[str, Sharded]:
        """What no worker holds whole: of the objective, and what compression has left out so far."""
        named = {f"objective.{name}": thing for name, thing in self.objective.sharded.items()}
        if isinstance(self.strategy, DataParallel):
            named |= {f"compression.{name}": thing for name, thing in self.strategy.sharded.items()}
        return named

    def _learn_neighbours(self, sampling: HardClasses) -> None:
        """Of the state as it is at this step, so that a resumed run learns the same."""
        examples = self.plan.examples(self.state.step, sampling.images)
        dimension, in_step = self.spec.model.dimension, self.strategy.in_step
        means = class_means(examples, self.model, self.dataset, self.group, dimension, in_step=in_step)
        self.plan.learn(nearest_rows(means, sampling.neighbours, self.group, self.device))

    def _run_to(self, until: int, after: After, wishes: Wishes) -> bool:
        """Steps up to `until`, whose batches are known by now; whether to go on."""
        loader = self._loader(until)
        try:
            while self.state.step < until:
                started, before = time.perf_counter(), self.group.waited
                batch = [next(loader) for _ in self.group.owned]
                read = time.perf_counter() - started
                self.prepared = self._prepare(batch)
                agreed = self.group.vote(wishes())
                report = self.commit()
                seconds = time.perf_counter() - started
                own = seconds - (self.group.waited - before)
                report = replace(report, wishes=tuple(agreed), data_seconds=read, step_seconds=seconds, own_seconds=own)
                if not after(report):
                    return False
                stop_where_told(report.health, self.state.step)
            return True
        finally:
            loader.close()

    def _loader(self, until: int) -> Any:
        def keys() -> Iterator[tuple[int, int]]:
            return ((step, index) for step in range(self.state.step, until) for index in self.group.owned)

        spec = self.spec
        return slices(self.dataset, self.plan, spec.data, spec.seed, keys(), spec.data.loader_processes)

    def _prepare(self, batch: list[Slice]) -> Prepared:
        """Forward, objective over the global batch, pullback: all that needs the others; it leaves no trace."""
        step = self.state.step
        inputs = [part.inputs for part in batch]
        watched = self.monitor.due(step + 1)
        with head_norms(self.model, watched) as norms:
            own = self.strategy.forward(inputs, step)
        embeddings = self.exchange.take(own)
        # What float32 can embed was an overflow of float16; what it cannot is refused below, with its item.
        overflow = self.state.scaler is not None and not self.exchange.finite(embeddings)
        if overflow:
            own = self.strategy.forward_in_float32(inputs, step)
            embeddings = self.exchange.take(own)
        labels = torch.from_numpy(self._labels[self.plan.batch(step)]).to(self.device)
        verdict = evaluate_objective(self.objective, embeddings, labels, step, self.spec.seed, self.group.data)
        self._check_loss(verdict, embeddings, step)
        prepared = Prepared(step, verdict, embeddings, labels)
        if overflow:  # a lower scale would not mend it
            return self._checked_skip(prepared, back_off=False)
        gradients = self._gradients(verdict)
        apart = self._norms_apart(verdict)
        norm = self.strategy.norm(gradients, [*verdict.weights, *apart])
        prepared = replace(prepared, gradients=[*gradients, *verdict.weights], norm=norm)
        if not bool(norm.isfinite()):
            cotangents = self.group.gather_slices(verdict.cotangents)  # all workers decide alike
            exact = [cotangents, *verdict.weights, *apart]  # float32: these do not overflow
            if self.state.scaler is None or not all(bool(value.isfinite().all()) for value in exact):
                raise self._diverged(f"the gradient's norm is {float(norm)}", cotangents, step)
            return self._checked_skip(prepared, back_off=True)
        if not watched:
            return prepared
        lengths = self.exchange.sample(torch.cat(norms)[: len(own)]) if norms else None  # passes beyond are idle
        seen = embeddings if not self.exchange.travels else self.exchange.sample(own)
        whole = replace(verdict, cotangents=self.exchange.sample(verdict.cotangents))
        return replace(prepared, watched=(seen, self.exchange.sample_labels(labels), whole, lengths))

    def commit(self) -> StepReport:
        """Take the prepared step: nobody else is needed. Raises TrainingDiverged after it, where `watch` says stop."""
        assert self.prepared is not None and self.prepared.step == self.state.step
        done, self.prepared = self.prepared, None
        health = Health()
        if done.skip is None:
            self.state.update(done.gradients, done.norm)
            self.strategy.commit()
            if done.verdict.head is not None and self.spec.train.clip_norm is not None:
                done.verdict.head.clip(self.spec.train.clip_norm, done.norm)
            self.objective.commit(done.embeddings, done.labels, done.verdict.head, done.step)
            if done.watched is not None:
                health = self.monitor.look(*done.watched, self.objective)
        else:
            self.state.skip(back_off=done.skip == "scale")
        norm = float(done.norm) if done.skip is None else None
        statistics = done.verdict.statistics | self._scaling(norm) | self._sent()
        return StepReport(self.state.step, float(done.verdict.loss), norm, statistics, health)

    def _gradients(self, verdict: Verdict) -> list[Tensor]:
        """The model's gradients; with fp16 scaled on their way through it."""
        if self.state.scaler is None:
            return self.strategy.pullback(verdict.cotangents)
        scale = float(self.state.scaler.scale)
        return [gradient / scale for gradient in self.strategy.pullback(verdict.cotangents * scale)]

    def _norms_apart(self, verdict: Verdict) -> list[Tensor]:
        """L2 norms of the gradients of all shards of a class-parallel head, (V,)."""
        return [] if verdict.head is None else [self.group.gather_slices(verdict.head.norms(verdict.loss))]

    def _checked_skip(self, prepared: Prepared, *, back_off: bool) -> Prepared:
        """Pass over a step; every worker decides alike, for all hold the same embeddings and the same sum."""
        scaler = self.state.scaler
        assert scaler is not None
        if scaler.exhausted(back_off=back_off):
            where = f"gradients at loss scale {float(scaler.scale):g}" if back_off else "embeddings"
            raise self._diverged(
                f"{where} overflow float16, after {int(scaler.skipped)} skipped steps in a row (bf16 and float32 "
                f"reach further)",
                self.group.gather_slices(prepared.verdict.cotangents),
                self.state.step,
            )
        return replace(prepared, skip="scale" if back_off else "embeddings")

    def _scaling(self, norm: float | None) -> dict[str, Any]:
        scaler = self.state.scaler
        return {} if scaler is None else {"loss_scale": float(scaler.scale), "skipped": norm is None}

    def _sent(self) -> dict[str, Any]:
        if self.spec.exactness != "compressed" or not isinstance(self.strategy, DataParallel):
            return {}
        return {"gradient_bytes": self.strategy.sent}

    def _check_loss(self, verdict: Verdict, embeddings: Tensor, step: int) -> None:
        loss = float(verdict.loss)
        # A miner may pass over a row that is not finite: the loss alone would not tell.
        if not self.exchange.finite(embeddings):
            rows = self.group.gather_slices(embeddings) if self.exchange.travels else embeddings
            raise self._diverged(f"embeddings are not finite, the loss is {loss:g}", rows, step)
        if not math.isfinite(loss) or abs(loss) > self.spec.train.loss_limit:
            limit = f"the loss is {loss:g}, train.loss_limit is {self.spec.train.loss_limit:g}"
            raise self._diverged(limit, self.group.gather_slices(verdict.cotangents), step)

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
