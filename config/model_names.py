"""What `TWOLANE_MODELS` may name besides cards: IDs of model hubs and folders.

Owns how such a name is written and what the model is then called. Reads no folder and asks no hub.
"""

import re
from pathlib import Path
from typing import Any

__all__ = ["card_fields"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUBS = ("modelscope", "hf")


def card_fields(name: str) -> dict[str, Any] | None:
    """Return the fields of a card for a folder or a hub's ID; None where the name is neither.

    A folder is written with a slash or `~` in front, or as `path:<folder>`; its last part becomes the model's name. An
    ID is `<owner>/<model>`, of ModelScope or with `hf:` in front of Hugging Face, and may end in `@<revision>`; it is
    the model's name as it stands, and what follows the slash an alias.
    """
    kind, colon, rest = name.partition(":")
    if name.startswith(("/", "./", "../", "~")):
        return _folder(name)
    if colon and kind == "path":
        return _folder(rest)
    if not colon:
        kind, rest = "modelscope", name
    model_id, _, revision = rest.partition("@")
    if kind not in _HUBS or not _ID.fullmatch(model_id):
        return None
    owner, _, model = model_id.partition("/")
    source = f"{kind}:{model_id}"
    return {"name": model_id, "aliases": (model,), "owner": owner, "source": source, "revision": revision}


def _folder(written: str) -> dict[str, Any] | None:
    folder = Path(written).expanduser()
    name = folder.resolve().name
    return {"name": name, "source": f"path:{folder.absolute()}"} if name else None
