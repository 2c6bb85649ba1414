"""Every built-in purifier passes the published contract suite, and the suite catches who breaks it."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pytest
import torch
from holding import demands, failed, hold, hold_alone
from loops import tiers
from torch import Tensor, nn

import defense
from defense import (
    PURIFIERS,
    ClassifierConfig,
    DiffusersConfig,
    IterativePurifier,
    Models,
    Omega,
    Purifier,
    PurifierConfig,
)
from defense.denoisers import Denoiser, DenoiserConfig, NetworkDenoiser
from defense.purifiers.ssni import measure_reference
from puregrid.testing import PurifierContract

ASSETS = Path(defense.__file__).parent / "assets"


@lru_cache
def digits_ddpm() -> DiffusersConfig:
    return DiffusersConfig(schedule="linear-1000", path=str(ASSETS / "digits-ddpm")).resolved(Path())


class Convolutions(nn.Module):
    """Two small ones: what a purifier makes of a network does not depend on its size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        levels = labels.to(z).view(-1, 1, 1, 1) / 1000
        return 0.8 * z + self.second(torch.tanh(self.first(z) + levels))


class ConvolutionsConfig(DenoiserConfig):
    format: Literal["convolutions"] = "convolutions"
    schedule: str = "linear-1000"

    def resolved(self, base: Path) -> Self:
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 1, 8, 8

    def build(self) -> Denoiser:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return NetworkDenoiser(Convolutions().requires_grad_(False), self.schedule, self.image_shape).eval()


@lru_cache
def classifier(name: str) -> ClassifierConfig:
    return ClassifierConfig(classifier=name).resolved(Path())


@lru_cache
def load(config: Any) -> nn.Module:
    return config.build()


def ssni() -> dict[str, Any]:
    """SSNI with the score statistic of uniform noise, so that images in [0, 1] get levels between the ends."""
    denoiser = ConvolutionsConfig()
    reference = measure_reference(
        denoiser, torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(5)), levels=3
    )
    return {
        "purifier": "ssni",
        "schedule": "linear-1000",
        "denoiser": denoiser,
        "t_star": 40,
        "reference": reference,
    }


