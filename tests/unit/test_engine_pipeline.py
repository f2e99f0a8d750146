"""Where a device computes on its own, the engine has the next bulk batch ready for it before the last one is done."""

import threading
from collections.abc import Iterator, Sequence

import pytest

from config.settings import Settings
from tasks.errors import EngineClosed, WorkError
from tasks.lanes import Service
from tests.support.engine_work import Build, submit
from tests.support.fakes import GatedBackend, fake_card, fake_model
from tests.support.polling import wait_until
from workers.engine import DeviceEngine
from workers.engine.cost import CostModel
from workers.engine.oom import SafeSizes
from workers.engine.passes import Passes
from workers.engine.pending import PendingWork, Row
from workers.engine.watchdog import Watchdog
from workers.models.backends.base import Values
from workers.models.tokenizing.tokenizer import Tokens

Parts = tuple[DeviceEngine, "PipelinedBackend"]


class PipelinedBackend(GatedBackend):
    """Counts the passes that were started, and refuses to start any when it is told to."""

    started = 0
    refuses = False

    def start(self, rows: Sequence[Tokens]) -> Values:
        if self.refuses:
            raise RuntimeError("no room beside another pass")
        self.started += 1
        return super().start(rows)


@pytest.fixture
def parts() -> Iterator[Parts]:
    """An engine that holds its passes at the gate, each of them for one text of 40 words."""
    card = fake_card(knobs={"overlaps": 1})
    backend = PipelinedBackend(card)
    model = fake_model(card, backend=backend)
    settings = Settings(_env_file=None, max_batch_tokens=64, p99_ms=120_000)
    with DeviceEngine(settings, {"fake": model}) as engine:
        yield engine, backend
        backend.gate.set()


def texts(count: int) -> list[str]:
    return [f"{'word ' * 39}{at}" for at in range(count)]


def test_the_next_batch_is_on_the_device_before_the_last_one_is_done_and_no_third(parts: Parts, build: Build) -> None:
    engine, backend = parts
    waiting = submit(engine, texts(5))
    wait_until(lambda: backend.started == 2)
    assert len(backend.passes) == 1
    assert engine.stats()["bulk_tokens"] == 3 * 42
    backend.gate.set()
    values = waiting.result(10).values
    assert (values == submit(build(), texts(5)).result(10).values).all()
    assert [len(rows) for rows in backend.passes] == [1] * 5


def test_nothing_is_taken_ahead_of_interactive_rows_that_may_come(parts: Parts) -> None:
    engine, backend = parts
    quick = submit(engine, ["quick"], Service.INTERACTIVE)
    assert backend.entered.wait(10)
    bulk = submit(engine, texts(2))
    late = submit(engine, ["late"], Service.INTERACTIVE)
    backend.gate.set()
    for future in (quick, bulk, late):
        assert future.result(10).values.any()
    assert [len(rows[0]) for rows in backend.passes] == [3, 3, 42, 42]


def test_a_pass_that_cannot_be_started_beside_another_runs_in_its_turn(parts: Parts) -> None:
    engine, backend = parts
    backend.refuses = True
    backend.gate.set()
    assert submit(engine, texts(4)).result(10).values.any(axis=1).all()
    assert backend.started == 0


@pytest.mark.parametrize("knobs", [{"oom_above_tokens": 200}, {}])
def test_rows_of_a_pass_that_failed_beside_another_get_their_values(build: Build, knobs: dict[str, object]) -> None:
    some = [*texts(60), "HALF a number"]
    engine = build(knobs={"nan_half_on": "HALF", "overlaps": 1, **knobs}, max_batch_tokens=512)
    outcomes = submit(engine, some).result(10)
    assert not outcomes.errors
    in_turn = build(knobs={"nan_half_on": "HALF"})
    assert (outcomes.values == submit(in_turn, some).result(10).values).all()


def test_a_text_that_fails_beside_others_fails_alone(build: Build) -> None:
    engine = build(knobs={"fail_on": "POISON", "overlaps": 1}, max_batch_tokens=256)
    some = [*texts(30), "the POISON text"]
    assert list(submit(engine, some).result(10).errors) == [30]
    assert engine.healthy()


def test_closing_lets_what_is_on_the_device_end(parts: Parts) -> None:
    engine, backend = parts
    on_device = [submit(engine, [text]) for text in texts(2)]
    wait_until(lambda: backend.started == 2)
    waiting = submit(engine, texts(1))
    closing = threading.Thread(target=engine.close)
    closing.start()
    assert isinstance(waiting.exception(10), EngineClosed)
    backend.gate.set()
    closing.join(10)
    for future in on_device:
        assert future.result(10).values.any()


def test_a_failure_of_the_loop_settles_the_batch_that_it_had_taken_ahead(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, backend = parts
    first, second = (submit(engine, [text]) for text in texts(2))
    wait_until(lambda: backend.started == 2)
    third = submit(engine, texts(1))

    def fail(**_: object) -> None:
        monkeypatch.undo()
        raise KeyError("a bug in the loop")

    monkeypatch.setattr(engine._loops[0].scheduler._fair_share, "choose", fail)
    backend.gate.set()
    assert first.result(10).values.any()
    assert second.result(10).values.any()
    with pytest.raises(WorkError, match="the engine failed"):
        third.result(10)
    assert submit(engine, ["again"]).result(10).values.any()


def test_the_time_of_a_pass_begins_when_the_device_was_done_with_the_one_before() -> None:
    model = fake_model(fake_card(knobs={"overlaps": 1}))
    watchdog = Watchdog(60)
    now_s = iter([0.0, 1.0, 10.0, 15.0])
    passes = Passes(CostModel(), SafeSizes(512), watchdog, lambda: next(now_s))

    def rows() -> list[Row]:
        request = PendingWork(model, Service.BULK, None, lambda *_: pytest.fail("nobody asked"))
        request.add_rows([Tokens(model.tokenizer.encode(["text"], "end")[0].tokens.ids)] * 2)
        return request.rows[:1]

    batches = [rows(), rows()]
    started = [passes.start(model, batch) for batch in batches]
    took_ms = [passes.run(model, *pair) and passes.last_ms for pair in zip(batches, started, strict=True)]
    watchdog.close()
    assert took_ms == [10_000, 5_000]
