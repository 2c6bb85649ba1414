"""Every wrong sweep file ends with status 2, before Ray or any compute, and says file, line, field and remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from loops import every, tiers
from seconds import spent
from typer.testing import CliRunner

from workflows.cli import app

REPOSITORY = Path(__file__).parents[2]
ASSETS = REPOSITORY / "defense" / "assets"

GOOD = f"""\
sweep: wrong
datasets:
  - dataset: digits
    images: {{first: 4}}
classifiers:
  - classifier: digits-cnn
    weights: {ASSETS}/digits-cnn/model.safetensors
denoisers:
  ddpm:
    format: diffusers
    path: {ASSETS}/digits-ddpm
    schedule: linear-1000
defences:
  - purifier: none
    draws: 1
  - purifier: diffpure
    denoiser: ddpm
    schedule: linear-1000
    t_star: 50
    steps: 5
attacks:
  - attack: pgd
    norm: linf
    eps: 0.1
    steps: 2
chunk: 2
"""


@dataclass(frozen=True)
class Wrong:
    """One mistake.

    Arguments:
        old: Text of the good file.
        new: What stands there instead.
        line: Line that the message names, 0 for none.
        says: What else it says: the field, what is wrong, the remedy.
        status: Options of the command line.
    """

    old: str
    new: str
    line: int
    says: tuple[str, ...]
    options: tuple[str, ...] = ()


TABLE = {
    "unknown purifier": Wrong(
        "purifier: diffpure",
        "purifier: difpure",
        16,
        ("defences.1.purifier", "did you mean 'diffpure'? Valid names:"),
    ),
    "unknown attack": Wrong(
        "attack: pgd", "attack: pdg", 22, ("attacks.0.attack", "unknown attack 'pdg'", "did you mean 'pgd'?")
    ),
    "unknown data set": Wrong("dataset: digits", "dataset: digit", 3, ("datasets.0.dataset", "mean 'digits'?")),
    "unknown architecture": Wrong(
        "digits-cnn\n", "digits-cn\n", 6, ("classifiers.0", "unknown classifier 'digits-cn'", "mean 'digits-cnn'?")
    ),
    "unknown denoiser": Wrong(
        "denoiser: ddpm", "denoiser: dppm", 17, ("defences.1.denoiser", "unknown denoiser 'dppm'", "mean 'ddpm'?")
    ),
    "unknown denoiser format": Wrong(
        "format: diffusers", "format: diffuser", 10, ("denoisers.ddpm.format", "mean 'diffusers'?")
    ),
    "denoiser format is a list": Wrong(
        "format: diffusers", "format: [diffusers]", 10, ("denoisers.ddpm.format", "Valid names: diffusers")
    ),
    "unknown schedule": Wrong(
        "path: {assets}/digits-ddpm\n    schedule: linear-1000",
        "path: {assets}/digits-ddpm\n    schedule: linear-100",
        9,
        ("denoisers.ddpm", "unknown schedule 'linear-100'", "mean 'linear-1000'?"),
    ),
    "unknown top-level key": Wrong("chunk: 2", "chunks: 2", 26, ("unknown field 'chunks'", "did you mean 'chunk'?")),
    "misspelled field of a purifier": Wrong(
        "t_star: 50", "t_star: 50\n    t_sta: 60", 20, ("defences.1.t_sta", "unknown field", "did you mean 't_star'?")
    ),
    "misspelled field that is required": Wrong(
        "t_star: 50", "t_str: 50", 19, ("defences.1.t_str", "unknown field", "did you mean 't_star'?")
    ),
    "misspelled draws": Wrong("draws: 1", "drws: 1", 15, ("defences.0.drws", "did you mean 'draws'?")),
    "misspelled field of an attack": Wrong("norm:", "norn:", 23, ("attacks.0.norn", "did you mean 'norm'?")),
    "misspelled field of images": Wrong("{first:", "{frst:", 4, ("datasets.0.images.frst", "mean 'first'?")),
    "field missing": Wrong("    norm: linf\n", "", 22, ("attacks.0", "field 'norm' is missing", "linf or l2")),
    "eps as text": Wrong(
        "eps: 0.1",
        "eps: 8/255",
        24,
        ("attacks.0.eps", "eps = '8/255' (str)", "to write 8/255 use `eps_255: 8`"),
    ),
    "negative eps": Wrong(
        "eps: 0.1", "eps: -0.1", 24, ("attacks.0.eps", "eps = -0.1", "greater than 0", "units of [0, 1] pixels")
    ),
    "one wrong eps of several": Wrong("eps: 0.1", "eps: [0.1, x]", 24, ("attacks.0.eps", "eps = 'x' (str)")),
    "eps and eps_255": Wrong(
        "eps: 0.1", "eps: 0.1\n    eps_255: 8", 25, ("attacks.0.eps_255", "either `eps` or `eps_255`, not both")
    ),
    "eps_255 as text": Wrong(
        "eps: 0.1",
        "eps_255: 8/255",
        24,
        ("attacks.0.eps_255", "eps_255 = '8/255' is no number", "in units of 1/255, like 8"),
    ),
    "no eps": Wrong("    eps: 0.1\n", "", 22, ("attacks.0", "field 'eps' is missing", "`eps_255: 8`")),
    "t_star as text": Wrong("t_star: 50", "t_star: fifty", 19, ("defences.1.t_star", "a whole number of noising")),
    "t_star without schedule": Wrong(
        "    schedule: linear-1000\n    t_star",
        "    t_star",
        18,
        ("defences.1.t_star", "without `schedule`", "Write `schedule: linear-1000`", "sigma_eq"),
    ),
    "t_star on another schedule": Wrong(
        "schedule: linear-1000\n    t_star",
        "schedule: cosine-4000\n    t_star",
        18,
        ("defences.1.schedule", "not the one that the denoiser was trained on ('linear-1000')"),
    ),
    "t_star off its schedule": Wrong(
        "t_star: 50", "t_star: 1001", 19, ("defences.1.t_star", "t_star = 1001 is not on", "steps 0 to 1000")
    ),
    "t_star and sigma_eq": Wrong(
        "t_star: 50", "t_star: 50\n    sigma_eq: 0.2", 16, ("defences.1", "either `t_star` with `schedule`, or")
    ),
    "more steps than t_star": Wrong(
        "steps: 5", "steps: 51", 20, ("defences.1.steps", "steps = 51 does not fit t_star = 50", "1 to t_star")
    ),
    "draws of something deterministic": Wrong(
        "draws: 1", "draws: 4", 15, ("defences.0.draws", "'none' is deterministic", "give 1")
    ),
    "missing weights": Wrong(
        "model.safetensors", "modell.safetensors", 6, ("classifiers.0", "modell.safetensors' cannot be read", "path")
    ),
    "weights of another sha256": Wrong(
        "model.safetensors",
        "model.safetensors\n    sha256: 0123456789abcdef",
        6,
        ("classifiers.0", "has sha256 aa61d675", "not 0123456789abcdef", "correct `sha256`"),
    ),
    "sha256 that is none": Wrong(
        "model.safetensors",
        "model.safetensors\n    sha256: wxyz",
        8,
        ("classifiers.0.sha256", "sha256 = 'wxyz'", "first 8 to 64 hex digits"),
    ),
    "architecture that needs weights": Wrong(
        "digits-cnn\n    weights: {assets}/digits-cnn/model.safetensors",
        "resnet20",
        6,
        ("classifiers.0", "'resnet20' needs `weights`"),
    ),
    "denoiser folder without files": Wrong(
        "path: {assets}/digits-ddpm", "path: {assets}/digits-cnn", 9, ("denoisers.ddpm", "holds no config.json")
    ),
    "classifier of another image shape": Wrong(
        "classifier: digits-cnn",
        "classifier: resnet20",
        6,
        (
            "classifiers.0: classifier 'resnet20' takes images of shape (3, 32, 32)",
            "'digits' has (1, 8, 8)",
            "exclude",
        ),
    ),
    "image out of range": Wrong(
        "{first: 4}", "{ids: [0, 599]}", 4, ("datasets.0.images", "image id 599 is out of range", "images 0 to 598")
    ),
    "too many images": Wrong(
        "{first: 4}", "{first: 1000000000000}", 4, ("datasets.0.images", "id 599 is out of range")
    ),
    "an image twice": Wrong("{first: 4}", "{ids: [3, 3]}", 4, ("datasets.0.images", "names no image twice")),
    "no image": Wrong("{first: 4}", "{start: 9, stop: 9}", 4, ("datasets.0.images", "selects no image")),
    "images as a number": Wrong("{first: 4}", "4", 4, ("datasets.0.images", "a mapping was expected (keys: every,")),
    "missing data root": Wrong(
        "dataset: digits",
        "dataset: cifar10",
        3,
        ("datasets.0", "no data root", "PUREGRID_DATA", "puregrid data fetch"),
    ),
    "empty list of attacks": Wrong(
        "attacks:\n  - attack: pgd\n    norm: linf\n    eps: 0.1\n    steps: 2\n",
        "attacks: []\n",
        21,
        ("attacks: a sweep needs a list of attacks with at least one entry, like `- attack: NAME`.",),
    ),
    "empty list of values": Wrong("eps: 0.1", "eps: []", 24, ("attacks.0.eps", "an empty list makes no cell")),
    "no classifiers": Wrong(
        "classifiers:\n  - classifier: digits-cnn\n    weights: {assets}/digits-cnn/model.safetensors\n",
        "",
        1,
        ("classifiers: a sweep needs a list of classifiers", "`- classifier: NAME`"),
    ),
    "entry without its key": Wrong("- purifier: none", "- name: none", 14, ("defences.0", "with the key `purifier`")),
    "duplicate key": Wrong(
        "steps: 2", "steps: 2\n    eps: 0.2", 26, ("attacks.0.eps", "given twice (first in line 24)")
    ),
    "broken YAML": Wrong("{first: 4}", "{first: 4", 5, ("not valid YAML", "not closed")),
    "exclude that matches nothing": Wrong(
        "chunk: 2",
        "chunk: 2\nexclude:\n  - {attack: {eps: 0.3}}",
        28,
        ("exclude.0", "{'attack': {'eps': 0.3}} matches no cell"),
    ),
    "exclude of an unknown part": Wrong(
        "chunk: 2", "chunk: 2\nexclude:\n  - defense: none", 28, ("exclude.0.defense", "did you mean 'defence'?")
    ),
    "exclude of everything": Wrong(
        "chunk: 2", "chunk: 2\nexclude:\n  - dataset: digits", 27, ("exclude", "every cell is excluded")
    ),
    "include with an unknown section": Wrong(
        "chunk: 2", "chunk: 2\ninclude:\n  - defense: [none]", 28, ("include.0.defense", "did you mean 'defences'?")
    ),
    "unset variable": Wrong(
        "path: {assets}", "path: ${PUREGRID_UNSET}", 11, ("denoisers.ddpm.path", "PUREGRID_UNSET is not set; set it")
    ),
    "chunk 0": Wrong("chunk: 2", "chunk: 0", 26, ("chunk: chunk is the number of images", "at least 1, not 0")),
    "batch 0": Wrong("chunk: 2", "compute: {batch: 0}", 26, ("compute.batch", "greater than or equal to 1")),
    "seed as text": Wrong("chunk: 2", "seeds: [0, one]", 26, ("seeds", "whole numbers, not [0, 'one']")),
    "module that is not there": Wrong(
        "purifier: none",
        "purifier: nowhere_at_all:X",
        14,
        ("defences.0.purifier", "No module named 'nowhere_at_all'"),
    ),
    "attribute that is no purifier": Wrong(
        "purifier: none",
        "purifier: defense.purifiers:Identity",
        14,
        ("defences.0.purifier", "must be a class derived from defense.purifiers.base.PurifierConfig"),
    ),
    "attribute that is no architecture": Wrong(
        "digits-cnn\n",
        "defense.classifiers:DigitsCNN\n",
        6,
        ("classifiers.0", "must be an instance of defense.classifiers.base.Architecture"),
    ),
    "guided purifier that would be compiled": Wrong(
        "defences:\n",
        "compute: {compile: default}\ndefences:\n  - {purifier: gdmp, denoiser: ddpm, sigma_eq: 0.25, steps: 5}\n",
        13,
        ("compute.compile: purifier 'gdmp", "the derivative of a derivative", "compile: false"),
    ),
    "override of nothing": Wrong(
        "chunk: 2",
        "chunk: 2",
        0,
        ("--set attacks.5.eps=1: there is no 'attacks.5.eps'",),
        ("--set", "attacks.5.eps=1"),
    ),
    "wrong override": Wrong(
        "chunk: 2",
        "chunk: 2",
        0,
        ("--set attacks.0.eps=8/255: attacks.0.eps: eps = '8/255' (str)", "`eps_255: 8`"),
        ("--set", "attacks.0.eps=8/255"),
    ),
}
THROUGH_A_PROCESS = ("misspelled field of a purifier", "image out of range")
"""One that is told by the file alone, and one that needs the data; every other is told by the same code."""


def _write(folder: Path, wrong: Wrong) -> Path:
    old, new = (text.replace("{assets}", str(ASSETS)) for text in (wrong.old, wrong.new))
    assert GOOD.count(old) == 1, "the table must change exactly one place of the good file"
    path = folder / "wrong.yaml"
    path.write_text(GOOD.replace(old, new))
    return path


def _assert_told(stderr: str, path: Path, wrong: Wrong) -> None:
    place = f"{path}:{wrong.line}: " if wrong.line else wrong.says[0]
    assert stderr.startswith(f"error: {place}"), stderr
    for text in wrong.says:
        assert text in stderr
    assert "Traceback" not in stderr


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Ray nor what runs a sweep can be imported, and the environment names no data."""
    for name in ("ray", "workflows.engine.run", "workflows.engine.pool", "workflows.engine.loop"):
        monkeypatch.setitem(sys.modules, name, None)
    for variable in ("PUREGRID_DATA", "PUREGRID_UNSET"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def no_ray_on_path(tmp_path: Path) -> dict[str, str]:
    """An environment in which `import ray` raises."""
    stub = tmp_path / "stub" / "ray"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise RuntimeError('ray was imported')\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PUREGRID_")}
    return {**env, "PYTHONPATH": str(stub.parent), "OMP_NUM_THREADS": "1"}


def _run(path: Path, store: Path, env: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workflows.cli", "run", str(path), "--store", str(store), "--mlflow", "off"]
    return subprocess.run(
        [*command, *options], cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_good_file_gets_as_far_as_ray_in_this_process(tmp_path: Path, without_ray: None) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    result = CliRunner().invoke(app, ["run", str(tmp_path / "good.yaml"), "--store", str(tmp_path / "store")])
    assert isinstance(result.exception, ModuleNotFoundError)
    assert "workflows.engine.run" in str(result.exception)


@pytest.mark.slow
def test_the_good_file_gets_as_far_as_ray_in_a_new_process(tmp_path: Path, no_ray_on_path: dict[str, str]) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    result = _run(tmp_path / "good.yaml", tmp_path / "store", no_ray_on_path)
    assert result.returncode == 1
    assert "RuntimeError: ray was imported" in result.stderr


@every("name", TABLE)
def test_a_wrong_file_ends_with_status_2_before_ray(tmp_path: Path, without_ray: None, name: str) -> None:
    wrong = TABLE[name]
    path = _write(tmp_path, wrong)
    result = CliRunner().invoke(app, ["run", str(path), "--store", str(tmp_path / "store"), *wrong.options])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    _assert_told(result.stderr, path, wrong)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", tiers(THROUGH_A_PROCESS, daily=THROUGH_A_PROCESS[1:]))
def test_a_wrong_file_ends_a_real_process_at_once(tmp_path: Path, no_ray_on_path: dict[str, str], name: str) -> None:
    wrong = TABLE[name]
    path = _write(tmp_path, wrong)
    started = spent()
    result = _run(path, tmp_path / "store", no_ray_on_path, *wrong.options)
    assert spent() - started < 45
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    _assert_told(result.stderr, path, wrong)
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_a_missing_sweep_file_is_named(tmp_path: Path, without_ray: None) -> None:
    path = tmp_path / "nowhere.yaml"
    result = CliRunner().invoke(app, ["run", str(path), "--store", str(tmp_path / "store")])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: the sweep file cannot be read (No such file or directory).")
    assert not (tmp_path / "store").exists()


def test_a_damaged_data_root_is_named(tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUREGRID_DATA", str(tmp_path / "empty"))
    wrong = Wrong(
        "dataset: digits",
        "dataset: cifar10",
        3,
        ("datasets.0", str(tmp_path / "empty"), "cifar-10-batches-py is missing"),
    )
    path = _write(tmp_path, wrong)
    result = CliRunner().invoke(app, ["run", str(path), "--store", str(tmp_path / "store")])
    assert result.exit_code == 2
    _assert_told(result.stderr, path, wrong)


def test_purifier_for_images_of_another_shape_is_refused(tmp_path: Path, without_ray: None) -> None:
    """The denoiser's config says which images it takes."""
    folder = tmp_path / "ddpm"
    folder.mkdir()
    config = (ASSETS / "digits-ddpm" / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"sample_size": 8', '"sample_size": 16'))
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"anything: it is hashed, not read")
    wrong = Wrong(
        "path: {assets}/digits-ddpm",
        f"path: {folder}",
        16,
        (
            "defences.1: purifier 'diffpure t*=50 in 5 steps' takes images of shape (1, 16, 16)",
            "'digits' has (1, 8, 8)",
        ),
    )
    path = _write(tmp_path, wrong)
    result = CliRunner().invoke(app, ["run", str(path), "--store", str(tmp_path / "store")])
    assert result.exit_code == 2
    _assert_told(result.stderr, path, wrong)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--workers", "0"), "--workers"),
        (("--max-attempts", "0"), "--max-attempts"),
        (("--unit-timeout", "x"), "--unit-timeout"),
        (("--gpus-per-worker", "-1"), "--gpus-per-worker"),
        (("--gpus-per-worker", "1.5"), "--gpus-per-worker: a worker cannot take 1.5 GPUs"),
        (("--wrokers", "2"), "--wrokers"),
    ],
)
def test_a_wrong_option_ends_with_status_2(
    tmp_path: Path, without_ray: None, options: tuple[str, ...], says: str
) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    result = CliRunner().invoke(app, ["run", str(tmp_path / "good.yaml"), *options])
    assert result.exit_code == 2
    assert says in result.stderr


@pytest.mark.parametrize("command", ["plan", "status", "tables"])
def test_every_command_that_reads_a_sweep_refuses_a_wrong_one(
    tmp_path: Path, without_ray: None, command: str
) -> None:
    wrong = TABLE["eps as text"]
    path = _write(tmp_path, wrong)
    result = CliRunner().invoke(app, [command, str(path), "--store", str(tmp_path / "store")])
    assert result.exit_code == 2
    assert result.stdout == ""
    _assert_told(result.stderr, path, wrong)
