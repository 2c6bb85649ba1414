"""Stages and attacks say themselves what they are: no rule and no table goes by their names or guesses at fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pyarrow as pa
import pytest

from defense import ClassifierConfig, NoPurifierConfig
from defense.purifiers import PurifierConfig
from tasks.attacks import AttackConfig, FGSMConfig, PGDConfig
from tasks.attacks.base import ATTACKS
from tasks.certificates import CertificateConfig
from tasks.compute import Compute, Context
from tasks.corruptions.config import CorruptionConfig
from tasks.stages import (
    AttackStage,
    CertifyStage,
    Chunk,
    Components,
    CorruptStage,
    EvaluateStage,
    Output,
    QualityStage,
    Smoothed,
    StageSpec,
)
from tasks.stages.kind import Kind
from tasks.stages.quality import QualityConfig

FOG = CorruptionConfig(corruption="fog", severity=3)


class Borrowed(StageSpec):
    """Somebody's stage, which says nothing of its parts."""

    stage: Literal["borrowed"] = "borrowed"
    version: Literal[1] = 1
    classifier: str = "a name of their own"

    def model_key(self) -> str:
        return "0123456789abcdef"

    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        raise AssertionError("nothing is computed here")


def test_a_stage_says_its_components_threat_and_kind(
    attack: AttackStage, evaluate: EvaluateStage, cnn: ClassifierConfig
) -> None:
    purifier, key = evaluate.purifier, evaluate.purifier.model_key()
    assert attack.components == Components(cnn, attack=attack.attack)
    assert attack.threat is attack.attack
    assert attack.kind == Kind("attack", "pgd", "", cnn.id, f"attack pgd {cnn.label()}")
    adaptive = attack.model_copy(
        update={"attack": PGDConfig(norm="linf", eps=0.15, gradient="surrogate(2)"), "purifier": purifier}
    )
    name = f"attack pgd surrogate(2) behind diffpure {key[:6]}"
    assert adaptive.kind == Kind("attack", "pgd surrogate(2)", "diffpure", key, name)
    # The attack is not in the cost of the judgement, but it is what the judgement is about.
    assert evaluate.components == Components(cnn, purifier)
    assert evaluate.threat == attack.attack and evaluate.threat_label() == attack.attack.label()
    assert evaluate.kind == Kind("evaluate", "", "diffpure", key, f"evaluate diffpure {key[:6]}")
    clean = evaluate.model_copy(update={"source": None, "purifier": NoPurifierConfig()})
    assert (clean.threat, clean.threat_label()) == (None, "clean")
    assert clean.kind == Kind("evaluate", "", "none", cnn.id, f"evaluate none {cnn.label()}")


def test_corruption_quality_and_certificates_say_theirs(evaluate: EvaluateStage, cnn: ClassifierConfig) -> None:
    corrupt = CorruptStage(dataset=evaluate.dataset, corruption=FOG, seed=0)
    assert corrupt.components == Components(corruption=FOG) and corrupt.threat is FOG
    assert corrupt.kind == Kind("corrupt", "fog", "", "", "corrupt fog")
    fields: dict[str, Any] = {"dataset": evaluate.dataset, "purifier": evaluate.purifier, "seed": 0}
    quality = QualityStage(
        **fields, source=corrupt, classifier=None, quality=QualityConfig(), compute=evaluate.compute
    )
    assert quality.components == Components(None, evaluate.purifier) and quality.threat is FOG
    assert quality.kind.name == f"quality diffpure {evaluate.purifier.model_key()[:6]}"
    smoothed = Smoothed(**fields, classifier=cnn, base="purified", votes=1, sigma=0.25, compute=Compute(batch=4))
    certify = CertifyStage(smoothed=smoothed, certificate=CertificateConfig(sigma=0.25, n=100, n0=10))
    for stage in (certify, certify.select):
        assert stage.components == Components(cnn, evaluate.purifier) and stage.threat is None
    assert certify.kind == Kind("certify", "", "diffpure", "", "certify diffpure")
    assert certify.select.kind.model == evaluate.purifier.model_key()


def test_a_stage_of_somebody_else_has_no_components_unless_it_says_so() -> None:
    borrowed = Borrowed()
    assert borrowed.components == Components() and borrowed.threat is None
    assert borrowed.threat_label() == "clean"
    assert borrowed.kind == Kind("borrowed", "", "", "0123456789abcdef", "borrowed 012345")


def names(holds: Callable[[type[AttackConfig]], bool]) -> set[str]:
    return {name for name in ATTACKS.names() if holds(ATTACKS.get(name))}


def test_attacks_say_whether_they_see_gradients_and_what_they_return() -> None:
    assert names(lambda attack: attack.black_box) == {
        *("hop-skip-jump", "random-noise", "rays", "spsa", "square", "transfer")
    }
    assert names(lambda attack: attack.keeps_best) == {
        *("pgd", "fgsm", "apgd", "bpda-eot", "pgd-eot", "deviated-reconstruction", "diffhammer"),
        "guidance-target",
    }


@pytest.mark.parametrize(
    ("attack", "single_step", "loss_unknown"),
    [
        (FGSMConfig(norm="linf", eps=0.1), True, False),
        (PGDConfig(norm="linf", eps=0.1, steps=1), True, False),
        (PGDConfig(norm="linf", eps=0.1, steps=2, keep="last"), False, True),
    ],
)
def test_attacks_say_how_many_steps_they_take_and_what_they_know(
    attack: AttackConfig, single_step: bool, loss_unknown: bool
) -> None:
    assert (attack.single_step, attack.loss_unknown, attack.autoattack) == (single_step, loss_unknown, None)


def test_the_version_of_autoattack_is_that_of_the_package() -> None:
    kind = ATTACKS.get("autoattack")
    found = [kind.model_validate({"norm": "linf", "eps": 0.1, "version": v}).autoattack for v in ("standard", "rand")]
    assert found == ["standard", "rand"]


def test_a_parameter_that_a_spec_has_not_is_none(evaluate: EvaluateStage) -> None:
    attack, purifier = PGDConfig(norm="l2", eps=0.5, steps=7), evaluate.purifier
    assert (attack.parameter("steps"), attack.parameter("queries"), attack.parameter("label")) == (7, None, None)
    assert isinstance(purifier, PurifierConfig) and purifier.parameter("schedule") == "linear-1000"
