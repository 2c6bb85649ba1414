"""What a run says of its processor seconds."""

from __future__ import annotations

import re
import time
from pathlib import Path

from loops import tiers
from seconds import lines, spent, tier_of


def test_the_sum_of_each_tier_and_the_fast_ones_above_a_limit() -> None:
    costs = {"a": ("fast", 0.2), "b": ("slow", 7.4), "c": ("fast", 0.1), "d": ("fast", 0.9), "e": ("nightly", 60.0)}
    assert lines(costs, None) == ["processor seconds: 3 fast 1, 1 nightly 60, 1 slow 7"]
    assert lines(costs, 0.15)[1:] == ["    0.90 d", "    0.20 a"]
    assert lines({}, 0.15) == []


def test_seconds_are_of_the_processor() -> None:
    before = spent()
    time.sleep(0.3)
    slept = spent() - before
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert slept < 0.2 < spent() - before - slept


def test_a_case_is_of_the_tier_that_lists_it() -> None:
    plain, *marked = tiers("abc", fast="a", daily="b")
    assert plain == "a" and [case.values for case in marked] == [("b",), ("c",)]
    assert [[mark.name for mark in case.marks] for case in marked] == [["slow"], ["nightly"]]
    assert [tier_of(dict.fromkeys(names)) for names in ((), ("slow",), ("slow", "nightly"))] == [
        *("fast", "slow", "nightly")
    ]


def test_every_file_with_nightly_tests_is_on_the_list() -> None:
    here = Path(__file__)
    listed = set(re.findall(r"`(test_\w+\.py)`", (here.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    texts = {path: path.read_text(encoding="utf-8") for path in here.parent.rglob("test_*.py") if path != here}
    found = {path.name for path, text in texts.items() if re.search(r"mark\.nightly|\btiers\(", text)}
    assert found and found <= listed, sorted(found - listed)
    assert listed <= {path.name for path in texts}
