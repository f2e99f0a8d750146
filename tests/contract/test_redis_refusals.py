"""A Redis that answers and refuses: the caller gets the reason, the log Redis' own words, and a wrong start ends."""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from redis import Redis

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks import keys
from tasks.connections import check_redis
from tasks.errors import ConfigError
from tests.support.web import opened_app

ROOT = Path(__file__).parents[2]
BODY = {"type": "embeddings", "model": "fake", "input": ["a text"] * 100}
Limit = Callable[..., str]


@pytest.fixture
def limit(redis: Redis) -> Iterator[Limit]:
    """Return the URL of a user of Redis who has these rights."""
    port = redis.connection_pool.connection_kwargs["port"]

    def make(*rules: str) -> str:
        redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", *rules)
        return f"redis://limited:secret@127.0.0.1:{port}/0"

    yield make
    redis.execute_command("ACL", "DELUSER", "limited")


@pytest.fixture
def full() -> tuple[str, ...]:
    """The rights that the page names."""
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    found = re.search(r"^user twolane on >PASSWORD (.*)$", text, re.MULTILINE)
    assert found is not None
    return tuple(found[1].split())


@pytest.fixture
def app(limit: Limit, full: tuple[str, ...], settings: Settings) -> Iterator[Flask]:
    with opened_app(settings.model_copy(update={"redis_url": limit(*full)})) as app:
        yield app


def take_a_right_away(redis: Redis) -> None:
    redis.execute_command("ACL", "SETUSER", "limited", "-evalsha", "-eval")


def put_something_else_there(redis: Redis) -> None:
    redis.set(keys.all_jobs(), "something else")


def change_the_password(redis: Redis) -> None:
    redis.execute_command("ACL", "SETUSER", "limited", "resetpass", ">other")
    redis.execute_command("CLIENT", "KILL", "USER", "limited")


@pytest.mark.parametrize(
    ("spoil", "sentence", "words"),
    [
        (take_a_right_away, "lacks a right", "NOPERM"),
        (put_something_else_there, "holds something else", "WRONGTYPE"),
        (change_the_password, "the user or the password", "WRONGPASS"),
    ],
)
def test_the_caller_gets_the_kind_of_a_refusal_and_the_log_the_words_of_redis(
    app: Flask,
    redis: Redis,
    spoil: Callable[[Redis], None],
    sentence: str,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = app.test_client()
    client.get("/v1/jobs/job_none")
    spoil(redis)
    with caplog.at_level(logging.WARNING):
        answer = client.post("/v1/jobs", json=BODY)
    body: Any = answer.json
    assert (answer.status_code, body["error"]["code"]) == (503, "store_refused")
    assert sentence in body["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert any(words in record.getMessage() for record in caplog.records)
    assert "secret" not in caplog.text


def test_small_calls_and_probes_say_it_too(app: Flask, redis: Redis) -> None:
    take_a_right_away(redis)
    client = app.test_client()
    call: Any = client.post("/v1/embeddings", json={"model": "fake", "input": "a text"}).json
    assert (call["error"]["code"], "lacks a right" in call["error"]["message"]) == ("store_refused", True)
    probe: Any = client.get("/readyz").json
    assert (probe["status"], "lacks a right" in probe["error"]["message"]) == ("waiting", True)


def test_a_read_only_replica_is_named_and_no_reason_to_end_the_start(settings: Settings, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "replica") as replica, Redis.from_url(replica.url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        check_redis(replica.url)
        with opened_app(settings.model_copy(update={"redis_url": replica.url})) as app:
            body: Any = app.test_client().post("/v1/jobs", json=BODY).json
    assert (body["error"]["code"], "read-only replica" in body["error"]["message"]) == ("store_refused", True)


def test_the_rights_that_the_page_names_are_enough_to_start(limit: Limit, full: tuple[str, ...]) -> None:
    check_redis(limit(*full))


@pytest.mark.parametrize(
    ("without", "named"),
    [
        ("-info", "INFO"),
        ("resetchannels", "to publish to channels"),
        ("resetchannels &twolane:*", "patterns of channels"),
        ("resetkeys", "keys"),
        ("-@scripting", "scripts"),
    ],
)
def test_a_right_that_is_missing_at_the_start_is_named(
    limit: Limit, full: tuple[str, ...], without: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        check_redis(limit(*full, *without.split()))


def test_a_wrong_password_ends_the_start_and_a_redis_that_is_away_does_not(limit: Limit) -> None:
    url = limit("~*", "+@all")
    with pytest.raises(ConfigError, match="WRONGPASS"):
        check_redis(url.replace("secret", "guess"))
    check_redis("redis://127.0.0.1:1/0")