@lru_cache
def configs() -> dict[str, dict[str, Any]]:
    """Fields of a quick config of every registered purifier, and of its variants."""
    denoiser = ConvolutionsConfig()
    at = {"schedule": "linear-1000", "denoiser": denoiser}
    diffpure: dict[str, Any] = {"purifier": "diffpure", **at, "t_star": 50, "steps": 3}
    gdmp: dict[str, Any] = {"purifier": "gdmp", **at, "t_star": 20, "steps": 2, "rounds": 2}
    transfer: dict[str, Any] = {"purifier": "distribution-transfer", "denoiser": denoiser, "steps": 2}
    robust: dict[str, Any] = {"purifier": "robust-reverse", **at, "t_star": 50, "steps": 2, "auxiliary": "digits-cnn"}
    noise: dict[str, Any] = {"purifier": "gaussian-noise", "sigma": 0.1}
    return {
        "none": {"purifier": "none"},
        **{f"diffpure {form}": {**diffpure, "form": form} for form in ("ddpm", "ddim", "sde", "ode")},
        "diffpure clipped": {**diffpure, "clip_denoised": True},
        "diffpure sde on its schedule": {**diffpure, "form": "sde", "time": "schedule"},
        "diffpure digits-ddpm": {**diffpure, "denoiser": digits_ddpm()},
        "diffpure ldsde": {**diffpure, "form": "ldsde", "t_star": 10},
        "gdmp mse": gdmp,
        "gdmp ssim": {**gdmp, "similarity": "ssim", "scale": 300.0},
        "gdmp sde": {**gdmp, "form": "sde", "scale_rule": "constant", "scale": 900.0},
        "guided-from-noise": {"purifier": "guided-from-noise", **at, "t_star": 1000, "steps": 3, "scale": 0.3},
        **{
            f"distribution-transfer {form} {sees}": {**transfer, "guidance": form, "classifier_sees": sees}
            for form, sees in (
                ("soft-label", "denoised"),
                ("confidence", "denoised"),
                ("none", "noisy"),
            )
        },
        # On the network that its defaults are for: over two strong steps along jumps a gradient predicts nothing.
        "distribution-transfer logit noisy": {
            **transfer,
            "denoiser": digits_ddpm(),
            "guidance": "logit",
            "classifier_sees": "noisy",
        },
        "robust-reverse": robust,
        "robust-reverse entropy": {
            **robust,
            "class_label": "entropy",
            "auxiliary_sees": "denoised",
            "target": "input",
        },
        **{f"diffpure {form}": {**diffpure, "form": form} for form in ("heun", "dpm++")},
        "ssni linear": {**ssni(), "steps": 3},
        "ssni sigmoid": {**ssni(), "weighting": "sigmoid", "tau": 5.0, "form": "ddim", "steps": 2},
        "diffcap": {"purifier": "diffcap", **at, "t_star": 6, "steps": 2, "threshold": 0.9},
        "consistency": {"purifier": "consistency", "denoiser": denoiser, "sigma_eq": 0.25},
        "diff-smooth": {"purifier": "diff-smooth", "denoiser": denoiser, "sigma_eq": 0.25},
        "flowpure": {
            "purifier": "flowpure",
            "denoiser": ConvolutionsConfig(schedule="flowpure"),
            "t_start": 0.5,
            "steps": 3,
        },
        "flowpure of an attack": {
            **{"purifier": "flowpure", "denoiser": ConvolutionsConfig(schedule="flowpure"), "t_start": 0.0},
            **{"steps": 3, "forward": "none"},
        },
        "one-shot": {"purifier": "one-shot", "denoiser": denoiser, "sigma_eq": 0.25},
        "densepure": {"purifier": "densepure", "denoiser": denoiser, "sigma_eq": 0.25, "steps": 3},
        "gradual-noise": {"purifier": "gradual-noise", **at, "depths": [5, 20], "steps": 2},
        "chain": {"purifier": "chain", "stages": [noise, {"purifier": "median"}, diffpure]},
        "gaussian-noise": noise,
        "jpeg": {"purifier": "jpeg", "quality": 60},
        "bit-depth": {"purifier": "bit-depth", "bits": 3},
        "median": {"purifier": "median", "size": 3},
        **{
            f"score-opt {form} {how}": {
                **{"purifier": "score-opt", "denoiser": denoiser, "form": form, "iterations": 3, "lr": lr},
                **{"sigma_eq": 0.2, "optimizer": how},
            }
            for form in "ON"
            for how, lr in (("adam", 0.05), ("sgd", 0.05))
        },
        "likelihood-maximization": {"purifier": "likelihood-maximization", "denoiser": denoiser, "iterations": 2},
        "aaopt": {"purifier": "aaopt", "denoiser": denoiser, "iterations": 3, "lr": 0.05},
        "aaopt with perturbations": {
            **{"purifier": "aaopt", "denoiser": denoiser, "iterations": 3, "optimizer": "sgd"},
            **{"perturbation": {"format": "oracle", "schedule": "linear-1000", "stds": [0.1]}},
        },
        **{
            f"freqpure {phase} {radius}": {
                **{"purifier": "freqpure", "denoiser": denoiser, "t_star": 500, "schedule": "linear-1000"},
                **{"steps": 3, "amplitude_radius": 2.0, "phase_radius": radius, "phase": phase},
            }
            for phase, radius in (("replace", 2.0), ("replace", 3.0), ("clip", 2.0))
        },
        "diff-ap": {"purifier": "diff-ap", "denoiser": denoiser, "steps": 3, "b_ref": 500},
        "diff-ap exact": {"purifier": "diff-ap", "denoiser": denoiser, "steps": 3, "b_ref": 500, "renoise": "exact"},
        "mimic-diffusion": {
            **{"purifier": "mimic-diffusion", "denoiser": denoiser, "steps": 10, "b_ref": 500},
            "clip_denoised": True,
        },
        "osgd": {"purifier": "osgd", "denoiser": denoiser, "scale": 1000.0},
        "coup": {"purifier": "coup", **at, "t_star": 50, "steps": 3},
        "coup noised": {"purifier": "coup", **at, "t_star": 50, "steps": 3, "forward": "noise", "form": "ddpm"},
        "diffpure without forward noise": {**diffpure, "forward": "none"},
        "heterogeneous": {"purifier": "heterogeneous", **at, "t_star": 100, "steps": 4, "threshold": 0.5},
        "heterogeneous top": {"purifier": "heterogeneous", **at, "t_star": 100, "steps": 4, "top": 0.15},
        "contrastive-stateless": {"purifier": "contrastive-stateless", **at, "t_star": 50, "steps": 2},
        "ebm": {"purifier": "ebm", "energy": "digits-energy", "steps": 4, "step_size": 0.05},
    }


NAMES = list(configs())
ON_THE_SHIPPED_NETWORK = ("diffpure digits-ddpm", "distribution-transfer logit noisy")
DEMANDS = demands(PurifierContract)


