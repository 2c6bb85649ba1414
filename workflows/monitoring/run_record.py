"""The record of each run of a sweep: when, where, how far it is, and what its workers did.

``sweeps/<sweep id>/runs/<time>-<random>.json``, rewritten by the driver every few seconds and at the end. It is what
``puregrid status`` in another shell knows of a run beyond commits. No row depends on it; a driver that dies leaves
what it wrote last.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Self

from workflows.monitoring.ledger import Accounts, Ledger
from workflows.store import Record, Store, StoreUnavailable

__all__ = ["RunRecord", "RunRecorder", "duration", "read_runs", "run_line"]

_SECONDS = 5.0
"""How often a record is rewritten."""

_SILENT = 90.0
"""A run that did not write for so long is not going on. A driver may wait out an outage of the store for a minute."""


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
    """

    run: str
    purpose: str
    started: str
    driver: str
    gpus_per_worker: float
    updated: str
    to_compute: int
    state: str
    alive: int
    done: int
    left_seconds: float | None
    ended: str | None
    workers_at_most: int | None
    accounts: Accounts

    def to_json(self) -> dict[str, object]:
        """See :class:`Record`; the accounts lie beside the rest, and fields known only at the end are left out."""
        content = super().to_json()
        del content["accounts"]
        known = {name: value for name, value in content.items() if value is not None or name not in _AT_THE_END}
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
        self.id = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        self.ledger = Ledger()
        self.to_compute = to_compute
        self._store = store
        self._path = f"sweeps/{sweep_id}/runs/{self.id}.json"
        self._written = 0.0
        self._purpose = purpose
        self._started = _text(now)
        self._gpus_per_worker = gpus_per_worker

    def progress(self, workers: int, done: int, left_seconds: float | None) -> None:
        """Write the progress, unless that was done a moment ago.

        Arguments:
            workers: Workers that are there.
            done: Units that are no longer missing.
            left_seconds: Seconds until the end, if known.
        """
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
        )
        # No run stops for the want of its record.
        with contextlib.suppress(StoreUnavailable):
            self._store.files.write(self._path, (json.dumps(record.to_json(), indent=1) + "\n").encode())
        self._written = time.monotonic()
        return record


def read_runs(store: Store, sweep_id: str, last: int = 8) -> list[RunRecord]:
    """Return the last records of a sweep, the newest one last; ``state`` is ``silent`` where the driver is gone."""
    folder, records = f"sweeps/{sweep_id}/runs", []
    for name in store.files.names(folder)[-last:]:
        with contextlib.suppress(FileNotFoundError, ValueError):  # what cannot be read is no reason to stop
            record = RunRecord.from_text(store.files.read(f"{folder}/{name}"))
            silent = record.state == "running" and _age(record.updated) > _SILENT
            records.append(replace(record, state="silent") if silent else record)
    return records


def run_line(record: RunRecord) -> str:
    """Summarise a record in one line; "" if the run has ended."""
    began, updated = record.started[11:19], record.updated[11:19]
    who = f"{record.purpose} of {began} UTC by {record.driver}"
    if record.state == "silent":
        return f"{who}: no word since {updated} UTC, so its driver is gone; run the same command again to continue"
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


def _age(text: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
