r"""The l_2 attack of Carlini and Wagner: the least perturbation that fools, by penalties and binary search.

Carlini and Wagner, "Towards evaluating the robustness of neural networks", arXiv 1608.04644, sections V and VI.

.. math:: \min_w\ \|x'(w) - x\|_2^2 + c\, \max(\kappa - m(x'(w)),\, 0), \qquad x'(w) = \tfrac12(\tanh w + 1),

by Adam from x itself, with the margin :math:`m = \max_{i\ne y} z_i - z_y`. The constant c is searched for, image by
image: ten times larger until an image with :math:`m > \kappa` is met, then halfway between the largest that met none
and the smallest that did. As in the original, every tenth of the steps a search is given up whose objective has not
fallen by a ten-thousandth; but there the objective is summed over the batch, here it is each image's own.

**Draws.** m is what ``attacked`` makes of the draws, by default the mean of their margins. The hinge is taken of that
mean and not of each draw, so that the objective stops to push exactly where an image counts as met.

**What is submitted.** This is a minimum-norm attack, and its answer lies on the border of the wrong class. Within a
budget there is no merit in that: on fresh draws such an image fools about every other time. So, as by every other
attack, the image of largest m is submitted: of all iterates in the ball and of the least perturbation met, shortened
to the ball if it is longer. Where draws do not differ, and with kappa = 0, it fools exactly where the least
perturbation is within eps.

The norm of the least perturbation met is the column ``minimum_l2``, NaN where none was. With several draws it is that
of the luckiest of many evaluations, and thus too small.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from defense.randomness import Omega
from tasks.attacks.base import ATTACKS, AttackConfig, AttackResult
from tasks.attacks.best import Best
from tasks.attacks.losses import margin
from tasks.attacks.optimizers import Adam
from tasks.attacks.region import Norm, Region, perturbation_norms
from tasks.attacks.target import Target

__all__ = ["CarliniWagnerConfig"]

_INSIDE = 0.999999
"""Images are taken this much towards the middle before artanh, whose ends are infinite."""
_PROGRESS = 0.9999
_LARGEST = 1e10


@ATTACKS.register("cw-l2")
class CarliniWagnerConfig(AttackConfig):
    """Carlini and Wagner's l_2 attack.

    Arguments:
        eps: Norm up to which a perturbation is submitted; the search itself does not know it.
        kappa: Margin from which an image counts as met.
        binary_search_steps: Values of c that are tried.
        initial_c: The first of them.
        lr: Learning rate of Adam.
        steps: Steps of Adam for each c, at most.
        abort_early: Give up a search that makes no progress.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    attack: Literal["cw-l2"] = "cw-l2"
    kappa: float = Field(default=0.0, ge=0)
    binary_search_steps: int = Field(default=9, ge=1)
    initial_c: float = Field(default=1e-3, gt=0)
    lr: float = Field(default=0.01, gt=0)
    steps: int = Field(default=10000, ge=1)
    abort_early: bool = True

    def method(self) -> str:
        """``cw-l2 9x10000``, with kappa where it is not 0."""
        return f"{self.attack} {self.binary_search_steps}x{self.steps}" + (
            f" kappa {self.kappa:g}" * (self.kappa > 0)
        )

    @property
    def evaluations(self) -> int:
        """At most: every step of every search, and the least perturbation in the ball."""
        return self.binary_search_steps * self.steps + 1

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`. It draws nothing of its own."""
        count, first = len(x), target.calls
        best, least = Best(x), _Least(x)
        c = torch.full((count,), self.initial_c, dtype=torch.float64, device=x.device)
        lower, upper = torch.zeros_like(c), torch.full_like(c, torch.inf)
        for search in range(self.binary_search_steps):
            if search == self.binary_search_steps - 1 and self.binary_search_steps >= 10:
                c = upper.clamp_max(_LARGEST)  # as in the original: once more with what is known to do
            # The draws of an image are not to depend on when the others of its batch give up.
            target.calls = first + search * self.steps
            met = self._search(target, x, c, best, least)
            upper, lower = torch.where(met, c, upper), torch.where(met, lower, c)
            c = torch.where(upper.isinf(), 10 * c, (lower + upper) / 2)
        target.calls = first + self.binary_search_steps * self.steps
        candidate = Region(x, "l2", self.eps).project(torch.where(_like(least.norm.isfinite(), x), least.images, x))
        best.see(candidate, target.evaluate(candidate, margin).loss)
        norm = torch.where(least.norm.isfinite(), least.norm, torch.nan)
        return AttackResult(best.images, best.loss, columns={"minimum_l2": norm})

    def _search(self, target: Target, x: Tensor, c: Tensor, best: Best, least: _Least) -> Tensor:
        """Adam with one c for each image; returns for which images one was met, shape (B,)."""
        start = torch.atanh((2 * x - 1) * _INSIDE)
        anchor = _image(start)
        w, adam = start.clone(), Adam(start, self.lr)
        met = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        active, before = ~met, torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        for step in range(self.steps):
            images = _image(w)
            value, slope = _differentiate(target, images, active)
            size = perturbation_norms(images, x)["l2"]
            best.see(images, torch.where(active & (size <= self.eps), value, -torch.inf))
            success = active & (value > self.kappa)
            least.see(images, torch.where(success, size, torch.inf))
            met |= success
            if self.abort_early and step % math.ceil(self.steps / 10) == 0:
                hinge = (self.kappa - value.double()).clamp_min(0)
                objective = (images.double() - anchor.double()).flatten(1).square().sum(1) + c * hinge
                active = active & (objective <= _PROGRESS * before)
                before = objective
                if not active.any():
                    break
            pushing = torch.where(value < self.kappa, c, 0).to(x.dtype)
            gradient = 2 * (images - anchor) - _like(pushing, x) * slope
            w = torch.where(_like(active, x), w - adam.step(gradient * 2 * images * (1 - images)), w)
        return met


def _image(w: Tensor) -> Tensor:
    return (torch.tanh(w) + 1) / 2


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 1))


def _differentiate(target: Target, images: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Margins and their gradients; -inf and 0 for the images that are not active and cost nothing."""
    index = active.nonzero().squeeze(1)
    part = target.select(index)
    at = part.differentiate(images[index], margin)
    assert at.gradient is not None
    target.calls, target.evaluations = part.calls, target.evaluations + part.evaluations
    value = torch.full((len(images),), -torch.inf, dtype=at.loss.dtype, device=images.device)
    slope = torch.zeros_like(images)
    value[index], slope[index] = at.loss, at.gradient
    return value, slope


class _Least:
    """The images of least perturbation so far."""

    def __init__(self, x: Tensor) -> None:
        self.images = x
        self.norm = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)

    def see(self, images: Tensor, norm: Tensor) -> None:
        """Keep what is nearer; infinite norms are of images that do not count."""
        nearer = norm < self.norm
        self.images = torch.where(_like(nearer, images), images, self.images)
        self.norm = torch.where(nearer, norm, self.norm)
