"""Tests of customerio_fake, with the standard library alone.

Most ask the socketless core (`Fake.handle`); what is about the wire opens real sockets, always
on a free port, so that several runs side by side don't meet.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import csv
import datetime
import email
import enum
import errno
import functools
import gc
import gzip
import hashlib
import hmac
import http.client
import http.server
import io
import itertools
import json
import logging
import math
import os
import pathlib
import re
import select
import shlex
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest
import urllib.error
import urllib.request
import warnings
import weakref
import zlib
import zoneinfo
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, ClassVar, Dict, Iterator, List, NamedTuple, Optional, Tuple, cast
from unittest import mock
from urllib.parse import quote, unquote, urlsplit

import customerio_fake
from customerio_fake import (
    LIQUID_FILTERS,
    LIQUID_TAGS,
    ROUTES,
    ApiError,
    Budget,
    CustomerioServer,
    Fake,
    LiquidError,
    LiquidLimits,
    MissingVariable,
    Request,
    Settings,
    cio_id_of,
    compile_filter,
    delivery_id_of,
    iana_zone,
    serial_of,
    ulid,
)

#: The keys for `verify`, before the next lines take them away.
GIVEN_KEYS = {name: os.environ.get(f"CUSTOMERIO_{name}", "") for name in
              ("SITE_ID", "API_KEY", "APP_KEY", "WRITE_KEY")}  # fmt: skip
# What the settings and `urllib` read belongs to whoever runs the tests.
for name in list(os.environ):
    if name in ("HOST", "PORT", "PYTHONUNBUFFERED") or re.match(
        r"CUSTOMERIO_|.*_proxy$", name, re.I
    ):
        del os.environ[name]

TRACK = "Basic " + base64.b64encode(b"site:key").decode()
WRITE = "Basic " + base64.b64encode(b"write-key:").decode()
APP = "Bearer app-key"
#: Bare Windows has no time zones, and Python brings none along.
with_zones = unittest.skipUnless(iana_zone("Etc/UTC"), "no time zones: pip install tzdata")


class Reply:
    """A response with what tests ask of it."""

    def __init__(self, response: customerio_fake.Response) -> None:
        self.status, self.body = response.status, response.body
        self.headers = {name.lower(): value for name, value in response.headers}

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """Why nothing happened, as the response header tells."""
        return self.headers.get("x-parlel-reason", "")


def credentials(path: str) -> str:
    """What a client would send for this path."""
    if path.startswith("/api/"):
        return TRACK
    pipelines = re.match(r"/v1/(identify|track|page|screen|group|alias|batch)$", path)
    return WRITE if pipelines else APP


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """What is freed in here is freed by counting references alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def is_owned(lock: Any) -> bool:
    """Whether this thread holds an RLock."""
    return bool(lock._is_owned())


class FakeTest(unittest.TestCase):
    """A fake without a socket, fresh for each test."""

    settings: dict[str, Any] = {}

    def setUp(self) -> None:
        self.fake = Fake(Settings(**self.settings))

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Send one request; `body` is JSON unless it is bytes."""
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        fields = {"authorization": credentials(path), "host": "localhost:4668"}
        queue = r"/api/v(1/(logs/|messages/|users)|2/users|[34]/)"
        if re.match(queue, path):
            fields["x-cio-site-id"] = "site"  # the SDKs' own, for their queue
        fields.update({name.replace("_", "-"): value for name, value in headers.items()})
        fields = {name: value for name, value in fields.items() if value}
        return Reply(self.fake.handle(Request(method, path, fields, raw)))

    def ok(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Send one request that must succeed; gives the JSON answer."""
        reply = self.call(method, path, body, **headers)
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json

    def identify(self, identifier: str, **attributes: Any) -> Reply:
        return self.call("PUT", f"/api/v1/customers/{identifier}", attributes)

    def records(self, name: str, query: str = "") -> Any:
        """What a control list shows."""
        answer = self.ok("GET", f"/__parlel/{name}{query}")
        return answer["events" if name == "pipeline-events" else name]

    def person(self, identifier: str) -> Any:
        return self.ok("GET", f"/__parlel/customers/{identifier}")

    def attributes(self, identifier: str, id_type: str = "id") -> Any:
        path = f"/v1/customers/{identifier}/attributes?id_type={id_type}"
        return self.ok("GET", path)["customer"]["attributes"]

    def assert_errors(self, reply: Reply, status: int, *words: str) -> None:
        """A 4xx whose sentence has all these words in it, and nobody was stored."""
        self.assertEqual(reply.status, status, reply.body)
        text = reply.body.decode()
        for word in words:
            self.assertIn(word, text)


class Smoke(unittest.TestCase):
    """One round through all three APIs over a real socket."""

    def test_a_person_travels_through_all_three_apis(self) -> None:
        with CustomerioServer(port=0) as cio:
            self.send(cio.track_url + "/customers/1", {"email": "ada@example.com"}, TRACK, "PUT")
            self.send(cio.track_url + "/customers/1/events", {"name": "signup"}, TRACK)
            message = {
                "to": "ada@example.com",
                "transactional_message_id": "welcome",
                "identifiers": {"id": "1"},
            }
            sent = self.send(cio.app_url + "/send/email", message, APP)
            found = self.send(cio.app_url + "/customers?email=ADA@example.com", None, APP, "GET")
            self.send(cio.pipelines_url + "/track", {"userId": "1", "event": "bought"}, WRITE)
            self.assertEqual(found["results"][0]["id"], "1")
            self.assertEqual(cio.people[0]["attributes"], {"email": "ada@example.com"})
            self.assertEqual(cio.events[0]["name"], "signup")
            self.assertEqual(cio.deliveries[0]["delivery_id"], sent["delivery_id"])
            self.assertEqual(cio.pipeline_events[0]["event"], "bought")
            cio.reset()
            self.assertEqual((cio.people, cio.events, cio.deliveries), ([], [], []))

    def send(self, url: str, body: Any, authorization: str, method: str = "POST") -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": authorization, "Content-Type": "application/json"}
        request = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)


def used_by(statement: ast.stmt) -> set[str]:
    """The names of the module that a statement at its top uses, anywhere in it."""
    import symtable  # here, because PyPy has none

    tables, names = [symtable.symtable(ast.unparse(statement), "module", "exec")], quoted(statement)
    while tables:
        table = tables.pop()
        tables += table.get_children()
        symbols = [symbol for symbol in table.get_symbols() if symbol.is_referenced()]
        # From 3.12 on the module's table has the variables of its comprehensions, too.
        top = table.get_type() == "module"
        known = [s for s in symbols if not (top and s.is_assigned())]
        names |= {symbol.get_name() for symbol in known if top or symbol.is_global()}
    return names


def quoted(statement: ast.stmt) -> set[str]:
    """The names in annotations that are strings."""
    notes: list[Optional[ast.AST]] = []
    for part in ast.walk(statement):
        if isinstance(part, ast.FunctionDef):
            notes.append(part.returns)
        elif isinstance(part, (ast.arg, ast.AnnAssign)):
            notes.append(part.annotation)
        elif isinstance(part, ast.Call) and getattr(part.func, "id", "") == "cast":
            notes.append(part.args[0])
    parts = [part for note in notes if note for part in ast.walk(note)]
    texts = [part.value for part in parts if isinstance(part, ast.Constant)]
    trees = [ast.parse(text) for text in texts if isinstance(text, str)]
    return {p.id for tree in trees for p in ast.walk(tree) if isinstance(p, ast.Name)}


class Section(NamedTuple):
    """What stands below one banner."""

    name: str
    statements: list[ast.stmt]

    @property
    def defined(self) -> set[str]:
        """The names that the module has from here."""
        return {name for statement in self.statements for name in names_of(statement)}


def names_of(statement: ast.stmt) -> list[str]:
    """What a statement at the top of a module names."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, (ast.AnnAssign, ast.For)) else targets
    parts = [part for target in targets for part in ast.walk(target)]
    stored = [part for part in parts if isinstance(part, ast.Name)]
    return [part.id for part in stored if isinstance(part.ctx, ast.Store)]


@functools.lru_cache(None)
def sections(path: str) -> list[Section]:
    """The sections of a file, in order."""
    with open(path, encoding="utf-8") as file:
        source = file.read()
    lines = source.split("\n")
    found = [Section("", [])]
    banners = [(n, line[7:]) for n, line in enumerate(lines, 1) if line.startswith("# ==== ")]
    for statement in ast.parse(source).body:
        while banners and banners[0][0] < statement.lineno:
            found.append(Section(banners.pop(0)[1], []))
        found[-1].statements.append(statement)
    return found


class House(unittest.TestCase):
    """The module keeps the promises that its docstring makes."""

    #: What tests drive: the one place that has a name for everything.
    FACADE = {"View", "CustomerioServer"}

    def test_the_index_names_the_sections_in_order(self) -> None:
        banners = [section.name for section in sections(customerio_fake.__file__)[1:]]
        index = re.findall(r"^ {4,5}(\d+ {2}\S.*?) {2,}", customerio_fake.__doc__ or "", re.M)
        self.assertEqual([f"§{line}".replace("  ", " ") for line in index], banners)

    def test_the_tests_stand_in_the_order_of_what_they_test(self) -> None:
        banners = [section.name for section in sections(customerio_fake.__file__)[1:]]
        mine = [section.name for section in sections(__file__)[1:]]
        self.assertEqual(mine, banners)

    @unittest.skipUnless(sys.implementation.name == "cpython", "PyPy has no symtable")
    def test_a_section_uses_only_the_sections_above_it(self) -> None:
        later: dict[str, int] = {}
        rooms = sections(customerio_fake.__file__)
        for number, section in enumerate(rooms):
            for name in section.defined:
                later.setdefault(name, number)
        early = {
            (by, name)
            for number, section in enumerate(rooms)
            for statement in section.statements
            for name in used_by(statement)
            if later.get(name, 0) > number
            for by in names_of(statement) or [section.name]
        }
        self.assertEqual(early, set())

    def test_no_name_is_given_twice(self) -> None:
        rows = [s for room in sections(customerio_fake.__file__) for s in room.statements]
        made = (ast.FunctionDef, ast.ClassDef, ast.AnnAssign, ast.Assign)
        names = [name for row in rows if isinstance(row, made) for name in names_of(row)]
        twice = {name for name in names if names.count(name) > 1}
        self.assertEqual(twice, set())

    def test_what_people_own_has_a_keeper(self) -> None:
        derived = {"emailed"}  # from the deliveries, whenever it is asked for
        owned = customerio_fake.Belongings()
        names = {*type(owned).__slots__} - derived
        self.assertEqual(names, {*customerio_fake.OWNED})
        for name, part in customerio_fake.OWNED.items():
            self.assertEqual(len(getattr(owned, name)), 0, name)
            self.assertTrue(issubclass(customerio_fake.PARTS[part], customerio_fake.Keeper), name)

    def test_no_function_fills_a_page(self) -> None:
        for room in sections(customerio_fake.__file__):
            for row in (part for s in room.statements for part in ast.walk(s)):
                if isinstance(row, ast.FunctionDef):
                    lines = (row.end_lineno or 0) - row.body[0].lineno + 1
                    self.assertLessEqual(lines, 40, row.name)

    def test_no_class_is_a_city(self) -> None:
        rows = [s for room in sections(customerio_fake.__file__) for s in room.statements]
        for row in rows:
            if isinstance(row, ast.ClassDef):
                self.assertLessEqual((row.end_lineno or 0) - row.lineno + 1, 450, row.name)
                methods = {part.name for part in row.body if isinstance(part, ast.FunctionDef)}
                public = [name for name in methods if not name.startswith("_")]
                if row.name not in self.FACADE:
                    self.assertLessEqual(len(public), 30, row.name)

    def test_all_names_are_there_and_sorted(self) -> None:
        names = customerio_fake.__all__
        self.assertEqual(names, sorted(names))
        for name in names:
            self.assertTrue(getattr(customerio_fake, name).__doc__, name)

    def test_only_the_standard_library_is_imported(self) -> None:
        with open(customerio_fake.__file__, encoding="utf-8") as file:
            source = file.read()
        modules = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add((node.module or "").partition(".")[0])
        known = set(getattr(sys, "stdlib_module_names", modules))
        self.assertEqual(modules - known - {"__future__"}, set())

    def test_no_date_is_the_platform_s(self) -> None:
        """On Windows it refuses what is before 1970 or after 3000."""
        with open(customerio_fake.__file__, encoding="utf-8") as file:
            calls = [
                node for node in ast.walk(ast.parse(file.read())) if isinstance(node, ast.Call)
            ]
        names = {ast.unparse(call.func).rpartition(".")[2] for call in calls}
        theirs = {"fromtimestamp", "utcfromtimestamp", "gmtime", "localtime", "mktime", "ctime"}
        self.assertEqual(names & theirs, set())

    def test_every_route_says_what_it_does(self) -> None:
        for operation in ROUTES:
            self.assertTrue(operation.summary.endswith("."), operation.path)

    def test_no_two_routes_are_the_same(self) -> None:
        keys = [(row.method, re.sub(r"{\w+}", "{}", row.path)) for row in ROUTES]
        self.assertEqual(len(keys), len(set(keys)))


class Published(unittest.TestCase):
    """The service's own numbers."""

    #: As the documentation has them: bytes, seconds, and how many.
    LIMITS: ClassVar[Dict[str, Any]] = {
        "MAX_IDENTIFIER": 150, "MAX_ATTRIBUTE_NAME": 150, "MAX_ATTRIBUTE_VALUE": 1000,
        "MAX_ATTRIBUTES": 300, "MAX_EVENT_NAME": 100, "MAX_EVENT_DATA": 100_000,
        "MAX_OBJECT_ATTRIBUTES": 100_000, "MAX_SEGMENT_IDS": 1000, "MAX_ENTITY": 32_768,
        "MAX_BATCH": 512_000, "MAX_PIPELINES_CALL": 32_768, "MAX_PIPELINES_BATCH": 512_000,
        "MAX_SEND_AHEAD": 7_776_000, "MAX_RECIPIENTS": 15, "MAX_ATTACHMENTS": 2_000_000,
        "MAX_SEND": 1_000_000, "MAX_FILE": 100_000_000, "MAX_AUDIENCE": 10_000,
        "MAX_TRIGGER_DATA": 50_000, "MAX_TRIGGER": 25_000_000, "MAX_USER_DATA": 2_000_000,
        "MAX_COLLECTIONS": 50, "MAX_COLLECTION": 10_000_000, "MAX_COLLECTION_ROW": 10_000,
        "MAX_SNIPPETS": 5_000_000, "MAX_INDEX_CHANGES": 100, "MAX_VARIANTS": 50,
        "MAX_EMAIL": 2_097_152,
        "MAX_ASSET": 2_097_152, "MAX_ASSET_SIDE": 4096, "MAX_JOURNEY_ATTRIBUTES": 100,
        "EVENT_MEMORY": 2_592_000, "ANONYMOUS_GRACE": 300, "TOKEN_LIFE": 86_400,
        "LINK_LIFE": 900, "LIVE_LIFE": 21_600, "MESSAGE_WINDOW": 15_811_200,
        "OLDEST_TRIGGER": 259_200, "LONGEST_GOAL": 7_776_000, "LEAST_INTERVAL": 60,
        "FILTER_PATIENCE": 1800, "CLIPPED_AT": 104_448, "WEBHOOK_TIMEOUT": 4,
        "WEBHOOK_LIFE": 604_800, "CALL_RETRIES": 11, "CALL_TIMEOUT": 16, "PULL_RATE": 10,
        "POLLING": 10, "HEARTBEAT": 30, "USUAL_WAIT": 5, "MAX_WAIT": 300, "MAX_DEPTH": 200,
        "MAX_BRANCHES": 40, "CLOCK_PATIENCE": 10, "MAX_FIELDS": 100, "MAX_BUCKETS": 100_000,
        "IN_APP_PORTS": (3010, 3009, 9998),
        "PERIODS": {"hours": 24, "days": 45, "weeks": 12, "months": 121},
        "REVIEW_WEIGHTS": {"error": 20, "warning": 10, "tip": 5},
        "_SLOW_STATUSES": {400, 401, 402, 403, 404, 405, 410, 429, 500, 502, 521},
        "_SLOW_RETRY": 3600, "_QUICK_RETRY": 10, "_SLOWEST_RETRY": 86_400,
    }  # fmt: skip

    def test_limits(self) -> None:
        for name, value in self.LIMITS.items():
            self.assertEqual(getattr(customerio_fake, name), value, name)

    def test_rates(self) -> None:
        studio = "POST /v1/design_studio/emails/1"
        rows = [
            ("POST /v1/campaigns/1/triggers", 1, 10),
            ("POST /v1/send/email", 3000, 3),
            ("GET /v1/messages/m/archived_message", 100, 86_400),
            (f"{studio}/publish", 5, 1),
            (f"{studio}/languages/es/preview", 5, 1),
            ("GET /v1/campaigns/1/triggers", 10, 1),
            (studio, 10, 1),
        ]
        for line, most, period in rows:
            rate = next(row for row in customerio_fake.RATES if row.pattern.fullmatch(line))
            self.assertEqual((rate.most, rate.period), (most, period), line)


WRITES = [row for row in ROUTES if row.method in ("POST", "PUT", "PATCH")]


class SeededTest(FakeTest):
    """A workspace as somebody might have made it in the web app."""

    SEED: dict[str, Any] = {
        "customers": [
            {"id": "ada", "attributes": {"email": "ada@example.com", "plan": "pro"}},
            {"id": "bob", "attributes": {"email": "bob@example.com", "plan": "free"}},
        ],
        "segments": [
            {"id": 1, "name": "Testers", "ids": ["ada"]},
            {
                "id": 2,
                "name": "Pro",
                "conditions": {"attribute": {"field": "plan", "operator": "eq", "value": "PRO"}},
            },
        ],
        "transactional": [
            {
                "id": 3,
                "name": "Receipt",
                "trigger_name": "receipt",
                "contents": [
                    {"id": 31, "subject": "Order", "body": "<p>{{snippets.footer}}</p>"},
                    {"id": 32, "language": "es", "subject": "Pedido", "body": "hola"},
                ],
            }
        ],
        "campaigns": [
            {
                "id": 1,
                "name": "Welcome",
                "trigger_segment_ids": [2],
                "actions": [{"id": 11, "subject": "Hi"}, {"id": 12, "type": "twilio"}],
            }
        ],
        "broadcasts": [{"id": 20, "name": "Restock", "actions": [{"id": 201, "subject": "Back"}]}],
        "newsletters": [
            {
                "id": 30,
                "name": "March",
                "recipient_segment_ids": [2],
                "contents": [{"id": 301, "subject": "March", "body": "news", "from_id": 5}],
            }
        ],
        "sender_identities": [{"id": 5, "name": "Shop", "email": "shop@example.com"}],
        "snippets": [{"name": "footer", "value": "bye"}, {"name": "spare", "value": "x"}],
        "topics": [
            {"id": 1, "name": "News"},
            {"id": 2, "name": "Ads", "subscribed_by_default": False},
        ],
        "collections": [{"id": 1, "name": "days", "content": [{"day": "monday"}]}],
        "messages": [
            {
                "id": "m1",
                "campaign_id": 1,
                "action_id": 11,
                "customer_id": "ada",
                "created": 1_700_000_000,
                "metrics": {"sent": 1_700_000_000, "clicked": 1_700_003_600},
            }
        ],
    }

    def setUp(self) -> None:
        self.fake = Fake(Settings(**self.settings), self.SEED)

    def status(self, method: str, path: str, body: Any = None) -> int:
        return self.call(method, path, body).status


class AtTheLimit(SeededTest):
    """What is just within a published limit is taken; one more is refused, and changes nothing."""

    def padded(self, document: Any, size: int) -> bytes:
        """A document as JSON of this many bytes."""
        return json.dumps(document).encode().ljust(size)

    def test_one_more_is_too_much(self) -> None:
        self.fake.workspace.clock.freeze()
        ahead = self.fake.workspace.seconds() + 90 * 86_400
        mail = {"to": "a@b.cd", "identifiers": {"id": "ada"}, "transactional_message_id": 3}
        ada, person = "/api/v1/customers/ada", {"type": "person", "action": "identify"}
        person["identifiers"] = cast(Any, {"id": "ada"})
        event, snippets, send = f"{ada}/events", "/v1/snippets", "/v1/send/email"
        mails = [",".join(["a@b.cd"] * count) for count in (15, 16)]
        files = [base64.b64encode(b"x" * size).decode() for size in (2_000_000, 2_000_001)]
        rows: list[Any] = [
            ("PUT", ada, {"n" * 150: 1}, {"n" * 151: 1}, 400),
            ("PUT", ada, {"a": "v" * 1000}, {"a": "v" * 1001}, 400),
            ("PUT", "/api/v1/customers/bob", *({f"a{i}": 1 for i in range(n)} for n in (298, 301)),
             400),
            ("POST", event, {"name": "n" * 100}, {"name": "n" * 101}, 400),
            ("POST", event, *({"name": "n", "data": {"a": "b" * n}} for n in (99_992, 99_993)),
             400),
            ("POST", send, *({**mail, "send_at": ahead + n} for n in (0, 1)), 400),
            ("POST", send, *({**mail, "to": to} for to in mails), 400),
            ("POST", send, *({**mail, "cc": to[7:]} for to in mails), 400),
            ("POST", send, *({**mail, "attachments": {"a.txt": file}} for file in files), 413),
            ("POST", snippets, {"name": "s" * 150, "value": "v"}, {"name": "s" * 151, "value": "v"},
             422),
            ("POST", snippets, *({"name": f"s{n}", "value": "v" * n} for n in (16_000, 16_001)),
             422),
            ("POST", "/api/v2/entity", *(self.padded(person, n) for n in (32_768, 32_769)), 400),
            ("POST", "/api/v2/batch",
             *(self.padded({"batch": [person]}, n) for n in (512_000, 512_001)), 400),
        ]  # fmt: skip
        for method, path, fits, exceeds, status in rows:
            with self.subTest(path, fits=str(fits)[:60]):
                self.assertEqual(self.call(method, path, fits).status, 200)
                before = [self.records(name) for name in ("customers", "events", "batches")]
                reply = self.call(method, path, exceeds)
                self.assertEqual(reply.status, status, reply.body)
                after = [self.records(name) for name in ("customers", "events", "batches")]
                self.assertEqual(after, before)
        self.assertEqual(len(self.records("deliveries")), 5)
        for length, status in ((150, 200), (151, 400)):
            self.assertEqual(self.identify("i" * length).status, status)

    def test_attributes_beyond_three_hundred_are_left_out(self) -> None:
        self.identify("x", **{f"a{i}": 1 for i in range(299)})
        self.assertEqual(self.identify("x", b=1).reason, "")
        self.assertEqual(self.identify("x", c=1).reason, "too many attributes: c left out")
        self.assertEqual(len(self.person("x")["attributes"]), 300)


class Endpoint(http.server.BaseHTTPRequestHandler):
    """A webhook endpoint that answers with the statuses it is given, then with 200; 0 hangs up."""

    server: Listening

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, dict(self.headers), body))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if not status:
            return
        self.send_response(status)
        self.send_header("Location", self.path)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


class Listening(http.server.HTTPServer):
    received: list[tuple[str, dict[str, str], bytes]]
    statuses: list[int]
    answer = b"ok"


class DrippingServer(socketserver.ThreadingTCPServer):
    drops: tuple[bytes, bytes]


class TellingServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    answers: dict[str, bytes]
    asked: list[str]
    done: threading.Event


def mail(id: int, subject: str = "s", **more: Any) -> Any:
    """An email in a workflow."""
    return {"id": id, "type": "email", "subject": subject, "body": "<p>b</p>", **more}


def render(source: str, data: Any = None, **options: Any) -> str:
    return customerio_fake.parse_liquid(source).render(data or {}, **options)


TRACK_FIELD = "Authorization: Basic c2l0ZTprZXk="
ADA = b'{"plan":"free","tags":["a","b"]}'
RECORDED = (
    "people", "events", "deliveries", "devices", "objects", "suppressed", "broadcasts",
    "merges", "batches", "pipeline_events",
)  # fmt: skip
#: No answer takes nearly this long; reaching it is a failure.
PATIENCE = 10.0


class WireReply(NamedTuple):
    status: int
    headers: Dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A bare connection: what is sent and received is up to the test."""

    def __init__(
        self, port: int, tls: Optional[ssl.SSLContext] = None, name: str = "localhost"
    ) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket, server_hostname=name)
        except OSError:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def send(self, *pieces: bytes) -> Wire:
        for piece in pieces:
            self.socket.sendall(piece)
        return self

    def end(self) -> Wire:
        """Say that nothing more will come, unless the server has gone already."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        """Go away the rude way."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def reply(self, method: str = "GET") -> WireReply:
        line = self.file.readline().decode("latin-1")
        version, _, rest = line.partition(" ")
        if version != "HTTP/1.1":
            raise AssertionError(f"expected a status line, got {line!r}")
        headers = {}
        for field in iter(self.file.readline, b"\r\n"):
            name, colon, value = field.decode("latin-1").partition(": ")
            assert colon and value.endswith("\r\n"), field
            headers[name.lower()] = value.strip()
        length = 0 if method == "HEAD" else int(headers.get("content-length", "0"))
        return WireReply(int(rest[:3]), headers, self.file.read(length))

    def ended(self) -> bool:
        """Whether the server has nothing more to say and closes."""
        try:
            return self.file.read(1) == b""
        except ConnectionError:
            return True


def message(
    method: str, path: str, body: Optional[bytes] = None, *fields: str, version: str = "1.1"
) -> bytes:
    """A request; with the Track credentials unless it brings its own."""
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *fields]
    if not any(field.lower().startswith("authorization") for field in fields):
        lines.append(TRACK_FIELD)
    if body is not None and not any("transfer-encoding" in f.lower() for f in fields):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def identify(body: bytes = ADA, *fields: str, who: str = "ada", version: str = "1.1") -> bytes:
    return message("PUT", f"/api/v1/customers/{who}", body, *fields, version=version)


HEALTH = message("GET", "/health")
PEOPLE = message("GET", "/__parlel/customers")  # served by a thread


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true while anybody would wait for it."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def waiting_threads() -> List[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "customerio-fake-waiting"]


class Listener(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: List[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class WireTestCase(unittest.TestCase):
    """A server for each class, emptied for each test; no test may make it log a failure."""

    settings: ClassVar[Dict[str, Any]] = {}
    server: CustomerioServer

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = CustomerioServer(port=0, **cls.settings).start()
        cls.addClassCleanup(cls.server.stop)

    def setUp(self) -> None:
        self.server.reset()
        self.listener = Listener()
        logger, level = customerio_fake.log, customerio_fake.log.level
        logger.addHandler(self.listener)
        logger.setLevel(logging.INFO)
        self.addCleanup(logger.setLevel, level)
        self.addCleanup(logger.removeHandler, self.listener)
        hook = mock.patch.object(threading, "excepthook", self.thread_died)
        hook.start()
        self.addCleanup(hook.stop)
        self.addCleanup(self.check_log)

    def thread_died(self, arguments: Any) -> None:
        logging.getLogger("customerio_fake").error("a thread died", exc_info=arguments[:3])

    def check_log(self) -> None:
        for record in self.listener.records:
            self.assertLess(record.levelno, logging.ERROR, record.getMessage())
            self.assertIsNone(record.exc_info, record.getMessage())
            self.assertNotIn("Traceback", record.getMessage())

    def dial(
        self, tls: Optional[ssl.SSLContext] = None, port: int = 0, name: str = "localhost"
    ) -> Wire:
        wire = Wire(port or self.server.port, tls, name)
        self.addCleanup(wire.close)
        return wire

    def ask(self, *pieces: bytes) -> WireReply:
        """The answer to one request on a connection of its own."""
        with Wire(self.server.port) as wire:
            return wire.send(*pieces).reply()

    def state(self) -> Dict[str, Any]:
        return {name: getattr(self.server, name) for name in RECORDED}

    def assert_unharmed(self, before: Dict[str, Any]) -> None:
        """The server recorded nothing, and still answers in both of its ways."""
        self.assertEqual(self.state(), before)
        with Wire(self.server.port) as wire:
            self.assertEqual(wire.send(HEALTH, PEOPLE).reply().status, 200)
            self.assertEqual(wire.reply().json["count"], len(before["people"]))

    def assert_json_error(self, reply: WireReply, status: int) -> None:
        self.assertEqual(reply.status, status, reply.body)
        self.assertTrue(reply.headers["content-type"].startswith("application/json"))
        self.assertTrue(reply.json, "an error says something")


def run_command(*arguments: str, **environment: str) -> Tuple[int, str, str]:
    """Exit code, stdout and stderr of what the command line does and ends by itself."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(mock.patch("signal.signal"))
        stack.enter_context(mock.patch("logging.basicConfig"))
        try:
            code = customerio_fake.main(arguments)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    return code, out.getvalue(), err.getvalue()


# ======================================================================================
# ==== §1 Errors
# ======================================================================================


class Envelopes(FakeTest):
    """How each API says what is wrong."""

    def test_what_is_about_no_field_names_none(self) -> None:
        text = "invalid JSON: Expecting value at line 1, column 1"
        problem = {"reason": "parse_error", "field": "", "message": text}
        meta = {"meta": {"error": text}}
        rows = [
            ("/api/v1/customers/1/events", {"meta": {"errors": [text]}}),
            ("/api/v2/entity", {"errors": [problem], **meta}),
            ("/v1/customers", {"errors": [{"detail": text, "status": "400"}], **meta}),
            ("/v1/identify", {"code": 400, "message": text, "errors": [problem], **meta}),
        ]
        for path, answer in rows:
            with self.subTest(path):
                reply = self.call("POST", path, b"]")
                self.assertEqual((reply.status, reply.json), (400, answer))


# ======================================================================================
# ==== §2 Clock and identifiers
# ======================================================================================


class Identifiers(unittest.TestCase):
    """Ids in Customer.io's own formats."""

    def test_a_cio_id_leads_back_to_its_serial_number(self) -> None:
        for serial in (0, 1, 127, 128, 16383, 16384, 1_000_000):
            self.assertEqual(serial_of(cio_id_of(serial)), serial)

    def test_what_is_no_cio_id_has_no_serial_number(self) -> None:
        for text in ("", "1", "zz", "00", "dcb1060000", "ff" * 50):
            self.assertIsNone(serial_of(text), text)

    def test_a_delivery_id_is_26_bytes_with_a_ulid_at_the_end(self) -> None:
        raw = base64.urlsafe_b64decode(delivery_id_of(1625242481.046, 1, "transactional"))
        self.assertEqual((len(raw), raw[:2], raw[8]), (26, b"\x76\x03", 5))
        self.assertEqual(int.from_bytes(raw[10:16], "big"), 1625242481046)

    def test_a_delivery_id_tells_what_sent_it(self) -> None:
        for kind, byte in (("campaign", 1), ("newsletter", 3), ("broadcast", 3)):
            self.assertEqual(base64.urlsafe_b64decode(delivery_id_of(1.0, 1, kind))[8], byte, kind)

    def test_a_ulid_begins_with_its_moment_and_is_never_repeated(self) -> None:
        ids = {ulid(1625242481.046, serial) for serial in range(10_000)}
        moment = 0
        for letter in min(ids)[:10]:
            moment = moment * 32 + "0123456789ABCDEFGHJKMNPQRSTVWXYZ".index(letter)
        self.assertEqual(({text[:10] for text in ids}, moment), ({min(ids)[:10]}, 1625242481046))
        self.assertEqual(len(ids), 10_000)


# ======================================================================================
# ==== §3 Settings
# ======================================================================================


class Realism(FakeTest):
    """Switches that make the fake as unkind as the real service."""

    def test_unknown_paths_are_html_pages(self) -> None:
        self.fake = Fake(Settings(html_404=True))
        for method, path in (("GET", "/v1/nope"), ("PATCH", "/api/v1/customers/1")):
            reply = self.call(method, path)
            self.assertEqual((reply.status, reply.body[:15]), (404, b"<!DOCTYPE html>"), path)
            self.assertEqual(reply.headers["content-type"], "text/html; charset=utf-8")
        self.assertIn("did you mean GET /v1/exports", self.call("GET", "/v1/export").reason)
        self.assertIn("errors", self.call("GET", "/v1/exports/77").json)
        self.assertIn("error", self.call("GET", "/__parlel/nope").json["meta"])

    def test_fields_that_an_operation_does_not_have_are_refused(self) -> None:
        event = "/api/v1/customers/1/events"
        person = {"type": "person", "action": "identify", "identifiers": {"id": "1"}}
        mail = {"to": "a@example.com", "identifiers": {"id": "1"}, "transactional_message_id": 1}
        call = {"type": "track", "userId": "1", "event": "x"}
        rows: list[tuple[str, Any, Any, str]] = [
            (event, {"name": "x"}, {"dta": {}}, "dta is no field of POST /api/v1/customers/"),
            (event, {"name": "x"}, {"zodiac": 1}, "there are name, id, type"),
            ("/v1/send/email", mail, {"mesage_data": {}}, "did you mean message_data?"),
            ("/v1/track", call, {"propertes": {}}, "did you mean properties?"),
            ("/api/v2/batch", {"batch": [person]}, {"atributes": {}}, "batch[0].atributes is no"),
            ("/v1/batch", {"batch": [call]}, {"evnt": "x"}, "batch[0].evnt is no field"),
        ]
        for strict in (False, True):
            self.fake = Fake(Settings(strict_fields=strict))
            for path, body, more, words in rows:
                with self.subTest(words, strict=strict):
                    self.assertEqual(self.call("POST", path, body).status, 200)
                    wrong = {**body, **more}
                    if "batch" in body:
                        wrong = {"batch": [{**body["batch"][0], **more}]}
                    counts = [len(self.records(n)) for n in ("events", "deliveries", "batches")]
                    reply = self.call("POST", path, wrong)
                    self.assertEqual(reply.status, 400 if strict else 200)
                    if strict:
                        self.assertIn(words, reply.body.decode())
                        after = [len(self.records(n)) for n in ("events", "deliveries", "batches")]
                        self.assertEqual(after, counts)
            self.assertEqual(self.identify("1", zodiac="lion").status, 200)

    def test_no_write_takes_a_field_that_it_does_not_have(self) -> None:
        self.fake = Fake(Settings(strict_fields=True))
        for row in WRITES:
            with self.subTest(f"{row.method} {row.path}"):
                assert row.fields is not None
                reply = self.call(row.method, re.sub(r"\{\w+\}", "1", row.path), {"zodiac": 1})
                if not row.fields.free:
                    self.assert_errors(reply, 400, "zodiac is no field")

    def test_keys_are_unknown_in_the_other_region(self) -> None:
        self.fake = Fake(Settings(region_check=True, region="eu"))
        rows = [("track.customer.io", 401), ("track-eu.customer.io:443", 200), ("localhost", 200)]
        for host, status in rows:
            self.assertEqual(self.call("PUT", "/api/v1/customers/1", {}, host=host).status, status)
        reply = self.call("PUT", "/api/v1/customers/1", {}, host="track.customer.io")
        self.assertIn("wrong region: track.customer.io is in us", reply.reason)

    def test_a_clock_that_was_set_back_ignores_nothing(self) -> None:
        self.fake = Fake(Settings(), {"customers": [{"id": "1", "attributes": {"plan": "a"}}]})
        self.ok("PUT", "/__parlel/clock", {"now": 1_600_000_000, "freeze": True})
        for path, plan in (("clock", "b"), ("reset?only=state", "c")):
            if path != "clock":
                self.ok("POST", f"/__parlel/{path}")
                self.assertEqual(self.person("1")["created_at"], 1_600_000_000)
            self.identify("1", plan=plan)
            self.assertEqual(self.person("1")["attributes"]["plan"], plan)

    def test_a_part_can_be_reset_alone(self) -> None:
        def state() -> Tuple[int, int, int, bool]:
            lists = (len(self.records(name)) for name in ("customers", "requests", "faults"))
            people, requests, faults = lists
            return people, requests, faults, self.ok("GET", "/__parlel/clock")["frozen"]

        self.identify("1")
        self.ok("POST", "/__parlel/faults", {"status": 503})
        self.ok("PUT", "/__parlel/clock", {"freeze": True, "now": 2000000000})
        rows = [("state", (0, 1, 1, True)), ("faults", (0, 1, 0, True))]
        rows += [("journal", (0, 0, 0, True)), ("clock", (0, 0, 0, False))]
        for only, left in rows:
            self.ok("POST", f"/__parlel/reset?only={only}")
            self.assertEqual(state(), left, only)
            if only == "state":
                self.assertEqual(self.ok("POST", "/__parlel/faults", {"status": 500})["id"], 2)
                self.ok("DELETE", "/__parlel/faults/2")
        self.assertEqual(self.identify("1").status, 200)
        reply = self.call("POST", "/__parlel/reset?only=people")
        self.assertEqual(
            (reply.status, "only must be one of: state" in reply.json["meta"]["error"]), (400, True)
        )
        self.assertEqual(state(), (1, 1, 0, False))


# ======================================================================================
# ==== §4 Values
# ======================================================================================

#: Something of each type that is wrong for most fields, and what is nearly right for none.
ODD_VALUES: list[Any] = [[], {}, True, 1.5, -1, "\x00", [[]], {"odd": 1}]


class TimeZones(unittest.TestCase):
    def test_names_are_those_of_the_iana(self) -> None:
        strange: list[Any] = ["Nowhere/Land", "../../etc/passwd", "America", "", None, 5, []]
        for name in strange:
            with self.subTest(name=name):
                self.assertIsNone(iana_zone(name))
        with self.assertRaisesRegex(ApiError, "tz 'Nowhere' is not the name of a time zone"):
            customerio_fake.zone_named("Nowhere")

    def test_a_machine_without_zones_says_so(self) -> None:
        for error in (KeyError, ImportError):  # without tzdata; without what would look for it
            with self.subTest(error), mock.patch("zoneinfo.ZoneInfo", side_effect=error):
                self.assertIsNotNone(iana_zone("UTC"))
                with self.assertRaisesRegex(ApiError, r"Europe/Berlin.*\(.*pip install tzdata\)"):
                    customerio_fake.zone_named("Europe/Berlin")
                with self.assertRaisesRegex(LiquidError, r"Asia/Tokyo.*\(.*pip install tzdata\)"):
                    customerio_fake.parse_liquid("{{ 0 | date: '%H', 'Asia/Tokyo' }}").render({})


class FieldLists(FakeTest):
    """What each operation declares about its body, and what follows from that."""

    #: These look at one field before others, or have words of their own for what is wrong.
    IN_STEPS = (
        "/api/v1/cio_deliveries/events", "/api/v1/merge_customers", "/api/v2/entity",
        "/v1/data_index/attributes", "/v1/data_index/events", "/v1/newsletters",
    )  # fmt: skip

    def test_every_write_has_a_list(self) -> None:
        self.assertGreater(len(WRITES), 80)
        without = [f"{row.method} {row.path}" for row in WRITES if row.fields is None]
        self.assertEqual(without, [])
        free = {row.path: row.fields.free for row in WRITES if row.fields and row.fields.free}
        self.assertLess(len(free), 8)
        self.assertEqual(free["/api/v1/customers/{identifier}"], "attributes, by any name")

    def test_what_is_needed_is_asked_for(self) -> None:
        rows = [row for row in WRITES if "{" not in row.path and row.fields and row.fields.needed]
        self.assertGreater(len(rows), 30)
        for row in rows:
            with self.subTest(f"{row.method} {row.path}"):
                assert row.fields is not None
                body = b"{}" if not row.fields.free else b""
                reply = self.call(row.method, row.path, body)
                self.assertIn(reply.status, (400, 422))
                words = "multipart" if row.fields.free else row.fields.needed[0]
                self.assertIn(words, reply.body.decode())
        for name in ("customers", "events", "deliveries", "objects", "segments"):
            self.assertEqual(self.records(name), [], name)

    def test_what_a_field_can_not_be_is_refused(self) -> None:
        for row in WRITES:
            if "{" in row.path or not row.fields or row.fields.first or row.fields.free:
                continue
            if row.path in self.IN_STEPS:
                continue
            for name, check in row.fields.checks.items():
                odd = next((value for value in ODD_VALUES if check.wrong(value)), None)
                if odd is None:
                    continue
                with self.subTest(f"{row.method} {row.path}", field=name, value=odd):
                    reply = self.call(row.method, row.path, {name: odd})
                    self.assertIn(reply.status, (400, 422))
                    self.assertIn(name, reply.body.decode())

    def test_each_mistake_is_told_once_with_its_place(self) -> None:
        hooks, device = "/v1/reporting_webhooks", "/api/v1/customers/1/devices"
        rows: list[tuple[str, Any, list[str]]] = [
            ("/api/v1/customers/1/events", {"name": ""}, ["name is required: send a string"]),
            ("/api/v1/metrics", {"metric": "sent", "delivery_id": ""},
             ["delivery_id is required: send a string", "metric must be one of: opened"]),
            (device, {"device": {"id": "1"}}, ["device.platform is required: send one of: ios"]),
            ("/api/v1/segments/1/add_customers", {"ids": ["1", {}]},
             ["ids[1] must not be an object: send a whole number or a string"]),
            (hooks, {"name": "x", "endpoint": "x", "events": []},
             ["endpoint must be an http or https URL", "events must be a list of at least one"]),
            ("/v1/customers/1/optouts", {"optouts": [{"from": 1, "optout": True}]},
             ["optouts[0].from must be a string, not a number"]),
        ]  # fmt: skip
        for path, body, starts in rows:
            with self.subTest(path):
                method = "PUT" if path.endswith(("devices", "optouts")) else "POST"
                error = self.call(method, path, body).json
                told = error.get("meta", {}).get("errors") or [r["detail"] for r in error["errors"]]
                self.assertEqual(len(told), len(starts), told)
                for text, start in zip(told, starts):
                    self.assertEqual(text[: len(start)], start)

    def test_the_routes_tell_the_fields(self) -> None:
        listed = self.ok("GET", "/__parlel/routes")["routes"]
        rows = {f"{row['method']} {row['path']}": row for row in listed}
        name = {"type": "a string", "required": True}
        self.assertEqual(rows["POST /v1/snippets"]["fields"]["name"], name)
        self.assertEqual(
            rows["PUT /v1/collections/{collection_id}"]["fields"]["name"]["required"], False
        )
        device = rows["PUT /api/v1/customers/{identifier}/devices"]["fields"]["device"]
        platform = {"type": "one of: ios, android", "required": True}
        self.assertEqual(device["fields"]["platform"], platform)
        self.assertEqual(rows["PUT /__parlel/state"]["free"], "a snapshot")
        self.assertNotIn("fields", rows["GET /v1/exports"])

    def test_a_body_is_decoded_once(self) -> None:
        self.fake = Fake(Settings(strict_fields=True))
        self.ok("POST", "/__parlel/workspaces", {"name": "w1"})
        self.ok("POST", "/__parlel/faults", {"status": 503, "match": {"person": "nobody"}})
        call = {"type": "track", "userId": "1", "event": "x"}
        rows: list[tuple[str, Any]] = [
            ("/api/v1/customers/1/events", {"name": "x"}),
            ("/api/v1/customers/1/events", {"name": "x", "data": {"a": "b" * 70_000}}),
            ("/v1/b", {"writeKey": "k", "batch": [call]}),
            ("/v1/send/email", {"to": "a@example.com"}),
        ]
        for path, body in rows:
            headers = {"authorization": ""} if path == "/v1/b" else {}
            for raw in (json.dumps(body).encode(), b"{"):
                decode = mock.patch.object(
                    customerio_fake, "decode_json", wraps=customerio_fake.decode_json
                )
                with self.subTest(path, raw=raw[:9]), decode as decoder:
                    self.call("POST", path, raw, **headers)
                    self.assertEqual(decoder.call_count, 1)

    def test_no_body_is_read_under_the_lock(self) -> None:
        """A large one would keep everybody else waiting."""
        hook = {"name": "a", "endpoint": "http://127.0.0.1:9/", "events": ["email_sent"]}
        french = {"language": "fr", "subject": "a", "body": "b"}
        owned: list[bool] = []

        def decode(raw: bytes) -> Any:
            owned.append(is_owned(self.fake.workspace.lock))
            return json.loads(raw)

        for row in WRITES:
            self.fake = Fake(Settings())  # which has nearly all that paths may name
            self.ok("POST", "/v1/reporting_webhooks", hook)
            self.ok("POST", "/v1/newsletters/1/test_groups")
            self.ok("POST", "/v1/newsletters/1/test_groups/1/language", french)
            path = re.sub(r"{\w+}", "1", row.path.replace("{language}", "fr"))
            headers = {"authorization": ""} if row.api is customerio_fake.PIPELINES_SDK else {}
            with mock.patch.object(customerio_fake, "decode_json", lambda raw, *_: decode(raw)):
                self.call(row.method, path, {"opened": True}, **headers)
            self.assertNotIn(True, owned, row.path)
        self.assertGreater(len(owned), 70)


class Bodies(FakeTest):
    """What is no JSON, or not the JSON that belongs there."""

    def test_bad_json_is_refused_with_its_place(self) -> None:
        rows = [
            (b"{", "line 1"),
            (b'{"a":1} x', "Extra data"),
            (b'{"a":"\xff"}', "UTF-8"),
            (b"[" * 100_000, "nested"),
            (b'{"a":' * 300 + b"1" + b"}" * 300, "nested"),
            (b'{"a":' + b"9" * 10_000 + b"}", "digits"),
            (b"[1]", "object"),
            (b'"text"', "object"),
            (b"3", "object"),
        ]
        for body, word in rows:
            with self.subTest(body=body[:20]):
                self.assert_errors(self.call("PUT", "/api/v1/customers/1", body), 400, word)
                reply = self.call("POST", "/v1/send/email", body)
                self.assertEqual((reply.status, word in reply.reason), (400, True))
                self.assert_errors(self.call("POST", "/v1/identify", body), 400, word)
        self.assertEqual(self.records("customers"), [])

    def test_what_is_much_is_refused_where_no_file_of_ours_is_read(self) -> None:
        raw = b"[1,2,3,4,5,6,7,8,9]"
        with mock.patch.multiple(customerio_fake, LARGE_JSON=10, MAX_VALUES=5):
            with self.assertRaisesRegex(ApiError, "more than .*, or 5 names and val") as caught:
                customerio_fake.decode_json(raw)
            self.assertEqual(caught.exception.status, 413)
            self.assertEqual(len(customerio_fake.decode_json(raw, bounded=False)), 9)

    def test_two_hundred_levels_are_deep_enough(self) -> None:
        for levels, right in ((199, True), (200, False)):
            raw = b"[[]," + b"[" * levels + b"1" + b"]" * levels + b"]"
            with self.subTest(levels):
                if right:
                    self.assertEqual(customerio_fake.decode_json(raw)[0], [])
                    continue
                with self.assertRaisesRegex(ApiError, "invalid JSON: nested deeper than 200"):
                    customerio_fake.decode_json(raw)

    def test_nothing_and_null_are_an_empty_object(self) -> None:
        for body in (b"", b" \r\n", b"null", b"{}"):
            self.ok("PUT", "/api/v1/customers/1", body)
        self.assertEqual(self.person("1")["attributes"], {})

    def test_nan_is_swallowed_by_track_as_the_real_one_does_and_shown(self) -> None:
        for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
            reply = self.call("PUT", "/api/v1/customers/1", b'{"a":%b}' % number)
            self.assertEqual((reply.status, reply.body), (200, b"{}\n"))
            self.assertIn("not a number", reply.reason)
        self.assertEqual(self.records("customers"), [])
        self.assertEqual(len(self.records("dropped")), 4)
        reply = self.call("POST", "/v1/send/email", b'{"a":NaN}')
        self.assertEqual((reply.status, "NaN" in reply.reason), (400, True))

    def test_lone_surrogates_become_replacement_characters(self) -> None:
        self.ok("PUT", "/api/v1/customers/1", rb'{"a":"x\ud800y","b":"\ud83d\ude00","\udc00":1}')
        expected = {"a": "x\ufffdy", "b": "\U0001f600", "\ufffd": 1}
        self.assertEqual(self.person("1")["attributes"], expected)

    def test_json_under_a_wrong_label_is_welcome_and_other_things_are_not(self) -> None:
        form = "application/x-www-form-urlencoded"
        self.ok("PUT", "/api/v1/customers/1", b'{"a":1}', content_type=form)
        reply = self.call("PUT", "/api/v1/customers/1", b"a=2", content_type=form)
        self.assert_errors(reply, 415, form, "application/json")
        reply = self.call("PUT", "/api/v1/customers/1", b"{", content_type="application/json")
        self.assertEqual(reply.status, 400)
        self.assertEqual(self.person("1")["attributes"], {"a": 1})


class Scanners(unittest.TestCase):
    """What reads users' texts takes time that grows with their size, and no faster."""

    SIZE = 150_000
    TEXTS = (
        "<script>", "<style", "<title>", "<a ", "<!--", "</", "</a ", "<", "<!", "<?", "<a =",
        "<a href='https://x.example/'", '<a href="', '="', "='", '= "', "<a b='\"", "<p it's>",
        "&#1", "&", "\n ", " \n", "<b>", "<a class=x>",
    )  # fmt: skip

    def test_readers_of_html_are_linear(self) -> None:
        for start in ("", '<a href="'):
            for unit in self.TEXTS:
                text = start + unit * (self.SIZE // len(unit))
                with self.subTest(start=start, unit=unit):
                    begin = time.thread_time()
                    self.assertIsInstance(customerio_fake.plain_text(text), str)
                    self.assertIsInstance(customerio_fake.PageReader(text).text, str)
                    self.assertLess(time.thread_time() - begin, 5)  # quadratic: minutes

    def test_nothing_is_lost(self) -> None:
        for unit in self.TEXTS:
            html = f"<p>{unit * 3}</p><a href='x'>y</a>"
            parts = customerio_fake.html_parts(html)
            whole = "".join(p if isinstance(p, str) else p.source for p in parts)
            self.assertEqual(whole, html)

    def test_html_is_read_as_a_browser_reads_it(self) -> None:
        rows = [
            ("<p title='a > b'>x</p>", "x"),
            ("a < b, <3 and <b>c</b>", "a < b, <3 and c"),
            ("<script>if (a < b) '<p>'</script>x<style>p{}</style>", "x"),
            ("x<script>never closed <p>y</p>", "x"),
            ("<head><meta charset=utf-8><title>t</title></head>x", "x"),
            ("<head><title>t</title><body>x", "x"),
            ("<head><title>t</title> u </head>x", "x"),
            ("<!-- a > b --><!--[if mso]><p>y</p><![endif]-->x<!doctype html>", "x"),
            ("<p it's>x</p>y &amp; &eacute;&#8364;&#99999999999999999999;", "x\ny & é€\ufffd"),
            ("a<br>b<BR/>c<p>d</p>e", "a\nb\ncd\ne"),
        ]
        for html, text in rows:
            with self.subTest(html):
                self.assertEqual(customerio_fake.plain_text(html), text)
        page = customerio_fake.PageReader(
            "<A HREF=x class='untracked'>a</A><img><a href>b<img alt>"
        )
        self.assertEqual([(row["url"], row["text"]) for row in page.links], [("x", "a"), ("", "b")])
        self.assertEqual(page.without_alt, [""])

    def test_every_pattern_is_linear(self) -> None:
        for pattern, uses in sorted(self.patterns().items()):
            words = set(re.findall(r"[a-z]{3,}|[^\\\w]", pattern)) | {"a", " ", "\n", "0", ".", "@"}
            words |= {f"<{word}>" for word in words if word.isalpha()}
            ends = (("", ""), ("", "\0"), ("a@", "\0"))
            for use, (start, end) in itertools.product(uses, ends):
                for unit in words:
                    text = start + unit * (40_000 // len(unit)) + end
                    begin = time.thread_time()
                    getattr(re.compile(pattern), use)(text)
                    spent = time.thread_time() - begin
                    self.assertLess(spent, 1, (pattern, unit))  # quadratic: seconds

    def patterns(self) -> dict[str, set[str]]:
        """The patterns in the module's source, with how each is used."""
        source = pathlib.Path(customerio_fake.__file__).read_text(encoding="utf-8")
        tree, found, names = ast.parse(source), cast("dict[str, set[str]]", {}), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                names[node.value] = ast.unparse(node.targets[0])
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and re.fullmatch(r"re\.\w+", ast.unparse(node.func)):
                pattern, uses = node.args[0], {ast.unparse(node.func)[3:]}
                if isinstance(pattern, ast.Constant) and isinstance(pattern.value, str):
                    if node in names:
                        uses = set(re.findall(rf"\b{names[node]}\.(\w+)\(", source)) or {"match"}
                    known = {"match", "fullmatch", "search"}
                    uses = {
                        "match" if u == "compile" else u if u in known else "search" for u in uses
                    }
                    found.setdefault(pattern.value, set()).update(uses)
        return found


# ======================================================================================
# ==== §5 Liquid
# ======================================================================================

NAMESPACES = frozenset({"customer", "event", "trigger", "snippets"})
NOON = 1483272000.0  # 2017-01-01 12:00:00 UTC, a Sunday

READER = {
    "customer": {"first_name": "Ada", "plan": "pro", "nothing": None, "a b": "spaced"},
    "event": {"items": [{"name": "Pen", "price": 2}, {"name": "Ink", "price": 5}], "none": []},
}


class LiquidTest(unittest.TestCase):
    """What the tests of Liquid share."""

    def becomes(self, rows: list[tuple[str, str]], data: Any = None, **options: Any) -> None:
        """Each template makes this text of the data."""
        for source, expected in rows:
            with self.subTest(source=source):
                self.assertEqual(render(source, data, **options), expected)

    def failing(self, source: str, data: Any = None, **options: Any) -> LiquidError:
        """The error of a template that must not parse or render."""
        with self.assertRaises(LiquidError, msg=source[:80]) as caught:
            render(source, data, **options)
        return caught.exception


class Liquid(LiquidTest):
    """The language itself."""

    def test_outputs(self) -> None:
        data = {"a": [1, 2, 3], "o": {"k": {"x": "deep"}, "size": 9}, "key": "k", "f": 1.5}
        rows = [
            ("no liquid at all { % } }", "no liquid at all { % } }"),
            ("{{ o.k.x }} {{ o['k'].x }} {{ o[key]['x'] }} {{ ['key'] }}", "deep deep deep k"),
            ("{{ a[0] }}{{ a[-1] }}{{ a[7] }}|{{ a.first }}{{ a.last }}{{ a.size }}", "13|133"),
            ("{{ o.size }} {{ key.size }}", "9 1"),
            ("{{ a }}|{{ o }}", "123|[object Object]"),
            ("{{ true }} {{ nil }}{{ f }} {{ -3 }} {{ 'x' }}", "true 1.5 -3 x"),
            ("{{ blank | join }}{{ nothing | join }}{{ empty | size }}", "0"),
            ("{{ blank }}{{ empty }}|{{ 20.0 }} {{ 1e3 }}{{ a.0 }}{{ 'abc'[1] }}", "|20 1b"),
            ("{{ (1..3) }} {{ (1..3) | join: '' }} {{ (1.5..3) | join }}", "123 123 1.5 2.5 3.5"),
            ('{{ "a|b" | append: \'"\' }}', 'a|b"'),
            (r"""{{ "}}\"\n\u0041\101" }}{{ 'it\'s' }}""", "}}\"\nAAit's"),
            ("{{ a contains 2 and f < 2 }}{{ not f }}{{ 1 == 1 == true }}", "truefalsefalse"),
            ("{{ 'x' | append: 'y', | upcase: }}", "XY"),
        ]
        self.becomes(rows, data)

    def test_whitespace_control(self) -> None:
        self.becomes(
            [
                ("a {{- 1 -}} b", "a1b"),
                ("a {%- if true -%} b {%- endif -%} c", "abc"),
                ("a \n\t{%- # note -%}\n b", "ab"),
                ("a {% raw -%} {{ x }} {%- endraw -%} b", "a  {{ x }} b"),
                ("[{% if true %} \n {% assign x = 1 %} {% endif %}]", "[ \n  ]"),
                ("[{% if true %} {{ '' }} {% endif %}]", "[  ]"),
                ("a {{-1-}} b{%-assign x=2-%} {{x}}", "a1b2"),
            ]
        )

    def test_conditions(self) -> None:
        data = {"n": 5, "s": "abc", "a": ["x", 1], "e": [], "o": {"k": 1}, "f": False, "w": "  "}
        data.update(l=[1, [2]], like=[1, [2]], other=[1, [3]])
        truths = [
            ("n == 5.0", True),
            ("n == '5'", False),
            ("n != 5", False),
            ("n <> 4", False),  # LiquidJS knows no such sign
            ("1 == true", False),
            ("n > 4 and n < 6", True),
            ("n >= 5 and n <= 5", True),
            ("true or false and false", True),
            ("false and true or true", False),
            ("s contains 'b'", True),
            ("a contains 1", True),
            ("a contains true", False),
            ("o contains 'k'", False),
            ("not n == 4", True),
            ("not n > 4 or f", False),
            ("a == a", True),
            ("o == o", True),
            ("s | size", True),
            ("nothing contains 'k'", False),
            ("s < 'abd'", True),
            ("nothing > 1", False),
            ("e == empty", True),
            ("o == empty", False),
            ("l == l", True),
            ("l == like", True),
            ("l == other", False),
            ("l == a", False),
            ("l != other", True),
            ("nothing == empty", False),
            ("nothing == blank", True),
            ("w == blank", True),
            ("w == empty", False),
            ("f == blank", True),
            ("f == nil", False),
            ("nothing == nil", True),
            ("0", True),
            ("''", True),
            ("f", False),
        ]
        for condition, expected in truths:
            with self.subTest(condition=condition):
                found = render(f"{{% if {condition} %}}yes{{% else %}}no{{% endif %}}", data)
                self.assertEqual(found == "yes", expected)
        error = self.failing("{% if s > 3 %}{% endif %}", data)
        self.assertIn("Unidentified method", error.message)

    def test_branches(self) -> None:
        self.becomes(
            [
                ("{% if a %}1{% elsif b %}2{% else %}3{% endif %}", "2"),
                ("{% unless b %}1{% elsif a %}2{% else %}3{% endunless %}", "3"),
                ("{% case x %}{% when 3, 3 %}a{% when 3 %}b{% else %}c{% endcase %}", "ab"),
                ("{% case x %}{% when 4 %}a{% else %}b{% when 3 %}c{% endcase %}", "bc"),
                ("{% unless b %}1{% else %}2{% else %}3{% elsif b %}4{% endunless %}", "2"),
                ("{% case x %}{% when 1 or 2 %}a{% when 3, 4 %}b{% else %}c{% endcase %}", "b"),
                ("{% case x %} not shown {% when 'no' %}a{% else %}c{% endcase %}", "c"),
            ],
            {"b": 1, "x": 3},
        )

    def test_loops(self) -> None:
        data = {"a": ["x", "y", "z"], "o": {"k": 1}}
        self.becomes(
            [
                ("{% for i in a reversed %}{{ i }}{% endfor %}", "zyx"),
                ("{% for i in a limit: 1 offset: 1 %}{{ i }}{% endfor %}", "y"),
                (
                    "{% for i in a limit:2 %}{{ i }}{% endfor %}"
                    "-{% for i in a offset:continue %}{{ i }}{% endfor %}",
                    "xy-z",
                ),
                (
                    "{% for i in a limit:1 %}{{ i }}{% endfor %}"
                    "{% for i in a offset:continue, limit:1 reversed %}{{ i }}{% endfor %}",
                    "xy",
                ),
                (  # a table in between is no loop to continue
                    "{% for i in a limit:1 %}{{ i }}{% endfor %}"
                    "{% tablerow i in a limit:2 %}{% endtablerow %}"
                    "{% for i in a offset:continue %}{{ i }}{% endfor %}",
                    'x<tr class="row1"><td class="col1"></td><td class="col2"></td></tr>yz',
                ),
                ("{% for i in a limit:0 %}{{ i }}{% else %}none{% endfor %}", ""),
                ("{% for i in (2..4) %}{{ i }}{% else %}none{% endfor %}", "234"),
                ("{% for i in nothing %}{{ i }}{% else %}none{% endfor %}", "none"),
                ("{% for p in o %}{{ p[0] }}={{ p[1] }}{% endfor %}", "k=1"),
                ("{% for c in 'abc' %}[{{ c }}]{% endfor %}", "[abc]"),
                ("{% for i in a %}{% if i == 'y' %}{% break %}{% endif %}{{ i }}{% endfor %}", "x"),
                (
                    "{% for i in a %}{% if i == 'y' %}{% continue %}{% endif %}{{ i }}{% endfor %}",
                    "xz",
                ),
                (
                    "{% for i in a %}{{ forloop.index }}{{ forloop.rindex0 }}"
                    "{% if forloop.last %}!{% endif %}{% endfor %}{{ forloop.index }}",
                    "122130!",
                ),
                (
                    "{% for i in a %}{% for i in (1..2) %}{{ i }}{% endfor %}{{ i }}{% endfor %}",
                    "12x12y12z",
                ),
                ("{% for i in a %}{% cycle 'o', 'e' %}{% endfor %}", "oeo"),
                ("{% for i in (1..3) %}{% cycle 'g': i, 9 %}{% endfor %}", "193"),
                ("{% cycle 'a', 'b', %}{% cycle  'a','b' %}{% cycle 'b', 'a' %}", "abb"),
                ("{% for i in a %}{% assign i = 1 %}{{ i }}{% endfor %}{{ i }}", "xyz1"),
                ("{% tablerow i in a cols:2 %}{{ i }}{% endtablerow %}", TABLE),
                ("{% tablerow i in (1..2) cols:2 %}{% endtablerow %}", FULL_TABLE),
                ("{% tablerow i in a %}{{ tablerowloop.col_last }} {% endtablerow %}", LAST_COLUMN),
                ("{% tablerow i in (1..2) cols:0 %}{% endtablerow %}", FULL_TABLE),
                ("{% tablerow i in (1..2) cols:nil %}{% endtablerow %}", FULL_TABLE),
                ("{% tablerow i in nothing %}{% endtablerow %}.", "."),
                ("a{% break %}b", "a"),
            ],
            data,
        )

    def test_variables(self) -> None:
        self.becomes(
            [
                ("{% assign x = 'a' | upcase %}{{ x }}", "A"),
                ("{% capture x %}{{ 1 }}2{% endcapture %}[{{ x }}]", "[12]"),
                ("{% increment n %}{% increment n %}{% decrement n %}{{ n }}", "0111"),
                ("{% assign n = 7 %}{% increment n %}{{ n }}", "07"),
                ("{% assign x = 1 == 1 %}{{ x }}", "true"),
                ("{% liquid\n assign x = 2\n if x == 2\n echo x | plus: 1\n endif %}", "3"),
                ("{% comment %}{% if %}{% endcomment %}.", "."),
                ("{% # note %}{% raw %}{{ x }}{% endraw %}", "{{ x }}"),
            ]
        )

    def test_text_filters(self) -> None:
        self.becomes(
            [
                ("{{ 'ab' | capitalize | append: 'c' | prepend: '-' }}", "-Abc"),
                ("{{ 'a-b-a' | replace: 'a', 'x' | replace_first: 'x', 'y' }}", "y-b-x"),
                ("{{ 'a-b-a' | remove_last: 'a' | remove_first: 'a' }}", "-b-"),
                ("{{ 'ab' | replace_last: 'a', 'x' }}{{ 'ab' | replace_last: 'q', 'x' }}", "xbab"),
                ("{{ 'a,b,,' | split: ',' | size }}", "2"),
                ("{{ ' x ' | strip }}|{{ ' x ' | lstrip }}|{{ ' x ' | rstrip }}", "x|x | x"),
                ("{{ 'abcdef' | truncate: 3 }}{{ 'abcdef' | truncate: 2 }}", "......"),
                ("{{ 'abcdef' | truncate: 6 }}{{ 'abcdef' | truncate: '4.5' }}", "abcdefab..."),
                ("{{ 'hello' | truncate: 4 }}{{ 'a b c' | truncatewords: 2, '' }}", "h...a b"),
                ("{{ 'a b ' | truncatewords: 2 }}{{ 'a' | truncatewords: 3 }}", "a b...a"),
                ("{{ 'abc' | first }}{{ 'abc' | last }}{{ 5 | first }}", "ac"),
                ("{{ 'hello' | slice: 1, 3 }}{{ 'hello' | slice: '-2', 2 }}", "elllo"),
                ("{{ '<b>\"x\"</b>' | escape }}", "&lt;b&gt;&#34;x&#34;&lt;/b&gt;"),
                ("{{ '1 < 2 &amp; 3' | escape_once }}", "1 &lt; 2 &amp; 3"),
                ("{{ '<p>a<!-- b -->c</p><script>d</script>' | strip_html }}", "ac"),
                ("{{ 'a b&c' | url_encode }} {{ 'a+b%26c' | url_decode }}", "a+b%26c a b&c"),
                ("{{ 'one two' | titlecase }} {{ 'One, two!' | slugify }}", "One Two one-two"),
                ("{{ 'x' | base64 }} {{ 'eA==' | base64_decode }}", "eA== x"),
                ("{{ '\u00e9<' | json }}", '"\u00e9<"'),
                ("{{ 'x' | md5 | slice: 0, 8 }}", "9dd4e461"),
                ("{{ 'x' | hmac_sha256: 'k' | hex_base64 | slice: 0, 8 }}", "w47ciBXI"),
                (
                    "{{ 1 | pluralize: 'item', 'items' }} {{ 3 | pluralize: 'item' }}",
                    "1 item 3 items",
                ),
                (
                    "{{ 0 | pluralize: 'box', 'boxes' }} {{ 2 | pluralize: 'ox', 'oxen' }}",
                    "0 boxes 2 oxen",
                ),
                ("{{ 1 | pluralize: 'day' }} {{ '1' | pluralize: 'day' }}", "1 day 1 day"),
                ("{{ 1.5 | pluralize: 'day' }} {{ 0 | pluralize: 'day' }}", "1.5 days 0 days"),
                ("{{ 'a,b,c' | split: ',' | array_to_sentence_string: 'or' }}", "a, b, or c"),
                ("{{ nothing | upcase }}{{ 5 | upcase }}", "5"),
            ]
        )

    def test_number_filters(self) -> None:
        self.becomes(
            [
                ("{{ '5' | plus: 2 }} {{ 5 | minus: 2.0 }} {{ 'x' | plus: 1 }}", "7 3 1"),
                ("{{ 12 | round: -30 }} {{ 12 | round: -31 }}", "0 12"),  # as far as it can
                (" \n a{{ 1 }} ", " \n a1 "),
                ("{{ a | plus: 1 }} {{ b | plus: 1 }} {{ c | plus: 1 }}", "6 1 1"),
                ("{{ 0.1 | plus: 0.2 }} {{ 2.5 | times: 2 }}", "0.30000000000000004 5"),
                (
                    "{{ 7 | divided_by: 2 }} {{ 7 | divided_by: 2, true }} {{ 8 | divided_by: 2 }}",
                    "3.5 3 4",
                ),
                ("{{ 1 | divided_by: 0 }} {{ 0 | divided_by: 0 }}", "Infinity NaN"),
                ("{{ '9007199254740993' | plus: 0 }} {{ 1e21 | plus: 0 }}", "9007199254740992 0"),
                ("{{ '1e21' | times: 1.5 }} {{ '1.5e-7' | plus: 0 }}", "1.5e+21 1.5e-7"),
                ("{{ -7 | modulo: 3 }} {{ 7 | modulo: -3 }}", "2 1"),
                ("{{ 0.6 | round }} {{ -0.6 | round }} {{ 0.4 | round }}", "1 -1 0"),
                ("{{ 2.5 | round }} {{ 1.005 | round: 2 }} {{ 1234 | round: -2 }}", "3 1.01 1200"),
                ("{{ -1.5 | abs }} {{ 1.1 | ceil }} {{ '-1.1' | floor }}", "1.5 2 -2"),
                ("{{ 5 | at_least: 7 }} {{ 5 | at_most: 3 }}", "7 3"),
                (
                    "{{ 10000 | format_number }} {{ 1234.5 | format_number: 'de' }}",
                    "10,000 1.234,5",
                ),
                (
                    "{{ 1234567.896 | currency }} {{ '5' | currency: 'en-GB' }}",
                    "$1,234,567.90 £5.00",
                ),
                ("{{ 1234567.896 | rounded_currency: 'en', 'EUR' }}", "€1,234,568"),
                ("{{ -5 | currency: 'fr' }} {{ 5 | currency: 'ja' }}", "-5,00\xa0€ ￥5"),
                (
                    "{{ 1234.5 | currency: 'sv' }} {{ -1 | currency: 'nb' }}",
                    "1\xa0234,50\xa0kr −1,00\xa0kr",
                ),
                (
                    "{{ 1234.5 | currency: 'pl' }} {{ 12345 | currency: 'cs' }}",
                    "1234,50\xa0zł 12\xa0345,00\xa0Kč",
                ),
                (
                    "{{ 5 | currency: 'hu' }} {{ 5 | currency: 'tr' }} {{ 5 | currency: 'ru' }}",
                    "5\xa0Ft ₺5,00 5,00\xa0₽",
                ),
                (
                    "{{ 5 | currency: 'uk' }} {{ 5 | currency: 'en', 'SEK' }}",
                    "5,00\xa0₴ SEK\xa05.00",
                ),
                (
                    "{{ 1234567.5 | currency: 'en-IN' }} {{ 1234567 | format_number: 'hi' }}",
                    "₹12,34,567.50 1,234,567",
                ),
                ("{{ -5 | currency: 'he' }}", "\u200f\u200e-5.00\xa0\u200f₪"),
                ("{{ 5 | currency: 'en-XX' }}{{ 5 | currency: 'xx' }}", "$5.00$5.00"),
            ],
            {"a": [5], "b": [5, 6], "c": []},
        )

    def test_array_filters(self) -> None:
        data = {
            "a": [{"n": "x", "p": 2}, {"n": "y", "p": 1}, {"n": "z", "p": 2}],
            "l": [3, 1, 2, 1],
            "m": ["b", "A", None],
        }
        self.becomes(
            [
                ("{{ l | sort | join: '' }}{{ l | uniq | join: '' }}{{ l | sum }}", "11233127"),
                ("{{ m | sort_natural | join: '-' }} {{ m | compact | size }}", "A-b- 2"),
                ("{{ m | sort | join: '-' }}", "b-A-"),
                ("{{ l | first }}{{ l | last }}{{ l | reverse | join }}", "311 2 1 3"),
                ("{{ l | concat: m | size }}{{ l | push: 9 | last }}{{ l | pop | size }}", "793"),
                (
                    "{{ l | shift | first }}{{ l | unshift: 8 | first }}{{ l | limit: 2 | size }}",
                    "182",
                ),
                ("{{ a | map: 'n' | join: '' }}{{ a | sum: 'p' }}", "xyz5"),
                ("{{ a | sort: 'p' | map: 'n' | join: '' }}", "yxz"),
                ("{{ a | where: 'p', 2 | map: 'n' | join: '' }}", "xz"),
                ("{{ a | where_not: 'p', 2 | map: 'n' | join: '' }}", "y"),
                ("{{ a | where_exp: 'i', 'i.p > 1 and i.n == \"z\"' | map: 'n' | join }}", "z"),
                ("{{ a | find: 'p', 1 | json }}", '{"n":"y","p":1}'),
                ("{{ a | find_exp: 'i', 'i.p < 2' | json }}", '{"n":"y","p":1}'),
                ("{{ a | find_index: 'n', 'z' }} {{ a | has: 'n', 'q' }}", "2 false"),
                ("{% assign g = a | group_by: 'p' %}{{ g[0].name }}{{ g[0].items | size }}", "22"),
                ("{{ a | group_by_exp: 'i', 'i.p | times: 10' | map: 'name' | join }}", "20 10"),
                ("{{ '[1,2,1]' | from_json | json_array_uniq | to_json }}", "[1,2]"),
                ("{{ l | size }}{{ 'abc' | size }}{{ 5 | size }}", "430"),
            ],
            data,
        )

    def test_filters_without_their_arguments(self) -> None:
        data = {"a": [{"x": 1}, {"x": 2}], "l": [3, 1], "n": None, "": "none"}
        self.becomes(
            [
                ("{{ 'xbc' | replace }}{{ 'xbc' | remove }}{{ 'xbc' | remove_first }}", "xbc" * 3),
                ("{{ 'xbc' | replace: 'b' }}{{ 'xbc' | replace_first: 'b' }}", "xcxc"),
                ("{{ 'xbc' | replace_last }}{{ 'xbc' | replace_last: 'b' }}", "xbcxc"),
                ("{{ 'xbc' | remove_last }}{{ 'xbc' | replace_first }}", "xbcxbc"),
                ("{{ 'axb' | split | join: '-' }} {{ 'xbc' | slice }}", "a-x-b x"),
                ("{{ 'xbcd' | slice: 1 }} {{ 'xbc' | slice: 3 }}", "b "),
                ("{{ s | truncate }}", "s" * 47 + "..."),
                ("{{ s | truncatewords: 1 }}", "s" * 70 + "..."),
                ("{{ w | truncatewords }}", "w " * 14 + "w..."),
                ("{{ l | array_to_sentence_string }} {{ 5 | pluralize }}", "3 and 1 5 s"),
                ("{{ 7 | divided_by }} {{ 7 | plus }} {{ 7 | modulo }} {{ 7 | at_most }}",
                 "NaN NaN NaN 7"),
                ("{{ 7.4 | divided_by: 2 }} {{ 7.4 | round }}", "3.7 7"),
                ("{{ a | where | json }} {{ a | where: 'x' | size }}", "[] 2"),
                ("{{ a | map | json }} {{ a | group_by | json }}",
                 '[null,null] [{"name":null,"items":[{"x":1},{"x":2}]}]'),
                ("{{ l | sort | json }} {{ l | join }} {{ l | sum }}", "[1,3] 3 1 4"),
                ("{{ l | json }} {{ l | json: 1 | strip_newlines }}", "[3,1] [ 3, 1]"),
                ("{{ l | limit | size }}{{ l | concat | size }}{{ l | push | json }}",
                 "02[3,1,null]"),
                ("{{ n | default }}{{ false | default }}.", "."),
                ("{{ 0 | date_to_string }} {{ 0 | date_to_string: 'ordinal' }}",
                 "01 Jan 1970 1st Jan 1970"),
                ("{{ 0 | date_to_string: 'ordinal', 'US' }}", "Jan 1st, 1970"),
                ("{{ 0 | date_to_long_string: 'ordinal' }}", "1st January 1970"),
                ("{{ 0 | add_day }} {{ 9 | subtract_year }}", "0 9"),
                ("{{ 'now' | date: '%s' }}", "0"),
                ("{{ 1234.5 | format_number }} {{ 1.5 | currency }}", "1,234.5 $1.50"),
            ],
            {**data, "s": "s" * 70, "w": "w " * 16},
        )  # fmt: skip
        for filters in ("where_exp", "where_exp: 'i'", "timezone"):
            with self.subTest(filters):
                self.failing(f"{{{{ 0 | {filters} }}}}")

    def test_default(self) -> None:
        data = {"f": False, "e": "", "l": [], "z": 0}
        self.becomes(
            [
                (
                    "{{ x | default: 1 }}{{ e | default: 2 }}{{ l | default }}{{ f | default: 3 }}",
                    "123",
                ),
                ("{{ f | default: 1, allow_false: true }}{{ z | default: 1 }}", "false0"),
            ],
            data,
        )

    def test_dates(self) -> None:
        self.becomes(
            [
                ("{{ 'now' | date: '%Y-%m-%d %H:%M:%S %z %Z' }}", "2017-01-01 12:00:00 +0000 UTC"),
                ("{{ -1 | date: '%Y-%m-%d %H:%M:%S' }}", "1969-12-31 23:59:59"),
                ("{{ '32536850400' | date: '%Y-%m-%d' }}", "3001-01-19"),
                ("{{ 1483272000 | date: '%A %-d %B, %l:%M %p' }}", "Sunday 1 January, 12:00 PM"),
                (
                    "{{ '1483272000' | date: '%e|%_m|%^b|%j|%s|%q|%%' }}",
                    " 1| 1|JAN|001|1483272000|st|%",
                ),
                ("{{ '2024-02-29T10:00:00+02:00' | date: '%H:%M %:z' }}", "08:00 +00:00"),
                (
                    "{{ 'March 14, 2016' | date: '%D %m/%d' }}{{ 'soon' | date: '%Y' }}",
                    "%D 03/14soon",
                ),
                ("{{ 0.0456 | date: '%3N %-N %::z %+ %L' }}", "045 045000000 +00:00 %+ 045"),
                ("{{ 0 | date }}", "Thursday, January 1, 1970 at 12:00 am +0000"),
                ("{{ 1483272000 | date: '%H %z', 360 }}", "06 -0600"),
                ("{{ 1483272000 | date: '%H', '(GMT-11:00) Hawaii' }}", "01"),
                ("{{ 'now' | date: '%s' | plus: 0 | add_day: 1 | minus: 1483272000 }}", "86400"),
                ("{{ '2024-01-31' | add_month: 1 | date: '%Y-%m-%d' }}", "2024-02-29"),
                ("{{ '2024-02-29' | subtract_year: 1 | date: '%Y-%m-%d' }}", "2023-02-28"),
                ("{{ 'now' | date_to_string }}, {{ 'now' | date_to_xmlschema }}", DATES),
                ("{{ 'now' | date_to_long_string: 'ordinal', 'US' }}", "January 1st, 2017"),
            ],
            now=NOON,
        )
        for hour, texts in CLOCKS.items():
            self.becomes([(f"{{{{ {hour * 3600} | date: '%X|%p|%P|%I|%l|%H|%k' }}}}", texts)])
        week = [f"{{{{ {(day + 3) * 86400} | date: '%a %u %w %U %W' }}}}" for day in range(7)]
        self.becomes(list(zip(week, WEEKS)))
        self.becomes(
            [
                ("{{ 0 | date: '%c|%x|%y|%C|%h|%b|%B|%e|%M|%S|%n|%t|%Ey|%Q|%f' }}",
                 "1/1/1970, 12:00:00 AM|1/1/1970|70|19|Jan|Jan|January| 1|00|00|\n|\t|70|%Q|%f"),
                ("{{ 0 | date: '%5d|%-5d|%_5d|%^a|%#p|%#B|%03e|%5Y|%8a|%10p' }}",
                 "00001|1|    1|THU|am|JANUARY|001|01970|     Thu|        AM"),
                ("{{ -1 | date: '%5s|%05s|%_5s|%-5s' }}", "-0001|-0001|   -1|-1"),
                ("{{ 1.5456 | date: '%3N|%1N|%12N|%5L' }}", "545|5|545000000000|00545"),
                ("{{ true | date: '%s %L' }}", "0 001"),
            ]
        )  # fmt: skip
        ends = {"th": (4, 10, 11, 12, 13, 20, 30), "st": (1, 21, 31), "nd": (2, 22), "rd": (3, 23)}
        days = [(day, end) for end, days in ends.items() for day in days]
        self.becomes([(f"{{{{ '2024-01-{day:02}' | date: '%q' }}}}", end) for day, end in days])
        for zone in (
            "Nowhere/Land",
            "../../etc/passwd",
            "/etc/passwd",
            "America",
            "a\0",
            "x" * 500,
        ):
            with self.subTest(zone=zone):
                error = self.failing(f"{{{{ 0 | date: '%Y', '{zone}' }}}}")
                self.assertEqual(error.message, f"unknown time zone '{zone}'")
        self.assertIn("48294", self.failing("{{ 1461866400000 | date: '%Y' }}").message)

    @with_zones
    def test_dates_elsewhere(self) -> None:
        self.becomes(
            [
                ("{{ 1483272000 | date: '%H:%M', 'America/New_York' }}", "07:00"),
                ("{{ 1483272000 | timezone: 'Asia/Tokyo' | date: '%H' }}", "21"),
            ]
        )

    def test_dates_in_words_are_read_as_javascript_reads_them(self) -> None:
        for moment, texts in WRITTEN_DATES.items():
            for text in texts:
                with self.subTest(text):
                    source = f"{{{{ '{text}' | date: '%Y-%m-%d %H:%M:%S' }}}}"
                    self.assertEqual(render(source), moment)
        for text in NO_DATES:
            self.assertEqual(render(f"{{{{ '{text}' | date: '%Y' }}}}"), text)

    def test_every_filter_and_tag_is_callable(self) -> None:
        for name, function in LIQUID_FILTERS.items():
            with self.subTest(filter=name):
                self.assertTrue(callable(function))
        for name, parse in LIQUID_TAGS.items():
            with self.subTest(tag=name):
                self.assertTrue(callable(parse))


TABLE = (
    '<tr class="row1"><td class="col1">x</td><td class="col2">y</td></tr>'
    '<tr class="row2"><td class="col1">z</td></tr>'
)
FULL_TABLE = '<tr class="row1"><td class="col1"></td><td class="col2"></td></tr>'
#: How a time of day is written, by its hour; a day of the week and its weeks from 4 January 1970.
CLOCKS = {
    0: "12:00:00 AM|AM|am|12|12|00| 0",
    11: "11:00:00 AM|AM|am|11|11|11|11",
    12: "12:00:00 PM|PM|pm|12|12|12|12",
    13: "1:00:00 PM|PM|pm|01| 1|13|13",
}
WEEKS = (
    *("Sun 7 0 01 00", "Mon 1 1 01 01", "Tue 2 2 01 01", "Wed 3 3 01 01"),
    *("Thu 4 4 01 01", "Fri 5 5 01 01", "Sat 6 6 01 01"),
)
LAST_COLUMN = (
    '<tr class="row1"><td class="col1">false </td><td class="col2">false </td>'
    '<td class="col3">true </td></tr>'
)
#: What JavaScript's Date makes of texts, in UTC.
WRITTEN_DATES = {
    "2021-01-05 00:00:00": (
        "Jan 5 2021", "2021-1-5", "Tue, 05 Jan 2021", "2021/01/05", "01/05/2021", "05-Jan-2021",
        "5 January 2021", "5 Jan 21", "2021-01-05T24:00:00+24:00",
    ),
    "2021-01-05 15:04:00": (
        "January 5, 2021 3:04 PM", "Jan 5 2021 15:04 UTC", "15:04 Jan 5 2021", "2021-01-05 15:04",
        "Tue Jan 05 2021 17:04:00 GMT+0200 (Central European Time)", "Jan 5 2021 10:04 EST",
        "2021-01-05T15:04:00.999Z", "2021-01-05T09:34-0530", "Jan 5 2021 17:34 +0230",
        "Jan 5 2021 13:04 -2",
    ),
    "2001-01-05 00:00:00": ("Jan 5", "1/5"),
    "2021-03-02 00:00:00": ("2021-02-30", "Feb 30 2021"),
    "2021-01-01 00:00:00": ("Jan 1 2021", "1 Jan 2021", "1/1/2021", "2021/1/1", "2021 Jan 1"),
    "2021-12-31 00:00:00": ("Dec 31 2021 0:00", "12/31/2021", "2021/12/31", "2021-12-31"),
    "2021-12-01 01:00:00": ("Dec 1 2021 1:00 AM",), "2021-12-01 23:59:00": ("Dec 1 2021 11:59 PM",),
    "2032-01-01 00:00:00": ("Jan 32",), "2001-01-02 00:00:00": ("1 2",),
    "0001-01-01 00:00:00": ("0001-01-01",), "9999-12-31 00:00:00": ("9999-12-31",),
    "2021-01-05 12:30:00": ("Jan 5 2021 12:30 PM", "Jan 5 2021 0:30 PM"),
    "2021-01-05 00:30:00": ("Jan 5 2021 12:30 AM", "Jan 5 2021 0:30 am"),
    "2021-01-06 00:00:00": ("Jan 5 2021 24:00",), "2049-01-05 00:00:00": ("Jan 5 49",),
    "1950-01-05 00:00:00": ("Jan 5 50",), "1999-01-05 00:00:00": ("Jan 5 99",),
    "0100-01-05 00:00:00": ("Jan 5 100",), "2021-12-31 23:59:59": ("Dec 31 2021 23:59:59",),
}  # fmt: skip
NO_DATES = (
    "soon", "13/13/2021", "Jan 5 2021 3:04PM", "Jan 32 2021", "5 - Jan 2021",
    "2021-12-32", "2021-00-10", "2021-13-10", "2021-01-00", "2021-01-05T24:00:01Z",
    "2021-01-05T24:01Z", "Jan 5 2021 13:00 PM", "Jan 5 2021 25:00", "Jan 5 2021 10:00,",
    "2021-01-01T23:59:60Z", "2021-01-01T23:60:00Z", "31 12 2021",
    "Jan 5 2021 today", "2021-01-05T25:00:00Z", "",
)  # fmt: skip
DATES = "01 Jan 2017, 2017-01-01T12:00:00+00:00"


class LiquidErrors(LiquidTest):
    """What goes wrong, and where."""

    def test_broken_templates_name_line_and_column(self) -> None:
        rows = [
            ("a\nb {% if x %}", 'tag "if" not closed', 2, 3),
            ("{% endif %}", 'tag "endif" not found', 1, 1),
            ("\n\n  {{ x", 'output "{{ x" not closed', 3, 3),
            ("{% if", 'tag "{% if" not closed', 1, 1),
            ("{% raw %}", 'tag "raw" not closed', 1, 1),
            ("{% comment %}", 'tag "comment" not closed', 1, 1),
            ("{% if %}{% endif %}", "unexpected end of liquid tag", 1, 7),
            ("{{ a | }}", "unexpected end of liquid tag", 1, 8),
            ("{% if a = 1 %}{% endif %}", 'unexpected "="', 1, 9),
            ("x\n{{ 'a }}", 'output "{{ \'a }}" not closed', 2, 1),
            ("{{ }}", "unexpected end of liquid tag", 1, 4),
            ("{% if a %}{% else if b %}{% endif %}", 'unexpected "if"', 1, 19),
            ("{% for i in a %}{% else if b %}{% endfor %}", 'unexpected "if"', 1, 25),
            ("{% if a %}{% else %}{% elsif b %}{% endif %}", 'tag "elsif" not found', 1, 21),
            (
                "{% comment %}{{ x {% endcomment %}",
                'output "{{ x {% endcomment %" not closed',
                1,
                14,
            ),
            ("{% doc %}{% enddoc %}", 'tag "doc" not found', 1, 1),
            ("{% cycle %}", "unexpected end of liquid tag", 1, 10),
            ("{{ a b }}", 'unexpected "b"', 1, 6),
            ("{{ a..b }}", 'unexpected ".."', 1, 5),
            ("{% bogus %}", 'tag "bogus" not found', 1, 1),
            ("{% include 'x' %}", 'tag "include" not found', 1, 1),
            ("{{ 'x' | nosuch }}", "undefined filter: nosuch", 1, 10),
            ("{{ 'x' | append }}", "append: expect 2 arguments", 1, 1),
            ("{% liquid\n echo 1\n  bogus %}", 'tag "bogus" not found', 3, 3),
            ("{% for i in a what %}{% endfor %}", 'unexpected "what"', 1, 15),
            ("{% for i of a %}{% endfor %}", 'unexpected "of"', 1, 10),
            ("{{ (1..3 }}", "unexpected end of liquid tag", 1, 10),
            ("{{ (1 3) }}", 'unexpected "3"', 1, 7),
            ("{% for i in 'ab %}{% endfor %}", "unexpected '", 1, 13),
            ("{% capture 'a b' %}{% endcapture %}", 'unexpected "a b"', 1, 11),
            ("{% cycle 'a': %}", "unexpected end of liquid tag", 1, 15),
            ("{% cycle 'a' 'b' %}", "unexpected \"'b'\"", 1, 14),
            ("a {% #\n # a\n b %}", "each line of a comment must begin with #", 1, 7),
            ("\na {{ l | where_exp: 'i', 'i b' }}", 'unexpected "b"', 2, 3),
        ]
        for source, message, line, column in rows:
            with self.subTest(source=source):
                error = self.failing(source, {"l": [1]})
                self.assertEqual((error.message, error.line, error.column), (message, line, column))

    def test_failing_filters_name_line_and_column(self) -> None:
        rows = [
            ("\n {{ 'a' | base64_decode }}", "base64_decode: invalid base64", 2, 2),
            ("{% if true %}\n{{ '%' | url_decode }}{% endif %}", "url_decode: URI malformed", 2, 1),
            ("{{ '{' | from_json }}", "from_json", 1, 1),
        ]
        for source, message, line, column in rows:
            with self.subTest(source=source):
                error = self.failing(source)
                self.assertIn(message, error.message)
                self.assertEqual((error.line, error.column), (line, column))

    def test_strict_namespaces(self) -> None:
        missing = [
            ("Hi {{customer.last_name}}", "customer.last_name", 4),
            ("{{ customer.address.street }}", "customer.address.street", 1),
            ("{{ customer['last name'] | upcase }}", "customer.last name", 1),
            ("{% assign x = event.total %}", "event.total", 1),
            ("{{ 'a' | append: event.total }}", "event.total", 1),
            ("{% for i in event.rows %}{% endfor %}", "event.rows", 1),
        ]
        for source, name, column in missing:
            with self.subTest(source=source):
                error = self.failing(source, READER, strict=NAMESPACES)
                self.assertIsInstance(error, MissingVariable)
                self.assertEqual(str(error), f"Variable '{name}' is missing")
                self.assertEqual((error.line, error.column), (1, column))
        self.becomes(
            [
                ("{{ customer.last_name | default: 'you' }}", "you"),
                ("{% if customer.last_name %}a{% else %}b{% endif %}", "b"),
                ("{% if customer.last_name != blank %}a{% endif %}.", "."),
                ("{% case 1 %}{% when customer.last_name %}a{% else %}b{% endcase %}", "b"),
                ("{% case customer.last_name %}{% when 'x' %}{% else %}b{% endcase %}", "b"),
                ("{{ customer.nothing }}{{ event.none.first }}.", "."),
                ("{{ foo.bar }}{{ foo }}{{ trigger.x }}.", "."),  # unknown namespaces
                ("{% assign customer = 'x' %}{{ customer.last_name }}.", "."),
                ("{{ customer['a b'] }}{{ event.items[0].name }}", "spacedPen"),
            ],
            READER,
            strict=NAMESPACES,
        )
        self.assertEqual(render("{{ customer.last_name }}.", READER), ".")

    def test_only_data_can_be_reached(self) -> None:
        class Secret:
            value = "secret"

        data = {"s": Secret(), "a": [{"x": 1}], "f": len}
        source = (
            "{{ s }}{{ s.value }}{{ s.__class__ }}{{ a.append }}{{ a | map: '__class__' }}{{ f }}"
        )
        self.assertEqual(render(source, data), "")

    def test_data_is_not_changed(self) -> None:
        data = json.loads(json.dumps(READER))
        source = (
            "{% assign customer = 1 %}{% assign x = event.items | push: 1 | reverse %}"
            "{% for item in event.items %}{% assign item = 2 %}{% increment n %}{% endfor %}"
        )
        render(source, data)
        self.assertEqual(data, READER)


class LiquidRunaways(LiquidTest):
    """Whatever is tried, it ends soon, and with a LiquidError."""

    def test_runaways(self) -> None:
        text = "a" * 200_000
        loop = "{% for i in (1..1000000000) %}"
        deep: list[Any] = []
        for _ in range(5000):
            deep = [deep]
        rows: list[tuple[str, Any]] = [
            (loop + "{% endfor %}", {}),
            (loop + "{% for j in (1..1000000000) %}{% endfor %}{% endfor %}", {}),
            ("{% tablerow i in (1..1000000000) %}{% endtablerow %}", {}),
            (loop + "{{ text }}{% endfor %}", {"text": text}),
            (loop + "{% capture x %}{{ text }}{% endcapture %}{% endfor %}", {"text": text}),
            (loop + "{% assign x = text | upcase %}{% endfor %}", {"text": text}),
            (loop + "{% if text == other %}{% endif %}{% endfor %}", {"text": text, "other": text}),
            ("{% assign s = 'aa' %}" + loop + "{% assign s = s | append: s %}{% endfor %}", {}),
            ("{% assign n = 9 %}" + loop + "{% assign n = n | times: n %}{% endfor %}", {}),
            (loop + "{% assign a = a | push: a %}{% endfor %}", {"a": []}),
            (loop + "{% assign a = a | concat: a %}{% endfor %}", {"a": [1]}),
            ("{{ text | replace: '', text }}", {"text": text}),
            ("{{ (1..1000000000) | join }}", {}),
            ("{{ (1..1000000000) | json }}", {}),
            ("{{ (1..n) | size }}", {"n": float("inf")}),
            ("{{ " + "9" * 5000 + " }}", {}),
            ("{{ n }}", {"n": 10**5000}),
            ("{{ " + "a[" * 5000 + "1" + "]" * 5000 + " }}", {}),
            ("{{ 1" + " | plus: 1" * 5000 + " }}", {}),
            ("{% if true %}" * 500 + "{% endif %}" * 500, {}),
            ("{% if 1" + " and 1" * 50_000 + " %}{% endif %}", {}),
            ("{{ a }}", {"a": deep}),
            ("{{ a | json }}", {"a": deep}),
            ("{{ snippets.a }}", {"snippets": {"a": "{{ snippets.a }}"}}),
            ("{% render_liquid a %}", {"a": "{% render_liquid a %}"}),
        ]
        for source, data in rows:
            with self.subTest(source=source[:80]):
                start = time.perf_counter()
                error = self.failing(source, data)
                self.assertGreater(error.line, 0, error)
                self.assertLess(time.perf_counter() - start, 3)

    def test_work_is_charged_where_it_is_done(self) -> None:
        many, rows = "{% for i in (1..99000) %}", [{"a": {"b": [i]}} for i in range(2000)]
        data = {"o": rows, "t": "<a> " * 50_000, "d": {str(i): i for i in range(50_000)}}
        on_lists = (
            "sum", "uniq", "sort", "reverse", "join", "map: 'a'", "where: 'a'", "compact",
            "concat: r", "where_exp: 'i', 'i'", "has: 'a'", "find: 'a'", "find_index: 'a'",
            "push: 1", "pop", "json", "shift", "unshift: 1", "slice: 0, 9999", "group_by: 'a'",
            "group_by_exp: 'i', 'i'", "array_to_sentence_string", "sort_natural", "limit: 9999",
            "json_array_uniq", "upcase",
        )  # fmt: skip
        on_texts = (
            "upcase", "escape", "strip_html", "url_encode", "split: ' '", "truncatewords: 9999",
            "slugify", "replace: 'a', 'b'", "remove: 'a'", "sha256", "base64_encode", "json",
            "append: t", "replace_last: 'q', ''", "titlecase", "md5", "contains: 'q'",
            "newline_to_br", "strip",
        )  # fmt: skip
        sources = [
            *(f"{{% assign r = (1..10000) %}}{many}{{% assign x = r | {f} %}}" for f in on_lists),
            *(f"{many}{{% assign x = o | {f} %}}" for f in ("uniq", "json", "sort: 'a'")),
            *(f"{many}{{% assign x = t | {f} %}}" for f in on_texts),
            "{% assign r = (1..10000) %}" + many + "{% if r contains 0 %}{% endif %}",
            "{% assign r = (1..10000) %}{% assign q = (1..10000) %}"
            + many
            + "{% if r == q %}{% endif %}",
            many + "{% if " + " or ".join(["i == 0"] * 200) + " %}{% endif %}",
            many + "{% if i == 0 %}" + "{% elsif i == 0 %}" * 500 + "{% endif %}",
            many + "{% case i %}{% when " + ", ".join(["0"] * 500) + " %}{% endcase %}",
            many + "{% case i %}" + "{% when 0 %}" * 500 + "{% endcase %}",
            many + "{{ a" + ".b" * 1000 + " }}",
            many + "{{ o" + " | first" * 200 + " }}",
            many + "{{ o" + " | default | size" * 200 + " }}",
            many + "{% if t == blank %}{% endif %}" + "{% if t < t %}{% endif %}",
            many + "{% case t %}{% when t" + ", t" * 300 + " %}{% endcase %}",
            many + "{% for j in d limit: 1 %}{% endfor %}",
            many + "{% increment x %}",
            many + "{% assign x = 'Jan 5 2021' | date: '%Y' %}",
            many + "{{ 0 | date: '%999d' }}",
            many + "{% random " + "a " * 500 + "%}",
            many + "{% assign r = (1..10000) %}",
        ]
        for source in sources:
            with self.subTest(source[:120]):
                budget = Budget(LiquidLimits(work=50_000, iterations=10**9, output=10**9))
                start = time.thread_time()
                error = self.failing(source + "{% endfor %}", data, budget=budget)
                self.assertIn("more than 50000 steps", error.message)
                self.assertLess(time.thread_time() - start, 3)  # a twentieth, as a rule

    def test_parsing_has_a_budget(self) -> None:
        sources = [
            "{{x}}" * 50_000, "{{ x" + " | upcase" * 60_000 + " }}", "{{ a" + ".b" * 60_000 + " }}",
            "{% if a %}{% endif %}" * 30_000, "{% comment %}" + "{{x}}" * 200_000,
        ]  # fmt: skip
        for source in sources:
            with self.subTest(source[:20]):
                self.assertIn("more than 100000 words", self.failing(source).message)

    def test_templates_are_read_in_linear_time(self) -> None:
        units = (" ", "x", "} ", "a'", "'a' ", "\\'", '"', "?", "-", "{%", "{{", "\n", ":", "a.")
        ends = (("{{ a", ""), ("{{ a", " }}"), ("{{ '", "' }}"), ("{%", ""), ("{% if", "%}"))
        for unit, (begin, end) in itertools.product(units, ends):
            start = time.thread_time()
            with contextlib.suppress(LiquidError):
                customerio_fake.parse_liquid(begin + unit * (40_000 // len(unit)) + end)
            self.assertLess(time.thread_time() - start, 2, begin + unit + end)  # or a minute

    def test_parts_of_a_message_share_a_budget(self) -> None:
        source, budget = "{% for i in (1..50) %}{{ i }}{% endfor %}", Budget(LiquidLimits(work=700))
        self.assertEqual(len(render(source, budget=budget)), 91)
        self.failing(source, budget=budget)

    def test_templates_are_kept_in_bounded_memory(self) -> None:
        kept = customerio_fake._PARSED
        for number in range(14):
            customerio_fake.parse_liquid(f"{number}" + "{{ x | upcase }}" * 1000)
        self.assertLessEqual(kept.size, kept.MOST)
        self.assertEqual(kept.size, sum(template.size for template in kept.values()))

    def test_a_small_template_takes_few_calls(self) -> None:
        calls: list[str] = []

        def note(frame: Any, event: str, _: Any) -> None:
            if event == "call":
                calls.append(frame.f_code.co_name)

        for source, most in (("Hi {{customer.first_name}}", 8), ("Hi {{ event.items.size }}", 18)):
            render(source, READER)
            calls.clear()
            sys.setprofile(note)
            try:
                render(source, READER)
            finally:
                sys.setprofile(None)
            self.assertLessEqual(len(calls), most, calls)

    def test_awkward_texts_take_no_time(self) -> None:
        start = time.perf_counter()
        for piece in ("<script>", "<!--", "&a", "_ ", "\r", "<a "):
            render(
                "{{ s | strip_html }}{{ s | escape_once }}{{ s | slugify }}", {"s": piece * 20_000}
            )
        for source in ("{%" * 20_000, "{{" * 20_000, "{% cio_link url:" + "{{a" * 20_000 + " %}"):
            with self.subTest(source=source[:20]), self.assertRaises(LiquidError):
                render(source + "{% if %}")
        self.assertLess(time.perf_counter() - start, 3)

    def test_limits_can_be_set(self) -> None:
        source = "{% for i in (1..50) %}{{ i }}{% endfor %}"
        self.assertEqual(len(render(source)), 91)
        for limits in (LiquidLimits(output=90), LiquidLimits(iterations=49), LiquidLimits(work=90)):
            with self.subTest(limits=limits):
                self.failing(source, budget=Budget(limits))
        for piece in ("abc", "{{ 123 }}", "{% increment n %}", "{% random 6 %}"):
            with self.subTest(piece):
                budget = Budget(LiquidLimits(output=90))
                self.failing(piece * 100, {"n": 100}, budget=budget)

    def test_texts_and_names_alone_are_rendered_at_once(self) -> None:
        def printed(source: str, **o: Any) -> Optional[str]:
            return customerio_fake.parse_liquid(source).at_once({"o": o.get})

        source = "a{{ o.b }}c{{o.d}}e{{ o.f }}g"
        self.assertEqual(printed(source, b="B", d=4, f=""), "aBc4eg")
        self.assertIsNone(printed(source, b="B", d=4))
        self.assertIsNone(printed(source, b="B", d=4, f=[1]))
        for source in ("{{ o.b.c }}", "{{ o.b }}{% # %}", "{{ snippets.b }}", "{{ p.b }}"):
            self.assertIsNone(printed(source, b="B"))

    def test_a_parsed_template_is_kept_and_fast(self) -> None:
        source = '<p>{{ customer.first_name | default: "you" | upcase }}</p>\n' * 200
        template = customerio_fake.parse_liquid(source)
        self.assertIs(customerio_fake.parse_liquid(source), template)
        times = []
        for _ in range(20):
            start = time.perf_counter()
            template.render(READER, strict=NAMESPACES)
            times.append(time.perf_counter() - start)
        self.assertLess(min(times), 0.002)


class LiquidOfCustomerio(LiquidTest):
    """What Customer.io adds."""

    def test_tags_are_answered_by_the_host(self) -> None:
        host = {
            "unsubscribe_url": "https://example.com/u",
            "random": lambda arguments: int(arguments["value"]) - 1,
            "generate_uuid": lambda _: "0-0",
            "cio_link": lambda arguments: json.dumps(arguments),
            "subscription_topic_name": lambda arguments: arguments["lang"],
        }
        self.becomes(
            [
                ("{% unsubscribe_url %}{{ unsubscribe_url }}", "https://example.com/u"),
                ("{% random 6 %}{{ 6 | random }}{% generate_uuid %}", "550-0"),
                ("{% capture n %}{% random 3 %}{% endcapture %}{{ n }}", "2"),
                ("{% cio_link url:https://x.io/?a=1 track:false %}", LINK),
                ('{% cio_link url:"https://x.io/?a={{ one }}" track:false %}', LINK),
                ("{% cio_link url:https://x.io/?a={{ one }} track:false %}", LINK),
                ("{% subscription_topic_name lang='pt' %}", "pt"),
                ("{% view_in_browser_url %}{% countdown point:64 %}.", "."),
            ],
            {"one": 1},
            host=host,
        )

    def test_without_a_host_renders_are_repeatable(self) -> None:
        source = "{% random 6 %} {% generate_uuid %} {% cio_link url:https://x.io %}"
        self.assertEqual(render(source), "0 00000000-0000-4000-8000-000000000000 https://x.io")

    def test_snippets_have_variables_of_their_own(self) -> None:
        data = {
            **READER,
            "snippets": {"sign": "{{ customer.first_name }}{{ x }}{% assign y = 1 %}", "a b": "c"},
        }
        source = "{% assign x = 1 %}{{ snippets.sign }}{{ y }}{{ snippets['a b'] | upcase }}"
        self.assertEqual(render(source, data, strict=NAMESPACES), "AdaC")
        self.assertEqual(
            render("{{ snippets.sign }}" * 9, data), "Ada" * 9
        )  # not inside each other
        endless = {"snippets": {"a": "{{ snippets.a }}"}}
        error = self.failing("{{ snippets.a }}", endless)
        self.assertEqual(error.message, "more than 5 templates inside each other")
        error = self.failing("{{ snippets.none }}", data, strict=NAMESPACES)
        self.assertEqual(error.message, "Variable 'snippets.none' is missing")

    def test_attributes_can_hold_liquid(self) -> None:
        data = {"customer": {"body": "Hi {{ customer.name }}", "name": "Ada"}}
        shared = "{% assign n = 1 %}{% render_liquid body %}{{ m }}"
        body = "{{ n }}{% assign m = 2 %}"
        self.assertEqual(render(shared, {"body": body}), "12")  # it is a part of the whole
        source = "{% render_liquid customer.body %} {{ customer.body }}"
        self.assertEqual(render(source, data), "Hi Ada Hi {{ customer.name }}")


LINK = '{"url": "https://x.io/?a=1", "track": "false"}'


# ======================================================================================
# ==== §6 Conditions
# ======================================================================================


class Filters(unittest.TestCase):
    def test_paths_into_values(self) -> None:
        value = {"l": [{"n": 1}, {"n": [2, 3]}, 4], "a.b": 5, "o": {"p": {"q": 6}}, "t": "text"}
        rows: list[tuple[str, list[Any]]] = [
            ("a.b", [5]), ("o.p.q", [6]), ("o.p.x", []), ("t.x", []), ("t[0]", []), ("o[0]", []),
            ("l[0].n", [1]), ("l[2]", [4]), ("l[3]", []), ("l[].n", [1, [2, 3]]),
            ("l[].n[]", [2, 3]), ("l[1].n[1]", [3]),
        ]  # fmt: skip
        for path, found in rows:
            with self.subTest(path):
                self.assertEqual(customerio_fake.values_at(value, path), found)

    def matches(self, spec: Any) -> bool:
        person = customerio_fake.Person(0, 0)
        person.attributes = {"plan": "Pro", "n": 10}
        return compile_filter(spec, "filter", lambda _, number: number == 7)(person)

    def test_each_operator(self) -> None:
        rows = [
            ("plan", "eq", "pro", True),
            ("plan", "eq", "basic", False),
            ("plan", "ne", "basic", True),
            ("none", "ne", "x", True),
            ("plan", "exists", None, True),
            ("none", "exists", None, False),
            ("none", "not_exists", None, True),
            ("plan", "starts_with", "pR", True),
            ("plan", "ends_with", "RO", True),
            ("plan", "contains", "r", True),
            ("plan", "contains", "x", False),
            ("n", "gt", 9, True),
            ("n", "gt", 10, False),
            ("n", "gte", "10", True),
            ("n", "lt", 9, False),
            ("n", "lte", 10, True),
            ("none", "lt", 1, False),
            *(("none", operator, 1, False) for operator in ("gt", "gte", "lte", "timestamp_lta")),
            *(("n", operator, value, expected) for operator, *given in (
                ("gt", True, False, False), ("gte", True, True, False), ("lt", False, False, True),
                ("lte", False, True, True), ("timestamp_gta", True, False, False),
                ("timestamp_lta", False, True, True),
            ) for value, expected in zip((9, 10, 11), given)),
            *(("plan", operator, "pro", operator[2:] == "e") for operator in (
                "gt", "gte", "lt", "lte")),
            *(("n", "bw", low, low in (9, 10)) for low in (8, 9, 10, 11)),
            ("none", "bw", 0, False),
        ]  # fmt: skip
        for name, operator, value, expected in rows:
            body = {"field": name, "operator": operator, "value": value}
            body.update({"value2": cast(int, value) + 1} if operator == "bw" else {})
            with self.subTest(name=name, operator=operator):
                self.assertEqual(self.matches({"attribute": body}), expected)

    def test_inverse_turns_an_operator_round(self) -> None:
        for value, inverse, expected in (
            ("pro", True, False),
            ("basic", True, True),
            ("pro", False, True),
            ("pro", "true", True),  # only true itself does (inferred)
        ):
            body = {"field": "plan", "operator": "eq", "value": value, "inverse": inverse}
            self.assertEqual(self.matches({"attribute": body}), expected, (value, inverse))

    def test_and_or_not_and_segment(self) -> None:
        yes, no = {"segment": {"id": 7}}, {"segment": {"id": 8}}
        rows = [
            (yes, True),
            (no, False),
            ({"and": [yes, yes]}, True),
            ({"and": [yes, no]}, False),
            ({"or": [no, yes]}, True),
            ({"not": no}, True),
            ({"not": {"or": [no, no]}}, True),
        ]
        for spec, expected in rows:
            self.assertEqual(self.matches(spec), expected, spec)

    def test_mistakes_name_their_place(self) -> None:
        rows: list[tuple[Any, str]] = [
            ([], "filter must be"),
            ({"and": [], "or": []}, "exactly one"),
            ({"and": [{"x": 1}]}, "filter.and[0]"),
            ({"not": []}, "filter.not"),
            ({"segment": {"id": True}}, "filter.segment.id"),
            ({"attribute": {"operator": "eq"}}, "filter.attribute.field"),
            ({"attribute": {"field": "a", "operator": ["eq"]}}, "filter.attribute.operator"),
            ({"attribute": {"field": "a", "operator": "eq"}}, "filter.attribute.value"),
        ]
        for spec, text in rows:
            with self.assertRaises(ApiError) as caught:
                compile_filter(spec, "filter", lambda _, number: False)
            self.assertIn(text, caught.exception.message)


class SegmentConditions(FakeTest):
    """What segments ask beside attributes: what happened, and when."""

    START = 1_700_000_000

    def members(self, conditions: Any, **now: Any) -> list[str]:
        """Who is in a segment with these conditions."""
        workspace = self.fake.workspace
        predicate = workspace.segments.compile(conditions, "conditions")
        return [person.id for person in workspace.people if predicate(person)]

    def setUp(self) -> None:
        super().setUp()
        self.clock(now=self.START, freeze=True)
        self.identify("1", plan="pro", seen=self.START - 100, tags=["a", "b"], car={"make": "Fiat"})
        self.identify("2", plan="free", seen=self.START + 100)

    def clock(self, **body: Any) -> None:
        self.call("PUT", "/__parlel/clock", body)

    def track(self, id: str, name: str, timestamp: int | None = None, **data: Any) -> None:
        body = {"name": name, "data": data, "timestamp": timestamp}
        self.call("POST", f"/api/v1/customers/{id}/events", body)

    def test_each_further_operator(self) -> None:
        rows = [
            ("plan", "!eq", "pro", None, "2"),
            ("plan", "!contains", "RE", None, "1"),
            ("none", "!exists", None, None, "12"),
            ("seen", "bw", self.START, self.START + 100, "2"),
            ("seen", "bw", self.START - 1000, self.START - 50, "1"),
            ("seen", "is_timestamp", None, None, "12"),
            ("plan", "is_timestamp", None, None, ""),
            ("seen", "timestamp_gta", self.START, None, "2"),
            ("seen", "timestamp_lta", self.START, None, "1"),
            ("seen", "timestamp_gt", "0", None, "2"),
            ("seen", "timestamp_gt", "-100", None, "2"),
            ("seen", "timestamp_gt", "-101", None, "12"),
            ("seen", "timestamp_lt", "-100", None, "1"),
            ("seen", "timestamp_lt", "-101", None, ""),
            ("seen", "timestamp_bw", "-101", "0", "1"),
            ("tags[]", "eq", "B", None, "1"),
            ("tags[0]", "eq", "b", None, ""),
            ("car.make", "eq", "fiat", None, "1"),
        ]
        for field, operator, value, value2, expected in rows:
            body = {"field": field, "operator": operator, "value": value, "value2": value2}
            with self.subTest(field=field, operator=operator, value=value):
                self.assertEqual("".join(self.members({"attribute": body})), expected)

    def test_a_text_that_means_no_time(self) -> None:
        for text, expected in (
            ("5" + "." + "0" * 58, "1"), ("5" + "." + "0" * 59, ""), ("1e30", ""), ("-1", "1"),
            ("2024-02-31T", ""), ("2024-02-28", "1"), ("", ""),
        ):  # fmt: skip
            self.call("PUT", "/api/v1/customers/1", {"when": text})
            spec = {"attribute": {"field": "when", "operator": "is_timestamp"}}
            self.assertEqual("".join(self.members(spec)), expected, text)

    def test_events_by_count_data_and_window(self) -> None:
        self.track("1", "order", total=5)
        self.track("1", "order", total=50)
        self.track("2", "order", total=7, timestamp=self.START - 3600)
        dear = {"and": [{"field": "total", "operator": "gt", "value": 6}]}
        order = {"name": "order"}
        rows = [
            ({"event": order}, "12"),
            ({"event": order, "times": 2}, "1"),
            ({"event": order, "inverse": True}, ""),
            ({"event": {"name": "Order"}}, ""),
            ({"event": {**order, "filters": dear}}, "12"),
            ({"event": {**order, "filters": dear}, "times": 2}, ""),
            ({"event": order, "within": 3600}, "1"),
            ({"event": order, "within": 3601}, "12"),
            ({"event": {**order, "type": "page"}}, ""),
        ]
        for spec, expected in rows:
            self.assertEqual("".join(self.members(spec)), expected, spec)

    def test_nobody_has_failed_to_do_in_a_week_what_they_had_no_week_for(self) -> None:
        spec = {"event": {"name": "order"}, "within": 7 * 86400, "inverse": True}
        self.assertEqual(self.members(spec), [])
        self.track("2", "other", timestamp=self.START - 8 * 86400)
        self.assertEqual(self.members(spec), ["2"])
        self.clock(advance=7 * 86400 - 1)
        self.assertEqual(self.members(spec), ["2"])
        self.clock(advance=1)
        self.assertEqual(self.members(spec), ["1", "2"])
        self.track("1", "order")
        self.assertEqual(self.members(spec), ["2"])

    def test_attribute_changes_are_kept_once_somebody_asks_for_them(self) -> None:
        to_pro = {"field": "to", "operator": "eq", "value": "pro"}
        changed = {"name": "plan", "type": "attribute_change", "filters": {"and": [to_pro]}}
        self.assertEqual(self.members({"event": changed}), [])
        self.identify("2", plan="pro")
        self.assertEqual(self.members({"event": changed}), ["2"])
        self.assertEqual(self.members({"event": changed, "inverse": True}), ["1"])
        nobody = {"event": {**changed, "name": "nothing"}, "inverse": True}
        self.assertEqual(self.members(nobody), [])

    def test_messages_devices_and_objects(self) -> None:
        device = {"device": {"id": "t", "platform": "ios"}}
        self.call("PUT", "/api/v1/customers/1/devices", device)
        to = {"object_type_id": "1", "object_id": "acme"}
        related = [{"identifiers": {"id": "2"}, "relationship_attributes": {"role": "boss"}}]
        thing = {"type": "object", "action": "identify", "identifiers": to, "attributes": {"n": 3}}
        body = {**thing, "cio_relationships": related}
        self.assertEqual(self.call("POST", "/api/v2/entity", body).status, 200)
        mail = {"to": "a@b.co", "identifiers": {"id": "1"}, "subject": "s", "body": "b",
                "from": "c@d.co"}  # fmt: skip
        self.call("POST", "/v1/send/email", mail)
        rows = [
            ({"device_attribute": {"field": "platform", "operator": "eq", "value": "iOS"}}, "1"),
            ({"object_attribute": {"field": "n", "operator": "gt", "value": 2}}, "2"),
            ({"object_attribute": {"type_id": 2, "field": "n", "operator": "gt", "value": 2}}, ""),
            ({"relationship_attribute": {"field": "role", "operator": "eq", "value": "boss"}}, "2"),
            ({"message": {"metric": "delivered"}}, "1"),
            ({"message": {"metric": "delivered"}, "inverse": True}, "2"),
            ({"message": {"metric": "delivered", "campaign_id": 3}}, ""),
        ]
        for spec, expected in rows:
            self.assertEqual("".join(self.members(spec)), expected, spec)

    def test_mistakes_name_their_place_and_the_nearest_word(self) -> None:
        field = {"field": "a", "operator": "eq", "value": "b"}
        rows: list[tuple[Any, str]] = [
            ({"event": {}}, "conditions.event.name"),
            ({"event": {"name": "x", "type": "y"}}, "conditions.event.type"),
            ({"event": {"name": "x"}, "time": 3}, "conditions.time does not go with event; "
             "did you mean times?"),
            ({"event": {"name": "x"}, "times": 0}, "conditions.times must be"),
            ({"event": {"name": "x"}, "within": "1 d"}, "conditions.within must be"),
            ({"attribute": field, "inverse": "yes"}, "conditions.inverse must be"),
            ({"event": {"name": "x", "filters": [field]}}, "conditions.event.filters must be"),
            ({"message": {"metric": "open"}}, "conditions.message.metric must be one of"),
            ({"message": {"metric": "sent", "action": 3}}, "did you mean action_id?"),
            ({"attribute": {**field, "operator": "timestamp_gt"}}, "must be a number of seconds"),
            ({"attribute": {**field, "operator": "bw"}}, "conditions.attribute.value2"),
            ({"event_attribute": field}, "conditions has 'event_attribute'"),
            ({"attribute": {**field, "negate": 1}}, "conditions.attribute.negate is unknown"),
            ({"attribute": {**field, "feild": 1}}, "conditions.attribute.feild is unknown; did you "
             "mean field?"),
            ({"segment": {"id": 1, "inverse": True}}, "conditions.segment.inverse is unknown"),
            ({"event": {"name": "x", "filter": {}}}, "conditions.event.filter is unknown; did you "
             "mean filters?"),
            ({"event": {"name": "x", "type": []}}, "conditions.event.type must be one of: event"),
            ({"message": {"metric": "sent", "action_id": "3"}},
             "conditions.message.action_id must be a whole number"),
            ({"message": {"metric": "sent", "action_id": True}},
             "conditions.message.action_id must be a whole number"),
            ({"device_attribute": {"field": "os", "operator": "eq"}},
             "conditions.device_attribute.value is required"),
        ]  # fmt: skip
        for spec, text in rows:
            with self.assertRaises(ApiError, msg=str(spec)) as caught:
                self.members(spec)
            self.assertIn(text, caught.exception.message)


# ======================================================================================
# ==== §7 Records
# ======================================================================================


class Slots(unittest.TestCase):
    def test_records_have_the_fields_that_they_declare_and_no_others(self) -> None:
        person, device = customerio_fake.Person(1, 0), customerio_fake.Device
        device_of_hers = device("t", "ios", 5, {"a": 1}, person)
        self.assertEqual((device_of_hers.token, device_of_hers.last_used), ("t", 5))
        for record in (person, device_of_hers, customerio_fake.Request("GET", "/", {})):
            with self.subTest(type(record).__name__), self.assertRaises(AttributeError):
                setattr(record, "nickname", "x")  # noqa: B010 - mypy would see it, too
            self.assertFalse(hasattr(record, "__dict__"))


class Shelves(unittest.TestCase):
    def test_the_rows_of_a_parent_are_found_whatever_happened_in_between(self) -> None:
        shelf = customerio_fake.Shelf("campaign_actions", False)

        def found(parent: int) -> list[Any]:
            return [(row["id"], row["name"]) for row in shelf.where(_parent=parent)]

        for parent, name in ((1, "a"), (2, "b"), (1, "c")):
            shelf.add({"_parent": parent, "name": name})
        self.assertEqual((found(1), found(2), found(3)), ([(1, "a"), (3, "c")], [(2, "b")], []))
        shelf.add({"_parent": 1, "name": "d"})
        shelf.change(3, {"name": "C"})
        self.assertEqual(found(1), [(1, "a"), (3, "C"), (4, "d")])
        shelf.remove(1)
        self.assertEqual(found(1), [(3, "C"), (4, "d")])
        self.assertEqual([row["id"] for row in shelf.where(_parent=1, name="d")], [4])


# ======================================================================================
# ==== §8 People
# ======================================================================================


class Attributes(FakeTest):
    """What attributes may be, and what happens to them on the way."""

    def test_system_attributes_cannot_be_set(self) -> None:
        names = ("_created_in_customerio_at", "cio_timezone", "_last_emailed", "cio_id",
                 "_cio_subscription_preferences_computed")  # fmt: skip
        for name in names:
            reply = self.identify("1", plan="pro", **{name: "5"})
            self.assertEqual((reply.status, name in reply.reason), (200, True), name)
        self.assertEqual(self.person("1")["attributes"], {"plan": "pro"})
        self.assertEqual(self.identify("1", cio_id=None).reason, "")

    def test_some_names_are_reserved_on_objects(self) -> None:
        ref = {"object_type_id": "1", "object_id": "acme"}
        item = {"type": "object", "action": "identify", "identifiers": ref}
        for name in ("relationship", "_relationship"):
            reply = self.call("POST", "/api/v2/entity", {**item, "attributes": {name: 1}})
            self.assert_errors(reply, 400, f"attributes.{name}", "reserved")
        self.assertEqual(self.records("objects"), [])

    def test_v2_says_what_an_identifier_must_be_beside_its_name(self) -> None:
        for wrong in (True, ["1"], {"a": 1}):
            sides = {"primary": {"id": wrong}, "secondary": {"id": "2"}}
            merge = {"type": "person", "action": "merge", **sides}
            error = self.call("POST", "/api/v2/entity", merge).json["errors"][0]
            expected = {"field": "primary.id", "message": "must be a string or a number"}
            self.assertEqual({**error, **expected}, error)
        reply = self.call("POST", "/api/v1/merge_customers", sides)
        self.assert_errors(reply, 400, "primary.id must be a string or a number")

    def test_limits_hold_at_the_limit_and_not_beyond(self) -> None:
        rows: list[tuple[Any, int, str]] = [
            ({"n" * 150: 1}, 200, ""),
            ({"n" * 151: 1}, 400, "150 bytes"),
            ({"\u00e9" * 75: 1}, 200, ""),
            ({"\u00e9" * 76: 1}, 400, "150 bytes"),
            ({"a": "v" * 1000}, 200, ""),
            ({"a": "v" * 1001}, 400, "value for attribute 'a' cannot be longer than 1000 bytes"),
            ({"a": "\u00e9" * 501}, 400, "1000 bytes"),
            ({"a": ["v" * 1000]}, 400, "1000 bytes"),
            ({f"a{i}": i for i in range(300)}, 200, ""),
            ({f"a{i}": i for i in range(301)}, 400, "300 at most"),
            ({"id": "i" * 151}, 400, "150 bytes"),
            ({"email": []}, 400, "email must be a string"),
        ]
        for i, (attributes, status, text) in enumerate(rows):
            with self.subTest(text=text, row=i):
                reply = self.call("PUT", f"/api/v1/customers/{i}", attributes)
                self.assert_errors(reply, status, text)
        kept = [i for i, (_, status, _) in enumerate(rows) if status == 200]
        self.assertEqual([int(p["id"]) for p in self.records("customers")], kept)

    def test_all_breaches_are_listed(self) -> None:
        reply = self.identify("1", a="x" * 1001, b="x" * 1001)
        self.assertEqual(len(reply.json["meta"]["errors"]), 2)

    def test_an_identifier_in_the_path_has_its_limit_too(self) -> None:
        self.assertEqual(self.identify("i" * 150).status, 200)
        self.assert_errors(self.identify("i" * 151), 400, "150 bytes")

    def test_null_and_empty_delete_with_their_timestamp(self) -> None:
        self.identify("1", a=1, b=2, c=3)
        self.identify("1", a=None, b="")
        customer = self.ok("GET", "/v1/customers/1/attributes")["customer"]
        self.assertEqual(set(customer["attributes"]), {"c", "id", "cio_id"})
        self.assertEqual(set(customer["timestamps"]), {"c", "id", "cio_id"})

    def test_a_timestamp_moves_only_with_its_value(self) -> None:
        def stamps() -> Any:
            return self.ok("GET", "/v1/customers/1/attributes")["customer"]["timestamps"]

        self.identify("1", same="x", other="x", flag=True, deep={"a": 1})
        before = stamps()
        self.fake.workspace.agenda.advance(100)
        self.identify("1", same="x", other="y", flag=1, deep={"a": True})
        moved = {name for name, stamp in stamps().items() if stamp != before[name]}
        self.assertEqual(moved, {"other", "flag", "deep"})

    def test_an_email_is_shown_as_it_was_written_last(self) -> None:
        for written in ("Ada@example.com", "ada@example.com"):
            self.identify("1", email=written)
            self.assertEqual(self.person("1")["attributes"]["email"], written)

    def test_a_preference_by_its_dotted_name_goes_with_other_attributes(self) -> None:
        self.identify("1", **{"cio_subscription_preferences.topics.topic_1": True, "plan": "x"})
        wanted = {"topics": {"topic_1": True}}
        attributes = self.person("1")["attributes"]
        self.assertEqual(attributes, {"plan": "x", "cio_subscription_preferences": wanted})

    def test_a_device_is_an_activity(self) -> None:
        device = {"device": {"id": "t", "platform": "ios"}}
        self.ok("PUT", "/api/v1/customers/1/devices", device)
        (row,) = self.ok("GET", "/v1/activities?type=device_change")["activities"]
        about = (row["customer_id"], row["data"])
        self.assertEqual(about, ("1", {"token": "t", "platform": "ios"}))

    def test_timestamp_orders_updates(self) -> None:
        self.identify("1", a="new", _timestamp=2000)
        self.identify("1", a="old", b="first", _timestamp=1000)
        self.assertEqual(self.person("1")["attributes"], {"a": "new", "b": "first"})

    def test_of_two_updates_with_the_same_timestamp_the_later_call_counts(self) -> None:
        for value in ("one", "two"):
            self.identify("1", a=value, _timestamp=1000)
            self.assertEqual(self.person("1")["attributes"], {"a": value})

    def test_unsubscribed_in_all_its_spellings(self) -> None:
        rows = [(True, True), ("TRUE", True), ("tRuE", True), (1, True), ("1", True)]
        rows += [(False, False), ("yes", False), (2, False), ("", False), (None, False)]
        for value, expected in rows:
            self.identify("1", unsubscribed=value)
            customer = self.ok("GET", "/v1/customers/1/attributes")["customer"]
            self.assertEqual(customer["unsubscribed"], expected, value)

    def test_preferences_are_set_whole_or_by_dotted_name(self) -> None:
        self.identify("1", cio_subscription_preferences={"topics": {"topic_1": True}})
        dotted = "cio_subscription_preferences.topics.topic_2"
        self.identify("1", **{dotted: False, "cio_subscription_preferences.channels.sms": True})
        expected = {"topics": {"topic_1": True, "topic_2": False}, "channels": {"sms": True}}
        preferences = self.person("1")["attributes"]["cio_subscription_preferences"]
        self.assertEqual(preferences, expected)
        text = self.attributes("1")["cio_subscription_preferences"]
        self.assertEqual(json.loads(text), expected)

    def test_control_keys_are_no_attributes(self) -> None:
        self.identify("1", id="1", cio_id="x", _update=False, _timestamp=None)
        self.assertEqual(self.person("1")["attributes"], {})

    def test_a_phone_that_does_not_identify_is_an_attribute(self) -> None:
        self.identify("1", phone="+15550199")
        self.assertEqual(self.attributes("1")["phone"], "+15550199")

    def test_relationships_come_with_an_identify(self) -> None:
        relationship = {
            "identifiers": {"object_type_id": "1", "object_id": "acme"},
            "relationship_attributes": {"role": "admin"},
        }
        value = {"action": "add_relationships", "relationships": [relationship]}
        self.identify("1", cio_relationships=value)
        (thing,) = self.records("objects")
        expected = [{"customer_id": "1", "attributes": {"role": "admin"}}]
        self.assertEqual((thing["object_id"], thing["relationships"]), ("acme", expected))
        self.identify("1", cio_relationships={**value, "action": "delete_relationships"})
        self.assertEqual(self.records("objects")[0]["relationships"], [])
        nameless = {"action": "add_relationships", "relationships": [{}]}
        mistakes: list[Any] = [{"action": "x"}, [], nameless]
        for bad in mistakes:
            self.assertEqual(self.identify("2", cio_relationships=bad).status, 400)
        self.assertEqual(len(self.records("customers")), 1)

    def test_a_known_time_zone_is_computed(self) -> None:
        self.identify("1", timezone="Nowhere/None")
        self.assertNotIn("cio_timezone", self.person("1")["attributes"])
        self.identify("1", timezone="UTC")
        if "cio_timezone" in self.person("1")["attributes"]:  # a machine may have no zone data
            self.assertEqual(self.person("1")["attributes"]["cio_timezone"], "UTC")


class IdOnly(FakeTest):
    settings = {"identifiers": "id"}

    def test_an_email_is_an_ordinary_attribute_that_may_repeat(self) -> None:
        self.identify("1", email="same@example.com")
        self.identify("2", email="same@example.com")
        found = self.ok("GET", "/v1/customers?email=SAME@example.com")["results"]
        self.assertEqual([row["id"] for row in found], ["1", "2"])
        self.identify("1", email="other@example.com")
        found = self.ok("GET", "/v1/customers?email=same@example.com")["results"]
        self.assertEqual([row["id"] for row in found], ["2"])

    def test_a_broadcast_goes_to_all_who_share_an_email_only_if_it_is_told_to(self) -> None:
        action = {"subject": "Hi", "body": "x", "from": "shop@example.com"}
        twins = [{"id": n, "attributes": {"email": "same@example.com"}} for n in ("1", "2")]
        seed = {"customers": twins, "broadcasts": [{"id": 1, "name": "B", "actions": [action]}]}
        self.ok("POST", "/__parlel/seed", seed)
        payload: Dict[str, Any] = {"emails": ["same@example.com"]}
        for flag, status, sent in ((None, 422, 0), (False, 422, 0), (True, 200, 2)):
            more = {} if flag is None else {"email_add_duplicates": flag}
            reply = self.call("POST", "/v1/campaigns/1/triggers", {**payload, **more})
            self.assertEqual((reply.status, len(self.records("deliveries"))), (status, sent), flag)

    def test_an_emails_shape_in_a_path_is_an_id(self) -> None:
        self.identify("a@example.com")
        self.assertEqual(self.person("a@example.com")["id"], "a@example.com")

    def test_an_emails_shape_in_a_user_id_is_an_id(self) -> None:
        self.ok("POST", "/v1/identify", {"userId": "a@example.com"})
        self.assertEqual(self.person("a@example.com")["id"], "a@example.com")

    def test_a_different_id_in_the_body_is_refused(self) -> None:
        reply = self.identify("1", id="2")
        text = "id attribute and identifier are not the same value"
        self.assertEqual(reply.json, {"meta": {"errors": [text]}})
        for id in (1, "", None):
            self.assertEqual(self.identify("1", id=id).status, 200, id)

    def test_an_email_is_no_id_type(self) -> None:
        self.identify("1", email="a@example.com")
        rows = [("a@example.com", "email", 400), ("1", "id", 200), ("1", "phone", 400)]
        for value, id_type, status in rows:
            path = f"/v1/customers/{value}/attributes?id_type={id_type}"
            self.assertEqual(self.call("GET", path).status, status, path)
        reply = self.call("GET", "/v1/customers/1/messages?id_type=email")
        self.assert_errors(reply, 400, "id_type must be one of: id, cio_id")
        reply = self.call("POST", "/v1/customers/attributes?id_type=email", {"ids": ["1"]})
        self.assert_errors(reply, 400, "id_type")

    def test_v2_refuses_email_as_identifier(self) -> None:
        item = {"type": "person", "action": "identify", "identifiers": {"email": "a@b.cd"}}
        self.assert_errors(self.call("POST", "/api/v2/entity", item), 400, "identifiers")

    def test_reports_name_people_by_id_alone(self) -> None:
        self.identify("1", email="a@example.com", unsubscribed=True)
        message = {"to": "a@example.com", "transactional_message_id": 1, "identifiers": {"id": "1"}}
        self.ok("POST", "/v1/send/email", message)
        metrics = {row["metric"]: row["data"]["identifiers"] for row in self.records("webhooks")}
        self.assertEqual(metrics["unsubscribed"], {"id": "1"})
        self.assertEqual(metrics["sent"], {"id": "1"})


class EmailOnly(FakeTest):
    settings = {"identifiers": "email"}

    def test_people_are_known_by_email_alone(self) -> None:
        self.identify("a@example.com", id="7")
        (person,) = self.records("customers")
        self.assertEqual((person["id"], person["identifiers"]["email"]), (None, "a@example.com"))
        self.assert_errors(self.identify("7"), 400, "email")

    def test_an_id_is_no_id_type(self) -> None:
        self.identify("a@example.com")
        path = "/v1/customers/a%40example.com/attributes?id_type="
        self.assertEqual(self.call("GET", path + "email").status, 200)
        self.assert_errors(self.call("GET", path + "id"), 400, "id_type")
        self.assertEqual(self.call("GET", path).status, 404)

    def test_a_user_id_is_an_email(self) -> None:
        self.ok("POST", "/v1/identify", {"userId": "a@example.com"})
        reply = self.call("POST", "/v1/identify", {"userId": "7"})
        self.assertIn("userId must be an email", reply.reason)
        self.assertEqual(len(self.records("customers")), 1)


class PhoneOn(FakeTest):
    settings = {"phone": True, "update_email_by_id": True}

    def test_a_phone_identifies_in_v2_and_in_app(self) -> None:
        item = {"type": "person", "action": "identify", "identifiers": {"phone": "+15551234567"}}
        self.ok("POST", "/api/v2/entity", {**item, "attributes": {"a": 1}})
        self.ok("POST", "/api/v2/entity", {**item, "attributes": {"b": 2}})
        path = "/v1/customers/%2B15551234567/attributes?id_type=phone"
        attributes = self.ok("GET", path)["customer"]["attributes"]
        self.assertEqual((attributes["a"], attributes["b"]), ("1", "2"))
        self.assertEqual(attributes["phone"], "+15551234567")

    def test_an_id_may_change_the_email(self) -> None:
        self.identify("1", email="old@example.com")
        self.identify("1", email="new@example.com")
        self.assertEqual(self.person("1")["identifiers"]["email"], "new@example.com")


class MergeRules(FakeTest):
    """What goes over to the primary, and what stays the primary's."""

    def entity(self, **item: Any) -> None:
        self.ok("POST", "/api/v2/entity", item)

    def test_segments_relationships_and_deliveries_go_over(self) -> None:
        self.identify("1")
        self.identify("2", email="two@example.com")
        relations = [
            {"identifiers": {"object_type_id": "1", "object_id": "acme"}},
            {"identifiers": {"object_type_id": "1", "object_id": "globex"}},
        ]
        who = {"type": "person", "action": "add_relationships"}
        self.entity(**who, identifiers={"id": "2"}, cio_relationships=relations)
        mine = {**relations[0], "relationship_attributes": {"role": "owner"}}
        self.entity(**who, identifiers={"id": "1"}, cio_relationships=[mine])
        self.ok("POST", "/api/v1/segments/7/add_customers", {"ids": ["2"]})
        message = {"to": "x@y.zz", "transactional_message_id": 1, "identifiers": {"id": "2"}}
        self.ok("POST", "/v1/send/email", message)
        body = {"primary": {"id": "1"}, "secondary": {"id": "2"}}
        self.ok("POST", "/api/v1/merge_customers", body)
        related = {t["object_id"]: t["relationships"] for t in self.records("objects")}
        self.assertEqual(related["acme"], [{"customer_id": "1", "attributes": {"role": "owner"}}])
        self.assertEqual(related["globex"], [{"customer_id": "1", "attributes": {}}])
        self.assertEqual(self.records("segments")[0]["customer_ids"], ["1"])
        cio_id = self.person("1")["cio_id"]
        self.assertEqual(self.records("deliveries")[0]["cio_id"], cio_id)
        self.ok("DELETE", "/api/v1/customers/1")
        self.assertEqual(self.records("segments")[0]["customer_ids"], [])
        self.assertEqual([t["relationships"] for t in self.records("objects")], [[], []])

    def test_the_older_person_survives_an_auto_merge(self) -> None:
        self.identify("old@example.com", age=1)
        older = self.records("customers")[0]["cio_id"]
        self.identify("1")
        self.identify("1", email="old@example.com", plan="pro")
        (person,) = self.records("customers")
        expected = {"age": 1, "email": "old@example.com", "plan": "pro"}
        self.assertEqual((person["cio_id"], person["attributes"]), (older, expected))
        self.assertEqual(person["id"], "1")


# ======================================================================================
# ==== §9 Events, objects and segments
# ======================================================================================


class EventMemory(FakeTest):
    """30 days of anonymous events, and of events in a merge."""

    def test_an_anonymous_event_waits_30_days_for_its_person(self) -> None:
        event = {"name": "visit", "anonymous_id": "a"}
        self.ok("POST", "/api/v1/events", event)
        self.fake.workspace.agenda.advance(10 * 86400)
        self.ok("POST", "/api/v1/events", event)
        self.fake.workspace.agenda.advance(21 * 86400)
        self.identify("1", anonymous_id="a")
        owners = [event["customer_id"] for event in self.records("events")]
        self.assertEqual(owners, [None, "1"])

    def test_an_anonymous_id_is_given_once(self) -> None:
        self.identify("1", anonymous_id="a")
        self.fake.workspace.agenda.advance(301)
        self.ok("POST", "/api/v1/events", {"name": "late", "anonymous_id": "a"})
        self.identify("2", anonymous_id="a")
        self.assertIsNone(self.records("events")[0]["customer_id"])

    def test_a_merge_carries_30_days_over(self) -> None:
        self.identify("1")
        self.ok("POST", "/api/v1/customers/2/events", {"name": "old"})
        self.fake.workspace.agenda.advance(31 * 86400)
        self.ok("POST", "/api/v1/customers/2/events", {"name": "new"})
        body = {"primary": {"id": "1"}, "secondary": {"id": "2"}}
        self.ok("POST", "/api/v1/merge_customers", body)
        cio_ids = [event["cio_id"] for event in self.records("events")]
        self.assertEqual(cio_ids, [None, self.person("1")["cio_id"]])

    def test_a_deleted_person_leaves_events_without_a_person(self) -> None:
        self.ok("POST", "/api/v1/customers/1/events", {"name": "x"})
        self.ok("DELETE", "/api/v1/customers/1")
        (event,) = self.records("events")
        self.assertEqual((event["cio_id"], event["customer_id"]), (None, "1"))


# ======================================================================================
# ==== §10 Deliveries
# ======================================================================================


class FewDeliveries(SeededTest):
    settings = {"deliveries": 3}

    def test_the_oldest_go_first_and_are_counted(self) -> None:
        message = {"transactional_message_id": 3, "to": "a@b.cd", "identifiers": {"id": "bob"}}
        sent = [self.ok("POST", "/v1/send/email", message)["delivery_id"] for _ in range(5)]
        answer = self.ok("GET", "/__parlel/deliveries")
        self.assertEqual([row["delivery_id"] for row in answer["deliveries"]], sent[2:])
        self.assertEqual((answer["count"], answer["dropped"]), (3, 3))  # m1 is in the seed
        for path, ids in (
            ("/v1/transactional/3/messages", sent[2:]),
            ("/v1/customers/bob/messages", sent[2:]),
            ("/v1/customers/ada/messages", []),
        ):
            rows = self.ok("GET", path)["messages"] or []
            self.assertEqual(sorted(row["id"] for row in rows), sorted(ids), path)
        self.assertEqual(self.status("GET", f"/v1/messages/{sent[0]}"), 404)
        state = self.ok("GET", "/__parlel/state")
        self.ok("PUT", "/__parlel/state", state)
        self.assertEqual(self.ok("GET", "/__parlel/deliveries")["dropped"], 3)
        self.call("DELETE", "/api/v1/customers/bob")
        self.ok("POST", "/v1/send/email", {**message, "identifiers": {"id": "ada"}})
        self.ok("PUT", "/__parlel/state", self.ok("GET", "/__parlel/state"))

    def test_what_waits_is_sent_although_it_is_forgotten(self) -> None:
        self.ok("PUT", "/__parlel/clock", {"freeze": True})
        message = {"transactional_message_id": 3, "to": "a@b.cd", "identifiers": {"id": "bob"}}
        later = {"send_at": self.fake.workspace.seconds() + 60}
        self.ok("POST", "/v1/send/email", {**message, **later})
        for _ in range(4):
            self.ok("POST", "/v1/send/email", message)
        self.ok("PUT", "/__parlel/clock", {"advance": 61})
        reported = [row["metric"] for row in self.records("webhooks")]
        self.assertEqual(reported.count("sent"), 5)

    def test_when_a_person_last_got_an_email_is_known_whatever_becomes_of_their_deliveries(
        self,
    ) -> None:
        start = 1_800_000_000
        self.ok("PUT", "/__parlel/clock", {"now": start, "freeze": True})
        message = {"transactional_message_id": 3, "to": "a@b.cd", "identifiers": {"id": "bob"}}

        def last(name: str) -> Any:
            found = self.attributes(name).get("_last_emailed")
            return found and int(found) - start

        later = self.ok("POST", "/v1/send/email", {**message, "send_at": start + 60})
        self.assertIsNone(last("bob"))
        self.ok("POST", "/v1/send/email", message)
        self.assertEqual(last("bob"), 0)
        self.ok("PUT", "/__parlel/clock", {"advance": 60})
        self.assertEqual(last("bob"), 60)
        self.ok("PUT", "/__parlel/state", self.ok("GET", "/__parlel/state"))
        self.assertEqual(last("bob"), 60)
        self.ok("DELETE", f"/__parlel/deliveries/{later['delivery_id']}")
        self.assertEqual(last("bob"), 0)
        sides = {"primary": {"id": "ada"}, "secondary": {"id": "bob"}}
        self.ok("POST", "/api/v1/merge_customers", sides)
        self.assertEqual(last("ada"), 0)
        for _ in range(3):  # ada's are forgotten
            self.ok("POST", "/v1/send/email", {**message, "identifiers": {"id": "eve"}})
        self.assertIsNone(last("ada"))
        self.assertEqual(last("eve"), 60)

    def test_the_steps_of_a_message_are_activities_one_by_one(self) -> None:
        message = {"transactional_message_id": 3, "to": "a@b.cd", "identifiers": {"id": "bob"}}
        for _ in range(2):
            self.ok("POST", "/v1/send/email", message)
        steps = ["delivered_email", "sent_email"]
        for _ in range(2):
            found: list[Any] = []
            page = self.ok("GET", "/v1/activities?limit=1")
            while len(found) < 4:
                found += page["activities"]
                page = self.ok("GET", f"/v1/activities?limit=1&start={page['next']}")
            self.assertEqual([row["type"] for row in found], steps * 2)
            self.assertEqual(len({row["id"] for row in found}), 4)
            self.ok("PUT", "/__parlel/state", self.ok("GET", "/__parlel/state"))

    def test_those_who_got_more_by_a_merge_keep_only_the_newest(self) -> None:
        message = {"transactional_message_id": 3, "to": "a@b.cd"}
        for name in ("eve", "bob", "eve"):
            self.ok("POST", "/v1/send/email", {**message, "identifiers": {"id": name}})
        sides = {"primary": {"id": "eve"}, "secondary": {"id": "bob"}}
        self.ok("POST", "/api/v1/merge_customers", sides)
        for _ in range(2):
            self.ok("POST", "/v1/send/email", {**message, "identifiers": {"id": "ada"}})
            kept = {row["delivery_id"] for row in self.records("deliveries")}
            theirs = self.ok("GET", "/v1/customers/eve/messages")["messages"]
            self.assertLessEqual({row["id"] for row in theirs}, kept)


# ======================================================================================
# ==== §11 Workspace
# ======================================================================================


class Parts(unittest.TestCase):
    """Each part works without a workspace, with only the parts that it is made of."""

    ONE, TWO = ("id", "1"), ("id", "2")

    def setUp(self) -> None:
        self.ground = customerio_fake.Ground(Settings())
        self.people = customerio_fake.People(self.ground)
        for who in (self.ONE, self.TWO):
            self.people.identify(who, {"plan": "pro"})
        self.two = cast(customerio_fake.Person, self.people.find(self.TWO))
        self.devices = customerio_fake.Devices(self.ground, self.people)
        self.events = customerio_fake.Events(self.ground, self.people)

    def merged(self, keeper: customerio_fake.Keeper) -> customerio_fake.Belongings:
        """What the first person has once the second one is merged into them."""
        self.people.keepers = (keeper,)
        self.people.merge(self.ONE, self.TWO)
        return cast(customerio_fake.Person, self.people.find(self.ONE)).has

    def test_devices(self) -> None:
        self.devices.add_device(self.TWO, "token", "ios", 0, {})
        self.assertEqual([*self.merged(self.devices).devices], ["token"])
        self.people.delete(self.ONE)
        self.assertEqual(self.devices.rows, {})

    def test_opt_outs(self) -> None:
        optouts = customerio_fake.OptOuts(self.ground)
        optouts.choose(self.two, [("sms", "+1")])
        self.assertEqual(self.merged(optouts).optouts, {("sms", "+1")})
        self.people.delete(self.ONE)
        self.assertEqual(optouts.rows, {})

    def test_events(self) -> None:
        self.events.track(self.TWO, customerio_fake.event_of("event", {"name": "x"}))
        self.assertEqual(self.merged(self.events).events, self.events.rows)
        self.people.delete(self.ONE)
        self.assertIsNone(self.events.rows[0].person)

    def test_objects_and_segments(self) -> None:
        objects = customerio_fake.Objects(self.ground, self.people, self.events)
        segments = customerio_fake.Segments(self.ground, self.people, objects)
        objects.identify_object(self.TWO, ("1", "acme"), {"size": 3})
        objects.add_relationship(self.TWO, ("1", "acme"), {"role": "owner"})
        asked = {"object_attribute": {"field": "size", "operator": "eq", "value": 3}}
        belongs = segments.compile(asked, "conditions")
        self.assertEqual([*filter(belongs, self.people)], [self.two])
        segments.add_to_segment(self.TWO, 5, [self.TWO])
        self.assertEqual(self.merged(segments).segments, {5})
        self.people.delete(self.ONE)
        self.assertEqual(segments.rows[5].members, {})

    def test_deliveries(self) -> None:
        deliveries = customerio_fake.Deliveries(self.ground, self.people, self.devices, self.events)
        delivery = customerio_fake.Delivery("d", "email", {}, 0)
        delivery.person = self.two
        deliveries.post(delivery)
        deliveries.report(delivery, "sent", 5)
        self.assertEqual(self.merged(deliveries).last_emailed(), 5)
        self.people.delete(self.ONE)
        self.assertIsNone(delivery.person)

    def test_journeys(self) -> None:
        journeys = customerio_fake.Journeys(self.ground, self.people)
        journey = customerio_fake.Journey(1, self.two, {}, None)
        self.two.own().journeys.append(journey)
        self.assertEqual(self.merged(journeys).journeys, [journey])
        self.people.delete(self.ONE)
        self.assertEqual((journey.state, journey.person), ("never_activated", None))


class IngestDelay(FakeTest):
    settings = {"ingest_delay": 2.0}

    def test_writes_are_seen_later_and_in_order(self) -> None:
        self.assertEqual(self.identify("1", a=1).status, 200)
        self.identify("1", a=2)
        self.ok("POST", "/api/v1/customers/1/events", {"name": "x"})
        self.assertEqual((self.records("customers"), self.records("events")), ([], []))
        self.assertEqual(self.call("GET", "/v1/customers/1/attributes").status, 404)
        self.fake.workspace.agenda.advance(2)
        self.assertEqual(self.person("1")["attributes"], {"a": 2})
        self.assertEqual(len(self.records("events")), 1)

    def test_mistakes_are_told_at_once(self) -> None:
        self.assertEqual(self.call("POST", "/api/v1/customers/1/events", {}).status, 400)

    def test_a_reset_forgets_what_was_under_way(self) -> None:
        self.identify("1")
        self.ok("POST", "/__parlel/reset")
        self.fake.workspace.agenda.advance(2)
        self.assertEqual(self.records("customers"), [])


class Mishaps(FakeTest):
    """What fails while nobody asks for it is told, and does no harm to the rest."""

    TEMPLATE = {"type": "email", "subject": "s", "body": "b", "headers": "bad"}

    def test_a_message_that_can_not_be_sent_when_it_is_due(self) -> None:
        self.ok(
            "POST", "/__parlel/seed", {"transactional": [{"id": 3, "contents": [self.TEMPLATE]}]}
        )
        now = int(self.ok("GET", "/__parlel/clock")["now"])
        message = {"to": "a@example.com", "identifiers": {"id": "1"}}
        later = {"transactional_message_id": 3, "send_at": now + 60}
        sent = self.ok("POST", "/v1/send/email", {**message, **later})
        clock = self.ok("PUT", "/__parlel/clock", {"advance": 120})
        self.assertFalse(clock["frozen"])
        delivery = self.ok("GET", f"/__parlel/deliveries/{sent['delivery_id']}")
        self.assertEqual(delivery["state"], "failed")
        self.assertIn("headers", delivery["failure_message"])

    def test_work_that_raises(self) -> None:
        workspace = self.fake.workspace
        workspace.agenda.later(workspace.clock.now() + 1, customerio_fake.try_again, 1)
        workspace.occasions.rested = (lambda number: [][number],)
        with self.assertLogs("customerio_fake", "ERROR"):
            self.ok("PUT", "/__parlel/clock", {"advance": 2})
        done: list[int] = []

        def act(position: int, thing: int) -> None:
            done.append([thing][thing % 2])

        with self.assertLogs("customerio_fake", "ERROR"):
            workspace.agenda.run_for_all([0, 1, 2], act, lambda: done.append(9))
        self.assertEqual(done, [0, 2, 9])


class SeveralAsOne(SeededTest):
    """What follows from several writes is done once, after all of them, and then again."""

    def test_a_batch_and_what_comes_after(self) -> None:
        person = {"type": "person", "action": "identify", "attributes": {"plan": "PRO"}}
        batch = [{**person, "identifiers": {"id": id}} for id in ("1", "2")]
        self.ok("POST", "/api/v2/batch", {"batch": batch})
        self.identify("3", plan="PRO")
        self.ok("POST", "/api/v2/batch", {"batch": [{**batch[0], "identifiers": {"id": "4"}}]})
        self.identify("5", plan="basic")
        self.identify("5", plan="PRO")
        sent = [(row["customer_id"], row["parents"]["action_id"]) for row in
                self.records("deliveries") if row["customer_id"] in "12345"]  # fmt: skip
        self.assertEqual(sorted(sent), [(id, action) for id in "12345" for action in (11, 12)])


# ======================================================================================
# ==== §12 Rendering
# ======================================================================================


class Messages(SeededTest):
    """What the customer would have received."""

    def send(self, **message: Any) -> Any:
        """Send an email of our own to Ada; gives the delivery."""
        own = {
            "subject": "Hi",
            "body": "<p>x</p>",
            "from": "shop@example.com",
            "to": "ada@example.com",
        }
        body = {**own, "identifiers": {"id": "ada"}, **message}
        sent = self.ok("POST", "/v1/send/email", body)
        return self.ok("GET", f"/__parlel/deliveries/{sent['delivery_id']}")

    def read(self, url: str) -> Reply:
        """Fetch a link out of a message, as a mail program would."""
        return self.call("GET", url.partition("localhost:4668")[2], authorization="")

    def test_a_template_is_rendered_with_all_that_it_names(self) -> None:
        self.identify("ada", first_name="Ada", age=36)
        body = "{{customer.first_name}} {{customer.age}} {{trigger.order.n}} {{snippets.footer}}"
        delivery = self.send(body=body, message_data={"order": {"n": 7}}, tracked=False)
        self.assertEqual(delivery["rendered"]["body"], "Ada 36 7 bye")
        self.assertEqual(delivery["state"], "delivered")
        self.assertEqual(list(delivery["metrics"]), ["delivered", "sent", "created"])

    def test_a_template_can_name_what_it_does_not_spell_out(self) -> None:
        self.identify("ada", first_name="Ada")
        self.ok("PUT", "/v1/snippets", {"name": "deep", "value": "{{customer.first_name}}"})
        rows = [
            '{% assign who = "cust" | append: "omer" %}{{ [who].first_name }}',
            "{% render_liquid trigger.text %}",
            "{{ snippets.deep }}",
        ]
        for body in rows:
            with self.subTest(body):
                data = {"text": "{{customer.first_name}}"}
                delivery = self.send(body=body, message_data=data, tracked=False)
                self.assertEqual(delivery["rendered"]["body"], "Ada")

    def test_reading_a_message_changes_nothing(self) -> None:
        id = self.send(body="<p>Hi</p>")["delivery_id"]
        before = self.ok("GET", "/__parlel/state")
        parts = self.records("deliveries")[-1]["rendered"]
        self.assertEqual((parts["body_plain"], parts["links"], parts["headers"]), ("Hi", [], {}))
        self.assertEqual(self.call("GET", f"/__parlel/deliveries/{id}/text").body, b"Hi")
        self.assertEqual(self.ok("GET", "/__parlel/state")["deliveries"], before["deliveries"])

    def test_the_seeded_content_is_used_in_the_persons_language(self) -> None:
        rows: list[tuple[dict[str, Any], str]] = [
            ({}, "Order"),
            ({"language": "es"}, "Pedido"),
            ({"language": "fr"}, "Order"),
            ({"subject": "Own"}, "Own"),
        ]
        message = {
            "to": "a@b.cd",
            "transactional_message_id": "receipt",
            "identifiers": {"id": "ada"},
        }
        for more, subject in rows:
            self.ok("POST", "/v1/send/email", {**message, **more})
            self.assertEqual(self.records("deliveries")[-1]["rendered"]["subject"], subject)
        self.identify("ada", language="es")
        self.ok("POST", "/v1/send/email", message)
        self.assertEqual(self.records("deliveries")[-1]["rendered"]["subject"], "Pedido")

    def test_reports_name_the_content_of_newsletters_only(self) -> None:
        sent = self.send(transactional_message_id="receipt")
        self.assertEqual(sent["parents"], {"transactional_message_id": 3, "content_id": 31})
        self.ok("POST", "/v1/newsletters/30/send", {})
        own, news = (row["data"] for row in self.records("webhooks", "?metric=sent"))
        self.assertEqual((own["transactional_message_id"], "content_id" in own), (3, False))
        self.assertEqual((news["newsletter_id"], news["content_id"]), (30, 301))

    def test_a_report_tells_of_the_person_as_it_was(self) -> None:
        self.identify("ada", email="ada@example.com")
        self.identify("eve", email="eve@example.com")
        self.send(to="x@example.com")
        self.identify("ada", email="new@example.com")
        both = {"primary": {"id": "eve"}, "secondary": {"id": "ada"}}
        self.ok("POST", "/api/v1/merge_customers", both)
        self.send(identifiers={"id": "eve"})
        # Eve is a pro now, and so in the welcome campaign, too.
        rows = [row for row in self.records("webhooks", "?metric=sent")
                if "journey_id" not in row["data"]]  # fmt: skip
        named = [row["data"]["identifiers"]["email"] for row in rows]
        self.assertEqual(named, ["ada@example.com", "eve@example.com"])
        self.assertEqual([row["data"]["customer_id"] for row in rows], ["ada", "eve"])
        self.assertEqual(len({row["event_id"] for row in rows}), 2)

    def test_a_missing_attribute_fails_the_message_and_only_the_message(self) -> None:
        with self.assertLogs("customerio_fake", "WARNING") as logs:
            delivery = self.send(body="Hi\n {{customer.first_name}}")
        self.assertEqual(delivery["state"], "failed")
        text = "Variable 'customer.first_name' is missing"
        self.assertEqual(delivery["failure_message"], text)
        self.assertIn("line 2, column", logs.output[0])
        message = self.ok("GET", f"/v1/messages/{delivery['delivery_id']}")["message"]
        self.assertEqual((message["failure_message"], "sent" in message["metrics"]), (text, False))

    def test_an_unknown_namespace_prints_nothing(self) -> None:
        delivery = self.send(body="[{{foo.bar}}]", tracked=False)
        self.assertEqual((delivery["rendered"]["body"], delivery["state"]), ("[]", "delivered"))

    def test_a_broken_template_fails_with_its_place(self) -> None:
        delivery = self.send(subject="{% if %}")
        self.assertEqual((delivery["state"], delivery["history"][0]["line"]), ("failed", 1))

    def test_obstacles(self) -> None:
        self.ok("POST", "/v1/esp/suppression/bounces/blocked@example.com")
        self.identify("out", email="out@example.com", unsubscribed=True)
        self.identify("blank")
        rows: list[tuple[dict[str, Any], str, str]] = [
            ({"subject": " "}, "failed", "subject is blank"),
            ({"to": "BLOCKED@example.com"}, "dropped", "bounces"),
            ({"identifiers": {"id": "out"}}, "delivered", ""),
            (
                {"identifiers": {"id": "out"}, "send_to_unsubscribed": False},
                "undeliverable",
                "unsub",
            ),
            ({"to": "{{customer.none | default: ' '}}"}, "undeliverable", "no recipient"),
            ({"queue_draft": True}, "drafted", ""),
        ]
        for message, state, reason in rows:
            with self.subTest(message=message):
                delivery = self.send(**message)
                self.assertEqual(delivery["state"], state)
                self.assertIn(reason, delivery["failure_message"] or "")

    def test_a_push_needs_a_device(self) -> None:
        push = {"transactional_message_id": 3, "identifiers": {"id": "ada"}, "title": "T"}
        self.ok("POST", "/v1/send/push", push)
        self.assertEqual(self.records("deliveries")[-1]["state"], "undeliverable")
        device = {"token": "t", "platform": "ios"}
        self.ok("POST", "/v1/send/push", {**push, "custom_device": device})
        delivery = self.records("deliveries")[-1]
        self.assertEqual((delivery["state"], delivery["rendered"]["subject"]), ("delivered", "T"))

    def add_devices(self, *tokens: str) -> None:
        """Give Ada devices; each has been used a second after the one before it."""
        for last_used, token in enumerate(tokens, 1):
            device = {"id": token, "platform": "ios", "last_used": last_used}
            self.ok("PUT", "/api/v1/customers/ada/devices", {"device": device})

    def push(self, **message: Any) -> Any:
        """Send a push to Ada; gives the delivery."""
        own = {"transactional_message_id": 3, "identifiers": {"id": "ada"}, "title": "T"}
        sent = self.ok("POST", "/v1/send/push", {**own, **message})
        return self.ok("GET", f"/__parlel/deliveries/{sent['delivery_id']}")

    def test_a_push_goes_to_the_devices_that_it_names(self) -> None:
        self.add_devices("old", "new")
        device = {"id": "oldest", "platform": "android", "last_used": 0}
        self.ok("PUT", "/api/v1/customers/ada/devices", {"device": device})
        rows: list[tuple[dict[str, Any], list[str]]] = [
            ({}, ["old", "new", "oldest"]),
            ({"to": "all"}, ["old", "new", "oldest"]),
            ({"to": "last_used"}, ["new"]),
            ({"to": "oldest"}, ["oldest"]),
            ({"to": "{{trigger.token}}", "message_data": {"token": "old"}}, ["old"]),
        ]
        for message, tokens in rows:
            with self.subTest(message=message):
                delivery = self.push(**message)
                self.assertEqual((delivery["devices"], delivery["state"]), (tokens, "delivered"))
                self.assertEqual(delivery["recipient"], ", ".join(tokens))
                sent = self.records("webhooks", "?metric=sent")[-1]["data"]["recipients"]
                self.assertEqual([row["device_id"] for row in sent], tokens)

    def test_a_push_to_a_token_of_somebody_else_reaches_nobody(self) -> None:
        self.add_devices("mine")
        device = {"id": "theirs", "platform": "ios"}
        self.ok("PUT", "/api/v1/customers/bob/devices", {"device": device})
        delivery = self.push(to="theirs")
        self.assertEqual((delivery["state"], delivery["devices"]), ("undeliverable", []))
        self.assertIn("no device with the token", delivery["failure_message"])
        self.assertEqual(delivery["recipient"], "ada@example.com")

    def test_later_devices_do_not_join_a_push_that_was_sent(self) -> None:
        self.add_devices("first")
        delivery_id = self.push()["delivery_id"]
        self.ok("PUT", "/__parlel/state", self.ok("GET", "/__parlel/state"))
        self.add_devices("second")
        delivery = self.ok("POST", f"/__parlel/deliveries/{delivery_id}/opened")
        opened = self.records("webhooks", "?metric=opened")[0]["data"]["recipients"]
        self.assertEqual(delivery["devices"], ["first"])
        self.assertEqual(opened, [{"device_id": "first", "device_platform": "ios"}])

    def test_a_device_that_comes_with_a_push_is_there_when_that_is_sent(self) -> None:
        when = self.fake.workspace.seconds() + 60
        device = {"token": "t", "platform": "ios"}
        delivery_id = self.push(send_at=when, custom_device=device)["delivery_id"]
        self.assertEqual(self.records("devices"), [])
        self.ok("PUT", "/__parlel/clock", {"freeze": True, "advance": 60})
        self.assertEqual([row["last_used"] for row in self.records("devices")], [when])
        delivery = self.ok("GET", f"/__parlel/deliveries/{delivery_id}")
        self.assertEqual((delivery["state"], delivery["devices"]), ("delivered", ["t"]))

    def test_bounces_and_complaints_keep_later_emails_back(self) -> None:
        to = {"bounced": "bo@example.com", "spammed": "sp@example.com"}
        lists = {"bounced": ("bounces", "mailbox full"), "spammed": ("spam_reports", "spammed")}
        for metric, address in to.items():
            sent = self.send(to=f"Some One <{address.upper()}>")
            report = {"delivery_id": sent["delivery_id"], "metric": metric, "timestamp": 1700000000}
            if metric == "bounced":
                report["reason"] = "mailbox full"
            self.ok("POST", "/api/v1/metrics", report)
            name, reason = lists[metric]
            (row,) = self.ok("GET", f"/v1/esp/suppression/{name}")["suppressions"]
            known = {"email": address.upper(), "reason": reason, "created": 1700000000}
            self.assertEqual(row, {**known, "status": "550"})
            again = self.send(to=address)
            self.assertEqual((again["state"], name in again["failure_message"]), ("dropped", True))
            self.ok("GET", "/v1/customers/ada/attributes")  # the person stays
            path = f"/v1/esp/suppression/{name}/{address}"
            self.assertEqual(self.status("DELETE", path), 204)
            self.assertEqual(self.send(to=address)["state"], "delivered")

    def test_senders_of_domains_that_nobody_verified_reach_nobody(self) -> None:
        text = "from address does not belong to a verified sending domain"
        for sender, state in (
            ("Shop <SHOP@Example.com>", "delivered"),
            ("shop@example.org", "undeliverable"),
            ("shop@mail.example.com", "undeliverable"),
        ):
            delivery = self.send(**{"from": sender})
            self.assertEqual(delivery["state"], state, sender)
            self.assertEqual(delivery["failure_message"] == text, state != "delivered", sender)
        self.fake.seed({"customers": [{"id": "ada"}]})  # no senders: none is wrong
        self.assertEqual(self.send(**{"from": "shop@example.org"})["state"], "delivered")

    def test_a_push_does_not_wait_for_its_own_device_to_be_ingested(self) -> None:
        self.fake = Fake(Settings(ingest_delay=2))
        self.identify("ada")
        self.ok("PUT", "/__parlel/clock", {"advance": 2})
        device = {"token": "t", "platform": "ios"}
        self.assertEqual(self.push(custom_device=device)["devices"], ["t"])

    def test_a_bad_custom_device_is_refused_at_once(self) -> None:
        push = {"transactional_message_id": 3, "identifiers": {"id": "ada"}}
        rows: list[tuple[Any, str]] = [
            ("t", "Request entity must be JSON"),
            ({"token": "t"}, "platform"),
            ({"platform": "ios"}, "token"),
        ]
        for device, word in rows:
            reply = self.call("POST", "/v1/send/push", {**push, "custom_device": device})
            self.assert_errors(reply, 400, word)
        self.assertEqual(
            [row for row in self.records("deliveries") if row["channel"] == "push"], []
        )

    def statuses(self) -> dict[str, str]:
        """What the App API tells of the last push to each of Ada's devices."""
        devices = self.ok("GET", "/v1/customers/ada/attributes")["customer"]["devices"]
        return {device["id"]: device["attributes"]["_last_status"] for device in devices}

    def test_a_device_knows_what_became_of_the_last_push(self) -> None:
        self.add_devices("a", "b")
        self.assertEqual(self.statuses(), {"a": "", "b": ""})
        path = f"/__parlel/deliveries/{self.push(to='last_used')['delivery_id']}"
        self.assertEqual(self.statuses(), {"a": "", "b": "sent"})
        self.ok("POST", f"{path}/bounced", {"reason": "BadDeviceToken"})
        self.assertEqual(self.statuses(), {"a": "", "b": "bounced"})
        self.push()
        self.assertEqual(self.statuses(), {"a": "sent", "b": "sent"})
        self.ok("POST", f"{path}/dropped")
        self.assertEqual(self.statuses(), {"a": "sent", "b": "suppressed"})
        self.assertEqual(self.records("devices")[1]["attributes"], {"_last_status": "suppressed"})

    def test_only_the_service_sets_the_status_of_a_device(self) -> None:
        self.add_devices("a")
        self.push()
        device = {"id": "a", "platform": "ios", "attributes": {"_last_status": "bounced", "x": 1}}
        self.ok("PUT", "/api/v1/customers/ada/devices", {"device": device})
        kept = self.records("devices")[0]["attributes"]
        self.assertEqual(kept, {"_last_status": "sent", "x": "1"})

    def test_a_token_that_bounces_as_unregistered_goes(self) -> None:
        self.add_devices("a", "b")
        path = f"/__parlel/deliveries/{self.push()['delivery_id']}/bounced"
        self.ok("POST", path, {"reason": "Unregistered", "recipient": "a"})
        self.assertEqual(self.statuses(), {"b": "sent"})
        recipients = self.records("webhooks", "?metric=bounced")[0]["data"]["recipients"]
        failed = {"device_platform": "ios", "failure_message": "Unregistered"}
        self.assertEqual(recipients, [{"device_id": "a", **failed}])
        self.ok("POST", path, {"reason": "unregistered", "recipient": "elsewhere"})
        self.assertEqual(self.statuses(), {"b": "sent"})
        self.ok("POST", path, {"reason": "unregistered", "device_id": "b"})
        self.assertEqual(self.statuses(), {})
        self.assertEqual(self.push()["state"], "undeliverable")

    def test_links_pixel_and_unsubscribe_work_when_fetched(self) -> None:
        body = (
            '<a href="https://x.example/?a=1&amp;b=2">x</a> <a href="{% unsubscribe_url %}">no</a>'
        )
        delivery = self.send(body=body)
        html = self.call(
            "GET", f"/__parlel/deliveries/{delivery['delivery_id']}/html"
        ).body.decode()
        link, out = re.findall(r'href="([^"]+)"', html)
        (pixel,) = re.findall(r'img src="([^"]+)"', html)
        self.assertEqual(delivery["rendered"]["links"][0]["href"], "https://x.example/?a=1&b=2")
        clicked = self.read(link)
        self.assertEqual(
            (clicked.status, clicked.headers["location"]), (302, "https://x.example/?a=1&b=2")
        )
        self.assertEqual(self.read(pixel).headers["content-type"], "image/gif")
        self.assertEqual(self.read(out).status, 200)
        metrics = self.ok("GET", f"/__parlel/deliveries/{delivery['delivery_id']}")["metrics"]
        self.assertLessEqual({"clicked", "opened", "unsubscribed"}, set(metrics))
        self.assertTrue(self.person("ada")["unsubscribed"])
        self.assertEqual(self.read(link.replace("/1", "/2")).status, 404)

    def test_a_link_of_the_class_untracked_stays_as_it_is(self) -> None:
        url = "https://x.example/?class=a"
        rows = [
            (f"<a class='untracked' href='{url}'>", False),
            (f"<a href='{url}' class=\"big untracked\">", False),
            (f"<a\nCLASS=untracked href='{url}'>", False),
            (f"<a href='{url}' class='untracked-not'>", True),
            (f"<a href='{url}'><b class='untracked'>", True),
            (f"<a data-class='untracked' href='{url}'", True),
        ]
        for body, tracked in rows:
            with self.subTest(body=body):
                rendered = self.send(body=body)["rendered"]
                self.assertEqual([link["tracked"] for link in rendered["links"]], [tracked])
                self.assertEqual(url in rendered["body"], not tracked)

    def test_who_has_no_email_is_named_as_the_recipient(self) -> None:
        self.identify("plain")
        phone = "+15551234567"
        for channel, recipient in (("in_app", "plain"), ("inbox_message", "plain"), ("sms", phone)):
            to = {"to": phone} if channel == "sms" else {}
            body = {**to, "transactional_message_id": 3, "identifiers": {"id": "plain"}}
            sent = self.ok("POST", f"/v1/send/{channel}", body)
            row = self.ok("GET", f"/v1/messages/{sent['delivery_id']}")["message"]
            self.assertEqual((row["recipient"], row["failure_message"]), (recipient, None))

    def test_the_link_tag_prints_a_link_that_counts_clicks(self) -> None:
        self.add_devices("t")
        url = "https://x.example/?a=1"
        text = f"{{% cio_link url:{url} %}} {{% cio_link url:{url} track:false %}}"
        sms = {"transactional_message_id": 3, "to": "+15551234567", "body": text}
        sent = self.ok("POST", "/v1/send/sms", {**sms, "identifiers": {"id": "ada"}})
        rows = [self.ok("GET", f"/__parlel/deliveries/{sent['delivery_id']}")]
        for delivery in [*rows, self.push(message=text)]:
            tracked, plain = delivery["rendered"]["body"].split()
            self.assertEqual(plain, url)
            self.assertEqual(self.read(tracked).headers["location"], url)
            now = self.ok("GET", f"/__parlel/deliveries/{delivery['delivery_id']}")
            self.assertEqual((now["state"], "link:1" in now["metrics"]), ("clicked", True))
            clicked = self.records("webhooks", "?metric=clicked")[-1]["data"]
            self.assertEqual((clicked["href"], clicked["link_id"]), (url, 1))

    def test_the_link_tag_prints_the_link_itself_where_nothing_tracks_it(self) -> None:
        self.add_devices("t")
        web, app = "{% cio_link url:https://x.example/ %}", "{% cio_link url:app://x %}"
        rows: list[tuple[dict[str, Any], str]] = [
            ({"message": web, "tracked": False}, "https://x.example/"),
            ({"message": app}, "app://x"),
        ]
        for message, text in rows:
            self.assertEqual(self.push(**message)["rendered"]["body"], text)
        mail = self.send(body=f"<a href='{web}'>x</a>")["rendered"]
        self.assertEqual([link["href"] for link in mail["links"]], ["https://x.example/"])
        self.assertEqual(mail["body"].count("/e/c/"), 1)

    def test_an_email_can_leave_a_link_alone(self) -> None:
        one, two = "https://one.example/?a=1&b=2", "https://two.example/"
        tags = [
            f'{{% cio_link url:"{url}" track:{wanted} %}}'
            for url, wanted in ((one, "false"), (two, "true"))
        ]
        body = f"<a class=x href={tags[0]}>1</a><a href='{tags[1]}'>2</a>"
        rendered = self.send(body=body, transactional_message_id=3)["rendered"]
        self.assertIn(f"<a class=x href={one}>", rendered["body"])
        self.assertNotIn(two, rendered["body"])
        links = {row["href"]: row["tracked"] for row in rendered["links"]}
        self.assertEqual(links, {one: False, two: True})

    def test_links_that_do_not_end_take_no_longer_than_others(self) -> None:
        for body in ("<a " * 30_000, "<a href='https://x.example/'" * 20_000):
            start = time.perf_counter()
            self.send(body=body)
            self.assertLess(time.perf_counter() - start, 3)

    def test_a_link_has_the_same_number_everywhere(self) -> None:
        one, two = "https://one.example/", "https://two.example/"
        self.send(body=f"<a href='{one}'>1</a>", transactional_message_id=3)
        body = f"<a href='{two}'>2</a><a href='{one}'>1</a>"
        delivery = self.send(body=body, transactional_message_id=3)
        self.assertEqual([row["id"] for row in delivery["rendered"]["links"]], [2, 1])
        (link,) = re.findall(r"'(http[^']+/2)'", delivery["rendered"]["body"])
        self.assertEqual(self.read(link).headers["location"], two)
        clicked = self.records("webhooks", "?metric=clicked")[0]["data"]
        self.assertEqual((clicked["link_id"], clicked["href"]), (2, two))
        message = self.ok("GET", f"/v1/messages/{delivery['delivery_id']}")["message"]
        self.assertEqual([n for n in message["metrics"] if n.startswith("link:")], ["link:2"])
        (row,) = self.ok("GET", "/v1/transactional/3/metrics/links")["links"]
        self.assertEqual(row["link"], {"id": 2, "href": two})

    def test_tracked_responses_are_listed_when_asked_for(self) -> None:
        body = {"transactional_message_id": 3, "identifiers": {"id": "ada"}}
        sent = self.ok("POST", "/v1/send/in_app", body)["delivery_id"]
        for when, name in ((5, "yes"), (6, "no"), (7, "yes"), (8, "")):
            fact = {"delivery_id": sent, "metric": "clicked", "timestamp": when}
            self.ok("POST", "/api/v1/metrics", {**fact, "metadata": {"action_name": name}})
        path = f"/__parlel/deliveries/{sent}/clicked"
        self.ok("POST", path, {"timestamp": 9, "tracked_response": "later"})
        expected = {name: {"id": i, "ts": ts} for name, i, ts in
                    (("yes", 1, 5), ("no", 2, 6), ("later", 3, 9))}  # fmt: skip
        asked = "?get_tracked_responses=true"
        one = self.ok("GET", f"/v1/messages/{sent}{asked}")["message"]
        self.assertEqual(one["tracked_responses"], expected)
        for path in ("/v1/messages", "/v1/transactional/3/messages"):
            newest = self.ok("GET", f"{path}{asked}")["messages"][0]
            self.assertEqual(newest["tracked_responses"], expected)
            self.assertNotIn("tracked_responses", self.ok("GET", path)["messages"][0])
        names = [r["data"]["tracked_response"] for r in self.records("webhooks", "?metric=clicked")]
        self.assertEqual(names, ["yes", "no", "yes", "", "later"])
        told = {"deliveryId": sent, "metric": "clicked", "actionName": "maybe"}
        report = {"event": "Report Delivery Event", "properties": told}
        self.ok("POST", "/v1/track", {"userId": "ada", **report})
        one = self.ok("GET", f"/v1/messages/{sent}{asked}")["message"]
        self.assertEqual(one["tracked_responses"]["maybe"]["id"], 4)
        self.send()
        newest = self.ok("GET", f"/v1/messages{asked}")["messages"][0]
        self.assertEqual((newest["type"], newest["tracked_responses"]), ("email", {}))
        reply = self.call("GET", "/v1/messages?get_tracked_responses=x")
        self.assert_errors(reply, 400, "get_tracked_responses")

    def test_a_click_before_any_open_stands_for_one(self) -> None:
        delivery = self.send(body="<a href='https://x.example/'>x</a>")
        (link,) = re.findall(r"'(http[^']+/1)'", delivery["rendered"]["body"])
        self.read(link)
        self.read(link)
        path = f"/__parlel/deliveries/{delivery['delivery_id']}"
        history = [row["metric"] for row in self.ok("GET", path)["history"]]
        self.assertEqual(history, ["sent", "delivered", "opened", "clicked", "clicked"])
        (opened,) = self.records("webhooks", "?metric=opened")
        self.assertTrue(opened["data"]["synthetic"])
        body = {"delivery_id": self.send()["delivery_id"], "metric": "clicked", "timestamp": 5}
        self.ok("POST", "/api/v1/metrics", body)
        metrics = self.records("deliveries")[-1]["metrics"]
        self.assertEqual((metrics["opened"], metrics["clicked"]), (5, 5))

    def test_only_a_click_in_an_email_that_was_not_opened_stands_for_an_open(self) -> None:
        path = f"/__parlel/deliveries/{self.send()['delivery_id']}"
        self.ok("POST", f"{path}/opened")
        self.ok("POST", f"{path}/clicked")
        (opened,) = self.records("webhooks", "?metric=opened")
        self.assertFalse(opened["data"]["synthetic"])
        self.add_devices("t")
        path = f"/__parlel/deliveries/{self.push()['delivery_id']}"
        self.assertNotIn("opened", self.ok("POST", f"{path}/clicked")["metrics"])

    def test_a_reported_click_names_its_own_link(self) -> None:
        delivery_id = self.send(body="<a href='https://in.example/'>1</a>")["delivery_id"]
        rows: list[tuple[dict[str, Any], int, str]] = [
            ({"href": "https://app.example/"}, 2, "https://app.example/"),
            ({}, 1, "https://in.example/"),
            ({"href": 7}, 3, "7"),
        ]
        for fact, number, href in rows:
            body = {"delivery_id": delivery_id, "metric": "clicked", **fact}
            self.ok("POST", "/api/v1/metrics", body)
            clicked = self.records("webhooks", "?metric=clicked")[-1]["data"]
            self.assertEqual((clicked["link_id"], clicked["href"]), (number, href))
        path = f"/__parlel/deliveries/{delivery_id}/clicked"
        for wrong in ("x", 77, -5):
            self.assert_errors(self.call("POST", path, {"link_id": wrong}), 400, "link_id")

    def test_a_click_that_names_no_link_is_of_the_first_that_is_tracked(self) -> None:
        body = (
            "<a class='untracked' href='https://u.example/'>u</a><a href='https://x.example/'>x</a>"
        )
        delivery = self.send(body=body)
        path = f"/__parlel/deliveries/{delivery['delivery_id']}"
        self.ok("POST", f"{path}/clicked")
        clicked = self.records("webhooks", "?metric=clicked")[-1]["data"]
        self.assertEqual((clicked["link_id"], clicked["href"]), (2, "https://x.example/"))
        untracked = f"/e/c/{delivery['delivery_id']}/1"
        self.assertEqual(self.call("GET", untracked).status, 404)
        bare = {"transactional_message_id": 3, "identifiers": {"id": "ada"}}
        sent = self.ok("POST", "/v1/send/in_app", bare)["delivery_id"]
        self.ok("POST", f"/__parlel/deliveries/{sent}/clicked")
        clicked = self.records("webhooks", "?metric=clicked")[-1]["data"]
        self.assertEqual((clicked["link_id"], clicked["href"]), (0, ""))

    def test_a_push_reaches_a_device_or_nobody_whatever_is_in_it(self) -> None:
        self.fake = Fake(Settings())  # where nothing is known of any template
        bare = {"transactional_message_id": 1, "identifiers": {"id": "ada"}}
        self.ok("POST", "/v1/send/push", bare)
        self.add_devices("a")
        self.ok("POST", "/v1/send/push", {**bare, "to": "elsewhere"})
        self.ok("POST", "/v1/send/push", bare)
        states = [(d["state"], d["devices"]) for d in self.records("deliveries", "?channel=push")]
        self.assertEqual(
            states, [("undeliverable", []), ("undeliverable", []), ("delivered", ["a"])]
        )

    def test_a_draft_goes_where_it_can_when_it_is_sent(self) -> None:
        self.add_devices("a")
        path = f"/__parlel/deliveries/{self.push(queue_draft=True)['delivery_id']}"
        self.ok("DELETE", "/api/v1/customers/ada/devices/a")
        self.add_devices("b")
        delivery = self.ok("POST", f"{path}/sent")
        self.assertEqual((delivery["recipient"], delivery["devices"]), ("b", ["b"]))

    def test_a_send_that_can_reach_nobody_says_so(self) -> None:
        self.ok("POST", "/api/v1/customers/eve/suppress")
        body = {
            "transactional_message_id": 3,
            "to": "eve@example.com",
            "identifiers": {"id": "eve"},
        }
        reply = self.call("POST", "/v1/send/email", body)
        self.assertEqual(reply.status, 200)
        self.assertIn("suppressed", reply.reason)

    def test_a_preference_may_come_as_text(self) -> None:
        self.identify("ada", **{"cio_subscription_preferences.topics.topic_1": "false"})
        computed = self.attributes("ada")["_cio_subscription_preferences_computed"]
        self.assertFalse(json.loads(computed)["topics"]["topic_1"])

    def test_a_test_moves_a_delivery_on(self) -> None:
        path = f"/__parlel/deliveries/{self.send()['delivery_id']}"
        self.ok("POST", f"{path}/bounced", {"reason": "550"})
        delivery = self.ok("GET", path)
        self.assertEqual((delivery["state"], delivery["failure_message"]), ("bounced", "550"))
        self.assert_errors(self.call("POST", f"{path}/loved"), 404, "opened")
        activity = self.ok("GET", "/v1/customers/ada/activities")["activities"][0]
        self.assertEqual(activity["type"], "bounced_email")

    def test_messages_are_listed_with_drafts_or_without(self) -> None:
        sent = self.send()["delivery_id"]
        draft = self.send(queue_draft=True)["delivery_id"]
        rows = [("", sent), ("?drafts=false", sent), ("?drafts=true", draft)]
        for query, delivery_id in rows:
            listed = self.ok("GET", f"/v1/messages{query}")["messages"]
            self.assertEqual([row["id"] for row in listed][:1], [delivery_id], query)
            self.assertEqual(draft in [row["id"] for row in listed], delivery_id == draft)
        self.assertEqual(len(self.ok("GET", "/v1/messages?drafts=true")["messages"]), 1)

    def test_text_and_eml(self) -> None:
        content = base64.b64encode(b"file").decode()
        delivery = self.send(body="<h1>A &amp; B</h1><p>c</p>", attachments={"f.txt": content})
        path = f"/__parlel/deliveries/{delivery['delivery_id']}"
        self.assertEqual(self.call("GET", f"{path}/text").body, b"A & B\nc")
        mail = email.message_from_bytes(self.call("GET", f"{path}/eml").body)
        self.assertEqual((mail["Subject"], mail["To"]), ("Hi", "ada@example.com"))
        names = [part.get_filename() for part in mail.walk() if part.get_filename()]
        self.assertEqual(names, ["f.txt"])

    def test_a_scheduled_message_waits_for_its_time(self) -> None:
        when = self.fake.workspace.seconds() + 60
        delivery = self.send(send_at=when)
        self.assertEqual((delivery["state"], delivery["send_at"]), ("created", when))
        clock = self.ok("PUT", "/__parlel/clock", {"freeze": True, "advance": 60})
        self.assertEqual((clock["frozen"], clock["due"]), (True, 0))
        (delivery,) = [row for row in self.records("deliveries") if row["send_at"]]
        self.assertEqual((delivery["state"], delivery["metrics"]["sent"]), ("delivered", when))

    def test_the_clock_stays_between_1970_and_9999(self) -> None:
        last = customerio_fake.LAST_MOMENT
        self.fake.workspace.clock.move_to(last - 10, True)
        self.assert_errors(self.call("PUT", "/__parlel/clock", {"advance": 11}), 400, "9999")
        both = {"now": 4e9, "advance": 8e9}
        self.assertEqual(self.ok("PUT", "/__parlel/clock", both)["now"], 12e9)
        self.ok("PUT", "/__parlel/clock", {"advance": 0.5})
        for _ in range(40):
            reply = self.call("PUT", "/__parlel/clock", {"advance": 8e9})
        self.assert_errors(reply, 400, "advance must not lead beyond")
        self.send()
        for moment in (last, 0):
            self.fake.workspace.clock.move_to(moment, True)
            self.send()
            for period in ("hours", "months"):
                self.ok("GET", f"/v1/transactional/1/metrics?period={period}&steps=121")

    def test_a_clock_that_is_set_back_does_nothing_and_forgets_nothing(self) -> None:
        self.ok("PUT", "/__parlel/clock", {"now": 2_000_000_000, "freeze": True})
        self.send(send_at=2_000_000_060)
        for now, due in ((2_000_000_059, 1), (1_900_000_000, 1), (2_000_000_060, 0)):
            clock = self.ok("PUT", "/__parlel/clock", {"now": now})
            next_due = 2_000_000_060 if due else None
            self.assertEqual(clock, {"now": now, "frozen": True, "due": due, "next": next_due})
            delivered = [row["metrics"].get("sent") for row in self.records("deliveries")]
            self.assertEqual(2_000_000_060 in delivered, not due)

    def test_what_is_late_is_done_without_turning_the_clock_back(self) -> None:
        workspace, seen = self.fake.workspace, []
        workspace.clock.freeze(1000.0)
        with mock.patch.dict(customerio_fake.CHORES, look=lambda w: seen.append(w.clock.now())):
            for when in (900.0, 1005.0):
                workspace.clock.at(when, customerio_fake.Chore("look", ()))
            workspace.agenda.advance(10)
            self.assertEqual((seen, workspace.clock.now()), ([1000.0, 1005.0], 1010.0))
            workspace.clock.at(1009.0, customerio_fake.Chore("look", ()))
            customerio_fake.set_clock_to(self.fake, now=950.0)
        self.assertEqual((seen[2:], workspace.clock.now()), ([1010.0], 950.0))

    def test_the_clock_can_be_set(self) -> None:
        self.ok("PUT", "/__parlel/clock", {"now": 1000, "freeze": True})
        self.assertEqual(self.ok("GET", "/__parlel/clock")["now"], 1000)
        self.ok("PUT", "/__parlel/clock", {"advance": 5})
        self.assertEqual(self.fake.workspace.seconds(), 1005)
        bad: list[Any] = [{}, {"advance": -1}, {"now": "x"}, {"freeze": 1}, {"forward": 1}]
        for body in bad:
            self.assert_errors(self.call("PUT", "/__parlel/clock", body), 400)


class Blanks(FakeTest):
    """What the App API shows of things of which only the name is known."""

    CONTENT: ClassVar[Dict[str, Any]] = {
        "name": "", "type": "email", "body": "", "body_amp": "", "language": "", "from": "",
        "from_id": 0, "reply_to": "", "reply_to_id": None, "preprocessor": "premailer",
        "recipient": "{{customer.email}}", "subject": "", "bcc": "", "cc": "", "fake_bcc": True,
        "preheader_text": "", "headers": "[]",
    }  # fmt: skip

    def setUp(self) -> None:
        super().setUp()
        self.fake.workspace.clock.freeze()
        self.fake.seed({
            "campaigns": [{"id": 1, "name": "C", "actions": [{"id": 11}]}],
            "broadcasts": [{"id": 2, "name": "B", "actions": [{"id": 21}]}],
            "newsletters": [{"id": 3, "name": "N", "contents": [{"id": 31}]}],
            "transactional": [{"id": 4, "name": "T", "contents": [{"id": 41}]}],
        })  # fmt: skip

    def shown(self, path: str) -> tuple[Any, int]:
        """What is shown at a path, and when it was made."""
        (row,) = [value for name, value in self.ok("GET", path).items() if name != "next"]
        row = row[0] if isinstance(row, list) else row
        made = row.get("created", row.get("created_at"))
        self.assertAlmostEqual(made, time.time(), delta=60)
        return row, made

    def test_families(self) -> None:
        running = {"active": True, "state": "running", "tags": []}
        tiles = [{"id": 11, "type": "email"}], [{"id": 21, "type": "email"}]
        none: Any = {"filter_segment_ids": [], "trigger_segment_ids": []}
        rows: list[tuple[str, Any]] = [
            ("campaigns/1", {"id": 1, "name": "C", "type": "segment", **running, **none,
                             "actions": tiles[0], "msg_templates": tiles[0]}),
            ("broadcasts/2", {"id": 2, "name": "B", "type": "triggered_broadcast", **running,
                              "actions": tiles[1], "msg_template_ids": tiles[1]}),
        ]  # fmt: skip
        for path, expected in rows:
            row, made = self.shown(f"/v1/{path}")
            times = dict.fromkeys(("created", "updated", "first_started"), made)
            more = {**times, "deduplicate_id": f"{row['id']}:{made}"}
            self.assertEqual(row, {**expected, **more})
        row, made = self.shown("/v1/newsletters/3")
        letter = {"id": 3, "name": "N", "type": "email", "sent_at": None, "tags": []}
        letter.update(created=made, updated=made, recipient_segment_ids=[], content_ids=[31])
        self.assertEqual(row, {**letter, "deduplicate_id": f"3:{made}"})
        row, made = self.shown("/v1/transactional/4")
        on, off = ("send_to_unsubscribed", "link_tracking", "open_tracking"), (
            "hide_message_body", "queue_drafts")  # fmt: skip
        switches = {**dict.fromkeys(on, True), **dict.fromkeys(off, False)}
        message = {"id": 4, "name": "T", "description": "", "created_at": made, "updated_at": made}
        self.assertEqual(row, {**message, **switches})

    def test_contents(self) -> None:
        action = {"layout": "", "sending_state": "automatic", "parent_action_id": 0}
        for path, id, own in (
            ("campaigns/1/actions", 11, {**action, "campaign_id": 1}),
            ("broadcasts/2/actions", 21, {**action, "broadcast_id": 2}),
        ):
            row, made = self.shown(f"/v1/{path}")
            times = {"created": made, "updated": made, "deduplicate_id": f"{id}:{made}"}
            self.assertEqual(row, {"id": id, **self.CONTENT, **own, **times})
        (row,) = self.ok("GET", "/v1/newsletters/3/contents")["contents"]
        made = row["deduplicate_id"]
        own = {"layout": "", "newsletter_id": 3, "deduplicate_id": made}
        self.assertEqual(row, {"id": 31, **self.CONTENT, **own})
        row, made = self.shown("/v1/transactional/4/contents")
        self.assertEqual(row, {"id": 41, **self.CONTENT, "created": made, "updated": made})


# ======================================================================================
# ==== §13 Sending
# ======================================================================================


class Sends(FakeTest):
    GOOD = {"to": "+15551234567", "transactional_message_id": 3, "identifiers": {"id": "2"}}

    def test_every_channel_answers_alike_and_is_recorded(self) -> None:
        for channel in ("email", "push", "sms", "inbox_message", "in_app", "whatsapp"):
            with self.subTest(channel=channel):
                message = {**self.GOOD, "message_data": {"items": [1]}}
                answer = self.ok("POST", f"/v1/send/{channel}", message)
                self.assertEqual(list(answer), ["delivery_id", "queued_at", "queued"])
                delivery = self.ok("GET", f"/__parlel/deliveries/{answer['delivery_id']}")
                self.assertEqual((delivery["channel"], delivery["message"]), (channel, message))
                self.assertEqual(delivery["received_at"], answer["queued_at"])

    def test_an_unknown_person_is_created(self) -> None:
        message = {**self.GOOD, "to": "x@example.com", "identifiers": {"email": "x@example.com"}}
        self.ok("POST", "/v1/send/email", message)
        self.assertEqual(self.records("customers")[0]["identifiers"]["email"], "x@example.com")

    def test_nothing_is_sent_to_the_suppressed(self) -> None:
        self.ok("POST", "/api/v1/customers/2/suppress")
        self.ok("POST", "/v1/send/email", self.GOOD)
        self.assertEqual(self.records("customers"), [])
        self.assertIn("dropped", self.records("deliveries")[0]["metrics"])

    def test_missing_and_wrong_fields_get_the_services_words(self) -> None:
        own = {"to": "x@example.com", "identifiers": {"id": "1"}, "body": "b", "subject": "s"}
        rows = [
            ("email", {}, 'Missing required field: "to"'),
            ("email", {"to": "x@example.com"}, 'Missing required field: "identifiers"'),
            ("email", own, 'Missing required field: "from"'),
            ("push", {"identifiers": {"id": "1"}}, '"transactional_message_id"'),
            ("sms", {**self.GOOD, "to": None}, '"to"'),
            ("email", {**self.GOOD, "to": ""}, 'Missing required field: "to"'),
            ("sms", {**self.GOOD, "to": "555"}, "E.164"),
            ("email", {**self.GOOD, "identifiers": {"id": "1", "email": "x"}}, "exactly one"),
            ("email", {**self.GOOD, "to": ",".join(["a@b.cd"] * 16)}, "15 at most"),
            ("email", {**self.GOOD, "attachments": {"f.pdf": "?"}}, 'base64 encoded: "f.pdf"'),
            ("email", {**self.GOOD, "send_at": 9_999_999_999}, "90 days"),
        ]
        for channel, message, text in rows:
            with self.subTest(text=text):
                reply = self.call("POST", f"/v1/send/{channel}", message)
                self.assertEqual(reply.status, 400)
                self.assertEqual(list(reply.json), ["meta"])
                self.assertIn(text, reply.json["meta"]["error"])
        self.assertEqual((self.records("deliveries"), self.records("customers")), ([], []))

    def test_unreadable_bodies_get_one_sentence_and_the_reason_in_a_header(self) -> None:
        rows: list[tuple[Any, str]] = [
            (b"{", "invalid JSON: "),
            ([], "a JSON object"),
            ({**self.GOOD, "attachments": ["eA=="]}, "attachments must map"),
            ({**self.GOOD, "attachments": {"a": 1}}, "attachments must map"),
            ({**self.GOOD, "attachments": []}, "attachments must map"),
            ({**self.GOOD, "message_data": {"a": "x" * 1_000_000}}, "1000000 at most"),
            ({**self.GOOD, "to": ["x"]}, '"to" must be a string'),
            ({**self.GOOD, "to": []}, '"to" must be a string'),
            ({**self.GOOD, "from_id": [1]}, '"from_id" must not be a list'),
            ({**self.GOOD, "reply_to_id": {}}, '"reply_to_id" must not be an object'),
            ({**self.GOOD, "identifiers": "1"}, '"identifiers" must be'),
            ({**self.GOOD, "send_at": "x"}, '"send_at" must be'),
            ({**self.GOOD, "fake_bcc": "false"}, '"fake_bcc" must be true or false'),
            ({**self.GOOD, "tracked": "true"}, '"tracked" must be true or false'),
            ({**self.GOOD, "headers": ["1"]}, '"headers" must be an object'),
            ({**self.GOOD, "headers": 5}, '"headers" must'),
            ({"tracked": 1}, '"tracked"'),  # before what is missing
        ]
        text = "Request entity must be JSON encoded and not exceed 2048 KB."
        for body, reason in rows:
            reply = self.call("POST", "/v1/send/email", body)
            self.assertEqual((reply.status, reply.json), (400, {"meta": {"error": text}}))
            self.assertIn(reason, reply.reason)
        self.assertEqual((self.records("deliveries"), self.records("customers")), ([], []))

    def test_what_is_surely_valid_by_its_types_has_no_problems(self) -> None:
        sure = 0
        for fields in customerio_fake.SEND_FIELDS.values():
            whole = dict.fromkeys(fields.needed, "x")
            for name, value in itertools.product(
                (*fields.checks, "else"), ("x", " ", 5, 1.5, True, ["x"], {"a": 1})
            ):
                body = {**whole, "identifiers": {"id": "1"}, name: value}
                if fields.allows({key: type(part) for key, part in body.items()}):
                    self.assertEqual(list(fields.problems(body)), [], body)
                    sure += 1
            self.assertFalse(fields.allows({"else": str}))
        self.assertGreater(sure, 100)

    def test_a_service_account_names_its_workspace(self) -> None:
        token = {"authorization": "Bearer sa_live_abc"}
        reply = self.call("POST", "/v1/send/push", self.GOOD, **token)
        text = "workspace_id is required"
        self.assertEqual((reply.status, reply.json), (400, {"meta": {"error": text}}))
        self.ok("POST", "/v1/send/push", self.GOOD, **token, x_workspace_id="1")
        self.assertEqual(len(self.records("deliveries")), 1)

    def test_auto_create_does_not_take_the_name_of_another_channel(self) -> None:
        body = {**self.GOOD, "transactional_message_id": "Code", "auto_create": True}
        self.ok("POST", "/v1/send/email", body)
        self.ok("POST", "/v1/send/email", body)
        reply = self.call("POST", "/v1/send/push", {**body, "transactional_message_id": "code"})
        self.assertEqual((reply.status, list(reply.json)), (400, ["meta"]))
        self.assertIn("email", reply.json["meta"]["error"])
        self.ok("POST", "/v1/send/push", {**body, "transactional_message_id": 1})
        self.assertEqual(len(self.records("deliveries")), 3)

    def test_too_large_attachments_are_refused(self) -> None:
        content = base64.b64encode(b"x" * 2_000_001).decode()
        reply = self.call("POST", "/v1/send/email", {**self.GOOD, "attachments": {"a": content}})
        self.assertEqual(reply.status, 413)
        self.assertEqual(reply.json["meta"]["error"], "Total attachment size exceeds the limit")

    def test_an_unknown_delivery_is_not_found(self) -> None:
        self.assertEqual(self.call("GET", "/__parlel/deliveries/none").status, 404)


class Broadcasts(FakeTest):
    def test_both_paths_record_the_payload(self) -> None:
        payload = {"data": {"name": "foo"}, "recipients": {"segment": {"id": 7}}}
        self.assertEqual(self.ok("POST", "/v1/campaigns/1/triggers", payload), {"id": 1})
        self.assertEqual(self.ok("POST", "/v1/api/campaigns/2/triggers", {}), {"id": 2})
        first, second = self.records("broadcasts")
        self.assertEqual((first["id"], first["campaign_id"], first["payload"]), (1, 1, payload))
        self.assertEqual(second["campaign_id"], 2)

    def test_bad_audiences_are_unprocessable(self) -> None:
        rows: list[tuple[Any, str]] = [
            ({"recipients": {}}, "empty recipients filter is not valid"),
            ({"recipients": []}, "recipients"),
            ({"recipients": {"segment": {"id": "x"}}}, "recipients.segment"),
            ({"ids": ["1"], "emails": ["a@b.cd"]}, "only one of"),
            ({"ids": "1"}, "ids"),
            ({"data": []}, "data"),
            ({"data": {"a": "b" * 50_001}}, "50000 bytes"),
        ]
        for payload, text in rows:
            reply = self.call("POST", "/v1/campaigns/1/triggers", payload)
            self.assert_errors(reply, 422, text)
            self.assertEqual(reply.json["errors"][0]["status"], "422")
        self.assertEqual(self.records("broadcasts"), [])

    def test_people_must_exist_unless_the_call_ignores_the_missing(self) -> None:
        self.identify("1", email="a@example.com")
        rows: list[tuple[Any, int]] = [
            ({"ids": ["1"]}, 200),
            ({"ids": ["1", "9"]}, 422),
            ({"ids": ["9"], "id_ignore_missing": True}, 200),
            ({"emails": ["A@example.com"]}, 200),
            ({"emails": ["x@example.com"]}, 422),
            ({"emails": ["x@example.com"], "email_ignore_missing": True}, 200),
            ({"per_user_data": [{"id": "1"}, {"email": "x@example.com"}]}, 422),
            ({"per_user_data": [{}]}, 422),
            ({"ids": ["1"], "email_ignore_missing": True}, 422),
        ]
        for payload, status in rows:
            with self.subTest(payload=payload):
                reply = self.call("POST", "/v1/campaigns/1/triggers", payload)
                self.assertEqual(reply.status, status, reply.body)
        reply = self.call("POST", "/v1/campaigns/1/triggers", {"ids": ["1", "9"]})
        (error,) = reply.json["errors"]
        last = self.records("broadcasts")[-1]
        self.assertIn(f"for trigger {last['id']}", error["detail"])
        self.assertEqual(error["source"], {"pointer": "/data/attributes/per_user_data"})
        self.assertEqual(last["errors"], ["line 2: no person has the id '9'"])

    def test_an_id_that_is_no_number_is_not_found(self) -> None:
        self.assertEqual(self.call("POST", "/v1/campaigns/x/triggers", {}).status, 404)


class BroadcastSends(SeededTest):
    """A trigger makes one rendered delivery for each person."""

    def test_a_thousand_errors_are_told_and_how_many_more_there_are(self) -> None:
        for count, last in ((1000, "line 1000: no person has"), (1001, "and 1 further error")):
            emails = [f"{number}@example.com" for number in range(count)]
            reply = self.call("POST", "/v1/campaigns/20/triggers", {"emails": emails})
            self.assertEqual(reply.status, 422)
            self.assertRegex(self.records("broadcasts")[-1]["errors"][-1], rf"{last}\b")

    def trigger(self, **payload: Any) -> list[Any]:
        """Trigger the seeded broadcast; gives who got what."""
        path = "/v1/broadcasts/20/actions/201"
        body = {"subject": "{{trigger.product}}", "body": "x", "recipient": "{{customer.email}}"}
        self.ok("PUT", path, body)
        before = len(self.records("deliveries"))
        self.ok("POST", "/v1/campaigns/20/triggers", {"data": {"product": "Socks"}, **payload})
        rows = self.records("deliveries")[before:]
        return [(row["recipient"], row["rendered"]["subject"]) for row in rows]

    def test_each_way_to_name_the_audience(self) -> None:
        ada, bob = ("ada@example.com", "Socks"), ("bob@example.com", "Socks")
        own = [{"id": "ada", "data": {"product": "Hat"}}, {"email": "bob@example.com"}]
        lines = b'{"id":"bob","data":{"product":"Pen"}}\n{"id":"ada"}\n'
        rows: list[tuple[dict[str, Any], list[Any]]] = [
            ({"recipients": {"segment": {"id": 2}}}, [ada]),
            ({"ids": ["bob", "ada"]}, [bob, ada]),
            ({"emails": ["ADA@example.com"]}, [ada]),
            ({"ids": ["ada", "nobody"], "id_ignore_missing": True}, [ada]),
            ({"per_user_data": own}, [("ada@example.com", "Hat"), bob]),
            ({"data_file_url": "https://x.example/f"}, [("bob@example.com", "Pen"), ada]),
            ({}, []),
        ]
        with mock.patch.object(customerio_fake, "fetched", lambda url, name: lines):
            for payload, expected in rows:
                with self.subTest(payload=payload):
                    self.assertEqual(self.trigger(**payload), expected)

    def test_what_a_trigger_may_come_to(self) -> None:
        with mock.patch.object(customerio_fake, "MAX_TRIGGER", 20):
            reply = self.call("POST", "/v1/campaigns/20/triggers", {"ids": ["a" * 20]})
            self.assert_errors(reply, 422, "20 bytes")
        line = b'{"id":"ada","data":{"a":"' + b"x" * 2_000_000 + b'"}}'
        with mock.patch.object(customerio_fake, "fetched", lambda url, name: line):
            reply = self.call("POST", "/v1/campaigns/20/triggers", {"data_file_url": "http://x/f"})
        self.assert_errors(reply, 422, "trigger 1")
        (told,) = self.ok("GET", "/v1/campaigns/20/triggers/1/errors")["errors"]
        self.assertRegex(told, "line 1: 20000.. bytes; 2000000 at most")

    def test_what_is_no_trigger_is_refused_in_the_services_ways(self) -> None:
        path = "/v1/campaigns/20/triggers"
        reply = self.call("POST", path, {"receipients": {"segment": {"id": 2}}})
        self.assert_errors(reply, 422, "receipients is no field", "recipients")
        form = {"content_type": "application/x-www-form-urlencoded"}
        self.assert_errors(self.call("POST", path, {}, **form), 422, "application/json")
        reply = self.call("POST", path, b"{")
        detail = reply.json["errors"][0]["detail"]
        self.assertRegex(detail, r"^bad request \(reference [0-9A-Z]{26}\)$")
        self.assertEqual((reply.status, "invalid JSON" in reply.reason), (400, True))
        self.assertEqual(self.records("broadcasts"), [])
        self.ok("POST", path, {}, content_type="application/json; charset=utf-8")

    def test_it_is_counted_and_processed(self) -> None:
        self.trigger(ids=["ada"])
        series = self.ok("GET", "/v1/broadcasts/20/metrics?steps=2")["metric"]["series"]
        self.assertEqual(series["sent"], [0, 1])
        self.assertTrue(self.ok("GET", "/v1/broadcasts/20/triggers")["triggers"][0]["processed_at"])

    def test_the_unsubscribed_are_passed_over(self) -> None:
        self.identify("bob", unsubscribed=True)
        self.trigger(ids=["bob"])
        self.assertEqual(self.records("deliveries")[-1]["state"], "undeliverable")

    def test_a_large_audience_is_served_in_the_background(self) -> None:
        count = customerio_fake.FOREGROUND + 50
        for number in range(count):
            self.identify(f"p{number}", email=f"p{number}@example.com", plan="pro")
        self.ok("POST", "/v1/campaigns/20/triggers", {"recipients": {"segment": {"id": 2}}})
        self.assertEqual(self.call("GET", "/health").status, 200)
        for job in self.fake.workspace.agenda.jobs:
            job.join(30)
        sent = self.ok("GET", "/v1/broadcasts/20/messages?limit=1000")["messages"]
        self.assertEqual(len(sent), count + 1)
        self.assertTrue(self.ok("GET", "/v1/broadcasts/20/triggers")["triggers"][0]["processed_at"])


class Preferences(SeededTest):
    """Who does not want a message does not get it."""

    def test_topics_channels_and_opt_outs_keep_newsletters_back(self) -> None:
        self.fake.workspace.shelves["newsletters"].change(30, {"subscription_topic_id": 1})
        name = "cio_subscription_preferences"
        wishes: list[dict[str, Any]] = [
            {name: {"topics": {"topic_1": False}}},
            {name: {"channels": {"email": False}}},
            {"unsubscribed": True},
            {},
        ]
        for number, wish in enumerate(wishes):
            self.identify(f"p{number}", email=f"p{number}@example.com", plan="pro", **wish)
        self.ok("POST", "/v1/newsletters/30/send", {})
        states = {row["customer_id"]: row["state"] for row in self.records("deliveries")}
        expected = ["undeliverable"] * 3 + ["delivered"]
        self.assertEqual([states[f"p{number}"] for number in range(4)], expected)

    def test_opt_outs_keep_text_messages_of_a_sender_back(self) -> None:
        text = {"type": "twilio", "recipient": "{{customer.phone}}", "body": "Hi"}
        texts = [{**text, "from": f"+1555010{n}"} for n in range(2)]
        broadcast = {"id": 20, "recipients": {"segment": {"id": 1}}, "actions": texts}
        self.fake.seed({"segments": [{"id": 1, "name": "All"}], "broadcasts": [broadcast]})
        for name, row in (("1", {"from": "+15550100"}), ("2", {"from": "+15550101"})):
            self.identify(name, phone="+15550123")
            self.ok("POST", "/api/v1/segments/1/add_customers", {"ids": [name]})
            path = f"/v1/customers/{name}/optouts"
            self.call("PUT", path, {"optouts": [{**row, "optout": True}]})
        self.ok("POST", "/v1/campaigns/20/triggers", {})
        reason = "the person has opted out of this sender"
        found = {(row["customer_id"], row["rendered"]["from"], row["failure_message"])
                 for row in self.records("deliveries")}  # fmt: skip
        wanted = {("1", "+15550100", reason), ("2", "+15550101", reason),
                  ("1", "+15550101", None), ("2", "+15550100", None)}  # fmt: skip
        self.assertEqual(found, wanted)

    def test_a_sender_identity_gives_the_from_address(self) -> None:
        self.ok("POST", "/v1/newsletters/30/send", {})
        rendered = self.records("deliveries")[-1]["rendered"]
        self.assertEqual(rendered["from"], "Shop <shop@example.com>")

    def test_a_newsletter_created_with_a_date_is_sent_then(self) -> None:
        soon = self.fake.workspace.seconds() + 60
        body = {**AppNewsletters.GOOD, "scheduled_at": soon}
        number = self.ok("POST", "/v1/newsletters", body)["newsletter"]["id"]
        self.ok("PUT", "/__parlel/clock", {"advance": 61, "freeze": True})
        self.assertEqual(len(self.ok("GET", f"/v1/newsletters/{number}/messages")["messages"]), 1)
        self.assertEqual(self.records("deliveries")[-1]["received_at"], soon)

    def test_exports_find_deliveries_by_what_sent_them(self) -> None:
        self.ok("POST", "/v1/newsletters/30/send", {})
        then = {"start": 1_700_000_000, "end": 1_700_000_000}
        rows: list[tuple[dict[str, Any], int]] = [
            ({"newsletter_id": 30}, 1),
            ({"newsletter_id": 30, "template_id": 301, "metric": "created"}, 1),
            ({"newsletter_id": 30, "template_id": 302}, 0),
            ({"newsletter_id": 30, "metric": "spammed"}, 0),
            ({"campaign_id": 1, **then}, 1),
            ({"action_id": 11, "template_id": 11, **then}, 1),
        ]
        for order, count in rows:
            number = self.ok("POST", "/v1/exports/deliveries", order)["export"]["id"]
            total = self.ok("GET", f"/v1/exports/{number}")["export"]["total"]
            self.assertEqual(total, count, order)


# ======================================================================================
# ==== §14 Workflows
# ======================================================================================


class JourneyTest(FakeTest):
    """A workspace whose campaigns run, on a clock that stands until it is moved."""

    START = 1_700_000_000
    DAY = 86_400

    def setUp(self) -> None:
        super().setUp()
        self.clock(now=self.START, freeze=True)

    def clock(self, **body: Any) -> None:
        self.ok("PUT", "/__parlel/clock", body)

    def seed(self, document: Any) -> None:
        clock = {"now": self.START, "freeze": True}
        self.ok("POST", "/__parlel/seed", {"clock": clock, **document})

    def campaign(self, *actions: Any, **fields: Any) -> None:
        """Seed one campaign that the event `go` starts, unless it says otherwise."""
        kinds = ("segments", "customers", "collections", "topics")
        further = {name: fields.pop(name) for name in kinds if name in fields}
        row = {"id": 1, "name": "C", "event_name": "go", "actions": list(actions), **fields}
        row["actions"] = [
            action if "id" in action else {**action, "id": 10 * (i + 1)}
            for i, action in enumerate(row["actions"])
        ]
        self.seed({**further, "campaigns": [row]})

    def track(self, id: str, name: str, timestamp: int | None = None, **data: Any) -> None:
        body = {"name": name, "data": data, "timestamp": timestamp}
        self.assertEqual(self.call("POST", f"/api/v1/customers/{id}/events", body).status, 200)

    def journeys(self, query: str = "") -> Any:
        return self.records("journeys", query)

    def steps(self, number: int = -1) -> list[Any]:
        """What became of each tile of a journey, the last one unless another is asked for."""
        return [self.step(step) for step in self.journeys()[number]["steps"]]

    def step(self, step: Any) -> Any:
        more = [step[name] for name in ("path", "reason") if name in step]
        return (step["action_id"], step["outcome"], *more)

    def sent(self) -> list[tuple[int, str]]:
        """Which action went to whom."""
        rows = self.records("deliveries")
        return [(row["parents"]["action_id"], row["customer_id"]) for row in rows]

    def delivery(self, action: int) -> Any:
        rows = self.records("deliveries")
        return next(row for row in rows if row["parents"]["action_id"] == action)


def eq(field: str, value: Any) -> Any:
    """A condition on an attribute."""
    return {"attribute": {"field": field, "operator": "eq", "value": value}}


def exists(field: str) -> Any:
    """A condition that an attribute is there."""
    return {"attribute": {"field": field, "operator": "exists"}}


class Layouts(JourneyTest):
    """Which tile follows which."""

    def nodes(self, *actions: Any) -> dict[int, tuple[int | None, tuple[int | None, ...]]]:
        """The tile after each, and those to which its paths lead."""
        self.campaign(*actions)
        plan = self.fake.workspace.beside(customerio_fake.Gate).runner.plans[1]
        self.assertEqual(plan.first, actions[0]["id"] if actions else None)
        return {number: (node.next, node.paths) for number, node in plan.nodes.items()}

    def test_paths_meet_again_after_their_tile(self) -> None:
        branch = {"type": "conditional_branch", "conditions": exists("a")}
        wait = {"type": "conditional_wait", "multi_conditions": [exists("a")]}
        leave = {"id": 5, "type": "exit"}
        rows: list[tuple[list[Any], Any]] = [
            ([], {}),
            ([mail(1), mail(2)], {1: (2, ()), 2: (None, ())}),
            ([{**branch, "id": 1, "paths": [[mail(2)], []]}, mail(3)],
             {1: (3, (2, 3)), 2: (3, ()), 3: (None, ())}),
            ([{**branch, "id": 1, "paths": [[mail(2), leave], []]}],
             {1: (None, (2, None)), 2: (5, ()), 5: (None, ())}),
            ([{**branch, "id": 1, "paths": [[{**branch, "id": 2, "paths": [[mail(3)], []]}], []]},
              mail(4)],
             {1: (4, (2, 4)), 2: (4, (3, 4)), 3: (4, ()), 4: (None, ())}),
            ([{**wait, "id": 1}, mail(2)], {1: (2, (2,)), 2: (None, ())}),
            ([{**wait, "id": 1, "delay": 60, "paths": [[], [mail(3)]]}, mail(2)],
             {1: (2, (2, 3)), 2: (None, ()), 3: (2, ())}),
        ]  # fmt: skip
        for actions, wanted in rows:
            with self.subTest(actions=actions):
                self.assertEqual(self.nodes(*actions), wanted)


# ======================================================================================
# ==== §15 Journeys
# ======================================================================================


class WelcomeSeries(JourneyTest):
    """Segment trigger, delay, exit."""

    SEED = {
        "segments": [
            {"id": 1, "name": "Signed up", "conditions": exists("created_at")},
            {"id": 2, "name": "Paying", "conditions": eq("plan", "pro")},
        ],
        "campaigns": [
            {
                "id": 1,
                "name": "Welcome",
                "type": "segment",
                "state": "running",
                "trigger_segment_ids": [1],
                "filter_segment_ids": [],
                "tags": ["welcome"],
                "audience_at_start": "future",
                "restart_mode": "once",
                "exit_on_trigger_or_filter_not_matched": True,
                "global_exit_conditions": [{"segment": {"id": 2}}],
                "goal": {"segment": {"id": 2}, "within": 604800, "after": "delivered"},
                "actions": [
                    mail(10, "Hi {{customer.first_name | default: 'there'}}"),
                    {"id": 11, "type": "delay_seconds", "delay": 259200},
                    mail(
                        12,
                        "Three tips",
                        preconditions={
                            "attribute": {
                                "field": "tips_seen",
                                "operator": "exists",
                                "inverse": True,
                            }
                        },
                    ),
                    {"id": 13, "type": "exit"},
                ],
            }
        ],
    }

    def setUp(self) -> None:
        super().setUp()
        self.seed(self.SEED)
        self.identify("7", email="ada@example.com", created_at=1)

    def test_the_second_mail_comes_three_days_after_the_first(self) -> None:
        self.assertEqual(self.sent(), [(10, "7")])
        self.assertEqual(self.delivery(10)["rendered"]["subject"], "Hi there")
        row = self.journeys("?campaign_id=1&customer_id=7&state=active")[0]
        self.assertEqual(row["waiting_for"], "delay_seconds")
        self.assertEqual((row["next_action_id"], row["match_time"]), (11, self.START))
        self.assertEqual(row["next_wake_up"], self.START + 259200)
        self.clock(advance=259200 - 1)
        self.assertEqual(self.sent(), [(10, "7")])
        self.clock(advance=1)
        self.assertEqual(self.sent(), [(10, "7"), (12, "7")])
        self.assertEqual(self.steps(), [(10, "sent"), (11, "waited"), (12, "sent"), (13, "exited")])
        self.assertEqual(self.journeys()[0]["state"], "finished")
        self.assertEqual(self.delivery(12)["metrics"]["sent"], self.START + 259200)

    def test_who_pays_leaves_and_is_converted(self) -> None:
        self.clock(advance=self.DAY)
        self.identify("7", plan="pro")
        self.clock(advance=9 * self.DAY)
        row = self.journeys()[0]
        self.assertEqual(row["state"], "exited_early")
        self.assertEqual(row["exit_reason"], "global_exit_conditions[0]")
        self.assertEqual(row["exited_at"], self.START + self.DAY)
        self.assertEqual(row["converted_at"], self.START + self.DAY)
        self.assertEqual(self.steps()[-1], (11, "exited", "global_exit_conditions[0]"))
        self.assertEqual(self.sent(), [(10, "7")])
        self.assertIn("converted", self.delivery(10)["metrics"])

    def test_a_message_whose_condition_is_not_met_is_skipped(self) -> None:
        self.identify("7", tips_seen="1")
        self.clock(advance=259200)
        outcome = self.steps()[2]
        self.assertEqual(outcome[:2], (12, "skipped"))
        self.assertIn("tips_seen", outcome[2])
        self.assertEqual(self.journeys()[0]["state"], "finished")

    def test_who_stops_matching_leaves_at_the_next_tile(self) -> None:
        self.identify("7", created_at="")
        self.assertEqual(self.journeys()[0]["state"], "active")
        self.clock(advance=259200)
        row = self.journeys()[0]
        self.assertEqual((row["state"], row["exit_reason"]), ("exited_early", "trigger"))

    def test_once_is_once(self) -> None:
        self.identify("7", created_at="")
        self.identify("7", created_at=2)
        row = self.journeys()[-1]
        self.assertEqual((row["state"], row["exit_reason"]), ("not_entered", "restart_mode once"))


class OrderFollowUp(JourneyTest):
    """Event trigger, filters, wait until."""

    SEED = {
        "campaigns": [
            {
                "id": 2,
                "name": "Order follow-up",
                "type": "event",
                "state": "running",
                "event_name": "order_placed",
                "filter_segment_ids": [],
                "attribute_filters": {"and": [{"field": "total", "operator": "gt", "value": "0"}]},
                "filter": exists("email"),
                "restart_mode": "rematch",
                "restart_min_interval": 0,
                "exit_on_trigger_or_filter_not_matched": False,
                "send_to_unsubscribed": True,
                "actions": [
                    mail(
                        20,
                        "Order {{event.order_id}}",
                        body="{% for i in event.items %}<p>{{i.name}}</p>{% endfor %}",
                    ),
                    {
                        "id": 21,
                        "type": "conditional_wait",
                        "exit_type": "continue",
                        "delay": 432000,
                        "multi_conditions": [
                            {
                                "event": {
                                    "name": "order_shipped",
                                    "filters": {
                                        "and": [
                                            {
                                                "field": "order_id",
                                                "operator": "eq",
                                                "value": "{{event.order_id}}",
                                            }
                                        ]
                                    },
                                },
                                "times": 1,
                                "within": 0,
                            }
                        ],
                        "paths": [
                            [{"id": 22, "type": "push", "subject": "On its way", "body": "x"}],
                            [{"id": 23, "type": "slack", "body": "{{event.order_id}} is late"}],
                        ],
                    },
                    {"id": 24, "type": "exit"},
                ],
            }
        ],
    }

    def setUp(self) -> None:
        super().setUp()
        self.seed(self.SEED)
        self.identify("7", email="ada@example.com")

    def order(self, id: str, total: int = 12, who: str = "7", **more: Any) -> None:
        self.track(who, "order_placed", order_id=id, total=total, items=[{"name": "Tea"}], **more)

    def test_the_receipt_names_the_event(self) -> None:
        self.order("A1")
        row = self.journeys()[0]
        event = self.records("events")[0]["id"]
        self.assertEqual((row["trigger_event_id"], row["trigger"]["order_id"]), (event, "A1"))
        self.assertEqual(self.delivery(20)["rendered"]["subject"], "Order A1")
        self.assertIn("<p>Tea</p>", self.delivery(20)["rendered"]["body"])
        message = self.ok("GET", "/v1/campaigns/2/messages")["messages"][0]
        self.assertEqual(message["trigger_event_id"], event)
        self.assertEqual((message["campaign_id"], message["action_id"]), (2, 20))
        report = self.records("webhooks")[0]["data"]
        self.assertEqual(report["journey_id"], row["id"])
        self.assertEqual(report["trigger_event_id"], event)

    def test_only_the_order_that_is_shipped_goes_on(self) -> None:
        self.order("A1")
        self.order("A2")
        self.track("7", "order_shipped", order_id="A2")
        waiting, done = self.journeys()
        self.assertEqual((waiting["next_action_id"], waiting["state"]), (21, "active"))
        self.assertEqual(waiting["next_wake_up"], self.START + 432000)
        self.assertEqual(done["state"], "finished")
        self.assertEqual(self.steps()[1:3], [(21, "matched", 0), (22, "undeliverable",
                         "the person has no device")])  # fmt: skip
        self.clock(advance=432000)
        self.assertEqual(self.steps(0)[1:], [(21, "timed_out", 1), (23, "sent"), (24, "exited")])

    def test_what_was_shipped_before_does_not_count(self) -> None:
        self.track("7", "order_shipped", order_id="A1")
        self.order("A1")
        self.assertEqual(self.journeys()[0]["waiting_for"], "conditional_wait")

    def test_an_order_of_nothing_does_not_start_it(self) -> None:
        self.order("A1", total=0)
        row = self.journeys("?state=not_entered")[0]
        self.assertEqual((row["exit_reason"], row["customer_id"]), ("attribute_filters", "7"))
        self.assertEqual(self.sent(), [])

    def test_who_lacks_an_email_has_half_an_hour_to_get_one(self) -> None:
        self.order("A1", who="8")
        self.order("A2", who="9")
        self.assertEqual(self.journeys()[0]["waiting_for"], "filter")
        self.clock(advance=600)
        self.identify("8", email="bob@example.com")
        self.assertEqual(self.sent(), [(20, "8")])
        self.clock(advance=1200)
        late = self.journeys("?customer_id=9")[0]
        self.assertEqual((late["state"], late["exit_reason"]), ("never_activated", "filter"))
        self.identify("9", email="eve@example.com")
        self.clock(advance=1200)
        self.assertEqual(self.sent(), [(20, "8")])

    def test_an_old_event_starts_nothing(self) -> None:
        for hours, state in ((72, "active"), (73, "not_entered")):
            self.order(str(hours), timestamp=self.START - hours * 3600)
            self.assertEqual(self.journeys()[-1]["state"], state)
        self.assertEqual(self.journeys()[-1]["exit_reason"], "timestamp older than 72 hours")

    def test_the_name_has_to_be_equal(self) -> None:
        self.track("7", "Order_placed", total=1)
        self.assertEqual(self.journeys(), [])


@with_zones
class Renewal(JourneyTest):
    """A date, in the person's zone, and a time window."""

    SEED = {
        "customers": [
            {
                "id": "1",
                "attributes": {
                    "email": "ada@example.com",
                    "renews_at": "1900000000",
                    "timezone": "Europe/Berlin",
                    "plan": "pro",
                },
            }
        ],
        "segments": [{"id": 3, "name": "Cancelled", "conditions": eq("cancelled", "true")}],
        "campaigns": [
            {
                "id": 3,
                "name": "Renewal",
                "type": "date",
                "state": "running",
                "date_attribute": "renews_at",
                "frequency": "yearly",
                "lead_days": 7,
                "timezone": "America/New_York",
                "use_customer_timezone": True,
                "start_hour": 9,
                "start_minutes": 0,
                "filter_segment_ids": [],
                "global_exit_conditions": [{"segment": {"id": 3}}],
                "actions": [
                    mail(30, "Your plan renews on {{customer.renews_at | date: '%Y-%m-%d'}}"),
                    {"id": 31, "type": "delay_seconds", "delay": 518400},
                    {
                        "id": 32,
                        "type": "delay_time_window",
                        "start_time": "09:00",
                        "end_time": "17:00",
                        "days": ["mon", "tue", "wed", "thu", "fri"],
                        "zone": "customer_time_zone",
                        "fallback_zone": "America/New_York",
                    },
                    {
                        "id": 33,
                        "type": "twilio",
                        "body": "Renews soon",
                        "preconditions": exists("phone"),
                    },
                ],
            }
        ],
    }
    #: 2030-03-10 09:00 in Berlin, a week before; and in New York, where summer time has begun.
    BERLIN, NEW_YORK = 1_899_360_000, 1_899_378_000

    def setUp(self) -> None:
        super().setUp()
        self.seed(self.SEED)

    def test_it_begins_a_week_before_at_nine_where_the_person_lives(self) -> None:
        self.clock(now=self.BERLIN - 1)
        self.assertEqual(self.journeys(), [])
        self.clock(advance=1)
        self.assertEqual(self.sent(), [(30, "1")])
        subject = self.delivery(30)["rendered"]["subject"]
        self.assertEqual(subject, "Your plan renews on 2030-03-17")

    def test_without_a_zone_of_their_own_the_fallback_counts(self) -> None:
        self.identify("1", timezone="")
        self.clock(now=self.NEW_YORK - 1)
        self.assertEqual(self.journeys(), [])
        self.clock(advance=1)
        self.assertEqual(self.sent(), [(30, "1")])

    def test_a_closed_window_opens_on_monday(self) -> None:
        self.clock(now=self.BERLIN)
        self.clock(advance=518400)
        row = self.journeys()[0]
        monday = self.BERLIN + 8 * self.DAY
        self.assertEqual((row["next_action_id"], row["next_wake_up"]), (32, monday))
        self.clock(now=monday)
        self.assertEqual(self.steps()[-1][:2], (33, "skipped"))
        self.assertEqual(self.journeys()[0]["state"], "finished")

    def test_a_year_on_it_begins_again(self) -> None:
        self.clock(now=self.BERLIN)
        self.clock(now=self.BERLIN + 365 * self.DAY)
        begins = [row["match_time"] for row in self.journeys()]
        self.assertEqual(begins, [self.BERLIN, self.BERLIN + 365 * self.DAY])

    def test_who_has_cancelled_does_not_enter(self) -> None:
        self.identify("1", cancelled="true")
        self.clock(now=self.BERLIN)
        self.assertEqual(self.journeys()[0]["exit_reason"], "global_exit_conditions[0]")
        self.assertEqual(self.journeys()[0]["state"], "not_entered")

    def test_a_changed_date_counts(self) -> None:
        self.identify("1", renews_at=1_900_000_000 + self.DAY)
        self.clock(now=self.BERLIN)
        self.assertEqual(self.journeys(), [])
        self.clock(advance=self.DAY)
        self.assertEqual(len(self.journeys()), 1)


class WinBack(JourneyTest):
    """Attribute trigger, random cohort, A/B test, holdout, message limit, goal."""

    SEED = {
        "workspace": {"message_limit": {"limit": 2, "within": 86400, "retry": 3600}},
        "campaigns": [
            {
                "id": 5,
                "name": "Win back",
                "type": "segment",
                "state": "running",
                "trigger": {
                    "and": [eq("status", "lapsed"), {"segment": {"id": 2}, "inverse": True}]
                },
                "restart_mode": "rematch",
                "restart_min_interval": 2592000,
                "use_message_limits": True,
                "subscription_topic_id": 1,
                "goal": {
                    "event": {"name": "order_placed"},
                    "within": 1209600,
                    "after": "clicked",
                },
                "exit_on_goal": True,
                "actions": [
                    {
                        "id": 50,
                        "type": "random_cohort_branch",
                        "cohorts": [400, 400, 200],
                        "cohort_names": ["A/B", "push", "holdout"],
                        "assign": {"1": 0, "2": 1, "3": 2},
                        "paths": [
                            [
                                {
                                    "id": 51,
                                    "type": "split_randomized",
                                    "allocations": [50, 50],
                                    "assign": {"1": 1},
                                    "variations": [
                                        mail(
                                            52, "Come back", body="<a href='https://x.io/a'>A</a>"
                                        ),
                                        mail(53, "20 % off", body="<a href='https://x.io/b'>B</a>"),
                                    ],
                                }
                            ],
                            [{"id": 54, "type": "push", "subject": "We miss you", "body": "Tap"}],
                            [mail(55, "Come back", holdout=True)],
                        ],
                    },
                    {"id": 56, "type": "randomized_delay", "min_delay": 60, "max_delay": 600},
                    {"id": 57, "type": "static_seg_update", "segment_id": 9, "operation": "add"},
                ],
            }
        ],
        "segments": [
            {"id": 2, "name": "Staff", "ids": []},
            {"id": 9, "name": "Was won back", "ids": []},
        ],
        "topics": [{"id": 1, "name": "Offers"}],
    }

    def setUp(self) -> None:
        super().setUp()
        self.seed(self.SEED)

    def lapse(self, *ids: str) -> None:
        for id in ids:
            self.identify(id, email=f"{id}@example.com", status="lapsed")

    def test_everybody_takes_the_path_that_is_assigned(self) -> None:
        self.lapse("1", "2", "3")
        firsts = [self.steps(i)[:2] for i in range(3)]
        self.assertEqual(firsts[0], [(50, "branched", 0), (51, "sent", 1)])
        self.assertEqual(firsts[1][0], (50, "branched", 1))
        self.assertEqual(firsts[2], [(50, "branched", 2), (55, "created", "holdout")])
        self.assertEqual(self.delivery(53)["parents"]["parent_action_id"], 51)
        self.assertNotIn("sent", self.delivery(55)["metrics"])
        actions = self.ok("GET", "/v1/campaigns/5/actions")["actions"]
        shown = [(row["id"], row["parent_action_id"]) for row in actions]
        self.assertEqual(shown, [(52, 51), (53, 51), (54, 0), (55, 0)])
        message = self.ok("GET", "/v1/campaigns/5/messages")["messages"][-1]
        self.assertEqual(message["parent_action_id"], 51)

    def test_an_order_after_a_click_is_a_conversion_and_the_end(self) -> None:
        self.lapse("1", "3")
        self.track("1", "order_placed")
        self.assertIsNone(self.journeys()[0]["converted_at"])
        path = f"/__parlel/deliveries/{self.delivery(53)['delivery_id']}/clicked"
        self.ok("POST", path, {})
        self.clock(advance=30)
        for id in "13":
            self.track(id, "order_placed")
        for row in self.journeys():
            self.assertEqual((row["state"], row["exit_reason"]), ("exited_early", "goal"))
            self.assertEqual(row["converted_at"], self.START + 30)
        for action in (53, 55):
            self.assertIn("converted", self.delivery(action)["metrics"])
        query = f"start={self.START}&end={self.START + 60}&resolution=days"
        counts = self.ok("GET", f"/v1/campaigns/5/journey_metrics?{query}")["journey_metric"]
        totals = {name: sum(row) for name, row in counts.items()}
        wanted = dict.fromkeys(customerio_fake.JOURNEY_METRICS, 2)
        self.assertEqual(totals, {**wanted, "finished": 0, "never_activated": 0})

    def test_who_goes_through_is_in_the_segment_at_the_end(self) -> None:
        self.lapse("2")
        wake = self.journeys()[0]["next_wake_up"] - self.START
        self.assertTrue(60 <= wake <= 600, wake)
        self.clock(advance=600)
        members = self.ok("GET", "/v1/segments/9/membership")["identifiers"]
        self.assertEqual([person["id"] for person in members], ["2"])

    def test_who_comes_again_within_a_month_does_not_enter(self) -> None:
        self.lapse("2")
        self.clock(advance=30 * self.DAY - 1)
        self.identify("2", status="active")
        self.identify("2", status="lapsed")
        self.assertEqual(self.journeys()[-1]["exit_reason"], "restart_min_interval")
        self.identify("2", status="active")
        self.clock(advance=1)
        self.identify("2", status="lapsed")
        self.assertEqual(self.journeys()[-1]["state"], "active")

    def test_staff_is_not_asked_back(self) -> None:
        self.call("POST", "/api/v1/segments/2/add_customers", {"ids": ["1"]})
        self.identify("1", email="1@example.com")
        self.call("POST", "/api/v1/segments/2/add_customers", {"ids": ["1"]})
        self.lapse("1")
        self.assertEqual(self.journeys(), [])
        self.call("POST", "/api/v1/segments/2/remove_customers", {"ids": ["1"]})
        self.assertEqual(len(self.journeys()), 1)

    def test_the_cohorts_are_as_large_as_asked_for(self) -> None:
        self.lapse(*(f"n{i}" for i in range(1000)))
        paths = [row["steps"][0]["path"] for row in self.journeys()]
        for path, wanted in enumerate((400, 400, 200)):
            self.assertAlmostEqual(paths.count(path), wanted, delta=45)


class MessageLimit(JourneyTest):
    """Who has had enough messages gets no more for a while."""

    def limited(self, retry: int, *actions: Any, **fields: Any) -> None:
        row = {"id": 1, "name": "C", "event_name": "go", "actions": list(actions), **fields}
        limit = {"limit": 2, "within": self.DAY, "retry": retry}
        self.seed({"workspace": {"message_limit": limit}, "campaigns": [row]})
        self.identify("1", email="1@example.com")
        self.track("1", "go")

    def states(self) -> list[str]:
        return [row["state"] for row in self.records("deliveries")]

    def test_the_third_of_the_day_is_tried_for_an_hour(self) -> None:
        self.limited(3600, mail(1), mail(2), mail(3), use_message_limits=True)
        self.assertEqual(self.states(), ["delivered", "delivered", "attempted"])
        self.assertEqual(self.steps()[2], (3, "attempted", "the message limit is reached"))
        self.clock(advance=3599)
        self.assertEqual(self.states()[2], "attempted")
        self.clock(advance=1)
        self.assertEqual(self.states()[2], "undeliverable")
        self.assertEqual(self.journeys()[0]["state"], "finished")

    def test_it_is_sent_as_soon_as_another_is_old_enough(self) -> None:
        day = {"type": "delay_seconds", "delay": self.DAY - 100}
        self.limited(3600, mail(1), day, mail(2), mail(3), use_message_limits=True)
        self.clock(advance=self.DAY - 1)
        self.assertEqual(self.states()[2], "attempted")
        self.clock(advance=1)
        self.assertEqual(self.states()[2], "delivered")
        self.assertEqual(self.delivery(3)["metrics"]["sent"], self.START + self.DAY)
        self.assertEqual(self.steps()[-1], (3, "sent"))
        self.assertIsNone(self.delivery(3)["failure_message"])

    def test_who_has_left_gets_none_of_those_held_back(self) -> None:
        day, night = [{"type": "delay_seconds", "delay": n} for n in (self.DAY - 100, 9000)]
        self.limited(3600, mail(1), day, mail(2), mail(3), night, use_message_limits=True)
        self.clock(advance=self.DAY - 1)
        self.ok("POST", f"/__parlel/journeys/{self.journeys()[0]['id']}/force_exit")
        self.clock(advance=1)
        self.assertEqual(self.states()[2], "undeliverable")
        self.assertEqual(self.delivery(3)["failure_message"], "the journey has ended")

    def test_without_a_retry_it_is_undeliverable_at_once(self) -> None:
        self.limited(0, mail(1), mail(2), mail(3), use_message_limits=True)
        self.assertEqual(self.states(), ["delivered", "delivered", "undeliverable"])

    def test_who_does_not_use_it_is_not_held_back(self) -> None:
        self.limited(3600, mail(1), mail(2), mail(3))
        self.assertEqual(self.states(), ["delivered"] * 3)

    def test_a_message_that_has_no_cap_is_sent_and_does_not_count(self) -> None:
        free = mail(1, frequency_cap_mode="no_cap")
        self.limited(3600, free, mail(2), mail(3), mail(4, frequency_cap_mode="no_cap"),
                     use_message_limits=True)  # fmt: skip
        self.assertEqual(self.states(), ["delivered"] * 4)


class TrialEnds(JourneyTest):
    """A webhook whose answer decides which way to go."""

    ACTIONS = [
        {
            "id": 40,
            "type": "webhook",
            "name": "Score",
            "method": "post",
            "sending_state": "automatic",
            "headers": {"Content-Type": "application/json"},
            "body": '{"id": "{{customer.id}}", "plan": "{{event.plan}}"}',
            "response": [
                {"attribute": "journey.score", "value": "{{response.score}}"},
                {"attribute": "customer.crm_id", "value": "{{response.crm.id}}"},
            ],
        },
        {
            "id": 41,
            "type": "attribute_update",
            "attributes": {"trial_status": "ending", "last_plan": "{{event.plan}}"},
        },
        {
            "id": 42,
            "type": "conditional_branch",
            "conditions": exists("crm_id"),
            "paths": [
                [
                    {
                        "id": 43,
                        "type": "create_event",
                        "event_name": "sales_lead",
                        "data": {"score": "{{journey.score}}"},
                    },
                    {"id": 44, "type": "exit"},
                ],
                [mail(45, "Your trial ends", body="<p>{{journey.score}}</p>")],
            ],
        },
    ]

    def setUp(self) -> None:
        super().setUp()
        self.endpoint = Listening(("127.0.0.1", 0), Endpoint)
        self.endpoint.received, self.endpoint.statuses = [], []
        self.endpoint.answer = b'{"score": 7, "crm": {"id": "x9"}}'
        thread = threading.Thread(target=self.endpoint.serve_forever, daemon=True)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.endpoint.server_close)
        self.addCleanup(self.endpoint.shutdown)
        url = f"http://127.0.0.1:{self.endpoint.server_port}/score"
        webhook = {**self.ACTIONS[0], "url": url}
        self.campaign(
            webhook,
            *self.ACTIONS[1:],
            id=4,
            event_name="trial_ending",
            restart_mode="interval",
            restart_min_interval=86400,
        )
        self.identify("7", email="ada@example.com")

    def begin(self) -> None:
        self.track("7", "trial_ending", plan="gold")
        self.clock(advance=1)  # which waits for endpoints

    def test_the_answer_is_stored_and_decides(self) -> None:
        self.begin()
        ((path, headers, body),) = self.endpoint.received
        self.assertEqual((path, body), ("/score", b'{"id": "7", "plan": "gold"}'))
        text = f"v0:{headers['X-CIO-Timestamp']}:".encode() + body
        wanted = hmac.new(b"fake-signing-key", text, "sha256").hexdigest()
        self.assertEqual(headers["X-CIO-Signature"], wanted)
        sent = self.delivery(40)
        self.assertEqual(headers["X-CIO-Idempotency-Key"], sent["delivery_id"])
        self.assertEqual(sent["state"], "sent")
        attributes = self.person("7")["attributes"]
        self.assertEqual(attributes["trial_status"], "ending")
        self.assertEqual(attributes["crm_id"], "x9")
        self.assertEqual(self.journeys()[0]["attributes"], {"score": "7"})
        lead = self.records("events")[-1]
        self.assertEqual((lead["name"], lead["data"]), ("sales_lead", {"score": "7"}))
        self.assertEqual(self.steps()[2:], [(42, "branched", 0), (43, "created"), (44, "exited")])

    def test_its_request_goes_into_snapshots(self) -> None:
        self.begin()
        state = self.ok("GET", "/__parlel/state")
        self.ok("PUT", "/__parlel/state", state)
        sent = self.delivery(40)["rendered"]
        self.assertEqual(sent["headers"], {"Content-Type": "application/json"})

    def test_without_an_address_it_fails(self) -> None:
        self.campaign({"type": "webhook"})
        self.identify("7")
        self.track("7", "go")
        self.clock(advance=1)
        self.assertEqual(self.steps(), [(10, "failed", "url must be an http or https URL: ''")])

    def test_headers_that_were_changed_into_no_texts_fail_it(self) -> None:
        self.ok("PUT", "/v1/campaigns/4/actions/40", {"headers": [{"name": "X", "value": 5}]})
        self.begin()
        self.assertEqual(self.steps()[0][:2], (40, "failed"))
        self.assertEqual(self.endpoint.received, [])

    def test_a_broken_endpoint_is_tried_again_and_the_journey_goes_on(self) -> None:
        self.endpoint.statuses = [500] * 12
        with self.assertLogs("customerio_fake", "WARNING"):
            self.begin()
        self.assertEqual(self.steps()[0], (40, "attempted", "the endpoint answered 500"))
        self.assertEqual(self.steps()[2], (42, "branched", 1))
        missing = "Variable 'journey.score' is missing"
        self.assertEqual(self.steps()[3], (45, "failed", missing))
        self.assertEqual(self.journeys()[0]["state"], "finished")
        self.clock(advance=4094)
        self.assertEqual(len(self.endpoint.received), 12)
        self.assertEqual(self.delivery(40)["state"], "failed")

    def test_an_endpoint_that_recovers_is_stored_late(self) -> None:
        self.endpoint.statuses = [503]
        with self.assertLogs("customerio_fake", "WARNING"):
            self.begin()
        self.clock(advance=2)
        self.assertEqual(self.delivery(40)["state"], "sent")
        self.assertEqual(self.person("7")["attributes"]["crm_id"], "x9")

    def test_what_an_endpoint_refuses_is_not_tried_again(self) -> None:
        self.endpoint.statuses = [400]
        with self.assertLogs("customerio_fake", "WARNING"):
            self.begin()
        self.clock(advance=7200)
        self.assertEqual(len(self.endpoint.received), 1)
        self.assertEqual(self.steps()[0], (40, "failed", "the endpoint answered 400"))

    def test_a_broadcast_calls_it_too(self) -> None:
        url = f"http://127.0.0.1:{self.endpoint.server_port}/score"
        tiles = [{**self.ACTIONS[0], "url": url, "body": "{{trigger.plan}}"},
                 mail(45, "{{journey.score}}")]  # fmt: skip
        self.seed({"broadcasts": [{"id": 4, "name": "B", "actions": tiles}],
                   "customers": [{"id": "7", "email": "ada@example.com"}]})  # fmt: skip
        trigger = {"ids": ["7"], "data": {"plan": "gold"}}
        self.ok("POST", "/v1/campaigns/4/triggers", trigger)
        self.clock(advance=1)
        self.assertEqual([row[2] for row in self.endpoint.received], [b"gold"])
        self.assertEqual(self.delivery(45)["rendered"]["subject"], "7")
        self.assertEqual(self.steps(), [(40, "sent"), (45, "sent")])

    def test_a_second_event_within_a_day_starts_nothing(self) -> None:
        self.begin()
        self.track("7", "trial_ending", plan="gold")
        self.assertEqual(self.journeys()[-1]["exit_reason"], "restart_min_interval")
        self.clock(advance=self.DAY)
        self.track("7", "trial_ending", plan="gold")
        self.assertEqual(self.journeys()[-1]["state"], "active")


class Tiles(JourneyTest):
    """What each tile does, alone in a campaign."""

    def run_through(self, *actions: Any, who: str = "1", **fields: Any) -> None:
        """Send somebody through a campaign of these tiles."""
        self.campaign(*actions, **fields)
        self.identify(who, email=f"{who}@example.com")
        self.track(who, "go", plan="gold", items=[{"n": 1}])

    def test_an_events_data_may_say_from_whom_and_to_whom_its_emails_are(self) -> None:
        own = ("shop@example.com", "help@example.com")
        self.campaign(
            mail(1, **{"from": own[0]}, reply_to=own[1]), {"id": 2, "type": "slack", "body": "b"}
        )
        self.identify("7", email="7@example.com")
        rows: list[tuple[Any, Any]] = [
            ({}, ("7@example.com", *own)),
            ({"recipient": "o@example.com", "from_address": "f@example.com", "reply_to": "r@x.io"},
             ("o@example.com", "f@example.com", "r@x.io")),
            ({"recipient": "", "from_address": 5}, ("7@example.com", *own)),
        ]  # fmt: skip
        for data, wanted in rows:
            self.track("7", "go", **data)
            email, slack = self.records("deliveries")[-2:]
            shown = [email["rendered"][name] for name in ("to", "from", "reply_to")]
            self.assertEqual((email["recipient"], *shown[1:]), wanted)
            self.assertEqual(shown[0], wanted[0])
            self.assertEqual(slack["recipient"], "7@example.com")

    def test_an_incoming_webhook_has_no_customer_to_be_missed(self) -> None:
        at = {"recipient": "{{trigger.to}}"}
        subject = "{{customer.id}}|{{customer.plan | default: 'none'}}|{{trigger.to}}"
        self.campaign(mail(1, subject, **at), type="webhook", webhook_id="0000000000000abc")
        self.ok("POST", "/v1/webhook/0000000000000abc", {"to": "o@example.com"})
        delivery = self.delivery(1)
        self.assertEqual(delivery["rendered"]["subject"], "|none|o@example.com")
        self.assertEqual(delivery["failure_message"], "there is no person to send it to")

    def test_a_message_of_each_channel(self) -> None:
        kinds = {"email": "sent", "slack": "sent", "in_app": "sent", "twilio": "sent",
                 "push": "sent", "whatsapp": "sent"}  # fmt: skip
        self.campaign(*({"type": f"{kind}_action", "subject": "s", "body": "b"} for kind in kinds))
        self.identify("1", email="1@example.com", phone="+15550100")
        self.call("PUT", "/api/v1/customers/1/devices", {"device": {"id": "t", "platform": "ios"}})
        self.track("1", "go")
        rows = self.journeys()[0]["steps"]
        self.assertEqual({row["type"]: row["outcome"] for row in rows}, kinds)
        self.assertEqual(self.delivery(40)["recipient"], "+15550100")

    def test_sending_states(self) -> None:
        self.run_through(mail(1, sending_state="draft"), mail(2, sending_state="off"), mail(3))
        self.assertEqual(
            self.steps(), [(1, "drafted"), (2, "skipped", "sending_state off"), (3, "sent")]
        )

    def test_what_comes_after_a_message_knows_that_it_was_sent(self) -> None:
        sent = {"message": {"action_id": 1, "metric": "sent"}}
        branch = {"id": 2, "type": "conditional_branch", "conditions": sent, "paths": [[], []]}
        self.run_through(mail(1), branch)
        self.assertEqual(self.steps(), [(1, "sent"), (2, "branched", 0)])

    def test_content_that_is_changed_counts_from_then_on(self) -> None:
        self.run_through(mail(1, "old"), {"type": "delay_seconds", "delay": 60}, mail(3, "old"))
        self.ok("PUT", "/v1/campaigns/1/actions/3", {"subject": "new {{event.plan}}"})
        self.clock(advance=60)
        self.assertEqual(self.delivery(3)["rendered"]["subject"], "new gold")

    def test_what_a_template_can_name(self) -> None:
        names = "campaign.type campaign.id message.type message.journey_id event_name event_id "
        names += "event_timestamp journey.x trigger.x campaign.subscription_topic_ids"
        body = "|".join("{{" + name + "}}" for name in names.split())
        update = {"type": "attribute_update", "attributes": {"journey.x": "{{event.plan}}!"}}
        self.run_through(update, mail(2, body=body), topics=[{"id": 7, "name": "n"}],
                         subscription_topic_id=7)  # fmt: skip
        row, event = self.journeys()[0], self.records("events")[0]["id"]
        wanted = ["transactional", "1", "email_action", row["id"], "go", event]
        wanted += [str(self.START), "gold!", "", "7"]
        text = self.delivery(2)["rendered"]["body"].partition("<img")[0]
        self.assertEqual(text.split("|"), wanted)

    def test_a_missing_variable_fails_the_message_and_not_the_journey(self) -> None:
        with self.assertLogs("customerio_fake", "WARNING"):
            self.run_through(mail(1, "{{event.none}}"), mail(2))
            self.assertEqual(
                self.steps(), [(1, "failed", "Variable 'event.none' is missing"), (2, "sent")]
            )

    def test_whoever_is_unsubscribed_goes_through_and_gets_nothing(self) -> None:
        for fields, outcome in (({}, "undeliverable"), ({"send_to_unsubscribed": True}, "sent")):
            self.campaign(mail(1), **fields)
            self.identify("1", email="1@example.com", unsubscribed=True)
            self.track("1", "go")
            self.assertEqual(self.steps()[0][:2], (1, outcome))
            self.assertEqual(self.journeys()[0]["state"], "finished")
        self.campaign(mail(1, send_to_unsubscribed=True))
        self.identify("1", email="1@example.com", unsubscribed=True)
        self.track("1", "go")
        self.assertEqual(self.steps(), [(1, "sent")])

    def test_translations_and_the_language_branch(self) -> None:
        german = {**mail(11, "Hallo"), "parent_action_id": 10, "language": "de"}
        branch = {
            "id": 20,
            "type": "multi_lang_branch",
            "variations": [mail(21, "Hi"), {**mail(22, "Moin"), "language": "de"}],
        }
        self.campaign(mail(10, "Hello"), german, branch)
        for id, language in (("1", "de"), ("2", "fr")):
            self.identify(id, email=f"{id}@example.com", language=language)
            self.track(id, "go")
        subjects = [row["rendered"]["subject"] for row in self.records("deliveries")]
        self.assertEqual(subjects, ["Hallo", "Moin", "Hello", "Hi"])

    def test_updates_of_the_person_of_another_and_of_the_journey(self) -> None:
        self.run_through(
            {
                "type": "attribute_update",
                "attributes": {"a": "{{event.plan}}", "customer.b": 5},
            },
            {"type": "attribute_update", "attributes": {"x": "y"},
             "person": {"id": "{{event.plan}}"}},
            {"type": "attribute_update", "attributes": {"journey.d": "{{customer.a}}"}},
        )  # fmt: skip
        attributes = self.person("1")["attributes"]
        self.assertEqual((attributes["a"], attributes["b"]), ("gold", 5))
        self.assertEqual(self.person("gold")["attributes"], {"x": "y"})
        row = self.journeys()[0]
        self.assertEqual([step["outcome"] for step in row["steps"]], ["updated"] * 3)
        self.assertEqual(row["attributes"], {"d": "gold"})

    def test_an_attribute_that_can_not_be_set_fails_the_tile_alone(self) -> None:
        long = {"type": "attribute_update", "attributes": {"a": "x" * 1001}}
        self.run_through(long, mail(2))
        first, second = self.steps()
        self.assertEqual((first[1], second[1]), ("failed", "sent"))
        self.assertIn("1000", first[2])

    def test_what_a_journey_remembers_is_bounded(self) -> None:
        bounds = {"journey." + "n" * 128: "x", "journey." + "m" * 129: "x",
                  "journey.long": "x" * 102_400, "journey.longer": "x" * 102_401}  # fmt: skip
        self.run_through({"type": "attribute_update", "attributes": bounds})
        self.assertEqual({*self.journeys()[0]["attributes"]}, {"n" * 128, "long"})

    def test_a_journey_remembers_a_hundred_attributes(self) -> None:
        many = {f"journey.a{i}": "x" for i in range(101)}
        self.run_through({"type": "attribute_update", "attributes": many})
        self.assertEqual(len(self.journeys()[0]["attributes"]), 100)

    def test_an_event_of_the_person_or_of_another(self) -> None:
        self.run_through(
            {"type": "create_event", "event_name": "lead_{{event.plan}}",
             "data": {"n": [1, "{{event.plan}}"]}},
            {"type": "create_event", "event_name": "x", "person": {"email": "b@example.com"}},
        )  # fmt: skip
        lead, other = self.records("events")[1:]
        self.assertEqual((lead["name"], lead["data"]), ("lead_gold", {"n": [1, "gold"]}))
        self.assertEqual((lead["customer_id"], other["customer_id"]), ("1", "b@example.com"))
        self.assertEqual(self.steps(), [(10, "created"), (20, "created")])

    def test_manual_segments(self) -> None:
        actions = [{"type": "static_seg_update", "segment_id": 3, "operation": operation}
                   for operation in ("add", "remove")]  # fmt: skip
        pause = {"type": "delay_seconds", "delay": 60}
        self.run_through(actions[0], pause, actions[1], segments=[{"id": 3, "name": "s"}])
        self.assertEqual(self.ok("GET", "/v1/segments/3/customer_count")["count"], 1)
        self.clock(advance=60)
        self.assertEqual(self.ok("GET", "/v1/segments/3/customer_count")["count"], 0)

    def test_a_segment_that_takes_nobody_by_hand(self) -> None:
        update = {"id": 1, "type": "static_seg_update", "segment_id": 3}
        segment = {"id": 3, "name": "s", "conditions": exists("plan")}
        self.run_through(update, segments=[segment])
        self.assertEqual(
            self.steps(),
            [(1, "failed", "segment 3 is data-driven: its conditions say who is in it")],
        )

    def test_rows_of_a_collection(self) -> None:
        rows = [
            {"sku": "a", "plan": "gold"},
            {"sku": "b", "plan": "tin"},
            {"sku": "c", "plan": "gold"},
        ]
        fits = {"field": "plan", "operator": "eq", "value": "{{event.plan}}"}
        query = {
            "type": "collection_query",
            "collection": "shop",
            "filter": fits,
            "attribute": "rows",
        }
        self.campaign(
            {**query, "limit": 1}, query, {**query, "collection": "none"},
            mail(40, "{{journey.rows[1].sku}}"),
            collections=[{"id": 1, "name": "shop", "content": rows}, {"id": 2, "name": "none"}],
        )  # fmt: skip
        self.assertEqual(self.call("DELETE", "/v1/collections/2").status, 204)
        self.identify("1", email="1@example.com")
        self.track("1", "go", plan="gold")
        self.assertEqual(self.journeys()[0]["attributes"], {"rows": [rows[0], rows[2]]})
        self.assertEqual(self.steps()[2], (30, "failed", "there is no collection 'none'"))
        self.assertEqual(self.delivery(40)["rendered"]["subject"], "c")
        types = [row["type"] for row in self.ok("GET", "/v1/activities")["activities"]]
        self.assertIn("failed_query_collection", types)

    def test_a_batch_update_reaches_everybody_who_fits(self) -> None:
        wanted = {"filter": eq("team", "{{event.plan}}")}
        self.campaign(
            {"type": "batch_update", **wanted, "attributes": {"told": "yes"}},
            {"type": "batch_update", **wanted, "event_name": "told"},
        )
        for id in ("1", "2", "3"):
            self.identify(id, team="gold" if id > "1" else "tin")
        self.track("1", "go", plan="gold")
        self.assertEqual(self.steps(), [(10, "updated"), (20, "updated")])
        told = [row["id"] for row in self.records("customers") if "told" in row["attributes"]]
        self.assertEqual(told, ["2", "3"])
        events = [(row["name"], row["customer_id"]) for row in self.records("events")]
        self.assertEqual(events, [("go", "1"), ("told", "2"), ("told", "3")])

    def test_a_batch_update_of_too_many_reaches_nobody(self) -> None:
        self.campaign({"type": "batch_update", "filter": exists("n"), "attributes": {"told": 1}})
        with unittest.mock.patch.object(customerio_fake, "MAX_BATCH_UPDATE", 1):
            for id in ("1", "2"):
                self.identify(id, n=1)
            self.track("1", "go")
            self.assertEqual(self.steps(), [(10, "failed", "2 people match, more than 1")])
        self.assertNotIn("told", self.person("2")["attributes"])
        types = [row["type"] for row in self.ok("GET", "/v1/activities")["activities"]]
        self.assertIn("failed_batch_update", types)

    def test_a_delay_is_flat_and_one_of_nothing_is_none(self) -> None:
        nothing = {"type": "delay_seconds", "delay": 0}
        self.run_through(nothing, {"type": "delay_seconds", "delay": 90.5})
        self.assertEqual(self.steps(), [(10, "waited"), (20, "waiting")])
        self.clock(advance=90)
        self.assertEqual(self.journeys()[0]["state"], "active")
        self.clock(advance=0.5)
        self.assertEqual(self.journeys()[0]["state"], "finished")

    def test_a_random_delay_is_the_same_in_every_run(self) -> None:
        wakes = []
        for _ in range(2):
            self.run_through({"type": "randomized_delay", "min_delay": 100, "max_delay": 900})
            wakes.append(self.journeys()[0]["next_wake_up"] - self.START)
        self.assertEqual(wakes[0], wakes[1])
        self.assertTrue(100 <= wakes[0] <= 900, wakes)

    def test_true_and_false(self) -> None:
        paths = [[mail(11)], [mail(12)]]
        rows: list[tuple[Any, int]] = [
            ({}, 12),
            ([], 12),
            (eq("plan", "a"), 12),
            (eq("email", "1@example.com"), 11),
            ([exists("email"), eq("plan", "a")], 12),
            ({"event_attribute": {"field": "plan", "operator": "eq", "value": "GOLD"}}, 11),
            ({"event_attribute": {"field": "items[].n", "operator": "eq", "value": 1}}, 11),
            ({"event": {"name": "go"}, "times": 1}, 11),
            ({"event": {"name": "go"}, "times": 2}, 12),
            ({"event": {"name": "go"}, "since": "journey"}, 12),
        ]
        for conditions, action in rows:
            with self.subTest(conditions):
                branch = {"id": 10, "type": "conditional_branch", "conditions": conditions}
                self.run_through({**branch, "paths": paths}, mail(13))
                self.assertEqual([number for number, _ in self.sent()], [action, 13])
                self.assertEqual(self.steps()[0], (10, "branched", action - 11))

    def test_message_activity_decides(self) -> None:
        opened = {"message": {"action_id": 1, "metric": "opened"}}
        branch = {"id": 3, "type": "conditional_branch", "conditions": opened,
                  "paths": [[mail(4)], [mail(5)]]}  # fmt: skip
        self.campaign(mail(1), {"id": 2, "type": "delay_seconds", "delay": 60}, branch)
        for id in ("1", "2"):
            self.identify(id, email=f"{id}@example.com")
            self.track(id, "go")
        self.journeys()
        self.ok("POST", f"/__parlel/deliveries/{self.delivery(1)['delivery_id']}/opened", {})
        self.track("1", "go")
        self.clock(advance=60)
        self.assertEqual(self.sent()[3:], [(4, "1"), (5, "2"), (5, "1")])

    def test_the_first_path_from_the_left(self) -> None:
        split = {
            "id": 10,
            "type": "multi_split_branch",
            "multi_conditions": [eq("a", 1), exists("a")],
            "paths": [[mail(11)], [mail(12)], [mail(13)]],
        }
        for a, action in (("1", 11), ("2", 12), ("", 13)):
            self.campaign(split)
            self.identify("1", email="1@example.com", a=a)
            self.track("1", "go")
            self.assertEqual(self.sent(), [(action, "1")])

    def test_an_exit_on_a_path_ends_the_journey(self) -> None:
        branch = {"id": 10, "type": "conditional_branch", "conditions": exists("email"),
                  "paths": [[{"id": 11, "type": "exit"}], []]}  # fmt: skip
        self.run_through(branch, mail(12))
        self.assertEqual(self.steps(), [(10, "branched", 0), (11, "exited")])
        self.campaign(branch, mail(12))
        self.track("2", "go")
        self.assertEqual(self.steps()[0], (10, "branched", 1))
        self.assertEqual(self.steps()[1][0], 12)

    def test_a_wait_that_is_over_before_it_begins(self) -> None:
        wait = {"id": 10, "type": "conditional_wait", "multi_conditions": [exists("email")]}
        self.run_through(wait, mail(20))
        self.assertEqual(self.steps(), [(10, "matched", 0), (20, "sent")])

    def test_a_wait_without_an_end_waits_for_ever(self) -> None:
        wait = {"id": 10, "type": "conditional_wait", "multi_conditions": [exists("plan")],
                "exit_type": "never", "delay": 0}  # fmt: skip
        self.run_through(wait, mail(20))
        self.clock(advance=1000 * self.DAY)
        row = self.journeys()[0]
        self.assertEqual((row["waiting_for"], row["next_wake_up"]), ("conditional_wait", None))
        self.identify("1", plan="a")
        self.assertEqual(self.steps(), [(10, "matched", 0), (20, "sent")])

    def test_who_came_and_left_before_the_wait_waits(self) -> None:
        wait = {"id": 20, "type": "conditional_wait", "multi_conditions": [{"segment": {"id": 1}}]}
        self.run_through({"type": "delay_seconds", "delay": 7 * self.DAY}, wait,
                         segments=[{"id": 1, "name": "Paying", "ids": []}])  # fmt: skip
        self.call("POST", "/api/v1/segments/1/add_customers", {"ids": ["1"]})
        self.call("POST", "/api/v1/segments/1/remove_customers", {"ids": ["1"]})
        self.clock(advance=7 * self.DAY)
        self.assertEqual(self.journeys()[0]["waiting_for"], "conditional_wait")
        self.call("POST", "/api/v1/segments/1/add_customers", {"ids": ["1"]})
        self.assertEqual(self.journeys()[0]["state"], "finished")

    def test_a_wait_ends_when_time_alone_says_so(self) -> None:
        old = {"attribute": {"field": "seen", "operator": "timestamp_lt", "value": "-3600"}}
        wait = {"id": 10, "type": "conditional_wait", "delay": 9999}
        for condition in (old, {"segment": {"id": 1}}):
            segments = [{"id": 1, "name": "s", "conditions": old}]
            self.campaign({**wait, "multi_conditions": [condition]}, segments=segments)
            self.identify("1", seen=self.START - 600)
            self.track("1", "go")
            self.assertEqual(self.journeys()[0]["next_wake_up"], self.START + 3000)
            self.clock(advance=2999)
            self.assertEqual(self.journeys()[0]["state"], "active")
            self.clock(advance=1)
            self.assertEqual(self.steps(), [(10, "matched", 0)])

    def test_a_wait_for_the_time_that_the_event_names(self) -> None:
        wait = {"id": 10, "type": "conditional_wait",
                "multi_conditions": [{"event_time": {"field": "at"}}]}  # fmt: skip
        self.campaign(wait)
        self.track("1", "go", at=self.START + 500)
        self.assertEqual(self.journeys()[0]["next_wake_up"], self.START + 500)
        self.clock(advance=500)
        self.assertEqual(self.steps(), [(10, "matched", 0)])

    def test_a_wait_for_a_click(self) -> None:
        clicked = {"message": {"action_id": 1, "metric": "clicked"}}
        wait = {"id": 2, "type": "conditional_wait", "multi_conditions": [clicked], "delay": 60}
        self.run_through(mail(1), wait)
        self.journeys()
        self.ok("POST", f"/__parlel/deliveries/{self.delivery(1)['delivery_id']}/clicked", {})
        # What a call to the control endpoints brings about follows at once, too.
        self.assertEqual(self.steps()[1], (2, "matched", 0))

    def test_the_worked_example_of_the_time_window(self) -> None:
        """In on Monday 18:00: email on Thursday 09:00, push on Saturday 09:00 (docs)."""
        two = {"type": "delay_seconds", "delay": 2 * self.DAY}
        window = {"type": "delay_time_window", "start_time": "09:00", "end_time": "17:00",
                  "days": ["mon", "tue", "wed", "thu", "fri"],
                  "zone": "customer_time_zone"}  # fmt: skip
        push = {"id": 50, "type": "push", "body": "b"}
        self.campaign(two, window, mail(30), {**two, "id": 40}, push)
        monday = 1_699_898_400  # 2023-11-13 18:00 UTC
        self.clock(now=monday)
        self.identify("1", email="1@example.com", timezone="UTC")
        self.track("1", "go")
        self.clock(advance=7 * self.DAY)
        times = {row["action_id"]: row["at"] for row in self.journeys()[0]["steps"]}
        self.assertEqual(times[30], monday + 2 * self.DAY + 15 * 3600)
        self.assertEqual(times[50], monday + 4 * self.DAY + 15 * 3600)

    @with_zones
    def test_an_open_window_is_no_wait_and_a_new_zone_counts(self) -> None:
        # The clock stands at 22:13 on a Tuesday, UTC.
        window = {"type": "delay_time_window", "start_time": "09:00", "end_time": "17:00",
                  "zone": "customer_time_zone", "fallback_zone": "Asia/Tokyo"}  # fmt: skip
        self.campaign({**window, "fallback_zone": "America/Los_Angeles"})
        self.track("1", "go")
        self.assertEqual(self.steps(), [(10, "waited")])
        self.campaign(window)
        self.track("1", "go")
        wake = self.START - 22 * 3600 - 13 * 60 - 20 + 24 * 3600
        self.assertEqual(self.journeys()[0]["next_wake_up"], wake)
        self.identify("1", timezone="America/Los_Angeles")
        self.assertEqual(self.steps(), [(10, "waited")])

    @with_zones
    def test_windows_past_midnight_on_some_days_and_across_summer_time(self) -> None:
        berlin = zoneinfo.ZoneInfo("Europe/Berlin")
        rows = [
            # now, days, from, to, when it opens; 2030-03-31 is a Sunday without 02:00 to 03:00
            ("2030-03-30T23:30", {5}, "22:00", "02:00", "2030-03-30T23:30"),
            ("2030-03-31T01:30", {5}, "22:00", "02:00", "2030-03-31T01:30"),
            ("2030-03-31T04:00", {5}, "22:00", "02:00", "2030-04-06T22:00"),
            ("2030-03-31T00:00", {6}, "02:30", "05:00", "2030-03-31T03:30"),
            ("2030-10-27T00:00", {6}, "03:00", "04:00", "2030-10-27T03:00"),
            ("2030-03-30T09:00", {0}, "09:00", "09:00", "2030-04-01T09:00"),
        ]
        for now, days, start, end, opens in rows:
            with self.subTest(now=now):
                moment = datetime.datetime.fromisoformat(now).replace(tzinfo=berlin).timestamp()
                found = customerio_fake.next_opening(moment, berlin, days, start, end)
                text = datetime.datetime.fromtimestamp(found, berlin).isoformat()[:16]
                self.assertEqual(text, opens)

    def test_tiles_whose_condition_is_not_met_are_skipped(self) -> None:
        no = {"preconditions": exists("none")}
        self.run_through(
            {"type": "delay_seconds", "delay": 60, **no},
            {"type": "attribute_update", "attributes": {"a": 1}, **no},
            {"type": "webhook", "url": "http://127.0.0.1:1", **no},
            mail(40),
        )
        outcomes = [step[1] for step in self.steps()]
        self.assertEqual(outcomes, ["skipped"] * 3 + ["sent"])

    def test_conditions_on_tiles_count_what_has_ever_happened(self) -> None:
        done = {"event": {"name": "go"}}
        self.run_through(mail(1, preconditions=done), mail(2, preconditions=[done, exists("none")]))
        self.assertEqual([step[1] for step in self.steps()], ["sent", "skipped"])

    def test_waits_do_not_make_anybody_active(self) -> None:
        waits: list[Any] = [
            {"type": "delay_seconds", "delay": 60},
            {"type": "randomized_delay", "min_delay": 60, "max_delay": 60},
            {"type": "delay_time_window", "start_time": "00:00", "end_time": "00:01"},
            {"type": "conditional_wait", "multi_conditions": [exists("none")], "delay": 60},
        ]
        for wait in waits:
            self.run_through(wait, mail(20), global_exit_conditions=[exists("x")])
            row = self.journeys()[0]
            self.assertEqual((row["state"], row["activated_at"]), ("active", None))
            self.identify("1", x=1)
            self.assertEqual(self.journeys()[0]["state"], "never_activated")

    def test_paths_that_do_nothing_do_not_make_anybody_active(self) -> None:
        forks: list[Any] = [
            {"type": "conditional_branch", "conditions": exists("a"), "paths": [[], []]},
            {"type": "multi_split_branch", "multi_conditions": [exists("a")], "paths": [[], []]},
            {"type": "random_cohort_branch", "cohorts": [1000], "paths": [[]]},
            {"type": "exit"},
        ]
        for fork in forks:
            self.run_through(fork)
            self.assertIsNone(self.journeys()[0]["activated_at"], fork)

    def test_a_seed_of_chance_draws_anew(self) -> None:
        cohort = {"id": 1, "type": "random_cohort_branch", "cohorts": [500, 500], "paths": [[], []]}
        drawn = []
        for chance in (0, 0, 1):
            row = {"id": 1, "name": "C", "event_name": "go", "actions": [cohort]}
            self.seed({"workspace": {"random_seed": chance}, "campaigns": [row]})
            for n in range(20):
                self.track(f"p{n}", "go")
            drawn.append([row["steps"][0]["path"] for row in self.journeys()])
        self.assertEqual(drawn[0], drawn[1])
        self.assertNotEqual(drawn[0], drawn[2])
        self.assertEqual({*drawn[0]}, {0, 1})

    def test_days_by_number(self) -> None:
        # 2023-11-14 was a Tuesday; 0 and 7 are Sunday.
        for day, wait in ((2, 0), (3, 1), (0, 5), (7, 5)):
            self.run_through({"type": "delay_time_window", "days": [day]})
            wake = self.journeys()[0]["next_wake_up"]
            midnight = self.START - self.START % self.DAY
            self.assertEqual(wake, midnight + wait * self.DAY if wait else None)

    def test_webhooks_that_are_drafts_off_or_broken(self) -> None:
        hook = {"type": "webhook", "url": "http://127.0.0.1:1/"}
        self.run_through(
            {**hook, "sending_state": "draft"},
            {**hook, "sending_state": "off"},
            {**hook, "url": "ftp://x"},
            {**hook, "body": "{{event.none}}"},
            {**hook, "headers": {"X-Plan": "{{event.none}}"}},
        )
        self.assertEqual(
            [step[1] for step in self.steps()],
            ["drafted", "skipped", "failed", "failed", "failed"],
        )
        self.assertIn("url must be", self.steps()[2][2])
        self.assertEqual(self.journeys()[0]["state"], "finished")


class Entries(JourneyTest):
    """Who enters a campaign, and who nearly does."""

    def reasons(self) -> list[str | None]:
        return [row["exit_reason"] for row in self.journeys()]

    def test_how_often(self) -> None:
        rows: list[tuple[dict[str, Any], list[str | None]]] = [
            ({}, [None, None, None]),
            ({"restart_mode": "once"}, [None, "restart_mode once", "restart_mode once"]),
            ({"restart_min_interval": 60}, [None, "restart_min_interval", None]),
            ({"restart_mode": "interval", "restart_min_interval": 60},
             [None, "restart_min_interval", None]),
            ({"restart_mode": "interval", "restart_min_interval": 61},
             [None, "restart_min_interval", "restart_min_interval"]),
        ]  # fmt: skip
        for fields, reasons in rows:
            with self.subTest(fields):
                self.campaign(mail(1), **fields)
                for _ in range(3):
                    self.track("1", "go")
                    self.clock(advance=30)
                self.assertEqual(self.reasons(), reasons)

    def test_journeys_that_nothing_of_a_journey_began_are_no_chain(self) -> None:
        self.campaign({"type": "create_event", "event_name": "x"})
        for _ in range(105):
            self.track("1", "go")
        self.assertEqual({row["state"] for row in self.journeys()}, {"finished"})

    def test_two_journeys_of_one_person_run_side_by_side(self) -> None:
        self.campaign({"type": "delay_seconds", "delay": 60}, mail(20, "{{event.n}}"))
        self.identify("1", email="1@example.com")
        for n in (1, 2):
            self.track("1", "go", n=n)
        self.clock(advance=60)
        subjects = [row["rendered"]["subject"] for row in self.records("deliveries")]
        self.assertEqual(subjects, ["1", "2"])

    def test_a_campaign_that_does_not_run_says_so(self) -> None:
        for state in ("draft", "stopped", "archived"):
            self.campaign(mail(1), state=state)
            self.track("1", "go")
            self.assertEqual(self.reasons(), [f"the campaign is {state}"])

    def test_without_a_trigger_nobody_enters(self) -> None:
        self.campaign(mail(1), event_name="", type="event")
        self.track("1", "go")
        self.identify("1", a=1)
        self.assertEqual(self.journeys(), [])

    def test_pages_and_screens_start_it_by_their_name(self) -> None:
        self.campaign(mail(1), event_name="https://x.io/buy")
        page = {"type": "page", "name": "https://x.io/buy"}
        self.call("POST", "/api/v1/customers/1/events", page)
        self.assertEqual(len(self.journeys()), 1)

    def test_an_event_that_came_twice_starts_it_once(self) -> None:
        self.campaign(mail(1))
        for _ in range(2):
            body = {"name": "go", "id": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}
            self.call("POST", "/api/v1/customers/1/events", body)
        self.assertEqual(len(self.journeys()), 1)
        self.assertEqual(self.journeys()[0]["trigger_event_id"], body["id"])

    def test_an_anonymous_event_starts_it_once_it_has_a_person(self) -> None:
        self.campaign(mail(1))
        for anonymous, hours in (("a", 71), ("b", 73)):
            self.call("POST", "/api/v1/events", {"name": "go", "anonymous_id": anonymous})
            self.clock(advance=hours * 3600)
            self.assertEqual(len(self.journeys()), "ab".index(anonymous))
            self.identify(anonymous, anonymous_id=anonymous)
            self.assertEqual(len(self.journeys()), "ab".index(anonymous) + 1)
        self.assertEqual(self.reasons(), [None, "timestamp older than 72 hours"])

    def test_who_is_suppressed_does_not_enter_and_that_is_told(self) -> None:
        self.campaign(mail(1))
        self.identify("1")
        self.call("POST", "/api/v1/customers/1/suppress")
        self.track("1", "go")
        self.track("1", "other")
        row = self.journeys()[0]
        self.assertEqual((row["customer_id"], row["state"]), ("1", "not_entered"))
        self.assertIn("suppressed", row["exit_reason"])
        self.assertEqual(len(self.journeys()), 1)

    def test_segment_campaigns_look_at_the_filter_before_the_first_act(self) -> None:
        self.campaign({"type": "delay_seconds", "delay": 60}, mail(20), type="segment",
                      trigger=exists("a"), filter=eq("b", 1))  # fmt: skip
        self.identify("1", email="1@example.com", a=1)
        self.identify("2", email="2@example.com", a=1)
        self.clock(advance=59)
        self.identify("2", b=1)
        self.clock(advance=1)
        states = [(row["state"], row["exit_reason"]) for row in self.journeys()]
        self.assertEqual(states, [("never_activated", "filter"), ("finished", None)])

    def test_segment_campaigns_of_all_segments_and_again_after_an_interval(self) -> None:
        segments = [{"id": n, "name": "s", "conditions": exists(f"a{n}")} for n in (1, 2)]
        self.campaign(mail(1), type="segment", trigger_segment_ids=[1, 2], segments=segments,
                      restart_mode="interval", restart_min_interval=600)  # fmt: skip
        self.identify("1", email="1@example.com", a1=1)
        self.assertEqual(self.journeys(), [])
        self.identify("1", a2=1)
        self.assertEqual(len(self.journeys()), 1)
        self.clock(advance=1300)
        begins = [row["match_time"] - self.START for row in self.journeys()]
        self.assertEqual(begins, [0, 600, 1200])
        self.identify("1", a2="")
        self.clock(advance=1300)
        self.assertEqual(len(self.journeys()), 3)

    def test_who_is_still_inside_enters_again_after_the_next_interval(self) -> None:
        nap = {"id": 2, "type": "delay_seconds", "delay": 2 * self.DAY}
        self.campaign(mail(1), nap, type="segment", trigger=exists("a"), restart_mode="interval",
                      restart_min_interval=self.DAY)  # fmt: skip
        self.identify("1", email="1@example.com", a=1)
        self.clock(advance=5 * self.DAY)
        rows = [(row["match_time"] - self.START, row["state"]) for row in self.journeys()]
        days = [0, 2 * self.DAY, 4 * self.DAY]
        self.assertEqual(rows, [*zip(days, ["finished", "finished", "active"])])

    def test_an_interval_counts_from_the_last_entry(self) -> None:
        nap = {"id": 2, "type": "delay_seconds", "delay": 1.5 * self.DAY}
        self.campaign(mail(1), nap, type="segment", trigger=exists("a"), restart_mode="interval",
                      restart_min_interval=self.DAY)  # fmt: skip
        self.identify("1", email="1@example.com", a=1)
        self.clock(advance=1.6 * self.DAY)  # the interval ended while they were inside
        self.identify("1", a="")
        self.identify("1", a=1)
        self.clock(advance=self.DAY)
        rows = [(row["match_time"] - self.START, row["state"]) for row in self.journeys()]
        self.assertEqual(rows, [(0, "finished"), (int(1.6 * self.DAY), "active")])

    def test_an_interval_goes_on_after_somebody_was_refused(self) -> None:
        self.campaign(mail(1), type="segment", trigger=exists("a"), restart_mode="interval",
                      restart_min_interval=600)  # fmt: skip
        self.identify("1", email="1@example.com", a=1)
        self.ok("PUT", "/__parlel/campaigns/1", {"state": "stopped"})
        self.clock(advance=600)
        self.ok("PUT", "/__parlel/campaigns/1", {"state": "running"})
        self.clock(advance=600)
        rows = [(row["match_time"] - self.START, row["state"]) for row in self.journeys()]
        self.assertEqual(rows, [(0, "finished"), (600, "not_entered"), (1200, "finished")])

    def test_who_is_turned_away_at_each_interval_is_looked_at_once_in_each(self) -> None:
        self.campaign(mail(1), type="segment", trigger=exists("a"), filter=exists("b"),
                      restart_mode="interval", restart_min_interval=600)  # fmt: skip
        self.identify("1", email="1@example.com", a=1)
        for _ in range(5):
            self.clock(advance=600)
            self.assertEqual(self.ok("GET", "/__parlel/clock")["due"], 1)
            self.ok("PUT", "/__parlel/state", self.ok("GET", "/__parlel/state"))
        self.identify("1", b=1)
        self.clock(advance=600)
        states = [row["state"] for row in self.journeys()]
        self.assertEqual(states, [*["never_activated"] * 6, "finished"])

    def test_time_alone_lets_people_in_at_the_exact_second(self) -> None:
        quiet = {"event": {"name": "login"}, "within": 3600, "inverse": True}
        segments = [{"id": 1, "name": "q", "conditions": quiet}]
        self.campaign(mail(1), type="segment", segments=segments, trigger_segment_ids=[1],
                      restart_mode="rematch")  # fmt: skip
        self.identify("1", email="1@example.com")
        self.clock(advance=3599)
        self.assertEqual(self.journeys(), [])
        self.track("1", "login")
        self.clock(advance=10_000)
        begins = [row["match_time"] - self.START for row in self.journeys()]
        self.assertEqual(begins, [3599 + 3600])

    def test_a_timestamp_in_the_trigger_is_when_it_begins(self) -> None:
        now, ends = self.START, {"attribute": {"field": "ends", "operator": "is_timestamp"}}
        soon = {"attribute": {"field": "ends", "operator": "timestamp_gt", "value": 0}}
        rows: list[tuple[Any, Any, list[Any], tuple[str, int | None]]] = [
            (ends, now + 600, [], ("finished", 600)),
            (ends, now - 600, [], ("finished", 0)),
            (ends, now + 600, [(300, now + 900)], ("finished", 900)),
            (ends, now + 600, [(300, now + 400)], ("finished", 400)),
            (ends, now + 600, [(300, now)], ("finished", 300)),
            (ends, now + 600, [(300, "")], ("never_activated", None)),
            (ends, "never", [], ("", None)),
            ({"and": [ends, exists("email")]}, now + 600, [], ("finished", 600)),
            ({"and": [soon, exists("email")]}, now + 600, [], ("finished", 0)),
        ]
        for trigger, at, changes, (state, sent) in rows:
            for kind in ("trigger", "segment"):
                with self.subTest(trigger=trigger, at=at, changes=changes, kind=kind):
                    segments = [{"id": 1, "name": "s", "conditions": trigger}]
                    told = {"trigger": trigger} if kind == "trigger" else {
                        "trigger_segment_ids": [1], "segments": segments}  # fmt: skip
                    self.campaign(mail(1), type="segment", **told)
                    self.identify("1", email="1@example.com", ends=at)
                    begun = len(self.journeys())
                    for seconds, value in changes:
                        self.clock(advance=seconds)
                        self.identify("1", ends=value)
                    self.clock(advance=1000)
                    self.assertEqual([row["state"] for row in self.journeys()], [state][:begun])
                    times = [row["metrics"]["sent"] for row in self.records("deliveries")]
                    self.assertEqual(times, [] if sent is None else [now + sent])

    def test_who_waits_for_a_timestamp_has_a_journey(self) -> None:
        ends = {"attribute": {"field": "ends", "operator": "is_timestamp"}}
        self.campaign(mail(1), type="segment", trigger=ends)
        self.identify("1", email="1@example.com", ends=self.START + 600)
        row = self.journeys()[0]
        wanted = ("active", "timestamp", self.START + 600, self.START, None)
        names = ("state", "waiting_for", "next_wake_up", "match_time", "activated_at")
        self.assertEqual(tuple(row[name] for name in names), wanted)

    def test_people_match_what_they_lack(self) -> None:
        lack = {"attribute": {"field": "plan", "operator": "not_exists"}}
        self.campaign(mail(1), type="segment", trigger=lack)
        self.track("1", "x")
        self.identify("2", plan="a")
        self.identify("3")
        entered = [row["customer_id"] for row in self.journeys()]
        self.assertEqual(entered, ["1", "3"])

    def test_an_identifier_is_an_attribute_too(self) -> None:
        self.campaign(mail(1), type="segment", trigger=exists("id"))
        self.call("PUT", "/api/v1/customers/a@example.com", {"x": 1})
        self.assertEqual(self.journeys(), [])
        self.call("PUT", "/api/v1/customers/a@example.com", {"id": "7"})
        self.assertEqual([row["customer_id"] for row in self.journeys()], ["7"])

    def test_two_date_campaigns_of_one_person(self) -> None:
        date = {"type": "date", "date_attribute": "when", "name": "C"}
        rows = [{**date, "id": n, "actions": [mail(n)]} for n in (1, 2)]
        self.seed({"campaigns": rows})
        self.identify("1", email="1@example.com", when="2023-11-16")
        self.clock(advance=3 * self.DAY)
        self.assertEqual([row["campaign_id"] for row in self.journeys()], [1, 2])

    def test_who_is_there_when_it_starts(self) -> None:
        for audience, entered in (("future", 0), ("current", 1)):
            self.campaign(mail(1), type="segment", trigger=exists("a"), audience_at_start=audience,
                          customers=[{"id": "1", "attributes": {"a": 1}}])  # fmt: skip
            self.assertEqual(len(self.journeys()), entered)
            self.identify("2", a=1)
            self.assertEqual(len(self.journeys()), entered + 1)

    def test_several_campaigns_begin_in_the_order_of_their_numbers(self) -> None:
        rows = [{"id": n, "name": "C", "event_name": "go", "actions": [mail(n)]} for n in (3, 1, 2)]
        self.seed({"campaigns": rows})
        self.track("1", "go")
        self.assertEqual([row["campaign_id"] for row in self.journeys()], [1, 2, 3])

    def test_a_date_without_a_time_begins_at_midnight(self) -> None:
        self.campaign(mail(1), type="date", date_attribute="due", start_hour=None,
                      start_minutes=None, frequency=None)  # fmt: skip
        self.identify("1", email="1@example.com", due="2023-11-16")
        self.clock(advance=5 * self.DAY)
        begins = [row["match_time"] for row in self.journeys()]
        self.assertEqual(begins, [1_700_092_800])  # 2023-11-16 in UTC

    def test_nobody_enters_by_what_was_not_told(self) -> None:
        types = ("segment", "event", "date", "form", "webhook", "object", "relationship")
        rows = [{"id": n, "type": type} for n, type in enumerate(types, 1)]
        self.seed({"campaigns": rows, "customers": [{"id": "1"}]})
        self.identify("1", email="1@example.com")
        self.track("1", "go")
        self.clock(advance=40 * self.DAY)
        self.assertEqual(self.journeys(), [])

    def test_forms(self) -> None:
        self.campaign(mail(1, "{{event.color}}"), type="form", form_id="f1")
        data = {"email": "a@example.com", "color": "red"}
        for form in ("f1", "f2"):
            self.call("POST", f"/api/v1/forms/{form}/submit", {"data": data})
        self.assertEqual(self.delivery(1)["rendered"]["subject"], "red")
        self.assertEqual(len(self.journeys()), 1)

    def test_devices_that_come_and_go(self) -> None:
        phone = {"device_attribute": {"field": "platform", "operator": "eq", "value": "ios"}}
        self.campaign(mail(1), type="segment", trigger=phone, event_name=None,
                      restart_mode="rematch")  # fmt: skip
        path = "/api/v1/customers/{}/devices"
        device = {"device": {"id": "t", "platform": "ios"}}
        for who, count in (("7", 1), ("7", 1), ("8", 2), ("7", 3)):
            self.assertEqual(self.call("PUT", path.format(who), device).status, 200)
            self.assertEqual(len(self.journeys()), count)
        self.assertEqual(self.call("DELETE", path.format("7") + "/t").status, 200)
        self.assertEqual(self.call("PUT", path.format("7"), device).status, 200)
        self.assertEqual([row["customer_id"] for row in self.journeys()], ["7", "8", "7", "7"])
        wait = {"type": "conditional_wait", "multi_conditions": [phone]}
        self.campaign(wait, mail(20))
        self.identify("9", email="9@example.com")
        self.track("9", "go")
        self.assertEqual(self.call("PUT", path.format("9"), device).status, 200)
        self.assertEqual(self.steps()[0], (10, "matched", 0))

    def test_incoming_webhooks_have_no_person(self) -> None:
        update = {"type": "attribute_update", "attributes": {"city": "{{trigger.city}}"}}
        event = {"type": "create_event", "event_name": "moved", "person": {"id": "{{trigger.who}}"}}
        self.campaign({**update, "person": {"id": "{{trigger.who}}"}}, event, update,
                      type="webhook", webhook_id=0xABC)  # fmt: skip
        path = "/v1/webhook/0000000000000abc"
        self.assertEqual(self.call("POST", path, {"who": "7", "city": "Rome"}).status, 200)
        self.assertEqual(self.person("7")["attributes"], {"city": "Rome"})
        self.assertEqual(self.records("events")[0]["name"], "moved")
        row = self.journeys()[0]
        self.assertEqual((row["customer_id"], row["trigger"]["city"]), (None, "Rome"))
        self.assertEqual(self.steps()[2][1], "failed")
        self.campaign(update, type="webhook", webhook_id="0000000000000abd")
        self.assertEqual(self.call("POST", "/v1/webhook/0000000000000abd", {}).status, 200)
        for wrong in ("0000000000000abc", "abc", "zzzzzzzzzzzzzzzz"):
            self.assertEqual(self.call("POST", f"/v1/webhook/{wrong}", {}).status, 404)
        types = [row["type"] for row in self.ok("GET", "/v1/activities")["activities"]]
        self.assertIn("webhook_event", types)

    def relate(self, id: str, who: str, **attributes: Any) -> None:
        ids = {"object_type_id": "1", "object_id": id}
        related = [{"identifiers": {"id": who}, "relationship_attributes": attributes}]
        body = {"type": "object", "action": "identify", "identifiers": ids, "attributes": {},
                "cio_relationships": related}  # fmt: skip
        self.assertEqual(self.call("POST", "/api/v2/entity", body).status, 200)

    def update(self, id: str, **attributes: Any) -> None:
        body = {"type": "object", "action": "identify", "attributes": attributes,
                "identifiers": {"object_type_id": "1", "object_id": id}}  # fmt: skip
        self.assertEqual(self.call("POST", "/api/v2/entity", body).status, 200)

    OBJECT_TYPES = [{"id": 1, "name": "Shops", "singular_slug": "shop"}]

    def objects_campaign(self, **fields: Any) -> None:
        row = {"id": 1, "name": "C", "object_type_id": 1, "restart_mode": "rematch",
               "actions": [mail(1, "{{trigger.shop.name}} {{trigger.relationship.role}} "
                                "{{trigger.customer.id}} {{customer.id}}")], **fields}  # fmt: skip
        self.seed({"object_types": self.OBJECT_TYPES, "campaigns": [row]})
        self.update("acme", name="Acme")
        for id in ("1", "2"):
            self.identify(id, email=f"{id}@example.com", team="a" if id == "1" else "b")

    def subjects(self) -> list[str]:
        return [row["rendered"]["subject"] for row in self.records("deliveries")]

    def test_who_waits_for_an_object_goes_on_when_it_changes(self) -> None:
        wait = {"id": 10, "type": "conditional_wait", "multi_conditions": [
            {"object_attribute": {"field": "open", "operator": "eq", "value": "yes"}}]}  # fmt: skip
        self.campaign(wait, mail(20))
        for id in ("1", "2"):
            self.identify(id, email=f"{id}@example.com")
            self.track(id, "go")
        self.relate("acme", "1")
        for value, sent in (("no", []), ("yes", [(20, "1")])):
            self.update("acme", open=value)
            self.assertEqual(self.sent(), sent)

    def test_an_updated_object_reaches_all_its_people(self) -> None:
        changed = {"object_attribute": {"field": "open", "operator": "eq", "value": "yes"}}
        self.objects_campaign(type="object", audience={"type": 1},
                              object_attribute_triggers={"and": [changed]})  # fmt: skip
        for id in ("1", "2"):
            self.relate("acme", id, role=f"r{id}")
        self.update("acme", color="red")
        self.update("acme", open="no")
        self.assertEqual(self.subjects(), [])
        self.update("acme", open="yes")
        self.assertEqual(self.subjects(), ["Acme r1 1 1", "Acme r2 2 2"])
        self.update("acme", color="blue")
        self.assertEqual(len(self.subjects()), 2)

    def test_certain_people_of_an_object(self) -> None:
        fits = {"person_filters": {"and": [eq("team", "b")]}, "type": 1}
        self.objects_campaign(type="object", audience=fits)
        for id in ("1", "2"):
            self.relate("acme", id, role=f"r{id}")
        self.update("acme", color="red")
        self.assertEqual(self.subjects(), ["Acme r2 2 2"])
        self.assertEqual(self.reasons(), ["filter", None])

    def test_a_new_relationship_is_for_one_or_for_all(self) -> None:
        for audience, second in ((0, ["Acme r2 2 2"]), (1, ["Acme r2 2 1", "Acme r2 2 2"])):
            self.objects_campaign(type="relationship", audience={"type": audience})
            self.relate("acme", "1", role="r1")
            self.assertEqual(self.subjects(), ["Acme r1 1 1"])
            self.relate("acme", "2", role="r2")
            self.assertEqual(self.subjects()[1:], second)

    def test_one_write_of_many_relationships_lets_everybody_in_once(self) -> None:
        self.objects_campaign(type="relationship", audience={"type": 1})
        people = [{"identifiers": {"id": id}} for id in ("1", "2")]
        for action in ("identify", "add_relationships"):
            before = len(self.journeys())
            self.call("POST", "/api/v2/entity", {
                "type": "object", "action": action, "cio_relationships": people,
                "identifiers": {"object_type_id": "1", "object_id": action},
            })  # fmt: skip
            self.assertEqual(len(self.journeys()) - before, 2)

    def test_one_call_of_many_writes_lets_everybody_in_once(self) -> None:
        ids = [str(n) for n in range(20)]
        about = {"type": "person", "action": "add_relationships", "cio_relationships": [
            {"identifiers": {"object_type_id": "1", "object_id": "acme"}}]}  # fmt: skip
        body = {"batch": [{**about, "identifiers": {"id": id}} for id in ids]}
        for lag in (0, 2):
            self.fake = Fake(Settings(ingest_delay=lag))
            self.objects_campaign(type="relationship", audience={"type": 1})
            for id in ids:
                self.identify(id)
            self.assertEqual(self.call("POST", "/api/v2/batch", body).status, 200)
            self.clock(advance=2)
            self.assertEqual(sorted(row["customer_id"] for row in self.journeys()), sorted(ids))

    def test_which_of_several_changes_lets_everybody_in(self) -> None:
        boss = {"relationship_attribute": {"field": "role", "operator": "eq", "value": "boss"}}
        self.objects_campaign(type="relationship", audience={"type": 1},
                              relationship_attribute_triggers={"and": [boss]})  # fmt: skip
        people = [{"identifiers": {"id": id}, "relationship_attributes": {"role": role}}
                  for id, role in (("1", "clerk"), ("2", "boss"))]  # fmt: skip
        ids = {"object_type_id": "1", "object_id": "acme"}
        self.call("POST", "/api/v2/entity", {"type": "object", "action": "add_relationships",
                  "identifiers": ids, "cio_relationships": people})  # fmt: skip
        self.assertEqual(self.subjects(), ["Acme boss 2 1", "Acme boss 2 2"])

    def test_an_audience_that_is_not_told(self) -> None:
        self.objects_campaign(type="relationship")
        self.relate("acme", "1", role="r1")
        self.relate("acme", "2", role="r2")
        self.assertEqual(self.subjects(), ["Acme r1 1 1", "Acme r2 2 2"])
        self.objects_campaign(type="object")
        for id in ("1", "2"):
            self.relate("acme", id, role=f"r{id}")
        self.update("acme", color="red")
        self.assertEqual(self.subjects(), ["Acme r1 1 1", "Acme r2 2 2"])

    def test_a_changed_relationship(self) -> None:
        boss = {"relationship_attribute": {"field": "role", "operator": "eq", "value": "boss"}}
        self.objects_campaign(type="relationship", audience={"type": 0},
                              relationship_attribute_triggers={"and": [boss]})  # fmt: skip
        self.relate("acme", "1", role="clerk")
        self.assertEqual(self.subjects(), [])
        self.relate("acme", "1", role="boss")
        self.assertEqual(self.subjects(), ["Acme boss 1 1"])

    def test_an_object_of_too_many_people_reaches_nobody(self) -> None:
        self.objects_campaign(type="object", audience={"type": 1})
        for id in ("1", "2"):
            self.relate("acme", id)
        with unittest.mock.patch.object(customerio_fake, "MAX_RELATED", 1):
            self.update("acme", color="red")
        self.assertEqual(self.reasons(), ["more than 1 people"])
        types = [row["type"] for row in self.ok("GET", "/v1/activities")["activities"]]
        self.assertIn("failed_object_journeys", types)

    def test_dates_once_monthly_and_at_the_end_of_short_months(self) -> None:
        # 2023-11-14 22:13:20 UTC
        rows = [
            ("once", "2023-12-01", ["2023-12-01"]),
            ("once", "2023-11-14", []),
            ("once", "1700086400", ["2023-11-15"]),
            ("once", "never", []),
            ("monthly", "2023-08-31", ["2023-11-30", "2023-12-31", "2024-01-31", "2024-02-29"]),
            ("yearly", "1999-11-15T05:00:00Z", ["2023-11-15"]),
            ("yearly", "2020-02-29", ["2024-02-29"]),
            ("yearly", 0, ["2024-01-01"]),
        ]
        for frequency, when, begins in rows:
            with self.subTest(frequency=frequency, when=when):
                self.campaign(mail(1), type="date", date_attribute="when", frequency=frequency,
                              start_hour=8, start_minutes=30)  # fmt: skip
                self.identify("1", email="1@example.com", when=when)
                self.clock(now=1_709_510_400)  # 2024-03-04
                times = [datetime.datetime.fromtimestamp(row["match_time"], datetime.timezone.utc)
                         for row in self.journeys()]  # fmt: skip
                self.assertEqual([f"{time:%Y-%m-%d}" for time in times], begins)
                self.assertEqual(
                    {f"{time:%H:%M}" for time in times}, {"08:30"} if begins else set()
                )

    def test_days_before_and_after(self) -> None:
        for lead, day in ((3, 12), (0, 15), (-3, 18)):
            self.campaign(mail(1), type="date", date_attribute="when", lead_days=lead)
            self.clock(now=1_699_000_000)
            self.identify("1", when="2023-11-15")
            self.clock(now=1_701_000_000)
            begin = self.journeys()[0]["match_time"]
            moment = datetime.datetime.fromtimestamp(begin, datetime.timezone.utc)
            self.assertEqual(moment.day, day)


class BroadcastWorkflows(JourneyTest):
    """Broadcasts that are more than messages begin a journey for everybody in their audience."""

    DELAY = {"id": 20, "type": "delay_seconds", "delay": 600}

    def broadcast(self, *actions: Any, people: Tuple[str, ...] = ("1",), **fields: Any) -> None:
        """Seed the broadcast 7, and people."""
        customers = [{"id": id, "email": f"{id}@example.com"} for id in people]
        row = {"id": 7, "name": "B", "actions": list(actions), **fields}
        further = {name: row.pop(name) for name in ("workspace", "segments") if name in row}
        self.seed({"customers": customers, "broadcasts": [row], **further})

    def trigger(self, *people: str, **data: Any) -> Any:
        body = {"ids": people or ["1"], "data": data}
        return self.ok("POST", "/v1/campaigns/7/triggers", body)["id"]

    def test_everybody_in_the_audience_goes_through_it(self) -> None:
        branch = {"id": 30, "type": "conditional_branch", "conditions": eq("plan", "pro"),
                  "paths": [[mail(31, "pro {{trigger.a}}")],
                            [mail(32, "{{trigger.a}}")]]}  # fmt: skip
        update = {"id": 40, "type": "attribute_update", "attributes": {"seen": "{{trigger.a}}"}}
        self.broadcast(mail(10, "{{trigger.a}} {{campaign.type}}"), self.DELAY, branch, update,
                       people=("1", "2", "3"))  # fmt: skip
        self.identify("2", plan="pro")
        own = [{"id": "1"}, {"id": "2", "data": {"a": 2}}]
        number = self.ok("POST", "/v1/campaigns/7/triggers",
                         {"per_user_data": own, "data": {"a": 1}})["id"]  # fmt: skip
        places = [(row["campaign_id"], row["broadcast_id"], row["trigger_id"], row["customer_id"],
                   row["next_action_id"], row["trigger"]) for row in self.journeys()]  # fmt: skip
        wanted = [(7, 7, number, "1", 20, {"a": 1}), (7, 7, number, "2", 20, {"a": 2})]
        self.assertEqual(places, wanted)
        self.clock(advance=600)
        subjects = [row["rendered"]["subject"] for row in self.records("deliveries")]
        kind = "triggered_broadcast"
        self.assertEqual(subjects, [f"1 {kind}", f"2 {kind}", "1", "pro 2"])
        self.assertEqual(self.steps()[2:], [(30, "branched", 0), (31, "sent"), (40, "updated")])
        self.assertEqual([self.person(id)["attributes"].get("seen") for id in "123"],
                         ["1", "2", None])  # fmt: skip

    def test_what_is_seen_of_it(self) -> None:
        self.broadcast(mail(10), self.DELAY, mail(30), goal={"event": {"name": "buy"}})
        before = {"broadcast": self.ok("GET", "/v1/broadcasts/7")["broadcast"]["actions"],
                  "actions": [row["id"] for row in
                              self.ok("GET", "/v1/broadcasts/7/actions")["actions"]]}  # fmt: skip
        kinds = [{"id": n, "type": "email"} for n in (10, 30)]
        self.assertEqual(before, {"broadcast": kinds, "actions": [10, 30]})
        number = self.trigger()
        self.clock(advance=600)
        self.track("1", "buy")
        first = self.records("deliveries")[0]
        parents = {"broadcast_id": 7, "action_id": 10, "trigger_id": number}
        self.assertEqual(first["parents"], parents)
        for path, sent in (("", 2), ("/actions/10", 1), ("/actions/30", 1)):
            metric = self.ok("GET", f"/v1/broadcasts/7{path}/metrics")["metric"]["series"]
            self.assertEqual((metric["sent"][-1], metric["converted"][-1]), (sent, sent))
        self.assertEqual(len(self.ok("GET", "/v1/broadcasts/7/messages")["messages"]), 2)
        (row,) = self.ok("GET", "/v1/broadcasts/7/triggers")["triggers"]
        self.assertEqual((row["id"], row["processed_at"]), (number, self.START))
        report = self.records("webhooks", "?metric=sent")[0]["data"]
        journey = self.journeys("?broadcast_id=7&state=finished")[0]
        self.assertEqual({**report, **parents, "journey_id": journey["id"]}, report)
        self.assertNotIn("trigger_event_id", report)
        (seen,) = self.records("campaigns")
        self.assertEqual((seen["id"], seen["journeys"]), (7, {"finished": 1}))
        body = {"list": "deliveries", "exactly": 1}
        for match in (
            {"broadcast_id": 7, "action_id": 30},
            {"trigger_id": number, "action_id": 10},
        ):
            self.ok("POST", "/__parlel/assert", {**body, "match": match})

    def test_a_message_on_a_condition_or_with_a_rule_is_a_workflow_too(self) -> None:
        limit = {"message_limit": {"limit": 1, "within": 86400}}
        rows: list[tuple[dict[str, Any], list[Any]]] = [
            ({"actions": [mail(10, preconditions=exists("x"))]}, ["finished"]),
            ({"filter": exists("x")}, ["filter"]),
            ({"global_exit_conditions": [exists("email")]}, ["global_exit_conditions[0]"]),
            ({"restart_mode": "once"}, ["finished", "restart_mode once"]),
            ({"use_message_limits": True, "workspace": limit}, ["finished", "finished"]),
            ({"state": "stopped", "filter": exists("email")}, ["the broadcast is stopped"]),
            ({"subscription_topic_id": 1}, []),
        ]
        for fields, outcomes in rows:
            with self.subTest(fields=fields):
                self.broadcast(*fields.pop("actions", [mail(10)]), **fields)
                for _ in outcomes:
                    self.trigger()
                found = [row["exit_reason"] or row["state"] for row in self.journeys()]
                self.assertEqual(found, outcomes)
        self.trigger()
        self.assertEqual([row["state"] for row in self.records("deliveries")], ["delivered"])

    def test_the_message_limit_counts_over_campaigns_and_broadcasts(self) -> None:
        limit = {"message_limit": {"limit": 1, "within": 86400}}
        self.broadcast(mail(10), use_message_limits=True, workspace=limit)
        for _ in range(2):
            self.trigger()
        states = [row["state"] for row in self.records("deliveries")]
        self.assertEqual(states, ["delivered", "undeliverable"])

    def test_in_snapshots_and_after_a_reset(self) -> None:
        self.broadcast(mail(10), self.DELAY, mail(30))
        number = self.trigger()
        self.journeys()
        state = self.ok("GET", "/__parlel/state")
        self.fake = Fake(Settings())
        self.ok("PUT", "/__parlel/state", state)
        self.clock(advance=600)
        self.assertEqual(self.steps(), [(10, "sent"), (20, "waited"), (30, "sent")])
        self.assertEqual(self.delivery(30)["parents"]["trigger_id"], number)
        self.trigger()
        self.assertEqual(len(self.journeys()), 2)
        self.ok("POST", "/__parlel/reset")
        self.assertEqual(self.journeys(), [])

    def test_it_can_be_stopped_and_started(self) -> None:
        self.broadcast(mail(10), self.DELAY, mail(30))
        self.trigger()
        body = {"state": "stopped", "journeys": "exit"}
        row = self.ok("PUT", "/__parlel/campaigns/7", body)["broadcast"]
        self.assertEqual((row["state"], row["active"]), ("stopped", False))
        self.trigger()
        reasons = [row["exit_reason"] for row in self.journeys()]
        self.assertEqual(reasons, ["the broadcast was stopped", "the broadcast is stopped"])
        self.ok("PUT", "/__parlel/campaigns/7", {"state": "running"})
        self.trigger()
        self.assertEqual(self.journeys()[-1]["state"], "active")

    def test_one_that_is_stopped_is_not_active(self) -> None:
        for state in ("running", "stopped"):
            self.broadcast(mail(10), self.DELAY, state=state)
            row = self.ok("GET", "/v1/broadcasts/7")["broadcast"]
            self.assertEqual((row["state"], row["active"]), (state, state == "running"))

    def test_many_people_are_let_in_in_the_background(self) -> None:
        people = tuple(map(str, range(300)))
        self.broadcast(self.DELAY, mail(30), people=people)
        self.trigger(*people)
        for job in self.fake.workspace.agenda.jobs:
            job.join()
        self.assertEqual(len(self.journeys("?state=active")), 300)
        (row,) = self.ok("GET", "/v1/broadcasts/7/triggers")["triggers"]
        self.assertEqual(row["processed_at"], self.START)
        self.clock(advance=600)
        self.assertEqual(len(self.sent()), 300)


class Leaving(JourneyTest):
    """How journeys end before their end."""

    DELAY = {"type": "delay_seconds", "delay": 600}

    def begin(self, *actions: Any, **fields: Any) -> None:
        self.campaign(*(actions or (mail(10), self.DELAY, mail(30))), **fields)
        self.identify("1", email="1@example.com", a="1")
        self.track("1", "go")

    def state(self) -> tuple[str, str | None]:
        row = self.journeys()[-1]
        return row["state"], row["exit_reason"]

    def test_exit_conditions_take_out_at_once(self) -> None:
        exits = [exists("x"), {"event": {"name": "stop"}, "since": "journey"}]
        for i in range(2):
            self.begin(global_exit_conditions=exits)
            if i:
                self.track("1", "stop")
            else:
                self.identify("1", x=1)
            self.assertEqual(self.state(), ("exited_early", f"global_exit_conditions[{i}]"))
            self.clock(advance=600)
            self.assertEqual(self.sent(), [(10, "1")])

    def test_events_take_out_whoever_has_begun_before(self) -> None:
        stop = {"event": {"name": "stop"}}
        self.campaign(mail(10), self.DELAY, mail(30), global_exit_conditions=[stop])
        self.identify("1", email="1@example.com")
        for name, state in (("stop", None), ("go", "active"), ("stop", "exited_early"),
                            ("go", "active")):  # fmt: skip
            self.track("1", name)
            states = [row["state"] for row in self.journeys()]
            self.assertEqual(states[-1:], [state] if state else [])
        items = [{"type": "person", "action": "event", "identifiers": {"id": "2"}, "name": name}
                 for name in ("stop", "go", "stop")]  # fmt: skip
        self.call("POST", "/api/v2/batch", {"batch": items})
        self.assertEqual(self.state()[1], "global_exit_conditions[0]")

    def test_time_alone_takes_out_at_the_exact_second(self) -> None:
        now = self.START
        over = {"attribute": {"field": "ends", "operator": "timestamp_lt", "value": 0}}
        quiet = {"event": {"name": "login"}, "within": 300, "inverse": True}
        inside = {"segments": [{"id": 1, "name": "s", "conditions": over}]}
        rows: list[tuple[dict[str, Any], list[Any], int | None]] = [
            ({"global_exit_conditions": [over]}, [], 200),
            ({"global_exit_conditions": [over]}, [(100, now + 400)], 400),
            ({"global_exit_conditions": [over]}, [(100, "")], None),
            ({"global_exit_conditions": [exists("x"), quiet]}, [], 300),
            ({"global_exit_conditions": [{"segment": {"id": 1}}], **inside}, [], 200),
            ({"goal": {"segment": {"id": 1}}, "exit_on_goal": True, **inside}, [], 200),
            ({"goal": {"segment": {"id": 1}}, **inside}, [], None),
        ]
        for fields, changes, at in rows:
            with self.subTest(fields=fields, changes=changes):
                self.campaign(mail(10), self.DELAY, **fields)
                self.identify("1", email="1@example.com", ends=now + 200)
                self.track("1", "login")
                self.track("1", "go")
                for seconds, value in changes:
                    self.clock(advance=seconds)
                    self.identify("1", ends=value)
                self.clock(now=now + 599)
                row = self.journeys()[0]
                self.assertEqual(row["exited_at"], at and now + at)
                self.assertEqual(row["state"], "exited_early" if at else "active")
                if "goal" in fields:
                    self.assertEqual(row["converted_at"], now + 200)

    def test_a_filter_that_stops_matching_counts_at_the_next_act(self) -> None:
        for stops, state in ((True, ("exited_early", "filter")), (False, ("finished", None))):
            self.begin(filter=eq("a", "1"), exit_on_trigger_or_filter_not_matched=stops)
            self.identify("1", a="2")
            self.assertEqual(self.state()[0], "active")
            self.clock(advance=600)
            self.assertEqual(self.state(), state)

    def test_who_leaves_before_the_first_act_was_never_active(self) -> None:
        self.begin(self.DELAY, mail(20), global_exit_conditions=[exists("x")])
        self.identify("1", x=1)
        self.assertEqual(self.state(), ("never_activated", "global_exit_conditions[0]"))
        self.assertEqual(self.journeys()[0]["steps"][0]["type"], "delay_seconds")

    def test_goals(self) -> None:
        segment = [{"id": 1, "name": "p", "conditions": exists("x")}]
        rows: list[tuple[Any, Any, bool]] = [
            ({"event": {"name": "buy"}}, lambda: self.track("1", "buy"), True),
            ({"event": {"name": "buy"}}, lambda: self.track("1", "sell"), False),
            ({"event": {"name": "buy"}, "after": "opened"}, lambda: self.track("1", "buy"), False),
            ({"segment": {"id": 1}}, lambda: self.identify("1", x=1), True),
            ({"segment": {"id": 1}, "inverse": True}, lambda: self.identify("1", x=1), False),
            ({"event": {"name": "buy"}, "within": 59}, lambda: self.track("1", "buy"), False),
            ({"event": {"name": "buy"}, "within": 60}, lambda: self.track("1", "buy"), True),
        ]
        for goal, reach, converted in rows:
            with self.subTest(goal=goal):
                self.begin(goal=goal, segments=segment)
                self.journeys()
                self.clock(advance=60)
                reach()
                self.assertEqual(self.journeys()[0]["converted_at"] is not None, converted)
                self.assertEqual("converted" in self.delivery(10)["metrics"], converted)
                self.assertEqual(self.state()[0], "active")

    def test_whoever_is_at_the_goal_already_has_to_leave_it_first(self) -> None:
        self.begin(goal={"segment": {"id": 1}},
                   segments=[{"id": 1, "name": "p", "conditions": exists("a")}])  # fmt: skip
        for a, converted in ((2, None), ("", None), (3, self.START)):
            self.identify("1", a=a)
            self.assertEqual(self.journeys()[0]["converted_at"], converted)

    def test_time_alone_converts_after_the_end(self) -> None:
        over = {"attribute": {"field": "ends", "operator": "timestamp_lt", "value": 0}}
        self.campaign(mail(10), goal={"segment": {"id": 1}},
                      segments=[{"id": 1, "name": "s", "conditions": over}])  # fmt: skip
        self.identify("1", email="1@example.com", ends=self.START + 200)
        self.track("1", "go")
        self.clock(advance=500)
        row = self.journeys()[0]
        self.assertEqual((row["state"], row["converted_at"]), ("finished", self.START + 200))

    def test_leaving_a_segment_is_a_goal_for_those_who_were_in(self) -> None:
        self.begin(goal={"segment": {"id": 1}, "inverse": True},
                   segments=[{"id": 1, "name": "p", "conditions": exists("a")}])  # fmt: skip
        self.journeys()
        self.identify("1", a="")
        self.assertEqual(self.journeys()[0]["converted_at"], self.START)

    def test_a_conversion_counts_after_the_end_for_ninety_days(self) -> None:
        for days, converted in ((89, True), (91, False)):
            self.begin(mail(10), goal={"event": {"name": "buy"}})
            self.assertEqual(self.state()[0], "finished")
            self.clock(advance=days * self.DAY)
            self.track("1", "buy")
            self.assertEqual(self.journeys()[0]["converted_at"] is not None, converted)

    def test_a_forced_exit(self) -> None:
        self.begin()
        id = self.journeys()[0]["id"]
        self.assertEqual(self.ok("GET", f"/__parlel/journeys/{id}")["waiting_for"], "delay_seconds")
        row = self.ok("POST", f"/__parlel/journeys/{id}/force_exit")
        self.assertEqual((row["state"], row["exit_reason"]), ("exited_early", "force_exit"))
        self.assertEqual(self.call("POST", f"/__parlel/journeys/{id}/force_exit").status, 409)
        self.assertEqual(self.call("GET", "/__parlel/journeys/x").status, 404)
        self.clock(advance=600)
        self.assertEqual(self.sent(), [(10, "1")])

    def test_who_is_deleted_or_suppressed_leaves(self) -> None:
        for verb, path in (("DELETE", ""), ("POST", "/suppress")):
            self.begin()
            self.journeys()
            self.call(verb, f"/api/v1/customers/1{path}")
            self.assertEqual(self.state(), ("exited_early", "person deleted"))
            self.assertEqual(self.journeys()[0]["identifiers"]["id"], "1")
            self.clock(advance=600)
            self.assertEqual(self.sent(), [(10, "1")])

    def test_who_is_merged_goes_on_as_the_other_one(self) -> None:
        self.begin(restart_mode="once")
        self.journeys()
        body = {"primary": {"id": "2"}, "secondary": {"id": "1"}}
        self.identify("2", email="2@example.com")
        self.call("POST", "/api/v1/merge_customers", body)
        self.clock(advance=600)
        self.assertEqual(self.sent(), [(10, "2"), (30, "2")])
        self.track("2", "go")
        self.assertEqual(self.state(), ("not_entered", "restart_mode once"))

    def test_who_is_merged_into_somebody_inside_leaves(self) -> None:
        self.begin()
        self.identify("2", email="2@example.com")
        self.track("2", "go")
        self.journeys()
        self.call("POST", "/api/v1/merge_customers",
                  {"primary": {"id": "2"}, "secondary": {"id": "1"}})  # fmt: skip
        states = [(row["state"], row["exit_reason"]) for row in self.journeys()]
        self.assertEqual(states, [("exited_early", "person merged"), ("active", None)])

    def test_a_stopped_campaign_lets_people_finish_or_not(self) -> None:
        for journeys, sent in (("finish", [(10, "1"), (30, "1")]), ("exit", [(10, "1")])):
            self.begin()
            self.journeys()
            body = {"state": "stopped", "journeys": journeys}
            campaign = self.ok("PUT", "/__parlel/campaigns/1", body)["campaign"]
            self.assertEqual(
                (campaign["state"], campaign["active"]), ("stopped", journeys == "finish")
            )
            self.track("1", "go")
            self.assertEqual(self.state(), ("not_entered", "the campaign is stopped"))
            self.clock(advance=600)
            self.assertEqual(self.sent(), sent)
            self.ok("PUT", "/__parlel/campaigns/1", {"state": "running"})
            self.track("1", "go")
            self.assertEqual(self.state()[0], "active")

    def test_a_campaign_starts_with_those_who_are_there_or_without(self) -> None:
        future, current = {"audience": "future"}, {"audience": "current"}
        none: dict[str, str] = {}
        for audience, entered in ((none, []), (future, []), (current, ["1"])):
            self.campaign(mail(1), type="segment", trigger=exists("a"), state="draft")
            self.identify("1", a=1)
            self.assertEqual(self.state()[1], "the campaign is draft")
            self.ok("PUT", "/__parlel/campaigns/1", {"state": "running", **audience})
            rows = self.records("journeys", "?state=finished")
            self.assertEqual([row["customer_id"] for row in rows], entered)

    def test_an_archived_campaign_is_not_listed_and_has_to_be_stopped_first(self) -> None:
        self.campaign(mail(1))
        self.ok("PUT", "/__parlel/campaigns/1", {"state": "archived"})
        self.assertEqual(self.ok("GET", "/v1/campaigns")["campaigns"], [])
        for state in ("running", "draft"):
            reply = self.call("PUT", "/__parlel/campaigns/1", {"state": state})
            self.assert_errors(reply, 409, "campaign 1 is archived")
        for state in ("archived", "stopped", "running"):
            self.ok("PUT", "/__parlel/campaigns/1", {"state": state})
        self.assertEqual(len(self.ok("GET", "/v1/campaigns")["campaigns"]), 1)

    def test_a_campaign_that_stops_lets_people_finish_unless_told(self) -> None:
        self.begin()
        self.journeys()
        campaign = self.ok("PUT", "/__parlel/campaigns/1", {"state": "stopped"})["campaign"]
        self.assertTrue(campaign["active"])
        self.assertEqual(self.state()[0], "active")
        campaign = self.ok("PUT", "/__parlel/campaigns/1", {"state": "archived"})["campaign"]
        self.assertFalse(campaign["active"])

    def test_what_can_not_be_done_to_a_campaign(self) -> None:
        self.begin()
        reply = self.call("PUT", "/__parlel/campaigns/1", {"state": "paused"})
        self.assert_errors(reply, 400, "state must be one of", "draft", "running", "stopped")
        self.assertEqual(
            self.call("PUT", "/__parlel/campaigns/9", {"state": "running"}).status, 404
        )

    def test_circles_through_ever_more_people_are_broken_too(self) -> None:
        born = [
            {"type": "attribute_update", "person": {"id": "{{customer.id}}" + end},
             "attributes": {"born": 1}}
            for end in "ab"
        ]  # fmt: skip
        few = mock.patch.object(customerio_fake, "MAX_FAR_DOWN", 50)
        with few, self.assertLogs("customerio_fake", "WARNING"):
            self.campaign(*born, type="segment", trigger=exists("born"))
            self.identify("1", born=1)
            self.assertTrue(eventually(lambda: not self.fake.workspace.agenda.tick()))
        rows = self.journeys()
        self.assertLess(len(rows), 5_000)
        self.assertIn("set off each other", rows[-1]["exit_reason"])

    def test_circles_are_broken_and_told(self) -> None:
        again = {"type": "create_event", "event_name": "go"}
        with self.assertLogs("customerio_fake", "WARNING"):
            self.begin(again)
            rows = self.journeys()
        self.assertEqual(len(rows), 102)
        self.assertIn("100 journeys have set off each other", rows[-1]["exit_reason"])
        with self.assertLogs("customerio_fake", "WARNING") as logs:
            self.begin(again, {**again})  # two for each one
            rows = self.journeys()
        self.assertEqual([row["state"] for row in rows].count("finished"), 101)
        self.assertEqual((len(rows), len(logs.output)), (203, 1))
        self.begin(self.DELAY, again)
        self.clock(advance=600 * 200)
        self.assertEqual({row["state"] for row in self.journeys()}, {"finished", "active"})


class JourneyLists(JourneyTest):
    """What tests see of journeys."""

    def setUp(self) -> None:
        super().setUp()
        self.campaign(mail(10), {"type": "delay_seconds", "delay": 60}, mail(30))
        self.identify("7", email="7@example.com")
        self.track("7", "go")

    def test_a_snapshot_whose_journeys_stand_nowhere_is_refused(self) -> None:
        state = self.ok("GET", "/__parlel/state")
        for field, value, text in (
            ("campaign_id", 99, "journeys[0].campaign_id: no campaign 99 runs here"),
            ("position", 99, "journeys[0].position: campaign 1 has no action 99"),
        ):
            wrong = {**state, "journeys": [{**state["journeys"][0], field: value}]}
            self.assert_errors(self.call("PUT", "/__parlel/state", wrong), 400, text)
        wrong = json.loads(json.dumps(state))
        wrong["workspace"]["shelves"]["campaign_actions"]["rows"] = []
        self.assert_errors(self.call("PUT", "/__parlel/state", wrong), 400, "has no content")
        self.clock(advance=60)
        self.assertEqual(self.journeys()[0]["state"], "finished")

    def test_who_has_left_is_no_longer_looked_at(self) -> None:
        live = self.fake.workspace.beside(customerio_fake.Gate).runner.live
        self.assertEqual([len(rows) for rows in live.values()], [1])
        self.clock(advance=60)
        self.assertEqual([len(rows) for rows in live.values()], [0])

    def test_a_snapshot_in_which_a_message_says_nothing_is_refused(self) -> None:
        call: Any = {"id": 10, "type": "webhook", "url": "http://127.0.0.1:9/"}
        tiles: tuple[Any, ...] = (
            mail(10), call,
            {"id": 10, "type": "split_randomized", "variations": [mail(1), mail(2)]},
            {"id": 10, "type": "multi_lang_branch", "variations": [mail(1), mail(2)]},
        )  # fmt: skip
        for tile in tiles:
            self.campaign(mail(5), {"id": 7, "type": "exit", "preconditions": exists("a")}, tile)
            state = self.ok("GET", "/__parlel/state")
            shelf = state["workspace"]["shelves"]["campaign_actions"]
            shelf["rows"] = shelf["rows"][:-1]
            number = tile.get("variations", [tile])[-1]["id"]
            text = f"campaigns[0].actions[2]: action {number} has no content"
            self.assert_errors(self.call("PUT", "/__parlel/state", state), 400, text)

    def test_steps_that_no_journey_can_have_are_refused(self) -> None:
        self.clock(advance=60)
        for match, text in (
            ({"steps": [{"outcom": "sent"}]}, "steps have no outcom; did you mean outcome?"),
            ({"steps": [{"outcome": "timedout"}]}, "no outcome is 'timedout'; did you mean timed_"),
            ({"steps": [{"type": "emial"}]}, "no type is 'emial'; did you mean email?"),
            ({"waiting_for": "delay"}, "no waiting_for is 'delay'"),
        ):
            body = {"list": "journeys", "match": match, "none": True}
            self.assert_errors(self.call("POST", "/__parlel/assert", body), 400, text)
        rows: list[Any] = [[{"outcome": "waiting"}], [{"outcome": {"one_of": ["failed"]}}], []]
        for steps in rows:
            body = {"list": "journeys", "match": {"steps": steps}, "none": True}
            self.ok("POST", "/__parlel/assert", body)

    def test_an_assertion_about_steps_passes_over_others(self) -> None:
        self.clock(advance=60)
        steps = [{"action_id": 10, "outcome": "sent"}, {"action_id": 30}]
        match = {"campaign_id": 1, "state": "finished", "steps": steps}
        body = {"list": "journeys", "match": match, "exactly": 1}
        self.ok("POST", "/__parlel/assert", body)
        for wrong in ([{"action_id": 11}], steps[::-1]):
            reply = self.call("POST", "/__parlel/assert", {**body, "match": {"steps": wrong}})
            self.assertEqual(reply.status, 422)

    def test_deliveries_by_what_they_are_part_of(self) -> None:
        self.clock(advance=60)
        body = {"list": "deliveries", "exactly": 1}
        self.ok("POST", "/__parlel/assert", {**body, "match": {"campaign_id": 1, "action_id": 30}})
        reply = self.call("POST", "/__parlel/assert", {**body, "match": {"action_id": 31}})
        self.assertEqual(reply.status, 422)
        self.assertEqual(len(self.records("deliveries", "?campaign_id=1&action_id=10")), 1)

    def test_a_failed_assertion_says_where_the_person_stands(self) -> None:
        match = {"customer_id": "7", "state": "finished"}
        reply = self.call("POST", "/__parlel/assert", {"list": "journeys", "match": match})
        self.assert_errors(reply, 422, "7 in campaign 1: at action 20, waiting for delay_seconds "
                           f"until {self.START + 60}")  # fmt: skip
        reply = self.call(
            "POST", "/__parlel/assert", {"list": "journeys", "match": {"state": "done"}}
        )
        self.assert_errors(reply, 400, "no state is 'done'", "finished")

    def test_two_runs_give_the_same_document(self) -> None:
        documents = []
        for _ in range(2):
            self.setUp()
            self.clock(advance=60)
            documents.append(self.ok("GET", "/__parlel/journeys"))
        self.assertEqual(*documents)

    def test_a_jump_leaves_what_living_through_leaves(self) -> None:
        jumped = self.run_to([14 * self.DAY])
        lived = self.run_to([3600] * (14 * 24))
        self.assertEqual(jumped, lived)
        self.assertEqual(len(jumped[0]), 6)
        self.assertEqual({row["state"] for row in jumped[0]}, {"finished", "never_activated"})

    def run_to(self, steps: list[int]) -> Any:
        window = {"type": "delay_time_window", "start_time": "09:00", "end_time": "10:00"}
        wait = {"type": "conditional_wait", "multi_conditions": [exists("x")],
                "delay": 5 * self.DAY}  # fmt: skip
        delay = {"type": "delay_seconds", "delay": self.DAY}
        over = {"attribute": {"field": "ends", "operator": "timestamp_lt", "value": -3600}}
        ends = {"attribute": {"field": "ends", "operator": "is_timestamp"}}
        quiet = {"event": {"name": "go"}, "within": 2 * self.DAY, "inverse": True}
        soon = {"multi_conditions": [quiet, {"segment": {"id": 1}}], "type": "conditional_wait"}
        numbers = itertools.count(1)

        def numbered(*tiles: Any) -> list[Any]:
            return [{**tile, "id": next(numbers)} for tile in tiles]

        text = {"type": "email", "subject": "s", "body": "b"}
        rows: list[dict[str, Any]] = [
            {"event_name": "go", "actions": numbered(delay, window, text, wait, text),
             "goal": {"segment": {"id": 1}}},
            {"event_name": "go", "actions": numbered(wait, text), "global_exit_conditions": [over]},
            {"trigger": ends, "actions": numbered(text, soon, text)},
            {"trigger": over, "actions": numbered(text)},
            {"date_attribute": "ends", "actions": numbered(text, delay, text)},
        ]  # fmt: skip
        broadcast = {"id": 9, "name": "B", "actions": numbered(delay, soon, window, text)}
        self.seed({"segments": [{"id": 1, "name": "s", "conditions": over}],
                   "campaigns": [{"id": i + 1, "name": "C", **row} for i, row in enumerate(rows)],
                   "broadcasts": [broadcast]})  # fmt: skip
        self.identify("1", email="1@example.com", ends=self.START + 3 * self.DAY)
        self.track("1", "go")
        self.ok("POST", "/v1/campaigns/9/triggers", {"ids": ["1"]})
        for step in steps:
            self.clock(advance=step)
        return self.records("journeys"), self.records("deliveries"), self.records("webhooks")

    def test_what_takes_time_is_left_to_a_thread_and_done_once(self) -> None:
        long = "{% for i in (1..900) %}{{i}}{% endfor %}"
        self.campaign(
            {"type": "delay_seconds", "delay": 0, "preconditions": exists("none")},
            {"type": "attribute_update", "attributes": {"journey.a": long}},
            mail(30, body=long),
            {"type": "create_event", "event_name": "x", "data": {"a": long}},
            mail(50),
        )
        self.identify("1", email="1@example.com")
        with customerio_fake.hurrying():
            self.track("1", "go")
            self.fake.workspace.agenda.tick()
        while self.fake.workspace.agenda.tick():
            pass
        outcomes = [step[:2] for step in self.steps()]
        self.assertEqual(
            outcomes,
            [(10, "skipped"), (20, "updated"), (30, "sent"), (40, "created"), (50, "sent")],
        )
        self.assertEqual(self.sent(), [(30, "1"), (50, "1")])
        self.assertEqual(len(self.records("events")), 2)

    def test_what_takes_time_after_a_delay_is_not_lost(self) -> None:
        long = "{% for i in (1..900) %}{{i}}{% endfor %}"
        update = {"type": "attribute_update", "attributes": {"journey.a": long}}
        skipped = {"type": "delay_seconds", "delay": 1, "preconditions": exists("none")}
        self.campaign({"type": "delay_seconds", "delay": 60}, skipped, update)
        self.track("1", "go")
        workspace = self.fake.workspace
        workspace.clock.move_to(self.START + 60, True)
        with customerio_fake.hurrying():
            workspace.agenda.tick()
        while workspace.agenda.tick():
            pass
        outcomes = [step[:2] for step in self.steps()]
        self.assertEqual(outcomes, [(10, "waited"), (20, "skipped"), (30, "updated")])

    def test_journeys_are_in_snapshots(self) -> None:
        self.journeys()
        state = self.ok("GET", "/__parlel/state")
        self.fake = Fake(Settings())
        self.ok("PUT", "/__parlel/state", state)
        again = self.ok("GET", "/__parlel/state")
        self.assertEqual({**again, "clock": 0}, {**state, "clock": 0})
        self.clock(advance=60)
        self.assertEqual(self.steps(), [(10, "sent"), (20, "waited"), (30, "sent")])
        self.track("7", "go")
        self.assertEqual(len(self.journeys()), 2)

    def test_who_waits_in_a_snapshot_can_still_leave_wait_and_convert(self) -> None:
        wait = {"id": 20, "type": "conditional_wait", "multi_conditions": [exists("go_on")]}
        self.campaign(mail(10), wait, mail(30), global_exit_conditions=[exists("stop")],
                      goal={"event": {"name": "buy"}})  # fmt: skip
        for id in ("1", "2", "3"):
            self.identify(id, email=f"{id}@example.com")
            self.track(id, "go")
        state = self.ok("GET", "/__parlel/state")
        self.fake = Fake(Settings())
        self.ok("PUT", "/__parlel/state", state)
        self.identify("1", go_on=1)
        self.identify("2", stop=1)
        self.track("3", "buy")
        states = [(row["state"], row["converted_at"]) for row in self.journeys()]
        wanted = [("finished", None), ("exited_early", None), ("active", self.START)]
        self.assertEqual(states, wanted)

    def test_a_reset_begins_anew(self) -> None:
        self.ok("POST", "/__parlel/reset")
        self.assertEqual(self.journeys(), [])
        self.track("7", "go")
        self.assertEqual(len(self.journeys()), 1)

    def test_in_python(self) -> None:
        with customerio_fake.CustomerioServer(port=0, seed={"campaigns": [
            {"id": 1, "name": "C", "event_name": "go", "actions": [mail(1)]}
        ]}) as cio:  # fmt: skip
            self.fake = cio.fake
            self.identify("1", email="1@example.com")
            self.track("1", "go")
            cio.expect("journeys", customer_id=1, state="finished", timeout=5)
            self.assertEqual(cio.journeys[0]["steps"][0]["action_id"], 1)
            link = f"{cio.url}/e/o/{cio.deliveries[0]['delivery_id']}"
            self.assertIn(link, cio.deliveries[0]["rendered"]["body"])


class PrintedCampaigns(JourneyTest):
    """Campaigns as the command line of the real service prints them."""

    @staticmethod
    def coded(*conditions: Any) -> str:
        """Conditions as the web app stores them."""
        return base64.b64encode(quote(json.dumps(conditions)).encode()).decode()

    @staticmethod
    def edge(text: str) -> Any:
        """An edge out of "1>2", or "1>2:0" for one of a branch."""
        start, end, index = re.split("[>:]", f"{text}:")[:3]
        kind = {"type": "branch", "index": int(index)} if index else {"type": "continue"}
        return {"from": start, "to": end, **kind}

    def printed(self, actions: Any, edges: Any, **campaign: Any) -> Any:
        """A document with edges written as above, or wrong ones as they are."""
        rows = edges
        if isinstance(edges, list):
            rows = [self.edge(row) if isinstance(row, str) and ">" in row else row for row in edges]
        head = {"id": 6, "name": "P", "type": "transactional", "event_name": "go",
                "state": "running", "edges": rows, "created": 1, "deduplicate_id": "6:1",
                "workflow_action_ids": ["1"], "conversion": None, **campaign}  # fmt: skip
        return {"campaigns": [{"campaign": head, "actions": actions}]}

    def tile(self, id: int, type: str, **more: Any) -> Any:
        common = {"deduplicate_id": f"{id}:1", "campaign_id": 6, "preconditions": "JTVCJTVE"}
        return {"id": str(id), "type": f"{type}_action", **common, **more}

    def test_edges_become_paths_and_conditions_are_decoded(self) -> None:
        rich = {"type": "event_attribute", "field": "total", "operator": "gt", "value": "9"}
        pro = {"type": "attribute", "field": "plan", "operator": "eq", "value": "pro"}
        out = {"type": "segments_negatable", "segments": [1], "negate": True}
        document = self.printed(
            [
                self.tile(1, "filter_match_delay"),
                self.tile(2, "delay_seconds", delay=60, next_send_time=0),
                self.tile(3, "multi_split_branch", multi_conditions=[self.coded(rich),
                          self.coded(pro)]),
                self.tile(4, "email", template_id=9, tracked=True, subject="rich"),
                self.tile(5, "email", subject="pro", preconditions=self.coded(out)),
                self.tile(6, "exit"),
                self.tile(7, "conditional_branch", conditions=self.coded(pro)),
                self.tile(8, "email", subject="yes"),
                self.tile(9, "email", subject="end"),
            ],
            ["1>2", "2>3", "3>4:0", "3>5:1", "3>6:2", "4>7", "5>7", "7>8:0", "7>9:1", "8>9"],
            anchors=None,
        )  # fmt: skip
        self.seed({**document, "segments": [{"id": 1, "name": "s", "ids": []}]})
        rows = [({"plan": "free"}, 10, [4, 9]), ({"plan": "pro"}, 1, [5, 8, 9]),
                ({"plan": "free"}, 1, [])]  # fmt: skip
        for id, (attributes, total, actions) in enumerate(rows, 1):
            self.identify(str(id), email=f"{id}@example.com", **attributes)
            self.track(str(id), "go", total=total)
            self.clock(advance=60)
            self.assertEqual([n for n, who in self.sent() if who == str(id)], actions)
        shown = self.ok("GET", "/v1/campaigns/6")["campaign"]
        self.assertEqual((shown["type"], "edges" in shown), ("event", False))

    def test_segments_that_start_it_and_tests(self) -> None:
        anchor = {"type": "segments_negatable", "segments": [1, 2], "negate": False}
        document = self.printed(
            [self.tile(1, "split_randomized", action_ids=[2, 3], allocations=[1, 0]),
             self.tile(2, "email", subject="a"), self.tile(3, "email", subject="b")],
            [], type="behavioral", anchors=[anchor], event_name=None, state="sunsetting",
        )  # fmt: skip
        segments: list[Any] = [{"id": n, "name": "s", "ids": []} for n in (1, 2)]
        self.seed({**document, "segments": segments})
        self.assertEqual(self.ok("GET", "/v1/campaigns/6")["campaign"]["state"], "stopped")
        self.ok("PUT", "/__parlel/campaigns/6", {"state": "running"})
        self.identify("1", email="1@example.com")
        self.call("POST", "/api/v1/segments/2/add_customers", {"ids": ["1"]})
        self.assertEqual(self.steps(), [(1, "sent", 0)])
        self.assertEqual(self.sent(), [(2, "1")])

    PRO: Any = {"type": "attribute", "field": "plan", "operator": "eq", "value": "pro"}

    def mails(self, *numbers: int) -> list[Any]:
        return [self.tile(number, "email", subject="s") for number in numbers]

    def refused(self, actions: Any, edges: Any, text: str, **campaign: Any) -> None:
        """The document is refused with a message that begins so, and nothing has changed."""
        with self.subTest(text=text):
            before = self.ok("GET", "/__parlel/state")["workspace"]
            reply = self.call("POST", "/__parlel/seed", self.printed(actions, edges, **campaign))
            self.assertEqual(reply.status, 400)
            self.assertEqual(reply.json["meta"]["error"][: len(text)], text)
            self.assertEqual(self.ok("GET", "/__parlel/state")["workspace"], before)

    def test_edges_that_are_wrong(self) -> None:
        one, two, three = self.mails(1, 2, 3)
        branch, leave = self.tile(4, "conditional_branch"), self.tile(9, "exit")
        fork = [self.tile(4, "multi_split_branch", multi_conditions=[self.coded(self.PRO)] * 2),
                *self.mails(5, 6, 7, 8, 9)]  # fmt: skip
        ways = ["4>5:0", "4>6:1", "4>7:2"]
        rows: list[tuple[Any, Any, str]] = [
            ([one, two], "x", " must be a list, not a string"),
            ([one, two], ["x"], "[0] must be an object, not a string"),
            ([one, two], [{"to": "2"}], "[0].from is required: send the number of an action"),
            ([one, two], [{"from": "1", "to": 2.5}], "[0].to must be the number of an action"),
            ([one, two], [{"from": "\u00b2", "to": 1}], "[0].from must be the number of an action"),
            ([one, two], [{**self.edge("1>2"), "index": "a"}], "[0].index must be a whole number"),
            ([one, two], [{**self.edge("1>2"), "type": "loop"}],
             "[0].type must be one of: continue, branch"),
            ([one, two], ["1>9"], "[0].to names '9', which is no action"),
            ([one, two], ["1>2", "2>1"], " must lead from one root to everything: none is first"),
            ([one, two], [], " must lead from one root to everything: nothing leads to 1, 2"),
            ([one, two, three], ["1>2", "2>3", "3>2"], " lead from 2 back to 2: no end"),
            ([one, branch, two, three], ["1>4", "4>1:0", "4>2:1", "3>1"],
             " lead from 1 back to 1: no end"),
            ([one, two, three], ["1>2", "1>3"],
             " lead from 1, of type email, to 2 actions, not 1: what comes next"),
            ([leave, one], ["9>1"], " lead from 9, of type exit, to 1 actions, not 0"),
            ([branch, one, two], ["4>1:0", "1>2"],
             " lead from 4, of type conditional_branch, to 1 actions, not 2: true, false"),
            ([self.tile(4, "conditional_wait", delay=1, multi_conditions=[[self.PRO]]), one],
             ["4>1:0"], " lead from 4, of type conditional_wait, to 1 actions, not 2: condition 1"),
            ([branch, one, two], ["4>1:0", "4>2:2"],
             ": the 2 that lead from 4 must have the indexes 0 to 1, one each"),
            (fork, [*ways, "5>8", "6>8", "8>9", "7>9"], "8: some branches meet here, others"),
            (fork, [*ways, "5>8", "6>8", "7>9"], "4: ways lead on from it that do not meet; all"),
        ]  # fmt: skip
        for actions, edges, text in rows:
            place = "campaigns[0].campaign.edges"
            if text[0].isdigit():  # it is about that tile
                at = [action["id"] for action in actions].index(text[0])
                place, text = f"campaigns[0].actions[{at}]", text[1:]
            self.refused(actions, edges, place + text)

    def test_tiles_that_are_wrong(self) -> None:
        one, two = self.mails(1, 2)
        test = self.tile(3, "split_randomized", action_ids=["1", "2"])
        nap, place = self.tile(2, "delay_seconds", delay=1), "campaigns[0].actions"
        pick = self.tile(1, "random_cohort_branch", cohorts=5)
        rows: list[tuple[Any, Any, str]] = [
            ("x", [], " must be a list, not a string"),
            (["x"], [], "[0] must be an object, not a string"),
            ([{**one, "type": [1]}], [], "[0].type must be a string, not a list"),
            ([{"type": "email"}], [], "[0].id is required: send the number of an action"),
            ([{**one, "id": "x"}], [], "[0].id must be the number of an action"),
            ([one, one], [], "[1].id 1 is there already"),
            ([self.tile(1, "llm")], [], "[0].type 'llm' is no tile"),
            ([{**one, "subjct": "x"}], [], "[0].subjct is not understood; did you mean subject?"),
            ([{**one, "subject": 5}], [], "[0].subject must be a string, not a number"),
            ([{**nap, "exit_filter": "x"}], [], "[0].exit_filter is not understood: it might say"),
            ([{**nap, "delay": None}], [], "[0].delay is required: send a number from 0"),
            ([one, {**nap, "delay": "x"}], ["1>2"], "[1].delay must be a number from 0"),
            ([pick, two], ["1>2:0"], "[0].cohorts must be 1 to 20 whole numbers"),
            ([{**test, "action_ids": 1}, one, two], [], "[0].action_ids must be a list"),
            ([{**test, "action_ids": ["1", "x"]}, one, two], [],
             "[0].action_ids[1] must be the number of an action"),
            ([test, one], [], "[0].action_ids[1] names 2, which is no other action"),
            ([{**test, "action_ids": ["1", "3"]}, one], [], "[0].action_ids[1] names 3, which is"),
            ([test, one, nap], [], "[2].type 'delay_seconds' is no message; there are email"),
            ([test, one, {**two, "sending_state": "on"}], [], "[2].sending_state must be one of"),
            ([*self.mails(5), {**one, "action_ids": ["2"]}, {**two, "action_ids": ["1"]}], [],
             "[1] is never reached"),
            ([self.tile(3, "filter_match_delay"), one, two, nap], ["3>1"], "[3].id 2 is there"),
            ([self.tile(3, "filter_match_delay"), one, {**nap, "paths": [[]], "dely": 1}],
             ["3>1", "1>2"], "[2].dely is not understood; did you mean delay?"),
            ([self.tile(4, "filter_match_delay"), one, {**nap, "preconditions": [{"event": {}}]}],
             ["4>1", "1>2"], "[2].preconditions[0].event.name must be the name of an event"),
        ]  # fmt: skip
        for actions, edges, text in rows:
            self.refused(actions, edges, place + text)
        self.refused(
            [test, *self.mails(1, 2, 5)],
            ["3>5", "5>1"],
            "campaigns[0].campaign.edges[1].to names '1', which is a variation of another",
        )

    def test_conditions_that_are_wrong(self) -> None:
        coded, pro = self.coded, self.PRO
        rows: list[tuple[Any, str]] = [
            ("!", " must be JSON, URL-encoded, in base64, not '!'"),
            ("JTVC", " must be JSON, URL-encoded, in base64, not 'JTVC'"),
            ("JWZm", " must be JSON, URL-encoded, in base64, not 'JWZm'"),  # %ff
            ("NQ==", " must hold a list of conditions, not a number"),
            (5, " must hold a list of conditions, not a number"),
            (False, " must hold a list of conditions, not a boolean"),
            (coded(5), "[0] must be an object, not a number"),
            (coded(pro, {"type": "foreign_event", "name": "x"}),
             "[1] is not understood: its type is foreign_event; there are segments_negatable, at"),
            (coded({"type": "atribute"}), "[0] is not understood: its type is atribute; did you "
             "mean attribute?"),
            (coded({"type": [1]}), "[0] is not understood: its type is [1]; there are"),
            (coded({}), "[0] is not understood: its type is null; there are"),
            (coded({"type": "segments_negatable"}), "[0].segments is required: send a list"),
            (coded({"type": "segments_negatable", "segments": ["1"]}), "[0].segments[0] must be a"),
            (coded({"type": "segments_negatable", "segments": [8]}),
             "[0].or[0].segment.id: there is no segment 8; there are none"),
            (coded({**pro, "field": None}), "[0].field must be the name of an attribute"),
            (coded({**pro, "operator": "is"}), "[0].operator must be one of: eq, ne"),
            (coded({**pro, "value": None}), "[0].value is required for 'eq'"),
            (coded({**pro, "negate": True}), "[0].negate is unknown; there are field, operator"),
            (coded({"attribute": {"field": "a", "operator": "is"}}), "[0].attribute.operator must"),
        ]  # fmt: skip
        one, two = self.mails(1, 2)
        for value, text in rows:
            place = "campaigns[0].actions[1].preconditions"
            self.refused([one, {**two, "preconditions": value}], ["1>2"], place + text)
            for name in ("anchors", "filters"):
                place = f"campaigns[0].campaign.{name}"
                self.refused([one], [], place + text, type="behavioral", **{name: value})
        wait = self.tile(1, "conditional_wait", multi_conditions=coded([pro], [5]))
        place = "campaigns[0].actions[0].multi_conditions"
        self.refused([wait], [], f"{place}[1][0] must be an object, not a number")
        branch = self.tile(1, "conditional_branch", conditions=coded({**pro, "operator": "is"}))
        self.refused([branch], [], "campaigns[0].actions[0].conditions[0].operator must be one of")

    def test_campaigns_that_are_wrong(self) -> None:
        rows: list[tuple[dict[str, Any], str]] = [
            ({"start_time": "xx"}, 'start_time must be a time of day, as in "09:00"'),
            ({"start_time": 9}, 'start_time must be a time of day, as in "09:00"'),
            ({"type": [1]}, "type must be a string, not a list"),
            ({"type": "x"}, "type must be one of: segment, event"),
            ({"state": "x"}, "state must be one of: draft"),
            ({"id": "x"}, "id must be a number from 1 up, not 'x'"),
            ({"event": 5}, "event must be a string, not a number"),
            ({"date_triggered_attribute": 5}, "date_triggered_attribute must be a string"),
            ({"zone": "Mars"}, "zone must be the name of a time zone"),
            ({"restart_mode": "x"}, "restart_mode must be one of"),
            ({"trigger_rules": [1]}, "trigger_rules is not understood: it might say who goes"),
            ({"restart_mod": "once"}, "restart_mod is not understood; did you mean restart_mode?"),
            ({"trigger": {"attribute": {}}, "type": "seg_attr"}, "trigger.attribute.field must be"),
            ({"subscription_topic_id": 3}, "subscription_topic_id: there is no topic 3; there are"),
        ]  # fmt: skip
        for fields, text in rows:
            self.refused(self.mails(1), [], f"campaigns[0].campaign.{text}", **fields)
        for document, text in (
            ({"campaign": "x", "actions": []}, ".campaign must be an object, not a string"),
            ({"campaign": {"id": 1, "edges": []}, "actions": {}}, ".actions must be a list, not"),
            ({"campaign": {"id": 1}, "actions": [], "filters": [5]}, ".filters is not understood"),
        ):
            reply = self.call("POST", "/__parlel/seed", {"campaigns": [document]})
            self.assert_errors(reply, 400, f"campaigns[0]{text}")

    def test_branches_that_meet_as_they_may(self) -> None:
        branch = self.tile(3, "conditional_branch", conditions=self.coded(self.PRO))
        fork = self.tile(3, "multi_split_branch", multi_conditions=[self.coded(self.PRO)] * 2)
        leave, out = self.tile(9, "exit"), self.tile(8, "exit")
        wait = self.tile(3, "conditional_wait", delay=60, exit_type="continue")
        rows: list[tuple[list[Any], list[str], list[int]]] = [
            # At the same exit, at the next tile, at a tile that not all come to.
            ([branch, leave], ["3>4:0", "3>5:1", "4>9", "5>9"], [4]),
            ([branch], ["3>6:0", "3>6:1"], [6]),
            ([fork, leave, out], ["3>4:0", "3>5:1", "3>7:2", "4>6", "5>6", "6>9", "7>8"], [4, 6]),
            ([fork, leave, out], ["3>7:0", "3>4:1", "3>5:2", "4>6", "5>6", "6>9", "7>8"], [7]),
            # After branches inside of one, one of which ends.
            ([branch, {**branch, "id": "10"}, leave], ["3>10:0", "3>7:1", "10>4:0", "10>9:1",
             "4>5", "5>6", "7>6"], [4, 5, 6]),
            # Nowhere: each ends by itself.
            ([branch, leave, out], ["3>4:0", "3>5:1", "4>9", "5>6", "6>8"], [4]),
            ([branch], ["3>4:0", "3>5:1", "5>6"], [4]),
            # Directly behind, and however a wait ends.
            ([branch], ["3>4:0", "3>6:1", "4>6"], [4, 6]),
            ([wait], ["3>4"], [4]),
            ([wait, *self.mails(4)], ["4>3"], [4]),
        ]  # fmt: skip
        for tiles, edges, sent in rows:
            with self.subTest(edges=edges):
                used = {end for edge in edges for end in re.findall(r"\d+(?=>)|(?<=>)\d+", edge)}
                there = [tile["id"] for tile in tiles]
                mails = [mail for mail in self.mails(4, 5, 6, 7) if mail["id"] in used - {*there}]
                self.seed(self.printed([*tiles, *mails], edges))
                self.identify("1", email="1@example.com", plan="pro")
                self.track("1", "go")
                self.clock(advance=60)
                self.assertEqual([action for action, _ in self.sent()], sent)
                self.assertEqual(self.journeys()[-1]["state"], "finished")

    def test_filters_on_the_events_data_may_be_json_text(self) -> None:
        text = json.dumps({"and": [{"field": "total", "operator": "gt", "value": "0"}]})
        for filters, states in ((text, ["not_entered", "finished"]), ("", ["finished"] * 2)):
            document = self.printed([self.tile(1, "email", subject="s", body="b")], [],
                                    attribute_filters=filters)  # fmt: skip
            self.seed({**document, "customers": [{"id": "7", "email": "7@example.com"}]})
            self.track("7", "go", total=0)
            self.track("7", "go", total=1)
            self.assertEqual([row["state"] for row in self.journeys()], states)
        wrong = self.printed([self.tile(1, "exit")], [], attribute_filters="{")
        reply = self.call("POST", "/__parlel/seed", wrong)
        self.assert_errors(reply, 400, "campaigns[0].campaign.attribute_filters: invalid JSON")

    def test_a_long_workflow(self) -> None:
        length = 2000
        tiles = [self.tile(n, "delay_seconds", delay=1) for n in range(1, length)]
        edges = [f"{n}>{n + 1}" for n in range(1, length)]
        self.seed(self.printed([*tiles, *self.mails(length)], edges))
        self.identify("1", email="1@example.com")
        self.track("1", "go")
        self.clock(advance=length)
        self.assertEqual(self.sent(), [(length, "1")])

    def test_many_branches_with_an_exit_each_do_not_lie_in_each_other(self) -> None:
        count = 100
        tiles = [self.tile(n, "conditional_branch") for n in range(1, count)]
        exits = [self.tile(n + count, "exit") for n in range(1, count)]
        edges = [f"{n}>{n + count}:0" for n in range(1, count)]
        edges += [f"{n}>{n + 1}:1" for n in range(1, count)]
        self.seed(self.printed([*tiles, *exits, *self.mails(count)], edges))
        self.identify("1", email="1@example.com")
        self.track("1", "go")
        self.assertEqual(self.sent(), [(count, "1")])

    def test_branches_in_branches(self) -> None:
        for count, text in ((40, ""), (41, "[81]: branches lie more than 40 deep in each other")):
            tiles = [self.tile(n, "conditional_branch") for n in range(1, count + 1)]
            tiles += self.mails(*range(count + 1, 2 * count + 1), 100)
            edges = [f"{n}>{n + 1 if n < count else 100}:1" for n in range(1, count + 1)]
            edges += [f"{n}>{n + count}:0" for n in range(1, count + 1)]
            edges += [f"{n + count}>100" for n in range(1, count + 1)]
            if text:
                self.refused(tiles, edges, f"campaigns[0].actions{text}")
            else:
                self.seed(self.printed(tiles, edges))
                whole = self.ok("GET", "/__parlel/state")
                self.ok("PUT", "/__parlel/state", whole)

    def test_what_is_there_already(self) -> None:
        document = self.printed(self.mails(1, 2), ["1>2"], id=7)
        nap: Any = {"id": 3, "type": "delay_seconds", "delay": 1}
        document["campaigns"].append({"id": 8, "actions": [nap]})
        self.seed(document)
        rows: list[tuple[Any, str]] = [
            ({"id": 7}, "campaigns[2].id 7 is there already"),
            ({"id": 9, "actions": [nap]}, "campaigns[2].actions[0].id 3 is there already"),
            ({"id": 9, "actions": [mail(2)]}, "campaigns[2].actions[0].id 2 is there already"),
        ]
        for row, text in rows:
            wrong = {"campaigns": [*document["campaigns"], row]}
            self.assert_errors(self.call("POST", "/__parlel/seed", wrong), 400, text)

    def test_one_attribute_as_it_once_was(self) -> None:
        old = {"attribute_name": "told", "attribute_value": "{{event.n}}"}
        self.seed(self.printed([self.tile(1, "attribute_update", **old)], []))
        self.track("1", "go", n="yes")
        self.assertEqual(self.person("1")["attributes"], {"told": "yes"})

    def test_segments_that_are_deleted_later_are_no_harm_to_a_snapshot(self) -> None:
        document = self.printed(self.mails(1), [], filters=[
            {"type": "segments_negatable", "segments": [1], "negate": True}])  # fmt: skip
        self.seed({**document, "segments": [{"id": 1, "name": "s", "ids": []}]})
        self.assertEqual(self.call("DELETE", "/v1/segments/1").status, 204)
        self.ok("PUT", "/__parlel/state", self.ok("GET", "/__parlel/state"))
        self.identify("1", email="1@example.com")
        self.track("1", "go")
        self.assertEqual(self.sent(), [(1, "1")])

    def test_an_answer_of_the_app_api_may_be_whole(self) -> None:
        self.seed({"campaigns": [{"campaign": {"id": 3, "name": "N", "actions": [mail(4)]}}]})
        shown = self.ok("GET", "/v1/campaigns/3")["campaign"]
        self.assertEqual((shown["name"], shown["actions"]), ("N", [{"id": 4, "type": "email"}]))
        self.assert_errors(
            self.call("POST", "/__parlel/seed", {"campaigns": [{"campaign": {"state": "x"}}]}),
            400, "campaigns[0].campaign.state must be one of",
        )  # fmt: skip

    def test_names_and_numbers_of_the_web_app(self) -> None:
        more = {"id": "6", "type": "date", "date_triggered_attribute": "born", "start_time": "9:05",
                "zone": "Europe/Berlin", "state": "starting", "made_by": "x"}  # fmt: skip
        test_groups = [{"id": "A", "content_ids": [1]}]
        document = self.printed(self.mails(1), [], **more)
        document["campaigns"][0].update(test_groups=test_groups, templates=[])
        self.seed(document)
        shown = self.ok("GET", "/v1/campaigns/6")["campaign"]
        names = ("id", "type", "date_attribute", "start_hour", "start_minutes", "timezone", "state")
        told = [6, "date", "born", 9, 5, "Europe/Berlin", "running"]
        self.assertEqual([shown[name] for name in names], told)
        self.assertNotIn("made_by", shown)


class WrongCampaigns(JourneyTest):
    """A campaign that can't run is refused whole, with its place and the nearest right word."""

    def refused(self, *actions: Any, **fields: Any) -> str:
        row = {"id": 1, "name": "C", "event_name": "go", "actions": list(actions), **fields}
        reply = self.call("POST", "/__parlel/seed", {"campaigns": [row]})
        self.assertEqual(reply.status, 400, row)
        return str(reply.json["meta"]["error"])

    def test_tiles(self) -> None:
        branch = {"id": 1, "type": "conditional_branch", "conditions": exists("a")}
        pair, nap = [mail(5), mail(6)], {"id": 7, "type": "delay_seconds", "delay": 1}
        rows: list[tuple[Any, str]] = [
            ({"type": "delay_second"}, "actions[0].type 'delay_second' is no tile; did you mean "
             "delay_seconds?"),
            ({"type": "llm_action"}, "actions[0].type 'llm' is no tile"),
            ({"type": "delay_seconds"}, "actions[0].delay is required"),
            ({"type": "delay_seconds", "delay": -1}, "actions[0].delay must be"),
            ({"type": "delay_seconds", "delay": 1, "dealy": 1}, "actions[0].dealy is no"),
            ({"id": "x"}, "actions[0].id must be"),
            ("x", "actions[0] must be an object"),
            (branch, "actions[0].paths"),
            ({**branch, "paths": [[]]}, "actions[0].paths must be 2 lists of actions: true, false"),
            ({**branch, "paths": [[], [{"type": "nap"}]]}, "actions[0].paths[1][0].type 'nap'"),
            ({**branch, "paths": [[], [mail(1)]]}, "actions[0].paths[1][0].id 1 is there already"),
            ({**branch, "paths": [[], []], "conditions": {"atribute": {}}},
             "actions[0].conditions has 'atribute'"),
            ({"type": "random_cohort_branch", "cohorts": [500, 400], "paths": [[], []]},
             "actions[0].cohorts must be"),
            ({"type": "random_cohort_branch", "cohorts": [500, 500], "paths": [[]]},
             "actions[0].paths must be 2 lists"),
            ({"type": "delay_time_window", "start_time": "9"}, "actions[0].start_time must be"),
            ({"type": "delay_time_window", "days": ["someday"]}, "actions[0].days[0] must be"),
            ({"type": "delay_time_window", "days": [8]}, "actions[0].days[0] must be"),
            ({"type": "random_cohort_branch", "cohorts": [], "paths": []}, "actions[0].cohorts"),
            ({"type": "random_cohort_branch", "cohorts": [50] * 20 + [0], "paths": [[]] * 21},
             "actions[0].cohorts"),
            ({"type": "multi_lang_branch", "variations": []}, "actions[0].variations"),
            ({"type": "collection_query", "collection": 1, "attribute": "a", "filter": {"x": 1}},
             "actions[0].filter"),
            ({"type": "batch_update", "filter": {"event_attribute": {}}}, "actions[0].filter"),
            ({"type": "delay_time_window", "zone": "Berlin"}, "actions[0].zone"),
            ({"type": "split_randomized", "variations": [mail(5)]}, "actions[0].variations"),
            ({"type": "split_randomized", "variations": pair, "allocations": [1]},
             "actions[0].allocations must be a list of at least 2"),
            ({"type": "split_randomized", "variations": pair, "allocations": [1, 2, 3]},
             "actions[0].allocations must be 2 shares"),
            ({"type": "split_randomized", "variations": pair, "allocations": [0, 0]},
             "actions[0].allocations must be 2 shares"),
            ({"type": "split_randomized", "variations": pair, "assign": {"1": 2}},
             "actions[0].assign must name shares by their places, 0 to 1"),
            ({"type": "split_randomized", "variations": pair, "assign": {"1": "x"}},
             "actions[0].assign must"),
            ({"type": "split_randomized", "variations": [pair[0], nap]},
             "actions[0].variations[1].type 'delay_seconds' is no message; there are email"),
            ({"type": "multi_lang_branch", "variations": [{"type": "emial"}]},
             "actions[0].variations[0].type 'emial' is no message; did you mean email?"),
            ({"type": "webhook", "url": "http://x.example/", "response": [
              {"attribute": "a", "value": "{{ x"}]}, "actions[0].response[0].value is no template"),
            (mail(1, preconditions=eq("a", "{{ x")),
             "actions[0].preconditions.attribute.value is no template"),
            ({"type": "webhook", "url": "http://x.example/", "headers": {"X": 5}},
             "actions[0].headers must have names and values as strings"),
            ({"type": "webhook", "url": "http://x.example/", "headers": ["X"]},
             "actions[0].headers must be an object of names and values, or a JSON list"),
            ({"type": "random_cohort_branch", "cohorts": [1500, -500], "paths": [[], []]},
             "actions[0].cohorts must be"),
            ({"type": "random_cohort_branch", "cohorts": [500, 500], "paths": [[], []],
              "assign": {"1": -1}}, "actions[0].assign must"),
            ({"type": "split_randomized", "variations": [pair[0], mail(6, preconditions=
              exists("a"))]}, "actions[0].variations[1].preconditions must stand in the tile"),
            ({"type": "randomized_delay", "min_delay": 2, "max_delay": 1},
             "actions[0].max_delay must not be less"),
            ({"type": "delay_seconds", "delay": 9e18}, "actions[0].delay must be"),
            (mail(1, paths=[[], []]), "actions[0].paths: one way leads on"),
            (mail(1, sending_state="wrong"), "actions[0].sending_state must be one of"),
            ({"type": "webhook", "url": "http://x.example/", "response": ["x"]},
             "actions[0].response[0]"),
            ({"type": "webhook", "url": "http://x.example/", "response": [{"attribut": "x"}]},
             "actions[0].response[0].attribute is required"),
            (mail(1, preconditions={"event": {}}), "actions[0].preconditions.event.name"),
            ({"type": "conditional_wait", "multi_conditions": [{"segment": {"id": 4}}]},
             "there is no segment 4"),
            ({"type": [1]}, "actions[0].type must be a string, not a list"),
            ({"id": 2**63, "type": "exit"}, "actions[0].id must be a number from 1 up"),
            ({**branch, "paths": ["x", []]}, "actions[0].paths[0] must be a list, not a string"),
            ({**branch, "paths": 5}, "actions[0].paths must be a list, not a number"),
            ({"type": "split_randomized", "variations": 5}, "actions[0].variations must be a list"),
            (mail(1, subjct="x"), "actions[0].subjct is no field of a message; did you mean "
             "subject?"),
            (mail(1, zzz="x"), "actions[0].zzz is no field of a message; there are name, from"),
            (mail(1, subjct="x", deduplicate_id="1:1"), "actions[0].subjct is no field of a"),
            ({"subject": 5}, "actions[0].subject must be a string, not a number"),
            ({"type": "push", "holdout": True}, "actions[0].holdout: only emails can be held out"),
            (mail(1, holdout="yes"), "actions[0].holdout must be true or false, not a string"),
            ({"type": "webhook", "url": "http://x.example/", "method": "brew"},
             "actions[0].method must be one of: get, post, put, delete, patch"),
            ({"type": "webhook", "url": "http://x.example/", "request_method": "BREW"},
             "actions[0].request_method must be one of: get, post"),
            ({"type": "attribute_update", "attributes": {"a": 1}, "person": {}},
             "actions[0].person must be an object with exactly one of: id, email, cio_id"),
            ({"type": "create_event", "event_name": "e", "person": {"id": "1", "email": "a@b.cd"}},
             "actions[0].person must be an object with exactly one of"),
            ({"type": "create_event", "event_name": "e", "person": {"id": ""}},
             "actions[0].person must be an object with exactly one of"),
            ({"type": "create_event", "event_name": "e", "person": {"emial": "a@b.cd"}},
             "actions[0].person.emial is no field here; did you mean email?"),
            ({"type": "conditional_wait", "multi_conditions": [exists("a")], "delay": 5,
              "exit_type": "never"}, "actions[0].delay must be 0 with exit_type never"),
            ({"type": "conditional_wait", "multi_conditions": [exists("a")],
              "exit_type": "continue"}, "actions[0].delay must be more than 0 with exit_type"),
            ({"type": "conditional_wait", "multi_conditions": [exists("a")],
              "exit_type": "sometimes"}, "actions[0].exit_type must be one of: never, continue"),
            ({"type": "conditional_wait"}, "actions[0].multi_conditions or delay is required"),
            ({"type": "conditional_wait", "exit_type": "never", "delay": 0, "multi_conditions": []},
             "actions[0].multi_conditions or delay is required"),
            (mail(1, preconditions=[exists("a"), {"attribute": {"field": 1}}]),
             "actions[0].preconditions[1].attribute.field must be"),
        ]  # fmt: skip
        for action, text in rows:
            with self.subTest(action=action):
                self.assertIn(text, self.refused(action))
        self.assertIn("actions[1].id 1 is there already", self.refused(mail(1), mail(1)))
        self.assertIn("actions must be a list of actions", self.refused(actions={"id": 1}))
        self.assertIn(
            "actions[1] is never reached", self.refused({"id": 1, "type": "exit"}, mail(2))
        )

    def test_tiles_that_nobody_comes_to(self) -> None:
        leave: Any = {"type": "exit"}
        fork: Any = {"type": "conditional_branch", "conditions": exists("a")}
        both = {**fork, "paths": [[mail(1), leave], [leave]]}
        rows: list[tuple[list[Any], str]] = [
            ([both, mail(2), mail(3)], "campaigns[0].actions[1] is never reached: all ways before"),
            ([{**fork, "paths": [[both, mail(2)], []]}], "campaigns[0].actions[0].paths[0][1] is"),
            ([{**fork, "paths": [[both], [leave]]}, mail(2)], "campaigns[0].actions[1] is never"),
        ]  # fmt: skip
        for actions, text in rows:
            self.assertIn(text, self.refused(*actions))
        self.campaign({**fork, "paths": [[leave], []]}, mail(2), {**leave, "preconditions":
                      exists("a")}, mail(3), leave)  # fmt: skip
        self.identify("1", email="1@example.com")
        self.track("1", "go")
        self.assertEqual(self.sent(), [(2, "1"), (3, "1")])

    def test_what_is_named_and_is_not_there(self) -> None:
        segment: Any = {"segment": {"id": 9}}
        read: Any = {"message": {"action_id": 9, "metric": "opened"}}
        rows: list[tuple[dict[str, Any], str]] = [
            ({"actions": [mail(1, preconditions=segment)]},
             "actions[0].preconditions.segment.id: there is no segment 9; there are 1"),
            ({"actions": [mail(1, preconditions=[exists("a"), {"not": segment}])]},
             "actions[0].preconditions[1].not.segment.id: there is no segment 9"),
            ({"actions": [mail(1, preconditions=read)]},
             "actions[0].preconditions.message.action_id: there is no action 9; there are 1"),
            ({"filter": {"message": {"campaign_id": 2, "metric": "sent"}}},
             "filter.message.campaign_id: there is no campaign 2; there are 1"),
            ({"filter": {"message": {"action_id": "1", "metric": "sent"}}},
             "filter.message.action_id must be a whole number, not a string"),
            ({"actions": [{"type": "conditional_wait", "multi_conditions": [[exists("a"), read]]}]},
             "actions[0].multi_conditions[0][1].message.action_id: there is no action 9"),
            ({"actions": [{"type": "static_seg_update", "segment_id": 9}]},
             "actions[0].segment_id: there is no segment 9; there are 1"),
            ({"actions": [{"type": "collection_query", "collection": "shoo", "attribute": "a"}]},
             "actions[0].collection: there is no collection shoo; did you mean shop?"),
            ({"actions": [{"type": "batch_update", "filter": segment, "attributes": {"a": "b"}}]},
             "actions[0].filter.segment.id: there is no segment 9"),
            ({"goal": segment}, "goal.segment.id: there is no segment 9"),
            ({"filter": segment}, "filter.segment.id: there is no segment 9"),
            ({"filter_segment_ids": [1, 9], "restart_mode": "once"},
             "filter_segment_ids[1].segment.id: there is no segment 9"),
            ({"trigger_segment_ids": [9], "type": "segment", "restart_mode": "once"},
             "trigger_segment_ids[0].segment.id: there is no segment 9"),
            ({"trigger": segment, "type": "segment"}, "trigger.segment.id: there is no segment 9"),
            ({"global_exit_conditions": [exists("a"), segment]},
             "global_exit_conditions[1].segment.id: there is no segment 9"),
            ({"subscription_topic_id": 2}, "subscription_topic_id: there is no topic 2; there are"),
        ]  # fmt: skip
        for fields, text in rows:
            with self.subTest(text=text):
                row = {"id": 1, "event_name": "go", **fields}
                document = {
                    "campaigns": [row], "segments": [{"id": 1, "name": "s", "ids": []}],
                    "topics": [{"id": 1, "name": "t"}], "collections": [{"id": 1, "name": "shop"}],
                }  # fmt: skip
                reply = self.call("POST", "/__parlel/seed", document)
                self.assert_errors(reply, 400, f"campaigns[0].{text}")

    def test_numbers_that_are_given_are_left_to_those_who_have_them(self) -> None:
        nap: Any = {"type": "delay_seconds", "delay": 1}
        rows = [{"id": 1, "actions": [nap, mail(1)]}, {"id": 2, "actions": [nap, mail(2)]}]
        self.seed({"campaigns": rows})
        actions = [row["actions"] for row in self.records("campaigns")]
        self.assertEqual([[tile["id"] for tile in some] for some in actions], [[3, 1], [4, 2]])

    def test_what_is_named_may_come_later(self) -> None:
        opened: Any = {"message": {"action_id": 2, "metric": "opened"}}
        conditions = {"or": [{"segment": {"id": 2}}, opened]}
        self.seed({
            "campaigns": [{"id": 1, "event_name": "go", "actions": [mail(1, preconditions=opened),
                           {"type": "collection_query", "collection": 4, "attribute": "a"}]},
                          {"id": 2, "actions": [mail(2)], "subscription_topic_id": 3}],
            "segments": [{"id": 1, "name": "a", "conditions": conditions},
                         {"id": 2, "name": "b", "ids": []}],
            "collections": [{"id": 4}], "topics": [{"id": 3}],
        })  # fmt: skip
        rows: list[tuple[Any, str]] = [
            ({"segment": {"id": 3}}, "segment.id: there is no segment 3; there are 1"),
            ({"message": {"newsletter_id": 3, "metric": "sent"}},
             "message.newsletter_id: there is no newsletter 3; there are 5"),
        ]  # fmt: skip
        for part, text in rows:
            row = {"id": 1, "name": "a", "conditions": {"and": [exists("a"), part]}}
            document = {"segments": [row], "newsletters": [{"id": 5}]}
            reply = self.call("POST", "/__parlel/seed", document)
            self.assert_errors(reply, 400, f"segments[0].conditions.and[1].{text}")
        # While a kind is not seeded, any number of it will do.
        self.seed({"segments": [{"id": 1, "name": "a", "conditions": opened}]})

    def test_what_the_app_api_shows_of_actions_can_be_pasted(self) -> None:
        texts = "layout body body_amp language from reply_to subject bcc cc preheader_text url "
        texts += "image_url body_json preprocessor deduplicate_id recipient"
        numbers = ("campaign_id", "created", "updated", "from_id", "reply_to_id",
                   "sender_identity_id", "parent_action_id")  # fmt: skip
        whole = {
            **dict.fromkeys(texts.split(), ""), **dict.fromkeys(numbers, 0), "name": "n",
            "fake_bcc": True, "send_to_unsubscribed": False, "tracked": True, "method": "post",
            "sending_state": "automatic", "headers": {}, "deduplicate_id": "1:1", "new": "x",
        }  # fmt: skip
        kinds = ("email", "in_app", "push", "twilio", "slack", "whatsapp", "webhook")
        actions = [{**whole, "id": n, "type": kind} for n, kind in enumerate(kinds, 1)]
        self.seed({"campaigns": [{"id": 1, "actions": [*actions, {**actions[0], "id": 9,
                   "headers": "[]", "subject": None}]}]})  # fmt: skip
        rows = self.ok("GET", "/v1/campaigns/1/actions")["actions"]
        self.assertEqual([row["type"] for row in rows], [*kinds, "email"])

    def test_campaigns(self) -> None:
        rows: list[tuple[dict[str, Any], str]] = [
            ({"type": "events"}, "campaigns[0].type must be one of"),
            ({"state": "runing"}, "campaigns[0].state must be one of"),
            ({"restart_mod": "once"}, "campaigns[0].restart_mod is no field of campaigns; did you "
             "mean restart_mode?"),
            ({"restart_mode": "twice"}, "campaigns[0].restart_mode must be one of"),
            ({"filter": {"x": 1}}, "campaigns[0].filter"),
            ({"attribute_filters": [{}]}, "campaigns[0].attribute_filters"),
            ({"attribute_filters": {"field": "a", "operator": "is", "value": 1}},
             "campaigns[0].attribute_filters.operator must be one of"),
            ({"global_exit_conditions": [{"segment": {}}]},
             "campaigns[0].global_exit_conditions[0].segment.id"),
            ({"goal": {"event": {"name": "x"}, "after": "sent"}}, "campaigns[0].goal.after"),
            ({"goal": {"within": 3}}, "campaigns[0].goal"),
            ({"timezone": "Mars"}, "campaigns[0].timezone"),
            ({"lead_days": 10**9}, "campaigns[0].lead_days must be"),
            ({"restart_mode": "interval"}, "campaigns[0].restart_min_interval must be 60"),
            ({"restart_mode": "interval", "restart_min_interval": 1}, "must be 60 seconds or more"),
            ({"trigger": exists("a"), "type": "segment", "trigger_segment_ids": [3]},
             "there is no segment 3"),
            ({"trigger": exists("a")},
             "campaigns[0].type is required: it could be any of segment, event"),
            ({"trigger": exists("a"), "type": "event"},
             "campaigns[0].trigger does not go with type event, but with segment"),
            ({"form_id": "f", "type": "event"}, "campaigns[0].form_id does not go with type event"),
            ({"lead_days": 1}, "campaigns[0].lead_days does not go with type event, but with date"),
            ({"attribute_filters": {"field": "a", "operator": "exists"}, "type": "date"},
             "campaigns[0].attribute_filters does not go with type date, but with event, form"),
            ({"goal": {}}, "goal must be an object with exactly one of: segment, event"),
            ({"goal": {"segment": {"id": 1}, "event": {"name": "x"}}},
             "goal must be an object with exactly one of: segment, event"),
            ({"exit_on_goal": True}, "campaigns[0].exit_on_goal needs a goal"),
            ({"type": "date", "date_attribute": "d", "timezone": "Mars/Phobos"},
             "campaigns[0].timezone must be the name of a time zone, not 'Mars/Phobos'"),
            ({"type": "object", "object_type_id": "1", "audience": {"type": "x"}},
             "campaigns[0].audience.type must be a whole number"),
            ({"type": "webhook", "webhook_id": "zzzz"},
             "campaigns[0].webhook_id must be a webhook's 16 hexadecimal digits, or their number"),
            ({"type": "webhook", "webhook_id": 2**64}, "campaigns[0].webhook_id must be a webhook"),
            ({"type": "webhook", "webhook_id": True}, "campaigns[0].webhook_id must be a webhook"),
            ({"type": "webhook", "webhook_id": 1, "restart_mode": "once"},
             "campaigns[0].restart_mode has nobody to count"),
            ({"type": "webhook", "webhook_id": 1, "restart_min_interval": 60},
             "campaigns[0].restart_mode has nobody to count"),
            ({"type": "object", "object_type_id": [1]},
             "campaigns[0].object_type_id must not be a list"),
            ({"event_nam": "x"}, "campaigns[0].event_nam is no field of campaigns; did you mean "
             "event_name?"),
            ({"filter": {"attribute": {**eq("a", 1)["attribute"], "invers": True}}},
             "campaigns[0].filter.attribute.invers is unknown; did you mean inverse?"),
            ({"filter": {"event": {"name": "a", "filter": {}}}},
             "campaigns[0].filter.event.filter is unknown; did you mean filters?"),
            ({"filter": {"event": {"name": "a", "type": [1]}}},
             "campaigns[0].filter.event.type must be one of"),
            ({"filter": {"segment": {"id": 1, "inverse": True}}},
             "campaigns[0].filter.segment.inverse is unknown"),
            ({"filter_object_attributes": {"x": 1}}, "campaigns[0].filter_object_attributes has"),
            ({"audience": {"person_filters": 5}}, "campaigns[0].audience.person_filters must be"),
            ({"filter_object_attributes": "x"},
             "campaigns[0].filter_object_attributes: invalid JSON"),
            ({"audience": {"person_filters": {"x": 1}}},
             "campaigns[0].audience.person_filters has"),
        ]  # fmt: skip
        for fields, text in rows:
            with self.subTest(fields=fields):
                self.assertIn(text, self.refused(mail(1), **fields))
        self.assertEqual(self.journeys(), [])

    def test_broadcasts(self) -> None:
        delay = {"type": "delay_seconds", "delay": 60}
        rows: list[tuple[dict[str, Any], str]] = [
            ({"actions": [mail(1), {"type": "delay"}]}, "actions[1].type 'delay' is no tile"),
            ({"actions": [{"type": "delay_seconds"}]}, "actions[0].delay is required"),
            ({"actions": [delay], "type": "event"}, "broadcasts[0].type"),
            ({"actions": [delay], "state": "on"}, "broadcasts[0].state"),
            ({"actions": [mail(1)], "restart_mod": "once"}, "did you mean restart_mode?"),
            ({"goal": {"within": -1}}, "broadcasts[0].goal"),
            ({"actions": [mail(1, subjct="x")]}, "broadcasts[0].actions[0].subjct is no field of"),
            ({"actions": [delay], "trigger": exists("a")}, "broadcasts[0].trigger does not go"),
            ({"actions": [delay], "id": 9}, "broadcasts[0].id 9 is a campaign's"),
        ]
        for fields, text in rows:
            seed = {"campaigns": [{"id": 9, "name": "C"}],
                    "broadcasts": [{"id": 1, "name": "B", **fields}]}  # fmt: skip
            self.assert_errors(self.call("POST", "/__parlel/seed", seed), 400, text)

    def test_the_message_limit(self) -> None:
        for value, text in (
            ({"message_limit": {"limit": 2}}, "workspace.message_limit.within"),
            ({"message_limits": {}}, "did you mean message_limit?"),
        ):
            reply = self.call("POST", "/__parlel/seed", {"workspace": value})
            self.assert_errors(reply, 400, text)


# ======================================================================================
# ==== §16 Webhooks
# ======================================================================================


class Dripping(socketserver.BaseRequestHandler):
    """Sends the drops of its server, the second one again and again, until it is hung up on."""

    server: DrippingServer

    def handle(self) -> None:
        start, rest = self.server.drops
        with contextlib.suppress(OSError):
            self.request.sendall(start)
            while not select.select([self.request], [], [], 0.01)[0] or self.request.recv(65536):
                self.request.sendall(rest)


class Webhooks(FakeTest):
    """Reporting webhooks, to a real socket."""

    settings = {"signing_key": "secret"}

    def setUp(self) -> None:
        super().setUp()
        self.endpoint = Listening(("127.0.0.1", 0), Endpoint)
        self.endpoint.received, self.endpoint.statuses = [], []
        thread = threading.Thread(target=self.endpoint.serve_forever, args=(0.01,))
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.endpoint.server_close)
        self.addCleanup(self.endpoint.shutdown)
        self.addCleanup(self.fake.close)

    def register(self, *events: str, host: str = "127.0.0.1", **more: Any) -> None:
        endpoint = f"http://{host}:{self.endpoint.server_port}/hook?x=1"
        body = {"name": "w", "endpoint": endpoint, "events": list(events), **more}
        self.ok("POST", "/v1/reporting_webhooks", body)

    def send(self) -> str:
        own = {"subject": "Hi", "body": "<p>x</p>", "from": "a@b.cd", "to": "a@example.com"}
        sent = self.ok("POST", "/v1/send/email", {**own, "identifiers": {"id": "1"}})
        return str(sent["delivery_id"])

    def flush(self) -> int:
        return int(self.ok("POST", "/__parlel/webhooks/flush")["pending"])

    def metrics(self) -> list[str]:
        return [json.loads(body)["metric"] for _, _, body in self.endpoint.received]

    def test_a_report_is_signed_and_complete(self) -> None:
        self.register("email_sent", with_content=True, host="user:pa%20ss@127.0.0.1")
        delivery_id = self.send()
        self.assertEqual(self.flush(), 0)
        ((path, headers, body),) = self.endpoint.received
        text = f"v0:{headers['X-CIO-Timestamp']}:".encode() + body
        self.assertEqual(
            headers["X-CIO-Signature"], hmac.new(b"secret", text, "sha256").hexdigest()
        )
        pair = base64.b64decode(headers["Authorization"].split()[1])
        self.assertEqual((path, pair), ("/hook?x=1", b"user:pa ss"))
        event = json.loads(body)
        self.assertEqual((event["object_type"], event["metric"]), ("email", "sent"))
        data = event["data"]
        known = (data["delivery_id"], data["customer_id"], data["recipient"], data["subject"])
        self.assertEqual(known, (delivery_id, "1", "a@example.com", "Hi"))
        self.assertEqual(
            (data["transactional_message_id"], "<p>x</p>" in data["content"]), (1, True)
        )

    def test_only_what_was_asked_for_is_sent(self) -> None:
        self.register("email_clicked", "customer_unsubscribed")
        self.register("email_delivered", disabled=True)
        path = f"/__parlel/deliveries/{self.send()}"
        for metric in ("opened", "clicked", "clicked", "unsubscribed"):
            self.ok("POST", f"{path}/{metric}", {"href": "https://x.example"})
        self.flush()
        self.assertEqual(self.metrics(), ["clicked", "unsubscribed"])

    def test_full_resolution_reports_every_click(self) -> None:
        self.register("email_clicked", full_resolution=True)
        path = f"/__parlel/deliveries/{self.send()}/clicked"
        for _ in range(3):
            self.ok("POST", path)
        self.flush()
        self.assertEqual(self.metrics(), ["clicked"] * 3)

    def test_a_failure_holds_the_later_ones_up_until_it_is_tried_again(self) -> None:
        self.endpoint.statuses = [500, 503]
        self.register("email_sent", "email_delivered")
        self.send()
        self.assertEqual(self.flush(), 2)
        self.assertEqual(self.metrics(), ["sent"])
        for seconds, expected in ((3599, 1), (1, 2), (19, 2), (1, 4)):
            self.ok("PUT", "/__parlel/clock", {"advance": seconds, "freeze": True})
            self.flush()
            self.assertEqual(len(self.endpoint.received), expected, seconds)
        self.assertEqual(self.metrics(), ["sent", "sent", "sent", "delivered"])
        report = self.records("webhooks", "?metric=sent")[0]
        self.assertEqual([a.get("status") for a in report["attempts"]], [500, 503, 200])

    def rests(self) -> list[float]:
        """How long each attempt to tell of a `sent` makes the next one wait."""
        attempts = self.records("webhooks", "?metric=sent")[-1]["attempts"]
        return [attempt["retry_at"] - attempt["at"] for attempt in attempts]

    def test_what_a_device_did_is_reported_of_that_device(self) -> None:
        for token, platform in (("t1", "ios"), ("t2", "android")):
            device = {"device": {"id": token, "platform": platform}}
            self.ok("PUT", "/api/v1/customers/1/devices", device)
        message = {"transactional_message_id": 1, "identifiers": {"id": "1"}}
        id = self.ok("POST", "/v1/send/push", message)["delivery_id"]
        entity = {"type": "delivery", "action": "event", "identifiers": {"id": id}}
        old = {"delivery_id": id, "event": "opened"}
        cdp = {"deliveryId": id, "metric": "opened", "recipient": "t2"}
        t1 = {"device_id": "t1", "device_platform": "ios"}
        t2 = {"device_id": "t2", "device_platform": "android"}
        rows: list[tuple[str, dict[str, Any], list[dict[str, str]]]] = [
            (
                "/api/v2/entity",
                {**entity, "name": "opened", "attributes": {"device_token": "t1"}},
                [t1],
            ),
            ("/api/v1/push/events", {**old, "device_id": "t2"}, [t2]),
            ("/api/v1/push/events", {**old, "device_id": "t3"}, [{"device_id": "t3"}]),
            ("/api/v1/push/events", old, [t1, t2]),
            ("/api/v1/metrics", {"delivery_id": id, "metric": "opened", "recipient": "t1"}, [t1]),
            (
                "/v1/track",
                {"userId": "1", "event": "Report Delivery Event", "properties": cdp},
                [t2],
            ),
            (
                f"/__parlel/deliveries/{id}/bounced",
                {"recipient": "t1", "reason": "gone"},
                [{**t1, "failure_message": "gone"}],
            ),
        ]
        for path, body, recipients in rows:
            with self.subTest(path, body=body):
                self.ok("POST", path, body)
                report = self.records("webhooks")[-1]
                self.assertEqual(report["data"]["recipients"], recipients)

    def test_an_hour_of_rest_is_for_what_is_listed(self) -> None:
        self.register("email_sent")
        rows: list[tuple[Exception, float]] = [
            (TimeoutError(), 10),
            (socket.timeout("timed out"), 10),
            (OSError(errno.EHOSTUNREACH, "no route to host"), 10),
            (ValueError("BadStatusLine"), 10),
            (ConnectionRefusedError(), 3600),
            (ConnectionResetError(), 3600),
            (socket.gaierror(), 3600),
            (ssl.SSLEOFError(), 3600),
            (ssl.SSLCertVerificationError(), 3600),
        ]
        for error, rest in rows:
            with self.subTest(error=error):
                self.fake.workspace.unreported.clear()
                self.fake.workspace.resting.clear()
                with mock.patch.object(customerio_fake.Outbox, "_exchange", side_effect=error):
                    self.send()
                    self.flush()
                self.assertEqual(self.rests(), [rest])

    def test_which_statuses_are_failures_and_which_of_them_rest_for_an_hour(self) -> None:
        self.register("email_sent")
        slow = (400, 401, 402, 403, 404, 405, 410, 429, 500, 502, 521)
        rows = [(200, None), (299, None), *((status, 3600) for status in slow)]
        rows += [(status, 10) for status in (199, 300, 406, 411, 428, 501, 503, 520, 522)]
        for status, rest in rows:
            self.fake.workspace.unreported.clear()
            self.fake.workspace.resting.clear()
            answer = {"status": status, "response": ""}
            with mock.patch.object(customerio_fake.Outbox, "_exchange", return_value=answer):
                self.send()
                self.flush()
            (attempt,) = self.records("webhooks", "?metric=sent")[-1]["attempts"]
            retry = attempt["at"] + rest if rest else None
            self.assertEqual(attempt["retry_at"], retry, status)

    def drip(self, seconds: float, scheme: str, start: bytes, rest: bytes) -> Any:
        """The attempt to report, in `seconds`, to a server with these drops."""
        with DrippingServer(("127.0.0.1", 0), Dripping) as server:
            server.drops = start, rest
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            endpoint = f"{scheme}://127.0.0.1:{server.server_address[1]}"
            body = {"name": "w", "endpoint": endpoint, "events": ["email_sent"]}
            self.ok("POST", "/v1/reporting_webhooks", body)
            with mock.patch.object(customerio_fake, "WEBHOOK_TIMEOUT", seconds):
                self.send()
                self.fake.outbox.flush(PATIENCE)
            server.shutdown()
            thread.join()
        return self.records("webhooks", "?metric=sent")[0]["attempts"][-1]

    def test_who_answers_bit_by_bit_is_given_up_in_time(self) -> None:
        rows = [
            ("http", b"HTTP/1.1 200", b" "),
            ("http", b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
            ("https", b"\x16\x03\x03\x3f\xff", b"\2"),
        ]
        for scheme, start, rest in rows:
            with self.subTest(start=start):
                self.fake = Fake(Settings())
                self.fake.workspace.clock.freeze()  # or a second could begin meanwhile
                attempt = self.drip(0.3, scheme, start, rest)
                self.assertEqual(attempt["error"], "no answer within 0.3 seconds")
                self.assertEqual(attempt["retry_at"] - attempt["at"], 10)

    def test_a_body_may_take_its_time(self) -> None:
        for status, response in ((204, ""), (201, "xx")):
            with self.subTest(status):
                self.fake = Fake(Settings())
                attempt = self.drip(1, "http", b"HTTP/1.1 %d OK\r\n\r\n" % status, b"x")
                self.assertEqual(attempt["status"], status)
                self.assertEqual(attempt["response"][:2], response)
                self.assertIsNone(attempt["retry_at"])

    def test_https_and_a_certificate_that_nobody_vouches_for(self) -> None:
        trust = ssl.create_default_context(cadata=customerio_fake.BUILT_IN_CA)
        with CustomerioServer(port=0) as server:
            endpoint = f"https://localhost:{server.port}/health"
            body = {"name": "w", "endpoint": endpoint, "events": ["email_sent"]}
            self.ok("POST", "/v1/reporting_webhooks", body)
            self.send()
            self.flush()
            with mock.patch.object(ssl, "create_default_context", lambda: trust):
                self.ok("PUT", "/__parlel/clock", {"advance": 3600})
        strange, known = self.records("webhooks", "?metric=sent")[0]["attempts"]
        self.assertIn("CERTIFICATE_VERIFY_FAILED", strange["error"])
        self.assertEqual((strange["retry_at"] - strange["at"], known["status"]), (3600, 405))

    @unittest.skipUnless(sys.implementation.name == "cpython", "nobody counts references")
    def test_who_refuses_leaves_nothing_that_hangs_together(self) -> None:
        """A server as a script hardly ever looks for such garbage: it would hold others up."""
        where = {"data_file_url": "http://127.0.0.1:9/x"}
        order = {"import": {"name": "i", "type": "people", "identifier": "id", **where}}
        self.ok("POST", "/v1/imports", order)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            self.ok("POST", "/v1/imports", order)
            gc.collect()
            left = [thing for thing in gc.garbage if "customerio_fake" in repr(thing)]
        finally:
            gc.set_debug(0)
            gc.enable()
            gc.garbage.clear()
        self.assertEqual(left, [])

    def test_the_clock_goes_ahead_of_an_endpoint_that_never_answers(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/"
            self.register("email_sent")
            self.ok("POST", "/v1/reporting_webhooks", {
                "name": "s", "endpoint": endpoint, "events": ["email_sent"]})  # fmt: skip
            self.ok("PUT", "/__parlel/clock", {"freeze": True, "now": 5_000_000})
            self.send()
            began = time.monotonic()
            hasty = mock.patch.object(customerio_fake, "CLOCK_PATIENCE", 0.2)
            with hasty, self.assertLogs("customerio_fake", "WARNING") as logs:
                answer = self.ok("PUT", "/__parlel/clock", {"advance": 2 * 86_400})
            self.assertLess(time.monotonic() - began, customerio_fake.WEBHOOK_TIMEOUT)
            self.assertEqual(answer["now"], 5_000_000 + 2 * 86_400)
            self.assertIn("reports wait for a slow endpoint", answer["waiting"])
            self.assertIn(answer["waiting"], "".join(logs.output))
            self.fake.outbox.close()
        self.assertNotIn("waiting", self.ok("PUT", "/__parlel/clock", {"advance": 1}))

    def test_who_hangs_up_without_an_answer_rests_for_an_hour(self) -> None:
        self.endpoint.statuses = [0]
        self.register("email_sent")
        self.send()
        self.flush()
        self.assertEqual((len(self.endpoint.received), self.rests()), (1, [3600]))

    def test_who_closes_waits_for_the_thread_that_reports(self) -> None:
        others = threading.enumerate()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
            self.ok("POST", "/v1/reporting_webhooks", {
                "name": "s", "endpoint": endpoint, "events": ["email_sent"]})  # fmt: skip
            silent.settimeout(PATIENCE)
            self.send()
            with silent.accept()[0]:
                mine = {*threading.enumerate()}.difference(others)
                self.fake.close()
                reporting = [t for t in mine if t.name == "customerio-fake-webhooks"]
                self.assertEqual([thread.is_alive() for thread in reporting], [False])

    def test_the_seven_days_of_retries_run_from_the_first_attempt(self) -> None:
        delivery_id = self.send()
        self.register("email_opened")
        self.endpoint.statuses = [500] * 99
        now = int(self.ok("GET", "/__parlel/clock")["now"])
        self.ok("PUT", "/__parlel/clock", {"now": now, "freeze": True})
        report = {"delivery_id": delivery_id, "metric": "opened", "timestamp": now - 8 * 86400}
        self.ok("POST", "/api/v1/metrics", report)
        self.assertEqual(self.flush(), 1)
        self.ok("PUT", "/__parlel/clock", {"advance": 8 * 86400})
        attempts = self.records("webhooks", "?metric=opened")[0]["attempts"]
        hours = [(attempt["at"] - now) / 3600 for attempt in attempts]
        self.assertEqual(hours, [0, 1, 3, 7, 15, 31, 55, 79, 103, 127, 151])
        self.assertEqual((attempts[-1]["retry_at"], self.flush()), (None, 0))

    def test_one_long_step_of_the_clock_sees_every_retry(self) -> None:
        for steps in (1, 24):
            self.fake = Fake(Settings())
            self.endpoint.statuses = [500] * 9
            self.register("email_sent")
            now = int(self.ok("GET", "/__parlel/clock")["now"])
            self.ok("PUT", "/__parlel/clock", {"now": now, "freeze": True})
            message = {"to": "a@example.com", "from": "b@example.com", "subject": "s", "body": "b"}
            later = {"identifiers": {"id": "1"}, "send_at": now + 600}
            self.ok("POST", "/v1/send/email", {**message, **later})
            for _ in range(steps):
                self.ok("PUT", "/__parlel/clock", {"advance": 86400 / steps})
            attempts = self.records("webhooks", "?metric=sent")[0]["attempts"]
            times = [attempt["at"] - now for attempt in attempts]
            self.assertEqual(times, [600, 4200, 11400, 25800, 54600], steps)

    def test_who_rests_goes_on_after_a_restore(self) -> None:
        self.endpoint.statuses = [500]
        self.register("email_sent")
        self.send()
        self.flush()
        document = self.ok("GET", "/__parlel/state")
        self.fake.close()
        self.fake = Fake(Settings())
        self.ok("PUT", "/__parlel/state", document)
        self.ok("PUT", "/__parlel/clock", {"advance": 3601})
        self.assertEqual(self.metrics(), ["sent", "sent"])

    def test_one_that_can_not_be_sent_does_not_hold_up_the_others(self) -> None:
        self.register("email_sent", "email_delivered")
        post = customerio_fake.Outbox._post
        broken: list[Any] = []

        def break_once(outbox: Any, endpoint: Any, report: Any) -> Any:
            if broken:
                return post(outbox, endpoint, report)
            broken.append(report)
            raise OverflowError("too large")

        breaking = mock.patch.object(customerio_fake.Outbox, "_post", break_once)
        with breaking, self.assertLogs("customerio_fake", "ERROR"):
            self.send()
            self.flush()
        self.assertEqual(self.metrics(), ["delivered"])

    def test_a_reset_does_not_wait_for_an_endpoint(self) -> None:
        connecting, leave = threading.Event(), threading.Event()

        def hang(*_: Any) -> None:
            connecting.set()
            leave.wait(PATIENCE)
            raise OSError("no route")

        self.register("email_sent")
        with mock.patch.object(customerio_fake.Outbox, "_exchange", hang):
            self.send()
            self.assertTrue(connecting.wait(PATIENCE))
            self.assertIn("customerio-fake-webhooks", {t.name for t in threading.enumerate()})
            self.ok("POST", "/__parlel/reset")
            self.assertFalse(leave.is_set())
            leave.set()

    def test_redirects_are_not_followed(self) -> None:
        self.endpoint.statuses = [302]
        self.register("email_sent")
        self.send()
        self.assertEqual((self.flush(), len(self.endpoint.received)), (1, 1))

    def test_link_local_addresses_are_refused(self) -> None:
        for host in ("169.254.169.254", "[::ffff:169.254.169.254]", "[fe80::1]"):
            self.register("email_sent", host=host)
        self.send()
        self.flush()
        attempts = self.records("webhooks", "?metric=sent")[0]["attempts"]
        self.assertEqual(["link-local" in attempt["error"] for attempt in attempts], [True] * 3)

    def test_reports_are_listed_also_without_an_endpoint(self) -> None:
        self.send()
        rows = [(row["metric"], row["attempts"]) for row in self.records("webhooks")]
        self.assertEqual(rows, [("sent", []), ("delivered", [])])

    def test_a_subscription_is_reported_with_the_channel_that_led_to_it(self) -> None:
        self.register("customer_unsubscribed", "customer_subscribed")
        delivery_id = self.send()
        link, json_type = f"/unsubscribe/{delivery_id}", "application/json"
        self.assertEqual(self.call("GET", link, authorization="").status, 200)
        self.ok("POST", link, {"unsubscribe": False}, content_type=json_type)
        self.identify("1", unsubscribed=True)
        self.flush()
        events = [json.loads(body) for _, _, body in self.endpoint.received]
        self.assertEqual(
            [(event["object_type"], event["metric"]) for event in events],
            [("email", "unsubscribed"), ("email", "subscribed"), ("customer", "unsubscribed")],
        )
        for event in events:
            names = {"customer_id", "identifiers", "email_address"}
            self.assertEqual(event["data"].keys(), names)

    def data(self) -> list[Any]:
        """What was received, report by report."""
        self.flush()
        return [json.loads(body)["data"] for _, _, body in self.endpoint.received]

    def test_preferences_are_reported_whole_where_content_is_wanted(self) -> None:
        for with_content in (True, False):
            self.register("cio_subscription_preferences_changed", with_content=with_content)
        self.identify("1", cio_subscription_preferences={"topics": {"topic_1": True}})
        full, brief = self.data()
        self.assertEqual(json.loads(full.pop("content")), {"topics": {"topic_1": True}})
        self.assertEqual((full, brief["customer_id"]), (brief, "1"))

    def test_headers_are_reported_of_emails_that_have_some(self) -> None:
        self.register("email_sent", with_content=True)
        own = {"subject": "Hi", "body": "x", "from": "a@b.cd", "to": "a@example.com"}
        for more in ({}, {"headers": '[{"name": "X-A", "value": "1"}]'}):
            self.ok("POST", "/v1/send/email", {**own, **more, "identifiers": {"id": "1"}})
        plain, rich = self.data()
        self.assertNotIn("headers", plain)
        self.assertEqual(rich["headers"], {"X-A": ["1"]})

    def test_the_content_of_a_push_is_its_payload(self) -> None:
        self.register("push_sent", with_content=True)
        device = {"device": {"id": "t", "platform": "ios"}}
        self.ok("PUT", "/api/v1/customers/1/devices", device)
        texts = {"title": "Hi {{customer.id}}", "message": "m", "image_url": "https://x.example/i"}
        more = {"link": "app://x", "custom_data": {"a": "b"}}
        payload = {"ios": {"aps": {"alert": "raw"}}}
        for own in ({**texts, **more}, {"title": "t"}, {**texts, "custom_payload": payload}):
            message = {"transactional_message_id": 1, "identifiers": {"id": "1"}, **own}
            self.ok("POST", "/v1/send/push", message)
        image = {"image": "https://x.example/i"}
        expected = [{"title": "Hi 1", "body": "m", **more, **image}, {"title": "t"}, payload]
        self.assertEqual([json.loads(data["content"]) for data in self.data()], expected)

    def test_a_reset_stops_what_was_under_way(self) -> None:
        self.endpoint.statuses = [500]
        self.register("email_sent")
        self.send()
        self.flush()
        self.ok("POST", "/__parlel/reset")
        self.fake.workspace.agenda.advance(3601)
        self.assertEqual((self.flush(), len(self.endpoint.received)), (0, 1))


# ======================================================================================
# ==== §17 Exports and imports
# ======================================================================================


class Exports(FakeTest):
    EVERYBODY = {"filters": {"attribute": {"field": "cio_id", "operator": "exists"}}}

    def test_deliveries_of_six_months_or_of_a_year_in_a_range(self) -> None:
        now, day = self.fake.workspace.seconds(), 86_400
        made = [(days, now - days * day) for days in (10, 200, 360, 380)]
        rows = [{"id": f"m{n}", "created": at, "metrics": {"sent": at}} for n, at in made]
        letters = [{"id": 3, "name": "N", "contents": [{"id": 31}]}]
        messages = [{**row, "newsletter_id": 3, "customer_id": "1"} for row in rows]
        self.fake.seed({"newsletters": letters, "messages": messages})
        orders = [({}, 1), ({"start": now - 400 * day}, 3), ({"start": now - 300 * day}, 2),
                  ({"start": now - 205 * day, "end": now - 195 * day}, 1)]  # fmt: skip
        for order, total in orders:
            body = {"newsletter_id": 3, **order}
            number = self.ok("POST", "/v1/exports/deliveries", body)["export"]["id"]
            done = self.ok("GET", f"/v1/exports/{number}")["export"]
            self.assertEqual((done["status"], done["total"]), ("done", total), order)

    def download(self, number: int) -> list[dict[str, str]]:
        links = self.ok("GET", f"/v1/exports/{number}/download")
        self.assertEqual(links["url"], links["link"])
        path = links["url"].partition("localhost:4668")[2]
        reply = self.call("GET", path, authorization="")
        self.assertEqual(reply.status, 200)
        return list(csv.DictReader(io.StringIO(reply.body.decode())))

    def test_none_is_null(self) -> None:
        self.assertEqual(self.call("GET", "/v1/exports").body, b'{"exports":null}')

    def test_people_are_exported_as_they_are(self) -> None:
        self.identify("1", email="a@example.com", plan="pro, yearly")
        self.identify("2", n=1)
        export = self.ok("POST", "/v1/exports/customers", self.EVERYBODY)["export"]
        self.assertEqual((export["status"], export["total"]), ("pending", 0))
        export = self.ok("GET", f"/v1/exports/{export['id']}")["export"]
        self.assertEqual((export["status"], export["total"]), ("done", 2))
        first, second = self.download(export["id"])
        self.assertEqual((first["id"], first["plan"]), ("1", "pro, yearly"))
        self.assertEqual((second["id"], second["plan"], second["n"]), ("2", "", "1"))
        (listed,) = self.ok("GET", "/v1/exports")["exports"]
        self.assertEqual(listed["downloads"], 1)

    def test_deliveries_are_exported_by_their_parent(self) -> None:
        self.identify("1", plan="pro")
        message = {"to": "a@b.cd", "transactional_message_id": 3, "identifiers": {"id": "1"}}
        self.ok("POST", "/v1/send/email", message)
        self.ok("POST", "/v1/send/email", {**message, "transactional_message_id": 4})
        order = {"transactional_message_id": 3, "attributes": ["plan"]}
        export = self.ok("POST", "/v1/exports/deliveries", order)["export"]
        (row,) = self.download(export["id"])
        self.assertEqual((row["recipient"], row["plan"]), ("a@b.cd", "pro"))

    def exported(self, **order: Any) -> list[str]:
        number = self.ok("POST", "/v1/exports/deliveries", order)["export"]["id"]
        return [row["recipient"] for row in self.download(number)]

    def test_drafts_are_exported_on_request(self) -> None:
        message = {"transactional_message_id": 3, "identifiers": {"id": "1"}}
        self.ok("POST", "/v1/send/email", {**message, "to": "sent@b.cd"})
        self.ok("POST", "/v1/send/email", {**message, "to": "draft@b.cd", "queue_draft": True})
        order = {"transactional_message_id": 3}
        self.assertEqual(self.exported(**order), ["sent@b.cd"])
        self.assertEqual(self.exported(**order, drafts=False), ["sent@b.cd"])
        self.assertEqual(self.exported(**order, drafts=True), ["sent@b.cd", "draft@b.cd"])

    def test_deliveries_of_6_months_are_exported_and_12_at_most(self) -> None:
        workspace, day = self.fake.workspace, 86400
        message = {"transactional_message_id": 3, "identifiers": {"id": "1"}}
        for name, days in (("old", 250), ("middle", 150), ("new", 0)):
            self.ok("POST", "/v1/send/email", {**message, "to": f"{name}@b.cd"})
            workspace.agenda.advance(days * day)
        order: dict[str, Any] = {"transactional_message_id": 3}
        now = workspace.seconds()
        self.assertEqual(self.exported(**order), ["middle@b.cd", "new@b.cd"])
        self.assertEqual(self.exported(**order, start=1), ["middle@b.cd", "new@b.cd"])
        order = {**order, "start": str(now - 401 * day), "end": now - 40 * day}
        self.assertEqual(self.exported(**order), ["old@b.cd", "middle@b.cd"])

    def test_bad_orders_are_refused(self) -> None:
        rows: list[tuple[str, Any, str]] = [
            ("customers", {}, "filters"),
            ("customers", {"filters": {"nor": []}}, "nor"),
            ("customers", {"filters": {"and": []}}, "filters.and"),
            ("deliveries", {}, "newsletter_id"),
            ("deliveries", {"newsletter_id": 1, "start": "x"}, "start"),
            ("deliveries", {"newsletter_id": 1, "attributes": "x"}, "attributes"),
            ("deliveries", {"newsletter_id": 1, "metric": "loved"}, "undeliverable"),
            ("deliveries", {"newsletter_id": 1, "metric": ["sent"]}, "metric"),
            ("deliveries", {"newsletter_id": 1, "drafts": "true"}, "drafts"),
            ("deliveries", {"newsletter_id": 1, "template_id": "x"}, "template_id"),
        ]
        for kind, body, word in rows:
            self.assert_errors(self.call("POST", f"/v1/exports/{kind}", body), 400, word)
        self.assertEqual(self.ok("GET", "/v1/exports"), {"exports": None})

    def test_a_link_dies_after_15_minutes_and_cannot_be_forged(self) -> None:
        self.ok("PUT", "/__parlel/clock", {"freeze": True})
        self.ok("POST", "/v1/exports/customers", self.EVERYBODY)
        link = self.ok("GET", "/v1/exports/1/download")["url"].partition("4668")[2]
        forged = re.sub(r"expires=\d+", "expires=9999999999", link)
        self.assertEqual(self.call("GET", forged).status, 403)
        self.fake.workspace.agenda.advance(899)
        self.assertEqual(self.call("GET", link).status, 200)
        self.fake.workspace.agenda.advance(1)
        self.assert_errors(self.call("GET", link), 403, "expired")

    def test_unknown_exports_are_not_found(self) -> None:
        for path in ("/v1/exports/9", "/v1/exports/x", "/v1/exports/9/download"):
            self.assertEqual(self.call("GET", path).status, 404)


class Telling(socketserver.StreamRequestHandler):
    """Answers as its server says, byte for byte, and ends; a path that it lacks gets no answer."""

    server: TellingServer

    def handle(self) -> None:
        _, path, *_ = [*self.rfile.readline().decode().split(" "), "", ""]
        while self.rfile.readline().strip():
            pass
        self.server.asked.append(path)
        answer = self.server.answers.get(path)
        if answer is None:
            self.server.done.wait(PATIENCE)
        else:
            self.wfile.write(b"HTTP/1.1 " + answer)


class Fetching(SeededTest):
    """Files behind a URL: whatever is wrong with them is the caller's or the trigger's error."""

    ANSWERS = {
        "/good": b'200 OK\r\nContent-Length: 11\r\n\r\n[{"a":"b"}]',
        "/there": b"302 Found\r\nLocation: good\r\n\r\n",
        "/short": b"200 OK\r\nContent-Length: 100\r\n\r\nabc",
        "/chunks": b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        "/heads": b"200 OK\r\n" + b"X: y\r\n" * 150 + b"\r\n",
        "/long": b"200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        "/odd": b"x\r\n\r\n",
        "/gzip": b"200 OK\r\n\r\n\x1f\x8b" + b"x" * 40,
        "/round": b"302 Found\r\nLocation: /round\r\n\r\n",
        "/away": b"302 Found\r\nLocation: http://169.254.169.254/latest\r\n\r\n",
        "/file": b"302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
        "/closed": b"403 Forbidden\r\n\r\n",
        "/many": b"200 OK\r\n\r\n" + b"\n" * 100_100,
        "/lines": b"200 OK\r\n\r\n" + b"x\n" * 1100,
    }

    def setUp(self) -> None:
        super().setUp()
        self.host = TellingServer(("127.0.0.1", 0), Telling)
        self.host.answers, self.host.asked = self.ANSWERS, []
        self.host.done = threading.Event()
        thread = threading.Thread(target=self.host.serve_forever, args=(0.01,))
        thread.start()
        for clean in (self.host.server_close, thread.join, self.host.shutdown, self.host.done.set):
            self.addCleanup(clean)
        self.base = f"http://127.0.0.1:{self.host.server_address[1]}"

    def test_what_is_wrong_is_told(self) -> None:
        rows = [
            (f"{self.base}/short", "97 bytes too early"),
            (f"{self.base}/chunks", "can't be fetched"),
            (f"{self.base}/heads", "100 headers"),
            (f"{self.base}/long", "can't be fetched"),
            (f"{self.base}/odd", "BadStatusLine"),
            (f"{self.base}/gzip", "can't be fetched"),
            (f"{self.base}/round", "redirects more than 5 times"),
            (f"{self.base}/away", "link-local"),
            (f"{self.base}/file", "not an http or https URL"),
            (f"{self.base}/closed", "server responded with code 403 Forbidden"),
            (f"{self.base}/a b", "can't be fetched"),
            (f"{self.base}/\x01", "can't be fetched"),
            ("http://127.0.0.1:abc/", "abc"),
            ("http://127.0.0.1:99999/", "can't be fetched"),
            ("http://[::1/", "can't be fetched"),
            ("http://:80/", "not an http or https URL"),
            ("http://127.0.0.1:1/", "refused"),
            ("http://" + "a" * 300 + ".example/", "can't be fetched"),
        ]
        for url, words in rows:
            with self.subTest(url=url):
                with self.assertRaises(ApiError) as caught:
                    customerio_fake.fetched(url, "file")
                self.assertEqual(caught.exception.status, 400)
                self.assertTrue(caught.exception.message.startswith("file "))
                self.assertIn(words, caught.exception.message)

    def test_a_file_may_be_elsewhere(self) -> None:
        self.assertEqual(customerio_fake.fetched(f"{self.base}/there", "file"), b'[{"a":"b"}]')
        self.assertEqual(self.host.asked, ["/there", "/good"])

    def test_who_says_nothing_is_left_in_time(self) -> None:
        late = self.assertRaisesRegex(ApiError, "no answer within 0.1 seconds")
        with mock.patch.object(customerio_fake, "FILE_TIMEOUT", 0.1), late:
            customerio_fake.fetched(f"{self.base}/silent", "file")

    def test_no_spelling_of_a_link_local_address_is_reached(self) -> None:
        hosts = ["169.254.169.254", "169.254.43518", "2852039166", "0xA9FEA9FE", "0251.0376.0.1"]
        hosts += ["::ffff:169.254.169.254", "::169.254.169.254", "64:ff9b::a9fe:a9fe"]
        hosts += ["2002:a9fe:a9fe::1", "fe80::1", "fe80::1%1"]
        for host in hosts:
            with self.assertRaises((ValueError, OSError), msg=host) as caught:
                customerio_fake.places_of(host, 80)
            self.assertRegex(str(caught.exception), "link-local|Errno", host)
        for url in ("http://169.254.169.254/", "http://2852039166/", "http://[fe80::1]/"):
            with self.assertRaisesRegex(ApiError, "link-local"):
                customerio_fake.fetched(url, "file")

    def test_a_name_is_asked_for_once_and_its_address_reached(self) -> None:
        asked, port, real = [], self.host.server_address[1], socket.getaddrinfo

        def resolve(host: Any, *rest: Any, **more: Any) -> Any:
            if host != "rebound.example":
                return real(host, *rest, **more)
            asked.append(host)
            address = "127.0.0.1" if len(asked) == 1 else "169.254.169.254"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        with mock.patch.object(socket, "getaddrinfo", resolve):
            url = f"http://rebound.example:{port}/good"
            self.assertEqual(customerio_fake.fetched(url, "file"), b'[{"a":"b"}]')
            self.assertEqual(asked, ["rebound.example"])
            with self.assertRaisesRegex(ApiError, "link-local"):
                customerio_fake.fetched(url, "file")

    def test_the_error_is_the_callers_or_the_triggers(self) -> None:
        body = {"name": "c", "url": f"{self.base}/closed"}
        self.assert_errors(self.call("POST", "/v1/collections", body), 400, "url can't be fetched")
        path = "/v1/campaigns/20/triggers"
        rows = [
            ("closed", ["failed to download data file, server responded with code 403 Forbidden"]),
            ("many", None),
            ("lines", None),
        ]
        for number, (name, wanted) in enumerate(rows, 1):
            reply = self.call("POST", path, {"data_file_url": f"{self.base}/{name}"})
            self.assert_errors(reply, 422, f"trigger {number}")
            errors = self.fake.workspace.broadcasts[-1]["errors"]
            if wanted is not None:
                self.assertEqual(errors, wanted)
                continue
            self.assertEqual(len(errors), customerio_fake.MAX_ERRORS + 1)
            count = 100 if name == "lines" else customerio_fake.MAX_LINES + 1 - 1000
            self.assertEqual(errors[-1], f"and {count} further errors")
        order = {"name": "i", "type": "people", "identifier": "id"}
        for name, words in (("closed", "403 Forbidden"), ("many", "more than 100000 lines")):
            asked = {"import": {**order, "data_file_url": f"{self.base}/{name}"}}
            made = self.ok("POST", "/v1/imports", asked)["import"]
            row = self.ok("GET", f"/v1/imports/{made['id']}")["import"]
            self.assertEqual(row["state"], "failed")
            self.assertIn(words, row["error"])


# ======================================================================================
# ==== §18 Seeding
# ======================================================================================


class Seeding(SeededTest):
    def test_a_reset_returns_to_the_seed(self) -> None:
        self.identify("eve")
        self.ok("POST", "/__parlel/reset")
        self.assertEqual([p["id"] for p in self.records("customers")], ["ada", "bob"])
        self.assertEqual(self.ok("GET", "/v1/campaigns/1")["campaign"]["name"], "Welcome")

    def test_a_seed_may_say_what_time_it_is(self) -> None:
        clock = {"now": 1_900_000_000, "freeze": True}
        for _ in range(2):  # the same every time
            self.ok("POST", "/__parlel/seed", {"clock": clock, "customers": [{"id": "1"}]})
            self.assertEqual(self.records("customers")[0]["created_at"], 1_900_000_000)
            self.assertEqual(
                self.ok("PUT", "/__parlel/clock", {"advance": 60})["now"], 1_900_000_060
            )
        self.ok("POST", "/__parlel/reset", {"only": "state"})
        self.assertEqual(self.ok("GET", "/__parlel/clock")["now"], 1_900_000_060)
        self.ok("POST", "/__parlel/reset")
        self.assertEqual(self.ok("GET", "/__parlel/clock")["now"], 1_900_000_000)
        self.ok("POST", "/__parlel/seed", {"clock": {"now": 1_900_000_000}})
        self.assertFalse(self.ok("GET", "/__parlel/clock")["frozen"])
        rows: list[tuple[Any, str]] = [
            ({}, "clock: send at least one of freeze, now"),
            ({"frozen": True}, "clock.frozen is no field here; did you mean freeze?"),
            ({"now": -1}, "clock.now must be a number from 0"),
            (5, "clock must be an object, not a number"),
        ]
        for wrong, text in rows:
            with self.subTest(wrong):
                reply = self.call("POST", "/__parlel/seed", {"clock": wrong})
                self.assertEqual(reply.status, 400)
                self.assertIn(text, reply.json["meta"]["error"])
        self.assertFalse(self.ok("GET", "/__parlel/clock")["frozen"])

    def test_a_segment_that_asks_for_itself_is_the_same_wherever_it_is_asked_for(self) -> None:
        pro = {"attribute": {"field": "plan", "operator": "eq", "value": "pro"}}
        for conditions, count in (
            ({"or": [{"segment": {"id": 9}}, pro]}, 1),
            ({"not": {"segment": {"id": 9}}}, 2),
        ):
            loop = [{"id": 9, "name": "Loop", "conditions": conditions}]
            self.ok("POST", "/__parlel/seed", {**self.SEED, "segments": loop})
            self.assertEqual(self.ok("GET", "/v1/segments/9/customer_count")["count"], count)
            members = self.ok("GET", "/v1/segments/9/membership")["identifiers"]
            self.assertEqual(len(members), count)

    def test_a_field_that_would_be_lost_is_refused(self) -> None:
        rows = [
            (
                {"customers": [{"id": "1", "attributs": {}}]},
                "attributs",
                "did you mean attributes?",
            ),
            (
                {"customers": [{"customer": {"id": "1", "plan": "x"}}]},
                "plan",
                "there are id, email",
            ),
            ({"objects": [{"object_type_id": "1", "objectid": "2"}]}, "objectid", "object_id?"),
            ({"segments": [{"name": "A", "members": ["1"]}]}, "members", "there are id"),
            ({"messages": [{"campaign": 1}]}, "campaign", "did you mean campaign_id?"),
            ({"customer": []}, "customer", "did you mean customers?"),
            ({"segments": [{"name": "A", "ids": ["9"]}]}, "segments[0]", "name nobody here"),
            (None, "a seed document", "an example"),
        ]
        for seed, field, hint in rows:
            reply = self.call("POST", "/__parlel/seed", seed)
            self.assertEqual(reply.status, 400, seed)
            message = reply.json["meta"]["error"]
            self.assertTrue(field in message and hint in message, message)
        self.assertEqual(len(self.records("customers")), 2)

    @unittest.skipUnless(sys.implementation.name == "cpython", "nobody counts references")
    def test_a_reset_frees_what_was_there_without_the_collector(self) -> None:
        # The command line lets it look for cycles so rarely that resets must not leave any.
        self.ok("PUT", "/api/v1/customers/ada/devices", {"device": {"id": "t", "platform": "ios"}})
        self.ok("POST", "/api/v1/customers/ada/events", {"name": "signup"})
        world = self.fake.workspace
        kept: List[Any] = [*world.people, *world.events.rows]
        kept += [*world.deliveries.rows.values(), *world.devices.rows.values()]
        self.assertEqual(len({type(thing) for thing in kept}), 4)
        gone = weakref.ref(world)
        del world
        with without_collector():
            self.ok("POST", "/__parlel/reset")
            self.assertIsNone(gone())
            while kept:  # nothing else points to them any more
                thing = kept.pop()
                self.assertLessEqual(sys.getrefcount(thing), 2, thing)

    def test_a_new_seed_forgets_requests_and_faults(self) -> None:
        self.ok("POST", "/__parlel/faults", {"match": {"person": "x"}, "status": 500})
        self.identify("1")
        self.assertEqual(len(self.records("requests")), 1)
        self.ok("POST", "/__parlel/seed", {})
        self.assertEqual((self.records("requests"), self.records("faults")), ([], []))

    def test_a_seed_can_be_given_over_http(self) -> None:
        self.ok("POST", "/__parlel/seed", {"customers": [{"id": "eve"}]})
        self.assertEqual([p["id"] for p in self.records("customers")], ["eve"])

    def test_a_mistake_is_refused_whole_and_names_its_place(self) -> None:
        needed: dict[str, Any] = {"segments": {"name": "x"}, "exports": {"type": "x"},
                                  "triggers": {"broadcast_id": 1}, "campaigns": {}}  # fmt: skip
        rows: list[tuple[Any, str]] = [
            ({"campains": []}, "campains"),
            ({"campaigns": {}}, "campaigns must be a list"),
            ({"campaigns": [3]}, "campaigns[0]"),
            ({"campaigns": [{"id": "x"}]}, "campaigns[0].id"),
            ({"topics": [{"id": 1}, {"id": 1}]}, "topics[1].id"),
            ({"customers": [{"id": "a"}, {"plan": "x"}]}, "customers[1]"),
            ({"segments": [{"id": 1}]}, "segments[0].name"),
            ({"segments": [{"name": "x", "conditions": {"x": 1}}]}, "segments[0].conditions"),
            ({"snippets": [{"name": "x"}]}, "snippets[0]"),
            ({"objects": [{}]}, "objects[0]"),
            *(
                ({kind: [{**row, "id": id}]}, f"{kind}[0].id must be a number from 1 up")
                for kind, row in needed.items()
                for id in (0, -1)
            ),
            ({"messages": [{"created": "x"}]}, "messages[0]"),
            ({"messages": [{"created": 1e300}]}, "messages[0]"),
            ({"messages": [{"created": -5}]}, "messages[0]"),
            (
                {"reporting_webhooks": [{"endpoint": "http://x", "events": [{}]}]},
                "[0].events[0] must",
            ),
            (
                {
                    "objects": [
                        {
                            "object_type_id": 1,
                            "object_id": "a",
                            "relationships": [{"identifiers": {}}],
                        }
                    ]
                },
                "objects[0]",
            ),
        ]
        for document, word in rows:
            with self.subTest(document=document):
                self.assert_errors(self.call("POST", "/__parlel/seed", document), 400, word)
        self.assertEqual(len(self.records("customers")), 2)

    def test_a_field_of_a_wrong_type_is_refused_by_its_name(self) -> None:
        action = {"subject": "s", "body": "b"}
        device, person = {"id": "t", "platform": "ios"}, {"id": "1"}
        thing = {"object_type_id": 1, "object_id": "a"}
        rows: list[tuple[str, Any, str]] = [
            ("customers", {**person, "devices": [{**device, "id": [7]}]}, "devices[0].id"),
            ("customers", {**person, "devices": [{"id": "t"}]}, "devices[0].platform is required"),
            ("customers", {**person, "devices": "t"}, "devices must be a list"),
            ("customers", {**person, "attributes": [1]}, "attributes"),
            ("customers", {**person, "attributes": {"a": "b" * 1001}}, "'a' cannot be longer"),
            ("customers", {"id": {"a": 1}}, "id"),
            ("customers", {"attributes": {"plan": "x"}}, "needs an id or an email"),
            ("campaigns", {"actions": [{**action, "type": {}}]}, "actions[0].type"),
            ("campaigns", {"trigger_segment_ids": "x"}, "trigger_segment_ids"),
            ("campaigns", {"actions": [7]}, "actions[0]"),
            ("campaigns", {"created": 1e300}, "created"),
            ("campaigns", {"created": 253_402_300_800}, "created"),
            ("broadcasts", {"recipients": {"segment": {"id": "x"}}}, "recipients.segment.id"),
            ("newsletters", {"test_groups": [{"id": []}]}, "test_groups[0].id"),
            ("newsletters", {"test_groups": [{}]}, "test_groups[0].content_ids is required"),
            ("collections", {"data": True}, "data must be a list"),
            ("collections", {"content": [1]}, "content[0]"),
            ("snippets", {"name": "x"}, "value is required"),
            ("objects", {"object_type_id": "x", "object_id": "1"}, "object_type_id"),
            (
                "objects",
                {**thing, "relationships": [{"identifiers": {}}]},
                "needs an id or an email",
            ),
            (
                "objects",
                {**thing, "relationships": [{"identifiers": {"email": "a@b.cd"}}]},
                "relationships[0].identifiers: nobody has the email 'a@b.cd'",
            ),
            ("segments", {"id": -1, "name": "x"}, "id must be a number from 1 up"),
            ("activities", {"type": 5}, "type must be a string, not a number"),
            ("activities", {}, "type is required"),
            ("customers", 5, "must be an object, not a number"),
            ("messages", {"metrics": {"sent": "x"}}, "metrics.sent"),
            ("messages", {"campaign_id": "x"}, "campaign_id"),
            ("inbox_preview_credits", {"tier": "free"}, "credits_original is required"),
            ("segments", {"name": "x", "description": 7}, "description"),
            ("topics", {"name": ["x"]}, "name must be a string"),
            ("topics", {"id": "x"}, "id must be a number from 1 up"),
            ("topics", {"id": 0}, "id must be a number from 1 up"),
            ("object_types", {"id": ""}, "id must be a number from 1 up"),
            ("broadcasts", {"actions": [{**action, "attachments": 5}]}, "attachments must be an"),
            ("broadcasts", {"actions": [{**action, "attachments": {"a": "x"}}]}, "attachments.a"),
        ]
        for kind, row, words in rows:
            with self.subTest(kind=kind, row=row):
                reply = self.call("POST", "/__parlel/seed", {kind: [row]})
                self.assertEqual(reply.status, 400)
                message = reply.json["meta"]["error"]
                self.assertTrue(message.startswith(f"{kind}[0]"), message)
                self.assertIn(words, message)

    def test_what_has_no_number_gets_the_next_that_is_free(self) -> None:
        rows = [{"id": 2, "name": "b"}, {"name": "a"}, {"name": "c"}, {"name": "d"}]
        self.ok("POST", "/__parlel/seed", {"topics": rows})
        listed = self.ok("GET", "/v1/subscription_topics")["topics"]
        numbers = {row["name"]: row["id"] for row in listed}
        self.assertEqual(numbers, {"b": 2, "a": 1, "c": 3, "d": 4})

    def test_what_stands_there_twice_is_refused(self) -> None:
        rows = {"collections": "content", "reporting_webhooks": "events", "messages": "subject",
                "segments": "name", "exports": "type"}  # fmt: skip
        more = {"content": [], "events": [], "subject": "", "name": "x", "type": "customers"}
        for kind, name in rows.items():
            row = {"id": "m" if kind == "messages" else 1, name: more[name]}
            row = {**row, "endpoint": "http://x"} if kind == "reporting_webhooks" else row
            reply = self.call("POST", "/__parlel/seed", {kind: [row, row]})
            self.assert_errors(reply, 400, f"{kind}[1].id")

    def test_a_null_where_the_real_service_has_none_is_nothing(self) -> None:
        content = {"subject": "s", "body": "b", "cc": None, "type": None, "reply_to_id": None}
        rows = [{"id": 4, "name": "A", "contents": [content]}]
        self.ok("POST", "/__parlel/seed", {**self.SEED, "transactional": rows, "campaigns": []})
        (read,) = self.ok("GET", "/v1/transactional/4/contents")["contents"]
        self.assertEqual((read["type"], read["reply_to_id"]), ("email", None))
        body = {"transactional_message_id": 4, "to": "a@b.cd", "identifiers": {"id": "ada"}}
        self.ok("POST", "/v1/send/email", body)

    def test_an_accepted_seed_gives_an_accepted_snapshot(self) -> None:
        device = {"id": 7, "platform": "ios", "attributes": {"_last_status": "sent", "n": 1}}
        seeds: list[Any] = [
            {"customers": [{"id": "1", "devices": [device]}, {"id": 2, "unsubscribed": True}]},
            {"messages": [{"customer_id": 7, "subject": None, "metrics": None}]},
            {"segments": [{"name": "x", "conditions": None, "description": None, "tags": None}]},
            {"collections": [{"id": 3, "data": []}, {"name": "x"}]},
            {"inbox_preview_clients": [{"id": "ios", "client": "iPhone"}]},
            self.SEED,
        ]
        for seed in seeds:
            self.ok("POST", "/__parlel/seed", seed)
            self.ok("PUT", "/__parlel/state", self.ok("GET", "/__parlel/state"))
        self.ok("POST", "/__parlel/seed", seeds[0])
        (read,) = self.ok("GET", "/v1/customers/1/attributes")["customer"]["devices"]
        self.assertEqual(
            (read["id"], read["attributes"]), ("7", {"_last_status": "sent", "n": "1"})
        )

    def test_unknown_ids_are_accepted_until_their_kind_is_seeded(self) -> None:
        empty = Fake(Settings())
        for fake, status in ((empty, 200), (self.fake, 404)):
            self.fake = fake
            for kind in ("campaigns", "broadcasts", "newsletters", "transactional"):
                self.assertEqual(self.status("GET", f"/v1/{kind}/77"), status, kind)
        self.assertEqual(self.status("POST", "/v1/campaigns/77/triggers", {}), 404)
        message = {"to": "a@b.cd", "transactional_message_id": 77, "identifiers": {"id": "ada"}}
        self.assert_errors(self.call("POST", "/v1/send/email", message), 400, "not found")
        message = {**message, "transactional_message_id": "new", "auto_create": True}
        self.ok("POST", "/v1/send/email", message)
        names = [row["name"] for row in self.ok("GET", "/v1/transactional")["messages"]]
        self.assertEqual(names, ["Receipt", "new"])
        message = {**message, "to": "+15551234567"}
        for channel, name in (("sms", "receipt"), ("whatsapp", "other")):
            message = {**message, "transactional_message_id": name}
            self.assertEqual(self.status("POST", f"/v1/send/{channel}", message), 400)


# ======================================================================================
# ==== §19 Requests
# ======================================================================================


class Credentials(FakeTest):
    """Presence is checked; keys only where they are configured."""

    def test_wrong_credentials_are_refused_with_the_reason(self) -> None:
        basic = "Basic " + base64.b64encode(b"nocolon").decode()
        rows = [
            ("PUT", "/api/v1/customers/1", "", "missing"),
            ("PUT", "/api/v1/customers/1", "Bearer x", "wrong scheme"),
            ("PUT", "/api/v1/customers/1", "Basic !!!", "undecodable"),
            ("PUT", "/api/v1/customers/1", "Basic c2l0ZTp!rZXk=", "undecodable"),
            ("PUT", "/api/v1/customers/1", basic, "undecodable"),
            ("GET", "/v1/exports", "", "missing"),
            ("GET", "/v1/exports", TRACK, "wrong scheme"),
            ("PUT", "/api/v1/customers/1", "Basic c2l0ZTo=", "the API key, is empty"),
            ("GET", "/v1/exports", "Bearer ", "missing"),
        ]
        for method, path, authorization, reason in rows:
            with self.subTest(path=path, authorization=authorization):
                with self.assertLogs("customerio_fake", "WARNING"):
                    reply = self.call(method, path, {}, authorization=authorization)
                self.assertEqual(reply.status, 401)
                self.assertEqual(
                    reply.body, b'{\n  "meta": {\n    "error": "Unauthorized request"\n  }\n}\n'
                )
                self.assertIn(reason, reply.reason)
        self.assertEqual(self.records("customers"), [])

    def test_pipelines_says_it_in_the_words_its_clients_read(self) -> None:
        for authorization, reason in (("", "missing"), ("Digest x", "wrong scheme")):
            reply = self.call("POST", "/v1/identify", {}, authorization=authorization)
            self.assertEqual((reply.status, reply.json["code"]), (401, 401))
            self.assertEqual(reply.json["meta"]["error"], "Unauthorized request")
            self.assertIn(reason, reply.reason)

    def test_track_names_its_realm_and_app_does_not(self) -> None:
        realm = 'Basic realm="Customer.io edge event collection"'
        track = self.call("PUT", "/api/v1/customers/1", {}, authorization="")
        self.assertEqual(track.headers["www-authenticate"], realm)
        self.assertNotIn(
            "www-authenticate", self.call("GET", "/v1/exports", authorization="").headers
        )

    def test_pipelines_takes_bearer_too(self) -> None:
        self.ok("POST", "/v1/identify", {"userId": "1"}, authorization="Bearer write-key")

    def test_the_url_safe_alphabet_counts_as_base64(self) -> None:
        pair = base64.urlsafe_b64encode(
            "s\u00ff\u00fe?:k>>>".encode("latin-1").decode("latin-1").encode()
        )
        self.identify("1")
        reply = self.call("DELETE", "/api/v1/customers/1", authorization="Basic " + pair.decode())
        self.assertEqual(reply.status, 200)


class ConfiguredCredentials(FakeTest):
    settings = {"site_id": "site", "api_key": "key", "app_key": "app", "write_key": "write"}

    def test_only_the_configured_keys_are_let_in(self) -> None:
        def basic(pair: str) -> str:
            return "Basic " + base64.b64encode(pair.encode()).decode()

        rows = [
            ("PUT", "/api/v1/customers/1", basic("site:key"), 200),
            ("PUT", "/api/v1/customers/1", basic("site:other"), 401),
            ("PUT", "/api/v1/customers/1", basic("other:key"), 401),
            ("GET", "/v1/exports", "Bearer app", 200),
            ("GET", "/v1/exports", "Bearer apq", 401),
            ("POST", "/v1/identify", basic("write:"), 200),
            ("POST", "/v1/identify", "Bearer write", 200),
            ("POST", "/v1/identify", basic("wrong:"), 401),
        ]
        for method, path, authorization, status in rows:
            with self.subTest(path=path, authorization=authorization):
                reply = self.call(method, path, {}, authorization=authorization)
                self.assertEqual(reply.status, status)
                self.assertEqual("unknown key" in reply.reason, status == 401)

    def test_a_key_is_compared_as_it_was_meant(self) -> None:
        self.fake = Fake(Settings(app_key=" schl\u00fcssel\n"))
        for header in ("schl\u00fcssel", "schl\u00fcssel".encode().decode("latin-1")):
            reply = self.call("GET", "/v1/exports", authorization=f"Bearer {header}")
            self.assertEqual(reply.status, 200, reply.reason)
        self.fake = Fake(Settings(app_key="\udcff"))  # a byte in the environment that isn't UTF-8
        reply = self.call("GET", "/v1/exports", authorization="Bearer x")
        self.assertIn("unknown key", reply.reason)


class Routing(FakeTest):
    """Every path leads somewhere, also the wrong ones."""

    def test_an_unknown_path_names_the_nearest_routes(self) -> None:
        reply = self.call("POST", "/v1/send/emial", {})
        self.assertEqual(reply.status, 404)
        self.assertIn("POST /v1/send/email", reply.json["meta"]["error"])

    def test_a_wrong_base_url_is_told_the_right_path(self) -> None:
        identify, event = (
            "PUT /api/v1/customers/{identifier}",
            "POST /api/v1/customers/{identifier}",
        )
        rows = [
            ("PUT", "/v1/customers/0b5f1c9e-1111-2222-3333-444455556666", identify),
            ("PUT", "/customers/1", identify),
            ("PUT", "/api/v1/customers/1/", identify),
            ("POST", "/v1/customers/1/events", event + "/events"),
            ("GET", "/api/v1/customers/1/attributes", "GET /v1/customers/{customer_id}/attributes"),
            ("POST", "/api/v1/send/email", "POST /v1/send/email"),
        ]
        for method, path, meant in rows:
            with self.subTest(path=path):
                reply = self.call(method, path, {})
                self.assertEqual(reply.status, 404)
                self.assertIn(f"did you mean {meant}", reply.json["meta"]["error"])

    def test_three_routes_are_named_at_most(self) -> None:
        for path in ("/metrics", "/v1/export"):
            text = self.call("GET", path).json["meta"]["error"]
            self.assertEqual(text.count(" or GET /v1/"), 2, text)

    def test_a_wrong_path_is_compared_with_few(self) -> None:
        """With all of the table it took 20 ms, in which nobody else was answered."""
        import difflib

        compare = mock.Mock(wraps=difflib.get_close_matches)
        with mock.patch("difflib.get_close_matches", compare):
            reply = self.call("GET", "/v1/customers/5/attribute")
        self.assertIn("or GET /v1/customers/{customer_id}/attributes", reply.json["meta"]["error"])
        self.assertLessEqual(len(compare.call_args[0][1]), 12)

    def test_a_wrong_method_is_told_the_right_ones(self) -> None:
        reply = self.call("PATCH", "/api/v1/customers/1")
        self.assertEqual(reply.status, 405)
        self.assertEqual(reply.headers["allow"], "DELETE, OPTIONS, PUT")
        self.assertIn("PUT", reply.json["meta"]["error"])

    def test_double_slashes_of_base_urls_are_forgiven(self) -> None:
        for path in ("//api/v1/customers/1", "/api/v1//customers/1", "//api//v1//customers/1"):
            self.ok("PUT", path, {"path": path}, authorization=TRACK)
        self.assertEqual(self.person("1")["attributes"], {"path": path})

    def test_an_empty_id_is_no_reason_to_take_the_next_segment_for_it(self) -> None:
        for path in ("/api/v1/customers//devices", "/api/v1/customers/", "/api/v1/customers//"):
            self.assertIn(self.call("PUT", path, {}).status, (404, 405), path)
        self.assertEqual(self.records("customers"), [])

    def test_ids_are_decoded_after_the_path_is_cut(self) -> None:
        rows = [
            ("a%2Fb", "a/b"),
            ("a+b", "a+b"),
            ("a%20b", "a b"),
            ("%C3%A9", "\u00e9"),
            ("\u00e9t", "\u00e9t"),
            ("a%252Fb", "a%2Fb"),
            ("shop:1", "shop:1"),
            ("a%3Fb%26", "a?b&"),
        ]
        for escaped, identifier in rows:
            with self.subTest(identifier=identifier):
                self.ok("PUT", f"/api/v1/customers/{escaped}", {})
                self.assertEqual(self.records("customers")[-1]["id"], identifier)

    def test_broken_escapes_are_refused(self) -> None:
        for segment in ("%FF", "%zz", "%", "%00", "a%0"):
            reply = self.call("PUT", f"/api/v1/customers/{segment}", {})
            self.assert_errors(reply, 400, "percent")
        self.assertEqual(self.records("customers"), [])

    def test_options_gives_browsers_leave_where_the_real_api_does(self) -> None:
        rows = [
            ("/api/v1/customers/1", "*"),
            ("/v1/identify", "*"),
            ("/v1/send/email", "https://fly.customer.io"),
            ("/__parlel/reset", None),
            ("/nowhere", None),
        ]
        for path, origin in rows:
            with self.subTest(path=path):
                reply = self.call("OPTIONS", path, authorization="")
                self.assertEqual((reply.status, reply.body), (204, b""))
                self.assertEqual(reply.headers.get("access-control-allow-origin"), origin)

    def test_health_and_metadata_need_no_credentials(self) -> None:
        self.assertEqual(self.call("GET", "/health", authorization="").json, {"status": "ok"})
        about = self.call("GET", "/", authorization="").json
        self.assertEqual(about["apis"], ["track", "app", "pipelines"])
        self.assertEqual(about["version"], customerio_fake.__version__)
        self.assertEqual(about["name"], "customerio_fake")

    def test_routes_are_listed(self) -> None:
        listed = self.ok("GET", "/__parlel/routes")
        self.assertEqual(listed["count"], len(ROUTES))
        self.assertIn("Add or update a person.", [row["summary"] for row in listed["routes"]])


class ControlGuard(FakeTest):
    """Web pages can't read or wipe a developer's fake; programs can."""

    def test_who_may_use_the_control_endpoints(self) -> None:
        rows: list[tuple[dict[str, str], int]] = [
            ({}, 200),
            ({"sec_fetch_mode": "cors"}, 200),
            ({"sec_fetch_site": "same-origin", "origin": "http://localhost:4668"}, 200),
            ({"sec_fetch_site": "none"}, 200),
            ({"host": "customerio:4668"}, 200),
            ({"host": "host.docker.internal:4668"}, 200),
            ({"host": "192.168.1.7:4668"}, 200),
            ({"host": "[::1]:4668"}, 200),
            ({"host": ""}, 200),
            ({"origin": "http://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"sec_fetch_site": "cross-site"}, 403),
            ({"sec_fetch_site": "same-site"}, 403),
            ({"host": "evil.example:4668"}, 403),
        ]
        self.identify("1")
        for headers, status in rows:
            with self.subTest(headers=headers):
                self.assertEqual(self.call("GET", "/__parlel/customers", **headers).status, status)
        self.call("POST", "/__parlel/reset", origin="http://evil.example")
        self.assertEqual(len(self.records("customers")), 1)

    def test_a_page_under_a_public_name_writes_nothing_through_any_api(self) -> None:
        rows = [("evil.example", 403), ("cdp.customer.io", 200), ("localhost:4668", 200)]
        writes = [
            ("PUT", "/api/v1/customers/1", {}),
            ("POST", "/v1/identify", {"userId": "1"}),
            (
                "POST",
                "/v1/customers",
                {"filter": {"attribute": {"field": "a", "operator": "exists"}}},
            ),
        ]
        for host, status in rows:
            for method, path, body in writes:
                for fields in ({"origin": "http://x"}, {"sec_fetch_site": "same-origin"}):
                    with self.subTest(host=host, path=path, fields=fields):
                        reply = self.call(method, path, body, host=host, **fields)
                        self.assertEqual(reply.status, status)
            self.assertEqual(len(self.records("customers")), int(status == 200))
            self.fake.reset("")
        self.assertEqual(self.call(*writes[0], host="evil.example").status, 200)  # a program
        self.assertEqual(self.call("GET", "/e/v/x", host="evil.example", origin="x").status, 404)

    def test_names_that_the_settings_give_us_may_be_written_to_by_pages(self) -> None:
        self.fake = Fake(Settings(allow_host="a.example", public_url="https://b.example/cio"))
        for host, status in (("a.example", 200), ("b.example:443", 200), ("c.example", 403)):
            reply = self.call("POST", "/v1/identify", {"userId": "1"}, host=host, origin="http://x")
            self.assertEqual(reply.status, status, host)

    def test_what_somebody_has_written_comes_in_a_sandbox(self) -> None:
        for type in ("image/png", "application/pdf"):
            self.fake.workspace.shelves["assets"].add({"_type": type, "_data": ""})
        message = {"to": "a@b.co", "identifiers": {"id": "1"}, "subject": "s", "from": "u@b.co"}
        sent = self.ok("POST", "/v1/send/email", {**message, "body": "<script>1</script>"})
        views = f"/__parlel/deliveries/{sent['delivery_id']}"
        asset = "/v1/assets/files/1/content"
        for path in (*(f"{views}/{part}" for part in ("html", "text", "eml")), asset):
            with self.subTest(path):
                headers = self.call("GET", path).headers
                self.assertEqual(headers["x-content-type-options"], "nosniff")
                self.assertRegex(headers["content-security-policy"], r"^sandbox\b(?!.*scripts)")
        view = self.call("GET", f"/e/v/{sent['delivery_id']}").headers
        self.assertEqual(view, self.call("GET", f"{views}/html").headers)
        document = self.call(
            "GET", "/v1/assets/files/2/content"
        ).headers  # browsers refuse it there
        self.assertNotIn("content-security-policy", document)

    def test_control_answers_carry_no_cors_permission(self) -> None:
        headers = self.call("GET", "/__parlel/customers").headers
        self.assertNotIn("access-control-allow-origin", headers)

    def test_a_public_name_can_be_allowed(self) -> None:
        self.fake = Fake(Settings(allow_host="fake.example.com"))
        reply = self.call("GET", "/__parlel/customers", host="fake.example.com:80")
        self.assertEqual(reply.status, 200)


class Journal(FakeTest):
    """Every request, with its answer."""

    def test_an_entry_tells_all_and_keeps_the_secret(self) -> None:
        self.identify("a%20b", plan="pro")
        (entry,) = self.records("requests")
        expected = {
            "id": 1,
            "method": "PUT",
            "path": "/api/v1/customers/a%20b",
            "decoded_path": "/api/v1/customers/a b",
            "operation": "PUT /api/v1/customers/{identifier}",
            "api": "track",
            "person": "a b",
            "status": 200,
            "body": {"plan": "pro"},
            "response": {},
        }
        self.assertEqual({**entry, **expected}, entry)
        self.assertEqual(entry["headers"]["authorization"], "Basic ***")

    def test_an_entry_tells_an_empty_parameter_and_milliseconds(self) -> None:
        self.call("GET", "/v1/segments?a=&b=1")
        entry = self.fake.journal.rows[0]
        self.assertEqual(entry.record()["query"], {"a": "", "b": "1"})
        self.assertEqual(entry._replace(took=0.0123456).record()["duration_ms"], 12.346)

    def test_filters_since_and_unmatched(self) -> None:
        self.identify("1", plan="pro")
        self.ok("POST", "/api/v1/customers/1/events", {"name": "signup"})
        self.call("GET", "/nowhere")
        rows = [
            ("?body.name=signup", [2]),
            ("?person=1", [1, 2]),
            ("?status=404", [3]),
            ("?since=1", [2, 3]),
            ("?since=1&limit=1", [2]),
            ("/unmatched", [3]),
        ]
        for query, expected in rows:
            found = self.ok("GET", f"/__parlel/requests{query}")["requests"]
            self.assertEqual([row["id"] for row in found], expected, query)
        self.assertEqual(self.call("GET", "/__parlel/requests?since=x").status, 400)

    def test_a_filter_that_nothing_can_fit_is_refused(self) -> None:
        rows = [
            ("requests?operation=track", "no operation is 'track'"),
            ("requests?api=tracks", "did you mean track?"),
            ("deliveries?state=send", "did you mean sent"),
        ]
        for query, text in rows:
            self.assert_errors(self.call("GET", f"/__parlel/{query}"), 400, text)

    def test_a_curl_command_has_the_keys_of_a_further_workspace(self) -> None:
        world = self.ok("POST", "/__parlel/workspaces", {"name": "w"})
        pair = f"{world['site_id']}:{world['api_key']}".encode()
        rows = [
            ("PUT", "/api/v1/customers/1", TRACK, "Basic " + base64.b64encode(pair).decode()),
            ("GET", "/v1/segments", APP, f"Bearer {world['app_key']}"),
            ("POST", "/v1/identify", "Bearer x", f"Bearer {world['write_key']}"),
        ]
        for number, (method, path, given, shown) in enumerate(rows, 1):
            self.ok(method, f"/@w{path}", {"userId": "1"}, authorization=given)
            curl = self.call("GET", f"/@w/__parlel/requests/{number}/curl").body.decode()
            self.assertIn(f"authorization: {shown}'", curl)
            self.assertIn(f"/@w{path}", curl)

    def test_keys_of_a_curl_command_work_where_any_do(self) -> None:
        for key, shown in (("", "Basic c2l0ZTprZXk="), ("key", "Basic ***")):
            self.fake = Fake(Settings(api_key=key))
            self.identify("1")
            curl = self.call("GET", "/__parlel/requests/1/curl").body.decode()
            self.assertIn(f"authorization: {shown}", curl)

    def test_curl_repeats_a_request(self) -> None:
        self.ok("PUT", "/api/v1/customers/1", {"a": "it's"}, content_type="application/json")
        words = shlex.split(self.call("GET", "/__parlel/requests/1/curl").body.decode())
        self.assertEqual(words[:3], ["curl", "-X", "PUT"])
        self.assertIn('{"a": "it\'s"}', words)
        self.assertEqual(self.call("GET", "/__parlel/requests/9/curl").status, 404)

    def test_filters_by_event_workspace_and_parts_of_json(self) -> None:
        world = self.ok("POST", "/__parlel/workspaces", {"name": "w"})
        event = {"name": " signup ", "data": {"plan": "pro", "n": 1}}
        for path in ("/api/v1", "/@w/api/v1"):
            self.ok("POST", f"{path}/customers/1/events", event, authorization=TRACK)
        self.ok("POST", "/v1/batch", {"batch": [{"type": "track", "userId": "1", "event": "x"}]})
        subset = quote('{"body": {"data": {"plan": "pro"}}, "status": 200}')
        rows = [("?event=signup", 1), ("?event=x", 1), ("?event=y", 0), (f"?match={subset}", 1)]
        for query, count in rows:
            self.assertEqual(self.ok("GET", f"/__parlel/requests{query}")["count"], count, query)
        (row,) = self.ok("GET", "/__parlel/requests?workspace=w")["requests"]
        self.assertEqual((row["workspace"], row["events"]), (world["name"], ["signup"]))
        for query in ("match=x", "match=[]", "match=%7B%22x%22:1%7D", "x=1"):
            self.assertEqual(self.call("GET", f"/__parlel/requests?{query}").status, 400, query)

    def test_packed_bodies_are_shown_unpacked_and_secrets_not_at_all(self) -> None:
        body = gzip.compress(b'{"name": "signup"}')
        headers = {"content_encoding": "gzip", "cookie": "session=SECRET; a=b"}
        self.ok("POST", "/api/v1/customers/1/events", body, **headers)
        self.call("GET", "/v1/segments", authorization="sk_live_SECRET")
        first, second = self.records("requests")
        self.assertEqual((first["body"], first["events"]), ({"name": "signup"}, ["signup"]))
        self.assertEqual(first["headers"]["authorization"], "Basic ***")
        self.assertEqual(first["headers"]["content-encoding"], "gzip")
        self.assertEqual(second["headers"]["authorization"], "***")
        curl = self.call("GET", "/__parlel/requests/1/curl").body.decode()
        self.assertIn("""--data-raw '{"name": "signup"}'""", curl)
        self.assertNotIn("SECRET", curl + json.dumps([first, second]))

    def test_long_bodies_still_name_their_events(self) -> None:
        person = {"type": "person", "action": "event", "name": "signup", "identifiers": {"id": "1"}}
        batch = {"batch": [{**person, "attributes": {"n": n, "x": "y" * 100}} for n in range(600)]}
        self.ok("POST", "/api/v2/batch", batch)
        packed = gzip.compress(json.dumps(batch).encode())
        self.ok("POST", "/api/v2/batch", packed, content_encoding="gzip")
        self.assertEqual(self.ok("GET", "/__parlel/requests?event=signup")["count"], 2)

    def test_long_bodies_are_cut(self) -> None:
        most = 64 * 1024
        self.call("POST", "/nowhere", b"x" * (most + 1))
        self.call("POST", "/nowhere", gzip.compress(b"y" * (most * 2)), content_encoding="gzip")
        kept = [entry.request.body for entry in self.fake.journal.rows]
        self.assertEqual(kept, [b"x" * most, b"y" * most])
        for number in (1, 2):
            self.assertEqual(self.call("GET", f"/__parlel/requests/{number}/curl").status, 404)

    def test_a_workspace_that_there_is_not_shows_in_the_default_one(self) -> None:
        self.call("PUT", "/@gone/api/v1/customers/1", {})
        (row,) = self.ok("GET", "/__parlel/requests/unmatched?limit=1")["requests"]
        self.assertEqual((row["status"], row["workspace"]), (404, "gone"))

    def test_it_is_bounded(self) -> None:
        self.fake = Fake(Settings(journal=3))
        for number in range(5):
            self.identify(str(number))
        self.assertEqual([row["id"] for row in self.records("requests")], [3, 4, 5])


class Workspaces(FakeTest):
    """Workspaces beside the default one see nothing of each other."""

    def add(self, **body: Any) -> Any:
        return self.ok("POST", "/__parlel/workspaces", body)

    def keys(self, world: Any, path: str) -> str:
        """The Authorization header of a workspace for one of the APIs."""
        if path.startswith("/api/"):
            pair = f"{world['site_id']}:{world['api_key']}"
            return "Basic " + base64.b64encode(pair.encode()).decode()
        if path in ("/v1/identify", "/v1/track"):
            return "Basic " + base64.b64encode(f"{world['write_key']}:".encode()).decode()
        return "Bearer " + str(world["app_key"])

    def inside(self, world: Any, method: str, path: str, body: Any = None) -> Reply:
        return self.call(method, path, body, authorization=self.keys(world, path))

    def test_the_keys_are_like_the_services(self) -> None:
        world = self.add(name="w")
        for key in customerio_fake.WORKSPACE_KEYS:
            self.assertRegex(world[key], "^[0-9a-f]{20}$")

    def test_the_keys_say_whose_a_call_is(self) -> None:
        one, two = self.add(name="one"), self.add()
        self.assertEqual(self.inside(one, "PUT", "/api/v1/customers/1", {"n": 1}).status, 200)
        body = {"userId": "1", "traits": {"n": 2}}
        self.assertEqual(self.inside(two, "POST", "/v1/identify", body).status, 200)
        self.identify("1", n=3)
        for world, n in ((one, "1"), (two, "2")):
            read = self.inside(world, "GET", "/v1/customers/1/attributes").json
            self.assertEqual(read["customer"]["attributes"]["n"], n)
        self.assertEqual(self.attributes("1")["n"], "3")
        names = [row["name"] for row in self.ok("GET", "/__parlel/workspaces")["workspaces"]]
        self.assertEqual(names, ["one", two["name"]])

    def test_each_has_its_own_lists_journal_faults_clock_and_reset(self) -> None:
        one = self.add(name="one")
        self.inside(one, "PUT", "/api/v1/customers/1", {})
        self.ok("PUT", "/__parlel/clock?workspace=one", {"freeze": True, "now": 2000000000})
        self.ok("POST", "/__parlel/faults?workspace=one", {"status": 503})
        self.assertEqual(self.inside(one, "PUT", "/api/v1/customers/2", {}).status, 503)
        self.assertEqual(self.identify("9").status, 200)
        self.assertNotEqual(self.ok("GET", "/__parlel/clock")["now"], 2000000000)
        self.assertEqual([row["id"] for row in self.records("customers")], ["9"])
        for query in ("?workspace=one", "?workspace=one&id=1", "?limit=5&workspace=one"):
            self.assertEqual([row["id"] for row in self.records("customers", query)], ["1"], query)
        self.assertEqual(len(self.records("requests", "?workspace=one")), 2)
        self.assertEqual(len(self.records("requests")), 1)
        self.ok("POST", "/__parlel/reset?workspace=one")
        self.assertEqual(self.records("customers", "?workspace=one"), [])
        self.assertEqual(len(self.records("customers")), 1)

    def test_links_lead_back_to_their_workspace(self) -> None:
        one = self.add(name="one")
        message = {"to": "a@b.co", "identifiers": {"id": "1"}, "subject": "s", "from": "u@b.co"}
        message["body"] = '<a href="https://example.com/x">x</a>'
        self.assertEqual(self.inside(one, "POST", "/v1/send/email", message).status, 200)
        sent = self.records("deliveries", "?workspace=one")[0]
        html = self.call("GET", f"/@one/__parlel/deliveries/{sent['delivery_id']}/html").body
        found = re.search(r'href="http://localhost:4668(/@one/e/c/[^"]+)"', html.decode())
        assert found is not None, html
        self.assertEqual(self.call("GET", found[1], authorization="").status, 302)
        self.assertIn("clicked", self.records("deliveries", "?workspace=one")[0]["metrics"])

    def test_the_mobile_batch_has_its_key_in_the_body(self) -> None:
        one = self.add(name="one")
        batch = {"writeKey": one["write_key"], "batch": [{"type": "identify", "userId": "7"}]}
        self.assertEqual(self.call("POST", "/v1/b", batch, authorization="").status, 200)
        call = {"writeKey": one["write_key"], "userId": "8"}
        self.assertEqual(self.call("POST", "/v1/i", call, authorization="").status, 200)
        self.assertEqual(len(self.records("customers", "?workspace=one")), 2)
        self.assertEqual(self.records("customers"), [])
        path = f"/v1/projects/{one['write_key']}/settings"
        settings = self.call("GET", path, authorization="").json["integrations"]
        host = settings["Customer.io Data Pipelines"]["apiHost"]
        self.assertEqual(host, "localhost:4668/@one/v1")

    def test_a_seed_of_its_own_and_a_wrong_one(self) -> None:
        self.add(name="one", seed={"customers": [{"id": "5"}]})
        self.assertEqual(len(self.records("customers", "?workspace=one")), 1)
        rows = [({"name": "a/b"}, "name"), ({"name": 5}, "name"), ({"seed": []}, "seed")]
        rows.append(({"name": "x", "seed": {"customers": [{}]}}, "customers[0]"))
        for body, word in rows:
            reply = self.call("POST", "/__parlel/workspaces", body)
            self.assertEqual((reply.status, word in reply.body.decode()), (400, True), reply.body)
        self.assertEqual(self.call("POST", "/__parlel/workspaces", {"name": "one"}).status, 409)
        self.assertEqual(self.ok("GET", "/__parlel/workspaces")["count"], 1)

    def test_a_wrong_secret_and_an_unknown_name(self) -> None:
        one = self.add(name="one")
        wrong = {**one, "api_key": "wrong"}
        self.assertEqual(self.inside(wrong, "PUT", "/api/v1/customers/1", {}).status, 401)
        for path in ("/__parlel/customers?workspace=two", "/@two/__parlel/customers"):
            reply = self.call("GET", path)
            self.assertEqual(reply.status, 404)
            self.assertIn("no workspace 'two'; there are one", reply.body.decode())

    def test_a_name_that_is_no_workspace_never_means_the_default_one(self) -> None:
        rows = [("", "/@two"), ("?workspace=two", ""), ("?workspace=", ""), ("", "/@")]
        self.identify("1")
        for others in (0, 1):
            for query, prefix in rows:
                path = f"{prefix}/__parlel/reset{query}"
                request = Request("POST", path, {"host": "localhost"})
                self.assertFalse(self.fake.is_heavy(request))  # as the server's loop asks first
                self.assertEqual(self.fake.handle(request).status, 404, (others, path))
            self.add(name=f"other-{others}")
        self.assertEqual(len(self.records("customers")), 1)

    @unittest.skipUnless(sys.implementation.name == "cpython", "nobody counts references")
    def test_dropping_one_frees_it(self) -> None:
        one = self.add(name="one")
        world = weakref.ref(self.fake.others["one"].workspace)
        self.inside(one, "PUT", "/api/v1/customers/1", {})
        with without_collector():
            self.ok("DELETE", "/__parlel/workspaces/one")
            self.assertIsNone(world())
        self.assertEqual(self.call("DELETE", "/__parlel/workspaces/one").status, 404)

    def test_a_late_call_with_a_key_of_a_dropped_one_is_refused(self) -> None:
        one = self.add(name="one")
        self.ok("DELETE", "/__parlel/workspaces/one")
        self.add(name="one")
        paths = [("PUT", "/api/v1/customers/1"), ("POST", "/v1/identify"), ("GET", "/v1/segments")]
        for method, path in paths:
            reply = self.inside(one, method, path, {"userId": "1"})
            self.assertEqual(reply.status, 401, path)
            self.assertIn("dropped", reply.json["meta"]["error"])
        for query in ("", "?workspace=one"):
            self.assertEqual(self.ok("GET", f"/__parlel/customers{query}")["count"], 0)

    def test_a_request_for_one_that_was_dropped_meanwhile_is_not_for_the_default_one(self) -> None:
        self.add(name="w")
        self.identify("1")
        path = "/__parlel/reset?workspace=w"
        request = Request("POST", path, {"host": "localhost"})
        self.fake.is_heavy(request)
        self.ok("DELETE", "/__parlel/workspaces/w")
        self.assertEqual(self.fake.handle(request).status, 404)
        self.assertEqual(len(self.records("customers")), 1)

    def test_a_key_in_the_body_says_it_too(self) -> None:
        world = self.add(name="w")
        self.ok("POST", "/__parlel/faults?workspace=w", {"status": 503, "after": 1})
        batch = [{"type": "identify", "userId": "1"}]
        body = {"writeKey": world["write_key"], "batch": batch}
        statuses = [self.call("POST", "/v1/b", body, authorization="").status for _ in range(2)]
        self.assertEqual(statuses, [200, 503])
        self.assertEqual(len(self.records("requests", "?workspace=w")), 2)
        self.assertEqual(self.records("requests"), [])

    def test_who_names_it_in_the_path_needs_no_keys_of_its_own(self) -> None:
        for site_id, other, own in (("", 200, 200), ("s", 401, 200)):
            self.fake = Fake(Settings(site_id=site_id))
            world = self.add(name="w")
            path = "/@w/api/v1/customers/1"
            self.assertEqual(self.call("PUT", path, {}, authorization=TRACK).status, other)
            pair = self.keys(world, "/api/")
            self.assertEqual(self.call("PUT", path, {}, authorization=pair).status, own)
            self.assertEqual(self.call("PUT", path, {}, authorization="").status, 401)

    def test_closing_twice_leaves_a_namesake_alone(self) -> None:
        cio = CustomerioServer(port=0)
        self.assertRegex(cio.workspace().fake.name + cio.workspace().fake.name, "w-.*w-")
        first = cio.workspace("w")
        cio.renew()
        with cio.workspace("w"):
            first.close()
            self.assertEqual(list(cio.fake.others), ["w"])
            with self.assertRaisesRegex(RuntimeError, "workspace 'w' has been dropped"):
                first.assert_no_deliveries()
        self.assertEqual(list(cio.fake.others), [])

    def test_what_was_under_way_in_a_dropped_one_ends(self) -> None:
        self.add(name="one")
        other = self.fake.others["one"]
        self.ok("DELETE", "/__parlel/workspaces/one")
        self.assertTrue(other.ended)
        self.assertTrue(other.workspace.agenda.closed)

    def test_all_can_be_dropped_at_once(self) -> None:
        for name in ("one", "two"):
            self.add(name=name)
        self.assertEqual(self.ok("DELETE", "/__parlel/workspaces"), {"removed": 2})
        self.assertEqual(self.ok("GET", "/__parlel/workspaces")["count"], 0)

    def test_bad_bodies_of_control_calls_are_refused_with_an_example(self) -> None:
        self.identify("1")
        rows = ["POST reset", "POST workspaces", "POST seed", "POST assert", "POST faults"]
        for method, path in map(str.split, [*rows, "PUT clock"]):
            bodies: list[Any] = [[], b"{", b'"text"', {"zodiac": 1}]
            for body in bodies:
                with self.subTest(path, body=body):
                    reply = self.call(method, f"/__parlel/{path}", body)
                    self.assertEqual(reply.status, 400)
                    if path != "seed" or not isinstance(body, dict):  # which names what there is
                        text = reply.json["meta"]["error"]
                        example = re.split("an example: |as in ", text)[1]
                        self.assertIsInstance(json.loads(example), dict)
        self.assertEqual(len(self.records("customers")), 1)

    def test_a_clock_that_is_reset_runs_again(self) -> None:
        self.ok("PUT", "/__parlel/clock", {"now": 5_000_000, "freeze": True})
        self.ok("POST", "/__parlel/reset", {"only": "clock"})
        clock = self.ok("GET", "/__parlel/clock")
        self.assertFalse(clock["frozen"])
        self.assertGreater(clock["now"], 1_700_000_000)

    def test_strange_fields_are_refused(self) -> None:
        self.identify("1")
        rows = [("reset?onyl=faults", None), ("reset", {"only": "x"}), ("workspaces", {"nam": "x"})]
        for path, body in rows:
            self.assertEqual(self.call("POST", f"/__parlel/{path}", body).status, 400, path)
        self.ok("POST", "/__parlel/reset", {"only": "faults"})
        self.assertEqual(len(self.records("customers")), 1)


class OtherPrograms(SeededTest):
    """Requests as integrations of other makers send them."""

    def test_they_are_answered(self) -> None:
        ada = {"type": "person", "identifiers": {"id": "ada"}}
        acme = {"type": "object", "identifiers": {"object_type_id": "1", "object_id": "acme"}}
        device = {"id": "t", "platform": "ios", "last_used": 1700000000}
        hook = {"name": "n", "endpoint": "https://x.example/", "events": ["email_opened"]}
        upsert = {"email": "n@example.com", "created_at": 1700000000.5, "data": {"plan": "pro"}}
        rows: list[tuple[str, str, Any]] = [
            # n8n: bodies also with GET and DELETE, the App API under its older beginning
            ("PUT", "/api/v1/customers/7", upsert),
            ("DELETE", "/api/v1/customers/7", {"id": 7}),
            ("POST", "/api/v1/customers/ada/events", {"name": "e", "data": {"type": "page"}}),
            ("POST", "/api/v1/events", {"name": "e", "data": {}}),
            ("POST", "/api/v1/segments/1/add_customers", {"id": 1, "ids": ["ada", "bob"]}),
            ("GET", "/v1/api/campaigns", {}),
            ("GET", "/v1/api/campaigns/1/metrics?period=weeks", {"steps": 2, "type": "email"}),
            ("GET", "/v1/api/reporting_webhooks", {}),
            ("POST", "/v1/api/reporting_webhooks", hook),
            # singer and airbyte taps, ingestr: lists, and what hangs on each of their rows
            ("GET", "/v1/campaigns/1/actions", None),
            ("GET", "/v1/newsletters?limit=100&start=", None),
            ("GET", "/v1/newsletters/30/test_groups", None),
            ("GET", "/v1/activities?limit=100&start=", None),
            ("POST", "/v1/customers/attributes", {"ids": []}),
            # Segment's destination and RudderStack: v2, also in batches, and the calls of v1
            ("POST", "/api/v2/entity", {**ada, "action": "event", "name": "e", "id": "m1",
                                        "attributes": {"n": 1}, "timestamp": 1700000000}),
            ("POST", "/api/v2/batch", {"batch": [
                {**ada, "action": "identify", "attributes": {"anonymous_id": "a"}},
                {**acme, "action": "identify", "attributes": {"name": "Acme"},
                 "cio_relationships": [{"identifiers": {"id": "ada"}}]},
                {**acme, "action": "identify_anonymous", "attributes": {},
                 "cio_relationships": [{"identifiers": {"anonymous_id": "b"}}]},
            ]}),
            ("POST", "/api/v1/merge_customers", {"primary": {"id": "ada"},
                                                 "secondary": {"id": "bob"}}),
            ("PUT", "/api/v1/customers/ada/devices", {"device": device}),
            ("DELETE", "/api/v1/customers/ada/devices/t", None),
        ]  # fmt: skip
        for method, path, body in rows:
            reply = self.call(method, path, body, content_type="application/json")
            self.assertEqual(reply.status, 200, (method, path, reply.body))

    def test_identifiers_that_are_none_are_answered_with_what_there_is(self) -> None:
        who = {"type": "person", "action": "identify", "identifiers": {"anonymous_id": "a"}}
        reply = self.call("POST", "/api/v2/entity", who)
        self.assert_errors(reply, 400, "exactly one of: id, email, cio_id")
        self.assertNotIn("setting", reply.body.decode())
        reply = self.call("POST", "/api/v2/entity", {**who, "identifiers": {"phone": "+15550100"}})
        self.assert_errors(reply, 400, "is a setting: --phone")


class SuccessHeaders(FakeTest):
    """What every answer carries, as it was measured."""

    def test_track_and_app(self) -> None:
        track = {"access-control-allow-origin": "*", "status": "200 OK",
                 "content-type": "application/json; charset=utf-8",
                 "cache-control": "no-cache, no-store, must-revalidate, max-age=0"}  # fmt: skip
        self.assertEqual(self.identify("1").headers, track)
        refused = self.call("PUT", "/api/v1/customers/1", [])
        self.assertEqual((refused.status, "status" in refused.headers), (400, False))
        app = self.call("GET", "/v1/segments").headers
        measured = {
            "access-control-allow-origin": "https://fly.customer.io",
            "access-control-allow-credentials": "true",
            "access-control-max-age": "7200", "cache-control": "must-revalidate,no-cache,no-store",
            "expires": "0", "pragma": "no-cache", "x-frame-options": "SAMEORIGIN",
            "x-content-type-options": "nosniff", "x-xss-protection": "1; mode=block",
            "referrer-policy": "no-referrer-when-downgrade",
        }  # fmt: skip
        self.assertEqual({**app, **measured}, app)
        self.assertIn("x-workspace-id", app["access-control-allow-headers"])


class NamedInRequests(FakeTest):
    """Whom and which events the journal finds in a request."""

    def test_people_and_events(self) -> None:
        entity = {"type": "person", "action": "event", "identifiers": {"email": "x@y.zz"}}
        rows: List[Tuple[str, str, Any, Any, List[str]]] = [
            ("PUT", "/api/v1/customers/a%20b", {}, "a b", []),
            ("POST", "/api/v2/entity", {**entity, "name": " n "}, "x@y.zz", ["n"]),
            ("POST", "/v1/track", {"userId": 7, "event": "e"}, "7", ["e"]),
            ("POST", "/v1/track", {"event": "e"}, None, ["e"]),
            ("POST", "/v1/track", [], None, []),
        ]
        for method, path, body, person, events in rows:
            self.call(method, path, body)
            entry = self.records("requests")[-1]
            self.assertEqual((entry["person"], entry["events"]), (person, events), (path, body))


class FaultTest(FakeTest):
    """Helpers for rules of what goes wrong."""

    def fail(self, msg: Any = None, **rule: Any) -> Any:
        """Add a rule, unless it is unittest that calls."""
        if not rule:
            return super().fail(msg)
        return self.ok("POST", "/__parlel/faults", rule)["id"]

    def statuses(self, count: int, person: str = "1") -> List[int]:
        return [self.identify(person).status for _ in range(count)]


class Faults(FaultTest):
    """Which requests go wrong, and how, without a socket."""

    def test_responses_come_one_after_the_other(self) -> None:
        rule = {"responses": [{"status": 503, "retry_after": 2}, {"status": 429}]}
        self.ok("POST", "/__parlel/faults", {"match": {"path": "/v1/segments"}, **rule})
        asked = [self.call("GET", "/v1/segments") for _ in range(3)]
        self.assertEqual([reply.status for reply in asked], [503, 429, 200])
        self.assertEqual(asked[0].headers["retry-after"], "2")
        self.assertFalse(self.records("faults")[0]["active"])
        wrongs: List[Any] = [
            {**rule, "status": 500}, {"responses": [{}]}, {"responses": [{"times": 1}]}
        ]  # fmt: skip
        for wrong in wrongs:
            reply = self.call("POST", "/__parlel/faults", wrong)
            self.assertEqual(reply.status, 400, wrong)
            self.assertIn("responses", reply.json["meta"]["error"])
        self.ok("POST", "/__parlel/faults", {"responses": [{"status": 503}]})  # one is enough
        effects = "status or exactly one other effect is needed: reset, empty, truncate, hang"
        self.assert_errors(self.call("POST", "/__parlel/faults", {"match": {}}), 400, effects)

    def test_errors_come_in_the_words_of_their_api(self) -> None:
        text = "Service Unavailable"
        rows: List[Tuple[str, str, Any]] = [
            ("PUT", "/api/v1/customers/1", {"meta": {"errors": [text]}}),
            ("POST", "/v1/send/email", {"meta": {"error": text}}),
            ("POST", "/api/v2/entity", {"meta": {"error": text}}),
            ("GET", "/v1/exports", {"errors": [{"detail": text, "status": "503"}]}),
            ("POST", "/v1/track", {"code": 503, "message": text}),
        ]
        self.fail(status=503, retry_after=2)
        for method, path, body in rows:
            reply = self.call(method, path, {})
            self.assertEqual((reply.status, {**reply.json, **body}), (503, reply.json), path)
            self.assertEqual(reply.headers["retry-after"], "2")
            self.assertEqual(reply.reason, "fault 1: status, before")
        self.assertEqual(self.records("customers"), [])

    def test_every_status_and_a_body_of_your_own(self) -> None:
        rows: List[Tuple[Dict[str, Any], bytes]] = [
            ({"status": 401}, b'{\n  "meta": {\n    "error": "Unauthorized request"\n  }\n}\n'),
            ({"status": 202}, b"{}\n"),
            *(({"status": status}, b"") for status in (204, 205, 304)),
            ({"status": 502, "body": "<h1>Bad Gateway</h1>"}, b"<h1>Bad Gateway</h1>"),
            ({"status": 500, "body": {"a": 1}}, b'{\n  "a": 1\n}\n'),
        ]
        for rule, body in rows:
            with self.subTest(rule):
                self.fail(times=1, **rule)
                reply = self.identify("1")
                self.assertEqual((reply.status, reply.body), (rule["status"], body))
                self.assertNotIn("retry-after", reply.headers)
        self.fail(status=522)
        self.assertEqual(self.identify("1").json, {"meta": {"errors": ["status 522"]}})

    def test_before_the_write_and_after_it(self) -> None:
        self.fail(status=500, match={"person": "1"})
        self.fail(status=500, when="after", match={"person": "2"})
        self.assertEqual((self.statuses(1, "1"), self.statuses(1, "2")), ([500], [500]))
        self.assertEqual([row["id"] for row in self.records("customers")], ["2"])

    def test_after_a_refusal_or_what_is_no_number(self) -> None:
        self.fail(status=503, when="after", times=2)
        self.assertEqual(self.call("PUT", "/api/v1/customers/1", b"[").status, 503)
        self.assertEqual(self.call("PUT", "/api/v1/customers/1", b'{"a": NaN}').status, 503)
        self.assertEqual(self.call("PUT", "/api/v1/customers/1", b"[").status, 400)
        self.assertEqual(self.records("customers"), [])

    def test_how_long_a_latency_is(self) -> None:
        rows = [
            ({"latency": 3}, [3, 3, 3]), ({"latency": 3, "jitter": 2}, [1, 3, 5]),
            ({"latency": 1, "jitter": 2}, [0, 1, 3]), ({"status": 503}, [0, 0, 0]),
        ]  # fmt: skip
        for rule, delays in rows:
            for chance, delay in zip((0, 0.5, 1), delays):
                fault = customerio_fake.Fault(1, rule, frozenset())
                with mock.patch.object(customerio_fake.Fault, "_chance", return_value=chance):
                    self.assertEqual(fault.delay(), delay, (rule, chance))
        self.fail(latency=60)
        with mock.patch.object(self.fake, "ending") as ending:
            ending.wait.return_value = True
            self.identify("1")
        ending.wait.assert_called_once_with(0.1)  # so soon it sees that its rule is gone

    def test_chance_alone_decides_until_a_rule_is_spent(self) -> None:
        rows = [(0, 0, False), (0, 0.01, True), (0.5, 0.5, False), (0.99, 1, True)]
        for chance, probability, fires in rows:
            fault = customerio_fake.Fault(1, {"probability": probability}, frozenset())
            with mock.patch.object(customerio_fake.Fault, "_chance", return_value=chance):
                self.assertEqual(fault.fires(), fires, (chance, probability))
        once = customerio_fake.Fault(1, {"times": 1}, frozenset())
        self.assertEqual([once.fires() for _ in range(3)], [True, False, False])
        self.assertEqual((once.matched, once.fired), (1, 1))

    def test_each_response_in_turn_draws_a_delay_of_its_own(self) -> None:
        rule = {"responses": [{"latency": 1, "jitter": 1}] * 3}
        fault = customerio_fake.Fault(1, rule, frozenset())
        delays = {fault.stroke().delay() for _ in range(3) if fault.fires()}
        self.assertEqual(len(delays), 3)

    def test_times_every_and_after(self) -> None:
        rows = [
            ({"times": 2}, [503, 503, 200, 200, 200, 200, 200]),
            ({"after": 2}, [200, 200, 503, 503, 503, 503, 503]),
            ({"every": 3}, [200, 200, 503, 200, 200, 503, 200]),
            ({"after": 1, "every": 2, "times": 2}, [200, 200, 503, 200, 503, 200, 200]),
        ]
        for rule, expected in rows:
            with self.subTest(rule):
                self.ok("DELETE", "/__parlel/faults")
                self.fail(status=503, **rule)
                self.assertEqual(self.statuses(7), expected)

    def test_probability_follows_from_the_seed(self) -> None:
        runs = []
        for seed in (1, 1, 2):
            self.ok("DELETE", "/__parlel/faults")
            self.fail(status=503, probability=0.5, seed=seed)
            runs.append(self.statuses(40))
        self.assertEqual(runs[0], runs[1])
        self.assertNotEqual(runs[0], runs[2])
        self.assertIn(runs[0].count(503), range(10, 31))
        self.ok("DELETE", "/__parlel/faults")
        self.fail(status=503, probability=0)
        self.assertEqual(self.statuses(20), [200] * 20)

    def test_one_rule_after_the_other_makes_a_plan(self) -> None:
        self.fail(status=503, times=2)
        self.fail(status=429, times=1)
        self.assertEqual(self.statuses(4), [503, 503, 429, 200])
        counts = [(row["matched"], row["fired"]) for row in self.records("faults")]
        self.assertEqual(counts, [(2, 2), (1, 1)])

    def test_an_operation_its_beginning_or_a_pattern(self) -> None:
        track = "PUT /api/v1/customers/{identifier}"
        rows = [
            (track, [True, False, False]),  # and not .../devices, though it begins so
            ("POST /v1/send", [False, False, True]),
            ("P* */[de][em]*", [False, True, True]),
            ("", [True, True, True]),
        ]
        for operation, expected in rows:
            with self.subTest(operation):
                self.ok("POST", "/__parlel/reset")
                self.fail(status=503, match={"operation": operation} if operation else {})
                replies = [
                    self.identify("1"),
                    self.call("PUT", "/api/v1/customers/1/devices", {}),
                    self.call("POST", "/v1/send/email", {}),
                ]
                self.assertEqual([reply.status == 503 for reply in replies], expected)

    def test_the_method_and_the_path(self) -> None:
        self.fail(status=503, match={"method": "delete"})
        self.fail(status=500, match={"path": "/api/v1/customers/a b/*"})
        self.assertEqual(self.call("DELETE", "/api/v1/customers/1").status, 503)
        self.assertEqual(self.identify("a%20b").status, 200)
        self.assertEqual(self.call("POST", "/api/v1/customers/a%20b/events", {}).status, 500)

    def test_a_person_by_any_of_their_identifiers(self) -> None:
        self.identify("1", email="Ada@example.com")
        cio_id = self.person("1")["cio_id"]
        event = {"name": "signup"}
        send = {"to": "x@example.com", "identifiers": {"id": "1"}}
        requests: List[Tuple[str, str, Any]] = [
            ("PUT", "/api/v1/customers/ada@example.com", {}),
            ("POST", f"/api/v1/customers/cio_{cio_id}/events", event),
            ("POST", "/api/v2/entity", {"type": "person", "identifiers": {"id": "1"}}),
            ("POST", "/api/v2/batch", {"batch": [{"identifiers": {"email": "ADA@example.com"}}]}),
            ("POST", "/v1/send/email", send),
            ("GET", "/v1/customers?email=ada@example.com", None),
            ("POST", "/v1/identify", {"userId": "1"}),
            ("POST", "/api/v1/merge_customers", {"primary": {"id": "2"}, "secondary": {"id": 1}}),
        ]
        for person in ("1", "ada@example.com", cio_id):
            self.fail(status=503, match={"person": person})
            for method, path, body in requests:
                self.assertEqual(self.call(method, path, body).status, 503, path)
            self.assertEqual(self.identify("2").status, 200)
            self.ok("DELETE", "/__parlel/faults")

    def test_an_event_by_its_name(self) -> None:
        self.identify("1")
        self.fail(status=503, match={"event": "signup"})
        item = {"type": "person", "action": "event", "identifiers": {"id": "1"}}
        requests: List[Tuple[str, str, Any]] = [
            ("POST", "/api/v1/customers/1/events", {"name": "%s"}),
            ("POST", "/api/v1/events", {"name": "%s", "anonymous_id": "a"}),
            ("POST", "/api/v2/entity", {**item, "name": "%s"}),
            ("POST", "/api/v2/batch", {"batch": [{**item, "name": "%s"}]}),
            ("POST", "/v1/track", {"userId": "1", "event": "%s"}),
            ("POST", "/v1/batch", {"batch": [{"type": "track", "userId": "1", "event": "%s"}]}),
        ]
        for method, path, body in requests:
            for name, status in (("signup", 503), ("signups", 200)):
                with self.subTest(path=path, name=name):
                    raw = json.dumps(body).replace("%s", name).encode()
                    self.assertEqual(self.call(method, path, raw).status, status)
        self.assertEqual(self.identify("1", name="signup", event="signup").status, 200)

    def test_the_control_endpoints_never_go_wrong(self) -> None:
        self.fail(status=503)
        for path in ("/health", "/", "/__parlel/faults", "/__parlel/customers"):
            self.ok("GET", path)
        self.assertEqual(self.records("faults")[0]["matched"], 0)

    def test_wrong_credentials_come_first(self) -> None:
        self.fail(status=503)
        with self.assertLogs("customerio_fake", "WARNING"):
            reply = self.call("PUT", "/api/v1/customers/1", {}, authorization="")
        self.assertEqual(reply.status, 401)

    def test_what_happens_on_the_wire_stands_on_the_response(self) -> None:
        for effect in ("reset", "empty", "hang"):
            for when, people in (("before", 0), ("after", 1)):
                with self.subTest(effect=effect, when=when):
                    self.ok("POST", "/__parlel/reset")
                    self.fail(when=when, **{effect: True})
                    headers = {"authorization": TRACK}
                    request = Request("PUT", "/api/v1/customers/1", headers, b"{}")
                    response = self.fake.handle(request)
                    self.assertEqual((response.status, response.body), (0, b""))
                    self.assertEqual(getattr(response.fault, "effect", None), effect)
                    self.assertEqual(len(self.records("customers")), people)

    def test_the_journal_shows_what_went_wrong(self) -> None:
        self.fail(status=503, times=1)
        self.fail(reset=True, when="after", times=1)
        self.statuses(3)
        rows = [(row["status"], row["fault"], row["reason"]) for row in self.records("requests")]
        wrong = [(503, 1, "fault 1: status, before"), (0, 2, "fault 2: reset, after")]
        self.assertEqual(rows, [*wrong, (200, None, None)])

    def test_latency_waits_and_goes_with_other_effects(self) -> None:
        for rule, least, status in (
            ({"latency": 0.05}, 0.05, 200),
            ({"latency": 0.05, "status": 503}, 0.05, 503),
            ({"latency": 0.05, "when": "after"}, 0.05, 200),
            ({"latency": 0.05, "jitter": 0.02, "seed": 3}, 0.03, 200),
        ):
            with self.subTest(rule):
                self.fail(times=1, **rule)
                begun = time.monotonic()
                self.assertEqual(self.identify("1").status, status)
                self.assertGreaterEqual(time.monotonic() - begun, least)

    def test_jitter_spreads_around_the_latency_and_follows_from_the_seed(self) -> None:
        rule = {"latency": 1, "jitter": 0.5, "seed": 7}
        runs = []
        for _ in range(2):
            fault = customerio_fake.add_fault(self.fake.faults, rule)
            runs.append([fault.delay() for _ in range(100) if fault.fires()])
        self.assertEqual(*runs)
        self.assertTrue(0.5 <= min(runs[0]) < 0.7 and 1.3 < max(runs[0]) <= 1.5)
        fault = customerio_fake.add_fault(self.fake.faults, {"latency": 0.1, "jitter": 1})
        self.assertEqual(min(fault.delay() for _ in range(50) if fault.fires()), 0)

    def test_what_holds_up_ends_when_the_rule_goes(self) -> None:
        statuses: list[int] = []
        for method, path in (("DELETE", "faults"), ("POST", "reset")):
            self.fail(latency=60)
            thread = threading.Thread(target=lambda: statuses.append(self.identify("1").status))
            thread.start()
            eventually(lambda: self.records("faults")[-1]["fired"] == 1)
            self.ok(method, f"/__parlel/{path}")
            thread.join(10)
        self.assertEqual(statuses, [200, 200])

    def test_a_rule_may_name_the_workspace_that_it_is_about(self) -> None:
        self.ok("POST", "/__parlel/workspaces", {"name": "w"})
        self.fail(status=503, match={"workspace": "w"})
        statuses = [
            self.call("PUT", f"{path}/api/v1/customers/1", {}, authorization=TRACK).status
            for path in ("", "/@w")
        ]
        self.assertEqual(statuses, [200, 503])
        reply = self.call("POST", "/__parlel/faults", {"status": 503, "match": {"workspace": "x"}})
        self.assert_errors(reply, 400, "match.workspace is unknown: there is no workspace 'x'")

    def test_spellings_make_no_difference(self) -> None:
        self.identify("1", email="ada@example.com")
        cio_id = self.person("1")["cio_id"]
        rows: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
            ({"path": "/api/v1/customers/*"}, "//api/v1//customers/1/events", {"name": "x"}),
            ({"event": "signup"}, "/api/v1/customers/1/events", {"name": " signup "}),
            ({"person": f"cio_{cio_id}"}, "/api/v1/customers/1/events", {"name": "x"}),
            ({"person": cio_id}, "/api/v1/customers/ada@example.com/events", {"name": "x"}),
        ]
        for match, path, body in rows:
            with self.subTest(match):
                self.ok("DELETE", "/__parlel/faults")
                self.fail(status=503, match=match)
                self.assertEqual(self.call("POST", path, body, authorization=TRACK).status, 503)

    def test_rules_are_listed_counted_and_removed(self) -> None:
        first = self.fail(status=503, times=1)
        second = self.fail(hang=True, match={"person": "nobody"})
        self.assertEqual(self.statuses(2), [503, 200])
        rows = {row["id"]: row for row in self.records("faults")}
        self.assertEqual((rows[first]["fired"], rows[first]["active"]), (1, False))
        self.assertEqual((rows[second]["matched"], rows[second]["active"]), (0, True))
        self.assertEqual(self.ok("DELETE", f"/__parlel/faults/{first}")["fired"], 1)
        self.assert_errors(self.call("DELETE", f"/__parlel/faults/{first}"), 404, "no fault '1'")
        self.assertEqual(self.ok("DELETE", "/__parlel/faults"), {"removed": 1})
        self.assertEqual((self.records("faults"), self.fake.faults.armed), ([], ()))

    def test_a_reset_takes_the_rules_away(self) -> None:
        self.fail(status=503)
        self.ok("POST", "/__parlel/reset")
        self.assertEqual((self.statuses(1), self.records("faults")), ([200], []))

    def test_only_what_may_go_wrong_needs_a_thread(self) -> None:
        def heavy(method: str, path: str) -> bool:
            return self.fake.is_heavy(Request(method, path, {}))

        self.assertFalse(heavy("PUT", "/api/v1/customers/1"))
        self.fail(status=503, times=1, match={"operation": "PUT /api/v1/customers/{identifier}"})
        self.assertTrue(heavy("PUT", "/api/v1/customers/1"))
        self.assertFalse(heavy("DELETE", "/api/v1/customers/1"))
        self.assertFalse(heavy("GET", "/health"))
        self.statuses(1)
        self.assertFalse(heavy("PUT", "/api/v1/customers/1"))


class BadFaults(FaultTest):
    """A rule that can't be is refused with the field's name and an example."""

    def test_what_a_field_must_be_and_an_example(self) -> None:
        count = "must be a whole number from {} to 1000000000"
        rows: list[tuple[str, str, Any]] = [
            ("times", count.format(1), {"status": 503, "times": 2}),
            ("every", count.format(1), {"status": 503, "every": 3}),
            ("after", count.format(0), {"status": 503, "after": 1}),
            ("probability", "must be a number from 0 to 1", {"status": 503, "probability": 0.5}),
            ("seed", "must be a whole number from 0 to 1000000000000000",
             {"status": 503, "seed": 7}),
            ("status", "must be a whole number from 200 to 599", {"status": 503}),
            ("latency", "must be a number from 0 to 3600", {"status": 503, "latency": 0.5}),
            ("jitter", "must be a number from 0 to 3600",
             {"status": 503, "latency": 0.5, "jitter": 0.1}),
            ("reset", "must be true", {"reset": True}),
            ("empty", "must be true", {"empty": True}),
            ("hang", "must be true", {"hang": True}),
            ("truncate", count.format(0), {"truncate": 10}),
            ("trickle", "must be a number from 1 to 1000000000", {"trickle": 100}),
            ("responses", "must be a list of at least one entry, not an object",
             {"responses": [{"status": 503}, {"reset": True}]}),
        ]  # fmt: skip
        for name, must, example in rows:
            with self.subTest(name):
                reply = self.call("POST", "/__parlel/faults", {**example, name: {}})
                shown = json.dumps(example, separators=(",", ":"))
                self.assertEqual(reply.json["meta"]["error"], f"{name} {must}, as in {shown}")

    def test_the_field_is_named(self) -> None:
        rows: List[Any] = [
            ({}, "status or"),
            ({"status": 503, "reset": True}, "status or"),
            ({"statu": 503}, "statu is no field"),
            ({"match": {"persn": "1"}, "status": 503}, "match.persn is no field"),
            ({"match.person": "1", "status": 503}, "match.person is no field"),
            ({"match": "x", "status": 503}, "match must"),
            ({"match": {"person": 1}, "status": 503}, "match.person must"),
            ({"match": {"operation": "PUT /nowhere"}, "status": 503}, "match.operation fits none"),
            ({"match": {"operation": "("}, "status": 503}, "match.operation fits none"),
            ({"match": {"method": "PURGE"}, "status": 503}, "match.method fits none"),
            ({"responses": []}, "responses must be a list of at least one entry, not []"),
            ({"status": 99}, "status must"),
            ({"status": "503"}, "status must"),
            ({"status": 503, "times": 0}, "times must"),
            ({"status": 503, "every": True}, "every must"),
            ({"status": 503, "after": -1}, "after must"),
            ({"status": 503, "probability": 1.1}, "probability must"),
            ({"status": 503, "seed": "x"}, "seed must"),
            ({"status": 503, "when": "during"}, "when must"),
            ({"status": 503, "retry_after": []}, "retry_after must"),
            ({"hang": True, "retry_after": 1}, "retry_after goes with status"),
            ({"hang": True, "body": ""}, "body goes with status"),
            ({"hang": True, "jitter": 1}, "jitter goes with latency"),
            ({"latency": -1}, "latency must"),
            ({"latency": 1, "jitter": None}, "jitter must"),
            ({"reset": False}, "reset must"),
            ({"empty": 1}, "empty must"),
            ({"hang": "yes"}, "hang must"),
            ({"truncate": 1.5}, "truncate must"),
            ({"trickle": 0}, "trickle must"),
            ({"trickle": 9, "when": "before"}, "when must be after"),
        ]
        for rule, words in rows:
            with self.subTest(rule):
                reply = self.call("POST", "/__parlel/faults", rule)
                self.assert_errors(reply, 400, words, "as in {")
                example = reply.json["meta"]["error"].rpartition("as in ")[2]
                self.ok("POST", "/__parlel/faults", json.loads(example))
        self.assert_errors(self.call("POST", "/__parlel/faults", []), 400, "JSON object")

    def test_every_example_is_a_rule(self) -> None:
        self.ok("POST", "/__parlel/workspaces", {"name": "worker-1"})
        fields = customerio_fake.FAULT_FIELDS
        for name in (*fields.checks, *(f"match.{name}" for name in customerio_fake.FAULT_MATCHES)):
            with self.subTest(name):
                error = fields.exemplified(customerio_fake.invalid("is shown", name)).message
                self.ok("POST", "/__parlel/faults", json.loads(error.rpartition("as in ")[2]))

    def test_a_near_miss_is_hinted_at(self) -> None:
        match = {"operation": "POST /v1/send/emial"}
        reply = self.call("POST", "/__parlel/faults", {"match": match, "status": 503})
        self.assert_errors(reply, 400, "did you mean POST /v1/send/email")


class Quick(unittest.TestCase):
    """Which operations the loop answers itself, because they take no time."""

    def test_families_and_their_parts_are_read_and_listed_at_once(self) -> None:
        family = r"/v1/(campaigns|broadcasts|newsletters|transactional)(/{\w+})?"
        pattern = re.compile(family + r"(/(actions|contents|test_groups)(/{\w+})?)?")
        rows = [row for row in ROUTES if row.method == "GET" and pattern.fullmatch(row.path)]
        self.assertGreater(len(rows), 12)
        self.assertEqual([row.path for row in rows if row.heavy], [])
        counted = [row for row in ROUTES if re.search("/v1/.*/metrics(/links)?$", row.path)]
        self.assertEqual([row.path for row in counted if not row.heavy], [])


class Limits(FakeTest):
    """Queries, credentials and rules at their limits."""

    def test_a_query_has_a_hundred_fields_at_most(self) -> None:
        self.ok("GET", "/v1/sender_identities?" + "&".join(["a=1"] * 100))
        reply = self.call("GET", "/v1/sender_identities?" + "&".join(["a=1"] * 101))
        self.assert_errors(reply, 400, "the query string has more than 100 fields")
        reply = self.call("GET", "/v1/sender_identities?a=%ff")
        self.assert_errors(reply, 400, "not percent-encoded UTF-8")

    def test_both_halves_of_a_pair_are_needed(self) -> None:
        rows = [
            (":key", "missing: the user name is empty"),
            ("site:", "missing: the password"),
            ("site", "undecodable: expected user:password"),
            (":", "missing: the user name is empty"),
        ]
        for pair, reason in rows:
            value = "Basic " + base64.b64encode(pair.encode()).decode()
            reply = self.call("PUT", "/api/v1/customers/1", {}, authorization=value)
            self.assertEqual(reply.status, 401)
            self.assertIn(reason, reply.reason)


# ======================================================================================
# ==== §20 Track API
# ======================================================================================


class TrackPeople(FakeTest):
    """PUT /customers/{identifier}, row by row of its decision table."""

    def test_success_is_an_empty_object_and_a_newline(self) -> None:
        reply = self.identify("1", email="bob@example.com", plan="pro")
        self.assertEqual((reply.status, reply.body), (200, b"{}\n"))
        person = self.person("1")
        self.assertEqual(person["attributes"], {"email": "bob@example.com", "plan": "pro"})
        expected = {"id": "1", "email": "bob@example.com", "cio_id": person["cio_id"]}
        self.assertEqual(person["identifiers"], expected)
        self.assertEqual(person["created_at"], person["updated_at"])

    def test_the_shape_of_the_identifier_decides_what_it_is(self) -> None:
        self.identify("plain")
        self.identify("ada@example.com")
        self.identify("no-dot@localhost")
        kinds = [(p["id"], p["identifiers"]["email"]) for p in self.records("customers")]
        expected = [("plain", None), (None, "ada@example.com"), ("no-dot@localhost", None)]
        self.assertEqual(kinds, expected)

    def test_updates_leave_other_attributes_alone(self) -> None:
        self.identify("1", a=1, b=2)
        self.identify("1", b=3)
        self.assertEqual(self.person("1")["attributes"], {"a": 1, "b": 3})

    def test_a_new_id_with_a_known_email_renames_the_person(self) -> None:
        self.identify("1", email="ada@example.com")
        self.identify("2", email="ADA@example.com", plan="pro")
        self.assertEqual([p["id"] for p in self.records("customers")], ["2"])
        self.assertEqual(self.call("GET", "/v1/customers/1/attributes").status, 404)

    def test_an_unknown_email_with_a_known_id_finds_the_person(self) -> None:
        self.identify("1")
        self.identify("ada@example.com", id="1")
        self.assertEqual(self.person("1")["identifiers"]["email"], "ada@example.com")

    def test_an_identifier_of_somebody_else_is_not_taken(self) -> None:
        self.identify("1", email="one@example.com")
        self.identify("2", email="two@example.com")
        reply = self.identify("1", email="two@example.com", plan="pro")
        self.assertEqual(reply.status, 200)
        self.assertIn("failed_attribute_change", reply.reason)
        self.assertEqual(
            self.person("1")["attributes"], {"email": "one@example.com", "plan": "pro"}
        )
        self.assertEqual(self.records("dropped")[0]["operation"], "identify")

    def test_an_identifier_once_set_stays(self) -> None:
        self.identify("1", email="one@example.com")
        reply = self.identify("1", email="new@example.com")
        self.assertIn("failed_attribute_change", reply.reason)
        self.assertEqual(self.person("1")["identifiers"]["email"], "one@example.com")

    def test_by_cio_id_identifiers_change(self) -> None:
        self.identify("1", email="one@example.com")
        cio_id = self.person("1")["cio_id"]
        self.identify(f"cio_{cio_id}", email="new@example.com", id="9")
        self.assertEqual(self.person("9")["identifiers"]["email"], "new@example.com")
        self.assertEqual(self.ok("GET", "/v1/customers?email=one@example.com"), {"results": []})

    def test_an_unknown_cio_id_is_dropped(self) -> None:
        self.identify("1")
        gone = self.person("1")["cio_id"]
        self.ok("DELETE", "/api/v1/customers/1")
        self.assertIn("unknown cio_id", self.identify(f"cio_{gone}", a=1).reason)
        self.assertEqual(self.records("customers"), [])

    def test_what_can_be_no_cio_id_is_refused(self) -> None:
        for wrong in ("nonsense", "abc", "", gone_half := "bcb106"):
            self.assert_errors(self.identify(f"cio_{wrong}", a=1), 400, "invalid identifier")
        person = {"type": "person", "action": "identify", "identifiers": {"cio_id": gone_half}}
        merge = {"primary": {"cio_id": "nonsense"}, "secondary": {"id": "1"}}
        self.assert_errors(self.call("POST", "/api/v2/entity", person), 400, "invalid identifier")
        for path, more in (
            ("v1/merge_customers", {}),
            ("v2/entity", {**person, "action": "merge"}),
        ):
            reply = self.call("POST", f"/api/{path}", {**more, **merge})
            self.assert_errors(reply, 400, "invalid identifier")

    def test_a_cio_id_of_another_workspace_is_refused(self) -> None:
        reply = self.identify("cio_d9c106000001")
        self.assert_errors(reply, 400, "invalid identifier")

    def test_update_only_creates_nobody(self) -> None:
        self.assertIn("_update", self.identify("1", _update=True, a=1).reason)
        entity: Any = {"type": "person", "action": "identify", "identifiers": {"id": "1"}}
        entity["attributes"] = {"_update": True}
        self.assertIn("_update", self.call("POST", "/api/v2/entity", entity).reason)
        self.assertEqual(self.records("customers"), [])
        self.identify("1", a=1)
        self.identify("1", _update=True, a=2)
        self.assertEqual(self.person("1")["attributes"], {"a": 2})

    def test_an_id_and_an_email_of_two_halves_are_merged(self) -> None:
        self.identify("1", plan="pro")
        self.identify("ada@example.com", city="London")
        self.identify("1", email="ada@example.com")
        (person,) = self.records("customers")
        expected = {"plan": "pro", "city": "London", "email": "ada@example.com"}
        self.assertEqual((person["id"], person["attributes"]), ("1", expected))

    def test_delete_removes_and_a_stranger_is_no_error(self) -> None:
        self.identify("1", email="a@example.com")
        first = self.person("1")["cio_id"]
        self.ok("DELETE", "/api/v1/customers/1")
        self.assertEqual(self.records("customers"), [])
        self.assertIn("unknown person", self.call("DELETE", "/api/v1/customers/1").reason)
        self.identify("1")
        self.assertNotEqual(self.person("1")["cio_id"], first)
        self.assertEqual(self.person("1")["attributes"], {})

    def test_suppress_blocks_id_and_email_until_unsuppress(self) -> None:
        self.identify("1", email="a@example.com")
        self.ok("POST", "/api/v1/customers/1/suppress", {})
        self.assertEqual(self.ok("GET", "/__parlel/suppressed")["suppressed"], ["1"])
        for identifier in ("1", "A@example.com"):
            self.assertIn("suppressed", self.identify(identifier).reason)
        self.assertIn("suppressed", self.identify("2", email="a@example.com").reason)
        event = self.call("POST", "/api/v1/customers/1/events", {"name": "x"})
        self.assertIn("suppressed", event.reason)
        self.assertEqual((self.records("customers"), self.records("events")), ([], []))
        self.ok("POST", "/api/v1/customers/a@example.com/unsuppress", {})
        self.assertEqual(self.records("suppressed"), [])
        self.assertEqual(self.records("customers"), [])
        self.identify("1", email="a@example.com")
        self.assertEqual(len(self.records("customers")), 1)


class TrackEvents(FakeTest):
    def track(self, path: str = "customers/1/events", **body: Any) -> Reply:
        return self.call("POST", f"/api/v1/{path}", body)

    def test_an_event_is_kept_with_its_person(self) -> None:
        self.identify("1")
        self.track(name=" purchase ", data={"price": "23.45"}, timestamp=1700000000)
        (event,) = self.records("events")
        expected = {
            "kind": "event",
            "type": "event",
            "name": "purchase",
            "data": {"price": "23.45"},
            "customer_id": "1",
            "anonymous_id": None,
            "timestamp": 1700000000,
            "cio_id": self.person("1")["cio_id"],
        }
        self.assertEqual({**event, **expected}, event)
        self.assertRegex(event["id"], r"^[0-9A-HJKMNP-TV-Z]{26}$")

    def test_page_and_screen_are_kinds_of_their_own_and_the_rest_are_events(self) -> None:
        for type in ("page", "screen", "event", "other"):
            self.track(name="x", type=type)
        kinds = [event["kind"] for event in self.records("events")]
        self.assertEqual(kinds, ["page", "screen", "event", "event"])

    def test_an_unknown_person_is_created_and_data_is_no_attribute(self) -> None:
        self.track("customers/ada@example.com/events", name="x", data={"plan": "pro"})
        (person,) = self.records("customers")
        self.assertEqual(person["attributes"], {"email": "ada@example.com"})

    def test_bad_events_name_the_field_and_store_nothing(self) -> None:
        rows = [
            ({}, "name"),
            ({"name": ""}, "name"),
            ({"name": "  "}, "name"),
            ({"name": 3}, "name"),
            ({"name": "x" * 101}, "100 bytes"),
            ({"name": "x", "data": []}, "data"),
            ({"name": "x", "data": {"a": "b" * 100_001}}, "100000 bytes"),
            ({"name": "x", "timestamp": "soon"}, "timestamp"),
            ({"name": "x", "timestamp": True}, "timestamp"),
        ]
        for body, word in rows:
            with self.subTest(word=word):
                reply = self.call("POST", "/api/v1/customers/1/events", body)
                self.assert_errors(reply, 400, word)
                self.assertEqual(list(reply.json["meta"]), ["errors"])
        self.assertEqual((self.records("events"), self.records("customers")), ([], []))

    def test_the_same_id_counts_once(self) -> None:
        event = {"name": "x", "id": "01F9M17KHP0000000000000000"}
        self.track(**event)
        self.assertIn("duplicate", self.track(**event).reason)
        self.assertEqual([e["id"] for e in self.records("events")], [event["id"]])

    def test_milliseconds_are_pointed_out(self) -> None:
        reply = self.track(name="x", timestamp=1700000000000)
        self.assertEqual(reply.status, 200)
        self.assertIn("milliseconds", reply.reason)

    def test_null_data_is_empty(self) -> None:
        self.track(name="x", data=None)
        self.assertEqual(self.records("events")[0]["data"], {})

    def test_anonymous_events_move_to_whom_gets_the_anonymous_id(self) -> None:
        self.track("events", name="visit", anonymous_id="a1", data={"n": 1})
        (event,) = self.records("events")
        self.assertEqual((event["kind"], event["anonymous_id"]), ("anonymous", "a1"))
        self.assertIsNone(event["customer_id"])
        self.assertEqual(self.records("customers"), [])
        self.identify("1", anonymous_id="a1")
        self.assertEqual(self.records("events")[0]["customer_id"], "1")
        self.track("events", name="late", anonymous_id="a1")
        self.assertEqual(self.records("events")[1]["customer_id"], "1")

    def test_an_anonymous_event_needs_a_name_alone(self) -> None:
        reply = self.call("POST", "/api/v1/events", {"name": "i", "data": {"recipient": "a@b.cd"}})
        self.assertEqual((reply.status, reply.reason), (200, ""))
        for nobody in ({}, {"anonymous_id": ""}):
            reply = self.call("POST", "/api/v1/events", {"name": "i", **nobody})
            self.assertEqual((reply.status, "anonymous_id" in reply.reason), (200, True))
        self.assertEqual([e["anonymous_id"] for e in self.records("events")], ["", "", ""])

    def test_push_reports_are_events_of_kind_push(self) -> None:
        report = {"delivery_id": "d", "event": "opened", "device_id": "t", "timestamp": 1}
        self.ok("POST", "/api/v1/push/events", report)
        (event,) = self.records("events")
        self.assertEqual((event["kind"], event["name"], event["data"]), ("push", "opened", report))
        self.assert_errors(self.call("POST", "/api/v1/push/events", {"event": "x"}), 400, "event")

    def test_what_can_be_no_delivery_id_is_malformed(self) -> None:
        for wrong in ("", None, "a b", "d/../e", {"d": 1}, "x" * 200):
            reply = self.call("POST", "/push/events", {"delivery_id": wrong, "event": "opened"})
            self.assertEqual(reply.status, 400, wrong)
            self.assertIn("malformed delivery id: ", reply.json["meta"]["errors"][0])
        reply = self.call("POST", "/push/events", {"delivery_id": "", "event": "opened"})
        self.assertEqual(reply.json, {"meta": {"errors": ["malformed delivery id: ."]}})
        self.assertEqual(self.records("events"), [])

    def test_mobile_sdks_wrap_what_they_report_of_an_in_app_message(self) -> None:
        send = {"to": "a@b.cd", "identifiers": {"id": "1"}, "transactional_message_id": 3}
        sent = self.ok("POST", "/v1/send/in_app", send)["delivery_id"]
        path, metadata = "/api/v1/cio_deliveries/events", {"action_name": "Buy"}
        for n, event in enumerate(("opened", "clicked", "converted")):
            payload = {"delivery_id": sent, "event": event, "timestamp": n, "metadata": metadata}
            self.ok("POST", path, {"type": "in_app", "payload": payload})
        (delivery,) = self.records("deliveries")
        self.assertEqual({**delivery["metrics"], "opened": 0, "clicked": 1, "converted": 2},
                         delivery["metrics"])  # fmt: skip
        rows: list[tuple[Any, str]] = [
            ({"type": "email", "payload": {}}, "type"),
            ({"type": "in_app", "payload": []}, "payload"),
            ({"type": "in_app", "payload": {"delivery_id": sent, "event": "seen"}}, "event"),
            ({"type": "in_app", "payload": {"event": "opened"}}, "malformed delivery id"),
        ]
        for body, text in rows:
            self.assert_errors(self.call("POST", path, body), 400, text)
        self.ok("POST", path, {"delivery_id": "d", "event": "opened"})  # the form for a push


class TrackDevices(FakeTest):
    def add(self, person: str = "1", **device: Any) -> Reply:
        return self.call("PUT", f"/api/v1/customers/{person}/devices", {"device": device})

    def test_a_device_is_kept_with_its_person(self) -> None:
        self.identify("1")
        self.add(id="t1", platform="ios", last_used=5, attributes={"push_enabled": True}, junk=1)
        expected = {
            "id": "t1",
            "platform": "ios",
            "last_used": 5,
            "attributes": {"push_enabled": "true"},
            "customer_id": "1",
        }
        self.assertEqual(self.records("devices"), [expected])
        customer = self.ok("GET", "/v1/customers/1/attributes")["customer"]
        self.assertEqual([device["id"] for device in customer["devices"]], ["t1"])

    def test_the_ios_sdk_writes_its_platform_in_its_own_way(self) -> None:
        self.add(id="t1", platform="iOS")
        device = {"token": "t2", "platform": "Android"}
        item = {"type": "person", "action": "add_device", "identifiers": {"id": "1"}}
        self.ok("POST", "/api/v2/entity", {**item, "device": device})
        self.assertEqual([d["platform"] for d in self.records("devices")], ["ios", "android"])
        for wrong in ("iPad", ["ios"], None, 1):
            self.assert_errors(self.add(id="t3", platform=wrong), 400, "device.platform")

    def test_last_used_may_be_text_and_is_now_if_missing(self) -> None:
        self.add(id="t1", platform="android", last_used="7")
        self.add(id="t2", platform="android")
        first, second = self.records("devices")
        self.assertEqual(first["last_used"], 7)
        self.assertGreater(second["last_used"], 1_600_000_000)

    def test_a_token_moves_to_whom_it_was_seen_with_last(self) -> None:
        self.add("1", id="t", platform="ios")
        self.add("2", id="t", platform="ios")
        self.assertEqual([d["customer_id"] for d in self.records("devices")], ["2"])
        self.assertEqual(self.ok("GET", "/v1/customers/1/attributes")["customer"]["devices"], [])

    def test_delete_takes_an_escaped_token(self) -> None:
        self.add(id="dev/2", platform="ios")
        self.ok("DELETE", "/api/v1/customers/1/devices/dev%2F2")
        self.assertEqual(self.records("devices"), [])
        reply = self.call("DELETE", "/api/v1/customers/1/devices/none")
        self.assertIn("unknown device", reply.reason)

    def test_bad_devices_name_the_field(self) -> None:
        rows = [
            (None, "device"),
            ({"platform": "ios"}, "device.id"),
            ({"id": "t"}, "device.platform"),
            ({"id": "t", "platform": "web"}, "device.platform"),
            ({"id": "t", "platform": "ios", "last_used": "x"}, "device.last_used"),
            ({"id": "t", "platform": "ios", "attributes": [1]}, "device.attributes"),
        ]
        for device, word in rows:
            reply = self.call("PUT", "/api/v1/customers/1/devices", {"device": device})
            self.assert_errors(reply, 400, word)
        self.assertEqual((self.records("devices"), self.records("customers")), ([], []))


class TrackMerge(FakeTest):
    def merge(self, primary: Any, secondary: Any) -> Reply:
        body = {"primary": primary, "secondary": secondary}
        return self.call("POST", "/api/v1/merge_customers", body)

    def test_what_the_primary_lacks_comes_over_and_the_secondary_goes(self) -> None:
        self.identify("1", plan="pro", empty="x")
        self.identify("2", plan="basic", city="London", email="two@example.com")
        self.ok("POST", "/api/v1/customers/2/events", {"name": "old"})
        self.ok("PUT", "/api/v1/customers/2/devices", {"device": {"id": "t", "platform": "ios"}})
        self.merge({"id": "1"}, {"email": "TWO@example.com"})
        (person,) = self.records("customers")
        expected = {"plan": "pro", "empty": "x", "city": "London", "email": "two@example.com"}
        self.assertEqual((person["id"], person["attributes"]), ("1", expected))
        self.assertEqual(self.records("events")[0]["customer_id"], "1")
        self.assertEqual(self.records("devices")[0]["customer_id"], "1")
        (merge,) = self.records("merges")
        sides = ({"id": "1"}, {"email": "TWO@example.com"}, True)
        self.assertEqual((merge["primary"], merge["secondary"], merge["applied"]), sides)

    def test_an_unknown_side_is_recorded_and_does_nothing(self) -> None:
        self.identify("2")
        self.assertIn("primary", self.merge({"id": "1"}, {"id": "2"}).reason)
        self.assertEqual(len(self.records("customers")), 1)
        self.assertFalse(self.records("merges")[0]["applied"])

    def test_bad_sides_get_the_single_error(self) -> None:
        rows = [({}, {"id": "1"}), ({"id": "1", "email": "a@b.c"}, {"id": "2"}), ({"id": "1"}, 3)]
        for primary, secondary in rows:
            reply = self.merge(primary, secondary)
            self.assertEqual(reply.status, 400)
            self.assertEqual(list(reply.json["meta"]), ["error"])
        self.assertEqual(self.records("merges"), [])


class TrackBatch(FakeTest):
    def batch(self, *items: Any) -> Reply:
        return self.call("POST", "/api/v2/batch", {"batch": items})

    def test_a_good_batch_is_done_in_order(self) -> None:
        who = {"type": "person", "identifiers": {"id": "1"}}
        reply = self.batch(
            {**who, "action": "identify", "attributes": {"email": "a@example.com"}},
            {**who, "action": "event", "name": "bought", "attributes": {"n": 1}},
            {**who, "action": "add_device", "device": {"token": "t", "platform": "ios"}},
        )
        self.assertEqual((reply.status, reply.body), (200, b"{}\n"))
        self.assertEqual(self.person("1")["attributes"], {"email": "a@example.com"})
        self.assertEqual(self.records("events")[0]["data"], {"n": 1})
        self.assertEqual(self.records("devices")[0]["id"], "t")
        self.assertEqual(len(self.records("batches")[0]["operations"]), 3)

    def test_bad_items_are_listed_and_good_ones_kept(self) -> None:
        who = {"type": "person", "identifiers": {"id": "1"}}
        reply = self.batch({**who, "action": "identify"}, {**who, "action": "event"}, {"type": "x"})
        self.assertEqual(reply.status, 207)
        rows = [(e["batch_index"], e["reason"], e["field"]) for e in reply.json["errors"]]
        self.assertEqual(rows, [(1, "required", "name"), (2, "invalid", "type")])
        self.assertEqual(len(self.records("customers")), 1)

    def test_a_batch_without_a_good_item_is_refused(self) -> None:
        bodies: list[Any] = [{}, {"batch": []}, {"batch": {}}, {"batch": [3, "x"]}, []]
        for body in bodies:
            reply = self.call("POST", "/api/v2/batch", body)
            self.assertEqual(reply.status, 400, body)
            for row in reply.json["errors"]:
                self.assertEqual(sorted(row), ["field", "message", "reason"])
        self.assertEqual(self.records("batches"), [])


class TrackEntities(FakeTest):
    """Track v2, action by action."""

    def entity(self, type: str, action: str, **item: Any) -> Reply:
        return self.call("POST", "/api/v2/entity", {"type": type, "action": action, **item})

    def person_does(self, action: str, **item: Any) -> Reply:
        return self.entity("person", action, identifiers={"id": "1"}, **item)

    def test_identify_event_page_screen_and_delete(self) -> None:
        self.person_does("identify", attributes={"a": 1}, timestamp=5)
        for action in ("event", "page", "screen"):
            self.person_does(action, name=action, attributes={"x": 1}, timestamp=5)
        kinds = [(e["kind"], e["data"], e["timestamp"]) for e in self.records("events")]
        self.assertEqual(kinds, [(kind, {"x": 1}, 5) for kind in ("event", "page", "screen")])
        self.assertEqual(self.person("1")["attributes"], {"a": 1})
        self.person_does("delete")
        self.assertEqual(self.records("customers"), [])

    def test_suppress_and_unsuppress(self) -> None:
        self.person_does("identify")
        self.person_does("suppress")
        self.assertEqual(self.records("suppressed"), ["1"])
        self.assertIn("suppressed", self.person_does("identify").reason)
        self.person_does("unsuppress")
        self.assertEqual(self.records("suppressed"), [])

    def test_devices_have_tokens(self) -> None:
        device = {"token": "t", "platform": "android", "attributes": {"os": 14}}
        self.person_does("add_device", device=device)
        self.assertEqual(self.records("devices")[0]["attributes"], {"os": "14"})
        self.person_does("delete_device", device={"token": "t"})
        self.assertEqual(self.records("devices"), [])

    def test_merge_names_both_sides_at_the_top(self) -> None:
        self.identify("1")
        self.identify("2", a=1)
        self.entity("person", "merge", primary={"id": "1"}, secondary={"id": "2"})
        self.assertEqual(self.person("1")["attributes"], {"a": 1})

    def test_content_that_was_seen_or_clicked(self) -> None:
        seen = {"contentId": 7}
        self.entity("person", "viewed_content", identifiers={"anonymous_id": "a"}, attributes=seen)
        self.identify("1", anonymous_id="a")
        self.person_does("clicked_content", attributes=seen, timestamp=5)
        kinds = [(e["kind"], e["name"], e["data"]) for e in self.records("events")]
        expected = [("anonymous", "viewed_content", seen), ("clicked_content",) * 2 + (seen,)]
        self.assertEqual(kinds, expected)
        for action in ("viewed_content", "clicked_content"):
            path = f"/v1/customers/1/activities?type={action}"
            (activity,) = self.ok("GET", path)["activities"]
            self.assertEqual((activity["type"], activity["data"]), (action, seen))
        self.assert_errors(self.person_does("viewed_content"), 400, "attributes.contentId")

    def test_anonymous_events(self) -> None:
        self.entity("person", "event", identifiers={"anonymous_id": "a"}, name="visit")
        (event,) = self.records("events")
        self.assertEqual((event["kind"], event["anonymous_id"]), ("anonymous", "a"))

    def test_objects_live_by_type_and_id_or_cio_object_id(self) -> None:
        ref = {"object_type_id": "2", "object_id": "acme"}
        people = [{"identifiers": {"id": "1"}, "relationship_attributes": {"role": "x"}}]
        self.identify("1")
        self.entity(
            "object", "identify", identifiers=ref, attributes={"n": 1}, cio_relationships=people
        )
        (thing,) = self.records("objects")
        self.assertRegex(thing["cio_object_id"], "^ob[0-9a-f]+$")
        own = {"cio_object_id": thing["cio_object_id"]}
        self.entity("object", "identify", identifiers=own, attributes={"m": 2, "n": None})
        self.entity("object", "delete_relationships", identifiers=own, cio_relationships=people)
        (thing,) = self.records("objects")
        self.assertEqual((thing["attributes"], thing["relationships"]), ({"m": 2}, []))
        self.entity("object", "add_relationships", identifiers=ref, cio_relationships=people)
        self.assertEqual(len(self.records("objects")[0]["relationships"]), 1)
        self.entity("object", "delete", identifiers=ref)
        self.assertEqual(self.records("objects"), [])
        reply = self.entity("object", "identify", identifiers=own, attributes={})
        self.assertIn("unknown object", reply.reason)

    def test_anonymous_relationships_wait_for_their_person(self) -> None:
        ref = {"object_type_id": "1", "object_id": "acme"}
        people = [{"identifiers": {"anonymous_id": "a"}, "relationship_attributes": {"r": 1}}]
        self.entity("object", "identify_anonymous", identifiers=ref, cio_relationships=people)
        self.assertEqual(self.records("objects")[0]["relationships"], [])
        self.identify("1", anonymous_id="a")
        expected = [{"customer_id": "1", "attributes": {"r": 1}}]
        self.assertEqual(self.records("objects")[0]["relationships"], expected)

    def test_anonymous_relationships_grow_and_go_with_their_object(self) -> None:
        ref = {"object_type_id": "1", "object_id": "acme"}

        def relate(anonymous_id: str, **attributes: Any) -> None:
            row = {"identifiers": {"anonymous_id": anonymous_id}}
            people = [{**row, "relationship_attributes": attributes}]
            self.entity("object", "identify_anonymous", identifiers=ref, cio_relationships=people)

        relate("a", r=1)
        self.entity("object", "delete", identifiers=ref)
        relate("b", r=1)
        relate("b", s=2)
        for name in ("a", "b"):
            self.identify(name, anonymous_id=name)
        expected = [{"customer_id": "b", "attributes": {"r": 1, "s": 2}}]
        self.assertEqual(self.records("objects")[0]["relationships"], expected)

    def test_delivery_events_are_booked_on_the_delivery(self) -> None:
        message = {"transactional_message_id": 1, "identifiers": {"id": "1"}}
        sent = self.ok("POST", "/v1/send/push", message)["delivery_id"]
        item = {"identifiers": {"id": sent}, "name": "opened", "attributes": {"device_token": "t"}}
        self.entity("delivery", "event", **item, timestamp=5)
        self.assertEqual(self.records("deliveries")[0]["metrics"]["opened"], 5)

    def test_mistakes_name_the_field_and_change_nothing(self) -> None:
        person, thing = {"id": "1"}, {"object_type_id": "1", "object_id": "x"}
        rows: list[tuple[Any, str, str]] = [
            ({}, "required", "type"),
            ({"type": "person"}, "required", "action"),
            ({"type": "robot", "action": "x"}, "invalid", "type"),
            ({"type": ["person"], "action": "x"}, "invalid", "type"),
            ({"type": "person", "action": "fly"}, "invalid", "action"),
            ({"type": "person", "action": "identify"}, "required", "identifiers"),
            (
                {"type": "person", "action": "identify", "identifiers": {}},
                "required",
                "identifiers",
            ),
            (
                {"type": "person", "action": "identify", "identifiers": {"phone": "+1"}},
                "invalid",
                "identifiers",
            ),
            (
                {"type": "person", "action": "identify", "identifiers": person, "attributes": 3},
                "invalid",
                "attributes",
            ),
            ({"type": "person", "action": "event", "identifiers": person}, "required", "name"),
            ({"type": "person", "action": "merge", "primary": person}, "required", "secondary"),
            (
                {"type": "person", "action": "add_device", "identifiers": person},
                "required",
                "device",
            ),
            (
                {"type": "person", "action": "delete_device", "identifiers": person, "device": {}},
                "required",
                "device.token",
            ),
            (
                {"type": "person", "action": "add_relationships", "identifiers": person},
                "required",
                "cio_relationships",
            ),
            (
                {"type": "object", "action": "add_relationships", "identifiers": thing},
                "required",
                "cio_relationships",
            ),
            ({"type": "object", "action": "identify"}, "required", "identifiers"),
            (
                {"type": "object", "action": "delete", "identifiers": {"object_id": "x"}},
                "required",
                "identifiers.object_type_id",
            ),
            (
                {
                    "type": "object",
                    "action": "identify",
                    "identifiers": {**thing, "object_type_id": "zero"},
                },
                "invalid",
                "identifiers.object_type_id",
            ),
            (
                {"type": "delivery", "action": "event", "identifiers": {"id": "x"}, "name": "y"},
                "invalid",
                "name",
            ),
        ]
        tokens: list[tuple[Any, str]] = [
            (None, "required"),
            ("t", "required"),
            ({}, "required"),
            ({"device_token": ["t"]}, "invalid"),
        ]
        for attributes, reason in tokens:
            item = {**rows[-1][0], "name": "opened", "attributes": attributes}
            rows.append((item, reason, "attributes.device_token"))
        for item, reason, name in rows:
            with self.subTest(item=item):
                reply = self.call("POST", "/api/v2/entity", item)
                self.assertEqual(reply.status, 400)
                (error,) = reply.json["errors"]
                self.assertEqual((error["reason"], error["field"]), (reason, name))
        for name in ("customers", "events", "objects", "devices"):
            self.assertEqual(self.records(name), [])

    def test_sizes_hold_at_the_limit_and_not_beyond(self) -> None:
        def sized(total: int) -> bytes:
            head = b'{"type":"person","action":"event","name":"x","identifiers":{"id":"1"},'
            head += b'"attributes":{"a":"'
            return head + b"v" * (total - len(head) - 3) + b'"}}'

        self.assertEqual(self.call("POST", "/api/v2/entity", sized(32768)).status, 200)
        self.assert_errors(self.call("POST", "/api/v2/entity", sized(32769)), 400, "32768")
        batch = b'{"batch":[%b,%b]}' % (sized(32768), sized(100))
        self.assertEqual(self.call("POST", "/api/v2/batch", batch).status, 200)
        batch = b'{"batch":[%b,%b]}' % (sized(32769), sized(100))
        reply = self.call("POST", "/api/v2/batch", batch)
        self.assertEqual((reply.status, reply.json["errors"][0]["batch_index"]), (207, 0))
        batch = b'{"batch":[%b]}' % b",".join([sized(32000)] * 16)
        self.assert_errors(self.call("POST", "/api/v2/batch", batch), 400, "512000")


class TrackOthers(FakeTest):
    """Region, metrics, unsubscribe, forms and manual segments."""

    def send(self, channel: str = "email") -> str:
        message = {"to": "+15551234567", "transactional_message_id": 1, "identifiers": {"id": "1"}}
        return str(self.ok("POST", f"/v1/send/{channel}", message)["delivery_id"])

    def test_region(self) -> None:
        region = self.ok("GET", "/api/v1/accounts/region")
        self.assertEqual((region["region"], region["environment_id"]), ("us", 104668))

    def test_the_page_at_auth_knows_no_credentials(self) -> None:
        for header in ("", "Basic bm86", "nonsense"):
            reply = self.call("GET", "/auth", authorization=header)
            self.assertEqual(reply.status, 200)
            self.assertEqual(reply.headers["content-type"], "text/html; charset=utf-8")
            self.assertTrue(reply.body.startswith(b"<!DOCTYPE html>"))

    def test_metrics_are_booked_once_and_need_no_credentials(self) -> None:
        delivery_id = self.send()
        body = {"delivery_id": delivery_id, "metric": "clicked", "href": "http://x.example"}
        self.ok("POST", "/api/v1/metrics", {**body, "timestamp": 5}, authorization="")
        self.ok("POST", "/api/v1/metrics", {**body, "timestamp": 9}, authorization="")
        (delivery,) = self.records("deliveries")
        self.assertEqual(delivery["metrics"]["clicked"], 5)
        clicks = [row for row in delivery["history"] if row["metric"] == "clicked"]
        self.assertEqual([row["timestamp"] for row in clicks], [5, 9])
        self.assertEqual(clicks[0]["href"], "http://x.example")

    def test_bad_metrics(self) -> None:
        delivery_id = self.send("sms")
        rows = [
            ({"metric": "opened"}, "delivery_id"),
            ({"delivery_id": "x"}, "metric"),
            ({"delivery_id": "x", "metric": "loved"}, "metric"),
            ({"delivery_id": "x", "metric": "opened", "timestamp": "x"}, "timestamp"),
        ]
        for body, word in rows:
            self.assert_errors(self.call("POST", "/api/v1/metrics", body), 400, word)
        reply = self.call("POST", "/api/v1/metrics", {"delivery_id": "x", "metric": "opened"})
        self.assertIn("unknown delivery", reply.reason)
        body = {"delivery_id": delivery_id, "metric": "spammed"}
        self.assertIn("impossible", self.call("POST", "/api/v1/metrics", body).reason)
        self.assertNotIn("spammed", self.records("deliveries")[0]["metrics"])

    def test_what_does_not_fit_is_named(self) -> None:
        person = {"type": "person", "action": "add_relationships", "identifiers": {"id": "1"}}
        mail = {"to": "a@b.cd", "identifiers": {"id": "1"}, "transactional_message_id": 1}
        rows: list[tuple[str, Any, int, str]] = [
            ("/api/v2/entity", person, 400, "cio_relationships is required: send a list of at"),
            ("/api/v2/entity", {**person, "cio_relationships": {}}, 400, "must be a list"),
            ("/api/v2/entity", {**person, "cio_relationships": [5]}, 400,
             "cio_relationships[0] must be an object, not a number"),
            ("/v1/send/email", {**mail, "attachments": {"a.EXE": "aGk="}}, 403,
             "Forbidden file type exe for attachment a.EXE."),
            ("/v1/send/email", {**mail, "headers": '[{"name": "X", "value": 5}]'}, 400,
             "must have names and values as strings"),
        ]  # fmt: skip
        for path, body, status, text in rows:
            with self.subTest(text):
                self.assert_errors(self.call("POST", path, body), status, text)
        self.assertEqual(self.records("customers"), [])

    def test_unsubscribing_by_a_delivery(self) -> None:
        path = f"/unsubscribe/{self.send()}"
        self.identify("1", unsubscribed=False)
        self.assertEqual(self.call("POST", path, {"unsubscribe": True}).status, 400)
        json_type = "application/json"
        self.ok("POST", path, {"unsubscribe": False}, content_type=json_type, authorization="")
        self.assertFalse(self.person("1")["unsubscribed"])
        self.ok("POST", path, {"unsubscribe": True}, content_type=json_type, authorization="")
        self.assertTrue(self.person("1")["unsubscribed"])
        self.assertIn("unsubscribed", self.records("deliveries")[0]["metrics"])
        reply = self.call("POST", "/unsubscribe/x", {"unsubscribe": True}, content_type=json_type)
        self.assertEqual(reply.status, 400)

    def test_a_form_makes_a_person(self) -> None:
        facts = ("form_id", "form_name", "form_type", "form_url", "form_url_param")
        data = {"email": "a@example.com", "first_name": "Ada", **dict.fromkeys(facts, "x")}
        reply = self.call("POST", "/api/v1/forms/f1/submit", {"data": data})
        self.assertEqual((reply.status, reply.body), (204, b""))
        expected = {"email": "a@example.com", "first_name": "Ada"}
        self.assertEqual(self.person("a@example.com")["attributes"], expected)
        ((submission,),) = (form["submissions"] for form in self.records("forms"))
        self.assertEqual(submission["data"], data)

    def test_bad_submissions_are_refused_and_yet_make_the_form(self) -> None:
        rows: list[tuple[Any, str]] = [
            ({}, "data"),
            ({"data": {"name": "x"}}, "exactly one"),
            ({"data": {"id": "1", "email": "a@b.cd"}}, "exactly one"),
            ({"data": {"id": "1", "n": 3}}, "data.n must be a string"),
        ]
        for i, (body, text) in enumerate(rows):
            reply = self.call("POST", f"/api/v1/forms/{i}/submit", body)
            self.assert_errors(reply, 400, text)
        self.assertEqual(self.call("POST", "/api/v1/forms/9/submit", b"{").status, 400)
        self.assertEqual([form["id"] for form in self.records("forms")], ["0", "1", "2", "3"])
        self.assertEqual(self.records("customers"), [])

    def test_people_join_and_leave_manual_segments(self) -> None:
        for number in (1, 2):
            self.identify(str(number), email=f"{number}@example.com")
        reply = self.call("POST", "/api/v1/segments/7/add_customers", {"ids": ["1", 2, "nobody"]})
        self.assertIn("1 of the ids", reply.reason)
        self.assertEqual(self.records("segments")[0]["customer_ids"], ["1", "2"])
        path = "/api/v1/segments/7/remove_customers?id_type=email"
        self.ok("POST", path, {"ids": ["1@example.com"]})
        self.assertEqual(self.records("segments")[0]["customer_ids"], ["2"])

    def test_bad_segment_calls(self) -> None:
        rows: list[tuple[str, Any, str]] = [
            ("7/add_customers", {}, "ids"),
            ("7/add_customers", {"ids": []}, "ids"),
            ("7/add_customers", {"ids": ["x"] * 1001}, "1000 at most"),
            ("x/add_customers", {"ids": ["1"]}, "segment_id"),
            ("7/add_customers?id_type=phone", {"ids": ["1"]}, "id_type"),
        ]
        for path, body, word in rows:
            self.assert_errors(self.call("POST", f"/api/v1/segments/{path}", body), 400, word)
        self.assertEqual(self.records("segments"), [])


# ======================================================================================
# ==== §21 App API
# ======================================================================================


class AppReads(FakeTest):
    def test_attributes_are_strings_in_byte_order(self) -> None:
        self.identify("1", email="a@example.com", n=30, yes=True, Upper=1.5, deep={"a": [1, None]})
        customer = self.ok("GET", "/v1/customers/1/attributes")["customer"]
        names = list(customer["attributes"])
        self.assertEqual(names, ["Upper", "cio_id", "deep", "email", "id", "n", "yes"])
        self.assertEqual(list(customer["timestamps"]), names)
        self.assertEqual(customer["attributes"]["n"], "30")
        self.assertEqual(customer["attributes"]["yes"], "true")
        self.assertEqual(customer["attributes"]["deep"], '{"a":[1,null]}')
        self.assertEqual((customer["id"], customer["unsubscribed"]), ("1", False))

    def test_the_id_type_is_not_guessed(self) -> None:
        self.identify("1", email="a@example.com")
        cio_id = self.person("1")["cio_id"]
        rows = [
            ("1", "id", 200),
            ("a%40example.com", "email", 200),
            ("A@EXAMPLE.com", "email", 200),
            (cio_id, "cio_id", 200),
            (f"cio_{cio_id}", "cio_id", 200),
            ("a@example.com", "id", 404),
            (cio_id, "id", 404),
            ("1", "nonsense", 400),
            ("1", "phone", 400),
        ]
        for value, id_type, status in rows:
            path = f"/v1/customers/{value}/attributes?id_type={id_type}"
            self.assertEqual(self.call("GET", path).status, status, path)

    def test_not_found_has_a_reference(self) -> None:
        reply = self.call("GET", "/v1/customers/nobody/attributes")
        self.assertEqual(reply.status, 404)
        (error,) = reply.json["errors"]
        self.assertEqual(error["status"], "404")
        self.assertRegex(error["detail"], r"^not found \(reference [0-9A-Z]{26}\)$")

    def test_people_are_found_by_email_without_case(self) -> None:
        self.identify("1", email="Ada@example.com")
        (row,) = self.ok("GET", "/v1/customers?email=aDA%40example.com")["results"]
        self.assertEqual((row["id"], row["email"]), ("1", "Ada@example.com"))
        self.assertEqual(self.ok("GET", "/v1/customers?email=x@example.com"), {"results": []})
        self.identify("2", email="a+b@example.com")
        self.assertEqual(self.ok("GET", "/v1/customers?email=a+b@example.com"), {"results": []})
        self.assertEqual(self.call("GET", "/v1/customers").status, 400)

    def test_app_json_is_compact(self) -> None:
        self.assertEqual(self.call("GET", "/v1/customers?email=x").body, b'{"results":[]}')


class AppPeople(SeededTest):
    def test_a_search_gives_pages(self) -> None:
        everybody = {"filter": {"attribute": {"field": "cio_id", "operator": "exists"}}}
        first = self.ok("POST", "/v1/customers?limit=1", everybody)
        self.assertEqual((first["ids"], bool(first["next"])), (["ada"], True))
        second = self.ok("POST", f"/v1/customers?limit=1&start={first['next']}", everybody)
        self.assertEqual((second["ids"], second["next"]), (["bob"], ""))
        for path in ("/v1/customers?start=?", "/v1/customers?limit=0", "/v1/customers?limit=x"):
            self.assertEqual(self.status("POST", path, everybody), 400, path)

    def test_segments_can_be_asked_for_live(self) -> None:
        pro = {"filter": {"segment": {"id": 2}}}
        self.assertEqual(self.ok("POST", "/v1/customers", pro)["ids"], ["ada"])
        self.identify("bob", plan="pro")
        self.assertEqual(self.ok("POST", "/v1/customers", pro)["ids"], ["ada", "bob"])
        self.assertEqual(self.ok("GET", "/v1/segments/2/customer_count"), {"count": 2})
        mine = self.ok("GET", "/v1/customers/ada/segments")["segments"]
        self.assertEqual([segment["id"] for segment in mine], [1, 2])

    def test_many_are_read_at_once_and_the_unknown_left_out(self) -> None:
        body = {"ids": ["bob", "nobody", "ada"]}
        rows = self.ok("POST", "/v1/customers/attributes", body)["customers"]
        self.assertEqual([row["customer"]["id"] for row in rows], ["bob", "ada"])
        self.assertEqual(
            self.ok("POST", "/v1/customers/attributes", {"ids": []}), {"customers": []}
        )
        for bad in ({}, {"ids": None}, {"ids": ["x"] * 101}):
            self.assertEqual(self.status("POST", "/v1/customers/attributes", bad), 400)

    def test_both_sides_of_a_relationship_show_its_attributes(self) -> None:
        ref = {"object_type_id": "1", "object_id": "acme"}
        bond = [{"identifiers": ref, "relationship_attributes": {"role": "cto"}}]
        relationships = {"action": "add_relationships", "relationships": bond}
        self.identify("ada", cio_relationships=relationships)
        for path in ("customers/ada", "objects/1/acme"):
            (row,) = self.ok("GET", f"/v1/{path}/relationships")["cio_relationships"]
            self.assertEqual(row["attributes"], {"role": "cto"}, path)
            self.assertEqual(list(row["timestamps"]), ["role"], path)

    def test_a_path_names_people_by_id_or_bare_cio_id(self) -> None:
        cio_id = self.person("ada")["cio_id"]
        for part in ("attributes", "messages", "activities", "segments", "relationships",
                     "subscription_preferences"):  # fmt: skip
            path = f"/v1/customers/{{}}/{part}"
            self.assertEqual(self.status("GET", path.format(cio_id)), 200, part)
            for other in (f"cio_{cio_id}", "ada@example.com"):
                self.assertEqual(self.status("GET", path.format(other)), 404, part)
        self.identify(cio_id, email="odd@example.com")  # an id that looks like ada's cio_id
        person = self.ok("GET", f"/v1/customers/{cio_id}/attributes")["customer"]
        self.assertEqual(person["identifiers"]["email"], "odd@example.com")
        self.assertEqual(
            self.status("GET", f"/v1/customers/{cio_id}/attributes?id_type=email"), 404
        )

    def test_the_app_api_answers_under_another_beginning_too(self) -> None:
        for path in ("customers/ada/attributes", "segments", "campaigns/1/actions/11", "exports"):
            expected = self.ok("GET", f"/v1/{path}")
            for beginning in ("/v1/api/", "//v1//api/"):
                self.assertEqual(self.ok("GET", beginning + path), expected)

    def test_activities_name_attributes_and_messages(self) -> None:
        self.identify("ada", plan="basic", city="Rome")
        found = self.ok("GET", "/v1/activities?name=city")["activities"]
        self.assertEqual([row["type"] for row in found], ["attribute_change"])
        self.identify("ada", id="bob")
        found = self.ok("GET", "/v1/activities?name=id")["activities"]
        self.assertEqual([row["type"] for row in found], ["failed_attribute_change"])
        message = {"to": "a@b.cd", "transactional_message_id": 3, "identifiers": {"id": "bob"}}
        sent = self.ok("POST", "/v1/send/email", message)["delivery_id"]
        row = self.ok("GET", "/v1/customers/bob/activities?type=sent_email")["activities"][0]
        data = row["data"]
        self.assertEqual((row["delivery_type"], data["delivery_id"]), ("email", sent))
        self.assertEqual((type(data["delivered"]), data["opened"]), (int, False))
        self.ok("POST", "/api/v1/metrics", {"delivery_id": sent, "metric": "opened"})
        (row,) = self.ok("GET", "/v1/activities?type=opened_email")["activities"]
        self.assertIs(row["data"]["opened"], True)
        row = self.ok("GET", "/v1/customers/ada/activities?type=sent_email")["activities"][0]
        self.assertEqual((row["data"]["delivered"], row["data"]["opened"]), (None, None))

    def test_what_would_let_an_email_change_is_named(self) -> None:
        reply = self.identify("ada", email="new@example.com")
        self.assertIn("cio_…, or set --update-email-by-id".replace("…", "?"), reply.reason)
        reply = self.identify("ada@example.com", id="eve")
        self.assertNotIn("--update", reply.reason)
        self.assertIn("cio_", reply.reason)
        self.assertNotIn("cio_", self.identify("ada", id="bob").reason)

    def test_activities_tell_what_happened_newest_first(self) -> None:
        self.identify("ada", plan="basic")
        self.ok("POST", "/api/v1/customers/ada/events", {"name": "bought", "data": {"n": 1}})
        path = "/v1/customers/ada/activities"
        first, second, *_ = self.ok("GET", path)["activities"]
        told = (first["type"], first["name"], first["data"], first["timestamp"])
        now = self.fake.workspace.seconds()
        self.assertEqual(told, ("event", "bought", {"n": 1}, now))
        expected = {"plan": {"from": "pro", "to": "basic"}}
        self.assertEqual((second["type"], second["data"]), ("attribute_change", expected))
        (only,) = self.ok("GET", f"{path}?type=event&name=bought")["activities"]
        self.assertEqual(only["id"], first["id"])
        page = self.ok("GET", f"{path}?limit=1")
        (next_one,) = self.ok("GET", f"{path}?limit=1&start={page['next']}")["activities"]
        self.assertEqual(next_one["id"], second["id"])
        self.assertEqual(self.ok("GET", f"{path}?limit=1&type=event")["next"], "")  # all of it
        self.ok("DELETE", "/api/v1/customers/ada")
        types = [
            a["type"] for a in self.ok("GET", "/v1/activities?deleted=true&limit=2")["activities"]
        ]
        self.assertEqual(types[0], "profile_delete")
        types = [a["type"] for a in self.ok("GET", "/v1/activities?limit=100")["activities"]]
        self.assertNotIn("profile_delete", types)

    def activities(self, type: str) -> Any:
        """What the activities of this type say, newest first."""
        rows = self.ok("GET", f"/v1/activities?limit=100&type={type}")["activities"]
        return [(row["customer_id"], row["data"]) for row in rows]

    def test_activities_tell_what_an_update_did_not_do(self) -> None:
        self.identify("ada", email="bob@example.com")
        self.identify("ada", plan="old", _timestamp=1000)
        self.identify("nobody", _update=True)
        taken = "The identifier is already associated with a different profile."
        failed: list[Any] = [
            (None, {"id": {"reason": "No profile has the identifier.", "value": "nobody"}}),
            ("ada", {"email": {"reason": taken, "value": "bob@example.com"}}),
        ]
        self.assertEqual(self.activities("failed_attribute_change"), failed)
        skipped = [("ada", {"plan": {"from": "pro", "to": "old"}})]
        self.assertEqual(self.activities("skipped_update"), skipped)
        self.assertEqual(self.attributes("ada")["plan"], "pro")

    def test_activities_tell_who_an_anonymous_visitor_turned_out_to_be(self) -> None:
        self.identify("ada", anonymous_id="visitor")
        self.identify("ada", anonymous_id="visitor")
        self.assertEqual(self.activities("anon_merge"), [("ada", {"anonymous_id": "visitor"})])

    def test_activities_tell_of_objects_and_relationships(self) -> None:
        for role in ("owner", "owner", "guest"):
            ref = {"identifiers": {"object_type_id": "1", "object_id": "acme"}}
            row = {**ref, "relationship_attributes": {"role": role}}
            body = {"action": "add_relationships", "relationships": [row]}
            self.identify("ada", cio_relationships=body)
        thing = {"type": "object", "action": "identify", **ref}
        for size in (1, 1, 2):
            self.ok("POST", "/api/v2/entity", {**thing, "attributes": {"size": size}})
        who = {"cio_relationships": [{"identifiers": {"id": "ada"}}]}
        self.ok("POST", "/api/v2/entity", {**thing, "action": "delete_relationships", **who})
        self.ok("POST", "/api/v2/entity", {**thing, "action": "delete"})
        role_change = {"role": {"from": "owner", "to": "guest"}}
        both: dict[str, Any] = {"object_type_id": "1", "object_id": "acme"}
        about = {"object_id": "acme"}
        expected: dict[str, list[Any]] = {
            "add_relationship": [("ada", both)],
            "delete_relationship": [("ada", both)],
            "relationship_attribute_change": [("ada", role_change)],
            "_r:1:attribute_change": [(None, role_change)],
            "_o:1:add_relationship": [(None, about)],
            "_o:1:delete_relationship": [(None, about)],
            "_o:1:create": [(None, about)],
            "_o:1:delete": [(None, about)],
            "_o:1:attribute_change": [
                (None, {"size": {"from": "1", "to": "2"}}),
                (None, {"size": {"from": "", "to": "1"}}),
            ],
        }
        self.assertEqual({type: self.activities(type) for type in expected}, expected)

    def test_the_activity_of_a_page_view_has_its_url(self) -> None:
        url = "http://example.com/a"
        self.ok("POST", "/api/v1/customers/ada/events", {"type": "page", "name": url})
        (row,) = self.ok("GET", "/v1/activities?type=page")["activities"]
        self.assertEqual(row["url"], url)

    def test_attributes_have_what_is_computed_for_a_person(self) -> None:
        computed = "_cio_subscription_preferences_computed"
        self.identify("ada", **{"cio_subscription_preferences.topics.topic_2": True})
        read = self.ok("GET", "/v1/customers/ada/attributes")["customer"]
        self.assertEqual(
            json.loads(read["attributes"][computed]), {"topics": {"topic_1": True, "topic_2": True}}
        )
        self.assertEqual(read["timestamps"][computed], 0)
        body = {"ids": ["bob"]}
        (bob,) = self.ok("POST", "/v1/customers/attributes", body)["customers"]
        self.assertNotIn("_last_emailed", bob["customer"]["attributes"])
        self.fake.workspace.clock.freeze(1_800_000_000)
        email = {"to": "bob@example.com", "from": "shop@example.com", "subject": "Hi", "body": "Hi"}
        self.ok("POST", "/v1/send/email", {**email, "identifiers": {"id": "bob"}})
        read = self.ok("GET", "/v1/customers/bob/attributes")["customer"]
        self.assertEqual(read["attributes"]["_last_emailed"], "1800000000")
        self.assertEqual(read["timestamps"]["_last_emailed"], 1_800_000_000)

    def test_preferences_show_topics_and_choices(self) -> None:
        self.identify("ada", **{"cio_subscription_preferences.topics.topic_1": False})
        path = "/v1/customers/ada/subscription_preferences"
        topics = self.ok("GET", path)["customer"]["topics"]
        chosen = [(t["id"], t["name"], t["subscribed"]) for t in topics]
        self.assertEqual(chosen, [("1", "News", False), ("2", "Ads", False)])

    def test_a_subscription_link_works_for_a_day(self) -> None:
        self.ok("PUT", "/__parlel/clock", {"freeze": True})
        url = self.ok("GET", "/v1/subscription_center/ada/token")["url"]
        path = url.partition("4668")[2]
        self.assertEqual(self.ok("GET", path, authorization="")["customer"]["id"], "ada")
        forged = path.replace("/u/i/0.", "/u/i/1.")
        for wrong in (forged, "/u/i/x/", "/u/i/1.x.y/"):
            self.assertEqual(self.status("GET", wrong), 400, wrong)
        self.fake.workspace.agenda.advance(86399)
        self.assertEqual(self.status("GET", path), 200)
        self.fake.workspace.agenda.advance(1)
        self.assertEqual(self.status("GET", path), 400)
        self.assertEqual(self.status("GET", "/v1/subscription_center/nobody/token"), 400)

    def test_opt_outs_come_and_go(self) -> None:
        path = "/v1/customers/ada/optouts"
        row = {"from": "+15550100", "optout": True}
        self.assertEqual(self.status("PUT", path, {"optouts": [row]}), 204)
        expected = [{"channel": "sms", "from": "+15550100"}]
        self.assertEqual(self.ok("GET", path)["optouts"], expected)
        self.assertEqual(self.ok("GET", "/v1/optouts")["optouts"][0]["customer_id"], "ada")
        self.call("PUT", path, {"optouts": [{**row, "optout": False}]})
        self.assertEqual(self.ok("GET", path)["optouts"], [])
        mistakes: list[Any] = [{}, {"optouts": [{}]}, {"optouts": [{**row, "channel": "fax"}]}]
        for bad in mistakes:
            self.assertEqual(self.status("PUT", path, bad), 400)

    def test_opt_outs_go_with_their_person(self) -> None:
        def opt_out(person: str, *senders: str) -> None:
            rows = [{"from": sender, "optout": True} for sender in senders]
            self.call("PUT", f"/v1/customers/{person}/optouts", {"optouts": rows})

        def senders(person: str) -> list[str]:
            found = self.ok("GET", f"/v1/customers/{person}/optouts")["optouts"]
            return [row["from"] for row in found]

        self.identify("eve")
        opt_out("ada", "+2", "+1")
        opt_out("eve", "+1", "+3")
        self.ok(
            "POST",
            "/api/v1/merge_customers",
            {"primary": {"id": "ada"}, "secondary": {"id": "eve"}},
        )
        self.assertEqual(senders("ada"), ["+1", "+2", "+3"])
        (row,) = self.ok("GET", "/v1/optouts")["optouts"]
        self.assertEqual((row["customer_id"], len(row["optouts"])), ("ada", 3))
        self.ok("DELETE", "/api/v1/customers/ada")
        self.assertEqual(self.ok("GET", "/v1/optouts")["optouts"], [])
        self.identify("ada")
        self.assertEqual(senders("ada"), [])


class AppObjects(SeededTest):
    def setUp(self) -> None:
        super().setUp()
        ref = {"object_type_id": "1", "object_id": "acme"}
        related = [{"identifiers": {"id": "ada"}, "relationship_attributes": {"role": "x"}}]
        item = {"type": "object", "action": "identify", "identifiers": ref}
        more = {"attributes": {"size": 5}, "cio_relationships": related}
        self.ok("POST", "/api/v2/entity", {**item, **more})

    def test_objects_are_found_and_read(self) -> None:
        size = {"object_attribute": {"field": "size", "operator": "eq", "value": 5, "type_id": "1"}}
        body = {"object_type_id": "1", "filter": size}
        found = self.ok("POST", "/v1/objects", body)
        self.assertEqual(found["ids"], ["acme"])
        cio_object_id = found["identifiers"][0]["cio_object_id"]
        for path in ("acme", f"{cio_object_id}?id_type=cio_object_id"):
            name, _, query = path.partition("?")
            thing = self.ok("GET", f"/v1/objects/1/{name}/attributes?{query}")["object"]
            self.assertEqual(thing["attributes"], {"size": "5"})
        (type,) = self.ok("GET", "/v1/object_types")["types"]
        names = dict.fromkeys(("name", "singular_name"), "Object type 1")
        slugs = dict.fromkeys(("slug", "singular_slug"), "object_type_1")
        self.assertEqual(type, {"id": "1", **names, **slugs, "enabled": True, "icon": ""})
        self.assertEqual(self.status("GET", "/v1/objects/2/acme/attributes"), 404)
        nobody = self.ok("POST", "/v1/objects", {**body, "filter": {"segment": {"id": 1}}})
        self.assertEqual(nobody["ids"], [])

    def test_relationships_are_seen_from_both_sides(self) -> None:
        (mine,) = self.ok("GET", "/v1/customers/ada/relationships")["cio_relationships"]
        self.assertEqual((mine["object_type_id"], mine["attributes"]), (1, {"role": "x"}))
        (theirs,) = self.ok("GET", "/v1/objects/1/acme/relationships")["cio_relationships"]
        self.assertEqual(theirs["identifiers"]["id"], "ada")


class AppSegments(SeededTest):
    def test_a_manual_segment_lives_and_dies(self) -> None:
        body = {"segment": {"name": "New", "description": "d"}}
        segment = self.ok("POST", "/v1/segments", body)["segment"]
        self.assertEqual((segment["type"], segment["state"]), ("manual", "finished"))
        self.assertEqual(segment["description"], "d")
        path = f"/v1/segments/{segment['id']}"
        self.ok("POST", f"/api/v1/segments/{segment['id']}/add_customers", {"ids": ["bob"]})
        self.assertEqual(self.ok("GET", f"{path}/membership")["ids"], ["bob"])
        self.assertEqual(self.status("DELETE", path), 204)
        self.assertEqual(self.status("GET", path), 404)
        self.assertEqual(self.ok("GET", "/v1/customers/bob/segments")["segments"], [])
        self.ok("POST", f"/api/v1/segments/{segment['id']}/add_customers", {"ids": ["bob"]})
        self.assertEqual(self.ok("GET", f"{path}/membership")["ids"], ["bob"])  # made anew
        self.assertEqual(self.status("DELETE", path), 204)
        self.assertEqual(self.identify("bob").status, 200)
        self.assertEqual(self.status("DELETE", "/api/v1/customers/bob"), 200)

    def test_a_name_is_needed(self) -> None:
        mistakes: list[Any] = [{"segment": {}}, {"segment": {"name": " "}}]
        for body in mistakes:
            reply = self.call("POST", "/v1/segments", body)
            self.assertEqual(reply.status, 422)
            expected = {
                "detail": "Name can't be blank",
                "status": "422",
                "source": {"pointer": "/data/attributes/name"},
            }
            self.assertEqual(reply.json["errors"], [expected])
        reply = self.call("POST", "/v1/segments", {"segment": {"name": "x", "description": 5}})
        self.assert_errors(reply, 400, "description must be")

    def test_dynamic_ones_are_not_the_apis(self) -> None:
        self.assertEqual(self.status("DELETE", "/v1/segments/2"), 400)
        path = "/api/v1/segments/2/add_customers"
        self.assert_errors(self.call("POST", path, {"ids": ["bob"]}), 400, "not a manual segment")

    def test_users_are_listed_under_both_names(self) -> None:
        for name in ("used_by", "dependencies"):
            used = self.ok("GET", f"/v1/segments/2/{name}")["used_by"]
            expected = {"campaigns": [1], "sent_newsletters": [], "draft_newsletters": [30]}
            self.assertEqual(used, expected)


class AppFamilies(SeededTest):
    """Campaigns, broadcasts, newsletters and transactional messages."""

    def test_contents_are_read_and_changed(self) -> None:
        rows = [
            ("/v1/campaigns/1/actions/11", "action"),
            ("/v1/broadcasts/20/actions/201", "action"),
            ("/v1/newsletters/30/contents/301", "content"),
        ]
        for path, key in rows:
            with self.subTest(path=path):
                changed = self.ok("PUT", path, {"subject": "New", "id": 9, "fake_bcc": False})[key]
                self.assertEqual((changed["subject"], changed["fake_bcc"]), ("New", False))
                self.assertEqual(self.ok("GET", path)[key], changed)
                self.assert_errors(self.call("PUT", path, {"subject": 3}), 400, "subject")
                self.assertEqual(self.status("GET", path[:-1] + "9"), 404)

    def test_what_was_read_can_be_sent_back_in_strict_mode(self) -> None:
        self.fake = Fake(Settings(strict_fields=True), self.SEED)
        for path in ("/v1/campaigns/1/actions/11", "/v1/newsletters/30/contents/301"):
            ((key, row),) = self.ok("GET", path).items()
            self.assertEqual(self.ok("PUT", path, {**row, "subject": "B"})[key]["subject"], "B")
            self.assert_errors(self.call("PUT", path, {"sbject": "B"}), 400, "did you mean subject")

    def test_a_picture_and_a_method_can_be_changed(self) -> None:
        actions = [
            {"id": n, "type": type, "body": "x"} for n, type in ((71, "twilio"), (72, "webhook"))
        ]
        self.fake = Fake(Settings(), {"campaigns": [{"id": 7, "name": "C", "actions": actions}]})
        path, url = "/v1/campaigns/7/actions", "https://example.com/a.png"
        changed = self.ok("PUT", f"{path}/71", {"image_url": url})["action"]
        self.assertEqual(changed["image_url"], url)
        self.assertEqual(self.ok("PUT", f"{path}/72", {"method": "get"})["action"]["method"], "get")
        self.assert_errors(
            self.call("PUT", f"{path}/72", {"method": "head"}), 400, "method must be"
        )

    def test_a_translation_is_that_of_its_action(self) -> None:
        actions = [{"id": n, "subject": "s", "body": "b"} for n in (71, 72)]
        spanish = [{"id": n, "parent_action_id": n - 10, "language": "es", "subject": f"{n}",
                    "body": "b"} for n in (81, 82)]  # fmt: skip
        self.fake.seed({"campaigns": [{"id": 7, "actions": [*actions, *spanish]}]})
        for number in (71, 72):
            read = self.ok("GET", f"/v1/campaigns/7/actions/{number}/language/es")["action"]
            self.assertEqual(read["subject"], str(number + 10))

    def test_headers_go_in_as_a_list_and_come_back_as_text(self) -> None:
        headers = [{"name": "X-A", "value": "1"}]
        path = "/v1/campaigns/1/actions/11"
        action = self.ok("PUT", path, {"headers": headers})["action"]
        self.assertEqual(json.loads(action["headers"]), headers)

    def test_translations_of_a_transactional_message_are_lists(self) -> None:
        path = "/v1/transactional/3/language/es"
        self.assertEqual(self.ok("GET", path)["content"][0]["subject"], "Pedido")
        self.assertEqual(self.ok("PUT", path, {"subject": "Uno"})["content"][0]["subject"], "Uno")
        self.assertEqual(self.status("GET", "/v1/transactional/3/language/fr"), 404)
        one = self.ok("GET", "/v1/transactional/3/contents/31")["content"]
        self.assertEqual(one["subject"], "Order")
        changed = self.ok("PUT", "/v1/transactional/3/content/31", {"subject": "Two"})["content"]
        self.assertEqual(changed[0]["subject"], "Two")
        changed = self.ok("PUT", "/v1/transactional/3/content", {"subject": "Three"})["content"]
        self.assertEqual(changed[0]["id"], 31)

    def test_a_changed_content_tells_when(self) -> None:
        path = "/v1/campaigns/1/actions/11"
        before = self.ok("GET", path)["action"]
        self.fake.workspace.agenda.advance(60)
        changed = self.ok("PUT", path, {"subject": "Hello"})["action"]
        for action in (changed, self.ok("GET", path)["action"]):
            self.assertEqual(action["created"], before["created"])
            self.assertAlmostEqual(action["updated"], before["updated"] + 60, delta=2)
            self.assertEqual(action["deduplicate_id"], f"11:{action['updated']}")

    def test_metrics_count_recorded_deliveries(self) -> None:
        path = "/v1/campaigns/1/metrics?version=2&res=hourly&start=1700000000&end=1700003600"
        metric = self.ok("GET", path)
        series = metric["metric"]["series"]
        self.assertEqual((series["created"], series["sent"]), ([1, 0], [1, 0]))
        self.assertEqual(series["clicked"], [0, 1])
        self.assertEqual(metric["res"], "hours")
        hour = "2023-11-14T{}:00:00+00:00"
        self.assertEqual(
            (metric["start"], metric["end"]), (hour.format(22), "2023-11-15T00:00:00+00:00")
        )
        for type, count in (("email", 1), ("push", 0)):
            series = self.ok("GET", f"{path}&type={type}")["metric"]["series"]
            self.assertEqual(sum(series["created"]), count, type)
        other = self.ok("GET", path.replace("metrics", "actions/12/metrics"))
        self.assertEqual(sum(other["metric"]["series"]["sent"]), 0)

    def test_steps_of_version_1(self) -> None:
        rows = [
            ("", 45),
            ("period=months", 12),
            ("period=months&steps=0", 121),
            ("steps=1", 2),
            ("period=hours&steps=99", 24),
            ("period=weeks&steps=3", 3),
        ]
        for query, length in rows:
            series = self.ok("GET", f"/v1/broadcasts/20/metrics?{query}")["metric"]["series"]
            self.assertEqual({len(values) for values in series.values()}, {length}, query)
        for query in ("period=years", "steps=x", "type=fax", "version=2", "version=3"):
            self.assertEqual(self.status("GET", f"/v1/campaigns/1/metrics?{query}"), 400, query)

    def test_periods_begin_and_end_where_they_should(self) -> None:
        def edges(period: str, steps: int) -> list[str]:
            zone = datetime.timezone(datetime.timedelta(hours=-5))
            found = customerio_fake.period_edges(1_705_000_000, period, steps)  # 11 January 2024
            return [datetime.datetime.fromtimestamp(at, zone).isoformat()[:13] for at in found]

        self.assertEqual(edges("hours", 2), ["2024-01-11T13", "2024-01-11T14", "2024-01-11T15"])
        self.assertEqual(edges("days", 2), ["2024-01-10T00", "2024-01-11T00", "2024-01-12T00"])
        self.assertEqual(edges("weeks", 2), ["2023-12-31T00", "2024-01-07T00", "2024-01-14T00"])
        months = ["2023-11-01T00", "2023-12-01T00", "2024-01-01T00", "2024-02-01T00"]
        self.assertEqual(edges("months", 3), months)
        hour, utc = 1_704_999_600, datetime.timezone.utc
        for end, hours in ((hour + 3599, 1), (hour + 3600, 2), (hour + 3601, 2)):
            found = customerio_fake.range_edges(hour + 5, end, "hours", utc)
            self.assertEqual(found, [hour + 3600 * n for n in range(hours + 1)])

    def test_a_week_begins_on_sunday(self) -> None:
        # Saturday to Monday, 1 to 3 July 2023, in New York and for the metrics' version 1.
        zone = datetime.timezone(datetime.timedelta(hours=-5))
        days = [datetime.datetime(2023, 7, day, 12, tzinfo=zone).timestamp() for day in (1, 2, 3)]
        weeks = [customerio_fake.period_edges(day, "weeks", 1)[0] for day in days]
        sundays = [datetime.datetime(2023, *day, tzinfo=zone) for day in ((6, 25), (7, 2), (7, 2))]
        self.assertEqual(weeks, [sunday.timestamp() for sunday in sundays])

    def test_the_newest_send_is_in_the_last_step(self) -> None:
        message = {
            "to": "a@b.cd",
            "transactional_message_id": "RECEIPT",
            "identifiers": {"id": "ada"},
        }
        sent = self.ok("POST", "/v1/send/email", message)["delivery_id"]
        click = {"delivery_id": sent, "metric": "clicked", "href": "https://x.example"}
        for _ in range(2):
            self.ok("POST", "/api/v1/metrics", click)
        series = self.ok("GET", "/v1/transactional/3/metrics?steps=2")["metric"]["series"]
        self.assertEqual((series["created"], series["clicked"]), ([0, 1], [0, 1]))
        for unique, count in (("false", 2), ("0", 2), ("true", 1), ("1", 1)):
            path = f"/v1/transactional/3/metrics/links?unique={unique}"
            (link,) = self.ok("GET", path)["links"]
            self.assertEqual(link["link"], {"id": 1, "href": "https://x.example"})
            clicks = {name: sum(series) for name, series in link["metric"]["series"].items()}
            counts = {"clicked": count, "human_clicked": count, "machine_clicked": 0}
            self.assertEqual(clicks, counts)
        for name in ("messages", "deliveries"):
            (listed,) = self.ok("GET", f"/v1/transactional/3/{name}")["messages"]
            self.assertEqual((listed["id"], listed["transactional_message_id"]), (sent, 3))

    def test_journeys_need_their_range_under_either_name(self) -> None:
        path = "/v1/campaigns/1/journey_metrics?start=1700000000&end=1700000001"
        for name in ("res", "resolution"):
            metric = self.ok("GET", f"{path}&{name}=days")["journey_metric"]
            self.assertEqual((metric["started"], metric["messaged"]), ([1], [1]))
        self.assertEqual(self.status("GET", path), 400)
        self.ok("GET", "/v1/campaigns/1/journey_metrics?start=0&end=0&res=days")

    def test_answers_can_be_pasted(self) -> None:
        then = 1_700_000_000
        identifiers = {"id": None, "email": "gone@example.com", "cio_id": "0300"}
        old = {"id": "m2", "deduplicate_id": "m2:5", "msg_template_id": 9, "forgotten": True,
               "created": then, "failure_message": "why", "trigger_event_id": "e"}  # fmt: skip
        new = {**old, "id": "m3", "created": then + 1, "customer_identifiers": identifiers}
        archived = {"id": "m4", "body": "b", "reply_to": "r@b.cd", "preheader_text": "p",
                    "url": "u", "fake_bcc": True, "headers": {"X-A": "1"},
                    "recipient": "a@b.cd"}  # fmt: skip
        export = {"id": 4, "type": "customers", "total": 7, "status": "done", "user_id": 5}
        activity = {"id": "a1", "type": "event", "name": "x", "timestamp": then, "data": {"n": 1}}
        blocked = {"category": "bounces", "suppressions": [{"email": "A@b.cd", "status": "550"}]}
        self.fake.seed({
            "newsletters": [{"id": 1, "content_ids": [5, 6], "contents": [{"id": 6}]}],
            "segments": [{"name": "s", "deduplicate_id": "1:77", "state": "events"}],
            "imports": [{"id": 3, "name": "i", "state": "imported"}],
            "collections": [{"id": 1, "name": "c", "rows": 2, "bytes": 40, "schema": ["a"]}],
            "exports": [export], "messages": [new, old, archived], "activities": [activity],
            "esp_suppressions": [blocked],
            "triggers": [{"id": 2, "broadcast_id": 8, "errors": ["line 1: no"]}],
        })  # fmt: skip

        def read(path: str) -> Any:
            (answer, *_) = self.ok("GET", f"/v1/{path}").values()
            return answer

        self.assertEqual(sorted(read("newsletters/1")["content_ids"]), [5, 6])
        segment = read("segments/1")
        self.assertEqual((segment["deduplicate_id"], segment["state"]), ("1:77", "events"))
        self.assertEqual(read("imports/3")["state"], "imported")
        self.assertEqual((read("collections/1")["rows"], read("collections/1")["bytes"]), (2, 40))
        self.assertEqual({**read("exports")[0], **export}, read("exports")[0])
        listed = read(f"messages?end_ts={then + 9}")
        self.assertEqual([row["id"] for row in listed], ["m3", "m2"])
        self.assertEqual({**listed[0], **new}, listed[0])
        shown = read("messages/m4/archived_message")
        self.assertEqual({**shown, **archived}, shown)
        self.assertEqual({**read("activities")[0], **activity}, read("activities")[0])
        self.assertEqual(read("esp/search_suppression/a@b.cd"), "bounces")
        self.assertEqual(read("campaigns/8/triggers/2/errors"), ["line 1: no"])
        self.ok("PUT", "/v1/collections/1/content", [{"b": 1}])
        self.assertEqual(read("collections/1")["schema"], ["b"])

    def test_what_is_shown_of_seeds(self) -> None:
        phones = ("+15551234567", "{{customer.phone}}", "{% if a %}1{% endif %}")
        actions = [{"type": "twilio", "recipient": phone} for phone in phones]
        broadcast = {"id": 20, "recipients": {"segment": {"id": 1}}}
        seed: dict[str, Any] = {"segments": [{"id": 1, "name": "s"}], "broadcasts": [broadcast]}
        self.fake.seed({**seed, "campaigns": [{"id": 1, "actions": actions}]})
        shown = self.ok("GET", "/v1/campaigns/1/actions")["actions"]
        self.assertEqual([action["recipient"] for action in shown], ["+15551234567", "", ""])
        self.assertNotIn("recipients", self.ok("GET", "/v1/broadcasts/20")["broadcast"])

    def test_what_an_action_shows_that_says_nothing(self) -> None:
        rows: dict[str, Any] = {
            "whatsapp": {"body_json": "", "language": "", "recipient": "{{customer.phone}}",
                         "sender_identity_id": 0, "send_to_unsubscribed": False, "tracked": True},
            "webhook": {"layout": "", "url": "", "headers": "[]", "method": "post"},
            "twilio": {"layout": "", "language": "", "image_url": "", "recipient": ""},
        }  # fmt: skip
        self.fake.seed({"campaigns": [{"id": 1, "actions": [{"type": type} for type in rows]}]})
        for action in self.ok("GET", "/v1/campaigns/1/actions")["actions"]:
            told = rows[action["type"]]
            self.assertEqual({name: action[name] for name in told}, told)

    def test_how_far_back_messages_are_listed(self) -> None:
        day, now = 86400, self.fake.workspace.ground.seconds()
        seed: dict[str, Any] = {"messages": [], "campaigns": [{"id": 1}]}
        seed.update(newsletters=[{"id": 2}], broadcasts=[{"id": 3}], transactional=[{"id": 4}])
        parents = {"campaign_id": 1, "newsletter_id": 2, "broadcast_id": 3}
        parents["transactional_message_id"] = 4
        for days in (700, 690, 650, 400, 300, 100):
            for key, number in parents.items():
                row = {"id": f"{key[0]}{days}", key: number, "created": now - days * day}
                seed["messages"].append({**row, "customer_id": "ada"})
        self.fake.seed({**seed, "customers": [{"id": "ada"}]})

        def listed(path: str, start: int = 0, end: int = 0) -> list[str]:
            given = {"start_ts": now - start * day, "end_ts": now - end * day}
            query = "&".join(f"{k}={v}" for k, v in given.items() if v != now)
            rows = self.ok("GET", f"/v1/{path}/messages?{query}")["messages"]
            return [row["id"][1:] for row in rows]

        for path in ("campaigns/1", "transactional/4"):
            self.assertEqual(listed(path), ["100"], path)
        self.assertEqual(listed("newsletters/2"), ["650", "690", "700"])
        self.assertEqual(listed("broadcasts/3"), ["690", "700"])
        for path in ("campaigns/1", "newsletters/2", "broadcasts/3", "transactional/4"):
            self.assertEqual(listed(path, end=290), ["300", "400", "650"], path)
            self.assertEqual(listed(path, start=1000), ["100", "300"], path)
            self.assertEqual(listed(path, 410, 290), ["300", "400"], path)
        self.assertEqual(listed("customers/ada", end=290), ["300"] * 4 + ["400"] * 4)
        self.assertEqual(
            len(self.ok("GET", f"/v1/messages?start_ts={now - 700 * day}")["messages"]), 4
        )

    def test_to_the_second_how_far_back_messages_are_listed(self) -> None:
        day, now = 86_400, self.fake.workspace.ground.seconds()
        begin = now - 1000 * day
        rows = [(key, begin + days * day + more)
                for key, days in (("newsletter_id", 183), ("broadcast_id", 31))
                for days, more in ((0, 0), (days, 0), (days, 1))]  # fmt: skip
        rows += [("campaign_id", now - days * day - more)
                 for days in (366, 183) for more in (0, 1)]  # fmt: skip
        messages = [{"id": f"m{n}", key: 1, "customer_id": "ada", "created": when}
                    for n, (key, when) in enumerate(rows)]  # fmt: skip
        families = {kind: [{"id": 1}] for kind in ("newsletters", "broadcasts", "campaigns")}
        seed = {"clock": {"now": now, "freeze": True}, "messages": messages, **families}
        self.fake.seed(seed)
        for path, expected in (
            ("newsletters/1/messages", ["m1", "m0"]),
            ("broadcasts/1/messages", ["m4", "m3"]),
            ("campaigns/1/messages", ["m8"]),
            ("campaigns/1/messages?start_ts=5", ["m8", "m9", "m6"]),
            (f"messages?start_ts=5&campaign_id=1&end_ts={now + 1}", ["m8"]),
            (f"messages?end_ts={now - 1}&campaign_id=1", ["m8", "m9"]),
        ):
            found = self.ok("GET", f"/v1/{path}")["messages"]
            self.assertEqual([row["id"] for row in found], expected, path)

    def test_a_broadcast_begins_with_its_first_trigger(self) -> None:
        then = 1_600_000_000
        message = {"customer_id": "ada", "created": then + 40 * 86_400}
        keys = ("newsletter_id", "broadcast_id")
        self.fake.seed({
            "newsletters": [{"id": 1}], "broadcasts": [{"id": 1}],
            "messages": [{**message, "id": key, key: 1} for key in keys],
            "triggers": [{"broadcast_id": 1, "created_at": then}],
        })  # fmt: skip
        self.assertEqual(self.ok("GET", "/v1/broadcasts/1/messages")["messages"], [])
        self.assertEqual(len(self.ok("GET", "/v1/newsletters/1/messages")["messages"]), 1)

    def test_messages_are_filtered_and_paged_newest_first(self) -> None:
        for number in range(3):
            message = {"to": f"{number}@b.cd", "transactional_message_id": 3}
            self.ok("POST", "/v1/send/email", {**message, "identifiers": {"id": "bob"}})
        page = self.ok("GET", "/v1/messages?limit=2")
        self.assertEqual([m["recipient"] for m in page["messages"]], ["2@b.cd", "1@b.cd"])
        rest = self.ok("GET", f"/v1/messages?limit=2&start={page['next']}")
        self.assertEqual([m["recipient"] for m in rest["messages"]], ["0@b.cd"])
        for limit, more in ((3, False), (2, True)):
            self.assertEqual(
                bool(self.ok("GET", f"/v1/customers/bob/messages?limit={limit}")["next"]), more
            )
        window = "end_ts=1700010000"
        old = self.ok("GET", f"/v1/messages?{window}&metric=clicked")["messages"]
        self.assertEqual([m["id"] for m in old], ["m1"])
        self.assertEqual(
            self.ok("GET", "/v1/messages?end_ts=1700010000&campaign_id=2")["messages"], []
        )
        self.assertEqual(len(self.ok("GET", "/v1/customers/bob/messages")["messages"]), 3)
        self.assertEqual(self.ok("GET", "/v1/messages/m1")["message"]["campaign_id"], 1)
        self.assertEqual(self.status("GET", "/v1/messages/none"), 404)

    def test_an_archived_message_forgets_if_it_was_told_to(self) -> None:
        message = {"to": "a@b.cd", "identifiers": {"id": "ada"}, "body": "secret", "subject": "s"}
        for off in (False, True):
            body = {**message, "from": "x@y.zz", "disable_message_retention": off}
            sent = self.ok("POST", "/v1/send/email", body)["delivery_id"]
            path = f"/v1/messages/{sent}/archived_message"
            archived = self.ok("GET", path)["archived_message"]
            text = (archived["forgotten"], archived["body"].partition("<img")[0])
            self.assertEqual(text, (off, "" if off else "secret"))
            told = self.ok("GET", f"/v1/messages/{sent}")["message"]["forgotten"]
            self.assertIs(told, off)

    def test_triggers_are_read_back(self) -> None:
        number = self.ok("POST", "/v1/campaigns/20/triggers", {})["id"]
        (listed,) = self.ok("GET", "/v1/broadcasts/20/triggers")["triggers"]
        for base in ("campaigns", "broadcasts"):
            path = f"/v1/{base}/20/triggers/{number}"
            self.assertEqual(self.ok("GET", path), listed)
            self.assertEqual(self.ok("GET", f"{path}/errors"), {"errors": [], "next": ""})
        self.call("POST", "/v1/campaigns/20/triggers", {"ids": ["nobody"]})
        errors = self.ok("GET", f"/v1/campaigns/20/triggers/{number + 1}/errors")["errors"]
        self.assertEqual(errors, ["line 1: no person has the id 'nobody'"])
        self.assertEqual(self.status("GET", "/v1/broadcasts/20/triggers/99"), 404)


class AppNewsletters(SeededTest):
    GOOD: dict[str, Any] = {
        "name": "April",
        "type": "email",
        "subscription_topic_id": 1,
        "subject": "s",
        "body": "b",
        "recipients": {"and": [{"or": [{"segment": {"id": 2}}]}]},
    }

    def test_created_and_sent_to_its_segment(self) -> None:
        number = self.ok("POST", "/v1/newsletters", self.GOOD)["newsletter"]["id"]
        sent = self.ok("POST", f"/v1/newsletters/{number}/send", {})["newsletter"]
        self.assertTrue(sent["sent_at"])
        (message,) = self.ok("GET", f"/v1/newsletters/{number}/messages")["messages"]
        self.assertEqual((message["customer_id"], message["subject"]), ("ada", "s"))
        self.assertEqual(self.status("POST", f"/v1/newsletters/{number}/send", {}), 400)

    def test_one_for_an_app_or_a_url_needs_no_email(self) -> None:
        self.identify("plain")
        number = self.ok("POST", "/v1/segments", {"segment": {"name": "m"}})["segment"]["id"]
        self.ok("POST", f"/api/v1/segments/{number}/add_customers", {"ids": ["plain"]})
        audience = {"and": [{"or": [{"segment": {"id": number}}]}]}
        url = {"request_method": "post", "url": "https://x.example"}
        rows = [("in_app", {"body_json": "{}"}), ("webhook", {**url, "body": "{}"})]
        for type, content in rows:
            body = {**self.GOOD, "type": type, "recipients": audience, **content}
            made = self.ok("POST", "/v1/newsletters", body)["newsletter"]["id"]
            self.ok("POST", f"/v1/newsletters/{made}/send", {})
            (message,) = self.ok("GET", f"/v1/newsletters/{made}/messages")["messages"]
            found = (message["recipient"], message["failure_message"], "sent" in message["metrics"])
            self.assertEqual(found, ("plain", None, True))

    def test_a_schedule_is_kept_and_can_be_dropped(self) -> None:
        soon = self.fake.workspace.seconds() + 100
        path = "/v1/newsletters/30"
        self.ok("POST", f"{path}/schedule", {"scheduled_at": soon, "timezone": "UTC"})
        self.ok("POST", f"{path}/schedule", {"scheduled_at": 0})
        self.fake.workspace.agenda.advance(101)
        self.assertIsNone(self.ok("GET", path)["newsletter"]["sent_at"])
        soon = self.fake.workspace.seconds() + 100
        self.ok("POST", f"{path}/schedule", {"scheduled_at": soon, "timezone": "UTC"})
        self.fake.workspace.agenda.advance(101)
        self.assertTrue(self.ok("GET", path)["newsletter"]["sent_at"])
        self.assertEqual(len(self.ok("GET", f"{path}/messages")["messages"]), 1)

    def test_bad_ones_are_refused(self) -> None:
        rows: list[tuple[dict[str, Any], int, str]] = [
            ({"name": None}, 400, "name"),
            ({"type": "fax"}, 400, "type"),
            ({"subject": None}, 422, "subject"),
            ({"recipients": {"and": [{"segment": {"id": 1}}]}}, 422, "Invalid filter spec"),
            ({"rate_limit_email_rate": 5}, 422, "belong together"),
            ({"send_now": True, "scheduled_at": 9_999_999_999}, 422, "exclude"),
            ({"scheduled_at": 5}, 422, "scheduled_at must be in the future"),
            ({"name": "n" * 191}, 400, "name"),
        ]
        for change, status, text in rows:
            body = {**self.GOOD, **change}
            self.assert_errors(self.call("POST", "/v1/newsletters", body), status, text)
        rows = [
            ({}, 422, "scheduled_at"),
            ({"scheduled_at": 5, "timezone": "UTC"}, 422, "future"),
            ({"scheduled_at": 9_999_999_999}, 422, "timezone"),
            ({"scheduled_at": 9_999_999_999, "timezone": "Nowhere/X"}, 422, "Nowhere"),
            ({"scheduled_at": 0}, 400, "not scheduled"),
        ]
        for body, status, text in rows:
            reply = self.call("POST", "/v1/newsletters/30/schedule", body)
            self.assert_errors(reply, status, text)
        self.assertEqual(len(self.ok("GET", "/v1/newsletters")["newsletters"]), 1)
        self.ok("POST", "/v1/newsletters", {**self.GOOD, "name": "n" * 190})
        hourly = {"rate_limit_time_period": 3600, "rate_limit_email_rate": 5}
        late = {"scheduled_at": 9_999_999_999, "timezone": "UTC", "tz_match_enabled": True}
        self.ok("POST", "/v1/newsletters/30/schedule", {**late, **hourly})

    def test_languages_and_test_groups(self) -> None:
        path = "/v1/newsletters/30"
        spanish = {"language": "es", "subject": "Marzo", "body": "hola"}
        made = self.ok("POST", f"{path}/language", spanish)["newsletter"]
        self.assertEqual(len(made["content_ids"]), 2)
        self.assertEqual(self.status("POST", f"{path}/language", spanish), 422)
        for name in ("language", "subject", "body"):
            part = {k: v for k, v in {**spanish, "language": "fr"}.items() if k != name}
            reply = self.call("POST", f"{path}/language", part)
            self.assert_errors(reply, 422, f"{name} is required")
        self.ok("POST", f"{path}/test_groups", {})
        groups = self.ok("GET", f"{path}/test_groups")["test_groups"]
        self.assertEqual([group["name"] for group in groups], ["A", "B"])
        inner = f"{path}/test_group/{groups[1]['id']}/language"
        self.ok("POST", inner, {**spanish, "subject": "B"})
        self.assertEqual(self.status("GET", f"{path}/test_group/9/language/es"), 404)
        self.assertEqual(self.status("POST", f"{path}/test_group/9/language", spanish), 400)
        for spelling in ("test_group", "test_groups"):
            read = f"{path}/{spelling}/{groups[1]['id']}/language/es"
            self.assertEqual(self.ok("GET", read)["content"]["subject"], "B")
        self.assertEqual(self.ok("GET", f"{path}/language/es")["content"]["subject"], "Marzo")
        self.assertEqual(self.status("DELETE", f"{inner}/es"), 204)
        self.assertEqual(self.status("GET", f"{inner}/es"), 404)

    def test_deleted_with_its_metrics(self) -> None:
        order, total = {"newsletter_id": 30}, []
        self.ok("POST", "/v1/newsletters/30/send", {})
        for _ in range(2):
            export = self.ok("POST", "/v1/exports/deliveries", order)["export"]
            self.assertEqual((export["status"], export["total"]), ("pending", 0))
            total.append(self.ok("GET", f"/v1/exports/{export['id']}")["export"]["total"])
            self.call("DELETE", "/v1/newsletters/30")
        self.assertEqual(total, [1, 0])

    def test_deleted_with_its_contents(self) -> None:
        self.assertEqual(self.status("DELETE", "/v1/newsletters/30"), 204)
        self.assertEqual(self.status("GET", "/v1/newsletters/30"), 404)


class AppOthers(SeededTest):
    def test_snippets(self) -> None:
        self.assertEqual(self.status("POST", "/v1/snippets", {"name": "footer", "value": "x"}), 422)
        row = self.ok("PUT", "/v1/snippets", {"name": " new ", "value": " v "})["snippet"]
        self.assertEqual((row["name"], row["value"]), ("new", "v"))
        reply = self.call("DELETE", "/v1/snippets/footer")
        self.assert_errors(reply, 400, '"detail":"unable to delete snippet in use"')
        self.assertEqual(self.status("DELETE", "/v1/snippets/spare"), 204)
        self.assertEqual(self.status("DELETE", "/v1/snippets/spare"), 404)
        self.assertEqual(len(self.ok("GET", "/v1/snippets")["snippets"]), 2)

    def test_collections(self) -> None:
        body = {"name": "c", "data": [{"a": 1}, {"b": 2}]}
        made = self.ok("POST", "/v1/collections", body)["collection"]
        self.assertEqual((made["rows"], made["schema"]), (2, ["a", "b"]))
        path = f"/v1/collections/{made['id']}"
        self.ok("PUT", f"{path}/content", [{"z": 1}])
        self.assertEqual(self.ok("GET", f"{path}/content"), [{"z": 1}])
        self.assertEqual(self.ok("PUT", path, {"name": "d"})["collection"]["name"], "d")
        self.assertEqual(self.status("DELETE", path), 204)
        self.assertEqual(self.status("GET", path), 404)
        bad: list[Any] = [{"name": "x"}, {"name": "x", "data": [1]}, {"data": []}]
        bad.append({"name": "x", "data": [{"a": "b" * 9993}]})
        self.ok("POST", "/v1/collections", {"name": "x", "data": [{"a": "b" * 9992}]})
        for body in bad:
            self.assertEqual(self.status("POST", "/v1/collections", body), 400)
        self.assertEqual(self.status("PUT", "/v1/collections/99", {"name": "x"}), 404)

    def test_a_collection_comes_to_ten_megabytes_at_most(self) -> None:
        rows = [{"a": "b" * 9992}] * 1000
        self.assertIs(customerio_fake.checked_collection(rows, "data"), rows)
        with self.assertRaisesRegex(ApiError, "data: 10000000 bytes"):
            customerio_fake.checked_collection([*rows, {}], "data")

    def test_a_file_of_a_collection_is_json_or_csv(self) -> None:
        for text in (' [{"a": "1"}]', "a\n1\n"):
            with mock.patch.object(customerio_fake, "fetched", return_value=text.encode()):
                body = {"name": "c", "url": "https://x.example/f"}
                number = self.ok("POST", "/v1/collections", body)["collection"]["id"]
            self.assertEqual(self.ok("GET", f"/v1/collections/{number}/content"), [{"a": "1"}])

    def test_sender_identities(self) -> None:
        shelf = self.fake.workspace.shelves["sender_identities"]
        for number in range(1001, 2101):
            shelf.add({**shelf.rows[5], "hidden": True}, number)
        pages = [self.ok("GET", f"/v1/sender_identities{q}") for q in ("", "?limit=2000")]
        self.assertEqual([len(page["sender_identities"]) for page in pages], [100, 1000])
        for number in range(1001, 2101):
            shelf.remove(number)
        (sender,) = self.ok("GET", "/v1/sender_identities")["sender_identities"]
        self.assertEqual(sender["email"], "shop@example.com")
        used = self.ok("GET", "/v1/sender_identities/5/used_by")
        self.assertEqual((used["campaigns"], used["draft_newsletters"]), ([], [30]))
        self.assertEqual(self.status("GET", "/v1/sender_identities/6"), 404)

    def test_reporting_webhooks(self) -> None:
        body = {"name": "w", "endpoint": "https://u:p@example.com/x", "events": ["email_sent"]}
        made = self.ok("POST", "/v1/reporting_webhooks", body)
        self.assertEqual({**made, **body}, made)
        path = f"/v1/reporting_webhooks/{made['id']}"
        self.assertTrue(self.ok("PUT", path, {"disabled": True})["disabled"])
        mistakes: list[Any] = [{"events": []}, {"events": ["x"]}, {"endpoint": "ftp://x"}]
        for bad in [*mistakes, {"name": 3}]:
            self.assertEqual(self.status("POST", "/v1/reporting_webhooks", {**body, **bad}), 400)
        self.assertEqual(self.status("DELETE", path), 204)
        self.assertEqual(self.status("GET", path), 404)

    def test_esp_suppression_in_both_spellings(self) -> None:
        self.ok("POST", "/v1/esp/suppression/bounces/A@example.com")
        self.ok("PUT", "/v1/esp_suppression/b@example.com")
        rows = self.ok("GET", "/v1/esp/suppression/bounces")["suppressions"]
        self.assertEqual([row["email"] for row in rows], ["A@example.com", "b@example.com"])
        for path in ("esp/search_suppression", "esp_suppression"):
            found = self.ok("GET", f"/v1/{path}/a@example.com")
            self.assertEqual((found["category"], len(found["suppressions"])), ("bounces", 1))
        found = self.ok("POST", "/v1/esp_suppression/search", {"emails": ["B@example.com"]})
        self.assertEqual(len(found["suppressions"]), 1)
        self.assertEqual(self.status("DELETE", "/v1/esp/suppression/bounces/a@example.com"), 204)
        self.assertEqual(self.status("DELETE", "/v1/esp/suppression/bounces/a@example.com"), 404)
        self.assertEqual(self.status("POST", "/v1/esp/suppression/nonsense/a@example.com"), 404)
        self.assertEqual(self.status("POST", "/v1/esp_suppression/search", {"emails": 1}), 400)
        for offset, count in ((0, 1), (1, 0)):
            found = self.ok("GET", f"/v1/esp/suppression/bounces?offset={offset}")["suppressions"]
            self.assertEqual(len(found), count, offset)
        domain = "/v1/esp/domains/{}/suppression/bounces"
        for name, count in (("example.com", 1), ("other.example", 0)):
            rows = self.ok("GET", domain.format(name))["suppressions"]
            self.assertEqual(len(rows), count)

    def test_the_data_index_in_both_spellings(self) -> None:
        row = {"name": "plan", "description": "what they pay for", "privacy_level": 1}
        self.assertEqual(
            self.status("POST", "/v1/data_index/attributes", {"attributes": [row]}), 204
        )
        listed = self.ok("GET", "/v1/index/attributes")["attributes"]
        self.assertIn(row, listed)
        self.ok("POST", "/api/v1/customers/ada/events", {"name": "bought"})
        self.assertEqual(self.ok("GET", "/v1/index/events")["events"], [{"name": "bought"}])
        rows: list[tuple[Any, int, str]] = [
            ({}, 400, "Invalid request format"),
            ({"events": []}, 422, "Empty events array"),
            ({"events": [{"name": "x"}] * 101}, 422, "Too many events"),
            ({"events": [{}]}, 400, "name"),
            ({"events": [{"name": "x", "privacy_level": 2}]}, 400, "privacy_level"),
        ]
        for body, status, text in rows:
            self.assert_errors(self.call("POST", "/v1/data_index/events", body), status, text)

    def test_workspaces_and_addresses(self) -> None:
        (workspace,) = self.ok("GET", "/v1/workspaces")["workspaces"]
        self.assertEqual((workspace["people"], workspace["messages_sent"]), (2, 1))
        reply = self.call("GET", "/v1/info/ip_addresses", authorization="")
        self.assertEqual(reply.json, {"ip_addresses": ["127.0.0.1"]})
        names = [{"id": number, "name": name} for number, name in enumerate("ab", 1)]
        self.ok("POST", "/__parlel/seed", {**self.SEED, "workspaces": names})
        first, second = self.ok("GET", "/v1/workspaces")["workspaces"]
        self.assertEqual((first["name"], first["people"]), ("a", 2))
        counts = ("messages_sent", "billable_messages_sent", "people", "object_types", "objects")
        self.assertEqual(second, {**names[1], **dict.fromkeys(counts, 0)})

    def imported(self, text: str, **order: Any) -> Any:
        """Import a CSV; gives the import when it is done."""
        body = {"name": "n", "data_file_url": "https://x.example/f.csv", **order}
        with mock.patch.object(customerio_fake, "fetched", lambda url, name: text.encode()):
            made = self.ok("POST", "/v1/imports", {"import": body})["import"]
        counts = (made["rows_to_import"], made["rows_imported"])
        self.assertEqual((made["state"], *counts), ("preprocessing", 0, 0))
        return self.ok("GET", f"/v1/imports/{made['id']}")["import"]

    def errors_of(self, row: Any) -> str:
        """The lines that an import could not take."""
        path = row["error_download_url"].partition("4668")[2]
        self.assertEqual(path, f"/v1/exports/{row['error_export_id']}/download")
        link = self.ok("GET", path)["url"].partition("4668")[2]
        return self.call("GET", link, authorization="").body.decode()

    def test_imports_of_every_type(self) -> None:
        people = "id,plan\neve,pro\n,nobody\n"
        files = {
            "people": people,
            "event": "id,name,price\neve,bought,5\n",
            "object": "object_id,size\nacme,3\n",
            "relationship": "object_type_id,object_id,id,role\n1,acme,eve,boss\n",
        }
        for type, text in files.items():
            row = self.imported(text, type=type, identifier="id", object_type_id=1)
            done = (row["state"], row["rows_to_import"], row["rows_imported"])
            self.assertEqual(done, ("imported", *((2, 1) if type == "people" else (1, 1))))
        self.assertEqual(self.person("eve")["attributes"], {"plan": "pro"})
        self.assertEqual(self.records("events")[0]["data"], {"price": "5"})
        (thing,) = self.records("objects")
        expected = [{"customer_id": "eve", "attributes": {"role": "boss"}}]
        self.assertEqual((thing["attributes"], thing["relationships"]), ({"size": "3"}, expected))
        row = self.ok("GET", "/v1/imports/1")["import"]
        self.assertIn("3,id is required", self.errors_of(row))
        export = self.ok("GET", f"/v1/exports/{row['error_export_id']}")["export"]
        self.assertEqual(export["type"], "customers")

    def test_events_that_are_imported_add_nobody(self) -> None:
        text = "id,name\nada,bought\nstranger,bought\n"
        row = self.imported(text, type="event", identifier="id")
        self.assertEqual((row["rows_to_import"], row["rows_imported"]), (2, 1))
        self.assertIn('3,"unknown person', self.errors_of(row))
        self.assertEqual([e["customer_id"] for e in self.records("events")], ["ada"])
        self.assertEqual(self.status("GET", "/v1/customers/stranger/attributes"), 404)

    def test_a_csv_has_100_columns_at_most(self) -> None:
        for columns, state in ((100, "imported"), (101, "failed")):
            text = ",".join(["id", *(f"c{n}" for n in range(1, columns))]) + "\nada\n"
            row = self.imported(text, type="people", identifier="id")
            self.assertEqual(row["state"], state)
        self.assertIn("101 columns", row["error"])
        self.assertEqual((row["rows_to_import"], row["rows_imported"]), (0, 0))

    def test_how_many_collections_and_snippets_there_may_be(self) -> None:
        for number in range(49):
            self.ok("POST", "/v1/collections", {"name": f"c{number}", "data": []})
        reply = self.call("POST", "/v1/collections", {"name": "one more", "data": []})
        self.assert_errors(reply, 400, "50 collections")
        self.ok("PUT", "/v1/collections/1", {"name": "renamed"})
        for length, status in ((151, 422), (150, 200)):
            row = {"name": "n" * length, "value": ""}
            self.assertEqual(self.status("PUT", "/v1/snippets", row), status)
        rows = self.fake.workspace.shelves["snippets"].rows
        rows["spare"] = {"name": "spare", "value": "x" * (5_000_000 - 3 - 7)}  # 3 are in "bye"
        for value, status in (("12345678", 422), ("1234567", 200), ("123456\u00e9", 422)):
            self.assertEqual(
                self.status("PUT", "/v1/snippets", {"name": "x", "value": value}), status
            )

    def test_an_import_repeats_what_belongs_to_its_type(self) -> None:
        rows = [
            ("people", {"identifier", "people_to_process"}),
            ("event", {"identifier", "people_to_process"}),
            ("object", {"object_type_id"}),
            ("relationship", {"identifier"}),
        ]
        given = {"identifier": "id", "object_type_id": 1, "data_to_process": "only_existing"}
        for type, expected in rows:
            row = self.imported("id,object_id,name\n", type=type, **given)
            own = {"identifier", "object_type_id", "people_to_process"} & set(row)
            self.assertEqual((own, row["data_to_process"]), (expected, "only_existing"))
        self.assertEqual(self.ok("GET", "/v1/imports/3")["import"]["object_type_id"], "1")

    def test_the_older_name_of_what_to_process_is_understood(self) -> None:
        order = {"type": "people", "identifier": "id", "people_to_process": "only_new"}
        row = self.imported("id,plan\nada,none\neve,none\n", **order)
        self.assertEqual((row["data_to_process"], row["people_to_process"]), ("only_new",) * 2)
        plans = {p["id"]: p["attributes"]["plan"] for p in self.records("customers")}
        self.assertEqual(plans, {"ada": "pro", "bob": "free", "eve": "none"})

    def test_objects_and_relationships_are_imported_as_far_as_wanted(self) -> None:
        order: dict[str, Any] = {"type": "object", "object_type_id": "1"}
        self.imported("object_id,size\nacme,1\n", **order)
        self.imported("object_id,size\nacme,2\nnew,2\n", **order, data_to_process="only_new")
        again = "object_id,size\nacme,3\nother,3\n"
        self.imported(again, **order, data_to_process="only_existing")
        sizes = {
            thing["object_id"]: thing["attributes"]["size"] for thing in self.records("objects")
        }
        self.assertEqual(sizes, {"acme": "3", "new": "2"})
        order = {"type": "relationship", "identifier": "email", "data_to_process": "only_existing"}
        self.imported("object_id,email\nacme,ada@example.com\n", **order)
        self.assertEqual(self.records("objects")[0]["relationships"], [])
        order["data_to_process"] = "only_new"
        self.imported("object_id,email\nacme,ada@example.com\n", **order)
        related = self.records("objects")[0]["relationships"]
        self.assertEqual([row["customer_id"] for row in related], ["ada"])

    def test_lines_with_errors_speak_of_their_columns(self) -> None:
        row = self.imported("object_id,size\n,3\n", type="object", object_type_id="1")
        self.assertEqual(
            self.errors_of(row).splitlines()[1], "2,object_id is required: send a value"
        )
        text = "object_id,object_type_id,email\na,x,ada@example.com\na,1,\n"
        row = self.imported(text, type="relationship", identifier="email")
        errors = self.errors_of(row).splitlines()[1:]
        starts = ["2,object_type_id must be", "3,email is required"]
        for error, start in zip(errors, starts):
            self.assertTrue(error.startswith(start), error)
        self.assertEqual(len(errors), 2)

    def test_objects_of_an_unknown_type_fail_to_import_once_types_are_seeded(self) -> None:
        text, order = "object_id\na\n", {"type": "object", "object_type_id": "2"}
        self.assertEqual(self.imported(text, **order)["state"], "imported")
        self.fake.seed({"object_types": [{"id": 1, "name": "Companies"}]})
        self.assertEqual(self.imported(text, type="object", object_type_id=1)["state"], "imported")
        row = self.imported(text, **order)
        reason = "The specified Object Type does not exist."
        self.assertEqual((row["state"], row["error"], row["rows_imported"]), ("failed", reason, 0))
        self.assertEqual(len(self.records("objects")), 1)

    def test_bad_imports_are_refused(self) -> None:
        rows: list[tuple[dict[str, Any], str]] = [
            ({"type": "people"}, "identifier"),
            ({"type": "relationship"}, "identifier"),
            ({"type": "object"}, "object_type_id"),
            ({"type": "people", "identifier": "cio_id"}, "id, email"),
            ({"type": "relationship", "identifier": "phone"}, "id, email, cio_id"),
            ({"type": "object", "object_type_id": "x"}, "object_type_id must be a number"),
            ({"type": "event", "identifier": "id", "data_to_process": "only_new"}, "only_existing"),
            ({"type": "people", "identifier": "id", "people_to_process": "x"}, "people_to_process"),
        ]
        for order, word in rows:
            body = {"name": "n", "data_file_url": "https://x.example/f.csv", **order}
            self.assert_errors(self.call("POST", "/v1/imports", {"import": body}), 400, word)
        self.assertEqual(self.call("GET", "/v1/imports/1").status, 404)


class RateLimits(SeededTest):
    settings = {"rate_limits": True}

    def test_the_eleventh_read_of_a_second_is_too_many(self) -> None:
        statuses = [self.status("GET", "/v1/segments") for _ in range(11)]
        self.assertEqual(statuses, [200] * 10 + [429])
        reply = self.call("GET", "/v1/segments")
        detail = reply.json["errors"][0]["detail"]
        self.assertRegex(detail, r"^rate limited to 10 requests per 1s \(reference [0-9a-f]{6}\)$")
        self.assertEqual(reply.headers["retry-after"], "1")
        self.fake.workspace.agenda.advance(1)
        self.assertEqual(self.status("GET", "/v1/segments"), 200)

    def test_a_limit_ends_exactly_when_it_says(self) -> None:
        self.ok("PUT", "/__parlel/clock", {"freeze": True, "now": 1_900_000_000})
        for later, status in ((0, 200), (9, 429), (1, 200)):
            self.fake.workspace.agenda.advance(later)
            reply = self.call("POST", "/v1/campaigns/20/triggers", {})
            self.assertEqual(reply.status, status, later)

    def test_a_query_has_a_hundred_fields_at_most(self) -> None:
        for count, status in ((100, 200), (101, 400)):
            reply = self.call("GET", "/v1/newsletters?" + "&".join(["limit=1"] * count))
            self.assertEqual(reply.status, status, reply.body)

    def test_a_broadcast_has_a_limit_of_its_own(self) -> None:
        self.assertEqual(self.status("POST", "/v1/campaigns/20/triggers", {}), 200)
        self.assertEqual(self.status("POST", "/v1/campaigns/20/triggers", {}), 429)
        self.assertEqual(self.status("POST", "/v1/campaigns/21/triggers", {}), 404)
        self.fake.workspace.agenda.advance(10)
        self.assertEqual(self.status("POST", "/v1/campaigns/20/triggers", {}), 200)

    def test_a_daily_quota_says_nothing_of_later(self) -> None:
        for _ in range(100):
            self.call("GET", "/v1/messages/m1/archived_message")
        reply = self.call("GET", "/v1/messages/m1/archived_message")
        self.assertEqual((reply.status, "retry-after" in reply.headers), (429, False))

    def test_how_many_in_what_time(self) -> None:
        workspace, settings = self.fake.workspace, self.fake.settings
        workspace.clock.freeze()
        for method, path, most, period in (
            ("POST", "/v1/campaigns/20/triggers", 1, 10),
            ("POST", "/v1/send/email", 3000, 3),
            ("GET", "/v1/messages/m1/archived_message", 100, 86_400),
            ("POST", "/v1/design_studio/emails/1/publish", 5, 1),
            ("GET", "/v1/design_studio/emails/1", 10, 1),
        ):
            request = Request(method, path, {})
            operation = customerio_fake.find_operation(request)
            args = workspace, settings, operation, request
            for _ in range(most):
                customerio_fake.check_rate(*args)
            for wait in (period - 0.25, 0.25):
                with self.assertRaisesRegex(ApiError, f"to {most} requests per {period}s"):
                    customerio_fake.check_rate(*args)
                workspace.agenda.advance(wait)
            customerio_fake.check_rate(*args)


class PageSizes(SeededTest):
    """How many rows a page has if nobody says, and at most."""

    MANY = range(1, 1002)
    SEED = {
        "customers": [{"id": str(n)} for n in MANY],
        "newsletters": [{"id": n, "name": "n", "type": "email"} for n in MANY],
        "objects": [{"object_type_id": 1, "object_id": str(n)} for n in MANY],
        "activities": [{"type": "event", "name": "e", "customer_id": "1"} for _ in range(101)],
        "esp_suppressions": [
            {"type": "bounces", "suppressions": [{"email": f"{n}@b.cd"} for n in MANY]}
        ],
        "campaigns": [{"id": 1, "actions": [{"id": n, "type": "email"} for n in range(1, 12)]}],
    }

    def test_by_default_and_at_most(self) -> None:
        everybody = {"attribute": {"field": "id", "operator": "exists"}}
        every = {"object_type_id": "1", "filter": {"object_attribute": {
            "field": "none", "operator": "not_exists", "type_id": "1"}}}  # fmt: skip
        rows: List[Any] = [
            ("/v1/activities", "activities", 10, 100, None),
            ("/v1/newsletters", "newsletters", 100, 1000, None),
            ("/v1/esp/suppression/bounces", "suppressions", 100, 1000, None),
            ("/v1/campaigns/1/actions", "actions", 10, 10, None),
            ("/v1/customers", "identifiers", 50, 1000, {"filter": everybody}),
            ("/v1/objects", "identifiers", 50, 1000, every),
        ]
        for path, name, default, most, body in rows:
            method = "POST" if body else "GET"
            for query, count in (("", default), ("?limit=5000", most), ("?limit=1", 1)):
                with self.subTest(path + query):
                    found = self.ok(method, path + query, body)
                    self.assertEqual(len(found[name]), min(count, most))
                    self.assertTrue(found["next"])
            self.assert_errors(self.call(method, f"{path}?limit=0", body), 400, "at least 1")

    def test_a_page_of_a_segment_has_a_thousand(self) -> None:
        exists = {"attribute": {"field": "id", "operator": "exists"}}
        segment = {"id": 1, "name": "all", "conditions": exists}
        self.fake.seed({"customers": self.SEED["customers"], "segments": [segment]})
        for query, count, more in (("", 1000, True), ("?limit=5000", 1001, False)):
            page = self.ok("GET", f"/v1/segments/1/membership{query}")
            self.assertEqual((len(page["ids"]), bool(page["next"])), (count, more))


class UnseededReads(FakeTest):
    """What a workspace answers in which nobody has described anything."""

    def test_reading_does_not_change_what_is_answered_later(self) -> None:
        paths = [
            "campaigns/1", "campaigns/1/actions/1", "campaigns/1/actions/1/language/fr",
            "newsletters/2/contents/5", "newsletters/2/language/de", "broadcasts/3/actions/7",
            "transactional/4/contents", "transactional/4/language/es", "sender_identities/1",
            "campaigns", "newsletters", "campaigns/1/actions", "sender_identities",
        ]  # fmt: skip
        self.fake.workspace.clock.freeze()
        answers = [self.ok("GET", f"/v1/{path}") for path in paths]
        for order in (reversed(paths), paths):
            again = {path: self.ok("GET", f"/v1/{path}") for path in order}
            self.assertEqual([again[path] for path in paths], answers)
        self.assertEqual(answers[paths.index("campaigns")], {"campaigns": []})
        self.assertEqual(answers[paths.index("sender_identities/1")]["sender_identity"]["id"], 1)

    def test_links_are_numbered_when_they_are_clicked_not_when_they_are_counted(self) -> None:
        send = {"to": "a@b.cd", "identifiers": {"id": "1"}, "transactional_message_id": 1}
        sent = self.ok("POST", "/v1/send/email", send)["delivery_id"]
        for metric, href in (("opened", "http://o"), ("clicked", "http://c")):
            report = {"delivery_id": sent, "metric": metric, "href": href}
            self.ok("POST", "/api/v1/metrics", report)
        (row,) = self.ok("GET", "/v1/transactional/1/metrics/links?unique=true")["links"]
        self.assertEqual(row["link"], {"id": 1, "href": "http://c"})
        self.assertEqual(sum(row["metric"]["series"]["clicked"]), 1)

    def test_what_one_has_made_leaves_no_room_for_others(self) -> None:
        self.ok("GET", "/v1/newsletters/99")
        recipients = {"and": [{"or": [{"segment": {"id": 1}}]}]}
        letter = {"name": "x", "type": "email", "subject": "s", "body": "b"}
        self.ok("POST", "/v1/newsletters", {**letter, "recipients": recipients})
        self.assertEqual(self.call("GET", "/v1/newsletters/99").status, 404)

    def test_what_is_written_is_there_to_be_read(self) -> None:
        for path in ("campaigns/1/actions/6", "newsletters/2/contents/5"):
            self.ok("PUT", f"/v1/{path}", {"subject": "Hi"})
            (content,) = self.ok("GET", f"/v1/{path}").values()
            self.assertEqual(content["subject"], "Hi")
        self.assertEqual([c["id"] for c in self.ok("GET", "/v1/campaigns")["campaigns"]], [1])

    def test_some_lists_of_an_empty_workspace_are_null(self) -> None:
        for name in ("exports", "collections", "reporting_webhooks"):
            self.assertEqual(self.ok("GET", f"/v1/{name}"), {name: None})
        self.assertEqual(self.ok("GET", "/v1/snippets"), {"snippets": []})
        channels = self.ok("GET", "/v1/subscription_channels")["channels"]
        names = [(1, "email"), (2, "twilio"), (3, "push"), (4, "in_app"), (5, "whatsapp")]
        self.assertEqual([(row["id"], row["type"]) for row in channels], names)
        self.ok("POST", "/v1/collections", {"name": "days", "data": []})
        self.assertEqual(len(self.ok("GET", "/v1/collections")["collections"]), 1)


class AppRefusals(SeededTest):
    """What does not fit together is refused by name, and what does is done."""

    RECIPIENTS: ClassVar[Any] = {"and": [{"or": [{"segment": {"id": 2}}]}]}

    def test_what_does_not_fit_is_named(self) -> None:
        other = {"id": 4, "name": "O", "contents": [{"id": 41, "subject": "a", "body": "b"}]}
        self.fake.seed({**self.SEED, "transactional": [*self.SEED["transactional"], other]})
        letter = {"name": "x", "type": "email", "subject": "s", "body": "b"}
        letter.update(recipients=self.RECIPIENTS)
        push = {"name": "x", "type": "push", "recipients": self.RECIPIENTS}
        late = {"scheduled_at": 9_999_999_999, "timezone": "UTC", "tz_match_enabled": True}
        days = "/v1/campaigns/1/metrics?version=2&res=hours&start=5"
        rows: list[tuple[str, str, Any, int, str]] = [
            ("GET", f"{days}&end=4", None, 400, "end must not be before start"),
            ("GET", f"{days}&end=999999999", None, 400, "are more than 100000 hours apart"),
            ("PUT", "/v1/transactional/3/content/41", {"body": "x"}, 400, "to another message"),
            ("POST", "/v1/newsletters", push, 422, "subject or body is required"),
            ("POST", "/v1/newsletters", {**letter, "from_id": 5, "from": "a@b.cd"}, 422,
             "from and from_id exclude each other"),
            ("POST", "/v1/newsletters", {**letter, "from_id": 6}, 422, "names no sender identity"),
            ("POST", "/v1/newsletters", letter, 422, "subscription_topic_id is required"),
            ("POST", "/v1/newsletters/30/schedule",
             {**late, "rate_limit_time_period": 86400, "rate_limit_email_rate": 5}, 422,
             "rate_limit_time_period must be an hour at most"),
            ("PUT", "/v1/collections/1", {"url": "ftp://x"}, 400, "url must be an http or https"),
            ("PUT", "/v1/collections/1", {"url": 5}, 400, "url must be an http or https"),
            ("DELETE", "/v1/newsletters/30/test_group/9/language/es", None, 400, "unknown test"),
        ]  # fmt: skip
        for method, path, body, status, text in rows:
            with self.subTest(text):
                self.assert_errors(self.call(method, path, body), status, text)
        self.assertEqual(len(self.ok("GET", "/v1/newsletters")["newsletters"]), 1)
        self.ok("POST", "/v1/newsletters", {**letter, "subscription_topic_id": 1, "from_id": 5})

    def test_a_send_has_a_million_bytes_besides_its_attachments(self) -> None:
        mail = {"to": "a@b.cd", "identifiers": {"id": "ada"}, "transactional_message_id": 3}
        file = base64.b64encode(b"x" * 300).decode()
        for more, size in ({}, 0), ({"attachments": {"a.txt": file}}, len(file)):
            for extra, status in ((0, 200), (1, 400)):
                body = json.dumps({**mail, **more}).encode().ljust(1_000_000 + size + extra)
                self.assertEqual(self.call("POST", "/v1/send/email", body).status, status)

    def test_a_send_may_be_packed(self) -> None:
        mail = {"to": "a@b.cd", "identifiers": {"id": "ada"}, "transactional_message_id": 3}
        body = gzip.compress(json.dumps(mail).encode())
        self.ok("POST", "/v1/send/email", body, content_encoding="gzip")
        sent = self.records("deliveries")[-1]
        self.assertEqual((sent["message"]["to"], sent["recipient"]), ("a@b.cd", "a@b.cd"))

    def test_groups_of_a_newsletter_have_contents_of_their_own(self) -> None:
        path = "/v1/newsletters/30"
        (old, new) = self.ok("POST", f"{path}/test_groups", {})["newsletter"]["content_ids"]
        second = self.ok("GET", f"{path}/test_groups")["test_groups"][1]["id"]
        spanish = {"language": "es", "subject": "Marzo", "body": "b"}
        reply = self.call("POST", f"{path}/language", spanish)
        self.assert_errors(reply, 400, "several test groups: name one of them")
        inner = f"{path}/test_group/{second}/language"
        self.ok("POST", inner, spanish)
        self.ok("PUT", f"{inner}/es", {"subject": "Abril"})
        self.assertEqual(self.ok("GET", f"{inner}/es")["content"]["subject"], "Abril")
        self.assertEqual(self.call("DELETE", f"{inner}/es").status, 204)
        self.ok("PUT", f"{path}/contents/{new}", {"subject": "Other"})
        for id in ("1", "2", "3"):
            self.identify(id, plan="PRO", email=f"{id}@example.com")
        self.ok("POST", f"{path}/send", {})
        sent = self.records("deliveries")
        told = [(d["parents"].get("content_id"), d["rendered"].get("subject")) for d in sent]
        letters = [row for row in told if row[0]]
        self.assertEqual(letters, [(old, "March"), (new, "Other")] * 2)

    def test_senders_are_chosen_and_sorted(self) -> None:
        more = [{"id": 6, "email": "a@b.cd", "hidden": True}, {"id": 7, "email": "c@d.ef"}]
        senders = [*self.SEED["sender_identities"], *more]
        self.fake.seed({**self.SEED, "sender_identities": senders})
        rows = [("", [5, 6, 7]), ("?sort=asc", [5, 6, 7]), ("?sort=desc", [7, 6, 5]),
                ("?hidden=true", [6]), ("?hidden=false", [5, 7])]  # fmt: skip
        for query, ids in rows:
            found = self.ok("GET", f"/v1/sender_identities{query}")["sender_identities"]
            self.assertEqual([row["id"] for row in found], ids, query)

    def test_what_a_collection_holds_is_replaced(self) -> None:
        self.ok("PUT", "/v1/collections/1", {"name": "d"})
        self.assertEqual(self.ok("GET", "/v1/collections/1/content"), [{"day": "monday"}])
        told = self.ok("PUT", "/v1/collections/1", {"data": [{"day": "x"}, {"n": 1}]})["collection"]
        self.assertEqual((told["name"], told["rows"], told["schema"]), ("d", 2, ["day", "n"]))
        self.assertEqual(self.ok("GET", "/v1/collections/1/content"), [{"day": "x"}, {"n": 1}])
        self.ok("PUT", "/v1/collections/1", {"data": []})
        self.assertEqual(self.ok("GET", "/v1/collections/1/content"), [])

    def test_an_endpoint_begins_enabled_and_with_little(self) -> None:
        body = {"name": "w", "endpoint": "http://127.0.0.1:1/x", "events": ["email_sent"]}
        told = {"id": 1, "type": "webhook", **dict.fromkeys(
            ("disabled", "full_resolution", "with_content"), False)}  # fmt: skip
        self.assertEqual(self.ok("POST", "/v1/reporting_webhooks", body), {**told, **body})

    def test_who_is_related_to_an_object_of_a_disabled_type(self) -> None:
        types = [{"id": 1, "name": "Company", "enabled": True}, {"id": 2, "enabled": False}]
        related = [{"identifiers": {"id": "ada"}, "attributes": {"role": "boss"}}]
        objects = [
            {"object_type_id": str(n), "object_id": "a", "relationships": related} for n in (1, 2)
        ]
        self.fake.seed({**self.SEED, "object_types": types, "objects": objects})
        for number in ("1", "2"):
            path = f"/v1/objects/{number}/a/relationships"
            (row,) = self.ok("GET", path)["cio_relationships"]
            self.assertEqual(row["identifiers"]["id"], "ada")
            self.assertEqual(row["object_type_id"], number)
            self.assertEqual(row["object_type_disabled"], number == "2")


START = 2_000_000_000
ADA_NAMED = {"id": "ada", "email": "ada@example.com", "cio_id": "dcb106000001"}
#: What is read of a small workspace, in full.
IN_FULL: Dict[str, Any] = {
    "workspaces": {"workspaces": [{"id": 104668, "name": "customerio_fake", "messages_sent": 1,
        "billable_messages_sent": 1, "people": 2, "object_types": 1, "objects": 1}]},
    "object_types": {"types": [{"name": "Company", "slug": "company", "singular_name": "Company",
        "singular_slug": "company", "enabled": True, "icon": "", "id": "1"}]},
    "objects/1/a/attributes": {"object": {"object_type_id": "1", "identifiers": {"object_id": "a",
        "cio_object_id": "obdcb1060101"}, "attributes": {"n": "1"}, "timestamps": {"n": START}}},
    "objects/1/a/relationships": {"cio_relationships": [{"identifiers": ADA_NAMED, "object_type_id":
        "1", "object_type_disabled": False, "attributes": {"role": "boss"}, "timestamps": {"role":
        START}}], "next": ""},
    "segments/2": {"segment": {"id": 2, "deduplicate_id": f"2:{START}", "name": "Pro",
        "description": "", "state": "finished", "progress": None, "type": "dynamic",
        "tags": None, "created_at": START, "updated_at": START}},
    "segments/2/membership": {"identifiers": [ADA_NAMED], "ids": ["ada"], "next": ""},
    "segments/2/used_by": {"used_by": {"campaigns": [1], "sent_newsletters": [],
        "draft_newsletters": [30]}},
    "customers/ada/segments": {"segments": [{"id": 1, "name": "Testers", "description": ""},
        {"id": 2, "name": "Pro", "description": ""}]},
    "customers/ada/relationships": {"cio_relationships": [{"object_type_id": 1, "identifiers":
        {"object_id": "a", "cio_object_id": "obdcb1060101"}, "attributes": {"role": "boss"},
        "timestamps": {"role": START}}], "next": ""},
    "customers/ada/attributes": {"customer": {"id": "ada", "identifiers": ADA_NAMED, "attributes":
        {"_cio_subscription_preferences_computed": '{"topics":{"topic_1":true,"topic_2":false}}',
        "_last_emailed": "1700000000", "cio_id": "dcb106000001", "email": "ada@example.com", "id":
        "ada", "plan": "pro"}, "timestamps": {"_cio_subscription_preferences_computed": 0,
        "_last_emailed": 1700000000, "cio_id": START, "email": START, "id": START, "plan": START},
        "unsubscribed": False, "devices": []}},
    "customers/ada/subscription_preferences": {"customer": {"id": "ada", "identifiers": ADA_NAMED,
        "topics": [{"id": "1", "subscribed": True, "name": "News", "description": ""}, {"id": "2",
        "subscribed": False, "name": "Ads", "description": ""}], "unsubscribed": False, "header":
        {"title": "Subscription preferences", "subtitle": "ada@example.com"}}},
    "customers?email=ada@example.com": {"results": [{"email": "ada@example.com", "id": "ada",
        "cio_id": "dcb106000001"}]},
    "subscription_channels": {"channels": [{"name": "", "description": "", "type": "email",
        "subscribed_by_default": True, "id": 1}]},
    "subscription_topics": {"topics": [{"name": "News", "description": "",
        "subscribed_by_default": True, "identifier": "topic_1", "id": 1}, {"name": "Ads",
        "description": "", "subscribed_by_default": False, "identifier": "topic_2", "id": 2}]},
    "snippets": {"snippets": [{"updated_at": START, "name": "footer", "value": "bye"},
        {"updated_at": START, "name": "spare", "value": "x"}]},
    "collections/1": {"collection": {"id": 1, "created_at": START, "updated_at": START, "name":
        "days", "bytes": 18, "rows": 1, "schema": ["day"]}},
    "sender_identities/5/used_by": {"campaigns": [], "sent_newsletters": [], "draft_newsletters":
        [30]},
    "reporting_webhooks/1": {"id": 1, "name": "", "disabled": False, "full_resolution": False,
        "with_content": False, "type": "webhook", "endpoint": "http://x", "events":
        ["email_sent"]},
    "messages/m1": {"message": {"id": "m1", "deduplicate_id": "m1:1700003600", "msg_template_id":
        11, "message_template_id": 11, "parent_action_id": None, "customer_id": "ada",
        "customer_identifiers": ADA_NAMED, "recipient": "", "subject": "", "metrics":
        {"human_clicked": 1700003600, "clicked": 1700003600, "sent": 1700000000, "created":
        1700000000}, "created": 1700000000, "failure_message": None, "newsletter_id": None,
        "content_id": None, "campaign_id": 1, "broadcast_id": None, "action_id": 11,
        "transactional_message_id": None, "trigger_event_id": None, "type": "email", "forgotten":
        False}},
}  # fmt: skip


class InFull(SeededTest):
    """Small answers, word for word."""

    def test_documents(self) -> None:
        related = [{"identifiers": {"id": "ada"}, "attributes": {"role": "boss"}}]
        thing = {"object_type_id": 1, "object_id": "a", "attributes": {"n": 1}}
        self.fake.seed({
            "clock": {"now": START, "freeze": True}, **self.SEED, "channels": [{"id": 1}],
            "object_types": [{"id": 1, "name": "Company"}],
            "objects": [{**thing, "relationships": related}],
            "reporting_webhooks": [{"id": 1, "endpoint": "http://x", "events": ["email_sent"]}],
        })  # fmt: skip
        for path, answer in IN_FULL.items():
            with self.subTest(path):
                self.assertEqual(self.ok("GET", f"/v1/{path}"), answer)

    def test_fifty_messages_a_page_and_a_thousand_at_most(self) -> None:
        now, letter = self.fake.workspace.seconds(), {"newsletter_id": 30, "customer_id": "ada"}
        rows = [{**letter, "id": f"m{n}", "created": now - n} for n in range(1001)]
        self.fake.seed({**self.SEED, "messages": [{**r, "metrics": {"sent": now}} for r in rows]})
        for path in ("/v1/messages", "/v1/newsletters/30/messages"):
            for query, count in (("", 50), ("?limit=2000", 1000), ("?limit=1", 1)):
                found = self.ok("GET", path + query)["messages"]
                self.assertEqual(len(found), count, path + query)


# ======================================================================================
# ==== §22 Design Studio, assets and live notifications
# ======================================================================================

DS = "/v1/design_studio"
EMAILS = f"{DS}/emails"
LIVE = "/v1/live_notifications"
NOWHERE = "00000000-0000-4000-8000-000000000000"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def png(width: int = 1, height: int = 1) -> bytes:
    return PNG + struct.pack(">II", width, height) + b"\x08\x06\r\n\0\n--x\r"


class StudioTest(FakeTest):
    """Short ways to make things in Design Studio."""

    def make(self, kind: str, **fields: Any) -> Any:
        (made,) = self.ok("POST", f"{DS}/{kind}", {"name": "A", **fields}).values()
        return made

    def email(self, **content: str) -> Any:
        return self.make("emails", content=content)

    def done(self, method: str, path: str, body: Any = None) -> None:
        reply = self.call(method, path, body)
        self.assertEqual((reply.status, reply.body), (204, b""), reply.body)

    def names(self, path: str) -> list[str]:
        answer = self.ok("GET", path)
        return [row["name"] for row in answer[path.partition("?")[0].rpartition("/")[2]]]

    def seed(self, shelf: str, *rows: Any) -> None:
        for row in rows:
            self.fake.workspace.shelves[shelf].add(row, row.get("id"))

    def advance(self, seconds: float) -> None:
        self.fake.workspace.agenda.advance(seconds)


class StudioFolders(StudioTest):
    """Folders, components and emails lie in folders, by one set of rules."""

    def test_what_is_created_can_be_read_changed_and_deleted(self) -> None:
        rows: list[tuple[str, Any, Any]] = [
            ("folders", {}, {"name": "B"}),
            ("components", {"tag": "x-a", "content": "<b/>"}, {"content": "<i/>", "tag": "x-b"}),
            ("emails", {"is_template": True}, {"is_template": False, "name": "B"}),
        ]
        for kind, fields, update in rows:
            with self.subTest(kind=kind):
                made = self.make(kind, **fields)
                path = f"{DS}/{kind}/{made['id']}"
                self.assertEqual(self.ok("GET", path), {kind[:-1]: made})
                self.assertEqual(made["parent_folder_id"], None)
                self.assertEqual(made["created"], made["updated"])
                self.advance(5)
                self.done("PUT", path, update)
                changed = self.ok("GET", path)[kind[:-1]]
                for name, value in update.items():
                    self.assertEqual(changed[name], value)
                self.assertGreater(changed["updated"], made["updated"])
                self.done("DELETE", path)
                for method in ("GET", "PUT", "DELETE"):
                    reply = self.call(method, path, {"name": "C"})
                    self.assert_errors(reply, 404, "resource not found")
                    row = {"detail": "resource not found", "status": "404"}
                    self.assertEqual(reply.json["errors"], [row])

    def test_wrong_fields_are_named(self) -> None:
        self.fake.seed({"sender_identities": [{"id": 7, "email": "a@example.com"}]})
        rows: list[tuple[str, Any, str]] = [
            ("folders", {}, "name"),
            ("folders", {"name": " "}, "name"),
            ("folders", {"name": "a/b"}, "name"),
            ("folders", {"name": "a.b"}, "name"),
            ("folders", {"name": 1}, "name"),
            ("folders", {"name": "A", "color": "red"}, "color"),
            ("folders", {"name": "A", "parent_folder_id": ""}, "parent_folder_id"),
            ("folders", {"name": "A", "parent_folder_id": 1}, "parent_folder_id"),
            ("components", {"name": "A", "content": ""}, "tag"),
            ("components", {"name": "A", "tag": "x-a"}, "content"),
            ("components", {"name": "A", "tag": "<a", "content": ""}, "tag"),
            ("emails", {"name": "A", "content": {"body": ""}}, "body"),
            ("emails", {"name": "A", "content": {"html": 1}}, "html"),
            ("emails", {"name": "A", "envelope": {"headers": [{"name": 1}]}}, "headers"),
            ("emails", {"name": "A", "envelope": {"from_id": 8}}, "from_id"),
            ("emails", {"name": "A", "transformers": {"formatter": {"type": "x"}}}, "formatter"),
            (
                "emails",
                {"name": "A", "transformers": {"css_inliner": {"on": True}}},
                "css_inliner.on is no field",
            ),
        ]
        for kind, body, word in rows:
            with self.subTest(body=body):
                self.assert_errors(self.call("POST", f"{DS}/{kind}", body), 400, word)
                self.assertEqual(self.ok("GET", f"{DS}/{kind}")["meta"]["pagination"]["total"], 0)

    def test_an_update_needs_a_field(self) -> None:
        for kind in ("folders", "emails"):
            path = f"{DS}/{kind}/{self.make(kind)['id']}"
            self.assert_errors(self.call("PUT", path, {}), 400, "at least one")

    def test_a_folder_cannot_come_into_itself(self) -> None:
        top = self.make("folders")["id"]
        inner = self.make("folders", parent_folder_id=top)["id"]
        for parent, status in ((top, 400), (inner, 400), (NOWHERE, 404)):
            reply = self.call("PUT", f"{DS}/folders/{top}", {"parent_folder_id": parent})
            self.assert_errors(reply, status, "parent_folder_id")
        self.done("PUT", f"{DS}/folders/{inner}", {"parent_folder_id": None})
        self.done("PUT", f"{DS}/folders/{top}", {"parent_folder_id": inner})

    def test_a_full_folder_stays(self) -> None:
        rows: list[tuple[str, Any]] = [
            ("folders", {}), ("components", {"tag": "x-a", "content": ""}), ("emails", {}),
        ]  # fmt: skip
        for kind, fields in rows:
            folder = f"{DS}/folders/{self.make('folders')['id']}"
            inner = self.make(kind, parent_folder_id=folder.rpartition("/")[2], **fields)["id"]
            self.assert_errors(self.call("DELETE", folder), 409, "constraint violation")
            self.done("DELETE", f"{DS}/{kind}/{inner}")
            self.done("DELETE", folder)

    def test_a_component_tag_is_unique(self) -> None:
        made = self.make("components", tag="x-a", content="")
        other = self.make("components", tag="x-b", content="")
        body = {"name": "B", "tag": "x-a", "content": ""}
        self.assert_errors(self.call("POST", f"{DS}/components", body), 409, "tag")
        path = f"{DS}/components/{other['id']}"
        self.assert_errors(self.call("PUT", path, {"tag": made["tag"]}), 409, "tag")
        self.done("PUT", path, {"tag": other["tag"]})

    def test_lists_are_filtered_sorted_and_paged(self) -> None:
        top = self.make("folders", name="top")["id"]
        inner = self.make("folders", name="inner", parent_folder_id=top)["id"]
        start = self.fake.workspace.seconds()
        for name, parent, tag in (("c", None, "x-1"), ("a", top, "x-2"), ("b", inner, "x-3")):
            self.make("components", name=name, parent_folder_id=parent, tag=tag, content="")
            self.advance(10)
        rows = [
            ("", ["c", "a", "b"]),
            ("?sort_by=name", ["a", "b", "c"]),
            ("?sort_order=desc", ["b", "a", "c"]),
            (f"?parent_folder_id={top}", ["a", "b"]),
            (f"?parent_folder_id={top}&direct_descendants_only=true", ["a"]),
            ("?direct_descendants_only=true", ["c"]),
            ("?tag=x-2", ["a"]),
            ("?page=2&limit=2", ["b"]),
            (f"?created_after={start + 5}&created_before={start + 15}", ["a"]),
            (f"?updated_after={start + 15}", ["b"]),
        ]
        for query, names in rows:
            with self.subTest(query=query):
                self.assertEqual(self.names(f"{DS}/components{query}"), names)
        answer = self.ok("GET", f"{DS}/components?parent_folder_id={top}&limit=1")
        self.assertEqual(answer["meta"]["pagination"], {"page": 1, "limit": 1, "total": 2})
        self.assertEqual(answer["meta"]["filters"]["parent_folder_id"], top)
        self.assertEqual([row["name"] for row in answer["folders"]], ["inner"])
        self.assertNotIn("content", answer["components"][0])
        answer = self.ok("GET", f"{DS}/components?created_after=0&limit=10000")
        self.assertEqual(answer["meta"]["pagination"], {"page": 1, "limit": 10_000, "total": 3})
        answer = self.ok("GET", f"{DS}/components?page=1")
        self.assertEqual(answer["meta"]["pagination"], {"page": 1, "limit": 1000, "total": 3})
        bad = (
            "created_after=-1",
            "page=0",
            "limit=0",
            "limit=10001",
            "sort_by=tag",
            "sort_order=up",
            "created_after=x",
        )
        for query in bad:
            reply = self.call("GET", f"{DS}/folders?{query}")
            self.assert_errors(reply, 400, "invalid query parameter", query.partition("=")[0])
        self.assert_errors(self.call("GET", f"{DS}/folders?parent_folder_id={NOWHERE}"), 404)


class StudioEmails(StudioTest):
    """Emails, their translations and versions."""

    def test_parts_are_merged_over_the_defaults(self) -> None:
        self.seed("sender_identities", {"id": 7, "address": "Ada <ada@example.com>"})
        made = self.email(subject="Hi", html="<p>1</p>")
        path = f"{EMAILS}/{made['id']}"
        update = {
            "content": {"html": "<p>2</p>"},
            "envelope": {"from_id": 7, "cc": "c@example.com"},
        }
        self.done("PUT", path, {**update, "transformers": {"css_variables": {"enabled": True}}})
        self.done("PUT", path, {"transformers": {"css_variables": {"preserve": True}}})
        email = self.ok("GET", path)["email"]
        self.assertEqual(
            (email["content"]["subject"], email["content"]["html"]), ("Hi", "<p>2</p>")
        )
        self.assertEqual(email["envelope"]["from"], "Ada <ada@example.com>")
        self.assertEqual(email["envelope"]["recipient"], "{{customer.email}}")
        self.assertEqual(
            email["transformers"]["css_variables"], {"enabled": True, "preserve": True}
        )

    def test_translations_inherit_and_are_one_per_language(self) -> None:
        email = self.email(subject="Hi", html="<p>1</p>")
        path = f"{EMAILS}/{email['id']}/languages"
        made = self.ok("POST", path, {"language": "es", "content": {"subject": "Hola"}})
        made = made["email_translation"]
        self.assertEqual(made["content"]["subject"], "Hola")
        self.assertEqual(made["content"]["html"], "<p>1</p>")
        self.assertEqual(made["language_group_id"], email["id"])
        self.assertEqual(made["available_languages"], ["es"])
        self.assertEqual(self.ok("GET", path), {"email_translations": [made]})
        self.assert_errors(self.call("POST", path, {"language": "es"}), 409, "es")
        self.assert_errors(self.call("POST", path, {"language": "?"}), 400, "language")
        self.assert_errors(self.call("POST", path, {}), 400, "language")
        self.done("PUT", f"{path}/es", {"content": {"text": "x"}})
        changed = self.ok("GET", f"{path}/es")["email_translation"]["content"]
        self.assertEqual((changed["subject"], changed["text"]), ("Hola", "x"))
        self.assert_errors(self.call("PUT", f"{path}/es", {"name": "B"}), 400, "name")
        self.done("DELETE", f"{path}/es")
        self.assert_errors(self.call("GET", f"{path}/es"), 404)

    def test_a_sender_of_a_translation_has_to_exist(self) -> None:
        self.fake.seed({"sender_identities": [{"id": 7, "email": "a@example.com"}]})
        path = f"{EMAILS}/{self.email()['id']}/languages"
        wrong, right = ({"envelope": {"from_id": number}} for number in (8, 7))
        self.assert_errors(self.call("POST", path, {"language": "es", **wrong}), 400, "from_id")
        self.ok("POST", path, {"language": "es", **right})
        self.assert_errors(self.call("PUT", f"{path}/es", wrong), 400, "from_id")

    def test_a_seed_has_translations_and_nothing_of_our_own(self) -> None:
        own = {"_link": {"family": "newsletters"}, "_published": {}}
        spanish = {"language": "es", "content": {"subject": "Hola"}, "created": 5}
        row = {"id": NOWHERE, "name": "A", "created": 7, "updated": 8, **own,
               "content": {"subject": "Hi", "text": "t"}, "email_translations": [spanish]}  # fmt: skip
        self.fake.seed({"design_studio_emails": [row]})
        email = self.ok("GET", f"{EMAILS}/{NOWHERE}")["email"]
        self.assertEqual((email["is_linked"], email["created"], email["updated"]), (False, 7, 8))
        (made,) = self.ok("GET", f"{EMAILS}/{NOWHERE}/languages")["email_translations"]
        self.assertEqual((made["content"]["subject"], made["content"]["text"]), ("Hola", "t"))
        self.assertEqual((made["language"], made["created"], made["updated"]), ("es", 5, 8))

    def test_emails_are_filtered_by_what_they_are(self) -> None:
        self.make("emails", name="plain")
        self.make("emails", name="template", is_template=True)
        path = f"{EMAILS}/{self.make('emails', name='both')['id']}"
        self.ok("POST", f"{path}/languages", {"language": "es"})
        self.ok("POST", f"{path}/link", {"target": {"type": "newsletter", "newsletter_id": 1}})
        rows = [
            ("is_template=true", ["template"]),
            ("is_template=any", ["plain", "template", "both"]),
            ("has_translations=true", ["both"]),
            ("is_linked=true", ["both"]),
            ("is_linked=false&is_template=false", ["plain"]),
        ]
        for query, names in rows:
            self.assertEqual(self.names(f"{EMAILS}?{query}"), names, query)

    def test_versions_are_snapshots_that_can_be_restored(self) -> None:
        component = self.make("components", tag="x-a", content="<i>a</i>")
        email = self.email(subject="One", html="<p><x-a/></p>")
        path = f"{EMAILS}/{email['id']}"
        first = self.ok("POST", f"{path}/versions", {"name": "v1", "description": "first"})
        again = self.ok("POST", f"{path}/versions", {"name": "v2"})
        self.assertEqual((first["created"], again["created"]), (True, False))
        self.assertEqual(again["version"], first["version"])
        self.done("PUT", path, {"content": {"subject": "Two"}})
        self.advance(10)
        second = self.ok("POST", f"{path}/versions", {"name": "v2"})["version"]
        self.assertEqual(self.names(f"{path}/versions"), ["v2", "v1"])
        self.assertEqual(
            (first["version"]["description"], "description" in second), ("first", False)
        )
        again = self.ok("POST", f"{path}/versions", {"name": "v3"})
        self.assertEqual((again["created"], again["version"]), (False, second))
        since = f"start_date={second['created']}"
        self.assertEqual(self.names(f"{path}/versions?{since}"), ["v2"])
        self.assert_errors(self.call("GET", f"{path}/versions?end_date=1"), 400, "start_date")
        version = f"{path}/versions/{first['version']['id']}"
        shown = self.ok("GET", version)
        self.assertEqual(shown["node"]["subject"], "One")
        self.assertEqual(shown["dependencies"][0]["node_id"], component["id"])
        restored = self.ok("POST", f"{version}/restore")
        self.assertEqual(restored["restored_node_ids"], [email["id"]])
        self.assertEqual(self.ok("GET", path)["email"]["content"]["subject"], "One")
        self.done("DELETE", version)
        self.assert_errors(self.call("GET", version), 404)
        other = f"{EMAILS}/{self.email()['id']}/versions/{second['id']}"
        self.assert_errors(self.call("GET", other), 404)

    def test_render_puts_components_in_and_leaves_liquid(self) -> None:
        self.make("components", tag="x-box", content="<div><slot/></div>")
        self.make("components", tag="x-in", content="<b>{{customer.name}}</b>")
        html = "<x-box a='1'>t <x-in></x-in></x-box><x-in /><x-other/>"
        email = self.email(html=html, text="T")
        answer = self.ok("GET", f"{EMAILS}/{email['id']}/render")
        inner = "<b>{{customer.name}}</b>"
        self.assertEqual(answer["html"], f"<div>t {inner}</div>{inner}<x-other/>")
        self.assertEqual((answer["text"], "amp" in answer), ("T", False))

    def test_how_many_components_and_characters_an_email_may_have(self) -> None:
        def size(html: str) -> int:
            return len(customerio_fake.compiled(html, [component])[0])

        component = {"tag": "x-a", "content": "<b><slot/></b>"}
        self.assertEqual(size("<x-a/>" * 500), 500 * 7)
        most = 1 << 21
        for html, extra in (("<x-a/>", 7), ("<x-a>in</x-a>", 9), ("<x-a>", 7)):
            rest = "y" * (most - extra)
            self.assertEqual(size(html + rest), most)
            for wrong in (html + rest + "y", "y" + html + rest):
                with self.assertRaisesRegex(ApiError, "too large; see the tag x-a"):
                    size(wrong)
        with self.assertRaisesRegex(ApiError, "too large; see the tag x-a"):
            size("<x-a/>" * 501)

    def test_a_component_in_itself_is_refused(self) -> None:
        self.make("components", tag="x-a", content="<x-a/>")
        reply = self.call("GET", f"{EMAILS}/{self.email(html='<x-a/>')['id']}/render")
        self.assert_errors(reply, 400, "x-a")

    def test_slots_that_would_fill_the_memory_are_refused(self) -> None:
        self.make("components", tag="x-a", content="<slot/>" * 40_000)
        html = f"<x-a>{'y' * 200_000}</x-a>"  # 8 GB
        reply = self.call("GET", f"{EMAILS}/{self.email(html=html)['id']}/render")
        self.assert_errors(reply, 400, "x-a")

    def test_a_preview_renders_liquid_and_lists_errors_and_links(self) -> None:
        html = (
            "<title>t</title><p>Hi {{customer.name}}</p><a href='http://a'>go</a><a>no</a>"
            "<a class='untracked' href='https://b'>b</a><a href='mailto:x'>m</a>"
        )
        email = self.email(subject="{{event.x}}", html=html)
        path = f"{EMAILS}/{email['id']}/preview"
        customer = {"name": "Ada", "email": "ada@example.com"}
        answer = self.ok("POST", path, {"customer": customer, "event": {"x": "S"}})
        self.assertEqual((answer["subject"], answer["plaintext_body"]), ("S", "Hi Ada\ngonobm"))
        self.assertEqual([row["tracked"] for row in answer["links"]], [True, False, False, False])
        self.assertEqual([len(row["errors"]) for row in answer["links"]], [0, 1, 0, 0])
        self.assertEqual((len(answer["errors"]), any(answer["errors"].values())), (15, False))
        strict, lax = self.ok("POST", path, {}), self.ok("POST", path, {"lax": True})
        self.assertIn("event.x", strict["errors"]["subject"][0])
        self.assertIn("customer.name", strict["errors"]["body"][0])
        self.assertFalse(any(lax["errors"].values()))
        self.assert_errors(self.call("POST", path, {"customer": 1}), 400, "customer")
        self.assert_errors(self.call("POST", path, {"person": {}}), 400, "person")

    def test_a_review_finds_what_is_wrong(self) -> None:
        good = {
            "subject": "S", "preheader_text": "P", "text": "T",
            "html": "<img alt=''><a href='{% unsubscribe_url %}'>out</a>",
        }  # fmt: skip
        rows: list[tuple[str, str, str]] = [
            ("subject", "", "subject"),
            ("preheader_text", "", "preheader"),
            ("text", "", "plain-text"),
            ("html", good["html"] + "<img src='a.png'>", "image-alt"),
            ("html", good["html"] + "<a>x</a>", "links"),
            ("html", good["html"].ljust(102 * 1024 + 1, "x"), "size"),
            ("html", "<p>hi</p>", "unsubscribe"),
        ]
        for field, value, check in rows:
            with self.subTest(check=check):
                answer = self.review({**good, field: value})
                failed = [row["check"] for row in answer["findings"] if row["state"] == "fail"]
                self.assertEqual((failed, answer["status"]), ([check], "complete"))
                self.assertLess(answer["score"]["score"], 100)
                self.assertEqual(sum(answer["score"]["counts"].values()), 1)
        whole = self.review({**good, "html": good["html"].ljust(102 * 1024, "x")})
        self.assertEqual(whole["score"], {"score": 100, "counts": dict(error=0, warning=0, tip=0)})
        self.assertEqual(set(whole["checks"].values()), {"complete", "skipped"})
        self.assertEqual(whole["checks"]["failed-components"], "skipped")
        partial = self.review(dict.fromkeys(good, ""))
        self.assertEqual((partial["status"], partial["score"]["score"]), ("partial", 100 - 35))
        run = [name for name, state in partial["checks"].items() if state == "complete"]
        self.assertEqual(run, ["subject", "preheader", "plain-text"])
        self.assertEqual([row["check"] for row in partial["findings"]], run)
        self.assertEqual(partial["score"]["counts"], dict(error=1, warning=1, tip=1))
        broken = self.review({**good, "subject": "{% if %}"})
        self.assertEqual((broken["status"], "score" in broken), ("render_failed", False))

    def review(self, content: Any) -> Any:
        return self.ok("GET", f"{EMAILS}/{self.email(**content)['id']}/review")


class StudioPublishing(StudioTest):
    """A linked email becomes the content of its target."""

    def link(self, email: Any, force: bool = False, **target: Any) -> Reply:
        body = {"target": target, "force": force}
        return self.call("POST", f"{EMAILS}/{email['id']}/link", body)

    def test_publish_fills_the_contents_of_all_languages(self) -> None:
        email = self.email(subject="Hi", html="<p>1</p>", text="1")
        path = f"{EMAILS}/{email['id']}"
        spanish = {"language": "es", "content": {"subject": "Hola"}}
        self.ok("POST", f"{path}/languages", spanish)
        for end in ("publish", "unpublished_changes"):
            method = "POST" if end == "publish" else "GET"
            self.assert_errors(self.call(method, f"{path}/{end}"), 400, "not linked")
        self.assertEqual(self.link(email, type="newsletter", newsletter_id=3).status, 200)
        self.assertTrue(self.ok("GET", f"{path}/unpublished_changes")["has_unpublished_changes"])
        answer = self.ok("POST", f"{path}/publish")
        self.assertEqual([row["language"] for row in answer["mappings"]], ["", "es"])
        status = f"{path}/publish_status?publish_id={answer.pop('publish_id')}"
        self.assertEqual(self.ok("GET", status), answer)
        contents = self.ok("GET", "/v1/newsletters/3/contents")["contents"]
        shown = [(row["language"], row["subject"], row["body"]) for row in contents]
        self.assertEqual(shown, [("", "Hi", "<p>1</p>"), ("es", "Hola", "<p>1</p>")])
        self.assertFalse(self.ok("GET", f"{path}/unpublished_changes")["has_unpublished_changes"])
        self.done("PUT", f"{path}/languages/es", {"content": {"subject": "Hola!"}})
        self.assertTrue(self.ok("GET", f"{path}/unpublished_changes")["has_unpublished_changes"])
        self.ok("POST", f"{path}/publish")
        self.assertEqual(len(self.ok("GET", "/v1/newsletters/3/contents")["contents"]), 2)
        version = f"{path}/versions/{answer['mappings'][0]['version_id']}"
        self.assertTrue(self.ok("GET", version)["version"]["created_on_publish"])
        self.assert_errors(self.call("DELETE", version), 409, "created on publish")
        self.assert_errors(self.call("DELETE", path), 409, "because it is linked")
        self.assert_errors(self.call("DELETE", f"{path}/languages/es"), 409, "published")

    def test_translations_have_versions_of_their_own(self) -> None:
        email = self.email(subject="Hi")
        path = f"{EMAILS}/{email['id']}"
        self.ok("POST", f"{path}/languages", {"language": "es"})
        self.link(email, type="newsletter", newsletter_id=3)
        mine, spanish = self.ok("POST", f"{path}/publish")["mappings"]
        for row, other in ((mine, spanish), (spanish, mine)):
            self.ok("GET", f"{EMAILS}/{row['node_id']}/versions/{row['version_id']}")
            wrong = f"{EMAILS}/{row['node_id']}/versions/{other['version_id']}"
            self.assert_errors(self.call("GET", wrong), 404, "no such version")
            self.assertEqual(len(self.names(f"{EMAILS}/{row['node_id']}/versions")), 1)

    def test_an_email_is_published_in_fifty_variants_at_most(self) -> None:
        email = self.email(subject="Hi")
        path = f"{EMAILS}/{email['id']}"
        self.link(email, type="newsletter", newsletter_id=3)
        self.assertEqual(len(self.ok("POST", f"{path}/publish")["mappings"]), 1)
        self.assertFalse(self.ok("GET", f"{path}/unpublished_changes")["has_unpublished_changes"])
        codes = [a + b for a in "ab" for b in "abcdefghijklmnopqrstuvwxy"]
        for code in codes[:49]:
            self.ok("POST", f"{path}/languages", {"language": code})
        self.assertEqual(len(self.ok("POST", f"{path}/publish")["mappings"]), 50)
        self.ok("POST", f"{path}/languages", {"language": codes[49]})
        self.assert_errors(self.call("POST", f"{path}/publish"), 422, "more than 50 variants")

    def test_bad_liquid_is_told_by_language(self) -> None:
        email = self.email(subject="Hi")
        path = f"{EMAILS}/{email['id']}"
        self.ok("POST", f"{path}/languages", {"language": "es", "content": {"html": "{% if x %}"}})
        self.link(email, type="transactional_message", transactional_message_id=1)
        reply = self.call("POST", f"{path}/publish")
        self.assert_errors(reply, 422, "liquid validation failed")
        self.assertEqual(list(reply.json["errors"][0]["meta"]), ["es"])
        self.assertEqual(
            self.ok("GET", "/v1/transactional/1/contents")["contents"][0]["subject"], ""
        )

    def test_wrong_links_are_refused(self) -> None:
        email, other = self.email(), self.email()
        rows: list[tuple[Any, int]] = [
            ({}, 400),
            ({"type": "segment"}, 400),
            ({"type": "newsletter"}, 400),
            ({"type": "newsletter", "newsletter_id": "x"}, 400),
            ({"type": "campaign_action", "action_id": 9}, 404),
        ]
        for target, status in rows:
            with self.subTest(target=target):
                self.assert_errors(self.link(email, **target), status)
        self.fake.workspace.shelves["newsletters"].add({"name": "n"}, 2)
        self.assertEqual(self.link(email, type="newsletter", newsletter_id=2).status, 200)
        self.assertEqual(self.link(email, type="newsletter", newsletter_id=2).status, 200)
        elsewhere = self.link(email, type="newsletter", newsletter_id=3)
        self.assert_errors(elsewhere, 400, "already linked")
        taken = self.link(other, type="newsletter", newsletter_id=2)
        self.assert_errors(taken, 409, "force")
        self.assertEqual(self.link(other, True, type="newsletter", newsletter_id=2).status, 200)
        self.assertFalse(self.ok("GET", f"{EMAILS}/{email['id']}")["email"]["is_linked"])

    def test_an_unknown_publish_is_not_found(self) -> None:
        path = f"{EMAILS}/{self.email()['id']}/publish_status"
        self.assert_errors(self.call("GET", path), 400, "publish_id")
        self.assert_errors(self.call("GET", f"{path}?publish_id=x"), 404, "publish job not found")


class LatePublishing(StudioTest):
    settings: dict[str, Any] = {"ingest_delay": 30.0}

    def test_a_workspace_that_lags_behind_publishes_late(self) -> None:
        path = f"{EMAILS}/{self.email(subject='Hi')['id']}"
        self.ok("POST", f"{path}/link", {"target": {"type": "newsletter", "newsletter_id": 1}})
        pending = self.ok("POST", f"{path}/publish")
        status = f"{path}/publish_status?publish_id={pending['publish_id']}"
        self.assertEqual(self.ok("GET", status), {"status": "pending"})
        self.advance(31)
        self.assertEqual(self.ok("GET", status)["mappings"][0]["language"], "")
        contents = self.ok("GET", "/v1/newsletters/1/contents")["contents"]
        self.assertEqual(contents[0]["subject"], "Hi")

    def test_what_goes_wrong_later_is_told_later(self) -> None:
        path = f"{EMAILS}/{self.email(subject='Hi')['id']}"
        self.ok("POST", f"{path}/link", {"target": {"type": "newsletter", "newsletter_id": 1}})
        pending = self.ok("POST", f"{path}/publish")["publish_id"]
        self.done("DELETE", "/v1/newsletters/1")
        self.advance(31)
        reply = self.call("GET", f"{path}/publish_status?publish_id={pending}")
        self.assert_errors(reply, 404, "does not exist any more")


class InboxPreviews(StudioTest):
    """Runs are charged once, and drawn from the email."""

    def setUp(self) -> None:
        super().setUp()
        email = self.email(subject="Hi <{{customer.name}}>", html="<p>Text & more</p>")
        self.node, self.path = email["id"], f"{EMAILS}/{email['id']}/inbox_previews"
        self.data = {"customer": {"name": "Ada", "email": "a@example.com"}}

    def enable(self, free: int = 1, paid: int = 2) -> None:
        clients = [
            {"id": "gmail", "client": "Gmail", "category": "Web", "os": "Windows", "browser": "X"},
            {"id": "ios", "client": "iPhone", "category": "Mobile", "os": "iOS"},
        ]
        self.seed("inbox_preview_clients", *clients)
        for tier, count in (("paid", paid), ("free", free)):
            credit = {"tier": tier, "credits_original": 9, "credits_remaining": count}
            self.seed("inbox_preview_credits", credit)

    def submit(self, *ids: str, **more: Any) -> Reply:
        return self.call("POST", self.path, {"client_ids": ids, "sample_data": self.data, **more})

    def credits(self) -> list[int]:
        rows = self.ok("GET", f"{DS}/inbox_previews/credits")["credits"]
        return [row["credits_remaining"] for row in rows]

    def test_without_clients_they_are_not_enabled(self) -> None:
        paths = [f"{DS}/inbox_previews/{end}" for end in ("clients", "credits", "jobs")]
        for reply in (
            self.submit("ios"),
            self.submit(),
            *(self.call("GET", path) for path in paths),
        ):
            self.assert_errors(reply, 404, "inbox previews are not enabled for this account")

    def test_a_run_is_charged_and_can_be_looked_at(self) -> None:
        self.enable()
        run = self.submit("ios", "gmail", name="batch").json
        self.assertEqual((run["replayed"], self.credits()), (False, [1, 0]))
        job = self.ok("GET", f"{self.path}/{run['run_id']}")
        counts = {"requested": 2, "ready": 2, "succeeded": 2, "cached": 0, "bounced": 0}
        told = {f"total_previews_{name}": count for name, count in counts.items()}
        told = {**told, "is_processed": True, "name": "batch", "client_ids": ["ios", "gmail"]}
        self.assertEqual({**job, **told}, job)
        preview = job["previews"][1]
        about = {"display_name": "Gmail", "category": "Web", "os": "Windows", "browser": "X"}
        about = {**about, "client_id": "gmail", "status": "Complete", "cached": False}
        self.assertEqual({**preview, **about}, preview)
        urls = (preview["screenshots"]["default"], preview["thumbnail"], preview["full_thumbnail"])
        for url in urls:
            reply = self.call("GET", url.partition("localhost:4668")[2])
            self.assertEqual((reply.status, reply.headers["content-type"]), (200, "image/svg+xml"))
            self.assertIn(b"Hi &lt;Ada&gt;", reply.body)
            self.assertIn(b"Text &amp; more", reply.body)
        capture = f"{self.path}/{run['run_id']}/captures"
        for end, status in (
            ("/gmail?variant=x", 400), ("/gmail?key=x", 400), ("/outlook", 404),
            ("/gmail?variant=thumbnail&key=default", 400),
        ):  # fmt: skip
            self.assert_errors(self.call("GET", capture + end), status)

    def test_how_wide_and_long_a_picture_is(self) -> None:
        self.enable()
        lines = "".join(f"<p>line {n}</p>" for n in range(50))
        self.done("PUT", f"{EMAILS}/{self.node}", {"content": {"html": lines}})
        capture = f"{self.path}/{self.submit('ios').json['run_id']}/captures/ios"
        for variant, width, rows in (
            ("screenshot", 600, 40), ("thumbnail", 150, 8), ("full_thumbnail", 150, 40),
        ):  # fmt: skip
            drawn = self.call("GET", f"{capture}?variant={variant}").body.decode()
            tall = 72 + 20 * rows
            size = f'viewBox="0 0 600 {tall}" width="{width}" height="{tall * width // 600}"'
            self.assertIn(size, drawn)
            self.assertEqual(drawn.count("line "), rows)
        self.assertEqual(
            self.call("GET", capture).body, self.call("GET", f"{capture}?key=default").body
        )

    def test_a_run_that_there_is_not(self) -> None:
        self.enable()
        self.submit("ios")
        for run in ("x", "0", "99", "1x"):
            self.assert_errors(self.call("GET", f"{self.path}/{run}"), 404, "no such run")
        other = f"{EMAILS}/{self.email()['id']}/inbox_previews/1"
        self.assert_errors(self.call("GET", other), 404, "no such run")
        self.done("DELETE", f"{EMAILS}/{self.node}")
        self.assertEqual(self.ok("GET", f"{DS}/inbox_previews/jobs")["preview_jobs"], [])

    def test_a_day_begins_at_midnight(self) -> None:
        self.enable(1, 2)
        self.ok("PUT", "/__parlel/clock", {"freeze": True, "now": 20_000 * 86_400})
        for later, replayed in ((0, False), (86_399, True), (1, False)):
            self.advance(later)
            self.assertEqual(self.submit("ios").json["replayed"], replayed, later)

    def test_the_same_run_is_free_for_a_day(self) -> None:
        self.enable(1, 2)
        first, again = self.submit("ios").json, self.submit("ios").json
        self.assertEqual(again, {"run_id": first["run_id"], "replayed": True})
        self.submit("ios", name="batch")
        self.assert_errors(self.submit("gmail", name="batch"), 409, "already charged today")
        self.advance(86400)
        self.assertFalse(self.submit("ios").json["replayed"])
        self.assertEqual(self.credits(), [0, 0])
        text = "insufficient inbox preview credits: this request needs 1, the account has 0"
        self.assert_errors(self.submit("gmail"), 422, text)

    def test_wrong_runs_are_refused(self) -> None:
        self.seed("inbox_preview_clients", {"id": "ios", "client": "i", "category": "Mobile"})
        self.assert_errors(self.submit("ios"), 403, "cannot be charged")
        self.enable()
        rows: list[Any] = [{"client_ids": []}, {"client_ids": ["x"]}, {"client_ids": ["ios"] * 2}]
        sample = {"x": "y" * (128 * 1024 - 8)}
        self.assertEqual(self.submit("ios", sample_data=sample).status, 200)
        sample["x"] += "y"
        rows += [{"sample_data": 1}, {"sample_data": sample}, {"name": 1}]
        for row in rows:
            self.assert_errors(self.submit("ios", **row), 400, next(iter(row)))

    def test_what_does_not_render_bounces(self) -> None:
        self.enable()
        run = self.submit("ios", sample_data={"customer": {}}).json["run_id"]
        job = self.ok("GET", f"{self.path}/{run}")
        self.assertEqual(job["total_previews_bounced"], 1)
        self.assertIn("customer.name", job["previews"][0]["error"]["message"])
        self.assert_errors(self.call("GET", f"{self.path}/{run}/captures/ios"), 404)
        rows: list[Any] = [{"sample_data": {}}]
        rows.append({"sample_data": {"customer": {}}, "lax_mode": True})
        for more in rows:
            run = self.submit("gmail", **more).json["run_id"]
            self.assertEqual(self.ok("GET", f"{self.path}/{run}")["total_previews_bounced"], 0)

    def test_expired_credits_do_not_count(self) -> None:
        self.enable(0, 0)
        now = self.fake.workspace.seconds()
        old = {"tier": "free", "credits_original": 1, "credits_remaining": 1, "expires_at": now + 9}
        self.seed("inbox_preview_credits", old)
        self.fake.workspace.clock.freeze(now + 9)
        self.assert_errors(self.submit("ios"), 422, "0 available")

    def test_jobs_are_listed_by_cursor(self) -> None:
        self.enable(9, 9)
        for name in "abc":
            self.submit("ios", name=name)
        jobs = f"{DS}/inbox_previews/jobs"
        page = self.ok("GET", f"{jobs}?limit=2")
        self.assertEqual([row["name"] for row in page["preview_jobs"]], ["c", "b"])
        rest = self.ok("GET", f"{jobs}?cursor={page['meta']['pagination']['next_cursor']}")
        self.assertEqual([row["name"] for row in rest["preview_jobs"]], ["a"])
        self.assertEqual(rest["meta"]["pagination"], {"limit": 50})
        for limit, status in ((0, 400), (1, 200), (1000, 200), (1001, 400)):
            self.assertEqual(self.call("GET", f"{jobs}?limit={limit}").status, status, limit)
        self.assertEqual(self.ok("GET", f"{jobs}?node_id={NOWHERE}")["preview_jobs"], [])


class Assets(StudioTest):
    """Files are checked, kept, and can be downloaded."""

    def upload(
        self, data: bytes, type: str = "image/png", name: str = "a.png", **texts: str
    ) -> Reply:
        parts = [f'name="{key}"\r\n\r\n{value}\r\n'.encode() for key, value in texts.items()]
        head = f'name="file"; filename="{name}"\r\nContent-Type: {type}\r\n\r\n'
        parts.append(head.encode() + data + b"\r\n")
        start = b"--x--y\r\nContent-Disposition: form-data; "
        body = b"".join(start + part for part in parts) + b"--x--y--\r\n"
        label = "multipart/form-data; boundary=x--y"
        return self.call("POST", "/v1/assets/files", body, content_type=label)

    def test_a_file_comes_back_as_it_was(self) -> None:
        for data in (png(), png(4096, 4096) + bytes(range(256)) * 20 + b"\r\n\n\r"):
            name = f"\u00e9t {len(data)}.png"
            reply = self.upload(data, name=name)
            self.assertEqual(reply.status, 200, reply.body)
            asset = reply.json["asset"]
            self.assertEqual((asset["name"], asset["size"]), (name, len(data)))
            file = self.call("GET", asset["path"].partition("4668")[2], authorization="")
            self.assertEqual((file.body, file.headers["content-type"]), (data, "image/png"))
            self.assertEqual(self.ok("GET", f"/v1/assets/files/{asset['id']}"), {"asset": asset})

    def test_wrong_files_are_refused(self) -> None:
        jpeg = b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x11\x08" + struct.pack(">HH", 9, 5000)
        rows = [
            (png(), "application/octet-stream", "image/png"),
            (png(), "image/gif", "image/gif"),
            (png(4097), "image/png", "4096"),
            (png(1, 4097), "image/png", "4096"),
            (b"GIF89a" + struct.pack("<HH", 5000, 1), "image/gif", "4096"),
            (b"BM" + bytes(16) + struct.pack("<ii", 1, -5000), "image/bmp", "4096"),
            (jpeg, "image/jpeg", "4096"),
            (png() + bytes(2 << 20), "image/png", "2097152"),
            (b"", "image/png", "begins otherwise"),
        ]
        for data, type, word in rows:
            with self.subTest(type=type, word=word):
                self.assert_errors(self.upload(data, type), 400, word, "file")
        reply = self.upload(png(), more="x" * ((2 << 20) + 65_536))
        self.assert_errors(reply, 400, "file cannot be larger than 2097152")
        self.assertEqual(self.upload(png().ljust(2 << 20), name="full").status, 200)
        pdf = self.upload(b"%PDF-1.7", "application/pdf").json["asset"]["id"]
        headers = self.call("GET", f"/v1/assets/files/{pdf}/content").headers
        self.assertEqual(headers["content-type"], "application/pdf")
        self.assertEqual(headers["access-control-allow-origin"], "https://fly.customer.io")
        reply = self.call("POST", "/v1/assets/files", {})
        self.assert_errors(reply, 400, "send the file as multipart/form-data")

    def test_names_are_unique_among_siblings(self) -> None:
        folder = self.ok("POST", "/v1/assets/folders", {"name": "f"})["folder"]["id"]
        self.upload(png(), name="a.png")
        self.assert_errors(self.upload(png(), name="a.png"), 409, "constraint violation")
        self.assertEqual(self.upload(png(), parent_folder_id=str(folder)).status, 200)
        asset = self.upload(png(), name="b", parent_folder_id="0").json["asset"]
        self.assertEqual(asset["parent_folder_id"], None)
        path = f"/v1/assets/files/{asset['id']}"
        self.assert_errors(self.call("PUT", path, {"name": "a.png"}), 409)
        self.assert_errors(self.call("PUT", path, {"parent_folder_id": 99}), 404)
        self.assert_errors(self.call("PUT", path, {"name": " "}), 400, "name")
        self.assert_errors(self.call("POST", "/v1/assets/folders", {"name": "f"}), 409)
        self.done("PUT", path, {"name": "c", "parent_folder_id": folder})
        self.assertEqual(self.names(f"/v1/assets?parent_folder_id={folder}"), ["a.png", "c"])
        self.assertEqual(self.names("/v1/assets?direct_descendants_only=true"), ["a.png"])

    def test_a_folder_goes_with_what_is_in_it(self) -> None:
        top = self.ok("POST", "/v1/assets/folders", {"name": "f"})["folder"]["id"]
        inner = {"name": "g", "parent_folder_id": top}
        inner_id = self.ok("POST", "/v1/assets/folders", inner)["folder"]["id"]
        self.upload(png(), parent_folder_id=str(inner_id))
        path = f"/v1/assets/folders/{top}"
        self.assert_errors(self.call("PUT", path, {"parent_folder_id": inner_id}), 400)
        self.done("PUT", path, {"name": "h"})
        self.assertEqual(self.ok("GET", path)["folder"]["name"], "h")
        self.done("DELETE", path)
        self.assertEqual((self.names("/v1/assets/folders"), self.names("/v1/assets")), ([], []))
        self.assert_errors(self.call("GET", path), 404)
        self.assert_errors(self.call("GET", "/v1/assets/folders/x"), 400, "id")


class LiveNotifications(StudioTest):
    """A live notification is started, updated, and ends."""

    def setUp(self) -> None:
        super().setUp()
        self.identify("1", email="ada@example.com")
        device = {"id": "token", "platform": "android", "last_used": 1}
        self.call("PUT", "/api/v1/customers/1/devices", {"device": device})
        self.start = {
            "identifiers": {"id": "1"},
            "notification_type": "com.example.order",
            "attributes": {"number": 7},
            "content_state": {"step": 1},
        }

    def begin(self, **more: Any) -> str:
        return str(self.ok("POST", f"{LIVE}/start", {**self.start, **more})["instance_id"])

    def show(self, id: str) -> Any:
        return self.ok("GET", f"{LIVE}/{id}")

    def test_its_life_is_recorded(self) -> None:
        id = self.begin()
        shown = self.show(id)
        self.assertEqual((shown["state"], shown["platform"]), ("active", "android"))
        self.assertEqual(shown["expires_at"], shown["started_at"] + 6 * 3600)
        self.assertEqual(shown["last_delivery"]["operation"], "start")
        self.assertEqual(shown["last_delivery"]["status"], "sent")
        step = {"instance_id": id, "content_state": {"step": 2}}
        self.assertEqual(self.ok("POST", f"{LIVE}/update", step), {"instance_id": id})
        self.ok("POST", f"{LIVE}/end", {"instance_id": id})
        shown = self.show(id)
        self.assertEqual((shown["state"], shown["last_delivery"]["operation"]), ("ended", "end"))
        self.assert_errors(self.call("POST", f"{LIVE}/update", step), 400, "ended")
        channels = [row["channel"] for row in self.records("deliveries")]
        self.assertEqual(channels, ["live_notification"] * 3)

    def test_it_expires(self) -> None:
        self.ok("PUT", "/__parlel/clock", {"freeze": True})
        id = self.begin(expiration=self.fake.workspace.seconds() + 60)
        for seconds, state in ((59, "active"), (1, "expired")):
            self.advance(seconds)
            self.assertEqual(self.show(id)["state"], state)

    def test_without_a_device_it_is_undeliverable(self) -> None:
        push = {"alert": {"title": "t", "body": "b"}}
        id = self.begin(platform="ios", push_payload=push)
        self.assertEqual(self.show(id)["last_delivery"]["status"], "undeliverable")

    def test_wrong_starts_are_refused(self) -> None:
        now = self.fake.workspace.seconds()
        segments = {"notification_type": "io.customer.livenotifications.segments"}
        state = {"status": "s", "segmentsTotal": 3, "segmentsComplete": 1}
        named = {**segments, "attributes": {"header": "h"}}
        rows: list[tuple[Any, str]] = [
            ({"identifiers": {}}, "identifiers"),
            ({"identifiers": {"id": "1", "email": "a"}}, "identifiers"),
            ({"identifiers": {"cio_id": "1"}}, "identifiers"),
            ({"notification_type": None}, "notification_type"),
            ({"notification_type": "order"}, "notification_type"),
            ({"attributes": {}}, "attributes"),
            ({"content_state": []}, "content_state"),
            ({"platform": "web"}, "platform"),
            ({"platform": "ios"}, "push_payload.alert"),
            ({"push_payload": {"alert": {"title": "t"}}}, "push_payload"),
            ({"expiration": now - 60}, "expiration"),
            ({"expiration": now + 7 * 3600}, "expiration"),
            ({**segments, "content_state": state}, "header"),
            ({**named, "content_state": {"status": "s"}}, "segmentsTotal"),
            ({**named, "content_state": {**state, "segmentsTotal": 21}}, "segmentsTotal"),
        ]
        for change, word in rows:
            with self.subTest(change=change):
                reply = self.call("POST", f"{LIVE}/start", {**self.start, **change})
                self.assert_errors(reply, 400, word)
        nobody = {**self.start, "identifiers": {"id": "nobody"}}
        self.assert_errors(self.call("POST", f"{LIVE}/start", nobody), 404, "nobody")
        self.begin(**named, content_state=state)

    def test_a_built_in_type_has_its_fields_to_the_end(self) -> None:
        type = "io.customer.livenotifications.countdowntimer"
        own = {"notification_type": type, "attributes": {"header": "h"}}
        id = self.begin(**own, content_state={"title": "t"})
        wrong = {"instance_id": id, "content_state": {"title": ""}}
        for step in ("update", "end"):
            reply = self.call("POST", f"{LIVE}/{step}", wrong)
            self.assert_errors(reply, 400, "content_state.title")

    def test_it_goes_to_a_device_with_the_app(self) -> None:
        for token, app in (("mine", "com.x"), ("other", "com.y")):
            device = {"id": token, "platform": "android", "last_used": 9}
            device["attributes"] = {"app_identifier": app}
            self.call("PUT", "/api/v1/customers/1/devices", {"device": device})
        for app, token in (("com.x", "mine"), ("com.y", "other")):
            self.begin(app_identifier=app)
            self.assertEqual(self.records("deliveries")[-1]["recipient"], token)
        wrong = {**self.start, "app_identifier": "com.z"}
        self.assert_errors(self.call("POST", f"{LIVE}/start", wrong), 400, "no device has this app")

    def test_it_is_found_by_its_ulid(self) -> None:
        for method, end in (("GET", "x"), ("POST", "update"), ("POST", "end")):
            body = {"content_state": {"a": 1}}
            self.assert_errors(self.call(method, f"{LIVE}/{end}", body), 400, "ULID")
        self.assert_errors(self.call("GET", f"{LIVE}/01ARZ3NDEKTSV4RRFFQ69G5FAV"), 404)


class StudioCorners(StudioTest):
    """Sizes of pictures, parts of forms, and what a version and a new email consist of."""

    def test_the_size_of_a_picture(self) -> None:
        frame = struct.pack(">HH", 7, 5)
        long = b"\xff\xe1\x01\x02" + bytes(256)
        jpeg = b"\xff\xd8" + long + b"\xff\xc4\0\x03a\xff\xc0\0\x11\x08" + frame
        rows = [
            ("image/png", png(5, 7), (5, 7)),
            ("image/png", png(70_000, 1), (70_000, 1)),
            ("image/gif", b"GIF89a" + struct.pack("<HH", 5, 40_000), (5, 40_000)),
            ("image/bmp", b"BM" + bytes(16) + struct.pack("<ii", 5, -7), (5, 7)),
            ("image/jpeg", jpeg, (7, 5)),
            ("image/jpg", jpeg, (7, 5)),
            ("image/jpeg", b"\xff\xd8\xff\xe0\0\x04ab", (0, 0)),
            ("image/jpeg", b"\xff\xd8\xff", (0, 0)),
            ("application/pdf", b"%PDF-1.7", (0, 0)),
        ]
        for type, data, size in rows:
            with self.subTest(type):
                self.assertEqual(customerio_fake.pixels(type, data), size)

    def test_the_text_of_a_link_is_what_stands_in_it(self) -> None:
        page = customerio_fake.PageReader("t<a href='u'>a<b>b</b>c</a>d<a href='v'></a>e")
        self.assertEqual(
            [(row["url"], row["text"]) for row in page.links], [("u", "abc"), ("v", "")]
        )

    def test_a_form_without_its_file_is_refused(self) -> None:
        start = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\na\r\n--x--\r\n'
        rows = [
            (start, "multipart/form-data; boundary=x", "file is required: send a part with a file"),
            (start, "multipart/form-data", "the body is not multipart/form-data"),
        ]
        for body, label, text in rows:
            reply = self.call("POST", "/v1/assets/files", body, content_type=label)
            self.assert_errors(reply, 400, text)

    def test_a_version_shows_all_of_the_email(self) -> None:
        email = self.email(subject="One", html="<p>1</p>", text="one")
        version = self.ok("POST", f"{EMAILS}/{email['id']}/versions", {"name": "v"})["version"]
        node = self.ok("GET", f"{EMAILS}/{email['id']}/versions/{version['id']}")["node"]
        own = {"node_id": email["id"], "node_type": "EMAIL", "name": email["name"]}
        content = {"subject": "One", "content": "<p>1</p>", "text": "one"}
        more = {name: email[name] for name in ("envelope", "transformers")}
        self.assertEqual(node, {**own, **content, **more})


class StudioBlanks(StudioTest):
    """What is made with a name alone."""

    def test_an_email(self) -> None:
        made = self.make("emails")
        times = {name: made[name] for name in ("id", "created", "updated")}
        envelope: dict[str, Any] = {
            **dict.fromkeys(("from_id", "reply_to_id")),
            **dict.fromkeys(("bcc", "from", "reply_to"), ""),
            "recipient": "{{customer.email}}",
            "fake_bcc": True,
            "headers": [],
        }
        content = dict.fromkeys(("subject", "preheader_text", "html", "text", "amp"), "")
        self.assertEqual(made, {
            "name": "A", "is_template": False, "is_linked": False, "parent_folder_id": None,
            "available_languages": [], "content": content, "transformers": {},
            "envelope": envelope, **times})  # fmt: skip


# ======================================================================================
# ==== §23 Pipelines API
# ======================================================================================


class Pipelines(FakeTest):
    CALLS: dict[str, dict[str, Any]] = {
        "identify": {"userId": "1", "traits": {"email": "a@example.com"}},
        "track": {"userId": "1", "event": "bought", "properties": {"n": 1}},
        "page": {"userId": "1", "name": "home"},
        "screen": {"userId": "1", "name": "home"},
        "group": {"userId": "1", "groupId": "acme"},
        "alias": {"userId": "1", "previousId": "0"},
    }

    def test_each_call_is_kept_word_for_word(self) -> None:
        for kind, body in self.CALLS.items():
            answer = self.ok("POST", f"/v1/{kind}", {**body, "messageId": "m", "x": None})
            self.assertEqual(answer, {"success": True})
            event = self.records("pipeline-events")[-1]
            expected = {**body, "messageId": "m", "x": None, "type": kind}
            self.assertEqual({**event, **expected}, event)

    def test_a_batch_is_kept_whole_and_item_by_item(self) -> None:
        items = [{**body, "type": kind} for kind, body in self.CALLS.items()]
        self.ok("POST", "/v1/batch", {"batch": items, "context": {"ip": "::1"}})
        (batch,) = self.records("batches", "?source=pipelines")
        self.assertEqual(batch["operations"], items)
        events = self.records("pipeline-events")
        self.assertEqual([event["type"] for event in events], list(self.CALLS))
        self.assertEqual(events[0]["context"], {"ip": "::1"})

    def test_four_mistakes_are_always_refused(self) -> None:
        rows = [
            ("track", {"userId": "1"}, "event"),
            ("group", {"userId": "1"}, "groupId"),
            ("alias", {"userId": "1"}, "previousId"),
            ("alias", {"previousId": "1"}, "userId"),
            ("batch", {"batch": []}, "batch"),
        ]
        for kind, body, name in rows:
            with self.subTest(kind=kind, name=name):
                reply = self.call("POST", f"/v1/{kind}", body)
                self.assertEqual(reply.status, 400)
                error = reply.json["errors"][0]
                self.assertEqual((error["reason"], error["field"]), ("required", name))
                self.assertEqual((reply.json["code"], name in reply.json["message"]), (400, True))
        self.assertEqual(self.records("pipeline-events"), [])

    def test_the_rest_only_in_strict_mode(self) -> None:
        rows: list[tuple[str, Any, str]] = [
            ("identify", {}, "userId or anonymousId"),
            ("track", {"event": "x"}, "userId or anonymousId"),
            ("page", {"name": "x"}, "userId or anonymousId"),
            ("identify", {"userId": "1", "traits": []}, "traits"),
            ("identify", {"userId": ["1"]}, "userId"),
            ("batch", {"batch": [{"type": "nope"}, 3]}, "type"),
        ]
        for kind, body, text in rows:
            with self.subTest(kind=kind, text=text):
                self.assertEqual(self.call("POST", f"/v1/{kind}", body).status, 200)
                reply = self.call("POST", f"/v1/{kind}", body, x_strict_mode="1")
                self.assert_errors(reply, 400, text)

    def test_reports_are_about_nobody_also_in_strict_mode(self) -> None:
        message = {"to": "a@b.cd", "transactional_message_id": 1, "identifiers": {"id": "1"}}
        sent = self.ok("POST", "/v1/send/email", message)["delivery_id"]
        body = {"event": "Report Delivery Event"}
        properties = {"deliveryId": sent, "metric": "opened"}
        for path, item in (
            ("track", {**body, "properties": properties}),
            ("batch", {"batch": [{**body, "type": "track", "properties": properties}]}),
            ("track", {"event": "Report Content Event", "properties": {}}),
        ):
            self.ok("POST", f"/v1/{path}", item, x_strict_mode="1")
        self.assertIn("opened", self.records("deliveries")[0]["metrics"])
        reply = self.call("POST", "/v1/track", body, x_strict_mode="1")
        self.assert_errors(reply, 400, "properties")

    def test_strict_mode_takes_a_device_without_a_type(self) -> None:
        body = {"event": "Device Created or Updated", "userId": "1"}
        context = {"device": {"token": "t"}}
        self.ok("POST", "/v1/track", {**body, "context": context}, x_strict_mode="1")
        reply = self.call("POST", "/v1/track", body, x_strict_mode="1")
        self.assert_errors(reply, 400, "device.token")
        context["device"]["type"] = "fridge"
        reply = self.call("POST", "/v1/track", {**body, "context": context}, x_strict_mode="1")
        self.assert_errors(reply, 400, "device.platform")
        self.assertEqual([device["id"] for device in self.records("devices")], ["t"])


class PipelinesMapping(FakeTest):
    """What Pipelines calls do to people, events, objects and devices."""

    def send(self, kind: str, **body: Any) -> Reply:
        return self.call("POST", f"/v1/{kind}", body)

    def track(self, event: str, **body: Any) -> Reply:
        return self.send("track", **{"userId": "1", **body}, event=event)

    def test_identify_sets_attributes_and_turns_dates_into_seconds(self) -> None:
        traits = {
            "email": "a@example.com",
            "createdAt": "2021-07-02T16:14:41.046Z",
            "day": "2021-07-02",
            "zoned": "2021-07-02T18:14+02:00",
            "text": "2021-07-02 or so",
            "impossible": "2021-13-45",
        }
        self.send("identify", userId="1", anonymousId="a", traits=traits)
        expected = {
            "email": "a@example.com",
            "created_at": 1625242481,
            "day": 1625184000,
            "zoned": 1625242440,
            "text": "2021-07-02 or so",
            "impossible": "2021-13-45",
            "anonymous_id": "a",
        }
        self.assertEqual(self.person("1")["attributes"], expected)

    def test_dates_become_seconds_in_nested_objects_but_not_in_lists(self) -> None:
        day, seconds = "2021-07-02T00:00:00Z", 1625184000
        given = {"at": day, "in": {"deep": {"at": day}}, "list": [day, {"at": day}]}
        expected = {**given, "at": seconds, "in": {"deep": {"at": seconds}}}
        role = {"relationshipAttributes": given}
        self.send("identify", userId="1", traits={"x": given, "objectId": "a", **role})
        self.send("group", userId="1", groupId="b", traits={"x": given, **role})
        self.track("bought", properties=given)
        self.send("page", userId="1", name="Home", properties=given)
        self.assertEqual(self.person("1")["attributes"], {"x": expected})
        self.assertEqual([event["data"] for event in self.records("events")], [expected] * 2)
        first, second = self.records("objects")
        self.assertEqual(second["attributes"], {"x": expected})
        related = [thing["relationships"][0]["attributes"] for thing in (first, second)]
        self.assertEqual(related, [expected] * 2)
        kept = self.records("pipeline-events", "?event=bought")
        self.assertEqual(kept[0]["properties"], given)

    def test_identify_falls_back_to_the_email(self) -> None:
        self.send("identify", userId="", traits={"email": "a@example.com"})
        self.assertEqual(self.person("a@example.com")["id"], None)
        reply = self.send("identify", anonymousId="a")
        self.assertIn("nobody to identify", reply.reason)
        self.assertEqual(len(self.records("customers")), 1)

    def test_the_shape_of_a_user_id_says_what_it_is(self) -> None:
        self.identify("1", email="a@example.com")
        cio_id = self.person("1")["cio_id"]
        self.send("identify", userId="A@example.com", traits={"plan": "pro"})
        self.send("identify", userId=f"cio_{cio_id}", traits={"seats": 5})
        self.track("bought", userId="a@example.com")
        device = {"device": {"token": "t", "type": "ios"}}
        when = "2026-11-01T10:00:00Z"
        self.track("Device Created or Updated", userId=f"cio_{cio_id}", context=device,
                   timestamp=when)  # fmt: skip
        self.assertEqual(self.records("devices")[0]["last_used"], 1_793_527_200)
        (person,) = self.records("customers")
        attributes = {"email": "a@example.com", "plan": "pro", "seats": 5}
        self.assertEqual((person["id"], person["attributes"]), ("1", attributes))
        self.assertEqual(self.records("events")[0]["customer_id"], "1")
        self.assertEqual(self.records("devices")[0]["customer_id"], "1")
        self.identify("2")
        self.send("alias", userId="2", previousId="a@example.com")
        self.assertEqual([person["id"] for person in self.records("customers")], ["2"])

    def test_a_user_id_of_another_workspace_is_refused(self) -> None:
        reply = self.send("identify", userId="cio_a2f707098dcf01be8c12")
        self.assertEqual((reply.status, reply.reason), (200, "invalid identifier"))
        self.assertEqual(self.records("customers"), [])

    def test_identify_relates_to_an_object(self) -> None:
        traits = {"objectId": "acme", "relationshipAttributes": {"role": "x"}, "plan": "pro"}
        self.send("identify", userId="1", traits=traits)
        (thing,) = self.records("objects")
        self.assertEqual((thing["object_type_id"], thing["object_id"]), ("1", "acme"))
        self.assertEqual(self.person("1")["attributes"], {"plan": "pro"})

    def test_track_page_and_screen_are_events_once_per_message(self) -> None:
        when = {"messageId": "m1", "timestamp": "2021-07-02T16:14:41Z"}
        self.track("bought", properties={"n": 1}, **when)
        self.assertIn("duplicate", self.track("bought", **when).reason)
        self.send("page", userId="1", properties={"url": "https://x.example"})
        self.send("screen", userId="1", name="Home")
        found = [(e["kind"], e["name"], e["customer_id"]) for e in self.records("events")]
        pages = [("page", "https://x.example", "1"), ("screen", "Home", "1")]
        self.assertEqual(found, [("event", "bought", "1"), *pages])
        first = self.records("events")[0]
        self.assertEqual((first["data"], first["timestamp"]), ({"n": 1}, 1625242481))

    def test_anonymous_events_wait_for_the_identify(self) -> None:
        self.send("track", anonymousId="a", event="visit")
        self.send("identify", userId="1", anonymousId="a")
        self.assertEqual(self.records("events")[0]["customer_id"], "1")

    def test_group_makes_an_object_and_a_relationship(self) -> None:
        self.send("identify", userId="1")
        traits = {"object_type_id": "2", "name": "Acme", "relationshipAttributes": {"role": "x"}}
        self.send("group", userId="1", groupId="acme", traits=traits)
        (thing,) = self.records("objects")
        self.assertEqual((thing["object_type_id"], thing["attributes"]), ("2", {"name": "Acme"}))
        expected = [{"customer_id": "1", "attributes": {"role": "x"}}]
        self.assertEqual(thing["relationships"], expected)

    def test_alias_merges(self) -> None:
        self.identify("new")
        self.identify("old", a=1)
        self.send("alias", userId="new", previousId="old")
        (person,) = self.records("customers")
        self.assertEqual((person["id"], person["attributes"]), ("new", {"a": 1}))

    def test_semantic_events_are_instructions(self) -> None:
        device = {"device": {"token": "t", "type": "ios"}}
        acme = {"objectId": "acme"}
        steps: list[tuple[str, Any, str, Any]] = [
            ("Device Created or Updated", {"context": device}, "devices", 1),
            ("Device Deleted", {"context": device}, "devices", 0),
            ("Relationship Deleted", {"properties": acme}, "objects", 1),
            ("Object Deleted", {"properties": acme}, "objects", 0),
            ("User Suppressed", {}, "suppressed", 1),
            ("User Unsuppressed", {}, "suppressed", 0),
        ]
        self.send("identify", userId="1")
        self.send("group", userId="1", groupId="acme")
        for event, body, name, count in steps:
            with self.subTest(event=event):
                self.assertEqual(self.track(event, **body).reason, "")
                self.assertEqual(len(self.records(name)), count)
        self.send("identify", userId="1")
        self.track("User Deleted")
        self.assertEqual((self.records("customers"), self.records("events")), ([], []))

    def test_the_platform_of_a_device_is_found_without_its_type(self) -> None:
        apple = "0a" * 32
        rows: list[tuple[dict[str, Any], str]] = [
            ({"device": {"token": "t", "type": "iOS"}}, "ios"),
            ({"device": {"token": "t"}}, "ios"),
            ({"device": {"token": "t", "type": "ANDROID"}}, "android"),
            ({"device": {"token": "t"}, "os": {"name": "iOS"}}, "ios"),
            ({"device": {"token": apple}, "os": {"name": "iPadOS"}}, "ios"),
            ({"device": {"token": "f:APA91b"}}, "android"),
        ]
        for context, platform in rows:
            reply = self.track("Device Created or Updated", context=context)
            self.assertEqual((reply.status, reply.reason), (200, ""))
            device = self.records("devices")[-1]
            self.assertEqual(
                (device["id"], device["platform"]), (context["device"]["token"], platform)
            )

    def test_a_report_is_booked_on_its_delivery(self) -> None:
        message = {"to": "a@b.cd", "transactional_message_id": 1, "identifiers": {"id": "1"}}
        sent = self.ok("POST", "/v1/send/email", message)["delivery_id"]
        properties = {"deliveryId": sent, "metric": "opened"}
        self.track("Report Delivery Event", properties=properties)
        self.assertIn("opened", self.records("deliveries")[0]["metrics"])

    def test_what_cannot_be_done_is_swallowed_and_shown(self) -> None:
        rows: list[tuple[str, Any]] = [
            ("track", {"event": "x"}),
            ("track", {"userId": {"a": 1}, "event": "x"}),
            ("identify", {"userId": "1", "traits": {"a": "x" * 1001}}),
            ("page", {"userId": "1"}),
            ("track", {"userId": "1", "event": "Device Created or Updated"}),
            ("group", {"userId": "1", "groupId": "x", "traits": {"objectTypeId": "x"}}),
        ]
        for kind, body in rows:
            with self.subTest(kind=kind, body=body):
                reply = self.send(kind, **body)
                self.assertEqual((reply.status, reply.json), (200, {"success": True}))
                self.assertTrue(reply.reason)
        self.assertEqual(len(self.records("dropped")), len(rows))
        self.assertEqual(len(self.records("pipeline-events")), len(rows))
        self.assertEqual((self.records("customers"), self.records("events")), ([], []))

    def test_a_group_describes_its_object_in_two_ways(self) -> None:
        when = "2021-07-02T16:14:41Z"
        traits: dict[str, Any] = {"name": "Acme", "plan": "a", "createdAt": when}
        traits["objectAttributes"] = {"plan": "b", "renewed": when}
        self.send("group", groupId="acme", traits=traits)
        expected = {"name": "Acme", "plan": "b", "created_at": 1625242481, "renewed": 1625242481}
        self.assertEqual(self.records("objects")[0]["attributes"], expected)

    def test_calls_for_other_integrations_do_not_reach_the_workspace(self) -> None:
        rows: list[tuple[Any, bool]] = [
            ({"All": False}, False),
            ({"All": False, "Salesforce": True}, False),
            ({"Customer.io": False}, False),
            ({"All": False, "Customer.io": True}, True),
            ({"All": True, "Salesforce": False}, True),
            ([], True),
        ]
        for n, (integrations, arrives) in enumerate(rows):
            reply = self.track(f"e{n}", integrations=integrations)
            self.assertEqual((reply.status, not reply.reason), (200, arrives), integrations)
        batch = [{"type": "track", "userId": "1", "event": "e"}]
        self.ok("POST", "/v1/batch", {"batch": batch, "integrations": {"All": False}})
        self.assertEqual([e["name"] for e in self.records("events")], ["e3", "e4", "e5"])
        self.assertEqual(len(self.records("pipeline-events")), len(rows) + 1)

    def test_reports_of_content_are_events(self) -> None:
        content = {"actionType": "viewed_content", "contentId": 7, "templateId": 2}
        reply = self.track("Report Content Event", properties=content, userId="", anonymousId="a")
        self.assertEqual(reply.reason, "")
        (event,) = self.records("events")
        self.assertEqual((event["name"], event["data"]["contentId"]), ("viewed_content", 7))
        for wrong in ({"actionType": "seen"}, {"contentId": "7"}, {"templateId": None}):
            reply = self.track("Report Content Event", properties={**content, **wrong})
            self.assertIn("actionType", reply.reason)
        self.assertEqual(len(self.records("events")), 1)

    def test_calls_that_lead_nowhere_are_fine_also_in_strict_mode(self) -> None:
        rows: list[tuple[str, dict[str, Any]]] = [
            ("identify", {"anonymousId": "a"}),
            ("track", {"event": "e", "groupId": "g"}),
            ("page", {"userId": "1"}),
            ("screen", {"anonymousId": "a"}),
        ]
        for kind, body in rows:
            for path, sent in ((kind, body), ("batch", {"batch": [{**body, "type": kind}]})):
                reply = self.call("POST", f"/v1/{path}", sent, x_strict_mode="1")
                self.assertEqual((reply.status, bool(reply.reason)), (200, True), (kind, path))
        self.assertEqual((self.records("customers"), self.records("events")), ([], []))

    def test_too_large_a_batch_is_dropped_whole(self) -> None:
        calls = [{"type": "identify", "userId": str(n), "x": "x" * 30_000} for n in range(18)]
        reply = self.call("POST", "/v1/batch", {"batch": calls})
        self.assertEqual((reply.status, "512000 bytes" in reply.reason), (200, True))
        self.assertEqual((self.records("customers"), self.records("batches")), ([], []))
        self.assertEqual(len(self.records("dropped")), 1)

    def test_the_browser_sdk_is_told_to_send_its_calls_here(self) -> None:
        headers = {"authorization": "", "origin": "http://localhost:3000"}
        reply = self.call("GET", "/v1/projects/key/settings", **headers)
        ours = {"apiKey": "key", "apiHost": "localhost:4668/v1", "protocol": "http"}
        expected = {"Customer.io Data Pipelines": ours}
        everything = {"integrations": expected, "metrics": {"sampleRate": 0}}
        self.assertEqual((reply.status, reply.json), (200, everything))
        self.assertEqual(reply.headers["access-control-allow-origin"], "*")

    def test_the_browser_sdk_has_its_key_in_the_body(self) -> None:
        plain = {"authorization": "", "content_type": "text/plain", "origin": "http://a.test"}
        for kind, body in Pipelines.CALLS.items():
            sent = {**body, "writeKey": "key", "type": kind}
            reply = self.call("POST", f"/v1/{kind[0]}", sent, **plain)
            self.assertEqual((reply.status, reply.json), (200, {"success": True}), kind)
            self.assertEqual(reply.headers["access-control-allow-origin"], "*")
        self.assertEqual([row["type"] for row in self.records("pipeline-events")],
                         list(Pipelines.CALLS))  # fmt: skip
        wrong: Any
        for wrong in ({"userId": "1"}, {"writeKey": ""}, []):
            self.assertEqual(self.call("POST", "/v1/i", wrong, **plain).status, 401, wrong)
        self.assertEqual(self.call("POST", "/v1/i", b"{", **plain).status, 400)
        self.ok("POST", "/v1/i", {"userId": "1"})  # with a header, as elsewhere

    def test_a_mobile_batch_has_its_key_in_the_body(self) -> None:
        batch = [{"type": "identify", "userId": "1"}]
        body = {"batch": batch, "writeKey": "key"}
        self.assertEqual(self.call("POST", "/v1/b", body, authorization="").status, 200)
        self.assertEqual(len(self.records("customers")), 1)
        reply = self.call("POST", "/v1/b", {"batch": batch}, authorization="")
        self.assertEqual(reply.status, 401)


class StrictPipelines(FakeTest):
    """What strict mode refuses, and what goes by without it, with the reason in a header."""

    def test_limits_are_exact(self) -> None:
        call: Any = {"userId": "1", "event": "e", "properties": {"x": ""}}
        room = 32_768 - len(json.dumps(call, separators=(",", ":")))
        calls = ({**call, "properties": {"x": "y" * n}} for n in (room, room + 1))
        batch = json.dumps({"batch": [{**call, "type": "track"}]}).encode()
        rows = (("track", *calls), ("batch", *(batch.ljust(n) for n in (512_000, 512_001))))
        for path, fits, exceeds in rows:
            for strict in ("", "1"):
                with self.subTest(path, strict=strict):
                    reply = self.call("POST", f"/v1/{path}", fits, x_strict_mode=strict)
                    self.assertEqual((reply.status, reply.reason), (200, ""))
                    reply = self.call("POST", f"/v1/{path}", exceeds, x_strict_mode=strict)
                    self.assertEqual(reply.status, 400 if strict else 200)
                    self.assertIn(
                        "cannot be larger", reply.json["message"] if strict else reply.reason
                    )
        self.assertEqual(len(self.records("events")), 4)

    def test_a_call_of_an_unknown_type_is_dropped(self) -> None:
        self.ok("POST", "/v1/batch", {"batch": [{"type": "nope"}, 3]})
        reasons = [row["reason"] for row in self.records("dropped")]
        self.assertEqual(reasons, [f"unknown type of Pipelines call: {t!r}" for t in ("nope", "")])

    def test_refusals(self) -> None:
        def track(event: str, **properties: Any) -> Any:
            return {"type": "track", "userId": "1", "event": event, "properties": properties}

        metric = track("Report Delivery Event", deliveryId="x", metric="nope")
        content = track("Report Content Event", actionType="nope")
        rows: list[tuple[str, Any, str, int]] = [
            ("/v1/track", metric, "metric must be one of: opened", 400),
            ("/v1/track", content, "no report of content: it takes actionType", 200),
            ("/v1/batch", {"batch": [5]}, "each call must be an object, not a number", 400),
            ("/v1/batch", {"batch": [track("x", a="b" * 600_000)]}, "larger than 512000 by", 400),
        ]
        for path, body, text, status in rows:
            for strict in ("1", ""):
                with self.subTest(text, strict=strict):
                    reply = self.call("POST", path, body, x_strict_mode=strict)
                    self.assertEqual(reply.status, status if strict else 200)
                    if reply.status == 400:
                        self.assertIn(text, reply.json["message"])
        reply = self.call("POST", "/v1/batch", {"batch": [5]}, x_strict_mode="1")
        self.assertEqual(reply.json["errors"][0]["message"], reply.json["message"])  # no field
        self.assertEqual(self.records("events"), [])


# ======================================================================================
# ==== §24 Control
# ======================================================================================


class ControlLists(FakeTest):
    """What was captured, oldest first."""

    def setUp(self) -> None:
        super().setUp()
        for i in range(5):
            event = {"name": "odd" if i % 2 else "even", "data": {"n": i, "deep": {"x": i}}}
            self.ok("POST", f"/api/v1/customers/{i}/events", event)

    def test_limit_and_offset_cut_and_count_does_not(self) -> None:
        answer = self.ok("GET", "/__parlel/events?offset=1&limit=2")
        self.assertEqual([event["data"]["n"] for event in answer["events"]], [1, 2])
        self.assertEqual(answer["count"], 5)

    def test_fields_filter_also_inside_objects(self) -> None:
        self.assertEqual(len(self.records("events", "?name=odd")), 2)
        self.assertEqual(len(self.records("events", "?name=odd&customer_id=1")), 1)
        self.assertEqual(len(self.records("events", "?data.deep.x=4")), 1)
        self.assertEqual(self.records("events", "?name=none"), [])

    def test_the_newest_can_come_first(self) -> None:
        def numbers(query: str) -> list[int]:
            return [event["data"]["n"] for event in self.records("events", query)]

        self.assertEqual(numbers("?order=newest"), [4, 3, 2, 1, 0])
        self.assertEqual(numbers("?order=newest&offset=1&limit=2"), [3, 2])
        self.assertEqual(numbers("?order=newest&name=odd&limit=1"), [3])
        self.assertEqual(numbers("?order=oldest&limit=1"), [0])
        for name in customerio_fake.COLLECTIONS:
            newest = self.records(name, "?order=newest")
            self.assertEqual(newest[::-1], self.records(name), name)
        self.ok("DELETE", "/api/v1/customers/3")
        people = self.records("customers", "?order=newest&limit=2")
        self.assertEqual([person["id"] for person in people], ["4", "2"])

    def test_a_text_is_looked_for_everywhere_in_a_record(self) -> None:
        self.identify("Zoë", email="zoe@example.com", plan={"name": 'the "best"'})
        message = {"to": "a@b.co", "identifiers": {"id": "1"}, "subject": "Grüße", "from": "u@b.co"}
        self.ok("POST", "/v1/send/email", {**message, "body": "<b>Deep</b>"})
        rows = [
            ("events", "ODD", 2), ("events", "'n': 4", 1), ("events", "nobody", 0),
            ("customers", "zoë", 1), ("customers", "example.com", 1), ("customers", "best", 1),
            ("customers", "4", 1), ("deliveries", "grüße", 1), ("deliveries", "deep", 1),
            ("requests", "/customers/3/", 1), ("requests", "", 7), ("segments", "x", 0),
        ]  # fmt: skip
        for name, text, count in rows:
            with self.subTest(name, text=text):
                found = self.records(name, "?" + urllib.parse.urlencode({"text": text}))
                self.assertEqual(len(found), count)
        self.assertEqual(len(self.records("events", "?text=odd&customer_id=1&limit=5")), 1)

    def test_a_record_can_be_cut_to_some_fields(self) -> None:
        found = self.records("events", "?fields=name,data.deep.x,data.deep.y&limit=1")
        self.assertEqual(found, [{"name": "even", "data.deep.x": 0}])
        found = self.records("events", "?fields=name,data&limit=1&cut=2")
        self.assertEqual(found, [{"name": "ev", "data": {"n": 0, "deep": {"x": 0}}}])
        reply = self.call("GET", "/__parlel/events?fields=name,nmae")
        self.assert_errors(reply, 400, "nmae")

    def test_every_field_filters_whichever_way_it_is_read(self) -> None:
        self.identify("0", email="a@example.com", age=3, tags=["x", "y"])
        for name in ("customers", "events", "requests"):
            for record in self.records(name):
                for field, value in record.items():
                    if isinstance(value, (dict, list)) or field == "workspace":
                        continue
                    query = urllib.parse.urlencode({field: customerio_fake.as_text(value)})
                    self.assertIn(record, self.records(name, f"?{query}"), query)
        for query in ("attributes.tags.1=y", "attributes.age=3", "identifiers.email=a@example.com"):
            self.assertEqual([row["id"] for row in self.records("customers", f"?{query}")], ["0"])

    def test_bad_queries_name_the_field(self) -> None:
        for query, word in (
            ("order=up", "order"),
            ("limit=x", "limit"),
            ("offset=-1", "offset"),
            ("nmae=x", "nmae"),
        ):
            self.assert_errors(self.call("GET", f"/__parlel/events?{query}"), 400, word)
        self.assert_errors(self.call("GET", "/__parlel/events?name=%FF"), 400, "UTF-8")

    def test_reset_forgets_everything_and_starts_counting_anew(self) -> None:
        before = self.person("0")["cio_id"]
        self.ok("POST", "/__parlel/reset")
        for name in customerio_fake.COLLECTIONS:
            self.assertEqual(self.records(name), [], name)
        self.identify("again")
        self.assertEqual(self.person("again")["cio_id"], before)


class ForPeopleToRead(FakeTest):
    """What the control endpoints tell beyond the lists."""

    def test_a_profile_has_all_that_belongs_to_a_person(self) -> None:
        seed = {
            "customers": [{"id": "1", "attributes": {"email": "a@b.co", "plan": "pro"}}],
            "segments": [
                {"id": 1, "name": "Pro", "conditions": {
                    "attribute": {"field": "plan", "operator": "eq", "value": "pro"}}},
                {"id": 2, "name": "Staff", "ids": ["1"]},
                {"id": 3, "name": "Nobody", "ids": []},
            ],
            "topics": [{"id": 1, "name": "News"}, {"id": 2, "name": "Offers"}],
        }  # fmt: skip
        self.fake.seed(seed)
        preferences = {"topics": {"topic_2": False}}
        self.identify("1", cio_subscription_preferences=preferences)
        self.ok("PUT", "/api/v1/customers/1/devices", {"device": {"id": "d", "platform": "ios"}})
        thing = {"object_type_id": "1", "object_id": "acme"}
        relation = {"identifiers": thing, "relationship_attributes": {"role": "boss"}}
        self.ok("PUT", "/api/v1/customers/1", {"cio_relationships": {
            "action": "add_relationships", "relationships": [relation]}})  # fmt: skip
        profile = self.ok("GET", "/__parlel/customers/a@b.co/profile")
        self.assertEqual(profile, {**profile, **self.ok("GET", "/__parlel/customers/1")})
        self.assertEqual([row["name"] for row in profile["segments"]], ["Pro", "Staff"])
        self.assertEqual([row["id"] for row in profile["devices"]], ["d"])
        self.assertEqual(profile["objects"], [{**thing, "attributes": {"role": "boss"}}])
        topics = {row["name"]: row["subscribed"] for row in profile["topics"]}
        self.assertEqual(topics, {"News": True, "Offers": False})
        self.assertEqual(set(profile["timestamps"]), {"id", *profile["attributes"]})
        self.assertEqual(self.call("GET", "/__parlel/customers/2/profile").status, 404)

    def test_the_seed_and_the_settings_can_be_read(self) -> None:
        self.assertEqual(self.ok("GET", "/__parlel/seed"), {})
        self.ok("POST", "/__parlel/seed", {"customers": [{"id": "1"}]})
        self.assertEqual(self.ok("GET", "/__parlel/seed"), {"customers": [{"id": "1"}]})
        self.fake = Fake(Settings(journal=5))
        rows = {row["name"]: row for row in self.ok("GET", "/__parlel/settings")["settings"]}
        self.assertEqual((rows["journal"]["value"], rows["journal"]["changed"]), (5, True))
        self.assertEqual((rows["region"]["value"], rows["region"]["changed"]), ("us", False))
        self.assertIn("requests are kept", rows["journal"]["help"])

    def test_it_is_told_how_many_reports_wait(self) -> None:
        self.assertEqual(self.ok("GET", "/__parlel/webhooks")["waiting"], 0)
        with mock.patch.object(type(self.fake.outbox), "waiting", 3):
            self.assertEqual(self.ok("GET", "/__parlel/webhooks?limit=0")["waiting"], 3)

    def test_campaigns_are_listed_with_their_workflow(self) -> None:
        actions = [{"id": 7, "type": "email", "name": "Hello", "subject": "Hi", "body": "b"}]
        self.fake.seed({"campaigns": [{"id": 4, "name": "Welcome", "actions": actions}]})
        self.assertEqual(self.records("campaigns")[0]["journeys"], {})
        (campaign,) = self.records("campaigns")
        self.assertEqual((campaign["id"], campaign["name"]), (4, "Welcome"))
        self.assertEqual([(row["id"], row["name"]) for row in campaign["actions"]], [(7, "Hello")])

    def test_campaigns_tell_where_their_journeys_are(self) -> None:
        nap = {"type": "delay_seconds", "delay": 60}
        flow = {"id": 4, "event_name": "go", "actions": [{**nap, "id": 3}, mail(7)]}
        self.fake.seed({
            "campaigns": [flow, {"id": 5, "name": "bare"}],
            "broadcasts": [{"id": 6, "name": "plain", "actions": [{"subject": "s"}]},
                           {"id": 8, "name": "flow", "actions": [nap, mail(9)]}],
            "clock": {"freeze": True},
        })  # fmt: skip
        for person in "123":
            self.ok("POST", f"/api/v1/customers/{person}/events", {"name": "go"})
            self.ok("PUT", "/__parlel/clock", {"advance": 40})
        rows = {row["id"]: row for row in self.records("campaigns")}
        self.assertEqual(sorted(rows), [4, 5, 8])
        self.assertEqual(rows[4]["journeys"], {"finished": 2, "active": 1})
        self.assertEqual(rows[4]["at"], {"3": 1})

    def test_whoever_looks_at_a_message_untracked_is_not_noticed(self) -> None:
        message = {"to": "a@b.co", "identifiers": {"id": "1"}, "subject": "s", "from": "u@b.co"}
        body = '<body><a href="https://x.example/?a=1&amp;b=2">x</a> <p>/e/c/1</p></body>'
        sent = self.ok("POST", "/v1/send/email", {**message, "body": body})["delivery_id"]
        path = f"/__parlel/deliveries/{sent}/html"
        self.assertNotEqual(self.call("GET", path).body.decode(), body)
        self.assertEqual(self.call("GET", path + "?tracked=false").body.decode(), body)


class WhatHasChanged(FakeTest):
    """GET /__parlel/changes, which a page or a test asks for what is new."""

    def since(self, number: int = 0, query: str = "") -> Any:
        return self.ok("GET", f"/__parlel/changes?since={number}{query}")

    def changed(self, do: Callable[[], Any]) -> set[str]:
        before = self.since()["number"]
        do()
        return set(self.since(before)["changed"])

    def test_each_change_names_its_list(self) -> None:
        self.identify("1", plan="pro")
        hook = {"endpoint": "http://127.0.0.1:9/", "events": ["email_sent"], "name": "x"}
        mail = {"to": "a@b.co", "identifiers": {"id": "1"}, "subject": "s", "body": "b"}
        mail["from"] = "u@b.co"
        event, fault = {"name": "e"}, {"match": {"path": "/nowhere"}, "status": 500}
        device = {"device": {"id": "d", "platform": "ios"}}
        thing = {"type": "object", "action": "identify", "attributes": {"a": 1}}
        thing["identifiers"] = {"object_type_id": "1", "object_id": "o"}
        rows: list[tuple[str, str, Any, set[str]]] = [
            ("GET", "/health", None, {"requests"}),
            ("PUT", "/api/v1/customers/1", {"plan": "free"}, {"requests", "customers"}),
            ("PUT", "/api/v1/customers/2", {"plan": "free"}, {"requests", "customers"}),
            ("PUT", "/api/v1/customers/2", {"plan": "free"}, {"requests"}),
            ("POST", "/api/v1/customers/1/events", event, {"requests", "events"}),
            ("POST", "/api/v1/events", {**event, "anonymous_id": "a"}, {"requests", "events"}),
            (
                "PUT",
                "/api/v1/customers/1",
                {"anonymous_id": "a"},
                {"requests", "events", "customers"},
            ),
            ("PUT", "/api/v1/customers/1/devices", device, {"requests", "devices"}),
            ("POST", "/api/v2/entity", thing, {"requests", "objects"}),
            ("POST", "/v1/reporting_webhooks", hook, {"requests"}),
            ("DELETE", "/api/v1/customers/nobody", None, {"requests", "dropped"}),
            ("PUT", "/__parlel/clock", {"freeze": True}, {"clock"}),
            ("PUT", "/__parlel/clock", {"advance": 1}, {"clock"}),
            ("POST", "/__parlel/faults", fault, {"faults"}),
            ("POST", "/__parlel/workspaces", {"name": "w"}, {"workspaces"}),
            ("GET", "/__parlel/customers", None, set()),
        ]
        for method, path, body, lists in rows:
            with self.subTest(f"{method} {path}", body=body):
                changed = self.changed(lambda m=method, p=path, b=body: self.call(m, p, b))  # type: ignore[misc]
                self.assertEqual(changed, lists)
        changed = self.changed(lambda: self.call("POST", "/v1/send/email", mail))
        self.assertGreaterEqual(changed, {"requests", "deliveries", "webhooks"})
        self.assertNotIn("customers", changed)

    def test_a_reset_and_a_number_from_before_our_time_change_all(self) -> None:
        everything = {*customerio_fake.COLLECTIONS, "clock", "faults", "workspaces"}
        self.assertEqual(set(self.since()["changed"]), everything)
        number = self.since()["number"]
        self.assertEqual(self.since(number), {"number": number, "changed": []})
        self.assertEqual(set(self.since(number + 1)["changed"]), everything)
        self.ok("POST", "/__parlel/reset")
        self.assertEqual(set(self.since(number)["changed"]), everything)

    def test_many_changes_between_two_looks_are_seen(self) -> None:
        def many() -> None:
            for number in range(1500):
                self.identify("1", n=number)

        self.assertIn("customers", self.changed(many))

    def test_a_workspace_counts_for_itself(self) -> None:
        self.ok("POST", "/__parlel/workspaces", {"name": "w"})
        before = self.since()["number"]
        self.call("PUT", "/@w/api/v1/customers/1", {}, authorization="Basic czprOg==")
        self.assertEqual(self.since(before)["changed"], [])
        self.assertIn("customers", self.ok("GET", "/@w/__parlel/changes")["changed"])

    def test_bad_questions_name_the_field(self) -> None:
        for query in ("since=x", "since=-1", "timeout=-1", "timeout=nan", "timeout=301", "a=1"):
            reply = self.call("GET", f"/__parlel/changes?{query}")
            self.assert_errors(reply, 400, query.partition("=")[0])
        for query in ("since=0", "timeout=0", "timeout=300", "timeout=0.5"):
            self.ok("GET", f"/__parlel/changes?{query}")


class Expectations(FakeTest):
    """Assertions that explain themselves, and waiting."""

    def setUp(self) -> None:
        super().setUp()
        for person, plan in (("1", "pro"), ("2", "free")):
            event = {"name": "signup", "data": {"plan": plan, "n": 1}}
            self.ok("POST", f"/api/v1/customers/{person}/events", event)

    def expect(self, **body: Any) -> Reply:
        return self.call("POST", "/__parlel/assert", {"list": "events", **body})

    def test_matchers_say_more_than_equal(self) -> None:
        n, plan = "data.n", "data.plan"
        rows: List[Tuple[Any, int]] = [
            ({n: {"gt": 0}}, 2), ({n: {"gt": 1}}, 0), ({n: {"gte": 1, "lte": 1}}, 2),
            ({n: {"lt": 1}}, 0), ({n: {"lt": "2"}}, 0), ({plan: {"gte": "g"}}, 1),
            ({n: {"gt": 0.5, "lt": 1.5}}, 2), ({n: {"lte": True}}, 0), ({plan: {"lt": "free"}}, 0),
            ({plan: {"regex": "^f.e+$"}}, 1), ({plan: {"regex": "^r"}}, 0),
            ({plan: {"one_of": ["free", "team"]}}, 1), ({plan: {"not": "free"}}, 1),
            ({plan: {"not": {"contains": "r"}}}, 0), ({"data.none": {"absent": True}}, 2),
            ({plan: {"absent": True}}, 0), ({plan: {"absent": False}}, 2),
            ({"data": {"plan": {"regex": "p"}, "n": {"gt": 0}}}, 1),
            ({"anonymous_id": {"absent": True}}, 0), ({"anonymous_id": None}, 2),
        ]  # fmt: skip
        for match, count in rows:
            reply = self.expect(match=match, exactly=count)
            self.assertEqual(reply.status, 200, (match, reply.body))

    def test_the_records_that_matched_are_given(self) -> None:
        reply = self.expect(match={"data": {"plan": "pro"}})
        self.assertEqual([row["customer_id"] for row in reply.json["records"]], ["1"])
        steps = [{"customer_id": "1"}, {"customer_id": "2"}]
        self.assertEqual(len(self.expect(in_order=steps).json["records"]), 2)
        self.assertEqual(self.expect(match={"name": "no"}, none=True).json["records"], [])

    def test_a_difference_stands_in_a_line_and_missing_is_not_null(self) -> None:
        text = self.expect(match={"name": "sign", "data.x": 1, "anonymous_id": "a"}).json
        lines = text["meta"]["error"].split("near miss: ")[1].split("\n")
        self.assertEqual(
            [line.strip() for line in lines[:3]],
            ["name is signup, not sign", "data.x is missing, not 1", "anonymous_id is null, not a"],
        )
        text = self.expect(match={"data": {"plan": "x", "n": 1}}).json["meta"]["error"]
        near = ["near miss: data.plan is pro, not x", "near miss: data.plan is free, not x"]
        self.assertEqual(text.split("\n  ")[1:], near)

    def test_long_texts_differ_line_by_line(self) -> None:
        body = "\n".join(f"line {n} of a long text" for n in range(20))
        self.ok("POST", "/api/v1/customers/1/events", {"name": "long", "data": {"text": body}})
        reply = self.expect(match={"data.text": body.replace("line 7", "line seven")})
        nearest = reply.json["meta"]["error"].split("near miss: ")[1]
        lines = [
            "--- wanted",
            "+++ found",
            "@@ -7,3 +7,3 @@",
            " line 6 of a long text",
            "-line seven of a long text",
            "+line 7 of a long text",
            " line 8 of a long text",
        ]
        self.assertIn("differs:" + "".join(f"\n      {line}" for line in lines), nearest)
        self.assertNotIn("line 9", nearest)
        text = self.expect(match={"data.text": "other\n" * 50}).json["meta"]["error"]
        self.assertEqual(text.split("near miss: ")[1].count("\n      "), 40)
        for size, start in ((99, "data.text is"), (100, "data.text differs:")):
            event = {"name": "e", "data": {"text": "a" * 101}}
            self.ok("POST", f"/api/v1/customers/{size}/events", event)
            reply = self.expect(match={"customer_id": size, "data.text": "b" * size})
            self.assert_errors(reply, 422, "near miss: " + start)

    def test_wrong_matchers_are_refused(self) -> None:
        rows = [
            ({"name": {"regexp": "x"}}, "did you mean regex?"),
            ({"name": {"regex": "("}}, "name.regex is no regular expression"),
            ({"name": {"one_of": []}}, "name.one_of must be a list of at least one"),
            ({"name": {"absent": 1}}, "name.absent must be"),
            ({"data": {"plan": {"regex": "("}}}, "data.plan.regex is no regular expression"),
        ]
        for match, text in rows:
            reply = self.expect(match=match)
            self.assertEqual(reply.status, 400, match)
            self.assertIn(text, reply.json["meta"]["error"])

    def test_what_is_there_is_fine(self) -> None:
        rows: list[dict[str, Any]] = [
            {"match": {"name": "signup"}},
            {"match": {"name": "signup"}, "exactly": 2},
            {"match": {"data": {"plan": "pro"}}, "exactly": 1},
            {"match": {"data.plan": {"contains": "re"}}, "exactly": 1},
            {"match": {"name": "x"}, "none": True},
            {"match": {"name": "signup"}, "at_most": 2},
            {"match": {"name": "x"}, "at_most": 2},
            {"match": {"name": "signup"}, "at_least": 2, "at_most": 2},
            {"in_order": [{"customer_id": "1"}, {"customer_id": "2"}]},
        ]
        for row in rows:
            self.assertEqual(self.expect(**row).status, 200, row)

    def test_a_failure_names_the_nearest_and_what_differs(self) -> None:
        rows: list[tuple[dict[str, Any], str]] = [
            (
                {"match": {"name": "signup", "customer_id": "3", "data": {"plan": "pro"}}},
                "near miss: customer_id is 1, not 3",
            ),
            ({"match": {"name": "signup"}, "exactly": 1}, "found 2"),
            ({"match": {"name": "signup"}, "none": True}, "expected none of events"),
            ({"match": {"data.n": "1"}}, 'data.n is 1, not \\"1\\"'),
            ({"in_order": [{"customer_id": "2"}, {"customer_id": "1"}]}, "in its turn"),
            ({"list": "deliveries"}, "nothing at all is recorded"),
            ({"match": {"name": "signup"}, "exactly": 3}, "found 2\\n  found: {"),
            ({"match": {"data": {"plan": "x"}}}, "near miss: data.plan is pro, not x"),
            ({"match": {"name": "signup"}, "exactly": 3}, "expected exactly 3 of events"),
            ({"match": {"name": "x"}}, "expected at least 1 of events"),
            ({"match": {"name": "signup"}, "at_most": 1}, "expected at most 1 of events"),
            (
                {"match": {"customer_id": "2", "data.plan": "free", "data.n": 2}},
                "found 0\\n  near miss: data.n is 1, not 2\\n  near miss: customer_id is 1",
            ),
        ]
        for body, text in rows:
            with self.subTest(text=text):
                self.assert_errors(self.expect(**body), 422, text)

    def test_a_failure_tells_what_was_refused_or_dropped(self) -> None:
        event = {"name": "lost"}
        self.call("POST", "/api/v1/customers/9/events", event, authorization="")
        self.call("POST", "/customers/9/events", event)
        self.call("POST", "/api/v1/customers/9/events", {})
        self.ok("POST", "/api/v1/customers/9/suppress")
        self.ok("POST", "/api/v1/customers/9/events", event)
        lines = [
            "refused: POST /api/v1/customers/9/events 401 missing: no Authorization header",
            "refused: POST /customers/9/events 404 ",
            "refused: POST /api/v1/customers/9/events 400 ",
            "dropped: track of 9: suppressed",
        ]
        self.assert_errors(self.expect(match=event), 422, *lines)
        reply = self.expect(match={"name": "signup"}, none=True)
        self.assertNotIn("refused", reply.body.decode())

    def test_a_failure_names_the_three_nearest_and_the_three_newest(self) -> None:
        self.ok("POST", "/api/v1/customers/9/suppress")
        for number in range(5):
            self.ok("POST", "/api/v1/customers/9/events", {"name": "lost"})
            self.call("GET", f"/no/{number}")
            self.ok("POST", f"/api/v1/customers/{number}/events", {"name": "n" * number or "e"})
        text = self.expect(match={"name": "none"}).json["meta"]["error"]
        rows = (
            (r"near miss: name is (\w+)", ["signup", "signup", "e"]),
            (r"refused: GET /no/(\d)", ["2", "3", "4"]),
            ("(dropped): track", ["dropped"] * 3),
        )
        for pattern, found in rows:
            self.assertEqual(re.findall(pattern, text), found)

    def test_without_a_timeout_nobody_waits(self) -> None:
        with mock.patch.object(customerio_fake.News, "wait_until") as wait:
            self.expect(match={"name": "x"})
        self.assertEqual(wait.call_args[0][1], 0)

    def test_mistakes_come_with_an_example(self) -> None:
        rows: list[dict[str, Any]] = [
            {"list": "evnets"},
            {"macth": {}},
            {"match": []},
            {"exactly": "one"},
            {"exactly": 1.5},
            {"exactly": -1},
            {"in_order": [1]},
            {"in_order": []},
            {"timeout": -1},
            {"timeout": 10**400},
            {"exactly": 0, "at_least": 1},
            {"at_least": 3, "at_most": 2},
            {"in_order": [{"name": "signup"}], "none": True},
        ]
        for body in rows:
            with self.subTest(body):
                self.assert_errors(self.expect(**body), 400, "an example", "signup")

    def test_what_can_never_fit_is_refused_so_that_none_does_not_pass(self) -> None:
        rows: list[dict[str, Any]] = [
            {"match": {"nmae": "signup"}},
            {"match": {"name": {"Contains": "sig"}}},
            {"match": {"name": {"contains": "sig", "starts": "s"}}},
            {"list": "objects", "match": {"object_typ_id": "1"}},
            {"list": "segments", "match": {"nam": "x"}},
            {"list": "suppressed", "match": {"customer": "9"}},
            {"match": {"name": {"contans": "sig"}}},
            {"match": {"data": {"plan": {"contains": "x", "y": 1}}}},
            {"match": {"kind": "evnt"}},
            {"list": "deliveries", "match": {"state": "deliverd"}},
            {"list": "deliveries", "match": {"channel": "mail"}},
            {"list": "deliveries", "match": {"rendered": {"subjct": "x"}}},
            {"list": "customers", "match": {"identifiers": {"mail": "x"}}},
            {"list": "webhooks", "match": {"metric": "bouncd"}},
            {"list": "requests", "match": {"method": "put"}},
            {"list": "requests", "match": {"operation": "POST /v1/send/emial"}},
        ]
        for body in rows:
            with self.subTest(body):
                self.assertEqual(self.expect(**body, none=True).status, 400)

    def test_none_sees_through_ids_numbers_and_dots(self) -> None:
        self.ok("POST", "/api/v1/customers/9/suppress")
        self.identify("7", **{"a.b": "dots"})
        data = {"total": 10.0, "flags": [True, {"n": 1}], "a.b": {"c.d": 2}}
        self.ok("POST", "/api/v1/customers/7/events", {"name": "bought", "data": data})
        rows: list[tuple[dict[str, Any], int]] = [
            ({"match": {"customer_id": 7}}, 422),
            ({"match": {"data.total": 10}}, 422),
            ({"match": {"data": {"flags": [True, {"n": 1.0}]}}}, 422),
            ({"match": {"data.a.b.c.d": 2}}, 422),
            ({"list": "customers", "match": {"attributes.a.b": "dots"}}, 422),
            ({"list": "suppressed", "match": {"id": "9"}}, 422),
            ({"match": {"data": {"flags": [1, {"n": 1}]}}}, 200),
            ({"match": {"data.total": True}}, 200),
        ]
        for body, status in rows:
            with self.subTest(body):
                self.assertEqual(self.expect(**body, none=True).status, status)
        self.assertEqual(self.ok("GET", "/__parlel/suppressed?id=9")["suppressed"], ["9"])

    def test_nothing_passes_for_what_it_is_not(self) -> None:
        data = {"paid": "true", "order": 1, "step": 1, "says": 'say "hi"', "items": [{"sku": "a"}]}
        self.ok("POST", "/api/v1/customers/1/events", {"name": "bought", "data": data})
        fits: list[dict[str, Any]] = [
            {"match": {"data.items.0.sku": "a"}},
            {"match": {"data": {"contains": 'say "hi"'}}},
            {"match": {"name": "bought", "customer_id": 1}},
        ]
        misfits: list[dict[str, Any]] = [
            {"match": {"data.paid": True}},
            {"match": {"data": {"paid": True}}},
            {"match": {"data": {"none": None}}},
            {"match": {"name": "bought", "anonymous_id": "null"}},
            {"match": {"data": {"order": 7}}, "in_order": [{"data": {"step": 1}}]},
        ]
        for body in fits:
            self.assertEqual(self.expect(**body, none=True).status, 422, body)
        for body in misfits:
            self.assertEqual(self.expect(**body).status, 422, body)

    def test_python_values_are_what_json_makes_of_them(self) -> None:
        class Name(str, enum.Enum):
            SIGNUP = "signup"

        data = {"n": 1, "tags": ["a"]}
        self.ok("POST", "/api/v1/customers/5/events", {"name": "signup", "data": data})
        cio = CustomerioServer(port=0)
        cio.fake = self.fake
        cio.expect("events", exactly=3, name=Name.SIGNUP)
        cio.assert_event(Name.SIGNUP, data={"tags": ("a",)})
        self.assertEqual(cio.wait_for_event(Name.SIGNUP, customer_id=5)["customer_id"], "5")
        cio.expect("events", at_most=3, name="signup")
        cio.expect("events", in_order=[{"customer_id": "1"}, {"customer_id": "5"}], name="signup")
        cio.expect("pipeline_events", none=True)
        with self.assertRaisesRegex(AssertionError, "expected none of events"):
            cio.expect("events", none=True, name="signup")
        self.identify("7")
        cio.expect("people", id=7)
        self.assertEqual(cast(Any, cio.person(cast(str, 7)))["id"], "7")
        with self.assertRaisesRegex(ValueError, "no fault 99"):
            cio.mend(99)
        for wrong_time in (-5, "1h", True):
            with self.assertRaisesRegex(ApiError, "advance must be"):
                cio.clock.advance(cast(float, wrong_time))
            with self.assertRaisesRegex(ApiError, "now must be"):
                cio.clock.freeze(cast(float, wrong_time))
        self.assertFalse(self.fake.workspace.clock.frozen)
        for wrong in ({"exactly": 1, "at_least": 2}, {"name": {1, 2}}):
            with self.assertRaises(customerio_fake.ApiError):
                cio.expect("events", **wrong)
        for seed in ({"customers": [{"id": "1", "n": float("nan")}]}, {"customers": {1}}):
            with self.assertRaisesRegex(customerio_fake.ApiError, "JSON"):
                cio.seed(seed)

    def test_an_order_is_of_what_matches(self) -> None:
        order = [{"name": "signup"}, {"name": "bought"}]
        self.ok("POST", "/api/v1/customers/2/events", {"name": "bought"})
        for person, status in (("2", 200), ("1", 422), ("somebody else", 422)):
            reply = self.expect(match={"customer_id": person}, in_order=order)
            self.assertEqual(reply.status, status, person)

    def test_none_of_the_requests_is_not_said_of_those_that_are_gone(self) -> None:
        self.fake = Fake(Settings(journal=2))
        self.identify("1")
        body = {"list": "requests", "match": {"method": "PUT"}, "none": True}
        self.assertEqual(self.expect(**body).status, 422)
        for _ in range(2):
            self.call("GET", "/health")
        self.assert_errors(self.expect(**body), 422, "1 older requests are not kept", "--journal")
        self.assertEqual(self.ok("GET", "/__parlel/requests")["dropped"], 1)
        self.ok("POST", "/__parlel/assert", {"list": "requests", "match": {"method": "GET"}})

    def test_waiting_ends_as_soon_as_it_comes_true(self) -> None:
        replies: list[int] = []
        body = {"match": {"name": "late"}, "timeout": 30}
        waiter = threading.Thread(target=lambda: replies.append(self.expect(**body).status))
        waiter.start()
        self.assertTrue(eventually(lambda: self.fake.workspace.news.waiting == 1))
        self.ok("POST", "/api/v1/customers/1/events", {"name": "late"})
        waiter.join(10)
        self.assertEqual(replies, [200])

    def test_an_upper_limit_is_watched(self) -> None:
        began = time.monotonic()
        self.assertEqual(self.expect(match={"name": "x"}, none=True, timeout=0.05).status, 200)
        self.assertGreaterEqual(time.monotonic() - began, 0.05)
        thread, replies = self.waiting(match={"name": "x"}, none=True)
        self.ok("POST", "/api/v1/customers/1/events", {"name": "x"})
        thread.join(10)
        self.assertEqual(replies, [422])

    def waiting(self, **body: Any) -> tuple[threading.Thread, list[int]]:
        """Let somebody wait, in a thread; their answer's status comes into the list."""
        replies: list[int] = []
        thread = threading.Thread(
            target=lambda: replies.append(self.expect(timeout=30, **body).status)
        )
        thread.start()
        self.assertTrue(eventually(lambda: self.fake.workspace.news.waiting == 1))
        return thread, replies

    def test_a_wait_goes_on_after_a_reset(self) -> None:
        for path in ("/__parlel/reset", "/__parlel/reset?only=state", "/__parlel/seed"):
            thread, replies = self.waiting(match={"name": path})
            self.ok("POST", path, {})
            self.assertTrue(eventually(lambda: self.fake.workspace.news.waiting == 1))
            self.ok("POST", "/api/v1/customers/1/events", {"name": path})
            thread.join(10)
            self.assertEqual(replies, [200], path)

    def test_a_wait_ends_with_its_server_also_after_a_reset(self) -> None:
        for more in ({}, {"none": True}):
            thread, replies = self.waiting(match={"name": "never"}, **more)
            self.ok("POST", "/__parlel/reset")
            self.fake.close()
            thread.join(10)
            self.assertEqual(replies, [422])
            self.fake.open()

    def test_control_calls_end_a_wait_too(self) -> None:
        message = {"to": "a@example.com", "from": "b@example.com", "identifiers": {"id": "1"}}
        sent = self.ok("POST", "/v1/send/email", {**message, "subject": "s", "body": "b"})
        path = f"/__parlel/deliveries/{sent['delivery_id']}/bounced"
        thread, replies = self.waiting(list="deliveries", match={"state": "bounced"})
        began = time.monotonic()
        self.ok("POST", path)
        thread.join(10)
        self.assertEqual(replies, [200])
        self.assertLess(time.monotonic() - began, 0.9)  # and not by looking once a second

    def test_python_speaks_it_too(self) -> None:
        cio = CustomerioServer(port=0)
        cio.fake = self.fake
        cio.assert_event("signup", customer_id="1", data={"plan": "pro"})
        self.assertEqual(cio.wait_for_event("signup", customer_id="2")["data"]["plan"], "free")
        cio.assert_no_deliveries()
        with self.assertRaisesRegex(AssertionError, "near miss: data.plan is"):
            cio.assert_event("signup", customer_id="1", data={"plan": "free"})
        with self.assertRaisesRegex(AssertionError, "nothing at all"):
            cio.wait_for_delivery(timeout=0.01)
        message = {"to": "a@example.com", "from": "b@example.com", "identifiers": {"id": "1"}}
        self.ok("POST", "/v1/send/email", {**message, "subject": "Hi", "body": "b"})
        cio.assert_delivery(recipient="a@example.com", rendered={"subject": "Hi"})
        self.assertEqual(cio.wait_for_delivery(customer_id="1")["rendered"]["subject"], "Hi")
        for wrong in (
            cio.assert_no_deliveries,
            functools.partial(cio.assert_delivery, channel="sms"),
        ):
            with self.assertRaisesRegex(AssertionError, "deliveries"):
                wrong()


class Corners(FakeTest):
    """Cases that were wrong once."""

    def entity(self, **item: Any) -> Reply:
        return self.call("POST", "/api/v2/entity", item)

    def test_preferences_of_a_wrong_shape_are_refused(self) -> None:
        name = "cio_subscription_preferences"
        rows: list[dict[str, Any]] = [
            {name: "x"},
            {name: {"topics": [1]}},
            {f"{name}.topics": True},
            {name: "x", f"{name}.topics.t": True},
        ]
        for attributes in rows:
            self.assert_errors(self.call("PUT", "/api/v1/customers/1", attributes), 400, name)
        self.assertEqual(self.records("customers"), [])
        self.identify("1", **{f"{name}.topics.t": True, f"{name}.topics.u": True})
        self.identify("1", **{f"{name}.topics.t": None})
        self.assertEqual(self.person("1")["attributes"][name], {"topics": {"u": True}})

    def test_a_phone_after_an_auto_merge_goes_to_the_survivor(self) -> None:
        self.fake = Fake(Settings(phone=True))
        self.identify("a@example.com")
        self.identify("1")
        self.identify("1", email="a@example.com", phone="+15551234567")
        (person,) = self.records("customers")
        self.assertEqual((person["id"], person["attributes"]["phone"]), ("1", "+15551234567"))
        self.entity(type="person", action="identify", identifiers={"phone": "+15551234567"})
        self.assertEqual(len(self.records("customers")), 1)

    def test_removing_somebody_twice_from_a_segment(self) -> None:
        self.identify("1")
        self.ok("POST", "/api/v1/segments/1/add_customers", {"ids": ["1"]})
        self.ok("POST", "/api/v1/segments/1/remove_customers", {"ids": ["1", "1"]})
        self.assertEqual(self.records("segments")[0]["customer_ids"], [])

    def test_a_wrong_type_in_a_send_leaves_nothing_behind(self) -> None:
        good = {"to": "a@b.cd", "transactional_message_id": 1, "identifiers": {"id": "1"}}
        rows: list[dict[str, Any]] = [
            {"language": ["de"]},
            {"message_data": "x"},
            {"queue_draft": "yes"},
            {"subject": 5},
            {"transactional_message_id": True},
            {"headers": "nonsense"},
            {"headers": '[{"name":"Subject","value":"x"}]'},
            {"headers": [{"name": "X-A", "value": "\u00e4"}]},
            {"attachments": {"a\r\nb.txt": "eA=="}},
            {"body": "x" * 1_000_001},
        ]
        for more in rows:
            reply = self.call("POST", "/v1/send/email", {**good, **more})
            self.assertEqual(reply.status, 400, more)
        self.assertEqual((self.records("deliveries"), self.records("customers")), ([], []))

    GOOD = {"type": "identify", "userId": "2"}

    def test_strict_mode_refuses_what_would_be_dropped(self) -> None:
        rows: list[tuple[str, dict[str, Any]]] = [
            ("track", {"userId": "1", "event": "x" * 101}),
            ("identify", {"userId": "i" * 200}),
            ("identify", {"userId": "1", "traits": {"a": "x" * 1001}}),
            ("track", {"userId": "1", "event": "Device Created or Updated"}),
            ("group", {"userId": "1", "groupId": "x", "traits": {"objectTypeId": "x"}}),
            ("track", {"userId": "1", "event": "x", "properties": {"a": "x" * 40_000}}),
        ]
        for kind, body in rows:
            with self.subTest(kind=kind):
                items = [self.GOOD, {**body, "type": kind}]
                for path, sent in ((kind, body), ("batch", {"batch": items})):
                    reply = self.call("POST", f"/v1/{path}", sent, x_strict_mode="1")
                    self.assertEqual(reply.status, 400, path)
                self.assertEqual(reply.json["errors"][0]["batch_index"], 1)
        for name in ("customers", "events", "pipeline-events", "dropped"):
            self.assertEqual(self.records(name), [], name)
        self.assertTrue(self.call("POST", "/v1/track", rows[-1][1]).reason)
        self.assertEqual(self.records("events"), [])

    def test_in_an_id_only_workspace(self) -> None:
        self.fake = Fake(Settings(identifiers="id"))
        self.identify("1", email="a@example.com")
        cio_id = self.person("1")["cio_id"]
        self.assertEqual(self.identify(f"cio_{cio_id}", id="2").status, 200)
        self.identify("2", email="b@example.com", _timestamp=1000)
        self.assertEqual(self.person("2")["identifiers"]["email"], "a@example.com")
        body = {"traits": {"email": "c@example.com"}}
        self.assertIn(
            "does not know people by email", self.call("POST", "/v1/identify", body).reason
        )
        merge = {"type": "person", "action": "merge", "primary": {"email": "a@example.com"}}
        self.assertEqual(self.entity(**merge, secondary={"id": "2"}).status, 400)
        self.assertEqual(len(self.records("customers")), 1)

    def test_a_merge_keeps_both_sides_topics_and_renames_deliveries(self) -> None:
        name = "cio_subscription_preferences"
        self.identify("1", **{name: {"topics": {"topic_1": True}}})
        self.identify("2", **{name: {"topics": {"topic_1": False, "topic_2": False}}})
        message = {"to": "a@b.cd", "transactional_message_id": 1, "identifiers": {"id": "2"}}
        self.ok("POST", "/v1/send/email", message)
        body = {"primary": {"id": "1"}, "secondary": {"id": "2"}}
        self.ok("POST", "/api/v1/merge_customers", body)
        topics = self.person("1")["attributes"][name]["topics"]
        self.assertEqual(topics, {"topic_1": True, "topic_2": False})
        self.assertEqual(len(self.records("deliveries", "?customer_id=1&state=delivered")), 1)

    def test_300_attributes_are_a_persons_limit_too(self) -> None:
        self.identify("1", **{f"a{i}": i for i in range(200)})
        reply = self.identify("1", a0="new", **{f"b{i}": i for i in range(200)})
        self.assertIn("too many attributes", reply.reason)
        attributes = self.person("1")["attributes"]
        self.assertEqual((len(attributes), attributes["a0"]), (200, "new"))

    def test_an_older_update_is_told(self) -> None:
        self.identify("1", a=1)
        self.assertIn("skipped_update: a", self.identify("1", a=2, _timestamp=1000).reason)

    def test_limits_count_inflated_bytes(self) -> None:
        item = {"type": "person", "action": "event", "name": "x", "identifiers": {"id": "1"}}
        body = gzip.compress(json.dumps({**item, "attributes": {"a": "x" * 60_000}}).encode())
        reply = self.call("POST", "/api/v2/entity", body, content_encoding="gzip")
        self.assert_errors(reply, 400, "32768")

    def test_nothing_is_related_to_nobody(self) -> None:
        value = [{"identifiers": {"object_type_id": "1", "object_id": "o"}}]
        relationships = {"action": "add_relationships", "relationships": value}
        self.identify("1", _update=True, cio_relationships=relationships)
        self.assertEqual(self.records("objects"), [])

    def test_an_empty_list_of_recipients_reaches_nobody(self) -> None:
        everybody = {"attribute": {"field": "cio_id", "operator": "exists"}}
        actions = [{"subject": "s", "body": "b"}]
        seed = {"broadcasts": [{"id": 1, "recipients": everybody, "actions": actions}]}
        self.fake = Fake(Settings(), {**seed, "customers": [{"id": "1"}]})
        self.ok("POST", "/v1/campaigns/1/triggers", {"ids": []})
        self.assertEqual(self.records("deliveries"), [])
        self.ok("POST", "/v1/campaigns/1/triggers", {})
        self.assertEqual(len(self.records("deliveries")), 1)

    def test_segments_that_ask_for_each_other_have_nobody(self) -> None:
        segments = [
            {"id": 1, "name": "a", "conditions": {"segment": {"id": 2}}},
            {"id": 2, "name": "b", "conditions": {"segment": {"id": 1}}},
        ]
        self.fake = Fake(Settings(), {"segments": segments, "customers": [{"id": "1"}]})
        self.assertEqual(self.ok("GET", "/v1/segments/1/customer_count"), {"count": 0})

    def test_records_are_the_tests_own(self) -> None:
        with CustomerioServer(port=0) as cio:
            self.fake = cio.fake
            self.identify("1", plan="pro")
            cio.people[0]["attributes"].clear()
            self.assertEqual(cio.people[0]["attributes"], {"plan": "pro"})


class SmallThings(FakeTest):
    """What programs ask for unasked, and what describes the control endpoints."""

    def test_probes_and_browsers_are_answered_without_a_hint(self) -> None:
        for path in ("/readyz", "/livez"):
            self.assertEqual(self.ok("GET", path), {"status": "ok"})
        reply = self.call("GET", "/favicon.ico")
        self.assertEqual((reply.status, reply.body), (204, b""))

    def test_the_control_endpoints_are_described(self) -> None:
        document = self.ok("GET", "/__parlel/openapi.json")
        assertion = document["paths"]["/__parlel/assert"]["post"]
        schema = assertion["requestBody"]["content"]["application/json"]["schema"]
        self.assertEqual(schema["required"], ["list"])
        self.assertIn("timeout", schema["properties"])
        shown = document["paths"]["/__parlel/deliveries/{delivery_id}"]["get"]
        place = {"in": "path", "required": True, "schema": {"type": "string"}}
        self.assertEqual(shown["parameters"], [{"name": "delivery_id", **place}])
        rows = [row for row in customerio_fake.ROUTES if row.api is customerio_fake.CONTROL]
        self.assertEqual(sum(map(len, document["paths"].values())), len(rows))
        names = [one["operationId"] for path in document["paths"].values() for one in path.values()]
        self.assertEqual(len(names), len(set(names)))

    def test_single_records_are_removed(self) -> None:
        self.identify("1", email="ada@example.com")
        message = {"to": "ada@example.com", "identifiers": {"id": "1"}, "subject": "Hi"}
        body = {**message, "from": "a@example.com", "body": "x"}
        sent = [self.ok("POST", "/v1/send/email", body)["delivery_id"] for _ in range(2)]
        gone = self.ok("DELETE", f"/__parlel/deliveries/{sent[0]}")
        self.assertEqual(gone["delivery_id"], sent[0])
        self.assertEqual([row["delivery_id"] for row in self.records("deliveries")], sent[1:])
        messages = self.ok("GET", "/v1/customers/1/messages")["messages"]
        self.assertEqual([row["id"] for row in messages], sent[1:])
        self.ok("PUT", "/__parlel/state", self.ok("GET", "/__parlel/state"))
        self.assertEqual(self.ok("DELETE", "/__parlel/customers/ada@example.com")["id"], "1")
        self.assertEqual(self.records("customers"), [])
        self.assertEqual(self.call("DELETE", "/__parlel/customers/1").status, 404)


class Examples(SeededTest):
    """A control call whose body is wrong is told what a right one looks like."""

    ROWS: ClassVar[list[tuple[str, str, Any]]] = [
        ("PUT", "clock", {"freeze": True, "advance": 60}),
        ("POST", "assert", {"list": "events", "match": {"name": "signup", "customer_id": "1"},
                            "exactly": 1, "timeout": 5}),
        ("POST", "workspaces", {"name": "worker-1", "seed": {"customers": [{"id": "1"}]}}),
        ("POST", "seed", {"customers": [{"id": "1", "attributes": {"plan": "pro"}}]}),
        ("POST", "reset", {"only": "state"}),
        ("PUT", "campaigns/1", {"state": "stopped", "journeys": "finish"}),
        ("POST", "deliveries/m1/clicked",
         {"href": "https://example.com/", "timestamp": 1_700_000_000}),
    ]  # fmt: skip

    def test_each_call_has_its_own(self) -> None:
        for method, path, example in self.ROWS:
            with self.subTest(path):
                reply = self.call(method, f"/__parlel/{path}", [])
                shown = json.dumps(example, separators=(",", ":"))
                text = f"the body must be a JSON object, not a list; an example: {shown}"
                self.assert_errors(reply, 400, json.dumps(text)[1:-1])

    def test_what_is_no_field_is_refused(self) -> None:
        for method, path, example in self.ROWS:
            reply = self.call(method, f"/__parlel/{path}", {**example, "nmae": 1})
            self.assert_errors(reply, 400, "nmae")
        reply = self.call("PUT", "/__parlel/campaigns/1", {"journeys": "finish"})
        self.assert_errors(reply, 400, "state is required")


class Controls(FakeTest):
    """What the control endpoints do."""

    def test_a_plan_of_faults_has_a_thousand_steps_at_most(self) -> None:
        for count, status in ((1000, 200), (1001, 400)):
            plan = {"responses": [{"status": 503}] * count}
            self.assertEqual(self.call("POST", "/__parlel/faults", plan).status, status)

    def test_the_clock_goes_up_to_its_last_moment(self) -> None:
        self.fake.workspace.clock.move_to(customerio_fake.LAST_MOMENT - 9, True)
        for seconds, status in ((10, 400), (9, 200)):
            reply = self.call("PUT", "/__parlel/clock", {"advance": seconds})
            self.assertEqual(reply.status, status)

    def test_three_operations_at_most_are_offered_for_a_misspelt_one(self) -> None:
        rule = {"match": {"operation": "POST /v1/sends/"}, "status": 503}
        reply = self.call("POST", "/__parlel/faults", rule)
        self.assertEqual(reply.body.count(b" or POST"), 2, reply.body)

    def test_curl_sends_the_type_that_was_sent_and_no_other(self) -> None:
        most = b"x" * customerio_fake.MAX_KEPT_BODY
        rows = [(b"x", "", [""]), (most, "text/x", [" text/x"]), (b"", "", [])]
        for number, (body, type, shown) in enumerate(rows, 1):
            self.call("POST", "/nowhere", body, content_type=type)
            text = self.call("GET", f"/__parlel/requests/{number}/curl").body.decode()
            words = [word.partition("content-type:") for word in shlex.split(text)]
            self.assertEqual([rest for _, found, rest in words if found], shown)

    def test_reports_under_way_arrive_before_the_clock_turns(self) -> None:
        clock, seen = self.fake.workspace.clock, cast(List[float], [])
        flush = mock.patch.object(self.fake.outbox, "flush", return_value=0)
        with flush as look:
            look.side_effect = lambda _: seen.append(clock.now())
            self.ok("PUT", "/__parlel/clock", {"freeze": True, "now": 1000})
            seen.clear()
            self.ok("PUT", "/__parlel/clock", {"advance": 60})
        self.assertEqual(seen, [1000, 1060])


class ForMail(SeededTest):
    """What a message looks like to a mail program, and the links that are in none."""

    def test_what_can_be_looked_at(self) -> None:
        message = {"to": "a@b.cd", "from": "a@b.cd", "subject": "s", "body": "<p>b</p>"}
        sent = self.ok("POST", "/v1/send/email", {**message, "identifiers": {"id": "ada"}})
        one, html = sent["delivery_id"], "text/html; charset=utf-8"
        script, text = "text/javascript; charset=utf-8", "text/plain; charset=utf-8"
        rows = [
            ("/auth", html), ("/index.html", html), ("/__parlel/ca.pem", "application/x-pem-file"),
            (f"/__parlel/deliveries/{one}/html", html), (f"/__parlel/deliveries/{one}/text", text),
            (f"/__parlel/deliveries/{one}/eml", "message/rfc822"), (f"/e/o/{one}", "image/gif"),
            (f"/e/v/{one}", html), (f"/unsubscribe/{one}", html),
            ("/__parlel/requests/1/curl", text),
            ("/__parlel/client.mjs", script), ("/__parlel/client.d.ts", script),
        ]  # fmt: skip
        for path, type in rows:
            reply = self.call("GET", path)
            self.assertEqual((reply.status, reply.headers["content-type"]), (200, type), path)
        self.assertEqual(self.call("GET", "/favicon.ico").status, 204)

    def test_headers_of_its_own_are_in_the_mail(self) -> None:
        message = {"to": "a@b.cd", "from": "a@b.cd", "subject": "s", "body": "b"}
        more = {"identifiers": {"id": "ada"}, "headers": {"X-A": "1", "X-B": "2"}}
        sent = self.ok("POST", "/v1/send/email", {**message, **more})["delivery_id"]
        mail = email.message_from_bytes(self.call("GET", f"/__parlel/deliveries/{sent}/eml").body)
        self.assertEqual((mail["X-A"], mail["X-B"], mail["Subject"]), ("1", "2", "s"))
        created = self.records("deliveries")[-1]["metrics"]["created"]
        sent_at = email.utils.parsedate_to_datetime(mail["Date"])
        self.assertEqual((int(sent_at.timestamp()), mail["CIO-Delivery-ID"]), (created, sent))
        parts = [(part.get_content_type(), part.get_payload(decode=True)) for part in mail.walk()]
        html = self.call("GET", f"/__parlel/deliveries/{sent}/html").body
        self.assertEqual(parts[2:], [("text/plain", b"b"), ("text/html", html)])
        pixel = self.call("GET", f"/e/o/{sent}")
        self.assertEqual((pixel.status, pixel.headers["content-type"]), (200, "image/gif"))
        self.assertIn("opened", self.records("deliveries")[-1]["metrics"])
        self.assertEqual(self.call("GET", "/e/o/nope").body, pixel.body)
        rows = [
            (f"/e/c/{sent}/99", "this link is in no message"),
            ("/e/c/nope/1", "this link is in no message"),
            ("/unsubscribe/nope", "this link is in no message"),
            ("/__parlel/deliveries/m1/html", "there is no rendered delivery 'm1'"),
            ("/__parlel/deliveries/nope/html", "there is no delivery 'nope'"),
        ]
        for path, text in rows:
            self.assert_errors(self.call("GET", path), 404, text)


# ======================================================================================
# ==== §25 In-app messages
# ======================================================================================


class InApp(FakeTest):
    """The queue and the inbox that the web and mobile SDKs ask for."""

    LOOK: ClassVar[Any] = {
        "priority": 2, "position": "top", "element_id": "slot", "route_rule_web": "^/shop",
        "persistent": True, "expires_in": 600, "topics": ["news"], "type": "cta",
        "properties": {"title": "Hi {{customer.name}}", "n": 1},
    }  # fmt: skip

    def setUp(self) -> None:
        super().setUp()
        contents = [{"id": 5, "type": "in_app", "body": "<p>Hi</p>", "in_app": self.LOOK}]
        row = {"id": 1, "name": "Hi", "contents": contents}
        everybody = {"id": 9, "body": "<p>Sale</p>", "frequency": {"count": 3}}
        self.ok("POST", "/__parlel/seed", {"transactional": [row], "in_app_messages": [everybody]})
        self.ok("PUT", "/__parlel/clock", {"freeze": True, "now": 1_790_000_000})
        self.identify("ada", name="Ada", email="ada@example.com")

    def ask(
        self, token: str = "ada", path: str = "/api/v4/users?sessionId=1", **more: Any
    ) -> Reply:
        headers = {"x-cio-site-id": "site"}
        if token:
            headers["x-gist-encoded-user-token"] = base64.b64encode(token.encode()).decode()
        headers.update({name.replace("_", "-"): value for name, value in more.items()})
        return Reply(self.fake.handle(Request("POST", path, headers, b"{}")))

    def tell(self, method: str, path: str, body: Any = None) -> Reply:
        data = b"{}" if body is None else json.dumps(body).encode()
        return Reply(self.fake.handle(Request(method, path, {"x-cio-site-id": "site"}, data)))

    def send(self, channel: str = "in_app", person: str = "ada") -> str:
        body = {"transactional_message_id": 1, "identifiers": {"id": person}}
        return cast(str, self.ok("POST", f"/v1/send/{channel}", body)["delivery_id"])

    def test_a_send_waits_in_the_queue_until_it_was_shown(self) -> None:
        delivery_id = self.send()
        reply = self.ask()
        message, everybody = reply.json["inAppMessages"][::-1]
        gist = {
            "campaignId": delivery_id, "elementId": "slot", "position": "top",
            "routeRuleWeb": "^/shop", "persistent": True,
        }  # fmt: skip
        self.assertEqual(message["properties"], {"title": "Hi Ada", "n": 1, "gist": gist})
        self.assertEqual((message["queueId"], message["priority"]), (delivery_id, 2))
        self.assertEqual(everybody["properties"]["gist"]["broadcast"]["frequency"]["count"], 3)
        self.assertEqual(reply.headers["x-gist-queue-polling-interval"], "10")
        self.assertEqual(reply.headers["access-control-allow-origin"], "*")
        self.assertEqual(self.tell("POST", f"/api/v1/logs/queue/{delivery_id}").status, 200)
        self.assertEqual(len(self.ask().json["inAppMessages"]), 1)

    def test_a_message_for_everybody_lasts_from_when_it_was_seeded(self) -> None:
        row = {"id": 9, "body": "x", "in_app": {"expires_in": 60, "position": "top"}}
        clock = {"now": 1_900_000_000, "freeze": True}
        self.ok("POST", "/__parlel/seed", {"in_app_messages": [row], "clock": clock})
        self.ok("PUT", "/__parlel/state", self.ok("GET", "/__parlel/state"))
        self.ok("PUT", "/__parlel/clock", {"advance": 59})
        (message,) = self.ask().json["inAppMessages"]
        self.assertEqual(message["properties"]["gist"]["position"], "top")
        self.ok("PUT", "/__parlel/clock", {"advance": 1})
        self.assertEqual(self.ask().status, 204)

    def test_older_sdks_get_a_bare_list_of_in_app_messages(self) -> None:
        self.send()
        self.send("inbox_message")
        whole = self.ask().json
        for path in ("/api/v3/users?sessionId=1", "/api/v2/users?timestamp=1", "/api/v1/users"):
            reply = self.ask(path=path)
            self.assertEqual(reply.json, whole["inAppMessages"], path)
            again = self.ask(path=path, if_none_match=reply.headers["etag"])
            self.assertEqual(again.status, 304)
        self.ok("POST", "/__parlel/seed", {"customers": [{"id": "ada"}]})
        sent = {"identifiers": {"id": "ada"}, "transactional_message_id": 1}
        self.ok("POST", "/v1/send/inbox_message", sent)
        self.assertEqual([self.ask().status, self.ask(path="/api/v3/users").status], [200, 204])

    def test_people_are_named_by_id_email_or_cio_id(self) -> None:
        self.send()
        cio_id = self.records("customers")[0]["cio_id"]
        for token in ("ada", "ada@example.com", f"cio_{cio_id}"):
            self.assertEqual(len(self.ask(token).json["inAppMessages"]), 2, token)
        for token, more in (("eve", {}), ("ada", {"x_gist_user_anonymous": "true"})):
            self.assertEqual(len(self.ask(token, **more).json["inAppMessages"]), 1, token)

    def test_the_inbox(self) -> None:
        delivery_id = self.send("inbox_message")
        (entry,) = self.ask().json["inboxMessages"]
        self.assertEqual(entry["topics"], ["news"])
        self.assertEqual((entry["type"], entry["opened"]), ("cta", False))
        self.assertEqual(entry["sentAt"], "2026-09-21T14:13:20.000Z")
        self.assertEqual(entry["expiry"], "2026-09-21T14:23:20.000Z")
        self.assertEqual(entry["properties"], {"title": "Hi Ada", "n": 1, "body": "<p>Hi</p>"})
        path = f"/api/v1/messages/{delivery_id}"
        self.assertEqual(self.tell("PATCH", path, {"opened": True}).status, 200)
        self.ok("PUT", "/__parlel/state", self.ok("GET", "/__parlel/state"))
        self.assertTrue(self.ask().json["inboxMessages"][0]["opened"])
        self.assertEqual(
            self.ok("GET", "/__parlel/in-app?person=ada"), self.ask("ada@example.com").json
        )
        self.ok("PUT", "/__parlel/clock", {"advance": 601})
        self.assertEqual(self.ask().json["inboxMessages"], [])

    def test_merged_deleted_and_suppressed_people(self) -> None:
        self.identify("old", name="Old")
        self.send(person="old")
        merge = {"primary": {"id": "ada"}, "secondary": {"id": "old"}}
        self.ok("POST", "/api/v1/merge_customers", merge)
        self.assertEqual(len(self.ask().json["inAppMessages"]), 2)
        self.ok("POST", "/api/v1/customers/ada/suppress")
        self.assertEqual(len(self.ask().json["inAppMessages"]), 1)

    def test_a_campaign_that_ends_for_all_recalls_what_nobody_has_seen(self) -> None:
        tile = {"id": 1, "type": "in_app", "body": "<p>Hi</p>"}
        row = {"id": 3, "name": "c", "type": "event", "event_name": "e", "actions": [tile]}
        for journeys, left in (("finish", 1), ("exit", 0)):
            self.ok("POST", "/__parlel/seed", {"customers": [{"id": "ada"}], "campaigns": [row]})
            self.call("POST", "/api/v1/customers/ada/events", {"name": "e"})
            change = {"state": "stopped", "journeys": journeys}
            self.ok("PUT", "/__parlel/campaigns/3", change)
            queue = self.ok("GET", "/__parlel/in-app?person=ada")["inAppMessages"]
            self.assertEqual(len(queue), left, journeys)

    def test_a_send_says_itself_how_it_looks(self) -> None:
        body = {
            "transactional_message_id": 1, "identifiers": {"id": "ada"},
            "in_app": {"priority": 1, "position": "bottom", "properties": {"a": "{{trigger.b}}"}},
            "message_data": {"b": "c"},
        }  # fmt: skip
        self.ok("POST", "/v1/send/in_app", body)
        message = self.ask().json["inAppMessages"][1]
        self.assertEqual((message["priority"], message["properties"]["a"]), (1, "c"))
        self.assertEqual(message["properties"]["gist"]["position"], "bottom")
        reply = self.call("POST", "/v1/send/in_app", {**body, "in_app": {"position": "left"}})
        self.assert_errors(reply, 400, "in_app.position", "must be one of: top, center, bottom")

    def test_a_look_that_cannot_be_is_refused_where_it_is_seeded(self) -> None:
        rows: List[Tuple[Any, str]] = [
            (5, "in_app must be an object, not a number"),
            ({"priority": "high"}, "in_app.priority must be a whole number, not a string"),
            ({"position": "left"}, "in_app.position must be one of: top, center, bottom"),
            ({"expires_in": "1 h"}, "in_app.expires_in must be a number from 0 to"),
            ({"topics": ["a", 5]}, "in_app.topics[1] must be a string, not a number"),
            ({"routeRuleWeb": "x"}, "in_app.routeRuleWeb is no field here"),
        ]
        for look, text in rows:
            content = {"id": 5, "type": "in_app", "body": "x", "in_app": look}
            seed = {"transactional": [{"id": 1, "name": "Hi", "contents": [content]}]}
            self.assert_errors(
                self.call("POST", "/__parlel/seed", seed), 400, "contents[0]." + text
            )
        everybody = {"id": 9, "body": "x", "frequency": {"count": -1}}
        reply = self.call("POST", "/__parlel/seed", {"in_app_messages": [everybody]})
        self.assert_errors(reply, 400, "in_app_messages[0].frequency.count must be a whole number")

    def test_tokens_as_a_browser_makes_them(self) -> None:
        self.identify("z%C3%BC%3E", name="Zoe")
        for token in (base64.b64encode("zü>".encode("latin-1")), base64.b64encode("zü>".encode())):
            query = "/api/v3/sse?userToken=" + token.decode()  # with a + as it is
            call = customerio_fake.Call(
                self.fake, self.fake.workspace, Request("GET", query, {}), mock.Mock()
            )
            person = customerio_fake.visitor_of(call)
            self.assertEqual(person and person.name, "zü>")

    def test_it_can_be_asserted(self) -> None:
        delivery_id, inbox = self.send(), self.send("inbox_message")
        shown, everybody = self.ok("GET", "/__parlel/queue?channel=in_app")["queue"]
        self.assertEqual((shown["queueId"], shown["customer_id"]), (delivery_id, "ada"))
        self.assertEqual((everybody["queueId"], everybody["customer_id"]), ("9", None))
        match = {"customer_id": "ada", "channel": "inbox_message", "opened": False}
        body = {"list": "queue", "match": {**match, "properties": {"title": "Hi Ada"}}}
        self.ok("POST", "/__parlel/assert", {**body, "exactly": 1})
        number = self.ok("GET", "/__parlel/changes")["number"]
        self.tell("PATCH", f"/api/v1/messages/{inbox}", {"opened": True})
        self.assertIn("queue", self.ok("GET", f"/__parlel/changes?since={number}")["changed"])
        reply = self.call("POST", "/__parlel/assert", body)
        self.assert_errors(reply, 422, "opened", "near miss")
        wrong = {"list": "queue", "match": {"channel": "email"}}
        self.assert_errors(self.call("POST", "/__parlel/assert", wrong), 400, "no channel is")

    def test_it_can_be_looked_at(self) -> None:
        self.send()
        cio = CustomerioServer(port=0)
        cio.fake = self.fake
        self.assertEqual(len(cio.expect("queue", channel="in_app", exactly=2)), 2)
        self.assertEqual(cio.queue, self.records("queue"))
        shown = self.ok("GET", "/__parlel/in-app?person=ada")
        self.assertEqual(shown, self.ask().json)
        self.assertEqual(cio.in_app("ada"), shown)
        self.assertEqual(len(self.ok("GET", "/__parlel/in-app")["inAppMessages"]), 1)
        self.assertEqual(self.call("GET", "/__parlel/in-app?person=eve").status, 404)
        self.assert_errors(
            self.call("GET", "/__parlel/in-app?persn=ada"), 400, "did you mean person"
        )

    def test_nothing_is_204(self) -> None:
        self.ok("POST", "/__parlel/seed", {})
        reply = self.ask()
        self.assertEqual((reply.status, reply.body), (204, b""))
        self.assertNotIn("content-type", reply.headers)  # the web SDK would read it as JSON

    def test_what_was_shown_to_everybody_is_counted(self) -> None:
        self.assertEqual(self.tell("POST", "/api/v1/logs/message/9").status, 200)
        self.assertEqual(self.fake.workspace.shelves["in_app_messages"].rows[9]["views"], 1)
        page = self.call("GET", "/e/m/9")
        self.assertEqual((page.status, page.body), (200, b"<p>Sale</p>"))
        self.assert_errors(self.call("GET", "/e/m/8"), 404, "there is no message '8'")

    def test_what_is_wrong_is_refused_and_changes_nothing(self) -> None:
        delivery_id, modal = self.send("inbox_message"), self.send("in_app")
        rows: List[Tuple[Reply, int, str]] = [
            (self.ask(""), 400, "X-Gist-Encoded-User-Token"),
            (self.ask(x_gist_encoded_user_token="%%%"), 400, "must be the base64"),
            (self.tell("POST", "/api/v1/logs/queue/nope"), 404, "no queue entry 'nope'"),
            (self.tell("POST", "/api/v1/logs/message/8"), 404, "no message '8'"),
            (self.tell("PATCH", f"/api/v1/messages/{delivery_id}", {}), 400, "opened is required"),
            (self.tell("PATCH", f"/api/v1/messages/{delivery_id}", {"opened": 1}), 400, "opened"),
            (self.tell("PATCH", f"/api/v1/messages/{modal}", {"opened": True}), 404, modal),
            (self.call("POST", "/api/v4/users", {}, x_cio_site_id=""), 401, ""),
            (self.ask(x_cio_site_id=""), 401, ""),
        ]
        for reply, status, text in rows:
            self.assertEqual(reply.status, status, reply.body)
            self.assertIn(text, reply.body.decode())
        (entry,) = self.ask().json["inboxMessages"]
        self.assertFalse(entry["opened"])

    def test_a_workspace_is_known_by_its_site_id(self) -> None:
        world = self.ok("POST", "/__parlel/workspaces", {"name": "w"})
        reply = self.ask(x_cio_site_id=world["site_id"])
        self.assertEqual(reply.status, 204)
        fake = Fake(Settings(site_id="mine", api_key="k", write_key="w"))
        keys = ({"x-cio-site-id": "other"}, {"authorization": "Bearer other"})
        for headers in keys:
            wrong = fake.handle(Request("POST", "/api/v4/users", headers, b"{}"))
            self.assertEqual(wrong.status, 401)
        key = {"x_cio_site_id": "", "authorization": "Bearer " + world["write_key"]}
        self.assertEqual(self.ask(**key).status, 204)

    def test_the_preflight_of_a_page_elsewhere(self) -> None:
        reply = self.call("OPTIONS", "/api/v1/messages/1")
        self.assertIn("PATCH", reply.headers["access-control-allow-methods"])
        for name in ("X-CIO-Site-Id", "X-Gist-Encoded-User-Token", "Content-Language"):
            self.assertIn(name, reply.headers["access-control-allow-headers"])

    def test_each_port_says_what_it_is_for(self) -> None:
        self.fake = Fake(Settings(in_app=True))
        for port, path in (("3010", "/api/v4/users"), ("3009", "/sse"), ("9998", "/index.html")):
            for accept in ("text/html", "*/*"):
                reply = self.call("GET", "/", host=f"localhost:{port}", accept=accept)
                self.assertEqual(reply.headers["content-type"], "text/plain; charset=utf-8")
                self.assertIn(path, reply.body.decode())
        self.assertEqual(self.call("GET", "/").json["name"], "customerio_fake")

    def test_the_renderer_runs_its_own_script_alone(self) -> None:
        reply = self.call("GET", "/index.html")
        policy, page = reply.headers["content-security-policy"], reply.body.decode()
        source = page.partition("<script>")[2].partition("</script>")[0].encode()
        sign = base64.b64encode(hashlib.sha256(source).digest()).decode()
        self.assertIn(f"script-src 'sha256-{sign}';", policy)
        self.assertLessEqual(len(page), 6 * 1024)


class InAppMobile(WireTestCase):
    """What the in-app modules of the mobile SDKs, and the scripts that test them, send.

    Written down from their public source, as facts: customerio-ios (GistCommonHeaders, BaseNetwork,
    QueueManager, LogManager, SseService), customerio-android (Queue, NetworkUtilities, SseService)
    and mobile-e2e (send_inbox_message, assert_inbox_queue_state, assert_message_delivered).
    """

    #: What every request to the queue has, by who sends it; TOKEN is the base64 of who asks. Set up
    #: with a public key, an SDK need not send a site id.
    CALLERS: ClassVar[Dict[str, Dict[str, str]]] = {
        "ios": {
            "X-CIO-Site-Id": "site", "X-CIO-Datacenter": "US", "X-CIO-Client-Platform": "ios-apple",
            "X-CIO-Client-Version": "4.7.3", "X-CIO-Client-App-Identifier": "com.example.shop",
            "X-Gist-Encoded-User-Token": "TOKEN", "X-Gist-User-Anonymous": "false",
            "Content-Type": "application/json",
        },
        "android": {
            "X-CIO-Site-Id": "site", "X-CIO-Datacenter": "us",
            "X-CIO-Client-Platform": "android-android", "X-CIO-Client-Version": "4.18.0",
            "X-CIO-Client-App-Identifier": "com.example.shop", "X-Gist-User-Anonymous": "false",
            "X-Gist-Encoded-User-Token": "TOKEN", "Cache-Control": "no-cache",
            "Content-Type": "application/json; charset=UTF-8", "Accept-Encoding": "gzip",
        },
        "with a public key": {
            "Authorization": "Bearer wk_us_abc", "X-CIO-Datacenter": "US",
            "X-CIO-Client-Platform": "flutter-apple", "X-Gist-User-Anonymous": "false",
            "X-Gist-Encoded-User-Token": "TOKEN", "Content-Type": "application/json",
        },
        "older": {
            "X-Gist-Site-ID": "site", "X-Gist-Data-Center": "us", "X-Gist-User-Token": "TOKEN",
            "X-Gist-Client-Platform": "swift-apple", "X-Gist-Is-Anonymous": "false",
        },
        "mobile-e2e": {
            "Content-Type": "application/json", "X-CIO-Site-Id": "site", "X-CIO-Datacenter": "US",
            "X-CIO-Client-Platform": "customerio-maestro", "X-CIO-Client-Version": "1",
            "X-Gist-Encoded-User-Token": "TOKEN", "X-Gist-User-Anonymous": "false",
        },
    }  # fmt: skip
    #: The query that goes with every call; Android's PATCH has none.
    SESSION = "?sessionId=3f6f3f5e-7c0b-4b7e-9a53-1f5e0a2f6a11"
    SEED: ClassVar[Any] = {
        "customers": [{"id": "ada", "attributes": {"email": "ada@example.com"}}],
        "transactional": [
            {"id": 1, "name": "Hi", "contents": [
                {"id": 1, "type": "in_app", "body": "<p>Hi</p>", "in_app": {"priority": 2}}]},
            {"id": 21, "name": "Inbox", "contents": [
                {"id": 21, "type": "inbox", "body": "", "in_app": {
                    "topics": ["cio_inbox"], "type": "cta", "expires_in": 600,
                    "properties": {"title": "{{trigger.title}}", "body": "{{trigger.body}}"}}}]},
        ],
        "campaigns": [
            {"id": 141, "name": "Maestro E2E", "type": "event", "event_name": "maestro_test",
             "actions": [{"id": 1, "type": "in_app", "body": "<p>Hi</p>"}]},
        ],
        "in_app_messages": [
            {"id": 9, "body": "<p>Sale</p>", "frequency": {"count": 2, "delay": 60}}
        ],
    }  # fmt: skip

    def setUp(self) -> None:
        super().setUp()
        self.server.seed({name: rows for name, rows in self.SEED.items() if name[:6] != "in_app"})

    def send(
        self, method: str, path: str, body: Any = None, headers: Optional[Dict[str, str]] = None
    ) -> WireReply:
        """One request over the wire; its answer, unzipped."""
        headers = headers or {"Authorization": credentials(path)}
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return self.ask("\r\n".join([*lines, "", ""]).encode() + data)

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        reply = self.send(method, path, body, **more)
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json

    def of(self, caller: str, person: str = "ada") -> Dict[str, str]:
        """The headers of a caller for somebody."""
        token = base64.b64encode(person.encode()).decode()
        return {n: v.replace("TOKEN", token) for n, v in self.CALLERS[caller].items()}

    def poll(self, caller: str, person: str = "ada") -> WireReply:
        # iOS has no body, the others have an empty object.
        body: Any = None if caller == "ios" else {}
        return self.send("POST", "/api/v4/users" + self.SESSION, body, self.of(caller, person))

    def message(self, channel: str, number: int, **data: str) -> str:
        body = {
            "transactional_message_id": number, "identifiers": {"email": "ada@example.com"},
            "message_data": data,
        }  # fmt: skip
        return cast(str, self.ok("POST", f"/v1/send/{channel}", body)["delivery_id"])

    def report(self, delivery_id: str, metric: str, **more: str) -> None:
        """A metric, as the mobile SDKs track it."""
        item = {
            "type": "track", "event": "Report Delivery Event", "userId": "ada",
            "messageId": "1", "timestamp": "2026-11-01T10:00:00.000Z", "integrations": {},
            "properties": {**more, "metric": metric, "deliveryId": delivery_id},
        }  # fmt: skip
        batch = {"batch": [item], "sentAt": "2026-11-01T10:00:00.000Z", "writeKey": "wk_us_abc"}
        self.ok("POST", "/v1/b", batch, headers={"Content-Type": "text/plain"})

    def metrics(self, delivery_id: str) -> Any:
        return self.ok("GET", f"/v1/messages/{delivery_id}")["message"]["metrics"]

    def test_an_in_app_message_is_fetched_shown_and_tapped(self) -> None:
        for caller in self.CALLERS:
            with self.subTest(caller):
                nothing = self.poll(caller)
                self.assertEqual((nothing.status, nothing.body), (204, b""))
                delivery_id = self.message("in_app", 1)
                reply = self.poll(caller)
                (entry,) = reply.json["inAppMessages"]
                # Without these, and of these types, iOS drops it.
                kinds = [type(entry[name]) for name in ("queueId", "messageId", "priority")]
                self.assertEqual(kinds, [str, str, int])
                gist = entry["properties"]["gist"]
                self.assertEqual(gist["campaignId"], delivery_id)
                self.assertGreater(int(reply.headers["x-gist-queue-polling-interval"]), 0)
                self.assertEqual(reply.headers["x-cio-use-sse"], "true")
                path = f"/api/v1/logs/queue/{entry['queueId']}{self.SESSION}"
                self.assertEqual(self.send("POST", path, None, self.of(caller)).status, 200)
                self.report(delivery_id, "opened")
                self.report(delivery_id, "clicked", actionName="Tea", actionValue="shop://tea")
                self.assertEqual(self.poll(caller).status, 204)
                metrics = self.metrics(delivery_id)
                self.assertLessEqual({"sent", "opened", "clicked"}, metrics.keys())

    def test_what_was_shown_is_opened_once_whoever_comes_first(self) -> None:
        for order in ("show report", "report show", "show show report"):
            delivery_id = self.message("in_app", 1)
            for step in order.split():
                if step == "show":
                    path = f"/api/v1/logs/queue/{delivery_id}"
                    self.ok("POST", path, headers=self.of("ios"))
                else:
                    self.report(delivery_id, "opened")
            path = "/v1/customers/ada/activities?type=opened_in_app"
            opened = [row["delivery_id"] for row in self.ok("GET", path)["activities"]]
            self.assertEqual(opened.count(delivery_id), 1, order)

    def test_metrics_as_the_track_sdks_send_them(self) -> None:
        delivery_id = self.message("in_app", 1)
        for event, metadata in (("opened", {}), ("clicked", {"action_name": "Tea"})):
            payload = {
                "delivery_id": delivery_id, "event": event, "timestamp": 1_790_000_000,
                "metadata": metadata,
            }  # fmt: skip
            body = {"type": "in_app", "payload": payload}
            self.ok("POST", "/api/v1/cio_deliveries/events", body)
        self.assertLessEqual({"opened", "clicked"}, self.metrics(delivery_id).keys())

    def test_an_inbox_message_is_opened_unopened_clicked_and_deleted(self) -> None:
        for caller in self.CALLERS:
            with self.subTest(caller):
                delivery_id = self.message("inbox_message", 21, title="Paid", body="Thanks")
                (entry,) = self.poll(caller).json["inboxMessages"]
                for when in (entry["sentAt"], entry["expiry"]):
                    # iOS reads no other form.
                    self.assertRegex(when, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
                path = f"/api/v1/messages/{entry['queueId']}"
                for opened in (True, False, True):
                    query = "" if caller == "android" else self.SESSION
                    reply = self.send("PATCH", path + query, {"opened": opened}, self.of(caller))
                    self.assertEqual(reply.status // 100, 2)
                    (entry,) = self.poll(caller).json["inboxMessages"]
                    self.assertIs(entry["opened"], opened)
                self.report(delivery_id, "opened")
                self.report(delivery_id, "clicked", actionName="pay")
                path = f"/api/v1/logs/queue/{entry['queueId']}{self.SESSION}"
                self.assertEqual(self.send("POST", path, None, self.of(caller)).status, 200)
                self.assertEqual(self.poll(caller).status, 204)
                self.assertLessEqual({"opened", "clicked"}, self.metrics(delivery_id).keys())

    def test_what_expires_leaves_the_inbox(self) -> None:
        self.message("inbox_message", 21, title="Paid", body="Thanks")
        self.assertEqual(self.poll("android").status, 200)
        self.ok("PUT", "/__parlel/clock", {"advance": 601})
        self.assertEqual(self.poll("android").status, 204)

    def test_somebody_anonymous_gets_what_is_for_everybody(self) -> None:
        self.server.seed(self.SEED)
        self.message("in_app", 1)
        headers = {**self.of("android", "a9b1-anonymous"), "X-Gist-User-Anonymous": "true"}
        reply = self.send("POST", "/api/v4/users" + self.SESSION, {}, headers)
        (entry,) = reply.json["inAppMessages"]
        self.assertEqual(reply.headers["x-cio-use-sse"], "false")
        # The mobile SDKs drop what has no queueId, and count by it.
        self.assertIsInstance(entry["queueId"], str)
        often = {"count": 2, "delay": 60, "ignoreDismiss": False}
        self.assertEqual(entry["properties"]["gist"]["broadcast"]["frequency"], often)
        self.assertNotIn("campaignId", entry["properties"]["gist"])
        for kind, id in (("queue", entry["queueId"]), ("message", entry["messageId"])):
            path = f"/api/v1/logs/{kind}/{id}{self.SESSION}"
            self.assertEqual(self.send("POST", path, None, headers).status, 200)
        # It stays: the SDKs themselves show it as often as they should.
        reply = self.send("POST", "/api/v4/users" + self.SESSION, {}, headers)
        self.assertEqual(reply.json["inAppMessages"], [entry])
        shelf = self.server.fake.workspace.shelves["in_app_messages"]
        self.assertEqual(shelf.rows[9]["views"], 2)

    def test_a_queue_that_is_as_before(self) -> None:
        self.message("in_app", 1)
        headers = {**self.of("ios"), "If-None-Match": self.poll("ios").headers["etag"]}
        same = self.send("POST", "/api/v4/users" + self.SESSION, None, headers)
        self.assertEqual((same.status, same.body), (304, b""))
        self.assertEqual(same.headers["x-cio-use-sse"], "true")
        self.message("in_app", 1)
        other = self.send("POST", "/api/v4/users" + self.SESSION, None, headers)
        self.assertEqual(len(other.json["inAppMessages"]), 2)

    def test_the_streams_of_both(self) -> None:
        token = base64.b64encode(b"ada").decode()
        rows = {
            "ios": ("&siteId=site&key=wk_us_abc", {"Authorization": "Bearer wk_us_abc"}),
            "ios without a key": ("&siteId=site", {"X-CIO-Site-Id": "site"}),
            "android": ("&siteId=site", {"Accept": "text/event-stream"}),
            "android without a site": ("&key=wk_us_abc", {"Cache-Control": "no-cache"}),
        }
        self.message("in_app", 1)
        for caller, (query, headers) in rows.items():
            with self.subTest(caller), self.dial() as wire:
                path = f"/api/v3/sse{self.SESSION}{query}&userToken={quote(token)}"
                lines = [f"GET {path} HTTP/1.1", "Host: localhost"]
                lines += [
                    f"{n}: {v}" for n, v in {**headers, "X-Gist-User-Anonymous": "false"}.items()
                ]
                wire.send("\r\n".join([*lines, "", ""]).encode())
                reply = wire.reply()
                self.assertEqual(
                    (reply.status, reply.headers["content-type"]), (200, "text/event-stream")
                )
                names = [wire.file.readline(), wire.file.readline(), wire.file.readline()]
                self.assertEqual(names, [b"event: connected\n", b'data: {"heartbeat":30}\n', b"\n"])
                self.assertEqual(wire.file.readline(), b"event: messages\n")
                data = wire.file.readline().partition(b": ")[2]
                self.assertEqual(len(json.loads(data)), 1)

    # ---- mobile-e2e: it sends, polls messages and queue, and has the app act in between

    def cio_id(self) -> str:
        path = f"/v1/customers?email={quote('ada@example.com')}"
        return cast(str, self.ok("GET", path)["results"][0]["cio_id"])

    def message_of(self, type: str, metric: str, delivery_id: str = "", campaign: str = "") -> Any:
        """What assert_message_delivered looks for, once."""
        path = f"/v1/customers/{self.cio_id()}/messages?limit=50"
        for row in self.ok("GET", path)["messages"]:
            mine = delivery_id in ("", row["id"]) and campaign in ("", str(row["campaign_id"]))
            if row["type"] == type and row["metrics"].get(metric) and mine:
                return row
        return None

    def inbox(self, attempt: int = 1) -> List[Any]:
        """What assert_inbox_queue_state sees: by email, with a session of its own each time."""
        path = f"/api/v4/users?sessionId=maestro-inbox-x-{attempt}"
        reply = self.send("POST", path, {}, self.of("mobile-e2e", "ada@example.com"))
        self.assertIn(reply.status, (200, 204))
        return cast(List[Any], reply.json["inboxMessages"] if reply.status == 200 else [])

    def test_the_scripts_that_poll_the_inbox(self) -> None:
        title = {"title": "MAESTRO_INBOX_OK x", "body": "MAESTRO_INBOX_BODY"}
        delivery_id = self.message("inbox_message", 21, run_id="x", **title)
        self.assertTrue(self.message_of("inbox", "sent", delivery_id))
        (entry,) = self.inbox()
        self.assertEqual((entry["deliveryId"], entry["properties"]), (delivery_id, title))
        self.assertTrue(any(topic.startswith("cio_inbox") for topic in entry["topics"]))
        self.assertIn(entry["type"], ("basic", "image", "cta"))
        path, app = f"/api/v1/messages/{entry['queueId']}", self.of("android")
        for opened in (True, False, True):
            self.assertEqual(self.send("PATCH", path, {"opened": opened}, app).status, 200)
            self.assertEqual([row["opened"] for row in self.inbox()], [opened])
        for metric in ("opened", "clicked"):
            self.assertIsNone(self.message_of("inbox", metric, delivery_id))
            self.report(delivery_id, metric, actionName="maestro_inbox_action")
            self.assertTrue(self.message_of("inbox", metric, delivery_id))
        self.send("POST", f"/api/v1/logs/queue/{entry['queueId']}{self.SESSION}", None, app)
        self.assertEqual([self.inbox(attempt) for attempt in (1, 2, 3)], [[], [], []])

    def test_the_script_that_polls_for_a_campaigns_in_app_message(self) -> None:
        event = {"name": "maestro_test", "data": {"run_id": "x"}}
        self.ok("POST", "/api/v1/customers/ada/events", event)
        message = self.message_of("in_app", "sent", campaign="141")
        (entry,) = self.poll("android").json["inAppMessages"]
        self.assertEqual(entry["queueId"], message["id"])
        path = f"/api/v1/logs/queue/{entry['queueId']}{self.SESSION}"
        self.send("POST", path, None, self.of("android"))
        self.report(message["id"], "opened")
        self.assertTrue(self.message_of("in_app", "opened", campaign="141"))


class InAppStreams(WireTestCase):
    """A stream of events, which holds no thread."""

    def events(self, file: Any, count: int) -> List[Tuple[str, Any]]:
        found = []
        for _ in range(count):
            name = file.readline().split(b": ")[1].strip().decode()
            found.append((name, json.loads(file.readline().split(b": ", 1)[1])))
            self.assertEqual(file.readline(), b"\n")
        return found

    def test_a_port_that_is_taken_is_told_and_the_rest_works(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            with mock.patch.object(customerio_fake, "IN_APP_PORTS", (number, 0)):
                server = CustomerioServer(port=0, in_app=True).start()
        self.addCleanup(server.stop)
        warnings = [r.getMessage() for r in self.listener.records if r.levelno >= logging.WARNING]
        self.assertEqual(len(warnings), 1)
        self.assertIn(f"can't listen on port {number}", warnings[0])
        (other,) = cast(Any, server)._server.further
        for port in (server.port, other.getsockname()[1]):
            with Wire(port) as wire:
                self.assertEqual(wire.send(HEALTH).reply().status, 200)

    def test_whoever_asks_for_the_head_of_a_stream_gets_no_more(self) -> None:
        head = f"HEAD /api/v3/sse?userToken={base64.b64encode(b'ada').decode()}&siteId=s HTTP/1.1"
        with Wire(self.server.port) as wire:
            wire.send(f"{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            first, *lines = wire.file.read().decode().split("\r\n")
        self.assertEqual(first, "HTTP/1.1 200 OK")
        self.assertIn("Content-Type: text/event-stream", lines)
        self.assertEqual(lines[-2:], ["", ""])

    def test_a_stream_ends_with_its_workspace_and_is_in_the_journal(self) -> None:
        server = CustomerioServer(port=0).start()
        self.addCleanup(server.stop)
        world = server.workspace("w")
        target = f"/@w/api/v3/sse?userToken={base64.b64encode(b'ada').decode()}&siteId=s"
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            with sock.makefile("rb") as file:
                list(iter(file.readline, b"\r\n"))
                self.events(file, 3)
                (row,) = world.requests
                self.assertEqual((row["operation"], row["status"]), ("GET /api/v3/sse", 200))
                world.close()
                self.assertEqual(file.read(), b"")

    def test_a_new_message_is_pushed(self) -> None:
        server = CustomerioServer(port=0).start()
        self.addCleanup(server.stop)
        server.fake.workspace.people.identify(("id", "ada"), {})
        threads = threading.active_count()
        token = base64.b64encode(b"ada").decode()
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
            line = f"GET /api/v3/sse?userToken={token}&siteId=s HTTP/1.1\r\nHost: localhost\r\n\r\n"
            sock.sendall(line.encode())
            with sock.makefile("rb") as file:
                head = b"".join(iter(file.readline, b"\r\n"))
                self.assertIn(b"Content-Type: text/event-stream", head)
                names = [name for name, _ in self.events(file, 3)]
                self.assertEqual(names, ["connected", "messages", "inbox_messages"])
                message = {"transactional_message_id": 1, "identifiers": {"id": "ada"}}
                workspace = server.fake.workspace
                delivery, mail = customerio_fake.accept(workspace, "in_app", message, "")
                customerio_fake.dispatch(workspace, delivery, cast(customerio_fake.Mail, mail))
                ((name, entries),) = self.events(file, 1)
                self.assertEqual((name, len(entries)), ("messages", 1))
                self.assertEqual(threading.active_count(), threads)
                server.stop()
                self.assertEqual(file.read(), b"")


# ======================================================================================
# ==== §26 Snapshots
# ======================================================================================


class Snapshots(SeededTest):
    """The whole workspace as one document, and back."""

    def test_segments_come_back_whatever_they_ask(self) -> None:
        asked: list[Any] = [
            {"attribute": {"field": "plan", "operator": "eq", "value": "pro"}},
            {"event": {"name": "order"}, "times": 2, "within": 3600, "inverse": True},
            {"message": {"metric": "opened"}, "within": 86400},
            {"device_attribute": {"field": "platform", "operator": "eq", "value": "ios"}},
        ]
        rows = [{"id": i, "name": str(i), "conditions": asked[i - 1]} for i in (1, 2, 3, 4)]
        rows.append({"id": 5, "name": "all", "conditions": {"and": asked}})
        twice = {"event": {"name": "order"}, "times": 2}
        rows.append({"id": 6, "name": "twice", "conditions": twice})
        self.ok("POST", "/__parlel/seed", {"segments": rows, "customers": [{"id": "1"}]})
        whole = self.ok("GET", "/__parlel/state")
        self.ok("PUT", "/__parlel/state", whole)
        self.assertEqual(self.ok("GET", "/__parlel/state")["segments"], whole["segments"])
        self.ok("POST", "/api/v1/customers/1/events", {"name": "order"})
        self.ok("POST", "/api/v1/customers/1/events", {"name": "order"})
        self.assertEqual(self.ok("GET", "/v1/segments/6/customer_count")["count"], 1)

    def fill(self) -> None:
        """Something of everything, some of it still under way."""
        self.identify("1", email="ada@example.com", plan="pro", anonymous_id="a1")
        self.ok("POST", "/api/v1/customers/1/events", {"name": "signup", "data": {"n": 1.5}})
        self.ok("POST", "/api/v1/events", {"name": "seen", "anonymous_id": "a2"})
        device = {"id": "token", "platform": "ios"}
        self.ok("PUT", "/api/v1/customers/1/devices", {"device": device})
        self.identify("gone")
        self.ok("DELETE", "/api/v1/customers/gone")
        self.ok("POST", "/api/v1/customers/eve/suppress")
        relation = {"identifiers": {"object_type_id": "1", "object_id": "acme"}}
        entity = {"type": "person", "action": "identify", "identifiers": {"id": "1"}}
        self.ok("POST", "/api/v2/entity", {**entity, "cio_relationships": [relation]})
        self.ok("POST", "/v1/segments", {"segment": {"name": "Friends"}})
        self.ok("POST", "/v1/exports/customers", {"filters": {"segment": {"id": 1}}})
        self.ok("POST", "/__parlel/faults", {"match": {"path": "/v1/esp/*"}, "status": 503})
        self.send()
        self.call("POST", "/v1/track", b"\xff\xfe")

    def send(self, **more: Any) -> Any:
        message = {"to": "ada@example.com", "from": "shop@example.com", "identifiers": {"id": "1"}}
        content = {"subject": "Hello {{customer.plan}}", "body": "<p>Welcome</p>"}
        return self.ok("POST", "/v1/send/email", {**message, **content, **more})

    def state(self) -> Any:
        return self.ok("GET", "/__parlel/state")

    def world(self) -> Any:
        """All that can be seen, but for the time that a clock shows."""
        lists = {name: self.records(name) for name in (*customerio_fake.COLLECTIONS, "faults")}
        paths = ("activities", "segments", "exports", "messages", "object_types", "campaigns")
        return lists, [self.ok("GET", f"/v1/{path}") for path in paths]

    def elsewhere(self, document: Any) -> None:
        """Go on with a document in a fake that knew nothing of it."""
        self.fake = Fake(Settings(**self.settings))
        self.ok("PUT", "/__parlel/state", document)

    def test_what_is_restored_is_the_same_and_goes_on_the_same(self) -> None:
        self.fill()
        self.ok("PUT", "/__parlel/clock", {"freeze": True, "now": 2_000_000_000})

        def go_on() -> Any:
            self.identify("2", email="bob@example.com")
            self.ok("POST", "/api/v1/events", {"name": "seen", "anonymous_id": "a1"})
            self.ok("POST", "/v1/segments", {"segment": {"name": "More"}})
            self.assertEqual(self.identify("eve").reason, customerio_fake.SUPPRESSED.text)
            return self.send(), self.world()

        document, before = self.state(), self.world()
        answers = [go_on()]
        self.elsewhere(document)
        self.assertEqual({**self.state(), "clock": None}, {**document, "clock": None})
        self.assertEqual(self.world(), before)
        answers.append(go_on())
        for rows in (answer[1][0]["requests"] for answer in answers):
            for row in rows:
                row.pop("duration_ms")
        self.assertEqual(*answers)

    def test_those_of_format_4_are_still_read(self) -> None:
        self.fill()
        self.identify("2")
        given = {"optouts": [{"from": "+15550100", "optout": True}]}
        for person in ("1", "2"):
            self.call("PUT", f"/v1/customers/{person}/optouts", given)
        state, before = self.state(), self.ok("GET", "/v1/optouts")
        state["customerio_fake"]["format"] = 4
        for person in state["people"]:
            if person["has"]:
                del person["has"]["optouts"]
        (other,) = [row for row in state["people"] if row["id"] == "2"]
        other["has"] = None
        serials = [0, state["everybody"].index(None), other["serial"]]
        rows = [[serial, [["sms", "+15550100"]]] for serial in serials]
        state["workspace"]["optouts"] = rows
        self.elsewhere(state)
        self.assertEqual((self.ok("GET", "/v1/optouts"), len(before["optouts"])), (before, 2))

    def test_a_clock_that_was_set_back_meanwhile_does_not_run_backwards(self) -> None:
        state = self.state()
        state["clock"]["real"] += 1e6
        self.elsewhere(state)
        self.assertGreaterEqual(self.fake.workspace.clock.now(), state["clock"]["now"])

    def test_what_was_to_come_still_comes(self) -> None:
        self.identify("1", plan="pro")
        now = int(self.ok("GET", "/__parlel/clock")["now"])
        delivery_id = self.send(send_at=now + 100)["delivery_id"]
        late = Fake(Settings(ingest_delay=60))
        for fake, paths in ((self.fake, ()), (late, ("identify", "events", "merge", "metrics"))):
            self.fake = fake
            if paths:
                self.identify("7", plan="basic")
                self.ok("POST", "/api/v1/customers/7/events", {"name": "late"})
                sides = {"primary": {"id": "7"}, "secondary": {"id": "8"}}
                self.ok("POST", "/api/v1/merge_customers", sides)
                metric = {"delivery_id": "x", "metric": "bounced", "reason": "full"}
                self.ok("POST", "/api/v1/metrics", metric)
            self.elsewhere(self.state())
            self.assertEqual(self.records("events"), [])
            self.ok("PUT", "/__parlel/clock", {"advance": 101})
            if not paths:
                sent = self.ok("GET", f"/__parlel/deliveries/{delivery_id}")
                self.assertEqual(sent["rendered"]["subject"], "Hello pro")
        self.assertEqual([event["name"] for event in self.records("events")], ["late"])
        self.assertEqual(self.person("7")["attributes"], {"plan": "basic"})
        reasons = [row["operation"] for row in self.records("dropped")]
        self.assertEqual(reasons, ["merge", "record_metric"])

    def test_what_is_being_sent_is_sent_before(self) -> None:
        people = [{"id": str(n), "attributes": {"email": f"{n}@example.com"}} for n in range(300)]
        action = {"subject": "s", "body": "b"}
        broadcast = {"id": 9, "name": "b", "recipients": {"segment": {"id": 1}}}
        segment = {"id": 1, "name": "All", "ids": [person["id"] for person in people]}
        document = {"customers": people, "segments": [segment]}
        self.ok(
            "POST",
            "/__parlel/seed",
            {**document, "broadcasts": [{**broadcast, "actions": [action]}]},
        )
        self.ok("POST", "/v1/campaigns/9/triggers", {})
        self.elsewhere(self.state())
        self.assertEqual(len(self.records("deliveries")), 300)
        self.assertIsNotNone(self.records("broadcasts")[0]["processed_at"])

    def test_requests_may_arrive_meanwhile(self) -> None:
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                self.call("GET", "/health")

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            for _ in range(20):
                self.state()
        finally:
            done.set()
            thread.join()

    def test_whatever_can_be_stored_can_be_restored(self) -> None:
        depth = customerio_fake.MAX_DEPTH - 1
        deep = json.loads("[" * depth + "]" * depth)
        self.ok("PUT", "/api/v1/customers/1", {"deep": deep, "odd": "\udc00", "big": 10**300})
        attributes = self.person("1")["attributes"]
        self.elsewhere(self.state())
        self.assertEqual(self.person("1")["attributes"], attributes)

    def test_time_goes_on_meanwhile_unless_it_stands(self) -> None:
        for frozen in (True, False):
            self.ok("PUT", "/__parlel/clock", {"now": 2_000_000_000, "freeze": frozen})
            document = self.state()
            document["clock"]["real"] -= 3600  # as if saved an hour ago
            self.elsewhere(document)
            shown = self.ok("GET", "/__parlel/clock")
            self.assertEqual(shown["frozen"], frozen)
            self.assertAlmostEqual(shown["now"], 2_000_000_000 + (not frozen) * 3600, delta=60)

    def test_keys_in_bodies_and_passwords_in_urls_stay_out(self) -> None:
        batch = {"batch": [{"type": "identify", "userId": "1"}], "writeKey": "my\\hidden"}
        for body in (json.dumps(batch).encode(), gzip.compress(json.dumps(batch).encode())):
            zipped = {"content_encoding": "gzip"} if body[:1] == b"\x1f" else {}
            self.ok("POST", "/v1/b", body, authorization="", **zipped)
        url = "http://ada:pass@hidden@127.0.0.1:1/hook"
        hook = {"name": "w", "endpoint": url, "events": ["email_sent"]}
        self.ok("POST", "/v1/reporting_webhooks", hook)
        self.identify("1", plan="pro")
        self.send()
        self.fake.outbox.flush(1)
        self.ok("GET", "/v1/reporting_webhooks")
        state = self.state()
        shown = [self.records(name) for name in ("requests", "webhooks", "batches", "events")]
        shown.append(self.call("GET", "/__parlel/requests/1/curl").body.decode())
        self.ok("POST", "/v1/i", {"userId": "2", "writeKey": "hidden"}, authorization="")
        shown.append(self.records("pipeline-events"))
        for text in (json.dumps(state), json.dumps(shown)):
            self.assertNotIn("hidden", text)
            self.assertIn("http://ada:***@127.0.0.1:1/hook", text)
        self.assertEqual(len(self.records("webhooks", "?metric=sent")[0]["attempts"]), 1)
        self.elsewhere(state)
        entry = self.records("requests")[1]
        self.assertEqual(
            (entry["body"]["writeKey"], entry["body"]["batch"][0]["userId"]), ("***", "1")
        )

    def test_secrets_stay_out(self) -> None:
        self.call("GET", "/v1/segments", authorization="Bearer top-secret")
        self.assertNotIn("top-secret", json.dumps(self.state()))

    def test_one_that_is_wrong_is_refused_whole_and_names_the_place(self) -> None:
        self.fill()
        good = self.state()

        def with_change(*path: Any) -> Any:
            document = json.loads(json.dumps(good))
            *way, name, value = path
            part = functools.reduce(lambda part, step: part[step], way, document)
            if value is None:
                del part[name]
            else:
                part[name] = value
            return document

        def shelved(name: str, value: Any) -> Any:
            return with_change("workspace", name, value)

        def on_shelf(name: str, rows: Any) -> Any:
            return with_change("workspace", "shelves", name, "rows", rows)

        ring = {"id": "a", "name": "A", "created": 1, "updated": 1, "parent_folder_id": "a"}
        rows = [
            ([], "state must be an object"),
            ({}, "state.clock is missing"),
            (with_change("customerio_fake", "format", 1), "has format 1"),
            (with_change("customerio_fake", "identifiers", "email"), "identifiers 'email'"),
            (with_change("people", 0, "attributes", []), "people[0].attributes must be an object"),
            (with_change("people", 0, "zodiac", "x"), "people[0].zodiac is unknown"),
            (with_change("people", 0, "serial", None), "people[0].serial is missing"),
            (with_change("people", 1, "id", "1"), "two have the id '1'"),
            (with_change("people", 1, "email", "ADA@example.com"), "two have the email 'ADA@exam"),
            (with_change("people", 0, "serial", 77), "people: serial 77 stands at 0"),
            (
                with_change("workspace", "shelves", "topics", "kind", "x"),
                "topics.kind must be topics",
            ),
            (with_change("workspace", "shelves", "topics", "rows", {}), "rows must be a list"),
            (on_shelf("topics", [[1]]), "topics.rows[0] must have 2 parts, not 1"),
            (with_change("clock", "due", {}), "clock.due must be a list"),
            (with_change("events", 0, "person", 99), "events[0].person must be a place in people"),
            (
                with_change("workspace", "events", "rows", 0, True),
                "workspace.events.rows[0] must be a place",
            ),
            (with_change("workspace", "objects", "rows", []), "the workspace does not"),
            (
                with_change("workspace", "deliveries", "rows", {}),
                "people[0].has.deliveries has '",  # any of them: they are in no order
            ),
            (with_change("people", 0, "has", "deliveries", []), "only the workspace does"),
            (
                with_change("people", 0, "has", "optouts", [["sms", "+1"]]),
                "people[0].has.optouts has ('sms', '+1'), the workspace does not",
            ),
            (
                with_change("workspace", "people", "merges", [1]),
                "workspace.people.merges[0] must be an object",
            ),
            (with_change("workspace", "secret", 1), "workspace.secret must be a string"),
            (with_change("workspace", "shelves", "topics", None), "shelves.topics is missing"),
            (with_change("deliveries", 0, "metrics", {"sent": 1}), "has no metric 'created'"),
            (with_change("clock", "now", 1e300), "clock.now must be a number from 0"),
            (with_change("clock", "now", -1), "clock.now must be"),
            (with_change("clock", "real", -1e300), "clock.real must be"),
            (
                with_change("people", 0, "timestamps", "plan", None),
                "people[0].timestamps.plan is m",
            ),
            (
                with_change("deliveries", 0, "history", 0, "metric", None),
                "history[0].metric is req",
            ),
            (with_change("deliveries", 0, "rendered", "subject", 7), "deliveries[0].rendered.subj"),
            (with_change("faults", 0, "rule", "status", "x"), "rules.rows: status must"),
            (with_change("faults", 0, "id", 7), "rules: what is filed under 1 has the id 7"),
            (with_change("segments", 0, "conditions", {"x": 1}), "segments[0].conditions"),
            (shelved("exports", [[1, {}]]), "workspace.exports[0][1].created_at is missing"),
            (shelved("broadcasts", [{"id": 1}]), "workspace.broadcasts[0].campaign_id is required"),
            (on_shelf("topics", [[[], {}]]), "shelves.topics.rows[0][0] must not be a list"),
            (on_shelf("topics", [[1, {"id": 2}]]), "shelves.topics.rows[0][1].id must be 1"),
            (on_shelf("topics", [[1, {"id": 1, "name": 2}]]), "topics.rows[0][1].name must be a s"),
            (on_shelf("snippets", [["a", {"name": "a"}]]), "snippets.rows[0][1].value is required"),
            (on_shelf("ds_folders", [["a", ring]]), "the folder 'a' lies in no folder"),
            (with_change("clock", "due", [{"at": 1, "do": "sing", "with": {}}]), "something to do"),
            (with_change("clock", "due", [{"at": 1, "do": "track", "with": {}}]), "does not fit"),
        ]
        for document, words in rows:
            reply = self.call("PUT", "/__parlel/state", document)
            self.assertEqual(reply.status, 400, words)
            self.assertIn(words, reply.json["meta"]["error"])
        self.assertEqual({**self.state(), "clock": None}, {**good, "clock": None})

    def test_each_workspace_has_its_own(self) -> None:
        cio = CustomerioServer(port=0)
        other = cio.workspace("other")
        self.fake = cio.fake
        self.identify("1")
        document = cio.snapshot()
        other.restore(document)
        self.ok("POST", "/__parlel/reset")
        self.assertEqual((len(cio.people), len(other.people)), (0, 1))
        with self.assertRaisesRegex(customerio_fake.ApiError, "state.clock is missing"):
            other.restore({})

    def test_a_file_keeps_it_from_one_run_to_the_next(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "state.json")
            for count in (1, 2):
                with CustomerioServer(port=0, state=path) as cio:
                    self.fake = cio.fake
                    self.identify(str(count))
                    self.assertEqual(len(cio.people), count)
            self.assertEqual(os.listdir(folder), ["state.json"])
            saves = [
                threading.Thread(target=customerio_fake.save, args=(self.fake, path))
                for _ in range(8)
            ]
            for save in saves:
                save.start()
            for save in saves:
                save.join()
            self.assertEqual(os.listdir(folder), ["state.json"])
            self.assertEqual(len(CustomerioServer(port=0, state=path).people), 2)
            with open(path, "w", encoding="utf-8") as file:
                file.write("{}")
            wrong = "in .*state.json: state.clock is missing.*; mend the file, or move it away"
            with self.assertRaisesRegex(ValueError, wrong):
                CustomerioServer(port=0, state=path)
            with self.assertRaisesRegex(ValueError, "there is no folder"):
                CustomerioServer(port=0, state=os.path.join(folder, "none", "state.json"))

    def test_what_a_killed_save_left_goes_with_the_next_start_or_save(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path, fake = os.path.join(folder, "state.json"), Fake(Settings())
            steps: List[Callable[[], Any]] = [
                lambda: CustomerioServer(port=0, state=path),
                lambda: customerio_fake.save(fake, path),
            ]
            for step in steps:
                names = ("state.json.x1.unsaved", "state.json.x2.unsaved", "other.json.x.unsaved")
                for name in names:
                    open(os.path.join(folder, name), "w", encoding="utf-8").close()
                os.utime(os.path.join(folder, names[0]), (0, 0))
                os.utime(os.path.join(folder, names[2]), (0, 0))
                step()
                self.assertEqual({*os.listdir(folder)} - {"state.json"}, {*names[1:]})

    def test_a_save_that_fails_names_the_file(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "state.json")
            server = CustomerioServer(port=0, state=path).start()
            os.mkdir(path)
            with self.assertRaisesRegex(OSError, "can't save the state to .*state.json: "):
                server.stop()
            self.assertEqual(os.listdir(folder), ["state.json"])


# ======================================================================================
# ==== §27 JavaScript
# ======================================================================================


class JavaScript(FakeTest):
    """The client for tests in JavaScript; `.ci/examples` and `.ci/clients` run it."""

    def test_it_is_printed_and_served(self) -> None:
        code, out, _ = run_command("client")
        self.assertEqual((code, out), (0, self.call("GET", "/__parlel/client.mjs").body.decode()))
        self.assertIn("export class CustomerioFake", out)
        self.assertLessEqual(out.count("\n"), 250)

    def test_its_types_know_the_records(self) -> None:
        _, out, _ = run_command("client", "--types")
        self.assertEqual(out.encode(), self.call("GET", "/__parlel/client.d.ts").body)
        for line in (
            "export interface PersonRecord {\n  id: string | null;\n",
            "  metrics: Record<string, number>;",
            '  "pipeline-events": Record<string, unknown>;',
            "  history: Record<string, unknown>[];",
        ):
            self.assertIn(line, out)

    def test_it_has_a_method_for_what_it_types(self) -> None:
        names = re.findall(r"^  (?:static )?(\w+)[(<]", customerio_fake.js_types(), re.M)
        self.assertGreater(len(names), 25)
        for name in names:
            self.assertRegex(customerio_fake.JS_CLIENT, rf"\b{name}\(")


# ======================================================================================
# ==== §28 Page
# ======================================================================================


class Page(FakeTest):
    """What a browser gets from the root; `.ci/page` looks at it with chromium."""

    HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"

    def test_a_browser_gets_the_page_and_everybody_else_json(self) -> None:
        rows = [
            (self.HTML, True), ("text/html", True), ("TEXT/HTML;q=0.5, */*;q=0.1", True),
            ("", False), ("*/*", False), ("application/json, text/html;q=0.9", False),
            ("text/html;q=0", False), ("application/json", False), ("text/html, */*", False),
        ]  # fmt: skip
        for accept, html in rows:
            with self.subTest(accept):
                reply = self.call("GET", "/", accept=accept)
                kind = "text/html" if html else "application/json"
                self.assertEqual(reply.status, 200)
                self.assertEqual(reply.headers["content-type"], f"{kind}; charset=utf-8")
                self.assertEqual(reply.headers["vary"], "Accept")
        self.assertEqual(self.call("GET", "/").json["name"], "customerio_fake")

    def test_who_looks_is_not_in_the_journal(self) -> None:
        self.call("GET", "/", accept=self.HTML)
        self.assertEqual(self.records("requests"), [])
        self.call("GET", "/")
        self.assertEqual(len(self.records("requests")), 1)

    def test_each_workspace_has_the_page(self) -> None:
        self.ok("POST", "/__parlel/workspaces", {"name": "w"})
        page = self.call("GET", "/@w/", accept=self.HTML)
        self.assertEqual(page.body, self.call("GET", "/", accept=self.HTML).body)

    def test_who_has_it_already_gets_no_more_than_that(self) -> None:
        tag = self.call("GET", "/", accept=self.HTML).headers["etag"]
        reply = self.call("GET", "/", accept=self.HTML, if_none_match=f'"x", {tag}')
        self.assertEqual((reply.status, reply.body), (304, b""))
        self.assertEqual(reply.headers["etag"], tag)
        self.assertEqual(self.call("GET", "/", accept=self.HTML, if_none_match='"x"').status, 200)

    def test_nothing_runs_in_it_but_its_own_script_and_style(self) -> None:
        reply = self.call("GET", "/", accept=self.HTML)
        html, policy = reply.body.decode(), reply.headers["content-security-policy"]
        for name in ("script", "style"):
            (text,) = re.findall(f"<{name}>(.*?)</{name}>", html, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            self.assertIn(f"{name}-src 'sha256-{digest}';", policy)
        for rule in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"):
            self.assertIn(rule, policy)
        self.assertNotRegex(html, r"""(?i)<[^>]* on\w+=|innerHTML|outerHTML|insertAdjacentHTML""")
        self.assertNotRegex(html, r"(?i)(src|href)=.?https?:|@import|url\(")

    def test_it_is_small(self) -> None:
        html = self.call("GET", "/", accept=self.HTML).body
        self.assertLessEqual(len(html), 40 << 10)
        self.assertLessEqual(html.count(b"\n"), 1000)


# ======================================================================================
# ==== §29 Server
# ======================================================================================


def chunks(data: bytes, size: int = 7, extension: str = "", trailers: bytes = b"") -> bytes:
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    lines = [b"%x%b\r\n%b\r\n" % (len(part), extension.encode(), part) for part in parts]
    return b"".join([*lines, b"0\r\n", trailers, b"\r\n"])


def deflated(data: bytes, window: int) -> bytes:
    stream = zlib.compressobj(wbits=window)
    return stream.compress(data) + stream.flush()


CHUNKED = "Transfer-Encoding: chunked"


def parked(server: CustomerioServer) -> int:
    """How many clients wait for news without a thread."""
    return len(server._server._parked) if server._server else 0


class Framing(WireTestCase):
    """Where requests begin and end, and what answers look like."""

    def test_every_way_to_send_a_body_means_the_same(self) -> None:
        zipped = gzip.compress(ADA)
        rows: List[Tuple[str, Tuple[bytes, ...]]] = [
            ("whole", (identify(),)),
            ("byte by byte", tuple(bytes([byte]) for byte in identify())),
            ("chunked", (identify(chunks(ADA), CHUNKED),)),
            ("chunks of a byte", (identify(chunks(ADA, 1), "transfer-encoding: Chunked"),)),
            ("extensions", (identify(chunks(ADA, 9, ';a=b;c="d"'), CHUNKED),)),
            ("trailers", (identify(chunks(ADA, 9, "", b"X-Sum: 1\r\nY: 2\r\n"), CHUNKED),)),
            ("sizes in capitals", (identify(b"2A\r\n%b\r\n0\r\n\r\n" % ADA.ljust(0x2A), CHUNKED),)),
            ("gzip", (identify(zipped, "Content-Encoding: gzip"),)),
            ("x-gzip", (identify(zipped, "Content-Encoding: X-GZIP"),)),
            ("deflate", (identify(deflated(ADA, 15), "Content-Encoding: deflate"),)),
            ("raw deflate", (identify(deflated(ADA, -15), "Content-Encoding: deflate"),)),
            ("identity", (identify(ADA, "Content-Encoding: identity"),)),
            ("gzip in chunks", (identify(chunks(zipped), CHUNKED, "Content-Encoding: gzip"),)),
            ("as a form", (identify(ADA, "Content-Type: application/x-www-form-urlencoded"),)),
        ]
        for name, pieces in rows:
            with self.subTest(name):
                self.server.reset()
                wire = self.dial().send(*pieces)
                self.assertEqual(wire.reply().status, 200)
                # The same connection goes on, whichever way its first request was served.
                reply = wire.send(message("GET", "/__parlel/customers/ada")).reply()
                self.assertEqual(reply.json["attributes"]["plan"], "free")

    def test_a_request_may_be_cut_anywhere(self) -> None:
        for body in (ADA, chunks(ADA, 9, ";x", b"T: 1\r\n")):
            request = identify(body, *([] if body == ADA else [CHUNKED]))
            for cut in range(1, len(request)):
                framer = customerio_fake.Framer(1000)
                framer.feed(request[:cut])
                self.assertIsNone(framer.next(), cut)
                framer.feed(request[cut:] + HEALTH[:5])
                whole = framer.next()
                self.assertIsNotNone(whole, cut)
                self.assertEqual(whole.body if whole else b"", ADA)
                self.assertIsNone(framer.next())
                self.assertFalse(framer.idle, "the next request has begun")

    def test_several_requests_may_be_cut_anywhere(self) -> None:
        chunked = [identify(chunks(ADA, size, "", more), CHUNKED) for size, more in
                   ((9, b"T: 1\r\n"), (100, b""))]  # fmt: skip
        stream = b"".join([*chunked, identify(), b"\r\n", chunked[0], HEALTH])
        cuts = [[stream[:cut], stream[cut:]] for cut in range(len(stream))]
        for pieces in (*cuts, [stream[n : n + 1] for n in range(len(stream))]):
            framer, found = customerio_fake.Framer(1000), []
            for piece in pieces:
                framer.feed(piece)
                for request in iter(framer.next, None):
                    found += [request.method, request.body] if request else []
            self.assertEqual((found, framer.idle), (["PUT", ADA] * 4 + ["GET", b""], True))

    def test_it_is_known_when_a_request_begins_and_who_waits_for_100(self) -> None:
        body = chunks(ADA, 9)
        head = identify(body, CHUNKED, "Expect: 100-continue")[: -len(body)]
        pieces = [
            (head[:30], True, False), (head[30:], False, True), (b"", False, False),
            (body[:14], False, False), (body[14:30], False, False), (body[30:], False, False),
            (head[:-1], True, False),
        ]  # fmt: skip
        self.assertTrue(body[:14].endswith(b"\r\n"), "a whole chunk")
        framer, old = customerio_fake.Framer(1000), customerio_fake.Framer(1000)
        for piece, begins, waits in pieces:
            self.assertEqual(framer.feed(piece), begins, piece)
            self.assertEqual(framer.next() is not None, piece == body[30:])
            self.assertEqual((framer.wants_continue(), framer.wants_continue()), (waits, False))
            old.feed(piece.replace(b"/1.1", b"/1.0"))
            self.assertEqual((old.next() and None, old.wants_continue()), (None, False))

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        zipped = identify(gzip.compress(ADA), "Content-Encoding: gzip", who="2")
        big = identify(b'{"a":"%b"}' % (b" " * 200_000), who="3")
        wire = self.dial().send(
            identify(who="1") + zipped + PEOPLE + big + identify(who="4") + PEOPLE + HEALTH,
        )
        replies = [wire.reply() for _ in range(7)]
        self.assertEqual([reply.status for reply in replies[:2]], [200, 200])
        self.assertEqual([replies[i].json["count"] for i in (2, 5)], [2, 3])
        self.assert_json_error(replies[3], 400)  # the value is too long, the request is not
        self.assertEqual(replies[6].json, {"status": "ok"})

    def test_many_pipelined_requests(self) -> None:
        wire = self.dial().send(b"".join(identify(who=str(n)) for n in range(300)))
        self.assertEqual({wire.reply().status for _ in range(300)}, {200})
        self.assertEqual([p["id"] for p in self.server.people], [str(n) for n in range(300)])

    def test_when_the_connection_ends(self) -> None:
        close, keep = "Connection: close", "Connection: Keep-Alive"
        rows: List[Tuple[str, str, Tuple[str, ...], Optional[str], bool]] = [
            ("1.1 stays", "1.1", (), None, False),
            ("1.1 closes when asked to", "1.1", (close,), "close", True),
            ("closes, in capitals", "1.1", ("CONNECTION: CLOSE",), "close", True),
            ("1.0 closes", "1.0", (), "close", True),
            ("1.0 stays when asked to", "1.0", (keep,), "keep-alive", False),
        ]
        for name, version, fields, said, ends in rows:
            for path in ("/health", "/__parlel/customers"):
                with self.subTest(name, path=path):
                    request = message("GET", path, None, *fields, version=version)
                    wire = self.dial().send(request)
                    reply = wire.reply()
                    self.assertEqual(reply.status, 200)
                    self.assertEqual(reply.headers.get("connection"), said)
                    if ends:
                        self.assertTrue(wire.ended())
                    else:
                        self.assertEqual(wire.send(HEALTH).reply().status, 200)

    def test_nothing_is_done_after_a_request_that_ends_the_connection(self) -> None:
        wire = self.dial().send(identify(ADA, "Connection: close") + identify(who="late"))
        self.assertEqual(wire.reply().status, 200)
        self.assertTrue(wire.ended())
        self.assertEqual([person["id"] for person in self.server.people], ["ada"])

    def test_head_is_get_without_the_body(self) -> None:
        for path in ("/health", "/__parlel/customers", "/nowhere", "/__parlel/customers/nobody"):
            with self.subTest(path):
                wire = self.dial()
                get = wire.send(message("GET", path)).reply()
                # Sent together: a body after the head would be taken for the next answer.
                head = wire.send(message("HEAD", path) + HEALTH).reply("HEAD")
                self.assertEqual(head.status, get.status)
                self.assertEqual(set(head.headers), set(get.headers))
                if "nowhere" not in path:  # where the message names the method
                    self.assertEqual(head.headers["content-length"], str(len(get.body)))
                self.assertEqual(wire.reply().json, {"status": "ok"})

    def test_options_has_no_body_and_no_length(self) -> None:
        wire = self.dial().send(message("OPTIONS", "/api/v1/customers/ada") + HEALTH)
        reply = wire.reply()
        self.assertEqual((reply.status, reply.headers.get("content-length")), (204, None))
        self.assertEqual(wire.reply().json, {"status": "ok"})

    def test_a_client_that_waits_for_100_gets_it(self) -> None:
        zipped = gzip.compress(ADA)
        rows: List[Tuple[str, bytes, Tuple[str, ...]]] = [
            ("plain", ADA, ()),
            ("and closes then", ADA, ("Connection: close",)),
            ("served by a thread", zipped, ("Content-Encoding: gzip",)),
            ("chunked", chunks(ADA), (CHUNKED,)),
        ]
        for name, body, fields in rows:
            with self.subTest(name):
                self.server.reset()
                request = identify(body, "Expect: 100-Continue", *fields)
                wire = self.dial().send(request[: -len(body)])
                self.assertEqual(wire.reply().status, 100)
                self.assertEqual(wire.send(body).reply().status, 200)
                self.assertEqual(self.server.people[0]["attributes"]["plan"], "free")

    def test_a_client_that_does_not_wait_for_100_gets_the_answer_alone(self) -> None:
        rows = [
            ("the body is there", identify(ADA, "Expect: 100-continue"), 200),
            ("there is no body", message("GET", "/health", None, "Expect: 100-continue"), 200),
            ("HTTP/1.0", identify(ADA, "Expect: 100-continue", version="1.0"), 200),
            ("too large", identify(b"", "Expect: 100-continue").replace(
                b"Length: 0", b"Length: 99999999999"), 413),
            ("something else", identify(ADA, "Expect: miracles"), 417),
        ]  # fmt: skip
        for name, request, status in rows:
            with self.subTest(name):
                self.assertEqual(self.ask(request).status, status)

    def test_http_1_0_is_not_told_to_continue(self) -> None:
        request = identify(ADA, "Expect: 100-continue", version="1.0")
        wire = self.dial().send(request[: -len(ADA)])
        self.assertEqual(self.ask(HEALTH).status, 200)  # by now the loop has seen the head
        self.assertEqual(wire.send(ADA).reply().status, 200)

    def test_odd_but_valid_requests(self) -> None:
        rows = [
            ("empty lines before", b"\r\n\r\n" + HEALTH),
            ("absolute target", message("GET", "http://localhost:1/health")),
            ("absolute, with a query", message("GET", "http://localhost:1/health?x=http://y/z")),
            ("slash too many", message("GET", "//health")),
            ("space around a value", message("GET", "/health", None, "X:  \t y \t ")),
            ("an empty value", message("GET", "/health", None, "X:")),
            ("bytes beyond ASCII", message("GET", "/health", None, "X: é")),
            ("a query", message("GET", "/health?a=%zz&&=")),
        ]
        for name, request in rows:
            with self.subTest(name):
                wire = self.dial()
                self.assertEqual(wire.send(request).reply().json, {"status": "ok"})
                self.assertEqual(wire.send(request).reply().json, {"status": "ok"})

    def test_what_is_said_of_the_connection(self) -> None:
        rows = [
            ("1.1", (), True),
            ("1.1", ("Connection: upgrade, close",), False),
            ("1.1", ("Connection: not-close",), True),
            ("1.0", (), False),
            ("1.0", ("Connection: keep-alive",), True),
            ("1.0", ("Connection: keep-alive, close",), False),
            ("1.0", ("Connection: keep-alive", CHUNKED), False),
        ]
        for version, given, stays in rows:
            with self.subTest(version=version, given=given):
                body = chunks(ADA) if CHUNKED in given else ADA
                wire = self.dial().send(identify(body, *given, version=version))
                self.assertEqual(wire.reply().status, 200)
                if stays:
                    self.assertEqual(wire.send(HEALTH).reply().status, 200)
                else:
                    self.assertTrue(wire.ended())

    def test_a_refused_head_request_gets_no_body(self) -> None:
        request = message("HEAD", "/health", None, "Expect: the unexpected")
        long = message("HEAD", "/" + "y" * 20_000)
        for refused, status in ((request, 417), (long, 414)):
            wire = self.dial().send(HEALTH, refused)
            self.assertEqual(wire.reply().status, 200)
            self.assertEqual(wire.reply("HEAD").status, status)
            self.assertTrue(wire.ended())

    @contextlib.contextmanager
    def held_up(self, server: CustomerioServer) -> Iterator[List[str]]:
        """The loop is busy with a request until this ends; gives the paths asked for, in order."""
        asked: List[str] = []
        busy, go_on, handle = threading.Event(), threading.Event(), server.fake.handle

        def slowly(request: Request) -> Any:
            asked.append(request.path)
            busy.set()
            self.assertTrue(go_on.wait(PATIENCE))
            return handle(request)

        turn = mock.patch.object(customerio_fake, "TURN", 0.0)
        with turn, mock.patch.object(server.fake, "handle", slowly):
            self.dial(port=server.port).send(message("GET", "/busy"))
            self.assertTrue(busy.wait(PATIENCE))
            yield asked
            go_on.set()
            self.assertTrue(eventually(lambda: "/last" in asked))

    def test_who_sends_very_much_at_once_does_not_hold_up_others(self) -> None:
        many = message("GET", "/many") * 50 + message("GET", "/last")
        with self.held_up(self.server) as asked:
            flood = self.dial().send(many)
            short = self.dial().send(message("GET", "/short"))
        self.assertLess(asked.index("/short"), 4)
        self.assertEqual([flood.reply().status for _ in range(51)], [404] * 51)
        self.assertEqual(short.reply().status, 404)

    def test_what_has_arrived_is_answered_before_the_end(self) -> None:
        with CustomerioServer(port=0) as server, ThreadPoolExecutor(1) as pool:
            wire = self.dial(port=server.port)
            self.assertEqual(wire.send(HEALTH).reply().status, 200)
            with self.held_up(server):
                wire.send(HEALTH * 50 + message("GET", "/last"))
                stopped = pool.submit(server.stop)
                self.assertTrue(eventually(lambda: server.fake.ending.is_set()))
            stopped.result(PATIENCE)
            self.assertEqual([wire.reply().status for _ in range(51)], [200] * 50 + [404])

    def stream(self, *requests: bytes) -> Wire:
        """A connection over which requests come as fast as they can, in very small turns."""
        turn = mock.patch.object(customerio_fake, "TURN", 0.0)
        turn.start()
        self.addCleanup(turn.stop)
        wire = self.dial()
        sending = threading.Thread(target=self.send_all, args=(wire, b"".join(requests)))
        sending.start()
        self.addCleanup(sending.join)
        return wire

    def send_all(self, wire: Wire, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the server may have had enough
            wire.send(data)

    def test_a_long_stream_is_answered_in_order_by_loop_and_threads(self) -> None:
        kinds = [PEOPLE if n % 50 == 1 else HEALTH for n in range(2000)]
        wire = self.stream(*kinds)
        for n, kind in enumerate(kinds):
            self.assertEqual("count" in wire.reply().json, kind is PEOPLE, n)

    def test_nothing_is_done_after_the_last_request(self) -> None:
        for place in (1, 2, 250):
            self.server.reset()
            requests = [identify(who=str(n)) for n in range(1500)]
            requests[place] = identify(ADA, "Connection: close", who="last")
            wire = self.stream(*requests)
            answers = [wire.reply().status for _ in range(place + 1)]
            self.assertEqual(answers, [200] * (place + 1))
            self.assertTrue(wire.ended())
            self.assertEqual(len(self.server.people), place + 1)

    def test_a_last_answer_arrives_whatever_still_comes_in(self) -> None:
        for n in range(300):
            self.server.fake.workspace.people.identify(("id", str(n)), {"text": "x" * 900})
        last = message("GET", "/__parlel/customers?limit=300", None, "Connection: close")
        wire = self.dial().send(last, b"\r\n" * 10)
        self.assertTrue(eventually(lambda: not waiting_threads()))
        with contextlib.suppress(OSError):
            wire.send(b"\r\n")
        self.assertEqual(len(wire.reply().json["customers"]), 300)

    def test_a_watch_that_its_client_ends_is_no_success(self) -> None:
        body = b'{"list": "events", "match": {"name": "x"}, "none": true, "timeout": 60}'
        wire = self.dial().send(message("POST", "/__parlel/assert", body)).end()
        reply = wire.reply()
        self.assertEqual(reply.status, 422)
        self.assertIn("cut short", reply.json["meta"]["error"])

    def test_the_parts_of_a_packed_body_are_one(self) -> None:
        parts = gzip.compress(b'{"plan": '), gzip.compress(b'"pro"}')
        self.ask(identify(b"".join(parts), "Content-Encoding: gzip"))
        self.assertEqual(self.server.people[0]["attributes"], {"plan": "pro"})
        reply = self.ask(identify(parts[0] + parts[1] + b"junk", "Content-Encoding: gzip"))
        self.assert_json_error(reply, 400)
        self.assertEqual(
            self.ask(identify(gzip.compress(b""), "Content-Encoding: gzip")).status, 200
        )

    def test_what_was_refused_is_no_larger_in_the_journal_than_anything_else(self) -> None:
        bomb = gzip.compress(b"a" * 5_000_000)
        wrong = ("Content-Encoding: gzip", "Authorization: Basic")
        self.assert_json_error(self.ask(identify(bomb, *wrong)), 401)
        (entry,) = self.server.requests
        self.assertEqual(len(entry["body"]), customerio_fake.MAX_KEPT_BODY)

    def test_a_browser_may_ask_where_slashes_are_doubled(self) -> None:
        for path in ("/api/v1/events", "//api/v1/events", "/api/v1//events"):
            reply = self.ask(message("OPTIONS", path))
            self.assertEqual(reply.headers.get("access-control-allow-origin"), "*", path)

    def test_a_head_is_whole_and_sent_once(self) -> None:
        wire = self.dial().send(HEALTH)
        received = wire.socket.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        self.assertEqual(json.loads(body), {"status": "ok"})
        names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
        self.assertEqual(len(names), len(set(names)), "no field comes twice")
        self.assertIn(b"date", names)

    def test_a_large_answer_to_a_slow_reader(self) -> None:
        attributes = {f"k{n}": "x" * 900 for n in range(90)}
        self.ask(identify(json.dumps(attributes).encode()))
        wire = self.dial()
        wire.send(message("GET", "/__parlel/customers/ada") * 60)  # 5 MB: more than fits
        self.assertTrue(eventually(lambda: bool(waiting_threads())), "the loop must not wait")
        self.assertEqual(self.ask(HEALTH).status, 200)
        for _ in range(60):
            self.assertEqual(wire.reply().json["attributes"]["k89"], "x" * 900)
        self.assertTrue(eventually(lambda: not waiting_threads()), "an idle thread is a waste")
        self.assertEqual(wire.send(HEALTH).reply().status, 200)

    def test_a_large_answer_is_not_made_in_the_loop(self) -> None:
        """Whatever the operation: what counts is its size."""
        threads: List[str] = []
        in_turns = customerio_fake.compact_in_turns

        def write(value: Any) -> bytes:
            threads.append(threading.current_thread().name)
            return in_turns(value)

        rows: List[Tuple[str, Any, str]] = [
            ("small", [{"a": 1}] * 100, "customerio-fake"),
            ("many", [{"a": 1}] * 20_000, "customerio-fake-waiting"),
            ("numbers", [1] * 20_000, "customerio-fake-waiting"),
            ("long", ["x" * 200_000], "customerio-fake-waiting"),
            ("deep", {"a": {"b": {"c": ["x" * 70_000, "y" * 70_000]}}}, "customerio-fake-waiting"),
        ]
        api = customerio_fake.SHARED._replace(write=write)
        for method in ("GET", "POST"):
            for name, value, thread in rows:
                threads.clear()
                handler = mock.Mock(return_value=value)
                row = customerio_fake.Operation(method, "/x", api, handler, False)

                def found(request: Request, row: Any = row) -> Any:
                    request.operation = row
                    return row

                with self.subTest(name, method=method):
                    changes: Dict[str, Any] = {"find_operation": found, "compact_in_turns": write}
                    with mock.patch.multiple(customerio_fake, **changes):
                        reply = self.ask(message(method, "/x", b""))
                    self.assertEqual((reply.json, threads), (value, [thread]))
                    handler.assert_called_once()

    def test_large_json_is_the_same_in_pieces(self) -> None:
        rows = [{"a": n, "é": [n * 1.5, None, True], "\\": 'x\n"' * 9} for n in range(20_000)]
        for value in (rows, {"a": rows, "b": [], "c": {}}, ["x" * 200_000, [], {}], {}, [], 1, "x"):
            text = customerio_fake.compact(value)
            self.assertEqual(customerio_fake.compact_in_turns(value), text)
            for bounded in (True, False):
                self.assertEqual(customerio_fake.decode_json(text, bounded=bounded), value)
        self.assertGreater(len(customerio_fake.compact(rows)), customerio_fake.LARGE_JSON)

    def test_a_reset_to_a_large_seed_is_for_a_thread(self) -> None:
        names: List[str] = []
        reset = self.server.fake.reset

        def noted(only: str = "") -> None:
            names.append(threading.current_thread().name)
            reset(only)

        with mock.patch.object(self.server.fake, "reset", noted):
            for count in (2, 3000):
                rows = [{"id": str(n), "attributes": {"x": "y" * 50}} for n in range(count)]
                self.server.seed({"customers": rows})
                self.assertEqual(self.ask(message("POST", "/__parlel/reset")).status, 200)
                self.assertEqual(len(self.server.people), count)
        self.server.seed({})
        self.assertEqual(names, ["customerio-fake", "customerio-fake-waiting"])

    def test_what_is_large_is_journaled_once_and_short(self) -> None:
        rows = [{"id": str(n), "attributes": {"x": "y" * 900}} for n in range(300)]
        reply = self.ask(
            message("POST", "/__parlel/seed", json.dumps({"customers": rows}).encode())
        )
        self.assertEqual(reply.status, 200)
        body = b'{"ids": [%b]}' % b",".join(b'"%d"' % n for n in range(100))
        app = "Authorization: Bearer key"
        wire = self.dial().send(message("POST", "/v1/customers/attributes", body, app))
        self.assertEqual(len(wire.reply().json["customers"]), 100)
        (entry,) = self.server.requests
        self.assertEqual(entry["operation"], "POST /v1/customers/attributes")
        self.assertEqual(len(entry["response"]), customerio_fake.MAX_KEPT_BODY)


class HostileInput(WireTestCase):
    """Whatever comes in: a clean answer, and no effect."""

    settings: ClassVar[Dict[str, Any]] = {"max_body": 300_000}

    def setUp(self) -> None:
        super().setUp()
        self.assertEqual(self.ask(identify()).status, 200)

    def test_malformed_heads(self) -> None:
        evil = identify(b'{"plan":"evil"}')
        long = "y" * 20_000

        def swap(old: str, new: str) -> bytes:
            self.assertIn(old.encode(), evil)
            return evil.replace(old.encode(), new.encode("latin-1"), 1)

        rows = [
            ("not HTTP", b"hello\r\n\r\n", 400),
            ("only a method", b"GET\r\n\r\n", 400),
            ("two spaces", swap("PUT ", "PUT  "), 400),
            ("space in the target", swap("/ada", "/a da"), 400),
            ("control character", swap("/ada", "/\x01"), 400),
            ("not a method", swap("PUT", "P(T"), 400),
            ("not UTF-8", swap("/ada", "/\xff"), 400),
            ("no version", swap(" HTTP/1.1", ""), 400),
            ("version 0.9", swap("HTTP/1.1", "HTTP/0.9"), 505),
            ("version 2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            ("bare line feeds", evil.replace(b"\r\n", b"\n"), 400),
            ("line feed in a value", swap("localhost", "local\nhost"), 400),
            ("NUL in a value", swap("localhost", "local\x00host"), 400),
            ("no colon", swap("Host: ", "Host "), 400),
            ("space before the colon", swap("Host:", "Host :"), 400),
            ("empty name", swap("Host:", ":"), 400),
            ("folded line", swap("Host:", "A: b\r\n c\r\nHost:"), 400),
            ("no host", swap("Host: localhost\r\n", ""), 400),
            ("an empty host", swap("localhost", " "), 400),
            ("no host beside a URL", swap("Host: localhost\r\n", "").replace(
                b" /", b" http://localhost/", 1), 400),
            ("two hosts", swap("Host:", "Host: a\r\nHost:"), 400),
            ("no name of a host", swap("localhost", "local host/x@y"), 400),
            ("no path", swap("/api", "api"), 400),
            ("no host in a URL", swap("/api", "http:///api"), 400),
            ("asterisk", swap("/api/v1/customers/ada", "*"), 400),
            ("a bare line feed at last", b"GET / HTTP/1.1\r\nHost: x\n\r\n", 400),
            ("two credentials", swap("Host:", "Authorization: Basic eDp5\r\nHost:"), 400),
            ("two lengths", swap("Host:", "Content-Length: 15\r\nHost:"), 400),
            ("a list of lengths", swap("Length: 15", "Length: 15, 15"), 400),
            ("length and chunked", swap("Host:", f"{CHUNKED}\r\nHost:"), 400),
            ("negative length", swap("Length: 15", "Length: -1"), 400),
            ("signed length", swap("Length: 15", "Length: +15"), 400),
            ("length in hex", swap("Length: 15", "Length: 0xf"), 400),
            ("length with a point", swap("Length: 15", "Length: 15.0"), 400),
            ("length of letters", swap("Length: 15", "Length: ten"), 400),
            ("no length", swap("Length: 15", "Length:"), 400),
            ("length of digits elsewhere", swap("Length: 15", "Length: \xb2"), 400),
            ("absurd length", swap("Length: 15", "Length: " + "9" * 15), 413),
            ("more absurd length", swap("Length: 15", "Length: " + "9" * 5000), 400),
            ("just too large", swap("Length: 15", "Length: 300001"), 413),
            ("unknown coding", swap("Content-Length: 15", "Transfer-Encoding: gzip"), 501),
            ("two codings", swap("Content-Length: 15", f"{CHUNKED}, chunked"), 501),
            ("long target", swap("/ada", "/" + long), 414),
            ("long field", swap("Host:", f"X: {long}\r\nHost:"), 431),
            ("many fields", swap("Host:", "X: y\r\n" * 120 + "Host:"), 431),
            ("endless head", b"PUT / HTTP/1.1\r\n" + b"X: y\r\n" * 12_000, 431),
            ("endless line", b"PUT /" + b"y" * 70_000, 431),
        ]  # fmt: skip
        before = self.state()
        for name, request, status in rows:
            with self.subTest(name):
                wire = self.dial().send(request)
                reply = wire.reply()
                self.assert_json_error(reply, status)
                self.assertEqual(reply.headers["connection"], "close")
                self.assertTrue(wire.ended())
        self.assert_unharmed(before)

    def test_what_can_be_no_request_is_refused_at_once(self) -> None:
        rows = [
            ("another protocol", b"EHLO example.com\r\n", 400),
            ("its lines", b"EHLO example.com\n", 400),
            ("a banner", b"SSH-2.0-OpenSSH_9.2\r\n", 400),
            ("no text", b"\x05\x01\x00", 400),
            ("no method", b" /health", 400),
            ("a line in a line", b"GET /health\rx", 400),
            ("too many words", b"GET /health x", 400),
            ("another version", b"GET / HTTP/2.0\r\n", 505),
            ("a bare line feed", b"GET / HTTP/1.1\r\nHost: x\n", 400),
            ("a chunk's bare line feed", identify(b"f\n", CHUNKED), 400),
            ("nothing but a line feed", identify(b"\n", CHUNKED), 400),
        ]
        for name, request, status in rows:
            with self.subTest(name):
                wire = self.dial().send(request)
                self.assert_json_error(wire.reply(), status)
                self.assertTrue(wire.ended())

    def test_a_head_may_come_in_any_pieces(self) -> None:
        request = b"\r\n" + message("GET", "http://localhost:4668/health?x=%20HTTP/1")
        for end in range(1, len(request)):
            framer = customerio_fake.Framer(100)
            framer.feed(request[:end])
            self.assertIsNone(framer.next(), request[:end])
            framer.feed(request[end:])
            self.assertEqual(cast(Request, framer.next()).path, "/health")

    def test_http_1_0_needs_no_host(self) -> None:
        self.assertEqual(self.ask(b"GET /health HTTP/1.0\r\n\r\n").status, 200)

    def test_chunks_of_a_byte_cost_no_more_than_their_bytes(self) -> None:
        """Each of them once copied everything behind it."""
        framer = customerio_fake.Framer(1 << 24)
        framer.feed(identify(chunks(b" " * 400_000, 1), CHUNKED))
        began = time.perf_counter()
        self.assertEqual(len(cast(Request, framer.next()).body), 400_000)
        self.assertLess(time.perf_counter() - began, 4)  # it was 60; now 0.4

    def test_broken_chunks(self) -> None:
        body = b'{"plan":"evil"}'
        rows = [
            ("not hex", b"xyz\r\n" + body, 400),
            ("negative", b"-1\r\n" + body, 400),
            ("0x", b"0xf\r\n%b\r\n0\r\n\r\n" % body, 400),
            ("no size", b"\r\n" + body, 400),
            ("too long", b"5\r\n" + body + b"\r\n0\r\n\r\n", 400),
            ("too long by two", b"2\r\n{}XX0\r\n\r\n", 400),
            ("too short", b"10\r\n" + body + b"\r\n0\r\n\r\n", 400),
            ("line feeds", b"f\n%b\n0\n\n" % body + b" " * 20_000, 400),
            ("absurd size", b"ffffffff\r\n" + body, 413),
            ("more absurd size", b"f" * 50 + b"\r\n" + body, 400),
            ("too much in sum", (b"ffff\r\n" + b" " * 0xFFFF + b"\r\n") * 5, 413),
            ("endless extension", b"f;" + b"x" * 20_000, 400),
            ("endless trailers", b"0\r\n" + b"X: y\r\n" * 4000, 431),
            ("many trailers", b"0\r\n" + b"X: y\r\n" * 120 + b"\r\n", 431),
            ("a line feed for trailers", b"0\r\n\n", 400),
            ("a line feed in trailers", b"0\r\nX: y\n\r\n", 400),
            ("a bare CR in trailers", b"0\r\nX: \ry\r\n\r\n", 400),
            ("NUL in trailers", b"0\r\nX: \0\r\n\r\n", 400),
            ("a trailer without colon", b"0\r\nevil\r\n\r\n", 400),
            ("a folded trailer", b"0\r\nX: y\r\n z\r\n\r\n", 400),
        ]
        before = self.state()
        for name, stream, status in rows:
            with self.subTest(name):
                wire = self.dial().send(identify(stream, CHUNKED))
                self.assert_json_error(wire.reply(), status)
                self.assertTrue(wire.ended())
        self.assert_unharmed(before)

    def test_limits_are_exact(self) -> None:
        """As much as that is taken, and a byte or a line more is not."""
        line = b"GET / HTTP/1.1\r\n"
        padding = b"X: y\r\n" * 20_000
        rows: List[Tuple[str, Callable[[int], bytes], int, int]] = [
            ("target", lambda n: message("GET", "/" + "y" * (n - 1)), 16_384, 414),
            ("field", lambda n: message("GET", "/", None, "X: " + "y" * (n - 3)), 16_384, 431),
            ("fields", lambda n: message("GET", "/", None, *["X: y"] * (n - 2)), 100, 431),
            ("head", lambda n: (line + padding)[:n], 65_536, 431),
            ("body", lambda n: identify(b"y" * n), 1000, 413),
            ("chunks", lambda n: identify(chunks(b"y" * n, 100), CHUNKED), 1000, 413),
            ("size of a chunk", lambda n: identify(b"f;" + b"y" * (n - 2), CHUNKED), 16_383, 400),
            ("trailers", lambda n: identify((b"0\r\n" + padding)[:n], CHUNKED), 16_384, 431),
        ]
        for name, request, limit, status in rows:
            with self.subTest(name):
                within, beyond = customerio_fake.Framer(1000), customerio_fake.Framer(1000)
                within.feed(request(limit))
                within.next()
                beyond.feed(request(limit + 1))
                with self.assertRaises(ApiError) as refused:
                    beyond.next()
                self.assertEqual(refused.exception.status, status)

    def test_bodies_that_end_early_have_no_effect(self) -> None:
        evil = b'{"plan":"evil"}'
        rows = [
            ("in the request line", b"PUT /api"),
            ("in the head", identify(evil)[:60]),
            ("before the body", identify(evil)[: -len(evil)]),
            ("in the body", identify(evil)[:-1]),
            ("in a chunk", identify(chunks(evil), CHUNKED)[:-15]),
            ("before the last chunk", identify(chunks(evil), CHUNKED)[:-5]),
            ("in the trailers", identify(chunks(evil, 5, "", b"X: y\r\n"), CHUNKED)[:-2]),
            ("waiting for 100", identify(evil, "Expect: 100-continue")[: -len(evil)]),
        ]
        before = self.state()
        for name, request in rows:
            with self.subTest(name, how="ended"):
                wire = self.dial().send(request).end()
                if "100" in name:
                    self.assertEqual(wire.reply().status, 100)
                self.assertTrue(wire.ended())
            with self.subTest(name, how="reset"):
                self.dial().send(request).reset()
        self.assert_unharmed(before)

    def test_clients_that_leave_before_the_answer(self) -> None:
        before = self.state()
        for request in (HEALTH, PEOPLE, HEALTH * 50 + PEOPLE * 5, PEOPLE + HEALTH * 50):
            for _ in range(5):
                self.dial().send(request).reset()
                self.dial().send(request).close()
        self.assert_unharmed(before)
        self.assertTrue(eventually(lambda: not waiting_threads()))

    def test_nobody_has_to_read_a_million_values(self) -> None:
        """30 KB of gzip held up everybody for seconds, and took a gigabyte."""
        most = customerio_fake.MAX_VALUES
        rows = [
            ("lists", b"[" + b"[]," * most + b"[]]", 413),
            ("numbers", b"[" + b"0," * most + b"0]", 413),
            ("objects", b"[" + b"{}," * most + b"{}]", 413),
            ("bytes", b'"' + b"x" * customerio_fake.MAX_JSON + b'"', 413),
            ("spaces", b" " * customerio_fake.MAX_JSON + b"{}", 413),
            ("as many as may be", b"[" + b"0," * (most - 2) + b"0]", 400),
        ]
        with CustomerioServer(port=0) as server:
            for name, body, status in rows:
                with self.subTest(name):
                    packed = identify(gzip.compress(body), "Content-Encoding: gzip")
                    reply = self.dial(None, server.port).send(packed).reply()
                    self.assert_json_error(reply, status)
            long = b'{"events":[' + b"0," * most + b"0]}"
            seed = message("POST", "/__parlel/seed", long)
            reply = self.dial(None, server.port).send(seed).reply()
            self.assertIn("events", reply.json["meta"]["error"], "a seed may be large")

    def test_bodies_that_are_not_json(self) -> None:
        deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        rows = [
            ("half an object", b'{"plan":"evil"', 400),
            ("two objects", b'{"plan":"evil"} {}', 400),
            ("not UTF-8", b'{"plan":"\xff"}', 400),
            ("UTF-16", '{"plan":"evil"}'.encode("utf-16"), 400),
            ("a control character", b'{"plan":"\x01"}', 400),
            ("single quotes", b"{'plan':'evil'}", 400),
            ("a bad escape", b'{"plan":"\\x"}', 400),
            ("100,000 levels", deep, 400),
            ("300 levels", b'{"plan":' + b"[" * 300 + b"]" * 300 + b"}", 400),
            ("10,000 digits", b'{"plan":' + b"9" * 10_000 + b"}", 400),
            ("an array", b'[{"plan":"evil"}]', 400),
            ("a string", b'"evil"', 400),
            ("a number", b"1", 400),
            ("true", b"true", 400),
            # The real service answers 200 to these and stores nothing.
            ("NaN", b'{"plan":NaN}', 200),
            ("infinity", b'{"plan":-Infinity}', 200),
            ("as good as infinity", b'{"plan":1e999}', 200),
        ]
        before = self.state()
        for name, body, status in rows:
            for way in ("by the loop", "by a thread"):
                with self.subTest(name, way=way):
                    wire = self.dial()
                    if way == "by a thread":
                        wire.send(identify(gzip.compress(body), "Content-Encoding: gzip"))
                    else:
                        wire.send(identify(body))
                    reply = wire.reply()
                    self.assertEqual(reply.status, status, reply.body)
                    self.assertIsInstance(reply.json, dict)
                    self.assertEqual(wire.send(HEALTH).reply().status, 200)
        self.assert_unharmed(before)

    def test_lone_surrogates_become_replacement_characters(self) -> None:
        reply = self.ask(identify(b'{"plan":"a\\ud800b","k\\udfff":"\\ud83d\\ude00"}'))
        self.assertEqual(reply.status, 200)
        attributes = self.server.people[0]["attributes"]
        self.assertEqual(attributes["plan"], "a\ufffdb")
        self.assertEqual(attributes["k\ufffd"], "\U0001f600")
        self.assertEqual(self.ask(PEOPLE).json["customers"][0]["attributes"], attributes)

    def test_arrays_where_objects_belong(self) -> None:
        before = self.state()
        keys = {"app": "Bearer key", "pipelines": "Basic a2V5Og=="}
        rows = [row for row in customerio_fake.ROUTES if row.method in ("PUT", "POST")]
        for row in rows:
            if row.path.startswith("/__parlel") or "forms" in row.path:
                continue  # these don't read a JSON object
            path = re.sub(r"\{\w+\}", "1", row.path)
            scheme = f"Authorization: {keys.get(row.api.name, 'Basic c2l0ZTprZXk=')}"
            for body in (b"[1]", b'"text"', b"7", b"[[]]"):
                with self.subTest(f"{row.method} {row.path}", body=body):
                    reply = self.ask(message(row.method, path, body, scheme))
                    self.assertLess(reply.status, 500, reply.body)
                    self.assertIsInstance(reply.json, dict)
                    if reply.status >= 400:
                        self.assertEqual(self.state(), before)
                        continue
                    # Only who does not read the body at all may be content with it.
                    bare = self.ask(message(row.method, path, b"", scheme))
                    self.assertEqual(bare.status, reply.status)
                    before = self.state()

    def test_compressed_bodies_that_lie(self) -> None:
        zipped = gzip.compress(b'{"plan":"evil"}')
        bomb = gzip.compress(b'{"plan":"%b"}' % (b" " * 50_000_000), 1)
        rows = [
            ("a bomb", bomb, "gzip", 413),
            ("a bomb, deflated", deflated(b" " * 400_000, 15), "deflate", 413),
            ("not gzip", b'{"plan":"evil"}', "gzip", 400),
            ("truncated", zipped[:-9], "gzip", 400),
            ("corrupt", zipped[:12] + b"\xff" + zipped[13:], "gzip", 400),
            ("wrong checksum", zipped[:-8] + b"\0" * 8, "gzip", 400),
            ("nothing", b"", "gzip", 400),
            ("brotli", zipped, "br", 415),
            ("twice", gzip.compress(zipped), "gzip, gzip", 415),
        ]
        before = self.state()
        for name, body, coding, status in rows:
            with self.subTest(name):
                if len(body) > 300_000:
                    self.fail("the bomb has to fit")
                wire = self.dial().send(identify(body, f"Content-Encoding: {coding}"))
                self.assert_json_error(wire.reply(), status)
                self.assertEqual(wire.send(HEALTH).reply().status, 200)
        self.assert_unharmed(before)

    def test_ids_in_paths(self) -> None:
        rows = [
            ("a%2Fb", "a/b"),
            ("a+b", "a+b"),
            ("a%2Bb", "a+b"),
            ("a%20b", "a b"),
            ("a%25b", "a%b"),
            ("%E2%82%AC", "€"),
            ("€", "€"),
            ("%F0%9F%98%80", "\U0001f600"),
            ("..", ".."),
            ("a;b=c,d:e@f", "a;b=c,d:e@f"),
            ("%3Fa%23b", "?a#b"),
        ]
        for text, meant in rows:
            with self.subTest(text):
                self.server.reset()
                self.assertEqual(self.ask(identify(b"{}", who=text)).status, 200)
                person = self.server.people[0]
                self.assertEqual(person["identifiers"].get("id", person["id"]), meant)

    def test_ids_in_paths_that_cannot_be(self) -> None:
        before = self.state()
        for text in ("%", "%2", "%zz", "a%2", "%00", "a%00b", "%FF", "%C3%28", "%ED%A0%80"):
            with self.subTest(text):
                wire = self.dial().send(identify(b'{"plan":"evil"}', who=text))
                self.assert_json_error(wire.reply(), 400)
                self.assertEqual(wire.send(HEALTH).reply().status, 200)
        for text in ("", "a/b", "a/"):  # an id has one segment
            with self.subTest(text):
                self.assertIn(self.ask(identify(b'{"plan":"evil"}', who=text)).status, (400, 404))
        self.assert_unharmed(before)

    def test_errors_are_json_and_leave_the_connection_usable(self) -> None:
        rows = [
            ("unknown path", message("PUT", "/nowhere", ADA), 404),
            ("unknown method", message("BREW", "/health", ADA), 405),
            ("wrong method", message("DELETE", "/__parlel/events", ADA), 405),
            ("not JSON", identify(b"<a/>", "Content-Type: text/xml"), 415),
            ("wrong key", identify(ADA, "Authorization: Basic !"), 401),
            ("wrong scheme", identify(ADA, "Authorization: Bearer key"), 401),
            ("no key", message("GET", "/v1/exports"), 401),
        ]
        before = self.state()
        for name, request, status in rows:
            with self.subTest(name):
                wire = self.dial().send(request)
                reply = wire.reply()
                self.assert_json_error(reply, status)
                if status == 405:
                    self.assertIn("GET", reply.headers["allow"])
                self.assertEqual(wire.send(HEALTH).reply().json, {"status": "ok"})
        self.assert_unharmed(before)

    def test_a_bug_is_a_500_in_json_and_one_line_in_the_log(self) -> None:
        for request in (identify(), PEOPLE):
            with self.assertLogs("customerio_fake", "ERROR") as logged:
                wire = self.dial()
                with mock.patch.object(customerio_fake, "answer", side_effect=RuntimeError("x")):
                    self.assert_json_error(wire.send(request).reply(), 500)
            self.assertEqual(len(logged.output), 1)
            self.assertNotIn("\n", logged.output[0])
            self.assertEqual(wire.send(HEALTH).reply().status, 200)

    def test_web_pages_cannot_drive_the_control_endpoints(self) -> None:
        rows: List[Tuple[str, str, Tuple[str, ...]]] = [
            ("another origin", "localhost", ("Origin: https://evil.example",)),
            ("no origin to speak of", "localhost", ("Origin: null",)),
            ("another port", "localhost:1", ("Origin: http://localhost:2",)),
            ("cross-site", "localhost", ("Sec-Fetch-Site: cross-site",)),
            ("same-site", "localhost", ("Sec-Fetch-Site: same-site",)),
            ("DNS rebinding", "evil.example", ()),
            ("rebinding, same origin", "evil.example", ("Origin: http://evil.example",)),
        ]
        before = self.state()
        for name, host, fields in rows:
            for method, path in (("POST", "/__parlel/reset"), ("GET", "/__parlel/customers")):
                with self.subTest(name, path=path):
                    request = message(method, path, None, *fields)
                    reply = self.ask(request.replace(b"localhost", host.encode(), 1))
                    self.assert_json_error(reply, 403)
                    self.assertNotIn("access-control-allow-origin", reply.headers)
                    self.assertNotIn(b"free", reply.body)
        self.assert_unharmed(before)

    def test_programs_can_drive_the_control_endpoints(self) -> None:
        rows: List[Tuple[str, Tuple[str, ...]]] = [
            (f"127.0.0.1:{self.server.port}", ()),
            ("[::1]:4668", ()),
            ("customerio", ()),
            ("host.docker.internal:4668", ()),
            ("cio.default.svc.cluster.local", ()),
            ("localhost", ("Sec-Fetch-Mode: cors",)),  # Node's fetch
            ("localhost:1", ("Origin: http://localhost:1", "Sec-Fetch-Site: same-origin")),
            ("localhost", ("Sec-Fetch-Site: none",)),
        ]
        for host, fields in rows:
            with self.subTest(host, fields=fields):
                request = message("GET", "/__parlel/customers", None, *fields)
                reply = self.ask(request.replace(b"localhost", host.encode(), 1))
                self.assertEqual(reply.status, 200)
                self.assertNotIn("access-control-allow-origin", reply.headers)


class Connections(WireTestCase):
    """Many, idle, slow and impatient clients."""

    def test_idle_connections_cost_no_threads(self) -> None:
        threads = threading.active_count()
        wires = [self.dial() for _ in range(60)]
        for wire in wires:
            self.assertEqual(wire.send(HEALTH).reply().status, 200)
        self.assertEqual(wires[0].send(PEOPLE).reply().status, 200)
        self.assertTrue(eventually(lambda: threading.active_count() == threads))
        for wire in wires:
            self.assertEqual(wire.send(HEALTH).reply().status, 200)

    def test_where_sockets_are_scarce_the_longest_silent_gives_way(self) -> None:
        with mock.patch.object(customerio_fake, "MAX_OPEN", 5):
            wires = [self.dial() for _ in range(7)]
            for wire in wires:
                wire.send(b"" if wire in wires[:2] else HEALTH)
            self.assertEqual([wire.ended() for wire in wires[:2]], [True, True])
            self.assertEqual([wire.reply().status for wire in wires[2:]], [200] * 5)

    def test_a_burst_of_connections(self) -> None:
        wires = [self.dial() for _ in range(200)]
        for number, wire in enumerate(wires):
            wire.send(identify(who=str(number)))
        self.assertEqual({wire.reply().status for wire in wires}, {200})
        self.assertEqual(len(self.server.people), 200)

    def test_a_connection_changes_hands_again_and_again(self) -> None:
        wire = self.dial()
        zipped = identify(gzip.compress(ADA), "Content-Encoding: gzip")
        for _ in range(30):
            self.assertEqual(wire.send(zipped).reply().status, 200)
            self.assertEqual(wire.send(identify()).reply().status, 200)
            self.assertEqual(wire.send(PEOPLE + HEALTH).reply().json["count"], 1)
            self.assertEqual(wire.reply().json, {"status": "ok"})

    def test_clients_at_the_same_time(self) -> None:
        statuses: List[int] = []

        def work(name: str) -> None:
            with Wire(self.server.port) as wire:
                for number in range(20):
                    wire.send(identify(who=f"{name}-{number}") + PEOPLE)
                    statuses.extend((wire.reply().status, wire.reply().status))

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcdef"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(statuses, [200] * 240)
        self.assertEqual(len(self.server.people), 120)

    def test_slow_and_silent_clients_are_not_waited_for(self) -> None:
        brief = mock.patch.object(customerio_fake, "LINGER", 0.1)
        with brief, CustomerioServer(port=0, read_timeout=0.2, idle_timeout=0.3) as server:
            trust = ssl.create_default_context(cadata=customerio_fake.BUILT_IN_CA)
            idle, slow = self.dial(None, server.port), self.dial(None, server.port)
            idle_tls, slow_tls = self.dial(trust, server.port), self.dial(trust, server.port)
            handshake = self.dial(None, server.port).send(b"\x16\x03\x01\x02")
            for wire in (slow, slow_tls):
                wire.send(identify()[:-3])
            for wire in (slow, slow_tls):
                self.assert_json_error(wire.reply(), 408)
            for wire in (slow, slow_tls, idle, idle_tls, handshake):
                self.assertTrue(wire.ended())
            self.assertTrue(eventually(lambda: not waiting_threads()))
            self.assertEqual(server.people, [])
            self.assertEqual(self.dial(None, server.port).send(HEALTH).reply().status, 200)

    def test_drips_do_not_stretch_the_time(self) -> None:
        brief = mock.patch.object(customerio_fake, "LINGER", 0.1)
        with brief, CustomerioServer(port=0, read_timeout=0.3) as server:
            trust = ssl.create_default_context(cadata=customerio_fake.BUILT_IN_CA)
            wire = self.dial(trust, server.port).send(b"GET /health HTTP/1.1\r\nX: ")
            wire.socket.settimeout(0.02)
            answer, drips = b"", 0
            while not answer and drips < 300:
                drips += 1
                with contextlib.suppress(socket.timeout):
                    wire.send(b"y")
                    answer = wire.socket.recv(20)
            self.assertIn(b" 408 ", answer)

    def test_who_hangs_up_is_not_waited_for(self) -> None:
        server = self.server
        waits = json.dumps({"list": "events", "timeout": 60}).encode()
        server.fail("GET /v1/segments", latency=60)
        for request in (
            message("POST", "/__parlel/assert", waits),
            message("GET", "/v1/segments", None, "Authorization: Bearer key"),
        ):
            wire = self.dial().send(request)
            self.assertTrue(eventually(lambda: len(waiting_threads()) == 1))
            wire.socket.close()
            wire.file.close()
            self.assertTrue(eventually(lambda: not waiting_threads()))

    def test_who_waits_is_answered_when_the_server_stops(self) -> None:
        waits = json.dumps({"list": "events", "timeout": 60}).encode()
        with CustomerioServer(port=0) as server:
            wire = self.dial(None, server.port).send(message("POST", "/__parlel/assert", waits))
            self.assertTrue(eventually(lambda: server.fake.workspace.news.waiting == 1))
        self.assertEqual(wire.reply().status, 422)
        self.assertEqual(waiting_threads(), [])

    def test_who_waits_for_changes_holds_no_thread(self) -> None:
        asks = message("GET", "/__parlel/changes?since=0")
        number = self.ask(asks).json["number"]
        waits = asks.replace(b"since=0", b"since=%d&timeout=60" % number)
        wires = [self.dial().send(waits) for _ in range(20)]
        gone = self.dial().send(waits)
        self.assertTrue(eventually(lambda: parked(self.server) == 21))
        gone.close()
        self.assertEqual(waiting_threads(), [])
        self.assertTrue(eventually(lambda: parked(self.server) == 20))
        began = time.monotonic()
        self.ask(identify())
        for wire in wires:
            reply = wire.reply().json
            self.assertEqual(set(reply["changed"]), {"customers", "requests"})
            self.assertEqual(reply["number"], number + 1)
        self.assertLess(time.monotonic() - began, 1)
        self.assertEqual(wires[0].send(HEALTH).reply().status, 200)

    def test_a_wait_for_changes_ends_in_time_and_by_another_request(self) -> None:
        asks = message("GET", "/__parlel/changes?since=0")
        number = self.ask(asks).json["number"]
        for seconds in (b"0", b"0.1", b"1e-3"):
            wait = asks.replace(b"since=0", b"since=%d&timeout=%b" % (number, seconds))
            self.assertEqual(self.ask(wait).json, {"number": number, "changed": []})
        wait = asks.replace(b"since=0", b"since=%d&timeout=60" % number)
        wire = self.dial().send(wait)
        self.assertTrue(eventually(lambda: parked(self.server) == 1))
        wire.send(HEALTH)
        self.assertEqual(wire.reply().json["changed"], [])
        self.assertEqual(wire.reply().json, {"status": "ok"})

    def test_a_wait_for_changes_ends_with_the_server(self) -> None:
        with CustomerioServer(port=0) as server:
            wire = self.dial(None, server.port)
            number = wire.send(message("GET", "/__parlel/changes")).reply().json["number"]
            wire.send(message("GET", f"/__parlel/changes?since={number}&timeout=60"))
            self.assertTrue(eventually(lambda: parked(server) == 1))
        self.assertEqual(wire.reply().json["changed"], [])

    def test_overload_is_a_503(self) -> None:
        with CustomerioServer(port=0, max_threads=1) as server:
            busy, late = self.dial(None, server.port), self.dial(None, server.port)
            with server.fake.workspace.lock:  # a list can't be made meanwhile
                busy.send(PEOPLE)
                self.assertTrue(eventually(lambda: len(waiting_threads()) == 1))
                heavy = message("GET", "/v1/activities", None, "Authorization: Bearer key")
                reply = late.send(heavy).reply()
                self.assert_json_error(reply, 503)
                self.assertEqual(reply.headers["connection"], "close")
                self.assertIn("retry-after", reply.headers)
                self.assertTrue(late.ended())
                open = cast(Any, server._server)._open
                self.assertEqual(len(open), 1)  # until its client has closed it, too
                late.close()
                self.assertTrue(eventually(lambda: not open))
                self.assertEqual(self.dial(None, server.port).send(HEALTH).reply().status, 200)
                # A test can still look, and mend what it broke.
                spare = self.dial(None, server.port).send(PEOPLE)
            for wire in (busy, spare):
                self.assertEqual(wire.reply().status, 200)
                self.assertEqual(wire.send(PEOPLE).reply().status, 200)

    def test_silent_clients_give_way_when_threads_run_short(self) -> None:
        trust = ssl.create_default_context(cadata=customerio_fake.BUILT_IN_CA)
        silence = mock.patch.object(customerio_fake, "REST", -1)
        with silence, CustomerioServer(port=0, max_threads=2) as server:
            silent = [self.dial(trust, server.port)]
            self.assertEqual(silent[0].send(HEALTH).reply().status, 200)
            silent.append(self.dial(None, server.port).send(b"\x16"))
            self.assertTrue(eventually(lambda: len(waiting_threads()) == 2))
            heavy = message("GET", "/v1/activities", None, "Authorization: Bearer key")
            for _ in range(2):
                reply = self.dial(None, server.port).send(heavy).reply()
                self.assertEqual(reply.status, 200)
            self.assertTrue(silent[0].ended())  # the other need not go

    def test_when_the_loop_looks_and_who_has_been_silent(self) -> None:
        server = customerio_fake.Server(Settings(port=0), self.server.fake)
        self.addCleanup(server.server_close)
        looks: List[Optional[float]] = []

        def turn(timeout: Optional[float]) -> bool:
            looks.append(timeout)
            server._stopping = True
            return True

        self.addCleanup(setattr, server.fake, "discard", server.fake.discard)
        with mock.patch.object(server, "_turn", turn), socket.socket() as sock:
            for silent, resting in ((0.9, 0), (1.1, 1)):
                since = server._now - silent
                connection = customerio_fake.Connection(sock, "", 1, since)
                with mock.patch.dict(server._waiting, {threading.current_thread(): connection}):
                    self.assertEqual(len(server._resting()), resting, silent)
            server.serve_forever()
            rows: List[Tuple[Dict[Any, Any], Dict[Any, Any]]] = [
                (server._open, {0: connection}), (server._parked, {connection: None}),
            ]  # fmt: skip
            for held, what in rows:
                with mock.patch.dict(held, what):
                    server._stopping = False
                    server.serve_forever()
        # Nobody is there; each second if anybody is, more often if they wait; and at the end.
        self.assertEqual(looks, [None, 0, 1.0, 0, 0.25, 0])

    def serving(self, **settings: Any) -> Tuple[Any, Callable[[float], Tuple[Any, socket.socket]]]:
        """A server whose loop is turned by hand, and what gives it a client silent for so long."""
        server = customerio_fake.Server(Settings(port=0, **settings), self.server.fake)
        self.addCleanup(server.server_close)

        def connect(silent: float) -> Tuple[Any, socket.socket]:
            ours, theirs = socket.socketpair()
            self.addCleanup(theirs.close)
            theirs.setblocking(False)
            connection = customerio_fake.Connection(ours, "x", 1000, server._now - silent)
            server._adopt(connection)
            return connection, theirs

        return server, connect

    def test_who_is_silent_for_too_long_is_ended(self) -> None:
        server, connect = self.serving(idle_timeout=9.0, read_timeout=5.0)
        rows = [("idle", 9.0), ("asking", 5.0), ("draining", 2.0), ("parked", math.inf)]
        for state, limit in rows:
            for silent in (1.0, min(limit, 99) - 0.1, min(limit, 99) + 0.1):
                connection, client = connect(silent)
                connection.draining = state == "draining"
                connection.framer.feed(b"GET / HT" if state == "asking" else b"")
                server._parked.update({connection: None} if state == "parked" else {})
                server._sweep(server._now)
                with self.subTest(state, silent=silent):
                    said: Optional[bytes] = None
                    with contextlib.suppress(BlockingIOError):
                        said = client.recv(12)
                    last = b"HTTP/1.1 408" if state == "asking" else b""
                    self.assertEqual(said, last if silent > limit else None)
                    self.assertEqual(
                        connection.draining, state == "draining" or said == last != b""
                    )

    def test_silence_begins_with_an_answer_and_with_a_request(self) -> None:
        server, connect = self.serving()
        for sent, begins in ((HEALTH, True), (HEALTH[:9], True), (b"", False)):
            connection, client = connect(60.0)
            client.send(sent)
            before = connection.since
            server._turn(0)
            self.assertEqual(connection.since, server._now if begins else before)

    def test_a_fault_of_ours_costs_one_connection_and_not_the_loop(self) -> None:
        server, connect = self.serving()
        lost, left = connect(0), connect(0)
        lost[1].send(HEALTH)
        broken = mock.patch.object(customerio_fake.Framer, "next", side_effect=RuntimeError("x"))
        with broken, self.assertLogs("customerio_fake", "ERROR") as logs:
            server._turn(PATIENCE)
            server._lose(-1, RuntimeError("of none"))
        self.assertEqual(
            [text.partition("lost a ")[2] for text in logs.output],
            ["connection: RuntimeError('x')", "connection: RuntimeError('of none')"],
        )
        self.assertEqual(lost[1].recv(1), b"")
        self.assertEqual(list(server._open.values()), [left[0]])

    def test_running_out_of_file_descriptors(self) -> None:
        fake = self.server.fake
        server = customerio_fake.Server(fake.settings.__class__(port=0), fake)
        self.addCleanup(server.server_close)
        port = server.server_port
        first = self.dial(None, port)
        server._turn(PATIENCE)
        # In one turn: no descriptor for the newcomer, so the oldest is closed, which has spoken.
        newcomer = self.dial(None, port).send(HEALTH)
        first.send(HEALTH)
        with mock.patch.object(server, "socket") as out_of_them:
            out_of_them.accept.side_effect = OSError(errno.EMFILE, "Too many open files")
            server._turn(PATIENCE)
        while server._turn(0):
            pass
        self.assertEqual(newcomer.reply().json, {"status": "ok"})


class InAThread(unittest.TestCase):
    """What a thread does with the connection that it was given."""

    def setUp(self) -> None:
        ours, self.client = socket.socketpair()
        for sock in (ours, self.client):
            self.addCleanup(sock.close)
        self.handler: Any = object.__new__(customerio_fake.WaitingHandler)
        self.handler.connection, self.handler.server = ours, mock.Mock()
        self.handler.server.settings = Settings(read_timeout=7.0, idle_timeout=8.0)
        self.handler.request = customerio_fake.Connection(ours, "x", 1000, time.monotonic())

    def test_a_client_is_there_until_it_ends(self) -> None:
        def seen() -> Tuple[bool, Any]:
            return self.handler._awaited(), self.handler.connection.gettimeout()

        self.assertEqual(seen(), (True, 7))
        self.client.send(b"x")
        self.assertEqual(seen(), (True, 7))
        self.assertEqual(self.handler.connection.recv(9), b"x", "it is left there")
        self.client.close()
        self.assertEqual(seen(), (False, 7))
        self.handler.request.framer.scheme = "https"
        self.assertTrue(seen()[0], "nobody knows")

    def test_news_are_waited_for_while_somebody_is_there(self) -> None:
        respond, wait = self.handler.server.respond, self.handler.server.fake.ending.wait
        respond.side_effect = [b"", b"", b"news"]
        self.assertEqual(self.handler._respond(mock.Mock()), b"news")
        self.assertEqual(wait.call_args_list, [mock.call(customerio_fake.LOOK)] * 2)
        self.client.close()
        respond.side_effect = [b""]
        with self.assertRaises(ConnectionAbortedError):
            self.handler._respond(mock.Mock())

    def test_a_trickle_pauses_between_its_pieces(self) -> None:
        wait = self.handler.server.fake.ending.wait
        for data, rate, pauses in ((b"0123456789", 40, [0.05] * 4), (b"012", 1, [1.0] * 2)):
            wait.reset_mock()
            self.handler._trickle(data, rate)
            self.assertEqual(self.client.recv(99), data)
            self.assertEqual([call.args[0] for call in wait.call_args_list], pauses)

    def test_an_answer_is_broken_off_as_the_fault_says(self) -> None:
        rows = [("hang", b"", None), ("empty", b"", 2.0), ("truncate", b"a\r\n\r\n12", 2.0)]
        for effect, sent, timeout in rows:
            self.setUp()
            self.client.shutdown(socket.SHUT_WR)  # so that nothing more is waited for
            self.handler.request.framer.feed(b"GET")
            fault = customerio_fake.Fault(1, {effect: 2}, frozenset())
            self.handler._break_off(fault, b"a\r\n\r\n1234")
            self.assertEqual(self.handler.connection.gettimeout(), timeout)
            self.assertTrue(self.handler.broken and self.handler.request.framer.idle)
            self.client.setblocking(False)
            if effect != "hang":
                self.assertEqual(b"".join(iter(lambda: self.client.recv(9), b"")), sent)

    def test_how_long_bytes_are_waited_for(self) -> None:
        framer, ours = self.handler.request.framer, self.handler.connection
        self.client.send(b"GET")
        framer.feed(self.handler._receive())
        self.assertEqual((framer.buffer, ours.gettimeout()), (b"GET", 8))
        self.handler.request.since = time.monotonic() - 6.99
        for _ in range(2):  # in time; and too late
            with self.assertRaisesRegex(ApiError, "did not arrive in time"):
                self.handler._receive()
        self.assertLess(ours.gettimeout(), 0.1)


class Tls(WireTestCase):
    """https on the same port."""

    def setUp(self) -> None:
        super().setUp()
        self.trust = ssl.create_default_context(cadata=customerio_fake.BUILT_IN_CA)

    def test_a_client_without_trust_is_told_what_to_trust(self) -> None:
        with self.assertLogs("customerio_fake", "WARNING") as logs:
            with self.assertRaises(ssl.SSLCertVerificationError):
                self.dial(ssl.create_default_context())
            self.assertTrue(eventually(lambda: bool(logs.output)))
        self.assertIn("/__parlel/ca.pem", logs.output[0])

    def test_it_needs_no_files_in_memory(self) -> None:
        rows: List[Tuple[str, Callable[[str], int]]] = [
            ("no such call", mock.Mock(side_effect=AttributeError)),
            ("not allowed", mock.Mock(side_effect=PermissionError)),
            ("no /proc: nobody finds it there", lambda _: os.open(os.devnull, os.O_WRONLY)),
        ]
        for name, call in rows:
            with self.subTest(name), mock.patch.object(os, "memfd_create", call, create=True):
                customerio_fake.make_tls_context(Settings())

    def test_the_end_of_a_connection_is_said(self) -> None:
        raw = socket.create_connection(("127.0.0.1", self.server.port), PATIENCE)
        tls = self.trust.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)
        with tls:
            tls.sendall(message("GET", "/health", None, "Connection: close"))
            while tls.recv(65536):  # SSLEOFError if nothing is said
                pass

    def test_https_answers_as_http_does(self) -> None:
        rows = [
            ("light", "GET", (HEALTH,)),
            ("heavy", "GET", (PEOPLE,)),
            ("head", "HEAD", (message("HEAD", "/__parlel/customers"),)),
            ("write", "PUT", (identify(),)),
            ("in pieces", "PUT", (identify()[:30], identify()[30:90], identify()[90:])),
            ("chunked", "PUT", (identify(chunks(ADA), CHUNKED),)),
            ("gzip", "PUT", (identify(gzip.compress(ADA), "Content-Encoding: gzip"),)),
            ("large", "PUT", (identify(b'{"a":"%b"}' % (b" " * 300_000)),)),
            ("not found", "GET", (message("GET", "/nowhere"),)),
            ("not allowed", "PUT", (message("PUT", "/health"),)),
            ("unauthorized", "PUT", (identify(ADA, "Authorization: x"),)),
            ("not JSON", "PUT", (identify(b"{"),)),
            ("malformed", "GET", (b"GET  /\r\n\r\n",)),
            ("old", "GET", (message("GET", "/health", None, version="1.0"),)),
        ]
        for name, method, pieces in rows:
            with self.subTest(name):
                replies, states = [], []
                for tls in (None, self.trust):
                    self.server.reset()
                    wire = self.dial(tls).send(*pieces)
                    reply = wire.reply(method)
                    reply.headers.pop("date")
                    replies.append(reply)
                    states.append([person["attributes"] for person in self.server.people])
                    if "connection" in reply.headers:
                        self.assertTrue(wire.ended())
                    else:
                        self.assertEqual(wire.send(HEALTH).reply().status, 200)
                self.assertEqual(*replies)
                self.assertEqual(*states)

    def test_pipelining_and_continue(self) -> None:
        wire = self.dial(self.trust).send(identify() + PEOPLE + HEALTH)
        self.assertEqual([wire.reply().status for _ in range(3)], [200] * 3)
        wire.send(identify(ADA, "Expect: 100-continue")[: -len(ADA)])
        self.assertEqual(wire.reply().status, 100)
        self.assertEqual(wire.send(ADA).reply().status, 200)

    def test_the_certificate_handed_out_is_the_one_to_trust(self) -> None:
        pem = self.ask(message("GET", "/__parlel/ca.pem")).body.decode()
        trust = ssl.create_default_context(cadata=pem)
        for name in ("localhost", "127.0.0.1", "customerio", "host.docker.internal"):
            with self.subTest(name):
                wire = self.dial(trust, name=name)
                self.assertEqual(wire.send(HEALTH).reply().status, 200)

    def test_other_names_and_strangers_are_refused_by_the_client(self) -> None:
        for trust, name in ((self.trust, "track.customer.io"), (None, "localhost")):
            context = trust or ssl.create_default_context()
            with self.subTest(name), self.assertRaises(ssl.SSLCertVerificationError):
                self.dial(context, name=name)
        self.assert_unharmed(self.state())

    def test_tls_does_not_begin_in_the_middle(self) -> None:
        wire = self.dial().send(HEALTH)
        self.assertEqual(wire.reply().status, 200)
        self.assert_json_error(wire.send(b"\x16\x03\x01").reply(), 400)

    def test_what_only_looks_like_tls(self) -> None:
        before = self.state()
        for start in (b"\x16", b"\x16\x03\x01", b"\x16\x03\x01\x00\x05hello", b"\x16" + HEALTH):
            with self.subTest(start):
                wire = self.dial().send(start).end()
                with contextlib.suppress(ConnectionError):
                    self.assertIn(wire.socket.recv(99)[:1], (b"", b"\x15"))  # at most an alert
                self.dial().send(start).reset()
        self.assert_unharmed(before)
        self.assertTrue(eventually(lambda: not waiting_threads()))

    def test_a_certificate_of_your_own(self) -> None:
        parts = [("CERTIFICATE", "certificate"), ("PRIVATE KEY", "key"), ("CERTIFICATE", "ca")]
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for label, name in parts[:2]:
                paths.append(os.path.join(folder, name))
                with open(paths[-1], "w", encoding="ascii") as file:
                    file.write(customerio_fake._pem(label, name))
            with CustomerioServer(port=0, cert=paths[0], key=paths[1]) as server:
                secure = self.dial(self.trust, server.port)
                handed_out = secure.send(message("GET", "/__parlel/ca.pem")).reply().body
                with open(paths[0], "rb") as file:
                    self.assertEqual(handed_out, file.read())

    def test_a_certificate_that_is_none_is_found_out_at_the_start(self) -> None:
        for cert, key in (("nowhere.pem", "nowhere.key"), (__file__, __file__)):
            with self.subTest(cert):
                server = CustomerioServer(port=0, cert=cert, key=key)
                with self.assertRaisesRegex(OSError, re.escape(cert)):
                    server.start()
                server.stop()


class WireFaults(WireTestCase):
    """What goes wrong on real sockets, plain and TLS."""

    def each_way(self) -> Iterator[Optional[ssl.SSLContext]]:
        """Plain and TLS, each with an empty server."""
        for tls in (None, ssl.create_default_context(cadata=customerio_fake.BUILT_IN_CA)):
            self.server.reset()
            yield tls

    def people(self) -> int:
        return len(self.server.people)

    def test_a_reset(self) -> None:
        for tls in self.each_way():
            for when, people in (("before", 0), ("after", 1)):
                self.server.fail(reset=True, when=when, times=1)
                wire = self.dial(tls).send(identify())
                with self.assertRaises(ConnectionResetError):  # which SSLSocket would hide
                    while socket.socket.recv(wire.socket, 65536):
                        pass
                self.assertEqual(self.people(), people)

    def test_an_empty_answer(self) -> None:
        for tls in self.each_way():
            for when, people in (("before", 0), ("after", 1)):
                self.server.fail(empty=True, when=when, times=1)
                self.assertEqual(self.cut_off(self.dial(tls).send(identify())), b"")
                self.assertEqual(self.people(), people)

    def cut_off(self, wire: Wire) -> bytes:
        """All that comes until the end."""
        data = b""
        with contextlib.suppress(ssl.SSLEOFError):
            for piece in iter(lambda: wire.socket.recv(65536), b""):
                data += piece
        return data

    def test_a_truncated_answer(self) -> None:
        for tls in self.each_way():
            self.server.fail(truncate=1, times=1)
            head, _, body = self.cut_off(self.dial(tls).send(identify())).partition(b"\r\n\r\n")
            self.assertIn(b"Content-Length: 3\r\n", head + b"\r\n")
            self.assertEqual((body, self.people()), (b"{", 1))

    def test_a_trickle_comes_whole_and_the_connection_goes_on(self) -> None:
        for tls in self.each_way():
            self.server.fail(trickle=2000, times=1)
            begun = time.monotonic()
            wire = self.dial(tls).send(identify())
            reply = wire.reply()
            self.assertEqual((reply.status, reply.body), (200, b"{}\n"))
            self.assertGreater(time.monotonic() - begun, 0.1)
            self.assertEqual(wire.send(identify()).reply().status, 200)

    def test_an_error_keeps_the_connection(self) -> None:
        for tls in self.each_way():
            self.server.fail("PUT /api/v1/customers/{identifier}", status=503, times=2)
            wire = self.dial(tls).send(identify() * 3)
            self.assertEqual([wire.reply().status for _ in range(3)], [503, 503, 200])

    def test_a_hang_lasts_until_the_client_leaves(self) -> None:
        for tls in self.each_way():
            self.server.fail(hang=True, when="after", times=1)
            wire = self.dial(tls).send(identify())
            wire.socket.settimeout(0.1)
            with self.assertRaises(socket.timeout):
                wire.socket.recv(1)
            self.assertEqual((self.people(), len(waiting_threads())), (1, 1))
            wire.close()
            self.assertTrue(eventually(lambda: not waiting_threads()))

    def test_others_are_answered_meanwhile(self) -> None:
        self.server.fail("PUT ", hang=True)
        self.server.fail("POST ", latency=600)
        self.dial().send(identify())
        wire = self.dial().send(message("POST", "/api/v1/customers/1/events", b'{"name":"x"}'))
        self.assertEqual(self.ask(message("DELETE", "/api/v1/customers/1")).status, 200)
        self.assertEqual(self.ask(PEOPLE).status, 200)
        self.server.mend()
        self.assertEqual(self.ask(identify()).status, 200)
        wire.close()
        self.server.fake.ending.set()  # the latency need not be sat out
        self.addCleanup(self.server.fake.ending.clear)
        self.assertTrue(eventually(lambda: len(waiting_threads()) < 2))

    def test_stop_ends_all_waits_at_once(self) -> None:
        trust = ssl.create_default_context(cadata=customerio_fake.BUILT_IN_CA)
        effects: List[Dict[str, Any]] = [
            {"hang": True}, {"latency": 3600}, {"trickle": 1}, {"latency": 3600, "hang": True},
        ]  # fmt: skip
        with mock.patch.object(customerio_fake.Server, "grace", PATIENCE):
            server = CustomerioServer(port=0).start()
            for tls in (None, trust):
                for effect in effects:
                    server.fail(times=1, **effect)
                    self.dial(tls, server.port).send(identify())
                    armed = server.fake.faults
                    self.assertTrue(eventually(lambda w=armed: not w.armed))  # type: ignore[misc]
            begun = time.monotonic()
            server.stop()
            self.assertLess(time.monotonic() - begun, PATIENCE / 2)
        self.assertEqual(waiting_threads(), [])

    def test_a_slow_answer_after_a_stop_still_arrives(self) -> None:
        with CustomerioServer(port=0) as server:
            server.fail(latency=3600, times=1)
            wire = self.dial(None, server.port).send(identify())
            self.assertTrue(eventually(lambda: not server.fake.faults.armed))
        self.assertEqual((wire.reply().status, len(server.people)), (200, 1))

    def test_from_python(self) -> None:
        cio = self.server
        first = cio.fail("PUT ", person="ada", status=503, times=1, retry_after=1)
        second = cio.fail(event="signup", hang=True)
        self.assertEqual([row["id"] for row in cio.faults], [first, second])
        self.assertEqual(self.ask(identify()).headers["retry-after"], "1")
        self.assertEqual([row["fired"] for row in cio.faults], [1, 0])
        cio.mend(second)
        self.assertEqual([row["id"] for row in cio.faults], [first])
        cio.fail(event="signup", hang=True)
        cio.mend()
        self.assertEqual(cio.faults, [])
        with self.assertRaisesRegex(ApiError, "statu is no field"):
            cio.fail(statu=503)

    def test_many_clients_share_one_count(self) -> None:
        self.server.fail(status=503, times=50)
        statuses: List[int] = []

        def work() -> None:
            with Wire(self.server.port) as wire:
                for _ in range(25):
                    statuses.append(wire.send(identify()).reply().status)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual((statuses.count(503), statuses.count(200)), (50, 150))
        self.assertEqual(self.server.faults[0]["fired"], 50)


class WorkspacesUnderLoad(unittest.TestCase):
    """Forty test workers at one server."""

    def test_forty_workers_share_a_server_without_seeing_each_other(self) -> None:
        with CustomerioServer(port=0) as cio, ThreadPoolExecutor(40) as pool:
            worlds = [cio.workspace(f"worker-{n}") for n in range(40)]
            for world, found in zip(worlds, pool.map(self.work, worlds)):
                self.assertEqual(found, ({world.name}, 25), world.name)
            self.assertEqual(cio.people, [])
            worlds[0].close()
            self.assertEqual(len(cio.fake.others), 39)

    def work(self, world: Any) -> Tuple[Any, int]:
        """Identify 25 people and have a broken send; whose names are seen, and how many."""
        names = world.environment
        pair = f"{names['CUSTOMERIO_SITE_ID']}:{names['CUSTOMERIO_API_KEY']}"
        basic = "Basic " + base64.b64encode(pair.encode()).decode()
        address = urlsplit(world.url)
        client = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        with contextlib.closing(client):
            for n in range(25):
                body = json.dumps({"worker": world.name})
                headers = {"Authorization": basic}
                client.request("PUT", f"/api/v1/customers/{n}", body, headers)
                client.getresponse().read()
        return {row["attributes"]["worker"] for row in world.people}, len(world.people)


class Hurry(WireTestCase):
    """The loop does what is quick; a thread does the rest, and only who looks waits for it."""

    LONG = "{% for i in (1..2000) %}{{ i }}{% endfor %}"

    def setUp(self) -> None:
        super().setUp()
        self.agenda = self.server.fake.workspace.agenda

    def post(self, path: str, body: Any, method: str = "POST") -> bytes:
        fields = ["Authorization: Bearer key"] if path.startswith("/v1/") else []
        raw = None if body is None else json.dumps(body).encode()
        return message(method, path, raw, *fields)

    def email(self, body: str, **more: Any) -> bytes:
        mail = {"to": "a@example.com", "from": "b@example.com", "subject": "S", "body": body}
        return self.post("/v1/send/email", {**mail, "identifiers": {"id": "ada"}, **more})

    def renderings(self, body: str) -> List[bool]:
        """Send an email; of each rendering that came to an end, whether the loop did it."""
        where: List[bool] = []
        render = customerio_fake.render_mail

        def watched(*arguments: Any) -> Any:
            rendered = render(*arguments)
            where.append(threading.get_ident() in customerio_fake.HURRIED)
            return rendered

        with mock.patch.object(customerio_fake, "render_mail", watched):
            self.assertEqual(self.ask(self.email(body)).status, 200)
        return where

    def test_a_long_rendering_is_for_a_thread_and_done_when_it_is_answered(self) -> None:
        many = "{{ 1 }}" * customerio_fake.MAX_BRIEF_TAGS
        large = "{{ 1 }}" + "x" * customerio_fake.MAX_BRIEF_TEXT
        for body, loop in ((self.LONG, False), (many, False), (large, False), ("{{ 1 }}", True)):
            with self.subTest(body[:20]):
                self.assertEqual(self.renderings(body), [loop])
                self.assertEqual(self.server.deliveries[-1]["state"], "delivered")
        self.assertEqual(len(self.server.deliveries), 4)
        self.assertEqual([row["status"] for row in self.server.requests], [200] * 4)

    def test_a_message_that_is_too_much_fails_in_its_thread(self) -> None:
        self.ask(self.email("{% for i in (1..60000) %}{{ i }}{% endfor %}" * 2))
        (delivery,) = self.server.deliveries
        self.assertEqual(delivery["state"], "failed")
        self.assertIn("iterations", str(delivery["failure_message"]))

    def test_a_template_is_rendered_without_the_workspaces_lock(self) -> None:
        free: List[bool] = []
        lock, render = self.server.fake.workspace.lock, customerio_fake.render_mail

        def look() -> None:
            free.append(lock.acquire(timeout=5))
            if free[-1]:
                lock.release()

        def watched(*arguments: Any) -> Any:
            other = threading.Thread(target=look)
            other.start()
            other.join()
            return render(*arguments)

        clock = self.server.fake.workspace.clock
        clock.freeze()
        self.ask(self.email("Hi"))
        self.ask(self.email("Hi", send_at=int(clock.now()) + 60))
        with mock.patch.object(customerio_fake, "render_mail", watched):
            self.ask(self.email("Hi"))
            self.agenda.advance(60)
        self.assertEqual(free, [True, True])

    def test_due_work_that_lasts_holds_up_only_who_looks(self) -> None:
        begun, end, done = threading.Event(), threading.Event(), []

        def last(workspace: Any) -> None:
            if threading.get_ident() in customerio_fake.HURRIED:
                raise customerio_fake.TakesTime
            begun.set()
            done.append(end.wait(10))

        def lay_up() -> None:
            self.agenda.clock.at(0, customerio_fake.Chore("last", ()))

        self.addCleanup(end.set)
        with mock.patch.dict(customerio_fake.CHORES, last=last), self.dial() as looker:
            lay_up()
            self.assertEqual(self.ask(HEALTH).status, 200)
            self.assertTrue(begun.wait(10))
            lay_up()
            event = self.post("/api/v1/customers/ada/events", {"name": "e"})
            self.assertEqual(self.ask(event).status, 200)
            looker.send(self.post("/__parlel/deliveries", None, "GET"))
            self.assertEqual(self.ask(event).status, 200)
            self.assertEqual(done, [])
            end.set()
            self.assertEqual(looker.reply().status, 200)
            self.assertEqual(done, [True, True])

    def test_what_is_due_at_once_is_done_in_its_order(self) -> None:
        clock, seen = self.agenda.clock, []
        with mock.patch.dict(customerio_fake.CHORES, look=lambda w, n: seen.append(n)):
            clock.freeze()
            for number in range(500):
                clock.at(clock.now() - 500 + number, customerio_fake.Chore("look", (number,)))
            people = self.post("/__parlel/customers", None, "GET")
            with ThreadPoolExecutor(4) as pool:
                self.assertEqual([r.status for r in pool.map(self.ask, [people] * 4)], [200] * 4)
        self.assertEqual(seen, [*range(500)])

    def test_a_snapshot_waits_for_what_is_being_done(self) -> None:
        begun, end = threading.Event(), threading.Event()

        def last(workspace: Any) -> None:
            begun.set()
            end.wait(10)
            workspace.people.identify(("id", "late"), {})

        self.addCleanup(end.set)
        with mock.patch.dict(customerio_fake.CHORES, last=last), self.dial() as looker:
            self.agenda.clock.at(0, customerio_fake.Chore("last", ()))
            worker = threading.Thread(target=self.agenda.tick)
            worker.start()
            self.assertTrue(begun.wait(10))
            looker.send(self.post("/__parlel/state", None, "GET"))
            self.assertEqual(self.ask(HEALTH).status, 200)
            end.set()
            worker.join()
            self.assertEqual([row["id"] for row in looker.reply().json["people"]], ["late"])


# ======================================================================================
# ==== §30 Beside the real service
# ======================================================================================


class Pulls(unittest.TestCase):
    """A workspace elsewhere becomes a seed that answers the same."""

    FOLDER = "11111111-0000-4000-8000-000000000000"
    PRO: ClassVar[Any] = {"attribute": {"field": "plan", "operator": "eq", "value": "pro"}}
    SEED: ClassVar[Any] = {
        "workspaces": [{"id": 7, "name": "Shop"}],
        "object_types": [{"id": "1", "name": "Companies", "slug": "companies"}],
        "topics": [{"id": 1, "identifier": "topic_1", "name": "News", "description": ""}],
        "sender_identities": [
            {"id": n, "name": f"S{n}", "email": f"s{n}@example.com"} for n in range(1, 130)
        ],
        "snippets": [{"name": "foot", "value": "Adiós", "updated_at": 1}],
        "collections": [{"id": 1, "name": "fruit", "content": [{"a": 1}, {"a": 2}]}],
        "customers": [{"id": "ada", "email": "ada@example.com", "attributes": {"plan": "pro"}}],
        "segments": [
            {"id": 1, "name": "Picked", "ids": ["ada"]},
            {"id": 2, "name": "Pro", "conditions": PRO},
        ],
        "campaigns": [
            {"id": 1, "name": "Welcome", "actions": [
                {"id": n, "type": "email", "subject": f"Hi {n}"} for n in range(1, 24)]},
        ],
        "newsletters": [
            {"id": 1, "name": "May", "contents": [{"id": 1, "subject": "A"}, {"id": 2}],
             "test_groups": [{"id": 1, "name": "A", "content_ids": [1]}]},
        ],
        "transactional": [{"id": 1, "name": "Receipt", "contents": [{"id": 1, "language": "fr"}]}],
        "reporting_webhooks": [
            {"id": 1, "name": "w", "endpoint": "http://u:secret@a.test/", "events": ["email_sent"]}
        ],
        "design_studio_folders": [
            {"id": FOLDER, "name": "1"},
            {"id": FOLDER.replace("1", "2"), "name": "2", "parent_folder_id": FOLDER},
        ],
        "design_studio_components": [
            {"name": "Button", "tag": "my-button", "content": "<b></b>", "parent_folder_id": FOLDER}
        ],
        "design_studio_emails": [
            {"name": "May", "content": {"html": "<p>Hi</p>", "subject": "Hi"},
             "email_translations": [{"language": "fr", "content": {"html": "<p>Bonjour</p>"}}]}
        ],
    }  # fmt: skip
    #: What a seed can't make the same: when who was written, what was left out, signed links.
    UNLIKE = ("activities", "/token", "reporting_webhooks", "/segments")

    def setUp(self) -> None:
        self.source = CustomerioServer(port=0, seed=self.SEED, rate_limits=True).start()
        self.addCleanup(self.source.stop)
        self.source.clock.freeze()
        self.said: List[str] = []
        self.api = customerio_fake.Elsewhere(
            self.source.url, "key", self.said.append, self.source.clock.advance
        )

    def answers(self, fake: Fake) -> Dict[str, Any]:
        """What the read operations of the App API say of what there is, by path."""
        names, found = ["ada", "1", "2", "fr", "topic_1"], {}
        for shelf in ("ds_emails", "ds_folders", "ds_components"):
            names += fake.workspace.shelves[shelf].rows
        for operation in customerio_fake.ROUTES:
            if (operation.method, operation.api.name) != ("GET", "app"):
                continue
            places = re.findall(r"\{\w+\}", operation.path)
            for values in itertools.product(names, repeat=len(places)):
                path = functools.reduce(
                    lambda path, pair: path.replace(*pair, 1), zip(places, values), operation.path
                )
                fake.workspace.calls.clear()  # of its rate limits
                response = fake.handle(Request("GET", path, {"authorization": "Bearer key"}))
                if response.status == 200 and not any(part in path for part in self.UNLIKE):
                    found[path] = customerio_fake.body_as_read(response.body)
        return found

    def test_what_is_pulled_reads_the_same(self) -> None:
        self.source.fail(times=3, status=503)
        self.source.fail(after=20, times=1, reset=True)
        seed: Dict[str, Any] = {}
        notes = customerio_fake.pull(self.api, seed, people=["ada"])
        named = [note.partition(":")[0] for note in notes]
        self.assertEqual(named, ["segments 2 (Pro)", "campaigns 1 (Welcome)"])
        for hindrance in ("503", "429", "no answer"):
            self.assertTrue(any(hindrance in line for line in self.said), self.said)
        self.assertNotIn("secret", json.dumps(seed))
        self.source.mend()
        second = Fake(Settings(), seed)
        second.workspace.clock.freeze(self.source.clock.now)
        theirs = self.answers(self.source.fake)
        self.assertGreater(len(theirs), 100)
        mine = self.answers(second)
        self.assertEqual(
            {path for path in {*mine, *theirs} if mine.get(path) != theirs.get(path)}, set()
        )

    def test_one_that_broke_off_goes_on_where_it_stopped(self) -> None:
        rule = self.source.fail(path="/v1/newsletters", status=403)
        kept: List[Any] = []
        seed: Dict[str, Any] = {}
        with self.assertRaisesRegex(customerio_fake.Unreadable, "GET /v1/newsletters at .*403"):
            customerio_fake.pull(self.api, seed, keep=kept.append)
        self.assertEqual(len(seed["campaigns"][0]["actions"]), 23)
        self.assertIs(kept[-1], seed)
        self.source.mend(rule)
        self.source.fake.journal.forget()
        customerio_fake.pull(self.api, seed)
        asked = [row["path"] for row in self.source.requests]
        self.assertIn("/v1/campaigns", asked)
        self.assertNotIn("/v1/campaigns/1/actions", asked)
        self.assertEqual(len(seed["newsletters"]), 1)

    def test_nothing_is_asked_but_reads(self) -> None:
        customerio_fake.pull(self.api, {}, people=["ada"])
        self.assertEqual({row["method"] for row in self.source.requests}, {"GET"})

    def test_who_is_not_there(self) -> None:
        with self.assertRaisesRegex(customerio_fake.Unreadable, "no person 'eve'"):
            customerio_fake.pull(self.api, {}, kinds=[], people=["eve"])

    def test_the_command_line(self) -> None:
        run = functools.partial(run_command, "pull", "--app-key", "key", "--from", self.source.url)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "seed.json")
            code, out, err = run("--only", "snippets", "--only", "segments", "--into", path)
            self.assertEqual((code, out), (0, ""), err)
            with open(path, encoding="utf-8") as file:
                text = file.read()
        self.assertEqual(list(json.loads(text)), ["snippets", "segments"])
        self.assertIn("add them by hand:\n  segments 2 (Pro): its conditions", err)
        code, out, _ = run("--only", "snippets")
        self.assertIn('\n      "value": "Adiós"', out)
        self.assertEqual(text[: len(out) - 3], out[:-3])  # up to where it ends

    def test_what_is_wrong_is_one_line(self) -> None:
        rows = [
            (["--only", "snipets", "--app-key", "k"], "no kind 'snipets' to pull; did you mean"),
            (["--region", "moon"], "invalid choice: 'moon'"),
            ([], "--app-key KEY or $CUSTOMERIO_APP_KEY"),
            (["--form", "x"], "unrecognized arguments: --form"),
        ]
        for words, text in rows:
            code, out, err = run_command("pull", *words)
            self.assertEqual((code, out), (2, ""), words)
            self.assertIn(text, err)
            self.assertEqual(err.count("\n"), 1, err)


# ======================================================================================
# ==== §31 Public face
# ======================================================================================


class Prepared:
    """Another mix-in, which prepares something, too."""

    prepared: Tuple[str, ...] = ()

    @classmethod
    def setUpClass(cls) -> None:
        cls.prepared = ("class",)

    def setUp(self) -> None:
        self.prepared = (*self.prepared, "test")


class MixIn(customerio_fake.CustomerioTests, Prepared, unittest.TestCase):
    """The mix-in for unittest, used as its docstring says."""

    seed = {"customers": [{"id": "ada"}]}

    def test_other_mix_ins_are_asked_to_prepare_as_well(self) -> None:
        self.assertEqual(self.prepared, ("class", "test"))
        self.assertEqual(self.cio.settings.port, 0)  # so that several can run side by side

    def track(self, name: str) -> None:
        """What the code under test might do."""
        url = os.environ["CUSTOMERIO_TRACK_URL"] + "/customers/ada/events"
        pair = os.environ["CUSTOMERIO_SITE_ID"] + ":" + os.environ["CUSTOMERIO_API_KEY"]
        key = "Basic " + base64.b64encode(pair.encode()).decode()
        request = urllib.request.Request(url, b'{"name":"%b"}' % name.encode())
        request.add_header("Authorization", key)
        urllib.request.urlopen(request, timeout=10).close()

    def test_one_sees_its_own_events(self) -> None:
        self.track("one")
        self.cio.assert_event("one", customer_id="ada")
        self.assertEqual(len(self.cio.events), 1)

    def test_two_does_not_see_those_of_one(self) -> None:
        self.track("two")
        self.assertEqual([event["name"] for event in self.cio.events], ["two"])


class Fixtures(unittest.TestCase):
    """What a test for pytest may ask for."""

    def test_each_test_finds_a_server_of_its_own_in_the_environment(self) -> None:
        found: dict[str, str] = {}
        seeds = (None, {"customers": [{"id": "ada"}]}, None)
        serving = contextlib.contextmanager(customerio_fake._customerio_server)
        asking = contextlib.contextmanager(customerio_fake._customerio)
        with serving() as server:
            self.assertEqual(server.settings.port, 0)
            for seed in seeds:
                request = mock.Mock()
                request.node.get_closest_marker = {
                    "customerio": seed and mock.Mock(kwargs={"seed": seed})
                }.get
                found.clear()
                with asking(server, mock.Mock(setenv=found.__setitem__), request) as cio:
                    urllib.request.urlopen(cio.url + "/health", timeout=PATIENCE).close()
                    self.assertEqual([row["id"] for row in cio.people], ["ada"] if seed else [])
                    self.assertEqual(found, cio.environment)
        with self.assertRaises(OSError):
            urllib.request.urlopen(server.url + "/health", timeout=PATIENCE)

    def test_a_server_by_itself_takes_the_port_that_the_clients_are_told(self) -> None:
        self.assertEqual(CustomerioServer().url, "http://127.0.0.1:4668")  # not started


class Handles(unittest.TestCase):
    """What a test takes hold of, and what it is told when it asks amiss."""

    def test_what_goes_wrong_ends_with_its_block(self) -> None:
        cio = CustomerioServer(port=0)
        with cio.fail(status=503), cio.fail(status=500) as second:
            self.assertEqual(len(cio.faults), 2)
            cio.mend(second)
            self.assertEqual([row["status"] for row in cio.faults], [503])
        self.assertEqual(cio.faults, [])

    def test_what_there_is_not_is_named(self) -> None:
        cio = CustomerioServer(port=0)
        with self.assertRaisesRegex(ValueError, "only must be one of: state, "):
            cio.reset("people")
        with self.assertRaisesRegex(ValueError, "there is no setting 'prot'; there are allow_host"):
            CustomerioServer(prot=1)
        with self.assertRaisesRegex(ValueError, "journal must be of type int, not '9'"):
            CustomerioServer(journal="9")
        with self.assertRaisesRegex(ApiError, "^seed: customers must be"):
            CustomerioServer(port=0, seed={"customers": 1})
        with self.assertRaisesRegex(ApiError, "name must be 1 to 60 letters"):
            cio.workspace("a b")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "seed.json")
            with self.assertRaisesRegex(OSError, "can't read .*seed.json: No such file"):
                CustomerioServer(port=0, seed=path)
            with open(path, "w", encoding="utf-8") as file:
                file.write("{")
            with self.assertRaisesRegex(ValueError, "seed.json: invalid JSON: Expecting property"):
                CustomerioServer(port=0, seed=path)

    def test_a_clock_stops_and_goes_on(self) -> None:
        cio, before = CustomerioServer(port=0), time.time()
        cio.clock.freeze()
        now = cio.clock.now
        self.assertTrue(before - 1 <= now <= time.time())
        self.assertEqual(cio.clock.now, now)
        cio.clock.resume()
        self.assertTrue(eventually(lambda: cio.clock.now > now))
        cio.clock.freeze(5000)
        self.assertEqual((cio.clock.now, cio.fake.workspace.clock.frozen), (5000, True))

    def test_what_is_due_is_done_before_anybody_looks(self) -> None:
        looks: list[Callable[[CustomerioServer], Any]] = [
            lambda cio: "sent" in cio.deliveries[0]["metrics"],
            lambda cio: cio.in_app("ada")["inAppMessages"],
            lambda cio: cio.person("1"),
            lambda cio: customerio_fake.records_of(cio.fake, "customers")[1:],
        ]  # fmt: skip
        row = {"id": 1, "contents": [{"id": 5, "type": "in_app", "body": "b"}]}
        seed = {"transactional": [row], "customers": [{"id": "ada"}]}
        for look in looks:
            cio = CustomerioServer(port=0, ingest_delay=60.0, seed=seed)
            clock = cio.fake.workspace.clock
            clock.freeze()
            cio.fake.handle(Request("PUT", "/api/v1/customers/1", {"authorization": TRACK}, b"{}"))
            message: dict[str, Any] = {"transactional_message_id": 1, "identifiers": {"id": "ada"}}
            message["send_at"] = int(clock.now()) + 60
            customerio_fake.accept(cio.fake.workspace, "in_app", message, "")
            self.assertFalse(look(cio))
            clock.move_to(clock.now() + 60, True)
            self.assertTrue(look(cio))

    def test_an_expectation_waits_only_if_it_is_told_to(self) -> None:
        cio = CustomerioServer(port=0)
        rows: list[tuple[Callable[[], Any], float]] = [
            (lambda: cio.expect("events", name="x"), 0), (lambda: cio.assert_event("x"), 0),
            (cio.assert_no_deliveries, 0), (lambda: cio.wait_for_event("x"), 5),
            (cio.wait_for_delivery, 5), (lambda: cio.wait_for_event("x", timeout=9), 9),
        ]  # fmt: skip
        for ask, seconds in rows:
            with mock.patch.object(customerio_fake.News, "wait_until") as wait:
                wait.side_effect = StopIteration
                self.assertRaises(StopIteration, ask)
            self.assertAlmostEqual(wait.call_args[0][1], seconds, delta=0.5)
        self.assertEqual(customerio_fake.expectation_of({"list": "events"})[1], 0)

    def test_five_records_are_listed_and_the_rest_counted(self) -> None:
        for count, end in ((5, '"n":4}'), (6, "\n  and 1 more")):
            text = customerio_fake.listing([{"n": n} for n in range(count)])
            self.assertEqual((text.count("found: "), text[-len(end) :]), (5, end))

    def test_a_failure_is_shown_where_the_test_is_not_in_here(self) -> None:
        cio = CustomerioServer(port=0)
        message = {"to": "a@b.cd", "from": "a@b.cd", "identifiers": {"id": "1"}, "subject": "s"}
        customerio_fake.accept(cio.fake.workspace, "email", {**message, "body": "b"}, "")
        rows: list[Callable[[], Any]] = [
            lambda: cio.expect("events"), lambda: cio.latest("events"),
            lambda: cio.assert_event("x"), lambda: cio.wait_for_event("x", timeout=0),
            lambda: cio.assert_delivery(to="x"), lambda: cio.wait_for_delivery(0, to="x"),
            cio.assert_no_deliveries, cio.link, cio.code,
        ]  # fmt: skip
        for ask in rows:
            try:
                ask()
            except AssertionError as error:
                frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
            theirs = [f for f in frames if f.f_code.co_filename == customerio_fake.__file__]
            shown = [f.f_code.co_name for f in theirs if not f.f_locals.get("__tracebackhide__")]
            self.assertEqual((bool(theirs), shown), (True, []))

    def test_the_certificate_to_trust_is_a_file_while_the_process_lasts(self) -> None:
        customerio_fake._ca_file.cache_clear()
        self.addCleanup(customerio_fake._ca_file.cache_clear)
        with mock.patch("atexit.register") as register:
            path = CustomerioServer(port=0).ca_file
        with open(path, encoding="ascii") as file:
            self.assertEqual(file.read(), customerio_fake.BUILT_IN_CA)
        (delete, *arguments), _ = register.call_args
        delete(*arguments)
        self.assertFalse(os.path.exists(path))
        self.assertEqual(customerio_fake._ca_file("own.pem"), "own.pem")

    def test_the_marker_is_made_known_to_pytest(self) -> None:
        config = mock.Mock()
        customerio_fake.pytest_configure(config)
        (call,) = config.addinivalue_line.call_args_list
        self.assertEqual((call.args[0], call.args[1][:10]), ("markers", "customerio"))

    def test_words_that_are_no_command(self) -> None:
        rows = [
            (("tial",), "there is no 'tial'; did you mean tail?"),
            (("1", "2"), "one port is enough, not 1 2"),
        ]
        for words, text in rows:
            with self.subTest(words):
                code, _, err = run_command(*words)
                self.assertEqual((code, err.count("\n")), (2, 1))
                self.assertIn(text, err)


class AfterTheEnd(unittest.TestCase):
    """What was recorded can be asked for when the server has stopped."""

    def test_assertions_still_fail(self) -> None:
        with CustomerioServer(port=0) as cio:
            pass
        with self.assertRaisesRegex(AssertionError, "nothing at all is recorded there"):
            cio.assert_event("signup")
        with self.assertRaises(AssertionError):
            cio.wait_for_event("signup", timeout=60)  # nothing can come any more
        cio.assert_no_deliveries()

    def test_links_and_codes_are_pulled_out_of_the_newest_message(self) -> None:
        cio = CustomerioServer(port=0)
        workspace = cio.fake.workspace
        for code in ("111111", "482913"):
            body = f'<p>Your code: {code}</p><a href="https://a.test/confirm?t={code}">Yes</a>'
            message = {"to": "ada@example.com", "identifiers": {"id": "1"}, "subject": "Code"}
            message.update(body=body, **{"from": "a@example.com"})
            delivery, mail = customerio_fake.accept(workspace, "email", message, "")
            customerio_fake.dispatch(workspace, delivery, cast(customerio_fake.Mail, mail))
        self.assertEqual(cio.code(to="ada@example.com"), "482913")
        self.assertEqual(cio.link("confirm"), "https://a.test/confirm?t=482913")
        self.assertEqual(cio.link(), "https://a.test/confirm?t=482913")
        self.assertIn("482913", cio.latest("deliveries", subject="Code")["rendered"]["body"])
        self.assertEqual(len(cio.expect("deliveries", body={"contains": "Your code"})), 2)
        with self.assertRaisesRegex(AssertionError, "no link with 'reset' in it.*confirm"):
            cio.link("reset")

    def test_a_field_or_list_that_there_is_not_is_refused(self) -> None:
        cio = CustomerioServer(port=0)
        with self.assertRaisesRegex(ApiError, "no field 'recipent'.*recipient"):
            cio.assert_no_deliveries(recipent="ada@example.com")
        with self.assertRaisesRegex(ApiError, "list must be one of: customers"):
            cio.expect(cast(Any, "eventz"))

    def test_a_wait_that_the_end_cuts_short_is_no_success(self) -> None:
        cio = CustomerioServer(port=0).start()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(cio.wait_for_event, "signup", timeout=60)
            self.assertTrue(eventually(lambda: cio.fake.workspace.news.waiting > 0))
            cio.stop()
            self.assertIsInstance(waiting.exception(timeout=10), AssertionError)


class Lifecycle(WireTestCase):
    """start, stop, and what they leave behind: nothing."""

    def test_it_listens_once_start_returns(self) -> None:
        server = CustomerioServer(port=0)
        self.assertIs(server.start(), server)
        self.addCleanup(server.stop)
        self.assertNotIn(server.port, (0, self.server.port))
        serving = [t for t in threading.enumerate() if t.name == "customerio-fake"]
        self.assertEqual([t.daemon for t in serving], [True, True])  # or no process would end
        self.assertEqual(server.url, f"http://127.0.0.1:{server.port}")
        self.assertEqual(self.dial(None, server.port).send(HEALTH).reply().status, 200)
        with self.assertRaises(RuntimeError):
            server.start()
        self.assertEqual(self.dial(None, server.port).send(HEALTH).reply().status, 200)

    def test_it_can_be_started_again_and_keeps_what_it_recorded(self) -> None:
        server = CustomerioServer(port=0)
        server.stop()  # before the start: nothing to do
        for number in range(3):
            with server:
                wire = self.dial(None, server.port)
                self.assertEqual(wire.send(identify(who=str(number))).reply().status, 200)
                self.assertEqual(len(server.people), number + 1)
            server.stop()  # again: nothing to do
            self.assertTrue(wire.ended())
        self.assertEqual([person["id"] for person in server.people], ["0", "1", "2"])

    def test_nobody_answers_after_stop(self) -> None:
        with CustomerioServer(port=0) as server:
            port = server.port
        with self.assertRaises(ConnectionRefusedError):
            Wire(port)
        again = CustomerioServer(port=port).start()  # the port is free at once
        again.stop()

    def test_servers_do_not_share_anything(self) -> None:
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(CustomerioServer(port=0)) for _ in range(5)]
            for number, server in enumerate(servers):
                wire = self.dial(None, server.port)
                self.assertEqual(wire.send(identify(who=str(number))).reply().status, 200)
            self.assertEqual([s.people[0]["id"] for s in servers], ["0", "1", "2", "3", "4"])
            self.assertEqual({len(server.people) for server in servers}, {1})

    def test_a_port_that_is_taken(self) -> None:
        server = CustomerioServer(port=self.server.port)
        with self.assertNoWarnings(), self.assertRaises(OSError) as caught:
            server.start()
        self.assertEqual(caught.exception.errno, errno.EADDRINUSE)
        server.stop()
        self.assertEqual(self.ask(HEALTH).status, 200)

    def test_the_start_asks_no_name_server(self) -> None:
        broken = mock.Mock(side_effect=AssertionError("a look-up"))
        with mock.patch.multiple(socket, getfqdn=broken, gethostbyaddr=broken):
            server = CustomerioServer(port=0).start()
            self.addCleanup(server.stop)
            self.assertEqual(self.dial(None, server.port).send(PEOPLE).reply().status, 200)

    def test_stop_does_not_wait_for_those_who_do_nothing(self) -> None:
        trust = ssl.create_default_context(cadata=customerio_fake.BUILT_IN_CA)
        with mock.patch.object(customerio_fake.Server, "grace", PATIENCE):
            server = CustomerioServer(port=0).start()
            wires = [self.dial(None, server.port) for _ in range(20)]
            wires += [self.dial(trust, server.port) for _ in range(3)]
            for wire in wires:
                self.assertEqual(wire.send(HEALTH).reply().status, 200)
            wires.append(self.dial(None, server.port).send(b"\x16\x03\x01"))  # half a handshake
            wires.append(self.dial(None, server.port).send(identify()[:-1]))
            self.assertTrue(eventually(lambda: len(waiting_threads()) == 4))
            begun = time.monotonic()
            server.stop()
            self.assertLess(time.monotonic() - begun, PATIENCE / 2)
        self.assertEqual(waiting_threads(), [])
        for wire in wires:
            self.assertTrue(wire.ended())

    def test_no_report_is_sent_after_the_stop(self) -> None:
        def sending() -> bool:
            return "customerio-fake-webhooks" in [t.name for t in threading.enumerate()]

        with socket.create_server(("127.0.0.1", 0)) as silent:
            hook = f"http://127.0.0.1:{silent.getsockname()[1]}/"
            server = CustomerioServer(port=0, webhook=hook)
            with server:
                pass
            message = {"to": "a@b.cd", "from": "a@b.cd", "identifiers": {"id": "1"}}
            with server:
                self.assertFalse(sending())
                workspace = server.fake.workspace
                message.update(subject="s", body="b")
                delivery, mail = customerio_fake.accept(workspace, "email", message, "")
                customerio_fake.dispatch(workspace, delivery, cast(customerio_fake.Mail, mail))
                self.assertTrue(eventually(sending))
            self.assertFalse(sending())

    def test_stop_lets_a_request_in_flight_finish(self) -> None:
        with mock.patch.object(customerio_fake.Server, "grace", PATIENCE):
            server = CustomerioServer(port=0).start()
            wire = self.dial(None, server.port)
            stopping = threading.Thread(target=server.stop)
            with server.fake.workspace.lock:
                wire.send(PEOPLE)
                self.assertTrue(eventually(lambda: len(waiting_threads()) == 1))
                stopping.start()
                loop = "customerio-fake"

                def loops() -> int:
                    return [thread.name for thread in threading.enumerate()].count(loop)

                self.assertTrue(eventually(lambda: loops() == 1))  # this class's own
            self.assertEqual(wire.reply().status, 200)
            self.assertTrue(wire.ended())
            stopping.join()
        self.assertEqual(waiting_threads(), [])

    def test_stop_does_not_wait_for_ever(self) -> None:
        with mock.patch.object(customerio_fake.Server, "grace", 0.05):
            server = CustomerioServer(port=0).start()
            wire = self.dial(None, server.port)
            with server.fake.workspace.lock:
                wire.send(PEOPLE)
                self.assertTrue(eventually(lambda: len(waiting_threads()) == 1))
                server.stop()  # returns, although the thread can't
            self.assertTrue(wire.ended())
        self.assertTrue(eventually(lambda: not waiting_threads()))

    def test_nothing_is_left_behind(self) -> None:
        trust = ssl.create_default_context(cadata=customerio_fake.BUILT_IN_CA)
        self.one_life(trust)  # what is loaded once is loaded now
        threads, descriptors = threading.active_count(), count_descriptors()
        with self.assertNoWarnings():
            for _ in range(5):
                self.one_life(trust)
        self.assertEqual(threading.active_count(), threads)
        self.assertEqual(count_descriptors(), descriptors)

    def one_life(self, trust: ssl.SSLContext) -> None:
        with CustomerioServer(port=0) as server, contextlib.ExitStack() as stack:
            wires = [stack.enter_context(Wire(server.port, tls)) for tls in (None, None, trust)]
            for wire in wires:
                wire.send(identify() + PEOPLE)
                self.assertEqual([wire.reply().status for _ in range(2)], [200, 200])
            wires[1].send(b"PUT / HT")
            stack.enter_context(Wire(server.port)).send(b"GARBAGE\r\n\r\n").reply()
            Wire(server.port).send(PEOPLE * 3).reset()
            server.stop()

    @unittest.skipUnless(hasattr(os, "register_at_fork"), "nobody forks here")
    def test_a_forked_child_leaves_everything_to_its_parent(self) -> None:
        server = CustomerioServer(port=0).start()
        self.addCleanup(server.stop)
        idle, trust = self.dial(None, server.port), ssl.create_default_context()
        trust.load_verify_locations(cadata=customerio_fake.BUILT_IN_CA)
        secure = self.dial(trust, server.port)
        for wire in (idle, secure):
            self.assertEqual(wire.send(HEALTH).reply().status, 200)
        inside: Any = server._server
        selector, held = inside._selector, [inside.socket, inside._waker, inside._alarm]
        held += [c.socket for c in (*inside._open.values(), *inside._waiting.values())]
        self.assertEqual(len(held), 5)
        ours, its = socket.socketpair()
        with ours, its, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 3.12 warns of forks beside threads
            child = os.fork()
            if not child:
                url = server.url
                server.stop()
                closed = all(sock.fileno() < 0 for sock in held) and not selector.get_map()
                its.send(b"1" if server.url == url and closed else b"0")
                its.recv(1)
                os._exit(0)
            self.assertEqual(ours.recv(1), b"1")
            for wire in (idle, secure, self.dial(None, server.port)):
                self.assertEqual(wire.send(HEALTH).reply().status, 200)
            server.stop()
            for wire in (idle, secure):
                self.assertTrue(wire.ended())
            with self.assertRaises(ConnectionRefusedError):
                Wire(server.port)
            ours.send(b"1")
            os.waitpid(child, 0)

    @contextlib.contextmanager
    def assertNoWarnings(self) -> Any:  # noqa: N802
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
            gc.collect()
        self.assertEqual([str(warning.message) for warning in caught], [])


def count_descriptors() -> int:
    """How many files this process has open; 0 where that can't be told."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 0


@contextlib.contextmanager
def running(*arguments: str) -> Any:
    """The command line in a process of its own; gives it and the port it took."""
    command = [sys.executable, "-X", "dev", customerio_fake.__file__, "0", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"listens on http://127\.0\.0\.1:(\d+)$", line.rstrip())
        assert match, line
        yield process, int(match[1])
    finally:
        process.kill()
        process.communicate()


class Commands(unittest.TestCase):
    """What the command line can do beside serving."""

    def setUp(self) -> None:
        self.cio = CustomerioServer(port=0).start()
        self.addCleanup(self.cio.stop)

    def test_routes(self) -> None:
        code, out, _ = run_command("routes", "SNIPPETS")
        self.assertEqual(code, 0)
        self.assertIn("GET    /v1/snippets  List", out)
        self.assertNotIn("/v1/segments", out)
        self.assertEqual(run_command("routes", "zzz")[0], 1)
        command = [sys.executable, customerio_fake.__file__, "routes", "zzz"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        self.assertEqual((ended.returncode, ended.stdout[:12]), (1, b"no operation"))

    def test_an_event_is_sent(self) -> None:
        words = ("--person", "a b", "--data", '{"n": 1}', "--url", self.cio.url)
        self.assertEqual(run_command("send-event", "signup", *words), (0, "", ""))
        self.cio.assert_event("signup", customer_id="a b", data={"n": 1})
        for wrong, text in (
            (("--data", "{"), "invalid JSON"),
            (("--url", "http://[::1]:1"), "no "),
            (("--data", "1"), '"errors": [ "data must be'),
        ):
            code, _, err = run_command("send-event", "x", *words, *wrong)
            self.assertEqual((code, err.count("\n")), (2, 1), err)
            self.assertIn(text, err)

    def test_tail_shows_what_happens(self) -> None:
        with self.cio.workspace("w") as world:
            command = [sys.executable, customerio_fake.__file__, "tail", "--url", self.cio.url]
            pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            with subprocess.Popen([*command, "--workspace", "w"], **pipes) as process:
                err, out = cast(Any, process.stderr), cast(Any, process.stdout)
                self.assertIn("/@w:", err.readline())
                run_command("send-event", "signup", "--url", world.url)
                line = out.readline()
                process.terminate()
        self.assertRegex(line, r"^\d\d:\d\d:\d\d  200 +[\d.]+ ms  POST .*/1/events  1  signup  w$")

    def test_tail_tells_what_was_wrong_of_what_came_since(self) -> None:
        def ask(path: str, key: str, body: bytes) -> None:
            self.cio.fake.handle(Request("PUT", path, {"authorization": key}, body))

        def look(url: str) -> Any:
            if "/changes?" not in url:
                return asked(url)
            if len(self.cio.requests) > 1:
                raise KeyboardInterrupt
            for path, key, body in rows:
                ask(path, key, body)
            return {"number": 1}

        asked, path, far = customerio_fake._asked, "/api/v1/customers/1", "/" + "x" * 300
        rows = [(path, TRACK, b"{}"), (path, "", b"{}"), (path, TRACK, b'{"a":'), (far, "", b"")]
        ask("/old", "", b"")
        with mock.patch.object(customerio_fake, "_asked", look):
            code, out, _ = run_command("tail", "--url", self.cio.url)
        self.assertEqual(code, 130)
        shown = [line.split(" ms  PUT ")[1] for line in out.splitlines()]
        told = ["", "  missing: no Authorization header", '  {"meta":{"errors":["invalid JSON: '
                'Expecting value at line 1, column 6"]}}']  # fmt: skip
        self.assertEqual(shown[:3], [f"{path}  1{text}" for text in told])
        self.assertEqual(
            shown[3:], [f"{far}  " + f'{{"meta":{{"error":"unknown path: PUT {far}'[:200]]
        )

    def test_each_says_in_its_help_what_it_does(self) -> None:
        for name, command in customerio_fake.COMMANDS.items():
            self.assertIn(command.help[:30], run_command(name, "--help")[1])

    def test_a_webhook_of_the_command_line_gets_everything(self) -> None:
        fake = Fake(Settings(webhook="http://127.0.0.1:9/hook"))
        (row,) = fake.workspace.shelves["reporting_webhooks"].rows.values()
        self.assertEqual(row["endpoint"], "http://127.0.0.1:9/hook")
        self.assertIn("email_sent", row["events"])

    def test_the_log_tells_whom_a_request_is_about(self) -> None:
        with self.assertLogs("customerio_fake", "INFO") as logs:
            run_command("send-event", "signup", "--person", "ada", "--url", self.cio.url)
        self.assertRegex(logs.output[0], r"events 200  [\d.]+ ms  ada  signup$")


class CommandLine(WireTestCase):
    """python customerio_fake.py"""

    run_main = staticmethod(run_command)

    def test_bad_usage_is_one_clear_line(self) -> None:
        taken = str(self.server.port)
        rows: List[Tuple[str, Tuple[str, ...], Dict[str, str], str]] = [
            ("port taken", (taken,), {}, taken),
            ("port too high", ("70000",), {}, "70000"),
            ("port not a number", ("http",), {}, "http"),
            ("port in the environment", (), {"PORT": "x"}, "PORT"),
            ("unknown flag", ("--nope",), {}, "--nope"),
            ("flag without value", ("--host",), {}, "--host"),
            ("no such region", ("--region", "mars"), {}, "region"),
            ("not a number", ("--max-body", "big"), {}, "--max-body"),
            ("negative", ("--max-threads=-1",), {}, "max_threads"),
            ("no such address", ("0", "--host", "192.0.2.1"), {}, "192.0.2.1"),
            ("cert without key", ("0", "--cert", "x.pem"), {}, "key"),
            ("no such cert", ("0", "--cert", "x.pem", "--key", "x.key"), {}, "x.pem"),
            ("quiet and verbose", ("--quiet", "--verbose"), {}, "--verbose"),
            ("neither yes nor no", (), {"CUSTOMERIO_FAKE_QUIET": "x"}, "CUSTOMERIO_FAKE_QUIET"),
            ("no port at all", ("--port=-1",), {}, "between 0 and 65535"),
            ("shortened flag", ("--verb",), {}, "--verb"),
            ("no URL", ("--public-url", "fake:4668"), {}, "public_url"),
            ("no such seed", ("--seed", "nowhere.json"), {}, ": can't read nowhere.json: "),
            ("no seed", ("--seed", __file__), {}, f"{__file__}: invalid JSON"),
        ]
        for name, arguments, environment, named in rows:
            with self.subTest(name):
                code, out, err = self.run_main(*arguments, **environment)
                self.assertEqual((code, out), (2, ""))
                self.assertEqual(err.count("\n"), 1, err)
                self.assertIn(named, err)

    def test_a_port_is_offered_only_where_the_port_is_wrong(self) -> None:
        rows = [((str(self.server.port),), True), (("0", "--cert", "x", "--key", "y"), False)]
        for arguments, offered in rows:
            self.assertEqual("port=0" in self.run_main(*arguments)[2], offered, arguments)

    def test_how_much_is_said(self) -> None:
        quiet, verbose = "CUSTOMERIO_FAKE_QUIET", "CUSTOMERIO_FAKE_VERBOSE"
        rows: List[Tuple[Tuple[str, ...], Dict[str, str], int]] = [
            ((), {}, logging.WARNING),
            (("--quiet",), {}, logging.ERROR),
            ((), {quiet: "1"}, logging.ERROR),
            ((), {verbose: "false"}, logging.WARNING),
            ((), {verbose: "true"}, logging.INFO),
            (("--quiet",), {verbose: "1"}, logging.ERROR),
        ]
        for flags, environment, level in rows:
            with self.subTest(flags=flags, **environment):
                arguments = customerio_fake._parser("").parse_args(flags)
                self.assertEqual(customerio_fake._level(arguments, environment), level)

    def test_a_flag_beats_the_environment_which_beats_the_default(self) -> None:
        names = ("host", "port", "region", "phone")
        environment = {"HOST": "127.0.0.2", "PORT": "5001", "CUSTOMERIO_FAKE_REGION": "eu"}
        environment["CUSTOMERIO_FAKE_PHONE"] = "no"
        rows: List[Tuple[Tuple[str, ...], Dict[str, str], Tuple[Any, ...]]] = [
            ((), {}, ("127.0.0.1", 4668, "us", False)),
            ((), environment, ("127.0.0.2", 5001, "eu", False)),
            (("--region", "us", "--phone"), environment, ("127.0.0.2", 5001, "us", True)),
            (("--host=::1", "--port=0"), environment, ("::1", 0, "eu", False)),
            (("5002",), environment, ("127.0.0.2", 5002, "eu", False)),
        ]
        for flags, variables, wanted in rows:
            arguments = customerio_fake._parser("").parse_args(flags)
            settings = customerio_fake._settings(arguments, variables)
            self.assertEqual(tuple(getattr(settings, name) for name in names), wanted, flags)

    def test_version_and_help(self) -> None:
        code, out, err = self.run_main("--version")
        self.assertEqual((code, err), (0, ""))
        self.assertIn(customerio_fake.__version__, out)
        code, out, err = self.run_main("--help")
        self.assertEqual((code, err), (0, ""))
        for flag in ("--host", "--cert", "--verbose", "healthcheck", "CUSTOMERIO_SITE_ID"):
            self.assertIn(flag, out)

    def test_healthcheck(self) -> None:
        port = str(self.server.port)
        self.assertEqual(self.run_main("healthcheck", PORT=port)[0], 0)
        self.assertEqual(self.run_main("healthcheck", "--quiet", port, HOST="")[0], 0)
        other = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), http.server.BaseHTTPRequestHandler
        )
        threading.Thread(target=other.handle_request, daemon=True).start()
        with other, mock.patch("http.server.BaseHTTPRequestHandler.log_message"):
            code, _, err = self.run_main("healthcheck", str(other.server_port))
        self.assertEqual((code, "is not the fake" in err), (1, True))
        for host in ("a..b", "a b", "x" * 80):
            self.assertEqual(self.run_main("healthcheck", "--host", host, port)[:2], (1, ""))
        with CustomerioServer(port=0) as server:
            port = str(server.port)
        code, out, err = self.run_main("healthcheck", PORT=port)
        self.assertEqual((code, out), (1, ""))
        self.assertIn(port, err)

    def test_a_healthcheck_asks_again_while_it_may_wait(self) -> None:
        ill = mock.patch.object(customerio_fake, "_ill", side_effect=["ill", "ill", ""])
        with ill as asked, mock.patch("time.sleep") as slept:
            self.assertEqual(self.run_main("healthcheck", "--wait", "60"), (0, "", ""))
        self.assertEqual((asked.call_count, slept.call_count), (3, 2))

    def test_it_ends_once_a_signal_has_come(self) -> None:
        done: List[str] = []
        alarm, waker, server = mock.MagicMock(), mock.MagicMock(), mock.Mock()
        alarm.recv.side_effect = lambda _: done.append("signal")
        server.stop.side_effect = lambda: done.append("stop")
        self.assertEqual(customerio_fake._end(server, alarm, waker), 0)
        self.assertEqual(done, ["signal", "stop"])
        server.stop.side_effect = OSError(28, "disk full")
        with contextlib.redirect_stderr(io.StringIO()) as err:
            self.assertEqual(customerio_fake._end(server, alarm, waker), 2)
        self.assertEqual(err.getvalue(), "customerio_fake: disk full\n")

    @unittest.skipIf(os.name == "nt", "there are no such signals")
    def test_signals_end_it_cleanly(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number), running("--verbose") as (process, port):
                idle = self.dial(None, port)
                self.assertEqual(idle.send(HEALTH).reply().status, 200)
                self.dial(None, port).send(b"\x16\x03\x01")  # half a handshake
                self.dial(None, port).send(identify()[:-1])
                process.send_signal(number)
                _, err = process.communicate(timeout=PATIENCE)
                self.assertEqual(process.returncode, 0, err)
                self.assertTrue(idle.ended())
                self.assertRegex(err.splitlines()[0], r"^GET /health 200  [\d.]+ ms$")
                self.assertNotIn("Traceback", err)

    @unittest.skipIf(os.name == "nt", "there are no such signals")
    def test_the_state_is_saved_at_the_end_or_the_exit_code_tells(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "state.json")
            for code, said in ((0, ""), (2, f"customerio_fake: can't save the state to {path}: ")):
                with running("--state", path) as (process, port):
                    self.assertEqual(self.dial(None, port).send(identify()).reply().status, 200)
                    if code:
                        os.replace(path, f"{path}.old")
                        os.mkdir(path)
                    process.terminate()
                    _, err = process.communicate(timeout=PATIENCE)
                    self.assertEqual((process.returncode, err[: len(said)]), (code, said))
                    self.assertLessEqual(err.count("\n"), code)

    @unittest.skipIf(os.name == "nt", "there are no such signals")
    def test_main_waits_where_it_is_called(self) -> None:
        text = "import customerio_fake; print(customerio_fake.main(['0']))"
        command = [sys.executable, "-c", text]
        folder = os.path.dirname(customerio_fake.__file__)
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder) as process:
            assert process.stdout is not None
            while b"Ctrl-C" not in process.stdout.readline():
                pass
            process.terminate()
            self.assertEqual(process.stdout.read(), b"0\n")

    def test_an_old_python_is_told_what_is_needed(self) -> None:
        old = "import sys; sys.version_info = (3, 8); sys.argv = ['x']; "
        rows = [
            ("import customerio_fake", "ImportError: customerio_fake needs Python 3.9 or newer"),
            (f"exec(compile(open({customerio_fake.__file__!r}, encoding='utf-8').read(), 'x', "
             "'exec'))", "customerio_fake needs Python 3.9 or newer"),
        ]  # fmt: skip
        for text, said in rows:
            folder = os.path.dirname(customerio_fake.__file__)
            command = [sys.executable, "-c", old + text]
            ended = subprocess.run(command, stderr=subprocess.PIPE, cwd=folder, check=False)
            self.assertEqual(ended.returncode, 1)
            last = ended.stderr.decode().splitlines()[-1]
            self.assertEqual(last[: len(said)], said)

    def test_quiet_says_nothing(self) -> None:
        with running("--quiet") as (process, port):
            wire = self.dial(None, port).send(identify(ADA, "Authorization: x"))
            self.assertEqual(wire.reply().status, 401)
            self.assertEqual(self.dial(None, port).send(b"BAD\r\n\r\n").reply().status, 400)
            process.terminate()
            _, err = process.communicate(timeout=PATIENCE)
            self.assertEqual(err, "")


# ---- verify: the same probes against the real service and against a fake
#
# `python test_customerio_fake.py verify` settles a doubt with a workspace for tests. A probe is a
# line: its name, in brackets where the rule comes from, and between bars its calls in order, and
# what is compared of the last answer besides its status, headers and shape. `> 400` expects 400,
# not 200; `= path value` is what the source says, and without a value only compared. `{p}` is the
# random prefix of a run, `{m}` stands for it in addresses, `{cio}` is the last cio_id answered;
# `!` after an API says how a call differs. A title is a row of README's table. [open]: no source.

PROBES = """
## Identity
{} is enough for a new person [observed] | put {p}i1 {} | read {p}i1 | = customer.id "{p}i1"
  | = customer.devices [] | = customer.unsubscribed false
an address in a path is an email [reference] | put {m}i2 {"n": "1"}
  | app GET customers?email={m}i2 | = results.0.email "{m}i2"
a new id with a known email is the same person [reference] | put {m}i3 {}
  | put {p}i3 {"email": "{m}i3"} | app GET customers/{p}i3/attributes?id_type=id | = @email "{m}i3"
an email has no case [reference] | put {p}i4 {"email": "{m}i4"}
  | app GET customers?email={p}I4@EXAMPLE.com | = results.0.id "{p}i4"
an id has a case [reference] | put {p}i5 {} | read {p}I5 > 404
an email that is somebody else's stays theirs [reference] | put {p}i6 {} | put {m}i6 {}
  | put {p}i6 {"email": "{m}i6", "n": "1"} | read {p}i6 | = @email | = @n
other attributes in a conflict of identifiers [open] | put {p}i7a {"email": "{m}i7a"}
  | put {p}i7b {"email": "{m}i7b"} | put {p}i7a {"email": "{m}i7b", "n": "1"} | read {p}i7a
  | = @n | = @email "{m}i7a"
the activity of a conflict tells the value [field] | put {p}i8a {"email": "{m}i8a"}
  | put {p}i8b {"email": "{m}i8b"} | put {p}i8a {"email": "{m}i8b"}
  | app GET customers/{p}i8a/activities?type=failed_attribute_change
  | = activities.0.data.email.value "{m}i8b"
an email isn't changed by id [reference] | put {p}i9 {"email": "{m}i9"}
  | put {p}i9 {"email": "{m}i9new"} | read {p}i9 | = @email "{m}i9"
by cio_ an email changes [reference] | put {p}ia {"email": "{m}ia"} | read {p}ia
  | put cio_{cio} {"email": "{m}ianew"} | read {p}ia | = @email "{m}ianew"
by cio_ an id changes [reference] | put {p}ib {} | read {p}ib | put cio_{cio} {"id": "{p}ibnew"}
  | read {p}ibnew
a malformed cio_id in a path [field] | put cio_zz{p} {} > 400
a malformed cio_id in v2 [field] | v2 {"type": "person", "action": "identify", "identifiers":
  {"cio_id": "zz{p}"}} > 400
_update makes nobody [reference] | put {p}ic {"_update": true, "n": "1"} | read {p}ic > 404
id without email and email without id are merged [docs] | put {p}id {"n": "1"}
  | put {m}id {"m": "1"} | put {p}id {"email": "{m}id"} | read {p}id | = @n "1" | = @m
a colon in an id [observed] | put {p}:ie {} | read {p}:ie | = customer.id "{p}:ie"
a bare cio_id in an App path [field] | put {p}ig {} | read {p}ig | read {cio}
  | = customer.id "{p}ig"
cio_ in an App path without id_type [observed] | put {p}ih {} | read {p}ih | read cio_{cio} > 404
a raw email in an App path [observed] | put {m}ij {} | read {m}ij > 404
an email with id_type [observed] | put {m}ik {} | app GET customers/{m}ik/attributes?id_type=email |
  = @email "{m}ik"
a shape that is hardly an address: a@b [open] | put {p}il@b {}
  | app GET customers/{p}il@b/attributes?id_type=id > ?
phone as id_type where it isn't on [reference] | app GET customers/{p}/attributes?id_type=phone >
  400
an id_type that there isn't [open] | app GET customers/{p}/attributes?id_type=name > 400
deleting nobody [observed] | delete {p}im
who is deleted is gone [observed] | put {p}in {} | delete {p}in | read {p}in > 404
## Attributes
values are read back as strings [observed] | put {p}a1 {"n": 30, "t": true, "f": 1.5}
  | read {p}a1 | = @n "30" | = @t "true" | = @f
null deletes, timestamp and all [observed] | put {p}a3 {"n": 1, "k": 1} | put {p}a3 {"n": null}
  | read {p}a3 | = @n MISSING | = customer.timestamps.n MISSING | = @k "1"
"" deletes [inferred] | put {p}a4 {"n": 1} | put {p}a4 {"n": ""} | read {p}a4 | = @n MISSING
a value of 1001 bytes [field] | put {p}a6 {"n": "{x1000}x"} > 400
  | = meta.errors.0 "value for attribute 'n' cannot be longer than 1000 bytes"
unsubscribed in any case [reference] | put {p}a9 {"unsubscribed": "TRUE"} | read {p}a9
  | = customer.unsubscribed true
an empty list of ids [field] | app POST customers/attributes {"ids": []} | = customers []
## System attributes
cio_id can't be set [docs] | put {p}s1 {"cio_id": "{p}"} > ?
_created_in_customerio_at can't be set [docs] | put {p}s2 {"_created_in_customerio_at": 5} > ?
## Events
a v1 event of nobody makes a person [inferred] | track POST customers/{p}e1/events {"name": "x"}
  | read {p}e1 | = customer.id "{p}e1"
a v2 event of nobody makes a person [observed] | v2 {"type": "person", "action": "event", "name":
  "x", "identifiers": {"id": "{p}e2"}} | read {p}e2
an event's data are no attributes [observed] | track POST customers/{p}e3/events {"name": "x",
  "data": {"n": 1}} | read {p}e3 | = @n MISSING
an event without a name [reference] | track POST customers/{p}e4/events {} > 400
an anonymous event needs a name alone [reference] | track POST events {"name": "{p}"}
an anonymous event without a name [reference] | track POST events {"anonymous_id": "{p}"} > 400
an id of an event that is no ULID [open] | track POST customers/{p}e6/events {"name": "x", "id":
  "1"} > ?
a timestamp in the future [open] | track POST customers/{p}e7/events {"name": "x", "timestamp":
  4000000000} > ? | app GET customers/{p}e7/activities?type=event | = activities.0.name
the same id of an event counts once [reference] | track POST customers/{p}ea/events {"name": "x",
  "id": "{ulid}"} | track POST customers/{p}ea/events {"name": "x", "id": "{ulid}"}
  | app GET customers/{p}ea/activities?type=event | = activities.1 MISSING
anonymous events come to who is identified [reference]
  | track POST events {"name": "x", "anonymous_id": "{p}anon"}
  | put {p}eb {"anonymous_id": "{p}anon"} | app GET customers/{p}eb/activities?type=event
  | = activities.0.name "x"
a device makes a person [inferred] | put {p}d1/devices {"device": {"id": "{p}t", "platform": "ios"}}
  | read {p}d1 | = customer.devices.0.id "{p}t" | = customer.devices.0.platform "ios"
the platform as the iOS SDK writes it [sdk] | put {p}d2/devices {"device": {"id": "{p}u",
  "platform": "iOS"}} | read {p}d2 | = customer.devices.0.platform
a merge [reference] | put {p}m1 {"n": "1"} | put {p}m2 {"n": "2", "m": "2"}
  | track POST merge_customers {"primary": {"id": "{p}m1"}, "secondary": {"id": "{p}m2"}}
  | read {p}m1 | = @n "1" | = @m "2"
who was merged is gone [reference] | put {p}m3 {} | put {p}m4 {}
  | track POST merge_customers {"primary": {"id": "{p}m3"}, "secondary": {"id": "{p}m4"}}
  | read {p}m4 > 404
devices in a merge [open] | put {p}m5 {} | put {p}m6/devices {"device": {"id": "{p}y", "platform":
  "ios"}} | track POST merge_customers {"primary": {"id": "{p}m5"}, "secondary": {"id": "{p}m6"}}
  | read {p}m5 | = customer.devices.0.id
a merge by two identifiers [reference] | = meta.error
  | track POST merge_customers {"primary": {"id": "{p}", "email": "{m}"}, "secondary": {"id":
  "{p}m"}} > 400
an object of an unknown type in v2 [open] | v2 {"type": "object", "action": "identify",
  "identifiers": {"object_type_id": "987", "object_id": "{p}o1"}} > ?
who is suppressed is gone [reference] | put {p}u1 {} | track POST customers/{p}u1/suppress
  | read {p}u1 > 404
calls for who is suppressed are dropped [reference] | track POST customers/{p}u2/suppress
  | put {p}u2 {} | read {p}u2 > 404
who is unsuppressed can come again [reference] | track POST customers/{p}u3/suppress
  | track POST customers/{p}u3/unsuppress | put {p}u3 {"n": 1} | read {p}u3 | = @n "1"
## Error envelopes and status codes
a body that isn't JSON, v1 [open] | track PUT customers/{p}x1 nothing > 400
a body that isn't JSON, v2 [open] | v2 nothing > 400
v2 without a type [reference] | v2 {} > 400 | = errors.0.reason | = errors.0.field
v2 by two identifiers [reference] | = errors.0.reason
  | v2 {"type": "person", "action": "identify", "identifiers": {"id": "{p}", "email": "{m}"}} > 400
v2 by anonymous_id [open] | v2 {"type": "person", "action": "identify", "identifiers":
  {"anonymous_id": "{p}"}} > 400
relationships of an object by anonymous_id [open] | v2 {"type": "object", "identifiers":
  {"object_type_id": "1", "object_id": "{p}o3"}, "action": "delete_relationships",
  "cio_relationships": [{"identifiers": {"anonymous_id": "{p}"}}]} > ?
v2 by phone where it isn't on [reference] | v2 {"type": "person", "action": "identify",
  "identifiers": {"phone": "{p}"}} > 400
v2 event without a name [reference] | v2 {"type": "person", "action": "event", "identifiers": {"id":
  "{p}x3"}} > 400 | = errors.0.reason "required" | = errors.0.field "name"
a batch with a bad item [reference] | track POST /api/v2/batch {"batch": [ {"type": "person",
  "action": "identify", "identifiers": {"id": "{p}x4"}}, {"type": "nothing"}]} > 207
  | = errors.0.batch_index 1
the good items of such a batch count [reference] | track POST /api/v2/batch {"batch": [ {"type":
  "nothing"}, {"type": "person", "action": "identify", "identifiers": {"id": "{p}x5"}}]} > 207
  | read {p}x5 | = customer.id "{p}x5"
a metric of a delivery that can't be [sdk] | track POST push/events {"delivery_id": "", "event":
  "opened", "device_id": "{p}"} > 400 | = meta.errors.0 "malformed delivery id: ."
a person who isn't there [observed] | read {p}none > 404 | = errors.0.status "404"
  | = errors.0.detail "not found (reference ULID)"
their messages [open] | app GET customers/{p}none/messages > ?
their activities [open] | app GET customers/{p}none/activities > ?
their segments [open] | app GET customers/{p}none/segments > ?
a campaign that isn't there [observed] | app GET campaigns/987654321 > 404 | = errors.0.status "404"
the members of such a segment [open] | app GET segments/987654321/membership > 404
an object that isn't there [reference] | app GET objects/1/{p}none/attributes > 404
nobody by an email [observed] | app GET customers?email={m}none | = results []
## Filters with an empty `and` or `or`
an empty and [open] | app POST customers {"filter": {"and": []}} > 400
an empty or [open] | app POST customers {"filter": {"or": []}} > 400
a filter by an attribute [reference] | put {p}f1 {"n{p}": "Ada"}
  | app POST customers {"filter": {"attribute": {"field": "n{p}", "operator": "eq", "value":
  "Ada"}}} | = identifiers.0.id "{p}f1"
a filter has no case [docs] | put {p}f2 {"m{p}": "Ada"}
  | app POST customers {"filter": {"attribute": {"field": "m{p}", "operator": "eq", "value":
  "ADA"}}} | = identifiers.0.id
## Reads of an unseeded workspace
campaigns [reference] | app GET campaigns
newsletters [reference] | app GET newsletters
segments [reference] | app GET segments
exports, null when there are none [observed] | app GET exports
collections, null when there are none [field] | app GET collections
reporting webhooks, null when there are none [field] | app GET reporting_webhooks
object types [reference] | app GET object_types
transactional messages [reference] | app GET transactional
workspaces [reference] | app GET workspaces
messages, one at a time [reference] | app GET messages?limit=1
activities, one at a time [reference] | app GET activities?limit=1
a limit that is no number [open] | app GET activities?limit=none > ?
a limit of 0 [open] | app GET messages?limit=0 > ?
a start that nobody gave [open] | app GET messages?start=none > ?
## Texts of errors
what a send looks at first [open] | app POST send/email {} > 400 | = meta.error
a send to a list [field] | = meta.error "Request entity must be JSON encoded and not exceed 2048
  KB." | app POST send/email {"to": [], "transactional_message_id": "{p}none", "identifiers": {"id":
  "{p}"}} > 400
a flag that is text [field] | = meta.error "Request entity must be JSON encoded and not exceed 2048
  KB." | app POST send/email {"to": "{m}", "transactional_message_id": "{p}none", "identifiers":
  {"id": "{p}"}, "tracked": "true"} > 400
a message that isn't there [docs] | = meta.error | app POST send/email {"to": "{m}",
  "transactional_message_id": "{p}none", "identifiers": {"id": "{p}"}} > 400
a send without a person [open] | app POST send/email {"to": "{m}", "transactional_message_id":
  "{p}none"} > 400 | = meta.error
## `queued: true` in the answer to a send
a send [reference] | app POST send/email {"to": "{to}", "identifiers": {"id": "{p}to"}, "from":
  "{to}", "subject": "verify", "body": "verify"}
## Headers
of an answer of Track [observed] | put {p}h1 {} | = header:cache-control
  | = header:access-control-allow-origin "*" | = header:content-length "3"
of an answer of the App API [observed] | app GET exports | = header:cache-control
  | = header:x-frame-options "SAMEORIGIN" | = header:access-control-allow-origin
  "https://fly.customer.io"
of a 401 of Track [observed] | track!wrong PUT customers/{p}h2 {} > 401
  | = header:www-authenticate "Basic realm=\\"Customer.io edge event collection\\""
## Credentials
Track without any [observed] | track!none PUT customers/{p}c1 {} > 401
  | = meta.error "Unauthorized request"
App without any [observed] | app!none GET campaigns > 401 | = meta.error "Unauthorized request"
App with wrong ones [observed] | app!wrong GET campaigns > 401 | = meta.error "Unauthorized request"
Pipelines with wrong ones, strictly [reference] | cdp!strict,wrong POST identify {"userId": "{p}c3"}
  > 401
/auth is a page for everybody [observed] | track!wrong GET /auth
## `Authorization: Bearer` for Pipelines
Pipelines by the other scheme [open] | cdp!strict,scheme POST identify {"userId": "{p}c4"} > ?
## Unknown paths and methods
of Track [observed] | track PUT nothing {} > 404
of the App API [observed] | app GET nothing > 404
of the App API, before the credentials [observed] | app!wrong GET accounts/region > 404
a method that there isn't [observed] | track PATCH customers/{p}n1 {} > ?
a send of a misspelt kind [open] | app POST send/nothing {} > ?
of Pipelines [open] | cdp POST nothing {} > ?
## The answer to Pipelines calls
identify [reference] | cdp POST identify {"userId": "{p}p1", "traits": {"n": 1}} | read {p}p1
  | = @n "1"
identify, strictly [reference] | cdp!strict POST identify {"userId": "{p}p2"}
a person by traits.email [reference] | cdp POST identify {"userId": "", "traits": {"email":
  "{m}p3"}} | app GET customers?email={m}p3 | = results.0.email "{m}p3"
createdAt becomes created_at, in seconds [sdk] | cdp POST identify {"userId": "{p}p4", "traits":
  {"createdAt": "2024-01-01T00:00:00Z"}} | read {p}p4 | = @created_at "1704067200"
identify of nobody, strictly [reference] | cdp!strict POST identify {} > 400
track is an event [reference] | cdp POST track {"userId": "{p}p5", "event": "x"}
  | app GET customers/{p}p5/activities?type=event | = activities.0.name "x"
a batch [reference] | cdp POST batch {"batch": [{"type": "identify", "userId": "{p}p6", "traits":
  {"n": 1}}]} | read {p}p6 | = @n "1"
User Deleted [docs] | cdp POST identify {"userId": "{p}p7"}
  | cdp POST track {"userId": "{p}p7", "event": "User Deleted"} | read {p}p7 > 404
Device Created or Updated [docs] | cdp POST track {"userId": "{p}p8", "event": "Device Created or
  Updated", "context": {"device": {"token": "{p}tok", "type": "ios"}}} | read {p}p8
  | = customer.devices.0.id "{p}tok"
## Pipelines `integrations`
All: false keeps a call away [reference] | cdp POST identify {"userId": "{p}g1", "integrations":
  {"All": false}} | read {p}g1 > 404
Customer.io: true lets it through [inferred] | cdp POST identify {"userId": "{p}g2", "integrations":
  {"All": false, "Customer.io": true}} | read {p}g2 > ?
## Pipelines `identify` with an `anonymousId` alone
by anonymousId alone, strictly [sdk] | cdp!strict POST identify {"anonymousId": "{p}anon"}
## Pipelines `/v1/track` without `event`
track without an event, strictly [reference] | cdp!strict POST track {"userId": "{p}q2"} > 400
an empty batch, strictly [open] | cdp!strict POST batch {"batch": []} > 400
a body that isn't JSON [open] | cdp POST identify nothing > ?
## In-app and inbox messages in the official SDKs
an empty queue [sdk] | queue!{p}k1 POST v4/users?sessionId={p} {} > 204
  | = header:x-gist-queue-polling-interval
the queue without a site [open] | queue!none POST v4/users?sessionId={p} {} > ?
a view of what isn't there [open] | queue!{p}k2 POST v1/logs/queue/{p} {} > ?
"""

MISSING, ANY = "MISSING", "ANY"
_HOSTS = {"track": "track{}.customer.io", "app": "api{}.customer.io", "cdp": "cdp{}.customer.io"}
_ROOTS = {"track": "/api/v1/", "app": "/v1/", "cdp": "/v1/", "queue": "/api/"}
_KEYS = {"track": ["SITE_ID", "API_KEY"], "app": ["APP_KEY"], "cdp": ["WRITE_KEY"]}
#: What the fake adds to an answer on purpose (README says so), unless the service has it too.
_ADDED = {"errors": "meta", "delivery_id": "queued", "success": "success"}
_SHORT = {"^v2 ": "track POST /api/v2/entity ", "^put ": "track PUT customers/",
          "^delete ": "track DELETE customers/",
          r"^read (\S+)": r"app GET customers/\1/attributes"}  # fmt: skip
_CALL = re.compile(r"(\w+)(?:!(\S+))? ([A-Z]+) (\S+)(?: (?!> )(.+?))?(?: > (\d+|\?))?$", re.S)


class Step(NamedTuple):
    """One call of a probe, with its placeholders."""

    api: str
    how: str
    method: str
    path: str
    body: str
    status: int  # 0 if no source tells

    def filled(self, names: Dict[str, str]) -> Step:
        def fill(text: str) -> str:
            text = re.sub(r"\{x(\d*)\}", lambda found: "x" * int(found[1] or 1), text)
            text = re.sub(r"\{m\}(\w*)", r"{p}\1@example.com", text)
            return re.sub(r"\{(p|to|cio|ulid)\}", lambda word: names.get(word[1], "none"), text)

        return self._replace(how=fill(self.how), path=fill(self.path), body=fill(self.body))

    def __str__(self) -> str:
        text = f"{self.api}{'!' * bool(self.how)}{self.how} {self.method} {self.path} {self.body}"
        return text.rstrip() if len(text) < 160 else text[:157] + "…"


class Probe(NamedTuple):
    name: str
    source: str
    row: str
    steps: List[Step]
    shown: Dict[str, str]

    @property
    def needs(self) -> List[str]:
        """The keys without which it is skipped; who writes has to be able to clean up."""
        apis = {step.api for step in self.steps}
        apis |= {"track" for step in self.steps if step.method != "GET"}
        return sorted({key for api in apis for key in _KEYS.get(api, ["SITE_ID"])})


def step_of(text: str) -> Step:
    for short, path in _SHORT.items():
        text = re.sub(short, path, text)
    found = _CALL.match(text)
    assert found, text
    api, how, method, path, body, status = found.groups("")
    path = path if path.startswith("/") else _ROOTS[api] + path
    return Step(api, how, method, path, body, int((status or "200").replace("?", "0")))


def probes_of(text: str) -> List[Probe]:
    """Read the table."""
    probes, row = [], ""
    for line in re.sub(r"\n  (?=\S)", " ", text).strip().splitlines():
        if line.startswith("## "):
            row = line[3:]
            continue
        name, *parts = (part.strip() for part in line.split(" | "))
        what, source = name[:-1].rsplit(" [", 1)
        wanted = [part[2:].split(" ", 1) for part in parts if part.startswith("= ")]
        steps = [step_of(part) for part in parts if not part.startswith("= ")]
        shown = {path.replace("@", "customer.attributes."): value[0] if value else ANY
                 for path, *value in wanted}  # fmt: skip
        probes.append(Probe(what, source, row, steps, shown))
    return probes


class Answer(NamedTuple):
    status: int
    headers: Dict[str, str]
    body: bytes
    trouble: str = ""

    @property
    def json(self) -> Any:
        with contextlib.suppress(ValueError):
            return json.loads(self.body)
        return MISSING

    @property
    def kind(self) -> str:
        if not self.body:
            return "nothing"
        return "JSON" if self.json != MISSING else "HTML" if b"<" in self.body[:99] else "text"

    def at(self, path: str) -> Any:
        """What stands at a path such as `errors.0.status` or `header:retry-after`."""
        if path.startswith("header:"):
            return self.headers.get(path[7:], MISSING)
        found = self.json
        for part in path.split("."):
            if isinstance(found, list) and part.isdigit():
                found = dict(enumerate(found)).get(int(part), MISSING)
            else:
                found = found.get(part, MISSING) if isinstance(found, dict) else MISSING
        if isinstance(found, str):  # a reference is another one each time
            return re.sub(r"\b[0-9A-HJKMNP-TV-Z]{26}\b", "ULID", found)
        return found


class Service:
    """Where calls go: base URLs, the keys, and a pace of five a second."""

    def __init__(
        self, bases: Dict[str, str], keys: Dict[str, str], sleep: Callable[[float], None]
    ) -> None:
        self.bases, self.keys, self.sleep = bases, keys, sleep
        self.patience, self.pause, self.timeout = 10.0, 0.2, 10.0

    def headers(self, step: Step) -> Dict[str, str]:
        site, secret, app, write = (self.keys.get(name, "") for name in GIVEN_KEYS)
        if step.api == "queue":
            token = base64.b64encode(step.how.encode()).decode()
            return {
                "X-CIO-Site-Id": site * (step.how != "none"),
                "X-Gist-Encoded-User-Token": token,
            }
        pair, bearer = f"{site}:{secret}", app
        if step.api == "cdp":
            pair, bearer = f"{write}:", write
        if "wrong" in step.how:
            pair, bearer = "nobody:nothing", "nobody"
        basic = "Basic " + base64.b64encode(pair.encode()).decode()
        told = f"Bearer {bearer}" if (step.api == "app") != ("scheme" in step.how) else basic
        strict = {"X-Strict-Mode": "1"} if "strict" in step.how else {}
        return strict if step.how == "none" else {"Authorization": told, **strict}

    def send(self, step: Step) -> Answer:
        """One call, in its turn; waits as long as a 429 says, at most a minute, four times."""
        for _ in range(5):
            self.sleep(self.pause)
            answer = self.once(step)
            if answer.status != 429:
                break
            after = answer.headers.get("retry-after", "")
            self.sleep(min(60, int(after) if after.isdigit() else 10))
        return answer

    def once(self, step: Step) -> Answer:
        url = urlsplit(self.bases[step.api])
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        body = step.body.encode() if step.method != "GET" else None
        fields = {"Content-Type": "application/json", **self.headers(step)}
        try:
            with contextlib.closing(kind(url.netloc, timeout=self.timeout)) as connection:
                connection.request(step.method, url.path.rstrip("/") + step.path, body, fields)
                reply = connection.getresponse()
                headers = {name.lower(): value for name, value in reply.getheaders()}
                return Answer(reply.status, headers, reply.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            words = str(error) or type(error).__name__
            return Answer(0, {}, b"", f"no answer from {url.netloc}: {words}")

    def scrub(self, text: str) -> str:
        """Without the keys, whatever a service echoes."""
        for key in filter(None, self.keys.values()):
            text = text.replace(key, "***")
        return text


def type_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a flag", type(None): "null"}
    return names.get(type(value), "a number")


def shapes_differ(theirs: Any, ours: Any, place: str) -> Iterator[str]:
    """How keys, types and nulls differ; lists are alike by their first elements."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(set(theirs) | set(ours)):
            where = f"{place}.{key}".lstrip(".")
            if key not in theirs or key not in ours:
                yield f"{where}: {'only here' if key in ours else 'only there'}"
            else:
                yield from shapes_differ(theirs[key], ours[key], where)
    elif isinstance(theirs, list) and isinstance(ours, list):
        if theirs and ours:
            yield from shapes_differ(theirs[0], ours[0], f"{place}.0")
    elif ours is None and isinstance(theirs, list) and theirs:
        return  # it only has some, as a workspace in use does
    elif type_of(theirs) != type_of(ours):
        yield f"{place or 'the answer'}: {type_of(theirs)} there, {type_of(ours)} here"


def compare(theirs: Answer, ours: Answer, shown: Dict[str, str]) -> List[str]:
    """What differs, each in a few words; `there` is the service, `here` the fake."""
    if theirs.trouble or ours.trouble:
        return [theirs.trouble or ours.trouble]
    pairs = [("status", theirs.status, ours.status), ("body", theirs.kind, ours.kind)]
    for name in ("content-type", "www-authenticate"):
        values = (side.headers.get(name, MISSING).partition(";")[0] for side in (theirs, ours))
        pairs.append((f"header:{name}", next(values), next(values)))
    pairs += [(path, theirs.at(path), ours.at(path)) for path in shown]
    found = [f"{what}: {there!r} there, {here!r} here"[:200] for what, there, here in pairs
             if there != here]  # fmt: skip
    if theirs.kind == ours.kind == "JSON":
        there, here = theirs.json, ours.json
        if isinstance(there, dict) and isinstance(here, dict):
            added = {name for key, name in _ADDED.items() if key in here and name not in there}
            here = {key: value for key, value in here.items() if key not in added}
        told = {line.partition(":")[0] for line in found}
        found += [line for line in shapes_differ(there, here, "") if line.split(":")[0] not in told]
    return found


class Run:
    """One run of probes through a service and a fake."""

    def __init__(self, probes: List[Probe], theirs: Service, ours: Service, to: str = "") -> None:
        self.probes, self.theirs, self.ours = probes, theirs, ours
        self.prefix = f"verify-{os.urandom(4).hex()}-"
        names = {"p": self.prefix, "to": to, "ulid": ulid(time.time(), 0)}
        self.names = [(dict(names), dict(names)) for _ in probes]  # theirs, ours
        self.found: List[Dict[str, str]] = []
        self.touched: set[str] = set()
        self.silent = 0

    def all(self) -> None:
        """Every probe's first call, then every one's second: what one wrote has time to arrive."""
        for turn in range(max(len(probe.steps) for probe in self.probes)):
            if turn:
                self.theirs.sleep(2)
            for number, probe in enumerate(self.probes):
                if turn < len(probe.steps):
                    self.one(probe, turn, *self.names[number])

    def one(self, probe: Probe, turn: int, there: Dict[str, str], here: Dict[str, str]) -> None:
        step, last = probe.steps[turn], turn == len(probe.steps) - 1
        ours = self.ours.send(step.filled(here))
        asked = step.filled(there)
        if step.method != "GET":
            words = [unquote(part) for part in asked.path.split("/")]
            words += re.findall(re.escape(self.prefix) + r"[\w.:/@]*", asked.body)
            self.touched.update(word for word in words if word.startswith(self.prefix))
        shown = {path: self.fill(value) for path, value in probe.shown.items()} if last else {}
        rounds = int(self.theirs.patience) + 1 if step.method == "GET" and turn else 1
        for left in reversed(range(rounds)):
            theirs = self.theirs.send(asked)
            differences = compare(theirs, ours, shown)
            if not differences or theirs.trouble or not left:
                break
            self.theirs.sleep(1)
        for answer, names in ((theirs, there), (ours, here)):
            word = re.search(rb'"cio_id": ?"(\w+)"', answer.body)
            names.update({"cio": word[1].decode()} if word else {})
        where = {"probe": probe.name, "request": str(asked), "source": probe.source}
        self.found += [{**where, "row": probe.row, "what": what} for what in differences]
        self.silent = self.silent + 1 if theirs.trouble else 0
        if self.silent == 3:
            raise ConnectionError(f"gave up: {theirs.trouble}, three times in a row")

    def fill(self, value: str) -> str:
        return step_of("app GET x " + value).filled({"p": self.prefix}).body

    def clean_in_spite_of_haste(self) -> str:
        """Clean, and begin again should somebody stop that, too; gives what went wrong."""
        for _ in range(3):
            with contextlib.suppress(KeyboardInterrupt):
                return self.clean()
        return f"stopped before all that begins with {self.prefix} was deleted"

    def clean(self) -> str:
        """Delete what the run touched; gives what went wrong."""
        steps: List[Dict[str, Any]] = []
        for name in sorted(self.touched):
            kind = "email" if "@example.com" in name else "id"
            person = {"type": "person", "identifiers": {kind: name}}
            steps += [{**person, "action": action} for action in ("unsuppress", "delete")]
            if re.search(r"-o\d$", name):
                named = {"object_type_id": "987", "object_id": name}
                steps.append({"type": "object", "action": "delete", "identifiers": named})
        for begin in range(0, len(steps), 100):
            self.theirs.sleep(2)  # what was written last has to arrive before it is deleted
            body = json.dumps({"batch": steps[begin : begin + 100]})
            answer = self.theirs.send(Step("track", "", "POST", "/api/v2/batch", body, 200))
            if answer.status not in (200, 207):
                why = answer.trouble or answer.status
                return f"could not delete what begins with {self.prefix}: {why}"
        return ""


#: What the fake has: one of each kind, because an empty kind shows whatever is asked for.
VERIFY_SEED = {"campaigns": [{"id": 1}], "transactional": [{"id": 1, "name": "one"}]}


def verify_options(arguments: List[str]) -> argparse.Namespace:
    """Read the command line; ends with 2 and one line if it can't be."""
    parser = argparse.ArgumentParser("test_customerio_fake.py verify", description=(
        "Compare the service with the fake. Keys of a workspace for tests: CUSTOMERIO_SITE_ID, "
        "_API_KEY, _APP_KEY, _WRITE_KEY; probes whose keys are missing are skipped."))  # fmt: skip
    for flag in ("yes", "json", "list"):
        parser.add_argument(f"--{flag}", action="store_true")
    parser.add_argument("--region", choices=["us", "eu"], default="us")
    parser.add_argument("--against", default="", metavar="URL")
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--send-to", default="", metavar="ADDRESS")
    parser.add_argument("--patience", type=float, default=10.0, metavar="SECONDS")
    given = parser.parse_args(arguments)
    if given.against and not re.match(r"https?://[^/\s]+", given.against):
        parser.error("--against wants a URL that begins with http:// or https://")
    if not 0 <= given.patience <= 600:
        parser.error("--patience wants 0 to 600 seconds")
    if given.send_to and not re.fullmatch(r"[^@\s\"\\]+@[^@\s\"\\]+", given.send_to):
        parser.error("--send-to wants one address")
    return given


def preflight(service: Service, region: str) -> str:
    """Why these keys can't be used, if they can't; reads only."""
    for api, path in (("track", "accounts/region"), ("app", "workspaces")):
        if any(not service.keys.get(key) for key in _KEYS[api]):
            continue
        answer = service.send(step_of(f"{api} GET {path}"))
        host = service.bases[api]
        if answer.trouble:
            return answer.trouble
        if answer.status == 401:
            return f"{host} refuses the {api} keys: other ones, or of the other region?"
        if answer.status != 200 or answer.kind != "JSON":
            return f"{host} answers {answer.status} with {answer.kind}: that is no Customer.io API"
        if region and api == "track" and answer.at("region") != region:
            return f"the workspace is of region {answer.at('region')!r}, not {region!r}"
    return ""


def verify(
    arguments: List[str], given: Dict[str, str], sleep: Callable[[float], None] = time.sleep
) -> int:
    """Run the command; gives its exit code: 0, 1 if something differs, 2 if it can't be."""
    options = verify_options(arguments)
    wanted = [probe for probe in probes_of(PROBES) if options.only.lower() in
              " ".join([*probe[:3], *map(str, probe.steps)]).lower()]  # fmt: skip
    wanted.sort(key=lambda probe: probe.source != "open")
    if options.list:
        for probe in wanted:
            print(f"{probe.name} [{probe.source}; {probe.row}]", *probe.steps, sep="\n    ")
        return 0
    keys = {name: value for name, value in given.items() if value}
    probes = [probe for probe in wanted if all(key in keys for key in probe.needs)
              and (options.send_to or "{to}" not in probe.steps[0].body)]  # fmt: skip
    if not probes:
        print(f"no probe has both '{options.only}' in it and its keys set", file=sys.stderr)
        return 2
    middle = "-eu" * (options.region == "eu")
    hosts = {api: f"https://{host.format(middle)}" for api, host in _HOSTS.items()}
    hosts["queue"] = "https://consumer.inapp.customer.io"
    bases = dict.fromkeys(hosts, options.against) if options.against else hosts
    service = Service(bases, keys, sleep)
    service.patience = options.patience
    calls = sum(len(probe.steps) for probe in probes)
    said = sys.stderr if options.json else sys.stdout
    print(f"{len(probes)} of {len(wanted)} probes, {calls} calls or more to {bases['track']} …: "
          "makes people, objects and events whose ids begin with verify-, and deletes them; "
          f"{'sends a mail to ' + options.send_to if options.send_to else 'sends nothing'}.",
          file=said)  # fmt: skip
    if not options.yes:
        print("nothing was asked yet: say --yes to do it (--list shows every call)", file=said)
        return 2
    wrong = preflight(service, "" if options.against else options.region)
    if wrong:
        print(service.scrub(wrong), file=sys.stderr)
        return 2
    return carry_out(service, probes, options)


def carry_out(service: Service, probes: List[Probe], options: argparse.Namespace) -> int:
    """Run, clean up whatever happens, report; gives the exit code."""
    names = {name.lower(): value for name, value in service.keys.items()}
    ended = ""
    region = options.region
    with CustomerioServer(0, seed=VERIFY_SEED, html_404=True, region=region, **names) as cio:
        ours = Service(dict.fromkeys(service.bases, cio.url), service.keys, lambda seconds: None)
        run = Run(probes, service, ours, options.send_to)
        try:
            run.all()
        except KeyboardInterrupt:
            ended = "stopped"
        except ConnectionError as error:
            ended = str(error)
        finally:
            left = run.clean_in_spite_of_haste()
    text = json.dumps({"prefix": run.prefix, "probes": len(probes), "ended": ended, "left": left,
                       "differences": run.found}, indent=2)  # fmt: skip
    if not options.json:
        lines = ["{probe}\n    {request}\n    {what}\n    [{source}; {row}]".format(**row)
                 for row in run.found]  # fmt: skip
        text = "\n".join([*lines, *filter(None, (ended, left)), f"{len(run.found)} differences"])
    print(service.scrub(text))
    return 1 if run.found or ended or left else 0


class Bent(Service):
    """A service of which every answer has another status, header, or other words in its body."""

    bend: Tuple[str, Any]

    def once(self, step: Step) -> Answer:
        answer, (what, value) = super().once(step), self.bend
        if what == "status":
            return answer._replace(status=value)
        if what.startswith("header:"):
            return answer._replace(headers={**answer.headers, what[7:]: value})
        return answer._replace(body=re.sub(what.encode(), value.encode(), answer.body))


BENDS: List[Tuple[str, str, Any, str]] = [
    ("deleting nobody", "status", 204, "status: 204 there, 200 here"),
    ("deleting nobody", r"(?s)^.+$", "", "body: 'nothing' there, 'JSON' here"),
    ("deleting nobody", r"(?s)^.+$", "<html>", "body: 'HTML' there, 'JSON' here"),
    ("deleting nobody", r"(?s)^.+$", "OK", "body: 'text' there, 'JSON' here"),
    ("deleting nobody", r"(?s)^.+$", "[]", "the answer: a list there, an object here"),
    ("deleting nobody", "header:content-type", "text/plain", "header:content-type: 'text/plain'"),
    ("deleting nobody", r"(?s)^.+$", '{"id": 1}', "id: only there"),
    ("nobody by an email", r"\[\]", "null", "results: None there, [] here"),
    ("nobody by an email", "results", "customers", "customers: only there"),
    ("exports, null", "null", "[]", "exports: a list there, null here"),
    ("collections, null", "null", '""', "collections: text there, null here"),
    ("newsletters", '""', "null", "next: null there, text here"),
    ("segments", r"\[\]", "{}", "segments: an object there, a list here"),
    ("workspaces", '"people":(.*?),', r'"people":"\1",', "workspaces.0.people: text"),
    ("workspaces", '"people":.*?,', "", "workspaces.0.people: only here"),
    ("a campaign that", '"404"', "404", "errors.0.status: 404 there, '404' here"),
    ("a campaign that", "status", 410, "status: 410 there, 404 here"),
    ("a campaign that", '"detail"', '"title"', "errors.0.detail: only here"),
    ("a campaign that", r'(?s)^.+$', '{"meta": {"error": "x"}}', "errors: only here"),
    ("a person who isn't", "not found", "gone", "errors.0.detail: 'gone (ref"),
    ("Track without any", "header:www-authenticate", "Bearer", "header:www-authenticate: 'B"),
    ("Track without any", '"error"', '"errors"', "meta.errors: only there"),
    ("App without any", "Unauthorized", "Wrong", "meta.error: 'Wrong request' there"),
    ("a value of 1001 bytes", "1000 bytes", "999 bytes", "cannot be longer than 999 bytes"),
    ("a batch with a bad item", "status", 200, "status: 200 there, 207 here"),
    ("a batch with a bad item", '"batch_index": 1', '"batch_index": 0', "batch_index: 0"),
    ("values are read back", '"n":"30"', '"n":30', "customer.attributes.n: 30 there"),
    ("values are read back", '"devices":.*?]', '"devices":null', "customer.devices: null"),
    ("{} is enough", r'"unsubscribed":false', '"unsubscribed":"false"', "unsubscribed: 'f"),
    ("of an answer of Track", "header:cache-control", "public", "header:cache-control: 'public'"),
    ("of an answer of the App", "header:x-frame-options", "DENY", "x-frame-options: 'DENY'"),
    ("an id has a case", "status", 200, "status: 200 there, 404 here"),
]  # fmt: skip


class VerifyTest(unittest.TestCase):
    """The probes hold for the fake, and they see what differs."""

    keys = {"SITE_ID": "a-site", "API_KEY": "a-secret", "APP_KEY": "an-app", "WRITE_KEY": "a-write"}
    probes = probes_of(PROBES)

    def setUp(self) -> None:
        names = {name.lower(): value for name, value in self.keys.items()}
        self.cio = CustomerioServer(0, seed=VERIFY_SEED, html_404=True, **names)
        self.cio.start()
        self.addCleanup(self.cio.stop)
        self.slept: List[float] = []

    def service(self) -> Service:
        bases = dict.fromkeys((*_HOSTS, "queue"), self.cio.url)
        return Service(bases, self.keys, self.slept.append)

    def ask(
        self, *arguments: str, given: Dict[str, str] = keys, sleep: Any = None
    ) -> Tuple[int, str]:
        """What the command ends with and says."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = verify(list(arguments), given, sleep or self.slept.append)
            except SystemExit as ended:
                code = cast(int, ended.code)
        for key in self.keys.values():
            self.assertNotIn(key, said.getvalue())
        return code, said.getvalue()

    def test_the_probes_hold_for_the_fake(self) -> None:
        self.assertGreaterEqual(len(self.probes), 120)
        service = self.service()
        run = Run(self.probes, service, service)
        for probe, (names, _) in zip(self.probes, run.names):
            for step in probe.steps:
                answer = service.send(step.filled({**names, "to": "x@example.com"}))
                word = re.search(rb'"cio_id": ?"(\w+)"', answer.body)
                names.update({"cio": word[1].decode()} if word else {})
                if step.status:
                    self.assertEqual(answer.status, step.status, (probe.name, step, answer.body))
            for path, value in probe.shown.items():
                if value != ANY:
                    wanted = value if value == MISSING else json.loads(run.fill(value))
                    self.assertEqual(answer.at(path), wanted, (probe.name, path, answer.body))

    def test_every_probe_names_a_row_of_the_readme(self) -> None:
        path = pathlib.Path(customerio_fake.__file__).with_name("README.md")
        if path.exists():  # not where the two files were copied
            text = path.read_text(encoding="utf-8")
            for row in {probe.row for probe in self.probes}:
                self.assertRegex(text, f"(?m)^(\\| .*|#+ ){re.escape(row)}")

    def test_a_fake_against_a_fake_differs_nowhere_and_is_left_empty(self) -> None:
        code, said = self.ask("--against", self.cio.url, "--yes", "--send-to", "x@example.com")
        self.assertEqual(code, 0, said)
        self.assertEqual(self.cio.people, [])
        self.assertEqual(self.cio.objects, [])
        self.assertGreaterEqual(self.slept.count(0.2), sum(len(row.steps) for row in self.probes))

    def test_what_is_bent_is_found_and_named(self) -> None:
        for word, what, value, said in BENDS:
            with self.subTest(word=word, said=said):
                probes = [probe for probe in self.probes if probe.name.startswith(word)][:1]
                ours = self.service()
                theirs = Bent(ours.bases, self.keys, self.slept.append)
                theirs.bend = (what, value)
                run = Run(probes, theirs, ours)
                run.all()
                self.assertIn(said, "\n".join(row["what"] for row in run.found))

    def test_a_late_write_is_waited_for_as_long_as_patience_lasts(self) -> None:
        once = Service.once
        for patience, ended in (("0", 1), ("5", 0)):
            late = [Answer(404, {}, b"")] * 3

            def slow(service: Service, step: Step, late: List[Answer] = late) -> Answer:
                theirs = service.sleep == self.slept.append and "i1/attr" in step.path
                return late.pop() if theirs and late else once(service, step)

            with mock.patch.object(Service, "once", slow):
                arguments = ("--yes", "--only", "{} is enough", "--patience", patience)
                code, said = self.ask("--against", self.cio.url, *arguments)
            self.assertEqual(code, ended, said)

    def test_after_ctrl_c_and_after_silence_all_is_deleted(self) -> None:
        stop = mock.Mock(side_effect=[None] * 40 + [KeyboardInterrupt] * 2 + [None] * 99)
        code, said = self.ask("--against", self.cio.url, "--yes", sleep=stop)
        self.assertEqual((code, self.cio.people), (1, []))
        self.assertIn("stopped", said)
        once, asked = Service.once, itertools.count()

        def silent(service: Service, step: Step) -> Answer:
            mine = service.bases["track"] == self.cio.url and 20 < next(asked) < 24
            return Answer(0, {}, b"", "timed out") if mine else once(service, step)

        with mock.patch.object(Service, "once", silent):
            code, said = self.ask("--against", self.cio.url, "--yes", "--only", "track PUT")
        self.assertEqual((code, self.cio.people), (1, []), said)
        self.assertIn("gave up: timed out, three times in a row", said)

    def test_what_is_no_such_service_gives_one_line_and_nothing_is_written(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            gone = f"http://127.0.0.1:{free.getsockname()[1]}"
        for place in (gone, "http://127.0.0.1:x"):
            code, said = self.ask("--against", place, "--yes")
            self.assertEqual((code, said.count("\n")), (2, 2), said)
            self.assertIn("no answer from 127.0.0.1", said)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            service = Service({"app": f"http://127.0.0.1:{silent.getsockname()[1]}"}, {}, print)
            service.timeout = 0.05
            self.assertRegex(service.once(step_of("app GET exports")).trouble, "timed out$")
        page = Answer(200, {}, b"<html>a-secret")
        with mock.patch.object(Service, "once", lambda *_: page):
            code, said = self.ask("--against", gone, "--yes")
        self.assertEqual((code, said.count("\n")), (2, 2), said)
        self.assertIn("answers 200 with HTML: that is no Customer.io API", said)
        for wrong in ("API_KEY", "APP_KEY"):
            given = {**self.keys, wrong: "another"}
            code, said = self.ask("--against", self.cio.url, "--yes", given=given)
            self.assertEqual((code, self.cio.people), (2, []))
            self.assertRegex(said, "refuses the (track|app) keys")

    def test_a_429_is_obeyed(self) -> None:
        service = self.service()
        answers = [Answer(429, {"retry-after": "7"}, b""), Answer(200, {}, b"")]
        with mock.patch.object(Service, "once", lambda *_: answers.pop(0)):
            self.assertEqual(service.send(step_of("app GET exports")).status, 200)
        self.assertEqual(self.slept, [0.2, 7, 0.2])

    def test_without_yes_nothing_is_asked(self) -> None:
        for arguments, code in (((), 2), (("--list",), 0)):
            with mock.patch.object(Service, "once", side_effect=AssertionError):
                self.assertEqual(self.ask(*arguments)[0], code)

    def test_bad_usage_ends_with_2_and_says_why(self) -> None:
        rows = [
            ("--nothing", "unrecognized"), ("--region=asia", "invalid choice"),
            ("--against=localhost", "http://"), ("--patience=-1", "0 to 600"),
            ("--patience=x", "invalid float"), ("--send-to=nobody", "one address"),
            ("--only=nothing of the kind", "no probe"),
        ]  # fmt: skip
        for flag, words in rows:
            code, said = self.ask("--yes", flag)
            self.assertEqual(code, 2)
            self.assertIn(words, said)
        self.assertEqual(self.ask("--yes", given={})[0], 2)

    def test_a_report_for_a_machine(self) -> None:
        some = {"SITE_ID": "a-site", "API_KEY": "a-secret"}
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            arguments = ["--against", self.cio.url, "--yes", "--json", "--only", "Events"]
            self.assertEqual(verify(arguments, some, self.slept.append), 0)
        report = json.loads(said.getvalue())
        self.assertEqual(report["differences"], [])
        self.assertGreater(len(self.probes), report["probes"])  # those for other keys are skipped


if __name__ == "__main__":
    if sys.argv[1:2] == ["verify"]:
        sys.exit(verify(sys.argv[2:], GIVEN_KEYS))
    unittest.main()
