"""One run of a plan: start workers, have them compute what is missing, and record what happened."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import ray
from ray.exceptions import GetTimeoutError, RayError

from defense.errors import PuregridError
from tasks.stages.kind import Kind
from workflows.engine.attempts import Event, cause
from workflows.engine.cluster import cluster, slots
from workflows.engine.failures import describe, failure_path, record_failure
from workflows.engine.loop import RunOutcome, run_plan
from workflows.engine.pool import Pool
from workflows.grid.load import Sweep
from workflows.monitoring.events import log_event, log_to
from workflows.monitoring.previews import Previews
from workflows.monitoring.progress import SweepProgress, phase
from workflows.monitoring.run_record import RunRecord, RunRecorder
from workflows.planning.costs import Cost, Pace, missing_work
from workflows.planning.forecast import default_workers
from workflows.planning.machine import per_gpu
from workflows.planning.plan import Committed, Plan
from workflows.planning.scheduler import Failure
from workflows.planning.stopping import Spared
from workflows.preflight import Answer, Check, ask, preflight
from workflows.store import Store
from workflows.store.packing import Packer

__all__ = ["Execution", "Notify", "Options", "nothing", "ready_to_ask"]

Notify = Callable[[str], None]

_START_SECONDS, _ORDER_SECONDS = 300.0, 1800.0


@dataclass(frozen=True)
class Options:
    """How to run a sweep; nothing of this changes a row.

    Arguments:
        workers: Number of workers; by default as many as there are processors or GPUs for, also of nodes that join a
            cluster later.
        gpus_per_worker: GPUs each worker takes, fractions allowed; 0 for CPU workers.
        address: Address of a Ray cluster, ``auto``, or None to start one here.
        max_attempts: Attempts per unit before it is quarantined.
        unit_timeout: Seconds after which a unit counts as stuck.
        quiet: No progress bar.
        log: File to which events are appended, one JSON object a line.
        preflight: Ask every distinct part once before units are computed.
        slow: Compute even what this machine is not made for, such as bfloat16 on a processor without it.
        verify: What of the committed data is read before: what has changed since it was last read, or all (``full``).
        preview: Makes a table of what is committed, to be shown above the bar now and then; empty if there is none.
    """

    workers: int | None = None
    gpus_per_worker: float = 0.0
    address: str | None = None
    max_attempts: int = 3
    unit_timeout: float = 3600.0
    quiet: bool = False
    log: Path | None = None
    preflight: bool = True
    verify: Literal["changed", "full"] = "changed"
    slow: bool = False
    preview: Callable[[], str] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no share of a GPU."""
        per_gpu(self.gpus_per_worker)


def _start_seconds(options: Options) -> float:
    """Seconds to wait for a first worker: longer on a cluster, whose machines may have to be ordered first."""
    return _START_SECONDS if options.address is None else _ORDER_SECONDS


