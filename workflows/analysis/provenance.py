"""Where numbers come from: what was computed, on what, by which versions, and the command that repeats it."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from defense.denoisers import DenoiserConfig
from defense.spec import Spec
from workflows.monitoring.run_record import read_runs
from workflows.planning.plan import PlannedStage, make_plan
from workflows.results.reader import Results

__all__ = ["Provenance", "provenance"]

_MOST_SPECS = 60
"""More than these are in the store alone."""

_UNKNOWN = "commit not recorded"


@dataclass(frozen=True)
class Provenance:
    """What a reader needs to verify a page, or to make it again.

    Arguments:
        facts: Names and values.
        specs: What the names in the tables stand for: kind, label and all fields as JSON; the first ones.
        left_out: How many specs there are besides.
        stages: Kind, id and units committed of every stage; the first ones.
    """

    facts: tuple[tuple[str, str], ...]
    specs: tuple[tuple[str, str, str], ...]
    left_out: int
    stages: tuple[tuple[str, str, str, str], ...]


def provenance(results: Results, command: str) -> Provenance:
    """Return the provenance of a sweep's results."""
    stages = make_plan(results.sweep).stages
    specs = list(_specs(results))
    return Provenance(
        facts=(
            ("command", command),
            ("sweep id", results.sweep.id),
            *_dates(results),
            *_versions(results, stages),
            *_weights(results),
        ),
        specs=tuple(specs[:_MOST_SPECS]),
        left_out=max(0, len(specs) - _MOST_SPECS),
        stages=tuple(_line(results, stage) for stage in stages[: 4 * _MOST_SPECS]),
    )


def _dates(results: Results) -> list[tuple[str, str]]:
    """When the runs of the sweep began and ended that left a record; nothing of a bucket that has none."""
    runs = read_runs(results.store, results.sweep.id)
    ends = sorted(run.ended or run.updated for run in runs)
    return [("computed", f"{min(run.started for run in runs)} to {ends[-1]} (UTC)")] if runs else []


def _versions(results: Results, stages: Iterable[PlannedStage]) -> list[tuple[str, str]]:
    versions: dict[str, set[str]] = {}
    hosts: set[str] = set()
    sources: Counter[str] = Counter()
    for stage in stages:
        for chunk in stage.chunks:
            commit = results.store.committed(stage.spec.stage, stage.id, chunk.name)
            if commit is not None:
                hosts.add(commit.host)
                recorded = dict(commit.versions)
                sources[recorded.pop("puregrid_commit", _UNKNOWN)] += 1
                for name, version in recorded.items():
                    versions.setdefault(name, set()).add(version)
    lines = [("source", "; ".join(f"{name}: {n} unit{'s' * (n > 1)}" for name, n in sources.most_common()) or "-")]
    lines.append(("hosts", ", ".join(sorted(hosts)) or "-"))
    # The device is the name of a GPU; rows that were computed without one have none.
    return lines + [(name, ", ".join(sorted(values))) for name, values in sorted(versions.items())]


def _weights(results: Results) -> list[tuple[str, str]]:
    facts = []
    cells = results.sweep.cells
    for images in {cell.images.dataset.id: cell.images for cell in cells}.values():
        facts.append((f"data: {images.dataset.label()}", f"{images.count} images, digest {images.dataset.digest}"))
    for classifier in {cell.classifier.id: cell.classifier for cell in cells}.values():
        key = f", weights_key {classifier.weights_key}" if classifier.weights_key else ""
        facts.append((f"weights: {classifier.label()}", f"sha256 {classifier.sha256}{key}"))
    parts = {(name, part.id): part for cell in cells for name, part in cell.defence.purifier.parts()}
    for (name, _), part in parts.items():
        if sha256 := getattr(part, "sha256", None):
            schedule = f", schedule {part.schedule}" if isinstance(part, DenoiserConfig) else ""
            facts.append((f"weights: {name}", f"sha256 {sha256}{schedule}"))
    return facts


def _specs(results: Results) -> Iterable[tuple[str, str, str]]:
    """Yield each part of a cell once, by its name in tables."""
    specs: dict[tuple[str, str], tuple[str, str, str]] = {}
    for cell in results.sweep.cells:
        labels = results.sweep.labels[cell.id]
        parts: list[tuple[str, Spec | None]] = [
            ("dataset", cell.images.dataset),
            ("classifier", cell.classifier),
            ("defence", cell.defence.purifier),
            ("attack", cell.attack),
            ("corruption", cell.corruption),
            ("certificate", cell.certificate),
            ("compute", cell.compute),
        ]
        for kind, spec in parts:
            if spec is not None:
                text = json.dumps(spec.identity(), indent=1, sort_keys=True)
                specs.setdefault((kind, spec.id), (kind, labels.get(kind, kind), text))
    return sorted(specs.values(), key=lambda spec: [kind for kind, _ in parts].index(spec[0]))


def _line(results: Results, stage: PlannedStage) -> tuple[str, str, str, str]:
    names = {chunk.name for chunk in stage.chunks}
    done = len(names & results.store.committed_chunks(stage.spec.stage, stage.id))
    return stage.spec.stage, stage.id, stage.spec.label(), f"{done} of {len(names)}"
