"""What a plan of a fresh store is estimated by."""

from __future__ import annotations

import json

import pytest

from tasks.stages.kind import Kind
from workflows.assets.bundled import find_sweep
from workflows.formats.plans import estimate
from workflows.grid.load import load_sweep
from workflows.planning import shipped
from workflows.planning.plan import make_plan
from workflows.planning.shipped import group, shipped_costs, shipped_file
from workflows.planning.summary import summarise
from workflows.store import Store

CONTENT = json.loads(shipped_file().read_text())


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is twice as slow as the reference."""
    monkeypatch.setattr(shipped, "speed", lambda: 2 * CONTENT["reference_seconds"])


@pytest.mark.parametrize(
    ("stage", "threat", "computation"),
    [
        ("evaluate", "", "evaluate"),
        ("corrupt", "fog", "corrupt"),
        ("attack", "pgd", "attack"),
        ("attack", "pgd exact", "attack exact"),
        ("attack", "apgd surrogate(3)", "attack surrogate"),
        ("attack", "ladder exact", "attack ladder"),
        ("attack", "pgd exact-no-guidance-path", "attack exact"),
    ],
)
def test_kinds_of_one_computation(stage: str, threat: str, computation: str) -> None:
    assert group(Kind(stage, threat, "diffpure", "m", "")) == computation
    assert computation in CONTENT["factors"] or stage in CONTENT["images"]


def test_a_cost_is_that_of_the_network_times_that_of_the_computation_times_the_machine(fast: None) -> None:
    model, network = next(iter(CONTENT["networks"].items()))
    known = Kind("attack", "pgd bpda", "diffpure", model, "")
    unknown = Kind("evaluate", "", "none", "0" * 16, "")
    (kind, cost), *others = shipped_costs([known, unknown]).items()
    assert kind == known and not others
    assert cost.rate == pytest.approx(2 * network["seconds"] * CONTENT["factors"]["attack bpda"])
    assert cost.units == 0 and cost.spread is None


def test_the_quickstart_is_estimated_on_a_fresh_store_and_the_text_says_that_it_is_a_guess(
    fast: None, tmp_path: object
) -> None:
    sweep = load_sweep(find_sweep("quickstart"))
    plan, store = make_plan(sweep), Store(f"{tmp_path}/store")
    summary = summarise(sweep, plan, store, workers=2, guess=True)
    assert summary.estimated_seconds is not None and 10 < summary.estimated_seconds < 2000
    assert "guessed from shipped costs" in estimate(summary)
    assert summarise(sweep, plan, store, workers=2).estimated_seconds is None  # who does not ask gets no guess


def test_a_convolution_takes_time_on_this_machine() -> None:
    assert 1e-6 < shipped.speed(0.05) < 10
