"""The demo is what a stranger sees first: it runs to its end, its hits are right, and nothing is left behind."""

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stack.demo import PASSAGES, QUESTIONS
from stack.passages import gather_passages
from tests.support.stack_fixture import clean_environment

RIGHT = ("tempfile", "heapq.nlargest", "calendar.isleap", "textwrap.", "getpass")


def test_the_corpus_is_large_has_no_repetition_and_knows_the_answers() -> None:
    passages = gather_passages(PASSAGES)
    assert len(passages) >= PASSAGES
    assert len({passage.text.partition(": ")[2] for passage in passages}) == len(passages)
    names = {passage.name for passage in passages}
    assert {"tempfile.TemporaryDirectory", "heapq.nlargest", "calendar.isleap", "textwrap.wrap", "getpass"} <= names


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_demo_tells_its_story_within_80_columns_and_leaves_no_process(tmp_path: Path) -> None:
    environment = clean_environment(data_dir=str(tmp_path / "data"))
    before = {process.pid for process in psutil.process_iter()}
    ended = subprocess.run(
        [sys.executable, "-m", "stack.demo"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert max(len(line) for line in ended.stdout.splitlines()) <= 80
    for question, right in zip(QUESTIONS, RIGHT, strict=True):
        hit = re.search(re.escape(question) + r".*\n.*?\d  (.+)", ended.stdout)
        assert hit is not None
        assert hit[1].startswith(right)
    # A process of somebody else may end while it is looked at; then its command line is None.
    left = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]) if process.pid not in before]
    assert [words for words in left if str(tmp_path) in " ".join(words)] == []
