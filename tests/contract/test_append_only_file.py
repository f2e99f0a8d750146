"""What is no command in the embedded server's file: cut off at the end, never in the middle."""

from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from stack.append_only_file import DamagedFile, cut_garbage
from stack.embedded_redis import EmbeddedServer

GARBAGE = b"\x00\xffnot a command\r\n" * 20


def fill(folder: Path) -> Path:
    """A server's data, and the file that it wrote last."""
    with EmbeddedServer(folder) as server, Redis.from_url(server.url) as redis:
        for number in range(100):
            redis.set(f"key {number}", b"*2\r\n$3\r\n" + bytes(50))
        with redis.pipeline(transaction=True) as transaction:
            transaction.set("one", "1").set("two", "2").execute()
    (file,) = (folder / "appendonlydir").glob("*.incr.aof")
    return file


def count(folder: Path) -> tuple[int, str]:
    with EmbeddedServer(folder) as server, Redis.from_url(server.url) as redis:
        return int(redis.dbsize()), server.mended


def test_garbage_behind_the_data_is_cut_off_and_kept_and_nothing_else_is_lost(tmp_path: Path) -> None:
    file = fill(tmp_path)
    whole = file.stat().st_size
    with file.open("ab") as damaged:
        damaged.write(GARBAGE)
    keys, mended = count(tmp_path)
    assert keys == 102
    assert f"{len(GARBAGE)} bytes" in mended
    assert file.with_name(f"{file.name}.cut-{whole}").read_bytes() == GARBAGE
    assert count(tmp_path) == (102, "")


def test_a_transaction_that_was_not_finished_before_the_garbage_goes_as_a_whole(tmp_path: Path) -> None:
    file = fill(tmp_path)
    data = file.read_bytes()
    start = data.rindex(b"*1\r\n$5\r\nMULTI")
    file.write_bytes(data[: data.rindex(b"*1\r\n$4\r\nEXEC")] + GARBAGE)
    assert cut_garbage(tmp_path)
    assert file.stat().st_size == start
    assert count(tmp_path)[0] == 100


def spoil(data: bytes) -> bytes:
    middle = data.index(b"*3\r\n", len(data) // 2)
    return data[:middle] + GARBAGE + data[middle:]


@pytest.mark.parametrize("start", [cut_garbage, lambda folder: EmbeddedServer(folder).start()])
def test_damage_in_the_middle_is_left_alone_with_the_way_out(tmp_path: Path, start: Callable[[Path], object]) -> None:
    file = fill(tmp_path)
    file.write_bytes(spoilt := spoil(file.read_bytes()))
    with pytest.raises(DamagedFile, match=r"truncate -s \d+ /"):
        start(tmp_path)
    assert file.read_bytes() == spoilt


def test_a_folder_without_data_has_nothing_to_cut(tmp_path: Path) -> None:
    assert cut_garbage(tmp_path) == ""
