"""``converge``: attacks are doubled until that changes nothing, and every doubled attack is an ordinary one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from grids_small import swept
from helpers_small import compute
from naps import SharedRay

from defense.errors import InvalidInput
from tasks.attacks import AttackConfig, LadderConfig, StrongestConfig
from workflows.analysis import Analysis
from workflows.audit import findings
from workflows.engine.loop import RunOutcome
from workflows.engine.run import Options, run_sweep
from workflows.grid.cells import Cell
from workflows.grid.converge import axes_of, doubled
from workflows.grid.load import Sweep
from workflows.grid.precision import Precision
from workflows.planning.plan import make_plan
from workflows.planning.summary import summarise
from workflows.report.figures import figures
from workflows.results.convergence import Chain, Intervals, chains, convergence_frame, extended
from workflows.results.reader import Results
from workflows.statistics.proportions import average
from workflows.statistics.sequences import anytime
from workflows.store import Store

SWEEP = """\
sweep: converging
datasets: [{dataset: digits, images: {first: 60}}]
classifiers: [digits-cnn]
defences: [none, {purifier: gaussian-noise, sigma: 0.2, draws: 4}]
attacks:
  - none
  - attack: pgd
    norm: linf
    eps: 0.1
    steps: 1
    gradient: exact
    eot: 1
    converge: {steps: 16, eot: 4, restarts: 2, warm: false}
