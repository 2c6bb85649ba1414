"""The verdict: by simulation where the truth is known, and on real stores through the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import Result
from typer.testing import CliRunner

from defense.errors import InvalidInput
from workflows.analysis import Analysis
from workflows.cli import app
from workflows.engine.worker import UnitWorker
from workflows.formats import render
from workflows.grid.load import Sweep, load_sweep
from workflows.monitoring.versions import driver_versions
from workflows.planning.plan import make_plan
from workflows.regression.baselines import from_text, to_text
from workflows.regression.check import CellVerdict, Gate, check, junit, verdict_of
from workflows.regression.snapshots import CellOutcome, Shares, Snapshot, of_results, of_store
from workflows.results.reader import Results
from workflows.results.records import record_sweep
from workflows.store import Store
from workflows.tracking.track import track

SWEEP = """
sweep: checked
datasets:
  - dataset: digits
    images: {first: IMAGES}
classifiers:
  - {classifier: digits-cnn, mean: [MEAN]}
defences: [none]
attacks:
  - none
  - {attack: pgd, norm: linf, eps: 0.05, steps: 2}
chunk: 50
"""


def filled(folder: Path, images: int = 150, mean: float = 0.3) -> tuple[Sweep, Store, Path]:
    """A store in which the sweep has run, without Ray."""
    path = folder / f"sweep-{images}-{mean}.yaml"
    path.write_text(SWEEP.replace("IMAGES", str(images)).replace("MEAN", str(mean)))
    sweep, store = load_sweep(path), Store(str(folder / f"store-{images}-{mean}"))
    plan = make_plan(sweep)
    record_sweep(sweep, plan, store)
    worker = UnitWorker(store.uri, "cpu")
    for stage in plan.stages:
        inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
        for chunk in stage.chunks:
            worker.run(stage.spec, stage.id, chunk, inputs)
    return sweep, store, path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Store, Path]:
    return filled(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Store, Path]:
    """The same with the classifier's normalisation damaged."""
    return filled(tmp_path_factory.mktemp("worse"), mean=1.4)


@pytest.fixture(autouse=True)
def _no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def snapshot(of: tuple[Sweep, Store, Path]) -> Snapshot:
    return of_results(Results(of[1], of[0]))


def puregrid(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# Simulated runs


def outcome(name: str, counts: npt.NDArray[np.int64], draws: int, **fields: Any) -> CellOutcome:
    spec: Mapping[str, Any] = {"draws": draws, "aggregation": "single", "dataset": {"dataset": "d"}, "name": name}
    first = {"data": "abc", "images": tuple(range(len(counts))), "complete": True, "seconds": 0.1}
    first |= {"cost": {"denoiser": 10.0, "classifier": 1.0}, "values": {"Avg": Shares(counts, draws)}}
    return CellOutcome(**{"name": name, "spec": spec, **first, **fields})


def run_of(counts: Mapping[str, npt.NDArray[np.int64]], draws: int) -> Snapshot:
    return Snapshot("simulated", "s", tuple(outcome(name, right, draws) for name, right in counts.items()), {})


def pairs(runs: int, *, images: int, draws: int, cells: int, drop: float) -> Iterator[tuple[Snapshot, Snapshot]]:
    """Pairs of runs on easy and hard images; in the first cell a share ``drop`` of the accuracy is lost."""
    rng = np.random.default_rng(0)
    for _ in range(runs):
        p = rng.beta(0.4, 0.15, (cells, images))
        q = p.copy()
        q[0] *= np.where(rng.random(images) < drop / p[0].mean(), 0, 1)
        before, now = rng.binomial(draws, p), rng.binomial(draws, q)
        yield tuple(run_of({f"c{i}": shares[i] for i in range(cells)}, draws) for shares in (before, now))  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "draws", "cells", "margin"), [(300, 1, 6, 0.01), (1000, 3, 3, 0.01), (300, 3, 4, 0)]
)
def test_runs_without_a_change_raise_hardly_an_alarm(images: int, draws: int, cells: int, margin: float) -> None:
    gate = Gate(margin=margin)
    found = [check(*pair, gate) for pair in pairs(60, images=images, draws=draws, cells=cells, drop=0.0)]
    assert sum(verdict_of(verdicts) == "regressed" for verdicts in found) <= 3
    assert {len(verdicts) for verdicts in found} == {cells}


