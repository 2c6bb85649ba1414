"""``puregrid run``: check what is committed, compute the rest, and compare its time with the prediction."""

from dataclasses import replace

from workflows.engine.execution import Execution, Notify, Options, ready_to_ask
from workflows.engine.loop import RunOutcome
from workflows.engine.verification import verified
from workflows.grid.load import Sweep
from workflows.monitoring.progress import phase
from workflows.monitoring.run_record import RunRecord, duration
from workflows.planning.forecast import Forecast, forecast, read_forecast
from workflows.planning.machine import refuse_slow, refuse_uncompiled
from workflows.planning.plan import Committed, make_plan
from workflows.planning.stopping import needed
from workflows.planning.summary import notices
from workflows.results.convergence import extended
from workflows.results.reader import Results
from workflows.results.records import record_sweep
from workflows.store import Store

__all__ = ["Options", "run_sweep", "verified"]


def run_sweep(
    sweep: Sweep, store: Store, options: Options, notify: Notify
) -> tuple[RunOutcome, Results, RunRecord | None]:
    """Compute every unit of a sweep that is not committed, and of the cells that ``converge`` in it leads to.

    Arguments:
        sweep: The sweep.
        store: Where to commit.
        options: How to run.
        notify: Where notes go, one line each.

    Returns:
        How it ended, the results, and the record of the run (:mod:`workflows.monitoring.run_record`), None if nothing
        was missing. The results of a sweep with ``converge`` are those of the sweep with all its cells.
    """
    current = extended(sweep, store)
    outcome, results, record = _run(current, store, options, notify)
    while current.converges and not (outcome.failures or outcome.blocked or outcome.interrupted):
        further = extended(sweep, store)
        if len(further.cells) == len(current.cells):
            break
        if outcome.last:
            outcome = replace(outcome, interrupted=True)
            break
        current = further
        notify(f"converge: {len(current.cells)} cells by now")
        more, results, later = _run(current, store, replace(options, preflight=False), notify)
        outcome, record = outcome.and_then(more), later or record
    return outcome, results, record


def _run(
    sweep: Sweep, store: Store, options: Options, notify: Notify
) -> tuple[RunOutcome, Results, RunRecord | None]:
    with phase("planning"):
        plan = make_plan(sweep)
    with phase("checking what is committed"):
        committed = verified(plan, store, notify, full=options.verify == "full")
    record_sweep(sweep, plan, store)
    spared = needed(sweep, plan, committed, store)
    at_most = "at most " if spared is not None and committed.missing else ""
    not_needed = f"{committed.spared} not needed, " if committed.spared else ""
    notify(
        f"{len(sweep.cells)} cells, {plan.units} distinct units, {len(committed)} committed, {not_needed}"
        f"{at_most}{committed.missing} to compute"
    )
    for notice in notices(sweep, plan, store):
        notify(f"note: {notice}")
    if not committed.missing:
        return RunOutcome(spared=committed.spared), Results(store, sweep), None
    if not options.gpus_per_worker and options.address is None:  # of a cluster the driver's machine says nothing
        refuse_uncompiled(committed)
        if not options.slow:
            refuse_slow(committed)
    before = ready_to_ask(sweep, committed, store, options, notify)
    predicted = read_forecast(store, sweep.id)
    costs = {} if predicted is None else dict(predicted.costs)
    execution = Execution(sweep, plan, store, options, notify, costs=costs, before=before, spared=spared)
    outcome, record = execution.run(lambda workers: committed)
    accounts = record.accounts
    if outcome.computed:
        notify(
            f"run: {outcome.computed} units in {duration(accounts.wall_seconds)} on {record.workers_at_most} "
            f"workers: {accounts.units_per_second:.2f} units/s, {accounts.images_per_second:.1f} images/s, "
            f"workers busy {accounts.utilisation or 0:.0%} of their time"
        )
    if outcome.spared:
        notify(f"precise enough: {outcome.spared} of {plan.units} units were not needed")
    if predicted is not None and not (outcome.spared or outcome.failures or outcome.interrupted or outcome.elsewhere):
        comparison = _held_against(predicted, committed, record)
        if comparison:
            notify(comparison)
    return outcome, Results(store, sweep), record


def _held_against(predicted: Forecast, committed: Committed, record: RunRecord) -> str | None:
    """Compare the prediction with the run; None where the run was not the predicted one.

    Of units that were committed since, the prediction is made again from the costs that it recorded.
    """
    same = (predicted.workers, predicted.gpus_per_worker) == (record.workers_at_most, record.gpus_per_worker)
    if not same or 2 * record.accounts.units < predicted.units:
        return None
    again, _ = forecast(
        committed,
        dict(predicted.costs),
        workers=predicted.workers,
        gpus_per_worker=predicted.gpus_per_worker,
        startup_seconds=predicted.startup_seconds,
        overhead_seconds=predicted.overhead_seconds,
    )
    if again is None:
        return None
    measured = record.accounts.wall_seconds
    error = again.wall_seconds / measured - 1
    return (
        f"predicted {duration(again.wall_seconds)} for these {again.units} units, measured {duration(measured)}: "
        f"{abs(error):.0%} too {'long' if error > 0 else 'short'}"
    )
