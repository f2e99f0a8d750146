"""Sparse weights and ColBERT vectors of bge-m3: what FlagEmbedding gives, from one forward pass, through the engine."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from FlagEmbedding import BGEM3FlagModel
from pydantic import ValidationError

from config.catalog import ModelCard
from config.settings import Settings
from tasks.engine import JobParams, Outcomes, Work
from tasks.errors import ConfigError, WrongCapability
from tasks.lanes import Service
from tasks.vectors import KINDS
from tests.support.checkpoints import WORDS, make_checkpoint
from workers.doctor.texts import make_texts
from workers.engine import DeviceEngine
from workers.engine.admission import admit
from workers.engine.scoring import PairScores
from workers.models.backends.torch import TorchBackend
from workers.models.loaded import LoadedModel
from workers.models.registry import load_models
from workers.models.tokenizing.tokenizer import Tokens

SETTINGS = Settings(_env_file=None, device="cpu", threads=2, dtype="float32")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return ModelCard(**make_checkpoint("bge-m3", tmp_path_factory.mktemp("bge-m3")))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    draw = random.Random(2)
    lengths = [0, 1, 2, 3, 5, 8, 13, 40, 90, 125, 126, 127, 200]
    # Few different words, so that many come more than once; `unknown` is none of the tokenizer's.
    return [" ".join(draw.choices([*WORDS[:30], "unknown"], k=length)) for length in lengths]


@pytest.fixture(scope="module")
def expected(card: ModelCard, texts: list[str]) -> dict[str, Any]:
    flag = BGEM3FlagModel(card.source.removeprefix("path:"), use_fp16=False, devices="cpu")
    return dict(flag.encode(texts, max_length=128, return_sparse=True, return_colbert_vecs=True))


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def load(card: ModelCard, dtype: str = "float32", backend: str = "torch", folder: Path | None = None) -> LoadedModel:
    settings = SETTINGS.model_copy(update={"dtype": dtype, "models_dir": folder})
    return load_models([card.model_copy(update={"backend": backend})], settings)[card.name]


def compute(model: LoadedModel, texts: list[str], *kinds: Any, **fields: Any) -> Outcomes:
    with DeviceEngine(SETTINGS, {model.card.name: model}) as engine:
        return engine.submit(
            Work(model.card.name, "embeddings", texts, params=JobParams(returns=kinds, **fields))
        ).result(60)


def weights(outcomes: Outcomes) -> list[dict[int, float]]:
    return [dict(zip(ids.tolist(), values.tolist(), strict=True)) for ids, values in outcomes.extras["sparse"]]


@pytest.fixture(scope="module")
def varied() -> list[str]:
    """Two hundred: empty, of one character, in a dozen scripts, and longer than the model reads."""
    return make_texts(127, lambda draw, length: " ".join(draw.choices([*WORDS[:30], "unknown"], k=length)))


@pytest.mark.parametrize(("backend", "service"), [("torch", "bulk"), ("torch", "interactive"), ("openvino", "bulk")])
def test_all_kinds_equal_those_of_flag_embedding(
    backend: str, service: str, card: ModelCard, models_dir: Path, varied: list[str]
) -> None:
    # OpenVINO compiles anew for each shape of a batch.
    varied = varied if backend == "torch" else varied[::12]
    flag = BGEM3FlagModel(card.source.removeprefix("path:"), use_fp16=False, devices="cpu")
    expected: dict[str, Any] = flag.encode(varied, max_length=128, return_sparse=True, return_colbert_vecs=True)
    model = load(card, backend=backend, folder=models_dir)
    work = Work(card.name, "embeddings", varied, service=Service(service), params=JobParams(returns=KINDS))
    with DeviceEngine(SETTINGS, {card.name: model}) as engine:
        outcomes = engine.submit(work).result(60)
    most = 1e-5 if backend == "torch" else 1e-4
    np.testing.assert_allclose(outcomes.values, expected["dense_vecs"], rtol=0, atol=most)
    for mine, theirs in zip(weights(outcomes), expected["lexical_weights"], strict=True):
        assert mine == pytest.approx({int(token): float(weight) for token, weight in theirs.items()}, abs=most)
    for (vectors,), theirs in zip(outcomes.extras["colbert"], expected["colbert_vecs"], strict=True):
        assert vectors.shape == theirs.shape
        np.testing.assert_allclose(vectors, theirs, rtol=0, atol=most)
    assert max(map(len, weights(outcomes))) > 10, "the heads say something, so equality means something"


def test_what_was_not_asked_for_is_not_there(card: ModelCard, texts: list[str], expected: dict[str, Any]) -> None:
    model = load(card)
    dense = compute(model, texts, "dense")
    assert dense.extras == {}
    np.testing.assert_allclose(dense.values, expected["dense_vecs"], atol=1e-4)
    sparse = compute(model, texts, "sparse")
    assert sparse.values.shape == (len(texts), 0)
    assert set(sparse.extras) == {"sparse"}


class Counting(torch.nn.Module):
    """A transformer that notes the rows of each of its passes."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.rows = inner, list[int]()

    def forward(self, **inputs: Any) -> Any:
        self.rows.append(len(inputs["input_ids"]))
        return self.inner(**inputs)


