"""Named, extensible collections: purifiers, attacks, classifiers, data sets.

A name is looked up among the built-in entries, then among the Python entry points of the collection's group
(``puregrid.purifiers``, ...), and a name of the form ``module:attribute`` is imported as it stands.
"""

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from defense.code import Code, code_of_modules, is_foreign, owners_of
from defense.errors import InvalidInput, nearest

__all__ = ["Registry", "no_plugins"]

_SLOW = 10.0
"""Seconds after which an import is said to take long."""

_LONGEST = 300

_refused: ContextVar[bool] = ContextVar("no_plugins", default=False)

T = TypeVar("T")
E = TypeVar("E")


@contextmanager
def no_plugins() -> Iterator[None]:
    """Inside the block a name ``module:attribute`` is refused and nothing is imported for it.

    Parts of installed distributions (entry points) stay: whoever installed them chose them.
    """
    token = _refused.set(True)
    try:
        yield
    finally:
        _refused.reset(token)


def _installed(group: str) -> tuple[EntryPoint, ...]:
    """Entry points of a group.

    The metadata of every distribution, hundreds of files, is read once, and again where the Python path is another
    one or something was installed into a folder on it since.
    """
    return _of_group(group, tuple((place, _changed(place)) for place in sys.path))


_Path = tuple[tuple[str, int], ...]
"""Folders, and when an entry of each was last added or removed, in ns."""


@lru_cache(maxsize=64)
def _of_group(group: str, path: _Path) -> tuple[EntryPoint, ...]:
    return tuple(_all_points(path).select(group=group))


@lru_cache(maxsize=4)
def _all_points(path: _Path) -> Any:
    return entry_points()


def _changed(place: str) -> int:
    try:
        return os.stat(place or ".").st_mtime_ns
    except OSError:
        return 0


class _Watch:
    """Whether somebody pressed Ctrl-C; code may raise ``KeyboardInterrupt`` without that."""

    interrupted = False


@contextmanager
def _watched(name: str) -> Iterator[_Watch]:
    """Import code from elsewhere: what it prints goes to stderr, an import that takes long is said to do so."""
    watch = _Watch()

    def interrupt(*_: object) -> None:
        watch.interrupted = True
        raise KeyboardInterrupt

    slow = threading.Timer(_SLOW, _say_slow, [name])
    slow.daemon = True
    slow.start()
    handler = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread() and handler is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        with redirect_stdout(sys.stderr):
            yield watch
    finally:
        slow.cancel()
        if ours:
            signal.signal(signal.SIGINT, handler)


def _say_slow(name: str) -> None:
    if sys.stderr is not None:
        print(f"note: {name!r} has been importing for {_SLOW:g} s; Ctrl-C ends it.", file=sys.stderr, flush=True)


