"""A password in whatever takes a URI is in nothing that is printed or written, whether the command succeeds or fails.

Real commands as processes, with a canary in place of a password, and a search through all that they leave behind.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from forks import forks
from helpers_small import compute

from defense.errors import InvalidInput
from workflows.cli import _without_password
from workflows.documents.document import read_document
from workflows.engine.failures import failures, record_failure
from workflows.engine.worker import one_line
from workflows.grid.load import Sweep, load_sweep
from workflows.monitoring.events import LOGGER, log_event, log_to
from workflows.planning.plan import Unit, make_plan
from workflows.planning.scheduler import Failure
from workflows.results.records import record_sweep
from workflows.store import Store

CANARY = "c4n4ryS3CR3T"
ENCODED = "c4n4ry%53CR3T"
TEXT = """\
sweep: secrets
datasets: [{dataset: digits, images: {first: 4}}]
classifiers: [digits-cnn]
defences: [none]
attacks: [none]
chunk: 4
# a comment may say postgresql://ann:c4n4ryS3CR3T@db/x
"""
DOOR = "127.0.0.1:9"
"""A port at which nobody answers."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep and its complete store."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "secrets.yaml").write_text(TEXT)
    sweep = load_sweep(folder / "secrets.yaml")
    store = Store(str(folder / "store"))
    record_sweep(sweep, make_plan(sweep), store)
    compute(sweep, store.uri)
    (folder / "data.yaml").write_text(TEXT.replace("digits, ", 'cifar10, root: "${PUREGRID_DATA}", ').split("#")[0])
    (folder / "train.yaml").write_text(
        "train: classifier\ndataset: {dataset: digits}\nclassifier: digits-cnn\nout: trained\n"
        "steps: 1\nbatch: 4\nlr: 0.001\n"
    )
    return folder


