"""Rounds of random kills, on a Ray cluster of several nodes on this machine; no byte of the rows may change.

Each round runs a sweep of 320 units on three nodes of one worker each, and every few commits kills or stops something
at random: a worker (SIGKILL), a worker (SIGSTOP), a raylet (another node joins in its place), the driver (the same
command again). Afterwards all row and image files are compared with those of an undisturbed run, and commits counted.

    python benchmarks/chaos.py [--rounds 10] [--pause 25] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

TESTS = str(Path(__file__).parent.parent / "tests" / "workflows")
sys.path.insert(0, TESTS)

from lab import Lab, large, storm  # noqa: E402


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
        calm = Lab(Path(folder), "calm", sweep=large(400))
        status, _, err = calm.run(workers=2)
        if status:
            raise SystemExit(err)
        expected = calm.data()
        print(f"undisturbed: {len(calm.commits())} units, {len(expected)} files", flush=True)
        for number in range(options.rounds):
            lab = Lab(Path(folder), f"round{number}", sweep=large(400))
            found = storm(lab, script(options.seed + number), options.pause, options.seed + number)
            same = lab.data() == expected
            attempts = len(set(lab.attempts().values()))
            blows = ", ".join(f"{count} x {what}" for what, count in sorted(found.done.items()))
            print(
                f"round {number}: {blows}; {len(found.drivers)} drivers, {found.seconds:.0f} s; {attempts} commits, "
                f"files {'equal byte for byte' if same else 'DIFFER'}",
                flush=True,
            )
            if not same or found.drivers[-1] != 0 or attempts != len(calm.commits()):
                raise SystemExit(found.notes[-2000:])


if __name__ == "__main__":
    main()
