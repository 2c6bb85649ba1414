"""Mistakes in shipped sweeps, a thousand each night: no traceback, no hang, no full memory, and the right lines.

Run ``python tests/workflows/fuzz_sweeps.py SEED COUNT`` (with the repository on ``PYTHONPATH``) for others.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import _KINDS, mistake, originals

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.parametrize(
    "count", [pytest.param(100, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.nightly)]
)
def test_mistakes_are_refused_at_their_line(count: int) -> None:
    """All in one process with a limit of memory; see :mod:`mutations` for what the right line of each is."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PUREGRID_")}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "fuzz_sweeps.py"), "7", str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["failures"] == []
    assert found["taken"] + found["refused"] == count and found["refused"] >= 0.7 * count
    assert found["slowest"] < 10
    assert found["megabytes"] < 1000
    assert found["wrong"] <= 0.03 * found["refused"], found["examples"]


def test_mistakes_are_of_all_kinds_and_come_again_with_their_seed() -> None:
    texts = originals(ROOT / "workflows" / "sweeps")
    assert len(texts) >= 15
    made = [mistake(texts[0], random.Random(seed)) for seed in range(200)]
    assert {one.kind for one in made} == set(_KINDS)
    assert made == [mistake(texts[0], random.Random(seed)) for seed in range(200)]
    assert all(one.data != texts[0].encode() and one.lines for one in made)