@pytest.mark.slow
def test_a_drop_of_five_points_on_1000_images_is_caught() -> None:
    found = [check(*pair, Gate()) for pair in pairs(60, images=1000, draws=3, cells=4, drop=0.05)]
    assert sum(verdicts[0].verdict == "regressed" for verdicts in found) >= 57
    # And the other cells are left alone.
    assert sum(any(cell.verdict == "regressed" for cell in verdicts[1:]) for verdicts in found) <= 3
    # The stated power is 80 % at some size well below 5 points.
    smallest = [verdicts[0].judged[0].detectable for verdicts in found]
    assert all(size is not None and 0.02 < size < 0.05 for size in smallest)


def changed(run: Snapshot, i: int = 0, **fields: Any) -> Snapshot:
    cells = list(run.cells)
    cells[i] = replace(cells[i], **fields)
    return replace(run, cells=tuple(cells))


def plain(images: int = 200) -> Snapshot:
    rng = np.random.default_rng(4)
    return run_of({name: rng.binomial(3, 0.9, images) for name in ("c0", "c1")}, 3)


def test_cost_is_judged_exactly_and_seconds_on_request() -> None:
    run = plain()
    more = changed(run, cost={"denoiser": 10.5, "classifier": 1.0}, seconds=0.2)
    found = check(run, more, Gate())
    assert [cell.verdict for cell in found] == ["regressed", "holds"]
    assert found[0].why == "denoiser evaluations per answer rose from 10 to 10.5"
    assert {cell.verdict for cell in check(run, more, Gate(cost_margin=0.05))} == {"holds"}
    assert {cell.verdict for cell in check(more, run, Gate())} == {"holds"}
    slow = check(run, more, Gate(cost_margin=0.05, seconds_margin=0.5))
    assert slow[0].verdict == "regressed" and slow[0].why == "seconds per image rose from 0.1 to 0.2"
    assert check(run, changed(run, seconds=None), Gate(seconds_margin=0.5))[0].verdict == "unknown"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"data": "other"}, "judged on other images"),
        ({"images": tuple(range(1, 201))}, "judged on other images"),
        ({"complete": False}, "this run is not complete"),
        ({"spec": {"draws": 3, "aggregation": "majority-vote", "dataset": {"dataset": "d"}}}, "aggregated by single"),
        (
            {"values": {"certified": Shares(np.ones(200, dtype=np.int64), 1)}},
            "only one of the runs has Avg, certified",
        ),
    ],
)
def test_what_cannot_be_compared_never_holds(fields: dict[str, Any], why: str) -> None:
    run = plain()
    found = check(run, changed(run, **fields), Gate())
    assert [cell.verdict for cell in found] == ["unknown", "holds"] and why in found[0].why
    assert verdict_of(found) == "unknown"


def test_cells_that_one_side_lacks_are_unknown() -> None:
    run = plain()
    fewer = replace(run, cells=run.cells[:1])
    assert [cell.why for cell in check(fewer, run, Gate())][1] == "the baseline has no such cell"
    gone = check(run, fewer, Gate())
    assert gone[1].verdict == "unknown" and "no such cell any more" in gone[1].why
    with pytest.raises(InvalidInput, match="no cell"):
        check(replace(run, cells=()), run, Gate())


def test_another_attack_can_show_a_drop_but_never_that_all_is_well() -> None:
    run = plain()
    spec = {**run.cells[0].spec, "source": {"attack": {"steps": 20}, "classifier": {"sha256": "a"}}}
    run = changed(run, spec=spec)
    weak = {**spec, "source": {"attack": {"steps": 2}, "classifier": {"sha256": "a"}}}
    found = check(run, changed(run, spec=weak), Gate())
    assert found[0].verdict == "unknown" and "source.attack.steps 20 -> 2" in found[0].why
    lost = Shares(np.zeros(200, dtype=np.int64), 3)
    assert check(run, changed(run, spec=weak, values={"Avg": lost}), Gate())[0].verdict == "regressed"
    # Other weights under the same attack are what a check is for.
    weights = {**spec, "source": {"attack": {"steps": 20}, "classifier": {"sha256": "b"}}}
    found = check(run, changed(run, spec=weights), Gate())
    assert found[0].verdict == "holds" and [change.field for change in found[0].changes] == [
        "source.classifier.sha256"
    ]


