"""`python -m api.supervise`: the process that brings jobs to their end, kept alive by `raydml serve`.

Its settings come as one line of JSON on stdin, which stays open for as long as its parent lives.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time

import structlog

from api.job_metrics import job_families
from api.logs import configure_logging
from api.otlp import Sending
from api.settings import Settings
from raydml.errors import RaydmlError
from raydml.jobs.database import Database
from raydml.jobs.decisions import Rules
from raydml.jobs.housekeeping import Housekeeping, Keeping
from raydml.jobs.launcher import Launcher, Unreachable
from raydml.jobs.local_ray import LocalRay
from raydml.jobs.ray_jobs import ClusterJobs, LocalJobs, cluster_token
from raydml.jobs.supervisor import Supervisor
from raydml.jobs.webhooks import Courier

log = structlog.get_logger()
BETWEEN = 0.2  # seconds between two turns
_LOOK = 1.0  # seconds between two looks for what is to be sent
_ROUND = 60.0  # seconds between two looks whether a round is due


def supervise(settings: Settings, stop: threading.Event) -> None:
    """Turn after turn until told to stop; then local runs save their state, and the local Ray ends."""
    settings.home.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database_url)
    database.migrate()
    rules = Rules(settings.job_retries, settings.stop_seconds, settings.retry_seconds)
    local = None if settings.cluster else LocalRay(settings.home, settings.cpus)
    launcher: Launcher = (
        LocalJobs(local) if local else ClusterJobs(settings.cluster or "", settings.home, cluster_token())
    )
    supervisor = Supervisor(database, settings.home, launcher, rules, lease=round(1000 * settings.lease_seconds))
    sending = Sending(lambda: job_families(database) if supervisor.acts else [])
    sending.begin()
    courier = threading.Thread(target=_deliver, args=(Courier(database, settings.webhook_targets), stop), daemon=True)
    courier.start()
    keeping = Keeping(settings.record_days, settings.upload_days)
    keeper = threading.Thread(
        target=_keep_house, args=(Housekeeping(database, settings.home, keeping), stop), daemon=True
    )
    keeper.start()
    log.info("supervising", name=supervisor.name, ray=settings.cluster or "local")
    while not stop.is_set():
        _turn(supervisor, launcher)
        stop.wait(BETWEEN)
    if local is not None and supervisor.acts and local.url():
        _stop_runs(supervisor, settings.shutdown_seconds)
        local.end()
    sending.close()
    supervisor.close()
    for thread in (courier, keeper):
        thread.join(2 * _LOOK)  # what is not done by then, another one does
    launcher.close()
    database.close()


def _turn(supervisor: Supervisor, launcher: Launcher) -> None:
    """One turn; whatever goes wrong in it is told, and the next one comes."""
    try:
        supervisor.tick()
    except Unreachable as reason:
        log.warning("ray_unreachable", reason=str(reason))
        _mend(launcher)
    except Exception:
        log.exception("turn_failed")
        time.sleep(1)


def _deliver(courier: Courier, stop: threading.Event) -> None:
    """Webhooks, in a thread of their own: a receiver may take its time."""
    while not stop.is_set():
        try:
            if not courier.tick():
                stop.wait(_LOOK)
            courier.forget_sometimes()
        except Exception:
            log.exception("webhooks_failed")
            stop.wait(_LOOK)


def _keep_house(housekeeping: Housekeeping, stop: threading.Event) -> None:
    """Rounds through what nobody needs any more, in a thread of their own: folders may be large."""
    while not stop.is_set():
        try:
            housekeeping.tick()
        except Exception:
            log.exception("housekeeping_failed")
        stop.wait(_ROUND)


def _mend(launcher: Launcher) -> None:
    began = time.monotonic()
    try:
        launcher.mend()
        log.info("ray_mended", seconds=round(time.monotonic() - began, 1))
    except Unreachable as reason:
        log.error("ray_not_mended", reason=str(reason))
        time.sleep(1)


def _stop_runs(supervisor: Supervisor, seconds: float) -> None:
    """Have every run save a checkpoint; they go on when the server is started again."""
    until = time.monotonic() + seconds
    try:
        while supervisor.pause_runs() and time.monotonic() < until:
            time.sleep(BETWEEN)
    except (Unreachable, RaydmlError) as reason:
        log.warning("runs_not_stopped", reason=str(reason))


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """The process."""
    settings = Settings.model_validate_json(sys.stdin.readline())
    configure_logging(settings.log_level)
    for library in ("httpx2", "httpcore2"):  # a line for each look at Ray
        logging.getLogger(library).setLevel(logging.WARNING)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which says when
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    supervise(settings, stop)


if __name__ == "__main__":
    main()
