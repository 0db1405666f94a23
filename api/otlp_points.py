"""Families of numbers -> OpenTelemetry's data points, under the names that they have at /metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from api import exposition
from api.exposition import Family
from raydml import __version__

SINCE_THE_START = AggregationTemporality.CUMULATIVE


def metrics_data(families: Iterable[Family], resource: Mapping[str, str], began: int, now: int) -> MetricsData:
    """What an exporter sends. Times are nanoseconds since 1970: `began` is when counting did."""
    metrics = [_metric(family, began, now) for family in families if family.samples]
    scope = ScopeMetrics(InstrumentationScope("raydml", __version__), metrics, "")
    return MetricsData([ResourceMetrics(Resource(dict(resource)), [scope], "")])


def _metric(family: Family, began: int, now: int) -> Metric:
    unit = "s" if family.name.endswith("_seconds") else "1"
    return Metric(family.name, family.words, unit, _data(family, began, now))


def _data(family: Family, began: int, now: int) -> Sum | Gauge | Histogram:
    numbers: list[NumberDataPoint] = []
    histograms: list[HistogramDataPoint] = []
    for labels, value in family.samples:
        attributes = {name: str(text) for name, text in labels.items()}
        if isinstance(value, exposition.Histogram):
            histograms.append(_histogram(attributes, value, began, now))
        else:
            numbers.append(NumberDataPoint(attributes, began, now, value))
    if family.kind == "histogram":
        return Histogram(histograms, SINCE_THE_START)
    return Sum(numbers, SINCE_THE_START, is_monotonic=True) if family.kind == "counter" else Gauge(numbers)


def _histogram(attributes: dict[str, str], value: exposition.Histogram, began: int, now: int) -> HistogramDataPoint:
    unknown: Any = None  # of the smallest and the largest value, which OTLP lets one leave out
    count = sum(value.counts)
    return HistogramDataPoint(
        attributes, began, now, count, value.sum, value.counts, value.bounds, min=unknown, max=unknown
    )
