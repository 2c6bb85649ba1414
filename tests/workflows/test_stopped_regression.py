"""``compare`` and ``check`` on runs that may have stopped early: the sequences, on what both runs have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from grids_small import swept
from scipy import stats
from typer.testing import CliRunner

from defense.errors import InvalidInput
from workflows.analysis import Analysis
from workflows.cli import app
from workflows.engine.worker import UnitWorker
from workflows.grid.load import Sweep
from workflows.grid.precision import random_order
from workflows.planning.plan import make_plan
from workflows.planning.stopping import needed
from workflows.regression.baselines import complete_text, from_text, referenced, to_text
from workflows.regression.check import Gate, check
from workflows.regression.compare import compare_runs
from workflows.regression.snapshots import CellOutcome, Shares, Snapshot, of_results, of_store
from workflows.results.reader import Results
from workflows.results.records import record_sweep
from workflows.statistics.paired import safe_t_test
from workflows.statistics.sequences import anytime_difference, evidence
from workflows.store import Store


def outcome(right: np.ndarray, images: int, *, anytime: bool = True) -> Snapshot:
    """A run that has judged the first images, in random order, of as many as ``right`` says of."""
    chosen = sorted(random_order(range(len(right)))[:images])
    shares = Shares(right[chosen].astype(np.int64), 1)
    spec = {"stage": "evaluate", "aggregation": "single"}
    cell = CellOutcome("cell", spec, "data", tuple(chosen), True, {"Avg": shares, "answer": shares}, {}, 1.0, anytime)
    return Snapshot("here", "sweep", (cell,), {})


def in_order(right: np.ndarray, images: int) -> np.ndarray:
    return right[random_order(range(len(right)))[:images]].astype(np.float64)


def answers(rng: np.random.Generator, fallen: float, images: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Right answers before and now: of 80 % that were right a share has fallen, and as few others are new."""
    before = rng.random(images) < 0.8
    now = np.where(before, rng.random(images) >= fallen / 0.8, rng.random(images) < 0.05)
    return before, now


def test_a_stopped_run_is_compared_with_a_whole_one_on_its_own_images() -> None:
    before, now = answers(np.random.default_rng(0), 0.15)
    whole, stopped = outcome(before, 600, anytime=False), outcome(now, 260)
    known = anytime_difference(in_order(before, 260), in_order(now, 260))
    (compared,) = compare_runs(whole, stopped)
    assert compared.difference == known and compared.anytime
    assert compared.as_dict()["guarantee"] == "anytime-valid 95 %"
    assert "confidence sequence" in compared.note and "260 shared images" in compared.note
    # p is that of the sequence, so it does not matter when one stopped.
    d = (in_order(now, 260) - in_order(before, 260) + 1) / 2
    assert compared.answers is not None
    assert compared.answers.p == pytest.approx(min(1, 2 * min(evidence(d, 0.5), evidence(1 - d, 0.5))))
    # Two runs in full are compared as ever.
    (fixed,) = compare_runs(whole, outcome(now, 600, anytime=False))
    assert not fixed.anytime and fixed.difference is not None and fixed.difference.images == 600
    assert "guarantee" not in fixed.as_dict()


@pytest.mark.parametrize(
    ("fallen", "images", "verdict", "why"),
    [
        (0.0, 300, "holds", "dropped by"),
        (0.3, 300, "regressed", "dropped by"),
        (0.0, 15, "unknown", "a stricter `precision` takes more images"),
    ],
)
def test_verdicts_of_a_stopped_run(fallen: float, images: int, verdict: str, why: str) -> None:
    before, now = answers(np.random.default_rng(1), fallen)
    now = np.where(fallen == 0, before, now)
    (cell,) = check(outcome(before, 600, anytime=False), outcome(now, images), Gate())
    assert (cell.verdict, cell.judged[0].anytime) == (verdict, True)
    assert why in cell.why
    assert cell.judged[0].drop == anytime_difference(in_order(now, images), in_order(before, images))
    assert cell.judged[0].as_dict()["guarantee"] == "anytime-valid 95 %"


