"""A training that is killed and started again ends with the same bits; folders are never mixed up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lab import wait_for
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from defense import InvalidInput
from workflows.cli import app
from workflows.training import checkpoint, load_config, loop, run, train
from workflows.training.tracking import tracking_uri

BASE: dict[str, Any] = {
    "train": "classifier",
    "dataset": {"dataset": "digits"},
    "classifier": "digits-cnn",
    "batch": 16,
    "steps": 12,
    "lr": 0.003,
    "weight_decay": 0.01,
    "shift": 1,
    "ema": 0.9,
    "checkpoint_every": 5,
    "device": "cpu",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "standard": {},
    "gaussian sgd no average": {"method": {"method": "gaussian", "noise": 0.1}, "optimiser": "sgd", "ema": 0.0},
    "at bf16": {"method": {"method": "at", "norm": "linf", "eps": 0.1, "steps": 2}, "precision": "bf16"},
    "trades-awp": {"method": {"method": "trades-awp", "norm": "l2", "eps": 0.5, "steps": 2, "warm_up": 6}},
    "macer": {"method": {"method": "macer", "noise": 0.2, "samples": 2}},
}
DENOISER: dict[str, Any] = {
    **{key: BASE[key] for key in ("dataset", "steps", "lr", "ema", "checkpoint_every", "device")},
    "train": "denoiser",
    "schedule": "linear-1000",
    "batch": 8,
    "unet": {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "dropout": 0.1,
    },
}


@pytest.fixture(autouse=True)
def settings_come_back(monkeypatch: pytest.MonkeyPatch) -> Any:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.set_rng_state(state)


def _config(folder: Path, fields: dict[str, Any], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**fields, "out": str(folder / "out"), **changes}, sort_keys=False))
    return path


def _cli(path: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["train", str(path), *options])


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out").glob("*.safetensors")}


class Killed(BaseException):
    """Stands for a death that no code can react to."""


def _die_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Die in the middle of a step: after its batch is drawn and before its update."""
    original = loop.augmented
    calls = 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > step:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "augmented", dying)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        *(
            pytest.param({**BASE, **v}, marks=[pytest.mark.nightly] * (i > 0))
            for i, v in enumerate(VARIANTS.values())
        ),
        DENOISER,
    ],
    ids=[*VARIANTS, "denoiser"],
)
def test_a_death_at_any_step_and_a_resume_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    straight = train(load_config(_config(tmp_path / "straight", fields)), command="test")
    path = _config(tmp_path / "broken", fields)
    said: list[str] = []
    for step, continues_at in ((3, None), (7, None), (6, 5)):  # the second leaves a checkpoint at 5, the third at 10
        with monkeypatch.context() as patch, pytest.raises(Killed):
            _die_at(patch, step)
            train(load_config(path), command="test", notify=said.append)
        assert (f"continuing at step {continues_at} of 12" in said) == (continues_at is not None)
        torch.manual_seed(step)  # another process has another state
    resumed = train(load_config(path), command="test", notify=said.append)
    assert said[-1] == "continuing at step 10 of 12"
    assert _bytes(tmp_path / "broken") == _bytes(tmp_path / "straight")
    assert resumed["sha256"] == straight["sha256"]
    assert resumed["measured"] == straight["measured"]
    assert not list((tmp_path / "broken" / "out").glob("checkpoint*"))


@pytest.mark.slow
def test_a_death_after_the_last_step_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train(load_config(_config(tmp_path / "straight", BASE)), command="test")
    path = _config(tmp_path / "broken", BASE)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            run, "sha256_file", lambda file: (_ for _ in ()).throw(Killed())
        )  # weights lie, the card does not
        train(load_config(path), command="test")
    _die_at(monkeypatch, 0)
    assert train(load_config(path), command="test")["sha256"] == straight["sha256"]


@pytest.mark.slow
def test_checkpoints_and_curves_do_not_change_the_result(tmp_path: Path) -> None:
    cards = [
        train(load_config(_config(tmp_path / str(i), BASE, **changes)), command="test", mlflow=uri)
        for i, (changes, uri) in enumerate(
            [
                ({"checkpoint_every": 1}, None),
                ({"checkpoint_every": None}, None),
                ({"log_every": 1, "evaluate_every": 3}, f"sqlite:///{tmp_path / 'm.db'}"),
            ]
        )
    ]
    assert cards[0]["sha256"] == cards[1]["sha256"] == cards[2]["sha256"]
    assert all("checkpoint_every" not in card["config"] for card in cards)


