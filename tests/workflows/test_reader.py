"""A small real store, read back: every number of the reader again, from the Parquet files, by plain loops."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers_small import CHUNKS, IDS, SMALL, compute, small_sweep
from scipy import stats

from defense.errors import StoreError
from tasks.datasets import DigitsConfig
from tasks.stages import Chunk
from workflows.grid.load import Sweep
from workflows.planning.forecast import predict
from workflows.planning.plan import Committed, make_plan
from workflows.results.reader import Results
from workflows.store import Store

MEASURES = ("accuracy", "avg", "worst", "vote", "mean_probability")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return small_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def folder(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the whole sweep; no test writes there."""
    folder = tmp_path_factory.mktemp("small") / "store"
    compute(sweep, str(folder))
    return folder


@pytest.fixture
def results(folder: Path, sweep: Sweep) -> Results:
    return Results(Store(str(folder)), sweep)


@pytest.fixture
def partial(folder: Path, sweep: Sweep, tmp_path: Path) -> Results:
    """Nothing is committed of the last chunk, and of the last cell nothing but the first chunk."""
    store = Store(str(tmp_path / "partial"))
    for path in folder.rglob("*.*"):
        store.files.write(str(path.relative_to(folder)), path.read_bytes())
    for stage in make_plan(sweep).stages:
        store.revoke(stage.spec.stage, stage.id, stage.chunks[2].name)
    store.revoke("evaluate", sweep.cells[3].evaluate.id, sweep.cells[3].images.chunks[1].name)
    return Results(store, sweep)


