"""Certificates, corruptions and image quality as axes of a sweep: from the file to the tables, and across a crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from helpers_small import ASSETS, compute, small_sweep, undeclared
from lab import wait_for, workers_of
from naps import SharedRay
from typer.testing import CliRunner

from defense.certify import ABSTAIN, dataset_bound
from defense.errors import InvalidInput
from tasks.corruptions import BENCHMARK
from workflows.analysis import Analysis
from workflows.cli import app
from workflows.formats import render
from workflows.grid.load import Sweep
from workflows.planning.plan import make_plan
from workflows.results.reader import Results
from workflows.store import Store
from workflows.tables.table import Table
from workflows.tracking.track import track

HEAD = f"""
sweep: threats
datasets:
  - dataset: digits
    images: {{first: 12}}
classifiers: [digits-cnn]
denoisers:
  digits-ddpm:
    format: diffusers
    path: {ASSETS / "digits-ddpm"}
    schedule: linear-1000
chunk: 8
compute: {{batch: 50}}
"""

GRID = (
    HEAD
    + """
defences:
  - none
  - purifier: one-shot
    denoiser: digits-ddpm
    sigma_eq: 0.1
    draws: 2
attacks: [none]
corruptions:
  - corruption: [gaussian_noise, contrast]
    severity: [1, 5]
certificates:
  - sigma: [0.12, 0.3]
    n: 150
    shard: 100
  - sigma: 0.12
    n: 300
    shard: 100
    guarantee: sequential
