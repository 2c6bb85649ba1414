"""Cells, and what they are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from defense.aggregate import Aggregation, Until
from defense.classifiers import ClassifierConfig
from defense.purifiers import NoPurifierConfig, PurifierConfig
from defense.spec import digest
from tasks.attacks import AttackConfig, LadderConfig, StrongestConfig, TransferConfig
from tasks.certificates import CertificateConfig
from tasks.compute import Compute
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import DatasetConfig
from tasks.stages import (
    AttackStage,
    CertifyStage,
    Chunk,
    CorruptStage,
    EvaluateStage,
    ProbeStage,
    QualityStage,
    Smoothed,
    StageSpec,
)
from tasks.stages.quality import QualityConfig
from workflows.grid.converge import Converge

__all__ = ["PARTS", "Cell", "Defence", "Entries", "Images", "ProbeWhich", "Threat"]

PARTS = {
    "dataset": "dataset",
    "classifier": "classifier",
    "defence": "purifier",
    "attack": "attack",
    "corruption": "corruption",
    "certificate": "certificate",
}
"""The parts of a cell that have names, with the field that names each in its config."""

ProbeWhich = bool | Literal["foreign"]

Threat = AttackConfig | CorruptionConfig | CertificateConfig | None
"""What a defence is up against; None for clean images."""


class Entries(NamedTuple):
    """Where the parts of a cell are written: the path of each entry in its document.

    Arguments:
        dataset: Of the data set.
        classifier: Of the classifier.
        defence: Of the purifier.
        threat: Of the attack, corruption or certificate.
    """

    dataset: tuple[str | int, ...] = ("datasets",)
    classifier: tuple[str | int, ...] = ("classifiers",)
    defence: tuple[str | int, ...] = ("defences",)
    threat: tuple[str | int, ...] = ("attacks",)


@dataclass(frozen=True)
class Images:
    """A data set and the chunks of it that a sweep uses."""

    dataset: DatasetConfig
    chunks: tuple[Chunk, ...]

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(len(chunk.ids) for chunk in self.chunks)


@dataclass(frozen=True)
class Defence:
    """A purifier in front of the classifier, and how its draws become one answer.

    Arguments:
        purifier: The purifier.
        draws: Draws by which an image is judged.
        aggregation: How they become one answer.
        until: What must be certain of an image for its further draws not to be asked; None asks all.
    """

    purifier: PurifierConfig
    draws: int
    aggregation: Aggregation
    until: Until | None = None

    @property
    def answers(self) -> dict[str, Any]:
        """Its fields that are not the purifier's, as in an entry of a sweep file."""
        until = {} if self.until is None else {"until": self.until}
        return {"draws": self.draws, "aggregation": self.aggregation, **until}

    def label(self) -> str:
        """Name in tables."""
        return self.purifier.label()

    def smoothed(self, certificate: CertificateConfig) -> Defence:
        """The base classifier of a certificate: purifier at the t* of its noise, and the draws that answer a sample.

        Raises:
            InvalidInput: The certificate does not fit the purifier.
        """
        base, purifier = certificate.base_of(self.purifier)
        votes = self.draws if self.aggregation != "single" and base != "bare" else 1
        return Defence(purifier, votes, "single" if votes == 1 else self.aggregation)


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Arguments:
        images: Data set and chunks.
        classifier: The protected classifier.
        defence: The purifier, and how its draws are aggregated.
        threat: An attack, a corruption or a certificate; None for clean images.
        seed: Seed of all randomness.
        compute: How units compute.
        resubmissions: M: how often the attacker may submit an image, for worst-of-M accuracy; None for as often as
            there are draws. It is the same for clean images.
        quality: Whether image quality is measured too, and how.
        probe: Whether its parts are probed: all, none, or those whose code is not puregrid's.
        converge: How far its attack is doubled; None for as it is. No id depends on it.
        entries: Where its parts are written.
    """

    images: Images
    classifier: ClassifierConfig
    defence: Defence
    threat: Threat
    seed: int
    compute: Compute
    resubmissions: int | None = None
    quality: QualityConfig | None = None
    probe: ProbeWhich = field(default=False, compare=False)
    converge: Converge | None = field(default=None, compare=False)
    entries: Entries = field(default=Entries(), compare=False, repr=False)

    @property
    def attack(self) -> AttackConfig | None:
        """The attack, if that is the threat."""
        return self.threat if isinstance(self.threat, AttackConfig) else None

    @property
    def corruption(self) -> CorruptionConfig | None:
        """The corruption, if that is the threat."""
        return self.threat if isinstance(self.threat, CorruptionConfig) else None

    @property
    def certificate(self) -> CertificateConfig | None:
        """The certificate, if that is the threat."""
        return self.threat if isinstance(self.threat, CertificateConfig) else None

    @property
    def adversarial(self) -> bool:
        """Whether the cell is in the robustness table: clean or attacked."""
        return self.threat is None or self.attack is not None

    @cached_property
    def stages(self) -> tuple[StageSpec, ...]:
        """The last stages of the cell; all others are their inputs."""
        if self.certificate is not None:
            return (self.certify,)
        measured = self.measure
        return (self.evaluate,) if measured is None else (self.evaluate, measured)

    @cached_property
    def evaluate(self) -> EvaluateStage:
        """The stage that judges the defence, of a cell that is no certificate."""
        return EvaluateStage(
            dataset=self.images.dataset,
            source=self.source,
            classifier=self.classifier,
            purifier=self.defence.purifier,
            draws=self.defence.draws,
            until=self.defence.until,
            seed=self.seed,
            compute=self._compute(self.defence.purifier),
        )

    @cached_property
    def measure(self) -> QualityStage | None:
        """The measurement of image quality, if the sweep wants one and the cell judges images."""
        if self.quality is None or self.certificate is not None:
            return None
        purifier = self.defence.purifier
        return QualityStage(
            dataset=self.images.dataset,
            source=self.source,
            classifier=self.classifier if purifier.uses_classifier else None,
            purifier=purifier,
            quality=self.quality,
            seed=self.seed,
            compute=self._compute(purifier),
        )

    @cached_property
    def probes(self) -> tuple[tuple[ProbeStage, Chunk], ...]:
        """The probes of its purifier and classifier, each with the images that it takes; none of them in its id.

        Cells with one purifier, or one classifier, have one probe of it.
        """
        if self.probe is False:
            return ()
        # Nothing else of how units compute has an influence on a probe.
        compute = Compute(threads=self.compute.threads, noise=self.compute.noise)
        purifier, dataset = self.defence.purifier, self.images.dataset
        parts: list[ProbeStage] = []
        if self._probed(purifier) and not isinstance(purifier, NoPurifierConfig):
            guide = self.classifier if purifier.uses_classifier else None
            parts.append(ProbeStage(dataset=dataset, purifier=purifier, classifier=guide, compute=compute))
        if self._probed(self.classifier):
            parts.append(ProbeStage(dataset=dataset, classifier=self.classifier, compute=compute))
        if not parts:  # as mostly: ten thousand images of each of many cells need no listing
            return ()
        ids = tuple(i for chunk in self.images.chunks for i in chunk.ids)
        return tuple((part, ProbeStage.chunk(ids)) for part in parts)

    def _probed(self, part: PurifierConfig | ClassifierConfig) -> bool:
        return self.probe is True or (self.probe == "foreign" and part.foreign)

    @cached_property
    def certify(self) -> CertifyStage:
        """The stage that certifies, of a cell whose threat is a certificate."""
        if self.certificate is None:
            raise ValueError("this cell is no certificate")
        base, purifier = self.certificate.base_of(self.defence.purifier)
        smoothed = Smoothed(
            dataset=self.images.dataset,
            classifier=self.classifier,
            purifier=purifier,
            base=base,
            votes=1 if self.defence.aggregation == "single" else self.defence.draws,
            inner="mean" if self.defence.aggregation == "mean-probability" else "vote",
            sigma=self.certificate.sigma,
            seed=self.seed,
            compute=self.compute,
        )
        return CertifyStage(smoothed=smoothed, certificate=self.certificate)

    @cached_property
    def source(self) -> AttackStage | CorruptStage | None:
        """The stage that makes the judged images; None for clean ones."""
        if self.corruption is not None:
            return CorruptStage(dataset=self.images.dataset, corruption=self.corruption, seed=self.seed)
        return self.attack_stage

    @cached_property
    def attack_stage(self) -> AttackStage | None:
        """The stage of the attack, if that is the threat."""
        return None if self.attack is None else self._source(self.attack)

    def _source(self, attack: AttackConfig) -> AttackStage:
        """Return the stage that makes the judged images."""
        if isinstance(attack, LadderConfig):
            return self._ladder(attack)
        if isinstance(attack, TransferConfig):
            origin = attack.classifier or self.classifier
            source = self._stage(attack.source, classifier=origin, purifier=attack.purifier)
            return self._stage(attack, sources=(source,), purifier=None)
        return self._stage(attack)

    def _ladder(self, attack: LadderConfig) -> AttackStage:
        """Return all rungs side by side; with skipping, each after a ladder of the rungs before it."""
        stochastic = self.defence.purifier.stochastic
        if isinstance(attack, StrongestConfig):
            return self._strongest(attack.against(self.defence.aggregation, stochastic=stochastic))
        if not stochastic:
            attack = attack.model_copy(update={"select": 1})
        if not attack.skip:
            return self._stage(attack, sources=tuple(map(self._stage, attack.rungs)))
        ladder: AttackStage | None = None
        for count, rung in enumerate(attack.rungs, start=1):
            so_far = attack.model_copy(update={"rungs": attack.rungs[:count]})
            if ladder is None:
                ladder = self._stage(so_far, sources=(self._stage(rung),))
            else:
                ladder = self._stage(so_far, sources=(ladder, self._stage(rung, after=ladder)))
        assert ladder is not None
        return ladder

    def _strongest(self, attack: StrongestConfig) -> AttackStage:
        """Return the rungs that start by themselves side by side, each other after the worst of all before it."""
        alone = attack.rungs[: attack.alone]
        so_far = self._stage(attack.up_to(len(alone)), sources=tuple(map(self._stage, alone)))
        for count in range(len(alone) + 1, len(attack.rungs) + 1):
            rung = self._stage(attack.rungs[count - 1], after=so_far)
            so_far = self._stage(attack.up_to(count), sources=(so_far, rung))
        return so_far

    def _stage(self, attack: AttackConfig, **fields: Any) -> AttackStage:
        purifier = None if attack.static else self.defence.purifier
        parts: dict[str, Any] = {"classifier": self.classifier, "purifier": purifier, **fields}
        parts |= {"dataset": self.images.dataset, "seed": self.seed}
        return AttackStage(attack=attack, compute=self._compute(parts["purifier"], attack), **parts)

    def _compute(self, purifier: PurifierConfig | None, attack: AttackConfig | None = None) -> Compute:
        """Return how a stage computes: without a version of noise where it draws none, so that its rows are shared.

        Attacks for l_inf draw uniform numbers. One from elsewhere that draws others has those of version 1 then, as
        the id says.
        """
        normal = purifier is not None and purifier.stochastic and not isinstance(purifier, NoPurifierConfig)
        own = attack is not None and attack.parameter("norm") != "linf"
        return self.compute if normal or own else self.compute.without_noise()

    @cached_property
    def id(self) -> str:
        """Content id: its last stage, what is made of its draws, and on which images."""
        chunks = [chunk.name for chunk in self.images.chunks]
        if self.certificate is not None:
            return digest(json.dumps([self.certify.id, chunks]))
        measured = [] if self.measure is None else [self.measure.id]
        return digest(json.dumps([self.evaluate.id, self.defence.aggregation, self.resubmissions, chunks, *measured]))

    def part(self, name: str) -> tuple[str, dict[str, Any]] | None:
        """Return label and identifying fields of one of :data:`PARTS`; None if the threat is of another kind.

        The budget is not a part of an attack's fields here: tables have a column of its own for it.
        """
        if name == "dataset":
            chunks = digest("".join(chunk.name for chunk in self.images.chunks))
            return self.images.dataset.label(), {**self.images.dataset.identity(), "images": chunks}
        if name == "classifier":
            return self.classifier.label(), self.classifier.identity()
        if name == "defence":
            return self.defence.label(), {**self.defence.purifier.identity(), **self.defence.answers}
        if name == "attack" and self.threat is None:
            return "clean", {"attack": "none"}
        if name == "attack" and self.attack is not None:
            return self.attack.label(), {k: v for k, v in self.attack.identity().items() if k != "eps"}
        other = self.corruption if name == "corruption" else self.certificate if name == "certificate" else None
        return None if other is None else (other.label(), other.identity())

    def matches(self, wanted: dict[str, Any]) -> bool:
        """Return whether an ``exclude`` entry means this cell."""
        for key, value in wanted.items():
            if key == "seed":
                if self.seed != value:
                    return False
                continue
            part = self.part(key)
            if part is None:
                return False
            label, fields = part
            if key == "attack" and self.attack is not None:
                fields["eps"] = self.attack.eps
            if isinstance(value, dict):
                if not all(name in fields and _equal(fields[name], want) for name, want in value.items()):
                    return False
            elif value not in (label, fields.get(PARTS[key])):
                return False
        return True


def _equal(have: Any, want: Any) -> bool:
    if isinstance(want, list):
        return any(_equal(have, value) for value in want)
    if isinstance(have, float) and isinstance(want, int | float):
        return abs(have - want) <= 1e-9
    return bool(have == want)
