r"""The inner maximisation of robust training.

.. math:: x_{k+1} = \Pi\left(x_k + a\, \mathrm{dir}(\nabla_x \ell(x_k))\right)

from a start in the ball; the last iterate is the result. The geometry (ball, range, steepest direction) is that of
the attacks: :class:`tasks.attacks.base.Region`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tasks.attacks.region import Region

__all__ = ["evaluation_mode", "gaussian_start", "maximise", "uniform_start"]


@contextmanager
def evaluation_mode(net: nn.Module) -> Iterator[None]:
    """Running statistics in batch norm, no dropout; training mode comes back afterwards."""
    was = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was)


def uniform_start(region: Region, generator: torch.Generator) -> Tensor:
    """Return a uniform point of the ball, projected (l_inf: of the cube; l_2: direction times radius u^(1/D))."""
    x = region.x
    if region.norm == "linf":
        return region.project(x + region.eps * (2 * torch.rand(x.shape, generator=generator).to(x) - 1))
    direction = torch.randn(x.shape, generator=generator).to(x)
    unit = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    radius = torch.rand(len(x), generator=generator).to(x).view(-1, 1, 1, 1) ** (1 / x[0].numel())
    return region.project(x + region.eps * radius * unit)


def gaussian_start(region: Region, generator: torch.Generator, std: float = 1e-3) -> Tensor:
    """The image with a little Gaussian noise, projected: a divergence from the image has no slope at the image."""
    x = region.x
    return region.project(x + std * torch.randn(x.shape, generator=generator).to(x))


def maximise(loss: Callable[[Tensor], Tensor], region: Region, start: Tensor, steps: int, step_size: float) -> Tensor:
    """Projected steepest ascent.

    Arguments:
        loss: Images to a scalar that is a sum over images.
        region: Ball and range.
        start: Images inside it, shape (B, C, H, W).
        steps: Number of gradient steps.
        step_size: Their size, pixel units.

    Returns:
        The last iterate, detached, inside the region.
    """
    current = start
    for _ in range(steps):
        current = current.detach().requires_grad_()
        # With respect to the images alone: parameters get no gradient here.
        (gradient,) = torch.autograd.grad(loss(current), current)
        current = region.ascend(current.detach(), gradient, step_size)
    return current.detach()
