"""*sample*, *sample-sequence*, *certify*: from noised images to counts of answers to certificates.

Samples of one image are several units, each a range of them, and their counts add up. A range does not state how many
samples the certificate will have in all: one of 100,000 begins with those of one of 10,000. A sequential certificate
takes its ranges in order, each unit going on where the one before has not stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, SerializeAsAny
from torch import Tensor

from defense.bounds import Bound
from defense.certify import ESTIMATE, SELECT, Certificate, Counts, certify
from defense.certify.certificate import Role
from defense.classifiers import ClassifierConfig
from defense.errors import InvalidInput
from defense.purifiers import PurifierConfig
from defense.purifiers.diffusion import Diffusion
from defense.randomness import Omega
from defense.smoothing import Bare, BaseClassifier, Denoised, Purified, sample_counts
from defense.spec import Spec
from tasks.certificates import Base, CertificateConfig
from tasks.compute import Compute, Context
from tasks.datasets import DatasetConfig
from tasks.stages.base import Chunk, Components, Output, StageSpec
from tasks.stages.schemas import ROW_SCHEMAS

__all__ = ["CertifyStage", "SampleStage", "SequenceStage", "Smoothed"]


class _Fitting:
    """A base classifier that answers a batch of samples in parts where the device has no memory for all of it."""

    def __init__(self, base: BaseClassifier, context: Context, key: str) -> None:
        self._base = base
        self._context = context
        self._key = key

    def __call__(self, noisy: Tensor, sigma: float, omega: Omega) -> npt.NDArray[np.int64]:
        """See :class:`~defense.smoothing.BaseClassifier`."""

        def answers(start: int, stop: int) -> npt.NDArray[np.int64]:
            return self._base(noisy[start:stop], sigma, omega.part(start, stop))

        return np.concatenate(self._context.in_batches(self._key, len(noisy), len(noisy), answers))


class Smoothed(Spec):
    """A smoothed classifier on a data set: all that its samples depend on.

    Arguments:
        dataset: The data set.
        classifier: The classifier.
        purifier: The purifier in front of it, at the t* of ``sigma`` where the base is ``denoised``.
        base: How both are one base classifier; see :mod:`tasks.certificates`.
        votes: Draws of the purifier that make the answer to one sample.
        inner: Whether they ``vote``, or their probabilities are averaged (``mean``).
        sigma: Standard deviation of the noise.
        seed: Seed of the noise.
        compute: How units compute; the batch is of samples of one image.
    """

    bounds: ClassVar[Mapping[str, Bound] | None] = None
    # Ids from before there was a choice are still the same.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"inner": ("vote",)}
    dataset: SerializeAsAny[DatasetConfig]
    classifier: SerializeAsAny[ClassifierConfig]
    purifier: SerializeAsAny[PurifierConfig]
    base: Base
    votes: int = Field(ge=1)
    inner: Literal["vote", "mean"] = "vote"
    sigma: float = Field(gt=0)
    seed: int
    compute: Compute

    @property
    def components(self) -> Components:
        """See :class:`StageSpec`."""
        return Components(self.classifier, self.purifier)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.classifier.architecture.classes

    @property
    def evaluations(self) -> int:
        """Evaluations of the purifier's network for one sample."""
        return self.votes * self.purifier.evaluations

    @property
    def classifier_evaluations(self) -> int:
        """Evaluations of classifiers for one sample."""
        return self.votes * (1 + self.purifier.classifier_evaluations)

    def label(self) -> str:
        """Data set, classifier, purifier, noise."""
        behind = "" if self.base == "bare" else f" behind {self.purifier.label()}"
        votes = "" if self.votes == 1 else f", {self.votes} {'votes' if self.inner == 'vote' else 'averaged draws'}"
        return f"{self.dataset.label()}, {self.classifier.label()}{behind}{votes}, noise {self.sigma:g}"

    def model_key(self) -> str:
        """Return the purifier's network, or the classifier."""
        return self.purifier.model_key() or self.classifier.id

    def load(self, context: Context) -> BaseClassifier:
        """Return the base classifier."""
        classifier = context.classifier(self.classifier)
        if self.base == "bare":
            return Bare(classifier)
        purifier = context.purifier(self.purifier, self.classifier)
        precision = partial(context.autocast, self.compute)
        if self.base == "purified":
            return Purified(purifier, classifier, self.votes, precision, mean=self.inner == "mean")
        if not isinstance(purifier, Diffusion):
            raise InvalidInput(f"base denoised takes a diffusion purifier, not {self.purifier.label()!r}.")
        return Denoised(purifier, classifier, self.votes, precision, mean=self.inner == "mean")

    def counts(
        self, context: Context, role: Role, ids: tuple[int, ...], first: int, count: int
    ) -> npt.NDArray[np.int64]:
        """Answers per class to samples ``first`` to ``first + count - 1`` of some images, shape (N, classes)."""
        data = context.images(self.dataset)
        base = _Fitting(self.load(context), context, f"sample-{self.model_key()}")
        omega = Omega.of(self.purifier.id, self.seed, role, ids, noise=self.compute.noise)
        x = context.tensor(data.images[np.array(ids, dtype=np.int64)])
        return sample_counts(base, x, self.sigma, omega, first, count, self.compute.batch, self.classes)


