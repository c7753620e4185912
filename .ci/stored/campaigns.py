"""Campaigns with each kind of trigger, tile and condition, as seeds and as they are printed.

Each value in them is replaced by each of `ODD` in turn; see check.py.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from test_customerio_fake import OrderFollowUp, Renewal, TrialEnds, WelcomeSeries, WinBack

#: When they are gone through: Unix seconds, ten days before the date of Renewal.
NOW = 1_900_000_000 - 10 * 86400

ODD: list[Any] = [
    None, True, 0, -1, 2**70, 1.5, "", "x", [], {}, ["x"], {"x": 1}, "long " * 2000,
    2**63 - 1, [None], [{}], "{{ x",
]  # fmt: skip

NOWHERE = "http://127.0.0.1:9/hook"
SEGMENTS = [{"id": 1, "name": "s", "ids": []}]
PRO = {"type": "attribute", "field": "plan", "operator": "eq", "value": "pro"}
RICH = {**PRO, "type": "event_attribute", "field": "total", "operator": "gt", "value": "1"}
OUT = {"type": "segments_negatable", "segments": [1], "negate": True}


def coded(*conditions: Any) -> str:
    """Conditions as the web app stores them."""
    return base64.b64encode(quote(json.dumps(conditions)).encode()).decode()


def exists(kind: str, field: str) -> Any:
    """A condition in the grammar of seeds."""
    return {kind: {"field": field, "operator": "exists"}}


def tile(id: int, type: str, **more: Any) -> Any:
    """An action as it is printed."""
    common = {"deduplicate_id": f"{id}:1", "preconditions": "JTVCJTVE"}
    return {"id": str(id), "type": f"{type}_action", **common, **more}


def printed(actions: list[Any], edges: str, **campaign: Any) -> Any:
    """A printed document; edges are written as in "1>2 2>3:0"."""
    rows = []
    for edge in edges.split():
        ends, _, index = edge.partition(":")
        start, end = ends.split(">")
        kind = {"type": "branch", "index": int(index)} if index else {"type": "continue"}
        rows.append({"from": start, "to": end, **kind})
    head = {"id": 6, "name": "P", "type": "transactional", "event": "go", "state": "running"}
    whole = {"campaign": {**head, "edges": rows, **campaign}, "actions": actions}
    return {"campaigns": [whole], "segments": SEGMENTS}


BRANCHES = printed(
    [
        tile(1, "filter_match_delay"),
        tile(2, "delay_seconds", delay=60),
        tile(3, "multi_split_branch", multi_conditions=[[PRO], [RICH]]),
        tile(4, "email", subject="s", template_id=4, tracked=True),
        tile(5, "email", subject="p", preconditions=[OUT]),
        tile(6, "exit"),
        tile(7, "conditional_wait", delay=60, exit_type="continue", multi_conditions=[[PRO]]),
        tile(8, "split_randomized", action_ids=["9", "10"], allocations=[1, 1]),
        tile(9, "email", subject="9"),
        tile(10, "email"),
        tile(11, "conditional_branch", conditions=coded(PRO)),
        tile(12, "webhook", url=NOWHERE, method="post"),
        tile(13, "delay_time_window", start_time="09:00", end_time="10:00", days=["mon"],
             zone="customer_time_zone", fallback_zone="UTC"),
    ],
    "1>2 2>3 3>4:0 3>5:1 3>6:2 4>7 5>7 7>8:0 7>8:1 8>11 11>12:0 11>13:1 12>13",
    filters=[{**PRO, "operator": "exists"}],
)  # fmt: skip
COHORTS = printed(
    [
        tile(1, "randomized_delay", min_delay=1, max_delay=2),
        tile(2, "random_cohort_branch", cohorts=[500, 500]),
        tile(3, "static_seg_update", segment_id=1),
        tile(4, "create_event", event_name="went", data={"a": 1}),
    ],
    "1>2 2>3:0 2>4:1 3>4",
    type="behavioral",
    event=None,
    anchors=[OUT],
)
DATE = printed(
    [tile(1, "email", subject="s")], "", type="date", date_triggered_attribute="born",
    start_time="09:00", zone="UTC", lead_days=1, frequency="yearly", restart_min_interval=60,
)  # fmt: skip

OTHERS = {
    "campaigns": [
        {
            "id": 1,
            "name": "Object",
            "type": "object",
            "object_type_id": 1,
            "audience": {"type": 1, "person_filters": exists("attribute", "plan")},
            "object_attribute_triggers": exists("object_attribute", "n"),
            "filter_relationship_attributes": exists("relationship_attribute", "role"),
            "actions": [{"id": 1, "type": "push", "subject": "s", "body": "b"}],
        },
        {
            "id": 2,
            "name": "Webhook",
            "type": "webhook",
            "webhook_id": 5,
            "actions": [
                {"id": 2, "type": "create_event", "event_name": "x",
                 "person": {"id": "{{trigger.id}}"}, "data": {"a": "{{trigger.b}}"}},
                {"id": 3, "type": "batch_update", "filter": exists("attribute", "email"),
                 "attributes": {"z": "1"}},
            ],
        },
        {
            "id": 3,
            "name": "Form",
            "type": "form",
            "form_id": "f1",
            "actions": [
                {"id": 4, "type": "collection_query", "collection": "c", "attribute": "rows",
                 "filter": {"field": "a", "operator": "eq", "value": "1"}, "limit": 3},
                {"id": 5, "type": "multi_lang_branch", "variations": [
                    {"id": 6, "type": "email", "language": "en", "subject": "{{journey.rows}}"},
                    {"id": 7, "type": "email", "language": "fr", "holdout": True}]},
            ],
        },
        {
            "id": 4,
            "name": "Interval",
            "type": "segment",
            "trigger": {"and": [
                {"event": {"name": "go", "filters": exists("a", "b")["a"]}, "times": 1,
                 "within": 600},
                {"not": {"message": {"action_id": 1, "metric": "opened"}}}]},
            "restart_mode": "interval",
            "restart_min_interval": 86400,
            "actions": [
                {"id": 8, "type": "in_app", "body": "b", "in_app": {"priority": 1}},
                {"id": 9, "type": "conditional_wait", "exit_type": "never", "delay": 0,
                 "multi_conditions": [{"event_time": {"field": "when"}},
                                      exists("journey_attribute", "a")]},
            ],
        },
    ],
    "broadcasts": [],
    "collections": [{"id": 1, "name": "c", "content": [{"a": 1}]}],
}  # fmt: skip
BROADCAST = {
    "campaigns": [],
    "broadcasts": [
        {
            "id": 20,
            "name": "B",
            "recipients": {"segment": {"id": 1}},
            "actions": [
                {"id": 201, "type": "email", "subject": "{{trigger.a}}", "body": "b"},
                {"id": 202, "type": "delay_seconds", "delay": 60},
                {"id": 203, "type": "attribute_update", "attributes": {"b": "{{trigger.a}}"}},
            ],
        }
    ],
    "segments": [{"id": 1, "name": "s", "conditions": exists("attribute", "plan")}],
}  # fmt: skip
TRIAL = {
    "campaigns": [
        {
            "id": 4,
            "name": "Trial ends",
            "event_name": "trial_ending",
            "actions": [{**TrialEnds.ACTIONS[0], "url": NOWHERE}, *TrialEnds.ACTIONS[1:]],
        }
    ]
}

DOCUMENTS: dict[str, Any] = {
    "welcome": WelcomeSeries.SEED, "order": OrderFollowUp.SEED, "renewal": Renewal.SEED,
    "trial": TRIAL, "win back": WinBack.SEED, "branches": BRANCHES, "cohorts": COHORTS,
    "date": DATE, "others": OTHERS, "broadcast": BROADCAST,
}  # fmt: skip


def go_through(do: Callable[[str, str, Any], None]) -> None:
    """Let happen what begins and ends any of them, and a month pass."""
    do("PUT", "/__parlel/clock", {"now": NOW, "freeze": True})
    plans = {"1": "pro", "2": "free"}
    for id, plan in plans.items():
        who = {"email": f"{id}@example.com", "created_at": 1, "plan": plan, "status": "lapsed"}
        dates = {"born": "2000-01-01", "renews_at": "1900000000", "when": NOW + 60}
        do("PUT", f"/api/v1/customers/{id}", {**who, **dates})
    thing = {"type": "object", "identifiers": {"object_type_id": "1", "object_id": "acme"}}
    related = {"cio_relationships": [{"identifiers": {"id": "1"}}], "attributes": {"n": 2}}
    do("POST", "/api/v2/entity", {**thing, "action": "identify", **related})
    data = {"order_id": "A", "total": 5, "items": [{"name": "x"}], "plan": "gold", "b": 1}
    for name in ("go", "order_placed", "trial_ending", "order_shipped"):
        event = {"name": name, "data": {**data, "when": NOW + 60}}
        do("POST", "/api/v1/customers/1/events", event)
    do("POST", "/v1/webhook/0000000000000005", {"id": "7", "b": 1})
    do("POST", "/api/v1/forms/f1/submit", {"data": {"email": "form@example.com"}})
    do("POST", "/v1/campaigns/20/triggers", {"data": {"a": 1}})
    do("PUT", "/__parlel/clock", {"advance": 30 * 86400})
    for path in ("journeys", "campaigns", "deliveries"):
        do("GET", f"/__parlel/{path}", None)
    for path in ("campaigns", "broadcasts", "messages"):
        do("GET", f"/v1/{path}", None)
