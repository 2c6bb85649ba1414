"""Classifiers made of denoisers, against their formulas written out, and the published weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from defense import ClassifierConfig, InvalidInput, Omega, get_schedule
from defense.classifiers.diffusion import (
    DiffusionClassifier,
    DiffusionClassifierConfig,
    NoisedDiffusionClassifier,
    Sift,
    density,
)
from defense.denoisers import DenoiserConfig, NetworkDenoiser
from tasks.compute import Compute
from tasks.datasets import DatasetConfig
from tasks.stages import EvaluateStage


class Told(nn.Module):
    """A network of three classes, and a fourth that stands for none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.embedding = nn.Embedding(4, 4)

    def forward(self, z: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
        told = self.embedding(classes)[:, :, None, None] + labels.to(z.dtype).view(-1, 1, 1, 1) / 1000
        return 0.7 * z + self.second(torch.tanh(self.first(z) + told))  # type: ignore[no-any-return]


class ToldConfig(DenoiserConfig):
    """Without files."""

    format: Literal["told"] = "told"
    schedule: str = "linear-1000"

    def resolved(self, base: Path) -> ToldConfig:
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 1, 8, 8

    @property
    def classes(self) -> int:
        return 3

    def build(self) -> NetworkDenoiser:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            net = Told().requires_grad_(False)
        return NetworkDenoiser(net, self.schedule, (1, 8, 8), classes=3, null_class=3).eval()


LINEAR, DENOISER = get_schedule("linear-1000"), ToldConfig().build().double()
X = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GRID = np.linspace(1e-4, 3, 7).tolist()


def noise(i: int) -> Tensor:
    return Omega.of("diffusion-classifier", 0, "classifier", [0]).normal("noise", i, X[:1])


def at(sigma: float) -> tuple[int, float]:
    """The level that reaches sigma, and its own."""
    sigmas = np.sqrt((1 - LINEAR.abar) / LINEAR.abar)
    t = int((sigmas >= sigma).nonzero()[0][0])
    return t, float(sigmas[t])


def predicted(x: Tensor, t: int, label: int | None) -> Tensor:
    abar = float(LINEAR.abar[t])
    classes = torch.full((len(x),), 3 if label is None else label)
    eps = DENOISER.net(math.sqrt(abar) * x, torch.full((len(x),), t - 1), classes)
    return x - math.sqrt((1 - abar) / abar) * eps  # type: ignore[no-any-return]


def mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


def log_normal(s: float) -> float:
    return math.exp(-((math.log(s) + 1.2) ** 2) / (2 * 1.44)) / (s * 1.2 * math.sqrt(2 * math.pi))


def weight(s: float) -> float:
    return (s * s + 0.25) / (0.5 * s) ** 2 * log_normal(s)


def plain(x: Tensor) -> Tensor:
    z, logits = 2 * x - 1, []
    for label in range(3):
        total = torch.zeros(len(x), dtype=x.dtype)
        for i, sigma in enumerate(GRID):
            t, s = at(sigma)
            distance = mean_square(predicted(z + s * noise(i), t, label) - z)
            total = total + weight(s) * (GRID[1] - GRID[0]) * distance
        logits.append(-total)
    return torch.stack(logits, 1)


def gradient(f: Callable[[Tensor], Tensor]) -> Tensor:
    x = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(nn.functional.cross_entropy(f(x), torch.tensor([2, 0])), x)
    return found


def test_the_weights_and_the_slip_in_the_published_ones() -> None:
    assert [density(s, "published") for s in (0.02, 1.0)] == pytest.approx([0.0833, 0.1179], abs=5e-5)
    assert [density(s, "log-normal") for s in (0.02, 1.0)] == pytest.approx([1.293, 0.2016], abs=5e-4)


def test_the_diffusion_classifier_written_out_with_its_gradient() -> None:
    classifier = DiffusionClassifier(DENOISER, GRID)
    torch.testing.assert_close(classifier(X), plain(X), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradient(classifier), gradient(plain), rtol=1e-9, atol=1e-14)


def test_sifting_keeps_the_best_class_and_asks_all_of_a_wide_margin() -> None:
    full, wide = (
        DiffusionClassifier(DENOISER, GRID),
        DiffusionClassifier(DENOISER, GRID, sift=Sift(levels=3, margin=1e9)),
    )
    torch.testing.assert_close(wide(X), full(X), rtol=1e-11, atol=1e-12)
    narrow = DiffusionClassifier(DENOISER, GRID, sift=Sift(levels=3, margin=1e-12))
    asked: list[int] = []
    calls = DENOISER.net.register_forward_pre_hook(lambda module, args: asked.append(len(args[0])))
    logits = narrow(X)
    calls.remove()
    first = [0, 3, 6]
    coarse = DiffusionClassifier(DENOISER, GRID)._distance(2 * X - 1, first, torch.ones(2, 3, dtype=torch.bool))
    assert logits.argmax(1).tolist() == coarse.argmin(1).tolist()
    assert asked == [6] * 3 + [2] * 4  # all pairs of three levels, then one class an image of the other four


@pytest.mark.parametrize("form", ["apndc", "epndc"])
def test_noised_diffusion_classifiers_written_out(form: Any) -> None:
    sigma = 0.25
    grid = np.linspace(2 * sigma, 3, 9).tolist()
    z, s_t = 2 * X - 1, 2 * sigma
    levels = [at(s) for s in grid]
    logits = []
    for label in range(3):
        total = torch.zeros(2, dtype=X.dtype)
        for i in range(1 if form == "apndc" else 6, len(grid)):
            (t1, s1), (_, s0) = levels[i], levels[i - 1]
            z1 = z + math.sqrt(s1**2 - s_t**2) * noise(i)
            image = predicted(z1, t1, label)
            if form == "apndc":
                distance = mean_square(image - predicted(z, levels[0][0], None))
            else:
                p = ((s1**2 - s0**2) * image + s0**2 * z1) / s1**2
                q = ((s1**2 - s0**2) * z + (s0**2 - s_t**2) * z1) / (s1**2 - s_t**2)
                further = s1**2 * (s1**2 - s_t**2) / (4 * (s1 - s0) ** 2 * (s0**2 - s_t**2))
                distance = further * mean_square(p - q)
            total = total + weight(s1) * (grid[1] - grid[0]) * distance
        logits.append(-total)
    found = NoisedDiffusionClassifier(DENOISER, grid, form=form)(X)
    # What the input holds is s_t, of which the network is told the level that reaches it: APNDC's first answer.
    torch.testing.assert_close(found, torch.stack(logits, 1), rtol=1e-8, atol=1e-9)


class TestConfigs:
    FIELDS: ClassVar[dict[str, Any]] = {"classifier": "diffusion-classifier", "denoiser": ToldConfig(), "levels": 4}

    def test_entries_have_a_class_of_their_own_and_all_of_it_is_in_the_id_of_a_stage(self) -> None:
        config = ClassifierConfig.from_entry(self.FIELDS).resolved(Path())
        assert isinstance(config, DiffusionClassifierConfig)
        assert (config.architecture.classes, config.architecture.image_shape) == (3, (1, 8, 8))
        assert "weights_key" not in config.identity() and config.identity()["denoiser"]["format"] == "told"

        def stage(classifier: ClassifierConfig) -> str:
            return EvaluateStage(
                dataset=DatasetConfig.from_entry("digits").resolved(Path()),
                source=None,
                classifier=classifier,
                purifier={"purifier": "none"},  # type: ignore[arg-type]
                draws=1,
                seed=0,
                compute=Compute(),
            ).id

        assert stage(config) != stage(config.model_copy(update={"levels": 5}))

    def test_it_is_a_function_of_the_image_in_float32(self) -> None:
        net = ClassifierConfig.from_entry(self.FIELDS).resolved(Path()).build()
        assert net(X.float()).shape == (2, 3)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"weights": "x.pt"}, "weights belongs to classifiers with weights of their own"),
            # At its lower end the grid is one level, whose logits are all 0; below, the signs turn round.
            ({"sigma_max": 1e-4}, "sigma_max = 0.0001 .* greater than 0.0001"),
            ({"sigma_max": 1e-5}, "sigma_max = 1e-05 .* greater than 0.0001"),
            ({"sigma_max": 1e3}, "sigma_max = 1000 is beyond schedule 'linear-1000'"),
            ({"classifier": "noised-diffusion-classifier", "sigma": 2.0}, "leaves no levels up to sigma_max"),
            (
                {"classifier": "noised-diffusion-classifier", "sigma": 0.2, "form": "epndc", "levels": 6},
                "leaves out the first 5, and none is left to compare",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            ClassifierConfig.from_entry({**self.FIELDS, **fields})

    def test_a_network_without_classes_is_refused(self) -> None:
        from defense.denoisers import digits_denoiser

        with pytest.raises(InvalidInput, match="is not class-conditional"):
            ClassifierConfig.from_entry({**self.FIELDS, "denoiser": digits_denoiser()})
