from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from defense import DENOISERS, Denoiser, DiffusersConfig, InvalidInput, Omega
from defense.checkpoints import sha256_file
from defense.denoisers.predictions import Prediction, implied_eps, network_input, noise_label
from defense.samplers import forward_noise
from defense.schedules import get_schedule
from defense.torchvision_cpu import allow_torchvision_import
from tasks.datasets import ImageSet

WEIGHTS = "diffusion_pytorch_model.safetensors"
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 4000}


def config(folder: Path, schedule: str = "linear-1000", sha256: str | None = None) -> DiffusersConfig:
    return DiffusersConfig(schedule=schedule, path=str(folder), sha256=sha256)


def assert_same_with_gradients(denoiser: Denoiser, shape: tuple[int, ...]) -> None:
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    for t in (1, 100):
        with torch.no_grad():
            without = denoiser(z, t)
        assert torch.equal(denoiser(z, t), without)
        assert torch.equal(denoiser(z.clone().requires_grad_(), t).detach(), without)


def reference(folder: Path, z: torch.Tensor, index: float) -> torch.Tensor:
    allow_torchvision_import()
    from diffusers import UNet2DModel

    prediction: torch.Tensor = UNet2DModel.from_pretrained(folder).eval()(z, torch.tensor(index)).sample
    return prediction


def test_resolving_fills_in_the_path_and_the_hashes(unet_folder: Path, tmp_path: Path) -> None:
    resolved = DiffusersConfig(schedule="linear-1000", path="unet").resolved(tmp_path)
    assert resolved.path == str(unet_folder)
    assert resolved.sha256 == sha256_file(unet_folder / WEIGHTS)
    assert resolved.config_sha256 == sha256_file(unet_folder / "config.json")
    assert resolved.image_shape == (1, 8, 8)
    assert resolved.resolved(Path("/")) == resolved


@pytest.mark.parametrize("t", [1, 100, 1000])
def test_the_network_is_called_with_its_index_t_minus_one(unet_folder: Path, t: int) -> None:
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    denoiser = config(unet_folder).resolved(Path()).build()
    torch.testing.assert_close(denoiser(z, t), reference(unet_folder, z, t - 1))
    assert (denoiser(z, t) - reference(unet_folder, z, t)).abs().max() > 1e-4
    assert denoiser.schedule is get_schedule("linear-1000") and denoiser.image_shape == (1, 8, 8)


