"""Certificates and corruptions are gated like accuracies, whatever the baseline is: a store, a file, an alias."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from helpers_small import compute
from typer.testing import CliRunner

from workflows.analysis import Analysis
from workflows.cli import app
from workflows.grid.load import Sweep, load_sweep
from workflows.planning.plan import make_plan
from workflows.regression.baselines import from_text, to_text
from workflows.regression.check import CellVerdict, Gate, check
from workflows.regression.compare import compare_runs
from workflows.regression.snapshots import CellOutcome, Shares, Snapshot, certificate_shares, of_results, of_store
from workflows.regression.texts import comparison_text
from workflows.results.reader import Results
from workflows.results.records import record_sweep
from workflows.store import Store
from workflows.tracking.track import track

SWEEP = """
sweep: gated
datasets:
  - {dataset: digits, images: {first: 80}}
classifiers:
  - {classifier: digits-macer, mean: [MEAN]}
defences: [none]
corruptions:
  - {corruption: gaussian_noise, severity: [1, 3]}
certificates: [{sigma: 0.25, n: 60, n0: 10, shard: 60}]
chunk: 40
"""
Run = tuple[Sweep, Store, Path]


def filled(folder: Path, mean: float) -> Run:
    """A store in which the sweep has run, without Ray."""
    path = folder / f"sweep-{mean}.yaml"
    path.write_text(SWEEP.replace("MEAN", str(mean)))
    sweep, store = load_sweep(path), Store(str(folder / f"store-{mean}"))
    record_sweep(sweep, make_plan(sweep), store)
    compute(sweep, store.uri)
    return sweep, store, path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return filled(tmp_path_factory.mktemp("good"), 0.3)


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same with the classifier's normalisation damaged."""
    return filled(tmp_path_factory.mktemp("worse"), 1.4)


def snapshot(run: Run) -> Snapshot:
    return of_results(Results(run[1], run[0]))


def by_kind(verdicts: list[CellVerdict]) -> dict[str, CellVerdict]:
    """The two corruptions and the certificate."""
    assert len(verdicts) == 3
    return dict(zip(("severity 1", "severity 3", "certificate"), verdicts, strict=True))


def test_a_store_remembers_every_cell_with_what_the_sweep_says_of_it(good: Run) -> None:
    remembered, computed = of_store(good[1], "gated", "here"), snapshot(good)
    assert json.loads(to_text(remembered)) == json.loads(to_text(computed))  # names, specs, images, values, cost
    certificate = remembered.cells[-1]
    assert "certificate" in certificate.spec and certificate.cost == {"denoiser": 0.0, "classifier": 1.0}
    assert list(certificate.values) == ["certified 0", "certified 0.25", "certified 0.5", "ACR / 4 sigma"]


def test_values_are_those_of_the_table_of_certificates(good: Run) -> None:
    found = snapshot(good).cells[-1].values
    row = Analysis(Results(good[1], good[0])).certified.iloc[0]
    assert row["natural"] > 0.3 and found["certified 0"].values.mean() == pytest.approx(row["natural"])
    assert found["ACR / 4 sigma"].values.mean() * 4 * 0.25 == pytest.approx(row["acr"], abs=1e-5) and row["acr"] > 0.2


@pytest.mark.slow
def test_the_average_radius_in_sigmas_is_certified_accuracy_averaged_over_radii() -> None:
    rows = pd.DataFrame({"label": [1, 1, 2, 3], "prediction": [1, 1, 0, -1], "radius": [0.5, 9.0, 0.7, 0.0]})
    found = certificate_shares(rows, 0.5)["ACR / 4 sigma"].values
    # sigma is 1/2, so 4 sigma is 2: a quarter, cut to 1, wrong, abstained.
    assert found.tolist() == pytest.approx([0.25, 1.0, 0.0, 0.0], abs=1e-5)
    radii = (np.arange(20_000) + 0.5) * 1e-4
    right = np.array([True, True, False, False])
    shares = [(right & (rows["radius"].to_numpy() >= radius)).mean() for radius in radii]
    assert np.mean(shares) == pytest.approx(found.mean(), abs=1e-4)


def baselines(good: Run, folder: Path) -> list[str]:
    """The three kinds of baseline of one run, as ``--baseline`` names them."""
    sweep, store, path = good
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    results = Results(store, sweep)
    track(uri, Analysis(results, audit=False), outcomes=to_text(of_results(results)))
    for to in (["--to", folder / "baseline.json"], ["--mlflow", uri]):
        said = CliRunner().invoke(app, ["promote", str(path), "--store", store.uri, *map(str, to)])
        assert said.exit_code == 0, said.output
    return [store.uri, str(folder / "baseline.json"), "mlflow:champion"]


