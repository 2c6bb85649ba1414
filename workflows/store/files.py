"""The few file operations that a store is built on, for a local folder and for any fsspec file system.

Contract, to which :class:`puregrid.testing.StoreContract` holds every implementation:

* ``write`` is atomic: a reader sees the old content, or the new, or no file; never a part.
* ``create`` writes only where nothing is, atomically where the system can, and says whether it did.
* both create missing folders, and their effect survives the loss of the process, on a local disk of the power.
* every operation waits out an outage of up to a minute (``workflows/store/outage.py``), so it may be tried more than
  once: a ``create`` whose answer was lost reports that the file exists already, which is then the caller's own.
* what is not a file is no file: where a folder, a pipe or a link to nothing has a file's name, nothing is read, and
  ``write`` and ``create`` move it below ``aside/`` first. Nothing is deleted that nobody asked to delete.
"""

import contextlib
import errno
import io
import logging
import os
import shutil
import stat
import tempfile
import uuid
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from defense.errors import InvalidInput
from defense.files import found, path_of, shown, writable_folder
from defense.redaction import has_credentials, redacted, remember
from workflows.store.outage import StoreUnavailable, is_outage, patient

__all__ = ["ASIDE", "Files", "FsspecFiles", "LocalFiles", "Stamp", "open_files"]

log = logging.getLogger(__name__)

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
        place = _aside(path)
        self.write(place, content)
        self.delete(path)
        return place


def _aside(path: str) -> str:
    return f"{ASIDE}/{path}.{uuid.uuid4().hex[:8]}"