def stored(
    folder: Path, stage: str, stage_id: str, chunks: tuple[tuple[int, ...], ...] = CHUNKS
) -> list[dict[str, Any]]:
    """Rows straight from the Parquet files."""
    files = [folder / "rows" / stage / stage_id / f"{Chunk(ids).name}.parquet" for ids in chunks]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def by_hand(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Avg, worst of two draws, vote and mean probability, one image after the other."""
    found = dict.fromkeys(MEASURES, 0.0)
    for row in rows:
        votes, label = row["prediction"], row["label"]
        mean = row["mean_probability"]
        found["accuracy"] += votes[0] == label  # `aggregation: single`
        found["avg"] += sum(vote == label for vote in votes) / len(votes)
        found["worst"] += all(vote == label for vote in votes)
        found["vote"] += Counter(votes).most_common(1)[0][0] == label  # of equals the first one
        found["mean_probability"] += mean.index(max(mean)) == label
    return {name: value / len(rows) for name, value in found.items()}


def test_the_cells_are_those_of_the_sweep(sweep: Sweep, results: Results) -> None:
    table = results.robustness()
    assert table["cell"].tolist() == [cell.id for cell in sweep.cells]
    assert table["defence"].tolist() == ["none"] * 2 + ["diffpure t*=10 in 2 steps"] * 2
    assert table["attack"].tolist() == ["clean", "pgd-2 linf"] * 2
    assert table["eps"].tolist() == [0.0, 0.1] * 2
    assert table["norm"].isna().tolist() == [True, False] * 2 and set(table["norm"].dropna()) == {"linf"}
    assert table["static"].tolist() == [False, True] * 2
    assert table["draws"].tolist() == [1, 1, 2, 2]
    assert set(table["dataset"]) == {"digits"} and set(table["classifier"]) == {"digits-cnn"}
    assert set(table["aggregation"]) == {"single"} and set(table["seed"]) == {0}
    abar = float(np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:10]))
    assert table["t_star"].isna().tolist() == [True, True, False, False]
    assert table["t_star"][2:].tolist() == [10, 10]
    assert table["abar"][2:].tolist() == pytest.approx([abar] * 2, rel=1e-9)
    assert table["sigma_eq"][2:].tolist() == pytest.approx([math.sqrt((1 - abar) / abar) / 2] * 2, rel=1e-9)


def test_every_accuracy_is_that_of_the_stored_rows(folder: Path, sweep: Sweep, results: Results) -> None:
    table = results.robustness()
    for cell, line in zip(sweep.cells, table.to_dict("records"), strict=True):
        expected = by_hand(stored(folder, "evaluate", cell.evaluate.id))
        assert {name: line[name] for name in MEASURES} == pytest.approx(expected, abs=1e-12)
        assert (line["images"], line["planned"]) == (20, 20)
    # Numbers that tell the measures apart: images that one draw of two gets wrong.
    last = table.iloc[3]
    assert last["worst"] < last["avg"] < last["vote"]
    assert table["avg"][1] < table["avg"][3] < table["avg"][2] == 1


def test_every_interval_is_wilsons_over_the_images(results: Results) -> None:
    z2 = float(stats.norm.ppf(0.975)) ** 2
    for line in results.robustness().to_dict("records"):
        for name in MEASURES:
            p, low, high = line[name], line[f"{name}_low"], line[f"{name}_high"]
            assert 0 <= low <= p <= high <= 1 and high - low > 0.1
            for end in (low, high):
                assert abs((p - end) ** 2 - z2 * end * (1 - end) / 20) < 1e-12
            if abs(20 * p - round(20 * p)) < 1e-9:
                expected = stats.binomtest(round(20 * p), 20).proportion_ci(method="wilson")
                assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_rows_come_in_the_sweeps_order_with_the_data_sets_labels(sweep: Sweep, results: Results) -> None:
    labels = DigitsConfig().read().labels[:20].tolist()
    for cell in sweep.cells:
        rows = results.rows(cell)
        assert rows["image_id"].tolist() == list(IDS) and rows["label"].tolist() == labels
        attack = results.attack_rows(cell)
        if cell.attack is None:
            assert attack.empty
        else:
            assert attack["image_id"].tolist() == list(IDS) and attack["label"].tolist() == labels
            assert (attack["linf"] <= 0.1).all() and (attack["linf"] > 0.09).all()


def test_the_bare_classifiers_judgement_is_the_attacks_own_prediction(sweep: Sweep, results: Results) -> None:
    clean, attacked = results.rows(sweep.cells[0]), results.rows(sweep.cells[1])
    attack = results.attack_rows(sweep.cells[1])
    assert [votes[0] for votes in clean["prediction"]] == attack["clean_prediction"].tolist()
    assert [votes[0] for votes in attacked["prediction"]] == attack["adversarial_prediction"].tolist()


def test_a_cells_rows_are_those_of_its_files(folder: Path, sweep: Sweep, results: Results) -> None:
    for cell in sweep.cells:
        expected = pd.DataFrame(stored(folder, "evaluate", cell.evaluate.id))
        found = results.rows(cell)
        assert found.columns.tolist() == expected.columns.tolist()
        for name in ("prediction", "label_probability", "mean_probability"):
            assert [list(value) for value in found[name]] == expected[name].tolist()


def test_the_same_units_computed_again_in_another_order_are_equal_byte_for_byte(
    folder: Path, sweep: Sweep, tmp_path: Path
) -> None:
    for chunks in ({2}, {0}, {1}):
        compute(sweep, str(tmp_path), chunks=chunks)
    files = sorted(
        path.relative_to(folder) for kind in ("rows", "adversarial") for path in (folder / kind).rglob("*.parquet")
    )
    assert len(files) == 5 * 3 + 3
    for file in files:
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


def test_computing_what_is_committed_changes_no_file(sweep: Sweep, folder: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.*")}
    compute(sweep, str(folder))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.*")} == before


def test_cost_counts_the_evaluations_that_the_stages_make(folder: Path, sweep: Sweep, results: Results) -> None:
    cost = results.cost()
    assert cost["stage"].tolist() == ["evaluate", "attack", "evaluate", "evaluate", "evaluate"]
    assert cost["defence"].tolist() == ["none", "", "none", "diffpure t*=10 in 2 steps", "diffpure t*=10 in 2 steps"]
    assert cost["attack"].tolist() == ["clean", "pgd-2 linf", "pgd-2 linf", "clean", "pgd-2 linf"]
    assert cost["eps"].tolist() == [0.0, 0.1, 0.1, 0.0, 0.1]
    assert cost["images"].tolist() == [20] * 5
    # images x draws x reverse steps; images x (steps + 1) or images x draws.
    assert cost["denoiser_evaluations"].tolist() == [0, 0, 0, 20 * 2 * 2, 20 * 2 * 2]
    assert cost["classifier_evaluations"].tolist() == [20, 20 * 3, 20, 20 * 2, 20 * 2]
    for line, stage in zip(cost.to_dict("records"), make_plan(sweep).stages, strict=True):
        commits = list((folder / "commits" / stage.spec.stage / stage.id).glob("*.json"))
        seconds = sum(json.loads(commit.read_text())["seconds"] for commit in commits)
        assert seconds > 0 and line["seconds"] == pytest.approx(seconds, abs=0.0051)
        assert line["images_per_second"] == pytest.approx(20 / seconds, abs=0.0051)
        notes = [json.loads(commit.read_text())["notes"] for commit in commits]
        assert line["peak_mib"] == max(note["peak_mib"] for note in notes) >= min(note["idle_mib"] for note in notes)


def test_partial_results_are_of_the_committed_images_alone(folder: Path, sweep: Sweep, partial: Results) -> None:
    table = partial.robustness()
    assert table["images"].tolist() == [16, 16, 16, 8] and table["planned"].tolist() == [20] * 4
    for cell, line, chunks in zip(sweep.cells, table.to_dict("records"), (2, 2, 2, 1), strict=True):
        expected = by_hand(stored(folder, "evaluate", cell.evaluate.id, CHUNKS[:chunks]))
        assert {name: line[name] for name in MEASURES} == pytest.approx(expected, abs=1e-12)
        assert partial.rows(cell)["image_id"].tolist() == list(IDS[: 8 * chunks])
    assert partial.cost()["images"].tolist() == [16, 16, 16, 16, 8]
    assert partial.cost()["classifier_evaluations"].tolist() == [16, 48, 16, 32, 16]


def test_rows_that_are_committed_later_appear_in_the_same_reader(sweep: Sweep, partial: Results) -> None:
    assert partial.robustness()["images"].tolist() == [16, 16, 16, 8]
    compute(sweep, partial.store.uri)
    assert partial.robustness()["images"].tolist() == [20] * 4
    assert partial.rows(sweep.cells[3])["image_id"].tolist() == list(IDS)


def test_an_empty_store_has_cells_without_accuracies(sweep: Sweep, tmp_path: Path) -> None:
    results = Results(Store(str(tmp_path)), sweep)
    table = results.robustness()
    assert table["images"].tolist() == [0] * 4 and table["planned"].tolist() == [20] * 4
    assert not set(MEASURES) & set(table.columns)
    assert all(results.rows(cell).empty for cell in sweep.cells)
    cost = results.cost()
    assert cost["images"].tolist() == [0] * 5 and cost["seconds"].tolist() == [0.0] * 5
    assert cost["images_per_second"].isna().all()


def test_a_damaged_row_file_is_an_error_and_never_a_number(sweep: Sweep, partial: Results) -> None:
    cell = sweep.cells[2]
    path = partial.store.rows_path("evaluate", cell.evaluate.id, cell.images.chunks[0].name)
    partial.store.files.write(path, partial.store.files.read(path)[:-1])
    with pytest.raises(StoreError, match="not the file that was committed"):
        partial.robustness()


def test_a_stray_row_file_is_not_read(sweep: Sweep, partial: Results) -> None:
    cell = sweep.cells[3]
    stage_id, chunks = cell.evaluate.id, cell.images.chunks
    # The file of the revoked commit still lies there; so does another one.
    assert partial.store.files.exists(partial.store.rows_path("evaluate", stage_id, chunks[1].name))
    partial.store.files.write(f"rows/evaluate/{stage_id}/0000099-stray.parquet", b"PAR1")
    assert partial.rows(cell)["image_id"].tolist() == list(IDS[:8])


@pytest.mark.parametrize("aggregation", ["majority-vote", "mean-probability"])
def test_the_answer_of_a_defence_is_its_aggregation(
    folder: Path, sweep: Sweep, tmp_path: Path, aggregation: str
) -> None:
    text = SMALL.replace("draws: 2", f"draws: 2\n    aggregation: {aggregation}")
    other = small_sweep(tmp_path, text)
    # How draws become an answer is no matter of the rows: the same stages, other cells.
    assert [cell.evaluate.id for cell in other.cells] == [cell.evaluate.id for cell in sweep.cells]
    assert other.cells[3].id != sweep.cells[3].id and other.id != sweep.id
    line = Results(Store(str(folder)), other).robustness().iloc[3]
    measure = {"majority-vote": "vote", "mean-probability": "mean_probability"}[aggregation]
    expected = by_hand(stored(folder, "evaluate", sweep.cells[3].evaluate.id))[measure]
    assert line["aggregation"] == aggregation
    assert (line["accuracy"], line["accuracy_low"]) == (line[measure], line[f"{measure}_low"])
    assert line["accuracy"] == pytest.approx(expected)


def test_all_defences_share_the_attack(sweep: Sweep) -> None:
    plan = make_plan(sweep)
    assert [stage.spec.stage for stage in plan.stages] == ["evaluate", "attack", "evaluate", "evaluate", "evaluate"]
    assert [stage.inputs for stage in plan.stages] == [{}, {}, {"source": 1}, {}, {"source": 1}]
    assert plan.units == 5 * 3 and plan.requested == (4 + 2) * 3


def test_the_estimate_is_work_that_is_left_times_the_measured_rate(sweep: Sweep, partial: Results) -> None:
    plan = make_plan(sweep)
    done = plan.committed(partial.store)
    assert done == Committed(plan, [{0, 1}] * 4 + [{0}])
    rates: dict[tuple[str, str], list[tuple[float, bool]]] = {}
    work = [1, 3, 1, 4, 4]  # evaluations an image: draws, steps + 1, draws, draws x reverse steps
    kinds = [(stage.spec.stage, stage.spec.model_key()) for stage in plan.stages]
    assert len(set(kinds)) == 3
    for kind, each, (stage, chunks) in zip(kinds, work, done.by_stage(), strict=True):
        for chunk in chunks:
            commit = partial.store.committed(stage.spec.stage, stage.id, stage.chunks[chunk].name)
            assert commit is not None
            loading = float(commit.notes.get("loading_seconds", 0.0))
            rates.setdefault(kind, []).append((commit.seconds / (8 * each), loading > 0.05 * commit.seconds))
    left = [4, 4, 4, 4, 12]
    expected = 0.0
    for n, each, kind in zip(left, work, kinds, strict=True):
        later = [rate for rate, first in rates[kind] if not first]  # the first of a process loads its models
        expected += n * each * float(np.mean(later or [rate for rate, _ in rates[kind]]))
    found, stages = predict(done, partial.store, sweep.id, workers=2)
    assert found is not None and found.compute_seconds == pytest.approx(expected, rel=1e-9)
    assert sum(stage.seconds for stage in stages if stage is not None) == pytest.approx(expected, rel=1e-9)
    assert found.units == 4 + 2


def test_the_estimate_says_when_nothing_comparable_was_measured(
    sweep: Sweep, partial: Results, tmp_path: Path
) -> None:
    plan = make_plan(sweep)
    empty = Store(str(tmp_path / "empty"))
    assert predict(plan.committed(empty), empty, sweep.id, workers=1) == (None, [None] * 5)
    everything = Committed.all_but(plan, [])
    found, _ = predict(everything, partial.store, sweep.id, workers=1)
    assert found is not None and (found.units, found.compute_seconds, found.wall_seconds) == (0, 0.0, 0.0)


def test_cells_of_two_seeds_are_two_lines(folder: Path, tmp_path: Path) -> None:
    other = small_sweep(tmp_path, SMALL + "seeds: [0, 1]\n")
    table = Results(Store(str(folder)), other).robustness()
    found: list[tuple[int, int]] = list(zip(table["seed"], table["images"], strict=True))
    assert Counter(found) == {(0, 20): 4, (1, 0): 4}
    assert table[table["seed"] == 1][list(MEASURES)].isna().all(axis=None)
