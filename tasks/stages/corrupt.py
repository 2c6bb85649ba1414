"""*corrupt*: clean images to corrupted ones; no network is asked, and all classifiers and defences share it."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import SerializeAsAny

from tasks.attacks import perturbation_norms
from tasks.compute import Context
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import DatasetConfig
from tasks.stages.base import Chunk, Components, Output, StageSpec, images_to_table
from tasks.stages.schemas import ROW_SCHEMAS

__all__ = ["CorruptStage"]


class CorruptStage(StageSpec):
    """A corruption of the images of a data set."""

    stage: Literal["corrupt"] = "corrupt"
    version: Literal[1] = 1
    dataset: SerializeAsAny[DatasetConfig]
    corruption: CorruptionConfig
    seed: int

    @property
    def components(self) -> Components:
        """See :class:`StageSpec`."""
        return Components(corruption=self.corruption)

    def label(self) -> str:
        """Data set, corruption, severity."""
        return f"{self.dataset.label()}, {self.corruption.label()}"

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        """Rows: label, and how far the image was moved, l_inf and l_2 in units of [0, 1] pixels."""
        data, ids = context.images(self.dataset), np.array(chunk.ids)
        corrupted = self.corruption.apply(self.dataset, data, ids, self.seed)
        images = torch.from_numpy(corrupted.images)
        norms = perturbation_norms(images, torch.from_numpy(data.images[ids]))
        rows = ROW_SCHEMAS[self.stage].table(
            {
                "image_id": pa.array(chunk.ids, pa.int32()),
                "label": pa.array(data.labels[ids], pa.int16()),
                "origin": pa.array([corrupted.origin] * len(ids), pa.string()),
                **{name: pa.array(norms[name].numpy(), pa.float64()) for name in ("linf", "l2")},
            }
        )
        return Output(rows, images_to_table(chunk.ids, images))
