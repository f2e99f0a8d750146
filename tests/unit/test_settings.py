"""Settings that contradict each other stop a process at its start, with the names of both."""

from typing import Any

import pytest
from pydantic import ValidationError

from config.settings import Settings


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"max_text_chars": 2_000_000}, ("TWOLANE_MAX_LINE_BYTES", "TWOLANE_MAX_TEXT_CHARS")),
        ({"max_line_bytes": 2**20}, ("TWOLANE_MAX_LINE_BYTES", "TWOLANE_MAX_TEXT_CHARS")),
        ({"max_call_bytes": 2**20}, ("TWOLANE_MAX_CALL_BYTES", "TWOLANE_MAX_TEXT_CHARS")),
        ({"max_body_bytes": 2**20}, ("TWOLANE_MAX_BODY_BYTES", "TWOLANE_MAX_TEXT_CHARS")),
        ({"max_body_bytes": 2**30}, ("TWOLANE_MAX_BODY_BYTES", "TWOLANE_BODY_MEMORY_BYTES")),
        ({"max_line_bytes": 2**40}, ("TWOLANE_MAX_LINE_BYTES", "TWOLANE_MAX_UPLOAD_BYTES")),
        ({"web_threads": 8}, ("web_threads", "16")),
    ],
    ids=str,
)
def test_limits_on_one_thing_in_different_units_go_together(given: dict[str, Any], named: tuple[str, str]) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(_env_file=None, **given)
    assert all(name in str(refused.value) for name in named)
