"""Robust accuracy of our attacks and of the reference implementations, on real images and weights, image by image.

Equal settings on both sides: l_inf, a random start, 20 steps for PGD with a step of eps / 4, 100 for APGD, cross
entropy. Random starts are not the same, so the counts of images that only one side breaks are compared by McNemar's
exact test. AutoAttack is the reference itself: called directly with the same seed it must give the same images, once
these are projected on the ball, which they leave by a rounding here and there.

    PUREGRID_DATA=DATA python benchmarks/reference_agreement.py --weights FOLDER [--classifier resnet20 resnet4b]
        [--images 500] [--first 0] [--eps 0.25 2 8] [--attacks pgd apgd autoattack] [--batch 100] [--threads 1]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import foolbox
import torch
import torchattacks
from torch import Tensor, nn

from defense import ClassifierConfig, Omega
from tasks.attacks import APGDConfig, AutoAttackConfig, PGDConfig, Target
from tasks.attacks.autoattack import reference_seed
from tasks.attacks.region import Region
from tasks.datasets import Cifar10Config
from workflows.statistics.exact_tests import mcnemar

FILES = {"resnet20": "resnet20-*.th", "resnet4b": "resnet4b_*.pth", "cnn-a": "cnn_a_*.pth"}
BUDGETS = {"resnet20": (0.25, 0.5, 8.0), "resnet4b": (2.0, 8.0), "cnn-a": (2.0, 8.0)}
ATTACKS = ("pgd", "apgd", "autoattack")

Attack = Callable[[nn.Module, Tensor, Tensor, float, int], Tensor]
"""``attack(network, x, y, eps, first image id)``: adversarial images."""


def classifier(name: str, folder: Path) -> nn.Module:
    """A public CIFAR-10 network from a folder of checkpoints; channels last, a tenth faster on a CPU."""
    (file,) = sorted(folder.glob(FILES[name]))
    network = ClassifierConfig(classifier=name, weights=str(file)).resolved(folder).build()
    return network.to(memory_format=torch.channels_last)


def _ours(kind: type[PGDConfig] | type[APGDConfig] | type[AutoAttackConfig], **fields: object) -> Attack:
    def run(network: nn.Module, x: Tensor, y: Tensor, eps: float, first: int) -> Tensor:
        step = {"step_size": eps / 4} if kind is PGDConfig else {}
        attack = kind.model_validate({"norm": "linf", "eps": eps, **fields, **step})
        omega = Omega.of(attack.id, 0, "attack", range(first, first + len(x)))
        return attack.run(Target(network, y, omega), x, omega).images

    return run


def _torchattacks(kind: str) -> Attack:
    def run(network: nn.Module, x: Tensor, y: Tensor, eps: float, first: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(first)
            if kind == "apgd":
                images: Tensor = torchattacks.APGD(network, eps=eps, steps=100, seed=first)(x, y)
            else:
                images = torchattacks.PGD(network, eps=eps, alpha=eps / 4, steps=20)(x, y)
        return images

    return run


def _foolbox(network: nn.Module, x: Tensor, y: Tensor, eps: float, first: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(first)
        attack = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=20, random_start=True)
        images: Tensor = attack.run(foolbox.PyTorchModel(network, (0, 1), device="cpu"), x, y, epsilon=eps)
    return images


def _pyautoattack(network: nn.Module, x: Tensor, y: Tensor, eps: float, first: int) -> Tensor:
    from pyautoattack import AutoAttack

    attack = AutoAttackConfig(norm="linf", eps=eps)
    seed = reference_seed(Omega.of(attack.id, 0, "attack", range(first, first + len(x))))
    with torch.random.fork_rng(devices=[]):
        reference = AutoAttack(network, norm="Linf", eps=eps, version="standard", seed=seed, device=x.device)
        images, _ = reference.run_standard_evaluation(x, y, batch_size=len(x))
    # As ours are: the package's own images lie outside the ball by a rounding here and there.
    return Region(x, "linf", eps).project(images)


OURS: dict[str, Attack] = {
    "pgd": _ours(PGDConfig, steps=20),
    "apgd": _ours(APGDConfig, steps=100),
    "autoattack": _ours(AutoAttackConfig),
}
REFERENCES: dict[str, dict[str, Attack]] = {
    "pgd": {"torchattacks": _torchattacks("pgd"), "foolbox": _foolbox},
    "apgd": {"torchattacks": _torchattacks("apgd")},
    "autoattack": {"pyautoattack": _pyautoattack},
}


@dataclass(frozen=True)
class Outcome:
    """What an attack left of a network.

    Arguments:
        right: Whether each image is still classified right, shape (N,).
        images: Adversarial images, shape (N, C, H, W).
        seconds: Wall-clock time.
    """

    right: Tensor
    images: Tensor
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of images still right."""
        return float(self.right.double().mean())


def attacked(
    attack: Attack, network: nn.Module, x: Tensor, y: Tensor, eps: float, batch: int = 100, first: int = 0
) -> Outcome:
    """Run an attack batch by batch and judge it by the network, one forward pass for either side; ``first`` is the id
    of the first image."""
    start = time.perf_counter()
    parts = [attack(network, x[i : i + batch], y[i : i + batch], eps, first + i) for i in range(0, len(x), batch)]
    seconds = time.perf_counter() - start
    with torch.no_grad():
        right = [network(part).argmax(1) == y[i * batch : (i + 1) * batch] for i, part in enumerate(parts)]
    return Outcome(torch.cat(right), torch.cat(parts), seconds)


def rows(options: argparse.Namespace) -> Iterator[str]:
    """Lines of the markdown table."""
    yield "| classifier | eps*255 | attack | reference | ours | reference | right under one alone | p |"
    yield "|---|---|---|---|---|---|---|---|"
    data = Cifar10Config(root=os.environ["PUREGRID_DATA"]).read()
    chosen = slice(options.first, options.first + options.images)
    x, y = torch.from_numpy(data.images[chosen]), torch.from_numpy(data.labels[chosen])
    for name in options.classifier:
        network = classifier(name, Path(options.weights))
        for eps in options.eps or BUDGETS[name]:
            for attack in options.attacks:
                ours = attacked(OURS[attack], network, x, y, eps / 255, options.batch, options.first)
                for reference, run in REFERENCES[attack].items():
                    other = attacked(run, network, x, y, eps / 255, options.batch, options.first)
                    only_ours, only_other, p = mcnemar(ours.right.numpy(), other.right.numpy())
                    same = ", same images" if torch.equal(ours.images, other.images) else ""
                    yield (
                        f"| {name} | {eps:g} | {attack} | {reference}{same} | {100 * ours.accuracy:.1f} "
                        f"({ours.seconds:.0f} s) | {100 * other.accuracy:.1f} ({other.seconds:.0f} s) | "
                        f"{only_ours} / {only_other} | {p:.3f} |"
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=os.environ.get("PUREGRID_WEIGHTS"), help="folder [$PUREGRID_WEIGHTS]")
    parser.add_argument("--classifier", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="id of the first image: long runs in parts")
    parser.add_argument("--eps", type=float, nargs="+", help="in 1/255; by default those that tell of the network")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if not options.weights or "PUREGRID_DATA" not in os.environ:
        parser.error("give --weights FOLDER and set PUREGRID_DATA to the folder that holds cifar-10-batches-py")
    torch.set_num_threads(options.threads)
    for row in rows(options):
        print(row, flush=True)


if __name__ == "__main__":
    main()
