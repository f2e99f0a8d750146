"""Lua scripts as typed calls: a script's keys and arguments are the fields of a class, known by name on both sides.

A script is a file `lua/<name>.lua` and, in a module of the package that has the folder, a class:

    class FindValuesScript(Script):    # lua/find_values.lua
        values: Key                    # VALUES in Lua
        ttl_ms: int                    # ttl_ms in Lua, a number
        digests: Sequence[bytes]       # digests in Lua, a table; only the last key and the last argument may be many

Owns the names that a script gets, the pieces that scripts share (a line `-- include: _name`), and how a call is sent.
Knows no key and no script.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from operator import attrgetter
from typing import Any, dataclass_transform, get_args, get_origin, get_type_hints

from redis import Redis
from redis.exceptions import NoScriptError

from tasks.keys import Key

__all__ = ["Argument", "Script", "ScriptSource", "Scripts", "command", "source_of"]

Argument = str | bytes | int | float

_INCLUDE = re.compile(r"^-- include: (\w+)$", re.MULTILINE)
_COMMENT = re.compile(r"^[ \t]*-- .*\n", re.MULTILINE)
_WORD = re.compile(r"(?<!^)(?=[A-Z])")


@dataclass_transform(frozen_default=True)
class Script:
    """One call of a script; see the module. Subclasses are frozen dataclasses.

    A field that is a dataclass itself contributes its own fields. None is sent as an empty string and is nil in Lua if
    the field is a number; a bool is a bool on both sides. This class has no attributes, so a field may have any name.
    """

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True)(cls)


def command(script: Script) -> list[Argument]:
    """Return the call with the whole text: it rests on no cache of Redis, and so is always one trip."""
    source = source_of(type(script))
    keys, arguments = source.split(script)
    return ["EVAL", source.text, len(keys), *keys, *arguments]


class Scripts:
    """Calls scripts by their digest. Redis is sent the text again when it lost it (a restart, SCRIPT FLUSH)."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def call(self, script: Script, client: Redis | None = None) -> Any:
        """Run a script and return its answer.

        Args:
            script: the call.
            client: the connection to use; None: any.

        Raises:
            redis.RedisError: Redis does not answer, or is full and the script adds data.
        """
        client = client or self._redis
        source = source_of(type(script))
        keys, arguments = source.split(script)
        try:
            return client.evalsha(source.digest, len(keys), *keys, *arguments)
        except NoScriptError:
            # Loading it and asking again could be beaten by the next flush; this cannot.
            return client.eval(source.text, len(keys), *keys, *arguments)


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a script, or of a dataclass among its fields; `path` leads to it."""

    path: str
    hint: Any

    @property
    def is_key(self) -> bool:
        return Key in (self.hint, *get_args(self.hint))

    @property
    def is_many(self) -> bool:
        return get_origin(self.hint) is Sequence

    @property
    def lua_name(self) -> str:
        name = self.path.rpartition(".")[2]
        return name.upper() if self.is_key else name

    def lua_value(self, place: int) -> str:
        source = "KEYS" if self.is_key else "ARGV"
        if self.is_many:
            return f"{{ unpack({source}, {place}) }}"
        if self.hint is bool:
            return f"{source}[{place}] == '1'"
        kinds = {kind for kind in get_args(self.hint) or (self.hint,) if kind is not type(None)}
        return f"tonumber({source}[{place}])" if kinds <= {int, float} else f"{source}[{place}]"


class ScriptSource:
    """What Redis is sent for a class of calls.

    Attributes:
        file: the file of the script: `lua/claim.lua` beside the module of `ClaimScript`.
        names: what the script may use in Lua: keys in capitals, arguments as they are.
        body: the text of the file without comments, shared pieces included.
        text: what Redis runs: the first line of the body, the names, the rest.
        digest: under which Redis remembers the text.
    """

    def __init__(self, script: type[Script]) -> None:
        folder = resources.files(script.__module__.rpartition(".")[0]) / "lua"
        self.file: Traversable = folder / f"{_WORD.sub('_', script.__name__.removesuffix('Script')).lower()}.lua"
        text = self.file.read_text("utf-8")
        self.body = _COMMENT.sub("", _INCLUDE.sub(lambda line: (folder / f"{line[1]}.lua").read_text("utf-8"), text))
        fields = list(_flatten(script, ""))
        keys, arguments = [field for field in fields if field.is_key], [field for field in fields if not field.is_key]
        first_line, _, rest = self.body.partition("\n")
        self.text = "\n".join([first_line, *_name_values(keys), *_name_values(arguments), rest])
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self.names = [field.lua_name for field in fields]
        # All fields in one look-up, and positions instead of decisions: some calls are made a thousand times a second.
        self._read = attrgetter(*(field.path for field in (*keys, *arguments)))
        self._keys, self._values = len(keys), len(fields)
        self._encodes = any(field.hint is bool or type(None) in get_args(field.hint) for field in arguments)
        self._many_keys = bool(keys) and keys[-1].is_many
        self._many_arguments = bool(arguments) and arguments[-1].is_many

    def split(self, script: Script) -> tuple[list[str], list[Argument]]:
        """Return the values of KEYS and of ARGV."""
        values = self._read(script) if self._values > 1 else (self._read(script),)
        keys, arguments = list(values[: self._keys]), list(values[self._keys :])
        if self._encodes:
            arguments = [_encode(value) for value in arguments]
        if self._many_keys:
            keys[-1:] = keys[-1]
        if self._many_arguments:
            arguments[-1:] = arguments[-1]
        return keys, arguments


_sources: dict[type[Script], ScriptSource] = {}


def source_of(script: type[Script]) -> ScriptSource:
    """Return what Redis is sent for a class of calls; read once.

    Raises:
        FileNotFoundError: there is no such script.
    """
    source = _sources.get(script)
    if source is None:
        source = _sources[script] = ScriptSource(script)
    return source


def _flatten(cls: type, path: str) -> Iterator[_Field]:
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _flatten(hint, f"{path}{name}.")
        else:
            yield _Field(path + name, hint)


def _name_values(fields: Sequence[_Field]) -> Iterator[str]:
    if fields:
        values = [field.lua_value(place) for place, field in enumerate(fields, 1)]
        yield f"local {', '.join(field.lua_name for field in fields)} = {', '.join(values)}"


def _encode(value: Any) -> Any:
    if value is None:
        return ""
    return int(value) if value is True or value is False else value
