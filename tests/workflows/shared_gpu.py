"""A worker that is given a share of a GPU, says which one, and computes on a processor: Ray's books need no GPU."""

from __future__ import annotations

import os
from pathlib import Path

from workflows.engine.worker import UnitWorker


class Sharer(UnitWorker):
    """Writes what Ray lets it see into a file beside the store."""

    def __init__(self, store_uri: str, device: str, sharing: int) -> None:
        super().__init__(store_uri, "cpu")
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        Path(store_uri).with_name(f"worker-{os.getpid()}").write_text(f"{device} {seen} {sharing}")
