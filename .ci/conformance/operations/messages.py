"""Transactional messages, campaigns, broadcasts and newsletters, and what they send."""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

import shapes as s

from .row import DELETED, ON_PRO, SINCE_2026, Json, Row, family, new, refused, stage

# ==== Transactional messages

TO_ADA: Json = {"to": "ada@example.com", "identifiers": {"id": "ada"}}
A_RECEIPT: Json = {**TO_ADA, "transactional_message_id": 1, "message_data": {"order": "A-1"}}

SENDS = [
    Row(
        "sendEmail",
        "POST /v1/send/email",
        s.SENT,
        body=A_RECEIPT,
        needs=("to", "identifiers"),
        keeps={"message_id": "delivery_id"},
    ),
    Row(
        "sendEmail",
        "POST /v1/send/email",
        s.SENT,
        body={**TO_ADA, "body": "<p>Hi</p>", "subject": "Hi", "from": "shop@example.com"},
        needs=("to", "body", "subject", "from"),
    ),
    Row(
        "sendEmail",
        "POST /v1/send/email",
        s.SENT_LATER,
        body={**A_RECEIPT, "transactional_message_id": "receipt", "send_at": "$tomorrow"},
    ),
    Row(
        "sendPush",
        "POST /v1/send/push",
        s.SENT,
        body={"transactional_message_id": 2, "identifiers": {"id": "ada"}},
        needs=("transactional_message_id", "identifiers"),
    ),
    Row(
        "sendSMS",
        "POST /v1/send/sms",
        s.SENT,
        body={
            "transactional_message_id": 3,
            "to": "+15550101",
            "identifiers": {"email": "ada@example.com"},
            "message_data": {"code": "123"},
        },
        needs=("transactional_message_id", "to", "identifiers"),
    ),
    *new(
        [
            Row(
                "sendInApp",
                "POST /v1/send/in_app",
                s.SENT,
                body={"transactional_message_id": 4, "identifiers": {"id": "ada"}},
                needs=("transactional_message_id", "identifiers"),
            ),
            Row(
                "sendInboxMessage",
                "POST /v1/send/inbox_message",
                s.SENT,
                body={"transactional_message_id": 5, "identifiers": {"id": "ada"}},
                needs=("transactional_message_id", "identifiers"),
            ),
            Row(
                "sendWhatsApp",
                "POST /v1/send/whatsapp",
                s.SENT,
                body={
                    "transactional_message_id": 6,
                    "to": "+15550101",
                    "identifiers": {"id": "ada"},
                },
                needs=("transactional_message_id", "to", "identifiers"),
            ),
        ]
    ),
]

REFUSED_SENDS = [
    refused(
        "sendEmail",
        "POST /v1/send/email",
        400,
        body={**A_RECEIPT, "transactional_message_id": 987654},
    ),
    refused(
        "sendEmail",
        "POST /v1/send/email",
        400,
        body={**A_RECEIPT, "identifiers": {"id": "ada", "email": "ada@example.com"}},
    ),
    refused(
        "sendEmail",
        "POST /v1/send/email",
        400,
        body={**A_RECEIPT, "attachments": {"a.txt": "not base64!"}},
    ),
    refused(
        "sendEmail",
        "POST /v1/send/email",
        403,
        body={**A_RECEIPT, "attachments": {"a.exe": "TVo="}},
    ),
    refused(
        "sendSMS",
        "POST /v1/send/sms",
        400,
        body={"transactional_message_id": 3, "to": "12", "identifiers": {"id": "ada"}},
    ),
]


def _click(name: str, delivery: str, href: str) -> Row:
    moment = {"metric": "clicked", "href": href, "timestamp": "$now"}
    return stage(name, "POST /api/v1/metrics", {"delivery_id": delivery, **moment})


CLICKS = [
    _click("aClickInAReceipt", "$message_id", "https://example.com/orders"),
    _click(
        "aClickInACampaign", "dgOi9wei9wcBAAGcprHcAAAAAAAAAAAAAAE=", "https://example.com/start"
    ),
    _click(
        "aClickInABroadcast", "dgOi9wei9wcDAAGcprHcAAAAAAAAAAAAAAI=", "https://example.com/shop"
    ),
    _click(
        "aClickInANewsletter", "dgOi9wei9wcDAAGcprHcAAAAAAAAAAAAAAM=", "https://example.com/march"
    ),
]

