r"""Purification by optimisation: a few steps of Adam or of gradient descent on a loss of the image.

.. math:: (u, m, v)_{i+1} = \mathrm{Adam}\big((u, m, v)_i,\ g_i\big), \qquad
          u \leftarrow u - \eta\,\frac{m / (1 - \beta_1^{i+1})}{\sqrt{v / (1 - \beta_2^{i+1})} + 10^{-8}},

with :math:`\beta = (0.9, 0.999)` (Kingma and Ba, arXiv 1412.6980, algorithm 1), or :math:`u \leftarrow u - \eta\, n\,
g` (``sgd``), n the number of values of an image, so that the learning rate does not depend on its size. What
:math:`g_i(u, x; \omega)` is, the purifier says. The chain's state is (u, m, v), stacked along the channels, so that
exact gradients pass through the optimiser's moments and through g, which is a second derivative of the denoiser where
g is the gradient of a loss.

**What the optimiser does to gradients.** At the first step m and the root of v are g and \|g\|, so that the step is
:math:`\eta\,\mathrm{sign}(g)`, whose derivative is :math:`\eta\epsilon/(|g|+\epsilon)^2`: next to nothing, but where
\|g\| is near 1e-8. Adam hides the derivative of g for as long as signs do not change. ``optimizer: sgd`` is the
honest twin: the same defence with a step that can be differentiated.

``guidance_path = False`` (the gradient mode ``exact-no-guidance-path``) takes every g as a constant: the chain's
Jacobian is then the identity, as where published code detaches the optimiser's result. In the mode
``exact-no-second-moment`` v alone is a constant, as in the public code of DiffHammer (Wang et al., 2024).
"""

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from defense.errors import InvalidInput
from defense.purifiers.base import IterativePurifier
from defense.purifiers.reverse import ReverseConfig
from defense.randomness import Omega
from defense.samplers import EpsModel

__all__ = ["Optimised", "OptimisedConfig", "OptimizerName", "SpreadOptimised", "adam"]

OptimizerName = Literal["adam", "sgd"]

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


