"""Tables in five formats: the numbers of the frames, nothing cut off, nothing that breaks the format."""

from __future__ import annotations

import io
import json
import math
import re
from typing import Any

import pandas as pd
import pytest
from helpers_small import compute, small_sweep
from hypothesis import given
from hypothesis import strategies as st
from loops import every

from tasks.attacks.budgets import format_eps
from workflows.formats import FORMATS, Format, render_tables
from workflows.planning.plan import make_plan
from workflows.results.reader import Results
from workflows.store import Store
from workflows.tables.effort import cost_table
from workflows.tables.robustness import robustness_table

MEASURES = ("accuracy", "avg", "worst", "vote", "mean_probability", "fixed")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The small sweep, without the last chunk of its last cell."""
    folder = tmp_path_factory.mktemp("tables")
    sweep = small_sweep(folder)
    compute(sweep, str(folder / "store"))
    store = Store(str(folder / "store"))
    last = make_plan(sweep).stages[-1]
    store.revoke(last.spec.stage, last.id, last.chunks[-1].name)
    return Results(store, sweep)


@pytest.fixture(scope="module")
def robustness(results: Results) -> pd.DataFrame:
    return results.robustness()


@pytest.fixture(scope="module")
def cost(results: Results) -> pd.DataFrame:
    return results.cost()


def line(**update: Any) -> dict[str, Any]:
    """One cell with numbers that all differ."""
    found: dict[str, Any] = {
        **{"cell": "00ff", "dataset": "digits", "classifier": "cnn", "defence": "none", "attack": "pgd-20 linf"},
        **{"norm": "linf", "eps": 8 / 255, "static": True, "seed": 0, "t_star": None, "abar": None, "sigma_eq": None},
        **{
            "purifier": "none",
            "draws": 4,
            "aggregation": "single",
            "resubmissions": 4,
            "images": 512,
            "planned": 512,
        },
    }
    for place, name in enumerate(MEASURES):
        value = 0.5 + place / 100 + 0.0012
        found |= {name: value, f"{name}_low": value - 0.043, f"{name}_high": value + 0.043}
    return {**found, **update}


def spent(**update: Any) -> dict[str, Any]:
    found = {
        **{"stage": "evaluate", "classifier": "cnn", "defence": "none", "attack": "clean", "eps": 0.0, "images": 512},
        **{"denoiser_evaluations": 1234567, "classifier_evaluations": 2048, "seconds": 12.34},
        "images_per_second": 41.49,
    }
    return {**found, **update}


def render(robustness: pd.DataFrame, cost: pd.DataFrame, how: Format, title: str = "") -> str:
    tables = (robustness_table(robustness), cost_table(cost))
    return render_tables([table for table in tables if table is not None], how, title=title)


def rendered(how: Format, *lines: dict[str, Any], title: str = "title") -> str:
    return render(pd.DataFrame(list(lines)), pd.DataFrame([spent()]), how, title=title)


# ---------------------------------------------------------------------------------------------------------- eps


@every(
    ("eps", "text"),
    [
        *((k / 255, f"{k}/255") for k in (1, 2, 4, 8, 16, 17, 25, 50, 52, 128, 254)),
        *((0.0, "0"), (0.1, "0.1"), (0.15, "0.15"), (0.2, "0.2"), (0.25, "0.25"), (0.3, "0.3"), (0.4, "0.4")),
        *((0.5, "0.5"), (0.6, "0.6"), (0.8, "0.8"), (1.0, "1"), (2.0, "2"), (0.031, "0.031"), (0.005, "0.005")),
    ],
)
def test_a_budget_is_written_as_it_was_meant(eps: float, text: str) -> None:
    assert format_eps(eps) == text


@given(k=st.integers(1, 255 * 4))
def test_every_budget_in_255ths_reads_back_to_itself(k: int) -> None:
    text = format_eps(k / 255)
    number, _, divisor = text.partition("/")
    assert float(number) / float(divisor or 1) == k / 255
    # Those that have a short decimal are written that way: multiples of 0.2.
    assert (divisor == "") is (k % 51 == 0)


@given(thousandths=st.integers(1, 3000))
def test_every_short_decimal_reads_back_to_itself(thousandths: int) -> None:
    assert float(format_eps(thousandths / 1000)) == thousandths / 1000


# --------------------------------------------------------------------------------------------------- csv and json


def test_csv_parses_back_to_the_same_numbers(robustness: pd.DataFrame, cost: pd.DataFrame) -> None:
    text = render(robustness, cost, "csv", title="left out")
    again = pd.read_csv(io.StringIO(text), float_precision="round_trip", dtype={"cell": str})
    assert again.columns.tolist() == robustness.columns.tolist()
    for name in robustness.columns:
        pd.testing.assert_series_equal(again[name], robustness[name], check_dtype=False, check_exact=True)
    assert robustness["avg"].nunique() > 1


def test_json_has_both_tables_unrounded_and_null_where_there_is_nothing(
    robustness: pd.DataFrame, cost: pd.DataFrame
) -> None:
    def strict(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(render(robustness, cost, "json"), parse_constant=strict)
    assert list(found) == ["robustness", "cost", "combined", "ladders", "tables"]
    assert found["combined"] == found["ladders"] == [] and list(found["tables"]) == ["robustness", "cost"]
    for name, frame in (("robustness", robustness), ("cost", cost)):
        assert len(found[name]) == len(frame)
        for row, expected in zip(found[name], frame.to_dict("records"), strict=True):
            assert list(row) == list(expected)
            for key, value in expected.items():
                assert row[key] == (None if pd.isna(value) else value)
    assert found["robustness"][0]["t_star"] is None and found["robustness"][2]["t_star"] == 10
    assert found["robustness"][0]["norm"] is None and found["robustness"][1]["norm"] == "linf"


# ------------------------------------------------------------------------------------------------- for people


def markdown_tables(text: str) -> list[list[dict[str, str]]]:
    """The tables of a Markdown text, held to the rules of GitHub's."""
    tables = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", row)[1:-1] for row in block.splitlines()]
        assert len({len(row) for row in rows}) == 1, "rows of different length"
        assert all(re.fullmatch(r" :-- | --: ", cell) for cell in rows[1])
        assert all(cell == f" {cell.strip()} " for row in rows for cell in row)
        names = [cell.strip() for cell in rows[0]]
        tables.append([dict(zip(names, map(str.strip, row), strict=True)) for row in rows[2:]])
    return tables


