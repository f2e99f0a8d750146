"""Interactive requests and replies survive the round trip as bytes, and other bytes are refused."""

import struct

import numpy as np
import pytest

from tasks.engine import ItemError, JobParams, Outcomes, Windows, Work
from tasks.errors import InvalidRequest, LaneFull, TwolaneError, WorkError
from tasks.frames import FrameError
from tasks.interactive import protocol
from tasks.lanes import Service


def as_pushed(body: bytes, deadline_ms: float = 1234.5) -> bytes:
    """What push_request.lua makes of a request."""
    return struct.pack("<d", deadline_ms) + protocol.with_time_left(body, 50.0)[8:]


def test_a_request_survives_the_way() -> None:
    params = JobParams("Do", 8, "start", long=Windows("max", 100, overlap=5, most=3))
    work = Work("fake", "rerank", ["d é", ""], ["q", "q"], Service.INTERACTIVE, params, urgent=True)
    request = protocol.decode_request(as_pushed(protocol.encode_request(7, "replies", 42, work)))
    assert (request.number, request.reply_key, request.deadline_ms, request.tokens) == (7, "replies", 1234.5, 42)
    assert request.work == work


def test_a_query_is_written_once_and_a_long_text_weighs_by_its_bytes() -> None:
    query = "a long query " * 1000
    work = Work("fake", "rerank", ["a", "b", "c", "d"], [query, query, "other", query], Service.INTERACTIVE)
    body = protocol.encode_request(1, "replies", 42, work)
    assert len(body) < len(query) + 1000
    request = protocol.decode_request(as_pushed(body))
    assert request.work.queries == [query, query, "other", query]
    assert request.tokens == (len(body) - 4) // protocol.BYTES_PER_TOKEN


def test_outcomes_survive_the_way() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    outcomes = Outcomes(values, np.array([3, 4], np.int32), np.array([True, False]), {1: ItemError("c", "m")})
    reply = protocol.encode_outcomes(2**40, outcomes)
    got = protocol.decode_reply(reply)
    assert protocol.reply_id(reply) == 2**40
    np.testing.assert_array_equal(got.values, values)
    np.testing.assert_array_equal(got.tokens, outcomes.tokens)
    np.testing.assert_array_equal(got.truncated, outcomes.truncated)
    assert got.errors == outcomes.errors


@pytest.mark.parametrize(
    "error", [LaneFull("full", retry_after_s=7.5), InvalidRequest("no", param="input"), WorkError("x")]
)
def test_an_error_survives_the_way_with_its_class_and_fields(error: TwolaneError) -> None:
    with pytest.raises(type(error)) as raised:
        protocol.decode_reply(protocol.encode_failure(1, error))
    assert vars(raised.value) == vars(error)


def test_an_error_class_of_a_newer_worker_becomes_failed_work() -> None:
    class Newer(WorkError):
        pass

    with pytest.raises(WorkError, match="news"):
        protocol.decode_reply(protocol.encode_failure(1, Newer("news")))


@pytest.mark.parametrize(
    "element", [b"", b"\0" * 11, b"\0" * 12 + b"\xff\xff\xff\xff", as_pushed(b"\0\0\0\0\2\0\0\0{}")]
)
def test_strangers_bytes_are_refused(element: bytes) -> None:
    with pytest.raises(FrameError):
        protocol.decode_request(element)
    if len(element) < 8:
        with pytest.raises(FrameError):
            protocol.reply_id(element)
