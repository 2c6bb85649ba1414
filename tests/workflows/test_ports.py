"""The ports of a run: on the loopback interface alone, and shut to whoever has no token.

One real run, whose processes are looked at while it computes: with a HOME that cannot be written to, as a bonus.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import psutil
import pytest
from heads import below
from lab import Lab, wait_for, workers_of

from defense.errors import InvalidInput
from workflows.engine.cluster import cluster
from workflows.engine.cluster.private import check_token, private

SWEEP = """
sweep: ports
datasets: [{dataset: digits, images: {first: 40}}]
classifiers: [digits-cnn]
defences: ["unruly:UnrulyConfig"]
attacks: [none]
chunk: 10
compute: {batch: 10}
probe: false  # what is counted is what it is made for
"""

SERVICES = {
    "gcs_server": "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "raylet": "/ray.rpc.NodeManagerService/GetNodeStats",
    "ray::UnitWorker": "/ray.rpc.CoreWorkerService/Exit",
}
"""Of each kind of process a call that does something."""


class Socket(NamedTuple):
    process: str
    host: str
    port: int


def session_of(driver: int) -> Path | None:
    for process in below(driver):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if words and words[0].endswith("gcs_server"):
            return next(Path(word.partition("=")[2]) for word in words if word.startswith("--session-dir="))
    return None


def members(driver: int, session: Path) -> dict[int, psutil.Process]:
    """The driver, all below it, and whoever on this machine names the session in its command or environment."""
    found = {process.pid: process for process in below(driver)}
    for process in psutil.process_iter():
        try:
            said = [*process.cmdline(), *process.environ().values()]
        except (psutil.Error, OSError):
            continue
        if any(session.name in word for word in said):
            found[process.pid] = process
    return found


def listening(processes: dict[int, psutil.Process]) -> Iterator[Socket]:
    for process in processes.values():
        try:
            name = " ".join(process.cmdline()) or process.name()
            sockets = process.net_connections(kind="inet")
        except psutil.Error:
            continue
        for each in sockets:
            if each.status == psutil.CONN_LISTEN or (each.status == psutil.CONN_NONE and each.laddr):
                yield Socket(name, each.laddr.ip, each.laddr.port)


def is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def answer(port: int, method: str, token: str | None) -> grpc.StatusCode:
    """How a server answers a call of no content."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
    try:
        call(b"", timeout=300, metadata=[("authorization", f"Bearer {token}")] if token else None)
    except grpc.RpcError as error:
        return error.code()
    finally:
        channel.close()
    return grpc.StatusCode.OK


@pytest.mark.slow
def test_no_port_of_a_run_is_reached_from_outside_or_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_folder = tmp_path / "home"
    no_folder.write_text("not a folder")
    monkeypatch.setenv("HOME", str(no_folder))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a run has a token all the same
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    lab = Lab(tmp_path, "store", orders="wait:0", sweep=SWEEP)  # until all is looked at
    run = lab.start(2)
    try:
        wait_for(lambda: lab.log.read_text(), run)
        session = session_of(run.pid)
        assert session is not None
        wait_for(lambda: "ray::DashboardAgent" in str([*listening(members(run.pid, session))]), run)
        sockets = list(listening(members(run.pid, session)))
        kinds = {kind: [each for each in sockets if kind in each.process.split(" --")[0]] for kind in SERVICES}
        assert all(kinds.values()), sockets  # of the workers those that compute
        assert [each for each in sockets if not is_loopback(each.host)] == []

        token = workers_of(run.pid)[0].environ()["RAY_AUTH_TOKEN"]
        assert len(token) == 64
        for kind, method in SERVICES.items():
            for each in kinds[kind]:
                refused = [answer(each.port, method, wrong) for wrong in (None, "0" * 64)]
                # With the token last: a worker that is told to exit may do so.
                if answer(each.port, method, token) == grpc.StatusCode.UNIMPLEMENTED:
                    continue  # the raylet's other port, that of the object manager
                assert refused == [grpc.StatusCode.UNAUTHENTICATED] * 2, each
        assert stat.S_IMODE(os.stat(session).st_mode) == 0o700
        for text in session.rglob("*"):  # the token is in no log
            if text.is_file():
                assert token.encode() not in text.read_bytes(), text
    finally:
        lab.log.with_suffix(".go").touch()
        _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert "run: 4 units" in err
    assert no_folder.read_text() == "not a folder"


class TestTokens:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        return tmp_path

    def test_a_run_has_a_token_of_its_own_and_leaves_the_environment_as_it_was(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        tokens = []
        for _ in range(2):
            with private():
                tokens.append(os.environ["RAY_AUTH_TOKEN"])
                assert os.environ["RAY_AUTH_MODE"] == "token"
            assert os.environ["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in os.environ
        assert len(set(tokens)) == 2 and {len(token) for token in tokens} == {64}
        assert list(home.iterdir()) == []

    @pytest.mark.parametrize("name", ["", "nowhere", "folder", "pipe", "empty", "a" * 300])
    def test_a_token_that_is_named_must_be_there(
        self, name: str, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (home / "folder").mkdir()
        (home / "empty").touch()
        os.mkfifo(home / "pipe")
        (home / "token").write_text("f" * 64)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / name) if name else "")
        if not name:  # as Ray: as if it were not set
            with private():
                assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
            return
        with pytest.raises(InvalidInput, match=r"^RAY_AUTH_TOKEN_PATH: .* is no file with a token"), private():
            pass
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))
        with private():
            assert "RAY_AUTH_TOKEN" not in os.environ

    def test_a_token_that_others_can_read_is_closed(self, home: Path) -> None:
        token = home / ".ray" / "auth_token"
        token.parent.mkdir(mode=0o755)
        token.write_text("f" * 64)
        token.chmod(0o644)
        check_token()
        assert stat.S_IMODE(token.stat().st_mode) == 0o600 and stat.S_IMODE(token.parent.stat().st_mode) == 0o700

    def test_a_cluster_that_asks_for_a_token_needs_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        for home in ("", "/dev/null", "/nonexistent"):
            monkeypatch.setenv("HOME", home)
            with pytest.raises(InvalidInput, match="asks for a token and there is none"), cluster(1, "127.0.0.1:1"):
                pass
