"""A seed in, a whole simulated run out, or the invariant that it broke: `python -m raydml.membership.simulator`."""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context

from raydml.membership.simulation.faults import plan
from raydml.membership.simulation.oracle import Violation, check, steps
from raydml.membership.simulation.run import Parts, Run
from raydml.membership.simulation.sharded import CELLS, SHARDED

DEADLINE = 200.0
"""Simulated seconds after which a run that has not ended never will."""

KINDS = {"equal": Parts(), "measured": Parts(balance="measured"), "parts": SHARDED, "cells": CELLS}
"""Every member holds the whole state, with slices dealt equally or by measured speed; or each holds parts of it, alone
or with another one."""

BLOCK = 2000
"""Seeds that one process takes at a time."""


@dataclass
class Tally:
    """What happened over some schedules; `seconds` of the slowest one, with its seed."""

    schedules: int = 0
    events: int = 0
    views: int = 0
    deals: int = 0
    restarts: int = 0
    live_commits: int = 0
    durable_commits: int = 0
    lost_commits: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)
    broken: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take another tally in."""
        self.schedules += other.schedules
        self.events += other.events
        self.views += other.views
        self.deals += other.deals
        self.restarts += other.restarts
        self.live_commits += other.live_commits
        self.durable_commits += other.durable_commits
        self.lost_commits += other.lost_commits
        self.faults.update(other.faults)
        self.slowest = max(self.slowest, other.slowest)
        self.broken += other.broken


def simulate(seed: int, parts: Parts | None = None) -> Run:
    """Run one schedule to its end; Violation (or an error of the protocol itself) if it breaks an invariant."""
    run = Run(seed, parts or Parts())
    plan(run)
    run.run(DEADLINE)
    check(run.over, "the run never ends", run.now, run.oracle.epoch, steps(run.oracle.acknowledged), run.steps)
    check(run.oracle.newest == run.steps, "the run ended before its last step", run.oracle.newest, run.steps)
    return run


def tally(seeds: Iterable[int], parts: Parts | None = None) -> Tally:
    """Simulate many schedules; broken ones are kept with their seed."""
    total = Tally()
    gc.disable()  # a finished run is one heap of cycles: they are collected by the hundred
    for seed in seeds:
        if seed % 200 == 0:
            gc.collect()
        began = time.perf_counter()
        try:
            run = simulate(seed, parts)
        except (Violation, AssertionError) as error:
            total.broken.append((seed, str(error)))
            continue
        finally:
            total.schedules += 1
            total.slowest = max(total.slowest, (time.perf_counter() - began, seed))
        oracle = run.oracle
        total.events += run.events
        total.views += len(oracle.views)
        total.deals += sum(event.cause == "balance" for event in run.server.authority.events)
        total.restarts += sum(view.source is None for view in oracle.views.values()) - 1
        total.live_commits += steps(oracle.acknowledged) + oracle.lost_live
        total.durable_commits += len(oracle.durable) - 1
        total.lost_commits += oracle.lost_live
        total.faults.update(run.occurred)
    return total


def simulate_many(first: int, count: int, parts: Parts | None = None) -> Tally:
    """Simulate `count` seeds from `first` on, on all cores."""
    total = Tally()
    blocks = [range(start, min(start + BLOCK, first + count)) for start in range(first, first + count, BLOCK)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for part in pool.map(partial(tally, parts=parts), blocks):
            total.add(part)
    return total


def main(arguments: list[str]) -> int:
    """`COUNT [FIRST]`: simulate so many schedules from seed FIRST (0) on, as many of each kind; 1 if one broke."""
    count, first = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0
    broken = 0
    for kind, parts in KINDS.items():
        began = time.perf_counter()
        total = simulate_many(first, -(-count // len(KINDS)), parts)
        write(kind, total, time.perf_counter() - began)
        broken += len(total.broken)
    return 1 if broken else 0


def write(kind: str, total: Tally, seconds: float) -> None:
    """The figures, on stdout."""
    lines = [
        f"kind {kind}",
        f"schedules {total.schedules:,}  broken {len(total.broken)}  seconds {seconds:,.0f}  "
        f"ms per schedule {1e3 * seconds / total.schedules:.2f}  slowest {1e3 * total.slowest[0]:.1f} ms "
        f"(seed {total.slowest[1]})",
        f"events {total.events:,}  views {total.views:,}  of these by speed {total.deals:,}  "
        f"restarts from a checkpoint {total.restarts:,}",
        f"live commits {total.live_commits:,}  durable commits {total.durable_commits:,}  "
        f"live commits lost with all members {total.lost_commits:,}",
        *(f"  {kind:24s} {times:>12,}" for kind, times in sorted(total.faults.items())),
        *(f"broken: seed {seed}: {what}" for seed, what in total.broken[:20]),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
