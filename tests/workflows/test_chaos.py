"""What survives: real driver and worker processes are killed, stopped, blocked and poisoned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
from lab import UNITS, Lab, calm, large, storm, wait_for, workers_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The sweep in this process, one unit after the other, without Ray."""
    lab = Lab(tmp_path_factory.mktemp("undisturbed"), "store")
    calm(lab.folder)
    assert len(lab.commits()) == UNITS
    return lab


def test_two_workers_write_the_same_bytes_as_one_process(undisturbed: Lab, tmp_path: Path) -> None:
    lab = Lab(tmp_path, "store")
    status, _, err = lab.run(workers=2)
    assert status == 0, err
    assert lab.data() == undisturbed.data()
    assert len({json.loads(p.read_text())["attempt"] for p in lab.commits()}) == UNITS


def test_killed_worker_then_killed_driver_then_resume(undisturbed: Lab, tmp_path: Path) -> None:
    lab = Lab(tmp_path, "store")
    driver = lab.start(2)
    wait_for(lambda: len(lab.commits()) >= 40)
    victim = workers_of(driver.pid)[0]
    victim.send_signal(signal.SIGKILL)
    at_kill = len(lab.commits())
    wait_for(lambda: len(lab.commits()) >= at_kill + 15)  # the sweep goes on with a new worker

    orphans = workers_of(driver.pid)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    _, alive = psutil.wait_procs(orphans, timeout=60)
    assert not alive, "workers outlive their driver"
    before = lab.attempts()
    assert 0 < len(before) < UNITS
    ran_before = Counter(line.split()[1] for line in lab.log.read_text().splitlines())
    lab.log.write_text("")

    status, _, err = lab.run(workers=2)
    assert status == 0, err
    assert f"{len(before)} committed, {UNITS - len(before)} to compute" in err
    assert lab.data() == undisturbed.data()
    after = lab.attempts()
    assert {path: after[path] for path in before} == before, "a committed unit was committed again"
    # Each unit of the purifier runs it once per draw: what the resumed run did is exactly what was missing.
    unruly_before = sum(unruly_units(path) for path in before)
    assert len(lab.log.read_text().splitlines()) == 2 * (12 * 3 - unruly_before)
    assert sum(ran_before.values()) >= 2 * unruly_before


def unruly_units(commit: str) -> int:
    stage_id = Path(commit).parent.name
    spec = json.loads((Path(commit).parents[3] / "specs" / f"{stage_id}.json").read_text())
    return int(spec["stage"] == "evaluate" and spec["purifier"]["purifier"].startswith("unruly"))


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_interrupt_drains_and_the_same_command_continues(how: str, undisturbed: Lab, tmp_path: Path) -> None:
    lab = Lab(tmp_path, "store")
    driver = lab.start(2)
    wait_for(lambda: len(lab.commits()) >= 30)
    if how == "Ctrl-C":
        os.killpg(driver.pid, signal.SIGINT)  # a terminal sends it to the whole process group
    else:
        driver.send_signal(signal.SIGTERM)  # a cluster's manager to the driver
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    assert "Run the same command again" in err
    drained = lab.attempts()
    assert 30 <= len(drained) < UNITS
    lines = lab.log.read_text().splitlines()
    assert len(lines) == 2 * sum(unruly_units(path) for path in drained), "a started unit was not committed"
    status, _, err = lab.run()
    assert status == 0, err
    assert lab.data() == undisturbed.data()
    assert {path: lab.attempts()[path] for path in drained} == drained


def test_poison_is_quarantined_and_everything_else_goes_on(undisturbed: Lab, tmp_path: Path) -> None:
    lab = Lab(tmp_path, "store", orders="raise:3,exit:55")
    status, out, err = lab.run()
    assert status == 1
    assert len(lab.commits()) == UNITS - 2 * 3  # two chunks, each judged on three kinds of images
    assert "110 of 120" not in out and "100 of 120" in out
    failures = [json.loads(p.read_text()) for p in (lab.store / "sweeps").rglob("failures/*.json")]
    assert len(failures) == 6 and all(failure["attempts"] == 3 for failure in failures)
    raised = [failure for failure in failures if "poison" in failure["error"]]
    died = [failure for failure in failures if "worker process died" in failure["error"]]
    assert len(raised) == 3 and len(died) == 3
    assert "_misbehave" in raised[0]["traceback"]

    shown = subprocess.run(
        [sys.executable, "-m", "workflows.cli", "status", str(tmp_path / "chaos.yaml"), "--store", str(lab.store)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        check=True,
    ).stdout
    assert f"{UNITS - 6} of {UNITS} units committed" in shown and "this image is poison" in shown

    lab.orders = ""
    status, _, err = lab.run()
    assert status == 0, err
    assert lab.data() == undisturbed.data()
    assert not list((lab.store / "sweeps").rglob("failures/*.json"))


def test_stuck_unit_times_out_and_damaged_rows_are_computed_again(undisturbed: Lab, tmp_path: Path) -> None:
    lab = Lab(tmp_path, "store", orders="hang-once:77")
    status, _, err = lab.run(1, "--unit-timeout", "6")  # a second worker could run a copy before that
    assert status == 0, err
    assert "stuck: no result after 6 s" in err
    assert lab.data() == undisturbed.data()

    damaged, missing = sorted((lab.store / "rows" / "evaluate").rglob("*.parquet"))[:2]
    damaged.write_bytes(damaged.read_bytes()[:-7])
    missing.unlink()
    status, _, err = lab.run()
    assert status == 0, err
    assert f"{UNITS - 2} committed, 2 to compute" in err
    assert "it is computed again" in err and "is missing" in err
    assert lab.data() == undisturbed.data()


def test_two_drivers_on_one_store_share_the_work(undisturbed: Lab, tmp_path: Path) -> None:
    lab = Lab(tmp_path, "store")
    drivers = [lab.start(1), lab.start(1)]
    told = [driver.communicate(timeout=300) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], told
    assert told[0][0] == told[1][0], "both end with the same table"
    assert lab.data() == undisturbed.data()
    assert len(set(lab.attempts().values())) == UNITS
    runs = len(lab.log.read_text().splitlines())
    needed = 2 * 12 * 3  # two draws of the slow purifier on each chunk of three kinds of images
    assert needed <= runs <= 1.5 * needed, "they computed the same units"


def test_a_storm_changes_no_byte(tmp_path: Path) -> None:
    expected = calm(tmp_path / "calm", large(400))
    lab = Lab(tmp_path, "store", sweep=large(400))
    found = storm(lab, iter(["worker", "raylet", "driver", "stop"]), pause=60, seed=1)
    assert found.drivers == [-signal.SIGKILL, 0], found.notes
    assert found.done == {"worker": 1, "raylet": 1, "driver": 1, "stop": 1}
    assert len(lab.commits()) == 320
    assert lab.data() == expected
    assert len(set(lab.attempts().values())) == 320
