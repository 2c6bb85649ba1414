"""Sixel graphics in a real terminal, xterm on a screen that nobody sees: whether it says that it has them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_both = pytest.mark.skipif(
    shutil.which("xterm") is None or shutil.which("Xvfb") is None, reason="needs xterm and Xvfb on PATH"
)


@pytest.fixture
def display() -> Iterator[str]:
    """The name of a screen of its own, which the server chooses."""
    ours, theirs = os.pipe()
    command = ["Xvfb", "-displayfd", str(theirs), "-screen", "0", "800x600x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=(theirs,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(theirs)
    try:
        yield f":{os.read(ours, 16).decode().strip()}"
    finally:
        os.close(ours)
        server.terminate()
        server.wait(20)


@pytest.mark.nightly
@needs_both
@pytest.mark.parametrize(("terminal", "wanted"), [("vt340", "True"), ("vt220", "False")])
def test_a_vt340_says_that_it_draws_pixels_and_a_vt220_that_it_does_not(
    display: str, terminal: str, wanted: str, tmp_path: Path
) -> None:
    code = (
        "from workflows.images.graphics import cell_size, has_sixel; "
        "said = f'{has_sixel(0, 1, 20.0)} {cell_size()}'; open('said', 'w').write(said)"
    )
    (tmp_path / "ask.sh").write_text(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}\n")
    # The window closes with its command.
    command = ["xterm", "-ti", terminal, "-fn", "fixed", "-e", "bash", "ask.sh"]
    environment = {**os.environ, "DISPLAY": display, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=environment, timeout=120, check=True)
    said, _, size = (tmp_path / "said").read_text().partition(" ")
    assert said == wanted and size == "(6, 13)"  # of the font `fixed`; not the (10, 20) of who does not say
