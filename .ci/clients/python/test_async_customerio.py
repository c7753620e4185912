"""async-customerio (PyPI): Track v1 and v2 and the App API over httpx."""

import asyncio
import inspect
import unittest
from typing import ClassVar
from unittest.mock import ANY

import async_customerio
import operations
import seeded
import support
from async_customerio import (
    Actions,
    AsyncAPIClient,
    AsyncCustomerIO,
    AsyncCustomerIOError,
    TrackAPIV2,
)
from async_customerio.api.customers import Customers
from async_customerio.api.segments import Segments
from async_customerio.api.transactional import Transactional
from operations import BATCH, BATCH_LEAVES, BOB, person, with_device
from support import ClientTestCase, CoverageChecks, Row, row_tests

setUpModule = support.trust_the_fake

# Track v1, and the batch of v2 -----------------------------------------------------------------

BASIC_TRACK_ROWS = (
    *operations.TRACK_ROWS,
    Row(
        "track",
        lambda client: client.track("1", "signup", source="web"),
        {
            "events": [
                {"kind": "event", "customer_id": "1", "name": "signup", "data": {"source": "web"}}
            ]
        },
        given=(BOB,),
    ),
    Row(
        "track_anonymous",
        lambda client: client.track_anonymous("visitor-1", "looked", page="price"),
        {
            "events": [
                {
                    "kind": "anonymous",
                    "anonymous_id": "visitor-1",
                    "name": "looked",
                    "data": {"page": "price"},
                }
            ]
        },
    ),
    Row(
        "report_push_metric",
        lambda client: client.report_push_metric(
            "delivery-1", "token-1", "opened", timestamp=operations.NEW_YEAR
        ),
        {
            "events": [
                {
                    "kind": "push",
                    "name": "opened",
                    "data": {"delivery_id": "delivery-1", "device_id": "token-1"},
                    "timestamp": operations.NEW_YEAR_SECONDS,
                }
            ]
        },
    ),
    Row("send_batch", lambda client: client.send_batch(BATCH), BATCH_LEAVES, answers={}),
    Row("v2.send_batch", lambda client: client.v2.send_batch(BATCH), BATCH_LEAVES, answers={}),
    Row(
        "v2.send_batch with a bad item",
        lambda client: client.v2.send_batch(operations.HALF_GOOD_BATCH),
        {"customers": [person(id="1")]},
        answers=operations.HALF_GOOD_BATCH_ERRORS,
    ),
)

# The rest of Track v1 and v2 -------------------------------------------------------------------

ACME = {"object_type_id": "1", "object_id": "acme"}
ACME_AS_READ = {
    "object_type_id": "1",
    "identifiers": {"object_id": "acme"},
    "attributes": {"plan": "team"},
}
ACME_ATTRIBUTES = "/v1/objects/1/acme/attributes"
RELATIONSHIPS = "/v1/customers/1/relationships"
MESSAGES = "/v1/customers/1/messages"


def related(*object_ids):
    found = [
        {"object_type_id": 1, "identifiers": {"object_id": object_id}} for object_id in object_ids
    ]
    return {RELATIONSHIPS: {"cio_relationships": found}}


def a_segment(client):
    return support.app("POST", "/v1/segments", {"segment": {"name": "Friends"}})


def members(*identifiers):
    return {"/v1/segments/1/membership": {"ids": list(identifiers)}}


def acme(client):
    return client.v2.identify_object(ACME, plan="team")


def bob_of_acme(client):
    return client.v2.add_person_relationships({"id": "1"}, [{"identifiers": ACME}])


def to_the_latest_delivery(call):
    """A step for calls that take a delivery's id, which is known only once it was sent."""
    return lambda client: call(client, support.observe("deliveries")[-1]["delivery_id"])


def an_email(client):
    payload = {"transactional_message_id": 1, "to": "bob@example.com", "identifiers": {"id": "1"}}
    return support.app("POST", "/v1/send/email", payload)


