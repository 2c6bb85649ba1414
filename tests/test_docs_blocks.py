"""Every code block of README and docs: commands are parsed by the command line, YAML checked, Python run or imported.

Pages whose code has tests of its own are run there (test_api_page.py, test_add_a_table.py, test_howto.py).
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from jsonschema import Draft202012Validator

from workflows.cli import app
from workflows.writing.schema import sweep_schema

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])

PROGRAMS = {
    *("puregrid", "make", "export", "umask", "ray", "git", "helm", "kubectl", "docker", "curl", "cat", "mlflow"),
    *("python", "pip", "pipx", "cd"),
}
"""What a line of a block of commands begins with; others are output."""


def blocks() -> Iterator[tuple[str, str, int, str]]:
    """Page, language, line and text of each block."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: found.start()].count("\n") + 1
            yield page.relative_to(ROOT).as_posix(), found[1], line, found[2]


BLOCKS = list(blocks())


def of(*languages: str) -> list[Any]:
    return [pytest.param(page, text, id=f"{page}:{line}") for page, kind, line, text in BLOCKS if kind in languages]


def commands(text: str) -> list[list[str]]:
    """The commands of a block: continued lines joined, comments and variables before a command left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s&&\s|\s\|\s", line.split(" #")[0].split("   ")[0]):
            words = [word for word in part.split() if not re.match(r"[A-Z_]+=", word)]
            if words and words[0].removeprefix(".venv/bin/") in PROGRAMS:
                first, *rest = shlex.split(part[part.index(words[0]) :], comments=True)
                found.append([first.removeprefix(".venv/bin/"), *rest])
    return found


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert len(BLOCKS) > 90
    assert {kind for _, kind, _, _ in BLOCKS} <= {"", "sh", "yaml", "python", "toml", "diff"}


COMMAND: Any = typer.main.get_command(app)


@pytest.mark.parametrize(("page", "text"), of("", "sh"))
def test_commands_are_taken_by_the_command_line(page: str, text: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    synopsis = re.search(r"\[--|\w\|\w", text) is not None
    for line in text.splitlines() if synopsis else ():
        if (found := re.match(r"\s*puregrid (\w+)", line)) is not None:
            group = COMMAND.commands[found[1]]
            commands_of = getattr(group, "commands", {"": group}).values()
        if (found or line.startswith("  ")) and "puregrid" in text:
            parameters = [parameter for command in commands_of for parameter in command.params]
            known = {option for parameter in parameters for option in parameter.opts + parameter.secondary_opts}
            assert set(re.findall(r"--[a-z][\w-]*", line)) <= known, line
    for program, *words in () if synopsis else commands(text):
        if program == "make":
            assert words[0] in targets, words
        elif program == "puregrid":
            name, *rest = words
            group = COMMAND.commands[name]
            if hasattr(group, "commands"):
                group, rest = group.commands[rest[0]], rest[1:]
            rest = rest if rest or not any(p.required for p in group.params) else ["x"]
            group.make_context(name, [word for word in rest if word != "..."])
        elif program == "python" and words[:1] == ["-m"] and words[1].startswith("scripts."):
            assert (ROOT / (words[1].replace(".", "/") + ".py")).exists()


# ---------------------------------------------------------------------------------------------------------- yaml

SCHEMA = {name: value for name, value in sweep_schema().items() if name != "required"}


@pytest.mark.parametrize(("page", "text"), of("yaml"))
def test_yaml_is_a_sweep_file_or_a_part_of_one(page: str, text: str) -> None:
    if page in ("docs/cluster.md", "docs/how-to/README.md"):  # of Kubernetes; with installed parts of the other pages
        return
    text = text.replace("<40 hex digits>", "a" * 40)
    # A page may show values of one key side by side, which a file cannot have.
    repeated = re.findall(r"^(\w+): ", text, re.MULTILINE)
    parts = text.splitlines() if len(set(repeated)) < len(repeated) else [text]
    for part in parts:
        content = yaml.safe_load(part)
        assert isinstance(content, dict) and content, part
        errors = sorted(Draft202012Validator(SCHEMA).iter_errors(content), key=str)
        assert not errors, f"{list(errors[0].absolute_path)}: {errors[0].message[:300]}"


@pytest.mark.slow
@pytest.mark.skipif(
    not {"PUREGRID_DATA", "PUREGRID_WEIGHTS"} <= os.environ.keys(), reason="no CIFAR-10 or no public checkpoints here"
)
def test_the_complete_file_of_the_page_on_sweep_files_loads(tmp_path: Path) -> None:
    from workflows.grid.load import load_sweep
    from workflows.planning.plan import make_plan

    (text,) = [text for page, kind, _, text in BLOCKS if page == "docs/sweep-files.md" and kind == "yaml"][:1]
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models/ddpm-cifar10").symlink_to(Path(os.environ["PUREGRID_WEIGHTS"]) / "ddpm-cifar10-small")
    # The backbone of LPIPS is a download.
    (tmp_path / "sweeps/sweep.yaml").write_text(re.sub(r"quality: \{lpips: [^}]*\}", "quality: true", text))
    sweep = load_sweep(tmp_path / "sweeps/sweep.yaml")
    assert sweep.name == "my-sweep" and len(make_plan(sweep).stages) > 10


# -------------------------------------------------------------------------------------------------------- python


@pytest.mark.parametrize(("page", "text"), of("python"))
def test_every_name_that_python_blocks_import_is_there(page: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] not in ("puregrid", "defense", "tasks", "workflows"):
                continue
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")


RUN = {"docs/report.md", "docs/regression.md", "docs/store.md", "docs/auditor.md", "docs/papers.md"}
"""Pages whose Python reads a store, and is run on that of the small sweep."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small sweep, complete, as pages have it: ``sweep.yaml``, ``results``, ``baseline.json``."""
    import sys

    sys.path.insert(0, str(ROOT / "tests/workflows"))
    from helpers_small import compute, small_sweep

    from workflows.regression.baselines import to_text
    from workflows.regression.snapshots import of_results
    from workflows.results.reader import Results
    from workflows.store import Store

    folder = tmp_path_factory.mktemp("docs")
    sweep = small_sweep(folder)
    compute(sweep, str(folder / "results"))
    for name in ("sweep.yaml", "SWEEP.yaml", "quickstart.yaml"):
        shutil.copy(folder / "small.yaml", folder / name)
    snapshot = of_results(Results(Store(str(folder / "results")), sweep))
    (folder / "baseline.json").write_text(to_text(snapshot))
    return folder


