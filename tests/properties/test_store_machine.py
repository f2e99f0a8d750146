"""JobStore as a state machine on a real server: any order of moves by several workers, replayed, late and repeated."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.errors import Conflict
from tasks.jobs.blobs import open_blobs
from tasks.jobs.claims import Claim, ClaimCode, Completed, Ticket
from tasks.jobs.job import Counts, JobState
from tasks.jobs.store import JobStore
from tests.support.job_maker import (
    LANE,
    assert_expiry,
    audit,
    make_completion,
    make_overdue,
    outlive_restart_grace,
    submit,
)

WINDOW = 4
ITEMS = 3
NUMBERS = st.integers(0, 99)
TENANTS = ("a", "b")


@dataclass
class Model:
    """What a job should be: the state of each chunk, who holds it, and what was counted."""

    id: str
    chunks: dict[int, str]  # pending, ticket, claimed, done
    holders: dict[int, Claim] = field(default_factory=dict)
    counted: dict[int, tuple[int, int]] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    redo: dict[int, int] = field(default_factory=dict)
    tenant: str = TENANTS[0]
    floor: int = 0
    fence: int = 0
    mode: str = "queued"  # queued, running, paused, cancelling
    ending: str = "cancelled"

    @property
    def state(self) -> str:
        """An ending job waits for its claims; any other one ends with its last chunk."""
        if self.mode == "cancelling":
            return "cancelling" if self.holders else self.ending
        if set(self.chunks.values()) != {"done"}:
            return self.mode
        return "succeeded" if self.completed else "failed"

    @property
    def completed(self) -> int:
        return sum(completed for completed, _ in self.counted.values())

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "running", "paused", "cancelling")

    def move(self, chunk: int, state: str) -> None:
        self.chunks[chunk] = state
        if state != "claimed":
            self.holders.pop(chunk, None)

    def stop(self, ending: str) -> None:
        """What waits is dropped; what is claimed may end."""
        self.mode, self.ending = "cancelling", ending
        for chunk, state in self.chunks.items():
            if state in ("pending", "ticket"):
                self.drop(chunk)

    def drop(self, chunk: int) -> None:
        """A repeat that is dropped leaves the chunk as it was."""
        redo = self.redo.pop(chunk, None)
        if redo is None:
            self.move(chunk, "dropped")
        else:
            self.move(chunk, "done")
            self.counted[chunk] = (self.counted[chunk][0], redo)

    def put_back(self, chunk: int) -> None:
        if self.mode == "cancelling":
            self.drop(chunk)
        else:
            self.move(chunk, "pending")


class StoreMachine(RuleBasedStateMachine):
    """Tickets and claims stay in their bundles after use: every later use is a replay or a latecomer."""

    url: str
    base: Settings

    jobs = Bundle("jobs")
    tickets = Bundle("tickets")
    claims = Bundle("claims")

    @initialize()
    def begin(self) -> None:
        self.redis = Redis.from_url(self.url)
        self.redis.flushall()
        # Nothing lapses by itself during an example; what lapses is made to, and then the impatient store reaps.
        self.store = JobStore(self.redis, self.base.model_copy(update={"window": WINDOW, "lease_s": 600.0}))
        self.impatient = JobStore(self.redis, self.base.model_copy(update={"lease_s": 1.0}))
        self.blobs = open_blobs(self.redis, self.base)
        self.models: dict[str, Model] = {}
        self.running: set[str] = set()
        self.of_deleted = 0
        self.ends = Counter[str]()

    def teardown(self) -> None:
        for model in self.models.values():
            if model.ended:
                audit(self.store, self.blobs, model.id, model.tenant)
        self.redis.close()

    # -- users

    @rule(
        target=jobs,
        chunks=st.integers(1, 4),
        priority=st.sampled_from(["low", "normal", "high"]),
        tenant=st.sampled_from(TENANTS),
    )
    def create(self, chunks: int, priority: str, tenant: str) -> Any:
        if len(self.models) == 4:
            return multiple()
        texts = ["x"] * (chunks * ITEMS)
        job = submit(
            self.store, self.blobs, texts, chunk_items=ITEMS, priority=priority, tenant=tenant, result_bytes=100
        )
        self.models[job.id] = Model(job.id, dict.fromkeys(range(chunks), "pending"), tenant=tenant)
        return job.id

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        model = self.models[job]
        if model.ended and model.state != "cancelled":
            with pytest.raises(Conflict):
                self.store.cancel(job, self.tenant_of(job))
            return
        if not model.ended and model.mode != "cancelling":
            model.stop("cancelled")
        self.store.cancel(job, self.tenant_of(job))

    @rule(job=jobs)
    def expire(self, job: str) -> None:
        model = self.models[job]
        if model.ended or model.mode == "cancelling":
            return
        model.stop("expired")
        self.redis.hset(keys.job(job), "deadline_ms", 1)
        self.redis.zadd(keys.lane_deadlines(LANE), {job: 1})
        self.redis.pexpire(keys.lane_deadlines(LANE), 10**6)
        self.impatient.leases.reap(LANE)

    @rule(job=jobs)
    def pause(self, job: str) -> None:
        model = self.models[job]
        if model.ended or model.mode == "cancelling":
            with pytest.raises(Conflict):
                self.store.pause(job, self.tenant_of(job))
            return
        self.store.pause(job, self.tenant_of(job))
        model.mode = "paused"
        for chunk in [chunk for chunk, state in model.chunks.items() if state == "ticket"]:
            model.move(chunk, "pending")

    @rule(job=jobs)
    def resume(self, job: str) -> None:
        model = self.models[job]
        if model.ended or model.mode == "cancelling":
            with pytest.raises(Conflict):
                self.store.resume(job, self.tenant_of(job))
            return
        started = bool(model.attempts)
        self.store.resume(job, self.tenant_of(job))
        if model.mode == "paused":
            model.mode = "running" if started else "queued"

    @rule(job=jobs)
    def retry_failed(self, job: str) -> None:
        model = self.models[job]
        failed = [chunk for chunk, (_, count) in model.counted.items() if count]
        if model.state not in ("succeeded", "failed") or not failed:
            with pytest.raises(Conflict):
                self.store.retry_failed(job, self.tenant_of(job))
            return
        self.store.retry_failed(job, self.tenant_of(job))
        model.mode = "running"
        model.floor = model.fence
        for chunk in failed:
            completed, model.redo[chunk] = model.counted[chunk]
            model.counted[chunk] = completed, 0
            model.attempts[chunk] = 0
            model.move(chunk, "pending")

    @rule(job=consumes(jobs))
    def delete(self, job: str) -> None:
        self.store.delete(job, self.tenant_of(job))
        # The operator's totals go on counting what the job had done.
        self.of_deleted += self.models.pop(job).completed

    # -- workers

    @rule(target=tickets)
    def dispatch(self) -> Any:
        found = self.store.leases.dispatch(LANE)
        for ticket in found:
            model = self.models[ticket.job_id]
            assert model.chunks[ticket.chunk] == "pending"
            assert model.mode in ("queued", "running")
            model.move(ticket.chunk, "ticket")
        assert len(found) == WINDOW or not self.waits() or self.held() >= WINDOW
        return multiple(*found)

    @rule(target=claims, ticket=tickets, worker=st.sampled_from(["v", "w"]))
    def claim(self, ticket: Ticket, worker: str) -> Any:
        model = self.models.get(ticket.job_id)
        claim = self.store.leases.claim(ticket.job_id, ticket.chunk, worker)
        if model is None:
            assert claim.code is ClaimCode.GONE
            return multiple()
        state = model.chunks[ticket.chunk]
        if state == "done":
            assert claim.code is ClaimCode.DONE
        elif model.mode in ("cancelling", "paused"):
            assert claim.code is ClaimCode.STOP
        elif state in ("pending", "claimed"):
            assert claim.code is ClaimCode.BUSY
        else:
            assert claim.code is ClaimCode.OK
            model.attempts[ticket.chunk] = model.attempts.get(ticket.chunk, 0) + 1
            assert claim.attempt == model.attempts[ticket.chunk]
            model.move(ticket.chunk, "claimed")
            model.holders[ticket.chunk] = claim
            assert claim.redo is (ticket.chunk in model.redo)
            assert claim.fence > model.fence
            model.fence = claim.fence
            model.mode = "running"
            return claim
        return multiple()

    @rule(claim=claims, progress=st.integers(0, 3))
    def heartbeat(self, claim: Claim, progress: int) -> None:
        goes_on = self.holds(claim) and self.models[claim.job_id].mode == "running"
        assert self.store.leases.heartbeat(claim, progress) is not goes_on

    @rule(claim=claims, position=st.integers(0, ITEMS - 1))
    def mark(self, claim: Claim, position: int) -> None:
        goes_on = self.holds(claim) and self.models[claim.job_id].mode == "running"
        assert self.store.leases.mark(claim, [position]) is not goes_on

    @rule(claim=claims, failed=st.integers(0, ITEMS))
    def complete(self, claim: Claim, failed: int) -> None:
        model = self.models.get(claim.job_id)
        asked = model.redo.get(claim.chunk, ITEMS) if model is not None else ITEMS
        failed = min(failed, asked)
        completion = replace(make_completion(claim), completed=asked - failed, failed=failed)
        code = self.store.leases.complete(claim, completion)
        if model is None:
            assert code is Completed.GONE
            return
        late = claim.chunk in model.redo and claim.fence <= model.floor
        counts = not late and not model.ended and model.chunks[claim.chunk] not in ("done", "dropped")
        assert code is (Completed.OK if counts else Completed.DUP)
        if counts:
            before, _ = model.counted.get(claim.chunk, (0, 0))
            model.counted[claim.chunk] = (before + asked - failed, failed)
            model.redo.pop(claim.chunk, None)
            model.move(claim.chunk, "done")

    @rule(claim=claims, counted=st.booleans())
    def give_back(self, claim: Claim, counted: bool) -> None:
        holds = self.holds(claim)
        assert (self.store.leases.fail(claim, "ValueError") if counted else self.store.leases.release(claim)) is holds
        if holds:
            model = self.models[claim.job_id]
            model.attempts[claim.chunk] -= not counted
            model.put_back(claim.chunk)

    @rule(number=NUMBERS, twice=st.booleans())
    def lapse(self, number: int, twice: bool) -> None:
        """The time of a ticket or of a claim runs out; two processes may reap it."""
        entries = self.redis.zrange(keys.lane_inflight(LANE), 0, -1)
        if not entries:
            return
        job_id, _, chunk = entries[number % len(entries)].decode().rpartition(":")
        make_overdue(self.redis, job_id, int(chunk))
        for _ in range(1 + twice):
            self.impatient.leases.reap(LANE)
        self.models[job_id].put_back(int(chunk))

    @rule()
    def forget_scripts(self) -> None:
        self.redis.script_flush()

    # -- always

    @invariant()
    def jobs_are_as_the_model_says(self) -> None:
        for model in getattr(self, "models", {}).values():
            job = self.store.get(model.id, model.tenant)
            failed = sum(failed for _, failed in model.counted.values())
            assert job.state == JobState(model.state)
            assert job.counts == Counts(len(model.chunks) * ITEMS, model.completed, failed)
            assert job.chunks_done == list(model.chunks.values()).count("done")

    @invariant()
    def every_end_and_every_outcome_is_counted_once_for_the_operator(self) -> None:
        if not hasattr(self, "models"):
            return
        for model in self.models.values():
            if model.ended and model.id in self.running:
                self.ends[f"jobs:{model.state}"] += 1
        self.running = {model.id for model in self.models.values() if not model.ended}
        totals = {name.decode(): int(count) for name, count in self.redis.hgetall(keys.job_totals()).items()}
        assert {name: count for name, count in totals.items() if name.startswith("jobs:")} == self.ends
        counted = sum(model.completed for model in self.models.values())
        assert totals.get("items:completed", 0) == self.of_deleted + counted

    @invariant()
    def the_lane_holds_what_is_out_and_no_more(self) -> None:
        if not hasattr(self, "models"):
            return
        entries = {entry.decode() for entry in self.redis.zrange(keys.lane_inflight(LANE), 0, -1)}
        out = {
            f"{model.id}:{chunk}"
            for model in self.models.values()
            for chunk, state in model.chunks.items()
            if state in ("ticket", "claimed")
        }
        assert entries == out
        assert len(entries) <= WINDOW
        turns = {
            tenant: {job_id.decode() for job_id in self.redis.zrange(keys.lane_turns(LANE, tenant), 0, -1)}
            for tenant in TENANTS
        }
        assert turns == {tenant: {model.id for model in self.waits() if model.tenant == tenant} for tenant in TENANTS}
        for tenant in TENANTS:
            held = {name.decode(): int(count) for name, count in self.redis.hgetall(keys.tenant_held(tenant)).items()}
            assert held.pop("total", 0) == sum(held.values())
            assert set(held) == {model.id for model in self.models.values() if model.tenant == tenant}
            assert min(held.values(), default=0) >= 0
        ready = {tenant.decode() for tenant in self.redis.zrange(keys.lane_ready(LANE), 0, -1)}
        assert ready == {tenant for tenant, jobs in turns.items() if jobs}
        assert_expiry(self.redis)

    def tenant_of(self, job: str) -> str:
        return self.models[job].tenant

    def holds(self, claim: Claim) -> bool:
        model = self.models.get(claim.job_id)
        return model is not None and model.holders.get(claim.chunk) == claim

    def waits(self) -> list[Model]:
        """Jobs that have chunks for a ticket."""
        going = [model for model in self.models.values() if model.mode in ("queued", "running")]
        return [model for model in going if "pending" in model.chunks.values()]

    def held(self) -> int:
        return int(self.redis.zcard(keys.lane_inflight(LANE)))


def test_the_store_behaves_like_its_model(redis_url: str, settings: Settings) -> None:
    StoreMachine.url, StoreMachine.base = redis_url, settings.model_copy(update={"lease_s": 1.0})
    with Redis.from_url(redis_url) as redis:
        outlive_restart_grace(JobStore(redis, StoreMachine.base))
    StoreMachine.TestCase.settings = machine_settings
    machine = StoreMachine.TestCase()
    machine.runTest()


machine_settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
