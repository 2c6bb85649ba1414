"""Configs of the purifiers: rules, defaults, labels, and costs against networks that count."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from loops import every
from torch import nn
from toys import CLASSIFIER, DENOISER, SmoothClassifier, SmoothDenoiser, images, omega

from defense import PURIFIERS, ClassifierConfig, InvalidInput, Models, PurifierConfig, get_schedule
from defense.denoisers import DenoiserConfig
from defense.purifiers import (
    DensePureConfig,
    DiffPureConfig,
    DistributionTransferConfig,
    GDMPConfig,
    GradualNoiseConfig,
    GuidedFromNoiseConfig,
    IterativePurifier,
    OneShotConfig,
    RobustReverseConfig,
)


class ToyConfig(DenoiserConfig):
    """A denoiser config without files."""

    format: Literal["toy"] = "toy"
    schedule: str = "linear-1000"

    def resolved(self, base: Path) -> ToyConfig:
        return self

    def build(self) -> Any:
        denoiser = copy.deepcopy(DENOISER)
        denoiser.schedule = get_schedule(self.schedule)
        return denoiser


class LearnedConfig(ToyConfig):
    """One whose network has a variance output."""

    @property
    def learned_variance(self) -> bool:
        return True


TOY, COSINE, LEARNED = ToyConfig(), ToyConfig(schedule="cosine-4000"), LearnedConfig()
AT: dict[str, Any] = {"denoiser": TOY, "schedule": "linear-1000", "t_star": 50}


def config(purifier: str, **fields: Any) -> PurifierConfig:
    return PURIFIERS.get(purifier).model_validate({"purifier": purifier, **AT, **fields})


class Spies:
    """Loads one denoiser and one classifier that count."""

    def __init__(self) -> None:
        self.denoiser: SmoothDenoiser = copy.deepcopy(DENOISER)
        self.classifier: SmoothClassifier = copy.deepcopy(CLASSIFIER)
        self.denoiser.calls = self.classifier.calls = 0

    def models(self) -> Models:
        def load(wanted: Any) -> nn.Module:
            self.denoiser.schedule = get_schedule(getattr(wanted, "schedule", "linear-1000"))
            return self.classifier if isinstance(wanted, ClassifierConfig) else self.denoiser

        return Models(self.classifier, load)


COSTS: list[tuple[str, dict[str, Any], int, int]] = [
    *[("diffpure", {"form": form, "steps": 5}, 5, 0) for form in ("ddpm", "ddim", "sde", "ode")],
    ("diffpure", {"steps": 5, "variance": "learned", "denoiser": LEARNED}, 5, 0),
    ("diffpure", {"form": "ldsde", "t_star": 10, "steps": 7}, 7, 0),
    ("diffpure", {"form": "ldsde", "t_star": 10}, 100, 0),
    ("diffpure", {}, 50, 0),
    ("one-shot", {}, 1, 0),
    ("densepure", {}, 10, 0),
    ("densepure", {"t_star": 4}, 4, 0),
    ("gdmp", {"steps": 4}, 16, 0),
    ("gdmp", {"steps": 4, "rounds": 2, "similarity": "ssim", "scale_rule": "constant", "scale": 1.0}, 8, 0),
    ("guided-from-noise", {"steps": 6}, 6, 0),
    *[
        ("distribution-transfer", {"steps": 4, "guidance": form, "classifier_sees": sees}, 4, 4 * per_step)
        for form, per_step in (("soft-label", 2), ("logit", 2), ("confidence", 1), ("none", 0))
        for sees in ("denoised", "noisy")
    ],
    *[
        ("robust-reverse", {"steps": 3, "auxiliary": "digits-cnn", **fields}, 3, 3 * per_step)
        for fields, per_step in (
            ({}, 4),
            ({"class_label": "entropy"}, 3),
            ({"class_weight": 0.0}, 2),
            ({"latent_weight": 0.0}, 2),
            ({"latent_weight": 0.0, "class_label": "entropy"}, 1),
            ({"class_weight": 0.0, "latent_weight": 0.0}, 0),
            ({"auxiliary_sees": "denoised", "target": "input"}, 4),
        )
    ],
]


class TestCosts:
    @pytest.mark.slow
    @every(("purifier", "fields", "evaluations", "classifier_evaluations"), COSTS)
    def test_the_evaluations_are_those_that_the_networks_count(
        self, purifier: str, fields: dict[str, Any], evaluations: int, classifier_evaluations: int
    ) -> None:
        wanted, spies = config(purifier, **fields), Spies()
        built = wanted.build(spies.models())
        with torch.no_grad():
            built(images(), omega(4, 9, 2))
        assert (wanted.evaluations, wanted.classifier_evaluations) == (evaluations, classifier_evaluations)
        assert (spies.denoiser.calls, spies.classifier.calls) == (evaluations, classifier_evaluations)
        assert isinstance(built, IterativePurifier) and built.length == evaluations

    def test_gradual_noise_costs_the_sum_of_its_t_stars(self) -> None:
        fields: dict[str, Any] = {"denoiser": TOY, "schedule": "linear-1000"}
        assert GradualNoiseConfig(**fields).evaluations == 4 * 30 + 2 * 50 + 2 * 125 == 470
        short, spies = GradualNoiseConfig(**fields, depths=(3, 8), steps=5), Spies()
        with torch.no_grad():
            short.build(spies.models())(images(), omega(4, 9, 2))
        assert short.evaluations == spies.denoiser.calls == 3 + 5


class TestDepth:
    @pytest.mark.parametrize(
        "purifier", ["diffpure", "gdmp", "guided-from-noise", "distribution-transfer", "one-shot", "densepure"]
    )
    def test_a_bare_t_star_is_refused_by_all_that_diffuse(self, purifier: str) -> None:
        kind = PURIFIERS.get(purifier)
        with pytest.raises(InvalidInput, match=r"t_star is given without `schedule`.*Write `schedule: linear-1000`"):
            kind.model_validate({"denoiser": TOY, "t_star": 50})
        by_sigma = kind.model_validate({"denoiser": TOY, "sigma_eq": 0.099})
        by_t = kind.model_validate({"denoiser": TOY, "schedule": "linear-1000", "t_star": 58})
        assert by_sigma.id == by_t.id
        with pytest.raises(InvalidInput, match="'cosine-4000' is not the one that the denoiser was trained on"):
            kind.model_validate({"denoiser": TOY, "schedule": "cosine-4000", "t_star": 50})

    @pytest.mark.parametrize(("denoiser", "t_star", "sigma"), [(TOY, 58, 0.0990), (COSINE, 471, 0.0990)])
    def test_distribution_transfer_is_noise_matched_by_default(
        self, denoiser: ToyConfig, t_star: int, sigma: float
    ) -> None:
        found = DistributionTransferConfig(denoiser=denoiser)  # type: ignore[call-arg]
        assert found.t_star == found.steps == t_star and found.schedule == denoiser.schedule
        assert found.noise_level is not None and found.noise_level.sigma_eq == pytest.approx(sigma, abs=0.001)
        assert get_schedule(denoiser.schedule).level(t_star - 1).sigma_eq < 0.099 <= found.noise_level.sigma_eq
        literal = config("distribution-transfer", t_star=470)
        assert literal.noise_level is not None and literal.noise_level.sigma_eq == pytest.approx(1.456, abs=5e-4)
        assert "t*=470" in literal.label() and literal.id != found.id

    def test_generation_from_noise_starts_at_the_end_of_the_schedule(self) -> None:
        assert GuidedFromNoiseConfig(denoiser=TOY).t_star == 1000  # type: ignore[call-arg]
        assert GuidedFromNoiseConfig(denoiser=COSINE).t_star == 4000  # type: ignore[call-arg]

    def test_others_need_a_t_star(self) -> None:
        for kind in (DiffPureConfig, GDMPConfig, OneShotConfig, DensePureConfig):
            with pytest.raises(InvalidInput, match=f"{kind.model_fields['purifier'].default} takes one noise level"):
                kind.model_validate({"denoiser": TOY})

    def test_langevin_dynamics_take_a_level_for_the_score_and_add_no_forward_noise(self) -> None:
        found = config("diffpure", form="ldsde", t_star=10)
        assert found.noise_level is None and found.evaluations == 100
        assert found.id == config("diffpure", form="ldsde", t_star=10, steps=None).id
        assert found.id == config("diffpure", form="ldsde", t_star=10, steps=100).id
        assert found.label() == "diffpure t*=10 in 100 steps ldsde"
        with pytest.raises(InvalidInput, match="t_star is missing"):
            DiffPureConfig.model_validate({"denoiser": TOY, "form": "ldsde"})
        with pytest.raises(InvalidInput, match="sigma_eq has no meaning in form ldsde"):
            config("diffpure", form="ldsde", sigma_eq=0.1)
        with pytest.raises(InvalidInput, match="t_star = 2000 is not on schedule"):
            config("diffpure", form="ldsde", t_star=2000)

    @pytest.mark.parametrize("depths", [[], [0], [-5, 10], [30, "50"], [30.0], "30", 30, None, [True]])
    def test_depths_are_a_list_of_whole_numbers(self, depths: Any) -> None:
        with pytest.raises(InvalidInput, match="depths is a list of whole numbers"):
            GradualNoiseConfig.model_validate({"denoiser": TOY, "schedule": "linear-1000", "depths": depths})

    def test_depths_take_the_place_of_t_star(self) -> None:
        fields = {"denoiser": TOY, "schedule": "linear-1000", "depths": [10, 30]}
        found = GradualNoiseConfig.model_validate(fields)
        assert found.depths == (10, 30) and found.t_star == found.steps == 30
        assert found.noise_level == get_schedule("linear-1000").level(30)
        for wrong in ({"t_star": 20}, {"sigma_eq": 0.1}, {"t_star": 30, "sigma_eq": 0.1}):
            with pytest.raises(InvalidInput, match="`depths` replaces t_star"):
                GradualNoiseConfig.model_validate({**fields, **wrong})
        with pytest.raises(InvalidInput, match="`depths` replaces t_star"):
            GradualNoiseConfig.model_validate({"denoiser": TOY, "schedule": "linear-1000", "t_star": 125})
        # Its identity, which says the t_star that was filled in, is read back.
        assert GradualNoiseConfig.model_validate({**fields, "t_star": 30, "steps": 30}).id == found.id
        with pytest.raises(InvalidInput, match="`depths` is given without `schedule`; write `schedule: linear-1000`"):
            GradualNoiseConfig.model_validate({"denoiser": TOY, "depths": [10]})
        with pytest.raises(InvalidInput, match="t_star = 1001 is not on schedule"):
            GradualNoiseConfig.model_validate({**fields, "depths": [10, 1001]})


class TestForms:
    def test_parameters_of_another_form_are_refused(self) -> None:
        for form in ("ddim", "sde", "ode", "ldsde"):
            with pytest.raises(InvalidInput, match=f"variance belongs to form ddpm; form {form} has no choice"):
                config("diffpure", form=form, variance="large")
        for form in ("ddpm", "sde", "ode", "ldsde"):
            with pytest.raises(InvalidInput, match=f"eta belongs to form ddim; form {form} has none"):
                config("diffpure", form=form, eta=0.5)
        assert config("diffpure", form="ddim", eta=0.5).id != config("diffpure", form="ddim").id
        with pytest.raises(InvalidInput):
            config("diffpure", form="ddim", eta=1.5)

    @every("purifier", ["gdmp", "guided-from-noise", "distribution-transfer", "robust-reverse", "densepure"])
    @every("form", ["ddim", "sde", "ode"])
    def test_a_guided_purifier_takes_every_form_without_naming_a_variance(self, purifier: str, form: str) -> None:
        extra = {"auxiliary": "digits-cnn"} if purifier == "robust-reverse" else {}
        found = config(purifier, form=form, **extra)
        assert found.id == config(purifier, form=form, variance="small", **extra).id
        default = "small" if purifier == "densepure" else "large"
        assert config(purifier, **extra).id == config(purifier, variance=default, **extra).id

    def test_a_learned_variance_needs_a_network_that_has_one(self) -> None:
        with pytest.raises(InvalidInput, match=r"needs a denoiser with a variance output.*`variance: small`"):
            config("diffpure", variance="learned")
        assert config("diffpure", variance="learned", denoiser=LEARNED).evaluations == 50


class TestGuided:
    @pytest.mark.parametrize("purifier", ["guided-from-noise", "distribution-transfer"])
    def test_lpips_and_its_weights_go_together(self, purifier: str) -> None:
        with pytest.raises(InvalidInput, match=r"distance lpips and `lpips` go together.*never fetched silently"):
            config(purifier, distance="lpips")
        with pytest.raises(InvalidInput, match="distance lpips and `lpips` go together"):
            config(purifier, lpips={"weights": "alexnet.pth"})
        assert config(purifier, distance="lpips", lpips={"weights": "alexnet.pth"})

    def test_gdmp_knows_eps_unless_its_scale_is_constant(self) -> None:
        assert config("gdmp").knows_eps and not config("gdmp", scale_rule="constant").knows_eps
        others = ("diffpure", "one-shot", "guided-from-noise", "distribution-transfer")
        assert not any(config(name).knows_eps for name in others)

    def test_the_protected_classifier_is_used_where_the_config_says_so(self) -> None:
        used = {
            form: config("distribution-transfer", guidance=form).uses_classifier
            for form in ("soft-label", "logit", "confidence", "none")
        }
        assert used == {"soft-label": True, "logit": True, "confidence": True, "none": False}
        with pytest.raises(ValueError, match=r"guided by the classifier that it protects: Models\(protected=...\)"):
            config("distribution-transfer").build()
        config("distribution-transfer", guidance="none").build()
        with pytest.raises(InvalidInput):
            config("distribution-transfer", guidance="oracle-label")

    def test_the_auxiliary_network_is_a_name_or_a_mapping(self) -> None:
        by_name = config("robust-reverse", auxiliary="digits-cnn")
        by_mapping = config("robust-reverse", auxiliary={"classifier": "digits-cnn"})
        assert isinstance(by_name, RobustReverseConfig)
        assert by_name.auxiliary == ClassifierConfig(classifier="digits-cnn") and by_name.id == by_mapping.id
        resolved = by_name.resolved(Path())
        assert isinstance(resolved, RobustReverseConfig) and resolved.auxiliary.sha256
        assert not by_name.uses_classifier
        with pytest.raises(InvalidInput, match="did you mean 'digits-cnn'"):
            config("robust-reverse", auxiliary="digit-cnn").resolved(Path())
        with pytest.raises(InvalidInput):
            config("robust-reverse")

    def test_a_noisy_target_is_not_compared_with_a_denoised_image(self) -> None:
        with pytest.raises(InvalidInput, match="write `target: input`"):
            config("robust-reverse", auxiliary="digits-cnn", auxiliary_sees="denoised")

    @pytest.mark.parametrize(
        ("purifier", "field", "value"),
        [
            ("gdmp", "scale", -1.0),
            ("gdmp", "ptb", 0.0),
            ("gdmp", "b_ref", 0),
            ("gdmp", "rounds", 0),
            ("gdmp", "similarity", "lpips"),
            ("distribution-transfer", "lam", -0.1),
            ("guided-from-noise", "scale", "10"),
            ("densepure", "steps", 0),
        ],
    )
    def test_values_out_of_range_are_refused(self, purifier: str, field: str, value: Any) -> None:
        with pytest.raises(InvalidInput):
            config(purifier, **{field: value})


class TestLabels:
    @pytest.mark.parametrize(
        ("purifier", "fields", "label"),
        [
            ("diffpure", {}, "diffpure t*=50"),
            ("diffpure", {"steps": 5, "form": "sde"}, "diffpure t*=50 in 5 steps sde"),
            ("gdmp", {"t_star": 36}, "gdmp t*=36 x4"),
            ("guided-from-noise", {"steps": 10}, "guided-from-noise t*=50 in 10 steps"),
            ("distribution-transfer", {"guidance": "confidence"}, "distribution-transfer confidence t*=50"),
            ("robust-reverse", {"auxiliary": "digits-cnn"}, "robust-reverse t*=50"),
            ("one-shot", {}, "one-shot t*=50"),
            ("densepure", {}, "densepure t*=50 in 10 steps"),
        ],
    )
    def test_tables_show_t_star_steps_and_form(self, purifier: str, fields: dict[str, Any], label: str) -> None:
        assert config(purifier, **fields).label() == label

    def test_the_t_stars_of_gradual_noise(self) -> None:
        fields: dict[str, Any] = {"denoiser": TOY, "schedule": "linear-1000", "depths": (30, 125)}
        assert GradualNoiseConfig(**fields).label() == "gradual-noise t*=30,125"
        assert GradualNoiseConfig(**fields, steps=5).label() == "gradual-noise t*=30,125 in 5 steps"


class TestMeaning:
    """What the configs build."""

    def test_densepure_draws_share_the_forward_noise_and_differ_in_the_reverse(self) -> None:
        built = config("densepure", steps=3).build()
        assert isinstance(built, IterativePurifier)
        x = images()
        one, two = omega(4, 9, 2), omega(4, 9, 2, draw=1)
        assert torch.equal(built.start(x, one), built.start(x, two))
        assert not torch.equal(built(x, one), built(x, two))
        plain = config("diffpure", steps=3, clip_denoised=True).build()
        assert isinstance(plain, IterativePurifier)
        assert not torch.equal(plain.start(x, one), plain.start(x, two))
        assert torch.equal(plain(x, one), built(x, one))  # draw 0 is DiffPure's

    def test_one_shot_is_the_clamped_prediction(self) -> None:
        x, keys = images(), omega(4, 9, 2)
        abar = get_schedule("linear-1000").level(50).abar
        z = abar**0.5 * (2 * x - 1) + (1 - abar) ** 0.5 * keys.normal("forward", 0, x)
        expected = ((z - (1 - abar) ** 0.5 * DENOISER(z, 50)) / abar**0.5).clamp(-1, 1)
        torch.testing.assert_close(config("one-shot").build()(x, keys), (expected + 1) / 2, rtol=0, atol=1e-13)

    def test_generation_from_noise_knows_the_input_through_guidance_alone(self) -> None:
        built = config("guided-from-noise", steps=5, scale=0.0).build()
        keys = omega(4, 9, 2)
        assert torch.equal(built(images(), keys), built(1 - images(), keys))
        built = config("guided-from-noise", steps=5, scale=1.0).build()
        assert not torch.equal(built(images(), keys), built(1 - images(), keys))

    def test_rounds_noise_afresh(self) -> None:
        once, twice = (config("gdmp", rounds=rounds, steps=2, scale=0.0).build() for rounds in (1, 2))
        assert isinstance(once, IterativePurifier) and isinstance(twice, IterativePurifier)
        x, keys = images(), omega(4, 9, 2)
        z = once.start(x, keys)
        for i in range(2):
            z = once.step(i, z, x, keys)
        abar = get_schedule("linear-1000").level(51).abar  # as in the authors' code
        noised = abar**0.5 * z + (1 - abar) ** 0.5 * keys.normal("forward", 1, z)
        again = noised
        grid = ((50, 25), (25, 0))
        sampler = twice.rounds[1]  # type: ignore[union-attr, index]
        for j, (t, s) in enumerate(grid):
            step = sampler.transition(j, again, DENOISER(again, t))
            noise = keys.normal("reverse", 1001 + t, again)
            again = step.mean + (step.std * noise if s else 0)
        torch.testing.assert_close(twice(x, keys), twice.finish(again, x, keys), rtol=0, atol=1e-12)

    def test_langevin_dynamics_by_hand(self) -> None:
        """dz = -lam/2 (-score + (z - z_x)/sigma^2) dt + sqrt(lam) eta dw, lam = 1e-2, sigma^2 = 1e-3, eta = 5."""
        x, keys = images(), omega(4, 9, 2)
        built = config("diffpure", form="ldsde", t_star=10, steps=3).build()
        sqrt_rest = (1 - get_schedule("linear-1000").level(10).abar) ** 0.5
        z = start = 2 * x - 1
        for i in range(3):
            score = -DENOISER(z, 10) / sqrt_rest
            drift = -0.5e-2 * (-score + (z - start) / 1e-3)
            z = z + 1e-2 * drift + (1e-2**0.5) * 5 * (1e-2**0.5) * keys.normal("reverse", i, z)
        torch.testing.assert_close(built(x, keys), (z + 1) / 2, rtol=0, atol=1e-13)