def latex_tables(text: str) -> list[list[list[str]]]:
    """Cells of each booktabs table, its commands checked for being there once and in order."""
    tables = []
    for block in re.findall(r"\\begin{table}(.*?)\\end{table}", text, re.DOTALL):
        parts = re.fullmatch(
            r"\[htbp\]\n\\caption{(.*)}\n\\resizebox{[^\n]*{!}{%\n\\begin{tabular}{([lr]+)}\n"
            r"\\toprule\n(.*) \\\\\n\\midrule\n(.*) \\\\\n\\bottomrule\n\\end{tabular}}\n"
            r"\\begin{tablenotes}.*\\end{tablenotes}\n",
            re.sub(r"{\\footnotesize (\[[^]]*\])}", r"\1", block),
            re.DOTALL,
        )
        assert parts is not None
        rows = [re.split(r"(?<!\\) & ", row) for row in [parts[3], *parts[4].split(" \\\\\n")]]
        assert {len(row) for row in rows} == {len(parts[2])}
        assert not re.search(r"(?<!\\)[%#_&~^]", parts[1] + "".join(map("".join, rows)).replace("$t^*$", ""))
        tables.append(rows)
    return tables


def percent(row: Any, name: str, *, interval: bool = True) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{100 * row[name]:.1f}" + (f" [{100 * low:.1f}, {100 * high:.1f}]" if interval else "")


