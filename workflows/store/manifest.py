"""What of a stage was verified, so that files that have not changed since are not read again.

::

    manifests/<stage>/<stage id>.json     a line with the sha256 of the rest; then what was verified of each unit

An entry holds, of the commit and of each data file of a unit, a *stamp*: what tells a changed file from the one that
was read. On a disk that is size, time of modification and time of the last change of the inode (which no program can
set back); in a bucket size, time and ETag. A unit whose stamps are those of its entry is believed; of any other all
data is read and compared with the commit. So a file that was replaced, cut, or written to is found as before. What a
stamp does not show is a disk that returns other bytes than were written to it: ``--verify full`` reads everything.

A file that changes twice within one tick of the disk's clock may keep its stamp. As in git's index, an entry is
therefore believed only if its files are two seconds older than the manifest.

A manifest is a copy of what commits say. It decides nothing by itself: damaged or deleted, everything is read again.
"""

import contextlib
import hashlib
import json
from typing import Any

from workflows.store.files import Files, Stamp
from workflows.store.outage import StoreUnavailable

__all__ = ["Manifest"]

_VERSION = 2
"""1 had neither peaks nor ends."""
_TICK = 2 * 10**9
"""Nanoseconds: no clock of a disk is coarser."""

_COLUMNS = (
    *("commit", "seconds", "peak", "rows", "rows_name", "rows_stamp"),
    *("images", "images_name", "images_stamp", "ended"),
)


