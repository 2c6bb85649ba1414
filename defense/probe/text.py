"""A probe as text for a terminal."""

from __future__ import annotations

from defense.probe.demands import DEMANDS
from defense.probe.record import Probe

__all__ = ["as_text"]

_SIGN = {"pass": "ok", "fail": "FAIL", "not-applicable": "-"}


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
