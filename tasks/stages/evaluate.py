"""*evaluate*: judgement of a defence on fresh draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor

from defense.classifiers import ClassifierConfig
from defense.purifiers import PurifierConfig
from defense.randomness import Omega
from tasks.attacks import AttackConfig
from tasks.compute import Compute, Context
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import DatasetConfig
from tasks.stages.attack import AttackStage
from tasks.stages.base import Chunk, Components, Output, StageSpec, images_from_table
from tasks.stages.corrupt import CorruptStage
from tasks.stages.schemas import ROW_SCHEMAS

__all__ = ["EvaluateStage"]


class EvaluateStage(StageSpec):
    """Judgement of a defence on fresh draws, on clean images or on those that ``source`` made."""

    stage: Literal["evaluate"] = "evaluate"
    version: Literal[1] = 1
    dataset: SerializeAsAny[DatasetConfig]
    source: AttackStage | CorruptStage | None
    classifier: SerializeAsAny[ClassifierConfig]
    purifier: SerializeAsAny[PurifierConfig]
    draws: int = Field(ge=1)
    seed: int
    compute: Compute

    def inputs(self) -> dict[str, StageSpec]:
        """Return the attack or corruption, if any."""
        return {} if self.source is None else {"source": self.source}

    @property
    def components(self) -> Components:
        """See :class:`StageSpec`."""
        return Components(self.classifier, self.purifier)

    @property
    def threat(self) -> AttackConfig | CorruptionConfig | None:
        """See :class:`StageSpec`."""
        return None if self.source is None else self.source.threat

    def label(self) -> str:
        """Return what is judged, on which images."""
        images = (
            f"{self.dataset.label()}, {self.classifier.label()}, clean"
            if self.source is None
            else self.source.label()
        )
        return f"{images}, behind {self.purifier.label()}, {self.draws} draws"

    def model_key(self) -> str:
        """Return the purifier's network, or the classifier where there is none."""
        return self.purifier.model_key() or self.classifier.id

    def settings(self) -> Compute:
        """See :class:`StageSpec`."""
        return self.compute

    def work_per_image(self) -> float:
        """Return the evaluations of the purifier's network, or of the classifier where it has none."""
        return float(self.draws * max(self.purifier.evaluations, 1))

    @property
    def together(self) -> int:
        """The draws."""
        return self.draws

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        """Rows: label, and per draw the prediction and the label's probability; mean probabilities; costs."""
        data = context.images(self.dataset)
        ids = np.array(chunk.ids)
        images = data.images[ids] if self.source is None else images_from_table(inputs["source"], chunk.ids)
        classifier, purifier = context.classifier(self.classifier), context.purifier(self.purifier, self.classifier)

        levels: dict[int, int] = {}

        def judge(start: int, stop: int) -> Tensor:
            """Probabilities of some of all draws: of the first draw of every image, then of the second, ..."""
            # In this order batches that one draw fills are those of one draw at a time, and have their bits.
            draw, image = np.divmod(np.arange(start, stop), len(ids))
            keys = [chunk.ids[i] for i in image]
            omega = Omega.of(self.purifier.id, self.seed, "judge", keys, draw.tolist(), self.compute.noise)
            with torch.no_grad():
                with context.autocast(self.compute):
                    if self.purifier.schedule_of_levels is None:
                        purified = purifier(context.tensor(images[image]), omega)
                    else:
                        purified, chosen = purifier.with_levels(context.tensor(images[image]), omega)
                        levels.update(zip(range(start, stop), chosen or (), strict=True))
                probability: Tensor = classifier(purified.float()).double().softmax(1)
            return probability.cpu()

        key, count = f"{self.stage}-{self.model_key()}", len(ids) * self.draws
        flat = torch.cat(context.in_batches(key, count, self.compute.batch, judge))
        probability = flat.reshape(self.draws, len(ids), -1).transpose(0, 1).contiguous()
        times = (
            np.array([levels[i] for i in range(count)], dtype=np.int64).reshape(self.draws, -1).T if levels else None
        )
        return Output(self._rows(chunk, data.labels[ids], probability.numpy(), times))

    def _rows(
        self,
        chunk: Chunk,
        labels: npt.NDArray[np.int64],
        probability: npt.NDArray[np.float64],
        times: npt.NDArray[np.int64] | None,
    ) -> pa.Table:
        if not np.isfinite(probability).all():
            raise FloatingPointError("the defended classifier gave NaN or infinite probabilities")
        count, draws, _ = probability.shape
        level = self.purifier.noise_level
        of_label = np.take_along_axis(probability, labels[:, None, None].repeat(draws, 1), 2)[..., 0]

        def constant(value: float | None, kind: pa.DataType) -> pa.Array:
            return pa.array([value] * count, kind)

        own = self._levels_of_draws(times)
        return ROW_SCHEMAS[self.stage].table(
            {
                "image_id": pa.array(chunk.ids, pa.int32()),
                "label": pa.array(labels, pa.int16()),
                "prediction": pa.array(probability.argmax(2).tolist(), pa.list_(pa.int16())),
                "label_probability": pa.array(of_label.astype(np.float32).tolist(), pa.list_(pa.float32())),
                "mean_probability": pa.array(probability.mean(1).astype(np.float32).tolist(), pa.list_(pa.float32())),
                "t_star": constant(None if level is None else level.t_star, pa.int32()),
                "abar": constant(None if level is None else level.abar, pa.float64()),
                "sigma_eq": constant(None if level is None else level.sigma_eq, pa.float64()),
                "denoiser_evaluations": constant(draws * self.purifier.evaluations, pa.int32()),
                "classifier_evaluations": constant(draws * (1 + self.purifier.classifier_evaluations), pa.int32()),
                **own,
            }
        )

    def _levels_of_draws(self, times: npt.NDArray[np.int64] | None) -> dict[str, pa.Array]:
        """Columns of the levels that the purifier chose for each image and draw; none where it chooses none."""
        schedule = self.purifier.schedule_of_levels
        if schedule is None or times is None:
            return {}
        levels = [[schedule.level(int(t)) for t in row] for row in times]
        fields = {"t_star": pa.int32(), "abar": pa.float64(), "sigma_eq": pa.float64()}
        columns = {}
        for name, kind in fields.items():
            values = [[getattr(level, name) for level in row] for row in levels]
            columns[name] = pa.array([row[0] for row in values], kind)
            columns[f"draw_{name}"] = pa.array(values, pa.list_(kind))
        return columns
