"""The store: committed rows, adversarial images, specs and sweeps, in a folder or a bucket."""

from workflows.store.commits import Attempt, Commit, DamagedCommit, NewerCommit
from workflows.store.files import Files
from workflows.store.local_files import LocalFiles
from workflows.store.manifest import Manifest
from workflows.store.outage import StoreUnavailable
from workflows.store.record import Record
from workflows.store.remote_files import FsspecFiles, open_files
from workflows.store.store import Store

__all__ = [
    "Attempt",
    "Commit",
    "DamagedCommit",
    "Files",
    "FsspecFiles",
    "LocalFiles",
    "Manifest",
    "NewerCommit",
    "Record",
    "Store",
    "StoreUnavailable",
    "open_files",
]
