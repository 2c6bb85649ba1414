"""What is asked of each part of a sweep, on one image.

* a **classifier** is loaded, which examines it, and answers an image of the data set;
* a **defence** is built and purifies the image; for each gradient mode that its attacks use, one gradient is taken
  through purifier and classifier. Chains of many steps go in two (:meth:`~defense.purifiers.Purifier.surrogate`);
* an **attack** begins, in front of the first defence that it is run on, and is stopped after a few questions; one
  that is not puregrid's goes on for some seconds, and to its end if it comes to it;
* **corruptions** are applied;
* a **certificate** draws one sample of its base classifier;
* **quality** is measured of the image and itself.
"""

import json
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from defense.classifiers import ClassifierConfig
from defense.errors import InvalidInput
from defense.gradients import GradientMode
from defense.purifiers import NoPurifierConfig, PurifierConfig
from defense.randomness import Omega
from defense.spec import digest
from tasks.attacks import AttackConfig, Target
from tasks.attacks.base import checked_result
from tasks.attacks.losses import margin
from tasks.attacks.shortlist import AscentConfig
from tasks.compute import Compute, Context
from tasks.datasets import DatasetConfig
from tasks.stages import AttackStage, Chunk, CorruptStage, QualityStage, SampleStage, StageSpec

__all__ = [
    "AttackCheck",
    "Blamed",
    "CertificateCheck",
    "Check",
    "ClassifierCheck",
    "CorruptionCheck",
    "DefenceCheck",
    "QualityCheck",
]

_QUESTIONS, _DRAWS, _FOREIGN_SECONDS = 3, 2, 2.0
"""Questions and draws of each that an attack gets, and for how long one that is not puregrid's may go on."""


@dataclass(frozen=True)
class Check(ABC):
    """One question to one part of a sweep.

    Arguments:
        stage: A stage of the plan that has the part.
        image: The image that it is asked about.
    """

    section: ClassVar[str]
    """What the part is called in messages, and in the record."""
    stage: StageSpec
    image: int

    @property
    @abstractmethod
    def what(self) -> str:
        """The part, in words."""

    @property
    @abstractmethod
    def key(self) -> tuple[str, ...]:
        """What the answer depends on, as text: ids of specs, which hold the code of foreign parts."""

    @property
    def model_key(self) -> str:
        """Checks with equal keys come one after the other, so that a network is loaded once."""
        return self.stage.model_key()

    @abstractmethod
    def run(self, context: Context) -> None:
        """Ask.

        Raises:
            InvalidInput: The part cannot be computed with.
        """

    def _image(self, context: Context, dataset: DatasetConfig) -> tuple[Tensor, Tensor]:
        data = context.images(dataset)
        return context.tensor(data.images[[self.image]]), context.tensor(data.labels[[self.image]])


@dataclass(frozen=True)
class ClassifierCheck(Check):
    """A classifier."""

    section: ClassVar[str] = "classifier"
    classifier: ClassifierConfig
    dataset: DatasetConfig

    @property
    def what(self) -> str:
        """See :class:`Check`."""
        return f"classifier {self.classifier.label()!r}"

    @property
    def key(self) -> tuple[str, ...]:
        """See :class:`Check`."""
        return self.classifier.id, str(self.dataset.image_shape)

    def run(self, context: Context) -> None:
        """See :class:`Check`; loading it examines it."""
        network = context.classifier(self.classifier)
        with torch.no_grad():
            logits = network(self._image(context, self.dataset)[0])
        wanted = (1, self.classifier.architecture.classes)
        if tuple(logits.shape) != wanted or not bool(logits.isfinite().all()):
            raise InvalidInput(
                f"{self.what} answers an image of {self.dataset.label()!r} with an array of shape "
                f"{tuple(logits.shape)}, {int((~logits.isfinite()).sum())} of its values not finite; {wanted} finite "
                "logits are needed."
            )


@dataclass(frozen=True)
class DefenceCheck(Check):
    """A purifier in front of a classifier; with a gradient mode, the gradient of its attacks too."""

    section: ClassVar[str] = "defence"
    purifier: PurifierConfig
    classifier: ClassifierConfig | None
    dataset: DatasetConfig
    compute: Compute
    mode: str | None

    @property
    def what(self) -> str:
        """See :class:`Check`."""
        return f"purifier {self.purifier.label()!r}"

    @property
    def key(self) -> tuple[str, ...]:
        """See :class:`Check`; the classifier is a part of it where it guides the purifier."""
        guide = self.classifier.id if self.classifier is not None and self.purifier.uses_classifier else ""
        shape = str(self.dataset.image_shape)
        return self.purifier.id, guide, shape, self.compute.precision, self.mode or "no gradient"

    def run(self, context: Context) -> None:
        """See :class:`Check`."""
        x, y = self._image(context, self.dataset)
        purifier = context.purifier(self.purifier, self.classifier)
        omega = Omega.of(self.purifier.id, 0, "preflight", (self.image,), noise=self.compute.noise)
        with torch.no_grad(), context.autocast(self.compute):
            made = purifier(x, omega)
        if not isinstance(made, Tensor) or made.shape != x.shape:
            have = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise InvalidInput(
                f"{self.what} makes {have} of images of shape {tuple(x.shape)}: it must keep the shape."
            )
        if not bool(made.isfinite().all()):
            raise InvalidInput(f"{self.what} makes NaN or infinite pixels of image {self.image}.")
        if self.mode is None or self.classifier is None:
            return
        target = Target(
            context.classifier(self.classifier),
            y,
            omega,
            purifier,
            mode=GradientMode.parse(self.mode),
            precision=lambda: context.autocast(self.compute),
        )
        target.differentiate(x, margin)  # one that is zero or NaN is a finding of the audit, on all images


