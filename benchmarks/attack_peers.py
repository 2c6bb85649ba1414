"""Attacks beside their authors' or a peer library's code: what each leaves of the same defended module.

Both sides attack one module, a purifier in front of the digits' CNN as ``defense.Defended``, with as many evaluations
and draws an evaluation (EOT), counted at the classifier. Final images of both are judged on the same fresh draws. The
difference is paired by image, with its standard error: ours is weaker where the difference is above two of these.

* ``spsa``: torchattacks' SPSA, the same steps, directions, delta and rate;
* ``cw-l2``: foolbox's Carlini-Wagner attack, the same searches and steps, and torchattacks' (one search), as many
  steps in all; images farther than eps do not count, and are shortened to it on both sides;
* ``stadv``: StAdv of the evaluation of DiffPure: ``--stadv`` is a folder with its ``stadv_eot``. Beyond the border it
  samples black, ours the nearest pixel; *edges* is theirs with the nearest pixel, which is the same threat;
* ``low-frequency``: the authors' LF of DiffBreak: ``--low-frequency`` is the file ``DiffBreak/attacks/lf.py``. Digits
  have no LPIPS: both sides take the root mean square of the difference for it. Theirs goes image by image, since it
  scales gradients over the batch, with ``kornia`` and ``pytorch_forecasting`` replaced by the two functions it needs.

Not compared: ``deviated-reconstruction``. The repository of its authors holds no code, and that of DiffBreak is
written into its own purification scheme, which cannot be taken from there to another module.

    python benchmarks/attack_peers.py [--attacks spsa cw-l2 stadv low-frequency] [--defences bit-depth noise diffpure]
        [--images 60] [--first 0] [--judge 20] [--stadv FOLDER] [--low-frequency FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defense import ClassifierConfig, Defended, DiffPureConfig, Omega
from defense.purifiers import BitDepthConfig, GaussianNoiseConfig, Purifier
from defense.torchvision_cpu import allow_torchvision_import
from puregrid import digits_denoiser
from tasks.attacks import CarliniWagnerConfig, LowFrequencyConfig, SPSAConfig, StAdvConfig, Target, low_frequency
from tasks.attacks.base import AttackConfig
from tasks.attacks.region import Region
from tasks.datasets import DigitsConfig

Attack = Callable[[Tensor, Tensor], Tensor]
"""Images and labels to adversarial images."""

STEPS = {"spsa": 20, "cw-l2": 100, "stadv": 100, "low-frequency": 100}
SAMPLES, SEARCHES = 32, 5
EPS = {"spsa": 0.15, "cw-l2": 0.5, "stadv": 0.05, "low-frequency": 0.1}
DRAWS = {"bit-depth": 1, "noise": 8, "diffpure": 4}


class Counting(nn.Module):
    """A classifier that counts its images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.seen += len(x)
        logits: Tensor = self.net(x)
        return logits


class Rms(nn.Module):
    """Root mean square of the difference of two images, shape (B,)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance."""
        return ((a - b).square().flatten(1).mean(1) + 1e-12).sqrt()


def purifier(name: str) -> Purifier:
    """Return the purifier of that name."""
    if name == "bit-depth":
        return BitDepthConfig(bits=2).build()
    if name == "noise":
        return GaussianNoiseConfig(sigma=0.15).build()
    denoiser = digits_denoiser()
    return DiffPureConfig(denoiser=denoiser, schedule=denoiser.schedule, t_star=100, steps=2).build()


