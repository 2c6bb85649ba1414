"""What a run commits is packed beside it, so that readers open no unit; whatever ends it, the rows are the same."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pytest
from lab import wait_for
from naps import Nap, plan_of
from test_blocks import block_files, one_by_one, rows
from test_manifest import aged, commit, flipped, reads  # noqa: F401

from defense.errors import InvalidInput
from workflows.store import Manifest, Store, StoreUnavailable, packing
from workflows.store.blocks import Blocks
from workflows.store.commits import COMMIT_VERSION
from workflows.store.packing import Packer, pack

SPEC, OTHER = Nap(number=1), Nap(number=2)
PLAN = plan_of([SPEC, OTHER], 7)
CHUNKS = PLAN.stages[0].chunks
NAMES = [chunk.name for chunk in CHUNKS]

pytestmark = pytest.mark.usefixtures("aged")


@pytest.fixture(autouse=True)
def no_thread_dies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    died: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    yield
    assert not died


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


def packed(store: Store) -> set[str]:
    return {chunk for chunk, _ in Blocks(store, "nap", SPEC.id).units()}


def hung(store: Store, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Have reads of rows wait; returns what is set when one does, and what lets them go on."""
    reading, go_on = threading.Event(), threading.Event()
    real = store.files.read

    def read(path: str) -> bytes:
        if path.startswith("rows/"):
            reading.set()
            assert go_on.wait(300)
        return real(path)

    monkeypatch.setattr(store.files, "read", read)
    return reading, go_on


def refuses(*_: object) -> NoReturn:
    raise StoreUnavailable("refuses")


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
    assert packed(store) == {NAMES[0], *NAMES[2:5]}
    assert store.files.names(f"blocks/nap/{OTHER.id}")
    assert store.manifest("nap", SPEC.id).believed(NAMES[1], images=False) is None


def test_a_unit_of_a_later_version_is_packed_by_nobody_and_its_neighbours_are(store: Store) -> None:
    found = store.committed("nap", SPEC.id, NAMES[2])
    assert found is not None
    later = json.dumps(replace(found, schema_version=COMMIT_VERSION + 1).checked()).encode()
    store.files.write(Store.commit_path("nap", SPEC.id, NAMES[2]), later)
    assert pack_all(store) == 4 and packed(store) == {*NAMES[:2], *NAMES[3:5]}
    assert store.manifest("nap", SPEC.id).believed(NAMES[2], images=False) is None


def test_units_that_blocks_hold_are_not_written_again_beside_new_ones(store: Store) -> None:
    pack_all(store)
    (first,) = block_files(store)
    store.files.delete(f"manifests/nap/{SPEC.id}.json")
    for chunk in CHUNKS[5:]:
        commit(store, SPEC, chunk)
    assert pack_all(store) == 7
    store.files.delete(f"blocks/nap/{SPEC.id}/{first}")
    assert packed(store) == set(NAMES[5:])


def test_it_stops_after_the_units_that_it_reads_and_what_was_read_is_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_SLICE", 2)
    asked = iter([True] * 3 + [False])
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
        wait_for(lambda: block_files(store))
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
        wait_for(lambda: store.files.exists(f"manifests/nap/{SPEC.id}.json"))
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


def test_what_was_committed_before_a_run_counts_as_packed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_TICK", 0.01)
    monkeypatch.setattr(packing, "_MANY", 1)
    with packer(store, 5) as working:  # of 7: half of two is one
        working.landed(0)
        wait_for(lambda: store.files.exists(f"manifests/nap/{SPEC.id}.json"))
        working.stop()
    store.files.delete(f"manifests/nap/{SPEC.id}.json")
    with packer(store, 3) as working:  # half of four is two
        working.landed(0)
        time.sleep(0.2)
        assert not store.files.exists(f"manifests/nap/{SPEC.id}.json")
        working.landed(0)
        wait_for(lambda: store.files.exists(f"manifests/nap/{SPEC.id}.json"))
        working.stop()


