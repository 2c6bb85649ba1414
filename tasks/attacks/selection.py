r"""The E-step of DiffHammer: which draws of a defence one perturbation can fool together.

With losses :math:`L_i` and gradients :math:`g_i` of the draws (Wang et al., NeurIPS 2024, equation 9)

.. math:: \Delta = \arg\max \sum_i \sigma(L_i + \Delta^\top g_i), \qquad q_i = \sigma(L_i + \Delta^\top g_i).

:math:`\Delta` is sought among the moves from the image by ``reach`` times eps along the steepest direction of each
draw, the best of which is improved by following the weighted gradient while the objective rises: ``weighing:
fitted``, :func:`select`. Moves are cut with ball and range (grafted ones, which are moves of purified images, are
not). In the authors' code the move behind the weights has unit size whatever eps is, and the loop that should improve
it leaves it as it was: ``weighing: code``, :func:`select_as_in_code`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import elu, logsigmoid

from tasks.attacks.region import Norm

__all__ = ["select", "select_as_in_code", "sigmoid_mean", "steepest", "weighted"]

_IMPROVEMENTS = 5
_SLOPE = 5.0


def select(losses: Tensor, gradients: Tensor, move: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The E-step.

    Arguments:
        losses: Loss of each draw, shape (B, K).
        gradients: Gradient of each draw, shape (B, K, ...).
        move: The move that a direction stands for, shapes (B, ...).

    Returns:
        ``q / sum(q)``, shape (B, K), float64, and the draw whose own move fools most, shape (B,).
    """
    # In float64, and the sum over draws in their order: it must not depend on the rest of the batch.
    value, slope = losses.double(), gradients.double().flatten(2)

    def expected(direction: Tensor) -> Tensor:
        return value + (slope * move(direction).double().flatten(1).unsqueeze(1)).sum(2)

    moved = expected(gradients[:, 0])
    chosen = torch.zeros(len(losses), dtype=torch.long, device=losses.device)
    for k in range(1, losses.shape[1]):
        other = expected(gradients[:, k])
        better = other.sigmoid().sum(1) > moved.sigmoid().sum(1)
        moved, chosen = torch.where(better.unsqueeze(1), other, moved), torch.where(better, k, chosen)
    for _ in range(_IMPROVEMENTS):
        other = expected(weighted(_normalised(moved), gradients))
        better = other.sigmoid().sum(1) > moved.sigmoid().sum(1)
        moved = torch.where(better.unsqueeze(1), other, moved)
    return _normalised(moved), chosen


def select_as_in_code(losses: Tensor, gradients: Tensor, norm: Norm, size: float) -> tuple[Tensor, Tensor]:
    r"""The E-step of the authors' code.

    .. math:: k = \arg\max_a \sum_i \mathrm{elu}(L_i + \text{size}\; d_a^\top g_i), \qquad
              q_i = \sigma(5\,(L_i + d_k^\top g_i))

    with :math:`d_a` the steepest direction of draw a, of unit size in the second formula whatever the budget is.
    Losses, gradients and what is returned are as for :func:`select`.

    Arguments:
        losses: See there.
        gradients: See there.
        norm: Norm of the steepest direction.
        size: Size of the move by which the draw is chosen.
    """
    draws = losses.shape[1]
    value, slope = losses.double(), gradients.double().flatten(2)
    directions = [steepest(gradients[:, a], norm).double().flatten(1).unsqueeze(1) for a in range(draws)]
    gains = torch.stack([(slope * direction).sum(2) for direction in directions], 1)  # (B, a, i)
    chosen = elu(value.unsqueeze(1) + size * gains).sum(2).argmax(1)
    gain = gains[torch.arange(len(losses), device=losses.device), chosen]
    return _normalised(_SLOPE * (value + gain)), chosen


def sigmoid_mean(losses: Tensor) -> Tensor:
    """``logit(mean(sigmoid(L)))`` over the draws, shapes (B, K) to (B,): the loss of one draw, or of equal ones."""
    if losses.shape[1] == 1:
        return losses.squeeze(1)
    wide = losses.double()
    return (logsigmoid(wide).logsumexp(1) - logsigmoid(-wide).logsumexp(1)).to(losses.dtype)


def _normalised(expected: Tensor) -> Tensor:
    return logsigmoid(expected).softmax(1)  # q / sum(q), also where every q is as good as zero


def weighted(weights: Tensor, gradients: Tensor) -> Tensor:
    """Return the sum of gradients, shape (B, K, ...), by their weights, shape (B, K)."""
    weights = weights.to(gradients.dtype).reshape(*weights.shape, *[1] * (gradients.dim() - 2))
    return (weights * gradients).sum(1)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the direction of steepest ascent, of unit norm."""
    if norm == "linf":
        return gradient.sign()
    length = gradient.double().flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    unit: Tensor = gradient.double() / length.view(-1, *[1] * (gradient.dim() - 1))
    return unit.to(gradient.dtype)
