"""Connections to the server of queues and state, as our own threads use them, and the scripts that they send.

Owns the times after which a thread gives up. Opens nothing by itself. The scripts of the job state: `tasks.scripts`.
"""

import functools
from importlib import resources

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = ["connect", "script_text"]

_ANSWER_TIMEOUT_S = 1.0  # a server that is this late does not answer at all


def connect(
    url: str, *, name: str, block_s: float = 0.0, timeout_s: float = _ANSWER_TIMEOUT_S, retries: int = 0
) -> Redis:
    """Return a client that gives up after a second instead of the library's ten retries (59 s on a stopped server).

    Args:
        url: URL of the server.
        name: shown in `CLIENT LIST`.
        block_s: longest blocking command that it is used for.
        timeout_s: how late an answer may be besides.
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


@functools.cache
def script_text(name: str) -> str:
    """Return the text of `tasks/lua/<name>.lua` without its comments, to be sent whole with EVAL.

    The threads of the interactive lane call a few scripts all the time: the text is a fraction of a trip's bytes, and
    a script cache that the server forgot needs no care and no second trip.
    """
    lines = (resources.files("tasks") / "lua" / f"{name}.lua").read_text("utf-8").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("-- "))
