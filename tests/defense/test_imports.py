from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import defense

ROOT = Path(defense.__file__).parent.parent


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


HEAVY = {
    "ray",
    "mlflow",
    "pandas",
    "torchvision",
    "torchmetrics",
    "lpips",
    "diffusers",
    "pytest",
    "tasks",
    "workflows",
}


def loaded(code: str) -> set[str]:
    """Top-level modules of a fresh Python after ``code``."""
    return set(run(f"{code}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})").split())


def test_import_defense_loads_nothing_not_even_torch() -> None:
    modules = loaded("import defense; dir(defense)")
    assert not {"torch", "numpy", "pydantic", *HEAVY} & modules


@pytest.mark.slow
def test_a_notebook_has_every_module_and_name_and_neither_the_cluster_nor_the_heavy_libraries() -> None:
    names, modules = run(
        "import sys, defense; print(defense.samplers.__name__, defense.purifiers.gdmp.__name__, defense.aggregate)\n"
        "from defense import *; print(*{name.partition('.')[0] for name in sys.modules})"
    ).split("\n")
    assert names.startswith("defense.samplers defense.purifiers.gdmp <function aggregate at ")
    assert {"torch", "pydantic"} <= set(modules.split())
    assert not HEAVY & set(modules.split())


@pytest.mark.slow
def test_torchvision_imports_after_its_operators_are_declared() -> None:
    code = """
from defense.torchvision_cpu import allow_torchvision_import
allow_torchvision_import()
allow_torchvision_import()
import torch, torchvision
from torchvision.datasets import CIFAR10
from torchvision.transforms.functional import hflip
print(CIFAR10.test_list[0][1], hflip(torch.tensor([[[1, 2]]])).tolist())
"""
    assert run(code) == "40351d587109b95175f43aff81a1287e [[[2, 1]]]"
