"""The how-to pages are run as they stand: their files, contract tests and sweeps, and all in one real run."""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from holding import failed
from typer.testing import CliRunner

from defense import CLASSIFIERS, DENOISERS, PURIFIERS
from defense.registry import Registry
from tasks.attacks import ATTACKS
from tasks.datasets import DATASETS
from workflows import audit
from workflows.cli import app
from workflows.engine.worker import UnitWorker
from workflows.grid.load import Sweep, load_sweep
from workflows.planning.plan import make_plan
from workflows.results.reader import Results
from workflows.store import Store
from workflows.tracking import track

HERE = Path(__file__).parents[2]
PAGES = HERE / "docs" / "how-to"
BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)

PARTS: dict[str, tuple[Registry[Any], tuple[str, ...]]] = {
    "purifier": (PURIFIERS, ("fade",)),
    "attack": (ATTACKS, ("corners",)),
    "classifier": (CLASSIFIERS, ("linear_digits",)),
    "dataset": (DATASETS, ("arrays",)),
    "denoiser": (DENOISERS, ("pixel_prior",)),
}
"""The registry that each page adds to, and the stem of its files."""


def files_of(page: Path) -> dict[str, str]:
    return dict(BLOCK.findall(page.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All files of all pages in one folder that is on the path, their scripts run, their entry points announced."""
    folder = tmp_path_factory.mktemp("how-to")
    points: list[str] = []
    for page in sorted(PAGES.glob("*.md")):
        for name, text in files_of(page).items():
            assert not (folder / name).exists(), f"{name} is on two pages"
            (folder / name).write_text(text)
            if name.endswith(".toml"):
                for group, entries in tomllib.loads(text)["project"]["entry-points"].items():
                    points += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    metadata = folder / "howto-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: howto\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("\n".join(points) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.chdir(folder)
        for script in sorted(folder.glob("make_*.py")):
            runpy.run_path(str(script))
        yield folder
        for name in [path.stem for path in folder.glob("*.py")]:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("page", PARTS)
def test_a_page_is_complete(page: str) -> None:
    """Code, contract test, sweep, entry point, and the commands with PYTHONPATH."""
    (stem,) = PARTS[page][1]
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    assert {f"{stem}.py", f"test_{stem}.py", f"{stem}.yaml", f"{stem}.toml"} <= files_of(PAGES / f"{page}.md").keys()
    for words in (f"PYTHONPATH=. python -m pytest test_{stem}.py", f"PYTHONPATH=. puregrid run {stem}.yaml"):
        assert words in text
    assert f"]({page}.md)" in (PAGES / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_part_on_the_pages_keeps_its_contract(folder: Path) -> None:
    suites = []
    for path in sorted(folder.glob("test_*.py")):
        module = importlib.import_module(path.stem)
        suites += [value for name, value in vars(module).items() if name.startswith("Test")]
    assert len(suites) == 7
    assert {suite.__name__: failed(suite()) for suite in suites} == {suite.__name__: {} for suite in suites}


@pytest.mark.parametrize("page", PARTS)
def test_entry_point_and_module_name_the_same_part(folder: Path, page: str) -> None:
    registry, (stem,) = PARTS[page]
    points = tomllib.loads((folder / f"{stem}.toml").read_text())["project"]["entry-points"]
    ((group, ((name, place),)),) = ((group, tuple(entries.items())) for group, entries in points.items())
    assert group == registry.group
    assert name in registry.names() and registry.get(name) is registry.get(place)


def commit(sweep: Sweep, store: Path) -> None:
    """Compute the sweep unit by unit in this process."""
    worker, plan = UnitWorker(str(store), "cpu"), make_plan(sweep)
    for stage in plan.stages:
        inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
        for chunk in stage.chunks:
            worker.run(stage.spec, stage.id, chunk, inputs)


def computed(folder: Path, name: str, store: Path) -> dict[tuple[str, str], float]:
    """Mean accuracy by (classifier and defence, attack), of a sweep computed here."""
    sweep = load_sweep(folder / name)
    commit(sweep, store)
    rows = Results(Store(str(store)), sweep).robustness().to_dict("records")
    return {(f"{row['classifier']} {row['defence']}", row["attack"]): row["avg"] for row in rows}


@pytest.mark.slow
def test_the_purifier_s_sweep(folder: Path, tmp_path: Path) -> None:
    found = computed(folder, "fade.yaml", tmp_path)
    static, exact = "pgd-5 linf", "pgd-5 linf exact eot 2"
    assert set(found) == {
        ("digits-cnn none", "clean"),
        ("digits-cnn none", static),
        *(
            (f"digits-cnn fade {strength} s=0.05", attack)
            for strength in (0.2, 0.6)
            for attack in ("clean", static, exact)
        ),
    }
    assert found["digits-cnn fade 0.2 s=0.05", "clean"] >= 0.9
    assert found["digits-cnn fade 0.2 s=0.05", exact] <= found["digits-cnn fade 0.2 s=0.05", "clean"]


@pytest.mark.slow
def test_the_attack_s_sweep(folder: Path, tmp_path: Path) -> None:
    found = computed(folder, "corners.yaml", tmp_path)
    clean, few, many = (found["digits-cnn none", attack] for attack in ("clean", "corners-5 linf", "corners-20 linf"))
    assert many <= few < clean
    assert ("digits-cnn gaussian-noise s=0.1", "corners-20 linf by scores eot 4") in found


@pytest.mark.slow
def test_the_classifier_s_sweep(folder: Path, tmp_path: Path) -> None:
    found = computed(folder, "linear_digits.yaml", tmp_path)
    assert found["linear none", "clean"] >= 0.9
    assert found["linear none", "pgd-10 linf"] < found["digits-cnn none", "pgd-10 linf"] < 1


def test_the_data_set_s_sweep(folder: Path, tmp_path: Path) -> None:
    found = computed(folder, "arrays.yaml", tmp_path)
    assert found["digits-cnn none", "clean"] >= 0.95 > found["digits-cnn none", "fgsm linf"]


def test_the_denoiser_s_sweep(folder: Path, tmp_path: Path) -> None:
    found = computed(folder, "pixel_prior.yaml", tmp_path)
    assert found["digits-cnn diffpure t*=50 in 5 steps", "clean"] >= 0.9


def test_the_audit_rule_fires_where_the_defence_costs_much_and_nowhere_else(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = load_sweep(folder / "clean_cost.yaml")
    commit(sweep, tmp_path)
    monkeypatch.setattr(sys, "argv", ["try_clean_cost.py", "clean_cost.yaml", str(tmp_path)])
    runpy.run_path(str(folder / "try_clean_cost.py"))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning clean-cost On clean images the defence loses ")
    rule = importlib.import_module("clean_cost").clean_cost
    monkeypatch.setattr(audit, "RULES", (*audit.RULES, rule))
    (found,) = (
        finding for finding in audit.findings(Results(Store(str(tmp_path)), sweep)) if finding.rule == "clean-cost"
    )
    labels = {sweep.labels[cell]["defence"] for cell in found.cells}
    assert labels == {"none", "gaussian-noise s=0.6"}
    assert found.evidence["bare"] - found.evidence["clean"] > 0.05 and found.evidence["p"] < 0.01


@pytest.mark.slow
def test_the_metric_appears_in_mlflow(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    source = Path(track.__file__).read_text(encoding="utf-8")
    lines = (folder / "track.diff").read_text().splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] == " ")
    assert source.count(before) == 1, "the page shows a line that is not in workflows/tracking/track.py"
    patched: dict[str, Any] = {"__name__": "patched_track"}
    exec(compile(source.replace(before, "".join(line[1:] for line in lines)), "track.py", "exec"), patched)
    monkeypatch.setattr(track, "_metrics", patched["_metrics"])
    sweep = load_sweep(folder / "precision.yaml")
    commit(sweep, tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = ["run", str(folder / "precision.yaml"), "--store", str(tmp_path), "--workers", "1", "--mlflow", uri]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    (child,) = (run for run in runs if "avg/clean" in run.data.metrics)
    metrics = child.data.metrics
    table = Path(child.info.artifact_uri.removeprefix("file://"), "tables/accuracy.json").read_text()
    low, high = next(line[4:6] for line in json.loads(table)["data"] if line[0] == "clean" and line[2] == "avg")
    assert metrics["precision/clean"] == pytest.approx((high - low) / 2)
    assert "precision/fgsm linf eps 0.1" in metrics


@pytest.mark.nightly
def test_all_of_them_in_one_real_run_by_entry_point(folder: Path, tmp_path: Path) -> None:
    def puregrid(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "workflows.cli", *words, "everything.yaml", "--store", str(tmp_path)]
        # The folder stands for where pip installs what has entry points.
        environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{HERE}"}
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)

    run = puregrid("run", "--workers", "1", "--mlflow", "off")
    assert run.returncode == 0, run.stderr
    rows = json.loads(puregrid("tables", "--format", "json").stdout)["robustness"]
    found = {(row["defence"], row["attack"]): row for row in rows}
    assert {defence for defence, _ in found} == {"none", "fade 0.3 s=0.05", "diffpure t*=50 in 5 steps"}
    assert {attack for _, attack in found} == {"clean", "corners-10 linf"}
    assert all(row["classifier"] == "linear-digits" and row["images"] == 30 for row in rows)
    assert found["none", "clean"]["avg"] >= 0.9
