"""`GET /metrics`, for Prometheus. It belongs to the operator: where there are keys it needs an admin's."""

from typing import cast

from flask import Blueprint, Response, current_app
from prometheus_client import CONTENT_TYPE_LATEST

from app.ops.metrics import Metrics

__all__ = ["blueprint"]

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def show_metrics() -> Response:
    """Show all metrics in Prometheus' text format."""
    metrics = cast("Metrics", current_app.extensions["twolane-metrics"])
    return Response(metrics.render(), content_type=CONTENT_TYPE_LATEST)
