"""Every line of the tables in docs/accepted-weights.md, executed on a file that is made here."""

from __future__ import annotations

import argparse
import collections
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from weights import varied

from defense import ClassifierConfig, DiffusersConfig, InvalidInput
from defense.classifiers import CNNA, DigitsCNN
from defense.torchvision_cpu import allow_torchvision_import

allow_torchvision_import()
PAGE = Path(__file__).parents[2] / "docs" / "accepted-weights.md"
STEM = "diffusion_pytorch_model"


def tables() -> list[tuple[str, list[tuple[str, str]]]]:
    """Title and rows of each table, in order."""
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 2 or set(cells[0]) <= set("-"):
            continue
        if cells[0] in ("accepted", "refused"):
            found.append((cells[0], []))
        else:
            found[-1][1].append((cells[0], cells[1]))
    return found


STATE = varied(DigitsCNN()).state_dict()
Content = dict[str, Any]


def under(prefix: str, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in (STATE if tensors is None else tensors).items()}


def half(factor: float = 0.5) -> dict[str, Tensor]:
    return {name: value * factor for name, value in STATE.items()}


CONTAINERS = ("state_dict", "model", "net", "model_state_dict", "ema", "state_dict_ema", "module", "mine")
PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "ema_model.",
    "0.",
    "mine.",
    "net._orig_mod.module.",
    "module.net.",
)
BESIDE = {
    "epoch": 3,
    "host": "here",
    "acc": np.float64(91.0),
    "curve": np.arange(3.0),
    "args": argparse.Namespace(lr=0.1, out=Path("runs")),
    "order": collections.OrderedDict(a=1),
    "meters": collections.defaultdict(list, a=[1]),
    "counts": collections.Counter("ab"),
    "tags": {"a", "b"},
}
CHECKPOINTS: dict[str, list[tuple[Content, dict[str, Any]]]] = {
    "plain state dict": [(STATE, {})],
    "container": [*(({name: STATE}, {}) for name in CONTAINERS), ({"a": {"b": {"c": {"d": STATE}}}}, {})],
    "prefix": [(under(prefix), {}) for prefix in PREFIXES],
    "torch's AveragedModel": [(torch.optim.swa_utils.AveragedModel(varied(DigitsCNN())).state_dict(), {})],
    "without batch counters": [({k: v for k, v in STATE.items() if "num_batches" not in k}, {})],
    "plain objects beside the weights": [({"net": STATE, **BESIDE}, {})],
    "two sets of weights, one named": [
        ({"state_dict": half(), "state_dict_ema": STATE}, {"weights_key": "state_dict_ema"}),
        ({"model": under("module.", half()), "ema": under("module.")}, {"weights_key": "ema.module"}),
        (under("net.") | under("ema.", half()), {"weights_key": "net"}),
        (STATE | under("ema.", half()), {"weights_key": "."}),
    ],
    "two equal sets of weights": [({"model": STATE, "ema": dict(STATE)}, {})],
    "normalisation inside, as in the config": [
        (under("1.") | {"0.mean": torch.tensor([0.3]), "0.std": torch.tensor([0.4])}, {}),
        (under("net.") | {"mu": torch.full((1, 1), 0.5), "sigma": torch.ones(1)}, {"mean": (0.5,), "std": (1.0,)}),
        ({"net": STATE, "mean": [0.3], "std": [0.4]}, {}),
    ],
    "network behind a layer without tensors, confirmed": [(under("1."), {"weights_key": "1"})],
}  # fmt: skip


def load(path: Path, **fields: Any) -> nn.Module:
    net: Any = ClassifierConfig(classifier="digits-cnn", weights=str(path), **fields).resolved(Path()).build()
    return net  # type: ignore[no-any-return]


def assert_is_it(path: Path, expected: dict[str, Tensor] = STATE, **fields: Any) -> None:
    net: Any = load(path, **fields)
    loaded = net.net.state_dict()
    for name, value in expected.items():
        if "num_batches" not in name:
            assert torch.equal(loaded[name], value.float())


@pytest.mark.parametrize("line", [name for name, _ in tables()[0][1]])
def test_an_accepted_checkpoint(tmp_path: Path, line: str) -> None:
    path = tmp_path / "net.pth"
    if line == "torch file from before 1.6":
        torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=False)
        assert_is_it(path)
    elif line == "safetensors":
        for prefix in PREFIXES:
            save_file(under(prefix), tmp_path / "net.safetensors")
            assert_is_it(tmp_path / "net.safetensors")
    elif line == "float16, bfloat16, float64":
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            cast = {name: value.to(dtype) for name, value in STATE.items()}
            torch.save(cast, path)
            assert_is_it(path, cast)
    else:
        for suffix in ("pth", "pt", "th", "ckpt", "bin"):
            for content, fields in CHECKPOINTS[line]:
                torch.save(content, path.with_suffix(f".{suffix}"))
                assert_is_it(path.with_suffix(f".{suffix}"), **fields)
            if line != "plain state dict":
                break


