"""Losses that pull towards one wrong class of each image: which class, and the loss."""

import torch
from torch import Tensor

from defense.errors import InvalidInput
from tasks.attacks.losses import PointLoss, dlr_targeted
from tasks.attacks.target import Target

__all__ = ["check_targets", "towards", "wrong_classes"]


def check_targets(field: str, count: int, classes: int) -> None:
    """Refuse more target classes than there are wrong ones, before anything is computed.

    Raises:
        InvalidInput: There are fewer; with the path of the field.
    """
    if count > classes - 1:
        raise InvalidInput(
            f"{count} target classes, but the classifier has {classes} classes, of which {classes - 1} are wrong for "
            f"an image: write `{field}: {classes - 1}` or fewer.",
            keys=(field,),
        )


def wrong_classes(target: Target, x: Tensor, count: int) -> Tensor:
    """Return the wrong classes of highest clean logits (means over the next draws), best first, shape (B, count).

    Where the clean answer is right those are the classes ranked 2nd, 3rd, ...

    Raises:
        InvalidInput: There are fewer wrong classes.
    """
    with torch.no_grad():
        logits = target.logits(x).mean(1)
    wrong = logits.shape[1] - 1
    if count > wrong:
        raise InvalidInput(f"{count} target classes, but only {wrong} of {wrong + 1} classes are wrong.")
    logits = logits.scatter(1, target.labels.unsqueeze(1), -torch.inf)
    return logits.argsort(dim=1, descending=True, stable=True)[:, :count]


def towards(classes: Tensor) -> PointLoss:
    """Return the targeted DLR loss towards one class of each image, shape (B,)."""

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        # The draws of an image are neighbours, each with its target.
        return dlr_targeted(logits, y, classes.repeat_interleave(len(logits) // len(classes)))

    return loss