def ours(attack: AttackConfig, part: Purifier, net: nn.Module, draws: int) -> Attack:
    """Return puregrid's attack on the mean of the draws' logits, as the peers see it."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        omega = Omega.of(attack.id, 0, "attack", range(len(x)))
        target = Target(net, y, omega, part, draws=draws, attacked="mean-logits")
        return attack.run(target, x, omega).images

    return run


def within(x: Tensor, images: Tensor, norm: str, eps: float) -> Tensor:
    """Shorten perturbations to the ball."""
    return Region(x, norm, eps).project(images)  # type: ignore[arg-type]


def peers(name: str, module: Defended, options: argparse.Namespace) -> dict[str, Attack]:
    """Return the peers of an attack, by name."""
    eps, steps = EPS[name], STEPS[name]
    if name == "spsa":
        import torchattacks

        attack = torchattacks.SPSA(module, eps=eps, nb_iter=steps, nb_sample=SAMPLES, max_batch_size=16)
        return {"torchattacks": lambda x, y: within(x, attack(x, y), "linf", eps)}
    if name == "cw-l2":
        import foolbox
        import torchattacks

        model = foolbox.PyTorchModel(module, (0, 1), device="cpu")
        searching = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=SEARCHES, steps=steps, stepsize=0.01, initial_const=1.0, abort_early=False
        )
        single = torchattacks.CW(module, c=10, steps=SEARCHES * steps, lr=0.01)
        return {
            "foolbox": lambda x, y: within(x, searching(model, x, y, epsilons=None)[0], "l2", eps),
            "torchattacks, c = 10": lambda x, y: within(x, single(x, y), "l2", eps),
        }
    if name == "stadv":
        allow_torchvision_import()
        sys.path.insert(0, str(options.stadv))
        sys.path.insert(0, str(options.stadv / "stadv_eot"))
        from stadv_eot.attacks import StAdvAttack  # type: ignore[import-not-found]

        warping = StAdvAttack(module, bound=eps, num_iterations=steps)

        def edges(x: Tensor, y: Tensor) -> Tensor:
            sample = F.grid_sample
            F.grid_sample = functools.partial(sample, padding_mode="border", align_corners=False)
            try:
                return warping(x, y).detach().clamp(0, 1)
            finally:
                F.grid_sample = sample

        black = "DiffPure's"
        return {black: lambda x, y: warping(x, y).detach().clamp(0, 1), f"{black}, edges": edges}
    return {"DiffBreak's": lambda x, y: torch.cat([_filtered(a, b, module, options) for a, b in _singly(x, y)])}


def _singly(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(1), y.split(1), strict=True))


def _filtered(x: Tensor, y: Tensor, module: Defended, options: argparse.Namespace) -> Tensor:
    file = _lf(options.low_frequency)
    attack = file.LF(
        _Model(module),
        {"class": "Rms"},
        EPS["low-frequency"],
        {"learning_rate": {"values": [0.05, 0.008]}, "grad_sgn": False},
        filter_args={"kernels": [[5, 5], [7, 7], [5, 5], [3, 3]]},
        max_iterations=STEPS["low-frequency"],
        initial_const=1e8,
    )
    images: Tensor = attack(x, y, y)[0]
    return images.clamp(0, 1)


class _Model(nn.Module):
    """What DiffBreak's attack asks of a model; it never stops early, and keeps the best iterate by its loss."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x)
        return logits

    def get_loss_fn(self) -> Callable[..., Tensor]:
        def margin(logits: Tensor, labels: Tensor) -> Tensor:
            own = logits.gather(1, labels.view(-1, 1)).squeeze(1)
            return own - logits.scatter(1, labels.view(-1, 1), -torch.inf).amax(1)

        return margin

    def set_y_orig(self, y: Tensor) -> None:
        """Nothing."""

    def eval_attack(self, x: Tensor, y: Tensor, targeted: bool = False) -> tuple[None, float, float]:
        return None, 0.0, 1.0


def _lf(path: Path) -> ModuleType:
    """Load the authors' file with the little that it imports."""
    if "peer.lf" in sys.modules:
        return sys.modules["peer.lf"]
    stubs: dict[str, Any] = {name: ModuleType(name) for name in ("peer", "peer.utils", "kornia", "kornia.filters")}
    stubs |= {name: ModuleType(name) for name in ("pytorch_forecasting", "pytorch_forecasting.utils")}

    def gaussian(kernel: tuple[int, int], sigma: Tensor) -> Tensor:
        sides = [torch.arange(side) - (side - 1) / 2 for side in kernel]
        rows, columns = (torch.exp(-(side**2) / (2 * width**2)) for side, width in zip(sides, sigma[0], strict=True))
        weights = torch.outer(rows / rows.sum(), columns / columns.sum())
        return weights.unsqueeze(0)

    class Loss(nn.Module):
        def __init__(self, classifier: nn.Module, loss: Callable[..., Tensor]) -> None:
            super().__init__()
            self.classifier, self.loss = classifier, loss

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return self.loss(self.classifier(x), labels)

    stubs["kornia.filters"].get_gaussian_kernel2d = gaussian
    stubs["kornia"].filters = stubs["kornia.filters"]
    stubs["pytorch_forecasting.utils"].unsqueeze_like = lambda a, like: a.view(-1, *[1] * (like.dim() - 1))
    stubs["peer.utils"].LossAndModelWrapper = Loss
    stubs["peer.utils"].Rms = Rms
    stubs["peer"].__path__ = []
    sys.modules.update(stubs)
    spec = importlib.util.spec_from_file_location("peer.lf", path)
    assert spec is not None and spec.loader is not None
    file = importlib.util.module_from_spec(spec)
    sys.modules["peer.lf"] = file
    spec.loader.exec_module(file)
    return file