ONE_TRANSACTIONAL = {"transactional_id": 1}
#: The answers' `content` is a list, but for the operation of 2026.
CONTENT_LIST: s.Shape = {"content": s.some(s.TRANSACTIONAL_CONTENT)}
#: `headers` of a request is a list since 2026, though it is a text in answers.
NEW_CONTENT: Json = {
    "subject": "Your order",
    "body": "<p>Thanks</p>",
    "headers": [{"name": "X-Shop", "value": "1"}],
}

TRANSACTIONAL = [
    Row("listTransactional", "GET /v1/transactional", {"messages": s.some(s.TRANSACTIONAL)}),
    *family(
        [
            Row(
                "getTransactional",
                "GET /v1/transactional/{transactional_id}",
                {"message": s.TRANSACTIONAL},
            ),
            Row(
                "listTransactionalVariants",
                "GET /v1/transactional/{transactional_id}/contents",
                {"contents": s.some(s.TRANSACTIONAL_CONTENT)},
            ),
            Row(
                "transactionalMetrics",
                "GET /v1/transactional/{transactional_id}/metrics",
                s.METRIC,
                query={"period": "days", "steps": 7},
            ),
            Row(
                "transactionalLinks",
                "GET /v1/transactional/{transactional_id}/metrics/links",
                s.LINKS,
                query={"period": "days", "unique": "true"},
            ),
            Row(
                "transactionalMessages",
                "GET /v1/transactional/{transactional_id}/messages",
                s.MESSAGES,
                query={"limit": 10},
            ),
        ],
        ids=ONE_TRANSACTIONAL,
    ),
    *family(
        [
            Row(
                "updateTransactional",
                "PUT /v1/transactional/{transactional_id}/content/{content_id}",
                CONTENT_LIST,
                body=NEW_CONTENT,
            ),
            *new(
                [
                    Row(
                        "getTransactionalTranslationById",
                        "GET /v1/transactional/{transactional_id}/contents/{content_id}",
                        {"content": s.TRANSACTIONAL_CONTENT},
                    ),
                ]
            ),
        ],
        ids={**ONE_TRANSACTIONAL, "content_id": 11},
    ),
    *family(
        [
            Row(
                "getTransactionalVariant",
                "GET /v1/transactional/{transactional_id}/language/{language}",
                CONTENT_LIST,
            ),
            Row(
                "updateTransactionalVariant",
                "PUT /v1/transactional/{transactional_id}/language/{language}",
                CONTENT_LIST,
                body=NEW_CONTENT,
            ),
        ],
        ids={**ONE_TRANSACTIONAL, "language": "es"},
    ),
]

REFUSED_TRANSACTIONAL = [
    # The content of another message; the only 400 in the App API with `meta` alone.
    Row(
        "getTransactionalTranslationById",
        "GET /v1/transactional/{transactional_id}/contents/{content_id}",
        s.SEND_REFUSAL,
        (400,),
        ids={**ONE_TRANSACTIONAL, "content_id": 21},
    ),
]

# ==== Campaigns

WINDOW: Json = {"start": "$yesterday", "end": "$now"}
ONE_CAMPAIGN = {"campaign_id": 1}
HELLO = {"campaign_id": 1, "action_id": 101}

