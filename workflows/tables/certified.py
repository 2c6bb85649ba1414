"""Tables of certificates: one line per certificate, the upper envelope over sigma, and the curves behind both."""

from collections.abc import Iterator

import pandas as pd

from workflows.tables.common import CELL, CLASSIFIER, DATASET, DEFENCE, IMAGES, PLANNED, SEED
from workflows.tables.table import Column, Table, cells_of, frame_only

__all__ = ["certified_table", "curves_table", "envelope_table"]

_CERTIFIED = (
    "Share of images whose certified class is right with at least that l_2 radius, in %. Each certificate is wrong "
    "with probability at most alpha. ACR is the average certified radius, 0 where the class is wrong. bound: a lower "
    "bound on the certified accuracy at r = 0, with confidence 99.9 %, which allows for wrong certificates."
)
_ENVELOPE = "The best sigma at each radius, chosen for each radius and never for each image."


_BASE = Column("base", "base", "text", "What was smoothed: the bare classifier, or the denoised one.", drop=5)
_SIGMA = Column("sigma", "sigma", "number", "Noise of the certificate.", unit="pixels in [0, 1]")
_N = Column("n", "n", "integer", "Largest number of estimation samples.", drop=4)
_FAMILY = Column("family", "defence", "text", "The defence without its t*, which follows sigma.")
_RADIUS = Column("radius", "radius", "number", "The l_2 radius.", unit="pixels in [0, 1]")
_GUARANTEE = Column("guarantee", "guarantee", "text", "Guarantee of the certificate.", drop=6)
_BOUND = Column(
    "bound", "bound", "percent", "Lower bound of the data set's certified accuracy, confidence 99.9 %.", drop=3
)
_ACCURACY = Column(
    "accuracy", "certified", "interval", "Share of images right with at least that radius.", ends=("low", "high")
)
_WAY = (
    Column("family_id", "family id", "text", "Id of the defence without its t*.", when=frame_only),
    Column("votes", "votes", "integer", "Draws that vote on a sample.", when=frame_only),
    Column("alpha", "alpha", "number", "Largest probability that a certificate is wrong.", when=frame_only),
    Column("rule", "rule", "text", "Rule by which counts become a radius.", when=frame_only),
)
_OF_CELL = (
    Column("n0", "n0", "integer", "Samples that choose the class.", when=frame_only),
    Column("ceiling", "ceiling", "number", "The largest radius that any image could have.", when=frame_only),
    Column("t_star", "t*", "integer", "Diffusion time of the purifier.", when=frame_only),
    Column("sigma_eq", "sigma_eq", "number", "Noise level of the purifier in pixels.", when=frame_only),
)


def certified_table(frame: pd.DataFrame, curves: pd.DataFrame) -> Table | None:
    """Return one line per certificate; None without any committed.

    Arguments:
        frame: From :func:`workflows.results.certificates.certified_frame`.
        curves: From :func:`workflows.results.certificates.certified_curves`.
    """
    if frame.empty:
        return None
    radii = sorted(curves["radius"].unique())
    at = curves.pivot(index="cell", columns="radius", values="accuracy").reindex(frame["cell"])
    shown = frame.assign(**{f"r={radius:g}": at[radius].to_numpy() for radius in radii})
    return Table(
        "certified",
        "Certified accuracy",
        tuple(_columns(radii)),
        frame,
        _CERTIFIED,
        shown=shown,
        cells=cells_of(frame),
    )


def _columns(radii: list[float]) -> Iterator[Column]:
    yield from (DATASET, SEED, CLASSIFIER, DEFENCE, _BASE, _SIGMA, _N, IMAGES)
    for place, radius in enumerate(radii):
        meaning = (
            f"Share of images right with a certified radius of at least {radius:g}; in JSON under certified_curves."
        )
        # The largest radii go first.
        yield Column(f"r={radius:g}", f"r={radius:g}", "percent", meaning, drop=8 + len(radii) - place)
    yield _BOUND
    yield Column("acr", "ACR", "number", "Average certified radius.", unit="pixels in [0, 1]", digits=3, drop=7)
    yield Column("abstained", "abstained", "percent", "Share of images without a certificate.", drop=2)
    yield Column("samples", "samples", "count", "Samples drawn for an image, on average.", drop=1)
    yield _GUARANTEE
    yield Column("natural", "r=0", "interval", "Share of images right and not abstained on.", when=frame_only)
    yield from (CELL, _FAMILY.hidden(), *_WAY, *_OF_CELL, PLANNED)


def curves_table(curves: pd.DataFrame) -> Table | None:
    """Return the points of the curves, for machines and figures; None without any."""
    if curves.empty:
        return None
    columns = (DATASET, SEED, CLASSIFIER, DEFENCE, _BASE, _SIGMA, _N, IMAGES, _RADIUS, _ACCURACY, _BOUND, _GUARANTEE)
    return Table(
        "certified_curves",
        "Certified accuracy by radius",
        (*columns, CELL, _FAMILY.hidden(), *_WAY, *_OF_CELL),
        curves,
        _CERTIFIED,
        for_people=False,
    )


def envelope_table(frame: pd.DataFrame) -> Table | None:
    """Return the best sigma at each radius; None where no certificates differ in sigma alone.

    Arguments:
        frame: From :func:`workflows.results.certificates.envelope_frame`.
    """
    if frame.empty:
        return None
    accuracy = Column("accuracy", "certified", "percent", "The best share of images right with at least that radius.")
    hidden = (_BASE.hidden(), _GUARANTEE.hidden(), IMAGES.hidden())
    columns = (DATASET, SEED, CLASSIFIER, _FAMILY, _N, _RADIUS, accuracy, _SIGMA, *_WAY, *hidden)
    return Table("envelope", "Upper envelope over sigma", columns, frame, _ENVELOPE)
