"""Each model family loads through FlagEmbedding and gives what FlagEmbedding's own, slower path gives."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from FlagEmbedding import BGEM3FlagModel, FlagLLMModel, FlagModel, FlagReranker
from numpy.typing import NDArray
from transformers import AutoTokenizer

from config.catalog import ModelCard
from config.settings import Settings
from tasks.engine import JobParams, Work
from tests.support.checkpoints import FAMILIES, WORDS, make_checkpoint
from workers.engine import DeviceEngine
from workers.models.backends.torch import TorchBackend
from workers.models.loaded import LoadedModel
from workers.models.registry import load_models
from workers.models.tokenizing.tokenizer import Tokens

RERANKERS = [family for family in FAMILIES if family.endswith("reranker")]
EMBEDDERS = [family for family in FAMILIES if not family.endswith("reranker")]
# Each export takes a process of its own that imports torch: the quick tests do with one of each kind.
QUICK = {"bert", "qwen3", "xlmr-reranker"}


def both_ways(families: list[str]) -> list[Any]:
    """Return a case for each family by torch, padded and packed, and one by OpenVINO."""
    slow = [[] if family in QUICK else [pytest.mark.slow] for family in families]
    return [pytest.param(family, backend) for backend in ("torch", "packed") for family in families] + [
        pytest.param(family, "openvino", marks=marks) for family, marks in zip(families, slow, strict=True)
    ]


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelCard]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: ModelCard(**make_checkpoint(family, root / family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    draw = random.Random(1)
    lengths = [0, 1, 2, 3, 5, 8, 13, 40, 90, 125, 126, 127, 200]
    return [" ".join(draw.choices([*WORDS, "unknown"], k=length)) for length in lengths]


def load(card: ModelCard, models_dir: Path, backend: str, dtype: str = "float32") -> tuple[Settings, LoadedModel]:
    settings = Settings(_env_file=None, device="cpu", threads=2, dtype=dtype, models_dir=models_dir)
    chosen = card.model_copy(update={"backend": backend})
    return settings, load_models([chosen], settings)[card.name]


def compute(loaded: tuple[Settings, LoadedModel], work: Work) -> NDArray[np.float32]:
    settings, model = loaded
    with DeviceEngine(settings, {model.card.name: model}) as engine:
        outcomes = engine.submit(work).result(120)
    assert not outcomes.errors
    return outcomes.values


def folder(card: ModelCard) -> str:
    return card.source.removeprefix("path:")


def encode_by_flag_embedding(card: ModelCard, texts: list[str]) -> NDArray[np.float32]:
    common: dict[str, Any] = {"use_fp16": False, "devices": "cpu"}
    if card.family == "decoder":
        flag: Any = FlagLLMModel(folder(card), **common)
    elif card.family == "bge-m3":
        flag = BGEM3FlagModel(folder(card), **common)
        return np.asarray(flag.encode(texts, max_length=card.max_tokens)["dense_vecs"], np.float32)
    else:
        flag = FlagModel(folder(card), pooling_method=card.pooling, **common)
    return np.asarray(flag.encode(texts, max_length=card.max_tokens), np.float32)


@pytest.mark.parametrize(("family", "backend"), both_ways(EMBEDDERS))
def test_vectors_equal_those_of_flag_embedding(
    family: str, backend: str, cards: dict[str, ModelCard], models_dir: Path, texts: list[str]
) -> None:
    values = compute(load(cards[family], models_dir, backend), Work(family, "embeddings", texts))
    np.testing.assert_allclose(values, encode_by_flag_embedding(cards[family], texts), atol=1e-4)
    assert np.ptp(values @ values[3]) > 0.1, "the model tells texts apart, so equality means something"


@pytest.mark.parametrize(("family", "backend"), both_ways(RERANKERS))
def test_scores_equal_those_of_flag_embedding(
    family: str, backend: str, cards: dict[str, ModelCard], models_dir: Path, texts: list[str]
) -> None:
    card = cards[family]
    queries = [texts[4], texts[5], texts[7], texts[9]] * 4
    documents = (texts * 2)[: len(queries)]
    values = compute(load(card, models_dir, backend), Work(family, "rerank", documents, queries=queries))
    flag = FlagReranker(folder(card), use_fp16=False, devices="cpu")
    pairs = list(zip(queries, documents, strict=True))
    expected = flag.compute_score(pairs, max_length=card.max_tokens, normalize=True)
    # FlagEmbedding decodes and tokenizes again. That drops the pair where the document is empty, and the separators
    # with it; before transformers 5 it did not, and neither do we.
    same = [at for at, document in enumerate(documents) if document]
    np.testing.assert_allclose(values[same], np.asarray(expected)[same], atol=1e-4)
    assert np.ptp(values) > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_token_ids_are_those_of_the_models_own_tokenizer(
    family: str, cards: dict[str, ModelCard], models_dir: Path, texts: list[str]
) -> None:
    card = cards[family]
    _, model = load(card, models_dir, "torch")
    reference = AutoTokenizer.from_pretrained(folder(card))
    for text, encoded in zip(texts, model.tokenizer.encode(texts, "end"), strict=True):
        assert encoded.tokens.ids.tolist() == reference(text, truncation=True, max_length=128)["input_ids"]
    if card.family == "cross-encoder":
        encoded = model.tokenizer.encode_pairs([texts[4]] * len(texts), texts, "end")
        for text, one in list(zip(texts, encoded, strict=True))[1:]:
            whole = reference(texts[4], text, truncation="only_second", max_length=128)
            assert one.tokens.ids.tolist() == whole["input_ids"]
            if "token_type_ids" in whole:
                types = [int(0 < one.tokens.second_at <= at) for at in range(len(one.tokens))]
                assert types == whole["token_type_ids"]


def test_an_instruction_is_put_before_the_text_as_flag_embedding_does(
    cards: dict[str, ModelCard], models_dir: Path, texts: list[str]
) -> None:
    card = cards["qwen3"].model_copy(update={"query_instruction_format": "w1 {} w2 {}"})
    work = Work("qwen3", "embeddings", texts[:8], params=JobParams(instruction="w7 w8"))
    flag = FlagLLMModel(
        folder(card),
        query_instruction_for_retrieval="w7 w8",
        query_instruction_format="w1 {} w2 {}",
        use_fp16=False,
        devices="cpu",
    )
    expected = flag.encode_queries(texts[:8], max_length=128)
    np.testing.assert_allclose(compute(load(card, models_dir, "torch"), work), expected, atol=1e-4)


# -- faults of a real backend ----------------------------------------------------------------------------


class SmallMemory(torch.nn.Module):
    """A model on a device that holds so many tokens."""

    def __init__(self, inner: torch.nn.Module, most_tokens: int) -> None:
        super().__init__()
        self.inner = inner
        self.most_tokens = most_tokens
        self.ran: list[tuple[int, int]] = []

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None) -> torch.Tensor:
        if ids.numel() > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.ran.append((ids.shape[0], ids.shape[1]))
        return self.inner(ids, mask, types)


def test_a_torch_batch_that_does_not_fit_is_halved_and_nothing_is_lost(
    cards: dict[str, ModelCard], models_dir: Path, texts: list[str]
) -> None:
    settings, model = load(cards["bert"], models_dir, "torch")
    backend = model.backend
    assert isinstance(backend, TorchBackend)
    whole = compute((settings, model), Work("bert", "embeddings", texts))
    backend._module = SmallMemory(backend._module, most_tokens=150)
    with DeviceEngine(settings, {"bert": model}) as engine:
        outcomes = engine.submit(Work("bert", "embeddings", texts)).result(60)
        assert not outcomes.errors
        np.testing.assert_allclose(outcomes.values, whole, atol=1e-5)
        assert sum(rows for rows, _ in backend._module.ran) == len(set(texts)), "no row is computed twice"
        backend._module.most_tokens = 60
        outcomes = engine.submit(Work("bert", "embeddings", texts)).result(60)
    too_long = [at for at, text in enumerate(texts) if min(len(text.split()) + 2, 128) > 60]
    assert {at: error.code for at, error in outcomes.errors.items()} == dict.fromkeys(too_long, "out_of_memory")


class Overflowing(torch.nn.Module):
    """A model whose half-precision activations overflow for one token, as float16 does in real models."""

    def __init__(self, inner: torch.nn.Module, token: int) -> None:
        super().__init__()
        self.inner = inner
        self.token = token

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None) -> torch.Tensor:
        values = self.inner(ids, mask, types)
        narrow = next(self.inner.parameters()).dtype != torch.float32
        overflows = (ids == self.token).any(dim=1) & narrow
        return values.masked_fill(overflows[:, None], float("inf"))


def test_a_torch_vector_that_overflows_is_computed_again_in_float32(
    cards: dict[str, ModelCard], models_dir: Path
) -> None:
    settings, model = load(cards["bert"], models_dir, "torch", dtype="bfloat16")
    backend = model.backend
    assert isinstance(backend, TorchBackend)
    token = int(model.tokenizer.encode(["w13"], "end")[0].tokens.ids[1])
    backend._module = Overflowing(backend._module, token)
    texts = ["w1 w2", "w13 w2", "w3 w4"]
    values = compute((settings, model), Work("bert", "embeddings", texts))
    exact = compute(load(cards["bert"], models_dir, "torch"), Work("bert", "embeddings", texts))
    assert (values * exact).sum(1).min() > 0.99
    assert next(backend._module.parameters()).dtype == torch.bfloat16, "the model is back in its own precision"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_no_numbers_make_item_errors(
    dtype: str, cards: dict[str, ModelCard], models_dir: Path
) -> None:
    settings, model = load(cards["bert"], models_dir, "torch", dtype=dtype)
    backend = model.backend
    assert isinstance(backend, TorchBackend)
    row = int(model.tokenizer.encode(["w13"], "end")[0].tokens.ids[1])
    backend._module.get_submodule("transformer.embeddings.word_embeddings").weight.data[row] = float("nan")
    with DeviceEngine(settings, {"bert": model}) as engine:
        outcomes = engine.submit(Work("bert", "embeddings", ["w1 w2", "w13 w2", "w3 w4"])).result(60)
        assert {at: error.code for at, error in outcomes.errors.items()} == {1: "invalid_embedding"}
        assert np.isfinite(outcomes.values).all()
        assert engine.healthy()


def test_other_errors_of_torch_are_not_taken_for_a_full_memory(cards: dict[str, ModelCard], models_dir: Path) -> None:
    _, model = load(cards["bert"], models_dir, "torch")
    with pytest.raises((RuntimeError, IndexError)) as caught:
        model.backend.run([Tokens(np.full(3, 10_000, np.int32))])
    assert "memory" not in str(caught.value)
