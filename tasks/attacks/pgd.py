r"""Projected gradient descent.

Madry et al., "Towards deep learning models resistant to adversarial attacks", arXiv 1706.06083.

.. math:: g_{k+1} = \mu\, g_k + \frac{\nabla_x L(x_k)}{\|\nabla_x L(x_k)\|_1}, \qquad
          x_{k+1} = \Pi\left(x_k + a\, \mathrm{dir}(g_{k+1})\right)

with L the loss over the draws (:mod:`tasks.attacks.target`), dir the sign (l_inf) or the normalised gradient (l_2),
:math:`\Pi` the projection on ball and image range, and :math:`\mu` the momentum (Dong et al., arXiv 1710.06081),
without which the gradient is taken as it is. The step size rule, where none is given, is

.. math:: a = 2.5\, \varepsilon / \text{steps}

(Madry et al.'s public challenge): the end of the ball can be reached 2.5 times over. Of all iterates of all restarts,
starts included, the attack returns the one of highest loss for each image. Success is not looked at. With ``keep:
last`` it returns the last iterate without a look at it, as other libraries do, for a forward pass less.

With ``decay: linear`` the steps shrink, :math:`a_k = 2a\,(1 - (k + \tfrac12)/n)` for k = 0 ... n - 1, and are as
long together as without: noise of the gradient then moves the last iterates little. With ``decay: from-eps``

.. math:: a_k = \varepsilon\,(1 - (k + \tfrac12)/n),

however many steps there are: the first ones cross the ball and look for where to end, the last ones settle there, as
Auto-PGD's do. Where the gradient of a step is that of a few draws, many small steps go where the first ones led.

``reselect`` chooses among the best iterates and the last ones on fresh draws (:mod:`tasks.attacks.shortlist`), and
``eot_by: cosine`` spends the same draws in more steps of fewer, or fewer of more (:mod:`tasks.attacks.draws`).

``band`` keeps the perturbation within a disc of spatial frequencies (:mod:`tasks.attacks.band`).

With one step from the image itself this is FGSM (Goodfellow et al., arXiv 1412.6572), with a = eps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks.band import BandRegion
from tasks.attacks.base import ATTACKS, AttackConfig, AttackResult
from tasks.attacks.best import Best
from tasks.attacks.draws import by_cosine
from tasks.attacks.losses import LossName, PointLoss, check_classes, point_loss
from tasks.attacks.region import Region
from tasks.attacks.shortlist import AscentConfig
from tasks.attacks.target import Oracle, Target
from tasks.attacks.targeted import check_targets, towards, wrong_classes

__all__ = ["FGSMConfig", "PGDConfig"]


@ATTACKS.register("pgd")
class PGDConfig(AscentConfig):
    """PGD.

    Arguments:
        steps: Gradient steps.
        step_size: Absolute step size a, units of [0, 1] pixels; by default 2.5 eps / steps.
        random_start: Start at a uniform point of the ball instead of at the image.
        loss: ``ce``, ``margin``, ``dlr`` or ``dlr-targeted``.
        momentum: mu, 0 for none.
        keep: The iterate that is returned: the ``best`` by its loss, or the ``last``, whose loss is unknown (NaN).
        restarts: Runs from different random starts. With ``dlr-targeted`` each has a target class of its own: the
            wrong classes in the order of their clean logits.
        decay: Whether steps are of one length, or shrink to nothing: ``linear`` from 2a, or ``from-eps``.
        eot_by: Whether ``steps`` and ``eot`` are as they are ``given``, or each image has as many draws a step as the
            ``cosine`` of its gradients says, and ``(steps + 1) eot`` is what all of its draws are together at most.
        band: Largest spatial frequency of the perturbation, in periods an image; None for any.

    Raises:
        InvalidInput: Restarts or ``reselect`` with ``keep: last``; ``eot_by: cosine`` without own draws;
            ``step_size`` beside ``decay: from-eps``; at run time, more restarts of ``dlr-targeted`` than wrong
            classes.
    """

    keeps_best: ClassVar[bool] = True
    attack: Literal["pgd"] = "pgd"
    steps: int = Field(default=20, ge=1)
    step_size: float | None = Field(default=None, gt=0)
    random_start: bool = True
    loss: Literal["ce", "margin", "dlr", "dlr-targeted"] = "ce"
    momentum: float = Field(default=0.0, ge=0)
    # Ids, and random starts with them, are as before there was a choice.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **AscentConfig.unsaid,
        "keep": ("best",),
        "decay": ("none",),
        "eot_by": ("given",),
        "band": (None,),
    }
    keep: Literal["best", "last"] = "best"
    restarts: int = Field(default=1, ge=1)
    decay: Literal["none", "linear", "from-eps"] = "none"
    eot_by: Literal["given", "cosine"] = "given"
    band: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _best_of_restarts(self) -> Self:
        if self.keep == "last" and self.restarts > 1:
            raise InvalidInput(
                "restarts end in several last iterates, of which the loss chooses: write `keep: best`."
            )
        if self.keep == "last" and self.reselect is not None:
            raise InvalidInput("`keep: last` leaves nothing to choose from: remove it, or `reselect`.")
        if self.decay == "from-eps" and self.step_size is not None:
            raise InvalidInput(
                "`decay: from-eps` begins with steps of eps: remove `step_size`, or write `decay: linear`.",
                keys=("step_size",),
            )
        if self.eot_by == "cosine" and self.knows != "purifier":
            raise InvalidInput(
                "`eot_by: cosine` is for attackers who know the purifier and draw for themselves: remove it.",
                keys=("eot_by",),
            )
        return self

    def on_bare_classifier(self) -> Self:
        """See :class:`AttackConfig`."""
        return super().on_bare_classifier().model_copy(update={"eot_by": "given"})

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        check_classes("loss", self.loss, classes)
        if self.loss == "dlr-targeted":
            check_targets("restarts", self.restarts, classes)

    def method(self) -> str:
        """``pgd-20 linf``, with the loss where it is not the cross-entropy."""
        parts = [f"pgd-{self.steps}", self.norm]
        if self.loss != "ce":
            parts.append(self.loss)
        if self.restarts > 1:
            parts.append(f"x{self.restarts}")
        if self.keep == "last":
            parts.append("last")
        if self.decay != "none":
            parts.append("decaying" if self.decay == "linear" else "from eps")
        if self.band is not None:
            parts.append(f"band {self.band:g}")
        return " ".join(parts)

    def label(self) -> str:
        """See :class:`AttackConfig`; draws that the cosine chooses are not those of ``eot``."""
        name = super().label()
        return name if self.eot_by == "given" else f"{name} by cosine"

    @property
    def loss_unknown(self) -> bool:
        """See :class:`AttackConfig`."""
        return self.keep == "last"

    @property
    def evaluations(self) -> int:
        """One per iterate that is looked at, and one of the clean image where target classes are ranked."""
        looks = self.steps + (self.keep == "best")
        return looks * self.restarts + (self.loss == "dlr-targeted") + self.reselections

    @property
    def runs(self) -> int:
        """See :class:`AscentConfig`."""
        return self.restarts

    def run_from(self, target: Target, x: Tensor, omega: Omega, start: Tensor | None) -> AttackResult:
        """See :class:`AscentConfig`. The first run goes on, and each of a target class does; restarts start anew."""
        if self.eot_by == "given" or target.purifier is None:
            return self._ascend(target, x, omega, start, self.steps)
        at = self._start(Region(x, self.norm, self.eps), omega, 0) if start is None else start
        loss = point_loss("margin" if self.loss == "dlr-targeted" else self.loss)
        images, values = torch.empty_like(x), torch.empty(len(x), device=x.device)
        for part in by_cosine(target, at, loss, self.steps, self.eot):
            index = part.positions
            some = replace(target.select(index), draws=part.draws, calls=0)
            begun = None if start is None else start[index]
            result = self._ascend(some, x[index], omega.select(index.tolist()), begun, part.steps)
            images[index], values[index] = result.images, result.loss.to(values)
        target.evaluations = sum(target.tally.evaluations.values())
        return AttackResult(images, values)

    def oracle(self, target: Target) -> Oracle:
        """Return what is ascended: the target itself."""
        return target

    def _start(self, region: Region, omega: Omega, restart: int) -> Tensor:
        return region.random_start(omega, restart) if self.random_start else region.x

    def _ascend(self, target: Target, x: Tensor, omega: Omega, start: Tensor | None, steps: int) -> AttackResult:
        """All restarts, of so many steps each."""
        region = Region(x, self.norm, self.eps)
        size = 2.5 * self.eps / steps if self.step_size is None else self.step_size
        if self.decay == "from-eps":
            size = self.eps / 2
        factors = [1.0] * steps if self.decay == "none" else [2 - (2 * k + 1) / steps for k in range(steps)]
        best = self.keeper(x)
        if self.loss == "dlr-targeted":
            losses = [towards(classes) for classes in wrong_classes(target, x, self.restarts).unbind(1)]
        else:
            losses = [point_loss(self.loss)] * self.restarts
        for restart, loss in enumerate(losses):
            anew = start is None or (restart and self.loss != "dlr-targeted")
            first = self._start(region, omega, restart) if anew or start is None else start
            best_seen = best if self.keep == "best" else None
            sizes = [size * factor for factor in factors]
            path = region if self.band is None else BandRegion(region, self.band)
            if isinstance(path, BandRegion):
                first = path.begin(first)
            last = _ascend(self.oracle(target), path, first, sizes, loss, self.momentum, best_seen)
            best.end_run()
        if self.keep == "last":
            return AttackResult(last.detach(), torch.full_like(best.loss, torch.nan))
        return self.result(target, best, point_loss("margin" if self.loss == "dlr-targeted" else self.loss))


@ATTACKS.register("fgsm")
class FGSMConfig(AttackConfig):
    """FGSM: one step of size eps from the image.

    Arguments:
        loss: ``ce``, ``margin`` or ``dlr``.
    """

    keeps_best: ClassVar[bool] = True
    attack: Literal["fgsm"] = "fgsm"
    loss: LossName = "ce"

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        check_classes("loss", self.loss, classes)

    @property
    def single_step(self) -> bool:
        """Always."""
        return True

    @property
    def evaluations(self) -> int:
        """At the image and at the end of the step."""
        return 2

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`. The one step is taken even where it lowers the loss, as FGSM is defined."""
        region = Region(x, self.norm, self.eps)
        at = target.differentiate(x, point_loss(self.loss))
        assert at.gradient is not None
        images = region.ascend(x, at.gradient, self.eps)
        return AttackResult(images, target.evaluate(images, point_loss(self.loss)).loss)


def _ascend(
    target: Oracle,
    region: Region | BandRegion,
    start: Tensor,
    sizes: Sequence[float],
    loss: PointLoss,
    momentum: float,
    best: Best | None,
) -> Tensor:
    """Return the last iterate; every iterate is shown to ``best``, if there is one."""
    current, direction = start, torch.zeros_like(start)
    for size in sizes:
        at = target.differentiate(current, loss)
        assert at.gradient is not None
        if best is not None:
            best.see(current, at.loss)
        if momentum:
            norm = at.gradient.flatten(1).abs().sum(1).clamp_min(torch.finfo(start.dtype).tiny)
            direction = momentum * direction + at.gradient / norm.view(-1, *[1] * (start.dim() - 1))
        else:
            direction = at.gradient
        current = region.ascend(current, direction, size)
    if best is not None:
        best.see(current, target.evaluate(current, loss).loss)
    return current
