"""Every Redis key, one function each. Keys of a job carry the hash tag {job_id}.

Only this file spells a key; scripts get their keys from the caller and build none. A key gets its expiry in the
step that creates it.
"""

from typing import NewType

from tasks.lanes import Lane

# What may be passed to a script as a key: only the functions of this module make one.
Key = NewType("Key", str)

_PREFIX = "twolane"
# Celery's own keys stand under this prefix, so that they are recognised on a shared Redis.
BROKER_PREFIX = f"{_PREFIX}:broker:"


def job(job_id: str) -> Key:
    """Hash: the job record."""
    return Key(f"{_PREFIX}:{{{job_id}}}:job")


def job_chunks(job_id: str) -> Key:
    """Hash: the chunk table."""
    return Key(f"{_PREFIX}:{{{job_id}}}:chunks")


def job_pending(job_id: str) -> Key:
    """List: chunk numbers that have no ticket yet."""
    return Key(f"{_PREFIX}:{{{job_id}}}:pending")


def job_events(job_id: str) -> Key:
    """Stream: the last change of the job; entry ids are its versions."""
    return Key(f"{_PREFIX}:{{{job_id}}}:events")


def job_log(job_id: str) -> Key:
    """List: what happened to the job (JSON), oldest first; bounded."""
    return Key(f"{_PREFIX}:{{{job_id}}}:log")


def job_input(job_id: str, chunk: int) -> Key:
    """String: the texts of a chunk, see `tasks.jobs.blobs`."""
    return Key(f"{_PREFIX}:{{{job_id}}}:input:{chunk}")


def job_result(job_id: str, chunk: int) -> Key:
    """String: the results of a chunk, see `tasks.jobs.blobs`."""
    return Key(f"{_PREFIX}:{{{job_id}}}:result:{chunk}")


def lane_ready(lane: Lane) -> Key:
    """Sorted set: tenants that have jobs with pending chunks in a bulk lane, by the service that they were given.

    Its name is also the channel on which scripts say that another chunk may be the next one.
    """
    return Key(f"{_PREFIX}:lane:{lane.queue}:tenants")


def turns_pattern() -> str:
    """Pattern of the channels that say of a lane that its turns have changed; each is called as `lane_ready`."""
    return f"{_PREFIX}:lane:*:tenants"


def lane_earlier_turns(lane: Lane) -> Key:
    """Sorted set: where processes before 0.3 put jobs in line, of all tenants alike."""
    return Key(f"{_PREFIX}:lane:{lane.queue}:ready")


def lane_inflight(lane: Lane) -> Key:
    """Sorted set: tickets and claims of a bulk lane, by the time (ms) at which they are overdue."""
    return Key(f"{_PREFIX}:lane:{lane.queue}:inflight")


def lane_turns(lane: Lane, tenant: str) -> Key:
    """Sorted set: a tenant's jobs that have pending chunks in a bulk lane, by the service that they were given."""
    return Key(f"{_PREFIX}:lane:{lane.queue}:turns:{tenant}")


def lane_shares(lane: Lane) -> Key:
    """Hash: what fair queueing remembers of a bulk lane: the service given to each tenant, and the virtual clocks."""
    return Key(f"{_PREFIX}:lane:{lane.queue}:shares")


def lane_deadlines(lane: Lane) -> Key:
    """Sorted set: jobs of a bulk lane that have a deadline, by that time (ms)."""
    return Key(f"{_PREFIX}:lane:{lane.queue}:deadlines")


def lane_later(lane: Lane) -> Key:
    """Sorted set: jobs of a bulk lane that may not begin yet, by the time (ms) from which on they may."""
    return Key(f"{_PREFIX}:lane:{lane.queue}:later")


def lane_misfits(lane: Lane) -> Key:
    """Sorted set: jobs of a bulk lane that a worker with another model was offered, by the time (ms) of that."""
    return Key(f"{_PREFIX}:lane:{lane.queue}:misfits")


def lane_requests(lane: Lane) -> Key:
    """List: interactive requests; those above the limits of a small one wait in the bulk lane's list."""
    return Key(f"{_PREFIX}:lane:{lane.queue}:requests")


def lane_load(lane: Lane) -> Key:
    """Hash: tokens that wait in the list of `lane_requests`."""
    return Key(f"{_PREFIX}:lane:{lane.queue}:load")


def lane_messages(lane: Lane) -> Key:
    """List: Celery's messages of a bulk lane, in Celery's own format."""
    return Key(f"{BROKER_PREFIX}{lane.queue}")


def lane_workers(model: str) -> Key:
    """Sorted set: ready workers of a model, by the time (ms) at which their heartbeat has expired."""
    return Key(f"{_PREFIX}:workers:{model}")


def model_reporters() -> Key:
    """Sorted set: workers that say what becomes of their models, by the time (ms) at which their report is over."""
    return Key(f"{_PREFIX}:model-reporters")


