r"""The strongest attack that puregrid knows how to make: a ladder whose last rungs go on from the worst image so far.

The first rungs are those of :mod:`tasks.attacks.ladder`: attackers of growing knowledge, each by itself, so that one
that is stronger than it should be is seen. ``diffhammer`` is one more: the gradient of the draws that can be fooled
together, from three starts with three losses (:mod:`tasks.attacks.diffhammer`). It finds points at which some draw is
wrong of images that the mean of the draws leaves alone, so that it begins anew. Then the worst image of all of them,
chosen on the S draws of the ladder, is where the next rung starts, and so on:

* ``refine``: PGD with momentum, steps that shrink from eps, and as many draws a step as the image's gradients need;
* ``apgd``: Auto-PGD (:mod:`tasks.attacks.apgd`), which is not among the rungs unless it is named.

``soft`` and ``refine(soft)`` are rungs through differentiable approximations of what rounds or sorts. Where a
purifier has none they are the rungs ``exact`` and ``refine`` once more, and left out (:meth:`StrongestConfig.on`).

Every rung that knows the purifier chooses among its last and its best points on the same fresh draws
(:mod:`tasks.attacks.shortlist`) instead of keeping a lucky one, and the rungs are compared on the S draws of the
ladder, which are others. No draw of the judgement is ever seen.

**Objective.** The attack minimises what the defence answers with: the mean probability of the draws, which is also
the smooth stand-in for the share of right draws where each query is answered by one, or their soft vote where the
defence takes a majority (:meth:`StrongestConfig.against`). ``diffhammer`` weighs the losses of draws and has no other
objective.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from defense.aggregate import Aggregation
from defense.errors import InvalidInput
from defense.purifiers import PurifierConfig
from tasks.attacks.base import ATTACKS, AttackConfig
from tasks.attacks.diffhammer import DiffHammerConfig
from tasks.attacks.ladder import LadderConfig
from tasks.attacks.losses import least_classes
from tasks.attacks.shortlist import Ties

__all__ = ["StrongestConfig"]

_RUNGS = (
    "blind",
    "bpda",
    "surrogate(3)",
    "exact",
    "soft",
    "black-box",
    "diffhammer",
    "refine",
    "refine(soft)",
)
_REFINE = {
    "attack": "pgd",
    "attacked": "mean-probability",
    "momentum": 0.75,
    "decay": "from-eps",
    "eot_by": "cosine",
    "random_start": False,
}
_NAMED: Mapping[str, dict[str, Any]] = {
    "diffhammer": {"attack": "diffhammer"},
    "apgd": {"attack": "apgd", "attacked": "mean-probability", "warm": True},
    "refine": {**_REFINE, "warm": True},
    "refine(soft)": {**_REFINE, "gradient": "soft", "warm": True},
}

_LONGER = {"diffhammer": 3, "refine": 8, "refine(soft)": 8}
"""Steps (of DiffHammer in each of its runs) in those of the other rungs: a long run is worth several short ones."""


@ATTACKS.register("strongest")
class StrongestConfig(LadderConfig):
    """The recommended attack: a ladder that ends in rungs which start from the worst image so far.

    Arguments:
        rungs: As in a ladder, and ``diffhammer``; then ``apgd``, ``refine`` and ``refine(soft)``, or attacks with
            ``warm: true``.
        steps: Steps of the named rungs; ``refine`` takes ``8 steps eot`` gradients of draws, ``diffhammer`` three
            times as many steps in each of three runs.
        loss: Loss of the named rungs but ``diffhammer``.
        eot: Draws per evaluation of the named rungs that know the purifier.
        queries: Queries of ``black-box``.
        select: Draws on which the rungs are compared, and, others, on which each chooses among its points.
        ties: What decides between images that equally many draws get right, here and in the named rungs: ``spread``
            or ``margin``.

    Raises:
        InvalidInput: As a ladder does; ``skip``; a warm rung that is first, or before one that is not.
    """

    attack: Literal["strongest"] = "strongest"  # type: ignore[assignment]
    rungs: tuple[SerializeAsAny[AttackConfig], ...] = _RUNGS  # type: ignore[assignment]  # entries, read as such
    steps: int = Field(default=10, ge=1)
    select: int = Field(default=20, ge=1)
    ties: Ties = "spread"

    @classmethod
    def inner_entry(cls, field: str, entry: Any, fields: Mapping[str, Any]) -> Any:
        """Return a named rung written out; the others as they are."""
        settings = {key: fields.get(key, cls.model_fields[key].default) for key in ("steps", "loss", "eot", "select")}
        ties = fields.get("ties", cls.model_fields["ties"].default)
        shared = {"eot": settings["eot"], "reselect": settings["select"], "ties": ties}
        if isinstance(entry, str) and entry in _NAMED:
            steps = settings["steps"]
            if isinstance(steps, int):
                steps *= _LONGER.get(entry, 1)
            loss = {} if entry == "diffhammer" else {"loss": settings["loss"]}
            return {**shared, **loss, "gradient": "exact", "steps": steps, **_NAMED[entry]}
        written = super().inner_entry(field, entry, fields)
        if not isinstance(entry, str) or "eot" not in written or written["attack"] != "pgd":
            return written
        return {**written, **shared, "attacked": "mean-probability", "momentum": 0.75, "decay": "from-eps"}

    @classmethod
    def short_names(cls) -> tuple[str, ...]:
        """See :class:`LadderConfig`."""
        return (*super().short_names(), *_NAMED)

    @model_validator(mode="after")
    def _warm_rungs_last(self) -> Self:
        warm = [bool(rung.parameter("warm")) for rung in self.rungs]
        if self.skip:
            raise InvalidInput(
                "`strongest` attacks every image to the end: remove `skip`, or write `attack: ladder`.",
                keys=("skip",),
            )
        for place, (is_warm, rung) in enumerate(zip(warm, self.rungs, strict=True)):
            if is_warm and place == 0:
                raise InvalidInput(
                    f"{rung.label()} starts from the worst image of the rungs before, and is the first: put another "
                    "before it, or remove `warm`.",
                    keys=("rungs", place),
                )
            if not is_warm and any(warm[:place]):
                raise InvalidInput(
                    f"{rung.label()} starts by itself and stands behind one that starts from others' images: list "
                    "the rungs with `warm` last.",
                    keys=("rungs", place),
                )
        return self

    @property
    def alone(self) -> int:
        """Number of the rungs that start by themselves; they are the first."""
        return sum(not rung.parameter("warm") for rung in self.rungs)

    def up_to(self, count: int) -> Self:
        """Return the attack of the first rungs alone."""
        return self.model_copy(update={"rungs": self.rungs[:count]})

    def on(self, purifier: PurifierConfig) -> Self:
        """Return the attack without rungs that are another one once more on this purifier."""
        if purifier.softens:
            return self

        def once_more(rung: AttackConfig) -> bool:
            return rung.gradient == "soft" and rung.model_copy(update={"gradient": "exact"}) in self.rungs

        rungs = tuple(rung for rung in self.rungs if not once_more(rung))
        return self if len(rungs) == len(self.rungs) else self.model_copy(update={"rungs": rungs})

    def for_classes(self, classes: int) -> Self:
        """Return the attack with the losses of DiffHammer that have a value with so few classes.

        Only where they are the default ones, which nobody has asked for: with two classes there is no DLR.
        """
        default = DiffHammerConfig.model_fields["losses"].default
        fitting = tuple(name for name in default if classes >= least_classes(name))

        def fitted(rung: AttackConfig) -> AttackConfig:
            chosen = rung.parameter("losses") == default and isinstance(rung, DiffHammerConfig)
            return rung.model_copy(update={"losses": fitting}) if chosen else rung

        if fitting == default:
            return self
        return self.model_copy(update={"rungs": tuple(map(fitted, self.rungs))})

    def against(self, aggregation: Aggregation, *, stochastic: bool = True) -> Self:
        """Return the attack on a defence that makes one answer of its draws in this way.

        Rungs that attack the mean probability attack the soft vote where the defence takes a majority. Where nothing
        is random, points are compared by one look.

        Arguments:
            aggregation: What the defence makes of its draws.
            stochastic: Whether two draws may differ.
        """

        def fitted(rung: AttackConfig) -> AttackConfig:
            update: dict[str, Any] = {}
            if aggregation == "majority-vote" and rung.attacked == "mean-probability":
                update["attacked"] = "vote"
            if not stochastic and rung.parameter("reselect") is not None:
                update["reselect"] = 1
            return rung.model_copy(update=update) if update else rung

        select = self.select if stochastic else 1
        return self.model_copy(update={"rungs": tuple(map(fitted, self.rungs)), "select": select})

    def label(self) -> str:
        """``strongest linf of 7``; of a chain in which each goes on from the one before, its last."""
        if self.alone == 1 and len(self.rungs) > 1:
            return f"{self.rungs[-1].label()} of {len(self.rungs)}"
        return f"strongest {self.norm} of {len(self.rungs)}"

    @property
    def evaluations(self) -> int:
        """Those of the selection; a warm rung is compared with the worst of all before, which has been judged."""
        return self.select * (1 if self.alone < len(self.rungs) else len(self.rungs))
