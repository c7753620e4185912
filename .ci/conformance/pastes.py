"""Whatever a GET of the App API answers can be pasted into a seed, and is read back as it was.

The answers are made of the official file's own examples: one for each alternative of a schema,
with values by their type where it has none.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Callable, Iterator, List, NamedTuple, Sequence
from urllib.parse import quote

Json = Any
#: What makes the requests: the Fake of check.py.
Fake = Any


# ==== Examples


def examples(schema: Json, name: str = "") -> List[Json]:
    """Values that a schema describes, at least one, and one for each of its alternatives."""
    for key in ("oneOf", "anyOf"):
        if key in schema:
            return [value for one in schema[key] for value in examples(one, name)]
    if "allOf" in schema:
        merged: Json = {}
        for part in schema["allOf"]:
            merged.update(examples(part, name)[0])
        return [merged]
    if "properties" in schema or schema.get("type") == "object":
        return _objects(schema)
    if schema.get("type") == "array":
        return [examples(schema.get("items", {"type": "string"}), name)]
    return [_scalar(schema, name)]


def _objects(schema: Json) -> List[Json]:
    found = {n: examples(part, n) for n, part in schema.get("properties", {}).items()}
    found.pop("additionalProperties", None)  # a slip of the file
    if not found:
        example = schema.get("example", {})
        return [json.loads(example) if isinstance(example, str) else example]
    first = {name: values[0] for name, values in found.items()}
    more = [{**first, name: value} for name, values in found.items() for value in values[1:]]
    return [first, *more]


def _scalar(schema: Json, name: str) -> Json:
    kind = schema.get("type", "string")
    value = schema.get("example", schema.get("default", schema.get("enum", [None])[0]))
    if kind in ("integer", "number"):
        moment = "timestamp" in schema.get("format", "") or name in ("created", "updated")
        return int(value) if _is_number(value) else 1_700_000_000 if moment else 7
    if kind == "boolean":
        return value if isinstance(value, bool) else True
    if value is None:
        return _SPECIAL.get(schema.get("format") or name, f"some {name}")
    return value if isinstance(value, str) else json.dumps(value)


_SPECIAL = {
    "email": "ada@example.com",
    "cio_subscription_preferences": '{"topics":{"topic_1":true}}',
}


def _is_number(value: Json) -> bool:
    return str(value).lstrip("-").isdigit()


def numbered(rows: Sequence[Json]) -> List[Json]:
    """The rows as one answer has them: each with its own id and time, newest first."""
    return [_numbered(dict(row), place) for place, row in enumerate(rows)]


def _numbered(row: Json, place: int) -> Json:
    for name in ("created", "timestamp"):
        if name in row:
            row[name] -= place
    if "id" in row:
        row["id"] = row["id"] + place if isinstance(row["id"], int) else f"{row['id']}{place or ''}"
    if "deduplicate_id" in row:
        told = row["deduplicate_id"].rpartition(":")[2]
        row["deduplicate_id"] = f"{row['id']}:{row.get('updated', row.get('updated_at', told))}"
    for name in ("actions", "msg_templates", "msg_template_ids"):
        if isinstance(row.get(name), list):
            row[name] = [{**inner, "id": inner["id"] + place} for inner in row[name]]
    if "metrics" in row:
        row["metrics"] = {**row["metrics"], "created": row["created"]}
    # The file's examples of these two contradict themselves.
    if "attributes" in row and "devices" in row:
        row["id"] = row["attributes"]["id"]
        row["identifiers"] = {n: row["attributes"][n] for n in ("id", "email", "cio_id")}
    if "timestamps" in row and "object_id" not in row["identifiers"] and "devices" not in row:
        row["identifiers"] = {"object_id": "acme", "cio_object_id": "obb7fd050101"}
    return row


# ==== What is pasted where

Seed = Callable[[List[Json]], Json]


class Paste(NamedTuple):
    """One GET: where in its answer the rows are ("" for the whole), and the seed they become.

    `path` is the official file's, with the values of the first row in the place of its names, or
    those of `query`, which may end in a query string.
    """

    path: str
    place: str
    seed: Seed
    read: str = ""


def _as(kind: str) -> Seed:
    return lambda rows: {kind: rows}


def _inside(kind: str, inner: str, key: str) -> Seed:
    """Rows that belong to a campaign, … of another kind."""
    return lambda rows: {kind: [{"id": rows[0].get(key, 1), "name": "x", inner: rows}]}


def _of_ada(**kinds: Seed) -> Seed:
    """Rows that belong to a person."""
    ada = {"customers": [{"id": "ada"}]}
    return lambda rows: {**ada, **{kind: make(rows) for kind, make in kinds.items()}}


def _sent_to_ada(rows: List[Json]) -> Json:
    return [{**row, "customer_id": "ada"} for row in rows]


def _owned_by_ada(rows: List[Json]) -> Json:
    related = [{"identifiers": {"id": "ada"}, "attributes": row.get("attributes")} for row in rows]
    return [{**row, "relationships": [bond]} for row, bond in zip(rows, related)]


def _with_members(rows: List[Json]) -> Json:
    return [{**row, "ids": ["ada"]} for row in rows]


_ACTIONS = _inside("campaigns", "actions", "campaign_id")
_BROADCAST_ACTIONS = _inside("broadcasts", "actions", "broadcast_id")
_VARIANTS = _inside("newsletters", "contents", "newsletter_id")
_CONTENTS = _inside("transactional", "contents", "-")
_GROUPS = _inside("newsletters", "test_groups", "-")
_ADA = "/v1/customers/ada"


def _sent_by(kind: str, key: str) -> Seed:
    """Messages of a campaign, …, with what sent them."""

    def seed(rows: List[Json]) -> Json:
        number = rows[0].get(key, 1)
        return {kind: [{"id": number}], "messages": [{**row, key: number} for row in rows]}

    return seed


def _of_broadcast(rows: List[Json]) -> Json:
    number = rows[0].get("broadcast_id", 1) if isinstance(rows[0], dict) else 1
    told = {} if isinstance(rows[0], dict) else {"errors": rows}
    triggers = [{"id": 1, "broadcast_id": number, **told}] if told else rows
    return {"broadcasts": [{"id": number}], "triggers": triggers}


def _to_people(rows: List[Json]) -> Json:
    people = [{"identifiers": row["identifiers"]} for row in rows]
    thing = {"object_type_id": "1", "object_id": "acme", "relationships": rows}
    type = {"id": "1", "name": "Companies", "enabled": not rows[0]["object_type_disabled"]}
    return {"object_types": [type], "customers": people, "objects": [thing]}


_THEN = "start_ts=1552340000&end_ts=1552350000"

PASTES = (
    Paste("/v1/workspaces", "workspaces", _as("workspaces")),
    Paste("/v1/object_types", "types", _as("object_types")),
    Paste("/v1/subscription_topics", "topics", _as("topics")),
    Paste("/v1/sender_identities", "sender_identities", _as("sender_identities")),
    Paste("/v1/sender_identities/{sender_id}", "sender_identity", _as("sender_identities")),
    Paste("/v1/snippets", "snippets", _as("snippets")),
    Paste("/v1/collections", "collections", _as("collections")),
    Paste("/v1/collections/{collection_id}", "collection", _as("collections")),
    Paste("/v1/segments", "segments", _as("segments")),
    Paste("/v1/segments/{segment_id}", "segment", _as("segments")),
    Paste("/v1/reporting_webhooks", "reporting_webhooks", _as("reporting_webhooks")),
    Paste("/v1/reporting_webhooks/{webhook_id}", "", _as("reporting_webhooks")),
    Paste("/v1/campaigns", "campaigns", _as("campaigns")),
    Paste("/v1/campaigns/{campaign_id}", "campaign", _as("campaigns")),
    Paste("/v1/campaigns/{campaign_id}/actions", "actions", _ACTIONS),
    Paste("/v1/campaigns/{campaign_id}/actions/{action_id}", "action", _ACTIONS),
    Paste("/v1/broadcasts", "broadcasts", _as("broadcasts")),
    Paste("/v1/broadcasts/{broadcast_id}", "broadcast", _as("broadcasts")),
    Paste("/v1/broadcasts/{broadcast_id}/actions", "actions", _BROADCAST_ACTIONS),
    Paste("/v1/broadcasts/{broadcast_id}/actions/{action_id}", "action", _BROADCAST_ACTIONS),
    Paste("/v1/broadcasts/{broadcast_id}/triggers", "triggers", _of_broadcast),
    Paste("/v1/campaigns/{broadcast_id}/triggers/{trigger_id}", "", _of_broadcast),
    Paste(
        "/v1/campaigns/{broadcast_id}/triggers/{trigger_id}/errors", "errors", _of_broadcast,
        "/v1/campaigns/1/triggers/1/errors",
    ),
    Paste(
        "/v1/campaigns/{campaign_id}/messages", "messages", _sent_by("campaigns", "campaign_id"),
        f"/v1/campaigns/{{campaign_id}}/messages?{_THEN}",
    ),
    Paste(
        "/v1/broadcasts/{broadcast_id}/messages", "messages",
        _sent_by("broadcasts", "broadcast_id"), f"/v1/broadcasts/{{broadcast_id}}/messages?{_THEN}",
    ),
    Paste(
        "/v1/newsletters/{newsletter_id}/messages", "messages",
        _sent_by("newsletters", "newsletter_id"),
        f"/v1/newsletters/{{newsletter_id}}/messages?{_THEN}",
    ),
    Paste(
        "/v1/transactional/{transactional_id}/messages", "messages",
        _sent_by("transactional", "transactional_message_id"),
        f"/v1/transactional/1/messages?{_THEN}",
    ),
    Paste("/v1/campaigns/{campaign_id}/actions/{action_id}/language/{language}", "action",
          _ACTIONS, "/v1/campaigns/{campaign_id}/actions/{id}/language/{language}"),
    Paste("/v1/broadcasts/{broadcast_id}/actions/{action_id}/language/{language}", "action",
          _BROADCAST_ACTIONS, "/v1/broadcasts/{broadcast_id}/actions/{id}/language/{language}"),
    Paste("/v1/newsletters/{newsletter_id}/language/{language}", "content", _VARIANTS),
    Paste("/v1/transactional/{transactional_id}/language/{language}", "content", _CONTENTS,
          "/v1/transactional/1/language/{language}"),
    Paste("/v1/messages/{message_id}/archived_message", "archived_message", _as("messages")),
    Paste("/v1/esp/search_suppression/{email_address}", "", _as("esp_suppressions"),
          "/v1/esp/search_suppression/bounced.person@example.com"),
    Paste("/v1/objects/{object_type_id}/{object_id}/relationships", "cio_relationships",
          _to_people, "/v1/objects/1/acme/relationships"),
    Paste("/v1/newsletters", "newsletters", _as("newsletters")),
    Paste("/v1/newsletters/{newsletter_id}", "newsletter", _as("newsletters")),
    Paste("/v1/newsletters/{newsletter_id}/contents", "contents", _VARIANTS),
    Paste("/v1/newsletters/{newsletter_id}/contents/{content_id}", "content", _VARIANTS),
    Paste(
        "/v1/newsletters/{newsletter_id}/test_groups", "test_groups", _GROUPS,
        "/v1/newsletters/1/test_groups",
    ),
    Paste("/v1/transactional", "messages", _as("transactional")),
    Paste("/v1/transactional/{transactional_id}", "message", _as("transactional")),
    Paste(
        "/v1/transactional/{transactional_id}/contents", "contents", _CONTENTS,
        "/v1/transactional/1/contents",
    ),
    Paste("/v1/messages", "messages", _as("messages"), f"/v1/messages?{_THEN}"),
    Paste("/v1/messages/{message_id}", "message", _as("messages")),
    Paste("/v1/exports", "exports", _as("exports")),
    Paste("/v1/exports/{export_id}", "export", _as("exports")),
    Paste("/v1/imports/{import_id}", "import", _as("imports")),
    Paste("/v1/activities", "activities", _as("activities")),
    Paste("/v1/esp/suppression/{suppression_type}", "", _as("esp_suppressions"),
          "/v1/esp/suppression/bounces"),
    Paste("/v1/info/ip_addresses", "ip_addresses", _as("ip_addresses")),
    Paste("/v1/customers", "results", _as("customers"), "/v1/customers?email={email}"),
    Paste("/v1/customers/{customer_id}/attributes", "customer", _as("customers")),
    Paste(
        "/v1/customers/{customer_id}/segments", "segments", _of_ada(segments=_with_members),
        f"{_ADA}/segments",
    ),
    Paste(
        "/v1/customers/{customer_id}/relationships", "cio_relationships",
        _of_ada(objects=_owned_by_ada), f"{_ADA}/relationships",
    ),
    Paste(
        "/v1/objects/{object_type_id}/{object_id}/attributes", "object", _as("objects"),
    ),
)  # fmt: skip

#: Ids that name their workspace are made anew, and what is computed is computed here.
MADE_ANEW = (
    "cio_id",
    "cio_object_id",
    "_cio_subscription_preferences_computed",
    "_last_emailed",
)


def differences(wanted: Json, got: Json, where: str = "") -> Iterator[str]:
    """Where an answer lacks, or tells otherwise, what was pasted."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        for name, value in wanted.items():
            if name in MADE_ANEW:
                continue
            if name in got:
                yield from differences(value, got[name], f"{where}.{name}")
            else:
                yield f"{where}.{name} is missing; pasted was {value!r:.80}"
    elif isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        for place, pair in enumerate(zip(wanted, got)):
            yield from differences(*pair, f"{where}[{place}]")
    elif wanted != got:
        yield f"{where}: pasted was {wanted!r:.120}, read is {got!r:.120}"