class Execution:
    """One run of the missing units of a plan.

    Arguments:
        sweep: The sweep.
        plan: Its plan.
        store: Where to commit.
        options: How to run.
        notify: Where notes go, one line each.
        purpose: ``run`` or ``calibration``.
        costs: What units are known to cost, for the time left.
        before: Called once the cluster is there, before workers start.
        spared: Decides which units no answer needs any more; without it all are computed.
    """

    def __init__(
        self,
        sweep: Sweep,
        plan: Plan,
        store: Store,
        options: Options,
        notify: Notify,
        *,
        purpose: str = "run",
        costs: Mapping[Kind, Cost] | None = None,
        before: Callable[[], None] = lambda: None,
        spared: Spared | None = None,
    ) -> None:
        self._sweep = sweep
        self._plan = plan
        self._store = store
        self._options = options
        self._notify = notify
        self._purpose = purpose
        self._costs = costs
        self._before = before
        self._spared = spared
        self._threads = max(stage.spec.settings().threads for stage in plan.stages)
        self._packer: Packer | None = None
        self._failed_before = set(store.files.names(f"sweeps/{sweep.id}/failures"))
        self._same_store_seen = options.address is None
        """Whether a commit of a worker was found in the store that this driver sees."""

    def run(self, committed_for: Callable[[int], Committed]) -> tuple[RunOutcome, RunRecord]:
        """Start workers and compute what is missing.

        Arguments:
            committed_for: The units that need no work, given the number of workers that there is room for.

        Returns:
            How it ended, and the record of the run.
        """
        wanted = self._options.workers or default_workers(self._threads)
        at_first = committed_for(wanted)
        units = at_first.missing
        recorder = RunRecorder(
            self._store, self._sweep.id, self._purpose, self._options.gpus_per_worker, to_compute=units
        )
        threads = min(wanted, units) * self._threads
        with (
            self._packing(at_first) as self._packer,  # outside: what is left is packed while the cluster ends
            log_to(self._options.log, run=recorder.id),
            cluster(threads, self._options.address),
        ):
            self._before()
            room = self._options.workers or slots(self._threads, self._options.gpus_per_worker)
            committed = committed_for(room)
            recorder.to_compute = committed.missing
            workers = min(room, committed.missing)
            log_event(
                "planned",
                sweep=self._sweep.name,
                sweep_id=self._sweep.id,
                purpose=self._purpose,
                units=committed.missing,
                workers=workers,
            )
            with phase(f"starting {workers} workers"):
                pool = self._pool(workers, committed.missing, recorder)
            outcome, state = RunOutcome(), "failed"
            try:
                outcome = self._compute(committed, pool, recorder)
                state = "stopped" if outcome.interrupted else "failed" if outcome.failures else "finished"
                if self._packer is not None:
                    (self._packer.stop if outcome.interrupted else self._packer.no_more)()
            except KeyboardInterrupt:
                state = "stopped"
                raise
            finally:
                record = self._end(state, outcome, pool, recorder)
        return replace(outcome, last=self._packer is not None and self._packer.interrupted), record

    def _pool(self, workers: int, units: int, recorder: RunRecorder) -> Pool:
        """Start the workers; a growing cluster gets as many as it has room and work for."""
        elastic = self._options.workers is None and self._options.address is not None
        return Pool(
            self._store.uri,
            units if elastic else workers,
            gpus_per_worker=self._options.gpus_per_worker,
            threads=self._threads,
            unit_timeout=self._options.unit_timeout,
            start_timeout=_start_seconds(self._options),
            elastic=elastic,
            notify=self._notify,
            ledger=recorder.ledger,
        )

    def _compute(self, committed: Committed, pool: Pool, recorder: RunRecorder) -> RunOutcome:
        """Have the workers compute what is missing, with a progress bar and a record that is kept up to date."""
        total, done = self._plan.units, self._plan.units - committed.missing
        if self._purpose != "run":
            total, done = committed.missing, 0
        quiet, work = self._options.quiet, missing_work(committed)
        with SweepProgress(total, done, work, quiet=quiet, say=self._notify) as progress:
            if self._purpose != "run":
                progress.phase("measuring")

            previews = Previews(self._options.preview or str, progress.show)

            def on_tick(done: int, left: float | None) -> None:
                recorder.progress(pool.workers, done, left)
                progress.expected(left)
                previews.tick(done)

            return run_plan(
                committed,
                pool,
                progress,
                max_attempts=self._options.max_attempts,
                store=self._store,
                on_event=self._on_event,
                on_tick=on_tick,
                pace=Pace(committed, self._costs),
                spared=self._spared,
            )

    @contextmanager
    def _packing(self, committed: Committed) -> Iterator[Packer | None]:
        """Pack the rows of what a run commits beside it, and wait a while for the last; of a calibration none."""
        if self._purpose != "run":
            yield None
            return

        def chunks_of(number: int) -> tuple[str, str, list[str]]:
            stage = self._plan.stages[number]
            return stage.spec.stage, stage.id, [chunk.name for chunk in stage.chunks]

        missing = list(map(committed.missing_of, range(len(self._plan.stages))))
        with Packer(self._store, chunks_of, missing) as packer:
            yield packer
            if not packer.stopped:
                with phase("packing the rows for tables"):
                    packer.finish()

    def _end(self, state: str, outcome: RunOutcome, pool: Pool, recorder: RunRecorder) -> RunRecord:
        """Record how the run ended, end the workers, and log it."""
        record = recorder.finish(state, outcome.elsewhere, workers_at_most=pool.most)
        pool.close()
        log_event(
            "drained" if state == "stopped" else state,
            units=outcome.computed,
            elsewhere=outcome.elsewhere or None,
            failed=len(outcome.failures) or None,
            seconds=record.accounts.wall_seconds,
        )
        return record

    def _on_event(self, event: Event, failure: Failure | None) -> None:
        """Report what happened to a unit, and keep the records of failures."""
        if event.receipt is not None:
            self._on_receipt(event)
        if failure is not None:
            unit = describe(self._plan, event.unit)
            if failure.final:
                self._notify(f"{unit} failed and is not tried again, since the input is to blame: {failure.error}")
            else:
                self._notify(f"{unit} failed {failure.attempts} times, last: {failure.error}")
            record_failure(self._sweep, self._plan, self._store, failure)
        elif event.receipt is None and event.started:
            self._notify(f"{describe(self._plan, event.unit)} is tried again: {event.error}")

    def _on_receipt(self, event: Event) -> None:
        """Have the rows of a unit packed that is committed, and delete the record of its failure."""
        if self._packer is not None:
            self._packer.landed(event.unit.stage)
        if not self._same_store_seen:
            self._see_same_store(event)
        path = failure_path(self._sweep, self._plan, event.unit)
        if path.rpartition("/")[2] in self._failed_before:
            self._store.files.delete(path)

    def _see_same_store(self, event: Event) -> None:
        """Workers on other machines and this driver see one store, or what they commit is lost to it.

        Raises:
            PuregridError: They do not.
        """
        stage = self._plan.stages[event.unit.stage]
        chunk = stage.chunks[event.unit.chunk].name
        if chunk not in self._store.committed_chunks(stage.spec.stage, stage.id):
            raise PuregridError(
                f"a worker says that {describe(self._plan, event.unit)} is committed, but the store "
                f"{self._store.uri} that this driver sees does not have it: the folder is another one on the "
                "worker's machine. Give --store a folder that all machines share, or a bucket."
            )
        self._same_store_seen = True


