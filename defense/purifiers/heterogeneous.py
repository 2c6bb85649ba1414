r"""Heterogeneous noise ("Divide and conquer: heterogeneous noise integration", CVPR 2025, arXiv 2503.01407).

From the public code. Pixels that the protected classifier looks at get the strong noise of t_l = ``t_star``, the
others the weak noise of ``t_weak``: a reverse process from t_l in which, until ``t_weak`` is reached, everything
outside the mask is re-set to the noised *input* (as in RePaint, arXiv 2201.09865). In the step from t to s, with s >=
``t_weak``,

.. math:: z \leftarrow m z + (1 - m)\, q_t(x), \qquad
          z \leftarrow \sqrt{\tfrac{\bar\alpha_{t+U}}{\bar\alpha_t}}\, z
                       + \sqrt{1 - \tfrac{\bar\alpha_{t+U}}{\bar\alpha_t}}\, n, \qquad
          z \leftarrow \mathrm{DDIM}_{t+U \to s}(z),

below it DDIM from t to s alone. (U = 3 single noising steps are one Gaussian.) The mask m in {0, 1} comes from the
classifier's activations: per block the sum of squares over channels, scaled to [0, 1] by its least and largest value,
resized bilinearly; the largest of the blocks; then a threshold.

**Blocks.** The authors name four blocks of their networks. Here a block is the last activation of each spatial size,
of the last four sizes, which is the same for residual networks and exists for any: a reconstruction.

**The mask has no derivative**: it jumps. ``exact`` takes it as a constant, which is right almost everywhere; ``soft``
takes a sigmoid of width 0.05 around the threshold, so that an attacker can move the mask. The published attack has
neither (hooks with ``detach``), and differentiates 10 steps of the defence's 500 a thousand levels (``surrogate``).

Settings: t_l = 200 (CIFAR-10; ImageNet 400), t_weak = 100 (200), threshold .9 (the top 15 %), U = 3, DDIM in 500
steps a thousand levels, a vote of 20 draws.

Keys of the noise: ``("forward", 0)``; of the step that leaves level t ``("outside", t)`` and ``("again", t)``.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from defense.errors import InvalidInput
from defense.guidance import logits
from defense.models import Models
from defense.purifiers.base import PURIFIERS, IterativePurifier
from defense.purifiers.reverse import SoftGuidedConfig
from defense.purifiers.soft import with_gradient_of
from defense.randomness import Omega
from defense.samplers import EpsModel, forward_noise, predicted_z0, time_grid
from defense.schedules import Schedule

__all__ = ["Heterogeneous", "HeterogeneousConfig", "attention"]

_BLOCKS, _WIDTH = 4, 0.05


def attention(classifier: nn.Module, x: Tensor) -> Tensor:
    """Return how much a classifier looks at each pixel, in [0, 1], shape (B, 1, H, W); see the module.

    Arguments:
        classifier: Images in [0, 1] to logits.
        x: Images, shape (B, C, H, W).

    Raises:
        InvalidInput: The classifier has no activations with a height and a width.
    """
    last: dict[tuple[int, ...], Tensor] = {}

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.dim() == 4 and min(out.shape[2:]) > 1:
            size = tuple(out.shape[2:])
            last.pop(size, None)
            last[size] = out

    hooks = [module.register_forward_hook(keep) for name, module in classifier.named_modules() if name]
    try:
        logits(classifier, x)
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise InvalidInput("heterogeneous noise takes a classifier with feature maps; this one has none.")
    maps = []
    for out in list(last.values())[-_BLOCKS:]:
        energy = out.square().sum(1, keepdim=True)
        low, high = energy.amin((2, 3), keepdim=True), energy.amax((2, 3), keepdim=True)
        scaled = (energy - low) / (high - low).clamp_min(1e-12)
        maps.append(F.interpolate(scaled, size=x.shape[2:], mode="bilinear", align_corners=False))
    return torch.stack(maps).amax(0).to(x.dtype)


class Heterogeneous(IterativePurifier):
    """The chain; its state is the image and, as a last channel, the mask.

    Arguments:
        denoiser: Noise predictor.
        classifier: The protected classifier.
        t_star: t_l.
        t_weak: Level below which nothing is re-set.
        steps: DDIM steps from t_l to 0.
        again: U.
        threshold: Least attention of the mask.
        top: Share of pixels in the mask, instead of a threshold.
        clip: Clamp predictions to [-1, 1].
    """

    def __init__(
        self,
        denoiser: EpsModel,
        classifier: Callable[[Tensor], Tensor],
        t_star: int,
        t_weak: int,
        steps: int,
        *,
        again: int = 3,
        threshold: float = 0.9,
        top: float | None = None,
        clip: bool = False,
    ) -> None:
        super().__init__()
        self.denoiser: Any = denoiser
        self.classifier: Any = classifier
        self.grid = tuple(time_grid(t_star, steps))
        self.t_weak, self.again, self.threshold, self.top, self.clip = t_weak, again, threshold, top, clip
        self.soft = False

    @property
    def length(self) -> int:
        """DDIM steps."""
        return len(self.grid) - 1

    def surrogate(self, steps: int) -> Self:
        """Return the same from the same level in fewer steps."""
        other = copy.copy(self)
        other.grid = tuple(time_grid(self.grid[0], min(steps, self.length)))
        return other

    def softened(self) -> Self:
        """Return the same with a mask that has the gradient of a sigmoid."""
        other = copy.copy(self)
        other.soft = True
        return other

    def mask(self, x: Tensor) -> Tensor:
        """Return m, shape (B, 1, H, W)."""
        follow = self.soft and torch.is_grad_enabled() and x.requires_grad
        seen = attention(self.classifier, x if follow else x.detach())
        threshold: Any = self.threshold
        if self.top is not None:
            threshold = seen.detach().flatten(1).quantile(1 - self.top, dim=1).view(-1, 1, 1, 1)
        hard = (seen.detach() >= threshold).to(x.dtype)
        return with_gradient_of(hard, torch.sigmoid((seen - threshold) / _WIDTH)) if follow else hard

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        """Return the image noised to t_l, and the mask."""
        z0 = 2 * x - 1
        noised = forward_noise(z0, self._abar(self.grid[0]), omega.normal("forward", 0, z0))
        return torch.cat([noised, self.mask(x)], 1)

    def _abar(self, t: int) -> float:
        return float(self.denoiser.schedule.abar[t])

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        """One step; see the module. Without ``guidance_path`` the mask is a constant."""
        z, mask = z[:, :-1], z[:, -1:]
        kept = mask if guidance_path else mask.detach()
        t, s = self.grid[i], self.grid[i + 1]
        if s >= self.t_weak:
            outside = forward_noise(2 * x - 1, self._abar(t), omega.normal("outside", t, z))
            z = kept * z + (1 - kept) * outside
            z = forward_noise(z, self._abar(t + self.again) / self._abar(t), omega.normal("again", t, z))
            t = t + self.again
        eps = self.denoiser(z, t)
        clean = predicted_z0(z, eps, self._abar(t), self.clip)
        if self.clip:  # the noise that the clamped image implies, as in DDIM
            eps = (z - math.sqrt(self._abar(t)) * clean) / math.sqrt(1 - self._abar(t))
        return torch.cat([forward_noise(clean, self._abar(s), eps), mask], 1)

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Back to [0, 1] pixels."""
        return (z[:, :-1] + 1) / 2


