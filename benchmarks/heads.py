"""Softmax over very many classes: raydml's class-parallel CosFace against replicated classes, and against PartialFC.

    python benchmarks/heads.py [--classes 50000 500000] [--steps 3] [--partial-fc partial_fc_v2.py] [--largest]

Two gloo processes of one thread, D = 256, B = 128, SGD with momentum and weight decay; one step is loss, gradient of
the own rows, gradient and update of the class vectors, exchanges included. Each contender runs in fresh processes, so
that peak memory is its own; CPU time is the lowest of the steps after one that is not counted, the workers' mean.

replicated  pytorch-metric-learning's CosFaceLoss with all classes on every worker: own rows, gradient all-reduced,
            torch.optim.SGD. It does not sample.
partial fc  InsightFace's PartialFC_V2 as it is published, from a copy of partial_fc_v2.py that one has; its calls of
            `.cuda()` are made to do nothing. Its optimiser is the dense torch.optim.SGD, as in its train_v2.py.

At full rate all begin with the same class vectors, and their losses are compared after the last step. `--largest` adds
raydml at C = 2,000,000.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from pydantic import TypeAdapter
from pytorch_metric_learning.losses import CosFaceLoss
from torch import Tensor
from training import heading

from raydml.catalogue import LossSpec
from raydml.losses import Home, Objective, evaluate_objective
from raydml.losses.heads.table import ClassTable
from raydml.parallel import Group
from raydml.spec import Sgd
from raydml.training.process_group import fixed_group

WORKERS, SLICES, DIMENSION, BATCH, SEED = 2, 8, 256, 128, 0
MARGIN, SCALE = 0.35, 64.0
SGD = Sgd(lr=0.1, momentum=0.9, weight_decay=5e-4)
CPU = torch.device("cpu")
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """What one worker spent on a step."""

    cpu: float  # seconds
    memory: float  # bytes of peak resident memory above that before anything was built
    loss: float


def batch(step: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """All rows of a step, and their classes."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, num_classes, (BATCH,), generator=generator)
    return torch.randn(BATCH, DIMENSION, generator=generator), labels


def home_of(group: Group) -> Home:
    """Where raydml's class vectors live."""
    return Home(group, CPU, SGD, lambda step: SGD.lr)


def fresh_vectors(num_classes: int) -> Iterator[tuple[range, Tensor]]:
    """The class vectors that raydml begins with, a shard at a time."""
    for index in range(SLICES):
        table = ClassTable(num_classes, DIMENSION, 1.0, 1.0, SEED, torch.float32, home_of(Group(0, 1, SLICES)))
        yield table.shards.classes(index), table.shard(index)["vectors"]


class Ours:
    """raydml's objective and its commit."""

    def __init__(self, num_classes: int, rate: float, group: Group) -> None:
        loss = {"kind": "cosface", "margin": MARGIN, "scale": SCALE, "class_parallel": {"sample_rate": rate}}
        spec = TypeAdapter[Any](LossSpec).validate_python(loss)
        self._objective = Objective(
            spec, num_classes=num_classes, dimension=DIMENSION, seed=SEED, dtype=torch.float32, home=home_of(group)
        )
        self._group = group

    def __call__(self, local: Tensor, labels: Tensor, step: int) -> float:
        """Gather, loss, own gradients, norm, update."""
        embeddings = self._group.gather_slices(local)
        verdict = evaluate_objective(self._objective, embeddings, labels, step, SEED, self._group)
        assert verdict.head is not None
        self._group.gather_slices(verdict.head.norms(verdict.loss))
        self._objective.commit(embeddings, labels, verdict.head, step)
        return float(verdict.loss)


class Replicated:
    """The library's loss on the own rows, its gradient averaged over the workers."""

    def __init__(self, num_classes: int, rate: float, group: Group) -> None:
        self._loss = CosFaceLoss(num_classes, DIMENSION, margin=MARGIN, scale=SCALE)
        for classes, vectors in fresh_vectors(num_classes):
            self._loss.W.data[:, classes.start : classes.stop] = vectors.T
        self._optimizer = dense_sgd(self._loss.parameters())
        self._group = group

    def __call__(self, local: Tensor, labels: Tensor, step: int) -> float:
        """Loss, gradients, all-reduce, update."""
        own = local.clone().requires_grad_()
        loss = self._loss(own, labels.chunk(WORKERS)[self._group.rank])
        loss.backward()
        for parameter in self._loss.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= WORKERS
        self._optimizer.step()
        self._optimizer.zero_grad()
        total = loss.detach() / WORKERS
        dist.all_reduce(total)
        return float(total)


