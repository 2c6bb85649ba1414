"""A deprecated name works, warns once where it is used, and lives for two minor releases."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator

import pytest

from defense import deprecation
from defense.deprecation import deprecated, warn_deprecated


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    before = set(deprecation._WARNED)
    deprecation._WARNED.clear()
    yield
    deprecation._WARNED.clear()
    deprecation._WARNED.update(before)


@deprecated(since="0.2.0", removal="0.4.0", instead="defense.double")
def twice(value: int, *, plus: int = 0) -> int:
    """Return twice the value.

    Arguments:
        value: A number.
    """
    return 2 * value + plus


def test_the_first_call_warns_at_the_line_that_calls_and_later_ones_are_silent() -> None:
    with pytest.warns(FutureWarning) as caught:
        assert twice(3, plus=1) == 7
        line = inspect.currentframe().f_lineno - 1
    assert [str(warning.message) for warning in caught] == [
        f"{__name__}.twice is deprecated since puregrid 0.2.0 and will be removed in 0.4.0; use defense.double."
    ]
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert twice(3) == 6


def test_names_warn_apart_and_the_line_is_that_of_the_user() -> None:
    def library(**options: int) -> None:
        for name in options:
            warn_deprecated(f"option {name!r}", since="0.3.0", removal="1.0.0", instead="'t_star'")

    with pytest.warns(FutureWarning, match="use 't_star'") as caught:
        library(depth=50, t=50)
        line = inspect.currentframe().f_lineno - 1
        library(depth=50)
    assert [str(warning.message).split(" is ")[0] for warning in caught] == ["option 'depth'", "option 't'"]
    assert {(warning.filename, warning.lineno) for warning in caught} == {(__file__, line)}


def test_the_docstring_says_until_when_and_keeps_what_it_said() -> None:
    assert twice.__doc__ is not None and twice.__name__ == "twice"
    assert twice.__doc__.startswith("Return twice the value.\n\nArguments:\n    value: A number.")
    assert twice.__doc__.endswith(".. deprecated:: 0.2.0\n    It will be removed in 0.4.0; use defense.double.")


@pytest.mark.parametrize(
    ("since", "removal", "message"),
    [
        ("0.2.0", "0.3.0", r"0\.4\.0 at the earliest, not in 0\.3\.0"),
        ("1.9.2", "1.10.9", r"1\.11\.0 at the earliest"),
        ("1.2.0", "0.9.0", r"1\.4\.0 at the earliest"),
        ("0.2", "0.4.0", "'0.2' is not MAJOR.MINOR.PATCH"),
        ("0.2.0", "0.4.0rc1", "'0.4.0rc1' is not"),
    ],
)
def test_a_removal_that_comes_too_soon_fails_where_the_function_is_defined(
    since: str, removal: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        deprecated(since=since, removal=removal, instead="another")(lambda: None)


def test_a_major_release_may_remove_what_the_one_before_deprecated() -> None:
    assert deprecated(since="0.9.0", removal="1.0.0", instead="another")(lambda: 5).__name__ == "<lambda>"
