"""Every code block of README and docs is executed, or stands in a list here with the reason why it is not.

Commands run on a small sweep that is complete, in a folder of their own, so that they compute next to nothing. YAML
is planned, as a part of a sweep of the digits where it is one; Python runs. A block in no list fails a test.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_docs_blocks import BLOCKS, PROGRAMS, ROOT, RUN  # type: ignore[import-not-found]
from typer.testing import CliRunner

from workflows.cli import app

ELSEWHERE = {
    ("README.md", "python"): "tests/test_docs_executed.py::test_the_readme_s_first_sweep_and_python",
    ("docs/add-a-table.md", "diff"): "tests/workflows/test_add_a_table.py::test_a_column_that_is_added_in_one_file",
    ("docs/add-a-table.md", "python"): "tests/workflows/test_add_a_table.py::test_the_page_s_python_runs",
    ("docs/add-a-table.md", "sh"): "tests/workflows/test_add_a_table.py::test_the_command_line_takes_it_by_module",
    ("docs/add-a-table.md", "toml"): "tests/testing/test_howto.py::test_entry_point_and_module_name_the_same_part",
    ("docs/api.md", "python"): "tests/puregrid/test_api_page.py::test_its_code_runs_and_prints_what_it_says",
    ("docs/terminal.md", ""): "tests/test_captures.py::test_the_page_has_every_command_at_every_width",
    ("docs/training.md", ""): "tests/test_docs_executed.py::test_a_denoiser_of_one_s_own_images",
    ("docs/training.md", "yaml"): "tests/test_docs_executed.py::test_a_denoiser_of_one_s_own_images",
    **{(page, "python"): "tests/test_docs_blocks.py::test_python_that_reads_results_runs" for page in RUN},
}
"""Blocks that another test executes; those of how-to pages are in ``tests/testing/test_howto.py``."""

OUTPUTS = {"docs/benchmarks.md": 26, "docs/cluster.md": 2, "docs/failures.md": 1, "docs/regression.md": 1} | {
    "docs/running.md": 1,
    "docs/store.md": 1,
    "docs/sweep-files.md": 2,
}
"""Blocks without a command: what one prints, or the tree of a folder."""

NOT_RUN = (
    (r"^(make|pip|pipx) ", "installs from an index; tests/deploy/ compares what they do with the workflows"),
    (r"^(export|umask) ", "sets the shell"),
    (r"^(ray|helm|kubectl|docker|curl|cat|git) ", "needs a cluster or builds an image: tests/deploy/ at night"),
    (r"^mlflow ui ", "a server, which does not end"),
    (r"--address auto|/tmp/shared/", "needs a cluster: tests/deploy/test_jobs.py, tests/workflows/test_elastic.py"),
    (r"s3://", "needs S3: tests/workflows/test_s3.py"),
    (r"^puregrid data ", "downloads"),
    (r"^puregrid (run|plan) +(cifar10-|papers/)", "hours on data and weights that do not ship: test_papers.py"),
    (r"^puregrid run +leaderboard-cifar10", "an hour, on data and weights that do not ship"),
    (r"^puregrid leaderboard +leaderboard-cifar10", "needs that run"),
    (r"^python benchmarks/planted_sweep", "computes two sweeps with every planted fault"),
    (r"mypackage:", "the reader's own purifier"),
    (r"^puregrid train +CONFIG", "docs/training.md has a whole one"),
    (r"--calibrate", "measures for a minute: tests/workflows/test_observability.py"),
    (
        r"^puregrid run +quickstart --store timing",
        "computes the whole quickstart: tests/workflows/test_observability.py",
    ),
    (r"mlflow:champion", "needs a promoted run: tests/workflows/test_regression.py"),
)
"""Commands that are not run, by what they begin with or have in them."""

NOT_PLANNED = {
    "docs/cluster.md": "a volume of Kubernetes",
    "docs/how-to/": "tests/testing/test_howto.py",
    "docs/classifiers-and-denoisers.md|weights_key": "a checkpoint of the reader's own",
    "docs/classifiers-and-denoisers.md|hub:": "downloads",
    "docs/classifiers-and-denoisers.md|ddpmpp:": "a checkpoint that does not ship",
    "docs/classifiers-and-denoisers.md|edm:": "a checkpoint that does not ship",
    "docs/classifiers-and-denoisers.md|guided-diffusion": "checkpoints that do not ship",
    "docs/classifiers-and-denoisers.md|edm_cifar10_cond_vp": "a checkpoint that does not ship",
    "docs/classifiers-and-denoisers.md|clipure-cos": "weights that do not ship",
    "docs/classifiers-and-denoisers.md|imagenet30": "images that do not ship",
    "docs/corruptions.md|frost": "photographs and arrays that do not ship",
    "docs/papers.md|requires:": "files that do not ship",
    "docs/precision.md|half_width": "a line each, in test_precision_is_planned_line_by_line",
    "docs/sweep-files.md|sweep: my-sweep": "test_docs_blocks.py loads it, with the public weights",
}
"""YAML that is not planned here: page, and what is in the block."""

NO_PYTHON = {
    "docs/classifiers-and-denoisers.md|import pickle": "a checkpoint that does not ship",
    "docs/classifiers-and-denoisers.md|import open_clip": "downloads",
    "docs/gradients.md|foolbox.attacks": "the notebook and tests/defense/ attack a Defended with both",
}

SWEEP = f"""
sweep: docs
datasets: [{{dataset: digits, images: {{first: 20}}}}]
classifiers: [digits-cnn]
denoisers:
  small: {{format: diffusers, path: {ROOT / "defense/assets/digits-ddpm"}, schedule: linear-1000}}
