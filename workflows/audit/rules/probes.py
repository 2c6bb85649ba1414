"""Rule about what probes found: a defence that is not the function it seems to be."""

from collections.abc import Iterator

from defense.probe import DEMANDS
from workflows.audit.finding import Finding
from workflows.results.reader import Results

__all__ = ["failed_checks"]


def failed_checks(results: Results) -> Iterator[Finding]:
    """A check of the probe failed: every figure of the cells that use the part stands under it.

    An error, since it was measured on the part itself; of a jump a warning, since some filters that choose have one
    by design (hard thresholds, matching pursuit). See :mod:`defense.probe` for the checks and their thresholds.
    """
    frame = results.probes()
    for row in frame[frame["verdict"] == "fail"].to_dict("records") if len(frame) else ():
        demand = DEMANDS.get(row["name"])
        evidence = {name: float(row[name]) for name in ("value", "threshold") if row[name] == row[name]}
        yield Finding(
            "probe-failed",
            "warning" if row["name"] == "continuity" else "error",
            row["cells"],
            f"the probe of {row['part']} {row['probed']!r} fails `{row['name']}`: {row['text']}.",
            evidence,
            "See docs/probe.md." if demand is None else demand.action,
        )
