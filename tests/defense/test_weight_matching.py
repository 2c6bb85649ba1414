"""A network's weights are found whatever is around them, and what is not plain is refused by name."""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from weights import varied

from defense import CLASSIFIERS, ClassifierConfig, InvalidInput
from defense.checkpoints import load_weights
from defense.classifiers import CNNA, DigitsCNN, ResNetCIFAR
from defense.weight_files import read_sets

CONTAINERS = ("state_dict", "model", "net", "model_state_dict", "ema", "state_dict_ema", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "ema_model.")
MEAN, STD = (0.3,), (0.4,)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return varied(DigitsCNN()).state_dict()


def config(path: Path, **fields: Any) -> ClassifierConfig:
    return ClassifierConfig(classifier="digits-cnn", weights=str(path), **fields).resolved(Path())


def loaded(path: Path, **fields: Any) -> dict[str, Tensor]:
    net: Any = config(path, **fields).build()
    tensors: dict[str, Tensor] = net.net.state_dict()
    return tensors


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def save(content: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


class TestPlaces:
    @pytest.mark.parametrize("container", CONTAINERS)
    def test_every_container(self, state: dict[str, Tensor], tmp_path: Path, container: str) -> None:
        path = save(
            {container: state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
            tmp_path / "c.pth",
        )
        assert_same(loaded(path), state)

    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    @pytest.mark.parametrize("prefix", [*PREFIXES, "0.", "encoder.backbone."])
    def test_every_prefix(self, state: dict[str, Tensor], tmp_path: Path, prefix: str, suffix: str) -> None:
        path = save({prefix + name: value for name, value in state.items()}, tmp_path / f"p.{suffix}")
        assert_same(loaded(path), state)

    @pytest.mark.parametrize("pair", itertools.permutations(PREFIXES, 2), ids="".join)
    def test_two_prefixes_in_any_order(self, state: dict[str, Tensor], tmp_path: Path, pair: tuple[str, str]) -> None:
        path = save({"".join(pair) + name: value for name, value in state.items()}, tmp_path / "p.safetensors")
        assert_same(loaded(path), state)

    def test_a_container_in_a_container_and_three_prefixes(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        inner = {f"module._orig_mod.0.{name}": value for name, value in state.items()}
        path = save({"checkpoint": {"model": inner, "loss": torch.tensor(0.3)}}, tmp_path / "deep.pth")
        assert_same(loaded(path), state)

    def test_the_average_of_torch_with_its_counter(self, tmp_path: Path) -> None:
        net = varied(DigitsCNN())
        average = torch.optim.swa_utils.AveragedModel(net)
        assert_same(loaded(save(average.state_dict(), tmp_path / "swa.pth")), net.state_dict())

    def test_a_network_in_a_sequence_of_numbered_layers(self, tmp_path: Path) -> None:
        # Its own names are numbers too: "0.weight" of the file is not "0.weight" of the network.
        net = varied(CNNA())
        path = save({f"0.{name}": value for name, value in net.state_dict().items()}, tmp_path / "c.pth")
        assert_same(load_weights(CNNA(), path).state_dict(), net.state_dict())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_real_types_become_float32(
        self, state: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype
    ) -> None:
        other = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        expected = {name: value.float() if value.is_floating_point() else value for name, value in other.items()}
        assert_same(loaded(save(other, tmp_path / "h.safetensors")), expected)

    def test_the_content_decides_and_not_the_name(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        path = save(state, tmp_path / "model.safetensors")
        assert_same(loaded(path.rename(tmp_path / "model.pth")), state)


class TestTwoSets:
    @pytest.fixture
    def average(self) -> dict[str, Tensor]:
        return {name: value * 0.5 for name, value in varied(DigitsCNN()).state_dict().items()}

    @pytest.mark.parametrize(
        ("form", "keys"),
        [
            ("containers", ("state_dict", "state_dict_ema")),
            ("prefixes", ("online_model", "ema_model")),
            ("mixed", ("model.module", "ema.module")),
            ("top", (".", "ema")),
        ],
    )
    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_the_key_says_which_and_without_it_both_are_named(
        self,
        state: dict[str, Tensor],
        average: dict[str, Tensor],
        tmp_path: Path,
        form: str,
        keys: tuple[str, str],
        suffix: str,
    ) -> None:
        def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {prefix + name: value for name, value in tensors.items()}

        content: dict[str, Any] = {
            "containers": {"state_dict": state, "state_dict_ema": average},
            "prefixes": under("online_model.", state) | under("ema_model.", average) | {"step": torch.tensor(7)},
            "mixed": {"model": under("module.", state), "ema": under("module.", average)},
            "top": under("", state) | under("ema.", average),
        }[form]
        if suffix == "safetensors" and form in ("containers", "mixed"):
            content = {f"{place}.{name}": value for place, part in content.items() for name, value in part.items()}
        path = save(content, tmp_path / f"two.{suffix}")
        with pytest.raises(InvalidInput, match=r"hold 2 sets of weights .*differ: .*`weights_key`") as caught:
            loaded(path)
        assert all(repr(key) in str(caught.value) for key in keys)
        assert_same(loaded(path, weights_key=keys[0]), state)
        assert_same(loaded(path, weights_key=keys[1]), average)
        assert_same(loaded(path, weights_key=keys[1].partition(".")[0] or "."), average if keys[1] != "." else state)
        with pytest.raises(InvalidInput, match=r"weights_key 'teacher' names none .*: '"):
            loaded(path, weights_key="teacher")

    def test_equal_sets_need_no_key(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        assert_same(loaded(save({"model": state, "ema": dict(state)}, tmp_path / "same.pth")), state)

    def test_a_set_that_is_of_another_network_is_passed_over(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        path = save({"critic": CNNA().state_dict(), "net": state}, tmp_path / "gan.pth")
        assert_same(loaded(path), state)

    def test_the_key_is_in_the_id_and_left_out_where_there_is_none(
        self, state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        path = save({"model": state}, tmp_path / "m.pth")
        plain, keyed = config(path), config(path, weights_key="model")
        assert "weights_key" not in plain.identity() and keyed.identity()["weights_key"] == "model"
        assert plain.id != keyed.id

    def test_a_loader_of_its_own_that_does_not_look_at_the_key_is_refused_with_one(
        self, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def own(path: str | Path) -> nn.Module:
            net = DigitsCNN()
            net.load_state_dict(torch.load(path, weights_only=True))
            return net

        architecture = CLASSIFIERS.get("digits-cnn")
        mine = type(architecture)(build=DigitsCNN, image_shape=(1, 8, 8), classes=10, mean=MEAN, std=STD, load=own)
        monkeypatch.setitem(CLASSIFIERS._entries, "mine", mine)
        path = save(state, tmp_path / "m.pth")
        fields: dict[str, Any] = {"classifier": "mine", "weights": str(path)}
        net: Any = ClassifierConfig(**fields).resolved(Path()).build()
        assert_same(net.net.state_dict(), state)
        with pytest.raises(InvalidInput, match="weights_key 'model' has no effect on classifier 'mine'"):
            ClassifierConfig(**fields, weights_key="model").resolved(Path()).build()
        save({"wrapped": state}, path)  # its loader fails in its own way, which is an error of the file here
        with pytest.raises(InvalidInput, match=r"classifier weights .* cannot be read \(RuntimeError"):
            ClassifierConfig(**fields).resolved(Path()).build()


class TestNormalisation:
    @pytest.mark.parametrize(
        "names", [("0.mean", "0.std", "1."), ("mean", "std", "model."), ("norm.mu", "norm.sigma", "net.")]
    )
    @pytest.mark.parametrize("shape", [(1,), (1, 1, 1, 1)])
    def test_that_of_the_config_is_taken_and_another_refused(
        self, state: dict[str, Tensor], tmp_path: Path, names: tuple[str, str, str], shape: tuple[int, ...]
    ) -> None:
        mean, std, prefix = names
        network = {prefix + name: value for name, value in state.items()}
        same = {mean: torch.full(shape, 0.3), std: torch.full(shape, 0.4)}
        assert_same(loaded(save(network | same, tmp_path / "n.safetensors")), state)
        path = save({"state_dict": network | same | {std: torch.full(shape, 0.25)}}, tmp_path / "n.pth")
        with pytest.raises(
            InvalidInput, match=rf"normalisation of their own, .*{std} = \[0\.25\].*Write `std: \[0\.25\]`"
        ):
            loaded(path)
        assert_same(loaded(path, mean=MEAN, std=(0.25,)), state)
        with pytest.raises(InvalidInput, match="normalisation of their own"):
            loaded(path, weights_key="state_dict")

    def test_one_beside_the_weights_as_numbers_counts_too(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        stated = {"state_dict": state, "transform": {"mean": [0.1307], "std": (0.3081,)}}
        path = save(stated, tmp_path / "t.pth")
        with pytest.raises(InvalidInput, match=r"transform\.mean = \[0\.1307\]"):
            loaded(path)
        assert_same(loaded(path, mean=(0.1307,), std=(0.3081,)), state)

    def test_values_of_0_to_255_are_shown_in_units_of_0_to_1(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        path = save(state | {"mean": torch.tensor([127.5])}, tmp_path / "t.pth")
        with pytest.raises(InvalidInput, match=r"mean = \[127\.5\].*Write `mean: \[0\.5\]`"):
            loaded(path)

    def test_a_network_behind_a_layer_that_left_nothing_must_be_confirmed(
        self, state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        class Normalise(nn.Module):  # constants, not buffers: in no state dict
            def __init__(self) -> None:
                super().__init__()
                self.mean = torch.tensor(0.5)

        net = nn.Sequential(Normalise(), DigitsCNN())
        net[1].load_state_dict(state)
        path = save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "s.pth")
        with pytest.raises(
            InvalidInput, match=r"a sequence .*'state_dict\.module\.1'.* mean is \[0\.3\] and its std \[0\.4\]"
        ):
            loaded(path)
        assert_same(loaded(path, weights_key="state_dict.module.1"), state)

    def test_a_denoiser_or_an_energy_takes_none(self, tmp_path: Path) -> None:
        net = varied(DigitsCNN())
        path = save(net.state_dict() | {"mean": torch.tensor([0.3])}, tmp_path / "n.pth")
        with pytest.raises(InvalidInput, match=r"mean = \[0\.3\].*Have the weights saved without it"):
            load_weights(DigitsCNN(), path)


class TestOtherObjects:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_what_training_scripts_leave_beside_the_weights_loads(
        self, state: dict[str, Tensor], tmp_path: Path, legacy: bool
    ) -> None:
        content = {
            "net": collections.OrderedDict(state),
            "acc": np.float64(91.7),
            "epoch": np.int64(3),
            "done": np.bool_(True),
            "history": np.arange(3.0),
            "args": argparse.Namespace(lr=0.1, out=Path("runs"), seeds={1, 2}, sizes=np.array([1, 2])),
            "meters": collections.defaultdict(list, loss=[0.1, np.float32(0.2)]),
            "counts": collections.Counter("aab"),
            "crop": slice(0, 3),
        }
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
        assert_same(loaded(tmp_path / "c.pth"), state)

    def test_an_object_array_brings_in_nothing_that_is_not_allowed(self, tmp_path: Path) -> None:
        torch.save({"x": torch.ones(1), "y": np.array([sorted], dtype=object)}, tmp_path / "o.pth")
        with pytest.raises(InvalidInput, match="hold sorted, which only code can rebuild"):
            read_sets(tmp_path / "o.pth")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("wrapped", "legacy"), [(False, True), pytest.param(True, False, marks=pytest.mark.nightly)]
    )
    def test_a_pickled_network_is_refused_with_the_command_that_saves_its_weights(
        self, tmp_path: Path, wrapped: bool, legacy: bool
    ) -> None:
        net = varied(DigitsCNN())
        content = {"net": net, "epoch": 3} if wrapped else net
        torch.save(content, tmp_path / "whole.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(InvalidInput, match=r"hold defense\.\S+, which only code can rebuild") as caught:
            loaded(tmp_path / "whole.pth")
        message = str(caught.value)
        assert "add_safe_globals" not in message and "PyTorch 2.6" not in message and "trusted:" in message
        command = message.splitlines()[-1].strip().replace("python -c", f"{sys.executable} -c", 1)
        subprocess.run(
            command, shell=True, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
        )
        assert_same(loaded(tmp_path / "whole-weights.pth"), net.state_dict())

    @pytest.mark.nightly
    def test_a_torchscript_program_is_refused_with_its_command(self, tmp_path: Path) -> None:
        net = varied(DigitsCNN())
        torch.jit.trace(net, torch.zeros(1, 1, 8, 8)).save(str(tmp_path / "net.pt"))  # type: ignore[no-untyped-call]
        with pytest.raises(InvalidInput, match="are a TorchScript program, which holds code") as caught:
            loaded(tmp_path / "net.pt")
        command = str(caught.value).splitlines()[-1].strip().replace("python -c", f"{sys.executable} -c", 1)
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)
        assert_same(loaded(tmp_path / "net-weights.pth"), net.state_dict())

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "are an empty file"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "are a pointer of Git LFS.*`git lfs pull`"),
            (b"<!DOCTYPE html><html>", "are a web page"),
            (b"\x89HDF\r\n\x1a\n0000", "cannot be read as plain tensors"),
        ],
    )
    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_what_is_no_checkpoint_is_called_by_its_name(
        self, tmp_path: Path, content: bytes, message: str, suffix: str
    ) -> None:
        path = tmp_path / f"m.{suffix}"
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match=message if content[:1] != b"\x89" else "cannot be read") as caught:
            loaded(path)
        assert str(path) in str(caught.value)

    def test_a_folder_is_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"classifier weights .* cannot be read \(Is a directory\)"):
            loaded(tmp_path)


class TestWrongWeights:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_no_numbers_are_refused(
        self, state: dict[str, Tensor], tmp_path: Path, value: float
    ) -> None:
        weight = state["head.1.weight"].clone()
        weight[3, 7] = value
        path = save(state | {"head.1.weight": weight}, tmp_path / "n.pth")
        with pytest.raises(InvalidInput, match=r"NaN or infinite values \(head\.1\.weight, float32"):
            loaded(path)

    def test_a_value_beyond_float32_is_refused(self, state: dict[str, Tensor], tmp_path: Path) -> None:
        path = save(state | {"head.4.bias": torch.full((10,), 1e60, dtype=torch.float64)}, tmp_path / "n.pth")
        with pytest.raises(InvalidInput, match=r"infinite values \(head\.4\.bias, float64"):
            loaded(path)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
    def test_a_quantised_network_is_refused(
        self, state: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype
    ) -> None:
        path = save(state | {"head.1.weight": state["head.1.weight"].to(dtype)}, tmp_path / "q.pth")
        with pytest.raises(InvalidInput, match=rf"hold head\.1\.weight as {str(dtype)[6:]}"):
            loaded(path)

    @pytest.mark.parametrize(
        ("network", "name", "expected"),
        [
            (ResNetCIFAR(5), "resnet20", "'resnet32'"),
            (ResNetCIFAR(3, classes=100), "resnet20", "'resnet20-cifar100'"),
            (ResNetCIFAR(3, projected=True), "resnet20", "'resnet20-b'"),
            (CNNA(), "resnet4b", "'cnn-a'"),
        ],
    )
    def test_the_architecture_that_fits_is_named(
        self, tmp_path: Path, network: nn.Module, name: str, expected: str
    ) -> None:
        path = save({"model": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "w.pth")
        config = ClassifierConfig(classifier=name, weights=str(path)).resolved(Path())
        with pytest.raises(InvalidInput, match=rf"The file fits {re.escape(expected)}"):
            config.build()

    def test_what_is_missing_and_what_is_unknown_is_in_one_message(
        self, state: dict[str, Tensor], tmp_path: Path
    ) -> None:
        spoiled = {f"module.{name}": value for name, value in state.items() if not name.startswith("features.4")}
        spoiled |= {"module.tail.weight": torch.ones(2), "module.head.4.bias": torch.ones(7)}
        path = save(spoiled, tmp_path / "s.safetensors")
        with pytest.raises(
            InvalidInput,
            match=r"missing in the file: features\.4\.weight \[32\], features\.4\.bias \[32\], "
            r"features\.4\.running_mean \[32\], and 1 more; not in the network: module\.tail\.weight \[2\]; "
            r"of another shape: head\.4\.bias is \[7\] in the file and \[10\] in the network",
        ):
            loaded(path)
