"""The submission service: work is answered now or becomes a job.

Owns the limits of a request that are settings, the choice between the lanes, and the order in which a job's inputs,
record and tickets are written. Knows neither HTTP nor the shape of a body.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from redis import RedisError

from app.access.auth import Tenant
from app.http.places import Kind, current_place
from app.http.request_ids import note_facts
from app.http.spans import note_stages
from app.services import Services
from app.submission.chunk_upload import ChunkUpload
from app.submission.model_waiting import await_model, explain_no_worker
from app.submission.orders import (
    Estimate,
    Order,
    Priority,
    Submission,
    check_capability,
    count_chunks,
    estimate_result_bytes,
    limit_chunks,
)
from app.submission.payload import PayloadHash
from config.catalog import ModelCard
from config.settings import Settings
from tasks.bulk.outcomes import pack_outcomes
from tasks.cache.values import tenant_scope
from tasks.engine import JobParams, Outcomes, Work, count_usage
from tasks.errors import Conflict, InvalidRequest, ModelNotFound, NoWorker, TwolaneError
from tasks.jobs.chunking import ChunkLimits, Item, cut_chunks, estimate_tokens
from tasks.jobs.job import Counts, Idempotency, NewJob, new_job_id
from tasks.lanes import Lane, Service

__all__ = ["SubmissionService"]

_log = logging.getLogger(__name__)

Settle = Callable[[], Idempotency | None]
_RANK: Mapping[Priority, int] = {"low": 0, "normal": 1, "high": 2}


class SubmissionService:
    """Has the work of one tenant done, at once or as jobs."""

    def __init__(self, services: Services, tenant: Tenant) -> None:
        self._services = services
        self._settings: Settings = services.settings
        self._tenant = tenant
        self._place = current_place()

    def answer(self, order: Order, items: Sequence[Item]) -> Outcomes:
        """Have the items computed now and wait for it.

        Items above the interactive limits are answered in the same call too, but scheduled as bulk, so that they
        delay no small call.

        Raises:
            InvalidRequest, WrongCapability: the order does not fit the model or the limits.
            tasks.errors.CapacityError, tasks.errors.WorkError: as `InteractiveClient.ask`.
        """
        return self._ask(order, *self._admit(order, items))

    def answer_in_parts(self, order: Order, items: Sequence[Item], part_items: int) -> Iterator[Outcomes]:
        """Do the same a part at a time, in the order of the items; a call that is refused raises before the first.

        Raises:
            tasks.errors.TwolaneError: as `answer`.
        """
        checked, _, service = self._admit(order, items)
        for start in range(0, len(checked), part_items):
            part = checked[start : start + part_items]
            yield self._ask(order, part, self._estimate_tokens(order, part), service)

    def submit(self, order: Order, items: Iterable[Item], idempotency: Settle, *, queue: bool = False) -> Submission:
        """Make a job of the items: answered at once when small, else queued.

        Args:
            order: what to do.
            items: may be a stream; it is read once, and never whole in memory.
            idempotency: gives the caller's key and the hash of what it stands for; asked when all items are read.
            queue: queue it however small it is.

        Raises:
            InvalidRequest: an item is bad; nothing stays stored.
            tasks.errors.TwolaneError: as `answer`, and as `JobStore.create`.
        """
        check_capability(order)
        stream = self._check(order, items)
        self._check_times(order)
        if queue or order.is_timed:
            return self._queue(order, stream, idempotency)
        head = list(itertools.islice(stream, self._settings.interactive_max_items + 1))
        tokens = self._estimate_tokens(order, head)
        # Only a worker enters what failed before it was computed.
        if not self._is_small(len(head), tokens) or any(item.refused is not None for item in head):
            return self._queue(order, itertools.chain(head, stream), idempotency)
        return self._serve(order, head, tokens, idempotency)

    def repeat(self, order: Order, items: Iterable[Item], payload: PayloadHash) -> Submission | None:
        """Return the job that the caller's idempotency key stands for; None: the key is new.

        A stream is read to its end, to know whether it is the same, and nothing of it is stored.

        Raises:
            IdempotencyMismatch: the key was used with another payload.
            InvalidRequest: an item is bad.
            Conflict: the job was deleted meanwhile.
        """
        store, tenant = self._services.store, self._tenant.name
        if payload.key is None or store.named(tenant, payload.key) is None:
            return None
        if payload.streamed:
            for _ in self._check(order, items):
                pass
        settled = payload.settle()
        known = store.find(tenant, settled) if settled is not None else None
        if known is None:
            raise Conflict("the job of this idempotency key was deleted just now: send the request again")
        return Submission(known)

    def estimate(self, order: Order, items: Iterable[Item]) -> Estimate:
        """Tell what a job would cost; nothing is stored.

        Raises:
            InvalidRequest, WrongCapability: the job would be refused.
        """
        check_capability(order)
        counted = chunks = tokens = 0
        for record, _ in cut_chunks(self._check(order, items), self._chunk_limits(order)):
            chunks, counted, tokens = chunks + 1, counted + record.items, tokens + record.tokens
        self._require_items(order, counted)
        small = self._is_small(counted, tokens) and not order.is_timed
        return Estimate(counted, tokens, chunks, Service.INTERACTIVE if small else Service.BULK)

    def inspect(self, order: Order, items: Sequence[Item], *, queued: bool = False) -> list[Item]:
        """Return the items of one call, checked; `queued`: they are not for now.

        Raises:
            InvalidRequest, WrongCapability: the order does not fit the model or the limits.
            NoWorker: queued for a model that no worker of this installation loads.
        """
        check_capability(order)
        if queued:
            self._require_served(order.card)
        self.require_few(order, len(items))
        checked = list(self._check(order, items))
        self._require_light(order, checked)
        return checked

    # -- answered at once

    def _admit(self, order: Order, items: Sequence[Item]) -> tuple[list[Item], int, Service]:
        """Return the items of a call, their tokens and their class of service; the key has paid for them."""
        checked = self.inspect(order, items)
        tokens = self._estimate_tokens(order, checked)
        small = self._is_small(len(checked), tokens) and order.priority != "low"
        service = Service.INTERACTIVE if small else Service.BULK
        if service is Service.BULK:
            # Each holds a thread for as long as minutes, and small calls need threads too.
            self._place.move(Kind.LARGE)
        self._charge(tokens)
        return checked, tokens, service

    def _charge(self, tokens: int) -> None:
        """Take tokens off the key's limit. Queued jobs pay none: what they may hold is limited by items."""
        if self._services.limiter is not None:
            self._services.limiter.charge(self._tenant, "tokens", tokens)

    def _ask(self, order: Order, items: Sequence[Item], tokens: int, service: Service) -> Outcomes:
        small = service is Service.INTERACTIVE
        timeout_s = self._settings.interactive_timeout_s if small else self._settings.large_call_timeout_s
        until_s = self._place.arrived_s + timeout_s
        cache = self._tenant.cache if order.params.cache is None else order.params.cache
        work = Work(
            model=order.card.name,
            operation=order.operation,
            texts=[item.text for item in items],
            queries=[item.query or "" for item in items] if order.operation == "rerank" else None,
            service=service,
            deadline_s=until_s,
            params=order.params,
            reuse=tenant_scope(self._tenant.name) if cache else "",
            urgent=order.priority == self._tenant.priority == "high",
        )
        self._require_offered(order.card)
        self._place.join(f"calls of {order.card.name}")
        asked_s = time.monotonic()
        outcomes = self._have_computed(order, work, tokens)
        self._measure(order.card.slug, outcomes, asked_s)
        if small:
            self._services.activity.note_call(time.monotonic() - self._place.arrived_s)
        return outcomes

    def _measure(self, model: str, outcomes: Outcomes, asked_s: float) -> None:
        """Count where the time of a call went, and what its key has used."""
        counters, timing = self._services.counters, outcomes.timing
        counters.observe("call_stage_seconds", (model, "accept"), asked_s - self._place.arrived_s)
        if timing.worker_s:
            way_s = max(0.0, time.monotonic() - asked_s - timing.worker_s)
            for stage, took_s in (("list", way_s), ("queue", timing.queue_s), ("device", timing.device_s)):
                counters.observe("call_stage_seconds", (model, stage), took_s)
        key, tokens = (self._tenant.name, self._tenant.key_id), int(outcomes.tokens.sum())
        count_usage(counters, key, len(outcomes.tokens), tokens, timing.device_s)
        note_stages(asked_s, timing)
        note_facts(model=model, items=len(outcomes.tokens), tokens=tokens)

    def _have_computed(self, order: Order, work: Work, tokens: int) -> Outcomes:
        while True:
            try:
                return self._services.interactive.ask(work, tokens)
            except NoWorker:
                await_model(self._services, order.card, work.deadline_s or 0.0)

    def _serve(self, order: Order, items: Sequence[Item], tokens: int, settle: Settle) -> Submission:
        """Answer a small job and keep it like any other."""
        self._require_items(order, len(items))
        store, idempotency = self._services.store, settle()
        if idempotency is not None and (known := store.find(self._tenant.name, idempotency)) is not None:
            return Submission(known)
        self._charge(tokens)
        outcomes = self._ask(order, items, tokens, Service.INTERACTIVE)
        frame = _pack_result(order, items, outcomes)
        failed = len(outcomes.errors)
        counts = Counts(len(items), len(items) - failed, failed, int(outcomes.truncated.sum()), outcomes.cached or 0)
        new = replace(self.describe(order, new_job_id(), len(items), tokens), fingerprint=outcomes.fingerprint)
        job, created = store.record_finished(new, frame, counts, int(outcomes.tokens.sum()), idempotency)
        return Submission(job, frame if created else None, created)

    # -- queued

    def _queue(self, order: Order, items: Iterable[Item], settle: Settle) -> Submission:
        """Store the inputs chunk by chunk, then the job in one step; after a failure nothing stays."""
        self._require_served(order.card)
        store = self._services.store
        lane = Lane(order.card.slug, Service.BULK)
        upload = ChunkUpload(store, self._services.blobs, lane, self._tenant)
        answered = True
        try:
            for record, chunk in cut_chunks(items, self._chunk_limits(order)):
                upload.put(record, chunk)
            self._require_items(order, upload.items)
            new = self.describe(order, upload.job_id, upload.items, upload.tokens, upload.id_bytes)
            answered = False
            job, created = store.create(replace(new, input_bytes=upload.input_bytes), upload.records, settle())
        except BaseException as error:
            # When only the answer was lost, the job is there and needs its inputs; else they expire.
            if answered or isinstance(error, TwolaneError):
                _delete(upload)
            raise
        if created:
            self.publish(lane, job.chunks)
        else:
            _delete(upload)
        return Submission(job, created=created)

    def publish(self, lane: Lane, chunks: int) -> None:
        """Let workers know of so many more chunks. That it fails is no failure of the job: workers look themselves."""
        # A web process that answers only small calls never pays for Celery.
        from tasks.bulk.chunk_task import publish_messages  # noqa: PLC0415 - Celery takes 0.2 s and 20 MB to import

        try:
            publish_messages(self._services.store.leases, lane, chunks)
        except RedisError:
            _log.warning("Redis went away before the messages of a new job were published; a worker will do it")

    def describe(self, order: Order, job_id: str, total: int, tokens: int, id_bytes: int = 0) -> NewJob:
        """Return the job that the order would be, with so many items, estimated tokens and bytes of callers' ids."""
        return NewJob(
            id=job_id,
            tenant=self._tenant.name,
            operation=order.operation,  # type: ignore[arg-type]  # work on tokens is answered at once
            model=order.card.name,
            lane=Lane(order.card.slug, Service.BULK),
            total=total,
            estimated_tokens=tokens,
            params=self._settle_reuse(order.params),
            # A key may lower what it has, never raise it.
            priority=min(order.priority, self._tenant.priority, key=_RANK.__getitem__),
            fingerprint=self._fingerprint(order.card),
            extra=order.extra,
            webhook=order.webhook,
            deadline_in_s=order.expires_in_s,
            begin_in_s=None if order.not_before is None else max(0.0, order.not_before - time.time()),
            queue_limit=self._tenant.max_queued_items,
            quota=self._tenant.quota,
            share=self._tenant.share,
            key_id=self._tenant.key_id,
            result_bytes=estimate_result_bytes(order, total, tokens) + id_bytes,
        )

    def _settle_reuse(self, params: JobParams) -> JobParams:
        """Fill in what the key says where the request says nothing."""
        cache = self._tenant.cache if params.cache is None else params.cache
        dedupe = self._tenant.dedupe if params.dedupe is None else params.dedupe
        return replace(params, cache=cache, dedupe=dedupe)

    def _fingerprint(self, card: ModelCard) -> str:
        workers = self._services.presence.ready_models().get(card.slug, [])
        return workers[0].fingerprint if workers else ""

    # -- limits

    def _check_times(self, order: Order) -> None:
        kept_s, wait_s = self._settings.job_ttl_s, (order.not_before or 0.0) - time.time()
        if order.expires_in_s is not None and order.expires_in_s > kept_s:
            raise InvalidRequest(f"a job is kept for {kept_s:.0f} seconds, and cannot expire later", param="expires_in")
        if wait_s >= min(kept_s, order.expires_in_s or kept_s):
            raise InvalidRequest("the job would have expired before it may begin", param="not_before")

    def _check(self, order: Order, items: Iterable[Item]) -> Iterator[Item]:
        for position, item in enumerate(items):
            if position >= self._settings.max_job_items:
                raise InvalidRequest(f"a job has at most {self._settings.max_job_items} items", param=order.items_field)
            self._check_length(item.text, f"item {position}", order.items_field)
            self._check_length(item.query or "", "the query", "query")
            yield item

    def _check_length(self, text: str, name: str, param: str) -> None:
        most = self._settings.max_text_chars
        if len(text) > most:
            raise InvalidRequest(f"{name} has {len(text)} characters; at most {most} are taken", param=param)

    def _require_served(self, card: ModelCard) -> None:
        """A job for a model that no worker of this installation can serve would wait for ever."""
        self._require_offered(card)
        if self._services.reports.given_up(card.slug):
            raise explain_no_worker(self._services, card)

    def _require_offered(self, card: ModelCard) -> None:
        live = self._services
        if any(card.name == served.name for served in live.catalog.served):
            return
        if card.slug not in live.presence.ready_models() and not live.reports.of(card.slug):
            message = f"The model `{card.name}` is in the catalogue, but this server is not set up for it."
            raise ModelNotFound(f"{message} Its operator adds it to TWOLANE_MODELS.", param="model")

    def require_few(self, order: Order, items: int) -> None:
        """Refuse more items than one call takes.

        Raises:
            InvalidRequest: there are more.
        """
        most = self._settings.max_inputs
        if items > most:
            message = (
                f"{order.items_field} has {items} items; one call takes at most {most}. Queue them instead: "
                "POST /v1/jobs, or the same call with the header Prefer: respond-async"
            )
            raise InvalidRequest(message, param=order.items_field)

    def _require_light(self, order: Order, items: Sequence[Item]) -> None:
        """A call's answer is held whole in memory, and token vectors are a hundred times what the text is."""
        if count_chunks(order, self._estimate_tokens(order, items)) > self._settings.max_inputs:
            message = f"one call gives at most {self._settings.max_inputs} chunks; POST /v1/jobs queues more"
            raise InvalidRequest(message, param=order.items_field)
        if "colbert" in order.params.returns and not self._is_small(len(items), self._estimate_tokens(order, items)):
            most = f"{self._settings.interactive_max_items} items and {self._settings.interactive_max_tokens} tokens"
            message = f"one call takes at most {most} when colbert vectors are asked for; POST /v1/jobs queues more"
            raise InvalidRequest(message, param=order.items_field)

    @staticmethod
    def _require_items(order: Order, items: int) -> None:
        if items == 0:
            raise InvalidRequest("must not be empty", param=order.items_field)

    def _estimate_tokens(self, order: Order, items: Iterable[Item]) -> int:
        most = order.max_tokens
        return sum(
            min(most, estimate_tokens(item.text, most) + (estimate_tokens(item.query, most) if item.query else 0))
            for item in items
        )

    def _is_small(self, items: int, tokens: int) -> bool:
        return items <= self._settings.interactive_max_items and tokens <= self._settings.interactive_max_tokens

    def _chunk_limits(self, order: Order) -> ChunkLimits:
        return limit_chunks(self._settings, order)


def _delete(upload: ChunkUpload) -> None:
    """Delete the inputs of a job that was not created, or was created before under the same key."""
    try:
        upload.delete()
    except RedisError:
        _log.warning("the inputs of a job that was not created stay until they expire")


def _pack_result(order: Order, items: Sequence[Item], outcomes: Outcomes) -> bytes:
    """Return the result frame of a whole small job as one chunk, as `tasks.bulk.chunk_task` writes it."""
    ids = [item.id for item in items] if any(item.id is not None for item in items) else None
    return pack_outcomes(0, ids, outcomes, order.params.dtype)
