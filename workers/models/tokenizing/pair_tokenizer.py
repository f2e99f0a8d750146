"""Pairs to token ids for rerankers that are language models: texts inside their template, and only texts are cut.

Owns the lengths: a query takes three quarters of what the template leaves at most, a document the rest. The templates
themselves are in `pair_template`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tasks.errors import ConfigError, InvalidRequest
from workers.models.folders.pair_template import PairTemplate
from workers.models.tokenizing.tokenizer import QUERY_SHARE, Encoded, FastTokenizer, Tokens, Truncate, shorten

__all__ = ["TemplateTokenizer"]

# Texts keep at least one of so many parts of what a model reads: an instruction cannot take it all.
_PARTS = 2
_KEPT_FRAMES = 64


@dataclass(frozen=True, slots=True)
class _Frame:
    """A template with its instruction filled in.

    Attributes:
        template: forms of query and document.
        instruction: as it stands in the form of the query.
        prefix: ids in front.
        separator: ids between query and document, where they are read apart.
        suffix: ids behind.
        room: ids that query and document may take.
    """

    template: PairTemplate
    instruction: str
    prefix: list[int]
    separator: list[int]
    suffix: list[int]
    room: int


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before a document: ids, and text that is read together with it."""

    ids: list[int]
    text: str
    cut: bool


class TemplateTokenizer(FastTokenizer):
    """See `workers.models.tokenizing.tokenizer.TextTokenizer`; writes pairs by a template."""

    def __init__(self, plain: FastTokenizer, template: PairTemplate, begin_id: int | None = None) -> None:
        """Take over a tokenizer.

        Args:
            plain: that of the model.
            template: how pairs are written.
            begin_id: id of the token with which rows begin, for templates that want it; None: the model has none.

        Raises:
            ConfigError: the model reads too few tokens for the template.
        """
        super().__init__(plain.fast, plain.max_tokens, plain.fallback_id)
        self._template = template
        self._begin = [begin_id] if template.begins and begin_id is not None else []
        self._frame = lru_cache(_KEPT_FRAMES)(self._fill)
        try:
            self._frame(template.default_instruction)
        except InvalidRequest as error:
            raise ConfigError(f"it reads {self.max_tokens} tokens, too few for its template") from error

    def encode_pairs(
        self, queries: Sequence[str], texts: Sequence[str], truncate: Truncate, instruction: str = ""
    ) -> list[Encoded]:
        """See `TextTokenizer.encode_pairs`; the instruction stands in the template.

        Raises:
            InvalidRequest: the instruction leaves no room for texts.
        """
        frame = self._frame(instruction or self._template.default_instruction)
        known = {query: self._write_head(frame, query) for query in dict.fromkeys(queries)}
        heads = [known[query] for query in queries]
        short = [shorten(text, frame.room, truncate) for text in texts]
        bodies = [_write(frame, head, text) for head, text in zip(heads, short, strict=True)]
        parts = self.fast.encode_batch_fast(bodies, add_special_tokens=False)
        return [
            self._row(frame, head, text, (read, part.ids), truncate)
            for head, text, read, part in zip(heads, texts, short, parts, strict=True)
        ]

    def _row(self, frame: _Frame, head: _Head, text: str, short: tuple[str, list[int]], truncate: Truncate) -> Encoded:
        """Return the row of a pair; `short` is as much of the text as was read, and the ids of that."""
        read, ids = short
        room = self.max_tokens - len(frame.prefix) - len(head.ids) - len(frame.suffix)
        if len(read) < len(text) and len(ids) <= room:
            # The shortened text does not fill the room after all.
            read, ids = text, self._read(_write(frame, head, text))
        kept = ids if len(ids) <= room else self._cut(frame, head, read, room, truncate)
        whole = np.array([*frame.prefix, *head.ids, *kept, *frame.suffix], np.int32)
        cut = head.cut or len(read) < len(text) or len(kept) < len(ids)
        return Encoded(Tokens(whole), cut, self.max_tokens - room + len(ids))

    def _fill(self, instruction: str) -> _Frame:
        template = self._template.without if not instruction and self._template.without else self._template
        prefix = self._begin + self._read(template.prefix)
        separator = self._read(template.separator or "")
        suffix = [one for text in template.suffix for one in self._read(text.format(instruction=instruction))]
        forms = template.query.format(query="", instruction=instruction) + template.document.format(document="")
        room = self.max_tokens - len(prefix) - len(separator) - len(suffix) - len(self._read(forms))
        if room * _PARTS < self.max_tokens:
            message = f"the instruction leaves {max(room, 0)} of the {self.max_tokens} tokens that the model reads"
            raise InvalidRequest(f"{message}, too few for query and document", param="instruction")
        return _Frame(template, instruction, prefix, separator, suffix, room)

    def _write_head(self, frame: _Frame, query: str) -> _Head:
        share, whole = QUERY_SHARE
        most = frame.room * share // whole
        template = frame.template
        query = shorten(query, frame.room, "end")
        if template.separator is not None:
            ids = self._read(template.query.format(query=query, instruction=frame.instruction))
            frame_ids = self._read(template.query.format(query="", instruction=frame.instruction))
            most += len(frame_ids)
            return _Head(ids[:most] + frame.separator, "", len(ids) > most)
        part = self.fast.encode(query, add_special_tokens=False)
        cut = len(part.ids) > most
        if cut:
            query = query[: part.offsets[most - 1][1]]
        return _Head([], template.query.format(query=query, instruction=frame.instruction), cut)

    def _cut(self, frame: _Frame, head: _Head, text: str, room: int, truncate: Truncate) -> list[int]:
        """Return the ids of a document's part without what is too much of the document itself."""
        part = self.fast.encode(_write(frame, head, text), add_special_tokens=False)
        start = len(head.text) + len(frame.template.document.partition("{document}")[0].format())
        end = start + len(text)
        own = [at for at, (first, last) in enumerate(part.offsets) if first >= start and last <= end]
        excess = len(part.ids) - room
        gone = set(own[:excess] if truncate == "start" else own[-excess:])
        # The last slice only matters where the texts around the document were underestimated.
        return [one for at, one in enumerate(part.ids) if at not in gone][-room:]

    def _read(self, text: str) -> list[int]:
        return list(self.fast.encode(text, add_special_tokens=False).ids) if text else []


def _write(frame: _Frame, head: _Head, text: str) -> str:
    return head.text + frame.template.document.format(document=text)
