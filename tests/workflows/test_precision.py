"""``precision`` in a sweep: which images come first, where cells stop, and that nothing else depends on it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grids_small import swept
from naps import SharedRay
from test_scheduler import make
from typer.testing import CliRunner

from defense.errors import InvalidInput
from workflows.analysis import Analysis
from workflows.audit import findings
from workflows.audit.excess import exceeds
from workflows.audit.view import views
from workflows.cli import app
from workflows.engine.run import Options, run_sweep
from workflows.engine.worker import UnitWorker
from workflows.grid.load import Sweep
from workflows.grid.precision import random_order
from workflows.planning.plan import Committed, Plan, Unit, make_plan
from workflows.planning.scheduler import Scheduler
from workflows.planning.stopping import Stopping, needed
from workflows.planning.summary import summarise
from workflows.results.reader import Results
from workflows.statistics.sequences import anytime, anytime_difference, evidence, sequence_ends
from workflows.store import Store
from workflows.store.blocks import Blocks

SWEEP = """\
sweep: precise
datasets: [{dataset: digits, images: {first: 320}}]
classifiers: [digits-cnn]
defences: [none, {purifier: jpeg, quality: 20}]
attacks:
  - none
  - {attack: fgsm, norm: linf, eps: [0.05, 0.12]}
