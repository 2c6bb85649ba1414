r"""The attacked function: from images to logits of several draws, with the gradient of its loss.

.. math:: L(x) = \tfrac1K\sum_{k=1}^K \ell(f(D(x;\omega_k)), y) \qquad\text{or}\qquad
          \ell\Big(\tfrac1K\sum_k f(D(x;\omega_k)), y\Big), \dots

K draws make an expectation over transformations (EOT, Athalye et al., arXiv 1802.00420). They go through the networks
in one batch with the images. Each call takes the next K draws, so that an attack of n iterations sees n K of them;
with ``fixed`` it sees the same K each time, and they are the first K on which the defence is judged.

Success is not judged here: an attack that stops when a draw is fooled has found a lucky draw. It returns the images
with the highest mean loss that it saw, and rows are judged on draws that it did not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from defense.gradients import GradientMode, purify, purify_and_deviate
from defense.purifiers import Purifier
from defense.randomness import Omega
from defense.scaled_gradients import Outputs, with_scaled_gradient
from tasks.attacks.losses import PointLoss

__all__ = ["SHARPNESS", "Attacked", "Evaluation", "Oracle", "PerDraw", "Tally", "Target", "strongest"]

Attacked = Literal["mean-loss", "mean-logits", "mean-probability", "vote"]
"""What is made of the draws: the mean of their losses, or the loss of their mean logits or probabilities, or of their
votes, which are probabilities of :data:`SHARPNESS` times the logits: a vote itself has no gradient."""

SHARPNESS = 10.0
"""How much larger than its logits a draw's vote is."""


@dataclass(frozen=True)
class Evaluation:
    """A function value.

    Arguments:
        loss: Loss over the draws, shape (B,).
        logits: Logits of each draw, shape (B, K, classes).
        gradient: Gradient of the loss, shape of the images; None if it was not requested.
    """

    loss: Tensor
    logits: Tensor
    gradient: Tensor | None = None


@dataclass(frozen=True)
class PerDraw:
    """The values of each of K draws.

    Arguments:
        losses: Loss of each draw, shape (B, K).
        gradients: Gradient of each draw's loss, shape (B, K, C, H, W).
        logits: Logits of each draw, shape (B, K, classes).
        first: Number of the first of these draws, for :meth:`Target.pull_back`.
    """

    losses: Tensor
    gradients: Tensor
    logits: Tensor
    first: int


class Oracle(Protocol):
    """The interface of gradient ascents: a :class:`Target`, or what an attack has made of one."""

    def evaluate(self, x: Tensor, loss: PointLoss) -> Evaluation:
        """Return the loss and logits without a gradient."""
        ...

    def differentiate(self, x: Tensor, loss: PointLoss) -> Evaluation:
        """Loss, logits and gradient with respect to the images."""
        ...


@dataclass(frozen=True)
class Tally:
    """Counts of the evaluations and gradients of each image, by image id.

    Arguments:
        evaluations: Purifications (or, without a purifier, classifications), each draw counted.
        gradients: Gradients of the loss over the draws.
        zero: Those of them that are 0 in every pixel.
        nan: Those that are NaN or infinite in any.
        points: Answers at points that a guidance pulls to, each draw counted: of a classifier, without purification.
    """

    evaluations: Counter[int] = field(default_factory=Counter)
    gradients: Counter[int] = field(default_factory=Counter)
    zero: Counter[int] = field(default_factory=Counter)
    nan: Counter[int] = field(default_factory=Counter)
    points: Counter[int] = field(default_factory=Counter)

    def see(self, ids: Sequence[int], gradient: Tensor) -> None:
        """Count one gradient of each image, shape (B, ...)."""
        self.gradients.update(ids)
        largest = gradient.abs().flatten(1).amax(1)  # NaN if any is
        useful = (largest > 0) & (largest < torch.inf)
        if not useful.all():  # the one look that makes a device wait
            sizes = list(zip(ids, largest.tolist(), strict=True))
            self.zero.update(image for image, size in sizes if size == 0)
            self.nan.update(image for image, size in sizes if not isfinite(size))


