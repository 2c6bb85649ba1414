"""A plan and its progress in lines: stages by kind or one by one, what is predicted, and which units failed."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from workflows.engine.failures import FailureRecord
from workflows.monitoring.run_record import duration
from workflows.planning.forecast import Forecast
from workflows.planning.machine import Footprint, per_gpu
from workflows.planning.summary import PlanSummary, StageSummary

__all__ = ["estimate", "failure_lines", "forecast_lines", "plan_lines", "status_lines"]


def plan_lines(summary: PlanSummary, *, verbose: bool = False) -> Iterator[str]:
    """Yield what ``puregrid plan`` prints.

    Arguments:
        summary: The plan.
        verbose: Whether every stage has a line of its own; else those of one kind share one.
    """
    yield (
        f"{summary.sweep} ({summary.sweep_id}): {summary.cells} cells need {summary.units} units, "
        f"{summary.distinct} of them distinct; {summary.committed} committed, {_spared(summary)}"
        f"{summary.missing} to compute"
    )
    width = max(len(stage.stage) for stage in summary.stages)
    if verbose:
        for stage in summary.stages:
            yield (
                f"  {stage.stage:<{width}}  {stage.id}  {stage.images:>6} images  "
                f"{stage.committed:>5} of {stage.units} units  {_seconds([stage])}{stage.what}"
            )
    else:
        yield from _by_kind(summary.stages)
    yield f"estimated: {estimate(summary)}; network evaluations to do: {summary.evaluations:,}"
    yield from forecast_lines(summary.forecast, verbose=verbose)
    yield from _memory(summary.footprint)


def _memory(found: Footprint | None) -> Iterator[str]:
    """What the largest batch takes of a worker's memory, and how large one might be."""
    if found is None:
        return
    where = "a GPU has" if found.gpus else "has here"
    share = f"each of {found.workers} workers {where}" if found.workers > 1 else "there is here"
    fits = f"at least {found.fits:,} would fit" if found.fits >= found.batch else "they will be halved until they fit"
    proposed = found.share and per_gpu(float(found.share))
    if proposed and found.gpus <= 1 and proposed != found.workers:
        have = "workers a GPU have" if proposed > 1 else "worker a GPU has"
        fits += f"; {proposed} {have} room for it (--gpus-per-worker {found.share})"
    yield (
        f"memory: batches of {found.batch:,} ({_DIGEST.sub('', found.kind)}) take up to {_gib(found.mib)} of the "
        f"{_gib(found.room)} that {share}; {fits}"
    )


