"""An engine that answers at once with numbers made from the text: the protocol of `tasks.engine`, and nothing else."""

import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from tasks.engine import ItemError, Outcomes, Work
from tasks.errors import DeadlineExceeded, LaneFull

__all__ = ["EchoEngine", "echo"]


def echo(work: Work) -> Outcomes:
    """Rows of (length of the text, code of its first letter); a text `bad` becomes an item error."""
    rows = [(len(text), ord(text[:1] or " ")) for text in work.texts]
    return Outcomes(
        values=np.array(rows, np.float32).reshape(len(rows), 2),
        tokens=np.array([len(text) for text in work.texts], np.int32),
        truncated=np.zeros(len(rows), np.bool_),
        errors={i: ItemError("item_failed", "it is bad") for i, text in enumerate(work.texts) if text == "bad"},
    )


class EchoEngine:
    """Answers at once, or holds everything back until `release()`; keeps what it was given in `seen`."""

    def __init__(self, *, hold: bool = False, room: int = 10**9) -> None:
        self.seen: list[Work] = []
        self.fail_with: Exception | None = None
        self.hold = hold
        self.room = room
        self._held: list[tuple[Work, Future[Outcomes]]] = []

    def submit_all(self, works: Sequence[Work]) -> list[Future[Outcomes]]:
        return [self._submit_safely(work) for work in works]

    def _submit_safely(self, work: Work) -> Future[Outcomes]:
        try:
            return self.submit(work)
        except Exception as error:  # noqa: BLE001 - as an engine does
            refused = Future[Outcomes]()
            refused.set_exception(error)
            return refused

    def submit(self, work: Work) -> Future[Outcomes]:
        if len(self._held) >= self.room:
            raise LaneFull("the engine is full")
        if self.fail_with is not None:
            raise self.fail_with
        self.seen.append(work)
        future: Future[Outcomes] = Future()
        self._held.append((work, future))
        if not self.hold:
            self.release()
        return future

    @property
    def held(self) -> list[Future[Outcomes]]:
        """The futures of what is held back."""
        return [future for _, future in self._held]

    def release(self) -> None:
        """Answer all that is held back."""
        held, self._held = self._held, []
        for work, future in held:
            if work.deadline_s is not None and work.deadline_s < time.monotonic():
                future.set_exception(DeadlineExceeded("too late"))
            else:
                future.set_result(echo(work))
