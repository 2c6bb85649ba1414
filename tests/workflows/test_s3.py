"""Stores in a bucket of a real S3 server: races of real processes, outages, refusals, and a whole sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import psutil
import pytest
from helpers_small import compute
from lab import wait_for, workers_of
from naps import add_machine
from ray.cluster_utils import Cluster
from stored import attempts, data
from typer.testing import CliRunner

from defense.errors import InvalidInput
from tasks.stages import Chunk
from workflows.cli import app
from workflows.grid.load import load_sweep
from workflows.store import FsspecFiles, Store, StoreUnavailable, outage
from workflows.store.outage import PATIENCE

if TYPE_CHECKING:
    from s3_server import S3Server

HERE = Path(__file__).parent


def forget_connections() -> None:
    """Let the next use of S3 ask the environment anew."""
    import s3fs  # which takes half a second; only these tests need it

    s3fs.S3FileSystem.clear_instance_cache()


TURNS = 10
WRITER = """
import sys, time
from tasks.stages import Chunk
from test_store import SPEC, ID, output, record
from workflows.store import Store
name, shift, turns, *uris = sys.argv[1:]
stores = [Store(uri) for uri in uris]
for store in stores:
    store.files.exclusive  # asked before the race
print("ready", flush=True)
sys.stdin.readline()
for turn in range(int(turns)):
    made = output(shift=float(shift) if turn % 2 else 0.0)  # equal bytes and, as on other hardware, other ones
    for store in stores:
        time.sleep(0.002 * (turn % 5) if name == "one" else 0)
        print(store.commit(SPEC, ID, Chunk((turn, 100, 200)), made, record(name)).attempt, flush=True)
