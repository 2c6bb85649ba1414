r"""The ladder: attacks of growing knowledge, and for each image the one that hurts most.

Blind, through the identity (BPDA), through a surrogate, through the exact gradient with EOT, by scores alone: who
knows the purifier can do all of it, so what counts is the minimum for each image (Kassis et al., arXiv 2411.16598;
Carlini et al., arXiv 1902.06705, section 5).

Every rung is an attack stage like any other, and shared with the cells that use the same attack. Which rung's image
is submitted is decided on draws of the attacker's own,

.. math:: a_i = \arg\min_a \frac1S \sum_{s=1}^S [f(D(x_{ai};\omega_s)) = y_i],

ties by the higher mean margin loss, or by ``ties``; the same S draws for all rungs. The rows then judge that one
image on draws that nobody has chosen by: the minimum over rungs of judged accuracies would be too low by the luck of
the draws.

``skip`` leaves images alone that an earlier rung has broken, i.e. none of whose S draws was right. Where the defence
is deterministic that changes no figure. Where it is not, an image that is right with probability p is passed over
with probability :math:`(1-p)^S`, and a stronger rung might have taken the p that is left: for S = 10 no more than
0.26 of an image at 95 % confidence. Rows mark the images that were skipped.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor

from defense.errors import InvalidInput, inside
from defense.gradients import GRADIENT_MODES, GradientMode
from defense.purifiers import PurifierConfig
from tasks.attacks.base import ATTACKS, AttackConfig, AttackResult
from tasks.attacks.budgets import format_eps
from tasks.attacks.derived import DerivedAttackConfig, Given
from tasks.attacks.losses import margin
from tasks.attacks.region import Norm
from tasks.attacks.shortlist import Ties, spread_score
from tasks.attacks.target import Target

__all__ = ["LadderConfig"]

_RUNGS = ("blind", "bpda", "surrogate(3)", "exact", "black-box")


@ATTACKS.register("ladder")
class LadderConfig(DerivedAttackConfig):
    """Several attacks, of which each image gets the worst.

    Arguments:
        rungs: Gradient modes, each of which stands for PGD with this gradient; ``black-box``, the Square attack; or
            attacks with their own settings. They inherit norm and eps.
        steps: PGD steps of the rungs that are named by a mode.
        loss: Their loss.
        eot: Draws per evaluation of the named rungs that know the purifier.
        queries: Queries of ``black-box``.
        select: Draws S on which the rungs are compared; one where the defence is deterministic.
        skip: Do not attack images further that are right on none of the S draws.
        ties: What decides between rungs that equally many draws get right, ``margin`` or ``spread``
            (:mod:`tasks.attacks.shortlist`). It is the loss of the rows.

    Raises:
        InvalidInput: No rung, an unknown one, or one with another norm or eps.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    # Ids are as before there was a choice.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"ties": ("margin",)}
    hands_down: ClassVar[Mapping[str, tuple[str, ...]]] = {"rungs": ("norm", "eps", "unbounded")}
    attack: Literal["ladder"] = "ladder"
    rungs: tuple[SerializeAsAny[AttackConfig], ...] = _RUNGS  # type: ignore[assignment]  # entries, read as such
    steps: int = Field(default=20, ge=1)
    loss: Literal["ce", "margin", "dlr"] = "ce"
    eot: int = Field(default=10, ge=1)
    queries: int = Field(default=500, ge=1)
    select: int = Field(default=10, ge=1)
    skip: bool = False
    ties: Ties = "margin"

    @classmethod
    def inner_entry(cls, field: str, entry: Any, fields: Mapping[str, Any]) -> Any:
        """Return a rung that is named by its gradient, written out; the others as they are."""
        if isinstance(entry, AttackConfig | dict):
            name = entry.attack if isinstance(entry, AttackConfig) else entry.get("attack")
            if name in ATTACKS.names() and issubclass(ATTACKS.get(str(name)), DerivedAttackConfig):
                raise InvalidInput(f"{name!r} is itself made of other attacks; name those.")
            return entry
        settings = {
            key: fields.get(key, cls.model_fields[key].default) for key in ("steps", "loss", "eot", "queries")
        }
        if entry == "black-box":
            return {"attack": "square", "knows": "purifier", "eot": settings["eot"], "queries": settings["queries"]}
        if not isinstance(entry, str):
            raise InvalidInput(f"{entry!r} is neither a gradient mode nor a mapping with the key `attack`.")
        try:
            blind = GradientMode.parse(entry).name == "blind"
        except InvalidInput as error:
            known = ", ".join(cls.short_names())
            raise InvalidInput(f"{entry!r} is none of {known}, nor a mapping with the key `attack`.") from error
        pgd = {"attack": "pgd", "gradient": entry, "steps": settings["steps"], "loss": settings["loss"]}
        return pgd if blind else {**pgd, "eot": settings["eot"]}

    @classmethod
    def short_names(cls) -> tuple[str, ...]:
        """Return the names that stand for rungs, with their parameters as in messages."""
        return (*GRADIENT_MODES, "black-box")

    @model_validator(mode="before")
    @classmethod
    def _knows_the_purifier(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        rungs = data["rungs"]
        if not isinstance(rungs, tuple) or not rungs:
            raise InvalidInput(f"rungs is a list of attacks or of {', '.join(cls.short_names())}, not {rungs!r}.")
        return {"knows": "purifier", **data}

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        for place, rung in enumerate(self.rungs):
            if (rung.norm, rung.eps) != (self.norm, self.eps):
                raise InvalidInput(
                    f"{rung.label()} has {rung.norm} eps {format_eps(rung.eps)}, the ladder {self.norm} eps "
                    f"{format_eps(self.eps)}; minima over images compare attacks of one budget.",
                    keys=("rungs", place),
                )
        for place, rung in enumerate(self.rungs):
            if rung.parameter("warm") and self.attack == "ladder":
                raise InvalidInput(
                    f"{rung.label()} starts from the worst image of the rungs before, which only `attack: strongest` "
                    "hands on: write that, or remove `warm`.",
                    keys=("rungs", place),
                )
        if self.knows != "purifier":
            raise InvalidInput("a ladder's attacker knows the purifier; its rungs may know less.", keys=("knows",))
        return self

    def check(self, purifier: PurifierConfig) -> None:
        """See :class:`AttackConfig`."""
        for rung in self.rungs:
            if not rung.static:
                rung.check(purifier)

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        for place, rung in enumerate(self.rungs):
            with inside("rungs", place):
                rung.check_task(classes, image_shape)

    def on_bare_classifier(self) -> Self:
        """Without a purifier most rungs are one."""
        bare = super().on_bare_classifier()
        rungs = tuple(dict.fromkeys(rung.on_bare_classifier() for rung in self.rungs))
        return bare.model_copy(update={"rungs": rungs, "select": 1, "skip": self.skip and len(rungs) > 1})

    def label(self) -> str:
        """``ladder linf of 5``."""
        return f"ladder {self.norm} of {len(self.rungs)}"

    @property
    def evaluations(self) -> int:
        """Those of the selection; the rungs are stages of their own."""
        return self.select * (1 if self.skip else len(self.rungs))

    def combine(self, target: Target, x: Tensor, given: Sequence[Given]) -> AttackResult:
        """See :class:`DerivedAttackConfig`.

        Where the ladder skips, ``given`` are the ladder of all rungs but the last, and the last.

        Returns:
            For each image the one that was worst. Columns: ``rung``, whose it is, from 0; ``right``, its share of
            right draws; ``rights``, those of all rungs, NaN where a rung skipped the image.
        """
        shares, losses, rung = [], [], torch.zeros(len(x), dtype=torch.long, device=x.device)
        for result in given:
            share, loss = self._judged(target, result)
            shares.append(share)
            losses.append(loss)
        best, best_share, best_loss = given[0].images, shares[0], losses[0]
        if "rung" in given[0].columns:
            rung = given[0].columns["rung"]
        first = len(self.rungs) - len(given)
        for position, result in enumerate(given[1:], start=1):
            share, loss = shares[position], losses[position]
            worse = (share < best_share) | ((share == best_share) & (loss > best_loss))  # false where skipped: NaN
            best = torch.where(worse.view(-1, 1, 1, 1), result.images, best)
            best_share, best_loss = torch.where(worse, share, best_share), torch.where(worse, loss, best_loss)
            rung = torch.where(worse, first + position, rung)
        earlier = given[0].columns.get("rights", shares[0].unsqueeze(1))
        rights = torch.cat([earlier, torch.stack(shares[1:], 1)] if len(shares) > 1 else [earlier], 1)
        return AttackResult(best, best_loss, columns={"rung": rung, "right": best_share, "rights": rights})

    def _judged(self, target: Target, result: Given) -> tuple[Tensor, Tensor]:
        """Return the share of right draws and what decides ties; NaN for images that the rung skipped."""
        size = len(result.images)
        share = torch.full((size,), torch.nan, dtype=torch.float64, device=result.images.device)
        loss = share.clone()
        if "right" in result.columns:
            return result.columns["right"].double(), result.columns["loss"].double()
        skipped = result.columns.get("skipped", torch.zeros(size, dtype=torch.bool, device=result.images.device))
        attacked = (~skipped).nonzero().flatten()
        if len(attacked):
            part = target.select(attacked)
            evaluation = part.evaluate(result.images[attacked], margin)
            right = evaluation.logits.argmax(2) == part.labels.unsqueeze(1)
            spread = self.ties == "spread"
            score = spread_score(evaluation.logits, part.labels) if spread else evaluation.loss
            # In the precision of the rows, from which the scores of earlier rungs come back: equal ones stay equal.
            share[attacked], loss[attacked] = right.double().mean(1), score.float().double()
        return share, loss