def search(folder: Path) -> list[str]:
    """Files that hold the canary, in whatever form, other than those that the test wrote."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and path.parent != folder:
            content = path.read_bytes()
            found += [str(path)] * any(form.encode() in content for form in (CANARY, ENCODED))
    return found


STORE = ("--store", "store")
COMMANDS: dict[str, tuple[int, tuple[str, ...], dict[str, str]]] = {
    "mlflow, a database": (
        1,
        ("track", "secrets.yaml", *STORE, "--mlflow", f"postgresql://ann:{CANARY}@{DOOR}/x"),
        {},
    ),
    "mlflow, a server": (0, ("run", "secrets.yaml", *STORE, f"--mlflow=http://ann:{CANARY}@{DOOR}"), {}),
    "mlflow, by the environment": (
        1,
        ("track", "secrets.yaml", *STORE),
        {"MLFLOW_TRACKING_URI": f"http://ann:{ENCODED}@{DOOR}"},
    ),
    "mlflow, which works": (
        0,
        ("track", "secrets.yaml", *STORE, "--mlflow", f"sqlite:///file:good.db?uri=true&password={CANARY}"),
        {},
    ),
    "mlflow, of a training": (1, ("train", "train.yaml", "--mlflow", f"mysql://ann:{CANARY}@{DOOR}/x"), {}),
    "store": (2, ("run", "secrets.yaml", "--store", f"s3://key:{CANARY}@bucket/x"), {}),
    "store, nested": (2, ("plan", "secrets.yaml", "--store", f"simplecache::s3://key:{CANARY}@bucket/x"), {}),
    "store, a parameter": (2, ("status", "secrets.yaml", "--store", f"memory://x?secret={CANARY}"), {}),
    "address": (1, ("run", "secrets.yaml", "--store", "fresh", "--address", f"ray://ann:{CANARY}@{DOOR}"), {}),
    "baseline": (2, ("check", "secrets.yaml", *STORE, "--baseline", f"s3://key:{CANARY}@bucket/x"), {}),
    "compare": (2, ("compare", "secrets.yaml", f"filecache::s3://key:{CANARY}@bucket", *STORE), {}),
    "data": (2, ("plan", "data.yaml", *STORE), {"PUREGRID_DATA": f"s3://key:{CANARY}@bucket/data"}),
    "an override": (2, ("plan", "secrets.yaml", *STORE, "--set", f"datasets.0.root=s3://k:{CANARY}@b"), {}),
    "an option that is not": (2, ("plan", "secrets.yaml", f"--sotre=s3://key:{CANARY}@bucket"), {}),
    "a sweep that is not": (2, ("plan", f"s3://key:{CANARY}@bucket/secrets.yaml"), {}),
}


ALONE = ("address", *(name for name in COMMANDS if name.startswith("mlflow")))
"""What starts something of others, or itself anew: a process from its beginning. All others are forks of one."""


@pytest.mark.parametrize(
    "alone",
    [
        pytest.param(("mlflow, which works",), marks=pytest.mark.slow),
        pytest.param(ALONE, marks=pytest.mark.nightly),
    ],
)
def test_no_command_prints_or_writes_it(folder: Path, alone: tuple[str, ...]) -> None:
    variables_of_users = ("MLFLOW_TRACKING_URI", "PUREGRID_DATA")
    clean = {name: value for name, value in os.environ.items() if name not in variables_of_users}
    clean |= {"PYTHONPATH": str(Path(__file__).parents[2]), "RAY_TMPDIR": str(folder / "ray")}
    said: dict[str, tuple[int, str]] = {}
    for what in alone:
        _, arguments, variables = COMMANDS[what]
        done = subprocess.run(
            [sys.executable, "-m", "workflows.cli", *arguments],
            cwd=folder,
            env={**clean, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        said[what] = done.returncode, done.stdout + done.stderr
    others = {what: case for what, case in COMMANDS.items() if what not in ALONE}
    with forks(folder, clean) as forked:
        found = forked.run([{"command": arguments, "env": env} for _, arguments, env in others.values()])
    said |= {what: (status, out + err) for what, (status, out, err) in zip(others, found, strict=True)}
    assert said.keys() == {*others, *alone} and set(alone) <= set(ALONE)
    wrong = [
        (what, status, text[-1500:])
        for what, (status, text) in said.items()
        if status != COMMANDS[what][0] or any(form in text for form in (CANARY, ENCODED, "Traceback"))
    ]
    assert not wrong
    assert not search(folder)
    assert (folder / "good.db").stat().st_size > 100_000  # the one that works did


def test_a_password_is_moved_from_the_command_line_to_the_environment() -> None:
    uri = f"postgresql://ann:{CANARY}@db/x"
    assert _without_password(["run", "x", "--mlflow", uri, "--json"]) == (["run", "x", "--json"], uri)
    assert _without_password(["run", f"--mlflow={uri}"]) == (["run"], uri)
    assert _without_password(["run", "--mlflow", "http://host:5000"]) is None
    assert _without_password(["run", "--mlflow"]) is None


@pytest.mark.parametrize(
    "entry",
    [
        "root: s3://key:{}@bucket/data",
        "root: simplecache::s3://key:{}@bucket/data",
        "root: 'https://host/x?sig={}'",
        "root: 's3%3A%2F%2Fkey%3A{}%40bucket'",
        "storage_options: {{key: a, secret: {}}}",
        "storage_options: {{aws_secret_access_key: {}}}",
        "options: [{{password: {}}}]",
        "token: {}",
    ],
)
def test_a_sweep_file_may_not_hold_one(entry: str, tmp_path: Path) -> None:
    """It would be in the store, in MLflow and in the report."""
    file = tmp_path / "s.yaml"
    file.write_text(f"sweep: s\ndatasets:\n- dataset: digits\n  {entry.format(CANARY)}\n")
    with pytest.raises(InvalidInput) as error:
        read_document(file)
    assert f"{file}:4" in str(error.value) and "credentials come from the environment" in str(error.value)
    assert CANARY not in str(error.value)


def test_a_sweep_from_python_may_not_either() -> None:
    with pytest.raises(InvalidInput, match="credentials come from the environment"):
        Sweep(
            datasets=[{"dataset": "digits", "root": f"s3://key:{CANARY}@bucket"}],
            classifiers=["digits-cnn"],
            defences=["none"],
            attacks=["none"],
        )


def test_the_text_that_is_recorded_of_a_sweep_holds_none_of_a_comment(folder: Path) -> None:
    sweep = load_sweep(folder / "secrets.yaml")
    assert "postgresql://...@db/x" in sweep.text and CANARY not in sweep.text
    (recorded,) = (folder / "store").glob("sweeps/*/sweep.yaml")
    assert recorded.read_text() == sweep.text


def test_failures_and_events_hold_none(folder: Path, tmp_path: Path) -> None:
    error = RuntimeError(f"cannot read s3://key:{CANARY}@bucket/x?token={CANARY}")
    assert CANARY not in one_line(error)
    sweep, store = load_sweep(folder / "secrets.yaml"), Store(str(tmp_path))
    plan = make_plan(sweep)
    record_failure(sweep, plan, store, Failure(Unit(0, 0), 3, str(error), f"Traceback\n{error}\n"))
    (failure,) = failures(sweep, store)
    assert failure.error == "cannot read s3://...@bucket/x?token=..." and not search(tmp_path)
    with log_to(tmp_path / "log"):
        log_event("died", error=str(error), units=3)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert json.loads(line)["error"] == failure.error and json.loads(line)["units"] == 3
    assert not logging.getLogger(LOGGER.name).handlers


def test_nothing_is_in_mlflow_of_a_sweep_of_before(folder: Path) -> None:
    """Where the command that works has run: tags, parameters and artifacts."""
    database = folder / "good.db"
    if not database.exists():
        pytest.skip("the slow test makes it")
    with sqlite3.connect(database) as connection:
        assert CANARY not in "\n".join(connection.iterdump())
