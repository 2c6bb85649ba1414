"""Log what happens in a run, one JSON object per line, for log collectors and scripts.

The engine writes events to the standard library's logger ``puregrid.run``; :func:`log_to` writes them to a file. The
fields are in ``docs/running.md``. Without a handler nothing is formatted, so a run without a log pays nothing.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from defense.errors import InvalidInput
from defense.files import writable
from defense.redaction import redacted

__all__ = ["LOGGER", "Field", "JsonLines", "enabled", "log_event", "log_to"]

LOGGER = logging.getLogger("puregrid.run")

Field = str | int | float | bool | None
"""What a field of an event may be."""


class JsonLines(logging.Formatter):
    """One JSON object per record: time in UTC, event, and its fields.

    Arguments:
        constant: Fields that every line has.
    """

    def __init__(self, **constant: Field) -> None:
        super().__init__()
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = getattr(record, "fields", {})
        text = {name: redacted(value) if isinstance(value, str) else value for name, value in fields.items()}
        return json.dumps({"time": time, "event": record.getMessage(), **self._constant, **text}, default=str)


class _Lines(logging.FileHandler):
    """A log that ends where it cannot be written any more, e.g. on a full disk; the run goes on."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`, which would print a traceback for each event."""
        if not self._failed:
            self._failed = True
            print(
                f"the log {self.baseFilename} cannot be written ({sys.exc_info()[1]}); it lacks events",
                file=sys.stderr,
            )

    def close(self) -> None:
        """See :class:`logging.Handler`; what is left to write may not fit either."""
        with contextlib.suppress(OSError):
            super().close()


def enabled() -> bool:
    """Return whether a handler takes events."""
    return LOGGER.isEnabledFor(logging.INFO)


def log_event(event: str, **fields: Field) -> None:
    """Log an event; fields that are None are left out."""
    if enabled():
        LOGGER.info(event, extra={"fields": {name: value for name, value in fields.items() if value is not None}})


@contextlib.contextmanager
def log_to(path: Path | None, **constant: Field) -> Iterator[None]:
    """Append the events inside to a file; None logs nothing.

    Raises:
        InvalidInput: The file cannot be written.
    """
    if path is None:
        yield
        return
    writable(path, "the log", where="--log")
    try:
        handler = _Lines(path, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(
            f"the log {str(path)!r} cannot be written ({error.strerror}); give a file in a folder that exists.",
            where="--log",
        ) from error
    handler.setFormatter(JsonLines(**constant))
    level, propagate = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # a terminal that shows warnings is no place for them
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate
        handler.close()
