"""Diffusers folders as its own code and its users write them: pipelines, variants, shards, schedulers."""

from __future__ import annotations

import inspect
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from weights import Touch

from defense import DiffusersConfig, InvalidInput
from defense.checkpoints import sha256_file
from defense.denoisers.network_config import AVERAGING, FIELDS
from defense.denoisers.scheduler_config import READ, SAMPLING, SCHEDULERS, read_scheduler_config
from defense.purifiers import DiffPureConfig
from defense.schedules import FROM_FOLDER, get_schedule
from defense.torchvision_cpu import allow_torchvision_import

allow_torchvision_import()
STEM = "diffusion_pytorch_model"


def resolved(folder: Path, **fields: Any) -> DiffusersConfig:
    return DiffusersConfig(path=str(folder), **fields).resolved(Path())


def noised(t: int = 40, **kinds: Any) -> tuple[Tensor, int]:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), **kinds), t


def theirs(folder: Path, z: Tensor, t: int, **loading: Any) -> Tensor:
    from diffusers import UNet2DModel

    with torch.no_grad():
        output: Tensor = UNet2DModel.from_pretrained(folder, **loading).eval()(z, torch.tensor(t - 1)).sample
    return output


def scheduler(folder: Path, name: str, **fields: Any) -> Any:
    """One of diffusers' own, saved where its pipelines save it."""
    import diffusers

    made = getattr(diffusers, name)(**fields)
    made.save_pretrained(folder)
    return made


