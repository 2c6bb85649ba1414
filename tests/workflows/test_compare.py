"""Two runs cell by cell: which cells belong together, what changed, and the numbers by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from helpers_small import SMALL, compute, small_sweep, undeclared
from scipy import stats
from typer.testing import CliRunner

from workflows.cli import app
from workflows.planning.plan import make_plan
from workflows.regression.baselines import load_pair
from workflows.regression.check import Gate, check, verdict_of
from workflows.regression.compare import Change, compare_runs, match, spec_changes
from workflows.regression.snapshots import CellOutcome, Shares, Snapshot, of_results
from workflows.regression.texts import comparison_table, comparison_text, verdict_table
from workflows.results.reader import Results
from workflows.results.records import record_sweep
from workflows.statistics.paired import paired_difference
from workflows.store import Store


def ran(folder: Path, *changes: tuple[str, str], store: str = "store") -> tuple[Snapshot, Path, Store]:
    """The small sweep with some text replaced, computed."""
    text = SMALL
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    folder.mkdir(exist_ok=True)
    sweep = small_sweep(folder, text)
    opened = Store(str(folder / store))
    record_sweep(sweep, make_plan(sweep), opened)
    compute(sweep, opened.uri)
    return of_results(Results(opened, sweep)), folder / "small.yaml", opened


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, Path, Store]:
    return ran(tmp_path_factory.mktemp("base") / "run")


def puregrid(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


PLANTED = {
    "t*": (
        [("t_star: 10", "t_star: 20")],
        {"purifier.t_star": (10, 20)},
        [2, 3],  # the cells behind the purifier
    ),
    "attack steps": (
        [("    steps: 2\n    step_size", "    steps: 3\n    step_size")],
        {"source.attack.steps": (2, 3)},
        [1, 3],
    ),
    "draws": ([("draws: 2", "draws: 3")], {"draws": (2, 3)}, [2, 3]),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_change_is_named_where_it_is_and_nowhere_else(
    what: str, base: tuple[Snapshot, Path, Store], tmp_path: Path
) -> None:
    edits, fields, cells = PLANTED[what]
    other, _, _ = ran(tmp_path / "other", *edits)
    pairs = match(base[0], other)
    assert [pair.first is not None and pair.second is not None for pair in pairs] == [True] * 4
    for i, pair in enumerate(pairs):
        assert pair.first is base[0].cells[i] and pair.second is other.cells[i]
        found = {change.field: (change.first, change.second) for change in pair.changes}
        assert found == (fields if i in cells else {})
    # The report of both commands names it, once for all of its cells.
    (field, (old, new)) = next(iter(fields.items()))
    assert f"{field} {old} -> {new}   (2 of 4 cells)" in comparison_text(compare_runs(base[0], other), "a", "b")
    verdicts = check(base[0], other, Gate(detect=0.95))
    assert [bool(cell.changes) for cell in verdicts] == [i in cells for i in range(4)]


def test_people_read_the_numbers_of_json_in_declared_columns(
    base: tuple[Snapshot, Path, Store], tmp_path: Path
) -> None:
    other, _, _ = ran(tmp_path / "other", ("t_star: 10", "t_star: 200"))
    lonely = replace(other, cells=other.cells[:3])
    comparisons = compare_runs(base[0], lonely)
    table = comparison_table(comparisons)
    assert undeclared(table) == set() and len(table.frame) == 4
    by_json = [comparison.as_dict() for comparison in comparisons]
    for line, row, content in zip(table.lines(), table.records(), by_json, strict=True):
        shown = dict(zip([column.title for column in table.visible], line, strict=True))
        assert (shown["cell"], shown["note"]) == (content["cell"], content["note"])
        if "difference" not in content:
            assert content["note"] == shown["note"] == "only in the first run"
            assert {shown[name] for name in ("measure", "images", "first", "second - first", "p (Holm)")} == {"-"}
            continue
        assert {name: row[name] for name in ("first", "second", "difference", "low", "high", "p_holm")} == {
            name: content[name] for name in ("first", "second", "difference", "low", "high", "p_holm")
        }
        low, high = content["low"], content["high"]
        assert shown["second - first"] == f"{100 * content['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        only = f"{content['right_only_in_first']}, {content['right_only_in_second']}"
        assert (shown["images"], shown["right only in 1st, 2nd"]) == ("20", only)
    assert any(row["difference"] for row in table.records())
    verdicts = check(base[0], lonely, Gate(detect=0.95))
    checked = verdict_table(verdicts)
    drops = [judgement.drop for cell in verdicts for judgement in cell.judged]
    assert undeclared(checked) == set()
    assert [row["drop"] for row in checked.records() if row["drop"] is not None] == [drop.value for drop in drops]
    assert [row["verdict"] for row in checked.records()][-1] == verdicts[-1].verdict == "unknown"


def test_changed_weights_are_named_by_their_hash(base: tuple[Snapshot, Path, Store], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    original = next((Path(__file__).parents[2] / "defense" / "assets").glob("digits-cnn/*.safetensors"))
    state = load_file(original)
    name = next(name for name, value in state.items() if value.is_floating_point())
    torch.manual_seed(0)
    state[name] = state[name] + 0.01 * torch.randn_like(state[name])
    save_file(state, tmp_path / "mine.safetensors")
    entry = f"classifiers: [{{classifier: digits-cnn, weights: {tmp_path / 'mine.safetensors'}, name: digits-cnn}}]"
    other, _, _ = ran(tmp_path / "other", ("classifiers: [digits-cnn]", entry))
    pairs = match(base[0], other)
    for pair in pairs:
        assert pair.first is not None and pair.second is not None
        fields = {change.field for change in pair.changes}
        assert "classifier.sha256" in fields and all(field.endswith("classifier.sha256") for field in fields)
        assert not any(change.of_threat for change in pair.changes)


def test_numbers_of_real_runs_are_those_of_the_rows(base: tuple[Snapshot, Path, Store], tmp_path: Path) -> None:
    other, _, _ = ran(tmp_path / "other", ("t_star: 10", "t_star: 400"))
    comparisons = compare_runs(base[0], other)
    before, now = (run.cells[3].values["Avg"].values for run in (base[0], other))
    changed = comparisons[3]
    assert changed.difference is not None and changed.answers is not None
    assert changed.difference == paired_difference(before, now) and changed.difference.value < -0.1
    first, second = (run.cells[3].values["answer"].counts for run in (base[0], other))
    only = int((first > second).sum()), int((second > first).sum())
    assert changed.answers == (*only, pytest.approx(stats.binomtest(only[0], sum(only)).pvalue))
    # What is before the purifier is the same run: nothing differs, p is 1.
    same = comparisons[0]
    assert same.difference is not None and same.answers is not None
    assert (same.difference.value, same.answers.p, same.p_holm) == (0.0, 1.0, 1.0)


def test_corruptions_and_certificates_are_compared_too(tmp_path: Path) -> None:
    text = """
