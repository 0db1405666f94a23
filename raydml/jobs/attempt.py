"""`python -m raydml.jobs.attempt`: the process of one attempt; its order in, a trained run and a last word out.

It knows no database: it reads its order and writes files of the run's folder. A kill at any moment leaves a run that
the next attempt resumes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raydml import run
from raydml.errors import Interrupted, RaydmlError
from raydml.jobs.telling import Telling, log_of
from raydml.jobs.workplace import Workplace
from raydml.parallel import fit, unit, world_sizes
from raydml.runs import Run
from raydml.spec import JobSpec
from raydml.specfile import parse_spec
from raydml.training.record import RunRecord

# Of a run's summary, what a job's result tells.
RESULT = ("metrics", "intervals", "baseline", "collection", "state_sha256", "world_size_history", "exactness")


def attempt(place: Workplace, address: str | None) -> int:
    """Train as ordered, or go on with what an earlier attempt left; the exit code. `address` is of a Ray cluster."""
    if place.ended() is not None or place.superseded():
        return 0
    order = place.order()
    log = log_of(place.job, place.attempt, sys.stdout)
    log.info("begun", workers=order["workers"])
    try:
        spec = parse_spec(order["spec"])
        collections = Path(order["collections"])
        if spec.tune is not None:
            from raydml.jobs.searching import searched, winner_of  # and with it the database's libraries: a second

            study = searched(place, spec, order["workers"], address, collections, log)
            place.write_ended("succeeded", "", "", _result(Run(place.run, place.home)) | winner_of(study))
        else:
            if RunRecord(place.run).read().get("state") != "succeeded":
                _say_limits(place, spec, order["workers"])
                listen = Telling(log, time.monotonic)
                run.train(spec, address=address, home=place.home, collections=collections, listen=listen)
            place.write_ended("succeeded", "", "", _result(Run(place.run, place.home)))
        log.info("succeeded")
    except Interrupted as error:
        log.info("interrupted", why=error.message)
        place.write_ended("interrupted", "Interrupted", error.message, None)
    except Exception as error:
        traceback.print_exc()
        message = error.message if isinstance(error, RaydmlError) else f"{type(error).__name__}: {error}"
        log.error("failed", kind=type(error).__name__, why=message)
        place.write_ended("failed", type(error).__name__, message, None)
        return 1
    return 0


def _say_limits(place: Workplace, spec: JobSpec, workers: int) -> None:
    """What the run's driver will go by, and the number of workers that was granted at first."""
    wanted = spec.parallel.workers
    limits = max(wanted.min, unit(spec)), fit(spec, wanted.max).workers
    usable = world_sizes(spec)
    granted = max((size for size in usable if size <= workers), default=limits[0])
    RunRecord(place.run).request_resize(granted, limits)
    place.write_started(usable, limits)


def _result(done: Run) -> dict[str, Any]:
    summary = done.summary()
    return {"model_sha256": summary["sha256"], **{name: summary[name] for name in RESULT}}


def main(arguments: Sequence[str] | None = None) -> int:
    """The process: everything it prints goes to the attempt's own log."""
    parser = argparse.ArgumentParser(prog="python -m raydml.jobs.attempt")
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--home", type=Path, required=True)
    given = parser.parse_args(arguments)
    place = Workplace(given.home, given.job, given.attempt)
    output = os.open(place.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(output, stream.fileno())
    return attempt(place, os.environ.get("RAY_ADDRESS"))


if __name__ == "__main__":
    sys.exit(main())
