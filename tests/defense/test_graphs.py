"""What is recorded, what is replayed, and what never is, with a recorder that needs no GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from defense.graphs import Graphed


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        return images * 2 + labels.view(-1, 1, 1, 1)


class Recorder:
    """As a graph does: one output in fixed memory, computed from fixed inputs whenever it is replayed."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recordings += 1
        output = work()

        def replay() -> Tensor:
            self.replays += 1
            return output.copy_(work())

        return replay


def batch(count: int, number: int) -> tuple[Tensor, Tensor]:
    return torch.full((count, 1, 2, 2), float(number)), torch.full((count,), number)


def test_a_shape_is_recorded_the_second_time_and_replayed_with_new_images_and_labels() -> None:
    recorder = Recorder()
    graphed = Graphed(Net(), recorder)
    outputs = [graphed(*batch(3, number)) for number in range(5)]
    assert [float(output[0, 0, 0, 0]) for output in outputs] == [0, 3, 6, 9, 12]
    assert (recorder.recordings, recorder.replays) == (1, 4)


def test_each_shape_type_and_precision_has_its_own_recording() -> None:
    recorder = Recorder()
    graphed = Graphed(Net(), recorder)
    for count in (2, 3, 2, 3):
        assert torch.equal(graphed(*batch(count, 1)), Net()(*batch(count, 1)))
    assert recorder.recordings == 2
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            graphed(*batch(2, 1))
    assert recorder.recordings == 3
    for _ in range(2):
        graphed(batch(2, 1)[0].double(), batch(2, 1)[1])
    assert recorder.recordings == 4


def test_what_is_differentiated_is_never_replayed() -> None:
    recorder = Recorder()
    graphed = Graphed(Net(), recorder)
    for _ in range(3):
        images, labels = batch(2, 1)
        images.requires_grad_()
        assert torch.equal(torch.autograd.grad(graphed(images, labels).sum(), images)[0], torch.full_like(images, 2))
    assert recorder.recordings == 0
    with torch.no_grad():
        for _ in range(2):
            assert not graphed(images, labels).requires_grad
    assert recorder.recordings == 1