class BuiltIn(PurifierContract):
    def __init__(self, fields: dict[str, Any]) -> None:
        self._config = PURIFIERS.get(fields["purifier"]).model_validate(fields).resolved(Path())
        if fields["purifier"] == "distribution-transfer":
            self.agreement = 0.0  # two strong steps along the gradient of a ReLU network, which jumps: no fault
        if fields["purifier"] == "mimic-diffusion":
            self.agreement = 0.0  # the derivative of a sign is nothing; what stands for it agrees to about a half

    def config(self) -> PurifierConfig:
        return self._config

    def models(self) -> Models:
        return Models(load(classifier("digits-cnn")), load)


FIRST = {fields["purifier"]: name for name, fields in reversed(configs().items())}
"""By purifier the first of its configs; the others are of its variants, which have tests of their own."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    tiers(NAMES, fast=("none", "gaussian-noise", "bit-depth", "one-shot"), daily=FIRST.values()),
)
def test_built_in_purifiers_keep_the_contract(name: str) -> None:
    suite = BuiltIn(configs()[name])
    if name in ON_THE_SHIPPED_NETWORK:
        suite.calls = 4  # the state of its caller is shown on the small networks
    hold(suite)


def test_no_built_in_purifier_is_left_out() -> None:
    built_in = {name for name in PURIFIERS.names() if ":" not in name}
    assert {fields["purifier"] for fields in configs().values()} >= built_in


BUILT = itertools.count()


class Noisy(Purifier):
    """A purifier that breaks the contract in one way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls, self.number = how, 0, next(BUILT)
        self.weight = nn.Parameter(torch.ones(()), requires_grad=how == "trainable")
        self.dropout = nn.Dropout(0.5)
        self.train(how == "training")

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        self.calls += 1
        noise = omega.normal("forward", 0, x)
        if self.how == "unused":
            torch.rand(1)
        spoil: dict[str, Callable[[], Tensor]] = {
            "torch": lambda: 0.1 * torch.randn_like(x),
            "numpy": lambda: torch.full_like(x, np.random.rand()),  # type: ignore[arg-type]
            "python": lambda: torch.full_like(x, random.random()),
            "anew": lambda: torch.full_like(x, 0.01 * (self.number % 7)),
            "units": lambda: 254 * x,
            "judge": lambda: torch.full_like(x, 0.01 * omega.role.startswith("judge")),
            "tired": lambda: torch.full_like(x, 0.01 * (self.calls > 28)),
            "half": lambda: -0.5 * (x - x.detach()),
            "waves": lambda: 0.05 * torch.sin(400 * x),
            "counter": lambda: torch.full_like(x, 0.01 * self.calls),
            "batch": lambda: x - x.mean(),
            "position": lambda: 0.1 * torch.arange(len(x), dtype=x.dtype).view(-1, 1, 1, 1) + 0 * x,
            "gradient": lambda: torch.full_like(x, 1e-6 * x.requires_grad),
            "nan": lambda: x * torch.nan,
        }
        if self.how == "inplace":
            with torch.no_grad():
                x += 0.1
        if self.how == "double":
            x = x.double()
        if self.how == "detached":
            x = x.detach()
        out = x + (0.0 if self.how == "constant" else 0.1) * noise + spoil.get(self.how, lambda: 0 * x)()
        return out[..., 1:] if self.how == "crop" else out


class NoisyConfig(PurifierConfig):
    purifier: Literal["noisy"] = "noisy"
    how: str = "not at all"

    @property
    def evaluations(self) -> int:
        return 1 if self.how == "evaluations" else 0

    def label(self) -> str:
        return "" if self.how == "label" else "noisy"

    def identity(self) -> dict[str, Any]:
        return {"purifier": "noisy"} if self.how == "identity" else super().identity()

    def canonical(self) -> str:
        return f"{self.how}"

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        if self.how == "pickle":
            self.__dict__["how"] = "changed"

    def build(self, models: Models | None = None) -> Purifier:
        return Chain().eval() if self.how == "chain" else Noisy(self.how)


class Broken(PurifierContract):
    def __init__(self, how: str) -> None:
        self.how = how

    def config(self) -> PurifierConfig:
        return NoisyConfig(how=self.how)


@pytest.mark.slow
def test_a_purifier_that_does_nothing_wrong_passes() -> None:
    assert failed(Broken("not at all")) == {}


class Chain(IterativePurifier):
    """A chain whose steps are right, and whose own forward pass loses the gradient."""

    length = 1

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        return x

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        return z + 0.1 * omega.normal("forward", 0, z)

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        return z

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return super().forward(x.detach(), omega) + 0.5 * (x - x.detach())


