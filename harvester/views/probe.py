"""What a probe of a site found, as text. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from harvester.probe.findings import Finding
from harvester.views.text import clean, columns


def findings_table(findings: Sequence[Finding]) -> str:
    """One line a claim: what the file says, what was found, and whether the two agree."""
    rows = [(_mark(item), item.key, clean(item.claimed), clean(item.measured)) for item in findings]
    lines = [columns(("", "key", "site file", "measured"), rows)]
    lines += [f"{item.key}: {clean(item.advice)}" for item in findings if item.advice]
    return "\n".join(lines)


def _mark(finding: Finding) -> str:
    return "wrong" if finding.proposal is not None or finding.advice else "good"
