"""The shipped and the closed-form denoisers pass the published contract suite, which catches who breaks it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from holding import demands, failed, hold, hold_alone
from torch import Tensor, nn

import defense
from defense import DiffusersConfig, get_schedule
from defense.denoisers import Denoiser, DenoiserConfig, OracleConfig
from puregrid.testing import DenoiserContract
from tasks.datasets import DigitsConfig

ASSETS = Path(defense.__file__).parent / "assets"


def digits() -> Tensor:
    return 2 * torch.from_numpy(DigitsConfig().read().images[:16]) - 1


def mixture() -> Tensor:
    """Pixels of the mixture below."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(4, 1, 8, 8, generator=generator) < 0.3
    noise = torch.randn(4, 1, 8, 8, generator=generator)
    return torch.where(first, -0.6 + 0.1 * noise, 0.5 + 0.15 * noise)


class Shipped(DenoiserContract):
    def config(self) -> DenoiserConfig:
        return DiffusersConfig(schedule="linear-1000", path=str(ASSETS / "digits-ddpm")).resolved(Path())

    def images(self) -> Tensor:
        return digits()


class Oracle(DenoiserContract):
    def __init__(self, schedule: str) -> None:
        self.schedule = schedule

    def config(self) -> DenoiserConfig:
        law: dict[str, Any] = {"weights": (0.3, 0.7), "means": (-0.6, 0.5), "stds": (0.1, 0.15)}
        return OracleConfig(schedule=self.schedule, **law)

    def images(self) -> Tensor:
        return mixture()


@pytest.mark.slow
def test_the_shipped_denoiser_keeps_the_contract() -> None:
    hold(Shipped())


@pytest.mark.parametrize("schedule", ["linear-1000", "vp-continuous", "cosine-4000", "edm"])
def test_closed_forms_keep_the_contract(schedule: str) -> None:
    assert failed(Oracle(schedule)) == {}


BUILT = itertools.count()


