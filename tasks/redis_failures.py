"""What a failure of Redis means: away for a moment, full, or a refusal that no repetition changes.

Owns the kinds, the sentence for the caller of each, and Redis' own words for the log. Retries nothing.
"""

import re

from redis import RedisError, ResponseError
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
)

from tasks.errors import StoreFull, StoreRefused, StoreUnavailable, TwolaneError

__all__ = ["explain_failure", "is_refusal", "words_of"]

_WRONG_LOGIN = "Redis refuses the user or the password of REDIS_URL"
_BY_CLASS: dict[type[RedisError], str] = {
    AuthenticationError: _WRONG_LOGIN,
    AuthenticationWrongNumberOfArgsError: _WRONG_LOGIN,
    AuthorizationError: _WRONG_LOGIN,
    NoPermissionError: "the user of REDIS_URL lacks a right in Redis; the server's log names it",
    ReadOnlyError: "REDIS_URL leads to a read-only replica of Redis",
}
_BY_WORDS = {
    "WRONGTYPE": "a key of Twolane in Redis holds something else; does another program use this database?",
    "exceeds maximum allowed size": "it is larger than Redis takes",
    "invalid bulk length": "it is larger than Redis takes",
    "nknown command": "Redis does not know a command that Twolane needs; it has to be version 7 or newer, or Valkey",
}
# What passes by itself, or as soon as there is room.
_PASSING = {
    "LOADING": "Redis is loading its data",
    "max number of clients": "Redis takes no more connections (maxclients)",
    "MISCONF": "Redis cannot write to its disk",
    "NOREPLICAS": "Redis has too few replicas to write",
    "BUSY Redis": "Redis is busy with a script",
    "MASTERDOWN": "Redis has lost its primary",
    "CLUSTERDOWN": "Redis has lost its cluster",
    "TRYAGAIN": "Redis moves its keys",
}
# redis-py puts the command before the answer in a pipeline, and in a command there may be a user's text.
_COMMAND = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)


def explain_failure(error: Exception) -> TwolaneError:
    """Return the error that a failure of Redis, or of what leads to it, is for the caller."""
    if isinstance(error, OutOfMemoryError):
        return StoreFull("Redis takes no new work now", retry_after_s=10)
    if sentence := next((text for kind, text in _BY_CLASS.items() if isinstance(error, kind)), ""):
        return StoreRefused(sentence, retry_after_s=30)
    words = words_of(error)
    if sentence := next((text for part, text in _PASSING.items() if part in words), ""):
        return StoreUnavailable(sentence, retry_after_s=5)
    if not isinstance(error, ResponseError):
        return StoreUnavailable("Redis does not answer", retry_after_s=2)
    sentence = next((text for part, text in _BY_WORDS.items() if part in words), "the server's log has its words")
    return StoreRefused(f"Redis refuses it: {sentence}", retry_after_s=30)


def is_refusal(error: Exception) -> bool:
    """Return whether the same command will be refused again until an operator or the caller changes something."""
    return isinstance(explain_failure(error), StoreRefused)


def words_of(error: Exception) -> str:
    """Return Redis' own words, or the library's where Redis said nothing; without the command, whatever it held."""
    code = getattr(error, "status_code", None)
    words = _COMMAND.sub("", str(error)) or type(error).__name__
    return words if not code or words.startswith(str(code)) else f"{code} {words}"
