"""Multipart form bodies as a stream: small fields are kept, a file's bytes are passed on while they arrive.

Owns the reading of such a body (werkzeug's decoder) and the limits of its fields. Knows nothing of what they mean.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData

from tasks.errors import InvalidRequest

__all__ = ["Form", "Sink", "read_form"]

_MAX_FIELD_BYTES = 16 * 1024
_MAX_PARTS = 32
# Headers of a part have to fit, with one block of the body.
_MAX_BUFFER_BYTES = 1 << 20
_MAX_BOUNDARY_CHARS = 200


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
    decoder = MultipartDecoder(boundary.encode("ascii"), _MAX_BUFFER_BYTES, max_parts=_MAX_PARTS)
    reader = _Reader(file_field, open_sink)
    try:
        for block in blocks:
            decoder.receive_data(block)
            reader.take_events(decoder)
        decoder.receive_data(None)
        reader.take_events(decoder)
    except RequestEntityTooLarge as error:
        raise InvalidRequest("the form has too many parts, or headers that are too long") from error
    except ValueError as error:
        raise InvalidRequest("the body is not valid multipart/form-data") from error
    if reader.sink is None:
        raise InvalidRequest(f"the form has no file in its field `{file_field}`", param=file_field)
    return reader.form


class _Reader:
    """Sorts the parts of a form."""

    def __init__(self, file_field: str, open_sink: Callable[[str], Sink]) -> None:
        self.form = Form()
        self.sink: Sink | None = None
        self._file_field = file_field
        self._open_sink = open_sink
        self._in_file = False
        self._name = ""
        self._value = bytearray()

    def take_events(self, decoder: MultipartDecoder) -> None:
        event = decoder.next_event()
        while not isinstance(event, NeedData | Epilogue):
            self._take(event)
            event = decoder.next_event()

    def _take(self, event: Event) -> None:
        if isinstance(event, File):
            self._begin_file(event)
        elif isinstance(event, Field):
            self._in_file, self._name = False, event.name or ""
            self._value.clear()
        elif isinstance(event, Data) and self._in_file and self.sink is not None:
            self.sink.write(event.data)
        elif isinstance(event, Data):
            self._extend_field(event)

    def _begin_file(self, event: File) -> None:
        if event.name != self._file_field or self.sink is not None:
            raise InvalidRequest(
                f"the form must have one file, in its field `{self._file_field}`", param=self._file_field
            )
        self._in_file = True
        self.sink = self._open_sink(event.filename)

    def _extend_field(self, event: Data) -> None:
        self._value += event.data
        if len(self._value) > _MAX_FIELD_BYTES:
            raise InvalidRequest(f"the field is longer than {_MAX_FIELD_BYTES} bytes", param=self._name[:80] or None)
        if not event.more_data:
            self.form.fields[self._name] = self._value.decode("utf-8")
