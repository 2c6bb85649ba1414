"""`deploy/regression.sh`: the sweep in a store of this week, then the verdict, whose status is the script's."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "regression.sh"


def call(tmp_path: Path, run: int = 0, check: int = 0) -> tuple[int, list[str]]:
    """Exit status of the script and the commands that it ran, with a `puregrid` that ends as told."""
    stub = tmp_path / "puregrid"
    stub.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncase $1 in run) exit {run};; check) exit {check};; esac\n'
    )
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = [SCRIPT, "a sweep.yaml", "s3://b/p", "s3://b/baseline", "--workers", "2"]
    status = subprocess.run(words, env=environment, timeout=30).returncode
    return status, (tmp_path / "calls").read_text().splitlines()


def test_it_runs_in_a_store_of_this_week_and_checks_that_store(tmp_path: Path) -> None:
    year, week, _ = datetime.now(UTC).isocalendar()
    store = f"s3://b/p/{year}-W{week:02}"
    assert call(tmp_path) == (
        0,
        [
            f"run a sweep.yaml --store {store} --workers 2",
            f"check a sweep.yaml --store {store} --baseline s3://b/baseline",
        ],
    )


@pytest.mark.parametrize("status", [1, 2])
def test_the_verdict_is_its_status(tmp_path: Path, status: int) -> None:
    assert call(tmp_path, check=status)[0] == status


def test_an_incomplete_sweep_is_not_judged(tmp_path: Path) -> None:
    status, calls = call(tmp_path, run=1)
    assert status == 1 and len(calls) == 1
