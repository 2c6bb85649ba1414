"""What the command line imports before it answers, and how long that takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from seconds import slowness

import puregrid

ROOT = Path(puregrid.__file__).parents[1]
HEAVY = {"torch", "ray", "pandas", "mlflow", "numpy", "scipy", "pyarrow"}
CODE = """
import sys
from puregrid.cli import main
sys.argv[:] = ["puregrid", *sys.argv[1:]]
try:
    main()
finally:
    print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


def modules(*words: str) -> tuple[str, set[str], int]:
    """What a command prints, and the modules it ends with: top-level ones, and how many lines of them."""
    command = [sys.executable, "-c", CODE, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    names = set(done.stderr.split())
    return done.stdout, names, len(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["run", "--help"], ["data", "--help"], ["list"]], ids=" ".join
)
def test_answers_that_need_no_torch_load_none(words: list[str]) -> None:
    text, names, count = modules(*words)
    assert text
    assert not HEAVY & names
    # typer, rich and what of the standard library they use; a new third-party import at the top shows here.
    assert count < 160
    assert {name for name in names if name in ("defense", "workflows", "tasks")} == {"defense", "workflows"}


@pytest.mark.slow
def test_bundled_sweeps_are_listed_without_torch() -> None:
    text, names, _ = modules("list", "sweeps")
    assert "quickstart" in text
    assert not HEAVY & names


def test_a_plan_waits_for_no_statistics() -> None:
    """``scipy.stats`` takes most of a second, and what a sweep file may ask for is in the same modules."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "workflows" / "statistics").glob("*.py")]
    assert len(texts) > 5
    assert not [text for text in texts if re.search(r"^from scipy import .*\b(stats|optimize)\b", text, re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attacks", "denoisers", "purifiers"])
def test_names_and_fields_are_listed_without_torch(kind: str) -> None:
    text, names, count = modules("list", kind)
    assert {"attacks": "diffhammer", "denoisers": "diffusers", "purifiers": "gdmp"}[kind] in text
    assert not HEAVY & names and count < 170


def test_what_is_written_down_is_what_the_classes_say() -> None:
    """Otherwise `python -m scripts.catalogue` writes it anew."""
    from workflows.assets.catalogue import WRITTEN, catalogue, written

    assert zlib.decompress(WRITTEN.read_bytes()).decode() == written()
    listed = json.loads(modules("list", "attacks", "--json")[0])
    assert listed == catalogue("attacks")
    assert {entry["name"] for entry in listed} >= {"pgd", "strongest", "ladder"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["purifiers", "corruptions"])
def test_a_full_list_needs_neither_the_cluster_nor_frames(kind: str) -> None:
    _, names, _ = modules("list", kind)
    assert not {"ray", "pandas", "mlflow", "pyarrow"} & names


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_take_half_a_second_of_a_processor_at_most(option: str) -> None:
    def seconds() -> float:
        before = os.times()
        command = [sys.executable, "-m", "puregrid", option]
        subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=True)
        after = os.times()
        return (after.children_user + after.children_system) - (before.children_user + before.children_system)

    # Of three: the first reads from a cold disk.
    assert min(seconds() for _ in range(3)) < 0.5 * slowness()
