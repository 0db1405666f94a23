"""What a server leans on -> whether each of these is well now, in words that tell no secret."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import httpx2
import structlog

from api.settings import Settings
from raydml.jobs.database import Database
from raydml.jobs.ids import milliseconds
from raydml.jobs.local_ray import LocalRay
from raydml.jobs.ray_jobs import cluster_token
from raydml.jobs.supervisor import LEASE, ROLE
from raydml.jobs.totals import lease_age

log = structlog.get_logger()
FREE_BYTES = 256 << 20
_PATIENCE = 3.0  # seconds for Ray's answer


@dataclass(frozen=True)
class Check:
    """`required`: without it no request can be served; without the others jobs wait, and searches go on."""

    name: str
    ok: bool
    required: bool
    detail: str


def examine(settings: Settings, database: Database, everything: bool) -> list[Check]:
    """The required checks, or all of them. Blocks for a few seconds where Ray does not answer."""
    checks: list[tuple[str, bool, Callable[[], str]]] = [
        ("database", True, lambda: _database(database)),
        ("storage", True, lambda: _storage(settings)),
        ("disk", True, lambda: _disk(settings)),
    ]
    if everything:
        checks += [("ray", False, lambda: _ray(settings)), ("supervisor", False, lambda: _supervisor(database))]
    return [_check(*each) for each in checks]


class Unwell(Exception):
    """A check found something wrong."""


def _check(name: str, required: bool, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, required, look())
    except Unwell as reason:
        return Check(name, False, required, str(reason))
    except Exception as error:  # whose words may name hosts and users
        log.warning("check_failed", check=name, exc_info=error)
        return Check(name, False, required, f"fails with {type(error).__name__}; the server's log may say why")


def _database(database: Database) -> str:
    with database.reading() as session:
        lease_age(session, ROLE, LEASE, milliseconds())
    return "answers"


def _storage(settings: Settings) -> str:
    if not os.access(settings.home, os.R_OK | os.W_OK | os.X_OK):
        raise Unwell("the server's folder (RAYDML_HOME) cannot be read and written")
    return "the server's folder can be read and written"


def _disk(settings: Settings) -> str:
    free = shutil.disk_usage(settings.home).free
    words = f"{free / 2**30:.2f} GiB are free"
    if free < FREE_BYTES:
        raise Unwell(f"{words}, less than {FREE_BYTES / 2**30:.2f}: remove something, or take a larger disk")
    return words


def _ray(settings: Settings) -> str:
    if settings.cluster is None:
        running = LocalRay(settings.home, settings.cpus).url() is not None
        return "a Ray of its own runs" if running else "a Ray of its own starts with the next job"
    token = cluster_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx2.get(f"{settings.cluster}/api/version", headers=headers, timeout=_PATIENCE, trust_env=False)
    except httpx2.HTTPError as error:
        raise Unwell(f"the cluster does not answer: {type(error).__name__}") from error
    if answer.status_code != 200:
        raise Unwell(f"the cluster answers {answer.status_code}")
    return f"the cluster answers, Ray {answer.json().get('ray_version', 'of no version')}"


def _supervisor(database: Database) -> str:
    with database.reading() as session:
        age = lease_age(session, ROLE, LEASE, milliseconds())
    if age is None:
        raise Unwell("nobody brings jobs to their end: start raydml serve without supervise=false")
    if age > LEASE / 1000:
        raise Unwell(f"the supervisor was last heard of {age:.1f} s ago, and its lease lasts {LEASE / 1000:.0f} s")
    return f"the supervisor was last heard of {age:.1f} s ago"
