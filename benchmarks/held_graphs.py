"""What it saves to hold the graphs of an exact gradient: time, and how many are held, within some limits.

The same gradient of a batch takes turns without held graphs and within each limit, in one thread; seconds are those
of the processor, ratios the median over rounds of what one took over what the other took beside it. All have the same
bits, or it ends.

    python benchmarks/held_graphs.py [--denoiser FOLDER] [--images 50] [--steps 3 20] [--mib 128 512 4096]
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from exact_gradient import batch, purifier
from torch import Tensor

from defense import DiffPure, Omega, purify
from defense.held_graphs import HeldGraphs, holding
from tasks.allocator import keep_freed_memory


def gradient(defence: DiffPure, x: Tensor, omega: Omega, graphs: HeldGraphs | None) -> tuple[Tensor, float, float]:
    """Return the gradient, MiB of graphs that were held, and seconds of the processor."""
    x = x.clone().requires_grad_()
    started = time.process_time()
    with holding(graphs):
        out = purify(defence, x, omega, "exact").square().sum()
        held = 0.0 if graphs is None else graphs.held / 2**20
        (found,) = torch.autograd.grad(out, x)
    return found, held, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--denoiser", default="defense/assets/digits-ddpm")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 20])
    parser.add_argument("--mib", type=float, nargs="+", default=[128, 512, 4096])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    keep_freed_memory()  # as workers do
    torch.set_num_threads(1)
    print("steps  limit MiB  held MiB  seconds  ratio")
    for steps in options.steps:
        defence = purifier(options.denoiser, steps)
        x, omega = batch(defence, options.images)
        limits = {None: None, **{mib: HeldGraphs(mib * 2**20) for mib in options.mib}}
        took: dict[float | None, list[float]] = {mib: [] for mib in limits}
        held: dict[float | None, float] = {}
        expected, _, _ = gradient(defence, x, omega, None)
        for turn in range(options.rounds + 1):
            for mib, graphs in limits.items():
                found, held[mib], seconds = gradient(defence, x, omega, graphs)
                assert torch.equal(found, expected)
                if turn:  # the first gradient of a kind is never held
                    took[mib].append(seconds)
        for mib, seconds in took.items():
            ratio = median(one / base for one, base in zip(seconds, took[None], strict=True))
            print(f"{steps:5d}  {mib or 0:9.0f}  {held[mib]:8.0f}  {median(seconds):7.3f}  {ratio:5.3f}", flush=True)


if __name__ == "__main__":
    main()