BROKEN = [
    ("units", "output_is_in_the_units_of_the_images", "outside on average"),
    ("judge", "answer_does_not_depend_on_who_asks", "another answer: role 'judge'"),
    ("tired", "calls_leave_no_state", "the first image and randomness give another output"),
    ("half", "gradient_is_that_of_central_differences", "100 % of 9 images and directions disagree"),
    ("waves", "gradient_is_that_of_central_differences", "predicted and measured changes agree to"),
    ("chain", "exact_gradient_is_that_of_plain_autograd", "the exact gradient differs from plain autograd"),
    ("double", "output_is_finite_and_of_the_shape_and_dtype_of_the_images", "torch.float64"),
    ("anew", "same_omega_gives_same_bits", "a purifier built anew gave another output"),
    (
        "constant",
        "another_draw_differs_if_and_only_if_the_config_says_stochastic",
        "another draw gives the same output",
    ),
    ("batch", "image_is_purified_alike_in_any_batch", "alone an image differs by"),
    ("position", "image_is_purified_alike_in_any_batch", "differs by"),
    ("unused", "global_random_states_have_no_influence_and_stay", "drew from a global random generator"),
    ("gradient", "value_does_not_depend_on_whether_gradients_are_recorded", "the output differs by"),
    ("trainable", "networks_are_frozen_and_in_evaluation_mode", "parameters want gradients: weight"),
    ("training", "networks_are_frozen_and_in_evaluation_mode", "in training mode"),
    ("identity", "spec_survives_reading_its_own_identity", "was read back as"),
    ("pickle", "config_can_be_pickled", "on its way through pickle"),
    ("label", "label_says_something", "no label for a table"),
    ("evaluations", "evaluations_are_those_that_are_made", "no network is evaluated, but config.evaluations is 1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "demand", "message"), BROKEN)
def test_a_breach_fails_its_demand_alone(how: str, demand: str, message: str) -> None:
    hold_alone(Broken(how), demand, message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "demand", "message"),
    [
        ("detached", "exact_gradient", "does not depend on the images"),
        ("detached", "central_differences", "disagree at every step size"),
        ("torch", "global_random_states", "drew from a global random generator"),
        ("numpy", "global_random_states", "drew from a global random generator"),
        ("python", "global_random_states", "drew from a global random generator"),
        ("torch", "same_omega", "second call"),
        ("counter", "same_omega", "second call"),
        ("nan", "output_is_finite", "NaN or infinite"),
        ("inplace", "output_is_finite", "changed its input in place"),
        ("crop", "output_is_finite", "of shape"),
    ],
)
def test_breaches_that_spoil_more_are_reported_too(how: str, demand: str, message: str) -> None:
    (text,) = (text for name, text in failed(Broken(how)).items() if demand in name)
    assert message in text


def test_every_demand_can_fail() -> None:
    assert {f"test_{demand}" for _, demand, _ in BROKEN} == set(DEMANDS)


@pytest.mark.slow
def test_a_count_of_evaluations_that_is_wrong_is_found() -> None:
    class Wrong(BuiltIn):
        def config(self) -> PurifierConfig:
            return type("Wrong", (type(self._config),), {"evaluations": property(lambda config: 99)}).model_validate(
                {
                    "purifier": "diffpure",
                    "denoiser": digits_ddpm(),
                    "schedule": "linear-1000",
                    "t_star": 5,
                    "steps": 2,
                }
            )

    with pytest.raises(AssertionError, match=r"config\.evaluations is 99, but the network was evaluated 2 times"):
        Wrong(configs()["diffpure ddpm"]).test_evaluations_are_those_that_are_made()


def test_the_suite_leaves_the_global_random_states_as_they_were() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(AssertionError):
        Broken("numpy").test_global_random_states_have_no_influence_and_stay()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_former_name_is_deprecated_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import defense.contracts
    from defense import deprecation

    monkeypatch.setattr(deprecation, "_WARNED", set())
    with pytest.warns(FutureWarning, match=r"use puregrid\.testing\.PurifierContract") as caught:
        assert defense.contracts.PurifierContract is PurifierContract
    assert caught[0].filename == __file__


@pytest.mark.slow
def test_no_suite_needs_pytest_and_this_one_needs_torch_alone() -> None:
    code = (
        "import sys; from puregrid.testing import PurifierContract\n"
        "print([name for name in ('pytest', 'pyarrow', 'workflows', 'tasks') if name in sys.modules])\n"
        "from puregrid.testing import *; print('pytest' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ASSETS.parent.parent, capture_output=True, text=True)
    assert done.stdout.split("\n") == ["[]", "False", ""], done.stderr
