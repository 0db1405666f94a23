"""An agreed view -> a process group of torch.distributed that spans exactly its members, and can be broken off.

Gloo waits in C++ for a peer that is silent (a cut cable, a stopped process); neither `abort` nor destroying the group
ends that wait. Shutting the group's sockets does, at once, in whatever call the training thread is; but for one: a send
that had begun (gloo's Pair::signalException leaves out unbound buffers in its queue). `Peers.acknowledge` avoids that
wait; where a collective of gloo's own runs into it, this process ends itself, as nothing else ends the wait. The
waits of forming a group are ended by `breakable`.
"""

from __future__ import annotations

import datetime
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, _world

from raydml.membership import View, share
from raydml.parallel import Group
from raydml.parallel.group import present_call, talking
from raydml.spec import MeshSpec
from raydml.training import breakable

_BYTES_SENT = 200  # where linux/tcp.h has it in tcp_info

# Heartbeats find the dead; this is for what they cannot see: a live member that waits for something else.
TIMEOUT = datetime.timedelta(minutes=30)
STUCK_SECONDS = 10.0  # in a call that was broken off, which takes milliseconds to end


class ProcessGroup:
    """The process groups of one worker, one after another; `abort` may be called from any thread.

    `connect` makes a new connection to the store in which the members meet; `backend` is gloo or nccl.
    """

    def __init__(self, connect: Callable[[], Store], backend: str) -> None:
        self._connect, self._backend = connect, breakable.register() if backend == "gloo" else backend
        self._store: Store | None = None
        self._before: set[int] | None = None  # sockets that were there before forming began
        self._own: set[int] = set()
        self._broken: tuple[object, float] | None = None  # the call that was broken off last, and when

    def form(self, view: View, member: str, group: Group) -> None:
        """Leave the last group and form the view's, where `group` then has its place.

        Each epoch has its own connection to the store and its own names in it, so that groups never mix. Raises
        PeerLost where a member does not come and the forming is aborted.
        """
        self.leave()
        group.move(view.rank(member), view.deal)
        if view.size == 1:
            return
        self._before = set(_sockets())
        with talking():
            self._store = self._connect()
            names = PrefixStore(f"epoch-{view.epoch}", self._store)
            dist.init_process_group(self._backend, store=names, rank=group.rank, world_size=group.size, timeout=TIMEOUT)
            group.connect()  # here, so that the sockets of the mesh's axes are known too
        self._own, self._before = set(_sockets()) - self._before, None

    def abort(self) -> None:
        """Make what the training thread does in the group fail, on this worker and through it on the others.

        To be repeated until it has failed. A call that does not end for all that ends with its process. What the
        training thread forms next, as soon as it has been broken off, is left alone.
        """
        if self._backend == "nccl" and dist.is_initialized():
            for processes in list(_world.pg_map):  # the default group and those of the mesh's axes
                with suppress(RuntimeError):
                    processes.abort()
        sockets, own, before = _sockets(), self._own, self._before
        breakable.break_off()
        for inode, descriptor in sockets.items():
            if inode in own or (before is not None and inode not in before):
                with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
                    if os.fstat(copy.fileno()).st_ino == inode:  # else another one has that number by now
                        copy.shutdown(socket.SHUT_RDWR)
        self._end_if_stuck()

    def _end_if_stuck(self) -> None:
        call, now = present_call(), time.monotonic()
        if call is None or self._broken is None or self._broken[0] is not call:
            self._broken = (call, now)
        elif now > self._broken[1] + STUCK_SECONDS:
            print(
                f"this worker ends: its group was broken off {STUCK_SECONDS:.0f} s ago, and it still waits in a "
                f"collective for a peer that is gone; the others go on without it",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)

    def leave(self) -> None:
        """Dissolve the current group, if there is one."""
        self._own, self._before = set(), None
        if dist.is_initialized():
            with suppress(RuntimeError):  # of a group that was broken off
                dist.destroy_process_group()
        # It names the next group, and a forming that failed leaves it one too high: members whose last one did not
        # fail would look for each other under another name, for ever.
        _world.group_count = 0
        self._store = None


def fixed_group(
    rank: int, size: int, num_slices: int, store: Store, backend: str = "gloo", axes: MeshSpec | None = None
) -> tuple[ProcessGroup, Group]:
    """Form a group that does not change, of processes that know their ranks: for benchmarks and tests."""
    group = Group(rank, size, num_slices, axes)
    names = tuple(f"worker-{other:05d}" for other in range(size))
    deal = tuple(len(share(other, size, group.seats)) for other in range(size))
    processes = ProcessGroup(lambda: store, backend)
    processes.form(View("fixed", 1, names, deal, 0, None), names[rank], group)
    return processes, group


def bytes_sent() -> int:
    """Bytes that this process has sent over TCP so far, by connections that are open: tcpi_bytes_sent of the kernel."""
    total = 0
    for descriptor in _sockets().values():
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            total += struct.unpack_from("<Q", copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), _BYTES_SENT)[0]
    return total


def _sockets() -> dict[int, int]:
    """This process's network connections: inode -> descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError, ValueError):
            kind, _, inode = os.readlink(f"/proc/self/fd/{name}").partition(":")
            if kind == "socket" and _is_connection(int(name)):
                found[int(inode.strip("[]"))] = int(name)
    return found


def _is_connection(descriptor: int) -> bool:
    """Of TCP, and not one that listens: gloo ends the process when its listener fails."""
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.type != socket.SOCK_STREAM:
            return False
        return not copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
