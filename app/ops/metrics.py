"""What `/metrics` shows: the shared state, read from Redis at each scrape, and what this web process has answered.

Owns the registry of one web process and the hook that counts its answers. The names are in `app.ops.metric_names`, the
reading of Redis in `tasks.presence.statistics`. Any web process reports the same shared state.
"""

import collections
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar, cast, get_args

from flask import Blueprint, Response, current_app, g, request
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import RedisError

from app.http.errors import error_code
from app.http.openapi import Api
from app.http.places import Kind, Places
from app.ops.metric_names import LATENCY_BUCKETS_S, find_metric
from app.services import Services
from tasks.errors import LaneFull, StoreUnavailable
from tasks.jobs.job import TERMINAL
from tasks.lanes import Service
from tasks.presence.device_states import count_states, read_devices
from tasks.presence.diagnosis import Condition, diagnose
from tasks.presence.statistics import LaneStatistics, StoreStatistics, read_statistics
from tasks.presence.worker_registry import WorkerInfo

__all__ = ["Metrics", "blueprint", "install_metrics"]

blueprint = Blueprint("metrics", __name__)

_log = logging.getLogger(__name__)
_Family = TypeVar("_Family", CounterMetricFamily, GaugeMetricFamily)

_REFUSALS = frozenset({429, 503, 504})
_PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})
_CALL_METRICS = {
    "twolane_call_target_seconds": "call_target_ms",
    "twolane_call_p99_seconds": "call_p99_ms",
    "twolane_call_expected_seconds": "call_expected_ms",
}
_JOB_STATES = ("queued", "running", "paused", "cancelling")


class Metrics:
    """The metrics of one web process. Thread-safe.

    Args:
        live: where the shared state is read.
        places: of this process.
    """

    def __init__(self, live: Services, places: Places) -> None:
        self._live = live
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_SharedState(live))
        ProcessCollector(registry=self._registry)
        # Scrapes of one port reach now one process, now another: each has series of its own.
        self._process = str(os.getpid())
        requests = find_metric("twolane_http_requests_total")
        seconds = find_metric("twolane_http_request_seconds")
        refusals = find_metric("twolane_http_refusals_total")
        self._requests = Counter(requests.name, requests.description, requests.labels, registry=self._registry)
        self._refusals = Counter(refusals.name, refusals.description, refusals.labels, registry=self._registry)
        self._seconds = Histogram(
            seconds.name, seconds.description, seconds.labels, buckets=LATENCY_BUCKETS_S, registry=self._registry
        )
        # Found again by what tells them apart: looking a series up takes the library longer than counting.
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        held = find_metric("twolane_http_places_taken")
        gauge = Gauge(held.name, held.description, held.labels, registry=self._registry)
        for kind in Kind:
            gauge.labels(self._process, kind.name.lower()).set_function(partial(places.count, kind))

    def count(self, response: Response) -> Response:
        """Count one answer; an `after_request` hook."""
        # A path that is not ours, and a method, are untrusted text: they must not make new series.
        route = request.url_rule.rule if request.url_rule is not None else "unknown"
        method = request.method if request.url_rule is not None else "unknown"
        tenant = g.tenant.name if "tenant" in g else ""
        self.note(response, method, route, g.get("started_s", time.perf_counter()), tenant)
        return response

    def note(self, response: Response, method: str, route: str, started_s: float, tenant: str) -> None:
        """Count one answer to a tenant's request that began at `started_s` of `time.perf_counter()`."""
        status = response.status_code
        series = self._series.get((method, route, status))
        if series is None:
            counter = self._requests.labels(self._process, method, route, str(status))
            series = self._series[method, route, status] = counter, self._seconds.labels(self._process, route)
        series[0].inc()
        series[1].observe(time.perf_counter() - started_s)
        if status in _REFUSALS:
            code = error_code(response)
            self._refusals.labels(self._process, str(status), code).inc()
            # A probe is answered, not refused.
            if route not in _PROBES:
                self._live.activity.note_refusal(code, tenant)

    def count_refusal(self, response: Response) -> None:
        """Count a request that found no place."""
        status = str(response.status_code)
        self._requests.labels(self._process, "unknown", "unknown", status).inc()
        self._refusals.labels(self._process, status, LaneFull.code).inc()
        self._live.activity.note_refusal(LaneFull.code, "")

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


@blueprint.get("/metrics")
def show_metrics() -> Response:
    """Show all metrics in Prometheus' text format. They belong to the operator: with keys, an admin's is needed."""
    metrics = cast("Metrics", current_app.extensions["twolane-metrics"])
    return Response(metrics.render(), content_type=CONTENT_TYPE_LATEST)


def install_metrics(app: Api, metrics: Metrics) -> None:
    """Count the answers of this app and let the route find what to show.

    Call it before all else that has hooks: `after_request` runs backwards, and this one has to see the final answer.
    """
    app.extensions["twolane-metrics"] = metrics
    app.after_request(metrics.count)
    app.note_refusal = metrics.count_refusal


