"""The server of the interactive lane, in the worker: `InteractiveServer`. The client is `tasks.interactive.client`.

Owns the threads that take requests and send replies, and the accounting of tokens that left a lane. Owns no deadline:
Redis' clock decides what is too late.
"""

import contextlib
import functools
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import cast

from redis import ConnectionError as RedisConnectionError
from redis import Redis, RedisError

from config.catalog import ModelCard
from config.settings import Settings
from tasks import keys
from tasks.connections import Command, PackedConnection, connect
from tasks.engine import Engine, Outcomes
from tasks.errors import EngineClosed, LaneFull, NoWorker
from tasks.frames import FrameError
from tasks.interactive import protocol
from tasks.interactive.protocol import InteractiveRequest
from tasks.keys import Key
from tasks.lanes import Lane, Service
from tasks.scripts import Script, command

__all__ = ["InteractiveServer", "serve"]

_log = logging.getLogger(__name__)

_BLOCK_S = 0.4  # how long a blocking read waits, and so the longest that a thread takes to notice its end
_PER_TRIP = 64
_TOKENS_AT_ONCE = 8192
_RECONNECT_S = 0.1
_KEEP_MS = 60_000
_FULL_PAUSE_S = 0.05
_CLOCK_S = 1.0  # how long a reading of Redis' clock is used
_DRAIN_S = 6.0
_STOP_S = 8.0
# Replies may be megabytes, and a worker waits for Redis rather than losing what was computed.
_TIMEOUT_S = 3.0


class PushRepliesScript(Script):
    """Send replies to one web process, which are kept for `keep_ms`."""

    replies: Key
    keep_ms: int
    elements: Sequence[bytes]


class SettleRequestsScript(Script):
    """Count out requests that a worker took off a lane's list, and put those back that it refused.

    Attributes:
        waiting_list: requests that wait.
        load: tokens that wait in it.
        tokens: of the requests that left.
        keep_ms: how long what is put back is kept.
        refused: in their order.
    """

    waiting_list: Key
    load: Key
    tokens: int
    keep_ms: int
    refused: Sequence[bytes]


