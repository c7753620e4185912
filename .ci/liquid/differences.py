"""Where we differ from LiquidJS on purpose: the rule, its source, and how to know it."""

from __future__ import annotations

import re
from typing import Any, Callable, NamedTuple

#: What a template made: {"text": …} or {"error": …}.
Outcome = dict[str, Any]


class Difference(NamedTuple):
    """A rule that isn't LiquidJS's, where it is from, and whether it explains two outcomes."""

    rule: str
    source: str
    explains: Callable[[str, Outcome, Outcome], bool]


def _uses(pattern: str) -> Callable[[str, Outcome, Outcome], bool]:
    """The template matches a pattern."""
    return lambda template, ours, theirs: re.search(pattern, template) is not None


def _uncast(template: str, ours: Outcome, theirs: Outcome) -> bool:
    return "Unidentified method" in ours.get("error", "")


#: Values that are nothing, and what tells JavaScript's two kinds of nothing apart.
_NOTHING = (
    r"missing|nil|nope|blank|empty|a\[9\]|o\[sn\]|none|rows\[n\]|find|first|last|push|unshift"
)
_TELLS = r"\| (json|jsonify|inspect|array_to_sentence_string|to_integer)|\{% case"


def _undefined(template: str, ours: Outcome, theirs: Outcome) -> bool:
    """Only JavaScript's `undefined`, `null` and drops make the difference."""
    return bool(re.search(_NOTHING, template) and re.search(_TELLS, template))


DIFFERENCES = [
    Difference(
        "A text and a number have no order: `Unidentified method`",
        "docs: values are strings; compare what was cast",
        _uncast,
    ),
    Difference(
        "modulo is never negative",
        "docs: differences between the legacy and the latest engine",
        _uses(r"modulo: ?(-|m\b|g\b|z\b)"),
    ),
    Difference(
        "What isn't there is nil, and one nil is like the other",
        "docs: nil; LiquidJS tells JavaScript's undefined, null and its own NullDrop apart",
        _undefined,
    ),
    Difference(
        "JSON writes numbers under 0.0001 with an exponent",
        "ours: the same number, and Python's writer is the quick one",
        _uses(r"tiny.*json|json.*tiny"),
    ),
]


def on_purpose(template: str, ours: Outcome, theirs: Outcome) -> bool:
    """Whether a difference is one of those."""
    return any(difference.explains(template, ours, theirs) for difference in DIFFERENCES)
