"""A study's overhead per trial against Ray Tune alone, and its time to a target against search that stops nobody.

    python benchmarks/tuning.py overhead [--trials 40] [--cpus 2]
    python benchmarks/tuning.py target [--spec examples/tune-margins.yaml] [--trials 40] [--rates] [--seeds 3]
        [--set seed=7] [--set data.image_size=16]

overhead: in one Ray, that many trials by Ray Tune alone whose function only reports, by raydml with a trial that only
writes that it is trained, and by raydml with trials of one step of a tiny model; seconds from the first question to the
last answer, over trials. Processes are kept for the next trial by all three.
target: the same configurations, in the same order, with ASHA and to the end. The target is that fraction of the best
validation score that search to the end ever sees; told is when a trial of each study first reaches it, by the clock
from the first step on (Ray's processes start alike for both) and by the steps that all trials have taken.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
import yaml
from ray import tune

from raydml.files import write_json
from raydml.spec import JobSpec
from raydml.specfile import load_spec, parse_spec
from raydml.training.lines import read_lines
from raydml.tuning.record import StudyRecord
from raydml.tuning.runner import ENVIRONMENT
from raydml.tuning.study import search
from raydml.tuning.trial import Training
from raydml.tuning.trials import check_space, tuned

Work = Callable[[Path, int], None]


class Nothing:
    """A trial that says it is trained."""

    def __call__(self, folder: Path, until: int) -> None:
        path = folder / "run.json"
        facts = json.loads(path.read_text())
        write_json(path, facts | {"state": "trained", "step": until, "evaluations": {str(until): {"map_at_r": 0.5}}})


def study(spec: JobSpec, folder: Path, work: Work) -> float:
    """Search without a winner's run; seconds."""
    record = StudyRecord(folder)
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    record.change(state="running", started=time.time())
    started = time.perf_counter()
    search(spec, record, work, check_space(spec), time.time())
    return time.perf_counter() - started


def ray_tune_alone(trials: int, folder: Path) -> float:
    """Function trainables that only report; seconds."""

    def trainable(config: dict[str, Any]) -> None:
        tune.report({"until": 1})

    started = time.perf_counter()
    tune.Tuner(
        tune.with_resources(trainable, {"CPU": 1}),
        param_space={"margin": tune.uniform(0.0, 1.0)},
        tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=True),
        run_config=tune.RunConfig(name="alone", storage_path=str(folder), verbose=0),
    ).fit()
    return time.perf_counter() - started


def tiny_spec(folder: Path, trials: int) -> JobSpec:
    """One step of a small multilayer perceptron on noise of twenty classes."""
    labels = np.repeat(np.arange(20), 6)
    images = np.random.default_rng(0).integers(0, 255, (len(labels), 8, 8), dtype=np.uint8)
    splits = np.array(["train", "train", "validation", "test"])[labels % 4]
    np.savez(folder / "images.npz", inputs=images, labels=labels, splits=splits)
    return parse_spec(
        {
            "name": "overhead",
            "data": {"kind": "arrays", "path": str(folder / "images.npz"), "image_size": 8, "grayscale": True},
            "batch": {"classes": 4, "samples": 4, "virtual_workers": 1},
            "model": {"backbone": {"kind": "mlp", "hidden": [16]}, "dimension": 4},
            "loss": {"kind": "triplet", "margin": 0.2},
            "parallel": {"workers": {"min": 1, "max": 1, "cpus": 1}},
            "train": {"steps": 1, "evaluate_every": 1, "checkpoint_every": 1},
            "tune": {"space": {"loss.margin": {"uniform": [0.05, 0.5]}}, "trials": trials},
        }
    )


def overhead(trials: int, folder: Path) -> None:
    """A row for each contender; one trial of each goes first, for what is loaded once."""
    contenders: dict[str, Callable[[int, Path], float]] = {
        "Ray Tune alone, nothing trained": ray_tune_alone,
        "raydml, nothing trained": lambda number, place: study(tiny_spec(folder, number), place, Nothing()),
        "raydml, a tiny spec": lambda number, place: study(tiny_spec(folder, number), place, Training(folder)),
    }
    print("| | trials | s | ms a trial |\n|---|---|---|---|")
    for index, (name, measure) in enumerate(contenders.items()):
        measure(1, folder / f"warm-{index}")
        seconds = measure(trials, folder / f"measured-{index}")
        print(f"| {name} | {trials} | {seconds:.2f} | {1000 * seconds / trials:.0f} |", flush=True)


