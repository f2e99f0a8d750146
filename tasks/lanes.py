"""A lane is a model and a class of service; this module names their queues. It owns no connection."""

import enum
from dataclasses import dataclass

__all__ = ["Lane", "Service"]


class Service(enum.Enum):
    """The class of service: interactive work goes ahead of bulk at every batch."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True, slots=True)
class Lane:
    """One model's lane. `model` is the slug of its card (see `config.catalog.ModelCard.slug`)."""

    model: str
    service: Service

    @property
    def queue(self) -> str:
        """Name of the queue: the Celery queue of a bulk lane, part of the Redis key of an interactive one."""
        return f"{self.service.value}.{self.model}"