class TestFiles:
    @pytest.fixture
    def pipeline(self, unet_folder: Path, tmp_path: Path) -> Path:
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

        net = UNet2DModel.from_pretrained(unet_folder)
        DDPMPipeline(net, DDPMScheduler(beta_start=0.001, beta_end=0.03)).save_pretrained(tmp_path / "pipeline")
        return tmp_path / "pipeline"

    @pytest.mark.parametrize("inside", ["", "unet"])
    def test_a_pipeline_as_diffusers_saves_it(self, pipeline: Path, inside: str) -> None:
        config = resolved(pipeline / inside)
        assert config.path == str(pipeline / "unet")
        assert config.sha256 == sha256_file(pipeline / "unet" / f"{STEM}.safetensors")
        assert config.schedule.startswith("linear-1000@") and config.prediction == "eps"
        z, t = noised()
        torch.testing.assert_close(config.build()(z, t), theirs(pipeline / "unet", z, t))
        assert resolved(pipeline).id == resolved(pipeline / "unet").id

    def test_a_pipeline_in_one_folder_as_repositories_of_the_early_days(self, pipeline: Path) -> None:
        for file in [*(pipeline / "unet").iterdir(), *(pipeline / "scheduler").iterdir()]:
            file.rename(pipeline / file.name)
        (pipeline / "unet").rmdir()
        z, t = noised()
        torch.testing.assert_close(resolved(pipeline).build()(z, t), theirs(pipeline, z, t))

    @pytest.mark.parametrize("inside", ["", "unet"])
    def test_a_pipeline_on_latents_is_refused(self, pipeline: Path, inside: str) -> None:
        index = pipeline / "model_index.json"
        parts = json.loads(index.read_text())
        index.write_text(json.dumps(parts | {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}))
        with pytest.raises(InvalidInput, match=r"model_index\.json' is a LDMPipeline with vqvae beside network"):
            resolved(pipeline / inside)

    def test_a_half_precision_variant_alone_is_taken_and_becomes_float32(self, unet_folder: Path) -> None:
        from diffusers import UNet2DModel

        UNet2DModel.from_pretrained(unet_folder).half().save_pretrained(unet_folder, variant="fp16")
        plain = resolved(unet_folder, schedule="edm")
        (unet_folder / f"{STEM}.safetensors").unlink()
        config = resolved(unet_folder, schedule="edm")
        assert config.sha256 == sha256_file(unet_folder / f"{STEM}.fp16.safetensors") != plain.sha256
        assert config == resolved(unet_folder, schedule="edm", variant="fp16").model_copy(update={"variant": None})
        z, t = noised()
        denoiser = config.build()
        assert all(p.dtype == torch.float32 for p in denoiser.parameters())
        expected = theirs(unet_folder, z, t, variant="fp16", torch_dtype=torch.float32)
        torch.testing.assert_close(denoiser(z, t), expected)

    def test_the_plain_weights_go_before_variants_and_a_variant_can_be_named(self, unet_folder: Path) -> None:
        state = load_file(unet_folder / f"{STEM}.safetensors")
        for variant in ("fp16", "non_ema"):
            save_file(
                {name: value / 2 for name, value in state.items()}, unet_folder / f"{STEM}.{variant}.safetensors"
            )
        assert resolved(unet_folder, schedule="edm").sha256 == sha256_file(unet_folder / f"{STEM}.safetensors")
        named = resolved(unet_folder, schedule="edm", variant="non_ema").build()
        assert torch.equal(named.net.state_dict()["conv_in.weight"], state["conv_in.weight"] / 2)
        with pytest.raises(
            InvalidInput, match=r"no weights of the variant 'bf16', but those without .*, fp16, non_ema"
        ):
            resolved(unet_folder, schedule="edm", variant="bf16")
        (unet_folder / f"{STEM}.safetensors").unlink()
        with pytest.raises(InvalidInput, match=r"several variants \(fp16, non_ema\): write which with `variant`"):
            resolved(unet_folder, schedule="edm")

    @pytest.mark.parametrize("safe", [True, False])
    @pytest.mark.parametrize("variant", [None, "fp16"])
    def test_shards_with_their_index(self, unet_folder: Path, safe: bool, variant: str | None) -> None:
        from diffusers import UNet2DModel

        net = UNet2DModel.from_pretrained(unet_folder)
        z, t = noised()
        expected = theirs(unet_folder, z, t)
        (unet_folder / f"{STEM}.safetensors").unlink()
        net.save_pretrained(unet_folder, max_shard_size="20KB", safe_serialization=safe, variant=variant)
        shards = sorted(unet_folder.glob("*-of-*"))
        assert len(shards) >= 2
        config = resolved(unet_folder, schedule="edm")
        torch.testing.assert_close(config.build()(z, t), expected)
        import hashlib

        listing = "".join(f"{sha256_file(shard)}  {shard.name}\n" for shard in shards)
        assert config.sha256 == hashlib.sha256(listing.encode()).hexdigest()
        shards[0].write_bytes(shards[0].read_bytes() + b" ")
        with pytest.raises(InvalidInput, match=r"denoiser weights .* and \d+ more has sha256"):
            config.build()
        shards[-1].unlink()
        with pytest.raises(InvalidInput, match=rf"{shards[-1].name}' cannot be read"):
            resolved(unet_folder, schedule="edm")

    def test_an_index_that_is_not_of_its_shards_is_refused(self, unet_folder: Path) -> None:
        weights = unet_folder / f"{STEM}.safetensors"
        names = list(load_file(weights))
        shard = weights.rename(unet_folder / f"{STEM}-00001-of-00001.safetensors").name
        index = unet_folder / f"{STEM}.safetensors.index.json"
        for weight_map, message in [
            (dict.fromkeys(names[1:], shard), rf"hold {names[0]}, which the index .* has in None"),
            (dict.fromkeys([*names, "tail.weight"], shard), r"name tail\.weight in .*, which does not hold it"),
            (dict.fromkeys(names, f"../{shard}"), "have no `weight_map`"),
            ([], "have no `weight_map`"),
        ]:
            index.write_text(json.dumps({"weight_map": weight_map}))
            with pytest.raises(InvalidInput, match=message):
                resolved(unet_folder, schedule="edm").build()

    @pytest.mark.parametrize("variant", ["", ".fp16"])
    def test_a_bin_file_is_read_as_weights_only(self, unet_folder: Path, tmp_path: Path, variant: str) -> None:
        z, t = noised()
        expected = theirs(unet_folder, z, t)
        weights = unet_folder / f"{STEM}.safetensors"
        file = unet_folder / f"{STEM}{variant}.bin"
        torch.save(load_file(weights), file)
        weights.unlink()
        torch.testing.assert_close(resolved(unet_folder, schedule="edm").build()(z, t), expected)
        torch.save({"conv_in.weight": Touch(tmp_path / "ran")}, file)
        with pytest.raises(InvalidInput, match="code from a file is never run"):
            resolved(unet_folder, schedule="edm").build()
        assert not (tmp_path / "ran").exists()

    def test_the_average_that_diffusers_saves_has_fields_of_its_own(self, unet_folder: Path) -> None:
        from diffusers import UNet2DModel
        from diffusers.training_utils import EMAModel

        net = UNet2DModel.from_pretrained(unet_folder)
        average = EMAModel(net.parameters(), model_cls=UNet2DModel, model_config=net.config)
        average.save_pretrained(unet_folder / "average")
        assert json.loads((unet_folder / "average" / "config.json").read_text()).keys() & AVERAGING
        z, t = noised()
        torch.testing.assert_close(
            resolved(unet_folder / "average", schedule="edm").build()(z, t), theirs(unet_folder, z, t)
        )

    def test_weights_in_a_wrapper_of_training_are_found(self, unet_folder: Path) -> None:
        file = unet_folder / f"{STEM}.safetensors"
        z, t = noised()
        expected = theirs(unet_folder, z, t)
        save_file({f"module._orig_mod.{name}": value for name, value in load_file(file).items()}, file)
        torch.testing.assert_close(resolved(unet_folder, schedule="edm").build()(z, t), expected)

    def test_a_file_in_the_place_of_a_folder_is_refused(self, unet_folder: Path) -> None:
        with pytest.raises(InvalidInput, match="is a file; give the folder that it lies in"):
            resolved(unet_folder / "config.json")


