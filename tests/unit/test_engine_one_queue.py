"""The engine with its lanes switched off, which the benchmark compares the two lanes with."""

from config.settings import Settings
from tasks.engine import Work
from tasks.lanes import Service
from tests.support.fakes import GatedBackend, fake_model
from workers.engine import DeviceEngine

QUERY_TOKENS = 4


def passes_before_a_query(*, lanes: bool) -> int:
    """Return how many passes were run until a query was answered that came behind 200 waiting passages."""
    model = fake_model(gated=True)
    backend = model.backend
    assert isinstance(backend, GatedBackend)
    settings = Settings(_env_file=None, max_batch_tokens=64, lanes=lanes)
    with DeviceEngine(settings, {"fake": model}) as engine:
        plug = engine.submit(Work("fake", "embeddings", ["plug"]))
        assert backend.entered.wait(10)
        bulk = engine.submit(Work("fake", "embeddings", [f"{'word ' * 30}{at}" for at in range(200)]))
        query = engine.submit(Work("fake", "embeddings", ["a query"], service=Service.INTERACTIVE))
        backend.gate.set()
        for future in (plug, bulk, query):
            future.result(10)
        return next(number for number, rows in enumerate(backend.passes) if len(rows[0]) == QUERY_TOKENS)


def test_a_query_overtakes_bulk_unless_the_lanes_are_off() -> None:
    assert passes_before_a_query(lanes=True) <= 2
    assert passes_before_a_query(lanes=False) > 50