def _rows(smoothed: Smoothed, chunk: Chunk, context: Context, samples: npt.NDArray[np.int64]) -> dict[str, pa.Array]:
    """Image, label and costs; ``samples`` is how many were drawn for each image."""
    labels = context.images(smoothed.dataset).labels[np.array(chunk.ids)]
    return {
        "image_id": pa.array(chunk.ids, pa.int32()),
        "label": pa.array(labels, pa.int16()),
        "denoiser_evaluations": pa.array(samples * smoothed.evaluations, pa.int64()),
        "classifier_evaluations": pa.array(samples * smoothed.classifier_evaluations, pa.int64()),
    }


def _counts(table: pa.Table) -> npt.NDArray[np.int64]:
    return np.array(table["counts"].to_pylist(), dtype=np.int64)


class _OfSmoothed(StageSpec):
    """A stage about a smoothed classifier."""

    smoothed: Smoothed

    @property
    def components(self) -> Components:
        """See :class:`StageSpec`."""
        return self.smoothed.components

    def settings(self) -> Compute:
        """See :class:`StageSpec`."""
        return self.smoothed.compute


class _Samples(_OfSmoothed):
    """Samples of the images of a chunk, :attr:`together` of each at most."""

    def model_key(self) -> str:
        """See :class:`StageSpec`."""
        return self.smoothed.model_key()

    def work_per_image(self) -> float:
        """Return the evaluations of the purifier's network, or of the classifier where it has none, at most."""
        return float(self.together * max(self.smoothed.evaluations, 1))


class SampleStage(_Samples):
    """A range of samples of every image of a chunk."""

    stage: Literal["sample"] = "sample"
    version: Literal[1] = 1
    role: Role
    first: int = Field(ge=0)
    count: int = Field(ge=1)

    def label(self) -> str:
        """Which samples of what."""
        what = "selection" if self.role == SELECT else "estimation"
        return f"{self.smoothed.label()}, {what} samples {self.first} to {self.first + self.count - 1}"

    def threat_label(self) -> str:
        """``noise 0.25, estimation``."""
        return f"noise {self.smoothed.sigma:g}, {'selection' if self.role == SELECT else 'estimation'}"

    @property
    def together(self) -> int:
        """The samples."""
        return self.count

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        """Rows: label, and answers per class."""
        counts = self.smoothed.counts(context, self.role, chunk.ids, self.first, self.count)
        rows = _rows(self.smoothed, chunk, context, np.full(len(chunk.ids), self.count))
        columns = {**rows, "counts": pa.array(counts.tolist(), pa.list_(pa.int32()))}
        return Output(ROW_SCHEMAS[self.stage].table(columns))


