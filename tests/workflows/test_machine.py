"""What a machine is not made for is said before anything is computed, and refused unless it is forced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from naps import Nap, plan_of

from defense.errors import InvalidInput
from tasks import memory
from tasks.compute import Compute
from workflows.engine.execution import Options
from workflows.formats.plans import _memory
from workflows.planning import machine
from workflows.planning.costs import Cost
from workflows.planning.forecast import default_workers
from workflows.planning.machine import Footprint, footprint, machine_notices, per_gpu, refuse_slow, workers_on
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


def test_the_memory_of_a_batch_is_what_a_worker_holds_and_as_much_for_each_element(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    units = Committed(plan_of([Precise(number=0, compute=Compute(batch=2)), Precise(number=1, compute=Compute())], 3))
    kind = units.plan.stages[0].spec.kind
    cost = {kind: Cost(3, 1.0, idle=400.0, each=0.5)}
    monkeypatch.setattr(machine, "_room", lambda workers, gpus: 4096.0 / workers)
    size = len(units.plan.stages[1].chunks[0].ids)  # one element an image, which is less than the batch of 100
    assert footprint(units, cost, 2) == Footprint(
        kind.name, size, round(400 + 0.5 * size), 2048, 2900, 2
    )  # (0.9 x 2048 - 400) / 0.5 = 2886
    assert footprint(units, {}, 2) is None and footprint(units, {kind: Cost(3, 1.0)}, 2) is None
    for unit in list(units.missing_units()):
        units.add(unit)
    assert footprint(units, cost, 2) is None


def test_a_plan_says_what_a_batch_takes_and_what_would_fit() -> None:
    found = Footprint("evaluate behind diffpure 1a2b3c", 400, 1229, 4096, 1000, 2)
    assert list(_memory(found)) == [
        "memory: batches of 400 (evaluate behind diffpure) take up to 1.2 GiB of the 4.0 GiB that each of 2 workers "
        "has here; at least 1,000 would fit"
    ]
    assert "900 MiB that there is here; they will be halved" in next(
        _memory(Footprint("attack", 400, 1229, 900, 290, 1))
    )
    assert list(_memory(None)) == []


def test_workers_of_several_gpus_share_none_between_two() -> None:
    # 2 / 0.4 is 5, of which one would lie across both.
    assert [workers_on(2, share) for share in (0.25, 0.4, 0.6, 1, 2)] == [8, 4, 2, 2, 1]
    assert workers_on(3, 2) == 1 and workers_on(0, 0.5) == 0


def test_shares_of_a_gpu() -> None:
    shares = (0, 0.1, 0.125, 0.2, 0.25, 0.3, 0.3333, 0.4, 0.5, 0.6, 1, 2, 8.0)
    assert [per_gpu(share) for share in shares] == [1, 10, 8, 5, 4, 3, 3, 2, 2, 1, 1, 1, 1]
    for wrong, says in (
        (-0.5, "-0.5 GPUs"),
        (1.5, r"1\.5 GPUs: .* Did you mean 2\?"),
        (0.00005, "of at least 0.0001"),
        (float("nan"), "nan GPUs"),
        (float("inf"), "inf GPUs"),
    ):
        with pytest.raises(InvalidInput, match=says) as error:
            Options(gpus_per_worker=wrong)
        assert error.value.where == "--gpus-per-worker"
    # What is proposed for n workers is room for n.
    assert [per_gpu(float(machine._share(n))) for n in range(1, 65)] == list(range(1, 65))


def test_a_plan_says_how_many_workers_share_a_gpu() -> None:
    plan = committed("fp32").plan
    (half,) = machine_notices(plan, gpus=0.5)
    assert half.startswith("2 workers share a GPU (--gpus-per-worker 0.5), each with networks of its own")
    (odd,) = machine_notices(plan, gpus=0.4)
    assert odd.startswith("2 workers") and odd.endswith("; a share of 0.5 is as good")
    assert machine_notices(plan, gpus=1) == machine_notices(plan, gpus=2) == machine_notices(plan, gpus=0) == []


def test_as_many_workers_as_there_are_shares_and_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)))
    # 0.4 leaves room for two on each GPU, not for five on both; six of 0.3 have a processor, and eight have none.
    assert [default_workers(2, share) for share in (0, 1, 2, 0.5, 0.4, 0.25)] == [6, 2, 1, 4, 4, 6]
    assert default_workers(1, 8) == 1


def test_a_share_is_proposed_from_what_a_batch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    units = Committed(plan_of([Precise(number=0, compute=Compute(batch=2))], 3))
    kind = units.plan.stages[0].spec.kind
    cost = {kind: Cost(3, 1.0, idle=400.0, each=1000.0)}  # with CUDA's own 600 MiB 3000 a worker
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda i: SimpleNamespace(total_memory=16000 * 2**20))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))

    def told(gpus: float) -> str:
        found = footprint(units, cost, 1, gpus)
        assert found is not None and found.mib == 2400 and found.share == "0.25"  # 0.9 x 16000 / 3000 = 4.8
        return next(_memory(found)).partition(" take up to ")[2]

    whole = "2.3 GiB of the 15.6 GiB that there is here; at least 13 would fit"
    assert told(1) == f"{whole}; 4 workers a GPU have room for it (--gpus-per-worker 0.25)"
    assert told(0.25) == "2.3 GiB of the 3.9 GiB that each of 4 workers a GPU has; at least 2 would fit"
    assert told(0.1).endswith(
        "each of 10 workers a GPU has; they will be halved until they fit; 4 workers a GPU have room for it "
        "(--gpus-per-worker 0.25)"
    )
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    found = footprint(units, cost, 1, 1)
    assert found is not None and found.share == "0.5"
    cost = {kind: Cost(3, 1.0, idle=400.0, each=9000.0)}
    found = footprint(units, cost, 1, 1)
    assert found is not None and found.share == "" and "halved" in next(_memory(found))


def test_a_worker_has_its_share_of_the_machine_or_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path / "none")
    whole = machine._room(1, 0.0)
    assert whole is not None and machine._room(4, 0.0) == whole / 4
    (tmp_path / "max").write_text(f"{512 * 2**20}\n")
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path / "max")
    assert machine._room(2, 0.0) == 256.0
