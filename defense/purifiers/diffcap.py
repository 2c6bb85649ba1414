r"""DiffCAP: diffusion-based cumulative adversarial purification (Fu et al., arXiv 2506.03933), a t* for each image.

Noise is added to the image step by step, until the embeddings of two noised images in a row are alike: adversarial
embeddings move when noise is added. Then the image is denoised from there:

.. math:: z_{k+1} = \sqrt{\alpha_{k+1}}\, z_k + \sqrt{1-\alpha_{k+1}}\, n_k, \qquad
          t(x) = \min\{k : \cos(h(z_{k-1}), h(z_k)) > c\}, \qquad D(x) = (R_t(z_t) + 1)/2,

with :math:`z_0 = 2x - 1`, :math:`\alpha_k = \bar\alpha_k/\bar\alpha_{k-1}`, h the embedding of the protected
network (in the paper the image encoder of a vision-language model, here the features before the classifier's last
layer, or its logits), and at most ``t_star`` steps. The encoder sees the noised state as it is, (z + 1)/2.

When t is reached is decided by a comparison: its derivative is zero almost everywhere, and there is no number
before rounding to follow, so that there is no straight-through gradient. The exact one goes through the noised image.

Keys of the noise: ``("cumulative", k)`` for the step to level k; ``("reverse", t)`` as in ``diffpure``. That the
paper starts where the embedding has just become stable is from its abstract and from reports on its algorithm; the
threshold for classifiers is ours.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from defense.errors import InvalidInput
from defense.guidance import logits
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.per_image import PerImageConfig, PerImageDiffusion
from defense.randomness import Omega
from defense.samplers import EpsModel, Sampler, forward_noise

__all__ = ["DiffCAP", "DiffCAPConfig"]


class DiffCAP(PerImageDiffusion):
    """Noise until the embedding is stable, then reverse; see the module.

    Arguments:
        denoiser: Noise predictor with ``at_levels``.
        sampler: The reverse process.
        embed: Images in [0, 1] to embeddings, shape (B, D).
        threshold: c.
        most: Noising steps at most.
        steps: Reverse steps of an image at most.
    """

    def __init__(
        self,
        denoiser: EpsModel,
        sampler: Sampler,
        embed: Any,
        *,
        threshold: float,
        most: int,
        steps: int | None = None,
    ) -> None:
        super().__init__(denoiser, sampler, most=most, steps=most if steps is None else steps)
        self.embed = embed
        self.threshold = threshold

    @property
    def preparations(self) -> int:
        """Noising steps at most."""
        return self.most

    def prepare(self, i: int, a: Tensor, t: Tensor, x: Tensor, omega: Omega) -> tuple[Tensor, Tensor]:
        """One noising step of the images that have not stopped."""
        z = 2 * x - 1 if i == 0 else a
        going = t.detach() == 0
        if not bool(going.any()):
            return z, t
        abar = self.denoiser.schedule.abar
        further = forward_noise(z, float(abar[i + 1] / abar[i]), omega.normal("cumulative", i + 1, z))
        with torch.no_grad():
            before, after = (self.embed((state + 1) / 2) for state in (z, further))
            stable = torch.cosine_similarity(before, after, dim=1) > self.threshold
        stopped = going & (stable if i + 1 < self.most else torch.ones_like(stable))
        return (
            torch.where(going.view(-1, 1, 1, 1), further, z),
            torch.where(stopped, torch.full_like(t, i + 1), t),
        )

    def noised(self, a: Tensor, abar: float | Tensor, x: Tensor, omega: Omega) -> Tensor:
        """The state that the steps have made."""
        return a


@PURIFIERS.register("diffcap")
class DiffCAPConfig(PerImageConfig):
    """DiffCAP: add noise until the classifier's features are stable, then denoise.

    Arguments:
        t_star: Noising steps at most.
        threshold: Cosine similarity of the embeddings of two states in a row from which on they are stable.
        embedding: ``latent``, the features before the classifier's last layer, or its ``logits``.
        steps: Reverse steps of an image at most, by default one a level.
    """

    purifier: Literal["diffcap"] = "diffcap"
    threshold: float = Field(default=0.96, gt=-1, lt=1)
    embedding: Literal["latent", "logits"] = "latent"

    @property
    def uses_classifier(self) -> bool:
        """True: its embedding decides when to stop."""
        return True

    @property
    def evaluations(self) -> int:
        """Reverse steps, at most."""
        return self.steps

    @property
    def classifier_evaluations(self) -> int:
        """Two a noising step, at most."""
        return 2 * self.t_star

    def label(self) -> str:
        """``diffcap 0.96 t*<=100``."""
        return self.stepped_label(f"diffcap {self.threshold:g} t*<={self.t_star}", self.t_star)

    def build(self, models: Models | None = None) -> DiffCAP:
        """Load the denoiser, and take the embedding of the protected classifier."""
        models = models or Models()
        protected = models.protected
        embed = _Latent(protected) if self.embedding == "latent" else _Logits(protected)
        return DiffCAP(
            models.load(self.denoiser),
            self.sampler(),
            embed,
            threshold=self.threshold,
            most=self.t_star,
            steps=self.steps,
        ).eval()


class _Logits(nn.Module):
    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return logits(self.classifier, x)


class _Latent(_Logits):
    def forward(self, x: Tensor) -> Tensor:
        find = getattr(self.classifier, "latent", None)
        if not callable(find):
            raise InvalidInput("embedding latent needs a classifier with `latent`: write `embedding: logits`.")
        return logits(find, x)
