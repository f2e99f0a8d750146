"""Secrets and signatures of webhooks, after https://www.standardwebhooks.com (symmetric, version `v1`).

Owns the form of a secret and what is signed. Pure.
"""

import base64
import binascii
import hashlib
import hmac
import secrets

__all__ = ["check_secret", "make_secret", "sign"]

_PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 24, 64
_NEW_BYTES = 32


def make_secret() -> str:
    """Return a new secret of 256 random bits."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_NEW_BYTES)).decode()


def check_secret(secret: str) -> str:
    """Return the secret if it is one.

    Raises:
        ValueError: it is not; the message does not repeat it.
    """
    try:
        size = len(_key(secret))
    except (binascii.Error, ValueError):
        size = 0
    if not secret.startswith(_PREFIX) or not _LEAST_BYTES <= size <= _MOST_BYTES:
        raise ValueError(f"must be {_PREFIX} and the base64 of {_LEAST_BYTES} to {_MOST_BYTES} bytes")
    return secret


def sign(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the value of `webhook-signature`: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`."""
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
