"""Lines that wait to be written together: whole, in order, none lost at a normal end, and counted when dropped."""

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from config import log_buffer as loglines
from config.log_buffer import LineHandler
from tests.support.polling import wait_until

# Two processes with four threads each; what the lines hold is longer than what a pipe takes in one piece.
CHATTY = """
import logging, sys, threading
from config.logging import configure_logging
from config.settings import Settings
configure_logging(Settings(_env_file=None, log_format="json"), sys.argv[1], waiting=["chatty"])
log = logging.getLogger("chatty")
def chat(thread):
    for number in range(500):
        log.info("%s %d %d %s", sys.argv[1], thread, number, "x" * (number % 300))
threads = [threading.Thread(target=chat, args=(thread,)) for thread in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


class Output(io.TextIOWrapper):
    """A stream that remembers."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8", write_through=True)

    def lines(self) -> list[str]:
        return cast("io.BytesIO", self.buffer).getvalue().decode().splitlines()


@pytest.fixture
def output() -> Output:
    return Output()


@pytest.fixture
def handler(output: Output) -> Iterator[LineHandler]:
    handler = LineHandler(output, ["many"])
    loggers = [logging.getLogger("many"), logging.getLogger("few")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


def test_a_line_that_cannot_wait_comes_at_once_and_behind_those_that_wait(output: Output, handler: LineHandler) -> None:
    handler.acquire()  # its thread has to wait
    for number in range(3):
        logging.getLogger("many").info("waits %d", number)
    assert output.lines() == []
    logging.getLogger("few").info("now")
    assert output.lines() == ["waits 0", "waits 1", "waits 2", "now"]
    logging.getLogger("many").info("waits 3")
    logging.getLogger("many").warning("bad")
    assert output.lines()[-2:] == ["waits 3", "bad"]
    handler.release()


@pytest.mark.usefixtures("handler")
def test_lines_that_wait_come_by_themselves(output: Output) -> None:
    for number in range(3):
        logging.getLogger("many").info("%d", number)
        wait_until(lambda number=number: output.lines() == list(map(str, range(number + 1))), 5)


def test_a_full_queue_tells_how_many_lines_it_dropped(
    output: Output, handler: LineHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loglines, "_MOST_LINES", 3)
    handler.acquire()  # nobody takes lines
    for number in range(7):
        logging.getLogger("many").info("%d", number)
    handler.release()
    handler.flush()
    assert output.lines() == ["0", "1", "2", "4 lines were dropped: nobody took them"]
    logging.getLogger("many").info("7")
    handler.flush()
    assert output.lines()[4:] == ["7"]


def test_lines_of_processes_that_share_a_pipe_are_whole_in_order_and_all_there_at_the_end() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as stderr:
        processes = [subprocess.Popen([sys.executable, "-c", CHATTY, name], stderr=stderr) for name in "ab"]
    with os.fdopen(reading, encoding="utf-8") as pipe:
        lines = pipe.read().splitlines()
    assert [process.wait(10) for process in processes] == [0, 0]
    said = [re.search(r'"message":"(.) (\d) (\d+) x*"}$', line) for line in lines]
    assert all(said), "a line is broken"
    for name in "ab":
        for thread in range(4):
            numbers = [int(one[3]) for one in said if one and (one[1], one[2]) == (name, str(thread))]
            assert numbers == list(range(500))


def test_a_fork_leaves_the_lines_that_wait_to_the_parent(handler: LineHandler, tmp_path: Path) -> None:
    with (tmp_path / "log").open("a", encoding="utf-8") as file:
        handler.setStream(file)
        handler.acquire()  # its thread has to wait
        logging.getLogger("many").info("of the parent")
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                logging.getLogger("many").info("of the child")
                handler.flush()
            os._exit(0)
        os.waitpid(child, 0)
        handler.release()
        handler.flush()
        assert (tmp_path / "log").read_text("utf-8").splitlines() == ["of the child", "of the parent"]


def test_the_thread_outlives_a_stream_that_takes_nothing(output: Output, handler: LineHandler) -> None:
    def said() -> bool:
        logging.getLogger("many").info("taken")
        return "taken" in output.lines()

    closed = Output()
    closed.close()
    handler.setStream(closed)
    logging.getLogger("many").info("lost")
    wait_until(lambda: not handler._lines, 5)  # its thread has met the closed stream
    handler.stream = output
    wait_until(said, 5)
