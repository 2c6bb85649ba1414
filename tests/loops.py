"""Many small cases in one test, which pays for fixtures and reports once; and cases of which some are slow."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Iterable
from typing import Any

import pytest


def every(names: str | tuple[str, ...], cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call a test with each of some cases, as ``pytest.mark.parametrize`` does, but as one test.

    All cases are tried. Those that fail are raised together, each with a note that says which it was. Every case has
    a ``tmp_path`` of its own; all other fixtures are shared, so that no case may leave one changed.

    Arguments:
        names: Argument or arguments of the test.
        cases: Their values; tuples for several arguments.
    """
    several = (names,) if isinstance(names, str) else names
    table = [dict(zip(several, (case,) if isinstance(names, str) else case, strict=True)) for case in cases]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def run(*instance: Any, **fixtures: Any) -> None:
            assert table, "there are no cases"
            failures: list[BaseException] = []
            for number, case in enumerate(table):
                own = dict(fixtures)
                if "tmp_path" in own:
                    own["tmp_path"] = fixtures["tmp_path"] / str(number)
                    own["tmp_path"].mkdir()
                try:
                    test(*instance, **own, **case)
                except pytest.skip.Exception as skipped:
                    raise AssertionError(
                        "a case that may be skipped is a test of its own: parametrize it"
                    ) from skipped
                except (Exception, pytest.fail.Exception) as error:
                    error.add_note(f"case {number}: " + ", ".join(f"{name} = {case[name]!r}" for name in several))
                    failures.append(error)
            if len(failures) == 1:
                raise failures[0]
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(table)} cases failed", failures)

        left = [parameter for name, parameter in signature.parameters.items() if name not in several]
        run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return run

    return decorate


def tiers(cases: Iterable[Any], *, fast: Container[Any] = (), daily: Container[Any] = ()) -> list[Any]:
    """Cases for ``pytest.mark.parametrize``: some fast, some slow, the others nightly.

    Arguments:
        cases: Values of one argument.
        fast: Those that are left as they are.
        daily: Those that are marked slow.
    """
    marks = {True: pytest.mark.slow, False: pytest.mark.nightly}
    return [case if case in fast else pytest.param(case, marks=marks[case in daily]) for case in cases]
