"""What it saves to send tiny gradients of an attacked vote back on a gradient of size about one.

The gradient of a margin loss over the votes of some draws takes turns with and without scaling, in one thread;
seconds are those of the processor, ratios the median over rounds. *Tiny* is the share of draws whose own gradient of
the loss is scaled; *apart* the largest difference of the two gradients, over the largest value.

    python benchmarks/scaled_gradients.py [--images 100] [--draws 4] [--rounds 7]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from defense.classifiers import ClassifierConfig
from defense.denoisers import digits_denoiser
from defense.purifiers import PURIFIERS
from defense.randomness import Omega
from defense.scaled_gradients import TINY
from tasks.allocator import keep_freed_memory
from tasks.attacks.losses import point_loss
from tasks.attacks.target import Target
from tasks.datasets import DigitsConfig

PURIFIED: dict[str, dict[str, Any]] = {
    "diffpure": {"t_star": 100, "steps": 3, "schedule": "linear-1000"},
    "freqpure": {"amplitude_radius": 3, "phase_radius": 3, "steps": 4},
}


def plainly(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return f(x)


def gradient(target: Target, x: Tensor) -> tuple[Tensor, float]:
    """Return the gradient over the first draws, and seconds of the processor."""
    target.calls = 0
    started = time.process_time()
    found = target.differentiate(x, point_loss("margin")).gradient
    assert found is not None
    return found, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    keep_freed_memory()  # as workers do
    torch.set_num_threads(1)
    data = DigitsConfig().load()
    x, labels = torch.from_numpy(data.images[: options.images]), torch.from_numpy(data.labels[: options.images])
    classifier = ClassifierConfig(classifier="digits-cnn").resolved(Path()).build()
    omega = Omega.of("benchmark", 0, "attack", range(len(x)))
    print("purifier  tiny  plain s  scaled s  ratio  apart")
    for name, fields in PURIFIED.items():
        config: Any = PURIFIERS.get(name)
        purifier = config(denoiser=digits_denoiser(), **fields).resolved(Path()).build()
        target = Target(classifier, labels, omega, purifier, draws=options.draws, attacked="vote", batch=len(x))
        took: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            with patch("tasks.attacks.target.with_scaled_gradient", plainly):
                plain, without = gradient(target, x)
            scaled, beside = gradient(target, x)
            took.append((without, beside))
        target.calls = 0
        logits = target.logits(x).detach().requires_grad_()
        (at_logits,) = torch.autograd.grad(target.over_draws(logits, point_loss("margin")).sum(), logits)
        tiny = float((at_logits.abs().amax(2) < TINY).float().mean())
        seconds = [median(side) for side in zip(*took, strict=True)]
        ratio = median(beside / without for without, beside in took)
        apart = float((plain - scaled).abs().max() / scaled.abs().max())
        print(f"{name:8s}  {tiny:4.0%}  {seconds[0]:7.3f}  {seconds[1]:8.3f}  {ratio:5.3f}  {apart:.1e}", flush=True)


if __name__ == "__main__":
    main()
