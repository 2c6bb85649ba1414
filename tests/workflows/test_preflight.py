"""What every unit would raise is found at plan: exit 2, with the place in the sweep file; and found once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from helpers_small import ASSETS, small_sweep
from loops import every
from naps import SharedRay
from seconds import spent
from typer.testing import CliRunner

from tasks.compute import Compute
from workflows.assets.bundled import bundled_sweeps
from workflows.cli import app
from workflows.planning.plan import make_plan
from workflows.preflight import checks_of, preflight
from workflows.preflight.asking import Answer, ask
from workflows.preflight.checks import Blamed
from workflows.store import Store

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def parts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    # Twenty questions may take a busy machine longer than 2 s.
    monkeypatch.setattr("workflows.preflight.checks._FOREIGN_SECONDS", 300.0)


def sweep(
    attacks: str = "none",
    *,
    defences: str = "none",
    classifier: str = "preflight_parts:two",
    dataset: str = "preflight_parts:ShapesConfig",
    more: str = "",
) -> str:
    """A sweep file with one entry a line; the entry of the threat is in line 8."""
    return f"""\
sweep: wrong
datasets:
  - {{dataset: "{dataset.partition(" ")[0]}"{dataset.partition(" ")[2]}}}
classifiers:
  - {{classifier: "{classifier}"}}
