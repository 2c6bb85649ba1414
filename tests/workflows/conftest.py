"""The S3 server that the suites of the store share, and the Ray cluster of those that start workers."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from naps import SharedRay
    from ray.cluster_utils import Cluster
    from s3_server import S3Server


@pytest.fixture(scope="session")
def _s3_session() -> Iterator[S3Server]:
    from s3_server import S3Server

    server = S3Server()
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture
def s3(_s3_session: S3Server) -> Iterator[S3Server]:
    """A local S3 server whose address and credentials are in the environment; its weaknesses end with the test."""
    yield _s3_session
    _s3_session.conditional = True
    _s3_session.answer = lambda method, path: None


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system of 128 KiB in memory, and how to make it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str, *options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *options)), "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    def resize(size: str) -> None:
        assert mount(size, "remount") == 0

    if mount("128k"):
        pytest.skip("only who may mount a small file system can fill it")
    yield folder, resize
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of the naps; workers find their module."""
    path = tmp_path / "naps.log"
    path.touch()
    monkeypatch.setenv("NAPS_LOG", str(path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return path


@pytest.fixture(scope="session")
def mlflow_tables() -> Iterator[None]:
    """MLflow makes its tables once in this process, by fifty migrations in a second; later databases are copies."""
    import sqlite3

    from mlflow.store.db import utils

    made, real = sqlite3.connect(":memory:", check_same_thread=False), utils._initialize_tables

    def initialize(engine: Any) -> None:
        if engine.dialect.name != "sqlite" or not utils._is_empty_database(engine):
            real(engine)
            return
        with contextlib.closing(engine.raw_connection()) as connection:
            database = connection.driver_connection
            if not made.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                real(engine)
                database.backup(made)
            made.backup(database)

    with contextlib.closing(made), pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", initialize)
        yield


@pytest.fixture(scope="session")
def _shared_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedRay]:
    from naps import SharedRay

    shared = SharedRay(tmp_path_factory.mktemp("ray"))
    yield shared
    shared.close()


@pytest.fixture
def two_slots(_shared_ray: SharedRay) -> SharedRay:
    """A Ray cluster with two slots on one node; runs join it by its address."""
    return _shared_ray.two_slots()


@pytest.fixture
def no_slots(_shared_ray: SharedRay) -> Cluster:
    """A Ray cluster without a slot; tests add nodes, and take them away."""
    return _shared_ray.no_slots()
