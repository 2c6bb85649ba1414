r"""COUP: classifier-confidence guided purification (ECAI 2024, arXiv 2408.05900), from the public code.

The reverse VP-SDE with the score

.. math:: \nabla \log p_t(z) + \lambda\, \nabla_z \log \max_c p_f\!\left(c \,\middle|\, \tfrac{z + 1}{2}\right),
          \qquad \lambda = 1,

f the protected classifier on the *noisy* state. It is ``distribution-transfer`` with ``guidance: confidence``,
``classifier_sees: noisy`` and no distance. Their script adds **no forward noise** (``forward: none``): the image
itself is where the SDE starts, at t* = .1, that is 100 steps of 1e-3; ``forward: noise`` noises first, as usual.

The confidence is pulled up whatever the class is: on an attacked image, that of the attacked class.

**The published attack** is AutoAttack through the adjoint method, with the guidance's gradient detached
(``exact-no-guidance-path``).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from defense.guidance import Guidance, Moment, logits
from defense.models import Models
from defense.purifiers.base import PURIFIERS, IterativePurifier
from defense.purifiers.diffpure import DiffPureConfig
from defense.purifiers.diffusion import Diffusion
from defense.schedules import Schedule

__all__ = ["ConfidenceGuidance", "CoupConfig"]


class ConfidenceGuidance(Guidance):
    """The potential ``-log max_c p_f(c | (z + 1) / 2)`` with a constant scale.

    Arguments:
        classifier: The protected classifier.
        lam: lambda.
    """

    def __init__(self, classifier: nn.Module, lam: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.lam = lam

    def scale(self, t: int, schedule: Schedule) -> float:
        """Return lambda."""
        return self.lam

    def forward(self, moment: Moment) -> Tensor:
        """See :class:`Guidance`."""
        return -torch.log_softmax(logits(self.classifier, (moment.z + 1) / 2), 1).amax(1)


@PURIFIERS.register("coup")
class CoupConfig(DiffPureConfig):
    """COUP: the reverse SDE from the image itself, guided to higher confidence of the protected classifier.

    Arguments:
        form: As of ``diffpure``, by default ``sde``.
        forward: ``none`` as published, or ``noise``.
        lam: lambda.
    """

    # It has had all its fields from the start.
    unsaid: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    purifier: Literal["coup"] = "coup"  # type: ignore[assignment]
    form: Literal["ddpm", "ddim", "sde", "ode"] = "sde"
    forward: Literal["noise", "none"] = "none"
    lam: float = Field(default=1.0, ge=0)

    @property
    def guided(self) -> bool:
        """By the confidence."""
        return self.lam > 0

    @property
    def pulls_to(self) -> str | None:
        """The classifier's answer on the input, where its confidence begins to rise."""
        return "the classifier's answer on the input" if self.guided else None

    @property
    def uses_classifier(self) -> bool:
        """True."""
        return True

    @property
    def classifier_evaluations(self) -> int:
        """One a step."""
        return self.steps

    def label(self) -> str:
        """``coup t*=100 sde from the image``."""
        start = " from the image" if self.forward == "none" else ""
        return f"{super().label()}{start}{'' if self.lam == 1 else f' lam={self.lam:g}'}"

    def build(self, models: Models | None = None) -> IterativePurifier:
        """Load the denoiser; the classifier is the one of ``models``."""
        models = models or Models()
        guidance = ConfidenceGuidance(models.protected, self.lam)
        return Diffusion(models.load(self.denoiser), [self.sampler()], guidance=guidance).eval()
