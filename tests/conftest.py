"""Fixtures of all suites: real data and weights where the environment names them, one thread, no deadlines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tasks.datasets import Cifar10Config, DigitsConfig, ImageSet

# The same examples in every run of a commit: a verdict on it must not depend on luck.
settings.register_profile("puregrid", deadline=None, derandomize=True)
settings.load_profile("puregrid")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests may run side by side (``-n 2 --dist loadgroup``).

    Those that start Ray clusters and kill processes stay in one process, one after the other, and begin first, since
    they wait more than they compute. The others go module by module, so that a module's fixtures are made once.
    """

    def engine(item: pytest.Item) -> bool:
        return item.get_closest_marker("slow") is not None and item.path.parent.name == "workflows"

    items.sort(key=engine, reverse=True)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("engine" if engine(item) else item.path.stem))


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
