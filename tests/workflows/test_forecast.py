"""Predictions against closed forms and simulations, and what is measured for them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from naps import Nap, plan_of

from tasks.stages import Chunk, Output
from workflows.engine.calibrate import to_measure
from workflows.engine.run import _held_against
from workflows.monitoring.run_record import RunRecord
from workflows.planning.costs import Cost, Pace, costs_of, interval
from workflows.planning.forecast import Forecast, forecast, predict, read_forecast, write_forecast
from workflows.planning.plan import Committed, Plan, Unit
from workflows.store import Attempt, Store


def _wall(plan: Plan, costs: dict[int, Cost], workers: int, **options: float) -> float:
    """Predicted wall time; costs by the number of the nap."""
    by_kind = {stage.spec.kind: costs[stage.spec.number] for stage in plan.stages}  # type: ignore[attr-defined]
    found, _ = forecast(Committed(plan), by_kind, workers=workers, **options)
    assert found is not None
    return found.wall_seconds


class Heavy(Nap):
    """A nap with models of its own, so that naps of two numbers are of two kinds."""

    def model_key(self) -> str:
        return f"model-{self.number}"


class TestWallTime:
    def test_the_last_wave_counts(self) -> None:
        # Five units of two images, 1 s an image: three waves on two workers, not two and a half.
        plan = plan_of([Nap(number=0)], 5)
        assert _wall(plan, {0: Cost(1, 1.0)}, 1) == 10
        assert _wall(plan, {0: Cost(1, 1.0)}, 2) == 6
        assert _wall(plan, {0: Cost(1, 1.0)}, 5) == _wall(plan, {0: Cost(1, 1.0)}, 99) == 2

    def test_a_unit_waits_for_what_it_reads(self) -> None:
        source = Heavy(number=1)
        plan = plan_of([Heavy(number=2, source=source)], 1)
        assert _wall(plan, {1: Cost(1, 1.0), 2: Cost(1, 10.0)}, 8) == 2 * 1 + 2 * 10

    def test_models_are_loaded_once_a_worker_and_each_unit_has_its_overhead(self) -> None:
        plan = plan_of([Heavy(number=1)], 6)
        cost = {1: Cost(1, 1.0, loading=30.0)}
        assert _wall(plan, cost, 1) == 30 + 12
        assert _wall(plan, cost, 3) == 30 + 4
        assert _wall(plan, cost, 3, overhead_seconds=0.5, startup_seconds=7.0) == 7 + 30 + 2 * 2.5

    def test_what_is_committed_costs_nothing(self) -> None:
        plan = plan_of([Nap(number=0)], 10)
        kind = plan.stages[0].spec.kind
        found, stages = forecast(
            Committed(plan, [set(range(7))]), {kind: Cost(2, 0.5, 0.0)}, workers=1, startup_seconds=2.0
        )
        assert found is not None and stages[0] is not None
        assert (found.units, found.compute_seconds, found.wall_seconds) == (3, 3.0, 5.0)
        assert (stages[0].units, stages[0].seconds) == (3, 3.0)
        done, _ = forecast(Committed(plan, [set(range(10))]), {}, workers=1, startup_seconds=2.0)
        assert done is not None and done.wall_seconds == 0  # nothing to start Ray for, and nothing unknown

    def test_an_unknown_kind_is_not_guessed(self) -> None:
        plan = plan_of([Heavy(number=1), Heavy(number=2)], 3)
        found, stages = forecast(Committed(plan), {plan.stages[0].spec.kind: Cost(3, 1.0, 0.1)}, workers=1)
        assert found is None
        assert stages[0] is not None and stages[0].seconds == 6 and stages[1] is None

    def test_long_plans_are_divided_and_agree_with_the_play(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = plan_of([Heavy(number=1), Heavy(number=2)], 200)
        costs = {1: Cost(1, 0.1), 2: Cost(1, 0.3)}
        played = _wall(plan, costs, 3)
        monkeypatch.setattr("workflows.planning.forecast._PLAYED", 10)
        assert _wall(plan, costs, 3) == pytest.approx(200 * 2 * 0.4 / 3)
        assert played == pytest.approx(_wall(plan, costs, 3), rel=0.01)

    def test_gpu_hours_are_those_that_the_run_holds(self) -> None:
        plan = plan_of([Nap(number=0)], 4)
        found, _ = forecast(
            Committed(plan), {plan.stages[0].spec.kind: Cost(1, 900.0)}, workers=4, gpus_per_worker=0.5
        )
        assert found is not None and found.gpu_hours == 4 * 0.5 * 0.5


class TestInterval:
    def test_it_covers_what_it_says(self) -> None:
        rng = np.random.default_rng(7)
        works = np.array([1.0, 2.0, 2.0, 5.0, 1.0, 3.0])
        covered, trials = 0, 2000
        for _ in range(trials):
            measured = rng.normal(10, 2, 4)
            cost = Cost(4, float(measured.mean()), float(measured.std(ddof=1)))
            half = interval(cost, float(works.sum()), float((works**2).sum()))
            assert half is not None
            covered += abs(float((rng.normal(10, 2, 6) * works).sum()) - cost.rate * works.sum()) <= half
        assert abs(covered / trials - 0.95) < 0.02  # 4 standard errors

    def test_two_units_have_none(self) -> None:
        assert interval(Cost(2, 1.0, 0.1), 5.0, 5.0) is None
        assert interval(Cost(3, 1.0, 0.1), 4.0, 8.0) == pytest.approx(4.302653 * 0.1 * math.sqrt(8 + 16 / 3))

    def test_the_wall_time_has_that_of_all_kinds_divided_by_the_workers(self) -> None:
        plan = plan_of([Heavy(number=1), Heavy(number=2)], 8)
        kinds = [stage.spec.kind for stage in plan.stages]
        costs = {kinds[0]: Cost(3, 1.0, 0.2), kinds[1]: Cost(4, 2.0, 0.5)}
        found, stages = forecast(Committed(plan), costs, workers=2)
        assert found is not None and found.low is not None and found.high is not None
        halves = [stage.half for stage in stages if stage is not None and stage.half is not None]
        assert found.high - found.wall_seconds == pytest.approx(math.hypot(*halves) / 2)
        assert found.wall_seconds - found.low == pytest.approx(math.hypot(*halves) / 2)
        one, _ = forecast(Committed(plan), costs | {kinds[1]: Cost(2, 2.0, 0.5)}, workers=2)
        assert one is not None and one.low is None


def _commit(store: Store, spec: Nap, chunk: Chunk, seconds: float, loading: float = 0.0, gpu: bool = False) -> None:
    rows = pa.table({"image_id": pa.array(chunk.ids, pa.int32())})
    notes = {"loading_seconds": loading} if loading else {}
    versions = {"device": "some GPU"} if gpu else {}
    record = Attempt(f"{seconds}", seconds, "h", versions)
    store.commit(spec, spec.id, chunk, Output(rows, notes=notes), record)


class TestMeasuring:
    def test_the_first_unit_of_a_process_is_apart(self, tmp_path: Path) -> None:
        store, spec = Store(str(tmp_path)), Nap(number=0)
        plan = plan_of([spec], 4)
        took = ((5.0, 8.0), (2.0, 0.0), (4.0, 0.01), (3.0, 0.0))
        for chunk, (seconds, loading) in zip(plan.stages[0].chunks, took, strict=True):
            _commit(store, spec, chunk, seconds, loading)
        (cost,) = costs_of(plan.committed(store), store).values()
        # Two images a chunk: 1, 2 and 1.5 s an image. The first one took 5 s instead of 3, and 8 s to load.
        assert (cost.units, cost.rate, cost.spread, cost.first) == (3, 1.5, 0.5, False)
        assert cost.loading == 8 + 2
        (only,) = costs_of(Committed(plan, [{0}]), store).values()
        assert (only.units, only.rate, only.first, only.loading) == (1, 2.5, True, 8.0)

    def test_gpus_do_not_speak_for_processors(self, tmp_path: Path) -> None:
        store, spec = Store(str(tmp_path)), Nap(number=0)
        plan = plan_of([spec], 2)
        _commit(store, spec, plan.stages[0].chunks[0], 2.0)
        _commit(store, spec, plan.stages[0].chunks[1], 0.2, gpu=True)
        done = plan.committed(store)
        rates = [[c.rate for c in costs_of(done, store, gpu=gpu).values()] for gpu in (False, True, None)]
        assert rates[:2] == [[1.0], [0.1]] and rates[2] == [pytest.approx(0.55)]

    def test_a_long_stage_is_sampled_from_end_to_end(self, tmp_path: Path) -> None:
        store, spec = Store(str(tmp_path)), Nap(number=0)
        plan = plan_of([spec], 100)
        for position, chunk in enumerate(plan.stages[0].chunks):
            _commit(store, spec, chunk, 2.0 * position)
        (cost,) = costs_of(plan.committed(store), store).values()
        assert cost.units == 8 and 35 < cost.rate < 55  # the mean of all is 49.5

    def test_what_is_measured_has_its_sources_and_leaves_most_to_predict(self) -> None:
        source = Heavy(number=1)
        plan = plan_of([source, Heavy(number=2, source=source), Heavy(number=3)], 30)
        nothing = Committed(plan)
        chosen = to_measure(nothing, set(), per_kind=5)
        assert Counter(unit.stage for unit in chosen) == {0: 5, 1: 5, 2: 5}
        assert {Unit(0, unit.chunk) for unit in chosen if unit.stage == 1} <= chosen
        assert Counter(unit.stage for unit in to_measure(nothing, set(), per_kind=50)) == {0: 10, 1: 10, 2: 10}
        kinds = [stage.spec.kind for stage in plan.stages]
        # A kind that is known is computed only as far as others read it.
        some = Committed(plan, [{3, 4}, set(), set()])
        assert to_measure(some, {kinds[0], kinds[2]}, 4) == {
            *(Unit(0, chunk) for chunk in (0, 1)),
            *(Unit(1, chunk) for chunk in (0, 1, 3, 4)),
        }
        assert to_measure(nothing, set(kinds), 2) == set()

    def test_a_small_sweep_is_measured_whole(self) -> None:
        plan = plan_of([Nap(number=0)], 2)
        assert to_measure(Committed(plan), set(), per_kind=7) == {Unit(0, 0), Unit(0, 1)}


def _run(*, workers: int, units: int, wall_seconds: float) -> RunRecord:
    """The record of a run that ended on that many workers without GPUs."""
    rates = {"units_per_second": 0.0, "images_per_second": 0.0, "utilisation": None}
    seconds = {
        "wall_seconds": wall_seconds,
        "computing_seconds": 0.0,
        "startup_seconds": None,
        "overhead_seconds": None,
    }
    when = dict.fromkeys(("started", "updated", "ended"), "2026-01-01T00:00:00+00:00")
    counts = {"units": units, "images": units, "to_compute": units, "done": units, "alive": 0}
    rest = {"run": "r", "purpose": "run", "driver": "h 1", "gpus_per_worker": 0.0, "state": "finished"}
    more = {"left_seconds": None, "workers_at_most": workers}
    return RunRecord.from_json({**rates, **seconds, **when, **counts, **rest, **more})


class TestRecord:
    @pytest.mark.parametrize("where", ["folder", "memory"])
    def test_a_prediction_comes_back_as_it_was(self, where: str, tmp_path: Path) -> None:
        store = Store(str(tmp_path) if where == "folder" else f"memory://{tmp_path.name}")
        plan = plan_of([Heavy(number=1)], 3)
        found, _ = forecast(Committed(plan), {plan.stages[0].spec.kind: Cost(4, 0.3, 0.01, 2.0)}, workers=3)
        assert found is not None and read_forecast(store, "s") is None
        write_forecast(store, "s", found)
        assert read_forecast(store, "s") == found
        store.files.write("sweeps/s/forecast.json", b'{"from": "another version"}')
        assert read_forecast(store, "s") is None

    def test_a_run_is_held_against_what_was_predicted_for_its_units(self) -> None:
        plan = plan_of([Nap(number=0)], 20)
        costs = {plan.stages[0].spec.kind: Cost(3, 1.0, 0.0)}
        found, _ = forecast(Committed(plan), costs, workers=2, startup_seconds=10.0)
        assert isinstance(found, Forecast) and found.wall_seconds == 30
        run = _run(workers=2, units=20, wall_seconds=40.0)
        said = "predicted 30 s for these 20 units, measured 40 s: 25% too short"
        assert _held_against(found, Committed(plan), run) == said
        # Of ten that are left it is ten units' time, and of five nothing is said.
        rest = _run(workers=2, units=10, wall_seconds=16.0)
        said = "predicted 20 s for these 10 units, measured 16 s: 25% too long"
        assert _held_against(found, Committed(plan, [set(range(10))]), rest) == said
        five = _run(workers=2, units=5, wall_seconds=40.0)
        assert _held_against(found, Committed(plan, [set(range(15))]), five) is None
        other = _run(workers=3, units=20, wall_seconds=40.0)
        assert _held_against(found, Committed(plan), other) is None
        assert _held_against(replace(found, gpus_per_worker=1.0), Committed(plan), run) is None

    def test_without_a_run_the_start_is_not_made_up(self, tmp_path: Path) -> None:
        store, spec = Store(str(tmp_path)), Nap(number=0)
        plan = plan_of([spec], 3)
        _commit(store, spec, plan.stages[0].chunks[0], 2.0)
        found, _ = predict(plan.committed(store), store, "s", workers=1)
        assert found is not None
        assert (found.startup_seconds, found.wall_seconds) == (None, 4.0)


class TestPace:
    def test_time_left_is_known_when_every_kind_is(self) -> None:
        plan = plan_of([Heavy(number=1), Heavy(number=2)], 4)
        kinds = [stage.spec.kind for stage in plan.stages]
        pace = Pace(Committed(plan, [{0}, set()]))
        assert pace.left() is None
        pace.took(Unit(0, 1), 3.0)
        pace.done(Unit(0, 1))
        assert pace.left() is None
        known = Pace(Committed(plan, [{0}, set()]), {kinds[1]: Cost(1, 0.25)})
        known.took(Unit(0, 1), 3.0)
        known.done(Unit(0, 1))
        assert known.left() == pytest.approx(2 * 3.0 + 4 * 2 * 0.25)
        for unit in (Unit(0, 2), Unit(0, 3), *(Unit(1, chunk) for chunk in range(4))):
            known.done(unit)
        assert known.left() == 0
