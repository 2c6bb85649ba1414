"""The public names of the front door: each is there, comes from where it says, and is loaded when it is asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import defense
import puregrid
from defense.errors import InvalidInput

ROOT = Path(puregrid.__file__).parents[1]
HEAVY = {"torch", "ray", "pandas", "mlflow", "numpy", "pydantic", "pyarrow", "scipy"}


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh Python has after ``code``."""
    code = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    return set(done.stdout.split())


def test_importing_the_front_door_loads_nothing_heavy() -> None:
    assert not HEAVY & loaded("import puregrid; puregrid.__version__; dir(puregrid)")


@pytest.mark.slow
def test_a_sweep_is_loaded_without_the_cluster() -> None:
    modules = loaded("import puregrid; puregrid.load_sweep('quickstart')")
    assert "torch" in modules
    assert not {"ray", "mlflow"} & modules


@pytest.mark.slow
def test_a_defended_classifier_needs_no_pandas() -> None:
    modules = loaded("import puregrid; puregrid.Defended, puregrid.DiffPureConfig, puregrid.PGDConfig")
    assert "torch" in modules
    assert not {"ray", "pandas", "mlflow", "pyarrow"} & modules


@pytest.mark.parametrize("package", [defense, puregrid], ids=["defense", "puregrid"])
def test_every_public_name_is_there_and_documented(package: object) -> None:
    module = importlib.import_module(package.__name__)  # type: ignore[attr-defined]
    assert module.__all__ == sorted(set(module.__all__), key=module.__all__.index)
    for name in module.__all__:
        value = getattr(module, name)
        assert name in dir(module)
        if isinstance(value, type) or type(value).__name__ == "function":
            assert (value.__doc__ or "").strip(), name


def test_names_are_the_objects_of_the_packages_behind() -> None:
    from tasks.attacks import ATTACKS
    from workflows.grid.load import Sweep

    assert puregrid.ATTACKS is ATTACKS
    assert puregrid.Sweep is Sweep
    assert puregrid.PURIFIERS is defense.PURIFIERS
    assert puregrid.InvalidInput is InvalidInput


def test_a_function_that_is_called_like_its_module_stays_the_function() -> None:
    importlib.import_module("defense.aggregate")
    assert callable(defense.aggregate)
    assert defense.samplers is importlib.import_module("defense.samplers")


@pytest.mark.parametrize("package", [defense, puregrid], ids=["defense", "puregrid"])
def test_a_name_that_is_not_there_is_an_attribute_error(package: object) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Purifyer'"):
        package.Purifyer  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(package, "__wrapped__")


@pytest.mark.slow
def test_the_contract_suites_are_a_name_of_the_front_door() -> None:
    assert {"torch"} & loaded("import puregrid; puregrid.testing.PurifierContract")
    assert not HEAVY & loaded("import puregrid; puregrid.testing")
    assert puregrid.testing is importlib.import_module("puregrid.testing")


def test_every_registry_and_base_class_of_an_extension_is_public() -> None:
    for kind in ("ATTACKS", "CLASSIFIERS", "DATASETS", "DENOISERS", "PURIFIERS"):
        registry = getattr(puregrid, kind)
        assert registry.names()
        base = registry._subclass_of or registry._instance_of
        assert base is None or base.__name__ in puregrid.__all__, (kind, base)
