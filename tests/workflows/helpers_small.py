"""A small sweep of real digits, computed unit by unit in this process, without Ray."""

from __future__ import annotations

from pathlib import Path

from workflows.engine.worker import UnitWorker
from workflows.grid.load import Sweep, load_sweep
from workflows.planning.plan import make_plan
from workflows.tables.table import Table

ASSETS = Path(__file__).parents[2] / "defense" / "assets"

SMALL = f"""
sweep: small
datasets:
  - dataset: digits
    images: {{first: 20}}
classifiers: [digits-cnn]
denoisers:
  digits-ddpm:
    format: diffusers
    path: {ASSETS / "digits-ddpm"}
    schedule: linear-1000
defences:
  - none
  - purifier: diffpure
    denoiser: digits-ddpm
    schedule: linear-1000
    t_star: 10
    steps: 2
    clip_denoised: true
    draws: 2
attacks:
  - none
  - attack: pgd
    norm: linf
    eps: 0.1
    steps: 2
    step_size: 0.06
chunk: 8
"""

IDS = tuple(range(20))
CHUNKS = (IDS[:8], IDS[8:16], IDS[16:])


def small_sweep(folder: Path, text: str = SMALL) -> Sweep:
    """The sweep, from a file in ``folder``."""
    path = folder / "small.yaml"
    path.write_text(text)
    return load_sweep(path)


def undeclared(table: Table) -> set[str]:
    """Columns of a table's frame that are neither declared nor an end of a declared interval."""
    ends = {end for column in table.columns for end in column.interval or ()}
    return {*table.frame} - {column.name for column in table.columns} - ends


def compute(sweep: Sweep, uri: str, *, chunks: set[int] | None = None) -> None:
    """Compute and commit the units of a sweep, or those at some positions of the chunks."""
    worker, plan = UnitWorker(uri, "cpu"), make_plan(sweep)
    for stage in plan.stages:
        inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
        for position, chunk in enumerate(stage.chunks):
            if chunks is None or position in chunks:
                worker.run(stage.spec, stage.id, chunk, inputs)
