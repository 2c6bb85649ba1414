"""Rules about what attacks left: their rows, and their images recomputed in float64 against the data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from defense.errors import PuregridError
from tasks.attacks import AttackConfig
from tasks.attacks.budgets import format_eps
from tasks.stages import images_from_table
from workflows.audit.about import about, percent
from workflows.audit.data import DataSets
from workflows.audit.finding import Finding
from workflows.audit.rules.budgets import STILL
from workflows.audit.rules.starts import Starts
from workflows.audit.view import View
from workflows.store import Store

__all__ = ["check_images", "did_nothing", "no_gradient", "not_a_number", "unread"]

Pixels = npt.NDArray[np.float32]

TOLERATED = 0.05
"""Share of images on which an attack may fail to act."""

ENOUGH, LEFT_OUT = 20, 0.25
"""Images among whose pixel values so large a share is not left as it was by accident."""

_ULP = 2.0**-24
"""Largest rounding error of a float32 in [0, 1]."""


def _distinct(all_views: Sequence[View]) -> Iterator[tuple[View, list[View]]]:
    """Return one view of each attack that was run, with all the views whose images it made."""
    groups: dict[tuple[object, ...], list[View]] = {}
    for view in all_views:
        if view.stage is not None and not view.attack_rows.empty:
            groups.setdefault((view.stage.id, *view.images[:2]), []).append(view)
    for members in groups.values():
        yield max(members, key=lambda view: len(view.image_ids)), members  # cells may stop at different images


def did_nothing(all_views: Sequence[View]) -> Iterator[Finding]:
    """The attack left images that were right as they were.

    A perturbation below 1e-6 in every pixel is none: a rounding, or a step in the wrong unit. More than 5 % of the
    images that the bare classifier had right is an error: no gradient came back, or the result was thrown away. It is
    a note where the attack is a search that returns the image itself when it finds nothing: it has a column
    ``attack_broken``, as AutoAttack's rows have, or whatever it did move is broken.
    """
    for view, members in _distinct(all_views):
        rows, right = view.attack_rows, view.right_before
        still = (rows["linf"] < STILL).to_numpy()
        share = float((still & right).sum() / max(int(right.sum()), 1))
        if share <= TOLERATED:
            continue
        moved = right & ~still
        kept = float(np.nanmean(view.right_after[moved])) if moved.any() else 1.0
        searches = view.reported("broken") is not None or (
            bool(moved.any()) and kept <= (TOLERATED if view.static else 0.5)
        )
        search = searches and not (view.attack is not None and view.attack.keeps_best)
        tiny = float(rows["linf"].to_numpy()[still & right].max())
        size = "exactly 0" if tiny == 0 else f"at most {tiny:.2g}"
        yield about(
            "attack-did-nothing",
            "note" if search else "error",
            members,
            f"{100 * share:.1f} % of the images that were right have a perturbation of {size}"
            + (": the attack returns the image itself where it finds nothing." if search else "."),
            {"share": share, "images_right_before": int(right.sum()), "accuracy_of_moved": kept},
            "Let the attack return its best candidate even where it did not succeed."
            if search
            else "Check that gradients are not zero and that the attack returns what it found.",
        )


def no_gradient(all_views: Sequence[View]) -> Iterator[Finding]:
    """The attack saw gradients that are exactly zero or not finite (columns ``gradient_zero``, ``gradient_nan``).

    A saturated loss, a rounded or a clamped pixel gives no direction (Athalye et al., arXiv 1802.00420, section 3;
    Carlini et al., arXiv 1902.06705); the accuracy of such images is not evidence. Only images count that were right
    before the attack and are right on what it submits: on an image that is broken a loss may well be constant (DLR
    is, where the true class is third, since its numerator and denominator are then equal), and nothing is left to
    find there. Each image has the weight of its right draws. A warning where more than 5 % of these gradients are
    zero, and the images concerned are more than 5 % of those that were right. Not finite is an error from the first
    on.
    """
    for view, members in _distinct(all_views):
        asked, zero, broken = (view.reported(name) for name in ("gradients", "gradient_zero", "gradient_nan"))
        if asked is not None and zero is not None:
            weight = np.where(view.right_before, np.nan_to_num(view.right_after), 0.0)
            total = float((weight * asked).sum())
            share = float((weight * zero).sum()) / total if total else 0.0
            images = float(weight[zero > 0].sum())
            if share > TOLERATED and images > TOLERATED * view.right_before.sum():
                yield about(
                    "zero-gradients",
                    "warning",
                    members,
                    f"{100 * share:.1f} % of the gradients that the attack saw, on images that it left right, are "
                    "all 0.",
                    {"share": share, "images": images, "of": float(weight.sum())},
                    "Use a loss that does not saturate (margin, dlr), float32, no clamp before the classifier, and "
                    "`gradient: bpda` through what has no derivative.",
                )
        if broken is not None and (broken > 0).any():
            yield about(
                "gradients-not-finite",
                "error",
                members,
                f"Gradients were NaN or infinite on {int((broken > 0).sum())} of {len(broken)} images.",
                {"images": int((broken > 0).sum()), "of": len(broken), "gradients": int(broken.sum())},
                "Look for overflow (bf16), a norm or a root at 0, or a division by zero in loss and purifier.",
            )


def not_a_number(all_views: Sequence[View]) -> Iterator[Finding]:
    """The attack's loss is NaN or infinite: it has followed nothing, and kept what it happened to hold."""
    for view, members in _distinct(all_views):
        # The last iterate may be returned without a look at its loss.
        unknown = view.attack is not None and view.attack.loss_unknown
        if view.black_box or unknown or "loss" not in view.attack_rows.columns:
            continue
        bad = int((~np.isfinite(view.attack_rows["loss"].to_numpy(np.float64, na_value=np.nan))).sum())
        if bad:
            yield about(
                "loss-not-a-number",
                "error",
                members,
                f"The attack's loss is NaN or infinite on {bad} of {len(view.attack_rows)} images.",
                {"images": bad, "share": bad / len(view.attack_rows)},
                "Look for overflow (bf16) or a division by zero in the loss or the purifier.",
            )


