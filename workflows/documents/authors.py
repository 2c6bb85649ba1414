"""Defences and attacks as their authors ran them, by name: ``published: NAME`` and ``as-published: NAME``.

``workflows/published/authors/NAME.yaml`` holds the authors' setting of a defence, the attack that its published
figure comes from, what that attack leaves out, and where this was read. An entry of a sweep that names it is these
fields, with those that it states itself instead::

    defences: [{published: freqpure, denoiser: small}]
    attacks: [{as-published: freqpure, norm: linf, eps_255: 8}]

The fields that it states may shorten the authors' attack and not make it another one
(:mod:`workflows.documents.shortened`). Some authors attack another purifier than they defend with. That one needs a
``denoiser``, which the entry names; the fields of such an attack (``steps``, ``eot``) are those of the source of the
transferred images.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from defense.errors import InvalidInput, nearest
from defense.spec import Spec
from workflows.documents.document import read_document
from workflows.documents.shortened import check_kind

if TYPE_CHECKING:
    from defense.purifiers import PurifierConfig
    from tasks.attacks import AttackConfig

__all__ = ["NAMES", "AuthorsSetting", "authors_setting", "authors_settings", "expanded", "recognised"]

_FOLDER = Path(__file__).parent.parent / "published" / "authors"
NAMES = {"purifier": "published", "attack": "as-published"}
_OWN = ("norm", "eps", "eps_255", "unbounded")
"""What a transferred attack says itself: its source inherits it."""
_LEVELS = ("t_star", "sigma_eq", "t_start")
_NETWORKS = ("denoiser", "perturbation")
"""What an entry says of the purifier that the authors attack in the place of theirs."""
_FORMS = ("form", "forward", "direction")
"""Fields of a purifier that make it another method, where a setting states them."""


class AuthorsSetting(Spec):
    """How the authors of a defence ran it, and how they attacked it.

    Arguments:
        name: Its name.
        title: The paper.
        source: Where the settings were read.
        certainty: ``code`` (read there), ``paper``, or ``second-hand``; ``inferred`` where something is a conclusion.
        defence: Entry of the defence, without its denoiser.
        attack: Entry of the attack, without its budget; None where none is known.
        traps: What the attack leaves out or gets wrong.
    """

    name: str
    title: str
    source: str
    certainty: Literal["code", "paper", "second-hand", "inferred"]
    defence: dict[str, Any]
    attack: dict[str, Any] | None = None
    traps: tuple[str, ...] = Field(default=())

    @model_validator(mode="after")
    def _named(self) -> Self:
        if "purifier" not in self.defence or (self.attack is not None and "attack" not in self.attack):
            raise ValueError("a defence has a purifier, an attack its name")
        return self

    def is_of(self, purifier: PurifierConfig, named: Collection[str]) -> bool:
        """Return whether this is the method of a purifier, which some settings are ``named`` for."""
        if named:
            return any(authors_setting(name).defence == self.defence for name in named)
        return purifier.code() is not None or self.defence["purifier"] == purifier.purifier


def authors_settings() -> list[str]:
    """Return the names of the settings that are here."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


@lru_cache
def authors_setting(name: str) -> AuthorsSetting:
    """Return the setting of a name.

    Raises:
        InvalidInput: There is none.
    """
    if name not in authors_settings():
        raise InvalidInput(f"no published setting {name!r}; {nearest(name, authors_settings())}")
    return AuthorsSetting.from_fields({"name": name, **read_document(_FOLDER / f"{name}.yaml").data})


def recognised(purifier: PurifierConfig, attack: AttackConfig, named: Collection[str] = ()) -> AuthorsSetting | None:
    """Return the setting whose defence and attack these are, whatever their budgets; None if they are of none.

    Method, form, gradient and the attacked purifier decide: a shorter chain or fewer steps are the same attack. One
    of several methods of a purifier has to be ``named``, if it is not the one that is called so.
    """
    for name in authors_settings():
        setting = authors_setting(name)
        wanted, published = setting.defence, setting.attack
        if published is None or wanted["purifier"] != purifier.purifier or not setting.is_of(purifier, named):
            continue
        if not named and name != purifier.purifier in authors_settings():
            continue
        if any(field in wanted and wanted[field] != purifier.parameter(field) for field in _FORMS):
            continue
        # AAOpt with its model of perturbations, and without, are two methods.
        if "direction" in wanted and ("lam" in wanted) != (purifier.parameter("perturbation") is not None):
            continue
        if (published["attack"], published.get("gradient")) != (attack.attack, attack.gradient):
            continue
        other = attack.parameter("purifier")
        if "purifier" in published and (other is None or other.purifier != published["purifier"]["purifier"]):
            continue
        return setting
    return None


def expanded(entry: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return an entry with the fields of the published setting that it names; others as they are.

    Arguments:
        entry: Entry of ``defences`` or ``attacks``.
        kind: ``purifier`` or ``attack``.

    Raises:
        InvalidInput: No such setting; it is named beside a purifier or an attack; the attack lacks a denoiser, or
            would not be the authors' any more.
    """
    key = NAMES.get(kind)
    if key is None or key not in entry:
        return entry
    own = {name: value for name, value in entry.items() if name != key}
    if not isinstance(entry[key], str):
        raise InvalidInput(f"{key} is one name, not {entry[key]!r}: write an entry for each.", keys=(key,))
    try:
        setting = authors_setting(entry[key])
    except InvalidInput as error:
        raise error.within(key) from error
    theirs = setting.defence if kind == "purifier" else setting.attack
    if kind in own and own[kind] != (theirs or {}).get(kind):  # as the record of a sweep has it, in full
        raise InvalidInput(f"`{key}` names the {kind}: leave `{kind}` out.", keys=(kind,))
    if kind == "purifier":
        left_out: tuple[str, ...] = _LEVELS if any(level in own for level in _LEVELS) else ()
        if left_out and "t_star" not in own and "t_weak" not in setting.defence:
            left_out = (*_LEVELS, "schedule")  # no level is stated on it any more
        return {**{name: value for name, value in setting.defence.items() if name not in left_out}, **own}
    if setting.attack is None:
        raise InvalidInput(f"no attack of the authors of {entry[key]!r} is known.", keys=(key,))
    return _attack(setting.attack, own, entry[key])


def _attack(attack: dict[str, Any], own: dict[str, Any], name: str) -> dict[str, Any]:
    check_kind(attack.get("source", attack), own.get("source", own), name)
    if "purifier" not in attack or "source" in own:
        return {**attack, **own}
    own = dict(own)
    if "denoiser" not in own:
        raise InvalidInput(
            f"the authors of {name!r} attack another purifier than they defend with: say with which `denoiser`."
        )
    purifier = {**attack["purifier"], **{name: own.pop(name) for name in _NETWORKS if name in own}}
    source = {**attack["source"], **{field: own.pop(field) for field in list(own) if field not in _OWN}}
    return {**attack, **own, "purifier": purifier, "source": source}
