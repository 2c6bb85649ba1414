"""Published figures are data with their certainty, and never become measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_small import ASSETS, compute, small_sweep

from defense.errors import InvalidInput
from workflows.assets.bundled import find_sweep
from workflows.grid.cells import Cell
from workflows.grid.load import load_sweep
from workflows.published import match
from workflows.published import papers as paper_files
from workflows.published.match import match_published, same_method
from workflows.published.papers import Paper, load_paper, mean_gains, papers
from workflows.results.reader import Results
from workflows.store import Store

TRANSFER = "distribution-transfer"


def test_the_mean_gains_of_table_3_are_recomputed_and_the_text_s_average_is_one_row_of_it() -> None:
    paper = load_paper(TRANSFER)
    gains = mean_gains(paper, TRANSFER, "3")
    rounded = {name: round(gain, 2) for name, gain in gains.items()}
    expected = {"mobilenetv2": 16.68, "shufflenetv2": 12.70, "resnet56": 16.58, "resnet18": 16.22, "wrn28-10": 14.96}
    assert rounded == expected | {"all": 15.43}
    claimed = next(one.text for one in paper.anomalies if one.tables == ("3",))
    assert "12.7" in claimed and "15.43" in claimed and "ShuffleNetV2" in claimed


def test_every_paper_has_its_values_with_source_and_certainty() -> None:
    assert papers() == ["aaopt", "agdm", TRANSFER, "mimic-diffusion"]
    # Table 1: 13 rows of 3; Table 2: 9 of 2; Table 3: 10 and 6 of 5; the abstract: 2.
    assert [len(load_paper(name).values) for name in papers()] == [12, 12, 39 + 18 + 50 + 30 + 2, 2]
    for name in papers():
        paper = load_paper(name)
        assert paper.link.startswith("https://") and paper.anomalies
        for value in paper.values:
            assert 0 < value.accuracy < 100 and value.source
        known = {value.table for value in paper.values} | {"figure 3"}
        assert {table for one in paper.anomalies for table in one.tables} <= known
    assert {value.certainty for value in load_paper("agdm").values} == {"second-hand"}


def value(paper: Paper, **wanted: object) -> float:
    (found,) = (
        v.accuracy
        for v in paper.values
        if all(getattr(v, key, getattr(v.column, key, None)) == want for key, want in wanted.items())
    )
    return found


def test_single_values_and_the_anomalies_that_follow_from_them() -> None:
    paper = load_paper(TRANSFER)
    ours = {"table": "1", "defence": TRANSFER, "classifier": "resnet18"}
    assert (value(paper, **ours, norm="linf"), value(paper, **ours, norm="l2")) == (78.1, 74.3)
    # The adaptive attack is weaker than the other: both numbers of the anomaly.
    for classifier, plain, adaptive in (("resnet18", 78.1, 82.5), ("wrn28-10", 66.5, 72.4)):
        here = {"classifier": classifier, "defence": TRANSFER, "dataset": "cifar10", "norm": "linf"}
        assert value(paper, table="1", **here) == plain < value(paper, table="2", **here) == adaptive
    thirty = {"table": "2", "dataset": "imagenet30", "classifier": "resnet18"}
    assert value(paper, **thirty, threat="clean") == 68.0 < value(paper, **thirty, norm="linf") == 69.5
    trades = {"table": "1", "defence": "trades", "classifier": "resnet18"}
    assert value(paper, **trades, threat="clean") == 80.1 < value(paper, **trades, norm="l2") == 84.5
    agdm = load_paper("agdm")
    assert value(agdm, defence="robust-reverse", norm="l2") == 85.55
    assert value(agdm, defence="diffpure", classifier="wrn28-10", norm="l2", attack="autoattack") == 78.58


def test_an_unknown_paper_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"'distribution'; .*Valid names: aaopt, agdm, distribution-"):
        load_paper("distribution")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mobilenetv2", "torchvision:mobilenet_v2?classes=30&size=256"),
        ("mobilenetv2", "timm:mobilenetv2_100?classes=30"),
        ("shufflenetv2", "torchvision:shufflenet_v2_x1_0?classes=30"),
        ("resnet56", "resnet56-b"),
        ("resnet18", "timm:resnet18?classes=30"),
        ("wrn28-10", "robustbench:Standard?dataset=cifar10"),
        ("inception-resnet-v2", "timm:inception_resnet_v2?classes=30"),
    ],
)
def test_one_architecture_has_one_name(one: str, other: str) -> None:
    assert match._architecture(one) == match._architecture(other)
    assert match._architecture("resnet18") != match._architecture(other) or one == "resnet18"


def test_a_claim_about_a_purifier_is_none_about_a_method_with_a_network_of_its_own() -> None:
    sweep = load_sweep(find_sweep("leaderboard"))
    by_name: dict[str, list[Cell]] = {}
    for cell in sweep.cells:
        for name in sweep.names.get(cell.defence.purifier.id, ()):
            by_name.setdefault(name, []).append(cell)
    assert {"diffpure", "adbm", "addt", "aaopt", "aaopt-perturbation", "score-opt-n"} <= by_name.keys()
    claims = {
        value.defence: value
        for name in papers()
        for value in load_paper(name).values
        if value.column.threat == "attack"
    }

    def stands(claim: str, setting: str) -> bool:
        cells = by_name[setting]
        purifier = cells[0].defence.purifier
        return same_method(claims[claim], purifier, sweep.names[purifier.id])

    # All three are DiffPure in what they compute; two have networks that were trained on attacks.
    assert {name: stands("diffpure", name) for name in ("diffpure", "adbm", "addt")} == {
        "diffpure": True,
        "adbm": False,
        "addt": False,
    }
    assert {by_name[name][0].defence.purifier.purifier for name in ("diffpure", "adbm", "addt")} == {"diffpure"}
    assert stands("aaopt", "aaopt") and stands("aaopt-perturbation", "aaopt-perturbation")
    assert not stands("aaopt", "aaopt-perturbation") and not stands("aaopt-perturbation", "aaopt")
    assert stands("score-opt N", "score-opt-n") and not stands("score-opt N", "score-opt-o")
    # A purifier that no sweep calls by a published name is what it is, whichever attack it is under.
    agdm = next(cell for cell in sweep.cells if cell.defence.purifier.purifier == "robust-reverse")
    assert agdm.defence.purifier.id not in sweep.names and same_method(
        claims["robust-reverse"], agdm.defence.purifier
    )
    ours = next(cell for cell in sweep.cells if cell.defence.label().startswith("diffpure t*=50"))
    assert ours.defence.purifier.id not in sweep.names and same_method(claims["diffpure"], ours.defence.purifier)


# Published figures of the digits, so that they can be compared with cells that are computed here.
FAKE = """
paper: fake
title: Fake
link: https://arxiv.org/abs/0
settings: {t_star: 470, schedule: null, attack_steps: 2, images: 20, draws: null, scale: null}
tables:
  - table: "1"
    dataset: digits
    certainty: read
    source: Table 1
    columns:
      - {threat: clean}
      - {threat: attack, norm: linf, eps: 0.1}
      - {threat: attack, norm: l2, eps: 0.1}
    rows:
      - {defence: diffpure, classifier: digits-cnn, values: [90.0, 80.0, 70.0]}
      - {defence: trades, classifier: digits-trades, values: [91.0, 81.0, 71.0]}
      - {defence: diffpure, classifier: resnet18, values: [1.0, 2.0, 3.0]}
  - table: "2"
    dataset: digits
    certainty: inferred
    source: Table 2
    settings: {t_star: 10}
    columns:
      - {threat: attack, norm: linf, eps: 0.1, adaptive: true, attack: pgd}
      - {threat: corruption, corruption: shot_noise}
    rows:
      - {defence: diffpure, classifier: digits-cnn, values: [60.0, 50.0]}
