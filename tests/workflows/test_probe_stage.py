"""Probes of a sweep: which there are, that they change nothing else, their tables, the finding, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers_small import ASSETS, compute
from torch import Tensor
from typer.testing import CliRunner

from defense.classifiers import CLASSIFIERS, ClassifierConfig
from defense.classifiers.digits_cnn import DigitsCNN
from defense.errors import InvalidInput
from defense.models import Models
from defense.probe import DEMANDS
from defense.purifiers import Purifier, PurifierConfig
from defense.randomness import Omega
from tasks.compute import Compute, Context
from tasks.datasets import DigitsConfig
from tasks.stages import ProbeStage
from workflows.analysis import Analysis
from workflows.audit import findings
from workflows.cli import app
from workflows.grid.load import Sweep, load_sweep
from workflows.planning.plan import Plan, make_plan
from workflows.planning.summary import summarise
from workflows.results.reader import Results
from workflows.store import Store


class _Rounds(Purifier):
    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        return (x * 6).round() / 6


class Rounds(PurifierConfig):
    """Rounds, with the derivative that rounding has."""

    purifier: Literal["test_probe_stage:Rounds"] = "test_probe_stage:Rounds"

    @property
    def stochastic(self) -> bool:
        return False

    def label(self) -> str:
        return "rounds"

    def build(self, models: Models | None = None) -> Purifier:
        return _Rounds().eval()


class Unbuildable(Rounds):
    """Cannot be built."""

    purifier: Literal["test_probe_stage:Unbuildable"] = "test_probe_stage:Unbuildable"  # type: ignore[assignment]

    def label(self) -> str:
        return "unbuildable"

    def build(self, models: Models | None = None) -> Purifier:
        raise KeyError("weights")


class _Tires(DigitsCNN):
    calls = 0

    def classify(self, latent: Tensor) -> Tensor:
        self.calls += 1
        return super().classify(latent) + 0.1 * (self.calls > 40)


TIRES = replace(CLASSIFIERS.get("digits-cnn"), build=_Tires, load=None)

GUIDED = (
    f"{{purifier: distribution-transfer, denoiser: {{format: diffusers, path: {ASSETS / 'digits-ddpm'}, "
    "schedule: linear-1000}, steps: 2}"
)
TEXT = """
sweep: probed
datasets: [{dataset: digits, images: {first: 20}}]
classifiers: [digits-cnn, digits-at]
defences: [none, {purifier: gaussian-noise, sigma: 0.1, draws: 2}, {purifier: "test_probe_stage:Rounds"}]
attacks: [none, {attack: pgd, norm: linf, eps: 0.1, steps: 2, step_size: 0.06}]
chunk: 20
"""


def sweep(folder: Path, probe: str = "") -> Sweep:
    path = folder / "probed.yaml"
    path.write_text(TEXT + probe)
    return load_sweep(path)


def probes(plan: Plan) -> list[str]:
    return [stage.spec.label() for stage in plan.stages if isinstance(stage.spec, ProbeStage)]


def test_one_probe_of_each_purifier_and_classifier_and_all_else_as_before(tmp_path: Path) -> None:
    without, every, unsaid = (sweep(tmp_path, text) for text in ("probe: false\n", "probe: true\n", ""))
    plain, probed = make_plan(without), make_plan(every)
    assert probes(plain) == []
    assert probes(probed) == [
        "probe of classifier digits-cnn",
        "probe of purifier gaussian-noise s=0.1",
        "probe of purifier rounds",
        "probe of classifier digits-at",
    ]
    assert probes(make_plan(unsaid)) == ["probe of purifier rounds"]
    assert probes(make_plan(sweep(tmp_path, "probe: foreign\n"))) == ["probe of purifier rounds"]
    assert [stage.id for stage in probed.stages[: len(plain.stages)]] == [stage.id for stage in plain.stages]
    assert [cell.id for cell in every.cells] == [cell.id for cell in without.cells]
    assert every.id == without.id
    assert all(len(stage.chunks[0].ids) == 8 for stage in probed.stages if isinstance(stage.spec, ProbeStage))


def test_the_setting_is_refused_if_it_is_another(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"probed\.yaml:8: probe: probe is true .* not 'always'"):
        sweep(tmp_path, "probe: always\n")


def test_a_sweep_in_python_says_it_too() -> None:
    made = Sweep(
        "python", datasets=[{"dataset": "digits", "images": {"first": 1}}], classifiers=["digits-at"],
        defences=["none"], probe=True,
    )  # fmt: skip
    assert "probe: true" in made.text
    (stage,) = (stage for stage in make_plan(made).stages if isinstance(stage.spec, ProbeStage))
    assert stage.chunks[0].ids == (0, 1)  # a single image has its neighbour for comparison


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("probed")
    loaded = sweep(folder, "probe: true\n")
    compute(loaded, str(folder / "store"))
    return Results(Store(str(folder / "store")), loaded)


def test_a_failed_check_is_a_finding_of_the_cells_that_use_the_part(committed: Results) -> None:
    found = [finding for finding in findings(committed) if finding.rule == "probe-failed"]
    (finding,) = found
    assert finding.severity == "error"
    assert set(finding.cells) == {
        cell.id for cell in committed.sweep.cells if cell.defence.purifier.purifier.startswith("test_probe")
    }
    assert "fails `gradient-at-attack-scale`: predicted and measured changes agree to 0.00" in finding.text
    assert finding.evidence == {"value": 0.0, "threshold": DEMANDS["gradient-at-attack-scale"].threshold}
    assert finding.action == DEMANDS["gradient-at-attack-scale"].action


def test_tables_of_the_analysis_have_what_was_found(committed: Results) -> None:
    analysis = Analysis(committed, audit=False)
    checks = analysis.table("probe").frame
    assert list(checks["probed"].unique()) == ["digits-cnn", "gaussian-noise s=0.1", "rounds", "digits-at"]
    assert set(checks.groupby("probed").size()) == {len(DEMANDS)}
    assert list(checks[checks["verdict"] == "fail"]["probed"]) == ["rounds"]
    gradients = analysis.table("probe_gradients").frame.set_index(["probed", "name"])
    assert gradients.loc[("digits-at", "autograd"), "value"] < 1e-6
    assert gradients.loc[("gaussian-noise s=0.1", "exact"), "cosine"] == pytest.approx(1)
    mechanism = analysis.table("mechanism").frame.set_index(["probed", "name"])
    assert mechanism.loc[("gaussian-noise s=0.1", "gradient-cosine"), "value"] == pytest.approx(1)
    cost = analysis.cost
    assert set(cost[cost["stage"] == "probe"]["images"]) == {8}


def test_probes_are_made_once_and_their_rows_are_the_same_bytes(committed: Results, tmp_path: Path) -> None:
    summary = summarise(committed.sweep, make_plan(committed.sweep), committed.store)
    assert summary.missing == 0 and summary.forecast is not None
    compute(committed.sweep, str(tmp_path / "again"))
    plan, again = make_plan(committed.sweep), Store(str(tmp_path / "again"))
    for stage in plan.stages:
        if isinstance(stage.spec, ProbeStage):
            (chunk,) = stage.chunks
            names = ("probe", stage.id, chunk.name)
            assert committed.store.data_sha256(*names) == again.data_sha256(*names)


def test_a_classifier_that_units_have_called_before_is_probed_as_it_begins() -> None:
    config = ClassifierConfig(classifier="test_probe_stage:TIRES").resolved(Path())
    stage = ProbeStage(dataset=DigitsConfig(), classifier=config, compute=Compute())
    context = Context()
    for _ in range(50):
        context.classifier(config)(torch.zeros(1, 1, 8, 8))
    rows = stage.run(ProbeStage.chunk(range(20)), {}, context).rows.to_pandas()
    assert set(rows[rows["verdict"] == "fail"]["name"]) == {"state"}


def test_the_command_probes_a_sweep_into_the_store_once(committed: Results, tmp_path: Path) -> None:
    path = tmp_path / "probed.yaml"
    path.write_text(TEXT)
    arguments = ["probe", str(path), "--store", committed.store.uri]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 1  # a check fails
    assert "probe of purifier rounds: in the store" in shown.stderr
    assert "gradient-at-attack-scale" in shown.stdout and "Mechanism" in shown.stdout
    rows = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert {row["name"] for row in rows if row["kind"] == "check"} == set(DEMANDS)


def test_the_command_probes_a_part_by_its_name() -> None:
    bad = CliRunner().invoke(app, ["probe", "test_probe_stage:Rounds", "--classifier", "digits-at"])
    assert bad.exit_code == 1 and "rounds + digits-at: 1 of" in bad.stdout
    good = CliRunner().invoke(app, ["probe", "{purifier: bit-depth, bits: 3}", "--json"])
    assert good.exit_code == 0 and json.loads(good.stdout)["passed"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere:Nothing"], "defence 'nowhere:Nothing' cannot be imported"),
        (["torch:nothing"], "'torch:nothing' cannot be imported"),
        (["test_probe_stage:Rounds", "--no-plugins"], "--no-plugins"),
        (["{purifier: jpgg}"], "did you mean 'jpeg'?"),
        (["{attack: pgd}"], "names no purifier and no classifier"),
        (["{purifier: jpeg"], "is no YAML mapping"),
        (["math:pi"], "is no purifier and no classifier"),
        (["quickstart", "--dataset", "digits"], "a sweep has data sets and classifiers of its own"),
        (["no-such-sweep"], "no bundled sweep of this name"),
        (["{purifier: jpeg}", "--dataset", "digitz"], "did you mean 'digits'?"),
        (["{purifier: jpeg}", "--classifier", "digits-cn"], "did you mean 'digits-cnn'?"),
        (["{classifier: digits-at}", "--classifier", "digits-cnn"], "is no purifier, so that no classifier"),
        (["{classifier: resnet20}"], "needs `weights`"),
        ([GUIDED], "is guided by the classifier that it protects: name one"),
        (["test_probe_stage:Unbuildable"], "purifier 'unbuildable' cannot be built: KeyError: 'weights'"),
    ],
)
def test_wrong_use_of_the_command_is_explained(arguments: list[str], message: str) -> None:
    called = CliRunner().invoke(app, ["probe", *arguments])
    assert called.exit_code == 2, called.output
    assert message in called.stderr and "Traceback" not in called.stderr


def test_from_python_a_module_of_any_kind_is_probed() -> None:
    import puregrid

    network = ClassifierConfig(classifier="digits-at").resolved(Path()).build()
    defended = puregrid.Defended(puregrid.GaussianNoiseConfig(sigma=0.1).build(), network)
    found = puregrid.probe(defended, images=torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert isinstance(found, puregrid.Probe) and found.passed
    assert {check.part for check in found.checks} == {"purifier", "classifier"}
    assert found.check("test-set-memory").verdict == "not-applicable"
    assert not puregrid.probe(_Rounds).passed
