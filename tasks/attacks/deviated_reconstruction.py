r"""Deviated reconstruction: Auto-PGD on the classifier's loss and on how far the reverse process strays.

Kang et al., "DiffAttack: evasion attacks against diffusion-based adversarial purification", NeurIPS 2023, arXiv
2311.16124, sections 3.2 and 3.4.

.. math:: L = L_{cls} + \lambda L_{dev}, \qquad L_{dev} = \frac1m \sum_{i\in S} \mathrm{mean}\,(z_i - z_i^{fwd})^2

:math:`L_{dev}` compares states of the reverse process with those of the forward process at the same levels; formula,
gradient and memory are those of :func:`defense.gradients.purify_and_deviate`. Its terms at early states reach the
image through few steps. Over the draws both losses are means, and their sum is what Auto-PGD maximises, in its steps,
its checkpoints and its choice of the best iterate. The paper's settings: lambda = 1, 100 steps from 2 eps, 20 draws,
a run with the cross-entropy and one with DLR.

Choices of ours, where the paper leaves one:

* d is the mean squared difference over pixels, in diffusion units ([-1, 1] images);
* S is a third of the levels, as in the paper, but fixed ones instead of uniform samples: of each round the last state
  and every third before it, so that two evaluations of an image differ by their draws alone. Every round of a
  purifier counts, compared with the forward process from what that round noised. The paper has the weight 1/m and an
  average; this is the average;
* the forward state has at every level the noise with which the round began, so that they are one path and
  :math:`L_{dev}` is 0 where the reverse process begins;
* runs of different losses are compared by one more evaluation of each, by the first loss plus lambda L_dev.

The paper's figures owe as much to the exact gradient as to this loss: compare with ``apgd`` at equal settings.
"""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from defense.errors import InvalidInput
from defense.gradients import GradientMode
from defense.purifiers import PurifierConfig
from defense.randomness import Omega
from tasks.attacks.apgd import ascend, sphere_start
from tasks.attacks.base import ATTACKS, AttackConfig, AttackResult
from tasks.attacks.best import Best
from tasks.attacks.losses import LossName, PointLoss, check_classes, point_loss
from tasks.attacks.region import Region
from tasks.attacks.target import Evaluation, Oracle, Target, strongest

__all__ = ["DeviatedReconstructionConfig", "Deviating"]


@ATTACKS.register("deviated-reconstruction")
class DeviatedReconstructionConfig(AttackConfig):
    """Auto-PGD with the deviated-reconstruction loss; on the bare classifier, which has no states, it is Auto-PGD.

    Arguments:
        steps: Gradient steps of each run.
        losses: The classifier's loss of each run: ``ce``, ``margin`` or ``dlr``.
        lam: lambda, the weight of L_dev.
        rho: Share of rising steps up to which the step size is halved.

    Raises:
        InvalidInput: ``gradient: bpda``, which does not go through the states.
    """

    keeps_best: ClassVar[bool] = True
    attack: Literal["deviated-reconstruction"] = "deviated-reconstruction"
    steps: int = Field(default=100, ge=1)
    losses: tuple[LossName, ...] = Field(default=("ce", "dlr"), min_length=1)
    lam: float = Field(default=1.0, ge=0)
    rho: float = Field(default=0.75, gt=0, le=1)
    gradient: str | None = "exact"
    eot: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _through_the_states(self) -> Self:
        if self.gradient is not None and GradientMode.parse(self.gradient).name == "bpda":
            raise InvalidInput(
                "deviated-reconstruction differentiates the states of a purification, which bpda leaves out: use "
                "`gradient: exact` or surrogate(K)."
            )
        return self

    def check(self, purifier: PurifierConfig) -> None:
        """See :class:`AttackConfig`."""
        if not self.static and not purifier.diffuses:
            raise InvalidInput(
                f"deviated-reconstruction compares the reverse process with the forward one; purifier "
                f"{purifier.label()!r} has none. Use apgd."
            )

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        check_classes("losses", self.losses, classes)

    def method(self) -> str:
        """``deviated-reconstruction-100 linf ce,dlr``, with lambda where it is not 1."""
        parts = [f"{self.attack}-{self.steps}", self.norm, ",".join(self.losses)]
        if self.lam != 1:
            parts.append(f"lambda {self.lam:g}")
        return " ".join(parts)

    @property
    def evaluations(self) -> int:
        """One per iterate, the starts included, and one more to compare several runs."""
        runs = len(self.losses)
        return (self.steps + 1) * runs + (runs if runs > 1 else 0)

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`. Starts are those of ``apgd``, one for each run."""
        region = Region(x, self.norm, self.eps)
        oracle: Oracle = target if target.purifier is None else Deviating(target, self.lam)
        candidates = []
        for number, name in enumerate(self.losses):
            best = Best(x)
            start = sphere_start(region, omega, number)
            ascend(oracle, region, start, point_loss(name), self.steps, self.rho, best)
            candidates.append((best.images, best.loss))
        return AttackResult(*strongest(oracle, candidates, point_loss(self.losses[0])))


class Deviating:
    """The target with L_dev added to its loss.

    Arguments:
        target: A defence whose purifier has a forward process.
        lam: lambda.
    """

    def __init__(self, target: Target, lam: float) -> None:
        self.target = target
        self.lam = lam

    def evaluate(self, x: Tensor, loss: PointLoss) -> Evaluation:
        """Total loss and logits without a gradient."""
        with torch.no_grad():
            value, logits = self._total(x, loss)
            return Evaluation(value, logits)

    def differentiate(self, x: Tensor, loss: PointLoss) -> Evaluation:
        """Total loss, logits and its gradient."""
        at = x.detach().requires_grad_()
        value, logits = self._total(at, loss)
        (gradient,) = torch.autograd.grad(value.sum(), at)
        return Evaluation(value.detach(), logits.detach(), gradient)

    def _total(self, x: Tensor, loss: PointLoss) -> tuple[Tensor, Tensor]:
        logits, deviation = self.target.deviating_logits(x)
        return self.target.over_draws(logits, loss) + self.lam * deviation.mean(1), logits
