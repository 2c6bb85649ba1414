"""Load many mutated sweep files in this process: ``python fuzz_sweeps.py SEED COUNT``; what happened, as JSON.

A file goes the way of ``puregrid plan`` up to the cells: parsed, validated, its files found and hashed, its bounds
checked, its grid made. The process gives itself limits before the first file, and each file ten seconds.
"""

from __future__ import annotations

import functools
import json
import random
import re
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mutations import Mistake, mistake, originals

from defense import checkpoints
from defense.errors import InvalidInput
from tasks import datasets
from workflows.grid.load import load_sweep

SWEEPS = Path(__file__).parents[2] / "workflows" / "sweeps"
SECONDS = 10
MEMORY = 1_000_000_000


class TooSlow(BaseException):
    """A file takes longer than it may; no handler of exceptions catches it."""


def _peak() -> int:
    """Peak memory in kB; that of ``getrusage`` begins with the memory of the process that started this one."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def _stop(number: int, frame: object) -> None:
    raise TooSlow


def _remember_files() -> None:
    """Hash weights and read the digits once: they are the same in all files."""
    for module in list(sys.modules.values()):
        if getattr(module, "sha256_file", None) is checkpoints.sha256_file and module is not checkpoints:
            module.sha256_file = _sha256  # type: ignore[attr-defined]
    datasets.DigitsConfig.checked = functools.lru_cache(datasets.DigitsConfig.checked)  # type: ignore[method-assign]


_sha256 = functools.lru_cache(checkpoints.sha256_file)


def _line(error: InvalidInput, path: Path) -> int | None:
    found = re.match(rf"{re.escape(str(path))}:(\d+)", str(error.where))
    return int(found[1]) if found else None


def main(seed: int, count: int) -> dict[str, Any]:
    """Return what happened to ``count`` files."""
    texts = originals(SWEEPS)
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    examples: list[str] = []
    failures: list[str] = []
    slowest = 0.0
    _remember_files()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mutated.yaml"
        for text in texts:
            path.write_text(text)
            load_sweep(path)
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + MEMORY, virtual + MEMORY))
        # Seconds of the processor, which a busy machine does not stretch; and many of the clock, for one that waits.
        signal.signal(signal.SIGPROF, _stop)
        signal.signal(signal.SIGALRM, _stop)
        for number in range(count):
            made: Mistake = mistake(chance.choice(texts), chance)
            path.write_bytes(made.data)
            started = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.alarm(30 * SECONDS)
            try:
                load_sweep(path)
                outcomes["taken"] += 1
            except InvalidInput as error:
                outcomes["refused"] += 1
                refused[made.kind] += 1
                line = _line(error, path)
                outcomes["by name"] += line not in made.lines and made.told_right(str(error), line)
                if not made.told_right(str(error), line):
                    wrong[made.kind] += 1
                    examples.append(f"{number} {made.kind} {sorted(made.lines)} {str(error)[:400]}")
            except (Exception, TooSlow, SystemExit, RecursionError) as error:
                name = type(error).__name__
                failures.append(f"{number} {made.kind} {name}\n{traceback.format_exc()[-1500:]}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
            slowest = max(slowest, time.process_time() - started)
    return {
        "taken": outcomes["taken"],
        "refused": outcomes["refused"],
        "wrong": sum(wrong.values()),
        "by_name": outcomes["by name"],
        "by_kind": {kind: [wrong[kind], refused[kind]] for kind in refused},
        "slowest": slowest,
        "seconds": time.process_time(),
        "megabytes": _peak() / 1000,
        "failures": failures,
        "examples": examples,
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2])), indent=1))