quality: true
"""
)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    folder = tmp_path_factory.mktemp("threats")
    sweep = small_sweep(folder, GRID)
    compute(sweep, str(folder / "store"))
    yield Results(Store(str(folder / "store")), sweep)


def named(results: Results, mce: str | None = None) -> dict[str, Table]:
    return {table.name: table for table in Analysis(results, mce=mce).tables}


@pytest.mark.slow
def test_grid_is_the_product_with_every_threat(computed: Results) -> None:
    sweep = computed.sweep
    assert (len(sweep.adversarial), len(sweep.corrupted), len(sweep.certified)) == (2, 8, 6)
    assert len(sweep.cells) == 16
    kinds = [stage.spec.stage for stage in make_plan(sweep).stages]
    assert kinds.count("corrupt") == 4, "defences share corrupted images"
    assert kinds.count("evaluate") == kinds.count("quality") == 10
    # A defence has selection at two sigmas, two ranges at each, and three doubling ranges of a sequence.
    assert kinds.count("sample") == 2 * 2 * 3 and kinds.count("sample-sequence") == 2 * 3


@pytest.mark.slow
def test_a_certificate_sets_the_t_star_of_the_defence_that_it_denoises_with(computed: Results) -> None:
    depths = {
        cell.certificate.sigma: cell.defence.label()
        for cell in computed.sweep.certified
        if cell.certificate is not None and cell.defence.purifier.purifier == "one-shot"
    }
    assert depths == {0.12: "one-shot t*=71", 0.3: "one-shot t*=172"}
    (clean,) = (cell for cell in computed.sweep.adversarial if cell.defence.purifier.purifier == "one-shot")
    assert clean.defence.label() == "one-shot t*=59" and clean.defence.draws == 2


@pytest.mark.slow
def test_certified_table_is_what_the_rows_say(computed: Results) -> None:
    frame = named(computed)["certified"].frame.set_index("cell")
    curves = named(computed)["certified_curves"].frame
    assert len(frame) == 6
    for cell in computed.sweep.certified:
        rows, line = computed.rows(cell), frame.loc[cell.id]
        right = (rows["prediction"] == rows["label"]).to_numpy()
        assert line["natural"] == right.mean() and line["images"] == line["planned"] == 12
        assert line["acr"] == pytest.approx(np.where(right, rows["radius"], 0).mean())
        assert line["abstained"] == (rows["prediction"] == ABSTAIN).mean()
        assert line["samples"] == rows["samples"].mean()
        assert line["bound"] == dataset_bound(right.mean(), 12, 0.001, 0.001)
        own = curves[curves["cell"] == cell.id]
        for at, share in zip(own["radius"], own["accuracy"], strict=True):
            assert share == (right & (rows["radius"] >= at)).mean()
    fixed = frame[frame["guarantee"] == "fixed-n"]
    assert set(fixed["samples"]) == {150.0}
    assert (frame[frame["guarantee"] == "sequential"]["samples"] <= 300).all()
    strong = fixed[(fixed["sigma"] == 0.12) & (fixed["family"] == "one-shot")].iloc[0]
    # 150 equal answers are the most there can be: a radius of 0.12 Phi^-1(0.001^(1/150)) = 0.2034.
    assert strong["ceiling"] == pytest.approx(0.12 * 1.6950, abs=1e-4) and strong["acr"] <= strong["ceiling"] + 1e-12


@pytest.mark.slow
def test_envelope_is_the_best_sigma_at_each_radius_and_never_mixes_guarantees(computed: Results) -> None:
    tables = named(computed)
    best, curves = tables["envelope"].frame, tables["certified_curves"].frame
    assert set(best["guarantee"]) == {"fixed-n"}, "one sigma alone has no envelope"
    for row in best.to_dict("records"):
        same = curves[(curves["family"] == row["family"]) & (curves["radius"] == row["radius"])]
        same = same[same["guarantee"] == "fixed-n"]
        assert row["accuracy"] == same["accuracy"].max()
        assert row["sigma"] == same[same["accuracy"] == row["accuracy"]]["sigma"].min()


@pytest.mark.slow
def test_corruption_tables_are_what_the_rows_say(computed: Results) -> None:
    tables = named(computed)
    table, gains = tables["corruptions"].frame, tables["corruption_gains"].frame
    shares = {}
    for cell in computed.sweep.corrupted:
        assert cell.corruption is not None
        rows = computed.rows(cell)
        right = np.stack(list(rows["prediction"])) == rows["label"].to_numpy()[:, None]
        key = (cell.defence.purifier.purifier, cell.corruption.corruption, cell.corruption.severity)
        shares[key] = right.mean(1)
    for (kind, name, severity), share in shares.items():
        line = table[
            table["defence"].str.startswith(kind) & (table["corruption"] == name) & (table["severity"] == severity)
        ]
        assert line["accuracy"].tolist() == [pytest.approx(share.mean())]
    overall = gains[(gains["corruption"] == "all") & (gains["severity"] == "all")]
    difference = np.mean(
        [shares["one-shot", n, s] - shares["none", n, s] for n in ("gaussian_noise", "contrast") for s in (1, 5)]
    )
    assert overall["gain"].tolist() == [pytest.approx(difference)]
    assert not overall["complete"].any(), "two corruptions of fifteen"


@pytest.mark.slow
def test_mean_corruption_errors_need_a_named_baseline_and_the_whole_benchmark(computed: Results) -> None:
    assert "mce" not in named(computed)
    with pytest.raises(InvalidInput, match="there are digits-cnn"):
        named(computed, mce="alexnet")
    with pytest.raises(InvalidInput, match="no mCE"):
        named(computed, mce="digits-cnn")


def shares(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {
        str(defence): part.pivot(index=["corruption", "severity"], columns="image_id", values="correct")
        for defence, part in frame.groupby("defence", sort=False)
    }


@pytest.mark.slow
def test_mean_corruption_error_is_the_mean_ratio_of_errors(
    computed: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    errors = {
        (defence, name, severity): float(rng.uniform(0.1, 0.9))
        for defence in ("none", "other")
        for name in BENCHMARK
        for severity in range(1, 6)
    }
    frame = pd.DataFrame(
        [
            {"defence": d, "corruption": c, "severity": s, "image_id": i, "correct": 1 - e}
            for (d, c, s), e in errors.items()
            for i in range(2)
        ]
    )
    identity = {"dataset": "digits", "classifier": "net", "seed": 0, "origin": "official"}
    monkeypatch.setattr(type(computed), "corrupted", lambda self: [(identity, shares(frame))])
    table = named(computed, mce="net")["mce"]

    def total(defence: str, name: str) -> float:
        return sum(errors[defence, name, severity] for severity in range(1, 6))

    expected = np.mean([total("other", name) / total("none", name) for name in BENCHMARK])
    assert table.lines() == [
        ["net", "none", "official", "100.0"],
        ["net", "other", "official", f"{100 * expected:.1f}"],
    ]


@pytest.mark.slow
def test_lines_of_several_seeds_can_be_distinguished(computed: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame(
        [
            {"defence": d, "corruption": "fog", "severity": 1, "image_id": i, "correct": float(d == "other")}
            for d in ("none", "other")
            for i in range(3)
        ]
    )
    place = {"dataset": "digits", "classifier": "net", "origin": "official"}
    groups = [({**place, "seed": seed}, shares(frame)) for seed in (4, 7)]
    monkeypatch.setattr(type(computed), "corrupted", lambda self: groups)
    for name, each in (("corruptions", 2), ("corruption_gains", 2)):
        table = named(computed)[name]
        head, lines = [column.title for column in table.visible], table.lines()
        assert head[0] == "seed" and [line[0] for line in lines] == ["4"] * each + ["7"] * each
    table = named(computed)["corruptions"]
    head, lines = [column.title for column in table.visible], table.lines()
    assert [line[head.index("fog")] for line in lines] == ["0.0", "100.0"] * 2


@pytest.mark.slow
def test_quality_table_is_what_the_rows_say(computed: Results) -> None:
    frame = named(computed)["quality"].frame
    for cell in computed.sweep.corrupted:
        rows = computed.quality_rows(cell)
        label = computed.sweep.labels[cell.id]
        line = frame[(frame["defence"] == label["defence"]) & (frame["threat"] == label["corruption"])]
        assert line[line["pair"] == "input"]["psnr"].tolist() == [pytest.approx(rows["psnr_input"].mean())]
        pairs = {"input"} if label["defence"] == "none" else {"input", "output", "change"}
        assert set(line["pair"]) == pairs
    assert "puregrid data fetch lpips" in " ".join(named(computed)["quality"].remarks)


@pytest.mark.slow
def test_every_format_has_the_tables(computed: Results) -> None:
    analysis = Analysis(computed)
    assert len(analysis.robustness) == 2
    content = json.loads(render(analysis, "json"))
    for table in analysis.tables:
        assert len(content[table.name]) == len(table.frame) > 0
        assert undeclared(table) == set()
    for how in ("text", "md", "latex"):
        text = render(analysis, how)
        assert "Certified accuracy" in text and "Accuracy under corruptions" in text and "Image quality" in text
    # Ranges of samples are one line of the cost table, and their evaluations the sum.
    cost = analysis.cost
    counted = cost[(cost["stage"] == "sample") & (cost["defence"] == "one-shot t*=71")]
    assert sorted(counted["denoiser_evaluations"]) == [12 * 100, 12 * 150]


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow
def test_mlflow_has_certificates_corruptions_and_quality(computed: Results, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    analysis = Analysis(computed, audit=False)
    for _ in range(2):  # the second time nothing is new
        parent = track(uri, analysis)
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_run(parent).info.experiment_id])
    children = {run.info.run_name: run for run in runs if run.info.run_id != parent}
    assert set(children) == {
        "digits-cnn · none",
        "digits-cnn · one-shot t*=59",
        "digits-cnn · none · certificates",
        "digits-cnn · one-shot · certificates",
    }
    tables = {table.name: table.frame for table in analysis.tables}
    certified = children["digits-cnn · one-shot · certificates"].data.metrics
    for row in tables["certified"].query("family == 'one-shot'").to_dict("records"):
        way = f"sigma {row['sigma']:g} n {row['n']}" + (" sequential" if row["guarantee"] == "sequential" else "")
        assert (certified[f"acr/{way}"], certified[f"natural/{way}"]) == (row["acr"], row["natural"])
        history = client.get_metric_history(
            children["digits-cnn · one-shot · certificates"].info.run_id, f"certified by radius/{way}"
        )
        curve = tables["certified_curves"].query("cell == @row['cell']")
        assert {point.step / 1000: point.value for point in history} == dict(
            zip(curve["radius"], curve["accuracy"], strict=True)
        )
        assert len(history) == len(curve), "points were logged twice"
    judged = children["digits-cnn · one-shot t*=59"].data.metrics
    lines = tables["corruptions"][tables["corruptions"]["defence"] == "one-shot t*=59"]
    (overall,) = lines[lines["corruption"] == "all"]["accuracy"]
    assert judged["corruption/all generated"] == overall
    assert {"avg/clean", "psnr/output contrast 5", "ssim/change gaussian_noise 1"} <= set(judged)
    assert "denoiser.format" in children["digits-cnn · one-shot · certificates"].data.params


@pytest.mark.slow
def test_a_sweep_of_certificates_alone_has_no_robustness_table(tmp_path: Path) -> None:
    text = HEAD + "defences: [none]\ncertificates:\n  - sigma: 0.12\n    n: 50\n    n0: 20\n"
    sweep = small_sweep(tmp_path, text)
    assert [len(cells) for cells in (sweep.adversarial, sweep.certified)] == [0, 1]
    results = Results(Store(str(tmp_path / "store")), sweep)
    assert [table.name for table in Analysis(results).tables] == ["cost"] and results.robustness().empty
    compute(sweep, str(tmp_path / "store"), chunks={0})
    results = Results(Store(str(tmp_path / "store")), sweep)
    (line,) = named(results)["certified"].frame.to_dict("records")
    assert (line["images"], line["planned"]) == (8, 12)
    assert "8 of 12" in render(Analysis(results), "text")


def cells(folder: Path, rest: str) -> Sweep:
    return small_sweep(folder, HEAD + rest)


def test_without_threats_there_are_clean_images_alone(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, "defences: [none]\n").cells
    assert cell.threat is None


def test_include_has_the_threats_that_it_names(tmp_path: Path) -> None:
    rest = """