sweep: others
datasets: [{dataset: digits, images: {first: 12}}]
classifiers: [{classifier: digits-cnn, mean: [MEAN]}]
defences: [none]
attacks: [none]
corruptions: [{corruption: gaussian_noise, severity: 3}]
certificates: [{sigma: 0.25, n: 200}]
"""
    runs = []
    for mean in ("0.3", "1.4"):
        (tmp_path / mean).mkdir()
        sweep, store = small_sweep(tmp_path / mean, text.replace("MEAN", mean)), Store(str(tmp_path / mean / "store"))
        compute(sweep, store.uri)
        runs.append(of_results(Results(store, sweep)))
        rows = Results(store, sweep).rows(sweep.certified[0])
        right = (rows["prediction"] == rows["label"]).to_numpy()
        found = runs[-1].cells[-1].values
        assert list(found) == ["certified 0", "certified 0.25", "certified 0.5", "ACR / 4 sigma"]
        for at, shares in zip((0, 0.25, 0.5), list(found.values())[:3], strict=True):
            assert shares.counts.tolist() == (right & (rows["radius"] >= at)).to_numpy().astype(int).tolist()
    assert [len(cell.changes) > 0 for cell in compare_runs(*runs)] == [True] * 3
    verdicts = check(*runs, Gate())
    assert len(verdicts) == 3 and [len(cell.judged) for cell in verdicts] == [1, 1, 4]
    assert all(change.field.endswith("classifier.mean") for cell in verdicts for change in cell.changes)
    # Of 12 images nobody sees a drop of 20 points.
    assert verdict_of(check(runs[0], runs[0], Gate())) == "unknown"
    assert verdict_of(check(runs[0], runs[0], Gate(detect=0.999))) == "holds"


# Made up runs


def outcome(name: str, right: int = 90, images: int = 100, offset: int = 0, **spec: Any) -> CellOutcome:
    counts = np.r_[np.ones(right, dtype=np.int64), np.zeros(images - right, dtype=np.int64)]
    shares = Shares(counts, 1)
    ids = tuple(range(offset, offset + images))
    full = {"stage": "evaluate", "draws": 1, "aggregation": "single", "seed": 0, **spec}
    return CellOutcome(name, full, "data", ids, True, {"Avg": shares, "answer": shares}, {}, None)


def run_of(*cells: CellOutcome) -> Snapshot:
    return Snapshot("made up", "s", cells, {})


def diffpure(t_star: int, **fields: Any) -> CellOutcome:
    return outcome(f"t*={t_star}", purifier={"purifier": "diffpure", "t_star": t_star}, **fields)


def test_the_same_spec_matches_before_the_same_place() -> None:
    # 150 keeps its partner, whatever its position, and what is left belongs together.
    first, second = run_of(diffpure(50), diffpure(150)), run_of(diffpure(150), diffpure(60))
    pairs = match(first, second)
    assert [(pair.first.name, pair.second.name) for pair in pairs] == [("t*=150", "t*=150"), ("t*=50", "t*=60")]  # type: ignore[union-attr]
    assert [list(map(str, pair.changes)) for pair in pairs] == [[], ["purifier.t_star 50 -> 60"]]
    # Several that changed are matched in the order of the grid.
    pairs = match(run_of(diffpure(50), diffpure(150)), run_of(diffpure(60), diffpure(160)))
    assert [pair.changes[0].second for pair in pairs] == [60, 160]


def test_what_is_ambiguous_or_of_another_kind_does_not_match() -> None:
    for first, second in (
        (run_of(diffpure(50), diffpure(150)), run_of(diffpure(60))),
        (run_of(diffpure(50)), run_of(outcome("jpeg", purifier={"purifier": "jpeg"}))),
        (
            run_of(outcome("a", source={"attack": {"attack": "pgd", "norm": "linf", "eps": 0.1}})),
            run_of(outcome("b", source={"attack": {"attack": "pgd", "norm": "linf", "eps": 0.2}})),
        ),
        (run_of(outcome("a", seed=1)), run_of(outcome("b", seed=2))),
        (run_of(outcome("a")), run_of(outcome("b", source={"attack": {"attack": "pgd"}}))),
    ):
        pairs = match(first, second)
        assert len(pairs) == len(first.cells) + len(second.cells)
        assert all(pair.first is None or pair.second is None for pair in pairs)
        notes = {cell.note for cell in compare_runs(first, second)}
        assert notes == {"only in the first run", "only in the second run"}


def test_spec_changes_by_hand() -> None:
    first = {"a": 1, "b": {"c": [1, 2], "d": {"e": 0.5}}, "r": [{"x": 1}, {"x": 2}], "only": None}
    second = {"a": 1, "b": {"c": [1, 3], "d": {"e": 0.5, "f": "new"}}, "r": [{"x": 1}, {"x": 3}]}
    assert spec_changes(first, second) == (
        Change("b.c", [1, 2], [1, 3]),
        Change("r[1].x", 2, 3),
        Change("b.d.f", None, "new"),
    )
    assert spec_changes(first, first) == ()


@pytest.mark.parametrize(
    ("field", "threat"),
    [
        ("source.attack.steps", True),
        ("source.corruption.severity", True),
        ("source.sources[0].attack.eot", True),
        ("source.classifier.sha256", False),
        ("source.purifier.t_star", False),
        ("source.sources[1].purifier.steps", False),
        ("source.version", False),
        ("purifier.t_star", False),
        ("draws", False),
        ("certificate.sigma", True),
    ],
)
def test_which_changes_are_of_the_threat(field: str, threat: bool) -> None:
    assert Change(field, 1, 2).of_threat is threat


def test_holm_counts_the_cells_that_could_be_compared() -> None:
    first = run_of(outcome("a", 90), outcome("b", 90), outcome("gone", 90, norm=1, seed=5))
    second = run_of(outcome("a", 80, v=2), outcome("b", 84, v=2))
    found = compare_runs(first, second)
    assert [cell.answers.p for cell in found[:2] if cell.answers] == pytest.approx([2 * 0.5**10, 2 * 0.5**6])
    assert [cell.p_holm for cell in found[:2]] == pytest.approx([4 * 0.5**10, 2 * 0.5**6])
    assert (found[2].answers, found[2].p_holm, found[2].note) == (None, None, "only in the first run")
    content = json.loads(json.dumps([cell.as_dict() for cell in found]))
    assert content[0]["difference"] == pytest.approx(-0.1) and content[0]["low"] < -0.1 < content[0]["high"] < 0
    assert (content[0]["right_only_in_first"], content[0]["right_only_in_second"]) == (10, 0)


def test_only_shared_images_are_compared_and_it_says_so() -> None:
    found = compare_runs(run_of(outcome("a", 90)), run_of(outcome("a", 40, 60, offset=20)))
    assert found[0].difference is not None and found[0].difference.images == 60
    assert found[0].note == "on 60 shared images of 100 and 60"
    # Images 20 to 89 were right before, 20 to 59 are now.
    assert found[0].answers is not None and found[0].answers[:2] == (20, 0)
    assert "only one image in common" in compare_runs(run_of(outcome("a")), run_of(outcome("a", offset=99)))[0].note
    assert "no images in common" in compare_runs(run_of(outcome("a")), run_of(outcome("a", offset=500)))[0].note
    other = replace(outcome("a"), data="other")
    assert "data sets differ" in compare_runs(run_of(outcome("a")), run_of(other))[0].note


# The command line


def test_runs_can_be_named_in_all_ways(base: tuple[Snapshot, Path, Store], tmp_path: Path) -> None:
    _, path, store = base
    _, other_path, other_store = ran(tmp_path / "other", ("t_star: 10", "t_star: 20"))
    file = tmp_path / "base.json"
    assert puregrid("promote", path, "--store", store.uri, "--to", file).exit_code == 0
    ways = [
        (f"{path}@{store.uri}", f"{other_path}@{other_store.uri}"),
        (store.uri, other_store.uri),
        (store.uri, f"{other_path}@{other_store.uri}"),
        (file, other_store.uri),
    ]
    texts = [puregrid("compare", *way, "--json") for way in ways]
    texts.append(puregrid("compare", path, "--store", store.uri, "--with", other_store.uri, "--json"))
    assert {text.exit_code for text in texts} == {0} and len({text.stdout for text in texts}) == 1
    content = json.loads(texts[0].stdout)
    assert [len(cell["changes"]) for cell in content] == [0, 0, 1, 1]
    human = puregrid("compare", store.uri, other_store.uri)
    assert human.exit_code == 0 and "purifier.t_star 10 -> 20   (2 of 4 cells)" in human.stdout
    first, second = load_pair(str(file), str(other_path), store=other_store.uri, tracking_uri=None)
    assert (first.sweep, second.source) == ("small", other_store.uri)


def test_runs_that_cannot_be_named_are_refused(base: tuple[Snapshot, Path, Store], tmp_path: Path) -> None:
    _, path, store = base
    for arguments, message in (
        ((store.uri,), "name two runs"),
        ((store.uri, store.uri, "--with", store.uri), "name two runs"),
        ((store.uri, tmp_path / "none"), "no such file or store"),
        ((store.uri, "mlflow:champion", "--mlflow", "off"), "no MLflow"),
        ((f"{path}@{store.uri}", tmp_path), "no sweep 'small'"),
    ):
        found = puregrid("compare", *arguments)
        assert found.exit_code == 2 and message in found.stderr, (arguments, found.stderr)
    # Of a store with several sweeps one has to be named.
    text = SMALL.replace("sweep: small", "sweep: second").replace("first: 20", "first: 8")
    record_sweep(sweep := small_sweep(tmp_path, text), make_plan(sweep), opened := Store(str(tmp_path / "two")))
    record_sweep(sweep := small_sweep(tmp_path, SMALL), make_plan(sweep), opened)
    found = puregrid("compare", opened.uri, opened.uri)
    assert found.exit_code == 2 and "the sweeps second, small: say which" in found.stderr
