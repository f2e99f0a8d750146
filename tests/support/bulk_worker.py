"""This process as a worker of the bulk lanes: the task's own code, an engine that computes in the calling thread.

A worker's death is an exception that nothing in the product catches: what follows it does not run, as after kill -9.
"""

from concurrent.futures import Future
from dataclasses import replace

from tasks import frames, keys
from tasks.bulk import chunk_task
from tasks.bulk.chunk_task import WorkerContext, publish_messages, run_chunk
from tasks.bulk.device_sharing import DeviceSharing
from tasks.celery import app
from tasks.engine import Outcomes, Work
from tasks.errors import ItemFailed
from tasks.jobs.blobs import Blobs
from tasks.jobs.store import JobStore
from tests.support.echo_engine import echo
from tests.support.job_maker import LANE, make_overdue, take_messages

__all__ = ["ThreadEngine", "WorkerDied", "results", "revive", "work"]


class WorkerDied(BaseException):
    """The process is gone."""


class ThreadEngine:
    """Computes in the calling thread, as `tests.support.echo_engine`; some texts have an effect.

    `die`: the process ends; `fail`: computing the whole work fails with an error of ours; `bug`: with any other.
    """

    def __init__(self) -> None:
        self.deaths = 0
        self.computed: list[list[str]] = []
        self.raises: Exception | None = None
        self.passes = 0

    def progress(self) -> int:
        return self.passes

    def submit(self, work: Work) -> Future[Outcomes]:
        if self.raises is not None:
            raise self.raises
        self.passes += 1
        self.computed.append(list(work.texts))
        if any("die" in text for text in work.texts):
            self.deaths += 1
            raise WorkerDied
        future: Future[Outcomes] = Future()
        if any("fail" in text for text in work.texts):
            future.set_exception(ItemFailed("it cannot be computed"))
        elif any("bug" in text for text in work.texts):
            future.set_exception(ZeroDivisionError("a path that nobody should see"))
        else:
            future.set_result(echo(work))
        return future


def work(store: JobStore, times: int = 1) -> None:
    """Deliver every message so many times; a worker that dies leaves its claim to the reaper."""
    publish_messages(store.leases, LANE, store.settings.window)
    while messages := take_messages(store.redis):
        for model in messages * times:
            try:
                run_chunk(model)
            except WorkerDied:
                app.twolane = revive(app.twolane)
                for entry in store.redis.zrange(keys.lane_inflight(LANE), 0, -1):
                    make_overdue(store.redis, *entry.decode().rsplit(":", 1))
                chunk_task.reap(store.leases, LANE)


def revive(context: WorkerContext) -> WorkerContext:
    return replace(context, sharing=DeviceSharing())


def results(store: JobStore, blobs: Blobs, job_id: str) -> tuple[list[float], dict[int, str]]:
    """The first value of each item, and the codes of the failed ones."""
    values, errors = [], {}
    for chunk in store.chunk_table(job_id):
        header, columns = frames.unpack(blobs.get_result(job_id, chunk.index, chunk.pointer) or b"")
        values += columns["values"][:, 0].tolist()
        errors |= {chunk.start + int(position): code for position, (code, _) in header["errors"].items()}
    return values, errors
