"""The contract of file operations that every implementation holds; see ``workflows/store/files.py``."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import stat
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from defense.errors import InvalidInput
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


def test_what_is_written_is_read_back_by_whoever_opens_the_root(reopen: Made, files: Files) -> None:
    data = bytes(range(256)) * 1000
    files.write("rows/evaluate/abc/0.parquet", data)
    assert files.read("rows/evaluate/abc/0.parquet") == data
    assert reopen().read("rows/evaluate/abc/0.parquet") == data
    assert reopen().exists("rows/evaluate/abc/0.parquet")


@pytest.mark.parametrize("reopen", ["local", "memory"], indirect=True)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(contents=st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_write_replaces_and_create_never_does(files: Files, contents: list[bytes]) -> None:
    write_and_create(files, contents)


@pytest.mark.parametrize("reopen", ["s3"], indirect=True)
@pytest.mark.parametrize("contents", [[b""], [b"a", b"", bytes(range(256))], [b"a", b"a"]])
def test_write_replaces_and_create_never_does_in_a_bucket(files: Files, contents: list[bytes]) -> None:
    write_and_create(files, contents)


def write_and_create(files: Files, contents: list[bytes]) -> None:
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


def test_an_empty_file_is_a_file(files: Files) -> None:
    assert files.create("a/empty", b"") is True
    assert files.exists("a/empty") and files.read("a/empty") == b""
    assert files.create("a/empty", b"x") is False and files.read("a/empty") == b""


@pytest.mark.parametrize("path", ["none", "no/such/folder/none"])
def test_what_is_not_there_does_not_exist_and_cannot_be_read(files: Files, path: str) -> None:
    files.write("other", b"")
    assert not files.exists(path)
    with pytest.raises(FileNotFoundError):
        files.read(path)


def test_names_are_the_files_of_one_folder_sorted_without_dot_files_and_folders(files: Files) -> None:
    for name in ("b.json", "a.json", "C.json", ".tmp-x1", ".hidden"):
        files.write(f"commits/evaluate/{name}", b"{}")
    files.write("commits/evaluate/deeper/d.json", b"{}")
    files.write("commits/top.json", b"{}")
    assert files.names("commits/evaluate") == ["C.json", "a.json", "b.json"]
    assert files.names("commits") == ["top.json"]
    assert files.names("commits/evaluate/deeper") == ["d.json"]


def test_a_missing_folder_has_no_names(files: Files) -> None:
    assert files.names("commits/none") == []
    files.write("rows/x", b"")
    assert files.names("commits/none") == []


def test_names_see_what_another_has_just_done(reopen: Made, files: Files) -> None:
    assert files.names("commits") == []
    other = reopen()
    other.create("commits/1.json", b"{}")
    assert files.names("commits") == ["1.json"]
    other.create("commits/2.json", b"{}")
    assert files.names("commits") == ["1.json", "2.json"]
    other.delete("commits/1.json")
    assert files.names("commits") == ["2.json"] and not files.exists("commits/1.json")


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


def test_delete_removes_once_and_then_does_nothing(files: Files) -> None:
    files.write("a/b", b"1")
    files.write("a/c", b"2")
    files.delete("a/b")
    files.delete("a/b")
    files.delete("no/such")
    assert not files.exists("a/b") and files.read("a/c") == b"2"
    assert files.create("a/b", b"3") is True and files.read("a/b") == b"3"


def test_a_folder_is_no_file(files: Files) -> None:
    files.write("a/b/c", b"1")
    assert not files.exists("a") and not files.exists("a/b")


def test_a_reader_beside_a_writer_sees_whole_contents_only(reopen: Made) -> None:
    contents = [bytes([value]) * 300_000 for value in (1, 2)]
    writer, reader = reopen(), reopen()
    writer.write("f", contents[0])
    done = threading.Event()

    def write() -> None:
        for turn in range(60):
            writer.write("f", contents[turn % 2])
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not done.is_set():
        seen.add(reader.read("f"))
    thread.join()
    assert seen <= set(contents)


def compete(create: Callable[[int], bool], writers: int) -> list[int]:
    """Let threads create one file in the same instant; returns who was told that it did."""
    barrier = threading.Barrier(writers)
    winners: list[int] = []

    def race(number: int) -> None:
        barrier.wait()
        if create(number):
            winners.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


def test_of_eight_threads_that_create_one_file_one_wins(reopen: Made) -> None:
    opened = [reopen() for _ in range(8)]
    for turn in range(25):
        path = f"race/{turn}"

        def create(number: int, path: str = path) -> bool:
            return opened[number].create(path, b"%d" % number)

        winners, content = compete(create, 8), int(opened[0].read(path))
        # In the memory file system look and write are two steps, so that rarely two are told that they won; then
        # one of those has the last word. Where the system can, as POSIX and S3 can, there is exactly one.
        assert content in winners
        assert len(winners) == 1 or opened[0].uri.startswith("memory://")
    assert len(opened[0].names("race")) == 25


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
    found = [results.get(timeout=60) for _ in range(80)]
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
