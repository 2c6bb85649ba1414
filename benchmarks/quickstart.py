"""What the quickstart's compute is made of, and what other settings would make of it.

Nearly all of the quickstart is the shipped denoiser, asked 287,520 times for one image. Settings take turns, pass by
pass, on one thread; seconds are those of the processor. Beside them stands what cannot be saved by calling the same
operations otherwise: the convolutions of the network alone, each in a loop of its own, and all of its products at the
rate of a large matrix product.

    python benchmarks/quickstart.py [--rounds 11] [--compile]

With ``--compile`` also as torch.compile makes it: as `compute.compile` does (the program with derivatives), without
them, and with frozen weights (inductor's ``freezing``). What compiling takes is printed; it comes once a worker and
shape.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from defense.compiled import compile_network
from defense.denoisers import digits_denoiser
from tasks.allocator import keep_freed_memory

FORWARDS = 599 * 3 * 20 * 2 * 4
"""Images x draws x steps x values of t* x (clean and three budgets)."""
LEVEL = 50


def processor() -> float:
    """Seconds of this process and those that it started, such as compilers."""
    took = os.times()
    return took.user + took.system + took.children_user + took.children_system


def median_of(work: Callable[[], object], rounds: int) -> float:
    took = []
    work()
    for _ in range(rounds):
        started = time.process_time()
        work()
        took.append(time.process_time() - started)
    return statistics.median(took)


def in_turn(works: dict[str, tuple[Callable[[], Tensor], int]], rounds: int) -> None:
    """Print seconds an image of each, and its ratio to the first."""
    answers = {name: work() for name, (work, _) in works.items()}
    first, batch = next(iter(answers.values())), min(count for _, count in works.values())
    took: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, (work, count) in works.items():
            started = time.process_time()
            work()
            took[name].append((time.process_time() - started) / count)
    base = next(iter(took.values()))
    for name, times in took.items():
        ratio = statistics.median(mine / other for mine, other in zip(times[1:], base[1:], strict=True))
        same = torch.equal(answers[name][:batch], first[:batch])
        seconds = statistics.median(times[1:])
        print(
            f"{name:<32} {1e6 * seconds:7.1f} us an image   ratio {ratio:.3f}   "
            f"{'equal bits' if same else 'other bits'}   quickstart {FORWARDS * seconds:4.0f} s of processor"
        )


def convolutions(network: nn.Module, ask: Callable[[], Tensor], rounds: int) -> float:
    """Seconds of all convolutions of a forward pass, each repeated alone."""
    calls: list[tuple[nn.Module, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((layer, inputs[0].clone()))

    hooks = [part.register_forward_hook(note) for part in network.modules() if isinstance(part, nn.Conv2d)]
    ask()
    for hook in hooks:
        hook.remove()
    return sum(median_of(lambda layer=layer, x=x: layer(x), rounds) for layer, x in calls)


def matrix_rate(rounds: int) -> float:
    """Floating-point operations a second of a product of 1024 x 1024 matrices."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / median_of(lambda: a @ b, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as workers do
    config = digits_denoiser().resolved(Path())
    images = torch.randn(600, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def asked(denoiser: Any, batch: int) -> tuple[Callable[[], Tensor], int]:
        return lambda: denoiser(images[:batch], LEVEL), batch

    eager = config.build()
    works = {"as it is, batch 100": asked(eager, 100)}
    works |= {f"batch {batch}": asked(eager, batch) for batch in (50, 300, 600)}
    works["channels-last, batch 100"] = asked(config.build().to(memory_format=torch.channels_last), 100)
    if options.compile:
        compiled: dict[str, Any] = {name: config.build() for name in ("compiled", "compiled, no gradients")}
        compiled["compiled, frozen weights"] = config.build()
        compile_network(compiled["compiled"])
        for name, settings in (("no gradients", None), ("frozen weights", {"freezing": True})):
            made = compiled[f"compiled, {name}"]
            made.net = torch.compile(made.net, dynamic=False, options=settings)
        works |= {f"{name}, batch 100": asked(made, 100) for name, made in compiled.items()}
    with torch.no_grad():
        for name, (work, _) in works.items():
            started = processor()
            work()
            if name.startswith("compiled"):
                print(f"{name}: compiling takes {processor() - started:.0f} s of processor")
        in_turn(works, options.rounds)
        ask, batch = works["as it is, batch 100"]
        now = median_of(ask, options.rounds)
        alone, rate = convolutions(eager, ask, options.rounds), matrix_rate(options.rounds)
        counter = FlopCounterMode(display=False)
        with counter:
            ask()
    operations = counter.get_total_flops()
    print(
        f"{operations / 1e9 / batch:.4f} GFLOP an image: {operations / now / 1e9:.0f} GFLOP/s; a matrix product has "
        f"{rate / 1e9:.0f}"
    )
    print(f"its convolutions alone           ratio {alone / now:.3f}")
    print(f"all products at a matrix's rate  ratio {operations / rate / now:.3f}")


if __name__ == "__main__":
    main()