CAMPAIGNS = [
    Row("listCampaigns", "GET /v1/campaigns", {"campaigns": s.some(s.CAMPAIGN)}),
    *(
        Row(
            "getCampaigns",
            "GET /v1/campaigns/{campaign_id}",
            {"campaign": shape},
            ids={"campaign_id": number},
        )
        for number, shape in enumerate(s.CAMPAIGNS.values(), 1)
    ),
    *family(
        [
            Row(
                "campaignMetrics",
                "GET /v1/campaigns/{campaign_id}/metrics",
                s.METRIC_1,
                query={"version": 1, "period": "days", "steps": 3, "type": "email"},
            ),
            Row(
                "campaignMetrics",
                "GET /v1/campaigns/{campaign_id}/metrics",
                s.METRIC_2,
                query={"version": 2, "res": "hours", "tz": "UTC", **WINDOW},
            ),
            Row(
                "campaignLinkMetrics",
                "GET /v1/campaigns/{campaign_id}/metrics/links",
                s.LINKS,
            ),
            Row(
                "listCampaignActions",
                "GET /v1/campaigns/{campaign_id}/actions",
                {"actions": s.some(s.CAMPAIGN_ACTION), "next": "str"},
            ),
            Row(
                "getCampaignMessages",
                "GET /v1/campaigns/{campaign_id}/messages",
                s.MESSAGES,
                query={"type": "email", "metric": "sent"},
            ),
            Row(
                "campaignJourneyMetrics",
                "GET /v1/campaigns/{campaign_id}/journey_metrics",
                s.JOURNEY_METRIC,
                query={"resolution": "days", **WINDOW},
                needs=("resolution", "start", "end"),
            ),
            # The name until 2025, which the clients still send.
            Row(
                "campaignJourneyMetrics",
                "GET /v1/campaigns/{campaign_id}/journey_metrics",
                s.JOURNEY_METRIC,
                query={"res": "days", **WINDOW},
            ),
        ],
        ids=ONE_CAMPAIGN,
    ),
    *(
        Row(
            "getCampaignAction",
            "GET /v1/campaigns/{campaign_id}/actions/{action_id}",
            {"action": s.CAMPAIGN_ACTION},
            ids={**ONE_CAMPAIGN, "action_id": number},
        )
        for number in (101, 103, 104, 105, 106)
    ),
    *family(
        [
            Row(
                "updateCampaignAction",
                "PUT /v1/campaigns/{campaign_id}/actions/{action_id}",
                {"action": s.CAMPAIGN_ACTION},
                body={**NEW_CONTENT, "sending_state": "draft"},
            ),
            Row(
                "campaignActionMetrics",
                "GET /v1/campaigns/{campaign_id}/actions/{action_id}/metrics",
                {**s.METRIC_1, **s.LANGUAGE_VARIANTS},
            ),
            Row(
                "campaignActionMetrics",
                "GET /v1/campaigns/{campaign_id}/actions/{action_id}/metrics",
                {**s.METRIC_2, **s.LANGUAGE_VARIANTS},
                query={"version": 2, "res": "daily", **WINDOW},
            ),
            Row(
                "campaignActionLinks",
                "GET /v1/campaigns/{campaign_id}/actions/{action_id}/metrics/links",
                s.LINKS,
            ),
        ],
        ids=HELLO,
    ),
    *family(
        [
            Row(
                "getCampaignActionTranslation",
                "GET /v1/campaigns/{campaign_id}/actions/{action_id}/language/{language}",
                {"action": s.CAMPAIGN_ACTION},
            ),
            Row(
                "updateCampaignActionTranslation",
                "PUT /v1/campaigns/{campaign_id}/actions/{action_id}/language/{language}",
                {"action": s.CAMPAIGN_ACTION},
                body=NEW_CONTENT,
            ),
        ],
        ids={**HELLO, "language": "es"},
    ),
]

REFUSED_CAMPAIGNS = [
    refused(
        "campaignMetrics",
        "GET /v1/campaigns/{campaign_id}/metrics",
        400,
        ids=ONE_CAMPAIGN,
        query={"version": 2},
    ),
]

# ==== Broadcasts

ONE_BROADCAST = {"broadcast_id": 20}
RESTOCK = {"broadcast_id": 20, "action_id": 201}


def _trigger(**audience: Json) -> Row:
    return Row(
        "triggerBroadcast",
        "POST /v1/campaigns/{broadcast_id}/triggers",
        {"id": "int"},
        ids=ONE_BROADCAST,
        body={"data": {"product": "Socks"}, **audience},
        keeps={"trigger_id": "id"},
    )


