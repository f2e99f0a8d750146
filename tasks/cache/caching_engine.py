"""An engine that computes only what was not computed before, where the work says that it may.

Owns the joining of found and computed values, for both lanes: chunks and small requests go through the same `submit`.
Work that asks for nothing goes straight to the engine. Keeps nothing itself (`tasks.cache.store`).
"""

import contextlib
import logging
import queue
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from redis import RedisError

from tasks.cache.futures import fail, merge_parts, pass_on
from tasks.cache.store import Claimed, ContentCache, Entry, digest_items, is_job
from tasks.engine import Engine, Outcomes, Work
from tasks.errors import EngineClosed
from tasks.vectors import DENSE_ONLY

__all__ = ["ReusingEngine"]

_log = logging.getLogger(__name__)
_CLOSE_S = 5.0
# How often it is looked whether somebody else has computed what is waited for.
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class _Join:
    """What is known of a piece of work while the rest of it is computed."""

    work: Work
    digests: Sequence[bytes]
    found: Mapping[bytes, Entry]
    missing: Sequence[int]
    outer: Future[Outcomes]
    # Who claimed what is missing; empty: nobody had to.
    owner: str = ""

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
            return Outcomes(values, tokens, truncated, cached=len(shown))
        rows = np.asarray(self.missing)
        values[rows], tokens[rows], truncated[rows] = computed.values, computed.tokens, computed.truncated
        errors = {self.missing[row]: error for row, error in computed.errors.items()}
        # The engine gives equal items of one work one row: those behind the first were not computed either.
        good = [self.digests[position] for position in self.missing if position not in errors]
        taken_over = len(shown) - len(self.missing) + len(good) - len(set(good))
        return Outcomes(values, tokens, truncated, errors, cached=taken_over)

    def entries(self, computed: Outcomes) -> dict[bytes, Entry]:
        """Return what is worth keeping: every item that was computed without an error."""
        good = [row for row in range(len(self.missing)) if row not in computed.errors]
        return {
            self.digests[self.missing[row]]: Entry(
                np.atleast_1d(computed.values[row]), int(computed.tokens[row]), bool(computed.truncated[row])
            )
            for row in good
        }


@dataclass(frozen=True, slots=True)
class _Wait:
    """Items that somebody else computes just now."""

    work: Work
    digests: Sequence[bytes]
    owner: str
    until_s: float
    outer: Future[Outcomes]
    found: dict[bytes, Entry] = field(default_factory=dict)


class ClosableEngine(Engine, Protocol):
    """An engine as the worker holds it."""

    def close(self) -> None:
        """End what waits; idempotent."""
        ...


