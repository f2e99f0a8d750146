"""Connections to Redis, as our own threads use them.

Owns the times after which a thread gives up. Opens nothing by itself.
"""

from collections.abc import Sequence
from typing import Any

from redis import Redis, ResponseError
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.retry import Retry

from tasks.scripts import Argument

__all__ = ["Command", "PackedConnection", "connect"]

Command = Sequence[Argument]
_ANSWER_TIMEOUT_S = 1.0  # Redis does not answer at all when it is this late


def connect(
    url: str, *, name: str, block_s: float = 0.0, timeout_s: float = _ANSWER_TIMEOUT_S, retries: int = 0
) -> Redis:
    """Return a client that gives up after a second instead of the library's ten retries (59 s when Redis is stopped).

    Args:
        url: URL of Redis.
        name: shown in `CLIENT LIST`.
        block_s: longest blocking command that it is used for.
        timeout_s: how late an answer may be, blocking apart.
        retries: further tries of a command that found its connection lost; only for commands that may run twice.
    """
    return Redis.from_url(
        url,
        client_name=f"twolane-{name}",
        socket_timeout=timeout_s + block_s,
        socket_connect_timeout=_ANSWER_TIMEOUT_S,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), retries),
    )


class PackedConnection:
    """One connection of one thread that sends several commands in one trip. Not thread-safe.

    The client's pool, retries and pipelines cost as much time as the whole trip (40 of 100 us); the threads of the
    interactive lane, which make thousands of trips a second, do without them.

    Args:
        redis: provides the connection and its timeouts.
    """

    def __init__(self, redis: Redis) -> None:
        self._pool = redis.connection_pool
        self._connection: Connection | None = None

    def trip(self, *commands: Command) -> list[Any]:
        """Send the commands and return their answers; an answer that is an error is returned, not raised.

        Raises:
            redis.RedisError: Redis did not answer; the next trip opens a new connection.
        """
        connection = self._connection or self._open()
        try:
            # In one piece: each send releases the interpreter's lock, and in a busy process it comes back late.
            packed = b"".join(connection.pack_commands(commands))  # type: ignore[no-untyped-call]
            connection.send_packed_command([packed], check_health=False)  # type: ignore[no-untyped-call]
            return [_read(connection) for _ in commands]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()  # type: ignore[no-untyped-call]
            self._pool.release(connection)

    def _open(self) -> Connection:
        self._connection = self._pool.get_connection()
        return self._connection


def _read(connection: Connection) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error
