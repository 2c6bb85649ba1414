"""From a document to cells: the product of the axes, every entry validated, every file found and hashed.

Grid = datasets x classifiers x defences x threats x seeds, minus ``exclude``, plus ``include`` (further grids that
inherit the axes they do not name). Threats are the attacks, the corruptions and the certificates together; without
any of them there are clean images alone. Inside an entry, a list where a single value is expected is an axis too.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import getitem
from typing import Any, ClassVar

from pydantic import Field

from defense.aggregate import Aggregation, Until
from defense.bounds import BOUNDS, LARGEST_INTEGER, Bound, beyond
from defense.classifiers import ClassifierConfig
from defense.errors import InvalidInput, nearest
from defense.purifiers import NoPurifierConfig, PurifierConfig
from defense.spec import Reading, Spec
from tasks.attacks import AttackConfig, StrongestConfig
from tasks.certificates import CertificateConfig
from tasks.corruptions import BENCHMARK, CORRUPTIONS, EXTRA, SEVERITIES
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import DatasetConfig
from tasks.stages import Chunk
from workflows.documents.authors import NAMES
from workflows.documents.document import Document, Keys
from workflows.documents.entries import (
    Combination,
    expand,
    image_ids,
    items,
    known_keys,
    located,
    validate,
)
from workflows.documents.names import wrong_name
from workflows.grid.cells import PARTS, Cell, Defence, Entries, Images, Threat
from workflows.grid.compatibility import check_fit, check_one_choice_of_images
from workflows.grid.converge import AXES, Converge
from workflows.grid.precision import Precision, Question, questions, random_order
from workflows.grid.record import record
from workflows.grid.sections.axes import BASES, GRID_AXES, THREATS, check_product, check_size
from workflows.grid.sections.settings import MOST_DRAWS, SECTIONS, Settings
from workflows.grid.silence import RULE_NAMES, Silence

__all__ = ["BASES", "GRID_AXES", "SECTIONS", "Builder", "DefenceFields", "Grid"]


_MATCHERS = {*PARTS, "seed"}


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
        names: Published settings of purifiers and attacks, by id.
    """

    name: str
    cells: tuple[Cell, ...]
    record: dict[str, Any]
    silences: tuple[Silence, ...] = ()
    precision: Precision | None = None
    questions: tuple[Question, ...] = ()
    names: Mapping[str, set[str]] = field(default_factory=dict)


class Builder(Settings):
    """Turns a document into cells; holds what entries share."""

    def __init__(self, document: Document) -> None:
        super().__init__(document)
        self._entries: dict[int, Keys] = {}
        """Where each value of an axis is written, by its ``id()``: axes live as long as the cells are made."""
        self._names: dict[str, set[str]] = {}
        self._converges: dict[int, Converge] = {}
        """How far attacks are doubled, by their ``id()``."""
        self._corrupted: dict[tuple[CorruptionConfig, str], CorruptionConfig] = {}

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
        check_size(document, self._list("include"))
        axes = {axis: self._axis(axis, (axis,)) for axis in GRID_AXES}
        if not any(axes[axis] for axis in THREATS):
            axes["attacks"] = [None]
        check_product(document, axes, ())
        cells = list(self._product(axes))
        cells = self._excluded(cells)
        included = []
        for position, entry in enumerate(self._list("include")):
            keys = ("include", position)
            known_keys(document, keys, entry, set(GRID_AXES))
            axes_of_entry = {axis: self._axis(axis, (*keys, axis)) for axis in GRID_AXES if axis in entry}
            included.append(axes_of_entry)
            grid = axes | axes_of_entry
            if any(axis in entry for axis in THREATS):  # it names its threats: the file's others are not meant
                grid |= {axis: [] for axis in THREATS if axis not in entry}
            check_product(document, grid, keys, len(cells))
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
        written = record(name, axes, included, settings, self._names)
        asked = self._questions(unique)
        return Grid(name, unique, written, self._silences(unique), self.precision, asked, self._names)

    def _product(self, axes: dict[str, list[Any]]) -> Iterable[Cell]:
        threats = [threat for axis in THREATS for threat in axes[axis]]
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
        entries = items(self.document, keys, base, optional=axis in THREATS)
        values = [(place, value) for place, entry in entries for value in read(place, entry)]
        self._entries.update((id(value), place) for place, value in values if value is not None)
        for place, value in values:
            written: Any = reduce(getitem, place, self.document.data)  # type: ignore[arg-type]
            if isinstance(written, dict) and (name := written.get(NAMES.get(base.named_by or ""))) is not None:
                spec = value.purifier if isinstance(value, Defence) else value
                self._names.setdefault(spec.id, set()).add(name)
        return [value for _, value in values]

    def _seeds(self, keys: Keys) -> list[int]:
        section: Any = self.document.data
        for key in keys:
            section = section.get(key, [0]) if isinstance(section, dict) else section[key]
        seeds = section if isinstance(section, list) else [section]
        if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
            raise self.document.error(keys, f"seeds are whole numbers, not {section!r}.")
        return seeds

    def _questions(self, cells: Sequence[Cell]) -> tuple[Question, ...]:
        decide = None if self.precision is None else self.precision.decide
        keys: Keys = ("precision", "decide", "between")
        named = () if decide is None or decide.between is None else decide.between
        sides = [self._wanted((*keys, side), PurifierConfig, value) for side, value in enumerate(named)]
        return tuple(located(self.document, (), partial(questions, cells, self.precision, sides)))

    def _combinations(
        self, base: type[Spec], keys: Keys, entry: dict[str, Any], beside: frozenset[str] = frozenset()
    ) -> Iterator[tuple[Any, Combination]]:
        """Yield the resolved configs of an entry, each with its combination."""
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
                most, has = getattr(converge, axis), config.parameter(axis)
                if most is not None and has is None:
                    raise self.document.error((*place, axis), f"{config.label()} has no {axis}.")
                if most is not None and most != has and most < 2 * has:
                    raise self.document.error(
                        (*place, axis),
                        f"{config.label()} has {has} {axis}, and {most} at most leaves no room to double them: write "
                        f"{4 * has} or more, or {has} where they shall stay.",
                    )
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
