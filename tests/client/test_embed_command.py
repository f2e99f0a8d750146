"""`twolane embed` and `rerank` on a real server: whole files, and whatever can end a run in between."""

import json
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.client.program import run_program, start_program, stop_after_parts
from tests.support.own_stack import OwnStack
from twolane import JobOptions, Twolane
from twolane.corpus import Corpus
from twolane.transfer.rows import Columns
from twolane.transfer.run import Reading, transfer
from twolane.transfer.sinks import open_sink
from twolane.transfer.source import open_source

ROWS = 3000


def texts_of(name: str, rows: int = ROWS) -> list[str]:
    return [f"{name} passage number {number}" for number in range(rows)]


def write_corpus(path: Path, texts: list[str]) -> Path:
    ids = [f"doc-{number}" for number in range(len(texts))]
    pages = list(range(len(texts)))
    pq.write_table(pa.table({"doc_id": ids, "body": texts, "page": pages}), path, row_group_size=700)
    return path


def command(to: str, source: str = "corpus.parquet", *more: str) -> list[str]:
    columns = ["--text-column", "body", "--id-column", "doc_id", "--keep", "page"]
    return ["embed", source, "-m", "fake", *columns, "--part-rows", "200", "--to", to, *more]


def require_reference(client: Twolane, table: pa.Table, texts: list[str]) -> None:
    """Exactly the rows of the corpus, in order, with the vectors that the server gives for their texts."""
    assert table.column("id").to_pylist() == [f"doc-{number}" for number in range(len(texts))]
    assert table.column("text").to_pylist() == texts
    assert table.column("page").to_pylist() == list(range(len(texts)))
    vectors = np.stack(table.column("embedding").to_numpy(zero_copy_only=False))
    asked = [client.embed(texts[at : at + 2000], model="fake").numpy() for at in range(0, len(texts), 2000)]
    np.testing.assert_array_equal(vectors, np.concatenate(asked))