def test_one_pass_gives_all_and_equal_texts_share_a_row(card: ModelCard) -> None:
    model = load(card)
    backend = model.backend
    assert isinstance(backend, TorchBackend)
    counting = backend._module.transformer = Counting(backend._module.get_submodule("transformer"))
    outcomes = compute(model, ["w1 w2 w3", "w4 w5 w6", "w1 w2 w3"], *KINDS)
    assert counting.rows == [2]
    assert weights(outcomes)[0] == weights(outcomes)[2] != weights(outcomes)[1]


def test_openvino_gives_the_same_vector_alone_and_with_others(
    card: ModelCard, models_dir: Path, texts: list[str]
) -> None:
    model = load(card, backend="openvino", folder=models_dir)
    alone, with_others = compute(model, texts, "dense"), compute(model, texts, *KINDS)
    np.testing.assert_allclose(alone.values, with_others.values, atol=1e-5)
    work = Work(card.name, "embeddings", texts, params=JobParams(returns=KINDS), service=Service.INTERACTIVE)
    with DeviceEngine(SETTINGS, {card.name: model}) as engine:
        alone = engine.submit(work).result(60)
    for (one,), (other,) in zip(alone.extras["colbert"], with_others.extras["colbert"], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert model.backend.heads is not None
    rows = [Tokens(np.array([0, 5, 6, 2], np.int32), extras=("sparse", "colbert"))]
    _, exact = model.backend.heads.run_all(rows, exact=True)
    np.testing.assert_allclose(exact[0]["colbert"][0], model.backend.heads.run_all(rows)[1][0]["colbert"][0], atol=1e-5)


def test_the_heads_do_not_run_for_dense_vectors_alone(card: ModelCard) -> None:
    model = load(card)
    backend = model.backend
    assert isinstance(backend, TorchBackend)
    backend._module.sparse_linear = backend._module.colbert_linear = None  # type: ignore[assignment]
    assert not compute(model, ["w1 w2"], "dense").errors


def test_dimensions_and_truncation_hold_as_for_dense_vectors(card: ModelCard) -> None:
    outcomes = compute(load(card), ["w1 w2", " ".join(WORDS[:200])], *KINDS, dimensions=8, truncate="none")
    assert outcomes.values.shape == (2, 8)
    assert outcomes.errors[1].code == "context_length_exceeded"
    assert outcomes.extras["colbert"].lengths.tolist() == [3, 0], "w1, w2 and the end; nothing of the refused text"
    assert outcomes.extras["colbert"].parts[0].shape[1] == 64
    assert weights(outcomes)[1] == {}


@pytest.mark.parametrize("head", ["sparse_linear", "colbert_linear"])
def test_numbers_that_are_none_make_item_errors_for_those_who_asked(head: str, card: ModelCard) -> None:
    model = load(card)
    backend = model.backend
    assert isinstance(backend, TorchBackend)
    backend._module.get_submodule(head).bias.data.fill_(float("nan"))
    outcomes = compute(model, ["w1 w2", "w3"], *KINDS)
    assert {at: error.code for at, error in outcomes.errors.items()} == dict.fromkeys((0, 1), "invalid_embedding")
    assert all(not ragged.lengths.any() for ragged in outcomes.extras.values())
    assert not compute(model, ["w1 w2", "w3"], "dense").errors


def test_half_precision_gives_nearly_the_same(
    card: ModelCard, texts: list[str], varied: list[str], expected: dict[str, Any]
) -> None:
    half, whole = (compute(load(card, dtype), varied, "dense").values for dtype in ("float16", "float32"))
    assert (half * whole).sum(axis=1).min() >= 0.999
    outcomes = compute(load(card, "bfloat16"), texts, *KINDS)
    for (vectors,), theirs in zip(outcomes.extras["colbert"], expected["colbert_vecs"], strict=True):
        assert (vectors * theirs).sum(axis=1).mean() > 0.95


def test_a_model_without_heads_refuses(tmp_path: Path) -> None:
    model = load(ModelCard(**make_checkpoint("bert", tmp_path), backend="torch"))
    with pytest.raises(WrongCapability):
        compute(model, ["w1"], "sparse")


def test_a_card_that_promises_what_its_weights_lack_is_refused_at_start(tmp_path: Path) -> None:
    fields = make_checkpoint("bge-m3", tmp_path)
    (tmp_path / "sparse_linear.pt").unlink()
    with pytest.raises(ConfigError, match=r"sparse_linear\.pt"):
        load(ModelCard(**fields))
    fields["capabilities"] = ("dense",)
    assert load(ModelCard(**fields, backend="torch")).backend.heads is None
    with pytest.raises(ValidationError, match="bge-m3"):
        ModelCard(**{**fields, "family": "encoder", "capabilities": ("sparse",)})


# -- reranking by all of them


def rerank(model: LoadedModel, queries: list[str], texts: list[str], **fields: Any) -> Outcomes:
    with DeviceEngine(SETTINGS, {model.card.name: model}) as engine:
        return engine.submit(
            Work(model.card.name, "rerank", texts, queries=queries, params=JobParams(**fields))
        ).result(60)


def test_scores_equal_the_weighted_ones_of_flag_embedding(card: ModelCard, texts: list[str]) -> None:
    model = load(card.model_copy(update={"rerank_by": "multi-vector"}))
    queries = [text for text in texts[1:8] for _ in texts]
    documents = texts * 7
    scores = rerank(model, queries, documents).values
    flag = BGEM3FlagModel(card.source.removeprefix("path:"), use_fp16=False, devices="cpu")
    # One pair at a time: in a batch FlagEmbedding lets a query's token match the padding of a shorter text.
    theirs = flag.compute_score(
        list(zip(queries, documents, strict=True)),
        batch_size=1,
        max_query_length=128,
        max_passage_length=128,
        weights_for_different_modes=[0.4, 0.2, 0.4],
    )["colbert+sparse+dense"]
    expected = (1 + np.asarray(theirs)) / 2
    inside = expected < 1
    assert inside.mean() > 0.5
    np.testing.assert_allclose(scores, np.clip(expected, 0, 1), atol=1e-4)
    dense = rerank(load(card), queries, documents).values
    assert np.abs(scores - dense)[inside].max() > 0.05, "sparse and colbert say something"


def test_token_vectors_are_forgotten_with_their_last_pair(card: ModelCard, texts: list[str]) -> None:
    model = load(card.model_copy(update={"rerank_by": "multi-vector"}))
    request = admit(Work(card.name, "rerank", texts[1:9], queries=[texts[9]] * 8), model)
    pairs, heads = request.extras, model.backend.heads
    assert isinstance(pairs, PairScores)
    assert heads is not None
    held = []
    for row in request.rows:
        (value,), (parts,) = heads.run_all([row.tokens])
        pairs[row.index] = parts
        request.accept(row.index, value)
        held.append(pairs.held)
    assert held == [1] * 8 + [0], "the query's, until the last document is scored"
    request.finish_if_complete()
    assert request.future.result(0).values.all()


def test_a_document_that_is_refused_fails_alone(card: ModelCard) -> None:
    model = load(card.model_copy(update={"rerank_by": "multi-vector"}))
    outcomes = rerank(model, ["w1"] * 3, ["w1 w2", " ".join(WORDS[:200]), "w3"], truncate="none")
    assert {at: error.code for at, error in outcomes.errors.items()} == {1: "context_length_exceeded"}
    assert outcomes.values[1] == 0
    assert outcomes.values[[0, 2]].all()
