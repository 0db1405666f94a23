"""Numbers that a real receiver of OTLP over HTTP decodes are those of /metrics."""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from api.exposition import Family, text
from api.otlp import Sending, wanted
from raydml.jobs.database import Database
from raydml.jobs.ids import DEFAULT_PROJECT
from raydml.jobs.store import JobStore
from tests.api.conftest import Connect, server
from tests.jobs.conftest import a_spec

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
Point = tuple[str, frozenset[tuple[str, str]]]  # name and attributes


class Receiver:
    """What came, in order: the decoded body of each request, and its headers."""

    def __init__(self, status: int) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.came = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                with receiver.came:
                    receiver.requests.append(ExportMetricsServiceRequest.FromString(body))
                    receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
                    receiver.paths.append(self.path)
                    receiver.came.notify_all()
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def until(self, holds: Callable[[], bool]) -> None:
        with self.came:
            assert self.came.wait_for(holds, 200), "it did not come to that"


@contextmanager
def receiver(status: int = 200) -> Iterator[Receiver]:
    found = Receiver(status)
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        thread.join()
        found.server.server_close()


def told(request: ExportMetricsServiceRequest) -> dict[Point, float]:
    """Values by name and attributes; of a histogram its count, its sum and, by `le`, how many lie within a bound."""
    values: dict[Point, float] = {}
    for metric in (one for each in request.resource_metrics for scope in each.scope_metrics for one in scope.metrics):
        for point in getattr(metric, metric.WhichOneof("data") or "").data_points:
            labels = frozenset((each.key, each.value.string_value) for each in point.attributes)
            if metric.HasField("histogram"):
                assert point.count == sum(point.bucket_counts) and not point.HasField("min")
                values[f"{metric.name}_count", labels] = point.count
                values[f"{metric.name}_sum", labels] = point.sum
                for place, bound in enumerate([*point.explicit_bounds, "+Inf"]):
                    within = labels | {("le", str(bound))}
                    values[f"{metric.name}_bucket", within] = sum(point.bucket_counts[: place + 1])
            else:
                values[metric.name, labels] = point.as_double if point.HasField("as_double") else point.as_int
    return values


def scraped(page: str) -> dict[Point, float]:
    """The same of Prometheus's text, without the process."""
    values = {}
    for name, labels, value in re.findall(r"^(raydml_\w+)(?:\{(.*)\})? (\S+)$", page, re.MULTILINE):
        pairs = frozenset(pair for pair in re.findall(r'(\w+)="([^"]*)"', labels) if pair[0] != "process")
        values[name, pairs] = float(value)
    return values


