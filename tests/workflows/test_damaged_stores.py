"""Damage to what a store keeps: the next run heals it byte for byte, or it is named; nothing is lost or waited for.

All of it in this process, on a sweep of ten units: many files are damaged at once, each in another way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from helpers_small import SMALL
from typer.testing import CliRunner

from defense.errors import InvalidInput, PuregridError
from tasks.compute import Context
from workflows.analysis import Analysis
from workflows.cli import app
from workflows.engine.failures import failures
from workflows.engine.run import verified
from workflows.engine.worker import UnitWorker
from workflows.formats import render
from workflows.formats.plans import forecast_lines
from workflows.grid.load import Sweep, load_sweep
from workflows.monitoring.ledger import utilisation_table
from workflows.monitoring.run_record import RunRecorder, look_for_drivers, read_runs, run_line
from workflows.planning.forecast import predict, read_forecast, write_forecast
from workflows.planning.plan import Committed, Unit, make_plan
from workflows.planning.summary import summarise
from workflows.regression.baselines import from_text, to_text
from workflows.regression.compare import compare_runs
from workflows.regression.snapshots import of_results, of_store
from workflows.results.compact import compact
from workflows.results.reader import Results
from workflows.results.records import record_sweep
from workflows.store import DamagedCommit, NewerCommit, Store, StoreUnavailable

TINY = SMALL.replace("first: 20", "first: 4").replace("chunk: 8", "chunk: 2")
UNITS = 10
PATHS: list[tuple[str, str, str]] = []
"""Stage, its id and chunk of every unit."""
CONTEXT = Context("cpu")
"""Keeps the models of all stores."""


def run_here(sweep: Sweep, store: Store) -> tuple[int, list[str]]:
    """Do what ``puregrid run`` does, with a worker in this process; returns the units computed, and notes."""
    plan, notes = make_plan(sweep), list[str]()
    done = verified(plan, store, notes.append)
    record_sweep(sweep, plan, store)
    worker = UnitWorker(store.uri, "cpu")
    worker.context = CONTEXT
    computed = 0
    for unit in done.missing_units():
        stage = plan.stages[unit.stage]
        inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
        computed += worker.run(stage.spec, stage.id, stage.chunks[unit.chunk], inputs).computed
    return computed, notes


def data(store: Path | Store) -> dict[str, str]:
    """Hash of the rows and images of every committed unit, by where its first attempt puts them."""
    opened = store if isinstance(store, Store) else Store(str(store))
    found = {}
    for path in PATHS:
        commit = opened.committed(*path)
        assert commit is not None
        for place in commit.sha256:
            usual = re.sub(r"\.[0-9a-f]{12}(?=\.parquet$)", "", place)
            found[usual] = hashlib.sha256(opened.files.read(place)).hexdigest()
    return found


class Finished:
    """A store with a whole sweep, its records, and a copy of it for each test."""

    def __init__(self, folder: Path) -> None:
        path = folder / "small.yaml"
        path.write_text(TINY)
        self.file, self.folder, self.store = path, folder, folder / "store"
        self.sweep = load_sweep(path)
        store = Store(str(self.store))
        plan = make_plan(self.sweep)
        PATHS[:] = [(stage.spec.stage, stage.id, chunk.name) for stage in plan.stages for chunk in stage.chunks]
        assert run_here(self.sweep, store)[0] == UNITS
        recorder = RunRecorder(store, self.sweep.id, "run", 0.0, UNITS)
        recorder.finish("finished", 0, workers_at_most=1)
        some = Committed.all_but(plan, [Unit(len(plan.stages) - 1, 1)])
        prediction, _ = predict(some, store, self.sweep.id, workers=1)
        assert prediction is not None
        write_forecast(store, self.sweep.id, prediction)
        failure = {"unit": "evaluate x", "attempts": 3, "error": "e", "traceback": "", "final": False}
        path = self.store / "sweeps" / self.sweep.id / "failures" / "0123456789abcdef-0000000-0123456789.json"
        path.parent.mkdir()
        path.write_text(json.dumps(failure))
        self.baseline = to_text(of_results(Results(store, self.sweep)))
        self.rows = data(self.store)
        self._copies = count()

    def copy(self) -> Store:
        place = self.folder / f"copy{next(self._copies)}"
        shutil.copytree(self.store, place)
        return Store(str(place))

    def records(self, store: Path) -> dict[str, Path]:
        """One file of each kind but commits."""
        sweep = store / "sweeps" / self.sweep.id
        return {
            "latest": next((store / "sweeps").glob("latest-*.json")),
            "spec": min((store / "specs").glob("*.json")),
            "plan": sweep / "plan.json",
            "run": min((sweep / "runs").glob("*.json")),
            "forecast": sweep / "forecast.json",
            "failure": min((sweep / "failures").glob("*.json")),
        }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished"))


VALUES = (
    "null",
    "{}",
    "[]",
    '"x"',
    "-1",
    "1e400",
    "NaN",
    "true",
    '{"": null}',
    "[[1]]",
    "10" + "0" * 40,
    '"\\ud7ff"',
)
INSIDE = ("null", "{}", "1e400")
"""Values for what lies deeper."""


def mutations(content: Any) -> list[bytes]:
    """A document with each of its fields, and those inside, of another value or missing, and what is none at all."""

    def places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any, int]]:
        keys = list(value) if isinstance(value, dict) else [0][: len(value)] if isinstance(value, list) else []
        for key in keys:
            yield value, key, depth
            yield from places(value[key], depth + 1)

    found = []
    for number, (_, _, depth) in enumerate(list(places(content))):
        for new in (*(INSIDE if depth else VALUES), None):
            changed = json.loads(json.dumps(content))
            holder, key, _ = list(places(changed))[number]
            if new is None:
                del holder[key]
            else:
                holder[key] = "<new>"
            found.append(json.dumps(changed, indent=1).replace('"<new>"', str(new)).encode())
    return [*found, *(new.encode() for new in VALUES)]


def look(finished: Finished, store: Store) -> list[str]:
    """Do what the commands do that only read; returns the messages of those that refused."""
    plan, refused = make_plan(finished.sweep), []
    summary = summarise(finished.sweep, plan, store)
    json.dumps([summary.to_json(), *(failure.to_json() for failure in failures(finished.sweep, store))])
    forecast_lines(summary.forecast)
    for record in look_for_drivers(store, finished.sweep.id, read_runs(store, finished.sweep.id), wait=0):
        json.dumps(record.to_json())
        run_line(record)
        utilisation_table(record.accounts)
    read_forecast(store, finished.sweep.id)
    baseline = from_text(finished.baseline, "baseline")
    results = Results(store, finished.sweep)
    for ask in (
        lambda: render(Analysis(results), "text"),
        lambda: str(compare_runs(baseline, of_results(results))),
        lambda: str(compare_runs(baseline, of_store(store, "small", "store"))),
        lambda: str(compact(store, finished.sweep)),
    ):
        try:
            ask()
        except PuregridError as error:
            refused.append(str(error))
    return [*summary.notices, *refused]


def heals(finished: Finished, store: Store, *, computed: int | None = None) -> list[str]:
    """Run again: what is damaged is computed again, and afterwards every byte is as it was; returns the notes."""
    again, notes = run_here(finished.sweep, store)
    assert computed is None or again == computed, notes
    assert data(Path(store.uri)) == finished.rows
    assert run_here(finished.sweep, store) == (0, [])
    return notes


@pytest.mark.slow
def test_a_whole_store_is_looked_at_without_a_word(finished: Finished) -> None:
    store = finished.copy()
    assert look(finished, store) == [] and heals(finished, store, computed=0) == []


EACH = pytest.mark.parametrize(
    "each", [pytest.param(7, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.nightly)]
)
"""Of all ways of damage every seventh by day, and every one each night."""


@EACH
def test_any_value_in_any_field_of_a_commit(finished: Finished, each: int) -> None:
    """All commits are damaged at once, each in another way, until every way was there."""
    paths = [path.relative_to(finished.store) for path in sorted((finished.store / "commits").rglob("*.json"))]
    ways = [mutations(json.loads((finished.store / path).read_bytes())) for path in paths]
    wrong, kept = 0, 0
    for turn in range(0, max(map(len, ways)), each * UNITS):
        store = finished.copy()
        damaged = []
        for place, path in enumerate(paths):
            way = turn + (place + turn // UNITS) % UNITS  # attack and evaluate get different ones in each turn
            if way < len(ways[place]):
                (Path(store.uri) / path).write_bytes(ways[place][way])
                unit = (path.parts[1], path.parts[2], path.stem)
                try:
                    store.committed(*unit)
                    kept += 1
                except DamagedCommit as error:
                    damaged.append(path)
                    assert str(path) in str(error) and "Run the sweep again" in str(error)
        if turn % 70 == 0:
            messages = look(finished, store)
            assert not damaged or any("is damaged" in message for message in messages)
        again, notes = run_here(finished.sweep, store)
        assert (again, len(notes)) == (len(damaged), len(damaged))
        assert all("is damaged" in note and "it is computed again" in note for note in notes)
        assert data(Path(store.uri)) == finished.rows
        assert len([path for path in (Path(store.uri) / "aside").rglob("*") if path.is_file()]) == again
        wrong += again
    assert run_here(finished.sweep, store) == (0, [])
    # Kept is what a later version may put among plain values, and what an older one did not write.
    assert wrong > 100 / each and 10 / each < kept < wrong, (wrong, kept)


@EACH
def test_any_value_in_any_field_of_other_records(finished: Finished, each: int) -> None:
    """They stop nothing that does not need them; what does says which file it is, and a run writes it anew."""
    ways = {kind: mutations(json.loads(p.read_bytes())) for kind, p in finished.records(finished.store).items()}
    ways["failure"] += [b"{" * 5000]
    store = finished.copy()
    paths = finished.records(Path(store.uri))
    shutil.rmtree(min((Path(store.uri) / "commits" / "evaluate").iterdir()))  # else there is nothing to predict
    told = 0
    plan = make_plan(finished.sweep)
    for turn in range(0, max(map(len, ways.values())), each):
        for kind, path in paths.items():
            path.write_bytes(ways[kind][turn % len(ways[kind])])
        # What needs all rows of a sweep is asked now and then: it takes longest.
        if turn // each % 25 == 0:
            look(finished, store)
        summary = summarise(finished.sweep, plan, store)
        json.dumps([summary.to_json(), *(failure.to_json() for failure in failures(finished.sweep, store))])
        forecast_lines(summary.forecast)
        for record in look_for_drivers(store, finished.sweep.id, read_runs(store, finished.sweep.id), wait=0):
            json.dumps(record.to_json())
            run_line(record)
            utilisation_table(record.accounts)
        predicted = read_forecast(store, finished.sweep.id)
        if predicted is not None:
            predicted.shown()
        try:
            of_store(store, "small", "store")
        except InvalidInput as error:
            assert paths["latest"].name in str(error) or paths["spec"].name in str(error), error
            told += 1
    assert told > 20 / each
    record_sweep(finished.sweep, plan, store)
    assert of_store(store, "small", "store").cells


@pytest.mark.slow
def test_any_value_in_any_field_of_a_baseline(finished: Finished) -> None:
    content = json.loads(finished.baseline)
    baseline = from_text(finished.baseline, "b.json")
    del content["cells"][1:]
    for text in mutations(content):
        try:
            found = from_text(text.decode(), "b.json")
        except InvalidInput as error:
            assert str(error).startswith("b.json: ")
        else:
            str(compare_runs(found, baseline))
    newer = json.dumps({**content, "energy": 1, "cells": [{**cell, "watts": 2} for cell in content["cells"]]})
    assert json.loads(to_text(from_text(newer, "b.json"))) == content
    later = json.dumps({**content, "schema": "puregrid-baseline/2"})
    with pytest.raises(InvalidInput, match="a later version of puregrid wrote this baseline"):
        from_text(later, "b.json")


def tenths(content: bytes) -> list[bytes]:
    """Torn at every tenth, and other bytes than were written."""
    middle = len(content) // 2
    return [
        *(content[: len(content) * part // 10] for part in range(10)),
        content[:middle] + bytes([content[middle] ^ 8]) + content[middle + 1 :],
        content[:middle] + bytes(64) + content[middle + 64 :],
        b"\xff\xfe\x00garbage" * 50,
        content + content,
    ]


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inside.txt").write_text("somebody's")


OTHER: dict[str, Callable[[Path], None]] = {
    "a folder": folder,
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("nothing-there"),
    "nothing": lambda path: None,
}


def everything(store: Path) -> list[Path]:
    """All files of a store that count."""
    return sorted(path for path in store.rglob("*") if path.is_file() and path.name[0] != ".")


@EACH
def test_torn_and_changed_files_of_every_kind(finished: Finished, each: int) -> None:
    """All files of the store at once, each damaged in another way; the ways move on until all were everywhere."""
    whole = everything(finished.store)
    kinds = {path.relative_to(finished.store).parts[0] for path in whole}
    assert kinds == {"rows", "adversarial", "commits", "specs", "sweeps"}
    ways = len(tenths(b"x"))
    for shift in range(0, ways, each):
        store = finished.copy()
        for place, path in enumerate(whole):
            (Path(store.uri) / path.relative_to(finished.store)).write_bytes(
                tenths(path.read_bytes())[(place + shift) % ways]
            )
        messages = look(finished, store)
        assert any("damaged" in message or "is not the file that was committed" in message for message in messages)
        heals(finished, store, computed=UNITS)
        assert of_store(store, "small", "store").cells


@pytest.mark.slow
def test_of_some_damaged_files_only_their_units_are_computed_again(finished: Finished) -> None:
    """A damaged input does not condemn what was computed from it: equal bytes come back."""
    for kind in ("rows/attack", "adversarial", "commits/attack", "rows/evaluate", "commits/evaluate"):
        store = finished.copy()
        path = everything(Path(store.uri) / kind)[0]
        path.write_bytes(path.read_bytes()[:40])
        assert len(heals(finished, store, computed=1)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("what", OTHER)
def test_what_is_no_file(finished: Finished, what: str) -> None:
    """In place of every file: it is moved out of the way, whole."""
    store = finished.copy()
    for path in everything(Path(store.uri)):
        path.unlink()
        OTHER[what](path)
    assert make_plan(finished.sweep).committed(store).missing == UNITS
    look(finished, store)
    heals(finished, store, computed=UNITS)
    assert of_store(store, "small", "store").cells
    aside = Path(store.uri) / "aside"
    kept = [path for path in aside.rglob("*") if not path.is_dir()]
    assert len(kept) == 0 if what == "nothing" else len(kept) > 2 * UNITS


@pytest.mark.slow
def test_a_file_where_a_folder_belongs(finished: Finished) -> None:
    for name in ("rows", "commits/attack", "sweeps", "adversarial", "specs", "preflight"):
        store = finished.copy()
        place = Path(store.uri) / name
        shutil.rmtree(place, ignore_errors=True)
        place.write_text("somebody's")
        look(finished, store)
        heals(finished, store)
        kept = [path.read_text() for path in (Path(store.uri) / "aside").rglob("*") if path.is_file()]
        assert name == "preflight" or "somebody's" in kept


def test_a_link_to_a_disk_that_is_not_mounted_is_named_and_nothing_is_hidden(finished: Finished) -> None:
    store = finished.copy()
    rows = Path(store.uri) / "rows"
    rows.rename(finished.folder / "disk")
    rows.symlink_to(finished.folder / "disk")
    assert run_here(finished.sweep, store) == (0, [])
    (finished.folder / "disk").rename(finished.folder / "unmounted")
    with pytest.raises(StoreUnavailable, match=r"rows is a link to .*disk, which is not there\. Mount it"):
        run_here(finished.sweep, store)
    assert rows.is_symlink()


def test_a_commit_and_its_data_in_the_place_of_another_unit(finished: Finished) -> None:
    """Duplicated files: what a commit names is compared with where it lies."""
    store = finished.copy()
    commits = everything(Path(store.uri) / "commits")
    for first, second in (commits[:2], commits[-2:]):
        shutil.copy(first, second)
        for path in everything(Path(store.uri) / "rows"):
            if path.parent.name == first.parent.name and path.stem == first.stem:
                shutil.copy(path, path.with_stem(second.stem))
    heals(finished, store, computed=2)


def test_leftovers_of_writers_that_were_killed_are_nothing(finished: Finished) -> None:
    store = finished.copy()
    for path in everything(Path(store.uri)):
        (path.parent / f".tmp-{path.stem}").write_bytes(path.read_bytes()[:50])
        if "commits" not in path.parts:
            path.with_suffix(f".0123456789ab{path.suffix}").write_bytes(b"PAR1 of an attempt that lost")
    assert run_here(finished.sweep, store) == (0, [])
    results = Results(store, finished.sweep)
    assert to_text(of_results(results)) == finished.baseline


@pytest.mark.slow
def test_an_attack_whose_commit_is_torn_while_others_are_checked(finished: Finished) -> None:
    """Units that read it ask for its commit in the same moment in which it is set aside."""
    store = finished.copy()
    attacks = everything(Path(store.uri) / "commits" / "attack")
    for turn in range(12):
        for path in attacks:
            path.write_bytes((b"\x00\xff" * 99, b"{", b"{}")[turn % 3])
        assert run_here(finished.sweep, store)[0] == len(attacks)
    assert data(Path(store.uri)) == finished.rows


class TestOtherVersions:
    def _commits(self, store: Store) -> list[Path]:
        return everything(Path(store.uri) / "commits")

    @pytest.mark.slow
    def test_unknown_fields_are_kept(self, finished: Finished) -> None:
        store = finished.copy()
        for path in self._commits(store):
            content = json.loads(path.read_text())
            content["notes"] |= {"gpu": {"watts": 300}, "nothing": None}
            content["versions"] |= {"cuda": [12, 4]}
            path.write_text(json.dumps({**content, "energy_joules": 12.5, "signature": {"key": None}}))
        before = {path: path.read_bytes() for path in self._commits(store)}
        assert heals(finished, store, computed=0) == [] and look(finished, store) == []
        assert {path: path.read_bytes() for path in self._commits(store)} == before

    @pytest.mark.slow
    def test_older_commits_are_read(self, finished: Finished) -> None:
        store = finished.copy()
        for path in self._commits(store):
            content = json.loads(path.read_text())
            for name in ("schema_version", "checksum", "notes", "inputs", "versions"):
                del content[name]
            path.write_text(json.dumps(content))
        assert heals(finished, store, computed=0) == [] and look(finished, store) == []

    @pytest.mark.parametrize("gone", ["rows", "adversarial"])
    def test_an_older_commit_that_names_too_little_is_damaged(self, finished: Finished, gone: str) -> None:
        store = finished.copy()
        (*_, path) = everything(Path(store.uri) / "commits" / "attack")
        content = json.loads(path.read_text())
        del content["checksum"]
        content["sha256"] = {name: sha for name, sha in content["sha256"].items() if not name.startswith(gone)}
        path.write_text(json.dumps(content))
        heals(finished, store, computed=1)
        content = json.loads(path.read_text())
        del content["checksum"]
        path.write_text(json.dumps({**content, "rows": 7}))
        (note,) = heals(finished, store, computed=1)
        assert "has 2 rows, its commit says 7" in note

    @pytest.mark.slow
    @pytest.mark.parametrize("readable", [True, False])
    def test_a_later_schema_is_read_where_possible_and_never_touched(
        self, finished: Finished, readable: bool
    ) -> None:
        store = finished.copy()
        paths = self._commits(store)
        for path in paths:
            content = json.loads(path.read_text())
            if not readable:
                content["sha256"] = {name: {"sha256": sha} for name, sha in content["sha256"].items()}
            path.write_text(json.dumps({**content, "schema_version": 2}))
        before = {path: path.read_bytes() for path in everything(Path(store.uri))}
        messages = look(finished, store)
        assert [message for message in messages if "later version" not in message] == []
        assert bool(messages) is not readable
        with pytest.raises(NewerCommit, match=r"was written by a later version of puregrid.*nothing was changed"):
            run_here(finished.sweep, store)
        _, stage, stage_id, name = paths[0].with_suffix("").relative_to(store.uri).parts
        for touch in (store.settled, store.revoke) if not readable else ():
            with pytest.raises(NewerCommit):
                touch(stage, stage_id, name)
        assert {path: path.read_bytes() for path in everything(Path(store.uri)) if "compact" not in path.parts} == {
            path: content for path, content in before.items() if "compact" not in path.parts
        }
        status, said = puregrid("run", finished.file, "--store", store.uri, "--mlflow", "off")
        assert status == 1 and said.startswith("error: commit commits/") and "Install that version" in said


def puregrid(*words: str | Path) -> tuple[int, str]:
    """Exit status and messages of the command line; a traceback is an exception here."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def test_a_compacted_file_that_is_damaged_inside_is_made_again(finished: Finished) -> None:
    """Its metadata is whole: only the pages say that they are not."""
    store = finished.copy()
    compact(store, finished.sweep)
    whole = {path: path.read_bytes() for path in everything(Path(store.uri) / "compact")}
    for path, content in whole.items():
        path.write_bytes(content[:60] + bytes(8) + content[68:])
    compact(store, finished.sweep)
    assert {path: path.read_bytes() for path in whole} == whole
    assert compact(store, finished.sweep).written == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_files_and_folders_that_may_not_be_read_or_written_are_named(finished: Finished) -> None:
    """By a user who is not root; nothing is taken for damaged that one merely may not read."""
    store = finished.copy()
    for path in (finished.folder, *finished.folder.parents):
        path.chmod(path.stat().st_mode | 0o055)
    root = Path(store.uri)
    commit, rows = everything(root / "commits" / "attack")[0], everything(root / "rows" / "evaluate")[0]
    before = data(root)
    for path, mode in ((commit, 0o600), (rows, 0o600), (root / "commits" / "attack", 0o700)):
        was = path.stat().st_mode
        path.chmod(mode)
        with nobody(), pytest.raises(StoreUnavailable, match=r"refuses.*PermissionError.*Check its rights"):
            run_here(finished.sweep, store)
        path.chmod(was)
    # A store that one may only read is read.
    with nobody():
        assert render(Analysis(Results(store, finished.sweep)), "text")
        assert summarise(finished.sweep, make_plan(finished.sweep), store).missing == 0
        with pytest.raises(StoreUnavailable, match=r"refuses \(write sweeps/.*Check its rights"):
            run_here(finished.sweep, store)
    assert data(root) == before and run_here(finished.sweep, store) == (0, [])


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Be another user."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["memory", pytest.param("s3", marks=pytest.mark.slow)])
def test_a_bucket_heals_too(finished: Finished, where: str, request: pytest.FixtureRequest) -> None:
    uri = "memory://damaged" if where == "memory" else str(request.getfixturevalue("s3").new_bucket())
    store = Store(uri)
    whole = {str(path.relative_to(finished.store)): path.read_bytes() for path in everything(finished.store)}
    ways = len(tenths(b"x"))
    for place, (path, content) in enumerate(whole.items()):
        store.files.write(path, tenths(content)[place % ways])
    run_here(finished.sweep, store)
    assert data(store) == finished.rows
    assert all(store.files.read(path) == content for path, content in whole.items() if path.startswith("specs"))
    assert run_here(finished.sweep, store) == (0, [])
    path = next(path for path in whole if path.startswith("commits/evaluate"))
    commit = json.loads(store.files.read(path))
    for change, computed in (({"sha256": None}, 1), ({"more": 1}, 0), ({"rows": 99}, 1), ({"chunk": "x"}, 1)):
        store.files.write(path, json.dumps({**commit, **change}).encode())
        assert run_here(finished.sweep, store)[0] == computed
    store.files.write(path, json.dumps({**commit, "schema_version": 9}).encode())
    with pytest.raises(NewerCommit):
        run_here(finished.sweep, store)
    assert json.loads(store.files.read(path))["schema_version"] == 9
