"""Running checks one after the other, and what came of them in words for whoever wrote the sweep file."""

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from defense.classifiers import ClassifierConfig
from defense.code import is_foreign
from defense.errors import InvalidInput, PuregridError, no_memory
from defense.purifiers import Purifier, PurifierConfig
from tasks.compute import Context
from workflows.preflight.checks import Blamed, Check

__all__ = ["Answer", "ask"]

_LONG, _SHORT = 4, 2
"""A chain of more network evaluations than the one goes in as many steps as the other."""


class _Short(Context):
    """A worker's state whose purifiers are built in full and then take few steps."""

    def purifier(self, config: PurifierConfig, protecting: ClassifierConfig | None) -> Purifier:
        """See :class:`Context`."""
        built = super().purifier(config, protecting)
        return built.surrogate(_SHORT) if config.evaluations > _LONG else built


@dataclass(frozen=True)
class Answer:
    """What came of a check.

    Arguments:
        check: The check; where it asks several parts, of the one that failed.
        seconds: How long it took.
        error: Why the part cannot be computed with; None if it can.
        skipped: Why it could not be asked; None if it was.
    """

    check: Check
    seconds: float
    error: InvalidInput | None = None
    skipped: str | None = None


def ask(checks: Sequence[Check], device: str) -> Iterator[Answer]:
    """Run checks until one fails, one network in memory after the other.

    Arguments:
        checks: The checks, those of one network side by side.
        device: ``cpu`` or ``cuda``.
    """
    context = _Short(device, capacity=3)
    for check in checks:
        begun = time.perf_counter()
        failed, error, skipped = check, None, None
        try:
            with context.settings(check.stage.settings()):
                check.run(context)
        except Exception as raised:  # whatever a part raises, it would raise it in every unit
            failed, raised = (raised.check, raised.error) if isinstance(raised, Blamed) else (check, raised)
            if no_memory(raised):
                skipped = "there is not enough memory for it now"
            else:
                error = _explained(failed, raised)
        yield Answer(failed, time.perf_counter() - begun, error, skipped)
        if error is not None:
            return


def _explained(check: Check, error: Exception) -> InvalidInput:
    """An error of a part in words for whoever wrote the sweep file."""
    if isinstance(error, InvalidInput):
        return error
    if isinstance(error, PuregridError):
        return InvalidInput(str(error))
    lines = str(error).strip().splitlines() or [""]
    return InvalidInput(
        f"{check.what} raises at the first image ({type(error).__name__}: {lines[0][:200]}{_line_of(error)}), as it "
        "would in every unit. Correct it, or remove or `exclude` the entry."
    )


def _line_of(error: BaseException) -> str:
    """``, file.py:12``: the innermost line of code that is neither puregrid's nor a library's; else the last one."""
    frames = [
        (str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    own = [frame for frame in frames if is_foreign(frame[0]) and "site-packages" not in frame[1]] or frames
    return f", {own[-1][1].rpartition('/')[2]}:{own[-1][2]}" if own else ""
