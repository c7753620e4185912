"""customerio (PyPI): the official client of the Track and App APIs."""

import unittest
from typing import ClassVar

import operations
import support

# From the modules, not the package: customerio-cdp-analytics installs a customerio/__init__.py
# too, and whichever was installed last wins.
from customerio import api
from customerio.api import APIClient
from customerio.client_base import CustomerIOException
from customerio.track import CustomerIO
from operations import BATCH, BATCH_LEAVES, BOB, NEW_YEAR, NEW_YEAR_SECONDS, known, with_device
from support import ClientTestCase, CoverageChecks, Row, row_tests

setUpModule = support.trust_the_fake

ULID = "01HZX3C4Y5B6V7N8M9K0J1H2G3"

TRACK_ROWS = (
    *operations.TRACK_ROWS,
    Row(
        "identify by an id with a slash",
        lambda client: client.identify("shop/1", plan="pro"),
        {"customers": [operations.person(id="shop/1")]},
    ),
    Row(
        "delete_device with a slash",
        lambda client: client.delete_device("1", "token/1"),
        {"devices": []},
        given=(BOB, with_device("1", "token/1")),
    ),
    Row(
        "track",
        lambda client: client.track("1", "signup", {"source": "web"}, id=ULID, timestamp=NEW_YEAR),
        {
            "events": [
                {
                    "id": ULID,
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
        "track for an unknown person",
        lambda client: client.track("1", "signup"),
        {
            "customers": [operations.person(id="1")],
            "events": [{"customer_id": "1", "name": "signup", "data": {}}],
        },
    ),
    Row(
        "track_anonymous",
        lambda client: client.track_anonymous(
            "visitor-1", "looked", {"page": "price"}, timestamp=NEW_YEAR
        ),
        {
            "events": [
                {
                    "kind": "anonymous",
                    "anonymous_id": "visitor-1",
                    "name": "looked",
                    "data": {"page": "price"},
                    "timestamp": NEW_YEAR_SECONDS,
                }
            ]
        },
    ),
    Row(
        "track_anonymous as an invitation",
        lambda client: client.track_anonymous(None, "invite", {"recipient": "ann@example.com"}),
        {
            "events": [
                {"kind": "anonymous", "name": "invite", "data": {"recipient": "ann@example.com"}}
            ]
        },
    ),
    Row("batch", lambda client: client.batch(BATCH), BATCH_LEAVES),
    Row(
        "batch with a bad item",
        lambda client: client.batch(operations.HALF_GOOD_BATCH),
        {"customers": [operations.person(id="1")]},
        answers=operations.HALF_GOOD_BATCH_ERRORS,
    ),
)

IN_APP = {"transactional_message_id": 1, "identifiers": {"id": "1"}}
PLAIN_EMAIL = {"transactional_message_id": 1, "to": "bob@example.com", "identifiers": {"id": "1"}}


def with_attachment(request):
    request.attach("bill.txt", "42 EUR")
    return request


SEND_ROWS = (
    *operations.send_rows(api),
    Row(
        "send_email from a plain dict",
        lambda client: client.send_email(PLAIN_EMAIL),
        operations.delivered("email", PLAIN_EMAIL),
    ),
    Row(
        "send_email with an attachment",
        lambda client: client.send_email(with_attachment(api.SendEmailRequest(**PLAIN_EMAIL))),
        operations.delivered("email", {"attachments": {"bill.txt": "NDIgRVVS"}}),
    ),
)

OF_THE_BASE = {
    "close": "ends the session; the tests use it",
    "send_request": "what every other method is made of",
}


@row_tests(TRACK_ROWS)
class Track(ClientTestCase):
    """The Track client: https only."""

    usual_answer: ClassVar = {}

    def connect(self):
        client = CustomerIO(
            support.SITE_ID, support.TRACK_KEY, host=support.HOST, port=support.PORT, retries=0
        )
        self.addCleanup(client.close)
        return client

    def perform(self, step):
        return step(self.client).json()

    def test_refusals_tell_what_is_wrong(self):
        for refusal in operations.TRACK_REFUSALS:
            with self.subTest(refusal.name):
                self.check_refusal(refusal, CustomerIOException)

    def test_missing_credentials_are_refused(self):
        self.client.site_id = self.client.api_key = ""
        with self.assertRaisesRegex(CustomerIOException, rf"(?s)401: .*{operations.UNAUTHORIZED}"):
            self.client.identify("1")
        self.assertEqual([], support.observe("customers"))

    def test_a_suppressed_person_stays_away_until_unsuppressed(self):
        self.client.suppress("1")
        self.client.identify("1", plan="pro")
        self.client.track("1", "signup")
        self.assertEqual(([], []), (support.observe("customers"), support.observe("events")))
        self.client.unsuppress("1")
        self.client.identify("1", plan="pro")
        self.assertEqual(["1"], [person["id"] for person in support.observe("customers")])

    def test_an_event_sent_twice_with_one_id_counts_once(self):
        for _ in range(2):
            self.client.track("1", "signup", id=ULID)
        self.assertEqual([ULID], [event["id"] for event in support.observe("events")])

    def test_deleting_the_unknown_is_no_error(self):
        for step in (
            lambda client: client.delete("nobody"),
            lambda client: client.delete_device("nobody", "token"),
        ):
            self.assertEqual({}, self.perform(step))

    def test_merging_into_the_unknown_changes_nothing(self):
        self.perform(known("2"))
        self.perform(lambda client: client.merge_customers("id", "nobody", "id", "2"))
        self.assertEqual(["2"], [person["id"] for person in support.observe("customers")])

    def test_anonymous_events_move_to_the_person_who_turns_out_to_be_the_visitor(self):
        self.client.track_anonymous("visitor-1", "looked")
        self.client.identify("1", anonymous_id="visitor-1")
        self.assertEqual(
            [("1", "looked")], [(e["customer_id"], e["name"]) for e in support.observe("events")]
        )

    def test_a_cio_id_reaches_its_person(self):
        self.client.identify("1")
        cio_id = support.control("customers/1")["cio_id"]
        self.client.identify(f"cio_{cio_id}", email="bob@example.com")
        self.assertEqual(
            [{"id": "1", "email": "bob@example.com", "cio_id": cio_id}],
            [person["identifiers"] for person in support.observe("customers")],
        )

    def test_without_connection_pooling(self):
        self.client.use_connection_pooling = False
        for identifier in ("1", "2"):
            self.client.identify(identifier)
        self.assertEqual(["1", "2"], [person["id"] for person in support.observe("customers")])


class App:
    """The App client over either scheme."""

    scheme = None
    usual_answer = operations.SENT

    def connect(self):
        client = APIClient(support.APP_KEY, url=support.base_url(self.scheme), retries=0)
        self.addCleanup(client.close)
        return client

    def test_refusals_tell_what_is_wrong(self):
        for refusal in operations.APP_REFUSALS:
            with self.subTest(refusal.name):
                self.check_refusal(refusal, CustomerIOException)
        self.assertEqual([], support.observe("deliveries"))

    def test_a_missing_key_is_refused(self):
        self.client.key = ""
        with self.assertRaisesRegex(CustomerIOException, rf"(?s)401: .*{operations.UNAUTHORIZED}"):
            self.client.send_in_app(IN_APP)

    def test_a_base_url_may_end_in_a_slash(self):
        self.client.url += "/"
        self.client.send_in_app(IN_APP)
        self.assertEqual(
            ["in_app"], [delivery["channel"] for delivery in support.observe("deliveries")]
        )

    def test_the_answer_names_the_delivery(self):
        answer = self.client.send_in_app(IN_APP)
        delivery = support.control(f"deliveries/{answer['delivery_id']}")
        self.assertEqual(
            ("in_app", answer["delivery_id"]), (delivery["channel"], delivery["delivery_id"])
        )

    def test_a_send_makes_an_unknown_recipient_known(self):
        self.client.send_in_app(IN_APP)
        self.assertEqual(["1"], [person["id"] for person in support.observe("customers")])


@row_tests(SEND_ROWS)
class AppOverHttp(App, ClientTestCase):
    scheme = "http"


@row_tests(SEND_ROWS)
class AppOverHttps(App, ClientTestCase):
    scheme = "https"


class TrackCoverage(CoverageChecks, unittest.TestCase):
    clients: ClassVar = {"": CustomerIO}
    rows = TRACK_ROWS
    left_out: ClassVar = {
        **OF_THE_BASE,
        "setup_base_url": "run by the constructor",
        "get_customer_query_string": "builds a URL, sends nothing",
        "get_device_query_string": "builds a URL, sends nothing",
        "get_event_query_string": "builds a URL, sends nothing",
        "get_events_query_string": "builds a URL, sends nothing",
        "is_valid_id_type": "a check inside the client",
    }


class AppCoverage(CoverageChecks, unittest.TestCase):
    clients: ClassVar = {"": APIClient}
    rows = SEND_ROWS
    left_out: ClassVar = OF_THE_BASE


if __name__ == "__main__":
    unittest.main()