defences: [{defences}]
attacks:
  - {attacks}
{more}
chunk: 4
"""


FOUR = {"classifier": "preflight_parts:four", "dataset": "preflight_parts:ShapesConfig , channels: 4, count: 4"}
THREE = {"classifier": "preflight_parts:three", "dataset": "preflight_parts:ShapesConfig , count: 3"}
SMALL = {"classifier": "preflight_parts:small", "dataset": "preflight_parts:ShapesConfig , side: 4"}
DIGITS = {"classifier": "digits-cnn", "dataset": "digits , images: {first: 8}"}
EXACT = "{attack: pgd, norm: linf, eps: 0.1, steps: 2, gradient: exact}"

KNOWN_FROM_THE_FILE = {
    "dlr of pgd": (
        sweep("{attack: pgd, norm: linf, eps: 0.1, loss: dlr}"),
        8,
        ("attacks.0.loss", "needs at least 3 classes, the classifier has 2", "use ce or margin"),
    ),
    "dlr of one of several losses": (
        sweep("{attack: fgsm, norm: linf, eps: 0.1, loss: [ce, dlr]}"),
        8,
        ("attacks.0.loss", "dlr needs at least 3 classes"),
    ),
    "dlr of spsa": (
        sweep("{attack: spsa, norm: linf, eps: 0.1, loss: dlr, gradient: exact}"),
        8,
        ("attacks.0.loss", "dlr needs at least 3 classes"),
    ),
    "dlr of the default of stadv": (
        sweep("{attack: stadv, norm: flow, eps: 1.0, loss: dlr}"),
        8,
        ("attacks.0.loss", "dlr needs at least 3 classes"),
    ),
    "diffhammer's third loss": (
        sweep("{attack: diffhammer, norm: linf, eps: 0.1}", defences="median"),
        8,
        ("attacks.0.losses.2", "dlr needs at least 3 classes, the classifier has 2"),
    ),
    "targeted dlr": (
        sweep("{attack: apgd, norm: linf, eps: 0.1, loss: dlr-targeted, targets: 1}", **THREE),
        8,
        ("attacks.0.loss", "dlr-targeted needs at least 4 classes, the classifier has 3"),
    ),
    "nine targets of ten classes are all, ten are too many": (
        sweep("{attack: apgd, norm: linf, eps: 0.1, loss: dlr-targeted, targets: 10}", **DIGITS),
        8,
        ("attacks.0.targets", "10 target classes", "write `targets: 9` or fewer"),
    ),
    "restarts are targets": (
        sweep("{attack: pgd, norm: linf, eps: 0.1, loss: dlr-targeted, restarts: 4}", **FOUR),
        8,
        ("attacks.0.restarts", "4 target classes", "write `restarts: 3` or fewer"),
    ),
    "autoattack": (
        sweep("{attack: autoattack, norm: linf, eps: 0.1}", **THREE),
        8,
        ("attacks.0", "3 classes, but apgd-t and fab-t of autoattack need 10"),
    ),
    "autoattack rand": (
        sweep("{attack: autoattack, norm: linf, eps: 0.1, version: rand}"),
        8,
        ("attacks.0", "2 classes", "apgd-dlr needs 3"),
    ),
    "a rung of a ladder": (
        sweep(
            "{attack: ladder, norm: linf, eps: 0.1, rungs: [bpda, {attack: fgsm, loss: dlr, gradient: exact}]}",
            defences="median",
        ),
        8,
        ("attacks.0.rungs.1.loss", "dlr needs at least 3 classes"),
    ),
    "the source of a transfer": (
        sweep(
            "{attack: transfer, norm: linf, eps: 0.1, purifier: median,"
            " source: {attack: pgd, loss: dlr, gradient: exact}}"
        ),
        8,
        ("attacks.0.source.loss", "dlr needs at least 3 classes"),
    ),
    "a transfer from a classifier of other classes": (
        sweep('{attack: transfer, norm: linf, eps: 0.1, classifier: "preflight_parts:three", source: {attack: pgd}}'),
        8,
        ("attacks.0.classifier", "tells 3 classes apart"),
    ),
    "corruptions on 4 channels": (
        sweep("none", more="corruptions: [fog]", **FOUR),
        9,
        ("corruptions.0", "1 or 3 channels", "(4, 8, 8)"),
    ),
    "corruptions on tiny images": (
        sweep("none", more="corruptions: [brightness]", **SMALL),
        9,
        ("corruptions.0", "at least 8 pixels a side", "(1, 4, 4)"),
    ),
    "jpeg on 4 channels": (
        sweep(defences="none, jpeg", **FOUR),
        6,
        ("defences.1", "images of 4 channels; the JPEG codec takes 1 (grey) or 3 (RGB)"),
    ),
    "jpeg in a chain": (
        sweep(defences="{purifier: chain, stages: [median, jpeg]}", **FOUR),
        6,
        ("defences.0.stages.1", "images of 4 channels"),
    ),
    "a median that is wider than the image": (
        sweep(defences="{purifier: median, size: 9}", **SMALL),
        6,
        ("defences.0.size", "too small for a median of size 9"),
    ),
    "an unknown key of a config": (
        sweep("{attack: pgd, norm: linf, eps: 0.1, stepss: 3}"),
        8,
        ("attacks.0.stepss", "did you mean 'steps'?"),
    ),
    "an unknown key of an inner config": (
        sweep("{attack: ladder, norm: linf, eps: 0.1, rungs: [{attack: fgsm, los: ce}]}", defences="median"),
        8,
        ("attacks.0.rungs.0.los", "did you mean 'loss'?"),
    ),
}

FOUND_BY_ASKING = {
    "a purifier that raises": (
        sweep(defences="none, 'preflight_parts:BadConfig'"),
        6,
        (
            "defences.1",
            "purifier 'bad raises' raises at the first image (KeyError: 'nobody home', preflight_parts.py:",
        ),
    ),
    "a purifier that cannot be built": (
        sweep(defences="{purifier: 'preflight_parts:BadConfig', how: build}"),
        6,
        ("defences.0", "OSError: where are my weights"),
    ),
    "a purifier of another shape": (
        sweep(defences="{purifier: 'preflight_parts:BadConfig', how: shape}"),
        6,
        ("defences.0", "makes (1, 1, 7, 8) of images of shape (1, 1, 8, 8)"),
    ),
    "a purifier that makes NaN": (
        sweep(defences="{purifier: 'preflight_parts:BadConfig', how: nan}"),
        6,
        ("defences.0", "NaN or infinite pixels"),
    ),
    "a purifier without a gradient, under an attack that needs it": (
        sweep(EXACT, defences="{purifier: 'preflight_parts:BadConfig', how: no gradient}"),
        6,
        ("defences.0", "does not require grad"),
    ),
    "a purifier whose backward raises": (
        sweep(EXACT, defences="{purifier: 'preflight_parts:BadConfig', how: gradient}"),
        6,
        ("defences.0", "NotImplementedError: no way back, preflight_parts.py:"),
    ),
    "a purifier inside of a transfer": (
        sweep(
            "{attack: transfer, norm: linf, eps: 0.1, purifier: 'preflight_parts:BadConfig',"
            " source: {attack: pgd, gradient: exact}}"
        ),
        8,
        ("attacks.0.purifier", "nobody home"),
    ),
    "an attack that raises": (
        sweep("'preflight_parts:BadAttackConfig'".join(("{attack: ", ", norm: linf, eps: 0.1}"))),
        8,
        ("attacks.0", "RuntimeError: attack is the best defence, preflight_parts.py:"),
    ),
    "an attack that raises in its last line": (
        sweep("{attack: 'preflight_parts:BadAttackConfig', norm: linf, eps: 0.1, how: late}"),
        8,
        ("attacks.0", "IndexError: at the very end"),
    ),
    "an attack that returns another shape": (
        sweep("{attack: 'preflight_parts:BadAttackConfig', norm: linf, eps: 0.1, how: shape}"),
        8,
        (
            "attacks.0",
            "'images' as torch.float32 of shape (1, 1, 7, 8), for float32 images of shape (1, 1, 8, 8)",
        ),
    ),
    "an attack whose random numbers nobody can repeat": (
        sweep("{attack: 'planted_foreign:Foreign', norm: linf, eps: 0.1, how: numbers of its own}"),
        8,
        ("attacks.0", "makes another image when it is run again", "elsewhere than from omega"),
    ),
    "an attack that is a rung": (
        sweep(
            "{attack: ladder, norm: linf, eps: 0.1, rungs: [bpda, {attack: 'preflight_parts:BadAttackConfig'}]}",
            defences="median",
        ),
        8,
        ("attacks.0.rungs.1", "attack is the best defence"),
    ),
    "a classifier that raises on images of the data set": (
        sweep(**{**DIGITS, "classifier": "preflight_parts:dark"}),
        5,
        ("classifiers.0", "ZeroDivisionError: too dark for me"),
    ),
    "the base of a certificate": (
        sweep(
            "none",
            defences="{purifier: 'preflight_parts:BadConfig', how: raises}",
            more="certificates: [{certificate: smoothing, sigma: 0.25, n: 10, n0: 2, alpha: 0.4}]",
        ).replace("attacks:\n  - none\n", "#\n#\n"),
        9,
        ("certificates.0", "nobody home"),
    ),
}


def plan(folder: Path, text: str, *options: str) -> tuple[int, str]:
    path = folder / "wrong.yaml"
    path.write_text(text)
    result = CliRunner().invoke(app, ["plan", str(path), "--store", str(folder / "store"), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr


@every("name", KNOWN_FROM_THE_FILE)
def test_what_classes_and_images_rule_out_is_refused_without_asking(name: str, tmp_path: Path) -> None:
    text, line, words = KNOWN_FROM_THE_FILE[name]
    status, said = plan(tmp_path, text, "--no-preflight")
    assert status == 2, said
    assert said.startswith(f"error: {tmp_path / 'wrong.yaml'}:{line}: {words[0]}: "), said
    assert all(word in said for word in words), said


@pytest.mark.parametrize("name", FOUND_BY_ASKING)
def test_what_raises_on_one_image_is_found_by_asking(name: str, tmp_path: Path) -> None:
    text, line, words = FOUND_BY_ASKING[name]
    status, said = plan(tmp_path, text)
    assert status == 2, said
    assert said.startswith(f"error: {tmp_path / 'wrong.yaml'}:{line}: {words[0]}: "), said
    assert all(word in said for word in words), said
    assert plan(tmp_path, text)[0] == 2  # what failed is asked again
    assert plan(tmp_path, text, "--no-preflight")[0] == 0


GOOD_ENOUGH = {
    "an attack of others makes the same twice": sweep(
        "{attack: 'planted_foreign:Foreign', norm: linf, eps: 0.1, how: sound}"
    ),
    "four classes have a targeted dlr loss": sweep(
        "{attack: apgd, norm: linf, eps: 0.1, loss: dlr-targeted, targets: 3}", **FOUR
    ),
    "three classes have dlr": sweep("{attack: pgd, norm: linf, eps: 0.1, loss: dlr}", **THREE),
    "no gradient, but nobody wants one": sweep(
        "{attack: square, norm: linf, eps: 0.1, knows: purifier}",
        defences="{purifier: 'preflight_parts:BadConfig', how: no gradient}",
    ),
    "bpda goes round": sweep(
        "{attack: pgd, norm: linf, eps: 0.1, gradient: bpda}",
        defences="{purifier: 'preflight_parts:BadConfig', how: gradient}",
    ),
    "warm rungs, which start from others": sweep(
        "{attack: strongest, norm: linf, eps: 0.1, steps: 1, eot: 1, queries: 1, select: 1}",
        defences="{purifier: gaussian-noise, sigma: 0.1}",
        **DIGITS,
    ),
    "an attack that asks at another point too": sweep(
        "{attack: guidance-target, norm: linf, eps: 0.1, steps: 1, eot: 1}",
        defences="{purifier: gdmp, denoiser: {format: oracle, schedule: linear-1000}, steps: 1, "
        "t_star: 36, schedule: linear-1000}",
        **DIGITS,
    ),
    "an attack of somebody else's": sweep(
        "{attack: 'preflight_parts:BadAttackConfig', norm: linf, eps: 0.1, how: well}"
    ),
    "corruptions": sweep("none", more="corruptions: [fog, snow, jpeg_compression]", **DIGITS),
}


@pytest.mark.parametrize("name", GOOD_ENOUGH)
def test_what_runs_is_not_refused(name: str, tmp_path: Path) -> None:
    status, said = plan(tmp_path, GOOD_ENOUGH[name])
    assert status == 0 and "none refused" in said, said


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in bundled_sweeps() if name.startswith("digits-")])
def test_bundled_sweeps_of_the_digits_pass(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", name, "--store", str(tmp_path)])
    assert result.exit_code == 0 and "none refused" in result.stderr, result.stderr


def test_weights_of_another_architecture_are_refused_at_the_classifier(tmp_path: Path) -> None:
    text = sweep(**DIGITS).replace(
        '{classifier: "digits-cnn"}', f"{{classifier: digits-cnn, weights: {tmp_path}/other.safetensors}}"
    )
    shutil.copy(ASSETS / "digits-ddpm" / "diffusion_pytorch_model.safetensors", tmp_path / "other.safetensors")
    status, said = plan(tmp_path, text)
    assert status == 2 and said.startswith(f"error: {tmp_path / 'wrong.yaml'}:5: classifiers.0"), said
    (tmp_path / "other.safetensors").write_bytes(b"not weights")
    status, said = plan(tmp_path, text)
    assert status == 2 and "wrong.yaml:5: classifiers.0" in said and "other.safetensors" in said, said


@pytest.mark.slow
def test_damaged_weights_of_a_denoiser_are_refused_at_the_defence(tmp_path: Path) -> None:
    folder = tmp_path / "ddpm"
    shutil.copytree(ASSETS / "digits-ddpm", folder)
    defence = f"{{purifier: diffpure, sigma_eq: 0.2, steps: 2, denoiser: {{path: {folder}, schedule: linear-1000}}}}"
    text = sweep(defences=defence, **DIGITS)
    assert plan(tmp_path, text)[0] == 0
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    status, said = plan(tmp_path, text)
    assert status == 2 and "wrong.yaml:6: defences.0" in said and "diffusion_pytorch_model" in said, said


def test_a_conditional_network_is_refused_with_its_line(tmp_path: Path) -> None:
    folder = tmp_path / "ddpm"
    shutil.copytree(ASSETS / "digits-ddpm", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_class_embeds": 10}))
    defence = f"{{purifier: diffpure, sigma_eq: 0.2, steps: 2, denoiser: {{path: {folder}, schedule: linear-1000}}}}"
    status, said = plan(tmp_path, sweep(defences=defence, **DIGITS))
    assert status == 2 and "wrong.yaml:6: defences.0" in said and "does not know the class" in said, said


@pytest.mark.slow
def test_a_second_time_nothing_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a damaged record believed; a new defence is asked alone, and other versions ask all again."""
    sweep, store = small_sweep(tmp_path), Store(str(tmp_path / "store"))
    asked: list[str] = []

    def counted(checks: object) -> list[Answer]:
        answers = list(ask(checks, "cpu"))  # type: ignore[arg-type]
        asked.extend(answer.check.what for answer in answers)
        return answers

    def again(swept: object = sweep) -> list[str]:
        asked.clear()
        committed = make_plan(swept).committed(store)  # type: ignore[arg-type]
        preflight(swept, committed, store, lambda message: None, on=counted)  # type: ignore[arg-type]
        return sorted(asked)

    first = again()
    assert first == ["attack 'pgd-2 linf'", "classifier 'digits-cnn'", "purifier 'diffpure t*=10 in 2 steps'"]
    records = sorted((tmp_path / "store" / "preflight").glob("*.json"))
    assert len(records) == 3 and all(json.loads(path.read_text())["ok"] is True for path in records)
    assert again() == []
    whole = records[0].read_text()
    for damage in ("", "{", "[]", whole.replace('"ok": true', '"ok": false'), whole.replace('"cpu"', '"cuda"')):
        records[0].write_text(damage)
        assert again() == [json.loads(whole)["what"]]
        assert again() == []
    more = small_sweep(tmp_path, (tmp_path / "small.yaml").read_text().replace("- none", "- none\n  - median", 1))
    assert again(more) == ["purifier 'median 3x3'"]
    monkeypatch.setattr("workflows.preflight.run.worker_versions", lambda: {"torch": "99"})
    assert again() == first


