"""What a worker notes of held graphs, and that it gives freed memory back when it holds much."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_small import compute, small_sweep

from tasks.memory import HELD, PEAK
from workflows.engine import worker
from workflows.planning.plan import make_plan
from workflows.store import Store

TEXT = """
sweep: held
datasets: [{dataset: digits, images: {first: 20}}]
classifiers: [digits-cnn]
defences: [{purifier: diffpure, denoiser: digits-ddpm, schedule: linear-1000, t_star: 50, steps: 2, draws: 1}]
attacks: [{attack: pgd, norm: linf, eps: 0.1, steps: 3, gradient: exact}]
denoisers: {digits-ddpm: {format: diffusers, path: DDPM, schedule: linear-1000}}
"""
DDPM = Path(__file__).parents[2] / "defense" / "assets" / "digits-ddpm"


@pytest.mark.slow
@pytest.mark.parametrize("crowded", [True, False])
def test_a_unit_notes_its_held_graphs_and_gives_memory_back_where_that_is_scarce(
    crowded: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr(worker, "crowded", lambda: crowded)
    monkeypatch.setattr(worker, "give_back_freed_memory", lambda: given_back.append(True))
    sweep, store = small_sweep(tmp_path, TEXT.replace("DDPM", str(DDPM))), Store(str(tmp_path / "store"))
    compute(sweep, store.uri)
    plan = make_plan(sweep)
    assert len(given_back) == (plan.units if crowded else 0)
    held = {}
    for stage in plan.stages:
        held[stage.spec.stage] = store.committed(stage.spec.stage, stage.id, stage.chunks[0].name)
    attack, judged = held["attack"], held["evaluate"]
    assert attack is not None and judged is not None
    # Two steps of 20 images; the graph of one is needed anyway, and the judgement has none.
    assert 0 < attack.note(HELD) < attack.note(PEAK) and judged.note(HELD) == 0
