"""MLflow is asked before the compute and waited for seconds only; a sweep does not fail because of it.

With real MLflow: SQLite, a server process on this machine, a port that accepts and never answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from heads import free_port
from lab import wait_for
from typer.testing import CliRunner, Result

from defense.redaction import redacted
from workflows.cli import app
from workflows.engine import run as engine
from workflows.engine.loop import RunOutcome
from workflows.engine.worker import UnitWorker
from workflows.grid.load import Sweep, load_sweep
from workflows.monitoring.mlflow_client import _VARIABLES, BoundedClient, NoAnswer
from workflows.planning.plan import make_plan
from workflows.store import Store
from workflows.tracking import tracker
from workflows.tracking.experiments import Places, active_experiments, writable_experiment

TEXT = """\
sweep: asked
datasets: [{dataset: digits, images: {first: 4}}]
classifiers: [digits-cnn]
defences: [none]
attacks: [none, {attack: pgd, norm: linf, eps: 0.1, steps: 1}]
chunk: 4
"""


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", *_VARIABLES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "asked.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def sweep(file: Path) -> Sweep:
    return load_sweep(file)


@pytest.fixture
def store(tmp_path: Path, sweep: Sweep) -> Store:
    """Complete: three units."""
    store = Store(str(tmp_path / "store"))
    _compute(sweep, store)
    return store


def _compute(sweep: Sweep, store: Store, *, but: str = "") -> None:
    plan, worker = make_plan(sweep), UnitWorker(store.uri, "cpu")
    for stage in plan.stages:
        inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
        if "pgd" not in stage.spec.label() or not but:
            worker.run(stage.spec, stage.id, stage.chunks[0], inputs)


def call(command: str, file: Path, store: Store, *options: str) -> Result:
    return CliRunner().invoke(app, [command, str(file), "--store", store.uri, *options])


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A port that accepts and never answers; it is asked for 5 s, not 15."""
    assert tracker.ASKING_SECONDS == 15
    monkeypatch.setattr(tracker, "ASKING_SECONDS", 5.0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def closed() -> Iterator[str]:
    """A port at which nobody listens, and which nobody else is given meanwhile."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class Server:
    """An MLflow server process, started at most once and stopped when told."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        options += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        options += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        wait_for(self._healthy, self._process)

    def _healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    yield server
    server.kill()


def runs_of(uri: str, name: str = "asked") -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([client.get_experiment_by_name(name).experiment_id]))


