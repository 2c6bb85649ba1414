"""Damaged files of every kind that `defense` reads: an InvalidInput that names the file, or the right network.

A seeded mutator makes each file from a good one. A mutation that changes a value may leave a valid file: then what is
loaded must be used without an error. One that cannot leave a valid file must be refused.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import every
from safetensors.torch import load_file, save_file
from torch import nn
from weights import varied

from defense import ClassifierConfig, DiffusersConfig, InvalidInput
from defense.classifiers import DigitsCNN
from defense.denoisers import ScoreSDEConfig
from defense.denoisers.song_unet import SongUNet
from defense.energy import DigitsEnergy, EnergyConfig

STEM = "diffusion_pytorch_model"
SEEDS = range(30)
LINEAR = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
    "clip_sample": True,
}


def torn(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def holes(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    length = chance.randrange(1, 200)
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def flipped(data: bytes, chance: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(chance.randrange(1, 9)):
        found[chance.randrange(min(len(found), 2000))] ^= 1 << chance.randrange(8)
    return bytes(found)


def swapped(data: bytes, chance: random.Random) -> bytes:
    one, two = sorted(chance.randrange(len(data)) for _ in range(2))
    return data[two:] + data[one:two] + data[:one]


def cut_out(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] + data[start + chance.randrange(1, 100) :]


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [torn, holes, flipped, swapped, cut_out]
ODD: list[Any] = [None, -1, 0, 3, 1.5, "x", "", [], [1], {}, True, float("nan"), "8", [8, "8"]]


def mutated_config(text: str, chance: random.Random) -> str:
    """A config with a field of another value, without one, or with one more."""
    said: dict[str, Any] = json.loads(text)
    for _ in range(chance.randrange(1, 3)):
        key = chance.choice(sorted(said))
        kind = chance.randrange(5)
        if kind == 0:
            del said[key]
        elif kind == 1:
            said[key[::-1]] = said[key]
        elif kind == 2 and isinstance(said[key], list) and said[key]:
            said[key] = [*said[key][:-1], chance.choice(ODD)]
        else:
            said[key] = chance.choice(ODD)
    return json.dumps(said)


def classifier(folder: Path, name: str) -> nn.Module:
    return ClassifierConfig(classifier="digits-cnn", weights=str(folder / name)).resolved(Path()).build()


def energy(folder: Path, name: str) -> nn.Module:
    return EnergyConfig(energy="digits-energy", weights=str(folder / name)).resolved(Path()).build()


SONG: dict[str, Any] = {
    **{"image_size": 8, "channels": 1, "nf": 8},
    **{"ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)},
}


def song(folder: Path, name: str) -> nn.Module:
    return ScoreSDEConfig(weights=str(folder / name), **SONG).resolved(Path()).build()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    net = varied(DigitsCNN()).state_dict()
    torch.save({"state_dict": net, "epoch": 3}, folder / "classifier.pth")
    torch.save(net, folder / "classifier-legacy.pth", _use_new_zipfile_serialization=False)
    save_file(net, folder / "classifier.safetensors")
    torch.save({"model": varied(DigitsEnergy()).state_dict()}, folder / "energy.pth")
    unet = SongUNet(8, 1, 8, (1, 2), 1, (4,))
    parameters = [value for _, value in varied(unet).named_parameters()]
    state = {"model": unet.state_dict(), "ema": {"shadow_params": parameters, "decay": 0.999}, "step": 3}
    torch.save(state, folder / "song.pth")
    return folder


FILES: list[tuple[str, Callable[[Path, str], nn.Module], tuple[int, ...]]] = [
    ("classifier.pth", classifier, (2, 1, 8, 8)),
    ("classifier-legacy.pth", classifier, (2, 1, 8, 8)),
    ("classifier.safetensors", classifier, (2, 1, 8, 8)),
    ("energy.pth", energy, (2, 1, 8, 8)),
]


@pytest.mark.slow
@every("seed", SEEDS)
@every(("name", "load", "shape"), FILES)
def test_a_damaged_checkpoint(
    good: Path, tmp_path: Path, name: str, load: Callable[[Path, str], nn.Module], shape: tuple[int, ...], seed: int
) -> None:
    chance = random.Random(f"{name} {seed}")
    before = (good / name).read_bytes()
    mutation = MUTATIONS[seed % len(MUTATIONS)]
    after = mutation(before, chance)
    (tmp_path / name).write_bytes(after)
    try:
        net = load(tmp_path, name)
    except InvalidInput as error:
        assert str(tmp_path / name) in str(error) and "\n" not in str(error).rstrip().splitlines()[0]
        return
    assert mutation is not torn and mutation is not swapped, "half a file was taken for a whole one"
    with torch.no_grad():
        assert torch.isfinite(net(torch.zeros(shape))).all()


@every("seed", range(10))
def test_one_flipped_bit_in_a_torch_file_is_found(good: Path, tmp_path: Path, seed: int) -> None:
    content = bytearray((good / "classifier.pth").read_bytes())
    at = random.Random(seed).randrange(len(content) // 4, 3 * len(content) // 4)
    content[at] ^= 4
    (tmp_path / "classifier.pth").write_bytes(content)
    torch.load(tmp_path / "classifier.pth", weights_only=True)  # which does not look
    with pytest.raises(InvalidInput, match="is not what its CRC-32 says"):
        classifier(tmp_path, "classifier.pth")


@pytest.mark.slow
@every("seed", SEEDS)
def test_a_damaged_denoiser_checkpoint(good: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    mutation = MUTATIONS[seed % len(MUTATIONS)]
    (tmp_path / "song.pth").write_bytes(mutation((good / "song.pth").read_bytes(), chance))
    try:
        denoiser: Any = song(tmp_path, "song.pth")
    except InvalidInput as error:
        assert "song.pth" in str(error)
        return
    assert mutation is not torn and mutation is not swapped
    with torch.no_grad():
        assert torch.isfinite(denoiser(torch.zeros(1, 1, 8, 8), 10)).all()


def test_the_good_files_load(good: Path, unet_folder: Path) -> None:
    for name, load, shape in FILES:
        assert torch.isfinite(load(good, name)(torch.zeros(shape))).all()
    song(good, "song.pth")
    (unet_folder / "scheduler_config.json").write_text(json.dumps(LINEAR))
    assert DiffusersConfig(path=str(unet_folder)).resolved(Path()).build().schedule.name == "linear-1000"


@pytest.mark.slow
@every("seed", range(90))
def test_a_damaged_denoiser_folder(unet_folder: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    unet_folder = Path(shutil.copytree(unet_folder, tmp_path / "spoilt"))
    (unet_folder / "scheduler_config.json").write_text(json.dumps(LINEAR))
    name = ["config.json", "scheduler_config.json", f"{STEM}.safetensors"][seed % 3]
    file = unet_folder / name
    whole = False
    if file.suffix == ".json" and seed % 2:
        file.write_text(mutated_config(file.read_text(), chance))
    else:
        mutation = MUTATIONS[(seed // 6) % len(MUTATIONS)]
        whole = mutation in (torn, swapped)
        file.write_bytes(mutation(file.read_bytes(), chance))
    try:
        denoiser = DiffusersConfig(path=str(unet_folder)).resolved(Path()).build()
    except InvalidInput as error:
        assert str(unet_folder) in str(error)
        return
    assert not whole, "half a file was taken for a whole one"
    assert denoiser.image_shape is not None
    with torch.no_grad():
        assert torch.isfinite(denoiser(torch.zeros(1, *denoiser.image_shape), 10)).all()


@every("seed", range(12))
def test_tensors_of_a_good_file_that_were_changed(good: Path, tmp_path: Path, seed: int) -> None:
    """Names, shapes and values by hand: a file that is whole and says something else."""
    chance = random.Random(seed)
    state = load_file(good / "classifier.safetensors")
    name = chance.choice([key for key in sorted(state) if "num_batches" not in key])
    tensor = state[name]
    changes: list[tuple[str, Any]] = [
        ("missing in the file", None),
        ("of another shape", torch.cat([tensor, tensor])),
        ("NaN or infinite values", torch.full_like(tensor, float("nan"))),
        (r"hold \S+ as int32", tensor.int()),
    ]
    message, changed = changes[seed % len(changes)]
    if changed is None:
        del state[name]
    else:
        state[name] = changed
    save_file(state, tmp_path / "changed.safetensors")
    with pytest.raises(InvalidInput, match=message) as caught:
        classifier(tmp_path, "changed.safetensors")
    assert name in str(caught.value)


@pytest.mark.parametrize("place", ["config.json", "scheduler_config.json", f"{STEM}.safetensors"])
def test_a_folder_in_the_place_of_a_file(unet_folder: Path, place: str) -> None:
    file = unet_folder / place
    file.unlink(missing_ok=True)
    file.mkdir()
    with pytest.raises(InvalidInput):
        DiffusersConfig(path=str(unet_folder)).resolved(Path()).build()
    shutil.rmtree(unet_folder)
    with pytest.raises(InvalidInput, match=r"holds no config\.json"):
        DiffusersConfig(path=str(unet_folder)).resolved(Path())
