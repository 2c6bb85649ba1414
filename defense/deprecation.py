"""Deprecated names: they work until a stated version, and warn on first use.

A public name is deprecated in one release and removed no earlier than the second minor release after it::

    @deprecated(since="0.2.0", removal="0.4.0", instead="puregrid.open_results")
    def read_results(store): ...

The warning is a :class:`FutureWarning`, which Python shows to users, and names the line that calls.
"""

import functools
import inspect
import re
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["deprecated", "warn_deprecated"]

P = ParamSpec("P")
T = TypeVar("T")

_VERSION = re.compile(r"\d+\.\d+\.\d+")

_WARNED: set[str] = set()
"""Names that have warned in this process."""


def warn_deprecated(name: str, *, since: str, removal: str, instead: str, stacklevel: int = 2) -> None:
    """Warn that a name will be removed, once in a process for each name.

    For what no decorator reaches: an argument, a field of a sweep file, an option, a module.

    Arguments:
        name: What is deprecated, as its users spell it.
        since: Version that first warns.
        removal: Version that no longer has the name.
        instead: What to use, as its users spell it.
        stacklevel: Whose line the warning names: 1 is the caller of this function, 2 that one's caller.

    Raises:
        ValueError: A version is not ``MAJOR.MINOR.PATCH``, or the removal is not two minor releases, or one major
            release, after ``since``: users would have no release in which both spellings work and warn.
    """
    _check_policy(name, since, removal)
    if name in _WARNED:
        return
    _WARNED.add(name)
    message = f"{name} is deprecated since puregrid {since} and will be removed in {removal}; use {instead}."
    warnings.warn(message, FutureWarning, stacklevel=stacklevel + 1)


def deprecated(*, since: str, removal: str, instead: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function that will be removed: it works as before, and its first call warns.

    The docstring gains a note in Sphinx's spelling. The policy is checked where the function is defined, so that a
    wrong version fails at import and not for a user.

    Arguments:
        since: Version that first warns.
        removal: Version that no longer has the function.
        instead: What to use, as its users spell it.

    Raises:
        ValueError: See :func:`warn_deprecated`.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        name = f"{function.__module__}.{function.__qualname__}"
        _check_policy(name, since, removal)

        @functools.wraps(function)
        def wrapper(*arguments: P.args, **options: P.kwargs) -> T:
            warn_deprecated(name, since=since, removal=removal, instead=instead)
            return function(*arguments, **options)

        note = f".. deprecated:: {since}\n    It will be removed in {removal}; use {instead}."
        wrapper.__doc__ = "\n\n".join(filter(None, (inspect.getdoc(function), note)))
        return wrapper

    return decorate


def _check_policy(name: str, since: str, removal: str) -> None:
    for version in (since, removal):
        if _VERSION.fullmatch(version) is None:
            raise ValueError(f"{name}: version {version!r} is not MAJOR.MINOR.PATCH.")
    first, last = ([int(part) for part in version.split(".")] for version in (since, removal))
    # A new major release may remove what the one before it deprecated.
    if not (last[0] > first[0] or (last[0] == first[0] and last[1] >= first[1] + 2)):
        raise ValueError(
            f"{name}: deprecated in {since}, it may be removed in {first[0]}.{first[1] + 2}.0 at the earliest, "
            f"not in {removal}."
        )