BETAS = [0.01 + 0.001 * i for i in range(60)]
ZERO = {"rescale_betas_zero_snr": True}
# Scheduler, its fields, and the name of the schedule, or how it starts.
STATED: list[tuple[str, dict[str, Any], str]] = [
    ("DDPMScheduler", {}, "linear-1000"),
    ("DDPMScheduler", {"beta_end": 0.012}, "linear-1000@"),
    ("DDPMScheduler", {"num_train_timesteps": 250, "beta_start": 4e-4, "beta_end": 0.08}, "linear-250@"),
    ("DDPMScheduler", {"beta_schedule": "scaled_linear", "beta_start": 8e-4, "beta_end": 0.012}, "scaled_linear-"),
    ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 4000}, "cosine-4000"),
    ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2-1000@"),
    ("DDPMScheduler", {"beta_schedule": "sigmoid"}, "sigmoid-1000@"),
    ("DDIMScheduler", {"trained_betas": BETAS, "num_train_timesteps": 60}, "trained_betas-60@"),
    ("DDIMScheduler", ZERO | {"prediction_type": "v_prediction"}, "linear_zero_snr-999@"),
    ("DDPMScheduler", ZERO | {"beta_schedule": "scaled_linear"}, "scaled_linear_zero_snr-999@"),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, "linear-1000"),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "beta_schedule": "scaled_linear"}, "scaled_linear-"),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, "linear-1000"),
    ("UniPCMultistepScheduler", {"beta_end": 0.03}, "linear-1000@"),
    ("HeunDiscreteScheduler", {}, "linear-1000@"),
    ("KDPM2DiscreteScheduler", {"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2-1000@"),
]  # fmt: skip


