"""The engine with the fake backend: meanings of a work, order of passes, bounds, deadlines, faults."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from config.settings import Settings
from tasks.engine import Outcomes, Work
from tasks.errors import (
    DeadlineExceeded,
    EngineClosed,
    InvalidRequest,
    LaneFull,
    ModelNotFound,
    WorkError,
    WrongCapability,
)
from tasks.lanes import Service
from tests.fakes import GatedBackend, fake_card, fake_model
from workers.engine import DeviceEngine

Build = Callable[..., DeviceEngine]


@pytest.fixture
def build() -> Iterator[Build]:
    """Make engines with the given settings and knobs; all are closed at the end."""
    engines: list[DeviceEngine] = []

    def make(*, knobs: dict[str, Any] | None = None, card: dict[str, Any] | None = None, **settings: Any):  # type: ignore[no-untyped-def]
        model = fake_model(fake_card(knobs=knobs or {}, **(card or {})))
        engines.append(DeviceEngine(Settings(_env_file=None, **settings), {"fake": model}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def gated() -> Iterator[tuple[DeviceEngine, GatedBackend]]:
    """An engine whose passes wait, the first of them already on the device."""
    model = fake_model(gated=True)
    backend = model.backend
    assert isinstance(backend, GatedBackend)
    settings = Settings(_env_file=None, max_batch_tokens=64, engine_max_tokens=20_000)
    with DeviceEngine(settings, {"fake": model}) as engine:
        plug = submit(engine, ["plug"])
        assert backend.entered.wait(10)
        yield engine, backend
        backend.gate.set()
        plug.result(10)


def submit(engine: DeviceEngine, texts: list[str], service: Service = Service.BULK, **more: Any) -> Future[Outcomes]:
    return engine.submit(Work("fake", more.pop("operation", "embeddings"), texts, service=service, **more))


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end_s, "it never came true"
        time.sleep(0.01)


def first_words(backend: GatedBackend) -> list[tuple[int, int]]:
    """Return (rows, longest row) of each pass."""
    return [(len(rows), max(map(len, rows))) for rows in backend.passes]


# -- what a work means -----------------------------------------------------------------------------------


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
    with pytest.raises(ModelNotFound):
        engine.submit(Work("nobody", "embeddings", ["a"]))
    with pytest.raises(InvalidRequest):
        submit(engine, ["a", "b"], operation="rerank", queries=["q"])
    with pytest.raises(InvalidRequest):
        submit(engine, ["a"], dimensions=17)
    with pytest.raises(InvalidRequest):
        submit(engine, ["a"], dimensions=0)


# -- two classes -----------------------------------------------------------------------------------------


def test_interactive_rows_go_ahead_of_all_bulk_rows_and_share_a_pass(gated: tuple[DeviceEngine, GatedBackend]) -> None:
    engine, backend = gated
    bulk = submit(engine, [f"{'bulk ' * 8}{at}" for at in range(40)])
    quick = [submit(engine, [f"quick {at}"], Service.INTERACTIVE) for at in range(10)]
    backend.gate.set()
    for future in (*quick, bulk):
        future.result(10)
    shapes = first_words(backend)
    assert shapes[1] == (10, 4), "ten requests of four tokens in the pass right after the running one"
    assert all(longest == 11 for _, longest in shapes[2:])


def test_a_short_request_overtakes_the_rest_of_a_long_one(gated: tuple[DeviceEngine, GatedBackend]) -> None:
    engine, backend = gated
    long = submit(engine, [f"{'word ' * 58}{at}" for at in range(20)], Service.INTERACTIVE)
    short = submit(engine, ["a quick one"], Service.INTERACTIVE)
    order: list[str] = []
    long.add_done_callback(lambda _: order.append("long"))
    short.add_done_callback(lambda _: order.append("short"))
    backend.gate.set()
    long.result(10)
    assert order == ["short", "long"]
    at = next(index for index, (_, longest) in enumerate(first_words(backend)) if longest == 5)
    assert at <= 3


def test_bulk_gets_passes_while_interactive_rows_keep_waiting(build: Build) -> None:
    engine = build(knobs={"latency_ms": 2}, bulk_min_share=0.3, latency_target_ms=2, max_batch_tokens=64)
    bulk = submit(engine, [f"{'bulk ' * 60}{at}" for at in range(10)])
    waiting = [submit(engine, [f"{'word ' * 60}{at}"], Service.INTERACTIVE) for at in range(300)]
    bulk.result(20)
    assert not all(future.done() for future in waiting), "bulk ended although interactive rows waited all the time"
    for future in waiting:
        future.result(20)


def test_bulk_passes_are_short_while_interactive_traffic_is_seen(build: Build) -> None:
    engine = build(knobs={"ms_per_token": 0.05}, latency_target_ms=10, max_batch_tokens=2048)
    engine.warm_up()
    texts = [f"{'word ' * 30}{at}" for at in range(200)]
    submit(engine, texts).result(20)
    before = engine.stats()["passes"]
    submit(engine, texts).result(20)
    full = engine.stats()["passes"] - before
    submit(engine, ["somebody is here"], Service.INTERACTIVE).result(20)
    before = engine.stats()["passes"]
    submit(engine, texts).result(20)
    assert engine.stats()["passes"] - before > 4 * full


# -- bounds, deadlines, cancelling -----------------------------------------------------------------------


def test_a_full_class_refuses_with_the_time_in_which_it_drains_and_leaves_the_other_open(
    gated: tuple[DeviceEngine, GatedBackend],
) -> None:
    engine, backend = gated
    texts = [f"{'word ' * 60}{at}" for at in range(400)]
    submit(engine, texts[:200])
    with pytest.raises(LaneFull) as caught:
        submit(engine, texts[200:])
    assert caught.value.retry_after_s >= 1
    assert caught.value.retryable
    waiting = engine.stats()["bulk_tokens"]
    assert 0 < waiting <= 20_000
    submit(engine, ["quick"], Service.INTERACTIVE)
    assert engine.stats()["bulk_tokens"] == waiting
    backend.gate.set()
    wait_until(lambda: engine.stats()["bulk_tokens"] == 0)
    submit(engine, texts[:200]).result(10)


def test_a_work_larger_than_the_bound_is_taken_when_nothing_waits(build: Build) -> None:
    engine = build(engine_max_tokens=20_000)
    assert len(submit(engine, [f"{'word ' * 60}{at}" for at in range(500)]).result(10).values) == 500


def test_expired_work_never_reaches_the_device(gated: tuple[DeviceEngine, GatedBackend]) -> None:
    engine, backend = gated
    late = submit(engine, ["too late"], Service.INTERACTIVE, deadline_s=time.monotonic() + 0.05)
    timely = submit(engine, ["in good time"], Service.INTERACTIVE, deadline_s=time.monotonic() + 60)
    time.sleep(0.1)
    backend.gate.set()
    with pytest.raises(DeadlineExceeded):
        late.result(10)
    timely.result(10)
    assert sum(map(len, backend.passes)) == 2
    assert engine.stats()["interactive_tokens"] == 0


def test_expired_work_frees_its_place_for_new_work(gated: tuple[DeviceEngine, GatedBackend]) -> None:
    engine, backend = gated
    texts = [f"{'word ' * 60}{at}" for at in range(300)]
    late = submit(engine, texts, deadline_s=time.monotonic() + 0.05)
    with pytest.raises(LaneFull):
        submit(engine, texts)
    time.sleep(0.1)
    timely = submit(engine, texts)
    with pytest.raises(DeadlineExceeded):
        late.result(0)
    backend.gate.set()
    timely.result(10)


def test_cancelled_work_frees_its_place_and_never_reaches_the_device(gated: tuple[DeviceEngine, GatedBackend]) -> None:
    engine, backend = gated
    waiting = [submit(engine, [f"gone {at}", f"also gone {at}"], Service.INTERACTIVE) for at in range(20)]
    stays = submit(engine, ["stays"], Service.INTERACTIVE)
    for future in waiting:
        assert future.cancel()
    assert engine.stats()["interactive_tokens"] == 3
    backend.gate.set()
    stays.result(10)
    assert sum(map(len, backend.passes)) == 2


def test_closing_ends_what_waits_and_refuses_what_comes() -> None:
    model = fake_model(gated=True)
    backend = model.backend
    assert isinstance(backend, GatedBackend)
    engine = DeviceEngine(Settings(_env_file=None), {"fake": model})
    running = submit(engine, ["running"])
    assert backend.entered.wait(10)
    waiting = submit(engine, ["waiting"])
    closer = threading.Thread(target=engine.close)
    closer.start()
    with pytest.raises(EngineClosed):
        waiting.result(10)
    with pytest.raises(EngineClosed):
        submit(engine, ["late"])
    backend.gate.set()
    closer.join()
    assert running.result(10).values.any(), "the pass on the device still ends well"
    assert not engine.healthy()


# -- faults ----------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_halved_and_the_good_size_remembered(build: Build) -> None:
    engine = build(knobs={"oom_above_tokens": 200}, max_batch_tokens=2048)
    texts = [f"{'word ' * 30}{at}" for at in range(64)]
    assert not submit(engine, texts).result(10).errors
    before = engine.stats()["passes"]
    assert not submit(engine, texts).result(10).errors
    assert engine.stats()["passes"] - before == pytest.approx(64 * 33 / 132, abs=8), "no size that fails is tried again"


def test_a_text_that_does_not_fit_alone_is_that_items_error(build: Build) -> None:
    engine = build(knobs={"oom_above_tokens": 40})
    outcomes = submit(engine, ["short", "long " * 50, "short too"]).result(10)
    assert {at: error.code for at, error in outcomes.errors.items()} == {1: "out_of_memory"}
    assert outcomes.values[0].any()
    assert engine.healthy()


def test_one_poisonous_text_fails_alone(build: Build) -> None:
    engine = build(knobs={"fail_on": "POISON"})
    texts = [f"text {at}" for at in range(50)]
    texts[33] = "the POISON text"
    outcomes = submit(engine, texts).result(10)
    assert {at: error.code for at, error in outcomes.errors.items()} == {33: "item_failed"}
    assert np.count_nonzero(outcomes.values.any(axis=1)) == 49
    assert engine.healthy()


def test_a_vector_that_is_no_number_is_an_item_error_and_one_that_float32_mends_is_not(build: Build) -> None:
    engine = build(knobs={"nan_on": "NEVER", "nan_half_on": "HALF"})
    outcomes = submit(engine, ["fine", "NEVER a number", "HALF a number"]).result(10)
    assert {at: error.code for at, error in outcomes.errors.items()} == {1: "invalid_embedding"}
    assert np.isfinite(outcomes.values).all()
    assert outcomes.values[2].any()


def test_health_turns_false_when_no_vector_comes_and_true_again_by_itself() -> None:
    model = fake_model(gated=True)
    backend = model.backend
    assert isinstance(backend, GatedBackend)
    backend.gate.set()
    with DeviceEngine(Settings(_env_file=None), {"fake": model}) as engine:
        assert engine.healthy()
        backend.broken = RuntimeError("the device is gone")
        outcomes = submit(engine, ["a", "b"]).result(10)
        assert sorted(outcomes.errors) == [0, 1]
        wait_until(lambda: not engine.healthy())
        backend.broken = None
        wait_until(engine.healthy)


def test_a_failure_in_the_loop_itself_settles_every_waiter_and_the_engine_goes_on(
    gated: tuple[DeviceEngine, GatedBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, backend = gated
    waiting = [submit(engine, [f"text {at}"], service) for at in range(5) for service in Service]

    def fail(**_: object) -> None:
        monkeypatch.undo()
        raise KeyError("a bug in the loop")

    monkeypatch.setattr(engine._loop._shares, "choose", fail)
    backend.gate.set()
    for future in waiting:
        with pytest.raises(WorkError, match="the engine failed"):
            future.result(10)
    assert submit(engine, ["again"]).result(10).values.any()


def test_a_failure_behind_a_pass_settles_the_rows_of_that_pass(
    gated: tuple[DeviceEngine, GatedBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, backend = gated
    waiting = submit(engine, [f"{'word ' * 40}{at}" for at in range(5)])

    def fail(*_: object) -> None:
        monkeypatch.undo()
        raise KeyError("a bug")

    monkeypatch.setattr(engine._loop.passes, "run", fail)
    backend.gate.set()
    with pytest.raises(WorkError, match="the engine failed"):
        waiting.result(10)
    assert engine.stats()["bulk_tokens"] == 0
    assert submit(engine, ["again"]).result(10).values.any()


def test_warming_up_runs_short_and_long_rows_and_full_batches() -> None:
    model = fake_model(gated=True)
    backend = model.backend
    assert isinstance(backend, GatedBackend)
    backend.gate.set()
    with DeviceEngine(Settings(_env_file=None, max_batch_tokens=256), {"fake": model}) as engine:
        engine.warm_up()
        shapes = set(first_words(backend))
        assert {(1, 8), (32, 8), (1, 64), (4, 64)} <= shapes


def test_warming_up_fails_with_a_model_that_makes_no_vector() -> None:
    model = fake_model(gated=True)
    backend = model.backend
    assert isinstance(backend, GatedBackend)
    backend.gate.set()
    backend.broken = RuntimeError("no device")
    with DeviceEngine(Settings(_env_file=None), {"fake": model}) as engine, pytest.raises(Exception, match="warm-up"):
        engine.warm_up()
