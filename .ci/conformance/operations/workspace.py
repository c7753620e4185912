"""What belongs to a workspace as a whole."""

from __future__ import annotations

from dataclasses import replace

import shapes as s

from .row import DELETED, ON_PRO, SINCE_2026, Json, Row, family, new, refused

# ==== Senders, snippets, collections, topics

SENDERS = [
    Row(
        "listSenders",
        "GET /v1/sender_identities",
        {"sender_identities": s.some(s.SENDER), "next?": "str"},
        query={"limit": 10, "sort": "asc"},
    ),
    *family(
        [
            Row(
                "getSender", "GET /v1/sender_identities/{sender_id}", {"sender_identity": s.SENDER}
            ),
            Row("getSenderUsage", "GET /v1/sender_identities/{sender_id}/used_by", s.USED_BY),
        ],
        ids={"sender_id": 1},
    ),
]

A_SNIPPET: s.Shape = {"snippet": s.SNIPPET}

SNIPPETS = [
    Row("listSnippets", "GET /v1/snippets", {"snippets": s.some(s.SNIPPET)}),
    Row(
        "createSnippet",
        "POST /v1/snippets",
        A_SNIPPET,
        body={"name": "greeting", "value": "Hello"},
        needs=("name", "value"),
        since=SINCE_2026,
    ),
    Row(
        "updateSnippets",
        "PUT /v1/snippets",
        A_SNIPPET,
        body={"name": "greeting", "value": "Hello {{customer.name}}"},
        needs=("name", "value"),
    ),
    Row(
        "deleteSnippet",
        "DELETE /v1/snippets/{snippet_name}",
        s.EMPTY,
        DELETED,
        ids={"snippet_name": "greeting"},
    ),
]

REFUSED_SNIPPETS = new(
    [
        refused(
            "createSnippet",
            "POST /v1/snippets",
            422,
            body={"name": "footer", "value": "Another"},
        ),
    ]
)

A_COLLECTION: s.Shape = {"collection": s.COLLECTION}
#: The file of 2025 says an object, the clients of 2026 send and read a list.
COLLECTION_ROWS: s.Shape = s.some("object")

COLLECTIONS = [
    Row("getCollections", "GET /v1/collections", {"collections": s.some(s.COLLECTION)}),
    Row(
        "addCollection",
        "POST /v1/collections",
        A_COLLECTION,
        body={"name": "cities", "data": [{"name": "Vienna"}, {"name": "Graz"}]},
        needs=("name", "data"),
        keeps={"collection_id": "collection.id"},
    ),
    Row(
        "addCollection",
        "POST /v1/collections",
        A_COLLECTION,
        body={"name": "italy", "url": "$rows_json"},
        needs=("name", "url"),
    ),
    Row("getCollection", "GET /v1/collections/{collection_id}", A_COLLECTION),
    Row(
        "updateCollection",
        "PUT /v1/collections/{collection_id}",
        A_COLLECTION,
        body={"name": "towns"},
    ),
    Row(
        "updateCollectionContents",
        "PUT /v1/collections/{collection_id}/content",
        A_COLLECTION,
        body=[{"name": "Linz"}],
    ),
    Row("getCollectionContents", "GET /v1/collections/{collection_id}/content", COLLECTION_ROWS),
    Row("deleteCollection", "DELETE /v1/collections/{collection_id}", s.EMPTY, DELETED),
]

SUBSCRIPTIONS = [
    Row("getTopics", "GET /v1/subscription_topics", {"topics": s.some(s.TOPIC)}),
    Row(
        "getChannels",
        "GET /v1/subscription_channels",
        {"channels": s.some(s.CHANNEL)},
        since=SINCE_2026,
    ),
]

# ==== Reporting webhooks, suppressions, exports, imports, the account

WEBHOOK: Json = {
    "name": "To the warehouse",
    "endpoint": "https://example.com/events",
    "events": ["email_sent"],
}

