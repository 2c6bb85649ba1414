"""The contract of stores: the file operations under them, and the commit protocol on top.

Readers believe commits only, and a commit is a file that is created once, after its data. So all rests on few
operations: a write that is whole or not there, a creation that one of several wins, a listing that is up to date.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import pyarrow as pa

from defense.errors import StoreError
from tasks.compute import Context
from tasks.stages import Chunk, Output, StageSpec
from workflows.store import Attempt, Commit, Files, Store

__all__ = ["StoreContract"]


class _Stage(StageSpec):
    """A stage that stands for any; nothing is computed here."""

    stage: Literal["evaluate"] = "evaluate"
    version: Literal[1] = 1

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        raise AssertionError("a store computes nothing")


_SPEC = _Stage()
_CHUNK = Chunk((3, 5, 8))
_UNIT = ("evaluate", _SPEC.id, _CHUNK.name)


def _rows(shift: float = 0.0) -> pa.Table:
    return pa.table({"image_id": pa.array(_CHUNK.ids, pa.int32()), "loss": pa.array([0.1 + shift, 1.0, 2.5])})


def _commit(store: Store, attempt: str, shift: float = 0.0) -> Commit:
    return store.commit(_SPEC, _SPEC.id, _CHUNK, Output(_rows(shift)), Attempt(attempt, 1.0, "host"))


class StoreContract(ABC):
    """The suite. Every method whose name starts with ``test_`` is one demand.

    Attributes:
        one_wins: Whether ``exclusive`` holds in the same instant too. It does not in a file system in memory, whose
            look and write are two steps.
    """

    one_wins: ClassVar[bool] = True

    @abstractmethod
    def open(self) -> Files:
        """Open one root, again with every call, as other processes and later runs do.

        It is empty at first: an instance of the suite has a root of its own.
        """

    def store(self) -> Store:
        """Return a store on the root, opened again."""
        files = self.open()
        store = Store(files.uri)
        store.files = files
        return store

    def test_what_is_written_is_read_back_by_whoever_opens_the_root(self) -> None:
        """Any bytes, at any depth of folders."""
        data = bytes(range(256)) * 1000
        self.open().write("rows/evaluate/abc/0.parquet", data)
        again = self.open()
        assert again.exists("rows/evaluate/abc/0.parquet"), "a file that was written is not there when opened again"
        assert again.read("rows/evaluate/abc/0.parquet") == data, "other bytes are read than were written"

    def test_write_replaces(self) -> None:
        """A write replaces a file by longer, shorter or empty content."""
        files = self.open()
        for content in (b"some", b"a longer one", b"", b"x"):
            files.write("folder/file", content)
            stored = files.read("folder/file")
            assert stored == content, f"after writing {content!r} the file holds {stored!r}"

    def test_create_writes_once(self) -> None:
        """And says whether it did; an empty file is a file."""
        for path, first in (("folder/file", b"first"), ("folder/empty", b"")):
            files = self.open()
            assert files.create(path, first) is True, "create() of a new file did not say that it wrote"
            for content in (b"second", first, b""):
                assert self.open().create(path, content) is False, "create() says that it wrote where a file was"
                assert files.read(path) == first, "create() replaced a file"

    def test_what_is_not_there_cannot_be_read(self) -> None:
        """And a folder is no file."""
        files = self.open()
        files.write("a/b/c", b"1")
        for path in ("none", "no/such/folder/none", "a", "a/b"):
            assert not files.exists(path), f"{path} is no file, but exists() says that it is"
        for path in ("none", "no/such/folder/none"):
            try:
                files.read(path)
            except FileNotFoundError:
                continue
            raise AssertionError(f"read({path!r}) did not raise FileNotFoundError")

    def test_names_are_the_files_of_one_folder_sorted(self) -> None:
        """Without folders, files in them, and temporary files, whose names begin with a dot."""
        files = self.open()
        for name in ("b.json", "a.json", "C.json", ".tmp-x1", "deeper/d.json"):
            files.write(f"commits/evaluate/{name}", b"{}")
        files.write("commits/top.json", b"{}")
        expected = {"commits/evaluate": ["C.json", "a.json", "b.json"], "commits": ["top.json"], "none": []}
        for folder, names in expected.items():
            listed = files.names(folder)
            assert listed == names, f"names({folder!r}) is {listed}, not {names}"

    def test_names_see_what_another_has_just_done(self) -> None:
        """No listing is remembered: what another worker has committed would be computed twice."""
        files, other = self.open(), self.open()
        files.names("commits")
        for number in (1, 2):
            other.create(f"commits/{number}.json", b"{}")
            listed = files.names("commits")
            assert len(listed) == number, f"another created {number} files, names() shows {listed}"
        other.delete("commits/1.json")
        listed = files.names("commits")
        assert listed == ["2.json"], f"another deleted 1.json, names() shows {listed}"

    def test_delete_removes_one_file_and_then_does_nothing(self) -> None:
        """After it the file can be created again."""
        files = self.open()
        files.write("a/b", b"1")
        files.write("a/c", b"2")
        for path in ("a/b", "a/b", "no/such"):
            files.delete(path)
        assert not files.exists("a/b"), "a deleted file is still there"
        assert files.exists("a/c"), "another file was deleted too"
        assert files.create("a/b", b"3"), "a deleted file could not be created again"

    def test_set_aside_keeps_what_it_moves(self) -> None:
        """A damaged file makes room for another one, and is not lost."""
        files = self.open()
        files.write("a/b", b"damaged")
        place = files.set_aside("a/b")
        assert place is not None and files.read(place) == b"damaged", "what was set aside is not where it should be"
        assert not files.exists("a/b"), "a file that was set aside is still there"
        assert files.create("a/b", b"good"), "a file that was set aside could not be created again"
        assert files.set_aside("no/such") is None, "set_aside() moved a file that is not there"
        again = files.set_aside("a/b")
        assert again != place and files.read(place) == b"damaged", "a second file was set aside over the first"

    def test_reader_beside_a_writer_sees_whole_contents_only(self) -> None:
        """Old or new, never a part of either."""
        contents = [bytes([value]) * 300_000 for value in (1, 2)]
        writer, reader = self.open(), self.open()
        writer.write("file", contents[0])
        done = threading.Event()

        def write() -> None:
            try:
                for turn in range(60):
                    writer.write("file", contents[turn % 2])
            finally:
                done.set()

        thread = threading.Thread(target=write)
        thread.start()
        seen = set()
        while not done.is_set():
            try:
                seen.add(reader.read("file"))
            except FileNotFoundError:
                seen.add(b"no file")
        thread.join()
        torn = seen - set(contents)
        assert not torn, f"beside a writer {len(torn)} contents were read that nobody had written"

    def test_one_of_eight_that_create_one_file_wins(self) -> None:
        """Exactly one if the store is ``exclusive``, else at least one; the content is that of a winner."""
        opened = [self.open() for _ in range(8)]
        exclusive = opened[0].exclusive and self.one_wins
        for turn in range(25):
            path = f"race/{turn}"

            def create(number: int, path: str = path) -> bool:
                return opened[number].create(path, b"%d" % number)

            winners, content = _race(create, len(opened)), int(opened[0].read(path))
            assert content in winners, f"the file holds the bytes of writer {content}; winners were {winners}"
            assert len(winners) == 1 or not exclusive, f"exclusive is true, but writers {winners} were told they won"

    def test_uri_opens_the_same_root(self) -> None:
        """Workers are handed the URI."""
        files = self.open()
        _commit(self.store(), "first")
        assert Store(files.uri).committed(*_UNIT) is not None, f"uri {files.uri!r} opens another root"

    def test_committed_unit_is_read_back_and_a_second_attempt_gets_its_record(self) -> None:
        """What is committed stays: the second attempt, with other data, changes nothing."""
        first = _commit(self.store(), "first")
        second = _commit(self.store(), "second", shift=0.5)
        assert second == first, f"the second attempt was given the record of {second.attempt!r}"
        reader = self.store()
        assert reader.problem(*_UNIT) is None, reader.problem(*_UNIT)
        assert reader.read_rows(*_UNIT).replace_schema_metadata(None).equals(_rows()), "other rows are read back"

    def test_readers_believe_commits_only(self) -> None:
        """A file that lies where rows would lie is no row, whole or torn, and the commit takes its place."""
        store = self.store()
        path = store.rows_path(*_UNIT)
        store.files.write(path, b"PAR1 torn")
        assert store.committed(*_UNIT) is None and not store.committed_chunks("evaluate", _SPEC.id), (
            "data without a commit counts as a unit"
        )
        _commit(self.store(), "first")
        rows = self.store().read_rows(*_UNIT)
        assert rows.replace_schema_metadata(None).equals(_rows()), "a stray file was read for the committed rows"

    def test_damaged_data_is_reported_and_never_read(self) -> None:
        """Whatever happens to a file after its commit."""
        commit = _commit(self.store(), "first")
        (path,) = commit.sha256
        files = self.open()
        files.write(path, files.read(path)[:-5] + b"12345")
        store = self.store()
        assert store.problem(*_UNIT) is not None, "rows that are not the committed ones are no problem"
        try:
            store.read_rows(*_UNIT)
        except StoreError:
            return
        raise AssertionError("rows that are not the committed ones were read")

    def test_two_writers_of_one_unit_leave_one_unit(self) -> None:
        """At the same time, with other data each: one record, and the data that it names."""
        stores = [self.store() for _ in range(4)]
        exclusive = stores[0].files.exclusive and self.one_wins
        returned: dict[int, Commit] = {}

        def write(number: int) -> bool:
            returned[number] = _commit(stores[number], str(number), shift=0.1 * number)
            return returned[number].attempt == str(number)

        winners = _race(write, len(stores))
        reader = self.store()
        commit = reader.committed(*_UNIT)
        assert commit is not None and int(commit.attempt) in winners, f"of the writers {winners} none is committed"
        assert len(winners) == 1 or not exclusive, f"exclusive is true, but writers {winners} were told they won"
        assert reader.problem(*_UNIT) is None, reader.problem(*_UNIT)
        rows = reader.read_rows(*_UNIT).replace_schema_metadata(None)
        assert rows.equals(_rows(0.1 * int(commit.attempt))), "the rows are not those of the writer that committed"


def _race(attempt: Callable[[int], bool], writers: int) -> list[int]:
    """Let threads attempt something in the same instant; returns those that succeeded."""
    barrier = threading.Barrier(writers)
    winners: list[int] = []

    def run(number: int) -> None:
        barrier.wait()
        if attempt(number):
            winners.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(winners)
