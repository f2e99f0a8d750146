"""The client of the interactive lane, in the web process: `InteractiveClient.ask()`. The server is in the worker.

Owns two threads and their connections, and the admission by push_request.lua. At most once is right here: a call has
a deadline and may be repeated. Layout of the bytes: `tasks.interactive.protocol`. Needs Redis or Valkey 7 or newer.
"""

import functools
import itertools
import logging
import os
import queue
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

from redis import ConnectionError as RedisConnectionError
from redis import Redis, RedisError

from config.catalog import slug_of
from config.settings import Settings
from tasks import keys
from tasks.connections import Command, PackedConnection, connect
from tasks.engine import Outcomes, Work
from tasks.errors import DeadlineExceeded, LaneFull, NoWorker, StoreUnavailable, TooLarge, TwolaneError
from tasks.interactive import protocol
from tasks.keys import Key
from tasks.lanes import Lane
from tasks.redis_failures import explain_failure, words_of
from tasks.scripts import Script, command

__all__ = ["InteractiveClient"]

_log = logging.getLogger(__name__)

_BLOCK_S = 0.4  # how long a blocking read waits, and so the longest that a thread takes to notice its end
_PER_TRIP = 256
# A large request goes with few others: what happens to its trip happens to all in it.
_BYTES_PER_TRIP = 2**20
_RECONNECT_S = 0.1
# Of the time until its deadline, the part within which a request's answer has to be expected.
_HOPEFUL = 0.8
_NEWEST = 0.1  # of a lane's rate, how much the newest answer counts
_BEFORE_FIRST_ANSWER = 64


class PushRequestScript(Script):
    """Admit requests to a lane.

    Attributes:
        waiting_list: requests that wait.
        load: tokens that wait in it.
        workers: ready workers of the model.
        infos: their descriptions.
        max_tokens: most tokens that may wait.
        requests: as `tasks.interactive.protocol` lays them out, with the time left.
    """

    waiting_list: Key
    load: Key
    workers: Key
    infos: Key
    max_tokens: int
    requests: Sequence[bytes]


class _PendingCall:
    """One call that waits. It is settled once: by a reply or by an error."""

    __slots__ = ("_settled", "body", "error", "expires_s", "lane", "number", "reply")

    def __init__(self, number: int, lane: Lane, expires_s: float) -> None:
        self.number = number
        self.lane = lane
        self.expires_s = expires_s
        self.body = b""
        self.reply: bytes | None = None
        self.error: TwolaneError | None = None
        # A bare lock is the cheapest thing in Python that one thread can wait for and another can open.
        self._settled = threading.Lock()
        self._settled.acquire()

    def settle(self, *, reply: bytes | None = None, error: TwolaneError | None = None) -> None:
        if self.reply is None and self.error is None:
            self.reply, self.error = reply, error
            try:
                self._settled.release()
            except RuntimeError:  # another thread settled it in the same moment
                return

    def wait(self) -> bytes:
        if not self._settled.acquire(timeout=max(0.0, self.expires_s - time.monotonic())):
            raise DeadlineExceeded("no worker answered within the deadline")
        if self.error is not None:
            raise self.error
        return cast("bytes", self.reply)


class _Flow:
    """How fast a lane answers this process, and so which request would come too late. Thread-safe.

    Work that a worker has taken is in no list any more, and waits there as long: only who asked knows of it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = self._requests = 0
        # Tokens a second, as the answers of late show it; 0: nothing was answered yet.
        self._rate = 0.0

    def enter(self, tokens: int, left_s: float) -> int:
        """Count a request in; return the tokens that wait with it.

        Raises:
            tasks.errors.LaneFull: its answer would come after its deadline, by what the last answers took.
        """
        with self._lock:
            ahead = self._waiting + tokens
            wait_s = ahead / self._rate if self._rate and self._waiting else 0.0
            # Before the first answer a lane's rate is not known: a burst must not fill a slow one.
            if not self._rate and self._requests >= _BEFORE_FIRST_ANSWER:
                raise LaneFull("the first requests for this model are not answered yet", retry_after_s=1)
            if wait_s > _HOPEFUL * left_s:
                message = (
                    f"more work waits for this model than it computes in the {left_s:.0f} s that this call may take"
                )
                raise LaneFull(message, retry_after_s=wait_s - _HOPEFUL * left_s)
            self._waiting = ahead
            self._requests += 1
            return ahead

    def leave(self, tokens: int) -> None:
        """Count a request out."""
        with self._lock:
            self._waiting -= tokens
            self._requests -= 1

    def learn(self, ahead: int, took_s: float) -> None:
        """Note that so many tokens, the request's own among them, were computed in that time."""
        rate = ahead / max(took_s, 1e-6)
        with self._lock:
            # A request on an idle lane says little of what a full one computes: what was reached counts for a while.
            self._rate = rate if rate > self._rate else self._rate + _NEWEST * (rate - self._rate)


