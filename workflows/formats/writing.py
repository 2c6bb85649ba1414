"""Write a file for a user: whole, or as it was."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from defense.errors import PuregridError

__all__ = ["write_text"]


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file, which is never there in part: a temporary file takes its name when it is whole.

    What is no file, like ``/dev/stdout`` or a pipe, is written directly.

    Raises:
        PuregridError: It cannot be written; what was there is as it was.
    """
    target = path.resolve()
    data = text.encode()
    name = ""
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        handle, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        os.replace(name, target)
    except OSError as error:
        raise PuregridError(
            f"{path} cannot be written ({error.strerror or error}); what was there before is as it was. Make room, "
            "or name a place that you may write to, and run the same command again."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