def model_reports() -> Key:
    """Hash: what became of each model in a worker (JSON), by worker ID."""
    return Key(f"{_PREFIX}:model-reports")


def model_orders() -> Key:
    """Hash: what an admin wants of each model (JSON), by model and worker; the field `last` counts them."""
    return Key(f"{_PREFIX}:model-orders")


def model_wanted(model: str) -> Key:
    """String: present while a call waits for a model that no worker has loaded."""
    return Key(f"{_PREFIX}:model-wanted:{model}")


def model_loader(model: str) -> Key:
    """String: the worker that loads a model because somebody wants it, so that not all of them do."""
    return Key(f"{_PREFIX}:model-loader:{model}")


def device_reporters() -> Key:
    """Sorted set: launchers of workers, by the time (ms) at which their report is over."""
    return Key(f"{_PREFIX}:device-reporters")


def device_reports() -> Key:
    """Hash: how each launcher's devices are (JSON), by launcher id."""
    return Key(f"{_PREFIX}:device-reports")


def model_card(model: str) -> Key:
    """String: the card of a model as a worker has completed it from the model's folder (JSON)."""
    return Key(f"{_PREFIX}:model-card:{model}")


def worker_info(model: str) -> Key:
    """Hash: description of each ready worker of a model (JSON), by worker ID."""
    return Key(f"{_PREFIX}:workers:{model}:facts")


def api_keys() -> Key:
    """Hash: API keys that were made, rotated or revoked while the server ran (JSON), by key ID. Kept for good."""
    return Key(f"{_PREFIX}:api-keys")


def activity_minute(minute: int) -> Key:
    """Hash: what was counted in one minute (since the epoch), see `tasks.presence.activity`."""
    return Key(f"{_PREFIX}:activity:minute:{minute}")


def activity_hour(hour: int) -> Key:
    """Hash: what was counted in one hour (since the epoch)."""
    return Key(f"{_PREFIX}:activity:hour:{hour}")


def metric_counts() -> Key:
    """Hash: the counters of all processes for `/metrics`, see `tasks.presence.counters`."""
    return Key(f"{_PREFIX}:metrics:counts")


def metric_flush(process: str) -> Key:
    """String: the number of the last counts that a process has added there."""
    return Key(f"{_PREFIX}:metrics:flush:{process}")


def usage_day(day: int) -> Key:
    """Hash: what each key has used in one day (since the epoch), see `tasks.presence.counters`."""
    return Key(f"{_PREFIX}:usage:day:{day}")


def web_processes() -> Key:
    """Sorted set: web processes by the time (ms) at which they count as gone."""
    return Key(f"{_PREFIX}:web:processes")


def web_reports() -> Key:
    """Hash: the threads that requests hold in each of them, by kind (JSON)."""
    return Key(f"{_PREFIX}:web:reports")


def console_session(digest: str) -> Key:
    """Hash: one sign-in to the console, by the SHA-256 of its token."""
    return Key(f"{_PREFIX}:console:session:{digest}")


def worker_cards() -> Key:
    """Hash: what each worker last said of itself (JSON), by worker ID; of lost ones for a day."""
    return Key(f"{_PREFIX}:fleet:cards")


def worker_alert(worker_id: str) -> Key:
    """String: the condition of a worker that was logged last, while it is not well."""
    return Key(f"{_PREFIX}:fleet:alert:{worker_id}")


def workers_seen() -> Key:
    """Sorted set: the workers of `worker_cards`, by the time (ms) of their last heartbeat."""
    return Key(f"{_PREFIX}:fleet:seen")


def worker_ends() -> Key:
    """Hash: how workers ended, as their launcher saw it (JSON), by worker ID."""
    return Key(f"{_PREFIX}:fleet:ends")


def worker_orders() -> Key:
    """Hash: what a worker is asked to do: `drain` or `restart`, by worker ID."""
    return Key(f"{_PREFIX}:fleet:orders")


def replies(web_id: str) -> Key:
    """List: replies of the interactive lane to one web process."""
    return Key(f"{_PREFIX}:replies:{web_id}")


def limits_prefix() -> str:
    """Prefix of the rate limit counters; the `limits` library puts its own key behind it."""
    return f"{_PREFIX}:limits"


def idempotency(tenant: str, key: str) -> Key:
    """String: the job that an idempotency key stands for."""
    return Key(f"{_PREFIX}:idempotency:{tenant}:{key}")


def tenant_jobs(tenant: str) -> Key:
    """Sorted set: job ids of a tenant, by creation time."""
    return Key(f"{_PREFIX}:tenant:{tenant}:jobs")


def all_jobs() -> Key:
    """Sorted set: job ids of all tenants, by creation time (ms)."""
    return Key(f"{_PREFIX}:jobs")


