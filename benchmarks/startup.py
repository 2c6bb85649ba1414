"""How long the command line takes to answer, in seconds of one processor, beside `import torch` and eager imports.

*Before* is what every answer cost while the packages imported all their public names: `import torch, typer` and every
public module of `defense`. Each figure is the least of several processes.

    python benchmarks/startup.py [--repeat N]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EAGER = "from defense import *; import workflows.cli"
TIMED = {
    "python -c pass": ["-c", "pass"],
    "import typer": ["-c", "import typer"],
    "import torch": ["-c", "import torch"],
    "before: every public name of defense": ["-c", EAGER],
    "import puregrid": ["-c", "import puregrid"],
    "puregrid --version": ["-m", "puregrid", "--version"],
    "puregrid --help": ["-m", "puregrid", "--help"],
    "puregrid list": ["-m", "puregrid", "list"],
    "puregrid list sweeps": ["-m", "puregrid", "list", "sweeps"],
    "puregrid list attacks": ["-m", "puregrid", "list", "attacks"],
    "puregrid plan quickstart": ["-m", "puregrid", "plan", "quickstart"],
}


def seconds(words: list[str], folder: str) -> float:
    """Processor seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as folder:
        figures = {name: min(seconds(words, folder) for _ in range(repeat)) for name, words in TIMED.items()}
    before = figures["before: every public name of defense"]
    for name, figure in figures.items():
        print(f"{name:<40}{figure:7.2f} s   before / this {before / figure:6.1f}")


if __name__ == "__main__":
    main()
