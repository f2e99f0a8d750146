"""From a piece of work to the rows that the device computes, and back from their values to outcomes.

Owns instructions, the tokenizing (in the thread that brings the work, never on the device's), and the rule that
nothing is computed twice: equal texts of one work share a row. Knows nothing of queues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.engine import ItemError, Outcomes, Work
from tasks.errors import ContextLengthExceeded, InvalidRequest, WrongCapability
from tasks.vectors import Extra, ExtraParts, Ragged
from workers.engine.long_texts import LongTexts
from workers.engine.pending import ExtraSink, Finish, PendingWork
from workers.engine.scoring import BLEND, TOKENS_ONLY, PairScores, cosines, to_unit_range
from workers.engine.token_work import admit_tokens
from workers.models.loaded import LoadedModel
from workers.models.tokenizing.pair_tokenizer import TemplateTokenizer
from workers.models.tokenizing.token_tokenizer import TokenTokenizer
from workers.models.tokenizing.tokenizer import Encoded

__all__ = ["admit", "admit_alike"]

T = TypeVar("T")
# The row of each item; the slice of all where each has its own.
_Places = NDArray[np.intp] | slice
_ALL = slice(None)
# Ways of scoring pairs that want more than dense vectors, what they want, and how much each of it weighs.
_PAIRED: Mapping[str, tuple[tuple[Extra, ...], tuple[float, float, float]]] = {
    "multi-vector": (("sparse", "colbert"), BLEND),
    "maxsim": (("colbert",), TOKENS_ONLY),
}


def admit(work: Work, model: LoadedModel) -> PendingWork:
    """Check and tokenize the work and return a request with its rows.

    Raises:
        tasks.errors.WrongCapability: the model cannot do the operation.
        tasks.errors.InvalidRequest: the work contradicts itself or the model.
    """
    if work.operation in {"tokenize", "detokenize"}:
        return admit_tokens(work, model)
    _check(work, model)
    windows = work.params.long
    if windows is None:
        return _admit_each(work, model)
    texts = LongTexts(work, windows, model.tokenizer, partial(_count_overhead, work, model))
    request = _admit_each(texts.work, model)
    request.then(partial(_join_windows, texts, work, model))
    return request


def _count_overhead(work: Work, model: LoadedModel, queries: Sequence[str]) -> list[int]:
    """Return how many tokens the model reads beside those of a text, for a text with each of these queries."""
    blank = [""] * len(queries)
    if work.operation == "rerank" and model.card.rerank_by == "cross-encoder":
        rows = _encode_pairs(replace(work, texts=blank, queries=queries), model)
    else:
        rows = _encode_role(_instruct_texts(blank[:1], work, model), work, model, work.params.role) * len(blank)
    return [len(row.tokens) for row in rows]


def _join_windows(texts: LongTexts, work: Work, model: LoadedModel, outcomes: Outcomes) -> Outcomes:
    joined = texts.join(outcomes, normalize=model.card.normalized)
    if work.operation == "rerank" or work.params.in_chunks:
        return joined
    return replace(
        joined, values=_cut_dimensions(joined.values, work.params.dimensions, normalize=model.card.normalized)
    )


def _admit_each(work: Work, model: LoadedModel) -> PendingWork:
    """Take each text as one row."""
    if work.operation == "embeddings":
        return _admit_embeddings([work], model)[0]
    if model.card.rerank_by == "cross-encoder":
        return _admit_pairs(work, model)
    return _admit_similarity(work, model)


def admit_alike(works: Sequence[Work], model: LoadedModel) -> list[PendingWork]:
    """Do the same for several works of equal operation and params; the texts of embeddings are tokenized in one go.

    Raises:
        tasks.errors.TwolaneError: as `admit`, for all of them.
    """
    if works[0].operation != "embeddings" or works[0].params.long is not None:
        return [admit(work, model) for work in works]
    _check(works[0], model)
    return _admit_embeddings(works, model)


def _check(work: Work, model: LoadedModel) -> None:
    name, dimension = model.card.name, model.backend.dimension
    if work.operation == "rerank":
        if "rerank" not in model.card.capabilities:
            raise WrongCapability(f"the model {name} does not rerank", param="model")
        if work.params.cutoff_layer is not None and (problem := model.card.explain_layer(work.params.cutoff_layer)):
            raise InvalidRequest(problem, param="cutoff_layers")
        if work.queries is None or len(work.queries) != len(work.texts):
            raise InvalidRequest("rerank needs a query for each document", param="queries")
    elif dimension is None:
        raise WrongCapability(f"the model {name} gives no embeddings", param="model")
    elif missing := [kind for kind in work.params.returns if kind not in model.card.capabilities]:
        raise WrongCapability(f"the model {name} gives no {' and no '.join(missing)} vectors", param="return")
    elif model.backend.heads is None and work.params.returns[1:]:
        raise WrongCapability(f"this worker gives dense vectors only of the model {name}", param="return")
    if dimension is not None and work.params.dimensions is not None and not 0 < work.params.dimensions <= dimension:
        raise InvalidRequest(f"dimensions must be from 1 to {dimension}", param="dimensions")


def _admit_embeddings(works: Sequence[Work], model: LoadedModel) -> list[PendingWork]:
    found = [_deduplicate(_instruct_texts(work.texts, work, model)) for work in works]
    texts = [text for unique, _ in found for text in unique]
    encoded = _encode_role(texts, works[0], model, works[0].params.role)
    requests, end = [], 0
    for work, (unique, rows_of) in zip(works, found, strict=True):
        begin, end = end, end + len(unique)
        requests.append(_request_embeddings(work, encoded[begin:end], rows_of, model))
    return requests


def _request_embeddings(work: Work, encoded: Sequence[Encoded], rows_of: _Places, model: LoadedModel) -> PendingWork:
    extras = work.params.extras
    plan = _Plan(work, encoded, model, extras)

    def finish(values: NDArray[np.float32], failed: Mapping[int, ItemError]) -> Outcomes:
        spread, errors = plan.spread(values, failed, rows_of)
        more = {kind: plan.spread_extra(kind, rows_of, errors) for kind in extras}
        values = _cut_dimensions(spread, work.params.dimensions, normalize=model.card.normalized)
        if "dense" not in work.params.returns:
            values = values[:, :0]
        return plan.outcomes(values, errors, rows_of, more)

    return plan.request(finish)


def _admit_pairs(work: Work, model: LoadedModel) -> PendingWork:
    unique, rows_of = _deduplicate(list(zip(work.queries or (), work.texts, strict=True)))
    pairs = replace(work, queries=[query for query, _ in unique], texts=[text for _, text in unique])
    encoded = _encode_pairs(pairs, model)
    if layer := work.params.cutoff_layer:
        encoded = [replace(one, tokens=replace(one.tokens, cutoff_layer=layer)) for one in encoded]
    plan = _Plan(work, encoded, model)

    def finish(values: NDArray[np.float32], failed: Mapping[int, ItemError]) -> Outcomes:
        scores, errors = plan.spread(values, failed, rows_of)
        return plan.outcomes(scores, errors, rows_of)

    return plan.request(finish)


def _encode_pairs(work: Work, model: LoadedModel) -> list[Encoded]:
    instruction, queries, tokenizer = _query_instruction(work, model), work.queries or (), model.tokenizer
    if isinstance(tokenizer, TemplateTokenizer):
        return tokenizer.encode_pairs(queries, work.texts, work.params.truncate, instruction=instruction or "")
    return tokenizer.encode_pairs(instruct(queries, instruction, model), work.texts, work.params.truncate)


def _admit_similarity(work: Work, model: LoadedModel) -> PendingWork:
    """Embed each query and each document once; a score is their cosine, or a sum with more, moved to [0, 1]."""
    queries = instruct(work.queries or (), _query_instruction(work, model), model)
    documents = _instruct_texts(work.texts, work, model)
    encoded, of_query, of_text = _encode_sides(queries, documents, work, model)
    extras, weights = _PAIRED.get(model.card.rerank_by or "", ((), BLEND))
    plan = _Plan(work, encoded, model, extras)
    pairs = PairScores(plan.pair_rows(of_query, of_text), weights) if extras else None

    def finish(values: NDArray[np.float32], failed: Mapping[int, ItemError]) -> Outcomes:
        left, query_errors = plan.spread(values, failed, of_query)
        right, text_errors = plan.spread(values, failed, of_text)
        errors = {**query_errors, **text_errors}
        dense = cosines(left, right)
        scores = to_unit_range(dense if pairs is None else pairs.mix(dense))
        scores[list(errors)] = 0
        tokens = plan.lengths[of_query] + plan.lengths[of_text]
        return Outcomes(scores, tokens, plan.cut[of_query] | plan.cut[of_text], errors, fingerprint=model.fingerprint)

    return plan.request(finish, pairs)


def _encode_role(texts: Sequence[str], work: Work, model: LoadedModel, role: str | None) -> list[Encoded]:
    tokenizer = model.tokenizer
    if role == "query" and isinstance(tokenizer, TokenTokenizer):
        return tokenizer.encode_queries(texts, work.params.truncate)
    return tokenizer.encode(texts, work.params.truncate)


def _encode_sides(
    queries: Sequence[str], documents: Sequence[str], work: Work, model: LoadedModel
) -> tuple[list[Encoded], NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows of queries and documents, and each one's row; equal texts share one if they are read alike."""
    if not isinstance(model.tokenizer, TokenTokenizer):
        unique, rows_of = _deduplicate_places([*queries, *documents])
        encoded = model.tokenizer.encode(unique, work.params.truncate)
        return encoded, rows_of[: len(queries)], rows_of[len(queries) :]
    left, of_query = _deduplicate_places(queries)
    right, of_text = _deduplicate_places(documents)
    encoded = _encode_role(left, work, model, "query") + _encode_role(right, work, model, "document")
    return encoded, of_query, of_text + len(left)


