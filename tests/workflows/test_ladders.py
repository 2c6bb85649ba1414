"""Ladders in a sweep: from the file to the table, through a real store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_small import ASSETS, compute, small_sweep, undeclared

from defense.errors import InvalidInput
from tasks.attacks import LadderConfig, TransferConfig
from workflows.analysis import Analysis
from workflows.formats import render
from workflows.grid.load import Sweep
from workflows.planning.plan import make_plan
from workflows.report import report
from workflows.results.ladders import ladder_frame
from workflows.results.reader import Results
from workflows.store import Store

HEAD = f"""
sweep: ladders
datasets: [{{dataset: digits, images: {{first: 20}}}}]
classifiers: [digits-cnn]
denoisers: {{ddpm: {{format: diffusers, path: {ASSETS / "digits-ddpm"}, schedule: linear-1000}}}}
chunk: 8
resubmissions: 2
"""
DEFENCES = """
defences:
  - none
  - {purifier: diffpure, denoiser: ddpm, schedule: linear-1000, t_star: 100, steps: 2, draws: 2}
"""
LADDERS = """
attacks:
  - {attack: pgd, norm: linf, eps: 0.4, steps: 3, gradient: exact, eot: 2}
  - {attack: ladder, norm: linf, eps: 0.4, rungs: [blind, exact], steps: 3, eot: 2, select: 4, skip: [false, true]}
"""


def clean(folder: Path) -> Sweep:
    """A sweep without any attack."""
    return small_sweep(folder, HEAD + DEFENCES)


@pytest.mark.slow
def test_a_ladder_goes_through_the_store_and_its_table_adds_up(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, HEAD + DEFENCES + LADDERS)
    store = Store(str(tmp_path / "store"))
    compute(sweep, store.uri)
    results = Results(store, sweep)
    table = ladder_frame(results)
    assert list(table["rung"]) == [1, 1, 2, 1, 2]  # without a purifier both rungs are one attack, nothing to skip
    for _, ladder in table.groupby([table["rung"].eq(1).cumsum()]):
        assert ladder["submitted"].sum() == 20
        assert (ladder["so_far"].diff().dropna() <= 0).all()
        assert ladder["so_far"].iloc[0] == ladder["alone"].iloc[0]
    side_by_side, skipping = table.iloc[1:3], table.iloc[3:5]
    assert side_by_side["skipped"].tolist() == [0, 0]
    cell = sweep.cells[-1]
    broken = (np.stack(list(results.attack_rows(cell)["attack_rights"]))[:, 0] == 0).sum()
    assert skipping["skipped"].tolist() == [0, broken] and 0 < broken < 20
    assert skipping["alone"].isna().tolist() == [False, True]
    analysis = Analysis(results, audit=False)
    text = render(analysis, "md")
    line = next(line for line in text.splitlines() if "| 2 | pgd-3 linf exact eot 2 | 20 |" in line)
    value = table.iloc[2]
    assert f"| {100 * value['so_far']:.1f} | {value['submitted']} | 0 |" in line
    as_json = json.loads(render(analysis, "json"))["ladders"]
    assert as_json[2]["so_far"] == value["so_far"] and as_json[4]["alone"] is None
    assert undeclared(analysis.table("ladders")) == set()
    assert "Ladders" in report(analysis, command="puregrid run small.yaml")
    assert "| 2 | pgd-3" not in render(Analysis(Results(store, clean(tmp_path)), audit=False), "md")
    # A skipped image has nothing to lose on these draws: both ladders end at the same figure.
    assert side_by_side["so_far"].tolist() == skipping["so_far"].tolist()


def test_rungs_that_are_cells_too_are_computed_once(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, HEAD + DEFENCES + LADDERS)
    stages = [stage.spec.label() for stage in make_plan(sweep).stages]
    assert sum("pgd-3 linf exact eot 2 eps 0.4" in label and "behind" in label for label in stages) == 3
    # The attack, which is also the rung; its judgement; and once more on the images that the blind rung left.


def test_what_an_attack_names_is_found_from_the_sweep_file(tmp_path: Path) -> None:
    text = """
defences: [none]
attacks:
  - attack: transfer
    norm: linf
    eps_255: [8, 16]
    classifier: digits-at
    source: {attack: pgd, steps: 2, eps_255: 4}
  - attack: ladder
    norm: linf
    eps_255: 8
    rungs: [blind, {attack: square, queries: 5, eps_255: 8}]
"""
    transfers = small_sweep(tmp_path, HEAD + text).cells
    attacks = [cell.attack for cell in transfers]
    assert isinstance(attacks[0], TransferConfig) and attacks[0].classifier is not None
    assert attacks[0].classifier.sha256  # found and hashed
    assert attacks[0].source.eps == pytest.approx(4 / 255) and attacks[0].eps == pytest.approx(8 / 255)
    assert isinstance(attacks[2], LadderConfig) and len(attacks[2].rungs) == 2
    assert all(cell.resubmissions == 2 for cell in transfers)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("resubmissions: 0\ndefences: [none]", r"small.yaml:2: resubmissions: .* at least 1, not 0"),
        (
            "defences: [none]\nattacks: [{attack: ladder, norm: linf, eps: 0.1, rungs: [blnd]}]",
            "small.yaml:3: .*blnd",
        ),
        (
            "defences: [none]\nattacks: [{attack: transfer, norm: linf, eps: 0.1, source: {attack: pgd}}]",
            "small.yaml:3: .*needs a `classifier`",
        ),
        (
            "defences: [{purifier: jpeg, quality: 50}]\nattacks:\n  - attack: ladder\n    norm: linf\n    eps: 0.1\n"
            "    rungs: [blind, {attack: deviated-reconstruction, steps: 2, gradient: exact}]",
            "small.yaml:4: attacks.0: .*",
        ),
        (
            "defences: [none]\nattacks: [{attack: apgd, norm: linf, eps: 0.1, warm: true}]",
            "small.yaml:3: .*from the worst image of the rungs before it, and is alone",
        ),
    ],
)
def test_wrong_entries_are_refused_with_their_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        small_sweep(tmp_path, "sweep: wrong\n" + line + "\ndatasets: [digits]\nclassifiers: [digits-cnn]\n")


@pytest.mark.parametrize(
    "rung",
    [
        "{attack: deviated-reconstruction, steps: 2, gradient: exact}",
        "{attack: apgd, gradient: exact, eot: 2, stop_on_success: true}",
        "{attack: pgd, eps: 0.2}",
        "{attack: pgd, stepz: 3}",
        "{attack: apgd, loss: dlr-targeted, targets: 10}",
    ],
)
def test_what_a_ladder_refuses_the_strongest_attack_refuses_alike(tmp_path: Path, rung: str) -> None:
    messages = []
    for name in ("ladder", "strongest"):
        attack = f"{{attack: {name}, norm: linf, eps: 0.1, rungs: [blind, {rung}]}}"
        text = f"sweep: wrong\ndefences: [{{purifier: gaussian-noise, sigma: 0.1}}]\nattacks: [{attack}]\n"
        with pytest.raises(InvalidInput) as caught:
            small_sweep(tmp_path, f"{text}datasets: [digits]\nclassifiers: [digits-cnn]\n")
        messages.append(str(caught.value).replace("strongest", "ladder"))
    assert messages[0] == messages[1]