BROADCASTS = [
    Row("listBroadcasts", "GET /v1/broadcasts", {"broadcasts": s.some(s.BROADCAST)}),
    _trigger(),
    _trigger(recipients=ON_PRO),
    _trigger(emails=["ada@example.com"], email_ignore_missing=True),
    _trigger(ids=["ada", "nobody"], id_ignore_missing=True),
    _trigger(per_user_data=[{"id": "ada", "data": {"product": "Hats"}}]),
    _trigger(data_file_url="$people_jsonl"),
    *family(
        [
            Row(
                "getBroadcast",
                "GET /v1/broadcasts/{broadcast_id}",
                {"broadcast": s.BROADCAST},
            ),
            Row(
                "broadcastActions",
                "GET /v1/broadcasts/{broadcast_id}/actions",
                {"actions": s.some(s.BROADCAST_ACTION)},
            ),
            Row(
                "broadcastMessages",
                "GET /v1/broadcasts/{broadcast_id}/messages",
                s.MESSAGES,
                query={"state": "sent"},
            ),
            Row(
                "broadcastMetrics",
                "GET /v1/broadcasts/{broadcast_id}/metrics",
                s.METRIC,
                query={"period": "weeks", "steps": 2},
            ),
            Row(
                "broadcastLinks",
                "GET /v1/broadcasts/{broadcast_id}/metrics/links",
                s.LINKS,
            ),
            Row(
                "listBroadcastTriggers",
                "GET /v1/broadcasts/{broadcast_id}/triggers",
                {"triggers": s.some(s.TRIGGER)},
            ),
            Row(
                "broadcastStatus",
                "GET /v1/campaigns/{broadcast_id}/triggers/{trigger_id}",
                s.TRIGGER,
            ),
            Row(
                "broadcastErrors",
                "GET /v1/campaigns/{broadcast_id}/triggers/{trigger_id}/errors",
                {"errors": ["str"], "next": "str"},
                query={"limit": 10},
            ),
        ],
        ids={**ONE_BROADCAST, "trigger_id": "$trigger_id"},
    ),
    *family(
        [
            Row(
                "getBroadcastAction",
                "GET /v1/broadcasts/{broadcast_id}/actions/{action_id}",
                {"action": s.BROADCAST_ACTION},
            ),
            Row(
                "updateBroadcastAction",
                "PUT /v1/broadcasts/{broadcast_id}/actions/{action_id}",
                {"action": s.BROADCAST_ACTION},
                body=NEW_CONTENT,
            ),
            Row(
                "broadcastActionMetrics",
                "GET /v1/broadcasts/{broadcast_id}/actions/{action_id}/metrics",
                {**s.METRIC, **s.LANGUAGE_VARIANTS},
            ),
            Row(
                "broadcastActionLinks",
                "GET /v1/broadcasts/{broadcast_id}/actions/{action_id}/metrics/links",
                s.LINKS,
            ),
            Row(
                "getBroadcastActionLanguage",
                "GET /v1/broadcasts/{broadcast_id}/actions/{action_id}/language/{language}",
                {"action": s.BROADCAST_ACTION},
            ),
            Row(
                "updateBroadcastActionLanguage",
                "PUT /v1/broadcasts/{broadcast_id}/actions/{action_id}/language/{language}",
                {"action": s.BROADCAST_ACTION},
                body=NEW_CONTENT,
            ),
        ],
        ids={**RESTOCK, "language": "es"},
    ),
]


def _refused_trigger(*status: int, **body: Json) -> Row:
    return replace(_trigger(), answer=s.REFUSAL, status=status, body=body, keeps={})


REFUSED_BROADCASTS = [
    _refused_trigger(422, recipients={}),
    _refused_trigger(422, ids=["nobody"]),
    _refused_trigger(400, 422, ids=["ada"], email_ignore_missing=True),
]

# ==== Newsletters

MARCH = {"newsletter_id": 30}
MARCH_CONTENT = {"newsletter_id": 30, "content_id": 301}
#: Not sent, so its contents can be changed.
APRIL = {"newsletter_id": 31}
CONTENT: s.Shape = {"content": s.NEWSLETTER_CONTENT}
RECIPIENTS: Json = {"and": [{"or": [{"segment": {"id": 1}}]}]}


