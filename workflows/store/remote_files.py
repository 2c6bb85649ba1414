"""A store's files in a bucket, or whatever else fsspec knows; and which kind of files a URI is of."""

import contextlib
import errno
from functools import cached_property
from pathlib import Path
from typing import Any

from defense.errors import InvalidInput
from defense.files import found, path_of, shown
from defense.redaction import has_credentials, redacted, remember
from workflows.store.files import Files, Stamp
from workflows.store.local_files import LocalFiles
from workflows.store.outage import StoreUnavailable, is_outage, patient

__all__ = ["FsspecFiles", "open_files"]

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
