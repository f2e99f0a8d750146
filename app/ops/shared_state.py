"""The state of the whole installation as Prometheus' families: read from Redis at every scrape.

Owns the collector. The reading is `tasks.presence`'s, the names are in `app.ops.metric_names`. Any web process says the
same: nothing here is of the process that is asked.
"""

import collections
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import RedisError

from app.http.places import Kind
from app.ops.metric_names import METRICS, find_metric
from app.services import Services
from tasks.errors import StoreUnavailable
from tasks.jobs.forecast import Backlog
from tasks.jobs.job import TERMINAL
from tasks.lanes import Service
from tasks.presence.counters import BUCKETS_S, MetricCounts, read_counts
from tasks.presence.device_states import count_states, read_devices
from tasks.presence.diagnosis import Condition, diagnose
from tasks.presence.fleet import FleetMember
from tasks.presence.model_orders import stable_name
from tasks.presence.model_states import ModelReport
from tasks.presence.statistics import LaneStatistics, StoreStatistics, read_statistics
from tasks.presence.web_processes import read_web_processes
from tasks.presence.worker_registry import WorkerInfo

__all__ = ["SharedState"]

_log = logging.getLogger(__name__)
_Family = TypeVar("_Family", CounterMetricFamily, GaugeMetricFamily)
_Values = Mapping[tuple[str, ...], float]

_CALL_METRICS = {
    "twolane_call_target_seconds": "call_target_ms",
    "twolane_call_p99_seconds": "call_p99_ms",
    "twolane_call_expected_seconds": "call_expected_ms",
}
_WORKER_METRICS = {
    "twolane_worker_busy_ratio": "busy",
    "twolane_worker_tokens_per_second": "tokens_per_s",
    "twolane_worker_memory_bytes": "memory_bytes",
    "twolane_worker_device_memory_bytes": "device_memory_bytes",
    "twolane_worker_device_memory_limit_bytes": "device_memory_total_bytes",
}
_JOB_STATES = ("queued", "running", "paused", "cancelling")
# While no worker was ever seen: of a CPU with a small model. A number, since scalers read an infinite one as none.
_UNKNOWN_TOKENS_PER_S = 1000.0
# A key more is counted among the others, so that a series for each cannot fill Prometheus.
_MOST_KEYS = 200
_OTHERS = ("other", "")
_NO_BACKLOG = Backlog()


class SharedState(Collector):
    """Reads Redis at every scrape."""

    def __init__(self, live: Services) -> None:
        self._live = live

    def collect(self) -> Iterator[Metric]:
        """Yield all families that the installation shares; only that there is no Redis, where it does not answer."""
        try:
            families = list(self._read())
        except (RedisError, StoreUnavailable) as error:
            _log.warning("a scrape found no store: %s", type(error).__name__)
            families = [_gauge("twolane_store_up", {(): 0})]
        yield from families

    def _read(self) -> Iterator[Metric]:
        live = self._live
        live.counters.flush()
        cards = [card for name in live.settings.models if (card := live.catalog.find(name)) is not None]
        slugs = list(dict.fromkeys(card.slug for card in cards))
        reading = read_statistics(live.redis, slugs)
        ready, members = live.presence.ready_models(), live.fleet.members()
        devices = count_states(read_devices(live.redis))
        yield _gauge("twolane_store_up", {(): 1})
        yield from _describe_store(reading)
        yield from _describe_ready(slugs, ready)
        yield _gauge("twolane_devices", {(state,): count for state, count in devices.items()})
        yield _gauge("twolane_workers_expected", {(): live.settings.workers_expected or sum(devices.values())})
        yield from _describe_fleet(members)
        yield _gauge("twolane_model_load_seconds", _read_load_times(live.reports.all()))
        yield from _describe_lanes(reading.lanes)
        yield _gauge("twolane_lane_drain_seconds", self._drains(reading.lanes, ready, members))
        yield from _describe_web(read_web_processes(live.redis))
        yield from _describe_counts(read_counts(live.redis))

    def _drains(
        self, lanes: Sequence[LaneStatistics], ready: Mapping[str, Sequence[WorkerInfo]], members: Sequence[FleetMember]
    ) -> _Values:
        """Return when each lane is empty; where nobody works on it, by the speed that its model had of late."""
        drains = {}
        for lane in lanes:
            model, bulk = lane.lane.model, lane.lane.service is Service.BULK
            backlog = self._live.forecasts.backlog(lane.lane) if bulk else _NO_BACKLOG
            speed = backlog.tokens_per_s or _speed(ready, model) or _known_speed(members, model)
            drains[_lane(lane)] = (backlog.tokens if bulk else lane.tokens) / speed
        return drains


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


def _describe_ready(slugs: Sequence[str], ready: Mapping[str, Sequence[WorkerInfo]]) -> Iterator[Metric]:
    yield _gauge("twolane_workers_ready", {(slug,): len(ready.get(slug, ())) for slug in slugs})
    yield _gauge("twolane_workers_tokens_per_second", {(slug,): _speed(ready, slug) for slug in slugs})
    for name, field in _CALL_METRICS.items():
        yield _gauge(name, {(slug,): _slowest_s(ready, slug, field) for slug in slugs})


