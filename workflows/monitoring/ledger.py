"""What each worker of a run did with its time, as the driver sees it.

A worker's life is from when it was ready to its end, or the run's. It is *busy* while it holds a unit: computing,
loading models, or reading and committing, which is the rest of what it was busy with. Otherwise it waits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tasks.stages.kind import Kind

__all__ = ["Ledger", "Place", "fields_of", "utilisation_table"]


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


def fields_of(place: Place | None) -> dict[str, Any]:
    """A place in the words of the log."""
    return {} if place is None else {"node": place.node, "host": place.host, "worker": place.pid}


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
        """A worker has started, one of the first ones or one that came later or replaces another."""
        self._accounts[place] = _Account(place, time.monotonic(), first)

    def gone(self, place: Place) -> None:
        """A worker has died, or was ended."""
        if place in self._accounts and self._accounts[place].ended is None:
            self._accounts[place].ended = time.monotonic()

    def busy(self, place: Place, seconds: float) -> None:
        """A worker has held units for so long."""
        if place in self._accounts:
            self._accounts[place].busy += seconds

    def computed(self, place: Place, kind: Kind, images: int, seconds: float, loading: float) -> None:
        """A worker has computed and committed a unit."""
        account, kept = self._accounts.get(place), self._kinds.setdefault(kind, _Throughput())
        kept.units, kept.images, kept.computing = kept.units + 1, kept.images + images, kept.computing + seconds
        if account is not None:
            account.units += 1
            account.images += images
            account.computing += seconds
            account.loading += loading

    @property
    def units(self) -> int:
        """Units that workers computed and committed."""
        return sum(kept.units for kept in self._kinds.values())

    def as_dict(self) -> dict[str, Any]:
        """What a run's record says: totals, workers, kinds of units. Seconds, shares of 0 to 1, rates a second."""
        now = time.monotonic()
        wall = max(now - self.began, 1e-9)
        accounts = list(self._accounts.values())
        units, images = (sum(getattr(each, name) for each in accounts) for name in ("units", "images"))
        computing, loading, busy = (
            sum(getattr(each, name) for each in accounts) for name in ("computing", "loading", "busy")
        )
        lives = sum(max((each.ended or now) - each.ready, 1e-9) for each in accounts)
        workers = []
        for each in accounts:
            life = max((each.ended or now) - each.ready, 1e-9)
            workers.append(
                {
                    "node": each.place.node,
                    "host": each.place.host,
                    "pid": each.place.pid,
                    "alive": each.ended is None,
                    "units": each.units,
                    "images": each.images,
                    "busy_seconds": round(each.busy, 3),
                    "computing_seconds": round(each.computing, 3),
                    "loading_seconds": round(each.loading, 3),
                    "busy_of_run": round(min(each.busy / wall, 1.0), 4),
                    "waiting": round(max(1 - each.busy / life, 0.0), 4),
                    "images_per_second": round(each.images / life, 4),
                }
            )
        ready = [each.ready - self.began for each in accounts if each.first]
        return {
            "wall_seconds": round(wall, 3),
            "units": units,
            "images": images,
            "computing_seconds": round(computing, 3),
            "startup_seconds": round(sum(ready) / len(ready), 3) if ready else None,
            "overhead_seconds": round(max(busy - computing - loading, 0.0) / units, 4) if units else None,
            "utilisation": round(min(busy / lives, 1.0), 4) if accounts else None,
            "units_per_second": round(units / wall, 4),
            "images_per_second": round(images / wall, 4),
            "workers": workers,
            "kinds": [
                {
                    "kind": kind.name,
                    "units": kept.units,
                    "images": kept.images,
                    "computing_seconds": round(kept.computing, 3),
                    "images_per_second": round(kept.images / max(kept.computing, 1e-9), 4),
                }
                for kind, kept in self._kinds.items()
            ],
        }


def utilisation_table(record: dict[str, Any]) -> list[str]:
    """Workers of a run, then throughput of each kind of unit, as lines of text."""
    lines = [f"{'worker':<28}{'units':>7}{'images':>8}{'busy s':>10}{'of run':>8}{'waiting':>9}{'images/s':>10}"]
    for each in record["workers"]:
        name = f"{each['host'][:12]} {each['node'][:6]} {each['pid']}" + ("" if each["alive"] else " †")
        lines.append(
            f"{name:<28}{each['units']:>7}{each['images']:>8}{each['busy_seconds']:>10.1f}"
            f"{each['busy_of_run']:>8.0%}{each['waiting']:>9.0%}{each['images_per_second']:>10.1f}"
        )
    width = max([len(each["kind"]) for each in record["kinds"]] + [16]) + 2
    lines += ["", f"{'unit':<{width}}{'units':>7}{'images':>8}{'compute s':>11}{'images/s of a worker':>22}"]
    lines += [
        f"{each['kind']:<{width}}{each['units']:>7}{each['images']:>8}{each['computing_seconds']:>11.1f}"
        f"{each['images_per_second']:>22.1f}"
        for each in record["kinds"]
    ]
    return lines
