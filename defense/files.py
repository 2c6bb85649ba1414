"""Names of files that users give: what is wrong with one is said before anything is opened.

To open a pipe may wait for ever, a device may have no end, and a name may be none at all; :func:`path_of` and
:func:`existing` look without opening. :func:`writable` looks whether a file can be written before the work that it is
for, and :func:`write_text` leaves either the old file or the new one, whatever happens.
"""

import contextlib
import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from defense.errors import InvalidInput, PuregridError

__all__ = [
    "TEXT_BYTES",
    "existing",
    "found",
    "make_folder",
    "path_of",
    "read_text",
    "shown",
    "writable",
    "writable_folder",
    "write_text",
]

TEXT_BYTES = 16 << 20
"""Most bytes of a text that people write: a sweep file, a list of classes."""

_SHOWN = 120
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def shown(path: str | Path) -> str:
    """Return a name in quotes for a message, escaped, and cut where it is long."""
    text = str(path)
    cut = text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 3 :]}"
    return repr(cut)


def path_of(name: str | Path, what: str, *, base: Path | None = None, where: str | None = None) -> Path:
    """Return the absolute path of a name, with links followed; the file need not be there.

    Arguments:
        name: As the user gave it.
        what: What it is, for messages: "sweep file".
        base: Where relative names start; by default the working directory.
        where: The option, for messages.

    Raises:
        InvalidInput: It is empty, too long, holds NUL or bytes that are no text, or is a link that leads round.
    """
    text = str(name)
    problem = None
    if not text.strip():
        problem = "is an empty name"
    elif "\0" in text:
        problem = "holds a NUL character, which no name of a file can have"
    else:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            problem = "holds bytes that are no UTF-8 text; rename it"
    if problem is None:
        path = (base or Path.cwd()) / text
        try:
            os.stat(path)
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                problem = _why(path, error)
        if problem is None:
            return Path(os.path.realpath(path))
    raise _error(text, what, problem, where)


def existing(
    name: str | Path,
    what: str,
    *,
    kind: Literal["file", "folder", "either"] = "file",
    base: Path | None = None,
    where: str | None = None,
) -> Path:
    """Return the path of a file or folder that is there and can be read.

    Raises:
        InvalidInput: As :func:`path_of`; or it is not there, is no file or folder (a device, a pipe), or may not be
            read.
    """
    path_of(name, what, base=base, where=where)
    path = (base or Path.cwd()) / name
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise _error(name, what, _why(path, error), where) from error
    problem = _other_kind(mode, kind)
    if problem is None and not os.access(path, os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)):
        problem = "may not be read by this user; correct its rights"
    if problem is not None:
        raise _error(name, what, problem, where)
    return path


def found(
    name: str | Path,
    what: str,
    *,
    kind: Literal["file", "folder", "either"] = "file",
    base: Path | None = None,
    where: str | None = None,
) -> Path:
    """Return the absolute path of a file or folder, for a caller who has more to say of one that is not there.

    Raises:
        InvalidInput: As :func:`existing`, but not where there is nothing.
    """
    path = path_of(name, what, base=base, where=where)
    if os.path.lexists((base or Path.cwd()) / name):
        existing(name, what, kind=kind, base=base, where=where)
    return path


def read_text(
    name: str | Path, what: str, *, most: int = TEXT_BYTES, where: str | None = None, errors: str = "strict"
) -> str:
    """Return the UTF-8 text of a file.

    Arguments:
        name: As :func:`path_of`.
        what: See there.
        most: Bytes that it may have.
        where: See there.
        errors: What becomes of bytes that are no UTF-8, as for :meth:`bytes.decode`.

    Raises:
        InvalidInput: As :func:`existing`; or it is larger, or no UTF-8 text.
    """
    path = existing(name, what, where=where)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise _error(name, what, f"cannot be read ({error.strerror or error})", where) from error
    if len(data) > most:
        raise _error(name, what, f"has more than {most >> 20} MiB: it is something else", where)
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise _error(name, what, "is not UTF-8 text", where) from error


def writable(
    name: str | Path, what: str, *, where: str | None = None, make_folder: bool = False, read: Iterable[str] = ()
) -> Path:
    """Return the path of a file that can be written, as far as can be known without writing it.

    Arguments:
        name: As :func:`path_of`.
        what: See there.
        where: See there.
        make_folder: Whether its folder will be made if it is missing.
        read: Names of what the command reads, files among them.

    Raises:
        InvalidInput: As :func:`path_of`; or it is one of those that are read, a folder, a device, a pipe, a link to
            nothing, in a folder that is not there, or may not be written.
    """
    path = _on_disk(name, what, where)
    try:
        problem = _other_kind(os.stat(path).st_mode, "file")
        if problem is None and not os.access(path, os.W_OK):
            problem = "may not be written by this user; give another"
    except OSError as error:
        problem = None if error.errno == errno.ENOENT else _why(path, error)
    if problem is None and os.path.islink(_absolute(name)) and not path.exists():
        problem = _why(_absolute(name), FileNotFoundError(errno.ENOENT, ""))
    if any(os.path.isfile(other) and path == path_of(other, what) for other in read):
        problem = "is a file that this command reads"
    if problem is not None:
        raise _error(name, what, problem, where)
    if make_folder:
        writable_folder(path.parent, f"the folder of {what}", where=where)
    elif not path.parent.is_dir():
        raise _error(name, what, f"lies in {shown(path.parent)}, which is no folder; make it first", where)
    elif (refusal := _refusal(path.parent)) is not None:
        raise _error(name, what, f"lies in {shown(path.parent)}, where nothing can be written{refusal}", where)
    return path