@pytest.mark.slow
def test_every_kind_of_baseline_says_the_same(good: Run, worse: Run, tmp_path: Path) -> None:
    for baseline in baselines(good, tmp_path):
        for run, status, verdict in ((good, 0, "holds"), (worse, 1, "regressed")):
            options = ["--baseline", baseline, "--mlflow", f"sqlite:///{tmp_path / 'mlflow.db'}", "--json"]
            # 80 images show no less than 35 points of one measure among six.
            command = ["check", str(run[2]), "--store", run[1].uri, "--detect", "0.5", *options]
            said = CliRunner().invoke(app, command)
            assert said.exit_code == status, (baseline, said.output)
            content = json.loads(said.stdout)
            assert [cell["verdict"] for cell in content["cells"]] == [verdict] * 3
            of_certificate = [judgement["measure"] for judgement in content["cells"][-1]["judged"]]
            assert of_certificate == ["certified 0", "certified 0.25", "certified 0.5", "ACR / 4 sigma"]


def with_values(run: Snapshot, values: dict[str, npt.NDArray[np.bool_]]) -> Snapshot:
    """The run with other answers in its certificate, the cell that is last."""
    last = run.cells[-1]
    shares = {
        name: Shares(np.where(kept, last.values[name].counts, 0), last.values[name].of)
        for name, kept in values.items()
    }
    return replace(run, cells=(*run.cells[:-1], replace(last, values={**last.values, **shares})))


def test_a_drop_at_one_radius_alone_is_found(good: Run) -> None:
    before = from_text(to_text(of_store(good[1], "gated", "here")), "file")
    held = before.cells[-1].values["certified 0.25"].counts == 1
    assert held.mean() > 0.5
    lost = ~(held & (held.cumsum() <= 30))  # thirty images whose radius fell below sigma, and stayed above 0
    found = by_kind(check(before, with_values(before, {"certified 0.25": lost}), Gate(detect=0.5)))
    assert {name: verdict.verdict for name, verdict in found.items()} == {
        "severity 1": "holds",
        "severity 3": "holds",
        "certificate": "regressed",
    }
    certificate = found["certificate"]
    assert certificate.why.startswith("certified 0.25 ") and "30 worse, 0 better" in certificate.why
    assert [judgement.measure for judgement in certificate.judged if judgement.regressed] == ["certified 0.25"]


def test_smaller_radii_between_those_of_the_table_are_found_by_the_average_radius() -> None:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"label": 1, "prediction": 1, "radius": rng.uniform(0.40, 0.48, 300)})
    spec = {"stage": "certify", "certificate": {"sigma": 0.25}}
    runs = []
    for lost in (0.0, 0.1):  # every radius stays between sigma and 2 sigma
        values = certificate_shares(rows.assign(radius=rows["radius"] - lost), 0.25)
        cell = CellOutcome("c", spec, "data", tuple(range(300)), True, values, {}, None)
        runs.append(Snapshot("made up", "s", (cell,), {}))
    (found,) = check(*runs, Gate())
    assert found.verdict == "regressed" and found.why.startswith("ACR / 4 sigma ")
    assert [judgement.measure for judgement in found.judged if judgement.regressed] == ["ACR / 4 sigma"]
    assert found.judged[-1].drop.value == pytest.approx(0.1, abs=1e-4)  # 0.1 of 4 x 0.25
    assert check(runs[0], runs[0], Gate())[0].verdict == "holds"


def test_a_dearer_base_classifier_is_a_regression_though_its_certificates_hold(good: Run) -> None:
    before = snapshot(good)
    cell = replace(before.cells[-1], cost={"denoiser": 3.0, "classifier": 1.0})
    found = check(before, replace(before, cells=(*before.cells[:-1], cell)), Gate(detect=0.5))
    assert found[-1].verdict == "regressed" and found[-1].why == "denoiser evaluations per answer rose from 0 to 3"


def test_compare_shows_every_measure_of_a_certificate(good: Run, worse: Run) -> None:
    found = compare_runs(of_store(good[1], "gated", "here"), snapshot(worse))
    corrupted, certificate = found[0], found[-1]
    assert corrupted.measure == "Avg" and not corrupted.further
    assert certificate.measure == "certified 0" and list(certificate.further) == [
        "certified 0.25",
        "certified 0.5",
        "ACR / 4 sigma",
    ]
    first, second = (
        run.cells[-1].values["certified 0.25"].values.mean() for run in (snapshot(good), snapshot(worse))
    )
    further = certificate.as_dict()["further"]["certified 0.25"]
    assert (further["first"], further["second"], further["difference"]) == pytest.approx(
        (first, second, second - first)
    )
    lines = [line for line in comparison_text(found, "a", "b").splitlines() if "certified 0.25" in line]
    assert len(lines) == 1 and f"{100 * first:.1f}" in lines[0] and f"{100 * second:.1f}" in lines[0]