def config(name: str) -> AttackConfig:
    """Return our attack with the settings of the comparison."""
    eps, steps = EPS[name], STEPS[name]
    if name == "spsa":
        return SPSAConfig(norm="linf", eps=eps, steps=steps, samples=SAMPLES)
    if name == "cw-l2":
        return CarliniWagnerConfig(
            norm="l2", eps=eps, steps=steps, binary_search_steps=SEARCHES, initial_c=1.0, abort_early=False
        )
    if name == "stadv":
        return StAdvConfig(eps=eps, steps=steps)
    low_frequency.network = lambda config: Rms()  # type: ignore[assignment]
    lpips: Any = {"net": "vgg", "sha256": "0" * 64}
    return LowFrequencyConfig.from_entry({"attack": name, "eps": eps, "steps": steps, "lpips": lpips})


def right(images: Tensor, y: Tensor, module: Defended, draws: int) -> Tensor:
    """Return the share of fresh draws on which each image is classified right, shape (B,)."""
    judge = Defended(module.purifier, module.classifier, draws=draws, role="judge")
    with torch.no_grad():
        answers = judge.per_draw(images, range(draws)).argmax(2)
    return (answers == y.unsqueeze(1)).double().mean(1)


def main() -> None:
    """Run and print one line for each attack, defence and peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attacks", nargs="+", default=["spsa", "cw-l2"], choices=STEPS)
    parser.add_argument("--defences", nargs="+", default=["bit-depth", "noise"], choices=DRAWS)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--judge", type=int, default=20)
    parser.add_argument("--stadv", type=Path)
    parser.add_argument("--low-frequency", type=Path)
    options = parser.parse_args()
    data = DigitsConfig().resolved(Path()).load()
    part = slice(options.first, options.first + options.images)
    x, y = torch.from_numpy(data.images[part]), torch.from_numpy(data.labels[part]).long()
    net = Counting(ClassifierConfig(classifier="digits-cnn").resolved(Path()).build())
    print(f"{len(x)} digits from {options.first}, judged on {options.judge} draws; accuracy in %, ours minus theirs")
    for name in options.attacks:
        for defence in options.defences:
            draws = DRAWS[defence]
            guard = purifier(defence)
            judges = options.judge if draws > 1 else 1
            module = Defended(guard, net, draws=draws)
            runs: dict[str, Attack] = {"puregrid": ours(config(name), guard, net, draws)}
            runs |= peers(name, module, options)
            left: dict[str, Tensor] = {}
            clean = right(x, y, module, judges)
            for who, run in runs.items():
                torch.manual_seed(0)
                net.seen, start = 0, time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()):  # theirs print as they go
                    images = run(x, y)
                spent, seconds = net.seen / len(x) / draws, time.perf_counter() - start
                left[who] = right(images.float(), y, module, judges)
                line = f"{name:14s} {defence:9s} {who:21s} {100 * left[who].mean():5.1f} of {100 * clean.mean():5.1f}"
                if who != "puregrid":
                    apart = left["puregrid"] - left[who]
                    error = float(apart.std() / len(apart) ** 0.5)
                    line += f"   difference {100 * apart.mean():+5.1f} +- {100 * error:.1f}"
                print(f"{line}   {spent:.0f} evaluations, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