FURTHER_TRACK_ROWS = (
    Row(
        "get_region",
        lambda client: client.get_region(),
        answers={"url": ANY, "region": "us", "environment_id": ANY},
    ),
    Row(
        "add_to_segment",
        lambda client: client.add_to_segment(1, ["1", "2"]),
        members("1", "2"),
        given=(BOB, lambda client: client.identify("2"), a_segment),
    ),
    Row(
        "add_to_segment by email",
        lambda client: client.add_to_segment(1, ["bob@example.com"], id_type="email"),
        members("1"),
        given=(BOB, a_segment),
    ),
    Row(
        "remove_from_segment",
        lambda client: client.remove_from_segment(1, ["1"]),
        members(),
        given=(BOB, a_segment, lambda client: client.add_to_segment(1, ["1"])),
    ),
    Row(
        "submit_form",
        lambda client: client.submit_form("newsletter", email="ann@example.com", city="Paris"),
        {"customers": [person(email="ann@example.com", attributes={"city": "Paris"})]},
    ),
    Row(
        "report_metric",
        to_the_latest_delivery(
            lambda client, delivery: client.report_metric(
                delivery, "opened", timestamp=operations.NEW_YEAR
            )
        ),
        {MESSAGES: {"messages": [{"metrics": {"opened": operations.NEW_YEAR_SECONDS}}]}},
        given=(BOB, an_email),
    ),
    Row(
        "unsubscribe",
        to_the_latest_delivery(lambda client, delivery: client.unsubscribe(delivery)),
        {"/v1/customers/1/attributes": {"customer": {"unsubscribed": True}}},
        given=(BOB, an_email),
    ),
    Row(
        "send_entity",
        lambda client: client.send_entity({"id": "1"}, "person", Actions.identify, plan="pro"),
        {"customers": [person(id="1", attributes={"plan": "pro"})]},
    ),
    Row(
        "v2.send_entity",
        lambda client: client.v2.send_entity(BATCH[0]),
        {"customers": [person(id="1", attributes={"plan": "pro"})]},
    ),
    Row(
        "v2.identify_person",
        lambda client: client.v2.identify_person({"email": "bob@example.com"}, plan="pro"),
        {"customers": [person(email="bob@example.com", attributes={"plan": "pro"})]},
    ),
    Row(
        "v2.delete_person",
        lambda client: client.v2.delete_person({"id": "1"}),
        {"customers": []},
        given=(BOB,),
    ),
    Row(
        "v2.track_person_event",
        lambda client: client.v2.track_person_event({"id": "1"}, "signup", source="web"),
        {
            "events": [
                {"kind": "event", "customer_id": "1", "name": "signup", "data": {"source": "web"}}
            ]
        },
        given=(BOB,),
    ),
    Row(
        "v2.person_pageview",
        lambda client: client.v2.person_pageview({"id": "1"}, "/price"),
        {"events": [{"kind": "page", "customer_id": "1", "name": "/price"}]},
        given=(BOB,),
    ),
    Row(
        "v2.person_screen",
        lambda client: client.v2.person_screen({"id": "1"}, "Settings"),
        {"events": [{"kind": "screen", "customer_id": "1", "name": "Settings"}]},
        given=(BOB,),
    ),
    Row(
        "v2.add_person_device",
        lambda client: client.v2.add_person_device({"id": "1"}, "token-1", "ios"),
        {"devices": [{"id": "token-1", "platform": "ios", "customer_id": "1"}]},
        given=(BOB,),
    ),
    Row(
        "v2.delete_person_device",
        lambda client: client.v2.delete_person_device({"id": "1"}, "token-1"),
        {"devices": []},
        given=(BOB, with_device("1", "token-1")),
    ),
    Row(
        "v2.suppress_person",
        lambda client: client.v2.suppress_person({"id": "1"}),
        {"customers": [], "suppressed": ["1"]},
        given=(lambda client: client.identify("1"),),
    ),
    Row(
        "v2.unsuppress_person",
        lambda client: client.v2.unsuppress_person({"id": "1"}),
        {"suppressed": []},
        given=(lambda client: client.suppress("1"),),
    ),
    Row(
        "v2.merge_persons",
        lambda client: client.v2.merge_persons({"id": "1"}, {"id": "2"}),
        {
            "customers": [person(id="1", email="bob@example.com")],
            "merges": [{"primary": {"id": "1"}, "secondary": {"id": "2"}}],
        },
        given=(BOB, lambda client: client.identify("2")),
    ),
    Row(
        "v2.add_person_relationships",
        bob_of_acme,
        related("acme"),
        given=(BOB, acme),
    ),
    Row(
        "v2.delete_person_relationships",
        lambda client: client.v2.delete_person_relationships({"id": "1"}, [{"identifiers": ACME}]),
        related(),
        given=(BOB, acme, bob_of_acme),
    ),
    Row(
        "v2.identify_object",
        acme,
        {ACME_ATTRIBUTES: {"object": ACME_AS_READ}},
    ),
    Row(
        "v2.delete_object",
        lambda client: client.v2.delete_object(ACME),
        {ACME_ATTRIBUTES: None},
        given=(acme,),
    ),
    Row(
        "v2.add_object_relationships",
        lambda client: client.v2.add_object_relationships(ACME, [{"identifiers": {"id": "1"}}]),
        related("acme"),
        given=(BOB, acme),
    ),
    Row(
        "v2.delete_object_relationships",
        lambda client: client.v2.delete_object_relationships(ACME, [{"identifiers": {"id": "1"}}]),
        related(),
        given=(BOB, acme, bob_of_acme),
    ),
)

