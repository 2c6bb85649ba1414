"""A network's operations recorded once for each shape and replayed, so that a small batch on a GPU waits for less.

Replaying a CUDA graph starts the very kernels that were recorded, so the bits are those of the network and no id
knows of it. A shape is recorded when it comes for the second time, without gradients; everything else is computed as
ever. Labels are an input like images, so that one recording serves all time steps. Workers do not use this yet: it
has never run on a GPU, and ``benchmarks/gpu.py`` is where it would be measured first.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Graphed", "Replay", "record_cuda"]

Replay = Callable[[], Tensor]
"""Computes the recorded output anew, from what the recorded inputs hold by then."""

Recorder = Callable[[Callable[[], Tensor]], Replay]
"""Records what a function does."""


def record_cuda(work: Callable[[], Tensor]) -> Replay:
    """Record the kernels that some work starts on the current CUDA device, after three runs on a side stream.

    Arguments:
        work: Reads and writes no other memory than the same tensors each time, and never waits for the device.
    """
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


class Graphed(nn.Module):
    """A network whose repeated shapes are replayed.

    Arguments:
        network: Maps images (B, C, H, W) and labels (B,) to one tensor; frozen.
        recorder: How work is recorded.
    """

    def __init__(self, network: nn.Module, recorder: Recorder = record_cuda) -> None:
        super().__init__()
        self.network = network
        self._recorder = recorder
        self._seen: set[Any] = set()
        self._recorded: dict[Any, tuple[Tensor, Tensor, Replay]] = {}

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the network's output, in memory of its own."""
        if torch.is_grad_enabled() and images.requires_grad:
            output: Tensor = self.network(images, labels)
            return output
        device = images.device.type
        precision = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        key = tuple(images.shape), images.dtype, tuple(labels.shape), labels.dtype, images.device, precision
        if key not in self._seen:
            self._seen.add(key)
            with torch.no_grad():
                output = self.network(images, labels)
            return output
        if key not in self._recorded:
            with torch.no_grad():
                inputs = images.clone(memory_format=torch.contiguous_format), labels.clone()
                self._recorded[key] = *inputs, self._recorder(lambda: self.network(*inputs))
        held_images, held_labels, replay = self._recorded[key]
        held_images.copy_(images)
        held_labels.copy_(labels)
        # A copy: the next replay writes where this one did.
        return replay().clone()
