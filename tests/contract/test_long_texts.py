"""Texts that are longer than a model reads, on real models: against sentence-transformers and transformers, by hand."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from config.catalog import ModelCard, load_catalog
from config.settings import Settings
from tasks.engine import JobParams, Outcomes, Windows, Work
from tasks.errors import InvalidRequest
from tests.support.checkpoints import WORDS, make_checkpoint
from tests.support.corpus import passages
from workers.engine import DeviceEngine
from workers.models.downloads.fetch import fetch
from workers.models.registry import load_models

MINILM = "all-MiniLM-L6-v2"
LONG = " ".join(passages(8))
UNBROKEN = "深夜的灯塔照亮了海面" * 30
TEXTS = ["short", LONG, UNBROKEN, ""]


def open_engine(card: ModelCard) -> DeviceEngine:
    settings = Settings(_env_file=None, threads=2)
    return DeviceEngine(
        settings, load_models([card.model_copy(update={"backend": "torch", "dtype": "float32"})], settings)
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[DeviceEngine]:
    card = load_catalog().find(MINILM)
    assert card is not None
    with open_engine(card) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return SentenceTransformer(str(fetch(load_catalog().find(MINILM), Settings(_env_file=None))), device="cpu")  # type: ignore[arg-type]  # it is there


def embed(engine: DeviceEngine, texts: list[str], windows: Windows | None, **params: Any) -> Outcomes:
    return engine.submit(Work(MINILM, "embeddings", texts, params=JobParams(long=windows, **params))).result(120)


def chunks_of(outcomes: Outcomes) -> list[tuple[list[tuple[int, int]], Any]]:
    return [([tuple(span) for span in spans.tolist()], vectors) for spans, vectors in outcomes.extras["chunks"]]


@pytest.mark.parametrize("windows", [Windows("chunks"), Windows("chunks", 50, 10)])
def test_a_chunk_has_the_vector_of_its_part_of_the_text(
    engine: DeviceEngine, reference: SentenceTransformer, windows: Windows
) -> None:
    outcomes = embed(engine, TEXTS, windows)
    most, overlap = windows.fit(254)
    for text, tokens, cut, (spans, vectors) in zip(
        TEXTS, outcomes.tokens, outcomes.truncated, chunks_of(outcomes), strict=True
    ):
        parts = [text[start:end] for start, end in spans]
        np.testing.assert_allclose(vectors, reference.encode(parts, normalize_embeddings=True), atol=1e-5)
        counts = [len(ids) for ids in reference.tokenizer(parts, add_special_tokens=False)["input_ids"]]
        assert max(counts) <= most
        assert tokens == sum(counts) + 2 * len(parts)
        assert not cut
        assert text[: spans[0][0]].isspace() or spans[0][0] == 0
        for (start, end), (following, _) in itertools.pairwise(spans):
            assert start < following
            # Nothing is between two windows, and about as much is in both as was asked for.
            shared = len(reference.tokenizer(text[following:end], add_special_tokens=False)["input_ids"])
            assert not text[end:following].strip()
            assert shared <= overlap
        assert not text[spans[-1][1] :].strip()
    assert outcomes.values.shape == (len(TEXTS), 0)


@pytest.mark.parametrize("windows", [Windows("mean"), Windows("max", 100, 0)])
def test_pooled_windows_are_those_of_the_reference(
    engine: DeviceEngine, reference: SentenceTransformer, windows: Windows
) -> None:
    spans_of = chunks_of(embed(engine, TEXTS, Windows("chunks", windows.tokens, windows.overlap)))
    outcomes = embed(engine, TEXTS, windows)
    for text, value, (spans, _) in zip(TEXTS, outcomes.values, spans_of, strict=True):
        parts = [text[start:end] for start, end in spans]
        vectors = reference.encode(parts, normalize_embeddings=True)
        counts = [len(ids) for ids in reference.tokenizer(parts)["input_ids"]]
        expected = vectors.max(axis=0) if windows.pooling == "max" else np.average(vectors, axis=0, weights=counts)
        np.testing.assert_allclose(value, expected / np.linalg.norm(expected), atol=1e-5)
    short = embed(engine, ["short"], None)
    np.testing.assert_allclose(outcomes.values[0], short.values[0], atol=1e-6)
    assert not outcomes.truncated.any()


def test_fewer_dimensions_are_cut_from_the_pooled_vector(engine: DeviceEngine) -> None:
    whole = embed(engine, [LONG], Windows("mean")).values[0, :64]
    cut = embed(engine, [LONG], Windows("mean"), dimensions=64)
    np.testing.assert_allclose(cut.values[0], whole / np.linalg.norm(whole), atol=1e-6)
    (_, vectors), *_ = chunks_of(embed(engine, [LONG], Windows("chunks"), dimensions=64))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors.shape[1] == 64


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeviceEngine, Path]:
    folder = tmp_path_factory.mktemp("reranker")
    return open_engine(ModelCard(**make_checkpoint("bert-reranker", folder))), folder


def score_by_hand(folder: Path, query: str, windows: list[str]) -> list[float]:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    rows = tokenizer([query] * len(windows), windows, return_tensors="pt", padding=True)
    with torch.inference_mode():
        return torch.sigmoid(model(**rows).logits.view(-1)).tolist()


def test_a_documents_score_is_that_of_its_best_window(reranker: tuple[DeviceEngine, Path]) -> None:
    engine, folder = reranker
    # Each word is a token, so where windows begin and end is plain arithmetic: 128 - 3 special ones - the query.
    words, queries = WORDS[:280], ["w5 w6 w7", "w1"]
    documents = [" ".join(words), " ".join(words[:300:3]), "w9"]
    pairs = [(query, document) for query in queries for document in documents]
    windows = Windows("max", overlap=20, most=10)
    work = Work("bert-reranker", "rerank", [text for _, text in pairs], [query for query, _ in pairs])
    outcomes = engine.submit(
        Work(work.model, "rerank", work.texts, work.queries, params=JobParams(long=windows))
    ).result(60)
    for (query, document), score, tokens in zip(pairs, outcomes.values, outcomes.tokens, strict=True):
        parts = windows_by_hand(document.split(), 128 - 3 - len(query.split()), 20)
        scores = score_by_hand(folder, query, [" ".join(part) for part in parts])
        assert score == pytest.approx(max(scores), abs=1e-5)
        assert tokens == sum(len(part) + 3 + len(query.split()) for part in parts)
    assert not outcomes.truncated.any()
    engine.close()


def windows_by_hand(words: list[str], size: int, overlap: int) -> list[list[str]]:
    parts, start = [], 0
    while True:
        parts.append(words[start : start + size])
        if start + size >= len(words):
            return parts
        start += size - overlap


def test_tokens_are_those_of_the_models_own_tokenizer(engine: DeviceEngine, reference: SentenceTransformer) -> None:
    texts = ["The tide follows the moon.", "深夜的灯塔", "", LONG]
    outcomes = engine.submit(Work(MINILM, "tokenize", texts)).result(60)
    for text, (ids, starts, ends) in zip(texts, outcomes.extras["tokens"], strict=True):
        expected = reference.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        assert ids.tolist() == expected["input_ids"]
        special = np.array(expected["special_tokens_mask"], bool)
        offsets = np.where(special[:, None], -1, expected["offset_mapping"])
        np.testing.assert_array_equal(np.stack([starts, ends], axis=1), offsets)
    ids = reference.tokenizer(texts[0])["input_ids"]
    (points,) = next(
        iter(engine.submit(Work(MINILM, "detokenize", [" ".join(map(str, ids))])).result(60).extras["text"])
    )
    assert "".join(map(chr, points)) == reference.tokenizer.decode(ids)
    with pytest.raises(InvalidRequest, match="no token"):
        engine.submit(Work(MINILM, "detokenize", ["99999999"]))
