"""From a sweep file to cells: one YAML file, validated before anything runs.

Grid = datasets x classifiers x defences x threats x seeds, minus ``exclude``, plus ``include`` (further grids that
inherit the axes they do not name). Threats are the attacks, the corruptions and the certificates together; without
any of them there are clean images alone. Inside an entry, a list where a single value is expected is an axis too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from defense.aggregate import Aggregation
from defense.classifiers import ClassifierConfig
from defense.denoisers import DENOISERS, DenoiserConfig
from defense.errors import nearest
from defense.purifiers import PURIFIERS, NoPurifierConfig
from defense.spec import Spec
from tasks.attacks import ATTACKS, AttackConfig
from tasks.certificates import CertificateConfig
from tasks.compute import Compute
from tasks.corruptions import BENCHMARK, EXTRA, SEVERITIES
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import DATASETS
from tasks.stages import Chunk
from tasks.stages.quality import QualityConfig
from workflows.documents.document import Document, Keys, read_document
from workflows.documents.entries import expand, image_ids, items, known_keys, located, validate
from workflows.grid.cells import PARTS, Cell, Defence, Images, Sweep, Threat
from workflows.grid.compatibility import check_fit, check_one_choice_of_images
from workflows.grid.requirements import check_requirements

__all__ = ["Cell", "Defence", "Images", "Sweep", "load_sweep"]

_THREATS = ("attacks", "corruptions", "certificates")
_AXES = ("datasets", "classifiers", "defences", *_THREATS, "seeds")
_TOP = {"sweep", "requires", *_AXES, "denoisers", "chunk", "compute", "resubmissions", "quality"}
_TOP = {*_TOP, "exclude", "include"}
_MATCHERS = {*PARTS, "seed"}


class _DefenceFields(Spec):
    """Fields of a defence entry that are not the purifier's."""

    draws: int = Field(default=1, ge=1)
    aggregation: Aggregation = "single"


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read, expand and validate a sweep file; find, hash and check every file that it names.

    Arguments:
        path: The YAML file.
        overrides: ``KEY=VALUE`` settings.

    Raises:
        InvalidInput: Anything that would make the sweep fail or mean something else than was meant.
    """
    check_requirements(path, overrides)
    return _Builder(read_document(path, overrides)).sweep()


class _Builder:
    """Turns a document into a sweep; holds what entries share."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._corrupted: dict[tuple[CorruptionConfig, str], CorruptionConfig] = {}
        self.base = document.path.resolve().parent
        known_keys(document, (), document.data, _TOP)
        self.compute = self._compute()
        self.chunk = self._chunk()
        self.resubmissions = self._resubmissions()
        self.quality = self._quality()
        self.denoisers = self._denoisers()

    def sweep(self) -> Sweep:
        document = self.document
        name = document.data.get("sweep", document.path.stem)
        if not isinstance(name, str) or not name:
            raise document.error(("sweep",), "the name of a sweep is a string.")
        axes = {axis: self._axis(axis, (axis,)) for axis in _AXES}
        if not any(axes[axis] for axis in _THREATS):
            axes["attacks"] = [None]
        cells = list(self._grid(axes))
        cells = self._excluded(cells)
        for position, entry in enumerate(self._list("include")):
            keys = ("include", position)
            known_keys(document, keys, entry, set(_AXES))
            own = {axis: self._axis(axis, (*keys, axis)) if axis in entry else axes[axis] for axis in _AXES}
            if any(axis in entry for axis in _THREATS):  # it names its threats: the file's others are not meant
                own |= {axis: [] for axis in _THREATS if axis not in entry}
            cells += self._grid(own)
        unique = tuple({cell.id: cell for cell in cells}.values())
        if not unique:
            raise document.error(("exclude",), "nothing is left of the grid: every cell is excluded.")
        for cell in unique:
            check_fit(document, cell)
        check_one_choice_of_images(document, unique)
        return Sweep(name, document.text, unique)

    def _grid(self, axes: dict[str, list[Any]]) -> Iterable[Cell]:
        threats = [threat for axis in _THREATS for threat in axes[axis]]
        fixed = (axes[axis] for axis in ("datasets", "classifiers", "defences"))
        for images, classifier, defence, threat, seed in itertools.product(*fixed, threats, axes["seeds"]):
            threat = self._on(images, threat)
            if isinstance(threat, CertificateConfig):
                defence = located(self.document, ("certificates",), partial(defence.smoothed, threat))
            elif isinstance(threat, AttackConfig) and isinstance(defence.purifier, NoPurifierConfig):
                threat = threat.on_bare_classifier()  # so that the adaptive attacks on no defence are one cell
            yield Cell(
                images, classifier, defence, threat, seed, self.compute, self.resubmissions, quality=self.quality
            )

    def _on(self, images: Images, threat: Threat) -> Threat:
        """A corruption with the files that it is made of, which depend on the data set; other threats as they are."""
        if not isinstance(threat, CorruptionConfig):
            return threat
        key = (threat, images.dataset.id)
        if key not in self._corrupted:
            self._corrupted[key] = located(
                self.document, ("corruptions",), partial(threat.resolved, self.base, images.dataset)
            )
        return self._corrupted[key]

    def _list(self, key: str) -> list[Any]:
        value = self.document.data.get(key) or []
        if not isinstance(value, list):
            raise self.document.error((key,), "a list was expected.")
        return value

    def _axis(self, axis: str, keys: Keys) -> list[Any]:
        if axis == "seeds":
            return self._seeds(keys)
        readers: dict[str, tuple[Callable[[Keys, dict[str, Any]], Sequence[Any]], str]] = {
            "datasets": (self._images, "dataset"),
            "classifiers": (self._classifiers, "classifier"),
            "defences": (self._defences, "purifier"),
            "attacks": (self._attacks, "attack"),
            "corruptions": (self._corruptions, "corruption"),
            "certificates": (self._certificates, "certificate"),
        }
        method, tag = readers[axis]
        found: list[Any] = []
        for place, entry in items(self.document, keys, tag, optional=axis in _THREATS):
            found += method(place, entry)
        return found

    def _compute(self) -> Compute:
        fields = self.document.data.get("compute", {})
        known_keys(self.document, ("compute",), fields, set(Compute.model_fields))
        return validate(self.document, ("compute",), Compute, fields, set())

    def _chunk(self) -> int:
        size = self.document.data.get("chunk", 100)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise self.document.error(
                ("chunk",), f"chunk is the number of images of a unit, at least 1, not {size!r}."
            )
        return size

    def _resubmissions(self) -> int | None:
        value = self.document.data.get("resubmissions")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise self.document.error(
                ("resubmissions",),
                f"resubmissions is how often an attacker may submit an image, at least 1, not {value!r}.",
            )
        return value

    def _quality(self) -> QualityConfig | None:
        """``quality: {}`` measures PSNR and SSIM, ``quality: {lpips: FILE}`` LPIPS too."""
        fields = self.document.data.get("quality")
        if fields is None or fields is False:
            return None
        keys: Keys = ("quality",)
        fields = known_keys(self.document, keys, {} if fields is True else fields, set(QualityConfig.model_fields))
        if isinstance(fields.get("lpips"), str):
            fields = {"lpips": {"weights": fields["lpips"]}}
        found = validate(self.document, keys, QualityConfig, fields, set())
        if found.lpips is None:
            return found
        return QualityConfig(lpips=located(self.document, keys, partial(found.lpips.resolved, self.base)))

    def _seeds(self, keys: Keys) -> list[int]:
        section: Any = self.document.data
        for key in keys:
            section = section.get(key, [0]) if isinstance(section, dict) else section[key]
        seeds = section if isinstance(section, list) else [section]
        if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
            raise self.document.error(keys, f"seeds are whole numbers, not {section!r}.")
        return seeds

    def _denoisers(self) -> dict[str, DenoiserConfig]:
        section = self.document.data.get("denoisers", {})
        if not isinstance(section, dict):
            raise self.document.error(("denoisers",), "denoisers is a mapping from a name of yours to a denoiser.")
        return {name: self._denoiser(("denoisers", name), entry) for name, entry in section.items()}

    def _denoiser(self, keys: Keys, entry: Any) -> DenoiserConfig:
        if not isinstance(entry, dict):
            raise self.document.error(keys, f"a denoiser is a mapping with format, path and schedule, not {entry!r}.")
        kind = entry.get("format", "diffusers")
        model = located(self.document, (*keys, "format"), lambda: DENOISERS.get(str(kind)))
        config = validate(self.document, keys, model, entry, set())
        return located(self.document, keys, lambda: config.resolved(self.base))

    def _images(self, keys: Keys, entry: dict[str, Any]) -> list[Images]:
        kind = located(self.document, (*keys, "dataset"), lambda: DATASETS.get(entry["dataset"]))
        found = []
        for fields in expand(self.document, keys, {k: v for k, v in entry.items() if k != "images"}, kind):
            config = validate(self.document, keys, kind, fields, {"images"})
            config = located(self.document, keys, partial(config.resolved, self.base))
            ids = image_ids(self.document, (*keys, "images"), entry.get("images"), len(config.load()))
            chunks = tuple(Chunk(tuple(ids[i : i + self.chunk])) for i in range(0, len(ids), self.chunk))
            found.append(Images(config, chunks))
        return found

    def _classifiers(self, keys: Keys, entry: dict[str, Any]) -> list[ClassifierConfig]:
        found = []
        for fields in expand(self.document, keys, entry, ClassifierConfig):
            config = validate(self.document, keys, ClassifierConfig, fields, set())
            found.append(located(self.document, keys, partial(config.resolved, self.base)))
        return found

    def _defences(self, keys: Keys, entry: dict[str, Any]) -> list[Defence]:
        document = self.document
        kind = located(document, (*keys, "purifier"), lambda: PURIFIERS.get(entry["purifier"]))
        own = set(_DefenceFields.model_fields)
        found = []
        for fields in expand(document, keys, entry, kind):
            fields = self._with_networks(keys, fields)
            shared = validate(document, keys, _DefenceFields, {k: v for k, v in fields.items() if k in own}, own)
            config = validate(document, keys, kind, {k: v for k, v in fields.items() if k not in own}, own)
            if shared.draws > 1 and not config.stochastic:
                raise document.error(
                    (*keys, "draws"),
                    f"purifier {config.purifier!r} is deterministic: every draw is the same, give 1.",
                )
            resolved = located(document, keys, partial(config.resolved, self.base))
            found.append(Defence(resolved, shared.draws, shared.aggregation))
        return found

    def _with_networks(self, keys: Keys, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a purifier with the denoiser that it names, and the purifiers that it is a chain of."""
        document, fields = self.document, dict(fields)
        if isinstance(fields.get("denoiser"), str):
            name = fields["denoiser"]
            if name not in self.denoisers:
                hint = (
                    nearest(name, self.denoisers)
                    if self.denoisers
                    else "the file has no section `denoisers`, which gives each denoiser a name."
                )
                raise document.error((*keys, "denoiser"), f"unknown denoiser {name!r}; {hint}")
            fields["denoiser"] = self.denoisers[name]
        elif "denoiser" in fields:
            fields["denoiser"] = self._denoiser((*keys, "denoiser"), fields["denoiser"])
        if isinstance(fields.get("stages"), list | tuple):
            stages = []
            for place, stage in items(document, (*keys, "stages"), "purifier"):
                kind = located(document, (*place, "purifier"), partial(PURIFIERS.get, stage["purifier"]))
                stages.append(validate(document, place, kind, self._with_networks(place, stage), set()))
            fields["stages"] = tuple(stages)
        return fields

    def _attacks(self, keys: Keys, entry: dict[str, Any]) -> list[AttackConfig | None]:
        document = self.document
        if entry["attack"] == "none":
            known_keys(document, keys, entry, {"attack"})
            return [None]
        kind = located(document, (*keys, "attack"), lambda: ATTACKS.get(entry["attack"]))
        found: list[AttackConfig | None] = []
        for fields in expand(document, keys, entry, kind):
            fields = self._with_attacks(keys, self._in_pixels(keys, fields))
            config = validate(document, keys, kind, fields, {"eps_255"})
            found.append(located(document, keys, partial(config.resolved, self.base)))
        return found

    def _corruptions(self, keys: Keys, entry: dict[str, Any]) -> list[CorruptionConfig]:
        """``corruption`` is a name, a list of names, ``benchmark`` (the fifteen) or ``extra`` (the other four)."""
        named = entry["corruption"]
        groups = {"benchmark": list(BENCHMARK), "extra": list(EXTRA)}
        names = [one for name in ([named] if isinstance(named, str) else named) for one in groups.get(name, [name])]
        entry = {"severity": list(SEVERITIES), **entry, "corruption": names}
        found = []
        for fields in expand(self.document, keys, entry, CorruptionConfig):
            if fields["corruption"] != "frost" and len(names) > 1:
                fields = {name: value for name, value in fields.items() if name != "photographs"}
            found.append(validate(self.document, keys, CorruptionConfig, fields, set()))
        return found

    def _certificates(self, keys: Keys, entry: dict[str, Any]) -> list[CertificateConfig]:
        found = []
        for fields in expand(self.document, keys, entry, CertificateConfig):
            found.append(validate(self.document, keys, CertificateConfig, fields, set()))
        return found

    def _with_attacks(self, keys: Keys, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of an attack with the attacks, the classifier and the purifier inside it."""
        fields = dict(fields)
        if isinstance(fields.get("rungs"), list | tuple):
            fields["rungs"] = tuple(
                self._in_pixels((*keys, "rungs", place), rung) if isinstance(rung, dict) else rung
                for place, rung in enumerate(fields["rungs"])
            )
        if isinstance(fields.get("source"), dict):
            fields["source"] = self._in_pixels((*keys, "source"), fields["source"])
        if isinstance(fields.get("classifier"), str):
            fields["classifier"] = {"classifier": fields["classifier"]}
        if isinstance(fields.get("purifier"), dict):
            fields["purifier"] = self._with_networks((*keys, "purifier"), fields["purifier"])
        return fields

    def _in_pixels(self, keys: Keys, fields: dict[str, Any]) -> dict[str, Any]:
        """``eps_255`` as ``eps``."""
        if "eps_255" not in fields:
            return fields
        kind = ATTACKS.get(str(fields["attack"])) if fields.get("attack") in ATTACKS.names() else None
        if kind is not None and "eps_255" not in kind.spellings:
            raise self.document.error(
                (*keys, "eps_255"),
                f"the budget of {fields['attack']!r} is no pixel value: give `eps` (see `puregrid list attacks`).",
            )
        value = fields["eps_255"]
        if "eps" in fields:
            raise self.document.error((*keys, "eps_255"), "give either `eps` or `eps_255`, not both.")
        many = value if isinstance(value, list) else [value]
        for one in many:
            if isinstance(one, bool) or not isinstance(one, int | float):
                raise self.document.error(
                    (*keys, "eps_255"), f"eps_255 = {one!r} is no number: it is eps in units of 1/255, like 8."
                )
        eps = [one / 255 for one in many] if isinstance(value, list) else value / 255
        return {**{k: v for k, v in fields.items() if k != "eps_255"}, "eps": eps}

    def _excluded(self, cells: list[Cell]) -> list[Cell]:
        grid = cells
        for position, entry in enumerate(self._list("exclude")):
            keys: Keys = ("exclude", position)
            known_keys(self.document, keys, entry, _MATCHERS)
            if isinstance(entry.get("attack"), dict):
                entry = {**entry, "attack": self._in_pixels((*keys, "attack"), entry["attack"])}
            if not any(cell.matches(entry) for cell in grid):
                raise self.document.error(keys, f"{entry} matches no cell of the grid; correct or remove it.")
            cells = [cell for cell in cells if not cell.matches(entry)]
        return cells
