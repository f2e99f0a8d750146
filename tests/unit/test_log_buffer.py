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

from config import log_buffer
from config.log_buffer import BatchingHandler
from tests.support.polling import wait_until

# Two processes with four threads each; what the lines hold is longer than what a pipe takes in one piece.
CHATTY = """
import logging, sys, threading
from config.logging import configure_logging
from config.settings import Settings
configure_logging(Settings(_env_file=None, log_format="json"), sys.argv[1], batched=True)
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
def handler(output: Output) -> Iterator[BatchingHandler]:
    handler = BatchingHandler(output)
    logger = logging.getLogger("many")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def test_a_warning_comes_at_once_and_behind_the_lines_that_wait(
    output: Output, handler: BatchingHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_buffer, "_PAUSE_S", 60.0)
    for number in range(3):
        logging.getLogger("many").info("waits %d", number)
    assert output.lines() == []
    logging.getLogger("many").warning("now")
    assert output.lines() == ["waits 0", "waits 1", "waits 2", "now"]


@pytest.mark.usefixtures("handler")
def test_lines_that_wait_come_by_themselves(output: Output) -> None:
    for number in range(3):
        logging.getLogger("many").info("%d", number)
        wait_until(lambda number=number: output.lines() == list(map(str, range(number + 1))), 5)


def test_nobody_waits_for_a_log_that_is_not_read_and_dropped_lines_are_counted(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_buffer, "_MOST_LINES", 3)
    handler = BatchingHandler(output)
    with handler._writing:  # as while a write blocks
        handler._started.set()
        for number in range(7):
            handler.handle(logging.makeLogRecord({"msg": str(number), "levelno": logging.INFO}))
    handler.flush()
    assert output.lines() == ["0", "1", "2", "4 log lines were dropped: nobody read them"]
    handler.handle(logging.makeLogRecord({"msg": "7", "levelno": logging.INFO}))
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


def test_a_fork_leaves_the_lines_that_wait_to_the_parent(handler: BatchingHandler, tmp_path: Path) -> None:
    with (tmp_path / "log").open("a", encoding="utf-8") as file:
        handler.stream = file
        handler._started.set()  # no thread: the lines have to wait
        logging.getLogger("many").info("of the parent")
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                logging.getLogger("many").info("of the child")
                handler.flush()
            os._exit(0)
        os.waitpid(child, 0)
        handler.flush()
        assert (tmp_path / "log").read_text("utf-8").splitlines() == ["of the child", "of the parent"]


def test_the_thread_outlives_a_stream_that_takes_nothing(output: Output, handler: BatchingHandler) -> None:
    def said() -> bool:
        logging.getLogger("many").info("taken")
        return "taken" in output.lines()

    closed = Output()
    closed.close()
    handler.stream = closed
    logging.getLogger("many").info("lost")
    wait_until(handler.queue.empty, 5)  # its thread has met the closed stream
    handler.stream = output
    wait_until(said, 5)
