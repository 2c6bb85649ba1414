"""Our attacks against torchattacks, foolbox and AutoAttack's own package, on real images and real weights.

The full comparison, on 500 images and more budgets, is ``benchmarks/reference_agreement.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tasks.datasets import ImageSet

pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks==3.5.1")
pytest.importorskip("foolbox")
pytest.importorskip("pyautoattack")

from benchmarks.reference_agreement import OURS, REFERENCES, attacked, classifier
from workflows.statistics.exact_tests import mcnemar

pytestmark = pytest.mark.slow


def first(data: ImageSet, count: int) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(data.images[:count]), torch.from_numpy(data.labels[:count])


# Robust accuracy in percent on the first images: what all three implementations were measured to leave, and the
# room of two images that another random start takes.
@pytest.mark.parametrize(
    ("name", "eps", "attack", "count", "percent"),
    [
        ("cnn-a", 2, "pgd", 100, 63),
        ("cnn-a", 8, "apgd", 64, 13.3),
        *(
            pytest.param(*case, marks=pytest.mark.nightly)
            for case in (
                ("resnet20", 0.25, "pgd", 24, 83.3),
                ("resnet20", 0.5, "pgd", 24, 62.5),
                ("resnet20", 8, "pgd", 24, 0),
                ("cnn-a", 8, "pgd", 100, 20.5),
                ("cnn-a", 2, "apgd", 64, 62.5),
                ("resnet4b", 2, "pgd", 100, 66),
                ("resnet4b", 8, "pgd", 100, 17),
            )
        ),
    ],
)
def test_robust_accuracy_is_that_of_the_reference_image_by_image(
    weights_root: Path,
    cifar10_test: ImageSet,
    name: str,
    eps: float,
    attack: str,
    count: int,
    percent: float,
) -> None:
    network = classifier(name, weights_root)
    x, y = first(cifar10_test, count)
    ours = attacked(OURS[attack], network, x, y, eps / 255)
    for reference, run in REFERENCES[attack].items():
        other = attacked(run, network, x, y, eps / 255)
        only_ours, only_other, p = mcnemar(ours.right.numpy(), other.right.numpy())
        assert p > 0.01
        # Two random starts of one attack part on few images; an implementation that is wrong parts on many.
        assert only_ours + only_other <= max(2, 0.03 * count), reference
        assert other.accuracy == pytest.approx(percent / 100, abs=2 / count)
    assert ours.accuracy == pytest.approx(percent / 100, abs=2 / count if percent else 0)


# Images that apgd-ce breaks, and images that apgd-t has to break: the rest of the chain takes minutes on images that
# stay right, and is in the benchmark.
@pytest.mark.parametrize(
    ("name", "ids"),
    [pytest.param("resnet20", [0, 1, 2, 3], marks=pytest.mark.nightly), ("cnn-a", [0, 15, 38, 43, 88])],
)
def test_autoattack_called_directly_gives_the_same_images_bit_for_bit(
    weights_root: Path, cifar10_test: ImageSet, name: str, ids: list[int]
) -> None:
    network = classifier(name, weights_root)
    x, y = torch.from_numpy(cifar10_test.images[ids]), torch.from_numpy(cifar10_test.labels[ids])
    ours = attacked(OURS["autoattack"], network, x, y, 8 / 255)
    reference = attacked(REFERENCES["autoattack"]["pyautoattack"], network, x, y, 8 / 255)
    assert torch.equal(ours.right, reference.right)
    assert torch.equal(ours.images, reference.images)
    assert ours.accuracy == 0 and float((ours.images - x).abs().max()) > 0.99 * 8 / 255
