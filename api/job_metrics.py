"""The database in; what there is of jobs and their supervisor, as numbers, out."""

from __future__ import annotations

from typing import Literal

from api.exposition import Family, Labels, Samples
from raydml.jobs.database import Database
from raydml.jobs.ids import milliseconds
from raydml.jobs.supervisor import LEASE, ROLE
from raydml.jobs.totals import LiveJob, lease_age, totals

_LIVE: dict[str, tuple[Literal["gauge", "counter"], str]] = {
    "workers": ("gauge", "workers of a job at work"),
    "samples": ("counter", "rows of the batches of the steps that a job at work has taken"),
    "recoveries": ("counter", "how often a job at work lost workers or connections, and went on"),
}


def job_families(database: Database) -> list[Family]:
    """Jobs by state, each job at work, and the age of the supervisor's lease; blocks while the database is asked."""
    with database.reading() as session:
        found = totals(session)
        age = lease_age(session, ROLE, LEASE, milliseconds())
    states: Samples = [({"state": state}, count) for state, count in found.states.items()]
    families = [Family("raydml_jobs", "gauge", "jobs by state", states)]
    for name, (kind, words) in _LIVE.items():
        samples: Samples = [(_labels(job), getattr(job, name)) for job in found.live]
        families.append(Family(f"raydml_job_{name}", kind, words, samples))
    if age is not None:
        heard = "seconds since the supervisor was last heard of"
        families.append(Family("raydml_supervisor_lease_seconds", "gauge", heard, [({}, age)]))
    return families


def _labels(job: LiveJob) -> Labels:
    return {"project": job.project, "job": job.id}
