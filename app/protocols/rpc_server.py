"""gRPC: the service of `rpc/twolane.proto`, with health and reflection.

Owns the mapping of messages to the JSON of the HTTP API, whose names the fields have, and of its errors to gRPC's. The
app decides what an answer is (`inner_calls`).
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from operator import methodcaller
from typing import Any, NoReturn, TypeAlias
from urllib.parse import quote

import grpc
import orjson
from flask import Flask
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from app.protocols.inner_calls import InnerAnswer, InnerCalls
from app.protocols.rpc import twolane_pb2 as rpc
from config.settings import Settings
from tasks.errors import ConfigError

__all__ = ["SERVICE", "RpcServer"]

SERVICE = "twolane.v1.Twolane"
_CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    410: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.OUT_OF_RANGE,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_KEYS = ("authorization", "api-key", "x-request-id")
# Of an answer's headers, those that come back as trailing metadata.
_SHOWN = ("x-request-id", "retry-after", "x-should-retry", "x-model-fingerprint", "x-truncated-items")
_STOP_S = 4.0
_WRITE = methodcaller("SerializeToString")

# grpc has no types; a `grpc.ServicerContext`.
Context: TypeAlias = Any


class RpcServer:
    """Serves an app over gRPC, from `start()` to `stop()`.

    Args:
        app: the app.
        settings: address and limits.

    Raises:
        ConfigError: the address cannot be bound.
    """

    def __init__(self, app: Flask, settings: Settings) -> None:
        self._server = grpc.server(
            ThreadPoolExecutor(settings.web_threads, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                # Two servers on one port would each take a part of the calls.
                ("grpc.so_reuseport", 0),
            ],
        )
        service = _Service(InnerCalls(app, "grpc"))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, service.handlers()),))
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            self.port = self._server.add_insecure_port(f"{host}:{settings.grpc_port}")
        except RuntimeError as error:
            raise ConfigError(f"TWOLANE_GRPC_PORT={settings.grpc_port} cannot be bound") from error

    def start(self) -> None:
        """Accept calls from now on."""
        self._server.start()
        for name in ("", SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def stop(self) -> None:
        """Accept none any more, and give those that run some seconds."""
        self._health.enter_graceful_shutdown()
        self._server.stop(_STOP_S).wait()


class _Service:
    """The methods, each a call of the app."""

    def __init__(self, calls: InnerCalls) -> None:
        self._calls = calls

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """Return the methods by name, as the service's description in the .proto file has them."""
        found = {}
        for method in rpc.DESCRIPTOR.services_by_name["Twolane"].methods:
            read = getattr(rpc, method.input_type.name).FromString
            make = (
                grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
            )
            found[method.name] = make(getattr(self, method.name), read, _WRITE)
        return found

    def Embed(self, request: rpc.EmbedRequest, context: Context) -> Message:  # noqa: N802 - named in the .proto file
        body = {**_fields(request), "encoding_format": "base64"}
        return self._call(context, "/v1/embeddings", body, rpc.EmbedResponse())

    def EmbedStream(self, request: rpc.EmbedRequest, context: Context) -> Iterator[Message]:  # noqa: N802 - as above
        body = {**_fields(request), "encoding_format": "base64", "stream": True}
        for value in self._stream(context, "POST", "/v1/embeddings", body):
            name = "end" if "usage" in value else "item"
            yield ParseDict({name: value}, rpc.EmbedPart(), ignore_unknown_fields=True)

    def Rerank(self, request: rpc.RerankRequest, context: Context) -> Message:  # noqa: N802 - as above
        return self._call(context, "/v1/rerank", _fields(request), rpc.RerankResponse())

    def SubmitJob(self, request: rpc.SubmitJobRequest, context: Context) -> Message:  # noqa: N802 - as above
        body = _fields(request)
        key = body.pop("idempotency_key", None)
        return self._call(context, "/v1/jobs", body, rpc.Job(), {} if key is None else {"idempotency-key": key})

    def GetJob(self, request: rpc.JobRequest, context: Context) -> Message:  # noqa: N802 - as above
        return self._call(context, f"/v1/jobs/{_quoted(request.id)}", None, rpc.Job())

    def CancelJob(self, request: rpc.JobRequest, context: Context) -> Message:  # noqa: N802 - as above
        return self._call(context, f"/v1/jobs/{_quoted(request.id)}/cancel", {}, rpc.Job())

    def WatchJob(self, request: rpc.JobRequest, context: Context) -> Iterator[Message]:  # noqa: N802 - as above
        for value in self._stream(context, "GET", f"/v1/jobs/{_quoted(request.id)}/events"):
            yield ParseDict(value, rpc.Job(), ignore_unknown_fields=True)

    def ReadResults(self, request: rpc.ResultsRequest, context: Context) -> Iterator[Message]:  # noqa: N802 - as above
        after = f"&after={request.after}" if request.HasField("after") else ""
        address = f"/v1/jobs/{_quoted(request.id)}/results?format=ndjson&encoding_format=base64{after}"
        for value in self._stream(context, "GET", address):
            yield ParseDict(value, rpc.ResultItem(), ignore_unknown_fields=True)

    def _call(
        self,
        context: Context,
        address: str,
        body: Mapping[str, Any] | None,
        into: Message,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        sent = b"" if body is None else orjson.dumps(body)
        given = {**_metadata(context), **(headers or {})}
        answer = self._calls.call("GET" if body is None else "POST", address, sent, given)
        data = answer.read()
        if answer.status >= 300:
            _refuse(context, answer, data)
        context.set_trailing_metadata(_shown(answer))
        return ParseDict(orjson.loads(data), into, ignore_unknown_fields=True)

    def _stream(
        self, context: Context, method: str, address: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        sent = b"" if body is None else orjson.dumps(body)
        answer = self._calls.call(method, address, sent, _metadata(context))
        if answer.status >= 300:
            _refuse(context, answer, answer.read())
        context.set_trailing_metadata(_shown(answer))
        for line in answer.values(context.is_active):
            value = orjson.loads(line)
            # A job has an error too, which is a sentence or null.
            if isinstance(value.get("error"), dict) and "index" not in value:
                context.abort(grpc.StatusCode.ABORTED, str(value["error"]["message"]))
            yield value


def _fields(request: Message) -> dict[str, Any]:
    """Return what a request says; a field that is not set is absent."""
    found: dict[str, Any] = MessageToDict(request, preserving_proto_field_name=True)
    return found


def _metadata(context: Context) -> dict[str, str]:
    given = {name: value for name, value in context.invocation_metadata() if name in _KEYS}
    return {name: value if isinstance(value, str) else value.decode("latin-1") for name, value in given.items()}


def _shown(answer: InnerAnswer) -> tuple[tuple[str, str], ...]:
    return tuple((name, answer.headers[name]) for name in _SHOWN if name in answer.headers)


def _refuse(context: Context, answer: InnerAnswer, data: bytes) -> NoReturn:
    error = orjson.loads(data)["error"]
    about = tuple((f"error-{name}", str(error[name])) for name in ("code", "param") if error.get(name))
    context.set_trailing_metadata((*_shown(answer), *about))
    context.abort(_CODES.get(answer.status, grpc.StatusCode.INTERNAL), error["message"])
    raise AssertionError("abort raises")


def _quoted(job_id: str) -> str:
    return quote(job_id, safe="")
