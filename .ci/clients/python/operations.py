"""Rows for the calls that customerio and async-customerio spell alike."""

from datetime import datetime, timezone
from unittest.mock import ANY

from support import Refusal, Row

NEW_YEAR = datetime(2026, 1, 1, tzinfo=timezone.utc)
NEW_YEAR_SECONDS = 1767225600

SENT = {"delivery_id": ANY, "queued_at": ANY, "queued": True}


# Track v1 --------------------------------------------------------------------------------------


def person(**expected):
    """The expected record of a person, by its identifiers and, where given, its attributes."""
    attributes = expected.pop("attributes", None)
    record = {"identifiers": expected}
    return record if attributes is None else {**record, "attributes": attributes}


def known(identifier, **attributes):
    """The step that makes a person known."""
    return lambda client: client.identify(identifier, **attributes)


def with_device(customer_id, device_id):
    return lambda client: client.add_device(customer_id, device_id, "ios")


BOB = known("1", email="bob@example.com", plan="free")

TRACK_ROWS = (
    Row(
        "identify a new person",
        lambda client: client.identify("1", email="bob@example.com", plan="pro"),
        {"customers": [person(id="1", email="bob@example.com", attributes={"plan": "pro"})]},
    ),
    Row(
        "identify without attributes",
        lambda client: client.identify("1"),
        {"customers": [person(id="1")]},
    ),
    Row(
        "identify a known person",
        lambda client: client.identify("1", plan="pro"),
        {
            "customers": [
                person(id="1", email="bob@example.com", attributes={"plan": "pro", "city": "Paris"})
            ]
        },
        given=(known("1", email="bob@example.com", plan="free", city="Paris"),),
    ),
    Row(
        "identify by email",
        lambda client: client.identify("bob+test@example.com", plan="pro"),
        {"customers": [person(email="bob+test@example.com", attributes={"plan": "pro"})]},
    ),
    Row(
        "identify a known email by a new id",
        lambda client: client.identify("1", email="bob@example.com"),
        {"customers": [person(id="1", email="bob@example.com", attributes={"plan": "pro"})]},
        given=(known("bob@example.com", plan="pro"),),
    ),
    Row(
        "identify by a number",
        lambda client: client.identify(42, plan="pro"),
        {"customers": [person(id="42")]},
    ),
    Row(
        "identify by an id beyond ASCII",
        lambda client: client.identify("é 1&?#%41", plan="pro"),
        {"customers": [person(id="é 1&?#%41")]},
    ),
    Row(
        "identify with a date as seconds",
        lambda client: client.identify("1", created_at=NEW_YEAR),
        {"customers": [person(id="1", attributes={"created_at": NEW_YEAR_SECONDS})]},
    ),
    Row(
        "pageview",
        lambda client: client.pageview("1", "https://example.com/price", referrer="ad"),
        {
            "events": [
                {
                    "kind": "page",
                    "type": "page",
                    "customer_id": "1",
                    "name": "https://example.com/price",
                    "data": {"referrer": "ad"},
                }
            ]
        },
        given=(BOB,),
    ),
    Row(
        "backfill",
        lambda client: client.backfill("1", "signup", NEW_YEAR, source="web"),
        {
            "events": [
                {
                    "kind": "event",
                    "customer_id": "1",
                    "name": "signup",
                    "data": {"source": "web"},
                    "timestamp": NEW_YEAR_SECONDS,
                }
            ]
        },
        given=(BOB,),
    ),
    Row(
        "delete",
        lambda client: client.delete("1"),
        {"customers": [person(id="2")]},
        given=(BOB, known("2")),
    ),
    Row(
        "add_device",
        lambda client: client.add_device(
            "1", "token-1", "ios", last_used=NEW_YEAR, attributes={"app_version": "1.2"}
        ),
        {
            "devices": [
                {
                    "id": "token-1",
                    "platform": "ios",
                    "customer_id": "1",
                    "last_used": NEW_YEAR_SECONDS,
                    "attributes": {"app_version": "1.2"},
                }
            ]
        },
        given=(BOB,),
    ),
    Row(
        "add_device again",
        lambda client: client.add_device("1", "token-1", "android"),
        {"devices": [{"id": "token-1", "platform": "android"}]},
        given=(BOB, with_device("1", "token-1")),
    ),
    Row(
        "delete_device",
        lambda client: client.delete_device("1", "token-1"),
        {"devices": [{"id": "token-2"}]},
        given=(BOB, with_device("1", "token-1"), with_device("1", "token-2")),
    ),
    Row(
        "suppress",
        lambda client: client.suppress("1"),
        {"customers": [], "suppressed": ["1"]},
        given=(known("1"),),
    ),
    Row(
        "unsuppress",
        lambda client: client.unsuppress("1"),
        {"customers": [], "suppressed": []},
        given=(known("1"), lambda client: client.suppress("1")),
    ),
    Row(
        "merge_customers by id",
        lambda client: client.merge_customers("id", "1", "id", "2"),
        {
            "customers": [person(id="1", attributes={"plan": "free", "city": "Paris"})],
            "merges": [{"primary": {"id": "1"}, "secondary": {"id": "2"}}],
        },
        given=(BOB, known("2", plan="pro", city="Paris")),
    ),
    Row(
        "merge_customers by email",
        lambda client: client.merge_customers("id", "1", "email", "ann@example.com"),
        {
            "customers": [person(id="1", attributes={"city": "Paris"})],
            "merges": [{"primary": {"id": "1"}, "secondary": {"email": "ann@example.com"}}],
        },
        given=(known("1"), known("ann@example.com", city="Paris")),
    ),
)

