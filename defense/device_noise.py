r"""The normal numbers of :mod:`defense.normals` on a GPU: one kernel from the key to the noise.

A thread makes one block of Philox4x64-10 (Salmon et al., SC 2011, section 3.3), four words of 64 bits, and of them
eight numbers. There is nothing but integers in it, and two conversions that IEEE 754 fixes, so its bits are those of
the CPU. Nothing is copied from the host in a step, and nothing waits for the device: image ids and draws go there
once for each batch, the table once for each process.

The kernel is written in Triton, which PyTorch for CUDA brings along. Before a process believes it, it has made some
numbers on either side, and their bits are equal. Where there is no Triton the CPU makes the numbers.
"""

import functools
import importlib.util

import numpy as np
import torch

from defense.normals import normals, quantiles

__all__ = ["normals_on"]

Places = tuple[tuple[int, int], ...]
"""Image id and draw of each element of a batch."""


def normals_on(
    device: torch.device, key: tuple[int, int], step: int, places: Places, count: int
) -> torch.Tensor | None:
    """Return ``count`` normal numbers for each element on a device, shape (B, count); None where there is no Triton.

    Arguments:
        device: A CUDA device.
        key: Both words of the key.
        step: Second word of the counter.
        places: Fourth and third word of the counter, for each element.
        count: Numbers of an element.

    Raises:
        RuntimeError: The device makes other numbers than the CPU.
    """
    if not _has_triton():
        return None
    _believe(device)
    return _launch(device, key, step, places, count)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _believe(device: torch.device) -> None:
    """Compare some numbers with the CPU's, once a process."""
    key, step, places, count = (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03), 7, ((5, 0), (2**33, 3)), 4099
    made = _launch(device, key, step, places, count).cpu().numpy()
    rows = [
        np.random.Philox(
            key=np.array(key, dtype=np.uint64), counter=np.array([0, step, draw, image], dtype=np.uint64)
        )
        for image, draw in places
    ]
    words = np.stack([bits.random_raw((count + 1) // 2).astype("<u8") for bits in rows]).view(np.int32)[:, :count]
    if not np.array_equal(made.view(np.int32), normals(words).view(np.int32)):
        raise RuntimeError(
            f"noise made on {device} differs from the CPU's, so its rows could not be repeated elsewhere. "
            "Set compute.noise: 1, and please report this."
        )


@functools.lru_cache(maxsize=64)
def _on_device(device: torch.device, places: Places) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.int64).T.contiguous().to(device, non_blocking=True)


@functools.cache
def _table(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(quantiles()).to(device)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_BLOCKS = 128  # of Philox by one program


def _launch(device: torch.device, key: tuple[int, int], step: int, places: Places, count: int) -> torch.Tensor:
    out = torch.empty(len(places), count, dtype=torch.float32, device=device)
    if out.numel() == 0:
        return out
    programs = (len(places), -(-count // (8 * _BLOCKS)))
    arguments = (out, _on_device(device, places), _table(device), *map(_signed, key), step, len(places), count)
    from defense.noise_kernel import philox_normals  # needs Triton

    philox_normals[programs](*arguments, BLOCKS=_BLOCKS)
    return out
