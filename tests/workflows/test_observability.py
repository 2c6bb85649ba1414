"""What a run says of itself: predictions, logs, utilisation and status, of real processes and one that is killed."""

from __future__ import annotations

import json
import logging
import re
import signal
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lab import SWEEP, UNITS, Lab, wait_for
from naps import SharedRay

from defense.errors import InvalidInput
from tasks.stages.kind import Kind
from workflows.analysis import Analysis
from workflows.grid.load import load_sweep
from workflows.monitoring.events import LOGGER, enabled, log_event, log_to
from workflows.monitoring.ledger import KindAccount, Ledger, Place, utilisation_table
from workflows.monitoring.run_record import (
    RunRecord,
    RunRecorder,
    duration,
    look_for_drivers,
    read_runs,
    run_line,
)
from workflows.results.reader import Results
from workflows.store import Store
from workflows.tracking.track import track


def events_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


class TestLog:
    def test_a_line_is_an_object_with_time_event_and_fields(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        before = datetime.now(UTC)
        with log_to(path, run="r1"):
            log_event("committed", unit="a/b", seconds=1.5, error=None)
        with log_to(path, run="r2"):
            log_event("retried", error='line\nbreak "quoted"')
        log_event("retried", error="nobody listens")
        first, second = events_of(path)  # appended, and a line break in an error breaks no line
        assert before - timedelta(seconds=1) < datetime.fromisoformat(first.pop("time")) < datetime.now(UTC)
        assert first == {"event": "committed", "run": "r1", "unit": "a/b", "seconds": 1.5}
        assert (second["run"], second["error"]) == ("r2", 'line\nbreak "quoted"')
        assert second["time"].endswith("+00:00")

    def test_nobody_listens_without_a_log(self, tmp_path: Path) -> None:
        assert not enabled()
        with log_to(tmp_path / "log"):
            assert enabled()
        with log_to(None):
            assert not enabled()
        assert LOGGER.handlers == [] and LOGGER.propagate

    def test_a_library_user_may_listen_too(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, logger="puregrid.run"):
            log_event("planned", units=3)
        (record,) = caplog.records
        assert (record.getMessage(), record.__dict__["fields"]) == ("planned", {"units": 3})

    def test_a_folder_that_is_missing_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"--log: the log '.*no/log' lies in .*no folder; make it first"):
            log_to(tmp_path / "no" / "log").__enter__()