@dataclass
class _Excess:
    """Violations that recomputation finds over the chunks of an attack."""

    images: int = 0
    outside_ball: int = 0
    largest: float = 0.0
    outside_range: int = 0
    lowest: float = np.inf
    highest: float = -np.inf
    mismatched: int = 0
    mismatch: float = 0.0
    still: npt.NDArray[np.bool_] | None = None

    def add(self, images: Pixels, clean: Pixels, rows: pd.DataFrame, attack: AttackConfig) -> None:
        """Count one chunk."""
        flat, base = images.reshape(len(images), -1).astype(np.float64), clean.reshape(len(clean), -1)
        delta = np.abs(flat - base)
        norms = {"linf": delta.max(1), "l2": np.sqrt(np.square(delta).sum(1)), "l1": delta.sum(1)}
        pixels = flat.shape[1]
        still = (delta <= STILL).all(0).reshape(images.shape[1], -1)
        self.still = still if self.still is None else self.still & still
        self.images += len(images)
        if attack.norm in norms:  # a flow or a perceptual distance bounds none of these
            slack = _ULP * {"linf": 1.0, "l2": float(np.sqrt(pixels)), "l1": float(pixels)}[attack.norm]
            # Written so that NaN counts as outside.
            self.outside_ball += int((~(norms[attack.norm] <= attack.eps + slack)).sum())
            self.largest = float(np.fmax(self.largest, np.nan_to_num(norms[attack.norm], nan=np.inf).max()))
        self.outside_range += int((~((flat.min(1) >= 0) & (flat.max(1) <= 1))).sum())
        self.lowest, self.highest = min(self.lowest, float(flat.min())), max(self.highest, float(flat.max()))
        apart = np.max([np.abs(rows[name].to_numpy() - norms[name]) for name in norms if name in rows], axis=0)
        wrong = ~(apart <= 1e-6 * np.maximum(norms["l1"], 1))
        self.mismatched += int(wrong.sum())
        self.mismatch = float(np.fmax(self.mismatch, np.nan_to_num(apart, nan=np.inf).max()))


