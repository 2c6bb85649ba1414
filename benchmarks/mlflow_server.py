"""MLflow as clusters use it: a tracking server on PostgreSQL with proxied artifacts, and what becomes of many runs.

Computes a small sweep of N cells, each of which is a run in MLflow, in this process. Then two drivers log it at once,
from two copies of the store, so that no lock lets one go after the other; halfway the server is killed (SIGKILL) and
started again some seconds later. A driver that failed is started again, as its message says. At the end every run
must be there once, and each metric equal to the tables.

    python benchmarks/mlflow_server.py [--runs 1000] [--down 5]

Needs PostgreSQL (Debian: `apt-get install postgresql`) and its driver for Python (`pip install
'puregrid[postgresql]'`); says what is missing. PostgreSQL runs on a loopback port in a temporary folder, of its own
user if this one is root.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

SWEEP = """\
sweep: {name}
datasets: [{{dataset: digits, images: {{first: 4}}}}]
classifiers: [digits-cnn]
defences: [none]
attacks: [none]
seeds: {seeds}
chunk: 4
"""


class Database:
    """A PostgreSQL server on a loopback port."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        self._programs = programs
        self._password = secrets.token_hex(16)
        folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(folder, self._user)
        secret = folder / "password"
        secret.write_text(self._password)
        secret.chmod(0o600)
        if os.getuid() == 0:
            shutil.chown(secret, self._user)
        self._call("initdb", "-D", str(folder / "data"), "-U", "mlflow", "-A", "scram-sha-256", f"--pwfile={secret}")
        options = ["-D", str(folder / "data"), "-p", str(self._port), "-k", str(folder)]
        with (folder.parent / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(programs / "postgres"), *options, "-c", "listen_addresses=127.0.0.1"],
                stdout=log,
                stderr=log,
                user=self._user if os.getuid() == 0 else None,
                cwd=folder,
            )
        try:
            wait_until(lambda: self._ready("postgres"), 60, "PostgreSQL does not start")
        except BaseException:
            self.stop()
            raise
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self._port), "-U", "mlflow", "mlflow")
        self.uri = f"postgresql+psycopg2://mlflow:{self._password}@127.0.0.1:{self._port}/mlflow"

    def _ready(self, database: str) -> bool:
        options = ["-h", "127.0.0.1", "-p", str(self._port), "-U", "mlflow", "-d", database]
        return (
            subprocess.run([self._programs / "pg_isready", *options], capture_output=True, check=False).returncode
            == 0
        )

    def _call(self, program: str, *options: str) -> None:
        subprocess.run(
            [str(self._programs / program), *options],
            check=True,
            capture_output=True,
            user=self._user if os.getuid() == 0 else None,
            cwd=self._folder,
            env={**os.environ, "PGPASSWORD": self._password},
        )

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)


