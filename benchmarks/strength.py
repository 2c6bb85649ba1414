"""How strong the attacks are at equal cost: what each leaves of a defence, and what `strongest` leaves.

    python benchmarks/strength.py small|digits|cifar10|jpeg|bit-depth|median|squeezing [--first 0] [--images 64]
        [--steps 8] [--eot 5] [--select 10] [--queries 20] [--draws 40] [--only NAME ...] [--reverse 2]
        [--at-least COST] [--cache FOLDER [--part 16]]

`strongest` is run first, with `--steps`, `--eot`, `--select` and `--queries`; each other attack then has as many
steps as cost no less than it did, or than `--at-least` says. Cost is counted, not computed: every draw that the
classifier answers, in gradient evaluations, that is 1 with a gradient and 1/3 without; the selections of `strongest`
and of ladders are in it. All attacks are stages of a cell, as in a sweep, and all are judged on the same draws, those
of the judgement.

`small` is noise of 0.2 and half of a 3 x 3 binomial blur in front of the digits network, l_inf 0.06; `digits` is
DiffPure at t* = 100 in 2 steps with the shipped denoiser, 0.15; `cifar10` is DiffPure at t* = 50 in 2 steps in front
of ResNet-20, 4/255 (needs PUREGRID_DATA and PUREGRID_WEIGHTS); `--reverse` is another number of steps. `jpeg`
(quality 50), `bit-depth` (2 bits), `median` (3 x 3) and `squeezing` (both) round or sort in front of the digits
network, 0.1: rungs follow the identity, what autograd gives, and the soft approximation. Nothing is random there:
give `--eot 1 --select 1 --draws 1`.

`Avg` is the mean over draws, `Wor-20` the share of images that are right on all of 20 draws (the mean over all
choices of 20), or on all draws where there are fewer; the last columns are the paired difference to `strongest`, with
its standard error over images.

With `--cache`, the images of every attack are kept, `--part` images a file, and are not computed again: a run that
was ended goes on there. The files know the settings and not the code; after a change of an attack, delete them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from defense import ClassifierConfig, DiffPureConfig, DiffusersConfig, Omega, Purifier
from defense.models import Models
from defense.purifiers import BitDepthConfig, JPEGConfig, MedianConfig, PurifierConfig, SequenceConfig
from tasks.attacks import ATTACKS, AttackConfig, Target
from tasks.compute import Compute, Context
from tasks.datasets import DATASETS, DatasetConfig
from tasks.stages import AttackStage, Chunk, Output, images_from_table
from workflows.grid.cells import Cell, Defence, Images
from workflows.statistics.proportions import worst_of

ASSETS = Path(__file__).parents[1] / "defense" / "assets"


class Small(Purifier):
    """Noise of standard deviation 0.2, then half of a binomial blur."""

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        noised = x + 0.2 * omega.normal("forward", 0, x)
        row = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
        blurred = conv2d(pad(noised, (1, 1, 1, 1), mode="replicate"), (row[:, None] * row)[None, None])
        return (noised + blurred) / 2


class SmallConfig(PurifierConfig):
    """See :class:`Small`."""

    purifier: Literal["small"] = "small"

    def label(self) -> str:
        return "small"

    def build(self, models: Models | None = None) -> Small:
        return Small()


ROUNDING: dict[str, PurifierConfig] = {
    "jpeg": JPEGConfig(quality=50),
    "bit-depth": BitDepthConfig(bits=2),
    "median": MedianConfig(size=3),
    "squeezing": SequenceConfig(stages=(BitDepthConfig(bits=2), MedianConfig(size=3))),
}


def parts(name: str, reverse: int = 2) -> tuple[DatasetConfig, ClassifierConfig, PurifierConfig, float, list[str]]:
    """Data set, classifier, purifier, eps, and the gradient modes of the rungs."""
    if name == "cifar10":
        weights = Path(os.environ["PUREGRID_WEIGHTS"])
        data = DATASETS.get("cifar10").model_validate({"dataset": "cifar10"}).resolved(Path.cwd())
        classifier = ClassifierConfig(classifier="resnet20", weights=str(weights / "resnet20-12fca82f.th"))
        eps, t_star, folder = 4 / 255, 50, weights / "ddpm-cifar10-small"
    else:
        data = DATASETS.get("digits").model_validate({"dataset": "digits"})
        classifier, folder = ClassifierConfig(classifier="digits-cnn"), ASSETS / "digits-ddpm"
        eps, t_star = 0.15, 100
    classifier = classifier.resolved(Path.cwd())
    if name == "small":
        return data, classifier, SmallConfig(), 0.06, ["bpda", "exact"]
    if name in ROUNDING:
        return data, classifier, ROUNDING[name], 0.1, ["bpda", "exact", "soft"]
    denoiser = DiffusersConfig(format="diffusers", path=str(folder), schedule="linear-1000").resolved(Path.cwd())
    purifier = DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=t_star, steps=reverse)
    return data, classifier, purifier, eps, ["bpda", "surrogate(1)", "exact"]


class Laboratory:
    """Runs attacks on one defence and counts what they ask of it."""

    def __init__(
        self, name: str, first: int, count: int, reverse: int = 2, cache: Path | None = None, part: int = 16
    ) -> None:
        self.name, self.reverse, self.cache, self.part = name, reverse, cache, part
        self.data, self.classifier, self.purifier, self.eps, self.modes = parts(name, reverse)
        self.ids = tuple(range(first, first + count))
        self.context = Context()
        self.forward = self.gradients = 0
        self.done: dict[str, Output] = {}
        self.network = self.context.classifier(self.classifier)
        self.network.register_forward_hook(self._count)

    def _count(self, module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.is_grad_enabled():
            self.gradients += len(inputs[0])
        else:
            self.forward += len(inputs[0])

    def attack(self, fields: dict[str, Any]) -> tuple[Tensor, float]:
        """Images of an attack, and its cost an image in gradient evaluations."""
        config: AttackConfig = ATTACKS.get(fields["attack"]).model_validate(
            {"norm": "linf", "eps": self.eps, **fields}
        )
        if self.cache is None:
            return self._attacked(config, self.ids)
        found, costs = [], []
        for begin in range(0, len(self.ids), self.part):
            ids = self.ids[begin : begin + self.part]
            known = [self.name, self.reverse, config.model_dump(mode="json"), ids]
            file = self.cache / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:20]}.npz"
            if file.exists():
                kept = np.load(file)
                images, cost = torch.from_numpy(kept["images"]), float(kept["cost"])
            else:
                images, cost = self._attacked(config, ids)
                self.cache.mkdir(parents=True, exist_ok=True)
                np.savez(file, images=images.numpy(), cost=cost)
            found.append(images)
            costs.append(cost * len(ids))
        return torch.cat(found), sum(costs) / len(self.ids)

    def _attacked(self, config: AttackConfig, ids: tuple[int, ...]) -> tuple[Tensor, float]:
        images = Images(self.data, (Chunk(ids),))
        cell = Cell(images, self.classifier, Defence(self.purifier, 2, "single"), config, 0, Compute(batch=64))
        self.forward, self.gradients, self.done = 0, 0, {}
        stage = cell.attack_stage
        assert stage is not None
        table = self._computed(stage, ids).images
        assert table is not None
        cost = (self.gradients + self.forward / 3) / len(ids)
        return torch.from_numpy(images_from_table(table, ids)), cost

    def _computed(self, stage: AttackStage, ids: tuple[int, ...]) -> Output:
        if stage.id not in self.done:
            inputs = {}
            for role, source in stage.inputs().items():
                assert isinstance(source, AttackStage)
                output = self._computed(source, ids)
                table = output.images
                assert table is not None
                for column in output.rows.column_names:
                    if column not in table.column_names:
                        table = table.append_column(output.rows.schema.field(column), output.rows[column])
                inputs[role] = table
            with self.context.settings(stage.settings()):
                self.done[stage.id] = stage.run(Chunk(ids), inputs, self.context)
        return self.done[stage.id]

    def judge(self, x: Tensor, draws: int) -> npt.NDArray[np.bool_]:
        """Right answers on the draws of the judgement, shape (images, draws)."""
        labels = torch.from_numpy(self.data.load().labels[list(self.ids)]).long()
        omega = Omega.of(self.purifier.id, 0, "judge", self.ids)
        purifier = self.context.purifier(self.purifier, self.classifier)
        target = Target(self.network, labels, omega, purifier, draws=draws, fixed=True, batch=256)
        with torch.no_grad():
            right: npt.NDArray[np.bool_] = (target.logits(x).argmax(2) == labels[:, None]).numpy()
        return right

    def clean(self) -> Tensor:
        """The images."""
        return torch.from_numpy(self.data.load().images[list(self.ids)]).float()


def contenders(work: float, eot: int, select: int, queries: int, modes: list[str]) -> dict[str, dict[str, Any]]:
    """The other attacks, each with so many steps that it costs at least ``work`` gradient evaluations."""
    exact = {"gradient": "exact", "eot": eot}

    def steps(runs: int, looks: float, other: float = 0.0) -> int:
        """Steps n with ``runs eot (n + looks) + other >= work``."""
        return max(math.ceil((work - other) / (runs * eot) - looks), 1)

    selected, asked = (len(modes) + 1) * select / 3, queries * eot / 3
    one = steps(1, 1 / 3)
    rungs = ["blind", *modes]
    return {
        "pgd": {"attack": "pgd", "steps": one, **exact},
        "pgd margin": {"attack": "pgd", "loss": "margin", "steps": one, **exact},
        "pgd bpda": {"attack": "pgd", "steps": one, "gradient": "bpda", "eot": eot},
        **({"pgd soft": {"attack": "pgd", "steps": one, "gradient": "soft", "eot": eot}} if "soft" in modes else {}),
        "apgd": {"attack": "apgd", "steps": one, **exact},
        "apgd dlr": {"attack": "apgd", "loss": "dlr", "steps": one, **exact},
        "diffhammer": {"attack": "diffhammer", "steps": steps(3, 2 / 3), **exact},
        "square": {"attack": "square", "queries": math.ceil(3 * work / eot), "knows": "purifier", "eot": eot},
        "ladder": {
            "attack": "ladder",
            "rungs": rungs,
            "steps": steps(len(modes), 1 / 3, selected),
            "eot": eot,
            "select": select,
        },
        "ladder, black-box too": {
            "attack": "ladder",
            "rungs": [*rungs, "black-box"],
            "steps": steps(len(modes), 1 / 3, selected + asked + select / 3),
            "eot": eot,
            "select": select,
            "queries": queries,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("defence", choices=("small", "digits", "cifar10", *ROUNDING))
    for name, default in {
        "first": 0,
        "images": 64,
        "steps": 8,
        "eot": 5,
        "select": 10,
        "queries": 20,
        "draws": 40,
        "reverse": 2,
        "part": 16,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs="*", help="names of attacks")
    parser.add_argument("--at-least", type=float, help="cost of the other attacks")
    parser.add_argument("--cache", type=Path, help="folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lab = Laboratory(options.defence, options.first, options.images, options.reverse, options.cache, options.part)
    shared = {"eot": options.eot, "select": options.select, "queries": options.queries}
    rungs = ["blind", *lab.modes, "black-box", "diffhammer", "refine"]
    rungs += ["refine(soft)"] if "soft" in lab.modes else []
    reference, work = lab.attack({"attack": "strongest", "rungs": rungs, "steps": options.steps, **shared})
    if options.at_least is not None and work > options.at_least:
        parser.error(f"strongest cost {work:.0f}, more than --at-least {options.at_least:.0f}")
    budget = work if options.at_least is None else options.at_least
    right = lab.judge(reference, options.draws)
    print("| attack | cost | Avg | Wor-20 | Avg more than strongest | Wor-20 more |\n|:-|-:|-:|-:|-:|-:|", flush=True)

    def show(name: str, cost: float, found: npt.NDArray[np.bool_]) -> None:
        worst, best_worst = (worst_of(answers, min(20, answers.shape[1])) for answers in (found, right))
        more = []
        for of, than in ((found.mean(1), right.mean(1)), (worst, best_worst)):
            apart = np.asarray(of - than, dtype=np.float64)
            more.append(f"{100 * apart.mean():+.1f} +- {100 * apart.std(ddof=1) / len(apart) ** 0.5:.1f}")
        figures = f"{100 * found.mean():.1f} | {100 * worst.mean():.1f} | {more[0]} | {more[1]}"
        print(f"| {name} | {cost:.0f} | {figures} |", flush=True)

    show("clean", 0, lab.judge(lab.clean(), options.draws))
    show("strongest", work, right)
    for name, fields in contenders(budget, options.eot, options.select, options.queries, lab.modes).items():
        if options.only and name not in options.only:
            continue
        began = time.process_time()
        images, cost = lab.attack(fields)
        show(name, cost, lab.judge(images, options.draws))
        print(f"<!-- {time.process_time() - began:.0f} s -->", flush=True)


if __name__ == "__main__":
    main()