anomalies:
  - {tables: ["1"], text: Odd.}
"""

SWEEP = f"""
sweep: beside
datasets:
  - {{dataset: digits, images: {{first: 20}}}}
classifiers: [digits-cnn]
denoisers:
  small: {{format: diffusers, path: {ASSETS / "digits-ddpm"}, schedule: linear-1000}}
defences:
  - {{purifier: diffpure, denoiser: small, schedule: linear-1000, t_star: 10, steps: 2, draws: 2}}
attacks:
  - none
  - {{attack: pgd, norm: linf, eps: 0.1, steps: 2}}
  - {{attack: pgd, norm: linf, eps: 0.1, steps: 2, gradient: bpda}}
corruptions:
  - {{corruption: [shot_noise, fog], severity: [1, 5]}}
include:
  - classifiers: [{{classifier: digits-trades, name: trades}}]
    defences: [none]
    attacks: [none]
chunk: 10
"""


@pytest.mark.slow
class TestCompare:
    @pytest.fixture(scope="class")
    def results(self, tmp_path_factory: pytest.TempPathFactory) -> Results:
        folder = tmp_path_factory.mktemp("published")
        sweep = small_sweep(folder, SWEEP)
        compute(sweep, str(folder / "store"))
        return Results(Store(str(folder / "store")), sweep)

    @pytest.fixture
    def frame(self, results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
        (tmp_path / "fake.yaml").write_text(FAKE)
        monkeypatch.setattr(paper_files, "_FOLDER", tmp_path)
        return match_published(results)

    def test_values_stand_beside_the_cells_that_they_are_of_and_no_others(self, frame: pd.DataFrame) -> None:
        pairs = frame[["table", "threat", "published", "threat_measured"]].to_numpy().tolist()
        assert pairs == [
            ["1", "clean", 90.0, "clean"],
            # Whether the published attack sees the purifier is not stated: both of ours.
            ["1", "attack linf 0.1", 80.0, "pgd-2 linf"],
            ["1", "attack linf 0.1", 80.0, frame["threat_measured"][2]],
            ["1", "clean", 91.0, "clean"],
            ["2", "adaptive pgd linf 0.1", 60.0, frame["threat_measured"][2]],
            ["2", "shot_noise", 50.0, "shot_noise"],
        ]
        assert "bpda" in frame["threat_measured"][2].lower()
        assert frame["certainty"].tolist() == ["read"] * 4 + ["inferred"] * 2

    def test_measured_is_the_mean_over_draws_of_the_committed_rows(
        self, frame: pd.DataFrame, results: Results
    ) -> None:
        robustness = results.robustness()
        clean = robustness[(robustness["attack"] == "clean") & (robustness["purifier"] == "diffpure")].iloc[0]
        assert frame["measured"][0] == pytest.approx(100 * clean["avg"])
        assert (frame["low"][0], frame["high"][0]) == pytest.approx((100 * clean["avg_low"], 100 * clean["avg_high"]))

    def test_a_corruption_is_averaged_over_its_severities(self, frame: pd.DataFrame, results: Results) -> None:
        shares = []
        for cell in results.sweep.cells:
            if cell.corruption is not None and cell.corruption.corruption == "shot_noise":
                rows = results.rows(cell)
                shares.append((np.stack(list(rows["prediction"])) == rows["label"].to_numpy()[:, None]).mean())
        assert len(shares) == 2 and frame["measured"][5] == pytest.approx(100 * np.mean(shares))

    def test_what_differs_is_reported_and_what_is_the_same_is_not(self, frame: pd.DataFrame) -> None:
        first, adaptive, corrupted = frame["differs"][0], frame["differs"][4], frame["differs"][5]
        assert "t_star: published 470, measured 10" in first
        assert "schedule: published not stated, measured linear-1000" in first
        assert "draws: published not stated, measured 2" in first
        assert "images" not in first and "attack_steps" not in frame["differs"][1]
        assert "not stated whether it sees the purifier, measured does not see it" in frame["differs"][1]
        assert "t_star" not in adaptive and "sees the purifier" not in adaptive  # the table's own setting
        assert "severities: measured 1, 5 alone" in corrupted
        assert "measured generated ones" in corrupted

    def test_the_anomalies_of_a_table_go_with_its_values(self, frame: pd.DataFrame) -> None:
        assert frame["anomalies"].tolist() == ["Odd."] * 4 + [""] * 2

    def test_nothing_committed_is_nothing_compared(self, tmp_path: Path, results: Results) -> None:
        empty = match_published(Results(Store(str(tmp_path / "none")), results.sweep))
        assert empty.empty and list(empty.columns)[:3] == ["paper", "table", "dataset"]
