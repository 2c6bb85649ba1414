"""What the tests of all contract suites share: the demands of a suite, and those that a part fails."""

from __future__ import annotations

from typing import Any


def demands(suite: type) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


def failed(suite: Any) -> dict[str, str]:
    """The demands that a part fails, with what they say."""
    found = {}
    for demand in demands(type(suite)):
        try:
            getattr(suite, demand)()
        except Exception as error:
            found[demand] = str(error)
    return found


def hold(suite: Any) -> None:
    """A part keeps all demands; those that it fails are raised together, each with its name."""
    failures = []
    for demand in demands(type(suite)):
        try:
            getattr(suite, demand)()
        except Exception as error:
            error.add_note(f"demand: {demand}")
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{len(failures)} demands are not kept", failures)


def hold_alone(suite: Any, demand: str, message: str) -> None:
    """A part fails one demand, which says what is wrong, and no other."""
    found = failed(suite)
    assert list(found) == [f"test_{demand}"], found
    assert message in found[f"test_{demand}"], found