class Toy(Denoiser):
    """The optimal denoiser of N(0, 1/4) pixels, or one that breaks the contract in one way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.number = how, next(BUILT)
        self.schedule = get_schedule("vp-continuous" if how == "another schedule" else "linear-1000")
        self.image_shape = (3, 8, 8) if how == "another shape" else None
        self.scale = nn.Parameter(torch.ones(()), requires_grad=how == "trainable")

    def forward(self, z: Tensor, t: int) -> Tensor:
        if self.how == "global":
            torch.rand(1)
        abar = float(get_schedule("linear-1000").abar[max(700, t) if self.how == "one level" else t])
        keep, add = math.sqrt(abar), math.sqrt(1 - abar)
        image = self.scale * keep * 0.25 / (0.25 * abar + 1 - abar) * z
        eps = (z - keep * image) / add
        broken: dict[str, Callable[[], Tensor]] = {
            "nan at the end": lambda: eps * (torch.nan if t == 1 else 1),
            "anew": lambda: eps * (1 + 1e-6 * (1 + self.number % 7)),
            "batch": lambda: eps + 0.1 * (z.mean(0, keepdim=True) - z.mean((0, 2, 3), keepdim=True)),
            "recorded": lambda: eps + (0 if torch.is_grad_enabled() else 1e-3),
            "masked": lambda: eps.detach() + 0.5 * (eps - eps.detach()),
            "velocity": lambda: keep * eps - add * image,
            "velocity in the middle": lambda: keep * eps - add * image if 0.05 < abar < 0.6 else eps,
            "image": lambda: image,
            "sign": lambda: -eps,
            "late": lambda: eps * 3 if abar > 0.95 else eps,
            "level": lambda: 0.8 * z,
        }
        return broken.get(self.how, lambda: eps)()

    def with_variance(self, z: Tensor, t: int) -> tuple[Tensor, Tensor | None]:
        eps = self(z, t)
        return eps, torch.zeros_like(eps) if self.how == "variance" else None


class ToyConfig(DenoiserConfig):
    format: Literal["toy"] = "toy"
    schedule: str = "linear-1000"
    how: str = "right"
    again: int = 0

    def identity(self) -> dict[str, Any]:
        return super().identity() | ({"how": "right"} if self.how == "identity" else {})

    def canonical(self) -> str:
        return super().canonical() + self.how

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        if self.how == "pickle":
            self.__dict__["schedule"] = "edm"

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        return (3, 8, 8) if self.how == "another shape" else None

    def resolved(self, base: Path) -> DenoiserConfig:
        return self.model_copy(update={"again": self.again + (self.how == "resolved")})

    def build(self) -> Denoiser:
        return Toy(self.how).train(self.how == "training")


class Broken(DenoiserContract):
    def __init__(self, how: str) -> None:
        self.how = how

    def config(self) -> DenoiserConfig:
        return ToyConfig(how=self.how)

    def images(self) -> Tensor:
        return 0.5 * torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_denoiser_that_does_nothing_wrong_passes() -> None:
    assert failed(Broken("right")) == {}


BROKEN = [
    (
        "nan at the end",
        "prediction_is_finite_and_of_the_shape_and_dtype_of_the_images",
        "at t = 1 the prediction holds",
    ),
    ("anew", "same_images_give_same_bits", "a denoiser built anew gave another prediction"),
    ("batch", "image_is_denoised_alike_in_any_batch", "the prediction for an image differs by"),
    ("global", "global_random_states_have_no_influence_and_stay", "drew from a global random generator"),
    ("recorded", "value_does_not_depend_on_whether_gradients_are_recorded", "the prediction differs by 0.001"),
    ("masked", "gradient_is_that_of_central_differences", "by central differences"),
    ("trainable", "network_is_frozen_and_in_evaluation_mode", "parameters want gradients: scale"),
    ("training", "network_is_frozen_and_in_evaluation_mode", "in training mode: the denoiser"),
    ("another schedule", "schedule_is_the_declared_one_and_falls_from_1", "on schedule 'vp-continuous'"),
    ("another shape", "image_shape_is_the_declared_one", "the suite has (1, 8, 8)"),
    ("level", "level_is_told_to_the_network", "the prediction is the same at t ="),
    ("velocity in the middle", "prediction_is_the_noise_and_not_the_image_or_the_velocity", "than to the noise"),
    ("late", "error_is_less_than_that_of_leaving_the_noise_in", "at t = 41 the mean squared error"),
    ("variance", "variance_output_is_there_if_and_only_if_the_config_says_so", "with_variance() returns one"),
    ("resolved", "id_stays_when_resolved_again", "resolved twice has another id"),
    ("identity", "spec_survives_reading_its_own_identity", "was read back as"),
    ("pickle", "config_can_be_pickled", "on its way through pickle"),
]


@pytest.mark.parametrize(("how", "demand", "message"), BROKEN)
def test_a_breach_fails_its_demand_alone(how: str, demand: str, message: str) -> None:
    hold_alone(Broken(how), demand, message)


UNCONVERTED = [("velocity", "than to the noise"), ("image", "nearer to the image"), ("sign", "nearer to minus")]


@pytest.mark.parametrize(("how", "message"), UNCONVERTED)
def test_what_is_not_converted_to_noise_is_named(how: str, message: str) -> None:
    """Its error is large too, so that two demands fail."""
    found = failed(Broken(how))
    assert message in found["test_prediction_is_the_noise_and_not_the_image_or_the_velocity"]
    assert set(found) <= {
        "test_prediction_is_the_noise_and_not_the_image_or_the_velocity",
        "test_error_is_less_than_that_of_leaving_the_noise_in",
    }


def test_every_demand_can_fail() -> None:
    assert {f"test_{demand}" for _, demand, _ in BROKEN} == set(demands(DenoiserContract))