def spoiled(line: str, path: Path) -> None:
    """Write the file of a line of the second table."""
    contents: dict[str, Any] = {
        "two sets of weights that differ": {"model": STATE, "ema": half()},
        "another normalisation inside": under("1.") | {"0.mean": torch.tensor([0.1]), "0.std": torch.tensor([0.4])},
        "network behind a layer without tensors": under("1."),
        "another architecture": CNNA().state_dict(),
        "tensors that no layer takes": STATE | {"tail.weight": torch.ones(3)},
        "NaN or infinite values": STATE | {"head.4.bias": torch.full((10,), float("inf"))},
        "quantised weights": {name: value.to(torch.int8) for name, value in STATE.items()},
        "pickled network": {"net": varied(DigitsCNN())},
    }
    texts = {
        "empty file": b"",
        "pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
        "web page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    }
    if line in contents:
        torch.save(contents[line], path)
    elif line in texts:
        path.write_bytes(texts[line])
    elif line == "TorchScript":
        torch.jit.trace(varied(DigitsCNN()), torch.zeros(1, 1, 8, 8)).save(str(path))  # type: ignore[no-untyped-call]
    else:
        torch.save(STATE, path)
        content = bytearray(path.read_bytes())
        if line == "half a file":
            content = content[: len(content) // 2]
        else:
            assert line == "flipped bit in a torch file"
            content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize(("line", "message"), tables()[1][1])
def test_a_refused_checkpoint(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "net.pth"
    spoiled(line, path)
    with pytest.raises(InvalidInput) as caught:
        load(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


class Folder:
    """A diffusers folder that is changed, line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / f"{STEM}.safetensors"

    def net(self) -> Any:
        from diffusers import UNet2DModel

        return UNet2DModel.from_pretrained(self.path)

    def scheduler(self, name: str = "DDPMScheduler", at: str = "", **fields: Any) -> None:
        import diffusers

        getattr(diffusers, name)(**fields).save_pretrained(self.path / at)

    def change(self, file: str, **fields: Any) -> None:
        path = self.path / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    def resolved(self, inside: str = "", **fields: Any) -> DiffusersConfig:
        return DiffusersConfig(path=str(self.path / inside), **fields).resolved(Path())

    def pipeline(self) -> None:
        from diffusers import DDPMPipeline, DDPMScheduler

        DDPMPipeline(self.net(), DDPMScheduler()).save_pretrained(self.path / "pipe")


def wide_unet(folder: Folder) -> None:
    from diffusers import UNet2DModel

    config = {
        key: value for key, value in json.loads((folder.path / "config.json").read_text()).items() if key[0] != "_"
    }
    UNet2DModel(**config | {"out_channels": 2 * config["in_channels"]}).save_pretrained(folder.path)


def moved(folder: Folder, suffix: str, save: Callable[[Any, Path], Any]) -> None:
    state = load_file(folder.weights)
    folder.weights.unlink()
    save(state, folder.path / f"{STEM}.{suffix}")


def shards(folder: Folder) -> None:
    net = folder.net()
    folder.weights.unlink()
    net.save_pretrained(folder.path, max_shard_size="20KB")
    assert len(list(folder.path.glob("*-of-*"))) > 1


def average(folder: Folder) -> None:
    from diffusers import UNet2DModel
    from diffusers.training_utils import EMAModel

    net = folder.net()
    EMAModel(net.parameters(), model_cls=UNet2DModel, model_config=net.config).save_pretrained(folder.path)


def old_names(folder: Folder) -> None:
    state = load_file(folder.weights)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    save_file(state, folder.weights)


def variants(folder: Folder) -> None:
    state = load_file(folder.weights)
    folder.weights.unlink()
    for variant, factor in (("fp16", 1.0), ("non_ema", 0.5)):
        save_file({k: (v * factor).half() for k, v in state.items()}, folder.path / f"{STEM}.{variant}.safetensors")


def early(folder: Folder) -> None:
    folder.scheduler()
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPM"]}
    (folder.path / "model_index.json").write_text(json.dumps(index))


NAMED = {"schedule": "linear-1000"}
# How the folder is made, where it is, fields of the config, and the name of the schedule.
FOLDERS: dict[str, tuple[Callable[[Folder], Any], str, dict[str, Any], str]] = {
    "network folder": (lambda f: None, "", NAMED, "linear-1000"),
    "pipeline": (lambda f: f.pipeline(), "pipe", {}, "linear-1000"),
    "early repository": (early, "", {}, "linear-1000"),
    "weights as .bin": (lambda f: moved(f, "bin", torch.save), "", NAMED, "linear-1000"),
    "fp16 variant": (
        lambda f: moved(f, "fp16.safetensors", lambda s, p: save_file({k: v.half() for k, v in s.items()}, p)),
        *("", NAMED, "linear-1000"),
    ),
    "one of several variants": (variants, "", {**NAMED, "variant": "fp16"}, "linear-1000"),
    "shards": (shards, "", NAMED, "linear-1000"),
    "average of diffusers' EMAModel": (average, "", NAMED, "linear-1000"),
    "attention names from before diffusers 0.17": (old_names, "", NAMED, "linear-1000"),
    "linear": (lambda f: f.scheduler(num_train_timesteps=50, beta_end=0.3), "", {}, "linear-50@"),
    "scaled_linear": (lambda f: f.scheduler(beta_schedule="scaled_linear"), "", {}, "scaled_linear-1000@"),
    "squaredcos_cap_v2": (
        lambda f: f.scheduler(beta_schedule="squaredcos_cap_v2"),
        "",
        {},
        "squaredcos_cap_v2-1000@",
    ),
    "sigmoid": (lambda f: f.scheduler(beta_schedule="sigmoid"), "", {}, "sigmoid-1000@"),
    "trained_betas": (
        lambda f: f.scheduler(trained_betas=[0.1, 0.2, 0.3] * 4, num_train_timesteps=12),
        *("", {}, "trained_betas-12@"),
    ),
    "zero terminal SNR": (lambda f: f.scheduler(rescale_betas_zero_snr=True), "", {}, "linear_zero_snr-999@"),
    "x0 and v prediction": (lambda f: f.scheduler(prediction_type="v_prediction"), "", {}, "linear-1000"),
    "learned variance": (
        lambda f: (wide_unet(f), f.scheduler(variance_type="learned_range")),
        *("", {}, "linear-1000"),
    ),
}


@pytest.mark.parametrize("line", [name for name, _ in tables()[2][1]])
def test_an_accepted_folder(unet_folder: Path, line: str) -> None:
    folder = Folder(unet_folder)
    expected = load_file(folder.weights)
    make, inside, fields, schedule = FOLDERS[line]
    make(folder)
    config = folder.resolved(inside, **fields)
    denoiser = config.build()
    assert denoiser.schedule.name == config.schedule and denoiser.schedule.name.startswith(schedule)
    tolerance = 1e-3 if "variant" in line else 0
    if line == "learned variance":
        assert config.learned_variance and denoiser.with_variance(torch.zeros(1, 1, 8, 8), 5)[1] is not None
        return
    assert denoiser.prediction == ("v" if line == "x0 and v prediction" else "eps")
    for name, value in denoiser.net.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)


def broken_index(folder: Folder) -> None:
    shards(folder)
    index = folder.path / f"{STEM}.safetensors.index.json"
    said = json.loads(index.read_text())
    first = sorted(said["weight_map"])[0]
    del said["weight_map"][first]
    index.write_text(json.dumps(said))


def latents(folder: Folder) -> None:
    early(folder)
    folder.change("model_index.json", _class_name="LDMPipeline", vqvae=["diffusers", "VQModel"])


def without_size(folder: Folder) -> None:
    file = folder.path / "config.json"
    said = json.loads(file.read_text())
    del said["sample_size"]
    file.write_text(json.dumps(said))


def with_scheduler(**fields: Any) -> Callable[[Folder], None]:
    def make(folder: Folder) -> None:
        folder.scheduler()
        folder.change("scheduler_config.json", **fields)

    return make


REFUSED: dict[str, tuple[Callable[[Folder], Any], dict[str, Any]]] = {
    "no scheduler and no schedule named": (lambda f: None, {}),
    "a schedule named that is not the folder's": (with_scheduler(beta_end=0.03), NAMED),
    **{
        name: (lambda f, name=name: f.scheduler(name), {})  # type: ignore[misc]
        for name in ("ScoreSdeVeScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler")
    },
    "classes told by something else than their number": (
        lambda f: f.change("config.json", class_embed_type="timestep"),
        NAMED,
    ),
    "other network": (lambda f: f.change("config.json", _class_name="UNet2DConditionModel"), NAMED),
    "pipeline on latents": (latents, {}),
    "unknown field": (with_scheduler(beta_strat=0.1), {}),
    "dynamic thresholding": (with_scheduler(thresholding=True), {}),
    "several variants, none named": (variants, NAMED),
    "index that is not of its shards": (broken_index, NAMED),
    "broken JSON": (lambda f: (f.path / "scheduler_config.json").write_text('{"beta_start": '), {}),
    "absent size of images": (without_size, NAMED),
}


@pytest.mark.parametrize(("line", "message"), tables()[3][1])
def test_a_refused_folder(unet_folder: Path, line: str, message: str) -> None:
    folder = Folder(unet_folder)
    make, fields = REFUSED[line]
    make(folder)
    with pytest.raises(InvalidInput) as caught:
        folder.resolved(**fields).build()
    assert message in str(caught.value) and str(unet_folder) in str(caught.value)


def test_every_line_that_is_known_here_is_in_the_page() -> None:
    assert [kind for kind, _ in tables()] == ["accepted", "refused"] * 2
    assert set(CHECKPOINTS) <= {name for name, _ in tables()[0][1]}
    assert set(FOLDERS) == {name for name, _ in tables()[2][1]}
    assert set(REFUSED) == {name for name, _ in tables()[3][1]}
