"""Sparse weights and token vectors as flat arrays: laid down, cut, joined, packed, and what they weigh."""

from dataclasses import replace

import numpy as np

from app.submission.orders import Order, estimate_result_bytes, limit_chunks
from config.catalog import ModelCard, load_catalog
from config.settings import Settings
from tasks import frames
from tasks.bulk.outcomes import ChunkOutcomes
from tasks.engine import ItemError, JobParams, Outcomes
from tasks.jobs.claims import Claim, ClaimCode
from tasks.jobs.job import ChunkInput
from tasks.vectors import Parts, Ragged, join_extras, pack_extras, unpack_extras

SPARSE: list[Parts | None] = [
    (np.array([3, 9], np.int32), np.array([0.5, 1.5], np.float32)),
    None,
    (np.array([4], np.int32), np.array([2.0], np.float32)),
]
COLBERT: list[Parts | None] = [(np.ones((3, 4), np.float32),), None, (np.full((1, 4), 2, np.float32),)]


def listed(ragged: Ragged) -> list[list[list[float]]]:
    return [[part.tolist() for part in parts] for parts in ragged]


def test_items_come_back_as_they_were_and_a_failed_one_is_empty() -> None:
    ragged = Ragged.of("sparse", SPARSE)
    assert listed(ragged) == [[[3, 9], [0.5, 1.5]], [[], []], [[4], [2.0]]]
    assert Ragged.of("colbert", COLBERT).lengths.tolist() == [3, 0, 1]


def test_nothing_at_all_is_still_a_column() -> None:
    for kind in ("sparse", "colbert"):
        ragged = Ragged.of(kind, [None, None])  # type: ignore[arg-type] # one of the two kinds
        assert ragged.lengths.tolist() == [0, 0]
        assert listed(unpack_extras(pack_extras({kind: ragged}))[kind]) == listed(ragged)  # type: ignore[dict-item, index]


def test_parts_that_are_cut_and_joined_are_the_whole() -> None:
    ragged = Ragged.of("sparse", SPARSE)
    parts = [{"sparse": ragged.cut(rows)} for rows in (slice(0, 1), slice(1, 1), slice(1, 3))]
    assert listed(join_extras(parts)["sparse"]) == listed(ragged)  # type: ignore[arg-type] # literal keys


def test_a_frame_carries_vectors_in_the_jobs_precision_and_weights_in_their_own() -> None:
    extras = {"sparse": Ragged.of("sparse", SPARSE), "colbert": Ragged.of("colbert", COLBERT)}
    _, columns = frames.unpack(frames.pack({}, pack_extras(extras, "float16")))  # type: ignore[arg-type] # literal keys
    back = unpack_extras(columns)
    assert {kind: listed(ragged) for kind, ragged in back.items()} == {k: listed(v) for k, v in extras.items()}
    assert [part.dtype for ragged in back.values() for part in ragged.parts] == [np.int32, np.float32, np.float16]


BOTH = JobParams(returns=("sparse", "colbert"))


def read(frame: bytes) -> dict[str, list[list[list[float]]]]:
    return {kind: listed(ragged) for kind, ragged in unpack_extras(frames.unpack(frame)[1]).items()}


def outcomes_of(rows: slice, errors: dict[int, ItemError] | None = None) -> Outcomes:
    size = len(SPARSE[rows])
    extras = {"sparse": Ragged.of("sparse", SPARSE[rows]), "colbert": Ragged.of("colbert", COLBERT[rows])}
    empty = np.empty((size, 0), np.float32)
    return Outcomes(empty, np.ones(size, np.int32), np.zeros(size, np.bool_), errors or {}, extras=extras)  # type: ignore[arg-type] # literal keys


def test_a_chunk_that_is_computed_in_parts_or_again_has_what_one_run_gives() -> None:
    claim, items = Claim(ClaimCode.OK, "job_x", 0, items=3, params=BOTH), ChunkInput(["a", "b", "c"])
    whole, parts = ChunkOutcomes(claim, items, 4), ChunkOutcomes(claim, items, 4)
    failed = {1: ItemError("item_failed", "bad")}
    whole.put([0, 1, 2], outcomes_of(slice(0, 3), failed))
    for at in (2, 0, 1):
        parts.put([at], outcomes_of(slice(at, at + 1), {0: failed[1]} if at == 1 else None))
    first = whole.completion().frame
    assert read(first) == read(parts.completion().frame)
    again = ChunkOutcomes(replace(claim, redo=True), items, 4, before=first)
    assert again.left == [1]
    again.put([1], outcomes_of(slice(0, 1)))
    sparse = read(again.completion().frame)["sparse"]
    assert [len(ids) for ids, _ in sparse] == [2, 2, 1]


def test_a_chunk_of_which_nothing_could_be_computed_has_the_columns_all_the_same() -> None:
    claim = Claim(ClaimCode.POISON, "job_x", 0, items=2, params=BOTH, poison=(0, 1))
    frame = ChunkOutcomes(claim, ChunkInput(["a", "b"]), 4).completion().frame
    assert read(frame) == {"sparse": [[[], []], [[], []]], "colbert": [[[]], [[]]]}
    assert frames.unpack(frame)[1]["values"].shape == (2, 0)


def order(*kinds: str, **fields: object) -> Order:
    card = load_catalog().find("bge-m3")
    assert isinstance(card, ModelCard)
    return Order(card, "embeddings", JobParams(returns=kinds, **fields))  # type: ignore[arg-type] # literals


def test_a_vector_per_token_makes_chunks_small_and_room_large() -> None:
    settings = Settings(_env_file=None)
    assert limit_chunks(settings, order("dense")).tokens == settings.chunk_tokens
    assert limit_chunks(settings, order("dense", "colbert")).tokens == 2**25 // (4 * 1024)
    assert estimate_result_bytes(order("dense"), 10, 500) == 10 * 4096
    assert estimate_result_bytes(order("sparse"), 10, 500) == 500 * 8
    assert estimate_result_bytes(order("dense", "colbert", dtype="float16"), 10, 500) == 510 * 2048