class _SharedState(Collector):
    """Reads Redis at every scrape."""

    def __init__(self, live: Services) -> None:
        self._live = live

    def collect(self) -> Iterator[Metric]:
        live = self._live
        cards = [card for name in live.settings.models if (card := live.catalog.find(name)) is not None]
        slugs = list(dict.fromkeys(card.slug for card in cards))
        try:
            reading = read_statistics(live.redis, slugs)
            ready = live.presence.ready_models()
            conditions = collections.Counter(diagnose(member) for member in live.fleet.members())
            devices = count_states(read_devices(live.redis))
        except (RedisError, StoreUnavailable) as error:
            _log.warning("a scrape found no store: %s", type(error).__name__)
            yield _gauge("twolane_store_up", {(): 0})
            return
        yield _gauge("twolane_store_up", {(): 1})
        yield from _describe_store(reading)
        yield _gauge("twolane_workers", {(name,): conditions[name] for name in get_args(Condition)})
        yield from _describe_workers(slugs, ready)
        yield _gauge("twolane_devices", {(state,): count for state, count in devices.items()})
        yield from _describe_lanes(reading.lanes, ready)


def _describe_store(reading: StoreStatistics) -> Iterator[Metric]:
    yield _gauge("twolane_store_memory_bytes", {(): reading.memory_bytes})
    yield _gauge("twolane_store_memory_limit_bytes", {(): reading.memory_limit_bytes})
    yield _gauge("twolane_store_evicts", {(): reading.evicts})
    yield _gauge("twolane_store_reserved_bytes", {(): reading.reserved_bytes})
    yield _gauge("twolane_jobs", {(state,): reading.jobs.get(state, 0) for state in _JOB_STATES})
    totals = reading.totals
    yield _count(
        "twolane_jobs_ended_total", {(state.value,): totals.get(f"jobs:{state}", 0) for state in sorted(TERMINAL)}
    )
    yield _count(
        "twolane_job_items_total", {(name,): totals.get(f"items:{name}", 0) for name in ("completed", "failed")}
    )
    yield _count("twolane_job_tokens_total", {(): totals.get("tokens", 0)})
    yield _gauge("twolane_webhooks_waiting", {(): reading.webhooks_waiting})
    yield _count(
        "twolane_cache_lookups_total", {(name,): reading.cache_lookups.get(name, 0) for name in ("hit", "miss")}
    )


def _describe_workers(slugs: Sequence[str], ready: Mapping[str, Sequence[WorkerInfo]]) -> Iterator[GaugeMetricFamily]:
    yield _gauge("twolane_workers_ready", {(slug,): len(ready.get(slug, ())) for slug in slugs})
    yield _gauge("twolane_workers_tokens_per_second", {(slug,): _speed(ready, slug) for slug in slugs})
    for name, field in _CALL_METRICS.items():
        yield _gauge(name, {(slug,): _slowest_s(ready, slug, field) for slug in slugs})


def _describe_lanes(
    lanes: Sequence[LaneStatistics], ready: Mapping[str, Sequence[WorkerInfo]]
) -> Iterator[GaugeMetricFamily]:
    yield _gauge("twolane_lane_waiting_requests", {_queue(lane): lane.requests for lane in lanes})
    yield _gauge("twolane_lane_waiting_tokens", {_queue(lane): lane.tokens for lane in lanes})
    drains = {_queue(lane): _drain_s(lane.tokens, _speed(ready, lane.lane.model)) for lane in lanes}
    yield _gauge("twolane_lane_drain_seconds", drains)
    bulk = [lane for lane in lanes if lane.lane.service is Service.BULK]
    yield _gauge("twolane_lane_jobs_ready", {_queue(lane): lane.jobs_ready for lane in bulk})
    chunks = {(*_queue(lane), "ticket"): lane.tickets for lane in bulk}
    chunks |= {(*_queue(lane), "claimed"): lane.claims for lane in bulk}
    yield _gauge("twolane_lane_chunks_in_flight", chunks)
    yield _gauge("twolane_lane_stalled_seconds", {_queue(lane): lane.stalled_s for lane in bulk})
    yield _gauge("twolane_lane_messages", {_queue(lane): lane.messages for lane in bulk})


def _queue(lane: LaneStatistics) -> tuple[str, ...]:
    return (lane.lane.queue,)


def _speed(ready: Mapping[str, Sequence[WorkerInfo]], slug: str) -> float:
    return sum(facts.tokens_per_s for facts in ready.get(slug, ()))


def _slowest_s(ready: Mapping[str, Sequence[WorkerInfo]], slug: str, field: str) -> float:
    return max((float(getattr(info, field)) / 1000 for info in ready.get(slug, ())), default=0.0)


def _drain_s(tokens: int, tokens_per_s: float) -> float:
    """Return when the lane is empty at this speed; infinite while nobody works on what waits."""
    if tokens == 0:
        return 0.0
    return tokens / tokens_per_s if tokens_per_s > 0 else float("inf")


def _count(name: str, values: Mapping[tuple[str, ...], float]) -> CounterMetricFamily:
    return _fill(CounterMetricFamily, name, values)


def _gauge(name: str, values: Mapping[tuple[str, ...], float]) -> GaugeMetricFamily:
    return _fill(GaugeMetricFamily, name, values)


def _fill(kind: type[_Family], name: str, values: Mapping[tuple[str, ...], float]) -> _Family:
    metric = find_metric(name)
    family = kind(metric.name, metric.description, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
