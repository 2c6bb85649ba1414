"""Stores keep the published contract in a folder, in memory and in a bucket, and each kind its own demands."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defense.errors import InvalidInput
from puregrid.testing import StoreContract
from workflows.store import Files, FsspecFiles, LocalFiles, open_files

Made = Callable[[], Files]
"""Opens the same root again, as another process or a later run does."""


@pytest.fixture(params=["local", "memory", "s3"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    if request.param == "local":
        return lambda: LocalFiles(tmp_path / "store")
    uri = request.getfixturevalue("s3").new_bucket() if request.param == "s3" else f"memory://{uuid.uuid4().hex}"
    return lambda: FsspecFiles(uri)


@pytest.fixture
def files(reopen: Made) -> Files:
    return reopen()


class Kept(StoreContract):
    def __init__(self, reopen: Made) -> None:
        self.open = reopen  # type: ignore[method-assign]
        self.one_wins = not self.open().uri.startswith("memory://")  # type: ignore[misc]

    def open(self) -> Files:
        raise AssertionError("given when it is made")


@pytest.mark.parametrize("demand", [name for name in dir(StoreContract) if name.startswith("test_")])
def test_stores_keep_the_contract(reopen: Made, demand: str) -> None:
    getattr(Kept(reopen), demand)()


@pytest.mark.parametrize("wrong", ["file", "folder", "pipe", "link"])
def test_writers_who_all_find_the_wrong_thing_move_it_once_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    files, writers = LocalFiles(tmp_path / "store"), 4
    place = files.root / ("rows" if wrong == "file" else "rows/0")
    place.parent.mkdir(parents=True)
    if wrong == "file":
        place.write_bytes(b"somebody's")
    elif wrong == "folder":
        place.mkdir()
        (place / "in it").write_bytes(b"somebody's")
    elif wrong == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(tmp_path / "nowhere")
    rename, seen, together = os.rename, threading.Barrier(writers), threading.local()

    def late(source: Any, target: Any) -> None:
        if "aside" in str(target) and not hasattr(together, "once"):
            together.once = True
            time.sleep(0.05 * seen.wait(20))  # all have seen the wrong thing; one moves it, the others come later
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    same = "rows/0" if wrong != "file" else None
    with ThreadPoolExecutor(writers) as threads:
        done = threads.map(lambda name: files.create(same or f"rows/{name}", b"row"), range(writers))
        assert sorted(done) == ([False] * (writers - 1) + [True] if same else [True] * writers)
    assert files.names("rows") == (["0"] if same else [str(name) for name in range(writers)])
    assert files.read("rows/0") == b"row"
    aside = [path for path in (files.root / "aside").rglob("*") if path.is_symlink() or not path.is_dir()]
    assert len(aside) == 1
    if wrong in ("file", "folder"):
        assert aside[0].read_bytes() == b"somebody's"


@pytest.mark.parametrize("reopen", ["local", "memory"], indirect=True)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(contents=st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_write_replaces_and_create_never_does(files: Files, contents: list[bytes]) -> None:
    path = f"folder/{uuid.uuid4().hex}"
    for content in contents:
        files.write(path, content)
        assert files.read(path) == content
        assert files.create(path, b"other") is False
        assert files.read(path) == content
    fresh = f"folder/{uuid.uuid4().hex}"
    assert files.create(fresh, contents[0]) is True
    for content in (b"second", contents[0], b""):
        assert files.create(fresh, content) is False
        assert files.read(fresh) == contents[0]


def test_names_do_not_believe_a_listing_that_the_file_system_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 and GCS file systems keep listings; what another worker committed since would be missing."""
    place = uuid.uuid4().hex
    files, other = FsspecFiles(f"memory://{place}"), FsspecFiles(f"memory://{place}")
    remembered: dict[str, list[Any]] = {}
    ls = files._system.ls

    def cached(path: str, **options: Any) -> list[Any]:
        return remembered.setdefault(path, ls(path, **options))

    monkeypatch.setattr(files._system, "ls", cached)
    monkeypatch.setattr(files._system, "invalidate_cache", lambda path=None: remembered.clear())
    other.create("commits/1.json", b"{}")
    assert files.names("commits") == ["1.json"]
    other.create("commits/2.json", b"{}")
    assert files.names("commits") == ["1.json", "2.json"]


def _create(root: str, barrier: Any, number: int, results: Any) -> None:
    files = LocalFiles(Path(root))
    for turn in range(20):
        barrier.wait()
        results.put((turn, number, files.create(f"race/{turn}", b"%d" % number * 1000)))


