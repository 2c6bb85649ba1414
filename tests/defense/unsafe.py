"""A pickle that would do harm, visibly."""

from __future__ import annotations

from pathlib import Path


class Touch:
    """Pickles as a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.path,)