defences:
  - none
  - {{purifier: diffpure, denoiser: small, schedule: linear-1000, t_star: 150, steps: 2, draws: 2}}
attacks:
  - none
  - {{attack: pgd, norm: linf, eps: 0.2, steps: 20}}
  - {{attack: ladder, norm: linf, eps_255: 8, rungs: [blind, bpda, exact], steps: 1, eot: 1, select: 2}}
chunk: 20
"""


def shown(text: str) -> list[str]:
    """The command lines of a block: without variables, comments, what they do, and what is in brackets."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"^(\s*puregrid [\w-]+) +", r"\1 ", line.split(" #")[0])
        for part in line.split(" && "):
            words = re.sub(r" *\[[^\]]*\]\.*", "", re.split(r"\s{3,}", part.strip())[0]).split(" ")
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words and words[0].removeprefix(".venv/bin/") in PROGRAMS:
                found.append(" ".join(words))
    return found


def expanded(line: str) -> list[list[str]]:
    """The commands of a line: one for each of ``a|b|c``."""
    words = shlex.split(line)
    return [list(choice) for choice in itertools.product(*(w.split("|") if " " not in w else [w] for w in words))]


def reason(line: str) -> str | None:
    return next((why for pattern, why in NOT_RUN if re.search(pattern, line)), None)


def listed(reasons: dict[str, str], page: str, text: str) -> str | None:
    """The key of a block in one of the lists."""
    for key in reasons:
        where, _, what = key.partition("|")
        if page.startswith(where) and what in text:
            return key
    return None


COMMANDS = [
    (page, line, text)
    for page, kind, line, text in BLOCKS
    if kind in ("", "sh") and shown(text) and not page.startswith("docs/how-to/") and (page, kind) not in ELSEWHERE
]


def test_every_block_is_executed_or_listed_with_a_reason() -> None:
    outputs: Counter[str] = Counter()
    used: set[str] = set()
    for page, kind, _, text in BLOCKS:
        if page.startswith("docs/how-to/") or (page, kind) in ELSEWHERE:
            continue
        if kind in ("", "sh"):
            outputs[page] += not shown(text)
            used.update(pattern for line in shown(text) for pattern, _ in NOT_RUN if re.search(pattern, line))
        elif kind == "yaml":
            used.add(listed(NOT_PLANNED, page, text) or "")
        elif kind == "python":
            used.add(listed(NO_PYTHON, page, text) or "")
        else:
            raise AssertionError(f"{page} has a block of {kind}, which nothing executes")
    assert {page: count for page, count in outputs.items() if count} == OUTPUTS, "is the new one executed?"
    known = {pattern for pattern, _ in NOT_RUN} | NOT_PLANNED.keys() | NO_PYTHON.keys()
    assert known - used == {"docs/how-to/"}, "listed, and in no block"


def test_what_another_test_executes_has_that_test() -> None:
    for place in {*ELSEWHERE.values()}:
        file, _, name = place.partition("::")
        assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8"), place


