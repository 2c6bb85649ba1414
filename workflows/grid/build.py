"""From a document to cells: the product of the axes, every entry validated, every file found and hashed.

Grid = datasets x classifiers x defences x threats x seeds, minus ``exclude``, plus ``include`` (further grids that
inherit the axes they do not name). Threats are the attacks, the corruptions and the certificates together; without
any of them there are clean images alone. Inside an entry, a list where a single value is expected is an axis too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from defense.aggregate import Aggregation, Until
from defense.bounds import BOUNDS, LARGEST_INTEGER, Bound, beyond
from defense.classifiers import ClassifierConfig
from defense.denoisers import DenoiserConfig
from defense.errors import InvalidInput, nearest
from defense.purifiers import NoPurifierConfig, PurifierConfig
from defense.spec import Reading, Spec
from tasks.attacks import AttackConfig, StrongestConfig
from tasks.certificates import CertificateConfig
from tasks.compute import Compute
from tasks.corruptions import BENCHMARK, CORRUPTIONS, EXTRA, SEVERITIES
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import DatasetConfig
from tasks.stages import Chunk
from tasks.stages.quality import QualityConfig
from workflows.documents.document import Document, Keys
from workflows.documents.entries import (
    Combination,
    combinations,
    expand,
    image_ids,
    items,
    known_keys,
    located,
    validate,
)
from workflows.documents.names import wrong_name
from workflows.grid.cells import PARTS, Cell, Defence, Entries, Images, ProbeWhich, Threat
from workflows.grid.compatibility import check_fit, check_one_choice_of_images
from workflows.grid.converge import AXES, Converge
from workflows.grid.precision import Precision, Question, questions, random_order
from workflows.grid.record import record
from workflows.grid.silence import RULE_NAMES, Silence

__all__ = ["BASES", "GRID_AXES", "SECTIONS", "Builder", "DefenceFields", "Grid"]

PROBE: ProbeWhich = "foreign"
"""What is probed where a sweep does not say."""

MOST_CELLS = 1_000_000
"""Cells of a sweep; the largest that is shipped has 284."""

_THREATS = ("attacks", "corruptions", "certificates")
GRID_AXES = ("datasets", "classifiers", "defences", *_THREATS, "seeds")
SECTIONS = {"sweep", "requires", *GRID_AXES, "denoisers", "chunk", "compute", "resubmissions", "quality", "probe"}
SECTIONS = {*SECTIONS, "precision", "exclude", "include", "silence"}
_MATCHERS = {*PARTS, "seed"}
BASES: dict[str, type[Spec]] = {
    "dataset": DatasetConfig,
    "classifier": ClassifierConfig,
    "defence": PurifierConfig,
    "attack": AttackConfig,
    "corruption": CorruptionConfig,
    "certificate": CertificateConfig,
}


MOST_DRAWS = int(BOUNDS["draws"].most)


class DefenceFields(Spec):
    """Fields of a defence entry that are not the purifier's, whose ``unbounded`` is for them too."""

    bounds: ClassVar[Mapping[str, Bound]] = {"draws": Bound(LARGEST_INTEGER, "more than any image could be asked")}

    draws: int = Field(default=1, ge=1)
    aggregation: Aggregation = "single"
    until: Until | None = None


_OF_DEFENCES = frozenset(DefenceFields.model_fields)
_OF_DATASETS = frozenset({"images"})
_OF_ATTACKS = frozenset({"converge"})


@dataclass(frozen=True)
class Grid:
    """What a document says.

    Arguments:
        name: The sweep's name.
        cells: Its cells, without duplicates, in order.
        record: The same grid as plain values, every config in full and every path absolute.
        silences: The auditor's findings that it silences.
        precision: How precise its answers must be; None computes every cell in full.
        questions: What that asks of its cells.
    """

    name: str
    cells: tuple[Cell, ...]
    record: dict[str, Any]
    silences: tuple[Silence, ...] = ()
    precision: Precision | None = None
    questions: tuple[Question, ...] = ()


