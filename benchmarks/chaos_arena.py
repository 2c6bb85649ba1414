"""What a round of chaos happens to: a small sweep, a store, the command line, and the rows that there should be."""

from __future__ import annotations

import atexit
import hashlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
NOBODY = 65534

PLUGIN = '''"""Noise that takes its time."""

import time
from typing import Literal

from defense.purifiers import Purifier, PurifierConfig

SCALE = 0.1


class Slow(Purifier):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x, omega):
        time.sleep(self.seconds)
        return (x + SCALE * omega.normal("forward", 0, x)).clamp(0, 1)


class SlowConfig(PurifierConfig):
    """Noise."""

    purifier: Literal["slow:SlowConfig"] = "slow:SlowConfig"
    seconds: float = 0.0

    def label(self):
        return "slow"

    def build(self, models=None):
        return Slow(self.seconds)
'''

SWEEP = """
sweep: chaos
datasets:
  - dataset: digits
    images: {{first: 18}}
classifiers: [digits-cnn]
denoisers:
  small:
    format: diffusers
    path: {denoiser}
    schedule: linear-1000
defences:
  - none
  - {{purifier: "slow:SlowConfig", seconds: 0.4, draws: 2}}
  - {{purifier: diffpure, denoiser: small, schedule: linear-1000, t_star: 10, steps: 2}}
attacks:
  - none
  - {{attack: pgd, norm: linf, eps: 0.1, steps: 2}}
chunk: 3
"""


class Damage(Exception):
    """Something that must not happen."""


class Skipped(Exception):
    """Something is missing that this blow needs."""


@dataclass(frozen=True)
class Seen:
    """What a command said.

    Arguments:
        command: Its name.
        status: Its exit status.
        line: Its last line on stderr, or on stdout.
    """

    command: str
    status: int
    line: str

    def __str__(self) -> str:
        return f"{self.command} -> {self.status}: {self.line}"


def data(store: Path) -> dict[str, str]:
    """Hash of the rows and images of every committed unit, by where a first attempt puts them."""
    from workflows.store import Store

    opened, found = Store(str(store)), {}
    for path in sorted((store / "commits").rglob("*.json")):
        _, stage, stage_id, chunk = path.with_suffix("").relative_to(store).parts
        commit = opened.committed(stage, stage_id, chunk)
        for place in commit.sha256 if commit else ():
            usual = re.sub(r"\.[0-9a-f]{12}(?=\.parquet$)", "", place)
            found[usual] = hashlib.sha256((store / place).read_bytes()).hexdigest()
    return found


class Child:
    """A command in a process of its own, in a session of its own, with its output in files.

    It is forked from this one, which has imported everything already: that saves the start of Python and torch, which
    is most of the time of a small command.
    """

    def __init__(
        self, main: Callable[[], None], folder: Path, environment: Mapping[str, str], user: int | None = None
    ) -> None:
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self.status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(self._out.fileno(), 1)
            os.dup2(self._err.fileno(), 2)
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            os.environ.clear()
            os.environ.update(environment)
            sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
            os.chdir(folder)
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None as long as it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 600) -> tuple[str, str, int]:
        """Wait for its end; returns what it wrote to stdout and stderr, and its status.

        Raises:
            TimeoutError: It does not end.
        """
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.02)
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        assert self.status is not None
        return texts[0], texts[1], self.status


def _undisturbed(sweep: Path, store: Path) -> None:
    """Compute a sweep unit by unit, without Ray."""
    sys.path.insert(0, str(ROOT / "tests" / "workflows"))
    time.sleep = lambda seconds: None
    from helpers_small import compute

    from workflows.grid.load import load_sweep
    from workflows.planning.plan import make_plan
    from workflows.results.records import record_sweep
    from workflows.store import Store

    loaded = load_sweep(sweep)
    compute(loaded, str(store))
    record_sweep(loaded, make_plan(loaded), Store(str(store)))


def preload() -> None:
    """Import what commands need, so that they need not; nothing that starts threads."""
    import encodings.utf_8_sig  # noqa: F401 - nobody else may read the folder of this Python

    import ray  # noqa: F401
    import torch

    import workflows.analysis
    import workflows.cli
    import workflows.engine.run
    import workflows.formats
    import workflows.regression.baselines
    import workflows.report
    import workflows.results.compact  # noqa: F401

    torch.set_num_threads(1)