# The batch of Track v2 -------------------------------------------------------------------------

BATCH = [
    {
        "type": "person",
        "action": "identify",
        "identifiers": {"id": "1"},
        "attributes": {"plan": "pro"},
    },
    {
        "type": "person",
        "action": "event",
        "identifiers": {"id": "1"},
        "name": "signup",
        "attributes": {"source": "web"},
    },
]

BATCH_LEAVES = {
    "batches": [{"operations": BATCH}],
    "customers": [person(id="1", attributes={"plan": "pro"})],
    "events": [{"kind": "event", "customer_id": "1", "name": "signup", "data": {"source": "web"}}],
}

# The second item lacks the event's name.
HALF_GOOD_BATCH = [BATCH[0], {key: value for key, value in BATCH[1].items() if key != "name"}]
HALF_GOOD_BATCH_ERRORS = {"errors": [{"batch_index": 1, "field": "name"}]}

# Sends -----------------------------------------------------------------------------------------


BOB_BY_ID = {"id": "1"}

# The method, its request class, the request's fields, and the channel they are delivered by.
SENDS = (
    (
        "send_email by template",
        "SendEmailRequest",
        {
            "transactional_message_id": "welcome",
            "to": "bob@example.com",
            "identifiers": BOB_BY_ID,
            "message_data": {"name": "Bob", "items": [{"price": 1.5}]},
        },
        "email",
    ),
    (
        "send_email with its own content",
        "SendEmailRequest",
        {
            "to": "bob@example.com",
            "identifiers": {"email": "bob@example.com"},
            "_from": "shop@example.com",
            "subject": "Your bill",
            "body": "<p>Attached.</p>",
            "attachments": {"bill.txt": "NDIgRVVS"},
        },
        "email",
    ),
    (
        "send_push",
        "SendPushRequest",
        {
            "transactional_message_id": "2",
            "identifiers": BOB_BY_ID,
            "title": "Hello",
            "custom_data": {"deep": "link"},
        },
        "push",
    ),
    (
        "send_sms",
        "SendSMSRequest",
        {"transactional_message_id": 3, "to": "+15551234567", "identifiers": BOB_BY_ID},
        "sms",
    ),
    (
        "send_inbox_message",
        "SendInboxMessageRequest",
        {"transactional_message_id": 4, "identifiers": BOB_BY_ID, "message_data": {"name": "Bob"}},
        "inbox_message",
    ),
    (
        "send_in_app",
        "SendInAppRequest",
        {"transactional_message_id": 5, "identifiers": BOB_BY_ID, "message_data": {"name": "Bob"}},
        "in_app",
    ),
    (
        "send_whatsapp",
        "SendWhatsAppRequest",
        {"transactional_message_id": 6, "to": "+15551234567", "identifiers": BOB_BY_ID},
        "whatsapp",
    ),
)


def delivered(channel, fields):
    """One delivery that holds the request's fields, `_from` under its name on the wire."""
    message = {name.lstrip("_"): value for name, value in fields.items()}
    return {"deliveries": [{"channel": channel, "message": message}]}


def send_row(requests, name, request_class, fields, channel):
    def call(client):
        send = getattr(client, name.split()[0])
        return send(getattr(requests, request_class)(**fields))

    return Row(name, call, delivered(channel, fields))


def send_rows(requests):
    """The rows of the sends; `requests` is the module that holds the client's request classes."""
    return tuple(send_row(requests, *send) for send in SENDS)


# Refusals --------------------------------------------------------------------------------------


class Payload(dict):
    """A payload as the fake gets it, for what the request classes would not let through."""

    def to_dict(self):
        return dict(self)


TRACK_REFUSALS = (
    Refusal(
        "an attribute that is too long",
        lambda client: client.identify("1", bio="x" * 1001),
        400,
        "value for attribute 'bio' cannot be longer than 1000 bytes",
    ),
    Refusal("an event without a name", lambda client: client.track("1", ""), 400, "name"),
)

APP_REFUSALS = (
    Refusal(
        "a message to nobody",
        lambda client: client.send_email(Payload(identifiers={"id": "1"}, subject="Hi")),
        400,
        "Missing required field",
    ),
)

UNAUTHORIZED = "Unauthorized request"
