"""Licence, citation, metadata, constraints and pre-commit hooks agree with each other and with the code."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from scripts.check_yaml import fault
from scripts.check_yaml import main as check_yaml
from scripts.oldest_constraints import TARGET, constraints

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
APACHE_2_0 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""sha256 of the licence as the Apache Software Foundation publishes it."""


def test_the_licence_is_apache_2_0_word_for_word_but_for_the_owner() -> None:
    text = (ROOT / "LICENSE").read_text()
    owner = re.findall(r"^   Copyright (.*)$", text, re.MULTILINE)
    assert owner == ["2026 the puregrid authors"]
    published = text.replace(owner[0], "[yyyy] [name of copyright owner]")
    assert hashlib.sha256(published.encode()).hexdigest() == APACHE_2_0
    assert PROJECT["project"]["license"] == "Apache-2.0" and PROJECT["project"]["license-files"] == ["LICENSE"]
    # A licence expression and a licence classifier together are refused by package indexes.
    assert not [name for name in PROJECT["project"]["classifiers"] if name.startswith("License")]


def test_the_citation_is_valid_and_says_what_the_package_says() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    # Required by the Citation File Format 1.2.0, and the optional ones of its schema that are used.
    required = {"authors", "cff-version", "message", "title"}
    known = {"abstract", "date-released", "doi", "keywords", "license", "repository-code", "type", "version"}
    assert required <= set(citation) <= required | known
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["authors"] == PROJECT["project"]["authors"] == [{"name": "the puregrid authors"}]
    assert str(citation["version"]) == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["repository-code"] == PROJECT["project"]["urls"]["Repository"]
    assert citation["keywords"] == PROJECT["project"]["keywords"]
    assert all(isinstance(citation[name], str) and citation[name] for name in ("message", "title", "abstract"))


def test_every_url_of_the_package_is_of_one_repository_and_of_a_file_in_it() -> None:
    urls = PROJECT["project"]["urls"]
    for url in urls.values():
        assert url.startswith(urls["Repository"])
        path = re.search(r"/(?:blob|tree)/main/(.*)", url)
        assert path is None or (ROOT / path[1]).exists()


def test_image_tags_are_those_of_the_version() -> None:
    version = PROJECT["project"]["version"]
    files = [ROOT / "Dockerfile", ROOT / "cluster.yaml", *sorted((ROOT / "deploy").glob("*.yaml"))]
    tags = [tag for file in files for tag in re.findall(r"puregrid:(\d+\.\d+\.\d+)", file.read_text())]
    assert len(tags) >= 6 and set(tags) == {version}


def runtime() -> list[Requirement]:
    """What puregrid needs, with all that it can do without other people's models."""
    features = PROJECT["project"]["optional-dependencies"]
    lines = [
        *PROJECT["project"]["dependencies"],
        *(line for name in ("run", "mlflow", "report") for line in features[name]),
    ]
    found = [Requirement(line) for line in lines]
    assert {"torch", "ray", "mlflow", "jinja2"} <= {requirement.name for requirement in found}
    return found


def test_the_oldest_constraints_are_the_lower_bounds() -> None:
    assert TARGET.read_text() == constraints(PROJECT), "run python -m scripts.oldest_constraints"
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", TARGET.read_text(), re.MULTILINE))
    for requirement in runtime():
        # Without a bound nobody knows what the oldest set-up is.
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


def test_what_the_suite_runs_with_is_within_the_bounds() -> None:
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    known = {name.lower().replace("_", "-"): version for name, version in tested.items()}
    for requirement in runtime():
        assert requirement.specifier.contains(known[requirement.name]), requirement


def project(*dependencies: str, **features: list[str]) -> dict[str, Any]:
    return {"project": {"name": "puregrid", "dependencies": dependencies, "optional-dependencies": features}}


def test_constraints_take_features_but_no_tools_and_refuse_two_bounds() -> None:
    made = constraints(
        project(
            "torch>=2.5,<3",
            "lpips",
            run=["ray[default]>=2.50", "puregrid[tables]"],
            tables=["Scikit_Learn>=1.5"],
            dev=["mypy>=1.14"],
        )
    )
    assert [line for line in made.splitlines() if line[0] != "#"] == ["ray==2.50", "scikit-learn==1.5", "torch==2.5"]
    with pytest.raises(ValueError, match=r"s3fs has the lower bounds 2024\.10 and 2025\.1"):
        constraints(project(cluster=["s3fs>=2024.10"], s3=["s3fs>=2025.1"]))
    with pytest.raises(ValueError, match="several lower bounds"):
        constraints(project("torch>=2.5,>=2.6"))


def test_pre_commit_runs_the_tools_of_make_lint_from_the_environment() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    hooks = {hook["id"]: hook for hook in local["hooks"]}
    assert set(hooks) == {"ruff", "ruff-format", "mypy", "yaml", "oldest-constraints", "architecture"}
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks.values())
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    assert set(re.findall(r"\$\(BIN\)/(.*)", lint)) == {"ruff check .", "ruff format --check .", "mypy"}
    modules = {module for hook in hooks.values() for module in re.findall(r"-m (\S+)", hook["entry"])}
    assert modules == {"scripts.check_yaml", "scripts.oldest_constraints", "scripts.architecture"}
    assert all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in modules)


@pytest.mark.slow
def test_the_yaml_of_the_repository_can_be_read() -> None:
    folders = [ROOT / name for name in ("workflows", "deploy", ".github")]
    paths = [path for folder in folders for pattern in ("*.yaml", "*.yml") for path in folder.rglob(pattern)]
    paths += [*ROOT.glob("*.yaml"), *ROOT.glob("*.cff"), ROOT / ".pre-commit-config.yaml"]
    assert len(paths) > 40
    assert [text for path in paths if (text := fault(path)) is not None] == []


def test_yaml_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, open_list, twice, merged = (tmp_path / f"{name}.yaml" for name in ("good", "open", "twice", "merged"))
    good.write_text("a: 1\n---\na: 2\n")
    open_list.write_text("a: 1\nb: [1, 2\nc: 3\n")
    twice.write_text("a:\n  b: 1\n  c: 2\n  b: 3\n")
    merged.write_text("x: &x {a: 1}\ny: &y {a: 2}\nz:\n  <<: *x\n  <<: *y\n")
    assert fault(good) is None and fault(merged) is None
    assert (fault(open_list) or "").startswith(f"{open_list}:3: ")
    assert fault(twice) == f"{twice}:4: the key 'b' stands in line 2 already"
    assert check_yaml([str(good), str(twice)]) == 1
    assert capsys.readouterr().err == f"{twice}:4: the key 'b' stands in line 2 already\n"
    assert check_yaml([str(good)]) == 0


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "docs/decisions.md"]
)
def test_links_lead_to_files(name: str) -> None:
    page = ROOT / name
    targets = {target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())}
    missing = {target for target in targets if "://" not in target and not (page.parent / target).exists()}
    assert targets and missing - {"docs/how-to/"} == set()


def test_the_pages_for_maintainers_name_commands_and_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name for names in re.findall(r"(?:`|^)make ([a-z -]+?)(?:`|  )", text, re.MULTILINE) for name in names.split()
    }
    assert {"quickstart", "test", "test-fast", "lint"} <= named <= targets
    for path in re.findall(r"`((?:tests|defense|scripts|deploy)/[\w/]+\.py)`", text):
        assert (ROOT / path).is_file(), path
    for module in re.findall(r"-m (scripts\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
