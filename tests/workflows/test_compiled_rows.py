"""Rows of compiled networks do not depend on who computed them, nor on who died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import psutil
import pytest
from helpers_small import compute
from lab import wait_for, workers_of
from naps import HERE, add_machine
from ray.cluster_utils import Cluster
from stored import attempts, data
from torch._dynamo.utils import counters
from typer.testing import CliRunner

from defense.compiled import missing_compiler
from workflows.cli import app
from workflows.grid.load import load_sweep
from workflows.store import Store

if TYPE_CHECKING:
    from s3_server import S3Server

SWEEP = """
sweep: compiled
datasets: [{dataset: digits, images: {first: 120}}]
classifiers: [digits-cnn]
denoisers:
  net: {format: "compiled_parts:NetConfig", schedule: linear-1000}
defences:
  - none
  - {purifier: diffpure, denoiser: net, schedule: linear-1000, t_star: 40, steps: 4, draws: 3}
attacks:
  - none
  - {attack: pgd, norm: linf, eps: 0.1, steps: 3}
  - {attack: pgd, norm: linf, eps: 0.1, steps: 3, gradient: exact, eot: 3}
chunk: 8
compute: {batch: 24, compile: default}  # a chunk's images x draws go through the networks at once
probe: false
"""
UNITS = 15 * (2 + 2 + 3)  # attacks; no defence and the purifier on two and three kinds of images


def _command(sweep: Path, store: str, workers: int, address: str) -> list[str]:
    where = ["--store", store, "--mlflow", "off", "--workers", str(workers), "--address", address]
    return ["run", str(sweep), "--no-preflight", *where]


@pytest.mark.nightly
@pytest.mark.skipif(missing_compiler() is not None, reason="there is no C++ compiler")
def test_compiled_rows_of_one_worker_of_two_and_of_killed_ones_are_those_of_no_worker(
    s3: S3Server, no_slots: Cluster, tmp_path: Path
) -> None:
    """In a bucket, where inputs are read and rows committed beside the computation, and with packed draws."""
    path = tmp_path / "compiled.yaml"
    path.write_text(SWEEP)
    counters.clear()
    compute(load_sweep(path), str(tmp_path / "calm"))
    assert counters["stats"]["unique_graphs"] >= 3  # of the denoiser one, of the classifier for both sizes of batches
    calm = Store(str(tmp_path / "calm"))
    expected = data(calm)
    assert len(attempts(calm)) == UNITS

    address = str(no_slots.address)
    with patch.dict(os.environ, {"PYTHONPATH": HERE, "PYTHONDONTWRITEBYTECODE": "1"}):
        node = add_machine(no_slots, 2, 60)

    alone = s3.new_bucket()
    made = CliRunner().invoke(app, _command(path, alone, 1, address))
    assert made.exit_code == 0, made.stderr
    assert data(Store(alone)) == expected

    uri = s3.new_bucket()
    store, command = Store(uri), _command(path, uri, 2, address)
    log = tmp_path / "events.jsonl"
    driver = subprocess.Popen(
        [sys.executable, "-m", "workflows.cli", *command, "--log", str(log)],
        env={**os.environ, "PYTHONPATH": HERE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def wait_for_commits(count: int) -> None:
        wait_for(lambda: len(s3.keys(uri, "commits/")) >= count, driver)

    wait_for_commits(1)
    workers_of(os.getpid())[0].send_signal(signal.SIGKILL)
    wait_for_commits(len(s3.keys(uri, "commits/")) + 8)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert not psutil.wait_procs(workers_of(os.getpid()), timeout=300)[1], "workers outlive their driver"
    assert log.read_text().count("worker_died") == 1
    before = attempts(store)
    assert 8 < len(before) < UNITS

    last = CliRunner().invoke(app, command)
    no_slots.remove_node(node)
    assert last.exit_code == 0, last.stderr
    assert f"{len(before)} committed, {UNITS - len(before)} to compute" in last.stderr
    assert data(store) == expected
    after = attempts(store)
    assert len(after) == UNITS and after.items() >= before.items()
