"""Whatever stands in a batch's file, the batch is taken in or fails with a reason; it never stays where it is."""

import json
import logging
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.batches.batch_scheduler import BatchScheduler
from tests.support.batch_requests import EMBED, RERANK, line_of, start
from tests.support.web import services_of

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    [
        "model",
        "input",
        "query",
        "documents",
        "top_n",
        "dimensions",
        "truncate",
        "return",
        "encoding_format",
        "input_type",
        "instruction",
    ]
)
GOOD = {"model": "fake", "input": "x", "query": "q", "documents": ["a"]}
BODIES = st.dictionaries(FIELDS, VALUES, max_size=5).map(lambda fields: {**GOOD, **fields})
LINES = st.lists(
    st.tuples(st.text(max_size=3), BODIES | VALUES).map(lambda pair: json.dumps(line_of(*pair)).encode())  # type: ignore[arg-type]
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=60),
    max_size=4,
)


@pytest.mark.parametrize("endpoint", [EMBED, RERANK])
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(lines=LINES)
def test_any_file_is_taken_in_or_refused(
    app_here: Flask, caplog: pytest.LogCaptureFixture, endpoint: str, lines: list[bytes]
) -> None:
    client, scheduler = app_here.test_client(), BatchScheduler(services_of(app_here))
    begun = start(client, [line.replace(EMBED.encode(), endpoint.encode()) + b"\n" for line in lines], endpoint)
    with caplog.at_level(logging.WARNING, "app.batches.batch_scheduler"):
        scheduler.run_once()
    assert caplog.messages == []
    batch: dict[str, Any] = client.get(f"/v1/batches/{begun['id']}").json or {}
    assert batch["status"] in {"failed", "in_progress"}
    assert (batch["status"] == "failed") == bool(batch["errors"])
    if batch["status"] == "in_progress":
        client.post(f"/v1/batches/{begun['id']}/cancel")
        scheduler.run_once()
        scheduler.run_once()
        assert (client.get(f"/v1/batches/{begun['id']}").json or {})["status"] in {"cancelled", "cancelling"}
