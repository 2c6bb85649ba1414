"""The commit protocol: what is committed is read, byte for byte, and nothing else is a row."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from defense.errors import StoreError
from defense.spec import CODE
from tasks.compute import Context
from tasks.stages import Chunk, Output, StageSpec, images_from_table, images_to_table
from workflows.store import Attempt, Commit, DamagedCommit, Files, Store
from workflows.store.store import SCHEMA_VERSION


class Judged(StageSpec):
    """A stage that stands for any; nothing is computed here."""

    stage: Literal["evaluate"] = "evaluate"
    version: Literal[1] = 1
    number: int = 0

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        raise AssertionError("the store computes nothing")


SPEC = Judged(number=7)
FIELDS = {"stage": "evaluate", "version": 1, "number": 7}  # and the code of this very file
ID = SPEC.id
CHUNK = Chunk((3, 5, 8))
UNIT = ("evaluate", ID, CHUNK.name)
ROWS_PATH = f"rows/evaluate/{ID}/{CHUNK.name}.parquet"
IMAGES_PATH = f"adversarial/{ID}/{CHUNK.name}.parquet"
COMMIT_PATH = f"commits/evaluate/{ID}/{CHUNK.name}.json"


def output(shift: float = 0.0, *, images: bool = True) -> Output:
    rows = pa.table(
        {
            "image_id": pa.array(CHUNK.ids, pa.int32()),
            "prediction": pa.array([[1, 2], [3, 3], [0, 9]], pa.list_(pa.int16())),
            "loss": pa.array([0.1 + shift, 1e-30, 2.5], pa.float32()),
            "t_star": pa.array([None, None, None], pa.int32()),
        }
    )
    pixels = torch.linspace(0, 1, 12).view(3, 1, 2, 2) * (1 - shift)
    return Output(rows, images_to_table(CHUNK.ids, pixels) if images else None)


def record(attempt: str = "first", seconds: float = 1.25, **update: Any) -> Attempt:
    return Attempt(attempt, seconds, f"host-of-{attempt}", **{"versions": {"torch": "9.9"}, **update})


@pytest.fixture(params=["local", "memory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3").new_bucket())
    return str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def store(uri: str) -> Store:
    return Store(uri)


def committed(store: Store, **update: Any) -> Commit:
    return store.commit(SPEC, ID, CHUNK, output(), record(**update))


def test_a_committed_unit_is_read_back_by_whoever_opens_the_store(store: Store, uri: str) -> None:
    committed(store)
    for reader in (store, Store(uri)):
        rows = reader.read_rows(*UNIT)
        assert rows.replace_schema_metadata(None).equals(output().rows)
        images = reader.read_images(*UNIT)
        expected = output().images
        assert expected is not None
        assert images_from_table(images, CHUNK.ids).tobytes() == images_from_table(expected, CHUNK.ids).tobytes()
        assert reader.committed_chunks("evaluate", ID) == {CHUNK.name}
        assert reader.problem(*UNIT) is None


def test_a_unit_lies_where_the_layout_says(store: Store) -> None:
    committed(store)
    files = store.files
    assert all(files.exists(path) for path in (ROWS_PATH, IMAGES_PATH, COMMIT_PATH))
    assert store.rows_path(*UNIT) == ROWS_PATH and store.commit_path(*UNIT) == COMMIT_PATH
    assert store.images_path(ID, CHUNK.name) == IMAGES_PATH


def test_a_unit_without_images_has_no_image_file(store: Store) -> None:
    store.commit(SPEC, ID, CHUNK, output(images=False), record())
    assert not store.files.exists(IMAGES_PATH) and store.problem(*UNIT) is None
    with pytest.raises(StoreError):
        store.read_images(*UNIT)


def test_the_commit_says_rows_hashes_attempt_time_host_versions_and_notes(store: Store) -> None:
    made = output()
    made.notes["memory_retries"] = 2
    found = store.commit(SPEC, ID, CHUNK, made, record())
    hashes = {path: hashlib.sha256(store.files.read(path)).hexdigest() for path in (ROWS_PATH, IMAGES_PATH)}
    expected = Commit(
        stage="evaluate",
        stage_id=ID,
        chunk=CHUNK.name,
        rows=3,
        sha256=hashes,
        attempt="first",
        seconds=1.25,
        host="host-of-first",
        versions={"torch": "9.9"},
        notes={"memory_retries": 2},
    )
    assert found == expected == store.committed(*UNIT)
    assert json.loads(store.files.read(COMMIT_PATH)) == {
        "stage": "evaluate",
        "stage_id": ID,
        "chunk": CHUNK.name,
        "rows": 3,
        "sha256": hashes,
        "attempt": "first",
        "seconds": 1.25,
        "ended": 0.0,
        "host": "host-of-first",
        "versions": {"torch": "9.9"},
        "inputs": {},
        "notes": {"memory_retries": 2},
        "schema_version": 1,
        "checksum": found.checked()["checksum"],
    }


def test_a_commit_says_which_measures_are_missing_and_those_of_older_versions_are_read(store: Store) -> None:
    made = replace(output(), missing={"lpips": "no weights"})
    assert store.commit(SPEC, ID, CHUNK, made, record()).missing == {"lpips": "no weights"}
    written = json.loads(store.files.read(COMMIT_PATH))
    assert (written["notes"], written["missing"]) == ({}, {"lpips": "no weights"})

    older = {**written, "stage": "quality", "notes": {"loading_seconds": 0.5, "no lpips": "no weights"}}
    del older["missing"], older["inputs"], older["schema_version"], older["checksum"]
    read = Commit.from_json(older)
    assert read.inputs == {} and not read.newer
    assert (read.notes, read.missing) == ({"loading_seconds": 0.5}, {"lpips": "no weights"})


def test_a_commit_of_a_newer_version_is_read_and_one_without_its_hashes_is_damaged(store: Store) -> None:
    made = committed(store)
    written = json.loads(store.files.read(COMMIT_PATH))
    store.files.write(COMMIT_PATH, json.dumps({**written, "energy_joules": 12.5}).encode())
    assert store.committed(*UNIT) == made
    del written["sha256"]
    store.files.write(COMMIT_PATH, json.dumps(written).encode())
    with pytest.raises(StoreError, match=r"is damaged \(sha256: field required\)\. Run the sweep again"):
        store.committed(*UNIT)


def test_data_is_written_before_the_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def noted(real: Any) -> Any:
        def call(path: str, data: bytes) -> Any:
            steps.append(path)
            return real(path, data)

        return call

    monkeypatch.setattr(store.files, "write", noted(store.files.write))
    monkeypatch.setattr(store.files, "create", noted(store.files.create))
    committed(store)
    assert steps == [ROWS_PATH, IMAGES_PATH, COMMIT_PATH]


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_a_writer_that_dies_before_its_commit_leaves_no_unit_and_the_next_one_succeeds(
    store: Store, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    operations = 0

    def dying(real: Any) -> Any:
        def call(path: str, data: bytes) -> Any:
            nonlocal operations
            if operations == survived:
                raise KeyboardInterrupt
            operations += 1
            return real(path, data)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(store.files, "write", dying(store.files.write))
        patch.setattr(store.files, "create", dying(store.files.create))
        with pytest.raises(KeyboardInterrupt):
            committed(store)
    assert store.files.exists(ROWS_PATH) is (survived > 0) and store.files.exists(IMAGES_PATH) is (survived > 1)
    assert store.committed(*UNIT) is None and store.committed_chunks("evaluate", ID) == set()
    assert store.problem(*UNIT) == "it is not committed"
    for read in (store.read_rows, store.read_images):
        with pytest.raises(StoreError, match="is not committed"):
            read(*UNIT)
    assert committed(store, attempt="second").attempt == "second"
    assert store.problem(*UNIT) is None and store.read_rows(*UNIT).num_rows == 3


@pytest.mark.parametrize("uri", ["local", "memory"], indirect=True)  # what is in a file is no matter of where it is
@pytest.mark.parametrize("stray", [b"", b"PAR1 torn", b"a whole file"])
def test_a_stray_file_is_no_row_and_is_replaced_by_the_commit(store: Store, stray: bytes) -> None:
    if stray == b"a whole file":  # of another unit, valid in itself
        sink = pa.BufferOutputStream()
        pq.write_table(output(shift=0.5).rows, sink)
        stray = sink.getvalue().to_pybytes()
    store.files.write(ROWS_PATH, stray)
    store.files.write(f"rows/evaluate/{ID}/{CHUNK.name}.parquet.tmp", stray)
    assert store.committed_chunks("evaluate", ID) == set()
    with pytest.raises(StoreError, match="is not committed"):
        store.read_rows(*UNIT)
    committed(store)
    assert store.read_rows(*UNIT).replace_schema_metadata(None).equals(output().rows)
    assert store.committed_chunks("evaluate", ID) == {CHUNK.name}


def damage(files: Files, path: str, how: str) -> None:
    content = files.read(path)
    if how == "missing":
        files.delete(path)
    elif how == "truncated":
        files.write(path, content[: len(content) // 2])
    elif how == "one bit":
        middle = len(content) // 2
        files.write(path, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("uri", ["local", "memory"], indirect=True)  # what is in a file is no matter of where it is
@pytest.mark.parametrize("how", ["missing", "truncated", "one bit"])
@pytest.mark.parametrize("path", [ROWS_PATH, IMAGES_PATH])
def test_damaged_data_is_reported_never_read_and_computed_again_after_revoking(
    store: Store, path: str, how: str
) -> None:
    committed(store)
    good = {name: store.files.read(name) for name in (ROWS_PATH, IMAGES_PATH)}
    damage(store.files, path, how)
    problem = store.problem(*UNIT)
    assert problem is not None and path in problem
    assert ("is missing" if how == "missing" else "its commit says") in problem
    read, other = (store.read_rows, store.read_images) if path == ROWS_PATH else (store.read_images, store.read_rows)
    with pytest.raises(StoreError, match="run the sweep again") as error:
        read(*UNIT)
    assert path in str(error.value)
    assert other(*UNIT).num_rows == 3  # what is not damaged is still there
    assert store.committed(*UNIT) is not None
    # As long as the commit stands nothing is computed again.
    assert committed(store, attempt="second").attempt == "first"
    store.revoke(*UNIT)
    assert store.committed(*UNIT) is None and store.committed_chunks("evaluate", ID) == set()
    assert committed(store, attempt="third").attempt == "third"
    assert store.problem(*UNIT) is None
    assert {name: store.files.read(name) for name in good} == good


def test_revoking_what_is_not_committed_does_nothing(store: Store) -> None:
    store.revoke(*UNIT)
    assert store.committed(*UNIT) is None


def test_the_second_attempt_gets_the_firsts_record_and_writes_nothing(store: Store) -> None:
    first = committed(store)
    before = {path: store.files.read(path) for path in (ROWS_PATH, IMAGES_PATH, COMMIT_PATH)}
    second = store.commit(SPEC, ID, CHUNK, output(shift=0.25), record("second", seconds=99.0))
    assert second == first and second.attempt == "first"
    assert {path: store.files.read(path) for path in before} == before


def slow_second_attempt(store: Store, made: Output) -> Commit:
    """An attempt that looked before the first one committed and writes after it did."""
    real, looks = store.committed, 0

    def early(*unit: str) -> Commit | None:
        nonlocal looks
        looks += 1
        return None if looks == 1 else real(*unit)

    store.committed = early  # type: ignore[assignment, method-assign]
    return store.commit(SPEC, ID, CHUNK, made, record("second"))


def test_of_two_attempts_at_once_both_return_the_winners_record_and_the_data_holds(store: Store, uri: str) -> None:
    first = committed(store)
    before = {path: store.files.read(path) for path in (ROWS_PATH, IMAGES_PATH, COMMIT_PATH)}
    assert slow_second_attempt(Store(uri), output()) == first
    assert {path: store.files.read(path) for path in before} == before
    assert store.problem(*UNIT) is None


def data_files(store: Store) -> list[str]:
    folders = (f"rows/evaluate/{ID}", f"adversarial/{ID}")
    return [f"{folder}/{name}" for folder in folders for name in store.files.names(folder)]


def test_of_two_attempts_that_disagree_the_winners_data_stays_and_the_losers_is_gone(store: Store, uri: str) -> None:
    first = committed(store)
    assert slow_second_attempt(Store(uri), output(shift=0.25)) == first
    assert store.problem(*UNIT) is None
    assert store.read_rows(*UNIT).replace_schema_metadata(None).equals(output().rows)
    assert data_files(store) == [ROWS_PATH, IMAGES_PATH]
    hashes = {path: hashlib.sha256(store.files.read(path)).hexdigest() for path in data_files(store)}
    assert first.sha256 == hashes


def test_the_attempt_that_wrote_first_may_lose_and_the_winners_data_lies_beside(
    store: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow attempt has written its data, another with other bytes overtakes it, then the slow one commits."""
    slow = Store(uri)
    real = slow.files.create
    winners: list[Commit] = []

    def overtaken(path: str, data: bytes) -> bool:
        if path == COMMIT_PATH:
            winners.append(store.commit(SPEC, ID, CHUNK, output(shift=0.25), record("fast")))
        return real(path, data)

    monkeypatch.setattr(slow.files, "create", overtaken)
    found = slow.commit(SPEC, ID, CHUNK, output(), record("slow"))
    assert found == winners[0] == store.committed(*UNIT) and found.attempt == "fast"
    assert store.problem(*UNIT) is None
    assert store.read_rows(*UNIT).replace_schema_metadata(None).equals(output(shift=0.25).rows)
    assert store.read_images(*UNIT).num_rows == 3
    assert sorted(data_files(store)) == sorted(found.sha256)  # and nothing else
    for path, digest in found.sha256.items():
        assert path.endswith(f"{CHUNK.name}.{digest[:12]}.parquet")
    assert store.row_files("evaluate", ID) == [f"{store.uri}/{path}" for path in found.sha256 if "rows/" in path]
    # What read these rows is told apart from what read others, wherever they lie.
    chunk, other = Chunk((1,)), Judged(number=9)
    rows_now = {path: digest for path, digest in found.sha256.items() if path.startswith("rows/")}
    for inputs, stale in ((rows_now, False), ({ROWS_PATH: "0" * 64}, True)):
        store.commit(other, other.id, chunk, Output(output().rows), record(inputs=inputs))
        problem = store.problem("evaluate", other.id, chunk.name)
        assert (problem is not None) is stale
        store.revoke("evaluate", other.id, chunk.name)
    # Damage there is found too, and the next attempt takes the place that the layout says.
    damage(store.files, data_files(store)[0], "one bit")
    assert store.problem(*UNIT) is not None
    store.revoke(*UNIT)
    assert data_files(store) == []
    committed(store)
    assert data_files(store) == [ROWS_PATH, IMAGES_PATH] and store.problem(*UNIT) is None


