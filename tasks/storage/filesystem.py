"""File systems behind a URL: a folder, S3 or whatever else fsspec has a driver for.

Owns the choice of the driver and its options, the check when a process starts, and the translation of failures: each
driver has errors of its own, and their libraries may not be installed. Knows no layout (`tasks.storage.objects`).
"""

import contextlib
import errno
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

from config.settings import Settings
from tasks.errors import CapacityError, ConfigError, StoreFull, StoreRefused, StoreUnavailable

__all__ = ["Storage", "check_storage", "open_storage", "storage_errors"]

_log = logging.getLogger(__name__)

_S3 = re.compile(r"s3a?://")
_LOGIN = re.compile(r"://[^/@\s]*@")
# A storage that does not answer must cost a web thread seconds, not the minutes of the library's own timeouts.
_CONNECT_S, _READ_S, _TRIES = 3, 20, 2
_REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG})
_INSTALL = "install Twolane with its extra: pip install 'twolane-server[s3]'"


@dataclass(frozen=True, slots=True)
class Storage:
    """One place for bytes.

    Attributes:
        system: fsspec's file system; thread-safe.
        root: path of the place in it, without a slash at its end.
        is_folder: whether it is a folder here: a file is seen while it is written, and needs its folders first.
    """

    system: Any
    root: str
    is_folder: bool


def open_storage(settings: Settings, setting: str, url: str) -> Storage:
    """Return the storage at the URL; nothing is connected yet.

    Args:
        settings: options of the drivers.
        setting: name of the setting that has the URL, for messages.
        url: a folder, or a URL that fsspec knows.

    Raises:
        ConfigError: there is no driver for it.
    """
    try:
        system, root = fsspec.core.url_to_fs(url, **_options(settings, url))
    except ImportError as error:
        advice = _INSTALL if _S3.match(url) else str(error)
        raise ConfigError(f"{setting}={_mask(url)} cannot be used, its driver is missing: {advice}") from error
    except ValueError as error:
        raise ConfigError(f"{setting}={_mask(url)} cannot be used: {error}") from error
    protocols = (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)
    return Storage(system, str(root).rstrip("/"), "file" in protocols)


def check_storage(settings: Settings, *, files: bool) -> None:
    """Write to the storages that the settings name and remove it again, so that a wrong setting stops the start.

    A storage that does not answer is logged, no error: it may come back, and what needs it waits until then.

    Args:
        settings: the settings.
        files: also that of uploaded files; else only that of results.

    Raises:
        ConfigError: the driver or the bucket is missing, or writing is not allowed.
    """
    named = {"TWOLANE_RESULTS_URL": settings.results_url}
    if files:
        named["TWOLANE_FILES_URL"] = settings.files_url
    for setting, url in named.items():
        if url:
            _check(open_storage(settings, setting, url), f"{setting}={_mask(url)}")


def check_data_folder(settings: Settings) -> None:
    """Make the data folder and write to it.

    Raises:
        ConfigError: that is not possible.
    """
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.data_dir):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(f"TWOLANE_DATA_DIR={settings.data_dir} cannot be used: {why}") from error


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Translate the failures of a storage; that a file is not there stays `FileNotFoundError`.

    Raises:
        StoreFull: the disk is full.
        StoreUnavailable: the storage does not answer.
        StoreRefused: it refuses.
    """
    try:
        yield
    except (FileNotFoundError, CapacityError):
        raise
    except Exception as error:
        raise _translate(error) from error


def _options(settings: Settings, url: str) -> dict[str, Any]:
    """Return the driver's options. Credentials, region and endpoint come from AWS' own variables and files."""
    if not _S3.match(url):
        return {}
    config: dict[str, Any] = {
        "connect_timeout": _CONNECT_S,
        "read_timeout": _READ_S,
        "retries": {"mode": "standard", "total_max_attempts": _TRIES},
    }
    if settings.s3_addressing != "auto":
        config["s3"] = {"addressing_style": settings.s3_addressing}
    # Other processes write too: a listing that was kept would hide what they wrote.
    return {"config_kwargs": config, "use_listings_cache": False}


def _check(storage: Storage, named: str) -> None:
    path = f"{storage.root}/.twolane-{secrets.token_hex(8)}"
    try:
        if storage.is_folder:
            storage.system.makedirs(storage.root, exist_ok=True)
        storage.system.pipe_file(path, b"twolane")
        storage.system.rm_file(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{named} cannot be used: there is no such bucket") from error
    except PermissionError as error:
        raise ConfigError(f"{named} cannot be used: writing is not allowed ({error})") from error
    except Exception as error:
        # The library of the driver may be missing, so its class is known by name only.
        if type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError"}:
            raise ConfigError(
                f"{named} cannot be used: no credentials; set AWS_ACCESS_KEY_ID and its secret"
            ) from error
        if storage.is_folder:
            raise ConfigError(f"{named} cannot be used: {error}") from error
        _log.error("%s does not answer (%s); what needs it waits until it does", named, _describe(error))


def _translate(error: Exception) -> CapacityError:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFull("There is no room left for files.", retry_after_s=60)
    _log.warning("the file storage failed: %s", _describe(error))
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return StoreRefused(f"The file storage refuses it: {os.strerror(error.errno)}.", retry_after_s=30)
    if isinstance(error, PermissionError):
        return StoreRefused("The file storage refuses it: the credentials lack a right.", retry_after_s=30)
    return StoreUnavailable(f"The file storage does not answer ({type(error).__name__}).", retry_after_s=5)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _mask(url: str) -> str:
    return _LOGIN.sub("://***@", url)