def _gib(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


def status_lines(summary: PlanSummary, *, verbose: bool = False) -> Iterator[str]:
    """Yield which units of a plan are committed, and of which stages some are missing; arguments as above."""
    yield (
        f"{summary.sweep} ({summary.sweep_id}): {summary.committed} of {summary.distinct} units committed"
        f"{', ' * bool(summary.spared)}{_spared(summary).removesuffix(', ')}"
    )
    missing = [stage for stage in summary.stages if stage.missing]
    if not verbose:
        yield from _by_kind(missing)
        return
    width = max((len(stage.stage) for stage in missing), default=0)
    for stage in missing:
        yield f"  {stage.stage:<{width}}  {stage.id}  {stage.committed} of {stage.units}  {stage.what}"


def failure_lines(failed: Sequence[FailureRecord], *, verbose: bool = False) -> Iterator[str]:
    """Yield failed units with their tracebacks; of several with one error the first, and how many there are."""
    alike: dict[str, list[FailureRecord]] = {}
    for failure in failed:
        alike.setdefault(f"{failure.unit} {failure.error}" if verbose else failure.error, []).append(failure)
    for members in alike.values():
        failure = members[0]
        attempts = "1 attempt" if failure.attempts == 1 else f"{failure.attempts} attempts"
        why = ", since the input is to blame" if failure.final else ""
        yield f"failed: {failure.unit} after {attempts}{why}"
        yield failure.traceback or failure.error
        if len(members) > 1:
            yield f"... and {len(members) - 1} more units with this error; --verbose shows each"


_DIGEST = re.compile(r" [0-9a-f]{6}$")


def _by_kind(stages: Iterable[StageSummary]) -> Iterator[str]:
    """A line for the stages of one kind."""
    kinds: dict[str, list[StageSummary]] = {}
    for stage in stages:
        kinds.setdefault(stage.kind, []).append(stage)
    # Which network it is, in six digits, is only of use where it tells two kinds apart.
    plain = Counter(_DIGEST.sub("", kind) for kind in kinds)
    lines = [
        (
            _DIGEST.sub("", kind) if plain[_DIGEST.sub("", kind)] == 1 else kind,
            f"{len(members)} stage{'s' * (len(members) > 1)}",
            f"{max(stage.images for stage in members)} images",
            f"{sum(stage.committed for stage in members)} of {sum(stage.units for stage in members)} units",
            _seconds(members).rstrip(),
        )
        for kind, members in kinds.items()
    ]
    widths = [max((len(line[place]) for line in lines), default=0) for place in range(4)]
    for kind, *numbers, seconds in lines:
        beside = "  ".join(f"{text:>{width}}" for text, width in zip(numbers, widths[1:], strict=True))
        yield f"  {kind:<{widths[0]}}  {beside}  {seconds}".rstrip()


def _seconds(stages: Sequence[StageSummary]) -> str:
    """``6 x 1.25 s = 7.5 ± 0.3 s  ``; nothing where nothing is missing or its cost is unknown."""
    missing = sum(stage.missing for stage in stages)
    known = [stage.seconds for stage in stages if stage.seconds is not None]
    if not missing or len(known) < len(stages):
        return ""
    half = stages[0].seconds_half_interval if len(stages) == 1 else None
    spread = "" if half is None else f" ± {half:.2g}"
    return f"{missing} x {sum(known) / missing:.3g} s = {sum(known):.3g}{spread} s  "


def _spared(summary: PlanSummary) -> str:
    """``12 not needed, ``; nothing where all are."""
    return f"{summary.spared} not needed, " if summary.spared else ""


def forecast_lines(forecast: Forecast | None, *, verbose: bool = True) -> list[str]:
    """Return the predicted wall time, what it is made of and based on."""
    if forecast is None or not forecast.units:
        return []
    guessed = [kind for kind, cost in forecast.costs if not cost.units]
    within = ""
    if forecast.low is not None and forecast.high is not None:
        within = f" ({duration(forecast.low)} to {duration(forecast.high)} by the spread between units)"
    gpus = f", {forecast.gpu_hours:.2f} GPU-hours" if forecast.gpus_per_worker else ""
    end = datetime.now(UTC) + timedelta(seconds=forecast.wall_seconds)
    started = (
        "without the start of Ray and workers, which no run here has measured"
        if forecast.startup_seconds is None
        else f"{forecast.startup_seconds:.1f} s of them until the workers are ready"
    )
    lines = [
        f"predicted: {duration(forecast.wall_seconds)}{within} on {forecast.workers} workers{gpus}; "
        f"started now, it ends at {end:%Y-%m-%d %H:%M} UTC",
        f"  {started}; each unit {forecast.overhead_seconds:.2g} s beside its compute; models are loaded once a "
        "worker",
        f"  based on {forecast.measured} measured units{' and shipped costs' * bool(guessed)}" + ":" * verbose,
    ]
    for kind, cost in forecast.costs if verbose else ():
        if not cost.units:
            lines.append(f"    {kind.name}, guessed")
            continue
        spread = "" if cost.spread is None else f", spread {cost.spread / cost.rate:.0%}"
        first = ", each the first of its process, so warm-up is included" if cost.first else ""
        loading = f", loading {cost.loading:.2g} s" if cost.loading else ""
        lines.append(f"    {cost.units} x {kind.name}{spread}{loading}{first}")
    return lines


_GUESS = "guessed from shipped costs and one second of this machine, right within a factor of two or so"


def estimate(summary: PlanSummary) -> str:
    """Return the compute that is to be done, in words."""
    if not summary.missing:
        return "nothing to compute"
    if summary.estimated_seconds is not None and summary.forecast is not None:
        guessed = any(not cost.units for _, cost in summary.forecast.costs)
        seconds = _compute(summary.estimated_seconds)
        return f"about {seconds} of compute, {_GUESS}" if guessed else f"{seconds} of compute"
    known = [stage for stage in summary.stages if stage.missing and stage.seconds is not None]
    unknown = dict.fromkeys(stage.kind for stage in summary.stages if stage.missing and stage.seconds is None)
    if not known:
        return "unknown until units of every kind are committed in this store"
    seconds = _compute(sum(stage.seconds for stage in known if stage.seconds is not None))
    return f"about {seconds} of compute and more, {_GUESS}; unknown until it is measured: {', '.join(unknown)}"


def _compute(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"
