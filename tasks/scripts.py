"""The Lua scripts, one per state change, read from the `lua` folders of `tasks` and called by name.

Owns putting shared pieces into a script (a line `-- include: _name`); knows no keys. What each script takes and answers
stands at its head.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from redis import Redis
from redis.exceptions import NoScriptError

__all__ = ["Scripts", "find_script", "script_text"]

_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)

Argument = str | bytes | int | float


def find_script(name: str) -> Traversable:
    """Return the file of a script, whichever package of `tasks` it belongs to.

    Raises:
        FileNotFoundError: there is no such script.
    """
    for package in resources.files("tasks").iterdir():
        file = package / "lua" / f"{name}.lua"
        if file.is_file():
            return file
    raise FileNotFoundError(f"there is no script {name!r}")


@cache
def script_text(name: str) -> str:
    """Return the text of a script, shared pieces included.

    Raises:
        FileNotFoundError: there is no such script.
    """
    text = find_script(name).read_text("utf-8")
    return _INCLUDE.sub(lambda line: script_text(line[1]), text)


@cache
def _digest(name: str) -> str:
    return hashlib.sha1(script_text(name).encode(), usedforsecurity=False).hexdigest()


class Scripts:
    """Calls scripts by name. A server that forgot them (restart, SCRIPT FLUSH) is given them again unseen."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def call(self, name: str, keys: Sequence[str], args: Sequence[Argument], client: Redis | None = None) -> Any:
        """Run the script and return its answer.

        Raises:
            redis.RedisError: the server does not answer, or is full and the script brings new bytes.
        """
        client = client or self._redis
        try:
            return client.evalsha(_digest(name), len(keys), *keys, *args)
        except NoScriptError:
            # Loading it and asking again could be beaten by the next flush; this cannot.
            return client.eval(script_text(name), len(keys), *keys, *args)