async def test_a_collector_is_told_what_a_scrape_is(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
        async with connect() as client:
            await client.put("/v1/collections/things", json={"dimension": 4})
            vectors = np.eye(4).tolist()
            points = {"ids": [1, 2, 3, 4], "vectors": vectors}
            assert (await client.post("/v1/collections/things/points", json=points)).status_code == 200
            body = {"vectors": vectors, "k": 2}
            assert (await client.post("/v1/collections/things/search", json=body)).status_code == 200
            page = scraped((await client.get("/metrics")).text)
        collector.until(lambda: len(collector.requests) == 1)  # the last word of a server that ends
        values = told(collector.requests[0])
    scrape = ("route", "/metrics")  # which was counted after it had been answered
    own = {point: value for point, value in page.items() if not point[0].startswith(("raydml_jobs", "raydml_job_"))}
    sent = {point: value for point, value in values.items() if scrape not in point[1]}
    assert sent == pytest.approx(own)
    assert sent["raydml_queries_total", frozenset()] == 4
    things = frozenset({("project", DEFAULT_PROJECT), ("collection", "things")})
    assert sent["raydml_collection_points", things] == 4
    assert collector.paths == ["/v1/metrics"] and collector.headers[0]["api-key"] == "secret"
    assert collector.headers[0]["content-encoding"] == "gzip"
    resource = collector.requests[0].resource_metrics[0].resource
    facts = {each.key: each.value.string_value for each in resource.attributes}
    assert facts["service.name"] == "raydml" and facts["deployment.environment"] == "test"
    assert facts["service.instance.id"]


async def test_numbers_are_sent_again_and_again_as_sums_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = [0]

    def families() -> list[Family]:
        counted[0] += 1
        return [
            Family("raydml_asked_total", "counter", "how often", [({}, counted[0])]),
            Family("raydml_depth", "gauge", "how deep", [({"queue": "a"}, 0.5)]),
            Family("raydml_nothing", "gauge", "without samples", []),
        ]

    with receiver() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/elsewhere")
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
        sending = Sending(families)
        sending.begin()
        collector.until(lambda: len(collector.requests) >= 3)
        sending.close()
    assert set(collector.paths) == {"/elsewhere"}, "the variable of one signal is the whole address"
    first, second = (each.resource_metrics[0].scope_metrics[0].metrics for each in collector.requests[:2])
    assert [metric.name for metric in first] == ["raydml_asked_total", "raydml_depth"]
    assert first[0].sum.is_monotonic and first[0].sum.aggregation_temporality == 2  # cumulative
    (before,), (after,) = first[0].sum.data_points, second[0].sum.data_points
    assert (before.as_int, after.as_int) == (1, 2)
    assert before.start_time_unix_nano == after.start_time_unix_nano <= before.time_unix_nano < after.time_unix_nano
    assert first[1].gauge.data_points[0].as_double == 0.5


async def test_a_collector_that_refuses_or_is_away_costs_nothing_but_a_line(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiver(400) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
        async with connect() as client:
            collector.until(lambda: len(collector.requests) >= 2)
            assert (await client.get("/livez")).status_code == 200
    async with connect() as client:  # nobody listens there any more
        assert (await client.get("/livez")).status_code == 200
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "soon")
    async with connect() as client:
        assert (await client.get("/livez")).status_code == 200


def test_each_process_of_a_server_sends_what_it_alone_knows_and_one_of_them_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database.at(tmp_path / "home")
    job = JobStore(database, tmp_path / "home").create(a_spec())
    JobStore(database, tmp_path / "home").ask("pause", job.id)
    database.close()
    with receiver() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "200")

        def instances() -> dict[str, dict[Point, float]]:
            return {instance(each): told(each) for each in collector.requests}

        with server(tmp_path / "home", "--workers", "2"):
            collector.until(lambda: len(instances()) == 3)
        (jobs,) = [values for values in instances().values() if ("raydml_jobs", state("paused")) in values]
    assert jobs["raydml_jobs", state("paused")] == 1 and jobs["raydml_jobs", state("running")] == 0
    names = [{name for name, _ in values} for values in instances().values()]
    assert sum("raydml_waiting" in each for each in names) == 2
    assert not any({"raydml_jobs", "raydml_waiting"} <= each for each in names)


def state(name: str) -> frozenset[tuple[str, str]]:
    return frozenset({("state", name)})


def instance(request: ExportMetricsServiceRequest) -> str:
    """Who sent it."""
    attributes = request.resource_metrics[0].resource.attributes
    return next(str(each.value.string_value) for each in attributes if each.key == "service.instance.id")


def test_nothing_is_sent_unless_an_endpoint_is_named_and_nobody_said_no(home: Path) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert wanted(endpoint) and wanted({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318/v1/metrics"})
    assert not wanted({}) and not wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": ""})
    assert not wanted(endpoint | {"OTEL_SDK_DISABLED": "true"})
    assert not wanted(endpoint | {"OTEL_METRICS_EXPORTER": "none"})


def test_text_has_every_bucket_of_a_histogram_and_escapes_labels() -> None:
    from api.exposition import Histogram

    family = Family("a", "histogram", "words", [({"b": 'c"d\\'}, Histogram((1.0, 2.0), (3, 0, 1), 7.5))])
    assert text([family]).splitlines()[2:] == [
        r'a_bucket{b="c\"d\\",le="1.0"} 3',
        r'a_bucket{b="c\"d\\",le="2.0"} 3',
        r'a_bucket{b="c\"d\\",le="+Inf"} 4',
        r'a_sum{b="c\"d\\"} 7.5',
        r'a_count{b="c\"d\\"} 4',
    ]
