"""Where a device can run two batches at once, interactive rows do not wait for the bulk batch before them."""

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from config.settings import Settings
from tasks.engine import Outcomes, Work
from tasks.errors import EngineClosed
from tasks.lanes import Service
from tests.support.fakes import GatedBackend, fake_model
from tests.support.polling import wait_until
from workers.engine import DeviceEngine

Parts = tuple[DeviceEngine, GatedBackend, GatedBackend]


@pytest.fixture(params=[False])
def parts(request: pytest.FixtureRequest) -> Iterator[Parts]:
    """An engine with a bulk pass on the device, held by its gate; the latency stream's gate is closed too.

    Its parameter says whether the latency stream preempts.
    """
    model = fake_model(gated=True)
    main, latency_stream = model.backend, GatedBackend(model.card)
    assert isinstance(main, GatedBackend)
    main.latency_stream = latency_stream
    latency_stream.preempts = request.param
    with DeviceEngine(Settings(_env_file=None, max_batch_tokens=64), {"fake": model}) as engine:
        engine.submit(work(["the bulk pass"]))
        assert main.entered.wait(10)
        yield engine, main, latency_stream
        main.gate.set()
        latency_stream.gate.set()


def work(texts: list[str], service: Service = Service.BULK) -> Work:
    return Work("fake", "embeddings", texts, service=service)


def put_bulk_behind_interactive(parts: Parts) -> tuple[Future[Outcomes], Future[Outcomes], Future[Outcomes]]:
    """Let the bulk pass end while bulk waits, one interactive row is on the latency stream and another waits for it."""
    engine, main, latency_stream = parts
    bulk = engine.submit(work(["more bulk"]))
    first = engine.submit(work(["first"], Service.INTERACTIVE))
    assert latency_stream.entered.wait(10)
    second = engine.submit(work(["second"], Service.INTERACTIVE))
    main.gate.set()
    return bulk, first, second


def test_interactive_rows_are_computed_while_a_bulk_pass_runs(parts: Parts) -> None:
    engine, main, latency_stream = parts
    quick = engine.submit(work(["quick"], Service.INTERACTIVE))
    latency_stream.gate.set()
    assert quick.result(10).values.any()
    assert len(main.passes) == 1
    assert len(latency_stream.passes) == 1


def test_no_bulk_pass_starts_while_interactive_rows_wait(parts: Parts) -> None:
    _, main, latency_stream = parts
    bulk, first, second = put_bulk_behind_interactive(parts)
    assert not bulk.done()
    assert len(main.passes) == 1
    latency_stream.gate.set()
    for future in (first, second, bulk):
        assert future.result(10).values.any()
    assert [len(rows) for rows in main.passes] == [1, 1]


@pytest.mark.parametrize("parts", [True], indirect=True)
def test_bulk_neither_waits_nor_is_short_for_a_stream_that_preempts(parts: Parts) -> None:
    engine, main, latency_stream = parts
    bulk = engine.submit(work([f"text number {at}" for at in range(12)]))
    calls = [engine.submit(work([f"call {at}"], Service.INTERACTIVE)) for at in range(3)]
    assert latency_stream.entered.wait(10)
    main.gate.set()
    assert bulk.result(10).values.any()
    assert not any(call.done() for call in calls)
    assert [len(rows) for rows in main.passes] == [1, 12]
    latency_stream.gate.set()
    for call in calls:
        assert call.result(10).values.any()
    assert len(main.passes) == 2


def test_a_bulk_pass_starts_when_the_interactive_row_ahead_of_it_is_cancelled(parts: Parts) -> None:
    engine, _, _ = parts
    bulk, first, second = put_bulk_behind_interactive(parts)
    wait_until(lambda: engine.progress() == 1)
    second.cancel()
    assert bulk.result(5).values.any(), "it waited for the latency stream, which is still busy"
    assert not first.done()


def test_bulk_rows_never_take_the_express(parts: Parts) -> None:
    engine, main, latency_stream = parts
    waiting = [engine.submit(work([f"text {at}"])) for at in range(20)]
    main.gate.set()
    for future in waiting:
        future.result(10)
    assert not latency_stream.passes


def test_an_engine_is_well_only_if_both_streams_are(parts: Parts) -> None:
    engine, _, latency_stream = parts
    latency_stream.gate.set()
    assert engine.healthy()
    latency_stream.broken = RuntimeError("no latency stream")
    assert engine.submit(work(["quick"], Service.INTERACTIVE)).result(10).errors
    wait_until(lambda: not engine.healthy())
    latency_stream.broken = None
    wait_until(engine.healthy)


def test_closing_ends_what_waits_for_either_stream(parts: Parts) -> None:
    engine, main, latency_stream = parts
    engine.submit(work(["quick"], Service.INTERACTIVE))
    assert latency_stream.entered.wait(10)
    waiting = [engine.submit(work(["waits"], service)) for service in Service]
    main.gate.set()
    latency_stream.gate.set()
    engine.close()
    ended = [future.exception(10) for future in waiting]
    assert all(error is None or isinstance(error, EngineClosed) for error in ended)


def test_both_streams_are_warmed_up(parts: Parts) -> None:
    engine, main, latency_stream = parts
    main.gate.set()
    latency_stream.gate.set()
    engine.warm_up()
    assert len(main.passes) > 5
    assert len(latency_stream.passes) > 5
