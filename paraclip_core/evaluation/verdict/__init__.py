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

    preconditions: tuple[Rule, ...]
    """If one finds anything, nothing else is worth saying."""
    rules: tuple[Rule, ...]
    advice: tuple[Rule, ...]
    """What would change a verdict of *hold*."""

    def judge(self, evidence: Evidence) -> tuple[Verdict, tuple[Finding, ...]]:
        """The verdict, and the findings that it is the fold of."""
        findings = [finding for rule in self.preconditions for finding in rule(evidence)]
        if findings:
            return decided(findings), (*findings, *rules.left_out(evidence))
        findings = [finding for rule in self.rules for finding in rule(evidence)]
        verdict = decided(findings)
        if verdict == "hold":
            findings += [finding for rule in self.advice for finding in rule(evidence)]
        return verdict, tuple(findings)


AGAINST_BASE = Gate(
    preconditions=(rules.base_near_chance,),
    rules=(
        rules.tuned_is_base,
        rules.found_images,
        rules.margin_fell,
        rules.gain,
        rules.losses,
        rules.collapse,
        rules.few_images,
        rules.few_queries,
        rules.significant_losses,
        rules.over_control,
        rules.left_out,
    ),
    advice=(rules.too_few, rules.remedy),
)
"""Whether a tuned model is better than its base."""
AGAINST_CHAMPION = Gate(
    preconditions=(),
    rules=(
        rules.found_images,
        rules.margin_fell,
        rules.challenge,
        rules.few_images,
        rules.few_queries,
        rules.significant_losses,
    ),
    advice=(rules.too_few,),
)
"""Whether a challenger may replace a champion: it must not be worse."""
