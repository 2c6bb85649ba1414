"""What a committed unit costs whoever reads a sweep: unit by unit, the first time, later, and after new units.

A store of made-up rows (``benchmarks/readers.py``) in chunks of ``--chunk`` images. Five ways to make all tables of
the sweep from it, in one run, each in a process of its own, in seconds of processor:

* *by unit*: every row file is opened and compared with its commit, as before there were blocks;
* *first*: the same, and blocks are written: of a store that no run of this version has filled;
* *a run*: the first time after a run, whose driver has packed what landed (:mod:`workflows.store.packing`);
* *later*: from blocks; the row files are listed, and read where they changed;
* *grown*: ``--new`` units of every stage were committed since.

What packing itself takes in the driver is a line of its own; it is done while workers compute. *Frames* are the
tables of answers, corruptions, image quality and cost; *all* is what ``puregrid tables`` prints,
with the auditor. What the four print is compared byte for byte. With ``--frames`` neither *by unit* nor *all* is
done, whose cost goes with rows and images, and the frames are compared.

    python benchmarks/tables_scale.py [--rows 700000] [--chunk 100] [--new 1] [--keep FOLDER] [--frames]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from plain_images import VARIABLE
from readers import fill

CODE = """
import hashlib, json, sys, time
from pathlib import Path
from workflows.analysis import Analysis
from workflows.formats import render
from workflows.grid.load import load_sweep
from workflows.store import blocks
from workflows.results.reader import Results
from workflows.store import Store
def to_text(frame):
    return frame.to_csv() if hasattr(frame, "to_csv") else str(frame)
folder, how = Path(sys.argv[1]), sys.argv[2]
if how == "by unit":
    blocks.ENOUGH = 10**9
sweep, store = load_sweep(folder / "rows.yaml"), Store(str(folder / "store"))
results = Results(store, sweep)
began, wall = time.process_time(), time.perf_counter()
frames = [results.robustness(), results.combined(), results.corrupted(), list(results.quality()), results.cost()]
frames_cpu, frames_wall = time.process_time() - began, time.perf_counter() - wall
text = repr([to_text(frame) for frame in frames]) if sys.argv[3] == "frames" else render(Analysis(results), "text")
print(json.dumps([frames_cpu, frames_wall, time.process_time() - began, hashlib.sha256(text.encode()).hexdigest()]))
"""


PACK = """
import json, sys, time
from pathlib import Path
from workflows.grid.load import load_sweep
from workflows.planning.plan import make_plan
from workflows.store import Store
from workflows.store.packing import pack
folder = Path(sys.argv[1])
plan, store = make_plan(load_sweep(folder / "rows.yaml")), Store(str(folder / "store"))
began, wall = time.process_time(), time.perf_counter()
for stage in plan.stages:
    pack(store, stage.spec.stage, stage.id, [chunk.name for chunk in stage.chunks])
print(json.dumps([time.process_time() - began, time.perf_counter() - wall]))
"""


def python(code: str, *arguments: str) -> list[Any]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: list[Any] = json.loads(done.stdout)
    return found


def ask(folder: Path, how: str, what: str) -> tuple[float, float, float, str]:
    cpu, wall, whole, text = python(CODE, str(folder), how, what)
    return cpu, wall, whole, text


def forget(store: Path) -> None:
    """Take away what readers and runs have written."""
    for name in ("blocks", "manifests"):
        shutil.rmtree(store / name, ignore_errors=True)


def hide(store: Path, chunks: int, aside: Path) -> list[tuple[Path, Path]]:
    """Take the commits of the last chunks of every stage away."""
    moved = []
    for folder in sorted((store / "commits").glob("*/*")):
        for path in sorted(folder.iterdir())[-chunks:]:
            place = aside / path.relative_to(store)
            place.parent.mkdir(parents=True, exist_ok=True)
            moved.append((path.rename(place), path))
    return moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=700_000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--new", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="Folder for the store, which is used again.")
    parser.add_argument("--frames", action="store_true", help="The frames alone, read from blocks.")
    options = parser.parse_args()
    os.environ[VARIABLE] = str(options.images)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        store, count = folder / "store", folder / "count"
        if not count.is_file():
            _, _, rows = fill(folder, options.rows, options.images, 20, options.chunk)
            count.write_text(str(rows))
        forget(store)
        units = sum(1 for _ in (store / "commits").rglob("*.json"))
        print(
            f"{count.read_text()} rows in {units} units; ms of processor a unit, and its share of the first line",
            flush=True,
        )
        time.sleep(3)
        what = "frames" if options.frames else "all"
        found = {how: ask(folder, how, what) for how in (("first",) if options.frames else ("by unit", "first"))}
        forget(store)
        packing, packing_wall = python(PACK, str(folder))
        time.sleep(3)
        found["a run"] = ask(folder, "a run", what)
        found["later"] = ask(folder, "later", what)
        assert len({text for _, _, _, text in found.values()}) == 1, "the tables differ"
        moved = hide(store, options.new, folder / "aside")
        forget(store)
        python(PACK, str(folder))
        time.sleep(3)
        for place, path in moved:
            place.rename(path)
        found["grown"] = ask(folder, "later", what)
        assert found["grown"][3] == found["first"][3], "the tables differ"
        frames, _, everything, _ = next(iter(found.values()))
        for how, (cpu, wall, whole, _) in found.items():
            rest = f"   all {whole / units * 1e3:7.3f} ms {whole / everything:6.3f}" * (not options.frames)
            print(f"{how:<8} frames {cpu / units * 1e3:7.3f} ms {cpu / frames:6.3f}   (wall {wall:6.1f} s){rest}")
        print(f"packing         {packing / units * 1e3:7.3f} ms          (wall {packing_wall:6.1f} s)")


if __name__ == "__main__":
    main()
