"""Memory and time of ``puregrid tables``, ``report`` and ``compact`` against the number of rows, which are made up.

A store of so many rows is filled with plausible answers: a data set of ``--images`` images, defences of ``--draws``
draws under adaptive attacks of several budgets and under corruptions, with image quality. Each command then runs in a
process of its own; printed are its peak memory, its seconds, and both again per row beyond the smaller store.

    python benchmarks/readers.py [--rows 500000 2000000] [--commands tables report] [--images 10000] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from plain_images import CLASSES, SHAPE, VARIABLE

from tasks.attacks import AttackConfig
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import ImageSet
from tasks.stages import ROW_SCHEMAS, Chunk, Output, StageSpec
from workflows.grid.load import load_sweep
from workflows.planning.plan import make_plan
from workflows.store import Attempt, Store

SWEEP = """\
sweep: rows-{number}
datasets: [{{dataset: 'plain_images:Plain', images: {{first: {images}}}}}]
classifiers: [digits-cnn]
defences:
  - none
  - {{purifier: gaussian-noise, sigma: {sigmas}, draws: {draws}}}
attacks:
  - none
  - {{attack: pgd, norm: linf, eps: {eps}, steps: 40, gradient: exact}}
corruptions: [{{corruption: [gaussian_noise, brightness], severity: [1, 2, 3, 4, 5]}}]
quality: true
chunk: {chunk}
"""


def _lists(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1), kind))


class Filler:
    """Makes up the outputs of stages: answers that get worse with the budget and the severity."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.luck = np.random.default_rng(0)

    def output(self, spec: StageSpec, chunk: Chunk) -> Output:
        ids = np.array(chunk.ids)
        kind: dict[str, pa.DataType] = {column.name: column.type for column in ROW_SCHEMAS[spec.stage].columns}
        columns: dict[str, npt.NDArray[Any]] = {"image_id": ids, "label": self.images.labels[ids]}
        lists: dict[str, npt.NDArray[Any]] = {}
        images = None
        threat = getattr(spec, "threat", None)
        if spec.stage == "attack":
            images = self._moved(ids, threat)
            columns |= self._attacked(ids, images)
        elif spec.stage == "corrupt":
            images = self._moved(ids, threat)
            columns["linf"], columns["l2"] = self._norms(ids, images)
        elif spec.stage == "evaluate":
            lists = self._judged(columns["label"], spec.draws, _badness(threat))  # type: ignore[attr-defined]
        elif spec.stage == "quality":
            images = self._moved(ids, None)
            for pair in ("input", "output", "change"):
                columns |= {f"psnr_{pair}": 20 + 9 * self.luck.random(len(ids))}
                columns |= {f"ssim_{pair}": self.luck.random(len(ids))}
        for network in ("denoiser_evaluations", "classifier_evaluations"):
            if network in kind:
                columns[network] = np.full(len(ids), 20)
        arrays: Mapping[str, pa.Array] = {
            **{name: pa.array(values, kind[name], safe=False) for name, values in columns.items()},
            **{name: _lists(values, kind[name].value_type) for name, values in lists.items()},
        }
        if spec.stage == "corrupt":
            arrays = {**arrays, "origin": pa.array(["generated"] * len(ids))}
        missing = {"lpips": "lpips was not asked for."} if spec.stage == "quality" else {}
        return Output(
            ROW_SCHEMAS[spec.stage].table(arrays), None if images is None else _table(ids, images), missing=missing
        )

    def _moved(self, ids: npt.NDArray[np.int64], threat: object) -> npt.NDArray[np.float32]:
        clean = self.images.images[ids]
        size = np.float32(0.99 * threat.eps if isinstance(threat, AttackConfig) else 0.02)
        return clean + np.where(clean > 0.5, -size, size).astype(np.float32)

    def _norms(
        self, ids: npt.NDArray[np.int64], images: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        change = (images.astype(np.float64) - self.images.images[ids]).reshape(len(ids), -1)
        return np.abs(change).max(1), np.sqrt((change**2).sum(1))

    def _attacked(self, ids: npt.NDArray[np.int64], images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        linf, l2 = self._norms(ids, images)
        label = self.images.labels[ids]
        right = self.luck.random(len(ids)) < 0.95
        change = np.abs(images.astype(np.float64) - self.images.images[ids]).reshape(len(ids), -1)
        return {
            "clean_prediction": np.where(right, label, (label + 1) % CLASSES),
            "adversarial_prediction": (label + 1) % CLASSES,
            "loss": self.luck.random(len(ids)),
            "linf": linf,
            "l2": l2,
            "l1": change.sum(1),
            "attack_gradients": np.full(len(ids), 40),
            "attack_gradient_zero": np.zeros(len(ids)),
            "attack_gradient_nan": np.zeros(len(ids)),
        }

    def _judged(self, label: npt.NDArray[np.int64], draws: int, bad: float) -> dict[str, npt.NDArray[Any]]:
        hard = self.luck.random((len(label), 1))
        right = self.luck.random((len(label), draws)) < np.clip(1.1 - bad - 0.5 * hard, 0, 1)
        wrong = (label[:, None] + self.luck.integers(1, CLASSES, (len(label), draws))) % CLASSES
        probability = np.full((len(label), CLASSES), 0.2 / (CLASSES - 1))
        probability[np.arange(len(label)), label] = 0.8 * right.mean(1)
        return {
            "prediction": np.where(right, label[:, None], wrong),
            "label_probability": np.where(right, 0.9, 0.05),
            "mean_probability": probability / probability.sum(1, keepdims=True),
        }


def _badness(threat: object) -> float:
    if isinstance(threat, AttackConfig):
        return min(1.0, 4 * float(threat.eps))
    return 0.05 * threat.severity if isinstance(threat, CorruptionConfig) else 0.0


def _table(ids: npt.NDArray[np.int64], images: npt.NDArray[np.float32]) -> pa.Table:
    width = int(np.prod(SHAPE))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), width)
    schema = pa.schema(
        [("image_id", pa.int32()), ("image", pa.list_(pa.float32(), width))],
        metadata={"shape": ",".join(map(str, SHAPE))},
    )
    return pa.table([pa.array(ids, pa.int32()), flat], schema=schema)