def test_a_corpus_becomes_one_file_with_everything_beside_the_vectors(client: Twolane, tmp_path: Path) -> None:
    texts = texts_of("whole", 500)
    write_corpus(tmp_path / "corpus.parquet", texts)
    code, lines, _ = run_program(client_url(client), tmp_path, *command("vectors.parquet"))
    assert (code, lines[-1]["done"]["rows"], lines[-1]["done"]["dimension"]) == (0, 500, 16)
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert table.column_names == ["id", "text", "page", "embedding", "tokens", "truncated", "error"]
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
    require_reference(client, table, texts)
    facts = json.loads(table.schema.metadata[b"twolane"])
    assert (facts["model"], facts["finished"], facts["fingerprint"] != "") == ("fake", True, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.parquet", "vectors.parquet"]


def test_the_same_command_again_finds_that_all_is_done(client: Twolane, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.parquet", texts_of("again", 450))
    run_program(client_url(client), tmp_path, *command("vectors.parquet"))
    before, jobs = (tmp_path / "vectors.parquet").read_bytes(), sum(1 for _ in client.jobs.list())
    code, lines, _ = run_program(client_url(client), tmp_path, *command("vectors.parquet"))
    assert (code, lines[-1]["done"]["rows"]) == (0, 450)
    assert (tmp_path / "vectors.parquet").read_bytes() == before
    assert sum(1 for _ in client.jobs.list()) == jobs


def test_a_killed_client_goes_on_to_exactly_the_reference_set(client: Twolane, tmp_path: Path) -> None:
    texts, before = texts_of("killed"), sum(1 for _ in client.jobs.list())
    write_corpus(tmp_path / "corpus.parquet", texts)
    for parts in (1, 4, 9):
        process = start_program(client_url(client), tmp_path, *command("vectors.parquet"))
        stop_after_parts(process, tmp_path / "vectors.parquet.partial", parts)
        assert not (tmp_path / "vectors.parquet").exists()
    code, _, errors = run_program(client_url(client), tmp_path, *command("vectors.parquet"))
    assert code == 0, errors
    require_reference(client, pq.read_table(tmp_path / "vectors.parquet"), texts)
    # Each part was one job, whichever run sent it: nothing was computed twice.
    assert sum(1 for _ in client.jobs.list()) - before == ROWS // 200


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(client: Twolane, tmp_path: Path) -> None:
    texts = texts_of("random")
    write_corpus(tmp_path / "corpus.parquet", texts)
    moments = random.Random(17)
    for _ in range(12):
        process = start_program(client_url(client), tmp_path, *command("vectors.parquet"))
        killer = threading.Timer(moments.uniform(0.3, 2.0), process.kill)
        killer.start()
        process.communicate()
        killer.join()
    assert run_program(client_url(client), tmp_path, *command("vectors.parquet"))[0] == 0
    require_reference(client, pq.read_table(tmp_path / "vectors.parquet"), texts)


def test_a_crash_at_any_write_to_the_disk_leaves_a_run_that_goes_on(
    client: Twolane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = texts_of("crash", 40)
    write_corpus(tmp_path / "corpus.parquet", texts)
    columns = Columns(text="body", id="doc_id", keep=("page",))
    reading = Reading(open_source(str(tmp_path / "corpus.parquet")), columns, Corpus(JobOptions(model="fake"), 20))
    target, real = tmp_path / "vectors.parquet", os.fsync
    crashes = 0
    while True:
        left = crashes + 1

        def fsync(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        try:
            transfer(client, reading, open_sink(str(target)), lambda _: None)
        except KeyboardInterrupt:
            crashes += 1
            monkeypatch.setattr(os, "fsync", real)
            transfer(client, reading, open_sink(str(target)), lambda _: None)
        require_reference(client, pq.read_table(target), texts)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.parquet", "vectors.parquet"]
        target.unlink()
        if left > 0:
            break
    assert crashes >= 10


def test_a_run_goes_on_through_a_restart_of_the_server(client: Twolane, service: OwnStack, tmp_path: Path) -> None:
    texts = texts_of("restart")
    write_corpus(tmp_path / "corpus.parquet", texts)
    process = start_program(client_url(client), tmp_path, *command("vectors.parquet"))
    folder = tmp_path / "vectors.parquet.partial"
    while len(list(folder.glob("*.arrow"))) < 3:
        assert process.poll() is None
    service.kill_web()
    service.start_web()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    require_reference(client, pq.read_table(tmp_path / "vectors.parquet"), texts)


def test_ctrl_c_says_how_to_come_back(client: Twolane, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.parquet", texts_of("interrupted", 3 * ROWS))
    process = start_program(client_url(client), tmp_path, *command("vectors.parquet"))
    errors = stop_after_parts(process, tmp_path / "vectors.parquet.partial", 1, signal.SIGINT)
    assert process.returncode == 130
    assert "The same command goes on from here" in errors
    assert "Traceback" not in errors
    assert run_program(client_url(client), tmp_path, *command("vectors.parquet"))[0] == 0


def test_two_commands_do_not_write_one_file(client: Twolane, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.parquet", texts_of("twice"))
    process = start_program(client_url(client), tmp_path, *command("vectors.parquet"))
    while not (tmp_path / "vectors.parquet.partial" / "lock").exists():
        assert process.poll() is None
    code, lines, _ = run_program(client_url(client), tmp_path, *command("vectors.parquet"))
    process.communicate(timeout=60)
    assert (code, process.returncode) == (4, 0)
    assert "another command is writing" in lines[-1]["error"]["message"]


def test_rows_that_fail_have_their_error_and_the_exit_code_says_so(client: Twolane, tmp_path: Path) -> None:
    texts = texts_of("failing", 400)
    texts[250] = "POISON"
    write_corpus(tmp_path / "corpus.parquet", texts)
    code, lines, _ = run_program(client_url(client), tmp_path, *command("vectors.parquet"))
    assert (code, lines[-1]["done"]["failed"], lines[-1]["done"]["completed"]) == (6, 1, 399)
    rows = pq.read_table(tmp_path / "vectors.parquet").slice(249, 2).to_pylist()
    assert (rows[0]["error"], len(rows[0]["embedding"])) == (None, 16)
    assert (rows[1]["embedding"], "not finite" in rows[1]["error"] or bool(rows[1]["error"])) == (None, True)


def test_the_other_formats_hold_the_same_vectors(client: Twolane, tmp_path: Path) -> None:
    texts = [*texts_of("formats", 300), "POISON"]
    write_corpus(tmp_path / "corpus.parquet", texts)
    for name in ("v.arrow", "v.npy", "v.ndjson"):
        assert run_program(client_url(client), tmp_path, *command(name))[0] == 6
    expected = client.embed(texts[:300], model="fake").numpy()
    vectors = np.load(tmp_path / "v.npy")
    np.testing.assert_array_equal(vectors[:300], expected)
    assert (vectors.shape, bool(np.isnan(vectors[300]).all())) == ((301, 16), True)
    rows = [json.loads(line) for line in (tmp_path / "v.ndjson").read_text("utf-8").splitlines()]
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows[:300]], np.float32), expected)
    assert (rows[300]["id"], rows[300]["embedding"]) == ("doc-300", None)
    with pa.memory_map(str(tmp_path / "v.arrow")) as file:
        require_reference(client, pa.ipc.open_file(file).read_all().slice(0, 300), texts[:300])


def test_pairs_become_scores(client: Twolane, tmp_path: Path) -> None:
    pairs = [{"q": f"question {number}", "d": f"answer {number}"} for number in range(250)]
    (tmp_path / "pairs.ndjson").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    options = ["--query-column", "q", "--text-column", "d", "-m", "fake", "--part-rows", "100"]
    code, lines, _ = run_program(
        client_url(client), tmp_path, "rerank", "pairs.ndjson", *options, "--to", "ranked.parquet"
    )
    assert (code, lines[-1]["done"]["rows"]) == (0, 250)
    table = pq.read_table(tmp_path / "ranked.parquet")
    assert table.column("query")[249].as_py() == "question 249"
    alone = client.rerank("question 249", ["answer 249"], model="fake").results[0].relevance_score
    assert table.column("relevance_score")[249].as_py() == pytest.approx(alone, abs=1e-5)


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(client: Twolane, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.parquet", texts_of("dry", 300))
    code, lines, _ = run_program(client_url(client), tmp_path, *command("v.parquet", "corpus.parquet", "--dry-run"))
    assert (code, lines[0]["estimate"]["rows"], lines[0]["estimate"]["tokens"] > 0) == (0, 300, True)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.parquet"]


def test_texts_from_standard_input_are_embedded(client: Twolane, tmp_path: Path) -> None:
    given = "".join(json.dumps({"text": text}) + "\n" for text in texts_of("piped", 30))
    arguments = ["embed", "-", "-m", "fake", "--to", "v.npy"]
    assert run_program(client_url(client), tmp_path, *arguments, given=given)[0] == 0
    expected = client.embed(texts_of("piped", 30), model="fake").numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)


def test_a_file_of_vectors_answers_a_question(client: Twolane, tmp_path: Path) -> None:
    texts = texts_of("searched", 300)
    write_corpus(tmp_path / "corpus.parquet", texts)
    run_program(client_url(client), tmp_path, *command("vectors.parquet"))
    code, lines, _ = run_program(
        client_url(client), tmp_path, "search", texts[123], "--in", "vectors.parquet", "--top", "3"
    )
    assert (code, len(lines), lines[0]["id"], lines[0]["text"]) == (0, 3, "doc-123", texts[123])
    assert lines[0]["score"] == pytest.approx(1.0, abs=1e-5)
    _, ranked, _ = run_program(
        client_url(client), tmp_path, "search", texts[123], "--in", "vectors.parquet", "--rerank"
    )
    scores = [row["score"] for row in ranked]
    assert (len(ranked), scores) == (10, sorted(scores, reverse=True))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--text-column", "nobody"], 3, "corpus.parquet has no column nobody; it has body, doc_id, page"),
        (["--id-column", "same"], 3, "no column same"),
        (["--text-column", "page"], 3, "holds int64, and only texts"),
        (["--model", "unknown"], 5, "unknown"),
        (["--to", "v.xyz"], 4, "does not tell a format"),
        (["--to", "nowhere://host/x"], 4, "no sink for addresses"),
        (["--to", "/proc/no/v.parquet"], 4, "cannot be written"),
        (["--keep", "embedding"], 3, "cannot be kept"),
        (["--template", "{body"], 3, "template"),
        (["--dimensions", "17"], 5, "at most 16"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_an_exit_code(
    client: Twolane, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    write_corpus(tmp_path / "corpus.parquet", texts_of("refused", 10))
    done, lines, errors = run_program(client_url(client), tmp_path, *command("v.parquet"), *arguments)
    assert (done, errors) == (code, "")
    assert message in lines[-1]["error"]["message"]
    assert "\n" not in lines[-1]["error"]["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.parquet"]


def test_what_is_there_already_is_not_lost(client: Twolane, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.parquet", texts_of("kept", 30))
    (tmp_path / "v.npy").write_bytes(b"mine")
    code, lines, _ = run_program(client_url(client), tmp_path, *command("v.npy"))
    assert (code, "--overwrite" in lines[-1]["error"]["message"]) == (4, True)
    assert (tmp_path / "v.npy").read_bytes() == b"mine"
    assert run_program(client_url(client), tmp_path, *command("v.npy"), "--overwrite")[0] == 0
    assert np.load(tmp_path / "v.npy").shape == (30, 16)


def test_other_options_and_another_corpus_are_refused_behind_a_run_that_was_begun(
    client: Twolane, tmp_path: Path
) -> None:
    texts = texts_of("begun")
    write_corpus(tmp_path / "corpus.parquet", texts)
    process = start_program(client_url(client), tmp_path, *command("vectors.parquet"))
    stop_after_parts(process, tmp_path / "vectors.parquet.partial", 2)
    code, lines, _ = run_program(client_url(client), tmp_path, *command("vectors.parquet"), "--dimensions", "4")
    assert (code, "other options" in lines[-1]["error"]["message"]) == (4, True)
    write_corpus(tmp_path / "corpus.parquet", ["changed", *texts[1:]])
    code, lines, _ = run_program(client_url(client), tmp_path, *command("vectors.parquet"))
    assert (code, "has changed" in lines[-1]["error"]["message"]) == (3, True)
    write_corpus(tmp_path / "corpus.parquet", texts)
    assert run_program(client_url(client), tmp_path, *command("vectors.parquet"))[0] == 0
    require_reference(client, pq.read_table(tmp_path / "vectors.parquet"), texts)


def test_rows_that_were_added_to_a_finished_corpus_are_noticed(client: Twolane, tmp_path: Path) -> None:
    texts = texts_of("grown", 420)
    write_corpus(tmp_path / "corpus.parquet", texts[:400])
    run_program(client_url(client), tmp_path, *command("vectors.parquet"))
    write_corpus(tmp_path / "corpus.parquet", texts)
    code, lines, _ = run_program(client_url(client), tmp_path, *command("vectors.parquet"))
    assert (code, "has changed" in lines[-1]["error"]["message"]) == (3, True)
    assert pq.read_table(tmp_path / "vectors.parquet").num_rows == 400


def test_a_server_that_is_away_is_waited_for_and_then_named(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.parquet", texts_of("away", 10))
    url = "http://me:secret@127.0.0.1:9"
    code, lines, errors = run_program(url, tmp_path, "--wait", "1", "--api-key", "tl-secret", *command("v.parquet"))
    assert (code, "no Twolane server answers" in lines[-1]["error"]["message"]) == (5, True)
    assert "secret" not in json.dumps(lines) + errors


def client_url(client: Twolane) -> str:
    return str(client._target.url)