class Manifest:
    """The manifest of a stage, and the files of the stage as they are now.

    It has columns, since a list of strings is read ten times as fast as as many small lists.

    Arguments:
        files: The store's files.
        stage: Kind of stage.
        stage_id: Its id.
        images: Whether images are looked at.

    Attributes:
        commits: Stamp of each committed chunk's commit, by chunk.
        seconds: Compute time of each unit that was verified.
        peak: MiB that it took at most; 0 if that is not known.
        ended: When its computation ended; 0 in manifests of before that was noted.
        rows: Hash of its rows.
        images: Hash of its images; "" without any.
        inputs: For each folder of data that units read, the hash of what each has read there; "" for nothing.
    """

    def __init__(self, files: Files, stage: str, stage_id: str, *, images: bool = True) -> None:
        self.stage = stage
        self.stage_id = stage_id
        self._files = files
        self._path = f"manifests/{stage}/{stage_id}.json"
        # What was verified is what lay there before it was read: stamps come first.
        self.commits = {
            name.removesuffix(".json"): stamp for name, stamp in files.stamps(f"commits/{stage}/{stage_id}").items()
        }
        self._lying: dict[str, dict[str, Stamp | None]] = {"rows": {}, "adversarial": {}}
        self._place: dict[str, int] = {}
        self.seconds: list[float] = []
        self.peak: list[float] = []
        self.ended: list[float] = []
        self.rows: list[str] = []
        self.images: list[str] = []
        self._commit: list[str] = []
        self._rows_name: list[str] = []
        self._rows_stamp: list[str] = []
        self._images_name: list[str] = []
        self._images_stamp: list[str] = []
        self.inputs: dict[str, list[str]] = {}
        self._before = 0
        self._changed = False
        if self.commits:
            self._lying["rows"] = files.stamps(f"rows/{stage}/{stage_id}")
            self._lying["adversarial"] = files.stamps(f"adversarial/{stage_id}") if images else {}
            self._read()

    @property
    def _columns(self) -> dict[str, list[Any]]:
        return {name: getattr(self, name if hasattr(self, name) else f"_{name}") for name in _COLUMNS}

    def _read(self) -> None:
        if any(stamp is not None and stamp.moment for stamp in self.commits.values()):
            stamp = self._files.stamp(self._path)  # before it is read
            if stamp is None:
                return
            self._before = stamp.moment - _TICK
        try:
            checksum, _, body = self._files.read(self._path).partition(b"\n")
            if hashlib.sha256(body).hexdigest().encode() != checksum:
                return
            content = json.loads(body)
        except (FileNotFoundError, ValueError, RecursionError):
            return
        if (content["version"], content["stage"], content["stage_id"]) != (_VERSION, self.stage, self.stage_id):
            return
        self._place = {chunk: place for place, chunk in enumerate(content["chunks"])}
        for name, column in self._columns.items():
            column += content[name] if name in content else [0.0] * len(self._place)
        self.inputs = content["inputs"]

    def believed(self, chunk: str, *, images: bool) -> int | None:
        """Return the place of a unit in the columns if its files are as they were when it was verified; else None."""
        place, stamp = self._place.get(chunk), self.commits.get(chunk)
        if place is None or stamp is None or not self._same(stamp, self._commit[place]):
            return None
        found = self._lying["rows"].get(self._rows_name[place] or f"{chunk}.parquet")
        if not self._same(found, self._rows_stamp[place]):
            return None
        if images and self.images[place]:
            found = self._lying["adversarial"].get(self._images_name[place] or f"{chunk}.parquet")
            if not self._same(found, self._images_stamp[place]):
                return None
        return place

    def _same(self, found: Stamp | None, noted: str) -> bool:
        if found is None:
            return False
        text, moment = found
        return text == noted and (not moment or moment < self._before)

    def note(
        self,
        chunk: str,
        times: tuple[float, float],
        data: dict[str, str],
        inputs: dict[str, str],
        peak: float = 0.0,
    ) -> None:
        """Note that a unit was verified after this manifest was opened.

        Arguments:
            chunk: The chunk.
            times: Compute time, and when that ended, from the commit.
            data: Hash of each data file that was read and is whole, by its path.
            inputs: Hash of each data file that the unit read, by its path.
            peak: MiB that it took at most, from the commit; 0 if it does not say.
        """
        rows = [path for path in data if path.startswith("rows/")]
        images = [path for path in data if path.startswith("adversarial/")]
        commit = self.commits.get(chunk)
        named = all(path.rpartition("/")[2].partition(".")[0] == chunk for path in inputs)
        if len(rows) != 1 or len(images) > 1 or len(data) != len(rows) + len(images) or commit is None or not named:
            return  # of a later version, or gone: read it each time
        place = self._place.setdefault(chunk, len(self._place))
        if place == len(self.rows):
            for column in (*self._columns.values(), *self.inputs.values()):
                column.append("")
        (self.seconds[place], self.ended[place]), self.peak[place] = times, peak
        self._commit[place] = commit.text
        for names, hashes, stamps, path in (
            (self._rows_name, self.rows, self._rows_stamp, rows[0]),
            (self._images_name, self.images, self._images_stamp, images[0] if images else ""),
        ):
            name = path.rpartition("/")[2]
            stamp = self._lying[path.partition("/")[0]].get(name) if path else None
            hashes[place] = data.get(path, "")
            names[place] = "" if name == f"{chunk}.parquet" else name
            stamps[place] = "" if stamp is None else stamp.text  # which no file has
        for column in self.inputs.values():
            column[place] = ""
        for path, sha256 in inputs.items():
            folder = path.rpartition("/")[0]
            self.inputs.setdefault(folder, [""] * len(self.rows))[place] = sha256
        self._changed = True

    def forget(self, chunk: str) -> None:
        """Forget a unit that was found damaged."""
        if chunk in self._place:
            self._commit[self._place[chunk]] = ""
            self._changed = True

    def write(self) -> None:
        """Write the manifest if anything was noted; in a store that may only be read it stays as it was."""
        if not self._changed:
            return
        kept = [
            (chunk, place) for chunk, place in self._place.items() if self._commit[place] and chunk in self.commits
        ]

        def of(column: list[Any]) -> list[Any]:
            return [column[place] for _, place in kept]

        content = {
            "version": _VERSION,
            "stage": self.stage,
            "stage_id": self.stage_id,
            "chunks": [chunk for chunk, _ in kept],
            **{name: of(column) for name, column in self._columns.items()},
            "inputs": {folder: of(column) for folder, column in self.inputs.items()},
        }
        body = json.dumps(content, separators=(",", ":")).encode()
        with contextlib.suppress(StoreUnavailable):
            self._files.write(self._path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        self._changed = False
