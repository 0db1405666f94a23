"""An agreed view -> a process group of torch.distributed that spans exactly its members."""

from __future__ import annotations

import datetime

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from raydml.membership import View
from raydml.parallel import Group

TIMEOUT = datetime.timedelta(seconds=300)


def form_group(view: View, worker: str, num_slices: int, store: Store, backend: str) -> Group:
    """Form the view's group; each epoch has its own names in the store, so groups never mix."""
    group = Group(view.rank(worker), view.size, num_slices)
    if view.size > 1:
        own = PrefixStore(f"epoch-{view.epoch}", store)
        dist.init_process_group(backend, store=own, rank=group.rank, world_size=group.size, timeout=TIMEOUT)
    return group


def leave_group() -> None:
    """Dissolve the current group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