class PartialFc:
    """The published PartialFC_V2 with a CosFace margin."""

    def __init__(self, num_classes: int, rate: float, group: Group, path: str) -> None:
        specification = importlib.util.spec_from_file_location("partial_fc_v2", path)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
        warnings.simplefilter("ignore", FutureWarning)  # of torch.cuda.amp.autocast
        self._head = module.PartialFC_V2(cos_face, DIMENSION, num_classes, rate)
        assert num_classes % SLICES == 0, "its shards and ours hold the same classes only then"
        with torch.no_grad():
            for classes, vectors in fresh_vectors(num_classes):
                start = classes.start - self._head.class_start
                if 0 <= start < self._head.num_local:
                    self._head.weight[start : start + len(classes)] = vectors
        self._optimizer = dense_sgd(self._head.parameters())
        self._group = group

    def __call__(self, local: Tensor, labels: Tensor, step: int) -> float:
        """Loss, gradients, update."""
        own = local.clone().requires_grad_()
        loss = self._head(own, labels.chunk(WORKERS)[self._group.rank].clone())
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(loss.detach())


def cos_face(logits: Tensor, labels: Tensor) -> Tensor:
    """Cosines -> logits, the margin taken from those of the own classes; labels (B, 1) are -1 on another worker."""
    (rows,) = torch.where(labels.view(-1) != -1)
    logits[rows, labels.view(-1)[rows]] -= MARGIN
    return logits * SCALE


def dense_sgd(parameters: Iterator[torch.nn.Parameter]) -> torch.optim.SGD:
    """The optimiser of both peers."""
    return torch.optim.SGD(parameters, SGD.lr, SGD.momentum, weight_decay=SGD.weight_decay)


CONTENDERS: dict[str, Callable[..., Any]] = {"ours": Ours, "replicated": Replicated, "partial fc": PartialFc}


def work(rank: int, name: str, num_classes: int, rate: float, steps: int, more: list[str], home: str, to: Any) -> None:
    """One worker: take some steps, hand their cost to the parent."""
    torch.set_num_threads(1)
    formed, group = fixed_group(rank, WORKERS, SLICES, dist.FileStore(home, WORKERS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    take = CONTENDERS[name](num_classes, rate, group, *more)
    times, loss = [], 0.0
    for step in range(1 + steps):
        embeddings, labels = batch(step, num_classes)
        local = embeddings.chunk(WORKERS)[rank].clone()
        dist.barrier()
        started = time.process_time()
        loss = take(local, labels, step)
        times.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    to.put(Cost(min(times[1:]), 1024 * peak, loss))
    formed.leave()


def measure(name: str, num_classes: int, rate: float, steps: int, *more: str) -> Cost:
    """The mean over workers in fresh processes."""
    context = processes.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given = (name, num_classes, rate, steps, list(more), str(Path(folder) / "store"), results)
        running = [context.Process(target=work, args=(rank, *given)) for rank in range(WORKERS)]
        for process in running:
            process.start()
        for process in running:
            process.join()
    assert not any(process.exitcode for process in running), f"{name} at {num_classes:,} classes failed"
    costs = [results.get() for _ in running]
    return Cost(*(sum(values) / WORKERS for values in zip(*((c.cpu, c.memory, c.loss) for c in costs), strict=True)))


def row(name: str, num_classes: int, rate: float, cost: Cost, base: Cost | None) -> str:
    """A line of the table; ratios to the replicated classifier."""
    ratios = "| | |" if base is None else f"| {cost.cpu / base.cpu:.2f} | {cost.memory / base.memory:.2f} |"
    return f"| {num_classes:,} | {name} | {rate:g} | {1e3 * cost.cpu:.0f} | {cost.memory / GIB:.2f} {ratios}"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[50_000, 500_000], help="numbers of classes")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each contender")
    parser.add_argument("--partial-fc", metavar="PATH", help="a copy of InsightFace's partial_fc_v2.py")
    parser.add_argument("--largest", action="store_true", help="C = 2,000,000 too, raydml alone")
    given = parser.parse_args()
    print("\n".join(heading()))
    print("| C | contender | rate | CPU-ms a step | GiB a worker | CPU ratio | memory ratio |")
    print("|---|---|---|---|---|---|---|")
    for num_classes in given.classes:
        base = measure("replicated", num_classes, 1.0, given.steps)
        print(row("replicated", num_classes, 1.0, base, None), flush=True)
        for rate in (1.0, 0.1):
            for name, more in (("ours", []), ("partial fc", [given.partial_fc])):
                if name == "partial fc" and given.partial_fc is None:
                    continue
                cost = measure(name, num_classes, rate, given.steps, *more)
                agrees = rate < 1 or abs(cost.loss - base.loss) < 1e-4 * base.loss
                assert agrees, f"{name}: a loss of {cost.loss}, and replicated {base.loss}"
                print(row(name, num_classes, rate, cost, base), flush=True)
    for rate in (1.0, 0.1) if given.largest else ():
        print(row("ours", 2_000_000, rate, measure("ours", 2_000_000, rate, given.steps), None), flush=True)


if __name__ == "__main__":
    main()