def test_landing_waits_for_no_read_and_a_store_that_hangs_holds_nobody_who_stops(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_TICK", 0.01)
    monkeypatch.setattr(packing, "_MANY", 1)
    monkeypatch.setattr(packing, "_GRACE", 0.2)
    before = set(threading.enumerate())
    reading, go_on = hung(store, monkeypatch)
    try:
        with packer(store, 6) as working:
            working.landed(0)
            assert reading.wait(300)
            began = time.monotonic()
            working.landed(0)
            assert time.monotonic() - began < 5
            working.stop()
        working.finish()
        assert time.monotonic() - began < 10
        ours = set(threading.enumerate()) - before
        assert ours and all(thread.daemon for thread in ours), "the process cannot end"
    finally:
        go_on.set()
        assert working._ended.wait(300)


@pytest.mark.parametrize("key", [False, True])
def test_the_end_waits_some_seconds_or_until_ctrl_c_and_raises_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, key: bool
) -> None:
    monkeypatch.setattr(packing, "_LAST", 50.0 if key else 0.2)
    monkeypatch.setattr(packing, "_GRACE", 0.2)
    reading, go_on = hung(store, monkeypatch)
    waiting = threading.Event()
    main = threading.main_thread().ident
    assert main is not None
    # A process that a shell started in the background ignores the key, and so would the test.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        assert reading.wait(300) and waiting.wait(300)
        signal.pthread_kill(main, signal.SIGINT)

    try:
        with packer(store, 6) as working:
            working.landed(0)
            began, wait, waited = time.monotonic(), working._ended.wait, list[float]()

            def waits(seconds: float) -> bool:
                waiting.set()  # before it, the key would be the test's
                waited.append(seconds)
                return wait(seconds)

            monkeypatch.setattr(working._ended, "wait", waits)
            if key:
                threading.Thread(target=press).start()
        assert time.monotonic() - began < 20 and working.stopped and not working._ended.is_set()
        assert working.interrupted == key
        assert max(waited) <= 1, "a key that comes just before a wait is seen behind it alone"
    finally:
        signal.signal(signal.SIGINT, handler)
        go_on.set()
        assert working._ended.wait(300)
    assert rows(store, NAMES[:5]) == one_by_one(store, NAMES[:5])


def test_a_store_that_does_not_answer_is_asked_again_and_nothing_is_written_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_TICK", 0.01)
    monkeypatch.setattr(packing, "_MANY", 1)
    monkeypatch.setattr(packing, "_OUTAGE", 0.01)
    monkeypatch.setattr(packing, "_SLICE", 2)
    real, asked = store.files.read, []

    def read(path: str) -> bytes:
        if NAMES[3] in path and path.startswith("rows/"):
            asked.append(path)
            if len(asked) < 3:
                refuses()
            assert not block_files(store) and not store.files.exists(f"manifests/nap/{SPEC.id}.json")
        return real(path)

    monkeypatch.setattr(store.files, "read", read)
    with packer(store, 6) as working:
        working.landed(0)
        wait_for(lambda: store.files.exists(f"manifests/nap/{SPEC.id}.json"))
        working.stop()
    assert packed(store) == set(NAMES[:5])


def test_a_store_that_does_not_answer_at_the_end_is_not_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(store.files, "names", refuses)
        began = time.monotonic()
        with packer(store, 6) as working:
            working.landed(0)
        assert time.monotonic() - began < 10 and working._ended.is_set()
    assert not block_files(store) and rows(store, NAMES[:5]) == one_by_one(store, NAMES[:5])


@pytest.mark.parametrize("error", [pa.ArrowInvalid("no"), StopIteration(), InvalidInput("no"), MemoryError()])
def test_an_error_that_nobody_expects_is_a_warning_and_ends_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fails(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(Blocks, "write", fails)
    with packer(store, 6) as working:
        working.landed(0)
    (record,) = caplog.records
    assert record.message.startswith("rows are not packed") and record.exc_info and record.exc_info[1] is error
    assert working._ended.is_set() and not store.files.exists(f"manifests/nap/{SPEC.id}.json")