# ------------------------------------------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pages have it: a sweep that is complete, under the names that they use."""
    sys.path.insert(0, str(ROOT / "tests/workflows"))
    from helpers_small import compute  # type: ignore[import-not-found]

    from workflows.grid.load import load_sweep

    folder = tmp_path_factory.mktemp("executed")
    for name in ("SWEEP", "sweep", "quickstart", "old", "new", "mine"):
        (folder / f"{name}.yaml").write_text(SWEEP)
    compute(load_sweep(folder / "SWEEP.yaml"), str(folder / "results"))
    for name in ("results-june", "results-july", "OLD_STORE"):
        shutil.copytree(folder / "results", folder / name)
    return folder


def called(line: str, folder: Path) -> list[list[str]]:
    """The calls of a line of a page, with its placeholders filled in."""
    from workflows.grid.load import load_sweep

    cells = load_sweep(folder / "SWEEP.yaml").cells
    names = {
        **{"quickstart": "quickstart.yaml", "URI": "results", "FOLDER": "folder", "FILE": "file", "A": "a"},
        **{"CELL": cells[-1].id[:8], "078186df": cells[-1].id[:8], "ARCHIVE": "appendix/adversarial"},
        **{"BASELINE": "OLD_STORE", "a.yaml": "old.yaml", "RUN": "SWEEP.yaml@results"},
    }
    if line.startswith("puregrid compare A B"):
        names["A"] = names["B"] = "SWEEP.yaml@OLD_STORE"
    line = re.sub(r"leaderboard leaderboard(?![\w-])", "leaderboard quickstart", line)
    line = re.sub("^puregrid init$", "puregrid init first.yaml", line)  # sweep.yaml is there
    return [[names.get(word, word) for word in words] for words in expanded(line)]


@pytest.mark.nightly
def test_commands_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    done: set[tuple[str, ...]] = set()
    failed = []
    lines = [(page, line) for page, _, text in COMMANDS for line in shown(text) if reason(line) is None]
    # An appendix is written before it is judged.
    for page, line in sorted(lines, key=lambda pair: "judge" in pair[1]):
        for words in called(line, folder):
            if tuple(words) not in done:
                done.add(tuple(words))
                result = CliRunner().invoke(app, words[1:])
                # Twenty images decide nothing.
                if words[0] != "puregrid" or result.exit_code not in ((0, 2) if words[1] == "check" else (0,)):
                    failed.append(f"{page}: {' '.join(words)}: {result.exit_code}\n{result.output[-600:]}")
    assert not failed, "\n\n".join(failed)
    assert len(done) > 40
    for name in (
        "report.html",
        "review/index.html",
        "appendix/content.tex",
        "image.html",
        "page.html",
        "rows.parquet",
    ):
        assert (folder / name).exists(), name


# ---------------------------------------------------------------------------------------------------------- yaml

DENOISER = {"format": "diffusers", "path": str(ROOT / "defense/assets/digits-ddpm"), "schedule": "linear-1000"}
DEFENDED = {"purifier": "diffpure", "denoiser": "small", "schedule": "linear-1000", "t_star": 9, "steps": 1}
PART = {
    "sweep": "part",
    "datasets": [{"dataset": "digits", "images": {"first": 4}}],
    "classifiers": ["digits-cnn"],
    "denoisers": {"small": DENOISER, "digits-ddpm": DENOISER},
}