def writable_folder(name: str | Path, what: str, *, where: str | None = None) -> Path:
    """Return the path of a folder in which files can be written, or that can be made.

    Raises:
        InvalidInput: As :func:`path_of`; or it is something else, or may not be written or made.
    """
    path = _on_disk(name, what, where)
    if os.path.islink(_absolute(name)) and not path.exists():
        raise _error(name, what, _why(_absolute(name), FileNotFoundError(errno.ENOENT, "")), where)
    there = path
    while True:
        try:
            mode = os.stat(there).st_mode
            break
        except (FileNotFoundError, NotADirectoryError):
            there = there.parent
        except OSError as error:
            raise _error(name, what, _why(there, error), where) from error
    if not stat.S_ISDIR(mode):
        problem = _other_kind(mode, "folder") if there == path else f"lies below {shown(there)}, which is no folder"
        raise _error(name, what, problem or "", where)
    if (refusal := _refusal(there)) is not None:
        problem = "cannot be written" if there == path else f"cannot be made in {shown(there)}"
        raise _error(name, what, f"{problem}{refusal}", where)
    return path


def _on_disk(name: str | Path, what: str, where: str | None) -> Path:
    if re.match("[a-z][a-z0-9+.-]+:/", str(name)):  # else a folder called `s3:`
        raise _error(name, what, "is an address, and this is written to disk", where)
    return path_of(name, what, where=where)


def _refusal(folder: Path) -> str | None:
    """Return why no file can be made in a folder, or None; one without a name is made, where the system has these."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f" ({error.strerror or error})"
    return None


def write_text(path: Path, text: str, what: str) -> None:
    r"""Write a file beside the one that is there, and put it in its place when it is whole.

    Arguments:
        path: The file; a link is followed.
        text: Its content, written as UTF-8; surrogates as ``\udcXX``.
        what: What it is, for messages.

    Raises:
        PuregridError: It cannot be written; what was there is as it was.
    """
    target = Path(os.path.realpath(path))
    temporary = None
    try:
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _usual_mode() if mode is None else mode)
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        old = "; the file that was there is unchanged" if target.exists() else ""
        raise PuregridError(
            f"{what} {shown(path)} could not be written ({error.strerror or error}){old}. Make room or give another "
            "place, then run the same command again."
        ) from error


def make_folder(path: Path, what: str) -> None:
    """Make a folder and those above it.

    Raises:
        PuregridError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PuregridError(f"{what} {shown(path)} could not be made ({error.strerror or error}).") from error


def _usual_mode() -> int:
    """The mode of a new file by the umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask


def _absolute(name: str | Path) -> Path:
    return Path.cwd() / name


def _other_kind(mode: int, wanted: str) -> str | None:
    """Return what is there instead of what is wanted, or None."""
    if stat.S_ISREG(mode) and wanted != "folder":
        return None
    if stat.S_ISDIR(mode) and wanted != "file":
        return None
    found = next((name for is_kind, name in _KINDS if is_kind(mode)), "a file")
    return f"is {found}, and {'a file or folder' if wanted == 'either' else f'a {wanted}'} is needed"


def _why(path: Path, error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return f"is longer than a name of a file can be ({len(str(path)):,} characters)"
    if error.errno == errno.ELOOP:
        return "is a link that leads round in a circle"
    if os.path.islink(path):
        return f"is a link to {shown(os.readlink(path))}, which does not exist"
    if error.errno == errno.ENOTDIR:
        return "does not exist: something on its path is a file, not a folder"
    if error.errno == errno.ENOENT:
        return "does not exist"
    return f"cannot be reached ({error.strerror or error})"


def _error(name: str | Path, what: str, problem: str, where: str | None) -> InvalidInput:
    advice = "" if ";" in problem else ". Give the path of another"
    named = f"{what} {shown(name)}"
    if where == str(name):  # the place is the file itself
        where, named = (where if where.isprintable() and 0 < len(where) <= 4 * _SHOWN else shown(name)), what
    return InvalidInput(f"{named} {problem}{advice}.", where=where)
