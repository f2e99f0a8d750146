"""The engine with the fake backend: order of passes, bounds, deadlines, cancelling."""

import threading
import time

import pytest

from config.settings import Settings
from tasks.errors import (
    DeadlineExceeded,
    EngineClosed,
    LaneFull,
)
from tasks.lanes import Service
from tests.support.engine_work import Build, first_words, submit
from tests.support.fakes import GatedBackend, fake_model
from tests.support.polling import wait_until
from workers.engine import DeviceEngine

# -- two classes -----------------------------------------------------------------------------------------


def test_interactive_rows_go_ahead_of_all_bulk_rows_and_share_a_pass(gated: tuple[DeviceEngine, GatedBackend]) -> None:
    engine, backend = gated
    bulk = submit(engine, [f"{'bulk ' * 8}{at}" for at in range(40)])
    quick = [submit(engine, [f"quick {at}"], Service.INTERACTIVE) for at in range(10)]
    wait_until(lambda: engine.stats()["interactive_tokens"] >= 40)
    backend.gate.set()
    for future in (*quick, bulk):
        future.result(10)
    shapes = first_words(backend)
    assert shapes[1] == (10, 4), "ten requests of four tokens in the pass right after the running one"
    assert all(longest == 11 for _, longest in shapes[2:])


@pytest.mark.parametrize("counts_padding", [True, False])
def test_a_backend_that_computes_no_padding_gets_rows_of_all_lengths_at_once(
    counts_padding: bool, gated: tuple[DeviceEngine, GatedBackend]
) -> None:
    engine, backend = gated
    backend.counts_padding = counts_padding
    # 62 real tokens, of 64 that a pass may have.
    bulk = submit(engine, [" ".join([f"w{length}"] * length) for length in (1, 2, 3, 4, 40)])
    backend.gate.set()
    bulk.result(10)
    assert (len(backend.passes[1:]) == 1) is not counts_padding


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
    engine = build(knobs={"latency_ms": 2}, bulk_min_share=0.3, p99_ms=4, max_batch_tokens=64)
    bulk = submit(engine, [f"{'bulk ' * 60}{at}" for at in range(10)])
    waiting = [submit(engine, [f"{'word ' * 60}{at}"], Service.INTERACTIVE) for at in range(300)]
    bulk.result(20)
    assert not all(future.done() for future in waiting), "bulk ended although interactive rows waited all the time"
    for future in waiting:
        future.result(20)


def test_an_engine_says_what_calls_should_take_did_take_and_can_expect(build: Build) -> None:
    engine = build(knobs={"latency_ms": 20}, p99_ms=30)
    engine.warm_up()
    assert engine.call_latency("fake").p99_ms == 0
    for service in Service:
        submit(engine, [f"{'word ' * 30}{at}" for at in range(50)], service).result(20)
    calls = engine.call_latency("fake")
    assert calls.target_ms == 30
    assert calls.p99_ms >= 20
    assert calls.expected_ms >= 40, "a bulk pass to wait for and one of its own"


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
    late = submit(engine, texts, deadline_s=time.monotonic() + 1)
    with pytest.raises(LaneFull):
        submit(engine, texts)
    time.sleep(1.1)
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