def test_of_four_processes_that_create_one_local_file_exactly_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_create, args=(str(tmp_path), barrier, n, results)) for n in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in range(80)]
    for process in processes:
        process.join()
    files = LocalFiles(tmp_path)
    for turn in range(20):
        winners = [number for at, number, won in found if at == turn and won]
        assert len(winners) == 1
        assert files.read(f"race/{turn}") == b"%d" % winners[0] * 1000
    # The losers have cleaned up after themselves.
    assert sorted(os.listdir(tmp_path / "race")) == sorted(map(str, range(20)))


def test_a_file_that_appears_between_the_look_and_the_local_create_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, other = LocalFiles(tmp_path), LocalFiles(tmp_path)
    temporary = LocalFiles._temporary

    def meanwhile(target: Path, data: bytes) -> str:
        monkeypatch.setattr(LocalFiles, "_temporary", staticmethod(temporary))
        assert other.create("f", b"first")
        return temporary(target, data)

    monkeypatch.setattr(LocalFiles, "_temporary", staticmethod(meanwhile))
    assert files.create("f", b"second") is False
    assert files.read("f") == b"first"
    assert os.listdir(tmp_path) == ["f"]


def test_a_bucket_with_exclusive_writes_decides_even_if_the_look_came_too_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = FsspecFiles(f"memory://{uuid.uuid4().hex}")
    assert files.create("f", b"first")
    monkeypatch.setattr(files, "exists", lambda path: False)
    assert files.create("f", b"second") is False
    assert files.read("f") == b"first"


@pytest.mark.parametrize("error", [TypeError, NotImplementedError])
def test_a_bucket_without_exclusive_writes_is_written_after_a_look(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    files = FsspecFiles(f"memory://{uuid.uuid4().hex}")
    pipe = files._system.pipe_file

    def plain(path: str, value: bytes, **options: Any) -> None:
        if options:
            raise error("mode")
        pipe(path, value)

    monkeypatch.setattr(files._system, "pipe_file", plain)
    assert files.create("f", b"first") is True
    assert files.create("f", b"second") is False
    assert files.read("f") == b"first"


def test_a_local_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LocalFiles(tmp_path)
    files.write("f", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for operation in (files.write, files.create):
        with pytest.raises(OSError, match="No space left"):
            operation("f" if operation == files.write else "g", b"new")
    monkeypatch.undo()
    assert files.read("f") == b"old" and files.names("") == ["f"] and not files.exists("g")


def test_local_data_is_synced_before_the_file_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "link")}

    def noted(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            steps.append("fsync folder" if folder else name)
            return real[name](*arguments)

        return call

    for name in real:
        monkeypatch.setattr(os, name, noted(name))
    files = LocalFiles(tmp_path)
    files.write("f", b"1")
    files.create("g", b"2")
    assert steps == ["fsync", "replace", "fsync folder", "fsync", "link", "fsync folder"]


def test_local_files_can_be_read_by_others(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    files.write("f", b"1")
    files.create("g", b"2")
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "fg"] == [0o644, 0o644]


def test_a_relative_folder_stays_the_same_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = open_files("results")
    monkeypatch.chdir("/")
    files.write("f", b"1")
    assert (tmp_path / "results" / "f").read_bytes() == b"1"
    assert files.uri == str(tmp_path / "results")


def test_a_folder_and_a_file_uri_open_the_same_files(tmp_path: Path) -> None:
    plain, uri = open_files(str(tmp_path)), open_files(f"file://{tmp_path}")
    assert isinstance(plain, LocalFiles) and isinstance(uri, LocalFiles)
    plain.write("f", b"1")
    assert uri.read("f") == b"1" and plain.uri == uri.uri


def test_a_uri_opens_again_by_the_uri_that_it_names() -> None:
    files = open_files(f"memory://{uuid.uuid4().hex}/deep/")
    files.write("f", b"1")
    assert isinstance(files, FsspecFiles) and open_files(files.uri).read("f") == b"1"


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(InvalidInput, match="is a file, not a folder"):
        open_files(str(tmp_path / "f"))


@pytest.mark.parametrize("uri", ["nosuch://bucket", "s3://bucket"])
def test_storage_that_is_not_installed_is_named_before_anything_runs(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if uri.startswith("s3"):
        monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
        monkeypatch.delitem(
            importlib.import_module("fsspec.registry")._registry, "s3", raising=False
        )  # remembered once it was used
    with pytest.raises(InvalidInput) as error:
        open_files(uri)
    assert uri in str(error.value) and "Install the fsspec package" in str(error.value)
