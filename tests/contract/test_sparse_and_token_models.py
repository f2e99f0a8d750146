"""Models that give sparse weights or a vector for each token, and no dense vector, agree with sentence-transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from numpy.typing import NDArray
from sentence_transformers import MultiVectorEncoder, SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling

from config.catalog import ModelCard
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks.engine import JobParams, Outcomes, Work
from tasks.errors import ConfigError, InvalidRequest, WrongCapability
from tasks.lanes import Service
from tests.support.checkpoints import WORDS
from tests.support.model_folders import edit, make_bare
from tests.support.token_folders import make_colbert, make_pylate, make_splade
from tests.support.web import opened_app, running_worker, settings_of, wait_for_end
from workers.doctor.texts import make_texts
from workers.engine import DeviceEngine
from workers.models.loaded import LoadedModel
from workers.models.registry import load_model

TEXTS = make_texts(127, lambda draw, length: " ".join(draw.choices([*WORDS, "unknown"], k=length)))


def load(folder: Path, **fields: Any) -> LoadedModel:
    settings = Settings(_env_file=None, device="cpu", threads=1, dtype="float32")
    return load_model(ModelCard(**{"name": "tiny", "source": f"path:{folder}", **fields}), settings)


def compute(
    model: LoadedModel, texts: list[str], kind: Any, service: Service = Service.BULK, **params: Any
) -> Outcomes:
    settings = Settings(_env_file=None, device="cpu", threads=1, dtype="float32")
    work = Work("tiny", "embeddings", texts, service=service, params=JobParams(returns=(kind,), **params))
    with DeviceEngine(settings, {"tiny": model}) as engine:
        return engine.submit(work).result(120)


# -- SPLADE --------------------------------------------------------------------------------------------------


def spread(outcomes: Outcomes, width: int) -> NDArray[np.float32]:
    dense = np.zeros((len(outcomes.tokens), width), np.float32)
    for row, (ids, weights) in enumerate(outcomes.extras["sparse"]):
        assert np.all(np.diff(ids) > 0)
        dense[row, ids] = weights
    return dense


@pytest.mark.parametrize(
    "pooling",
    [{}, {"pooling_strategy": "sum"}, {"activation_function": "log1p_relu"}],
    ids=["max", "sum", "log1p-relu"],
)
@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "xlm-roberta"])
def test_splade_gives_the_weights_of_the_reference(family: str, pooling: dict[str, str], tmp_path: Path) -> None:
    make_splade(tmp_path / "model", family, **pooling)
    model = load(tmp_path / "model")
    assert model.card.capabilities == ("sparse",)
    reference = SparseEncoder(str(tmp_path / "model"), device="cpu")
    for instruction, expected in [
        (None, reference.encode_document(TEXTS, convert_to_sparse_tensor=False)),
        (model.card.query_instruction, reference.encode_query(TEXTS, convert_to_sparse_tensor=False)),
    ]:
        found = compute(model, TEXTS, "sparse", instruction=instruction)
        assert not found.errors
        assert found.values.shape == (len(TEXTS), 0)
        np.testing.assert_allclose(spread(found, expected.shape[1]), expected.numpy(), rtol=1e-4, atol=1e-5)
    alone = [spread(compute(model, [text], "sparse", Service.INTERACTIVE), expected.shape[1])[0] for text in TEXTS[:6]]
    np.testing.assert_allclose(
        spread(compute(model, TEXTS, "sparse"), expected.shape[1])[:6], alone, rtol=1e-4, atol=1e-5
    )


def test_a_masked_language_model_without_modules_is_splade_where_its_card_says_so(tmp_path: Path) -> None:
    make_bare("bert", tmp_path / "model", "AutoModelForMaskedLM")
    modules = [Transformer(str(tmp_path / "model"), transformer_task="fill-mask"), SpladePooling()]
    expected = SparseEncoder(modules=modules, device="cpu").encode(TEXTS, convert_to_sparse_tensor=False)
    found = compute(load(tmp_path / "model", family="splade"), TEXTS, "sparse")
    np.testing.assert_allclose(spread(found, expected.shape[1]), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_sparse_model_gives_no_dense_vectors(tmp_path: Path) -> None:
    make_splade(tmp_path / "model")
    with pytest.raises(WrongCapability, match="gives no dense vectors"):
        compute(load(tmp_path / "model"), TEXTS, "dense")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pooling_strategy": "mean"}, "pooled by mean of relu, which is not known"),
        ({"activation_function": "gelu"}, "pooled by max of gelu, which is not known"),
    ],
    ids=["pooling", "activation"],
)
def test_another_pooling_of_weights_is_refused(change: dict[str, str], words: str, tmp_path: Path) -> None:
    make_splade(tmp_path / "model")
    edit(tmp_path / "model/1_SpladePooling/config.json", **change)
    with pytest.raises(ConfigError, match=words):
        load(tmp_path / "model")


def test_an_encoder_without_its_language_model_is_no_splade(tmp_path: Path) -> None:
    make_bare("bert", tmp_path / "model")
    with pytest.raises(ConfigError, match="without the masked language model"):
        load(tmp_path / "model", family="splade")


# -- ColBERT -------------------------------------------------------------------------------------------------


EXPANSIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lengths": {"query_length": 12, "document_length": 30},
    "fixed": {"query_expansion": {"strategy": "fixed", "length": 16, "token": "w9"}},
    "fixed-seen": {"query_expansion": {"strategy": "fixed", "length": 16, "token": "w9", "attend": True}},
    "at-least": {"query_expansion": {"strategy": "min", "length": 16, "token": "w9"}, "query_length": 24},
    "skipped": {"skip": ["w3", "w4", "unknown", "no-such-word"]},
}


def hold_vectors(folder: Path) -> LoadedModel:
    model = load(folder)
    assert model.card.capabilities == ("colbert", "rerank")
    reference = MultiVectorEncoder(str(folder), device="cpu")
    for role, encode in [("document", reference.encode_document), ("query", reference.encode_query)]:
        expected = encode(TEXTS, batch_size=4)
        found = compute(model, TEXTS, "colbert", role=role)
        assert not found.errors
        assert found.values.shape == (len(TEXTS), 0)
        for (mine,), theirs in zip(found.extras["colbert"], expected, strict=True):
            np.testing.assert_allclose(mine, np.asarray(theirs), atol=1e-5)
    return model


@pytest.mark.parametrize("kind", EXPANSIONS)
def test_token_vectors_are_those_of_the_reference(kind: str, tmp_path: Path) -> None:
    make_colbert(tmp_path / "model", **EXPANSIONS[kind])
    hold_vectors(tmp_path / "model")


@pytest.mark.parametrize("family", ["modernbert", "xlm-roberta", "distilbert"])
def test_token_vectors_of_other_families_are_those_of_the_reference(family: str, tmp_path: Path) -> None:
    make_colbert(tmp_path / "model", family, **EXPANSIONS["fixed"])
    hold_vectors(tmp_path / "model")


@pytest.mark.parametrize(
    "knobs",
    [{}, {"attend_to_expansion_tokens": True}, {"do_query_expansion": False}, {"skiplist_words": ["w3"]}],
    ids=["defaults", "seen", "not-expanded", "skiplist"],
)
def test_a_folder_of_pylate_is_read(knobs: dict[str, Any], tmp_path: Path) -> None:
    make_pylate(tmp_path / "model", **knobs)
    model = hold_vectors(tmp_path / "model")
    (row,) = model.tokenizer.encode(["w5"], "end")
    assert "[D] " in model.tokenizer.fast.id_to_token(int(row.tokens.ids[1]))


def test_documents_are_ranked_by_the_reference_s_score(tmp_path: Path) -> None:
    make_colbert(tmp_path / "model", **EXPANSIONS["fixed"])
    model, reference = load(tmp_path / "model"), MultiVectorEncoder(str(tmp_path / "model"), device="cpu")
    documents = [text for text in TEXTS if text]
    query = "w7 w8 w9"
    settings = Settings(_env_file=None, device="cpu", threads=1, dtype="float32")
    with DeviceEngine(settings, {"tiny": model}) as engine:
        found = engine.submit(Work("tiny", "rerank", documents, [query] * len(documents))).result(120).values
    sums = reference.similarity(reference.encode_query([query]), reference.encode_document(documents))[0].numpy()
    # Ours is the mean over the 16 tokens of the query, moved to [0, 1].
    np.testing.assert_allclose(found, (1 + sums / 16) / 2, atol=1e-5)


def test_a_card_may_have_documents_read_further(tmp_path: Path) -> None:
    make_colbert(tmp_path / "model", **EXPANSIONS["lengths"])
    assert load(tmp_path / "model").tokenizer.max_tokens == 30
    model = load(tmp_path / "model", max_tokens=100)
    assert compute(model, ["w1 " * 200], "colbert").tokens.tolist() == [100]


def test_the_start_of_a_text_with_a_marker_is_not_cut(tmp_path: Path) -> None:
    make_colbert(tmp_path / "model")
    with pytest.raises(InvalidRequest, match="only their end is cut"):
        compute(load(tmp_path / "model"), TEXTS, "colbert", truncate="start")


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("2_MultiVectorMask/config.json", {"keep_only_token_ids": [5]}, "some tokens only"),
        ("sentence_bert_config.json", {"query_expansion": {"strategy": "odd"}}, "which is not known"),
        ("3_Normalize/config.json", {"module_input_name": None}, "does not read the vectors of tokens"),
        ("config_sentence_transformers.json", {"model_type": "SentenceTransformer"}, "its modules are those of token"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default prompt"),
    ],
    ids=["kept", "expansion", "normalize", "type", "prompt"],
)
def test_token_models_of_another_kind_are_refused(
    path: str, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    make_colbert(tmp_path / "model")
    edit(tmp_path / "model" / path, **change)
    with pytest.raises(ConfigError, match=words):
        load(tmp_path / "model")


# -- through the whole product -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    data = tmp_path_factory.mktemp("data")
    make_splade(data / "splade")
    make_colbert(data / "colbert", **EXPANSIONS["fixed"])
    lines = [
        f'name = "tiny"\nsource = "path:{data / "splade"}"\nfamily = "splade"\ncapabilities = ["sparse"]',
        f'name = "tokens"\nsource = "path:{data / "colbert"}"\nfamily = "colbert"\ndimension = 16',
    ]
    lines[1] += '\nrerank_by = "maxsim"\ncapabilities = ["colbert", "rerank"]'
    (data / "models.toml").write_text("".join(f"[[models]]\n{line}\nmax_tokens = 128\n" for line in lines))
    settings = settings_of(server, data, catalog_file=data / "models.toml", device="cpu", dtype="float32")
    settings = settings.model_copy(update={"models": ("tiny", "tokens")})
    with opened_app(settings) as app, running_worker(settings):
        yield app.test_client()


def test_a_call_and_a_job_give_sparse_weights_without_asking(client: FlaskClient) -> None:
    body = {"model": "tiny", "input": ["w1 w2", "w3"]}
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.json
    data = (answer.json or {})["data"]
    assert [set(one) & {"embedding", "sparse"} for one in data] == [{"sparse"}] * 2
    assert len(data[0]["sparse"]) > 10
    queued = client.post("/v1/jobs", json={"type": "embeddings", **body}, headers={"Prefer": "respond-async"})
    job = wait_for_end(client, (queued.json or {})["id"])
    assert job["params"]["return"] == ["sparse"]
    results = client.get(f"/v1/jobs/{job['id']}/results").json or {}
    assert [one["sparse"] for one in results["data"]] == [one["sparse"] for one in data]


def test_queries_and_documents_have_their_own_token_vectors_in_calls_and_jobs(client: FlaskClient) -> None:
    counts = {}
    for role in ("query", "document"):
        body = {"model": "tokens", "input": ["w5 w6"], "input_type": role}
        answer = client.post("/v1/embeddings", json=body)
        assert answer.status_code == 200, answer.json
        ((one,),) = ((answer.json or {})["data"],)
        counts[role] = len(one["colbert"])
        queued = client.post("/v1/jobs", json={"type": "embeddings", **body}, headers={"Prefer": "respond-async"})
        job = wait_for_end(client, (queued.json or {})["id"])
        (kept,) = (client.get(f"/v1/jobs/{job['id']}/results").json or {})["data"]
        np.testing.assert_allclose(kept["colbert"], one["colbert"], atol=1e-5)
    # The query is filled up; the document has its marker, two words and what frames them.
    assert counts == {"query": 16, "document": 5}
    body = {"model": "tokens", "query": "w5 w6", "documents": ["w5 w6", "w100 w101"]}
    ranking = client.post("/v1/rerank", json=body).json or {}
    assert [one["index"] for one in ranking["results"]] == [0, 1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"return": ["dense"]}, "return"), ({"return": ["colbert"]}, "return"), ({"dimensions": 8}, "dimensions")],
    ids=["dense", "colbert", "dimensions"],
)
def test_what_a_sparse_model_cannot_give_is_answered_400(fields: Any, param: str, client: FlaskClient) -> None:
    answer = client.post("/v1/embeddings", json={"model": "tiny", "input": "w1", **fields})
    assert answer.status_code == 400
    assert (answer.json or {})["error"]["param"] == param
