r"""Candidates of an attack, re-judged on the same fresh draws before one of them is kept.

Every call of a random defence is on draws of its own, so that an attack that keeps the iterate of highest loss keeps
one that was lucky: of n values :math:`L(x_k) + \xi_k` the largest is on average above what is true of its point, and
the more so the fewer draws each is a mean of. Here the losses on the way only make a shortlist, of the n points of
highest loss and of the last of each run. One of them is chosen on S further draws that are the same for all,

.. math:: \hat k = \arg\min_k \frac1S \sum_{s=1}^S [f(D(x_k;\omega_s)) = y],

ties by ``ties``, and its loss in the result is the one on these draws. They are the attacker's own (role
``.../reselect``), and neither those of the steps nor those of the judgement.

**Ties** are the rule on images that hardly any draw gets wrong. ``margin`` takes the higher mean margin of the
classifier. ``spread`` takes the higher :math:`\bar m / s_m`, the mean margin in units of the standard deviation over
the S draws, that is the larger share of wrong draws if margins were normal: where a draw comes out right or wrong by
a wide margin, as behind a diffusion model, the mean says little about the rare draw that does not.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks.base import AttackConfig, AttackResult
from tasks.attacks.best import Best
from tasks.attacks.losses import PointLoss, margin
from tasks.attacks.target import Target

__all__ = ["AscentConfig", "Shortlist", "Ties", "rejudged", "spread_score"]

Ties = Literal["margin", "spread"]
"""What decides between images that equally many draws get right; see above."""

_KEPT = 2
"""Points of highest loss on a shortlist."""

_LEAST_SPREAD = 1e-3
"""Of margins, in units of the logits: below it draws do not differ."""


class AscentConfig(AttackConfig):
    """A gradient attack whose result can be chosen on fresh draws, and that can go on from another attack's images.

    Arguments:
        reselect: Draws S on which a shortlist is re-judged; None for the point of highest loss on the way.
        warm: Start at the worst image of the rungs before, for rungs of ``strongest``.
        ties: What decides there between points that equally many draws get right, ``margin`` or ``spread``.

    Raises:
        InvalidInput: ``reselect`` where there are no draws, or where the attacker knows those of the judgement.
    """

    # Ids are as before there was a choice.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "reselect": (None,),
        "warm": (False,),
        "ties": ("margin",),
    }
    reselect: int | None = Field(default=None, ge=1)
    warm: bool = False
    ties: Ties = "margin"

    @model_validator(mode="after")
    def _fresh_draws(self) -> Self:
        if self.reselect is not None and self.knows != "purifier":
            why = "the bare classifier has no draws" if self.static else "those of the judgement are known"
            raise InvalidInput(f"{why}: remove `reselect`, or write `knows: purifier`.", keys=("reselect",))
        if self.ties != "margin" and self.reselect is None:
            raise InvalidInput(
                "`ties` is for points that are compared on fresh draws: write `reselect` too.", keys=("ties",)
            )
        return self

    def on_bare_classifier(self) -> Self:
        """See :class:`AttackConfig`."""
        return super().on_bare_classifier().model_copy(update={"reselect": None, "ties": "margin"})

    def label(self) -> str:
        """Its name, and whether it went on from other images."""
        return f"{super().label()} warm" if self.warm else super().label()

    @property
    def runs(self) -> int:
        """Runs, each of which puts its last point on the shortlist."""
        return 1

    @property
    def reselections(self) -> int:
        """Evaluations of the shortlist, in units of ``eot`` draws, rounded up."""
        return 0 if self.reselect is None else -(-self.reselect * (_KEPT + self.runs) // self.eot)

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`.

        Raises:
            InvalidInput: It starts from other attacks' images, and there are none.
        """
        if self.warm:
            raise InvalidInput("`warm` is for rungs of `strongest`: a single attack has no images to start from.")
        return self.run_from(target, x, omega, None)

    def run_from(self, target: Target, x: Tensor, omega: Omega, start: Tensor | None) -> AttackResult:
        """Attack one batch from images of the region instead of the attack's own starts.

        Arguments:
            target: The attacked function.
            x: Clean images in [0, 1], shape (B, C, H, W).
            omega: The attack's own randomness.
            start: First iterate, shape (B, C, H, W); None for its own.
        """
        raise NotImplementedError

    def keeper(self, x: Tensor) -> Best:
        """Return what keeps the points of the runs."""
        return Best(x) if self.reselect is None else Shortlist(x)

    def result(self, target: Target, best: Best, loss: PointLoss) -> AttackResult:
        """Return the point that is kept.

        Arguments:
            target: The attacked function.
            best: From :meth:`keeper`, after all runs.
            loss: The loss that is reported of a point that was chosen on fresh draws.
        """
        if self.reselect is None or not isinstance(best, Shortlist):
            return AttackResult(best.images, best.loss)
        return AttackResult(*rejudged(target, best.candidates(), loss, self.reselect, self.ties))


