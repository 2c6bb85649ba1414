"""Draws of an image that stop where its answer is certain: equal tables from fewer draws, and nothing unknown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers_small import compute, small_sweep
from loops import every
from typer.testing import CliRunner

from defense.aggregate import UNASKED
from defense.errors import InvalidInput
from workflows.analysis import Analysis
from workflows.audit import findings
from workflows.cli import app
from workflows.grid.load import Cell, Sweep
from workflows.images.rows import image_rows
from workflows.images.single import stored
from workflows.leaderboard.board import board_of
from workflows.leaderboard.sources import Source
from workflows.paper.archive import judge, open_archive, write_archive
from workflows.planning.plan import make_plan
from workflows.planning.summary import summarise
from workflows.regression.compare import compare_runs
from workflows.regression.snapshots import of_results
from workflows.results.reader import Results
from workflows.store import Store

NOISE = "purifier: gaussian-noise, sigma: 0.45, draws: 9"
TEXT = f"""
sweep: until
datasets: [{{dataset: digits, images: {{first: 40}}}}]
classifiers: [digits-cnn]
defences:
  - {{{NOISE}}}
  - {{{NOISE}, aggregation: majority-vote}}
  - {{{NOISE}, aggregation: majority-vote, until: vote}}
  - {{{NOISE}, until: worst}}
attacks: [none, {{attack: pgd, norm: linf, eps: 0.1, steps: 3, gradient: exact}}]
chunk: 20
compute: {{batch: 16}}
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("until")
    sweep = small_sweep(folder, TEXT)
    compute(sweep, str(folder / "store"))
    return Results(Store(str(folder / "store")), sweep)


def test_units_that_stop_asking_have_a_cost_of_their_own(results: Results) -> None:
    kinds = {cell.defence.until: cell.stages[-1].kind for cell in results.sweep.cells}
    assert len(set(kinds.values())) == 3
    assert kinds["vote"].name == f"{kinds[None].name} until vote"


def of(results: Results, until: str | None, aggregation: str) -> list[Cell]:
    """The clean and the attacked cell of a defence."""
    kind = until, aggregation
    return [c for c in results.sweep.cells if (c.defence.until, c.defence.aggregation) == kind]


def changed(folder: Path, text: str) -> Sweep:
    folder.mkdir(exist_ok=True)
    return small_sweep(folder, text)


def test_only_what_stops_has_another_id_and_the_record_says_it(tmp_path: Path) -> None:
    sweep = changed(tmp_path, TEXT)
    assert ["until" in cell.evaluate.identity() for cell in sweep.cells] == 4 * [False] + 4 * [True]
    assert len({cell.evaluate.id for cell in sweep.cells}) == 6  # one judgement of two aggregations

    made = Sweep(
        "until",
        datasets=[{"dataset": "digits", "images": {"first": 40}}],
        classifiers=["digits-cnn"],
        defences=[{"purifier": "gaussian-noise", "sigma": 0.45, "draws": 9, "until": "worst"}],
        chunk=20,
        compute={"batch": 16},
    )
    assert made.cells[0].id == sweep.cells[6].id and "until: worst" in made.text


REFUSED = {
    "of one draw": ("draws: 9, until: worst", "until: worst", "of one draw none can be left out"),
    "vote of single": ("until: worst", "until: vote", "`until: vote` goes with `aggregation: majority-vote`"),
    "worst of votes": ("until: vote", "until: worst", "`until: worst` goes with `aggregation: single`"),
    "mean probability": (
        "majority-vote, until",
        "mean-probability, until",
        "an answer by mean-probability needs other draws",
    ),
    "worst of fewer": ("chunk: 20", "chunk: 20\nresubmissions: 5", "remove `resubmissions`, or give `draws: 5`"),
    "precision of Avg": ("chunk: 20", "chunk: 20\nprecision: {half_width: 5}", "write `measure: answer` there"),
    "corruptions": (
        "attacks: [",
        "corruptions: [{corruption: fog, severity: 1}]\nattacks: [",
        "a table of corruptions is",
    ),
    "convergence": ("steps: 3,", "steps: 3, converge: true,", "`converge` goes by the mean over all draws"),
    "a word": ("until: worst", "until: votes", "until: until = 'votes'"),
}


