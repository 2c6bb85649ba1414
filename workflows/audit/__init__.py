"""Auditor: what in the numbers of a sweep cannot be right, is probably too good, or must be known with them.

>>> for finding in findings(Results(store, sweep)): print(finding.severity, finding.text)   # doctest: +SKIP

Rules see committed rows, commits and specs, never logs, so that anybody with the store finds the same. Each is a
small function whose docstring gives its reasoning and source; ``docs/auditor.md`` lists them for readers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from workflows.audit.data import DataSets
from workflows.audit.excess import REPORT_LEVEL, Comparisons, comparisons, of_report
from workflows.audit.finding import SEVERITIES, SILENCED, Finding, Severity, counts, rules_on
from workflows.audit.names import NamesBeside
from workflows.audit.rules import (
    answers,
    autoattack,
    budgets,
    convergence,
    corruptions,
    ladders,
    ordering,
    overrides,
    probes,
    stored_images,
    threat_model,
)
from workflows.audit.rules import (
    certificates as certificate_rules,
)
from workflows.audit.rules.images import check_data as data_rules
from workflows.audit.rules.images import training_split
from workflows.audit.silenced import silenced
from workflows.audit.view import Certified, View, certificates, rungs, views
from workflows.results.reader import Results

__all__ = [
    "ATTACK_RULES",
    "CERTIFIED_RULES",
    "COMPARISONS",
    "CORRUPTED_RULES",
    "RULES",
    "SEVERITIES",
    "SILENCED",
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
    threat_model.given_labels,
    threat_model.guidance_gradient_missing,
    threat_model.published_attack_weaker,
    threat_model.only_static,
    threat_model.one_draw_of_eot,
    threat_model.one_draw_of_judgement,
    threat_model.knows_eps,
    threat_model.depth_without_schedule,
    threat_model.t_star_inconsistent,
    answers.clean_at_chance,
    answers.random_though_deterministic,
    answers.draws_identical,
    training_split,
    ladders.rungs_not_judged,
    threat_model.clean_missing,
    overrides.bound_lifted,
)
"""The rules that look at the rows and specs of cells, in the order of their findings."""

COMPARISONS: tuple[Rule, ...] = (
    ordering.attacked_above_clean,
    ordering.surer_than_clean,
    ordering.beats_bare_classifier,
    ordering.adaptive_weaker_than_static,
    ordering.black_box_beats_white_box,
    ordering.bpda_beats_exact,
    ordering.single_step_beats_iterative,
    ordering.not_monotone_in_eps,
    ordering.chance_at_full_budget,
    ordering.losses_disagree,
    ordering.nothing_changed,
    ordering.not_converged,
    ladders.judged_otherwise,
    ladders.attack_beats_ladder,
)
"""Those that compare accuracies, of cells and of the rungs of ladders whose accuracy says something beside others."""

ATTACK_RULES: tuple[Rule, ...] = (
    threat_model.autoattack_standard,
    autoattack.autoattack_warnings,
    autoattack.autoattack_judged_once,
    stored_images.did_nothing,
    stored_images.no_gradient,
    stored_images.not_a_number,
    budgets.implausible_eps,
    budgets.step_size,
    budgets.budget_not_used,
    budgets.fewer_steps,
)
"""Those that look at what each attack did, of cells and of all rungs; stored images are checked besides."""

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

OWN_CORRECTION = frozenset(
    {"certified-above-attacked", "certified-above-clean", "clean-below-card", "surer-than-clean"}
)
"""Rules that correct their p themselves, or ask for one (p < .001) that sound sweeps are far from."""


def findings(results: Results, *, images: bool = True) -> list[Finding]:
    """What the rules find in the committed rows of a sweep, errors first, silenced ones last.

    Arguments:
        results: The sweep's results; cells without rows are passed over.
        images: Also look at the stored adversarial images and at the data set, which reads them all.
    """
    sweep = results.sweep
    with comparisons() as tests:
        found = list(_found(results, images))
    corrected = [_of_report(finding, tests) for finding in found]
    beside = NamesBeside(sweep)
    named = [replace(finding, names=beside.of(finding.cells)) for finding in corrected]
    ordered = sorted(named, key=lambda finding: SEVERITIES.index(finding.severity))  # stable: in the rules' order
    return silenced(sweep, ordered)


def _found(results: Results, images: bool) -> Iterator[Finding]:
    adversarial = views(results)
    certified, corrupted = certificates(results), views(results, results.sweep.corrupted)
    parts = rungs(results, adversarial)
    attacks = [*adversarial, *parts]
    compared = [*adversarial, *(rung for rung in parts if rung.compared)]
    for seen, rules in ((compared, COMPARISONS), (adversarial, RULES), (attacks, ATTACK_RULES)):
        for rule in rules:
            yield from rule(seen)
    for certified_rule in CERTIFIED_RULES:
        yield from certified_rule(certified, adversarial)
    for corrupted_rule in CORRUPTED_RULES:
        yield from corrupted_rule(corrupted, adversarial)
    yield from threat_model.few_images([*adversarial, *corrupted, *certified])
    yield from probes.failed_checks(results)
    yield from convergence.budget_ended(results)
    if images:
        data = DataSets()
        yield from stored_images.check_images(attacks, results.store, data)
        yield from data_rules([*adversarial, *corrupted], data)


def _of_report(finding: Finding, tests: Comparisons) -> Finding:
    """Return a finding of a test as a note where chance explains it among all tests of the report."""
    p = finding.evidence.get("p")
    if p is None or finding.severity == "note" or finding.rule in OWN_CORRECTION:
        return finding
    among = of_report(p, tests.made)
    if among < REPORT_LEVEL:
        return finding
    chance = f" A p of {p:.2g} among the {tests.made} comparisons of this report is no more than chance explains."
    evidence = {**finding.evidence, "comparisons": tests.made, "p_of_report": among}
    return replace(finding, severity="note", text=finding.text + chance, evidence=evidence)
