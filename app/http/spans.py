"""OpenTelemetry spans of calls and jobs, where `TWOLANE_TRACING` is on.

Owns the tracer of one web process and the spans: a worker says in its reply where its time went, so it needs no tracer.
Where tracing is off nothing of it is imported here, and a call pays for one comparison. Where spans are sent, how many
and under which name OpenTelemetry's variables say (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, ..).
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from tasks.engine import Timing
from tasks.errors import ConfigError
from tasks.jobs.job import TERMINAL

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = [
    "Tracing",
    "begin_span",
    "current_traceparent",
    "finish_span",
    "make_tracing",
    "note_stages",
    "start_tracing",
    "trace_job",
]

_SERVER_ERROR = 500
_span: ContextVar[Any] = ContextVar("twolane_span", default=None)


class Tracing:
    """Makes the spans of one web process.

    Args:
        provider: OpenTelemetry's; it sends what ends.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace  # noqa: PLC0415 - an optional dependency
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._tracer = provider.get_tracer("twolane")
        self._trace, self._propagator = trace, TraceContextTextMapPropagator()

    def begin(self, traceparent: str) -> Any:
        """Return the span of a request, below the caller's where it sent `traceparent` (W3C Trace Context)."""
        parent = self._propagator.extract({"traceparent": traceparent}) if traceparent else None
        return self._tracer.start_span("request", parent, self._trace.SpanKind.SERVER)

    def name(self, span: Any) -> str:
        """Return the `traceparent` of a span."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        return carrier.get("traceparent", "")

    def add(self, parent: Any, name: str, start_ns: int, end_ns: int, facts: Mapping[str, Any] | None = None) -> Any:
        """Add a span that has ended below another one, or below a `traceparent`."""
        context = (
            self._propagator.extract({"traceparent": parent})
            if isinstance(parent, str)
            else self._trace.set_span_in_context(parent)
        )
        span = self._tracer.start_span(name, context, attributes=_attributes(facts or {}), start_time=start_ns)
        span.end(end_ns)
        return span

    def fail(self, span: Any) -> None:
        """Mark a span as failed."""
        span.set_status(self._trace.StatusCode.ERROR)


_tracing: Tracing | None = None


def start_tracing(tracing: Tracing | None) -> None:
    """Trace from now on in this process; None: no more."""
    global _tracing  # noqa: PLW0603 - one for the process, as the library's own
    _tracing = tracing


def make_tracing() -> tuple[Tracing, "TracerProvider"]:
    """Return what sends spans by OTLP to where OpenTelemetry's variables say.

    Raises:
        ConfigError: the library is not installed.
    """
    os.environ.setdefault("OTEL_SERVICE_NAME", "twolane")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("TWOLANE_TRACING needs OpenTelemetry: pip install 'twolane-server[tracing]'") from error
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider), provider


def begin_span(traceparent: str) -> None:
    """Begin the span of the request that this thread begins."""
    if _tracing is not None:
        _span.set(_tracing.begin(traceparent))


def current_traceparent() -> str:
    """Return that of the request in progress, for what goes on after it; empty: nothing is traced."""
    return _tracing.name(_span.get()) if _tracing is not None and _span.get() is not None else ""


def note_stages(asked_s: float, timing: Timing) -> None:
    """Add the stages of a call that was computed, from the moment when it was sent (`time.monotonic()`).

    `queue` is its way over Redis and the wait in the list there, `wait` that for the device in the worker, `batch` from
    the first pass until the reply; `device` in it is as long as its part of the passes by tokens.
    """
    span = _span.get()
    if _tracing is None or span is None or not timing.worker_s:
        return
    end_s = time.monotonic()
    taken_s = max(asked_s, end_s - timing.worker_s)
    begun_s = min(end_s, taken_s + timing.queue_s)
    _tracing.add(span, "queue", _nanoseconds(asked_s), _nanoseconds(taken_s))
    _tracing.add(span, "wait", _nanoseconds(taken_s), _nanoseconds(begun_s))
    batch = _tracing.add(span, "batch", _nanoseconds(begun_s), _nanoseconds(end_s))
    _tracing.add(batch, "device", _nanoseconds(begun_s), _nanoseconds(min(end_s, begun_s + timing.device_s)))


def finish_span(method: str, route: str, status: int, facts: Mapping[str, object]) -> None:
    """End the span of the request in progress."""
    span = _span.get()
    if _tracing is None or span is None:
        return
    span.update_name(f"{method} {route}")
    known = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
    span.set_attributes({**known, **_attributes(facts)})
    if status >= _SERVER_ERROR:
        _tracing.fail(span)
    span.end()
    _span.set(None)


def trace_job(events: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Add the spans of a job that has ended, below that of the call that created it.

    Args:
        events: its log, oldest first.
        facts: attributes of the job.
    """
    traceparent = next((event["traceparent"] for event in events if event.get("traceparent")), "")
    if _tracing is None or not traceparent or events[-1]["event"] not in TERMINAL:
        return
    at_ns = {event["event"]: int(event["at"] * 1e9) for event in reversed(events)}
    created_ns, ended_ns = int(events[0]["at"] * 1e9), int(events[-1]["at"] * 1e9)
    started_ns = at_ns.get("started", ended_ns)
    job = _tracing.add(traceparent, "job", created_ns, ended_ns, {**facts, "state": events[-1]["event"]})
    _tracing.add(job, "queue", created_ns, started_ns)
    _tracing.add(job, "chunks", started_ns, ended_ns)


def _attributes(facts: Mapping[str, Any]) -> dict[str, str | int | float]:
    return {f"twolane.{name}": value for name, value in facts.items() if isinstance(value, str | int | float)}


def _nanoseconds(moment_s: float) -> int:
    """Return a moment of `time.monotonic()` in nanoseconds since the epoch."""
    return time.time_ns() - int((time.monotonic() - moment_s) * 1e9)