@every("name", REFUSED)
def test_what_needs_all_draws_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    before, after, message = REFUSED[name]
    with pytest.raises(InvalidInput, match=re.escape(message)):
        changed(tmp_path, TEXT.replace(before, after))


def test_a_plan_says_that_its_forecast_is_an_upper_bound(tmp_path: Path) -> None:
    sweep = changed(tmp_path, TEXT)
    summary = summarise(sweep, make_plan(sweep), Store(str(tmp_path / "store")))
    assert any("`until`), so evaluations are upper bounds" in notice for notice in summary.notices)
    assert any("up to 9 draws, until the vote is certain" in stage.what for stage in summary.stages)


@pytest.mark.slow
def test_answers_are_those_of_all_draws_and_what_is_open_is_missing(results: Results) -> None:
    frame = results.robustness().set_index("cell")
    full, voted = (of(results, None, how) for how in ("single", "majority-vote"))
    for k in range(2):
        all_draws, answer = frame.loc[full[k].id], frame.loc[voted[k].id]
        vote = frame.loc[of(results, "vote", "majority-vote")[k].id]
        worst = frame.loc[of(results, "worst", "single")[k].id]
        for end in ("", "_low", "_high"):
            assert vote[f"vote{end}"] == vote[f"accuracy{end}"] == answer[f"accuracy{end}"] == answer[f"vote{end}"]
            assert worst[f"worst{end}"] == all_draws[f"worst{end}"]
            assert worst[f"fixed{end}"] == vote[f"fixed{end}"] == all_draws[f"fixed{end}"]
        assert vote[["avg", "worst", "mean_probability"]].isna().all()
        assert worst[["avg", "vote", "mean_probability"]].isna().all()
        assert 5 <= vote["asked"] < 9 and 1 <= worst["asked"] < 9
        assert 0 < all_draws["worst"] < answer["vote"] < 1  # there was something to find
    assert frame.loc[[cell.id for cell in full], "asked"].isna().all()


@pytest.mark.slow
@pytest.mark.parametrize(("until", "how"), [("vote", "majority-vote"), ("worst", "single")])
def test_the_draws_that_are_asked_are_those_of_the_judgement_in_full(results: Results, until: str, how: str) -> None:
    for whole, some in zip(of(results, None, how), of(results, until, how), strict=True):
        rows, full = results.rows(some), results.rows(whole)
        votes, expected = (np.stack(list(frame["prediction"])) for frame in (rows, full))
        asked = votes != UNASKED
        assert (votes[asked] == expected[asked]).all()
        assert rows["draws_asked"].tolist() == asked.sum(1).tolist() == rows["classifier_evaluations"].tolist()
        assert (np.diff(asked.astype(int), axis=1) <= 0).all()  # the first ones
        probability = np.stack(list(rows["label_probability"]))
        assert (np.isnan(probability) == ~asked).all()
        np.testing.assert_allclose(probability[asked], np.stack(list(full["label_probability"]))[asked], atol=1e-5)
        mean = np.stack(list(rows["mean_probability"]))
        assert (np.isnan(mean).all(1) == ~asked.all(1)).all()