@dataclass
class Target:
    """A defended classifier under attack, for one batch of images.

    Arguments:
        classifier: Images in [0, 1] to logits.
        labels: True labels, shape (B,).
        omega: Randomness of the images, with the first draw of each; draws are numbered from there.
        purifier: The purifier, None for the bare classifier.
        mode: Gradient mode.
        draws: K.
        fixed: Use the same draws in every call.
        attacked: What is made of the draws.
        batch: Images x draws that go through the networks at once.
        precision: Makes the context in which the purifier runs (autocast).

    Attributes:
        evaluations: Purified (or bare) images so far, all draws counted, of the images in this target.
        tally: What has been asked of each image, through this target and those selected from it.
    """

    classifier: nn.Module | Callable[[Tensor], Tensor]
    labels: Tensor
    omega: Omega
    purifier: Purifier | None = None
    mode: GradientMode = GradientMode("exact")  # noqa: RUF009 - frozen
    draws: int = 1
    fixed: bool = False
    attacked: Attacked = "mean-loss"
    batch: int | None = None
    precision: Callable[[], AbstractContextManager[object]] = nullcontext
    calls: int = 0
    evaluations: int = 0
    tally: Tally = field(default_factory=Tally)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor) -> Target:
        """Return the target of the images at some positions, shape (N,); it goes on with the draws of this one."""
        return replace(self, labels=self.labels[index], omega=self.omega.select(index.tolist()), evaluations=0)

    def logits(self, x: Tensor) -> Tensor:
        """Return logits of the next K draws, shape (B, K, classes), in the graph of ``x`` if it has one."""
        _, parts = self._next(x)
        answer = self._forgetting().answer
        return self._by_image(x, [answer(*part) for part in parts])

    def answer(self, x: Tensor, omega: Omega | None) -> Tensor:
        """Return the logits of one batch of draws, shape (B, classes)."""
        return self._scaled(lambda at: self._classify(self._purify(at, omega)), x)

    def deviating_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Like :meth:`logits`, with L_dev of each draw, shape (B, K); see :mod:`defense.gradients`.

        Raises:
            InvalidInput: The purifier has no forward process, or the mode does not go through it.
        """
        _, parts = self._next(x)
        logits, deviations, target = [], [], self._forgetting()
        for part, omega in parts:
            z, deviation = self._scaled(partial(target._deviating, omega), part)
            logits.append(z)
            deviations.append(deviation)
        return self._by_image(x, logits), torch.cat(deviations).reshape(len(x), -1)

    def evaluate(self, x: Tensor, loss: PointLoss) -> Evaluation:
        """Return the loss and logits without a gradient."""
        with torch.no_grad():
            logits = self.logits(x)
            return Evaluation(self.over_draws(logits, loss), logits)

    def differentiate(self, x: Tensor, loss: PointLoss) -> Evaluation:
        """Loss, logits and gradient of the loss with respect to the images.

        A mean of losses is differentiated batch by batch, so that no more than one batch is remembered however many
        draws there are; the gradient has the bits of one backward pass through all of them.
        """
        found = self.differentiated(x, loss)
        assert found.gradient is not None
        self.tally.see(self.omega.image_ids, found.gradient)
        return found

    def differentiated(self, x: Tensor, loss: PointLoss) -> Evaluation:
        """Return what :meth:`differentiate` does, for a term of a sum whose gradient is tallied as one."""
        if self.attacked == "mean-loss" and self.purifier is not None:
            value, logits, gradient = self._batch_by_batch(x, loss)
        else:
            at = x.detach().requires_grad_()
            logits = self.logits(at)
            value = self.over_draws(logits, loss)
            (gradient,) = torch.autograd.grad(value.sum(), at)
        return Evaluation(value.detach(), logits.detach(), gradient)

    def _batch_by_batch(self, x: Tensor, loss: PointLoss) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean loss of the next K draws, their logits, and the gradient of the former."""
        _, parts = self._next(x)
        logits, gradients, done = [], [], 0
        labels = self.labels.repeat_interleave(self.draws)
        for part, omega in parts:
            at = part.detach().requires_grad_()
            z = self.answer(at, omega)
            # A targeted loss knows its classes by place: it gets all rows, those of other batches without meaning.
            rows = nn.functional.pad(z, (0, 0, done, len(labels) - done - len(part)))
            value = loss(rows, labels)[done : done + len(part)]
            gradients.append(torch.autograd.grad(value, at, torch.ones_like(value) / self.draws)[0])
            logits.append(z.detach())
            done += len(part)
        # Summed over the draws by the operation, and so in the order, of one backward pass.
        at = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(at.repeat_interleave(self.draws, 0), at, torch.cat(gradients))
        together = self._by_image(x, logits)
        return self.over_draws(together, loss), together, gradient

    def unbroken(self, x: Tensor) -> Tensor:
        """Positions of the images whose next answer is right, shape (N,): for attacks that may stop on success."""
        with torch.no_grad():
            return (self.together(self.logits(x)).argmax(1) == self.labels).nonzero().flatten()

    def per_draw(self, x: Tensor, loss: PointLoss, *, through: bool = True) -> PerDraw:
        """Return the loss and gradient of each of the next K draws, in the batches of :meth:`differentiate`.

        Arguments:
            x: Images, shape (B, C, H, W).
            loss: Loss of one draw.
            through: Take the gradients with respect to the images; if false with respect to the purified ones, which
                costs no way back through the purifier.
        """
        first, parts = self._next(x)
        logits, losses, gradients, done = [], [], [], 0
        labels = self.labels.repeat_interleave(1 if self.purifier is None else self.draws)
        for part, omega in parts:
            if through:
                at = part.detach().requires_grad_()
                z = self.answer(at, omega)
            else:
                with torch.no_grad():
                    at = self._purify(part, omega)
                at = at.detach().requires_grad_()
                z = self._scaled(self._classify, at)
            value = loss(z, labels[done : done + len(part)])
            gradients.append(torch.autograd.grad(value.sum(), at)[0])
            losses.append(value.detach())
            logits.append(z.detach())
            done += len(part)
        result = PerDraw(self._by_image(x, losses), self._by_image(x, gradients), self._by_image(x, logits), first)
        self.tally.see(self.omega.image_ids, result.gradients)
        return result

    def pull_back(self, x: Tensor, draws: Tensor, cotangent: Tensor) -> Tensor:
        """Return a gradient at the purified images, taken back to the images through one draw of each.

        Arguments:
            x: Images, shape (B, C, H, W).
            draws: Number of the draw for each image, shape (B,), counted as :attr:`PerDraw.first` is.
            cotangent: Gradients at the purified images, shape (B, C, H, W).
        """
        if self.purifier is None:
            return cotangent
        self._count(1)
        omega = replace(
            self.omega, draws=tuple(base + k for base, k in zip(self.omega.draws, draws.tolist(), strict=True))
        )
        size = self.batch or len(x)
        products = []
        for i in range(0, len(x), size):
            at = x[i : i + size].detach().requires_grad_()
            purified = self._scaled(partial(self._purify, omega=omega.part(i, i + len(at))), at)
            products.append(torch.autograd.grad(purified, at, cotangent[i : i + size].to(purified.dtype))[0])
        return torch.cat(products)

    def _next(self, x: Tensor) -> tuple[int, Iterator[tuple[Tensor, Omega | None]]]:
        """Number of the first of the next K draws; the images with the randomness of each, batch by batch."""
        first = 0 if self.fixed else self.calls * self.draws
        self.calls += 1
        self._count(self.draws)
        if self.purifier is None:
            return first, iter([(x, None)])  # every draw is the same
        ids = [image for image in self.omega.image_ids for _ in range(self.draws)]
        draws = [base + first + k for base in self.omega.draws for k in range(self.draws)]
        omega = replace(self.omega, image_ids=tuple(ids), draws=tuple(draws))
        repeated = x.repeat_interleave(self.draws, 0)
        size = self.batch or len(repeated)
        starts = range(0, len(repeated), size)
        return first, ((repeated[i : i + size], omega.part(i, i + size)) for i in starts)

    def _count(self, draws: int) -> None:
        self.evaluations += len(self) * draws
        self.tally.evaluations.update(self.omega.image_ids * draws)

    def _purify(self, x: Tensor, omega: Omega | None) -> Tensor:
        if self.purifier is None or omega is None:
            return x
        with self.precision():
            return purify(self.purifier, x, omega, self.mode)

    def _scaled(self, f: Callable[[Tensor], Outputs], x: Tensor) -> Outputs:
        """Return ``f(x)``; sharp votes have gradients so small that they go back at another size."""
        return with_scaled_gradient(f, x) if self.attacked == "vote" else f(x)

    def _deviating(self, omega: Omega | None, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.purifier is not None and omega is not None
        with self.precision():
            purified, deviation = purify_and_deviate(self.purifier, x, omega, self.mode)
        return self._classify(purified), deviation

    def _classify(self, purified: Tensor) -> Tensor:
        return self.classifier(purified.float() if purified.dtype == torch.bfloat16 else purified)

    def _forgetting(self) -> Target:
        """Return the target; where draws are several batches, its classifier is asked again on the way back."""
        if self.batch is None or len(self) * self.draws <= self.batch:
            return self
        return replace(self, classifier=partial(checkpoint, self.classifier, use_reentrant=False))

    def _by_image(self, x: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Return values of all draws, shape (B, K, ...)."""
        values = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return values.reshape(len(x), -1, *values.shape[1:])

    def together(self, logits: Tensor) -> Tensor:
        """Logits of all draws as those of one answer, shape (B, K, classes) to (B, classes); means for mean-loss."""
        if self.attacked in ("mean-logits", "mean-loss"):
            return logits.mean(1)
        sharp = SHARPNESS * logits if self.attacked == "vote" else logits
        return torch.log_softmax(sharp, 2).logsumexp(1)  # log K shifts all logits equally

    def over_draws(self, logits: Tensor, loss: PointLoss) -> Tensor:
        """Return the loss that ``attacked`` makes of the draws' logits, shape (B, K, classes) to (B,)."""
        if self.attacked != "mean-loss":
            return loss(self.together(logits), self.labels)
        draws = logits.shape[1]
        if draws == 1:
            return loss(logits.squeeze(1), self.labels)
        losses = loss(logits.flatten(0, 1), self.labels.repeat_interleave(draws))
        return losses.reshape(len(logits), draws).mean(1)


def strongest(oracle: Oracle, candidates: Sequence[tuple[Tensor, Tensor]], loss: PointLoss) -> tuple[Tensor, Tensor]:
    """Return the best image of several runs, for each image.

    Runs that maximised different losses cannot be compared by what they reached: each image is evaluated once more,
    by one loss. A single run needs no comparison.

    Arguments:
        oracle: The attacked function.
        candidates: Images and reached losses of each run, shapes (B, C, H, W) and (B,).
        loss: The loss that decides.

    Returns:
        Images and their losses.
    """
    images, best = candidates[0]
    if len(candidates) == 1:
        return images, best
    best = oracle.evaluate(images, loss).loss
    for other, _ in candidates[1:]:
        value = oracle.evaluate(other, loss).loss
        better = value > best
        images = torch.where(better.view(-1, *[1] * (images.dim() - 1)), other, images)
        best = torch.where(better, value, best)
    return images, best
