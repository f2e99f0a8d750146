"""One reading of the Redis URL, and what both client libraries make of the form that they are given."""

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from pydantic import ValidationError
from redis import Redis
from redis.sentinel import SentinelConnectionPool

from config.redis_url import RedisAddress
from config.settings import Settings
from tasks.celery import celery_config, make_app
from tasks.connections import open_client


def seen_by_redis_py(url: str) -> dict[str, Any]:
    with Redis.from_url(RedisAddress.parse(url).url) as client:
        return dict(client.connection_pool.connection_kwargs)


def seen_by_kombu(url: str) -> dict[str, Any]:
    address = RedisAddress.parse(url)
    with Connection(address.celery_url, ssl=address.celery_tls or False) as connection:
        # Without a connection there is no channel: what one would be made with is asked of the class.
        channel_class: Any = connection.transport.Channel
        channel = channel_class.__new__(channel_class)
        channel.connection = connection.transport
        return dict(channel._connparams())


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://cache.example", ("cache.example", 6379, 0, None, None)),
        ("redis://cache.example:7000/3", ("cache.example", 7000, 3, None, None)),
        ("redis://cache.example?db=3", ("cache.example", 6379, 3, None, None)),
        ("redis://cache.example?password=s%26cret&username=ada", ("cache.example", 6379, 0, "ada", "s&cret")),
        ("valkey://ada:s%23cret@cache.example/1", ("cache.example", 6379, 1, "ada", "s#cret")),
        ("redis://:p@ssword9@cache.example", ("cache.example", 6379, 0, None, "p@ssword9")),
        ("redis://:50%25@[::1]:6380/0", ("::1", 6380, 0, None, "50%")),
        (" REDIS://localhost:6379/0 ", ("localhost", 6379, 0, None, None)),
    ],
)
def test_both_libraries_see_the_same_place(url: str, place: tuple[Any, ...]) -> None:
    for seen in (seen_by_redis_py(url), seen_by_kombu(url)):
        found = (seen["host"], seen["port"], seen.get("db") or 0, seen.get("username"), seen.get("password"))
        assert (*found[:3], found[3] or None, found[4] or None) == place


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), st.integers(0, 15))
def test_any_password_reaches_both_libraries_as_it_is(password: str, db: int) -> None:
    address = RedisAddress("redis", "h", 1, "", db, "ü:@/", password)
    assert RedisAddress.parse(address.url) == address
    assert seen_by_redis_py(address.url)["password"] == password
    seen = seen_by_kombu(address.url)
    assert (seen["username"], seen["password"], seen["db"]) == ("ü:@/", password, db)


@pytest.mark.parametrize("url", ["unix:///run/redis.sock?db=2", "redis+socket:///run/redis.sock?virtual_host=2",
                                 "unix://:secret@/run/redis.sock?db=2"])  # fmt: skip
def test_a_socket_is_understood_by_both(url: str) -> None:
    for seen in (seen_by_redis_py(url), seen_by_kombu(url)):
        assert (seen["path"], int(seen["db"])) == ("/run/redis.sock", 2)
        assert (seen.get("password") or "") == ("secret" if "secret" in url else "")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", ("required", True, None)),
        ("?ssl_ca_certs=/etc/ca.pem", ("required", True, "/etc/ca.pem")),
        ("?ssl_cert_reqs=CERT_NONE", ("none", True, None)),
        ("?ssl_cert_reqs=none&ssl_check_hostname=false", ("none", False, None)),
    ],
)
def test_tls_is_verified_by_both_unless_it_is_said_otherwise(options: str, expected: tuple[Any, ...]) -> None:
    url = f"rediss://cache.example:6380/0{options}"
    for seen in (seen_by_redis_py(url), seen_by_kombu(url)):
        found = (seen.get("ssl_cert_reqs", "required"), seen.get("ssl_check_hostname", True), seen.get("ssl_ca_certs"))
        assert found == expected


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "cache.example",
        "http://cache.example",
        "sentinel://a:26379;sentinel://b:26379",
        "redis+sentinel://a:26379/mymaster/0",
        "sentinel://a:26379,b:26379",
        "sentinel://:hunter2@a:sixty/main",
        "redis://:hunter2@a:6379/0?sentinel_password=hunter2",
        "redis://:hunter2#x@cache.example:6379/0",
        "redis://:hunter2/x@cache.example:6379/0",
        "redis://:hunter2?x@cache.example:6379/0",
        "redis://:hunter2@cache.example:sixty/0",
        "redis://:hunter2@cache.example:99999/0",
        "redis://:hunter2@cache.example/main",
        "redis://:hunter2@cache.example/1?db=2",
        "redis://:hunter2@cache.example/0?ssl_cert_reqs=none",
        "redis://:hunter2@cache.example/0?tls=true",
        "rediss://:hunter2@cache.example/0?ssl_cert_reqs=sometimes",
        "unix://",
    ],
)
def test_anything_else_is_one_sentence_that_names_the_setting_and_no_secret(url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(_env_file=None, redis_url=url)
    (error,) = refused.value.errors()
    assert "REDIS_URL" in error["msg"]
    assert "\n" not in error["msg"]
    assert "hunter2" not in str(refused.value)


def test_nothing_in_the_environment_is_read_past_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.setenv(name, "redis://elsewhere.example/9")
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "no_such_module")
    monkeypatch.setenv("CELERY_LOADER", "no_such_loader")
    app = make_app(Settings(_env_file=None, redis_url="redis://here.example/1"))
    assert app.connection_for_write().hostname == "here.example"
    assert app.connection_for_read().hostname == "here.example"
    assert app.connection().hostname == "here.example"
    assert app.conf.result_backend is None
    assert not [name for name in os.environ if name.startswith("CELERY_")]


def test_sentinels_are_understood_by_both() -> None:
    url = "sentinel://worker:p%40ss@a,b:26380,[::1]:26381/main?db=2&sentinel_password=hunter2"
    address = RedisAddress.parse(url)
    assert address.sentinels == (("a", 26379), ("b", 26380), ("::1", 26381))
    assert RedisAddress.parse(address.url) == address
    pool = open_client(address.url, socket_timeout=1).connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert (pool.service_name, pool.connection_kwargs["password"], pool.connection_kwargs["db"]) == ("main", "p@ss", 2)
    asked = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
    assert [(one["host"], one["port"]) for one in asked] == list(address.sentinels)
    assert asked[0]["password"] == "hunter2"
    config = celery_config(Settings(_env_file=None, redis_url=url))
    transport = config["broker_transport_options"]
    assert (transport["master_name"], transport["sentinel_kwargs"]) == ("main", {"password": "hunter2"})
    seen = [Connection(one).info() for one in config["broker_url"].split(";")]
    assert [(one["hostname"], one["port"], one["password"]) for one in seen][:2] == [
        ("a", 26379, "p@ss"),
        ("b", 26380, "p@ss"),
    ]


def test_celery_is_told_to_verify() -> None:
    config = celery_config(Settings(_env_file=None, redis_url="rediss://cache.example/0"))
    assert config["broker_use_ssl"] == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    assert "broker_use_ssl" not in celery_config(Settings(_env_file=None, redis_url="redis://cache.example/0"))
