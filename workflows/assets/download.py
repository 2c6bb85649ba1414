"""Download one large file: resumed where it stopped, checked, and in place only when it is whole.

Bytes go to ``TARGET.part``. A file of that name from an earlier run is continued (HTTP range request) where the
server can; it becomes TARGET by a rename, after its size and hash were compared with what was published.
"""

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from defense.errors import PuregridError

__all__ = ["RemoteFile", "download"]

_BLOCK = 1 << 20
_TIMEOUT = 60
"""Seconds without a byte after which a server counts as gone."""


@dataclass(frozen=True)
class RemoteFile:
    """A published file.

    Arguments:
        url: Where it is; https, or http on this machine.
        algorithm: Which hash was published.
        digest: Its hex digits, from the first; sha256 may be cut after eight, as in torchvision's file names.
        size: Bytes, where published.
    """

    url: str
    algorithm: Literal["md5", "sha256"]
    digest: str
    size: int | None = None

    def matches(self, path: Path) -> bool:
        """Return whether a file is this one."""
        if self.size is not None and path.stat().st_size != self.size:
            return False
        with path.open("rb") as file:
            # The archives publish md5; it detects damage, which suffices here.
            digest = hashlib.file_digest(file, lambda: hashlib.new(self.algorithm, usedforsecurity=False))
        return digest.hexdigest().startswith(self.digest)


def download(remote: RemoteFile, target: Path) -> None:
    """Fetch a file, or what is missing of it, with a progress bar on stderr.

    Arguments:
        remote: What to fetch.
        target: Where it shall lie; its folder is made.

    Raises:
        PuregridError: No connection, no space, or not the published file.
    """
    part = target.with_name(target.name + ".part")
    by_hand = f"Or fetch {remote.url} by other means and put it at {target} ({remote.algorithm} {remote.digest})."
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _receive(remote, part)
    except urllib.error.HTTPError as error:
        raise PuregridError(
            f"{remote.url} could not be downloaded: the server answered {error.code} ({error.reason}). {by_hand}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        size = part.stat().st_size if part.is_file() else 0
        resume = f"{size:,} bytes are kept; run the same command again to continue. " if size else ""
        raise PuregridError(f"{remote.url} could not be downloaded ({reason}). {resume}{by_hand}") from error
    if not remote.matches(part):
        size = part.stat().st_size
        part.unlink()
        raise PuregridError(
            f"what {remote.url} sent ({size:,} bytes) is not the published file ({remote.algorithm} {remote.digest}"
            + (f", {remote.size:,} bytes" if remote.size is not None else "")
            + f") and was removed. Run the same command again. {by_hand}"
        )
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(target)


def _receive(remote: RemoteFile, part: Path) -> None:
    """Complete ``part``; whatever came before an interruption stays in it."""
    place = urlsplit(remote.url)
    if place.scheme != "https" and not (place.scheme == "http" and place.hostname in ("127.0.0.1", "localhost")):
        raise OSError("only https is fetched")
    have = part.stat().st_size if part.is_file() else 0
    if remote.size is not None and have >= remote.size:
        return
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310 - the scheme was checked
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: the hash decides whether it is whole
            return
        raise
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:
            have = 0  # the server sends all of it
        left = response.headers.get("Content-Length")
        total = remote.size if remote.size is not None else have + int(left) if left else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > free:
            raise OSError(f"it needs {total - have:,} bytes and {part.parent} has {free:,} free")
        with part.open("ab" if resumed else "wb") as file, _bar() as bar:
            task = bar.add_task(part.stem, total=total, completed=have)
            while block := response.read(_BLOCK):
                file.write(block)
                bar.advance(task, len(block))
    if total is not None and part.stat().st_size < total:
        raise OSError("the connection was closed early")


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
