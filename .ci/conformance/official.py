"""The official OpenAPI file of July 2025, read as JSON Schema.

The file isn't part of this repository. It says little of what must be there and is older than
the API, so `AMENDMENTS` lists where it has been overtaken.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

Json = Any
Schema = Dict[str, Any]

REPOSITORY = Path(__file__).resolve().parents[2]
FILE_NAME = "app.json"


class Amendment(NamedTuple):
    """A property of the answers of some paths whose schema is another one today."""

    paths: str
    name: str
    schema: Schema
    reason: str


_OPTIONAL_NUMBER: Schema = {"type": ["integer", "null"]}
_TEXT: Schema = {"type": "string"}
_NUMBER_OR_TEXT: Schema = {"type": ["integer", "string"]}
_PARENTS = (
    "action_id", "broadcast_id", "campaign_id", "content_id", "msg_template_id", "newsletter_id",
    "message_template_id", "parent_action_id",
)  # fmt: skip

AMENDMENTS: Tuple[Amendment, ...] = (
    Amendment(
        "/actions|/contents?|/language/", "headers", _TEXT, "a JSON text in answers since 2026"
    ),
    Amendment("/actions", "type", _TEXT, "WhatsApp actions came in 2026"),
    Amendment("/actions", "parent_action_id", _OPTIONAL_NUMBER, "not each action has a parent"),
    Amendment("/messages", "type", _TEXT, "more channels in 2026"),
    *(
        Amendment("/messages", name, _OPTIONAL_NUMBER, "null where it doesn't apply (observed)")
        for name in _PARENTS
    ),
    Amendment("/messages", "customer_id", {"type": ["string", "null"]}, "not everyone has an id"),
    Amendment("/activities", "type", _TEXT, "ten more types in 2026"),
    Amendment("^/v1/newsletters", "type", _TEXT, "`inbox` instead of `slack` in 2026"),
    Amendment("^/v1/newsletters", "sent_at", _OPTIONAL_NUMBER, "null until sent (observed)"),
    Amendment("/(contents?|language)", "type", _TEXT, "the channels of 2026"),
    Amendment("/(actions|contents?|language)", "from_id", _OPTIONAL_NUMBER, "null if unset"),
    Amendment("/(actions|contents?|language)", "preprocessor", _TEXT, "empty if turned off"),
    Amendment("/test_groups", "content_ids", {"type": "array"}, "numbers in the file's example"),
    Amendment("/subscription_preferences", "id", _NUMBER_OR_TEXT, "a number in the file's example"),
    Amendment("^/v1/exports$", "exports", {"type": ["array", "null"]}, "null if none (observed)"),
    Amendment("/triggers", "processed_at", _OPTIONAL_NUMBER, "nothing until it is processed"),
    Amendment("/(campaigns|broadcasts)", "tags", {"type": ["array", "null"]}, "null if none"),
    Amendment("^/v1/campaigns", "filter_object_attributes", {}, "a list, says its description"),
    Amendment("^/v1/campaigns", "filter_relationship_attributes", {}, "as above"),
    Amendment("^/v1/imports", "identifier", _TEXT, "`cio_id` came in 2026"),
    Amendment("^/v1/customers/", "id", {"type": ["string", "integer", "null"]}, "may be unset"),
)

#: Answers that are another thing altogether today.
REPLACED = {
    # A list of rows for the clients of 2026, an object in the file.
    ("GET", "/v1/collections/{collection_id}/content"),
}


def specification() -> Optional[Path]:
    """Where the official file is, if it is at hand."""
    named = os.environ.get("CUSTOMERIO_SPECS")
    folders = [*([Path(named)] if named else []), REPOSITORY.parent / "shared" / "specs"]
    return next((file for file in (each / FILE_NAME for each in folders) if file.is_file()), None)


class Official:
    """The schemas of the official file."""

    def __init__(self, file: Path) -> None:
        """Read the file."""
        self._paths = json.loads(file.read_text(encoding="utf-8"))["paths"]

    def schema(self, method: str, path: str, status: int) -> Optional[Schema]:
        """The schema of an answer; None if the file has none."""
        operation = self._paths.get(path, {}).get(method.lower(), {})
        content = operation.get("responses", {}).get(str(status), {}).get("content", {})
        schema = content.get("application/json", {}).get("schema")
        if schema is None or (method, path) in REPLACED:
            return None
        return _json_schema(schema, _amendments(path))


def _amendments(path: str) -> Dict[str, Schema]:
    return {row.name: row.schema for row in AMENDMENTS if re.search(row.paths, path)}


def _json_schema(schema: Schema, amended: Dict[str, Schema]) -> Schema:
    """Say what OpenAPI 3.0 says in JSON Schema's words.

    Alternatives are `oneOf`, but they have nothing that must be there, so many an answer fits
    several of them: any is enough.
    """
    made: Schema = {key: schema[key] for key in _KEPT if key in schema}
    for key in ("allOf", "anyOf", "oneOf"):
        if key in schema:
            made["anyOf" if key == "oneOf" else key] = _each(schema[key], amended)
    if "properties" in schema:
        made["properties"] = {
            name: amended[name] if name in amended else _json_schema(value, amended)
            for name, value in schema["properties"].items()
        }
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            made[key] = _json_schema(schema[key], amended)
    return {"anyOf": [made, {"type": "null"}]} if schema.get("nullable") else made


def _each(schemas: List[Schema], amended: Dict[str, Schema]) -> List[Schema]:
    return [_json_schema(schema, amended) for schema in schemas]


_KEPT = ("type", "enum", "required", "minimum", "maximum", "minItems", "maxItems")