TRACK_ROWS = BASIC_TRACK_ROWS + FURTHER_TRACK_ROWS

# The App API -----------------------------------------------------------------------------------


def identified(client):
    return support.track(
        "PUT", "/api/v1/customers/1", {"email": "bob+test@example.com", "age": 30, "vip": True}
    )


BOB_AS_READ = {
    "customer": {
        "id": "1",
        "attributes": {
            "id": "1",
            "email": "bob+test@example.com",
            "age": "30",
            "vip": "true",
            "cio_id": ANY,
        },
        "timestamps": {"age": ANY, "vip": ANY},
        "unsubscribed": False,
        "devices": [],
    }
}

APP_ROWS = (
    *operations.send_rows(async_customerio),
    Row(
        "customers.get_by_email",
        lambda client: client.customers.get_by_email("bob+test@example.com"),
        answers={"results": [{"email": "bob+test@example.com", "id": "1", "cio_id": ANY}]},
        given=(identified,),
    ),
    Row(
        "customers.get_by_email of nobody",
        lambda client: client.customers.get_by_email("nobody@example.com"),
        answers={"results": []},
        given=(identified,),
    ),
    Row(
        "customers.get_attributes",
        lambda client: client.customers.get_attributes("1"),
        answers=BOB_AS_READ,
        given=(identified,),
    ),
    Row(
        "customers.get_attributes by email",
        lambda client: client.customers.get_attributes("bob+test@example.com", id_type="email"),
        answers=BOB_AS_READ,
        given=(identified,),
    ),
)


# How the clients are run -----------------------------------------------------------------------


class OverHttp(AsyncCustomerIO):
    """The client writes https into every Track URL; this one serves plain setups."""

    @staticmethod
    def setup_base_url(host, port, prefix):
        return f"http://{host}:{port}/{prefix.strip('/')}"


class AsyncTestCase(ClientTestCase):
    """Runs the steps of one test on one event loop, so that they share the client's connections."""

    def setUp(self):
        self.loop = asyncio.new_event_loop()
        self.addCleanup(self.loop.close)
        super().setUp()
        self.addCleanup(lambda: self.perform(lambda client: client.close()))

    def perform(self, step):
        result = step(self.client)
        return self.loop.run_until_complete(result) if inspect.isawaitable(result) else result


class TrackCase(AsyncTestCase):
    client_class = OverHttp

    def connect(self):
        return self.client_class(
            support.SITE_ID, support.TRACK_KEY, host=support.HOST, port=support.PORT
        )


