"""Ask what was not asked before, put mistakes at their place in the sweep file, and keep what was found good.

``preflight/<id>.json`` in the store, one file a check: what was asked, of which specs, on which kind of device, with
which versions. The id is a hash of these, so that a change of any of them asks again; what failed is not kept.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from defense.errors import InvalidInput
from defense.spec import digest
from tasks.attacks import LadderConfig, TransferConfig
from tasks.stages import AttackStage, StageSpec
from workflows.documents.document import Keys
from workflows.documents.entries import located
from workflows.grid.load import Cell, Sweep
from workflows.monitoring.versions import worker_versions
from workflows.planning.plan import Committed
from workflows.preflight.asking import Answer, ask
from workflows.preflight.checks import Check, ClassifierCheck, DefenceCheck, QualityCheck
from workflows.preflight.choose import checks_of
from workflows.store import Record, Store, StoreUnavailable

__all__ = ["Ask", "PreflightRecord", "preflight"]

_VERSION = 2
"""Raised when a check asks more than it did."""

_FOLDER = "preflight"

Ask = Callable[[Sequence[Check]], Iterable[Answer]]
"""Runs checks somewhere, in order, up to the first that fails."""


@dataclass(frozen=True)
class PreflightRecord(Record):
    """A check that was passed.

    Arguments:
        asked: What kind of part.
        what: The part, in words.
        parts: What the answer depends on.
        device: ``cpu`` or ``cuda``.
        versions: Of what answered.
        seconds: How long it took.
        ok: True: only what was found good is kept.
    """

    asked: str
    what: str
    parts: tuple[str, ...]
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    ok: bool = True

    @property
    def id(self) -> str:
        """Hash of everything but the words and the seconds."""
        return digest(json.dumps([_VERSION, self.asked, self.parts, self.device, sorted(self.versions.items())]))


def preflight(
    sweep: Sweep,
    committed: Committed,
    store: Store,
    say: Callable[[str], None],
    *,
    device: str = "cpu",
    on: Ask | None = None,
) -> None:
    """Check every distinct part of a sweep that has units to compute, unless the store says that it was.

    Arguments:
        sweep: The sweep.
        committed: The units of its plan that need no work.
        store: Where records of checks are.
        say: Where notes go, one line each.
        device: Kind of device that units will run on.
        on: Runs the checks; by default this process does.

    Raises:
        InvalidInput: A part cannot be computed with; at its entry in the sweep file.
    """
    checks = checks_of(committed)
    versions = worker_versions()
    records = {id(check): _record(check, device, versions) for check in checks}
    known = _known(store, {record.id for record in records.values()})
    todo = [check for check in checks if records[id(check)].id not in known]
    if not todo:
        return
    seconds, passed = 0.0, 0
    unwritten: StoreUnavailable | None = None
    for check, answer in zip(todo, (on or partial(ask, device=device))(todo), strict=False):
        seconds += answer.seconds
        if answer.error is not None:
            raise _placed(sweep, answer.check, answer.error)
        if answer.skipped is not None:
            say(f"preflight: {check.what} was not asked: {answer.skipped}")
            continue
        passed += 1
        record = _record(check, device, versions, round(answer.seconds, 4))
        content = json.dumps(record.to_json(), indent=1, sort_keys=True) + "\n"
        try:
            store.files.write(f"{_FOLDER}/{record.id}.json", content.encode())
        except StoreUnavailable as error:  # a plan may be made of a store that one may only read
            unwritten = error
    before = f", {len(known)} were asked before" if known else ""
    if unwritten is not None:
        say(f"preflight: it is not remembered that these parts were asked: {unwritten}")
    say(f"preflight: {passed} of {len(todo)} parts asked in {seconds:.1f} s on {device}, none refused{before}")


def _record(check: Check, device: str, versions: dict[str, str], seconds: float = 0.0) -> PreflightRecord:
    return PreflightRecord(check.section, check.what, check.key, device, versions, seconds)


def _known(store: Store, wanted: set[str]) -> set[str]:
    """Ids of checks that the store has a whole record of; a damaged one is as good as none, and written anew."""
    found = set()
    for name in set(store.files.names(_FOLDER)) & {f"{record}.json" for record in wanted}:
        try:
            record = PreflightRecord.from_text(store.files.read(f"{_FOLDER}/{name}"))
        except (ValueError, FileNotFoundError):
            continue
        if record.ok is True and f"{record.id}.json" == name:
            found.add(record.id)
    return found


def _placed(sweep: Sweep, check: Check, error: InvalidInput) -> InvalidInput:
    """The error at the entry that has to change."""
    cell = next((cell for cell in sweep.cells if check.stage in _closure(cell.stages)), None)
    keys: Keys = () if cell is None else _entry(cell, check)

    def fail() -> None:
        raise InvalidInput(error.message, keys=error.keys)

    try:
        located(sweep.document, keys, fail)
    except InvalidInput as placed:
        return placed
    raise AssertionError("unreachable")


def _closure(stages: Iterable[StageSpec]) -> Iterator[StageSpec]:
    """Stages and all that they are made of."""
    for stage in stages:
        yield stage
        yield from _closure(stage.inputs().values())


def _entry(cell: Cell, check: Check) -> Keys:
    """The entry of a cell that a check is about: its own part, or what its threat has inside."""
    if isinstance(check, QualityCheck):
        return ("quality",)
    if isinstance(check, ClassifierCheck) and check.classifier == cell.classifier:
        return cell.entries.classifier
    if isinstance(check, DefenceCheck) and check.purifier == cell.defence.purifier:
        return cell.entries.defence
    if isinstance(cell.attack, LadderConfig) and isinstance(check.stage, AttackStage):
        rungs = [place for place, rung in enumerate(cell.attack.rungs) if rung == check.stage.attack]
        return (*cell.entries.threat, "rungs", *rungs[:1])
    if isinstance(cell.attack, TransferConfig):
        inner = {"classifier": "classifier", "defence": "purifier"}.get(check.section, "source")
        return (*cell.entries.threat, inner)
    return cell.entries.threat
