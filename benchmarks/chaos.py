"""Rounds of random kills, on a Ray cluster of several nodes on this machine; no byte of the rows may change.

Each round runs a sweep of 320 units on three nodes of one worker each, and every few commits kills or stops something
at random: a worker (SIGKILL), a worker (SIGSTOP), a raylet (another node joins in its place), the driver (the same
command again). Afterwards all row and image files are compared with those of an undisturbed run, and commits counted.
Each round says how long the others will take; a table of all rounds comes last. Status 1 if a byte differs.

    python benchmarks/chaos.py [--rounds 10] [--pause 25] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TESTS = str(Path(__file__).parent.parent / "tests" / "workflows")
sys.path.insert(0, TESTS)

from lab import Lab, Storm, calm, large, storm  # noqa: E402

BLOWS = ("worker", "stop", "raylet", "driver")
UNITS = 320


def script(seed: int) -> Iterator[str]:
    """At most three raylets and drivers a round: each costs seconds until it is noticed and replaced."""
    luck = random.Random(seed)
    heavy = 0
    while True:
        what = luck.choice(["worker", "worker", "stop", "raylet", "driver"])
        heavy += what in ("raylet", "driver")
        yield what if heavy <= 3 or what in ("worker", "stop") else "worker"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pause", type=int, default=25, help="Commits between two blows.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        expected = calm(Path(folder) / "calm", large(400))
        print(f"undisturbed: {len(expected)} files", flush=True)
        found: list[tuple[Storm, int, bool]] = []
        began = time.monotonic()
        for number in range(options.rounds):
            lab = Lab(Path(folder), f"round{number}", sweep=large(400))
            passed = storm(lab, script(options.seed + number), options.pause, options.seed + number)
            attempts = len(set(lab.attempts().values()))
            same = lab.data() == expected and attempts == UNITS and passed.drivers[-1] == 0
            found.append((passed, attempts, same))
            left = (time.monotonic() - began) / len(found) * (options.rounds - len(found))
            print(
                f"round {number + 1} of {options.rounds}: {sum(passed.done.values())} blows, {passed.seconds:.0f} s, "
                f"{'no byte differs' if same else 'DIFFERS'}; about {left / 60:.0f} min left",
                flush=True,
            )
            if not same:
                print(table(found))
                raise SystemExit(passed.notes[-2000:])
        print(table(found))


def table(found: list[tuple[Storm, int, bool]]) -> str:
    """A line a round, and their sum."""
    lines = ["round  killed  stopped  raylets  drivers  commits  seconds  files"]
    for number, (passed, attempts, same) in enumerate(found, 1):
        blows = "  ".join(f"{passed.done[what]:>7d}" for what in BLOWS)
        lines.append(f"{number:5d} {blows}  {attempts:7d}  {passed.seconds:7.0f}  {'equal' if same else 'DIFFER'}")
    blows = "  ".join(f"{sum(passed.done[what] for passed, _, _ in found):>7d}" for what in BLOWS)
    commits, seconds = sum(attempts for _, attempts, _ in found), sum(passed.seconds for passed, _, _ in found)
    return "\n".join([*lines, f"  all {blows}  {commits:7d}  {seconds:7.0f}"])


if __name__ == "__main__":
    main()
