"""Measure ``workflows/planning/shipped_costs.json``, by which a plan of a fresh store is estimated.

Needs CIFAR-10 and the public checkpoints (``PUREGRID_DATA``, ``PUREGRID_WEIGHTS``). Times are of the processor, so
that other programs on the machine hardly count; run it with ``OMP_NUM_THREADS=1``.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time

from defense.errors import StoreError
from workflows.assets.bundled import find_sweep
from workflows.engine.worker import UnitWorker
from workflows.grid.load import load_sweep
from workflows.planning.plan import make_plan
from workflows.planning.shipped import group, shipped_file, speed

SMALL = ("compute.precision=fp32",)
LADDER = (
    *("resubmissions=2", "datasets.0.images.first=8", "chunk=4"),
    "defences=[{purifier: diffpure, denoiser: %s, schedule: linear-1000, t_star: 50, steps: 5, draws: 2}]",
    "attacks=[none, {attack: pgd, norm: linf, eps: 0.1, steps: 2}, {attack: pgd, norm: linf, eps: 0.1, steps: 2, "
    "gradient: [bpda, surrogate(2), exact]}, {attack: ladder, norm: linf, eps: 0.1, rungs: [blind, bpda], steps: 2}]",
)
SWEEPS = {
    "digits-ladder": tuple(s.replace("%s", "digits-ddpm").replace("=8", "=100").replace("=4", "=50") for s in LADDER),
    "digits-defences": ("datasets.0.images.first=200", "chunk=100"),
    "digits-certificates": ("datasets.0.images.first=4", "chunk=2", "certificates.0.n=100", "compute.batch=50"),
    "digits-corruptions": ("datasets.0.images.first=20", "chunk=10"),
    "cifar10-clean": ("datasets.0.images={first: 100}", "chunk=50"),
    "cifar10-order": ("datasets.0.images.first=20", "chunk=10"),
    "cifar10-ladder": tuple(setting.replace("%s", "ddpm-small") for setting in LADDER),
}
MOST = 3
"""Stages of one kind that are measured."""


def measured(name: str, settings: tuple[str, ...], folder: str) -> dict[tuple[str, str, str], list[float]]:
    """Return processor seconds of an image and evaluation, by computation, network, and the network's name."""
    plan, worker = make_plan(load_sweep(find_sweep(name), [*SMALL, *settings])), UnitWorker(folder, "cpu")
    found: dict[tuple[str, str, str], list[float]] = {}
    for stage in plan.stages:
        kind = stage.spec.kind
        what = group(kind)
        expensive = kind.threat.startswith(("autoattack", "square", "apgd", "fgsm"))
        expensive |= name == "digits-defences" and kind.defence != "none"
        key = (what, kind.model, kind.name.rpartition(" ")[2])
        if expensive or len(found.get(key, ())) >= MOST:
            continue
        inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
        for chunk in stage.chunks[:2]:  # the first one loads and warms up
            began = time.process_time()
            try:
                worker.run(stage.spec, stage.id, chunk, inputs)
            except StoreError:  # what it reads was left out
                break
            spent = time.process_time() - began
        else:
            work = len(chunk.ids) * (stage.spec.work_per_image() or 1.0)
            found.setdefault(key, []).append(spent / work)
    return found


def main() -> None:
    """Measure, and write the file."""
    reference = [speed(3)]
    rates: dict[tuple[str, str, str], list[float]] = {}
    for name, settings in SWEEPS.items():
        with tempfile.TemporaryDirectory() as folder:
            for key, values in measured(name, settings, folder).items():
                rates.setdefault(key, []).extend(values)
        reference.append(speed(3))
        print(name, flush=True)
    middle = {key: statistics.median(values) for key, values in rates.items()}
    names = {model: name for _, model, name in middle}
    networks = {model: value for (what, model, _), value in middle.items() if what == "evaluate" and model}
    factors: dict[str, list[float]] = {}
    for (what, model, _), value in middle.items():
        if model in networks:
            factors.setdefault(what, []).append(value / networks[model])
    content = {
        "machine": f"{platform.machine()}, one thread",
        "reference_seconds": _short(statistics.median(reference)),
        "networks": {m: {"name": names[m], "seconds": _short(v)} for m, v in sorted(networks.items())},
        "factors": {what: round(statistics.geometric_mean(values), 2) for what, values in sorted(factors.items())},
        "images": {what: _short(value) for (what, model, _), value in middle.items() if not model},
    }
    shipped_file().write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def _short(seconds: float) -> float:
    return float(f"{seconds:.4g}")


if __name__ == "__main__":
    main()