defences: [none]
attacks: [none]
include:
  - corruptions:
      - corruption: fog
        severity: 1
  - certificates:
      - sigma: [0.1, 0.2]
        n: 100
"""
    sweep = cells(tmp_path, rest)
    assert [len(part) for part in (sweep.adversarial, sweep.corrupted, sweep.certified)] == [1, 1, 2]


def test_exclude_names_corruptions_and_certificates(tmp_path: Path) -> None:
    rest = GRID.removeprefix(HEAD) + "exclude:\n  - {corruption: {severity: 5}, defence: none}\n"
    rest += "  - {certificate: {guarantee: sequential}}\n  - {attack: none}\n"
    sweep = cells(tmp_path, rest)
    assert [len(part) for part in (sweep.adversarial, sweep.corrupted, sweep.certified)] == [0, 6, 4]


def test_benchmark_stands_for_fifteen_and_extra_for_four(tmp_path: Path) -> None:
    rest = "defences: [none]\ncorruptions:\n  - corruption: [benchmark, extra]\n"
    with pytest.raises(InvalidInput, match="photographs are missing"):
        cells(tmp_path, rest)
    rest += "exclude: []\n"
    some = cells(tmp_path, "defences: [none]\ncorruptions:\n  - corruption: extra\n")
    assert len(some.cells) == 4 * 5


def test_votes_of_a_certificate_are_the_draws_of_a_majority_vote(tmp_path: Path) -> None:
    rest = """
