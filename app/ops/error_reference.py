"""The page of all error codes, written from the error tree: `python -m app.ops.error_reference`.

Owns the text of `docs/errors.md`; a test fails when it differs from what this module renders. Knows no error by name.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path

from app.http.errors import status_of
from tasks.errors import ConfigError, ItemFailed, TwolaneError

__all__ = ["OUTPUT", "error_classes", "render_error_page"]

_HOMES = ("tasks.errors", "app.http.errors")
OUTPUT = Path("docs/errors.md")
_HEAD = """# Errors

Every answer of the API that is not a success has the same body, on every path:

    {"error": {"message": "...", "type": "...", "param": "model", "code": "model_not_found"}, "detail": "..."}

`code` is permanent: rely on it, not on the message. `param` names the field where there is one. Where "again" says yes
the very same request may succeed later; `Retry-After`, where it is sent, says when. An address that does not exist
answers 404 `route_not_found`, a method that it does not have 405 `method_not_allowed`. An item that failed inside a job
has its code in the results, and its neighbours have their vectors; codes that are met there alone have `item` for their
status. This page is written by `make docs` from the error tree.

What is not HTTP never reaches the API: the web server in front answers it by itself, without a body and without an
`x-request-id`, and closes the connection. That is 400 for a request line, a header, a length or a transfer encoding
that cannot be read, 414 for an address above 64 KiB, 431 for more than 100 headers, or for more than some 64 KiB of
them; a connection that speaks HTTP/2, or does not finish its headers within a minute, is closed without an answer. A
body whose chunks are broken reads as one that ends there.

| code | status | again | meaning |
|---|---|---|---|
"""


def error_classes(base: type[TwolaneError] = TwolaneError) -> Iterator[type[TwolaneError]]:
    """Yield all classes of the tree, each before those that stand under it."""
    yield base
    for child in base.__subclasses__():
        # A class that somebody else derived from ours is no part of our API.
        if child.__module__ in _HOMES:
            yield from error_classes(child)


def render_error_page() -> str:
    """Return `docs/errors.md`: a line for each error that a client can meet, by status and code."""
    # A process that must not start answers nobody.
    rows = {_row(error) for error in error_classes() if not issubclass(error, ConfigError)}
    return _HEAD + "".join(
        f"| `{code}` | {status} | {again} | {meaning} |\n" for status, code, again, meaning in sorted(rows)
    )


def _row(error: type[TwolaneError]) -> tuple[str, str, str, str]:
    meaning = (inspect.getdoc(error) or "").partition("\n\n")[0].replace("\n", " ")
    # Kinds of failed items stand in results; a call that fails over one answers `item_failed`.
    status = "item" if issubclass(error, ItemFailed) and error is not ItemFailed else str(status_of(error))
    return status, error.code, "yes" if error.retryable else "no", meaning


def main() -> None:
    """Write the page into the working directory."""
    OUTPUT.write_text(render_error_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
