"""Multipart form bodies as a stream: small fields are kept, a file's bytes are passed on while they arrive.

Owns the limits of such a form and its refusals; the parsing (RFC 7578, RFC 2046) is the package `multipart`'s, which
keeps a block and a boundary in memory. Knows nothing of what the fields mean.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from multipart import MultipartError, MultipartSegment, PushMultipartParser

from tasks.errors import InvalidRequest

__all__ = ["Form", "Sink", "read_form"]

_MAX_FIELD_BYTES = 16 * 1024
_MAX_HEADER_BYTES = 16 * 1024
_MAX_PARTS = 32
_MAX_BOUNDARY_CHARS = 70  # RFC 2046


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
    form = _FormReader(file_field, open_sink)
    try:
        with PushMultipartParser(boundary, max_header_size=_MAX_HEADER_BYTES, max_segment_count=_MAX_PARTS) as parser:
            for block in blocks:
                # An empty block would end the parser.
                for event in parser.parse(block) if block else ():
                    form.take(event)
    except MultipartError as error:
        raise InvalidRequest(f"the body is not valid multipart/form-data: {error}") from error
    if form.sink is None:
        raise InvalidRequest(f"the form has no file in its field `{file_field}`", param=file_field)
    return form.form


class _FormReader:
    """Takes the parser's events: the head of a part, its bytes, and None at its end."""

    def __init__(self, file_field: str, open_sink: Callable[[str], Sink]) -> None:
        self.form = Form()
        self.sink: Sink | None = None
        self._file_field, self._open_sink = file_field, open_sink
        self._name, self._value, self._in_file = "", bytearray(), False

    def take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, MultipartSegment):
            self._begin(event)
        elif event is None:
            self._end()
        elif self._in_file and self.sink is not None:
            self.sink.write(bytes(event))
        else:
            self._value += event
            if len(self._value) > _MAX_FIELD_BYTES:
                raise InvalidRequest(f"the field is longer than {_MAX_FIELD_BYTES} bytes", param=self._name[:80])

    def _begin(self, part: MultipartSegment) -> None:
        self._name, self._value, self._in_file = part.name or "", bytearray(), part.filename is not None
        if part.filename is None:
            return
        if self._name != self._file_field or self.sink is not None:
            message = f"the form must have one file, in its field `{self._file_field}`"
            raise InvalidRequest(message, param=self._file_field)
        self.sink = self._open_sink(part.filename)

    def _end(self) -> None:
        if self._in_file:
            return
        try:
            self.form.fields[self._name] = self._value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest("the field is not UTF-8", param=self._name[:80]) from error
