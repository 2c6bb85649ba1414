"""A worker's state: batches that fit its memory, settings that come back, models that are kept."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from defense import ClassifierConfig, DiffPureConfig, InvalidInput, Omega
from defense.purifiers import Identity, NoPurifierConfig
from defense.spec import Reading
from tasks.compute import Compute, Context
from tasks.datasets import DatasetConfig, DigitsConfig

Slices = list[tuple[int, int]]


def memory_of(capacity: int, tried: Slices) -> Callable[[int, int], list[int]]:
    """Work that runs out of memory above ``capacity`` elements and returns its slice's elements."""

    def work(start: int, stop: int) -> list[int]:
        tried.append((start, stop))
        if stop - start > capacity:
            raise torch.OutOfMemoryError
        return list(range(start, stop))

    return work


def run(context: Context, count: int, batch: int, capacity: int, key: str = "unit") -> tuple[list[int], Slices]:
    tried: Slices = []
    parts = context.in_batches(key, count, batch, memory_of(capacity, tried))
    return [element for part in parts for element in part], tried


@given(count=st.integers(0, 300), batch=st.integers(1, 120))
def test_with_enough_memory_the_slices_are_the_spec_s_batches(count: int, batch: int) -> None:
    context = Context()
    elements, tried = run(context, count, batch, capacity=10**9)
    assert elements == list(range(count))
    assert tried == [(start, min(start + batch, count)) for start in range(0, count, batch)]
    assert context.memory_retries == 0


