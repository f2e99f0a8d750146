"""Whether all processes of this Redis keep files in one place: each says where it does, and looks where the others do.

Owns the identity of a place, the note of it in Redis, and the sentence about places that differ. Moves no file.
"""

import contextlib
import logging
import secrets
import socket
from pathlib import Path
from typing import cast

import orjson
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.storage.filesystem import Storage, open_storage

__all__ = ["EVERY_S", "SharedPlaces"]

EVERY_S = 5.0
_NAME = ".twolane-place"
_HEARD_S = 30
_log = logging.getLogger(__name__)


class SharedPlaces:
    """The places for files of this process, in comparison with those of all others.

    Args:
        redis: a client without `decode_responses`.
        settings: where this process keeps files.
        files: whether it keeps uploaded files, and not only results.
    """

    def __init__(self, redis: Redis, settings: Settings, *, files: bool) -> None:
        self._redis = redis
        self._logged: dict[str, list[str]] = {}
        named = {"TWOLANE_RESULTS_URL": settings.results_url}
        if files:
            named["TWOLANE_FILES_URL"] = settings.files_url or str((settings.data_dir / "files").absolute())
        self._places = {name: open_storage(settings, name, url) for name, url in named.items() if url}

    def announce(self) -> None:
        """Say where this process keeps files, and log where others differ; to be repeated every `EVERY_S`.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        now_s = int(self._redis.time()[0])
        for setting, storage in self._places.items():
            key = keys.storage_places(setting)
            with contextlib.suppress(OSError), self._redis.pipeline(transaction=False) as pipe:
                place = orjson.dumps([_identify(storage), socket.gethostname(), storage.root])
                pipe.zadd(key, {place: now_s})
                pipe.zremrangebyscore(key, "-inf", now_s - _HEARD_S)
                pipe.expire(key, _HEARD_S)
                pipe.execute()
        differing = {setting: places for setting in self._places if len(places := self._read(setting)) > 1}
        if differing != self._logged:
            for setting, places in differing.items():
                _log.error("%s: files lie in different places: %s; all hosts need one", setting, " and ".join(places))
        self._logged = differing

    def differing(self) -> list[str]:
        """Return a sentence for each setting whose files lie in several places.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        return [sentence for setting in self._places if (sentence := self.explain(setting))]

    def explain(self, setting: str) -> str:
        """Return the sentence for one setting, which callers may read; empty: all keep files in one place."""
        if len(self._read(setting)) < 2:
            return ""
        return f"{setting}: the servers keep files in different places, which their logs name; they need a shared one"

    def _read(self, setting: str) -> list[str]:
        """Return a description of each place that is in use."""
        noted = cast("list[bytes]", self._redis.zrange(keys.storage_places(setting), 0, -1))
        places = {identity: f"{root} of {host}" for identity, host, root in map(orjson.loads, noted)}
        return sorted(places.values())


def _identify(storage: Storage) -> str:
    """Return what is the same for all that share the place: a mark in a folder, the address of a bucket.

    Raises:
        OSError: the folder cannot be used; who needs it says so.
    """
    if not storage.is_folder:
        return storage.root
    mark = Path(storage.root) / _NAME
    mark.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), mark.open("x", encoding="ascii") as file:
        file.write(secrets.token_hex(16))
    return mark.read_text("ascii")
