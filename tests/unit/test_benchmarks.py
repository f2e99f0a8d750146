"""The arithmetic of the benchmark: a wrong ratio would be believed."""

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench import FULL, QUICK
from benchmarks.corpus import repeat
from benchmarks.devices.gemm import encoder_flops
from benchmarks.goals import GOALS, judge
from benchmarks.load.wire import Incoming
from benchmarks.machine import describe, name
from benchmarks.report import DOCS, write_docs, write_results
from benchmarks.sheet import Sheet
from benchmarks.suites.gpu_stack import misplaced


def fill(sheet: Sheet, subject: str, *samples: float, suite: str = "engine", metric: str = "passages") -> None:
    for sample in samples:
        sheet.add((suite, subject), metric, sample, "tokens/s", "higher")


def test_a_ratio_compares_what_was_measured_in_the_same_round() -> None:
    sheet = Sheet()
    fill(sheet, "ours", 100, 10, 40)  # the machine was slow in the second round, for both
    fill(sheet, "theirs", 50, 5, 10)
    assert sheet.ratio(sheet.find("engine", "ours", "passages"), sheet.find("engine", "theirs", "passages")) == 2


def test_a_ratio_of_unequal_rounds_compares_the_medians() -> None:
    sheet = Sheet()
    fill(sheet, "ours", 100, 10, 40)
    fill(sheet, "theirs", 20)
    assert sheet.ratio(sheet.find("engine", "ours", "passages"), sheet.find("engine", "theirs", "passages")) == 2


def test_a_value_that_is_no_number_is_left_out_and_said() -> None:
    sheet = Sheet()
    fill(sheet, "ours", math.nan)
    assert not list(sheet.rows())
    assert len(sheet.left_out) == 1


def test_only_targets_that_were_measured_are_judged() -> None:
    sheet = Sheet()
    assert judge(sheet) == []
    fill(sheet, "Twolane engine", 45.0)
    fill(sheet, "FlagEmbedding, batch 32", 10.0)
    fill(sheet, "FlagEmbedding, default (256)", 9.0)
    met = {verdict.text: verdict.met for verdict in judge(sheet)}
    assert met == {"engine by FlagEmbedding at batch 32": True, "engine by FlagEmbedding's default": False}


def test_every_target_names_a_row_that_a_suite_writes() -> None:
    suites = "".join(path.read_text("utf-8") for path in Path("benchmarks/suites").glob("*.py"))
    servers = Path("benchmarks/peers/servers.py").read_text("utf-8")
    for goal in GOALS:
        for _, subject, metric in filter(None, (goal.over, goal.under)):
            assert f'"{subject}"' in suites + servers, subject
            assert metric.startswith(("1 client", "64 clients", "under bulk, p99")) or f'"{metric}"' in suites, metric


@pytest.mark.parametrize(
    ("received", "complete"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Le", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", True),
    ],
)
def test_the_load_generator_knows_where_an_answer_ends(received: bytes, complete: bool) -> None:
    assert Incoming().feed(received) is complete


def test_a_repeated_text_is_never_the_same_twice() -> None:
    texts = list(repeat(["a", "b"], 7))
    assert len(texts) == len(set(texts)) == 7
    assert texts[:2] == ["a", "b"]


def test_operations_are_counted_by_weights_and_by_pairs_of_tokens(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2, "hidden_size": 4, "intermediate_size": 16}')
    linear = 2 * (4 * 4 * 4 + 2 * 4 * 16)
    counted = encoder_flops(tmp_path, np.array([3, 5]))
    assert counted == 2 * linear * 8 + 4 * 2 * 4 * (9 + 25)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the page of benchmarks, with no results recorded yet."""
    copy = tmp_path / "benchmarks.md"
    copy.write_text(DOCS.read_text("utf-8"))
    monkeypatch.setattr("benchmarks.report.DOCS", copy)
    monkeypatch.setattr("benchmarks.report.RESULTS", tmp_path / "results")
    return copy


def record(sheet: Sheet, *suites: str, at: str = "2026-01-01T08:00:00") -> None:
    cores = {"server_cores": [0], "client_cores": [1]}
    run = {**cores, "date": at[:10], "at": at, "rounds": 1, "quick": False, "complete": False, "suites": suites}
    write_results(sheet, describe(), run)


def test_the_summary_replaces_only_what_stands_between_its_marks(page: Path) -> None:
    written_by_people = page.read_text("utf-8").split("<!-- begin", 1)[0]
    sheet = Sheet()
    fill(sheet, "Twolane engine", 45.0)
    record(sheet, "engine")
    write_docs(describe())
    first = page.read_text("utf-8")
    write_docs(describe())
    assert page.read_text("utf-8") == first
    assert "Twolane engine" in first
    assert first.startswith(written_by_people)


def test_a_suite_that_failed_and_ran_again_is_not_told_of_as_left_out(page: Path) -> None:
    failed, again = Sheet(), Sheet()
    fill(failed, "Twolane engine", 111.0)
    failed.leave_out("suite engine, from where it failed", "no memory")
    failed.leave_out("infinity-emb onnx", "not installed")
    fill(again, "Twolane engine", 333.0)
    fill(failed, "Twolane", 222.0, suite="web")
    record(failed, "engine", "web")
    write_docs(describe())
    assert "from where it failed" in page.read_text("utf-8")
    record(again, "engine", at="2026-01-02T08:00:00")
    write_docs(describe())
    assert "from where it failed" not in page.read_text("utf-8")
    assert "infinity-emb onnx" in page.read_text("utf-8")


def test_the_summary_has_the_newest_figures_of_each_suite_and_says_that_runs_differ(page: Path) -> None:
    old, new = Sheet(), Sheet()
    fill(old, "Twolane engine", 111.0)
    fill(old, "Twolane", 222.0, suite="web")
    fill(new, "Twolane engine", 333.0)
    record(new, "engine", at="2026-01-02T08:00:00")
    record(old, "engine", "web")
    write_docs(describe())
    text = page.read_text("utf-8")
    assert "| 333 tokens/s |" in text
    assert "| 222 tokens/s |" in text
    assert "| 111 tokens/s |" not in text
    assert "Suites of one run each: engine; web." in text


def test_a_quick_run_says_that_it_is_one() -> None:
    assert QUICK.quick
    assert not FULL.quick


def test_a_machine_is_named_by_its_processor() -> None:
    assert name({"cpu": "AMD EPYC (Genoa) 9R14", "usable": 4, "gpus": []}) == "amd-epyc-genoa-9r14-4c"


def test_a_vector_of_another_text_is_seen_where_all_vectors_are_much_alike() -> None:
    expected = 1 + 0.01 * np.random.default_rng(3).normal(size=(50, 8)).astype(np.float32)
    computed = expected + np.float32(1e-5)
    assert misplaced(computed, expected) == 0
    computed[[7, 9]] = computed[[9, 7]]
    computed[20] = np.nan
    assert misplaced(computed, expected) == 3
    assert misplaced(computed[:-1], expected) == 50, "one is missing"