def _create(channel: str, needs: Sequence[str], **content: Json) -> Row:
    return Row(
        "createNewsletter",
        "POST /v1/newsletters",
        s.ONE_NEWSLETTER,
        body={
            "name": f"A new {channel}",
            "type": channel,
            "recipients": RECIPIENTS,
            "subscription_topic_id": 1,
            **content,
        },
        needs=("name", "type", "recipients", *needs),
        keeps={f"{channel}_newsletter": "newsletter.id"},
        since=SINCE_2026,
    )


NEWSLETTERS = [
    Row(
        "listNewsletters",
        "GET /v1/newsletters",
        {"newsletters": s.some(s.NEWSLETTER), "next": "str"},
        query={"limit": 10, "sort": "asc"},
    ),
    *family(
        [
            Row("getNewsletters", "GET /v1/newsletters/{newsletter_id}", s.ONE_NEWSLETTER),
            Row(
                "getNewsletterMetrics",
                "GET /v1/newsletters/{newsletter_id}/metrics",
                s.METRIC,
            ),
            Row(
                "getNewsletterLinks",
                "GET /v1/newsletters/{newsletter_id}/metrics/links",
                s.LINKS,
            ),
            Row(
                "listNewsletterVariants",
                "GET /v1/newsletters/{newsletter_id}/contents",
                {"contents": s.some(s.NEWSLETTER_CONTENT)},
            ),
            Row(
                "getNewsletterMsgMeta",
                "GET /v1/newsletters/{newsletter_id}/messages",
                s.MESSAGES,
            ),
            Row(
                "getNewsletterTestGroups",
                "GET /v1/newsletters/{newsletter_id}/test_groups",
                {"test_groups": s.some(s.TEST_GROUP)},
            ),
        ],
        ids=MARCH,
    ),
    *family(
        [
            Row(
                "getNewsletterVariant",
                "GET /v1/newsletters/{newsletter_id}/contents/{content_id}",
                CONTENT,
            ),
            Row(
                "getVariantMetrics",
                "GET /v1/newsletters/{newsletter_id}/contents/{content_id}/metrics",
                s.METRIC,
            ),
            Row(
                "getVariantLinks",
                "GET /v1/newsletters/{newsletter_id}/contents/{content_id}/metrics/links",
                s.LINKS,
            ),
        ],
        ids=MARCH_CONTENT,
    ),
    Row(
        "updateNewsletterVariant",
        "PUT /v1/newsletters/{newsletter_id}/contents/{content_id}",
        CONTENT,
        ids={**APRIL, "content_id": 311},
        body={"subject": "In April", "body": "<p>Rain</p>", "preheader_text": "Soon"},
    ),
    *family(
        [
            Row(
                "getNewsletterVariantTranslation",
                "GET /v1/newsletters/{newsletter_id}/language/{language}",
                CONTENT,
            ),
            Row(
                "updateNewsletterVariantTranslation",
                "PUT /v1/newsletters/{newsletter_id}/language/{language}",
                CONTENT,
                body={"subject": "En abril", "body": "<p>Lluvia</p>"},
            ),
        ],
        ids={**APRIL, "language": "es"},
    ),
    Row(
        "getNewsletterVariantTranslationTest",
        "GET /v1/newsletters/{newsletter_id}/test_group/{test_group_id}/language/{language}",
        CONTENT,
        ids={**MARCH, "test_group_id": 1, "language": "es"},
    ),
    _create("email", ("subject", "body"), subject="News", body="<p>News</p>", from_id=1),
    _create("twilio", ("body",), body="News"),
    _create("push", (), subject="News", body="News"),
    _create("in_app", ("body_json",), body_json='{"message_id":"news"}'),
    _create(
        "webhook",
        ("body", "request_method", "url"),
        body="{}",
        request_method="POST",
        url="https://example.com/hook",
    ),
    _create("inbox", ("body_json",), body_json='{"topics":[],"type":"news","properties":{}}'),
]

DRAFT = {"newsletter_id": "$email_newsletter"}
TRANSLATION: Json = {"language": "de", "subject": "Neues", "body": "<p>Neues</p>"}
DRAFT_GROUP = {**DRAFT, "test_group_id": "$test_group_id", "language": "de"}

