"""Account for the time of each worker of a run, as the driver sees it.

A worker's life lasts from when it was ready to its end, or to the end of the run. It is *busy* while it holds a unit:
computing, loading models, or reading and committing, which is the rest of its busy time. Otherwise it waits.
"""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from tasks.stages.kind import Kind
from workflows.store import Record
from workflows.store.record import Count, Seconds, Share

__all__ = ["Accounts", "KindAccount", "Ledger", "Place", "WorkerAccount", "fields_of", "utilisation_table"]


class Place(NamedTuple):
    """Where a worker is.

    Arguments:
        node: Ray's id of the node.
        host: Name of the machine.
        pid: Its process.
    """

    node: str
    host: str
    pid: int


def fields_of(place: Place | None) -> dict[str, str | int]:
    """Return the fields of the log for a place."""
    return {} if place is None else {"node": place.node, "host": place.host, "worker": place.pid}


@dataclass(frozen=True)
class WorkerAccount(Record):
    """The time of one worker.

    Arguments:
        node: Ray's id of its node.
        host: Name of the machine.
        pid: Its process.
        alive: Whether it was there until the end.
        units: Units that it computed and committed.
        images: Images of those.
        busy_seconds: For how long it held units.
        computing_seconds: In it: computing.
        loading_seconds: In it: loading models and data.
        busy_of_run: Share of the run, 0 to 1, for which it was busy.
        waiting: Share of its own life for which it was not.
        images_per_second: Images by its life.
    """

    node: str
    host: str
    pid: Count
    alive: bool
    units: Count
    images: Count
    busy_seconds: Seconds
    computing_seconds: Seconds
    loading_seconds: Seconds
    busy_of_run: Share
    waiting: Share
    images_per_second: Share


@dataclass(frozen=True)
class KindAccount(Record):
    """The totals of units of one kind.

    Arguments:
        kind: Its name.
        units: Units that were computed and committed.
        images: Images of those.
        computing_seconds: Their compute time, summed over workers.
        images_per_second: Images a second of compute.
    """

    kind: str
    units: Count
    images: Count
    computing_seconds: Seconds
    images_per_second: Share


@dataclass(frozen=True)
class Accounts(Record):
    """The totals of all workers of a run.

    Arguments:
        wall_seconds: Since the run began.
        units: Units that workers computed and committed.
        images: Images of those.
        computing_seconds: Compute time, summed over workers.
        startup_seconds: Until the first workers were ready, their mean; None without workers.
        overhead_seconds: Per unit, beside computing and loading; None without units.
        utilisation: Share of the workers' lives, 0 to 1, for which they were busy; None without workers.
        units_per_second: Units by wall time.
        images_per_second: Images by wall time.
        workers: Account of each worker, dead ones among them.
        kinds: Account of each kind of unit.
    """

    wall_seconds: Seconds
    units: Count
    images: Count
    computing_seconds: Seconds
    startup_seconds: Seconds | None
    overhead_seconds: Seconds | None
    utilisation: Share | None
    units_per_second: Share
    images_per_second: Share
    workers: tuple[WorkerAccount, ...] = ()
    kinds: tuple[KindAccount, ...] = ()


@dataclass
class _Account:
    place: Place
    ready: float
    first: bool
    ended: float | None = None
    units: int = 0
    images: int = 0
    computing: float = 0.0
    loading: float = 0.0
    busy: float = 0.0


@dataclass
class _Throughput:
    units: int = 0
    images: int = 0
    computing: float = 0.0


