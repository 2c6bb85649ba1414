r"""SPSA: gradient ascent with a gradient estimated from scores along random directions.

Uesato et al., "Adversarial risk and the dangers of evaluating against weak attacks", arXiv 1802.05666, algorithm 1;
the estimator is Spall's (simultaneous perturbation stochastic approximation, IEEE TAC 37, 1992).

.. math:: \hat g_i = \frac1n \sum_{j=1}^n \frac{L(x^{+}_j) - L(x^{-}_j)}{x^{+}_{j,i} - x^{-}_{j,i}}, \qquad
          x^{\pm}_j = \min(\max(x \pm \delta v_j, 0), 1), \quad v_j \in \{-1, 1\}^d

with independent fair signs v. The original queries points outside the image range, which nobody can submit. Here the
queries are cut, and each pixel's difference is the one that it then has: the estimate stays unbiased of a linear L,
and where nothing is cut its squared error is :math:`(d - 1)\,\|g\|^2 / n`.

A step follows :math:`\hat g` by ``adam`` (the original's choice), or is one of ``steepest`` ascent, along the sign
(l_inf) or the normalised estimate (l_2); then it is projected. Of all iterates the one of highest loss is returned.

**Defaults** are those of CleverHans (``SPSA``): Adam with rate 0.01, :math:`\delta = 0.01`, the margin, and 64
directions, whose two ends it counts as 128 samples. It has no default number of steps. Not as there, the first
iterate is the image itself and not a random point of the ball.

**Scores of a stochastic defence** are made of ``eot`` draws. By default all queries of one step are answered with the
same draws (``fixed_scores``): the difference of a pair on different draws is mostly that of its draws, which is
divided by a small delta. The next step has others. With ``fixed_scores: false`` every query has fresh draws, which is
what an attacker faces who can do no more than submit images.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from defense.randomness import Omega
from tasks.attacks.base import ATTACKS, AttackConfig, AttackResult
from tasks.attacks.best import Best
from tasks.attacks.losses import LossName, PointLoss, check_classes, point_loss
from tasks.attacks.optimizers import Adam
from tasks.attacks.region import Region
from tasks.attacks.target import Target

__all__ = ["SPSAConfig", "estimate_gradient"]

_BLOCK = 16
"""Directions whose signs are drawn at once: opening a stream costs more than filling it."""
_AT_ONCE = 256
"""Queries that go through the networks at once, or one of each image where these are more."""


@ATTACKS.register("spsa")
class SPSAConfig(AttackConfig):
    """SPSA.

    Arguments:
        steps: Steps, each with an estimate of its own.
        samples: Directions n per estimate; each costs two queries.
        delta: How far the queries are from the iterate, in every pixel, units of [0, 1] pixels.
        update: ``adam`` or ``steepest``; by default adam for l_inf and steepest ascent for l_2.
        step_size: Adam's learning rate, by default 0.01, or the step of steepest ascent, by default 2.5 eps / steps.
        loss: ``margin``, ``ce`` or ``dlr``.
        fixed_scores: Answer all queries of a step with the same draws, see the module; without meaning for static
            attacks.
    """

    black_box: ClassVar[bool] = True
    attack: Literal["spsa"] = "spsa"
    steps: int = Field(default=100, ge=1)
    samples: int = Field(default=64, ge=1)
    delta: float = Field(default=0.01, gt=0)
    update: Literal["adam", "steepest"] = "adam"
    step_size: float | None = Field(default=None, gt=0)
    loss: LossName = "margin"
    fixed_scores: bool = True

    @model_validator(mode="before")
    @classmethod
    def _update_of_the_norm(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("update") is None:
            return {**data, "update": "steepest" if data.get("norm") == "l2" else "adam"}
        return data

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        check_classes("loss", self.loss, classes)

    def method(self) -> str:
        """``spsa-100x64 linf``, with the loss where it is not the margin."""
        name = f"spsa-{self.steps}x{self.samples} {self.norm}" + ("" if self.loss == "margin" else f" {self.loss}")
        return name if self.static or self.fixed_scores else f"{name} fresh scores"

    @property
    def evaluations(self) -> int:
        """Two per direction and one per iterate, the image itself included; forward alone."""
        return self.steps * (2 * self.samples + 1) + 1

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`."""
        region, loss, best = Region(x, self.norm, self.eps), point_loss(self.loss), Best(x)
        adam = Adam(x, 0.01 if self.step_size is None else self.step_size)
        size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        current = x
        for step in range(self.steps):
            first = target.calls
            best.see(current, target.evaluate(current, loss).loss)
            fresh = not self.fixed_scores
            gradient = estimate_gradient(target, current, loss, omega, step, self.samples, self.delta, first, fresh)
            if self.update == "adam":
                current = region.project(current + adam.step(gradient))
            else:
                current = region.ascend(current, gradient, size)
        best.see(current, target.evaluate(current, loss).loss)
        return AttackResult(best.images, best.loss)


def estimate_gradient(
    target: Target,
    x: Tensor,
    loss: PointLoss,
    omega: Omega,
    step: int,
    samples: int,
    delta: float,
    call: int,
    fresh: bool = False,
) -> Tensor:
    """Estimate of the gradient of the loss at x, shape of x.

    Arguments:
        target: The attacked function.
        x: Images in [0, 1], shape (B, C, H, W).
        loss: Loss of one draw, or of what is made of the draws.
        omega: Signs of the directions, keys ``("direction", number of the block)``.
        step: Number of the estimate.
        samples: Directions.
        delta: Distance of the queries, in every pixel.
        call: The call of the target whose draws all queries have; what comes after takes those of later calls.
        fresh: Give each query draws of its own instead, those of the calls that follow.
    """
    blocks = -(-samples // _BLOCK)
    total = torch.zeros_like(x)
    upper, lower = (x + delta).clamp_max(1), (x - delta).clamp_min(0)
    queries = 0
    for block in range(blocks):
        count = min(_BLOCK, samples - block * _BLOCK)
        uniform = omega.uniform("direction", step * blocks + block, x, shape=(count, *x.shape[1:]))
        up = uniform < 0.5
        ends = torch.stack(
            [torch.where(up, upper[:, None], lower[:, None]), torch.where(up, lower[:, None], upper[:, None])], 2
        )
        scores = []
        for part in torch.split(ends.flatten(1, 2), max(_AT_ONCE // len(x), 1), 1):
            scores.append(_scores(target, part, loss, call, queries + 1 if fresh else None))
            queries += part.shape[1]
        pairs = torch.cat(scores, 1).view(len(x), count, 2)
        difference = (pairs[..., 0] - pairs[..., 1]).view(len(x), count, 1, 1, 1)
        total += (difference * torch.where(up, 1.0, -1.0)).sum(1)
    if fresh:
        target.calls = call + 1 + queries
    return total / samples / (upper - lower)


def _scores(target: Target, queries: Tensor, loss: PointLoss, call: int, fresh: int | None) -> Tensor:
    """Losses of queries, shape (B, m, C, H, W) to (B, m); if ``fresh``, query q on draws of call + fresh + q."""
    count, per_image = queries.shape[:2]
    part = target.select(torch.arange(count).repeat_interleave(per_image))
    part.calls = call
    if fresh is not None and not part.fixed:
        draws = [draw + (fresh + i % per_image) * part.draws for i, draw in enumerate(part.omega.draws)]
        part.omega = replace(part.omega, draws=tuple(draws))
    losses = part.evaluate(queries.flatten(0, 1), loss).loss
    target.evaluations += part.evaluations
    return losses.view(count, per_image)