def test_too_few_images_are_reported_as_too_few() -> None:
    run = plain(20)
    found = check(run, run, Gate())
    assert found[0].verdict == "unknown" and "too few images: 20 show drops of" in found[0].why
    assert check(run, run, Gate(detect=0.9))[0].verdict == "holds"


def test_an_answer_of_several_draws_is_judged_beside_avg() -> None:
    right, counts = np.ones(300, dtype=np.int64), np.full(300, 2)
    values = {"Avg": Shares(counts, 3), "answer": Shares(right, 1)}
    spec = {"draws": 3, "aggregation": "majority-vote"}
    before = Snapshot("b", "s", (outcome("c", counts, 3, spec=spec, values=values),), {})
    lost = right.copy()
    lost[:30] = 0  # ten points of the vote, while Avg holds
    now = changed(before, values={**values, "answer": Shares(lost, 1)})
    found = check(before, now, Gate())
    assert found[0].verdict == "regressed" and found[0].why.startswith("answer 100.0 % before, 90.0 % now")
    assert [judgement.measure for judgement in found[0].judged if judgement.regressed] == ["answer"]


@pytest.mark.parametrize(
    "fields", [{"margin": -0.1}, {"alpha": 0.0}, {"detect": 0.01}, {"cost_margin": -1.0}, {"seconds_margin": -0.1}]
)
def test_options_out_of_range_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="is invalid: it must be") as caught:
        Gate(**fields)
    assert caught.value.where == f"--{next(iter(fields)).replace('_', '-')}"