def test_a_run_that_is_looked_at_every_night_and_chunk_raises_no_more_false_alarms() -> None:
    # The worst case: the drop is just what is tolerated, and whoever looks stops at the first alarm.
    runs, margin, rng = 150, 0.05, np.random.default_rng(0)
    drop = np.where(rng.random((runs, 500)) < 0.15, 1.0, 0.0) - np.where(rng.random((runs, 500)) < 0.1, 1.0, 0.0)
    alarms = sum(evidence((d + 1) / 2, (1 + margin) / 2) <= 0.05 for d in drop)
    fixed = np.min([safe_t_test(drop[:, :n], margin) for n in range(50, 501, 50)], axis=0) <= 0.05
    assert alarms <= stats.binom.isf(1e-3, runs, 0.05)
    assert fixed.sum() > stats.binom.isf(1e-2, runs, 0.05)


SWEEP = """\
sweep: nightly
datasets: [{dataset: digits, images: {first: 240}}]
classifiers: [digits-cnn]
defences: [none]
attacks: [none, {attack: fgsm, norm: linf, eps: 0.05}]
chunk: 60
precision: {half_width: 9}
"""


@pytest.fixture(scope="module")
def nightly(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Store]:
    """A run that has stopped, and of which one worker had run ahead."""
    folder = tmp_path_factory.mktemp("nightly")
    sweep, store = swept(folder, SWEEP), Store(str(folder / "store"))
    plan = make_plan(sweep)
    record_sweep(sweep, plan, store)
    worker = UnitWorker(store.uri, "cpu")
    for chunk in range(4):
        committed = plan.committed(store)
        needed(sweep, plan, committed, store)
        for unit in [unit for unit in committed.missing_units() if unit.chunk == chunk]:
            stage = plan.stages[unit.stage]
            inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
            worker.run(stage.spec, stage.id, stage.chunks[chunk], inputs)
    clean = plan.stages[plan.position(sweep.cells[0].evaluate, sweep.cells[0].images.chunks)]
    worker.run(clean.spec, clean.id, clean.chunks[3], {})
    return sweep, store


def test_what_has_stopped_is_complete_and_can_be_a_baseline(nightly: tuple[Sweep, Store]) -> None:
    sweep, store = nightly
    results = Results(store, sweep)
    snapshot = of_results(results)
    assert [len(cell.images) for cell in snapshot.cells] == list(results.robustness()["images"])
    assert all(cell.anytime and cell.complete for cell in snapshot.cells)
    assert len(snapshot.cells[0].images) < 180  # what ran ahead does not count
    for found in (of_store(store, None, "first"), from_text(complete_text(results), "file")):
        assert [cell.anytime for cell in found.cells] == [True, True]
        # A store knows no questions: what is there without a gap is valid too.
        assert [cell.images for cell in found.cells] == [cell.images for cell in snapshot.cells]


def test_check_and_compare_on_the_command_line(nightly: tuple[Sweep, Store], tmp_path: Path) -> None:
    sweep, store = nightly
    path, baseline = Path(sweep.document.folder) / "s.yaml", tmp_path / "baseline.json"
    # A baseline that was computed in full, on the same images, in another order of chunks.
    plain = swept(tmp_path, SWEEP.replace("precision: {half_width: 9}\n", ""))
    whole = Store(str(tmp_path / "whole"))
    plan = make_plan(plain)
    record_sweep(plain, plan, whole)
    worker = UnitWorker(whole.uri, "cpu")
    for stage in plan.stages:
        inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
        for chunk in stage.chunks:
            worker.run(stage.spec, stage.id, chunk, inputs)
    baseline.write_text(complete_text(Results(whole, plain)))
    options = [str(path), "--store", store.uri, "--baseline", str(baseline), "--mlflow", "off"]
    result = CliRunner().invoke(app, ["check", *options])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("holds: 2 holds") and "confidence sequence" in " ".join(result.stdout.split())
    result = CliRunner().invoke(app, ["check", *options, "--json"])
    judged = [cell["judged"][0] for cell in json.loads(result.stdout)["cells"]]
    assert {j["guarantee"] for j in judged} == {"anytime-valid 95 %"}
    assert [j["drop"]["images"] for j in judged] == [
        len(cell.images) for cell in of_results(Results(store, sweep)).cells
    ]
    result = CliRunner().invoke(app, ["check", *options, "--detect", "0.02"])
    assert result.exit_code == 2 and "not decided" in result.stdout
    compared = CliRunner().invoke(app, ["compare", str(baseline), f"{path}@{store.uri}", "--json"])
    assert {cell["guarantee"] for cell in json.loads(compared.stdout)} == {"anytime-valid 95 %"}


