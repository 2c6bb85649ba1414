"""Keyed noise against one global generator: what reproducibility per image costs.

Makes the noise of one reverse step for a batch of CIFAR-sized images, with one Philox stream per image
(``Omega.normal``), in both versions, and with a single ``torch.randn`` call, alternating in one run. Seconds are
those of the processor.

    python benchmarks/noise.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from defense.randomness import Omega


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    for batch in (16, 64, 256):
        like = torch.zeros(batch, 3, 32, 32)
        omega = Omega.of("spec", 0, "judge", range(batch))
        old = replace(omega, noise=1)
        rounds = [
            (
                seconds(lambda omega=omega, like=like, step=step: omega.normal("reverse", step, like)),
                seconds(lambda old=old, like=like, step=step: old.normal("reverse", step, like)),
                seconds(lambda like=like: torch.randn(like.shape)),
            )
            for step in range(60)
        ][10:]
        keyed, before, plain = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio, other = (statistics.median(row[i] / row[2] for row in rounds) for i in (0, 1))
        print(
            f"batch {batch:>3}: keyed {1e3 * keyed:.2f} ms ({1e6 * keyed / batch:.0f} us an image), version 1 "
            f"{1e3 * before:.2f} ms, torch.randn {1e3 * plain:.2f} ms; ratios {ratio:.2f} and {other:.2f}"
        )


if __name__ == "__main__":
    main()
