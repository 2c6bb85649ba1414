r"""How many draws a step of an attack takes: as many as the gradients of an image's draws disagree.

Two draws of a random defence have gradients of mean cosine c. The mean of K of them has with the expected gradient
the cosine :math:`\sqrt{Kc / (1 + (K-1)c)}` (:mod:`defense.probe.mechanism`, which measures c too), so that

.. math:: K = \frac{q^2}{1-q^2}\,\frac{1-c}{c}, \qquad q = 0.9

draws make a gradient that deserves its step, and more are better spent on further steps. c is measured where the
attack starts, for each image on 8 draws of the attack's own (role ``.../cosine``), so that K depends on neither the
batch nor a clock; it is rounded up to a power of two, at most the one with which there are 10 steps. On a defence
that is deterministic c = 1 and K = 1.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tasks.attacks.losses import PointLoss
from tasks.attacks.target import Target

__all__ = ["Share", "by_cosine", "cosines"]

_QUALITY = 0.9
_DRAWS = 8
_LEAST_STEPS = 10


@dataclass(frozen=True)
class Share:
    """Images that take as many draws a step.

    Arguments:
        positions: Their positions in the batch, shape (N,).
        draws: K.
        steps: Steps that the budget has for them.
    """

    positions: Tensor
    draws: int
    steps: int


def cosines(gradients: Tensor) -> Tensor:
    """Return the mean cosine of two draws' gradients, shape (B, K, ...) to (B,), float64; 0 where one has none."""
    flat = gradients.double().flatten(2)
    unit = flat / flat.norm(dim=2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    draws = unit.shape[1]
    cosine: Tensor = (unit.sum(1).square().sum(1) - unit.square().sum((1, 2))) / (draws * (draws - 1))
    return cosine


def by_cosine(target: Target, x: Tensor, loss: PointLoss, steps: int, eot: int) -> list[Share]:
    """Divide a batch by the draws that its images need.

    Arguments:
        target: The attacked function.
        x: Where the cosine is measured, shape (B, C, H, W).
        loss: Loss of one draw.
        steps: With ``eot``, the budget: ``(steps + 1) eot`` draws for each image, those measured included.
        eot: See there.

    Returns:
        The parts, by ascending number of draws.
    """
    measured = min(_DRAWS, max(steps * eot // 2, 2))
    probe = replace(target, omega=target.omega.within("cosine"), draws=measured, calls=0)
    cosine = cosines(probe.per_draw(x, loss).gradients)
    budget = max((steps + 1) * eot - measured, 2)  # the look at the last iterate is part of it
    most = 2 ** int(math.log2(max(budget // (_LEAST_STEPS + 1), 1)))
    needed = _QUALITY**2 / (1 - _QUALITY**2) * (1 - cosine) / cosine.clamp_min(1e-9)
    draws = torch.tensor([_power_of_two(value, most) for value in needed.tolist()], device=x.device)
    shares = []
    for count in sorted(set(draws.tolist())):
        positions = (draws == count).nonzero().flatten()
        shares.append(Share(positions, count, max(budget // count - 1, 1)))
    return shares


def _power_of_two(value: float, most: int) -> int:
    """Return the next power of two, at most ``most``; ``most`` for a NaN."""
    if not value < most:
        return most
    return int(2 ** math.ceil(math.log2(max(value, 1.0))))
