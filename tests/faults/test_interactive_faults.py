"""Interactive calls while Redis dies, hangs and comes back: callers get an error quickly, and everything recovers."""

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks.errors import CapacityError, NoWorker, StoreUnavailable
from tasks.interactive.client import InteractiveClient
from tests.contract.test_interactive_calls import ask_in_thread, serving, work
from tests.support.echo_engine import EchoEngine
from tests.support.polling import wait_until

TOLD_WITHIN_S = 3.0


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "server") as running:
        yield running


@pytest.fixture
def client(own_server: EmbeddedServer) -> Iterator[InteractiveClient]:
    asking = InteractiveClient(Settings(_env_file=None), own_server.url)
    yield asking
    asking.close()


def answers(client: InteractiveClient) -> bool:
    try:
        return client.ask(work("again", within_s=5), 5).values.shape == (1, 2)
    except CapacityError:
        return False


def test_a_killed_server_settles_who_waits_and_heals_when_it_is_back(
    own_server: EmbeddedServer, client: InteractiveClient
) -> None:
    engine = EchoEngine(hold=True)
    with serving(own_server.url, engine):
        thread, ended = ask_in_thread(client, work("one"))
        wait_until(lambda: engine.seen)
        own_server.kill()
        thread.join(TOLD_WITHIN_S)
        assert isinstance(ended[0], StoreUnavailable)
        with pytest.raises(StoreUnavailable):
            client.ask(work("two"), 5)
        engine.hold = False
        engine.release()
        own_server.start()
        wait_until(lambda: answers(client), within_s=30)


def test_a_server_that_was_started_anew_leaves_nobody_waiting_for_what_it_lost(
    own_server: EmbeddedServer, client: InteractiveClient
) -> None:
    engine = EchoEngine(hold=True)
    with serving(own_server.url, engine):
        thread, ended = ask_in_thread(client, work("one"))
        wait_until(lambda: engine.seen)
        own_server.kill()
        own_server.start()
        thread.join(TOLD_WITHIN_S)
        assert isinstance(ended[0], StoreUnavailable)
        engine.release()


def test_a_server_that_hangs_is_reported_within_seconds(own_server: EmbeddedServer, client: InteractiveClient) -> None:
    engine = EchoEngine()
    with serving(own_server.url, engine):
        assert answers(client)
        engine.hold = True
        waiting, ended = ask_in_thread(client, work("waits"))
        wait_until(lambda: len(engine.seen) == 2)
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            late = [ask_in_thread(client, work(str(i))) for i in range(8)]
            for thread, result in [(waiting, ended), *late]:
                thread.join(TOLD_WITHIN_S)
                assert isinstance(result[0], StoreUnavailable)
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        engine.hold = False
        engine.release()
        wait_until(lambda: answers(client), within_s=30)


def test_a_child_that_was_forked_after_the_first_ask_asks_by_itself(own_server: EmbeddedServer) -> None:
    client = InteractiveClient(Settings(_env_file=None), own_server.url)
    with pytest.raises(NoWorker):
        client.ask(work("parent"), 5)
    code = _in_forked_child(client)
    client.close()
    assert code == 0


def _in_forked_child(client: InteractiveClient) -> int:
    """Ask in a forked child; 0 when it was refused as it should be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forking with threads: that is it
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            client.ask(work("child", within_s=5), 5)
        except NoWorker:
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_no_thread_is_left_when_both_ends_are_closed(own_server: EmbeddedServer) -> None:
    before = set(threading.enumerate())
    client = InteractiveClient(Settings(_env_file=None), own_server.url)
    with serving(own_server.url, EchoEngine()):
        client.ask(work("one"), 5)
    client.close()
    wait_until(lambda: set(threading.enumerate()) <= before, within_s=5)
