"""A purifier of another distribution: found by its entry point, run by real workers, held to the contract."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = '''
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from defense import IterativePurifier, Models, Omega, PurifierConfig


class Wobble(IterativePurifier):
    """Pulls every pixel a little towards the image's mean, with noise, several times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    @property
    def length(self) -> int:
        return self.times

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        return x

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        mean = z.mean((1, 2, 3), keepdim=True)
        return 0.95 * z + 0.05 * mean + 0.02 * omega.normal("wobble", i, z)

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        return z.clamp(0, 1)


class WobbleConfig(PurifierConfig):
    """Mean reversion, from a package of somebody else's."""

    purifier: Literal["wobble"] = "wobble"
    times: int = Field(default=3, ge=1)

    def label(self) -> str:
        return f"wobble x{self.times}"

    def build(self, models: Models | None = None) -> Wobble:
        return Wobble(self.times).eval()
'''

CONTRACT = """
from puregrid.testing import PurifierContract
from wobble import WobbleConfig


class TestWobble(PurifierContract):
    def config(self):
        return WobbleConfig()
"""

SWEEP = """
sweep: third-party
datasets:
  - dataset: digits
    images: {first: 30}
classifiers: [digits-cnn]
defences:
  - none
  - {purifier: wobble, times: [2, 4], draws: 2}
attacks: [none, {attack: pgd, norm: linf, eps: 0.1, steps: 3}]
probe: false  # the contract suite probes its part
chunk: 10
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The package on the path as if it were installed: its module and its metadata."""
    (tmp_path / "wobble.py").write_text(PACKAGE)
    metadata = tmp_path / "wobble-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: wobble\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[puregrid.purifiers]\nwobble = wobble:WobbleConfig\n")
    (tmp_path / "test_wobble.py").write_text(CONTRACT)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def puregrid(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workflows.cli", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_it_is_listed_and_runs_in_a_sweep(environment: dict[str, str], tmp_path: Path) -> None:
    assert "somebody else's" in puregrid(environment, "list", "purifiers").stdout
    store = tmp_path / "store"
    run = puregrid(environment, "run", tmp_path / "sweep.yaml", "--store", store, "--workers", "1", "--mlflow", "off")
    assert run.returncode == 0, run.stderr
    tables = puregrid(environment, "tables", tmp_path / "sweep.yaml", "--store", store, "--format", "json")
    rows = json.loads(tables.stdout)["robustness"]
    found = {(row["defence"], row["attack"]): row for row in rows}
    assert {name for name, _ in found} == {"none", "wobble x2", "wobble x4"}
    assert found["wobble x2", "clean"]["images"] == 30 and found["wobble x2", "clean"]["avg"] > 0.8
    without = {k: v for k, v in environment.items() if k != "PYTHONPATH"}
    refused = puregrid(without, "plan", tmp_path / "sweep.yaml")
    assert refused.returncode == 2 and "unknown purifier 'wobble'" in refused.stderr


@pytest.mark.slow
def test_it_passes_the_contract_suite_and_a_broken_one_does_not(environment: dict[str, str], tmp_path: Path) -> None:
    def suite() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_wobble.py")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)

    assert suite().returncode == 0, suite().stdout
    (tmp_path / "wobble.py").write_text(PACKAGE.replace('omega.normal("wobble", i, z)', "torch.randn_like(z)"))
    broken = suite()
    assert broken.returncode == 1 and "failed" in broken.stdout
