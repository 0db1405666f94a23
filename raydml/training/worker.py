"""One worker of a run, from its job to its part of the result: train, measure, checkpoint, export. It knows no Ray."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from raydml.data import Dataset, open_dataset
from raydml.evaluation.results import Results, write_results
from raydml.files import whole_folder
from raydml.models import build_model, save_model
from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.checkpoints import Best, Checkpoints
from raydml.training.evaluate import embed_split, has_positives, measure_split, measure_test
from raydml.training.loop import StepReport, Trainer
from raydml.training.record import RunRecord
from raydml.training.saving import Saver
from raydml.training.views import write_views


@dataclass(frozen=True)
class Job:
    """What every worker of one attempt gets; `resume` is the step of the checkpoint to go on from.

    `until` makes it a trial: it stops with a checkpoint of that step, and never measures test items, nor exports.
    """

    spec: JobSpec
    folder: Path
    home: Path
    resume: int | None
    dataset: object | None = None
    model: nn.Module | None = None
    until: int | None = None


Outcome = Literal["succeeded", "interrupted", "changed"]


class Companion(Protocol):
    """Follows the steps of a worker in a group that may change."""

    def prepared(self) -> bool:
        """A step is prepared, and the vote on it follows: whether the group should change after it.

        Raises PeerLost where this worker may not commit.
        """

    def committed(self, report: StepReport) -> None:
        """The step is in the state."""

    def may_commit(self) -> bool:
        """Whether this worker still counts as one of the group, for sure."""


class Alone:
    """The companion of a group that does not change."""

    def prepared(self) -> bool:
        """It does not."""
        return False

    def committed(self, report: StepReport) -> None:
        """Nobody needs to know."""

    def may_commit(self) -> bool:
        """There is nobody else."""
        return True


def set_numerics(spec: JobSpec) -> None:
    """Threads and kernels that decide bits come from the spec, never from the machine's habits."""
    torch.set_num_threads(spec.parallel.workers.threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(spec.parallel.numerics == "bitwise", warn_only=True)
    # By default deterministic mode also writes NaN over all fresh memory, and no bit of ours depends on that.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class Worker:
    """Trains one job in one group, which may change between calls of `run`; the first worker of the group writes."""

    def __init__(self, job: Job, group: Group, device: torch.device, dataset: Dataset | None = None) -> None:
        set_numerics(job.spec)
        self.job, self.spec, self.group = job, job.spec, group
        self.record = RunRecord(job.folder)
        spec = job.spec
        self.checkpoints = Checkpoints(
            job.folder / "checkpoints", spec.train.keep_last, spec.parallel.tolerate.failed_saves
        )
        self.companion: Companion = Alone()
        self.saver = Saver(self.checkpoints, self.record, group, lambda: self.companion.may_commit())
        self.dataset = dataset or open_dataset(job.spec.data, job.home, custom=job.dataset)
        model = build_model(job.spec.model, self.dataset.input_shape, job.spec.seed, custom=job.model)
        self.trainer = Trainer(job.spec, self.dataset, model, group, device)
        self.best: Best | None = None
        self.settled = 0  # the last step after which all was done that is due there
        self.final_sha256: str | None = None  # of the state after the last step, once all have settled it
        self._recent: deque[StepReport] = deque(maxlen=2)
        self._writer = False
        if job.resume is not None:
            self.restore(job.resume)

    @property
    def writes(self) -> bool:
        """Whether this worker writes files for all."""
        return self.group.rank == 0

    def restore(self, step: int) -> str:
        """Go on from a checkpoint; the SHA-256 of its state."""
        header = self.checkpoints.load(step, self.trainer.state)
        self.best, self.settled = header.best, step
        return header.state_sha256

    def run(self, companion: Companion | None = None) -> Outcome:
        """Train from where the state is to the end, to a request to stop, or to a step after which the group changes.

        Raises PeerLost where a worker is lost. Call it again in the next group: it goes on where the state stands.
        """
        self.companion = companion or Alone()
        if self.writes and not self._writer:
            self._take_over()
        self._writer = self.writes
        if self.group.vote([self._unsettled])[0]:
            self._settle()
        if self.final_sha256 is None:
            outcome = self._train()
            if outcome != "succeeded":
                return outcome
        if self.job.until is None:
            self._finish()
        return "succeeded"

    @property
    def _unsettled(self) -> bool:
        return self.final_sha256 is None and self.settled != self.trainer.state.step

    def _train(self) -> Outcome:
        stopped = False

        def wishes() -> Sequence[bool]:
            change, until = self.companion.prepared(), self.job.until
            reached = until is not None and self.trainer.state.step + 1 >= until
            return self.writes and (reached or self.record.stop_requested()), change

        def after(report: StepReport) -> bool:
            nonlocal stopped
            self.companion.committed(report)
            stopped = report.wishes[0]
            return self._after_step(report)

        self.trainer.run(self.spec.train.steps, after, wishes)
        if self.trainer.state.step == self.spec.train.steps:
            return "succeeded"
        return "interrupted" if stopped else "changed"

    def roll_forward(self) -> StepReport:
        """Commit the step that others of a group that broke have committed; what is due after it comes with `run`."""
        report = self.trainer.commit()
        self._recent.append(report)
        return report

    def _after_step(self, report: StepReport) -> bool:
        """Log, evaluate, save; whether to go on in this group. Every worker decides alike.

        A state in parts is handed over by its checkpoint: without one the group stays, and tries after the next step.
        """
        self._recent.append(report)
        if self.writes:
            self._log(report)
        stop, change = (*report.wishes, False, False)[:2]
        sharded = self.spec.state == "sharded"
        saved = self._settle(stop=stop, save=change and sharded)
        return not stop and not (change and (saved or not sharded))

    def _settle(self, *, stop: bool = False, save: bool = False) -> bool:
        """Evaluate and save where that is due at this step, or asked for; may be repeated, by all together.

        Whether it was saved.
        """
        step = self.trainer.state.step
        last, every = step == self.spec.train.steps, self.spec.train.evaluate_every
        best = self.best
        if every and (last or step % every == 0) and has_positives(self.dataset, "validation"):
            best = self._validate(step)
        saved = False
        if best != self.best or last or stop or save or step % self.spec.train.checkpoint_every == 0:
            self.group.vote()  # only a step that every worker has committed becomes durable
            saved = self.saver.save(self.trainer.state, best, required=last or stop)
            if saved or best is None or best.step != step:  # the best step is one that has a checkpoint
                self.best = best
        self.settled = step
        return saved

    def _log(self, report: StepReport) -> None:
        self.record.log(
            step=report.step,
            loss=report.loss,
            gradient_norm=report.gradient_norm,
            **report.statistics,
            **report.health.values,
            workers=self.group.size,
            data_seconds=round(report.data_seconds, 5),
            step_seconds=round(report.step_seconds, 5),
            time=round(time.time(), 3),
        )
        for alarm in report.health.alarms:
            self.record.log(step=report.step, warning=asdict(alarm), time=round(time.time(), 3))

    def _take_over(self) -> None:
        """Become the one who writes: log what the one before may have committed and not logged; nothing is twice."""
        self.checkpoints.sweep()
        logged = self.record.mend()
        if logged > self.trainer.state.step and self.final_sha256 is None:  # back at a checkpoint
            self.record.forget_after(self.trainer.state.step)
        for report in self._recent:
            if report.step > logged:
                self._log(report)

    def _validate(self, step: int) -> Best | None:
        """Measure the validation classes; the best score so far with them."""
        metrics = self._measure(self.dataset.indices("validation"))
        if self.writes and not self.record.has_validation(step):
            self.record.log(step=step, validation=metrics, time=round(time.time(), 3))
        if self.best is None or metrics["map_at_r"] > self.best.score:
            return Best(step, metrics["map_at_r"])
        return self.best

    def _measure(self, items: np.ndarray) -> dict[str, float]:
        return measure_split(self._embed(items), self.dataset, items, self.spec.evaluate.metric, self.group)

    def _embed(self, items: np.ndarray) -> np.ndarray:
        trainer, dimension = self.trainer, self.spec.model.dimension
        in_step = trainer.strategy.in_step
        return embed_split(trainer.model, self.dataset, items, self.group, dimension, in_step=in_step)

    def _measure_test(self) -> tuple[dict[str, float], dict[str, tuple[float, float]], Results | None]:
        embeddings = self._embed(self.dataset.indices("test"))
        metrics, bounds, results = measure_test(embeddings, self.dataset, self.spec, self.group)
        if results is not None:
            write_views(self.job.folder / "views", embeddings, results.values, self.dataset, self.spec)
        return metrics, bounds, results

    def _finish(self) -> None:
        """Take the model to export, measure it on the test split, write the model folder and the result.

        Repeated from the start where a worker is lost; the last vote tells all that everything is written.
        """
        self.group.vote()  # from here on nobody needs the state after the last step: it is settled, and on disk
        state = self.trainer.state
        if self.final_sha256 is None:
            self.final_sha256 = state.digest()
        exported = self.spec.train.steps
        if self.spec.train.export == "best" and self.best is not None:
            exported = self.best.step
        if state.step != exported:
            self.checkpoints.load(exported, state)
        self._write_result(exported)
        self.group.vote()

    def _write_result(self, exported: int) -> None:
        metrics, bounds, results = self._measure_test()
        indexed = self._embed_index()
        weights = self.trainer.weights()
        if not self.writes:
            return
        digest = save_model(
            self.job.folder / "model",
            self.trainer.skeleton,  # type: ignore[arg-type]
            self.spec.model,
            self.dataset.input_shape,
            self.dataset.preprocessing,
            weights,
        )
        if indexed is not None:
            with whole_folder(self.job.folder / "embeddings") as draft:
                np.save(draft / "vectors.npy", indexed)
        assert results is not None
        write_results(self.job.folder, results, model=digest)
        self.record.change(
            metrics=metrics,
            intervals=bounds,
            sha256=digest,
            state_sha256=self.final_sha256,
            exported_step=exported,
            trained=True,
            **self._sent(),
        )

    def _sent(self) -> dict[str, Any]:
        """Bytes that the writer sent for the gradients of the last step, where they are compressed."""
        known = [
            report.statistics["gradient_bytes"] for report in self._recent if "gradient_bytes" in report.statistics
        ]
        return {"gradient_bytes": known[-1]} if known else {}

    def _embed_index(self) -> np.ndarray | None:
        """Embeddings of the items that the spec indexes, for the process that builds the collection."""
        if self.spec.index is None:
            return None
        return self._embed(self.dataset.indices(self.spec.index.split))


def run_worker(job: Job, group: Group, device: torch.device, **options: Any) -> str:
    """Build and run one worker; returns how it ended."""
    return Worker(job, group, device, **options).run()
