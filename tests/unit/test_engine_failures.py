"""The engine with the fake backend: passes that fail, health, warming up."""

import numpy as np
import pytest

from config.settings import Settings
from tasks.engine import Work
from tasks.errors import WorkError
from tasks.lanes import Service
from tests.support.engine_work import Build, first_words, submit
from tests.support.fakes import GatedBackend, fake_card, fake_model
from tests.support.polling import wait_until
from workers.engine import DeviceEngine


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

    monkeypatch.setattr(engine._loops[0].scheduler._fair_share, "choose", fail)
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

    monkeypatch.setattr(engine._loops[0].passes, "run", fail)
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


@pytest.mark.parametrize(("streams", "rows"), [(1, 32), (2, 32), (4, 64)])
def test_a_full_batch_on_a_cpu_has_at_least_a_thousand_tokens_for_each_stream(streams: int, rows: int) -> None:
    model = fake_model(gated=True)
    backend = model.backend
    assert isinstance(backend, GatedBackend)
    backend.parallel = streams
    backend.gate.set()
    with DeviceEngine(Settings(_env_file=None), {"fake": model}) as engine:
        engine.warm_up()
    assert (rows, 64) in first_words(backend)


def test_warming_up_fails_with_a_model_that_makes_no_vector() -> None:
    model = fake_model(gated=True)
    backend = model.backend
    assert isinstance(backend, GatedBackend)
    backend.gate.set()
    backend.broken = RuntimeError("no device")
    with DeviceEngine(Settings(_env_file=None), {"fake": model}) as engine:
        assert "warm-up" in str(engine.warm_up()["fake"])


def test_a_warm_up_with_one_bad_row_is_a_failure_though_others_went_well() -> None:
    model = fake_model(fake_card(knobs={"oom_above_tokens": 50}))
    with DeviceEngine(Settings(_env_file=None), {"fake": model}) as engine:
        assert "of 64 tokens failed" in str(engine.warm_up()["fake"])


def test_a_model_that_makes_no_vectors_turns_unready_alone_and_comes_back_by_itself() -> None:
    good, bad = fake_model(fake_card("good")), fake_model(fake_card("bad"), gated=True)
    backend = bad.backend
    assert isinstance(backend, GatedBackend)
    backend.gate.set()
    with DeviceEngine(Settings(_env_file=None), {"good": good, "bad": bad}) as engine:
        assert engine.well_models() == {"good", "bad"}
        backend.broken = RuntimeError("no device")
        failed = engine.submit(Work("bad", "embeddings", ["a text"])).result(10)
        assert failed.errors
        wait_until(lambda: engine.well_models() == {"good"}, 10)
        assert engine.healthy(), "the device serves the other model"
        assert not engine.submit(Work("good", "embeddings", ["a text"])).result(10).errors
        assert engine.well_models() == {"good"}
        backend.broken = None
        wait_until(lambda: engine.well_models() == {"good", "bad"}, 10)