class Shortlist(Best):
    """The n points of highest loss so far, and the last of each run.

    Arguments:
        x: Clean images, shape (B, ...).
        kept: n.
    """

    def __init__(self, x: Tensor, kept: int = _KEPT) -> None:
        super().__init__(x)
        self._points = [x.detach()] * kept
        self._losses = torch.full((kept, len(x)), -torch.inf, device=x.device)
        self._ends: list[Tensor] = []
        self._newest = x.detach()

    def see(self, images: Tensor, loss: Tensor) -> Tensor:
        """See :class:`Best`: kept in the order of their losses."""
        better = super().see(images, loss)
        coming, its_loss = images.detach(), loss.detach()
        self._newest = coming
        for place, (old, old_loss) in enumerate(zip(list(self._points), self._losses.clone(), strict=True)):
            swap = its_loss > old_loss
            wide = swap.view(-1, *[1] * (images.dim() - 1))
            self._points[place], coming = torch.where(wide, coming, old), torch.where(wide, old, coming)
            self._losses[place], its_loss = (
                torch.where(swap, its_loss, old_loss),
                torch.where(swap, old_loss, its_loss),
            )
        return better

    def end_run(self) -> None:
        """See :class:`Best`."""
        self._ends.append(self._newest)

    def candidates(self) -> list[Tensor]:
        """Return the points, the last of each run first; places that were never filled hold the clean image."""
        return [*self._ends, *self._points]


def spread_score(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean margin over its standard deviation, by which ``spread`` decides ties, shape (B,), float64.

    Arguments:
        logits: Of S draws, shape (B, S, classes). Of a single draw the score is its margin.
        labels: True labels, shape (B,).
    """
    margins = margin(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1])).reshape(logits.shape[:2])
    wide = margins.double()
    mean: Tensor = wide.mean(1)
    return mean if wide.shape[1] == 1 else mean / wide.std(1, correction=0).clamp_min(_LEAST_SPREAD)


def rejudged(
    target: Target, candidates: list[Tensor], loss: PointLoss, draws: int, ties: Ties = "margin"
) -> tuple[Tensor, Tensor]:
    """Return for each image the candidate that is least often right on the same fresh draws.

    Arguments:
        target: The attacked function.
        candidates: Images, each of shape (B, C, H, W); the first wins ties of share and margin.
        loss: The loss that is reported.
        draws: S.
        ties: What decides between equal shares: ``margin``, of what the draws answer together, or ``spread``.

    Returns:
        Images, and their losses on these draws, shape (B,).
    """
    judge = replace(target, omega=target.omega.within("reselect"), draws=draws, fixed=True, calls=0)
    kept = kept_share = kept_margin = kept_loss = None
    for images in candidates:
        with torch.no_grad():
            logits = judge.logits(images)
        share = (logits.argmax(2) == target.labels.unsqueeze(1)).double().mean(1)
        between, value = judge.over_draws(logits, margin), judge.over_draws(logits, loss)
        if ties == "spread":
            between = spread_score(logits, target.labels)
        if kept is None or kept_share is None or kept_margin is None or kept_loss is None:
            kept, kept_share, kept_margin, kept_loss = images, share, between, value
            continue
        worse = (share < kept_share) | ((share == kept_share) & (between > kept_margin))
        kept = torch.where(worse.view(-1, *[1] * (images.dim() - 1)), images, kept)
        kept_share, kept_margin = torch.where(worse, share, kept_share), torch.where(worse, between, kept_margin)
        kept_loss = torch.where(worse, value, kept_loss)
    assert kept is not None and kept_loss is not None
    target.evaluations = judge.evaluations
    return kept.detach(), kept_loss
