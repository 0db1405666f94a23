"""Everything that is done to a run: each fault at a random time, or at a moment at which it hurts most."""

from __future__ import annotations

from collections.abc import Callable

from raydml.membership.simulation.run import Run
from raydml.membership.simulation.server import Server
from raydml.membership.simulation.worker import Worker
from raydml.membership.simulation.world import Process

QUIET = 25.0
"""Seconds after which nothing is done to a run any more: it has to reach its end."""

MOMENTS = ("view", "transfer", "prepared", "committed", "checkpoint", "reported")


def somebody(run: Run) -> Worker | None:
    """A living worker."""
    living = run.living
    return run.random.choice(living) if living else None


def kill(run: Run) -> bool:
    """A worker's process dies."""
    worker = somebody(run)
    if worker:
        run.kill(worker)
    return worker is not None


def kill_machine(run: Run) -> bool:
    """A worker's machine loses its power: no connection is closed."""
    worker = somebody(run)
    if worker:
        run.kill(worker, silently=True)
    return worker is not None


def kill_all(run: Run) -> bool:
    """Every worker dies."""
    silently = run.random.random() < 0.3
    for worker in run.living:
        run.kill(worker, silently)
    return True


def kill_at_moment(run: Run) -> bool:
    """The next one who comes to a certain point dies there."""
    skip = [run.random.randrange(6)]

    def act(process: Process) -> bool:
        skip[0] -= 1
        if skip[0] >= 0 or run.now > QUIET or not process.alive:
            return False
        if isinstance(process, Server):
            process.stop()
            run.after(0.2 + run.random.random(), None, run.replace_server)
        elif isinstance(process, Worker):
            run.after(0.0, None, die, run, process)
        return True

    run.armed.append((run.random.choice(MOMENTS), act))
    return False


def die(run: Run, worker: Worker) -> None:
    """Kill a worker that still lives."""
    if worker.alive:
        run.kill(worker)


def kill_authority(run: Run) -> bool:
    """The authority's process dies and is started again."""
    if not run.server.alive:
        return False
    run.server.stop()
    run.after(0.2 + 2.5 * run.random.random(), None, run.replace_server)
    return True


def second_authority(run: Run) -> bool:
    """A second driver takes the run over while the first one lives, and some of its workers still hang on to that."""
    if not run.server.alive:
        return False
    run.replace_server()
    return True


def suspend(run: Run) -> bool:
    """A worker is stopped, often between a beat and its answer, and goes on later without knowing."""
    worker = somebody(run)
    if worker:
        if run.random.random() < 0.5:
            worker.send_beat()
        worker.troubled = True
        worker.asleep_until = max(worker.asleep_until, run.now + run.random.choice((0.3, 2.0, 4.0, 6.0)))
    return worker is not None


def suspend_authority(run: Run) -> bool:
    """The authority's process is stopped, and goes on later without knowing."""
    run.server.asleep_until = max(run.server.asleep_until, run.now + run.random.choice((0.3, 2.0, 4.0)))
    return run.server.alive


def cut(run: Run) -> bool:
    """A worker and the authority hear each other no more, or only one of them does."""
    worker = somebody(run)
    if worker:
        isolate(run, worker, 1.0 + 6.0 * run.random.random(), run.random.choice(("in", "out", "both")))
    return worker is not None


def cut_group(run: Run) -> bool:
    """All workers are cut off from the authority; new ones that arrive are not."""
    seconds = 3.0 + 5.0 * run.random.random()
    for worker in run.living:
        isolate(run, worker, seconds, "both")
    run.after(2.0 * run.random.random(), None, run.spawn)
    return True


def isolate(run: Run, worker: Worker, seconds: float, direction: str) -> None:
    """Hold back what a worker and its authority say until the network heals."""
    worker.troubled = True
    for server in {run.server.name, worker.connection.server.name if worker.connection else run.server.name}:
        if direction != "in":
            run.cuts[worker.name, server] = run.now + seconds
        if direction != "out":
            run.cuts[server, worker.name] = run.now + seconds


def cut_workers(run: Run) -> bool:
    """Two workers hear each other no more."""
    one, other = somebody(run), somebody(run)
    if one is None or other is None or one is other:
        return False
    heals = run.now + 5.0 * run.random.random()
    run.cuts[one.name, other.name] = heals
    if run.random.random() < 0.5:
        run.cuts[other.name, one.name] = heals
    return True


def drop_connections(run: Run) -> bool:
    """A worker's connection to the authority breaks, or those of all."""
    dropped = run.living if run.random.random() < 0.4 else run.living[:1]
    for worker in dropped:
        if worker.connection is not None:
            worker.troubled = True
            run.close(worker.connection)
    return bool(dropped)


def break_collective(run: Run) -> bool:
    """A worker's collective ends with an error, though everybody lives."""
    worker = somebody(run)
    if worker is None or not worker.busy:
        return False
    worker.failed(worker.turn)
    return True


def slow(run: Run) -> bool:
    """A worker computes many times more slowly from now on: it is slow, not dead."""
    worker = somebody(run)
    if worker:
        worker.slowness = run.random.choice((3.0, 12.0))
    return worker is not None


def join(run: Run) -> bool:
    """One more worker arrives."""
    run.spawn()
    return True


def drain(run: Run) -> bool:
    """A worker is to leave."""
    worker = somebody(run)
    if worker is None or not run.server.alive:
        return False
    worker.asked_to_leave = True
    run.server.authority.drain((worker.name,), run.server.clock())
    return True


def resize(run: Run) -> bool:
    """The run is to have another size."""
    if not run.server.alive:
        return False
    for worker in run.living:
        worker.asked_to_leave = True  # whoever is the youngest then
    run.server.authority.resize(run.random.randint(1, 5), run.server.clock())
    return True


FAULTS: dict[str, Callable[[Run], bool]] = {
    "kill": kill,
    "kill machine": kill_machine,
    "kill all": kill_all,
    "kill at a moment": kill_at_moment,
    "kill authority": kill_authority,
    "second authority": second_authority,
    "suspend": suspend,
    "suspend authority": suspend_authority,
    "cut": cut,
    "cut group": cut_group,
    "cut workers": cut_workers,
    "drop connections": drop_connections,
    "break collective": break_collective,
    "slow": slow,
    "join": join,
    "drain": drain,
    "resize": resize,
}

KINDS = (*FAULTS, *("kill at a moment",) * 4)


def plan(run: Run) -> None:
    """One to six faults in the first seconds of a run; each that really hits is counted."""
    for _ in range(run.random.randint(1, 6)):
        run.after(0.2 + 4.0 * run.random.random(), None, strike, run, run.random.choice(KINDS))


def strike(run: Run, kind: str) -> None:
    """Do it now."""
    if FAULTS[kind](run):
        run.occurred[kind] += 1
