"""What a probe found: checks with a verdict, gradients by mode, and numbers of the mechanism without one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from defense.probe.demands import DEMANDS

__all__ = [
    "Check",
    "ModeGradient",
    "Number",
    "Part",
    "Probe",
    "Verdict",
    "answer",
    "as_text",
    "not_applicable",
]

Verdict = Literal["pass", "fail", "not-applicable"]

Part = Literal["purifier", "classifier"]


@dataclass(frozen=True)
class Check:
    """One question to one part of a defence, and its answer.

    :data:`defense.probe.DEMANDS` says what the check asks, and ``text`` what was found, or why it cannot be asked.
    ``measured`` is None where nothing could be measured, and so is the ``threshold`` that it is held against.
    """

    name: str
    part: Part
    verdict: Verdict
    text: str
    measured: float | None = None
    threshold: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the check does not hold."""
        return self.verdict == "fail"


@dataclass(frozen=True)
class ModeGradient:
    """The gradient of one gradient mode beside central differences of the function.

    Arguments:
        mode: The gradient mode; ``autograd`` for a classifier.
        error: Median over images and directions of the relative error, each at the step size that agrees best.
        share: That of images and directions that disagree at every step size.
        cosine: Cosine of autograd's slopes and the differences at the scale of an attack's steps, over images and
            directions; None where neither moves.
    """

    part: Part
    mode: str
    exact: bool
    error: float
    share: float
    cosine: float | None


@dataclass(frozen=True)
class Number:
    """A number of the mechanism, which has no verdict, or None, and what it means or why there is none."""

    name: str
    value: float | None
    meaning: str


@dataclass(frozen=True)
class Probe:
    """All that a probe found of a defence; how long it took is no part of equality."""

    label: str
    checks: tuple[Check, ...]
    gradients: tuple[ModeGradient, ...] = ()
    mechanism: tuple[Number, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.failed)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    def check(self, name: str) -> Check:
        """Return the check of that name, a failed one first if several parts have it.

        Raises:
            KeyError: There is none.
        """
        found = sorted((c for c in self.checks if c.name == name), key=lambda check: not check.failed)
        if not found:
            raise KeyError(f"no check {name!r}; there are {', '.join(sorted({c.name for c in self.checks}))}")
        return found[0]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        found: dict[str, Any] = _finite({**asdict(self), "passed": self.passed})
        return found

    def __str__(self) -> str:
        return as_text(self)

    @classmethod
    def together(cls, label: str, probes: Iterable[Probe]) -> Probe:
        """Join the probes of the parts of one defence."""
        parts = list(probes)
        return cls(
            label,
            tuple(check for part in parts for check in part.checks),
            tuple(gradient for part in parts for gradient in part.gradients),
            tuple(number for part in parts for number in part.mechanism),
            sum(part.seconds for part in parts),
        )


def answer(name: str, part: Part, measured: float, text: str) -> Check:
    """Return the verdict on a measured number. NaN holds against nothing; what is not finite is not kept."""
    demand = DEMANDS[name]
    holds = measured >= demand.threshold if demand.at_least else measured <= demand.threshold
    number = float(measured) if math.isfinite(measured) else None
    return Check(name, part, "pass" if holds else "fail", text, number, demand.threshold)


def not_applicable(name: str, part: Part, why: str) -> Check:
    """Return the answer of a check that cannot be asked."""
    return Check(name, part, "not-applicable", why)


_SIGN = {"pass": "ok", "fail": "FAIL", "not-applicable": "-"}


def _finite(value: Any) -> Any:
    """Return plain values with null for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(probe: Probe) -> str:
    """Return checks, gradients by mode and numbers, with what to do where a check failed."""
    lines = [f"{probe.label}: {_counts(probe)} ({probe.seconds:.1f} s)", ""]
    width = max(len(check.name) for check in probe.checks)
    for check in probe.checks:
        lines.append(f"  {_SIGN[check.verdict]:<4}  {check.part:<10}  {check.name:<{width}}  {check.text}")
        if check.failed:
            demand = DEMANDS[check.name]
            limit = "at least" if demand.at_least else "at most"
            indent = " " * (width + 20)
            lines.append(f"{indent}{demand.quantity}: {limit} {demand.threshold:g}, since {demand.reason}")
            lines.append(f"{indent}{demand.action}")
    if probe.gradients:
        lines += ["", "  gradient by central differences, at fixed randomness:"]
        lines.append(f"  {'':<10}  {'mode':<22}  {'meant as':<13}  {'error':>8}  {'wrong':>5}  {'cosine':>6}")
    for row in probe.gradients:
        cosine = "-" if row.cosine is None else f"{row.cosine:.2f}"
        meant = "the gradient" if row.exact else "a stand-in"
        lines.append(
            f"  {row.part:<10}  {row.mode:<22}  {meant:<13}  {row.error:>8.1e}  {100 * row.share:>4.0f}%  {cosine:>6}"
        )
    if probe.mechanism:
        lines += ["", "  how it works:"]
    for number in probe.mechanism:
        value = "-" if number.value is None else f"{number.value:.3g}"
        lines.append(f"  {number.name:<18}  {value:>8}  {number.meaning}")
    return "\n".join(lines)


def _counts(probe: Probe) -> str:
    asked = [check for check in probe.checks if check.verdict != "not-applicable"]
    failed = len(probe.failures)
    return f"{failed} of {len(asked)} checks failed" if failed else f"all of {len(asked)} checks passed"
