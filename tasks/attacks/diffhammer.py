r"""DiffHammer: gradient ascent on those draws of the defence that can be fooled together.

Wang et al., "DiffHammer: rethinking the robustness of diffusion-based adversarial purification", NeurIPS 2024,
section 3.1 and algorithm 1.

Draws of a purifier may have unshared vulnerabilities: what fools one of them protects another. Their mean gradient,
that of EOT, then vanishes while each of them can be fooled. Whether draw i belongs to the largest set that one
perturbation fools is a hidden variable, found by EM. With :math:`L_i`, :math:`g_i` loss and gradient of draw i,

.. math:: \text{E:}\quad \Delta = \arg\max \sum_i \sigma(L_i + \Delta^\top g_i), \qquad
                         q_i = \sigma(L_i + \Delta^\top g_i) \\
          \text{M:}\quad g = \sum_i q_i\, g_i \Big/ \sum_i q_i, \qquad
                         \bar g_t = t^{-a} g + (1 - t^{-a})\, \bar g_{t-1}

(equations 9 and 10 and algorithm 1 there; stepwise EM, a = 0.5), and an off-the-shelf ascent follows
:math:`\bar g_t`: Auto-PGD, as in the paper, or PGD. Where all draws are fooled together the q are equal, and this is
EOT.

**Grafting** (section 3.1.2). The gradient of one draw through the purifier is the cost. With ``graft`` both steps see
the gradients at the purified images, and their weighted sum goes back through a single draw, that whose own step
would fool most (equation 11). Lost is what the Jacobians of the draws have apart: the paper measures up to 3.5 points
of average robust accuracy. It is an option here; by default every draw has its own gradient.

Choices of ours, where the paper leaves one or its code does otherwise (those of the E-step:
:mod:`tasks.attacks.selection`):

* The sum over q normalises, as in the code; algorithm 1 divides by the number of draws. For one step it is the same,
  in the stepwise mean it keeps a step with few promising draws from being forgotten.
* What the ascent sees as its loss, in Auto-PGD's checkpoints and in the choice of the best iterate, is the mean of
  the method's own objective at the image, in units of the loss:
  :math:`\sigma^{-1}\big(\tfrac1K\sum_i \sigma(L_i)\big)`, which of a single draw is :math:`L_1`. The mean loss would
  undo the selection: where vulnerabilities are unshared it stays as it was while half of the draws are fooled. The
  paper's figure is the share of draws that the best image fooled: ``keep: most-fooled``, the default, returns it, by

  .. math:: \frac1K \sum_i [\text{draw } i \text{ is fooled}] + \frac1K \cdot \frac1K\sum_i \sigma(m_i)

  with the margins :math:`m_i`: by the number of fooled draws, equal numbers by the margins, whatever the loss of the
  restart is. A cross-entropy beside a margin would be the larger one of two images that fool no draw.
* Losses differ by restart, as in the paper, by default margin, cross-entropy and DLR. Their runs are compared by one
  more evaluation of each, by the first loss; with ``reselect`` on the same draws, as shares of right answers.
* Only those images take part in further restarts of which no iterate has fooled more than half of its draws, as in
  the paper; with ``restart_up_to: null`` all do. (A restart whose luckiest iterate replaces one of an earlier restart
  is on average no stronger: more restarts choose among more lucky ones.)
* Auto-PGD's checkpoints are at shares of the steps, as in its paper and the code (:func:`shares`). The distances that
  its package rounds are 1 from the third checkpoint on where there are 15 steps, so that steps are halved too soon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks import apgd
from tasks.attacks.base import ATTACKS, AttackResult
from tasks.attacks.best import Best
from tasks.attacks.losses import LossName, PointLoss, check_classes, margin, point_loss
from tasks.attacks.region import Region
from tasks.attacks.selection import select, select_as_in_code, sigmoid_mean, steepest, weighted
from tasks.attacks.shortlist import AscentConfig, Shortlist, rejudged
from tasks.attacks.target import Evaluation, Oracle, Target, strongest

__all__ = ["DiffHammerConfig", "shares"]

_RHO = 0.75


@ATTACKS.register("diffhammer")
class DiffHammerConfig(AscentConfig):
    """DiffHammer.

    Arguments:
        steps: Gradient steps of each restart.
        losses: The loss of each restart: ``ce``, ``margin`` or ``dlr``.
        ascent: What follows the gradient: ``apgd``, or ``pgd`` with steps of 2.5 eps / steps. Each starts as the
            attack of that name does.
        averaging: a, the power of the stepwise mean; 0 for none.
        reach: Size of the move of the E-step, in units of eps.
        graft: Take the weighted gradient back through one draw instead of all.
        weighing: The E-step: ``fitted`` as in the paper, or that of the authors' ``code``.
        keep: The iterate that is returned: that of the ``highest-loss``, or of the ``most-fooled`` draws.
        restart_up_to: Share of fooled draws above which an image takes part in no further restart; None for none.
            0.5 by default where such draws are counted.
        checkpoints: Auto-PGD's: at ``shares`` of the steps, or as its ``package`` has them.

    Raises:
        InvalidInput: ``attacked`` is not ``mean-loss``: the method weighs the losses of draws; ``restart_up_to``
            without ``keep: most-fooled``, which counts them.
    """

    keeps_best: ClassVar[bool] = True
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **AscentConfig.unsaid,
        "weighing": ("fitted",),
        "keep": ("highest-loss",),
        "restart_up_to": (None,),
        "checkpoints": ("package",),
    }
    attack: Literal["diffhammer"] = "diffhammer"
    steps: int = Field(default=50, ge=1)
    losses: tuple[LossName, ...] = Field(default=("margin", "ce", "dlr"), min_length=1)
    ascent: Literal["apgd", "pgd"] = "apgd"
    averaging: float = Field(default=0.5, ge=0)
    reach: float = Field(default=1.0, gt=0)
    graft: bool = False
    weighing: Literal["fitted", "code"] = "code"
    keep: Literal["highest-loss", "most-fooled"] = "most-fooled"
    restart_up_to: float | None = Field(default=0.5, ge=0, lt=1)
    checkpoints: Literal["shares", "package"] = "shares"
    gradient: str | None = "exact"
    eot: int = Field(default=10, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _what_counts(cls, data: Any) -> Any:
        """Where the highest loss is kept nobody counts fooled draws, and all images take part in all restarts."""
        if isinstance(data, dict) and data.get("keep") == "highest-loss" and "restart_up_to" not in data:
            return {**data, "restart_up_to": None}
        return data

    @model_validator(mode="after")
    def _weighs_losses(self) -> Self:
        if self.attacked != "mean-loss":
            raise InvalidInput(
                f"diffhammer weighs the loss of each draw; `attacked: {self.attacked}` has one loss for all of them. "
                "Remove it, or use apgd or pgd."
            )
        if self.restart_up_to is not None and self.keep != "most-fooled":
            raise InvalidInput(
                "`restart_up_to` is a share of fooled draws, which `keep: most-fooled` counts: write that too.",
                keys=("restart_up_to",),
            )
        return self

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        check_classes("losses", self.losses, classes)

    def method(self) -> str:
        """``diffhammer-50x3 linf``, with what is not the default."""
        parts = [f"diffhammer-{self.steps}x{len(self.losses)}", self.norm]
        if self.losses != type(self).model_fields["losses"].default:
            parts.append(",".join(self.losses))
        if self.ascent != "apgd":
            parts.append(self.ascent)
        if self.graft:
            parts.append("grafted")
        if self.weighing != "code":
            parts.append("fitted weights")
        if self.keep != "most-fooled":
            parts.append("highest loss")
        return " ".join(parts)

    @property
    def evaluations(self) -> int:
        """One per iterate, the starts included, and one more to compare several restarts.

        The one draw of each gradient through which a grafted one goes is counted, rounded up.
        """
        restarts = len(self.losses)
        grafted = math.ceil(self.steps * restarts / self.eot) if self.graft else 0
        compared = restarts if restarts > 1 and self.reselect is None and self.keep == "highest-loss" else 0
        return (self.steps + 1) * restarts + compared + grafted + self.reselections

    @property
    def runs(self) -> int:
        """See :class:`AscentConfig`. Numbers of fooled draws are an order of all restarts, losses are none."""
        return len(self.losses) if self.keep == "most-fooled" else 1

    @property
    def reselections(self) -> int:
        """See :class:`AscentConfig`: where losses are of different kinds, each restart has a shortlist of its own."""
        return super().reselections * (1 if self.keep == "most-fooled" else len(self.losses))

    def run_from(self, target: Target, x: Tensor, omega: Omega, start: Tensor | None) -> AttackResult:
        """See :class:`AscentConfig`. Its own starts are those of the attack ``ascent``, one for each restart."""
        losses = [point_loss(name) for name in self.losses]
        if self.keep == "most-fooled":
            return self._most_fooled(target, x, omega, start, losses)
        found = list[Best]()
        for restart, loss in enumerate(losses):
            best = self.keeper(x)
            oracle = self._run(target, x, omega, start, restart, loss, best)
            best.end_run()
            found.append(best)
        if self.reselect is not None:
            candidates = [images for best in found if isinstance(best, Shortlist) for images in best.candidates()]
            return AttackResult(*rejudged(target, candidates, losses[0], self.reselect, self.ties))
        return AttackResult(*strongest(oracle, [(best.images, best.loss) for best in found], losses[0]))

    def _most_fooled(
        self, target: Target, x: Tensor, omega: Omega, start: Tensor | None, losses: list[PointLoss]
    ) -> AttackResult:
        """All restarts share what they keep, and each takes the images that are left."""
        best, left = self.keeper(x), torch.arange(len(x), device=x.device)
        for restart, loss in enumerate(losses):
            if restart and self.restart_up_to is not None:
                fooled = (best.loss.double() * target.draws).floor() / target.draws
                left = (fooled <= self.restart_up_to).nonzero().flatten()
                if not len(left):
                    break
            if len(left) == len(x):
                self._run(target, x, omega, start, restart, loss, best)
            else:
                some, begun = Best(x[left]), None if start is None else start[left]
                part = target.select(left)
                self._run(part, x[left], omega.select(left.tolist()), begun, restart, loss, some)
                best.see_at(left, some)
                target.calls = part.calls  # the next restart has fresh draws, whoever took part in this one
            best.end_run()
        target.evaluations = sum(target.tally.evaluations.values())
        return self.result(target, best, losses[0])

    def _run(
        self,
        target: Target,
        x: Tensor,
        omega: Omega,
        start: Tensor | None,
        restart: int,
        loss: PointLoss,
        best: Best,
    ) -> _Selective:
        """One restart, whose points are shown to ``best``."""
        region = Region(x, self.norm, self.eps)
        oracle = _Selective(target, region, self, [point_loss(name) for name in self.losses])
        if self.keep == "most-fooled":
            best = _ByFooled(best, oracle)
        stops = shares(self.steps) if self.checkpoints == "shares" else None
        if self.ascent == "pgd":
            at = region.random_start(omega, restart) if start is None else start
            _ascend(oracle, region, at, loss, self.steps, best)
        elif start is None:
            at = apgd.sphere_start(region, omega, restart)
            apgd.ascend(oracle, region, at, loss, self.steps, _RHO, best, at_stops=stops)
        else:
            apgd.ascend(oracle, region, start, loss, self.steps, _RHO, best, first=self.eps / 2, at_stops=stops)
        return oracle


def shares(steps: int) -> list[int]:
    r"""Return the numbers of steps at Auto-PGD's checkpoints as its paper and DiffHammer's code have them.

    They are :math:`\lfloor p_j n \rfloor` with :math:`p_1 = 0.22` and the p of :mod:`tasks.attacks.apgd`. The package
    rounds the distances between them instead, up to 1: of 15 steps it reconsiders after 3, 5 and then each one.
    """
    last, at, stops = 0.0, 0.22, set[int]()
    while at < 1:
        stops.add(int(at * steps + 1e-9))
        last, at = at, at + max(at - last - 0.03, 0.06)
    return sorted(stops - {0})


class _Selective:
    """The target with the selective gradient in place of the mean one; one for each restart, for it remembers."""

    def __init__(self, target: Target, region: Region, config: DiffHammerConfig, losses: list[PointLoss]) -> None:
        self.target = target
        self.region = region
        self.averaging = config.averaging
        self.size = config.reach * region.eps
        self.graft = config.graft and target.purifier is not None
        self.losses = losses
        self.steps = 0
        self.mean: Tensor | None = None
        self.fooled = torch.empty(0)
        self.coded = config.weighing == "code"

    def evaluate(self, x: Tensor, loss: PointLoss) -> Evaluation:
        """Sigmoid mean of the losses over the draws, and their logits."""
        with torch.no_grad():
            logits = self.target.logits(x)
            draws = logits.shape[1]
            losses = loss(logits.flatten(0, 1), self.target.labels.repeat_interleave(draws))
            return Evaluation(self._value(losses.reshape(-1, draws), logits), logits)

    def differentiate(self, x: Tensor, loss: PointLoss) -> Evaluation:
        """As :meth:`evaluate`, with the stepwise mean of the selective gradients."""
        at = self.target.per_draw(x, loss, through=not self.graft)
        if self.steps == 0:
            for other in self.losses:  # one that needs more classes says so now, not in the last restart
                other(at.logits[:, 0], self.target.labels)
        if self.coded:
            weights, chosen = select_as_in_code(at.losses, at.gradients, self.region.norm, self.size)
        elif self.graft:
            weights, chosen = select(at.losses, at.gradients, lambda g: self.size * steepest(g, self.region.norm))
        else:
            weights, chosen = select(at.losses, at.gradients, lambda g: self.region.ascend(x, g, self.size) - x)
        gradient = weighted(weights, at.gradients)
        if self.graft:
            gradient = self.target.pull_back(x, at.first + chosen, gradient)
        self.steps += 1
        share: float = float(self.steps) ** -self.averaging
        self.mean = gradient if self.mean is None else share * gradient + (1 - share) * self.mean
        return Evaluation(self._value(at.losses, at.logits), at.logits, self.mean)

    def _value(self, losses: Tensor, logits: Tensor) -> Tensor:
        """What the ascent takes for its loss, of losses of shape (B, K) and logits of shape (B, K, classes)."""
        fooled = (logits.argmax(2) != self.target.labels.unsqueeze(1)).double().mean(1)
        # Below one draw, whatever the rounding: the order is by draws first.
        draws = losses.shape[1]
        margins = margin(logits.flatten(0, 1), self.target.labels.repeat_interleave(draws)).reshape(-1, draws)
        rest = margins.double().sigmoid().mean(1) * (0.999 / draws)
        self.fooled = (fooled + rest).to(losses.dtype)
        return sigmoid_mean(losses)


class _ByFooled(Best):
    """Shows points to another by the draws that they fooled, and not by their loss."""

    def __init__(self, best: Best, oracle: _Selective) -> None:
        self.best, self.oracle = best, oracle

    def see(self, images: Tensor, loss: Tensor) -> Tensor:
        """See :class:`Best`: of the point that the oracle was asked about last."""
        return self.best.see(images, self.oracle.fooled)


def _ascend(oracle: Oracle, region: Region, start: Tensor, loss: PointLoss, steps: int, best: Best) -> None:
    """PGD's steps."""
    current = start
    for _ in range(steps):
        at = oracle.differentiate(current, loss)
        assert at.gradient is not None
        best.see(current, at.loss)
        current = region.ascend(current, at.gradient, 2.5 * region.eps / steps)
    best.see(current, oracle.evaluate(current, loss).loss)