def instruct(texts: Sequence[str], instruction: str | None, model: LoadedModel) -> Sequence[str]:
    """Put the instruction before each text by the model's format, as FlagEmbedding does."""
    if not instruction:
        return texts
    # A card written as TOML may hold the two characters \n where FlagEmbedding's format means a line break.
    form = model.card.query_instruction_format.replace("\\n", "\n")
    # The query of many documents is one string, and stays one.
    made = {text: form.format(instruction, text) for text in dict.fromkeys(texts)}
    return [made[text] for text in texts]


def _instruct_texts(texts: Sequence[str], work: Work, model: LoadedModel) -> Sequence[str]:
    """Put before texts, or before documents, what belongs there."""
    card, stated = model.card, work.params.instruction
    if work.operation == "rerank":
        return instruct(texts, card.document_instruction or card.default_instruction, model)
    return instruct(texts, card.default_instruction if stated is None else stated, model)


def _query_instruction(work: Work, model: LoadedModel) -> str:
    return model.card.query_instruction if work.params.instruction is None else work.params.instruction


class _Plan:
    """Which encoded texts become rows, and how rows come back to items."""

    def __init__(
        self, work: Work, encoded: Sequence[Encoded], model: LoadedModel, extras: tuple[Extra, ...] = ()
    ) -> None:
        self._work, self._model = work, model
        self._parts: dict[int, ExtraParts] = {}
        size = len(encoded)
        self.lengths = np.fromiter((len(one.tokens) for one in encoded), np.int32, size)
        self.cut = np.fromiter((one.cut for one in encoded), np.bool_, size)
        self._rows = [one.tokens for one in encoded]
        # The texts that have rows; None: all.
        self._kept: NDArray[np.intp] | None = None
        self._refused: dict[int, ItemError] = {}
        if work.params.truncate == "none" and self.cut.any():
            self._refuse_cut(encoded)
        if extras:
            self._rows = [replace(row, extras=extras) for row in self._rows]

    def _refuse_cut(self, encoded: Sequence[Encoded]) -> None:
        most = self._model.tokenizer.max_tokens
        self._refused = {at: _too_long(most, one.asked) for at, one in enumerate(encoded) if one.cut}
        self._kept = np.flatnonzero(~self.cut)
        self._rows = [self._rows[at] for at in self._kept.tolist()]
        # Nothing was cut off what is refused.
        self.cut = np.zeros(len(encoded), np.bool_)

    def request(self, finish: Finish, extras: ExtraSink | None = None) -> PendingWork:
        """Return the request that computes the rows and then calls `finish`; extras stay here if nobody takes them."""
        request = PendingWork(self._model, self._work.service, self._work.deadline_s, finish)
        request.urgent = self._work.urgent
        request.add_rows(self._rows)
        request.extras = self._parts if extras is None else extras
        return request

    def spread(
        self, values: NDArray[np.float32], failed: Mapping[int, ItemError], rows_of: _Places
    ) -> tuple[NDArray[np.float32], dict[int, ItemError]]:
        """Return a value per item, zero where it failed, and the failed items."""
        kept = self._kept
        by_text = values
        if kept is not None:
            by_text = np.zeros((len(self.lengths), *values.shape[1:]), np.float32)
            by_text[kept] = values
        if not (failed or self._refused):
            return by_text[rows_of], {}
        errors = self._refused | {row if kept is None else int(kept[row]): error for row, error in failed.items()}
        by_text[list(errors)] = 0
        return by_text[rows_of], {at: errors[row] for at, row in enumerate(self._list(rows_of)) if row in errors}

    def outcomes(
        self,
        values: NDArray[np.float32],
        errors: Mapping[int, ItemError],
        rows_of: _Places,
        extras: Mapping[Extra, Ragged] | None = None,
    ) -> Outcomes:
        """Return the outcomes of all items."""
        lengths, cut, made_by = self.lengths[rows_of], self.cut[rows_of], self._model.fingerprint
        return Outcomes(values, lengths, cut, errors, extras=extras or {}, fingerprint=made_by)

    def _list(self, rows_of: _Places) -> list[int]:
        return list(range(len(self.lengths)))[rows_of] if isinstance(rows_of, slice) else rows_of.tolist()

    def _kept_texts(self) -> list[int]:
        return list(range(len(self.lengths))) if self._kept is None else self._kept.tolist()

    def pair_rows(self, left: NDArray[np.intp], right: NDArray[np.intp]) -> list[tuple[int | None, int | None]]:
        """Return the rows of pairs of texts; a text that was refused has none."""
        rows = {text: row for row, text in enumerate(self._kept_texts())}
        return [(rows.get(one), rows.get(other)) for one, other in zip(left.tolist(), right.tolist(), strict=True)]

    def spread_extra(self, kind: Extra, rows_of: _Places, errors: Mapping[int, ItemError]) -> Ragged:
        """Return what each item has of a kind; failed items have nothing."""
        by_text = {text: self._parts[row][kind] for row, text in enumerate(self._kept_texts()) if row in self._parts}
        found = [None if at in errors else by_text.get(text) for at, text in enumerate(self._list(rows_of))]
        return Ragged.of(kind, found)


