"""The script that measures GPUs runs on a processor in all its parts, with nothing but torch and ``defense``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FOREIGN = (
    "import sys; sys.modules.update(dict.fromkeys(['ray', 'mlflow', 'pandas', 'tasks', 'workflows', 'diffusers']))"
)


@pytest.mark.nightly
def test_all_parts_run_on_a_processor_and_noise_has_its_kept_bits(tmp_path: Path) -> None:
    script = f"{FOREIGN}; import runpy; runpy.run_path('benchmarks/gpu.py', run_name='__main__')"
    command = [sys.executable, "-c", script, "--tiny", "--json", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["part"] for row in rows} == {
        "ceiling", "noise", "step", "gradient", "packing", "guided", "accuracy"
    }  # fmt: skip
    (bits,) = (row for row in rows if row["name"] == "bits as kept")
    assert bits["equal"] is True
    faster = {row["name"]: row["times_faster"] for row in rows if row["part"] == "step"}
    assert len(faster) == 3 and faster["batch 2, as it was"] == 1


@pytest.mark.slow
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2 and "--tiny runs all of it on a processor" in done.stderr
