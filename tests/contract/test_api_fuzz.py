"""Nothing that is sent makes the server fail, and every answer is one that the OpenAPI text names."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app import create_app
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tests.support.web import opened_app, running_worker, settings_of

CALLS_PER_OPERATION = 25
POSTS = ("/v1/embeddings", "/v1/rerank", "/v1/jobs", "/v1/batches", "/v1/files")
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
# Values that were somewhere taken for something else: near-numbers, empty and huge things, foreign scripts, nulls.
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64), st.floats(), st.text(max_size=20), st.just("fake")
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["model", "input", "query", "queries", "documents", "type", "top_n", "dimensions", "truncate", "return", "text",
     "encoding_format", "input_type", "instruction", "return_documents", "metadata", "priority", "dtype", "user",
     "long", "chunk_tokens", "overlap_tokens", "max_chunks_per_doc", "max_tokens_per_doc"]
)  # fmt: skip


@pytest.fixture(scope="module")
def app(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    here = settings_of(server, tmp_path_factory.mktemp("data"))
    with opened_app(here) as app, running_worker(here):
        yield app


@pytest.fixture(scope="module")
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture(scope="module")
def openapi(app: Flask) -> Any:
    return schemathesis.openapi.from_wsgi("/openapi.json", app)


OPERATIONS = [
    (path, method)
    for path, methods in create_app(Settings(_env_file=None, redis_url="redis://127.0.0.1:1/0"))
    .api_doc["paths"]
    .items()  # type: ignore[attr-defined] # our app is one of flask-openapi3
    for method in methods
]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_one_that_the_openapi_text_names(openapi: Any, path: str, method: str) -> None:
    # Schemathesis' own parametrization does not know this version of pytest.
    @seed(20261121)
    @settings(
        max_examples=CALLS_PER_OPERATION,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=openapi[path][method].as_strategy())
    def call(case: Any) -> None:
        answer = case.call_and_validate(checks=CHECKS)
        # 503 is documented and right for a model without a worker; a 500 is neither.
        assert answer.status_code != 500

    call()


def refused_or_answered(answer: Any) -> None:
    assert answer.status_code < 500 or answer.status_code == 503, answer.data
    if answer.status_code >= 400:
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", POSTS)
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=300) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_make_a_route_fail(client: FlaskClient, path: str, body: bytes) -> None:
    refused_or_answered(client.post(path, data=body, content_type="application/json"))
    refused_or_answered(client.post(f"{path}?model=fake", data=body, content_type="application/x-ndjson"))


@pytest.mark.parametrize("path", POSTS)
@settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(fields=st.dictionaries(FIELDS, VALUES, max_size=6))
def test_no_value_in_any_field_makes_a_route_fail(client: FlaskClient, path: str, fields: dict[str, Any]) -> None:
    good = {"type": "embeddings", "model": "fake", "input": "a", "query": "q", "documents": ["a"]}
    body = json.dumps({**good, **fields}).encode()
    refused_or_answered(client.post(path, data=body, content_type="application/json"))
