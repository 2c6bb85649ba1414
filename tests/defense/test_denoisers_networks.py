"""The networks and their checkpoints, against the public code that the checkpoints come from.

GOLDEN values were printed by that code (score_sde_pytorch at cb1f359, improved-diffusion at 1bc7bbb,
guided-diffusion at 22e0df8, NVlabs/edm at 008a4e5; upfirdn2d by its own plain-torch path), on a CPU in float32, with
every parameter from `fill` and the images from `images`; 8 values, evenly spaced in the flattened output.
Our outputs differed from theirs by at most 2e-6, in the configurations below and in the default ones.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from mixtures import reverse
from safetensors.torch import save_file
from torch import Tensor, nn
from weights import Touch

from defense import InvalidInput, get_schedule
from defense.checkpoints import sha256_file
from defense.denoisers import Denoiser, GuidedDiffusionConfig, ScoreSDEConfig
from defense.denoisers.guided_diffusion import GUIDED_DIFFUSION_PRESETS
from defense.denoisers.guided_unet import GuidedUNet
from defense.denoisers.score_sde import SCORE_SDE_PRESETS
from defense.denoisers.song_unet import SongUNet
from defense.samplers import Ancestral, time_grid


def value(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of a parameter in GOLDEN: normal numbers that depend on its name, scaled to keep activations at 1."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    drawn = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        drawn = drawn / np.float32(np.sqrt(np.prod(shape[1:])))
    else:
        drawn = np.float32(0.2) * drawn + np.float32(1 if name.endswith("weight") else 0)
    return torch.from_numpy(drawn)


def fill(net: nn.Module) -> nn.Module:
    for name, parameter in net.named_parameters():
        parameter.data = value(name, tuple(parameter.shape))
    return net.eval().requires_grad_(False)


def images(size: int) -> Tensor:
    generator = np.random.Generator(np.random.Philox(key=7))
    return torch.from_numpy(generator.standard_normal((2, 3, size, size)).astype(np.float32))


def assert_golden(output: Tensor, golden: list[float]) -> None:
    flat = output.flatten()
    picked = flat[torch.from_numpy(np.linspace(0, len(flat) - 1, len(golden)).round().astype(int))]
    torch.testing.assert_close(picked, torch.tensor(golden), rtol=0, atol=1e-5)


SONG: dict[str, Any] = {
    "image_size": 16,
    "nf": 16,
    "ch_mult": (1, 2, 2),
    "num_res_blocks": 2,
    "attn_resolutions": (8,),
}
PLUS = {"fir": True, "residual_input": True}
OPENAI: dict[str, Any] = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2)}

SMALL: dict[str, tuple[Callable[[], nn.Module], list[float], list[float]]] = {
    "ddpmpp": (
        lambda: SongUNet(**SONG),
        [69.93, 500.25],
        [0.215564, 0.09230302, 0.1753845, 0.8113927, -0.232381, -0.01199288, 0.7789615, 0.6096339],
    ),
    "ncsnpp": (
        lambda: SongUNet(**SONG, **PLUS),
        [69.93, 500.25],
        [0.3480399, -0.3719403, 1.507008, -0.4376092, 0.7320082, 1.008758, 0.6445835, -0.2643152],
    ),
    "ncsnpp fourier": (
        lambda: SongUNet(**SONG, **PLUS, embedding="fourier"),
        np.log(np.array([0.3, 20.0], np.float32)).tolist(),
        [0.2494762, 0.6048546, 0.2498279, 0.2654559, 0.303996, 0.6748508, -0.09446084, -0.06699741],
    ),
    "improved-diffusion": (
        lambda: GuidedUNet(**OPENAI, attention_resolutions=(8,), num_heads=4, learn_sigma=True),
        [69, 500],
        [0.2933552, 0.1012192, 1.196467, -0.4237312, 0.4039437, 0.1378736, -0.05639262, 1.077949],
    ),
    "guided-diffusion, all flags": (
        lambda: GuidedUNet(
            **OPENAI,
            attention_resolutions=(8,),
            num_head_channels=16,
            resblock_updown=True,
            use_new_attention_order=True,
            learn_sigma=True,
        ),
        [69, 500],
        [0.2843658, 0.8130455, 0.417987, 0.4574163, 0.1531827, -0.3041275, -0.2230904, 0.6147501],
    ),
    "guided-diffusion, no flags": (
        lambda: GuidedUNet(
            **OPENAI, attention_resolutions=(16, 8), num_heads=4, num_heads_upsample=2, use_scale_shift_norm=False
        ),
        [69, 500],
        [0.3345168, -0.5692827, 0.7437129, -0.2216404, 0.3675629, -0.8289087, 0.7206078, -0.5211245],
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_outputs_are_those_of_the_public_code(name: str) -> None:
    build, labels, golden = SMALL[name]
    with torch.no_grad():
        assert_golden(fill(build())(images(16), torch.tensor(labels)), golden)


# Made from the public code too: sha256 of the lines "name [shape]" of all parameters, sorted and in their order.
@pytest.mark.parametrize(
    ("preset", "count", "parameters", "in_order", "as_a_set"),
    [
        ("cifar10_ddpmpp_deep_continuous", 956, 106_632_579, "e9d4892e1c327547", "c48214eb2e8da7e2"),
        ("cifar10_ncsnpp_deep_continuous", 962, 107_521_411, "5f7262365828b933", "79c9f0761f7bbc6f"),
        ("cifar10_uncond_50M_500K", 446, 52_546_438, "e24fecb930143c71", "80b29d6f201a8c8e"),
        ("256x256_diffusion_uncond", 566, 552_814_086, "d7604d990d6bdf61", "77e18ded5689d791"),
    ],
)
def test_the_names_and_shapes_of_the_public_checkpoints(
    preset: str, count: int, parameters: int, in_order: str, as_a_set: str
) -> None:
    kind = ScoreSDEConfig if preset in SCORE_SDE_PRESETS else GuidedDiffusionConfig
    with torch.device("meta"):
        net = kind.model_validate({"preset": preset, "weights": ""}).network()
    lines = [f"{name} {list(parameter.shape)}" for name, parameter in net.named_parameters()]
    assert (len(lines), sum(p.numel() for p in net.parameters())) == (count, parameters)
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == in_order
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16] == as_a_set
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}


# The gradient engine computes every state twice, once without a graph, and refuses a second one that differs.
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_pass_with_gradients_is_the_pass_without_bit_for_bit(name: str, batch: int) -> None:
    build, labels, _ = SMALL[name]
    net, z, told = fill(build()), images(16)[:batch], torch.tensor(labels)[:batch]
    with torch.no_grad():
        without = net(z, told)
    assert torch.equal(net(z, told), without)
    with_gradient = net(z.clone().requires_grad_(), told)
    assert with_gradient.requires_grad and torch.equal(with_gradient.detach(), without)


def song(weights: Path, **fields: Any) -> ScoreSDEConfig:
    return ScoreSDEConfig(weights=str(weights), **SONG | fields)


def openai(weights: Path, **fields: Any) -> GuidedDiffusionConfig:
    small = {"schedule": "cosine-4000", "attention_resolutions": [8], "learn_sigma": True}
    return GuidedDiffusionConfig(weights=str(weights), **OPENAI | small | fields)


def assert_ready(denoiser: Denoiser) -> None:
    assert not denoiser.training and not any(p.requires_grad for p in denoiser.parameters())
    assert denoiser.image_shape == (3, 16, 16)


class TestScoreSDE:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        """A training checkpoint whose average is GOLDEN, and whose raw weights are half of it."""
        net = fill(SongUNet(**SONG))
        model = OrderedDict({"module.sigmas": torch.ones(5, dtype=torch.float64)})
        model.update({f"module.{key}": tensor / 2 for key, tensor in net.state_dict().items()})
        content = {
            "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 2e-4}]},
            "model": model,
            "ema": {"decay": 0.9999, "num_updates": 3, "shadow_params": [p.data for p in net.parameters()]},
            "step": 3,
        }
        torch.save(content, tmp_path / "checkpoint_8.pth")
        return tmp_path / "checkpoint_8.pth"

    @pytest.mark.slow
    def test_the_average_is_taken_and_level_t_is_passed_as_999_t(self, checkpoint: Path) -> None:
        resolved = song(Path("checkpoint_8.pth")).resolved(checkpoint.parent)
        assert resolved.sha256 == sha256_file(checkpoint) and resolved.image_shape == (3, 16, 16)
        denoiser = resolved.build()
        assert_ready(denoiser)
        assert denoiser.schedule is get_schedule("vp-continuous") and not resolved.learned_variance
        with torch.no_grad():
            eps = denoiser(images(16), 70)  # the first image of GOLDEN has the label 69.93
        assert_golden(eps[0], [0.215564])
        torch.testing.assert_close(eps, fill(SongUNet(**SONG))(images(16), torch.full((2,), 70 / 1000 * 999)))

    @pytest.mark.slow
    def test_the_raw_weights_are_taken_when_asked(self, checkpoint: Path) -> None:
        raw = song(checkpoint, ema=False).resolved(Path())
        average = song(checkpoint).resolved(Path())
        ours, theirs = raw.build().net.state_dict(), average.build().net.state_dict()
        assert all(torch.equal(tensor, theirs[key] / 2) for key, tensor in ours.items()) and len(ours) == 288
        assert raw.id != average.id

    @pytest.mark.slow
    def test_a_discrete_network_gets_its_index(self, checkpoint: Path) -> None:
        denoiser = song(checkpoint, schedule="linear-1000").resolved(Path()).build()
        expected = fill(SongUNet(**SONG))(images(16), torch.full((2,), 69))
        torch.testing.assert_close(denoiser(images(16), 70), expected)

    @pytest.mark.slow
    def test_random_frequencies_are_not_in_the_average(self, tmp_path: Path) -> None:
        net = fill(SongUNet(**SONG, embedding="fourier"))
        state = net.state_dict()
        shadow = [tensor for key, tensor in state.items() if not key.endswith(".0.W")]
        torch.save({"model": state, "ema": {"shadow_params": shadow}}, tmp_path / "c.pth")
        denoiser = song(tmp_path / "c.pth", embedding_type="fourier").resolved(Path()).build()
        assert all(torch.equal(tensor, state[key]) for key, tensor in denoiser.net.state_dict().items())

    @pytest.mark.slow
    @pytest.mark.parametrize("change", ["missing", "short", "shape"])
    def test_an_average_of_something_else_is_refused(self, checkpoint: Path, change: str) -> None:
        content = torch.load(checkpoint, weights_only=True)
        shadow = content["ema"]["shadow_params"]
        if change == "missing":
            del content["ema"]
        else:
            shadow.pop() if change == "short" else shadow.reverse()
        torch.save(content, checkpoint)
        with pytest.raises(InvalidInput, match=r"no average of the model's 288 parameters .* Write `ema: false`"):
            song(checkpoint).resolved(Path()).build()

    @pytest.mark.slow
    def test_a_plain_state_dict_loads_in_both_kinds_of_file(self, tmp_path: Path) -> None:
        state = fill(SongUNet(**SONG)).state_dict()
        torch.save(state, tmp_path / "plain.pt")
        save_file(state, tmp_path / "plain.safetensors")
        for name in ("plain.pt", "plain.safetensors"):
            denoiser = song(tmp_path / name).resolved(Path()).build()
            assert all(torch.equal(tensor, state[key]) for key, tensor in denoiser.net.state_dict().items())

    @pytest.mark.slow
    def test_another_architecture_is_refused_with_what_differs(self, checkpoint: Path) -> None:
        with pytest.raises(InvalidInput) as caught:
            song(checkpoint, num_res_blocks=1).resolved(Path()).build()
        message = str(caught.value)
        assert "not of the architecture score-sde with" in message and "num_res_blocks: 1" in message
        assert "not in the network: all_modules." in message and "of another shape: all_modules." in message
        with pytest.raises(InvalidInput, match=r"Conv_0.weight is \[32, .* in the file and \[64, .* in the network"):
            song(checkpoint, ch_mult=[1, 4, 2]).resolved(Path()).build()

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"schedule": "cosine-4000"}, "^schedule 'cosine-4000' does not fit a score-sde network"),
            ({"progressive_input": "residual"}, "^progressive_input residual takes `fir: true`"),
            ({"image_size": 18}, "^image_size = 18 cannot be halved 2 times"),
            ({"preset": "cifar10_ddpmpp_depp"}, "^preset .* did you mean 'cifar10_ddpmpp"),
        ],
    )
    def test_settings_that_cannot_be_are_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            song(Path("x"), **fields)

    def test_a_preset_has_the_id_of_its_settings(self) -> None:
        one = ScoreSDEConfig(weights="x", sha256="0" * 64, preset="cifar10_ddpmpp_deep_continuous")
        two = ScoreSDEConfig(weights="y", sha256="0" * 64, num_res_blocks=8)
        assert one.id == two.id and "weights" not in one.identity()
        assert one.id != ScoreSDEConfig(weights="x", sha256="0" * 64, preset="cifar10_ddpmpp_continuous").id
        assert ScoreSDEConfig.model_validate_json(one.canonical()[:-1] + ',"weights":"x"}').id == one.id

    def test_code_in_a_file_is_not_run(self, tmp_path: Path) -> None:
        torch.save({"model": {"all_modules.0.weight": Touch(tmp_path / "ran")}}, tmp_path / "code.pth")
        with pytest.raises(InvalidInput, match="code from a file is never run"):
            song(tmp_path / "code.pth").resolved(Path()).build()
        assert not (tmp_path / "ran").exists()


class TestGuidedDiffusion:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        net = GuidedUNet(**OPENAI, attention_resolutions=(8,), num_heads=4, learn_sigma=True)
        torch.save(fill(net).state_dict(), tmp_path / "model.pt")
        return tmp_path / "model.pt"

    @pytest.mark.parametrize(
        ("schedule", "rescale", "t"),
        [("cosine-4000", True, 277), ("cosine-4000", False, 70), ("linear-1000", True, 70)],
    )
    def test_level_t_is_passed_as_its_index_rescaled_to_1000(
        self, checkpoint: Path, schedule: str, rescale: bool, t: int
    ) -> None:
        resolved = openai(checkpoint, schedule=schedule, rescale_timesteps=rescale).resolved(Path())
        assert resolved.learned_variance and resolved.sha256 == sha256_file(checkpoint)
        denoiser = resolved.build()
        assert_ready(denoiser)
        with torch.no_grad():  # all three levels have the label of the first image of GOLDEN, 69
            eps, v = denoiser.with_variance(images(16), t)
            expected = SMALL["improved-diffusion"][0]()
            output = fill(expected)(images(16), torch.tensor([69, 69]))
        assert v is not None
        torch.testing.assert_close(torch.cat([eps, v], dim=1), output)
        assert_golden(eps[0], [0.2933552])
        torch.testing.assert_close(denoiser(images(16), t), eps)

    def test_the_learned_variance_is_that_of_the_reverse_step(self, checkpoint: Path) -> None:
        denoiser = openai(checkpoint).resolved(Path()).build()
        sampler = Ancestral(denoiser.schedule, time_grid(400, 2), variance="learned")
        z = images(16)
        with torch.no_grad():
            eps, v = denoiser.with_variance(z, 400)
            step = sampler.transition(0, z, eps, v)
            last = reverse(denoiser, step.mean, Ancestral(denoiser.schedule, [200, 0]), lambda t, like: like)
            got = reverse(denoiser, z, sampler, lambda t, like: torch.zeros_like(like))
        torch.testing.assert_close(got, last)
        assert v is not None
        abar_t, abar_s = denoiser.schedule.abar[400], denoiser.schedule.abar[200]
        beta = 1 - abar_t / abar_s
        tilde = beta * (1 - abar_s) / (1 - abar_t)
        fraction = (v + 1) / 2
        torch.testing.assert_close(step.gain, torch.exp(fraction * np.log(beta) + (1 - fraction) * np.log(tilde)))

    def test_flags_are_taken_as_on_the_command_line(self) -> None:
        one = openai(Path("x"), attention_resolutions="16,8", channel_mult="1,2", sha256="0" * 64)
        assert one.attention_resolutions == (16, 8) and one.channel_mult == (1, 2)
        assert one.id == openai(Path("y"), attention_resolutions=[16, 8], channel_mult=[1, 2], sha256="0" * 64).id

    @pytest.mark.parametrize(
        ("size", "expected"), [(32, (1, 2, 2, 2)), (64, (1, 2, 3, 4)), (256, (1, 1, 2, 2, 4, 4))]
    )
    def test_the_default_widths_are_those_of_the_programs(self, size: int, expected: tuple[int, ...]) -> None:
        assert GuidedDiffusionConfig(weights="x", schedule="linear-1000", image_size=size).channel_mult == expected

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"image_size": 48, "channel_mult": []}, "^channel_mult has no default for image_size 48"),
            ({"image_size": 17}, "^image_size = 17 cannot be halved 1 times"),
            ({"num_channels": 48}, r"gives levels of \[48, 96\]; each is a multiple of 32"),
            ({"num_heads": 3}, r"^num_heads does not divide the widths of the levels, \[32, 64\]"),
            ({"num_head_channels": 48}, r"^num_head_channels does not divide"),
            ({"preset": "256x256_diffusion_uncnd"}, "did you mean '256x256_diffusion_uncond'"),
        ],
    )
    def test_settings_that_cannot_be_are_refused(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            openai(Path("x"), **fields)

    def test_other_settings_than_those_of_the_file_are_refused_with_what_differs(self, checkpoint: Path) -> None:
        with pytest.raises(InvalidInput, match=r"out.2.weight is \[6, 32, 3, 3\] in the file and \[3, 32, 3, 3\]"):
            openai(checkpoint, learn_sigma=False).resolved(Path()).build()
        with pytest.raises(
            InvalidInput, match=r"missing in the file: input_blocks.1.1.norm.weight \[32\], .* and \d+"
        ):
            openai(checkpoint, attention_resolutions=[16, 8]).resolved(Path()).build()

    def test_a_class_conditional_network_is_refused(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint, weights_only=True)
        torch.save(state | {"label_emb.weight": torch.zeros(1000, 128)}, checkpoint)
        with pytest.raises(InvalidInput, match=r"class-conditional network \(1000 classes\)"):
            openai(checkpoint).resolved(Path()).build()

    def test_hashes_are_checked_at_plan_and_at_build(self, checkpoint: Path) -> None:
        with pytest.raises(InvalidInput, match="not deadbeef"):
            openai(checkpoint, sha256="deadbeef").resolved(Path())
        with pytest.raises(ValueError, match="resolve the config"):
            openai(checkpoint, sha256=sha256_file(checkpoint)[:8]).build()
        resolved = openai(checkpoint).resolved(Path())
        with checkpoint.open("ab") as stream:
            stream.write(b" ")
        with pytest.raises(InvalidInput, match="has sha256"):
            resolved.build()
        with pytest.raises(InvalidInput, match="cannot be read"):
            openai(checkpoint.parent / "nowhere.pt").resolved(Path())

    @pytest.mark.parametrize("preset", sorted(GUIDED_DIFFUSION_PRESETS))
    def test_every_preset_is_a_valid_config(self, preset: str) -> None:
        config = GuidedDiffusionConfig.model_validate({"weights": "x", "preset": preset})
        assert config.learned_variance and config.schedule in ("cosine-4000", "linear-1000")
        assert GuidedDiffusionConfig.model_validate({"weights": "x", "preset": preset, "num_heads": 8}).num_heads == 8


def _block(
    name: str, inputs: int, outputs: int, *, skip: bool = False, attention: bool = False
) -> dict[str, list[int]]:
    shapes = {
        "norm0": [inputs],
        "conv0": [outputs, inputs, 3, 3],
        "affine": [outputs, 64],
        "norm1": [outputs],
        "conv1": [outputs, outputs, 3, 3],
    }
    if skip:
        shapes["skip"] = [outputs, inputs, 1, 1]
    if attention:
        shapes |= {"norm2": [outputs], "qkv": [3 * outputs, outputs, 1, 1], "proj": [outputs, outputs, 1, 1]}
    found = {f"{name}.{part}.weight": shape for part, shape in shapes.items()}
    return found | {f"{name}.{part}.bias": shape[:1] for part, shape in shapes.items()}


def edm_state(residual: bool) -> Mapping[str, Tensor]:
    """GOLDEN weights of the EDM network with 16 channels, ch_mult (2, 2) and one block per level."""
    noise, filters = (32, 4) if residual else (16, 2)
    shapes = {
        "map_augment.weight": [noise, 9],
        "map_layer0.weight": [64, noise],
        "map_layer0.bias": [64],
        "map_layer1.weight": [64, 64],
        "map_layer1.bias": [64],
        "enc.16x16_conv.weight": [16, 3, 3, 3],
        "enc.16x16_conv.bias": [16],
        **_block("enc.16x16_block0", 16, 32, skip=True),
        **_block("enc.8x8_down", 32, 32, skip=True),
        **_block("enc.8x8_block0", 32, 32, attention=True),
        **_block("dec.8x8_in0", 32, 32, attention=True),
        **_block("dec.8x8_in1", 32, 32),
        **_block("dec.8x8_block0", 64, 32, skip=True),
        **_block("dec.8x8_block1", 64, 32, skip=True, attention=True),
        **_block("dec.16x16_up", 32, 32, skip=True),
        **_block("dec.16x16_block0", 64, 32, skip=True),
        **_block("dec.16x16_block1", 48, 32, skip=True),
        "dec.16x16_aux_norm.weight": [32],
        "dec.16x16_aux_norm.bias": [32],
        "dec.16x16_aux_conv.weight": [3, 32, 3, 3],
        "dec.16x16_aux_conv.bias": [3],
    }
    resized = ["enc.8x8_down.conv0", "enc.8x8_down.skip", "dec.16x16_up.conv0", "dec.16x16_up.skip"]
    if residual:
        shapes |= {"enc.8x8_aux_residual.weight": [32, 3, 3, 3], "enc.8x8_aux_residual.bias": [32]}
        resized.append("enc.8x8_aux_residual")
    state = {f"model.{name}": value(f"model.{name}", tuple(shape)) for name, shape in shapes.items()}
    state |= {f"model.{name}.resample_filter": torch.ones(1, 1, filters, filters) for name in resized}
    if residual:
        drawn = np.random.Generator(np.random.Philox(key=5)).standard_normal(16).astype(np.float32)
        state["model.map_noise.freqs"] = torch.from_numpy(drawn * 16)
    return state


class TestEDM:
    FIELDS: ClassVar[dict[str, Any]] = {
        "image_size": 16,
        "nf": 16,
        "ch_mult": [2, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [8],
        "schedule": "edm",
        "prediction": "edm",
    }
    VE: ClassVar[dict[str, Any]] = {"fir": True, "progressive_input": "residual", "embedding_type": "fourier"}

    # The noise that the public EDMPrecond implies, (x - D)/sigma with x = z/sqrt(abar), at level 300 of `edm`.
    @pytest.mark.parametrize(
        ("residual", "count", "names", "golden"),
        [
            (
                False,
                147,
                "51f803fa2546d7c8",
                [-1.748481, -2.168173, 0.5673146, -0.5726246, 1.741508, -1.658482, 2.228999, 1.436579],
            ),
            (
                True,
                151,
                "beaa30c20cc0f65d",
                [-1.839165, -2.152082, 0.5000532, -0.4064357, 1.418663, -1.73746, 2.269023, 1.328428],
            ),
        ],
    )
    def test_its_networks_give_the_noise_that_the_public_code_implies(
        self, tmp_path: Path, residual: bool, count: int, names: str, golden: list[float]
    ) -> None:
        state = dict(edm_state(residual))
        lines = sorted(f"{key} {list(tensor.shape)}" for key, tensor in state.items())
        assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]) == (count, names)
        save_file(state, tmp_path / "edm.safetensors")
        fields = self.FIELDS | (self.VE if residual else {})
        denoiser = ScoreSDEConfig(weights=str(tmp_path / "edm.safetensors"), **fields).resolved(Path()).build()
        with torch.no_grad():
            assert_golden(denoiser(images(16), 300), golden)

    def test_the_same_network_under_the_names_of_score_sde_is_the_same_denoiser(self, tmp_path: Path) -> None:
        save_file(dict(edm_state(False)), tmp_path / "edm.safetensors")
        one = ScoreSDEConfig(weights=str(tmp_path / "edm.safetensors"), **self.FIELDS).resolved(Path()).build()
        save_file(one.net.state_dict(), tmp_path / "song.safetensors")
        two = ScoreSDEConfig(weights=str(tmp_path / "song.safetensors"), **self.FIELDS).resolved(Path()).build()
        assert torch.equal(one(images(16), 300), two(images(16), 300))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (
                {"prediction": "eps", "schedule": "vp-continuous"},
                "^prediction 'eps' does not fit .* `prediction: edm`",
            ),
            ({"fir": True}, "^fir = True does not fit .* resizes with 2 x 2 pixels"),
            ({"num_res_blocks": 2}, "missing in the file: all_modules"),
            ({"embedding_type": "fourier"}, r"missing in the file: all_modules.0.W \[16\]"),
        ],
    )
    def test_other_settings_than_those_of_the_file_are_refused(
        self, tmp_path: Path, fields: dict[str, Any], message: str
    ) -> None:
        save_file(dict(edm_state(False)), tmp_path / "edm.safetensors")
        config = ScoreSDEConfig(weights=str(tmp_path / "edm.safetensors"), **self.FIELDS | fields).resolved(Path())
        with pytest.raises(InvalidInput, match=message):
            config.build()