def test_junit_is_a_test_case_a_cell() -> None:
    run = plain()
    broken = changed(changed(run, values={"Avg": Shares(np.zeros(200, dtype=np.int64), 3)}), 1, complete=False)
    awkward = changed(broken, 1, name='c1 <&"> t*')
    root = ElementTree.fromstring(junit(check(changed(run, 1, name='c1 <&"> t*'), awkward, Gate()), "s & t"))
    suite = root.find("testsuite")
    assert suite is not None and suite.attrib == {
        "name": "s & t",
        "tests": "2",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    first, second = suite.findall("testcase")
    assert first.find("failure") is not None and "worse" in str(first.find("failure").text)  # type: ignore[union-attr]
    assert second.attrib["name"] == 'c1 <&"> t*' and second.find("error") is not None
    passed = ElementTree.fromstring(junit(check(run, run, Gate()), "s"))
    assert not list(passed.iter("failure")) and not list(passed.iter("error"))


# Real stores


def test_equal_results_hold_and_damaged_weights_regress(
    good: tuple[Sweep, Store, Path], worse: tuple[Sweep, Store, Path]
) -> None:
    before, now = of_store(good[1], "checked", "here"), snapshot(worse)
    assert [cell.verdict for cell in check(before, snapshot(good), Gate())] == ["holds", "holds"]
    found = check(before, now, Gate())
    assert [cell.verdict for cell in found] == ["regressed", "regressed"]
    assert "before" in found[0].why and "150 images" in found[0].why
    # The cause is named: the classifier's normalisation, and nothing else, in both cells.
    assert {change.field for cell in found for change in cell.changes} >= {"classifier.mean"}
    assert all(change.field.endswith("classifier.mean") for cell in found for change in cell.changes)
    # The other way round nothing regressed: an improvement holds.
    assert {cell.verdict for cell in check(now, before, Gate())} == {"holds"}
    # A margin as large as the drop tolerates it.
    assert {cell.verdict for cell in check(before, now, Gate(margin=0.95, detect=1.0))} <= {"holds", "unknown"}


def test_values_are_those_of_the_rows(good: tuple[Sweep, Store, Path]) -> None:
    results = Results(good[1], good[0])
    found = snapshot(good)
    for cell, row in zip(found.cells, results.robustness().to_dict("records"), strict=True):
        assert cell.values["Avg"].values.mean() == pytest.approx(row["avg"])
        assert cell.values["answer"].values.mean() == pytest.approx(row["accuracy"])
        assert len(cell.images) == 150 and cell.cost == {"denoiser": 0.0, "classifier": 1.0}
        assert cell.seconds is not None and cell.seconds > 0


@pytest.mark.slow
def test_exit_codes_and_the_file_that_is_promoted(
    good: tuple[Sweep, Store, Path], worse: tuple[Sweep, Store, Path], tmp_path: Path
) -> None:
    (_, store, path), (_, bad_store, bad_path) = good, worse
    file, xml = tmp_path / "baseline.json", tmp_path / "junit.xml"
    assert puregrid("promote", path, "--store", store.uri, "--to", file).exit_code == 0
    assert file.stat().st_size < 10_000
    at = ["--baseline", file, "--junit", xml, "--json"]
    held = puregrid("check", path, "--store", store.uri, *at)
    assert held.exit_code == 0 and json.loads(held.stdout)["verdict"] == "holds"
    assert ElementTree.parse(xml).getroot().attrib["failures"] == "0"
    failed = puregrid("check", bad_path, "--store", bad_store.uri, *at)
    content = json.loads(failed.stdout)
    assert failed.exit_code == 1 and content["verdict"] == "regressed" and content["margin"] == 0.01
    assert ElementTree.parse(xml).getroot().attrib["failures"] == "2"
    # A store as the baseline says the same; this run's own store is pointed out.
    assert puregrid("check", bad_path, "--store", bad_store.uri, "--baseline", store.uri).exit_code == 1
    own = puregrid("check", path, "--store", store.uri, "--baseline", store.uri)
    assert own.exit_code == 0 and "compared with itself always holds" in own.stderr


def test_a_file_gives_back_what_was_written(good: tuple[Sweep, Store, Path], tmp_path: Path) -> None:
    run = snapshot(good)
    gaps = replace(run.cells[0], images=(3, 4, 5, 9, *range(20, 166)))
    text = to_text(replace(run, cells=(gaps, *run.cells[1:])))
    again = from_text(text, "f")
    assert json.loads(text)["cells"][0]["images"] == "3-5, 9, 20-165"
    assert again.cells[0].images == gaps.images and to_text(again) == text
    for old, new in zip(run.cells, again.cells, strict=True):
        assert {k: (v.counts.tolist(), v.of) for k, v in old.values.items()} == {
            k: (v.counts.tolist(), v.of) for k, v in new.values.items()
        }
        assert old.spec_id == new.spec_id


def test_files_that_are_no_baseline_say_what_they_are(good: tuple[Sweep, Store, Path], tmp_path: Path) -> None:
    results = Results(good[1], good[0])
    table = render(Analysis(results), "json")
    text = to_text(snapshot(good))
    data = json.loads(text)["cells"][0]["values"]["Avg"]["data"]
    for broken, message in (
        (table, "cannot be paired"),
        ("{", "no JSON"),
        (json.dumps({"something": "else"}), "its schema is None"),
        (
            text.replace("puregrid-baseline/1", "puregrid-baseline/9"),
            "a later version .*puregrid-baseline/9",
        ),
        (text.replace(data, data[:-4]), "damaged"),
        (text.replace('"images": "0-149"', '"images": "1-150"'), "not those of their digest"),
        (text.replace('"of": 1', '"of": 0'), "damaged"),
    ):
        assert broken != text
        with pytest.raises(InvalidInput, match=message):
            from_text(broken, "f")
    file = tmp_path / "table.json"
    file.write_text(table)
    refused = puregrid("check", good[2], "--store", good[1].uri, "--baseline", file)
    assert refused.exit_code == 2 and "puregrid promote" in refused.stderr


@pytest.mark.slow
def test_other_images_and_holes_exit_with_2(good: tuple[Sweep, Store, Path], tmp_path: Path) -> None:
    other, store, path = filled(tmp_path, images=200)
    command = ["check", path, "--store", store.uri, "--baseline", good[1].uri]
    found = puregrid(*command)
    assert found.exit_code == 2 and "judged on other images: 150 of data" in found.stdout

    stage = make_plan(other).stages[0]
    copy = tmp_path / "copy"
    shutil.copytree(store.uri, copy)
    store.revoke(stage.spec.stage, stage.id, stage.chunks[0].name)
    verdicts = check(of_store(Store(str(copy)), None, "copy"), of_results(Results(store, other)), Gate())
    assert [cell.verdict for cell in verdicts] == ["unknown", "holds"] and "not complete" in verdicts[0].why
    refused = puregrid("promote", path, "--store", store.uri, "--to", tmp_path / "no.json")
    assert refused.exit_code == 2 and "not complete" in refused.stderr and not (tmp_path / "no.json").exists()


def test_a_store_that_knows_nothing_of_the_sweep_is_refused(good: tuple[Sweep, Store, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for where, message in (("empty", "no sweep 'checked'"), ("nowhere", "no such file or store")):
        found = puregrid("check", good[2], "--store", good[1].uri, "--baseline", tmp_path / where)
        assert found.exit_code == 2 and message in found.stderr


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow
def test_an_alias_in_mlflow_stays_with_what_was_promoted(
    good: tuple[Sweep, Store, Path], worse: tuple[Sweep, Store, Path], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    def logged(of: tuple[Sweep, Store, Path]) -> str:
        results = Results(of[1], of[0])
        outcomes = to_text(of_results(results))
        return track(uri, Analysis(results, audit=False), versions=driver_versions(), outcomes=outcomes)

    def checked(of: tuple[Sweep, Store, Path], baseline: str) -> int:
        return puregrid("check", of[2], "--store", of[1].uri, "--baseline", baseline, "--mlflow", uri).exit_code

    early = puregrid("promote", good[2], "--store", good[1].uri, "--mlflow", uri)
    assert early.exit_code == 2 and "has no run in MLflow" in early.stderr
    first = logged(good)
    assert checked(good, "mlflow:champion") == 2
    assert puregrid("promote", good[2], "--store", good[1].uri, "--mlflow", uri).exit_code == 0
    second = logged(worse)
    client = MlflowClient(tracking_uri=uri)
    assert checked(good, "mlflow:champion") == 0
    assert client.get_run(first).data.tags["puregrid.check.verdict"] == "holds"
    assert checked(worse, "mlflow:champion") == 1
    tags = client.get_run(second).data.tags
    assert tags["puregrid.check.verdict"] == "regressed" and tags["puregrid.check.baseline"] == "mlflow:champion"
    assert "dropped by" in tags["puregrid.check.why"]
    assert checked(worse, f"mlflow:{first}") == 1 and checked(worse, f"mlflow:{second}") == 0
    # Logging the champion's run again, with other rows, does not move the baseline.
    client.log_text(first, client_text := to_text(snapshot(worse)), "outcomes.json")
    assert client_text and checked(worse, "mlflow:champion") == 1
    # Another run takes the alias, and the old one loses it.
    assert puregrid("promote", worse[2], "--store", worse[1].uri, "--mlflow", uri).exit_code == 0
    assert "puregrid.baseline.champion" not in client.get_run(first).data.tags
    assert checked(worse, "mlflow:champion") == 0
    assert checked(good, "mlflow:nobody") == 2


def test_a_broken_mlflow_changes_no_verdict(good: tuple[Sweep, Store, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database" * 100)
    found = puregrid(
        "check", good[2], "--store", good[1].uri, "--baseline", good[1].uri, "--mlflow", f"sqlite:///{broken}"
    )
    assert found.exit_code == 0 and "could not be set in MLflow" in found.stderr


def test_a_verdict_as_json_has_the_numbers(good: tuple[Sweep, Store, Path], worse: tuple[Sweep, Store, Path]) -> None:
    cell: CellVerdict = check(snapshot(good), snapshot(worse), Gate())[0]
    content = json.loads(json.dumps(cell.as_dict()))
    drop = content["judged"][0]["drop"]
    assert drop["value"] == pytest.approx(drop["before"] - drop["now"]) and drop["low"] > 0.01
    assert drop["worse"] > drop["better"] and drop["p"] <= content["judged"][0]["p_holm"] < 0.05
    before, now = (snapshot(run).cells[0].values["Avg"].values for run in (good, worse))
    assert (drop["before"], drop["now"], drop["images"]) == (before.mean(), now.mean(), len(now))
    assert content["verdict"] == "regressed" and content["cost"]["classifier"] == [1.0, 1.0]