class InteractiveServer:
    """Takes requests for these models and gives them to the engine, from `start()` to `stop()`."""

    def __init__(self, settings: Settings, cards: Sequence[ModelCard], engine: Engine) -> None:
        self._redis = connect(settings.redis_url, name="interactive", block_s=1.0, timeout_s=_TIMEOUT_S)
        self._stop = threading.Event()
        arguments = (self._redis, cards, engine, self._stop)
        self._thread = threading.Thread(target=serve, args=arguments, name="interactive", daemon=True)

    def start(self) -> None:
        """Take requests from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests, answer those that were taken, and end. Safe to call twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        self._redis.close()


def serve(redis: Redis, cards: Sequence[ModelCard], engine: Engine, stop: threading.Event) -> None:
    """Take requests for these models and answer them, until `stop`; then finish what was taken (for at most 6 s).

    Two threads take requests, one for each class of service, so that tokenizing a large call delays no small one; one
    more sends the replies of a moment in one trip.

    Args:
        redis: a client for blocking commands, see `connect(block_s=1)`.
        cards: models that the engine has now; looked at before each trip, so their owner may change them.
        engine: where the work goes.
        stop: ends it.
    """
    replies = _ReplySender(redis)
    receivers = [_Receiver(redis, cards, service, engine, replies) for service in Service]
    threads = [
        threading.Thread(target=receiver.run, args=(stop,), name="receiver", daemon=True) for receiver in receivers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    replies.close(_DRAIN_S)


class _ReplySender:
    """Sends what futures end with; their callbacks run on the device's thread and only put it into a queue."""

    def __init__(self, redis: Redis) -> None:
        self._connection = PackedConnection(redis)
        self._done: queue.SimpleQueue[tuple[InteractiveRequest, Callable[[], bytes]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = 0
        self.room = threading.Event()
        self._thread = threading.Thread(target=self._send_forever, name="replies", daemon=True)
        self._thread.start()

    def follow(self, request: InteractiveRequest, future: Future[Outcomes]) -> None:
        """Send what the future ends with."""
        with self._lock:
            self._open += 1
        future.add_done_callback(functools.partial(self._ended, request))

    def close(self, timeout_s: float) -> None:
        """Wait until all that was followed is sent, or the time is over."""
        deadline_s = time.monotonic() + timeout_s
        while self._open and time.monotonic() < deadline_s:
            time.sleep(0.01)
        self._done.put(None)
        self._thread.join(timeout_s)

    def _ended(self, request: InteractiveRequest, future: Future[Outcomes]) -> None:
        self._done.put((request, functools.partial(_encode, request, future)))
        self.room.set()

    def _send_forever(self) -> None:
        while (first := self._done.get()) is not None:
            batch = [first]
            while len(batch) < _PER_TRIP and not self._done.empty():
                following = self._done.get()
                if following is None:
                    self._done.put(None)
                    break
                batch.append(following)
            try:
                self._send(batch)
            except Exception:  # noqa: BLE001 - the edge of this thread
                # The web process gives up at the deadline.
                _log.exception("%d replies could not be sent", len(batch))
            with self._lock:
                self._open -= len(batch)

    def _send(self, batch: list[tuple[InteractiveRequest, Callable[[], bytes]]]) -> None:
        replies: dict[str, list[bytes]] = defaultdict(list)
        for request, encode in batch:
            replies[request.reply_key].append(encode())
        try:
            self._push(replies)
        except RedisConnectionError:
            time.sleep(_RECONNECT_S)
            self._push(replies)

    def _push(self, replies: dict[str, list[bytes]]) -> None:
        commands: list[Command] = [
            command(PushRepliesScript(Key(reply_key), _KEEP_MS, elements)) for reply_key, elements in replies.items()
        ]
        for answer in self._connection.trip(*commands):
            if isinstance(answer, RedisError):
                raise answer


def _encode(request: InteractiveRequest, future: Future[Outcomes]) -> bytes:
    if future.cancelled():
        return protocol.encode_failure(request.number, EngineClosed("the worker is going away"))
    error = future.exception()
    if error is not None:
        return protocol.encode_failure(request.number, error)
    return protocol.encode_outcomes(request.number, future.result(), time.monotonic() - request.taken_s)


class _Receiver:
    """Takes the requests of one class of service off their lists and gives them to the engine."""

    def __init__(
        self, redis: Redis, cards: Sequence[ModelCard], service: Service, engine: Engine, replies: _ReplySender
    ) -> None:
        self._connection = PackedConnection(redis)
        self._cards, self._service, self._turn = cards, service, 0
        self._engine = engine
        self._replies = replies
        self._unsettled: tuple[Lane, int, list[bytes]] | None = None
        self._redis_ahead_s = 0.0
        self._ask_time_at_s = 0.0

    def run(self, stop: threading.Event) -> None:
        failing = False
        while not stop.is_set():
            try:
                if lanes := self._order_lanes():
                    self._trip(lanes)
                else:
                    stop.wait(_BLOCK_S)
                failing = False
            except Exception as error:  # noqa: BLE001 - the edge of this thread: it must outlive failures of Redis
                if not isinstance(error, RedisError):
                    _log.exception("taking requests failed")
                elif not failing:
                    _log.warning("requests cannot be taken just now: %s", error)
                failing = True
                # What answers next may be another Redis, with another clock.
                self._ask_time_at_s = 0.0
                stop.wait(_RECONNECT_S)
        with contextlib.suppress(RedisError):
            self._connection.trip(*self._settlement())

    def _order_lanes(self) -> list[Lane]:
        """Return the lanes, rotated each time: Redis looks at the lists in order, and no model may starve another."""
        lanes = [Lane(card.slug, self._service) for card in self._cards]
        self._turn = (self._turn + 1) % max(1, len(lanes))
        return lanes[self._turn :] + lanes[: self._turn]

    def _trip(self, lanes: Sequence[Lane]) -> None:
        names = [keys.lane_requests(lane) for lane in lanes]
        block: Command = ("BLMPOP", _BLOCK_S, len(names), *names, "LEFT", "COUNT", _PER_TRIP)
        before = self._settlement()
        popped, *clock = self._connection.trip(*before, block, *self._ask_time())[len(before) :]
        if isinstance(popped, RedisError):
            raise popped
        if clock:
            seconds, micros = clock[0]
            self._redis_ahead_s = int(seconds) + int(micros) / 1e6 - time.monotonic()
            self._ask_time_at_s = time.monotonic() + _CLOCK_S
        if not popped:
            return
        name, elements = cast("tuple[bytes, list[bytes]]", popped)
        lane = lanes[names.index(Key(name.decode()))]
        tokens, refused = self._take(elements)
        self._unsettled = (lane, tokens, refused)
        if refused:
            # The engine is full. Other workers may be free, so the requests go back to the list.
            self._connection.trip(*self._settlement())
            self._replies.room.clear()
            self._replies.room.wait(_FULL_PAUSE_S)

    def _settlement(self) -> list[Command]:
        """Return the command that counts out what the last trip took; it rides with the next one. A loss heals."""
        if self._unsettled is None:
            return []
        lane, tokens, refused = self._unsettled
        self._unsettled = None
        call = SettleRequestsScript(keys.lane_requests(lane), keys.lane_load(lane), tokens, _KEEP_MS, refused)
        return [command(call)]

    def _ask_time(self) -> list[Command]:
        """Return the command for Redis' time, by which requests have their deadlines; it rides with a trip as well."""
        return [("TIME",)] if time.monotonic() >= self._ask_time_at_s else []

    def _take(self, elements: list[bytes]) -> tuple[int, list[bytes]]:
        """Submit the requests; return the tokens of those that left the list, and those that the engine refused."""
        tokens, refused = 0, list[bytes]()
        for requests in self._read(elements):
            wanted = [request for request, _ in requests if (request.work.deadline_s or 0) > time.monotonic()]
            futures = self._engine.submit_all([request.work for request in wanted])
            followed = map(self._follow, wanted, futures)
            back = {id(request) for request, taken in zip(wanted, followed, strict=True) if not taken}
            tokens += sum(request.tokens for request, _ in requests if id(request) not in back)
            refused += [element for request, element in requests if id(request) in back]
        return tokens, refused

    def _read(self, elements: Sequence[bytes]) -> Iterator[list[tuple[InteractiveRequest, bytes]]]:
        """Yield readable requests with their bytes, as many at a time as are tokenized before any is queued."""
        requests, tokens = list[tuple[InteractiveRequest, bytes]](), 0
        for element in elements:
            try:
                request = protocol.decode_request(element, self._redis_ahead_s)
            except FrameError:
                _log.warning("an unreadable request was dropped")
                continue
            if requests and tokens + request.tokens > _TOKENS_AT_ONCE:
                yield requests
                requests, tokens = [], 0
            requests.append((request, element))
            tokens += request.tokens
        if requests:
            yield requests

    def _follow(self, request: InteractiveRequest, future: Future[Outcomes]) -> bool:
        """Send what the future ends with; False: the engine took nothing, and another worker may."""
        if future.done() and isinstance(future.exception(), (LaneFull, EngineClosed, NoWorker)):
            return False
        self._replies.follow(request, future)
        return True
