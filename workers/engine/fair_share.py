"""Which class of service goes next: interactive, except when bulk has waited for its share of the device's time.

Owns one number, the time that bulk is owed. Pure: it is given what passes cost and never looks at a clock.
"""

import threading

from tasks.lanes import Service

__all__ = ["FairShare"]

# What is owed is bounded both ways, so that no phase of load is paid back for longer than this.
_MOST_S = 1.0


class FairShare:
    """Interactive first at every batch; bulk ages towards its share while it waits. Thread-safe."""

    def __init__(self, bulk_min_share: float, quantum_s: float) -> None:
        """Set bulk's part of device time under constant interactive load, in [0, 1), and what it gets at once.

        Args:
            bulk_min_share: zero lets bulk wait for as long as interactive rows do.
            quantum_s: bulk goes when it is owed this much: about a pass of the size allowed beside interactive work.
        """
        self._rate = bulk_min_share / (1 - bulk_min_share)
        self._quantum_s = min(quantum_s, _MOST_S)
        self._owed_s = 0.0
        self._lock = threading.Lock()

    def choose(self, *, interactive: bool, bulk: bool) -> Service:
        """Return the class of the next pass, given in which classes rows wait."""
        if interactive and bulk:
            owed = self._rate > 0 and self._owed_s >= self._quantum_s
            return Service.BULK if owed else Service.INTERACTIVE
        return Service.INTERACTIVE if interactive else Service.BULK

    def charge(self, pass_s: float, bulk_part: float, *, contended: bool) -> None:
        """Account for a pass.

        Args:
            pass_s: what it took.
            bulk_part: bulk's part of it, in [0, 1].
            contended: whether rows of both classes had waited for the device.
        """
        earned_s = (self._rate * (1 - bulk_part) - bulk_part) * pass_s
        with self._lock:
            self._owed_s = min(max(self._owed_s + earned_s, -_MOST_S), _MOST_S) if contended else 0.0
