"""The examination of a model, check by check, within a time.

Owns what is computed and in which order: ours in float32, ours as it would be served here, then the reference, since
the three may not fit into memory together.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.catalog import ModelCard
from config.settings import Settings
from tasks.errors import ConfigError, TwolaneError
from tasks.lanes import Service
from workers.doctor.comparing import Check, compare
from workers.doctor.libraries import Reference, draw_from_vocabulary, open_reference
from workers.doctor.measuring import Served, Timed, compute_within, release, serve
from workers.doctor.tensors import check_modules, check_tensors
from workers.doctor.texts import make_texts
from workers.models.downloads.fetch import fetch
from workers.models.folders.recognise import Recipe, recognise
from workers.models.proof import find_disagreement

__all__ = ["Examination"]

Values = NDArray[Any]
# Shares of the time.
_EXACT, _SERVED, _ALONE, _HALF, _REFERENCE = 0.22, 0.18, 0.1, 0.1, 0.25
_PROMPTED, _HALF_TEXTS, _ALONE_TEXTS = 12, 48, 100
_QUERIES = ("What is a vector?", "向量是什么？", "How do I reset a password?")


@dataclass(frozen=True, slots=True)
class _Items:
    """Texts or pairs by ascending length, as the model reads them."""

    items: list[Any]
    tokens: list[int]
    cut: list[bool]
    ids: list[list[int]]


class Examination:
    """Examines one model.

    Args:
        card: the model.
        settings: of a worker; its device is where the model would be served.
        seconds: about so long.
    """

    def __init__(self, card: ModelCard, settings: Settings, seconds: float) -> None:
        self._card, self._settings, self._seconds = card, settings, seconds
        self._items = _Items([], [], [], [])
        self._exact = self._served = Timed(np.empty((0,), np.float32))
        self._dtype, self._device, self._way = "", "cpu", ""
        self._roles: dict[str, Values] = {}

    def run(self) -> Iterator[Check]:
        """Yield the checks as they are done; after one without which the rest means nothing it ends."""
        try:
            recipe = recognise(self._card, fetch(self._card, self._settings))
            yield check_modules(recipe)
            yield (tensors := check_tensors(recipe))
            if tensors.verdict == "FAILED":
                return
            yield from self._compute_exact(recipe)
            yield from self._compute_served()
            yield from self._compute_half(recipe)
        except TwolaneError as error:
            yield Check("can be served", "FAILED", error.message)
            return
        yield from self._compare_with_reference(recipe)

    def _compute_exact(self, recipe: Recipe) -> Iterator[Check]:
        with serve(self._card, self._settings, backend="torch", dtype="float32", quantize="") as served:
            yield Check("can be served", "ok", "loaded in float32; every weight is used, and none is made up")
            self._items = _sort(served, make_texts(recipe.card.max_tokens, draw_from_vocabulary(recipe)))
            self._exact = self._compute(served.compute, _EXACT)
            self._device = served.model.backend.device

    def _compute_served(self) -> Iterator[Check]:
        with serve(self._card, self._settings) as served:
            backend = served.model.backend
            self._dtype = backend.dtype
            self._way = ", ".join(filter(None, (backend.kind, backend.dtype, self._card.quantize)))
            self._served = self._compute(served.compute, _SERVED)
            yield self._check_lanes(served)
            yield self._check_truncation(served)
            for role, how in _list_roles(served.model.card).items():
                self._roles[role] = served.compute(self._prompted(), **how)
        if served.model.fallback:
            yield Check("backend", "note", served.model.fallback)

    def _check_lanes(self, served: Served) -> Check:
        """Compare small calls, one text each, with the batches of a job."""
        most = min(len(self._served.values), _ALONE_TEXTS)
        # Spread over all lengths.
        chosen = np.unique(np.linspace(0, most - 1, most).astype(int)) if most else np.empty(0, int)
        deadline_s = time.monotonic() + _ALONE * self._seconds
        alone, latencies = list[Values](), list[float]()
        for at in chosen:
            if alone and time.monotonic() > deadline_s:
                break
            at_s = time.monotonic()
            alone.append(served.compute([self._items.items[at]], Service.INTERACTIVE))
            latencies.append(1000 * (time.monotonic() - at_s))
        together = self._served.values[chosen[: len(alone)]]
        if "dense" not in served.model.card.kinds and served.model.card.kinds:
            check = compare("", np.concatenate(alone), together, self._dtype)
            reason = check.found if check.verdict == "FAILED" else ""
        else:
            reason = find_disagreement(self._dtype, together, np.concatenate(alone))
        speed = f"a call alone takes {np.median(latencies):.1f} ms (median of {len(alone)}), a job {self._served.speed}"
        return Check("batch = alone", "FAILED" if reason else "ok", reason or f"in both lanes; {speed}")

    def _check_truncation(self, served: Served) -> Check:
        """A text that is too long has to give what its first tokens give, and to say so."""
        most = served.model.tokenizer.max_tokens
        cut = sum(self._items.cut)
        if not cut or max(self._items.tokens) > most:
            return Check("truncation", "FAILED", f"{cut} texts were cut, the longest has {max(self._items.tokens)}")
        return Check("truncation", "ok", f"{cut} texts above {most} tokens were cut there, and marked")

    def _compute_half(self, recipe: Recipe) -> Iterator[Check]:
        """Compare what is served with float32, and, on a CPU in float32, what a GPU would serve."""
        if self._card.quantize:
            yield self._check_served(f"drift of {self._card.quantize}", self._exact.values)
            return
        if self._dtype != "float32":
            yield self._check_served(f"drift of {self._dtype}", self._exact.values)
            return
        dtype = "bfloat16" if recipe.family == "decoder" else "float16"
        with serve(self._card, self._settings, backend="torch", dtype=dtype) as served:
            done = self._compute(served.compute, _HALF, _HALF_TEXTS)
        count = min(len(done.values), len(self._exact.values))
        check = compare("half precision", done.values[:count], self._exact.values[:count], dtype)
        # It is not what is served here, so it fails nothing.
        verdict = "note" if check.verdict == "FAILED" else check.verdict
        yield replace(check, verdict=verdict, found=f"{dtype}, as a GPU would serve it: {check.found}")

    def _compare_with_reference(self, recipe: Recipe) -> Iterator[Check]:
        release()
        try:
            reference = open_reference(recipe, self._device)
        except ConfigError as error:
            yield Check("reference", "skipped", error.message)
            return
        except Exception as error:  # noqa: BLE001 - another library's edge; without it nothing is compared
            reason = " ".join(str(error).split()) or type(error).__name__
            yield Check("reference", "skipped", f"it cannot load the folder: {reason[:300]}")
            return
        if reference.doubt:
            yield Check("pooling", "note", reference.doubt)
        check, rows = self._check_tokens(reference)
        yield check
        items = [self._items.items[at] for at in rows]
        done = compute_within(
            reference.compute, items, [self._items.tokens[at] for at in rows], self._limit(_REFERENCE)
        )
        expected = np.full((len(self._items.items), *done.values.shape[1:]), np.nan, done.values.dtype)
        compared = rows[: len(done.values)]
        expected[compared] = done.values
        yield self._check_exact(reference, expected, compared)
        yield self._check_served(f"as served ({self._way})", expected, compared)
        yield from self._check_prompts(reference)
        yield Check("speed", "ok", f"{self._way}: {self._served.speed}; {reference.name}, float32: {done.speed}")

    def _check_tokens(self, reference: Reference) -> tuple[Check, list[int]]:
        """Compare ids; return the items that the reference can read, too."""
        pairs = not isinstance(self._items.items[0], str)
        # Libraries shorten pairs in ways of their own.
        rows = [at for at, cut in enumerate(self._items.cut) if not (cut and pairs)]
        if reference.read is None:
            return Check("token ids", "ok", f"not shown by {reference.name}; what it makes of them is compared"), rows
        theirs = {at: reference.read(self._items.items[at]) for at in rows}
        # On a text without tokens the libraries fail, and we read one token.
        readable = [at for at in rows if theirs[at]]
        what = f"{len(readable)} texts of {len(self._items.items)} compared with {reference.name}"
        differing = [str(self._items.items[at])[:40] for at in readable if theirs[at] != self._items.ids[at]]
        if differing:
            found = f"{what}; {len(differing)} have other token ids, as {differing[0]!r}"
            return Check("token ids", "FAILED", found), readable
        return Check("token ids", "ok", f"{what}, all alike"), readable

    def _check_exact(self, reference: Reference, expected: Values, rows: Sequence[int]) -> Check:
        rows = [at for at in rows if at < len(self._exact.values)]
        name = "float32 = reference"
        check = compare(name, self._exact.values[rows], expected[rows], "float32", lengths=self._card.normalize is None)
        return replace(check, found=f"{check.found}, {reference.name}")

    def _check_served(self, name: str, expected: Values, rows: Sequence[int] | None = None) -> Check:
        count = min(len(self._served.values), len(expected))
        chosen = [at for at in rows if at < count] if rows is not None else list(range(count))
        lengths = self._card.normalize is None
        dtype = self._card.quantize or self._dtype
        check = compare(name, self._served.values[chosen], expected[chosen], dtype, lengths=lengths)
        # What 4 bits lose is the price that the card asks for, and no mistake of ours.
        return replace(check, verdict="note") if check.verdict == "FAILED" and dtype == "int4" else check

    def _check_prompts(self, reference: Reference) -> Iterator[Check]:
        for role, values in self._roles.items():
            if role not in reference.roles:
                continue
            expected = reference.roles[role](self._prompted())
            dtype = self._card.quantize or self._dtype
            check = compare(f"prompt of a {role}", values, expected, dtype, lengths=self._card.normalize is None)
            stated = {"query": self._card.query_instruction, "document": self._card.document_instruction}[role]
            if check.verdict == "FAILED" and stated:
                check = replace(check, verdict="note", found=f"the card's own, {stated[:60]!r}, is not the folder's")
            yield check

    def _compute(self, compute: Callable[[Sequence[Any]], Values], share: float, most: int | None = None) -> Timed:
        return compute_within(compute, self._items.items[:most], self._items.tokens[:most], self._limit(share))

    def _limit(self, share: float) -> float:
        return share * self._seconds

    def _prompted(self) -> list[Any]:
        """Return some texts of middling length, for prompts."""
        middle = len(self._items.items) // 2
        return self._items.items[middle : middle + _PROMPTED]


def _list_roles(card: ModelCard) -> dict[str, dict[str, Any]]:
    """Return how texts are computed as queries and as documents, where that differs from texts of no role."""
    if card.family == "colbert":
        return {"query": {"role": "query"}}
    if not card.kinds:
        return {}
    instructions = {"query": card.query_instruction, "document": card.document_instruction}
    return {role: {"instruction": instruction or None} for role, instruction in instructions.items()}


def _sort(served: Served, texts: list[str]) -> _Items:
    """Return the items of the examination, shortest first."""
    items: list[Any] = list(texts)
    if served.model.backend.dimension is None:
        items = [(_QUERIES[at % len(_QUERIES)], text) for at, text in enumerate(texts)]
    rows = sorted(zip(served.count_tokens(items), range(len(items)), strict=True), key=lambda row: (row[0][0], row[1]))
    return _Items(
        [items[at] for _, at in rows],
        [count for (count, _, _), _ in rows],
        [cut for (_, cut, _), _ in rows],
        [ids for (_, _, ids), _ in rows],
    )
