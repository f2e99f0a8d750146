"""No silent wrong vector: each of many kinds of folders gives what its reference gives, or is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import AutoModel

from config.catalog import ModelCard
from config.settings import Settings
from tasks.engine import JobParams, Work
from tasks.errors import ConfigError
from tasks.lanes import Service
from tests.support.checkpoints import WORDS, make_checkpoint
from tests.support.model_folders import (
    ENCODERS,
    edit,
    make_bare,
    make_cross_encoder,
    make_sentence_folder,
    sentence_modules,
)
from workers.doctor.texts import make_texts
from workers.engine import DeviceEngine
from workers.models.registry import load_model

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
MODULES = sentence_modules()
Write = Callable[[Path], None]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Two hundred: empty, of one character, in a dozen scripts, of up to 127 words, and longer than models read."""
    return make_texts(127, lambda draw, length: " ".join(draw.choices([*WORDS, "unknown"], k=length)))


def load(folder: Path, **fields: Any) -> Any:
    card = ModelCard(**{"name": "tiny", "source": f"path:{folder}", "backend": "torch", **fields})
    settings = Settings(
        _env_file=None, device="cpu", threads=1, dtype="float32", models_dir=folder.with_name("exported")
    )
    return settings, load_model(card, settings)


def compute(loaded: Any, work: Work) -> NDArray[np.float32]:
    settings, model = loaded
    with DeviceEngine(settings, {model.card.name: model}) as engine:
        outcomes = engine.submit(work).result(120)
    assert not outcomes.errors
    return outcomes.values


def require_same(found: NDArray[np.float32], expected: NDArray[np.float32], most: float = 1e-5) -> None:
    """Hold vectors against others, by the length of those."""
    assert found.shape == expected.shape
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found / lengths, expected / lengths, rtol=0, atol=most)
    assert np.ptp(found, axis=0).max() > 0.01, "the model tells texts apart, so equality means something"


def require_vectors_of_the_reference(folder: Path, texts: list[str], **fields: Any) -> None:
    loaded = load(folder, **fields)
    reference = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    if not reference.tokenizer("")["input_ids"]:
        # The reference fails on a text without tokens; we give it one.
        texts = [text for text in texts if reference.tokenizer(text)["input_ids"]]
    expected = reference.encode(texts, batch_size=16)
    require_same(compute(loaded, Work("tiny", "embeddings", texts)), expected)
    card = loaded[1].card
    assert card.dimension == reference.get_embedding_dimension()
    assert card.max_tokens == reference.max_seq_length
    assert card.similarity == reference.similarity_fn_name


def require_one_vector_whatever_the_way(folder: Path, texts: list[str]) -> None:
    """In both lanes, alone and in a batch, and in half precision nearly so."""
    loaded = load(folder)
    together = compute(loaded, Work("tiny", "embeddings", texts))
    require_same(compute(loaded, Work("tiny", "embeddings", texts, service=Service.INTERACTIVE)), together)
    some = range(0, len(texts), 4)
    rows = [one.tokens for one in loaded[1].tokenizer.encode([texts[at] for at in some], "end")]
    alone = np.concatenate([loaded[1].backend.run([row]) for row in rows])
    require_same(alone, together[list(some)])
    # Not bfloat16, which decoders get on a GPU: random weights magnify its eight times coarser steps beyond any limit.
    half = compute(load(folder, dtype="float16"), Work("tiny", "embeddings", texts))
    cosines = (half * together).sum(1) / (np.linalg.norm(half, axis=1) * np.linalg.norm(together, axis=1))
    assert cosines.min() >= 0.999


# -- good folders: sentence-transformers is the reference --------------------------------------------------


@pytest.mark.parametrize("pooling", [*POOLINGS, ["cls", "mean"], ["mean", "max", "lasttoken"]])
@pytest.mark.parametrize("spelling", ["new", "old"])
def test_every_pooling_is_read_from_the_folder(
    pooling: str | list[str], spelling: str, tmp_path: Path, texts: list[str]
) -> None:
    folder = tmp_path / "model"
    make_sentence_folder("bert", folder, pooling)
    if spelling == "old":
        modes = [pooling] if isinstance(pooling, str) else pooling
        old = {key: mode in modes for mode, key in OLD_KEYS.items()}
        edit(folder / "1_Pooling/config.json", pooling_mode=None, word_embedding_dimension=64, **old)
        edit(folder / "1_Pooling/config.json", embedding_dimension=None)
    require_vectors_of_the_reference(folder, texts)


