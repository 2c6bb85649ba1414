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
from typing import Any
from unittest.mock import patch

import psutil
from helpers_small import compute
from naps import HERE, SharedRay, add_machine, machines
from typer.testing import CliRunner

from workflows.cli import app
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
probe: false  # what is counted is what it is made for
"""
UNITS = 12 * 2 + 12 * 3 * 2  # two attacks; two defences on three kinds of images
SMALL = SWEEP.replace("first: 120", "first: 50").replace("seconds: 0.15", "seconds: 0.05")
SMALL_UNITS = 5 * 2 + 5 * 3 * 2


@dataclass
class Lab:
    """One store, one log, and the command line.

    Arguments:
        folder: Where they are.
        name: Of the store.
        orders: What the purifier does to some images.
        sweep: The sweep file.
        inside: Command that runs the command line, such as ``ip netns exec NAME``.
        shared: The Ray that runs join; without one each starts its own.
    """

    folder: Path
    name: str
    orders: str = ""
    sweep: str = SWEEP
    inside: tuple[str, ...] = ()
    shared: SharedRay | None = None

    @property
    def store(self) -> Path:
        return self.folder / self.name

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def environment(self) -> dict[str, str]:
        """What the purifier needs to know; workers have it from their raylet."""
        orders = self.shared.orders if self.shared else self.folder / f"{self.name}.orders"
        return {"UNRULY": str(orders), "PYTHONPATH": HERE}

    def command(self, name: str, *options: str) -> list[str]:
        """A command on this sweep and store, after log and orders are written where workers read them."""
        sweep = self.folder / "chaos.yaml"
        sweep.write_text(self.sweep)
        self.log.touch()
        Path(self.environment["UNRULY"]).write_text(f"{self.log}\n{self.orders}")
        return [name, str(sweep), "--store", str(self.store), *options]

    def run_command(self, workers: int | None, *options: str) -> list[str]:
        # Without a preflight: the purifier counts who asks it.
        slots = [] if workers is None else ["--workers", str(workers)]
        where = ["--address", self.shared.address] if self.shared else []
        return self.command("run", "--mlflow", "off", "--no-preflight", *slots, *where, *options)

    def call(self, command: list[str]) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of a command in this process: it begins sooner than another process."""
        with patch.dict(os.environ, self.environment):
            result = CliRunner().invoke(app, command)
        return result.exit_code, result.stdout, result.stderr

    def start(self, workers: int | None, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.inside, sys.executable, "-m", "workflows.cli", *self.run_command(workers, *options)],
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_commits(self, count: int, driver: subprocess.Popen[str]) -> None:
        """Wait until so many units are committed by a driver that goes on."""
        wait_for(lambda: len(self.commits()) >= count, driver)

    def run(self, workers: int = 2, *options: str) -> tuple[int, str, str]:
        """A whole run in this process."""
        return self.call(self.run_command(workers, *options))

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
    lab.command("run")
    with patch.dict(os.environ, lab.environment), patch("time.sleep"):  # the purifier's, which no row depends on
        compute(load_sweep(folder / "chaos.yaml"), str(lab.store))
    return lab.data()


def wait_for(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until it holds, while a process goes on."""
    end = time.monotonic() + 300
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
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
