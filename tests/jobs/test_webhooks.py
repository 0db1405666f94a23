"""Webhooks: what is sent to whom, how it is signed, and where nothing is ever sent."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from raydml.errors import QuotaExceeded, RecordNotFound, SpecError
from raydml.jobs import posting
from raydml.jobs.database import Database
from raydml.jobs.ids import DEFAULT_PROJECT
from raydml.jobs.keys import create_key
from raydml.jobs.posting import Posted, Targets, check_address, check_target, is_public, post, signed_headers
from raydml.jobs.store import JobStore
from raydml.jobs.webhooks import (
    MOST,
    TRIES,
    Courier,
    Letter,
    deliveries,
    find_webhook,
    new_webhook,
    wait,
    webhooks,
)
from tests.jobs.conftest import Clock, a_spec

OPEN = Targets(frozenset({"127.0.0.1", "localhost"}), private=True)
SHUT = Targets(frozenset({"hooks.example"}))


class Receiver(HTTPServer):
    """Remembers what it is sent, and answers with the statuses that it is given, 200 once there are none."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.statuses: list[int] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in handler.headers.items()}
                self.got.append((handler.path, headers, body))
                handler.send_response(self.statuses.pop(0) if self.statuses else 200)
                handler.send_header("Location", "/elsewhere")
                handler.end_headers()

            def log_message(handler, *_: Any) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?x=1"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def verified(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """As a receiver of the Standard Webhooks specification checks it."""
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return headers["webhook-signature"] == f"v1,{expected}"


def test_the_signature_is_that_of_the_specifications_example() -> None:
    body = b'{"test": 2432232314}'
    headers = signed_headers("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_each_move_of_a_job_is_sent_signed_to_the_webhooks_of_its_project_alone(
    database: Database, store: JobStore, receiver: Receiver, clock: Clock
) -> None:
    with database.transaction() as session:
        mine = new_webhook(session, DEFAULT_PROJECT, receiver.url, OPEN, "local")
        other = create_key(session, ["admin"], "other")[0].project_id
        new_webhook(session, other, receiver.url.replace("hook", "theirs"), OPEN, "local")
    job = store.create(a_spec())
    store.ask("cancel", job.id)
    courier = Courier(database, OPEN, clock)
    assert (courier.tick(), courier.tick()) == (2, 0)
    assert [path for path, _, _ in receiver.got] == ["/hook?x=1"] * 2
    states = []
    for _, headers, body in receiver.got:
        assert verified(mine.secret, headers, body) and not verified(mine.secret, headers, body + b" ")
        assert headers["webhook-timestamp"] == str(clock.now // 1000)
        document = json.loads(body)
        assert (document["type"], document["data"]["job"]) == ("job.state", job.id)
        states.append((document["data"]["seq"], document["data"]["to"]))
    assert states == [(1, "queued"), (3, "cancelled")]
    assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 2


def test_a_message_of_a_transaction_that_is_undone_is_never_sent(
    database: Database, store: JobStore, clock: Clock
) -> None:
    with database.transaction() as session:
        new_webhook(session, DEFAULT_PROJECT, "http://127.0.0.1/", OPEN, "local")
    with pytest.raises(ZeroDivisionError), database.transaction():
        store.create(a_spec())
        raise ZeroDivisionError
    assert Courier(database, OPEN, clock).tick() == 0


def test_what_is_not_taken_is_sent_again_later_under_the_same_id_and_given_up_after_ten_tries(
    database: Database, store: JobStore, receiver: Receiver, clock: Clock
) -> None:
    with database.transaction() as session:
        hook = new_webhook(session, DEFAULT_PROJECT, receiver.url, OPEN, "local")
    store.create(a_spec())
    courier = Courier(database, OPEN, clock)
    receiver.statuses = [500, 302]
    assert (courier.tick(), courier.tick()) == (1, 0)
    clock.pass_seconds(wait(1) / 1000)
    assert (courier.tick(), courier.tick()) == (1, 0)
    clock.pass_seconds(wait(2) / 1000)
    assert courier.tick() == 1
    assert [path for path, _, _ in receiver.got] == ["/hook?x=1"] * 3  # the redirect was not followed
    assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 1
    with database.reading() as session:
        (sent,) = deliveries(session, hook.id, DEFAULT_PROJECT, 10)
        assert (sent.state, sent.tries, sent.status) == ("delivered", 3, 200)
        with pytest.raises(RecordNotFound):
            deliveries(session, hook.id, "prj_other", 10)

    store.create(a_spec())
    tried: list[Letter] = []

    def lost(letter: Letter, now: int) -> Posted:
        tried.append(letter)
        return Posted(None, "OSError: no route")

    failing = Courier(database, OPEN, clock, lost)
    for number in range(1, TRIES + 2):
        failing.tick()
        clock.pass_seconds(wait(number) / 1000)
    assert len(tried) == TRIES
    with database.reading() as session:
        assert deliveries(session, hook.id, DEFAULT_PROJECT, 1)[0].state == "failed"
    clock.pass_seconds(24 * 3600)
    failing.forget_sometimes()
    store.create(a_spec())
    clock.pass_seconds(8 * 24 * 3600)
    failing.forget_sometimes()
    with database.reading() as session:
        assert [row.state for row in deliveries(session, hook.id, DEFAULT_PROJECT, 9)] == ["waiting"]
    assert [wait(tries) // 1000 for tries in (1, 2, 3, 10, 20)] == [5, 10, 20, 2560, 21600]


def test_a_courier_that_dies_while_it_sends_leaves_the_message_to_another(
    database: Database, store: JobStore, receiver: Receiver, clock: Clock
) -> None:
    with database.transaction() as session:
        new_webhook(session, DEFAULT_PROJECT, receiver.url, OPEN, "local")
    store.create(a_spec())

    def dies(letter: Letter, now: int) -> Posted:
        raise SystemExit

    with pytest.raises(SystemExit):
        Courier(database, OPEN, clock, dies).tick()
    other = Courier(database, OPEN, clock)
    assert other.tick() == 0
    clock.pass_seconds(100)
    assert (other.tick(), len(receiver.got)) == (1, 1)


URLS = [
    "http://hooks.example/",
    "https://other.example/",
    "https://hooks.example.evil.example/",
    "https://user@hooks.example/",
    "https://hooks.example@evil.example/",
    "https://hooks.example/#x",
    "https://hooks.example:99999/",
    "https://hooks.example/a b",
    "https://hooks.example/\r\nX: y",
    "ftp://hooks.example/",
    "file:///etc/passwd",
    "//hooks.example/",
    "hooks.example",
    "https://[::1]/",
    "https://127.0.0.1/",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_the_operator_did_not_allow_is_refused(database: Database, url: str) -> None:
    with pytest.raises(SpecError), database.transaction() as session:
        new_webhook(session, DEFAULT_PROJECT, url, SHUT, "local")
    assert post(url, {}, b"", SHUT, lookup=lambda host, port: ["93.184.216.34"]).status is None


PRIVATE = [
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
    "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_an_allowed_name_that_leads_to_a_private_address_is_not_connected_to(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(SpecError, match="is not public"):
        check_address("hooks.example", ["93.184.216.34", address], SHUT)
    sent = post("https://hooks.example/", {}, b"", SHUT, lookup=lambda host, port: [address])
    assert sent.status is None and "is not public" in sent.problem


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(receiver: Receiver) -> None:
    """A name that changes its address after it was checked leads nowhere else: it is looked up once."""
    asked = []

    def changing(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["203.0.113.1"]

    targets = Targets(frozenset({"hooks.example"}), private=True)
    sent = post(f"http://hooks.example:{receiver.server_port}/", {}, b"{}", targets, lookup=changing)
    assert (sent.status, asked) == (200, ["hooks.example"])
    assert receiver.got[0][1]["host"] == f"hooks.example:{receiver.server_port}"
    assert is_public("93.184.216.34") and is_public("2606:4700::1111")
    assert check_target("https://hooks.example:8443/x?y=1", SHUT).port == 8443


def test_a_receiver_that_answers_a_byte_at_a_time_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes within the time that a read may take; all together would take for ever."""
    monkeypatch.setattr(posting, "SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):  # until it is hung up
                while True:
                    connection.sendall(b"H")
                    time.sleep(0.02)

        thread = threading.Thread(target=drip)
        thread.start()
        sent = post(f"http://127.0.0.1:{listening.getsockname()[1]}/", {}, b"{}", OPEN)
        thread.join()
    assert sent.status is None and sent.problem


def test_a_project_has_twenty_webhooks_and_sees_its_own(database: Database) -> None:
    with database.transaction() as session:
        other = create_key(session, ["admin"], "other")[0].project_id
        for _ in range(MOST):
            new_webhook(session, DEFAULT_PROJECT, "https://hooks.example/", SHUT, "local")
        with pytest.raises(QuotaExceeded, match="20 webhooks of 20"):
            new_webhook(session, DEFAULT_PROJECT, "https://hooks.example/", SHUT, "local")
        theirs = new_webhook(session, other, "https://hooks.example/", SHUT, "local")
        assert webhooks(session, other) == [theirs]
        with pytest.raises(RecordNotFound):
            find_webhook(session, theirs.id, DEFAULT_PROJECT)