class SequenceStage(_Samples):
    """Estimation samples up to ``stop``, of the images that have not stopped before.

    Arguments:
        smoothed: The smoothed classifier.
        select: The selection samples, whose class decides when to stop.
        after: The range before, None for the first.
        stop: Past the last sample of this range.
        certificate: Its ``n`` and ``alpha`` are those of the plan.
    """

    stage: Literal["sample-sequence"] = "sample-sequence"
    version: Literal[1] = 1
    select: SampleStage
    after: SequenceStage | None = None
    stop: int = Field(ge=1)
    certificate: CertificateConfig

    @property
    def first(self) -> int:
        """The first sample of this range."""
        return 0 if self.after is None else self.after.stop

    @property
    def reads(self) -> Literal["rows"]:
        """Counts."""
        return "rows"

    def inputs(self) -> dict[str, StageSpec]:
        """Selection, and what came before."""
        return {"select": self.select, **({} if self.after is None else {"after": self.after})}

    def label(self) -> str:
        """Which samples of what."""
        return f"{self.smoothed.label()}, sequential samples {self.first} to {self.stop - 1}"

    def threat_label(self) -> str:
        """``noise 0.25, sequential``."""
        return f"noise {self.smoothed.sigma:g}, sequential"

    @property
    def together(self) -> int:
        """The samples."""
        return self.stop - self.first

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        """Rows: label, answers per class since sample 0, and whether the image has stopped."""
        plan, batch = self.certificate.plan(), self.smoothed.compute.batch
        chosen = _counts(inputs["select"]).argmax(1)
        counts = np.zeros((len(chunk.ids), self.smoothed.classes), dtype=np.int64)
        stopped = np.zeros(len(chunk.ids), dtype=np.bool_)
        if self.after is not None:
            counts = _counts(inputs["after"])
            stopped = np.array(inputs["after"]["stopped"].to_pylist(), dtype=np.bool_)
        before = counts.sum(1)
        looks = [look for look in plan.looks(batch) if self.first < look <= self.stop]
        at = self.first
        for look in looks if looks and looks[-1] == self.stop else [*looks, self.stop]:
            going = (~stopped).nonzero()[0]
            if not len(going):
                break
            ids = tuple(chunk.ids[i] for i in going)
            counts[going] += self.smoothed.counts(context, ESTIMATE, ids, at, look - at)
            if look in looks:  # the end of a range is no look of the plan: ranges must not change when one stops
                stopped[going] = plan.done(counts[going, chosen[going]], look)
            at = look
        rows = _rows(self.smoothed, chunk, context, counts.sum(1) - before)
        columns = {
            "counts": pa.array(counts.tolist(), pa.list_(pa.int32())),
            "stopped": pa.array(stopped, pa.bool_()),
        }
        return Output(ROW_SCHEMAS[self.stage].table({**rows, **columns}))


