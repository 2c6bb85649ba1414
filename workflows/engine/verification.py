"""Compare what is committed with the data that lies in the store, before anything is computed from it.

Of each stage two or three folders are listed, and what has not changed since it was verified is believed
(:mod:`workflows.store.manifest`); all other data is read. What was read and is whole is noted for the next time.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tasks.memory import PEAK
from workflows.engine.failures import describe
from workflows.planning.plan import Committed, Plan, Unit
from workflows.store import Commit, Manifest, Store

__all__ = ["verified"]


def verified(plan: Plan, store: Store, notify: Callable[[str], None], *, full: bool = False) -> Committed:
    """Return the committed units after comparing their data with their commits.

    A commit that is damaged, or whose data is missing or damaged, is reported and set aside, so that the unit is
    computed again.

    Arguments:
        plan: The plan.
        store: The store.
        notify: Where notes go, one line each.
        full: Read all data, whether or not it has changed since it was last verified.

    Raises:
        NewerCommit: A later version of puregrid has committed a unit in another form.
    """
    checked = _Check(plan, store)
    with ThreadPoolExecutor(store.files.requests) as threads:
        checked.list_all()
        units = checked.doubtful(full=full)
        checked.read(units, threads, notify)
        # Only now is known what all others have read.
        checked.read(checked.of_other_inputs(), threads, notify)
        list(threads.map(Manifest.write, checked.manifests.values()))
    return checked.committed


class _Check:
    """The units of a plan, those that are believed, and what they read."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self._plan = plan
        self._store = store
        self._read_by_others = {
            source for stage in plan.stages if stage.spec.reads != "rows" for source in stage.inputs.values()
        }  # stages whose images others read
        self._sources = {source for stage in plan.stages for source in stage.inputs.values()}
        self._believed: list[dict[int, int]] = [{} for _ in plan.stages]
        """Of each stage the places in its manifest of the chunks that are believed."""
        self._data: dict[str, dict[str, str]] = {}
        """Hash of each data file that others read, by folder and chunk."""
        self.manifests: dict[tuple[str, str], Manifest] = {}
        self.committed = Committed(plan)

    def _manifest(self, stage: int) -> Manifest:
        planned = self._plan.stages[stage]
        return self.manifests[planned.spec.stage, planned.id]

    def list_all(self) -> None:
        """List the files of every stage."""
        keys = list(dict.fromkeys((stage.spec.stage, stage.id) for stage in self._plan.stages))
        found = self._store.at_once(lambda key: self._store.manifest(*key), keys)
        self.manifests = dict(zip(keys, found, strict=True))
        done = []
        for position, stage in enumerate(self._plan.stages):
            commits = self._manifest(position).commits
            done.append({place for place, chunk in enumerate(stage.chunks) if chunk.name in commits})
        self.committed = Committed(self._plan, done)

    def doubtful(self, *, full: bool) -> list[Unit]:
        """Return the committed units that are not believed."""
        doubtful: list[Unit] = []
        for position, (stage, done) in enumerate(self.committed.by_stage()):
            manifest, others = self._manifest(position), position in self._read_by_others
            believed = self._believed[position]
            for place in sorted(done):
                entry = None if full else manifest.believed(stage.chunks[place].name, images=True)
                if entry is None or (others and not manifest.images[entry]):
                    doubtful.append(Unit(position, place))
                else:
                    believed[place] = entry
            if position in self._sources:
                rows, images = self._data_of(position)
                rows.update((stage.chunks[place].name, manifest.rows[entry]) for place, entry in believed.items())
                images.update((stage.chunks[place].name, manifest.images[entry]) for place, entry in believed.items())
        return doubtful

    def of_other_inputs(self) -> list[Unit]:
        """Return the believed units that read other data than what is now known to be committed."""
        other: set[Unit] = set()
        for position, (stage, believed) in enumerate(zip(self._plan.stages, self._believed, strict=True)):
            for folder, column in self._manifest(position).inputs.items():
                known = self._data.get(folder, {})
                other.update(
                    Unit(position, place)
                    for place, entry in believed.items()
                    if column[entry] and known.get(stage.chunks[place].name) != column[entry]
                )
        return sorted(other, key=lambda unit: (unit.stage, unit.chunk))

    def _data_of(self, stage: int) -> tuple[dict[str, str], dict[str, str]]:
        """Return the hashes of rows and of images of a stage, by chunk."""
        planned = self._plan.stages[stage]
        folders = f"rows/{planned.spec.stage}/{planned.id}", f"adversarial/{planned.id}"
        return self._data.setdefault(folders[0], {}), self._data.setdefault(folders[1], {})

    def read(self, units: list[Unit], threads: ThreadPoolExecutor, notify: Callable[[str], None]) -> None:
        """Read all data of units; what is damaged is reported and set aside, what is whole is noted."""

        def examine(unit: Unit) -> tuple[str | None, Commit | None]:
            stage = self._plan.stages[unit.stage]
            name = stage.chunks[unit.chunk].name
            images = unit.stage in self._read_by_others
            return self._store.examine(stage.spec.stage, stage.id, name, images=images)

        for unit, (trouble, commit) in zip(units, threads.map(examine, units), strict=True):
            stage = self._plan.stages[unit.stage]
            name = stage.chunks[unit.chunk].name
            manifest = self._manifest(unit.stage)
            if trouble is not None or commit is None:
                notify(f"{describe(self._plan, unit)} was committed, but {trouble}; it is computed again")
                manifest.forget(name)
                self._store.revoke(stage.spec.stage, stage.id, name)
                self.committed.discard(unit)
                continue
            times = (commit.seconds, commit.ended)
            manifest.note(name, times, commit.sha256, commit.inputs, commit.note(PEAK))
            if unit.stage in self._sources:
                rows, images = self._data_of(unit.stage)
                for path, sha256 in commit.sha256.items():
                    (rows if path.startswith("rows/") else images)[name] = sha256