def planned(content: dict[str, Any], folder: Path) -> int:
    """Stages of a sweep of the digits with these parts."""
    from workflows.grid.load import load_sweep
    from workflows.planning.plan import make_plan

    defences = [DEFENDED] if "certificates" in content else ["none", DEFENDED]
    whole = {**PART, "defences": defences, **content}
    whole["denoisers"] = {**PART["denoisers"], **content.get("denoisers", {})}
    if not (folder / "defense").exists():
        (folder / "defense").symlink_to(ROOT / "defense")
    (folder / "part.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    return len(make_plan(load_sweep(folder / "part.yaml")).stages)


@pytest.mark.slow
def test_yaml_is_planned(tmp_path: Path) -> None:
    count = 0
    for page, kind, line, text in BLOCKS:
        if kind == "yaml" and (page, kind) not in ELSEWHERE and listed(NOT_PLANNED, page, text) is None:
            # Its radii are for 32 pixels.
            text = text.replace("{published: freqpure", "{published: freqpure, amplitude_radius: 2, phase_radius: 2")
            try:
                assert planned(yaml.safe_load(text), tmp_path) > 0
            except Exception as error:
                raise AssertionError(f"{page}:{line} is not planned: {error}") from error
            count += 1
    assert count >= 12


def test_precision_is_planned_line_by_line(tmp_path: Path) -> None:
    (text,) = (
        text
        for page, kind, _, text in BLOCKS
        if page == "docs/precision.md" and kind == "yaml" and "half_width" in text
    )
    defences = {"defences": ["none", {"purifier": "jpeg", "quality": 60}]}
    for line in text.splitlines():
        assert planned(yaml.safe_load(line) | defences, tmp_path) > 0, line


# -------------------------------------------------------------------------------------------------------- python

PYTHON = [
    pytest.param(page, text, id=f"{page}:{line}")
    for page, kind, line, text in BLOCKS
    if kind == "python"
    and (page, kind) not in ELSEWHERE
    and not page.startswith("docs/how-to/")
    and listed(NO_PYTHON, page, text) is None
]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "text"), PYTHON)
def test_python_runs(page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "models/ddpm-cifar10" in text:
        if not {"PUREGRID_DATA", "PUREGRID_WEIGHTS"} <= os.environ.keys():
            pytest.skip("no CIFAR-10 or no public checkpoints here")
        weights = Path(os.environ["PUREGRID_WEIGHTS"])
        (tmp_path / "models").mkdir()
        (tmp_path / "models/ddpm-cifar10").symlink_to(weights / "ddpm-cifar10-small")
        (tmp_path / "resnet56-4bfd9763.th").symlink_to(weights / "resnet56-4bfd9763.th")
    monkeypatch.chdir(tmp_path)
    exec(compile(text, page, "exec"), {"here": tmp_path})


@pytest.mark.nightly
def test_the_readme_s_first_sweep_and_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block and the Python, on a few images, each with a Ray of its own; nothing is there before."""
    readme = [(kind, text) for page, kind, _, text in BLOCKS if page == "README.md"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = next(text for kind, text in readme if kind == "" and "puregrid run quickstart" in text)
    few = ["--set", "datasets.0.images.first=6"]
    for line in shown(first):
        if reason(line) is None:
            command = [sys.executable, "-m", "workflows.cli", *shlex.split(line)[1:], *few]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "report.html").exists() and "diffpure" in (tmp_path / "report.html").read_text()
    ((_, text),) = (block for block in readme if block[0] == "python")
    assert text.count('"datasets.0.images.first": 100') == 1
    (tmp_path / "page.py").write_text(text.replace('images.first": 100', 'images.first": 8'))
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr


NETWORK = """
from torch import nn
from defense.classifiers import Architecture, FeatureNet

class Net(FeatureNet):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(768, 3)
    def latent(self, x):
        return x.flatten(1)
    def classify(self, latent):
        return self.layer(latent)

architecture = Architecture(build=Net, image_shape=(3, 16, 16), classes=3, mean=(0.5,) * 3, std=(0.5,) * 3)
"""


@pytest.mark.nightly
def test_a_denoiser_of_one_s_own_images(tmp_path: Path) -> None:
    """The page's files and commands on pictures of three colours, with two steps of training and a short attack."""
    import torch
    from PIL import Image

    blocks = [text for page, _, _, text in BLOCKS if page == "docs/training.md"]
    denoiser, commands, sweep = blocks
    for split in ("train", "test"):
        for number, name in enumerate(("red", "green", "blue")):
            place = tmp_path / "shapes" / split / name
            place.mkdir(parents=True)
            for shade in range(10):
                colour = tuple(255 - 9 * shade if i == number else 20 * shade for i in range(3))
                Image.new("RGB", (16, 16), colour).save(place / f"{shade}.png")
    (tmp_path / "denoiser.yaml").write_text(
        denoiser.replace("steps: 8000", "steps: 2").replace("batch: 128", "batch: 8")
    )
    cheap = "{attack: strongest, norm: linf, eps_255: 8, rungs: [blind, exact], steps: 1, eot: 1, select: 2}"
    assert sweep.count("{attack: strongest, norm: linf, eps_255: 8}") == 1
    sweep = sweep.replace("{attack: strongest, norm: linf, eps_255: 8}", cheap).replace(
        "per_class: 10", "per_class: 2"
    )
    (tmp_path / "shapes.yaml").write_text(sweep)
    (tmp_path / "shapes_net.py").write_text(NETWORK)
    torch.save({"layer.weight": torch.randn(3, 768), "layer.bias": torch.zeros(3)}, tmp_path / "shapes_net.pt")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    for line in shown(commands):
        command = [sys.executable, "-m", "workflows.cli", *shlex.split(line)[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert (tmp_path / "results/mlflow.db").exists()