def test_the_built_network_is_frozen_but_differentiable_in_its_input(unet_folder: Path) -> None:
    denoiser = config(unet_folder).resolved(Path()).build()
    assert not denoiser.training and not any(p.requires_grad for p in denoiser.parameters())
    z = torch.zeros(1, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(denoiser(z, 10).square().sum(), z)
    assert gradient.abs().max() > 0


def test_a_hash_of_other_weights_is_refused_with_both(unet_folder: Path) -> None:
    actual = sha256_file(unet_folder / WEIGHTS)
    assert config(unet_folder, sha256=actual[:8].upper()).resolved(Path()).sha256 == actual
    with pytest.raises(InvalidInput, match=rf"denoiser weights .* has sha256 {actual}, not deadbeef"):
        config(unet_folder, sha256="deadbeef").resolved(Path())


@pytest.mark.parametrize("field", ["sha256", "config_sha256"])
@pytest.mark.parametrize("value", ["", "abc1234", "not-hexadecimal"])
def test_a_hash_too_short_to_distinguish_files_is_refused(field: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        DiffusersConfig.model_validate({"schedule": "linear-1000", "path": "unet", field: value})


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
def test_a_file_changed_after_the_plan_is_refused_at_build(unet_folder: Path, file: str) -> None:
    resolved = config(unet_folder).resolved(Path())
    with (unet_folder / file).open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(InvalidInput, match="has sha256"):
        resolved.build()


@pytest.mark.parametrize(
    ("file", "message"), [("config.json", "holds no config.json"), (WEIGHTS, "holds no weights")]
)
def test_a_missing_file_is_named(unet_folder: Path, file: str, message: str) -> None:
    (unet_folder / file).unlink()
    with pytest.raises(InvalidInput, match=message) as caught:
        config(unet_folder).resolved(Path())
    assert file in str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=re.escape(str(tmp_path / "nowhere"))):
        config(tmp_path / "nowhere").resolved(Path())


@pytest.mark.parametrize(
    ("said", "schedule", "message"),
    [
        (LINEAR, "cosine-4000", "trained on linear-1000 .*not on 'cosine-4000'"),
        (LINEAR, "vp-continuous", "trained on linear-1000 .*not on 'vp-continuous'"),
        (COSINE, "linear-1000", "trained on cosine-4000 .*not on 'linear-1000'"),
        (LINEAR | {"beta_end": 0.012}, "linear-1000", r"trained on .*0\.012.* not on 'linear-1000'"),
        (LINEAR | {"beta_schedule": "scaled_linear"}, "linear-1000", "trained on .*scaled_linear"),
        (LINEAR | {"prediction_type": "flow"}, "linear-1000", "predicts 'flow' .*known are epsilon, sample, v_pred"),
        (
            LINEAR | {"rescale_betas_zero_snr": True},
            "linear-1000",
            "trained on linear_zero_snr-999@.*, rescaled to zero",
        ),
        (LINEAR | {"trained_betas": [0.1]}, "linear-1000", "`num_train_timesteps` = 1000: `trained_betas` lists 1"),
    ],
)
@pytest.mark.parametrize("place", ["scheduler_config.json", "../scheduler/scheduler_config.json"])
def test_a_scheduler_config_that_contradicts_is_refused(
    unet_folder: Path, place: str, said: dict[str, object], schedule: str, message: str
) -> None:
    file = (unet_folder / place).resolve()
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(said))
    with pytest.raises(InvalidInput, match=message):
        config(unet_folder, schedule).resolved(Path())


@pytest.mark.parametrize(
    ("said", "schedule"), [(LINEAR, "linear-1000"), (COSINE, "cosine-4000"), ({}, "vp-continuous")]
)
def test_a_scheduler_config_that_agrees_is_taken(unet_folder: Path, said: dict[str, object], schedule: str) -> None:
    (unet_folder / "scheduler_config.json").write_text(json.dumps(said | {"prediction_type": "epsilon"}))
    assert config(unet_folder, schedule).resolved(Path()).build().schedule.name == schedule


@pytest.mark.parametrize(
    ("said", "prediction"), [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v"), (None, "edm"), (None, None)]
)
def test_what_the_network_predicts_is_taken_from_the_folder_or_from_the_field(
    unet_folder: Path, said: str | None, prediction: Prediction | None
) -> None:
    (unet_folder / "scheduler_config.json").write_text(json.dumps({"prediction_type": said} if said else LINEAR))
    given = DiffusersConfig(schedule="linear-1000", path=str(unet_folder), prediction=None if said else prediction)
    resolved = given.resolved(Path())
    assert resolved.prediction == (prediction or "eps") and resolved.resolved(Path()) == resolved
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    abar = resolved.build().schedule.level(100).abar
    kind = resolved.prediction
    assert kind is not None
    index: int | float = 99 if kind != "edm" else noise_label("edm", abar)
    expected = implied_eps(kind, reference(unet_folder, network_input(kind, z, abar), index), z, abar)
    torch.testing.assert_close(resolved.build()(z, 100), expected)


def test_a_prediction_that_contradicts_the_folder_is_refused(unet_folder: Path) -> None:
    (unet_folder / "scheduler_config.json").write_text(json.dumps(LINEAR | {"prediction_type": "v_prediction"}))
    with pytest.raises(InvalidInput, match=r"^prediction 'eps' .* says 'v_prediction', which is `prediction: v`"):
        DiffusersConfig(schedule="linear-1000", path=str(unet_folder), prediction="eps").resolved(Path())


def test_the_usual_prediction_is_not_in_the_id_and_others_are(unet_folder: Path) -> None:
    configs = [
        DiffusersConfig(schedule="linear-1000", path=str(unet_folder), prediction=prediction).resolved(Path())
        for prediction in (None, "eps", "x0", "v", "edm")
    ]
    assert "prediction" not in configs[0].identity() and configs[0].id == configs[1].id
    assert len({one.id for one in configs}) == 4
    again = DiffusersConfig.model_validate_json(configs[3].canonical())
    assert again.prediction == "v" and again.id == configs[3].id


def test_twice_as_many_output_channels_are_a_variance_output(tmp_path: Path) -> None:
    allow_torchvision_import()
    from diffusers import UNet2DModel

    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=2,
        block_out_channels=[8],
        layers_per_block=1,
        down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"],
        norm_num_groups=4,
        attention_head_dim=4,
    ).eval()
    net.save_pretrained(tmp_path)
    resolved = config(tmp_path).resolved(Path())
    assert resolved.learned_variance
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        eps, v = resolved.build().with_variance(z, 10)
        output = net(z, 9).sample
    assert v is not None
    torch.testing.assert_close(torch.cat([eps, v], dim=1), output)


