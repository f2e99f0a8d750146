"""Every kind of source gives its rows in order, and says in a sentence what it cannot read."""

import functools
import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.support.s3_server import BUCKET, S3Server, running_s3, use_s3
from twolane import InputError, JobOptions
from twolane.corpus import Corpus
from twolane.transfer.filtering import filter_rows
from twolane.transfer.portions import cut_rows
from twolane.transfer.rows import Columns, SeenIds, prepare
from twolane.transfer.source import open_source

ROWS = [{"id": f"d{number}", "text": f"line {number}, with a comma\tand a tab"} for number in range(9000)]
TABLE = pa.Table.from_pylist(ROWS)


def write(path: Path) -> Path:
    """Write the rows in the format that the name tells."""
    kind = path.name.partition(".")[2]
    if kind == "parquet":
        pq.write_table(TABLE, path, row_group_size=1000)
    elif kind in {"csv", "tsv", "csv.gz"}:
        options = pa.csv.WriteOptions(delimiter="\t" if kind == "tsv" else ",")
        with pa.output_stream(path, compression="detect") as file:
            pa.csv.write_csv(TABLE, file, options)
    elif kind in {"ndjson", "jsonl"}:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    elif kind == "ndjson.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    elif kind == "json":
        path.write_text(json.dumps(ROWS), "utf-8")
    else:
        make = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with make(path, TABLE.schema) as writer:
            writer.write_table(TABLE, max_chunksize=1000)
    return path


def read(path: Path | str, columns: list[str] | None = None, form: str | None = None) -> list[dict[str, Any]]:
    return [row for batch in open_source(str(path), form=form).batches(columns) for row in batch.to_pylist()]


@pytest.mark.parametrize(
    "name", ["parquet", "csv", "csv.gz", "tsv", "ndjson", "ndjson.gz", "jsonl", "json", "arrow", "ipc"]
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / f"corpus.{name}")
    assert read(path) == ROWS
    assert read(path, ["text"]) == [{"text": row["text"]} for row in ROWS]
    with pytest.raises(InputError, match=r"has no column nobody; it has id, text"):
        read(path, ["nobody"])


def test_a_glob_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        (tmp_path / f"part-{number}.ndjson").write_text(f'"text {number}"\n', "utf-8")
    assert read(f"{tmp_path}/part-*.ndjson") == [{"text": f"text {number}"} for number in range(3)]


def test_a_folder_of_texts_is_a_row_for_each_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("two\nlines", "utf-8")
    (tmp_path / "a.txt").write_text("one", "utf-8")
    (tmp_path / ".hidden").write_text("no", "utf-8")
    assert read(tmp_path) == [{"path": "a.txt", "text": "one"}, {"path": "deep/b.md", "text": "two\nlines"}]


