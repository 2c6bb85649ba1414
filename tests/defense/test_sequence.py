"""Purifiers one after the other: randomness, gradients and configs of the stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toys import GUIDED, UNGUIDED, gradient, images, omega, relative

import defense
from defense import PURIFIERS, DiffusersConfig, InvalidInput, purify
from defense.purifiers import DiffPureConfig, NoPurifierConfig, Sequence, SequenceConfig
from defense.purifiers.gaussian_noise import GaussianNoise, GaussianNoiseConfig

ASSETS = Path(defense.__file__).parent / "assets"
OMEGA = omega(4, 9, 2)
LINEAR = DiffusersConfig(schedule="linear-1000", path="unet")
DIFFPURE: dict[str, Any] = {
    "purifier": "diffpure",
    "denoiser": LINEAR,
    "schedule": "linear-1000",
    "t_star": 50,
    "steps": 5,
}


class TestStages:
    def test_each_stage_draws_its_own_noise_by_its_place(self) -> None:
        noise = GaussianNoise(0.5)
        x = images()
        first = noise(x, OMEGA.within("0")) - x
        second = noise(x, OMEGA.within("1")) - x
        assert (first - second).abs().max() > 0.1
        torch.testing.assert_close(Sequence([noise, noise])(x, OMEGA) - x, first + second, rtol=0, atol=1e-14)
        # Not the noise of the same purifier alone.
        assert not torch.equal(Sequence([noise])(x, OMEGA), noise(x, OMEGA))

    def test_stages_see_what_the_stage_before_made(self) -> None:
        first, second, x = UNGUIDED["sde"], GUIDED["gdmp mse"], images()
        by_hand = second(first(x, OMEGA.within("0")), OMEGA.within("1"))
        assert torch.equal(Sequence([first, second])(x, OMEGA), by_hand)
        assert not torch.equal(Sequence([second, first])(x, OMEGA), by_hand)

    @pytest.mark.slow
    def test_sequences_nest_and_their_gradients_are_exact(self) -> None:
        inner = Sequence([GUIDED["transfer soft-label denoised"], UNGUIDED["ode"]])
        whole, x = Sequence([UNGUIDED["ddim half"], inner, GaussianNoise(0.1)]), images()
        expected = gradient(lambda x: whole(x, OMEGA), x)
        for segment in (None, 1, 4):
            assert relative(gradient(lambda x, s=segment: purify(whole, x, OMEGA, segment=s), x), expected) < 1e-10

    def test_the_surrogate_shortens_every_stage_that_can_be(self) -> None:
        whole = Sequence([GaussianNoise(0.1), UNGUIDED["ddpm small"], GUIDED["gdmp mse"]])
        short = whole.surrogate(2)
        assert [getattr(stage, "length", None) for stage in short.stages] == [None, 2, 6]
        assert [getattr(stage, "length", None) for stage in whole.stages] == [None, 10, 18]
        assert isinstance(short.stages[0], GaussianNoise)


class TestConfig:
    def test_stages_are_given_by_name_by_mapping_or_as_configs(self) -> None:
        given = ["none", {"purifier": "gaussian-noise", "sigma": 0.1}, DiffPureConfig.model_validate(DIFFPURE)]
        config = SequenceConfig.model_validate({"purifier": "chain", "stages": given})
        one, two, three = config.stages
        assert one == NoPurifierConfig() and two == GaussianNoiseConfig(sigma=0.1)
        assert isinstance(three, DiffPureConfig) and three.steps == 5
        assert SequenceConfig.model_validate({"stages": ["none", two, DIFFPURE]}).id == config.id
        assert PURIFIERS.get("chain") is SequenceConfig

    def test_what_it_says_of_itself_is_what_its_stages_say(self) -> None:
        gdmp = {**DIFFPURE, "purifier": "gdmp", "t_star": 36, "steps": 3, "rounds": 2}
        transfer = {**DIFFPURE, "purifier": "distribution-transfer"}
        config = SequenceConfig.model_validate({"stages": [{"purifier": "bit-depth", "bits": 3}, DIFFPURE, gdmp]})
        assert config.evaluations == 5 + 6 and config.classifier_evaluations == 0
        assert config.stochastic and config.knows_eps and not config.differentiable and not config.uses_classifier
        assert config.noise_level is not None and config.noise_level.t_star == 50
        assert config.label() == "bit-depth 3 + diffpure t*=50 in 5 steps + gdmp t*=36 in 3 steps x2"
        assert config.model_key() == LINEAR.id
        guided = SequenceConfig.model_validate({"stages": [transfer]})
        assert guided.uses_classifier and guided.classifier_evaluations == 10 and not guided.knows_eps
        still = SequenceConfig.model_validate({"stages": ["none", {"purifier": "median"}]})
        assert not still.stochastic and still.differentiable and still.noise_level is None and still.model_key() == ""

    def test_order_and_every_parameter_of_a_stage_are_in_the_id(self) -> None:
        noise = {"purifier": "gaussian-noise", "sigma": 0.1}
        ids = {
            SequenceConfig.model_validate({"stages": stages}).id
            for stages in (
                [noise, DIFFPURE],
                [DIFFPURE, noise],
                [noise],
                [{**noise, "sigma": 0.2}, DIFFPURE],
                [noise, {**DIFFPURE, "t_star": 51}],
            )
        }
        assert len(ids) == 5

    @pytest.mark.parametrize(
        ("stages", "message"),
        [
            (["difpure"], r"unknown purifier 'difpure'; did you mean 'diffpure'\?"),
            ([{"purifier": "medan"}], "did you mean 'median'"),
            ([{**DIFFPURE, "schedule": None}], "t_star is given without `schedule`"),
        ],
    )
    def test_a_stage_that_cannot_be_is_refused_with_its_own_message(self, stages: list[Any], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            SequenceConfig.model_validate({"stages": stages})

    @pytest.mark.parametrize("stages", [[], "diffpure", [5], [{"sigma": 0.1}], [{"purifier": "median", "sice": 3}]])
    def test_what_is_no_list_of_purifiers_is_refused(self, stages: Any) -> None:
        with pytest.raises(InvalidInput):
            SequenceConfig.model_validate({"stages": stages})

    @pytest.mark.slow
    def test_it_builds_its_stages_around_one_denoiser(self) -> None:
        denoiser = DiffusersConfig(schedule="linear-1000", path="digits-ddpm")
        stages = [{**DIFFPURE, "denoiser": denoiser, "steps": 2}, "none", {**DIFFPURE, "denoiser": denoiser}]
        config = SequenceConfig.model_validate({"stages": stages}).resolved(ASSETS)
        assert config.image_shape == (1, 8, 8)
        built = config.build()
        x = images().float()
        by_hand = x
        for k, stage in enumerate(config.stages):
            by_hand = stage.build()(by_hand, OMEGA.within(str(k)))
        assert torch.equal(built(x, OMEGA), by_hand)
        assert not any(module.training for module in built.modules())
