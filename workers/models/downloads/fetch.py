"""From a card's source to a folder on disk: a bundled wheel, a local path, ModelScope or the Hugging Face hub.

Owns where downloaded models are kept, that one worker of a machine downloads what several wait for, and that a complete
one is found again without any network, with the bytes that were downloaded. Loads nothing.
"""

import fcntl
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from config.catalog import ModelCard
from config.parent_death import tied_to_parent
from config.settings import Settings
from config.supervisor import EXIT_CONFIG
from tasks.errors import ConfigError
from workers.models.downloads.download import MOVED, PLAN, Snapshot
from workers.models.downloads.manifest import find_damaged, is_complete, read_pin, write_manifest
from workers.models.downloads.pins import Pin, Pins

__all__ = ["Progress", "fetch", "locked", "models_dir"]

log = logging.getLogger(__name__)

# Called with the share of a download that is done, from 0 to 1; None: not known.
Progress = Callable[[float | None], None]
_POLL_S = 0.5
_LOG_EVERY_S = 15.0


class MovedError(Exception):
    """A revision stands for other files than before; the message is the path of one."""

    @property
    def path(self) -> str:
        """The first file that differs."""
        return str(self)


def models_dir(settings: Settings) -> Path:
    """Return the folder for downloaded and converted models, absolute."""
    return (settings.models_dir or settings.data_dir / "models").absolute()


def fetch(card: ModelCard, settings: Settings, on_progress: Progress = lambda _: None) -> Path:
    """Return the folder with the card's weights and tokenizer, downloading it if it has to be.

    Args:
        card: the model.
        settings: where downloads are kept.
        on_progress: called about twice a second while something is downloaded, by whichever worker of the machine.

    Raises:
        ConfigError: the source cannot be understood, found or downloaded.
    """
    kind, _, rest = card.source.partition(":")
    if kind == "bundled":
        folder = _bundled(card, rest)
    elif kind == "path":
        folder = Path(rest).expanduser()
    elif kind in {"modelscope", "hf"}:
        folder = _from_hub(card, kind, rest, settings, on_progress)
    else:
        raise ConfigError(f"model {card.name}: unknown source {card.source!r}")
    if not any((folder / file).is_file() for file in ("config.json", "modules.json", "adapter_config.json")):
        raise ConfigError(f"model {card.name}: {folder} is not a model folder (it has no config.json)")
    return folder


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock on a file; it ends with the process, so a killed worker leaves none behind.

    Args:
        path: the file, which is made.
        on_wait: called about twice a second while another process has the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        while not _try_lock(file.fileno()):
            on_wait()
            time.sleep(_POLL_S)
        yield


def _try_lock(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bundled(card: ModelCard, rest: str) -> Path:
    """Find a folder inside an installed wheel without importing the wheel's code."""
    package, _, below = rest.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"model {card.name}: the package {package} that brings it is not installed")
    return Path(spec.submodule_search_locations[0]) / below


def _from_hub(card: ModelCard, hub: str, model_id: str, settings: Settings, on_progress: Progress) -> Path:
    """Download a snapshot once; what an interrupted download left is taken up again."""
    revision = card.revision or ("master" if hub == "modelscope" else "main")
    folder = models_dir(settings) / hub / model_id.replace("/", "--") / revision
    name, pins = f"{hub}:{model_id}@{revision}", Pins(models_dir(settings))
    pin = pins.find(name) or Pin()
    pickle = card.pickle or settings.allow_pickle
    wanted = pin.commit or revision
    order = Snapshot(hub, model_id, wanted, str(folder), settings.modelscope_endpoint, pickle, pin.files)
    with locked(folder.with_name(f"{revision}.lock"), lambda: on_progress(_measure(folder)[0])):
        damaged = find_damaged(folder) if is_complete(folder) else []
        if not is_complete(folder) or damaged:
            try:
                _download(card, order, damaged, on_progress)
            except MovedError as error:
                raise ConfigError(f"model {card.name}: {pins.explain(name, error.path)}") from error
        with locked(models_dir(settings) / "pins.lock"):
            try:
                pins.hold(name, read_pin(folder))
            except ConfigError as error:
                raise ConfigError(f"model {card.name}: {error.message}") from error
    return folder


def _download(card: ModelCard, order: Snapshot, damaged: list[str], on_progress: Progress) -> None:
    folder = Path(order.folder)
    if damaged:
        log.warning("%s: %s in %s is not what was downloaded: again", card.name, ", ".join(damaged), folder)
    for path in damaged:
        (folder / path).unlink(missing_ok=True)
    log.info("%s: downloading %s:%s, once, to %s", card.name, order.hub, order.model_id, folder)
    try:
        _run_child(card, order, on_progress)
    except ConfigError as error:
        if damaged:
            message = f"{error.message} ({folder / damaged[0]} is damaged and had to be fetched again)"
            raise ConfigError(message) from error
        raise
    plan = json.loads((folder / PLAN).read_text("utf-8"))
    source = {"id": order.model_id, "revision": order.revision, "commit": plan["commit"]}
    write_manifest(folder, source, plan["files"])
    log.info("%s: downloaded and checked %d files", card.name, len(plan["files"]))


def _run_child(card: ModelCard, order: Snapshot, on_progress: Progress) -> None:
    quiet = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    python_path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "workers.models.downloads.download", order.to_json()],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=os.environ | quiet | python_path,
            preexec_fn=tied_to_parent(),  # noqa: PLW1509 - two system calls, no locks
        )
        _follow(card, child, Path(order.folder), on_progress)
        if child.returncode == 0:
            return
        errors.seek(0)
        lines = errors.read().strip().splitlines() or [f"status {child.returncode}"]
    if child.returncode == EXIT_CONFIG and lines[-1].startswith(MOVED):
        raise MovedError(lines[-1].removeprefix(MOVED))
    if child.returncode == EXIT_CONFIG:
        raise ConfigError(f"model {card.name}: cannot be downloaded from {order.hub}:{order.model_id}: {lines[-1]}")
    raise ConfigError(
        f"model {card.name}: cannot download {order.hub}:{order.model_id} (revision {order.revision}): {lines[-1]}. "
        "Without a network, put its folder on disk and name it in a card of your own as source = path:<folder>"
    )


def _follow(card: ModelCard, child: "subprocess.Popen[bytes]", folder: Path, on_progress: Progress) -> None:
    logged_s = time.monotonic()
    while True:
        try:
            child.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            share, total = _measure(folder)
            on_progress(share)
            if share is not None and time.monotonic() - logged_s > _LOG_EVERY_S:
                logged_s = time.monotonic()
                log.info("%s: downloaded %.0f%% of %.2f GB", card.name, 100 * share, total / 1e9)
        else:
            return


def _measure(folder: Path) -> tuple[float | None, int]:
    """Return how much of a folder's download is done, and how many bytes it has in all; None: not known yet."""
    try:
        total = int(json.loads((folder / PLAN).read_text("utf-8"))["total"])
        # Files come and go while a download is finished.
        here = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except (OSError, ValueError):
        return None, 0
    return min(here / max(total, 1), 1.0), total
