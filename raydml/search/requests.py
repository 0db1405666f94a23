"""A named request is done once: repeated, it gives the first answer; its name with other content is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

from raydml.errors import CollectionError
from raydml.search.changes import Change

Answer = TypeVar("Answer", bound=int)
KEPT = 100_000  # requests; the oldest are forgotten


def once(request: str | None, content: tuple[Any, ...], work: Callable[[Change], Answer]) -> Callable[[Change], Answer]:
    """The work, not repeated for a request of this name; `content` is everything that the request says."""
    if request is None:
        return work
    digest = hashlib.sha256()
    for part in content:
        digest.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())

    def named(change: Change) -> Answer:
        row = change.connection.execute("SELECT content, answer FROM requests WHERE name = ?", (request,)).fetchone()
        if row is not None:
            if row[0] != digest.hexdigest():
                raise CollectionError(f"the request {request!r} was made before with other content: give it a new name")
            earlier: Answer = json.loads(row[1])
            return earlier
        answer = work(change)
        change.connection.execute(
            "INSERT INTO requests (name, content, answer) VALUES (?, ?, ?)",
            (request, digest.hexdigest(), json.dumps(answer)),
        )
        change.connection.execute("DELETE FROM requests WHERE number <= last_insert_rowid() - ?", (KEPT,))
        return answer

    return named