def test_a_writer_whose_answer_got_lost_gets_its_own_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server wrote, the connection broke, the client asked again and was told that the file is there."""
    real = store.files.create

    def lost(path: str, data: bytes) -> bool:
        assert real(path, data)
        return real(path, data)

    monkeypatch.setattr(store.files, "create", lost)
    found = committed(store)
    assert found == store.committed(*UNIT) and found.attempt == "first"
    assert data_files(store) == [ROWS_PATH, IMAGES_PATH] and store.problem(*UNIT) is None


def test_without_exclusive_writes_data_has_its_hash_in_its_name_so_that_no_one_overwrites_it(
    store: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in {type(store.files)}:
        monkeypatch.setattr(kind, "exclusive", False)
    # Both look at the same time and both are told that they won: the last commit counts, and its data is there.
    first = committed(store)
    late = Store(uri)
    monkeypatch.setattr(late.files, "create", lambda path, data: late.files.write(path, data) or True)
    last = slow_second_attempt(late, output(shift=0.25))
    assert last.attempt == "second" and store.committed(*UNIT) == last != first
    assert store.problem(*UNIT) is None
    assert store.read_rows(*UNIT).replace_schema_metadata(None).equals(output(shift=0.25).rows)
    assert all(store.files.exists(path) for path in first.sha256)  # the commit that was replaced named data too
    assert store.row_files("evaluate", ID) == [f"{store.uri}/{path}" for path in last.sha256 if "rows/" in path]


def test_row_files_are_those_of_commits(store: Store) -> None:
    other = Chunk((9,))
    assert store.row_files("evaluate", ID) == []
    committed(store)
    store.commit(SPEC, ID, other, Output(output().rows.slice(0, 1)), record())
    store.files.write(f"rows/evaluate/{ID}/0000099-stray.parquet", b"PAR1")
    store.files.write(f"rows/evaluate/{ID}/{CHUNK.name}.0123456789ab.parquet", b"PAR1")
    names = sorted((CHUNK.name, other.name))
    assert store.row_files("evaluate", ID) == [f"{store.uri}/rows/evaluate/{ID}/{name}.parquet" for name in names]
    store.revoke("evaluate", ID, other.name)
    assert store.row_files("evaluate", ID) == [f"{store.uri}/{ROWS_PATH}"]


def test_data_of_two_runs_is_equal_byte_for_byte_and_holds_no_time_or_host(uri: str) -> None:
    stores = [Store(f"{uri}-{name}") for name in ("one", "two")]
    stores[0].commit(SPEC, ID, CHUNK, output(), record("attempt-aaaa", seconds=123.456))
    versions = {"torch": "8.8", "python": "4"}
    stores[1].commit(SPEC, ID, CHUNK, output(), record("attempt-bbbb", seconds=654.321, versions=versions))
    for path in (ROWS_PATH, IMAGES_PATH):
        one, two = (store.files.read(path) for store in stores)
        assert one == two
        assert all(word not in one for word in (b"attempt-aaaa", b"host-of", b"123.456", b"9.9", uri.encode()))
    one, two = (store.files.read(COMMIT_PATH) for store in stores)
    assert one != two and b"123.456" in one


def test_every_parquet_file_says_schema_version_stage_chunk_and_spec(store: Store) -> None:
    committed(store)
    for path in (ROWS_PATH, IMAGES_PATH):
        metadata = pq.read_schema(pa.BufferReader(store.files.read(path))).metadata
        assert metadata[b"puregrid.schema_version"] == str(SCHEMA_VERSION).encode() == b"1"
        assert metadata[b"puregrid.stage_id"] == ID.encode()
        assert metadata[b"puregrid.chunk"] == CHUNK.name.encode()
        assert json.loads(metadata[b"puregrid.spec"]) == {**FIELDS, CODE: SPEC.identity()[CODE]}
        assert hashlib.sha256(metadata[b"puregrid.spec"]).hexdigest().startswith(ID)
    assert metadata[b"shape"] == b"1,2,2"


@pytest.mark.parametrize("uri", ["local", "memory"], indirect=True)  # what is in a file is no matter of where it is
@pytest.mark.parametrize(
    "content", [b"", b'{"stage": "eva', b"[]", b"null", b"{}", b'{"rows": 3}', b"\xff\xfe", b"3"]
)
def test_a_damaged_commit_is_an_error_that_names_it_and_can_be_revoked(store: Store, content: bytes) -> None:
    committed(store)
    store.files.write(COMMIT_PATH, content)
    for read in (store.committed, store.read_rows, store.read_images):
        with pytest.raises(StoreError, match="is damaged") as error:
            read(*UNIT)
        assert COMMIT_PATH in str(error.value) and store.uri in str(error.value)
    problem = store.problem(*UNIT)
    assert problem is not None and COMMIT_PATH in problem
    store.revoke(*UNIT)
    assert committed(store, attempt="again").attempt == "again" and store.problem(*UNIT) is None


def test_a_commit_from_another_chunk_makes_nothing_readable(store: Store) -> None:
    other = Chunk((1, 2, 4))
    committed(store)
    store.files.write(store.rows_path("evaluate", ID, other.name), store.files.read(ROWS_PATH))
    store.files.write(store.commit_path("evaluate", ID, other.name), store.files.read(COMMIT_PATH))
    with pytest.raises(DamagedCommit, match=f"it is that of evaluate {ID} chunk {CHUNK.name}"):
        store.read_rows("evaluate", ID, other.name)
    assert store.settled("evaluate", ID, other.name) is None and store.problem(*UNIT) is None


def test_chunks_and_stages_do_not_get_in_each_others_way(store: Store) -> None:
    other, chunk = Judged(number=8), Chunk((9,))
    committed(store)
    assert store.committed("evaluate", other.id, CHUNK.name) is None
    assert store.committed("attack", ID, CHUNK.name) is None
    assert store.committed("evaluate", ID, chunk.name) is None
    rows = output().rows.slice(0, 1)
    store.commit(SPEC, ID, chunk, Output(rows), record())
    store.commit(other, other.id, CHUNK, output(shift=0.5), record())
    assert store.committed_chunks("evaluate", ID) == {CHUNK.name, chunk.name}
    assert store.read_rows("evaluate", ID, chunk.name).replace_schema_metadata(None).equals(rows)
    assert store.read_rows(*UNIT).replace_schema_metadata(None).equals(output().rows)
    assert store.read_rows("evaluate", other.id, CHUNK.name)["loss"].to_pylist()[0] == pytest.approx(0.6)
    store.revoke("evaluate", other.id, CHUNK.name)
    assert store.problem(*UNIT) is None


def test_a_spec_file_says_what_a_stage_id_stands_for_and_is_healed(store: Store) -> None:
    store.put_spec(SPEC)
    content = store.files.read(f"specs/{ID}.json")
    assert json.loads(content) == SPEC.identity() == {**FIELDS, CODE: SPEC.identity()[CODE]}
    again = json.dumps(json.loads(content), sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(again.encode()).hexdigest().startswith(ID)
    store.files.write(f"specs/{ID}.json", b"damaged")
    store.put_spec(SPEC)
    assert store.files.read(f"specs/{ID}.json") == content
