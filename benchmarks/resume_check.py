"""What the check at the start of a run costs for each committed unit: files that have not changed, against all data.

A store of ``--units`` units in stages of ``--chunks`` chunks, with rows of one image each and an input of another
stage. In one run, alternating, medians over ``--rounds``, in seconds of wall and of processor a unit:

* *full*: all data is read and compared with its commit (``--verify full``; the only way before there were manifests);
* *changed*: files that have not changed since they were verified are not read.

    python benchmarks/resume_check.py [--units 20000] [--chunks 1000] [--rounds 3] [--store memory://x]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "workflows"))

import pyarrow as pa
from naps import Nap, plan_of

from tasks.stages import Output
from workflows.engine.run import verified
from workflows.planning.plan import Plan
from workflows.store import Attempt, Store


def fill(store: Store, plan: Plan) -> None:
    for stage in plan.stages:
        for chunk in stage.chunks:
            inputs = {}
            for source in stage.inputs.values():
                inputs |= store.data_sha256("nap", plan.stages[source].id, chunk.name)
            rows = pa.table({"image_id": pa.array(chunk.ids, pa.int32())})
            store.commit(stage.spec, stage.id, chunk, Output(rows), Attempt("a", 0.1, "h", inputs=inputs))


def check(store: Store, plan: Plan, *, full: bool) -> tuple[float, float]:
    """Wall and processor seconds a unit."""
    wall, cpu = time.perf_counter(), time.process_time()
    committed = verified(plan, store, print, full=full)
    assert committed.missing == 0
    return (time.perf_counter() - wall) / plan.units, (time.process_time() - cpu) / plan.units


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--chunks", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", default="")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(arguments.store or folder)
        pairs = max(arguments.units // arguments.chunks // 2, 1)
        plan = plan_of([Nap(number=2 * n, source=Nap(number=2 * n + 1)) for n in range(pairs)], arguments.chunks)
        fill(store, plan)
        time.sleep(3)  # so that no file is younger than a tick of the disk's clock
        check(store, plan, full=False)
        taken = {name: [] for name in ("full", "changed")}
        for _ in range(arguments.rounds):
            for name, times in taken.items():
                times.append(check(store, plan, full=name == "full"))
        (full, full_cpu), (changed, changed_cpu) = (
            tuple(median(column) for column in zip(*times, strict=True)) for times in taken.values()
        )
        print(f"{plan.units} units in {len(plan.stages)} stages, a unit:")
        print(f"full     {full * 1e6:8.1f} us  {full_cpu * 1e6:8.1f} us of processor")
        print(f"changed  {changed * 1e6:8.1f} us  {changed_cpu * 1e6:8.1f} us of processor")
        print(f"changed / full  {changed / full:.3f}   of processor {changed_cpu / full_cpu:.3f}")


if __name__ == "__main__":
    main()
