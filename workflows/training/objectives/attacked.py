"""Attacked images for objectives that learn of them: PGD on the guide, with a budget for each image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["attacked"]


def attacked(
    guide: nn.Module,
    x: Tensor,
    y: Tensor,
    budgets: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    step_size: float | None = None,
    l2: Tensor | None = None,
) -> Tensor:
    r"""Return the last iterate of PGD on the cross-entropy of a classifier, from a random start.

    .. math:: x' \leftarrow \Pi\left(x' + a\,\mathrm{dir}(\nabla CE(f(x'), y))\right), \qquad
              \mathrm{dir}(g) = \mathrm{sign}(g)\ \text{or}\ g / \lVert g \rVert_2

    Arguments:
        guide: The classifier f, frozen: images in [0, 1] to logits.
        x: Clean images in [0, 1], shape (B, C, H, W).
        y: Their classes, shape (B,).
        budgets: Radius of each image's ball in units of [0, 1] pixels, shape (B, 1, 1, 1); 0 leaves it clean.
        generator: Source of the starts, on the CPU.
        steps: Gradient steps.
        step_size: The a of all images, pixel units; by default 2.5 radii over ``steps``.
        l2: Which balls are of l_2, booleans shaped like ``budgets``; by default all are of l_inf.

    Returns:
        Images in [0, 1] within their balls (to a rounding), shape of ``x``, detached.
    """
    budgets = budgets.to(x)
    l2 = torch.zeros_like(budgets, dtype=torch.bool) if l2 is None else l2.to(x.device)
    stride = 2.5 * budgets / steps if step_size is None else torch.full_like(budgets, step_size)
    tiny = torch.finfo(x.dtype).tiny

    def norm(values: Tensor) -> Tensor:
        length: Tensor = values.flatten(1).norm(dim=1)
        return length.clamp_min(tiny).view(-1, 1, 1, 1)

    def inside(delta: Tensor) -> Tensor:
        scaled = delta * (budgets / norm(delta)).clamp_max(1)
        moved: Tensor = x + torch.where(l2, scaled, delta.clamp(-budgets, budgets))
        return moved.clamp(0, 1)

    found = inside(budgets * (2 * torch.rand(x.shape, generator=generator).to(x) - 1))
    for _ in range(steps):
        with torch.enable_grad():
            found = found.detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(guide(found), y, reduction="sum"), found)
        found = inside(found.detach() + stride * torch.where(l2, slope / norm(slope), slope.sign()) - x)
    return found.detach()
