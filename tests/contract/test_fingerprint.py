"""A fingerprint changes with whatever changes a vector, and with nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from config.catalog import ModelCard
from tests.support.model_folders import edit, make_sentence_folder, sentence_modules
from workers.models.fingerprint import fingerprint_recipe
from workers.models.folders.recognise import recognise


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fingerprint") / "model"
    make_sentence_folder("bert", folder, "mean", *sentence_modules()["dense"](), prompts={"query": "w1 "})
    return folder


def fingerprint(folder: Path, dtype: str = "float32", **fields: Any) -> str:
    card = ModelCard(name="tiny", source=f"path:{folder}", **fields)
    return fingerprint_recipe(recognise(card, folder), dtype)


def change_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["embeddings.word_embeddings.weight"][5, 5] += 1
    save_file(state, folder / "model.safetensors")


def change_dense(folder: Path) -> None:
    state = load_file(folder / "2_Dense/model.safetensors")
    state["linear.weight"][1, 1] += 1
    save_file(state, folder / "2_Dense/model.safetensors")


CHANGES: dict[str, Callable[[Path], None]] = {
    "weights": change_weights,
    "weights of a module": change_dense,
    "tokenizer": lambda folder: edit(folder / "tokenizer.json", version="2.0"),
    "pooling": lambda folder: edit(folder / "1_Pooling/config.json", pooling_mode="cls"),
    "activation": lambda folder: edit(
        folder / "2_Dense/config.json", activation_function="torch.nn.modules.linear.Identity"
    ),
    "prompts": lambda folder: edit(folder / "config_sentence_transformers.json", prompts={"query": "w2 "}),
    "length": lambda folder: edit(folder / "sentence_bert_config.json", max_seq_length=64),
    "case": lambda folder: edit(folder / "sentence_bert_config.json", do_lower_case=True),
    "configuration": lambda folder: edit(folder / "config.json", layer_norm_eps=1e-6),
}


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_it_changes_with_what_is_in_the_folder(what: str, original: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    assert fingerprint(copy) == fingerprint(original), "where a folder lies does not matter"
    changed = tmp_path / "changed"
    shutil.copytree(original, changed)
    CHANGES[what](changed)
    assert fingerprint(changed) != fingerprint(original)


def test_it_changes_with_the_precision_and_with_the_card(original: Path) -> None:
    same = fingerprint(original)
    assert fingerprint(original, description="words") == same
    assert fingerprint(original, dtype="bfloat16") != same
    for fields in ({"max_tokens": 32}, {"query_instruction": "w3 "}, {"normalize": True}):
        assert fingerprint(original, **fields) != same


def test_it_does_not_change_with_files_that_are_not_used(original: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    (copy / "README.md").write_text("words")
    (copy / "pytorch_model.bin").write_bytes(b"the same weights in another format")
    assert fingerprint(copy) == fingerprint(original)
