"""MLflow's database in a store: made whole, mended from the rows whatever lies in its place, and never another's.

With real MLflow on SQLite, and real processes where they are killed or run at once. The tables of MLflow are made
once; tests of what is found in their place put copies of that database there.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_small import compute
from lab import wait_for
from typer.testing import CliRunner, Result

from defense.errors import PuregridError
from workflows.cli import app
from workflows.grid.load import load_sweep
from workflows.monitoring import mlflow_database
from workflows.monitoring.artifact_places import local_path, other_store
from workflows.monitoring.mlflow_database import Busy, exclusive, prepare, trouble
from workflows.monitoring.mlflow_uri import client_uri, how_to_look, is_own, sqlite_path
from workflows.planning.plan import make_plan
from workflows.results.records import record_sweep
from workflows.store import Store

TEXT = """\
sweep: {name}
datasets: [{{dataset: digits, images: {{first: 4}}}}]
classifiers: [digits-cnn]
defences: [none]
attacks: [none]
seeds: [{seeds}]
chunk: 4
"""


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def complete(folder: Path, *names: str) -> Path:
    """A store of complete sweeps of two cells each, from files beside it."""
    store = folder / "store"
    for number, name in enumerate(names):
        file = folder / f"{name}.yaml"
        file.write_text(TEXT.format(name=name, seeds=f"{2 * number}, {2 * number + 1}"))
        sweep = load_sweep(file)
        record_sweep(sweep, make_plan(sweep), Store(str(store)))
        compute(sweep, str(store))
    return store


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def runs_of(database: Path) -> Counter[str]:
    """How often each run is in a database, by its key; all of them must have ended well."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "SELECT value, status FROM tags JOIN runs USING (run_uuid) "
            "WHERE key = 'puregrid.run' AND lifecycle_stage = 'active'"
        ).fetchall()
    assert {status for _, status in rows} == {"FINISHED"}
    # What follows the key is the digest of its artifacts, among them a report that says where the store lies.
    return Counter(key.rpartition(" ")[0] for key, _ in rows)