#: A draft from its first translation to its end.
DRAFTED = [
    Row(
        "createNewsletterLanguageVariant",
        "POST /v1/newsletters/{newsletter_id}/language",
        s.ONE_NEWSLETTER,
        ids=DRAFT,
        body=TRANSLATION,
        needs=("language", "subject", "body"),
        since=SINCE_2026,
    ),
    Row(
        "deleteNewsletterLanguageVariant",
        "DELETE /v1/newsletters/{newsletter_id}/language/{language}",
        s.EMPTY,
        DELETED,
        ids={**DRAFT, "language": "de"},
        since=SINCE_2026,
    ),
    Row(
        "createNewsletterTestGroup",
        "POST /v1/newsletters/{newsletter_id}/test_groups",
        s.ONE_NEWSLETTER,
        ids=DRAFT,
        since=SINCE_2026,
    ),
    Row(
        "getNewsletterTestGroups",
        "GET /v1/newsletters/{newsletter_id}/test_groups",
        {"test_groups": s.some(s.TEST_GROUP)},
        ids=DRAFT,
        keeps={"test_group_id": "test_groups.-1.id"},
    ),
    Row(
        "createNewsletterTestLanguageVariant",
        "POST /v1/newsletters/{newsletter_id}/test_group/{test_group_id}/language",
        s.ONE_NEWSLETTER,
        ids=DRAFT_GROUP,
        body=TRANSLATION,
        needs=("language", "subject", "body"),
        since=SINCE_2026,
    ),
    Row(
        "getNewsletterVariantTranslationTest",
        "GET /v1/newsletters/{newsletter_id}/test_group/{test_group_id}/language/{language}",
        CONTENT,
        ids=DRAFT_GROUP,
    ),
    Row(
        "updateNewsletterTestTranslation",
        "PUT /v1/newsletters/{newsletter_id}/test_group/{test_group_id}/language/{language}",
        CONTENT,
        ids=DRAFT_GROUP,
        body={"subject": "Ganz Neues", "body": "<p>Neu</p>"},
    ),
    Row(
        "deleteNewsletterTestLanguageVariant",
        "DELETE /v1/newsletters/{newsletter_id}/test_group/{test_group_id}/language/{language}",
        s.EMPTY,
        DELETED,
        ids=DRAFT_GROUP,
        since=SINCE_2026,
    ),
    Row(
        "scheduleNewsletter",
        "POST /v1/newsletters/{newsletter_id}/schedule",
        s.ONE_NEWSLETTER,
        ids=DRAFT,
        body={"scheduled_at": "$tomorrow", "timezone": "Europe/Vienna"},
        needs=("scheduled_at", "timezone"),
        since=SINCE_2026,
    ),
    Row(
        "scheduleNewsletter",
        "POST /v1/newsletters/{newsletter_id}/schedule",
        s.ONE_NEWSLETTER,
        ids=DRAFT,
        body={"scheduled_at": 0},
        since=SINCE_2026,
    ),
    Row(
        "sendNewsletter",
        "POST /v1/newsletters/{newsletter_id}/send",
        s.ONE_NEWSLETTER,
        ids=DRAFT,
        body={"rate_limit_email_rate": 100, "rate_limit_time_period": 60},
        needs=("rate_limit_email_rate", "rate_limit_time_period"),
        since=SINCE_2026,
    ),
    Row(
        "deleteNewsletters",
        "DELETE /v1/newsletters/{newsletter_id}",
        s.EMPTY,
        DELETED,
        ids=DRAFT,
    ),
]

