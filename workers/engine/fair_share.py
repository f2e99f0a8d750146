"""Which class of service goes next: interactive, except when bulk has waited for its share.

Owns one number, the time that bulk is owed. Pure: it is told what passes cost and never looks at a clock.
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

    def charge(self, service: Service, pass_s: float, *, contended: bool) -> None:
        """Account for a pass of `pass_s` seconds; contended if rows of both classes had waited for the device."""
        with self._lock:
            if not contended:
                self._owed_s = 0.0
            elif service is Service.BULK:
                self._owed_s = max(-_MOST_S, self._owed_s - pass_s)
            else:
                self._owed_s = min(_MOST_S, self._owed_s + self._rate * pass_s)
