"""A sweep, a store and the command line, for tests that kill, stop, block and poison real processes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import psutil
from helpers_small import compute
from naps import add_machine, machines

from workflows.grid.load import load_sweep

SWEEP = """
sweep: chaos
datasets:
  - dataset: digits
    images: {first: 120}
classifiers: [digits-cnn]
defences:
  - none
  - purifier: unruly:UnrulyConfig
    seconds: 0.15
    draws: 2
attacks:
  - none
  - attack: pgd
    norm: linf
    eps: [0.1, 0.2]
    steps: 3
chunk: 10
compute: {batch: 10}
"""
UNITS = 12 * 2 + 12 * 3 * 2  # two attacks; two defences on three kinds of images
SMALL = SWEEP.replace("first: 120", "first: 50").replace("seconds: 0.15", "seconds: 0.05")
SMALL_UNITS = 5 * 2 + 5 * 3 * 2


@dataclass
class Lab:
    """One store, one log, and the command line, which ``inside`` runs: a command such as ``ip netns exec NAME``."""

    folder: Path
    name: str
    orders: str = ""
    sweep: str = SWEEP
    inside: tuple[str, ...] = ()

    @property
    def store(self) -> Path:
        return self.folder / self.name

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def environment(self) -> dict[str, str]:
        """What the purifier needs to know; workers have it from their raylet."""
        return {"UNRULY_LOG": str(self.log), "UNRULY": self.orders, "PYTHONPATH": str(Path(__file__).parent)}

    def start(self, workers: int | None, *options: str) -> subprocess.Popen[str]:
        sweep = self.folder / "chaos.yaml"
        sweep.write_text(self.sweep)
        self.log.touch()
        command = ["run", str(sweep), "--store", str(self.store), "--mlflow", "off"]
        command.append("--no-preflight")  # the purifier counts who asks it
        if workers is not None:
            command += ["--workers", str(workers)]
        return subprocess.Popen(
            [*self.inside, sys.executable, "-m", "workflows.cli", *command, *options],
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, workers: int = 2, *options: str) -> tuple[int, str, str]:
        process = self.start(workers, *options)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def commits(self) -> list[Path]:
        return sorted((self.store / "commits").rglob("*.json"))

    def data(self) -> dict[str, str]:
        """Hash of every row and image file."""
        files = [p for kind in ("rows", "adversarial") for p in (self.store / kind).rglob("*.parquet")]
        return {str(p.relative_to(self.store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    def attempts(self) -> dict[str, str]:
        return {str(p): json.loads(p.read_text())["attempt"] for p in self.commits()}


def calm(folder: Path, sweep: str = SWEEP) -> dict[str, str]:
    """Hash of every row and image file of a sweep that is computed unit by unit in this process, without Ray."""
    lab = Lab(folder, "store", sweep=sweep)
    folder.mkdir(exist_ok=True)
    path = folder / "chaos.yaml"
    path.write_text(sweep)
    with patch.dict(os.environ, lab.environment), patch("time.sleep"):  # the purifier's, which no row depends on
        compute(load_sweep(path), str(lab.store))
    return lab.data()


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def workers_of(driver: int) -> list[psutil.Process]:
    """Worker processes below a process."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if any("ray::UnitWorker" in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def large(images: int) -> str:
    """The same sweep on more images and with shorter units."""
    return SWEEP.replace("first: 120", f"first: {images}").replace("seconds: 0.15", "seconds: 0.05")


@dataclass
class Storm:
    """What was done to a sweep while it ran.

    Arguments:
        done: How often each thing was done.
        drivers: Exit status of each driver, in order.
        seconds: From the first driver's start to the last one's end.
        notes: What the last driver said.
    """

    done: Counter[str]
    drivers: list[int]
    seconds: float
    notes: str


def storm(lab: Lab, script: Iterator[str], pause: float, seed: int, limit: float = 900) -> Storm:
    """Run a sweep on three nodes of one worker each, and every ``pause`` commits do what the script says.

    ``worker`` and ``stop`` send SIGKILL and SIGSTOP to a random worker; ``raylet`` kills a node's raylet and starts
    another node; ``driver`` kills the driver and starts another one on the same store.
    """
    luck = random.Random(seed)
    done: Counter[str] = Counter()
    drivers: list[int] = []
    started = time.monotonic()
    with patch.dict(os.environ, lab.environment), machines(0) as cluster:
        nodes = [add_machine(cluster, 1, number) for number in (3, 4, 5)]
        fresh = iter(range(6, 250))
        driver = lab.start(None, "--address", cluster.address)
        aim = pause
        while driver.poll() is None:
            if time.monotonic() - started > limit:
                raise TimeoutError(f"the sweep did not end; {len(lab.commits())} units are committed, done: {done}")
            time.sleep(0.1)
            if len(lab.commits()) < aim:
                continue
            aim = len(lab.commits()) + pause
            what = next(script, "")
            if what == "driver":
                driver.kill()
                driver.communicate()
                drivers.append(driver.returncode)
                driver = lab.start(None, "--address", cluster.address)
            elif what == "raylet":
                node = nodes.pop(luck.randrange(len(nodes)))
                node.all_processes["raylet"][0].process.kill()
                nodes.append(add_machine(cluster, 1, next(fresh)))
            elif what:
                victims = workers_of(os.getpid())
                if not victims:
                    continue
                luck.choice(victims).send_signal(signal.SIGKILL if what == "worker" else signal.SIGSTOP)
            if what:
                done[what] += 1
        _, notes = driver.communicate()
        drivers.append(driver.returncode)
    return Storm(done, drivers, time.monotonic() - started, notes)
