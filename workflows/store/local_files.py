"""A store's files in a folder: temporary file, fsync, rename or link; what is in the way moves below ``aside/``."""

import contextlib
import errno
import io
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

from defense.files import found, writable_folder
from workflows.store.files import Files, Stamp
from workflows.store.outage import StoreUnavailable, patient

__all__ = ["LocalFiles"]

log = logging.getLogger(__name__)


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
        place = self._new_place(path)
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

    def _new_place(self, path: str) -> Path:
        place = self.root / self._aside(path)
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
        place = self._new_place(path)
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