def _deduplicate(items: Sequence[T]) -> tuple[list[T], _Places]:
    """Return the distinct items in order of appearance, and for each item its place among them."""
    unique = list(dict.fromkeys(items))
    return (unique, _ALL) if len(unique) == len(items) else _deduplicate_places(items)


def _deduplicate_places(items: Sequence[T]) -> tuple[list[T], NDArray[np.intp]]:
    """Do the same, with the places as numbers in any case."""
    places: dict[T, int] = {}
    rows_of = np.array([places.setdefault(item, len(places)) for item in items], np.intp)
    return list(places), rows_of


def _cut_dimensions(values: NDArray[np.float32], dimensions: int | None, *, normalize: bool) -> NDArray[np.float32]:
    """Keep the first components, as Matryoshka models are trained for, and give the vector length 1 again."""
    if dimensions is None or dimensions == values.shape[1]:
        return values
    short = np.ascontiguousarray(values[:, :dimensions])
    if normalize:
        norms = np.linalg.norm(short, axis=1, keepdims=True)
        np.divide(short, norms, out=short, where=norms > 0)
    return short


def _too_long(most_tokens: int, asked_tokens: int) -> ItemError:
    """Return the error in OpenAI's own words, which clients look for."""
    limit = f"This model's maximum context length is {most_tokens} tokens"
    return ItemError.of(ContextLengthExceeded(f"{limit}, however you requested {asked_tokens} tokens"))
