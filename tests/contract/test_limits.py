"""Keys and limits as a client sees them: an app with nothing but these hooks, and a real server behind the counters."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from app.access.auth import Authenticator, Tenant, current_tenant, find_card, protect, visible_cards
from app.access.key_store import KeyStore
from app.access.limits import Limiter, WindowUsage, limit
from app.http.errors import install_errors
from config.catalog import load_catalog
from config.settings import Settings
from stack.embedded_redis import free_port
from tasks.errors import ConfigError, RateLimited, StoreUnavailable
from tests.support.web import write_keys

Make = Callable[..., FlaskClient]


def build_app(settings: Settings, redis: Redis) -> Flask:
    app = Flask(__name__)
    install_errors(app)
    protect(app, Authenticator(settings, KeyStore(redis)))
    if settings.keys_file is not None:
        limit(app, Limiter(redis))
    catalog = load_catalog()

    def pay(tokens: int) -> dict[str, int]:
        if settings.keys_file is not None:
            Limiter(redis).charge(current_tenant(), "tokens", tokens)
        return {"paid": tokens}

    app.add_url_rule("/whoami", view_func=lambda: {"tenant": current_tenant().name}, endpoint="whoami")
    app.add_url_rule("/livez", view_func=dict, endpoint="livez")
    app.add_url_rule("/metrics", view_func=dict, endpoint="metrics")
    app.add_url_rule("/models", view_func=lambda: [c.name for c in visible_cards(catalog)], endpoint="models")
    app.add_url_rule("/models/<name>", view_func=lambda name: {"name": find_card(catalog, name).name}, endpoint="model")
    app.add_url_rule("/tokens/<int:tokens>", view_func=pay, endpoint="tokens")
    return app


@pytest.fixture
def make(settings: Settings, redis: Redis, tmp_path: Path) -> Make:
    def make_client(**tenants: str) -> FlaskClient:
        keys_file = write_keys(tmp_path / "keys.toml", tenants) if tenants else None
        return build_app(settings.model_copy(update={"keys_file": keys_file}), redis).test_client()

    return make_client


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def test_without_keys_everybody_is_the_one_tenant(make: Make) -> None:
    client = make()
    assert client.get("/whoami").json == {"tenant": "default"}
    assert client.get("/whoami", headers=bearer("anything")).json == {"tenant": "default"}


def test_a_key_tells_the_tenant(make: Make) -> None:
    client = make(ada="", bob="")
    assert client.get("/whoami", headers=bearer("bob")).json == {"tenant": "bob"}
    assert client.get("/whoami", headers={"Authorization": "bearer  ada "}).json == {"tenant": "ada"}


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer sk-wrong", "Basic YWRhOg==", "ada", "sk-wrong"]
)
def test_without_a_good_key_the_answer_is_401_and_does_not_repeat_the_key(make: Make, header: str | None) -> None:
    answer = make(ada="").get("/whoami", headers={} if header is None else {"Authorization": header})
    assert answer.status_code == 401
    assert answer.json["error"]["code"] == "invalid_api_key"
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "sk-wrong" not in answer.text


def test_an_unknown_path_needs_a_key_and_a_probe_does_not(make: Make) -> None:
    client = make(ada="")
    assert client.get("/nowhere").status_code == 401
    assert client.get("/nowhere", headers=bearer("ada")).status_code == 404
    assert client.get("/livez").status_code == 200


def test_metrics_belong_to_the_operator(make: Make) -> None:
    client = make(ada="", root="admin = true")
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=bearer("ada")).json["error"]["code"] == "permission_denied"
    assert client.get("/metrics", headers=bearer("root")).status_code == 200


def test_a_bad_keys_file_stops_the_start(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Authenticator(settings.model_copy(update={"keys_file": tmp_path / "none.toml"}), KeyStore(Redis()))


def test_a_model_that_is_not_allowed_reads_like_one_that_does_not_exist(make: Make) -> None:
    client = make(ada='models = ["FAKE", "BAAI/bge-m3"]', bob="")
    assert client.get("/models", headers=bearer("ada")).json == ["bge-m3", "fake"]
    assert len(client.get("/models", headers=bearer("bob")).json) > 2
    assert client.get("/models/Fake", headers=bearer("ada")).json == {"name": "fake"}
    forbidden = client.get("/models/all-MiniLM-L6-v2", headers=bearer("ada"))
    unknown = client.get("/models/no-such-model", headers=bearer("ada"))
    assert forbidden.status_code == unknown.status_code == 404
    assert forbidden.json["error"]["code"] == "model_not_found"
    assert forbidden.text.replace("all-MiniLM-L6-v2", "*") == unknown.text.replace("no-such-model", "*")


def test_requests_above_the_limit_are_429_with_the_headers(make: Make) -> None:
    client = make(ada="requests_per_minute = 3", bob="requests_per_minute = 3")
    answers = [client.get("/whoami", headers=bearer("ada")) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    last = answers[-1]
    assert last.json["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(last.headers["Retry-After"]) <= 60
    assert last.headers["x-ratelimit-limit-requests"] == "3"
    assert last.headers["x-ratelimit-reset-requests"].endswith("s")
    assert "x-ratelimit-limit-tokens" not in last.headers
    # Another key has a count of its own, and a probe has none.
    assert client.get("/whoami", headers=bearer("bob")).status_code == 200
    assert "x-ratelimit-limit-requests" not in client.get("/livez", headers=bearer("ada")).headers


def test_tokens_above_the_limit_are_429_and_a_refused_request_pays_nothing(make: Make) -> None:
    client = make(ada="tokens_per_minute = 1000")
    answers = [client.get(f"/tokens/{tokens}", headers=bearer("ada")) for tokens in (600, 500, 400, 1)]
    assert [answer.status_code for answer in answers] == [200, 429, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-tokens"] for answer in answers] == ["400", "400", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-tokens"] == "1000"


def test_more_than_a_whole_minute_is_refused_for_good(make: Make) -> None:
    answer = make(ada="tokens_per_minute = 1000").get("/tokens/1001", headers=bearer("ada"))
    assert answer.status_code == 413
    assert "1000 tokens per minute" in answer.json["error"]["message"]


def test_an_unlimited_key_has_no_limit_headers(make: Make) -> None:
    answer = make(ada="").get("/tokens/123456", headers=bearer("ada"))
    assert answer.status_code == 200
    assert not [name for name in answer.headers.keys() if name.lower().startswith("x-ratelimit")]  # noqa: SIM118


def test_a_limit_holds_across_web_processes(make: Make, settings: Settings, redis_url: str, tmp_path: Path) -> None:
    make(ada="requests_per_minute = 20")
    with_keys = settings.model_copy(update={"keys_file": tmp_path / "keys.toml"})
    clients = [build_app(with_keys, Redis.from_url(redis_url)) for _ in range(4)]

    def ask(number: int) -> int:
        return clients[number % 4].test_client().get("/whoami", headers=bearer("ada")).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(ask, range(60)))
    assert statuses.count(200) == 20
    assert statuses.count(429) == 40


def test_counters_do_not_stay_for_ever(make: Make, redis: Redis) -> None:
    make(ada="requests_per_minute = 3").get("/whoami", headers=bearer("ada"))
    names = list(redis.scan_iter("*limits*"))
    assert names
    assert all(0 < redis.ttl(name) <= 120 for name in names)


@pytest.fixture
def unreachable() -> Iterator[Redis]:
    with Redis(port=free_port(), socket_connect_timeout=0.2, retry=None) as client:
        yield client


def test_a_limit_never_fails_open(make: Make, settings: Settings, unreachable: Redis, tmp_path: Path) -> None:
    make(ada="requests_per_minute = 3", bob="")
    client = build_app(settings.model_copy(update={"keys_file": tmp_path / "keys.toml"}), unreachable).test_client()
    answer = client.get("/whoami", headers=bearer("ada"))
    assert answer.status_code == 503
    assert answer.json["error"]["code"] == "store_unavailable"
    assert int(answer.headers["Retry-After"]) >= 1
    # Whether a key was revoked cannot be read either, of one without limits too.
    assert client.get("/whoami", headers=bearer("bob")).status_code == 503


def test_the_limiter_says_that_the_store_is_down(unreachable: Redis) -> None:
    with pytest.raises(StoreUnavailable):
        Limiter(unreachable).charge(Tenant("ada", "k", tokens_per_minute=3), "tokens")


def test_the_wait_that_is_told_is_long_enough_and_not_longer(redis: Redis) -> None:
    tenant = Tenant("ada", "k", tokens_per_minute=100)
    limiter = Limiter(redis)
    limiter.charge(tenant, "tokens", 90)
    with pytest.raises(RateLimited) as caught:
        limiter.charge(tenant, "tokens", 50)
    # 90 have to shrink to less than 51, which takes a bit more than 26 of their last 60 s, after this minute's end.
    assert 60 < caught.value.retry_after_s <= 60 + 60 * (1 - 51 / 90)


@pytest.mark.parametrize(
    "usage",
    [
        WindowUsage(0, 0, 70, 100),
        WindowUsage(80, 30, 40, 90),
        WindowUsage(100, 60, 0, 120),
        WindowUsage(100, 1, 99, 61),
    ],
)
@pytest.mark.parametrize("amount", [1, 30, 100])
def test_after_the_wait_the_amount_fits_and_a_moment_before_it_does_not(usage: WindowUsage, amount: int) -> None:
    wait_s = usage.wait_s(100, amount)
    assert age(usage, wait_s + 0.01).amount + amount <= 100
    if wait_s > 0.02:
        assert age(usage, wait_s - 0.01).amount + amount > 100


def age(usage: WindowUsage, passed_s: float) -> WindowUsage:
    """What the library would count some seconds later, without new requests."""
    left_s = usage.current_left_s - passed_s
    if left_s >= 60:
        return WindowUsage(usage.previous, max(0, usage.previous_left_s - passed_s), usage.current, left_s)
    return WindowUsage(usage.current, max(0, left_s), 0, left_s + 60)
