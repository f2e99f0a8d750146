"""How answers reach the web server."""

import pytest
from werkzeug.test import create_environ

from app.http.responses import WholeResponse


def test_an_answer_that_is_there_goes_out_in_one_piece_and_is_closed() -> None:
    closed: list[bool] = []
    answer = WholeResponse([b"one ", b"two"])
    answer.call_on_close(lambda: closed.append(True))
    assert answer.get_app_iter(create_environ()) == [b"one ", b"two"]
    assert closed == [True]


@pytest.mark.parametrize(
    ("answer", "method", "body"),
    [(WholeResponse(iter([b"one ", b"two"])), "GET", b"one two"), (WholeResponse(b"one"), "HEAD", b"")],
)
def test_a_stream_and_the_answer_to_head_are_left_as_they_are(answer: WholeResponse, method: str, body: bytes) -> None:
    pieces = answer.get_app_iter(create_environ(method=method))
    assert not isinstance(pieces, list)
    assert b"".join(pieces) == body
