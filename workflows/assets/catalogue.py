"""``puregrid list``: what a sweep file can name, with one line and the fields of each."""

from __future__ import annotations

import itertools
import json
import sys
import zlib
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defense.errors import InvalidInput, nearest
from workflows.assets.bundled import bundled_sweeps
from workflows.assets.fields import FieldText, described

if TYPE_CHECKING:
    from defense.spec import Spec
    from workflows.documents.authors import AuthorsSetting

__all__ = ["KINDS", "WRITTEN", "catalogue", "details", "kinds", "written"]

# Each kind imports what it needs on first use: a list of sweeps needs no torch.

WRITTEN = Path(__file__).with_name("catalogue.zlib")
"""The entries of kinds whose classes import torch, written by ``python -m scripts.catalogue``."""

_GROUPS = {
    "attacks": ("tasks.attacks", "puregrid.attacks"),
    "denoisers": ("defense.denoisers", "puregrid.denoisers"),
    "purifiers": ("defense.purifiers", "puregrid.purifiers"),
}
"""The kinds that are written down: the module with their registry, and the entry points of further entries."""


def catalogue(kind: str) -> list[dict[str, Any]]:
    """Return name, summary and fields of every entry of a kind.

    Attacks, denoisers and purifiers are read from :data:`WRITTEN`, in a tenth of the time that torch takes to be
    imported, unless they are imported already or other distributions have some.

    Raises:
        InvalidInput: Unknown kind.
    """
    if kind not in KINDS:
        raise InvalidInput(f"unknown kind {kind!r}; {nearest(kind, KINDS)}")
    if kind in _GROUPS:
        module, group = _GROUPS[kind]
        if module not in sys.modules and not entry_points(group=group):
            entries: list[dict[str, Any]] = json.loads(zlib.decompress(WRITTEN.read_bytes()))[kind]
            return entries
    return KINDS[kind][1]()


def written() -> str:
    """Return what :data:`WRITTEN` is to hold, compressed: the entries of the classes themselves."""
    return json.dumps({kind: KINDS[kind][1]() for kind in _GROUPS}, separators=(",", ":")) + "\n"


def details(kind: str, name: str) -> dict[str, Any]:
    """Return one entry of a kind with what each of its fields is.

    Raises:
        InvalidInput: Unknown kind or name.
    """
    entries = {entry["name"]: entry for entry in catalogue(kind)}
    if name not in entries:
        raise InvalidInput(f"there are no {kind} of the name {name!r}; {nearest(name, sorted(entries))}")
    model = _model(kind, name)
    fields = [] if model is None else [field.as_dict() for field in described(*model)]
    if kind == "purifiers":
        fields += [field.as_dict() for field in _OF_DEFENCES]
    return {**entries[name], "fields": fields or entries[name]["fields"]}


def _model(kind: str, name: str) -> tuple[type[Spec], str] | None:
    """The config class of an entry, and the field that names it; None where there is no class for it alone."""
    if kind == "attacks":
        from tasks.attacks import ATTACKS

        return ATTACKS.get(name), "attack"
    if kind == "classifiers":
        from defense.classifiers import ClassifierConfig

        return ClassifierConfig.class_named(name), "classifier"
    if kind == "corruptions":
        from tasks.corruptions.config import CorruptionConfig

        return CorruptionConfig, "corruption"
    if kind == "datasets":
        from tasks.datasets import DATASETS

        return DATASETS.get(name), "dataset"
    if kind == "denoisers":
        from defense.denoisers import DENOISERS

        return DENOISERS.get(name), "format"
    if kind == "purifiers":
        from defense.purifiers import PURIFIERS

        return PURIFIERS.get(name), "purifier"
    return None


def kinds() -> list[dict[str, Any]]:
    """Return the kinds themselves as entries."""
    return [{"name": name, "summary": summary, "fields": []} for name, (summary, _) in KINDS.items()]


_OF_DEFENCES = (
    FieldText("draws", "whole number from 1", "1", "How often each image is purified and judged.", False),
    FieldText(
        "aggregation", "single | mean-probability | majority-vote", "single", "What becomes of the draws.", False
    ),
    FieldText(
        "until",
        "vote | worst",
        "None",
        "Ask no more draws of an image once its vote, or its worst draw, is certain.",
        False,
    ),
)
"""What an entry of ``defences`` has beside its purifier."""


def _attacks() -> list[dict[str, Any]]:
    from tasks.attacks import ATTACKS

    return [_config(name, ATTACKS.get(name), "attack") for name in ATTACKS.names()]


def _classifiers() -> list[dict[str, Any]]:
    from defense.classifiers import CLASSIFIERS
    from defense.classifiers.base import ENTRIES

    others = ("weights", "sha256", "weights_key", "mean", "std")  # of networks with weights of their own
    made = [_config(name, model, "classifier", *others) for name, model in ENTRIES.items()]
    return [*(_classifier(name, CLASSIFIERS.get(name)) for name in CLASSIFIERS.names()), *made]


