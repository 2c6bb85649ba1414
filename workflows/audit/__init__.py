"""Auditor: what in the numbers of a sweep cannot be right, is probably too good, or must be known with them.

>>> for finding in findings(Results(store, sweep)): print(finding.severity, finding.text)   # doctest: +SKIP

Rules see committed rows, commits and specs, never logs, so that anybody with the store finds the same. Each is a
small function whose docstring gives its reasoning and source; ``docs/auditor.md`` lists them for readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from workflows.audit.finding import SEVERITIES, Finding, Severity, counts, rules_on
from workflows.audit.names import names_beside
from workflows.audit.rules import (
    autoattack,
    corruptions,
    ordering,
    overrides,
    probes,
    stored_images,
    threat_model,
)
from workflows.audit.rules import (
    certificates as certificate_rules,
)
from workflows.audit.view import Certified, View, certificates, views
from workflows.results.reader import Results

__all__ = [
    "CERTIFIED_RULES",
    "CORRUPTED_RULES",
    "RULES",
    "SEVERITIES",
    "Finding",
    "Severity",
    "counts",
    "findings",
    "rules_on",
]

Rule = Callable[[Sequence[View]], Iterator[Finding]]
CertifiedRule = Callable[[Sequence[Certified], Sequence[View]], Iterator[Finding]]
CorruptedRule = Callable[[Sequence[View], Sequence[View]], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    ordering.attacked_above_clean,
    ordering.beats_bare_classifier,
    ordering.adaptive_weaker_than_static,
    ordering.black_box_beats_white_box,
    ordering.single_step_beats_iterative,
    ordering.not_monotone_in_eps,
    ordering.chance_at_full_budget,
    ordering.losses_disagree,
    ordering.nothing_changed,
    ordering.not_converged,
    threat_model.given_labels,
    threat_model.guidance_gradient_missing,
    threat_model.only_static,
    threat_model.one_draw_of_eot,
    threat_model.one_draw_of_judgement,
    threat_model.autoattack_standard,
    autoattack.autoattack_warnings,
    autoattack.autoattack_judged_once,
    threat_model.knows_eps,
    threat_model.depth_without_schedule,
    threat_model.t_star_inconsistent,
    stored_images.did_nothing,
    stored_images.no_gradient,
    stored_images.not_a_number,
    threat_model.clean_missing,
    overrides.bound_lifted,
)
"""The rules that look at rows and specs, in the order of their findings; stored images are checked besides."""

CERTIFIED_RULES: tuple[CertifiedRule, ...] = (
    certificate_rules.refuted_by_draws,
    certificate_rules.radius_of_counts,
    certificate_rules.noise_level_mismatch,
    certificate_rules.too_few_samples,
)
"""Those that look at certificates, with the clean and attacked cells beside them."""

CORRUPTED_RULES: tuple[CorruptedRule, ...] = (
    corruptions.above_clean,
    corruptions.generated,
    corruptions.incomplete,
)
"""Those that look at corruptions, likewise."""


def findings(results: Results, *, images: bool = True) -> list[Finding]:
    """What the rules find in the committed rows of a sweep, errors first.

    Arguments:
        results: The sweep's results; cells without rows are passed over.
        images: Also compare the stored adversarial images with the data set, which reads them all.
    """
    sweep, adversarial = results.sweep, views(results)
    certified, corrupted = certificates(results), views(results, results.sweep.corrupted)
    all_findings = [finding for rule in RULES for finding in rule(adversarial)]
    all_findings += [finding for rule in CERTIFIED_RULES for finding in rule(certified, adversarial)]
    all_findings += [finding for rule in CORRUPTED_RULES for finding in rule(corrupted, adversarial)]
    all_findings += threat_model.few_images([*adversarial, *corrupted, *certified])
    all_findings += probes.failed_checks(results)
    if images:
        all_findings += stored_images.check_images(adversarial, results.store)
    named = [replace(finding, names=names_beside(sweep, finding.cells)) for finding in all_findings]
    return sorted(named, key=lambda finding: SEVERITIES.index(finding.severity))  # stable: in the rules' order
