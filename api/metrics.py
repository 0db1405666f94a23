"""/metrics: what this process has answered and how fast, what waits, its open collections, and the jobs of all.

In Prometheus's text format. With several workers, each scrape meets one of them: `process` says which; jobs and the
supervisor are everybody's, and bear no process.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from api.exposition import Labels, Samples, family, line
from api.job_metrics import job_lines
from api.openapi import refusals
from api.service import Service, ServiceDep
from raydml.search import Collection

router = APIRouter(tags=["health"])
TYPE = "text/plain; version=0.0.4"
Facts = tuple[Labels, dict[str, float | None]]


@router.get("/metrics", response_class=PlainTextResponse, responses=refusals(429))
async def metrics(service: ServiceDep) -> PlainTextResponse:
    """Requests, latencies, queues, collections and the recall of their approximate searches; jobs at work."""
    found = await service.tasks.run(lambda: [facts_of(*each) for each in service.opened()])
    jobs = await service.tasks.run(lambda: job_lines(service.database))
    lines = [*_requests(service), *_queues(service), *_collections(found), *jobs]
    return PlainTextResponse("\n".join(lines) + "\n", media_type=TYPE)


def facts_of(project: str, collection: Collection) -> Facts:
    """A collection's project and name, and its numbers."""
    stats = collection.stats()
    unsealed = sum(part["rows"] for part in stats["parts"] if part.get("unsealed"))
    numbers = {"points": stats["points"], "unsealed_rows": unsealed, "segments": len(stats["parts"]) - 1}
    labels: Labels = {"project": project, "collection": collection.path.name}
    return labels, numbers | {f"search_{name}": value for name, value in stats["recall"].items()}


def _requests(service: Service) -> Iterator[str]:
    counted = service.requests
    names = ("method", "route", "status")
    pairs = sorted(counted.answered.items())
    answered: Samples = [(dict(zip(names, values, strict=True)), count) for values, count in pairs]
    yield from _family("raydml_requests_total", "counter", "answers", answered)
    yield "# HELP raydml_request_seconds from a request's head to the end of its answer"
    yield "# TYPE raydml_request_seconds histogram"
    for route, within in sorted(counted.buckets.items()):
        for bound, count in zip((*counted.BOUNDS, "+Inf"), accumulate(within), strict=True):
            yield _line("raydml_request_seconds_bucket", {"route": route, "le": bound}, count)
        yield _line("raydml_request_seconds_sum", {"route": route}, counted.seconds[route])
        yield _line("raydml_request_seconds_count", {"route": route}, sum(within))


def _queues(service: Service) -> Iterator[str]:
    searches = service.searches
    yield from _family("raydml_queries_total", "counter", "queries searched", [({}, searches.queries)])
    yield from _family("raydml_search_calls_total", "counter", "calls that they shared", [({}, searches.calls)])
    threads = {"tasks": service.tasks, "analyses": service.analyses, "embeddings": service.embedding}
    waiting: Samples = [({"queue": name}, tasks.waiting) for name, tasks in threads.items()]
    waiting.append(({"queue": "queries"}, searches.waiting))
    yield from _family("raydml_waiting", "gauge", "what waits or runs now; beyond a limit requests are 429", waiting)


def _collections(found: list[Facts]) -> Iterator[str]:
    families: dict[str, Samples] = defaultdict(list)
    for labels, numbers in found:
        for kind, value in numbers.items():
            if value is not None:
                families[kind].append((labels, value))
    for kind, samples in families.items():
        yield from _family(f"raydml_collection_{kind}", "gauge", _HELP[kind], samples)


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


def _family(name: str, kind: str, words: str, samples: Samples) -> Iterator[str]:
    return family(name, kind, words, [(_own(labels), value) for labels, value in samples])


def _line(name: str, labels: Labels, value: float) -> str:
    return line(name, _own(labels), value)


def _own(labels: Labels) -> Labels:
    return {**labels, "process": os.getpid()}
