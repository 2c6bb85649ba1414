"""Measures beyond one Avg a cell: M of N draws, draw 0 alone, several attacks as one attacker."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_small import SMALL, compute, small_sweep, undeclared

from workflows.analysis import Analysis
from workflows.formats import render, render_tables
from workflows.grid.sweep import Sweep
from workflows.planning.plan import make_plan
from workflows.report import report
from workflows.results.reader import Results
from workflows.statistics.proportions import bootstrap, wilson
from workflows.store import Store
from workflows.tables.combined import combined_table
from workflows.tables.robustness import robustness_table

ATTACKS = """\
attacks:
  - none
  - {attack: fgsm, norm: linf, eps: 0.15}
  - {attack: random-noise, norm: linf, eps: [0.1, 0.15]}
  - {attack: pgd, norm: linf, eps: 0.15, steps: 3}
  - {attack: pgd, norm: l2, eps: 0.15, steps: 3}
chunk: 8
"""
TEXT = SMALL.partition("attacks:")[0].replace("draws: 2", "draws: 4").replace("t_star: 10", "t_star: 60") + ATTACKS
LOWEST, SELECTED, MEAN, ANY = "lowest", "selected", "fixed_aa_mean", "fixed_aa_any"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("combined")
    sweep = small_sweep(folder, TEXT)
    compute(sweep, str(folder / "store"))
    return Results(Store(str(folder / "store")), sweep)


def matrices(results: Results, line: dict[str, object]) -> list[np.ndarray]:
    """Right answers of the attacks of a line, from the rows."""
    members = line["cells"]
    assert isinstance(members, list)
    found = []
    for cell in results.sweep.cells:
        if cell.id in members:
            rows = results.rows(cell)
            found.append(np.array([[v == r.label for v in r.prediction] for r in rows.itertuples()]))
    return found


def test_draw_0_alone_is_its_own_measure(results: Results) -> None:
    frame = results.robustness()
    for cell, line in zip(results.sweep.cells, frame.to_dict("records"), strict=True):
        rows = results.rows(cell)
        first = np.mean([votes[0] == label for votes, label in zip(rows["prediction"], rows["label"], strict=True)])
        assert line["fixed"] == pytest.approx(first)
        assert (line["fixed_low"], line["fixed_high"]) == pytest.approx(wilson(first, 20))
    assert (frame["fixed"] != frame["avg"]).any()


def test_worst_of_m_is_the_mean_over_pairs_of_draws_with_a_bootstrap_interval(results: Results) -> None:
    cells = tuple(replace(cell, resubmissions=2) for cell in results.sweep.cells)
    other = Results(results.store, Sweep.of_cells(results.sweep.name, results.sweep.text, cells))
    of_all = results.robustness()["worst"]
    frame = other.robustness()
    for cell, line in zip(cells, frame.to_dict("records"), strict=True):
        draws = cell.defence.draws
        assert line["resubmissions"] == min(2, draws)
        if draws == 1:
            assert line["worst"] == line["avg"]
            continue
        rows = other.rows(cell)
        right = np.array([[v == r.label for v in r.prediction] for r in rows.itertuples()])
        pairs = np.mean([right[:, list(pair)].all(1) for pair in itertools.combinations(range(draws), 2)], axis=0)
        expected = bootstrap(pairs)
        assert (line["worst"], line["worst_low"], line["worst_high"]) == pytest.approx(
            (pairs.mean(), expected.low, expected.high)
        )
    assert (frame["worst"] >= of_all - 1e-12).all() and (frame["worst"] > of_all + 0.01).any()
    table, of_every_draw = robustness_table(frame), robustness_table(results.robustness())
    assert table is not None and of_every_draw is not None
    assert "bootstrap" in render_tables([table], "md") and "bootstrap" not in render_tables([of_every_draw], "md")
    names = [column.title for column in table.visible]
    assert names.index("M") == names.index("Wor-M") - 1
    assert {row[names.index("M")] for row in table.lines()} == {"1", "2"}


def test_attacks_are_combined_on_one_defence_norm_and_budget(results: Results) -> None:
    frame = results.combined()
    # l_2 and the smaller budget have one attack each: nothing to combine.
    assert [(r.defence, r.norm, r.eps, r.attacks) for r in frame.itertuples()] == [
        ("none", "linf", 0.15, 3),
        ("diffpure t*=60 in 2 steps", "linf", 0.15, 3),
    ]
    for line in frame.to_dict("records"):
        attacks = matrices(results, line)
        assert len(attacks) == 3
        shares = [right.mean(1) for right in attacks]
        by_hand = {
            LOWEST: np.mean([min(each) for each in zip(*shares, strict=True)]),
            MEAN: min(float(share.mean()) for share in shares),
            ANY: np.mean([all(right[i].all() for right in attacks) for i in range(20)]),
        }
        for name, value in by_hand.items():
            assert line[name] == pytest.approx(value)
            assert (line[f"{name}_low"], line[f"{name}_high"]) == pytest.approx(wilson(value, 20))
        assert line[ANY] <= line[LOWEST] <= line[MEAN] and line[LOWEST] <= line[SELECTED] + 1e-12
    purified = frame.iloc[1]
    assert purified[ANY] < purified[MEAN]
    bare = frame.iloc[0]  # deterministic: there is no luck in its minimum
    assert bare[SELECTED] == bare[LOWEST]


def test_a_cell_that_is_not_complete_is_not_combined(results: Results, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "partial"))
    folder = Path(results.store.uri)
    for path in folder.rglob("*.*"):
        store.files.write(str(path.relative_to(folder)), path.read_bytes())
    last = [cell for cell in results.sweep.cells if cell.id in results.combined()["cells"][1]][-1]
    store.revoke("evaluate", last.evaluate.id, last.images.chunks[1].name)
    assert Results(store, results.sweep).combined()["attacks"].tolist() == [3, 2]
    for stage in make_plan(results.sweep).stages:
        store.revoke(stage.spec.stage, stage.id, stage.chunks[0].name)
    assert Results(store, results.sweep).combined().empty


def test_the_table_the_page_and_json_have_it(results: Results) -> None:
    combined, analysis = results.combined(), Analysis(results, audit=False)
    table = combined_table(combined)
    assert table is not None
    names, lines = [column.title for column in table.visible], table.lines()
    assert names[-4:] == ["lowest", "selected", "fixed-AA (mean)", "fixed-AA (any)"]
    line = combined.iloc[1]
    expected = [
        f"{100 * line[n]:.1f} [{100 * line[f'{n}_low']:.1f}, {100 * line[f'{n}_high']:.1f}]"
        for n in (LOWEST, SELECTED, MEAN, ANY)
    ]
    assert lines[1] == ["digits-cnn", "diffpure t*=60 in 2 steps", "linf", "0.15", "3", "20", "4", *expected]
    for how in ("text", "md", "latex"):
        text = render(analysis, how)
        # In LaTeX intervals are in smaller letters.
        shown = [value.replace("[", r"{\footnotesize [") + "}" for value in expected] if how == "latex" else expected
        assert "Several attacks on one defence" in text and all(value in text for value in shown)
        assert "too low by the luck of the draws" in " ".join(text.split())
    assert combined_table(pd.DataFrame()) is None and all(undeclared(own) == set() for own in analysis.tables)
    content = json.loads(render(analysis, "json"))
    assert content["combined"][1]["fixed_aa_any"] == line[ANY] and content["combined"][1]["cells"] == line["cells"]
    page = report(analysis, command="c")
    assert "<h2>Several attacks on one defence</h2>" in page
    assert all(f">{value.split()[0]}<" in page for value in expected)
