"""Work announced and work done, in images x forward passes, to show progress and the time left."""

from __future__ import annotations

from collections.abc import Callable

# Cost of a batch in forward passes: a gradient is about three, a Hessian-vector product about six.
FORWARD, GRADIENT, HESSIAN = 1, 3, 6


class Work:
    """The work of one process."""

    def __init__(self, report: Callable[[float, float], None] | None = None) -> None:
        """Start without announced work.

        Args:
            report: Called with the work done and the work announced, whenever work is done.
        """
        self._report = report
        self._done = self._announced = 0.0

    def announce(self, work: float) -> None:
        """Announce work to come, in images x forward passes."""
        self._announced += work

    def tick(self, cost: float) -> None:
        """Report work done, in images x forward passes."""
        self._done += cost
        if self._report:
            self._report(self._done, self._announced)
