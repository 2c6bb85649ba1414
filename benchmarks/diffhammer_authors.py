"""DiffHammer beside its authors' algorithm, at equal gradient evaluations and on the same defence.

    python benchmarks/diffhammer_authors.py small|digits|cifar10 [--first 0] [--images 160] [--steps 15] [--eot 10]
        [--draws 20] [--ours FIELD=VALUE ...]

The authors' code (github.com/Ka1b0/DiffHammer, commit 1010822) runs on CUDA alone, with its own purifiers. Here its
attack is stated again from what it does, on puregrid's purifiers, networks and draws, with its default settings:

* l_inf, uniform start in the ball; losses of the restarts margin, cross-entropy, DLR; an image is attacked again in
  the next restart if at most half of the draws of any iterate were fooled;
* each iterate is evaluated on N fresh draws after its step, with the gradients at the purified images; from these the
  weights ``sigmoid(5 (L_i + sign(r) . g_i))``, with r the gradient of the draw that
  ``sum_i elu(L_i + eps sign(g_a) . g_i)`` chooses; the weighted mean goes back through that one draw;
* the mean over steps has the weights ``(t + 1)^-0.5`` for the new gradient;
* Auto-PGD with its checkpoints; its momentum pulls away from the start, not from the last iterate; at every
  checkpoint all images go back to their best, and the step is halved by the largest loss over the draws;
* the best iterate is that of highest mean loss over its draws, or the first that fools a draw.

In two points this is kinder to them. Their figure is the largest share of fooled draws of any iterate, on the draws
that chose it; here the image of that share is judged (they store the last restart's). And the best loss is that of a
restart: theirs goes on, so that a DLR never exceeds a cross-entropy and the last restart goes back to its start.

One iterate costs N forward passes and one gradient, N / 3 + 1 gradient evaluations, in both. Ours is grafted too, and
has as many steps a restart with its defaults and with `--ours`, but with `keep=highest-loss`, where all images take
part in all restarts, as many as cost no less than theirs did. Costs are counted. All are judged on the same draws,
which none has seen; the difference is paired, with its standard error over images.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from strength import Laboratory
from torch import Tensor
from torch.nn.functional import elu

from defense import Omega
from defense.gradients import GradientMode
from tasks.attacks import DiffHammerConfig, Target
from tasks.attacks.losses import LossName, PointLoss, point_loss
from tasks.attacks.region import Region
from tasks.attacks.target import PerDraw
from workflows.statistics.proportions import worst_of

LOSSES: tuple[LossName, ...] = ("margin", "ce", "dlr")
LAMBDA, POWER, RHO = 5.0, 0.5, 0.75
SHARES = (0, 0.22, 0.41, 0.57, 0.7, 0.8, 0.87, 0.93)


@dataclass
class Counted(Target):
    """A target that counts the ways back through the purifier, by image."""

    pulled: Counter[int] = field(default_factory=Counter)

    def pull_back(self, x: Tensor, draws: Tensor, cotangent: Tensor) -> Tensor:
        """See :class:`Target`."""
        self.pulled.update(self.omega.image_ids)
        return super().pull_back(x, draws, cotangent)


def authors(target: Target, x: Tensor, eps: float, steps: int, omega: Omega) -> Tensor:
    """Return the images of the authors' attack."""
    region = Region(x, "linf", eps)
    returned, share = x.clone(), torch.full((len(x),), -1.0)
    for restart, name in enumerate(LOSSES):
        left = (share <= 0.5).nonzero().flatten()
        if not len(left):
            break
        part = Region(x[left], "linf", eps)
        start = region.random_start(omega, restart)[left]
        images, fooled = _restart(target.select(left), part, start, point_loss(name), steps)
        better = fooled > share[left]
        returned[left] = torch.where(better.view(-1, 1, 1, 1), images, returned[left])
        share[left] = torch.maximum(share[left], fooled)
    return returned


def _restart(target: Target, region: Region, start: Tensor, loss: PointLoss, steps: int) -> tuple[Tensor, Tensor]:
    """Return the image that fooled most draws, and their share."""
    at = target.per_draw(start, loss, through=False)
    weighted, chosen = _selected(at, region.eps)
    current = best = kept = start
    best_loss, any_fooled = at.losses.mean(1), _fooled(at, target) > 0
    most, loss_kept = _fooled(at, target), at.losses.mean(1)
    size = torch.full((len(start), 1, 1, 1), 2 * region.eps)
    last_size, before = size.clone(), None
    peaks = [at.losses.amax(1)]
    stops = sorted({int(share * steps) for share in SHARES})
    for step in range(steps):
        gradient = target.pull_back(current, at.first + chosen, weighted)
        if before is not None:
            share = (step + 1) ** -POWER
            gradient = share * gradient + (1 - share) * before
        before = gradient
        aimed = (current + size * gradient.sign()).clamp(region.lower, region.upper)
        forward = 0.75 if step else 1.0
        moved = current + forward * (aimed - current) + (1 - forward) * (current - start)
        current = region.project(moved)
        at = target.per_draw(current, loss, through=False)
        fooled, mean = _fooled(at, target), at.losses.mean(1)
        better = (mean > best_loss) | (~any_fooled & (fooled > 0))
        best, best_loss = torch.where(better.view(-1, 1, 1, 1), current, best), torch.maximum(best_loss, mean)
        any_fooled = any_fooled | (fooled > 0)
        better = (fooled > most) | ((fooled == most) & (mean > loss_kept))
        kept, most = torch.where(better.view(-1, 1, 1, 1), current, kept), torch.maximum(most, fooled)
        loss_kept = torch.where(better, mean, loss_kept)
        weighted, chosen = _selected(at, region.eps)
        peaks.append(at.losses.amax(1))
        if step + 1 in stops and stops.index(step + 1):
            last = stops[stops.index(step + 1) - 1]
            risen = torch.stack([peaks[k + 1] > peaks[k] for k in range(last, step + 1)]).sum(0)
            stalled = risen < RHO * (step + 1 - last)
            same = (size == last_size).flatten() & (peaks[step + 1] == peaks[last])
            last_size = size
            size = torch.where((stalled | same).view(-1, 1, 1, 1), size / 2, size)
            current = best
    return kept, most


