"""What all suites share: real data and weights where the environment names them, one thread, no deadlines, order."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tasks.datasets import Cifar10Config, DigitsConfig, ImageSet

_TESTS = Path(__file__).parent

# The same examples in every run of a commit: a verdict on it must not depend on luck.
settings.register_profile("puregrid", deadline=None, derandomize=True)
settings.load_profile("puregrid")


@cache
def _engine(file: str) -> bool:
    """Whether tests of a file start Ray clusters and kill processes."""
    path = _TESTS.parent / file
    return path.parent.name == "workflows" and "pytest.mark.slow" in path.read_text()


class _EngineApart(LoadScopeScheduling):  # type: ignore[misc]  # without annotations
    """File by file; the engine's one after the other in one process, where they cannot end each other's Ray."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "engine" if _engine(file) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _EngineApart | None:
    """How tests are shared out with ``-n 2 --dist loadfile``."""
    return _EngineApart(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The engine's tests begin first, since they wait more than they compute."""
    items.sort(key=lambda item: _engine(str(item.path.relative_to(_TESTS.parent))), reverse=True)


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
