"""Secrets that are sent over the wire: made of 32 random bytes, shown once, stored as SHA-256, kept out of logs.

An API key reads `raydml_PREFIX_SECRET`: the prefix finds its row and may be shown, the secret is 256 random bits, for
which one SHA-256 is as good as a slow hash: nobody can try them all.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Any

PREFIX_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_TOKEN = re.compile(r"raydml_([a-z2-9]{10})_([A-Za-z0-9_-]{43})")
_SECRETS = re.compile(r"(raydml_[a-z2-9]{10}_|whsec_)[A-Za-z0-9_+/=-]{20,}")
_BEARER = re.compile(r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]+")
_HIDDEN_NAMES = frozenset({"authorization", "cookie", "password", "secret", "token", "api_key"})
HIDDEN = "***"


def new_token() -> tuple[str, str]:
    """(token, its prefix)."""
    prefix = "".join(secrets.choice(PREFIX_ALPHABET) for _ in range(10))
    return f"raydml_{prefix}_{secrets.token_urlsafe(32)}", prefix


def prefix_of(token: str) -> str | None:
    """The prefix of what looks like a key, None for anything else."""
    found = _TOKEN.fullmatch(token)
    return found[1] if found else None


def hashed(token: str) -> str:
    """SHA-256 of the token, in hexadecimal: what is stored of it."""
    return hashlib.sha256(token.encode()).hexdigest()


def matches(token: str, stored: str) -> bool:
    """Whether the token is the one whose hash is stored; takes the same time wherever they differ."""
    return hmac.compare_digest(hashed(token), stored)


def without_secrets(value: Any) -> Any:
    """The value as logs may show it: keys and secrets blotted out in texts, and whole where a name says what they are.

    Control characters are escaped, so that no text of a client's begins a line of its own.
    """
    if isinstance(value, str):
        shown = value
        if "raydml_" in shown or "whsec_" in shown:  # seldom, and quicker to see than by the expressions
            shown = _SECRETS.sub(rf"\1{HIDDEN}", shown)
        if "bearer" in shown.lower():
            shown = _BEARER.sub(rf"\1{HIDDEN}", shown)
        return shown if shown.isprintable() else "".join(map(_escaped, shown))
    if isinstance(value, bytes):
        return without_secrets(value.decode(errors="backslashreplace"))
    if isinstance(value, dict):
        return {
            without_secrets(name): HIDDEN if str(name).lower() in _HIDDEN_NAMES else without_secrets(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return value


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
