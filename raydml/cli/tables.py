"""What a person reads: plans, metrics, hits and checks as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from raydml.doctor import size

if TYPE_CHECKING:
    from raydml.demo import Demo
    from raydml.doctor import Check
    from raydml.parallel.measured import Measured
    from raydml.plan import Plan

METRIC_NAMES = {
    "precision_at_1": "precision@1",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
    "recall_at_1": "recall@1",
    "recall_at_10": "recall@10",
    "recall_at_100": "recall@100",
    "nmi": "NMI",
    "ami": "AMI",
}


def metrics_table(measured: Mapping[str, Any]) -> Table:
    """Raw inputs against the trained embedding, a row per metric, from `metrics`, `baseline` and `intervals`."""
    metrics, baseline, intervals = (measured.get(part) or {} for part in ("metrics", "baseline", "intervals"))
    table = Table(title="test classes", title_justify="left")
    table.add_column("")
    for heading in ("raw pixels", "trained embedding", "interval", "gained"):
        table.add_column(heading, justify="right")
    for key, name in METRIC_NAMES.items():
        if key in metrics:
            raw = baseline.get(key)
            known = ("-", "-") if raw is None else (f"{raw:.3f}", f"{metrics[key] - raw:+.3f}")
            interval = " - ".join(f"{bound:.3f}" for bound in intervals.get(key, ())) or "-"
            table.add_row(name, known[0], f"{metrics[key]:.3f}", interval, known[1])
    return table


def run_table(summary: Mapping[str, Any]) -> RenderableType:
    """The end of `raydml train`."""
    from raydml.training import history

    facts = {
        "run": f"{summary['run']}, {summary['state']}",
        "model": summary["model"],
        "sha256": summary["sha256"],
        "collection": summary["collection"] or "none",
        "workers": history.summary(summary["events"]) or "not recorded",
        "exactness": summary["exactness"],
    }
    return Group(metrics_table(summary), _facts(facts))


def events_table(name: str, events: Sequence[Mapping[str, Any]]) -> Table:
    """The timeline of `raydml events`, in local time."""
    table = Table("time", "step", "cause", "workers", title=f"run {name}", title_justify="left")
    for heading in ("s down", "steps lost", "samples lost"):
        table.add_column(heading, justify="right")
    table.add_column("whom, and why")
    for event in events:
        costs = (f"{event['down']:.2f}", str(event["lost"]), str(event["samples_lost"]))
        clock = datetime.fromtimestamp(event["time"]).isoformat(" ", "milliseconds")
        known = "; ".join(part for part in (", ".join(event["members"]), event["note"]) if part)
        workers = f"{event['before']} -> {event['after']}"
        table.add_row(clock, str(event["step"]), event["cause"], workers, *costs, Text(known, overflow="fold"))
    return table


def demo_report(demo: Demo) -> RenderableType:
    """The end of `raydml demo`."""
    collection = demo.summary["collection"]
    places = {
        "queries": str(demo.pictures["neighbours"]),
        "curves": str(demo.pictures["curves"]),
        "model": demo.summary["model"],
        "collection": f"{collection}  (raydml search {collection} --id '{demo.queries[0].id}')",
    }
    names = [f"{query.label}  ({query.id})" for query in demo.queries]
    hits = hits_table(names, [query.hits for query in demo.queries], shown=5)
    return Group(metrics_table(demo.summary), hits, _facts(places))


def hits_table(queries: Sequence[str], found: Sequence[Sequence[Any]], shown: int | None = None) -> Table:
    """Neighbours of each query, nearest first."""
    table = Table("query", "rank", "id", "score", "payload", title="nearest entries", title_justify="left")
    for query, hits in zip(queries, found, strict=True):
        for rank, hit in enumerate(hits[:shown], start=1):
            payload = ", ".join(f"{key}={value}" for key, value in hit.payload.items())
            cells = (query if rank == 1 else "", str(rank), str(hit.id), f"{hit.score:.4f}", payload)
            table.add_row(*map(Text, cells))
        table.add_section()
    return table


def plan_table(plan: Plan) -> RenderableType:
    """The whole of `raydml plan`."""
    resolved = yaml.safe_dump(plan.spec.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=110)
    return Group(
        Text(resolved), _splits(plan), _workers(plan), *_strategies(plan), *map(Text, plan.notes), _plan_facts(plan)
    )


def _splits(plan: Plan) -> Table:
    table = Table("split", "classes", "images", title="data", title_justify="left")
    for name, split in plan.splits.items():
        table.add_row(name, str(split.classes), str(split.images))
    return table


def _workers(plan: Plan) -> Table:
    table = Table("workers", "slices of each", title="workers", title_justify="left")
    for heading in ("keep", "recompute", "share of this machine", "the fullest does"):
        table.add_column(heading)
    for world_size, held in plan.slices.items():
        choice = plan.choice(world_size)
        sizes = [size(value) for value in (choice.keep, choice.recompute, choice.share)] if choice else ["-"] * 3
        ranges = "  ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in held)
        table.add_row(str(world_size), ranges, *sizes, choice.chosen if choice else plan.spec.parallel.memory)
    return table


def _strategies(plan: Plan) -> Iterator[RenderableType]:
    """What each strategy would hold, send and compute with the most workers, and which one is proposed."""
    if plan.proposal is None:
        return
    workers = plan.candidates[0].workers
    table = Table("strategy", title=f"strategies, {workers} workers", title_justify="left")
    classes = any(candidate.head for candidate in plan.candidates)
    headings = ("a worker holds", "sends a step", "computes a step", "of it for classes")
    for heading in headings if classes else headings[:3]:
        table.add_column(heading)
    for candidate in plan.candidates:
        if candidate.impossible is None:
            cells = [size(candidate.memory), size(candidate.sent), f"{candidate.flops / 1e9:.3g} GFLOP"]
            if (head := candidate.head) is not None:
                cells.append(f"{head.rows} of them in {size(head.memory)}, {size(head.sent)}")
            table.add_row(candidate.name, *cells)
        else:
            table.add_row(candidate.name, Text(candidate.impossible, "dim"))
    yield table
    if plan.measured is not None:
        yield _measured(plan.measured)
        if plan.measured.note is not None:
            yield Text(plan.measured.note, "bold red")
    chosen, why = plan.proposal
    yield Text(f"proposed: {chosen.name}, for {why}")


def _measured(found: Measured) -> Table:
    """What was tried on this machine, the fastest first."""
    table = Table("strategy", "workers", "level", title="measured on this machine", title_justify="left")
    for heading in ("s a step", "images/s", "CPU s a step", "a worker holds", "sends a step"):
        table.add_column(heading, justify="right")
    for trial in found.trials:
        cells = (trial.name, str(trial.workers), f"{trial.exactness}{', rounds' if trial.rounds else ''}")
        if trial.seconds is None or trial.cpu is None:
            table.add_row(*cells[:2], Text(trial.failed or "", "dim"))
            continue
        sent = "-" if trial.sent is None else size(trial.sent)
        costs = (f"{trial.seconds:.4g}", f"{found.batch / trial.seconds:.0f}", f"{trial.cpu:.4g}")
        table.add_row(*cells, *costs, size(trial.memory or 0), sent)
    return table


def _plan_facts(plan: Plan) -> Table:
    batch = plan.spec.batch
    shape = f"{batch.classes} classes x {batch.samples} samples = {batch.size} images in {batch.virtual_workers} slices"
    uniform = batch.sampling.kind == "uniform"
    order = f"{plan.batches_per_pass} a pass" if uniform else f"classes by {batch.sampling.kind}"
    facts = {
        "batches": f"not possible: {plan.problem}" if plan.problem else f"{shape}, {order}",
        "workers": _sizes(plan),
        "parameters": "your own model"
        if plan.parameters is None
        else f"{plan.parameters:,}, of which {plan.trained_parameters:,} train",
        "exactness": plan.exactness,
    }
    if plan.memory:
        facts["memory counts"] = (
            f"parameters {size(plan.memory.parameters)}, gradients {size(plan.memory.gradients)} a set, "
            f"optimiser {size(plan.memory.optimizer)}, inputs {size(plan.memory.inputs_per_slice)} and activations "
            f"{size(plan.memory.activations_per_slice)} a slice; not the data, the loss and the libraries"
        )
    return _facts(facts)


def _sizes(plan: Plan) -> str:
    sizes = plan.world_sizes
    whole = len(sizes) == sizes[-1] - sizes[0] + 1
    shown = f"{sizes[0]} to {sizes[-1]}" if whole and len(sizes) > 1 else ", ".join(map(str, sizes))
    return f"{shown}; {plan.rounded_down}" if plan.rounded_down else shown


def facts_table(facts: Mapping[str, Any]) -> Table:
    """Names and values, one a line."""
    return _facts(facts)


def checks_table(checks: Sequence[Check]) -> Table:
    """The checks of `raydml doctor`; a problem shows the way out."""
    table = Table("check", "", "found", "way out")
    for check in checks:
        verdict = Text("ok", "green") if check.ok else Text("problem", "bold red")
        table.add_row(check.name, verdict, check.detail, "" if check.ok else check.way_out)
    return table


def _facts(facts: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, "bold"), Text(str(value), overflow="fold"))
    return table
