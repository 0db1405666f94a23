"""Peers that are gone in the middle of something: whoever waits for them hears of it, or ends, and never waits on."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from raydml.membership import View
from raydml.parallel import Group, PeerLost
from raydml.spec import JobSpec
from raydml.training import breakable, handover, process_group
from raydml.training.process_group import ProcessGroup, _sockets, fixed_group
from raydml.training.worker import Job, Worker
from tests.distributed.harness import CONTEXT, run_processes, small_spec, write_images

LARGE = 2**28  # bytes: far more than sockets hold, so that sending them takes a while


def _hang_up() -> None:
    """Cut all connections of this process, as its death would."""
    for descriptor in _sockets().values():
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
            copy.shutdown(socket.SHUT_RDWR)


def _take_a_little(peer: int) -> None:
    """Begin to receive LARGE bytes, and cut the connections meanwhile."""
    dist.irecv(torch.empty(LARGE, dtype=torch.uint8), src=peer)
    dist.send(torch.zeros(8), dst=peer)
    time.sleep(0.03)
    _hang_up()


def _swap(group: Group, given: Any) -> str:
    if group.rank:
        _take_a_little(peer=0)
        return "cut"
    try:
        group.swap([[], [torch.zeros(LARGE, dtype=torch.uint8)]], [[], [torch.empty(8)]])
    except PeerLost:
        return "lost"
    return "sent"


@pytest.mark.timeout(240)
def test_a_swap_with_a_worker_that_dies_while_it_receives_is_a_lost_peer(tmp_path: Path) -> None:
    assert run_processes(2, _swap, None, tmp_path) == ["lost", "cut"]


def _hand_over(group: Group, given: tuple[JobSpec, str]) -> str:
    spec, folder = given
    if group.rank:
        manifest: list[Any] = [None]
        dist.recv_object_list(manifest, src=0)
        dist.irecv(torch.empty(LARGE, dtype=torch.uint8), src=0)
        time.sleep(0.005)
        _hang_up()
        return "cut"
    worker = Worker(Job(spec, Path(folder), Path(folder), None), Group(0, 1, 8), torch.device("cpu"))
    try:
        handover.give(worker, "lineage", [1])
    except PeerLost:
        return "lost"
    return "sent"


@pytest.mark.timeout(240)
def test_a_source_whose_receiver_dies_while_it_receives_hears_of_it(tmp_path: Path) -> None:
    wide = {"kind": "mlp", "hidden": [4096, 4096]}  # 68 MB of numbers
    spec = small_spec(write_images(tmp_path), **{"model.backbone": wide})
    assert run_processes(2, _hand_over, (spec, str(tmp_path)), tmp_path) == ["lost", "cut"]


def _wait_for_ever(rank: int, store: str) -> None:
    """Rank 0 waits for a send as gloo's own collectives do, while its group is broken off again and again."""
    processes, group = fixed_group(rank, 2, 8, dist.FileStore(store, 2))
    if rank:
        _take_a_little(peer=0)
        return
    process_group.STUCK_SECONDS = 1.0

    def break_off() -> None:
        time.sleep(0.5)
        while True:
            processes.abort()
            time.sleep(0.05)

    threading.Thread(target=break_off, daemon=True).start()
    with group.collective():
        dist.recv(torch.empty(8), src=1)
        sent = dist.isend(torch.zeros(LARGE, dtype=torch.uint8), dst=1)
        assert sent is not None
        sent.wait()


@pytest.mark.timeout(240)
def test_a_worker_whose_call_does_not_end_though_it_was_broken_off_ends_itself(tmp_path: Path) -> None:
    assert _exit_codes(_wait_for_ever, tmp_path / "store") == [1, 0]


def test_a_group_whose_member_never_comes_is_broken_off_while_it_forms(tmp_path: Path) -> None:
    """The store is a file, so that no socket is there whose end could end the wait."""
    processes = ProcessGroup(lambda: dist.FileStore(str(tmp_path / "store"), 2), "gloo")
    view = View("run", 1, ("here", "nowhere"), (4, 4), 0, None)
    threading.Thread(target=_abort_forming, args=(processes,)).start()
    with pytest.raises(PeerLost):
        processes.form(view, "here", Group(0, 1, 8))
    processes.leave()


def _abort_forming(processes: ProcessGroup) -> None:
    """Abort once, in the middle of a forming, whenever that has begun."""
    while breakable._present is None:
        time.sleep(0.01)
    time.sleep(0.1)
    processes.abort()


def _form_again(rank: int, store: str) -> None:
    """Rank 0 waits for a member that never comes; then it forms a group with rank 1, who has had no such trouble.

    The thread that breaks the first forming off is held up in the middle of it, until the second group is there.
    """
    processes, group, names = ProcessGroup(lambda: dist.FileStore(store), "gloo"), Group(0, 1, 8), ("zero", "one")
    formed, break_off = threading.Event(), breakable.break_off
    aborting = threading.Thread(target=_abort_forming, args=(processes,))

    def and_be_held_up() -> None:
        break_off()
        formed.wait(60)

    if rank == 0:
        breakable.break_off = and_be_held_up
        aborting.start()
        with pytest.raises(PeerLost):
            processes.form(View("run", 1, ("zero", "nowhere"), (4, 4), 0, None), "zero", group)
    processes.form(View("run", 2, names, (4, 4), 0, None), names[rank], group)
    if rank == 0:
        formed.set()
        aborting.join()
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == 2
    processes.leave()


@pytest.mark.timeout(240)
def test_a_member_whose_last_forming_failed_meets_one_whose_did_not(tmp_path: Path) -> None:
    assert _exit_codes(_form_again, tmp_path / "store") == [0, 0]


def _exit_codes(work: Callable[[int, str], None], store: Path) -> list[int | None]:
    """How two processes that do this, each with its rank, ended; None for one that did not within 100 s."""
    members = [CONTEXT.Process(target=work, args=(rank, str(store))) for rank in range(2)]
    for member in members:
        member.start()
    try:
        for member in members:
            member.join(100)
        return [member.exitcode for member in members]
    finally:
        for member in members:
            member.kill()
