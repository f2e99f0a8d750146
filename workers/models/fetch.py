"""From a card's source to a folder on disk: a bundled wheel, a local path, or ModelScope.

Owns where fetched models are kept. Loads nothing.
"""

import importlib.util
from pathlib import Path

from config.catalog import ModelCard
from config.settings import Settings
from tasks.errors import ConfigError

__all__ = ["fetch"]


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
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model {card.name}: {folder} is not a model folder (it has no config.json)")
    return folder


def _bundled(card: ModelCard, rest: str) -> Path:
    """Find a folder inside an installed wheel without importing the wheel's code."""
    package, _, below = rest.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"model {card.name}: the package {package} that brings it is not installed")
    return Path(spec.submodule_search_locations[0]) / below


def _from_modelscope(card: ModelCard, model_id: str, settings: Settings) -> Path:
    from modelscope import snapshot_download  # noqa: PLC0415 - a heavy import that most workers do not need

    cache = settings.data_dir.absolute() / "models"
    try:
        return Path(snapshot_download(model_id, revision=card.revision, cache_dir=str(cache)))
    except Exception as error:  # the library raises errors of several trees, and we are at its edge
        raise ConfigError(f"model {card.name}: cannot download {model_id}: {error}") from error
