"""Which bytes a name of a hub stood for when it was first used here: a name that moves is no silent change of model.

Owns `pins.json` in the folder of downloads: for each model and revision the commit, where the hub has one, and the
sha256 of every file that decides what is computed. A fleet on several machines shares the file, or is given a copy.
Downloads nothing (`fetch`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.errors import ConfigError

__all__ = ["Pin", "Pins", "decides"]

_NAME = "pins.json"
# Pages and pictures: what they say changes no number.
_PAGES = ("*.md", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.pdf", "license*", "notice*")


@dataclass(frozen=True, slots=True)
class Pin:
    """What a model and revision are.

    Attributes:
        commit: of the hub; empty where it names none.
        files: sha256 by path, of the files that decide what is computed.
    """

    commit: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


class Pins:
    """The pins of a folder of downloads.

    Args:
        folder: of all downloads.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME

    def find(self, name: str) -> Pin | None:
        """Return the pin of `<hub>:<id>@<revision>`; None: it was never used here.

        Raises:
            ConfigError: the file is damaged.
        """
        found = self._read().get(name)
        return None if found is None else Pin(found["commit"], found["files"])

    def hold(self, name: str, current: Pin) -> None:
        """Note what a name stands for at its first use, and hold it against that ever after.

        The caller keeps other processes from doing the same.

        Raises:
            ConfigError: it stands for other files now.
        """
        files = {path: sha256 for path, sha256 in current.files.items() if decides(path)}
        pins = self._read()
        if name not in pins:
            pins[name] = asdict(Pin(current.commit, files))
            draft = self._path.with_suffix(".draft")
            draft.write_text(json.dumps(pins, indent=1, sort_keys=True) + "\n", "utf-8")
            draft.replace(self._path)
            return
        pinned = pins[name]["files"]
        if moved := sorted(path for path in {*pinned, *files} if pinned.get(path) != files.get(path)):
            raise ConfigError(self.explain(name, moved[0]))

    def explain(self, name: str, path: str) -> str:
        """Return the sentence on a name that stands for other files than before."""
        return (
            f"{name} has moved: its {path} is not the one that {self._path} holds since its first use. To take the new "
            "one on all machines, remove the entry there and the folder of its download; to keep the old one, name "
            "its revision on the card"
        )

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            found: dict[str, dict[str, Any]] = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ConfigError(f"{self._path} is damaged: {error}") from error
        return found


def decides(path: str) -> bool:
    """Return whether a file may change what a model computes."""
    parts = PurePosixPath(path.lower()).parts
    # What begins with a dot is the hubs' libraries' own, and ours.
    hidden = any(part.startswith(".") for part in parts)
    return not hidden and not any(fnmatch(parts[-1], pattern) for pattern in _PAGES)
