r"""Auto-PGD: projected gradient ascent with momentum whose step size follows the progress of the loss.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
arXiv 2003.01690, section 3 and algorithm 1.

.. math:: z = \Pi(x_k + a\, \mathrm{dir}\nabla L(x_k)), \qquad
          x_{k+1} = \Pi(x_k + 0.75\,(z - x_k) + 0.25\,(x_k - x_{k-1}))

(the first step has no momentum), with :math:`a = 2\varepsilon` at first. At the checkpoints :math:`w_j = p_j n`,

.. math:: p_0 = 0, \qquad p_1 = 0.22, \qquad p_{j+1} = p_j + \max(p_j - p_{j-1} - 0.03,\ 0.06),

the step size of an image is halved, and the image goes back to its best iterate, if since the last checkpoint

1. the loss rose in at most :math:`\rho` of the steps, or
2. neither the step size was halved at the last checkpoint nor has the best loss risen since.

Where paper and reference implementation differ, this is the latter: the checkpoints are whole numbers,
``floor(0.22 n)`` steps first and then ``floor(0.03 n)`` fewer each time, at least ``floor(0.06 n)``; and the loss of
the very first step counts as risen if it is positive, not if it exceeds that of the start.

In the l_1 ball steps are sparse and follow other rules: :mod:`tasks.attacks.apgd_l1`. ``band`` keeps the perturbation
in a disc of spatial frequencies (:mod:`tasks.attacks.band`): dir is then that of the gradient's part in the disc.

Two things are not as there. With several draws L is their mean, in the step, in the checkpoints and in the record of
the best iterate; the reference has the mean in the step alone, and takes the loss of its last draw for the rest. And
success is not looked at: all images are attacked to the end, those included whose clean answer is wrong, and of all
iterates of all runs the one of highest loss is returned.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks.apgd_l1 import BestIterate, budgets, sparse_ascend
from tasks.attacks.band import BandSpace
from tasks.attacks.base import ATTACKS, AttackResult
from tasks.attacks.best import Best
from tasks.attacks.losses import PointLoss, check_classes, point_loss
from tasks.attacks.region import Norm, Region
from tasks.attacks.shortlist import AscentConfig
from tasks.attacks.target import Oracle, Target
from tasks.attacks.targeted import check_targets, towards, wrong_classes

__all__ = ["APGDConfig", "ascend", "checkpoints", "sphere_start"]

_AIMED = 0.75
_TARGETS = 9


@ATTACKS.register("apgd")
class APGDConfig(AscentConfig):
    """Auto-PGD.

    Arguments:
        steps: Gradient steps n of each run.
        loss: ``ce``, ``margin``, ``dlr`` or ``dlr-targeted`` (see :mod:`tasks.attacks.losses`).
        restarts: Runs from different random starts, for each target class if there are any.
        rho: Share of rising steps up to which the step size is halved; without meaning for l_1.
        larger_eps: For l_1, begin in larger balls, see :mod:`tasks.attacks.apgd_l1`. By default true there, and None
            with other norms.
        targets: Number of target classes of ``dlr-targeted``, one run for each: the wrong classes of highest clean
            logits (means over the draws), which are those ranked 2nd, 3rd, ... where the clean answer is right. By
            default 9; None with other losses.
        stop_on_success: Do not attack images in further runs that an earlier one has broken. For defences without
            randomness, where it changes no verdict; refused elsewhere.
        band: Largest spatial frequency of the perturbation, in periods an image; None for any.

    Raises:
        InvalidInput: ``band`` in the l_1 ball, whose steps are sparse; ``targets`` with another loss; ``larger_eps``
            with another norm, or with fewer than 5 steps; at run time, more targets than wrong classes.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    keeps_best: ClassVar[bool] = True
    # Ids are as before there was a choice.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {**AscentConfig.unsaid, "band": (None,)}
    attack: Literal["apgd"] = "apgd"
    steps: int = Field(default=100, ge=1)
    loss: Literal["ce", "margin", "dlr", "dlr-targeted"] = "ce"
    restarts: int = Field(default=1, ge=1)
    rho: float = Field(default=0.75, gt=0, le=1)
    targets: int | None = Field(default=None, ge=1)
    larger_eps: bool | None = None
    stop_on_success: bool = False
    band: float | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _targets(cls, data: Any) -> Any:
        """One spelling: a number of targets exactly where the loss has any, larger budgets where the norm has."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if data.get("norm") == "l1":
            if data.get("larger_eps") is None:
                data["larger_eps"] = True
        elif data.get("larger_eps") is not None:
            raise InvalidInput("`larger_eps` is for `norm: l1`; in other balls the attack begins with the budget.")
        if data.get("loss") == "dlr-targeted":
            if data.get("targets") is None:
                data["targets"] = _TARGETS
        elif data.get("targets") is not None:
            raise InvalidInput("`targets` is for `loss: dlr-targeted`; the other losses have no target class.")
        return data

    @model_validator(mode="after")
    def _band_fits(self) -> Self:
        if self.band is not None and self.norm == "l1":
            raise InvalidInput(
                "`band` is for `norm: linf` and `l2`: steps in the l_1 ball are sparse, and no sparse "
                "perturbation is in a band.",
                keys=("band",),
            )
        return self

    @model_validator(mode="after")
    def _every_ball_has_steps(self) -> Self:
        if self.larger_eps and budgets(self.steps)[-1][1] < 1:
            raise InvalidInput(
                f"{self.steps} steps leave none for the budget itself after those in larger balls: write at least "
                "5 steps, or `larger_eps: false`."
            )
        return self

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        check_classes("loss", self.loss, classes)
        if self.targets is not None:
            check_targets("targets", self.targets, classes)

    def method(self) -> str:
        """``apgd-100 linf``, with the loss where it is not the cross-entropy."""
        parts = [f"apgd-{self.steps}", self.norm]
        if self.loss != "ce":
            parts.append(self.loss)
        if self.larger_eps is False:
            parts.append("one ball")
        if self.targets is not None:
            parts.append(f"{self.targets} targets")
        if self.restarts > 1:
            parts.append(f"x{self.restarts}")
        if self.band is not None:
            parts.append(f"band {self.band:g}")
        return " ".join(parts)

    @property
    def evaluations(self) -> int:
        """One per iterate, the starts included, and one of the clean image where targets are ranked."""
        starts = len(budgets(self.steps)) if self.larger_eps else 1
        return (self.steps + starts) * self.runs + (self.targets is not None) + self.reselections

    @property
    def runs(self) -> int:
        """See :class:`AscentConfig`."""
        return self.restarts * (self.targets or 1)

    @property
    def stops(self) -> bool:
        """See :class:`AttackConfig`."""
        return self.stop_on_success

    def run_from(self, target: Target, x: Tensor, omega: Omega, start: Tensor | None) -> AttackResult:
        """See :class:`AscentConfig`. A run that goes on from other images begins with steps of eps / 2.

        So does the first of each target class; its restarts start anew.

        Starts have keys ``("start", r)``, r the number of the run: target class by target class, restart by restart.
        """
        best = self.keeper(x)
        left = torch.arange(len(x), device=x.device)
        for number, loss in enumerate(loss for loss in self._losses(target, x) for _ in range(self.restarts)):
            at = start if number % self.restarts == 0 else None
            if number and self.stop_on_success:
                left = target.unbroken(best.images)
            if len(left) == len(x):
                self._run(target, x, omega, number, loss(left), best, at)
            elif len(left):
                best_of_run, part = Best(x[left]), omega.select(left.tolist())
                begun = None if at is None else at[left]
                self._run(target.select(left), x[left], part, number, loss(left), best_of_run, begun)
                best.see_at(left, best_of_run)
            best.end_run()
        return self.result(target, best, point_loss("margin" if self.loss == "dlr-targeted" else self.loss))

    def _run(
        self, target: Target, x: Tensor, omega: Omega, number: int, loss: PointLoss, best: Best, start: Tensor | None
    ) -> None:
        if self.norm == "l1":
            self._run_l1(target, x, omega, number, loss, best, start)
            return
        region = Region(x, self.norm, self.eps)
        begin = sphere_start(region, omega, number) if start is None else start
        first = None if start is None else self.eps / 2
        if self.band is None:
            ascend(target, region, begin, loss, self.steps, self.rho, best, first=first)
        else:
            space = BandSpace(region, self.band)
            ascend(target, space, space.begin(begin), loss, self.steps, self.rho, best, first=first)

    def _run_l1(
        self, target: Target, x: Tensor, omega: Omega, number: int, loss: PointLoss, best: Best, start: Tensor | None
    ) -> None:
        balls = budgets(self.steps) if self.larger_eps and start is None else [(1.0, self.steps)]
        at = sphere_start(Region(x, "l1", balls[0][0] * self.eps), omega, number) if start is None else start
        for factor, steps in balls:
            region = Region(x, "l1", factor * self.eps)
            seen_by = best if factor == 1 else None
            at = sparse_ascend(target, region, region.project(at), loss, steps, seen_by, goes_on=len(balls) > 1)

    def _losses(self, target: Target, x: Tensor) -> list[Callable[[Tensor], PointLoss]]:
        """Return the losses to maximise, of images at some positions: one, or one per rank of the target class."""
        if self.loss != "dlr-targeted":
            name = self.loss
            return [lambda left: point_loss(name)]
        assert self.targets is not None
        ranked = wrong_classes(target, x, self.targets).unbind(1)
        return [lambda left, of=of: towards(of[left]) for of in ranked]  # type: ignore[misc]


def checkpoints(steps: int) -> list[int]:
    """Return the numbers of steps after which the step size is reconsidered, up to ``steps``, ascending."""
    interval, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    stops, at = [], interval
    while at <= steps:
        stops.append(at)
        interval = max(interval - shorter, least)
        at += interval
    return stops


def sphere_start(region: Region, omega: Omega, number: int) -> Tensor:
    """The reference's random start, on the sphere: ``x + eps t / ||t||``, keys ``("start", number)``, projected.

    t is uniform on [-1, 1) in every pixel and the norm l_inf, or t is normal and the norm l_2. For l_1 it is the
    projection of ``x + t`` with normal t: inside the ball where that is larger than t.
    """
    if region.norm == "l1":
        return region.project(region.x + omega.normal("start", number, region.x))
    if region.norm == "linf":
        t = 2 * omega.uniform("start", number, region.x) - 1
        length = t.flatten(1).abs().amax(1)
    else:
        t = omega.normal("start", number, region.x)
        length = t.flatten(1).norm(dim=1)
    return region.project(region.x + region.eps * t / (length.view(-1, 1, 1, 1) + 1e-12))


def ascend(
    target: Oracle,
    region: Region | BandSpace,
    start: Tensor,
    loss: PointLoss,
    steps: int,
    rho: float,
    best: Best,
    *,
    first: float | None = None,
    at_stops: Sequence[int] | None = None,
) -> None:
    """One run from ``start``; its iterates are shown to ``best``.

    Arguments:
        target: The attacked function, or what an attack has made of it.
        region: Budget.
        start: First iterate, shape (B, C, H, W), a point of ``region``.
        loss: What is maximised.
        steps: Gradient steps n, each followed by an evaluation.
        rho: Share of rising steps up to which the step size is halved.
        best: Keeps the images of highest loss, over all runs.
        first: Size of the first step; 2 eps by default.
        at_stops: Numbers of steps after which the step size is reconsidered; by default :func:`checkpoints`.
    """
    image = region.shown(start)
    at = target.differentiate(image, loss)
    assert at.gradient is not None
    best.see(image, at.loss)
    best_iterate = BestIterate(start, at.gradient, at.loss)  # of this run alone: it is where the run goes back to
    length = 2 * region.eps if first is None else first
    size = torch.full((len(start), 1, 1, 1), length, dtype=start.dtype, device=start.device)
    current, before, gradient = start, start, at.gradient
    stops, last_stop = set(checkpoints(steps) if at_stops is None else at_stops), 0
    last_loss, rises = torch.zeros_like(at.loss), torch.zeros_like(at.loss)
    best_at_stop, halved = at.loss, torch.ones_like(at.loss, dtype=torch.bool)
    for step in range(1, steps + 1):
        aimed = region.ascend(current, gradient, size, strict=False)
        inertia = 0.0 if step == 1 else 1 - _AIMED
        moved = region.project(current + (1 - inertia) * (aimed - current) + inertia * (current - before))
        before, current = current, moved
        image = region.shown(current)
        if step == steps:
            best.see(image, target.evaluate(image, loss).loss)  # nobody will follow its gradient
            return
        at = target.differentiate(image, loss)
        assert at.gradient is not None
        gradient = at.gradient
        best.see(image, at.loss)
        best_iterate.see(current, gradient, at.loss)
        rises = rises + (at.loss > last_loss)
        last_loss = at.loss
        if step in stops:
            stalled = rises <= (step - last_stop) * rho
            halved = stalled | (~halved & (best_at_stop >= best_iterate.loss))
            best_at_stop, last_stop, rises = best_iterate.loss, step, torch.zeros_like(rises)
            back = halved.view(-1, 1, 1, 1)
            size = torch.where(back, size / 2, size)
            current, gradient = (
                torch.where(back, best_iterate.images, current),
                torch.where(back, best_iterate.gradient, gradient),
            )
