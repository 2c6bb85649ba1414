"""The exceptions that puregrid raises on purpose.

Every message says what is wrong, where, why it cannot work, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from defense.redaction import redacted

__all__ = ["InvalidInput", "PuregridError", "StoreError", "inside", "nearest", "no_memory"]

_REFUSED = ("can't allocate memory", "not enough memory")
"""What PyTorch's allocator for processors says."""


_LONGEST = 8000
"""Characters of a message; it may quote what a file holds, and that may be a megabyte."""


class PuregridError(Exception):
    """Base of everything that puregrid raises on purpose; its text holds no credentials of a URI."""

    def __str__(self) -> str:
        return redacted(super().__str__())


class InvalidInput(PuregridError):
    """The user's input cannot be run: a sweep file, an option, a path or a checksum.

    The CLI prints the message and exits with status 2 before any compute.

    Arguments:
        message: What is wrong, why, and what to do.
        where: The place in the input: a file and line, an option.
        keys: The path of the value inside of what was given, ``("rungs", 0, "steps")``; empty for all of it.
    """

    def __init__(self, message: str, *, where: str | None = None, keys: Iterable[str | int] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.keys = tuple(keys)

    def within(self, *keys: str | int) -> InvalidInput:
        """Return the same error of a value that lies at ``keys`` of something larger."""
        return type(self)(self.message, where=self.where, keys=(*keys, *self.keys))

    def at_field(self, fields: Iterable[str]) -> InvalidInput:
        """The same error, at the field that its message begins with, if it has no path and that is one of ``fields``.

        Validators say ``t_star = 1001 is not on ...`` or ``depths: ...`` and leave the place to their callers.
        """
        word, _, rest = self.message.partition(" ")
        name = word.removesuffix(":")
        if self.keys or self.where or name not in fields:
            return self
        return type(self)(rest if word.endswith(":") else self.message, keys=(name,))

    def __str__(self) -> str:
        place = ".".join(map(str, self.keys))
        if self.message.startswith(f"{place} "):  # ``eps = 0.0 (float): ...`` says so itself
            place = ""
        text = redacted(": ".join(part for part in (self.where, place, self.message) if part))
        if len(text) <= _LONGEST:
            return text
        return f"{text[: _LONGEST - 500]} [... {len(text) - _LONGEST:,} characters ...] {text[-500:]}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders through pickle, which calls the class with `args` alone.
        return (_rebuild, (type(self), self.message, self.where, self.keys))


def _rebuild(kind: type[InvalidInput], message: str, where: str | None, keys: tuple[str | int, ...]) -> InvalidInput:
    return kind(message, where=where, keys=keys)


class StoreError(PuregridError):
    """A store could not be read or written, or holds something that is not a committed row."""


@contextmanager
def inside(*keys: str | int) -> Iterator[None]:
    """Give an InvalidInput from inside the block the path of the value that it is about.

    Arguments:
        keys: Where the value lies in the spec around it.
    """
    try:
        yield
    except InvalidInput as error:
        raise error.within(*keys) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a half sentence that leads from a misspelled name to the valid ones."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid names: {', '.join(names)}."


def no_memory(error: BaseException) -> bool:
    """Return whether an error says that there was no memory: of a GPU, or of the machine."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _REFUSED)