@pytest.mark.parametrize(("page", "text"), [block for block in of("python") if block.values[0] in RUN])
def test_python_that_reads_results_runs(
    page: str, text: str, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from workflows.grid.load import load_sweep
    from workflows.results.reader import Results
    from workflows.store import Store

    monkeypatch.chdir(finished)
    names: dict[str, Any] = {}
    if page == "docs/auditor.md":  # the page says what `results` is
        names["results"] = Results(Store("results"), load_sweep(Path("sweep.yaml")))
    text = text.replace("workflows/sweeps/papers/distribution-transfer-table3.yaml", "sweep.yaml")
    exec(compile(text, page, "exec"), names)


# ---------------------------------------------------------------------------------------------------- first page


def test_the_first_page_leads_to_every_page_and_its_sweeps_are_there() -> None:
    from workflows.assets.bundled import bundled_sweeps

    text = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(([^)#\s]+)", text))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= links
    for link in links:
        assert (ROOT / "docs" / link).exists(), link
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([\w/-]+)`", row)}
    assert len(names) > 8 and names <= set(bundled_sweeps())


def test_the_picture_of_the_readme_is_what_its_script_draws() -> None:
    from scripts.diagram import FIGURE, diagram

    assert FIGURE.read_text(encoding="utf-8") == diagram()
