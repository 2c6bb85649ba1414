"""docs/api.md has every public name, names nothing else, and its code runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import puregrid

ROOT = Path(puregrid.__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_it_has_every_public_name() -> None:
    prose = re.sub(r"^```.*?^```$", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"\b\w+\b", " ".join(re.findall(r"`([^`]+)`", prose))))
    assert set(puregrid.__all__) - named == set()


def test_what_it_calls_public_is() -> None:
    first_columns = re.findall(r"^\| (`[^|]*) \|", PAGE, re.MULTILINE)
    names = {name for column in first_columns for name in re.findall(r"`([A-Za-z_]+)[`(]", column)}
    assert names <= set(puregrid.__all__)
    assert set(re.findall(r"\bpuregrid\.([A-Za-z_]+)", "".join(BLOCKS))) <= set(puregrid.__all__)


@pytest.mark.nightly
def test_its_code_runs_and_prints_what_it_says(tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text("\n".join(BLOCKS))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = re.findall(r"^print\(.*\)\s+# (.*)$", "\n".join(BLOCKS), re.MULTILINE)
    assert len(said) >= 4
    for line in said:
        assert line in done.stdout, line
    assert (tmp_path / "report.html").exists()
