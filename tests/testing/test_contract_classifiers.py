"""The shipped and the standard classifiers pass the published contract suite, which catches who breaks it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from holding import demands, failed, hold, hold_alone
from safetensors.torch import save_file
from torch import Tensor, nn

from defense import CLASSIFIERS, ClassifierConfig
from defense.classifiers import Architecture, FeatureNet, Normalised
from puregrid.testing import ClassifierContract
from tasks.datasets import DigitsConfig

SHIPPED = [name for name in CLASSIFIERS.names() if name.startswith("digits-")]
OF_CIFAR = ("resnet20", "cnn-a")


class Shipped(ClassifierContract):
    def __init__(self, name: str, *, real: bool = True) -> None:
        self.name, self.real = name, real

    def config(self) -> ClassifierConfig:
        return ClassifierConfig(classifier=self.name).resolved(Path())

    def known(self) -> tuple[Tensor, Tensor, float]:
        data = DigitsConfig().read()
        return torch.from_numpy(data.images[:100]), torch.from_numpy(data.labels[:100]), 0.9


class Random(ClassifierContract):
    """A registered network with random weights."""

    def __init__(self, name: str, folder: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = CLASSIFIERS.get(name).build()
        self.name, self.path = name, folder / f"{name}.safetensors"
        save_file(net.state_dict(), self.path)

    def config(self) -> ClassifierConfig:
        return ClassifierConfig(classifier=self.name, weights=str(self.path)).resolved(Path())


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_classifiers_keep_the_contract(name: str) -> None:
    hold(Shipped(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_CIFAR)
def test_networks_of_papers_keep_the_contract(name: str, tmp_path: Path) -> None:
    assert failed(Random(name, tmp_path)) == {}


BUILT = itertools.count()


class Toy(nn.Module):
    """A smooth network, or one that breaks the contract in one way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.how, self.number = how, next(BUILT)
        self.kernel = nn.Parameter(torch.randn(5, 1, 3, 3, generator=generator), requires_grad=how == "trainable")
        self.head = nn.Parameter(torch.randn(3, 20, generator=generator), requires_grad=False)
        self.register_buffer("seen", torch.zeros(()))
        self.dropout = nn.Dropout(0.5)

    def features(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(nn.functional.conv2d(x, self.kernel).tanh(), 2).flatten(1)

    def classify(self, latent: Tensor) -> Tensor:
        return latent @ self.head.T

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classify(self.features(x))
        if self.how == "running":
            self.seen += 1
        if self.how == "global":
            torch.rand(1)
        broken: dict[str, Callable[[], Tensor]] = {
            "nan": lambda: logits * torch.tensor([1, 1, torch.inf]),
            "classes": lambda: logits[:, :2],
            "softmax": lambda: logits.softmax(1),
            "anew": lambda: logits * (1 + 1e-6 * (1 + self.number % 7)),
            "batch": lambda: logits + logits.mean(0) - logits[0],
            "recorded": lambda: logits + (0 if torch.is_grad_enabled() else 1e-3),
            "masked": lambda: logits.detach() + (logits - logits.detach()) * 0.5,
            "flat": lambda: logits.detach() + 0 * logits,
        }
        return broken.get(self.how, lambda: logits)()


class WithLatent(Toy, FeatureNet):
    """Says what its latent is, and says it wrong."""

    def latent(self, x: Tensor) -> Tensor:
        return 2 * self.features(x)


class ToyConfig(ClassifierConfig):
    how: str = "right"

    @property
    def architecture(self) -> Architecture:
        return Architecture(lambda: Toy(self.how), (1, 8, 8), 3, (0.3,), (0.4,))

    def label(self) -> str:
        return "" if self.how == "label" else "toy"

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        if self.how == "identity":
            found["how"] = "right"
        if self.how == "path":
            found["name"] = self.weights
        if self.how == "no hash":
            found["sha256"] = None
        return found

    def canonical(self) -> str:
        return super().canonical() + self.how

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        if self.how == "pickle":
            self.__dict__["sha256"] = "0" * 64

    def resolved(self, base: Path) -> ToyConfig:
        return self.model_copy(update={"sha256": "1" * 64, "mean": (0.3,), "std": (0.4,), "weights": "somewhere"})

    def build(self) -> nn.Module:
        assert self.mean is not None and self.std is not None
        ignored = self.how == "not normalised"
        net = WithLatent(self.how) if self.how == "latent" else Toy(self.how)
        made = Normalised(net, *(((0.0,), (1.0,)) if ignored else (self.mean, self.std)))
        return made.train(self.how == "training")


class Broken(ClassifierContract):
    def __init__(self, how: str) -> None:
        self.how = how

    def config(self) -> ClassifierConfig:
        return ToyConfig(classifier="toy", how=self.how).resolved(Path())

    def known(self) -> tuple[Tensor, Tensor, float] | None:
        if self.how not in ("right", "order of classes"):
            return None
        x = torch.from_numpy(np.linspace(0, 1, 640, dtype=np.float32).reshape(10, 1, 8, 8))
        with torch.no_grad():
            right = Normalised(Toy("right"), (0.3,), (0.4,))(x).argmax(1)
        return x, (right + (self.how == "order of classes")) % 3, 1.0


def test_a_classifier_that_does_nothing_wrong_passes() -> None:
    assert failed(Broken("right")) == {}


BROKEN = [
    ("softmax", "logits_are_finite_and_one_for_every_class", "the outputs are probabilities"),
    ("anew", "same_images_give_same_bits", "a classifier built anew gave other logits"),
    ("batch", "image_is_classified_alike_in_any_batch", "a logit of an image differs by"),
    ("global", "global_random_states_have_no_influence_and_stay", "drew from a global random generator"),
    ("recorded", "value_does_not_depend_on_whether_gradients_are_recorded", "a logit differs by 0.001"),
    ("running", "calls_leave_no_state", "a call changed net.seen"),
    ("masked", "gradient_is_that_of_central_differences", "by central differences"),
    ("flat", "gradient_is_that_of_central_differences", "zero in every pixel"),
    ("trainable", "network_is_frozen_and_in_evaluation_mode", "parameters want gradients: net.kernel"),
    ("training", "network_is_frozen_and_in_evaluation_mode", "in training mode: the classifier, net, net.dropout"),
    ("not normalised", "normalisation_is_inside_and_is_the_config_s", "in the network with mean 0 and std 1"),
    ("order of classes", "known_images_are_classified_right", "0.0 % of the known images"),
    ("latent", "latent_is_what_the_last_layer_takes", "classify(latent(x)) differs"),
    ("path", "id_is_that_of_the_weights_wherever_they_lie", "the id depends on the path"),
    ("no hash", "id_is_that_of_the_weights_wherever_they_lie", "the id does not depend on the weights"),
    ("identity", "spec_survives_reading_its_own_identity", "was read back as"),
    ("pickle", "config_can_be_pickled", "on its way through pickle"),
    ("label", "label_says_something", "is no label for a table"),
]


@pytest.mark.parametrize(("how", "demand", "message"), BROKEN)
def test_a_breach_fails_its_demand_alone(how: str, demand: str, message: str) -> None:
    hold_alone(Broken(how), demand, message)


@pytest.mark.parametrize(
    ("how", "message"), [("nan", "NaN or infinite"), ("classes", "not (3, 3): 3 images, 3 classes")]
)
def test_breaches_that_spoil_more_are_reported_too(how: str, message: str) -> None:
    assert message in failed(Broken(how))["test_logits_are_finite_and_one_for_every_class"]


def test_every_demand_can_fail() -> None:
    assert {f"test_{demand}" for _, demand, _ in BROKEN} == set(demands(ClassifierContract))