def _corruptions() -> list[dict[str, Any]]:
    from tasks.corruptions import BENCHMARK, CORRUPTIONS

    return [_corruption(name, entry, name in BENCHMARK) for name, entry in CORRUPTIONS.items()]


def _datasets() -> list[dict[str, Any]]:
    from tasks.datasets import DATASETS

    return [_config(name, DATASETS.get(name), "dataset") for name in DATASETS.names()]


def _denoisers() -> list[dict[str, Any]]:
    from defense.denoisers import DENOISERS

    return [_config(name, DENOISERS.get(name), "format") for name in DENOISERS.names()]


def _energies() -> list[dict[str, Any]]:
    from defense.energy import ENERGIES

    return [_energy(name, ENERGIES.get(name)) for name in ENERGIES.names()]


def _purifiers() -> list[dict[str, Any]]:
    from defense.purifiers import PURIFIERS

    shared = ["draws=1", "aggregation='single'", "until=None"]
    entries = [_config(name, PURIFIERS.get(name), "purifier") for name in PURIFIERS.names()]
    return [{**entry, "fields": [*entry["fields"], *shared]} for entry in entries]


def _published() -> list[dict[str, Any]]:
    from workflows.documents.authors import authors_setting, authors_settings

    return [_setting(authors_setting(name)) for name in authors_settings()]


def _setting(setting: AuthorsSetting) -> dict[str, Any]:
    parts = {"published": setting.defence, "as-published": setting.attack or {}}
    fields = [f"{part}: {entry}" for part, entry in parts.items() if entry]
    traps = [f"trap: {trap}" for trap in setting.traps]
    return {
        "name": setting.name,
        "summary": f"{setting.title} [{setting.certainty}: {setting.source}]",
        "fields": [*fields, *traps],
    }


def _schedules() -> list[dict[str, Any]]:
    from defense.schedules import SCHEDULES, get_schedule

    names = sorted(SCHEDULES)
    return [{"name": name, "summary": f"{get_schedule(name).steps} steps", "fields": []} for name in names]


def _sweeps() -> list[dict[str, Any]]:
    def summary(text: str) -> str:
        """Return the first sentence of the comment at the head."""
        head = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
        return " ".join(line.lstrip("# ") for line in head).partition(". ")[0].rstrip(".")

    return [
        {"name": name, "summary": summary(path.read_text(encoding="utf-8")), "fields": []}
        for name, path in bundled_sweeps().items()
    ]


KINDS: dict[str, tuple[str, Callable[[], list[dict[str, Any]]]]] = {
    "attacks": ("what attacks a defence", _attacks),
    "classifiers": ("architectures that a defence protects", _classifiers),
    "corruptions": ("common corruptions with their constants", _corruptions),
    "datasets": ("where images come from", _datasets),
    "denoisers": ("layouts of diffusion networks", _denoisers),
    "energies": ("networks of EBM-Defense", _energies),
    "published": ("settings of authors, with their own attack and what it leaves out", _published),
    "purifiers": ("what stands in front of a classifier", _purifiers),
    "schedules": ("noise schedules", _schedules),
    "sweeps": ("sweep files that come with puregrid, which commands take by name", _sweeps),
}
"""What each kind is, and its entries."""


def _classifier(name: str, architecture: Any) -> dict[str, Any]:
    shape = "x".join(map(str, architecture.image_shape))
    ships = "weights ship with puregrid" if architecture.weights else "needs `weights`"
    return {
        "name": name,
        "summary": f"{architecture.classes} classes, images {shape}, {ships}",
        "fields": ["weights", "sha256", "name", "mean", "std"],
    }


def _corruption(name: str, corruption: Any, benchmark: bool) -> dict[str, Any]:
    place = "benchmark" if benchmark else "extra"
    needs = ", needs photographs" if corruption.photographs else ""
    constants = "  ".join(map(_constant, corruption.constants))
    return {"name": name, "summary": f"{place}, severities 1 to 5: {constants}{needs}", "fields": []}


def _constant(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    # An array is a range of zooms.
    return f"{value[0]:g}..{value[-1]:g}" if hasattr(value, "shape") and value.shape else f"{value:g}"


def _energy(name: str, architecture: Any) -> dict[str, Any]:
    shape = "x".join(map(str, architecture.image_shape))
    ships = "weights ship with puregrid" if architecture.weights else "needs `weights`"
    return {"name": name, "summary": f"images {shape}, {ships}", "fields": ["weights", "sha256"]}


def _config(name: str, model: type[Spec], *tags: str) -> dict[str, Any]:
    """Return an entry from a config: its docstring, and its fields but ``tags``, which name it, and digests."""
    summary = (model.__doc__ or "").strip().partition("\n")[0]
    hidden = {*tags, "digest", "config_sha256"}
    fields = [
        field if info.is_required() else f"{field}={info.default!r}"
        for field, info in model.model_fields.items()
        if field not in hidden
    ]
    fields += [f"{spelt} (instead of {spelling.field})" for spelt, spelling in model.spellings.items()]
    return {"name": name, "summary": summary, "fields": fields}
