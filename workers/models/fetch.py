"""From a card's source to a folder on disk: a bundled wheel, a local path, ModelScope or the Hugging Face hub.

Owns where downloaded models are kept, and that one which is complete is found again without any network. Loads
nothing.
"""

import fcntl
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config.catalog import ModelCard
from config.parent_death import tied_to_parent
from config.settings import Settings
from tasks.errors import ConfigError

__all__ = ["fetch", "locked", "models_dir"]

log = logging.getLogger(__name__)

# Written last: what has it is complete.
_COMPLETE = ".complete.json"
# Weights for other frameworks, which often are most of a repository.
_NOT_NEEDED = ["onnx/*", "openvino/*", "*.onnx", "*.onnx_data", "*.msgpack", "*.h5", "*.ot", "*.gguf", "*.tflite"]


def models_dir(settings: Settings) -> Path:
    """Return the folder for downloaded and converted models, absolute."""
    return (settings.models_dir or settings.data_dir / "models").absolute()


def fetch(card: ModelCard, settings: Settings) -> Path:
    """Return the folder with the card's weights and tokenizer, downloading it if it has to be.

    Raises:
        ConfigError: the source cannot be understood, found or downloaded.
    """
    kind, _, rest = card.source.partition(":")
    if kind == "bundled":
        folder = _bundled(card, rest)
    elif kind == "path":
        folder = Path(rest).expanduser()
    elif kind in {"modelscope", "hf"}:
        folder = _from_hub(card, kind, rest, settings)
    else:
        raise ConfigError(f"model {card.name}: unknown source {card.source!r}")
    if not any((folder / file).is_file() for file in ("config.json", "modules.json", "adapter_config.json")):
        raise ConfigError(f"model {card.name}: {folder} is not a model folder (it has no config.json)")
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file; it ends with the process, so a killed worker leaves none behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _bundled(card: ModelCard, rest: str) -> Path:
    """Find a folder inside an installed wheel without importing the wheel's code."""
    package, _, below = rest.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"model {card.name}: the package {package} that brings it is not installed")
    return Path(spec.submodule_search_locations[0]) / below


def _from_hub(card: ModelCard, hub: str, model_id: str, settings: Settings) -> Path:
    """Download a snapshot once; an interrupted download is taken up again by the library."""
    revision = card.revision or ("master" if hub == "modelscope" else "main")
    folder = models_dir(settings) / hub / model_id.replace("/", "--") / revision
    with locked(folder.with_name(f"{revision}.lock")):
        if not (folder / _COMPLETE).is_file():
            log.info("%s: downloading %s:%s, once, to %s", card.name, hub, model_id, folder)
            if hub == "modelscope":
                _download(card, model_id, revision, folder, settings.modelscope_endpoint)
            else:
                _download_in_child(card, model_id, revision, folder)
            (folder / _COMPLETE).write_text(json.dumps({"id": model_id, "revision": revision}), "utf-8")
    return folder


def _download_in_child(card: ModelCard, model_id: str, revision: str, folder: Path) -> None:
    """Download from the Hugging Face hub in a process of its own: in this one the library is kept from the network."""
    arguments = {"repo_id": model_id, "revision": revision, "local_dir": str(folder), "ignore_patterns": _NOT_NEEDED}
    code = "import json, sys, huggingface_hub; huggingface_hub.snapshot_download(**json.loads(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        check=False,
        preexec_fn=tied_to_parent(),
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        reason = next((line for line in reversed(lines) if "Error: " in line), lines[-1])
        raise _no_download(card, f"hf:{model_id}", revision, reason)


def _download(card: ModelCard, model_id: str, revision: str, folder: Path, endpoint: str) -> None:
    from modelscope import snapshot_download  # noqa: PLC0415 - a heavy import that most workers do not need

    try:
        snapshot_download(
            model_id,
            revision=revision,
            local_dir=str(folder),
            ignore_patterns=_NOT_NEEDED,
            endpoint=endpoint or None,
        )
    except Exception as error:  # the library raises errors of several trees, and this is its edge
        raise _no_download(card, model_id, revision, str(error)) from error


def _no_download(card: ModelCard, model_id: str, revision: str, reason: str) -> ConfigError:
    return ConfigError(
        f"model {card.name}: cannot download {model_id} (revision {revision}): {reason}. Without a network, "
        "put its folder on disk and name it in a card of your own as source = path:<folder>"
    )