class LocalFiles(Files):
    """A folder on a local or shared POSIX file system: temporary file, fsync, rename or link."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = self._place = str(self.root)

    @property
    def exclusive(self) -> bool:
        """See :class:`Files`; a hard link is made once, also on NFS."""
        return True

    def check(self) -> None:
        """See :class:`Files`; a folder that is missing is made by the first write."""
        found(self.root, "store", kind="folder", where="--store")

    def check_writable(self) -> None:
        """See :class:`Files`."""
        writable_folder(self.root, "store", where="--store")

    def room(self) -> str:
        """See :class:`Files`."""
        folder = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        usage = shutil.disk_usage(folder)
        return f"{usage.free / 2**20:,.1f} MiB of {usage.total / 2**20:,.1f} MiB are free"

    @patient
    def read(self, path: str) -> bytes:
        """See :class:`Files`."""
        place = f"{self._place}/{path}"  # a Path takes as long as a small file
        try:
            # Without O_NONBLOCK a pipe would make this wait for ever.
            handle = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _NO_FILE:
                raise FileNotFoundError(errno.ENOENT, "there is no such file", place) from error
            raise
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise FileNotFoundError(errno.ENOENT, "there is no such file", place)
        with io.FileIO(handle) as file:
            return file.readall()

    @patient
    def write(self, path: str, data: bytes) -> None:
        """See :class:`Files`."""
        target = self.root / path
        self._make_folder(target.parent)
        temporary = self._temporary(target, data)
        try:
            os.replace(temporary, target)
        except IsADirectoryError:
            self._out_of_the_way(path)
            os.replace(temporary, target)
        _sync_folder(target.parent)

    @patient
    def create(self, path: str, data: bytes) -> bool:
        """See :class:`Files`; a hard link, unlike a rename, fails where something is."""
        target = self.root / path
        if target.is_file():
            return False
        self._make_folder(target.parent)
        self._out_of_the_way(path)
        temporary = self._temporary(target, data)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise StoreUnavailable(
                    f"store {self.uri} is on a file system without hard links ({error.strerror}), on which two "
                    "writers of one unit could both win; give a --store on another file system."
                ) from error
            raise
        finally:
            os.unlink(temporary)
        _sync_folder(target.parent)
        return True

    @staticmethod
    def _temporary(target: Path, data: bytes) -> str:
        # The leading dot keeps it out of names(): what a killed process leaves behind is no row.
        handle, name = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
        except BaseException:
            # On a full disk half a file is the last thing to leave behind.
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        return name

    def _make_folder(self, folder: Path) -> None:
        """Make a folder of the store; a file that has its name, or that of a folder above it, makes room."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            inside = folder.relative_to(self.root)
            for part in (*reversed(inside.parents), inside):
                place = self.root / part
                if place.is_symlink() and not place.exists():
                    # Of a disk that is not mounted: what lies behind it is not lost, and a new folder would hide it.
                    raise StoreUnavailable(
                        f"{place} is a link to {os.readlink(place)}, which is not there. Mount it, or remove the "
                        "link; then run the same command again."
                    ) from None
                if part.parts and place.is_file():
                    self._make_room(str(part), "a file where a folder belongs", stat.S_IFREG)
            folder.mkdir(parents=True, exist_ok=True)

    def _out_of_the_way(self, path: str) -> None:
        """Move what has a file's name and is none: a folder, a pipe, a link that leads nowhere."""
        target = self.root / path
        try:
            mode = target.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if stat.S_ISREG(mode) or (stat.S_ISLNK(mode) and target.is_file()):
            return
        if stat.S_ISDIR(mode):
            self._make_room(path, "a folder where a file belongs", stat.S_IFDIR)
        else:
            self._make_room(path, "no file", stat.S_IFIFO)

    def _make_room(self, path: str, why: str, kind: int) -> None:
        """Move what is in the way below ``aside/``, unless another writer has done so and the right thing lies there.

        A rename asks nothing about what it moves, but it puts no folder onto a file and no file onto a folder, so the
        new place is made first: of two writers, who both saw the wrong thing, the second finds the right one unmoved.

        Arguments:
            path: Where it is.
            why: What it is, for the log.
            kind: ``S_IFREG`` where a folder belongs, ``S_IFDIR`` where a file belongs, ``S_IFIFO`` for all that is
                neither, which has no such protection: a file that was moved with it goes back.
        """
        place = self._aside(path)
        if kind == stat.S_IFREG:
            place.touch()
        elif kind == stat.S_IFDIR:
            place.mkdir()
        try:
            os.rename(self.root / path, place)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):  # another was faster
            if kind == stat.S_IFREG:
                place.unlink()
            elif kind == stat.S_IFDIR:
                place.rmdir()
            return
        if kind == stat.S_IFIFO and stat.S_ISREG(place.lstat().st_mode):
            with contextlib.suppress(FileExistsError):
                os.link(place, self.root / path)
                place.unlink()
            return
        _sync_folder((self.root / path).parent)
        log.warning("%s in store %s was %s; it now lies at %s", path, self.uri, why, place.relative_to(self.root))

    def _aside(self, path: str) -> Path:
        place = self.root / _aside(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    @patient
    def exists(self, path: str) -> bool:
        """See :class:`Files`."""
        return (self.root / path).is_file()

    @patient
    def names(self, folder: str) -> list[str]:
        """See :class:`Files`."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if entry.name[0] != "." and _is_file(entry))
        except OSError as error:
            if error.errno in _NO_FILE:
                return []
            raise

    @patient
    def stamps(self, folder: str) -> dict[str, Stamp | None]:
        """See :class:`Files`; size, and the times of the content and of the inode, which nobody can set back."""
        found: dict[str, Stamp | None] = {}
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if entry.name[0] != ".":
                        stamp = _stamp(entry)
                        if stamp is not None:
                            found[entry.name] = stamp
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
        return found

    @patient
    def stamp(self, path: str) -> Stamp | None:
        """See :class:`Files`."""
        return _stamp(self.root / path)

    @patient
    def delete(self, path: str) -> None:
        """See :class:`Files`."""
        with contextlib.suppress(NotADirectoryError, IsADirectoryError):
            (self.root / path).unlink(missing_ok=True)

    @patient
    def set_aside(self, path: str) -> str | None:
        """See :class:`Files`; a rename."""
        if not os.path.lexists(self.root / path):
            return None
        place = self._aside(path)
        try:
            os.rename(self.root / path, place)
        except FileNotFoundError:  # another was faster
            return None
        _sync_folder((self.root / path).parent)
        return str(place.relative_to(self.root))


_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}
"""Answers where there is no file: nothing, a file on the way, a folder, links in a circle, a socket."""


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError as error:
        if error.errno in _NO_FILE:
            return False
        raise


def _stamp(file: os.DirEntry[str] | Path) -> Stamp | None:
    try:
        status = file.stat()
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise
    if not stat.S_ISREG(status.st_mode):
        return None
    changed = status.st_ctime_ns
    return Stamp(f"{status.st_size}-{status.st_mtime_ns}-{changed}", changed)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_CREATE_ONCE = ".create-once"


class FsspecFiles(Files):
    """Any fsspec file system (``s3://``, ``gs://``, ``memory://``): one PUT is atomic there.

    ``create`` asks for an exclusive write (S3: ``If-None-Match: *``). Whether the storage honours that is found out
    once, since servers that do not know the header ignore it. Where it does not, a look comes first, and of two
    writers in that instant both may get the answer that they won: ``docs/invariants/commit.md`` explains why no row
    is wrong.
    """

    requests = 32

    def __init__(self, uri: str) -> None:
        import fsspec

        self.uri = uri.rstrip("/")
        remember(uri)
        if has_credentials(uri):
            raise InvalidInput(
                f"store {redacted(uri)} holds a password or key, which would end up in logs and reports; credentials "
                "come from the environment."
            )
        try:
            self._system, self._root = fsspec.core.url_to_fs(self.uri)
        except (ImportError, ValueError) as error:
            raise InvalidInput(
                f"store {uri!r} cannot be opened: {error}. Install the fsspec package for this kind of storage, or "
                "give a folder."
            ) from error

    @cached_property
    def exclusive(self) -> bool:
        """See :class:`Files`; the second attempt to create one file must be refused."""
        content = b"Whoever writes here first asks whether this storage refuses to write it again.\n"
        try:
            return not all(self._create(_CREATE_ONCE, content) for _ in range(2))
        except (TypeError, NotImplementedError):
            return False

    def check(self) -> None:
        """See :class:`Files`; buckets are never made."""
        try:
            exists = self._find_bucket()
        except StoreUnavailable as error:
            if error.__cause__ is not None and is_outage(error.__cause__):
                raise
            raise InvalidInput(str(error), where="--store") from error
        if not exists:
            raise InvalidInput(f"store {self.uri}: there is no such bucket; make it first.", where="--store")

    @patient
    def _find_bucket(self) -> bool:
        bucket = self._root.split("/", 1)[0]
        try:  # not exists(), which in s3fs is False where it cannot connect
            return not bucket or bool(self._system.info(bucket))
        except FileNotFoundError:
            return False

    def room(self) -> str:
        """See :class:`Files`; object stores have no common way to ask."""
        return "how much room there is, is not known"

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    @patient
    def read(self, path: str) -> bytes:
        """See :class:`Files`."""
        try:
            content: bytes = self._system.cat_file(self._full(path))
        except IsADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, "there is no such file", path) from error
        return content

    def _put(self, path: str, data: bytes, **options: Any) -> None:
        full = self._full(path)
        try:
            self._system.pipe_file(full, data, **options)
        except FileNotFoundError:  # storage that has folders wants them made; a bucket is not ours to make
            self.check()
            self._system.makedirs(full.rsplit("/", 1)[0], exist_ok=True)
            self._system.pipe_file(full, data, **options)

    def _create(self, path: str, data: bytes) -> bool:
        try:
            self._put(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if _precondition_failed(error):
                return False
            raise
        return True

    @patient
    def write(self, path: str, data: bytes) -> None:
        """See :class:`Files`."""
        self._put(path, data)

    @patient
    def create(self, path: str, data: bytes) -> bool:
        """See :class:`Files`."""
        if self.exclusive:
            return self._create(path, data)
        if self.exists(path):
            return False
        self._put(path, data)
        return True

    @patient
    def exists(self, path: str) -> bool:
        """See :class:`Files`."""
        self._system.invalidate_cache()
        return bool(self._system.isfile(self._full(path)))

    @patient
    def names(self, folder: str) -> list[str]:
        """See :class:`Files`."""
        self._system.invalidate_cache()
        try:
            entries = self._system.ls(self._full(folder), detail=True)
        except FileNotFoundError:
            return []
        names = (entry["name"].rsplit("/", 1)[1] for entry in entries if entry["type"] == "file")
        return sorted(name for name in names if name and name[0] != ".")

    @patient
    def stamps(self, folder: str) -> dict[str, Stamp | None]:
        """See :class:`Files`; size and ETag, which follow the content; in memory the microsecond of the write."""
        self._system.invalidate_cache()
        try:
            entries = self._system.ls(self._full(folder), detail=True)
        except FileNotFoundError:
            return {}
        names = ((entry["name"].rsplit("/", 1)[1], entry) for entry in entries if entry["type"] == "file")
        return {name: _stamp_of(entry) for name, entry in names if name and name[0] != "."}

    @patient
    def stamp(self, path: str) -> Stamp | None:
        """See :class:`Files`."""
        self._system.invalidate_cache()
        try:
            entry = self._system.info(self._full(path))
        except FileNotFoundError:
            return None
        return _stamp_of(entry) if entry["type"] == "file" else None

    @patient
    def delete(self, path: str) -> None:
        """See :class:`Files`."""
        if self.exists(path):
            with contextlib.suppress(FileNotFoundError):  # another was faster
                self._system.rm_file(self._full(path))


_TELLING = ("ETag", "etag", "generation", "created")
"""What storage says of a file and changes with its content: S3, Azure, Google; a file system in memory."""


def _stamp_of(entry: dict[str, Any]) -> Stamp | None:
    told = next((str(entry[name]) for name in _TELLING if entry.get(name)), None)
    if told is None:
        return None
    later = entry.get("LastModified") or entry.get("last_modified") or entry.get("updated") or ""
    return Stamp(f"{entry['size']}-{told}-{later}", 0)


def _precondition_failed(error: OSError) -> bool:
    """Return whether S3 answered 412; s3fs makes ``FileExistsError`` of it only if the answer names the condition."""
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("Error", {}).get("Code") in ("PreconditionFailed", "412")


def open_files(uri: str) -> Files:
    """Return the files below a folder or a URI.

    Raises:
        InvalidInput: A kind of storage that is not installed, or a local root that is no folder.
    """
    local = uri.removeprefix("file://").removeprefix("local://")
    if "://" in local:
        return FsspecFiles(uri)
    path_of(local, "store", where="--store")
    root = Path(local)
    if root.parts[:1] and root.parts[0].startswith("~"):
        with contextlib.suppress(RuntimeError):  # nobody's home: it is a name like another
            root = root.expanduser()
    if root.is_file():
        raise InvalidInput(f"store {shown(root)} is a file, not a folder; give another --store.")
    found(root, "store", kind="folder", where="--store")
    return LocalFiles(root)