def test_a_text_file_is_a_row_for_each_line_that_is_not_blank(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("one\r\n\n  \ntwo\nlast", "utf-8")
    assert read(tmp_path / "corpus.txt") == [{"text": "one"}, {"text": "two"}, {"text": "last"}]


def test_numbers_in_csv_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "corpus.csv").write_text('id,text\n007,"a ""quoted""\nline"\n8,\n', "utf-8")
    assert read(tmp_path / "corpus.csv") == [{"id": "007", "text": 'a "quoted"\nline'}, {"id": "8", "text": ""}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.ndjson", '"good"\n{"text": \n', "line 2: "),
        ("c.json", '{"text": "alone"}', "must be a list"),
        ("c.parquet", "PAR1 no", "cannot be read"),
        ("c.txt", b"\xff\xfe\n", "not text in UTF-8"),
        ("c.unknown", "", "does not tell its format"),
        ("c.ndjson", '{"text": "a"}\n{"text": 7}\n', "type"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as refused:
        read(path)
    assert name in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read(tmp_path / "nobody.parquet")
    with pytest.raises(InputError, match="there is no format"):
        read(tmp_path, form="cuneiform")
    with pytest.raises(InputError, match="is empty"):
        read(tmp_path)


def rows(columns: Columns, *batches: dict[str, list[Any]], limit: int | None = None) -> list[dict[str, Any]]:
    made = [pa.RecordBatch.from_pydict(batch) for batch in batches]
    return [row for batch in prepare(made, columns, limit) for row in batch.to_pylist()]


def test_a_template_joins_columns_whatever_their_type() -> None:
    columns = Columns(template="{title} ({year}): {body}", id="n", keep=("year",))
    assert columns.needed == ("title", "year", "body", "n")
    batch = {"title": ["A"], "year": [1999], "body": ["b{c}"], "n": [4]}
    assert rows(columns, batch) == [{"id": 4, "text": "A (1999): b{c}", "year": 1999}]


def test_without_an_id_column_the_row_is_the_id() -> None:
    assert [row["id"] for row in rows(Columns(), {"text": ["a", "b"]}, {"text": ["c"]})] == [0, 1, 2]
    assert rows(Columns(), {"text": ["a", "b"]}, {"text": ["c"]}, limit=1) == [{"id": 0, "text": "a"}]


@pytest.mark.parametrize("ids", [[5, 6, 7, 5], ["a", "b", "c", "a"]])
def test_an_id_that_came_before_is_refused_with_its_row(ids: list[Any]) -> None:
    columns = Columns(id="n")
    with pytest.raises(InputError, match=f"row 3 has the ID {ids[0]!r}"):
        rows(columns, {"text": ["x"] * 3, "n": ids[:3]}, {"text": ["x"], "n": ids[3:]})
    with pytest.raises(InputError, match="row 3 has the ID"):
        rows(columns, {"text": ["x"] * 4, "n": ids})


def test_ids_are_remembered_over_many_batches() -> None:
    seen = SeenIds()
    for start in range(0, 50_000, 100):
        seen.add(list(range(start, start + 100)), start)
    assert len(seen._runs) < 20
    for known in (0, 31_415, 49_999):
        with pytest.raises(InputError, match="row 50007"):
            seen.add([50_001, known], 50_006)


def test_a_row_without_a_text_is_refused_or_left_out() -> None:
    batch = {"text": ["a", None, "c"], "n": [1, 2, 3]}
    with pytest.raises(InputError, match="row 1 has no value in the column text; --skip-null leaves such rows out"):
        rows(Columns(), batch)
    assert [row["id"] for row in rows(Columns(id="n", skip_null=True), batch)] == [1, 3]
    with pytest.raises(InputError, match=r"row 1 has no value in the column n$"):
        rows(Columns(id="n"), {"text": ["a", "b"], "n": ["x", None]})


def test_a_column_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="holds int64, and only texts"):
        rows(Columns(), {"text": [1]})
    with pytest.raises(InputError, match="holds double; IDs are"):
        rows(Columns(id="n"), {"text": ["a"], "n": [0.5]})


@pytest.mark.parametrize("part_items", [1, 7, 100, 1000])
def test_the_cut_keeps_rows_beside_their_lines_whatever_the_batches(part_items: int) -> None:
    corpus = Corpus(JobOptions(model="m"), part_items)
    table = pa.table({"id": list(range(300)), "text": [f"t{number}" for number in range(300)]})

    def cut(batch_rows: int) -> list[tuple[str, list[int], int]]:
        portions = cut_rows(table.to_batches(max_chunksize=batch_rows), corpus)
        return [(one.part.key, one.rows.column("id").to_pylist(), one.part.start) for one in portions]

    assert cut(300) == cut(1) == cut(64)
    assert [number for _, ids, _ in cut(64) for number in ids] == list(range(300))
    assert all(len(ids) == part_items for _, ids, _ in cut(64)[:-1])


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files whole, as simple servers do: without ranges."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["parquet", "csv.gz"])
def test_a_file_of_a_web_server_is_read(tmp_path: Path, website: str, name: str) -> None:
    write(tmp_path / f"corpus.{name}")
    assert read(f"http://{website}/corpus.{name}") == ROWS


def test_what_is_secret_in_an_address_is_not_said(tmp_path: Path, website: str) -> None:
    write(tmp_path / "corpus.ndjson")
    address = f"http://me:hunter2@{website}/corpus.ndjson?signature=hunter2"
    assert open_source(address).name == f"http://{website}/corpus.ndjson"
    for wrong in (address.replace("corpus", "nobody"), address.replace(website, "127.0.0.1:9")):
        with pytest.raises(InputError, match="cannot be fetched") as refused:
            read(wrong)
        assert "hunter2" not in str(refused.value)
    with pytest.raises(InputError, match="has no list of files"):
        read(f"http://{website}/*.ndjson")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


def test_objects_of_a_bucket_are_read_in_the_order_of_their_names(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_s3(monkeypatch, s3)
    write(tmp_path / "corpus.csv.gz")
    for number in (1, 0):
        data = b"id,text\nfirst,one\n" if number == 0 else gzip.decompress((tmp_path / "corpus.csv.gz").read_bytes())
        httpx.put(f"{s3.url}/{BUCKET}/part-{number}.csv.gz", content=gzip.compress(data)).raise_for_status()
    assert read(f"s3://{BUCKET}/part-*.csv.gz") == [{"id": "first", "text": "one"}, *ROWS]
    assert read(f"s3://{BUCKET}/part-0.csv.gz") == [{"id": "first", "text": "one"}]
    for wrong in ("nobody-*.csv", "nobody.csv"):
        with pytest.raises(InputError, match="there is no file"):
            read(f"s3://{BUCKET}/{wrong}")


def test_several_sources_are_one_corpus_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.ndjson").write_text('{"n": 1, "text": "b"}\n', "utf-8")
    (tmp_path / "a.csv").write_text("n,text\n2,a\n", "utf-8")
    pq.write_table(pa.table({"n": pa.array([3], pa.int32()), "text": ["c"]}), tmp_path / "c.parquet")
    whole = open_source(str(tmp_path / "b.ndjson"), str(tmp_path / "c.parquet"))
    assert [row["text"] for batch in whole.batches() for row in batch.to_pylist()] == ["b", "c"]
    # Numbers of another width are made alike, texts are not made numbers.
    columns = Columns(id="n", keep=())
    assert [batch.schema.field("id").type for batch in prepare(whole.batches(), columns)] == [pa.int64()] * 2
    mixed = open_source(str(tmp_path / "b.ndjson"), str(tmp_path / "a.csv"))
    with pytest.raises(InputError, match="row 1 has the ID"):
        list(prepare(open_source(*[str(tmp_path / "b.ndjson")] * 2).batches(), columns))
    with pytest.raises(InputError, match="row 1: the column id holds string, and int64 before"):
        list(prepare(mixed.batches(), columns))


def filtered(condition: str, columns: tuple[str, ...] = ("text",)) -> list[Any]:
    batches = pa.table({"n": [1, None, 3, 4], "text": list("abcd")}).to_batches(max_chunksize=3)
    return [row for batch in filter_rows(batches, condition, columns) for row in batch.to_pylist()]


def test_a_condition_keeps_rows_in_their_order_and_null_is_no() -> None:
    assert filtered("n > 1 OR text = 'a'") == [{"text": "a"}, {"text": "c"}, {"text": "d"}]
    assert filtered("false") == []


@pytest.mark.parametrize(
    "condition",
    ["nobody = 1", "n >", "text", "1, 2", "count(*) > 1", "(SELECT count(*) FROM read_text('/etc/hostname')) > 0"],
)
def test_a_condition_that_cannot_be_used_is_refused_with_the_reason(condition: str) -> None:
    with pytest.raises(InputError, match="--where"):
        filtered(condition)


def test_a_condition_does_not_hide_that_a_column_is_missing() -> None:
    with pytest.raises(InputError, match="there is no column nobody; there are n, text"):
        filtered("true", ("nobody",))
