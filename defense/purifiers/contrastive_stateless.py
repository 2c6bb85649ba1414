r"""Contrastive guidance **without a state**: a variant of ours, not the published defence.

"Diffusion models demand contrastive guidance for adversarial purification to advance" (ICML 2024) trains a small
network on the classifier's outputs by Adam *across calls*, with the other images of the batch as negatives. What it
does to an image depends on the images before and beside it, so that it is no function of image and randomness, and
no evaluation of it can be repeated. This variant keeps what does not need that: a reverse process guided by

.. math:: G(z_t) = -\log \frac{e^{c(q, k_+)/\tau}}{e^{c(q, k_+)/\tau} + \sum_{j=1}^K e^{c(q, k_j)/\tau}}

(van den Oord et al., arXiv 1807.03748), with c the cosine of the protected classifier's logits, centred, on

* q: the state, :math:`(z_t + 1)/2`;
* the positive: the input noised to the same level, :math:`q_t(x)`;
* K negatives: a grey image noised to the same level, each with noise of its own.

No trained projection and no other image is in it. Figures of the published defence say nothing about it.

Keys of the noise: those of :mod:`defense.purifiers.diffusion`; ``("negative", step)``.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from defense.guidance import Guidance, Moment, logits
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.reverse import StandardReverseConfig
from defense.samplers import Variance, forward_noise
from defense.schedules import Schedule

__all__ = ["ContrastiveGuidance", "ContrastiveStatelessConfig"]


class ContrastiveGuidance(Guidance):
    """The potential G; see the module.

    Arguments:
        classifier: The protected classifier.
        s: The scale.
        temperature: tau.
        negatives: K.
    """

    def __init__(self, classifier: nn.Module, s: float, temperature: float = 1.0, negatives: int = 4) -> None:
        super().__init__()
        self.classifier = classifier
        self.s, self.temperature, self.negatives = s, temperature, negatives

    def scale(self, t: int, schedule: Schedule) -> float:
        """Return the scale s."""
        return self.s

    def _direction(self, z: Tensor) -> Tensor:
        answer = logits(self.classifier, (z + 1) / 2)
        return torch.nn.functional.normalize(answer - answer.mean(1, keepdim=True), dim=1)

    def forward(self, moment: Moment) -> Tensor:
        """See :class:`Guidance`."""
        z, k = moment.z, self.negatives
        noise = moment.noise(z, "negative", (k, *z.shape[1:]))
        grey = forward_noise(torch.zeros_like(noise), moment.abar, noise)
        own, positive = self._direction(z), self._direction(moment.diffused_input())
        others = self._direction(grey.flatten(0, 1)).view(len(z), k, -1)
        toward = (own * positive).sum(1) / self.temperature
        away = torch.einsum("bc,bkc->bk", own, others) / self.temperature
        return torch.logsumexp(torch.cat([toward[:, None], away], 1), 1) - toward


@PURIFIERS.register("contrastive-stateless")
class ContrastiveStatelessConfig(StandardReverseConfig):
    """A reverse process with contrastive guidance that keeps no state; ours, not the published one.

    Arguments:
        scale: s.
        temperature: tau.
        negatives: K.
    """

    purifier: Literal["contrastive-stateless"] = "contrastive-stateless"
    scale: float = Field(default=10.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    negatives: int = Field(default=4, ge=1, le=1_000)
    variance: Variance = "large"

    @property
    def guided(self) -> bool:
        """By the contrast."""
        return True

    @property
    def pulls_to(self) -> str | None:
        """The classifier's answer on the input, unless the scale is 0."""
        return "the classifier's answer on the input" if self.scale > 0 else None

    @property
    def uses_classifier(self) -> bool:
        """True."""
        return True

    @property
    def classifier_evaluations(self) -> int:
        """Per step one on the state, one on the noised input, one on each negative."""
        return (2 + self.negatives) * self.steps

    def label(self) -> str:
        """``contrastive-stateless t*=100 s=10``."""
        return f"contrastive-stateless {self.t_star_label()} s={self.scale:g}"

    def build(self, models: Models | None = None) -> Diffusion:
        """Load the denoiser; the classifier is the one of ``models``."""
        models = models or Models()
        guidance = ContrastiveGuidance(models.protected, self.scale, self.temperature, self.negatives)
        denoiser = models.load(self.denoiser)
        return Diffusion(denoiser, [self.sampler()], guidance=guidance, clamp=True).eval()
