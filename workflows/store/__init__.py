"""The store: committed rows, adversarial images, specs and sweeps, in a folder or a bucket."""

from __future__ import annotations

from workflows.store.files import Files, FsspecFiles, LocalFiles, open_files
from workflows.store.outage import StoreUnavailable
from workflows.store.store import Commit, Store

__all__ = ["Commit", "Files", "FsspecFiles", "LocalFiles", "Store", "StoreUnavailable", "open_files"]
