"""The client's names are the server's: every field and parameter is in the OpenAPI document, and none is missing."""

from typing import Any

import httpx
import msgspec
import pytest

from tests.support.own_stack import OwnStack
from twolane import answers, requests

ANSWERS: dict[type[msgspec.Struct], str] = {
    answers.Usage: "Usage",
    answers.Embedding: "EmbeddingObject",
    answers.Chunk: "ChunkVector",
    answers.Embeddings: "EmbeddingsResponse",
    answers.RankedDocument: "RankedDocument",
    answers.Ranking: "RerankResponse",
    answers.Model: "ModelObject",
    answers.ModelWorker: "ModelWorker",
    answers.ModelPage: "ModelList",
    answers.JobCounts: "JobCounts",
    answers.ItemError: "ItemFailure",
    answers.ResultItem: "ResultItem",
    answers.WebhookState: "WebhookObject",
    answers.Job: "JobObject",
    answers.JobPage: "JobList",
    answers.Estimate: "JobEstimate",
    answers.ResultPage: "ResultPage",
}
# Fields that say nothing to this client: every object has the one, Voyage's client reads the other.
SILENT = {"object"}
FOREIGN = {"RerankResponse": {"data"}}


@pytest.fixture(scope="module")
def document(service: OwnStack) -> Any:
    return httpx.get(f"{service.url}/openapi.json").json()


def field_names(shape: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(shape)}


@pytest.mark.parametrize("shape", ANSWERS, ids=lambda shape: shape.__name__)
def test_an_answer_has_the_fields_of_the_server(document: Any, shape: type[msgspec.Struct]) -> None:
    properties = set(document["components"]["schemas"][ANSWERS[shape]]["properties"])
    assert field_names(shape) == properties - SILENT - FOREIGN.get(ANSWERS[shape], set())


@pytest.mark.parametrize("shape", ANSWERS, ids=lambda shape: shape.__name__)
def test_what_the_client_needs_is_always_there(document: Any, shape: type[msgspec.Struct]) -> None:
    schema = document["components"]["schemas"][ANSWERS[shape]]
    needed = {field.encode_name for field in msgspec.structs.fields(shape) if field.required}
    assert needed <= set(schema["required"])


@pytest.mark.parametrize(
    ("shape", "schema", "left_out"),
    [
        (requests.EmbedBody, "EmbeddingsRequest", {"user", "output_dtype", "stream"}),
        (requests.RerankBody, "RerankRequest", {"top_k", "truncation"}),
    ],
)
def test_a_body_has_the_fields_of_the_server(
    document: Any, shape: type[msgspec.Struct], schema: str, left_out: set[str]
) -> None:
    assert field_names(shape) == set(document["components"]["schemas"][schema]["properties"]) - left_out


def test_a_job_has_the_options_of_the_server(document: Any) -> None:
    parameters = document["paths"]["/v1/jobs"]["post"]["parameters"]
    query = {parameter["name"] for parameter in parameters if parameter["in"] == "query"}
    assert field_names(requests.JobOptions) == query - {"dry_run"}


CALLS: list[requests.Call[Any]] = [
    requests.embed(requests.EmbedBody(model="m", input=["a"])),
    requests.rerank(requests.RerankBody(model="m", query="q", documents=["a"])),
    requests.list_models(),
    requests.get_model("m"),
    requests.create_job(b"", requests.JobOptions(model="m"), webhook=requests.Webhook("https://a.example", "s")),
    requests.estimate_job(b"", requests.JobOptions(model="m")),
    requests.get_job("j", wait_s=5, unless="tag"),
    requests.list_jobs(status="running", after="j"),
    requests.page_results("j"),
    requests.download_results("j", "npy"),
    requests.follow_results("j", 3),
    requests.follow_events("j", "3"),
    requests.delete_job("j"),
    *(requests.change_job("j", verb) for verb in ("cancel", "pause", "resume", "retry")),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.method} {call.path}")
def test_every_call_is_one_that_the_server_describes(document: Any, call: requests.Call[Any]) -> None:
    path = call.path.replace("/jobs/j", "/jobs/{job_id}").replace("/models/m", "/models/{model}")
    operation = document["paths"][path][call.method.lower()]
    known = {(parameter["in"], parameter["name"].lower()) for parameter in operation.get("parameters", [])}
    assert {("query", name.lower()) for name in call.params} <= known
    sent = {name.lower() for name in call.headers} - {"content-type", "accept"}
    assert {("header", name) for name in sent} <= known
