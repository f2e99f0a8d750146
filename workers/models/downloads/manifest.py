"""The record of a download: every file with its size, time and sha256, written last, so that what has it is complete.

Owns the check at every load: a file whose size and time are those of the record costs a stat; one that was touched is
hashed again. Knows nothing of hubs.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workers.models.downloads.pins import Pin

__all__ = ["Stamp", "find_damaged", "is_complete", "read_pin", "sha256_of", "write_manifest"]

_NAME = ".complete.json"
_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file was when it was hashed."""

    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path, sha256: str = "") -> "Stamp":
        """Return that of a file, which is hashed if its hash is not given."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, sha256 or sha256_of(path))


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def is_complete(folder: Path) -> bool:
    """Return whether the download of a folder came to its end."""
    return (folder / _NAME).is_file()


def write_manifest(folder: Path, source: Mapping[str, Any], paths: Iterable[str]) -> None:
    """Record the files; with this the folder is complete. What `source` says is for people."""
    _write(folder, dict(source), {path: Stamp.of(folder / path) for path in paths})


def read_pin(folder: Path) -> Pin:
    """Return what a complete folder holds."""
    record = json.loads((folder / _NAME).read_text("utf-8"))
    return Pin(record.get("commit", ""), {path: stamp["sha256"] for path, stamp in record["files"].items()})


def find_damaged(folder: Path) -> list[str]:
    """Return the files that are not what was downloaded: missing, or with other bytes."""
    record = json.loads((folder / _NAME).read_text("utf-8"))
    source = {key: value for key, value in record.items() if key != "files"}
    if "files" not in record:
        # Written by a version that kept no hashes: what is there now has to do.
        found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _NAME)
        write_manifest(folder, source, [str(path.relative_to(folder)) for path in found])
        return []
    stamps = {path: Stamp(**stamp) for path, stamp in record["files"].items()}
    current = {path: _check(folder / path, stamp) for path, stamp in stamps.items()}
    good = {path: stamp for path, stamp in current.items() if stamp is not None}
    if len(good) == len(stamps) and good != stamps:
        _write(folder, source, good)
    return sorted(stamps.keys() - good.keys())


def _check(path: Path, stamp: Stamp) -> Stamp | None:
    """Return the stamp as it is now; None: the file is missing or another one."""
    try:
        stat = path.stat()
    except OSError:
        return None
    if (stat.st_size, stat.st_mtime_ns) == (stamp.size, stamp.mtime_ns):
        return stamp
    now = Stamp.of(path) if stat.st_size == stamp.size else None
    return now if now is not None and now.sha256 == stamp.sha256 else None


def _write(folder: Path, source: Mapping[str, Any], stamps: Mapping[str, Stamp]) -> None:
    draft = folder / f"{_NAME}.draft"
    draft.write_text(json.dumps({**source, "files": {path: asdict(stamp) for path, stamp in stamps.items()}}), "utf-8")
    draft.replace(folder / _NAME)
