"""The metrics of `/metrics`: their names, kinds, labels and sentences.

Owns the words only; `app.ops.shared_state` fills them in. The table in `docs/operations.md` has every one of them.
"""

from dataclasses import dataclass
from functools import cached_property

__all__ = ["METRICS", "Metric", "find_metric"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: as Prometheus shows it. Those that end with `_total` are counters.
        description: one sentence, the HELP line.
        labels: names of its labels.
        histogram: whether it is one.
        counted: whether processes count it in Redis (`tasks.presence.counters`); else it is read from the state there.
    """

    name: str
    description: str
    labels: tuple[str, ...] = ()
    histogram: bool = False
    counted: bool = False

    @cached_property
    def short_name(self) -> str:
        """The name under which processes count."""
        return self.name.removeprefix("twolane_")


def _counted(name: str, description: str, *labels: str) -> Metric:
    return Metric(name, description, labels, counted=True)


def _histogram(name: str, description: str, *labels: str) -> Metric:
    return Metric(name, description, labels, histogram=True, counted=True)


_LANE = ("service", "model")
_KEY = ("tenant", "key")

METRICS = (
    Metric("twolane_build_info", "1; the version that this web process runs.", ("version", "python")),
    Metric(
        "twolane_keys_file_unusable",
        "1: the keys file is missing, unreadable or wrong, so the keys that were read before stay valid.",
    ),
    # The state that all processes share, read from Redis at each scrape.
    Metric("twolane_store_up", "Whether Redis answered this scrape; without it the shared values are missing."),
    Metric("twolane_store_memory_bytes", "Memory that Redis uses."),
    Metric("twolane_store_memory_limit_bytes", "Redis' maxmemory; 0: it has none."),
    Metric("twolane_store_evicts", "1: Redis throws keys away when it is full, and jobs with them."),
    Metric("twolane_store_reserved_bytes", "Bytes that accepted jobs will still need for their results."),
    Metric("twolane_lane_waiting_requests", "Interactive requests that no worker has taken.", _LANE),
    Metric("twolane_lane_waiting_tokens", "Estimated tokens that wait in the lane.", _LANE),
    Metric("twolane_lane_drain_seconds", "Time until the lane is empty, as the time left of jobs says it.", _LANE),
    Metric("twolane_lane_jobs_ready", "Jobs that have chunks which wait.", _LANE),
    Metric(
        "twolane_lane_chunks_in_flight",
        "Chunks that a worker was given (ticket) or has claimed, by state.",
        (*_LANE, "state"),
    ),
    Metric("twolane_lane_stalled_seconds", "Time for which chunks have waited and no worker took one.", _LANE),
    Metric("twolane_lane_messages", "Celery messages in the lane's queue.", _LANE),
    Metric(
        "twolane_workers",
        "Workers of the last day by condition; sick: silent, stuck, failing, growing.",
        ("condition",),
    ),
    Metric("twolane_workers_expected", "Workers that there should be: by the settings, or by what launchers run."),
    Metric("twolane_workers_ready", "Workers that have loaded and warmed the model.", ("model",)),
    Metric("twolane_devices", "Workers' places on devices: starting, ready, set_aside or refused.", ("state",)),
    Metric("twolane_workers_tokens_per_second", "Speed that the ready workers announce, in sum.", ("model",)),
    Metric("twolane_worker_silent_seconds", "Time since the worker's last heartbeat.", ("worker", "device")),
    Metric("twolane_worker_busy_ratio", "Share of the last seconds in which the device computed.", ("worker",)),
    Metric("twolane_worker_tokens_per_second", "Tokens of the last seconds.", ("worker",)),
    Metric("twolane_worker_memory_bytes", "Memory of the worker's process.", ("worker",)),
    Metric("twolane_worker_device_memory_bytes", "Used memory of its GPU, by all processes.", ("worker",)),
    Metric("twolane_worker_device_memory_limit_bytes", "Memory of its GPU; 0 on a CPU.", ("worker",)),
    Metric("twolane_model_load_seconds", "How long the model took to load and warm up, last.", ("worker", "model")),
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
    Metric("twolane_web_processes", "Web processes that live."),
    Metric("twolane_http_places_taken", "Requests that hold a thread of a web process, by kind.", ("kind",)),
    # What all processes have counted.
    _counted("twolane_http_requests_total", "Answers by route and status.", "method", "route", "status"),
    _histogram("twolane_http_request_seconds", "Time until an answer begins.", "route"),
    _counted("twolane_http_refusals_total", "Answers 429, 503 and 504 by error code.", "status", "code"),
    _histogram("twolane_call_stage_seconds", "Time of calls by stage: accept, list, queue, device.", "model", "stage"),
    _counted("twolane_worker_restarts_total", "Ends of worker processes that their launcher saw.", "reason"),
    _histogram("twolane_pass_seconds", "Time of passes on the device.", "model"),
    _counted("twolane_pass_rows_total", "Rows that passes computed.", "model"),
    _counted("twolane_pass_tokens_total", "Tokens that passes computed, without padding.", "model"),
    _counted("twolane_pass_padded_tokens_total", "The same with padding: their ratio is how full passes are.", "model"),
    _histogram("twolane_queue_wait_seconds", "Time for which work waited in a worker for its device.", *_LANE),
    _counted("twolane_out_of_memory_splits_total", "Passes that were halved for want of device memory.", "model"),
    _counted("twolane_usage_items_total", "Items computed for a key.", *_KEY),
    _counted("twolane_usage_tokens_total", "Tokens that models read for a key.", *_KEY),
    _counted("twolane_usage_device_seconds_total", "Time that devices computed for a key.", *_KEY),
)

_BY_NAME = {metric.name: metric for metric in METRICS}


def find_metric(name: str) -> Metric:
    """Return the metric of that name.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]
