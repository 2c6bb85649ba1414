"""*quality*: how far a defence's images are from the clean ones and from its inputs, on the first draw (fixed noise).

Three pairs are compared, each by the measures of :mod:`tasks.quality`:

* ``input``: the clean image with the one that the defence was given (adversarial, corrupted, or clean itself);
* ``output``: the clean image with what the defence made of it: what is left of the perturbation and what is lost;
* ``change``: what the defence was given with what it made of that.

Outputs are cut to [0, 1] first, as saving them would. The purified images of the first draw are stored: that draw is
judged too.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import SerializeAsAny
from torch import Tensor

from defense.classifiers import ClassifierConfig
from defense.lpips import LpipsConfig
from defense.purifiers import PurifierConfig
from defense.randomness import Omega
from defense.spec import Spec
from tasks.compute import Compute, Context
from tasks.datasets import DatasetConfig
from tasks.quality import quality
from tasks.stages.attack import AttackStage
from tasks.stages.base import Chunk, Components, Output, StageSpec, images_from_table, images_to_table
from tasks.stages.corrupt import CorruptStage
from tasks.stages.schemas import ROW_SCHEMAS

__all__ = ["PAIRS", "QualityConfig", "QualityStage"]

PAIRS = ("input", "output", "change")


class QualityConfig(Spec):
    """How quality is measured.

    Arguments:
        lpips: Weights of LPIPS; without them its columns are empty and say why.
    """

    lpips: LpipsConfig | None = None


class QualityStage(StageSpec):
    """Image quality in front of and behind a purifier, on the images that ``source`` made, or on clean ones."""

    stage: Literal["quality"] = "quality"
    version: Literal[1] = 1
    dataset: SerializeAsAny[DatasetConfig]
    source: AttackStage | CorruptStage | None
    classifier: SerializeAsAny[ClassifierConfig] | None
    """Set for a purifier that it guides; None for others, so that classifiers share what does not depend on them."""
    purifier: SerializeAsAny[PurifierConfig]
    quality: QualityConfig
    seed: int
    compute: Compute

    @property
    def components(self) -> Components:
        """See :class:`StageSpec`."""
        return Components(self.classifier, self.purifier)

    def label(self) -> str:
        """Return what is measured, on which images."""
        images = f"{self.dataset.label()}, clean" if self.source is None else self.source.label()
        return f"image quality of {images}, behind {self.purifier.label()}"

    def model_key(self) -> str:
        """Return the purifier's network."""
        return self.purifier.model_key() or self.purifier.id

    def work_per_image(self) -> float:
        """Return the evaluations of the purifier's network for one draw."""
        return float(max(self.purifier.evaluations, 1))

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        """Rows: label, and of each pair PSNR in dB (infinite for equal images), SSIM, LPIPS; null where missing."""
        data, ids = context.images(self.dataset), np.array(chunk.ids)
        clean = data.images[ids]
        presented = clean if self.source is None else images_from_table(inputs["source"], chunk.ids)
        purifier = context.purifier(self.purifier, self.classifier)

        def purify(start: int, stop: int) -> Tensor:
            omega = Omega.of(self.purifier.id, self.seed, "judge", chunk.ids[start:stop], 0, self.compute.noise)
            with torch.no_grad(), context.autocast(self.compute):
                output: Tensor = purifier(context.tensor(presented[start:stop]), omega)
            return output.float().cpu()

        key = f"{self.stage}-{self.model_key()}"
        purified = torch.cat(context.in_batches(key, len(ids), self.compute.batch, purify))
        if not bool(torch.isfinite(purified).all()):
            raise FloatingPointError("the purifier gave NaN or infinite pixels")
        output = purified.clamp(0, 1).numpy()
        network = None if self.quality.lpips is None else context.load(self.quality.lpips)
        columns: dict[str, pa.Array] = {}
        missing: dict[str, str] = {}
        for pair, (first, second) in zip(
            PAIRS, ((clean, presented), (clean, output), (presented, output)), strict=True
        ):
            measured = quality(np.clip(first, 0, 1), np.clip(second, 0, 1), network)
            for measure, values in measured.columns.items():
                columns[f"{measure}_{pair}"] = _column(values)
            missing |= measured.missing
        rows = ROW_SCHEMAS[self.stage].table(
            {
                "image_id": pa.array(chunk.ids, pa.int32()),
                "label": pa.array(data.labels[ids], pa.int16()),
                **columns,
                "denoiser_evaluations": pa.array([self.purifier.evaluations] * len(ids), pa.int32()),
                "classifier_evaluations": pa.array([self.purifier.classifier_evaluations] * len(ids), pa.int32()),
            }
        )
        return Output(rows, images_to_table(chunk.ids, torch.from_numpy(output)), missing=missing)


def _column(values: npt.NDArray[np.float64]) -> pa.Array:
    """Nulls where a measure could not be taken."""
    return pa.array(values, pa.float64(), mask=np.isnan(values))
