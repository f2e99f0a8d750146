"""Every Redis key, one function each. Keys of a job carry the hash tag {job_id}.

Only this file spells a key; scripts get their keys from the caller and build none. Whoever creates a key sets its
expiry in the same step.
"""

from tasks.lanes import Lane

__all__ = ["job", "job_chunks", "job_input", "job_pending", "job_result", "lane_inflight", "lane_ready"]

_PREFIX = "twolane"


def job(job_id: str) -> str:
    """Hash: the job record."""
    return f"{_PREFIX}:{{{job_id}}}:job"


def job_chunks(job_id: str) -> str:
    """Hash: the chunk table."""
    return f"{_PREFIX}:{{{job_id}}}:chunks"


def job_pending(job_id: str) -> str:
    """List: chunk numbers that have no ticket yet."""
    return f"{_PREFIX}:{{{job_id}}}:pending"


def job_input(job_id: str, chunk: int) -> str:
    """String: the texts of a chunk, see `tasks.blobs`."""
    return f"{_PREFIX}:{{{job_id}}}:input:{chunk}"


def job_result(job_id: str, chunk: int) -> str:
    """String: the results of a chunk, see `tasks.blobs`."""
    return f"{_PREFIX}:{{{job_id}}}:result:{chunk}"


def lane_ready(lane: Lane) -> str:
    """Sorted set: jobs of a bulk lane that have pending chunks, by the work that they were served."""
    return f"{_PREFIX}:lane:{lane.queue}:ready"


def lane_inflight(lane: Lane) -> str:
    """Sorted set: tickets and claims of a bulk lane, by the time (ms) at which they are overdue."""
    return f"{_PREFIX}:lane:{lane.queue}:inflight"


def lane_requests(lane: Lane) -> str:
    """List: requests of the synchronous hop; those above the limits of a small one wait in the bulk lane's list."""
    return f"{_PREFIX}:lane:{lane.queue}:requests"


def lane_load(lane: Lane) -> str:
    """Hash: tokens that wait in the list of `lane_requests`."""
    return f"{_PREFIX}:lane:{lane.queue}:load"


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
