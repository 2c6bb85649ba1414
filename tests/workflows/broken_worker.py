"""Workers that fail where they start, in a module that is read fast: they are started again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Broken:
    """Has the constructor of a worker, which raises."""

    def __init__(self, store_uri: str, device: str) -> None:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    def ready(self) -> None:
        """Say that it is there."""


class Lame:
    """A worker that cannot start, but for the first one on a store."""

    def __init__(self, store_uri: str, device: str) -> None:
        try:
            Path(store_uri, "taken").touch(exist_ok=False)
        except FileExistsError:
            raise ImportError("libcuda.so.1: cannot open shared object file") from None
        from workflows.engine.worker import UnitWorker  # now, for it takes seconds

        self._worker = UnitWorker(store_uri, device)

    def ready(self) -> Any:
        return self._worker.ready()

    def run_batch(self, *batch: Any) -> Any:
        return self._worker.run_batch(*batch)
