"""``puregrid list``: what a sweep file can name, with one line and the fields of each."""

from __future__ import annotations

from typing import Any

import numpy as np

from defense.classifiers import CLASSIFIERS
from defense.denoisers import DENOISERS
from defense.energy import ENERGIES
from defense.errors import InvalidInput, nearest
from defense.purifiers import PURIFIERS, PurifierConfig
from defense.schedules import SCHEDULES, get_schedule
from defense.spec import Spec
from tasks.attacks import ATTACKS
from tasks.corruptions import BENCHMARK, CORRUPTIONS
from tasks.datasets import DATASETS

__all__ = ["KINDS", "catalogue"]

KINDS = ("attacks", "classifiers", "corruptions", "datasets", "denoisers", "energies", "purifiers", "schedules")


def catalogue(kind: str) -> list[dict[str, Any]]:
    """Name, summary and fields of every entry of a kind.

    Raises:
        InvalidInput: Unknown kind.
    """
    if kind == "classifiers":
        return [_classifier(name) for name in CLASSIFIERS.names()]
    if kind == "corruptions":
        return [_corruption(name) for name in CORRUPTIONS]
    if kind == "schedules":
        return [
            {"name": name, "summary": f"{get_schedule(name).steps} steps", "fields": []} for name in sorted(SCHEDULES)
        ]
    if kind == "energies":
        return [_energy(name) for name in ENERGIES.names()]
    registries: dict[str, Any] = {
        "attacks": ATTACKS,
        "datasets": DATASETS,
        "denoisers": DENOISERS,
        "purifiers": PURIFIERS,
    }
    if kind in registries:
        registry = registries[kind]
        return [_config(name, registry.get(name)) for name in registry.names()]
    raise InvalidInput(f"unknown kind {kind!r}; {nearest(kind, KINDS)}")


def _classifier(name: str) -> dict[str, Any]:
    architecture = CLASSIFIERS.get(name)
    shape = "x".join(map(str, architecture.image_shape))
    ships = "weights ship with puregrid" if architecture.weights else "needs `weights`"
    return {
        "name": name,
        "summary": f"{architecture.classes} classes, images {shape}, {ships}",
        "fields": ["weights", "sha256", "name", "mean", "std"],
    }


def _corruption(name: str) -> dict[str, Any]:
    corruption = CORRUPTIONS[name]
    place = "benchmark" if name in BENCHMARK else "extra"
    needs = ", needs photographs" if corruption.photographs else ""
    constants = "  ".join(map(_constant, corruption.constants))
    return {"name": name, "summary": f"{place}, severities 1 to 5: {constants}{needs}", "fields": []}


def _constant(value: Any) -> str:
    if isinstance(value, np.ndarray):  # a range of zooms
        return f"{value[0]:g}..{value[-1]:g}"
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else f"{value:g}"


def _energy(name: str) -> dict[str, Any]:
    architecture = ENERGIES.get(name)
    shape = "x".join(map(str, architecture.image_shape))
    ships = "weights ship with puregrid" if architecture.weights else "needs `weights`"
    return {"name": name, "summary": f"images {shape}, {ships}", "fields": ["weights", "sha256"]}


def _config(name: str, model: type[Spec]) -> dict[str, Any]:
    summary = (model.__doc__ or "").strip().partition("\n")[0]
    tags = {"purifier", "attack", "dataset", "format", "digest", "config_sha256"}
    fields = [
        field if info.is_required() else f"{field}={info.default!r}"
        for field, info in model.model_fields.items()
        if field not in tags or (field == "purifier" and not issubclass(model, PurifierConfig))
    ]
    fields += [f"{name} (instead of {spelling.field})" for name, spelling in model.spellings.items()]
    if issubclass(model, PurifierConfig):
        fields += ["draws=1", "aggregation='single'"]
    return {"name": name, "summary": summary, "fields": fields}
