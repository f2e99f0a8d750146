"""OpenTelemetry: spans of a call and of a job arrive at a real OTLP receiver, in the caller's trace; off means off."""

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from flask import Flask
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app.http.spans import make_tracing, start_tracing
from app.jobs.event_lines import EventLines
from config.settings import Settings
from tests.support.web import opened_app, running_worker, services_of, wait_for_end

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
EMBED = "/v1/embeddings"


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps the spans."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.spans: list[Any] = []
        self.services: set[str] = set()

    def named(self, name: str) -> Any:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def children(self, parent: Any) -> list[str]:
        mine = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return [span.name for span in sorted(mine, key=lambda span: span.start_time_unix_nano)]


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            known = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.server.services.add(known["service.name"])
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "search")
        yield server
        server.shutdown()


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    with opened_app(settings) as app, running_worker(settings):
        yield app


@pytest.fixture
def flush(collector: Collector) -> Iterator[Any]:
    tracing, provider = make_tracing()
    start_tracing(tracing)
    yield provider.force_flush
    start_tracing(None)
    provider.shutdown()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


@pytest.mark.parametrize("headers", [{}, {"Prefer": "wait=1"}], ids=["plain", "by-flask"])
def test_a_call_is_in_its_callers_trace_with_its_stages(
    app: Flask, collector: Collector, flush: Any, headers: dict[str, str]
) -> None:
    sent = {"traceparent": f"00-{TRACE}-{CALLER}-01", **headers}
    answer = app.test_client().post(EMBED, json={"model": "fake", "input": ["a secret text", "two"]}, headers=sent)
    assert answer.status_code == 200
    flush()
    assert collector.services == {"search"}
    call = collector.named(f"POST {EMBED}")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, CALLER)
    known = attributes(call)
    assert (known["http.route"], known["http.response.status_code"], known["twolane.items"]) == (EMBED, 200, 2)
    assert collector.children(call) == ["queue", "wait", "batch"]
    assert collector.children(collector.named("batch")) == ["device"]
    for span in collector.spans:
        assert call.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
    assert "secret" not in str(collector.spans)


def test_a_job_goes_on_in_the_trace_of_the_call_that_created_it(app: Flask, collector: Collector, flush: Any) -> None:
    client = app.test_client()
    body = {"type": "embeddings", "model": "fake", "input": ["text"] * 100}
    job_id = client.post("/v1/jobs", json=body, headers={"traceparent": f"00-{TRACE}-{CALLER}-01"}).json["id"]  # type: ignore[index]
    wait_for_end(client, job_id)
    EventLines(services_of(app).redis).write()
    flush()
    call, job = collector.named("POST /v1/jobs"), collector.named("job")
    assert (job.trace_id.hex(), job.parent_span_id) == (TRACE, call.span_id)
    known = attributes(job)
    assert (known["twolane.job"], known["twolane.state"]) == (job_id, "succeeded")
    assert collector.children(job) == ["queue", "chunks"]


def test_a_call_without_a_trace_begins_one_and_a_failure_is_marked(
    app: Flask, collector: Collector, flush: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services_of(app).catalog, "find", lambda _: 1 / 0)
    assert app.test_client().post(EMBED, json={"model": "fake", "input": "a"}).status_code == 500
    flush()
    call = collector.named(f"POST {EMBED}")
    assert not call.parent_span_id
    assert call.status.code == call.status.STATUS_CODE_ERROR


def test_without_tracing_nothing_is_sent_and_no_exporter_is_imported(app: Flask, collector: Collector) -> None:
    answer = app.test_client().post(EMBED, json={"model": "fake", "input": "a"})
    assert answer.status_code == 200
    assert collector.spans == []
    # redis-py imports the library by itself where it is installed.
    program = "import sys, app.web_server; sys.exit('opentelemetry.exporter.otlp' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