def all_tenants() -> Key:
    """Sorted set: tenants that have created jobs, by the time (ms) of the last one."""
    return Key(f"{_PREFIX}:tenants")


def store_reserved() -> Key:
    """Hash: bytes that accepted jobs will still need for results, by job id and as `total`."""
    return Key(f"{_PREFIX}:store:reserved")


def store_reserved_until() -> Key:
    """Sorted set: the jobs of that hash, by the time (ms) at which they expire."""
    return Key(f"{_PREFIX}:store:reserved-until")


def store_sweep() -> Key:
    """String: present while blobs were swept lately."""
    return Key(f"{_PREFIX}:store:sweep")


def rights_probe() -> Key:
    """A string that is written at start, for a second: whether that is allowed."""
    return Key(f"{_PREFIX}:rights")


def store_identity() -> Key:
    """A string: which Redis this is, for what lies outside of it."""
    return Key(f"{_PREFIX}:store:identity")


def store_orphans() -> Key:
    """A sorted set: jobs that have files and no record, by the time at which that was first seen."""
    return Key(f"{_PREFIX}:store:orphans")


def storage_places(setting: str) -> Key:
    """A sorted set: where processes keep the files of a setting, by the time at which they last said so."""
    return Key(f"{_PREFIX}:storage-places:{setting}")


def store_uploads() -> Key:
    """Sorted set: jobs to be, whose inputs are being stored, by the time (ms) at which they count as abandoned."""
    return Key(f"{_PREFIX}:store:uploads")


def cache_values(scope: str) -> Key:
    """Hash: values that were computed before, by their digest; of one tenant or one job, see `tasks.cache.values`."""
    return Key(f"{_PREFIX}:{{cache:{scope}}}:values")


def cache_times(scope: str) -> Key:
    """Sorted set: these digests by the time (ms) at which they were put."""
    return Key(f"{_PREFIX}:{{cache:{scope}}}:times")


def cache_bytes(scope: str) -> Key:
    """String: bytes that these values take."""
    return Key(f"{_PREFIX}:{{cache:{scope}}}:bytes")


def job_lines() -> Key:
    """List: events of jobs (JSON) that no web process has written into its log yet."""
    return Key(f"{_PREFIX}:jobs:lines")


def job_totals() -> Key:
    """Hash: ends of jobs by state and outcomes of their items, counted for the operator."""
    return Key(f"{_PREFIX}:jobs:totals")


def cache_lookups() -> Key:
    """Hash: lookups in all scopes of the cache, as `hit` and `miss`."""
    return Key(f"{_PREFIX}:cache:lookups")


def webhook_tenants() -> Key:
    """Sorted set: the webhook outbox: tenants that have ends to be sent, by the time (ms) of their next turn."""
    return Key(f"{_PREFIX}:webhooks:tenants")


def webhooks_due(tenant: str) -> Key:
    """Sorted set: a tenant's jobs whose end has to be sent, by the time (ms) of the next attempt."""
    return Key(f"{_PREFIX}:webhooks:due:{tenant}")


def webhooks_earlier() -> Key:
    """Sorted set: where processes before 0.3 put the ends of all tenants."""
    return Key(f"{_PREFIX}:webhooks:due")


def tenant_queued(tenant: str) -> Key:
    """Hash: unfinished jobs of a tenant whose queue is limited, with their items, by job id."""
    return Key(f"{_PREFIX}:tenant:{tenant}:queued")


def tenant_held(tenant: str) -> Key:
    """Hash: bytes that a tenant's jobs keep in Redis or will when they are done, by job id and as `total`."""
    return Key(f"{_PREFIX}:tenant:{tenant}:held")


def tenant_held_until(tenant: str) -> Key:
    """Sorted set: the jobs of that hash, by the time (ms) at which they expire."""
    return Key(f"{_PREFIX}:tenant:{tenant}:held-until")


def file(file_id: str) -> Key:
    """Hash: the record of a file."""
    return Key(f"{_PREFIX}:{{{file_id}}}:file")


def tenant_files(tenant: str) -> Key:
    """Sorted set: visible files of a tenant; all scores are 0, ids sort by creation time."""
    return Key(f"{_PREFIX}:tenant:{tenant}:files")


def files_expiry() -> Key:
    """Sorted set: all files as tenant/id, by the time (ms) at which their bytes are swept."""
    return Key(f"{_PREFIX}:files:expiry")


def batch(batch_id: str) -> Key:
    """Hash: the record of a batch."""
    return Key(f"{_PREFIX}:{{{batch_id}}}:batch")


def tenant_batches(tenant: str) -> Key:
    """Sorted set: batches of a tenant; all scores are 0, ids sort by creation time."""
    return Key(f"{_PREFIX}:tenant:{tenant}:batches")


def batches_active() -> Key:
    """Sorted set: batches that have not ended, by the time (ms) at which the scheduler should look at them."""
    return Key(f"{_PREFIX}:batches:active")
