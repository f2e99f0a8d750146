"""The metrics of `/metrics`: their names, labels and sentences.

Owns the words only; `app.ops.metrics` fills them in. The table in `docs/operations.md` has every one of them.
"""

from dataclasses import dataclass

__all__ = ["LATENCY_BUCKETS_S", "METRICS", "Metric", "find_metric"]

# From a cached probe to the longest synchronous call that the default time limit allows.
LATENCY_BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as Prometheus shows it.
        description: one sentence, the HELP line.
        labels: names of its labels.
    """

    name: str
    description: str
    labels: tuple[str, ...] = ()


METRICS = (
    # The state that all processes share, read from Redis at each scrape.
    Metric("twolane_store_up", "Whether Redis answered this scrape; without it the shared values are missing."),
    Metric("twolane_store_memory_bytes", "Memory that Redis uses."),
    Metric("twolane_store_memory_limit_bytes", "Redis' maxmemory; 0: it has none."),
    Metric("twolane_store_evicts", "1: Redis throws keys away when it is full, and jobs with them."),
    Metric("twolane_store_reserved_bytes", "Bytes that accepted jobs will still need for their results."),
    Metric("twolane_lane_waiting_requests", "Interactive requests that no worker has taken.", ("lane",)),
    Metric("twolane_lane_waiting_tokens", "Estimated tokens that wait in the lane.", ("lane",)),
    Metric("twolane_lane_drain_seconds", "Waiting tokens over the ready workers' speed.", ("lane",)),
    Metric("twolane_lane_jobs_ready", "Jobs that have chunks which wait.", ("lane",)),
    Metric(
        "twolane_lane_chunks_in_flight",
        "Chunks that a worker was given (ticket) or has claimed, by state.",
        ("lane", "state"),
    ),
    Metric("twolane_lane_stalled_seconds", "Time for which chunks have waited and no worker took one.", ("lane",)),
    Metric("twolane_lane_messages", "Celery messages in the lane's queue.", ("lane",)),
    Metric(
        "twolane_workers",
        "Workers of the last day by condition; sick: silent, stuck, failing, growing.",
        ("condition",),
    ),
    Metric("twolane_workers_ready", "Workers that have loaded and warmed the model.", ("model",)),
    Metric("twolane_devices", "Workers' places on devices: starting, ready, set_aside or refused.", ("state",)),
    Metric("twolane_workers_tokens_per_second", "Speed that the ready workers announce, in sum.", ("model",)),
    Metric("twolane_call_target_seconds", "What a small call should take inside a worker (p99).", ("model",)),
    Metric("twolane_call_p99_seconds", "What calls took there in the last minute; slowest worker.", ("model",)),
    Metric("twolane_call_expected_seconds", "What a call beside a job can expect; slowest worker.", ("model",)),
    Metric("twolane_jobs", "Jobs that have not ended, by state.", ("state",)),
    Metric(
        "twolane_jobs_ended_total", "Ends of jobs, by state; one whose failed items are retried ends again.", ("state",)
    ),
    Metric("twolane_job_items_total", "Items of jobs that were counted, by outcome.", ("outcome",)),
    Metric("twolane_job_tokens_total", "Tokens that the models read for jobs."),
    Metric("twolane_webhooks_waiting", "Webhooks in the outbox, due now or later."),
    Metric(
        "twolane_cache_lookups_total", "Values that were looked for before computing, by hit and miss.", ("result",)
    ),
    # What this web process did.
    Metric("twolane_http_requests_total", "Answers by route and status.", ("process", "method", "route", "status")),
    Metric("twolane_http_request_seconds", "Time until an answer begins.", ("process", "route")),
    Metric("twolane_http_places_taken", "Requests that hold a thread, by kind.", ("process", "kind")),
    Metric("twolane_http_refusals_total", "Answers 429, 503 and 504 by error code.", ("process", "status", "code")),
)


def find_metric(name: str) -> Metric:
    """Return the metric of that name.

    Raises:
        KeyError: there is none.
    """
    return {metric.name: metric for metric in METRICS}[name]