class TestLedger:
    KIND = Kind("evaluate", "", "none", "", "evaluate none")

    def test_shares_by_hand(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [100.0]
        monkeypatch.setattr("workflows.monitoring.ledger.time.monotonic", lambda: clock[0])
        ledger, one, two = Ledger(began=100.0), Place("n1", "h", 1), Place("n2", "h", 2)
        clock[0] = 110.0
        ledger.ready(one, first=True)
        clock[0] = 112.0
        ledger.ready(two, first=True)
        for place, seconds in ((one, 30.0), (two, 5.0), (one, 20.0)):
            ledger.computed(place, self.KIND, 10, seconds, 1.0)
            ledger.busy(place, seconds + 3.0)
        clock[0] = 122.0
        ledger.gone(two)
        clock[0] = 200.0
        ledger.ready(Place("n2", "h", 3), first=False)  # a replacement says nothing of how long a start takes
        found = ledger.accounts()
        assert (found.wall_seconds, found.units, found.images) == (100, 3, 30)
        assert (found.startup_seconds, found.units_per_second, found.images_per_second) == (11, 0.03, 0.3)
        assert found.overhead_seconds == 2  # of 3 s beside the compute one was loading
        assert found.utilisation == pytest.approx((33 + 23 + 8) / (90 + 10), abs=1e-4)
        first, second, third = found.workers
        assert (first.busy_seconds, first.busy_of_run, first.waiting) == (56, 0.56, round(1 - 56 / 90, 4))
        assert (second.alive, second.busy_of_run, second.waiting) == (False, 0.08, pytest.approx(0.2))
        assert first.images_per_second == round(20 / 90, 4)
        assert (third.units, third.alive) == (0, True)
        assert found.kinds == (KindAccount("evaluate none", 3, 30, 55.0, round(30 / 55, 4)),)
        lines = utilisation_table(found)
        assert lines[1].split() == ["h", "n1", "1", "2", "20", "56.0", "56%", "38%", "0.2"]
        assert "†" in lines[2] and "†" not in lines[3]

    def test_a_run_without_workers_has_no_shares(self) -> None:
        found = Ledger().accounts()
        assert (found.units, found.startup_seconds, found.utilisation) == (0, None, None)


FINISHED = """{
 "run": "20260101T000000-abcdef",
 "purpose": "run",
 "started": "2026-01-01T00:00:00+00:00",
 "driver": "h 1",
 "gpus_per_worker": 0.0,
 "updated": "2026-01-01T00:01:00+00:00",
 "to_compute": 3,
 "state": "finished",
 "alive": 0,
 "done": 3,
 "left_seconds": null,
 "ended": "2026-01-01T00:01:00+00:00",
 "workers_at_most": 2,
 "wall_seconds": 60.0,
 "units": 3,
 "images": 30,
 "computing_seconds": 55.0,
 "startup_seconds": 9.644,
 "overhead_seconds": null,
 "utilisation": 0.9986,
 "units_per_second": 0.05,
 "images_per_second": 0.5,
 "workers": [
  {
   "node": "n1",
   "host": "h",
   "pid": 7,
   "alive": true,
   "units": 3,
   "images": 30,
   "busy_seconds": 56.0,
   "computing_seconds": 55.0,
   "loading_seconds": 1.0,
   "busy_of_run": 0.93,
   "waiting": 0.07,
   "images_per_second": 0.5
  }
 ],
 "kinds": [
  {
   "kind": "evaluate none",
   "units": 3,
   "images": 30,
   "computing_seconds": 55.0,
   "images_per_second": 0.5455
  }
 ]
}"""
"""A record as the first version wrote it."""


class _Clock:
    """A clock of another year."""

    def __init__(self, year: int) -> None:
        self.time = datetime(year, 5, 4, 3, 2, 1, tzinfo=UTC)

    def now(self, zone: object) -> datetime:
        return self.time


class TestRecord:
    @pytest.mark.parametrize("where", ["folder", "memory"])
    def test_it_is_running_then_silent_or_ended(self, where: str, tmp_path: Path) -> None:
        store = Store(str(tmp_path) if where == "folder" else f"memory://runs-{tmp_path.name}")
        recorder = RunRecorder(store, "s", "run", 0.0, 9)
        assert read_runs(store, "s") == []
        recorder.progress(2, 4, 33.0)
        recorder.progress(2, 5, 22.0)  # a moment later: not written
        (found,) = read_runs(store, "s")
        assert (found.state, found.done, found.to_compute, found.left_seconds) == ("running", 4, 9, 33.0)
        line = run_line(found)
        assert "4 of 9 units, 2 workers, " in line and "about 33 s left" in line
        path = f"sweeps/s/runs/{recorder.id}.json"
        # Whatever its clock says: the driver is this process.
        for when in ("1999-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", "yesterday"):
            store.files.write(path, json.dumps({**found.to_json(), "updated": when}).encode())
            assert look_for_drivers(store, "s", read_runs(store, "s"))[0].state == "running"
        assert found.process is not None
        ended = {**found.to_json(), "process": " ".join([*found.process.split()[:3], "1"])}  # another had its number
        store.files.write(path, json.dumps(ended).encode())
        (found,) = look_for_drivers(store, "s", read_runs(store, "s"))
        assert found.state == "silent" and "its driver is gone" in run_line(found)
        recorder.finish("finished", 3, workers_at_most=2)
        (found,) = read_runs(store, "s")
        assert (found.state, found.done, run_line(found)) == ("finished", 3, "")

    def test_a_driver_elsewhere_is_there_if_its_record_is_rewritten(self, tmp_path: Path) -> None:
        store, elsewhere = Store(str(tmp_path)), "another-boot 1 2 3"
        for number, process in enumerate([elsewhere, None]):  # older versions did not name their processes
            recorder = RunRecorder(store, "s", "run", 0.0, 9)
            recorder.progress(1, number, None)
            path = f"sweeps/s/runs/{recorder.id}.json"
            content = {**read_runs(store, "s")[-1].to_json(), "process": process}
            store.files.write(path, json.dumps(content).encode())
            before = read_runs(store, "s")
            again = path, json.dumps({**content, "written": 7}).encode()
            with pytest.MonkeyPatch.context() as patch:
                # A second passes between two looks, and the record is written again.
                sleep = partial(lambda again, seconds: store.files.write(*again), again)
                clock = SimpleNamespace(monotonic=iter(range(9)).__next__, sleep=sleep)
                patch.setattr("workflows.monitoring.run_record.time", clock)
                states = [record.state for record in look_for_drivers(store, "s", before, wait=1.0)]
            # It is watched until it changes; the first one, which does not, for as long as that is waited for.
            assert states == ["silent"] * number + ["running"]

    def test_runs_are_in_the_order_of_their_numbers_whatever_the_clock_of_their_machine(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        store.files.write("sweeps/s/runs/20260101T000000-abcdef.json", FINISHED.encode())
        ids = []
        for year in (2031, 1999, 2026):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("workflows.monitoring.run_record.datetime", _Clock(year))
                recorder = RunRecorder(store, "s", "run", 0.0, 9)
                recorder.finish("finished", 0, workers_at_most=1)
                ids.append(recorder.id)
        assert [name[:10] for name in ids] == ["r00001-203", "r00002-199", "r00003-202"]
        assert [record.run for record in read_runs(store, "s")] == ["20260101T000000-abcdef", *ids]
        assert [record.run for record in read_runs(store, "s", last=2)] == ids[1:]

    def test_the_file_is_as_every_version_has_written_it_and_comes_back(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        (tmp_path / "sweeps" / "s" / "runs").mkdir(parents=True)
        (tmp_path / "sweeps" / "s" / "runs" / "20260101T000000-abcdef.json").write_text(FINISHED)
        (found,) = read_runs(store, "s")
        assert (found.workers_at_most, found.accounts.units, found.accounts.workers[0].pid) == (2, 3, 7)
        assert json.dumps(found.to_json(), indent=1) == FINISHED
        # One that goes on does not say when it ended, nor what a newer version says beside all this.
        running = {name: value for name, value in found.to_json().items() if name not in ("ended", "workers_at_most")}
        newer = {**running, "energy_joules": 12.5, "workers": [{**asdict(found.accounts.workers[0]), "watts": 3}]}
        read = RunRecord.from_json(newer)
        assert (read.ended, read.workers_at_most, read.accounts) == (None, None, found.accounts)
        assert read.to_json() == running

    def test_a_record_that_cannot_be_read_is_left_out(self, tmp_path: Path) -> None:
        store = Store(str(tmp_path))
        for number, text in enumerate(('{"state": "running"}', "[]", "{", FINISHED.replace("2,", '"two",', 1))):
            store.files.write(f"sweeps/s/runs/{number}.json", text.encode())
        assert read_runs(store, "s") == []

    def test_durations(self) -> None:
        assert [duration(s) for s in (3.21, 48.4, 150, 9000)] == ["3.2 s", "48 s", "2.5 min", "2.5 h"]


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow  # MLflow makes its database in some seconds
def test_mlflow_has_the_rates_of_the_last_run_that_computed_anything(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    unruly = "  - purifier: unruly:UnrulyConfig\n    seconds: 0.15\n    draws: 2\n"
    (tmp_path / "s.yaml").write_text(SWEEP.replace(unruly, ""))
    sweep, store = load_sweep(tmp_path / "s.yaml"), Store(str(tmp_path / "store"))
    results, uri = Results(store, sweep), f"sqlite:///{tmp_path}/m.db"
    analysis = Analysis(results, audit=False)
    run = {"units": 3, "utilisation": 0.9, "units_per_second": 1.5, "images_per_second": 15.0}
    rest = {"wall_seconds": 2.0, "workers_at_most": 2}
    parent = track(uri, analysis, complete=False, run={**run, **rest})
    for nothing in (None, {**run, **rest, "units": 0, "utilisation": None}):
        assert track(uri, analysis, complete=False, run=nothing) == parent
    found = MlflowClient(uri).get_run(parent).data.metrics
    assert {name: value for name, value in found.items() if name.startswith("run/")} == {
        "run/utilisation": 0.9,
        "run/units_per_second": 1.5,
        "run/images_per_second": 15.0,
        "run/wall_seconds": 2.0,
        "run/workers_at_most": 2.0,
    }


@pytest.mark.nightly
def test_a_sweep_is_measured_predicted_run_watched_and_compared(two_slots: SharedRay, tmp_path: Path) -> None:
    lab, log = Lab(tmp_path, "store", shared=two_slots), tmp_path / "events.jsonl"

    def puregrid(name: str, *options: str) -> str:
        status, out, err = lab.call(lab.command(name, *options))
        assert status == 0, err
        return out

    content = json.loads(puregrid("plan", "--calibrate", "--workers", "2", "--json", "--address", two_slots.address))
    forecast, measured = content["forecast"], lab.attempts()
    # Attack, bare classifier, purifier: of each one unit, then one a worker and three more.
    assert len(measured) == content["committed"] == 3 * (1 + 2 + 3)
    assert forecast["units"] == content["missing"] == UNITS - 18
    assert {kind["kind"].split()[0] for kind in forecast["kinds"]} == {"attack", "evaluate"}
    assert all(kind["units"] >= 3 for kind in forecast["kinds"])
    assert forecast["startup_seconds"] > 0
    # The purifier sleeps 0.15 s for each of two draws, and nothing else takes that long: 30 units on two workers.
    slept = (3 * 12 - 6) * 2 * 0.15
    assert forecast["compute_seconds"] > slept
    assert forecast["wall_seconds"] > forecast["startup_seconds"] + slept / 2
    assert forecast["low"] <= forecast["wall_seconds"] <= forecast["high"]
    kept = json.loads(next((lab.store / "sweeps").glob("*/forecast.json")).read_text())
    assert (kept["units"], kept["wall_seconds"]) == (forecast["units"], forecast["wall_seconds"])
    again = puregrid("plan", "--workers", "2")  # computes nothing, and says the same in words
    assert re.search(r"^predicted: .* on 2 workers; started now, it ends at ", again, re.M)

    driver = lab.start(2, "--log", str(log))

    def told_live() -> bool:
        records = (json.loads(path.read_text()) for path in (lab.store / "sweeps").glob("*/runs/*.json"))
        return any(record["state"] == "running" and record.get("left_seconds") for record in records)

    wait_for(lambda: len(lab.commits()) >= 25 and told_live(), driver)
    driver.send_signal(signal.SIGSTOP)  # on a busy machine the sweep could be over before the status is read
    watched = puregrid("status")
    driver.send_signal(signal.SIGCONT)
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert re.search(r"run of .*: \d+ of 78 units, .* units/s, .* images/s, about .* left", watched)

    after = lab.attempts()
    assert len(after) == UNITS and {path: after[path] for path in measured} == measured
    said = re.search(r"predicted (\S+ \S+) for these 78 units, measured (\S+ \S+): (\d+)% too (long|short)", err)
    assert said is not None, err
    workers = json.loads(puregrid("status", "--json"))["runs"][-1]
    assert (workers["state"], workers["units"], workers["images"]) == ("finished", 78, 780)
    assert sum(each["units"] for each in workers["workers"]) == 78 and len(workers["workers"]) == 2
    assert 0 < workers["utilisation"] <= 1
    told = float(said.group(3)) / 100
    assert abs(kept["wall_seconds"] / workers["wall_seconds"] - 1) == pytest.approx(told, abs=0.005)
    table = puregrid("status", "--workers")
    assert all(f" {each['pid']} " in table for each in workers["workers"])

    events = events_of(log)
    assert [events[0]["event"], events[-1]["event"]] == ["planned", "finished"]
    assert Counter(event["event"] for event in events)["committed"] == 78
    status, _, err = lab.run(2)
    assert status == 0 and "predicted" not in err
