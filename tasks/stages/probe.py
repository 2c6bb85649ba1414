"""*probe*: is a purifier, or a classifier, a function that has the gradient it gives, and does what it says?

One unit for each distinct purifier and each distinct classifier of a sweep, on its first images: see
:mod:`defense.probe`. Rows are checks, gradients by mode and numbers, not images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import SerializeAsAny, model_validator

from defense.classifiers import ClassifierConfig
from defense.models import Models
from defense.probe import IMAGES, Probe, probe_classifier, probe_purifier
from defense.purifiers import PurifierConfig
from tasks.compute import Compute, Context
from tasks.datasets import DatasetConfig
from tasks.stages.base import Chunk, Components, Output, StageSpec
from tasks.stages.schemas import ROW_SCHEMAS

__all__ = ["ProbeStage"]

_WORK = 300
"""Purifications of an image that a probe makes, about: for estimates."""


class ProbeStage(StageSpec):
    """A probe of a purifier, or of a classifier.

    Arguments:
        dataset: Whose images it is asked about, all of which are looked for among its outputs.
        classifier: For a purifier the one that guides it.
        compute: Its threads; nothing else has an influence, and a probe is in full precision.
    """

    stage: Literal["probe"] = "probe"
    version: Literal[5] = 5
    dataset: SerializeAsAny[DatasetConfig]
    purifier: SerializeAsAny[PurifierConfig] | None = None
    classifier: SerializeAsAny[ClassifierConfig] | None = None
    compute: Compute

    @model_validator(mode="after")
    def _one_part(self) -> ProbeStage:
        if self.purifier is None and self.classifier is None:
            raise ValueError("a probe is about a purifier or a classifier")
        return self

    @classmethod
    def chunk(cls, ids: tuple[int, ...]) -> Chunk:
        """Return the images, of those of a sweep, that a probe takes; to a single one its neighbour is added."""
        return Chunk(ids[:IMAGES] if len(ids) > 1 else (ids[0], ids[0] - 1 if ids[0] else 1))

    @property
    def components(self) -> Components:
        """See :class:`StageSpec`."""
        return Components(self.classifier, self.purifier)

    def label(self) -> str:
        """Return what is probed."""
        if self.purifier is not None:
            return f"probe of purifier {self.purifier.label()}"
        return f"probe of classifier {'' if self.classifier is None else self.classifier.label()}"

    def model_key(self) -> str:
        """Return the key of the network that it holds."""
        if self.purifier is not None:
            return self.purifier.model_key() or self.purifier.id
        return "" if self.classifier is None else self.classifier.id

    def work_per_image(self) -> float:
        """Return about how many evaluations of the network a probe makes for each of its images."""
        return float(_WORK * (1 if self.purifier is None else max(self.purifier.evaluations, 1)))

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        """Rows: see :data:`ROW_SCHEMAS`."""
        data = context.images(self.dataset)
        images = context.tensor(data.images[np.array(chunk.ids)])
        if self.purifier is None:
            assert self.classifier is not None
            # Built here and not taken from the cache: it must not have been called before.
            network = self.classifier.build().to(context.device)
            found = probe_classifier(network, images, config=self.classifier)
        else:
            guide = self.classifier if self.purifier.uses_classifier else None
            models = Models(None if guide is None else context.classifier(guide), context.load)
            found = probe_purifier(
                self.purifier.build(models).to(context.device),
                images,
                config=self.purifier,
                models=models,
                reference=torch.from_numpy(data.images),
            )
        return Output(probe_rows(found))


def probe_rows(found: Probe) -> pa.Table:
    """Return a probe as rows of the stage."""
    rows = [
        {
            "kind": "check",
            "part": check.part,
            "name": check.name,
            "verdict": check.verdict,
            "value": check.measured,
            "threshold": check.threshold,
            "text": check.text,
        }
        for check in found.checks
    ]
    rows += [
        {
            "kind": "gradient",
            "part": row.part,
            "name": row.mode,
            "verdict": "meant" if row.exact else "stand-in",
            "value": row.error,
            "threshold": None,
            "text": "",
            "share": row.share,
            "cosine": row.cosine,
        }
        for row in found.gradients
    ]
    rows += [
        {
            "kind": "mechanism",
            "part": "purifier",
            "name": number.name,
            "verdict": "",
            "value": number.value,
            "threshold": None,
            "text": number.meaning,
        }
        for number in found.mechanism
    ]
    schema = ROW_SCHEMAS["probe"]
    return schema.table(
        {column.name: pa.array([row.get(column.name) for row in rows], column.type) for column in schema.columns}
    )
