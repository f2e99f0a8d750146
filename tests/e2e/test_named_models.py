"""A worker that is given good and bad models serves the good ones, and says of the others why it does not."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sentence_transformers import SentenceTransformer

from tests.support.model_folders import make_bare, make_sentence_folder, sentence_modules
from tests.support.own_stack import OwnStack, opened_stack
from tests.support.polling import wait_until


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    dense = sentence_modules()["two-dense-normalize"]()
    make_sentence_folder("bert", root / "Good-One", "mean", *dense, prompts={"query": "w1 ", "document": "w2 "})
    make_bare("bert", root / "without-a-pooling")
    return root


@pytest.fixture(scope="module")
def stack(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnStack]:
    models = f"fake,{folders}/Good-One,{folders}/without-a-pooling"
    with opened_stack(tmp_path_factory.mktemp("stack"), models=models, dtype="float32", device="cpu") as running:
        running.start_web()
        running.start_worker()
        running.wait_until_ready()
        yield running


def get(stack: OwnStack, path: str) -> httpx.Response:
    return httpx.get(f"{stack.url}{path}", timeout=10)


def post(stack: OwnStack, path: str, **body: object) -> httpx.Response:
    return httpx.post(f"{stack.url}{path}", json=body, timeout=30)


def test_a_folder_needs_no_card(stack: OwnStack, folders: Path) -> None:
    wait_until(lambda: get(stack, "/v1/models/Good-One").json()["ready"], 60)
    model = get(stack, "/v1/models/good-one").json()
    assert (model["dimension"], model["max_tokens"], model["capabilities"]) == (64, 128, ["dense", "rerank"])
    assert (model["query_instruction"], model["document_instruction"]) == ("w1 ", "w2 ")
    assert model["fingerprints"][0].startswith("good-one:")
    reference = SentenceTransformer(str(folders / "Good-One"), device="cpu")
    for kind, expected in [
        (None, reference.encode(["w3 w4", "w5"])),
        ("query", reference.encode_query(["w3 w4", "w5"])),
        ("document", reference.encode_document(["w3 w4", "w5"])),
    ]:
        answer = post(stack, "/v1/embeddings", model="Good-One", input=["w3 w4", "w5"], input_type=kind)
        assert answer.status_code == 200, answer.text
        found = [one["embedding"] for one in answer.json()["data"]]
        assert abs(expected - found).max() < 1e-4
        assert answer.headers["x-model-fingerprint"] == model["fingerprints"][0]


def test_a_job_on_a_folder_gives_the_same(stack: OwnStack, folders: Path) -> None:
    texts = [f"w{at} w{at + 1}" for at in range(100)]
    job = post(stack, "/v1/jobs", type="embeddings", model="Good-One", input=texts).json()
    wait_until(lambda: get(stack, f"/v1/jobs/{job['id']}").json()["status"] == "succeeded", 60)
    rows = get(stack, f"/v1/jobs/{job['id']}/results?limit=1000").json()["data"]
    expected = SentenceTransformer(str(folders / "Good-One"), device="cpu").encode(texts)
    assert abs(expected - [row["embedding"] for row in rows]).max() < 1e-4


def test_a_bad_model_leaves_the_others_serving_and_says_why(stack: OwnStack) -> None:
    assert post(stack, "/v1/embeddings", model="fake", input="a text").status_code == 200
    ready = get(stack, "/readyz")
    assert ready.status_code == 200, ready.text
    assert ready.json()["status"] == "degraded"
    (bad,) = [state for name, state in ready.json()["models"].items() if name == "without-a-pooling"]
    assert not bad["ready"]
    assert "says a pooling" in bad["failed"][0]
    assert "/tmp" not in bad["failed"][0], "strangers read no folders"
    (worker,) = get(stack, "/v1/models/without-a-pooling").json()["workers"]
    assert worker["state"] == "failed"
    assert "says a pooling" in worker["reason"]
    refused = post(stack, "/v1/embeddings", model="without-a-pooling", input="a text")
    assert refused.status_code == 503
    job = post(stack, "/v1/jobs", type="embeddings", model="without-a-pooling", input=["a"] * 200)
    assert job.status_code == 503


def test_a_name_that_nobody_knows_is_answered_with_those_that_are_served(stack: OwnStack) -> None:
    unknown = post(stack, "/v1/embeddings", model="Good-Oen", input="a text")
    assert unknown.status_code == 404
    assert "Did you mean `Good-One`?" in unknown.json()["error"]["message"]


def test_a_model_of_the_catalogue_that_is_not_set_up_is_no_reason_to_try_again(stack: OwnStack) -> None:
    for path, more in [("/v1/embeddings", {}), ("/v1/jobs", {"type": "embeddings"})]:
        answer = post(stack, path, model="bge-m3", input=["a text"] * 100, **more)
        assert answer.status_code == 404, answer.text
        assert "not set up for it" in answer.json()["error"]["message"]