def adam(
    u: Tensor, m: Tensor, v: Tensor, g: Tensor, i: int, lr: float, *, second_moment: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """One differentiable Adam step.

    Arguments:
        u: Variables.
        m: First moment before the step.
        v: Second moment before the step.
        g: Gradient, shape of ``u``.
        i: Number of the step, from 0.
        lr: Learning rate.
        second_moment: Whether derivatives pass through v.

    Returns:
        Variables and moments after the step.
    """
    m = _BETA1 * m + (1 - _BETA1) * g
    v = _BETA2 * v + (1 - _BETA2) * g.square()
    scale = v / (1 - _BETA2 ** (i + 1))
    if not second_moment:
        scale = scale.detach()
    # The root has no derivative at 0, where that of the whole step is finite: the first moment's alone.
    live = scale > 0
    root = torch.where(live, torch.where(live, scale, 1.0).sqrt(), 0.0)
    return u - lr * (m / (1 - _BETA1 ** (i + 1))) / (root + _EPS), m, v


class Optimised(IterativePurifier):
    """A chain of optimiser steps; see the module.

    Arguments:
        denoiser: Noise predictor; an analytic one from :mod:`defense.oracles` will do.
        iterations: Number of steps.
        lr: Learning rate.
        optimizer: ``adam`` or ``sgd``.
        b_ref: Batch size that the gradient is divided by.
        clip: Clamp the denoiser's estimate.
    """

    def __init__(
        self,
        denoiser: EpsModel,
        iterations: int,
        lr: float,
        optimizer: OptimizerName = "adam",
        *,
        b_ref: int = 1,
        clip: bool = False,
    ) -> None:
        super().__init__()
        self.b_ref, self.clip = b_ref, clip
        self.denoiser: Any = denoiser
        self.iterations = iterations
        self.lr = lr
        self.optimizer: OptimizerName = optimizer
        self.second_moment = True

    @property
    def length(self) -> int:
        """Optimiser steps."""
        return self.iterations

    def surrogate(self, steps: int) -> Self:
        """Return the first ``steps`` steps with the same noise: what published attacks differentiate."""
        other = copy.copy(self)
        other.iterations = min(steps, self.iterations)
        return other

    def without_second_moment(self) -> Self:
        """Return the same chain, value by value, whose backward pass takes Adam's second moment as a constant."""
        other = copy.copy(self)
        other.second_moment = False
        return other

    def first(self, x: Tensor, omega: Omega) -> Tensor:
        """Return u before the first step: ``2 x - 1``."""
        return 2 * x - 1

    @abstractmethod
    def gradient(self, i: int, u: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Return g of step ``i``, shape of ``u``, differentiable.

        Arguments:
            i: Step.
            u: The variables, diffusion units; a gradient with respect to them can be asked for.
            x: The purifier's input.
            omega: Randomness.
        """

    def images(self, u: Tensor, omega: Omega) -> Tensor:
        """Return images from u after the last step: ``(u + 1) / 2``, clamped to [0, 1]."""
        return ((u + 1) / 2).clamp(0, 1)

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        """Return u and moments of zero."""
        u = self.first(x, omega)
        return torch.cat([u, torch.zeros_like(u), torch.zeros_like(u)], 1) if self.optimizer == "adam" else u

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        """One optimiser step; see the module for ``guidance_path``."""
        follow = torch.is_grad_enabled() and guidance_path and (z.requires_grad or x.requires_grad)
        u, m, v = z.chunk(3, 1) if self.optimizer == "adam" else (z, z, z)
        point = u if follow and u.requires_grad else u.detach().requires_grad_()
        # Always with a graph, and attention without fused kernels: the formulas, and with them the last bits, must
        # not depend on whether somebody differentiates. See :class:`~defense.purifiers.diffusion.Diffusion`.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            g = self.gradient(i, point, x if follow else x.detach(), omega)
        if not follow:
            g, m, v = g.detach(), m.detach(), v.detach()
        if self.optimizer == "sgd":
            return u - self.lr * u[0].numel() * g
        return torch.cat(adam(u, m, v, g, i, self.lr, second_moment=self.second_moment), 1)

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Return the images that the last state stands for."""
        return self.images(z.chunk(3, 1)[0] if self.optimizer == "adam" else z, omega)


def slope(loss: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """Return the gradient of a loss of each image, shape (B,), at ``u``, within the graph."""
    value = loss(u)
    # Without autocast, which would run in bf16 the derivative of what the forward pass did not.
    with torch.autocast(u.device.type, enabled=False):
        (found,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    return found


class SpreadOptimised(Optimised):
    """A chain whose every step draws its noise level between two; other arguments are those of :class:`Optimised`.

    Arguments:
        low: Least noise level, pixel units.
        high: Largest one.
    """

    def __init__(
        self,
        denoiser: EpsModel,
        low: float,
        high: float,
        iterations: int,
        lr: float,
        optimizer: OptimizerName = "adam",
        *,
        b_ref: int = 1,
        clip: bool = False,
    ) -> None:
        super().__init__(denoiser, iterations, lr, optimizer, b_ref=b_ref, clip=clip)
        self.low, self.high = low, high


class OptimisedConfig(ReverseConfig):
    """A purifier that optimises the image; the noise level is the middle of those of its loss.

    Arguments:
        iterations: Number of optimiser steps.
        lr: Learning rate.
        optimizer: ``adam`` as published, or ``sgd``, whose steps can be differentiated.
        b_ref: Batch size over which the authors' code averages the loss. Adam divides it out, but for its 1e-8.
        clip_denoised: Clamp the denoiser's estimate to [-1, 1].
    """

    default_level = 0.25
    iterations: int = Field(ge=1, le=100_000)
    lr: float = Field(default=0.1, gt=0)
    optimizer: OptimizerName = "adam"
    b_ref: int = Field(default=1, ge=1)
    clip_denoised: bool = False

    @property
    def diffuses(self) -> bool:
        """False: its states are no noised images."""
        return False

    @property
    def guided(self) -> bool:
        """True: its steps are gradients, through which an attack must differentiate."""
        return True

    @property
    def evaluations(self) -> int:
        """One per step."""
        return self.iterations

    def label(self) -> str:
        """``score-opt O t*=166 5 x 0.1``."""
        descent = "" if self.optimizer == "adam" else f" {self.optimizer}"
        return f"{self.purifier}{self._form()} t*={self.t_star} {self.iterations} x {self.lr:g}{descent}"

    def _form(self) -> str:
        return ""


Chain = TypeVar("Chain", bound=SpreadOptimised)


class SpreadConfig(OptimisedConfig):
    """An optimised purifier whose loss draws a noise level in every step.

    Arguments:
        spread: Half the width of the interval of noise levels around the middle, pixel units of [0, 1] images.
    """

    spread: float = Field(default=0.05, ge=0)

    @model_validator(mode="after")
    def _levels_exist(self) -> Self:
        low, high = self.interval()
        if not low > 0:
            raise InvalidInput(
                f"spread = {self.spread:g} reaches below no noise: the middle is sigma_eq = "
                f"{low + self.spread:.4g}. Write a smaller `spread`, or a larger noise level."
            )
        self.denoiser.noise_schedule.t_for_sigma(high)
        return self

    def interval(self) -> tuple[float, float]:
        """Return the least and the largest noise level, pixel units."""
        middle = self.denoiser.noise_schedule.level(self.t_star).sigma_eq
        return middle - self.spread, middle + self.spread

    def chain(self, kind: Callable[..., Chain], denoiser: EpsModel, **more: Any) -> Chain:
        """Return a chain of some kind with the fields of this config."""
        chain = kind(
            denoiser,
            *self.interval(),
            self.iterations,
            self.lr,
            self.optimizer,
            b_ref=self.b_ref,
            clip=self.clip_denoised,
            **more,
        )
        return chain.eval()
