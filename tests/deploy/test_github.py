"""Workflows of pull requests and nights: what runs on which versions, with which rights, pinned how."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github/workflows"


def load(name: str) -> dict[Any, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yml").read_text())


PULL_REQUEST, NIGHTLY, REGRESSION = map(load, ("pull-request", "nightly", "regression"))
ACTION: dict[str, Any] = yaml.safe_load((ROOT / ".github/actions/set-up/action.yml").read_text())
WORKFLOWS = {"pull-request": PULL_REQUEST, "nightly": NIGHTLY, "regression": REGRESSION}


def steps(workflow: dict[Any, Any], job: str) -> list[dict[str, Any]]:
    return workflow["jobs"][job]["steps"]


def commands(workflow: dict[Any, Any], job: str) -> list[str]:
    return [line.strip() for step in steps(workflow, job) for line in step.get("run", "").splitlines()]


def test_each_runs_when_it_should() -> None:
    # YAML 1.1 reads the key `on` as a boolean, GitHub does not.
    assert PULL_REQUEST[True] == {"pull_request": None, "push": {"branches": ["main"]}}
    assert re.fullmatch(r"\d+ \d+ \* \* \*", NIGHTLY[True]["schedule"][0]["cron"])
    assert "workflow_dispatch" in NIGHTLY[True]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_read_alone_ends_and_pastes_no_input_into_scripts(name: str) -> None:
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {"contents": "read"}
    # With pipefail, which the default shell lacks.
    assert workflow["defaults"]["run"]["shell"] == "bash"
    for job in workflow["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 120 and "permissions" not in job
        for step in job["steps"]:
            assert "${{" not in step.get("run", "")
            # By commit: a tag can be moved. An action of this repository is as it is in the commit.
            used = step.get("uses", "./.github/actions/set-up")
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}|\./\.github/actions/set-up", used)
    assert "pull_request_target" not in (FOLDER / f"{name}.yml").read_text()


def test_all_workflows_use_one_version_of_an_action_and_name_it() -> None:
    texts = [path.read_text() for path in (ROOT / ".github").rglob("*.yml")]
    assert len(texts) == 4
    used = {line for text in texts for line in re.findall(r"uses: (actions/.*)$", text, re.MULTILINE)}
    assert len({line.split("@")[0] for line in used}) == len(used) == 3
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in used)


def test_tests_run_on_the_oldest_and_the_newest_python_torch_and_ray() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    supported = [name.rpartition(" ")[2] for name in project["classifiers"] if re.search(r"Python :: 3\.\d+$", name)]
    assert all(int(later[2:]) == int(sooner[2:]) + 1 for sooner, later in pairwise(supported))
    assert SpecifierSet(project["requires-python"]).contains(supported[0])
    oldest = re.fullmatch(r">=(\d+\.\d+)", project["requires-python"])
    assert oldest is not None and oldest[1] == supported[0]
    for workflow in (PULL_REQUEST, NIGHTLY):
        matrix = {entry["versions"]: entry for entry in workflow["jobs"]["test"]["strategy"]["matrix"]["include"]}
        assert set(matrix) == {"oldest", "locked", "newest"}
        assert matrix["oldest"]["python"] == supported[0] and matrix["newest"]["python"] == supported[-1]
        # A fault in one of them must not hide one in another.
        assert workflow["jobs"]["test"]["strategy"]["fail-fast"] is False
        wanted = {"python-version": "${{ matrix.python }}", "versions": "${{ matrix.versions }}"}
        assert next(step["with"] for step in steps(workflow, "test") if "set-up" in step.get("uses", "")) == wanted
    floor = (ROOT / "constraints-oldest.txt").read_text()
    assert re.search(r"^torch==\d", floor, re.MULTILINE) and re.search(r"^ray==\d", floor, re.MULTILINE)


def test_set_up_installs_as_the_makefile_does_and_else_the_oldest_or_newest_versions() -> None:
    made = (ROOT / "Makefile").read_text().split("\n$(READY): ")[1].split("\n\n")[0]
    commands = re.findall(
        r"^\t(?:\$\(BIN\)/)?((?:requirements|python).*)$", made.replace("$(BIN)/python", "python"), re.M
    )
    locked, others = (step for step in ACTION["runs"]["steps"] if step.get("name", "").startswith("Install"))
    assert locked["run"].splitlines() == [command.replace(" --quiet", "") for command in commands]
    assert len(commands) == 2 and "install.sh python development" in commands[0] and "--no-deps" in commands[1]
    assert (
        locked["if"] == "${{ inputs.versions == 'locked' }}" and others["if"] == "${{ inputs.versions != 'locked' }}"
    )
    assert others["env"]["CONSTRAINTS"].startswith("${{ inputs.versions == 'oldest' && 'constraints-oldest.txt' ||")
    for line in others["run"].splitlines():
        assert line.startswith('python -m pip install -c "$CONSTRAINTS" ')
    assert ACTION["inputs"]["versions"]["default"] == "locked"
    assert all(set(entry) >= {"description", "required"} for entry in ACTION["inputs"].values())


def test_the_locks_are_audited_every_night_by_a_locked_tool() -> None:
    install, audit = commands(NIGHTLY, "audit")[0], " ".join(commands(NIGHTLY, "audit")[1:])
    assert install == "python -m pip install --require-hashes --no-deps -r requirements/audit.txt"
    # Without --strict a package that the service does not know, or an index that does not answer, passes.
    assert {"--strict", "--disable-pip", "--require-hashes"} <= set(audit.split()) and "--ignore-vuln" not in audit
    locks = {path.name for path in (ROOT / "requirements").glob("*.txt")}
    # development.txt has what cluster.txt has (tests/deploy/test_lock.py), cpu.txt other builds of what cuda.txt has.
    assert {path.name for path in map(Path, re.findall(r"-r (\S+)", audit))} == locks - {"cluster.txt", "cpu.txt"}


def test_pull_requests_run_lint_types_and_the_fast_tests_and_nights_run_all() -> None:
    makefile = (ROOT / "Makefile").read_text()
    side_by_side = re.search(r"^SIDE_BY_SIDE := (.*)$", makefile, re.MULTILINE)
    assert side_by_side is not None
    lint = re.findall(r"\$\(BIN\)/(.*)", makefile.split("\nlint:")[1].split("\n\n")[0])
    assert commands(PULL_REQUEST, "lint")[: len(lint)] == lint
    fast = re.findall(r"\$\(BIN\)/(.*)", makefile.split("\ntest-fast:")[1].split("\n\n")[0])
    assert commands(PULL_REQUEST, "test") == fast and fast[0].endswith(' -m "not slow"')
    (full,) = (line for line in commands(NIGHTLY, "test") if "pytest" in line)
    assert full.startswith(f"python -m pytest {side_by_side[1]} ") and " -m " not in full.removeprefix("python -m")
    (whole,) = re.findall(r"\$\(BIN\)/(.*)", makefile.split("\ntest-all:")[1].split("\n\n")[0])
    assert (
        full.startswith(whole.replace("$(SIDE_BY_SIDE)", side_by_side[1])) and "--hypothesis-profile nightly" in full
    )
    publish = steps(NIGHTLY, "test")[-1]
    assert publish["if"] == "${{ !cancelled() }}" and f"{publish['with']['path']}/junit.xml" in full
    # Two jobs of a matrix cannot upload under one name.
    assert "${{ matrix.versions }}" in publish["with"]["name"]


def test_modules_that_the_lint_job_runs_exist_and_pass() -> None:
    named = {module for line in commands(PULL_REQUEST, "lint") for module in re.findall(r"-m (scripts\.\w+)", line)}
    assert named == {"scripts.check_yaml", "scripts.oldest_constraints", "scripts.architecture"}
    assert all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in named)