class Registry(Generic[T]):
    """A collection of parts that a sweep file can name.

    Arguments:
        noun: What an entry is called in messages, e.g. ``"purifier"``.
        group: Entry-point group in which other distributions add entries.
        subclass_of: Entries are classes derived from this one; checked for those from elsewhere.
        instance_of: Entries are instances of this class; likewise.
    """

    def __init__(
        self, noun: str, group: str, *, subclass_of: type | None = None, instance_of: type | None = None
    ) -> None:
        self.noun = noun
        self.group = group
        self._subclass_of = subclass_of
        self._instance_of = instance_of
        self._entries: dict[str, T] = {}
        self._codes: dict[str, Code | None] = {}

    def register(self, name: str) -> Callable[[E], E]:
        """Decorator that adds an entry under ``name``."""

        def add(entry: E) -> E:
            if name in self._entries:
                raise ValueError(f"{self.noun} {name!r} is registered twice")
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return add

    def names(self) -> list[str]:
        """Return all names, built in and from entry points, sorted."""
        installed = {point.name for point in _installed(self.group)}
        return sorted(installed | set(self._entries))

    def get(self, name: str) -> T:
        """Return the entry of that name.

        Raises:
            InvalidInput: Unknown name, with the nearest valid one, a ``module:attribute`` that cannot be
                imported, or something that is no entry of this collection.
        """
        if name in self._entries:
            return self._entries[name]
        for point in _installed(self.group):
            if point.name == name:
                return self._checked(name, self._loaded(name, point.load))
        if ":" in name:
            if _refused.get():
                raise InvalidInput(
                    f"{self.noun} {name!r} is code: the module {name.partition(':')[0]!r} would be imported and "
                    "run as you, and --no-plugins forbids that. Read the module, then give the command without it."
                )
            return self._checked(name, self._imported(name))
        raise InvalidInput(f"unknown {self.noun} {name!r}; {nearest(name, self.names())}")

    def code_of(self, name: str) -> Code | None:
        """The code of an entry that is not puregrid's: of the module that it is named by, and where it was made.

        Raises:
            InvalidInput: As :meth:`get`; or a source cannot be read.
        """
        if name in self._entries:
            return None
        if name not in self._codes:
            self._codes[name] = self._code_of(name)
        return self._codes[name]

    def _code_of(self, name: str) -> Code | None:
        entry = self.get(name)
        modules: list[str] = []
        for point in _installed(self.group):
            if point.name == name:
                modules.append(point.module)
                break
        else:
            modules.append(name.partition(":")[0])
        for value in (entry, *(vars(entry).values() if hasattr(entry, "__dict__") else ())):
            if isinstance(value, type) or callable(value):
                modules += owners_of(value)
        return code_of_modules(tuple(dict.fromkeys(module for module in modules if is_foreign(module))))

    def _imported(self, name: str) -> Any:
        module, _, attribute = name.partition(":")
        return self._loaded(name, lambda: getattr(importlib.import_module(module), attribute))

    def _loaded(self, name: str, load: Callable[[], Any]) -> Any:
        """Import an entry from elsewhere, whose code may do anything.

        Raises:
            InvalidInput: It is not there, or its code ends in an error; with the cause and its line.
        """
        try:
            with _watched(name) as watch:
                return load()
        except InvalidInput:
            raise
        except BaseException as error:  # code from elsewhere raises whatever it raises
            if isinstance(error, KeyboardInterrupt) and watch.interrupted:
                raise
            cause = _said(error)
            if not isinstance(error, ImportError | AttributeError):
                cause = f"its code raises {type(error).__name__}: {cause}"
            frame = next(iter(traceback.extract_tb(error.__traceback__)[-1:]), None)
            inside = frame is not None and not frame.filename.startswith(("<frozen", __file__))
            if frame is not None and inside and not isinstance(error, SyntaxError):
                cause += f", at {frame.filename}:{frame.lineno}"
        raise InvalidInput(
            f"{self.noun} {name!r} cannot be imported ({cause}); it must be module:attribute on the Python path of "
            "the driver and of every worker."
        )

    def _checked(self, name: str, entry: Any) -> T:
        if self._subclass_of is not None and not (isinstance(entry, type) and issubclass(entry, self._subclass_of)):
            wanted = f"a class derived from {self._subclass_of.__module__}.{self._subclass_of.__name__}"
        elif self._instance_of is not None and not isinstance(entry, self._instance_of):
            wanted = f"an instance of {self._instance_of.__module__}.{self._instance_of.__name__}"
        else:
            checked: T = entry
            return checked
        raise InvalidInput(f"{self.noun} {name!r} is {_repr(entry)}; what is named here must be {wanted}.")


def _said(error: BaseException) -> str:
    """The first line of an error's text, which is code from elsewhere too."""
    try:
        return (str(error).strip().splitlines() or [""])[0][:_LONGEST]
    except Exception:
        return "(and cannot say why)"


def _repr(entry: object) -> str:
    try:
        return repr(entry)[:_LONGEST]
    except Exception:
        return f"an object of {type(entry).__name__}"
