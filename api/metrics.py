"""/metrics: what this process has answered and how fast, what waits, its open collections, and the jobs of all.

In Prometheus's text format. With several workers, each scrape meets one of them: `process` says which; jobs and the
supervisor are everybody's, and bear no process.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from api.exposition import Family, Histogram, Labels, Samples, text
from api.job_metrics import job_families
from api.openapi import refusals
from api.service import Service, ServiceDep
from raydml.search import Collection

router = APIRouter(tags=["health"])
TYPE = "text/plain; version=0.0.4"
Facts = tuple[Labels, dict[str, float | None]]


@router.get("/metrics", response_class=PlainTextResponse, responses=refusals(429))
async def metrics(service: ServiceDep) -> PlainTextResponse:
    """Requests, latencies, queues, collections and the recall of their approximate searches; jobs at work."""
    held = await service.tasks.run(lambda: list(_collections(service)))
    jobs = await service.tasks.run(lambda: job_families(service.database))
    own = [each.bearing({"process": os.getpid()}) for each in (*_requests(service), *_queues(service), *held)]
    return PlainTextResponse(text([*own, *jobs]), media_type=TYPE)


def process_families(service: Service) -> list[Family]:
    """What this process alone knows; blocks while collections are looked at."""
    return [*_requests(service), *_queues(service), *_collections(service)]


def facts_of(project: str, collection: Collection) -> Facts:
    """A collection's project and name, and its numbers."""
    stats = collection.stats()
    unsealed = sum(part["rows"] for part in stats["parts"] if part.get("unsealed"))
    numbers = {"points": stats["points"], "unsealed_rows": unsealed, "segments": len(stats["parts"]) - 1}
    labels: Labels = {"project": project, "collection": collection.path.name}
    return labels, numbers | {f"search_{name}": value for name, value in stats["recall"].items()}


def _requests(service: Service) -> Iterator[Family]:
    counted = service.requests.copy()
    names = ("method", "route", "status")
    pairs = sorted(counted.answered.items())
    answered: Samples = [(dict(zip(names, values, strict=True)), count) for values, count in pairs]
    yield Family("raydml_requests_total", "counter", "answers", answered)
    took: Samples = [
        ({"route": route}, Histogram(counted.BOUNDS, tuple(within), counted.seconds[route]))
        for route, within in sorted(counted.buckets.items())
    ]
    yield Family("raydml_request_seconds", "histogram", "from a request's head to the end of its answer", took)


def _queues(service: Service) -> Iterator[Family]:
    searches = service.searches
    yield Family("raydml_queries_total", "counter", "queries searched", [({}, searches.queries)])
    yield Family("raydml_search_calls_total", "counter", "calls that they shared", [({}, searches.calls)])
    threads = {"tasks": service.tasks, "analyses": service.analyses, "embeddings": service.embedding}
    waiting: Samples = [({"queue": name}, tasks.waiting) for name, tasks in threads.items()]
    waiting.append(({"queue": "queries"}, searches.waiting))
    yield Family("raydml_waiting", "gauge", "what waits or runs now; beyond a limit requests are 429", waiting)


def _collections(service: Service) -> Iterator[Family]:
    families: dict[str, Samples] = defaultdict(list)
    for labels, numbers in (facts_of(*each) for each in service.opened()):
        for kind, value in numbers.items():
            if value is not None:
                families[kind].append((labels, value))
    for kind, samples in families.items():
        yield Family(f"raydml_collection_{kind}", "gauge", _HELP[kind], samples)


_HELP = {
    "points": "points of an open collection",
    "unsealed_rows": "rows that no segment holds yet",
    "segments": "immutable files of vectors",
    "search_queries": "queries that an index answered",
    "search_sampled": "of these, searched exactly too",
    "search_recall": "of the exact hits, the share that the index found",
    "search_low": "lower bound of the recall's 95 % Wilson interval",
    "search_high": "upper bound of the recall's 95 % Wilson interval",
}