class _Enough(BaseException):
    """An attack has asked its questions; no Exception, so that no attack takes it for one of its own."""


@dataclass
class _Questions:
    """How many questions are left.

    Arguments:
        seconds: For how long more may be asked beyond those that everybody has.
    """

    seconds: float
    asked: int = 0
    begun: float = field(default_factory=time.monotonic)

    def next(self) -> None:
        """Count one.

        Raises:
            _Enough: That was the last.
        """
        if self.asked >= _QUESTIONS and time.monotonic() - self.begun >= self.seconds:
            raise _Enough
        self.asked += 1


@dataclass
class _Limited(Target):
    """A target that answers a few questions."""

    questions: _Questions = field(default_factory=lambda: _Questions(0.0))

    def _next(self, x: Tensor) -> Any:
        self.questions.next()
        return super()._next(x)


@dataclass(frozen=True)
class AttackCheck(Check):
    """An attack in front of the first defence that it is run on."""

    section: ClassVar[str] = "attack"
    attack: AttackConfig

    @property
    def what(self) -> str:
        """See :class:`Check`."""
        return f"attack {self.attack.label()!r}"

    @property
    def key(self) -> tuple[str, ...]:
        """See :class:`Check`; what an attack does, it does at any budget."""
        assert isinstance(self.stage, AttackStage)
        named = {name: value for name, value in self.attack.identity().items() if name != "eps"}
        shape, classes = self.stage.dataset.image_shape, self.stage.classifier.architecture.classes
        return digest(json.dumps(named, sort_keys=True)), str(shape), str(classes)

    def run(self, context: Context) -> None:
        """See :class:`Check`."""
        stage = self.stage
        assert isinstance(stage, AttackStage)
        x, y = self._image(context, stage.dataset)
        omega = Omega.of(self.attack.id, stage.seed, "preflight", (self.image,), noise=stage.compute.noise)
        foreign = self.attack.code() is not None
        made = []
        for _ in range(1 + foreign):
            target = stage.target(context, y, omega)
            given = {each.name: getattr(target, each.name) for each in fields(target)}
            given["draws"] = min(target.draws, _DRAWS)
            limited = _Limited(**given, questions=_Questions(_FOREIGN_SECONDS if foreign else 0.0))
            try:
                if isinstance(self.attack, AscentConfig) and self.attack.warm:  # rungs before it would give it images
                    result = self.attack.run_from(limited, x, omega, x)
                else:
                    result = self.attack.run(limited, x, omega)
            except _Enough:
                return
            made.append(checked_result(result, x, self.what).images)
        if context.device.type == "cpu" and not torch.equal(made[0], made[-1]):  # elsewhere sums may round otherwise
            raise InvalidInput(
                f"{self.what} makes another image when it is run again: something in it keeps state, or draws random "
                "numbers elsewhere than from omega, so that no seed repeats it."
            )


@dataclass(frozen=True)
class CorruptionCheck(Check):
    """All corruptions of a data set: each takes no time, and a record of its own would."""

    section: ClassVar[str] = "corruption"
    stages: tuple[CorruptStage, ...]

    @property
    def what(self) -> str:
        """See :class:`Check`."""
        return f"{len(self.stages)} corruptions"

    @property
    def key(self) -> tuple[str, ...]:
        """See :class:`Check`."""
        ids = {stage.corruption.id for stage in self.stages}
        return str(self.stages[0].dataset.image_shape), *sorted(ids)

    def run(self, context: Context) -> None:
        """See :class:`Check`."""
        for stage in self.stages:
            try:
                stage.run(Chunk((self.image,)), {}, context)
            except Exception as error:
                raise Blamed(replace(self, stage=stage, stages=(stage,)), error) from error


@dataclass(frozen=True)
class CertificateCheck(Check):
    """The base classifier of a certificate."""

    section: ClassVar[str] = "certificate"
    sample: SampleStage

    @property
    def what(self) -> str:
        """See :class:`Check`."""
        return f"the base classifier of the certificate with noise {self.sample.smoothed.sigma:g}"

    @property
    def key(self) -> tuple[str, ...]:
        """See :class:`Check`."""
        smoothed = self.sample.smoothed
        shape, precision = str(smoothed.dataset.image_shape), smoothed.compute.precision
        return smoothed.base, smoothed.classifier.id, smoothed.purifier.id, f"{smoothed.sigma:g}", shape, precision

    def run(self, context: Context) -> None:
        """See :class:`Check`: one sample, with one vote."""
        smoothed = self.sample.smoothed.model_copy(update={"votes": 1})
        smoothed.counts(context, self.sample.role, (self.image,), 0, 1)


@dataclass(frozen=True)
class QualityCheck(Check):
    """The network of a measure of image quality."""

    section: ClassVar[str] = "quality"
    measured: QualityStage

    @property
    def what(self) -> str:
        """See :class:`Check`."""
        return "the measurement of image quality"

    @property
    def key(self) -> tuple[str, ...]:
        """See :class:`Check`."""
        return self.measured.quality.id, str(self.measured.dataset.image_shape)

    def run(self, context: Context) -> None:
        """See :class:`Check`: on a clean image, with no purifier."""
        bare = {"source": None, "purifier": NoPurifierConfig(), "classifier": None}
        self.measured.model_copy(update=bare).run(Chunk((self.image,)), {}, context)


class Blamed(Exception):
    """An error of one of the parts that a check asks together."""

    def __init__(self, check: Check, error: Exception) -> None:
        super().__init__(str(error))
        self.check = check
        self.error = error
