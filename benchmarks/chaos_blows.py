"""The menu of chaos: what can happen to a sweep or its store.

Each blow takes a place and leaves the sweep in it complete.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from glob import glob
from pathlib import Path

from chaos_arena import NOBODY, ROOT, Damage, Place, Seen, Skipped, data, kill_tree, processes

__all__ = ["MENU"]

MENU: dict[str, Callable[[Place], None]] = {}


def blow(function: Callable[[Place], None]) -> Callable[[Place], None]:
    """Put a blow on the menu, under its name."""
    MENU[function.__name__.replace("_", "-")] = function
    return function


# ---- processes ----


@blow
def worker(place: Place) -> None:
    """Kill one worker after the other (SIGKILL) while the sweep runs."""
    place.workers = 2
    driver = place.underway()
    for _ in range(3):
        victims = processes(driver.pid, "ray::UnitWorker") if driver.poll() is None else []
        if victims:
            place.luck.choice(victims).kill()
            time.sleep(place.luck.uniform(0.5, 2))
    if place.end(driver, "run").status:
        place.complete()


@blow
def freeze_worker(place: Place) -> None:
    """Stop a worker (SIGSTOP) and let it go on (SIGCONT) later."""
    place.workers = 2
    driver = place.underway()
    victims = processes(driver.pid, "ray::UnitWorker")
    if victims:
        victims[0].suspend()
        time.sleep(place.luck.uniform(4, 8))
        if victims[0].is_running():
            victims[0].resume()
    if place.end(driver, "run").status:
        place.complete()


@blow
def raylet(place: Place) -> None:
    """Kill the raylet: the only node of the cluster is lost."""
    driver = place.underway()
    for process in processes(driver.pid, "raylet/raylet")[:1]:
        process.kill()
    # Without a node the driver would wait five minutes for another one; a user presses Ctrl-C.
    time.sleep(20)
    if driver.poll() is None:
        driver.send_signal(signal.SIGINT)
        time.sleep(1)
        driver.send_signal(signal.SIGINT)
    place.end(driver, "run, raylet killed, Ctrl-C")
    place.complete()


@blow
def driver(place: Place) -> None:
    """Kill the driver (SIGKILL) twice while the sweep runs; status knows at once that it is gone."""
    for _ in range(2):
        process = place.underway()
        process.kill()
        place.end(process, "run, killed")
    place.do("status")
    place.complete()


@blow
def freeze_driver(place: Place) -> None:
    """Stop the driver (SIGSTOP) and let it go on (SIGCONT)."""
    process = place.underway()
    process.send_signal(signal.SIGSTOP)
    time.sleep(place.luck.uniform(4, 8))
    process.send_signal(signal.SIGCONT)
    if place.end(process, "run, frozen").status:
        place.complete()


@blow
def interrupt(place: Place) -> None:
    """Press Ctrl-C while the sweep runs."""
    process = place.underway()
    process.send_signal(signal.SIGINT)
    if place.end(process, "run, Ctrl-C").status not in (0, 130):
        raise Damage("Ctrl-C did not end with status 130")
    place.complete()


@blow
def two_drivers(place: Place) -> None:
    """Run the same sweep twice at once on one store."""
    place.workers = 2
    both = [place.start("run") for _ in range(2)]
    statuses = [place.end(process, f"run {number}").status for number, process in enumerate(both, 1)]
    if any(statuses):
        raise Damage(f"two drivers ended with {statuses}")


@blow
def copy(place: Place) -> None:
    """Copy the store while the sweep runs; the copy is run to its end too."""
    process, other = place.underway(), place.folder / "copy"
    subprocess.run(["cp", "-a", str(place.store), str(other)], check=False, capture_output=True)
    if place.end(process, "run").status:
        place.complete()
    place.complete(other)
    place.verdict(other)


# ---- files of the store ----


def _files(place: Place, *kinds: str) -> list[Path]:
    found = [path for kind in kinds for path in sorted((place.store / kind).rglob("*")) if path.is_file()]
    return place.luck.sample(found, len(found))


def _kept(place: Place, change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    """Change all commits, and expect that none of them is touched or computed again."""
    place.fill()
    paths = _files(place, "commits")
    for path in paths:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    before = {path: path.read_bytes() for path in paths}
    for command in ("plan", "status", "tables"):
        if place.do(command).status:
            raise Damage(f"{command} does not read these commits")
    place.complete()
    if {path: path.read_bytes() for path in paths} != before:
        raise Damage("commits of another version were replaced")


@blow
def older_schema(place: Place) -> None:
    """Commits as an older version wrote them: without the fields that came later."""
    later = ("schema_version", "checksum", "notes", "inputs", "missing")
    _kept(place, lambda commit: {name: value for name, value in commit.items() if name not in later})


@blow
def newer_schema(place: Place) -> None:
    """Commits with fields that only a later version knows; then of a later schema, which are refused and kept."""
    _kept(place, lambda commit: {**commit, "energy_joules": 1.5, "signature": {"key": None}})
    paths = _files(place, "commits")
    before = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2}))
    later = {path: path.read_bytes() for path in paths}
    if place.do("run").status == 0 or {path: path.read_bytes() for path in paths} != later:
        raise Damage("commits of a later schema were not refused, or were touched")
    for path, content in before.items():
        path.write_bytes(content)


@blow
def flip_bytes(place: Place) -> None:
    """Flip bytes, or cut files short, of every kind; look, and run again."""
    place.fill()
    for path in _files(place, "rows", "adversarial", "commits", "specs", "sweeps")[:25]:
        content = bytearray(path.read_bytes())
        if place.luck.random() < 0.3:
            del content[place.luck.randrange(len(content)) :]
        for _ in range(3 if content else 0):
            content[place.luck.randrange(len(content))] ^= 1 << place.luck.randrange(8)
        path.write_bytes(content)
    for command in ("status", "plan", "tables"):
        place.do(command)
    place.complete()


@blow
def delete_data(place: Place) -> None:
    """Delete rows and images."""
    place.fill()
    for path in _files(place, "rows", "adversarial")[:12]:
        path.unlink()
    place.do("tables")
    place.complete()


@blow
def delete_commits(place: Place) -> None:
    """Delete commits."""
    place.fill()
    for path in _files(place, "commits")[:12]:
        path.unlink()
    place.do("status")
    place.complete()


@blow
def no_files(place: Place) -> None:
    """Put folders, pipes and links in place of files."""
    place.fill()
    for path in _files(place, "rows", "adversarial", "commits", "specs", "sweeps")[:20]:
        path.unlink()
        place.luck.choice([path.mkdir, lambda p=path: os.mkfifo(p), lambda p=path: p.symlink_to(p)])()
    for command in ("status", "tables"):
        place.do(command)
    place.complete()


# ---- code, weights, clocks, users ----


def _edited(place: Place, path: Path, content: bytes) -> None:
    """Change a file in the middle of a run; then change it back."""
    good, process = path.read_bytes(), place.underway()
    place.cleanups.append(lambda: path.write_bytes(good))
    path.write_bytes(content)
    place.end(process, "run, edited meanwhile")
    place.do("run")  # with what it is now
    path.write_bytes(good)
    place.complete()


@blow
def code(place: Place) -> None:
    """Edit a plugin in the middle of a run, run that, and change it back."""
    _edited(place, place.arena.plugin, place.arena.plugin.read_bytes().replace(b"SCALE = 0.1", b"SCALE = 0.2"))


@blow
def weights(place: Place) -> None:
    """Change the weights of a denoiser in the middle of a run, run that, and change them back."""
    content = bytearray(place.arena.weights.read_bytes())
    content[-4096:] = bytes(4096)
    _edited(place, place.arena.weights, bytes(content))


# Under libfaketime 0.9.10 clock_nanosleep fails, which is how Python sleeps.
SLEEP = """import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


