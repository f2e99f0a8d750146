"""`twolane embed` into databases: a real Postgres with pgvector, and Qdrant in its local mode."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow.parquet as pq
import pytest
from pgvector.psycopg import register_vector
from qdrant_client import QdrantClient

from tests.client.conftest import RunningPostgres
from tests.client.program import run_program, start_program
from tests.client.test_embed_command import client_url, command, texts_of, write_corpus
from tests.support.polling import wait_until
from twolane import InputError, Twolane
from twolane.transfer.sinks.qdrant import point_id
from twolane.transfer.source import open_source

pytestmark = pytest.mark.filterwarnings("ignore:Local mode is not recommended")


@contextlib.contextmanager
def connected(postgres: RunningPostgres) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(connection)
        yield connection


def rows_of(postgres: RunningPostgres, table: str) -> list[Any]:
    with connected(postgres) as connection:
        return connection.execute(
            f"SELECT id, text, page, embedding, tokens, error FROM {table} ORDER BY page"
        ).fetchall()


def require_reference(client: Twolane, rows: list[Any], texts: list[str]) -> None:
    """Exactly the rows of the corpus with the vectors that the server gives for their texts."""
    assert [row[0] for row in rows] == [f"doc-{number}" for number in range(len(texts))]
    assert [row[1] for row in rows] == texts
    vectors = np.stack([row[3].to_numpy() if hasattr(row[3], "to_numpy") else row[3] for row in rows])
    asked = [client.embed(texts[at : at + 2000], model="fake").numpy() for at in range(0, len(texts), 2000)]
    np.testing.assert_array_equal(vectors.astype(np.float32), np.concatenate(asked))


def parts_in(postgres: RunningPostgres, table: str) -> int:
    with connected(postgres) as connection, contextlib.suppress(psycopg.errors.UndefinedTable):
        found = connection.execute(
            "SELECT checkpoint->>'parts' FROM twolane_runs WHERE target = %s", (table,)
        ).fetchone()
        return int(found[0]) if found else 0
    return 0


def test_a_killed_client_leaves_exactly_the_reference_set_in_postgres(
    client: Twolane, postgres: RunningPostgres, tmp_path: Path
) -> None:
    texts = texts_of("postgres")
    write_corpus(tmp_path / "corpus.parquet", texts)
    to = f"{postgres.get_uri()}#passages"
    for parts in (1, 5):
        process = start_program(client_url(client), tmp_path, *command(to))
        wait_until(lambda: parts_in(postgres, "passages") >= parts, 60, 0.01)  # noqa: B023 - called at once
        process.kill()
        process.communicate()
    assert parts_in(postgres, "passages") < 15
    code, lines, errors = run_program(client_url(client), tmp_path, *command(to))
    assert (code, lines[-1].get("done", {}).get("rows")) == (0, 3000), errors
    require_reference(client, rows_of(postgres, "passages"), texts)
    with connected(postgres) as connection:
        (index,) = connection.execute(
            "SELECT indexdef FROM pg_indexes WHERE indexname = 'passages_embedding_hnsw'"
        ).fetchone()
    assert "hnsw (embedding vector_cosine_ops)" in index
    # And once more: all is there, and nothing is sent.
    jobs = sum(1 for _ in client.jobs.list())
    assert run_program(client_url(client), tmp_path, *command(to))[0] == 0
    assert sum(1 for _ in client.jobs.list()) == jobs


def test_a_run_goes_on_through_a_crash_of_the_database(
    client: Twolane, postgres: RunningPostgres, tmp_path: Path
) -> None:
    texts = texts_of("database crash")
    write_corpus(tmp_path / "corpus.parquet", texts)
    process = start_program(client_url(client), tmp_path, *command(f"{postgres.get_uri()}#crashed"))
    wait_until(lambda: parts_in(postgres, "crashed") >= 2, 60, 0.01)
    os.kill(postgres.get_pid(), signal.SIGQUIT)
    wait_until(lambda: not postgres.get_postmaster_info().is_running(), 30)
    postgres.ensure_postgres_running()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    require_reference(client, rows_of(postgres, "crashed"), texts)


def test_rows_replace_those_with_their_id(client: Twolane, postgres: RunningPostgres, tmp_path: Path) -> None:
    to = f"{postgres.get_uri()}#upserted"
    write_corpus(tmp_path / "corpus.parquet", texts_of("old", 50))
    assert run_program(client_url(client), tmp_path, *command(to))[0] == 0
    texts = texts_of("new", 50)
    write_corpus(tmp_path / "corpus.parquet", texts)
    code, lines, _ = run_program(client_url(client), tmp_path, *command(to))
    assert (code, "has changed" in lines[-1]["error"]["message"]) == (3, True)
    assert run_program(client_url(client), tmp_path, *command(to), "--overwrite")[0] == 0
    require_reference(client, rows_of(postgres, "upserted"), texts)


def test_a_second_corpus_joins_the_first_in_one_table(
    client: Twolane, postgres: RunningPostgres, tmp_path: Path
) -> None:
    to = f"{postgres.get_uri()}#joined"
    write_corpus(tmp_path / "corpus.parquet", texts_of("first", 30))
    assert run_program(client_url(client), tmp_path, *command(to))[0] == 0
    (tmp_path / "more.ndjson").write_text('{"doc_id": "other", "body": "another", "page": 30}\n', "utf-8")
    assert run_program(client_url(client), tmp_path, *command(to, "more.ndjson"))[0] == 0
    assert [row[0] for row in rows_of(postgres, "joined")][-2:] == ["doc-29", "other"]


def test_rows_that_failed_are_there_without_a_vector(
    client: Twolane, postgres: RunningPostgres, tmp_path: Path
) -> None:
    write_corpus(tmp_path / "corpus.parquet", ["good", "POISON"])
    assert run_program(client_url(client), tmp_path, *command(f"{postgres.get_uri()}#failing"))[0] == 6
    rows = rows_of(postgres, "failing")
    assert (rows[0][3] is None, rows[1][3] is None, bool(rows[1][5])) == (False, True, True)


OTHERS_RUN = """INSERT INTO twolane_runs VALUES ('t', 'x', '{"plan": "p", "model": "another", "dimension": 16}')"""


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("CREATE TABLE t (id text PRIMARY KEY, embedding vector(3))", "vectors with 3 dimensions, and fake gives 16"),
        ("CREATE TABLE t (id text PRIMARY KEY, body text)", "no column embedding"),
        (f"CREATE TABLE t (id text PRIMARY KEY, embedding vector(16)); {OTHERS_RUN}", "vectors of another"),
    ],
)
def test_a_table_of_other_vectors_is_refused(
    client: Twolane, postgres: RunningPostgres, tmp_path: Path, made: str, message: str
) -> None:
    write_corpus(tmp_path / "corpus.parquet", texts_of("refused", 5))
    # Makes the table of runs.
    run_program(client_url(client), tmp_path, *command(f"{postgres.get_uri()}#first"))
    with connected(postgres) as connection:
        connection.execute("DROP TABLE IF EXISTS t; DELETE FROM twolane_runs WHERE target = 't';" + made)
    code, lines, _ = run_program(client_url(client), tmp_path, *command(f"{postgres.get_uri()}#t"))
    assert (code, message in lines[-1]["error"]["message"]) == (4, True)


def test_vectors_of_other_weights_are_refused(client: Twolane, postgres: RunningPostgres, tmp_path: Path) -> None:
    to = f"{postgres.get_uri()}#weights"
    write_corpus(tmp_path / "corpus.parquet", texts_of("weights", 5))
    assert run_program(client_url(client), tmp_path, *command(to))[0] == 0
    with connected(postgres) as connection:
        change = "UPDATE twolane_runs SET checkpoint = jsonb_set(checkpoint, '{fingerprint}', %s) WHERE target = %s"
        connection.execute(change, ('"older"', "weights"))
    code, lines, _ = run_program(client_url(client), tmp_path, *command(to), "--overwrite")
    assert (code, "is not the one that made the vectors" in lines[-1]["error"]["message"]) == (4, True)


def test_a_database_that_is_away_is_named_without_its_password(client: Twolane, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.parquet", texts_of("away", 5))
    for to in ("postgresql://me:hunter2@127.0.0.1:9/db#t", "qdrant://:hunter2@127.0.0.1:9/passages"):
        code, lines, errors = run_program(client_url(client), tmp_path, *command(to))
        assert (code, "127.0.0.1" in lines[-1]["error"]["message"]) == (4, True)
        assert "hunter2" not in f"{lines}{errors}"
    code, lines, _ = run_program(client_url(client), tmp_path, *command("postgresql://127.0.0.1:9/db"))
    assert (code, "ends with the table" in lines[-1]["error"]["message"]) == (4, True)


def points_of(folder: Path) -> list[Any]:
    with contextlib.closing(QdrantClient(path=str(folder))) as qdrant:
        points, _ = qdrant.scroll("passages", limit=10_000, with_vectors=True)
    return sorted(points, key=lambda point: point.payload["page"])


def test_a_killed_client_leaves_exactly_the_reference_set_in_qdrant(client: Twolane, tmp_path: Path) -> None:
    texts = texts_of("qdrant", 1500)
    write_corpus(tmp_path / "corpus.parquet", texts)
    to, folder = f"qdrant+file:{tmp_path}/store#passages", tmp_path / "store"
    sizes = iter((60_000, 120_000))
    for size_bytes in sizes:
        process = start_program(client_url(client), tmp_path, *command(to))
        stored = folder / "collection" / "passages" / "storage.sqlite"
        wait_until(lambda: stored.exists() and stored.stat().st_size > size_bytes, 60, 0.01)  # noqa: B023 - at once
        assert process.poll() is None
        process.kill()
        process.communicate()
    code, lines, errors = run_program(client_url(client), tmp_path, *command(to))
    assert (code, lines[-1].get("done", {}).get("rows")) == (0, 1500), errors
    points = points_of(folder)
    assert [point.payload["id"] for point in points] == [f"doc-{number}" for number in range(1500)]
    assert [point.payload["text"] for point in points] == texts
    assert {point.id for point in points} == {point_id(f"doc-{number}") for number in range(1500)}
    # Qdrant normalizes what it compares by cosine; the fake model's vectors are of length 1 already.
    np.testing.assert_allclose([point.vector for point in points], client.embed(texts, model="fake").numpy(), atol=1e-6)


def test_a_collection_of_other_vectors_is_refused(client: Twolane, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.parquet", texts_of("collection", 5))
    to = f"qdrant+file:{tmp_path}/store#passages"
    assert run_program(client_url(client), tmp_path, *command(to))[0] == 0
    code, lines, _ = run_program(client_url(client), tmp_path, *command(to), "--dimensions", "4")
    assert (code, "vectors with 16 dimensions, and fake gives 4" in lines[-1]["error"]["message"]) == (4, True)


def test_numbers_are_points_as_they_are() -> None:
    assert point_id(7) == 7
    assert point_id(-7) == point_id("-7")
    assert len(str(point_id("a"))) == 36


def test_a_table_of_postgres_is_a_corpus_in_the_order_of_its_key(
    client: Twolane, postgres: RunningPostgres, tmp_path: Path
) -> None:
    uri = postgres.get_uri()
    with connected(postgres) as connection:
        connection.execute("CREATE TABLE docs (doc_id text PRIMARY KEY, body text, page int, price numeric)")
        connection.execute(
            "INSERT INTO docs SELECT 'doc-' || n, 'row ' || n, n, n / 4.0 FROM generate_series(8999, 0, -1) AS n"
        )
    rows = [row for batch in open_source(f"{uri}#docs").batches() for row in batch.to_pylist()]
    assert [row["doc_id"] for row in rows] == sorted(f"doc-{number}" for number in range(9000))
    assert rows[0] == {"doc_id": "doc-0", "body": "row 0", "page": 0, "price": "0.00000000000000000000"}
    query = ["--sql", "SELECT * FROM docs WHERE page < 300 ORDER BY page", "--where", "page >= 0"]
    code, lines, errors = run_program(client_url(client), tmp_path, *command("vectors.parquet", uri, *query))
    assert (code, lines[-1].get("done", {}).get("rows")) == (0, 300), errors
    assert pq.read_table(tmp_path / "vectors.parquet").column("page").to_pylist() == list(range(300))


@pytest.mark.parametrize(
    ("address", "query", "message"),
    [
        ("", None, "name a table behind the address"),
        ("", "SELECT 1", "needs ORDER BY"),
        ("#nobody", None, "there is no table nobody"),
        ("#keyless", None, "no primary key"),
        ("", "SELECT nobody FROM keyless ORDER BY 1", 'column "nobody" does not exist'),
    ],
)
def test_a_query_that_cannot_be_read_is_refused_with_the_reason(
    postgres: RunningPostgres, address: str, query: str | None, message: str
) -> None:
    with connected(postgres) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS keyless (a text)")
    with pytest.raises(InputError, match=message):
        list(open_source(postgres.get_uri() + address, query=query).batches())


def test_a_database_without_an_answer_is_named_without_its_password() -> None:
    source = open_source("postgresql://me:hunter2@127.0.0.1:9/db#docs")
    with pytest.raises(InputError, match=r"127.0.0.1:9/db#docs: ") as refused:
        list(source.batches())
    assert "hunter2" not in str(refused.value)
