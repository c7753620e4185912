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
    r"missing|nil|nope|blank|empty|a\[9\]|o\[sn\]|none|rows\[n\]"
    r"|find|first|last|group_by|push|unshift|map"
)
_TELLS = r"\| (json|jsonify|inspect|array_to_sentence_string|to_integer|group_by)|\{% case"


def _undefined(template: str, ours: Outcome, theirs: Outcome) -> bool:
    """Only JavaScript's `undefined`, `null` and drops make the difference."""
    return bool(re.search(_NOTHING, template) and re.search(_TELLS, template))


def _unordered(template: str, ours: Outcome, theirs: Outcome) -> bool:
    """The same characters in another order, after a sort; or a list of several kinds sorted."""
    same = sorted(ours.get("text", "")) == sorted(theirs.get("text", ""))
    return bool(re.search(r"\b(mix|nest)\b.*\| sort" if not same else r"\| sort", template))


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
    Difference(
        "Values of several kinds have no order",
        "docs: sort; JavaScript compares any two as texts, lists and numbers, too",
        _unordered,
    ),
    Difference(
        "slugify has no modes",
        "docs: slugify takes nothing",
        _uses(r"slugify: ?'"),
    ),
    Difference(
        "A text that is no number counts as 0",
        "docs: plus; a sum of JavaScript's objects is a text",
        lambda template, ours, theirs: "[object Object]" in theirs.get("text", ""),
    ),
    Difference(
        "nil is blank, and `empty` is written as nothing",
        "docs: blank; LiquidJS asks its own NullDrop, and joins its EmptyDrop as an object",
        _uses(r"\bnil [!=]= blank|(push|unshift): ?(empty|blank) \| join"),
    ),
    Difference(
        "An argument too many is passed over",
        "LiquidJS does so, too, but for `default`, which breaks on it",
        lambda template, ours, theirs: "Iterator value" in theirs.get("error", ""),
    ),
    Difference(
        "A loop's option may be a text that begins with a number",
        "docs: limit, offset, cols; LiquidJS adds and divides texts",
        _uses(r"(?s)assign (\w+) .*(for|tablerow) [^%]*(limit|cols|offset): ?\1\b"),
    ),
]


def on_purpose(template: str, ours: Outcome, theirs: Outcome) -> bool:
    """Whether a difference is one of those."""
    return any(difference.explains(template, ours, theirs) for difference in DIFFERENCES)
