"""The most memory that a unit took: of the GPU, or of the worker's process without one."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["HELD", "IDLE", "PEAK", "crowded", "machine_memory", "peak_memory", "resident"]

PEAK, IDLE, HELD = "peak_mib", "idle_mib", "held_mib"
"""Notes of a unit: the MiB that it took at most, those of the worker's process before it had loaded anything, and
those of graphs that exact gradients held because there was room (:mod:`defense.held_graphs`)."""

_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], float | None]]:
    """Yield a function that returns the most MiB since the beginning of the block.

    On a GPU that is what tensors took of it, without what the allocator holds in reserve. On a processor it is the
    resident set of the whole process, loaded networks and libraries included, as Linux counts it; None elsewhere.

    Arguments:
        device: Where the unit computes.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device) / 2**20
    else:
        yield _most if _reset() else lambda: None


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or those that its container allows."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        total = min(total, int(_CONTAINER.read_text()))
    return total


def crowded() -> bool:
    """Return whether this process holds more than a quarter of the memory that the machine has for each processor."""
    return (resident() or 0.0) * 2**20 > 0.25 * machine_memory() / (os.cpu_count() or 1)


def resident() -> float | None:
    """Return the MiB that this process holds now; None where Linux does not say."""
    return _status("VmRSS:")


def _reset() -> bool:
    """Have Linux forget the largest resident set so far."""
    try:
        _REFERENCES.write_text("5")
    except OSError:  # another system, or one that does not allow it
        return False
    return _most() is not None


def _most() -> float | None:
    """The largest resident set since it was last forgotten, MiB."""
    return _status("VmHWM:")


def _status(name: str) -> float | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith(name)]
    return int(sizes[0]) / 2**10 if sizes else None