class CertifyStage(_OfSmoothed):
    """Certificates, from counts."""

    stage: Literal["certify"] = "certify"
    version: Literal[1] = 1
    certificate: CertificateConfig

    @property
    def reads(self) -> Literal["rows"]:
        """Counts."""
        return "rows"

    @cached_property
    def select(self) -> SampleStage:
        """The selection samples."""
        return SampleStage(smoothed=self.smoothed, role=SELECT, first=0, count=self.certificate.n0)

    def inputs(self) -> dict[str, StageSpec]:
        """Selection, and the ranges of the estimation; of a sequence the last one, which holds all counts."""
        if self.certificate.guarantee == "sequential":
            return {"select": self.select, "sequence": self._sequence()}
        ranges = {f"samples from {first}": self._range(first) for first in self._firsts()}
        return {"select": self.select, **ranges}

    @property
    def _shard(self) -> int:
        """Samples of a unit: whole batches, since a batch that is cut is computed twice."""
        batch = self.smoothed.compute.batch
        return -(-self.certificate.shard // batch) * batch

    def _firsts(self) -> Iterator[int]:
        yield from range(0, self.certificate.n, self._shard)

    def _range(self, first: int) -> SampleStage:
        count = min(self._shard, self.certificate.n - first)
        return SampleStage(smoothed=self.smoothed, role=ESTIMATE, first=first, count=count)

    def _sequence(self) -> SequenceStage:
        """Ranges that double: most images stop early."""
        last: SequenceStage | None = None
        stop = 0
        while stop < self.certificate.n:
            stop = min(max(2 * stop, self._shard), self.certificate.n)
            last = SequenceStage(
                smoothed=self.smoothed, select=self.select, after=last, stop=stop, certificate=self.certificate
            )
        assert last is not None
        return last

    def label(self) -> str:
        """Return what is certified."""
        return f"{self.smoothed.label()}, {self.certificate.label()}"

    def threat_label(self) -> str:
        """Return the certificate."""
        return self.certificate.label()

    def work_per_image(self) -> float:
        """No network is asked."""
        return 0.0

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        """Rows: label, certified class (-1 for an abstention), radius, bounds, samples, and what they guarantee."""
        sequential = self.certificate.guarantee == "sequential"
        ranges = {0: "sequence"} if sequential else {first: f"samples from {first}" for first in self._firsts()}
        counts0 = self._total(chunk, SELECT, {0: inputs["select"]})
        counts = self._total(chunk, ESTIMATE, {first: inputs[role] for first, role in ranges.items()})
        certificates = [self._certificate(*pair) for pair in zip(counts0, counts, strict=True)]
        base = _rows(self.smoothed, chunk, context, np.zeros(len(certificates), dtype=np.int64))
        certificate = self.certificate
        return Output(
            ROW_SCHEMAS[self.stage].table(
                {
                    **base,
                    "prediction": pa.array([image.prediction for image in certificates], pa.int16()),
                    "radius": pa.array([image.radius for image in certificates], pa.float64()),
                    "p_lower": pa.array([image.p_lower for image in certificates], pa.float64()),
                    "p_other": pa.array([image.p_other for image in certificates], pa.float64()),
                    "selection_counts": pa.array([image.per_class for image in counts0], pa.list_(pa.int32())),
                    "counts": pa.array([image.per_class for image in counts], pa.list_(pa.int32())),
                    "samples": pa.array([image.n for image in certificates], pa.int32()),
                    "sigma": pa.array([self.smoothed.sigma] * len(certificates), pa.float64()),
                    "alpha": pa.array([certificate.alpha] * len(certificates), pa.float64()),
                    "rule": pa.array([image.rule for image in certificates], pa.string()),
                    "guarantee": pa.array([image.guarantee for image in certificates], pa.string()),
                }
            )
        )

    def _certificate(self, counts0: Counts, counts: Counts) -> Certificate:
        config = self.certificate
        if config.guarantee == "sequential":
            return config.plan().certify(counts0, counts, self.smoothed.sigma)
        return certify(counts0, counts, config.alpha, self.smoothed.sigma, config.rule, n=config.n)

    @staticmethod
    def _total(chunk: Chunk, role: Role, tables: Mapping[int, pa.Table]) -> list[Counts]:
        """Counts of every image over all ranges, by the first sample of each."""
        total: list[Counts] = []
        for first, table in tables.items():
            if tuple(table["image_id"].to_pylist()) != chunk.ids:
                raise ValueError("the counted images are not those of this chunk")
            many = [Counts.of(i, role, row, first) for i, row in zip(chunk.ids, _counts(table), strict=True)]
            total = [a + b for a, b in zip(total, many, strict=True)] if total else many
        return total
