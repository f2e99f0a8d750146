"""Who has a job changed, and in which request: what the job's event log names beside each change.

Owns a context variable, which the web tier sets at the start of a request. In a worker it is empty: nobody asked.
"""

from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Origin", "current_origin", "set_origin"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a change comes from.

    Attributes:
        actor: tenant and name of the key, as `tenant/name`; empty: the product itself.
        request_id: as in the log; empty outside of a request.
        traceparent: of the request's span (W3C Trace Context); empty: it is not traced.
    """

    actor: str = ""
    request_id: str = ""
    traceparent: str = ""


_NOBODY = Origin()
_origin: ContextVar[Origin] = ContextVar("twolane_origin", default=_NOBODY)


def current_origin() -> Origin:
    """Return who has the changes of this context made."""
    return _origin.get()


def set_origin(origin: Origin) -> None:
    """Name who has the changes of this context made, until the next call."""
    _origin.set(origin)
