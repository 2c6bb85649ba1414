r"""Image quality: how far one image is from another, in three ways, one value for each pair.

* PSNR: :math:`-10 \log_{10} \frac1d\|a - b\|_2^2` in dB, for images in [0, 1]; infinite for equal images, so that
  means of it need care
* SSIM (Wang et al., IEEE TIP 2004): with a Gaussian window of 11 pixels and sigma 1.5 and a range of 1, averaged over
  the places where the window is inside the image, as Wang's own code does; images below 22 pixels a side have a
  window of 5 pixels and sigma 0.5, and their values compare with one another alone
* LPIPS (Zhang et al., arXiv 1801.03924), from weights that the user has

PSNR and SSIM are torchmetrics', in float64; its PSNR is good to 1e-5 dB. Of its SSIM the map is taken and not the
mean, which in some releases includes the mirrored edge.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from defense.errors import InvalidInput
from defense.lpips import LpipsDistance
from defense.packages import installed
from defense.torchvision_cpu import allow_torchvision_import

__all__ = ["Quality", "lpips", "psnr", "quality", "ssim"]

Images = npt.NDArray[np.floating]
Values = npt.NDArray[np.float64]

_BATCH = 64
"""Fixed: LPIPS in float32 depends on the batch in its last digits."""
_SMALLEST = 5
_FULL_WINDOW = 22
NO_WEIGHTS = (
    "LPIPS has no weights: name torchvision's AlexNet checkpoint, or get it with `puregrid data fetch lpips`; "
    "puregrid never fetches it by itself."
)


@dataclass(frozen=True)
class Quality:
    """Measures of pairs of images.

    Arguments:
        columns: psnr, ssim and lpips, shape (N,) each; NaN throughout where a measure could not be taken.
        missing: Why each missing measure could not be taken.
    """

    columns: dict[str, Values]
    missing: dict[str, str]


def quality(a: Images, b: Images, network: LpipsDistance | None = None) -> Quality:
    """Return all three measures of pairs of images.

    Arguments:
        a: Images in [0, 1], shape (N, C, H, W).
        b: Images of the same shape.
        network: For LPIPS, from :class:`defense.lpips.LpipsConfig`.

    Raises:
        InvalidInput: Shapes differ, or values are not in [0, 1].
    """
    measures: dict[str, Callable[[], Values]] = {
        "psnr": lambda: psnr(a, b),
        "ssim": lambda: ssim(a, b),
        "lpips": lambda: lpips(a, b, network),
    }
    _pairs(a, b)
    columns, missing = {}, {}
    for name, measure in measures.items():
        try:
            columns[name] = measure()
        except InvalidInput as error:
            columns[name], missing[name] = np.full(len(a), np.nan), error.message
    return Quality(columns, missing)


def psnr(a: Images, b: Images) -> Values:
    """Peak signal-to-noise ratio of each pair, dB, shape (N,); infinite where the images are equal."""
    first, second = _pairs(a, b)
    if len(first) == 0:
        return np.empty(0)
    allow_torchvision_import()
    with installed("PSNR"):
        from torchmetrics.functional.image import peak_signal_noise_ratio

    return _values(
        peak_signal_noise_ratio(first, second, data_range=1.0, reduction="none", dim=tuple(range(1, first.dim())))
    )


def ssim(a: Images, b: Images) -> Values:
    """Structural similarity of each pair, at most 1, shape (N,).

    Raises:
        InvalidInput: Images of fewer than 5 pixels a side.
    """
    first, second = _pairs(a, b)
    side = min(first.shape[2:])
    if side < _SMALLEST:
        raise InvalidInput(f"SSIM takes images of at least {_SMALLEST} pixels a side, not {tuple(first.shape[2:])}.")
    if len(first) == 0:
        return np.empty(0)
    allow_torchvision_import()
    with installed("SSIM"):
        from torchmetrics.functional.image import structural_similarity_index_measure

    # The window's size follows from its sigma: 2 floor(3.5 sigma + 0.5) + 1.
    sigma, edge = (1.5, 5) if side >= _FULL_WINDOW else (0.5, 2)
    _, everywhere = structural_similarity_index_measure(
        first, second, sigma=sigma, data_range=1.0, reduction="none", return_full_image=True
    )
    return _values(everywhere[..., edge:-edge, edge:-edge].mean((1, 2, 3)))


def lpips(a: Images, b: Images, network: LpipsDistance | None) -> Values:
    """LPIPS of each pair, shape (N,), 0 for equal images.

    Raises:
        InvalidInput: No network, or images smaller than it takes.
    """
    first, second = _pairs(a, b)
    if network is None:
        raise InvalidInput(NO_WEIGHTS)
    device = next(network.parameters()).device
    parts = [np.empty(0)]
    with torch.no_grad():
        for start in range(0, len(first), _BATCH):
            a_batch, b_batch = (2 * x[start : start + _BATCH].to(device, torch.float32) - 1 for x in (first, second))
            parts.append(_values(network(a_batch, b_batch)))
    return np.concatenate(parts)


def _pairs(a: Images, b: Images) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim != 4:
        raise InvalidInput(f"quality compares images of equal shape (N, C, H, W), not {a.shape} with {b.shape}.")
    for images in (a, b):
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise InvalidInput(
                "quality compares images in [0, 1]; these have values outside, or that are no numbers."
            )
    return torch.from_numpy(np.asarray(a, dtype=np.float64)), torch.from_numpy(np.asarray(b, dtype=np.float64))


def _values(x: Tensor) -> Values:
    return np.asarray(x.detach().cpu().double().numpy().reshape(-1))
