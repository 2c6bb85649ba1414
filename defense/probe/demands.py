"""What each check asks, what its number is held against and why, and what to do where it fails."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["DEMANDS", "Demand"]


@dataclass(frozen=True)
class Demand:
    """One check: what is asked and measured, what the number is held against and why, what to do where it fails."""

    name: str
    asks: str
    quantity: str
    threshold: float
    reason: str
    action: str
    at_least: bool = False


_DEMANDS = (
    Demand(
        "output",
        "Are the outputs of the shape and dtype of the images (for a classifier: one logit per class), finite, "
        "of flat images too, not probabilities, and is the input left as it was?",
        "defects",
        0,
        "every one of them spoils what comes after it",
        "Return a new tensor of the input's shape and dtype; keep NaN out; a classifier ends before its softmax.",
    ),
    Demand(
        "range",
        "Are the purified images in the units of the input, [0, 1], with its channels and sides?",
        "mean distance of output pixels to [0, 1], of the mean over draws; 1 if it is nearer to an exchanged input",
        0.2,
        "unclipped noise of standard deviation 1 stays below it; images in [-1, 1] or [0, 255] do not",
        "Map the output back to [0, 1] pixels, channels and sides in their order, as the classifier expects them.",
    ),
    Demand(
        "same-randomness",
        "Does the same image with the same randomness give the same output, twice?",
        "largest difference of a pixel",
        0,
        "on one device the same computation gives the same bits",
        "Draw every random number from `omega`; a generator of your own makes judgement and attack irreproducible.",
    ),
    Demand(
        "global-randomness",
        "Are global random generators neither read nor moved?",
        "one if a call moves a global generator, plus one if the output depends on a global seed",
        0,
        "a global seed would decide a result, or a hidden seed would make every draw the same",
        "Draw from `omega.normal`, `omega.uniform` or `omega.generators`, and seed nothing.",
    ),
    Demand(
        "batch",
        "Is an image treated alike alone, in another order, beside copies, in a large batch, in another layout?",
        "largest difference of a pixel (of a logit, relative to the largest above the median)",
        1e-4,
        "convolutions round differently in batches of another size; more is a dependence on the batch",
        "Take no mean over the batch and draw no noise by position: judge and attacker use different batches.",
    ),
    Demand(
        "gradient-recording",
        "Is the output the same whether or not gradients are recorded, and in every gradient mode of the function?",
        "largest difference of a pixel over the ways of recording",
        2.0**-20,
        "judge and attacker must see one defence, but for the rounding of kernels without gradients (8 of 2^-23)",
        "Branch neither on `torch.is_grad_enabled()` nor on `requires_grad`.",
    ),
    Demand(
        "state",
        "Are the first answer and its gradient still given after all other calls, and by a part that saw another "
        "image first? Are torch's settings and the input's gradient left alone?",
        "largest difference of a pixel",
        0,
        "a defence that changes with the calls is another one for the attacker, who calls often",
        "Keep no counters, running means or caches that a call changes.",
    ),
    Demand(
        "role",
        "Is the answer, and its gradient, the same whoever asks: role, spec, seed, image ids and numbers of draws of "
        "the randomness (with the same random numbers), call stack, thread, process, minute, training flag?",
        "ways of asking, of all tried, with another answer",
        0,
        "with the same random numbers nothing else may decide",
        "Use `omega` for random numbers alone; look neither at its labels nor at who calls.",
    ),
    Demand(
        "stochastic",
        "Do other draws give other outputs exactly where the defence says that it is stochastic?",
        "contradictions",
        0,
        "the number of draws of judgement and attack is decided by what it says",
        "Make `stochastic` say what happens, and use `omega` for every draw.",
    ),
    Demand(
        "frozen",
        "Are all parts in evaluation mode, with no parameter that wants a gradient?",
        "kinds of things that are not: parameters, parts",
        0,
        "dropout and running statistics are state and randomness outside of `omega`",
        "End `build()` with `.eval().requires_grad_(False)`.",
    ),
    Demand(
        "evaluations",
        "Are networks evaluated as often as `evaluations` says?",
        "difference from the counted evaluations",
        0,
        "costs in rows, plans and comparisons at equal compute come from it",
        "Count one evaluation for every call of the purifier's network, for one draw of one image.",
    ),
    Demand(
        "gradient",
        "Is the gradient that an attacker is given that of the function, by central differences at fixed randomness?",
        "share of images and directions that disagree at every step size",
        0.2,
        "a kink between the two ends of a difference moves with the step size, a wrong gradient does not",
        "Look for `.detach()`, `no_grad`, `.data`, rounding or a custom backward pass on the way; where the true "
        "derivative is of no use, let `differentiable` be false and give a straight-through one.",
    ),
    Demand(
        "gradient-at-attack-scale",
        "Does the gradient predict what a step of an attack's size changes?",
        "agreement of predicted and measured changes, the larger one of steps of 4/255 and 16/255",
        0.3,
        "equal changes have 1, unrelated ones or those of another size 0",
        "The derivative is zero, shattered or noise although the function changes: attack with BPDA, a smoothed "
        "function or without gradients, and let `differentiable` say so.",
        at_least=True,
    ),
    Demand(
        "gradient-elsewhere",
        "Is the gradient the same in float32, alone, in batches, and in proportion for losses of other sizes and "
        "signs, after another call, right where most pixels are 0 or 1, and finite? Is there one into the range?",
        "largest relative difference",
        0.05,
        "kinks that rounding crosses stay below it; the gradient was verified in float64, attacks run in float32",
        "Branch neither on dtype nor on the size of the batch; clip, round or normalise nothing in a backward pass.",
    ),
    Demand(
        "continuity",
        "Does the answer change gradually on the way to an image beside and to another one, or does it jump?",
        "largest jump, relative to the change from one image to another, mean over images",
        0.1,
        "of what is continuous 1/24576 of the way leaves next to nothing, and a jump stays as it is",
        "Look for look-ups, decisions about the image and seeds made from its pixels; attack without gradients too. "
        "What rounds says so by `differentiable`.",
    ),
    Demand(
        "loss-gradient",
        "Does cross-entropy have a gradient in float32?",
        "share of images where it is exactly zero",
        0.1,
        "above a margin of about 100 between logits the softmax underflows, and attacks with that loss stand still",
        "Do not scale logits up; attack with a loss of the margin.",
    ),
    Demand(
        "test-set-memory",
        "Are outputs on images unlike any test image still images of the test set, or is exactly the clean image "
        "given back for a perturbed one, or is an untouched one treated otherwise?",
        "share of such images",
        0.1,
        "a generative model makes images that are near the data, not on them",
        "The defence holds the images that it is judged on: take them out.",
    ),
)

DEMANDS: Mapping[str, Demand] = MappingProxyType({demand.name: demand for demand in _DEMANDS})
"""The checks by name, in the order of their answers."""
