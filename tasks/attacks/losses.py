r"""Losses that attacks maximise, of logits z and label y, one value per row.

* ``ce``: cross-entropy :math:`-\log \mathrm{softmax}(z)_y`;
* ``margin`` (Carlini and Wagner, arXiv 1608.04644): :math:`\max_{i\ne y} z_i - z_y`, above 0 where the answer is
  wrong;
* ``dlr`` (Croce and Hein, arXiv 2003.01690, equation 6), invariant to shift and scale of the logits:

  .. math:: -\frac{z_y - \max_{i\ne y} z_i}{z_{\pi_1} - z_{\pi_3}}

* ``dlr-targeted`` (equation 7 there), with a target class t:

  .. math:: -\frac{z_y - z_t}{z_{\pi_1} - (z_{\pi_3} + z_{\pi_4})/2}

where :math:`z_{\pi_1} \ge z_{\pi_2} \ge \dots` are the sorted logits.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from defense.errors import InvalidInput

__all__ = ["LossName", "PointLoss", "check_classes", "dlr_targeted", "least_classes", "margin", "point_loss"]

LossName = Literal["ce", "margin", "dlr"]
PointLoss = Callable[[Tensor, Tensor], Tensor]
"""``loss(logits, labels)``: shapes (N, classes) and (N,) to (N,)."""

_TINY = 1e-12

_LEAST_CLASSES = {"dlr": 3, "dlr-targeted": 4}
"""Classes without which a loss has no value; the others take two."""


def least_classes(name: str) -> int:
    """Return the number of classes without which a loss has no value."""
    return _LEAST_CLASSES.get(name, 2)


def check_classes(field: str, losses: str | Sequence[str], classes: int) -> None:
    """Refuse losses that have no value with so few classes, before anything is computed.

    Raises:
        InvalidInput: One has none; with its path.
    """
    names = [losses] if isinstance(losses, str) else losses
    for place, name in enumerate(names):
        least = least_classes(name)
        if classes < least:
            raise InvalidInput(
                f"loss {name} needs at least {least} classes, the classifier has {classes}: use ce or margin.",
                keys=(field,) if isinstance(losses, str) else (field, place),
            )


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the largest wrong logit minus the right one."""
    right = logits.gather(1, y.unsqueeze(1)).squeeze(1)
    wrong = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
    return wrong - right


def _dlr(logits: Tensor, y: Tensor) -> Tensor:
    if logits.shape[1] < 3:
        raise InvalidInput(f"loss dlr needs at least 3 classes, not {logits.shape[1]}; use ce or margin.")
    top = logits.topk(3, 1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + _TINY)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return the targeted DLR loss towards class ``target``, shape (N,)."""
    if logits.shape[1] < 4:
        raise InvalidInput(f"loss dlr-targeted needs at least 4 classes, not {logits.shape[1]}; use ce or margin.")
    top = logits.topk(4, 1).values
    right, wanted = (logits.gather(1, c.unsqueeze(1)).squeeze(1) for c in (y, target))
    return -(right - wanted) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


_LOSSES: dict[str, PointLoss] = {"ce": _cross_entropy, "margin": margin, "dlr": _dlr}


def point_loss(name: LossName) -> PointLoss:
    """Return the loss of that name."""
    return _LOSSES[name]
