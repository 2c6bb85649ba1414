"""What tests cost: processor seconds, of this process and of all that it has waited for, which a busy machine hardly
stretches. After each run the sum of each tier is shown; ``--seconds 0.15`` lists the fast tests that took more.

Workers of a shared Ray are nobody's: they are in no sum.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

import pytest

_NAME = "processor seconds"


def spent() -> float:
    """Processor seconds so far."""
    now = os.times()
    return now.user + now.system + now.children_user + now.children_system


def slowness() -> float:
    """How much slower this processor is than the one on which bounds of seconds were measured."""
    began = time.process_time()
    sum(map(hash, map(str, range(1_000_000))))
    return max(1.0, (time.process_time() - began) / 0.14)


def tier_of(marks: Mapping[str, object]) -> str:
    """Of a test with such marks."""
    return next((name for name in ("nightly", "slow") if name in marks), "fast")


def lines(costs: Mapping[str, tuple[str, float]], limit: float | None) -> list[str]:
    """The sum of each tier, and the fast tests above the limit.

    Arguments:
        costs: By name of a test its tier and its seconds.
        limit: None lists no tests.
    """
    sums: dict[str, list[float]] = defaultdict(list)
    for tier, seconds in costs.values():
        sums[tier].append(seconds)
    shown = ", ".join(f"{len(sums[tier])} {tier} {sum(sums[tier]):.0f}" for tier in sorted(sums))
    above = {name: seconds for name, (tier, seconds) in costs.items() if tier == "fast" and seconds > (limit or 0)}
    listed = sorted(above, key=lambda name: -above[name]) if limit is not None else []
    return [f"{_NAME}: {shown}"] * bool(costs) + [f"{above[name]:8.2f} {name}" for name in listed]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=None, help="list fast tests that took more processor seconds")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[_BEGUN] = spent()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield)
    finally:  # user_properties travel with the report, also to another process
        tier = tier_of({mark.name: mark for mark in item.iter_markers()})
        item.user_properties.append((_NAME, (tier, spent() - item.stash[_BEGUN])))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    reports = (report for kind in ("", "failed", "error") for report in terminalreporter.stats.get(kind, ()))
    found = (
        (report.nodeid, tuple(value))
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == _NAME
    )
    for line in lines(dict(found), config.getoption("seconds")):
        terminalreporter.write_line(line)


_BEGUN = pytest.StashKey[float]()
