"""One worker of a run, from its job to its part of the result: train, measure, checkpoint, export. It knows no Ray."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raydml.data import Dataset, open_dataset
from raydml.files import whole_folder
from raydml.models import build_model, save_model
from raydml.parallel import Group
from raydml.spec import JobSpec
from raydml.training.checkpoints import Best, Checkpoints
from raydml.training.evaluate import embed_split, has_positives, measure_split, measure_test
from raydml.training.loop import StepReport, Trainer
from raydml.training.record import RunRecord


@dataclass(frozen=True)
class Job:
    """What every worker of one attempt gets; `resume` is the step of the checkpoint to go on from."""

    spec: JobSpec
    folder: Path
    home: Path
    resume: int | None
    dataset: object | None = None
    model: nn.Module | None = None


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
    """Trains one job in one group; the first worker of the group writes."""

    def __init__(self, job: Job, group: Group, device: torch.device, dataset: Dataset | None = None) -> None:
        set_numerics(job.spec)
        self.job, self.spec, self.group = job, job.spec, group
        self.record = RunRecord(job.folder)
        self.checkpoints = Checkpoints(job.folder / "checkpoints", job.spec.train.keep_last)
        self.dataset = dataset or open_dataset(job.spec.data, job.home, custom=job.dataset)
        model = build_model(job.spec.model, self.dataset.input_shape, job.spec.seed, custom=job.model)
        self.trainer = Trainer(job.spec, self.dataset, model, group, device)
        self.best: Best | None = None
        self._saved: int | None = None
        if job.resume is not None:
            self.best = self.checkpoints.load(job.resume, self.trainer.state).best
            self._saved = job.resume
        self._interrupted = False

    @property
    def writes(self) -> bool:
        """Whether this worker writes files for all."""
        return self.group.rank == 0

    def run(self) -> str:
        """Train to the end or to a request to stop, then measure and export; returns succeeded or interrupted."""
        self.trainer.run(self.spec.train.steps, self._after_step)
        if self._interrupted:
            return "interrupted"
        self._finish()
        return "succeeded"

    def _after_step(self, report: StepReport) -> bool:
        """Log, evaluate, save; whether to go on. Every worker decides alike."""
        stop = bool(self.group.first_says(int(self.writes and self.record.stop_requested()), self.trainer.device))
        self._log(report)
        last = report.step == self.spec.train.steps
        every = self.spec.train.evaluate_every
        better = bool(every) and (last or report.step % every == 0) and self._validate(report.step)
        if better or last or stop or report.step % self.spec.train.checkpoint_every == 0:
            self._save()
        self._interrupted = stop and not last
        return not self._interrupted

    def _log(self, report: StepReport) -> None:
        if self.writes:
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

    def _validate(self, step: int) -> bool:
        """Measure the validation classes; whether this is the best so far."""
        if not has_positives(self.dataset, "validation"):
            return False
        metrics = self._measure(self.dataset.indices("validation"))
        if self.writes:
            self.record.log(step=step, validation=metrics, time=round(time.time(), 3))
        if self.best is not None and metrics["map_at_r"] <= self.best.score:
            return False
        self.best = Best(step, metrics["map_at_r"])
        return True

    def _measure(self, items: np.ndarray) -> dict[str, float]:
        spec, model = self.spec, self.trainer.model
        embeddings = embed_split(model, self.dataset, items, self.group, spec.model.dimension)
        return measure_split(embeddings, self.dataset, items, spec.evaluate.metric, self.group)

    def _measure_test(self) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        spec, items = self.spec, self.dataset.indices("test")
        embeddings = embed_split(self.trainer.model, self.dataset, items, self.group, spec.model.dimension)
        return measure_test(embeddings, self.dataset, spec, self.group)

    def _save(self) -> None:
        state = self.trainer.state
        if self.writes and self._saved != state.step:
            self.checkpoints.save(state, self.best)
        self._saved = state.step

    def _finish(self) -> None:
        """Take the model to export, measure it on the test split, write the model folder and the result."""
        state_sha256 = self.trainer.state.digest()
        exported = self.spec.train.steps
        if self.spec.train.export == "best" and self.best is not None and self.best.step != exported:
            self.group.objects(None)  # the first worker's last save is on disk from here on
            exported = self.checkpoints.load(self.best.step, self.trainer.state).step
        metrics, bounds = self._measure_test()
        indexed = self._embed_index()
        if not self.writes:
            return
        digest = save_model(
            self.job.folder / "model",
            self.trainer.model,  # type: ignore[arg-type]
            self.spec.model,
            self.dataset.input_shape,
            self.dataset.preprocessing,
        )
        if indexed is not None:
            with whole_folder(self.job.folder / "embeddings") as draft:
                np.save(draft / "vectors.npy", indexed)
        self.record.change(
            metrics=metrics,
            intervals=bounds,
            sha256=digest,
            state_sha256=state_sha256,
            exported_step=exported,
            trained=True,
        )

    def _embed_index(self) -> np.ndarray | None:
        """Embeddings of the items that the spec indexes, for the process that builds the collection."""
        if self.spec.index is None:
            return None
        items = self.dataset.indices(self.spec.index.split)
        return embed_split(self.trainer.model, self.dataset, items, self.group, self.spec.model.dimension)


def run_worker(job: Job, group: Group, device: torch.device, **options: Any) -> str:
    """Build and run one worker; returns how it ended."""
    return Worker(job, group, device, **options).run()
