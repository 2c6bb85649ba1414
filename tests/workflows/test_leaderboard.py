"""The leaderboard: minima over attacks of a kind, beside certificates and corruptions, from the best to the worst."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
from helpers_small import compute, small_sweep, undeclared

from workflows.analysis import Analysis
from workflows.analysis.leaderboard import leaderboard_frame
from workflows.leaderboard.numbers import certified
from workflows.results.reader import Results
from workflows.store import Store
from workflows.tables.leaderboard import leaderboard_table

NOBODY = cast(Results, SimpleNamespace(sweep=SimpleNamespace(cells=(), labels={})))
NONE = pd.DataFrame()


def row(defence: str, attack: str, avg: float, **update: Any) -> dict[str, Any]:
    """A line of the robustness frame whose Wor-M is a tenth below Avg."""
    found = {
        **{"cell": f"{defence} {attack} {update.get('eps', 0.1)}", "dataset": "digits", "seed": 0},
        **{"classifier": "cnn", "defence": defence, "attack": attack, "norm": None if attack == "clean" else "linf"},
        **{"eps": 0.0 if attack == "clean" else 0.1, "static": "exact" not in attack and attack != "clean"},
        **{"purifier": "none" if defence == "none" else "diffpure", "images": 20, "planned": 20, "resubmissions": 5},
        **{"avg": avg, "avg_low": avg - 0.05, "avg_high": avg + 0.05},
        **{"worst": avg - 0.1, "worst_low": avg - 0.15, "worst_high": avg - 0.05},
    }
    return found | update


def frame(*lines: dict[str, Any], curves: pd.DataFrame = NONE, corruptions: pd.DataFrame = NONE) -> pd.DataFrame:
    return leaderboard_frame(NOBODY, pd.DataFrame(list(lines)), curves, corruptions)


ROWS = (
    row("none", "clean", 0.95),
    row("none", "pgd", 0.2),
    row("none", "apgd", 0.1),
    row("diffpure", "clean", 0.9),
    row("diffpure", "pgd", 0.75),
    row("diffpure", "apgd", 0.7),
    row("diffpure", "pgd exact", 0.4),
    row("diffpure", "square exact", 0.45, worst=0.25, worst_low=0.2, worst_high=0.3),
    row("jpeg", "clean", 0.92),
    row("jpeg", "pgd", 0.6, images=16),
)


def test_each_kind_of_threat_has_the_lowest_avg_of_its_attacks() -> None:
    found = frame(*ROWS).set_index("defence")
    assert list(found.index) == ["diffpure", "none", "jpeg"]  # jpeg met no adaptive attack, so it comes last
    diffpure = found.loc["diffpure"]
    assert (diffpure["clean"], diffpure["static"], diffpure["adaptive"]) == (0.9, 0.7, 0.4)
    assert (diffpure["adaptive_low"], diffpure["adaptive_high"]) == pytest.approx((0.35, 0.45))
    assert (diffpure["static_attack"], diffpure["adaptive_attack"], diffpure["attack"]) == (
        *("apgd", "pgd exact", "pgd exact"),
    )
    # Wor-M is that of another attack than the lowest Avg.
    assert (diffpure["worst"], diffpure["worst_low"], diffpure["worst_high"]) == (0.25, 0.2, 0.3)
    assert len(diffpure["cells"]) == 5
    # The attack on the bare classifier knows all of it.
    assert found.loc["none", "static"] == found.loc["none", "adaptive"] == 0.1
    assert pd.isna(found.loc["jpeg", "adaptive"])
    assert (found.loc["jpeg", "images"], found.loc["jpeg", "planned"]) == (16, 20)


def test_budgets_and_norms_stay_apart_and_the_largest_of_each_norm_is_shown() -> None:
    lines = [*ROWS[3:6], row("diffpure", "pgd", 0.3, eps=0.2), row("diffpure", "pgd l2", 0.5, norm="l2", eps=0.5)]
    table = leaderboard_table(frame(*lines))
    assert table is not None
    assert [(line["norm"], line["eps"], line["static"]) for line in table.records()] == [
        *(("linf", 0.1, 0.7), ("linf", 0.2, 0.3), ("l2", 0.5, 0.5)),
    ]
    assert [line[table.visible.index(table.column("eps"))] for line in table.lines()] == ["0.2", "0.5"]
    assert any("largest budget" in remark for remark in table.remarks)
    assert any("upper bound" in remark for remark in table.remarks)


def test_certificates_and_corruptions_are_joined() -> None:
    names = ("base", "defence", "family", "sigma", "radius", "accuracy")
    values = [
        *(("bare", "none", "none", 0.25, 0.0, 0.9), ("bare", "none", "none", 0.25, 0.2, 0.5)),
        *(("bare", "none", "none", 0.5, 0.2, 0.6), ("denoised", "one-shot t*=99", "one-shot", 0.5, 0.2, 0.8)),
    ]
    curves = pd.DataFrame([dict(zip(names, value, strict=True)) for value in values])
    curves = curves.assign(dataset="digits", seed=0, classifier="cnn", low=0.4, high=0.9)
    corrupted = {"corruption": "all", "severity": "all", "origin": "generated", "accuracy": 0.7, "low": 0.6}
    corruptions = pd.DataFrame([{**corrupted, "high": 0.8, "defence": "diffpure"}])
    corruptions = corruptions.assign(dataset="digits", seed=0, classifier="cnn")
    found = frame(*ROWS, curves=curves, corruptions=corruptions).set_index("defence")
    assert tuple(found.loc["none", ["certified", "sigma", "radius"]]) == (0.6, 0.5, 0.2)
    assert found.loc["one-shot", "certified"] == 0.8  # a line of its own: nobody attacked it
    assert pd.isna(found.loc["one-shot", "clean"])
    assert found.loc["diffpure", "corruptions"] == 0.7
    table = leaderboard_table(found.reset_index())
    assert table is not None
    titles = [column.title for column in table.visible]
    assert "certified r=0.2" in titles and "corruptions" in titles


def test_a_certificate_of_several_seeds_is_that_of_the_first_and_not_the_luckiest() -> None:
    values = [
        (f"{seed} {sigma}", seed, sigma, 0.6 + 0.1 * seed + 0.05 * sigma) for seed in (0, 1) for sigma in (1, 2)
    ]
    curves = pd.DataFrame(values, columns=["cell", "seed", "sigma", "accuracy"])
    curves = curves.assign(radius=0.2, low=0.5, high=0.9, n=100, images=8)
    cell: Any = SimpleNamespace(images=SimpleNamespace(count=8))
    source: Any = SimpleNamespace(number=1, analysis=SimpleNamespace(certified_curves=curves))
    numbers = [number for _, number in certified(source, dict.fromkeys(curves["cell"], cell))]
    assert [number.value for number in numbers] == pytest.approx([0.7, 0.8])
    assert max(numbers, key=lambda number: number.rank) is numbers[0]


def test_nothing_judged_is_no_table() -> None:
    lost = dict.fromkeys(("avg", "avg_low", "avg_high", "worst", "worst_low", "worst_high"))
    found = frame({**row("none", "clean", 0.9), **lost})
    assert found.empty
    assert leaderboard_table(found) is None
    assert leaderboard_table(frame()) is None


def test_the_leaderboard_of_a_real_sweep_is_that_of_its_rows(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    compute(sweep, str(tmp_path / "store"))
    analysis = Analysis(Results(Store(str(tmp_path / "store")), sweep))
    table = analysis.table("leaderboard")
    assert undeclared(table) == set()
    rows = analysis.robustness.set_index(["defence", "attack"])
    for line in table.records():
        attacked = rows.loc[line["defence"]].drop("clean")
        assert line["clean"] == rows.loc[(line["defence"], "clean"), "avg"]
        assert line["static"] == attacked["avg"].min()
        assert line["worst"] == attacked["worst"].min()
        # One answer: 2 reverse steps and the classifier, or the classifier alone.
        assert line["evaluations"] == (1 if line["defence"] == "none" else 3)
        assert set(line["cells"]) == set(rows.loc[line["defence"], "cell"])