class TestSchedules:
    @pytest.mark.parametrize(("name", "fields", "expected"), STATED)
    def test_abar_is_that_of_diffusers(
        self, unet_folder: Path, name: str, fields: dict[str, Any], expected: str
    ) -> None:
        made = scheduler(unet_folder / "scheduler", name, **fields)
        config = resolved(unet_folder)
        schedule = config.noise_schedule
        assert schedule.name == config.schedule and (
            schedule.name == expected or (expected[-1] in "@-" and schedule.name.startswith(expected))
        )
        abar = made.alphas_cumprod.double().numpy()[: schedule.steps]
        # Theirs is a product in single precision.
        np.testing.assert_allclose(schedule.abar[1:], abar, rtol=3e-4, atol=1e-7)
        assert abs(schedule.abar[1] - abar[0]) < 1e-6 and schedule.abar[0] == 1 and schedule.steps == len(abar)
        assert config.build().schedule.name == schedule.name

    def test_the_name_has_the_digest_of_the_table_and_the_table_travels_with_the_config(
        self, unet_folder: Path
    ) -> None:
        scheduler(unet_folder, "DDPMScheduler", beta_end=0.012)
        config = resolved(unet_folder)
        betas = np.linspace(1e-4, 0.012, 1000)
        table = np.concatenate([[1.0], np.cumprod(1 - betas)])
        import hashlib

        assert config.schedule == f"linear-1000@{hashlib.sha256(table.tobytes()).hexdigest()[:16]}"
        shutil.rmtree(unet_folder)
        moved = pickle.loads(pickle.dumps(config))
        assert np.array_equal(moved.noise_schedule.abar, table) and moved.id == config.id
        assert config.identity()["schedule"] == config.schedule

    def test_both_spellings_are_one_spec(self, unet_folder: Path) -> None:
        scheduler(unet_folder, "DDPMScheduler")
        assert resolved(unet_folder) == resolved(unet_folder, schedule=FROM_FOLDER)
        assert resolved(unet_folder) == resolved(unet_folder, schedule="linear-1000")
        scheduler(unet_folder, "DDPMScheduler", beta_end=0.03)
        own = resolved(unet_folder)
        assert own.resolved(Path("/")) == own == resolved(unet_folder, schedule=own.schedule)
        assert own.id != resolved_with_linear(unet_folder).id

    def test_a_changed_schedule_is_another_id_and_a_named_one_must_agree(self, unet_folder: Path) -> None:
        scheduler(unet_folder, "DDPMScheduler", beta_end=0.03)
        first = resolved(unet_folder)
        scheduler(unet_folder, "DDPMScheduler", beta_end=0.031)
        assert resolved(unet_folder).id != first.id
        for schedule in ("linear-1000", first.schedule):
            with pytest.raises(
                InvalidInput, match=rf"trained on linear-1000@.* 0\.031 in 1000 .*not on '{schedule}'"
            ):
                resolved(unet_folder, schedule=schedule)

    def test_a_folder_without_a_scheduler_needs_a_name(self, unet_folder: Path) -> None:
        with pytest.raises(
            InvalidInput, match=r"has no scheduler_config\.json\. Write `schedule`, one of cosine-4000"
        ):
            resolved(unet_folder)
        (unet_folder / "scheduler_config.json").write_text('{"prediction_type": "sample"}')
        with pytest.raises(InvalidInput, match="does not say it"):
            resolved(unet_folder)

    def test_two_schedulers_that_differ_are_refused(self, unet_folder: Path) -> None:
        scheduler(unet_folder, "DDPMScheduler")
        scheduler(unet_folder.parent / "scheduler", "DDIMScheduler")
        assert resolved(unet_folder).schedule == "linear-1000"
        scheduler(unet_folder.parent / "scheduler", "DDIMScheduler", beta_end=0.03)
        with pytest.raises(InvalidInput, match=r"two scheduler configs that differ: .*Remove the wrong one"):
            resolved(unet_folder)

    def test_a_purifier_takes_t_star_and_sigma_on_the_folder_s_schedule(self, unet_folder: Path) -> None:
        scheduler(unet_folder, "DDPMScheduler", beta_schedule="sigmoid", num_train_timesteps=200, beta_end=0.1)
        denoiser = resolved(unet_folder)
        by_sigma = DiffPureConfig(denoiser=denoiser, sigma_eq=0.2)
        level = by_sigma.noise_level
        assert level is not None and level.sigma_eq >= 0.2 > denoiser.noise_schedule.level(level.t_star - 1).sigma_eq
        by_t = DiffPureConfig(denoiser=denoiser, t_star=level.t_star, schedule=FROM_FOLDER)
        assert by_t == by_sigma and by_t.identity()["schedule"] == denoiser.schedule
        assert by_t == DiffPureConfig(denoiser=denoiser, t_star=level.t_star, schedule=denoiser.schedule)
        assert by_t.sampler().abar(0) == level.abar
        with pytest.raises(InvalidInput, match=r"t_star = 201 is not on schedule 'sigmoid-200@"):
            DiffPureConfig(denoiser=denoiser, t_star=201, schedule=FROM_FOLDER)
        with pytest.raises(InvalidInput, match=r"'linear-1000' is not the one .*trained on \('sigmoid-200@"):
            DiffPureConfig(denoiser=denoiser, t_star=20, schedule="linear-1000")
        with pytest.raises(InvalidInput, match="resolve its config first"):
            DiffPureConfig(denoiser=DiffusersConfig(path=str(unet_folder)), sigma_eq=0.2)

    def test_zero_terminal_snr_ends_before_the_level_without_an_image(self, unet_folder: Path) -> None:
        scheduler(unet_folder, "DDIMScheduler", rescale_betas_zero_snr=True)
        config = resolved(unet_folder)
        assert config.noise_schedule.steps == 999 and 0 < config.noise_schedule.abar[-1] < 1e-4
        z, _ = noised()
        with torch.no_grad():
            assert torch.isfinite(config.build()(z, 999)).all()

    @pytest.mark.parametrize("name", [FROM_FOLDER, "linear-1000@0123456789abcdef"])
    def test_the_name_alone_is_no_schedule(self, name: str) -> None:
        with pytest.raises(InvalidInput, match=r"diffusers folder has been read|is that of a denoiser folder"):
            get_schedule(name)