class Track:
    """What the Track client must meet over either scheme."""

    def test_refusals_tell_what_is_wrong(self):
        for refusal in operations.TRACK_REFUSALS:
            with self.subTest(refusal.name):
                self.check_refusal(refusal, AsyncCustomerIOError)

    def test_missing_credentials_are_refused(self):
        self.client.site_id = self.client.api_key = ""
        with self.assertRaisesRegex(AsyncCustomerIOError, rf"(?s)401: .*{operations.UNAUTHORIZED}"):
            self.perform(lambda client: client.identify("1"))
        self.assertEqual([], support.observe("customers"))

    def test_a_slash_the_client_left_unescaped_names_no_person(self):
        with self.assertRaisesRegex(AsyncCustomerIOError, "404: "):
            self.perform(lambda client: client.identify("shop/1"))
        self.assertEqual([], support.observe("customers"))

    def test_an_event_on_an_object_is_refused(self):
        with self.assertRaisesRegex(AsyncCustomerIOError, "(?s)400: .*action"):
            self.perform(lambda client: client.v2.track_object_event(ACME, "renewed"))
        self.assertEqual([], support.observe("events"))

    def test_calls_at_once(self):
        identifiers = [str(number) for number in range(20)]

        async def all_at_once(client):
            await asyncio.gather(*(client.identify(identifier) for identifier in identifiers))

        self.perform(all_at_once)
        self.assertEqual(
            set(identifiers), {person["id"] for person in support.observe("customers")}
        )


class App:
    """The App client over either scheme."""

    scheme = None
    usual_answer = operations.SENT

    def connect(self):
        return AsyncAPIClient(support.APP_KEY, url=support.base_url(self.scheme))

    def test_refusals_tell_what_is_wrong(self):
        for refusal in operations.APP_REFUSALS:
            with self.subTest(refusal.name):
                self.check_refusal(refusal, AsyncCustomerIOError)

    def test_a_missing_key_is_refused(self):
        # No header at all, since httpx refuses to send "Bearer " with nothing behind it.
        self.client._auth_headers = dict
        with self.assertRaisesRegex(AsyncCustomerIOError, rf"(?s)401: .*{operations.UNAUTHORIZED}"):
            self.perform(lambda client: client.customers.get_attributes("1"))

    def test_the_attributes_of_nobody_are_not_found(self):
        with self.assertRaisesRegex(AsyncCustomerIOError, "404: .*not found"):
            self.perform(lambda client: client.customers.get_attributes("nobody"))


@row_tests(TRACK_ROWS)
class TrackOverHttp(Track, TrackCase):
    client_class = OverHttp


@row_tests(TRACK_ROWS)
class TrackOverHttps(Track, TrackCase):
    client_class = AsyncCustomerIO


@row_tests(APP_ROWS)
class AppOverHttp(App, AsyncTestCase):
    scheme = "http"


@row_tests(APP_ROWS)
class AppOverHttps(App, AsyncTestCase):
    scheme = "https"


class Seeded(AsyncTestCase):
    """The App client in a workspace that holds what the seed says."""

    scheme = None

    def setUp(self):
        super().setUp()
        support.seed(seeded.SEED)
        self.addCleanup(support.seed, {})

    def connect(self):
        return AsyncAPIClient(support.APP_KEY, url=support.base_url(self.scheme))


@row_tests(seeded.ROWS)
class SeededOverHttp(Seeded):
    scheme = "http"


@row_tests(seeded.ROWS)
class SeededOverHttps(Seeded):
    scheme = "https"


# Coverage --------------------------------------------------------------------------------------

OF_THE_BASE = {
    "close": "ends the connections; the tests use it",
    "send_request": "what every other method is made of",
}

NO_SUCH_ACTION = "Track v2 has no events on objects: a test of its own sees it refused"


class TrackCoverage(CoverageChecks, unittest.TestCase):
    clients: ClassVar = {"": AsyncCustomerIO, "v2.": TrackAPIV2}
    rows = TRACK_ROWS
    left_out: ClassVar = {
        **OF_THE_BASE,
        "setup_base_url": "builds a URL, sends nothing",
        "v2.track_object_event": NO_SUCH_ACTION,
    }


class AppCoverage(CoverageChecks, unittest.TestCase):
    clients: ClassVar = {
        "": AsyncAPIClient,
        "customers.": Customers,
        "segments.": Segments,
        "transactional.": Transactional,
    }
    rows = APP_ROWS + seeded.ROWS
    left_out: ClassVar = OF_THE_BASE


if __name__ == "__main__":
    unittest.main()
