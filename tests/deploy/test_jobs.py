"""`ray job submit`: what is uploaded, and a real job on a real cluster of one machine."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from workflows.engine.worker import UnitWorker
from workflows.grid.load import load_sweep
from workflows.planning.plan import make_plan

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PACKAGES = ("defense", "tasks", "workflows")

TINY = [
    "datasets.0.images.first=12",
    "defences.1.t_star=[10]",
    "defences.1.steps=2",
    "attacks.1.eps=[0.1]",
    "attacks.1.steps=2",
]


# What docs/cluster.md says for a sweep that needs two of the built-in models.
FEW = [
    *("defense", "puregrid", "tasks", "workflows", ":!puregrid/testing"),
    *(":!defense/assets/digits-[aefgmt]*", ":!defense/assets/digits-co*"),
]


def packed(target: Path) -> Path:
    """The archive that docs/cluster.md has a job submitted with."""
    command = ["git", "archive", "--output", "job.zip", "HEAD", *FEW]
    assert shlex.join(command) in (ROOT / "docs" / "cluster.md").read_text()
    command[3] = str(target)
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    return target


def uploaded(folder: Path, target: Path, environment: str = "{}") -> dict[str, int]:
    """Files that ``--working-dir FOLDER`` uploads, and the bytes that each takes: Ray's archive is not compressed."""
    excludes = get_runtime_env_default_excludes() + json.loads(environment).get("excludes", [])
    create_package(str(folder), target, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(target) as archive:
        return {file.filename: file.compress_size for file in archive.infolist() if not file.is_dir()}


def sources() -> set[str]:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    # Runs are compared with baselines where their results are read, and no job does so.
    return {name for name in names if not name.startswith("workflows/sweeps/baselines/")}


class TestUpload:
    @pytest.mark.slow
    def test_the_repository_is_complete_and_small_beside_its_built_in_models(self, tmp_path: Path) -> None:
        sizes = uploaded(ROOT, tmp_path / "upload.zip")
        assert sources() <= sizes.keys()
        assert not [name for name in sizes if name.split("/")[0] in ("tests", "docs", "benchmarks", ".venv", ".git")]
        built_in = sum(size for name, size in sizes.items() if name.startswith("defense/assets/"))
        assert sum(sizes.values()) - built_in < 5_000_000
        assert sum(sizes.values()) < 10_000_000

    @pytest.mark.slow
    def test_a_job_that_names_the_models_that_it_needs_is_smaller_by_the_others(self, tmp_path: Path) -> None:
        archive = packed(tmp_path / "job.zip")
        with zipfile.ZipFile(archive) as file:
            names = {name for name in file.namelist() if not name.endswith("/")}
        kept = {"/".join(Path(name).parts[:3]) for name in names if name.startswith("defense/assets/")}
        # Noise is made of a table, and a purifier reads the statistics of a denoiser: no models.
        tables = {"defense/assets/noise", "defense/assets/score-references"}
        assert kept - tables == {"defense/assets/digits-cnn", "defense/assets/digits-ddpm"} and tables <= kept
        left_out = ("defense/assets/", "puregrid/testing/")
        assert {name for name in sources() if not name.startswith(left_out)} <= names
        assert archive.stat().st_size < 5_000_000

    def test_what_lies_around_in_a_checkout_stays_here(self, tmp_path: Path) -> None:
        here = tmp_path / "checkout"
        here.mkdir()
        for name in (".gitignore", ".rayignore"):
            shutil.copy(ROOT / name, here)
        around = [
            ".venv/lib/torch.so",
            ".git/objects/pack",
            "data/cifar-10-batches-py/test_batch",
            "weights/resnet20.th",
            "results/rows/evaluate/0/1.parquet",
            "results-old/commits/evaluate/0/1.json",
            "mlruns/0/meta.yaml",
            "mlflow.db",
            "mine/model.pt",
            "tests/test_x.py",
        ]
        needed = ["workflows/sweeps/mine.yaml", "mine.yaml", "mine/plugin.py", "defense/assets/x/weights.safetensors"]
        for name in around + needed:
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_text("x")
        assert uploaded(here, tmp_path / "upload.zip").keys() == {*needed, ".gitignore", ".rayignore"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """Dashboard address and environment of a cluster that only this test sees; its own token, folder and ports."""
    # Ray's sockets lie below it, and the path of a socket has 107 characters at most: pytest's folders are too deep.
    home = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **inherited,
        "HOME": str(home),
        "RAY_TMPDIR": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}:{inherited['PATH']}",
    }
    port = free_port()
    options = {
        "--node-ip-address": "127.0.0.1",
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": port,
        "--port": free_port(),
        "--ray-client-server-port": free_port(),
        "--dashboard-agent-listen-port": free_port(),
        "--metrics-export-port": free_port(),
        "--num-cpus": 1,
        "--object-store-memory": 100_000_000,
    }
    command = ["ray", "start", "--head", "--block", *(f"{name}={value}" for name, value in options.items())]
    with (home / "log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert head.poll() is None, (home / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=5)
            except HTTPError:  # it is up, and asks for the token
                break
            except OSError:
                time.sleep(0.5)
        yield address, environment
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(300)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.nightly
def test_a_submitted_sweep_commits_the_rows_of_a_local_one(
    cluster: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, environment = cluster
    with pytest.raises(HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/api/version", timeout=30)

    store, local = tmp_path / "job", tmp_path / "local"
    overrides = [word for each in TINY for word in ("--set", each)]
    sweep = "workflows/sweeps/quickstart.yaml"
    script = f"""
import workflows
print("code from", workflows.__file__)
import sys; from workflows.cli import main
sys.argv[1:] = {["run", sweep, "--store", str(store), "--address", "auto", "--mlflow", "off", *overrides]!r}
main()
"""
    command = ["ray", "job", "submit", "--address", address, "--working-dir", str(packed(tmp_path / "job.zip"))]
    result = subprocess.run(
        [*command, "--", "python", "-c", script], env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    # The code that was uploaded ran, not the one that happens to be installed on the node.
    assert "/working_dir_files/_ray_pkg_" in result.stdout.partition("code from ")[2].splitlines()[0]

    worker, plan = UnitWorker(str(local), "cpu"), make_plan(load_sweep(ROOT / sweep, TINY))
    for stage in plan.stages:
        inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
        for chunk in stage.chunks:
            worker.run(stage.spec, stage.id, chunk, inputs)
    rows = sorted(path.relative_to(local) for path in (local / "rows").rglob("*.parquet"))
    assert len(rows) == plan.units == 5
    assert rows == sorted(path.relative_to(store) for path in (store / "rows").rglob("*.parquet"))
    assert all((local / path).read_bytes() == (store / path).read_bytes() for path in rows)
