"""Which source computed a row: in a real git checkout, in an installed package, and in the record beside the rows."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from helpers_small import compute, small_sweep

from workflows.analysis import Analysis
from workflows.analysis.provenance import provenance
from workflows.monitoring import versions as source
from workflows.monitoring.versions import driver_versions, git_commit, installed_commit
from workflows.planning.plan import make_plan
from workflows.report import report
from workflows.results.reader import Results
from workflows.store import Store

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> str:
    own = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *own, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a module, a sweep and a README."""
    for name in ("defense/deep/module.py", "workflows/sweeps/a.yaml", "README.md"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    git(tmp_path / "tree", "init", "--quiet")
    git(tmp_path / "tree", "add", ".")
    git(tmp_path / "tree", "commit", "--quiet", "-m", "first")
    return tmp_path / "tree"


def test_a_checkout_has_a_commit_and_is_modified_where_its_code_is(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_commit(checkout) == commit and len(commit) == 40
    # What computes nothing changes nothing: a sweep is in the store, a text is a text.
    (checkout / "README.md").write_text("other\n")
    (checkout / "workflows/sweeps/b.yaml").write_text("sweep: b\n")
    assert git_commit(checkout) == commit
    (checkout / "defense/deep/module.py").write_text("x = 2\n")
    assert git_commit(checkout) == f"{commit} modified"
    git(checkout, "commit", "--quiet", "-am", "second")
    assert git_commit(checkout) == git(checkout, "rev-parse", "HEAD") != commit
    (checkout / "tasks").mkdir()
    (checkout / "tasks/new.py").write_text("")  # not in the commit, but imported
    assert str(git_commit(checkout)).endswith(" modified")


def test_a_package_inside_another_project_s_checkout_is_not_of_its_commit(checkout: Path, tmp_path: Path) -> None:
    inside = checkout / "venv/lib/site-packages"
    (inside / "defense").mkdir(parents=True)
    assert git_commit(inside) is None
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "--quiet")  # no commit yet
    assert git_commit(tmp_path / "empty") is None


def test_without_git_nothing_is_claimed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert git_commit(checkout) is None


@pytest.mark.parametrize(
    ("recorded", "commit"),
    [
        ({"url": "https://host/puregrid", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}, "c0ffee"),
        ({"url": "file:///wheel.whl", "archive_info": {}}, None),
        (None, None),
    ],
)
def test_an_installed_package_says_what_its_installer_wrote_down(
    tmp_path: Path, recorded: dict[str, object] | None, commit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "puregrid-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: puregrid\nVersion: 9.9\n")
    if recorded is not None:
        (info / "direct_url.json").write_text(json.dumps(recorded))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_commit(tmp_path) == commit
    assert installed_commit(tmp_path / "elsewhere") is None  # not the copy that is imported


@pytest.mark.slow
def test_commits_say_it_rows_do_not_and_the_report_lists_all(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    stages = make_plan(sweep).stages
    stores = [Store(str(tmp_path / name)) for name in ("one", "two")]
    said = ("a" * 40, "b" * 40 + " modified")
    for store, commit in zip(stores, said, strict=True):
        with patch.object(source, "source_commit", lambda commit=commit: commit):
            compute(sweep, store.uri)
    for stage in stages:
        for chunk in stage.chunks:
            name = (stage.spec.stage, stage.id, chunk.name)
            one, two = (store.committed(*name) for store in stores)
            assert one is not None and two is not None
            assert (one.versions["puregrid_commit"], two.versions["puregrid_commit"]) == said
            assert one.sha256 == two.sha256  # the rows of both are the same bytes
    # A store that two sources, and one that did not say, have filled.
    store, units = stores[0], [(stage, chunk) for stage in stages for chunk in stage.chunks]
    for (stage, chunk), versions in zip(units[:3], [{"puregrid_commit": said[1]}] * 2 + [{}], strict=True):
        found = store.committed(stage.spec.stage, stage.id, chunk.name)
        assert found is not None
        path = Path(store.uri) / store.commit_path(stage.spec.stage, stage.id, chunk.name)
        path.write_text(json.dumps(replace(found, versions=versions).__dict__))
    results = Results(store, sweep)
    (line,) = (value for name, value in provenance(results, "x").facts if name == "source")
    assert line == f"{said[0]}: {len(units) - 3} units; {said[1]}: 2 units; commit not recorded: 1 unit"
    assert f"<dt>source</dt><dd>{line}</dd>" in report(Analysis(results), command="x")


def test_this_tree_says_its_commit_to_mlflow_too() -> None:
    source.source_commit.cache_clear()
    if (ROOT / ".git").exists():
        said = driver_versions()["puregrid_commit"]
        assert said.split()[0] == git(ROOT, "rev-parse", "HEAD")
