r"""FreqPure ("Diffusion-based adversarial purification from the perspective of the frequency domain", ICML 2025).

arXiv 2505.01267; formulas and settings from the public code. A DDPM chain from t* in which every predicted clean
image gets the low frequencies of the input. With y the one-shot denoised *input*, noised to level t_f with fresh
noise in every step, both images in pixels clamped to [0, 1], and per channel :math:`F =
\mathrm{fftshift}(\mathrm{fft2}(\cdot)) = A e^{iP}`:

.. math:: A' = A_y \text{ on } M_{r_A},\ A_{z_0} \text{ elsewhere}, \qquad
          P' = P_y \text{ on } M_{r_P},\ P_{z_0} \text{ elsewhere}, \qquad
          \hat z_0' = 2\,\mathrm{clamp}\left(|\mathrm{ifft2}(A' e^{iP'})|\right) - 1

with the disc :math:`M_r = \{u^2 + v^2 \le r^2\}` of frequencies around zero. (For 32 x 32 pixels r = 10 holds 317 of
1024, 96 % of the energy of CIFAR-10's test images without their mean, and 31 % of that of random signs: an attacker
who keeps to the disc is the natural adaptive one, ``band`` of :mod:`tasks.attacks.pgd`.)

``phase: replace`` is what the code does: after the exchange it clips P' to :math:`P_y \pm \delta`, where it already
is P_y, so that delta has no effect. ``phase: clip`` is what the paper presumably means, a reconstruction: on the disc
:math:`P' = P_y + \mathrm{clip}(P_{z_0} - P_y, -\delta, \delta)`, the difference taken in :math:`(-\pi, \pi]`.

Settings for CIFAR-10: both radii 10 (8 in the script for BPDA), delta .3, t* = 1000 in 100 steps, t_f = 50, vote of
ten draws. At t* = 1000 next to nothing of x is left in the noise: the disc is the only way. The radii are in
frequencies, so that other image sizes need other ones (8 x 8 pixels: 2 or 3).

**The published attack** is PGD through *one* reverse step (``surrogate(1)``), 200 steps, EOT 20.

Keys of the noise: those of :mod:`defense.purifiers.diffusion`; ``("frequency", step)`` for y.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from defense.corrections import Correction, Estimate
from defense.errors import InvalidInput
from defense.models import Models
from defense.purifiers.base import PURIFIERS
from defense.purifiers.diffusion import Diffusion
from defense.purifiers.reverse import ReverseConfig
from defense.samplers import DDIM, forward_noise, predicted_z0, time_grid
from defense.schedules import Schedule

__all__ = ["FreqPureConfig", "FrequencyExchange", "disc", "exchange"]


def disc(height: int, width: int, radius: float) -> Tensor:
    """Return M_r in the order of ``fft2``, not shifted: shape (H, W), True at frequencies within ``radius``."""
    rows, columns = (torch.fft.fftfreq(size, 1 / size, dtype=torch.float64) for size in (height, width))
    inside: Tensor = rows[:, None].square() + columns[None].square() <= radius**2
    return inside


def exchange(clean: Tensor, reference: Tensor, amplitudes: Tensor, phases: Tensor, delta: float | None) -> Tensor:
    """Return ``clean`` with amplitudes and phases of ``reference`` where the masks say so, in absolute values.

    Arguments:
        clean: Images, shape (B, C, H, W).
        reference: Likewise.
        amplitudes: Mask of the amplitudes, shape (H, W).
        phases: Mask of the phases.
        delta: Largest distance of phases from the reference's; None to take the reference's.
    """
    own, other = torch.fft.fft2(clean), torch.fft.fft2(reference)
    if delta is None and torch.equal(amplitudes, phases):
        return _absolute(torch.where(amplitudes, other, own))
    size = torch.where(amplitudes, _modulus(other), _modulus(own))
    unit, wanted = _unit(own), _unit(other)
    if delta is not None:
        apart = _angle(unit * wanted.conj()).clamp(-delta, delta)
        wanted = wanted * torch.complex(apart.cos(), apart.sin())
    return _absolute(size * torch.where(phases, wanted, unit))


def _absolute(spectrum: Tensor) -> Tensor:
    """Absolute values of the image of a spectrum that is real: the mask is symmetric."""
    image: Tensor = torch.fft.ifft2(spectrum).real
    return image.abs()


def _modulus(z: Tensor) -> Tensor:
    """Moduli, with derivative 0 at 0."""
    live = z.abs() > 0
    return torch.where(live, torch.where(live, z, 1.0).abs(), 0.0)


def _unit(z: Tensor) -> Tensor:
    """``z / |z|``, and 1 at 0."""
    safe = torch.where(z.abs() > 0, z, 1.0)
    unit: Tensor = safe / safe.abs()
    return unit


def _angle(unit: Tensor) -> Tensor:
    return torch.atan2(unit.imag, unit.real)


class FrequencyExchange(Correction):
    """The correction of FreqPure; see the module.

    Arguments:
        amplitude_radius: r_A.
        phase_radius: r_P.
        t_forward: Level t_f to which the input is noised.
        delta: Of ``phase: clip``; None for ``replace``.
        clip: Clamp the one-shot denoised input to [-1, 1].
    """

    def __init__(
        self, amplitude_radius: float, phase_radius: float, t_forward: int, delta: float | None, *, clip: bool = False
    ) -> None:
        super().__init__()
        self.amplitude_radius, self.phase_radius = amplitude_radius, phase_radius
        self.t_forward, self.delta, self.clip = t_forward, delta, clip

    def forward(self, estimate: Estimate) -> Tensor:
        """See :class:`Correction`."""
        z0 = 2 * estimate.x - 1
        abar = float(estimate.denoiser.schedule.abar[self.t_forward])
        noised = forward_noise(z0, abar, estimate.omega.normal("frequency", estimate.key, z0))
        eps = estimate.denoiser(noised, self.t_forward)
        reference = ((predicted_z0(noised, eps, abar, self.clip) + 1) / 2).clamp(0, 1)
        clean = ((estimate.z0 + 1) / 2).clamp(0, 1)
        amplitudes, phases = (
            disc(z0.shape[-2], z0.shape[-1], radius).to(z0.device)
            for radius in (self.amplitude_radius, self.phase_radius)
        )
        return 2 * exchange(clean, reference, amplitudes, phases, self.delta).clamp(0, 1) - 1


@PURIFIERS.register("freqpure")
class FreqPureConfig(ReverseConfig):
    """FreqPure: a reverse process whose predicted images get the input's low frequencies in every step.

    Arguments:
        steps: Reverse steps.
        amplitude_radius: Radius of the disc of amplitudes, in frequencies of the image.
        phase_radius: That of the disc of phases.
        phase: ``replace`` as in the authors' code, or ``clip`` as presumably meant.
        delta: Largest distance of phases for ``clip``, radians.
        t_forward: Level to which the input is noised before it is denoised in one shot.
    """

    default_level = "noise"
    purifier: Literal["freqpure"] = "freqpure"
    steps: int = Field(default=100, ge=1)
    amplitude_radius: float = Field(default=10.0, ge=0)
    phase_radius: float = Field(default=10.0, ge=0)
    phase: Literal["replace", "clip"] = "replace"
    delta: float = Field(default=0.3, ge=0)
    t_forward: int = Field(default=50, ge=1)
    clip_denoised: bool = False

    @classmethod
    def _fill_t_star(cls, data: dict[str, Any], schedule: Schedule) -> None:
        super()._fill_t_star(data, schedule)
        t_forward = data.get("t_forward", cls.model_fields["t_forward"].default)
        if type(t_forward) is int and t_forward >= 1:
            schedule.level(t_forward)

    @property
    def guided(self) -> bool:
        """By the low frequencies of the input, in every step."""
        return True

    @property
    def evaluations(self) -> int:
        """Two a step: of the state, and of the noised input."""
        return 2 * self.steps

    def check_images(self, image_shape: tuple[int, int, int]) -> None:
        """Refuse radii that leave no frequency to the reverse process; see the base class."""
        super().check_images(image_shape)
        radius = min(self.amplitude_radius, self.phase_radius)
        if bool(disc(image_shape[1], image_shape[2], radius).all()):
            raise InvalidInput(
                f"radius {radius:g} holds every frequency of images of {image_shape[1:]} pixels: nothing of the "
                "reverse process would be left. Write smaller `amplitude_radius` and `phase_radius`, on the digits "
                "of 8 x 8 pixels 2 or 3."
            )

    def label(self) -> str:
        """``freqpure t*=1000 in 100 steps r=10``, with both radii where they differ, and the form of ``clip``."""
        radii = f"{self.amplitude_radius:g}"
        if self.phase_radius != self.amplitude_radius:
            radii += f",{self.phase_radius:g}"
        short = f"t*={self.t_star}" if self.steps == self.t_star else f"t*={self.t_star} in {self.steps} steps"
        return f"freqpure {short} r={radii}{f' clip {self.delta:g}' if self.phase == 'clip' else ''}"

    def build(self, models: Models | None = None) -> Diffusion:
        """Load the denoiser."""
        correction = FrequencyExchange(
            self.amplitude_radius,
            self.phase_radius,
            self.t_forward,
            self.delta if self.phase == "clip" else None,
            clip=self.clip_denoised,
        )
        sampler = DDIM(
            self.denoiser.noise_schedule, time_grid(self.t_star, self.steps), eta=1.0, clip=self.clip_denoised
        )
        return Diffusion((models or Models()).load(self.denoiser), [sampler], correction=correction).eval()
