"""Every corruption passes the published contract suite, and the suite catches who breaks it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from holding import demands, failed, hold_alone
from PIL import Image

from puregrid.testing import CorruptionContract
from tasks.corruptions import CORRUPTIONS, FROST_FILES, Corrupted
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import DatasetConfig, DigitsConfig, ImageSet

RANDOM = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"),
    *("elastic_transform", "speckle_noise", "spatter"),
}
# Glass and spatter change kind between severities, elastic trades one displacement for another, frost covers what it
# whitens, and saturation falls first and rises then: the official constants are ordered by how models fail.
NOT_MONOTONE = {"glass_blur", "elastic_transform", "frost", "spatter", "saturate"}


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frost")
    for number, name in enumerate(FROST_FILES):
        Image.new("RGB", (300, 250), (40 * number + 20, 200, 100)).save(folder / name, quality=100)
    return folder


class BuiltIn(CorruptionContract):
    def __init__(self, name: str, photographs: Path) -> None:
        self.name, self.photographs = name, photographs
        self.random = name in RANDOM  # type: ignore[misc]
        self.monotone = name not in NOT_MONOTONE  # type: ignore[misc]

    def config(self) -> CorruptionConfig:
        more = {"photographs": str(self.photographs)} if self.name == "frost" else {}
        return CorruptionConfig(corruption=self.name, severity=3, **more).resolved(Path()).of(DigitsConfig())


class OnDigits(BuiltIn):
    """Grey images of 8 x 8 pixels, on which the constants for 32 x 32 need not be ordered."""

    def __init__(self, name: str, photographs: Path) -> None:
        super().__init__(name, photographs)
        self.monotone = False  # type: ignore[misc]

    def images(self) -> npt.NDArray[np.float32]:
        return DigitsConfig().read().images[:5]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_keep_the_contract(name: str, photographs: Path) -> None:
    assert failed(BuiltIn(name, photographs)) == {}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_keep_the_contract_on_digits(name: str, photographs: Path) -> None:
    assert failed(OnDigits(name, photographs)) == {}


MADE = itertools.count()


class ToyConfig(CorruptionConfig):
    """Uniform noise that grows with severity, or something that breaks the contract in one way."""

    how: str = "right"

    def model_post_init(self, context: Any) -> None:
        object.__setattr__(self, "number", next(MADE))

    def label(self) -> str:
        return "" if self.how == "label" else super().label()

    def identity(self) -> dict[str, Any]:
        return super().identity() | ({"how": "right"} if self.how == "identity" else {})

    def canonical(self) -> str:
        return super().canonical() + self.how

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        if self.how == "pickle":
            self.__dict__["severity"] = 1

    def apply(self, dataset: DatasetConfig, data: ImageSet, ids: npt.NDArray[np.int64], seed: int) -> Corrupted:
        if self.how == "global":
            np.random.rand(1)
        images = data.images[ids]
        shape = images.shape[1:]
        keys = [0 if self.how == "one noise" else int(image) for image in ids]
        noise = np.stack([np.random.default_rng((key, seed)).uniform(-1, 1, shape) for key in keys])
        size = 0.02 * (6 - self.severity if self.how == "falling" else self.severity)
        broken: dict[str, Callable[[], npt.NDArray[Any]]] = {
            "batch": lambda: images + size * noise + 0.1 * images.mean(),
            "anew": lambda: images + size * noise + (self.number % 50) / 255,  # type: ignore[attr-defined]
        }
        pixels = np.rint(255 * np.clip(broken.get(self.how, lambda: images + size * noise)(), 0, 1)).astype(np.uint8)
        if self.how == "in place":
            data.images[ids] = 0
        made = Corrupted(pixels, self.corruption, self.severity, "generated")
        if self.how == "another severity":
            return replace(made, severity=1)
        return replace(made, pixels=pixels / np.float32(255)) if self.how == "floats" else made  # type: ignore[arg-type]


class Broken(CorruptionContract):
    random = True

    def __init__(self, how: str) -> None:
        self.how = how

    def config(self) -> CorruptionConfig:
        return ToyConfig(corruption="gaussian_noise", severity=3, how=self.how)


def test_a_corruption_that_does_nothing_wrong_passes() -> None:
    assert failed(Broken("right")) == {}


BROKEN = [
    ("another severity", "result_is_8_bit_images_that_say_what_they_are", "the config says ('gaussian_noise', 2"),
    ("in place", "images_are_left_as_they_were", "changed the clean images in place"),
    ("anew", "same_key_gives_same_bits", "a config that was made anew gave other images"),
    ("batch", "image_is_corrupted_alike_in_any_batch", "alone an image is corrupted otherwise"),
    ("one noise", "other_ids_and_seeds_differ_if_and_only_if_it_is_random", "under another id is corrupted alike"),
    ("global", "global_random_states_have_no_influence_and_stay", "drew from a global random generator"),
    ("falling", "higher_severity_moves_images_farther", "not farther and farther"),
    ("identity", "spec_survives_reading_its_own_identity", "was read back as"),
    ("pickle", "config_can_be_pickled", "on its way through pickle"),
    ("label", "label_says_something", "is no label for a table"),
]


@pytest.mark.parametrize(("how", "demand", "message"), BROKEN)
def test_a_breach_fails_its_demand_alone(how: str, demand: str, message: str) -> None:
    hold_alone(Broken(how), demand, message)


def test_floats_are_refused_though_they_spoil_more() -> None:
    assert "uint8 is wanted" in failed(Broken("floats"))["test_result_is_8_bit_images_that_say_what_they_are"]


def test_every_demand_can_fail() -> None:
    assert {f"test_{demand}" for _, demand, _ in BROKEN} == set(demands(CorruptionContract))