WEBHOOKS = [
    Row(
        "createWebhook",
        "POST /v1/reporting_webhooks",
        s.WEBHOOK,
        body=WEBHOOK,
        needs=("name", "endpoint", "events", "events.0"),
        keeps={"webhook_id": "id"},
    ),
    Row("listWebhooks", "GET /v1/reporting_webhooks", {"reporting_webhooks": s.some(s.WEBHOOK)}),
    Row("getWebhook", "GET /v1/reporting_webhooks/{webhook_id}", s.WEBHOOK),
    # Required by the file of 2025; the clients of 2026 send any subset.
    Row(
        "updateWebhook",
        "PUT /v1/reporting_webhooks/{webhook_id}",
        s.WEBHOOK,
        body={**WEBHOOK, "disabled": True, "full_resolution": True},
    ),
    # 200 in the reference, 204 for the clients of 2026.
    Row("deleteWebhook", "DELETE /v1/reporting_webhooks/{webhook_id}", s.EMPTY, (200, 204)),
]

BOUNCED = {"suppression_type": "bounces", "email_address": "gone@example.com"}

SUPPRESSIONS = [
    Row(
        "postSuppression",
        "POST /v1/esp/suppression/{suppression_type}/{email_address}",
        {},
        ids=BOUNCED,
    ),
    *(
        Row(
            "postSuppression",
            "POST /v1/esp/suppression/{suppression_type}/{email_address}",
            {},
            ids={**BOUNCED, "suppression_type": kind},
        )
        for kind in ("spam_reports", "blocks", "invalid_emails")
    ),
    Row(
        "getSuppression",
        "GET /v1/esp/search_suppression/{email_address}",
        s.SUPPRESSIONS,
        ids=BOUNCED,
    ),
    Row(
        "getSuppressionByType",
        "GET /v1/esp/suppression/{suppression_type}",
        s.SUPPRESSIONS,
        ids=BOUNCED,
        query={"limit": 10, "offset": 0},
    ),
    Row(
        "getDomainSuppressionsByType",
        "GET /v1/esp/domains/{domain_name}/suppression/{suppression_type}",
        {**s.SUPPRESSIONS, "next": "str"},
        ids={**BOUNCED, "domain_name": "example.com"},
        query={"email": "gone@example.com"},
        since=SINCE_2026,
    ),
    Row(
        "deleteSuppression",
        "DELETE /v1/esp/suppression/{suppression_type}/{email_address}",
        s.EMPTY,
        DELETED,
        ids=BOUNCED,
    ),
]

AN_EXPORT: s.Shape = {"export": s.EXPORT}

EXPORTS = [
    Row(
        "exportPeopleData",
        "POST /v1/exports/customers",
        AN_EXPORT,
        body={"filters": ON_PRO},
        needs=("filters",),
        keeps={"export_id": "export.id"},
    ),
    *(
        Row(
            "exportDeliveriesData",
            "POST /v1/exports/deliveries",
            AN_EXPORT,
            body={key: number, "metric": "sent", "drafts": False},
            needs=(key,),
        )
        for key, number in (
            ("newsletter_id", 30),
            ("campaign_id", 1),
            ("transactional_message_id", 1),
            ("action_id", 101),
        )
    ),
    Row("listExports", "GET /v1/exports", {"exports": s.some(s.EXPORT)}),
    Row("getExport", "GET /v1/exports/{export_id}", AN_EXPORT),
    # Older clients read `link`.
    Row("downloadExport", "GET /v1/exports/{export_id}/download", {"url": "url", "link?": "url"}),
]


def _import(kind: str, **more: Json) -> Row:
    return Row(
        "import",
        "POST /v1/imports",
        {"import": s.IMPORT},
        body={
            "import": {
                "name": f"Some {kind}",
                "data_file_url": f"${kind}_csv",
                "type": kind,
                **more,
            }
        },
        needs=("import", "import.data_file_url", "import.type"),
        keeps={"import_id": "import.id"},
    )


IMPORTS = [
    _import("people", identifier="id", data_to_process="all"),
    _import("event", identifier="email"),
    _import("relationship", identifier="id", object_type_id="1"),
    replace(
        _import("object", object_type_id="1", data_to_process="only_new"),
        needs=("import.object_type_id",),
    ),
    Row("getImport", "GET /v1/imports/{import_id}", {"import": s.IMPORT}),
]

ACCOUNT = [
    Row("listWorkspaces", "GET /v1/workspaces", {"workspaces": s.some(s.WORKSPACE)}),
    Row("getCioAllowlist", "GET /v1/info/ip_addresses", {"ip_addresses": s.some("str")}),
]
