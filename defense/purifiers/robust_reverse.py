r"""AGDM (Lin et al., "Robust diffusion models for adversarial purification", arXiv 2403.16067).

A reverse process guided by an adversarially trained auxiliary network with encoder c and class output p, trained with
TRADES (``puregrid train``, method ``trades``); the diffusion model is untouched:

.. math:: z_{t-1} \sim N\left(\mu_\theta(z_t) - s\,\Sigma_t \nabla_{z_t} G(z_t),\ \Sigma_t\right), \qquad
          G(z_t) = -w_y \log p(\hat y\,|\,z_t) + w_c \left\|c(z_t) - c(z')\right\|^2

The body of the paper could not be read; the two terms and TRADES are from its abstract, its public reviews and a work
that builds on it, the rest is a choice with a switch:

* ``target``: z' is the input noised to the level of :math:`z_t` (``diffused``, so that both arguments have the same
  noise) or the input itself (``input``);
* ``class_label``: :math:`\hat y = \arg\max p(\cdot|x)` of the input (``prediction``), or no label:
  the entropy of :math:`p(\cdot|z_t)` in place of the first term (``entropy``). Never the true label;
* ``auxiliary_sees``: the state (``noisy``, as the formula reads) or the predicted clean image (``denoised``); with
  ``denoised`` the target is the input itself;
* the squared distance is a mean over the latent dimensions; one scale s weighs both terms in the paper, the weights
  :math:`w_y, w_c` are 1 there.

A TRADES network inside the defence may be all that helps: always put it alone, the unguided purifier and this defence
in one table.
"""

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn

from defense.classifiers import ClassifierConfig
from defense.errors import InvalidInput
from defense.guidance import Guidance, Moment, logits
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.reverse import StandardReverseConfig
from defense.samplers import Variance
from defense.schedules import Schedule

__all__ = ["RobustGuidance", "RobustReverseConfig"]


class RobustGuidance(Guidance):
    """The potential G; see the module.

    Arguments:
        auxiliary: The adversarially trained network: images in [0, 1] to logits, and ``latent``.
        s: The scale s.
        class_weight: w_y.
        latent_weight: w_c.
        target: ``diffused`` or ``input``.
        label: ``prediction`` or ``entropy``.
        auxiliary_sees: ``noisy`` or ``denoised``.
    """

    def __init__(
        self,
        auxiliary: nn.Module,
        s: float,
        *,
        class_weight: float = 1.0,
        latent_weight: float = 1.0,
        target: Literal["diffused", "input"] = "diffused",
        label: Literal["prediction", "entropy"] = "prediction",
        auxiliary_sees: Literal["noisy", "denoised"] = "noisy",
    ) -> None:
        super().__init__()
        self.auxiliary: Any = auxiliary
        self.s = s
        self.class_weight = class_weight
        self.latent_weight = latent_weight
        self.target = target
        self.label = label
        self.needs_denoised = auxiliary_sees == "denoised"

    def scale(self, t: int, schedule: Schedule) -> float:
        """Return the scale s."""
        return self.s

    def target_logits(self, classifier: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return the auxiliary network's answer on the input."""
        return logits(self.auxiliary, x)

    def forward(self, moment: Moment) -> Tensor:
        """See :class:`Guidance`."""
        seen = moment.denoised if self.needs_denoised else (moment.z + 1) / 2
        value = 0 * seen.flatten(1).sum(1)
        if self.class_weight:
            log_p = torch.log_softmax(logits(self.auxiliary, seen), 1)
            if self.label == "entropy":
                term = -(log_p.exp() * log_p).sum(1)
            else:
                wanted = logits(self.auxiliary, moment.x.detach()).argmax(1, keepdim=True)
                term = -log_p.gather(1, wanted).squeeze(1)
            value = value + self.class_weight * term
        if self.latent_weight:
            reference = (moment.diffused_input() + 1) / 2 if self.target == "diffused" else moment.x
            apart = logits(self.auxiliary.latent, seen) - logits(self.auxiliary.latent, reference)
            value = value + self.latent_weight * apart.square().mean(1)
        return value


@PURIFIERS.register("robust-reverse")
class RobustReverseConfig(StandardReverseConfig):
    """AGDM: a reverse process guided by an adversarially trained auxiliary network.

    Arguments:
        auxiliary: The auxiliary network: a classifier entry, or the name of one that ships with puregrid.
        scale: s.
        class_weight: Weight of the class term, 0 for none.
        latent_weight: Weight of the latent term, 0 for none.
        target: What the state's latent is compared with, ``diffused`` input or ``input``.
        class_label: ``prediction`` of the auxiliary network on the input, or ``entropy``.
        auxiliary_sees: ``noisy`` state or ``denoised`` image.
    """

    purifier: Literal["robust-reverse"] = "robust-reverse"
    auxiliary: SerializeAsAny[ClassifierConfig]
    scale: float = Field(default=1.0, ge=0)
    class_weight: float = Field(default=1.0, ge=0)
    latent_weight: float = Field(default=1.0, ge=0)
    target: Literal["diffused", "input"] = "diffused"
    class_label: Literal["prediction", "entropy"] = "prediction"
    auxiliary_sees: Literal["noisy", "denoised"] = "noisy"
    variance: Variance = "large"

    @model_validator(mode="after")
    def _same_images(self) -> Self:
        if self.auxiliary_sees == "denoised" and self.target == "diffused":
            raise InvalidInput(
                "target diffused is compared with a noisy state; with `auxiliary_sees: denoised` write "
                "`target: input`."
            )
        return self

    @property
    def guided(self) -> bool:
        """By the auxiliary network."""
        return True

    @property
    def pulls_to(self) -> str | None:
        """The auxiliary network's answer on the input; None where no term of a weight above 0 looks at the input."""
        labelled = self.class_weight > 0 and self.class_label == "prediction"
        looks = self.scale > 0 and (labelled or self.latent_weight > 0)
        return "the auxiliary network's answer on the input" if looks else None

    @property
    def classifier_evaluations(self) -> int:
        """Per reverse step and term one on the state and one on the input."""
        for_class = 2 if self.class_label == "prediction" else 1
        return (for_class * bool(self.class_weight) + 2 * bool(self.latent_weight)) * self.steps

    def build(self, models: Models | None = None) -> Diffusion:
        """Load the denoiser and the auxiliary network."""
        models = models or Models()
        guidance = RobustGuidance(
            models.load(self.auxiliary),
            self.scale,
            class_weight=self.class_weight,
            latent_weight=self.latent_weight,
            target=self.target,
            label=self.class_label,
            auxiliary_sees=self.auxiliary_sees,
        )
        denoiser = models.load(self.denoiser)
        return Diffusion(denoiser, [self.sampler()], guidance=guidance, clamp=True).eval()
