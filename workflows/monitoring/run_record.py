"""The record of each run of a sweep: when, where, how far it is, and what its workers did.

``sweeps/<sweep id>/runs/r<number>-<time>-<random>.json``, rewritten by the driver every few seconds and at the end.
It is what ``puregrid status`` in another shell knows of a run beyond commits. No row depends on it; a driver that
dies leaves what it wrote last.

Times in it are for people: no clock is compared with another one. Runs are ordered by their numbers, and whether a
driver is still there is found out by looking for its process, or, where that is on another machine, by waiting for
the record to be rewritten.
"""

import contextlib
import json
import os
import re
import socket
import time
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from workflows.monitoring.ledger import Accounts, Ledger
from workflows.store import Record, Store, StoreUnavailable
from workflows.store.record import Count, Seconds, Share

__all__ = ["RunRecord", "RunRecorder", "duration", "look_for_drivers", "read_runs", "run_line"]

_SECONDS = 5.0
"""How often a record is rewritten."""

_LOOK_SECONDS = 2.5 * _SECONDS
"""For how long a record of another machine is watched before its driver counts as gone."""


@dataclass(frozen=True)
class RunRecord(Record):
    """The record of a run.

    Arguments:
        run: Its id.
        purpose: ``run`` or ``calibration``.
        started: When, in UTC.
        driver: Machine and process of the driver.
        gpus_per_worker: GPUs of each worker; 0 runs on CPUs.
        updated: When this was written, in UTC.
        to_compute: Units that were missing.
        state: ``running``, ``finished``, ``failed`` or ``stopped``; ``silent`` of one whose driver is gone.
        alive: Workers that are there.
        done: Units that are no longer missing.
        left_seconds: Seconds until the end, if known.
        ended: When, in UTC; None as long as it goes on.
        workers_at_most: The largest number of workers that were there at once; None as long as it goes on.
        accounts: What its workers did.
        process: The driver's process, such that no other one is ever called the same; None if it is not known.
        written: How often this was written before.
    """

    run: str
    purpose: str
    started: str
    driver: str
    gpus_per_worker: Share
    updated: str
    to_compute: Count
    state: str
    alive: Count
    done: Count
    left_seconds: Seconds | None
    ended: str | None
    workers_at_most: Count | None
    accounts: Accounts
    process: str | None = None
    written: Count = 0

    def to_json(self) -> dict[str, object]:
        """See :class:`Record`; the accounts lie beside the rest, and fields known only at the end are left out."""
        content = super().to_json()
        del content["accounts"]
        unknown = {name for name in (*_AT_THE_END, "process") if content[name] is None}
        unknown |= set() if self.written else {"written"}
        known = {name: value for name, value in content.items() if name not in unknown}
        return {**known, **self.accounts.to_json()}

    @classmethod
    def from_json(cls, content: object) -> Self:
        """See :class:`Record`."""
        if isinstance(content, dict):
            content = {**dict.fromkeys(_AT_THE_END), **content, "accounts": content}
        return super().from_json(content)


_AT_THE_END = ("ended", "workers_at_most")


class RunRecorder:
    """Writes the record of one run.

    Arguments:
        store: Where.
        sweep_id: Id of the sweep.
        purpose: ``run`` or ``calibration``.
        gpus_per_worker: GPUs of each worker; 0 runs on CPUs.
        to_compute: Units that are missing.

    Attributes:
        id: Id of the run.
        ledger: Where the time of its workers is booked.
    """

    def __init__(self, store: Store, sweep_id: str, purpose: str, gpus_per_worker: float, to_compute: int) -> None:
        now = datetime.now(UTC)
        before: list[str] = []
        with contextlib.suppress(StoreUnavailable):
            before = store.files.names(f"sweeps/{sweep_id}/runs")
        number = max(map(_number, before), default=0) + 1
        self.id = f"r{number:05d}-{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        self.ledger = Ledger()
        self.to_compute = to_compute
        self._store = store
        self._path = f"sweeps/{sweep_id}/runs/{self.id}.json"
        self._written = 0.0
        self._times = 0
        self._purpose = purpose
        self._started = _text(now)
        self._gpus_per_worker = gpus_per_worker

    def progress(self, workers: int, done: int, left_seconds: float | None) -> None:
        """Write the progress, unless that was done a moment ago; see :class:`RunRecord` for what is counted."""
        if time.monotonic() - self._written > _SECONDS:
            self._write("running", alive=workers, done=done, left_seconds=left_seconds)

    def finish(self, state: str, elsewhere: int, *, workers_at_most: int) -> RunRecord:
        """Write how the run ended: ``finished``, ``failed`` or ``stopped``; returns the record."""
        return self._write(
            state,
            done=self.ledger.units + elsewhere,
            ended=_text(datetime.now(UTC)),
            workers_at_most=workers_at_most,
        )

    def _write(
        self,
        state: str,
        *,
        alive: int = 0,
        done: int,
        left_seconds: float | None = None,
        ended: str | None = None,
        workers_at_most: int | None = None,
    ) -> RunRecord:
        record = RunRecord(
            run=self.id,
            purpose=self._purpose,
            started=self._started,
            driver=f"{socket.gethostname()} {os.getpid()}",
            gpus_per_worker=self._gpus_per_worker,
            updated=_text(datetime.now(UTC)),
            to_compute=self.to_compute,
            state=state,
            alive=alive,
            done=done,
            left_seconds=left_seconds,
            ended=ended,
            workers_at_most=workers_at_most,
            accounts=self.ledger.accounts(),
            process=_name_of(os.getpid()),
            written=self._times,
        )
        self._times += 1
        # No run stops for the want of its record.
        with contextlib.suppress(StoreUnavailable):
            self._store.files.write(self._path, (json.dumps(record.to_json(), indent=1) + "\n").encode())
        self._written = time.monotonic()
        return record


