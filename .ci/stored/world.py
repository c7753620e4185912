"""A workspace with something of every kind in it: a seed, and calls that add the rest."""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import sys
from typing import Any
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import customerio_fake
from customerio_fake import Fake, Request, Response, Settings

#: Nothing listens there: what is reported fails at once.
NOWHERE = "http://127.0.0.1:9/hook"
NOW = 1_800_000_000

ACTION = {
    "id": 11,
    "name": "Hi",
    "type": "email",
    "subject": "Hi",
    "body": "<p>{{ customer.id }}</p>",
}
WHO = {"field": "plan", "operator": "eq", "value": "pro"}

SEED: dict[str, Any] = {
    "workspaces": [{"id": 7, "name": "Shop", "messages_sent": 1, "people": 2}],
    "ip_addresses": ["192.0.2.1"],
    "object_types": [{"id": "1", "name": "Companies", "slug": "companies", "enabled": True}],
    "topics": [{"id": 1, "identifier": "topic_1", "name": "News", "subscribed_by_default": True}],
    "channels": [{"id": 1, "name": "Email", "identifier": "email", "subscribed_by_default": True}],
    "sender_identities": [
        {"id": 5, "name": "Shop", "email": "shop@example.com", "address": "Shop <shop@example.com>"}
    ],
    "snippets": [{"name": "footer", "value": "bye {{ customer.plan }}", "updated_at": NOW}],
    "collections": [{"id": 1, "name": "days", "schema": ["day"], "data": [{"day": "monday"}]}],
    "customers": [
        {
            "id": "ada",
            "attributes": {"email": "ada@example.com", "phone": "+15550100", "plan": "pro"},
            "unsubscribed": False,
            "devices": [
                {"id": "t1", "platform": "ios", "last_used": NOW, "attributes": {"os": "9"}}
            ],
        },
        {"identifiers": {"id": "bob", "email": "bob@example.com"}, "timestamps": {"plan": NOW}},
    ],
    "objects": [
        {
            "object_type_id": "1",
            "object_id": "acme",
            "attributes": {"name": "Acme"},
            "relationships": [{"identifiers": {"id": "ada"}, "attributes": {"role": "boss"}}],
        }
    ],
    "segments": [
        {"id": 1, "name": "Friends", "description": "", "ids": ["ada"], "tags": ["a"]},
        {"id": 2, "name": "Pro", "conditions": {"and": [{"attribute": WHO}]}},
    ],
    "campaigns": [
        {
            "id": 1,
            "name": "Welcome",
            "type": "segment",
            "active": True,
            "tags": ["a"],
            "trigger_segment_ids": [2],
            "filter_segment_ids": [1],
            "created": NOW,
            "actions": [ACTION, {"id": 12, "type": "push", "body": "x", "language": "fr"}],
        },
        {
            "id": 40,
            "name": "Trial",
            "event_name": "signup",
            "actions": [
                {"id": 41, "type": "email", "subject": "{{ event.n }}", "body": "b"},
                {"id": 42, "type": "attribute_update", "attributes": {"told": "yes"}},
                {"id": 43, "type": "delay_seconds", "delay": 600},
                {
                    "id": 44,
                    "type": "conditional_branch",
                    "conditions": {"attribute": WHO},
                    "paths": [[{"id": 45, "type": "email", "subject": "s", "body": "b"}], []],
                },
                {"id": 46, "type": "create_event", "event_name": "told", "data": {"n": 1}},
            ],
        },
        {
            "id": 50,
            "name": "Renewal",
            "trigger": {"attribute": {"field": "ends", "operator": "is_timestamp"}},
            "actions": [{"id": 51, "type": "email", "subject": "s", "body": "b"}],
        },
    ],
    "broadcasts": [
        {
            "id": 20,
            "name": "Restock",
            "recipients": {"segment": {"id": 1}},
            "actions": [
                {"id": 201, "type": "email", "subject": "Back", "body": "b", "from_id": 5},
                {
                    "id": 202,
                    "parent_action_id": 201,
                    "language": "es",
                    "subject": "Ya",
                    "body": "b",
                },
            ],
        },
        {
            "id": 21,
            "name": "Soon",
            "global_exit_conditions": [
                {"attribute": {"field": "ends", "operator": "timestamp_lt", "value": 60}}
            ],
            "actions": [
                {"id": 211, "type": "email", "subject": "{{trigger.a}}", "body": "b"},
                {"id": 212, "type": "delay_seconds", "delay": 600},
                {"id": 213, "type": "push", "subject": "s", "body": "b"},
            ],
        },
    ],
    "newsletters": [
        {
            "id": 30,
            "name": "March",
            "type": "email",
            "sent_at": None,
            "recipient_segment_ids": [1],
            "contents": [
                {"id": 301, "subject": "March", "body": "news", "from_id": 5},
                {"id": 302, "subject": "Marzo", "body": "b", "language": "es"},
            ],
            "test_groups": [{"id": "A", "label": "A", "content_ids": [301, 302], "winner": False}],
        }
    ],
    "transactional": [
        {
            "id": 3,
            "name": "Receipt",
            "trigger_name": "receipt",
            "link_tracking": True,
            "send_to_unsubscribed": True,
            "contents": [
                {
                    "id": 31,
                    "subject": "Order",
                    "body": '<a href="http://x.y">{{snippets.footer}}</a>',
                },
                {"id": 32, "language": "es", "subject": "Pedido", "body": "hola", "headers": "[]"},
            ],
        }
    ],
    "reporting_webhooks": [
        {"id": 1, "name": "w", "endpoint": NOWHERE, "events": ["email_sent"], "disabled": False}
    ],
    "inbox_preview_clients": [{"id": "mail", "name": "Mail", "platform": "desktop"}],
    "inbox_preview_credits": [
        {"id": 1, "tier": "free", "credits_original": 9, "credits_remaining": 9}
    ],
    "imports": [{"id": 1, "name": "i", "type": "people", "state": "imported", "created_at": NOW}],
    "exports": [{"id": 1, "type": "customers", "created_at": NOW, "total": 2, "downloads": 1}],
    "triggers": [{"id": 1, "broadcast_id": 20, "created_at": NOW, "errors": ["x"]}],
    "esp_suppressions": [
        {
            "category": "bounces",
            "suppressions": [{"email": "x@y.zz", "created": NOW, "reason": "r", "status": "550"}],
        }
    ],
    "activities": [
        {"id": "a1", "type": "event", "name": "x", "timestamp": NOW, "customer_id": "ada"}
    ],
    "design_studio_folders": [{"id": "11111111-2222-4333-8444-555555555555", "name": "F"}],
    "messages": [
        {
            "id": "m1",
            "type": "email",
            "campaign_id": 1,
            "action_id": 11,
            "customer_id": "ada",
            "recipient": "ada@example.com",
            "subject": "Hi",
            "created": 1_700_000_000,
            "metrics": {"sent": 1_700_000_000, "clicked": 1_700_003_600},
        }
    ],
}

PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 1, 1) + b"\x08\x06"
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
FILE += b"Content-Type: image/png\r\n\r\n" + PICTURE + b"\r\n--x--\r\n"

TRACK = "Basic " + base64.b64encode(b"site:key").decode()
WRITE = "Basic " + base64.b64encode(b"write-key:").decode()


def call(fake: Fake, method: str, path: str, body: Any = None) -> Response:
    """Send a request with the credentials that its path wants."""
    key = "Bearer key"
    if path.startswith("/api/"):
        key = TRACK
    elif re.match(r"/v1/(identify|track|page|screen|group|alias|batch)$", path):
        key = WRITE
    headers = {"authorization": key, "host": "localhost:4668"}
    if isinstance(body, bytes):
        headers["content-type"] = "multipart/form-data; boundary=x"
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    return fake.handle(Request(method, path, headers, raw))


def ok(fake: Fake, method: str, path: str, body: Any = None) -> Any:
    """Send a request that has to succeed; gives the JSON answer."""
    response = call(fake, method, path, body)
    assert response.status < 300, (method, path, response.status, response.body)
    return json.loads(response.body) if response.body[:1] in (b"{", b"[") else None


def filled() -> Fake:
    """A fake whose workspace has something of every kind, some of it under way."""
    fake = Fake(Settings(journal=40), SEED)

    def do(method: str, path: str, body: Any = None) -> Any:
        return ok(fake, method, path, body)

    do("PUT", "/__parlel/clock", {"now": NOW, "freeze": True})
    people(do)
    sends(do)
    studio(do)
    others(do)
    do("POST", "/__parlel/faults", {"match": {"path": "/nowhere/*"}, "status": 503})
    call(fake, "POST", "/v1/track", b"\xff\xfe")
    return fake


