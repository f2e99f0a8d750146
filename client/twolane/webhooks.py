"""Checks that a webhook call comes from the server that shares its secret (https://www.standardwebhooks.com).

Owns the verification only; your web framework receives the call.
"""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from twolane.answers import Job
from twolane.errors import WebhookError

__all__ = ["WebhookEvent", "verify_webhook"]

_PREFIX = "whsec_"


class WebhookEvent(msgspec.Struct, frozen=True):
    """A verified message; `type` is `job.succeeded`, `job.failed`, `job.cancelled` or `job.expired`."""

    type: str
    timestamp: str
    data: Job


def verify_webhook(body: bytes, headers: Mapping[str, str], secret: str, *, tolerance_s: float = 300.0) -> WebhookEvent:
    """Return the message of a webhook call.

    The same message may come more than once, with the same `webhook-id`.

    Args:
        body: exactly the bytes that came.
        headers: of the call; upper and lower case do not matter.
        secret: `whsec_` and base64.
        tolerance_s: how far the sender's clock and ours may be apart; what is older may be a recorded call.

    Raises:
        WebhookError: a header is missing, the signature is not the secret's, or the call is too old.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp = given["webhook-id"], given["webhook-timestamp"]
        signatures = given["webhook-signature"].split()
        sent_s = int(timestamp)
    except (KeyError, ValueError):
        raise WebhookError("the call has no webhook-id, webhook-timestamp and webhook-signature") from None
    expected = _sign(secret, f"{message_id}.{timestamp}.".encode() + body)
    # A secret that is being replaced leaves two signatures.
    if not any(hmac.compare_digest(expected, signature.encode()) for signature in signatures):
        raise WebhookError("the signature does not fit the body and the secret")
    if abs(time.time() - sent_s) > tolerance_s:
        raise WebhookError(f"the call was signed more than {tolerance_s:.0f} s ago")
    return _decode(body)


def _sign(secret: str, signed: bytes) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise WebhookError(f"the secret must be {_PREFIX} and base64") from None
    return b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())


def _decode(body: bytes) -> WebhookEvent:
    try:
        message: Any = msgspec.json.decode(body, type=WebhookEvent, strict=False)
    except msgspec.MsgspecError as error:
        raise WebhookError(f"the body is no job message: {error}") from None
    event: WebhookEvent = message
    return event
