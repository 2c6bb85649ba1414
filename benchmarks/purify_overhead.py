"""What purification costs beyond its denoiser: ``purify time / (steps x one bare denoiser forward)``.

At the same batch, threads and precision, in seconds of processor, in one run. A round is bare forwards, two
purifications, bare forwards (the order ABBA cancels a drift), and its ratio is that of the two sums. Shown are the
median over rounds and an interval that holds the true median with at least 95 % confidence, whatever the law of the
ratios: of n sorted ones it goes from the k-th to the k-th from the end, where a fair coin that is thrown n times
shows heads fewer than k times with a probability of at most 2.5 %.

*Inside* is the same of the purifications alone: their time over that of their own network calls, which meet the same
machine at the same moment; *step by step* is that of purifications which make the noise of each step when it is due
and not that of some steps at once, with equal bits; *plain* is a loop over the network, ``torch.randn`` and three
operations, two of them in place, which is as little as anybody could do.

    python benchmarks/purify_overhead.py [--denoiser FOLDER] [--images 50] [--steps 10] [--rounds 15]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from defense import DiffPure, DiffusersConfig, Omega
from defense.purifiers import diffusion


class Timed:
    """Counts the processor seconds of a network's calls."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.seconds = 0.0
        self._began = 0.0
        net.register_forward_pre_hook(self._begin)
        net.register_forward_hook(self._end)

    def _begin(self, net: torch.nn.Module, arguments: object) -> None:
        self._began = time.process_time()

    def _end(self, net: torch.nn.Module, arguments: object, output: Tensor) -> None:
        self.seconds += time.process_time() - self._began


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Ends of the 95 % interval of the median, by order; of fewer than six ratios all of them."""
    n, tail, k = len(ratios), 0.0, 0
    while (tail := tail + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    k = max(k, 1)
    ordered = sorted(ratios)
    return ordered[k - 1], ordered[-k]


def shown(ratios: Sequence[float]) -> str:
    low, high = interval(ratios)
    return f"{median(ratios):.4f} [{low:.4f}, {high:.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--denoiser", default="defense/assets/digits-ddpm")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    denoiser = DiffusersConfig(schedule="linear-1000", path=options.denoiser).resolved(Path.cwd()).build()
    timed = Timed(denoiser)
    defence = DiffPure(denoiser, 100, steps=options.steps)
    x = torch.rand((options.images, *denoiser.image_shape), generator=torch.Generator().manual_seed(0))
    omega = Omega.of("benchmark", 0, "judge", range(options.images))

    def forwards() -> float:
        began = time.process_time()
        for t in defence.rounds[0].grid[:-1]:
            denoiser(x, t)
        return time.process_time() - began

    def purification() -> float:
        began = time.process_time()
        defence(x, omega)
        return time.process_time() - began

    def plain() -> float:
        began, z = time.process_time(), x
        for t in defence.rounds[0].grid[:-1]:
            eps = denoiser(z, t)
            z = z.mul(0.9).add_(eps, alpha=0.1).add_(torch.randn(z.shape), alpha=0.1)
        return time.process_time() - began

    bare, whole, inside, apart, least, ahead = [], [], [], [], [], diffusion._AHEAD
    with torch.no_grad():
        forwards(), purification()
        for _ in range(options.rounds):
            first = forwards()
            timed.seconds = 0.0
            both = purification() + purification()
            inside.append(both / timed.seconds)
            diffusion._AHEAD, timed.seconds = 0, 0.0
            apart.append((purification() + purification()) / timed.seconds)
            diffusion._AHEAD, timed.seconds = ahead, 0.0
            least.append((plain() + plain()) / timed.seconds)
            bare.append((first + forwards()) / 2)
            whole.append(both / 2)
    print(
        f"{options.images} images, {options.steps} steps, {options.rounds} rounds; processor seconds: bare forwards "
        f"{median(bare):.3f}, purification {median(whole):.3f}; ratio "
        f"{shown([a / b for a, b in zip(whole, bare, strict=True)])}, inside {shown(inside)}, "
        f"step by step {shown(apart)}, plain {shown(least)}"
    )


if __name__ == "__main__":
    main()
