"""Transfer: the images of another cell, submitted here.

An attacker who cannot question the defended classifier attacks one of their own, with or without a purifier of their
own, and submits what fooled that (Papernot et al., arXiv 1605.07277). The images are projected on this attack's
budget. It knows nothing of what it is judged on: every defence shares them.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

from pydantic import SerializeAsAny, model_validator
from torch import Tensor

from defense.classifiers import ClassifierConfig
from defense.errors import InvalidInput, inside
from defense.purifiers import PurifierConfig
from tasks.attacks.base import ATTACKS, AttackConfig, AttackResult
from tasks.attacks.derived import DerivedAttackConfig, Given
from tasks.attacks.losses import point_loss
from tasks.attacks.region import Norm, Region
from tasks.attacks.target import Target

__all__ = ["TransferConfig"]


@ATTACKS.register("transfer")
class TransferConfig(DerivedAttackConfig):
    """The images of an attack on another classifier, or behind another purifier.

    Arguments:
        source: The attack that makes the images; norm and eps are this attack's unless it has its own.
        classifier: The attacked classifier; by default the cell's own, and then there must be a ``purifier``.
        purifier: The purifier in front of it, for a source that knows one.

    Raises:
        InvalidInput: The source is neither on another classifier nor behind another purifier; it knows a purifier
            and none is given, or none and one is.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    black_box: ClassVar[bool] = True
    hands_down: ClassVar[Mapping[str, tuple[str, ...]]] = {"source": ("norm", "eps", "unbounded")}
    attack: Literal["transfer"] = "transfer"
    source: SerializeAsAny[AttackConfig]
    classifier: SerializeAsAny[ClassifierConfig] | None = None
    purifier: SerializeAsAny[PurifierConfig] | None = None

    @model_validator(mode="after")
    def _from_elsewhere(self) -> Self:
        if isinstance(self.source, DerivedAttackConfig):
            raise InvalidInput("source is an attack that makes images, not one that is made of others' images.")
        if self.classifier is None and self.purifier is None:
            raise InvalidInput(
                "transfer needs a `classifier` or a `purifier` to come from: an attack on the cell's own bare "
                "classifier is a static attack, name it itself."
            )
        if self.source.static != (self.purifier is None):
            raise InvalidInput(
                f"source {self.source.label()!r} "
                + (
                    "does not look at a purifier; remove `purifier`, or give the source a `gradient`."
                    if self.source.static
                    else "knows a purifier: say which under `purifier`."
                )
            )
        if not self.static:
            raise InvalidInput(
                "a transfer attack knows nothing of what it is judged on; its source may.", keys=("knows",)
            )
        return self

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        if self.classifier is not None:
            architecture = self.classifier.architecture
            if (architecture.classes, architecture.image_shape) != (classes, image_shape):
                raise InvalidInput(
                    f"classifier {self.classifier.label()!r} takes images of shape {architecture.image_shape} and "
                    f"tells {architecture.classes} classes apart, the attacked one {image_shape} and {classes}: an "
                    "attack is transferred between classifiers of the same images and classes.",
                    keys=("classifier",),
                )
        if self.purifier is not None:
            with inside("purifier"):
                self.purifier.check_images(image_shape)
        with inside("source"):
            self.source.check_task(classes, image_shape)

    def method(self) -> str:
        """``transfer of pgd-20 linf from resnet20``, behind its purifier if it has one."""
        words = f"transfer of {self.source.label()}"
        if self.classifier is not None:
            words += f" from {self.classifier.label()}"
        return words if self.purifier is None else f"{words} behind {self.purifier.label()}"

    @property
    def evaluations(self) -> int:
        """One, for the loss in the rows."""
        return 1

    def combine(self, target: Target, x: Tensor, given: Sequence[Given]) -> AttackResult:
        """See :class:`DerivedAttackConfig`."""
        images = Region(x, self.norm, self.eps).project(given[0].images)
        return AttackResult(images, target.evaluate(images, point_loss("ce")).loss)
