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
from datetime import UTC, datetime
from typing import Any

from workflows.monitoring.ledger import Ledger
from workflows.store import Store, StoreUnavailable

__all__ = ["RunRecord", "duration", "read_runs", "run_line"]

_SECONDS = 5.0
"""How often a record is rewritten."""

_SILENT = 90.0
"""A run that did not write for so long is not going on. A driver may wait out an outage of the store for a minute."""


class RunRecord:
    """Writes the record of one run.

    Arguments:
        store: Where.
        sweep_id: Of which sweep.
        purpose: ``run`` or ``calibration``.
        gpus_per_worker: GPUs of each worker; 0 runs on CPUs.
        to_compute: Units that were missing.
    """

    def __init__(self, store: Store, sweep_id: str, purpose: str, gpus_per_worker: float, to_compute: int) -> None:
        now = datetime.now(UTC)
        self.id = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        self.ledger = Ledger()
        self._store = store
        self._path = f"sweeps/{sweep_id}/runs/{self.id}.json"
        self._written = 0.0
        self.to_compute = to_compute
        self._constant = {
            "run": self.id,
            "purpose": purpose,
            "started": _text(now),
            "driver": f"{socket.gethostname()} {os.getpid()}",
            "gpus_per_worker": gpus_per_worker,
        }

    def progress(self, workers: int, done: int, left_seconds: float | None) -> None:
        """Say how far it is, unless that was done a moment ago.

        Arguments:
            workers: Workers that are there.
            done: Units that are no longer missing.
            left_seconds: Seconds until the end, if that can be told.
        """
        if time.monotonic() - self._written > _SECONDS:
            self._write(state="running", alive=workers, done=done, left_seconds=left_seconds)

    def finish(self, state: str, elsewhere: int, *, workers_at_most: int) -> dict[str, Any]:
        """Say how it ended: ``finished``, ``failed`` or ``stopped``; returns the record."""
        return self._write(
            state=state,
            alive=0,
            done=self.ledger.units + elsewhere,
            left_seconds=None,
            ended=_text(datetime.now(UTC)),
            workers_at_most=workers_at_most,
        )

    def _write(self, **changing: Any) -> dict[str, Any]:
        now = _text(datetime.now(UTC))
        record = {
            **self._constant,
            "updated": now,
            "to_compute": self.to_compute,
            **changing,
            **self.ledger.as_dict(),
        }
        # No run stops for the want of its record.
        with contextlib.suppress(StoreUnavailable):
            self._store.files.write(self._path, (json.dumps(record, indent=1) + "\n").encode())
        self._written = time.monotonic()
        return record


def read_runs(store: Store, sweep_id: str, last: int = 8) -> list[dict[str, Any]]:
    """The last records of a sweep, the newest one last; ``state`` is ``silent`` of a run whose driver is gone."""
    folder, found = f"sweeps/{sweep_id}/runs", []
    for name in store.files.names(folder)[-last:]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            record = json.loads(store.files.read(f"{folder}/{name}"))
            if record["state"] == "running" and _age(record["updated"]) > _SILENT:
                record["state"] = "silent"
            found.append(record)
    return found


def run_line(record: dict[str, Any]) -> str:
    """What a record says, in one line; empty of a run that ended."""
    began, updated = record["started"][11:19], record["updated"][11:19]
    who = f"{record['purpose']} of {began} UTC by {record['driver']}"
    if record["state"] == "silent":
        return f"{who}: no word since {updated} UTC, so its driver is gone; run the same command again to continue"
    if record["state"] != "running":
        return ""
    left = record["left_seconds"]
    when = "time left not known yet" if left is None else f"about {duration(left)} left"
    return (
        f"{who}: {record['done']} of {record['to_compute']} units, {record['alive']} workers, "
        f"{record['units_per_second']:.2f} units/s, {record['images_per_second']:.1f} images/s, {when} "
        f"(as of {updated} UTC)"
    )


def duration(seconds: float) -> str:
    """``48 s``, ``12.3 min``, ``4.6 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _text(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


def _age(text: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