class TestRealKills:
    @pytest.mark.slow
    def test_a_killed_process_continues_to_the_same_bits(self, tmp_path: Path) -> None:
        fields = {**BASE, "steps": 300, "checkpoint_every": 20}
        straight = train(load_config(_config(tmp_path / "straight", fields)), command="test")
        path = _config(tmp_path / "killed", fields)
        for _ in range(2):
            process = _start(path)
            before = _modified(tmp_path / "killed")
            wait_for(lambda before=before: _modified(tmp_path / "killed") != before, process)  # type: ignore[misc]
            process.kill()
            process.wait()
            assert not (tmp_path / "killed" / "out" / "card.yaml").exists()
        result = _cli(path)
        assert result.exit_code == 0, result.output
        assert "continuing at step" in result.stderr
        assert _bytes(tmp_path / "killed") == _bytes(tmp_path / "straight")
        assert yaml.safe_load(result.stdout)["sha256"] == straight["sha256"]

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)])
    def test_an_interrupt_stores_the_step_at_hand(self, tmp_path: Path, number: signal.Signals) -> None:
        fields = {**BASE, "steps": 10**6, "checkpoint_every": 10}
        path = _config(tmp_path, fields)
        process = _start(path)
        wait_for(lambda: _modified(tmp_path) is not None, process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 130, stderr
        assert "Run the same command again to continue" in stderr
        content = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
        assert content["state"]["step"] >= 10


def _start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "workflows.cli", "train", str(path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _modified(folder: Path) -> int | None:
    path = folder / "out" / "checkpoint.pt"
    return path.stat().st_mtime_ns if path.exists() else None


class TestFolders:
    def test_a_finished_training_is_not_done_again_unless_forced(self, tmp_path: Path) -> None:
        path = _config(tmp_path, BASE, steps=2)
        first = _cli(path)
        weights = tmp_path / "out" / "model.safetensors"
        written = weights.stat().st_mtime_ns
        again = _cli(path)
        assert (again.exit_code, again.stdout) == (0, first.stdout)
        assert "holds the finished training of this config; give --force" in again.stderr
        assert weights.stat().st_mtime_ns == written
        forced = _cli(path, "--force")
        assert forced.exit_code == 0
        assert weights.stat().st_mtime_ns != written
        assert yaml.safe_load(forced.stdout)["sha256"] == yaml.safe_load(first.stdout)["sha256"]

    def test_what_does_not_change_the_result_does_not_make_another_training(self, tmp_path: Path) -> None:
        _cli(_config(tmp_path, BASE, steps=2))
        again = _cli(_config(tmp_path, BASE, steps=2, checkpoint_every=7, log_every=1))
        assert "give --force to train it again" in again.stderr

    def test_the_folder_of_another_training_is_refused(self, tmp_path: Path) -> None:
        _cli(_config(tmp_path, BASE, steps=2))
        other = _cli(_config(tmp_path, BASE, steps=2, lr=0.01, method={"method": "gaussian", "noise": 0.1}))
        assert (other.exit_code, other.stdout) == (2, "")
        assert "holds the finished training of another config: " in other.stderr
        assert "config.lr is 0.003 there, 0.01 here" in other.stderr
        assert "config.method.method is 'standard' there, 'gaussian' here" in other.stderr
        assert "--force" in other.stderr

    @pytest.mark.slow
    def test_the_checkpoint_of_another_training_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            _die_at(patch, 7)
            train(load_config(_config(tmp_path, BASE)), command="test")
        with pytest.raises(
            InvalidInput, match=r"checkpoint of another training: config\.seed is 0 there, 1 here\. To"
        ):
            train(load_config(_config(tmp_path, BASE, seed=1)), command="test")
        with monkeypatch.context() as patch:
            patch.setattr(run, "_CODE_VERSION", 0)
            with pytest.raises(InvalidInput, match="code is 1 there, 0 here"):
                train(load_config(_config(tmp_path, BASE)), command="test")
        assert train(load_config(_config(tmp_path, BASE, seed=1)), command="test", force=True)["config"]["seed"] == 1

    @pytest.mark.slow
    def test_a_torn_checkpoint_is_refused_and_a_torn_write_leaves_the_old_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            _die_at(patch, 7)
            train(load_config(_config(tmp_path, BASE)), command="test")
        path = tmp_path / "out" / "checkpoint.pt"
        (tmp_path / "out" / "checkpoint.pt.tmp").write_bytes(b"half")
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InvalidInput, match=r"checkpoint\.pt' cannot be read .* --force, to start again"):
            train(load_config(_config(tmp_path, BASE)), command="test")
        path.write_bytes(whole)
        train(load_config(_config(tmp_path, BASE)), command="test")
        assert not (tmp_path / "out" / "checkpoint.pt.tmp").exists()

    def test_a_checkpoint_holds_plain_data_only(self, tmp_path: Path) -> None:
        state = {"step": 1, "tensor": torch.zeros(2), "none": None, "nested": [{"a": 1.5}]}
        checkpoint.write(tmp_path, {"a": 1}, state)
        found = checkpoint.read(tmp_path, {"a": 1})
        assert found is not None
        assert torch.equal(found.pop("tensor"), state.pop("tensor"))  # type: ignore[arg-type]
        assert found == state
        checkpoint.delete(tmp_path)
        assert checkpoint.read(tmp_path, {"a": 1}) is None

    def test_weights_that_are_not_those_of_the_card_are_noticed(self, tmp_path: Path) -> None:
        path = _config(tmp_path, BASE, steps=2)
        _cli(path)
        (tmp_path / "out" / "model.safetensors").write_bytes(b"other")
        result = _cli(path)
        assert result.exit_code == 2
        assert "model.safetensors' is missing or not the file of the card" in result.stderr

    def test_cuda_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is CUDA")
        result = _cli(_config(tmp_path, BASE, device="cuda"))
        assert result.exit_code == 2
        assert "device: cuda is asked for, but torch finds no CUDA device" in result.stderr


class TestMlflow:
    def test_where_it_goes(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert tracking_uri(None, "o") is None
        assert tracking_uri("on", str(tmp_path)) == f"sqlite:///{tmp_path / 'mlflow.db'}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
        assert tracking_uri(None, "o") == "http://there"
        assert tracking_uri("off", "o") is None
        assert tracking_uri("sqlite:///x.db", "o") == "sqlite:///x.db"

    def test_nothing_is_written_unless_asked(self, tmp_path: Path) -> None:
        _cli(_config(tmp_path, BASE, steps=2))
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == ["card.yaml", "model.safetensors", "training-images.u64"]

    @pytest.mark.slow
    def test_a_resumed_training_continues_its_run_without_doubled_points(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow import MlflowClient

        path = _config(tmp_path, BASE, log_every=2, evaluate_every=4)
        uri = f"sqlite:///{tmp_path / 'm.db'}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            _die_at(patch, 9)  # the last checkpoint is at 5, the last point at 8
            train(load_config(path), command="test", mlflow=uri)
        result = _cli(path, "--mlflow", uri)
        assert result.exit_code == 0, result.output
        client = MlflowClient(tracking_uri=uri)
        (experiment,) = [e for e in client.search_experiments() if e.name == "puregrid train classifier"]
        (found,) = client.search_runs([experiment.experiment_id])
        assert found.info.status == "FINISHED"
        assert found.data.params["lr"] == "0.003"
        assert found.data.params["method.method"] == "standard"
        card = yaml.safe_load(result.stdout)
        steps = {
            key: [point.step for point in client.get_metric_history(found.info.run_id, key)]
            for key in ("train/loss", "train/lr", "test/accuracy", "final/test_accuracy")
        }
        assert {key: sorted(value) for key, value in steps.items()} == {
            "train/loss": [2, 4, 6, 8, 10, 12],
            "train/lr": [2, 4, 6, 8, 10, 12],
            "test/accuracy": [4, 8, 12],
            "final/test_accuracy": [12],
        }
        assert found.data.metrics["final/test_accuracy"] == card["measured"]["test_accuracy"]
        artifacts = {item.path for item in client.list_artifacts(found.info.run_id)}
        assert artifacts == {"card.yaml", "config.yaml"}
        # Forced: a run of its own.
        assert _cli(path, "--mlflow", uri, "--force").exit_code == 0
        assert len(client.search_runs([experiment.experiment_id])) == 2


@pytest.mark.slow
def test_the_average_and_the_network_are_both_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _config(tmp_path, BASE)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _die_at(patch, 7)
        train(load_config(path), command="test")
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["state"]
    assert not torch.equal(state["net"]["net.head.4.weight"], state["average"]["net.head.4.weight"])
    train(load_config(path), command="test")
    final = load_file(tmp_path / "out" / "model.safetensors")
    assert not torch.equal(final["head.4.weight"], state["average"]["net.head.4.weight"])
