"""What an attack lacks of its authors' one: ``as-published: NAME`` may be shorter, and remains theirs in kind.

Authors' attacks take up to 200 steps of 20 draws, or AutoAttack in full. An entry may state fewer (``steps: 10``,
``eot: 4``, for AutoAttack ``calls`` and ``attacks``); what makes the attack theirs, its gradient, losses and version,
stays. What was cut is known from the two specs alone, so that a board names it wherever it shows the number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from defense.errors import InvalidInput
from defense.gradients import GradientMode

if TYPE_CHECKING:
    from tasks.attacks import AttackConfig

__all__ = ["Departure", "check_kind", "departure"]

_KIND = ("gradient", "loss", "losses", "knows", "version", "attacked", "ascent", "keep")
"""Fields without which an attack is another one; of a list of losses some may be left out."""
_BUDGET = frozenset({"attack", "norm", "eps", "unbounded"})


@dataclass(frozen=True)
class Departure:
    """In what an attack departs from its authors' one.

    Arguments:
        cut: What it has less of: ``steps 10 of 200``.
        otherwise: What is set otherwise: ``step_size 0.03 for 0.007``.
    """

    cut: tuple[str, ...] = ()
    otherwise: tuple[str, ...] = ()

    def sentence(self) -> str:
        """Say both; empty where the attack is the authors'."""
        sentences = [f"Their attack is shortened here: {', '.join(self.cut)}."] if self.cut else []
        sentences += [f"Set otherwise: {', '.join(self.otherwise)}."] if self.otherwise else []
        return " ".join(sentences)


def departure(published: Mapping[str, Any] | None, attack: AttackConfig) -> Departure:
    """Compare an attack with that of some authors, whatever their budgets.

    Arguments:
        published: Entry of the authors' attack; None where none is known.
        attack: The attack that an entry ``as-published`` stands for; of images from elsewhere the one that made them.
    """
    from tasks.attacks import AttackConfig, TransferConfig

    if published is None:
        return Departure()
    own = attack.source if isinstance(attack, TransferConfig) else attack
    entry = published.get("source", published)
    theirs: AttackConfig = AttackConfig.from_entry({**entry, "norm": own.norm, "eps": own.eps})
    if type(own) is not type(theirs):
        return Departure(otherwise=(f"{own.label()} for {theirs.label()}",))
    cut: list[str] = []
    otherwise: list[str] = []
    before, after = theirs.effort, own.effort
    for name in before.keys() | after.keys():
        was, now = before.get(name), after.get(name)
        if was == now:
            continue
        less = now is None or (was is not None and _less(now, was))
        (cut if less else otherwise).append(f"{name} {_text(now)} {'of' if less else 'for'} {_text(was)}")
    for name in type(own).model_fields:
        if name in _BUDGET or name in before or name in after:
            continue
        was, now = getattr(theirs, name), getattr(own, name)
        if was != now:
            otherwise.append(f"{name} {_text(now)} for {_text(was)}")
    return Departure(tuple(sorted(cut)), tuple(sorted(otherwise)))


def _less(now: Any, was: Any) -> bool:
    if isinstance(was, tuple):
        return isinstance(now, tuple) and set(now) < set(was)
    return bool(now < was)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " + ".join(map(str, value))
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def check_kind(published: Mapping[str, Any], own: Mapping[str, Any], name: str) -> None:
    """Refuse fields that would make the attack of some authors another one.

    Arguments:
        published: Entry of the attack.
        own: Fields that an entry states itself; one of several values is a list of them.
        name: Name of the setting.

    Raises:
        InvalidInput: One of them would.
    """
    from tasks.attacks import AttackConfig

    whole: AttackConfig = AttackConfig.from_entry({**published, "norm": "linf", "eps": 0.1})
    for field in _KIND:
        if field not in own or field not in type(whole).model_fields:
            continue
        theirs = getattr(whole, field)
        for value in own[field] if isinstance(own[field], list) else [own[field]]:
            if not _of_their_kind(field, value, theirs):
                raise InvalidInput(
                    f"`{field}: {value}` is not what the authors of {name!r} attacked with ({_text(theirs)}): that "
                    "is another attack, to be written by its own name (`attack: ...`).",
                    keys=(field,),
                )


def _of_their_kind(field: str, value: Any, theirs: Any) -> bool:
    if field == "gradient" and isinstance(value, str) and isinstance(theirs, str):
        return GradientMode.parse(value).name == GradientMode.parse(theirs).name
    return value in theirs if isinstance(theirs, list | tuple) else bool(value == theirs)
