r"""Purifiers one after the other.

.. math:: D(x;\omega) = D_m(\dots D_1(x;\omega_1)\dots;\omega_m)

Each stage has randomness of its own: that of stage k is keyed by the role with ``/k`` appended. A stage that is
guided by its input is guided by the output of the stage before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field, SerializeAsAny
from torch import Tensor, nn

from defense.errors import inside
from defense.models import Models
from defense.purifiers.base import PURIFIERS, Purifier, PurifierConfig
from defense.randomness import Omega
from defense.schedules import NoiseLevel

__all__ = ["Sequence", "SequenceConfig"]


class Sequence(Purifier):
    """Stages in order.

    Arguments:
        stages: The purifiers, the first to see the image first.
    """

    def __init__(self, stages: Iterable[Purifier]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def stages_with(self, omega: Omega) -> Iterator[tuple[Purifier, Omega]]:
        """Yield each stage with its own randomness."""
        for k, stage in enumerate(self.stages):
            assert isinstance(stage, Purifier)
            yield stage, omega.within(str(k))

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        """See :class:`Purifier`."""
        for stage, stage_omega in self.stages_with(omega):
            x = stage(x, stage_omega)
        return x

    def surrogate(self, steps: int) -> Sequence:
        """Return each stage by its surrogate."""
        return Sequence(stage.surrogate(steps) for stage in self.stages if isinstance(stage, Purifier))

    def softened(self) -> Sequence:
        """Return each stage softened; itself where none is."""
        stages = [stage.softened() for stage in self.stages if isinstance(stage, Purifier)]
        return self if all(a is b for a, b in zip(stages, self.stages, strict=True)) else Sequence(stages)

    def without_second_moment(self) -> Sequence:
        """Return each stage without the second moment of its optimiser; itself where none has one."""
        stages = [stage.without_second_moment() for stage in self.stages if isinstance(stage, Purifier)]
        return self if all(a is b for a, b in zip(stages, self.stages, strict=True)) else Sequence(stages)


@PURIFIERS.register("chain")
class SequenceConfig(PurifierConfig):
    """Several purifiers one after the other.

    Arguments:
        stages: Purifier entries, the first to see the image first.
    """

    purifier: Literal["chain"] = "chain"
    stages: tuple[SerializeAsAny[PurifierConfig], ...] = Field(min_length=1)

    @property
    def stochastic(self) -> bool:
        """Whether any stage is."""
        return any(stage.stochastic for stage in self.stages)

    @property
    def differentiable(self) -> bool:
        """Whether all stages are; where one is not, its part of the gradient is straight-through."""
        return all(stage.differentiable for stage in self.stages)

    @property
    def softens(self) -> bool:
        """Whether any stage does."""
        return any(stage.softens for stage in self.stages)

    @property
    def uses_classifier(self) -> bool:
        """Whether any stage does."""
        return any(stage.uses_classifier for stage in self.stages)

    @property
    def diffuses(self) -> bool:
        """Whether any stage does."""
        return any(stage.diffuses for stage in self.stages)

    @property
    def guided(self) -> bool:
        """Whether any stage is."""
        return any(stage.guided for stage in self.stages)

    @property
    def knows_eps(self) -> bool:
        """Whether any stage does."""
        return any(stage.knows_eps for stage in self.stages)

    @property
    def noise_level(self) -> NoiseLevel | None:
        """That of the stage with most noise."""
        levels = [stage.noise_level for stage in self.stages if stage.noise_level is not None]
        return max(levels, key=lambda level: level.sigma_eq, default=None)

    @property
    def evaluations(self) -> int:
        """Sum over the stages."""
        return sum(stage.evaluations for stage in self.stages)

    @property
    def classifier_evaluations(self) -> int:
        """Sum over the stages."""
        return sum(stage.classifier_evaluations for stage in self.stages)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """That of the first stage which asks for one."""
        return next((stage.image_shape for stage in self.stages if stage.image_shape is not None), None)

    def check_images(self, image_shape: tuple[int, int, int]) -> None:
        """See :class:`PurifierConfig`: every stage takes them."""
        for place, stage in enumerate(self.stages):
            with inside("stages", place):
                stage.check_images(image_shape)

    def model_key(self) -> str:
        """That of the first stage with a model."""
        return next((stage.model_key() for stage in self.stages if stage.model_key()), "")

    def label(self) -> str:
        """Return labels of the stages, in order."""
        return " + ".join(stage.label() for stage in self.stages)

    def build(self, models: Models | None = None) -> Sequence:
        """Build every stage."""
        models = models or Models()
        return Sequence(stage.build(models) for stage in self.stages).eval()