def faults(fake: Fake, paste: Paste, schema: Json) -> Iterator[str]:
    """What goes wrong when the examples of an answer are pasted and read back."""
    if paste.place:
        schema = schema["properties"][paste.place]
    listed, found = schema.get("type") == "array", examples(schema)
    rows = found[0] if listed else found
    rows = numbered(rows) if isinstance(rows[0], dict) else rows
    if "{language}" in paste.path:  # not all alternatives have one
        rows = [row for row in rows if row.get("language")]
    for pasted in [rows] if listed else [[row] for row in rows]:
        yield from _read_back(fake, paste, pasted, listed)


def _read_back(fake: Fake, paste: Paste, pasted: List[Json], listed: bool) -> Iterator[str]:
    planted = fake.post("/__parlel/seed", paste.seed(pasted))
    if planted.status != 200:
        yield f"can't be pasted: {planted.body.decode()[:300]}"
        return
    answer = fake.call("GET", _path(paste, pasted[0]))
    if answer.status != 200:
        yield f"{answer.status}: {answer.body.decode()[:200]}"
        return
    read = answer.json()[paste.place] if paste.place else answer.json()
    yield from differences(pasted if listed else pasted[0], read)


def _path(paste: Paste, row: Json) -> str:
    """The path with what the first row says: `{campaign_id}` is its field of that name, or id."""
    given = row if isinstance(row, dict) else {}
    flat = {**given.get("identifiers", {}), **given}

    def value(match: Any) -> str:
        known = flat.get(match[1], flat.get("id", 1))
        return quote(str(known), safe="")

    return re.sub(r"\{(\w+)\}", value, paste.read or paste.path)


def results(fake: Fake, file: Path) -> Iterator[tuple[str, List[str]]]:
    """Each GET that can be pasted, with what is wrong."""
    paths = json.loads(file.read_text(encoding="utf-8"))["paths"]
    for paste in PASTES:
        answer = paths[paste.path]["get"]["responses"]["200"]
        schema = answer["content"]["application/json"]["schema"]
        yield paste.path, list(dict.fromkeys(faults(fake, paste, schema)))