@blow
def clock(place: Place) -> None:
    """Look at a run, and go on with it, with clocks that are a day ahead or behind."""
    found = glob(os.environ.get("LIBFAKETIME", "/usr/lib/*/faketime/libfaketime.so.1"))
    if not found:
        raise Skipped("no libfaketime (apt install faketime, or name the file in $LIBFAKETIME)")
    (place.folder / "sitecustomize.py").write_text(SLEEP)
    path = os.pathsep.join([str(place.folder), place.arena.environment()["PYTHONPATH"]])
    clocks: dict[str, dict[str, str]] = {
        days: {"LD_PRELOAD": found[0], "FAKETIME": days, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "PYTHONPATH": path}
        for days in ("+1d", "-1d")
    }
    going = place.start("run")
    place.wait(going, lambda: place.commits() >= 3 and bool(list(place.store.glob("sweeps/*/runs/*.json"))))
    for state in ("stopped", "killed"):  # stopped, so that it has the same progress each time
        going.send_signal(signal.SIGSTOP if state == "stopped" else signal.SIGKILL)
        if state == "killed":
            place.end(going, "run, killed")
        lines = set()
        for days in (None, *clocks):
            place.environment = {} if days is None else clocks[days]
            lines.add(place.do("status").line)
        if len(lines) > 1:
            raise Damage(f"status depends on the clock: {lines}")
    for days in clocks:
        place.environment = clocks[days]
        process = place.start("run")
        before = place.commits()
        place.wait(process, lambda before=before: place.commits() > before + 3)
        if days == "+1d":
            process.kill()
        place.end(process, f"run at {days}{', killed' if days == '+1d' else ''}")
    place.environment = {}
    place.complete()


