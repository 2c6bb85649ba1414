"""Measure what a sweep will cost: run a few of its own units, the ordinary way, and predict the rest.

For each kind of unit whose cost is not in the store, one unit runs first, so that its files are in the machine's
memory as they will be for the run. New workers then measure their own start, the loading of models (one unit per
worker) and three more units, together at most a third of the missing ones, and also run whatever these units read.
There are as many workers as the sweep will have, because workers on one machine slow each other down. Every unit is
committed, so nothing is computed twice.
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from defense.errors import PuregridError
from tasks.stages.kind import Kind
from workflows.engine.execution import Execution, Options, nothing, ready_to_ask
from workflows.engine.verification import verified
from workflows.grid.load import Sweep
from workflows.planning.costs import costs_of, kinds_of
from workflows.planning.forecast import Forecast, StageCost, default_workers, predict, write_forecast
from workflows.planning.plan import Committed, Plan, Unit
from workflows.planning.stopping import needed
from workflows.results.records import record_sweep
from workflows.store import Store

__all__ = ["calibrate", "to_measure"]

MEASURED = 3
"""Units of a kind that are measured beside those that load its models: the least that have a spread."""


def to_measure(committed: Committed, known: AbstractSet[Kind], per_kind: int) -> set[Unit]:
    """Choose the units to run.

    Arguments:
        committed: The units of the plan that are committed.
        known: Kinds that need no measuring.
        per_kind: Units of each kind, if a third of the missing ones is as many.
    """
    plan = committed.plan
    kinds = kinds_of(plan)
    chosen: set[Unit] = set()
    for kind in dict.fromkeys(kinds):
        stages = [position for position, other in enumerate(kinds) if other == kind]
        missing = sum(committed.missing_of(i) for i in stages)
        if kind in known or not missing:
            continue
        want = min(missing, per_kind, max(1 + MEASURED, missing // 3))
        want -= sum(kinds[unit.stage] == kind for unit in chosen)  # other kinds need those
        # Round by round over the stages, so that all budgets and depths are among the units; what needs no other
        # unit to be computed before goes first.
        rounds = max(len(plan.stages[i].chunks) for i in stages)
        for with_inputs in (False, True):
            for unit in (Unit(i, chunk) for chunk in range(rounds) for i in stages):
                if want <= 0 or unit.chunk >= len(plan.stages[unit.stage].chunks):
                    continue
                if unit in committed or unit in chosen:
                    continue
                needs = _needs(committed, chosen, unit)
                if with_inputs or needs == [unit]:
                    chosen.update(needs)
                    want -= sum(kinds[need.stage] == kind for need in needs)
    return chosen


def _needs(committed: Committed, chosen: set[Unit], unit: Unit) -> list[Unit]:
    """Return the unit and all units that must be computed before it."""
    if unit in committed or unit in chosen:
        return []
    sources = set(committed.plan.stages[unit.stage].inputs.values())
    before = [need for i in sorted(sources) for need in _needs(committed, chosen, Unit(i, unit.chunk))]
    return [*dict.fromkeys(before), unit]


def calibrate(
    sweep: Sweep, plan: Plan, store: Store, options: Options, notify: Callable[[str], None]
) -> tuple[Forecast, list[StageCost | None]]:
    """Run the units that are needed to predict the others, predict, and record the prediction.

    Raises:
        PuregridError: A kind of unit could not be measured.
        KeyboardInterrupt: Ctrl-C ended it.
    """
    committed = verified(plan, store, notify)
    record_sweep(sweep, plan, store)
    before = ready_to_ask(sweep, committed, store, options, notify)
    gpu = options.gpus_per_worker > 0
    known = {kind for kind, cost in costs_of(committed, store, gpu=gpu).items() if not cost.first}
    threads = max(stage.spec.settings().threads for stage in plan.stages)
    workers = options.workers or default_workers(threads, options.gpus_per_worker)

    for warm in (False, True):
        done = plan.committed(store)
        needed(sweep, plan, done, store)

        def rest(workers: int, done: Committed = done, warm: bool = warm) -> Committed:
            return Committed.all_but(plan, to_measure(done, known, workers + MEASURED if warm else 1))

        if not to_measure(done, known, 1):
            break
        execution = Execution(sweep, plan, store, options, notify, purpose="calibration", before=before)
        outcome, record = execution.run(rest)
        before = nothing
        workers = max(workers, record.workers_at_most or 0) if options.workers is None else options.workers
        if outcome.interrupted:
            raise KeyboardInterrupt
        if outcome.failures:
            raise PuregridError(
                f"{len(outcome.failures)} of the units to measure failed, last: {outcome.failures[-1].error}; "
                "`puregrid status` shows why. What was measured is committed."
            )
    committed = plan.committed(store)
    needed(sweep, plan, committed, store)
    prediction, stages = predict(
        committed,
        store,
        sweep.id,
        workers=workers,
        gpus_per_worker=options.gpus_per_worker,
        gpu=gpu,
    )
    if prediction is None:
        raise PuregridError("a kind of unit could not be measured; run the same command again.")
    if prediction.units:
        write_forecast(store, sweep.id, prediction)
    return prediction, stages
