"""The verdict: evidence → findings, by one rule each → *promote* or *hold*, the fold of the findings' effects.

A new rule is a function of :mod:`.rules` and its line in a gate below.
"""

from __future__ import annotations

from dataclasses import dataclass

from paraclip_core.evaluation.verdict import rules
from paraclip_core.evaluation.verdict.evidence import Evidence
from paraclip_core.evaluation.verdict.finding import Finding, Verdict, decided
from paraclip_core.evaluation.verdict.rules import Rule


@dataclass(frozen=True)
class Gate:
    """The rules of a verdict, in the order in which their findings are read."""

    always: tuple[Rule, ...]
    """What is said in any case."""
    preconditions: tuple[Rule, ...]
    """If one finds anything, no figure means anything, and no further rule is asked."""
    rules: tuple[Rule, ...]
    advice: tuple[Rule, ...]
    """What would change a verdict of *hold*."""

    def judge(self, evidence: Evidence) -> tuple[Verdict, tuple[Finding, ...]]:
        """The verdict, and the findings that it is the fold of."""

        def found_by(asked: tuple[Rule, ...]) -> list[Finding]:
            return [finding for rule in asked for finding in rule(evidence)]

        findings = found_by(self.always)
        if unmet := found_by(self.preconditions):
            return decided(unmet), (*findings, *unmet)
        findings += found_by(self.rules)
        if decided(findings) == "hold":
            findings += found_by(self.advice)
        return decided(findings), tuple(findings)


AGAINST_BASE = Gate(
    always=(rules.tuned_is_base, rules.left_out),
    preconditions=(rules.base_near_chance,),
    rules=(
        rules.found_images,
        rules.margin_fell,
        rules.gain,
        rules.losses,
        rules.collapse,
        rules.few_images,
        rules.few_queries,
        rules.significant_losses,
        rules.over_control,
    ),
    advice=(rules.too_few, rules.remedy),
)
"""Whether a tuned model is better than its base."""
AGAINST_CHAMPION = Gate(
    always=(),
    preconditions=(),
    rules=(
        rules.found_images,
        rules.margin_fell,
        rules.challenge,
        rules.churned,
        rules.few_images,
        rules.few_queries,
        rules.significant_losses,
    ),
    advice=(rules.too_few,),
)
"""Whether a challenger may replace a champion: by a step, or by a refresh that is not worse."""
