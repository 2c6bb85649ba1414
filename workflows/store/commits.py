"""The record of a committed unit: what was computed, by whom, and the hashes of its data.

A commit of an older version lacks fields, which have a default; one of a newer version may have further ones, which
are ignored. What cannot be read is damaged, unless it says that it is of a later version.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self

from pydantic import Field

from defense.errors import StoreError
from workflows.store.record import CHECKSUM, Count, Record, Seconds

__all__ = ["COMMIT_VERSION", "Attempt", "Commit", "DamagedCommit", "NewerCommit"]

COMMIT_VERSION = 1
"""Version of commits: raised when an older puregrid would misunderstand them, not when fields are added."""

_LATEST = 1000
"""A larger version of a commit is damage."""

_NO = "no "
"""What notes of measures that could not be taken began with in older versions."""


class DamagedCommit(StoreError):
    """A file where a commit should be is none, or that of another unit, or was changed since it was written."""


class NewerCommit(StoreError):
    """A commit of a later version of puregrid, which this one must not touch."""


@dataclass(frozen=True)
class Attempt:
    """One computation of a unit: where and how.

    Arguments:
        id: Unique.
        seconds: Compute time, without loading models, reading and writing.
        host: Where it ran.
        versions: Versions of what computed it.
        inputs: Hash of each data file that was read, by its path in the store.
        ended: When its computation ended, in seconds since 1970 by the worker's clock; 0 if that is not known.
    """

    id: str
    seconds: float
    host: str
    versions: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    ended: float = 0.0


@dataclass(frozen=True)
class Commit(Record):
    """The record that makes a unit's data count.

    Arguments:
        stage: Kind of stage.
        stage_id: Its content id.
        chunk: Name of the chunk.
        rows: Number of rows.
        sha256: Hash of each data file, by its path in the store.
        attempt: Unique id of the attempt that committed.
        seconds, host, versions, inputs: See :class:`Attempt`.
        notes: What else the unit reported, e.g. how often its batches were halved for memory.
        missing: Why a measure could not be taken, by the measure's name.
        ended: When the computation ended, in seconds since 1970 by the clock of its host, for people: nothing is
            ordered by it. 0 in commits of before it was noted.
        schema_version: :data:`COMMIT_VERSION` of who wrote it.
        has_checksum: Whether it was written with a checksum, which fits.
    """

    stage: str
    stage_id: str
    chunk: str
    rows: Annotated[Count, Field(ge=1)]
    sha256: dict[str, str]
    attempt: str
    seconds: Seconds
    host: str
    versions: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    notes: dict[str, int | float | str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ended: Seconds = 0.0
    schema_version: Annotated[int, Field(ge=1, le=_LATEST)] = COMMIT_VERSION
    has_checksum: bool = field(default=False, compare=False)

    @property
    def newer(self) -> bool:
        """Whether a later version of puregrid wrote it, in a form that this one may misunderstand."""
        return self.schema_version > COMMIT_VERSION

    def note(self, name: str) -> float:
        """Return a number of the notes; 0 where there is none, or something else."""
        value = self.notes.get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else 0.0

    def to_json(self) -> dict[str, object]:
        """See :class:`Record`; ``missing`` is written only if something is missing."""
        content = super().to_json()
        del content["has_checksum"]
        return content if self.missing else {name: content[name] for name in content if name != "missing"}

    @classmethod
    def from_json(cls, content: object) -> Self:
        """See :class:`Record`.

        Older versions wrote what was missing into the notes, as ``"no lpips": "why"``. Entries of ``versions``,
        ``notes`` and ``missing`` whose values are of another kind are left out: a later version may have such.

        Raises:
            NewerCommit: It is of a later version, and cannot be read.
            ValueError: It is damaged.
        """
        if isinstance(content, dict):
            content = {
                **content,
                **{name: _plain(content[name]) for name in ("versions", "notes", "missing") if name in content},
                "has_checksum": CHECKSUM in content,
            }
        try:
            commit = super().from_json(content)
        except ValueError as error:
            version = content.get("schema_version") if isinstance(content, dict) else None
            if isinstance(version, int) and COMMIT_VERSION < version <= _LATEST:
                raise NewerCommit(str(error)) from error
            raise
        if commit.stage != "quality" or commit.missing:
            return commit
        older = {name: str(why) for name, why in commit.notes.items() if name.startswith(_NO)}
        notes = {name: value for name, value in commit.notes.items() if name not in older}
        return replace(commit, notes=notes, missing={name.removeprefix(_NO): why for name, why in older.items()})


def _plain(entries: Any) -> Any:
    """Leave out what a later version may have put among plain values."""
    if not isinstance(entries, dict):
        return entries
    return {name: value for name, value in entries.items() if isinstance(value, str | int | float)}