@pytest.mark.slow
def test_everything_that_shows_rows_leaves_out_what_is_not_known(results: Results, tmp_path: Path) -> None:
    sweep, store = results.sweep, results.store.uri
    analysis = Analysis(results)
    lines = json.loads(_run("tables", sweep, store, "--no-audit", "--format", "json"))["robustness"]
    assert [line["avg"] is None for line in lines] == 4 * [False] + 4 * [True]
    assert any("what needs all of them" in remark for remark in analysis.table("robustness").remarks)
    # The lines of defences whose Avg is known are those of a sweep without the others.
    assert set(analysis.leaderboard["defence"].dropna()) >= {
        sweep.labels[of(results, None, "single")[0].id]["defence"]
    }
    shown = analysis.leaderboard.set_index("defence")
    for until, how in (("vote", "majority-vote"), ("worst", "single")):
        name = sweep.labels[of(results, until, how)[0].id]["defence"]
        assert f"until={until}" in name
        assert name not in shown.index
    assert "nan" not in " ".join(analysis.summary)
    assert not [f for f in findings(results) if f.severity == "error"]
    cell = of(results, "worst", "single")[1]
    rows = image_rows(results, [], cells=[cell])
    assert set(rows["right"]) == {0.0, 1.0} and rows["right"].mean() == results.correct(cell).mean()
    wrong = rows[rows["draws_asked"] < 9].iloc[0]
    known = stored(results, cell, int(wrong["image_id"]))
    assert len(known.answers) == len(known.label_probability) == wrong["draws_asked"]
    assert known.answers[-1] != known.label and set(known.answers[:-1]) <= {known.label}
    _run("report", sweep, store, "--out", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert len(page) > 10_000 and "<svg" in page
    assert not re.findall(r"""[>",= ]nan\b""", page)


@pytest.mark.slow
def test_a_board_leaves_them_out_and_says_why(results: Results) -> None:
    for cell in results.sweep.cells:
        results.store.put_spec(cell.evaluate)
    made = board_of([Source(1, Analysis(results, audit=False), "")])
    assert len(made.left_out) == 2 and all("its draws stop" in line for line in made.left_out)
    assert [entry.cell.defence.until for entry in made.entries] == [None, None]  # and what has all draws is there


@pytest.mark.slow
def test_runs_are_compared_by_what_is_certain(results: Results) -> None:
    found = compare_runs(of_results(results), of_results(results))
    assert {c.measure for c in found} == {"Avg", "answer", "Wor-M"}
    assert all(c.difference is not None and c.difference.value == 0 for c in found)


@pytest.mark.slow
def test_an_archive_is_judged_again(results: Results, tmp_path: Path) -> None:
    write_archive(Analysis(results, audit=False), tmp_path)
    table = judge(open_archive(tmp_path), results.sweep).frame
    assert (table["reported"] == table["judged"]).all() and (table["differ"] == 0).all() and len(table) == 4


@pytest.mark.slow
def test_cells_stop_by_what_their_draws_stop_for(tmp_path: Path) -> None:
    """Draws that stop change no interval: cells stop where they would have stopped with all draws."""
    more = "chunk: 20\nprecision: {half_width: 24, measure: MEASURE}"
    entries = {"answer": ("majority-vote", "vote"), "worst": ("single", "worst")}
    for measure, (how, until) in entries.items():
        used = []
        for extra in ("", f", until: {until}"):
            defence = f"  - {{{NOISE}, aggregation: {how}{extra}}}"
            head, rest = TEXT.split("defences:\n")[0], TEXT[TEXT.index("attacks:") :]
            text = f"{head}defences:\n{defence}\n{rest}".replace("chunk: 20", more.replace("MEASURE", measure))
            sweep = changed(tmp_path / f"{measure}{bool(extra)}", text.replace("first: 40", "first: 100"))
            compute(sweep, str(tmp_path / "store"))
            found = Results(Store(str(tmp_path / "store")), sweep)
            name = "accuracy" if measure == "answer" else measure
            frame = found.robustness()
            used.append(frame[["images", "stopped", name, f"{name}_low", f"{name}_high"]].values.tolist())
        assert used[0] == used[1] and any(line[0] < 100 for line in used[0])


def _run(command: str, sweep: Sweep, store: str, *more: str) -> str:
    assert sweep.document.path is not None
    called = CliRunner().invoke(app, [command, str(sweep.document.path), "--store", store, *more])
    assert called.exit_code == 0, called.output
    return called.stdout
