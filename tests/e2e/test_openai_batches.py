"""OpenAI's Files and Batches with the real openai SDK, against real processes and the real model."""

import base64
import io
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import Batch

from tests.support.corpus import passages
from tests.support.product import MODEL
from tests.support.stack_fixture import RunningStack

LINES = 5000


@pytest.fixture(scope="module")
def client(stack: RunningStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def make_file(texts: Sequence[str], model: str = MODEL) -> io.BytesIO:
    lines = (
        {
            "custom_id": f"request-{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": model, "input": text, "encoding_format": "base64" if number % 2 else "float"},
        }
        for number, text in enumerate(texts)
    )
    file = io.BytesIO("".join(json.dumps(line) + "\n" for line in lines).encode())
    file.name = "batch.jsonl"
    return file


def start(client: openai.OpenAI, file: io.BytesIO) -> Batch:
    uploaded = client.files.create(file=file, purpose="batch")
    assert uploaded.status == "processed"
    assert uploaded.bytes == len(file.getvalue())
    return client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/embeddings", completion_window="24h", metadata={"run": "test"}
    )


def wait(client: openai.OpenAI, batch: Batch, within_s: float = 150) -> Batch:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        now = client.batches.retrieve(batch.id)
        counts = now.request_counts
        assert counts is not None
        assert counts.completed + counts.failed <= max(counts.total, 0)
        if now.status in {"completed", "failed", "expired", "cancelled"}:
            return now
        time.sleep(0.2)
    raise AssertionError(now)


def read(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()] if file_id else []


@pytest.mark.parametrize("model", ["fake", pytest.param(MODEL, marks=pytest.mark.slow)])
def test_a_batch_of_five_thousand_lines_runs_and_its_files_are_read_back(client: openai.OpenAI, model: str) -> None:
    texts = passages(LINES)
    file = make_file(texts, model)
    batch = start(client, file)
    assert batch.status == "validating"
    done = wait(client, batch)
    assert done.status == "completed", done
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": LINES, "completed": LINES, "failed": 0}
    assert done.metadata == {"run": "test"}
    lines = read(client, done.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"request-{number}" for number in range(LINES)]
    # The same vectors as the synchronous route gives, whichever way they are written.
    for number in (0, 1, 2501, LINES - 1):
        value = lines[number]["response"]["body"]["data"][0]["embedding"]
        got = np.frombuffer(base64.b64decode(value), "<f4") if isinstance(value, str) else np.array(value)
        expected = client.embeddings.create(model=model, input=texts[number]).data[0].embedding
        np.testing.assert_allclose(got, expected, atol=1e-4)
    assert client.files.content(done.input_file_id).read() == file.getvalue()


def test_a_batch_that_is_cancelled_half_way_keeps_what_was_computed(client: openai.OpenAI) -> None:
    lines = 1500
    batch = start(client, make_file(passages(lines)))
    while (client.batches.retrieve(batch.id).request_counts or batch.request_counts).completed < lines // 10:  # type: ignore[union-attr]
        time.sleep(0.05)
    assert client.batches.cancel(batch.id).status == "cancelling"
    ended = wait(client, batch)
    assert ended.status == "cancelled"
    counts = ended.request_counts
    assert counts is not None
    assert counts.completed + counts.failed == counts.total == lines
    assert lines // 10 <= counts.completed < lines
    output, errors = read(client, ended.output_file_id), read(client, ended.error_file_id)
    assert (len(output), len(errors)) == (counts.completed, counts.failed)
    assert all(line["response"]["status_code"] == 200 for line in output)
    assert {(line["response"], line["error"]["code"]) for line in errors} == {(None, "batch_cancelled")}
    assert len({line["custom_id"] for line in (*output, *errors)}) == lines
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_the_sdk_walks_through_the_pages(client: openai.OpenAI) -> None:
    made = [start(client, make_file(["x"], "fake")).id for _ in range(3)]
    listed = [batch.id for batch in client.batches.list(limit=2)]
    assert listed[:3] == made[::-1]
    files = [file.id for file in client.files.list(limit=2, purpose="batch")]
    assert len(files) == len(set(files)) >= 3
    assert client.files.delete(files[0]).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(files[0])


def test_a_bad_line_is_told_by_its_number(client: openai.OpenAI) -> None:
    file = make_file(["x", "y"])
    file = io.BytesIO(file.getvalue() + b"no json\n")
    file.name = "bad.jsonl"
    failed = wait(client, start(client, file))
    assert failed.status == "failed"
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [(error.code, error.line) for error in failed.errors.data] == [("invalid_json_line", 3)]
