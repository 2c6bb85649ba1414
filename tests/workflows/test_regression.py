"""The regression workflow and the crontab line: their own commands, run as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from helpers_small import compute

from workflows.grid.load import load_sweep
from workflows.regression.baselines import from_text

ROOT = Path(__file__).parents[2]
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/regression.yml").read_text())
STEPS = WORKFLOW["jobs"]["check"]["steps"]
COMMITTED = ROOT / "workflows/sweeps/baselines/quickstart.json"
SWEEP = """
sweep: weekly
datasets: [{dataset: digits, images: {first: 150}}]
classifiers: [{classifier: digits-cnn, mean: [0.3]}]
defences: [none]
attacks: [none]
"""


def step(name: str) -> dict[str, Any]:
    return next(one for one in STEPS if one.get("name") == name)


def bash(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """As a runner does it with `shell: bash`."""
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder)}
    return subprocess.run(
        ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command],
        cwd=folder,
        env={**os.environ, **own, **variables},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_workflow_runs_weekly_and_on_demand_and_asks_for_little() -> None:
    on = WORKFLOW[True]  # YAML 1.1 reads the key `on` as a boolean, GitHub does not
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", on["schedule"][0]["cron"])
    assert set(on["workflow_dispatch"]["inputs"]) == {"sweep", "baseline"}
    assert WORKFLOW["permissions"] == {"contents": "read"}
    # Without this the status of `puregrid check ... | tee` would be that of tee.
    assert WORKFLOW["defaults"]["run"]["shell"] == "bash"
    for one in STEPS:
        # What a person types in must not be pasted into a script.
        assert "${{" not in one.get("run", "")
    for name in ("SWEEP", "BASELINE"):
        default = re.search(r"'(.*)'", WORKFLOW["env"][name])
        assert default is not None and (ROOT / default[1]).is_file()
    (set_up,) = (one for one in STEPS if one.get("uses") == "./.github/actions/set-up")
    assert set_up["with"]["versions"] == "locked" and not [one for one in STEPS if "pip" in one.get("run", "")]
    assert step("Publish")["if"] == step("Report")["if"] == "${{ !cancelled() }}"


def test_the_committed_baseline_is_one_of_the_committed_sweep() -> None:
    found, sweep = (
        from_text(COMMITTED.read_text(), "committed"),
        load_sweep(ROOT / "workflows/sweeps/quickstart.yaml"),
    )
    assert found.sweep == sweep.name and len(found.cells) == len(sweep.cells)
    assert {len(cell.images) for cell in found.cells} == {599} and all(cell.complete for cell in found.cells)
    for cell, outcome in zip(sweep.cells, found.cells, strict=True):
        labels = sweep.labels[cell.id]
        assert outcome.name.startswith(" · ".join(labels[part] for part in ("dataset", "classifier", "defence")))
    assert not re.search(r'"(path|host|root)": "/', COMMITTED.read_text())
    assert COMMITTED.stat().st_size < 100_000


@pytest.mark.nightly
def test_the_steps_run_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "weekly.yaml").write_text(SWEEP)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/puregrid").symlink_to(Path(sys.executable).parent / "puregrid")
    store = tmp_path / "stores" / f"{date.today()}"  # where the crontab's line looks, so that it finds the rows there
    own = {"SWEEP": "weekly.yaml", "BASELINE": "base.json", "STORE": str(store), "MLFLOW_TRACKING_URI": "off"}
    own["RAY_ADDRESS"] = "local"  # whatever cluster somebody has started on this machine
    table = (ROOT / "deploy/crontab.example").read_text()
    line = next(line for line in table.splitlines() if re.match(r"[\d*]+ [\d*]+ ", line))
    command = line.split(maxsplit=5)[5].replace(r"\%", "%")  # cron takes a bare % for the end of the line
    cron = {**own, "PUREGRID": str(tmp_path), "STORES": str(tmp_path / "stores")}

    ran = bash(step("Run")["run"], tmp_path, **own)
    assert ran.returncode == 0, ran.stderr
    assert bash("puregrid promote $SWEEP --store $STORE --to $BASELINE", tmp_path, **own).returncode == 0
    held = bash(step("Check")["run"], tmp_path, **own)
    assert held.returncode == 0 and held.stdout.startswith("holds: 1 holds"), held.stderr
    assert bash(step("Report")["run"], tmp_path, **own).returncode == 0
    report = tmp_path / step("Publish")["with"]["path"]
    assert {file.name for file in report.iterdir()} == {"junit.xml", "check.txt", "report.html", "tables.md"}
    assert ElementTree.parse(report / "junit.xml").getroot().attrib["failures"] == "0"
    quiet = bash(command, tmp_path, **cron)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert (store / "check.txt").read_text().startswith("holds")

    # Next week somebody has broken the classifier: the job fails, and there is a report to look at. What the step of
    # the run does is shown above.
    (tmp_path / "weekly.yaml").write_text(SWEEP.replace("0.3", "1.4"))
    compute(load_sweep(tmp_path / "weekly.yaml"), str(store))
    failed = bash(step("Check")["run"], tmp_path, **own)
    assert failed.returncode == 1 and "classifier.mean" in (report / "check.txt").read_text()
    assert ElementTree.parse(report / "junit.xml").getroot().attrib["failures"] == "1"
    loud = bash(command, tmp_path, **cron)
    assert "regressed: 1 regressed" in loud.stdout
