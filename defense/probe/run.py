"""Probe a purifier or a classifier: every check, guarded, the first answer kept for the last question."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from defense.classifiers import ClassifierConfig
from defense.errors import InvalidInput, no_memory
from defense.models import Models
from defense.probe import borders, claims, differences, mechanism, memory, purity
from defense.probe.demands import DEMANDS
from defense.probe.record import Check, ModeGradient, Number, Part, Probe, not_applicable
from defense.probe.subject import Claims, Subject, snapshot
from defense.purifiers.base import IterativePurifier, Purifier, PurifierConfig
from defense.purifiers.sequence import Sequence

__all__ = ["IMAGES", "in_double", "probe_classifier", "probe_purifier", "probe_subject"]

IMAGES = 8
"""Images that a probe needs; a purifier is asked about the first half of them, as it costs more."""

_LONG, _STEPS = 250, 20
"""A chain of more evaluations than the one is probed in as many steps a round as the other."""

_EFFORT = ((2, 5, 4), (_LONG, 3, 3))
"""Evaluations of a purification up to which so many images and directions are compared with differences."""

_DRAWS = 4


def probe_purifier(
    purifier: Purifier,
    images: Tensor,
    *,
    config: PurifierConfig | None = None,
    models: Models | None = None,
    reference: Tensor | None = None,
    label: str | None = None,
) -> Probe:
    """Probe a purifier, not called before if possible: the first answer is compared with later ones.

    ``images`` are at least two different ones in [0, 1], shape (N, C, H, W), on its device; from ``models`` its
    networks come, to build it anew and to count their evaluations; ``reference`` are images of the test set.
    """
    said = Claims() if config is None else claims.claims_of(config)
    subject = Subject(
        label or (type(purifier).__name__ if config is None else config.label()),
        "purifier",
        purifier,
        images[: IMAGES // 2].clone(),  # a part may write into them
        said,
        spec_id="probe" if config is None else config.id,
    )
    if config is not None and models is not None:
        device = images.device
        subject.build = lambda: config.build(models).to(device)
        subject.count = claims.counter_of(config, models)
    return probe_subject(subject, reference)


def probe_classifier(
    classifier: nn.Module, images: Tensor, *, config: ClassifierConfig | None = None, label: str | None = None
) -> Probe:
    """Probe a classifier, or anything from images to logits that has no randomness: see :func:`probe_purifier`."""
    name = label or (type(classifier).__name__ if config is None else config.label())
    said = Claims(stochastic=False, classes=None if config is None else config.architecture.classes)
    subject = Subject(name, "classifier", classifier, images[:IMAGES].clone(), said)
    if config is not None:
        subject.build = lambda: config.build().to(images.device)
    return probe_subject(subject)


def probe_subject(subject: Subject, reference: Tensor | None = None) -> Probe:
    """Ask every check.

    Raises:
        InvalidInput: There are fewer than two images.
    """
    if len(subject.images) < 2 or subject.images.dim() != 4:
        shape = tuple(subject.images.shape)
        raise InvalidInput(f"a probe needs at least two images of shape (N, C, H, W), not {shape}.", where="images")
    begun = time.perf_counter()
    subject, notes = _shortened(subject)
    if subject.build is None:
        with purity.passed_over(Exception):  # not everything can be copied
            subject = replace(subject, build=partial(copy.deepcopy, copy.deepcopy(subject.module)))
    try:
        first = subject.value(subject.images, subject.omega()).clone()
        before = snapshot(subject.module)
        slope = purity.first_slope(subject)
    except Exception as error:
        if no_memory(error):
            raise
        raised = Check("output", subject.part, "fail", _raised(error))
        others = [not_applicable(name, subject.part, "it raises") for name in DEMANDS if name != "output"]
        return Probe(subject.label, (raised, *others), seconds=time.perf_counter() - begun)
    checks = [
        _guarded("output", subject.part, lambda: claims.output(subject)),
        _guarded("range", subject.part, lambda: claims.value_range(subject)),
        *(_guarded(name, subject.part, lambda check=check: check(subject)) for name, check in _PURITY.items()),  # type: ignore[misc]
        _guarded("evaluations", subject.part, lambda: claims.evaluations(subject)),
    ]
    ill = [check.name for check in checks if check.failed and check.name in ("output", "same-randomness", "batch")]
    more, gradients = _gradients(subject, ill)
    checks += more
    checks.append(_guarded("test-set-memory", subject.part, lambda: memory.memory(subject, reference)))
    numbers = _numbers(subject)
    checks.append(_guarded("state", subject.part, lambda: purity.state(subject, first, slope, before)))
    order = list(DEMANDS)
    checks.sort(key=lambda check: order.index(check.name))
    return Probe(subject.label, tuple(checks), gradients, (*notes, *numbers), time.perf_counter() - begun)


_PURITY: dict[str, Callable[[Subject], Check]] = {
    "same-randomness": purity.same_randomness,
    "global-randomness": purity.global_randomness,
    "batch": purity.batch,
    "gradient-recording": purity.gradient_recording,
    "role": purity.role,
    "stochastic": purity.stochastic,
    "frozen": purity.frozen,
}


def _shortened(subject: Subject) -> tuple[Subject, tuple[Number, ...]]:
    """Return a long chain in fewer steps; what it costs in full is counted all the same."""
    cost = subject.claims.evaluations or 0
    module = subject.module
    if cost <= _LONG or not isinstance(module, Purifier):
        return subject, ()
    short = module.surrogate(_STEPS)
    if short is module:
        return subject, ()
    meaning = f"steps a round in which the chain was probed: in full it takes {cost} evaluations"
    build = subject.build

    def again() -> nn.Module:
        assert build is not None
        built = build()
        return built.surrogate(_STEPS) if isinstance(built, Purifier) else built

    shown = Number("steps-probed", float(_STEPS), meaning)
    return replace(subject, module=short, build=None if build is None else again), (shown,)


def _gradients(subject: Subject, ill: list[str]) -> tuple[list[Check], tuple[ModeGradient, ...]]:
    """The checks and the table that rest on central differences."""
    part = subject.part
    names = ("gradient", "gradient-at-attack-scale", "gradient-elsewhere", "continuity")
    loss = not_applicable("loss-gradient", part, "it concerns the classifier")
    if part == "classifier":
        loss = _guarded("loss-gradient", part, lambda: differences.loss_gradient(subject))
    if ill:
        why = f"differences cannot be taken while {' and '.join(ill)} fails"
        return [*(not_applicable(name, part, why) for name in names), loss], ()
    cost = subject.claims.evaluations or 1
    images, directions = next((given[1:] for given in _EFFORT if cost <= given[0]), _EFFORT[-1][1:])
    try:
        found = differences.measure(in_double(subject), images, directions)
    except Exception as error:
        if no_memory(error):
            raise
        return [*(Check(name, part, "fail", _raised(error)) for name in names), loss], ()
    checks = [
        _guarded("gradient", part, lambda: differences.gradient(found)),
        _guarded("gradient-at-attack-scale", part, lambda: differences.gradient_at_attack_scale(found)),
        _guarded("gradient-elsewhere", part, lambda: differences.elsewhere(found, subject)),
        _guarded("continuity", part, lambda: borders.continuity(subject)),
        loss,
    ]
    exact = subject.claims.differentiable
    modes: list[ModeGradient] = []
    for mode in _modes(subject.module):
        try:
            modes.append(differences.mode_gradient(found, mode, exact=exact and mode == "exact"))
        except Exception as error:  # of the exact mode the checks have said so
            if no_memory(error):
                raise
            if mode != "exact":
                checks.append(Check("gradient", part, "fail", f"gradient mode {mode}: {_raised(error)}"))
    return checks, tuple(modes)


def _modes(module: nn.Module) -> Iterator[str]:
    yield "exact"
    if isinstance(module, IterativePurifier | Sequence):
        yield from ("exact-no-guidance-path", "surrogate(2)")
    if isinstance(module, Purifier):
        if module.softened() is not module:
            yield "soft"
        yield from ("bpda", "blind")


def in_double(subject: Subject) -> Subject:
    """Return the part in float64, or as it is where it cannot compute so."""
    try:
        double = subject.doubled()
        out = double.value(double.images[:1], double.omega(1))
    except Exception as error:
        if no_memory(error):
            raise
        return subject
    return double if out.dtype == torch.float64 else subject


def _numbers(subject: Subject) -> tuple[Number, ...]:
    if subject.part == "classifier":
        return ()
    try:
        return mechanism.mechanism(subject, _DRAWS)
    except Exception as error:
        if no_memory(error):
            raise
        return (Number("mechanism", None, _raised(error)),)


def _guarded(name: str, part: Part, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # whatever a part raises is a finding about it
        if no_memory(error):
            raise
        return Check(name, part, "fail", _raised(error))


def _raised(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"it raised {type(error).__name__}: {text[0] if text else ''}"[:300]
