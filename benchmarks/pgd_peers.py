"""PGD beside torchattacks and foolbox: seconds at equal settings, step by step in one run.

l_inf 8/255 (l_2 0.5), a step of a quarter of it, a random start, cross-entropy, the same batch and network. Each
attack has a process of its own and runs from one call of the network to the next; then it is the next one's turn.
What else happens on the machine meets all of them within the same second, and the order is reversed every round.
Seconds are those of the processor and of the clock; ratios are medians of pairs: ``all`` of whole runs of the same
round, ``a step`` of the same step of it, a forward and a backward pass and what the attack makes of them.

puregrid returns the best iterate by default, and has to evaluate the last one for that: one forward pass more than
the others make, who return the last without a look at it. ``--keep last`` makes it do what they do: equal settings.

``--state alike`` gives all of them what workers have: malloc that keeps what is freed, and weights without gradients.
``--state delivered`` leaves that to puregrid, as a sweep runs it; the others get the network as PyTorch
builds it, in evaluation mode, in a Python that nobody has set up.

    pip install --no-deps torchattacks==3.5.1    # it pins an old `requests`
    python benchmarks/pgd_peers.py [--network resnet20] [--weights FILE] [--norm linf] [--images 100]
        [--steps 10 20 40] [--rounds 7] [--state alike delivered] [--keep last|best]
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import foolbox
import torch
import torchattacks

from defense import ClassifierConfig, Omega
from defense.classifiers import CLASSIFIERS, Normalised
from tasks.allocator import keep_freed_memory
from tasks.attacks import PGDConfig, Target, perturbation_norms

NAMES = ("puregrid", "torchattacks", "foolbox")
BUDGETS = {"linf": 8 / 255, "l2": 0.5}

Run = Callable[[int], torch.Tensor]
"""One attack of so many steps."""
Times = list[tuple[float, float]]
"""Seconds of processor and clock, between calls of the network: the start, one a step, maybe a last evaluation."""


def contender(turns: Connection, name: str, state: str, options: argparse.Namespace) -> None:
    """One attack in this process: for each number of steps received a run, in turns."""
    torch.set_num_threads(1)
    ours = state == "alike" or name == "puregrid"
    if ours:
        keep_freed_memory()
    torch.manual_seed(0)
    architecture = CLASSIFIERS.get(options.network)
    if options.weights:
        config = ClassifierConfig(classifier=options.network, weights=options.weights)
        network: torch.nn.Module = config.resolved(Path.cwd()).build()
    else:
        network = Normalised(architecture.build(), architecture.mean, architecture.std)
    network.eval().requires_grad_(not ours)
    x = torch.rand((options.images, *architecture.image_shape))
    y = torch.randint(10, (options.images,))
    run, eps = attack(name, network, x, y, options.norm, options.keep), BUDGETS[options.norm]

    times: Times = []
    since = (0.0, 0.0)

    def wait() -> None:
        nonlocal since
        turns.recv()
        since = time.process_time(), time.perf_counter()

    def stop() -> None:
        times.append((time.process_time() - since[0], time.perf_counter() - since[1]))

    def pause(*_: object) -> None:
        stop()
        turns.send(None)
        wait()

    network.register_forward_pre_hook(pause)
    while steps := turns.recv():
        times.clear()
        wait()
        images = run(steps)
        stop()
        assert float(perturbation_norms(images, x)[options.norm].max()) <= eps * (1 + 1e-5)
        assert len(times) == steps + 1 + (name == "puregrid" and options.keep == "best")
        turns.send(list(times))


def attack(name: str, network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str, keep: str) -> Run:
    eps = BUDGETS[norm]
    size = eps / 4
    if name == "puregrid":
        omega = Omega.of("benchmark", 0, "attack", range(len(x)))
        config = PGDConfig.model_validate({"norm": norm, "eps": eps, "step_size": size, "keep": keep})

        def ours(steps: int) -> torch.Tensor:
            return config.model_copy(update={"steps": steps}).run(Target(network, y, omega), x, omega).images

        return ours
    if name == "torchattacks":
        kind = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
        return lambda steps: kind(network, eps=eps, alpha=size, steps=steps)(x, y)
    bounded = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    descent = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    # Its attack proper: a call of the attack itself also asks whether each image was misclassified.
    return lambda steps: descent(abs_stepsize=size, steps=steps, random_start=True).run(bounded, x, y, epsilon=eps)


def in_turns(turns: dict[str, Connection], order: list[str], steps: int) -> dict[str, Times]:
    """One run of each, step by step."""
    for name in order:
        turns[name].send(steps)
    found: dict[str, Times] = {}
    while len(found) < len(order):
        for name in order:
            if name not in found:
                turns[name].send("go")
                if times := turns[name].recv():
                    found[name] = times
    return found


def compare(turns: dict[str, Connection], steps: int, rounds: int) -> None:
    names = list(NAMES)
    found = []
    for i in range(rounds):
        shifted = names[i // 2 % 3 :] + names[: i // 2 % 3]
        found.append(in_turns(turns, shifted if i % 2 else shifted[::-1], steps))

    for name in names:
        whole, single, taken = [], [], []
        for kind in (0, 1):
            runs = [[[each[kind] for each in times[who]] for who in ("puregrid", name)] for times in found]
            taken.append(median(sum(theirs) for _, theirs in runs))
            whole.append(median(sum(ours) / sum(theirs) for ours, theirs in runs))
            single.append(median(ours[i] / theirs[i] for ours, theirs in runs for i in range(1, steps + 1)))
        line = f"  {steps:3d} steps  {name:13s} {taken[0]:7.3f} s cpu {taken[1]:7.3f} s wall   "
        if name == "puregrid":
            step = median(times[name][i][0] for times in found for i in range(1, steps + 1))
            start, last = (median(times[name][i][0] for times in found) / step for i in (0, -1))
            line += f"start {start:.2f} of a step"
            line += f", last evaluation {last:.2f}" if len(found[0][name]) > steps + 1 else ""
        else:
            line += "   ".join(f"{what} {a:.3f} / {b:.3f}" for what, (a, b) in (("all", whole), ("a step", single)))
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--weights", help="checkpoint of the network; random weights take the same time")
    parser.add_argument("--norm", choices=list(BUDGETS), default="linf")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--state", nargs="+", choices=["alike", "delivered"], default=["alike", "delivered"])
    parser.add_argument("--keep", choices=["last", "best"], default="last")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    print("Ratios are puregrid's seconds over the other's, cpu / wall.")
    for state in options.state:
        turns, processes = {}, []
        for name in NAMES:
            turns[name], its_end = spawn.Pipe()
            processes.append(spawn.Process(target=contender, args=(its_end, name, state, options), daemon=True))
            processes[-1].start()
            its_end.close()
        print(f"PGD {options.norm}, {options.network}, {options.images} images, one thread, {state}")
        in_turns(turns, list(NAMES), 2)  # warms up
        for steps in options.steps:
            compare(turns, steps, options.rounds)
        for name, process in zip(NAMES, processes, strict=True):
            turns[name].send(0)
            process.join()


if __name__ == "__main__":
    main()
