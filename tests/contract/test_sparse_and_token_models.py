"""Models that give sparse weights or a vector for each token, and no dense vector, agree with sentence-transformers."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from numpy.typing import NDArray
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling

from config.catalog import ModelCard
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks.engine import JobParams, Outcomes, Work
from tasks.errors import ConfigError, WrongCapability
from tasks.lanes import Service
from tests.support.checkpoints import WORDS
from tests.support.model_folders import edit, make_bare
from tests.support.web import opened_app, running_worker, settings_of, wait_for_end
from workers.engine import DeviceEngine
from workers.models.loaded import LoadedModel
from workers.models.registry import load_model

DRAW = random.Random(3)
TEXTS = [
    " ".join(DRAW.choices([*WORDS, "unknown"], k=length)) for length in (0, 1, 1, 2, 3, 5, 8, 13, 40, 90, 127, 200)
]


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


def make_splade(folder: Path, family: str = "bert", **pooling: Any) -> None:
    bare = folder.with_name("bare")
    make_bare(family, bare, "AutoModelForMaskedLM")
    modules = [Transformer(str(bare), transformer_task="fill-mask"), SpladePooling(**pooling)]
    prompts = {"query": "w1 ", "document": ""}
    SparseEncoder(modules=modules, device="cpu", prompts=prompts).save_pretrained(str(folder))


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


# -- through the whole product -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    data = tmp_path_factory.mktemp("data")
    make_splade(data / "splade")
    lines = [f'name = "tiny"\nsource = "path:{data / "splade"}"\nfamily = "splade"\ncapabilities = ["sparse"]']
    (data / "models.toml").write_text("".join(f"[[models]]\n{line}\nmax_tokens = 128\n" for line in lines))
    settings = settings_of(server, data, catalog_file=data / "models.toml", device="cpu", dtype="float32")
    settings = settings.model_copy(update={"models": ("tiny",)})
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


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"return": ["dense"]}, "return"), ({"return": ["colbert"]}, "return"), ({"dimensions": 8}, "dimensions")],
    ids=["dense", "colbert", "dimensions"],
)
def test_what_a_sparse_model_cannot_give_is_answered_400(fields: Any, param: str, client: FlaskClient) -> None:
    answer = client.post("/v1/embeddings", json={"model": "tiny", "input": "w1", **fields})
    assert answer.status_code == 400
    assert (answer.json or {})["error"]["param"] == param
