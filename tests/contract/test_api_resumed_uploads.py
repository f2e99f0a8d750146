"""Uploads under a key that are cut off on a real socket, and go on: from where they stand, or by being sent again."""

import contextlib
import http.client
import json
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from config.settings import Settings
from stack.server import EmbeddedServer
from tasks import keys
from tasks.jobs.blobs import open_blobs
from tasks.jobs.store import JobStore
from tests.support.job_maker import assert_expiry
from tests.support.polling import wait_until
from tests.support.web_process import Web, fresh_web

TEXTS = [f"passage {number} of a corpus " + "that goes on and on " * 12 for number in range(4000)]
LINES = [json.dumps({"id": f"p{number}", "text": text}).encode() + b"\n" for number, text in enumerate(TEXTS)]
# Blank lines belong to the upload, too. The last line has no end.
BODY = b"\n".join(b"".join(LINES[first : first + 500]) for first in range(0, 4000, 500)).rstrip(b"\n")
CUT = len(BODY) // 2 + 7


@pytest.fixture(scope="module")
def web(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with fresh_web(server.url, tmp_path_factory.mktemp("web")) as running:
        yield running


def open_upload(web: Web, key: str, length: int, offset: int | None = None, path: str = "") -> socket.socket:
    """A connection on which a request was begun."""
    connection = web.connect()
    head = f"POST /v1/jobs?model=fake{path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/x-ndjson\r\n"
    head += f"Idempotency-Key: {key}\r\nContent-Length: {length}\r\n"
    connection.sendall((head + (f"Upload-Offset: {offset}\r\n" if offset is not None else "") + "\r\n").encode())
    return connection


def cut_off(web: Web, key: str, body: bytes = BODY, cut: int = CUT, *, reset: bool = False) -> int:
    """Send a part of an upload, break the connection, and return how much of it the server has then."""
    with open_upload(web, key, len(body)) as connection:
        connection.sendall(body[:cut])
        wait_until(lambda: (asked(web, key)[0].get("Upload-Offset") or "0") != "0")
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return standing(web, key)


def standing(web: Web, key: str) -> int:
    """Where the upload stands when it moves no more."""
    known, seen = -1, 0
    while seen != known:
        known = seen
        time.sleep(0.3)
        seen = int(asked(web, key)[0]["Upload-Offset"])
    return seen


def asked(web: Web, key: str, method: str = "GET") -> tuple[Any, int, Any]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)) as connection:
        connection.request(method, "/v1/uploads", headers={"Idempotency-Key": key})
        answer = connection.getresponse()
        raw = answer.read()
        return answer.headers, answer.status, json.loads(raw) if raw else None


def send(web: Web, key: str, body: bytes, offset: int | None = None, path: str = "") -> tuple[int, Any, Any]:
    with open_upload(web, key, len(body), offset, path) as connection:
        connection.sendall(body)
        return answer_on(connection)


def answer_on(connection: socket.socket) -> tuple[int, Any, Any]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read()), answer.headers


def stored(web: Web, job_id: str) -> tuple[list[str], list[str | None]]:
    """Texts and ids of a job as its workers will read them."""
    settings = Settings(_env_file=None, redis_url=web.url)
    texts, ids = list[str](), list[str | None]()
    with Redis.from_url(web.url) as redis:
        blobs, store = open_blobs(redis, settings), JobStore(redis, settings)
        for chunk in store.chunk_table(job_id):
            items = blobs.get_input(job_id, chunk.index)
            assert items is not None
            assert (chunk.start, chunk.items) == (len(texts), len(items.texts))
            texts += items.texts
            ids += items.ids or []
        last = store.get(job_id).chunks
        assert not redis.exists(keys.job_input(job_id, last))
        assert redis.zcard(keys.store_uploads()) == 0
        assert_expiry(redis)
    return texts, ids


def assert_whole(web: Web, key: str, job: dict[str, Any]) -> None:
    """The job has every item once, and its key knows the whole upload again."""
    assert job["counts"]["total"] == 4000
    assert stored(web, job["id"]) == (TEXTS, [f"p{number}" for number in range(4000)])
    known = web.job_ids()
    assert send(web, key, BODY)[1]["id"] == job["id"]
    assert web.job_ids() == known
    headers, status, body = asked(web, key)
    assert (status, headers["Upload-Complete"], body["job_id"]) == (200, "?1", job["id"])


@pytest.mark.parametrize("reset", [False, True])
def test_the_rest_of_an_upload_follows_from_where_it_stands(web: Web, *, reset: bool) -> None:
    key = f"rest {reset}"
    offset = cut_off(web, key, reset=reset)
    assert CUT // 2 < offset <= CUT
    assert BODY[offset - 1 : offset] == b"\n"
    headers, status, body = asked(web, key)
    items = sum(1 for line in BODY[:offset].splitlines() if line)
    assert (status, headers["Upload-Complete"], body["items"]) == (200, "?0", items)
    assert (asked(web, key, "HEAD")[0]["Upload-Offset"], body["complete"]) == (str(offset), False)
    status, job, _ = send(web, key, BODY[offset:], offset)
    assert status == 202, job
    assert_whole(web, key, job)