@PURIFIERS.register("heterogeneous")
class HeterogeneousConfig(SoftGuidedConfig):
    """Strong noise where the protected classifier looks, weak noise elsewhere.

    Arguments:
        steps: DDIM steps, by default half of ``t_star``.
        t_weak: Level of the weak noise, by default half of ``t_star``.
        again: Noising steps before each DDIM step.
        threshold: Least attention of the mask, in [0, 1].
        top: Share of pixels in the mask instead.
    """

    purifier: Literal["heterogeneous"] = "heterogeneous"
    t_weak: int = Field(ge=0)
    again: int = Field(default=3, ge=0)
    threshold: float = Field(default=0.9, ge=0, le=1)
    top: float | None = Field(default=None, gt=0, lt=1)

    @classmethod
    def _fill_t_star(cls, data: dict[str, Any], schedule: Schedule) -> None:
        stated = data.get("steps")
        super()._fill_t_star(data, schedule)
        if isinstance(data["t_star"], int):
            half = data["t_star"] // 2
            if stated is None:
                data["steps"] = max(half, 1)
            data.setdefault("t_weak", half)

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if self.t_weak >= self.t_star:
            raise InvalidInput(
                f"t_weak = {self.t_weak} is not below t_star = {self.t_star}: nothing would be re-set.",
                keys=("t_weak",),
            )
        self.denoiser.noise_schedule.level(self.t_star + self.again)
        return self

    @property
    def uses_classifier(self) -> bool:
        """For the mask."""
        return True

    @property
    def classifier_evaluations(self) -> int:
        """One, for the mask."""
        return 1

    def label(self) -> str:
        """``heterogeneous t*=200,100 in 100 steps``."""
        return f"heterogeneous t*={self.t_star},{self.t_weak} in {self.steps} steps"

    def build(self, models: Models | None = None) -> Heterogeneous:
        """Load the denoiser; the classifier is the one of ``models``."""
        models = models or Models()
        chain = Heterogeneous(
            models.load(self.denoiser),
            models.protected,
            self.t_star,
            self.t_weak,
            self.steps,
            again=self.again,
            threshold=self.threshold,
            top=self.top,
            clip=self.clip_denoised,
        )
        return chain.eval()
