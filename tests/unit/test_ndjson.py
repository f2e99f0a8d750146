"""NDJSON: lines out of blocks of any cut, and refusals that name the line."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.ndjson import read_items, split_lines
from app.submission.payload import PayloadHash
from tasks.errors import InvalidRequest
from tasks.jobs.chunking import Item


def items(body: bytes, query: str | None = None, *, rerank: bool = False) -> list[Item]:
    return list(read_items(split_lines(iter([body]), 1000), query, rerank=rerank))


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=20), st.integers(1, 7))
def test_lines_do_not_depend_on_how_the_body_was_cut_into_blocks(lines: list[bytes], size: int) -> None:
    body = b"".join(line + b"\n" for line in lines)
    blocks = (body[i : i + size] for i in range(0, len(body), size))
    assert list(split_lines(blocks, 1000)) == lines


def test_the_last_line_needs_no_end() -> None:
    assert items(b'"a"\n"b"') == [Item("a"), Item("b")]


def test_strings_objects_and_blank_lines_and_dos_ends_are_understood() -> None:
    assert items(b'"a"\r\n\n{"id": "x", "text": "b", "more": 1}\n{"text": "c"}\n  \n') == [
        Item("a"),
        Item("b", id="x"),
        Item("c"),
    ]


def test_an_upload_of_blank_lines_is_refused_before_its_end() -> None:
    with pytest.raises(InvalidRequest, match="blank"):
        items(b'"a"\n' + b"\n" * 200_000)


def test_byte_order_marks_are_skipped_where_files_were_put_together() -> None:
    assert items(b'\xef\xbb\xbf"a"\n"b"\n\xef\xbb\xbf{"text": "c"}\n\xef\xbb\xbf\n') == [
        Item("a"),
        Item("b"),
        Item("c"),
    ]


@pytest.mark.parametrize(
    "line",
    [b"{", b"1", b"null", b"[]", b'{"id": "a"}', b'{"text": 1}', b'{"id": 1.5, "text": "a"}', b'"\\ud800',
     b'{"id": true, "text": "a"}', b'{"id": ["x"], "text": "a"}', b'{"id": "\\ud800", "text": "a"}', b"\xff", b"NaN",
     b'["\\ud800", NaN]', b"[" * 2000, b'{"custom_id": "' + b"x" * 513 + b'", "text": "a"}'],
)  # fmt: skip
def test_a_bad_line_is_refused_with_its_number(line: bytes) -> None:
    with pytest.raises(InvalidRequest, match="line 3") as refused:
        items(b'"a"\n\n' + line + b"\n")
    assert refused.value.param == "line 3"


def test_ids_may_be_whole_numbers_and_may_be_called_custom_id() -> None:
    lines = b'{"id": 17, "text": "a"}\n{"custom_id": "c", "text": "b"}\n{"custom_id": -3, "id": null, "text": "c"}\n'
    assert [item.id for item in items(lines)] == ["17", "c", "-3"]
    assert items(b'{"custom_id": "c", "id": "i", "text": "a"}')[0].id == "i"
    longest = "é" * 256
    assert items(f'{{"id": "{longest}", "text": "a"}}'.encode())[0].id == longest


@pytest.mark.parametrize("half", [b"\\ud83d", b"\\udc00 text", b"\xed\xa0\xbd"])
def test_a_text_with_half_a_surrogate_pair_fails_alone_and_names_its_line(half: bytes) -> None:
    first, bad, last = items(b'"a"\n\n{"id": 7, "text": "cut ' + half + b'"}\n"b"\n')
    assert (first, last) == (Item("a"), Item("b"))
    assert (bad.text, bad.id) == ("", "7")
    assert bad.refused == "line 3: the text has half of a surrogate pair, which is no character"
    pair = items(b'{"text": "a", "query": "' + half + b'"}', rerank=True)[0]
    assert (pair.text, pair.query, bool(pair.refused)) == ("", "", True)


def test_half_a_surrogate_pair_in_a_field_that_is_not_read_does_no_harm() -> None:
    assert items(b'{"text": "a", "title": "\\ud83d"}') == [Item("a")]


def test_a_line_over_the_limit_is_refused_while_it_comes() -> None:
    read = 0

    def blocks() -> Iterator[bytes]:
        nonlocal read
        yield b'"first"\n"'
        while True:
            read += 100
            yield b"x" * 100

    with pytest.raises(InvalidRequest, match="line 2"):
        list(split_lines(blocks(), 1000))
    assert read < 2000


def test_pairs_take_their_query_from_the_line_or_from_the_address() -> None:
    assert items(b'"a"\n{"text": "b", "query": "own"}', "shared", rerank=True) == [
        Item("a", query="shared"),
        Item("b", query="own"),
    ]
    with pytest.raises(InvalidRequest, match=r"line 1.*query"):
        items(b'"a"', None, rerank=True)


def test_two_payloads_are_the_same_when_their_parameters_and_lines_are() -> None:
    def settled(parameters: bytes, *blocks: bytes) -> str:
        payload = PayloadHash("key", parameters, streamed=True)
        list(read_items(payload.follow(split_lines(iter(blocks), 1000)), None, rerank=False))
        idempotency = payload.settle()
        assert idempotency is not None
        return idempotency.payload_hash

    assert settled(b"p", b'"a', b'bc"\n') == settled(b"p", b'"ab', b'c"')
    assert settled(b"p", b'"abc"') != settled(b"q", b'"abc"')
    assert settled(b"p", b'"a"\n"b"') != settled(b"p", b'"b"\n"a"')
    assert settled(b"p", b'"a"\n\n"b"') != settled(b"p", b'"a"\n"b"')
    assert PayloadHash(None, b"p").settle() is None
