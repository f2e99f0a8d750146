"""`twolane embed` into stores of vectors in their local modes: Qdrant, LanceDB and Milvus, and into a FAISS index."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import lancedb
import numpy as np
import pytest
from pymilvus import MilvusClient
from qdrant_client import QdrantClient

from tests.client.program import run_program, start_program
from tests.client.test_embed_command import client_url, command, texts_of, write_corpus
from tests.support.polling import wait_until
from twolane import JobOptions, SinkError, Twolane
from twolane.corpus import Corpus
from twolane.transfer.checkpoint import Checkpoint
from twolane.transfer.rows import Columns
from twolane.transfer.run import Reading, transfer
from twolane.transfer.sinks import open_sink
from twolane.transfer.source import open_source

pytestmark = pytest.mark.filterwarnings("ignore:Local mode is not recommended")


def read_qdrant(folder: Path) -> list[Any]:
    with contextlib.closing(QdrantClient(path=str(folder / "store"))) as store:
        points, _ = store.scroll("passages", limit=10_000, with_vectors=True)
    return [(one.payload["id"], one.payload["text"], one.payload["page"], one.vector) for one in points]


def read_lance(folder: Path) -> list[Any]:
    rows = lancedb.connect(str(folder / "store")).open_table("passages").to_arrow().to_pylist()
    return [(row["id"], row["text"], row["page"], row["embedding"]) for row in rows]


def read_milvus(folder: Path) -> list[Any]:
    with contextlib.closing(MilvusClient(str(folder / "store.db"))) as store:
        store.load_collection("passages")
        rows = store.query("passages", filter="", limit=10_000, output_fields=["*"])
    return [(row["id"], row["text"], row["page"], row["embedding"]) for row in rows]


@dataclass(frozen=True)
class Store:
    address: str
    read: Callable[[Path], list[Any]]


STORES = {
    "qdrant": Store("qdrant+file:{}/store#passages", read_qdrant),
    "lancedb": Store("lancedb:{}/store#passages", read_lance),
    "milvus": Store("milvus+file:{}/store.db#passages", read_milvus),
}


def require_reference(client: Twolane, found: list[Any], texts: list[str]) -> None:
    """Exactly the rows of the corpus with the vectors that the server gives for their texts."""
    rows = sorted(found, key=lambda row: row[2])
    assert [row[:3] for row in rows] == [(f"doc-{number}", text, number) for number, text in enumerate(texts)]
    asked = client.embed(texts, model="fake").numpy()
    np.testing.assert_allclose(np.array([row[3] for row in rows], np.float32), asked, atol=1e-6)


class Crash(Exception):
    pass


@pytest.mark.parametrize("kind", STORES)
def test_a_crash_around_any_checkpoint_leaves_exactly_the_reference_set(
    client: Twolane, tmp_path: Path, kind: str
) -> None:
    texts = texts_of(f"{kind} crash", 60)
    write_corpus(tmp_path / "corpus.parquet", texts)
    columns = Columns(text="body", id="doc_id", keep=("page",))

    def run(crash_at: int, *, late: bool) -> Checkpoint:
        """End at the checkpoint with this number: before it is kept, or after."""
        sink: Any = open_sink(STORES[kind].address.format(tmp_path))
        keep, calls = sink._keep_run, 0

        def crashing(source: str, checkpoint: str) -> None:
            nonlocal calls
            calls += 1
            if late or calls != crash_at:
                keep(source, checkpoint)
            if calls == crash_at:
                raise Crash

        sink._keep_run = crashing
        source = open_source(str(tmp_path / "corpus.parquet"))
        reading = Reading(source, columns, Corpus(JobOptions(model="fake"), 20))
        return transfer(client, reading, sink, lambda state: None)

    for crash_at, late in ((1, False), (1, True), (2, False), (1, True)):
        with pytest.raises(SinkError, match="Crash"):
            run(crash_at, late=late)
    assert run(0, late=False).rows == 60
    require_reference(client, STORES[kind].read(tmp_path), texts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORES)
def test_a_killed_client_leaves_exactly_the_reference_set(client: Twolane, tmp_path: Path, kind: str) -> None:
    texts = texts_of(f"{kind} killed", 2000)
    write_corpus(tmp_path / "corpus.parquet", texts)
    arguments = command(STORES[kind].address.format(tmp_path))
    for _ in range(3):
        before = {job.id for job in client.jobs.list()}
        process = start_program(client_url(client), tmp_path, *arguments)
        wait_until(lambda: len({job.id for job in client.jobs.list()} - before) >= 2 or process.poll() is not None, 60)  # noqa: B023
        process.kill()
        process.communicate()
    code, lines, errors = run_program(client_url(client), tmp_path, *arguments)
    assert (code, lines[-1].get("done", {}).get("rows")) == (0, 2000), errors
    require_reference(client, STORES[kind].read(tmp_path), texts)


@pytest.mark.parametrize("kind", STORES)
def test_a_store_takes_a_second_corpus_of_the_same_model_and_refuses_another(
    client: Twolane, tmp_path: Path, kind: str
) -> None:
    address = STORES[kind].address.format(tmp_path)
    columns = Columns(text="body", id="doc_id", keep=("page",))

    def run(texts: list[str], name: str, dimensions: int | None = None) -> Checkpoint:
        path = tmp_path / name
        path.write_text("".join(f'{{"doc_id": "doc-{at}", "body": "{text}", "page": {at}}}\n' for at, text in texts))
        corpus = Corpus(JobOptions(model="fake", dimensions=dimensions), 20)
        return transfer(client, Reading(open_source(str(path)), columns, corpus), open_sink(address), lambda _: None)

    texts = [f"{kind} joined {number}" for number in range(8)]
    numbered = list(enumerate(texts))
    run(numbered[:5], "first.ndjson")
    failed = run([*numbered[5:], (8, "POISON")], "second.ndjson")
    assert (failed.completed, failed.failed) == (3, 1)
    require_reference(client, STORES[kind].read(tmp_path), texts)
    with pytest.raises(SinkError, match="has vectors with 16 dimensions, and fake gives 8"):
        run(numbered, "third.ndjson", dimensions=8)


def test_a_faiss_index_finds_rows_by_their_number(client: Twolane, tmp_path: Path) -> None:
    texts = [*texts_of("faiss", 30), "POISON"]
    write_corpus(tmp_path / "corpus.parquet", texts)
    assert run_program(client_url(client), tmp_path, *command("vectors.faiss"))[0] == 6
    index = faiss.read_index(str(tmp_path / "vectors.faiss"))
    asked = client.embed(texts[:30], model="fake").numpy()
    assert index.ntotal == 30
    assert index.search(asked, 1)[1].ravel().tolist() == list(range(30))