def check_images(all_views: Sequence[View], store: Store, data: DataSets) -> Iterator[Finding]:
    """Images outside the ball or the image range, or rows whose norms are not those of the stored images.

    A figure is for a budget, and an image outside of it belongs to another one. Norms are computed anew, in float64,
    from the stored float32 images and the data set; up to half a unit in the last place of each pixel is forgiven.
    Images are read one chunk at a time. What cannot be read is a note: the check was not made.
    """
    for view, members in _distinct(all_views):
        source, attack = view.stage, view.attack
        assert source is not None and attack is not None
        excess, by_id = _Excess(), view.attack_rows.set_index("image_id")
        starts = Starts(attack, source.seed, source.compute.noise)
        try:
            clean = data.load(view.cell.images.dataset)
            for chunk in view.results.chunks_of(source, view.cell):
                ids = np.array(chunk.ids)
                images = images_from_table(store.read_images("attack", source.id, chunk.name), chunk.ids)
                excess.add(images, clean.images[ids], by_id.loc[ids], attack)
                starts.add(images, clean.images[ids], chunk.ids)
        except (PuregridError, OSError, ValueError) as error:
            yield unread(error, members)
            continue
        yield from _verdicts(excess, attack, members)
        yield from _left_out(excess, attack, members)
        yield from starts.verdict(view, members)


def _left_out(excess: _Excess, attack: AttackConfig, members: Sequence[View]) -> Iterator[Finding]:
    """Pixels that no image of the attack has changed: a whole channel, or a quarter of all under l_inf."""
    if excess.still is None or excess.images < ENOUGH or attack.norm not in ("linf", "l2", "l1"):
        return
    share, channels = float(excess.still.mean()), int(excess.still.all(1).sum())
    if channels or (share > LEFT_OUT and attack.norm == "linf"):
        yield about(
            "budget-not-used",
            "warning",
            members,
            f"{percent(share)} of the pixel values, {channels} whole channels among them, are as they were in all "
            f"{excess.images} images.",
            {"share": share, "channels": channels, "images": excess.images},
            "Look for an index, a mask or a gradient that leaves channels or rows out.",
        )


def unread(error: Exception, members: Sequence[View]) -> Finding:
    """Return the note that images of some views were not checked, and why."""
    return about(
        "images-not-checked",
        "note",
        members,
        f"The images could not be compared with the data set: {error}",
        {"attacks": 1},
        "Audit where the store's images and the data set are.",
    )


def _verdicts(excess: _Excess, attack: AttackConfig, members: Sequence[View]) -> Iterator[Finding]:
    if excess.outside_ball:
        yield about(
            "outside-ball",
            "error",
            members,
            f"{excess.outside_ball} of {excess.images} adversarial images are outside the {attack.norm} ball of "
            f"{format_eps(attack.eps)}, the farthest at {excess.largest:.6g}.",
            {"images": excess.outside_ball, "of": excess.images, "largest": excess.largest, "eps": attack.eps},
            "Project on the ball last, in float64 (`Region.project` does).",
        )
    if excess.outside_range:
        yield about(
            "outside-range",
            "error",
            members,
            f"{excess.outside_range} of {excess.images} adversarial images have values outside [0, 1] or NaN.",
            {"images": excess.outside_range, "of": excess.images, "lowest": excess.lowest, "highest": excess.highest},
            "Clamp to [0, 1] last.",
        )
    if excess.mismatched:
        yield about(
            "norms-disagree",
            "error",
            members,
            f"The norms in the rows of {excess.mismatched} images are not those of the stored images; they differ by "
            f"up to {excess.mismatch:.3g}.",
            {"images": excess.mismatched, "of": excess.images, "difference": excess.mismatch},
            "Rows and images come from different computations: run the attack again in a new store.",
        )
