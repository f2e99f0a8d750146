"""Passwords in text: the one place that takes them out before anybody reads it.

Owns what counts as a secret in an URL: all that stands before the last @, and query parameters that are named like one.
Every log line and every listing of settings goes through it. Knows no setting.
"""

import re

__all__ = ["MASK", "mask_secrets"]

MASK = "***"
# A password may hold any character, @ and / too, so all up to the last @ of the word is taken for user and password.
_USER_INFO = re.compile(r"(?<=://)\S*@")
_PARAMETER = re.compile(r"(?i)([?&](?:[\w-]*password|passwd|secret|token|[\w-]*key)=)[^&\s'\"]+")


def mask_secrets(text: str) -> str:
    """Return the text with user and password of its URLs, and their secret query parameters, replaced by `***`."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{MASK}", _USER_INFO.sub(f"{MASK}@", text))
