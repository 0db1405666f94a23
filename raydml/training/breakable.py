"""Gloo whose forming can be broken off: what it waits for in C++ until members meet, nothing else ends.

A peer that dies or stops while groups form leaves the others in `Pair::waitUntilConnected`, which has no socket of
theirs to shut. So the connecting is done in a thread of its own; where it is broken off, that thread is left behind,
and ends with its time limit. What it may still form belongs to an epoch that is over, and nobody hears of it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroupGloo

NAME = "breakable_gloo"  # to torch.distributed; everything but the forming is gloo's own


@dataclass
class _Forming:
    """One group that is being formed."""

    group: ProcessGroupGloo | None = None
    error: Exception | None = None
    broken: bool = False


_changed = threading.Condition()
_present: _Forming | None = None


def register() -> str:
    """Make the backend known to torch.distributed, once in a process; its name."""
    if NAME not in dist.Backend.backend_list:
        dist.Backend.register_backend(NAME, _formed, extended_api=True, devices=["cpu"])
    return NAME


def break_off() -> None:
    """End the forming that another thread waits for, if there is one."""
    with _changed:
        if _present is not None:
            _present.broken = True
            _changed.notify_all()


def _formed(options: Any, _: Any) -> ProcessGroupGloo:
    """As torch.distributed asks for it. Raises what gloo raises, and RuntimeError where it was broken off."""
    global _present
    forming = _Forming()
    with _changed:
        _present = forming
    threading.Thread(target=_connect, args=(forming, options), name="forming", daemon=True).start()
    with _changed:
        _changed.wait_for(lambda: forming.group or forming.error or forming.broken)
        _present = None
    if forming.error is not None:
        raise forming.error
    if forming.group is None:
        raise RuntimeError("forming a group was broken off")
    return forming.group


def _connect(forming: _Forming, options: Any) -> None:
    group, error = None, None
    try:
        group = ProcessGroupGloo(options.store, options.group_rank, options.group_size, timeout=options.timeout)
        group.options.global_ranks_in_group = options.global_ranks_in_group
        group.options.group_name = options.group_id
        group._set_sequence_number_for_group()
    except Exception as caught:
        error = caught
    with _changed:
        forming.group, forming.error = group, error
        _changed.notify_all()
