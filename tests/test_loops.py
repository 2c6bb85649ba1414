"""Cases that share a test are all tried, and the failing ones are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from loops import every

TRIED: list[tuple[int, Path]] = []


@every(("number", "wrong"), [(1, False), (2, True), (3, False), (4, True)])
def cases(tmp_path: Path, number: int, wrong: bool) -> None:
    TRIED.append((number, tmp_path))
    assert not wrong
    if number == 3:
        with pytest.raises(ValueError):
            int("x")


@every("number", [3, 4])
def nothing_is_raised(number: int) -> None:
    with pytest.raises(ValueError):
        int("4" if number == 4 else "x")


def test_all_are_tried_and_those_that_fail_are_named(tmp_path: Path) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        cases(tmp_path=tmp_path)
    assert "2 of 4 cases failed" in str(caught.value)
    notes = [error.__notes__ for error in caught.value.exceptions]
    assert notes == [["case 1: number = 2, wrong = True"], ["case 3: number = 4, wrong = True"]]
    assert [(number + 1, tmp_path / str(number)) for number in range(4)] == TRIED


def test_one_that_fails_is_raised_itself() -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE") as caught:
        nothing_is_raised()
    assert caught.value.__notes__ == ["case 1: number = 4"]


@every("number", [5])
def skipped(number: int) -> None:
    pytest.skip("there is no 5")


def test_no_case_can_hide_behind_one_that_is_skipped() -> None:
    with pytest.raises(AssertionError, match="parametrize it"):
        skipped()


@every("number", [1, 2])
def test_pytest_gives_fixtures_and_no_cases(tmp_path: Path, number: int) -> None:
    assert tmp_path.name == str(number - 1) and tmp_path.is_dir()
