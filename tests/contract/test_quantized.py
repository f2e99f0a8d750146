"""Decoders whose weights are kept in 8 bits give nearly the same, and what cannot be kept so is refused."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from config.catalog import ModelCard
from config.settings import Settings
from tasks.engine import Work
from tasks.errors import ConfigError
from tests.support.llm_rerankers import make_llm_reranker
from tests.support.model_folders import make_cross_encoder, make_sentence_folder, sentence_modules
from workers.doctor.texts import make_texts
from workers.engine import DeviceEngine
from workers.models.loaded import LoadedModel
from workers.models.registry import load_model

TEXTS = make_texts(100, lambda draw, length: " ".join(draw.choices([f"w{at}" for at in range(300)], k=length)))[:80]
# torchao looks for kernels of GPUs as it is imported, and uses what torch will not have for ever.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torchao", "ignore::UserWarning:torchao")


def load(folder: Path, **fields: Any) -> LoadedModel:
    settings = Settings(_env_file=None, device="cpu", threads=1, dtype="float32")
    return load_model(ModelCard(**{"name": "tiny", "source": f"path:{folder}", **fields}), settings)


def compute(model: LoadedModel) -> NDArray[np.float32]:
    settings = Settings(_env_file=None, device="cpu", threads=1)
    work = Work("tiny", "embeddings", TEXTS)
    if model.backend.dimension is None:
        work = Work("tiny", "rerank", TEXTS, queries=["w1 w2"] * len(TEXTS))
    with DeviceEngine(settings, {"tiny": model}) as engine:
        outcomes = engine.submit(work).result(120)
    assert not outcomes.errors
    return outcomes.values


def kinds_of_weights(model: LoadedModel) -> set[str]:
    module: Any = model.backend
    return {type(one.data).__name__ for one in module._module.parameters()}


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma3"])
def test_a_decoder_in_8_bits_gives_nearly_the_vectors_of_the_whole_weights(family: str, tmp_path: Path) -> None:
    make_sentence_folder(family, tmp_path / "model", "mean", *sentence_modules()["normalize"]())
    whole, small = load(tmp_path / "model", backend="torch"), load(tmp_path / "model", quantize="int8")
    assert kinds_of_weights(whole) == {"Tensor"}
    assert kinds_of_weights(small) == {"Tensor", "Int8Tensor"}
    cosines = (compute(whole) * compute(small)).sum(axis=1)
    assert cosines.min() > 0.99
    assert cosines.mean() > 0.999
    assert cosines.min() < 1 - 1e-7, "they are other weights"
    assert small.fingerprint != whole.fingerprint
    # What the guard asks for: 8 bits hold no more than they give.
    row = small.tokenizer.encode(["w1 w2"], "end")[0].tokens
    np.testing.assert_array_equal(small.backend.run_exact([row]), small.backend.run([row]))


def test_a_reranker_in_8_bits_scores_nearly_alike(tmp_path: Path) -> None:
    fields = make_llm_reranker("qwen3-reranker", tmp_path / "model")
    whole, small = load(tmp_path / "model", **fields), load(tmp_path / "model", quantize="int8", **fields)
    assert "Int8Tensor" in kinds_of_weights(small)
    assert np.abs(compute(whole) - compute(small)).max() < 0.05


def test_what_cannot_be_kept_in_fewer_bits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cross_encoder("bert", tmp_path / "scores")
    make_sentence_folder("qwen3", tmp_path / "vectors", "lasttoken")
    with pytest.raises(ConfigError, match="only the weights of decoders are kept in int8"):
        load(tmp_path / "scores", quantize="int8")
    with pytest.raises(ConfigError, match="int4 need a GPU; on a CPU there is int8"):
        load(tmp_path / "vectors", quantize="int4")
    with pytest.raises(ConfigError, match="int8 are computed by torch only"):
        load(tmp_path / "vectors", quantize="int8", backend="openvino")
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ConfigError, match=r"need torchao: pip install 'twolane-server\[quantized\]'"):
        load(tmp_path / "vectors", quantize="int8")
