"""Rows of async-customerio in a workspace that holds what the seed says."""

import json
import os
import time
from pathlib import Path
from unittest.mock import ANY

import support
from support import Row

HERE = Path(__file__).resolve().parent
SEED_FILE = os.environ.get("SEED_DOCUMENT") or HERE / "../../conformance/seed.json"

NOW = int(time.time())
HOUR_AGO = NOW - 3600
TOMORROW = NOW + 86400


def filled(value):
    """The document with `$hour_ago` replaced."""
    if isinstance(value, dict):
        return {key: filled(each) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each) for each in value]
    return HOUR_AGO if value == "$hour_ago" else value


SEED = filled(json.loads(Path(SEED_FILE).read_text(encoding="utf-8")))

ADA = SEED["customers"][0]
TESTERS, PRO = SEED["segments"]
RECEIPT = SEED["transactional"][0]
ENGLISH, SPANISH = RECEIPT["contents"]
ADA_IDENTIFIERS = {"id": "ada", "email": ADA["attributes"]["email"], "cio_id": ANY}


class AddsUpTo:
    """Equals every list of numbers that come to a total."""

    def __init__(self, total):
        self.total = total

    def __eq__(self, other):
        return isinstance(other, list) and sum(other) == self.total

    def __repr__(self):
        return f"<numbers that add up to {self.total}>"


class AnyOrder:
    """Equals every list whose items have these values of a key, in any order."""

    def __init__(self, key, *values):
        self.key, self.values = key, values

    def __eq__(self, other):
        return sorted(item[self.key] for item in other) == sorted(self.values)

    def __repr__(self):
        return f"<items with {self.key} of {self.values}>"


def only(record, *keys):
    return {key: record[key] for key in keys}


# What happens before the call ------------------------------------------------------------------


def an_order(client):
    event = {"name": "order_placed", "data": {"total": 12}}
    return support.track("POST", "/api/v1/customers/ada/events", event)


def acme(client):
    relationship = {"identifiers": {"id": "ada"}, "relationship_attributes": {"role": "owner"}}
    identifiers = {"object_type_id": "1", "object_id": "acme"}
    payload = {"type": "object", "action": "identify", "identifiers": identifiers}
    return support.track("POST", "/api/v2/entity", {**payload, "cio_relationships": [relationship]})


def a_receipt(client):
    payload = {"transactional_message_id": 1, "to": "ada@example.com", "identifiers": {"id": "ada"}}
    return support.app("POST", "/v1/send/email", {**payload, "message_data": {"order": "A-1"}})


ORDERS_PAGE = "https://example.com/orders"


def a_click(client):
    delivery = support.observe("deliveries")[-1]["delivery_id"]
    metric = {"delivery_id": delivery, "metric": "clicked", "href": ORDERS_PAGE, "timestamp": NOW}
    return support.track("POST", "/api/v1/metrics", metric)


# Customers -------------------------------------------------------------------------------------

AN_ORDER = {"id": ANY, "type": "event", "name": "order_placed", "customer_id": "ada"}
ON_PRO = {"and": [{"segment": {"id": 2}}, {"attribute": {"field": "plan", "operator": "exists"}}]}
SENT = [message["id"] for message in SEED["messages"]]

CUSTOMER_ROWS = (
    Row(
        "customers.get_activities",
        lambda client: client.customers.get_activities(
            "ada", type="event", name="order_placed", limit=5
        ),
        answers={"activities": [AN_ORDER]},
        given=(an_order,),
    ),
    Row(
        "customers.get_by_ids",
        lambda client: client.customers.get_by_ids(["ada", "nobody"]),
        answers={
            "customers": [
                {
                    "customer": {
                        "id": "ada",
                        "attributes": ADA["attributes"],
                        "devices": [{"id": "ada-phone", "platform": "ios"}],
                    }
                }
            ]
        },
    ),
    Row(
        "customers.get_messages",
        lambda client: client.customers.get_messages(
            "ada", limit=10, start_ts=HOUR_AGO - 60, end_ts=NOW
        ),
        answers={"messages": AnyOrder("id", *SENT)},
    ),
    Row(
        "customers.get_messages by email",
        lambda client: client.customers.get_messages("ada@example.com", id_type="email", limit=2),
        answers={"messages": [{"customer_id": "ada"}, {"customer_id": "ada"}], "next": ANY},
    ),
    Row(
        "customers.get_relationships",
        lambda client: client.customers.get_relationships("ada", limit=10),
        answers={
            "cio_relationships": [
                {
                    "object_type_id": 1,
                    "identifiers": {"object_id": "acme", "cio_object_id": ANY},
                    "attributes": {"role": "owner"},
                }
            ]
        },
        given=(acme,),
    ),
    Row(
        "customers.get_segments",
        lambda client: client.customers.get_segments("ada"),
        answers={"segments": [only(each, "id", "name", "description") for each in (TESTERS, PRO)]},
    ),
    Row(
        "customers.get_subscription_preferences",
        lambda client: client.customers.get_subscription_preferences("ada", language="en"),
        answers={
            "customer": {
                "id": "ada",
                "identifiers": ADA_IDENTIFIERS,
                "topics": [
                    {"name": "News", "subscribed": True},
                    {"name": "Offers", "subscribed": False},
                ],
                "unsubscribed": False,
            }
        },
    ),
    Row(
        "customers.search",
        lambda client: client.customers.search(ON_PRO, limit=10),
        answers={"identifiers": [ADA_IDENTIFIERS], "ids": ["ada"], "next": ""},
    ),
)

