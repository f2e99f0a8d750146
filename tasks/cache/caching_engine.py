"""An engine that computes only what was not computed before, where the work says that it may.

Owns the joining of cached and computed values, for both lanes: chunks and small requests go through the same `submit`.
Work that asks for nothing goes straight to the engine. Keeps nothing itself (`tasks.cache.values`).
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from redis import RedisError

from tasks.cache.values import CachedValue, ContentCache, digest_items
from tasks.engine import Engine, Outcomes, Work
from tasks.errors import EngineClosed, NoWorker
from tasks.vectors import DENSE_ONLY

__all__ = ["CachingEngine"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Join:
    """What is known of a piece of work while the rest of it is computed."""

    work: Work
    digests: Sequence[bytes]
    found: Mapping[bytes, CachedValue]
    missing: Sequence[int]
    fingerprint: str

    def settle(self, computed: Outcomes | None) -> Outcomes:
        """Return the outcomes of all items, in their order."""
        shown = [self.found.get(digest) for digest in self.digests]
        width = next((len(entry.value) for entry in shown if entry is not None), 1)
        shape: tuple[int, ...] = (len(shown),) if self.work.operation == "rerank" else (len(shown), width)
        if computed is not None:
            shape = (len(shown), *computed.values.shape[1:])
        values, tokens = np.zeros(shape, np.float32), np.zeros(len(shown), np.int32)
        truncated = np.zeros(len(shown), np.bool_)
        for position, entry in enumerate(shown):
            if entry is not None:
                values[position] = entry.value if values.ndim > 1 else entry.value[0]
                tokens[position], truncated[position] = entry.tokens, entry.truncated
        if computed is None:
            return Outcomes(values, tokens, truncated, cached=len(shown), fingerprint=self.fingerprint)
        rows = np.asarray(self.missing)
        values[rows], tokens[rows], truncated[rows] = computed.values, computed.tokens, computed.truncated
        errors = {self.missing[row]: error for row, error in computed.errors.items()}
        # The engine gives equal items of one work one row: those behind the first were not computed either.
        good = [self.digests[position] for position in self.missing if position not in errors]
        hits = len(shown) - len(self.missing) + len(good) - len(set(good))
        joined = Outcomes(values, tokens, truncated, errors, cached=hits, fingerprint=self.fingerprint)
        return replace(joined, timing=computed.timing)

    def entries(self, computed: Outcomes) -> dict[bytes, CachedValue]:
        """Return what is to be kept: every item that was computed without an error."""
        good = [row for row in range(len(self.missing)) if row not in computed.errors]
        return {
            self.digests[self.missing[row]]: CachedValue(
                np.atleast_1d(computed.values[row]), int(computed.tokens[row]), bool(computed.truncated[row])
            )
            for row in good
        }


class ClosableEngine(Engine, Protocol):
    """An engine as the worker holds it."""

    def close(self) -> None:
        """End what waits; idempotent."""
        ...


class CachingEngine:
    """See `tasks.engine.Engine`.

    Args:
        engine: computes.
        fingerprints: of its models as they are loaded now, by card name; values of a model without one are not kept.
        cache: keeps.
    """

    def __init__(self, engine: ClosableEngine, fingerprints: Mapping[str, str], cache: ContentCache) -> None:
        self._engine = engine
        self._fingerprints = fingerprints
        self._cache = cache
        # The engine ends its futures on the device's thread, which must not wait for Redis.
        self._settling = ThreadPoolExecutor(1, thread_name_prefix="cache")

    def submit(self, work: Work) -> Future[Outcomes]:
        """See `tasks.engine.Engine.submit`; looks up what is known in the calling thread."""
        fingerprint = self._fingerprints.get(work.model)
        # Entries hold one vector or score; work that wants other kinds is computed.
        if not work.reuse or fingerprint is None or work.params.returns != DENSE_ONLY or work.params.extras:
            return self._engine.submit(work)
        if work.fingerprint not in {"", fingerprint}:
            raise NoWorker(f"this worker has {work.model} by now as {fingerprint}")
        try:
            return self._reuse(work, fingerprint)
        except NoWorker:
            # The model was swapped just now: what was found belongs to the one before.
            if work.fingerprint or self._fingerprints.get(work.model) in {None, fingerprint}:
                raise
            return self.submit(work)

    def submit_all(self, works: Sequence[Work]) -> list[Future[Outcomes]]:
        """See `tasks.engine.Engine.submit_all`; work that asks for values that are known goes one by one."""
        if not any(work.reuse for work in works):
            return self._engine.submit_all(works)
        return [self._submit_safely(work) for work in works]

    def _submit_safely(self, work: Work) -> Future[Outcomes]:
        try:
            return self.submit(work)
        except Exception as error:  # noqa: BLE001 - an edge: it goes to who asked
            refused = Future[Outcomes]()
            refused.set_exception(error)
            return refused

    def _reuse(self, work: Work, fingerprint: str) -> Future[Outcomes]:
        digests = digest_items(work, fingerprint)
        found = self._find(work.reuse, digests)
        missing = [position for position, digest in enumerate(digests) if digest not in found]
        join = _Join(work, digests, found, missing, fingerprint)
        if missing or not digests:
            return self._compute(join)
        known = Future[Outcomes]()
        known.set_result(join.settle(None))
        return known

    def progress(self) -> int:
        """See `tasks.engine.Engine.progress`."""
        return self._engine.progress()

    def close(self) -> None:
        """Close the engine, then wait until what that ended is settled. Idempotent."""
        self._engine.close()
        self._settling.shutdown()

    def _find(self, scope: str, digests: Sequence[bytes]) -> Mapping[bytes, CachedValue]:
        try:
            return self._cache.find(scope, list(dict.fromkeys(digests)))
        except RedisError:
            _log.debug("the cache does not answer; everything is computed")
            return {}

    def _compute(self, join: _Join) -> Future[Outcomes]:
        outer = Future[Outcomes]()
        missing = replace(_select(join.work, join.missing), reuse="", fingerprint=join.fingerprint)
        inner = self._engine.submit(missing)
        inner.add_done_callback(lambda ended: self._settling.submit(self._finish, join, ended, outer))
        outer.add_done_callback(lambda ended: inner.cancel() if ended.cancelled() else None)
        return outer

    def _finish(self, join: _Join, inner: Future[Outcomes], outer: Future[Outcomes]) -> None:
        if not outer.set_running_or_notify_cancel():
            return
        try:
            outer.set_result(self._settle(join, inner))
        except BaseException as error:  # noqa: BLE001 - the edge of this thread: a caller waits for this future
            outer.set_exception(error)

    def _settle(self, join: _Join, inner: Future[Outcomes]) -> Outcomes:
        if inner.cancelled():
            raise EngineClosed("the worker is going away")
        computed = inner.result()
        # Kept before the answer is given, so that a caller who has it and asks again finds it.
        try:
            self._cache.keep(join.work.reuse, join.entries(computed))
        except RedisError:
            _log.debug("the cache takes nothing now")
        return join.settle(computed)


def _select(work: Work, positions: Sequence[int]) -> Work:
    queries = None if work.queries is None else [work.queries[position] for position in positions]
    return replace(work, texts=[work.texts[position] for position in positions], queries=queries)