@pytest.fixture
def no_compute(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whether the engine was begun; it would start Ray."""
    begun: list[str] = []

    class Execution:
        def __init__(self, *_: Any, **__: Any) -> None:
            begun.append("begun")
            raise AssertionError("the compute has begun")

    monkeypatch.setattr(engine, "Execution", Execution)
    return begun


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow  # MLflow is imported and makes databases in some seconds
class TestAsking:
    def test_a_line_says_that_it_is_there_before_anything_is_computed(
        self, file: Path, tmp_path: Path, no_compute: list[str]
    ) -> None:
        result = call("run", file, Store(str(tmp_path / "empty")))
        lines = result.stderr.splitlines()
        assert lines[0] == f"MLflow at sqlite:///{tmp_path / 'empty' / 'mlflow.db'}: ok"
        assert "0 committed, 3 to compute" in lines[1] and no_compute == ["begun"]

    @pytest.mark.parametrize("kind", ["closed", "silent"])
    def test_a_server_that_is_not_there_is_told_within_seconds_and_the_sweep_goes_on(
        self, kind: str, file: Path, tmp_path: Path, no_compute: list[str], request: pytest.FixtureRequest
    ) -> None:
        import mlflow  # noqa: F401 - its import is not the wait

        uri = request.getfixturevalue(kind)
        started = time.monotonic()
        result = call("run", file, Store(str(tmp_path / "empty")), "--mlflow", uri)
        assert time.monotonic() - started < 20
        first = result.stderr.splitlines()[0]
        why = {"closed": "ConnectionRefusedError: [Errno 111] Connection refused", "silent": "no answer within 5 s"}
        assert first.startswith(f"warning: MLflow at {uri} cannot be written: {why[kind]}. The sweep goes on without")
        assert "`puregrid track SWEEP` logs them later" in first and "--mlflow off" in first
        assert no_compute == ["begun"]

    @pytest.mark.parametrize("kind", ["closed", "silent"])
    def test_strict_tracking_ends_before_the_compute(
        self, kind: str, file: Path, tmp_path: Path, no_compute: list[str], request: pytest.FixtureRequest
    ) -> None:
        uri = request.getfixturevalue(kind)
        result = call("run", file, Store(str(tmp_path / "empty")), "--mlflow", uri, "--strict-tracking")
        assert result.exit_code == 1 and no_compute == []
        assert re.match(rf"error: MLflow at {uri} cannot be written: .*Nothing was computed\.$", result.stderr)
        assert not (tmp_path / "empty" / "sweeps").exists()

    def test_a_database_that_cannot_be_made_is_told_as_well(
        self, file: Path, tmp_path: Path, no_compute: list[str]
    ) -> None:
        (tmp_path / "wall").write_text("a file where a folder is wanted")
        uri = f"sqlite:///{tmp_path}/wall/mlflow.db"
        result = call("run", file, Store(str(tmp_path / "empty")), "--mlflow", uri, "--strict-tracking")
        assert result.exit_code == 1 and f"MLflow at {uri} cannot be written" in result.stderr
        assert no_compute == []

    def test_strict_tracking_wants_a_tracker(self, file: Path, tmp_path: Path, no_compute: list[str]) -> None:
        result = call("run", file, Store(str(tmp_path / "empty")), "--mlflow", "off", "--strict-tracking")
        assert result.exit_code == 2 and "--strict-tracking: --mlflow off logs nowhere" in result.stderr
        bucket = CliRunner().invoke(app, ["run", str(file), "--store", "memory://asked", "--strict-tracking"])
        assert bucket.exit_code == 2 and "a bucket holds no SQLite database: give --mlflow URI" in bucket.stderr
        assert no_compute == []

    def test_a_tracker_that_is_off_costs_no_import_of_mlflow(self, file: Path, store: Store) -> None:
        code = (
            "import sys\nfrom typer.testing import CliRunner\nfrom workflows.cli import app\n"
            f"r = CliRunner().invoke(app, ['run', {str(file)!r}, '--store', {store.uri!r}, '--mlflow', 'off'])\n"
            "assert r.exit_code == 0, r.stderr\nassert 'mlflow' not in sys.modules\nassert 'MLflow' not in r.stderr"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


class _Old(BaseHTTPRequestHandler):
    """A server that says which MLflow it is, and knows nothing else."""

    version = "2.22.5"

    def do_GET(self) -> None:
        known = self.path == "/version"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(self.version.encode() if known else b"{}")

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.slow
def test_a_server_of_mlflow_2_is_named_with_what_to_do(
    file: Path, store: Store, no_compute: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Old)
    Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        assert BoundedClient(uri).server_version() == "2.22.5"
        found = call("run", file, store, "--mlflow", uri, "--strict-tracking")
        assert found.exit_code != 0
        assert "its server is MLflow 2.22.5" in found.stderr and "upgrade it to 3 or newer" in found.stderr
        monkeypatch.setattr(_Old, "version", "<html>some portal</html>")
        assert BoundedClient(uri).server_version() is None
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow  # MLflow is imported and makes databases in some seconds
class TestAtTheEnd:
    def test_a_complete_sweep_ends_with_0_and_a_warning_where_only_the_tracker_fails(
        self, file: Path, store: Store, closed: str
    ) -> None:
        started = time.monotonic()
        result = call("run", file, store, "--mlflow", closed)
        assert result.exit_code == 0 and time.monotonic() - started < 45  # 382 s once
        assert "0 to compute" in result.stderr and "pgd-1 linf" in result.stdout
        warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
        assert len(warnings) == 2 and "the sweep could not be logged to MLflow" in warnings[1]
        assert "Traceback" not in result.stderr and "Retrying" not in result.stderr

    def test_a_server_that_dies_during_the_run(
        self, file: Path, store: Store, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It answers at first and is gone at the end: a warning, or an error for the strict; later it is back."""
        original = engine.run_sweep

        def dying(*arguments: Any) -> tuple[RunOutcome, Any, Any]:
            server.kill()
            return original(*arguments)

        monkeypatch.setattr(engine, "run_sweep", dying)

        def run_until_it_dies(*options: str) -> Result:
            started = time.monotonic()
            result = call("run", file, store, "--mlflow", server.uri, *options)
            assert time.monotonic() - started < 60
            assert f"MLflow at {server.uri}: ok" in result.stderr
            assert f"the sweep could not be logged to MLflow at {server.uri}" in result.stderr
            assert "`puregrid track SWEEP` logs them later" in result.stderr
            return result

        server.start()
        assert run_until_it_dies().exit_code == 0
        server.start()
        later = call("track", file, store, "--mlflow", server.uri)
        assert later.exit_code == 0, later.stderr
        assert later.stderr == f"logged to MLflow; look at it at {server.uri}\n"
        statuses = {run.info.run_name: run.info.status for run in runs_of(server.uri)}
        assert statuses == {"asked": "FINISHED", "digits-cnn · none": "FINISHED"}
        strict = run_until_it_dies("--strict-tracking")
        assert strict.exit_code == 1 and "error: the sweep could not be logged" in strict.stderr

    def test_a_tracker_that_has_come_back_is_written_at_the_end(
        self, file: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wall = tmp_path / "later"
        wall.write_text("a file where a folder is wanted")
        original = engine.run_sweep

        def repairing(*arguments: Any) -> tuple[RunOutcome, Any, Any]:
            wall.unlink()
            wall.mkdir()
            return original(*arguments)

        monkeypatch.setattr(engine, "run_sweep", repairing)
        uri = f"sqlite:///{wall}/mlflow.db"
        result = call(
            "run",
            file,
            store,
            "--mlflow",
            uri,
        )
        assert result.exit_code == 0 and "warning: MLflow at" in result.stderr and "logged to MLflow" in result.stderr
        assert {run.info.status for run in runs_of(uri)} == {"FINISHED"}


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow  # MLflow is imported and makes databases in some seconds
class TestTrack:
    def test_a_sweep_that_ran_without_it_is_logged_later_as_by_run(
        self, file: Path, store: Store, tmp_path: Path
    ) -> None:
        assert call("run", file, store, "--mlflow", "off").exit_code == 0
        uris = [f"sqlite:///{tmp_path / name}.db" for name in ("later", "at-once")]
        later = call("track", file, store, "--mlflow", uris[0])
        assert later.exit_code == 0 and later.stdout == "" and "partial" not in later.stderr
        assert call("run", file, store, "--mlflow", uris[1]).exit_code == 0
        first, second = ({run.info.run_name: run for run in runs_of(uri)} for uri in uris)
        assert set(first) == set(second) == {"asked", "digits-cnn · none"}
        for name, run in first.items():
            assert run.data.metrics == second[name].data.metrics and run.data.params == second[name].data.params
        assert first["asked"].data.tags["version.python"] == sys.version.split()[0]

    def test_a_partial_sweep_is_logged_as_one(self, file: Path, sweep: Sweep, tmp_path: Path) -> None:
        store = Store(str(tmp_path / "partial"))
        _compute(sweep, store, but="pgd")
        result = call("track", file, store)
        assert result.exit_code == 0
        assert "partial: 2 of 3 units are missing; what is committed is logged." in result.stderr
        runs = {run.info.run_name: run for run in runs_of(f"sqlite:///{store.uri}/mlflow.db")}
        assert runs["asked"].info.status == "FAILED" and runs["asked"].data.tags["puregrid.complete"] == "false"
        child = runs["digits-cnn · none"]
        table = Path(child.info.artifact_uri.removeprefix("file://"), "tables/accuracy.json").read_text()
        assert {line[6] for line in json.loads(table)["data"]} == {4} and set(child.data.metrics) >= {"clean"}

    def test_nothing_to_log_and_nowhere_to_log_to_are_errors(
        self, file: Path, store: Store, tmp_path: Path, closed: str
    ) -> None:
        nothing = call("track", file, Store(str(tmp_path / "empty")))
        assert nothing.exit_code == 1 and "nothing of asked is committed in" in nothing.stderr
        assert call("track", file, store, "--mlflow", "off").exit_code == 2
        unreachable = call("track", file, store, "--mlflow", closed)
        assert unreachable.exit_code == 1 and "error: the sweep could not be logged to MLflow" in unreachable.stderr


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow  # MLflow is imported and makes databases in some seconds
class TestDeletedExperiment:
    def _deleted(self, uri: str) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        client.delete_experiment(client.get_experiment_by_name("asked").experiment_id)

    def test_it_is_restored_with_its_runs(self, file: Path, store: Store) -> None:
        uri = f"sqlite:///{store.uri}/mlflow.db"
        assert call("run", file, store).exit_code == 0
        before = {run.info.run_id for run in runs_of(uri)}
        self._deleted(uri)
        result = call("run", file, store)
        assert result.exit_code == 0
        assert "the experiment 'asked' was deleted in MLflow; it is restored with its runs." in result.stderr
        assert {run.info.run_id for run in runs_of(uri)} == before and len(before) == 2

    def test_where_that_is_refused_a_new_one_is_begun_and_found_again(self, file: Path, store: Store) -> None:
        uri = f"sqlite:///{store.uri}/mlflow.db"
        assert call("run", file, store).exit_code == 0
        self._deleted(uri)
        with sqlite3.connect(f"{store.uri}/mlflow.db") as database:
            database.execute(
                "CREATE TRIGGER gone BEFORE UPDATE ON experiments WHEN NEW.lifecycle_stage = 'active' "
                "BEGIN SELECT RAISE(ABORT, 'gone for good'); END"
            )
        for _ in range(2):
            result = call("run", file, store)
            assert result.exit_code == 0 and "'asked' was deleted in MLflow and cannot be restored" in result.stderr
            assert len(runs_of(uri, "asked (2)")) == 2
        client = BoundedClient(uri)
        (experiment,) = active_experiments(client, "asked")
        assert experiment.name == "asked (2)"
        assert writable_experiment(client, "asked", Places()) == experiment.experiment_id
        assert active_experiments(client, "another") == []


class TestBoundedClient:
    @pytest.mark.slow
    def test_a_call_that_hangs_ends_and_no_later_one_waits(
        self, silent: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = BoundedClient(silent, 3.0)
        started = time.monotonic()
        with pytest.raises(NoAnswer, match="no answer within 3 s"):
            client.get_experiment_by_name("asked")
        assert time.monotonic() - started < 8  # MLflow alone would wait for 10 s
        monkeypatch.setattr("workflows.monitoring.mlflow_client.Thread", None)  # nothing is asked any more
        with pytest.raises(NoAnswer, match="no answer within 3 s"):
            client.get_experiment_by_name("asked")

    @pytest.mark.slow  # a database
    def test_a_database_that_another_process_has_locked(self, tmp_path: Path) -> None:
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        BoundedClient(uri).create_experiment("asked")
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            database.execute("BEGIN EXCLUSIVE")
            started = time.monotonic()
            with pytest.raises(NoAnswer):
                BoundedClient(uri, 2.0).get_experiment_by_name("asked")
            assert time.monotonic() - started < 4

    @pytest.mark.slow
    def test_the_variables_are_those_of_our_requests_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And a variable that the user has set stays as it is."""
        from mlflow import MlflowClient

        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        seen: dict[str, str | None] = {}

        def watched(*_: Any) -> None:
            seen.update({name: os.environ.get(name) for name in _VARIABLES})

        monkeypatch.setattr(MlflowClient, "get_experiment_by_name", watched)
        assert BoundedClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_experiment_by_name("asked") is None
        assert seen == {**_VARIABLES, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
        assert all(os.environ.get(name) is None for name in _VARIABLES if "RETRIES" not in name)

    @pytest.mark.slow
    def test_errors_of_mlflow_arrive_as_they_are(self, tmp_path: Path) -> None:
        from mlflow.exceptions import MlflowException

        with pytest.raises(MlflowException, match="nobody"):
            BoundedClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run("nobody")

    @pytest.mark.parametrize(
        ("uri", "expected"),
        [
            ("http://ann:secret@host:5000/path", "http://...@host:5000/path"),
            ("postgresql://ann:secret@db/mlflow", "postgresql://...@db/mlflow"),
            ("http://host/a@b", "http://host/a@b"),
            ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ],
    )
    def test_messages_hold_no_password(self, uri: str, expected: str) -> None:
        assert redacted(uri) == expected