"""


@pytest.mark.slow
def test_of_two_processes_that_write_one_unit_one_wins_and_its_data_is_the_only_one(
    s3: S3Server, tmp_path: Path
) -> None:
    from test_store import ID, output

    uris = [str(tmp_path), s3.new_bucket()]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}"}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, name, shift, str(TURNS), *uris],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name, shift in (("one", "0"), ("two", "0.25"))
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    returned = [writer.communicate(timeout=300)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert returned[0] == returned[1] and len(returned[0]) == 2 * TURNS

    for position, store in enumerate(map(Store, uris)):
        names = [store.files.names(f"{folder}/{ID}") for folder in ("rows/evaluate", "adversarial")]
        assert [len(each) for each in names] == [TURNS, TURNS]
        for turn in range(TURNS):
            unit = ("evaluate", ID, Chunk((turn, 100, 200)).name)
            commit, attempt = store.committed(*unit), returned[0][2 * turn + position]
            assert commit is not None and commit.attempt == attempt
            assert store.problem(*unit) is None
            expected = output(shift=0.25 if attempt == "two" and turn % 2 else 0.0).rows
            assert store.read_rows(*unit).replace_schema_metadata(None).equals(expected)


@pytest.mark.slow
def test_a_server_that_ignores_the_condition_is_found_out_and_every_row_still_matches_its_commit(
    s3: S3Server,
) -> None:
    from test_store import ID, SPEC, output, record

    uri = s3.new_bucket()
    assert Store(uri).files.exclusive
    s3.conditional = False
    stores = [Store(uri) for _ in range(4)]
    assert not any(store.files.exclusive for store in stores)
    for turn in range(6):
        chunk, barrier, returned = Chunk((turn, 100, 200)), threading.Barrier(4), []

        def write(
            number: int, chunk: Chunk = chunk, barrier: threading.Barrier = barrier, returned: list[Any] = returned
        ) -> None:
            barrier.wait()
            made = output(shift=0.1 * number)
            returned.append(stores[number].commit(SPEC, ID, chunk, made, record(str(number))))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        unit = ("evaluate", ID, chunk.name)
        last = stores[0].committed(*unit)
        # Several may be told that they won, but the commit that stays is of one of them, with that one's data.
        assert last is not None and last in returned and stores[0].problem(*unit) is None
        rows = stores[0].read_rows(*unit).replace_schema_metadata(None)
        assert rows.equals(output(shift=0.1 * int(last.attempt)).rows)


def test_a_write_costs_one_put_and_no_look(s3: S3Server) -> None:
    files = FsspecFiles(s3.new_bucket())
    assert files.exclusive
    s3.requests.clear()
    assert files.create("commits/a.json", b"1")
    files.write("rows/a.parquet", b"1")
    assert s3.requests == {"PUT": 2}


@pytest.mark.slow
def test_an_outage_is_waited_out_reported_and_recorded(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from test_store import CHUNK, ID, SPEC, UNIT, output, record

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore waits a little too: not here
    forget_connections()
    store = Store(s3.new_bucket())
    assert store.files.exclusive
    s3.stop()  # connections are refused
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            s3.start()

    monkeypatch.setattr(outage, "time", SimpleNamespace(monotonic=time.monotonic, sleep=wait))
    found = store.commit(SPEC, ID, CHUNK, output(), record())
    assert waits[:2] == [0.5, 1]
    assert store.problem(*UNIT) is None and store.committed(*UNIT) == found
    messages = [each.getMessage() for each in caplog.records if each.name == "workflows.store.outage"]
    forget_connections()
    assert store.uri in messages[0] and "does not answer" in messages[0] and "answers again" in messages[-1]


@pytest.mark.slow
def test_a_server_that_says_later_is_asked_again_and_the_commit_says_for_how_long(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_store import CHUNK, ID, ROWS_PATH, SPEC, output, record

    store = Store(s3.new_bucket())
    assert store.files.exclusive
    refused: list[str] = []

    def conflict(method: str, path: str) -> int | None:
        if method == "PUT" and path.endswith(ROWS_PATH) and len(refused) < 2:
            refused.append(path)
            return 409
        return None

    s3.answer = conflict
    began = time.monotonic()
    found = store.commit(SPEC, ID, CHUNK, output(), record())
    assert len(refused) == 2
    # Two waits, of 0.5 and 1 s.
    assert 1.4 < found.notes["store_outage_seconds"] < time.monotonic() - began + 0.1
    assert store.committed("evaluate", ID, CHUNK.name) == found
    again = store.commit(SPEC, ID, Chunk((1, 2, 3)), output(), record())
    assert "store_outage_seconds" not in again.notes


@pytest.mark.slow
def test_a_longer_outage_is_an_error_that_says_where_and_leaves_nothing_half_done(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_store import CHUNK, ID, SPEC, UNIT, output, record

    monkeypatch.setenv(PATIENCE, "1")
    store = Store(s3.new_bucket())
    assert store.files.exclusive
    s3.answer = lambda method, path: 409 if "/commits/" in path and method == "PUT" else None
    with pytest.raises(StoreUnavailable, match=r"did not answer for \d+ s .*commits/") as error:
        store.commit(SPEC, ID, CHUNK, output(), record())
    assert store.uri in str(error.value) and "Run the same command again" in str(error.value)
    s3.answer = lambda method, path: None
    assert store.committed(*UNIT) is None and store.committed_chunks("evaluate", ID) == set()
    assert store.commit(SPEC, ID, CHUNK, output(), record("next")).attempt == "next"
    assert store.problem(*UNIT) is None and len(store.files.names(f"rows/evaluate/{ID}")) == 1


def test_a_refusal_is_not_waited_out(s3: S3Server) -> None:
    files = FsspecFiles(s3.new_bucket())
    s3.answer = lambda method, path: 403
    began = time.monotonic()
    for operation in (lambda: files.write("f", b"1"), lambda: files.read("f"), lambda: files.names("")):
        with pytest.raises(StoreUnavailable, match=r"refuses .*Check credentials") as error:
            operation()
        assert files.uri in str(error.value)
    with pytest.raises(InvalidInput, match=r"--store: store s3://.* refuses"):
        files.check()
    assert time.monotonic() - began < 50  # an outage of each is waited out for 60 s


def test_a_missing_bucket_is_reported_and_never_made(s3: S3Server) -> None:
    FsspecFiles(s3.new_bucket()).check()
    files = FsspecFiles("s3://no-such-bucket/store")
    for operation in (files.check, lambda: files.write("f", b"1"), lambda: files.create("f", b"1")):
        with pytest.raises(InvalidInput, match="no-such-bucket/store: there is no such bucket"):
            operation()
    assert "no-such-bucket" not in [bucket["Name"] for bucket in s3.client().list_buckets()["Buckets"]]


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidInput, match="come from the environment") as error:
        FsspecFiles("s3://key:hunter2@bucket/store")
    assert "hunter2" not in str(error.value)


@pytest.mark.slow
def test_no_credentials_is_an_error_that_says_where_they_come_from(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = s3.new_bucket()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.aws either
    forget_connections()
    with pytest.raises(InvalidInput, match=r"--store: store s3://.*redentials.*AWS_\*"):
        FsspecFiles(uri).check()
    forget_connections()


@pytest.mark.slow
def test_a_stage_of_many_pages_is_listed_by_pages_and_not_by_files(s3: S3Server) -> None:
    uri = s3.new_bucket()
    bucket, prefix = uri.removeprefix("s3://").split("/", 1)
    names = [f"{number:07d}.json" for number in range(2010)]  # a page holds 1,000
    s3.fill(bucket, [f"{prefix}/commits/evaluate/x/{name}" for name in names], b"{}")
    s3.requests.clear()
    assert Store(uri).committed_chunks("evaluate", "x") == {name.removesuffix(".json") for name in names}
    assert s3.requests == {"GET": 3}


# A whole sweep. The README's, on fewer images, so that it takes seconds.
SETTINGS = ["datasets.0.images.first=20", "chunk=5", "defences.1.steps=2", "defences.1.draws=2", "attacks.1.steps=2"]
UNITS = 4 * (3 + 3 * 4)  # chunks x (three budgets; three defences on four kinds of images)
SWEEP = HERE.parents[1] / "workflows" / "sweeps" / "quickstart.yaml"


def _command(store: str, address: str) -> list[str]:
    where = ["--store", store, "--mlflow", "off", "--workers", "2", "--address", address]
    return ["run", str(SWEEP), *where, *(part for setting in SETTINGS for part in ("--set", setting))]


def _puregrid(command: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "workflows.cli", *command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    "killed", [pytest.param(False, marks=pytest.mark.slow), pytest.param(True, marks=pytest.mark.nightly)]
)
def test_the_quickstart_in_a_bucket_killed_damaged_cut_off_and_resumed_has_the_rows_of_a_folder(
    killed: bool, s3: S3Server, no_slots: Cluster, tmp_path: Path
) -> None:
    compute(load_sweep(SWEEP, SETTINGS), str(tmp_path))  # on this disk, one unit after the other, without Ray
    uri = s3.new_bucket()
    store, command = Store(uri), _command(uri, str(no_slots.address))
    with patch.dict(os.environ, {PATIENCE: "4"}):  # of the workers; the address of the server is there already
        node = add_machine(no_slots, 2, 50)
    before: dict[str, str] = {}
    if killed:  # by day test_chaos.py kills drivers, on a disk
        driver = _puregrid(command)
        wait_for(lambda: len(s3.keys(uri, "commits/")) >= 15, driver)
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
        assert not psutil.wait_procs(workers_of(os.getpid()), timeout=300)[1], "workers outlive their driver"
        before = attempts(store)
        assert 15 <= len(before) < UNITS

    # Now the server goes away for longer than the run is willing to wait.
    resumed = _puregrid(command, **{PATIENCE: "4"})
    wait_for(lambda: len(s3.keys(uri, "commits/")) >= len(before) + 8, resumed)
    s3.answer = lambda method, path: 409
    _, err = resumed.communicate(timeout=300)
    s3.answer = lambda method, path: None
    assert resumed.returncode == 1 and "did not answer for" in err and uri in err, err
    assert "Traceback" not in err
    assert f"{len(before)} committed" in err
    middle = attempts(store)
    assert len(before) + 8 <= len(middle) < UNITS and middle.items() >= before.items()
    assert not [key for key in s3.keys(uri, "sweeps/") if "/failures/" in key]  # it was nobody's fault

    # A committed file that is damaged in the bucket is found by its hash and computed again.
    victim = next(path for path in sorted(data(store)) if path.startswith("rows/"))
    store.files.write(victim, store.files.read(victim)[:-5] + b"12345")
    last = CliRunner().invoke(app, command)
    no_slots.remove_node(node)
    err = last.stderr
    assert last.exit_code == 0, err
    assert f"was committed, but {victim} has sha256" in err and "it is computed again" in err
    assert f"{len(middle) - 1} committed, {UNITS - len(middle) + 1} to compute" in err
    assert data(store) == data(Store(str(tmp_path)))
    after = attempts(store)
    assert len(after) == UNITS
    assert sum(after[unit] != attempt for unit, attempt in middle.items()) == 1
