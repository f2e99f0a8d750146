import numpy as np
import pytest

from tasks.frames import FrameError, pack, peek, unpack


def test_a_frame_gives_back_its_header_and_columns() -> None:
    columns = {
        "values": np.arange(12, dtype=np.float32).reshape(3, 4),
        "half": np.zeros((0, 8), dtype=np.float16),
        "tokens": np.array([1, 2, 3], dtype=np.int32),
        "truncated": np.array([True, False, True]),
    }
    header, unpacked = unpack(pack({"kind": "outcomes", "n": 3}, columns))
    assert header == {"kind": "outcomes", "n": 3}
    for name, column in columns.items():
        assert unpacked[name].dtype == column.dtype
        np.testing.assert_array_equal(unpacked[name], column)


def test_a_big_endian_array_is_stored_little_endian() -> None:
    _, columns = unpack(pack({}, {"values": np.array([1.5, -2.0], dtype=">f4")}))
    assert columns["values"].dtype == np.dtype("<f4")
    assert columns["values"].tolist() == [1.5, -2.0]


def test_peek_reads_the_header_alone() -> None:
    frame = pack({"id": "a"}, {"values": np.ones(3, dtype=np.float32)})
    assert peek(frame)["id"] == "a"


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\x01",
        b"\xff\xff\xff\xff{}",
        b"\x02\x00\x00\x00{}",
        pack({}, {"v": np.ones(3, np.float32)})[:-1],
        pack({}) + b"x",
    ],
)
def test_bytes_that_are_no_frame_are_refused(broken: bytes) -> None:
    with pytest.raises(FrameError):
        unpack(broken)


def test_an_object_array_is_refused() -> None:
    with pytest.raises(FrameError):
        pack({}, {"values": np.array([object()])})
