"""An awaited client that is called as one that blocks, so that a test is written once for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any

from raydml.client.resource import Resource


class Awaited:
    """An awaited client that is called as one that blocks, so that a test is written once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, thing: Any) -> None:
        self._loop, self._thing = loop, thing

    def __getattr__(self, name: str) -> Any:
        return self._blocking(getattr(self._thing, name))

    def __getitem__(self, name: str) -> Any:
        return self._blocking(self._thing[name])

    def _blocking(self, value: Any) -> Any:
        if isinstance(value, Coroutine):
            return self._blocking(self._loop.run_until_complete(value))
        if isinstance(value, AsyncGenerator):
            return self._items(value)
        if callable(value):
            return lambda *arguments, **named: self._blocking(value(*arguments, **named))
        return Awaited(self._loop, value) if isinstance(value, Resource) else value

    def _items(self, items: AsyncGenerator[Any]) -> Generator[Any]:
        try:
            while (item := self._loop.run_until_complete(anext(items, self))) is not self:
                yield self._blocking(item)
        finally:
            self._loop.run_until_complete(items.aclose())
