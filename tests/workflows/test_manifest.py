"""What was verified is not read again until it changes; whatever changes is found, and nothing else is believed."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from naps import Nap, plan_of

from tasks.stages import Chunk, Output
from workflows.engine.run import verified
from workflows.planning.plan import Plan, Unit
from workflows.store import Attempt, Store, manifest

if TYPE_CHECKING:
    from s3_server import S3Server

SOURCE = Nap(number=1)
READER = Nap(number=2, source=SOURCE)
CHUNKS = 4


def made(chunk: Chunk, *, images: bool, value: float = 0.0) -> Output:
    ids = pa.array(chunk.ids, pa.int32())
    rows = pa.table({"image_id": ids, "value": pa.array([value + i for i in chunk.ids])})
    return Output(
        rows, pa.table({"image_id": ids, "image": pa.array([[value]] * len(chunk.ids))}) if images else None
    )


def commit(store: Store, spec: Nap, chunk: Chunk, value: float = 0.0) -> None:
    read = {} if spec.source is None else store.data_sha256("nap", spec.source.id, chunk.name)
    inputs = {path: sha256 for path, sha256 in read.items() if path.startswith("rows/")}
    output = made(chunk, images=spec.source is None, value=value)
    store.commit(spec, spec.id, chunk, output, Attempt("a", 0.1, "h", inputs=inputs, ended=1.8e9))


@pytest.fixture
def plan() -> Plan:
    return plan_of([READER], CHUNKS)


def fill(store: Store, plan: Plan) -> Store:
    for stage in plan.stages:
        for chunk in stage.chunks:
            commit(store, stage.spec, chunk)  # type: ignore[arg-type]
    return store


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    fill(Store(str(folder)), plan_of([READER], CHUNKS))
    return folder


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Store:
    shutil.copytree(filled, tmp_path / "store")
    return Store(str(tmp_path / "store"))


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old at once."""
    monkeypatch.setattr(manifest, "_TICK", -(10**18))


def reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what is read, by the first folder."""
    seen: Counter[str] = Counter()
    real = store.files.read

    def read(path: str) -> bytes:
        seen[path.partition("/")[0]] += 1
        return real(path)

    monkeypatch.setattr(store.files, "read", read)
    return seen


def check(store: Store, plan: Plan, **options: Any) -> tuple[set[Unit], list[str]]:
    """The units that are missing, and what was said."""
    said: list[str] = []
    return set(verified(plan, store, said.append, **options).missing_units()), said


@pytest.mark.usefixtures("aged")
def test_what_was_verified_is_not_read_again(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = reads(store, monkeypatch)
    assert check(store, plan) == (set(), [])
    # Readers ask for their source's commit again.
    assert seen == {"commits": 3 * CHUNKS, "rows": 2 * CHUNKS, "adversarial": CHUNKS}
    seen.clear()
    assert check(store, plan) == (set(), [])
    assert seen == {"manifests": 2}
    seen.clear()
    assert check(store, plan, full=True) == (set(), [])
    assert seen["rows"] == 2 * CHUNKS and seen["adversarial"] == CHUNKS
    # One unit more: it alone is read.
    grown = plan_of([READER], CHUNKS + 1)
    commit(store, SOURCE, grown.stages[0].chunks[-1])
    seen.clear()
    assert check(store, grown) == ({Unit(1, CHUNKS)}, [])
    assert (seen["rows"], seen["adversarial"], seen["commits"]) == (1, 1, 1)
    # A smaller plan forgets nothing of what it does not ask for.
    check(store, plan_of([READER], 2))
    seen.clear()
    assert check(store, grown)[0] == {Unit(1, CHUNKS)} and seen == {"manifests": 2}


def test_files_younger_than_a_tick_of_the_clock_are_read_again(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may have changed after they were read without another time."""
    assert manifest._TICK == 2 * 10**9
    monkeypatch.setattr(manifest, "_TICK", 10**18)  # else they are older where the machine is busy
    seen = reads(store, monkeypatch)
    for _ in range(2):
        seen.clear()
        assert check(store, plan) == (set(), [])
        assert seen["rows"] == 2 * CHUNKS


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flipped_with_the_old_times(path: Path) -> None:
    status = path.stat()
    flipped(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced_with_the_old_times(path: Path) -> None:
    status, other = path.stat(), path.with_name(".other")
    other.write_bytes(path.read_bytes())
    flipped(other)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


@pytest.mark.usefixtures("aged")
@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        flipped_with_the_old_times,
        replaced_with_the_old_times,
        Path.unlink,
        lambda path: os.truncate(path, 40),
        lambda path: path.write_bytes(b""),
    ],
    ids=["flipped", "times set back", "replaced", "gone", "cut", "empty"],
)
@pytest.mark.parametrize("kind", ["rows", "adversarial", "commits"])
def test_whatever_changes_is_found(store: Store, plan: Plan, damage: Callable[[Path], None], kind: str) -> None:
    check(store, plan)
    check(store, plan)
    folder = Path(store.uri) / kind / ("" if kind == "adversarial" else "nap") / SOURCE.id
    stage = plan.stages[0]
    path = next(folder.glob(f"{stage.chunks[3].name}*"))
    damage(path)
    missing, said = check(store, plan)
    assert missing == {Unit(0, 3)}
    gone = kind == "commits" and not said  # nobody said that it was there
    assert gone or ("it is computed again" in said[0] and len(said) == 1)
    commit(store, SOURCE, stage.chunks[3])
    assert check(store, plan) == (set(), []) and check(store, plan, full=True) == (set(), [])


