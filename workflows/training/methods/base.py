"""The base of every method to train a classifier: typed parameters and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from defense.bounds import Bound, beyond, diameter
from defense.registry import Registry
from defense.spec import Spec, Spelling
from tasks.attacks.base import EPS, EPS_255

__all__ = ["METHODS", "Method", "RobustMethod"]


class Method(Spec, ABC):
    """A method to train a classifier; ``method: {method: NAME, ...}`` in a config.

    Attributes:
        hard_labels: The loss is defined for one-hot labels only, so that label smoothing is refused.
    """

    named_by: ClassVar[str | None] = "method"
    hard_labels: ClassVar[bool] = False
    method: str

    @classmethod
    def class_named(cls, name: str) -> type[Method]:
        """See :class:`Spec`."""
        return METHODS.get(name)

    @property
    def sigma(self) -> float | None:
        """Standard deviation of the noise that the network is trained for, pixel units; its card measures there."""
        return None

    @property
    def budget(self) -> tuple[Literal["linf", "l2"], float] | None:
        """Norm and eps that the network is trained for; its card measures there."""
        return None

    @abstractmethod
    def loss(
        self, net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, step: int, smoothing: float = 0.0
    ) -> Tensor:
        """Return the loss of one batch, a scalar.

        Arguments:
            net: Images in [0, 1] to logits, in training mode, and left so.
            x: Images in [0, 1], shape (B, C, H, W).
            y: Class numbers, shape (B,).
            generator: Source of all randomness beside dropout, on the CPU.
            step: Steps done before this one.
            smoothing: Share of each target that is spread over all classes.
        """


class RobustMethod(Method):
    """A method with an inner maximisation over a ball around each image.

    The inner maximisation runs with the network in evaluation mode: batch norm then uses its running statistics,
    so that the attack on one image does not depend on the others and leaves the statistics alone, and dropout is
    off. The loss at its result is computed in training mode.

    Arguments:
        norm: ``linf`` or ``l2``.
        eps: Radius of the ball, units of [0, 1] pixels. ``eps_255`` gives it in 1/255 instead.
        steps: Gradient steps of the inner maximisation.
        step_size: Their size, units of [0, 1] pixels; by default 2.5 eps / steps.
    """

    spellings: ClassVar[Mapping[str, Spelling]] = EPS_255
    norm: Literal["linf", "l2"] = Field(description="norm is linf or l2: eps means nothing without it.")
    eps: float = Field(gt=0, description=EPS)
    steps: int = Field(default=10, ge=1)
    step_size: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _within_the_images(self) -> Self:
        longest = diameter(self.norm, None)
        if longest is not None and self.eps > longest:
            meant = f"did you mean `eps_255: {self.eps:g}`? " if self.eps <= 255 else ""
            bound = Bound(longest, "the largest l_inf distance between two images in [0, 1]", lambda value: meant)
            raise beyond("eps", self.eps, bound, can_lift=False, also=f" ({self.eps * 255:.6g}/255)")
        return self

    @property
    def budget(self) -> tuple[Literal["linf", "l2"], float]:
        """The ball of the inner maximisation."""
        return self.norm, self.eps

    @property
    def size(self) -> float:
        """Step size of the inner maximisation, pixel units."""
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size


METHODS: Registry[type[Method]] = Registry("training method", "puregrid.training_methods", subclass_of=Method)