class InteractiveClient:
    """Sends requests to workers and waits for their replies. Thread-safe; one per web process.

    A call is sent by its own thread where no other one is being sent, which saves a change of threads. A thread of the
    client sends what comes meanwhile, one more reads all replies; both start with the first call, after any fork.

    Args:
        settings: limits and times.
        redis_url: Redis of the lanes; empty takes `settings.redis_url`.
    """

    def __init__(self, settings: Settings, redis_url: str = "") -> None:
        self._settings = settings
        self._url = redis_url or settings.redis_url
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._numbers = itertools.count(1)
        self._calls: dict[int, _PendingCall] = {}
        self._flows: dict[Lane, _Flow] = defaultdict(_Flow)
        self._outbox: queue.SimpleQueue[_PendingCall | None] = queue.SimpleQueue()
        # Guards the connection over which requests are sent.
        self._sending = threading.Lock()
        self._sender_busy = False
        self._redis = connect(self._url, name="ask")
        self._connection = PackedConnection(self._redis)
        self._reply_key = keys.replies(secrets.token_hex(8))
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def ask(self, work: Work, tokens: int) -> Outcomes:
        """Have a worker compute the work and wait for it.

        Args:
            work: `deadline_s` is honoured; without one `Settings.interactive_timeout_s` holds. Work of the bulk
                service waits in a list of its own, so that it never delays a small one.
            tokens: estimate of what it adds to the lane.

        Raises:
            tasks.errors.TooLarge: its texts have more bytes than one call may have.
            tasks.errors.NoWorker: no worker is ready for the model.
            tasks.errors.LaneFull: too many tokens wait already, or more than are computed before the deadline.
            tasks.errors.DeadlineExceeded: no answer in time.
            tasks.errors.StoreUnavailable: Redis does not answer, or this client is closed.
            tasks.errors.TwolaneError: what the worker reported, of its own class.
        """
        self._start_once()
        expires_s = work.deadline_s
        if expires_s is None:
            expires_s = time.monotonic() + self._settings.interactive_timeout_s
        call = _PendingCall(next(self._numbers), Lane(slug_of(work.model), work.service), expires_s)
        call.body = protocol.encode_request(call.number, self._reply_key, tokens, work)
        self._require_light(call.body)
        flow, started_s = self._flows[call.lane], time.monotonic()
        ahead = flow.enter(tokens, expires_s - started_s)
        self._calls[call.number] = call
        try:
            self._deliver(call)
            if self._closing.is_set():
                raise StoreUnavailable("the web process is going away")
            reply = call.wait()
            flow.learn(ahead, time.monotonic() - started_s)
            return protocol.decode_reply(reply)
        except DeadlineExceeded:
            flow.learn(ahead, time.monotonic() - started_s)
            raise
        finally:
            self._calls.pop(call.number, None)
            flow.leave(tokens)

    def _require_light(self, body: bytes) -> None:
        most = self._settings.max_call_bytes
        if len(body) > most:
            message = f"this call has {len(body)} bytes of text; one call takes at most {most}, and POST /v1/jobs more"
            raise TooLarge(message)

    def close(self) -> None:
        """End the threads, settle what waits and delete the reply list. Safe to call twice."""
        self._closing.set()
        self._outbox.put(None)
        for thread in self._threads:
            thread.join(2 * _BLOCK_S)
        self._settle_all("the web process is going away")
        self._redis.close()

    def _start_once(self) -> None:
        if self._threads and self._pid == os.getpid():
            return
        with self._lock:
            if self._pid != os.getpid():
                self._forget()  # threads and connections stayed in the parent
            if not self._threads:
                threads = [
                    threading.Thread(target=self._send_forever, name="interactive-send", daemon=True),
                    threading.Thread(target=self._read_forever, name="interactive-read", daemon=True),
                ]
                for thread in threads:
                    thread.start()
                self._threads = threads

    def _settle_all(self, why: str | Exception) -> None:
        for call in list(self._calls.values()):
            call.settle(error=StoreUnavailable(why) if isinstance(why, str) else explain_failure(why))

    def _deliver(self, call: _PendingCall) -> None:
        """Send a call, or leave it to the sender where that has others to send before."""
        if self._sender_busy or not self._sending.acquire(blocking=False):
            self._outbox.put(call)
            return
        try:
            self._send_or_give_up([call])
        finally:
            self._sending.release()

    def _send_forever(self) -> None:
        while batch := self._collect():
            self._sender_busy = True
            with self._sending:
                self._send_or_give_up(batch)
            self._sender_busy = False

    def _send_or_give_up(self, batch: list[_PendingCall]) -> None:
        try:
            self._send(batch)
        except Exception as error:  # noqa: BLE001 - the edge of sending: callers get an error
            self._give_up(batch, error)

    def _collect(self) -> list[_PendingCall]:
        """Wait for one call, then take all that wait with it; empty when closing."""
        batch: list[_PendingCall] = []
        size_bytes, call = 0, self._outbox.get()
        while call is not None:
            batch.append(call)
            size_bytes += len(call.body)
            if len(batch) >= _PER_TRIP or size_bytes >= _BYTES_PER_TRIP:
                break
            try:
                call = self._outbox.get_nowait()
            except queue.Empty:
                break
        else:
            return []
        return batch

    def _give_up(self, batch: list[_PendingCall], error: Exception) -> None:
        if not isinstance(error, RedisError):
            _log.exception("the sender of the interactive lane failed", exc_info=error)
        # What was queued meanwhile would wait as long again for the same error.
        while not self._outbox.empty():
            call = self._outbox.get_nowait()
            if call is None:
                self._outbox.put(None)
                break
            batch.append(call)
        for call in batch:
            call.settle(error=explain_failure(error))

    def _send(self, batch: list[_PendingCall]) -> None:
        lanes: dict[Lane, list[_PendingCall]] = defaultdict(list)
        now_s = time.monotonic()
        for call in batch:
            if call.expires_s > now_s:
                lanes[call.lane].append(call)
        if not lanes:
            return
        try:
            answers = self._push(lanes, now_s)
        except RedisConnectionError:
            # An idle connection is closed by a server that restarted; a new one gets one try. A request that
            # did arrive is computed twice then, and its second reply is dropped.
            answers = self._push(lanes, now_s)
        for (lane, calls), answer in zip(lanes.items(), answers, strict=True):
            if isinstance(answer, Exception) and len(calls) > 1:
                # One of them is to blame, and fails alone.
                for call in calls:
                    self._admit([call], self._push({lane: [call]}, now_s)[0])
            else:
                self._admit(calls, answer)

    def _push(self, lanes: dict[Lane, list[_PendingCall]], now_s: float) -> list[Any]:
        commands: list[Command] = []
        for lane, calls in lanes.items():
            requests = [protocol.with_time_left(call.body, (call.expires_s - now_s) * 1000) for call in calls]
            commands.append(command(PushRequestScript(*_lane_keys(lane), self._settings.lane_max_tokens, requests)))
        return self._connection.trip(*commands)

    @staticmethod
    def _admit(calls: list[_PendingCall], answer: list[int] | RedisError) -> None:
        if isinstance(answer, RedisError):
            _log.error("Redis refused requests of the interactive lane: %s", words_of(answer))
            for call in calls:
                call.settle(error=explain_failure(answer))
            return
        for place, why, value in zip(answer[::3], answer[1::3], answer[2::3], strict=True):
            call = calls[place]
            if why == 1:
                call.settle(error=NoWorker("no worker is ready for this model", retry_after_s=2.0))
            else:
                message = "more work waits for this model than its limit allows"
                call.settle(error=LaneFull(message, retry_after_s=value / 1000))

    # -- reading

    def _read_forever(self) -> None:
        known_run = ""
        with connect(self._url, name="replies", block_s=_BLOCK_S) as redis:
            connection, connected = PackedConnection(redis), False
            while not self._closing.is_set():
                try:
                    if not connected:
                        known_run, connected = self._greet(redis, known_run), True
                    self._read(connection)
                except RedisConnectionError as error:
                    if not connected:
                        self._settle_all(error)
                        self._closing.wait(_RECONNECT_S)
                    connected = False
                except Exception as error:  # noqa: BLE001 - the edge of this thread: callers get an error
                    connected = False
                    self._settle_all(error)
                    if not isinstance(error, RedisError):
                        _log.exception("the reader of the interactive lane failed")
                    self._closing.wait(_RECONNECT_S)
            try:
                redis.delete(self._reply_key)
            except RedisError:
                _log.debug("the reply list stays until its expiry")

    def _greet(self, redis: Redis, known_run: str) -> str:
        """Return the ID of this run of Redis. A new run may have lost requests: their callers get an error at once."""
        run = str(redis.info("server")["run_id"])
        if known_run and run != known_run:
            self._settle_all("Redis was restarted")
        return run

    def _read(self, connection: PackedConnection) -> None:
        (popped,) = connection.trip(("BLMPOP", _BLOCK_S, 1, self._reply_key, "LEFT", "COUNT", _PER_TRIP))
        if isinstance(popped, RedisError):
            raise popped
        for reply in popped[1] if popped else ():
            call = self._calls.get(protocol.reply_id(reply))
            if call is not None:
                call.settle(reply=reply)


@functools.cache
def _lane_keys(lane: Lane) -> tuple[Key, Key, Key, Key]:
    workers, infos = keys.lane_workers(lane.model), keys.worker_info(lane.model)
    return keys.lane_requests(lane), keys.lane_load(lane), workers, infos
