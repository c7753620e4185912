"""The shapes of answers, written briefly and made into JSON Schema.

A shape is Python data:

    "int", "str|null"   a type, or several; also uuid, ulid, url, any
    ("a", "b", None)    one of these values
    [shape]             a list; `some(shape)` is one that isn't empty
    {"id": shape}       an object with these keys and no others; "id?" may be missing;
                        "*" is the shape of all further keys
    Either(a, b)        any of these shapes

Times are Unix seconds. Where sources differ, what was observed wins over the reference of 2026,
and that wins over the official file of July 2025; `official.py` lists such differences.
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Tuple

Shape = Any
Schema = Dict[str, Any]


class Either(NamedTuple):
    """Any of several shapes."""

    shapes: Tuple[Shape, ...]


class Some(NamedTuple):
    """A list with at least one item."""

    item: Shape


class Image(NamedTuple):
    """No JSON, but a picture."""


def either(*shapes: Shape) -> Either:
    """Any of several shapes."""
    return Either(shapes)


def some(item: Shape) -> Some:
    """A list with at least one item."""
    return Some(item)


#: An answer without a body.
EMPTY = None

_UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"

_TYPES: Dict[str, Schema] = {
    "any": {},
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "list": {"type": "array"},
    "null": {"type": "null"},
    "object": {"type": "object"},
    "str": {"type": "string"},
    "ulid": {"type": "string", "pattern": "^[0-7][0-9A-HJKMNP-TV-Z]{25}$"},
    "unix": {"type": "integer", "minimum": 1_000_000_000, "maximum": 9_999_999_999},
    "url": {"type": "string", "pattern": "^https?://"},
    "uuid": {"type": "string", "pattern": _UUID},
}


def schema_of(shape: Shape) -> Schema:
    """The JSON Schema of a shape."""
    if isinstance(shape, Either):
        return {"anyOf": [schema_of(each) for each in shape.shapes]}
    if isinstance(shape, Some):
        return {"type": "array", "items": schema_of(shape.item), "minItems": 1}
    if isinstance(shape, tuple):
        return {"enum": list(shape)}
    if isinstance(shape, list):
        return {"type": "array", "items": schema_of(shape[0])}
    if isinstance(shape, dict):
        return _object(shape)
    kinds = shape.split("|")
    return _TYPES[shape] if len(kinds) == 1 else {"anyOf": [_TYPES[kind] for kind in kinds]}


def _object(shape: Dict[str, Shape]) -> Schema:
    named = {key: value for key, value in shape.items() if key != "*"}
    return {
        "type": "object",
        "properties": {key.rstrip("?"): schema_of(value) for key, value in named.items()},
        "required": [key for key in named if not key.endswith("?")],
        "additionalProperties": schema_of(shape["*"]) if "*" in shape else False,
    }


# ==== Errors

#: The App API's errors; `meta.error` beside them is for clients that look there.
REFUSAL: Shape = {
    "errors": some({"detail": "str", "status": "str", "*": "any"}),
    "meta?": {"error": "str", "*": "any"},
}
#: What /v1/send answers.
SEND_REFUSAL: Shape = {"meta": {"error": "str"}, "*": "any"}

# ==== People

#: Whether a person has an email or an id, they have the key.
IDENTIFIERS: Shape = {"email": "str|null", "id": "str|null", "cio_id": "str"}

DEVICE: Shape = {
    "id": "str",
    "platform": ("ios", "android"),
    "last_used": "unix",
    "attributes": {"*": "str"},
}

#: Attributes are always strings (observed).
PERSON: Shape = {
    "id": "str|null",
    "identifiers": IDENTIFIERS,
    "attributes": {"cio_id": "str", "*": "str"},
    "timestamps": {"cio_id": "unix", "*": "int"},
    "unsubscribed": "bool",
    "devices": [DEVICE],
    "optoutChannels?": [{"channel": "str", "from": "str"}],
}

PEOPLE: Shape = {"identifiers": some(IDENTIFIERS), "ids": some("str"), "next": "str"}

ACTIVITY: Shape = {
    "id": "str",
    "type": "str",
    "name?": "str",
    "url?": "str",
    "timestamp": "unix",
    "customer_id": "str|null",
    "customer_identifiers?": IDENTIFIERS,
    "data?": "object",
    "delivery_id?": "str",
    "delivery_type?": ("ios", "android", "email", "phone"),
}
ACTIVITIES: Shape = {"activities": some(ACTIVITY), "next": "str"}

RELATIONSHIP: Shape = {
    "object_type_id": "int",
    "identifiers": {"object_id": "str", "cio_object_id": "str"},
    "attributes": "object",
    "timestamps": {"*": "unix"},
}

OPTOUTS: Shape = [{"channel": ("sms", "whatsapp"), "from": "str"}]

# ==== Messages and metrics

#: Of a list of messages, of whatever parent. Parents that don't apply are null, `metrics` has
#: only what has happened (observed).
MESSAGE: Shape = {
    "id": "str",
    "deduplicate_id": "str",
    "msg_template_id": "int|null",
    "message_template_id?": "int|null",
    "action_id": "int|null",
    "parent_action_id": "int|null",
    "customer_id": "str|null",
    "customer_identifiers": IDENTIFIERS,
    "recipient": "str",
    "subject": "str",
    "metrics": {"*": "unix"},
    "created": "unix",
    "failure_message": "str|null",
    "newsletter_id": "int|null",
    "content_id": "int|null",
    "campaign_id": "int|null",
    "broadcast_id": "int|null",
    "transactional_message_id": "int|null",
    "trigger_event_id": "str|null",
    "type": (
        "email", "webhook", "twilio", "push", "in_app", "slack", "whatsapp",
        "live_notification", "inbox",
    ),
    "forgotten": "bool",
    "tracked_responses?": "object",
}  # fmt: skip
MESSAGES: Shape = {"messages": some(MESSAGE), "next": "str"}

ARCHIVED_MESSAGE: Shape = {
    "id": "str",
    "body": "str",
    "from": "str",
    "reply_to": "str",
    "recipient": "str",
    "subject": "str",
    "bcc": "str",
    "fake_bcc": "bool",
    "preheader_text": "str",
    "url?": "str",
    "request_method?": ("GET", "POST", "PUT", "DELETE", "PATCH"),
    "headers": {"*": "str"},
    "forgotten": "bool",
}

_SERIES = (
    "attempted", "bounced", "clicked", "converted", "created", "deferred", "delivered",
    "drafted", "failed", "human_clicked", "human_opened", "link_untracked", "machine_clicked",
    "open_untracked", "opened", "prefetch_opened", "replied", "sent", "spammed", "suppressed",
    "topic_unsubscribed", "tracking_consent_denied", "tracking_consent_granted",
    "undeliverable", "unsubscribed", "untracked",
)  # fmt: skip
#: Listed until 2025.
_OLD_SERIES = ("prefetch_clicked", "2xx", "3xx", "4xx", "5xx")

SERIES: Shape = {
    **{name: some("int") for name in _SERIES},
    **{f"{name}?": some("int") for name in _OLD_SERIES},
}
METRIC: Shape = {"metric": {"series": SERIES}}

_RESOLUTIONS = ("hours", "hourly", "days", "daily", "weeks", "weekly", "months", "monthly")
#: `version=2` of a campaign's metrics; `start` and `end` are ISO texts.
METRIC_2: Shape = {
    "metric": {"series": SERIES},
    "start": "str",
    "end": "str",
    "res": _RESOLUTIONS,
}
#: The reference of 2026 has one shape for both versions.
METRIC_1: Shape = {
    **METRIC,
    "start?": "str",
    "end?": "str",
    "res?": _RESOLUTIONS,
}
LANGUAGE_VARIANTS: Shape = {"language_variants?": "object"}

_CLICKS = ("clicked", "human_clicked", "machine_clicked")
LINK: Shape = {
    "link": {"id": "int", "href": "str"},
    "metric": {"series": {name: some("int") for name in _CLICKS}},
}
LINKS: Shape = {"links": some(LINK)}

_JOURNEYS = (
    "started", "activated", "exited_early", "finished", "converted", "never_activated",
    "messaged",
)  # fmt: skip
JOURNEY_METRIC: Shape = {"journey_metric": {name: some("int") for name in _JOURNEYS}}

# ==== Contents and actions

#: What contents and actions of email have in common. `headers` is a JSON text since 2026.
_EMAIL_FIELDS: Shape = {
    "body": "str",
    "body_amp": "str",
    "language": "str",
    "from": "str",
    "from_id": "int|null",
    "reply_to": "str",
    "reply_to_id": "int|null",
    "preprocessor": ("premailer", ""),
    "recipient": "str",
    "subject": "str",
    "bcc": "str",
    "cc?": "str",
    "fake_bcc": "bool",
    "preheader_text": "str",
    "headers": "str",
}

NEWSLETTER_CONTENT: Shape = {
    "id": "int",
    "newsletter_id": "int",
    "deduplicate_id": "str",
    "name": "str",
    "layout": "str",
    "type": ("email",),
    **_EMAIL_FIELDS,
}

TRANSACTIONAL_CONTENT: Shape = {
    "id": "int",
    "name": "str",
    "created": "unix",
    "updated": "unix",
    "type": ("email",),
    **_EMAIL_FIELDS,
}

TRANSACTIONAL: Shape = {
    "id": "int",
    "name": "str",
    "description": "str",
    "send_to_unsubscribed": "bool",
    "link_tracking": "bool",
    "open_tracking": "bool",
    "hide_message_body": "bool",
    "queue_drafts": "bool",
    "created_at": "unix",
    "updated_at": "unix",
}


def action(parent: str) -> Either:
    """The four kinds of a campaign's or broadcast's action."""
    common = {
        "id": "int",
        f"{parent}_id": "int",
        "deduplicate_id": "str",
        "name": "str",
        "created": "unix",
        "updated": "unix",
        "sending_state": ("automatic", "draft", "off"),
        "body": "str",
        "parent_action_id?": "int|null",
    }
    email = {"type": ("email", "in_app", "push", "slack"), "layout": "str", **_EMAIL_FIELDS}
    sms = {
        "type": ("twilio",),
        "layout": "str",
        "language": "str",
        "image_url": "str",
        "recipient": "str",
    }
    webhook = {
        "type": ("webhook",),
        "layout": "str",
        "url": "url",
        "headers": "str",
        "method": ("get", "post", "put", "delete", "patch"),
    }
    whatsapp = {
        "type": ("whatsapp",),
        "body_json": "str",
        "language": "str",
        "recipient": "str",
        "sender_identity_id": "int",
        "send_to_unsubscribed": "bool",
        "tracked": "bool",
    }
    return either(*({**common, **kind} for kind in (email, sms, webhook, whatsapp)))


CAMPAIGN_ACTION = action("campaign")
BROADCAST_ACTION = action("broadcast")

# ==== Campaigns, broadcasts, newsletters

_CAMPAIGN: Shape = {
    "id": "int",
    "deduplicate_id": "str",
    "name": "str",
    "created": "unix",
    "updated": "unix",
    "active": "bool",
    "state": ("running", "draft", "stopped"),
    "actions": [{"id": "int", "type": "str"}],
    "first_started": "int",
    "tags": either(["str"], "null"),
    "msg_templates?": [{"id": "int", "type": ("email", "sms", "push", "slack")}],
}
_FILTERED: Shape = {**_CAMPAIGN, "filter_segment_ids": ["int"]}
_OF_OBJECTS: Shape = {
    **_FILTERED,
    "object_type_id": "int",
    "filter_object_attributes?": "str|list",
    "filter_relationship_attributes?": "str|list",
    "audience?": {"type": (0, 1), "person_filters?": "object", "relationship_filters?": "object"},
}

#: What starts a campaign, and what it has because of that.
CAMPAIGNS: Dict[str, Shape] = {
    "segment": {**_FILTERED, "type": ("segment",), "trigger_segment_ids": ["int"]},
    "event": {**_FILTERED, "type": ("event",), "event_name": "str"},
    "form": {**_FILTERED, "type": ("form",)},
    "date": {
        **_FILTERED,
        "type": ("date",),
        "frequency": ("once", "monthly", "yearly"),
        "date_attribute": "str",
        "timezone": "str",
        "use_customer_timezone": "bool",
        "start_hour": "int",
        "start_minutes": "int",
    },
    "relationship": {
        **_OF_OBJECTS,
        "type": ("relationship",),
        "relationship_attribute_triggers?": "object",
    },
    "object": {**_OF_OBJECTS, "type": ("object",), "object_attribute_triggers?": "object"},
    "webhook": {**_CAMPAIGN, "type": ("webhook",), "webhook_id": "int"},
}
CAMPAIGN = either(*CAMPAIGNS.values())

_BROADCAST_PART: Shape = {"id": "int", "type": ("email", "webhook", "push", "sms", "slack")}
BROADCAST: Shape = {
    "id": "int",
    "deduplicate_id": "str",
    "name": "str",
    "type": ("triggered_broadcast",),
    "created": "unix",
    "updated": "unix",
    "active": "bool",
    "state": ("running", "draft"),
    "actions": [_BROADCAST_PART],
    "msg_template_ids": [_BROADCAST_PART],
    "first_started": "int",
    "tags": either(["str"], "null"),
}
TRIGGER: Shape = {
    "id": "int",
    "broadcast_id": "int",
    "created_at": "unix",
    "processed_at": "int|null",
}

NEWSLETTER: Shape = {
    "id": "int",
    "deduplicate_id": "str",
    "content_ids": ["int"],
    "name": "str",
    "sent_at": "unix|null",
    "created": "unix",
    "updated": "unix",
    "type": ("email", "webhook", "twilio", "push", "in_app", "inbox"),
    "tags": ["str"],
    "recipient_segment_ids?": ["int"],
    "subscription_topic_id?": "int",
}
ONE_NEWSLETTER: Shape = {"newsletter": NEWSLETTER}

TEST_GROUP: Shape = {
    "id": "int",
    "name": "str",
    "label": "str",
    "winner": "bool",
    "content_ids": ["int|str"],
}

# ==== The workspace's other things

SEGMENT: Shape = {
    "id": "int",
    "deduplicate_id": "str",
    "name": "str",
    "description": "str",
    "state": ("events", "build", "events_queued", "build_queued", "finished"),
    "progress": "int|null",
    "type": ("manual", "dynamic"),
    "tags": either(["str"], "null"),
    "created_at": "unix",
    "updated_at": "unix",
    "conditions?": "any",
}
USED_BY: Shape = {
    "campaigns": ["int"],
    "sent_newsletters": ["int"],
    "draft_newsletters": ["int"],
}

SENDER: Shape = {
    "id": "int",
    "deduplicate_id": "str",
    "name": "str",
    "email": "str",
    "phone": "str",
    "address": "str",
    "template_type": ("email", "phone"),
    "auto_generated": "bool",
    "hidden": "bool",
}

COLLECTION: Shape = {
    "bytes": "int",
    "created_at": "unix",
    "updated_at": "unix",
    "id": "int",
    "name": "str",
    "rows": "int",
    "schema": ["str"],
}

SNIPPET: Shape = {"name": "str", "value": "str", "updated_at": "unix"}

TOPIC: Shape = {
    "id": "int",
    "identifier": "str",
    "name": "str",
    "description": "str",
    "subscribed_by_default": "bool",
}
CHANNEL: Shape = {
    "id": "int",
    "name": "str",
    "description": "str",
    "type": (
        "email", "twilio", "urban_airship", "slack", "push", "in_app", "line", "inbox",
        "whatsapp",
    ),
    "subscribed_by_default": "bool",
}  # fmt: skip

WEBHOOK: Shape = {
    "id": "int",
    "name": "str",
    "endpoint": "url",
    "disabled": "bool",
    "full_resolution": "bool",
    "with_content": "bool",
    "events": some("str"),
    "type": ("webhook", "js"),
}

EXPORT: Shape = {
    "id": "int",
    "user_id": "int",
    "user_email": "str",
    "total": "int",
    "deduplicate_id": "str",
    "type": ("customers", "deliveries"),
    "failed": "bool",
    "description": "str",
    "downloads": "int",
    "created_at": "unix",
    "updated_at": "unix",
    "status": ("done", "pending", "failed"),
}

_SCOPES = ("all", "only_new", "only_existing")
IMPORT: Shape = {
    "id": "int",
    "created_at": "unix",
    "updated_at": "unix",
    "name": "str",
    "description": "str",
    "rows_to_import": "int",
    "rows_imported": "int",
    "state": (
        "preprocessing", "preprocessed", "validating", "validated", "importing", "imported",
        "failed", "canceled",
    ),
    "type": ("people", "event", "object", "relationship"),
    "identifier?": ("id", "email", "cio_id", ""),
    "data_to_process?": _SCOPES,
    "people_to_process?": _SCOPES,
    "object_type_id?": "str",
    "error?": "str",
    "error_export_id?": "int",
    "error_download_url?": "str",
    "warning_export_id?": "int",
    "warning_download_url?": "str",
}  # fmt: skip

SUPPRESSIONS: Shape = {
    "category": ("bounces", "spam"),
    "suppressions": some({"created": "unix", "email": "str", "reason": "str", "status": "str"}),
    "next?": "str",
}

OBJECT_TYPE: Shape = {
    "id": "str",
    "name": "str",
    "singular_name": "str",
    "slug": "str",
    "singular_slug": "str",
    "enabled": "bool",
    "icon": "str",
}

WORKSPACE: Shape = {
    "id": "int",
    "name": "str",
    "messages_sent": "int",
    "billable_messages_sent": "int",
    "people": "int",
    "object_types": "int",
    "objects": "int",
}

# ==== Since 2026

#: `queued` is no more than a courtesy to clients of another fake.
SENT: Shape = {"delivery_id": "str", "queued_at": "unix", "queued?": "bool"}
SENT_LATER: Shape = {**SENT, "send_at": "unix"}

INSTANCE: Shape = {"instance_id": "ulid"}
LIVE_NOTIFICATION: Shape = {
    "instance_id": "ulid",
    "notification_type": "str",
    "platform": ("ios", "android"),
    "state": ("active", "ended", "expired", "failed"),
    "started_at": "unix",
    "expires_at": "unix",
    "ended_at?": "unix|null",
    "failure_reason?": "str",
    "last_delivery": {
        "id": "str",
        "operation": ("start", "update", "end"),
        "status": ("queued", "sent", "failed", "undeliverable"),
        "source": "str",
        "created_at": "unix",
    },
}

_PAGINATION: Shape = {"page": "int", "limit": "int", "total": "int"}

ASSET_FOLDER: Shape = {
    "id": "int",
    "name": "str",
    "parent_folder_id": "int|null",
    "created": "unix",
    "updated": "unix",
}
ASSET: Shape = {**ASSET_FOLDER, "path": "url", "size": "int"}
ASSET_META: Shape = {
    "filters": {"parent_folder_id": "int|null", "direct_descendants_only": "bool"},
    "pagination": _PAGINATION,
}

#: Design Studio's ids are UUIDs.
FOLDER: Shape = {
    "id": "uuid",
    "name": "str",
    "parent_folder_id": "uuid|null",
    "created": "unix",
    "updated": "unix",
}
LISTED_COMPONENT: Shape = {**FOLDER, "tag": "str"}
COMPONENT: Shape = {**LISTED_COMPONENT, "content": "str"}
_STUDIO_FILTERS: Shape = {
    "created_after": "int|null",
    "created_before": "int|null",
    "direct_descendants_only": "bool",
    "parent_folder_id": "uuid|null",
    "sort_by": ("created", "updated", "name"),
    "sort_order": ("asc", "desc"),
    "updated_after": "int|null",
    "updated_before": "int|null",
}
FOLDER_META: Shape = {"filters": _STUDIO_FILTERS, "pagination": _PAGINATION}
COMPONENT_META: Shape = {
    "filters": {**_STUDIO_FILTERS, "tag?": "str|null"},
    "pagination": _PAGINATION,
}
EMAIL_META: Shape = {
    "filters": {
        **_STUDIO_FILTERS,
        "is_template?": "str|bool|null",
        "has_translations?": "str|bool|null",
        "is_linked?": "str|bool|null",
    },
    "pagination": _PAGINATION,
}

_CONTENT: Shape = {
    "subject": "str",
    "preheader_text": "str",
    "html": "str",
    "text": "str",
    "amp": "str",
}
_ENVELOPE: Shape = {
    "from": "str",
    "from_id": "int|null",
    "reply_to": "str",
    "reply_to_id": "int|null",
    "recipient": "str",
    "bcc": "str",
    "cc?": "str",
    "fake_bcc": "bool",
    "headers": [{"name": "str", "value": "str"}],
}
_SWITCH: Shape = {"enabled?": "bool", "*": "any"}
_TRANSFORMERS: Shape = {
    "accessibility?": _SWITCH,
    "css_inliner?": _SWITCH,
    "css_variables?": {"enabled?": "bool", "preserve?": "bool"},
    "encode_entities?": {"enabled?": "bool"},
    "prevent_widows?": {"enabled?": "bool"},
    "formatter?": {"type?": ("none", "prettify", "minify"), "*": "object"},
    "remove_unused_css?": _SWITCH,
    "url_parameters?": {
        "enabled?": "bool",
        "parameters?": [{"key": "str", "value": "str", "url_encode?": "bool"}],
    },
}
_DESIGN: Shape = {
    "is_template": "bool",
    "is_linked": "bool",
    "parent_folder_id": "uuid|null",
    "available_languages": ["str"],
    "content": _CONTENT,
    "envelope": _ENVELOPE,
    "transformers": _TRANSFORMERS,
    "created": "unix",
    "updated": "unix",
}
EMAIL: Shape = {"id": "uuid", "name": "str", **_DESIGN}
TRANSLATION: Shape = {"language": "str", "language_group_id": "uuid", **_DESIGN}
LISTED_EMAIL: Shape = {
    "id": "uuid",
    "name": "str",
    "is_template": "bool",
    "is_linked": "bool",
    "has_translations": "bool",
    "parent_folder_id": "uuid|null",
    "created": "unix",
    "updated": "unix",
}
VERSION: Shape = {
    "id": "uuid",
    "name": "str",
    "description?": "str",
    "node_id": "uuid",
    "node_type": ("EMAIL",),
    "created": "unix",
    "created_on_publish": "bool",
    "feedback": "bool",
}
VERSION_NODE: Shape = {
    "node_id": "uuid",
    "node_type": ("EMAIL",),
    "name": "str",
    "subject": "str",
    "preheader_text?": "str",
    "content": "str",
    "text?": "str",
    "amp?": "str",
    "envelope": _ENVELOPE,
    "transformers": _TRANSFORMERS,
}
DEPENDENCY: Shape = {
    "node_id": "uuid",
    "node_type": ("COMPONENT",),
    "name": "str",
    "component_name": "str|null",
    "content": "str",
}
LINKED: Shape = {
    "node_id": "uuid",
    "template_id": "int",
    "target": {
        "type": ("transactional_message", "newsletter", "campaign_action"),
        "transactional_message_id?": "int",
        "newsletter_id?": "int",
        "action_id?": "int",
    },
}
_MAPPINGS: Shape = some(
    {"node_id": "uuid", "language": "str", "template_id": "int", "version_id": "str"}
)
#: `publish_id` is what `publish_status` has to be asked with.
PUBLISHED = either(
    {"status": ("pending",), "publish_id": "str"},
    {"status": ("done",), "publish_id?": "str", "mappings": _MAPPINGS},
)
PUBLISH_STATUS = either(
    {"status": ("pending",)},
    {"status": ("done",), "mappings": _MAPPINGS},
)
RENDERED: Shape = {
    "node_id": "uuid",
    "node_type": ("EMAIL",),
    "language?": "str",
    "html": "str",
    "text?": "str",
    "amp?": "str",
}
_PREVIEW_ERRORS = (
    "bcc", "body", "body_amp", "body_plain", "cc", "event", "from", "layout", "message",
    "preheader_text", "reply_to", "snippets", "subject", "to", "trigger",
)  # fmt: skip
PREVIEW: Shape = {
    **RENDERED,
    "subject": "str",
    "preheader_text?": "str",
    "from?": "str",
    "plaintext_body?": "str",
    "links": [{"url": "str", "text": "str", "tracked": "bool", "errors": ["str"]}],
    "headers": [{"name": ["str"], "value": ["str"]}],
    "errors": {name: ["str"] for name in _PREVIEW_ERRORS},
}
REVIEW: Shape = {
    "node_id": "uuid",
    "status": ("complete", "partial", "render_failed"),
    "checks": {"*": "str"},
    "findings": [
        {
            "id": "str",
            "check": "str",
            "severity": ("error", "warning", "tip"),
            "state": ("pass", "fail"),
            "title": "str",
            "details?": "str",
            "summary?": "str",
        }
    ],
    "score?": {"score": "int", "counts": {"error": "int", "warning": "int", "tip": "int"}},
}
_PREVIEW_TOTALS: Shape = {
    f"total_previews_{name}": "int"
    for name in ("requested", "ready", "succeeded", "cached", "bounced")
}
_CATEGORIES = ("Mobile", "Application", "Web")
PREVIEW_JOB: Shape = {
    "run_id": "int",
    "name": "str",
    "client_ids": some("str"),
    "is_processed": "bool",
    **_PREVIEW_TOTALS,
    "created_at": "unix",
    "updated_at": "unix",
    "previews": some(
        {
            "client_id": "str",
            "display_name": "str",
            "category": _CATEGORIES,
            "os": "str",
            "browser?": "str",
            "status": ("Pending", "Processing", "Complete", "Bounced"),
            "cached?": "bool",
            "screenshots": {"*": "url"},
            "thumbnail?": "url",
            "full_thumbnail?": "url",
            "error?": {"type": "str", "message": "str"},
        }
    ),
}
LISTED_JOB: Shape = {
    "run_id": "int",
    "name": "str",
    "node_id": "uuid",
    "node_count": "int",
    "is_processed": "bool",
    **_PREVIEW_TOTALS,
    "created_at": "unix",
    "updated_at": "unix",
}
PREVIEW_CLIENT: Shape = {
    "id": "str",
    "client": "str",
    "category": _CATEGORIES,
    "os": "str",
    "browser?": "str",
}
PREVIEW_CREDIT: Shape = {
    "tier": ("free", "paid"),
    "credits_original": "int",
    "credits_remaining": "int",
    "expires_at": "unix|null",
}
