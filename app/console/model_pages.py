"""Models, and a place to try them: embed or rerank a few texts by hand."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flask import request
from pydantic import BaseModel
from werkzeug.wrappers import Response

from app.access.auth import current_tenant, find_card, look_up_card
from app.console.actions import go_back
from app.console.session_guard import blueprint, render
from app.http.errors import raise_item_errors
from app.services import services
from app.submission.orders import make_order
from app.submission.service import SubmissionService
from config.catalog import ModelCard
from tasks.engine import Outcomes
from tasks.errors import InvalidRequest, TwolaneError
from tasks.jobs.chunking import Item
from tasks.presence.model_orders import Action, ModelOrders
from tasks.presence.model_states import ModelReport
from tasks.presence.worker_registry import WorkerInfo

_log = logging.getLogger(__name__)
_ORDERS: Mapping[str, Action] = {"load": "load", "unload": "unload", "reload": "reload"}
_MOST_TEXTS, _MOST_CHARS = 20, 20_000
_FIRST_NUMBERS = 6


class _AsUsual(BaseModel):
    """A request that asks for nothing special."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model, with what workers say of it."""

    card: ModelCard
    ready: Sequence[WorkerInfo]
    reports: Sequence[ModelReport]


@dataclass(frozen=True, slots=True)
class TriedText:
    """What became of one text.

    Attributes:
        text: as it was typed.
        tokens: what the model read.
        score: relevance, for rerank.
        numbers: the first of the vector, for embeddings.
        similarities: cosines with all texts, for embeddings.
    """

    text: str
    tokens: int
    score: float | None = None
    numbers: Sequence[float] = ()
    similarities: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """The answer to one try."""

    rows: Sequence[TriedText]
    took_ms: float
    dimension: int
    fingerprint: str


@blueprint.get("/models")
def show_models() -> str:
    """Show the models that this installation serves, with their workers."""
    live = services()
    ready = live.presence.ready_models()
    reports = live.reports.all()
    served = {card.slug for card in live.catalog.served}
    cards = [card for card in live.catalog if card.slug in served or card.slug in reports]
    rows = [ModelRow(card, ready.get(card.slug, ()), reports.get(card.slug, ())) for card in cards]
    rest = [card for card in live.catalog if card not in cards]
    return render("models.html", rows=rows, rest=rest)


@blueprint.post("/models/order")
def order_model() -> Response:
    """Have all workers load, unload or reload a model."""
    live, action = services(), request.form.get("action", "")
    if action not in _ORDERS:
        raise InvalidRequest(f"action must be one of {', '.join(_ORDERS)}", param="action")
    card = look_up_card(live.catalog, request.form.get("model", ""))
    ModelOrders(live.redis).give(card.name, _ORDERS[action], "")
    _log.info("%s: %s of model %s", current_tenant().actor, action, card.name)
    return go_back(f"All workers {action} {card.name}.")


@blueprint.get("/try")
def show_trial() -> str:
    """Show an empty trial."""
    return _render(None, "")


@blueprint.post("/try")
def try_model() -> str | tuple[str, int]:
    """Embed or rerank what was typed, as a call of the key in use."""
    try:
        return _render(_try(), "")
    except TwolaneError as error:
        return _render(None, error.message), 400


def _try() -> Trial:
    """Have the texts computed.

    Raises:
        tasks.errors.TwolaneError: as a call of the API.
    """
    form = request.form
    texts = [line.strip() for line in form.get("texts", "").splitlines() if line.strip()]
    query = form.get("query", "").strip()
    if not texts or len(texts) > _MOST_TEXTS or sum(map(len, texts)) + len(query) > _MOST_CHARS:
        raise InvalidRequest(
            f"type 1 to {_MOST_TEXTS} texts, one a line, of at most {_MOST_CHARS:,} characters together"
        )
    card = find_card(services().catalog, form.get("model", ""))
    order = make_order(card, "rerank" if query else "embeddings", _AsUsual())
    started_s = time.perf_counter()
    outcomes = SubmissionService(services(), current_tenant()).answer(
        order, [Item(text, query or None) for text in texts]
    )
    raise_item_errors(outcomes.errors)
    took_ms = (time.perf_counter() - started_s) * 1000
    rows = _score(texts, outcomes) if query else _compare(texts, outcomes)
    return Trial(rows, took_ms, 0 if query else outcomes.values.shape[1], outcomes.fingerprint)


def _score(texts: Sequence[str], outcomes: Outcomes) -> list[TriedText]:
    rows = [
        TriedText(text, int(tokens), score=float(value))
        for text, tokens, value in zip(texts, outcomes.tokens, outcomes.values, strict=True)
    ]
    return sorted(rows, key=lambda row: -(row.score or 0.0))


def _compare(texts: Sequence[str], outcomes: Outcomes) -> list[TriedText]:
    values = outcomes.values
    units = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return [
        TriedText(text, int(tokens), numbers=vector[:_FIRST_NUMBERS].tolist(), similarities=cosines.tolist())
        for text, tokens, vector, cosines in zip(texts, outcomes.tokens, values, units @ units.T, strict=True)
    ]


def _render(trial: Trial | None, problem: str) -> str:
    cards = [card for card in services().catalog.served if current_tenant().may_use(card)]
    return render("try.html", cards=cards, trial=trial, problem=problem, form=request.form)
