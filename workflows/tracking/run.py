"""What a run in MLflow is to hold."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from defense.redaction import redacted
from defense.spec import digest
from workflows.grid.load import Cell
from workflows.tracking.models import Model

__all__ = ["Point", "Run", "dataset_input"]


class Point(NamedTuple):
    """A point of a curve, and the time of its rows in seconds since 1970; 0 if that is not known."""

    value: float
    at: float = 0.0


@dataclass(frozen=True)
class Run:
    """What a run is to hold.

    Arguments:
        key: By which it is found again.
        name: What people read.
        complete: Whether every unit is committed; a run with missing ones counts as failed.
        tags: Values by name.
        params: Those of one key never change, it is made of them.
        metrics: Values by name.
        curves: Points of stepped metrics, by step.
        texts: Artifacts by path.
        cell: One of its cells, whose data set is the run's input.
        model: What it evaluates.
        headline: Metrics that the model has too.
        times: When its first unit began and its last one ended, in seconds since 1970; None if that is not known.
    """

    key: str
    name: str
    complete: bool
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Mapping[int, Point]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    cell: Cell | None = None
    model: Model | None = None
    headline: frozenset[str] = frozenset()
    times: tuple[float, float] | None = None

    @property
    def status(self) -> str:
        """As MLflow calls it."""
        return "FINISHED" if self.complete else "FAILED"

    @cached_property
    def content(self) -> str:
        """Digest of what a list of runs does not show: the curves and the artifacts."""
        curves = {
            key: sorted((step, point.value) for step, point in line.items()) for key, line in self.curves.items()
        }
        texts = {path: digest(redacted(text)) for path, text in self.texts.items()}
        return digest(json.dumps([curves, texts], sort_keys=True))

    @property
    def began(self) -> int | None:
        """Start of its first unit in milliseconds."""
        return None if self.times is None else round(1000 * self.times[0])

    @property
    def ended(self) -> int | None:
        """End of its last unit in milliseconds."""
        return None if self.times is None else round(1000 * self.times[1])


def dataset_input(cell: Cell) -> Any:
    """The data set with its digest and the image ids' digest, as a run's input."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    config = cell.images.dataset
    images = digest("".join(chunk.name for chunk in cell.images.chunks))
    entity = Dataset(
        name=config.label(),
        digest=(config.digest or "")[:16],
        source_type="puregrid",
        source=redacted(json.dumps(config.identity())),
    )
    # MLflow keeps one entity per name and digest: the images that a run used are given with the run's input.
    tags = {"mlflow.data.context": "evaluation", "image_ids_digest": images, "images": str(cell.images.count)}
    return DatasetInput(entity, [InputTag(key, value) for key, value in tags.items()])
