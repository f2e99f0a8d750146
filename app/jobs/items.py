"""An item as callers write it: a text, or an object with a text and an id of theirs.

Owns the forms that are taken, the limit of an id, and the item that fails from the start because its text is none.
Knows neither lines nor bodies.
"""

from collections.abc import Mapping
from typing import Any

from app.http.bodies import is_broken
from tasks.jobs.chunking import Item

__all__ = ["ITEM_FORMS", "MAX_ID_BYTES", "BadItemError", "read_id", "read_item", "refuse_surrogates"]

# An id travels with its text, stands in Redis as long as the job does, and comes back with the result.
MAX_ID_BYTES = 512
ITEM_FORMS = "a string, or an object with a text and, if you like, an id"


class BadItemError(ValueError):
    """The value is no item; the message says what it must be."""


def read_item(value: Any) -> Item:
    """Return the item that a string or an object with `text` and `id` stands for.

    Raises:
        BadItemError: it is something else, or its id is none.
    """
    if isinstance(value, str):
        return Item(value)
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise BadItemError(f"must be {ITEM_FORMS}")
    return Item(value["text"], id=read_id(value))


def read_id(value: Mapping[str, Any]) -> str | None:
    """Return the caller's id of an object: its `id`, or `custom_id` as lines of batches call it; None: it has none.

    Numbers of databases are taken as text.

    Raises:
        BadItemError: it is neither a string nor a whole number, or too long.
    """
    name = "id" if value.get("id") is not None else "custom_id"
    found = value.get(name)
    if found is None:
        return None
    # A bool is an int, and no id.
    if not isinstance(found, str) and type(found) is not int:
        raise BadItemError(f"has an `{name}` that is neither a string nor a whole number")
    text = str(found)
    if is_broken(text):
        raise BadItemError(f"has an `{name}` with half of a surrogate pair, which is no character")
    if len(text.encode()) > MAX_ID_BYTES:
        raise BadItemError(f"has an `{name}` of {len(text.encode())} bytes; at most {MAX_ID_BYTES} are taken")
    return text


def refuse_surrogates(item: Item, place: str) -> Item:
    r"""Return the item, or in its place one that fails: half of a surrogate pair (`\ud83d`) is no character.

    Programs that count in UTF-16 cut emojis in two; the other texts of a corpus should not suffer from it.

    Args:
        item: as it was read.
        place: names it in the error, `line 17`.
    """
    if not is_broken(item.text) and not is_broken(item.query or ""):
        return item
    query = None if item.query is None else ""
    message = f"{place}: the text has half of a surrogate pair, which is no character"
    return Item("", query=query, id=item.id, refused=message)
