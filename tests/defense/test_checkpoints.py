"""Checkpoints of every form are loaded, and torn, foreign and dangerous ones refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from weights import Touch, varied

from defense import InvalidInput
from defense.checkpoints import load_state_dict, load_weights, sha256_file
from defense.classifiers import DigitsCNN, ResNetCIFAR


class TestLoading:
    @pytest.fixture
    def net(self) -> nn.Module:
        return varied(ResNetCIFAR(3))

    @pytest.fixture
    def x(self) -> Tensor:
        return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    @pytest.mark.parametrize("form", ["plain", "state_dict", "module.", "both", "safetensors"])
    def test_every_form_of_a_checkpoint_gives_the_same_network(
        self, net: nn.Module, x: Tensor, tmp_path: Path, form: str
    ) -> None:
        path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.th")
        state = net.state_dict()
        if form in ("module.", "both"):
            state = {f"module.{key}": value for key, value in state.items()}
        if form == "safetensors":
            save_file(state, path)
        else:
            torch.save({"state_dict": state, "best_prec1": 91.7} if form in ("state_dict", "both") else state, path)
        loaded = load_weights(ResNetCIFAR(3), path)
        assert torch.equal(loaded(x), net(x)) and net(x).std() > 0
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())

    def test_a_checkpoint_without_batch_counters_loads(self, net: nn.Module, x: Tensor, tmp_path: Path) -> None:
        state = {key: value for key, value in net.state_dict().items() if "num_batches_tracked" not in key}
        torch.save(state, tmp_path / "old.th")
        assert torch.equal(load_weights(ResNetCIFAR(3), tmp_path / "old.th")(x), net(x))

    def test_weights_of_another_architecture_are_refused_with_the_names(self, net: nn.Module, tmp_path: Path) -> None:
        torch.save(net.state_dict(), tmp_path / "resnet20.th")
        with pytest.raises(
            InvalidInput,
            match=r"ResNetCIFAR: missing in the file: layer1\.3\.conv1\.weight \[16, 16, 3, 3\], .*, and 57 more",
        ):
            load_weights(ResNetCIFAR(5), tmp_path / "resnet20.th")
        with pytest.raises(
            InvalidInput, match=r"of another shape: linear\.weight is \[10, 64\] in the file and \[100, 64\] in"
        ):
            load_weights(ResNetCIFAR(3, classes=100), tmp_path / "resnet20.th")
        with pytest.raises(InvalidInput, match=r"DigitsCNN: missing in the file: .*; not in the network: conv1"):
            load_weights(DigitsCNN(), tmp_path / "resnet20.th")

    def test_a_refused_checkpoint_leaves_the_network_untouched(self, net: nn.Module, tmp_path: Path) -> None:
        torch.save(net.state_dict() | {"extra": torch.zeros(1)}, tmp_path / "extra.th")
        target = ResNetCIFAR(3)
        before = target.conv1.weight.clone()
        with pytest.raises(InvalidInput, match=r"not in the network: extra \[1\]"):
            load_weights(target, tmp_path / "extra.th")
        assert torch.equal(target.conv1.weight, before)

    def test_code_in_a_checkpoint_is_refused_and_never_run(self, tmp_path: Path) -> None:
        mark, path = tmp_path / "ran", tmp_path / "evil.th"
        torch.save({"state_dict": {"conv1.weight": Touch(mark)}}, path)
        with pytest.raises(InvalidInput, match="which only code can rebuild"):
            load_state_dict(path)
        assert not mark.exists()
        torch.load(path, weights_only=False)  # so it would have run
        assert mark.exists()

    @pytest.mark.parametrize("name", ["torn.th", "torn.safetensors"])
    @pytest.mark.parametrize("keep", [0, 7, 1000])
    def test_a_torn_file_is_refused(self, net: nn.Module, tmp_path: Path, name: str, keep: int) -> None:
        path = tmp_path / name
        if path.suffix == ".th":
            torch.save(net.state_dict(), path)
        else:
            save_file(net.state_dict(), path)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(InvalidInput, match=r"cannot be read|are an empty file"):
            load_state_dict(path)

    @pytest.mark.parametrize("content", [[torch.zeros(1)], {"epoch": 3}, torch.zeros(1)])
    def test_a_file_without_a_state_dict_is_refused(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "other.th")
        with pytest.raises(InvalidInput, match="hold no state dict"):
            load_state_dict(tmp_path / "other.th")

    def test_a_file_written_again_is_hashed_again(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(b"abc")
        assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        path.write_bytes(b"")
        assert sha256_file(path) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
