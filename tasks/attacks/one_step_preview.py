r"""One-step preview: an attacker who has a denoiser like the defence's, and not the defence.

After PureProof (CVPR 2026), for classifiers; read second-hand, its similarity of features replaced by a loss. The
attacker noises the image to a random level t of a *proxy* denoiser, looks at the clean image that one call predicts,
and makes the classifier wrong on that preview and on the preview noised again,

.. math:: L = \beta\,\ell(f(\hat x)) + \frac{1 - \beta}{K} \sum_{k=1}^K
              \ell\big(f(\sqrt{\bar\alpha_t}\,\hat x + \sqrt{1 - \bar\alpha_t}\, e_k)\big)
              + w\,\Big(1 - \frac{t}{T_p}\Big) \mathrm{mean}\,(\hat x - \hat x_{clean})^2, \qquad
          \hat x = \hat z_0(q_t(x')), \quad t \sim U\{1, \dots, T_p\},

mean over ``previews`` draws of t, noise and e, with :math:`\hat x_{clean}` the preview of the clean image at the same
noise. Images are in [0, 1] in f and in diffusion units in the rest. Published: beta = .3, K = 3, T_p = 150, 10
previews, PGD of 100 steps of 1/255 at eps 16/255; how they weigh the last term is not known, here w (``deviation``).

It is *static* in that it does not ask the defence: all defences share its images. Between the bare classifier and the
purifier it is a threat of its own, an attacker with a **proxy**. A step costs one call of the proxy and 1 + K of the
classifier for each preview, backward too, where the gradient of a defence costs its whole chain.

Keys: ``("level", n)``, ``("preview", n)``, ``("renoise", n)`` for the n-th preview of the attack.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor

from defense.denoisers import Denoiser, DenoiserConfig
from defense.denoisers.levels import noise_at
from defense.errors import InvalidInput
from defense.randomness import Omega
from tasks.attacks.base import ATTACKS, AttackConfig, AttackResult
from tasks.attacks.losses import LossName, check_classes, point_loss
from tasks.attacks.region import Region
from tasks.attacks.target import Target

__all__ = ["OneStepPreviewConfig"]


@ATTACKS.register("one-step-preview")
class OneStepPreviewConfig(AttackConfig):
    """PGD on one-step previews of a proxy denoiser, which need not be the defence's.

    Arguments:
        denoiser: The proxy.
        steps: Gradient steps.
        step_size: Units of [0, 1] pixels; by default 2.5 eps / steps.
        previews: Draws of level and noise a step.
        renoised: K.
        beta: beta, the weight of the preview itself.
        deviation: w.
        t_max: T_p, on the proxy's schedule.
        loss: ``ce``, ``margin`` or ``dlr``.
    """

    attack: Literal["one-step-preview"] = "one-step-preview"
    denoiser: SerializeAsAny[DenoiserConfig] = Field(description="It is a name from the section `denoisers`.")
    steps: int = Field(default=100, ge=1)
    step_size: float | None = Field(default=None, gt=0)
    previews: int = Field(default=10, ge=1, le=10_000)
    renoised: int = Field(default=3, ge=1, le=1_000)
    beta: float = Field(default=0.3, ge=0, le=1)
    deviation: float = Field(default=1.0, ge=0)
    t_max: int = Field(default=150, ge=1)
    loss: LossName = "ce"

    @model_validator(mode="after")
    def _static_with_levels(self) -> Self:
        if not self.static:
            raise InvalidInput(
                "one-step-preview has a proxy denoiser and does not know the purifier: remove `gradient` and "
                "`knows`.",
                keys=("knows",),
            )
        self.denoiser.noise_schedule.level(self.t_max)
        return self

    def resolved(self, base: Path) -> Self:
        """With the files of the proxy found, hashed and checked."""
        return self.model_copy(update={"denoiser": self.denoiser.resolved(base)})

    def check_task(self, classes: int, image_shape: tuple[int, int, int]) -> None:
        """See :class:`AttackConfig`."""
        check_classes("loss", self.loss, classes)
        if self.denoiser.image_shape not in (None, image_shape):
            raise InvalidInput(
                f"the proxy denoiser takes images of shape {self.denoiser.image_shape}, not {image_shape}.",
                keys=("denoiser",),
            )

    def method(self) -> str:
        """``one-step-preview-100 linf, has a proxy``, with the loss where it is not the cross-entropy."""
        loss = "" if self.loss == "ce" else f" {self.loss}"
        return f"one-step-preview-{self.steps} {self.norm}{loss}, has a proxy"

    @property
    def evaluations(self) -> int:
        """The classifier on each preview and its noised copies; one for the loss in the rows."""
        return self.steps * self.previews * (1 + self.renoised) + 1

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        """See :class:`AttackConfig`. The last iterate is returned, as there."""
        proxy = _network(self.denoiser).to(x.device)
        region, current = Region(x, self.norm, self.eps), x
        size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        for step in range(self.steps):
            total = torch.zeros_like(x)
            for n in range(step * self.previews, (step + 1) * self.previews):
                total += self._gradient(target, proxy, current, x, omega, n)
            current = region.ascend(current, total, size)
        return AttackResult(current, target.evaluate(current, point_loss(self.loss)).loss)

    def _gradient(self, target: Target, proxy: Denoiser, at: Tensor, x: Tensor, omega: Omega, n: int) -> Tensor:
        """Return the gradient of L of one preview, shape of ``x``."""
        shares = omega.uniform("level", n, x, (1,)).flatten().tolist()
        t = [1 + min(int(share * self.t_max), self.t_max - 1) for share in shares]
        abar = torch.tensor([float(proxy.schedule.abar[level]) for level in t]).to(x).view(-1, 1, 1, 1)
        noise = omega.normal("preview", n, x)

        def preview(images: Tensor) -> Tensor:
            z = abar.sqrt() * (2 * images - 1) + (1 - abar).sqrt() * noise
            return (z - (1 - abar).sqrt() * noise_at(proxy, z, t)) / abar.sqrt()

        with torch.no_grad():
            clean = preview(x)
        with torch.enable_grad():
            leaf = at.detach().requires_grad_()
            shown = preview(leaf)
        again = omega.normal("renoise", n, x, (self.renoised, *x.shape[1:]))
        flowing = self.beta * self._classified(target, shown.detach())
        for k in range(self.renoised):
            noised = abar.sqrt() * shown.detach() + (1 - abar).sqrt() * again[:, k]
            flowing = flowing + (1 - self.beta) / self.renoised * abar.sqrt() * self._classified(target, noised)
        fresh = torch.tensor([1 - level / self.t_max for level in t]).to(x).view(-1, 1, 1, 1)
        flowing = flowing + self.deviation * fresh * 2 * (shown.detach() - clean) / math.prod(x.shape[1:])
        (gradient,) = torch.autograd.grad(shown, leaf, flowing)
        return gradient

    def _classified(self, target: Target, z: Tensor) -> Tensor:
        """Gradient of the classifier's loss at a state, with respect to the state."""
        found = target.differentiate((z + 1) / 2, point_loss(self.loss)).gradient
        assert found is not None
        return found / 2


@lru_cache(maxsize=1)
def _network(config: Any) -> Denoiser:
    """The proxy, loaded once by a worker."""
    net: Denoiser = config.build()
    return net
