"""What the engine costs per unit, and whether the driver's memory grows with the plan.

Runs no-op units (one row each, committed like real ones) on two workers: 2,000, then 20,000 in a fresh process.
Prints units a second, the driver's peak memory for both, and as a yardstick, measured in the same run, the rate of
bare Ray actor calls without any commit.

    python benchmarks/engine_overhead.py [--units 2000 20000] [--workers 2]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa

from tasks.compute import Context
from tasks.stages import Chunk, Output, StageSpec
from workflows.engine.cluster import cluster
from workflows.engine.loop import run_plan
from workflows.engine.pool import Pool
from workflows.monitoring.progress import SweepProgress
from workflows.planning.plan import Committed, Plan


class NoopStage(StageSpec):
    stage: Literal["noop"] = "noop"
    version: Literal[1] = 1
    number: int

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        return Output(pa.table({"image_id": pa.array(chunk.ids, pa.int32())}))


def run_units(units: int, workers: int) -> dict[str, float]:
    """One sweep of no-op units in this process."""
    plan = Plan()
    stages = 20
    for number in range(stages):
        plan.add(NoopStage(number=number), tuple(Chunk((i,)) for i in range(units // stages)))
    with tempfile.TemporaryDirectory() as store, cluster(workers, None):
        pool = Pool(store, workers)
        with SweepProgress(plan.units, 0, plan.units) as progress:
            while not next(iter(pool.idle()), None):  # the clock starts when workers do
                pool.wait(0.1)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            started = time.perf_counter()
            outcome = run_plan(Committed(plan), pool, progress)
            seconds = time.perf_counter() - started
        pool.close()
        if outcome.computed != plan.units:
            raise SystemExit(f"only {outcome.computed} of {plan.units} units were computed")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "units": plan.units,
        "units_per_second": plan.units / seconds,
        "driver_peak_mib": peak / 1024,
        "growth_mib": (peak - before) / 1024,
    }


def bare_calls(calls: int, workers: int) -> float:
    """Actor calls a second that return a small tuple and touch no disk, two in flight per actor."""
    import ray

    @ray.remote
    class Bare:
        def run(self, number: int) -> tuple[int, float]:
            return number, 0.0

    with cluster(workers, None):
        actors = [Bare.remote() for _ in range(workers)]  # type: ignore[attr-defined]
        ray.get([actor.run.remote(0) for actor in actors])
        started = time.perf_counter()
        flying = {actor.run.remote(i): actor for actor in actors for i in range(2)}
        sent = len(flying)
        while flying:
            done, _ = ray.wait(list(flying))
            for reference in done:
                actor = flying.pop(reference)
                ray.get(reference)
                if sent < calls:
                    flying[actor.run.remote(sent)] = actor
                    sent += 1
        return calls / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_units(options.one, options.workers)))
        return
    if options.bare:
        print(json.dumps(bare_calls(2000, options.workers)))
        return

    def child(*arguments: str) -> str:
        # A fresh process each: peak memory is a property of a process.
        command = [sys.executable, __file__, "--workers", str(options.workers), *arguments]
        here = str(Path(__file__).parent)  # workers must find NoopStage
        environment = {**os.environ, "PYTHONPATH": here, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    bare = float(child("--bare"))
    print(f"bare actor calls      {bare:8.0f} a second, no commit")
    results = [json.loads(child("--one", str(units)).splitlines()[-1]) for units in options.units]
    for result in results:
        rate = result["units_per_second"]
        print(
            f"{result['units']:>7} no-op units   {rate:8.0f} units a second ({rate / bare:.2f} of bare calls), "
            f"driver peak {result['driver_peak_mib']:.0f} MiB, grew {result['growth_mib']:.1f} MiB while running"
        )
    if len(results) > 1:
        extra = results[-1]["driver_peak_mib"] - results[0]["driver_peak_mib"]
        print(f"driver memory from {results[0]['units']} to {results[-1]['units']} units: {extra:+.1f} MiB")


if __name__ == "__main__":
    # Run as an importable module, so that workers unpickle NoopStage by name.
    import engine_overhead

    engine_overhead.main()
