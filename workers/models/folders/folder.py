"""A model folder's files as they lie on disk: JSON that can be read, weights that are whole.

Owns the checks that cost no more than reading heads of files, so they run at every start. `recognise` says what
the files mean. Imports no device library.
"""

import json
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError

__all__ = ["check_tokenizer_files", "check_weight_files", "read_json", "read_json_list"]

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
_LFS = b"version https://git-lfs"
# A header larger than this is none: the largest real ones are some megabytes.
_MOST_HEADER_BYTES = 100 * 2**20


def read_json(name: str, path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of the model `name`; an absent file is an empty one.

    Raises:
        ConfigError: the file is no JSON object.
    """
    found = _read(name, path)
    if not isinstance(found, dict):
        raise ConfigError(f"model {name}: {path} is not a JSON object")
    return found


def read_json_list(name: str, path: Path) -> list[dict[str, Any]]:
    """Return the list of objects in a JSON file; an absent file is an empty list.

    Raises:
        ConfigError: the file is no such list.
    """
    found = _read(name, path) if path.is_file() else []
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ConfigError(f"model {name}: {path} is not a list of JSON objects")
    return found


def check_weight_files(name: str, folder: Path) -> None:
    """Check that the weights are there and whole, as far as their heads tell.

    Raises:
        ConfigError: a file is missing, cut off, or a pointer in place of the file.
    """
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not files:
        raise ConfigError(f"model {name}: {folder} has no weights (model.safetensors or pytorch_model.bin)")
    for index in folder.glob("*.safetensors.index.json"):
        shards = set(read_json(name, index).get("weight_map", {}).values())
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            raise ConfigError(f"model {name}: {folder} lacks {', '.join(missing)}, which {index.name} names")
    for path in files:
        _check_file(name, path)


def check_tokenizer_files(name: str, folder: Path) -> None:
    """Check that a tokenizer's vocabulary is there: without one, a library may make up an empty one.

    Raises:
        ConfigError: there is none.
    """
    if not any(path.is_file() for pattern in _VOCABULARIES for path in folder.glob(pattern)):
        raise ConfigError(
            f"model {name}: {folder} has no tokenizer (tokenizer.json, or the vocabulary of an older one)"
        )


def _check_file(name: str, path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(max(8, len(_LFS)))
        if head.startswith(_LFS):
            raise ConfigError(f"model {name}: {path} is a Git LFS pointer, not the file: fetch it with `git lfs pull`")
        if path.suffix != ".safetensors":
            return
        # https://github.com/huggingface/safetensors: length of the header, header, data.
        length = int.from_bytes(head[:8], "little")
        has = path.stat().st_size
        if not 0 < length <= min(_MOST_HEADER_BYTES, has - 8):
            raise ConfigError(f"model {name}: {path} is damaged: it has no safetensors header")
        file.seek(8)
        try:
            tensors = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for key, entry in tensors.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ConfigError(f"model {name}: {path} is damaged: its safetensors header cannot be read") from error
    if has != (needs := 8 + length + max(ends, default=0)):
        raise ConfigError(f"model {name}: {path} is damaged: it has {has} bytes, by its header {needs}")


def _read(name: str, path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {name}: {path} cannot be read: {error}") from error
