"""A worker that fails where it starts, in a module that is read fast: it is started again and again."""

from __future__ import annotations


class Broken:
    """Has the constructor of a worker, which raises."""

    def __init__(self, store_uri: str, device: str, sharing: int) -> None:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    def ready(self) -> None:
        """Say that it is there."""
