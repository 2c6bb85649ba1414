"""What all suites share: real data and weights where the environment names them, one thread, no deadlines, order."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import typer.testing
from hypothesis import settings
from seconds import (
    pytest_addoption,
    pytest_runtest_setup,
    pytest_runtest_teardown,
    pytest_terminal_summary,
)
from shares import in_shares

from tasks.datasets import Cifar10Config, DigitsConfig, ImageSet

__all__ = ["pytest_addoption", "pytest_runtest_setup", "pytest_runtest_teardown", "pytest_terminal_summary"]

# The same examples in every run of a commit: a verdict on it must not depend on luck.
# A fourth of hypothesis' hundred, which are the same in each run; all at night (`--hypothesis-profile nightly`).
settings.register_profile("puregrid", deadline=None, derandomize=True, max_examples=25)
settings.register_profile("nightly", deadline=None, derandomize=True)
settings.load_profile("puregrid")


# Readline, which pytest imports, tells the processes that it starts a terminal of 80 columns; there is none.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# Modules and tests are a million objects that live to the end; each full collection would look at all of them, for
# 0.4 processor seconds.
gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_itemcollected(item: pytest.Item) -> None:
    """What is nightly is slow as well."""
    if item.get_closest_marker("nightly"):
        item.add_marker("slow")


@pytest.hookimpl(trylast=True)  # after what was not asked for is gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, and those that share a Ray cluster in one process, which starts it once.

    Three kinds take long and wait more than they compute: tests on two slots of a shared Ray, tests that bring nodes
    of their own to it, and what else is slow, with its file, whose fixtures it shares. Each kind is the beginning of
    the share of one process; who is done first takes over what another has not begun (``--dist worksteal``).
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = in_shares(items, [_kind(item) for item in items], processes)


@cache
def _has_slow_tests(path: Path) -> bool:
    return "pytest.mark.slow" in path.read_text(encoding="utf-8")


def _kind(item: pytest.Item) -> int | None:
    fixtures = getattr(item, "fixturenames", ())
    if "two_slots" in fixtures:
        return 0
    if "no_slots" in fixtures:
        return 1
    return 2 if _has_slow_tests(item.path) else None


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def commands_made_once() -> Iterator[None]:
    """Typer reads the signatures of all commands each time that a test calls one, for 20 ms; they do not change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.testing._get_command))
        yield


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names {what}")
    return Path(value)


@pytest.fixture(scope="session")
def data_root() -> Path:
    return _folder("PUREGRID_DATA", "the folder that holds cifar-10-batches-py")


@pytest.fixture(scope="session")
def weights_root() -> Path:
    return _folder("PUREGRID_WEIGHTS", "the folder of the real checkpoints")


@pytest.fixture(scope="session")
def cifar10_test(data_root: Path) -> ImageSet:
    return Cifar10Config(root=str(data_root)).read()


@pytest.fixture(scope="session")
def digits_test() -> ImageSet:
    return DigitsConfig().read()