class Builder:
    """Turns a document into cells; holds what entries share."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._entries: dict[int, Keys] = {}
        """Where each value of an axis is written, by its ``id()``: axes live as long as the cells are made."""
        self._converges: dict[int, Converge] = {}
        """How far attacks are doubled, by their ``id()``."""
        self._corrupted: dict[tuple[CorruptionConfig, str], CorruptionConfig] = {}
        self.base = document.folder
        known_keys(document, (), document.data, SECTIONS)
        self.compute = self._compute()
        self.chunk = self._chunk()
        self.resubmissions = self._resubmissions()
        self.quality = self._quality()
        self.probe = self._probe()
        self.precision = self._precision()
        self.denoisers = self._denoisers()

    def grid(self) -> Grid:
        """Return the cells.

        Raises:
            InvalidInput: Anything that would make the sweep fail or mean something else than was meant.
        """
        document = self.document
        name = document.data.get("sweep", None if document.path is None else document.path.stem)
        if not isinstance(name, str) or not name:
            raise document.error(("sweep",), f"the name of a sweep is text, like `sweep: my-sweep`, not {name!r}.")
        wrong = wrong_name(name)
        if wrong is not None:
            whose = "" if "sweep" in document.data else " (of the file, as there is no `sweep: NAME` in it)"
            raise document.error(("sweep",), f"the name {name!r}{whose} cannot be a sweep's: {wrong}.")
        self._check_size()
        axes = {axis: self._axis(axis, (axis,)) for axis in GRID_AXES}
        if not any(axes[axis] for axis in _THREATS):
            axes["attacks"] = [None]
        self._check_product(axes, ())
        cells = list(self._product(axes))
        cells = self._excluded(cells)
        included = []
        for position, entry in enumerate(self._list("include")):
            keys = ("include", position)
            known_keys(document, keys, entry, set(GRID_AXES))
            axes_of_entry = {axis: self._axis(axis, (*keys, axis)) for axis in GRID_AXES if axis in entry}
            included.append(axes_of_entry)
            grid = axes | axes_of_entry
            if any(axis in entry for axis in _THREATS):  # it names its threats: the file's others are not meant
                grid |= {axis: [] for axis in _THREATS if axis not in entry}
            self._check_product(grid, keys, len(cells))
            cells += self._product(grid)
        unique = tuple({cell.id: cell for cell in cells}.values())
        if not unique:
            raise document.error(("exclude",), "nothing is left of the grid: every cell is excluded.")
        for cell in unique:
            check_fit(document, cell, self.precision)
        check_one_choice_of_images(document, unique)
        settings = {
            "chunk": self.chunk,
            "compute": self.compute,
            "resubmissions": self.resubmissions,
            "quality": self.quality,
            "probe": self.probe if "probe" in document.data else None,
            "precision": self.precision,
            "exclude": self._list("exclude"),
            "silence": self._list("silence"),
        }
        written = record(name, axes, included, settings)
        return Grid(name, unique, written, self._silences(unique), self.precision, self._questions(unique))

    def _check_size(self) -> None:
        """Refuse a grid of too many cells before a config is made of any entry."""
        data = self.document.data
        grids: list[tuple[Keys, dict[str, Any]]] = [((), data)]
        for position, entry in enumerate(self._list("include")):
            if isinstance(entry, dict):
                own = entry if any(axis in entry for axis in _THREATS) else data
                grids.append((("include", position), {**data, **dict.fromkeys(_THREATS), **own, **entry}))
        total = 0
        for keys, grid in grids:
            counts = {axis: self._count(axis, grid.get(axis)) for axis in GRID_AXES}
            total += self._check_count(counts, keys, total)

    def _count(self, axis: str, section: Any) -> int:
        """Return about how many values an axis has; mistakes in it are found later."""
        entries = section if isinstance(section, list) else []
        base = BASES.get(axis.removesuffix("s"))
        total = 0
        for entry in entries:
            if base is None or not isinstance(entry, dict):
                total += 1
                continue
            named = entry.get(base.named_by or "")
            try:
                kind = type(named) if isinstance(named, base) else base.entry_class(entry)
            except InvalidInput:
                kind = base
            beside = _OF_DATASETS | _OF_ATTACKS
            total += combinations({name: value for name, value in entry.items() if name not in beside}, kind)
        return total

    def _check_product(self, axes: dict[str, list[Any]], keys: Keys, before: int = 0) -> None:
        """Refuse a grid of too many cells before they are made."""
        self._check_count({axis: len(values) for axis, values in axes.items()}, keys, before)

    def _check_count(self, counts: dict[str, int], keys: Keys, before: int) -> int:
        """Return the product of the axes.

        Raises:
            InvalidInput: It is too large, with what was there ``before``; at the longest axis.
        """
        threats = {axis: counts[axis] for axis in _THREATS}
        factors = {axis: max(1, count) for axis, count in counts.items() if axis not in threats}
        cells = math.prod(factors.values()) * max(1, sum(threats.values()))
        if before + cells <= MOST_CELLS:
            return cells
        longest = max(counts, key=lambda axis: counts[axis])
        product = " x ".join(f"{count:,} {axis}" for axis, count in (*factors.items(), *threats.items()) if count > 1)
        raise self.document.error(
            (*keys, longest),
            f"the grid has {before + cells:,} cells ({product}), more than {MOST_CELLS:,}, which one sweep can "
            "hold. A list inside an entry is an axis too, and axes multiply: shorten some, or write several sweep "
            "files, which share what they have in common.",
        )

    def _product(self, axes: dict[str, list[Any]]) -> Iterable[Cell]:
        threats = [threat for axis in _THREATS for threat in axes[axis]]
        fixed = (axes[axis] for axis in ("datasets", "classifiers", "defences"))
        for images, classifier, defence, threat, seed in itertools.product(*fixed, threats, axes["seeds"]):
            places = (self._entries.get(id(part), ()) for part in (images, classifier, defence, threat))
            entries = Entries(*places)
            converge = self._converges.get(id(threat))
            threat = self._on(images, threat)
            if isinstance(threat, CertificateConfig):
                defence = located(self.document, ("certificates",), partial(defence.smoothed, threat))
            elif isinstance(threat, AttackConfig) and isinstance(defence.purifier, NoPurifierConfig):
                threat = threat.on_bare_classifier()  # so that the adaptive attacks on no defence are one cell
            elif isinstance(threat, StrongestConfig):
                threat = threat.on(defence.purifier)
            if isinstance(threat, StrongestConfig):
                threat = threat.for_classes(classifier.architecture.classes)
            yield Cell(
                images,
                classifier,
                defence,
                threat,
                seed,
                self.compute,
                self.resubmissions,
                quality=self.quality,
                probe=self.probe,
                converge=converge,
                entries=entries,
            )

    def _on(self, images: Images, threat: Threat) -> Threat:
        """Give a corruption the official arrays that its data set names; return other threats unchanged."""
        if not isinstance(threat, CorruptionConfig):
            return threat
        key = (threat, images.dataset.id)
        if key not in self._corrupted:
            self._corrupted[key] = located(self.document, ("corruptions",), partial(threat.of, images.dataset))
        return self._corrupted[key]

    def _list(self, key: str) -> list[Any]:
        value = self.document.data.get(key) or []
        if not isinstance(value, list):
            raise self.document.error((key,), "a list was expected.")
        return value

    def _axis(self, axis: str, keys: Keys) -> list[Any]:
        if axis == "seeds":
            return self._seeds(keys)
        readers: dict[str, tuple[Callable[[Keys, dict[str, Any]], Iterable[Any]], type[Spec]]] = {
            "datasets": (self._images, DatasetConfig),
            "classifiers": (partial(self._configs, ClassifierConfig), ClassifierConfig),
            "defences": (self._defences, PurifierConfig),
            "attacks": (self._attacks, AttackConfig),
            "corruptions": (self._corruptions, CorruptionConfig),
            "certificates": (partial(self._configs, CertificateConfig), CertificateConfig),
        }
        read, base = readers[axis]
        entries = items(self.document, keys, base, optional=axis in _THREATS)
        values = [(place, value) for place, entry in entries for value in read(place, entry)]
        self._entries.update((id(value), place) for place, value in values if value is not None)
        return [value for _, value in values]

    def _seeds(self, keys: Keys) -> list[int]:
        section: Any = self.document.data
        for key in keys:
            section = section.get(key, [0]) if isinstance(section, dict) else section[key]
        seeds = section if isinstance(section, list) else [section]
        if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
            raise self.document.error(keys, f"seeds are whole numbers, not {section!r}.")
        return seeds

    def _whole(self, key: str, value: Any, what: str, most: int) -> int:
        """Return a whole number from 1 to ``most``."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < 1:
            raise self.document.error((key,), f"{key} is {what}, at least 1, not {value!r}.")
        if value > most:
            raise self.document.error((key,), f"{key} = {value} is {what}, and more than {most:,} cannot be meant.")
        number: int = value
        return number

    # Sections that hold one thing.

    def _compute(self) -> Compute:
        fields = self.document.data.get("compute", {})
        if isinstance(fields, Compute):
            return fields
        known_keys(self.document, ("compute",), fields, set(Compute.model_fields))
        return validate(self.document, ("compute",), Compute, fields)

    def _chunk(self) -> int:
        return self._whole("chunk", self.document.data.get("chunk", 100), "the number of images of a unit", 1_000_000)

    def _resubmissions(self) -> int | None:
        value = self.document.data.get("resubmissions")
        if value is None:
            return None
        return self._whole("resubmissions", value, "how often an attacker may submit an image", MOST_DRAWS)

    def _quality(self) -> QualityConfig | None:
        """``quality: {}`` measures PSNR and SSIM, ``quality: {lpips: FILE}`` LPIPS too."""
        fields = self.document.data.get("quality")
        if fields is None or fields is False:
            return None
        keys: Keys = ("quality",)
        if isinstance(fields, QualityConfig):
            return located(self.document, keys, partial(fields.resolved, self.base))
        fields = known_keys(self.document, keys, {} if fields is True else fields, set(QualityConfig.model_fields))
        return validate(self.document, keys, QualityConfig, fields, reading=Reading(self.base))

    def _probe(self) -> ProbeWhich:
        """``probe: true`` probes every purifier and classifier, ``foreign`` those of others' code, ``false`` none."""
        value = self.document.data.get("probe", PROBE)
        if not isinstance(value, bool) and value != "foreign":
            raise self.document.error(
                ("probe",),
                f"probe is true (every purifier and classifier), false (none) or foreign (those whose code is not "
                f"puregrid's), not {value!r}.",
            )
        return value  # type: ignore[no-any-return]

    def _precision(self) -> Precision | None:
        fields = self.document.data.get("precision")
        if fields is None or isinstance(fields, Precision):
            return fields
        keys: Keys = ("precision",)
        fields = known_keys(self.document, keys, fields, set(Precision.model_fields))
        return validate(self.document, keys, Precision, fields)

    def _questions(self, cells: Sequence[Cell]) -> tuple[Question, ...]:
        decide = None if self.precision is None else self.precision.decide
        keys: Keys = ("precision", "decide", "between")
        named = () if decide is None or decide.between is None else decide.between
        sides = [self._wanted((*keys, side), PurifierConfig, value) for side, value in enumerate(named)]
        return tuple(located(self.document, (), partial(questions, cells, self.precision, sides)))

    def _denoisers(self) -> dict[str, Spec]:
        section = self.document.data.get("denoisers", {})
        if not isinstance(section, dict):
            raise self.document.error(("denoisers",), "denoisers is a mapping from a name of yours to a denoiser.")
        return {name: self._denoiser(("denoisers", name), entry) for name, entry in section.items()}

    def _denoiser(self, keys: Keys, entry: Any) -> DenoiserConfig:
        if not isinstance(entry, dict | DenoiserConfig):
            raise self.document.error(keys, f"a denoiser is a mapping with format, path and schedule, not {entry!r}.")
        return located(self.document, keys, partial(DenoiserConfig.from_entry, entry, Reading(self.base)))

    # Axes.

    def _combinations(
        self, base: type[Spec], keys: Keys, entry: dict[str, Any], beside: frozenset[str] = frozenset()
    ) -> Iterator[tuple[Any, Combination]]:
        """Yield the resolved configs of an entry, each with its combination.

        Arguments:
            base: What the configs are.
            keys: The entry's place.
            entry: A mapping, see :func:`items`.
            beside: Fields of the entry that are not the config's.
        """
        document, value = self.document, entry[base.named_by or ""]
        if isinstance(value, base):
            known_keys(document, keys, entry, {base.named_by or "", *beside})
            kind = type(value)
        else:
            kind = located(document, keys, partial(base.entry_class, entry))
        reading = Reading(self.base, {"denoisers": self.denoisers}, tuple(beside))
        for combination in expand(document, keys, entry, kind):
            config = value
            if not isinstance(config, base):
                fields = combination.without(beside).fields
                config = validate(document, keys, kind, fields, reading=reading, places=combination.places)
            yield located(document, keys, partial(config.resolved, self.base), combination.places), combination

    def _configs(self, base: type[Spec], keys: Keys, entry: dict[str, Any]) -> list[Any]:
        return [config for config, _ in self._combinations(base, keys, entry)]

    def _images(self, keys: Keys, entry: dict[str, Any]) -> Iterator[Images]:
        selection = {name: value for name, value in entry.items() if name in _OF_DATASETS}
        rest = {name: value for name, value in entry.items() if name not in _OF_DATASETS}
        for config, _ in self._combinations(DatasetConfig, keys, rest, _OF_DATASETS):
            ids = image_ids(self.document, (*keys, "images"), selection.get("images"), len(config.load()))
            located(self.document, keys, partial(config.check_selected, ids))
            if self.precision is not None:
                ids = random_order(ids)
            chunks = tuple(Chunk(tuple(ids[i : i + self.chunk])) for i in range(0, len(ids), self.chunk))
            yield Images(config, chunks)

    def _defences(self, keys: Keys, entry: dict[str, Any]) -> Iterator[Defence]:
        for config, combination in self._combinations(PurifierConfig, keys, entry, _OF_DEFENCES):
            written = {name: value for name, value in combination.fields.items() if name in _OF_DEFENCES}
            shared = validate(self.document, keys, DefenceFields, written, places=combination.places)
            if shared.draws > MOST_DRAWS and "draws" not in config.unbounded:
                chosen = [combination.places["draws"]] if "draws" in combination.places else []
                wrong = beyond("draws", shared.draws, BOUNDS["draws"], can_lift=True)
                raise self.document.error((*keys, "draws", *chosen), wrong.message)
            if shared.draws > 1 and not config.stochastic:
                raise self.document.error(
                    (*keys, "draws"),
                    f"purifier {config.purifier!r} is deterministic: every draw is the same, give 1.",
                )
            yield Defence(config, shared.draws, shared.aggregation, shared.until)

    def _attacks(self, keys: Keys, entry: dict[str, Any]) -> Sequence[AttackConfig | None]:
        if entry["attack"] == "none":
            known_keys(self.document, keys, entry, {"attack"})
            return [None]
        wanted = entry.get("converge", False)
        rest = {name: value for name, value in entry.items() if name not in _OF_ATTACKS}
        configs = self._configs(AttackConfig, keys, rest)
        if wanted is False:
            return configs
        place: Keys = (*keys, "converge")
        if self.precision is not None and self.precision.decide is not None:
            raise self.document.error(
                place,
                "converge compares accuracies, and `precision: {decide: ...}` stops before they are known: write "
                "`precision: {half_width: 2}`, or remove one of them.",
            )
        fields = known_keys(self.document, place, {} if wanted is True else wanted, set(Converge.model_fields))
        converge = validate(self.document, place, Converge, fields)
        for config in configs:
            for axis in AXES:
                if getattr(converge, axis) is not None and config.parameter(axis) is None:
                    raise self.document.error((*place, axis), f"{config.label()} has no {axis}.")
        self._converges.update((id(config), converge) for config in configs)
        return configs

    def _corruptions(self, keys: Keys, entry: dict[str, Any]) -> list[CorruptionConfig]:
        """``corruption`` is a name, a list of names, ``benchmark`` (the fifteen) or ``extra`` (the other four)."""
        named = entry["corruption"]
        if isinstance(named, CorruptionConfig):
            return self._configs(CorruptionConfig, keys, entry)
        groups = {"benchmark": list(BENCHMARK), "extra": list(EXTRA)}
        listed = [named] if isinstance(named, str) else named
        names = [member for name in listed for member in groups.get(name, [name])]
        entry = {"severity": list(SEVERITIES), **entry, "corruption": names}
        configs = []
        for combination in expand(self.document, keys, entry, CorruptionConfig):
            name = combination.fields["corruption"]
            if len(names) > 1:  # of several, an option is meant for those that have it
                kind = CORRUPTIONS.get(name) if isinstance(name, str) else None
                theirs = {"photographs": name == "frost", "motion": kind is not None and kind.moves}
                combination = combination.without(frozenset(option for option, has in theirs.items() if not has))
            fields, places = combination.fields, combination.places
            config = validate(self.document, keys, CorruptionConfig, fields, places=places)
            configs.append(located(self.document, keys, partial(config.resolved, self.base), places))
        return configs

    def _excluded(self, cells: list[Cell]) -> list[Cell]:
        grid = cells
        for position, entry in enumerate(self._list("exclude")):
            keys: Keys = ("exclude", position)
            known_keys(self.document, keys, entry, _MATCHERS)
            wanted = {part: self._wanted((*keys, part), BASES.get(part), value) for part, value in entry.items()}
            if not any(cell.matches(wanted) for cell in grid):
                raise self.document.error(keys, f"{entry} matches no cell of the grid; correct or remove it.")
            cells = [cell for cell in cells if not cell.matches(wanted)]
        return cells

    def _silences(self, cells: Sequence[Cell]) -> tuple[Silence, ...]:
        return tuple(self._silence(("silence", i), entry, cells) for i, entry in enumerate(self._list("silence")))

    def _silence(self, keys: Keys, entry: Any, cells: Sequence[Cell]) -> Silence:
        document = self.document
        known_keys(document, keys, entry, {"rule", "cells", "reason"})
        rule, reason = entry.get("rule"), entry.get("reason")
        if rule not in RULE_NAMES:
            raise document.error(
                (*keys, "rule"), f"there is no audit rule {rule!r}; {nearest(str(rule), RULE_NAMES)}"
            )
        if not isinstance(reason, str) or not reason.strip():
            raise document.error(
                (*keys, "reason"), f"a silenced finding is shown with its reason: say why {rule} is no concern here."
            )
        place = document.where(keys) or ".".join(map(str, keys))
        if "cells" not in entry:
            return Silence(rule, reason.strip(), None, place)
        matchers = known_keys(document, (*keys, "cells"), entry["cells"], _MATCHERS)
        wanted = {part: self._wanted((*keys, "cells", part), BASES.get(part), v) for part, v in matchers.items()}
        meant = frozenset(cell.id for cell in cells if cell.matches(wanted))
        if not meant:
            raise document.error((*keys, "cells"), f"{matchers} matches no cell of the grid; correct or remove it.")
        return Silence(rule, reason.strip(), meant, place)

    def _wanted(self, keys: Keys, base: type[Spec] | None, value: Any) -> Any:
        """Return the fields that ``exclude`` names of a part, in their proper spelling."""
        if base is None or not isinstance(value, dict):
            return value
        try:
            kind = base.entry_class(value)
        except InvalidInput:  # it need not name a class
            kind = base
        return located(self.document, keys, partial(kind.spelled, value))
