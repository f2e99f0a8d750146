"""Environment variables of libraries that would decide past our settings: Celery's and Flower's.

Owns which they are. Celery prefers `CELERY_BROKER_URL` to any configuration, and the command lines of both read every
option from the environment: a variable that another program on the machine needs would move our queues elsewhere.
"""

from collections.abc import Mapping, MutableMapping

__all__ = ["drop_celery_variables", "own_environment"]


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a process of ours, without those variables."""
    return {name: value for name, value in environment.items() if not name.startswith(("CELERY_", "FLOWER_"))}


def drop_celery_variables(environment: MutableMapping[str, str]) -> list[str]:
    """Remove those of Celery from this process; return their names in order."""
    found = sorted(name for name in environment if name.startswith("CELERY_"))
    for name in found:
        del environment[name]
    return found