@pytest.mark.usefixtures("aged")
def test_a_unit_that_read_other_data_than_is_committed_now_is_found(store: Store, plan: Plan) -> None:
    check(store, plan)
    chunk = plan.stages[0].chunks[2]
    store.revoke("nap", SOURCE.id, chunk.name)
    commit(store, SOURCE, chunk, value=0.5)
    missing, said = check(store, plan)
    assert missing == {Unit(1, 2)} and "it read other data than what is now committed" in said[0]


@pytest.mark.usefixtures("aged")
def test_a_damaged_manifest_is_none(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    check(store, plan)
    path = Path(store.uri) / f"manifests/nap/{SOURCE.id}.json"
    whole = path.read_bytes()
    other = (Path(store.uri) / f"manifests/nap/{READER.id}.json").read_bytes()
    seen = reads(store, monkeypatch)
    for damaged in (b"", b"\n", b"null", whole[:-9], whole[:200] + b"~" + whole[201:], other, whole + b" "):
        path.write_bytes(damaged)
        seen.clear()
        assert check(store, plan) == (set(), [])
        assert (seen["rows"], seen["adversarial"]) == (CHUNKS, CHUNKS)
        assert path.read_bytes() == whole


@pytest.mark.usefixtures("aged")
def test_what_no_stamp_shows_is_found_by_a_full_verification(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that returns other bytes than were written."""
    check(store, plan)
    rows = f"rows/nap/{SOURCE.id}/{plan.stages[0].chunks[0].name}.parquet"
    real = store.files.read
    monkeypatch.setattr(store.files, "read", lambda path: real(path)[::-1] if path == rows else real(path))
    assert check(store, plan) == (set(), [])
    missing, said = check(store, plan, full=True)
    assert missing == {Unit(0, 0)} and "its commit says" in said[0]


@pytest.mark.parametrize("where", ["memory", pytest.param("s3", marks=pytest.mark.slow)])
def test_in_a_bucket_a_verified_stage_costs_requests_by_the_stage_and_not_by_the_unit(
    where: str, plan: Plan, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: S3Server | None = request.getfixturevalue("s3") if where == "s3" else None
    store = fill(Store("memory://manifests" if server is None else server.new_bucket()), plan)
    assert check(store, plan) == (set(), [])
    seen = reads(store, monkeypatch)
    if server is not None:
        server.requests.clear()
    assert check(store, plan) == (set(), []) and seen == {"manifests": 2}
    # Three listings and the manifest, of two stages; s3fs asks three times more for the folder that is missing.
    assert server is None or sum(server.requests.values()) <= 11
    path = f"rows/nap/{READER.id}/{plan.stages[1].chunks[1].name}.parquet"
    content = store.files.read(path)
    store.files.write(path, content[:50] + bytes([content[50] ^ 1]) + content[51:])
    missing, said = check(store, plan)
    assert missing == {Unit(1, 1)} and len(said) == 1


def test_a_store_that_may_only_be_read_is_verified(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    from workflows.store import StoreUnavailable

    def refuses(path: str, data: bytes) -> None:
        raise StoreUnavailable("refuses")

    monkeypatch.setattr(store.files, "write", refuses)
    assert check(store, plan) == (set(), [])
