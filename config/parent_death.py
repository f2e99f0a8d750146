"""A child process that ends with its parent, so that nothing is left behind when the parent is killed.

Owns the one system call that does it. Linux only; elsewhere a parent that is killed with SIGKILL leaves its children.
"""

import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable

__all__ = ["die_with_parent", "tied_to_parent"]

_PR_SET_PDEATHSIG = 1


def die_with_parent(death_signal: signal.Signals = signal.SIGTERM) -> None:
    """Tie the calling process to its parent. A parent that is gone already is not noticed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(death_signal))


def tied_to_parent(death_signal: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """Return a `preexec_fn` for `subprocess.Popen`: the kernel signals the child when its parent ends.

    The signal is sent when the *thread* that started the child ends, so children must be started from a thread that
    lives as long as they should.

    Args:
        death_signal: SIGTERM for a child that has something to finish, SIGKILL for one that has not.
    """
    if sys.platform != "linux":
        return _nothing
    # Loaded here, before the fork: between fork and exec only the bare call is safe.
    return functools.partial(_tie, ctypes.CDLL(None), int(death_signal), os.getpid())


def _tie(libc: ctypes.CDLL, death_signal: int, parent: int) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:  # it ended before the call: the signal will never come
        os._exit(1)


def _nothing() -> None:
    """Tie nothing."""