def test_markdown_holds_the_rounded_numbers_of_every_cell(robustness: pd.DataFrame, cost: pd.DataFrame) -> None:
    text = render(robustness, cost, "md", title="small")
    assert text.startswith("**small: Robustness**\n\n|")
    found, costs = markdown_tables(text)
    names = ["classifier", "defence", "attack", "eps", "images", "draws", "Avg", "Wor-M", "MV-K", "fixed noise"]
    assert list(found[0]) == names
    for row, expected in zip(found, robustness.to_dict("records"), strict=True):
        several = expected["draws"] > 1
        assert row["Avg"] == percent(expected, "avg")
        assert row["Wor-M"] == percent(expected, "worst", interval=several)
        assert row["MV-K"] == percent(expected, "vote", interval=several)
        assert row["fixed noise"] == percent(expected, "fixed", interval=several)
        assert [row[name] for name in ("classifier", "defence", "attack")] == [
            expected[name] for name in ("classifier", "defence", "attack")
        ]
        assert row["draws"] == str(expected["draws"])
    assert [row["eps"] for row in found] == ["0", "0.1", "0", "0.1"]
    assert [row["images"] for row in found] == ["20", "20", "20", "16 of 20"]
    assert [row["defence"] for row in costs] == [
        "none",
        "(static)",
        "none",
        "diffpure t*=10 in 2 steps",
        "diffpure t*=10 in 2 steps",
    ]
    assert [row["classifier evals"] for row in costs] == ["20", "60", "20", "40", "32"]
    assert [row["denoiser evals"] for row in costs] == ["0", "0", "0", "80", "64"]
    assert [row["images"] for row in costs] == ["20", "20", "20", "20", "16"]
    for row, seconds in zip(costs, cost["seconds"], strict=True):
        assert row["seconds"] == f"{seconds:.1f}"


def test_text_and_latex_hold_the_same_cells_as_markdown(robustness: pd.DataFrame, cost: pd.DataFrame) -> None:
    expected = [[list(row.values()) for row in table] for table in markdown_tables(render(robustness, cost, "md"))]
    latex = latex_tables(render(robustness, cost, "latex"))
    plain = [[[cell.replace("$t^*$", "t*") for cell in row] for row in table[1:]] for table in latex]
    assert plain == expected
    text = [row.strip("│").split("│") for row in render(robustness, cost, "text").splitlines() if row.startswith("│")]
    assert [[cell.strip() for cell in row] for row in text] == [row for table in expected for row in table]


def test_latex_escapes_what_it_would_take_for_a_command() -> None:
    names = {"classifier": r"a_b & 5% #1 {x} $y$ ~z^2 \w", "defence": "diffpure t*=100 in 25 steps"}
    text = rendered("latex", line(**names), title="50%_of")
    assert r"\caption{50\%\_of: Robustness}" in text
    row = latex_tables(text)[0][1]
    escaped = r"a\_b \& 5\% \#1 \{x\} \$y\$ \textasciitilde{}z\textasciicircum{}2 \textbackslash{}w"
    assert row[:2] == [escaped, "diffpure $t^*$=100 in 25 steps"]


def test_markdown_keeps_a_name_with_a_bar_in_its_cell() -> None:
    found = markdown_tables(rendered("md", line(classifier="a|b")))[0]
    assert found[0]["classifier"] == r"a\|b" and found[0]["eps"] == "8/255"


@pytest.mark.parametrize("name", ["net[v2]", "[bold]x[/bold]", "x[/]", ":smile:", "n" * 150])
def test_text_shows_any_name_in_full(name: str) -> None:
    update: dict[str, Any] = {"classifier": name, "dataset": "cifar10 (train)", "seed": 1, "images": 10000}
    text = rendered("text", line(), line(**update, planned=50000, aggregation="majority-vote"), title=f"sweep {name}")
    assert f"sweep {name}: Robustness" in text.splitlines()[0]
    row = next(row for row in text.splitlines() if "10000 of 50000" in row)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        *("cifar10 (train)", "1", name, "none", "pgd-20 linf", "8/255", "10000 of 50000", "4"),
        *("51.1 [46.8, 55.4]", "52.1 [47.8, 56.4]", "53.1 [48.8, 57.4]", "55.1 [50.8, 59.4]"),
        "50.1 [45.8, 54.4] majority-vote",
    ]
    assert "…" not in text