@dataclass
class Ledger:
    """The accounts of all workers of a run, dead ones among them.

    Arguments:
        began: When the run began, on the monotonic clock.
    """

    began: float = field(default_factory=time.monotonic)
    _accounts: dict[Place, _Account] = field(default_factory=dict)
    _kinds: dict[Kind, _Throughput] = field(default_factory=dict)

    def ready(self, place: Place, *, first: bool) -> None:
        """Book that a worker has started, at first or later."""
        self._accounts[place] = _Account(place, time.monotonic(), first)

    def gone(self, place: Place) -> None:
        """Book that a worker has died, or was ended."""
        if place in self._accounts and self._accounts[place].ended is None:
            self._accounts[place].ended = time.monotonic()

    def busy(self, place: Place, seconds: float) -> None:
        """Book the time for which a worker has held units."""
        if place in self._accounts:
            self._accounts[place].busy += seconds

    def computed(self, place: Place, kind: Kind, images: int, seconds: float, loading: float) -> None:
        """Book that a worker has computed and committed a unit."""
        account, throughput = self._accounts.get(place), self._kinds.setdefault(kind, _Throughput())
        throughput.units, throughput.images, throughput.computing = (
            throughput.units + 1,
            throughput.images + images,
            throughput.computing + seconds,
        )
        if account is not None:
            account.units += 1
            account.images += images
            account.computing += seconds
            account.loading += loading

    @property
    def units(self) -> int:
        """Units that workers computed and committed."""
        return sum(throughput.units for throughput in self._kinds.values())

    def accounts(self) -> Accounts:
        """Return the accounts so far, for the record of the run."""
        now = time.monotonic()
        wall = max(now - self.began, 1e-9)
        workers = [_worker(account, now, wall) for account in self._accounts.values()]
        lives = sum(_life(account, now) for account in self._accounts.values())
        units, images = sum(worker.units for worker in workers), sum(worker.images for worker in workers)
        computing = sum(account.computing for account in self._accounts.values())
        loading = sum(account.loading for account in self._accounts.values())
        busy = sum(account.busy for account in self._accounts.values())
        ready = [account.ready - self.began for account in self._accounts.values() if account.first]
        return Accounts(
            wall_seconds=round(wall, 3),
            units=units,
            images=images,
            computing_seconds=round(computing, 3),
            startup_seconds=round(sum(ready) / len(ready), 3) if ready else None,
            overhead_seconds=round(max(busy - computing - loading, 0.0) / units, 4) if units else None,
            utilisation=round(min(busy / lives, 1.0), 4) if workers else None,
            units_per_second=round(units / wall, 4),
            images_per_second=round(images / wall, 4),
            workers=tuple(workers),
            kinds=tuple(_throughput(kind, total) for kind, total in self._kinds.items()),
        )


def _life(account: _Account, now: float) -> float:
    return max((account.ended or now) - account.ready, 1e-9)


def _worker(account: _Account, now: float, wall: float) -> WorkerAccount:
    life = _life(account, now)
    return WorkerAccount(
        node=account.place.node,
        host=account.place.host,
        pid=account.place.pid,
        alive=account.ended is None,
        units=account.units,
        images=account.images,
        busy_seconds=round(account.busy, 3),
        computing_seconds=round(account.computing, 3),
        loading_seconds=round(account.loading, 3),
        busy_of_run=round(min(account.busy / wall, 1.0), 4),
        waiting=round(max(1 - account.busy / life, 0.0), 4),
        images_per_second=round(account.images / life, 4),
    )


def _throughput(kind: Kind, total: _Throughput) -> KindAccount:
    return KindAccount(
        kind=kind.name,
        units=total.units,
        images=total.images,
        computing_seconds=round(total.computing, 3),
        images_per_second=round(total.images / max(total.computing, 1e-9), 4),
    )


def utilisation_table(accounts: Accounts) -> list[str]:
    """Return the workers of a run, then the throughput of each kind of unit, as lines of text."""
    lines = [f"{'worker':<28}{'units':>7}{'images':>8}{'busy s':>10}{'of run':>8}{'waiting':>9}{'images/s':>10}"]
    for worker in accounts.workers:
        name = f"{worker.host[:12]} {worker.node[:6]} {worker.pid}" + ("" if worker.alive else " †")
        lines.append(
            f"{name:<28}{worker.units:>7}{worker.images:>8}{worker.busy_seconds:>10.1f}"
            f"{worker.busy_of_run:>8.0%}{worker.waiting:>9.0%}{worker.images_per_second:>10.1f}"
        )
    width = max([len(kind.kind) for kind in accounts.kinds] + [16]) + 2
    lines += ["", f"{'unit':<{width}}{'units':>7}{'images':>8}{'compute s':>11}{'images/s of a worker':>22}"]
    lines += [
        f"{kind.kind:<{width}}{kind.units:>7}{kind.images:>8}{kind.computing_seconds:>11.1f}"
        f"{kind.images_per_second:>22.1f}"
        for kind in accounts.kinds
    ]
    return lines
