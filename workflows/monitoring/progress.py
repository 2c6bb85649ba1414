"""Progress on stderr: done, rate, time left, failures. A bar on a terminal, a line that is rewritten in a notebook.

Files and pipes get nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["SweepProgress", "training_progress"]


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


class SweepProgress:
    """A sweep's progress bar, as a context manager.

    The bar and the time left go by work (network evaluations), since units differ a hundredfold in cost.

    Arguments:
        total: Units of the sweep.
        done: Units that were committed before.
        work: Network evaluations of the units that are missing.
        quiet: Show nothing even on a terminal.
    """

    def __init__(self, total: int, done: int, work: float, *, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.fields[phase]}"),
            BarColumn(),
            TextColumn("{task.fields[units]} of {task.fields[of]} units · {task.fields[rate]:.1f} images/s · left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[trouble]}", style="red"),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        # Without widgets, which are another package, a notebook shows no bar; it rewrites a line.
        self._in_notebook = console.is_jupyter and not quiet
        self._line = ""
        self._started = self._bars.get_time()
        self._images = 0
        self._units = done
        self._task = self._bars.add_task("", total=work, units=done, of=total, rate=0.0, trouble="", phase="running")

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
        seconds = max(self._bars.get_time() - self._started, 1e-9)
        self._update(advance=work, units=self._units, rate=self._images / seconds)

    def trouble(self, failures: int, retries: int) -> None:
        """Show how many units failed for good and how often one was tried again."""
        parts = [f"{failures} failed"] * bool(failures) + [f"{retries} retried"] * bool(retries)
        self._update(trouble=" · ".join(parts))

    def phase(self, text: str) -> None:
        """Show the phase of the run, e.g. that the sweep is being drained."""
        self._update(phase=text)

    def _update(self, **fields: Any) -> None:
        self._bars.update(self._task, **fields)
        if self._in_notebook:
            task = self._bars.tasks[0]
            left = "" if task.time_remaining is None else f"{task.time_remaining:.0f} s left"
            parts = [
                f"{task.fields['phase']}: {task.fields['units']} of {task.fields['of']} units",
                f"{task.fields['rate']:.1f} images/s",
                *filter(None, [left, task.fields["trouble"]]),
            ]
            line = " · ".join(parts)
            if line != self._line:
                print(f"\r{line:<{len(self._line)}}", end="", file=sys.stderr, flush=True)
                self._line = line