def resolved_with_linear(folder: Path) -> DiffusersConfig:
    (folder / "scheduler_config.json").unlink()
    return resolved(folder, schedule="linear-1000")


class TestKnowledgeOfDiffusers:
    """What the readers know of diffusers is what the installed one has."""

    def test_every_scheduler_has_these_fields_and_defaults(self) -> None:
        import diffusers

        for name, defaults in SCHEDULERS.items():
            signature = inspect.signature(getattr(diffusers, name).__init__).parameters
            own = {key: p.default for key, p in signature.items() if key not in ("self", "kwargs")}
            assert own.keys() <= READ | SAMPLING, name
            assert {key: own[key] for key in defaults if key in own} == {
                k: v for k, v in defaults.items() if k in own
            }

    def test_the_network_has_these_arguments(self) -> None:
        from diffusers import UNet2DModel

        assert inspect.signature(UNet2DModel.__init__).parameters.keys() - {"self"} <= FIELDS.keys()


class TestRefusedSchedulers:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("ScoreSdeVeScheduler", "variance exploding"),
            ("FlowMatchEulerDiscreteScheduler", "flow matching"),
            ("FlowMatchHeunDiscreteScheduler", "flow matching"),
            ("EDMEulerScheduler", r"preconditioned .*format: score-sde"),
            ("EDMDPMSolverMultistepScheduler", "preconditioned"),
            ("LCMScheduler", "consistency models"),
            ("IPNDMScheduler", "its noise is not known here; read are DDIM"),
        ],
    )
    @pytest.mark.parametrize("schedule", [FROM_FOLDER, "linear-1000"])
    def test_other_processes(self, unet_folder: Path, name: str, reason: str, schedule: str) -> None:
        scheduler(unet_folder, name)
        with pytest.raises(InvalidInput, match=rf"scheduler_config\.json' has `_class_name` = '{name}': .*{reason}"):
            resolved(unet_folder, schedule=schedule)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"beta_schedule": "laplace"}, "`beta_schedule` = 'laplace': known are linear, .*sigmoid"),
            ({"beta_schedule": None}, "`beta_schedule` = None"),
            ({"beta_start": -1e-4}, "`beta_start` = -0.0001: it is a number between 0 and 1"),
            ({"beta_end": "0.02"}, "`beta_end` = '0.02': it is a number"),
            ({"beta_end": 1.5}, "`beta_end` = 1.5: it is a number between"),
            ({"num_train_timesteps": 0}, "`num_train_timesteps` = 0: it is a whole number from 1"),
            ({"num_train_timesteps": 10**9}, "`num_train_timesteps` = 1000000000"),
            ({"num_train_timesteps": 90_000}, "abar does not fall from 1 to above 0"),
            ({"trained_betas": [0.1, "x"]}, "`trained_betas` = .*list of numbers"),
            ({"trained_betas": [0.1, 0.2]}, "`num_train_timesteps` = 1000: `trained_betas` lists 2"),
            ({"rescale_betas_zero_snr": "yes"}, "`rescale_betas_zero_snr` = 'yes': it is true or false"),
            ({"prediction_type": "flow_prediction"}, "predicts 'flow_prediction' .*known are epsilon"),
            ({"thresholding": True}, "`thresholding` = True: puregrid has no dynamic thresholding"),
            ({"clip_sample_range": 2.0}, r"`clip_sample_range` = 2.0: images are in \[-1, 1\]"),
            ({"use_flow_sigmas": True}, "`use_flow_sigmas` = True: .*flow matching"),
            ({"timestep_type": "continuous"}, "`timestep_type` = 'continuous': .*continuous noise level"),
            ({"variance_type": "learned"}, "`variance_type` = 'learned': a variance output is read as"),
            ({"variance_type": "learned_range"}, "a variance output .*`out_channels` = 1 of 1"),
            ({"beta_sart": 0.1}, r"`beta_sart` = 0.1: there is no such field; did you mean 'beta_start'\?"),
            ({"predict_epsilon": False}, "`predict_epsilon` = False: `prediction_type` = 'epsilon' says otherwise"),
        ],
    )
    def test_fields_that_are_not_understood(self, unet_folder: Path, fields: dict[str, Any], message: str) -> None:
        scheduler(unet_folder, "DDPMScheduler")
        file = unet_folder / "scheduler_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        with pytest.raises(InvalidInput, match=message) as caught:
            resolved(unet_folder)
        assert str(file) in str(caught.value)

    def test_the_old_way_to_say_what_is_predicted(self, tmp_path: Path) -> None:
        file = tmp_path / "scheduler_config.json"
        for epsilon, prediction in ((True, "eps"), (False, "x0")):
            file.write_text(
                json.dumps({"_class_name": "DDPMScheduler", "predict_epsilon": epsilon, "tensor_format": "pt"})
            )
            assert read_scheduler_config(file).prediction == prediction


