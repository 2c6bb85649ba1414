"""Compiled networks against eager ones: forward pass and exact gradient, with its bit check on.

The digits denoiser behind DiffPure, on one thread. Both sides take turns; seconds are those of the processor. What
compiling itself takes comes once for each shape and worker, and is reported beside.

    python benchmarks/compiled.py [--batch 50] [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import defense
from defense import DiffPure, DiffusersConfig, Omega, purify
from defense.compiled import compile_network


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(defense.__file__).parent / "assets" / "digits-ddpm"
    config = DiffusersConfig(schedule="linear-1000", path=str(path)).resolved(Path())
    networks = {"eager": config.build(), "compiled": config.build()}
    compile_network(networks["compiled"])
    defences = {name: DiffPure(network, 100, steps=options.steps).eval() for name, network in networks.items()}
    images = torch.rand((options.batch, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    omega = Omega.of("benchmark", 0, "attack", range(options.batch))

    def forward(name: str) -> Tensor:
        with torch.no_grad():
            return defences[name](images, omega)

    def gradient(name: str) -> Tensor:
        x = images.clone().requires_grad_()
        (found,) = torch.autograd.grad(purify(defences[name], x, omega, "exact").square().sum(), x)
        return found

    compiling = seconds(lambda: gradient("compiled"))
    print(f"batch {options.batch}, {options.steps} steps; compiling, once a shape and worker: {compiling:.1f} s")
    for what, work in (("forward", forward), ("exact gradient", gradient)):
        answers = {name: work(name) for name in networks}
        rounds = [
            [seconds(lambda name=name, work=work: work(name)) for name in networks] for _ in range(options.rounds)
        ]
        eager, compiled = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(row[1] / row[0] for row in rounds)
        apart = float((answers["eager"] - answers["compiled"]).abs().max() / answers["eager"].abs().max())
        print(f"{what:<15} eager {eager:.3f} s  compiled {compiled:.3f} s  ratio {ratio:.3f}  apart {apart:.1e}")


if __name__ == "__main__":
    main()
