"""The web side: HTTP in, HTTP out. The only package where Flask may be imported."""

from flask import Flask

from app.access.auth import Authenticator, protect
from app.access.key_store import KeyStore
from app.access.limits import limit
from app.admin import key_routes, usage_routes
from app.admin import routes as admin_routes
from app.batches import files_routes
from app.batches import routes as batches_routes
from app.compat import install_adapters
from app.console import install_console
from app.http.cors import install_cors
from app.http.errors import install_errors
from app.http.openapi import Api, register_schema
from app.http.places import Places
from app.http.request_ids import install_tracing
from app.http.responses import install_compression
from app.inference import embeddings, models, rerank
from app.inference.calls import DirectCalls
from app.inference.schemas import EmbeddingsRequest, RerankRequest
from app.jobs import events_routes, log_routes, results_routes
from app.jobs import routes as jobs_routes
from app.jobs.schemas import JobEstimate, JobRequest, ResultPage
from app.ops import health, metrics, model_routes, pages
from app.ops.metrics import Metrics, install_metrics
from app.services import build_services, install_services
from config.settings import Settings
from config.version import read_version

__all__ = ["create_app"]

_JOBS = (jobs_routes, results_routes, events_routes, log_routes)
_BATCHES = (files_routes, batches_routes)


def create_app(settings: Settings) -> Flask:
    """Put the web process together; this is the only place where that happens. No connection is opened.

    Raises:
        tasks.errors.ConfigError: the keys file is bad.
        OSError, tomllib.TOMLDecodeError, pydantic.ValidationError: the catalogue file is bad.
    """
    places = Places(settings.web_threads, settings.body_memory_bytes)
    app = Api(read_version(), places, example_model=settings.models[0], with_keys=settings.keys_file is not None)
    app.config["MAX_BODY_BYTES"] = settings.max_body_bytes
    app.config["MAX_JSON_VALUES"] = settings.max_json_values
    app.config["MIN_CLIENT_BYTES_S"] = settings.min_client_bytes_s
    live = build_services(settings)
    install_services(app, live)
    authenticator = Authenticator(settings, KeyStore(live.redis))
    metrics_of_app = Metrics(live, places, authenticator)
    install_metrics(app, metrics_of_app)
    install_errors(app)
    install_tracing(app)
    install_compression(app)
    if settings.cors_origins:
        install_cors(app, settings.cors_origins)
    protect(app, authenticator)
    if live.limiter is not None:
        limit(app, live.limiter)
    _answer_directly(DirectCalls(app, live, authenticator, metrics_of_app.note))
    for routes in (embeddings, rerank, *_JOBS, *_BATCHES, models, model_routes, health):
        app.register_api(routes.blueprint)
    app.register_api(admin_routes.blueprint)
    app.register_api(key_routes.blueprint)
    app.register_api(usage_routes.blueprint)
    install_adapters(app)
    install_console(app, live, authenticator)
    app.register_blueprint(pages.blueprint)
    app.register_blueprint(metrics.blueprint)
    for model in (JobEstimate, JobRequest, ResultPage):
        register_schema(app, model)
    return app


def _answer_directly(direct: DirectCalls) -> None:
    direct.add(embeddings.PATH, EmbeddingsRequest, embeddings.describe_embeddings)
    for path in rerank.PATHS:
        direct.add(path, RerankRequest, rerank.describe_rerank)
