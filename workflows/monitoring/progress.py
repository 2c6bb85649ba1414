"""Progress on stderr: done, rate, time left, failures.

A bar on a terminal, a line that is rewritten in a notebook, and a line a minute in files and pipes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from workflows.monitoring.run_record import duration

__all__ = ["HEARTBEAT_SECONDS", "SweepProgress", "phase", "training_progress"]

HEARTBEAT_SECONDS = 60.0
"""How often a run says in a file or pipe how far it is."""


@contextmanager
def training_progress(steps: int) -> Iterator[Callable[[int, float], None]]:
    """Show a training's progress; yields ``report(step, loss)``."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task("", total=steps, loss=float("nan"))

        def report(step: int, loss: float) -> None:
            bars.update(task, completed=step, loss=loss)

        yield report


@contextmanager
def phase(text: str) -> Iterator[None]:
    """Show on a terminal what is going on before there is a bar: ``checking what is committed``."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(f"{text} ...", spinner_style="none"):
        yield


class SweepProgress:
    """A sweep's progress, as a context manager: a bar on a terminal, a line a minute in a file or pipe.

    Bar and time left go by work (network evaluations), since units differ a hundredfold in cost. The time left is
    what the driver expects of units of each kind (:meth:`expected`); until it knows all kinds, the work that is left
    over the rate of work so far. So it is known after the first unit, however long one takes.

    Arguments:
        total: Units of the sweep.
        done: Units that were committed before.
        work: Network evaluations of the units that are missing.
        quiet: Show nothing, even on a terminal.
        say: Where the line of a minute goes, in files and pipes.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        total: int,
        done: int,
        work: float,
        *,
        quiet: bool = False,
        say: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.fields[phase]}"),
            BarColumn(),
            TextColumn("{task.fields[units]} of {task.fields[of]} units · {task.fields[rate]} · {task.fields[left]}"),
            TextColumn("{task.fields[trouble]}", style="red"),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        # Without widgets, which are another package, a notebook shows no bar; it rewrites a line.
        self._in_notebook = console.is_jupyter and not quiet
        self._lines = not (quiet or console.is_terminal or console.is_jupyter)
        self._line = ""
        self._say = say
        self._clock = clock
        self._started = self._told = clock()
        self._images = 0
        self._total = total
        self._units = done
        self._work = work
        self._done = 0.0
        self._expected: float | None = None
        self._expected_at = self._started
        self._task = self._bars.add_task(
            "", total=work, units=done, of=total, rate="0 images", left="...", trouble="", phase="running"
        )

    def __enter__(self) -> SweepProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        if self._in_notebook:
            print(file=sys.stderr)

    def committed(self, units: int, images: int, work: float) -> None:
        """Show that more units are committed."""
        self._images += images
        self._units += units
        self._done += work
        self._update(advance=work, units=self._units)

    def expected(self, seconds: float | None) -> None:
        """Take the driver's estimate of the seconds that are left; None as long as it has none."""
        if seconds != self._expected:
            self._expected, self._expected_at = seconds, self._clock()

    def trouble(self, failures: int, retries: int) -> None:
        """Show how many units failed for good and how often one was tried again."""
        parts = [f"{failures} failed"] * bool(failures) + [f"{retries} retried"] * bool(retries)
        self._update(trouble=" · ".join(parts))

    def phase(self, text: str) -> None:
        """Show the phase of the run, e.g. that the sweep is being drained."""
        self._update(phase=text)

    def show(self, text: str) -> None:
        """Show a text above the bar, where there is one."""
        if not self._bars.disable:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @property
    def seconds_left(self) -> float | None:
        """What is left of the time, None before the first unit of an unknown kind; 0 when all units are committed."""
        if self._units >= self._total:
            return 0.0  # whatever was expected of the last one
        now = self._clock()
        if self._expected is not None:  # units that are running get on between two estimates
            return max(self._expected - (now - self._expected_at), 0.0)
        if self._done <= 0:
            return None
        return max(self._work - self._done, 0.0) * (now - self._started) / self._done

    def _update(self, **fields: Any) -> None:
        left = self.seconds_left
        rate = self._images / max(self._clock() - self._started, 1e-9)
        fields["rate"] = f"{rate:.1f} images/s" if rate >= 0.095 else f"{60 * rate:.2g} images/min"
        fields["left"] = "time left unknown until the first unit ends" if left is None else f"{duration(left)} left"
        if self._units >= self._total:
            fields["left"] = "all committed"
        self._bars.update(self._task, **fields)
        if self._in_notebook:
            line = self._text()
            if line != self._line:
                print(f"\r{line:<{len(self._line)}}", end="", file=sys.stderr, flush=True)
                self._line = line
        elif self._lines and self._clock() - self._told >= HEARTBEAT_SECONDS:
            self._told = self._clock()
            self._say(self._text())

    def _text(self) -> str:
        fields = self._bars.tasks[0].fields
        parts = [f"{fields['phase']}: {fields['units']} of {fields['of']} units", fields["rate"], fields["left"]]
        return " · ".join([*parts, *filter(None, [fields["trouble"]])])
