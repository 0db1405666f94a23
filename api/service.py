"""What the requests of one process share: settings, open collections, the queue of searches, threads for the rest."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from api.settings import Settings
from api.tasks import Tasks


class Service:
    """Made with the application; threads start with the first request that needs them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tasks = Tasks(settings.max_waiting_tasks)

    def close(self) -> None:
        """Finish what was begun, and give back threads and files."""
        self.tasks.close()


def service_of(request: Request) -> Service:
    """The service of the application that answers the request."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(service_of)]