def test_seed_data_set_and_answer_are_columns_only_where_they_differ() -> None:
    def names(*lines: dict[str, Any]) -> list[str]:
        return list(markdown_tables(rendered("md", *lines))[0][0])

    shared = ["classifier", "defence", "attack", "eps", "images", "draws", "Avg", "Wor-M", "MV-K"]
    plain = [*shared, "fixed noise"]
    assert names(line(draws=1, resubmissions=1)) == shared
    assert names(line(resubmissions=2)) == [*shared[:7], "M", *shared[7:], "fixed noise"]
    assert names(line(), line(eps=0.1)) == plain
    assert names(line(), line(seed=1)) == ["seed", *plain]
    assert names(line(), line(dataset="cifar10")) == ["dataset", *plain]
    assert names(line(), line(dataset="cifar10", seed=3)) == ["dataset", "seed", *plain]
    assert names(line(), line(aggregation="mean-probability")) == [*plain, "answer"]


def test_the_answer_of_a_defence_is_the_accuracy_of_its_own_aggregation() -> None:
    lines = [line(), line(aggregation="mean-probability", accuracy=0.75, accuracy_low=0.7, accuracy_high=0.8)]
    found = markdown_tables(rendered("md", *lines))[0]
    assert [row["answer"] for row in found] == ["50.1 [45.8, 54.4] single", "75.0 [70.0, 80.0] mean-probability"]


@pytest.mark.parametrize("how", FORMATS)
def test_cells_without_a_number_are_shown_as_missing(how: Format) -> None:
    empty = {name: value for name, value in line(images=0).items() if not name.startswith(MEASURES)}
    for lines in ([line(), empty], [empty]):
        frame = pd.DataFrame(lines)
        unused = spent(images=0, seconds=0.0, images_per_second=None)
        text = render(frame, pd.DataFrame([unused]), how)
        assert "nan" not in text.lower().replace("pgd-20 linf", "")
        if how in ("md", "text", "latex"):
            assert "0 of 512" in text
        if how == "md":
            last = markdown_tables(text)[0][-1]
            assert [last[name] for name in ("Avg", "Wor-M", "MV-K", "images")] == ["-", "-", "-", "0 of 512"]
            assert markdown_tables(text)[1][0]["images/s"] == "-"
        if how == "json":
            assert json.loads(text)["robustness"][-1].get("avg") is None
        if how == "csv":
            assert math.isnan(pd.read_csv(io.StringIO(text)).get("avg", pd.Series([math.nan])).iloc[-1])


def test_memory_is_a_column_of_costs_where_a_unit_has_said_it() -> None:
    def found(*peaks: float | None) -> list[dict[str, str]]:
        frame = pd.DataFrame([spent(peak_mib=peak) for peak in peaks])
        return markdown_tables(render(pd.DataFrame([line()]), frame, "md"))[1]

    assert [row["peak MiB"] for row in found(812, None)] == ["812", "-"]
    assert "peak MiB" not in found(None)[0]


def test_the_note_on_static_attacks_is_there_only_where_a_purifier_met_one() -> None:
    behind = {"defence": "diffpure t*=100", "purifier": "diffpure", "t_star": 100, "abar": 0.897, "sigma_eq": 0.169}
    for how in ("text", "md", "latex"):
        assert "upper bound" in rendered(how, line(), line(**behind))
        assert "upper bound" not in rendered(how, line(), line(**behind, attack="clean", static=False))
        assert "upper bound" not in rendered(how, line(**behind, attack="pgd-20 linf exact eot 8", static=False))
        both = rendered(how, line(**behind), line(**behind, attack="pgd-20 linf exact eot 8", static=False))
        assert "Attacks without a gradient mode in their name are static" in both


def test_large_counts_are_grouped_and_rates_rounded() -> None:
    found = markdown_tables(rendered("md", line()))[1][0]
    assert (found["denoiser evals"], found["classifier evals"]) == ("1,234,567", "2,048")
    assert (found["seconds"], found["images/s"]) == ("12.3", "41.5")