def fill(folder: Path, number: int, images: int, draws: int, chunk: int) -> tuple[Path, Path, int]:
    """Make a sweep of about so many rows and its store; returns the file, the store and the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    file, place = folder / "rows.yaml", folder / "store"
    # Rows an image: of a defence 2 clean, 2 for each of 10 corruptions and 3 for each attack; corruptions once.
    defences = 2 if number < 200 * images else 4
    budgets = max(1, (number // images - 10 - 22 * defences) // (3 * defences))
    sigmas = [round(0.1 + 0.05 * i, 3) for i in range(defences - 1)]
    eps = [round(0.004 + 0.25 * i / budgets, 6) for i in range(budgets)]
    file.write_text(SWEEP.format(number=number, images=images, sigmas=sigmas, draws=draws, eps=eps, chunk=chunk))
    sweep, store = load_sweep(file), Store(str(place))
    filler, rows = Filler(sweep.cells[0].images.dataset.load()), 0
    for stage in make_plan(sweep).stages:
        for part in stage.chunks:
            output = filler.output(stage.spec, part)
            store.commit(stage.spec, stage.id, part, output, Attempt("a", 1.0, "h"))
            rows += output.rows.num_rows
    return file, place, rows


def measure(command: str, file: Path, store: Path) -> tuple[float, float]:
    """Run a command in a process of its own: peak memory in MB, seconds."""
    arguments = [command, str(file), "--store", str(store)]
    arguments += ["--out", str(file.with_suffix(".html"))] if command == "report" else []
    code = (
        "import resource, sys; from puregrid.cli import main; code = 0\n"
        f"sys.argv = {['puregrid', *arguments]!r}\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    took = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"puregrid {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return int(done.stderr.strip().splitlines()[-1]) / 1024, took


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[500_000, 2_000_000])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--chunk", type=int, default=1_000)
    parser.add_argument("--commands", nargs="+", default=["tables", "report"])
    parser.add_argument("--keep", type=Path, help="Folder for the stores, which are used again.")
    options = parser.parse_args(arguments)
    os.environ[VARIABLE] = str(options.images)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        found: dict[str, list[tuple[int, float, float]]] = {command: [] for command in options.commands}
        for number in options.rows:
            folder, count = root / str(number), root / str(number) / "count"
            if count.is_file():
                file, store, rows = folder / "rows.yaml", folder / "store", int(count.read_text())
            else:
                started = time.monotonic()
                file, store, rows = fill(folder, number, options.images, options.draws, options.chunk)
                count.write_text(str(rows))
                print(f"{rows} rows made in {time.monotonic() - started:.0f} s", flush=True)
            for command in options.commands:
                memory, took = measure(command, file, store)
                found[command].append((rows, memory, took))
                print(f"{command:8} {rows:>10} rows  {memory:7.0f} MB  {took:6.1f} s", flush=True)
        for command, points in found.items():
            if len(points) > 1:
                (few, less, sooner), *_, (many, more, later) = points
                memory, took = (more - less) / (many - few) * 1e6, (later - sooner) / (many - few) * 1e6
                print(f"{command:8} a million rows more: {memory:+.0f} MB, {took:+.1f} s")


if __name__ == "__main__":
    main()
