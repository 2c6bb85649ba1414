"""Rounds of chaos: whatever happens to a sweep, its rows end up byte for byte as if nothing had happened.

Each round strikes one blow of the menu (:mod:`chaos_blows`) at a small sweep or its store, runs the same command
again as a user would, and compares the rows and images of every unit with those that one process computes
undisturbed. It prints what the user saw: exit status and last line of each command. A table of all rounds comes last.
Status 1 if a byte differs, a command ended with a traceback, or the sweep could not be completed.

    python benchmarks/chaos.py [--rounds 20] [--seed 0] [--only NAME ...] [--list]

Blows that need something that is not there (root, libfaketime) are skipped, and the table says so.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from chaos_arena import Arena, Damage, Skipped, preload
from chaos_blows import MENU


@dataclass(frozen=True)
class Round:
    """How a round went.

    Arguments:
        name: The blow.
        seconds: How long it took.
        result: ``equal``, or what was wrong.
        statuses: Exit status of each command.
    """

    name: str
    seconds: float
    result: str
    statuses: str


def menu(seed: int, rounds: int) -> list[str]:
    """Names of blows at random; none comes again before all were there."""
    luck, names = random.Random(seed), list[str]()
    while len(names) < rounds:
        names += luck.sample(sorted(MENU), len(MENU))
    return names[:rounds]


def play(name: str, arena: Arena, number: int, seed: int) -> Round:
    """One round: the blow, what the user saw, and the verdict."""
    began = time.monotonic()
    place = arena.place(number, seed)
    try:
        MENU[name](place)
        result = place.verdict()
    except Skipped as why:
        result = f"skipped: {why}"
    except Damage as what:
        result = f"WRONG: {what}"
    finally:
        place.close()
    seconds = time.monotonic() - began
    print(f"round {number}: {name}, {seconds:.0f} s, {result}", flush=True)
    for seen in place.seen:
        print(f"    {seen}", flush=True)
    if place.tracebacks and not result.startswith("WRONG"):
        result = f"WRONG: traceback of {', '.join(place.tracebacks)}"
    return Round(name, seconds, result, " ".join(str(seen.status) for seen in place.seen))


def table(rounds: list[Round]) -> str:
    """A line a round."""
    lines = [f"{'round':>5}  {'blow':<16}{'seconds':>8}  {'exit statuses':<16}  rows"]
    lines += [
        f"{number:>5}  {found.name:<16}{found.seconds:>8.0f}  {found.statuses:<16}  {found.result}"
        for number, found in enumerate(rounds, 1)
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=sorted(MENU), metavar="NAME", help="These blows, in this order.")
    parser.add_argument("--list", action="store_true", help="List the blows and exit.")
    options = parser.parse_args()
    if options.list:
        for name, blow in sorted(MENU.items()):
            print(f"{name:<16} {(blow.__doc__ or '').strip().splitlines()[0]}")
        return
    found: list[Round] = []
    preload()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))  # no object that cleans up: forked commands would do so, too
    try:
        arena = Arena(folder)
        print(f"undisturbed: {arena.units} units, {len(arena.expected)} files", flush=True)
        for number, name in enumerate(options.only or menu(options.seed, options.rounds), 1):
            found.append(play(name, arena, number, 1000 * options.seed + number))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(found))
    if any(passed.result.startswith("WRONG") for passed in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
