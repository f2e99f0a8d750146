"""A corpus as a row of jobs: cut, keys from content, and a second run that computes nothing twice."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.own_stack import OwnStack
from twolane import EmbeddedCorpus, JobEnded, JobOptions, Twolane
from twolane.corpus import Corpus
from twolane.flow import run_corpus

SMALL = Corpus(JobOptions(model="fake"), part_items=100, window=3)
# Enough chunks for a job that is still running when it is cancelled.
LARGE = Corpus(JobOptions(model="fake"))


def job_count(client: Twolane) -> int:
    return sum(1 for _ in client.jobs.list())


@given(st.lists(st.text(max_size=20)), st.integers(1, 7), st.integers(1, 60))
def test_the_parts_hold_every_item_once_and_in_order(texts: list[str], items: int, size_bytes: int) -> None:
    corpus = Corpus(JobOptions(model="fake"), items, size_bytes)
    parts = list(corpus.cut(texts))
    lines = b"".join(part.lines for part in parts)
    assert lines == b"".join(part.lines for part in Corpus(JobOptions(model="fake")).cut(texts))
    assert [part.start for part in parts] == [sum(part.items for part in parts[:n]) for n in range(len(parts))]
    assert sum(part.items for part in parts) == len(texts)
    assert all(part.items == 1 or len(part.lines) <= size_bytes for part in parts)
    assert all(part.items <= items for part in parts)


def test_the_key_follows_from_the_texts_and_the_options() -> None:
    def key(texts: list[str], **options: object) -> str:
        (part,) = Corpus(JobOptions(model="fake", **options)).cut(texts)  # type: ignore[arg-type] # any option
        return part.key

    assert key(["a", "b"]) == key(["a", "b"])
    assert len({key(["a", "b"]), key(["b", "a"]), key(["a", "b"], dimensions=4), key(["ab"])}) == 4


def test_only_a_window_of_the_corpus_is_read_ahead(client: Twolane) -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for read in range(1000):
            yield f"read ahead {read}"

    part, _ = next(run_corpus(client, SMALL, texts()))
    assert part.number == 0
    assert read <= 300


def test_a_second_run_takes_over_what_was_computed(client: Twolane) -> None:
    texts = [f"computed once {number}" for number in range(350)]
    first = [job.id for _, job in run_corpus(client, SMALL, texts)]
    before = job_count(client)
    assert [job.id for _, job in run_corpus(client, SMALL, texts)] == first
    assert job_count(client) == before
    changed = [job.id for _, job in run_corpus(client, SMALL, [*texts[:349], "another end"])]
    assert (changed[:3], changed[3] in first) == (first[:3], False)


def test_a_part_whose_job_was_cancelled_is_computed_by_the_next_run(client: Twolane) -> None:
    texts = [f"cancelled once {number}" for number in range(8000)]
    (part,) = LARGE.cut(texts)
    job = client.jobs.submit(part.lines, LARGE.options, key=part.key)
    client.jobs.pause(job.id)
    client.jobs.cancel(job.id)
    client.jobs.wait(job.id)
    (_, again) = next(run_corpus(client, LARGE, texts))
    assert (again.status, again.id != job.id) == ("succeeded", True)
    (_, third) = next(run_corpus(client, LARGE, texts))
    assert third.id == again.id


def test_a_job_that_is_cancelled_while_it_is_waited_for_ends_the_run(client: Twolane) -> None:
    texts = [f"cancelled meanwhile {number}" for number in range(8000)]
    (part,) = LARGE.cut(texts)
    job = client.jobs.submit(part.lines, LARGE.options, key=part.key)
    client.jobs.pause(job.id)

    def cancel(state: EmbeddedCorpus) -> None:
        client.jobs.cancel(state.job_id)

    with pytest.raises(JobEnded, match="run the same again"):
        list(run_corpus(client, LARGE, texts, cancel))


def test_progress_adds_up_over_all_jobs(client: Twolane) -> None:
    seen: list[EmbeddedCorpus] = []
    texts = [f"progress {number}" for number in range(349)]
    list(run_corpus(client, SMALL, [*texts, "POISON"], seen.append))
    assert (seen[-1].completed, seen[-1].failed) == (349, 1)
    assert seen[-1].tokens == 350 * 4 - 1
    done = [state.completed for state in seen]
    assert done == sorted(done)


def test_blocks_tell_vectors_and_errors_by_their_place_in_the_corpus(client: Twolane) -> None:
    texts = [f"block {number}" for number in range(9000)]
    texts[8500] = "POISON"
    blocks = list(client.embed_corpus(texts, model="fake"))
    assert [block.start for block in blocks] == [0, 8192]
    assert list(blocks[1].errors) == [8500]
    assert blocks[1].numpy().shape == (808, 16)
    rows = [row for block in blocks for row in block.dicts()]
    assert [row["index"] for row in rows] == list(range(9000))
    assert ("error" in rows[8500], "embedding" in rows[8501]) == (True, True)


def test_a_run_goes_on_through_a_restart_of_the_web_server(client: Twolane, service: OwnStack) -> None:
    texts = [f"restarted {number}" for number in range(900)]
    run = run_corpus(client, SMALL, texts)
    done = [next(run)[0].number]
    service.kill_web()
    service.start_web()
    done += [part.number for part, _ in run]
    assert done == list(range(9))
