"""What a run commits is packed beside it, so that readers open no unit; whatever ends it, the rows are the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from naps import Nap, plan_of
from test_blocks import block_files, one_by_one, rows
from test_manifest import aged, commit, flipped, reads  # noqa: F401

from workflows.store import Manifest, Store, StoreUnavailable, packing
from workflows.store.blocks import Blocks
from workflows.store.packing import Packer, pack

SPEC, OTHER = Nap(number=1), Nap(number=2)
PLAN = plan_of([SPEC, OTHER], 7)
CHUNKS = PLAN.stages[0].chunks
NAMES = [chunk.name for chunk in CHUNKS]

pytestmark = pytest.mark.usefixtures("aged")


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    made = Store(str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}")
    for chunk in CHUNKS[:5]:
        commit(made, SPEC, chunk, value=float(chunk.ids[0]))
    return made


def chunks_of(number: int) -> tuple[str, str, list[str]]:
    return "nap", (SPEC, OTHER)[number].id, NAMES


def packer(store: Store, *missing: int) -> Packer:
    return Packer(store, chunks_of, [*missing, 0, 0][:2])


def pack_all(store: Store, go_on: Callable[[], bool] = lambda: True) -> int:
    return pack(store, *chunks_of(0), go_on)


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_packed_is_read_from_blocks_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = one_by_one(store, NAMES[:5])
    assert pack_all(store) == 5
    seen = reads(store, monkeypatch)
    assert rows(store, NAMES[:5]) == expected
    assert seen == {"blocks": 1, "manifests": 1}
    seen.clear()
    assert pack_all(store) == 0 and seen == {"blocks": 1, "manifests": 1}
    commit(store, SPEC, CHUNKS[5])
    commit(store, SPEC, CHUNKS[6])
    seen.clear()
    assert pack_all(store) == 2 and seen["rows"] == seen["commits"] == 2
    assert len(block_files(store)) == 2 and rows(store, NAMES) == one_by_one(store, NAMES)


def test_a_unit_alone_gets_no_block(store: Store) -> None:
    pack_all(store)
    commit(store, SPEC, CHUNKS[5])
    pack_all(store)
    assert len(block_files(store)) == 1 and rows(store, NAMES[:6]) == one_by_one(store, NAMES[:6])


def test_killed_between_block_and_manifest_the_block_is_found_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "write", lambda manifest: None)
        pack_all(store)
    blocks = block_files(store)
    assert len(blocks) == 1 and not store.files.exists(f"manifests/nap/{SPEC.id}.json")
    assert rows(store, NAMES[:5]) == one_by_one(store, NAMES[:5])
    assert pack_all(store) == 5 and block_files(store) == blocks
    seen = reads(store, monkeypatch)
    assert rows(store, NAMES[:5]) is not None and seen == {"blocks": 1, "manifests": 1}


def test_a_manifest_without_its_block_and_a_damaged_block_are_packed_again(store: Store) -> None:
    pack_all(store)
    (name,) = block_files(store)
    path = f"blocks/nap/{SPEC.id}/{name}"
    whole = store.files.read(path)
    for damage in (lambda: store.files.delete(path), lambda: store.files.write(path, whole[:-9] + b"\0" * 9)):
        damage()
        assert rows(store, NAMES[:5]) == one_by_one(store, NAMES[:5])
        assert pack_all(store) == 5 and store.files.read(path) == whole


@pytest.mark.parametrize("store", ["disk"], indirect=True)
def test_images_that_were_verified_stay_so(store: Store) -> None:
    manifest = store.manifest("nap", SPEC.id)
    done = store.committed("nap", SPEC.id, NAMES[0])
    assert done is not None and len(done.sha256) == 2
    manifest.note(NAMES[0], (0.1, 1.0), done.sha256, done.inputs)
    manifest.write()
    pack_all(store)
    again = store.manifest("nap", SPEC.id)
    assert again.believed(NAMES[0], images=True) is not None
    assert again.believed(NAMES[1], images=True) is None and again.believed(NAMES[1], images=False) is not None


@pytest.mark.parametrize("store", ["disk"], indirect=True)
def test_a_damaged_unit_is_packed_by_nobody_and_the_packer_goes_on(store: Store, tmp_path: Path) -> None:
    for chunk in CHUNKS[:3]:
        commit(store, OTHER, chunk)
    flipped(tmp_path / Store.rows_path("nap", SPEC.id, NAMES[1]))
    with packer(store, 5, 3) as working:
        for number in (0, 1):
            working.landed(number)
    assert not block_files(store)
    assert store.files.names(f"blocks/nap/{OTHER.id}")
    assert store.manifest("nap", SPEC.id).believed(NAMES[1], images=False) is None


def test_it_stops_after_the_units_that_it_reads_and_what_was_read_is_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_SLICE", 2)
    asked = iter([True, False])
    assert pack_all(store, lambda: next(asked)) == 2
    assert Blocks(store, "nap", SPEC.id).units() == {
        (name, store.data_sha256("nap", SPEC.id, name)[Store.rows_path("nap", SPEC.id, name)]) for name in NAMES[:2]
    }
    assert rows(store, NAMES[:5]) == one_by_one(store, NAMES[:5])


def test_large_rows_become_several_blocks(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_SLICE", 2)
    monkeypatch.setattr(packing, "_BYTES", 1)
    pack_all(store)
    assert len(block_files(store)) == 2  # two pairs; the fifth is read from its own file
    assert rows(store, NAMES[:5]) == one_by_one(store, NAMES[:5])


def test_a_stage_is_packed_while_others_are_computed_once_it_is_whole_and_old(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_TICK", 0.01)
    now = [0.0]
    with Packer(store, chunks_of, [5, 9], clock=lambda: now[0]) as working:
        for _ in range(5):
            working.landed(0)
        time.sleep(0.1)
        assert not block_files(store), "its files are younger than a manifest believes"
        now[0] = 3.0
        until(lambda: block_files(store))
        working.landed(1)
        working.stop()
    assert not store.files.names(f"blocks/nap/{OTHER.id}")
    assert rows(store, NAMES[:5]) == one_by_one(store, NAMES[:5])


def test_many_units_are_packed_before_their_stage_is_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_TICK", 0.01)
    monkeypatch.setattr(packing, "_MANY", 4)
    with Packer(store, chunks_of, [100, 0], clock=lambda: 0.0) as working:
        for _ in range(4):
            working.landed(0)
        until(lambda: store.files.exists(f"manifests/nap/{SPEC.id}.json"))
        working.stop()


def test_leaving_packs_what_is_left_at_once_and_an_exception_nothing(store: Store) -> None:
    with pytest.raises(KeyError), packer(store, 9) as working:
        working.landed(0)
        raise KeyError
    assert not block_files(store)
    with packer(store, 9) as working:
        working.landed(0)
        working.no_more()
    assert len(block_files(store)) == 1


def test_landing_waits_for_no_read_and_a_store_that_hangs_holds_nobody_who_stops(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_TICK", 0.01)
    monkeypatch.setattr(packing, "_MANY", 1)
    reading, go_on = threading.Event(), threading.Event()
    real = store.files.read

    def read(path: str) -> bytes:
        if path.startswith("rows/"):
            reading.set()
            assert go_on.wait(30)
        return real(path)

    monkeypatch.setattr(store.files, "read", read)
    with packer(store, 99) as working:
        working.landed(0)
        assert reading.wait(20)
        began = time.monotonic()
        working.landed(0)
        assert time.monotonic() - began < 5 and not go_on.is_set()
        working.stop()
        go_on.set()


def test_a_store_that_does_not_answer_ends_it_and_nothing_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise StoreUnavailable("refuses")

    monkeypatch.setattr(store.files, "names", refuses)
    with packer(store, 9) as working:
        working.landed(0)
    monkeypatch.undo()
    assert not block_files(store) and rows(store, NAMES[:5]) == one_by_one(store, NAMES[:5])
