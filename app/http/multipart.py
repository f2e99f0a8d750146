"""Multipart form bodies as a stream: small fields are kept, a file's bytes are passed on while they arrive.

Owns the reading of such a body (RFC 7578, RFC 2046) and the limits of its fields; knows nothing of what they mean.
Written out because werkzeug 3.1's decoder, which takes bare line feeds too, gives the file a carriage return too many
when a block happens to end within a boundary: an upload has to come back as the very bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from werkzeug.http import parse_options_header

from tasks.errors import InvalidRequest

__all__ = ["Form", "Sink", "read_form"]

_MAX_FIELD_BYTES = 16 * 1024
_MAX_HEADER_BYTES = 16 * 1024
_MAX_PARTS = 32
_MAX_BOUNDARY_CHARS = 70  # RFC 2046
_LINE_END = b"\r\n"
_BLANK = b" \t"


class Sink(Protocol):
    """Takes the bytes of a file."""

    def write(self, block: bytes) -> None:
        """Append bytes."""
        ...


@dataclass(slots=True)
class Form:
    """What a body held besides the file's bytes."""

    fields: dict[str, str] = field(default_factory=dict)


def read_form(blocks: Iterator[bytes], boundary: str | None, file_field: str, open_sink: Callable[[str], Sink]) -> Form:
    """Read the whole body; the file's bytes go to the sink that is opened with its name when the file begins.

    Args:
        blocks: the body.
        boundary: as the content type names it.
        file_field: name of the field that is the file; other files are refused.
        open_sink: called once, with the file's name.

    Raises:
        InvalidRequest: it is no such form, the file is missing or there twice, or a field is too large.
    """
    if not boundary or len(boundary) > _MAX_BOUNDARY_CHARS or not boundary.isascii():
        raise InvalidRequest("the body must be multipart/form-data with a boundary")
    parts = _Parts(blocks, boundary.encode("ascii"))
    form, sink = Form(), None
    for headers, data in parts:
        name, filename = _read_disposition(headers)
        if filename is None:
            form.fields[name] = _read_field(name, data)
            continue
        if name != file_field or sink is not None:
            raise InvalidRequest(f"the form must have one file, in its field `{file_field}`", param=file_field)
        sink = open_sink(filename)
        for block in data:
            sink.write(block)
    if sink is None:
        raise InvalidRequest(f"the form has no file in its field `{file_field}`", param=file_field)
    return form


class _Parts:
    """Cuts a body at its boundaries. The bytes of a part have to be read before the next part is asked for."""

    def __init__(self, blocks: Iterator[bytes], boundary: bytes) -> None:
        self._blocks = blocks
        self._delimiter = _LINE_END + b"--" + boundary
        # The first boundary has no line before it.
        self._buffer = bytearray(_LINE_END)

    def __iter__(self) -> Iterator[tuple[bytes, Iterator[bytes]]]:
        for _ in self._read_data():  # what stands before the first boundary means nothing
            pass
        for _ in range(_MAX_PARTS):
            if self._is_last():
                return
            yield self._read_headers(), self._read_data()
        raise InvalidRequest(f"the form has more than {_MAX_PARTS} parts")

    def _more(self) -> None:
        block = next(self._blocks, None)
        if block is None:
            raise InvalidRequest("the body is not valid multipart/form-data: it ends early")
        self._buffer += block

    def _read_data(self) -> Iterator[bytes]:
        """Yield everything before the next boundary, and go behind it."""
        # As much of the end may be the begin of a boundary.
        kept = len(self._delimiter) - 1
        while (end := self._buffer.find(self._delimiter)) < 0:
            if len(self._buffer) > kept:
                yield self._take(len(self._buffer) - kept)
            self._more()
        yield self._take(end)
        self._take(len(self._delimiter))

    def _is_last(self) -> bool:
        """Read the rest of a boundary's line: two hyphens behind the last one, else blanks at most."""
        while len(self._buffer) < len(_LINE_END):
            self._more()
        if self._buffer.startswith(b"--"):
            return True
        self._take_line(allowed=_BLANK)
        return False

    def _take_line(self, allowed: bytes) -> None:
        while (end := self._buffer.find(_LINE_END)) < 0 and len(self._buffer) < _MAX_HEADER_BYTES:
            self._more()
        if end < 0 or self._take(end).strip(allowed):
            raise InvalidRequest("the body is not valid multipart/form-data: a boundary stands inside a part")
        self._take(len(_LINE_END))

    def _read_headers(self) -> bytes:
        while (end := self._buffer.find(_LINE_END * 2)) < 0 and len(self._buffer) <= _MAX_HEADER_BYTES:
            self._more()
        if end < 0 or end > _MAX_HEADER_BYTES:
            raise InvalidRequest("the form has a part whose headers are too long")
        headers = self._take(end)
        self._take(len(_LINE_END) * 2)
        return headers

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _read_disposition(headers: bytes) -> tuple[str, str | None]:
    """Return name and file name of a part; no file name: it is a field."""
    try:
        lines = headers.decode("utf-8").split("\r\n")
    except UnicodeDecodeError as error:
        raise InvalidRequest("the form has a part whose headers are not UTF-8") from error
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            _, options = parse_options_header(value.strip())
            if "name" in options:
                return options["name"], options.get("filename")
    raise InvalidRequest("the form has a part without a name")


def _read_field(name: str, data: Iterator[bytes]) -> str:
    value = bytearray()
    for block in data:
        value += block
        if len(value) > _MAX_FIELD_BYTES:
            raise InvalidRequest(f"the field is longer than {_MAX_FIELD_BYTES} bytes", param=name[:80])
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest("the field is not UTF-8", param=name[:80]) from error
