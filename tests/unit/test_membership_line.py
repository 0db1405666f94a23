"""Members and their authority over real sockets, in one process: what each is told, and what a connection costs."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from raydml.membership import Authority, Link, MemoryLedger, Over, Policy, Report, Server, View

POLICY = Policy(first=2, most=4, num_slices=8)


@pytest.fixture
def server() -> Iterator[Server]:
    def found(now: float) -> Authority:
        return Authority("run", MemoryLedger(), POLICY, now, lambda: 0)

    with Server(found, "127.0.0.1") as server:
        yield server


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def together(*calls: Callable[[], object]) -> list[object]:
    """All of them at once; results in order, an exception as itself."""
    results: list[object] = [None] * len(calls)

    def work(index: int) -> None:
        try:
            results[index] = calls[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return results


def begun(a: Link, b: Link) -> View:
    """Both come for the first time, and are given one view."""
    first, second = together(lambda: a.arrive(Report("a")), lambda: b.arrive(Report("b")))
    assert isinstance(first, View) and first == second and first.members == ("a", "b")
    return first


def nothing() -> None:
    """Of a member that has no group to leave."""


def test_members_that_hold_different_states_of_one_step_stop_the_run_and_it_says_so(server: Server) -> None:
    with Link(server.address, "a", nothing) as a, Link(server.address, "b", nothing) as b:
        view = begun(a, b)
        held = Report("a", view.epoch, 5, digest="one")
        ends = together(lambda: a.arrive(held), lambda: b.arrive(replace(held, member="b", digest="another")))
        assert [type(end) for end in ends] == [Over, Over]
    assert server.over and server.outcome is None
    assert server.failure is not None and "different states of step 5" in server.failure["message"]


def test_a_broken_connection_is_opened_again_and_costs_nothing(server: Server) -> None:
    with Link(server.address, "a", nothing) as a, Link(server.address, "b", nothing) as b:
        begun(a, b)
        wait(a.may_commit)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            server.hang_up("a")
            time.sleep(0.03)
        wait(lambda: len(os.listdir("/proc/self/fd")) <= before)
        assert a.standing == "go" and b.standing == "go" and a.may_commit()
    assert [event.cause for event in server.events] == ["start"]


def test_a_line_gives_back_its_descriptors(server: Server) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for name in ("a", "b", "c"):
        with Link(server.address, name, nothing):
            pass
    wait(lambda: len(os.listdir("/proc/self/fd")) <= before)


@pytest.mark.parametrize("hello", [{"type": "hello", "member": "a", "token": "guessed"}, {"type": "hello"}, [1], "x"])
def test_who_does_not_know_the_token_is_hung_up_on(server: Server, hello: object) -> None:
    address = server.address
    with socket.create_connection((address.host, address.port), 5) as line:
        line.sendall(json.dumps(hello).encode() + b"\n")
        assert line.recv(1) == b""
    assert not server.over
