"""What a machine is not made for is said before anything is computed, and refused unless it is forced."""

from __future__ import annotations

import pytest
from naps import Nap, plan_of

from defense.errors import InvalidInput
from tasks.compute import Compute
from workflows.engine.execution import Options
from workflows.planning import machine
from workflows.planning.machine import machine_notices, refuse_slow
from workflows.planning.plan import Committed


class Precise(Nap):
    compute: Compute

    def settings(self) -> Compute:
        return self.compute


def committed(*precisions: str) -> Committed:
    specs = [Precise(number=i, compute=Compute(precision=each)) for i, each in enumerate(precisions)]  # type: ignore[arg-type]
    return Committed(plan_of(specs, 2))


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_multiplies_bf16", lambda: False)


@pytest.mark.usefixtures("avx2")
@pytest.mark.parametrize("precision", ["bf16", "bf16-all"])
def test_bfloat16_on_a_processor_without_it_is_refused_with_the_factor(precision: str) -> None:
    units = committed("fp32", precision)
    with pytest.raises(InvalidInput, match=rf"is {precision}, and .* 7 to 17 times as long.*--slow") as error:
        refuse_slow(units)
    assert error.value.where == "compute.precision"
    (notice,) = machine_notices(units.plan)
    assert "no bfloat16" in notice and machine_notices(units.plan, gpus=True) == []


@pytest.mark.usefixtures("avx2")
def test_what_is_computed_already_is_not_refused() -> None:
    units = committed("fp32", "bf16")
    for chunk in list(units.missing_units()):
        if chunk.stage == 1:
            units.add(chunk)
    refuse_slow(units)
    assert machine_notices(units.plan, units) == []
    refuse_slow(committed("fp32", "tf32"))
    assert not Options().slow


def test_a_processor_that_has_bfloat16_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_multiplies_bf16", lambda: True)
    refuse_slow(committed("bf16"))
    assert machine_notices(committed("bf16", "fp32").plan) == []


def test_tf32_on_a_processor_is_said_to_be_fp32() -> None:
    (notice,) = machine_notices(committed("tf32").plan)
    assert "fp32 under another id" in notice


def test_this_machine_says_what_it_has() -> None:
    assert isinstance(machine._multiplies_bf16(), bool)