# The gradient engine computes every state twice, once without a graph, and refuses a second one that differs.
def test_a_pass_with_gradients_is_the_pass_without_bit_for_bit(unet_folder: Path) -> None:
    assert not config(unet_folder).resolved(Path()).learned_variance
    assert_same_with_gradients(config(unet_folder).resolved(Path()).build(), (3, 1, 8, 8))


@pytest.mark.slow
def test_a_pass_of_the_real_denoiser_with_gradients_is_the_pass_without(weights_root: Path) -> None:
    denoiser = config(weights_root / "ddpm-cifar10-small").resolved(Path()).build()
    assert_same_with_gradients(denoiser, (3, 3, 32, 32))


@pytest.mark.parametrize("revision", [None, "main", "a" * 39, "A" * 40])
def test_a_repository_is_pinned_by_its_commit(revision: str | None) -> None:
    pinned = DiffusersConfig(schedule="linear-1000", repo="google/ddpm-cifar10-32", revision=revision)
    with pytest.raises(InvalidInput, match="needs `revision`: a commit of 40 hex digits"):
        pinned.resolved(Path())


@pytest.mark.parametrize("where", [{}, {"path": "unet", "repo": "google/ddpm-cifar10-32"}])
def test_a_denoiser_lies_in_one_place(where: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match=r"either `path` .* or `repo`"):
        DiffusersConfig(schedule="linear-1000", **where).resolved(Path())


def test_building_before_resolving_is_an_error(unet_folder: Path) -> None:
    with pytest.raises(ValueError, match="resolve the config before building"):
        config(unet_folder).build()
    assert DENOISERS.get("diffusers") is DiffusersConfig


def test_attention_weights_named_as_before_diffusers_0_17_load(unet_folder: Path) -> None:
    # The form of most UNet2DModel checkpoints on the hub (diffusers PR 3387); from_pretrained renames them.
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    z = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    today = reference(unet_folder, z, 9)
    state = load_file(unet_folder / WEIGHTS)
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    save_file(state, unet_folder / WEIGHTS)
    torch.testing.assert_close(reference(unet_folder, z, 9), today)
    torch.testing.assert_close(config(unet_folder).resolved(Path()).build()(z, 10), today)


# weights/README.md, one-shot denoising of the first 500 test images; its t counts from 0.
@pytest.mark.slow
@pytest.mark.parametrize(("t", "mse"), [(100, 0.086), pytest.param(50, 0.143, marks=pytest.mark.nightly)])
def test_the_real_denoiser_has_the_measured_error(
    weights_root: Path, cifar10_test: ImageSet, t: int, mse: float
) -> None:
    denoiser = config(weights_root / "ddpm-cifar10-small").resolved(Path()).build()
    z0 = 2 * torch.from_numpy(cifar10_test.images[:500]) - 1
    noise = Omega.of("eps-mse", 0, "judge", range(500)).normal("forward", 0, z0)
    with torch.no_grad():
        z = forward_noise(z0, denoiser.schedule.level(t).abar, noise)
        predicted = torch.cat([denoiser(part, t) for part in z.split(100)])
    assert (predicted - noise).square().mean().item() == pytest.approx(mse, rel=0.05)
