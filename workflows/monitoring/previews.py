"""When a run that somebody looks at shows a table of what is there: early, and then ever more rarely."""

import time
from collections.abc import Callable

__all__ = ["FIRST_SECONDS", "Previews"]

FIRST_SECONDS = 15.0
"""Seconds from the first worker to the first table: with what comes before it less than a minute."""

_GROWTH = 3.0
_SHARE = 0.02


class Previews:
    """Decides when to make a table, so that all tables together take little of the run's time.

    The first is due after :data:`FIRST_SECONDS`, each later one when three times as much time has passed. Making one
    may take at most a fiftieth of the time until then; if it took longer, the next one waits until it does not.

    Arguments:
        make: Makes the table of what is committed; empty if there is nothing to show yet.
        show: Shows it.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        make: Callable[[], str],
        show: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._show = show
        self._clock = clock
        self._started = clock()
        self._due = FIRST_SECONDS
        self._seen = 0

    def tick(self, committed: int) -> None:
        """Show a table if it is time for one, and units were committed since the last."""
        passed = self._clock() - self._started
        if committed == self._seen or passed < self._due:
            return
        text = self._make()
        took = self._clock() - self._started - passed
        if text:
            self._show(text)
        # Nothing to show yet, such as an attack that nobody has judged: look again soon.
        later = _GROWTH * passed if text else passed + FIRST_SECONDS / 3
        self._due, self._seen = max(later, passed + took / _SHARE), committed
