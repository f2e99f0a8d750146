"""OpenAI's Files over HTTP: what an upload may look like, what comes back, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tests.support.batch_requests import upload
from tests.support.web import settings_of

FORM = "multipart/form-data; boundary=B"
PURPOSE = b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--B\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\nbody\r\n'
END = b"--B--\r\n"


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_of(server, tmp_path_factory.mktemp("data"), max_file_bytes=200_000)


@pytest.fixture
def client(app_here: Flask) -> FlaskClient:
    return app_here.test_client()


def stored(settings: Settings) -> set[Path]:
    return {path for path in (settings.data_dir / "files").rglob("*") if path.is_file()}


def post(client: FlaskClient, *parts: bytes, content_type: str = FORM) -> Any:
    return client.post("/v1/files", data=b"".join(parts), content_type=content_type)


@pytest.mark.parametrize(
    "body",
    [b"", b"\n", b"\r\n", b'{"a": 1}\n', b"\r\n--C\r\n--\r\n-\r\n", b"x--B--", bytes(range(256)) * 700, b"x" * 200_000],
    ids=["empty", "newline", "crlf", "line", "almost a boundary", "boundary text", "binary", "at the limit"],
)
def test_the_very_bytes_come_back(client: FlaskClient, body: bytes) -> None:
    answer = upload(client, body)
    assert answer.status_code == 200, answer.json
    file = answer.json
    assert (file["object"], file["bytes"], file["purpose"], file["status"]) == ("file", len(body), "batch", "processed")
    assert file["filename"] == "in.jsonl"
    content = client.get(f"/v1/files/{file['id']}/content")
    assert content.data == body
    assert content.headers["Content-Length"] == str(len(body))
    assert content.headers["Content-Disposition"].startswith("attachment")
    assert content.headers["X-Content-Type-Options"] == "nosniff"


def test_the_file_may_come_before_the_other_fields(client: FlaskClient) -> None:
    answer = post(client, FILE, PURPOSE, END)
    assert (answer.status_code, answer.json["bytes"]) == (200, 4)


def test_a_file_expires_when_asked(client: FlaskClient) -> None:
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = upload(client, b"x", **fields).json
    assert file["expires_at"] - file["created_at"] == 3600
    default = upload(client, b"x").json
    assert default["expires_at"] - default["created_at"] == 30 * 86_400


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((FILE, END), "purpose"),
        ((FILE, PURPOSE.replace(b"batch", b"assistants"), END), "purpose"),
        ((PURPOSE, END), "file"),
        ((PURPOSE, FILE, FILE, END), "file"),
        ((PURPOSE, FILE.replace(b'"file"', b'"other"'), END), "file"),
        ((PURPOSE, FILE), None),
        ((PURPOSE, FILE[:-2]), None),
        ((PURPOSE, FILE, b"--B--"), "ok"),
        ((b"nothing of the kind",), None),
        ((PURPOSE, FILE.replace(b"body", b"\r\n--Bx"), END), None),
        ((PURPOSE, b"--B\r\nno-disposition: 1\r\n\r\n1\r\n", END), None),
        ((PURPOSE, b"--B\r\n\xff\xfe: 1\r\n\r\n1\r\n", END), None),
        ((PURPOSE.replace(b"batch", b"\xff"), FILE, END), "purpose"),
        ((PURPOSE.replace(b"batch", b"b" * 20_000), FILE, END), "purpose"),
        ((PURPOSE * 40, FILE, END), None),
        ((PURPOSE, FILE.replace(b"in.jsonl", b"x" * 50_000), END), None),
    ],
)
def test_a_form_that_is_wrong_is_refused_and_leaves_nothing(
    client: FlaskClient, settings_here: Settings, parts: tuple[bytes, ...], param: str | None
) -> None:
    before = stored(settings_here)
    answer = post(client, *parts)
    if param == "ok":
        assert answer.status_code == 200
        return
    assert (answer.status_code, answer.json["error"]["param"]) == (400, param)
    assert stored(settings_here) == before


@pytest.mark.parametrize(
    "content_type", ["application/json", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 300, ""]
)
def test_a_body_that_is_no_form_is_refused(client: FlaskClient, content_type: str) -> None:
    assert post(client, PURPOSE, FILE, END, content_type=content_type).status_code == 400


def test_a_file_over_the_limit_is_refused_and_leaves_nothing(client: FlaskClient, settings_here: Settings) -> None:
    before = stored(settings_here)
    for size in (200_001, 1_000_000):
        answer = upload(client, b"x" * size)
        assert (answer.status_code, answer.json["error"]["code"]) == (413, "request_too_large")
    assert stored(settings_here) == before


def test_bad_fields_are_named(client: FlaskClient) -> None:
    for seconds in ("x", "1", "99999999"):
        answer = upload(client, b"x", **{"expires_after[seconds]": seconds})
        assert (answer.status_code, answer.json["error"]["param"]) == (400, "expires_after[seconds]")


def test_lists_have_pages(client: FlaskClient) -> None:
    made = [upload(client, b"x").json["id"] for _ in range(4)]
    page = client.get("/v1/files?limit=2").json or {}
    assert [file["id"] for file in page["data"]] == made[:1:-1]
    assert (page["first_id"], page["last_id"], page["has_more"], page["object"]) == (made[3], made[2], True, "list")
    rest = client.get(f"/v1/files?limit=2&order=asc&after={made[0]}").json or {}
    assert [file["id"] for file in rest["data"]] == made[1:3]
    assert (client.get("/v1/files?purpose=batch_output").json or {})["data"] == []
    for query in ("limit=0", "limit=10001", "order=up"):
        assert client.get(f"/v1/files?{query}").status_code == 400


def test_a_deleted_file_is_gone(client: FlaskClient) -> None:
    file_id = upload(client, b"x").json["id"]
    assert client.delete(f"/v1/files/{file_id}").json == {"id": file_id, "object": "file", "deleted": True}
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answer = client.open(f"/v1/files/{file_id}{path}", method=method)
        assert (answer.status_code, (answer.json or {})["error"]["code"]) == (404, "not_found")