@pytest.mark.parametrize("after", sorted(MODULES))
def test_what_follows_the_pooling_is_applied(after: str, tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path / "model"
    make_sentence_folder("bert", folder, "mean", *MODULES[after]())
    require_vectors_of_the_reference(folder, texts)


@pytest.mark.parametrize("family", sorted(ENCODERS))
def test_every_family_gives_the_vectors_of_the_reference(family: str, tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path / "model"
    pooling = "lasttoken" if ENCODERS[family][0] in {"qwen3", "bytes"} else "mean"
    make_sentence_folder(family, folder, pooling, *MODULES["normalize"]())
    require_vectors_of_the_reference(folder, texts)
    require_one_vector_whatever_the_way(folder, texts)


@pytest.mark.parametrize("family", ["qwen2", "mistral", "gemma3", "gemma3-bidirectional", "llama"])
def test_a_decoder_may_pool_by_mean_and_have_dense_modules(family: str, tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path / "model"
    make_sentence_folder(family, folder, "mean", *MODULES["two-dense-normalize"]())
    require_vectors_of_the_reference(folder, texts)


def write_transformer_in_a_subfolder(folder: Path) -> None:
    make_sentence_folder("bert", folder, "mean")
    (folder / "0_Transformer").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        if path.name not in {"modules.json", "config_sentence_transformers.json"}:
            path.rename(folder / "0_Transformer" / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0] |= {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    modules[1] |= {"type": "sentence_transformers.models.Pooling"}
    (folder / "modules.json").write_text(json.dumps(modules))


def write_weights_with_heads_of_another_task(folder: Path) -> None:
    make_sentence_folder("bert", folder, "mean")
    whole = folder.with_name("whole")
    make_bare("bert", whole, "AutoModelForPreTraining")
    shutil.copy(whole / "model.safetensors", folder)


def write_weights_without_a_pooler(folder: Path) -> None:
    make_sentence_folder("bert", folder, "mean")
    state = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in state.items() if "pooler" not in key}, folder / "model.safetensors")


def write_weights_as_pickle(folder: Path) -> None:
    make_sentence_folder("bert", folder, "mean", *MODULES["dense"]())
    for where in (folder, folder / "2_Dense"):
        torch.save(load_file(where / "model.safetensors"), where / "pytorch_model.bin")
        (where / "model.safetensors").unlink()


def write_shards(folder: Path) -> None:
    make_sentence_folder("bert", folder, "mean")
    AutoModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 1


def write_half_precision(folder: Path) -> None:
    make_sentence_folder("bert", folder, "mean")
    AutoModel.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)


def write_lower_case(folder: Path) -> None:
    make_sentence_folder("bert", folder, "mean")
    edit(folder / "sentence_bert_config.json", do_lower_case=True)


def write_a_short_length(folder: Path) -> None:
    make_sentence_folder("bert", folder, "mean")
    edit(folder / "sentence_bert_config.json", max_seq_length=32)


def write_an_old_name_of_the_length(folder: Path) -> None:
    make_sentence_folder("roberta", folder, "mean")
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")
    edit(folder / "sentence_roberta_config.json", max_seq_length=32)


GOOD: dict[str, Write] = {
    name.removeprefix("write_").replace("_", "-"): write
    for name, write in list(globals().items())
    if name.startswith("write_")
}


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_folders_as_they_are_found_give_the_vectors_of_the_reference(
    kind: str, tmp_path: Path, texts: list[str]
) -> None:
    GOOD[kind](tmp_path / "model")
    require_vectors_of_the_reference(tmp_path / "model", [*texts, "W1 W2"])


def test_a_folder_without_modules_needs_its_pooling_from_the_card(tmp_path: Path, texts: list[str]) -> None:
    make_bare("bert", tmp_path / "model")
    modules = [Transformer(str(tmp_path / "model")), Pooling(64, "mean"), Normalize()]
    expected = SentenceTransformer(modules=modules, device="cpu").encode(texts)
    require_same(compute(load(tmp_path / "model", pooling="mean"), Work("tiny", "embeddings", texts)), expected)


def test_prompts_are_read_from_the_folder(tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path / "model"
    prompts = {"query": "w1 w2 ", "document": "w3 ", "other": "w4 "}
    make_sentence_folder("bert", folder, "mean", prompts=prompts, default_prompt_name="other")
    loaded = load(folder)
    reference = SentenceTransformer(str(folder), device="cpu")
    card = loaded[1].card
    for instruction, expected in [
        (None, reference.encode(texts)),
        (card.query_instruction, reference.encode_query(texts)),
        (card.document_instruction, reference.encode_document(texts)),
    ]:
        work = Work("tiny", "embeddings", texts, params=JobParams(instruction=instruction))
        require_same(compute(loaded, work), expected)


def test_an_instruction_inside_a_prompt_may_be_replaced(tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path / "model"
    make_sentence_folder("qwen3", folder, "lasttoken", prompts={"query": "Instruct: w1 w2\nQuery: "})
    loaded = load(folder)
    card = loaded[1].card
    assert (card.query_instruction, card.query_instruction_format) == ("w1 w2", "Instruct: {}\nQuery: {}")
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, prompt="Instruct: w3\nQuery: ")
    work = Work("tiny", "embeddings", texts, params=JobParams(instruction="w3"))
    require_same(compute(loaded, work), expected)


@pytest.mark.parametrize("activation", [None, torch.nn.Identity()])
@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert", "distilbert", "deberta-v2"])
def test_every_cross_encoder_gives_the_scores_of_the_reference(
    family: str, activation: torch.nn.Module | None, tmp_path: Path, texts: list[str]
) -> None:
    folder = tmp_path / "model"
    make_cross_encoder(family, folder, activation_fn=activation)
    # Libraries cut over-long pairs in ways of their own.
    documents = [text for text in texts if len(text.split()) < 100]
    loaded = load(folder)
    work = Work("tiny", "rerank", documents, queries=["w1 w2 w3"] * len(documents))
    scores = compute(loaded, work)
    reference = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Sigmoid())
    expected = reference.predict([("w1 w2 w3", text) for text in documents])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    calls = compute(loaded, replace(work, service=Service.INTERACTIVE))
    np.testing.assert_allclose(calls, scores, rtol=0, atol=1e-5)
    rows = [one.tokens for one in loaded[1].tokenizer.encode_pairs(["w1 w2 w3"] * len(documents), documents, "end")]
    alone = np.concatenate([loaded[1].backend.run([row]) for row in rows])
    np.testing.assert_allclose(alone, scores, rtol=0, atol=1e-5)
    assert np.ptp(scores) > 0.01
    assert loaded[1].card.capabilities == ("rerank",)


def test_bge_m3_is_recognised_by_its_heads(tmp_path: Path, texts: list[str]) -> None:
    make_checkpoint("bge-m3", tmp_path / "model")
    loaded = load(tmp_path / "model", pooling="cls", max_tokens=128)
    assert loaded[1].card.capabilities == ("dense", "sparse", "colbert", "rerank")
    assert loaded[1].backend.heads is not None
    assert compute(loaded, Work("tiny", "embeddings", texts)).shape == (len(texts), 64)


# Each export takes a process of its own that imports torch.
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family in {"gemma3", "modernbert"} else [pytest.mark.slow])
        for family in sorted(ENCODERS)
    ],
)
def test_on_a_cpu_a_family_is_exported_or_served_by_torch_and_gives_the_same(
    family: str, tmp_path: Path, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    make_sentence_folder(family, folder, "mean", *MODULES["dense-identity-normalize"]())
    caplog.set_level("WARNING")
    loaded = load(folder, backend="auto")
    assert loaded[1].backend.kind == "openvino" or "torch serves it" in caplog.text
    texts = [text for text in texts if text]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=4)
    require_same(compute(loaded, Work("tiny", "embeddings", texts)), expected)


def test_a_model_that_cannot_be_exported_is_served_by_torch_and_the_export_is_not_tried_again(
    tmp_path: Path, texts: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    make_sentence_folder("bert", folder, "mean")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "openvino.py").write_text("raise RuntimeError('this operation cannot be converted')")
    with monkeypatch.context() as patched:
        patched.syspath_prepend(str(broken))
        loaded = load(folder, backend="auto")
        with pytest.raises(ConfigError, match="this operation cannot be converted"):
            load(folder, backend="openvino")
    assert loaded[1].backend.kind == "torch"
    assert "this operation cannot be converted; torch serves it" in caplog.text
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=4)
    require_same(compute(loaded, Work("tiny", "embeddings", texts)), expected)
    assert load(folder, backend="auto")[1].backend.kind == "torch"
