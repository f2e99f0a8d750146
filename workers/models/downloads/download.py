"""Downloads one model: `python -m workers.models.downloads.download <order as JSON>`, in a process of its own.

Owns the choice of files, the room on the disk, retries, and the comparison with the hub's hashes. The transfer itself,
with its resuming, is left to the hubs' own libraries. A process of its own, since in a worker these are kept
from the network.
"""

import hashlib
import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from config.supervisor import EXIT_CONFIG
from tasks.errors import ConfigError
from workers.models.downloads.manifest import sha256_of
from workers.models.downloads.pins import decides

__all__ = ["MOVED", "PLAN", "RemoteFile", "Snapshot", "choose", "download"]

# What is downloaded, for who wants to know how far it is.
PLAN = ".plan.json"
# Begins the refusal of a revision that stands for other files than before; the file follows.
MOVED = "moved: "
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Weights for other frameworks, which often are most of a repository, and what training left.
_NOT_NEEDED = (
    *("onnx/*", "openvino/*", "*.onnx", "*.onnx_data", "*.msgpack", "*.h5", "*.ot", "*.gguf", "*.tflite"),
    *("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "*.ckpt", ".git*"),
)
_PICKLES = (".bin", ".pt", ".pth", ".pkl")
_SPARE_BYTES = 64 * 2**20
_DELAYS_S = (1.0, 2.0, 4.0, 8.0)
_FIRST_CLIENT_ERROR, _FIRST_SERVER_ERROR = 400, 500
_TRANSIENT = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is to be downloaded.

    Attributes:
        hub: modelscope or hf.
        folder: where to.
        endpoint: a mirror of ModelScope; that of Hugging Face is the variable HF_ENDPOINT.
        pickle: whether weights may come as pickles.
        pinned: sha256 by path of the files that the revision stood for before; empty: it was never used.
    """

    hub: str
    model_id: str
    revision: str
    folder: str
    endpoint: str = ""
    pickle: bool = False
    pinned: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return it as an argument of the program."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub lists it; `sha256`, or git's `blob` hash of small ones, is empty where it does not say."""

    path: str
    size: int
    sha256: str = ""
    blob: str = ""


def download(order: Snapshot) -> None:
    """Download what is needed of a model; what is there already, whole or in part, is kept.

    Raises:
        ConfigError: it cannot be had like this; another attempt would end the same way.
        OSError: the network or the hub failed, several times.
    """
    folder = Path(order.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for delay_s in (*_DELAYS_S, None):
        try:
            listed, commit = _LISTS[order.hub](order)
            files = choose(listed, pickle=order.pickle)
            _require_pinned(order, files, commit)
            _require_room(folder, files)
            paths = [file.path for file in files]
            plan = {"total": sum(file.size for file in files), "files": paths, "commit": commit}
            (folder / PLAN).write_text(json.dumps(plan), "utf-8")
            _TRANSFERS[order.hub](order, paths)
            _check_hashes(folder, files)
        except ConfigError:
            raise
        except Exception as error:  # the libraries raise errors of several trees, and this is their edge
            if delay_s is None or _is_final(error):
                raise
            sys.stderr.write(f"{type(error).__name__}: {error}; again in {delay_s:g} s\n")
            time.sleep(delay_s)
        else:
            return


def choose(files: Sequence[RemoteFile], *, pickle: bool) -> list[RemoteFile]:
    """Return the files that a worker needs.

    Raises:
        ConfigError: weights come as pickles only, and those are not allowed.
    """
    needed = [file for file in files if not any(fnmatch(file.path, pattern) for pattern in _NOT_NEEDED)]
    safe = {PurePosixPath(file.path).parent for file in needed if file.path.endswith(".safetensors")}
    needed = [file for file in needed if not (_is_twin(file.path) and PurePosixPath(file.path).parent in safe)]
    pickles = [file.path for file in needed if PurePosixPath(file.path).suffix in _PICKLES]
    if pickles and not pickle:
        raise ConfigError(
            f"it has weights as pickles only ({', '.join(pickles[:3])}), a format that may hold code. They are read "
            "without running any: allow it with pickle = true on its card, or for all models with TWOLANE_ALLOW_PICKLE"
        )
    return needed


def _is_twin(path: str) -> bool:
    """Whether a file holds what safetensors beside it hold, too."""
    return (
        re.fullmatch(r"(pytorch_)?model(-\d+-of-\d+)?\.(bin|pt|pth)(\.index\.json)?", PurePosixPath(path).name)
        is not None
    )


def _require_pinned(order: Snapshot, files: Sequence[RemoteFile], commit: str) -> None:
    """Refuse, before anything is transferred, what is not what the revision says or stood for.

    Raises:
        ConfigError: the hub gives another commit, or another file.
    """
    if commit and _COMMIT.fullmatch(order.revision) and commit != order.revision:
        raise ConfigError(f"the hub gives the commit {commit} where {order.revision} was asked for")
    for file in files:
        before = order.pinned.get(file.path)
        new = before is None and order.pinned and decides(file.path)
        if new or (before and file.sha256 and file.sha256 != before):
            raise ConfigError(f"{MOVED}{file.path}")


def _require_room(folder: Path, files: Sequence[RemoteFile]) -> None:
    here = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed = sum(file.size for file in files) - here
    free = shutil.disk_usage(folder).free
    if needed > 0 and needed + _SPARE_BYTES > free:
        raise ConfigError(
            f"there is no room for it: {needed / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB are free in {folder}"
        )


def _check_hashes(folder: Path, files: Sequence[RemoteFile]) -> None:
    """Compare with what the hub says; what differs is removed, so that another attempt fetches it again."""
    for file in files:
        path = folder / file.path
        if path.stat().st_size != file.size or not _is_same(path, file):
            path.unlink()
            raise OSError(f"{file.path} came with other bytes than the hub says")


def _is_same(path: Path, file: RemoteFile) -> bool:
    if file.sha256:
        return sha256_of(path) == file.sha256
    if not file.blob:
        return True
    # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == file.blob


def _is_final(error: BaseException) -> bool:
    """Whether the hub said no, as for a model that it does not have."""
    # ModelScope's library tries all files and says which failed.
    if parts := getattr(error, "failed_files", None):
        return any(_is_final(part) for part in parts.values())
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if status is None and error.__cause__ is not None:
        return _is_final(error.__cause__)
    client_error = status is not None and _FIRST_CLIENT_ERROR <= status < _FIRST_SERVER_ERROR
    return client_error and status not in _TRANSIENT


def _list_modelscope(order: Snapshot) -> tuple[list[RemoteFile], str]:
    """Return the files and the commit, which this hub does not say: hashes of all files stand for it."""
    from modelscope_hub import HubApi  # noqa: PLC0415 - only where it is needed

    found = HubApi(endpoint=order.endpoint or None).list_repo_files(order.model_id, "model", revision=order.revision)
    return [RemoteFile(file.path, file.size, file.sha256 or "") for file in found if not file.is_dir], ""


def _transfer_modelscope(order: Snapshot, paths: Sequence[str]) -> None:
    # Of modelscope's two packages that which transfers: the other one takes six seconds to be imported.
    from modelscope_hub import HubApi  # noqa: PLC0415 - as above

    hub = HubApi(endpoint=order.endpoint or None)
    hub.download_repo(
        order.model_id, "model", revision=order.revision, local_dir=order.folder, allow_patterns=list(paths)
    )


def _list_hugging_face(order: Snapshot) -> tuple[list[RemoteFile], str]:
    """Return the files and the commit."""
    from huggingface_hub import HfApi  # noqa: PLC0415 - as above

    info = HfApi().model_info(order.model_id, revision=order.revision, files_metadata=True)
    files = [
        RemoteFile(
            file.rfilename,
            file.size or 0,
            sha256=file.lfs.sha256 if file.lfs else "",
            blob="" if file.lfs else file.blob_id or "",
        )
        for file in info.siblings or []
    ]
    return files, info.sha or ""


def _transfer_hugging_face(order: Snapshot, paths: Sequence[str]) -> None:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - as above

    snapshot_download(
        order.model_id, revision=order.revision, local_dir=order.folder, allow_patterns=list(paths), max_workers=4
    )


_LISTS: dict[str, Callable[[Snapshot], tuple[list[RemoteFile], str]]] = {
    "modelscope": _list_modelscope,
    "hf": _list_hugging_face,
}
_TRANSFERS: dict[str, Callable[[Snapshot, Sequence[str]], Any]] = {
    "modelscope": _transfer_modelscope,
    "hf": _transfer_hugging_face,
}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    try:
        download(Snapshot(**json.loads(sys.argv[1])))
    except ConfigError as refusal:
        sys.stderr.write(f"{refusal.message}\n")
        sys.exit(EXIT_CONFIG)
    except Exception as failure:  # noqa: BLE001 - the parent makes a sentence of the last line
        sys.stderr.write(f"{type(failure).__name__}: {' '.join(str(failure).split())}\n")
        sys.exit(1)
