"""A mistake inside a spec inside an entry is reported at its own path and line, with its own valid names."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from grids_small import ASSETS
from pydantic import Field, SerializeAsAny

from defense.errors import InvalidInput
from tasks.attacks import AttackConfig, PGDConfig
from workflows.grid import Sweep, load_sweep
from workflows.training.load import load_config

HEAD = f"""\
sweep: nested
datasets: [{{dataset: digits, images: {{first: 2}}}}]
classifiers: [digits-cnn]
denoisers:
  ddpm: {{format: diffusers, path: {ASSETS}/digits-ddpm, schedule: linear-1000}}
defences: [none]
"""
LINES = len(HEAD.splitlines())
PGD = (
    "Valid names: attack, attacked, band, decay, eot, eot_by, eps, eps_255, gradient, keep, knows, loss, momentum, "
    "norm, "
)


class Warmed(PGDConfig):
    """An attack of somebody else's, with other attacks inside it."""

    attack: Literal["others_attacks:Warmed"] = "others_attacks:Warmed"  # type: ignore[assignment]
    warmup: SerializeAsAny[AttackConfig]
    more: dict[str, SerializeAsAny[AttackConfig]] = Field(default_factory=dict)


@pytest.fixture(autouse=True)
def others_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("others_attacks")
    module.Warmed = Warmed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "others_attacks", module)


def load(folder: Path, text: str, *overrides: str) -> Sweep:
    path = folder / "s.yaml"
    path.write_text(HEAD + textwrap.dedent(text))
    return load_sweep(path, overrides)


LADDER = """\
    attacks:
      - attack: ladder
        norm: linf
        eps_255: 8
        rungs:
"""
TRANSFER = """\
    attacks:
      - attack: transfer
        norm: linf
        eps_255: 8
"""
WARMED = """\
    attacks:
      - attack: others_attacks:Warmed
        norm: linf
        eps_255: 8
"""
CHAIN = """\
    include:
      - defences:
          - purifier: chain
            stages:
              - jpeg
"""

