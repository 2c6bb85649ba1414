"""Tables of corruptions: hand-made frames with known means, pairing, intervals that cover, and an mCE by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defense.errors import InvalidInput
from tasks.corruptions import BENCHMARK, EXTRA, SEVERITIES
from workflows.results.corruptions import accuracy_table, gain_table, mce_table
from workflows.statistics.paired import paired_difference
from workflows.statistics.proportions import wilson


def frame(
    defences: dict[str, float], corruptions: tuple[str, ...] = BENCHMARK, images: int = 40, seed: int = 0
) -> pd.DataFrame:
    """Random answers; the number is the share of right ones at severity 1, falling to half of it at 5."""
    rng = np.random.default_rng(seed)
    rows = [
        (defence, corruption, severity, image, float(rng.random() < share * (1.125 - severity / 8)))
        for defence, share in defences.items()
        for corruption in corruptions
        for severity in SEVERITIES
        for image in range(images)
    ]
    return pd.DataFrame(rows, columns=["defence", "corruption", "severity", "image_id", "correct"])


def line(table: pd.DataFrame, defence: str, corruption: str, severity: int | str) -> pd.Series:
    found = table[
        (table["defence"] == defence) & (table["corruption"] == corruption) & (table["severity"] == severity)
    ]
    assert len(found) == 1
    return found.iloc[0]


def test_every_line_is_the_mean_of_its_rows_with_images_as_the_sample() -> None:
    rows = frame({"none": 0.5, "diffpure": 0.9}, BENCHMARK + EXTRA).sample(frac=1, random_state=1)
    table = accuracy_table(rows)
    assert len(table) == 2 * (19 * 6 + 1)
    for defence in ("none", "diffpure"):
        own = rows[rows["defence"] == defence]
        for corruption in ("fog", "saturate"):
            some = own[own["corruption"] == corruption]
            one = line(table, defence, corruption, 3)
            mean = some[some["severity"] == 3]["correct"].mean()
            assert (one["accuracy"], one["images"], one["complete"]) == (pytest.approx(mean), 40, True)
            assert (one["low"], one["high"]) == pytest.approx(wilson(mean, 40))
            many = line(table, defence, corruption, "all")
            assert many["accuracy"] == pytest.approx(some["correct"].mean())
            assert (many["low"], many["high"]) == pytest.approx(wilson(some["correct"].mean(), 40))
            assert (many["corruptions"], many["severities"], many["complete"]) == (1, 5, True)
        total = line(table, defence, "all", "all")
        # Without the four extra ones.
        assert total["accuracy"] == pytest.approx(own[own["corruption"].isin(BENCHMARK)]["correct"].mean())
        assert (total["corruptions"], total["severities"], total["complete"]) == (15, 5, True)
    assert list(dict.fromkeys(table["corruption"])) == [*BENCHMARK, *EXTRA, "all"]
    assert list(table[table["corruption"] == "fog"]["severity"][:6]) == [1, 2, 3, 4, 5, "all"]


def test_means_over_fewer_than_all_say_so() -> None:
    rows = frame({"none": 0.5}, tuple(name for name in BENCHMARK if name != "frost"))
    total = line(accuracy_table(rows), "none", "all", "all")
    assert (total["corruptions"], total["severities"], total["complete"]) == (14, 5, False)
    table = accuracy_table(rows[~((rows["corruption"] == "fog") & (rows["severity"] > 3))])
    assert (line(table, "none", "fog", "all")["severities"], line(table, "none", "fog", "all")["complete"]) == (
        3,
        False,
    )
    assert line(table, "none", "all", "all")["severities"] == 3
    # Corruptions weigh alike, however many severities there are.
    means = rows[~((rows["corruption"] == "fog") & (rows["severity"] > 3))].groupby("corruption")["correct"].mean()
    assert line(table, "none", "all", "all")["accuracy"] == pytest.approx(means.mean())
    only_extra = accuracy_table(frame({"none": 0.5}, EXTRA))
    assert not (only_extra["corruption"] == "all").any()


def test_gains_are_means_of_differences_image_by_image() -> None:
    rows = frame({"diffpure": 0.9, "none": 0.5, "gdmp": 0.7})
    table = gain_table(rows)
    assert list(dict.fromkeys(table["defence"])) == ["diffpure", "gdmp"] and (table["over"] == "none").all()
    accuracy = accuracy_table(rows)
    for defence in ("diffpure", "gdmp"):
        for corruption, severity in (("snow", 2), ("snow", "all"), ("all", "all")):
            found = line(table, defence, corruption, severity)
            difference = [line(accuracy, name, corruption, severity)["accuracy"] for name in (defence, "none")]
            assert found["gain"] == pytest.approx(difference[0] - difference[1])
            assert found["low"] < found["gain"] < found["high"]
    other = line(gain_table(rows, over="diffpure"), "none", "all", "all")
    mine = line(table, "diffpure", "all", "all")
    assert (other["gain"], other["low"], other["high"]) == pytest.approx((-mine["gain"], -mine["high"], -mine["low"]))


def test_pairing_makes_intervals_shorter_where_defences_fail_on_the_same_images() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(200) < 0.5
    saved = rng.random(200) < 0.3
    rows = pd.DataFrame(
        [
            (defence, "fog", 1, i, float(not hard[i] or (defence == "own" and saved[i])))
            for defence in ("none", "own")
            for i in range(200)
        ],
        columns=["defence", "corruption", "severity", "image_id", "correct"],
    )
    found = line(gain_table(rows), "own", "fog", 1)
    accuracy = accuracy_table(rows)
    lengths = [x["high"] - x["low"] for x in (line(accuracy, d, "fog", 1) for d in ("none", "own"))]
    assert found["gain"] == pytest.approx((hard & saved).mean()) and found["low"] > 0
    assert found["high"] - found["low"] < 0.6 * math.hypot(*lengths)


def gains(differences: list[float]) -> pd.Series:
    rows = [("none", "fog", 1, i, 0.5 - d / 2) for i, d in enumerate(differences)]
    rows += [("own", "fog", 1, i, 0.5 + d / 2) for i, d in enumerate(differences)]
    table = gain_table(pd.DataFrame(rows, columns=["defence", "corruption", "severity", "image_id", "correct"]))
    return line(table, "own", "fog", 1)


@given(n=st.integers(1, 60), plus=st.integers(0, 60), minus=st.integers(0, 60))
def test_the_interval_of_a_gain_is_that_of_any_paired_difference(n: int, plus: int, minus: int) -> None:
    differences = [1.0] * plus + [-1.0] * minus + [0.0] * n
    row, d = gains(differences), np.array(differences)
    expected = paired_difference(0.5 - d / 2, 0.5 + d / 2)
    assert (row["gain"], row["low"], row["high"]) == (expected.value, expected.low, expected.high)
    assert row["low"] < row["high"] and row["low"] <= row["gain"] <= row["high"]


def test_a_mean_over_many_answers_has_an_interval_of_its_own_scale() -> None:
    rows = frame({"none": 0.5, "own": 0.6})
    wide = rows.pivot(index="image_id", columns=["defence", "corruption", "severity"], values="correct")
    bare, own = wide["none"].mean(axis=1).to_numpy(), wide["own"].mean(axis=1).to_numpy()
    largest = np.abs(own - bare).max()
    assert 1 / 75 < largest < 0.4
    total = line(gain_table(rows), "own", "all", "all")
    expected = paired_difference(bare, own, largest)
    assert (total["low"], total["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert total["high"] - total["low"] < 0.1
    # Where no image differs an answer of 75 might have.
    equal = line(
        gain_table(pd.concat([rows[rows["defence"] == "none"].assign(defence=d) for d in ("none", "own")])),
        "own",
        "all",
        "all",
    )
    expected = paired_difference(bare, bare, 1 / 75)
    assert equal["gain"] == 0 and (equal["low"], equal["high"]) == pytest.approx((expected.low, expected.high))
    assert 0 < equal["high"] < 0.01


def baseline(error: float = 0.5) -> pd.DataFrame:
    return pd.DataFrame(
        [(c, s, error * (0.5 + s / 10)) for c in BENCHMARK for s in SEVERITIES],
        columns=["corruption", "severity", "error"],
    )


def test_mce_is_the_mean_of_ratios_of_sums_of_errors_to_the_named_baseline() -> None:
    rows = frame({"none": 0.5, "own": 0.8}, BENCHMARK + EXTRA)
    table = mce_table(rows, baseline(), "AlexNet, measured")
    assert list(table["corruption"]) == [*BENCHMARK, "all"] * 2 and (table["baseline"] == "AlexNet, measured").all()
    for defence in ("none", "own"):
        own = rows[rows["defence"] == defence]
        ces = []
        for corruption in BENCHMARK:
            errors = [
                1 - own[(own["corruption"] == corruption) & (own["severity"] == s)]["correct"].mean()
                for s in SEVERITIES
            ]
            ces.append(sum(errors) / sum(0.5 * (0.5 + s / 10) for s in SEVERITIES))
        found = table[table["defence"] == defence]["ce"].tolist()
        assert found == pytest.approx([*ces, sum(ces) / 15])
    itself = 1 - rows[rows["defence"] == "own"].groupby(["corruption", "severity"])["correct"].mean()
    relative = mce_table(rows, itself.rename("error").reset_index(), "own")
    assert relative[relative["defence"] == "own"]["ce"].tolist() == pytest.approx([1.0] * 16)


def test_an_mce_of_part_of_the_benchmark_or_of_an_unnamed_baseline_is_refused() -> None:
    rows = frame({"none": 0.5})
    with pytest.raises(InvalidInput, match="named baseline"):
        mce_table(rows, baseline(), " ")
    with pytest.raises(InvalidInput, match=r"defence 'none' lacks 5 of the 75 cells.*frost at severity 1"):
        mce_table(rows[rows["corruption"] != "frost"], baseline(), "x")
    with pytest.raises(InvalidInput, match=r"baseline 'x' lacks 1 of the 75"):
        mce_table(rows, baseline().iloc[:-1], "x")
    with pytest.raises(InvalidInput, match="never errs"):
        mce_table(rows, baseline(0.0), "x")
    with pytest.raises(InvalidInput, match="twice, or an error"):
        mce_table(rows, pd.concat([baseline(), baseline()]), "x")
    with pytest.raises(InvalidInput, match=r"not in \[0, 1\]"):
        mce_table(rows, baseline(50), "x")
    with pytest.raises(InvalidInput, match="no column 'error'"):
        mce_table(rows, baseline().drop(columns="error"), "x")


def test_frames_that_cannot_be_averaged_are_refused() -> None:
    rows = frame({"none": 0.5, "own": 0.6}, ("fog", "snow"), images=5)
    with pytest.raises(InvalidInput, match="columns defence, corruption"):
        accuracy_table(rows.drop(columns="correct"))
    with pytest.raises(InvalidInput, match="columns defence, corruption"):
        accuracy_table(rows.iloc[:0])
    with pytest.raises(InvalidInput, match="did you mean 'fog'"):
        accuracy_table(rows.replace("fog", "fogg"))
    with pytest.raises(InvalidInput, match="from 1 to 5"):
        accuracy_table(rows.assign(severity=rows["severity"] - 1))
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(InvalidInput, match=r"share of right draws in \[0, 1\]"):
            accuracy_table(rows.assign(correct=[wrong, *rows["correct"][1:]]))
    with pytest.raises(InvalidInput, match="in one cell twice"):
        accuracy_table(pd.concat([rows, rows.iloc[:1]]))
    with pytest.raises(InvalidInput, match="same images in every cell"):
        accuracy_table(rows.iloc[1:])
    mixed = rows.assign(origin=["official", *["generated"] * (len(rows) - 1)])
    with pytest.raises(InvalidInput, match="official and generated"):
        accuracy_table(mixed)
    assert len(accuracy_table(rows.assign(origin="generated"))) == 2 * 13


def test_defences_on_other_images_or_cells_are_not_compared() -> None:
    rows = frame({"none": 0.5, "own": 0.6}, ("fog", "snow"), images=5)
    own = rows["defence"] == "own"
    with pytest.raises(InvalidInput, match="no defence 'bare' to compare with; there are none, own"):
        gain_table(rows, over="bare")
    for fewer in (rows[~own | (rows["image_id"] != 2)], rows[~own | (rows["corruption"] != "fog")]):
        assert len(accuracy_table(fewer))
        with pytest.raises(InvalidInput, match="not judged on the same"):
            gain_table(fewer)
