"""Contract suites: what the rest of puregrid relies on in a part, as tests for anybody's test suite.

Subclass the suite of your kind of part in a file that pytest collects, and hand it a config::

    from puregrid.testing import AttackContract
    from mypackage import MyAttackConfig

    class TestMyAttack(AttackContract):
        def config(self):
            return MyAttackConfig(norm="linf", eps=0.1, steps=3)

Every method whose name starts with ``test_`` is one demand, and its message says what is wrong. Settings with few
steps are enough and quick. The suites run on a CPU and do not import pytest: the methods are plain asserts, so that
other test runners can call them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puregrid.testing.attack import AttackContract, SmoothClassifier
    from puregrid.testing.classifier import ClassifierContract
    from puregrid.testing.corruption import CorruptionContract
    from puregrid.testing.dataset import DatasetContract
    from puregrid.testing.denoiser import DenoiserContract
    from puregrid.testing.purifier import PurifierContract
    from puregrid.testing.store import StoreContract

__all__ = [
    "AttackContract",
    "ClassifierContract",
    "CorruptionContract",
    "DatasetContract",
    "DenoiserContract",
    "PurifierContract",
    "SmoothClassifier",
    "StoreContract",
]

_MODULES = {
    "AttackContract": "attack",
    "ClassifierContract": "classifier",
    "CorruptionContract": "corruption",
    "DatasetContract": "dataset",
    "DenoiserContract": "denoiser",
    "PurifierContract": "purifier",
    "SmoothClassifier": "attack",
    "StoreContract": "store",
}


def __getattr__(name: str) -> Any:
    """Load a suite on first use: the purifier's needs torch alone, the store's Arrow too."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
