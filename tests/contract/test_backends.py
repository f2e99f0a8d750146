"""Every backend gives the vectors of the reference: sentence-transformers in float32 on the real MiniLM."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from config.catalog import ModelCard, load_catalog
from config.settings import Settings
from tasks.engine import JobParams, Outcomes, Work
from tasks.errors import ConfigError
from tasks.lanes import Service
from tests.support.corpus import passages
from workers.engine import DeviceEngine
from workers.hardware import cpu_has_bfloat16
from workers.models.downloads.fetch import fetch
from workers.models.registry import load_models

ROOT = Path(__file__).parents[2]
MINILM = "all-MiniLM-L6-v2"
AWKWARD = [
    "",
    " ",
    "\n\n\t",
    "a",
    "Ünïcödé ẞtraße — ÆØÅ",
    "深夜的灯塔照亮了海面。",
    "これは日本語の文章です。",
    "Быстрая коричневая лиса",
    "العربية نص قصير",
    "🙂🙃 emoji 👩‍👩‍👧‍👦 family",
    "zero\u200bwidth\u00a0and\ufeffmarks",
    "\x00 null and \x07 bell",
    "word " * 400,
    "looooong" * 200,
    "深" * 700,
    "https://example.org/a?b=c&d=%20e#f",
    "def f(x: int) -> int:\n    return x + 1",
    "[CLS] and [SEP] and [MASK] spelled out",
]


BACKENDS = [
    "torch-float32",
    "packed-float32",
    "openvino-float32",
    "openvino-bfloat16",
    # No default chooses it.
    pytest.param("torch-bfloat16", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return AWKWARD + passages(60)


@pytest.fixture(scope="module")
def reference(texts: list[str]) -> NDArray[np.float32]:
    folder = fetch(minilm(), Settings(_env_file=None))
    model = SentenceTransformer(str(folder), device="cpu")
    return np.asarray(model.encode(texts, batch_size=8, normalize_embeddings=True), np.float32)


def minilm(**fields: object) -> ModelCard:
    card = load_catalog().find(MINILM)
    assert card is not None
    return card.model_copy(update=fields)


def engine_for(card: ModelCard, **settings: object) -> DeviceEngine:
    chosen = Settings(_env_file=None, threads=2, models_dir=ROOT / "data" / "models", **settings)
    return DeviceEngine(chosen, load_models([card], chosen))


@pytest.fixture(scope="module", params=BACKENDS)
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[str, DeviceEngine]]:
    backend, dtype = request.param.split("-")
    with engine_for(minilm(backend=backend, dtype=dtype), device="cpu") as running:
        model = running._models[MINILM]
        assert (model.backend.kind, model.backend.dtype) == (backend, dtype)
        yield dtype, running


def embed(engine: DeviceEngine, texts: list[str], service: Service = Service.BULK, **more: object) -> Outcomes:
    work = Work(MINILM, "embeddings", texts, service=service, params=JobParams(**more))  # type: ignore[arg-type]
    outcomes = engine.submit(work).result(120)
    assert not outcomes.errors
    return outcomes


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    left, right = left.astype(np.float64), right.astype(np.float64)
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


def test_vectors_are_those_of_sentence_transformers(
    engine: tuple[str, DeviceEngine], texts: list[str], reference: NDArray[np.float32]
) -> None:
    dtype, running = engine
    outcomes = embed(running, texts)
    assert np.allclose(np.linalg.norm(outcomes.values, axis=1), 1, atol=1e-5)
    if dtype == "float32":
        np.testing.assert_allclose(outcomes.values, reference, atol=1e-4)
    assert cosines(outcomes.values, reference).min() >= 0.9995
    assert outcomes.tokens.max() == 256
    assert outcomes.truncated.tolist()[12:15] == [True, False, True]


def test_interactive_and_bulk_give_the_same_vector(engine: tuple[str, DeviceEngine], texts: list[str]) -> None:
    _, running = engine
    bulk = embed(running, texts).values
    alone = np.concatenate([embed(running, [text], Service.INTERACTIVE).values for text in texts])
    few = np.concatenate([embed(running, texts[at : at + 5], Service.INTERACTIVE).values for at in range(0, 75, 5)])
    model = running._models[MINILM].backend
    # Pure bfloat16 rounds the residual stream too, so that the order of a sum shows; no default chooses it.
    least = 0.9995 if (model.kind, model.dtype) == ("torch", "bfloat16") else 0.99999
    assert cosines(bulk, alone).min() >= least
    assert cosines(bulk[:75], few).min() >= least


def test_many_threads_may_bring_texts_at_once_and_cut_them_differently(
    engine: tuple[str, DeviceEngine], texts: list[str]
) -> None:
    _, running = engine
    some = texts[:40]
    expected = {truncate: embed(running, some, truncate=truncate) for truncate in ("end", "start")}
    wrong: list[str] = []

    def bring(truncate: str) -> None:
        for _ in range(2):
            got = embed(running, some, truncate=truncate)
            close = cosines(got.values, expected[truncate].values) >= 0.9995
            if not close.all() or not (got.tokens == expected[truncate].tokens).all():
                wrong.append(truncate)

    threads = [threading.Thread(target=bring, args=(truncate,)) for truncate in ("end", "start") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_text_cut_at_its_start_keeps_its_end(engine: tuple[str, DeviceEngine]) -> None:
    _, running = engine
    words = [f"number {at}" for at in range(300)]
    long = embed(running, [" ".join(words)], truncate="start")
    same = embed(running, [f"something else entirely {' '.join(words[100:])}"], truncate="start")
    assert cosines(long.values, same.values)[0] > 0.9999
    assert long.truncated[0]


def test_the_most_similar_document_scores_highest(engine: tuple[str, DeviceEngine]) -> None:
    _, running = engine
    documents = ["Bananas are yellow.", "Paris is the capital of France.", "The sea is deep."]
    query = "What is the capital of France?"
    scores = running.submit(Work(MINILM, "rerank", documents, queries=[query] * 3)).result(60).values
    assert scores.argmax() == 1
    assert ((scores >= 0) & (scores <= 1)).all()
    vectors = embed(running, [query, *documents]).values
    assert np.allclose(scores, (1 + vectors[1:] @ vectors[0]) / 2, atol=1e-3)


def test_auto_takes_openvino_in_the_best_precision_of_the_cpu_and_float32_can_be_asked_for(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, device="cpu", models_dir=ROOT / "data" / "models")
    auto = load_models([minilm()], settings)[MINILM]
    assert auto.backend.kind == "openvino"
    assert auto.backend.dtype == ("bfloat16" if cpu_has_bfloat16() else "float32")
    exact = load_models([minilm()], settings.model_copy(update={"dtype": "float32"}))[MINILM]
    assert exact.backend.dtype == "float32"
    if cpu_has_bfloat16():
        assert auto.fingerprint != exact.fingerprint
    other = load_models([minilm(query_instruction="find: ")], settings)[MINILM]
    assert other.fingerprint != auto.fingerprint


def test_the_fingerprint_does_not_depend_on_the_backend() -> None:
    settings = Settings(_env_file=None, device="cpu", dtype="float32", models_dir=ROOT / "data" / "models")
    by_torch = load_models([minilm(backend="torch")], settings)[MINILM]
    by_openvino = load_models([minilm(backend="openvino")], settings)[MINILM]
    assert by_torch.fingerprint == by_openvino.fingerprint


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 4096}, "512 positions"),
        ({"dimension": 1024}, "384"),
        ({"pooling": "cls"}, "says mean"),
        ({"backend": "magic"}, "unknown backend"),
        ({"family": "decoder"}, "of family encoder"),
    ],
)
def test_a_card_that_contradicts_its_weights_is_refused(fields: dict[str, object], words: str) -> None:
    settings = Settings(_env_file=None, device="cpu")
    with pytest.raises(ConfigError, match=words):
        load_models([minilm(**{"backend": "torch", **fields})], settings)
