r"""Does the defence hold the images that it is judged on?

Three questions. Of inputs that no data set holds (the mean of two test images, a test image with its pixels permuted,
noise): is the output an image of the test set, that is nearer to one than a quarter of what usually lies between a
test image and its nearest neighbour? Of perturbed test images: is exactly the clean one given back, to less than a
twentieth of the perturbation, at both of two sizes? And of what has a derivative, classifiers too: does the answer
jump within 2/255 of a test image, and not of its mirror image? Then clean accuracy is of no perturbed image.
"""

import torch
from torch import Tensor

from defense.probe.borders import jumps_between
from defense.probe.record import Check, answer, not_applicable
from defense.probe.subject import Subject
from defense.randomness import Omega

__all__ = ["memory"]

_EACH = 4
_NEAR = 0.25
_EXACTLY = 0.05
_SIZES = (0.05, 0.1)
_AWAY = 2 / 255
_JUMP = 0.01


def memory(subject: Subject, reference: Tensor | None) -> Check:
    """Look for test images, of which ``reference`` has as many as possible, among the outputs."""
    name = "test-set-memory"
    if subject.part == "classifier":
        exempt = _exempt(subject, subject.images)
        return answer(name, "classifier", exempt, f"at {100 * exempt:.0f} % of clean images the answer jumps")
    if reference is None or len(reference) < 2 * _EACH:
        return not_applicable(name, "purifier", f"no test set of at least {2 * _EACH} images was given")
    known = reference.flatten(1).float()
    spread = torch.linspace(0, len(reference) - 1, 2 * _EACH).long()
    chosen = reference[spread].to(subject.images)
    odd = _unlike(chosen)
    # Only where the input itself is none: in a set with near duplicates a mean of two may be an image of it.
    usual = float(_nearest(known[spread], known, leave=spread).median())
    ids = range(len(odd))
    made = subject.value(odd, Omega.of(subject.spec_id, 0, "attack", ids))
    unlike = _nearest(odd.cpu().float().flatten(1), known) > _NEAR * usual
    distance = _nearest(made.cpu().float().flatten(1), known)
    recalled = float((unlike & (distance < _NEAR * usual)).double().sum() / unlike.double().sum().clamp(min=1))
    given_back = _given_back(subject, chosen)
    exempt = _exempt(subject, chosen) if subject.claims.differentiable else 0.0  # what rounds may jump anywhere
    share = max(recalled, given_back, exempt)
    text = (
        f"of {int(unlike.sum())} images unlike any of {len(reference)} test images {100 * recalled:.0f} % came out "
        f"as one of them; {100 * given_back:.0f} % of perturbed test images were given back exactly clean; "
        f"at {100 * exempt:.0f} % of clean ones the answer jumps"
    )
    return answer(name, "purifier", share, text)


def _unlike(chosen: Tensor) -> Tensor:
    """Return means of two images, images with permuted pixels, and noise, shape (3 x 4, C, H, W)."""
    generator = torch.Generator().manual_seed(3)
    means = (chosen[:_EACH] + chosen[_EACH:]) / 2
    order = torch.randperm(chosen[0, 0].numel(), generator=generator).to(chosen.device)
    permuted = chosen[:_EACH].flatten(2)[..., order].reshape_as(means)
    noise = torch.rand(means.shape, generator=generator).to(chosen)
    return torch.cat([means, permuted, noise])


def _given_back(subject: Subject, clean: Tensor) -> float:
    """Return the share of images that come back exactly clean at every size of perturbation."""
    generator = torch.Generator().manual_seed(4)
    omega = Omega.of(subject.spec_id, 0, "attack", range(len(clean)))
    exact = torch.ones(len(clean), dtype=torch.bool)
    for size in _SIZES:
        signs = 2 * torch.randint(0, 2, clean.shape, generator=generator).to(clean) - 1
        perturbed = (clean + size * signs).clamp(0, 1)
        made = subject.value(perturbed, omega)
        left, before = (made - clean).flatten(1).norm(dim=1), (perturbed - clean).flatten(1).norm(dim=1)
        exact &= (left < _EXACTLY * before).cpu()
    return float(exact.double().mean())


def _exempt(subject: Subject, clean: Tensor) -> float:
    """Return the share of images beside which the answer jumps; what sorts does so beside a mirror image too."""
    clean = clean[:_EACH]
    noise = _AWAY * torch.rand(clean.shape, generator=torch.Generator().manual_seed(5)).to(clean)
    usual = 1.0 if subject.part == "purifier" else float(jumps_between(subject, clean, clean.roll(1, 0))[1].mean())

    def jumps(x: Tensor, step: Tensor) -> Tensor:
        return jumps_between(subject, x, x + step * (1 - 2 * x.round()))[0] > _JUMP * usual

    found = jumps(clean, noise)
    if bool(found.any()):
        found &= ~jumps(clean.flip(2), noise.flip(2))
    share = float(found.double().mean())
    return share if share > 0.5 else 0.0  # what jumps at many places does so here by accident


def _nearest(images: Tensor, known: Tensor, leave: Tensor | None = None) -> Tensor:
    """Return the distance of each image to the nearest known one, other than those of ``leave`` themselves."""
    distance = torch.cdist(images, known)
    if leave is not None:
        distance[torch.arange(len(images)), leave] = torch.inf
    return distance.min(1).values
