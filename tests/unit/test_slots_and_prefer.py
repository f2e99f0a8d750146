"""The Prefer header, and the slots of requests that hold a thread."""

import pytest

from app.http.prefer import Preferences, parse_prefer
from app.http.slots import BoundedSlots


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", Preferences()),
        ("respond-async", Preferences(respond_async=True)),
        ("wait=10", Preferences(wait_s=10)),
        ("Respond-Async, wait=5", Preferences(respond_async=True, wait_s=5)),
        ('respond-async; foo=bar, wait="7"', Preferences(respond_async=True, wait_s=7)),
        ("wait=-1, wait=abc, handling=lenient", Preferences()),
        ("wait=999999999", Preferences(wait_s=60)),
    ],
)
def test_a_prefer_header_is_read_and_what_is_unknown_is_ignored(header: str, expected: Preferences) -> None:
    assert parse_prefer(header) == expected


def test_the_answer_names_what_was_applied_and_nothing_else() -> None:
    assert parse_prefer("respond-async, wait=5, return=minimal").applied == {
        "Preference-Applied": "respond-async, wait=5"
    }
    assert Preferences().applied == {}


def test_no_more_callers_wait_than_there_are_slots_and_a_slot_is_released() -> None:
    slots = BoundedSlots(1)
    with slots.slot() as first, slots.slot() as second:
        assert (first, second) == (True, False)
    with pytest.raises(RuntimeError), slots.slot():
        raise RuntimeError("a waiter failed")
    with slots.slot() as third:
        assert third