def _number(name: str) -> int:
    """Return the number of a run from the name of its record; 0 for those of versions that did not count."""
    found = re.match(r"r(\d{1,9})-", name)
    return int(found[1]) if found else 0


def read_runs(store: Store, sweep_id: str, last: int = 8) -> list[RunRecord]:
    """Return the last records of a sweep, the newest one last; what cannot be read is left out."""
    folder, records = f"sweeps/{sweep_id}/runs", []
    for name in sorted(store.files.names(folder), key=lambda name: (_number(name), name))[-last:]:
        with contextlib.suppress(FileNotFoundError, ValueError):  # what cannot be read is no reason to stop
            records.append(RunRecord.from_text(store.files.read(f"{folder}/{name}")))
    return records


def look_for_drivers(
    store: Store, sweep_id: str, records: list[RunRecord], wait: float | None = None
) -> list[RunRecord]:
    """Find out which running runs are still going on; ``state`` becomes ``silent`` where the driver is gone.

    Arguments:
        store: The store.
        sweep_id: Id of the sweep.
        records: What :func:`read_runs` has read.
        wait: Seconds for which records of drivers on other machines are watched; by default more than two of the
            intervals in which a driver writes.
    """
    there = {record.run: _is_there(record) for record in records if record.state == "running"}
    end = time.monotonic() + (_LOOK_SECONDS if wait is None else wait)
    found = {record.run: record for record in records}
    while True:
        latest = {record.run: record for record in read_runs(store, sweep_id)} if there else {}
        found |= {run: latest[run] for run in there if run in latest and latest[run] != found[run]}
        watched = {record.run: record for record in records}
        unsure = [run for run, seen in there.items() if seen is None and found[run] == watched[run]]
        if not unsure or time.monotonic() > end:
            break
        time.sleep(0.5)
    gone = {run for run, seen in there.items() if seen is False or run in unsure}
    judged = [found[record.run] for record in records]
    return [
        replace(record, state="silent") if record.run in gone and record.state == "running" else record
        for record in judged
    ]


def _name_of(pid: int) -> str | None:
    """Name a process by the start of its machine, its namespace, its id and when it began; None if there is none.

    A process that has ended, but whose end nobody has noticed yet, is none.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # no such process, or no Linux
        return None
    return None if fields[0] in "ZX" else f"{boot} {namespace} {pid} {fields[19]}"


def _is_there(record: RunRecord) -> bool | None:
    """Return whether the driver of a run is a process of this machine; None where that cannot be known here."""
    here = _name_of(os.getpid())
    parts = (record.process or "").split()
    if here is None or len(parts) != 4 or parts[:2] != here.split()[:2] or not re.fullmatch(r"\d{1,9}", parts[2]):
        return None
    return _name_of(int(parts[2])) == record.process


def run_line(record: RunRecord) -> str:
    """Summarise a record in one line; "" if the run has ended."""
    began, updated = record.started[11:19], record.updated[11:19]
    who = f"{record.purpose} of {began} UTC by {record.driver}"
    if record.state == "silent":
        return (
            f"{who}: no word since {updated} UTC by its clock, so its driver is gone, or stopped; run the same "
            "command again to continue"
        )
    if record.state != "running":
        return ""
    when = "time left not known yet"
    if record.left_seconds is not None:
        when = f"about {duration(record.left_seconds)} left"
    return (
        f"{who}: {record.done} of {record.to_compute} units, {record.alive} workers, "
        f"{record.accounts.units_per_second:.2f} units/s, {record.accounts.images_per_second:.1f} images/s, {when} "
        f"(as of {updated} UTC)"
    )


def duration(seconds: float) -> str:
    """Write a duration as ``48 s``, ``12.3 min`` or ``4.6 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _text(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
