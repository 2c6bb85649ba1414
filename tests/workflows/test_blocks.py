"""Rows from blocks are the committed rows; what is in a block is not read again, and nothing else is believed."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from naps import Nap, plan_of
from test_manifest import aged, commit, flipped, flipped_with_the_old_times, reads  # noqa: F401

from defense.errors import StoreError
from workflows.store import Store, StoreUnavailable, blocks
from workflows.store.blocks import StageRows

SPEC = Nap(number=1)
CHUNKS = plan_of([SPEC], 7).stages[0].chunks
NAMES = [chunk.name for chunk in CHUNKS]

pytestmark = pytest.mark.usefixtures("aged")


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(blocks, "ENOUGH", 2)
    made = Store(str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}")
    for chunk in CHUNKS[:5]:
        commit(made, SPEC, chunk, value=float(chunk.ids[0]))
    return made


def rows(store: Store, names: list[str]) -> pa.Table | None:
    return StageRows(store, "nap", SPEC.id, names).table(names)


def one_by_one(store: Store, names: list[str]) -> pa.Table:
    return pa.concat_tables([store.read_rows("nap", SPEC.id, name) for name in names]).replace_schema_metadata(None)


def block_files(store: Store) -> list[str]:
    return store.files.names(f"blocks/nap/{SPEC.id}")


def test_any_units_in_any_order_are_as_they_were_committed(store: Store) -> None:
    choose = random.Random(0)
    commit(store, SPEC, CHUNKS[5], value=9.0)
    for turn in range(12):
        names = choose.sample(NAMES[:6], choose.randint(1, 6))
        found = rows(store, names)
        assert found is not None and found.equals(one_by_one(store, names)), (turn, names)
    assert rows(store, []) is None and len(block_files(store)) > 1


def test_what_is_in_a_block_is_not_read_again_and_new_units_are_read_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = one_by_one(store, NAMES[:5])
    seen = reads(store, monkeypatch)
    for again in (False, True):
        seen.clear()
        found = rows(store, NAMES[:5])
        assert found is not None and found.equals(expected)
        assert (seen["blocks"], seen["commits"], seen["rows"]) == ((1, 0, 0) if again else (0, 5, 5))
    for chunk in CHUNKS[5:]:
        commit(store, SPEC, chunk)
    seen.clear()
    assert rows(store, NAMES) is not None
    assert (seen["rows"], seen["commits"], seen["blocks"]) == (2, 2, 1)
    assert len(block_files(store)) == 2
    seen.clear()
    facts = StageRows(store, "nap", SPEC.id, NAMES).facts
    assert seen == {"blocks": 2, "manifests": 1}
    assert [facts[name] for name in NAMES] == [(2, 0, 0, 0.1, 0.0, 1.8e9)] * 7


@pytest.mark.parametrize("damage", [flipped, flipped_with_the_old_times, Path.unlink])
def test_a_row_file_that_changed_is_an_error_though_a_block_has_its_rows(
    tmp_path: Path, damage, store: Store
) -> None:
    assert rows(store, NAMES[:5]) is not None
    if store.is_remote:
        path = Store.rows_path("nap", SPEC.id, NAMES[2])
        content = store.files.read(path)
        store.files.write(path, content[:60] + bytes([content[60] ^ 1]) + content[61:])
    else:
        damage(tmp_path / Store.rows_path("nap", SPEC.id, NAMES[2]))
    with pytest.raises(StoreError, match="run the sweep again"):
        rows(store, NAMES[:5])


def test_a_unit_that_was_computed_again_has_its_new_rows(store: Store) -> None:
    assert rows(store, NAMES[:5]) is not None
    store.revoke("nap", SPEC.id, NAMES[1])
    with pytest.raises(StoreError, match="is not committed"):
        rows(store, NAMES[:5])
    commit(store, SPEC, CHUNKS[1], value=0.25)
    found = rows(store, NAMES[:5])
    assert found is not None and found.equals(one_by_one(store, NAMES[:5]))
    assert found["value"].to_pylist()[2:4] == [2.25, 3.25]


def test_a_damaged_block_is_none_and_is_made_again(store: Store) -> None:
    expected = rows(store, NAMES[:5])
    (name,) = block_files(store)
    path = f"blocks/nap/{SPEC.id}/{name}"
    whole = store.files.read(path)
    middle = len(whole) // 2
    for damaged in (b"", whole[:-20], whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]):
        store.files.write(path, damaged)
        assert rows(store, NAMES[:5]) == expected
        assert store.files.read(path) == whole


def test_a_store_that_may_only_be_read_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: str, data: bytes) -> None:
        raise StoreUnavailable("refuses")

    monkeypatch.setattr(store.files, "write", refuses)
    found = rows(store, NAMES[:5])
    assert found is not None and found.equals(one_by_one(store, NAMES[:5])) and not block_files(store)


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_in_a_bucket_many_units_are_asked_for_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(5, timeout=300)
    real = store.files.read

    def read(path: str) -> bytes:
        if path.startswith("rows/"):
            together.wait()  # which one reader after the other would wait for in vain
        return real(path)

    monkeypatch.setattr(store.files, "read", read)
    assert rows(store, NAMES[:5]) is not None
