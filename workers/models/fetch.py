"""From a card's source to a folder on disk: a bundled wheel, a local path, or ModelScope.

Owns where downloaded models are kept, and that one which is complete is found again without any network. Loads
nothing.
"""

import fcntl
import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config.catalog import ModelCard
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
    elif kind == "modelscope":
        folder = _from_modelscope(card, rest, settings)
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


def _from_modelscope(card: ModelCard, model_id: str, settings: Settings) -> Path:
    """Download a snapshot once; an interrupted download is taken up again by the library."""
    revision = card.revision or "master"
    folder = models_dir(settings) / "modelscope" / model_id.replace("/", "--") / revision
    with locked(folder.with_name(f"{revision}.lock")):
        if not (folder / _COMPLETE).is_file():
            log.info("%s: downloading %s from ModelScope, once, to %s", card.name, model_id, folder)
            _download(card, model_id, revision, folder, settings.modelscope_endpoint)
            (folder / _COMPLETE).write_text(json.dumps({"id": model_id, "revision": revision}), "utf-8")
    return folder


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
        raise ConfigError(
            f"model {card.name}: cannot download {model_id} (revision {revision}): {error}. Without a network, "
            "put its folder on disk and name it in a card of your own as source = path:<folder>"
        ) from error
