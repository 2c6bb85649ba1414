"""Kinds of units: those that differ in cost by images and network evaluations alone."""

from __future__ import annotations

from typing import Any, NamedTuple

from tasks.stages.base import StageSpec

__all__ = ["Kind", "kind_of"]


class Kind(NamedTuple):
    """Units that differ in cost by images x evaluations alone.

    Arguments:
        stage: Kind of stage.
        threat: Attack and its gradient, or corruption; "" if none.
        defence: Purifier; "" where there is none in the computation.
        model: Key of the model.
        name: In words.
    """

    stage: str
    threat: str
    defence: str
    model: str
    name: str


def kind_of(spec: StageSpec) -> Kind:
    """The kind of a stage's units."""
    at: Any = getattr(spec, "smoothed", spec)  # certificates hold classifier and purifier one level down
    attack, purifier, classifier = (getattr(at, name, None) for name in ("attack", "purifier", "classifier"))
    gradient = getattr(attack, "gradient", None)
    threat = getattr(attack, "attack", "") + (f" {gradient}" if gradient else "")
    threat = threat or str(getattr(getattr(spec, "corruption", None), "corruption", ""))
    defence = str(getattr(purifier, "purifier", ""))
    key = spec.model_key()
    who = classifier.label() if classifier is not None and key == classifier.id else key[:6]
    behind = f"behind {defence}" if threat and defence else defence
    return Kind(spec.stage, threat, defence, key, " ".join(filter(None, (spec.stage, threat, behind, who))))
