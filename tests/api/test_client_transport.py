"""What the client does when servers are busy, answers are lost and streams break off; blocking and awaited alike."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api.eventstream import STOPPING
from raydml import AsyncClient, Client
from raydml.client.calls import failure
from raydml.client.problems import refusal
from raydml.client.retries import Retries
from raydml.client.steps import Answer, Request
from raydml.errors import (
    AccessDenied,
    Conflict,
    DataError,
    JobEnded,
    NotFound,
    RequestRefused,
    ServerBusy,
    ServerFailed,
    SpecError,
    Unreachable,
    WaitedTooLong,
)
from tests.api.awaited import Awaited
from tests.api.scripted import CHUNKED, HOLD, Script, answer, chunk, events, problem, scripted

pytestmark = pytest.mark.timeout(60)
QUICK = Retries(times=3, first=0.001, longest=0.002, clock=lambda: 0.0)
LOST = b""  # the connection is closed without an answer
JOB = {
    "id": "job_1", "project": "prj", "name": "glyphs", "labels": {}, "priority": 0, "state": "running", "reason": None,
    "spec": {}, "spec_sha256": "", "created_at": "2026-11-22T02:03:29.123Z", "updated_at": "2026-11-22T02:03:29.123Z",
    "started_at": None, "finished_at": None, "deadline_seconds": None, "workers": {"min": 1, "max": 2},
    "progress": None, "attempt": 1, "parent": None, "result": None, "version": 3,
}  # fmt: skip
Ask = Callable[..., tuple[Any, Script]]


@pytest.fixture(params=["blocking", "awaited"])
def ask(request: pytest.FixtureRequest) -> Iterator[Ask]:
    """A client of a server that gives these answers, and the server."""
    with ExitStack() as stack:

        def made(*answers: bytes, **options: Any) -> tuple[Any, Script]:
            script = stack.enter_context(scripted(*answers))
            said: dict[str, Any] = {"url": script.url, "retries": QUICK, **options}
            if request.param == "blocking":
                return stack.enter_context(Client(**said)), script
            loop = asyncio.new_event_loop()
            stack.callback(loop.close)
            client = Awaited(loop, AsyncClient(**said))
            stack.callback(client.close)
            return client, script

        yield made


def event(seq: int) -> str:
    document = {"seq": seq, "time": "2026-11-22T02:03:29.123Z", "type": "state", "data": {"to": "running"}}
    return f"id: {seq}\ndata: {json.dumps(document)}\n\n"


END = 'event: end\ndata: {"state": "succeeded"}\n\n'


def test_a_change_whose_answer_was_lost_is_sent_again_under_the_same_key(ask: Ask) -> None:
    client, script = ask(LOST, answer(200, {"lsn": 7}), answer(200, {"lsn": 8}))
    assert client.collections["a"].upsert([1], [[1.0]]) == 7
    assert client.collections["a"].upsert([1], [[1.0]]) == 8
    first, again, other = script.seen
    assert first.headers["idempotency-key"] == again.headers["idempotency-key"] != other.headers["idempotency-key"]
    assert first.body == again.body == other.body


def test_what_may_have_been_done_and_has_no_key_is_not_sent_again(ask: Ask) -> None:
    client, script = ask(LOST)
    with pytest.raises(Unreachable, match="it may have been done") as caught:
        client.aliases.switch({"a": "b"})
    assert caught.value.data["sent"] and len(script.seen) == 1


def test_what_was_refused_before_it_began_is_sent_again_in_any_case(ask: Ask) -> None:
    client, script = ask(
        problem(429, retry_after="0"), problem(503), answer(200, {"generation": 4, "aliases": {"a": "b"}})
    )
    assert client.aliases.switch({"a": "b"}).generation == 4
    assert len(script.seen) == 3


def test_a_server_that_stays_busy_is_given_up_after_so_many_times(ask: Ask) -> None:
    client, script = ask(*[problem(429, "busy", retry_after="0")] * 9)
    with pytest.raises(ServerBusy) as caught:
        client.collections.get("a")
    assert len(script.seen) == 1 + QUICK.times
    assert caught.value.data["retry_after"] == 0 and caught.value.data["problem"] == "busy"


def test_a_key_in_progress_is_asked_for_again(ask: Ask) -> None:
    client, script = ask(problem(409, "in-progress", retry_after="0"), answer(200, {"lsn": 7}))
    assert client.collections["a"].upsert([1], [[1.0]]) == 7
    client, script = ask(problem(409, "job-conflict"))
    with pytest.raises(Conflict):
        client.jobs["job_1"].cancel()
    assert len(script.seen) == 1


def test_what_is_gone_when_its_removal_is_sent_again_was_removed(ask: Ask) -> None:
    client, script = ask(LOST, problem(404))
    client.collections.delete("a")
    assert len(script.seen) == 2
    client, script = ask(problem(404))
    with pytest.raises(NotFound):
        client.collections.delete("a")


def test_a_stream_goes_on_where_it_broke_off_and_gives_each_event_once(ask: Ask) -> None:
    half = f"id: 4\ndata: {event(4)[13:30]}"
    client, script = ask(
        events("retry: 1\n\n", event(1), event(2)),  # breaks off
        LOST,
        events(event(3), half),  # in the middle of an event
        events(": still here\n\n", event(4), whole=True),  # ends, without its end
        problem(503, retry_after="0"),
        events(event(5), END, whole=True),
    )
    told = list(client.jobs["job_1"].events())
    assert [each.seq for each in told] == [1, 2, 3, 4, 5]
    assert [seen.headers["last-event-id"] for seen in script.seen] == ["0", "2", "2", "3", "4", "4"]
    assert told[0].time.isoformat() == "2026-11-22T02:03:29.123000+00:00"


def test_a_stream_that_never_says_anything_is_given_up(ask: Ask) -> None:
    client, script = ask(*[events(event(1))] + [events("retry: 0\n\n")] * 9)
    items = client.jobs["job_1"].events()
    assert next(items).seq == 1
    with pytest.raises(Unreachable):
        next(items)
    assert len(script.seen) == 1 + QUICK.times


def test_a_connection_that_held_for_a_while_is_no_failure_though_it_said_nothing(ask: Ask) -> None:
    silent = events(": still here\n\n")
    an_hour_later = replace(QUICK, clock=itertools.count(step=3600).__next__)
    client, script = ask(*[silent] * 9, events(END, whole=True), retries=an_hour_later)
    assert list(client.jobs["job_1"].events()) == []
    assert len(script.seen) == 10


@pytest.mark.parametrize(
    ("refusing", "kind"),
    [(problem(410, "expired"), NotFound), (problem(404), NotFound), (answer(200, {}), ServerFailed)],
    ids=["expired", "unknown", "no stream"],
)
def test_a_stream_that_cannot_be_had_is_not_asked_for_again(ask: Ask, refusing: bytes, kind: type[Exception]) -> None:
    client, script = ask(refusing)
    with pytest.raises(kind):
        next(client.jobs["job_1"].events(after=17))
    assert [seen.headers["last-event-id"] for seen in script.seen] == ["17"]


def test_leaving_a_stream_closes_its_connection(ask: Ask) -> None:
    client, script = ask(CHUNKED + chunk(event(1).encode()) + HOLD)
    items = client.jobs["job_1"].events()
    assert next(items).seq == 1
    items.close()
    assert script.left.wait(50)


def test_a_server_that_stops_says_so_and_the_next_one_goes_on(ask: Ask) -> None:
    client, script = ask(
        events(event(1), STOPPING.decode(), whole=True),
        events(event(2), END, whole=True),
    )
    assert [each.seq for each in client.jobs["job_1"].events()] == [1, 2]
    assert script.seen[1].headers["last-event-id"] == "1"


def test_logs_are_followed_through_all_attempts(ask: Ask) -> None:
    def line(id: int, text: str) -> str:
        return f"id: {id}\ndata: {json.dumps({'id': id, 'text': text})}\n\n"

    client, script = ask(
        answer(200, JOB),
        events(line(4, "one"), 'event: end\ndata: {"state": "recovering", "next_attempt": 2}\n\n', whole=True),
        events(line(4, "two")),
        events(line(10, "three"), 'event: end\ndata: {"state": "failed", "next_attempt": null}\n\n', whole=True),
    )
    assert [each.text for each in client.jobs["job_1"].logs(follow=True)] == ["one", "two", "three"]
    assert [seen.path for seen in script.seen[1:]] == [f"/v1/jobs/job_1/logs?attempt={n}" for n in (1, 2, 2)]
    assert script.seen[3].headers["last-event-id"] == "4"


def test_waiting_ends_with_the_state_and_says_why_it_cannot_come(ask: Ask) -> None:
    ended = {**JOB, "state": "failed", "reason": {"code": "budget_exhausted", "message": "it died 5 times"}}
    client, _ = ask(answer(200, JOB), answer(200, {**JOB, "state": "succeeded"}))
    assert client.jobs["job_1"].wait().state == "succeeded"
    client, _ = ask(answer(200, JOB))
    assert client.jobs["job_1"].wait("running", timeout=0).state == "running"
    client, _ = ask(answer(200, JOB), answer(200, ended))
    with pytest.raises(JobEnded, match="it died 5 times") as caught:
        client.jobs["job_1"].wait("succeeded")
    assert caught.value.data["code"] == "budget_exhausted"
    client, _ = ask(answer(200, JOB))
    with pytest.raises(WaitedTooLong, match="it goes on"):
        client.jobs["job_1"].wait(timeout=0)


def test_a_download_goes_on_where_it_broke_off_and_is_whole_or_not_there(ask: Ask, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()

    def part(first: int, sent: int, status: int = 206) -> bytes:
        head = (
            f'HTTP/1.1 {status} X\r\ncontent-length: {len(content) - first}\r\netag: "e"\r\n'
            f"repr-digest: sha-256=:{digest}:\r\nconnection: close\r\n\r\n"
        )
        return head.encode() + content[first : first + sent]

    client, script = ask(part(0, 5000, 200), part(5000, 99999))
    got = client.jobs["job_1"].download("model/model.bin", tmp_path)
    assert got == tmp_path / "model.bin" and got.read_bytes() == content
    assert script.seen[0].path == "/v1/jobs/job_1/artifacts/model%2Fmodel.bin"
    assert (script.seen[1].headers["range"], script.seen[1].headers["if-range"]) == ("bytes=5000-", '"e"')
    content = content[:-1] + b"!"
    client, script = ask(part(0, 99999, 200))
    with pytest.raises(ServerFailed, match="damaged"):
        client.jobs["job_1"].download("model/model.bin", tmp_path / "other.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


def test_an_upload_goes_on_with_the_parts_that_are_missing(ask: Ask, tmp_path: Path) -> None:
    content = bytes(range(10))
    (tmp_path / "a.npz").write_bytes(content)
    whole = hashlib.sha256(content).hexdigest()
    parts = [hashlib.sha256(part).hexdigest() for part in (content[:4], content[4:8], content[8:])]
    dataset = {
        "id": "dst_1", "name": "a", "kind": "npz", "state": "uploading", "size": 10, "sha256": whole, "part_bytes": 4,
        "num_parts": 3, "report": None, "problem": None, "created_by": "me", "created_at": JOB["created_at"],
        "updated_at": JOB["created_at"],
    }  # fmt: skip
    there = [{"number": 0, "sha256": parts[0]}, {"number": 1, "sha256": "of other bytes"}]
    checking = {**dataset, "state": "checking"}
    client, script = ask(
        answer(200, {**dataset, "parts": there}), LOST, answer(204), answer(204), answer(202, checking)
    )
    assert client.datasets.upload(tmp_path / "a.npz", resume="dst_1").state == "checking"
    lost, second, third = script.seen[1:4]
    assert lost == second and (second.path, second.body) == (
        f"/v1/datasets/dst_1/parts/1?sha256={parts[1]}",
        content[4:8],
    )
    assert (third.path, third.body) == (f"/v1/datasets/dst_1/parts/2?sha256={parts[2]}", content[8:])
    (tmp_path / "b.npz").write_bytes(b"another")
    client, script = ask(answer(200, dataset))
    with pytest.raises(DataError, match="another file"):
        client.datasets.upload(tmp_path / "b.npz", resume="dst_1")
    client, script = ask(answer(201, {**dataset, "num_parts": 0}), answer(202, checking))
    client.datasets.upload(tmp_path / "a.npz")
    facts = {"name": "a", "kind": "npz", "size": 10, "sha256": whole}
    assert json.loads(script.seen[0].body) == facts and script.seen[0].headers["idempotency-key"]


def test_pages_are_asked_for_when_they_are_needed(ask: Ask) -> None:
    client, script = ask(
        answer(200, {"items": [JOB, JOB], "next_cursor": "c&1"}), answer(200, {"items": [JOB], "next_cursor": None})
    )
    items = client.jobs.list(state=["queued", "running"], labels={"team": "a b"}, page_size=2)
    assert next(items).name == "glyphs" and len(script.seen) == 1
    assert len([*items]) == 2
    first, second = (seen.path for seen in script.seen)
    assert first == "/v1/jobs?state=queued&state=running&label=team%3Aa+b&limit=2"
    assert second == f"{first}&cursor=c%261"


def test_nobody_listening_is_told_with_the_way_out() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url, retries=QUICK) as client, pytest.raises(Unreachable, match="raydml serve") as caught:
            client.collections["a"].upsert([1], [[1.0]])
    assert not caught.value.data["sent"] and "nothing was done" in str(caught.value)


@pytest.mark.parametrize("status", [200, 502])
def test_an_answer_of_something_else_than_our_server_is_named(ask: Ask, status: int) -> None:
    client, _ = ask(*[answer(status, b"<html>the gateway</html>", "text/html")] * 9)
    with pytest.raises(ServerFailed, match="gateway" if status == 502 else "text/html"):
        client.collections.get("a")


def test_the_key_goes_with_every_request_and_is_shown_nowhere(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    client, script = ask(problem(401, "unauthorised"), key="raydml_secret")
    with pytest.raises(AccessDenied) as caught:
        client.collections.get("a")
    assert script.seen[0].headers["authorization"] == "Bearer raydml_secret"
    assert "secret" not in repr(client.sender) + repr(caught.value) + repr(caught.value.data)
    monkeypatch.setenv("RAYDML_API_KEY", "raydml_other")
    client, script = ask(answer(200, {"status": "alive"}))
    assert client.alive() and script.seen[0].headers["authorization"] == "Bearer raydml_other"


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://host"}, {"url": "127.0.0.1:8080"}, {"url": "http://"}, {"url": "http://a:b@host"},
        {"url": "http://host:99999"}, {"key": "with space"}, {"key": "line\nend"}, {"timeout": 0}, {"retries": -1},
        {"url": "http://host", "local": "folder"},
    ],
    ids=str,
)  # fmt: skip
def test_a_client_that_cannot_work_is_refused_when_it_is_made(wrong: dict[str, Any]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(SpecError) as caught:
            kind(**wrong)
        assert "line" not in str(caught.value) and "with space" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRefused), (401, AccessDenied), (403, AccessDenied), (404, NotFound), (405, RequestRefused),
        (409, Conflict), (410, NotFound), (412, Conflict), (413, RequestRefused), (415, RequestRefused),
        (421, RequestRefused), (422, RequestRefused), (429, ServerBusy), (500, ServerFailed), (503, ServerBusy),
        (507, ServerFailed), (302, ServerFailed), (599, ServerFailed),
    ],
)  # fmt: skip
def test_every_refusal_has_its_error_which_crosses_processes(status: int, kind: type[Exception]) -> None:
    document = {"type": "urn:raydml:problem:some-kind", "detail": "why", "request_id": "r", "errors": [{"path": "k"}]}
    request = Request("GET", "/v1/jobs")
    error = refusal(Answer(request, status, {"retry-after": "3"}, json.dumps(document).encode()))
    assert type(error) is kind and error.message.startswith("why")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.message, copy.data) == (type(error), error.message, error.data)
    facts = {"status": status, "problem": "some-kind", "request_id": "r", "errors": [{"path": "k"}], "retry_after": 3}
    assert error.data == facts
    plain = refusal(Answer(request, status, {}, b""))
    assert type(plain) is kind and str(status) in plain.message


def test_an_error_of_a_lost_answer_crosses_processes() -> None:
    cause = httpx2.ReadTimeout("slow", request=httpx2.Request("POST", "http://h/v1/jobs"))
    error = failure(Request("POST", "/v1/jobs"), cause)
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, Unreachable) and copy.data == {"url": "http://h/v1/jobs", "sent": True}


LOSSES = (httpx2.ReadError("x"), httpx2.ReadTimeout("x"), httpx2.RemoteProtocolError("x"), None)
UNSENT = (httpx2.ConnectError("x"), httpx2.ConnectTimeout("x"))


def told(status: int, kind: str = "application/problem+json", **headers: str) -> Answer:
    return Answer(Request("GET", "/"), status, {"content-type": kind, **headers}, b"")


@pytest.mark.parametrize(
    ("outcomes", "repeatable", "again"),
    [
        (LOSSES, True, True), (LOSSES, False, False), (UNSENT, False, True),
        ((httpx2.LocalProtocolError("x"),), True, False),
        ((told(429), told(503)), False, True), ((told(429, "text/html"), told(503, "text/html")), False, False),
        ((told(502), told(504), told(408)), True, True), ((told(502), told(504)), False, False),
        ((told(500), told(507), told(422), told(404), told(409)), True, False),
    ],
)  # fmt: skip
def test_a_request_is_sent_again_only_where_that_does_no_harm(outcomes: Any, repeatable: bool, again: bool) -> None:
    for outcome in outcomes:
        pause = Retries().pause(0, outcome, repeatable)
        assert (pause is not None) == again, outcome
        assert Retries().pause(4, outcome, repeatable) is None


def test_pauses_double_up_to_the_longest_and_half_of_each_is_chance() -> None:
    for chance in (0.0, 0.5, 1.0):
        retries = Retries(times=9, first=1, longest=8, chance=lambda chance=chance: chance)  # type: ignore[misc]
        pauses = [retries.pause(failures, None, True) for failures in range(6)]
        assert pauses == [full * (1 + chance) / 2 for full in (1, 2, 4, 8, 8, 8)]


def test_the_server_says_when_it_is_asked_again() -> None:
    retries = Retries(first=1, patience=60, chance=lambda: 0.5)
    assert retries.pause(0, told(429, **{"retry-after": "17"}), True) == 17.5
    assert retries.pause(0, told(429, **{"retry-after": "61"}), True) is None
    long_ago = told(429, **{"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})
    assert retries.pause(0, long_ago, True) == 0.5
    assert retries.pause(0, told(429, **{"retry-after": "soon"}), True) == 0.75


def test_a_mistake_in_the_call_is_told_at_once(ask: Ask) -> None:
    client, script = ask()
    with pytest.raises(SpecError, match="cannot be read"):
        client.jobs.create("no-such-file.yaml")
    with pytest.raises(DataError):
        client.collections["a"].search()
    assert not script.seen
