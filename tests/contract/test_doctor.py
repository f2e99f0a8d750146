"""The doctor says that a good model is served right, and finds what is wrong in folders, cards and our own code."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers.base.modules import Dense

from config.catalog import ModelCard
from config.settings import Settings
from tests.support.broken_folders import bert, change_weights
from tests.support.llm_rerankers import LAYERWISE, make_llm_reranker
from tests.support.model_folders import make_bare, make_cross_encoder, make_sentence_folder, sentence_modules
from tests.support.token_folders import make_colbert, make_pylate, make_splade
from workers.doctor.__main__ import NOT_EXAMINED, RIGHT, WRONG, main
from workers.doctor.comparing import Check
from workers.doctor.examination import Examination
from workers.doctor.tensors import check_tensors
from workers.models import families, weights
from workers.models.folders import recognise
from workers.models.tokenizing import token_tokenizer, tokenizer

MODULES = sentence_modules()
# FlagEmbedding's class of the layerwise one uses what transformers will not have for ever.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The attention mask API:FutureWarning"),
]


def examine(folder: Path, **fields: Any) -> dict[str, Check]:
    card = ModelCard(**{"name": "tiny", "source": f"path:{folder}", "backend": "torch", **fields})
    settings = Settings(_env_file=None, device="cpu", threads=1, models_dir=folder.with_name("models"))
    return {check.name: check for check in Examination(card, settings, 60).run()}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.verdict == "FAILED"}


def test_a_good_model_is_served_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = {"query": "w1 w2 ", "document": "w3 "}
    make_sentence_folder("bert", tmp_path / "mine", "max", *MODULES["two-dense-normalize"](), prompts=prompts)
    cards = f'[[models]]\nname = "mine"\nsource = "path:{tmp_path / "mine"}"\nbackend = "torch"\n'
    (tmp_path / "cards.toml").write_text(cards)
    for name, value in {"CATALOG_FILE": tmp_path / "cards.toml", "MODELS_DIR": tmp_path, "DEVICE": "cpu"}.items():
        monkeypatch.setenv(f"TWOLANE_{name}", str(value))
    assert main(["mine"]) == RIGHT
    report = capsys.readouterr().out
    assert "mine is served right here" in report
    assert "encoder: max, then dense, then dense, then normalize" in report
    assert "200 texts of 200 compared with sentence-transformers, all alike" in report
    for name in ("float32 = reference", "as served (torch, float32)"):
        assert f"{name:<32} ok       200 texts, least cosine 1.000000" in report
    assert "prompt of a query" in report
    assert "prompt of a document" in report
    assert main(["no-such-model"]) == NOT_EXAMINED
    change_weights(tmp_path / "mine", lambda state: state["encoder.layer.0.output.dense.weight"].fill_(float("nan")))
    assert main(["mine"]) == WRONG


SLOWER = ("pylate", "qwen3-reranker-seq-cls", "mxbai-rerank-v2", "bge-reranker-v2-gemma")
FAMILIES = ("cross-encoder", "decoder", "splade", "colbert", "qwen3-reranker", LAYERWISE)


@pytest.mark.parametrize("family", [*FAMILIES, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOWER)])
def test_other_families_are_compared_too(family: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {}
    if family == "decoder":
        make_sentence_folder("qwen3", tmp_path / "model", "lasttoken", *MODULES["normalize"]())
    elif family == "cross-encoder":
        make_cross_encoder("bert", tmp_path / "model")
    elif family == "splade":
        make_splade(tmp_path / "model")
    elif family == "colbert":
        make_colbert(tmp_path / "model", query_expansion={"strategy": "fixed", "length": 16, "token": "w9"})
    elif family == "pylate":
        make_pylate(tmp_path / "model", skiplist_words=["w3"])
    else:
        fields = make_llm_reranker(family, tmp_path / "model")
    checks = examine(tmp_path / "model", **fields)
    assert not failed(checks)
    for name in ("float32 = reference", "as served (torch, float32)", "batch = alone"):
        assert checks[name].verdict == "ok"
    if family in {"splade", "colbert", "pylate"}:
        assert checks["prompt of a query"].verdict == "ok"


def test_sparse_weights_and_token_vectors_that_we_would_make_otherwise_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_splade(tmp_path / "splade" / "model")
    make_colbert(tmp_path / "colbert" / "model", skip=["w3", "w4", "the"])
    pool = families.SpladeEmbedder._pool
    monkeypatch.setattr(families.SpladeEmbedder, "_pool", lambda *args: pool(*args) ** 1.1)
    assert "float32 = reference" in failed(examine(tmp_path / "splade" / "model"))
    monkeypatch.undo()
    monkeypatch.setattr(token_tokenizer.TokenTokenizer, "encode", tokenizer.FastTokenizer.encode)
    assert {"float32 = reference", "as served (torch, float32)"} <= failed(examine(tmp_path / "colbert" / "model"))


def test_a_pooling_that_the_card_has_wrong_is_found(tmp_path: Path) -> None:
    make_sentence_folder("bert", tmp_path / "stated", "cls")
    assert "its card says pooling mean" in examine(tmp_path / "stated", pooling="mean")["can be served"].found
    # A folder that says nothing, of a model that FlagEmbedding's list knows.
    make_bare("bert", tmp_path / "bare")
    known = {"name": "bge-small-en-v1.5", "normalize": True}
    assert "float32 = reference" in failed(examine(tmp_path / "bare", pooling="mean", **known))
    assert not failed(examine(tmp_path / "bare", pooling="cls", **known))


def test_a_pooling_that_we_would_read_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = recognise.read_modules
    monkeypatch.setattr(recognise, "read_modules", lambda *args: replace(read(*args), pooling="mean"))
    make_sentence_folder("bert", tmp_path / "model", "max")
    assert {"float32 = reference", "as served (torch, float32)"} <= failed(examine(tmp_path / "model"))


def test_a_dense_module_that_is_left_out_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bert(tmp_path / "model", "mean", Dense(64, 64))
    read = recognise.read_modules
    with monkeypatch.context() as patched:
        patched.setattr(recognise, "read_modules", lambda *args: replace(read(*args), steps=()))
        assert "float32 = reference" in failed(examine(folder))
    (folder / "modules.json").write_text((folder / "modules.json").read_text().replace("2_Dense", "elsewhere"))
    (folder / "2_Dense").rename(folder / "elsewhere")
    assert not failed(examine(folder))
    (folder / "2_Dense").mkdir()
    assert "2_Dense in its folder is named by no modules.json" in examine(folder)["modules"].found


def test_a_random_head_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cross_encoder("bert", tmp_path / "model")
    change_weights(tmp_path / "model", lambda state: [state.pop(key) for key in list(state) if "classifier" in key])
    assert "they would be random" in examine(tmp_path / "model")["can be served"].found
    monkeypatch.setattr(weights, "_require_none", lambda *_: None)
    assert "float32 = reference" in failed(examine(tmp_path / "model"))


def look_at(folder: Path) -> Check:
    card = ModelCard(name="tiny", source=f"path:{folder}")
    return check_tensors(recognise.recognise(card, folder))


@pytest.mark.parametrize(
    ("damage", "verdict", "words"),
    [
        pytest.param(lambda state: state.zero_(), "FAILED", "is zero throughout", id="zeros"),
        pytest.param(lambda state: state[3].fill_(1e30), "FAILED", "holds 1e+30", id="a-flipped-bit"),
        pytest.param(lambda state: state[3].fill_(float("nan")), "FAILED", "holds nan", id="no-numbers"),
        pytest.param(lambda state: state[3:9].zero_(), "note", "a hole in the file?", id="a-hole"),
    ],
)
def test_damaged_weights_are_found(damage: Any, verdict: str, words: str, tmp_path: Path) -> None:
    folder = bert(tmp_path / "model")
    assert look_at(folder).verdict == "ok"
    change_weights(folder, lambda state: damage(state["encoder.layer.0.output.dense.weight"]))
    check = look_at(folder)
    assert check.verdict == verdict
    assert words in check.found


def test_texts_that_we_would_cut_otherwise_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = tokenizer._cut
    monkeypatch.setattr(tokenizer, "_cut", lambda part, room, _: cut(part, room, "start"))
    assert "token ids" in failed(examine(bert(tmp_path / "model")))
