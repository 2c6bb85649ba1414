"""The few file operations that a store is built on, whatever it lies in.

Contract, to which :class:`puregrid.testing.StoreContract` holds every implementation:

* ``write`` is atomic: a reader sees the old content, or the new, or no file; never a part.
* ``create`` writes only where nothing is, atomically where the system can, and says whether it did.
* both create missing folders, and their effect survives the loss of the process, on a local disk of the power.
* every operation waits out an outage of up to a minute (``workflows/store/outage.py``), so it may be tried more than
  once: a ``create`` whose answer was lost reports that the file exists already, which is then the caller's own.
* what is not a file is no file: where a folder, a pipe or a link to nothing has a file's name, nothing is read, and
  ``write`` and ``create`` move it below ``aside/`` first. Nothing is deleted that nobody asked to delete.
"""

import uuid
from abc import ABC, abstractmethod
from typing import NamedTuple

__all__ = ["ASIDE", "Files", "Stamp"]

ASIDE = "aside"
"""Folder for what was damaged or in the way; nothing reads it, and it may be deleted at any time."""


class Stamp(NamedTuple):
    """What tells a file from one that lay there before or will later.

    Arguments:
        text: Equal for equal files alone, up to changes within a tick of the storage's clock.
        moment: When it was last changed, in nanoseconds by the storage's clock; 0 where the text has no such gap.
    """

    text: str
    moment: int


class Files(ABC):
    """File operations below one root; paths are relative, with ``/``.

    ``uri`` opens the same root again, ``waited`` is the seconds of outages that operations waited out, and
    ``requests`` is how many operations are worth sending at once.
    """

    uri: str
    waited: float = 0.0
    requests: int = 8

    @property
    @abstractmethod
    def exclusive(self) -> bool:
        """Whether exactly one of several simultaneous calls of ``create`` succeeds."""

    @abstractmethod
    def check(self) -> None:
        """Check that the root can be used, before any compute.

        Raises:
            InvalidInput: It does not exist and will not be made, or may not be used.
            StoreUnavailable: It does not answer.
        """

    def check_writable(self) -> None:  # noqa: B027 - a bucket's rights show when it is written
        """Check that the root can be written, as far as can be known without writing.

        Raises:
            InvalidInput: It cannot.
        """

    @abstractmethod
    def room(self) -> str:
        """Describe the free space."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: There is none.
        """

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Write or replace a file atomically."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write a file only if there is none; returns whether it was written."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Return whether there is such a file."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the files in a folder; empty if the folder is missing."""

    def stamps(self, folder: str) -> dict[str, Stamp | None]:
        """Return the stamps of the files in a folder by name; None where the storage knows too little for one."""
        return dict.fromkeys(self.names(folder))

    def stamp(self, path: str) -> Stamp | None:
        """Return the stamp of a file; None if there is none, or the storage knows too little."""
        folder, _, name = path.rpartition("/")
        return self.stamps(folder).get(name)

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file if it is there."""

    def set_aside(self, path: str) -> str | None:
        """Move a file out of the way, whole, to below :data:`ASIDE`.

        Returns:
            Its new path; None if it is not there.
        """
        try:
            content = self.read(path)
        except FileNotFoundError:
            return None
        place = self._aside(path)
        self.write(place, content)
        self.delete(path)
        return place

    @staticmethod
    def _aside(path: str) -> str:
        """Return a new path below :data:`ASIDE` for what has a path now."""
        return f"{ASIDE}/{path}.{uuid.uuid4().hex[:8]}"