WRONG = {
    "a rung": (
        LADDER + "          - bpda\n          - attack: pgd\n            stepz: 3\n",
        (8, "attacks.0.rungs.1.stepz", "did you mean 'steps'?", PGD),
    ),
    "a rung's name": (
        LADDER + "          - bpda\n          - attack: pdg\n",
        (7, "attacks.0.rungs.1.attack", "unknown attack 'pdg'; did you mean 'pgd'?"),
    ),
    "a rung's value": (
        LADDER + "          - attack: pgd\n            steps: many\n",
        (7, "attacks.0.rungs.0.steps", "steps = 'many' (str)"),
    ),
    "a gradient mode": (
        LADDER + "          - blind\n          - exakt\n",
        (7, "attacks.0.rungs.1", "'exakt' is none of blind, bpda"),
    ),
    "a rung of another budget": (
        LADDER + "          - bpda\n          - attack: fgsm\n            eps: 0.2\n",
        (7, "attacks.0.rungs.1", "minima over images compare attacks of one budget"),
    ),
    "a budget that is no pixel value": (
        LADDER + "          - attack: stadv\n            norm: flow\n            eps_255: 8\n",
        (8, "attacks.0.rungs.0.eps_255", "the budget of 'stadv' is no pixel value: give `eps`"),
    ),
    "a budget that rungs have from the ladder": (
        LADDER.replace("eps_255: 8", "eps: 8/255") + "          - attack: pgd\n",
        (4, "attacks.0.eps", "eps = '8/255' (str)", "`eps_255: 8`"),
    ),
    "a short budget that rungs have from the ladder": (
        LADDER.replace("eps_255: 8", "eps_255: -8") + "          - attack: pgd\n",
        (4, "attacks.0.eps_255", "greater than 0"),
    ),
    "no budget for the rungs": (
        LADDER.replace("eps_255: 8", "select: 2") + "          - attack: pgd\n",
        (2, "attacks.0", "field 'eps' is missing"),
    ),
    "the source of a transfer": (
        TRANSFER + "        source:\n          attack: pgd\n          stepz: 3\n        classifier: digits-cnn\n",
        (7, "attacks.0.source.stepz", "did you mean 'steps'?", PGD),
    ),
    "the second source of two": (
        TRANSFER
        + "        source:\n          - attack: pgd\n          - attack: pgd\n            eps: big\n"
        + "        classifier: digits-cnn\n",
        (8, "attacks.0.source.1.eps", "eps = 'big' (str)"),
    ),
    "the classifier of a transfer": (
        TRANSFER
        + "        source: fgsm\n        classifier:\n          classifier: digits-cnn\n          sha: abc\n",
        (8, "attacks.0.classifier.sha", "did you mean 'sha256'?", "Valid names: classifier, mean, name"),
    ),
    "the denoiser of a transfer's purifier": (
        TRANSFER
        + "        source: {attack: pgd, gradient: bpda}\n        purifier:\n          purifier: diffpure\n"
        + "          denoiser: dppm\n          sigma_eq: 0.1\n",
        (8, "attacks.0.purifier.denoiser", "unknown denoiser 'dppm'; did you mean 'ddpm'?"),
    ),
    "a stage's denoiser": (
        CHAIN
        + "              - purifier: diffpure\n                sigma_eq: 0.1\n                denoiser:\n"
        + "                  formt: diffusers\n                  schedule: linear-1000\n",
        (9, "include.0.defences.0.stages.1.denoiser.formt", "did you mean 'format'?"),
    ),
    "the files of a stage's denoiser": (
        CHAIN
        + "              - purifier: diffpure\n                sigma_eq: 0.1\n                denoiser:\n"
        + "                  path: nowhere\n                  schedule: linear-1000\n",
        (8, "include.0.defences.0.stages.1.denoiser", "holds no config.json"),
    ),
    "a chain in a chain": (
        CHAIN
        + "              - purifier: chain\n                stages:\n"
        + "                  - {purifier: jpeg, qality: 3}\n",
        (8, "include.0.defences.0.stages.1.stages.0.qality", "did you mean 'quality'?"),
    ),
    "a plugin's attack": (
        WARMED + "        warmup:\n          attack: pgd\n          norm: linf\n          eps_256: 8\n",
        (8, "attacks.0.warmup.eps_256", "did you mean 'eps_255'?", PGD),
    ),
    "two spellings in a plugin's attack": (
        WARMED
        + "        warmup:\n          attack: pgd\n          norm: linf\n          eps: 0.1\n          eps_255: 8\n",
        (9, "attacks.0.warmup.eps_255", "give either `eps` or `eps_255`, not both"),
    ),
    "a ladder in a plugin": (
        WARMED
        + "        warmup:\n          attack: ladder\n          norm: linf\n          eps: 0.1\n          rungs:\n"
        + "            - bpda\n            - attack: pgd\n              stepz: 3\n",
        (12, "attacks.0.warmup.rungs.1.stepz", "did you mean 'steps'?", PGD),
    ),
    "a mapping of attacks in a plugin": (
        WARMED
        + "        warmup: {attack: fgsm, norm: linf, eps: 0.1}\n        more:\n"
        + "          first: {attack: pgd, norm: l7}\n",
        (7, "attacks.0.more.first.norm", "norm = 'l7' (str)"),
    ),
    "the network of a measure": (
        "    quality:\n      lpips:\n        wights: a.pth\n",
        (3, "quality.lpips.wights", "did you mean 'weights'?"),
    ),
    "what is excluded": (
        "    exclude:\n      - attack:\n          attack: stadv\n          eps_255: 8\n",
        (4, "exclude.0.attack.eps_255", "is no pixel value"),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_has_its_own_path_line_and_names(tmp_path: Path, name: str) -> None:
    text, (line, path, *says) = WRONG[name]
    with pytest.raises(InvalidInput) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 's.yaml'}:{LINES + line}: {path}: ")
    for words in says:
        assert words in caught.value.message


@pytest.mark.parametrize(
    ("setting", "path", "says"),
    [
        ("attacks.0.rungs.1.stepz=3", "attacks.0.rungs.1.stepz", "did you mean 'steps'?"),
        ("attacks.0.rungs.1.eps_255=x", "attacks.0.rungs.1.eps_255", "eps_255 = 'x' is no number"),
        ("attacks.0.rungs=[bpda, {attack: pgd, stepz: 3}]", "attacks.0.rungs.1.stepz", PGD),
        ("attacks.0.eps=0.1", "attacks.0.eps_255", "give either `eps` or `eps_255`, not both"),
    ],
)
def test_an_override_of_something_inside_names_its_option(tmp_path: Path, setting: str, path: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(tmp_path, LADDER + "          - bpda\n          - attack: pgd\n", setting)
    assert caught.value.message.startswith(f"{path}: ") and says in caught.value.message
    if path == setting.partition("=")[0] or setting.startswith("attacks.0.rungs="):
        assert caught.value.where == f"--set {setting}"


def test_short_spellings_names_and_inherited_budgets_reach_every_depth(tmp_path: Path) -> None:
    text = """\
    attacks:
      - attack: others_attacks:Warmed
        norm: linf
        eps_255: 8
        warmup: {attack: ladder, norm: l2, eps_255: 51, rungs: [bpda, {attack: pgd, eps_255: 51, steps: 3}]}
        more: {first: {attack: pgd, norm: linf, eps_255: [4]}}
      - attack: transfer
        norm: linf
        eps_255: 8
        source: {attack: pgd, gradient: bpda, eps_255: 4}
        purifier: {purifier: chain, stages: [jpeg, {purifier: diffpure, denoiser: ddpm, sigma_eq: 0.1}]}
    """
    with pytest.raises(InvalidInput, match=r"attacks\.0\.more\.first\.eps"):  # a list is an axis in entries alone
        load(tmp_path, text)
    sweep = load(tmp_path, text.replace("[4]", "4"))
    warmed, transfer = (cell.attack.model_dump() for cell in sweep.cells if cell.attack is not None)
    assert [rung["eps"] for rung in warmed["warmup"]["rungs"]] == [0.2, 0.2]
    assert [rung["norm"] for rung in warmed["warmup"]["rungs"]] == ["l2", "l2"]
    assert warmed["more"]["first"]["eps"] == 4 / 255 and transfer["source"]["eps"] == 4 / 255
    stage = transfer["purifier"]["stages"][1]
    assert (stage["t_star"], stage["denoiser"]["schedule"]) == (59, "linear-1000")
    assert len(stage["denoiser"]["sha256"]) == 64  # found and hashed


def test_a_training_config_is_read_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    head = "train: classifier\nout: here\nclassifier: digits-cnn\nbatch: 4\nsteps: 2\nlr: 1e-3\n"
    for tail, line, place, says in (
        ("dataset:\n  dataset: digits\n  splt: train\n", 9, "dataset.splt", "did you mean 'split'?"),
        ("dataset: digit\n", 7, "dataset.dataset", "did you mean 'digits'?"),
        (
            "dataset: digits\nmethod:\n  method: trades\n  norm: linf\n  eps_255: x\n",
            11,
            "method.eps_255",
            "no number",
        ),
        ("dataset: digits\nmethod: {method: trades, norm: linf}\n", 8, "method", "field 'eps' is missing"),
        ("dataset: digits\nmethod: trdes\n", 8, "method.method", "did you mean 'trades'?"),
    ):
        path.write_text(head + tail)
        with pytest.raises(InvalidInput) as caught:
            load_config(path)
        assert str(caught.value).startswith(f"{path}:{line}: {place}: ") and says in caught.value.message
    path.write_text(head + "dataset: digits\nmethod: {method: trades, norm: linf, eps_255: 8}\n")
    config = load_config(path)
    assert config.dataset == {"dataset": "digits"}
    assert config.identity()["method"]["eps"] == 8 / 255
