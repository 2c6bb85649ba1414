"""Stores that break the published contract in one way are caught; the real ones keep it in test_store_contract.py."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from holding import demands, failed, hold_alone

from puregrid.testing import StoreContract
from workflows.store import Commit, Files, LocalFiles, Store


class Spoiled(LocalFiles):
    """A folder, or one that breaks the contract in one way."""

    def __init__(self, root: Path, how: str) -> None:
        super().__init__(root)
        self.how = how
        self.listings: dict[str, list[str]] = {}
        if how == "another root":
            self.uri += "-other"

    def read(self, path: str) -> bytes:
        data = super().read(path)
        return data[:-1] if self.how == "last byte" and len(data) == 256_000 else data

    def write(self, path: str, data: bytes) -> None:
        if self.how == "nothing to write" and not data:
            return
        if self.how == "piecemeal" and len(data) >= 300_000 and self.exists(path):
            with (self.root / path).open("wb") as file:
                file.write(data[:100_000])
                file.flush()
                time.sleep(0.001)
                file.write(data[100_000:])
            return
        super().write(path, data)

    def create(self, path: str, data: bytes) -> bool:
        if self.how == "empty again" and not data:
            super().write(path, data)
            return True
        if self.how == "look and write" and path.startswith("race/"):
            there = self.exists(path)
            time.sleep(0.002)
            if not there:
                super().write(path, data)
            return not there
        if self.how == "commits again" and path.startswith("commits/evaluate/"):
            time.sleep(0.05)  # until all have looked
            super().write(path, data)
            return True
        return super().create(path, data)

    def set_aside(self, path: str) -> str | None:
        place = super().set_aside(path)
        if place is not None and self.how == "thrown away":
            super().delete(place)
        return place

    def exists(self, path: str) -> bool:
        return (self.root / path).exists() if self.how == "folders exist" else super().exists(path)

    def names(self, folder: str) -> list[str]:
        if self.how == "remembered":
            return self.listings.setdefault(folder, super().names(folder))
        return super().names(folder)[::-1] if self.how == "backwards" else super().names(folder)

    def delete(self, path: str) -> None:
        if self.how == "whole folder" and path.startswith("a/"):
            shutil.rmtree(self.root / "a", ignore_errors=True)
        super().delete(path)


class SpoiledStore(Store):
    """A store whose protocol is broken in one way."""

    how = "right"

    def commit(self, *arguments: Any) -> Commit:
        spec, stage_id, chunk, _, attempt = arguments
        if self.how == "last attempt" and attempt.id == "second":
            self.revoke(spec.stage, stage_id, chunk.name)
        return super().commit(*arguments)

    def committed_chunks(self, stage: str, stage_id: str) -> set[str]:
        if self.how == "rows count":
            return {name.partition(".")[0] for name in self.files.names(f"rows/{stage}/{stage_id}")}
        return super().committed_chunks(stage, stage_id)

    def problem(self, stage: str, stage_id: str, chunk: str) -> str | None:
        return None if self.how == "no problem" else super().problem(stage, stage_id, chunk)


class Broken(StoreContract):
    def __init__(self, how: str, folder: Path) -> None:
        self.how, self.folder, self.roots = how, folder, 0

    def open(self) -> Files:
        return Spoiled(self.folder / str(self.roots), self.how)

    def store(self) -> Store:
        files = self.open()
        store = SpoiledStore(files.uri)
        store.files, store.how = files, self.how
        return store

    def __getattribute__(self, name: str) -> Any:
        # Every demand has a root of its own, as under pytest, which makes an instance for each.
        if name.startswith("test_"):
            self.roots += 1
        return super().__getattribute__(name)


@pytest.mark.slow
def test_a_store_that_does_nothing_wrong_passes(tmp_path: Path) -> None:
    assert failed(Broken("right", tmp_path)) == {}


BROKEN = [
    ("last byte", "what_is_written_is_read_back_by_whoever_opens_the_root", "other bytes are read than were written"),
    ("nothing to write", "write_replaces", "after writing b'' the file holds"),
    ("empty again", "create_writes_once", "says that it wrote where a file was"),
    ("folders exist", "what_is_not_there_cannot_be_read", "a is no file"),
    ("backwards", "names_are_the_files_of_one_folder_sorted", "['b.json', 'a.json', 'C.json'], not"),
    ("remembered", "names_see_what_another_has_just_done", "another created 1 files, names() shows []"),
    ("whole folder", "delete_removes_one_file_and_then_does_nothing", "another file was deleted too"),
    ("thrown away", "set_aside_keeps_what_it_moves", "there is no such file"),
    ("piecemeal", "reader_beside_a_writer_sees_whole_contents_only", "contents were read that nobody had written"),
    ("look and write", "one_of_eight_that_create_one_file_wins", "were told they won"),
    ("another root", "uri_opens_the_same_root", "opens another root"),
    ("last attempt", "committed_unit_is_read_back_and_a_second_attempt_gets_its_record", "record of 'second'"),
    ("rows count", "readers_believe_commits_only", "data without a commit counts as a unit"),
    ("no problem", "damaged_data_is_reported_and_never_read", "are no problem"),
    ("commits again", "two_writers_of_one_unit_leave_one_unit", "were told they won"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "demand", "message"),
    [*BROKEN[:3], *(pytest.param(*case, marks=pytest.mark.nightly) for case in BROKEN[3:])],
)
def test_a_breach_fails_its_demand_alone(how: str, demand: str, message: str, tmp_path: Path) -> None:
    hold_alone(Broken(how, tmp_path), demand, message)


def test_every_demand_can_fail() -> None:
    assert {f"test_{demand}" for _, demand, _ in BROKEN} == set(demands(StoreContract))
