"""Every Redis key, one function each. Keys of a job carry the hash tag {job_id}.

Only this file spells a key; scripts get their keys from the caller and build none. Whoever creates a key sets its
expiry in the same step.
"""

from tasks.lanes import Lane

__all__ = [
    "AGAIN",
    "BROKER_PREFIX",
    "ORDINARY",
    "PRIORITY_MARK",
    "idempotency",
    "job",
    "job_chunks",
    "job_events",
    "job_input",
    "job_pending",
    "job_result",
    "lane_clock",
    "lane_deadlines",
    "lane_inflight",
    "lane_load",
    "lane_messages",
    "lane_ready",
    "lane_requests",
    "lane_withdrawn",
    "lane_workers",
    "replies",
    "store_reserved",
    "store_reserved_until",
    "store_sweep",
    "store_uploads",
    "tenant_jobs",
]

_PREFIX = "twolane"
# Celery's own keys stand under this prefix, so that a shared server shows whose they are.
BROKER_PREFIX = f"{_PREFIX}:broker:"
# Between a queue's name and a message's priority, in the name of the list that holds messages of that priority.
PRIORITY_MARK = ":priority:"
# Priorities of tickets; on Redis the lower number goes first, and each has a list of its own (`lane_messages`).
# Ahead: the chunks of a worker that died. Behind the whole window, they would wait for longer than their lease was.
AGAIN, ORDINARY = 0, 1


def job(job_id: str) -> str:
    """Hash: the job record."""
    return f"{_PREFIX}:{{{job_id}}}:job"


def job_chunks(job_id: str) -> str:
    """Hash: the chunk table."""
    return f"{_PREFIX}:{{{job_id}}}:chunks"


def job_pending(job_id: str) -> str:
    """List: chunk numbers that have no ticket yet."""
    return f"{_PREFIX}:{{{job_id}}}:pending"


def job_events(job_id: str) -> str:
    """Stream: the last change of the job; entry ids are its versions."""
    return f"{_PREFIX}:{{{job_id}}}:events"


def job_input(job_id: str, chunk: int) -> str:
    """String: the texts of a chunk, see `tasks.jobs.blobs`."""
    return f"{_PREFIX}:{{{job_id}}}:input:{chunk}"


def job_result(job_id: str, chunk: int) -> str:
    """String: the results of a chunk, see `tasks.jobs.blobs`."""
    return f"{_PREFIX}:{{{job_id}}}:result:{chunk}"


def lane_ready(lane: Lane) -> str:
    """Sorted set: jobs of a bulk lane that have pending chunks, by the work that they were served."""
    return f"{_PREFIX}:lane:{lane.queue}:ready"


def lane_inflight(lane: Lane) -> str:
    """Sorted set: tickets and claims of a bulk lane, by the time (ms) at which they are overdue."""
    return f"{_PREFIX}:lane:{lane.queue}:inflight"


def lane_clock(lane: Lane) -> str:
    """String: the virtual time of a bulk lane, at which newcomers start."""
    return f"{_PREFIX}:lane:{lane.queue}:clock"


def lane_deadlines(lane: Lane) -> str:
    """Sorted set: jobs of a bulk lane that have a deadline, by that time (ms)."""
    return f"{_PREFIX}:lane:{lane.queue}:deadlines"


def lane_requests(lane: Lane) -> str:
    """List: requests of the synchronous hop; those above the limits of a small one wait in the bulk lane's list."""
    return f"{_PREFIX}:lane:{lane.queue}:requests"


def lane_load(lane: Lane) -> str:
    """Hash: tokens that wait in the list of `lane_requests`."""
    return f"{_PREFIX}:lane:{lane.queue}:load"


def lane_withdrawn(lane: Lane) -> str:
    """Sorted set: names of requests that workers have and nobody wants any more, by the ms when that is forgotten."""
    return f"{_PREFIX}:lane:{lane.queue}:withdrawn"


def lane_messages(lane: Lane) -> tuple[str, str]:
    """Lists: Celery's messages of a bulk lane, in Celery's own format; first those that go ahead, then the ordinary."""
    first = f"{BROKER_PREFIX}{lane.queue}"
    return first, f"{first}{PRIORITY_MARK}{ORDINARY}"


