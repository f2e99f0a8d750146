"""Connections to Redis, as our own threads use them.

Owns the times after which a thread gives up, and the check of what Redis allows. Opens nothing by itself.
"""

from collections.abc import Sequence
from typing import Any

from redis import Redis, RedisError, ResponseError
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.exceptions import ReadOnlyError
from redis.retry import Retry
from redis.sentinel import Sentinel

from config.redis_url import RedisAddress
from tasks import keys
from tasks.errors import ConfigError
from tasks.redis_failures import is_refusal, words_of
from tasks.scripts import Argument

__all__ = ["Command", "PackedConnection", "check_redis", "connect", "open_client"]

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
    return open_client(
        url,
        client_name=f"twolane-{name}",
        socket_timeout=timeout_s + block_s,
        socket_connect_timeout=_ANSWER_TIMEOUT_S,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), retries),
    )


def check_redis(url: str) -> None:
    """Try what Twolane needs of Redis, so that a wrong password or a missing right stops the start.

    A Redis that does not answer now, or is a replica until a failover is over, is no error: it is waited for.

    Raises:
        ConfigError: Redis refuses something; the message names it.
    """
    write = "return redis.call('SET', KEYS[1], '', 'PX', 1000)"
    needs: dict[str, Command] = {
        "to ask INFO": ("INFO", "memory"),
        "to write to keys twolane:* by scripts": ("EVAL", write, 1, keys.rights_probe()),
        "to wait for lists (BLMPOP, of Redis 7)": ("BLMPOP", 0.01, 1, keys.rights_probe(), "LEFT"),
        "to publish to channels": ("PUBLISH", keys.BROKER_PREFIX, ""),
        # The last: such a connection takes no other commands any more. A pattern has to stand in the ACL as it is.
        "to subscribe to patterns of channels (&*)": ("PSUBSCRIBE", f"{keys.BROKER_PREFIX}any"),
    }
    with connect(url, name="check") as redis:
        for need, call in needs.items():
            try:
                redis.execute_command(*call)
            except ReadOnlyError:
                continue
            except RedisError as error:
                if is_refusal(error) and "WRONGTYPE" not in words_of(error):
                    problem = f"the user of REDIS_URL has to be allowed {need}: {words_of(error)}"
                    raise ConfigError(f"{problem}; docs/operations.md has the line for its ACL") from error


def open_client(url: str, **options: Any) -> Redis:
    """Return a client of the server at this URL, or of the primary that its Sentinels name at each new connection.

    Args:
        url: as `config.redis_url` understands it.
        options: of redis-py, for each connection.
    """
    address = RedisAddress.parse(url)
    if not address.sentinels:
        return Redis.from_url(address.url, **options)
    timeouts = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout") if name in options}
    sentinel = Sentinel(address.sentinels, sentinel_kwargs={**timeouts, **address.sentinel_login})  # type: ignore[no-untyped-call]
    login = {"username": address.username or None, "password": address.password or None, "db": address.db}
    client: Redis = sentinel.master_for(address.service, **login, **options)  # type: ignore[no-untyped-call]
    return client


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
