"""*evaluate*: judgement of a defence on fresh draws.

All draws of an image are asked, or *until* its answer is certain (:mod:`defense.aggregate`): in rounds, each of the
fewest draws after which the answer of an image may be certain, of all images together that need more. The draws are
keyed by image and number, so those that are asked are those of the judgement in full, and its answer is theirs.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor

from defense.aggregate import UNASKED, Until, still_to_ask
from defense.classifiers import ClassifierConfig
from defense.purifiers import PurifierConfig
from defense.randomness import Omega
from tasks.compute import Compute, Context
from tasks.datasets import DatasetConfig
from tasks.stages.attack import AttackStage
from tasks.stages.base import Chunk, Components, Output, StageSpec, images_from_table
from tasks.stages.corrupt import CorruptStage
from tasks.stages.kind import Kind
from tasks.stages.schemas import ROW_SCHEMAS

__all__ = ["EvaluateStage"]


class EvaluateStage(StageSpec):
    """Judgement of a defence on fresh draws, on clean images or on those that ``source`` made."""

    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {"until": (None,)}

    stage: Literal["evaluate"] = "evaluate"
    version: Literal[1] = 1
    dataset: SerializeAsAny[DatasetConfig]
    source: AttackStage | CorruptStage | None
    classifier: SerializeAsAny[ClassifierConfig]
    purifier: SerializeAsAny[PurifierConfig]
    draws: int = Field(ge=1)
    until: Until | None = None
    seed: int
    compute: Compute

    @property
    def components(self) -> Components:
        """See :class:`StageSpec`."""
        return Components(self.classifier, self.purifier)

    def label(self) -> str:
        """Return what is judged, on which images."""
        images = (
            f"{self.dataset.label()}, {self.classifier.label()}, clean"
            if self.source is None
            else self.source.label()
        )
        return f"{images}, behind {self.purifier.label()}, {_draws(self.draws, self.until)}"

    @property
    def kind(self) -> Kind:
        """See :class:`StageSpec`; one that stops asking is of a kind of its own, since it does less than its work."""
        kind = super().kind
        if self.until is None:
            return kind
        name = f"until {self.until}"
        return kind._replace(defence=f"{kind.defence} {name}", name=f"{kind.name} {name}")

    def model_key(self) -> str:
        """Return the purifier's network, or the classifier where there is none."""
        return self.purifier.model_key() or self.classifier.id

    def work_per_image(self) -> float:
        """Return the evaluations of the purifier's network, or of the classifier where it has none, at most."""
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

        key = f"{self.stage}-{self.model_key()}"
        chooses = self.purifier.schedule_of_levels is not None
        times = np.full((len(ids), self.draws), UNASKED, dtype=np.int64) if chooses else None

        def asked(image: npt.NDArray[np.intp], draw: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
            """Probabilities of each class, shape (questions, classes), of some draws of some images."""

            def judge(start: int, stop: int) -> Tensor:
                i, k = image[start:stop], draw[start:stop]
                keys = [chunk.ids[place] for place in i]
                omega = Omega.of(self.purifier.id, self.seed, "judge", keys, k.tolist(), self.compute.noise)
                with torch.no_grad():
                    with context.autocast(self.compute):
                        if times is None:
                            purified = purifier(context.tensor(images[i]), omega)
                        else:
                            purified, chosen = purifier.with_levels(context.tensor(images[i]), omega)
                            times[i, k] = np.array(chosen, dtype=np.int64)
                    probability: Tensor = classifier(purified.float()).double().softmax(1)
                return probability.cpu()

            return torch.cat(context.in_batches(key, len(image), self.compute.batch, judge)).numpy()

        votes = np.full((len(ids), self.draws), UNASKED, dtype=np.int64)
        probability = np.zeros((0, 0, 0))
        for image, draw in self._rounds(votes, data.labels[ids]):
            answers = asked(image, draw)
            if not np.isfinite(answers).all():
                raise FloatingPointError("the defended classifier gave NaN or infinite probabilities")
            if not len(probability):
                probability = np.full((*votes.shape, answers.shape[1]), np.nan)
            probability[image, draw], votes[image, draw] = answers, answers.argmax(1)
        return Output(self._rows(chunk, data.labels[ids], probability, times))

    def _rounds(
        self, votes: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
        """Yield images and draws to ask together, with what ``votes`` then has: all, or until answers are certain."""
        count = len(votes)
        while True:
            if self.until is None:
                more = np.full(count, self.draws) if votes[0, 0] == UNASKED else np.zeros(count, dtype=np.int64)
            else:
                more = still_to_ask(votes, labels, self.until)
            if not more.any():
                return
            # The first draw of every image, then the second, ...: batches that one draw fills are those of one draw
            # at a time, and have their bits.
            draw, image = np.nonzero(np.arange(more.max())[:, None] < more)
            yield image, draw + (votes != UNASKED).sum(1)[image]

    def _rows(
        self,
        chunk: Chunk,
        labels: npt.NDArray[np.int64],
        probability: npt.NDArray[np.float64],
        times: npt.NDArray[np.int64] | None,
    ) -> pa.Table:
        count, draws, _ = probability.shape
        level = self.purifier.noise_level
        of_label = np.take_along_axis(probability, labels[:, None, None].repeat(draws, 1), 2)[..., 0]
        known = ~np.isnan(probability).any(2)
        asked = known.sum(1)

        def constant(value: float | None, kind: pa.DataType) -> pa.Array:
            return pa.array([value] * count, kind)

        def shares(values: npt.NDArray[np.float64]) -> pa.Array:
            # What was not asked is null, and so is a mean over draws that were not all asked.
            flat = pa.array(values.astype(np.float32).reshape(-1), from_pandas=True)
            ends = pa.array(np.arange(0, len(flat) + 1, values.shape[1]), pa.int32())
            return pa.ListArray.from_arrays(ends, flat)

        own = self._levels_of_draws(times)
        return ROW_SCHEMAS[self.stage].table(
            {
                "image_id": pa.array(chunk.ids, pa.int32()),
                "label": pa.array(labels, pa.int16()),
                "prediction": pa.array(
                    np.where(known, probability.argmax(2), UNASKED).tolist(), pa.list_(pa.int16())
                ),
                "label_probability": shares(of_label),
                "mean_probability": shares(probability.mean(1)),
                "t_star": constant(None if level is None else level.t_star, pa.int32()),
                "abar": constant(None if level is None else level.abar, pa.float64()),
                "sigma_eq": constant(None if level is None else level.sigma_eq, pa.float64()),
                "denoiser_evaluations": pa.array(asked * self.purifier.evaluations, pa.int32()),
                "classifier_evaluations": pa.array(asked * (1 + self.purifier.classifier_evaluations), pa.int32()),
                **({} if self.until is None else {"draws_asked": pa.array(asked, pa.int32())}),
                **own,
            }
        )

    def _levels_of_draws(self, times: npt.NDArray[np.int64] | None) -> dict[str, pa.Array]:
        """Columns of the levels that the purifier chose for each image and draw; none where it chooses none."""
        schedule = self.purifier.schedule_of_levels
        if schedule is None or times is None:
            return {}
        levels = [[None if t == UNASKED else schedule.level(int(t)) for t in row] for row in times]
        fields = {"t_star": pa.int32(), "abar": pa.float64(), "sigma_eq": pa.float64()}
        columns = {}
        for name, kind in fields.items():
            values = [[None if level is None else getattr(level, name) for level in row] for row in levels]
            columns[name] = pa.array([row[0] for row in values], kind)
            columns[f"draw_{name}"] = pa.array(values, pa.list_(kind))
        return columns


def _draws(draws: int, until: Until | None) -> str:
    return f"{draws} draws" if until is None else f"up to {draws} draws, until the {until} is certain"
