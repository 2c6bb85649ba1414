"""A plan of a million units: how soon it starts, what the driver needs, how fast it runs; one worker against several.

Four things, each in a fresh process, since peak memory is a property of a process:

* a plan of 10,000 stages x 100 chunks that do nothing: seconds until its first unit is with a worker (building the
  plan, listing the store, writing what stage ids stand for), then units a second over so many ``--seconds``, and the
  driver's peak memory; with ``--all`` the whole million runs;
* no-op units a second on one worker and on two, with the store on the disk of ``TMPDIR`` and in memory, and beside
  them the same units in one and two bare processes that share nothing but the store, without Ray and without a
  driver: what the machine and its disk allow; medians over ``--rounds`` in which all take turns;
* the same for real units (half a second of arithmetic each), on one thread each;
* and for units that sleep 50 ms, one worker against eight: as where GPUs compute, the processors are not in the way.

    python benchmarks/engine_scale.py [--stages 10000] [--chunks 100] [--seconds 30] [--all] [--rounds 3] [--scaling]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

TESTS = str(Path(__file__).parent.parent / "tests" / "workflows")
sys.path.insert(0, TESTS)

from naps import Nap, plan_of  # noqa: E402

from workflows.engine.attempts import Event  # noqa: E402
from workflows.engine.cluster import cluster  # noqa: E402
from workflows.engine.loop import RunOutcome, run_plan  # noqa: E402
from workflows.engine.pool import Pool  # noqa: E402
from workflows.engine.worker import UnitWorker  # noqa: E402
from workflows.monitoring.progress import SweepProgress  # noqa: E402
from workflows.planning.costs import missing_work  # noqa: E402
from workflows.planning.plan import Committed, Plan  # noqa: E402
from workflows.store import Store  # noqa: E402


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(plan: Plan, store: Store, pool: Pool, seconds: float | None, first: list[float]) -> tuple[RunOutcome, float]:
    """Run a plan, or interrupt it (as Ctrl-C does) after so many seconds; the clock starts when workers have."""
    while next(iter(pool.idle()), None) is None:
        pool.wait(0.1)
    committed = Committed(plan)
    started = time.perf_counter()

    def on_event(event: Event, failure: object) -> None:
        if not first:
            first.append(time.perf_counter() - started)

    if seconds is not None:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        timer.start()
    with SweepProgress(plan.units, 0, missing_work(committed)) as progress:
        outcome = run_plan(committed, pool, progress, store=store, on_event=on_event)
    took = time.perf_counter() - started
    if outcome.failures:
        raise SystemExit(f"units failed: {outcome.failures[0]}")
    return outcome, took


def million(stages: int, chunks: int, seconds: float | None) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, cluster(2, None):
        store = Store(folder)
        pool = Pool(store.uri, 2)
        while pool.workers < 2:
            pool.wait(0.1)
        began, began_cpu = time.perf_counter(), time.process_time()
        plan = plan_of([Nap(number=number) for number in range(stages)], chunks)
        planned, planned_cpu = time.perf_counter() - began, time.process_time() - began_cpu
        plan.committed(store)
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(store.put_spec, (stage.spec for stage in plan.stages)))
        recorded = time.perf_counter() - began - planned
        first: list[float] = []
        outcome, took = run(plan, store, pool, seconds, first)
        pool.close()
        return {
            "units": plan.units,
            "planned": planned,
            "planned_cpu": planned_cpu,
            "recorded": recorded,
            "first_receipt": planned + recorded + first[0],
            "computed": outcome.computed,
            "rate": outcome.computed / took,
            "peak_mib": peak_mib(),
        }


def rate(workers: int, units: int, work: float, seconds: float) -> float:
    with tempfile.TemporaryDirectory() as folder, cluster(workers, None):
        store = Store(folder)
        pool = Pool(store.uri, workers)
        while pool.workers < workers:
            pool.wait(0.1)
        # A plan of its own first, so that nothing is measured that happens once in a process.
        stages = 4
        warm = plan_of([Nap(number=stages + number, seconds=0.01) for number in range(stages)], 10 * workers)
        run(warm, store, pool, None, [])
        plan = plan_of([Nap(number=number, work=work, seconds=seconds) for number in range(stages)], units // stages)
        outcome, took = run(plan, store, pool, None, [])
        pool.close()
        return outcome.computed / took


def bare(processes: int, units: int, work: float, seconds: float) -> float:
    """Units a second of processes that each compute and commit their share, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        shares = [(folder, number, units // processes, work, seconds) for number in range(processes)]
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            list(pool.map(_share, [(folder, processes + number, 10, 0.0, 0.0) for number in range(processes)]))
            started = time.perf_counter()
            list(pool.map(_share, shares))
            return units / (time.perf_counter() - started)


def _share(arguments: tuple[str, int, int, float, float]) -> None:
    folder, number, units, work, seconds = arguments
    plan = plan_of([Nap(number=number, work=work, seconds=seconds)], units)
    worker = UnitWorker(folder, "cpu")
    for chunk in plan.stages[0].chunks:
        worker.run(plan.stages[0].spec, plan.stages[0].id, chunk, {})


def scaling(child: Callable[..., str], rounds: int) -> Iterator[str]:
    """Lines that compare one worker with several."""
    for what, most, units, work, seconds, folder in (
        ("no-op, on disk", 2, 16000, 0.0, 0.0, None),
        ("no-op, in memory", 2, 32000, 0.0, 0.0, "/dev/shm"),
        ("real", 2, 80, 0.5, 0.0, None),
        ("asleep 50 ms", 8, 1600, 0.0, 0.05, None),
    ):
        if folder is not None and not Path(folder).is_dir():
            continue
        kinds = [(kind, number) for kind in ("rate", "bare") for number in (1, most)]
        took: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds}
        for _ in range(1 if work or seconds else rounds):
            for kind, number in kinds:
                took[kind, number].append(float(child(f"{kind},{number},{units},{work},{seconds}", folder)))
        found = {kind: median(rates) for kind, rates in took.items()}
        yield f"{what:<17}" + "".join(
            f"  1 to {most} {name} {found[kind, 1]:7.1f} {found[kind, most]:7.1f} "
            f"{found[kind, most] / found[kind, 1]:6.2f}"
            for kind, name in (("rate", "workers"), ("bare", "bare processes"))
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=10000)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--all", action="store_true", help="Run the million to its end.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scaling", action="store_true", help="Only one worker against several.")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, *numbers = options.one.split(",")
        seconds = None if options.all else options.seconds
        if kind == "million":
            print(json.dumps(million(options.stages, options.chunks, seconds)))
        else:
            measure = {"rate": rate, "bare": bare}[kind]
            workers, units, work, asleep = numbers
            print(json.dumps(measure(int(workers), int(units), float(work), float(asleep))))
        return

    environment = {
        **os.environ,
        "PYTHONPATH": TESTS,
        "OMP_NUM_THREADS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }

    def child(one: str, folder: str | None = None) -> str:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", one]
        own = environment if folder is None else {**environment, "TMPDIR": folder}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=own)
        return done.stdout.splitlines()[-1]

    if not options.scaling:
        big_plan(child)
    print("units a second, and their ratio")
    for line in scaling(child, options.rounds):
        print(line, flush=True)


def big_plan(child: Callable[..., str]) -> None:
    found = json.loads(child("million"))
    print(
        f"{found['units']:,} units: planned in {found['planned']:.1f} s ({found['planned_cpu']:.1f} s of processor), "
        f"recorded in {found['recorded']:.1f} s, first receipt after {found['first_receipt']:.1f} s",
        flush=True,
    )
    print(
        f"{found['computed']:,} of them run: {found['rate']:.0f} units a second on 2 workers, "
        f"driver peak {found['peak_mib']:.0f} MiB",
        flush=True,
    )


if __name__ == "__main__":
    main()