def test_parts_are_asked_once_however_many_cells_they_are_in(tmp_path: Path) -> None:
    text = small_sweep(tmp_path).text.replace("eps: 0.1", "eps: [0.1, 0.2, 0.3]").replace("chunk: 8", "chunk: 2")
    loaded = small_sweep(tmp_path, text + "seeds: [0, 1, 2]\n")
    plan = make_plan(loaded)
    assert len(loaded.cells) == 24 and plan.units > 200
    assert len(checks_of(plan.committed(Store(str(tmp_path / "store"))))) == 3


def test_run_refuses_before_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr("ray.init", lambda *given, **named: started.append("ray"))
    (tmp_path / "wrong.yaml").write_text(FOUND_BY_ASKING["a purifier that raises"][0])
    command = ["run", str(tmp_path / "wrong.yaml"), "--store", str(tmp_path / "store"), "--mlflow", "off"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "wrong.yaml:6: defences.1" in result.stderr and not started
    assert not (tmp_path / "store" / "commits").exists()


@pytest.mark.slow
def test_an_input_that_is_to_blame_is_tried_once(two_slots: SharedRay, tmp_path: Path) -> None:
    """What one image does not show: quarantined at the first attempt, and nobody is told to run it again."""
    (tmp_path / "late.yaml").write_text(
        sweep(defences="{purifier: 'preflight_parts:BadConfig', how: raises on later images}", **DIGITS)
    )
    words = [str(tmp_path / "late.yaml"), "--store", str(tmp_path / "store")]
    where = ["--workers", "1", "--mlflow", "off", "--address", two_slots.address]
    done = CliRunner().invoke(app, ["run", *words, *where])
    assert done.exit_code == 1, done.output
    assert "is not tried again, since the input is to blame: InvalidInput: image ids above 3" in done.stderr
    assert "The input is to blame and must be corrected" in done.stderr
    assert "same command again" not in done.stderr and "tried again:" not in done.stderr
    (failure,) = [json.loads(path.read_text()) for path in (tmp_path / "store").rglob("failures/*.json")]
    assert failure["attempts"] == 1 and failure["final"] is True
    shown = CliRunner().invoke(app, ["status", *words]).stdout
    assert "after 1 attempt, since the input is to blame" in shown


TWELVE = f"""\
sweep: twelve
datasets: [{{dataset: digits, images: {{first: 100}}}}]
classifiers: [digits-cnn]
denoisers: {{ddpm: {{path: {ASSETS}/digits-ddpm, schedule: linear-1000}}}}
defences:
  - {{purifier: diffpure, denoiser: ddpm, schedule: linear-1000, t_star: [20, 50, 100, 150, 200, 300], steps: 20}}
  - {{purifier: densepure, denoiser: ddpm, schedule: linear-1000, t_star: [50, 100], steps: 5}}
  - {{purifier: jpeg, quality: [50, 75]}}
  - {{purifier: median, size: [3, 5]}}
attacks: [none, {{attack: pgd, norm: linf, eps: 0.1, gradient: [bpda, exact], eot: 5}}]
"""


@pytest.mark.slow
def test_twelve_defences_take_seconds_of_a_processor(tmp_path: Path) -> None:
    sweep, store = small_sweep(tmp_path, TWELVE), Store(str(tmp_path / "store"))
    said: list[str] = []
    committed = make_plan(sweep).committed(store)
    assert len({cell.defence.purifier.id for cell in sweep.cells}) == 12
    begun = spent()
    preflight(sweep, committed, store, said.append)
    assert spent() - begun < 60, said
    begun = spent()
    preflight(sweep, committed, store, said.append)
    assert spent() - begun < 1 and len(said) == 1
    print(said[0])


@every("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
@every("together", [False, True])
def test_memory_that_ends_refuses_no_sweep(error: Exception, together: bool) -> None:
    """Alone, or of one of the parts that are asked together."""

    def run(_: object) -> NoReturn:
        raise Blamed(check, error) if together else error

    check: Any = SimpleNamespace(stage=SimpleNamespace(settings=Compute), run=run)
    (answer,) = ask([check], "cpu")
    assert answer.error is None and answer.skipped == "there is not enough memory for it now"