class TestRefusedNetworks:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            (
                {"_class_name": "UNet2DConditionModel"},
                "'UNet2DConditionModel' for `_class_name`: what is read here is",
            ),
            ({"_class_name": "AutoencoderKL"}, "'AutoencoderKL' for `_class_name`"),
            ({"sample_size": None}, "None for `sample_size`: it takes a whole number, or a list of"),
            ({"sample_size": [8, 8, 8]}, "for `sample_size`"),
            ({"in_channels": "1"}, "'1' for `in_channels`: it takes a whole number"),
            ({"out_channels": 3}, "3 for `out_channels`: of 1 input channels a denoiser predicts as many"),
            (
                {"num_class_embeds": "10"},
                "'10' for `num_class_embeds`: it takes a whole number or null",
            ),
            (
                {"num_class_embeds": 10, "_null_class": 3},
                "3 for `_null_class`: the embedding that stands for no class is the last",
            ),
            ({"class_embed_type": "timestep"}, "`class_embed_type`"),
            ({"time_embedding_type": "fourier"}, "variance-exploding noise, which are told their sigma"),
            ({"time_embedding_type": "learned"}, "nothing for `num_train_timesteps`"),
            (
                {"time_embedding_type": "learned", "num_train_timesteps": 100},
                "`num_train_timesteps` = 100, and the schedule linear-1000 has 1000 steps",
            ),
            ({"norm_eps": "small"}, "'small' for `norm_eps`: it takes a number above 0"),
            (
                {"layers_per_blok": 2},
                r"2 for `layers_per_blok`: .*no such argument; did you mean 'layers_per_block'\?",
            ),
        ],
    )
    def test_at_the_plan(self, unet_folder: Path, fields: dict[str, Any], message: str) -> None:
        file = unet_folder / "config.json"
        said = json.loads(file.read_text())
        file.write_text(json.dumps(said | fields))
        with pytest.raises(InvalidInput, match=message) as caught:
            resolved(unet_folder, schedule="linear-1000")
        assert str(file) in str(caught.value)

    def test_an_absent_size_of_images(self, unet_folder: Path) -> None:
        file = unet_folder / "config.json"
        said = json.loads(file.read_text())
        del said["sample_size"]
        file.write_text(json.dumps(said))
        with pytest.raises(InvalidInput, match="nothing for `sample_size`: the size of its images is needed"):
            resolved(unet_folder, schedule="linear-1000")

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"act_fn": "tanhh"}, "denoiser config .* cannot be read"),
            ({"down_block_types": ["NoSuchBlock"]}, "denoiser config .* cannot be read"),
            ({"norm_num_groups": 7}, "denoiser config .* cannot be read"),
            ({"block_out_channels": [65_536]}, "of another shape: conv_in"),
            ({"layers_per_block": 3}, "missing in the file"),
            ({"attention_head_dim": 3}, r"of another shape: mid_block\.attentions"),
        ],
    )
    def test_at_loading_before_any_memory_is_taken(
        self, unet_folder: Path, fields: dict[str, Any], message: str
    ) -> None:
        file = unet_folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        with pytest.raises(InvalidInput, match=message):
            resolved(unet_folder, schedule="linear-1000").build()

    @pytest.mark.parametrize("content", ["{", "[1, 2]", "null", "", "\ufeff{}", '{"a": 1e999999'])
    @pytest.mark.parametrize("name", ["config.json", "scheduler_config.json", "../model_index.json"])
    def test_broken_json_is_named(self, unet_folder: Path, name: str, content: str) -> None:
        (unet_folder / name).write_text(content)
        with pytest.raises(InvalidInput, match=name.removeprefix("../").replace(".", r"\.")):
            resolved(unet_folder, schedule="linear-1000")
