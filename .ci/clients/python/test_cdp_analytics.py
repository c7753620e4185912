"""customerio-cdp-analytics (PyPI): the official Pipelines client, which sends batches only."""

import logging
import unittest
from typing import ClassVar
from unittest import mock
from unittest.mock import ANY

import operations
import support
from customerio.analytics import request as wire
from customerio.analytics.client import Client
from customerio.analytics.request import APIError
from support import ClientTestCase, CoverageChecks, Row, row_tests

setUpModule = support.trust_the_fake

QUEUED = (True, ANY)
STAMPED = {"messageId": ANY, "timestamp": ANY}


def captured(type, **fields):
    event = {"type": type, **STAMPED, **fields}
    return {"pipeline-events": [event], "batches": [{"source": "pipelines", "operations": [event]}]}


ROWS = (
    Row(
        "identify",
        lambda client: client.identify("1", {"email": "bob@example.com", "plan": "pro"}),
        captured("identify", userId="1", traits={"email": "bob@example.com", "plan": "pro"}),
    ),
    Row(
        "identify a visitor",
        lambda client: client.identify(anonymous_id="visitor-1", traits={"plan": "free"}),
        captured("identify", userId=None, anonymousId="visitor-1", traits={"plan": "free"}),
    ),
    Row(
        "track",
        lambda client: client.track(
            "1", "signup", {"source": "wéb"}, timestamp=operations.NEW_YEAR, message_id="m-1"
        ),
        captured(
            "track",
            userId="1",
            event="signup",
            properties={"source": "wéb"},
            messageId="m-1",
            timestamp="2026-01-01T00:00:00.000+00:00",
            context={"library": {"name": "analytics-python", "version": "1.1.0"}},
        ),
    ),
    Row(
        "page",
        lambda client: client.page("1", "Shop", "Price", {"url": "https://example.com/price"}),
        captured(
            "page",
            userId="1",
            category="Shop",
            name="Price",
            properties={"url": "https://example.com/price"},
        ),
    ),
    Row(
        "screen",
        lambda client: client.screen("1", name="Settings"),
        captured("screen", userId="1", name="Settings"),
    ),
    Row(
        "group",
        lambda client: client.group("1", "acme", {"plan": "team"}),
        captured("group", userId="1", groupId="acme", traits={"plan": "team"}),
    ),
    Row(
        "alias",
        lambda client: client.alias("visitor-1", "1"),
        captured("alias", previousId="visitor-1", userId="1"),
    ),
)

REFUSED_CALLS = (
    ("no event", lambda client: client.track("1", "")),
    ("no group", lambda client: client.group("1", "")),
)


class CdpTestCase(ClientTestCase):
    """Everything of one step is on its way once `perform` returns."""

    usual_answer = QUEUED
    write_key = "test-write-key"
    scheme = "http"
    settings: ClassVar = {}

    def connect(self):
        self.errors = []
        client = Client(
            self.write_key,
            host=support.base_url(self.scheme),
            on_error=lambda error, items: self.errors.append(error),
            max_retries=0,
            upload_interval=0.02,
            **self.settings,
        )
        self.addCleanup(self.end, client)
        return client

    def end(self, client):
        if not client.sync_mode:
            client.join()

    def perform(self, step):
        answer = step(self.client)
        self.client.flush()
        return answer


class Delivering(CdpTestCase):
    def check_row(self, row):
        super().check_row(row)
        self.assertEqual([], self.errors)


@row_tests(ROWS)
class Plain(Delivering):
    def test_a_burst_arrives_whole_and_in_order(self):
        for number in range(250):
            self.client.track("1", f"event {number}")
        self.client.flush()
        names = [event["event"] for event in support.observe("pipeline-events")]
        self.assertEqual([f"event {number}" for number in range(250)], names)

    def test_shutdown_sends_what_is_queued(self):
        self.client.track("1", "signup")
        self.client.shutdown()
        self.assertEqual(1, len(support.observe("pipeline-events")))


@row_tests(ROWS)
class Https(Delivering):
    scheme = "https"


@row_tests(ROWS)
class Gzip(Delivering):
    settings: ClassVar = {"gzip": True}


@row_tests(ROWS)
class Bearer(Delivering):
    """Keys with a region in front are sent as Bearer instead of Basic."""

    write_key = "pk_us_test-write-key"


@row_tests(ROWS)
class Synchronous(Delivering):
    """Every call posts at once, without the queue and its thread."""

    settings: ClassVar = {"sync_mode": True}

    def perform(self, step):
        return step(self.client)


class Refusals(CdpTestCase):
    """The client reads `code` and `message` of an error, and fails over an answer without them."""

    # Without strict mode the service takes bad calls in silence.
    strict_headers: ClassVar = {"X-Strict-Mode": "1"}

    def setUp(self):
        super().setUp()
        strict = mock.patch.dict(wire._session.headers, self.strict_headers)
        strict.start()
        self.addCleanup(strict.stop)
        # The client logs every refusal, which is what these tests are after.
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)

    def assert_told(self, status):
        self.assertEqual([APIError], [type(error) for error in self.errors], self.errors)
        (error,) = self.errors
        self.assertEqual(status, error.status)
        self.assertNotIn("unknown", (error.code, error.message))
        self.assertTrue(error.code and error.message)
        self.assertEqual([], support.observe("pipeline-events"))

    def test_an_incomplete_call_is_refused(self):
        for name, call in REFUSED_CALLS:
            with self.subTest(name):
                self.errors.clear()
                self.perform(call)
                self.assert_told(400)

    def test_a_missing_key_is_refused(self):
        for consumer in self.client.consumers:
            consumer.write_key = ""
        self.perform(lambda client: client.track("1", "signup"))
        self.assert_told(401)


class Coverage(CoverageChecks, unittest.TestCase):
    clients: ClassVar = {"": Client}
    rows = ROWS
    left_out: ClassVar = {
        "DefaultConfig": "the settings, not a call",
        "flush": "follows every step of every row",
        "join": "ends every test",
        "shutdown": "has a test of its own: it leaves no client for a row's steps",
    }


if __name__ == "__main__":
    unittest.main()
