"""The cache of exported models on disk: exported once, safe when workers start together, rebuilt when broken.

Owns `<models_dir>/openvino/<key>/`; the key holds everything that the export depends on. `export` writes
what is inside. A model that cannot be exported leaves a file that says why, so that no start tries it again.
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

from config.parent_death import tied_to_parent
from tasks.errors import ConfigError, WorkError
from workers.models.downloads.fetch import locked
from workers.models.export import EXIT_REFUSED, MODEL, TOKENIZER, TRAITS
from workers.models.fingerprint import COMPUTING, hash_files, hash_recipe
from workers.models.folders.recognise import Recipe

__all__ = ["find_or_export"]

log = logging.getLogger(__name__)

_SEAL = "seal.json"
_SEALED = (MODEL, MODEL.replace(".xml", ".bin"), TOKENIZER, TRAITS)


def find_or_export(recipe: Recipe, cache: Path) -> Path:
    """Return a folder with the exported model, exporting it in a process of its own if it has to be.

    Raises:
        ConfigError: the model cannot be loaded at all.
        WorkError: it cannot be exported; another backend may run it.
    """
    target = cache / _key(recipe)
    failed = target.with_suffix(".failed")
    with locked(cache / f"{target.name}.lock"):
        if failed.is_file():
            raise WorkError(failed.read_text("utf-8"))
        if not _is_whole(target):
            _build(recipe, target, failed)
    return target


def _key(recipe: Recipe) -> str:
    versions = (version(name) for name in ("openvino", "torch", "transformers", "FlagEmbedding"))
    parts = [str(COMPUTING), hash_recipe(recipe), *recipe.card.extras, *versions]
    return f"{recipe.card.slug}-{hashlib.sha256('/'.join(parts).encode()).hexdigest()[:24]}"


def _is_whole(target: Path) -> bool:
    """Whether every file is there with the bytes that were sealed: a full disk or a killed copy leaves others."""
    try:
        sealed = json.loads((target / _SEAL).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(sealed == _digests(target))


def _digests(target: Path) -> dict[str, str]:
    return {name: hash_files(target, (name,)) for name in _SEALED}


def _build(recipe: Recipe, target: Path, failed: Path) -> None:
    """Export beside the target and move it there in one step, so that nobody ever sees half a model."""
    name = recipe.card.name
    if target.exists():
        log.warning("%s: the exported model in %s is broken and is built again", name, target)
        shutil.rmtree(target)
    log.info("%s: exporting to OpenVINO, once", name)
    prefix = f".draft-{target.name}-"
    # We hold the lock, so these were left by workers that were killed.
    for orphan in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(orphan, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        _export_in_child(recipe, draft, failed)
        (draft / _SEAL).write_text(json.dumps(_digests(draft)), "utf-8")
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _export_in_child(recipe: Recipe, draft: Path, failed: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "workers.models.export",
        recipe.card.model_dump_json(),
        str(recipe.folder),
        str(draft),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        preexec_fn=tied_to_parent(),
    )
    if done.returncode == 0:
        return
    reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    if done.returncode == EXIT_REFUSED:
        raise ConfigError(reason)
    message = f"model {recipe.card.name}: cannot be exported to OpenVINO: {reason}"
    # What was ended from outside (for want of memory, or by a person) may go better at the next start.
    if done.returncode > 0:
        failed.write_text(message, "utf-8")
    raise WorkError(message)
