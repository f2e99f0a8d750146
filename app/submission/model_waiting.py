"""What a call gets for a model that no worker is ready for: it waits until one has loaded it, or is refused.

Owns that choice, the reason, and the time after which it is worth trying again.
"""

import time

from app.http.places import Kind, current_place
from app.services import Services
from config.catalog import ModelCard
from tasks.errors import NoWorker
from tasks.presence.model_states import ModelReport

__all__ = ["await_model", "explain_no_worker"]

_POLL_S = 0.25
# When to come back where nobody knows how long it takes, and where nothing happens without an admin.
_UNKNOWN_S, _NOTHING_S, _STARTING_S = 5.0, 60.0, 2.0


def await_model(live: Services, card: ModelCard, until_s: float) -> None:
    """Return when a worker is ready for the model.

    Args:
        live: the services.
        card: the model; no worker is ready for it.
        until_s: `time.monotonic()` of the caller's deadline.

    Raises:
        NoWorker: models are not loaded on demand here, or this one cannot be loaded, or not in time.
    """
    if not live.settings.load_on_demand:
        raise explain_no_worker(live, card)
    with current_place().moved(Kind.WAIT) as free:
        while True:
            live.catalog.want(card)
            reports = live.reports.of(card.slug)
            left_s = until_s - time.monotonic()
            if not free or not reports or live.reports.given_up(card.slug) or _remaining_s(reports) > left_s:
                raise explain_no_worker(live, card)
            time.sleep(min(_POLL_S, max(0.0, left_s)))
            if card.slug in live.presence.ready_models():
                return


def explain_no_worker(live: Services, card: ModelCard) -> NoWorker:
    """Return why no worker is ready for the model, and when to try again."""
    reports = live.reports.of(card.slug)
    if live.reports.given_up(card.slug):
        reason = next(report.reason for report in reports)
        return NoWorker(f"{card.name} cannot be served: {reason}", retry_after_s=_NOTHING_S)
    if loading := [report for report in reports if report.state == "loading"]:
        step = f" ({loading[0].step})" if loading[0].step else ""
        return NoWorker(f"{card.name} is being loaded{step}", retry_after_s=_remaining_s(reports) or _UNKNOWN_S)
    if live.reports.unloaded(card.slug):
        reason = next((report.reason for report in reports if report.state == "unloaded" and report.reason), "")
        after_s = (_remaining_s(reports) or _UNKNOWN_S) if live.settings.load_on_demand else _NOTHING_S
        return NoWorker(f"{card.name} is not loaded" + (f": {reason}" if reason else ""), retry_after_s=after_s)
    return NoWorker("no worker is ready for this model", retry_after_s=_STARTING_S)


def _remaining_s(reports: list[ModelReport]) -> float:
    """Return how long loading still takes, as it took before, in the worker that is done first; 0: not known."""
    known = [
        report.load_s - (report.since_s if report.state == "loading" else 0)
        for report in reports
        if report.load_s and report.state != "failed"
    ]
    return max(0.0, min(known)) if known else 0.0