@given(count=st.integers(1, 300), batch=st.integers(1, 120), capacity=st.integers(1, 120))
def test_out_of_memory_halves_the_slices_and_loses_no_element(count: int, batch: int, capacity: int) -> None:
    context = Context()
    elements, tried = run(context, count, batch, capacity)
    assert elements == list(range(count))
    failed = [stop - start for start, stop in tried if stop - start > capacity]
    assert context.memory_retries == len(failed)
    # Every failure at least halves what is tried next, and no slice crosses a batch of the spec.
    assert all(later <= earlier // 2 for earlier, later in pairwise(failed))
    assert all(start // batch == (stop - 1) // batch for start, stop in tried)
    # It is remembered: the second run fails nowhere.
    again, tried = run(context, count, batch, capacity)
    assert again == elements
    assert all(stop - start <= capacity for start, stop in tried)
    assert context.memory_retries == len(failed)


def test_slices_after_running_out_of_memory_are_those_that_one_expects() -> None:
    context = Context()
    _, tried = run(context, 22, 10, capacity=3)
    inside = [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    shifted = [(start + 10, stop + 10) for start, stop in inside]
    assert tried == [(0, 10), (0, 5), *inside, *shifted, (20, 22)]
    assert context.memory_retries == 2


def test_held_graphs_give_way_before_slices_do() -> None:
    context, tried = Context(), []
    context.graphs.learn("graph", [], tuple)

    def work(start: int, stop: int) -> tuple[int, int]:
        owner = Context()
        if context.graphs.may_hold("graph"):
            context.graphs._sizes["graph"] = 1
            context.graphs.hold("graph", owner)
        tried.append((start, stop, context.graphs.held))
        if context.graphs.held or stop - start > 4:
            raise torch.OutOfMemoryError
        return start, stop

    assert context.in_batches("unit", 8, 8, work) == [(0, 4), (4, 8)]
    assert tried == [(0, 8, 1), (0, 8, 0), (0, 4, 0), (4, 8, 0)]
    assert context.memory_retries == 2


def test_workers_of_a_gpu_divide_the_memory_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    of_device = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: of_device)
    for sharing, limit in ((1, 20), (4, 5)):
        assert Context("cuda", sharing=sharing).graphs.limit == limit * 2**30


def test_what_one_kind_of_unit_has_learnt_does_not_slow_down_another() -> None:
    context = Context()
    run(context, 8, 8, capacity=2, key="purify")
    _, tried = run(context, 8, 8, capacity=8, key="attack")
    assert tried == [(0, 8)]


def test_out_of_memory_with_one_element_is_given_up() -> None:
    context = Context()
    tried: Slices = []
    with pytest.raises(torch.OutOfMemoryError):
        context.in_batches("unit", 8, 8, memory_of(0, tried))
    assert tried == [(0, 8), (0, 4), (0, 2), (0, 1)]


def test_other_errors_are_not_retried() -> None:
    context = Context()
    tried: Slices = []

    def work(start: int, stop: int) -> None:
        tried.append((start, stop))
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        context.in_batches("unit", 8, 8, work)
    assert tried == [(0, 8)]


def test_settings_hold_inside_and_the_callers_threads_come_back_even_after_an_error() -> None:
    context = Context()
    before = torch.get_num_threads()
    with context.settings(Compute(threads=before + 1)):
        assert torch.get_num_threads() == before + 1
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), context.settings(Compute(threads=before + 2)):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_is_on_only_where_the_spec_asks_for_it(precision: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(2, 2)
    with Context().autocast(Compute.model_validate({"precision": precision})):
        assert layer(torch.zeros(1, 2)).dtype == dtype


class Counted(ClassifierConfig):
    """A classifier that counts how often it is built."""

    def build(self) -> nn.Module:
        BUILT.append(self.classifier)
        return nn.Identity()


BUILT: list[str] = []


def test_the_model_that_was_not_used_for_longest_is_dropped() -> None:
    BUILT.clear()
    context = Context(capacity=2)
    one, two, three = (Counted(classifier=name) for name in ("one", "two", "three"))
    first = context.classifier(one)
    context.classifier(two)
    assert context.classifier(one) is first  # now two is the older one
    context.classifier(three)
    assert context.classifier(one) is first
    assert BUILT == ["one", "two", "three"]
    context.classifier(two)
    assert BUILT == ["one", "two", "three", "two"]
    # That dropped three, since one was used after it.
    assert context.classifier(one) is first
    context.classifier(three)
    assert BUILT == ["one", "two", "three", "two", "three"]


def test_equal_configs_share_one_model_wherever_their_files_lie() -> None:
    BUILT.clear()
    context = Context()
    here = context.classifier(Counted(classifier="one", sha256="0" * 64, weights="/a", name="mine"))
    assert context.classifier(Counted(classifier="one", sha256="0" * 64, weights="/b", name="yours")) is here
    assert context.classifier(Counted(classifier="one", sha256="1" * 64, weights="/a")) is not here
    assert BUILT == ["one", "one"]


def test_a_purifier_and_a_classifier_are_what_their_configs_build() -> None:
    context = Context()
    one, two = Counted(classifier="one"), Counted(classifier="two")
    purifier = context.purifier(NoPurifierConfig(), one)
    # It is not guided by the classifier that it protects, so it is the same in front of all of them.
    assert isinstance(purifier, Identity) and context.purifier(NoPurifierConfig(), two) is purifier


def test_data_is_read_once_and_its_digest_checked(monkeypatch: pytest.MonkeyPatch, digits: DatasetConfig) -> None:
    context = Context()
    data = context.images(digits)
    assert data.digest() == digits.digest
    monkeypatch.setattr(DigitsConfig, "read", lambda self: pytest.fail("read twice"))
    assert context.images(digits) is data
    monkeypatch.undo()
    with pytest.raises(InvalidInput, match="the sweep was planned with 0123"):
        context.images(DigitsConfig(digest="0123"))


class TestPrecision:
    """fp32, tf32, bf16, bf16-all: what runs in which, and that guides never do."""

    X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def _logits(self, cnn: ClassifierConfig, precision: str) -> torch.Tensor:
        context, compute = Context(), Compute(precision=precision)  # type: ignore[arg-type]
        with context.settings(compute), torch.no_grad():
            logits: torch.Tensor = context.classifier(cnn)(self.X)
        return logits

    def test_only_bf16_all_is_for_the_classifier_and_its_bits_are_autocasts(self, cnn: ClassifierConfig) -> None:
        full = self._logits(cnn, "fp32")
        for precision in ("tf32", "bf16"):
            assert torch.equal(self._logits(cnn, precision), full)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected = cnn.build()(self.X).float()
        found = self._logits(cnn, "bf16-all")
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        assert 0 < (found - full).abs().max() < 0.5

    def test_tf32_is_allowed_for_tf32_alone(self) -> None:
        context = Context()
        for precision, allowed in (("tf32", True), ("fp32", False), ("tf32", True), ("bf16", False)):
            with context.settings(Compute(precision=precision)):  # type: ignore[arg-type]
                assert torch.backends.cuda.matmul.allow_tf32 is allowed
                assert torch.backends.cudnn.allow_tf32 is allowed

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", ["bf16", "bf16-all"])
    def test_a_purifiers_network_is_prepared_and_its_bits_are_autocasts(
        self, diffpure: DiffPureConfig, precision: str
    ) -> None:
        omega, compute = Omega.of("p", 0, "judge", (0, 1, 2)), Compute(precision=precision)  # type: ignore[arg-type]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected = diffpure.build()(self.X, omega)
        context = Context()
        with context.settings(compute), torch.no_grad():
            purifier = context.purifier(diffpure, None)
            with context.autocast(compute):
                assert torch.equal(purifier(self.X, omega), expected)
        assert any("Conv2d" in type(layer).__name__ and type(layer) is not nn.Conv2d for layer in purifier.modules())
        # The same network serves stages in full precision, bit for bit.
        with context.settings(Compute()), torch.no_grad():
            assert torch.equal(context.purifier(diffpure, None)(self.X, omega), diffpure.build()(self.X, omega))

    def test_old_ids_have_their_precisions(self) -> None:
        assert Compute().identity() == {**Compute().identity(), "precision": "fp32"}
        ids = {Compute(precision=each).id for each in ("fp32", "tf32", "bf16", "bf16-all")}  # type: ignore[arg-type]
        assert len(ids) == 4


def test_first_version_of_noise_is_left_out_of_ids_and_meant_by_those_without_one() -> None:
    assert "noise" not in Compute(noise=1).identity() and Compute().identity()["noise"] == 2
    before = {key: value for key, value in Compute().identity().items() if key != "noise"}
    assert Compute.model_validate(before, context=Reading(identity=True)).noise == 1
    assert Compute(batch=7).without_noise() == Compute(batch=7, noise=1)
