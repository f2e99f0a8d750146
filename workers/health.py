"""`python -m workers.health`: whether this machine has a ready worker for every model of the settings.

Owns the health check of a worker's container: exit code 0 or 1, and a sentence. It asks the server what the workers
announced, since a process that lives and a Celery that answers pings both say nothing about a model that can be used.
"""

import socket
import sys

from config.catalog import load_catalog
from config.settings import Settings
from tasks.connections import connect
from tasks.errors import StoreUnavailable
from tasks.presence.model_states import ModelReports
from tasks.presence.worker_registry import WorkerRegistry

__all__ = ["find_unready_models", "main"]


def find_unready_models(settings: Settings, host: str) -> list[str]:
    """Return the models of the settings, by slug, for which no healthy worker takes calls and chunks here.

    Unloaded ones are left out.

    Raises:
        tasks.errors.StoreUnavailable: the server does not answer.
    """
    slugs = [card.slug for card in load_catalog(settings.catalog_file, settings.models).served]
    with connect(settings.redis_url, name="health") as redis:
        ready, reports = WorkerRegistry(redis, slugs).ready_models(), ModelReports(redis)
        idle = {slug for slug in slugs for one in reports.of(slug) if (one.host, one.state) == (host, "unloaded")}
    return [
        slug
        for slug in slugs
        if slug not in idle and not any(one.host == host and one.healthy and one.bulk for one in ready.get(slug, []))
    ]


def main() -> int:
    """Print what is missing; return the exit code."""
    try:
        unready = find_unready_models(Settings(), socket.gethostname())
    except StoreUnavailable as error:
        sys.stdout.write(f"{error}\n")
        return 1
    sys.stdout.write(f"not ready: {', '.join(unready)}\n" if unready else "ready\n")
    return 1 if unready else 0


if __name__ == "__main__":
    sys.exit(main())