def _fooled(at: PerDraw, target: Target) -> Tensor:
    return (at.logits.argmax(2) != target.labels[:, None]).float().mean(1)


def _selected(at: PerDraw, eps: float) -> tuple[Tensor, Tensor]:
    """Weighted gradient at the purified images, and the draw through which it goes back."""
    flat = at.gradients.flatten(2)  # (B, K, d)
    gains = torch.einsum("bad,bkd->bak", flat.sign(), flat)
    chosen = elu(at.losses.unsqueeze(1) + eps * gains).sum(2).argmax(1)
    picked = torch.arange(len(flat))
    weights = torch.sigmoid(LAMBDA * (at.losses + gains[picked, chosen]))
    # Where no draw has any weight left the quotient would be NaN there.
    mean = (weights.unsqueeze(2) * flat).sum(1) / weights.sum(1, keepdim=True).clamp_min(1e-30)
    return mean.view_as(at.gradients[:, 0]), chosen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("defence", choices=("small", "digits", "cifar10"))
    for name, default in {"first": 0, "images": 160, "steps": 15, "eot": 10, "draws": 20}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ours", nargs="*", default=[], help="fields of diffhammer, beside its defaults")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lab = Laboratory(options.defence, options.first, options.images)
    x, labels = lab.clean(), torch.from_numpy(lab.data.load().labels[list(lab.ids)]).long()
    purifier = lab.context.purifier(lab.purifier, lab.classifier)
    omega = Omega.of("diffhammer", 0, "attack", lab.ids)

    def target() -> Counted:
        own = omega.within("eot")
        return Counted(lab.network, labels, own, purifier, GradientMode("exact"), draws=options.eot, batch=64)

    own_fields = dict(entry.split("=", 1) for entry in options.ours)
    fields = {name: _value(value) for name, value in own_fields.items()}
    began = time.process_time()
    theirs_target = target()
    theirs = authors(theirs_target, x, lab.eps, options.steps, omega)
    cost = _cost(theirs_target)
    right = lab.judge(theirs, options.draws)
    print("| attack | cost | Avg | Wor-20 | Avg more than the authors' | seconds |\n|:-|-:|-:|-:|-:|-:|")

    def show(name: str, images: Tensor, cost: float) -> None:
        found = lab.judge(images, options.draws)
        apart = found.mean(1) - right.mean(1)
        error = 100 * np.std(apart, ddof=1) / len(apart) ** 0.5
        worst = 100 * worst_of(found, min(options.draws, 20)).mean()
        print(
            f"| {name} | {cost:.0f} | {100 * found.mean():.1f} | {worst:.1f} | "
            f"{100 * apart.mean():+.1f} +- {error:.1f} | {time.process_time() - began:.0f} |",
            flush=True,
        )

    show("authors", theirs, cost)
    shared = {"norm": "linf", "eps": lab.eps, "gradient": "exact", "eot": options.eot, "graft": True}
    one = options.eot / 3 + 1
    # Three restarts of n steps: n ways back and n + 1 looks each, and one more look each to compare them.
    enough = math.ceil((cost / 3 - 2 * options.eot / 3) / one)
    contenders: list[tuple[str, dict[str, object]]] = [("puregrid, defaults and graft", {"steps": options.steps})]
    if fields:
        steps = max(enough, 1) if fields.get("keep") == "highest-loss" else options.steps
        contenders.append((f"puregrid, graft and {' '.join(options.ours)}", {"steps": steps, **fields}))
    for name, more in contenders:
        began, ours_target = time.process_time(), target()
        config = DiffHammerConfig.model_validate({"attack": "diffhammer", **shared, **more})
        images = config.run(ours_target, x, omega).images
        show(name, images, _cost(ours_target))


def _value(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, tuple(text.split(",")) if "," in text else text)


def _cost(target: Counted) -> float:
    """Gradient evaluations an image: a third for each draw that was evaluated, two more for each way back."""
    ids = target.omega.image_ids
    return float(np.mean([target.tally.evaluations[image] / 3 + target.pulled[image] * 2 / 3 for image in ids]))


if __name__ == "__main__":
    main()
