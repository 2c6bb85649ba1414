r"""Where the gradient of a part says nothing although the part changes: jumps, and pixels at the ends of the range.

On the way :math:`x(t) = a + t(b - a)` from an image to one beside it, by 16/255 into the range, and to another image,
the interval that changes most is halved again and again, towards the half that changes more. Of a function that
changes gradually what is left is its slope times the width of the last interval, 1/24576 of the way; a jump stays as
it is. Look-ups, decisions about the image and seeds made from its pixels jump, and no gradient knows of it.

At a black or white pixel only the derivative into the range counts. A clamp before the end of the range, or a
rectifier at it, has none: an attack never moves the pixels that it begins with.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from defense.probe.record import Check, answer, not_applicable
from defense.probe.subject import Subject

__all__ = ["continuity", "jumps_between", "no_way_in"]

_IMAGES, _POINTS, _HALVINGS = 4, 7, 12
_BESIDE = 16 / 255
_INTO = 4 / 255
_FAR = 0.3


def continuity(subject: Subject) -> Check:
    """Look for the largest jump between two images, relative to what the answer changes from one to the other."""
    what, said = subject.part, subject.claims
    if said.at_most or said.guided or not said.differentiable:
        why = "it says that it rounds, follows a classifier's label or takes as many steps as an image needs"
        return not_applicable("continuity", what, why)
    x = subject.images[:_IMAGES]
    generator = torch.Generator().manual_seed(7)
    beside, far = (
        x + size * torch.rand(x.shape, generator=generator).to(x) * (1 - 2 * x.round()) for size in (_BESIDE, _FAR)
    )
    jumps, whole = jumps_between(subject, x.repeat(3, 1, 1, 1), torch.cat([x.roll(1, 0), beside, far]))
    usual = float(whole[: len(x)].mean())
    largest = jumps.view(3, -1).amax(0)
    share = (largest / usual if usual else (largest > 0).to(largest)).clamp(max=1)
    text = f"between two images the largest jump is {100 * float(share.max()):.2g} % of all that changes"
    return answer("continuity", what, float(share.nan_to_num(nan=1.0).mean()), text)


def jumps_between(subject: Subject, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest jump on each way, and the whole change, both of shape (N,), at the randomness of a few."""
    omega = subject.omega(_IMAGES).select([n % _IMAGES for n in range(len(a))])

    def at(t: Tensor) -> Tensor:
        return subject.value(torch.lerp(a, b, t.to(a).view(-1, 1, 1, 1)), omega).double()

    def apart(p: Tensor, q: Tensor) -> Tensor:
        change = (p - q).abs().flatten(1)
        return change.amax(1) if subject.part == "classifier" else change.mean(1)

    places = torch.linspace(0, 1, _POINTS, dtype=torch.float64)
    values = torch.stack([at(t.expand(len(a))) for t in places])
    best = torch.stack([apart(p, q) for p, q in pairwise(values)]).argmax(0)
    every = torch.arange(len(a), device=best.device)
    low, high = values[best, every], values[best + 1, every]
    left, right = places[best.cpu()], places[best.cpu() + 1]
    for _ in range(_HALVINGS):
        middle = (left + right) / 2
        value = at(middle)
        lower = apart(value, low) > apart(high, value)
        pick = lower.view(-1, *[1] * (value.dim() - 1))
        low, high = torch.where(pick, low, value), torch.where(pick, value, high)
        left, right = torch.where(lower.cpu(), left, middle), torch.where(lower.cpu(), middle, right)
    return apart(low, high), apart(values[0], values[-1])


def no_way_in(subject: Subject) -> float:
    """Return the share of images whose black and white pixels have no gradient, although they change the answer."""
    x = subject.images[:_IMAGES]
    ends = (x <= 0) | (x >= 1)
    omega = subject.omega(len(x))
    weight = subject.weight(subject.value(x[:1], omega.part(0, 1)))
    gradient = subject.gradient(x, omega, weight)[1]
    inwards = torch.where(ends, _INTO * (1 - 2 * x), 0)
    moved = (subject.value(x + inwards, omega) - subject.value(x, omega)).flatten(1).abs().amax(1) > 0
    dead = (torch.where(ends, gradient, 0).flatten(1) == 0).all(1)
    asked = ends.flatten(1).double().mean(1) >= 0.01
    return float((dead & moved & asked).sum() / asked.sum().clamp(min=1))
