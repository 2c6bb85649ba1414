"""Judging images x draws in full batches against one draw at a time: network calls, seconds, and bits.

The digits denoiser in front of the digits classifier, 20 images x 20 draws, one thread, both ways taking turns in one
run. A batch of 20 is one draw of every image, which is what a chunk of 20 images got however large the batch was.
*equal bits* is the share of stored probabilities that are equal to the last bit; *moved before* is that share where
one draw at a time is computed in batches of 20 and of 10, as two sweeps with these did. Answers must be equal.

    python benchmarks/packing.py [--images 20] [--draws 20] [--rounds 3]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from defense.classifiers import ClassifierConfig
from tasks.compute import Compute, Context
from tasks.datasets import DigitsConfig
from tasks.stages import Chunk, EvaluateStage
from workflows.grid.load import load_sweep

SWEEP = Path(__file__).parent.parent / "workflows" / "sweeps" / "quickstart.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    context, chunk = Context("cpu"), Chunk(tuple(range(options.images)))
    purifier = next(cell.defence.purifier for cell in load_sweep(SWEEP).cells if cell.defence.purifier.evaluations)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    def stage(batch: int) -> EvaluateStage:
        return EvaluateStage(
            dataset=DigitsConfig(),
            source=None,
            classifier=ClassifierConfig(classifier="digits-cnn").resolved(Path()),
            purifier=purifier,
            draws=options.draws,
            seed=0,
            compute=Compute(batch=batch),
        )

    batches = (options.images, options.images * options.draws, max(options.images // 2, 1))
    took: dict[int, list[float]] = {batch: [] for batch in batches}
    asked: dict[int, int] = {}
    found: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = {}
    context.purifier(purifier, None).register_forward_hook(count)
    for _ in range(options.rounds + 1):
        for batch in batches:
            calls, started, made = 0, time.process_time(), stage(batch)
            with context.settings(made.settings()):
                rows = made.run(chunk, {}, context).rows
            took[batch].append(time.process_time() - started)
            asked[batch] = calls
            found[batch] = (
                np.array(rows["prediction"].to_pylist()),
                np.array(rows["label_probability"].to_pylist(), dtype=np.float32),
            )
    one, packed, half = batches
    seconds = {batch: median(times[1:]) for batch, times in took.items()}

    def equal(first: int, second: int) -> float:
        assert (found[first][0] == found[second][0]).all(), "answers differ"
        return float((found[first][1] == found[second][1]).mean())

    print(f"{options.images} images x {options.draws} draws, {purifier.label()}")
    print(f"one draw at a time  {asked[one]:3d} calls  {seconds[one]:6.2f} s")
    print(f"packed              {asked[packed]:3d} calls  {seconds[packed]:6.2f} s")
    print(f"packed / one draw   {asked[packed] / asked[one]:.3f}    {seconds[packed] / seconds[one]:.3f}")
    print(f"equal bits {equal(one, packed):.3f}, moved before {equal(one, half):.3f}; all answers are equal")


if __name__ == "__main__":
    main()
