"""What every worker process of an elastic run does; it loads no Ray Train, which one beyond the minimum never needs."""

from __future__ import annotations

import ray
import torch

from raydml.training.elastic import Meeting, run_member
from raydml.training.fleet.staffing import LEFT, LOST
from raydml.training.worker import Job

ENDINGS = {"left": LEFT, "gone": LOST}


def work(job: Job, meeting: Meeting, name: str, device: torch.device) -> str:
    """How the worker of this name ended: `LEFT`, `LOST`, or anything else for the end of the run."""
    ended = run_member(job, meeting, name, ray.get_runtime_context().get_node_id(), device)
    return ENDINGS.get(ended, ended)
