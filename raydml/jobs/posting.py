"""A URL, a body and a secret in; the receiver's status out: signed, to allowed hosts alone, following nothing.

Signed as the Standard Webhooks specification (1.0.0) says: HMAC-SHA256 over `id.timestamp.body`, in base64. The
address that was looked up and checked is the one that is connected to, so that a name that changes its address between
the two leads nowhere else.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import ipaddress
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from raydml.errors import SpecError

SECONDS = 10.0  # for a receiver to answer, from the connection to the last header
SECRET = "whsec_"
_PORTS = {"https": 443, "http": 80}

Lookup = Callable[[str, int], Sequence[str]]  # host, port -> addresses


@dataclass(frozen=True)
class Targets:
    """Where webhooks may go, by the operator's settings."""

    hosts: frozenset[str]  # names, as they stand in URLs
    private: bool = False  # also addresses of this machine and its network, and without TLS


@dataclass(frozen=True)
class Posted:
    """What became of one try: the receiver's status, or why there is none."""

    status: int | None
    problem: str = ""

    @property
    def delivered(self) -> bool:
        """Whether the receiver took it."""
        return self.status is not None and 200 <= self.status < 300


def new_secret() -> str:
    """32 random bytes, in the form of the specification."""
    return SECRET + base64.b64encode(secrets.token_bytes(32)).decode()


def signed_headers(secret: str, identity: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers by which a receiver knows sender, time (seconds since the epoch) and body."""
    content = f"{identity}.{timestamp}.".encode() + body
    digest = hmac.new(base64.b64decode(secret.removeprefix(SECRET)), content, hashlib.sha256).digest()
    return {
        "webhook-id": identity,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def check_target(url: str, targets: Targets) -> SplitResult:
    """The URL in its parts. Raises SpecError where the operator's settings do not allow it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SpecError(f"{url[:200]!r} is no URL: {error}") from error
    schemes = ("https", "http") if targets.private else ("https",)
    if parts.scheme not in schemes or not parts.hostname or parts.username is not None or parts.fragment:
        raise SpecError(f"{url[:200]!r}: a webhook's URL is {' or '.join(schemes)}://HOST/PATH, without user and #")
    if not url.isascii() or not url.isprintable() or " " in url or port == 0:
        raise SpecError(f"{url[:200]!r}: a URL has printable ASCII characters alone, and no blanks")
    if parts.hostname not in targets.hosts:
        raise SpecError(
            f"{parts.hostname[:200]!r} is none of the hosts that webhooks may go to: ask the server's operator to add "
            f"it (RAYDML_WEBHOOK_HOSTS)"
        )
    return parts


def addresses(host: str, port: int) -> Sequence[str]:
    """What the system's resolver says."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def check_address(host: str, found: Sequence[str], targets: Targets) -> str:
    """The first address. Raises SpecError where any of them is this machine's, its network's or nobody's."""
    if not found:
        raise SpecError(f"{host} has no address")
    wrong = [address for address in found if not targets.private and not is_public(address)]
    if wrong:
        raise SpecError(f"{host} has the address {wrong[0]}, which is not public: webhooks do not go there")
    return found[0]


def is_public(address: str) -> bool:
    """Whether the address belongs to the open internet, also where it wraps one of IPv4."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if inner is not None and not is_public(str(inner)):
            return False
        if parsed in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            return is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
    return parsed.is_global and not parsed.is_multicast


def post(url: str, headers: Mapping[str, str], body: bytes, targets: Targets, lookup: Lookup = addresses) -> Posted:
    """Send the body once. Nothing is raised: what went wrong is told."""
    try:
        parts = check_target(url, targets)
        host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
        address = check_address(host, lookup(host, port), targets)
        return Posted(_send(parts, address, port, headers, body))
    except (SpecError, OSError, http.client.HTTPException) as error:
        return Posted(None, f"{type(error).__name__}: {str(error)[:200]}")


def _send(parts: SplitResult, address: str, port: int, headers: Mapping[str, str], body: bytes) -> int:
    connection = http.client.HTTPConnection(str(parts.hostname), port, timeout=SECONDS)
    stream: socket.socket = socket.create_connection((address, port), timeout=SECONDS)
    same = stream.dup()
    hang_up = threading.Timer(SECONDS, _hang_up, [same])  # as each byte that drips in buys a receiver more time
    try:
        hang_up.start()
        if parts.scheme == "https":
            stream = ssl.create_default_context().wrap_socket(stream, server_hostname=parts.hostname)
        connection.sock = stream
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(
            "POST",
            path,
            body,
            {"Host": parts.netloc, "Content-Type": "application/json", "Connection": "close", **headers},
        )
        return connection.getresponse().status  # its body is nobody's business
    finally:
        hang_up.cancel()
        same.close()
        stream.close()


def _hang_up(stream: socket.socket) -> None:
    with suppress(OSError):  # closed already
        stream.shutdown(socket.SHUT_RDWR)
