"""WebSocket and gRPC over the app with the fake model: what HTTP answers, they answer."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from app.protocols.rpc_server import SERVICE, RpcServer
from app.protocols.websocket import WebSocketServer
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tests.support.web import opened_app, settings_of, write_keys
from twolane.rpc import twolane_pb2 as rpc
from twolane.rpc.twolane_pb2_grpc import TwolaneStub

KEY = {"Authorization": "Bearer one"}
LONG = " ".join(f"w{at}" for at in range(1300))


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("data")
    keys = write_keys(folder / "keys.toml", {"one": "", "two": ""})
    return settings_of(server, folder, keys_file=keys)


@pytest.fixture(scope="module")
def websocket(app_here: Flask, settings_here: Settings, client: FlaskClient) -> Iterator[str]:
    server = WebSocketServer(app_here, settings_here)
    server.start()
    yield f"ws://127.0.0.1:{server.port}/v1/stream"
    server.stop()


@pytest.fixture(scope="module")
def channel(app_here: Flask, settings_here: Settings, client: FlaskClient) -> Iterator[grpc.Channel]:
    server = RpcServer(app_here, settings_here)
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as opened:
        yield opened
    server.stop()


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return TwolaneStub(channel)


METADATA = (("authorization", "Bearer one"),)


def by_http(client: FlaskClient, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body, headers=KEY)
    assert answer.status_code in {200, 202}, answer.json
    return answer.json


def send(connection: ClientConnection, **message: Any) -> None:
    connection.send(json.dumps(message))


def receive(connection: ClientConnection) -> Any:
    return json.loads(connection.recv(timeout=30))


def test_many_requests_share_a_connection_and_answers_have_their_ids(client: FlaskClient, websocket: str) -> None:
    texts = {number: f"text {number}" for number in range(100)}
    with connect(websocket, additional_headers=KEY) as connection:
        for number, text in texts.items():
            send(connection, id=number, path="/v1/embeddings", body={"model": "fake", "input": text})
        answers = [receive(connection) for _ in texts]
    assert {answer["id"] for answer in answers} == set(texts)
    assert {answer["status"] for answer in answers} == {200}
    wanted = by_http(client, "/v1/embeddings", model="fake", input=list(texts.values()))["data"]
    for answer in answers:
        assert answer["body"]["data"][0]["embedding"] == wanted[answer["id"]]["embedding"]
        assert answer["headers"]["x-truncated-items"] == "0"


def test_a_stream_comes_value_by_value_and_can_be_cancelled(websocket: str) -> None:
    body = {"model": "fake", "input": ["a"] * 70, "stream": True}
    with connect(websocket, additional_headers=KEY) as connection:
        send(connection, id="s", path="/v1/embeddings", body=body)
        messages = [receive(connection) for _ in range(72)]
        assert [message["event"].get("index") for message in messages[:71]] == [*range(70), None]
        assert messages[71] == {"id": "s", "status": 200, "done": True}
        send(connection, id="j", path="/v1/jobs", body={"type": "embeddings", "model": "fake", "input": ["a"] * 400})
        job = receive(connection)["body"]
        send(connection, id="e", path=f"/v1/jobs/{job['id']}/events")
        states = []
        while "done" not in (message := receive(connection)):
            states.append(message["event"]["status"])
        assert states[-1] == "succeeded"
        many = {**body, "input": [f"{at} {LONG}" for at in range(1000)]}
        send(connection, id="c", path="/v1/embeddings", body=many)
        assert receive(connection)["event"]["index"] == 0
        send(connection, id="c", cancel=True)
        received = 1
        while "done" not in receive(connection):
            received += 1
        assert received < 1000


def test_a_bad_message_is_answered_and_the_connection_stays(websocket: str) -> None:
    bad: list[Any] = [
        {"id": 1, "path": "/console"},
        {"id": 1, "path": "/v1/models", "method": "PUT"},
        {"id": [1], "path": "/v1/models"},
        {"id": 1, "path": "/v1/models", "headers": {"prefer": "a\nb"}},
        {"path": "/v1/models"},
        {},
    ]
    with connect(websocket, additional_headers=KEY) as connection:
        for message in bad:
            send(connection, **message)
            assert receive(connection)["status"] == 400
        for raw in ("no json", "[]", b"\xff\xfe"):
            connection.send(raw)
            assert receive(connection)["status"] == 400
        send(connection, id=2, path="/v1/embeddings", body={"model": "unknown", "input": "a"})
        answer = receive(connection)
        assert (answer["status"], answer["body"]["error"]["code"]) == (404, "model_not_found")
        send(connection, id=3, path="/v1/models")
        assert receive(connection)["body"]["data"][0]["id"] == "fake"


def test_a_key_is_needed_and_a_tenant_sees_its_own_jobs(client: FlaskClient, websocket: str, stub: Any) -> None:
    job = by_http(client, "/v1/jobs", type="embeddings", model="fake", input=["a"])["id"]
    with connect(websocket) as connection:
        send(connection, id=1, path="/v1/models")
        assert receive(connection)["body"]["error"]["code"] == "invalid_api_key"
    with connect(websocket, additional_headers={"api-key": "two"}) as connection:
        send(connection, id=1, path=f"/v1/jobs/{job}")
        assert receive(connection)["status"] == 404
    with pytest.raises(InvalidStatus, match="404"):
        connect(websocket.replace("/v1/stream", "/other"))
    with pytest.raises(grpc.RpcError) as refused:
        stub.GetJob(rpc.JobRequest(id=job))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as hidden:
        stub.GetJob(rpc.JobRequest(id=job), metadata=(("api-key", "two"),))
    assert hidden.value.code() is grpc.StatusCode.NOT_FOUND
    assert stub.GetJob(rpc.JobRequest(id=job), metadata=METADATA).status == "succeeded"


def vector(item: Any) -> Any:
    return np.frombuffer(item.embedding, "<f4")


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}])
def test_without_keys_a_strangers_page_opens_no_websocket(settings_here: Settings, headers: dict[str, str]) -> None:
    settings = settings_here.model_copy(update={"keys_file": None})
    with opened_app(settings) as app:
        server = WebSocketServer(app, settings)
        server.start()
        try:
            address = f"ws://127.0.0.1:{server.port}/v1/stream"
            with connect(address) as own:
                send(own, id=1, path="/v1/models")
                assert receive(own)["status"] == 200
            with pytest.raises(InvalidStatus, match="403"):
                connect(
                    address.replace("127.0.0.1", headers.get("Host", "127.0.0.1")),
                    sock=reach(server.port),
                    origin=headers.get("Origin"),  # type: ignore[arg-type] # a NewType
                )
        finally:
            server.stop()


def reach(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


def test_grpc_gives_the_vectors_of_http(client: FlaskClient, stub: Any) -> None:
    texts = ["alpha", LONG]
    wanted = by_http(client, "/v1/embeddings", model="fake", input=texts)
    answer = stub.Embed(rpc.EmbedRequest(model="fake", input=texts), metadata=METADATA)
    for item, entry in zip(answer.data, wanted["data"], strict=True):
        np.testing.assert_allclose(vector(item), entry["embedding"], rtol=1e-6)
        assert (item.index, item.tokens, item.truncated) == (entry["index"], entry["tokens"], entry["truncated"])
    assert answer.usage.prompt_tokens == wanted["usage"]["prompt_tokens"]
    parts = list(stub.EmbedStream(rpc.EmbedRequest(model="fake", input=texts), metadata=METADATA))
    assert [part.item.embedding for part in parts[:-1]] == [item.embedding for item in answer.data]
    assert parts[-1].end.usage == answer.usage
    chunks = stub.Embed(rpc.EmbedRequest(model="fake", input=texts, long="chunks"), metadata=METADATA).data[1].chunks
    assert [LONG[chunk.start : chunk.end].split()[0] for chunk in chunks] == ["w0", "w447", "w894"]


def test_grpc_ranks_as_http_does_and_says_what_is_wrong(client: FlaskClient, stub: Any) -> None:
    documents = ["beta", "alpha", "gamma"]
    wanted = by_http(client, "/v1/rerank", model="fake", query="alpha", documents=documents)["results"]
    answer = stub.Rerank(rpc.RerankRequest(model="fake", query="alpha", documents=documents), metadata=METADATA)
    assert [{"index": one.index, "relevance_score": one.relevance_score} for one in answer.results] == wanted
    with pytest.raises(grpc.RpcError) as refused:
        stub.Rerank(rpc.RerankRequest(model="fake", query="a", documents=["a"], top_n=-1), metadata=METADATA)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(refused.value.trailing_metadata())["error-param"] == "top_n"


def test_a_job_is_submitted_watched_and_read(stub: Any) -> None:
    items = [rpc.Item(text=f"text {at}", id=f"i{at}") for at in range(200)]
    asked = rpc.SubmitJobRequest(type="embeddings", model="fake", input=items, idempotency_key="k", metadata={"a": "b"})
    job = stub.SubmitJob(asked, metadata=METADATA)
    assert stub.SubmitJob(asked, metadata=METADATA).id == job.id
    assert job.metadata == {"a": "b"}
    states = list(stub.WatchJob(rpc.JobRequest(id=job.id), metadata=METADATA))
    assert states[-1].status == "succeeded"
    assert states[-1].counts.completed == 200
    results = list(stub.ReadResults(rpc.ResultsRequest(id=job.id, after=9), metadata=METADATA))
    assert [(row.index, row.id) for row in results] == [(at, f"i{at}") for at in range(10, 200)]
    (one,) = stub.Embed(rpc.EmbedRequest(model="fake", input=["text 10"]), metadata=METADATA).data
    assert results[0].embedding == one.embedding
    with pytest.raises(grpc.RpcError) as ended:
        stub.CancelJob(rpc.JobRequest(id=job.id), metadata=METADATA)
    assert ended.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_health_and_reflection_are_served(channel: grpc.Channel) -> None:
    check = health_pb2_grpc.HealthStub(channel).Check
    for name in ("", SERVICE):
        answer = check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    found = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert SERVICE in found
