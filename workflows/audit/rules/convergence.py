"""Attacks with ``converge`` whose largest values came before they had converged."""

from collections.abc import Iterator

from workflows.audit.finding import Finding
from workflows.results.convergence import convergence_frame
from workflows.results.reader import Results

__all__ = ["budget_ended"]


def budget_ended(results: Results) -> Iterator[Finding]:
    """An attack with ``converge`` was doubled up to its largest value, and accuracy had not settled by then.

    Accuracy under an attack is an upper bound of the truth; while it still changes by more than half its interval
    from one doubling to the next, it is not known how far it is from where it would end.
    """
    frame = convergence_frame(results)
    ended = frame[frame["state"].str.contains("not converged")] if len(frame) else frame
    for row in ended.to_dict("records"):
        yield Finding(
            "not-converged",
            "warning",
            (str(row["cell"]),),
            f"{row['attack']} was doubled up to {row['value']} {row['axis']}, the most allowed, and accuracy "
            f"({100 * row['avg']:.1f} %) has not settled: it is an upper bound still.",
            {"accuracy": float(row["avg"]), "value": int(row["value"]), "change": float(row["change"])},
            f"Raise the largest value, `converge: {{{row['axis']}: {4 * row['value']}}}`.",
        )