class TestUri:
    @pytest.mark.parametrize(
        ("uri", "path"),
        [
            ("sqlite:////data/mlflow.db", "/data/mlflow.db"),
            ("sqlite:////data/mlflow.db?timeout=5&mode=rw", "/data/mlflow.db"),
            ("sqlite:////data/a?b/mlflow.db", "/data/a?b/mlflow.db"),
            ("sqlite:////data/a?b=c/mlflow.db", "/data/a?b=c/mlflow.db"),
            ("sqlite:////data/a#b %41é/mlflow.db", "/data/a#b %41é/mlflow.db"),
            ("sqlite+pysqlite:////data/mlflow.db", "/data/mlflow.db"),
            ("sqlite:///:memory:", None),
            ("sqlite://", None),
            ("sqlite:///file:/data/x.db?uri=true", None),
            ("postgresql://host/mlflow", None),
            ("http://host:5000", None),
        ],
    )
    def test_the_file_that_one_names(self, uri: str, path: str | None) -> None:
        assert sqlite_path(uri) == (None if path is None else Path(path))

    def test_a_relative_one_starts_at_the_working_directory(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        assert sqlite_path("sqlite:///own.db") == tmp_path / "own.db"

    def test_a_path_with_special_characters_is_reached_by_one_without(self, tmp_path: Path) -> None:
        assert client_uri("sqlite:////data/a b#ä/mlflow.db") == "sqlite:////data/a b#ä/mlflow.db"
        assert client_uri("http://host/100%") == "http://host/100%"
        for name in ("a?b", "a%41b", "100%"):
            path = sqlite_path(client_uri(f"sqlite:///{tmp_path / name / 'mlflow.db'}"))
            assert path is not None and "?" not in str(path) and "%" not in str(path)
            assert path.resolve() == tmp_path / name / "mlflow.db"

    def test_the_command_that_shows_it_can_be_pasted(self, tmp_path: Path) -> None:
        looked = how_to_look("sqlite:////data/a b/mlflow.db")
        assert looked == "mlflow ui --backend-store-uri 'sqlite:////data/a b/mlflow.db' --host 127.0.0.1"
        looked = how_to_look(f"sqlite:///{tmp_path}/a?b/mlflow.db")
        assert looked == f"cd '{tmp_path}/a?b' && mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1"

    def test_whose_a_database_is(self, tmp_path: Path) -> None:
        store = tmp_path / "store"
        store.mkdir()
        (tmp_path / "link").symlink_to(store)
        assert is_own(f"sqlite:///{store}/mlflow.db", store)
        assert is_own(f"sqlite:///{store}/mlflow.db", tmp_path / "link")
        assert not is_own(f"sqlite:///{store}/own.db", store)
        assert not is_own(f"sqlite:///{tmp_path}/mlflow.db", store)
        assert not is_own("http://host", store) and not is_own(f"sqlite:///{store}/mlflow.db", None)
        (store / "mlflow.db").symlink_to(tmp_path / "shared.db")
        assert not is_own(f"sqlite:///{store}/mlflow.db", store)

    @pytest.mark.parametrize(
        ("location", "path", "other"),
        [
            ("file:///a/mlartifacts/n", "/a/mlartifacts/n", "/a"),
            ("/a/mlartifacts/n", "/a/mlartifacts/n", "/a"),
            ("file:///a%20b%3F/mlartifacts/n", "/a b?/mlartifacts/n", "/a b?"),
            ("file:///here/mlartifacts/n", "/here/mlartifacts/n", None),
            ("file:///shared/artifacts/n", "/shared/artifacts/n", None),
            ("file://machine/a/mlartifacts/n", None, None),
            ("mlflow-artifacts:/1", None, None),
            ("s3://bucket/mlartifacts/n", None, None),
        ],
    )
    def test_whose_artifacts_are(self, location: str, path: str | None, other: str | None) -> None:
        assert local_path(location) == (None if path is None else Path(path))
        assert other_store(location, Path("/here"), None) == (None if other is None else Path(other))


class TestLock:
    def test_one_after_the_other_and_the_one_that_waits_says_for_whom(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        waits: list[float] = []
        clock = SimpleNamespace(monotonic=lambda: sum(waits), sleep=waits.append)
        monkeypatch.setattr(mlflow_database, "time", clock)
        with exclusive(tmp_path):
            with (
                pytest.raises(Busy, match=rf"process .* {os.getpid()} has been writing to it"),
                exclusive(tmp_path, said.append, 2.5),
            ):
                raise AssertionError("two at once")
            assert 2.4 < sum(waits) < 2.7
        assert len(said) == 1 and f" {os.getpid()}, which writes to MLflow" in said[0]
        with exclusive(tmp_path), exclusive(None), exclusive(None):
            pass

    def test_it_ends_with_its_process(self, tmp_path: Path) -> None:
        code = (
            "import sys, time\nfrom pathlib import Path\n"
            "from workflows.monitoring.mlflow_database import exclusive\n"
            f"with exclusive(Path({str(tmp_path)!r})):\n    print('has it', flush=True)\n    time.sleep(100)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "has it\n"
        with pytest.raises(Busy), exclusive(tmp_path, seconds=0.3):
            pass
        process.kill()
        process.wait()
        with exclusive(tmp_path, seconds=5):
            pass

    def test_a_store_that_may_only_be_read_has_none(self, tmp_path: Path) -> None:
        (tmp_path / "wall").write_text("a file")
        with exclusive(tmp_path / "wall" / "store"):
            pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A new database with MLflow's tables."""
    path = tmp_path_factory.mktemp("whole") / "mlflow.db"
    prepare(f"sqlite:///{path}", None, lambda _: None)
    assert os.listdir(path.parent) == ["mlflow.db"]  # nothing of its making is left
    return path.read_bytes()


@pytest.fixture
def store(tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a database in which nothing is logged; a new one is a copy of the whole one."""
    monkeypatch.setattr(mlflow_database, "_make", lambda path: path.write_bytes(whole))
    monkeypatch.setattr(mlflow_database, "_STILL_SECONDS", 0.2)
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(whole)
    return folder


def change(statement: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with sqlite3.connect(path) as connection:
            connection.executescript(statement)
        connection.close()

    return damage


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def overwrite(path: Path) -> None:
    """Pages in the middle, as a bad disk has them."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(20_000))


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "garbage": (lambda path: path.write_bytes(b"no database" * 999) and None, "it is no SQLite database"),  # type: ignore[func-returns-value]
    "empty": (cut(0), "it is an empty file"),
    "one byte": (lambda path: path.write_bytes(b"S") and None, "it is no SQLite database"),  # type: ignore[func-returns-value]
    "the header alone": (lambda path: os.truncate(path, 100), "it is damaged"),
    "half of it": (cut(0.5), "it is damaged"),
    "the last page gone": (lambda path: os.truncate(path, path.stat().st_size - 4096), "it is damaged"),
    "pages overwritten": (overwrite, "it is damaged"),
    "a folder": (replaced(Path.mkdir), "it is a folder, not a file"),
    "a pipe": (replaced(lambda path: os.mkfifo(path)), "it is a pipe, not a file"),
    "another's database": (replaced(change("CREATE TABLE notes (text TEXT)")), "its tables are half made"),
    "half migrated": (change("CREATE TABLE _alembic_tmp_experiments (x)"), "its tables are half made"),
    "no revision": (change("DELETE FROM alembic_version"), "its tables are half made"),
    "an older revision": (
        change("UPDATE alembic_version SET version_num = '451aebb31d03'"),
        "its tables are those of an older version of MLflow (revision 451aebb31d03",
    ),
    "a newer revision": (
        change("UPDATE alembic_version SET version_num = 'feedfacefeed'"),
        "its tables are those of a newer or foreign version of MLflow (revision feedfacefeed",
    ),
    "a table dropped": (change("DROP TABLE latest_metrics"), "it has no table 'latest_metrics'"),
}


@pytest.mark.slow  # MLflow is imported and makes its tables once
class TestBroken:
    @pytest.mark.parametrize("kind", BROKEN)
    def test_it_is_set_aside_with_a_message_and_made_anew(self, kind: str, store: Path, whole: bytes) -> None:
        damage, why = BROKEN[kind]
        path, said = store / "mlflow.db", list[str]()
        damage(path)
        before = path.read_bytes() if path.is_file() else None
        prepare(f"sqlite:///{path}", store, said.append)
        assert path.read_bytes() == whole and trouble(path) is None
        (aside,) = store.glob("mlflow.db.broken-*")
        assert before is None or aside.read_bytes() == before
        (message,) = said
        assert f"{path} cannot be used: {why}" in message and f"set aside as {aside.name}" in message
        assert f"`puregrid track --store {store}` logs all sweeps" in message
        prepare(f"sqlite:///{path}", store, said.append)
        assert len(said) == 1  # once

    @pytest.mark.parametrize("kind", BROKEN)
    def test_one_that_a_user_named_is_left_alone(self, kind: str, store: Path) -> None:
        damage, why = BROKEN[kind]
        path = store / "mlflow.db"
        path = path.rename(store / "own.db")
        damage(path)
        before = path.read_bytes() if path.is_file() else os.listdir(store)
        with pytest.raises(PuregridError) as error:
            prepare(f"sqlite:///{path}", store, lambda _: None)
        assert why in str(error.value) and "does not touch a database that may hold more" in str(error.value)
        assert (path.read_bytes() if path.is_file() else os.listdir(store)) == before
        assert os.listdir(store) == ["own.db"]

    def test_a_second_one_in_the_same_second_gets_another_name(self, store: Path) -> None:
        path = store / "mlflow.db"
        for text in (b"first", b"second"):
            path.write_bytes(text)
            prepare(f"sqlite:///{path}", store, lambda _: None)
        assert {aside.read_bytes() for aside in store.glob("mlflow.db.broken-*")} == {b"first", b"second"}

    def test_what_sqlite_keeps_beside_it_goes_along(self, store: Path) -> None:
        """A journal that stayed would be played back into the new one."""
        path = store / "mlflow.db"
        path.write_bytes(b"garbage")
        (store / "mlflow.db-journal").write_bytes(b"of the old one")
        prepare(f"sqlite:///{path}", store, lambda _: None)
        (aside,) = store.glob("mlflow.db.broken-*[0-9]")
        assert (store / f"{aside.name}-journal").read_bytes() == b"of the old one"
        assert not (store / "mlflow.db-journal").exists()

    def test_what_was_being_set_aside_at_a_kill_keeps_one_name(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The journal has gone, the database has not: the next run puts it beside its journal."""
        path, rename = store / "mlflow.db", Path.rename

        def killed(self: Path, target: Path) -> Path:
            if self == path:
                raise KeyboardInterrupt
            return rename(self, target)

        path.write_bytes(b"garbage")
        (store / "mlflow.db-journal").write_bytes(b"of the old one")
        with monkeypatch.context() as kill, pytest.raises(KeyboardInterrupt):
            kill.setattr(Path, "rename", killed)
            prepare(f"sqlite:///{path}", store, lambda _: None)
        (journal,) = store.glob("mlflow.db.broken-*-journal")
        prepare(f"sqlite:///{path}", store, lambda _: None)
        assert (store / journal.name.removesuffix("-journal")).read_bytes() == b"garbage"
        assert journal.read_bytes() == b"of the old one" and len(list(store.glob("mlflow.db.broken-*"))) == 2

    def test_a_journal_that_was_left_without_its_database_is_never_taken_for_another_ones(
        self, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Maker:
            def __init__(self, uri: str, seconds: float) -> None:
                Path(uri.removeprefix("sqlite:///")).write_bytes(whole)

            def search_experiments(self, max_results: int) -> None:
                pass

        monkeypatch.setattr(mlflow_database, "BoundedClient", Maker)
        store, path = tmp_path, tmp_path / "mlflow.db"
        (store / "mlflow.db-journal").write_bytes(b"of one that is gone")
        prepare(f"sqlite:///{path}", store, lambda _: None)
        path.write_bytes(b"garbage")
        (store / "mlflow.db-journal").write_bytes(b"of this one")
        prepare(f"sqlite:///{path}", store, lambda _: None)
        (aside,) = store.glob("mlflow.db.broken-*[0-9]")
        assert (store / f"{aside.name}-journal").read_bytes() == b"of this one"
        (left,) = store.glob("mlflow.db.left-*")
        assert left.read_bytes() == b"of one that is gone"

    def test_one_that_is_locked_is_not_broken(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, connect = store / "mlflow.db", sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda *a, **o: connect(*a, **{**o, "timeout": 0.1}))
        holder = connect(path)
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(PuregridError, match="database is locked"):
            prepare(f"sqlite:///{path}", store, lambda _: None)
        holder.close()
        assert not list(store.glob("*broken*"))

    def test_one_that_somebody_is_making_is_waited_for(self, store: Path, whole: bytes, monkeypatch: Any) -> None:
        """`mlflow ui` on a fresh store makes its tables where everybody sees them."""
        monkeypatch.setattr(mlflow_database, "_STILL_SECONDS", 300.0)
        path = store / "mlflow.db"
        change("DELETE FROM alembic_version")(path)
        code = (
            f"import time\ntime.sleep(1)\nopen({str(path)!r}, 'wb').write(open({str(store / 'good')!r}, 'rb').read())"
        )
        (store / "good").write_bytes(whole)
        maker = subprocess.Popen([sys.executable, "-c", code])
        prepare(f"sqlite:///{path}", store, lambda message: pytest.fail(message))
        maker.wait()
        assert trouble(path) is None

    def test_what_a_killed_process_has_begun_is_cleared_away(self, store: Path) -> None:
        (store / ".mlflow.db.new-abc").mkdir()
        (store / ".mlflow.db.new-abc" / "mlflow.db").write_bytes(b"half")
        (store / ".own.db.new-abc").mkdir()  # of somebody else
        prepare(f"sqlite:///{store / 'mlflow.db'}", store, lambda _: None)
        assert sorted(os.listdir(store)) == [".own.db.new-abc", "mlflow.db"]


@pytest.mark.slow  # of the fixture
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_one_that_may_not_be_read_is_set_aside_and_one_that_may_not_be_written_is_not(
    whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a run as root in a container; a database that others may read is in use by them."""
    monkeypatch.setattr(mlflow_database, "_make", lambda path: path.write_bytes(whole))
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        path, said = store / "mlflow.db", list[str]()
        path.write_bytes(whole)
        os.chown(store, 65534, 65534)
        os.seteuid(65534)
        try:
            with pytest.raises(PuregridError, match=f"you may not write to {path}, which belongs to user 0"):
                prepare(f"sqlite:///{path}", store, said.append)
            assert os.listdir(store) == ["mlflow.db"]
            os.seteuid(0)
            path.chmod(0o600)
            os.seteuid(65534)
            prepare(f"sqlite:///{path}", store, said.append)
        finally:
            os.seteuid(0)
        assert len(said) == 1 and "it may not be read by you; it belongs to user 0" in said[0]
        assert path.read_bytes() == whole and path.stat().st_uid == 65534
        assert len(list(store.glob("mlflow.db.broken-*"))) == 1


@dataclass
class Process:
    """`puregrid track` or `run` as a process."""

    arguments: tuple[object, ...]

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "workflows.cli", *map(str, self.arguments)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def killed_when(self, condition: Callable[[], bool]) -> None:
        process = self.start()
        wait_for(condition, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "moments", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.nightly)]
)
def test_killed_at_any_moment_the_next_run_heals_it(moments: int, tmp_path: Path) -> None:
    """While tables are made, once they are in place, while runs are written, between old and new database.

    By day at the first and the last of these.
    """
    store = complete(tmp_path, "killed")
    path = store / "mlflow.db"
    track = Process(("track", tmp_path / "killed.yaml", "--store", store))
    track.killed_when(lambda: any(p.stat().st_size > 50_000 for p in store.glob(".mlflow.db.new-*/mlflow.db")))
    assert not path.exists()
    if moments == 4:
        track.killed_when(path.exists)
        track.killed_when(lambda: any((store / "mlartifacts").rglob("tables.json")))
        with path.open("r+b") as file:
            file.write(b"damage")
    else:
        path.write_bytes(b"damage")
    track.killed_when(lambda: any(store.glob("mlflow.db.broken-*")))
    result = call(*track.arguments)
    assert result.exit_code == 0, result.stderr
    assert trouble(path) is None and not list(store.glob(".mlflow.db.new-*"))
    assert sorted(runs_of(path).values()) == [1, 1, 1]
    aside = {file.name for file in store.glob("mlflow.db.broken-*")}  # what SQLite kept beside it has its name
    assert len({name.removesuffix("-journal") for name in aside}) == 1


@pytest.mark.nightly
def test_drivers_that_begin_at_once_in_a_fresh_store_all_end_well_and_log_everything_once(tmp_path: Path) -> None:
    """Two of one sweep, and one of another."""
    store = complete(tmp_path, "one", "other")
    drivers = [
        Process(("run", tmp_path / f"{name}.yaml", "--store", store)).start() for name in ("one", "one", "other")
    ]
    ended = [(process.communicate(timeout=900)[1], process.returncode) for process in drivers]
    assert [status for _, status in ended] == [0, 0, 0], ended
    assert all("logged to MLflow" in said and "warning" not in said for said, _ in ended), ended
    assert sorted(runs_of(store / "mlflow.db").values()) == [1] * 6


@pytest.mark.slow
class TestWithMlflow:
    def test_a_disk_that_is_full_while_it_is_made_leaves_nothing_of_it(
        self, disk: tuple[Path, Callable[[str], None]]
    ) -> None:
        folder, resize = disk
        resize("700k")
        store = complete(folder, "full")
        full = call("track", folder / "full.yaml", "--store", store)
        assert full.exit_code == 1 and "could not be logged to MLflow" in full.stderr, full.stderr
        assert "full" in full.stderr or "No space left" in full.stderr
        assert not [name for name in os.listdir(store) if "mlflow.db" in name]
        resize("30m")
        assert call("track", folder / "full.yaml", "--store", store).exit_code == 0
        assert sorted(runs_of(store / "mlflow.db").values()) == [1, 1, 1]

    def test_the_whole_store_is_logged_again_with_its_baselines_and_a_copy_of_it_leaves_it_alone(
        self, tmp_path: Path
    ) -> None:
        """In a folder whose name has every character that means something in a URI."""
        home = tmp_path / "a?b=1 #%41ä"
        home.mkdir()
        store = complete(home, "one", "two")
        path = store / "mlflow.db"
        everything = call("track", "--store", store)
        assert everything.exit_code == 0, everything.stderr
        assert call("promote", home / "one.yaml", "--store", store).exit_code == 0
        runs = runs_of(path)
        assert sorted(runs.values()) == [1] * 6 and os.listdir(tmp_path) == [home.name]
        with path.open("r+b") as file:
            file.truncate(5000)
        broken = call("compare", home / "one.yaml", "--with", "mlflow:champion", "--store", store)
        assert broken.exit_code == 2 and "cannot be read: it is damaged" in broken.stderr
        assert "Traceback" not in broken.stderr and path.stat().st_size == 5000
        again = call("track", "--store", store)
        assert again.exit_code == 0 and "is set aside as mlflow.db.broken-" in again.stderr
        assert runs_of(path) == runs
        compared = call("compare", home / "one.yaml", "--with", "mlflow:champion", "--store", store)
        assert compared.exit_code == 0, compared.stderr

        copy = tmp_path / "copy"
        shutil.copytree(store, copy)
        shutil.rmtree(copy / "mlartifacts")
        before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file() and file.name[0] != "."}
        copied = call("track", home / "one.yaml", "--store", copy)
        assert copied.exit_code == 0 and f"had its artifacts in {store}, from which it was copied" in copied.stderr
        after = {file: file.read_bytes() for file in store.rglob("*") if file.is_file() and file.name[0] != "."}
        assert after == before
        (tables,) = copy.glob("mlartifacts/one/*/artifacts/tables/tables.md")
        assert tables.read_bytes() in before.values()
        with sqlite3.connect(copy / "mlflow.db") as connection:
            places = connection.execute(
                "SELECT artifact_location FROM experiments WHERE experiment_id > 0 "
                "UNION SELECT artifact_uri FROM runs"
            ).fetchall()
        assert places and all(place.startswith((copy / "mlartifacts").as_uri()) for (place,) in places)
        assert runs_of(copy / "mlflow.db") == runs

        # Artifacts that are changed or gone come back as well, where no tag would say so.
        tables.write_text("scribbled over")
        (tables.parents[1] / "sweep.yaml").unlink()
        assert call("track", home / "one.yaml", "--store", copy).exit_code == 0
        assert tables.read_bytes() in before.values() and (tables.parents[1] / "sweep.yaml").exists()

        # A database that both name: the copy begins an experiment of its own.
        shared = f"sqlite:///{tmp_path / 'shared.db'}"
        shutil.copy(path, tmp_path / "shared.db")
        named = call("track", home / "one.yaml", "--store", copy, "--mlflow", shared)
        assert named.exit_code == 0 and f"'one' has its artifacts in another store, {store}" in named.stderr
        assert (tmp_path / "mlartifacts" / "one (2)").is_dir()
        assert {file: file.read_bytes() for file in before} == before
