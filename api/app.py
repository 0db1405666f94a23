"""Settings in, the whole application out; nothing is made when this file is imported."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from api import (
    aliases,
    collections,
    health,
    identities,
    insights,
    metrics,
    openapi,
    points,
    problems,
    search,
    shadows,
    snapshots,
)
from api.envelope import Envelope
from api.service import Service
from api.settings import Settings
from raydml import __version__


def create_app(settings: Settings) -> FastAPI:
    """The application; its folder, `settings.home`, is made when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings.home.mkdir(parents=True, exist_ok=True)
        yield
        app.state.service.close()

    app = FastAPI(
        title="raydml",
        version=__version__,
        description="Durable collections of vectors, searched by the model that made them.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        generate_unique_id_function=openapi.operation_id,
        lifespan=lifespan,
    )
    app.state.service = Service(settings)
    app.openapi = partial(openapi.document, app)  # type: ignore[method-assign]
    app.include_router(search.direct)  # the first is found the fastest
    for part in (search, points, identities, insights, collections, shadows, snapshots, aliases, metrics, health):
        app.include_router(part.router)
    app.add_middleware(Envelope, settings=settings, requests=app.state.service.requests)
    problems.install(app)
    return app
