"""What all suites share: real data and weights where the environment names them, one thread, no deadlines, order."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tasks.datasets import Cifar10Config, DigitsConfig, ImageSet

# The same examples in every run of a commit: a verdict on it must not depend on luck.
settings.register_profile("puregrid", deadline=None, derandomize=True)
settings.load_profile("puregrid")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a Ray cluster one after the other, so that one process starts it, and the engine's others.

    They take longest, and wait more than they compute: what is left at the end (``--dist worksteal``) is short.
    """

    @cache
    def engine(path: Path) -> bool:
        return path.parent.name == "workflows" and "pytest.mark.slow" in path.read_text()

    def place(item: pytest.Item) -> int:
        fixtures = getattr(item, "fixturenames", ())
        return 0 if "two_slots" in fixtures else 1 if "no_slots" in fixtures else 2 if engine(item.path) else 3

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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
