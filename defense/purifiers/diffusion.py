r"""The purifier that all diffusion defences are made of: noise, reverse with or without guidance, perhaps again.

.. math:: z = \sqrt{\bar\alpha_{t^*}}\,(2y-1) + \sqrt{1-\bar\alpha_{t^*}}\,\epsilon, \qquad
          z_s \sim N(\mu(z_t) - s_t\, g_t\, \nabla_{z_t} G(z_t, x),\ \sigma_t^2), \qquad y \leftarrow (z_0 + 1)/2

for each round, y = x in the first one; :math:`\mu, \sigma, g` are the sampler's (:mod:`defense.samplers`), G and s
the guidance's (:mod:`defense.guidance`). Guidance looks at the original x in every round.

A **correction** (:mod:`defense.corrections`) changes the predicted clean image before a DDIM step is made of it and
of the noise that was predicted.

Keys of the noise: ``("forward", round)``; ``("reverse", r (T + 1) + t)`` for the step that leaves level t in round r;
``("guidance", likewise)``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from defense.corrections import Correction, Estimate
from defense.guidance import Guidance, Moment
from defense.purifiers.base import IterativePurifier
from defense.randomness import Omega
from defense.samplers import DDIM, EpsModel, Sampler, Transition, forward_noise, predicted_z0
from defense.schedules import Levels

__all__ = ["Diffusion", "guided_transition", "moved"]


_AHEAD = 1 << 18
"""Numbers that are made at once, of as many steps as have so many: they are a mebibyte."""


class _Ahead:
    """The noise of a chain, which is made for some steps ahead when one asks that has none."""

    def __init__(self, keys: list[int], omega: Omega) -> None:
        self._keys = keys
        self._omega = omega
        self._made: dict[int, Tensor] = {}

    def __call__(self, key: int, like: Tensor) -> Tensor:
        if key not in self._made:
            first = self._keys.index(key)
            # The last step of most chains has no noise.
            rest = self._keys[first + 1 : -1][: max(_AHEAD // max(like.numel(), 1), 1) - 1]
            steps = [key, *rest]
            self._made = dict(zip(steps, self._omega.normals("reverse", steps, like), strict=True))
        return self._made.pop(key)


class Diffusion(IterativePurifier):
    """Rounds of noising and reversing.

    Arguments:
        denoiser: Noise predictor; an analytic one from :mod:`defense.oracles` will do.
        rounds: The sampler of each round; its first level is the t* of that round, and it says how far the round
            noises before.
        guidance: Guidance of the reverse steps.
        correction: Correction of the predicted clean images; all rounds are then of DDIM.
        from_noise: Start the first round from N(0, I) instead of from the noised image, which then enters through
            guidance alone.
        shared_forward: All draws of an image have the same forward noise and differ in the reverse noise.
        clamp: Clamp the result to [0, 1].
    """

    def __init__(
        self,
        denoiser: EpsModel,
        rounds: Sequence[Sampler],
        *,
        guidance: Guidance | None = None,
        correction: Correction | None = None,
        from_noise: bool = False,
        shared_forward: bool = False,
        clamp: bool = False,
    ) -> None:
        super().__init__()
        self.denoiser: Any = denoiser
        self.rounds = tuple(rounds)
        self.guidance = guidance
        self.correction = correction
        if correction is not None and (guidance is not None or not all(isinstance(s, DDIM) for s in self.rounds)):
            raise ValueError("a correction is of DDIM steps without guidance")
        self.from_noise = from_noise
        self.shared_forward = shared_forward
        self.clamp = clamp
        self._steps = [(r, j) for r, sampler in enumerate(self.rounds) for j in range(len(sampler))]

    @property
    def length(self) -> int:
        """Reverse steps of all rounds."""
        return len(self._steps)

    def surrogate(self, steps: int) -> Diffusion:
        """Return the same with at most ``steps`` reverse steps per round."""
        other = copy.copy(self)
        other.rounds = tuple(sampler.respaced(min(steps, len(sampler))) for sampler in self.rounds)
        other._steps = [(r, j) for r, sampler in enumerate(other.rounds) for j in range(len(sampler))]
        return other

    def softened(self) -> Diffusion:
        """Return the same with its correction softened; itself where it has none, or one that needs nothing."""
        soft = None if self.correction is None else self.correction.softened()
        if soft is self.correction:
            return self
        other = copy.copy(self)
        other._modules = {**self._modules, "correction": soft}
        return other

    def target_logits(self, classifier: Callable[[Tensor], Tensor], x: Tensor, omega: Omega) -> Tensor:
        """See :class:`Purifier`; the guidance's own where there is one."""
        return classifier(x) if self.guidance is None else self.guidance.target_logits(classifier, x)

    def start(self, x: Tensor, omega: Omega) -> Tensor:
        """Return the noised image, or noise alone."""
        z = 2 * x - 1
        if self.from_noise:
            return self._forward_omega(omega).normal("forward", 0, z)
        return self._noised(z, 0, omega)

    def _noised(self, z: Tensor, r: int, omega: Omega) -> Tensor:
        noise = self._forward_omega(omega).normal("forward", r, z)
        return forward_noise(z, self.rounds[r].forward_abar, noise)

    def _forward_omega(self, omega: Omega) -> Omega:
        return omega.shared() if self.shared_forward else omega

    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        """One reverse step, after the noising of its round if it is the first of a later one."""
        return self._step(i, z, x, omega, guidance_path, partial(omega.normal, "reverse"))

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        """See :class:`IterativePurifier`; the noise of a few steps is made at once."""
        if type(self).step is not Diffusion.step:  # then that step is the one that gradient modes take
            return super().forward(x, omega)
        z, noise = self.start(x, omega), _Ahead(list(map(self._key, range(self.length))), omega)
        for i in range(self.length):
            z = self._step(i, z, x, omega, True, noise)
        return self.finish(z, x, omega)

    def _key(self, i: int) -> int:
        """Return the key of the noise of a step."""
        r, j = self._steps[i]
        return r * (self.rounds[r].schedule.steps + 1) + self.rounds[r].grid[j]

    def _step(
        self,
        i: int,
        z: Tensor,
        x: Tensor,
        omega: Omega,
        guidance_path: bool,
        noise: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        r, j = self._steps[i]
        sampler = self.rounds[r]
        if j == 0 and r > 0:
            z = self._noised(z, r, omega)
        t, key = sampler.grid[j], self._key(i)
        if self.correction is not None:
            step = self._corrected(sampler, j, z, x, omega, key, guidance_path)
            z = step.mean
            std = step.std
        else:
            z, std = moved(self.denoiser, self.guidance, sampler, j, t, z, x, omega, key, guidance_path=guidance_path)
        if isinstance(std, Tensor) or std > 0:
            z = z + std * noise(key, z)
        return z

    def _corrected(
        self, sampler: Sampler, j: int, z: Tensor, x: Tensor, omega: Omega, key: int, guidance_path: bool
    ) -> Transition:
        assert self.correction is not None and isinstance(sampler, DDIM)
        t = sampler.asked(j)
        eps = self.denoiser(z, t)
        clean = predicted_z0(z, eps, sampler.abar(j), sampler.clip)
        estimate = Estimate(
            clean,
            t,
            sampler.abar(j),
            sampler.abar_after(j),
            x if guidance_path else x.detach(),
            omega,
            key,
            self.denoiser,
            guidance_path,
        )
        return sampler.from_denoised(j, self.correction(estimate), eps)

    def origin(self, i: int) -> int:
        """Return the state with which the round of step ``i - 1`` began; see :class:`IterativePurifier`."""
        r, j = self._steps[i - 1]
        return -1 if r == 0 else i - 1 - j

    def diffused(self, i: int, origin: Tensor | None, x: Tensor, omega: Omega) -> Tensor:
        """What the round noised, with its forward noise at the level of state ``i``; see the base class."""
        r, j = self._steps[i - 1]
        z = 2 * x - 1 if origin is None else origin
        sampler = self.rounds[r]
        noise = self._forward_omega(omega).normal("forward", r, z)
        return forward_noise(z, sampler.abar_after(j), noise)

    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Back to [0, 1] pixels."""
        y = (z + 1) / 2
        return y.clamp(0, 1) if self.clamp else y


def _predicted(
    denoiser: Any, sampler: Sampler, j: int, z: Tensor, level: int | Levels
) -> tuple[Tensor, Tensor | None]:
    """Return what the network predicts in step ``j``; it is asked at its own level where the batch has one."""
    if isinstance(level, Levels):
        return denoiser.at_levels(z, level), None
    t = sampler.asked(j)
    return denoiser.with_variance(z, t) if sampler.learned else (denoiser(z, t), None)


def moved(
    denoiser: Any,
    guidance: Guidance | None,
    sampler: Sampler,
    j: int,
    level: int | Levels,
    z: Tensor,
    x: Tensor,
    omega: Omega,
    key: int | Sequence[int],
    *,
    guidance_path: bool = True,
) -> tuple[Tensor, Tensor | float]:
    """Return where step ``j`` leads, with the guidance's pull where there is one, and the deviation of its noise.

    The arguments are those of :func:`guided_transition`; without a guidance only those of the step matter.
    """
    if guidance is None:
        step = sampler.transition(j, z, *_predicted(denoiser, sampler, j, z, level))
        return step.mean, step.std
    step, shift = guided_transition(
        denoiser, guidance, sampler, j, level, z, x, omega, key, guidance_path=guidance_path
    )
    return step.mean - step.gain * shift, step.std


def guided_transition(
    denoiser: Any,
    guidance: Guidance,
    sampler: Sampler,
    j: int,
    level: int | Levels,
    z: Tensor,
    x: Tensor,
    omega: Omega,
    key: int | Sequence[int],
    *,
    guidance_path: bool = True,
) -> tuple[Transition, Tensor]:
    """Return the unguided transition of step ``j``, and ``s_t grad G`` at the state.

    Arguments:
        denoiser: Noise predictor.
        guidance: The guidance.
        sampler: The sampler.
        j: Its step.
        level: Level that the step leaves, or that of each image.
        z: State, shape (B, ...).
        x: The purifier's input.
        omega: Randomness.
        key: See :class:`~defense.guidance.Moment`.
        guidance_path: See :class:`~defense.purifiers.base.IterativePurifier`.
    """
    follow = torch.is_grad_enabled() and guidance_path and (z.requires_grad or x.requires_grad)
    point = z if follow and z.requires_grad else z.detach().requires_grad_()
    eps: list[Tensor] = []

    def predict() -> Tensor:
        eps.append(
            denoiser.at_levels(point, level) if isinstance(level, Levels) else denoiser(point, sampler.asked(j))
        )
        return predicted_z0(point, eps[0], sampler.abar(j), sampler.clip)

    # Fused attention has no second derivative; the plain one has.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        moment = Moment(point, level, x if follow else x.detach(), omega, key, sampler.schedule, predict)
        potential = guidance(moment)
        if potential.shape != z.shape[:1]:
            raise ValueError(f"a potential has one value per image, not shape {tuple(potential.shape)}")
        # With create_graph torch takes other formulas for some layers (group norm, SiLU), which differ in the
        # last bits. So always with it: the states must not depend on whether somebody differentiates.
        # Without autocast, which would run in bf16 the derivative of what the forward pass did not.
        with torch.autocast(z.device.type, enabled=False):
            (slope,) = torch.autograd.grad(potential.sum(), point, create_graph=True)
        slope = slope if follow else slope.detach()
    if eps and not sampler.learned and (point is z or not (torch.is_grad_enabled() and z.requires_grad)):
        # The prediction that guidance asked for is the one of this step; without gradients its graph is freed.
        step = sampler.transition(j, z, eps[0] if point is z else eps[0].detach())
    else:
        with sdpa_kernel(SDPBackend.MATH):  # the bits of the prediction above
            step = sampler.transition(j, z, *_predicted(denoiser, sampler, j, z, level))
    if isinstance(level, Levels):
        return step, guidance.scales(level, sampler.schedule).to(slope.dtype) * slope
    return step, guidance.scale(level, sampler.schedule) * slope
