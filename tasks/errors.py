"""The whole error tree. One retry rule for all of them: `exc.retryable`.

    TwolaneError
    |-- RequestError            the caller has to change the request
    |   |-- InvalidRequest      a field is missing, wrong or too large
    |   |   |-- BodyCutOff      the body ended before its end
    |   |   `-- BodyTooSlow     the body comes too slowly
    |   |-- AuthenticationError no API key, or one that is not known
    |   |-- PermissionDenied    the key is good, and may not do this
    |   |-- ModelNotFound       no such model in the catalogue
    |   |-- NotFound            no such job, file or batch (or another tenant's)
    |   |-- ContextLengthExceeded  a text is too long and must not be cut
    |   |-- TooLarge            the body is over a limit in bytes
    |   |-- WrongCapability     the model cannot do what was asked
    |   |-- IdempotencyMismatch the key was used before with another payload
    |   |-- NotFinished         results were asked for before the job's end
    |   |-- Conflict            the job's state does not allow the move
    |   `-- Expired             it existed, and its time is over
    |-- CapacityError           the same request may succeed later
    |   |-- NoWorker            no worker is ready for this model
    |   |-- LaneFull            the interactive lane is full
    |   |-- RateLimited         the key has used up a limit of its own
    |   |-- StoreFull           Redis has no room for new jobs now
    |   |-- StoreUnavailable    Redis does not answer, or the file storage
    |   |   `-- StoreRefused    it answers, and will refuse the same again
    |   `-- DeadlineExceeded    the answer came too late, or not at all
    |-- WorkError               computing failed
    |   |-- ItemFailed          one item cannot be computed; its neighbours can
    |   |   |-- InvalidEmbedding  the model gives no finite value for it
    |   |   |-- WorkerCrashed   it ended the workers that computed it
    |   |   |-- GaveUp          its chunk ended too many workers, or failed too often
    |   |   |-- InputLost       its text is gone
    |   |   `-- InvalidText     its text is not Unicode
    |   |-- OutOfMemory         a batch does not fit on the device
    |   `-- EngineClosed        the worker is going away
    `-- ConfigError             the process must not start like this

Each class has a permanent `code`: clients may rely on it. HTTP status numbers are not known here, see
`app/http/errors.py`.
"""

from typing import ClassVar

__all__ = [
    "AuthenticationError",
    "BodyCutOff",
    "BodyTooSlow",
    "CapacityError",
    "ConfigError",
    "Conflict",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "EngineClosed",
    "Expired",
    "GaveUp",
    "IdempotencyMismatch",
    "InputLost",
    "InvalidEmbedding",
    "InvalidRequest",
    "InvalidText",
    "ItemFailed",
    "LaneFull",
    "ModelNotFound",
    "NoWorker",
    "NotFinished",
    "NotFound",
    "OutOfMemory",
    "PermissionDenied",
    "RateLimited",
    "RequestError",
    "StoreFull",
    "StoreRefused",
    "StoreUnavailable",
    "TooLarge",
    "TwolaneError",
    "WorkError",
    "WorkerCrashed",
    "WrongCapability",
]


class TwolaneError(Exception):
    """Something went wrong on the server, whose log says what; the base of all errors that are raised on purpose.

    Attributes:
        code: permanent name of the kind of error, part of the API.
        retryable: whether the very same request may succeed later.
        message: a sentence for the person who reads it.
    """

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(TwolaneError):
    """The caller has to change the request. `param` names the field, where there is one."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequest(RequestError):
    """A field is missing, has the wrong type or is over a limit."""

    code = "invalid_value"


class BodyCutOff(InvalidRequest):
    """The connection was lost in the middle of the body."""

    code = "body_cut_off"
    retryable = True


class BodyTooSlow(InvalidRequest):
    """The body comes more slowly than the server waits for."""

    code = "body_too_slow"
    retryable = True


class AuthenticationError(RequestError):
    """There is no API key, or one that is not known. The message never holds the key."""

    code = "invalid_api_key"


class PermissionDenied(RequestError):
    """The key is good, and may not do this."""

    code = "permission_denied"


class ModelNotFound(RequestError):
    """The catalogue has no model of that name."""

    code = "model_not_found"


class NotFound(RequestError):
    """There is no such job, file or batch for this tenant."""

    code = "not_found"


class TooLarge(RequestError):
    """The body is over a limit in bytes, or can never fit into Redis."""

    code = "request_too_large"


class ContextLengthExceeded(RequestError):
    """A text is longer than the model reads, and truncation was ruled out."""

    code = "context_length_exceeded"


class WrongCapability(RequestError):
    """The model exists, but cannot do what was asked."""

    code = "model_capability"


class IdempotencyMismatch(RequestError):
    """The idempotency key was used before with another payload."""

    code = "idempotency_mismatch"


class NotFinished(RequestError):
    """Results were asked for before the job reached its end."""

    code = "job_not_finished"
    retryable = True


class Conflict(RequestError):
    """The job's state does not allow this move."""

    code = "conflict"


class Expired(RequestError):
    """It existed once, and was deleted when its time was over."""

    code = "expired"


class CapacityError(TwolaneError):
    """The same request may succeed later. `retry_after_s` says when to try again."""

    code = "over_capacity"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoWorker(CapacityError):
    """No worker is ready for this model."""

    code = "model_not_ready"


class LaneFull(CapacityError):
    """More work waits in the interactive lane than its limit allows."""

    code = "rate_limit_exceeded"


class RateLimited(CapacityError):
    """The key has used up a limit of its own: requests, tokens, queued items or stored bytes."""

    code = "rate_limit_exceeded"


class StoreFull(CapacityError):
    """Redis is over its share of memory for new jobs, or the disk is full."""

    code = "store_full"


class StoreUnavailable(CapacityError):
    """Redis or the file storage does not answer."""

    code = "store_unavailable"


class StoreRefused(StoreUnavailable):
    """Redis or the file storage refuses what the server needs of it, until an operator changes something."""

    code = "store_refused"
    retryable = False


class DeadlineExceeded(CapacityError):
    """The answer did not come within the deadline."""

    code = "deadline_exceeded"


class WorkError(TwolaneError):
    """Computing failed on the device side."""

    code = "work_failed"


class ItemFailed(WorkError):
    """One item cannot be computed; its neighbours can."""

    code = "item_failed"


class InvalidEmbedding(ItemFailed):
    """The model gives no finite value for this text, not even in float32."""

    code = "invalid_embedding"


class WorkerCrashed(ItemFailed):
    """Two workers ended while they computed this item alone; it is not tried again."""

    code = "worker_crashed"


class GaveUp(ItemFailed):
    """The chunk of this item ended too many workers, or failed as a whole too often; no single item is to blame."""

    code = "gave_up"


class InputLost(ItemFailed):
    """The text of this item is not in Redis any more."""

    code = "input_lost"


class InvalidText(ItemFailed):
    """The text of this item is not Unicode: it has half of a surrogate pair."""

    code = "invalid_text"


class OutOfMemory(WorkError):
    """A batch does not fit on the device; a smaller one may."""

    code = "out_of_memory"
    retryable = True


class EngineClosed(WorkError):
    """The worker is going away; the work has to be given to another one."""

    code = "engine_closed"
    retryable = True


class ConfigError(TwolaneError):
    """The process must not start like this."""

    code = "config_error"
