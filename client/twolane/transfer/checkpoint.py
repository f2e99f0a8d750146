"""How far a run has come: what a sink keeps, so that the same command goes on behind it.

Owns the shape, and the comparison of a run with the one that was begun. The sink keeps it.
"""

import hashlib
from typing import Self

import msgspec

from twolane.errors import InputError, SinkError

__all__ = ["Checkpoint", "Plan", "extend_chain", "refuse_changed_input"]


class Plan(msgspec.Struct, frozen=True):
    """What a run does; two runs that are to be one must have the same.

    Attributes:
        source: name of the corpus. A file that is one output does not depend on it, a database keeps a run for each.
        options: how items are computed.
        columns: what is read and kept.
        dimension: length of the vectors; 0: scores.
        part_items, part_bytes: how the corpus is cut.
    """

    model: str
    options: dict[str, str]
    columns: dict[str, object]
    dimension: int
    part_items: int
    part_bytes: int
    source: str = ""

    @property
    def digest(self) -> str:
        """A name for the plan."""
        described = msgspec.structs.replace(self, source="")
        return hashlib.blake2b(msgspec.json.encode(described, order="deterministic"), digest_size=16).hexdigest()


class Checkpoint(msgspec.Struct, frozen=True):
    """The parts that are in the sink.

    Attributes:
        plan: digest of the plan.
        model, fingerprint: what made the vectors; the fingerprint is empty until the first part is there.
        parts, rows: how many of each are in the sink.
        chain: digest over the IDs and texts of those rows.
        finished: whether the corpus ends there.
    """

    plan: str
    model: str
    dimension: int
    fingerprint: str = ""
    parts: int = 0
    rows: int = 0
    chain: str = ""
    completed: int = 0
    failed: int = 0
    truncated: int = 0
    tokens: int = 0
    finished: bool = False

    @classmethod
    def begin(cls, plan: Plan) -> Self:
        """Return the state of a run that has written nothing."""
        return cls(plan.digest, plan.model, plan.dimension)

    @classmethod
    def read(cls, data: bytes | str) -> Self:
        """Return what `write` wrote.

        Raises:
            SinkError: it is something else.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise SinkError(f"the record of an earlier run cannot be read: {error}") from None

    def write(self) -> bytes:
        """Return the checkpoint as JSON."""
        return msgspec.json.encode(self)

    def require_plan(self, plan: Plan, sink: str) -> None:
        """Refuse a run that is not the one that was begun.

        Raises:
            SinkError: another model, other options, or other columns.
        """
        if self.plan != plan.digest:
            what = f"with {self.model}" if self.model != plan.model else "with other options"
            raise SinkError(f"{sink} was begun {what}; give the same command again, or begin anew with --overwrite")

    def require_fingerprint(self, fingerprint: str) -> None:
        """Refuse vectors that do not compare with those that are there.

        Raises:
            SinkError: the server's model is not the one of the first part.
        """
        if self.fingerprint and fingerprint and fingerprint != self.fingerprint:
            raise SinkError(
                f"the server's {self.model} is not the one that made the vectors so far; use another output"
            )


def extend_chain(chain: str, digest: bytes) -> str:
    """Return a chain of digests with one more at its end."""
    return hashlib.blake2b(chain.encode() + digest, digest_size=16).hexdigest()


def refuse_changed_input(source: str) -> InputError:
    """Return the error for a corpus that does not begin as it did."""
    return InputError(f"{source} has changed since this output was begun; begin anew with --overwrite")