def test_an_upload_that_is_sent_again_from_its_start_stores_only_the_rest(web: Web) -> None:
    offset = cut_off(web, "again")
    begun = web.job_ids()
    status, job, _ = send(web, "again", BODY)
    assert (status, job["id"].encode() in begun) == (202, True)
    assert_whole(web, "again", job)
    assert offset > 0


def test_an_upload_may_break_off_many_times(web: Web) -> None:
    key, offset = "often", 0
    for _ in range(4):
        with open_upload(web, key, len(BODY) - offset, offset) as connection:
            connection.sendall(BODY[offset : offset + len(BODY) // 5])
            before = offset
            wait_until(lambda known=before: int(asked(web, key)[0].get("Upload-Offset") or 0) > known)  # type: ignore[misc]
        offset = standing(web, key)
        assert before < offset <= before + len(BODY) // 5
    status, job, _ = send(web, key, BODY[offset:], offset)
    assert status == 202
    assert_whole(web, key, job)


def test_going_on_elsewhere_is_refused_with_the_right_place(web: Web) -> None:
    offset = cut_off(web, "elsewhere")
    status, body, headers = send(web, "elsewhere", b'"x"\n', offset + 1)
    assert (status, body["error"]["code"], headers["Upload-Offset"]) == (409, "conflict", str(offset))
    assert send(web, "nothing here", b'"x"\n', 5)[2]["Upload-Offset"] == "0"
    status, job, _ = send(web, "elsewhere", BODY[offset:], offset)
    assert_whole(web, "elsewhere", job)
    status, body, headers = send(web, "elsewhere", BODY[offset:], offset)
    assert (status, headers["Upload-Complete"]) == (409, "?1")


def test_a_broken_line_in_the_rest_is_named_by_its_number_and_nothing_is_left(web: Web) -> None:
    known = web.job_ids()
    offset = cut_off(web, "broken")
    bad = BODY[:offset].count(b"\n") + 1
    status, body, _ = send(web, "broken", b"{\n" + BODY[offset:], offset)
    assert (status, body["error"]["param"]) == (400, f"line {bad}")
    assert web.job_ids() == known
    assert asked(web, "broken")[1] == 404


def test_other_bytes_or_parameters_under_the_key_are_refused_and_what_came_stays(web: Web) -> None:
    offset = cut_off(web, "other")
    status, body, _ = send(web, "other", BODY.replace(b"passage 5 ", b"passage V ", 1))
    assert (status, body["error"]["code"]) == (422, "idempotency_mismatch")
    status, body, _ = send(web, "other", BODY[offset:], offset, "&dtype=float16")
    assert (status, body["error"]["code"]) == (422, "idempotency_mismatch")
    assert standing(web, "other") == offset
    assert_whole(web, "other", send(web, "other", BODY)[1])


def test_who_comes_later_takes_the_upload_over_from_a_connection_that_still_seems_to_live(web: Web) -> None:
    with open_upload(web, "taken", len(BODY)) as first:
        first.sendall(BODY[:CUT])
        wait_until(lambda: (asked(web, "taken")[0].get("Upload-Offset") or "0") != "0")
        offset = standing(web, "taken")
        status, job, _ = send(web, "taken", BODY[offset:], offset)
        assert status == 202
        first.sendall(BODY[CUT:])
        assert answer_on(first)[0] == 409
    assert_whole(web, "taken", job)


def test_an_upload_outlives_the_web_process_that_took_it(server: EmbeddedServer, web: Web, tmp_path: Path) -> None:
    other = Web(server.url, tmp_path)
    with open_upload(other, "killed", len(BODY)) as connection:
        connection.sendall(BODY[:CUT])
        wait_until(lambda: (asked(web, "killed")[0].get("Upload-Offset") or "0") != "0")
        other.worker().kill()
        other.stop(signal.SIGKILL)
    offset = standing(web, "killed")
    assert_whole(web, "killed", send(web, "killed", BODY[offset:], offset)[1])


def test_what_nobody_comes_back_for_is_swept(web: Web) -> None:
    known = web.job_ids()
    cut_off(web, "left")
    settings = Settings(_env_file=None, redis_url=web.url)
    with Redis.from_url(web.url) as redis:
        assert_expiry(redis)
        redis.pexpire(keys.upload("default", "left"), 1)
        ids = redis.zrange(keys.store_uploads(), 0, -1)
        redis.zadd(keys.store_uploads(), dict.fromkeys(ids, 1))
        open_blobs(redis, settings).sweep(JobStore(redis, settings).exists)
    assert asked(web, "left")[1] == 404
    assert web.job_ids() == known
    assert_whole(web, "left", send(web, "left", BODY)[1])