# Segments --------------------------------------------------------------------------------------

SEGMENT_ROWS = (
    Row(
        "segments.create",
        lambda client: client.segments.create("VIPs", description="By hand"),
        {"/v1/segments": {"segments": AnyOrder("name", "Beta testers", "Pro", "VIPs")}},
        answers={
            "segment": {
                "id": ANY,
                "name": "VIPs",
                "description": "By hand",
                "type": "manual",
                "state": "finished",
                "progress": None,
            }
        },
    ),
    Row(
        "segments.delete",
        lambda client: client.segments.delete(1),
        {"/v1/segments/1": None},
        answers={},
    ),
    Row(
        "segments.get",
        lambda client: client.segments.get(1),
        answers={"segment": only(TESTERS, "id", "name", "description", "type", "tags")},
    ),
    Row(
        "segments.get_customer_count",
        lambda client: client.segments.get_customer_count(1),
        answers={"count": 2},
    ),
    Row(
        "segments.get_membership",
        lambda client: client.segments.get_membership(1),
        answers={
            "ids": ["ada", "grace"],
            "identifiers": [ADA_IDENTIFIERS, {"id": "grace"}],
            "next": "",
        },
    ),
    Row(
        "segments.get_membership of one page",
        lambda client: client.segments.get_membership(1, limit=1),
        answers={"ids": ["ada"], "identifiers": [ADA_IDENTIFIERS], "next": ANY},
    ),
    Row(
        "segments.get_used_by",
        lambda client: client.segments.get_used_by(2),
        answers={"used_by": {"campaigns": [1], "sent_newsletters": [], "draft_newsletters": []}},
    ),
    Row(
        "segments.list",
        lambda client: client.segments.list(),
        answers={"segments": [only(each, "id", "name", "type") for each in (TESTERS, PRO)]},
    ),
)

# Transactional messages ------------------------------------------------------------------------

LISTED = ("id", "language", "subject", "body")

TRANSACTIONAL_ROWS = (
    Row(
        "transactional.get",
        lambda client: client.transactional.get(1),
        answers={"message": only(RECEIPT, "id", "name", "description", "link_tracking")},
    ),
    Row(
        "transactional.get_deliveries",
        lambda client: client.transactional.get_deliveries(
            1, limit=10, metric="sent", start_ts=HOUR_AGO, end_ts=TOMORROW
        ),
        answers={
            "messages": [
                {"transactional_message_id": 1, "customer_id": "ada", "subject": "Order A-1"}
            ]
        },
        given=(a_receipt,),
    ),
    Row(
        "transactional.get_link_metrics",
        lambda client: client.transactional.get_link_metrics(
            1, period="days", steps=2, unique=True
        ),
        answers={
            "links": [
                {
                    "link": {"id": ANY, "href": ORDERS_PAGE},
                    "metric": {"series": {"clicked": AddsUpTo(1)}},
                }
            ]
        },
        given=(a_receipt, a_click, a_click),
    ),
    Row(
        "transactional.get_metrics",
        lambda client: client.transactional.get_metrics(1, period="days", steps=2),
        answers={"metric": {"series": {"sent": AddsUpTo(1), "bounced": AddsUpTo(0)}}},
        given=(a_receipt,),
    ),
    Row(
        "transactional.get_variant",
        lambda client: client.transactional.get_variant(1, "es"),
        answers={"content": [only(SPANISH, *LISTED)]},
    ),
    Row(
        "transactional.list",
        lambda client: client.transactional.list(),
        answers={"messages": [only(each, "id", "name") for each in SEED["transactional"]]},
    ),
    Row(
        "transactional.list_variants",
        lambda client: client.transactional.list_variants(1),
        answers={"contents": [only(each, *LISTED) for each in (ENGLISH, SPANISH)]},
    ),
    Row(
        "transactional.update_content",
        lambda client: client.transactional.update_content(
            1, ENGLISH["id"], subject="Your order", headers=[{"name": "X-Shop", "value": "1"}]
        ),
        {
            "/v1/transactional/1/contents": {
                "contents": [{"subject": "Your order"}, only(SPANISH, *LISTED)]
            }
        },
        answers={"content": [{"id": ENGLISH["id"], "subject": "Your order"}]},
    ),
    Row(
        "transactional.update_variant",
        lambda client: client.transactional.update_variant(
            1, "es", subject="Su pedido", body="<p>Hola</p>"
        ),
        {
            "/v1/transactional/1/language/es": {
                "content": [{"subject": "Su pedido", "body": "<p>Hola</p>"}]
            }
        },
        answers={"content": [{"id": SPANISH["id"], "subject": "Su pedido"}]},
    ),
)

ROWS = CUSTOMER_ROWS + SEGMENT_ROWS + TRANSACTIONAL_ROWS
