"""What survives: real driver and worker processes are killed, stopped, blocked and poisoned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from lab import UNITS, Lab, calm, large, storm, wait_for, workers_of
from naps import SharedRay

from workflows.engine.attempts import Event
from workflows.engine.pool import Pool

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The sweep in this process, one unit after the other, without Ray."""
    lab = Lab(tmp_path_factory.mktemp("undisturbed"), "store")
    calm(lab.folder)
    assert len(lab.commits()) == UNITS
    return lab


def unruly_units(commit: str) -> int:
    stage_id = Path(commit).parent.name
    spec = json.loads((Path(commit).parents[3] / "specs" / f"{stage_id}.json").read_text())
    return int(spec["stage"] == "evaluate" and spec["purifier"]["purifier"].startswith("unruly"))


def draws(lab: Lab) -> int:
    """How often the purifier ran: twice a unit, for its two draws."""
    return len(lab.log.read_text().splitlines())


def both_workers(below: int, driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """The two workers of a driver that goes on: the first may have committed units before the second has begun."""
    wait_for(lambda: len(workers_of(below)) == 2, driver)
    return workers_of(below)


@pytest.mark.parametrize("own_ray", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_sweep_outlives_its_drivers_and_workers(
    own_ray: bool, undisturbed: Lab, two_slots: SharedRay, tmp_path: Path
) -> None:
    """Its first driver is killed, the second interrupted, the third ended, and of the fourth a worker is killed.

    Each night the first two start a Ray of their own; by day all share one, and the third is left out.
    """
    lab = Lab(tmp_path, "store", shared=None if own_ray else two_slots)
    driver = lab.start(2)
    lab.wait_for_commits(10, driver)
    orphans = both_workers(driver.pid if own_ray else os.getpid(), driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    _, alive = psutil.wait_procs(orphans, timeout=300)
    assert not alive, "workers outlive their driver"
    kept = lab.attempts()
    assert 0 < len(kept) < UNITS
    known = len(kept)
    assert draws(lab) >= 2 * sum(map(unruly_units, kept))

    for how in ("Ctrl-C", "SIGTERM") if own_ray else ("Ctrl-C",):
        lab.shared = None if own_ray and how == "Ctrl-C" else two_slots
        lab.log.write_text("")
        driver = lab.start(2)
        lab.wait_for_commits(known + 10, driver)
        if how == "Ctrl-C":
            os.killpg(driver.pid, signal.SIGINT)  # a terminal sends it to the whole process group
        else:
            driver.send_signal(signal.SIGTERM)  # a cluster's manager to the driver
        _, err = driver.communicate(timeout=300)
        assert driver.returncode == 130, err
        assert f"{known} committed, {UNITS - known} to compute" in err
        assert "Run the same command again" in err
        drained = lab.attempts()
        assert known + 10 <= len(drained) < UNITS
        assert drained.items() >= kept.items(), "a committed unit was committed again"
        new = drained.keys() - kept.keys()
        assert draws(lab) == 2 * sum(map(unruly_units, new)), "a started unit was not committed"
        kept, known = drained, len(drained)

    lab.log.write_text("")
    log = tmp_path / "events.jsonl"
    driver = lab.start(2, "--log", str(log))
    lab.wait_for_commits(known + 10, driver)
    victim, other = both_workers(os.getpid(), driver)
    victim.send_signal(signal.SIGKILL)
    other.suspend()  # else it could end the sweep before the new worker has started
    wait_for(lambda: log.read_text().count("worker_started") == 3, driver)
    other.resume()
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert f"{known} committed, {UNITS - known} to compute" in err
    assert lab.data() == undisturbed.data()
    after = lab.attempts()
    assert after.items() >= kept.items() and len(set(after.values())) == UNITS
    # Each unit of the purifier runs it once a draw: what the last run did is what was missing, but for what was lost
    # with the worker.
    assert 0 <= draws(lab) - 2 * sum(map(unruly_units, after.keys() - kept.keys())) <= 4
    events = [json.loads(line) for line in log.read_text().splitlines()]
    the_log_adds_up(events, lab, after.keys() - kept.keys(), victim.pid)


def the_log_adds_up(events: list[dict[str, Any]], lab: Lab, commits: set[str], victim: int) -> None:
    """The log of a run whose worker was killed, to the commits of that run."""
    count = Counter(event["event"] for event in events)
    assert (count["planned"], count["finished"], count["quarantined"]) == (1, 1, 0)
    assert (events[0]["event"], events[-1]["event"]) == ("planned", "finished")
    assert (events[0]["units"], events[-1]["units"]) == (len(commits), len(commits))
    committed = [event for event in events if event["event"] == "committed"]
    paths = {f"{path.parent.name}/{path.stem}": path for path in map(Path, commits)}
    assert Counter(event["unit"] for event in committed) == Counter(list(paths))
    for event in committed:
        commit = json.loads(paths[event["unit"]].read_text())
        assert (event["stage"], event["chunk"], event["images"]) == (commit["stage"], commit["chunk"], commit["rows"])
        assert event["seconds"] == pytest.approx(commit["seconds"], abs=1e-3)
    (died,) = [event for event in events if event["event"] == "worker_died"]
    assert died["worker"] == victim and "died" in died["error"]
    (replaced,) = [event for event in events if event["event"] == "worker_replaced"]
    assert replaced["worker"] == victim
    # Two at the start and the one that came for the dead one.
    started = [event["worker"] for event in events if event["event"] == "worker_started"]
    assert len(set(started)) == 3 and victim in started[:2]
    assert {event["worker"] for event in committed} <= set(started)
    assert all(event["worker"] == victim for event in events if event["event"] in ("retried", "put_back"))
    assert len({event["run"] for event in events}) == 1
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)


def test_poison_is_quarantined_a_stuck_unit_times_out_and_damaged_rows_are_computed_again(
    undisturbed: Lab, two_slots: SharedRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the sweep's clean images alone: each death costs a start of a worker."""
    attack = "  - attack: pgd\n    norm: linf\n    eps: [0.1, 0.2]\n    steps: 3\n"
    sweep, units = undisturbed.sweep.replace(attack, ""), 12 * 2
    assert "pgd" not in sweep
    lab = Lab(tmp_path, "store", orders="raise:3,exit:55,hang-once:77", sweep=sweep, shared=two_slots)
    real, hung, told = Pool._stuck, lab.log.with_suffix(".hung"), list[Event]()

    def stuck(pool: Pool) -> list[Event]:
        """Of the unit that hangs, not of one on a busy machine."""
        found = real(pool) if hung.exists() and not told else []
        told.extend(found)
        return found

    monkeypatch.setattr(Pool, "_stuck", stuck)
    status, out, err = lab.run(1, "--unit-timeout", "6")  # a second worker could run a copy of the stuck unit before
    assert status == 1
    assert "stuck: no result after 6 s" in err
    assert len(lab.commits()) == units - 2  # two chunks
    assert "110 of 120" not in out and "100 of 120" in out
    failures = [json.loads(p.read_text()) for p in (lab.store / "sweeps").rglob("failures/*.json")]
    assert len(failures) == 2 and all(failure["attempts"] == 3 for failure in failures)
    (raised,) = [failure for failure in failures if "poison" in failure["error"]]
    assert len([failure for failure in failures if "worker process died" in failure["error"]]) == 1
    assert "_misbehave" in raised["traceback"]
    _, shown, _ = lab.call(lab.command("status"))
    assert f"{units - 2} of {units} units committed" in shown and "this image is poison" in shown

    damaged, missing = sorted((lab.store / "rows" / "evaluate").rglob("*.parquet"))[:2]
    damaged.write_bytes(damaged.read_bytes()[:-7])
    missing.unlink()
    lab.orders = ""
    status, _, err = lab.run(1)
    assert status == 0, err
    assert f"{units - 4} committed, 4 to compute" in err
    assert "it is computed again" in err and "is missing" in err
    assert len(lab.commits()) == units and lab.data().items() <= undisturbed.data().items()
    assert not list((lab.store / "sweeps").rglob("failures/*.json"))


@pytest.mark.nightly
def test_two_drivers_on_one_store_share_the_work(undisturbed: Lab, two_slots: SharedRay, tmp_path: Path) -> None:
    lab = Lab(tmp_path, "store", shared=two_slots)
    drivers = [lab.start(1), lab.start(1)]
    told = [driver.communicate(timeout=300) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], told
    assert told[0][0] == told[1][0], "both end with the same table"
    assert lab.data() == undisturbed.data()
    assert len(set(lab.attempts().values())) == UNITS
    needed = 2 * 12 * 3  # two draws of the slow purifier on each chunk of three kinds of images
    assert needed <= draws(lab) <= 1.5 * needed, "they computed the same units"


@pytest.mark.nightly
def test_a_storm_changes_no_byte(tmp_path: Path) -> None:
    sweep = large(250)
    expected = calm(tmp_path / "calm", sweep)
    lab = Lab(tmp_path, "store", sweep=sweep)
    found = storm(lab, iter(["worker", "raylet", "driver", "stop"]), pause=35, seed=1)
    assert found.drivers == [-signal.SIGKILL, 0], found.notes
    assert found.done == {"worker": 1, "raylet": 1, "driver": 1, "stop": 1}
    assert len(lab.commits()) == 200
    assert lab.data() == expected
    assert len(set(lab.attempts().values())) == 200
