r"""A purifier in front of a classifier, as a plain ``torch.nn.Module``: images in [0, 1] to logits.

.. math:: F(x) = \mathrm{aggregate}_{k=1..K}\; f(D(x;\omega_k))

so that foolbox, AutoAttack, ART or an attack of your own can be pointed at it. The gradient that ``backward`` sees is
that of a gradient mode of :mod:`defense.gradients`, by default the exact one.

Aggregation of the K draws, with :math:`p_k = \mathrm{softmax}(f(D(x;\omega_k)))`:

* ``mean-logits``: :math:`\tfrac1K\sum_k f(D(x;\omega_k))`;
* ``mean-probability``: :math:`\log \tfrac1K\sum_k p_k`;
* ``majority-vote``: the log of the share of votes, an eighth of a vote given to every class so that it is finite; its
  gradient is that of ``mean-probability``, since a vote has none;
* ``single``: one draw, its logits.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from defense.aggregate import majority_vote
from defense.errors import InvalidInput, nearest
from defense.gradients import GradientMode, purify
from defense.purifiers.base import Purifier
from defense.randomness import Omega

__all__ = ["Defended", "DefendedAggregation"]

DefendedAggregation = Literal["single", "mean-logits", "mean-probability", "majority-vote"]


class Defended(nn.Module):
    """``f(D(x))`` over draws; see the module.

    Randomness: element b of a batch is image b, and each call of ``forward`` takes the next ``draws`` draws, so that
    attacks average over fresh ones (EOT) when they call again. With ``fixed`` every call takes the same draws: the
    deterministic white-box setting, which attackers who know the seed are in. :meth:`restart` goes back to the first.

    Arguments:
        purifier: The purifier, frozen.
        classifier: Images in [0, 1] to logits, frozen.
        draws: K.
        aggregate: How the draws become one answer.
        gradient: Gradient mode.
        seed: Seed of the draws.
        role: Role of the draws; rows of a sweep are judged on ``"judge"``, so that these are others.
        fixed: Use the same draws in every call.
        batch: Images x draws that go through the networks at once; all by default.

    Raises:
        InvalidInput: Unknown aggregation or mode, or draws that do not fit.
    """

    def __init__(
        self,
        purifier: Purifier,
        classifier: nn.Module,
        draws: int = 1,
        aggregate: DefendedAggregation = "mean-logits",
        *,
        gradient: str = "exact",
        seed: int = 0,
        role: str = "attack",
        fixed: bool = False,
        batch: int | None = None,
    ) -> None:
        super().__init__()
        if aggregate not in get_args(DefendedAggregation):
            known = get_args(DefendedAggregation)
            raise InvalidInput(f"unknown aggregation {aggregate!r}; {nearest(aggregate, known)}")
        if draws < 1 or (aggregate == "single" and draws != 1):
            raise InvalidInput(f"draws = {draws}: at least 1, and exactly 1 with aggregation `single`.")
        self.purifier = purifier
        self.classifier = classifier
        self.draws = draws
        self.aggregate = aggregate
        self.gradient = GradientMode.parse(gradient)
        self.seed = seed
        self.role = role
        self.fixed = fixed
        self.batch = batch
        self._next_draw = 0
        self.eval()

    def restart(self) -> None:
        """Use the first draws again in the next call."""
        self._next_draw = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits, or log-probabilities, shape (B, classes), of images in [0, 1], shape (B, C, H, W)."""
        first = 0 if self.fixed else self._next_draw
        self._next_draw += self.draws
        return self._aggregated(self.per_draw(x, range(first, first + self.draws)))

    def per_draw(self, x: Tensor, draws: range, image_ids: range | None = None) -> Tensor:
        """Return logits of each draw, shape (B, K, classes).

        Arguments:
            x: Images in [0, 1], shape (B, C, H, W).
            draws: Which draws.
            image_ids: Ids of the images, by default their positions.
        """
        ids = range(len(x)) if image_ids is None else image_ids
        images = [image for image in ids for _ in draws]
        omega = Omega.of("defended", self.seed, self.role, images, list(draws) * len(x))
        repeated = x.repeat_interleave(len(draws), 0)
        size = self.batch or max(len(repeated), 1)
        parts: list[Tensor] = [
            self.classifier(purify(self.purifier, part, omega.part(i * size, i * size + len(part)), self.gradient))
            for i, part in enumerate(torch.split(repeated, size))
        ]
        return torch.cat(parts).reshape(len(x), len(draws), -1)

    def _aggregated(self, logits: Tensor) -> Tensor:
        if self.aggregate in ("single", "mean-logits"):
            return logits.mean(1)
        mean = torch.log_softmax(logits, 2).logsumexp(1) - math.log(self.draws)
        if self.aggregate == "mean-probability":
            return mean
        with torch.no_grad():
            votes = torch.nn.functional.one_hot(logits.argmax(2), logits.shape[2]).to(logits)
            counts = votes.sum(1)
            # A tie goes to the class whose first vote came first, as in the tables.
            first = torch.from_numpy(majority_vote(logits.argmax(2).cpu().numpy())).to(logits.device)
            counts.scatter_add_(1, first.unsqueeze(1), torch.full_like(counts[:, :1], 0.25))
            shares = (counts + 0.125) / (counts + 0.125).sum(1, keepdim=True)
        return shares.log() + (mean - mean.detach())