def _describe_fleet(members: Sequence[FleetMember]) -> Iterator[Metric]:
    conditions = collections.Counter(map(diagnose, members))
    yield _gauge("twolane_workers", {(name,): conditions[name] for name in get_args(Condition)})
    # Of two launchers on one machine workers may share a name: then the newer one is shown.
    newest = {stable_name(one.card.worker_id): one for one in sorted(members, key=lambda one: one.card.started_at)}
    here = {name: one for name, one in newest.items() if diagnose(one) not in {"ended", "stopped"}}
    yield _gauge("twolane_worker_silent_seconds", {(name, one.card.device): one.silent_s for name, one in here.items()})
    for metric, field in _WORKER_METRICS.items():
        yield _gauge(metric, {(name,): float(getattr(one.card, field)) for name, one in here.items()})


def _describe_lanes(lanes: Sequence[LaneStatistics]) -> Iterator[Metric]:
    yield _gauge("twolane_lane_waiting_requests", {_lane(lane): lane.requests for lane in lanes})
    yield _gauge("twolane_lane_waiting_tokens", {_lane(lane): lane.tokens for lane in lanes})
    bulk = [lane for lane in lanes if lane.lane.service is Service.BULK]
    yield _gauge("twolane_lane_jobs_ready", {_lane(lane): lane.jobs_ready for lane in bulk})
    chunks = {(*_lane(lane), "ticket"): lane.tickets for lane in bulk}
    chunks |= {(*_lane(lane), "claimed"): lane.claims for lane in bulk}
    yield _gauge("twolane_lane_chunks_in_flight", chunks)
    yield _gauge("twolane_lane_stalled_seconds", {_lane(lane): lane.stalled_s for lane in bulk})
    yield _gauge("twolane_lane_messages", {_lane(lane): lane.messages for lane in bulk})


def _describe_web(processes: Sequence[Mapping[str, int]]) -> Iterator[Metric]:
    yield _gauge("twolane_web_processes", {(): len(processes)})
    kinds = [kind.name.lower() for kind in Kind]
    yield _gauge(
        "twolane_http_places_taken",
        {(kind,): sum(process.get(kind, 0) for process in processes) for kind in kinds},
    )


def _describe_counts(counts: MetricCounts) -> Iterator[Metric]:
    for metric in METRICS:
        if not metric.counted:
            continue
        if metric.histogram:
            yield _histogram(metric.name, counts)
        else:
            values = counts.counter(metric.short_name)
            yield _count(metric.name, _bound(values) if metric.labels == ("tenant", "key") else values)


def _bound(values: _Values) -> _Values:
    """Return the values of the keys that have used most, and the sum of the others."""
    ordered = sorted(values.items(), key=lambda entry: -entry[1])
    others = sum(value for _, value in ordered[_MOST_KEYS:])
    return dict(ordered[:_MOST_KEYS]) | ({_OTHERS: others} if others else {})


def _read_load_times(reports: Mapping[str, Iterable[ModelReport]]) -> _Values:
    return {(one.worker, model): one.load_s for model, told in reports.items() for one in told if one.load_s}


def _lane(lane: LaneStatistics) -> tuple[str, ...]:
    return lane.lane.service.value, lane.lane.model


def _speed(ready: Mapping[str, Sequence[WorkerInfo]], slug: str) -> float:
    return sum(facts.tokens_per_s for facts in ready.get(slug, ()))


def _known_speed(members: Sequence[FleetMember], slug: str) -> float:
    """Return the speed of the fastest worker of the last day that had the model."""
    speeds = (one.card.usual_tokens_per_s for one in members if slug in one.card.models)
    return max(speeds, default=0.0) or _UNKNOWN_TOKENS_PER_S


def _slowest_s(ready: Mapping[str, Sequence[WorkerInfo]], slug: str, field: str) -> float:
    return max((float(getattr(info, field)) / 1000 for info in ready.get(slug, ())), default=0.0)


def _count(name: str, values: _Values) -> CounterMetricFamily:
    return _fill(CounterMetricFamily, name, values)


def _gauge(name: str, values: _Values) -> GaugeMetricFamily:
    return _fill(GaugeMetricFamily, name, values)


def _fill(kind: type[_Family], name: str, values: _Values) -> _Family:
    metric = find_metric(name)
    family = kind(metric.name, metric.description, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _histogram(name: str, counts: MetricCounts) -> HistogramMetricFamily:
    metric = find_metric(name)
    family = HistogramMetricFamily(metric.name, metric.description, labels=metric.labels)
    bounds = [*map(str, BUCKETS_S), "+Inf"]
    for labels, histogram in counts.histogram(metric.short_name).items():
        sums: list[float] = []
        for count in histogram.buckets:
            sums.append(count + (sums[-1] if sums else 0.0))
        family.add_metric(labels, list(zip(bounds, sums, strict=True)), histogram.sum)
    return family
