"""Attacks and data sets of others with one more mistake each; ``test_foreign_rows.py`` has the rule of each."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from defense.randomness import Omega
from tasks.attacks import AttackConfig, AttackResult
from tasks.attacks.losses import PointLoss, point_loss
from tasks.attacks.region import Region
from tasks.attacks.target import Target
from tasks.datasets import DigitsConfig, ImageSet

TEST = DigitsConfig().read()


def _targeted(classes: Tensor) -> PointLoss:
    return lambda z, y: -F.cross_entropy(z, classes, reduction="none")


class Foreign(AttackConfig):
    """Ten steps by the gradient's signs, the last point, and one mistake."""

    attack: Literal["planted_foreign:Foreign"] = "planted_foreign:Foreign"
    how: str
    steps: int = 10

    def method(self) -> str:
        return self.how

    @property
    def evaluations(self) -> int:
        return self.steps + 1

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        how, labels, ce = self.how, target.labels, point_loss("ce")
        loss = {
            "targeted at the label": _targeted(labels),
            "labels one off": lambda z, y: F.cross_entropy(z, (y + 1) % 10, reduction="none"),
        }.get(how, ce)
        region = Region(x, self.norm, self.eps)
        current = region.random_start(omega, 0)
        some = {"one class": (labels == 3).nonzero().flatten(), "first ten": torch.arange(min(10, len(x)))}.get(how)
        for _ in range(self.steps):
            if some is None:
                gradient = target.differentiate(current, loss).gradient
                assert gradient is not None
            else:
                gradient = torch.zeros_like(x)
                found = target.select(some).differentiate(current[some], loss).gradient
                assert found is not None
                gradient[some] = found
            current = self._stepped(region, current, gradient)
        # A restart that was never compared with anything.
        images = region.random_start(omega, 5) if how == "start returned" else current
        if how == "numbers of its own":
            images = region.project(x + self.eps * (2 * torch.rand_like(x) - 1))
        if how == "one perturbation for all":
            images = region.project(x + (current - x)[:1])
        if how == "two images":
            images = torch.where((torch.arange(len(x)) < 2).view(-1, 1, 1, 1), current, region.random_start(omega, 5))
        result: AttackResult = self._returned(images, target.evaluate(images, ce).loss)
        return result

    def _stepped(self, region: Region, current: Tensor, gradient: Tensor) -> Tensor:
        how, x, size = self.how, region.x, 2.5 * self.eps / self.steps
        if how == "steps down":
            gradient = -gradient
        if how == "sign lost":
            gradient = gradient.abs()
        if how == "gradients of neighbours":
            gradient = gradient.roll(1, 0)
        if how == "norm of the batch":
            return region.project(current + size * gradient / gradient.norm())
        moved = region.ascend(current, gradient, size)
        if how == "upper half":
            moved = torch.cat([moved[:, :, :4], x[:, :, 4:]], 2)
        if how == "first channel":
            moved = torch.cat([moved[:, :1], x[:, 1:]], 1)
        return moved

    def _returned(self, images: Tensor, loss: Tensor) -> Any:
        """What it hands over, which may be nothing that anybody can use."""
        columns: dict[str, Tensor] = {}
        some = torch.arange(len(loss)) % 7 == 0
        if self.how == "infinite loss":
            loss = torch.full_like(loss, torch.inf)
        elif self.how == "NaN in some images":
            images = torch.where(some.view(-1, 1, 1, 1), torch.nan, images)
        elif self.how == "double":
            images = images.double()
        elif self.how == "flat":
            images = images.flatten(1)
        elif self.how == "one image short":
            images, loss = images[:-1], loss[:-1]
        elif self.how == "mean loss":
            loss = loss.mean()
        elif self.how == "loss in a column":
            loss = loss[:, None]
        elif self.how == "short column":
            columns["score"] = loss[:-1]
        elif self.how == "counts gradients itself":
            columns["gradient_zero"] = torch.zeros_like(loss)
        elif self.how == "in its graph":
            images, loss = images.requires_grad_(), loss.requires_grad_()
        elif self.how == "no result":
            return images, loss
        return AttackResult(images, loss, columns=columns)


class Data(DigitsConfig):
    """Digits that no classifier of digits knows so."""

    dataset: Literal["planted_foreign:Data"] = "planted_foreign:Data"  # type: ignore[assignment]
    how: str

    def label(self) -> str:
        return self.how

    def read(self) -> ImageSet:
        images, labels = TEST.images, TEST.labels.copy()
        made = {
            "half the contrast": images / 2,
            "inverted": 1 - images,
            "mirrored": images[:, :, :, ::-1],
            "rows and columns exchanged": images.transpose(0, 1, 3, 2),
            "another gamma": images**4,
            "every second pixel": images[:, :, ::2, ::2].repeat(2, 2).repeat(2, 3),
            "two grey levels": (images > 0.5).astype(np.float32),
        }.get(self.how, images)
        if self.how == "two classes exchanged":
            labels = np.where(labels == 3, 5, np.where(labels == 5, 3, labels))
        if self.how == "wrong labels":
            wrong = np.random.default_rng(0).random(len(labels)) < 0.2
            labels[wrong] = (labels[wrong] + 4) % 10
        return ImageSet(np.ascontiguousarray(made, dtype=np.float32), labels)
