"""A server without keys refuses what a stranger's web page can send; nobody else notices."""

from collections.abc import Iterator

import pytest
from flask.testing import FlaskClient

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tests.support.web import opened_app, settings_of, write_keys

BODY = b'{"model": "fake", "input": ["a"]}'


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    named = {"allowed_hosts": "embed.example.org, .corp.example", "cors_origins": "https://app.example"}
    return settings_of(server, tmp_path_factory.mktemp("data"), **named)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/jobs", "/v1/models", "/console", "/", "/health"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "example.org", "[::2]"]
)
def test_a_name_that_is_not_this_servers_is_refused(client: FlaskClient, host: str, path: str) -> None:
    method = "POST" if path in ("/v1/embeddings", "/v1/jobs") else "GET"
    answer = client.open(path, method=method, headers={"Host": host}, data=BODY if method == "POST" else None)
    assert answer.status_code == 403, answer.text
    assert "TWOLANE_ALLOWED_HOSTS" in answer.text


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1:8000", "127.8.8.8", "[::1]:8000", "LOCALHOST:1", "embed.example.org", "a.corp.example:80"],
)
def test_own_names_are_answered(client: FlaskClient, host: str) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_by_default_no_other_name_and_no_other_page_is_known(settings_here: Settings) -> None:
    with opened_app(settings_here.model_copy(update={"allowed_hosts": "", "cors_origins": ""})) as app:
        client = app.test_client()
        assert client.get("/v1/models").status_code == 200
        for host in ("evil.example", "embed.example.org"):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 403
        for origin in ("https://evil.example", "https://app.example"):
            answer = client.post("/v1/jobs", data=BODY, content_type="text/plain", headers={"Origin": origin})
            assert answer.status_code == 403


def test_probes_are_answered_under_any_name(client: FlaskClient) -> None:
    assert client.get("/livez", headers={"Host": "10.0.0.7:8000"}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/jobs", "/v1/jobs/job_x/cancel", "/embed", "/console/sign-in"])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost:3000", "null", "https://app.example.evil"]
)
def test_a_page_of_another_origin_cannot_send_plain_text(client: FlaskClient, path: str, origin: str) -> None:
    answer = client.post(path, data=BODY, content_type="text/plain", headers={"Origin": origin})
    assert answer.status_code == 403, answer.text
    assert "TWOLANE_CORS_ORIGINS" in answer.text


@pytest.mark.parametrize("origin", ["http://localhost", "https://app.example", "https://embed.example.org", None])
def test_own_pages_allowed_ones_and_programs_can(client: FlaskClient, origin: str | None) -> None:
    headers = {"Origin": origin} if origin else {}
    answer = client.post("/v1/embeddings", data=BODY, content_type="application/json", headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def with_keys(settings_here: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    file = write_keys(tmp_path_factory.mktemp("keys") / "keys.toml", {"ada": ""})
    with opened_app(settings_here.model_copy(update={"keys_file": file, "cors_origins": ""})) as app:
        yield app.test_client()


def test_with_keys_the_key_decides(with_keys: FlaskClient) -> None:
    headers = {"Host": "evil.example", "Origin": "https://evil.example", "Authorization": "Bearer ada"}
    assert with_keys.get("/v1/models", headers=headers).status_code == 200
    assert with_keys.post("/v1/jobs/job_none/cancel", headers=headers).status_code == 404
