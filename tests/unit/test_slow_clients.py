"""The pace of clients: who is too slow is cut off, and a stream that was cut off does not read as complete."""

import socket
from collections.abc import Iterator

import pyarrow as pa
import pytest

from app.http import slow_clients
from app.http.slow_clients import Pace, ReaderTooSlow, limit_stalled_readers, paced
from app.jobs import arrow
from tasks.errors import BodyTooSlow


class Clock:
    """Time that passes when it is said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(slow_clients.time, "monotonic", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def lines() -> Iterator[bytes]:
    try:
        for number in range(1000):
            yield b"%d\n" % number * 1000
    except ReaderTooSlow:
        yield b"cut off\n"


def read(pieces: Iterator[bytes], clock: Clock, bytes_s: float) -> list[bytes]:
    """Read a stream at that rate."""
    got = []
    for piece in pieces:
        got.append(piece)
        clock.now_s += len(piece) / bytes_s
    return got


def test_a_reader_at_the_floor_gets_all_and_a_slower_one_is_cut_off_and_sees_it(clock: Clock) -> None:
    whole = b"".join(lines())
    assert b"".join(read(paced(lines(), 4096, 1e9), clock, 5000)) == whole
    cut = read(paced(lines(), 4096, 1e9), clock, 1500)
    assert len(b"".join(cut)) < len(whole)
    assert cut[-1] == b"cut off\n"


def test_a_stream_has_an_end_for_fast_readers_too(clock: Clock) -> None:
    assert read(paced(lines(), 4096, 100), clock, 20_000)[-1] == b"cut off\n"


def test_the_time_in_which_results_are_made_is_not_their_reader_s(clock: Clock) -> None:
    def slowly_made() -> Iterator[bytes]:
        for _ in range(5):
            clock.now_s += 1000
            yield b"x" * 100

    assert len(list(paced(slowly_made(), 4096, 1e9))) == 5


def test_the_generator_behind_a_stream_is_closed_with_it() -> None:
    closed = []

    def pieces() -> Iterator[bytes]:
        try:
            yield b"x"
            yield b"y"
        finally:
            closed.append(True)

    stream = paced(pieces(), 4096, 10)
    next(stream)
    stream.close()  # type: ignore[attr-defined] # it is a generator
    assert closed == [True]


def test_a_sender_is_refused_only_when_it_is_behind_by_more_than_the_grace() -> None:
    pace = Pace(4096)
    pace.check_sender(20.0, 0)
    pace.check_sender(100.0, 4096 * 101)
    with pytest.raises(BodyTooSlow):
        pace.check_sender(30.0, 1500 * 30)


def test_an_arrow_stream_that_was_cut_off_is_refused_by_its_readers() -> None:
    table = pa.table({"a": list(range(1000))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
        size = sink.tell()
    cut = sink.getvalue().to_pybytes()[:size] + arrow._BROKEN_STREAM
    with pytest.raises((OSError, pa.ArrowException)):
        pa.ipc.open_stream(cut).read_all()


def test_connections_get_the_limit_for_stalled_readers_from_their_listener() -> None:
    assert not limit_stalled_readers(1)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert not limit_stalled_readers(bound.getsockname()[1])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert limit_stalled_readers(listener.getsockname()[1])
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
            with connection:
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) > 0