def lane_workers(model: str) -> str:
    """Sorted set: ready workers of a model, by the time (ms) at which they count as gone."""
    return f"{_PREFIX}:workers:{model}"


def worker_facts(model: str) -> str:
    """Hash: what each ready worker of a model says of itself (JSON), by worker id."""
    return f"{_PREFIX}:workers:{model}:facts"


def replies(web_id: str) -> str:
    """List: replies of the interactive lane to one web process."""
    return f"{_PREFIX}:replies:{web_id}"


def limits_prefix() -> str:
    """Prefix of the rate limit counters; the `limits` library puts its own key behind it."""
    return f"{_PREFIX}:limits"


def idempotency(tenant: str, key: str) -> str:
    """String: the job that an idempotency key stands for."""
    return f"{_PREFIX}:idempotency:{tenant}:{key}"


def tenant_jobs(tenant: str) -> str:
    """Sorted set: job ids of a tenant, by creation time."""
    return f"{_PREFIX}:tenant:{tenant}:jobs"


def store_reserved() -> str:
    """Hash: bytes that accepted jobs will still need for results, by job id and as `total`."""
    return f"{_PREFIX}:store:reserved"


def store_reserved_until() -> str:
    """Sorted set: the jobs of that hash, by the time (ms) at which they expire."""
    return f"{_PREFIX}:store:reserved-until"


def store_sweep() -> str:
    """String: present while the store was swept lately."""
    return f"{_PREFIX}:store:sweep"


def store_uploads() -> str:
    """Sorted set: ids whose inputs are being stored and that are no jobs yet, by the ms when they are given up."""
    return f"{_PREFIX}:store:uploads"


def upload(tenant: str, key: str) -> str:
    """Hash: an upload under an idempotency key that is not complete, see `tasks.jobs.uploads`."""
    return f"{_PREFIX}:upload:{tenant}:{key}"


def cache_values(scope: str) -> str:
    """Hash: values that were computed before, by their digest; of one tenant or one job, see `tasks.cache.store`."""
    return f"{_PREFIX}:{{cache:{scope}}}:values"


def cache_times(scope: str) -> str:
    """Sorted set: these digests by the time (ms) at which they were put."""
    return f"{_PREFIX}:{{cache:{scope}}}:times"


def cache_bytes(scope: str) -> str:
    """String: bytes that these values take."""
    return f"{_PREFIX}:{{cache:{scope}}}:bytes"


def job_totals() -> str:
    """Hash: ends of jobs by state and outcomes of their items, counted for the operator."""
    return f"{_PREFIX}:jobs:totals"


def cache_claims(scope: str) -> str:
    """Hash: values that a chunk computes just now, by digest; only where a scope is one job."""
    return f"{_PREFIX}:{{cache:{scope}}}:claims"


def cache_lookups() -> str:
    """Hash: values of all scopes that were looked for, as `hit` and `miss`."""
    return f"{_PREFIX}:cache:lookups"


def webhooks_due() -> str:
    """Sorted set: jobs whose end a webhook has to be told of, by the time (ms) of the next attempt."""
    return f"{_PREFIX}:webhooks:due"


def tenant_queued(tenant: str) -> str:
    """Hash: unfinished jobs of a tenant whose queue is limited, with their items, by job id."""
    return f"{_PREFIX}:tenant:{tenant}:queued"


def file(file_id: str) -> str:
    """Hash: the record of a file."""
    return f"{_PREFIX}:{{{file_id}}}:file"


def tenant_files(tenant: str) -> str:
    """Sorted set: visible files of a tenant; all scores are 0, ids sort by creation time."""
    return f"{_PREFIX}:tenant:{tenant}:files"


def files_expiry() -> str:
    """Sorted set: all files as tenant/id, by the time (ms) at which their bytes are swept."""
    return f"{_PREFIX}:files:expiry"


def batch(batch_id: str) -> str:
    """Hash: the record of a batch."""
    return f"{_PREFIX}:{{{batch_id}}}:batch"


def tenant_batches(tenant: str) -> str:
    """Sorted set: batches of a tenant; all scores are 0, ids sort by creation time."""
    return f"{_PREFIX}:tenant:{tenant}:batches"


def batches_active() -> str:
    """Sorted set: batches that are not done with, by the time (ms) at which somebody should look after them."""
    return f"{_PREFIX}:batches:active"
