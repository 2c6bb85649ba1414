"""A disk that runs full, for real: what is said, what is left behind, and how it goes on."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_small import compute, small_sweep
from naps import SharedRay
from test_store import CHUNK, ID, SPEC, UNIT, output, record
from typer.testing import CliRunner

from defense.errors import StoreError
from workflows.cli import app
from workflows.engine.worker import Trouble, UnitWorker
from workflows.planning.plan import make_plan
from workflows.store import LocalFiles, Store, StoreUnavailable
from workflows.store.outage import PATIENCE, is_full, is_outage

Resize = Callable[[str], None]


def test_a_full_disk_is_reported_with_its_room_and_leaves_the_old_content_and_nothing_else(
    disk: tuple[Path, Resize], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("a full disk does not pass by itself"))
    files = LocalFiles(disk[0] / "store")
    files.write("a/f", b"old")
    large = os.urandom(200_000)
    for operation, path in ((files.write, "a/f"), (files.create, "a/g")):
        with pytest.raises(StoreUnavailable, match=r"is full \(.* a/.*No space left.*0\.1 MiB of 0\.1 MiB are free"):
            operation(path, large)  # type: ignore[operator]
        assert os.listdir(disk[0] / "store" / "a") == ["f"], "half a file was left on a full disk"
        assert files.read("a/f") == b"old"
    disk[1]("1m")
    files.write("a/f", large)
    assert files.create("a/g", large) and files.read("a/f") == files.read("a/g") == large


def test_a_unit_that_does_not_fit_is_not_committed_and_is_when_there_is_room(disk: tuple[Path, Resize]) -> None:
    store = Store(str(disk[0] / "store"))
    filler = disk[0] / "filler"
    filler.write_bytes(b"x" * (os.statvfs(disk[0]).f_bavail * os.statvfs(disk[0]).f_frsize - 8192))  # rows fit
    with pytest.raises(StoreUnavailable, match="is full"):
        store.commit(SPEC, ID, CHUNK, output(), record())
    assert store.committed(*UNIT) is None
    filler.unlink()
    assert store.commit(SPEC, ID, CHUNK, output(), record("second")).attempt == "second"
    assert store.problem(*UNIT) is None
    found = [path for path in (disk[0] / "store").rglob("*") if path.is_file()]
    assert len(found) == 3 and not [path for path in found if path.name.startswith(".")]


def test_a_kernel_that_says_no_space_is_understood_without_a_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = LocalFiles(tmp_path)
    files.write("f", b"old")

    def full(prefix: str, dir: Path) -> tuple[int, str]:
        name = dir / f"{prefix}x"
        name.symlink_to("/dev/full")
        return os.open(name, os.O_WRONLY), str(name)

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(StoreUnavailable, match=f"store {tmp_path} is full .*MiB are free. Make room"):
        files.write("f", b"new")
    assert files.read("f") == b"old" and os.listdir(tmp_path) == ["f"]


def test_a_worker_whose_disk_is_full_begins_no_other_batch(disk: tuple[Path, Resize], tmp_path: Path) -> None:
    # Its run stops then and ends the process, which would leave half a file of what it had begun.
    worker, plan = UnitWorker(str(disk[0] / "store"), "cpu"), make_plan(small_sweep(tmp_path))
    stage = next(stage for stage in plan.stages if not stage.inputs)
    filler = disk[0] / "filler"
    filler.write_bytes(b"x" * os.statvfs(disk[0]).f_bavail * os.statvfs(disk[0]).f_frsize)
    (trouble,) = worker.run_batch(stage.spec, stage.id, stage.chunks[:1], {}, 0)
    assert isinstance(trouble, Trouble) and trouble.unavailable and "is full" in trouble.error
    filler.unlink()
    assert worker.run_batch(stage.spec, stage.id, stage.chunks[1:2], {}, 0) == []
    assert not [path for path in (disk[0] / "store").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_run_on_a_disk_that_fills_stops_and_continues_when_there_is_room(
    disk: tuple[Path, Resize], two_slots: SharedRay, tmp_path: Path
) -> None:
    sweep = small_sweep(tmp_path)
    compute(sweep, str(tmp_path / "expected"))

    store = disk[0] / "store"
    command = ["run", str(tmp_path / "small.yaml"), "--store", str(store), "--workers", "1", "--mlflow", "off"]
    done = CliRunner().invoke(app, [*command, "--address", two_slots.address])
    assert done.exit_code == 1, done.output
    assert f"store {store} is full" in done.stderr and "MiB are free" in done.stderr
    assert "Traceback" not in done.stderr
    committed = hashes(store, "commits")
    assert 0 < len(committed) < 15
    assert not list(store.rglob(".tmp-*")) and not list(store.rglob("failures/*"))
    disk[1]("16m")
    compute(sweep, str(store))
    for kind in ("rows", "adversarial"):
        assert hashes(store, kind) == hashes(tmp_path / "expected", kind)
    assert hashes(store, "commits").items() >= committed.items()
    assert len(hashes(store, "commits")) == 15


def hashes(store: Path, kind: str) -> dict[str, str]:
    files = (path for path in (store / kind).rglob("*") if path.is_file())
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def failing(monkeypatch: pytest.MonkeyPatch, *errors: BaseException) -> list[BaseException]:
    """Let the next reads of any file fail so; returns the errors that are still to come."""
    left = list(errors)
    real = os.open

    def opened(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if left and not flags & (os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY):
            raise left.pop(0)
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr("os.open", opened)
    return left


@pytest.mark.parametrize(
    "error",
    [OSError(116, "Stale file handle"), OSError(5, "Input/output error"), ConnectionResetError(), TimeoutError()],
)
def test_a_shared_folder_that_comes_back_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    files = LocalFiles(tmp_path)
    files.write("f", b"1")
    assert is_outage(error) and not is_full(error)
    left = failing(monkeypatch, *[error] * 6)
    assert files.read("f") == b"1" and not left
    assert waits == [0.5, 1, 2, 4, 8, 8]


def test_after_a_minute_it_is_an_error_and_the_wait_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr("time.sleep", sleep)
    files = LocalFiles(tmp_path)
    for patience in (60.0, 7.0):
        if patience != 60:
            monkeypatch.setenv(PATIENCE, str(patience))
        began = now
        left = failing(monkeypatch, *[OSError(116, "Stale file handle")] * 99)
        with pytest.raises(StoreUnavailable, match=rf"{tmp_path} did not answer for {patience:.0f} s \(read f: "):
            files.read("f")
        assert now - began == patience and left


@pytest.mark.parametrize("error", [FileNotFoundError("f"), ValueError("a mistake"), StoreError("ours")])
def test_answers_and_mistakes_pass_through_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited"))
    failing(monkeypatch, error)
    with pytest.raises(type(error)) as found:
        LocalFiles(tmp_path).read("f")
    assert found.value is error


def test_a_folder_that_may_not_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", denied)
    with pytest.raises(StoreUnavailable, match=r"refuses \(write f: PermissionError.*Check its rights"):
        LocalFiles(tmp_path).write("f", b"1")


def test_a_file_system_without_hard_links_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(source: str, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", denied)
    with pytest.raises(StoreUnavailable, match="without hard links"):
        LocalFiles(tmp_path).create("f", b"1")
    assert os.listdir(tmp_path) == []


def test_the_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(StoreUnavailable("store x is full")))
    assert isinstance(error, StoreUnavailable) and isinstance(error, (StoreError, OSError))
    assert str(error) == "store x is full"
