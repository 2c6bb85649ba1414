"""Sweeps from text, for tests of cells and plans."""

from __future__ import annotations

from pathlib import Path

from tasks.attacks import AttackConfig
from workflows.grid.load import Cell, Sweep, load_sweep
from workflows.planning.plan import Plan

ASSETS = Path(__file__).parents[2] / "defense" / "assets"
DENOISERS = f"denoisers: {{ddpm: {{path: {ASSETS / 'digits-ddpm'}, schedule: linear-1000}}}}\n"
SMALL = """\
sweep: small
datasets: [{dataset: digits, images: {first: 4}}]
classifiers: [digits-cnn]
defences: [none]
chunk: 2
"""
DIFFPURE = "{purifier: diffpure, denoiser: ddpm, schedule: linear-1000, t_star: 20, steps: 2}"


def swept(folder: Path, text: str, *overrides: str) -> Sweep:
    path = folder / "s.yaml"
    path.write_text(text)
    return load_sweep(path, overrides)


def attack_of(cell: Cell) -> AttackConfig:
    assert cell.attack is not None
    return cell.attack


def ids_of(sweep: Sweep) -> list[tuple[int, ...]]:
    return [chunk.ids for chunk in sweep.cells[0].images.chunks]


def budgets(sweep: Sweep) -> list[float]:
    return [0.0 if cell.attack is None else cell.attack.eps for cell in sweep.cells]


def kinds(plan: Plan) -> dict[str, int]:
    kinds = [stage.spec.stage for stage in plan.stages]
    return {kind: kinds.count(kind) for kind in set(kinds)}
