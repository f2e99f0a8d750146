"""Bodies are counted while they are read, and refused rather than repaired."""

import gzip
import io
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder

from app.http.bodies import ApiRequest, parse_json, read_json, stream_body
from tasks.errors import InvalidRequest, TooLarge


class Trickle(io.RawIOBase):
    """An endless body that remembers how much of it was read."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def read(self, size: int = -1) -> bytes:
        self.read_bytes += size
        return b"x" * size


def request(body: bytes, **headers: str) -> ApiRequest:
    builder = EnvironBuilder(method="POST", data=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
    return ApiRequest(builder.get_environ())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"null",
        b"\xff\xfe{}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b"[" * 20_000 + b"]" * 20_000,
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="JSON"):
        parse_json(body)


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_the_refusal_does_not_repeat_the_body() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_json(b'{"input": "a secret sentence}')
    assert "secret" not in refused.value.message


def test_a_body_over_the_limit_is_refused_by_its_announcement_without_reading_it() -> None:
    stream = Trickle()
    environ = {**request(b"").environ, "wsgi.input": stream, "CONTENT_LENGTH": "1000000"}
    with pytest.raises(TooLarge):
        read_json(ApiRequest(environ), 1000)
    assert stream.read_bytes == 0


def test_a_body_without_a_length_is_counted_and_hardly_more_than_the_limit_is_read() -> None:
    stream = Trickle()
    environ = {**request(b"").environ, "wsgi.input": stream}
    environ.pop("CONTENT_LENGTH", None)
    with pytest.raises(TooLarge):
        list(stream_body(ApiRequest(environ), 200_000))
    assert stream.read_bytes < 400_000


def test_a_body_that_ends_before_its_announced_end_is_refused() -> None:
    environ = request(b'{"a": 1}').environ
    environ["CONTENT_LENGTH"] = "100"
    with pytest.raises(InvalidRequest, match="ended after 8 of 100 bytes"):
        read_json(ApiRequest(environ), 1000)


def test_a_gzip_body_is_unpacked() -> None:
    for name in ("gzip", "x-gzip", "GZIP"):
        assert read_json(request(gzip.compress(b'{"a": 1}'), Content_Encoding=name), 1000) == {"a": 1}


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.lists(st.integers(0, 9), min_size=8, max_size=8))
def test_all_members_of_a_gzip_body_are_read_and_zeros_behind_them_passed_over(
    parts: list[bytes], zeros: list[int]
) -> None:
    packed = b"".join(gzip.compress(part) + bytes(pad) for part, pad in zip(parts, zeros, strict=False))
    assert b"".join(stream_body(request(packed, Content_Encoding="gzip"), 10_000)) == b"".join(parts)


def test_a_gzip_body_of_many_large_members_is_read_whole() -> None:
    parts = [random.Random(seed).randbytes(100_000) for seed in range(5)]
    packed = b"".join(map(gzip.compress, parts))
    assert b"".join(stream_body(request(packed, Content_Encoding="gzip"), 1_000_000)) == b"".join(parts)


@pytest.mark.parametrize(
    "rest",
    [b"x", b"\0\0{}\n", b"\x1f", gzip.compress(b"{}")[:-3]],
    ids=["text", "zeros then text", "magic byte", "cut member"],
)
def test_anything_else_behind_a_gzip_stream_is_refused_and_not_dropped(rest: bytes) -> None:
    body = gzip.compress(b'{"a": 1}') + rest
    with pytest.raises(InvalidRequest, match="gzip"):
        read_json(request(body, Content_Encoding="gzip"), 1000)


def test_a_gzip_bomb_is_refused_before_it_is_whole_in_memory() -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    seen: list[int] = []
    blocks = stream_body(request(bomb, Content_Encoding="gzip"), 1_000_000)
    with pytest.raises(TooLarge):
        seen.extend(len(block) for block in blocks)
    assert max(seen, default=0) <= 65_536


def test_what_unpacks_to_hundreds_of_times_its_size_is_refused_however_much_is_allowed() -> None:
    with pytest.raises(TooLarge, match="unpacks"):
        list(stream_body(request(gzip.compress(b"\n" * 50_000_000), Content_Encoding="gzip"), 1_000_000_000))
    text = b"the same line again, as tests and crawlers send it\n" * 20_000
    assert b"".join(stream_body(request(gzip.compress(text), Content_Encoding="gzip"), 10_000_000)) == text


@pytest.mark.parametrize(
    "body", [b"not gzip", gzip.compress(b'{"a": 1}')[:-9], zlib.compress(b"{}")], ids=["text", "cut off", "zlib"]
)
def test_a_broken_gzip_body_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="gzip"):
        read_json(request(body, Content_Encoding="gzip"), 1000)


def test_an_unknown_packing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="br"):
        read_json(request(b"{}", Content_Encoding="br"), 1000)