def nothing() -> None:
    """Ask nothing."""


def ready_to_ask(
    sweep: Sweep, committed: Committed, store: Store, options: Options, notify: Notify
) -> Callable[[], None]:
    """Do the preflight of a run, or return what does it once there is a cluster.

    Workers on processors are like this process. A GPU is asked by a Ray task that takes what one worker takes and
    ends with its process, so that its memory is free when workers start; the driver needs no GPU.

    Arguments:
        sweep: The sweep.
        committed: The units of its plan that need no work.
        store: Where records of checks are.
        options: How the sweep is run.
        notify: Where notes go, one line each.

    Raises:
        InvalidInput: A part of the sweep cannot be computed with; at its entry in the sweep file.
    """
    if not options.preflight:
        return nothing
    if not options.gpus_per_worker:
        preflight(sweep, committed, store, notify)
        return nothing
    threads = max(stage.spec.settings().threads for stage in committed.plan.stages)
    on = partial(_on_a_worker, threads=threads, options=options)
    return partial(preflight, sweep, committed, store, notify, device="cuda", on=on)


def _on_a_worker(checks: Sequence[Check], *, threads: int, options: Options) -> list[Answer]:
    """Ask on a GPU of the cluster; where none answers, say so of the first check and leave the rest to the units."""
    task = ray.remote(_ask_gpu).options(
        num_cpus=threads, num_gpus=options.gpus_per_worker, max_calls=1, max_retries=0
    )
    reference = task.remote(list(checks))
    try:
        answers: list[Answer] = ray.get(reference, timeout=_start_seconds(options))
    except GetTimeoutError:
        ray.cancel(reference, force=True)
        return [Answer(checks[0], 0.0, skipped=f"no GPU of the cluster was free in {_start_seconds(options):g} s")]
    except RayError as error:
        return [Answer(checks[0], 0.0, skipped=f"its process on a GPU ended ({cause(error)})")]
    return answers


def _ask_gpu(checks: list[Check]) -> list[Answer]:
    return list(ask(checks, "cuda"))