class Arena:
    """The sweep, its plugin, its weights, and a store that was filled undisturbed, by one process without Ray."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        (folder / "plugin").mkdir()
        self.plugin = folder / "plugin" / "slow.py"
        self.plugin.write_text(PLUGIN)
        shutil.copytree(ROOT / "defense" / "assets" / "digits-ddpm", folder / "denoiser")
        self.weights = folder / "denoiser" / "diffusion_pytorch_model.safetensors"
        self.sweep = folder / "chaos.yaml"
        self.sweep.write_text(SWEEP.format(denoiser=folder / "denoiser"))
        self.whole = folder / "undisturbed"
        if Child(lambda: _undisturbed(self.sweep, self.whole), folder, self.environment()).communicate()[2]:
            raise SystemExit("the undisturbed sweep could not be computed")
        self.expected = data(self.whole)
        self.units = len(list((self.whole / "commits").rglob("*.json")))

    def environment(self) -> dict[str, str]:
        """What commands need to find the plugin, and how many threads they take."""
        paths = [str(self.plugin.parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",  # an edit within a second would not be noticed
        }

    def place(self, number: int, seed: int) -> Place:
        """A store for a round, empty."""
        return Place(self, self.folder / f"round{number}", random.Random(seed))


@dataclass
class Place:
    """The store of a round, and the command line on it.

    Arguments:
        arena: What all rounds share.
        folder: Where its files are.
        luck: What the round draws from.
    """

    arena: Arena
    folder: Path
    luck: random.Random
    seen: list[Seen] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    user: int | None = None
    workers: int = 1
    cleanups: list[Callable[[], object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()

    @property
    def store(self) -> Path:
        """The store."""
        return self.folder / "store"

    def fill(self) -> None:
        """Begin with the whole store."""
        shutil.copytree(self.arena.whole, self.store)

    def start(self, *words: str, store: Path | None = None, mlflow: bool = False) -> Child:
        """Start a command on the store."""
        command, *options = words
        where = [str(self.arena.sweep), "--store", str(store or self.store)]
        if command == "run":
            where += ["--workers", str(self.workers), "--no-preflight", *(() if mlflow else ("--mlflow", "off"))]
        arguments = [command, *where, *options]
        environment = {**self.arena.environment(), **self.environment}

        def main() -> None:
            if "LD_PRELOAD" in environment:  # which is for programs that begin
                os.execve(sys.executable, [sys.executable, "-m", "workflows.cli", *arguments], environment)
            from workflows.cli import main as cli

            sys.argv = ["puregrid", *arguments]
            cli()

        return Child(main, self.folder, environment, self.user)

    def end(self, process: Child, name: str) -> Seen:
        """Wait for a command, and note what it said."""
        try:
            out, err, status = process.communicate(400)
        except TimeoutError as error:
            kill_tree(process.pid)
            process.communicate()
            raise Damage(f"{name} did not end") from error
        said = [line for line in (err.strip() or out.strip()).splitlines() if line.strip()]
        seen = Seen(name, status, said[-1][:180] if said else "")
        self.seen.append(seen)
        # Of workers that are killed Ray prints tracebacks; one of ours ends the command.
        if re.search(r"^Traceback", err, re.MULTILINE) and status not in (0, -signal.SIGKILL):
            self.tracebacks.append(name)
            (self.folder / f"{len(self.seen)}-{name.split()[0]}.txt").write_text(err)
            print(err[-3000:], file=sys.stderr, flush=True)
        return seen

    def do(self, *words: str, store: Path | None = None, mlflow: bool = False) -> Seen:
        """Start a command and wait for it."""
        return self.end(self.start(*words, store=store, mlflow=mlflow), words[0])

    def complete(self, store: Path | None = None, *, mlflow: bool = False) -> None:
        """Run the same command, again and again as a user would, until it says that it is done.

        Raises:
            Damage: It is not done after three times.
        """
        for _ in range(3):
            if self.do("run", store=store, mlflow=mlflow).status == 0:
                return
        raise Damage("the sweep cannot be completed")

    def commits(self) -> int:
        """How many units are committed."""
        return len(list((self.store / "commits").rglob("*.json")))

    def wait(self, process: Child, done: Callable[[], bool]) -> None:
        """Wait until something is so, or the command has ended."""
        end = time.monotonic() + 300
        while process.poll() is None and not done():
            if time.monotonic() > end:
                kill_tree(process.pid)
                raise Damage("waited too long")
            time.sleep(0.02)

    def underway(self) -> Child:
        """Start a run and wait until some more of its units are committed.

        Raises:
            Skipped: Three times it ended before that: a blow would strike nothing.
        """
        for _ in range(3):
            process, aim = self.start("run"), self.commits() + self.luck.randrange(2, self.arena.units // 3)
            self.wait(process, lambda aim=aim: self.commits() >= aim)  # type: ignore[misc]
            if process.poll() is None:
                return process
            self.end(process, "run, ended too early")
        raise Skipped("no run lasted long enough to be struck")

    def verdict(self, store: Path | None = None, expected: Mapping[str, str] | None = None) -> str:
        """Compare the rows and images with the undisturbed ones.

        Raises:
            Damage: They differ.
        """
        found, wanted = data(store or self.store), expected or self.arena.expected
        wrong = sorted(path for path in wanted if found.get(path) != wanted[path])
        if wrong:
            raise Damage(f"{len(wrong)} files differ, first {wrong[0]}")
        return "equal"

    def close(self) -> None:
        """Undo what the round did to what all rounds share, and remove its files."""
        for cleanup in reversed(self.cleanups):
            cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)


def processes(driver: int, word: str) -> list[psutil.Process]:
    """Processes below a driver whose command line has a word in it."""
    found = []
    try:
        family = psutil.Process(driver).children(recursive=True)
    except psutil.Error:  # it has ended
        return []
    for process in family:
        try:
            if any(word in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_tree(pid: int) -> None:
    """End a process and all below it."""
    try:
        family = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    except psutil.Error:
        return
    for process in family:
        try:
            process.kill()
        except psutil.Error:
            continue
