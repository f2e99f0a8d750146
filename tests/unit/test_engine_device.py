"""The engine with the fake backend: what a work means."""

import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from config.settings import Settings
from tasks.engine import JobParams, Outcomes, Work
from tasks.errors import InvalidRequest, LaneFull, NoWorker, TwolaneError, WrongCapability
from tasks.lanes import Service
from tests.support.engine_work import Build, submit
from tests.support.fakes import GatedBackend, fake_model
from workers.engine import DeviceEngine


def test_equal_texts_get_equal_unit_vectors_whatever_they_are_batched_with(build: Build) -> None:
    engine = build(max_batch_tokens=64)
    texts = [f"{'word ' * (at % 40)}{at % 90}" for at in range(300)]
    many = submit(engine, texts).result(10)
    assert many.values.shape == (300, 16)
    assert many.values.dtype == np.float32
    assert np.allclose(np.linalg.norm(many.values, axis=1), 1, atol=1e-6)
    for at in (0, 17, 299):
        one = submit(engine, [texts[at]], Service.INTERACTIVE).result(10)
        assert np.array_equal(one.values[0], many.values[at])
        assert one.tokens[0] == many.tokens[at]


def test_results_go_to_the_right_waiter(build: Build) -> None:
    engine = build()
    futures: dict[int, Future[Outcomes]] = {}

    def bring(start: int) -> None:
        for at in range(start, start + 50):
            futures[at] = submit(engine, [f"text {at}", f"more {at}"], Service(["bulk", "interactive"][at % 2]))

    threads = [threading.Thread(target=bring, args=(start,)) for start in range(0, 200, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, future in futures.items():
        alone = submit(engine, [f"text {at}", f"more {at}"]).result(10)
        assert np.array_equal(future.result(10).values, alone.values)


def test_works_that_come_together_end_as_they_do_one_by_one(build: Build) -> None:
    engine = build()
    query = Work("fake", "embeddings", ["a", "b", "a"], service=Service.INTERACTIVE)
    strict = replace(query, texts=["word " * 600, "short"], params=JobParams(truncate="none"))
    short = replace(query, params=JobParams(dimensions=4))
    works = [
        query,
        strict,
        replace(query, texts=[]),
        replace(query, model="unknown"),
        short,
        replace(query, texts=["c"]),
    ]
    works += [replace(query, operation="rerank", queries=["q"] * count) for count in (3, 1)]
    together = engine.submit_all(works)
    for work, future in zip(works, together, strict=True):
        if isinstance(future.exception(10), TwolaneError):
            with pytest.raises(type(future.exception())):
                engine.submit(work)
            continue
        found, alone = future.result(), engine.submit(work).result(10)
        assert np.array_equal(found.values, alone.values)
        assert found.tokens.tolist() == alone.tokens.tolist()
        assert found.truncated.tolist() == alone.truncated.tolist()
        assert found.errors == alone.errors
    assert [type(one.exception()) for one in together if one.exception()] == [NoWorker, InvalidRequest]


def test_of_works_that_come_together_those_that_do_not_fit_are_refused_and_the_others_answered() -> None:
    settings = Settings(_env_file=None, engine_max_tokens=40, interactive_max_tokens=40)
    model = fake_model(gated=True)
    assert isinstance(model.backend, GatedBackend)
    with DeviceEngine(settings, {"fake": model}) as engine:
        work = Work("fake", "embeddings", ["word " * 15], service=Service.INTERACTIVE)
        taken = engine.submit_all([work] * 5)
        refused = [future for future in taken if future.done() and isinstance(future.exception(), LaneFull)]
        model.backend.gate.set()
        assert 0 < len(refused) < 5
        assert all(future.result(10).tokens.tolist() == [17] for future in taken if future not in refused)
        assert engine.submit(work).result(10).tokens.tolist() == [17]


def test_equal_texts_of_one_work_are_computed_once(gated: tuple[DeviceEngine, GatedBackend]) -> None:
    engine, backend = gated
    future = submit(engine, ["same"] * 30 + ["other"])
    backend.gate.set()
    outcomes = future.result(10)
    assert sum(map(len, backend.passes[1:])) == 2
    assert np.array_equal(outcomes.values[0], outcomes.values[29])
    assert not np.array_equal(outcomes.values[0], outcomes.values[30])


def test_dimensions_cut_the_vector_and_give_it_length_one_again(build: Build) -> None:
    engine = build()
    whole = submit(engine, ["a text"]).result(10).values[0]
    short = submit(engine, ["a text"], dimensions=5).result(10).values[0]
    assert np.allclose(short, whole[:5] / np.linalg.norm(whole[:5]), atol=1e-6)


def test_an_unnormalized_model_keeps_its_cut_vectors_as_they_are(build: Build) -> None:
    engine = build(card={"normalize": False})
    whole = submit(engine, ["a text"]).result(10).values[0]
    short = submit(engine, ["a text"], dimensions=5).result(10).values[0]
    assert np.array_equal(short, whole[:5])


def test_an_instruction_stands_before_the_text_in_the_cards_format(build: Build) -> None:
    engine = build(card={"query_instruction_format": "Instruct: {}\\nQuery: {}"})
    instructed = submit(engine, ["a {text}"], instruction="find it").result(10)
    written_out = submit(engine, ["Instruct: find it\nQuery: a {text}"]).result(10)
    assert np.array_equal(instructed.values, written_out.values)


@pytest.mark.parametrize(("truncate", "kept"), [("end", slice(0, 62)), ("start", slice(38, 100))])
def test_a_long_text_is_cut_at_the_asked_side(build: Build, truncate: Any, kept: slice) -> None:
    engine = build()
    words = [f"w{at}" for at in range(100)]
    outcomes = submit(engine, [" ".join(words), "short"], truncate=truncate).result(10)
    assert outcomes.truncated.tolist() == [True, False]
    assert outcomes.tokens.tolist() == [64, 3]
    same = submit(engine, [" ".join(words[kept])]).result(10)
    assert np.array_equal(outcomes.values[0], same.values[0])


def test_a_long_text_is_an_item_error_where_nothing_may_be_cut(build: Build) -> None:
    engine = build()
    outcomes = submit(engine, ["short", "long " * 100, "short too"], truncate="none").result(10)
    assert outcomes.errors[1].code == "context_length_exceeded"
    assert list(outcomes.errors) == [1]
    assert not outcomes.values[1].any()
    assert outcomes.values[0].any()
    assert outcomes.values[2].any()


def test_a_work_whose_items_are_all_refused_ends_at_once(build: Build) -> None:
    outcomes = submit(build(), ["long " * 100] * 3, truncate="none").result(0)
    assert sorted(outcomes.errors) == [0, 1, 2]


def test_a_work_without_texts_ends_at_once(build: Build) -> None:
    assert submit(build(), []).result(0).values.shape == (0, 16)


def test_similarity_is_the_cosine_moved_to_zero_and_one(build: Build) -> None:
    engine = build(card={"query_instruction": "ask: "})
    outcomes = submit(engine, ["one", "two", "q"], operation="rerank", queries=["q", "q", "r"]).result(10)
    vectors = submit(engine, ["ask: q", "ask: r", "one", "two", "q"]).result(10).values
    expected = (1 + np.array([vectors[0] @ vectors[2], vectors[0] @ vectors[3], vectors[1] @ vectors[4]])) / 2
    assert outcomes.values.shape == (3,)
    assert np.allclose(outcomes.values, expected, atol=1e-6)


def test_a_query_of_many_documents_is_embedded_once(gated: tuple[DeviceEngine, GatedBackend]) -> None:
    engine, backend = gated
    future = submit(engine, [f"doc {at}" for at in range(20)], operation="rerank", queries=["the query"] * 20)
    backend.gate.set()
    future.result(10)
    assert sum(map(len, backend.passes[1:])) == 21


def test_a_failing_query_fails_the_items_that_need_it_and_no_others(build: Build) -> None:
    engine = build(knobs={"fail_on": "POISON"})
    queries = ["POISON", "good", "good"]
    outcomes = submit(engine, ["a", "b", "POISON too"], operation="rerank", queries=queries).result(10)
    assert sorted(outcomes.errors) == [0, 2]
    assert outcomes.values[1] > 0
    assert outcomes.values[0] == 0


def test_a_cross_encoder_scores_pairs(build: Build) -> None:
    engine = build(card={"rerank_by": "cross-encoder", "dimension": None, "capabilities": ("rerank",)})
    outcomes = submit(engine, ["a", "b", "a"], operation="rerank", queries=["q", "q", "q"]).result(10)
    assert outcomes.values.shape == (3,)
    assert ((outcomes.values >= 0) & (outcomes.values <= 1)).all()
    assert outcomes.values[0] == outcomes.values[2] != outcomes.values[1]
    with pytest.raises(WrongCapability):
        submit(engine, ["a"])


def test_wrong_work_is_refused_before_it_is_queued(build: Build) -> None:
    engine = build()
    with pytest.raises(NoWorker):
        engine.submit(Work("nobody", "embeddings", ["a"]))
    with pytest.raises(InvalidRequest):
        submit(engine, ["a", "b"], operation="rerank", queries=["q"])
    with pytest.raises(InvalidRequest):
        submit(engine, ["a"], dimensions=17)
    with pytest.raises(InvalidRequest):
        submit(engine, ["a"], dimensions=0)
