"""A form means the same however the network cuts it, and whatever stands in the file."""

from collections.abc import Iterator

from hypothesis import example, given
from hypothesis import strategies as st

from app.http.multipart import read_form
from tasks.errors import InvalidRequest

BOUNDARY = "B"
TRICKY = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--B", b"B", b"x", b"\x00"]), max_size=30).map(b"".join)
# A sender has to choose a boundary that is not in the file.
BODIES = (TRICKY | st.binary(max_size=300)).filter(lambda body: b"\r\n--B" not in b"\r\n" + body + b"\r\n")


class Memory:
    def __init__(self) -> None:
        self.data = b""

    def write(self, block: bytes) -> None:
        self.data += block


def cut(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


def form_of(content: bytes, value: str) -> bytes:
    return (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        + content
        + b'\r\n--B\r\nContent-Disposition: form-data; name="note"\r\n\r\n'
        + value.encode()
        + b"\r\n--B--\r\n"
    )


@given(BODIES, st.text(alphabet="abcäß語", max_size=20), st.integers(1, 400))
@example(b"\r", "", 1)
@example(b"ends with a line\r\n", "", 7)
def test_the_files_bytes_do_not_depend_on_the_blocks(content: bytes, value: str, size: int) -> None:
    memory = Memory()
    form = read_form(cut(form_of(content, value), size), BOUNDARY, "file", lambda _: memory)
    assert memory.data == content
    assert form.fields == {"note": value}


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes_are_read_or_refused(body: bytes, size: int) -> None:
    try:
        read_form(cut(body, size), BOUNDARY, "file", lambda _: Memory())
    except InvalidRequest:
        return


@given(BODIES, st.data())
def test_a_form_that_was_cut_off_is_refused(content: bytes, data: st.DataObject) -> None:
    whole = form_of(content, "x").removesuffix(b"--\r\n")
    cut_off = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        read_form(cut(cut_off, 50), BOUNDARY, "file", lambda _: Memory())
    except InvalidRequest:
        return
    raise AssertionError("it was believed")