def test_a_night_stops_when_all_is_well(nightly: tuple[Sweep, Store], tmp_path: Path) -> None:
    sweep, store = nightly
    baseline = tmp_path / "night.json"
    baseline.write_text(complete_text(Results(store, sweep)))
    path = tmp_path / "s.yaml"
    text = SWEEP.replace("{half_width: 9}", "{decide: {baseline: night.json, drop: 12}}")
    asked = referenced(swept(tmp_path, text))
    results = Results(store, asked)
    frame = Analysis(results).decisions
    # The same rows as the baseline's: no image differs, and 60 of them show that none has fallen by 12 points.
    assert list(frame["answer"]) == ["holds", "holds"] and list(frame["value"]) == [0.0, 0.0]
    assert list(frame["images"]) == [60, 60] and (frame["value_high"] < 0.12).all()
    checked = CliRunner().invoke(
        app,
        [
            "check",
            str(path),
            "--store",
            store.uri,
            "--baseline",
            str(baseline),
            "--detect",
            "0.12",
            "--mlflow",
            "off",
        ],
    )
    assert checked.exit_code == 0, checked.output
    plan = make_plan(asked)
    committed = plan.committed(Store(str(tmp_path / "none")))
    needed(asked, plan, committed, store)
    assert committed.spared == 3 * 3  # of four chunks of attack and two judgements the first is needed

    # One that has none of the cells decides nothing.
    (tmp_path / "night.json").write_text(to_text(replace(from_text(baseline.read_text(), "file"), cells=())))
    with pytest.raises(InvalidInput, match=r"s\.yaml:7: .*night\.json has none of the sweep's cells"):
        referenced(swept(tmp_path, text))
    baseline.write_text(complete_text(Results(store, sweep)))
    # A baseline on which everything was right: 30 % fewer are a fall that shows on the images that there are.
    content = from_text(baseline.read_text(), "file")
    high = Shares(np.ones(len(content.cells[1].images), dtype=np.int64), 1)
    low = replace(content.cells[1], values={"Avg": high, "answer": high})
    baseline.write_text(to_text(replace(content, cells=(content.cells[0], low))))
    found = Analysis(Results(store, referenced(swept(tmp_path, text)))).decisions
    drop = anytime_difference(results.correct(sweep.cells[1]).mean(1), np.ones(len(results.correct(sweep.cells[1]))))
    assert found["answer"][0] == "holds"
    assert found["answer"][1] == (
        "fell" if found["value_low"][1] > 0.01 else "not yet" if drop.high >= 0.12 else "holds"
    )

    with pytest.raises(InvalidInput, match="which was not read"):
        Results(store, swept(tmp_path, text))
    for old, new, message in (
        ("night.json", "nights.json", r"s\.yaml:7: precision\.decide\.baseline: .*nights.json"),
        (", drop: 12", "", "belong together"),
        ("drop: 12}", "drop: 12}, of: images", "of the population"),
        ("drop: 12}", "drop: 12}, measure: worst", "no Wor-M"),
        ("drop: 12", "drop: 0.5", "greater than 1"),
    ):
        with pytest.raises(InvalidInput, match=message):
            referenced(swept(tmp_path, text.replace(old, new)))