def people(do: Any) -> None:
    """People and what they do."""
    do("PUT", "/api/v1/customers/eve", {"email": "eve@example.com", "anonymous_id": "a1", "n": 1.5})
    do("POST", "/api/v1/customers/eve/events", {"name": "signup", "data": {"n": 1}, "timestamp": 9})
    do("POST", "/api/v1/events", {"name": "seen", "anonymous_id": "a2"})
    do("PUT", "/api/v1/customers/eve/devices", {"device": {"id": "t2", "platform": "android"}})
    entity = {"type": "person", "action": "identify", "identifiers": {"id": "eve"}}
    relation = {"identifiers": {"object_type_id": "1", "object_id": "acme"}}
    do("POST", "/api/v2/entity", {**entity, "cio_relationships": [relation]})
    do("POST", "/api/v2/batch", {"batch": [entity]})
    for name in ("gone", "sad", "twin"):
        do("PUT", f"/api/v1/customers/{name}", {})
    do("DELETE", "/api/v1/customers/gone")
    do("POST", "/api/v1/customers/sad/suppress")
    do("POST", "/api/v1/merge_customers", {"primary": {"id": "eve"}, "secondary": {"id": "twin"}})
    do("POST", "/api/v1/forms/f1/submit", {"data": {"email": "form@example.com"}})
    do("POST", "/v1/identify", {"userId": "pip", "traits": {"plan": "pro"}})
    do("POST", "/v1/track", {"userId": "pip", "event": "x", "properties": {"a": 1}})


def sends(do: Any) -> None:
    """Messages, sent and still to be sent."""
    message = {"to": "eve@example.com", "from": "shop@example.com", "identifiers": {"id": "eve"}}
    content = {"subject": "Hello", "body": '<a href="http://x.y">Welcome</a>'}
    sent = do("POST", "/v1/send/email", {**message, **content})["delivery_id"]
    do("POST", "/v1/send/email", {**message, **content, "send_at": NOW + 100})
    do("POST", "/v1/send/email", {**message, "transactional_message_id": 3})
    do("POST", "/v1/send/push", {"transactional_message_id": 3, "identifiers": {"id": "eve"}})
    do("POST", "/api/v1/metrics", {"delivery_id": sent, "metric": "clicked", "href": "http://x.y"})
    do("PUT", "/api/v1/customers/eve", {"ends": NOW + 1000})
    for number in (20, 21):
        path = f"/v1/campaigns/{number}/triggers"
        do("POST", path, {"data": {"a": 1}, "ids": ["ada", "eve"]})
    made = {**content, "name": "N", "type": "email", "subscription_topic_id": 1, "from_id": 5}
    made["recipients"] = {"and": [{"or": [{"segment": {"id": 1}}]}]}
    do("POST", "/v1/newsletters", {**made, "send_now": True})
    do("POST", "/v1/newsletters", {**made, "scheduled_at": NOW + 200})
    do("POST", "/v1/exports/customers", {"filters": {"segment": {"id": 1}}})
    do("POST", "/v1/exports/deliveries", {"newsletter_id": 30})


def studio(do: Any) -> None:
    """Design Studio, assets and live notifications."""
    base = "/v1/design_studio"
    folder = do("POST", f"{base}/folders", {"name": "F"})["folder"]["id"]
    do("POST", f"{base}/components", {"name": "C", "tag": "x-c", "content": "<b>c</b>"})
    body = {"name": "E", "parent_folder_id": folder, "content": {"html": "<x-c/>", "subject": "s"}}
    email = do("POST", f"{base}/emails", body)["email"]["id"]
    path = f"{base}/emails/{email}"
    do("POST", f"{path}/languages", {"language": "es", "content": {"subject": "Hola"}})
    do("POST", f"{path}/versions", {"name": "v1"})
    do("POST", f"{path}/link", {"target": {"type": "newsletter", "newsletter_id": 30}})
    do("POST", f"{path}/publish")
    do("POST", f"{path}/inbox_previews", {"client_ids": ["mail"], "sample_data": {}})
    do("POST", "/v1/assets/folders", {"name": "A"})
    do("POST", "/v1/assets/files", FILE)
    start = {"identifiers": {"id": "eve"}, "notification_type": "com.example.order"}
    parts = {"attributes": {"number": 7}, "content_state": {"step": 1}}
    do("POST", "/v1/live_notifications/start", {**start, **parts})


def others(do: Any) -> None:
    """Lists, imports, descriptions, and what happens later."""
    do("POST", "/v1/esp/suppression/bounces/a@b.cd")
    do("PUT", "/v1/customers/eve/optouts", {"optouts": [{"from": "+15550100", "optout": True}]})
    do("POST", "/v1/data_index/attributes", {"attributes": [{"name": "plan", "description": "d"}]})
    do("POST", "/v1/data_index/events", {"events": [{"name": "x", "privacy_level": 1}]})
    with mock.patch.object(customerio_fake, "fetched", lambda url, name: b"id,plan\neve,pro\n,x\n"):
        order = {"name": "i", "type": "people", "identifier": "id", "data_file_url": NOWHERE}
        do("POST", "/v1/imports", {"import": order})