chunk: 32
precision: {half_width: 9}
"""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Store]:
    """All units of the sweep, whatever precision would need."""
    folder = tmp_path_factory.mktemp("full")
    sweep = swept(folder, SWEEP)
    store = Store(str(folder / "store"))
    plan = make_plan(sweep)
    work(plan, store, ((i, k) for i, stage in enumerate(plan.stages) for k in range(len(stage.chunks))))
    return sweep, store


def work(plan: Plan, store: Store, units: Iterable[tuple[int, int]]) -> None:
    """Compute and commit units in this process."""
    worker = UnitWorker(store.uri, "cpu")
    for position, chunk in units:
        stage = plan.stages[position]
        inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
        worker.run(stage.spec, stage.id, stage.chunks[chunk], inputs)


def take_over(source: Store, store: Store, plan: Plan, units: Iterable[tuple[int, int]]) -> None:
    """Commit units as another store has them: what they compute depends on nobody."""
    for position, chunk in units:
        stage = plan.stages[position]
        for kind, ending in (("rows", "parquet"), ("commits", "json")):
            path = f"{kind}/{stage.spec.stage}/{stage.id}/{stage.chunks[chunk].name}.{ending}"
            Path(store.uri, path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(source.uri, path), Path(store.uri, path))


def with_precision(sweep: Sweep, **fields: Any) -> Sweep:
    """The same cells with another precision."""
    folder = Path(sweep.document.folder)
    return swept(folder, SWEEP.replace("{half_width: 9}", json.dumps(fields)))


def stops(sweep: Sweep, store: Store) -> list[int | None]:
    stopping = Stopping(sweep, store)
    stopping.look()
    return [stopping.stop(position) for position in range(len(sweep.cells))]


# ------------------------------------------------------------------------------------------------------- images


def test_images_come_in_a_fixed_random_order() -> None:
    order = random_order(range(1000))
    assert sorted(order) == list(range(1000)) and order == random_order(reversed(range(1000)))
    # Some of the images have the order of all, so that sweeps of either are paired on what they share.
    assert random_order(range(0, 1000, 7)) == [i for i in order if i % 7 == 0]
    # No trend: ranks do not follow ids. Spearman's rho of 1000 random ranks is below 0.1 in 99.8 % of the cases.
    assert abs(np.corrcoef(np.arange(1000), np.argsort(order))[0, 1]) < 0.1


def test_ids_depend_on_whether_there_is_a_precision_and_not_on_what_it_says(tmp_path: Path) -> None:
    plain = swept(tmp_path, SWEEP.replace("precision: {half_width: 9}\n", ""))
    kinds: list[dict[str, Any]] = [{"half_width": 2}, {"half_width": 5, "of": "images", "measure": "worst"}]
    kinds += [{"decide": {"threshold": 50}}, {"decide": {"between": ["none", {"purifier": "jpeg", "quality": 20}]}}]
    one, *others = [with_precision(plain, **fields) for fields in kinds]
    for other in others:
        assert [cell.id for cell in other.cells] == [cell.id for cell in one.cells]
        assert other.id == one.id
    ids = [[i for chunk in sweep.cells[0].images.chunks for i in chunk.ids] for sweep in (plain, one)]
    assert ids[0] == list(range(320)) and ids[1] == random_order(range(320))
    # Stages are the same ones: only their chunks are others.
    assert [cell.evaluate.id for cell in one.cells] == [cell.evaluate.id for cell in plain.cells]


def test_a_sweep_in_python_and_its_record_say_the_same(tmp_path: Path) -> None:
    first = with_precision(swept(tmp_path, SWEEP), decide={"between": ["none", {"quality": 20}]}, of="images")
    again = Sweep(
        "precise",
        datasets=[{"dataset": "digits", "images": {"first": 320}}],
        classifiers=["digits-cnn"],
        defences=["none", {"purifier": "jpeg", "quality": 20}],
        attacks=["none", {"attack": "fgsm", "norm": "linf", "eps": [0.05, 0.12]}],
        chunk=32,
        precision={"decide": {"between": ["none", {"quality": 20}]}, "of": "images"},
    )
    recorded = swept(tmp_path, again.text)
    assert first.id == again.id == recorded.id
    assert first.precision == again.precision == recorded.precision
    assert [q.cells for q in first.questions] == [q.cells for q in recorded.questions] == [(0, 3), (1, 4), (2, 5)]


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("2", "precision: a mapping was expected"),
        ("{}", "give `half_width`, in points, or `decide`"),
        ("{half_width: 2, decide: {threshold: 50}}", "and not both"),
        (
            "{half_width: 0.02}",
            r"precision\.half_width: half_width = 0\.02 .*greater than or equal to 0\.5.*in points",
        ),
        ("{half_width: 60}", "wider than any answer"),
        ("{halfwidth: 2}", "did you mean 'half_width'"),
        ("{half_width: 2, of: everything}", "precision.of"),
        ("{decide: {threshold: 100}}", r"decide\.threshold"),
        ("{decide: {threshold: 0.5}}", r"threshold = 0\.5 .*It is in %, like 50"),
        ("{decide: {between: [none]}}", "two defences"),
        ("{decide: {threshold: 50, between: [none, jpeg]}}", "and not both"),
        ("{decide: {between: [none, diffpure]}}", r"between\.1: 'diffpure' matches no defence"),
        ("{decide: {between: [none, none]}}", "no threat in common"),
        ("{decide: {between: [none, {qualty: 20}]}}", r"between\.1: {'qualty': 20} matches no defence"),
    ],
)
def test_a_wrong_precision_is_refused_at_its_place(tmp_path: Path, precision: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        swept(tmp_path, SWEEP.replace("{half_width: 9}", precision))
    assert "s.yaml:9" in str(caught.value)


def test_a_side_that_is_two_defences_is_refused(tmp_path: Path) -> None:
    text = SWEEP.replace("quality: 20", "quality: [20, 40]").replace(
        "{half_width: 9}", "{decide: {between: [none, jpeg]}}"
    )
    with pytest.raises(InvalidInput, match=r"'jpeg' matches 2 \(.*name more of its parameters"):
        swept(tmp_path, text)


def test_an_attack_on_no_defence_is_beside_each_of_its_adaptive_forms(tmp_path: Path) -> None:
    text = SWEEP.replace(
        "attack: fgsm, norm: linf, eps: [0.05, 0.12]",
        "attack: pgd, norm: linf, eps: 0.1, steps: 2, gradient: [bpda, exact]",
    ).replace("{half_width: 9}", "{decide: {between: [none, jpeg]}}")
    sweep = swept(tmp_path, text)
    pairs = [[sweep.cells[position] for position in question.cells] for question in sweep.questions]
    assert [[cell.attack and cell.attack.gradient for cell in pair] for pair in pairs] == [
        [None, None],
        [None, "bpda"],
        [None, "exact"],
    ]
    assert pairs[1][0] is pairs[2][0]


# --------------------------------------------------------------------------------------------------- where it stops


@pytest.mark.slow
def test_a_cell_stops_after_the_first_chunk_at_which_its_interval_is_narrow_enough(full: tuple[Sweep, Store]) -> None:
    sweep, store = full
    found = stops(sweep, store)
    assert None not in found and len(set(found)) > 2 and max(found) < 10  # type: ignore[type-var,operator]
    everything = Results(store, swept(Path(sweep.document.folder), SWEEP.replace("half_width: 9", "half_width: 0.5")))
    for cell, stop in zip(sweep.cells, found, strict=True):
        assert stop is not None
        values = everything.correct(cell).mean(1)
        assert len(values) == 320
        halves = [(high - low) / 2 for low, high in (sequence_ends(values[: 32 * k]) for k in range(1, 11))]
        assert next(k for k, half in enumerate(halves, start=1) if half <= 0.09) == stop


@pytest.mark.slow
def test_tables_show_the_images_used_and_the_guarantee(full: tuple[Sweep, Store]) -> None:
    sweep, store = full
    results = Results(store, sweep)
    frame = results.robustness()
    assert list(frame["images"]) == [32 * (stop or 0) for stop in stops(sweep, store)]
    assert set(frame["planned"]) == {320} and set(frame["stopped"]) == {"precise enough"}
    assert set(frame["guarantee"]) == {"anytime-valid 95 %, of the population"}
    cell = sweep.cells[2]
    known = anytime(results.correct(cell).mean(1))
    line = frame.set_index("cell").loc[cell.id]
    for name in ("avg", "worst", "vote", "accuracy"):
        assert (line[name], line[f"{name}_low"], line[f"{name}_high"]) == (known.value, known.low, known.high)
    table = Analysis(results).table("robustness")
    assert "confidence sequence" in table.note and "with Wilson's 95 % interval" not in table.note
    titles = [column.title for column in table.visible]
    assert titles.index("images") + 1 == titles.index("stopped") == titles.index("guarantee") - 1
    assert f"{32 * (stops(sweep, store)[2] or 0)} of 320" in table.lines()[2]
    assert Analysis(results).missing == []
    # Attack rows of a cell end where it ends, even if another cell needs more of the same attack.
    assert {len(results.attack_rows(cell)) for cell in sweep.cells[1:3]} == {
        len(results.rows(c)) for c in sweep.cells[1:3]
    }


@pytest.mark.slow
def test_the_auditor_compares_by_sequences_and_does_not_ask_for_more_images(full: tuple[Sweep, Store]) -> None:
    sweep, store = full
    results = Results(store, sweep)
    found = findings(results)
    assert not [finding for finding in found if finding.rule in ("few-images", "repeated-images", "outside-ball")]
    # The attack on the bare classifier costs accuracy: shown on the images that both cells have, in their order.
    clean, attacked = (view for view in views(results) if view.bare and view.threat[-1] in (0.0, 0.12))
    assert len(clean.image_ids) < len(attacked.image_ids)
    excess = exceeds(clean, attacked)
    assert excess is not None
    shared = len(clean.image_ids)
    d = clean.correct.mean(1) - attacked.correct[:shared].mean(1)
    assert excess.p == evidence((d + 1) / 2, 0.5) and excess.difference.images == shared


def test_without_precision_nothing_is_told_of_it(full: tuple[Sweep, Store], tmp_path: Path) -> None:
    plain = swept(tmp_path, SWEEP.replace("precision: {half_width: 9}\n", ""))
    results = Results(full[1], plain)
    assert results.stopping is None and not results.anytime(plain.cells[0])
    table = Analysis(results).table("robustness")
    assert table.note.startswith("Accuracy in %, with Wilson's 95 % interval over images.")
    assert not {"guarantee", "stopped"} & {column.name for column in table.columns}
    assert "spared_units" not in json.dumps(Analysis(results).table("robustness").declared())


@pytest.mark.slow
def test_of_the_sweeps_own_images_fewer_are_needed(full: tuple[Sweep, Store]) -> None:
    sweep, store = full
    own = with_precision(sweep, half_width=9, of="images")
    for fewer, more in zip(stops(own, store), stops(sweep, store), strict=True):
        assert fewer is not None and more is not None and fewer <= more
    assert stops(own, store) != stops(sweep, store)
    note = Analysis(Results(store, own)).table("robustness").note
    assert "says nothing about others" in note
    # Their accuracy is what all of them give, and it is in the interval.
    exact = Results(store, with_precision(sweep, half_width=0.5)).robustness()
    assert set(exact["images"]) == {320}
    frame = Results(store, own).robustness()
    assert ((frame["avg_low"] <= exact["avg"]) & (exact["avg"] <= frame["avg_high"])).all()


@pytest.mark.slow
def test_a_stricter_precision_only_adds(full: tuple[Sweep, Store]) -> None:
    sweep, store = full
    widths = [20, 12, 9, 7]
    found = [stops(with_precision(sweep, half_width=width), store) for width in widths]
    for loose, strict in pairwise(found):
        for a, b in zip(loose, strict, strict=True):
            assert b is None or (a is not None and a <= b)
    plan = make_plan(sweep)
    spared = []
    for width in widths:
        committed = plan.committed(Store(store.uri + "-empty"))
        wanted = with_precision(sweep, half_width=width)
        needed(wanted, make_plan(wanted), committed, store)
        spared.append(committed.spared)
    assert spared == sorted(spared, reverse=True) and spared[0] > spared[-1]


@pytest.mark.slow
def test_rows_beyond_a_gap_count_for_nothing(full: tuple[Sweep, Store], tmp_path: Path) -> None:
    sweep, store = full
    plan, own = make_plan(sweep), Store(str(tmp_path / "store"))
    position = plan.position(sweep.cells[2].evaluate, sweep.cells[2].images.chunks)
    take_over(store, own, plan, [(position, chunk) for chunk in (0, *range(2, 10))])
    assert stops(sweep, own)[2] is None
    results = Results(own, sweep)
    frame = results.robustness()
    assert frame["images"][2] == 32 and frame["stopped"][2] == "not yet" and Analysis(results).missing
    take_over(store, own, plan, [(position, 1)])
    assert stops(sweep, own)[2] == stops(sweep, store)[2]
    assert Results(own, sweep).robustness()["images"][2] == 32 * (stops(sweep, store)[2] or 0)


@pytest.mark.slow
def test_a_question_between_two_defences_is_decided_on_paired_differences(full: tuple[Sweep, Store]) -> None:
    sweep, store = full
    asked = with_precision(sweep, decide={"between": ["none", "jpeg"]})
    results = Results(store, asked)
    frame = Analysis(results).decisions
    everything = Results(store, with_precision(sweep, half_width=0.5))
    for (i, j), line in zip([q.cells for q in asked.questions], frame.to_dict("records"), strict=True):
        values = [everything.correct(sweep.cells[position]).mean(1) for position in (i, j)]
        decided = [
            k
            for k in range(1, 11)
            if (d := anytime_difference(values[0][: 32 * k], values[1][: 32 * k])).low > 0 or d.high < 0
        ]
        assert line["images"] == (32 * decided[0] if decided else 320)
        assert (line["answer"] == "no answer") == (not decided)
        if decided:
            assert line["answer"] == ("jpeg q=20" if line["value"] > 0 else "none")
            assert line["value_low"] * line["value_high"] > 0
    assert {"no answer"} < set(frame["answer"])
    # Both cells of a pair stop at one image.
    assert all(stops(asked, store)[i] == stops(asked, store)[j] for i, j in [q.cells for q in asked.questions])
    assert "Decisions" in Analysis(results, audit=False).table("decisions").title


@pytest.mark.slow
def test_a_question_about_a_threshold_is_decided(full: tuple[Sweep, Store]) -> None:
    sweep, store = full
    asked = with_precision(sweep, decide={"threshold": 80})
    frame = Analysis(Results(store, asked)).decisions
    everything = Results(store, with_precision(sweep, half_width=0.5)).robustness()
    answers = list(frame["answer"])
    assert {"above", "below"} <= set(answers)
    for answer, accuracy in zip(answers, everything["avg"], strict=True):
        assert answer == "no answer" or answer == ("above" if accuracy > 0.8 else "below")
    assert frame["images"].min() < 100


@pytest.mark.slow
def test_several_attacks_are_combined_on_the_images_that_all_have(tmp_path: Path) -> None:
    text = SWEEP.replace("eps: [0.05, 0.12]}", "eps: 0.12}\n  - {attack: random-noise, norm: linf, eps: 0.12}")
    sweep = swept(
        tmp_path, text.replace("first: 320", "first: 240").replace("[none, {purifier: jpeg, quality: 20}]", "[none]")
    )
    plan, store = make_plan(sweep), Store(str(tmp_path / "store"))
    work(plan, store, ((i, k) for i, stage in enumerate(plan.stages) for k in range(len(stage.chunks))))
    results = Results(store, sweep)
    images = [results.images(cell) for cell in sweep.cells[1:]]
    assert images[0] != images[1]
    line = results.combined().iloc[0]
    assert line["images"] == min(images)
    lowest = np.minimum(*[results.correct(cell)[: min(images)].mean(1) for cell in sweep.cells[1:]])
    assert (line["lowest_low"], line["lowest_high"]) == sequence_ends(lowest)
    assert line["guarantee"].startswith("anytime")
    assert "confidence sequence" in Analysis(results).table("combined").note


# ------------------------------------------------------------------------------------------------------- running


def drive(
    sweep: Sweep, source: Store, store: Store, seed: int, workers: int, stop_after: int | None = None
) -> set[tuple[str, str]]:
    """Run like the driver, with workers that end in random order; returns what it would have computed."""
    luck, plan = random.Random(seed), make_plan(sweep)
    committed = plan.committed(store)
    spared = needed(sweep, plan, committed, store)
    assert spared is not None
    scheduler = Scheduler(committed, may_stop=spared.may_stop)
    busy: list[Unit] = []
    computed: set[tuple[str, str]] = set()
    while True:
        while len(busy) < workers and (unit := scheduler.take(None)) is not None:
            busy.append(unit)
        if not busy or (stop_after is not None and len(computed) >= stop_after):
            return computed
        unit = busy.pop(luck.randrange(len(busy)))
        take_over(source, store, plan, [(unit.stage, unit.chunk)])
        computed.add((plan.stages[unit.stage].id, plan.stages[unit.stage].chunks[unit.chunk].name))
        scheduler.succeeded(unit)
        scheduler.spare(spared.look({plan.stages[unit.stage].id}))
        if not scheduler.has_ready() and not busy:
            assert scheduler.remaining == 0


@pytest.mark.slow
def test_the_answer_does_not_depend_on_who_was_faster_or_killed(full: tuple[Sweep, Store], tmp_path: Path) -> None:
    sweep, store = full
    known = Results(store, sweep).robustness()
    counts = []
    for seed, (workers, killed) in enumerate([(1, None), (4, None), (2, 7)]):
        own = Store(str(tmp_path / str(seed)))
        if killed is not None:
            drive(sweep, store, own, 10 + seed, workers, stop_after=killed)
        counts.append(len(drive(sweep, store, own, seed, workers)) + (killed or 0))
        assert Results(own, sweep).robustness().equals(known)
        assert drive(sweep, store, own, 0, 2) == set()
        summary = summarise(sweep, make_plan(sweep), own)
        assert summary.missing == 0 and summary.spared > 0
        assert summary.committed + summary.spared == summary.distinct
    plan = make_plan(sweep)
    committed = plan.committed(Store(str(tmp_path / "none")))
    needed(sweep, plan, committed, store)
    # One worker computes what is needed and nothing else; of several some run ahead.
    assert counts[0] == committed.missing <= counts[1] < plan.units
    # A stricter precision finds what is there.
    stricter = with_precision(sweep, half_width=8)
    before = {str(p) for p in (tmp_path / "0" / "commits").rglob("*.json")}
    drive(stricter, store, Store(str(tmp_path / "0")), 3, 1)
    assert before < {str(p) for p in (tmp_path / "0" / "commits").rglob("*.json")}
    assert (Results(Store(str(tmp_path / "0")), sweep).robustness()).equals(known)


@pytest.mark.slow
def test_several_drivers_stop_at_the_same_images(full: tuple[Sweep, Store], tmp_path: Path) -> None:
    sweep, store = full
    own, luck = Store(str(tmp_path / "store")), random.Random(0)
    drivers = []
    for _ in range(2):
        plan = make_plan(sweep)
        committed = plan.committed(own)
        spared = needed(sweep, plan, committed, own)
        assert spared is not None
        scheduler = Scheduler(committed, may_stop=spared.may_stop)
        scheduler.shared = True
        drivers.append((plan, spared, scheduler))
    idle = 0
    while idle < 20:
        plan, spared, scheduler = luck.choice(drivers)
        unit = scheduler.take(None)
        if unit is None:
            idle += 1
            continue
        stage = plan.stages[unit.stage]
        if stage.chunks[unit.chunk].name not in own.committed_chunks(stage.spec.stage, stage.id):
            take_over(store, own, plan, [(unit.stage, unit.chunk)])
        scheduler.succeeded(unit)
        scheduler.spare(spared.look({stage.id}))
    assert all(scheduler.remaining == 0 and not scheduler.has_ready() for _, _, scheduler in drivers)
    assert Results(own, sweep).robustness().equals(Results(store, sweep).robustness())
    assert len(make_plan(sweep).committed(own)) < make_plan(sweep).units


@pytest.mark.slow
def test_a_run_stops_and_says_so(two_slots: SharedRay, tmp_path: Path) -> None:
    sweep = swept(tmp_path, SWEEP)
    store, said = Store(str(tmp_path / "store")), list[str]()
    options = Options(workers=2, address=two_slots.address, quiet=True, preflight=False)
    outcome, results, _ = run_sweep(sweep, store, options, said.append)
    plan = make_plan(sweep)
    assert outcome.spared > 0 and outcome.computed + outcome.spared == plan.units
    assert not outcome.failures and not outcome.blocked
    assert set(results.robustness()["stopped"]) == {"precise enough"}
    assert any("units were not needed" in line for line in said)
    for stage in plan.stages:  # what was spared holds no packing up
        committed = store.committed_chunks(stage.spec.stage, stage.id)
        packed = {chunk for chunk, _ in Blocks(store, stage.spec.stage, stage.id).units()}
        assert packed == committed or len(committed) < 2
    status = CliRunner().invoke(app, ["status", str(tmp_path / "s.yaml"), "--store", store.uri])
    assert status.exit_code == 0 and f"{outcome.spared} not needed" in status.stdout
    again, _, _ = run_sweep(sweep, store, options, said.append)
    assert (again.computed, again.spared) == (0, outcome.spared)
    planned = CliRunner().invoke(
        app, ["plan", str(tmp_path / "s.yaml"), "--store", store.uri, "--json", "--set", "precision.half_width=6"]
    )
    content = json.loads(planned.stdout)
    assert content["missing"] > 0 and any("upper bounds" in notice for notice in content["notices"])


def test_what_failed_beyond_the_answer_is_no_failure() -> None:
    plan = make("aa", [[], [0]], 3)
    scheduler = Scheduler(Committed(plan), max_attempts=1, may_stop=[True, True])
    first = scheduler.take(None)
    assert first == Unit(0, 0)
    assert scheduler.take(None, alone=False) is None  # a busy worker waits
    second = scheduler.take(None)
    assert second == Unit(0, 1)
    assert scheduler.failed(second, "broken") is not None
    running = scheduler.take(None)
    assert running == Unit(0, 2)
    scheduler.succeeded(first)
    assert scheduler.take(None) == Unit(1, 0)
    scheduler.succeeded(Unit(1, 0))
    assert scheduler.remaining == 4
    spared = scheduler.spare([Unit(i, k) for k in (1, 2) for i in (0, 1)])
    assert len(spared) == 4 and scheduler.remaining == 0 and scheduler.failures == []
    scheduler.succeeded(running)  # it had begun: it is there, and nobody needs it
    assert scheduler.remaining == 0 and not scheduler.has_ready()
