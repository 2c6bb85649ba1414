"""Damaged files that `workflows` and `tasks` read for a user: exit 2 and the file's name, or the file is healed.

Whatever the damage, no traceback: 260 files. A mutation may leave a valid file; then it must be used.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from damage import damaged, other_values
from helpers_small import SMALL, compute, small_sweep
from loops import every
from PIL import Image
from typer.testing import CliRunner

from defense.errors import InvalidInput, PuregridError
from tasks.cifar_c import CIFAR10_C, CifarC
from tasks.corruptions.weather import FROST_FILES, Photographs
from tasks.datasets import Cifar10Config, FolderConfig
from workflows.cli import app
from workflows.grid.load import load_sweep
from workflows.planning.plan import make_plan
from workflows.regression.baselines import from_text, to_text
from workflows.regression.snapshots import of_results
from workflows.results.reader import Results
from workflows.store import Store
from workflows.training import checkpoint
from workflows.training.load import load_config
from workflows.training.run import _finished

CONFIGS = Path(__file__).parents[2] / "workflows" / "configs"


def puregrid(*words: str | Path) -> tuple[int, str]:
    """Exit status and messages of the command line; a traceback is an exception here."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


@pytest.mark.slow
@pytest.mark.nightly
@every("seed", range(60))
def test_a_damaged_sweep_file(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "s.yaml"
    if seed % 2:
        path.write_bytes(damaged(SMALL.encode(), seed // 2))
    else:
        path.write_text(yaml.safe_dump(other_values(yaml.safe_load(SMALL), seed)))
    status, said = puregrid("plan", path, "--store", tmp_path / "store", "--no-preflight")
    assert status == 0 or (status == 2 and said.startswith("error: ") and str(path) in said), said


@pytest.mark.slow
@every("seed", range(40))
def test_a_damaged_training_config(tmp_path: Path, seed: int) -> None:
    names = sorted(CONFIGS.glob("digits-*.yaml"))
    good, path = names[seed % len(names)].read_text(), tmp_path / "c.yaml"
    if seed % 2:
        path.write_bytes(damaged(good.encode(), seed // 2))
    else:
        path.write_text(yaml.safe_dump(other_values(yaml.safe_load(good), seed)))
    try:
        load_config(path).data_config("train")
    except InvalidInput:
        status, said = puregrid("train", path)
        assert status == 2 and said.startswith("error: "), said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a small sweep."""
    folder = tmp_path_factory.mktemp("finished")
    sweep = small_sweep(folder)
    from workflows.results.records import record_sweep

    store = Store(str(folder / "store"))
    record_sweep(sweep, make_plan(sweep), store)
    compute(sweep, store.uri)
    (folder / "baseline.json").write_text(to_text(of_results(Results(store, sweep))))
    return folder


@pytest.mark.slow
@every("seed", range(40))
def test_a_damaged_baseline(finished: Path, tmp_path: Path, seed: int) -> None:
    good, path = (finished / "baseline.json").read_text(), tmp_path / "b.json"
    if seed % 2:
        path.write_bytes(damaged(good.encode(), seed // 2))
    else:
        path.write_text(json.dumps(other_values(json.loads(good), seed)))
    status, said = puregrid("compare", finished / "store", path)
    assert status == 0 or (status == 2 and str(path) in said), said
    try:
        from_text(path.read_text(errors="replace"), str(path))
    except InvalidInput:
        assert status == 2
    else:
        assert status == 0 or "no cell" in said or "sweep" in said, said


def _records(store: Path) -> dict[str, Path]:
    """A file of each kind of record that puregrid keeps of its own."""
    sweep = next(path for path in (store / "sweeps").iterdir() if path.is_dir())
    return {
        "latest": next((store / "sweeps").glob("latest-*.json")),
        "spec": min((store / "specs").glob("*.json")),
        "plan": sweep / "plan.json",
        "commit": min((store / "commits").rglob("*.json")),
        "run": sweep / "runs" / "20260101T000000-abcdef.json",
        "forecast": sweep / "forecast.json",
        "failure": sweep / "failures" / "0123456789abcdef-0000000-0123456789.json",
    }


KINDS = ("latest", "spec", "plan", "commit", "run", "forecast", "failure")
RUN = {"run": "x", "purpose": "run", "started": "2026-01-01T00:00:00+00:00", "driver": "here", "gpus_per_worker": 0.0}
OLD = {
    "run": {
        **RUN,
        "updated": "2026-01-01T00:00:00+00:00",
        "to_compute": 1,
        "state": "running",
        "alive": 1,
        "done": 0,
    },
    "forecast": {"units": 1, "workers": 1, "wall_seconds": 1.0, "costs": []},
    "failure": {"unit": "u", "attempts": 3, "error": "e", "traceback": "", "final": False},
}


# Three of six seeds each, so that every kind of damage is done to three kinds of record or four.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        pytest.param(kind, (number + i) % 6, marks=pytest.mark.nightly if i else pytest.mark.slow)
        for number, kind in enumerate(KINDS)
        for i in range(3)
    ],
)
def test_a_damaged_record_of_puregrid_itself(finished: Path, tmp_path: Path, kind: str, seed: int) -> None:
    """What a run writes anew never stops one; what is believed is refused by name."""
    shutil.copytree(finished, tmp_path / "copy")
    folder, store = tmp_path / "copy", tmp_path / "copy" / "store"
    path = _records(store)[kind]
    if kind in OLD:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(OLD[kind]))
        chunk = min((store / "commits").rglob("*.json"))  # something must be missing for it to be looked at
        chunk.unlink()
    good = path.read_bytes()
    if seed % 2:
        path.write_bytes(damaged(good, seed))
    else:
        path.write_text(json.dumps(other_values(json.loads(good), seed)))
    sweep = folder / "small.yaml"
    for words in (
        ("plan", sweep, "--store", store, "--no-preflight"),
        ("status", sweep, "--store", store),
        ("tables", sweep, "--store", store),
        ("compare", store, folder / "baseline.json"),
    ):
        status, said = puregrid(*words)
        assert status in (0, 1, 2) and "Traceback" not in said, said
        if words[0] in ("plan", "status") and kind != "commit":
            assert status == 0, said
        if status:
            assert path.name in said or "damaged" in said or kind not in ("latest", "spec"), said
    if kind in ("latest", "spec", "plan"):
        from workflows.results.records import record_sweep

        loaded = load_sweep(sweep)
        record_sweep(loaded, make_plan(loaded), Store(str(store)))
        assert puregrid("compare", store, folder / "baseline.json")[0] == 0, "it is written anew by a run"


@every("seed", range(12))
def test_a_damaged_class_list(tmp_path: Path, seed: int) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        for number in range(2):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "test" / name / f"{number}.png")
    path = tmp_path / "classes.txt"
    path.write_bytes(damaged(b"cat n01 katze\ndog n02 hund\n# the end\n", seed))
    fields = {"root": str(tmp_path), "classes": str(path), "resize": 8, "crop": 8}
    try:
        found = FolderConfig.model_validate(fields).resolved(tmp_path)
    except InvalidInput:
        return
    assert len(found.class_names) == len({*found.class_names}) >= 1 and len(found.load())


@every("seed", range(12))
def test_damaged_cifar_batches(tmp_path: Path, seed: int) -> None:
    """They are compared with the published md5 before a byte of them is unpickled."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    chance = random.Random(seed)
    for name in ("test_batch", "batches.meta"):
        if chance.random() < 0.2:
            (folder / name).mkdir()
        elif chance.random() < 0.9:
            (folder / name).write_bytes(damaged(b"\x80\x05}\x94(\x8c\x04data\x94K\x01u." * 20, seed))
    with pytest.raises(InvalidInput, match="is missing there or damaged"):
        Cifar10Config(root=str(tmp_path)).resolved(tmp_path)


def _npy(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@every("seed", range(24))
def test_damaged_arrays_of_a_release(tmp_path: Path, seed: int) -> None:
    """Refused for their md5; and where that says that they are right, for what they hold."""
    whole = _npy(np.zeros((50, 32, 32, 3), np.uint8))
    bad = damaged(whole, seed) if seed % 3 else damaged(whole[:128], seed // 3) + whole[128:]
    (tmp_path / "fog.npy").write_bytes(bad)
    (tmp_path / "labels.npy").write_bytes(_npy(np.zeros(50, np.uint8)))
    with pytest.raises(InvalidInput, match=r"fog\.npy"):
        CifarC(tmp_path, CIFAR10_C).read("fog", 1, [0])
    believed = replace(CIFAR10_C, images=10, files={"fog": hashlib.md5(bad).hexdigest()})
    try:
        read = CifarC(tmp_path, believed).read("fog", 1, [0])
    except InvalidInput as error:
        assert "fog.npy" in str(error)
    else:
        assert read.images.shape == (1, 3, 32, 32)


@every("seed", range(24))
def test_a_damaged_tar_of_a_release(tmp_path: Path, seed: int) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("labels", "fog"):
            data = _npy(np.zeros(4, np.uint8))
            entry = tarfile.TarInfo(f"CIFAR-10-C/{name}.npy")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    good = file.getvalue()
    bad = damaged(good, seed) if seed % 2 else damaged(good[:600], seed // 2) + good[600:]
    (tmp_path / "CIFAR-10-C.tar").write_bytes(bad)
    with pytest.raises(InvalidInput, match=r"CIFAR-10-C\.tar|fog\.npy"):
        CifarC(tmp_path, CIFAR10_C).read("fog", 1, [0])


@every("seed", range(12))
def test_damaged_photographs_of_frost(tmp_path: Path, seed: int) -> None:
    file = io.BytesIO()
    kind = ("PNG", "JPEG", "TIFF", "GIF")[seed % 4]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(file, kind)
    for name in FROST_FILES:
        (tmp_path / name).write_bytes(file.getvalue())
    (tmp_path / FROST_FILES[2]).write_bytes(damaged(file.getvalue(), seed))
    try:
        assert len(Photographs.read(tmp_path).pixels) == len(FROST_FILES)
    except InvalidInput as error:
        assert FROST_FILES[2] in str(error)


@every("seed", range(24))
def test_damaged_files_of_a_training(tmp_path: Path, seed: int) -> None:
    identity = {"config": {"dataset": {"dataset": "digits"}, "steps": 3}, "data": {"train": "abc"}}
    (tmp_path / "w.bin").write_bytes(b"weights")
    card = {**identity, "sha256": {"w.bin": hashlib.sha256(b"weights").hexdigest()}}
    text = yaml.safe_dump(other_values(card, seed)).encode()
    (tmp_path / "card.yaml").write_bytes(damaged(yaml.safe_dump(card).encode(), seed // 2) if seed % 2 else text)
    try:
        _finished(tmp_path, identity["config"], identity["data"])
    except InvalidInput as error:
        assert str(tmp_path) in str(error)
    state = {"step": 1, "net": {"weight": torch.zeros(2, 2)}}
    checkpoint.write(tmp_path, identity, state)
    path = tmp_path / checkpoint.CHECKPOINT
    path.write_bytes(damaged(path.read_bytes(), seed))
    try:
        assert checkpoint.read(tmp_path, identity)
    except InvalidInput as error:
        assert checkpoint.CHECKPOINT in str(error) and "--force" in str(error)


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow
def test_a_damaged_artifact_of_an_alias(finished: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("small", artifact_location=str(tmp_path / "artifacts"))
    run = client.create_run(experiment).info.run_id
    good = (finished / "baseline.json").read_bytes()
    client.log_text(run, good.decode(), "baselines/champion.json")
    client.set_tag(run, "puregrid.baseline.champion", "2026-01-01")
    words = ("compare", finished / "store", "mlflow:small/champion")
    assert puregrid(*words, "--mlflow", uri)[0] == 0
    (path,) = (tmp_path / "artifacts").rglob("champion.json")
    for seed in range(6):
        path.write_bytes(damaged(good, 6 * seed + (0, 2, 3, 4)[seed % 4]))
        status, said = puregrid(*words, "--mlflow", uri)
        assert status == 2 and "mlflow:small/champion" in said, said
    path.unlink()
    status, said = puregrid(*words, "--mlflow", uri)
    assert status == 2 and "has no artifact baselines/champion.json" in said, said


def test_puregrid_errors_are_ours() -> None:
    assert issubclass(InvalidInput, PuregridError)
