"""What a worker gains by reading and committing beside the computation, on a store that answers slowly.

Each unit reads the rows of another one, sleeps as long as a GPU would compute, and is committed, to a store in memory
whose every operation takes 50 ms, as a bucket's does. Both sides run the same units in turn: one after the other, as
``UnitWorker.run`` has it, and as a driver gives them, two batches at a time. A unit is a batch, or, if it takes less
than half a second, several are, as in a run. ``alone`` is the computation without a store.

    python benchmarks/overlap.py [--latency 0.05] [--units 8] [--compute 0.1 0.5 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pyarrow as pa

from tasks.compute import Context
from tasks.stages import Chunk, Output, StageSpec
from workflows.engine.pool import BATCH_SECONDS
from workflows.engine.worker import Receipt, UnitWorker

OPERATIONS = ("read", "write", "create", "delete", "names", "stamp", "stamps", "set_aside")


class Unit(StageSpec):
    """Sleeps, and commits one row for each image."""

    stage: Literal["overlap"] = "overlap"
    version: Literal[1] = 1
    number: int
    seconds: float = 0.0
    source: Unit | None = None

    def inputs(self) -> dict[str, StageSpec]:
        return {} if self.source is None else {"source": self.source}

    @property
    def reads(self) -> str:
        return "rows"

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        time.sleep(self.seconds)
        return Output(pa.table({"image_id": pa.array(chunk.ids, pa.int32())}))


def slow(worker: UnitWorker, latency: float) -> None:
    """Have every operation of a worker's store take that long."""

    def after(real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **settings: Any) -> Any:
            time.sleep(latency)
            return real(*arguments, **settings)

        return operation

    for name in OPERATIONS:
        if hasattr(worker.store.files, name):
            setattr(worker.store.files, name, after(getattr(worker.store.files, name)))


def in_turn(worker: UnitWorker, spec: Unit, chunks: list[Chunk], inputs: dict[str, tuple[str, str]]) -> None:
    for chunk in chunks:
        worker.run(spec, spec.id, chunk, inputs)


def beside(worker: UnitWorker, spec: Unit, chunks: list[Chunk], inputs: dict[str, tuple[str, str]]) -> None:
    """As a driver gives them: never more than two batches, each of as many units as are half a second."""
    size = max(1, int(BATCH_SECONDS / max(spec.seconds, 1e-6)))
    batches = [chunks[start : start + size] for start in range(0, len(chunks), size)]
    with ThreadPoolExecutor(2) as held:
        for results in held.map(
            lambda turn: worker.run_batch(spec, spec.id, batches[turn], inputs, 1e9, turn), range(len(batches))
        ):
            if not all(isinstance(result, Receipt) and result.computed for result in results):
                raise SystemExit(f"a unit was not computed: {results}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--compute", type=float, nargs="+", default=[0.1, 0.5, 2.0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    chunks = [Chunk((i,)) for i in range(options.units)]
    print(f"{options.units} units, {1000 * options.latency:.0f} ms an operation of the store; seconds of a unit")
    for seconds in options.compute:
        took: dict[str, list[float]] = {"in turn": [], "beside": []}
        for number in range(options.rounds):
            for place, (name, way) in enumerate({"in turn": in_turn, "beside": beside}.items()):
                worker = UnitWorker(f"memory://overlap-{seconds}-{number}-{place}", "cpu")
                source = Unit(number=0)
                for chunk in chunks:
                    worker.run(source, source.id, chunk, {})
                worker = UnitWorker(worker.store.uri, "cpu")
                slow(worker, options.latency)
                spec = Unit(number=1, seconds=seconds, source=source)
                started = time.perf_counter()
                way(worker, spec, chunks, {"source": ("overlap", source.id)})
                took[name].append((time.perf_counter() - started) / options.units)
        first, second = (statistics.median(took[name]) for name in ("in turn", "beside"))
        ratio = statistics.median(b / a for a, b in zip(took["in turn"], took["beside"], strict=True))
        print(f"alone {seconds:5.2f}   in turn {first:5.2f}   beside {second:5.2f}   beside / in turn {ratio:.3f}")


if __name__ == "__main__":
    main()
