"""Which checks a plan needs: every distinct part once, whatever number of cells and units it is in."""

from collections.abc import Hashable, Iterator

from defense.classifiers import ClassifierConfig
from defense.purifiers import NoPurifierConfig, PurifierConfig
from defense.spec import Spec
from tasks.attacks import DerivedAttackConfig
from tasks.compute import Compute
from tasks.datasets import DatasetConfig
from tasks.stages import AttackStage, CorruptStage, EvaluateStage, QualityStage, SampleStage, StageSpec
from workflows.planning.plan import Committed
from workflows.preflight.checks import (
    AttackCheck,
    CertificateCheck,
    Check,
    ClassifierCheck,
    CorruptionCheck,
    DefenceCheck,
    QualityCheck,
)

__all__ = ["checks_of"]

_ORDER = (ClassifierCheck, DefenceCheck, CorruptionCheck, CertificateCheck, QualityCheck, AttackCheck)
"""What others are made of comes first, so that the part to blame is the one that is named."""


def checks_of(committed: Committed) -> list[Check]:
    """The checks of the stages that have units to compute, those of one network side by side.

    Arguments:
        committed: The units of a plan that need no work.
    """
    found: dict[tuple[Hashable, ...], Check] = {}
    corrupted: dict[tuple[int, int, int], list[tuple[CorruptStage, int]]] = {}
    for stage, done in committed.by_stage():
        if len(done) == len(stage.chunks):
            continue
        spec, image = stage.spec, stage.chunks[0].ids[0]
        if isinstance(spec, CorruptStage):
            corrupted.setdefault(spec.dataset.image_shape, []).append((spec, image))
        for part, check in _checks(spec, image):
            found.setdefault(part, check)
    # To take its gradient is to purify an image: that defence needs no check without.
    differentiated = {part[:-1] for part in found if part[0] == "defence" and part[-1] is not None}
    checks = [check for part, check in found.items() if part[-1] is not None or part[:-1] not in differentiated]
    for stages in corrupted.values():
        (first, image), specs = stages[0], tuple(spec for spec, _ in stages)
        checks.append(CorruptionCheck(first, image, specs))
    # Specs may differ in what no id holds, such as the path of the same weights.
    unique = {(type(check), check.key): check for check in checks}.values()
    return sorted(unique, key=lambda check: (_ORDER.index(type(check)), check.model_key))


def _checks(spec: StageSpec, image: int) -> Iterator[tuple[tuple[Hashable, ...], Check]]:
    """The checks of a stage, each with what tells it from others at little cost."""
    if isinstance(spec, EvaluateStage):
        yield _classifier(spec, image, spec.classifier, spec.dataset)
        yield from _defence(spec, image, spec.purifier, spec.classifier, spec.dataset, spec.compute, None)
    elif isinstance(spec, AttackStage):
        yield _classifier(spec, image, spec.classifier, spec.dataset)
        if spec.purifier is not None:
            mode = None if spec.attack.black_box else spec.attack.gradient
            yield from _defence(spec, image, spec.purifier, spec.classifier, spec.dataset, spec.compute, mode)
        if not isinstance(spec.attack, DerivedAttackConfig):
            shape, classes = spec.dataset.image_shape, spec.classifier.architecture.classes
            yield ("attack", _hashable(spec.attack), shape, classes, ""), AttackCheck(spec, image, spec.attack)
    elif isinstance(spec, SampleStage):
        smoothed = spec.smoothed
        yield _classifier(spec, image, smoothed.classifier, smoothed.dataset)
        key = (smoothed.classifier, smoothed.purifier, smoothed.base, smoothed.sigma, smoothed.compute.precision)
        parts = (_hashable(part) if isinstance(part, Spec) else part for part in key)
        yield ("certificate", *parts, smoothed.dataset.image_shape, ""), CertificateCheck(spec, image, spec)
    elif isinstance(spec, QualityStage):
        yield from _defence(spec, image, spec.purifier, spec.classifier, spec.dataset, spec.compute, None)
        yield (
            ("quality", _hashable(spec.quality), spec.dataset.image_shape, ""),
            QualityCheck(spec, image, spec),
        )


def _classifier(
    stage: StageSpec, image: int, classifier: ClassifierConfig, dataset: DatasetConfig
) -> tuple[tuple[Hashable, ...], Check]:
    part = ("classifier", _hashable(classifier), dataset.image_shape, "")
    return part, ClassifierCheck(stage, image, classifier, dataset)


def _defence(
    stage: StageSpec,
    image: int,
    purifier: PurifierConfig,
    classifier: ClassifierConfig | None,
    dataset: DatasetConfig,
    compute: Compute,
    mode: str | None,
) -> Iterator[tuple[tuple[Hashable, ...], Check]]:
    if isinstance(purifier, NoPurifierConfig):
        return
    guide = _hashable(classifier) if classifier is not None and purifier.uses_classifier else None
    part = ("defence", _hashable(purifier), guide, dataset.image_shape, compute.precision, mode)
    yield part, DefenceCheck(stage, image, purifier, classifier, dataset, compute, mode)


def _hashable(spec: Spec) -> Hashable:
    """The spec itself, which is cheaper than its id; the id of one that holds a mapping."""
    try:
        hash(spec)
    except TypeError:
        return spec.id
    return spec