class ReusingEngine:
    """See `tasks.engine.Engine`.

    Args:
        engine: computes.
        fingerprints: of its models, by card name; values of a model without one are not kept.
        cache: keeps.
    """

    def __init__(self, engine: ClosableEngine, fingerprints: Mapping[str, str], cache: ContentCache) -> None:
        self._engine = engine
        self._fingerprints = fingerprints
        self._cache = cache
        self._ended: queue.SimpleQueue[tuple[_Join, Future[Outcomes]] | _Wait | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, work: Work) -> Future[Outcomes]:
        """See `tasks.engine.Engine.submit`; looks up what is known in the calling thread."""
        fingerprint = self._fingerprints.get(work.model)
        # Entries hold one vector or score; whoever asks for other kinds has them computed.
        if not work.reuse or fingerprint is None or work.params.returns != DENSE_ONLY:
            return self._engine.submit(work)
        digests = digest_items(work, fingerprint)
        if is_job(work.reuse):
            return self._share(work, digests)
        return self._join(work, digests, self._find(work.reuse, digests))

    def progress(self) -> int:
        """See `tasks.engine.Engine.progress`."""
        return self._engine.progress()

    def close(self) -> None:
        """Close the engine, then end the thread, when it has settled what that ended. Idempotent."""
        self._engine.close()
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ended.put(None)
            thread.join(_CLOSE_S)

    def _join(
        self, work: Work, digests: Sequence[bytes], found: Mapping[bytes, Entry], owner: str = ""
    ) -> Future[Outcomes]:
        missing = [position for position, digest in enumerate(digests) if digest not in found]
        join = _Join(work, digests, found, missing, Future(), owner)
        if missing or not digests:
            self._compute(join)
        else:
            join.outer.set_result(join.settle(None))
        return join.outer

    def _share(self, work: Work, digests: Sequence[bytes]) -> Future[Outcomes]:
        """Compute what is claimed here at once, and wait only for the rest: two that wait for each other both end."""
        owner = secrets.token_hex(8)
        claimed = self._claim(work.reuse, digests, owner)
        if not claimed.busy:
            return self._join(work, digests, claimed.found, owner)
        ours = [position for position, digest in enumerate(digests) if digest not in claimed.busy]
        theirs = [position for position, digest in enumerate(digests) if digest in claimed.busy]
        later = Future[Outcomes]()
        until_s = time.monotonic() + self._cache.patience_s
        wait = _Wait(_select(work, theirs), [digests[position] for position in theirs], owner, until_s, later)
        parts = [(theirs, later)]
        if ours:
            known = [digests[position] for position in ours]
            parts.append((ours, self._join(_select(work, ours), known, claimed.found, owner)))
        self._start_once()
        self._ended.put(wait)
        return merge_parts(len(digests), parts)

    def _claim(self, scope: str, digests: Sequence[bytes], owner: str) -> Claimed:
        try:
            return self._cache.claim(scope, list(dict.fromkeys(digests)), owner)
        except RedisError:
            _log.debug("the cache does not answer; all is computed")
            return Claimed({})

    def _find(self, scope: str, digests: Sequence[bytes]) -> Mapping[bytes, Entry]:
        try:
            return self._cache.find(scope, list(dict.fromkeys(digests)))
        except RedisError:
            _log.debug("the cache does not answer; all is computed")
            return {}

    def _compute(self, join: _Join) -> None:
        self._start_once()
        work, missing = join.work, join.missing
        try:
            inner = self._engine.submit(replace(_select(work, missing), reuse=""))
        except BaseException:
            self._release(join)
            raise
        # The engine ends its futures on the device's thread, which must not wait for a server.
        inner.add_done_callback(lambda ended: self._ended.put((join, ended)))
        join.outer.add_done_callback(lambda outer: inner.cancel() if outer.cancelled() else None)

    def _start_once(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._settle_forever, name="reuse", daemon=True)
                self._thread.start()

    def _settle_forever(self) -> None:
        waits: list[_Wait] = []
        while True:
            try:
                ended = self._ended.get(timeout=_POLL_S if waits else None)
            except queue.Empty:
                waits = [wait for wait in waits if not self._look(wait)]
                continue
            if ended is None:
                for wait in waits:
                    fail(wait.outer, EngineClosed("the worker gave this work up"))
                return
            if isinstance(ended, _Wait):
                waits.append(ended)
            else:
                self._finish(*ended)

    def _look(self, wait: _Wait) -> bool:
        """Go on with what was waited for, if nobody computes it any more or it takes too long; return whether."""
        if wait.outer.cancelled():
            return True
        try:
            wanted = [digest for digest in wait.digests if digest not in wait.found]
            claimed = self._claim(wait.work.reuse, wanted, wait.owner)
            wait.found.update(claimed.found)
            if claimed.busy and time.monotonic() < wait.until_s:
                return False
            pass_on(self._join(wait.work, wait.digests, wait.found, wait.owner), wait.outer)
        except BaseException as error:  # noqa: BLE001 - the edge of this thread: somebody waits for this future
            fail(wait.outer, error)
        return True

    def _finish(self, join: _Join, inner: Future[Outcomes]) -> None:
        try:
            if join.outer.set_running_or_notify_cancel():
                join.outer.set_result(self._settle(join, inner))
        except BaseException as error:  # noqa: BLE001 - the edge of this thread: somebody waits for this future
            join.outer.set_exception(error)
        finally:
            self._release(join)

    def _settle(self, join: _Join, inner: Future[Outcomes]) -> Outcomes:
        if inner.cancelled():
            raise EngineClosed("the worker gave this work up")
        computed = inner.result()
        # Kept before the answer is given, so that whoever has it and asks again finds it.
        try:
            self._cache.keep(join.work.reuse, join.entries(computed))
        except RedisError:
            _log.debug("the cache takes nothing now")
        return join.settle(computed)

    def _release(self, join: _Join) -> None:
        """Those who wait for these values find them now, or compute them; after a lost reply, when the claims lapse."""
        if not join.owner:
            return
        with contextlib.suppress(RedisError):
            claimed = list(dict.fromkeys(join.digests[position] for position in join.missing))
            self._cache.release(join.work.reuse, claimed, join.owner)


def _select(work: Work, positions: Sequence[int]) -> Work:
    queries = None if work.queries is None else [work.queries[position] for position in positions]
    return replace(work, texts=[work.texts[position] for position in positions], queries=queries)
