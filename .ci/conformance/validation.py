"""Does a value fit a JSON Schema, and if not, why."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from jsonschema import Draft202012Validator


def broken(schema: Dict[str, Any], value: Any) -> List[str]:
    """What is wrong with a value, a sentence each."""
    return [_sentence(error) for error in Draft202012Validator(schema).iter_errors(value)]


def _sentence(error: Any) -> str:
    """The deepest cause of an error; of several alternatives that of the nearest one."""
    while error.context:
        error = _nearest(error)
    place = ".".join(map(str, error.absolute_path)) or "the body"
    return f"{place}: {error.message[:160]}"


def _nearest(error: Any) -> Any:
    """The first fault of the alternative that a value comes closest to fitting."""
    alternatives: Dict[int, List[Any]] = {}
    for each in error.context:
        alternatives.setdefault(each.relative_schema_path[0], []).append(each)
    return min(alternatives.values(), key=_distance)[0]


def _distance(errors: List[Any]) -> Tuple[bool, int]:
    """How far off an alternative is: one of another `type` is farther than one with flaws."""
    is_other = any(
        list(error.relative_path)[-1:] == ["type"] or error.validator == "type" for error in errors
    )
    return is_other, len(errors)
