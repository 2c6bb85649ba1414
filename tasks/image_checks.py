"""Check the images of a data set once, where they enter and before anything is computed.

A wrong range, a shifted label or a repeated image raises nothing later: it is a wrong number. So every data set,
those of plugins too, passes through :func:`checked_images` whenever it is loaded, on the driver and on every worker,
and the images that a sweep selects of it through :func:`check_selection`.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from defense.errors import InvalidInput

__all__ = ["check_selection", "checked_images"]

CHANNELS = (1, 3, 4)
"""Numbers of channels by which an image that was handed over as (H, W, C) is recognised."""

DARKEST = 0.02
"""A data set whose brightest pixel is below this was divided by 255 once too often: 1/255 is 0.0039."""

DUPLICATES = 0.01
"""Share of repeated images that is tolerated: CIFAR-10 and scikit-learn's digits have none or a handful."""

ONE_CLASS = 10
"""From so many images on, all of one class are no accident."""


def checked_images(
    images: Any, labels: Any, *, name: str, shape: tuple[int, int, int], classes: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return images as float32 and labels as int64, if they are what a data set promises.

    Arguments:
        images: What the data set returned; wanted are floating-point values in [0, 1], shape (N, C, H, W).
        labels: Likewise; wanted are whole numbers in [0, K), shape (N,).
        name: The data set, for messages.
        shape: (C, H, W) that it declares.
        classes: K, the number of classes that it declares.

    Raises:
        InvalidInput: Another type, shape, range or number of labels; NaN; labels outside [0, K).
    """
    where = f"data set {name!r}"
    pixels = _pixels(images, where, shape)
    numbers = _labels(labels, where, len(pixels), classes)
    _check_range(pixels, where)
    return pixels, numbers


def _pixels(images: Any, where: str, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    if not isinstance(images, np.ndarray):
        raise InvalidInput(
            f"{where} returns images as {type(images).__name__}: a numpy array of float32 in [0, 1], shape "
            "(N, C, H, W), is needed. Of a torch tensor that is `tensor.numpy()`."
        )
    if not np.issubdtype(images.dtype, np.floating):
        raise InvalidInput(
            f"{where} returns images of {images.dtype}: float32 values in [0, 1] are needed. Whole numbers from 0 to "
            "255 become that by `images.astype(numpy.float32) / 255`."
        )
    if images.ndim != 4 or images.shape[1:] != shape or _channels_last(shape):
        have = images.shape[1:] if images.ndim == 4 else images.shape
        hint = "Images are (N, C, H, W), channels before height and width."
        if _channels_last(have):
            hint = (
                f"{have} looks like (H, W, C): use `images.transpose(0, 3, 1, 2)`, and declare image_shape as "
                "(C, H, W)."
            )
        elif images.ndim == 3:
            hint = "Grey images have one channel: use `images[:, None]`."
        raise InvalidInput(
            f"{where} returns an array of shape {images.shape} and declares images of shape {shape}. {hint}"
        )
    if len(images) == 0:
        raise InvalidInput(f"{where} returns no image at all.")
    return np.ascontiguousarray(images, dtype=np.float32)


def _channels_last(shape: Sequence[int]) -> bool:
    return len(shape) == 3 and shape[-1] in CHANNELS and shape[0] not in CHANNELS


def _check_range(pixels: npt.NDArray[np.float32], where: str) -> None:
    bad = ~np.isfinite(pixels).all(axis=(1, 2, 3))
    if bad.any():
        raise InvalidInput(
            f"{where} holds NaN or infinite pixels in {int(bad.sum())} of {len(pixels)} images, first in image "
            f"{int(bad.argmax())}: correct or leave out these images."
        )
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and DARKEST < high <= 1:
        return
    if low < 0 and high <= 1 and low >= -1:
        hint = "That is the range [-1, 1]: use `(images + 1) / 2`."
    elif low >= 0 and high > 1 and high <= 255:
        hint = "That is the range 0 to 255: divide by 255."
    elif low < 0:
        hint = (
            "That looks standardised: return the images before mean and standard deviation were taken off; they "
            "belong to the classifier (`mean`, `std`)."
        )
    elif high <= DARKEST:
        hint = "Was it divided by 255 twice?"
    else:
        hint = "Rescale them, or clip what rounding or resizing has left outside."
    raise InvalidInput(f"{where} has pixels from {low:.4g} to {high:.4g}, where [0, 1] is needed. {hint}")


def _labels(labels: Any, where: str, count: int, classes: int) -> npt.NDArray[np.int64]:
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_:
        one_hot = array.ndim == 2 and array.shape[1] == classes
        hint = " Of one-hot rows the number is `labels.argmax(1)`." if one_hot else ""
        raise InvalidInput(
            f"{where} returns labels of {array.dtype} and shape {array.shape}: a whole number for each image is "
            f"needed, shape (N,).{hint}"
        )
    if len(array) != count:
        raise InvalidInput(
            f"{where} returns {count} images and {len(array)} labels: one of each is needed for every image."
        )
    outside = (array < 0) | (array >= classes)
    if outside.any():
        first = int(outside.argmax())
        low, high = int(array.min()), int(array.max())
        hint = "Correct the labels or the class names."
        if low < 0:
            hint = "A label below 0 usually means that the image has none: leave these images out."
        elif low == 1 and high == classes:
            hint = "They seem to count from 1: subtract 1."
        raise InvalidInput(
            f"{where} has labels from {low} to {high}, but {classes} classes, numbered 0 to {classes - 1}; "
            f"{int(outside.sum())} of {count} are outside, first that of image {first}. {hint}"
        )
    return array.astype(np.int64)


def check_selection(
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    *,
    name: str,
    accept: Collection[str] = (),
) -> None:
    """Refuse selected images whose number says more than they do: repeated ones, or those of one class alone.

    An interval counts images. Sixty images that are repeated to 599 are no 599, and a figure of one class is that of
    no data set.

    Arguments:
        images: The selected images, shape (N, C, H, W).
        labels: Their labels, shape (N,).
        name: The data set, for messages.
        accept: ``duplicates`` and ``one-class``, where that is meant.

    Raises:
        InvalidInput: More than 1 % of the images are repeated, or ten or more are all of one class.
    """
    count = len(images)
    if "duplicates" not in accept and count > 1:
        seen: dict[bytes, int] = {}
        repeated = [(seen[key], i) for i, key in enumerate(_keys(images)) if seen.setdefault(key, i) != i]
        if len(repeated) > DUPLICATES * count:
            first, again = repeated[0]
            raise InvalidInput(
                f"data set {name!r}: {len(repeated)} of the {count} selected images repeat others, pixel by pixel "
                f"(number {again} is number {first}): intervals would count them as so many. Remove them, or say "
                "`accept: [duplicates]` in the entry of the data set."
            )
    if "one-class" not in accept and count >= ONE_CLASS and len(np.unique(labels)) == 1:
        raise InvalidInput(
            f"data set {name!r}: all {count} selected images are of class {int(labels[0])}. Where images are sorted "
            "by class, `images: {every: N}` takes some of each; if one class is meant, say `accept: [one-class]`."
        )


def _keys(images: npt.NDArray[np.float32]) -> list[bytes]:
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    if flat.nbytes < 1 << 24:
        return [row.tobytes() for row in flat]
    # Large sets: a hash of each image, so that they are not held twice.
    import hashlib

    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in flat]
