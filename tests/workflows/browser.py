"""Pages in Chromium, where there is one: their document after loading, and what the console said."""

from __future__ import annotations

import subprocess
from pathlib import Path

from scripts.chromium import CHROMIUM


def browse(page: Path, folder: Path, *options: str, hash_: str = "") -> tuple[str, str]:
    """The page's document after loading, and what the console said.

    Arguments:
        page: The file.
        folder: Where the browser may write.
        options: Further options of the browser.
        hash_: What its address ends with.
    """
    assert CHROMIUM is not None
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", *options)
    logs = ("--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", "--dump-dom")
    done = subprocess.run(
        [CHROMIUM, *options, *logs, page.as_uri() + hash_],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
