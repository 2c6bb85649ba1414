r"""How a purifier works, in numbers without a verdict.

With images x, a change :math:`\delta` of +-8/255 in every pixel, and draws :math:`\omega_k`:

* *gradient cosine*: mean cosine of the gradients of two draws, :math:`c`. The mean of K gradients has with the
  expected one the cosine :math:`\sqrt{Kc / (1 + (K-1)c)}`, so that 0.9 takes about :math:`4.26\,(1-c)/c` draws;
* *contraction*: :math:`\|D(x+\delta;\omega) - D(x;\omega)\| / \|\delta\|` at fixed randomness, median over images;
* *noise to signal*: :math:`\|D(x;\omega_1) - D(x;\omega_2)\| / \|D(x+\delta;\omega_1) - D(x;\omega_1)\|`, what fresh
  noise changes against what the perturbation changes;
* *survival* of low, middle and high spatial frequencies: the same ratio as for contraction, per third of the radial
  frequencies, of norms in the Fourier domain.
"""

import math

import torch
from torch import Tensor

from defense.probe.record import Number
from defense.probe.subject import Subject

__all__ = ["mechanism"]

_SIZE = 8 / 255
_COSINE = 0.9


def mechanism(subject: Subject, draws: int) -> tuple[Number, ...]:
    """Measure how a purifier works, with the gradients of so many draws."""
    x, omega = 0.5 + (1 - 2.1 * _SIZE) * (subject.images - 0.5), subject.omega()  # all stays in the range
    generator = torch.Generator().manual_seed(5)
    delta = _SIZE * (2 * torch.randint(0, 2, x.shape, generator=generator).to(x) - 1)
    plain, moved = subject.value(x, omega), subject.value(x + delta, omega)
    change = (moved - plain).double()
    ratio = float((change.flatten(1).norm(dim=1) / delta.double().flatten(1).norm(dim=1)).median())
    numbers = [
        *_cosine(subject, draws),
        Number("contraction", ratio, "change of the output by that of the input, +-8/255, at fixed randomness"),
    ]
    other = subject.value(x, subject.omega(draw=1))
    fresh, own = float((other - plain).double().norm()), float(change.norm())
    share = fresh / own if own else None
    numbers.append(Number("noise-to-signal", share, "change by fresh noise over change by the perturbation"))
    for name, band in zip(("low", "middle", "high"), _bands(x), strict=True):
        before, after = (torch.fft.fft2(part.double()).abs()[..., band].norm() for part in (delta, change))
        value = float(after / before) if float(before) else None
        numbers.append(
            Number(f"survival-{name}", value, f"share of a perturbation's {name} frequencies that is left")
        )
    return tuple(numbers)


def _cosine(subject: Subject, draws: int) -> list[Number]:
    if subject.claims.stochastic is False:
        return [Number("gradient-cosine", 1.0, "deterministic: all draws have one gradient")]
    x = subject.images[:2]
    weight = subject.weight(subject.value(x, subject.omega(2)))
    gradients = [subject.gradient(x, subject.omega(2, draw), weight)[1].double().flatten(1) for draw in range(draws)]
    units = torch.stack([g / g.norm(dim=1, keepdim=True).clamp(min=1e-30) for g in gradients])  # (K, N, pixels)
    products = torch.einsum("knp,lnp->nkl", units, units)
    pairs = products[:, *torch.triu_indices(draws, draws, 1)]
    cosine = float(pairs.mean())
    needed = None
    if 0 < cosine < 1:
        needed = float(max(1, math.ceil(_COSINE**2 / (1 - _COSINE**2) * (1 - cosine) / cosine)))
    return [
        Number("gradient-cosine", cosine, f"mean cosine of the gradients of two of {draws} draws"),
        Number("eot-draws", needed, f"draws whose mean gradient has a cosine of {_COSINE:g} with the expected one"),
    ]


def _bands(x: Tensor) -> list[Tensor]:
    """Return masks of the thirds of the radial frequencies, shape (H, W)."""
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64).to(x.device) for size in x.shape[-2:])
    radius = (rows[:, None].square() + columns[None].square()).sqrt() / math.sqrt(0.5)
    return [(radius >= low) & (radius < high) for low, high in ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.01))]