class Server:
    """An MLflow tracking server that hands artifacts through."""

    def __init__(self, folder: Path, database: str) -> None:
        self._folder, self._database, self._port = folder, database, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        began = time.monotonic()
        options = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "2", "--serve-artifacts"]
        options += ["--artifacts-destination", str(self._folder / "artifacts")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "MLFLOW_BACKEND_STORE_URI": self._database,  # an option would show its password in `ps`
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                },
            )
        wait_until(self._healthy, 300, "the MLflow server does not start")
        return time.monotonic() - began

    def _healthy(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise SystemExit(f"the MLflow server ended:\n{self.log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def requests(self) -> Counter[str]:
        """Requests that the server has logged, by what they were for."""
        text = self.log.read_text(errors="replace")
        paths = re.findall(r'"(?:GET|POST|PUT|PATCH|DELETE) (/(?:api|ajax-api)/[^ ?"]*)', text)
        return Counter("artifacts" if "mlflow-artifacts" in path else path.rpartition("mlflow/")[2] for path in paths)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Any, seconds: float, otherwise: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(otherwise)
        time.sleep(0.3)


def programs() -> Path:
    """The folder of PostgreSQL's programs; ends with what is missing."""
    missing = []
    if importlib.util.find_spec("psycopg2") is None:
        missing.append("the driver for Python: pip install 'puregrid[postgresql]'")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    named = shutil.which("initdb")
    if not found and named is None:
        missing.append("PostgreSQL: apt-get install postgresql")
    if missing:
        raise SystemExit("missing: " + "; ".join(missing))
    return found[-1] if found else Path(str(named)).resolve().parent


def compute(sweep: Any, store: Any) -> None:
    """All units of a sweep, in this process."""
    from workflows.engine.worker import UnitWorker
    from workflows.planning.plan import make_plan
    from workflows.results.records import record_sweep

    worker, plan = UnitWorker(store.uri, "cpu"), make_plan(sweep)
    record_sweep(sweep, plan, store)
    for stage in plan.stages:
        inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
        for chunk in stage.chunks:
            worker.run(stage.spec, stage.id, chunk, inputs)


def driver(file: Path, store: Path, uri: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "workflows.cli", "track", str(file), "--store", str(store), "--mlflow", uri]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def runs_of(uri: str, name: str) -> list[Any]:
    from mlflow import MlflowClient

    client, found, token = MlflowClient(tracking_uri=uri), [], None
    experiment = client.get_experiment_by_name(name)
    while True:
        page = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def differences(runs: list[Any], sweep: Any, store: Any, client: Any) -> list[str]:
    """What is not as the tables say: runs that are missing or twice, metrics, artifacts."""
    from workflows.analysis import Analysis
    from workflows.results.reader import Results

    analysis = Analysis(Results(store, sweep), audit=False)
    wrong = []
    keys = Counter(run.data.tags["puregrid.run"].split()[1] for run in runs)
    wrong += [f"{key} is there {number} times" for key, number in keys.items() if number > 1]
    expected = len(sweep.cells) + 1
    if len(keys) != expected:
        wrong.append(f"{len(keys)} runs, not {expected}")
    by_seed = {int(run.data.params["seed"]): run for run in runs if "seed" in run.data.params}
    for row in analysis.robustness.to_dict("records"):
        run = by_seed.get(row["seed"])
        for metric, name in (("avg/clean", "avg"), ("worst/clean", "worst"), ("clean", "avg")):
            found = None if run is None else run.data.metrics.get(metric)
            if found != float(row[name]):
                wrong.append(f"seed {row['seed']}: {metric} is {found}, not {row[name]}")
    models = client.search_logged_models([runs[0].info.experiment_id])
    if len(models) != 1 or str(models[0].status) != "READY":
        wrong.append(f"{len(models)} models, not 1 that is ready")
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    wrong += [f"{run.info.run_name} is {run.info.status}" for run in runs if run.info.status != "FINISHED"]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(client.download_artifacts(parent.info.run_id, "sweep.yaml", folder)).read_text()
    if text != sweep.text:
        wrong.append("the artifact sweep.yaml is another")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="Cells of the sweep; each is a run.")
    parser.add_argument("--down", type=float, default=5.0, help="Seconds from the server's death to its new start.")
    options = parser.parse_args()
    where = programs()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end too
    folder = Path(tempfile.mkdtemp(prefix="puregrid-mlflow-server-"))
    folder.chmod(0o755)  # PostgreSQL's user must get to its own folder in it
    server: Server | None = None
    database: Database | None = None
    try:
        database = Database(folder / "postgres", where)
        server = Server(folder, database.uri)
        wrong = measure(options.runs, options.down, folder, server)
    finally:
        if server is not None:
            server.kill()
        if database is not None:
            database.stop()
        shutil.rmtree(folder, ignore_errors=True)
    if wrong:
        raise SystemExit("\n".join([f"{len(wrong)} differences", *wrong[:20]]))


def measure(count: int, down: float, folder: Path, server: Server) -> list[str]:
    """Compute, log from two drivers, kill the server halfway, log again; returns what differs from the tables."""
    from mlflow import MlflowClient

    from workflows.grid.load import load_sweep
    from workflows.store import Store

    name = "postgres"
    file = folder / f"{name}.yaml"
    file.write_text(SWEEP.format(name=name, seeds=list(range(count))))
    sweep, store = load_sweep(file), Store(str(folder / "one"))
    began = time.monotonic()
    compute(sweep, store)
    print(f"{count} units computed in {time.monotonic() - began:.0f} s", flush=True)
    shutil.copytree(folder / "one", folder / "two")
    print(f"the server is up after {server.start():.1f} s, its tables made", flush=True)
    client = MlflowClient(tracking_uri=server.uri)
    began = time.monotonic()
    drivers = [driver(file, folder / which, server.uri) for which in ("one", "two")]
    wait_until(lambda: halfway(server, count, drivers), 3600, "the drivers do not log")
    print(
        f"halfway after {time.monotonic() - began:.0f} s, {server.requests().total()} requests: kill -9", flush=True
    )
    server.kill()
    time.sleep(down)
    server.start()
    print(f"the server is back after {down:.0f} s and its start", flush=True)
    again = 0
    for process, which in zip(drivers, ("one", "two"), strict=True):
        _, said = process.communicate()
        print(f"driver {which}: status {process.returncode}; {said.strip().splitlines()[-1][:200]}", flush=True)
        while process.returncode and again < 5:
            again += 1
            process = driver(file, folder / which, server.uri)
            _, said = process.communicate()
            print(f"driver {which}, again: status {process.returncode}", flush=True)
    seconds, calls = time.monotonic() - began, server.requests()
    found = runs_of(server.uri, name)
    wrong = differences(found, sweep, store, client)
    print(
        f"{count + 1} runs expected, {len(found)} found, {len(wrong)} differences from the tables; {seconds:.0f} s, "
        f"{calls.total()} requests ({calls.total() / (count + 1):.1f} a run), `puregrid track` again {again} times"
    )
    print("most of them: " + ", ".join(f"{path} {number}" for path, number in calls.most_common(8)))
    began, before = time.monotonic(), calls.total()
    process = driver(file, folder / "one", server.uri)
    process.communicate()
    print(
        f"all of it once more: status {process.returncode}, {time.monotonic() - began:.0f} s, "
        f"{server.requests().total() - before} requests; "
        f"{len(runs_of(server.uri, name))} runs"
    )
    return wrong


def halfway(server: Server, count: int, drivers: list[subprocess.Popen[str]]) -> bool:
    if any(process.poll() is not None for process in drivers):
        return True
    return server.requests()["runs/create"] > count // 2


if __name__ == "__main__":
    main()
