"""Settings in, the whole application out; nothing is made when this file is imported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from api import (
    aliases,
    artifacts,
    audit,
    collections,
    comparisons,
    datasets,
    health,
    identities,
    insights,
    job_parts,
    job_streams,
    job_verbs,
    jobs,
    keys,
    metrics,
    models,
    openapi,
    page,
    points,
    problems,
    schemas,
    search,
    shadows,
    snapshots,
    sweeps,
    webhooks,
)
from api.envelope import Envelope
from api.guard import Guard
from api.otlp import Sending
from api.service import Service
from api.settings import Settings
from raydml import __version__

# The first is found the fastest.
PARTS = (
    search, points, identities, insights, collections, shadows, snapshots, aliases, jobs, job_streams, job_verbs,
    job_parts, sweeps, comparisons, artifacts, datasets, models, webhooks, keys, schemas, audit, metrics, health, page,
)  # fmt: skip


def create_app(settings: Settings) -> FastAPI:
    """The application; its folder, `settings.home`, and its database are made when it starts."""
    service = Service(settings)
    sending = Sending(lambda: metrics.process_families(service))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.open()
        service.begin()
        sending.begin()
        yield
        await asyncio.to_thread(sending.close)
        await service.close()

    app = FastAPI(
        title="raydml",
        version=__version__,
        description="Jobs that train embedding models; durable collections of vectors, searched by these models.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        generate_unique_id_function=openapi.operation_id,
        lifespan=lifespan,
    )
    app.state.service = service
    app.openapi = partial(openapi.document, app)  # type: ignore[method-assign]
    for part in PARTS:
        app.include_router(part.router)
    app.add_middleware(search.Shortcut)
    app.add_middleware(Guard, service=service)
    app.add_middleware(Envelope, settings=settings, requests=service.requests)
    problems.install(app)
    return app
