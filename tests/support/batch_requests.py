"""Files and batches as a client asks for them: forms, lines, and waiting for the end."""

import json
import time
from typing import Any

from flask.testing import FlaskClient

EMBED = "/v1/embeddings"
RERANK = "/v1/rerank"
ENDED = {"completed", "failed", "expired", "cancelled"}


def upload(client: FlaskClient, body: bytes, **fields: str) -> Any:
    """Built by hand: werkzeug's test client leaves a temporary file open behind a large form."""
    named = {"purpose": "batch", **fields}
    parts = [
        f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in named.items()
    ]
    head = '--B\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    form = "".join(parts).encode() + head.encode() + body + b"\r\n--B--\r\n"
    return client.post("/v1/files", data=form, content_type="multipart/form-data; boundary=B")


def line_of(custom_id: str, body: dict[str, Any], url: str = EMBED) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def embed(custom_id: str, text: Any, model: str = "fake", **fields: Any) -> dict[str, Any]:
    return line_of(custom_id, {"model": model, "input": text, **fields})


def ndjson(lines: list[Any]) -> bytes:
    return b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)


def start(client: FlaskClient, lines: list[Any], endpoint: str = EMBED, **fields: Any) -> dict[str, Any]:
    file = upload(client, ndjson(lines)).json
    body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h", **fields}
    answer = client.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.json
    return answer.json or {}


def wait(client: FlaskClient, batch: dict[str, Any], states: set[str] = ENDED) -> dict[str, Any]:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        now: dict[str, Any] = client.get(f"/v1/batches/{batch['id']}").json or {}
        if now["status"] in states:
            return now
        time.sleep(0.05)
    raise AssertionError(now)


def run(client: FlaskClient, lines: list[Any], endpoint: str = EMBED, **fields: Any) -> dict[str, Any]:
    return wait(client, start(client, lines, endpoint, **fields))


def read(client: FlaskClient, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of an output file by custom id, in the file's order."""
    if file_id is None:
        return {}
    answer = client.get(f"/v1/files/{file_id}/content")
    assert answer.status_code == 200
    lines = [json.loads(line) for line in answer.data.splitlines()]
    return {line["custom_id"]: line for line in lines}


def body_of(line: dict[str, Any]) -> dict[str, Any]:
    assert line["error"] is None
    assert line["id"].startswith("batch_req_")
    assert line["response"]["request_id"].startswith("req_")
    body: dict[str, Any] = line["response"]["body"]
    return body


GOOD = embed("good", "x")
