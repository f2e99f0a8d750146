"""The cache of exported models on disk: exported once, safe when workers start together, rebuilt when broken.

Owns `<models_dir>/openvino/<key>/`; the key holds everything that the export depends on. What stands inside is
`export`'s business.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from config.catalog import ModelCard
from config.supervisor import tied_to_parent
from tasks.errors import ConfigError
from workers.models.export import MODEL, TOKENIZER, TRAITS
from workers.models.fetch import locked
from workers.models.fingerprint import hash_files, hash_weights

__all__ = ["find_or_export"]

log = logging.getLogger(__name__)

_SEAL = "seal.json"
_SEALED = (MODEL, MODEL.replace(".xml", ".bin"), TOKENIZER, TRAITS)


def find_or_export(card: ModelCard, folder: Path, cache: Path) -> Path:
    """Return a folder with the exported model, exporting it in a process of its own if it has to be.

    Raises:
        ConfigError: the model cannot be exported.
    """
    target = cache / _key(card, folder)
    with locked(cache / f"{target.name}.lock"):
        if not _is_whole(target):
            _build(card, folder, target)
    return target


def _key(card: ModelCard, folder: Path) -> str:
    parts = [
        hash_weights(folder),
        hash_files(folder, ("tokenizer*.json", "vocab.txt", "special_tokens_map.json", "*.model")),
        card.family,
        card.pooling or "",
        str(card.normalize),
        *card.extras,
        *(version(name) for name in ("openvino", "torch", "transformers", "FlagEmbedding")),
    ]
    return f"{card.slug}-{hashlib.sha256('/'.join(parts).encode()).hexdigest()[:24]}"


def _is_whole(target: Path) -> bool:
    """Whether every file is there with the bytes that were sealed: a full disk or a killed copy leaves others."""
    try:
        sealed = json.loads((target / _SEAL).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(sealed == _digests(target))


def _digests(target: Path) -> dict[str, str]:
    return {name: hash_files(target, (name,)) for name in _SEALED}


def _build(card: ModelCard, folder: Path, target: Path) -> None:
    """Export beside the target and move it there in one step, so that nobody ever sees half a model."""
    if target.exists():
        log.warning("%s: the exported model in %s is broken and is built again", card.name, target)
        shutil.rmtree(target)
    log.info("%s: exporting to OpenVINO, once", card.name)
    prefix = f".draft-{target.name}-"
    # We hold the lock, so these were left by workers that were killed.
    for orphan in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(orphan, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        _export_in_child(card, folder, draft)
        (draft / _SEAL).write_text(json.dumps(_digests(draft)), "utf-8")
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _export_in_child(card: ModelCard, folder: Path, draft: Path) -> None:
    command = [sys.executable, "-m", "workers.models.export", card.model_dump_json(), str(folder), str(draft)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        preexec_fn=tied_to_parent(),
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise ConfigError(f"model {card.name}: cannot be exported to OpenVINO: {reason}")
