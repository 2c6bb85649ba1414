"""Ray heads that are processes of their own, as `ray start` makes them, for tests and benchmarks that kill them.

Each has its own folder, ports and token, so several may live on one machine. Nothing but its own processes is ended:
`ray stop`, and so `ray.cluster_utils.AutoscalingCluster`, would end every Ray process of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import psutil

RAY = str(Path(sys.executable).parent / "ray")
STORE_BYTES = 80 * 1024**2
FIRST_NODE = "f" * 51 + "00000"
"""The id that Ray's provider of fake nodes gives the head; the others count up from it."""


def free_port() -> int:
    """One that no other program is given meanwhile."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True)
class Head:
    """A head that runs.

    Arguments:
        address: For ``--address``.
        process: ``ray start --block``.
    """

    address: str
    process: subprocess.Popen[bytes]

    def parts(self, name: str) -> list[psutil.Process]:
        """Its processes of a name: ``gcs_server``, or one ``raylet`` a node that runs on this machine."""
        return [each for each in below(self.process.pid) if _name(each) == name]


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.name())
    return ""


@contextlib.contextmanager
def head(
    cpus: int = 0, *, ip: str = "127.0.0.1", grows_to: int = 0, inside: Sequence[str] = (), **environment: str
) -> Iterator[Head]:
    """Start a head; its token is in ``os.environ`` inside the block.

    Arguments:
        cpus: What it takes itself.
        ip: The address that it has.
        grows_to: Nodes of one CPU that the autoscaler may start, and ends when they were idle for six seconds.
        inside: Command that runs it, such as ``ip netns exec NAME``.
        environment: Further variables of the head.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets have paths of 107 bytes at most
    port = free_port()
    both = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Else Ray turns 127.0.0.1 into the address by which this machine reaches others.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1" if inside else "0",
    }
    own = {"RAY_USAGE_STATS_ENABLED": "0", **environment}
    command = [
        *(*inside, RAY, "start", "--head", "--block", "--include-dashboard=false", f"--temp-dir={folder}"),
        *(f"--node-ip-address={ip}", f"--port={port}", f"--ray-client-server-port={free_port()}"),
        *(f"--num-cpus={cpus}", f"--object-store-memory={STORE_BYTES}"),
    ]
    if grows_to:
        settings = folder / "autoscaler.yaml"
        settings.write_text(json.dumps(_autoscaler(f"{ip}:{port}", grows_to)))
        command.append(f"--autoscaling-config={settings}")
        own |= {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",  # as `ray up` and KubeRay
            "RAY_CLOUD_INSTANCE_ID": FIRST_NODE,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FIRST_NODE,
        }
    log = folder / "head.log"
    with log.open("wb") as file, patch.dict(os.environ, both):
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=file, stderr=file)
        known: set[psutil.Process] = set()
        try:
            end = time.monotonic() + 300
            while "block forever" not in log.read_text():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the head did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.1)
            known |= below(process.pid)
            yield Head(f"{ip}:{port}", process)
        finally:
            known |= below(process.pid)
            end_all(known)
            process.wait(30)
            shutil.rmtree(folder, ignore_errors=True)


def below(pid: int) -> set[psutil.Process]:
    """A process and all that it has started, as far as they live."""
    with contextlib.suppress(psutil.NoSuchProcess):
        own = psutil.Process(pid)
        return {own, *own.children(recursive=True)}
    return set()


def end_all(processes: set[psutil.Process]) -> None:
    """SIGTERM, and SIGKILL for what is still there after some seconds; processes that have ended are left alone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=8)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _autoscaler(address: str, nodes: int) -> dict[str, object]:
    """Ray's own provider of fake nodes; as an external one, since Ray's wheel lacks the defaults of the other."""
    return {
        "cluster_name": "fake",
        "max_workers": nodes,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": FIRST_NODE,
            "launch_multiple": True,
            "gcs_address": address,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": nodes,
            },
        },
        "auth": {},
        **{name: [] for name in ("cluster_synced_files", "setup_commands", "initialization_commands")},
        **{name: [] for name in ("head_setup_commands", "worker_setup_commands")},
        **{name: [] for name in ("head_start_ray_commands", "worker_start_ray_commands")},
        "file_mounts": {},
    }
