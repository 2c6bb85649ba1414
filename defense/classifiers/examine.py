"""Whether a loaded classifier is a function of an image, asked before anything is believed of it.

A classifier with active dropout, batch normalisation in training mode or a noise layer answers otherwise each time,
or otherwise in another batch: accuracy and attacks on it are then of no function at all, and nothing raises. So every
network is asked when it is loaded: twice, one image alone and in a batch, with and without gradients, and what it
holds is compared before and after.
"""

from typing import Any

import torch
from torch import Tensor, nn

from defense.errors import InvalidInput, no_memory

__all__ = ["examine", "logits_of"]

_BATCH = 2
_ROUNDING = 1e-2
"""How far logits of one image may lie apart between batches, relative to their size: convolutions round otherwise."""


def logits_of(output: Any, classes: int | None = None) -> Tensor:
    """Return the logits in what a network returns.

    A tensor is taken as it is; of a mapping or an object with ``logits`` that; of a tuple or list the only tensor of
    shape (B, classes).

    Raises:
        InvalidInput: It is not plain which part are the logits.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    if isinstance(output, tuple | list):
        wanted = [
            part
            for part in output
            if isinstance(part, Tensor) and part.dim() == 2 and classes in (None, part.shape[1])
        ]
        if len(wanted) == 1:
            return wanted[0]
    parts = f" of {len(output)} parts" if isinstance(output, tuple | list | dict) else ""
    raise InvalidInput(
        f"the classifier returns a {type(output).__name__}{parts}, and it is unclear which part holds the logits. "
        "Return a tensor of shape (B, classes), or a mapping or object with `logits`."
    )


def examine(classifier: nn.Module, *, name: str, image_shape: tuple[int, int, int], classes: int) -> None:
    """Ask a classifier a few images, and refuse it if its answers are not those of a function of an image.

    Arguments:
        classifier: Images in [0, 1], shape (B, C, H, W), to logits, in evaluation mode.
        name: What messages call it.
        image_shape: (C, H, W) of its images.
        classes: Number of its classes.

    Raises:
        InvalidInput: It cannot be asked; its answers are not logits, not finite, differ between two calls, between an
            image alone and in a batch, or with gradients; it has no gradient; or being asked changes it.
    """
    who = f"classifier {name!r}"
    training = [path or "the network itself" for path, module in classifier.named_modules() if module.training]
    if training:
        raise InvalidInput(
            f"{who} stays in training mode after `.eval()` ({', '.join(training[:3])}): dropout and batch "
            "normalisation would depend on chance and on the other images of a batch. Let its `train(mode)` pass the "
            "mode on."
        )
    try:
        device = next(iter(classifier.parameters())).device
    except StopIteration:
        device = torch.device("cpu")
    x = torch.rand(_BATCH, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    state = torch.get_rng_state()
    try:
        with torch.no_grad():
            first = _logits_of(classifier, x, who, classes)
            second = _logits_of(classifier, x, who, classes)
            alone = _logits_of(classifier, x[1:2], who, classes)
        leaf = x.clone().requires_grad_()
        recorded = _logits_of(classifier, leaf, who, classes)
    finally:
        torch.set_rng_state(state)
    if not torch.equal(first, second):
        raise InvalidInput(
            f"{who} gives other logits for the same images when it is called again (they differ by up to "
            f"{float((first - second).abs().max()):.3g}): something in it is random or keeps state. A classifier is "
            "a function of its image; put randomness into a purifier, where it is keyed and judged over draws."
        )
    scale = max(1.0, float(first.abs().max()))
    for other, mine, how in (
        (alone, first[1:2], "alone and in a batch"),
        (recorded.detach(), first, "with and without gradients"),
    ):
        apart = float((other - mine).abs().max())
        if apart > _ROUNDING * scale:
            raise InvalidInput(
                f"{who} gives different logits for one image {how} (they differ by {apart:.3g}): batch normalisation "
                "is in training mode, or the result depends on the other images. Figures would not be those of the "
                "classifier."
            )
    changed = [key for key, value in classifier.state_dict().items() if not _same(value, before.get(key))]
    if changed:
        raise InvalidInput(
            f"{who} changes when it is called ({', '.join(changed[:3])}): it still writes running statistics or a "
            "memory. Freeze it: in evaluation mode a call leaves nothing behind."
        )
    if recorded.requires_grad:
        (gradient,) = torch.autograd.grad(recorded.sum(), leaf, allow_unused=True)
        if gradient is not None and not gradient.isfinite().all():
            raise InvalidInput(f"{who} has a gradient of NaN or infinite values at ordinary images.")


def _logits_of(classifier: nn.Module, x: Tensor, who: str, classes: int) -> Tensor:
    try:
        logits = classifier(x)
    except InvalidInput as error:
        raise InvalidInput(f"{who}: {error.message}", where=error.where) from error
    except Exception as error:  # a network raises whatever its code raises
        if no_memory(error):  # the machine's trouble, not the classifier's
            raise
        cause = str(error).strip().splitlines() or [""]
        raise InvalidInput(
            f"{who} fails on images of shape {tuple(x.shape)} ({type(error).__name__}: {cause[0][:200]}). Is it "
            "made for images of another size or number of channels, or for weights of another type?"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (len(x), classes):
        have = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InvalidInput(
            f"{who} answers {len(x)} images with {have}; logits of shape ({len(x)}, {classes}) are needed, one "
            f"for each of its {classes} classes."
        )
    if not logits.isfinite().all():
        raise InvalidInput(f"{who} answers ordinary images with NaN or infinite logits: are its weights damaged?")
    return logits.float()


def _same(value: Any, before: Any) -> bool:
    return isinstance(before, Tensor) and value.shape == before.shape and bool(torch.equal(value, before))
