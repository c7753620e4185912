"""What the suites share: the control side of the fake, the table row, and how a row is checked."""

import base64
import inspect
import json
import os
import re
import tempfile
import unittest
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Callable, ClassVar, Mapping, Optional, Tuple
from unittest import mock
from urllib.parse import urlsplit

FAKE_URL = os.environ.get("CUSTOMERIO_FAKE_URL", "http://127.0.0.1:4668")
ADDRESS = urlsplit(FAKE_URL)
HOST, PORT = ADDRESS.hostname, ADDRESS.port or 4668

SITE_ID, TRACK_KEY, APP_KEY = "test-site", "test-track-key", "test-app-key"

USUAL = object()  # an answer as the suite's own class describes it


def base_url(scheme):
    return f"{scheme}://{HOST}:{PORT}"


# The control side ------------------------------------------------------------------------------

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

# Where the key of a listing's records is not the listing's own name.
RECORDS_KEY = {"pipeline-events": "events"}


def fetch(method, path, payload=None, headers=()):
    """One plain request to the fake; returns the body's bytes."""
    body = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(base_url("http") + path, body, dict(headers), method=method)
    request.add_header("Content-Type", "application/json")
    with _direct.open(request, timeout=10) as answer:
        return answer.read()


def reset():
    fetch("POST", "/__parlel/reset", {})


def seed(document):
    """Make the workspace hold what a document says, and every reset return to that."""
    fetch("POST", "/__parlel/seed", document)


def control(path):
    return json.loads(fetch("GET", f"/__parlel/{path}"))


def app(method, path, payload=None):
    """One App API request, for what the control side does not list."""
    return json.loads(
        fetch(method, path, payload, {"Authorization": f"Bearer {APP_KEY}"}) or "null"
    )


def track(method, path, payload=None):
    """One Track API request, for preparing what a suite's own client has no call for."""
    pair = base64.b64encode(f"{SITE_ID}:{TRACK_KEY}".encode()).decode()
    return json.loads(fetch(method, path, payload, {"Authorization": f"Basic {pair}"}) or "null")


def observe(place):
    """The records of a control listing or, for a path of the App API, what that path answers."""
    if not place.startswith("/v1/"):
        return control(place)[RECORDS_KEY.get(place, place)]
    try:
        return app("GET", place)
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return None


# Trust -----------------------------------------------------------------------------------------


def trust_the_fake():
    """Make requests and httpx trust the fake's certificate until the module's tests are over."""
    authority = os.environ.get("CUSTOMERIO_FAKE_CA") or _downloaded_authority()
    environment = {
        "REQUESTS_CA_BUNDLE": authority,
        "SSL_CERT_FILE": authority,
        # A proxy of the machine that runs the tests must not stand between client and fake.
        "no_proxy": HOST,
    }
    patch = mock.patch.dict(os.environ, environment)
    patch.start()
    unittest.addModuleCleanup(patch.stop)


def _downloaded_authority():
    with tempfile.NamedTemporaryFile(suffix=".pem", delete=False) as file:
        unittest.addModuleCleanup(os.unlink, file.name)
        file.write(fetch("GET", "/__parlel/ca.pem"))
    return file.name


# Rows ------------------------------------------------------------------------------------------

Step = Callable[[object], object]


@dataclass(frozen=True)
class Row:
    """One call of a client and what it must leave behind in the fake."""

    #: The client's method, then words that tell its rows apart.
    name: str
    call: Step
    #: Place to observe -> what it must hold afterwards, and must not hold before the call.
    leaves: Optional[Mapping[str, object]] = None
    given: Tuple[Step, ...] = ()
    answers: object = USUAL

    @property
    def method(self):
        return self.name.split()[0]

    @property
    def test_name(self):
        return "test_" + re.sub(r"\W+", "_", self.name)


@dataclass(frozen=True)
class Refusal:
    """One call the fake must refuse, and what the client's own exception must tell of it."""

    name: str
    call: Step
    status: int
    says: str


def row_tests(rows):
    """Class decorator: one test method per row."""

    def add(case):
        for row in rows:
            if hasattr(case, row.test_name):
                raise ValueError(f"two rows are called {row.name!r}")
            setattr(case, row.test_name, lambda self, row=row: self.check_row(row))
        return case

    return add


def differences(expected, actual, place=""):
    """Where `actual` lacks something of `expected`.

    A dict may hold more than is expected, a list may not; an empty dict must be empty.
    """
    if isinstance(expected, dict) and expected and isinstance(actual, dict):
        for key, value in expected.items():
            yield from differences(value, actual.get(key), f"{place}.{key}")
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for index, pair in enumerate(zip(expected, actual)):
            yield from differences(*pair, f"{place}[{index}]")
    elif expected != actual:
        yield f"{place}: expected {expected!r}, got {actual!r}"


class ClientTestCase(unittest.TestCase):
    """A suite of one client: `connect` makes it, `perform` runs one step with it."""

    usual_answer = None

    def setUp(self):
        reset()
        self.client = self.connect()

    def connect(self):
        raise NotImplementedError

    def perform(self, step):
        return step(self.client)

    def check_row(self, row):
        for step in row.given:
            self.perform(step)
        if row.leaves:
            self.assertTrue(self.unmet(row.leaves), "the effect is there before the call")
        answer = self.perform(row.call)
        expected = self.usual_answer if row.answers is USUAL else row.answers
        self.assertEqual([], list(differences(expected, answer, "answer")))
        self.assertEqual([], self.unmet(row.leaves or {}))

    def check_refusal(self, refusal, exception):
        with self.assertRaises(exception) as raised:
            self.perform(refusal.call)
        message = str(raised.exception)
        self.assertRegex(message, rf"\b{refusal.status}: ")
        self.assertIn(refusal.says, message)

    def unmet(self, leaves):
        return [
            line
            for place, expected in leaves.items()
            for line in differences(expected, observe(place), place)
        ]


# Coverage --------------------------------------------------------------------------------------


def public_methods(client, prefix=""):
    return {
        prefix + name
        for name, _ in inspect.getmembers(client, callable)
        if not name.startswith("_")
    }


class CoverageChecks:
    """Mixin: every public method of `clients` is in a row or left out for a stated reason."""

    clients: ClassVar = {}  # prefix of the method in row names -> class
    rows = ()
    left_out: ClassVar = {}

    def test_every_public_method_has_a_row_or_a_reason(self):
        offered = set().union(
            *(public_methods(client, prefix) for prefix, client in self.clients.items())
        )
        covered = {row.method for row in self.rows}
        self.assertEqual(set(), covered & set(self.left_out), "both covered and left out")
        self.assertEqual(offered, covered | set(self.left_out))
