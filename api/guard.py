"""What stands before every route: who asks, whether they may, how often; and behind it, the audit log."""

from __future__ import annotations

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.access import check_scope
from api.problems import of, printable
from api.scopes import is_public, is_question
from api.service import Service
from raydml.jobs.audit import Deed
from raydml.jobs.callers import Caller


class Guard:
    """The middleware within the envelope."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http" or is_public(scope["path"]):
            await self.app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        caller = await self.service.access.admit(method, path, Headers(scope=scope))
        scope["caller"] = caller
        if caller.key is None:
            await self.app(scope, receive, send)
            return
        structlog.contextvars.bind_contextvars(caller=caller.key)
        try:
            check_scope(caller, method, path)
            if is_question(method, path):
                await self.app(scope, receive, send)
            else:
                await self._audited(caller, scope, receive, send)
        except Exception as error:  # the envelope answers it
            status = of(error).status_code
            if status == 403 or not is_question(method, path):
                await self.service.auditor.write(_deed(caller, scope, status))
            raise

    async def _audited(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """What was done stands in the audit log before the client is told that it was."""

        async def send_when_written(message: Message) -> None:
            if message["type"] == "http.response.start":
                await self.service.auditor.write(_deed(caller, scope, message["status"]))
            await send(message)

        await self.app(scope, receive, send_when_written)


def _deed(caller: Caller, scope: Scope, status: int) -> Deed:
    client = scope.get("client")
    return Deed(
        caller, scope["method"], printable(scope["path"]), status, scope["request_id"], client[0] if client else ""
    )
