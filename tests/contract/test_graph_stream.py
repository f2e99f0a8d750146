"""Small passes over memory that never moves give the values of bulk passes, whatever the one before left there."""

from typing import Any

import numpy as np
import pytest

from config.catalog import ModelCard
from tests.support.checkpoints import ARCHITECTURES, make_checkpoint
from tests.support.packed import Repeat, load, make_rows, run, varied_texts
from workers.models.backends.packed.backend import PackedBackend
from workers.models.backends.packed.flat import Shape
from workers.models.backends.packed.graphs import GraphStream, choose_bucket
from workers.models.loaded import LoadedModel
from workers.models.tokenizing.tokenizer import Tokens

TEXTS = varied_texts(200)
BUCKETS = (Shape(16, 1), Shape(64, 4), Shape(128, 8), Shape(512, 16))


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelCard]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: ModelCard(**make_checkpoint(name, root / name)) for name in ARCHITECTURES}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, cards: dict[str, ModelCard]) -> tuple[LoadedModel, LoadedModel]:
    """The same checkpoint padded and packed, in float32."""
    padded, packed = (load(cards[request.param], backend) for backend in ("torch", "packed"))
    assert (padded.backend.kind, packed.backend.kind) == ("torch", "packed")
    return padded, packed


def test_recorded_passes_have_the_values_of_bulk_passes(pair: tuple[LoadedModel, LoadedModel]) -> None:
    padded, packed = pair
    backend = packed.backend
    assert isinstance(backend, PackedBackend)
    recorder = Repeat()
    stream = GraphStream(backend._model, backend, recorder, BUCKETS)
    assert recorder.recorded == len(BUCKETS)
    rows = make_rows(padded, TEXTS[:60])
    expected = run(padded.backend, rows)
    # One after the other, so that each finds what the one before left in the bucket's memory.
    for size in (1, 4, 13, 40):
        np.testing.assert_allclose(run(stream, rows, size), expected, atol=1e-5)


def test_a_bucket_that_is_filled_to_the_last_token_has_no_other_row(cards: dict[str, ModelCard]) -> None:
    packed = load(cards["bert-mean"], "packed").backend
    assert isinstance(packed, PackedBackend)
    stream = GraphStream(packed._model, packed, Repeat(), (Shape(24, 3),))
    rows = [Tokens(np.arange(start, start + 8, dtype=np.int32)) for start in (5, 20, 40)]
    np.testing.assert_allclose(stream.run(rows), packed.run(rows), atol=1e-6)
    np.testing.assert_allclose(stream.run(rows[:1]), packed.run(rows[:1]), atol=1e-6)


def test_rows_that_no_bucket_holds_are_computed_all_the_same(cards: dict[str, ModelCard]) -> None:
    model = load(cards["bge-m3"], "packed")
    assert isinstance(model.backend, PackedBackend)
    stream = GraphStream(model.backend._model, model.backend, Repeat(), BUCKETS[:1])
    rows = make_rows(model, TEXTS[:30])
    np.testing.assert_allclose(stream.run(rows), model.backend.run(rows), atol=1e-6)
    np.testing.assert_allclose(stream.run_exact(rows), model.backend.run(rows), atol=1e-6)
    assert stream.heads is not None
    np.testing.assert_allclose(stream.heads.run_all(rows)[0], model.backend.run(rows), atol=1e-6)


@pytest.mark.parametrize(
    ("lengths", "bucket"),
    [
        *[([5], Shape(16, 1)), ([16], Shape(16, 1)), ([17], Shape(64, 4)), ([2, 2], Shape(64, 4))],
        *[([1] * 5, Shape(128, 8)), ([1] * 9, Shape(512, 16)), ([1] * 17, None), ([513], None)],
    ],
)
def test_the_smallest_bucket_that_holds_tokens_and_rows_is_taken(lengths: list[int], bucket: Shape | None) -> None:
    assert choose_bucket(BUCKETS, [Tokens(np.zeros(length, np.int32)) for length in lengths]) == bucket


def test_a_stream_that_cannot_be_recorded_leaves_the_bulk_passes(cards: dict[str, ModelCard]) -> None:
    backend = load(cards["bert"], "packed").backend
    assert isinstance(backend, PackedBackend)

    class Refusing(Repeat):
        def record(self, compute: Any) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError):
        GraphStream(backend._model, backend, Refusing(), BUCKETS)
    assert np.isfinite(backend.run([Tokens(np.array([2, 5, 3], np.int32))])).all()
