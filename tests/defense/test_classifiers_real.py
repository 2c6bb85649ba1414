"""Real weights have the accuracies that are known of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from defense import CLASSIFIERS, ClassifierConfig
from defense.checkpoints import sha256_file
from defense.randomness import Omega
from tasks.attacks import PGDConfig, Target
from tasks.datasets import ImageSet


def correct(classifier: nn.Module, data: ImageSet, first: int | None = None) -> int:
    images, labels = torch.from_numpy(data.images[:first]), torch.from_numpy(data.labels[:first])
    with torch.no_grad():
        answers = torch.cat([classifier(part).argmax(1) for part in images.split(250)])
    return int((answers == labels).sum())


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "file", "right", "attacked"),
    [
        ("resnet4b", "resnet4b_adv_eps2.pth", 7720, 0.618),
        ("cnn-a", "cnn_a_mix4.pth", 6935, 0.565),
    ],
)
def test_a_public_robust_checkpoint_has_its_accuracies(
    weights_root: Path, cifar10_test: ImageSet, name: str, file: str, right: int, attacked: float
) -> None:
    classifier = ClassifierConfig(classifier=name, weights=str(weights_root / file)).resolved(Path()).build()
    assert correct(classifier, cifar10_test) == pytest.approx(right, abs=1.5)
    # PGD-20 at 2/255 on the first 1,000; another random start moves it by an image or two.
    attack = PGDConfig(norm="linf", eps=2 / 255)
    x, y = torch.from_numpy(cifar10_test.images[:1000]), torch.from_numpy(cifar10_test.labels[:1000])
    omega = Omega.of("test", 0, "attack", range(1000))
    images = attack.run(Target(classifier, y, omega), x, omega).images
    found = correct(classifier, ImageSet(images.numpy(), cifar10_test.labels[:1000]))
    assert found / 1000 == pytest.approx(attacked, abs=0.004)


def public(weights_root: Path, depth: int) -> nn.Module:
    (file,) = weights_root.glob(f"resnet{depth}-*.th")
    # The public files carry the leading digits of their sha256 in their names.
    sha256 = file.stem.rpartition("-")[2]
    return ClassifierConfig(classifier=f"resnet{depth}", weights=str(file), sha256=sha256).resolved(Path()).build()


@pytest.mark.nightly
def test_a_public_checkpoint_has_its_accuracy_on_all_test_images(weights_root: Path, cifar10_test: ImageSet) -> None:
    assert correct(public(weights_root, 20), cifar10_test) == pytest.approx(9173, abs=1.5)


# ResNet-56, which has 93.39 % on all 10,000 (a minute), is right on 926 of these.
@pytest.mark.slow
@pytest.mark.parametrize(("depth", "right"), [(20, 915), pytest.param(56, 926, marks=pytest.mark.nightly)])
def test_a_public_checkpoint_has_its_accuracy_on_the_first_images(
    weights_root: Path, cifar10_test: ImageSet, depth: int, right: int
) -> None:
    assert correct(public(weights_root, depth), cifar10_test, 1000) == pytest.approx(right, abs=1)


def test_the_shipped_digits_network_is_what_its_card_says(digits_test: ImageSet) -> None:
    weights = CLASSIFIERS.get("digits-cnn").weights
    assert weights is not None
    card = yaml.safe_load((weights.parent / "card.yaml").read_text())
    assert sha256_file(weights) == card["sha256"]["model.safetensors"]
    assert digits_test.digest() == card["data"]["test_digest"]
    classifier = ClassifierConfig(classifier="digits-cnn").resolved(Path()).build()
    assert sum(p.numel() for p in classifier.parameters()) == card["parameters"]
    accuracy = correct(classifier, digits_test) / len(digits_test)
    assert accuracy == pytest.approx(card["measured"]["test_accuracy"], abs=1e-6)
    assert accuracy >= 0.97
