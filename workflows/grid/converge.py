"""``converge``: an attack whose steps, draws, restarts and selection draws are doubled until that changes nothing.

::

    attacks:
      - {attack: pgd, norm: linf, eps_255: 8, gradient: exact, steps: 10, eot: 4, converge: true}
      - {attack: ladder, norm: linf, eps_255: 8, steps: 10, converge: {steps: 80, eot: 32}}    # the largest values

An attack that can go on from given images (:class:`tasks.attacks.shortlist.AscentConfig`) does: the doubled one
starts from the worst image of those before it, as a warm rung of ``strongest`` whose other rungs they are. So it
begins with what was computed, whose stages it shares, and undoes nothing. ``converge: {warm: false}`` starts each of
them anew.

Each doubled attack is an ordinary attack, and its cell an ordinary cell with an ordinary id. Which of them there are
depends on what was measured: :mod:`workflows.results.convergence`.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from defense.purifiers import NoPurifierConfig, PurifierConfig
from defense.spec import Spec
from tasks.attacks import AttackConfig, LadderConfig, StrongestConfig
from tasks.attacks.shortlist import AscentConfig

__all__ = ["AXES", "Axis", "Converge", "axes_of", "doubled", "going_on", "value_of", "warms"]

Axis = Literal["steps", "eot", "restarts", "select"]
AXES: tuple[Axis, ...] = ("steps", "eot", "restarts", "select")
"""What is doubled, in order: gradient steps, draws per gradient, random starts, draws by which a ladder selects."""

MOST_TIMES = 16
"""Up to how many times its value something is doubled, where nothing else is said."""


class Converge(Spec):
    """The largest value of each; by default 16 times the one that the attack has.

    Arguments:
        steps: Of gradient steps.
        eot: Of draws per gradient.
        restarts: Of random starts.
        select: Of the draws by which a ladder selects.
        warm: Start a doubled attack from the worst image of those before it, where the attack can.
    """

    warm: bool = True
    steps: int | None = Field(default=None, ge=1)
    eot: int | None = Field(default=None, ge=1)
    restarts: int | None = Field(default=None, ge=1)
    select: int | None = Field(default=None, ge=1)

    def most(self, attack: AttackConfig, axis: Axis) -> int:
        """Return the largest value that an attack may get."""
        stated: int | None = getattr(self, axis)
        return MOST_TIMES * value_of(attack, axis) if stated is None else stated


def value_of(attack: AttackConfig, axis: Axis) -> int:
    """Return how many steps, draws or restarts an attack has; of a ladder its own, by which its named rungs go."""
    value: int = attack.parameter(axis)
    return value


def axes_of(attack: AttackConfig, purifier: PurifierConfig) -> tuple[Axis, ...]:
    """Return what can be doubled of an attack on a purifier: what it has, and what the purifier makes matter."""
    random = purifier.stochastic and not isinstance(purifier, NoPurifierConfig)
    draws = random and not attack.static
    wanted = {"steps": True, "eot": draws, "restarts": True, "select": random}
    return tuple(axis for axis in AXES if wanted[axis] and attack.parameter(axis) is not None)


def doubled(attack: AttackConfig, axis: Axis) -> AttackConfig:
    """Return an attack with twice as much of something; of a ladder, with all rungs that have it."""
    update: dict[str, object] = {axis: 2 * value_of(attack, axis)}
    if isinstance(attack, LadderConfig) and axis != "select":
        update["rungs"] = tuple(_rung(rung, axis) for rung in attack.rungs)
    return attack.model_copy(update=update)


def warms(attack: AttackConfig) -> bool:
    """Return whether an attack can go on from images that others found: a gradient attack on the defence."""
    return isinstance(attack, AscentConfig) and attack.knows == "purifier" and not attack.static and not attack.warm


def going_on(attacks: Sequence[AttackConfig]) -> StrongestConfig:
    """Return the attack in which each of several starts from the worst image of those before it."""
    first, *others = attacks
    warm = [attack.model_copy(update={"warm": True}) for attack in others]
    fields = {"norm": first.norm, "eps": first.eps, "unbounded": first.unbounded, "rungs": (first, *warm)}
    return StrongestConfig.model_validate({"attack": "strongest", **fields})


def _rung(rung: AttackConfig, axis: Axis) -> AttackConfig:
    if rung.parameter(axis) is None or (axis == "eot" and rung.static):
        return rung
    return doubled(rung, axis)
