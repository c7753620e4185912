"""An MCP server for the Track API, mcparmory-customerio-journeys-track: each of its tools."""

import os
import sys
import unittest

from support import (
    FAKE_URL,
    SITE_ID,
    TRACK_KEY,
    ClientTestCase,
    CoverageChecks,
    Row,
    app,
    row_tests,
)

if sys.version_info < (3, 11):
    raise unittest.SkipTest("the MCP server needs Python 3.11")

os.environ.update(BASE_URL=FAKE_URL, BASIC_AUTH_USERNAME=SITE_ID, BASIC_AUTH_PASSWORD=TRACK_KEY)

import asyncio
import logging

import server  # what the package calls its module
from fastmcp import Client

#: The server keeps its connections, so all calls share one loop.
LOOP = asyncio.new_event_loop()
logging.disable(logging.ERROR)


def tool(name, /, **arguments):
    """A step: one call of a tool, as an MCP client makes it."""

    async def call():
        async with Client(server.mcp) as client:
            return (await client.call_tool(name, arguments)).data

    return lambda _: LOOP.run_until_complete(call())


def sent(channel="email"):
    """The id of a message to report about."""
    body = {"to": "a@example.com", "identifiers": {"id": "1"}, "transactional_message_id": 1}
    return app("POST", f"/v1/send/{channel}", body)["delivery_id"]


def about_a_delivery(name, /, **arguments):
    return lambda client: tool(name, delivery_id=sent(), **arguments)(client)


ADA = tool("upsert_customer", identifier="1", email="ada@example.com")
BOB = tool("upsert_customer", identifier="2")
DEVICE = {"id": "t1", "platform": "ios", "last_used": 1700000000}
ACME = {"type": "object", "identifiers": {"object_type_id": "1", "object_id": "acme"}}
ONE = {"type": "person", "identifiers": {"id": "1"}}

ROWS = [
    Row("get_account_region", tool("get_account_region"), answers={"region": "us"}),
    Row("upsert_customer", ADA, {"customers": [{"identifiers": {"email": "ada@example.com"}}]}),
    Row("delete_customer", tool("delete_customer", identifier="1"), {"customers": []}, (ADA,)),
    Row(
        "register_device",
        tool("register_device", identifier="1", device=DEVICE),
        {"devices": [{"id": "t1", "customer_id": "1"}]},
    ),
    Row(
        "remove_device",
        tool("remove_device", identifier="1", device_id="t1"),
        {"devices": []},
        (tool("register_device", identifier="1", device=DEVICE),),
    ),
    Row(
        "suppress_customer",
        tool("suppress_customer", identifier="1"),
        {"suppressed": ["1"]},
        (ADA,),
    ),
    Row(
        "unsuppress_customer",
        tool("unsuppress_customer", identifier="1"),
        {"suppressed": []},
        (ADA, tool("suppress_customer", identifier="1")),
    ),
    Row(
        "mark_delivery_unsubscribed",
        about_a_delivery("mark_delivery_unsubscribed", unsubscribe=True),
        {"customers": [{"unsubscribed": True}]},
        (ADA,),
    ),
    Row(
        "track_customer_event",
        tool("track_customer_event", identifier="1", name="signup", type="event"),
        {"events": [{"name": "signup", "customer_id": "1"}]},
    ),
    Row(
        "log_anonymous_event",
        tool("log_anonymous_event", name="visit", anonymous_id="a", type="event"),
        {"events": [{"name": "visit", "anonymous_id": "a"}]},
    ),
    Row(
        "submit_form",
        tool("submit_form", form_id="f", data={"email": "a@example.com"}),
        {"customers": [{"identifiers": {"email": "a@example.com"}}]},
        answers={"status": 204},
    ),
    Row(
        "merge_customers",
        tool("merge_customers", primary={"id": "1"}, secondary={"id": "2"}),
        {"customers": [{"identifiers": {"id": "1"}}]},
        (ADA, BOB),
    ),
    Row(
        "report_metric",
        about_a_delivery("report_metric", metric="clicked", timestamp="1700000000"),
        {"deliveries": [{"metrics": {"clicked": 1700000000}}]},
    ),
    Row(
        "add_customers_to_segment",
        tool("add_customers_to_segment", segment_id="4", ids=["1"], id_type="id"),
        {"segments": [{"customer_ids": ["1"]}]},
        (ADA,),
    ),
    Row(
        "remove_customers_from_segment",
        tool("remove_customers_from_segment", segment_id="4", ids=["1"], id_type="id"),
        {"segments": [{"customer_ids": []}]},
        (ADA, tool("add_customers_to_segment", segment_id="4", ids=["1"], id_type="id")),
    ),
    Row(
        "manage_entity",
        tool("manage_entity", **ONE, action="identify", attributes={"plan": "pro"}),
        {"customers": [{"identifiers": {"id": "1"}, "attributes": {"plan": "pro"}}]},
    ),
    Row(
        "batch_entities",
        tool(
            "batch_entities", batch=[{**ONE, "action": "identify"}, {**ACME, "action": "identify"}]
        ),
        {"customers": [{"identifiers": {"id": "1"}}], "objects": [{"object_id": "acme"}]},
    ),
]


@row_tests(ROWS)
class McpServer(ClientTestCase):
    usual_answer = {}

    def connect(self):
        return None


class Coverage(CoverageChecks, unittest.TestCase):
    rows = ROWS

    def test_every_public_method_has_a_row_or_a_reason(self):
        offered = {tool.name for tool in LOOP.run_until_complete(server.mcp.list_tools())}
        self.assertEqual(offered, {row.method for row in ROWS})