chunk: 30
"""


def of(value: float) -> np.ndarray:
    """Answers to 400 images, of which this share is right, and other ones for each share."""
    right = np.arange(400) < round(400 * value)
    return np.random.default_rng(round(1000 * value)).permutation(right).astype(np.float64)


def attacked(sweep: object, defence: str) -> Cell:
    cells: tuple[Cell, ...] = sweep.cells  # type: ignore[attr-defined]
    return next(c for c in cells if c.converge is not None and c.defence.purifier.purifier == defence)


def run_chains(cell: Cell, accuracy: Callable[[AttackConfig], float | None]) -> list[Chain]:
    def judged(other: Cell) -> np.ndarray | None:
        assert other.attack is not None
        value = accuracy(other.attack)
        return None if value is None else of(value)

    return list(chains(cell, judged))


def test_doubling_ends_when_it_changes_nothing_twice_in_a_row(tmp_path: Path) -> None:
    cell = attacked(swept(tmp_path, SWEEP), "gaussian-noise")
    # The half-width at n 400 is about 5 points. Steps matter up to 4, though 2 are as good as 1; EOT does not.
    by_steps = {1: 0.70, 2: 0.69, 4: 0.50, 8: 0.48, 16: 0.47}
    found = run_chains(cell, lambda attack: by_steps[attack.parameter("steps")])
    assert [chain.axis for chain in found] == ["steps", "eot", "restarts"]
    steps, eot, restarts = found
    assert [step.value for step in steps.steps] == [1, 2, 4, 8, 16]
    assert (steps.state, steps.kept.value) == ("converged", 4)
    # The next begins with the least that leaves no more.
    assert {step.cell.attack and step.cell.attack.parameter("steps") for step in eot.steps} == {4}
    assert [step.value for step in eot.steps] == [1, 2, 4] and (eot.state, eot.kept.value) == ("converged", 1)
    # Two restarts are the most: one doubling cannot tell.
    assert [step.value for step in restarts.steps] == [1, 2] and restarts.state == "not converged"
    assert restarts.kept.value == 1


def test_small_falls_add_up(tmp_path: Path) -> None:
    cell = attacked(swept(tmp_path, SWEEP), "gaussian-noise")
    falling = {1: 0.60, 2: 0.56, 4: 0.52, 8: 0.515, 16: 0.51}  # by 4 points twice, with a half-width of 5
    steps = run_chains(cell, lambda attack: falling[attack.parameter("steps")])[0]
    assert ([step.value for step in steps.steps], steps.state) == ([1, 2, 4, 8], "converged")


def test_what_has_not_settled_at_its_largest_value_has_not_converged(tmp_path: Path) -> None:
    cell = attacked(swept(tmp_path, SWEEP), "gaussian-noise")
    falling = {1: 0.9, 2: 0.7, 4: 0.5, 8: 0.3, 16: 0.1}
    steps = run_chains(cell, lambda attack: falling[attack.parameter("steps")])[0]
    assert (steps.state, steps.kept.value) == ("not converged", 16)


def test_what_changes_few_images_all_one_way_is_a_change(tmp_path: Path) -> None:
    cell = attacked(swept(tmp_path, SWEEP), "gaussian-noise")
    right = {1: 240, 2: 228, 4: 216, 8: 216, 16: 216}  # of 400: three points fewer, and the same ones stay right

    def judged(other: Cell) -> np.ndarray:
        assert other.attack is not None
        return (np.arange(400) < right[other.attack.parameter("steps")]).astype(np.float64)

    steps = next(chains(cell, judged))
    assert ([step.value for step in steps.steps], steps.state) == ([1, 2, 4, 8, 16], "converged")


def test_no_further_attack_is_named_before_its_forerunner_is_judged(tmp_path: Path) -> None:
    cell = attacked(swept(tmp_path, SWEEP), "gaussian-noise")
    known = {1: 0.9, 2: 0.7}
    (chain,) = run_chains(cell, lambda attack: known.get(attack.parameter("steps")))
    assert [step.value for step in chain.steps] == [1, 2, 4] and chain.state == "not yet"
    assert chain.steps[-1].accuracy is None
    (first,) = run_chains(cell, lambda attack: None)
    assert [step.value for step in first.steps] == [1]


def test_what_is_doubled_is_what_the_defence_makes_matter(tmp_path: Path) -> None:
    text = SWEEP.replace("converge: {steps: 16, eot: 4, restarts: 2, warm: false}", "converge: true")
    ladder = (
        "attack: ladder, norm: linf, eps: 0.1, rungs: [blind, exact, black-box], STEPS, select: 5, converge: true"
    )
    text = text.replace("chunk", f"  - {{{ladder}}}\nchunk")
    sweep = swept(tmp_path, text.replace("STEPS", "steps: 3, eot: 2"))
    axes = {
        (cell.defence.purifier.purifier, cell.attack.attack): axes_of(cell.attack, cell.defence.purifier)
        for cell in sweep.cells
        if cell.attack is not None
    }
    assert axes == {
        ("none", "pgd"): ("steps", "restarts"),
        ("none", "ladder"): ("steps",),
        ("gaussian-noise", "pgd"): ("steps", "eot", "restarts"),
        ("gaussian-noise", "ladder"): ("steps", "eot", "select"),
    }
    attack = next(cell.attack for cell in sweep.cells[::-1] if isinstance(cell.attack, LadderConfig))
    assert isinstance(attack, LadderConfig)
    more = doubled(doubled(attack, "steps"), "eot")
    assert isinstance(more, LadderConfig)
    assert [(rung.parameter("steps"), rung.eot) for rung in more.rungs] == [(6, 1), (6, 4), (None, 4)]
    assert (more.steps, more.eot, more.select) == (6, 4, 5)
    # It is what one would have written.
    written = swept(tmp_path, text.replace("STEPS", "steps: 6, eot: 4"))
    assert more.id in {cell.attack.id for cell in written.cells if cell.attack is not None}


def test_ids_do_not_depend_on_converge(tmp_path: Path) -> None:
    sweep = swept(tmp_path, SWEEP)
    plain = swept(tmp_path, SWEEP.replace("    converge: {steps: 16, eot: 4, restarts: 2, warm: false}\n", ""))
    assert [cell.id for cell in sweep.cells] == [cell.id for cell in plain.cells] and sweep.id == plain.id
    assert sweep.converges and not plain.converges
    assert extended(plain, Store(str(tmp_path / "store"))) is plain


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("converge: {steps: 16, eot: 4, restarts: 2, warm: false}", "converge: sometimes", r"attacks\.1\.converge"),
        ("eot: 4, restarts", "eott: 4, restarts", "did you mean 'eot'"),
        ("steps: 16", "steps: 0", r"attacks\.1\.converge\.steps"),
        ("steps: 1\n", "steps: 10\n", r"steps: .* has 10 steps, and 16 at most leaves no room .*: write 40 or more"),
        ("eot: 1\n", "eot: 5\n", r"converge\.eot: .* has 5 eot, and 4 at most"),
        ("restarts: 2,", "select: 9,", r"attacks\.1\.converge\.select: .* has no select"),
        ("chunk: 30", "chunk: 30\nprecision: {decide: {threshold: 50}}", "stops before they are known"),
        ("warm: false", "warm: 3", r"attacks\.1\.converge\.warm"),
    ],
)
def test_a_wrong_converge_is_refused_at_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        swept(tmp_path, SWEEP.replace(old, new))


@pytest.mark.slow
def test_a_sweep_grows_until_it_has_converged(tmp_path: Path) -> None:
    text = SWEEP.replace("restarts: 2", "restarts: 1")
    sweep, store, sizes = swept(tmp_path, text), Store(str(tmp_path / "store")), []
    while True:
        current = extended(sweep, store)
        assert current.id == sweep.id
        sizes.append(len(current.cells))
        if len(sizes) > 1 and sizes[-1] == sizes[-2]:
            break
        compute(current, store.uri)
    assert sizes[0] == 4 and sizes == sorted(sizes)
    results = Results(store, current)
    frame = Analysis(results).convergence
    assert set(frame["axis"]) == {"steps", "eot"}
    judged = results.robustness().set_index("cell")["avg"]
    for line in frame.to_dict("records"):
        assert line["avg"] == judged[line["cell"]]
    for _, chain in frame.groupby(["defence", "axis"]):
        assert list(chain["value"]) == [chain["value"].iloc[0] * 2**k for k in range(len(chain))]
        assert list(chain["change"])[1:] == pytest.approx(list(chain["avg"].diff())[1:])
        assert chain["state"].iloc[-1].split(", ")[-1] in ("converged", "not converged")
        assert chain["state"].str.contains("kept").sum() == 1
    table = Analysis(results).table("convergence")
    assert table.lines() and {column.title for column in table.visible} >= {
        "doubled",
        "value",
        "Avg",
        "change",
        "state",
    }
    drawn = [figure for figure in figures(Analysis(results)) if figure.name.startswith("convergence")]
    assert sum(len(figure.frame) for figure in drawn) >= len(frame) - 1 and {
        len(f.frame["axis"].unique()) for f in drawn
    } == {1}
    ended = frame[frame["state"].str.contains("not converged")]
    told = [f for f in findings(results, images=False) if f.rule == "not-converged" and "most allowed" in f.text]
    assert {cell for finding in told for cell in finding.cells} == set(ended["cell"])
    # The cells are those of a sweep in which somebody wrote them all down.
    kept = frame[frame["axis"] == "steps"]["value"].max()
    plain = swept(
        tmp_path,
        text.replace("    converge: {steps: 16, eot: 4, restarts: 1, warm: false}\n", "").replace(
            "steps: 1\n", f"steps: {kept}\n"
        ),
    )
    assert {cell.id for cell in plain.cells} <= {cell.id for cell in current.cells}
    summary = summarise(
        extended(sweep, Store(str(tmp_path / "none"))), make_plan(sweep), Store(str(tmp_path / "none"))
    )
    assert any("further cells" in notice for notice in summary.notices)


def warm_sweep(tmp_path: Path, *more: str) -> Sweep:
    text = SWEEP.replace(", warm: false", "").replace("defences: [none, ", "defences: [")
    return swept(tmp_path, "\n".join([text, *more]))


def grown(sweep: Sweep, store: Store) -> Sweep:
    """The sweep with all its cells, computed."""
    current = sweep
    while True:
        compute(current, store.uri)
        further = extended(sweep, store)
        if len(further.cells) == len(current.cells):
            return current
        current = further


def test_a_doubled_attack_goes_on_from_the_worst_image_of_those_before(tmp_path: Path) -> None:
    cell = attacked(warm_sweep(tmp_path), "gaussian-noise")
    falling = iter((0.9, 0.7, 0.5, 0.5, 0.5, 0.5, 0.5, 0.3))
    known: dict[str, np.ndarray] = {}

    def judged(other: Cell) -> np.ndarray:
        if other.id not in known:
            known[other.id] = of(next(falling))
        return known[other.id]

    steps, eot, restarts = chains(cell, judged)
    assert [step.value for step in steps.steps] == [1, 2, 4, 8, 16] and steps.kept.value == 4
    at = [step.cell for step in steps.steps]
    for before, after in pairwise(at):
        first, second = before.attack_stage, after.attack_stage
        assert first is not None and second is not None
        *earlier, last = second.sources
        assert last.attack.parameter("warm") and last.after is not None
        # It goes on from what the cell before judges; the first of all is a ladder of itself.
        assert last.after.id == (first.id if before is not at[0] else earlier[0].id)
        forerunner = (first.sources[-1] if first.sources else first).attack
        assert last.attack.parameter("steps") == 2 * forerunner.parameter("steps")
    # The draws are doubled from the kept attack on, not from the longest one.
    assert eot.steps[0].cell.id == steps.kept.cell.id
    more = eot.steps[1].cell.attack
    assert isinstance(more, StrongestConfig)
    assert [(r.parameter("steps"), r.eot) for r in more.rungs] == [(1, 1), (2, 1), (4, 1), (4, 2)]
    assert more.label() == "pgd-4 linf exact eot 2 warm of 4"
    # It is what one would have written.
    entry = more.model_dump(mode="json")
    assert StrongestConfig.model_validate(entry).id == more.id
    assert restarts.steps[1].attacks[-1].parameter("restarts") == 2


def test_on_a_bare_classifier_doubled_attacks_start_anew(tmp_path: Path) -> None:
    sweep = swept(tmp_path, SWEEP.replace(", warm: false", ""))
    cell = attacked(sweep, "none")
    (chain, *_) = chains(cell, lambda other: of(0.5))
    assert [type(step.cell.attack).__name__ for step in chain.steps] == ["PGDConfig"] * 3


@pytest.mark.slow
def test_warm_attacks_converge_in_a_sweep_and_none_leaves_more(tmp_path: Path) -> None:
    sweep = warm_sweep(tmp_path)
    current = grown(sweep, Store(str(tmp_path / "store")))
    assert current.id == sweep.id
    frame = Analysis(Results(Store(str(tmp_path / "store")), current)).convergence
    assert len(frame) >= 4
    # The worst image is kept, so that accuracy falls but for the draws that choose it and those that judge.
    assert (frame["change"].dropna() < 0.03).all() and "guarantee" not in frame


@pytest.mark.slow
def test_with_precision_cells_of_converge_stop_early_and_are_compared_by_sequences(tmp_path: Path) -> None:
    asked = "precision: {half_width: 35}"
    sweep, store = warm_sweep(tmp_path, asked), Store(str(tmp_path / "store"))
    assert sweep.precision is not None
    current = grown(sweep, store)
    assert len(current.questions) == len(current.cells) > 2 and current.precision == sweep.precision
    results = Results(store, current)
    frame = convergence_frame(results)
    assert set(frame["guarantee"]) == {"anytime-valid 95 %, of the population"}
    assert set(frame["stopped"]) == {"precise enough"} and set(frame["images"]) <= {30, 60}
    assert frame["images"].min() == 30
    assert frame["state"].iloc[-1].split(", ")[-1] in ("converged", "not converged")
    for line in frame.to_dict("records"):
        cell = next(cell for cell in current.cells if cell.id == line["cell"])
        share = anytime(average(results.correct(cell)))
        assert (line["avg"], line["avg_low"], line["avg_high"]) == (share.value, share.low, share.high)
    shown = {column.title for column in Analysis(results).table("convergence").visible}
    assert {"images", "stopped", "guarantee"} <= shown
    # What it asks is in no id: a stricter one finds what is there.
    stricter = warm_sweep(tmp_path, "precision: {half_width: 20}")
    assert stricter.id == sweep.id and [cell.id for cell in stricter.cells] == [cell.id for cell in sweep.cells]


def test_intervals_of_a_sweep_that_stops_early_call_less_a_change() -> None:
    precision = Precision.model_validate({"half_width": 5})
    cell = None
    before, after = of(0.70), of(0.62)
    assert Intervals().changed(cell, before, after)  # type: ignore[arg-type]
    assert not Intervals(precision).changed(cell, before, after[:100])  # type: ignore[arg-type]
    assert Intervals(precision).changed(cell, of(0.9), of(0.3)[:300])  # type: ignore[arg-type]


@pytest.mark.slow
def test_ctrl_c_while_the_last_rows_are_packed_begins_no_further_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, store, rounds = swept(tmp_path, SWEEP), Store(str(tmp_path / "store")), list[int]()

    def ran(current: Sweep, *_: object) -> tuple[RunOutcome, Results, None]:
        compute(current, store.uri)
        rounds.append(len(current.cells))
        return RunOutcome(last=True), Results(store, current), None

    monkeypatch.setattr("workflows.engine.run._run", ran)
    outcome, results, _ = run_sweep(sweep, store, Options(), lambda _: None)
    assert outcome.interrupted and rounds == [4] == [len(results.sweep.cells)]
    assert len(extended(sweep, store).cells) > 4


@pytest.mark.nightly
def test_a_run_goes_on_until_it_has_converged(two_slots: SharedRay, tmp_path: Path) -> None:
    text = (
        SWEEP.replace("first: 60", "first: 20")
        .replace("chunk: 30", "chunk: 20")
        .replace("[none, {purifier", "[{purifier")
    )
    sweep = swept(
        tmp_path, text.replace("{steps: 16, eot: 4, restarts: 2, warm: false}", "{steps: 2, eot: 1, restarts: 1}")
    )
    store, said = Store(str(tmp_path / "store")), list[str]()
    options = Options(workers=1, address=two_slots.address, quiet=True, preflight=False)
    outcome, results, record = run_sweep(sweep, store, options, said.append)
    assert len(results.sweep.cells) == 3 and record is not None
    # The attacks are two rungs, the ladders of one and of both, and there are three judgements.
    assert outcome.computed == make_plan(results.sweep).units == 7
    assert any("converge: 3 cells by now" in line for line in said)
    assert results.sweep.id == sweep.id
