"""Training speed: raydml's step against a hand-written DDP loop in the same processes, and a whole run on Ray.

    python benchmarks/training.py [--rounds 12] [--steps 5] [--no-augment] [--ray]

Prints images per worker CPU-second of both, the median over rounds of their ratio (above 1: raydml is faster), wall
time, and the time that a step waits for data. Rounds alternate, so that a slower minute of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import datetime
import os
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from contenders import Cost, build_contenders, measured
from whole_run import whole_run

from raydml.data import open_dataset
from raydml.demo import demo_spec
from raydml.environment import git_state, package_versions
from raydml.spec import AugmentSpec, JobSpec
from raydml.training.process_group import fixed_group

WORKERS = 2
WARM_UP = 5
Round = dict[str, Cost]


def bench_spec(steps: int, augment: bool) -> JobSpec:
    """The demo's job without its evaluations, checkpoints and collection."""
    spec = demo_spec()
    train = spec.train.model_copy(update={"steps": steps, "evaluate_every": 0, "checkpoint_every": steps})
    data = spec.data if augment else spec.data.model_copy(update={"augment": AugmentSpec()})
    evaluate = spec.evaluate.model_copy(update={"baseline": False})
    return spec.model_copy(update={"name": "bench", "train": train, "data": data, "evaluate": evaluate, "index": None})


def work(rank: int, spec: JobSpec, rounds: int, steps: int, home: Path, results: Any) -> None:
    """One worker: alternate the contenders, hand the costs of all workers to the parent."""
    warnings.simplefilter("ignore")  # torch tells of deprecations in each process
    torch.set_num_threads(1)
    store = dist.FileStore(str(home / "store"), WORKERS)
    formed, group = fixed_group(rank, WORKERS, spec.batch.virtual_workers, store)
    contenders = build_contenders(spec, open_dataset(spec.data, home), group)
    for contender in contenders.values():
        contender.take(WARM_UP)
    order = list(contenders)
    taken: list[Round] = []
    for number in range(rounds):
        turn = number % len(order)
        taken.append({name: measured(contenders[name], steps) for name in order[turn:] + order[:turn]})
    everything = group.objects(taken)
    if rank == 0:
        results.put((everything, {name: contender.losses for name, contender in contenders.items()}))
    formed.leave()


def compare(spec: JobSpec, rounds: int, steps: int, home: Path) -> tuple[list[list[Round]], dict[str, list[float]]]:
    """Costs by worker, round and contender; losses by contender."""
    context = processes.get_context("spawn")
    results = context.SimpleQueue()
    running = [context.Process(target=work, args=(rank, spec, rounds, steps, home, results)) for rank in range(WORKERS)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        raise SystemExit("a worker failed")
    costs, losses = results.get()
    return costs, losses


def table(costs: list[list[Round]], images: int) -> list[str]:
    """Lines of a Markdown table; `images` are those of one block, of all workers together."""
    by_round = list(zip(*costs, strict=True))  # rounds of tuples of workers
    lines = [
        "| loop | images / worker CPU-s | ratio of CPU (lowest - highest) | ratio of wall | waiting for data |",
        "|---|---|---|---|---|",
    ]
    for name in costs[0][0]:
        cpu = [sum(worker[name].cpu for worker in turn) for turn in by_round]
        wall = [max(worker[name].wall for worker in turn) for turn in by_round]
        ratios = [sum(worker["by hand"].cpu for worker in turn) / own for turn, own in zip(by_round, cpu, strict=True)]
        walls = [max(worker["by hand"].wall for worker in turn) / own for turn, own in zip(by_round, wall, strict=True)]
        waiting = [sum(worker[name].data / worker[name].wall for worker in turn) / WORKERS for turn in by_round]
        lines.append(
            f"| {name} | {images / median(cpu):.1f} | {median(ratios):.3f} ({min(ratios):.3f} - {max(ratios):.3f}) "
            f"| {median(walls):.3f} | {100 * median(waiting):.1f} % |"
        )
    return lines


def heading() -> list[str]:
    """Date, machine, versions and commit."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    state = git_state(Path(__file__).parent) or {"commit": "unknown", "changed": False}
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    return [
        f"{datetime.date.today()}, {os.cpu_count()} x {models[0].partition(': ')[2]}, {versions}, "
        f"commit {state['commit'][:10]}{' with changes' if state['changed'] else ''}",
        "",
    ]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="blocks of each loop")
    parser.add_argument("--steps", type=int, default=5, help="steps of a block")
    parser.add_argument("--no-augment", action="store_true", help="leave the demo's augmentation out")
    parser.add_argument("--ray", action="store_true", help="then a whole run: start-up by part, and Ray's own share")
    given = parser.parse_args()
    print("\n".join(heading()))
    with tempfile.TemporaryDirectory(prefix="raydml-bench-") as folder:
        home = Path(folder)
        total = WARM_UP + given.rounds * given.steps
        spec = bench_spec(total, not given.no_augment)
        open_dataset(spec.data, home)  # built once, before the workers
        costs, losses = compare(spec, given.rounds, given.steps, home)
        print("\n".join(table(costs, given.steps * spec.batch.size)))
        last = {name: round(median(values[-given.steps :]), 4) for name, values in losses.items()}
        print(f"\nmedian loss of the last {given.steps} steps: {last}")
        if given.ray:
            print()
            for name, value in asdict(whole_run(spec, home)).items():
                print(f"- {name.replace('_', ' ')}: {value:.2f}")


if __name__ == "__main__":
    main()
