"""The numbers of /metrics, sent to an OpenTelemetry collector every so often: OTLP over HTTP, by OTEL_... variables.

Nothing is sent unless the environment names an endpoint. Each process sends what it alone knows, under an identity of
its own (`service.instance.id`); jobs are sent by the process that supervises them, once for all.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import structlog

from api.exposition import Family
from raydml import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData

log = structlog.get_logger()
ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
INTERVAL = "60000"  # milliseconds, as the specification says
_PATIENCE = 2.0  # seconds for the last sending, when a server ends


class Exporter(Protocol):
    """OTLPMetricExporter, which reads the variables for endpoint, headers, timeout, compression and certificates."""

    def export(self, metrics_data: MetricsData) -> object: ...
    def shutdown(self) -> None: ...


class Sending:
    """A thread that sends what `families` gives; a collector that is away costs a line in the log, and nothing else."""

    def __init__(self, families: Callable[[], list[Family]]) -> None:
        self._families = families
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start, where the environment wants it and the extra `otel` is installed."""
        if not wanted(os.environ):
            return
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

            seconds = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") or INTERVAL) / 1000
            arguments = OTLPMetricExporter(), seconds, identity()
        except (ImportError, ValueError) as reason:  # what the environment says is no reason not to serve
            log.warning("metrics_not_sent", reason=str(reason), help="pip install 'raydml[otel]'; look at OTEL_...")
            return
        self._thread = threading.Thread(target=self._send, args=arguments, name="otlp", daemon=True)
        self._thread.start()

    def _send(self, exporter: Exporter, seconds: float, resource: Mapping[str, str]) -> None:
        from api.otlp_points import metrics_data

        began, last = time.time_ns(), False
        while not last:
            last = self._stop.wait(seconds)
            try:
                if families := self._families():
                    exporter.export(metrics_data(families, resource, began, time.time_ns()))
            except Exception:
                log.exception("metrics_not_sent")
        exporter.shutdown()

    def close(self) -> None:
        """Send once more, and end; a collector that is away is not waited for."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether an endpoint is named and nobody switched this off."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    sent = environment.get("OTEL_METRICS_EXPORTER", "otlp") == "otlp"
    return sent and not off and any(environment.get(name) for name in ENDPOINTS)


def identity() -> dict[str, str]:
    """Who sends; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say more, or otherwise."""
    from opentelemetry.sdk.resources import OTELResourceDetector

    own = {"service.name": "raydml", "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
    return own | {name: str(value) for name, value in OTELResourceDetector().detect().attributes.items()}