REFUSED_NEWSLETTERS = new(
    [
        refused(
            "createNewsletter",
            "POST /v1/newsletters",
            *(400, 422),
            body={
                "name": "Two ways",
                "type": "twilio",
                "body": "News",
                "recipients": {"and": [{"segment": {"id": 1}}]},
            },
        ),
        refused(
            "sendNewsletter",
            "POST /v1/newsletters/{newsletter_id}/send",
            400,
            ids=MARCH,
        ),
        refused(
            "scheduleNewsletter",
            "POST /v1/newsletters/{newsletter_id}/schedule",
            400,
            ids=APRIL,
            body={"scheduled_at": 0},
        ),
        refused(
            "scheduleNewsletter",
            "POST /v1/newsletters/{newsletter_id}/schedule",
            422,
            ids=APRIL,
            body={"scheduled_at": "$yesterday", "timezone": "UTC"},
        ),
        refused(
            "scheduleNewsletter",
            "POST /v1/newsletters/{newsletter_id}/schedule",
            422,
            ids=APRIL,
            body={"scheduled_at": "$tomorrow", "timezone": "Nowhere/Atlantis"},
        ),
        refused(
            "createNewsletterLanguageVariant",
            "POST /v1/newsletters/{newsletter_id}/language",
            422,
            ids=APRIL,
            body={"language": "es", "subject": "Otra vez", "body": "<p>Ya</p>"},
        ),
        refused(
            "createNewsletterTestGroup",
            "POST /v1/newsletters/{newsletter_id}/test_groups",
            400,
            ids=MARCH,
        ),
        refused(
            "deleteNewsletterLanguageVariant",
            "DELETE /v1/newsletters/{newsletter_id}/language/{language}",
            400,
            ids={**MARCH, "language": "es"},
        ),
    ]
)

# ==== Messages and activities

MESSAGES = [
    Row("listMessages", "GET /v1/messages", s.MESSAGES, query={"limit": 5}),
    Row(
        "listMessages",
        "GET /v1/messages",
        s.MESSAGES,
        query={"newsletter_id": 30, "type": "email", "metric": "clicked"},
    ),
    Row("getMessage", "GET /v1/messages/{message_id}", {"message": s.MESSAGE}),
    Row(
        "getArchivedMessage",
        "GET /v1/messages/{message_id}/archived_message",
        {"archived_message": s.ARCHIVED_MESSAGE},
    ),
    Row("listActivities", "GET /v1/activities", s.ACTIVITIES, query={"limit": 100}),
    Row(
        "listActivities",
        "GET /v1/activities",
        s.ACTIVITIES,
        query={"type": "event", "name": "order_placed", "customer_id": "ada"},
    ),
]

# ==== Live notifications

PUSH: Json = {"alert": {"title": "On its way", "body": "Ten minutes"}}

LIVE_NOTIFICATIONS = new(
    [
        Row(
            "startLiveNotification",
            "POST /v1/live_notifications/start",
            s.INSTANCE,
            body={
                "identifiers": {"id": "ada"},
                "notification_type": "com.example.delivery",
                "attributes": {"order": "A-1"},
                "content_state": {"step": 1},
                "platform": "ios",
                "push_payload": PUSH,
            },
            needs=(
                "identifiers",
                "notification_type",
                "attributes",
                "content_state",
                "push_payload",
                "push_payload.alert",
                "push_payload.alert.title",
                "push_payload.alert.body",
            ),
            keeps={"instance_id": "instance_id"},
        ),
        Row(
            "updateLiveNotification",
            "POST /v1/live_notifications/update",
            s.INSTANCE,
            body={"instance_id": "$instance_id", "content_state": {"step": 2}},
            needs=("instance_id", "content_state"),
        ),
        Row(
            "getLiveNotification",
            "GET /v1/live_notifications/{instance_id}",
            s.LIVE_NOTIFICATION,
        ),
        Row(
            "endLiveNotification",
            "POST /v1/live_notifications/end",
            s.INSTANCE,
            body={"instance_id": "$instance_id", "push_payload": PUSH},
            needs=("instance_id", "push_payload.alert.title"),
        ),
        Row(
            "getLiveNotification",
            "GET /v1/live_notifications/{instance_id}",
            {**s.LIVE_NOTIFICATION, "state": ("ended",), "ended_at": "unix"},
        ),
    ]
)

START: Json = LIVE_NOTIFICATIONS[0].body

REFUSED_LIVE_NOTIFICATIONS = new(
    [
        refused(
            "startLiveNotification",
            "POST /v1/live_notifications/start",
            400,
            body={**START, "expiration": "$tomorrow"},
        ),
        refused(
            "startLiveNotification",
            "POST /v1/live_notifications/start",
            400,
            body={**START, "identifiers": {"id": "ada", "email": "ada@example.com"}},
        ),
        refused(
            "getLiveNotification",
            "GET /v1/live_notifications/{instance_id}",
            400,
            ids={"instance_id": "no-ulid"},
        ),
    ]
)