@blow
def nobody(place: Place) -> None:
    """Run as a user who may read the store and not write it; then give it to that user."""
    if os.geteuid():
        raise Skipped("only root can become somebody else")
    place.fill()
    for path in _files(place, "commits")[:10]:
        path.unlink()
    place.folder.chmod(0o777)
    home = place.folder / "home"
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    place.user, place.environment = NOBODY, {"HOME": str(home), "TMPDIR": str(home), "RAY_TMPDIR": f"/tmp/r{NOBODY}"}
    place.cleanups.append(lambda: shutil.rmtree(f"/tmp/r{NOBODY}", ignore_errors=True))
    if place.do("status").status or place.do("run").status == 0:
        raise Damage("a store that may only be read was not read, or was written")
    for path in (place.store, *place.store.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    # Ray starts programs of its own, with a Python that may be in a folder of root.
    try:
        subprocess.run(
            [sys.executable, "-c", "import optparse"], user=NOBODY, group=NOBODY, check=True, capture_output=True
        )
    except (PermissionError, subprocess.CalledProcessError):
        place.seen.append(Seen("note", 0, "this Python is root's alone, so root completes the sweep"))
        place.user, place.environment = None, {}
    place.complete()
    place.user = None


# ---- reports, copies, MLflow ----


def _killed(place: Place, command: str) -> None:
    """Kill a command three times, each time a little later, but before it would have ended."""
    other = place.folder / "timed"
    shutil.copytree(place.store, other)
    began = time.monotonic()
    place.do(command, store=other)
    seconds = time.monotonic() - began
    for turn in range(3):
        process = place.start(command)
        time.sleep(seconds * (turn + place.luck.random()) / 3)
        kill_tree(process.pid)
        place.end(process, f"{command}, killed")


@blow
def kill_report(place: Place) -> None:
    """Kill `report` at three moments; the page is whole, or not there."""
    place.fill()
    _killed(place, "report")
    page = place.folder / "report.html"
    if page.exists() and not page.read_text().rstrip().endswith("</html>"):
        raise Damage("half a page")
    if place.do("report").status:
        raise Damage("report fails")


@blow
def kill_compact(place: Place) -> None:
    """Kill `compact` at three moments; the copy is whole after the next."""
    place.fill()
    _killed(place, "compact")
    if place.do("compact").status:
        raise Damage("compact fails")
    _compacted(place)


def _compacted(place: Place) -> None:
    """Compare the compacted rows with those of the undisturbed store."""
    other = place.folder / "other"
    shutil.copytree(place.arena.whole, other)
    place.do("compact", store=other)
    for path in sorted((other / "compact").rglob("evaluate/*.parquet")):
        import pyarrow.parquet as pq

        copied = pq.read_table(place.store / path.relative_to(other), page_checksum_verification=True)
        if not copied.equals(pq.read_table(path)):
            raise Damage(f"{path.name} was compacted otherwise")


def _small_disk(place: Place) -> Callable[[int], None]:
    """Put the store on a file system of its own; returns how to leave that many KiB of it."""
    place.store.mkdir()

    def mount(*options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place.store)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    if mount("size=64m"):
        raise Skipped("only who may mount a small file system can fill it")
    place.cleanups.append(lambda: subprocess.run(["umount", "-l", str(place.store)], check=False))

    def leave(kib: int) -> None:
        used = shutil.disk_usage(place.store).used
        if mount(f"size={used // 1024 + kib}k", "remount"):
            raise Skipped("the file system cannot be made smaller")

    return leave


def _full(place: Place, *words: str, room: tuple[int, ...], mlflow: bool = False) -> None:
    """Do a command on a disk with so little room, each time with more, and at last with enough."""
    leave = _small_disk(place)
    shutil.copytree(place.arena.whole, place.store, dirs_exist_ok=True)
    for kib in room:
        leave(kib)
        place.do(*words, mlflow=mlflow)
    leave(50_000)
    if place.do(*words, mlflow=mlflow).status:
        raise Damage(f"{words[0]} fails although there is room again")


@blow
def full_run(place: Place) -> None:
    """Let the disk run full in the middle of a run."""
    leave = _small_disk(place)
    leave(place.luck.randrange(150, 300))
    place.do("run")
    place.do("run")
    leave(50_000)
    place.complete()


@blow
def full_report(place: Place) -> None:
    """Write a report into a full disk."""
    _full(place, "report", "--out", str(place.store / "report.html"), room=(4, 100))
    if not (place.store / "report.html").read_text().rstrip().endswith("</html>"):
        raise Damage("half a page")


@blow
def full_compact(place: Place) -> None:
    """Compact into a full disk."""
    _full(place, "compact", room=(4, 24))
    _compacted(place)


@blow
def kill_mlflow(place: Place) -> None:
    """Kill a run while it makes MLflow's database, three times."""
    place.fill()
    for turn in range(3):
        process = place.start("run", mlflow=True)
        place.wait(process, lambda: bool(list(place.store.glob("mlflow.db*")) + list(place.store.glob(".*mlflow*"))))
        time.sleep(place.luck.uniform(0, 1.5) * turn)
        kill_tree(process.pid)
        place.end(process, "run, killed")
    place.complete(mlflow=True)


@blow
def full_mlflow(place: Place) -> None:
    """Let the disk run full while MLflow's database is made."""
    _full(place, "run", room=(64, 400), mlflow=True)
    if place.seen[-1].line.startswith("warning"):
        raise Damage("MLflow's database stays broken although there is room again")


def rage(folder: str, seed: str) -> None:
    """Let a storm pass over a sweep in a folder."""
    sys.path.insert(0, str(ROOT / "tests" / "workflows"))
    from lab import Lab, calm, large
    from lab import storm as pass_over

    luck = random.Random(seed)
    expected = calm(Path(folder) / "calm", large(60))
    lab = Lab(Path(folder), "stormy", sweep=large(60))
    passed = pass_over(lab, iter(luck.choices(["worker", "stop", "raylet", "driver"], k=4)), 10, luck.randrange(1000))
    wrong = data(lab.store) != expected
    if wrong or passed.drivers[-1]:
        raise Damage(f"after {dict(passed.done)} the driver ended with {passed.drivers[-1]}; rows differ: {wrong}")


@blow
def storm(place: Place) -> None:
    """Three nodes; every 20 commits a worker is killed or stopped, a raylet killed, or the driver killed."""
    # In a process of its own: it computes, and commands are forks of this one, which must have no threads.
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); from chaos_blows import rage; rage(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(place.folder), str(place.luck.randrange(1000))],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Damage((done.stderr.strip().splitlines() or ["the storm ended without a word"])[-1])
    shutil.copytree(place.arena.whole, place.store)