defences:
  - purifier: densepure
    denoiser: digits-ddpm
    sigma_eq: 0.1
    steps: 2
    draws: 3
    aggregation: AGGREGATION
certificates:
  - sigma: 0.2
    n: 100
"""
    (voting,) = cells(tmp_path, rest.replace("AGGREGATION", "majority-vote")).cells
    (single,) = cells(tmp_path, rest.replace("AGGREGATION", "single")).cells
    assert (voting.certify.smoothed.votes, single.certify.smoothed.votes) == (3, 1)
    assert voting.certify.smoothed.evaluations == 6
    (averaging,) = cells(tmp_path, rest.replace("AGGREGATION", "mean-probability")).cells
    smoothed = averaging.certify.smoothed
    assert (smoothed.votes, smoothed.inner) == (3, "mean") and "inner" not in voting.certify.smoothed.identity()
    assert smoothed.id != voting.certify.smoothed.id


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ("certificates:\n  - sigma: 0\n", "greater than 0"),
        ("certificates:\n  - sgima: 0.25\n", "did you mean 'sigma'"),
        ("certificates:\n  - sigma: 0.25\n    n: 5\n", "cannot certify"),
        ("certificates:\n  - certificate: lipschitz\n    sigma: 0.25\n", "smoothing"),
        ("corruptions:\n  - corruption: fogg\n", "fog"),
        ("corruptions:\n  - corruption: fog\n    severity: 0\n", "from 1 to 5"),
        ("corruptions:\n  - corruption: fog\n    origin: official\n    path: .\n", "not of digits"),
        ("quality: {lpips: missing.pth}\n", "missing.pth"),
        ("quality: {ssim: true}\n", "unknown field 'ssim'"),
    ],
)
def test_wrong_entries_say_what_is_wrong_and_where(section: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=why) as caught:
        cells(tmp_path, "defences: [none]\n" + section)
    assert "small.yaml:" in str(caught.value)


LONG = HEAD.replace("first: 12", "first: 2").replace("chunk: 8", "chunk: 1") + (
    "defences: [none]\ncertificates:\n  - sigma: 0.2\n    n: 20000\n    shard: 500\n"
)


@pytest.mark.nightly
def test_a_certificate_that_is_killed_in_the_middle_of_an_image_resumes_to_the_same_counts(
    two_slots: SharedRay, tmp_path: Path
) -> None:
    file, store = tmp_path / "small.yaml", tmp_path / "store"
    sweep = small_sweep(tmp_path, LONG)
    (cell,) = sweep.cells
    compute(sweep, str(tmp_path / "undisturbed"))
    expected = Results(Store(str(tmp_path / "undisturbed")), sweep).rows(cell)

    command = ["run", str(file), "--store", str(store), "--workers", "1", "--mlflow", "off"]
    command += ["--address", two_slots.address]
    words = [sys.executable, "-m", "workflows.cli", *command]
    driver = subprocess.Popen(words, start_new_session=True, stderr=subprocess.PIPE)
    counted = store / "commits" / "sample"
    wait_for(lambda: len(list(counted.rglob("*.json"))) >= 15, driver)
    workers = workers_of(os.getpid())
    for process in (driver, *workers):
        process.send_signal(signal.SIGKILL)
    driver.communicate()
    assert workers and not psutil.wait_procs(workers, timeout=300)[1]
    before = {path: path.read_bytes() for path in counted.rglob("*.json")}
    done = {path.parent.name for path in before}
    assert 15 <= len(before) < 82 and not list((store / "commits").rglob("certify/*/*.json"))
    assert len(done) > 1, "an image is in the middle: some of its ranges are committed"

    finished = CliRunner().invoke(app, command)
    assert finished.exit_code == 0, finished.stderr
    assert f"{len(before)} committed" in finished.stderr
    assert {path: path.read_bytes() for path in before} == before, "nothing was counted again"
    rows = Results(Store(str(store)), sweep).rows(cell)
    assert rows["counts"].map(list).tolist() == expected["counts"].map(list).tolist()
    assert [sum(each) for each in rows["counts"]] == [20_000, 20_000]
    assert rows.drop(columns=["counts", "selection_counts"]).equals(
        expected.drop(columns=["counts", "selection_counts"])
    )