class Seen:
    """What a study logged, by seconds since its first step: each evaluation's score, in order, and when steps were
    taken."""

    def __init__(self, folder: Path, objective: str) -> None:
        lines = [line for path in folder.glob("trials/*/metrics.jsonl") for line in read_lines(path)[0]]
        began = min(line["time"] - line["step_seconds"] for line in lines if "loss" in line)
        self.steps = [line["time"] - began for line in lines if "loss" in line]
        self.scores = sorted(
            (line["time"] - began, line["validation"][objective]) for line in lines if "validation" in line
        )

    def reached(self, score: float) -> tuple[float, float]:
        """Seconds until a trial had that score, and steps that all trials had taken by then; nan where none had it."""
        seconds = next((at for at, found in self.scores if found >= score), float("nan"))
        return seconds, sum(at <= seconds for at in self.steps) or float("nan")


def with_rates(spec: JobSpec) -> JobSpec:
    """The spec with a learning rate that varies too, over four orders of magnitude."""
    document = spec.model_dump(mode="json")
    document["tune"]["space"]["train.optimizer.lr"] = {"loguniform": [1e-5, 1e-1]}
    return parse_spec(document)


def target(spec: JobSpec, fraction: float, folder: Path, seeds: int) -> None:
    """A row for each seed of the study, which draws other configurations; and the median of the ratios."""
    print("| seed | target | to the end, s | ASHA, s | ratio | to the end, steps | ASHA | ratio | all, s | ASHA, s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    ratios: list[tuple[float, ...]] = []
    for seed in range(spec.seed, spec.seed + seeds):
        took, found = {}, {}
        for kind in ("none", "asha"):
            changed = spec.model_dump(mode="json")
            changed |= {"seed": seed, "tune": changed["tune"] | {"scheduler": {"kind": kind}}}
            place = folder / f"{kind}-{seed}"
            took[kind] = study(parse_spec(changed), place, Training(folder))
            found[kind] = Seen(place, tuned(spec).objective)
        wanted = fraction * max(score for _, score in found["none"].scores)
        slow, quick = (found[kind].reached(wanted) for kind in ("none", "asha"))
        ratios.append(tuple(b / a for a, b in zip(slow, quick, strict=True)))
        seconds = f"{slow[0]:.1f} | {quick[0]:.1f} | {ratios[-1][0]:.2f}"
        steps = f"{slow[1]:.0f} | {quick[1]:.0f} | {ratios[-1][1]:.2f}"
        print(f"| {seed} | {wanted:.4f} | {seconds} | {steps} | {took['none']:.1f} | {took['asha']:.1f} |", flush=True)
    medians = [median(each) for each in zip(*ratios, strict=True)]
    print(f"median ratios: {medians[0]:.2f} of seconds, {medians[1]:.2f} of steps; nan: never reached")


def main() -> None:
    """Parse, start a Ray, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "target"])
    parser.add_argument("--trials", type=int, default=40, help="of each contender")
    parser.add_argument("--cpus", type=int, default=2, help="of the Ray that is started")
    parser.add_argument("--spec", default="examples/tune-margins.yaml", help="target: a spec with a section tune")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="target: changes of the spec")
    parser.add_argument("--fraction", type=float, default=0.98, help="target: of the best score of search to the end")
    parser.add_argument("--rates", action="store_true", help="target: the learning rate varies too, 1e-5 to 0.1")
    parser.add_argument("--seeds", type=int, default=1, help="target: studies of each kind, of seeds that follow")
    given = parser.parse_args()
    os.environ |= ENVIRONMENT
    print(f"Ray {version('ray')}, {given.cpus} CPUs, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory(prefix="raydml-") as scratch:
        ray.init("local", num_cpus=given.cpus, include_dashboard=False, log_to_driver=False, _temp_dir=f"{scratch}/ray")
        try:
            if given.what == "overhead":
                overhead(given.trials, Path(scratch))
            else:
                spec = load_spec(given.spec, [f"tune.trials={given.trials}", *given.set])
                target(with_rates(spec) if given.rates else spec, given.fraction, Path(scratch), given.seeds)
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
