"""`/metrics`, and what this web process adds to it: each answer, by route and status, and how long it took.

Owns the registry of one web process and the hook that counts its answers; they are added up in Redis, so that all web
processes say the same. The rest is `app.ops.shared_state`.
"""

import platform
import time
from typing import cast

from flask import Blueprint, Response, current_app, g, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, ProcessCollector, generate_latest

from app.access.auth import Authenticator
from app.http.errors import error_code
from app.http.openapi import Api
from app.http.places import Kind, Places
from app.ops.metric_names import find_metric
from app.ops.shared_state import SharedState
from app.services import Services
from config.version import read_version
from tasks.errors import LaneFull
from tasks.presence.web_processes import WebReporter

__all__ = ["Metrics", "blueprint", "install_metrics"]

blueprint = Blueprint("metrics", __name__)

_REFUSALS = frozenset({429, 503, 504})
_PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})


class Metrics:
    """The metrics of one web process. Thread-safe.

    Args:
        live: where everything is added up and read.
        places: of this process.
        authenticator: knows how the keys file is.

    Attributes:
        reporter: reports the places of this process; started by who serves.
    """

    def __init__(self, live: Services, places: Places, authenticator: Authenticator) -> None:
        self._live = live
        self._counters = live.counters
        self.reporter = WebReporter(live.redis, lambda: {kind.name.lower(): places.count(kind) for kind in Kind})
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(SharedState(live))
        build = find_metric("twolane_build_info")
        info = Gauge(build.name, build.description, build.labels, registry=self._registry)
        info.labels(read_version(), platform.python_version()).set(1)
        unusable = find_metric("twolane_keys_file_unusable")
        keys_file = Gauge(unusable.name, unusable.description, registry=self._registry)
        keys_file.set_function(lambda: authenticator.keeps_old_keys)
        if live.settings.web_workers == 1:
            # Scrapes of several processes behind one port would reach now one, now another.
            ProcessCollector(registry=self._registry)

    def count(self, response: Response) -> Response:
        """Count one answer; an `after_request` hook."""
        # A path that is not ours, and a method, are a stranger's words: they must not make new series.
        route = request.url_rule.rule if request.url_rule is not None else "unknown"
        method = request.method if request.url_rule is not None else "unknown"
        tenant = g.tenant.name if "tenant" in g else ""
        self.note(response, method, route, g.get("started_s", time.perf_counter()), tenant)
        return response

    def note(self, response: Response, method: str, route: str, started_s: float, tenant: str) -> None:
        """Count one answer to a tenant's request that began at `started_s` of `time.perf_counter()`."""
        status = response.status_code
        self._counters.add("http_requests_total", (method, route, str(status)))
        self._counters.observe("http_request_seconds", (route,), time.perf_counter() - started_s)
        # A probe is answered, not refused.
        if status in _REFUSALS and route not in _PROBES:
            self._refuse(status, error_code(response), tenant)

    def count_refusal(self, response: Response) -> None:
        """Count a request that found no place."""
        self._counters.add("http_requests_total", ("unknown", "unknown", str(response.status_code)))
        self._refuse(response.status_code, LaneFull.code, "")

    def _refuse(self, status: int, code: str, tenant: str) -> None:
        self._counters.add("http_refusals_total", (str(status), code))
        self._live.activity.note_refusal(code, tenant)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


@blueprint.get("/metrics")
def show_metrics() -> Response:
    """Show all metrics in Prometheus' text format. They belong to the operator: with keys, an admin's is needed."""
    metrics = cast("Metrics", current_app.extensions["twolane-metrics"])
    return Response(metrics.render(), content_type=CONTENT_TYPE_LATEST)


def install_metrics(app: Api, metrics: Metrics) -> None:
    """Count the answers of this app and let the route find what to show.

    Call it before all else that has hooks: `after_request` runs backwards, and this one has to see the final answer.
    """
    app.extensions["twolane-metrics"] = metrics
    app.after_request(metrics.count)
    app.note_refusal = metrics.count_refusal
