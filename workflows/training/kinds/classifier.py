"""Training of a classifier architecture by one of the methods of :mod:`workflows.training.methods`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, SerializeAsAny, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from defense.classifiers import CLASSIFIERS, Normalised
from defense.errors import InvalidInput
from defense.randomness import NoiseVersion, Omega
from tasks.attacks import PGDConfig, Target
from tasks.datasets import ImageSet
from workflows.training.config import Training
from workflows.training.methods import Method, Standard
from workflows.training.objective import Objective

__all__ = ["ClassifierObjective", "ClassifierTraining", "accuracy", "noisy_accuracy", "pgd_accuracy"]

_PROGRESS_IMAGES = 1000
_BATCH = 500
_CARD = "training-card"


class ClassifierTraining(Training):
    """Training of a classifier architecture.

    Arguments:
        classifier: Name of the architecture.
        method: How: a name, or a mapping ``{method: NAME, ...}`` with the method's parameters.
        label_smoothing: Share of the target spread over all classes.
        optimiser: ``adamw``, or ``sgd`` with Nesterov momentum 0.9.
        attacked_images: How many test images the card's attack and noise figures take, the first ones.
    """

    train: Literal["classifier"]
    classifier: str
    method: SerializeAsAny[Method] = Standard()
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    optimiser: Literal["adamw", "sgd"] = "adamw"
    attacked_images: int = Field(default=1000, ge=1, exclude=True)

    @model_validator(mode="after")
    def _labels_fit(self) -> ClassifierTraining:
        if self.label_smoothing and self.method.hard_labels:
            raise InvalidInput(
                f"label_smoothing is {self.label_smoothing}, but method {self.method.method!r} is defined for "
                "unsmoothed labels; leave it out."
            )
        return self


class ClassifierObjective(Objective):
    """The method's loss; the file is the bare network's state dict, normalisation is the architecture's."""

    config: ClassifierTraining

    def __init__(self, config: ClassifierTraining, data: ImageSet) -> None:
        super().__init__(config, data)
        self.architecture = CLASSIFIERS.get(config.classifier)
        shape = data.images.shape[1:]
        if self.architecture.image_shape != shape:
            raise InvalidInput(
                f"classifier: {config.classifier!r} takes images of shape {self.architecture.image_shape}, the data "
                f"set has {shape}; name another architecture or data set."
            )
        if int(data.labels.max()) >= self.architecture.classes:
            raise InvalidInput(
                f"classifier: {config.classifier!r} knows {self.architecture.classes} classes, the data set has "
                f"labels up to {int(data.labels.max())}; name another architecture or data set."
            )

    def network(self) -> nn.Module:
        """Return the architecture with its normalisation in front."""
        return Normalised(self.architecture.build(), self.architecture.mean, self.architecture.std)

    def optimiser(self, net: nn.Module) -> torch.optim.Optimizer:
        """AdamW or SGD."""
        if self.config.optimiser == "adamw":
            return super().optimiser(net)
        config = self.config
        return torch.optim.SGD(
            net.parameters(), lr=config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
        )

    def loss(self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int) -> Tensor:
        """Return the loss of the method."""
        return self.config.method.loss(net, x, y, generator, step, self.config.label_smoothing)

    def progress(self, net: nn.Module, test: ImageSet) -> dict[str, float]:
        """Return accuracy on the first 1,000 test images."""
        return {"test/accuracy": accuracy(net, test, _PROGRESS_IMAGES)}

    def measure(self, net: nn.Module, test: ImageSet) -> dict[str, Any]:
        """Clean accuracy on the test split, and accuracy under what the method trains for on its first images."""
        method, images = self.config.method, min(len(test), self.config.attacked_images)
        measured: dict[str, Any] = {"test_accuracy": accuracy(net, test), "test_images": len(test)}
        if method.budget is not None:
            norm, eps = method.budget
            measured["under_attack"] = {
                "attack": "PGD-20, not adaptive beyond the classifier itself",
                "norm": norm,
                "eps": round(eps, 9),
                "accuracy": pgd_accuracy(net, test, PGDConfig(norm=norm, eps=eps), images),
                "images": images,
            }
        if method.sigma is not None:
            measured["under_noise"] = {
                "noise": "Gaussian, one draw an image, not clipped",
                "noise_version": 2,
                "sigma": method.sigma,
                "accuracy": noisy_accuracy(net, test, method.sigma, images, noise=2),
                "images": images,
            }
        return measured

    def save(self, net: nn.Module, out: Path) -> list[Path]:
        """``model.safetensors``, without the normalisation."""
        assert isinstance(net, Normalised)
        file = out / "model.safetensors"
        save_file({key: value.cpu().contiguous() for key, value in net.net.state_dict().items()}, file)
        return [file]


def _share(
    net: nn.Module, test: ImageSet, images: int | None, change: Callable[[Tensor, Tensor, int], Tensor]
) -> float:
    """Share of right answers on the first images, each batch changed by ``change(x, y, position)`` before."""
    device = next(net.parameters()).device
    right = 0
    count = len(test) if images is None else min(images, len(test))
    for start in range(0, count, _BATCH):
        part = slice(start, min(start + _BATCH, count))
        x, y = torch.from_numpy(test.images[part]).to(device), torch.from_numpy(test.labels[part]).to(device)
        changed = change(x, y, start)
        with torch.no_grad():
            right += int((net(changed).argmax(1) == y).sum())
    return round(right / count, 6)


def accuracy(net: nn.Module, test: ImageSet, images: int | None = None) -> float:
    """Return the share of right answers on the first test images, all by default."""
    return _share(net, test, images, lambda x, y, start: x)


def pgd_accuracy(net: nn.Module, test: ImageSet, attack: PGDConfig, images: int | None = None) -> float:
    """Return the share of right answers under a white-box attack on the classifier, on the first test images."""

    def change(x: Tensor, y: Tensor, start: int) -> Tensor:
        # A fixed id and not the attack's: a card must not change when attacks get another parameter.
        omega = Omega.of(_CARD, 0, "attack", range(start, start + len(x)))
        return attack.run(Target(net, y, omega), x, omega).images

    return _share(net, test, images, change)


def noisy_accuracy(
    net: nn.Module, test: ImageSet, sigma: float, images: int | None = None, *, noise: NoiseVersion = 2
) -> float:
    """Return the share of right answers on the first test images with Gaussian noise, one draw each.

    Arguments:
        net: The classifier.
        test: Test images.
        sigma: Of the noise, pixel units of [0, 1] images.
        images: How many, all by default.
        noise: Version of the normal numbers, which a card says (``noise_version``).
    """

    def change(x: Tensor, y: Tensor, start: int) -> Tensor:
        omega = Omega.of(_CARD, 0, "judge", range(start, start + len(x)), noise=noise)
        return x + sigma * omega.normal("noise", 0, x)

    return _share(net, test, images, change)
