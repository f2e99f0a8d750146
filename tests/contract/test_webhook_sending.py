"""One attempt to tell: whatever the other side does, it ends in time, and goes nowhere else."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from app.webhooks.sending import post
from app.webhooks.targets import parse_target
from tasks.jobs.outbox import Attempt
from tests.support.webhook_receiver import receiving


@contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on which one caller is served as `talk` likes."""

    def serve() -> None:
        try:
            caller, _ = server.accept()
            with caller:
                caller.recv(65536)
                talk(caller)
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            with socket.socket() as last:  # nobody may have called
                last.connect_ex(server.getsockname())
            thread.join()


def send(url: str, *, allow_private: bool = True) -> Attempt:
    target = parse_target(url, allow_private=True)
    return post(target, {"webhook-id": "msg_1"}, b"body", 1.0, allow_private=allow_private)


def drip(caller: socket.socket) -> None:
    """One byte at a time, each sooner than any timeout of a single read."""
    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"y" * 300:
        caller.send(bytes([byte]))
        time.sleep(0.05)


def test_a_receiver_that_drips_is_cut_off_in_time() -> None:
    with listening(drip) as port:
        assert send(f"http://127.0.0.1:{port}/").error == "the receiver did not answer in time"


@pytest.mark.parametrize(
    ("talk", "error"),
    [
        (lambda caller: None, "could not be reached"),
        (lambda caller: caller.send(b"\x00\xff nonsense\r\n\r\n"), "could not be reached"),
        (lambda caller: caller.send(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"), "could not be reached"),
        (lambda caller: caller.send(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000), "could not be reached"),
        (lambda caller: caller.send(b"HTTP/1.1 301 Gone\r\nLocation: http://10.0.0.1/\r\n\r\n"), "answered 301"),
        (lambda caller: caller.send(b"HTTP/1.1 503 Busy\r\n\r\n"), "answered 503"),
    ],
    ids=["hangs up", "nonsense", "endless headers", "long header", "redirects", "is busy"],
)
def test_whatever_a_receiver_answers_is_an_attempt_and_no_exception(talk: Any, error: str) -> None:
    with listening(talk) as port:
        attempt = send(f"http://127.0.0.1:{port}/")
    assert error in attempt.error
    assert not attempt.final


def test_an_answer_whose_body_never_ends_is_an_answer() -> None:
    with listening(lambda caller: caller.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")) as port:
        assert send(f"http://127.0.0.1:{port}/") == Attempt(answer=200)


def test_what_does_not_speak_tls_gets_nothing_over_https() -> None:
    with listening(lambda caller: caller.send(b"not tls at all")) as port:
        assert "could not be reached" in send(f"https://127.0.0.1:{port}/").error


def test_nothing_is_sent_to_an_address_inside() -> None:
    with receiving() as receiver:
        assert "not public" in send(receiver.url, allow_private=False).error
    assert receiver.calls == []


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that would lead elsewhere at a second look: only the resolver is replaced, the receiver is real."""
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def watch(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host != "rebinding.example":
            return resolve(host, port, *args, **options)
        asked.append(host)
        return resolve("127.0.0.1" if len(asked) == 1 else "192.0.2.1", port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", watch)
    with receiving() as receiver:
        url = receiver.url.replace("127.0.0.1", "rebinding.example")
        assert send(url) == Attempt(answer=204)
    assert asked == ["rebinding.example"]
    assert receiver.calls[0][0]["host"].startswith("rebinding.example:")


def test_a_name_server_that_does_not_answer_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(30) and [])
    try:
        target = parse_target("http://receiver.example/", allow_private=True)
        attempt = post(target, {"webhook-id": "msg_1"}, b"body", 0.2, allow_private=True)
        assert (attempt.error, answered.is_set()) == ("the receiver did not answer in time", False)
    finally:
        answered.set()


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with receiving() as receiver:
        assert send(receiver.url) == Attempt(answer=204)


def test_a_name_that_is_none_is_no_exception() -> None:
    for host in ("nowhere.invalid", "a" * 70 + ".example", "..", "-"):
        assert "could not be reached" in send(f"http://{host}/").error
