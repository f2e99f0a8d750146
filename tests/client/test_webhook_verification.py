"""Webhook calls are believed when they are signed by the server's own code, and only then."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.webhooks.signing import make_secret, sign
from twolane import WebhookError, verify_webhook

SECRET = make_secret()
JOB = {
    "id": "job_1",
    "type": "embeddings",
    "model": "m",
    "status": "succeeded",
    "created_at": 1.0,
    "expires_at": 2.0,
    "counts": {"total": 1, "completed": 1, "failed": 0, "truncated": 0, "cached": 0},
}
BODY = json.dumps({"type": "job.succeeded", "timestamp": "2026-11-27T10:00:00.000Z", "data": JOB}).encode()


def signed(body: bytes = BODY, secret: str = SECRET, *, age_s: int = 0) -> dict[str, str]:
    sent_s = int(time.time()) - age_s
    signature = sign(secret, "msg_1", sent_s, body)
    return {"Webhook-Id": "msg_1", "Webhook-Timestamp": str(sent_s), "Webhook-Signature": signature}


def test_a_signed_message_is_read() -> None:
    event = verify_webhook(BODY, signed(), SECRET)
    assert (event.type, event.data.id, event.data.counts.completed) == ("job.succeeded", "job_1", 1)


def test_one_good_signature_of_several_is_enough() -> None:
    headers = signed()
    headers["Webhook-Signature"] = f"v1,bm90aGluZw== {headers['Webhook-Signature']}"
    assert verify_webhook(BODY, headers, SECRET).data.status == "succeeded"


@pytest.mark.parametrize(
    ("body", "sign_headers", "message"),
    [
        (BODY + b" ", signed, "signature"),
        (BODY, lambda: signed(secret=make_secret()), "signature"),
        (BODY, lambda: signed(age_s=600), "600|300"),
        (BODY, lambda: {**signed(), "Webhook-Id": "msg_2"}, "signature"),
        (BODY, dict, "webhook-id"),
        (BODY, lambda: {**signed(), "Webhook-Timestamp": "soon"}, "webhook-timestamp"),
        (b"[]", lambda: signed(b"[]"), "no job message"),
    ],
    ids=["other body", "other secret", "too old", "other id", "no headers", "no time", "no job"],
)
def test_anything_else_is_refused(body: bytes, sign_headers: Callable[[], dict[str, Any]], message: str) -> None:
    # Signed now: what is signed when the tests are collected may be too old when this one runs.
    with pytest.raises(WebhookError, match=message):
        verify_webhook(body, sign_headers(), SECRET)
