"""What a unit costs the driver of a thousand workers, without Ray: choosing a worker and handing the unit over.

Fake workers (``tests/workflows/fake_ray.py``) answer after ten simulated seconds each, so nothing but the driver
takes time. For each number of workers, in one run:

* *submit*: seconds of ``feed`` for each unit that it hands out (free worker, next unit, message), while 1 % of the
  workers finish at a time and everybody else is busy; median of the rounds;
* *search*: choosing the worker alone, as a search through all of them that are sorted by what they hold; the free
  list replaced it;
* *unit*: all of the driver for a whole plan, over its units; the fake workers' own share is in it.

    python benchmarks/driver_scale.py [--workers 10 1000 4000] [--rounds 200]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "workflows"))

from fake_ray import fake_pool
from naps import Nap, go, plan_of

from workflows.engine.loop import _Run
from workflows.engine.pool import Pool
from workflows.planning.costs import Pace
from workflows.planning.plan import Committed, Unit
from workflows.planning.scheduler import Scheduler
from workflows.store import Store


def search(pool: Pool) -> float:
    """Seconds of one search through all workers."""
    began = time.perf_counter()
    free = [worker for worker in pool._workers if worker.node is not None and len(worker.queue) < 2]
    next(iter(sorted(free, key=lambda worker: len(worker.queue))), None)
    return time.perf_counter() - began


class Slow(Pace):
    """Units that are never known to be short, so that each is a message of its own."""

    def took(self, unit: Unit, seconds: float) -> None:
        """Learn nothing: the clock of the fake workers is not the driver's."""


def submit(workers: int, rounds: int) -> tuple[float, float]:
    """Median seconds of the driver to hand out a unit, and of a search through all workers."""
    share = max(workers // 100, 1)
    plan = plan_of([Nap(number=number) for number in range(20)], (2 * workers + rounds * share) // 20 + 1)
    with tempfile.TemporaryDirectory() as folder, fake_pool(folder, workers) as (pool, _):
        committed = Committed(plan)
        run = _Run(plan, Scheduler(committed), pool, Slow(committed), None)
        run.feed()
        submits, searches = [], []
        busy = list(pool._workers)
        for number in range(rounds):
            for place in range(number * share, (number + 1) * share):
                for event in pool._on_finish(busy[place % workers]):
                    run.account(event)
            searches.append(search(pool))
            began = time.perf_counter()
            run.feed()
            submits.append((time.perf_counter() - began) / share)
        assert sum(run.attempts.values()) == 2 * workers
    return median(submits), median(searches)


def whole(workers: int) -> float:
    """Seconds of the driver a unit, from the first to the last of a plan."""
    plan = plan_of([Nap(number=number) for number in range(20)], max(workers // 5, 20))
    with tempfile.TemporaryDirectory() as folder, fake_pool(folder, workers) as (pool, _):
        began = time.perf_counter()
        assert go(plan, pool, Store(folder)).computed == plan.units
        return (time.perf_counter() - began) / plan.units


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 1000, 4000])
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    first = None
    print(f"{'workers':>8}{'submit':>12}{'of the first':>14}{'search alone':>14}{'search/submit':>15}{'unit':>12}")
    for workers in arguments.workers:
        took, searched = submit(workers, arguments.rounds)
        first = first or took
        print(
            f"{workers:>8}{took * 1e6:>9.1f} us{took / first:>14.2f}{searched * 1e6:>11.1f} us"
            f"{searched / took:>15.1f}{whole(workers) * 1e6:>9.1f} us"
        )


if __name__ == "__main__":
    main()
