"""Confidence sequences by simulation: coverage with peeking, images saved, and decisions between two defences.

    python benchmarks/sequences.py coverage [--runs 1000] [--images 2000]
    python benchmarks/sequences.py savings [--runs 4]
    python benchmarks/sequences.py replay --sweep SWEEP --store STORE
    python benchmarks/sequences.py decisions [--runs 1000]

**coverage**: how often the interval is wrong at any chunk of 100 images, beside Wilson's interval looked at as often
and Wilson's looked at once, at the end. Images are right or wrong, or have shares of five right draws that depend on
each other: image i is right on a draw with probability :math:`q_i`, drawn from a beta distribution of mean p.

**savings**: images that cells need at half-widths of 2 and 5 points, beside all images of the sweep, for two sweeps
whose rows are simulated: a ladder (two defences; accuracies as in docs/attacks.md, 10 draws) on 599 and on 10,000
images, and the accuracies that a paper's table 1 prints, on 10,000. Chunks have 100 images.

**replay**: the same from the rows of a sweep that was computed in full: its clean cells and its attacked ones, with
the images of each in the order in which `precision` takes them.

**decisions**: which of two defences is better, by paired differences of shares of 10 draws, on at most 10,000 images.
An error is the wrong answer, or any answer where there is no difference. Beside it: a paired test at 5 % after every
chunk.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

import puregrid
from tasks.attacks import AttackConfig
from workflows.assets.bundled import find_sweep
from workflows.grid.precision import random_order
from workflows.published.papers import load_paper
from workflows.statistics.proportions import wilson
from workflows.statistics.sequences import evidence, sequence_ends

Values = npt.NDArray[np.float64]
CHUNK = 100
LADDER = (98, 97, 93, 89, 86, 84, 83, 96, 95, 90, 80, 74, 70, 68)
"""Accuracies in %: clean, noise, blind, BPDA, surrogate, exact and ladder, for each of two defences."""


def shares(rng: np.random.Generator, p: float, images: int, draws: int) -> Values:
    """Return the share of right draws of each image; one draw is right or wrong."""
    if draws == 1:
        return (rng.random(images) < p).astype(np.float64)
    return np.asarray(rng.binomial(draws, rng.beta(0.3 * p, 0.3 * (1 - p), images)) / draws, dtype=np.float64)


def coverage(runs: int, images: int) -> None:
    """Print how often each interval is wrong."""
    print(f"wrong in % of {runs} runs of {images} images, looked at every {CHUNK}")
    print(f"{'p':>5} {'draws':>5} {'sequence':>9} {'Wilson, looked at':>18} {'Wilson, at the end':>19}")
    for draws in (1, 5):
        for p in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99):
            wrong = np.zeros(3)
            for run in range(runs):
                x = shares(np.random.default_rng([run, draws, round(1000 * p)]), p, images, draws)
                means = np.cumsum(x)[CHUNK - 1 :: CHUNK] / np.arange(CHUNK, images + 1, CHUNK)
                ends = [wilson(float(mean), CHUNK * (k + 1)) for k, mean in enumerate(means)]
                missed = [not low <= p <= high for low, high in ends]
                # Of the level of either side: the ends need not be found to know that p is beyond them.
                wrong += (min(evidence(x, p), evidence(1 - x, 1 - p)) <= 0.025, any(missed), missed[-1])
            rates = 100 * wrong / runs
            print(f"{p:5.2f} {draws:5} {rates[0]:9.1f} {rates[1]:18.1f} {rates[2]:19.1f}", flush=True)


def first(images: int, answered: Callable[[int], bool]) -> int | None:
    """Return after how many images, in chunks, a question is answered, None if never; an answer stays one."""
    ends: list[int] = [*range(CHUNK, images, CHUNK), images]
    if not answered(images):
        return None
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if answered(ends[middle]) else (middle + 1, high)
    return ends[low]


def narrow(x: Values, half: float, of: str, images: int) -> bool:
    """Return whether the first images are enough for a half-width, of the population or of all images."""
    low, high = sequence_ends(x[:images], len(x) if of == "images" else None)
    return (high - low) / 2 <= half


def savings(runs: int) -> None:
    """Print the images that sweeps need."""
    table = [v.accuracy for v in load_paper("distribution-transfer").values if v.table == "1"]
    print(f"{'sweep':>28} {'of':>10} {'half-width':>10} {'images used':>12} {'saved':>6} {'precise enough':>15}")
    for name, accuracies, images in (
        (f"ladder, {len(LADDER)} cells of 599", LADDER, 599),
        (f"ladder, {len(LADDER)} cells of 10,000", LADDER, 10_000),
        (f"table 1, {len(table)} cells of 10,000", table, 10_000),
    ):
        for of in ("population", "images"):
            for half in (0.02, 0.05):
                used = settled = total = 0
                for run in range(runs):
                    for cell, accuracy in enumerate(accuracies):
                        x = shares(np.random.default_rng([run, cell, images]), accuracy / 100, images, 10)

                        stop = first(images, partial(narrow, x, half, of))
                        used, total, settled = used + (stop or images), total + images, settled + (stop is not None)
                cells = runs * len(accuracies)
                print(
                    f"{name:>28} {of:>10} {100 * half:10.0f} {used / total:11.0%}  {1 - used / total:6.0%} "
                    f"{settled / cells:14.0%}",
                    flush=True,
                )


def replay(sweep: str, store: str) -> None:
    """Print the images that a computed sweep would have needed."""
    results = puregrid.open_results(store, puregrid.load_sweep(find_sweep(sweep)))
    cells: dict[str, list[Values]] = {"clean": [], "attacked": []}
    for cell in results.sweep.cells:
        rows = results.rows(cell)
        if len(rows) < cell.images.count or not isinstance(cell.threat, AttackConfig | None):
            continue
        right = np.stack(rows["prediction"].to_list()) == rows["label"].to_numpy()[:, None]
        share = dict(zip(rows["image_id"].tolist(), right.mean(1).tolist(), strict=True))
        values = np.array([share[i] for i in random_order(share)])
        cells["clean" if cell.threat is None else "attacked"].append(values)
    print(f"{'cells':>14} {'of':>10} {'half-width':>10} {'images used':>18} {'saved':>6} {'precise enough':>15}")
    for kind, found in cells.items():
        for of in ("population", "images"):
            for half in (0.02, 0.05):
                stops = [first(len(x), partial(narrow, x, half, of)) for x in found]
                used, total = (
                    sum(stop or len(x) for stop, x in zip(stops, found, strict=True)),
                    sum(map(len, found)),
                )
                print(
                    f"{len(found):5} {kind:>8} {of:>10} {100 * half:10.0f} {f'{used} of {total}':>18} "
                    f"{1 - used / max(total, 1):6.0%} {sum(map(bool, stops)) / max(len(stops), 1):14.0%}",
                    flush=True,
                )


def _shown(x: Values, images: int) -> bool:
    return evidence(x[:images], 0.5) <= 0.025


def decisions(runs: int) -> None:
    """Print how often decisions between two defences are wrong, and what they need."""
    images, p = 10_000, 0.6
    print(f"{'difference':>10} {'wrong':>6} {'decided':>8} {'median images':>14} {'looked at: wrong':>17}")
    for difference in (0.0, 0.02, 0.05, 0.1):
        wrong = decided = peeked = 0
        stops = []
        for run in range(runs):
            rng = np.random.default_rng([run, round(1000 * difference)])
            hard = rng.random(images)  # one difficulty an image: what is hard for one defence is for the other
            first_q, second_q = (
                np.clip((q - hard) * 4 + 0.5 + 0.3 * rng.standard_normal(images), 0, 1) for q in (p, p + difference)
            )
            d = (rng.binomial(10, second_q) - rng.binomial(10, first_q)) / 10
            # By the design's own mean, which clipping moves a little away from the difference.
            x = (d + 1) / 2
            up, down = evidence(x, 0.5) <= 0.025, evidence(1 - x, 0.5) <= 0.025
            if up or down:
                side = x if up else 1 - x
                stops.append(first(images, partial(_shown, side)) or images)
            decided += up or down
            wrong += (up or down) if difference == 0 else down
            n = np.arange(CHUNK, images + 1, CHUNK)
            mean = np.cumsum(d)[n - 1] / n
            error = np.sqrt(np.maximum(np.cumsum(d * d)[n - 1] / n - mean**2, 1e-12) / n)
            z = mean / error
            peeked += bool((np.abs(z) > 1.96).any()) if difference == 0 else bool(z[np.abs(z) > 1.96][:1].sum() < 0)
        median = f"{np.median(stops):.0f}" if stops else "-"
        print(
            f"{100 * difference:10.0f} {wrong / runs:6.1%} {decided / runs:8.1%} {median:>14} {peeked / runs:17.1%}",
            flush=True,
        )


def main() -> None:
    """Run one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("coverage", "savings", "replay", "decisions"))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--sweep")
    parser.add_argument("--store")
    options = parser.parse_args()
    started = time.process_time()
    if options.what == "coverage":
        coverage(options.runs or 1000, options.images)
    elif options.what == "savings":
        savings(options.runs or 4)
    elif options.what == "replay":
        replay(options.sweep, options.store)
    else:
        decisions(options.runs or 1000)
    print(f"{time.process_time() - started:.0f} s of processor time")


if __name__ == "__main__":
    main()
