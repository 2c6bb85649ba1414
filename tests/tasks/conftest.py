from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from torch import nn

import defense
from defense import ClassifierConfig, DiffPureConfig, DiffusersConfig
from tasks.attacks import PGDConfig
from tasks.compute import Compute, Context
from tasks.corruptions import FROST_FILES, Photographs
from tasks.datasets import DatasetConfig, DigitsConfig
from tasks.stages import AttackStage, EvaluateStage

ASSETS = Path(defense.__file__).parent / "assets"


@pytest.fixture(scope="session")
def digits() -> DatasetConfig:
    return DigitsConfig().resolved(Path())


@pytest.fixture(scope="session")
def cnn() -> ClassifierConfig:
    """The shipped digits network, resolved."""
    return ClassifierConfig(classifier="digits-cnn").resolved(Path())


@pytest.fixture(scope="session")
def network(cnn: ClassifierConfig) -> nn.Module:
    """The same, loaded."""
    return cnn.build()


@pytest.fixture(scope="session")
def denoiser() -> DiffusersConfig:
    """The shipped digits denoiser, resolved."""
    return DiffusersConfig(schedule="linear-1000", path=str(ASSETS / "digits-ddpm")).resolved(Path())


@pytest.fixture(scope="session")
def context() -> Context:
    """One worker's caches, shared by all tests of a process as by all units of a worker."""
    return Context("cpu")


@pytest.fixture(scope="session")
def attack(digits: DatasetConfig, cnn: ClassifierConfig) -> AttackStage:
    """Few steps of PGD on the shipped digits network."""
    pgd = PGDConfig(norm="linf", eps=0.15, steps=3)
    return AttackStage(dataset=digits, classifier=cnn, attack=pgd, seed=0, compute=Compute(batch=4))


@pytest.fixture(scope="session")
def diffpure(denoiser: DiffusersConfig) -> DiffPureConfig:
    return DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=60, steps=2)


@pytest.fixture(scope="session")
def evaluate(attack: AttackStage, diffpure: DiffPureConfig) -> EvaluateStage:
    """Its images, judged behind DiffPure on three draws."""
    return EvaluateStage(
        dataset=attack.dataset,
        source=attack,
        classifier=attack.classifier,
        purifier=diffpure,
        draws=3,
        seed=0,
        compute=Compute(batch=4),
    )


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    """Five pictures of frost, each of one colour, so that its number can be told."""
    folder = tmp_path_factory.mktemp("frost")
    for i, name in enumerate(FROST_FILES):
        Image.new("RGB", (300, 250), (40 * i + 20, 200, 100)).save(folder / name, quality=100)
    return Photographs.read(folder)


@pytest.fixture(scope="session")
def scenes() -> npt.NDArray[np.float32]:
    """Smooth coloured images with edges, 32 x 32, 8-bit."""
    y, x = np.mgrid[:32, :32] / 32
    made = []
    for i in range(6):
        wave = 0.5 + 0.3 * np.sin(2 * np.pi * (x * (1 + i % 3) + y * (1 + i // 3)))
        disk = ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.06 + 0.01 * i) * 0.3
        made.append(np.stack([wave, 0.7 * wave + disk, 0.2 + disk + 0.3 * y]))
    return (np.rint(np.clip(made, 0, 1) * 255) / 255).astype(np.float32)
